/* task_fewshot — 少样本的抽取与 context 的拼接
 * 抽取同 Python 的 random.Random(1234).sample，逐份文档接着抽（lm_eval/api/samplers.py 的 ContextSampler、FirstNSampler）；
 * 拼接同 fewshot_context 与 build_qa_turn：说明，各样本的「题面、分隔、答案、分隔」，最后是本题的题面。 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tasks/pystr.h"
#include "tasks/task.h"

/* random.sample(range(n), k)：k 小时用池，否则用集合（CPython Lib/random.py）。 */
static bool sample_indices(PyRandom *rng, size_t n, size_t k, size_t *out, Err *e) {
    size_t setsize = 21;
    if (k > n)
        return err_set(e, ERR_CONFIG, "少样本要 %zu 个，而数据只有 %zu 行", k, n);
    if (k > 5) setsize += (size_t)pow(4, ceil(log((double)k * 3) / log(4)));
    if (n <= setsize) {
        size_t *pool = malloc((n ? n : 1) * sizeof *pool);
        if (!pool) return err_set(e, ERR_MEMORY, "内存不足");
        for (size_t i = 0; i < n; i++) pool[i] = i;
        for (size_t i = 0; i < k; i++) {
            size_t j = (size_t)pyrandom_int(rng, 0, (int64_t)(n - i) - 1);
            out[i] = pool[j];
            pool[j] = pool[n - i - 1];
        }
        free(pool);
        return true;
    }
    for (size_t i = 0; i < k; i++) {
        bool again = true;
        while (again) {
            out[i] = (size_t)pyrandom_int(rng, 0, (int64_t)n - 1);
            again = false;
            for (size_t j = 0; j < i; j++) again = again || out[j] == out[i];
        }
    }
    return true;
}

/* 留下与 exclude 不同的前 n 个。返回: 留下的个数。 */
static size_t drop_same(const json_t *pool, const json_t *exclude, size_t *picks, size_t have,
                        size_t n) {
    size_t kept = 0;
    for (size_t i = 0; i < have && kept < n; i++)
        if (!exclude || !json_equal(json_array_get(pool, picks[i]), exclude)) picks[kept++] = picks[i];
    return kept;
}

bool fewshot_sample(PyRandom *rng, const json_t *pool, int64_t n, const json_t *exclude,
                    bool first_n, size_t *picks, Err *e) {
    size_t total = json_array_size(pool), want = (size_t)n, kept = 0;
    if (first_n) {
        for (size_t i = 0; i < total && kept < want; i++)
            if (!exclude || !json_equal(json_array_get(pool, i), exclude)) picks[kept++] = i;
        return kept == want ||
               err_set(e, ERR_CONFIG, "少样本要 %zu 个，而数据只有 %zu 个可用", want, kept);
    }
    size_t draw = want + (exclude != NULL);
    size_t *drawn = malloc((total + draw + 1) * sizeof *drawn);
    if (!drawn) return err_set(e, ERR_MEMORY, "内存不足");
    bool ok = sample_indices(rng, total, draw, drawn, e);
    if (ok) kept = drop_same(pool, exclude, drawn, draw, want);
    if (ok && kept < want) { /* 有多行与本题相同：从去掉它们的里面重抽 */
        size_t *rest = malloc((total + 1) * sizeof *rest), left = 0;
        ok = rest != NULL || err_set(e, ERR_MEMORY, "内存不足");
        for (size_t i = 0; ok && i < total; i++)
            if (!json_equal(json_array_get(pool, i), exclude)) rest[left++] = i;
        ok = ok && sample_indices(rng, left, want, drawn, e);
        for (size_t i = 0; ok && i < want; i++) drawn[i] = rest[drawn[i]];
        free(rest);
    }
    if (ok) memcpy(picks, drawn, want * sizeof *picks);
    free(drawn);
    return ok;
}

/* ---------- 拼接 ---------- */

static bool ends_in_space(const char *s, size_t n) {
    PyText t = {s, n};
    return py_strip(t, (PyText){0}, false, true).n < n;
}
static bool starts_with_space(const char *s, size_t n) {
    PyText t = {s, n};
    return py_strip(t, (PyText){0}, true, false).n < n;
}

/* 两段相接处都没有空白。 */
static bool needs_delimiter(const char *a, size_t n, const char *b, size_t m) {
    return n && !ends_in_space(a, n) && !starts_with_space(b, m);
}

static const char *setting(const Task *t, const char *key, const char *def) {
    const json_t *few = json_object_get(json_object_get(t->config, "fewshot_config"), key);
    const json_t *v = json_is_string(few) ? few : json_object_get(t->config, key);
    return json_is_string(v) ? json_string_value(v) : def;
}

/* 一个回合的题面（后跟 tgt_delim，若有答案或 gen_prefix 要隔开）。 */
static void add_question(Str *out, const char *q, size_t n, bool answered, const char *prefix,
                         const char *delimiter) {
    str_addn(out, q, n);
    if ((answered && !*prefix) || (*prefix && needs_delimiter(q, n, prefix, strlen(prefix))))
        str_add(out, delimiter);
}

/* 样本的答案 → 文字：选项的下标、列表的第一个，或文字本身。 */
static const json_t *answer_text(const json_t *a, const json_t *choices, Err *e) {
    const json_t *v = a;
    if (json_is_integer(a)) {
        json_int_t i = json_integer_value(a), n = (json_int_t)json_array_size(choices);
        v = json_array_get(choices, (size_t)(i < 0 ? i + n : i));
    } else if (json_is_array(a)) {
        v = json_array_get(a, 0);
    }
    if (json_is_string(v)) return v;
    err_set(e, ERR_FORMAT, "少样本的答案不是文字，也不是选项的下标");
    return NULL;
}

static bool add_shot(Task *t, const json_t *doc, Str *out, Err *e) {
    const json_t *few = json_object_get(t->config, "fewshot_config");
    const json_t *has = json_object_get(t->config, "doc_to_choice");
    const json_t *over = json_object_get(few, "doc_to_choice");
    json_t *q = task_text(t, doc, json_object_get(few, "doc_to_text"), e), *c = NULL, *a = NULL;
    const json_t *prefix_of = json_object_get(few, "gen_prefix");
    if (!prefix_of) prefix_of = json_object_get(t->config, "gen_prefix");
    const char *prefix = q ? task_resolve(t, doc, prefix_of, e) : NULL;
    bool ok = prefix != NULL, choices = (has && !json_is_null(has)) || over;
    if (ok && choices) ok = (c = task_choices(t, doc, over, e)) != NULL;
    if (ok) ok = (a = task_target(t, doc, json_object_get(few, "doc_to_target"), e)) != NULL;
    const json_t *question = q, *answer = NULL;
    if (ok && t->multiple_input) {
        question = json_array_get(c, (size_t)json_integer_value(q));
        answer = json_is_string(a) ? a : NULL;
    }
    if (ok && !json_is_string(question)) ok = err_set(e, ERR_FORMAT, "少样本的题面不是文字");
    bool empty = ok && json_is_string(a) && json_string_length(a) == 0;
    if (ok && !answer && !empty) ok = (answer = answer_text(a, c, e)) != NULL;
    if (ok) {
        add_question(out, json_string_value(question), json_string_length(question), !empty, prefix,
                     setting(t, "target_delimiter", " "));
        str_add(out, prefix);
    }
    if (ok && !empty) {
        const char *text = json_string_value(answer);
        size_t n = json_string_length(answer);
        if (needs_delimiter(prefix, strlen(prefix), text, n) && n) str_add(out, " ");
        str_addn(out, text, n);
        str_add(out, setting(t, "fewshot_delimiter", "\n\n"));
    }
    json_decref(q);
    json_decref(c);
    json_decref(a);
    return ok;
}

/* 本题之前的一切。 */
static bool add_shots(Task *t, const json_t *doc, PyRandom *rng, Str *out, Err *e) {
    const char *description = task_resolve(t, doc, json_object_get(t->config, "description"), e);
    if (!description) return false;
    str_add(out, description);
    if (t->n_fewshot == 0) return true;
    const json_t *few = json_object_get(t->config, "fewshot_config");
    const char *sampler = json_string_value(json_object_get(few, "sampler"));
    const char *test = json_string_value(json_object_get(t->config, "test_split"));
    const char *split = json_string_value(json_object_get(few, "split"));
    if (!split) split = json_string_value(json_object_get(t->config, "fewshot_split"));
    bool same = split && test ? strcmp(split, test) == 0 : !split && !test;
    size_t *picks = malloc((size_t)t->n_fewshot * sizeof *picks);
    bool ok = picks ? fewshot_sample(rng, t->fewshot_docs, t->n_fewshot, same ? doc : NULL,
                                     sampler && strcmp(sampler, "first_n") == 0, picks, e)
                    : err_set(e, ERR_MEMORY, "内存不足");
    for (int64_t i = 0; ok && i < t->n_fewshot; i++)
        ok = add_shot(t, json_array_get(t->fewshot_docs, picks[i]), out, e);
    free(picks);
    return ok;
}

/* 一个题面接在 head 之后，成为一个 context。 */
static bool add_context(json_t *all, const Str *head, const json_t *q, const char *prefix,
                        const char *delimiter, Err *e) {
    if (!json_is_string(q)) return err_set(e, ERR_FORMAT, "doc_to_text 没有得到文字");
    Str s = {.failed = head->failed};
    str_addn(&s, head->data ? head->data : "", head->len);
    add_question(&s, json_string_value(q), json_string_length(q), false, prefix, delimiter);
    str_add(&s, prefix);
    json_t *v = s.failed ? NULL : json_stringn(s.data ? s.data : "", s.len);
    str_free(&s);
    return json_array_append_new(all, v) == 0 || err_set(e, ERR_MEMORY, "内存不足");
}

json_t *task_context(Task *t, const json_t *doc, PyRandom *rng, Err *e) {
    Str head = {0};
    json_t *all = json_array(), *q = NULL, *choices = NULL;
    const char *prefix = task_resolve(t, doc, json_object_get(t->config, "gen_prefix"), e);
    const json_t *d = json_object_get(t->config, "target_delimiter");
    const char *delimiter = json_is_string(d) ? json_string_value(d) : " ";
    bool ok = all && prefix && add_shots(t, doc, rng, &head, e);
    if (ok && t->multiple_input) {
        ok = (choices = task_choices(t, doc, NULL, e)) != NULL;
        for (size_t i = 0; ok && i < json_array_size(choices); i++)
            ok = add_context(all, &head, json_array_get(choices, i), prefix, "", e);
    } else if (ok) {
        ok = (q = task_text(t, doc, NULL, e)) && add_context(all, &head, q, prefix, delimiter, e);
    }
    str_free(&head);
    json_decref(q);
    json_decref(choices);
    if (ok) return all;
    json_decref(all);
    return NULL;
}
