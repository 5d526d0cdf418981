/* task_score — 由请求的结果算各文档的指标值
 * 出处：lm_eval/api/task.py 的 ConfigurableTask.process_results。 */
#include <math.h>
#include <string.h>

#include "base/pytext.h"
#include "tasks/pystr.h"
#include "tasks/task_functions.h"
#include "tasks/task_run.h"

/* ---------- 选择题 ---------- */

static double choice_length(const TaskDoc *d, size_t i, MetricKind norm) {
    const json_t *c = json_array_get(d->choices, i);
    if (norm == METRIC_ACC_NORM)
        return (double)pytext_length(json_string_value(c), json_string_length(c));
    return norm == METRIC_ACC_BYTES ? (double)json_string_length(c) : 1;
}

int64_t choice_argmax(const TaskDoc *d, MetricKind norm) {
    size_t n = json_array_size(d->choices);
    int64_t best = 0;
    double top = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        double v = d->requests[i].score->loglikelihood;
        if (norm == METRIC_ACC_MUTUAL)
            v -= d->requests[n + i].score->loglikelihood;
        else
            v /= choice_length(d, i, norm);
        if (v > top) top = v, best = (int64_t)i;
    }
    return best;
}

/* 答案的一项 → 选项的下标；不在范围内为 -100。 */
static int64_t gold_index(const TaskDoc *d, const json_t *gold) {
    size_t n = json_array_size(d->choices);
    if (json_is_integer(gold)) {
        json_int_t i = json_integer_value(gold);
        return i < (json_int_t)n ? i : -100;
    }
    if (json_is_boolean(gold)) return json_is_true(gold); /* Python 的 bool 是 int */
    for (size_t i = 0; json_is_string(gold) && i < n; i++)
        if (json_equal(json_array_get(d->choices, i), gold)) return (int64_t)i;
    return -100;
}

static bool is_gold(const TaskDoc *d, int64_t pred) {
    if (!json_is_array(d->gold)) return gold_index(d, d->gold) == pred;
    for (size_t i = 0; i < json_array_size(d->gold); i++)
        if (gold_index(d, json_array_get(d->gold, i)) == pred) return true;
    return false;
}

static bool gold_is_greedy(const TaskDoc *d) {
    size_t n = json_is_array(d->gold) ? json_array_size(d->gold) : 1;
    for (size_t i = 0; i < n; i++) {
        int64_t g = gold_index(d, json_is_array(d->gold) ? json_array_get(d->gold, i) : d->gold);
        if (g >= 0 && d->requests[g].score->is_greedy) return true;
    }
    return false;
}

static double choice_value(const TaskDoc *d, MetricKind k) {
    if (k == METRIC_EXACT_MATCH) return gold_is_greedy(d);
    return is_gold(d, choice_argmax(d, k));
}

/* ---------- 整篇 ---------- */

/* len(re.split(r"\s+", text))：空白段数加一。 */
static double count_words(const char *text, size_t len) {
    size_t runs = 0;
    bool inside = false;
    for (size_t at = 0, n; at < len; at += n) {
        bool space = pytext_is_space(pytext_char(text + at, len - at, &n));
        runs += space && !inside;
        inside = space;
    }
    return (double)(runs + 1);
}

static DocValue rolling_value(const Task *t, const TaskDoc *d, MetricKind k) {
    const TaskRequest *r = &d->requests[0];
    const char *text = r->continuation;
    size_t len = r->n_continuation;
    if (task_function_name(t->config, "process_results")) { /* wikitext：按还原分词之前的原文计数 */
        const json_t *page = json_object_get(d->doc, "page");
        text = json_string_value(page);
        len = json_string_length(page);
    }
    DocValue v = {.weight = k == METRIC_WORD_PPL ? count_words(text, len) : (double)len};
    for (size_t i = 0; i < r->n_score; i++) v.value += r->score[i].loglikelihood;
    return v;
}

/* ---------- 生成 ---------- */

bool generated_text(const Task *t, const TaskRequest *r, const Tokenizer *tokenizer, Str *out, Err *e) {
    const TokenIds *ids = &r->generate.out;
    Str all = {0};
    if (!tokenizer_decode(tokenizer, ids->ids, ids->n, true, &all, e)) {
        str_free(&all);
        return false;
    }
    size_t len = all.len;
    for (size_t i = 0; i < t->n_until; i++) { /* 依次在各停止串处截断 */
        size_t n = strlen(t->until[i]);
        const char *hit = n && len ? memmem(all.data, len, t->until[i], n) : NULL;
        if (hit) len = (size_t)(hit - all.data);
    }
    str_addn(out, all.data ? all.data : "", len);
    bool ok = !all.failed && !out->failed;
    str_free(&all);
    return ok || err_set(e, ERR_MEMORY, "内存不足");
}

/* 答案 → 文字的列表（通常一个）。 */
static json_t *gold_texts(const Task *t, const TaskDoc *d, Err *e) {
    const json_t *gold = d->target, *choice = json_object_get(t->config, "doc_to_choice");
    json_t *out = json_array(), *choices = NULL;
    if (choice && !json_is_null(choice)) {
        choices = task_choices(t, d->doc, NULL, e);
        gold = choices ? json_array_get(choices, (size_t)json_integer_value(d->target)) : NULL;
    }
    size_t n = json_is_array(gold) ? json_array_size(gold) : gold ? 1 : 0;
    for (size_t i = 0; out && i < n; i++) {
        const json_t *one = json_is_array(gold) ? json_array_get(gold, i) : gold;
        char number[40];
        snprintf(number, sizeof number, "%lld", (long long)json_integer_value(one));
        json_array_append_new(out, json_is_string(one) ? json_incref((json_t *)one) : json_string(number));
    }
    json_decref(choices);
    if (out && json_array_size(out)) return out;
    json_decref(out);
    if (e->code == ERR_NONE) err_set(e, ERR_FORMAT, "没有答案可比");
    return NULL;
}

/* 一条流水线过滤后的文字与任一答案相同。 */
static bool generate_value(const Task *t, const TaskDoc *d, const MetricSpec *m, const FilterPipe *f,
                           const Tokenizer *tokenizer, double *value, Err *e) {
    if (m->kind != METRIC_EXACT_MATCH)
        return err_set(e, ERR_UNSUPPORTED, "generate_until 的指标 '%s' 原生路径没有", metric_name(m->kind));
    Str raw = {0}, text = {0};
    json_t *golds = gold_texts(t, d, e);
    bool ok = golds && generated_text(t, &d->requests[0], tokenizer, &raw, e) &&
              filter_apply(f, raw.data ? raw.data : "", raw.len, &text, e);
    *value = 0;
    for (size_t i = 0; ok && i < json_array_size(golds); i++) {
        const json_t *g = json_array_get(golds, i);
        bool same;
        ok = metric_exact_match(m, json_string_value(g), json_string_length(g),
                                text.data ? text.data : "", text.len, &same, e);
        if (ok && same) *value = 1;
    }
    json_decref(golds);
    str_free(&raw);
    str_free(&text);
    return ok;
}

/* ---------- 合起来 ---------- */

static bool doc_value(const Task *t, const TaskDoc *d, const MetricSpec *m, const FilterPipe *f,
                      const Tokenizer *tokenizer, DocValue *v, Err *e) {
    *v = (DocValue){.weight = 1};
    switch (t->output) {
    case OUT_CHOICE:
        if (m->kind >= METRIC_PERPLEXITY) break;
        v->value = choice_value(d, m->kind);
        return true;
    case OUT_LOGLIKELIHOOD:
        if (m->kind != METRIC_PERPLEXITY && m->kind != METRIC_ACC) break;
        v->value = m->kind == METRIC_ACC ? (double)d->requests[0].score->is_greedy
                                         : d->requests[0].score->loglikelihood;
        return true;
    case OUT_ROLLING:
        if (m->kind < METRIC_WORD_PPL) break;
        *v = rolling_value(t, d, m->kind);
        return true;
    case OUT_GENERATE: return generate_value(t, d, m, f, tokenizer, &v->value, e);
    }
    return err_set(e, ERR_UNSUPPORTED, "指标 '%s' 不适用于这种 output_type", metric_name(m->kind));
}

bool task_values(Task *t, const Tokenizer *tokenizer, DocValue **values, Arena *a, Err *e) {
    DocValue *v = *values = ARENA_ARRAY(a, DocValue, t->n_metrics * t->n_filters * t->n_docs, e);
    if (!v) return false;
    for (size_t m = 0; m < t->n_metrics; m++)
        for (size_t f = 0; f < t->n_filters; f++)
            for (size_t i = 0; i < t->n_docs; i++)
                if (!doc_value(t, &t->docs[i], &t->metrics[m], &t->filters[f], tokenizer, v++, e))
                    return err_wrap(e, "任务 %s 的第 %lld 份文档", t->name, (long long)t->docs[i].id);
    return true;
}
