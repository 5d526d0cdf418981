/* evaluate_tasks — lm-eval 任务的评测：结果、样本文件、与 fp16 基线逐文档的配对比较
 * 基线的逐文档得分存在 {reference_dir}/{key}.tasks.json；key 由权重、分词器、计算精度与任务的全部请求决定，
 * 所以比较的两边答的是同样的题。 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "evaluator.h"
#include "io/file.h"
#include "result_writer.h"
#include "tasks/paired.h"
#include "tasks/stats.h"

static const DocValue *values_of(const Task *t, const DocValue *all, size_t metric, size_t filter) {
    return all + (metric * t->n_filters + filter) * t->n_docs;
}

static void key_name(char *key, size_t cap, const Task *t, size_t metric, size_t filter) {
    snprintf(key, cap, "%s,%s", metric_name(t->metrics[metric].kind), t->filters[filter].name);
}

/* ---------- 样本文件 ---------- */

static json_t *id_array(const int32_t *ids, int64_t n) {
    json_t *a = json_array();
    for (int64_t i = 0; i < n; i++) json_array_append_new(a, json_integer(ids[i]));
    return a;
}

static json_t *request_json(const Evaluation *v, const Task *t, const TaskRequest *r, Err *e) {
    json_t *o = json_pack("{s:s%, s:s%}", "context", r->context, r->n_context, "continuation",
                          r->continuation, r->n_continuation);
    if (t->output == OUT_GENERATE) {
        Str text = {0};
        if (!generated_text(t, r, v->tokenizer, &text, e)) {
            str_free(&text);
            json_decref(o);
            return NULL;
        }
        json_object_set_new(o, "generated", json_stringn(text.data ? text.data : "", text.len));
        json_object_set_new(o, "generated_ids",
                            id_array(r->generate.out.ids, (int64_t)r->generate.out.n));
        str_free(&text);
        return o;
    }
    double sum = 0;
    for (size_t i = 0; i < r->n_score; i++) sum += r->score[i].loglikelihood;
    if (t->output != OUT_ROLLING) {
        const ScoreRequest *s = r->score;
        json_object_set_new(o, "context_ids", id_array(s->ids, s->n_context));
        json_object_set_new(o, "continuation_ids", id_array(s->ids + s->n_context, s->n - s->n_context));
        json_object_set_new(o, "is_greedy", json_boolean(s->is_greedy));
    }
    json_object_set_new(o, "loglikelihood", json_real(sum));
    return o;
}

static json_t *sample_json(const Evaluation *v, const Task *t, const DocValue *values, size_t doc,
                           Err *e) {
    const TaskDoc *d = &t->docs[doc];
    json_t *requests = json_array();
    for (size_t k = 0; k < d->n_requests; k++) {
        json_t *r = request_json(v, t, &d->requests[k], e);
        if (!r) {
            json_decref(requests);
            return NULL;
        }
        json_array_append_new(requests, r);
    }
    json_t *o = json_pack("{s:I, s:O, s:o}", "doc_id", (json_int_t)d->id, "target",
                          d->gold ? d->gold : d->target, "requests", requests);
    for (size_t m = 0; m < t->n_metrics; m++)
        for (size_t f = 0; f < t->n_filters; f++) {
            char key[256];
            bool plain = t->n_filters == 1 && strcmp(t->filters[f].name, "none") == 0;
            key_name(key, sizeof key, t, m, f);
            json_object_set_new(o, plain ? metric_name(t->metrics[m].kind) : key,
                                json_real(values_of(t, values, m, f)[doc].value));
        }
    return o;
}

/* 一行一份文档，写到 results/samples/{run_key 前 16 位}/{任务}.jsonl。 */
static bool write_samples(const Evaluation *v, const Task *t, const DocValue *values, json_t *result,
                          Err *e) {
    Arena a = {0};
    Str text = {0};
    char *dir = arena_printf(&a, e, "%s/samples/%.16s", v->results_dir, v->run_key);
    char *path = dir ? arena_printf(&a, e, "%s/%s.jsonl", dir, t->name) : NULL;
    bool ok = path && file_mkdirs(dir, e);
    for (size_t i = 0; ok && i < t->n_docs; i++) {
        json_t *s = sample_json(v, t, values, i, e);
        char *line = s ? json_dumps(s, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;
        ok = line != NULL;
        if (line) str_add(&text, line);
        str_add(&text, "\n");
        free(line);
        json_decref(s);
    }
    if (ok) ok = !text.failed || err_set(e, ERR_MEMORY, "内存不足：样本文件");
    ok = ok && file_write_atomic(path, text.data ? text.data : "", text.len, e);
    if (ok) {
        char sha[HASH_HEX];
        hash_bytes(text.data ? text.data : "", text.len, sha);
        json_object_set_new(result, "samples_file", json_string(path + strlen(v->results_dir) + 1));
        json_object_set_new(result, "samples_sha256", json_string(sha));
    }
    str_free(&text);
    arena_free(&a);
    return ok;
}

/* ---------- 与基线比较 ---------- */

static bool archive_path(const Evaluation *v, const Task *t, Arena *a, const char **path, Err *e) {
    Hash *h = hash_new();
    char hex[HASH_HEX];
    if (!h) return err_set(e, ERR_MEMORY, "内存不足");
    hash_add(h, v->task_key, strlen(v->task_key));
    hash_add(h, t->name, strlen(t->name) + 1);
    hash_add(h, t->requests_sha256, strlen(t->requests_sha256));
    hash_end(h, hex);
    *path = arena_printf(a, e, "%s/%s.tasks.json", v->reference_dir, hex);
    return *path != NULL;
}

static bool save_archive(const Evaluation *v, const Task *t, const DocValue *values, Err *e) {
    Arena a = {0};
    const char *path;
    json_t *lists = json_object();
    for (size_t m = 0; m < t->n_metrics; m++)
        for (size_t f = 0; f < t->n_filters; f++) {
            char key[256];
            json_t *list = json_array();
            const DocValue *x = values_of(t, values, m, f);
            for (size_t i = 0; i < t->n_docs; i++) json_array_append_new(list, json_real(x[i].value));
            key_name(key, sizeof key, t, m, f);
            json_object_set_new(lists, key, list);
        }
    json_t *o = json_pack("{s:s, s:s, s:s, s:o}", "run_key", v->run_key, "task", t->name,
                          "requests_sha256", t->requests_sha256, "values", lists);
    bool ok = o != NULL || err_set(e, ERR_MEMORY, "内存不足");
    ok = ok && file_mkdirs(v->reference_dir, e) && archive_path(v, t, &a, &path, e) &&
         json_save(path, o, e);
    json_decref(o);
    arena_free(&a);
    return ok;
}

/* 基线的存档；没有或损坏（打印 ⚠️）为 NULL。 */
static json_t *load_archive(const Evaluation *v, const Task *t) {
    Arena a = {0};
    Err e = {0};
    const char *path;
    json_t *o = NULL;
    if (archive_path(v, t, &a, &path, &e) && file_exists(path)) {
        o = json_load(path, &e);
        const char *key = json_string_value(json_object_get(o, "run_key"));
        if (!o || !key || !json_is_object(json_object_get(o, "values"))) {
            log_line(LOG_WARN, "基线的任务存档已损坏，忽略：%s", path);
            json_decref(o);
            o = NULL;
        }
    }
    arena_free(&a);
    return o;
}

bool evaluate_has_task_scores(const Evaluation *v) {
    bool have = true;
    for (size_t i = 0; have && i < v->tasks->n; i++) {
        json_t *old = load_archive(v, &v->tasks->tasks[i]);
        have = old != NULL;
        json_decref(old);
    }
    return have;
}

typedef struct Flips {
    int64_t right_to_wrong, wrong_to_right, n;
} Flips;

static json_t *flips_json(const Evaluation *v, Flips f) {
    double delta = v->options->equivalence_delta;
    Equivalence q = paired_equivalence(f.n, f.right_to_wrong, f.wrong_to_right, delta);
    return json_pack("{s:I, s:f, s:I, s:I, s:f, s:f, s:f, s:f}", "n", (json_int_t)f.n, "delta",
                     (double)(f.wrong_to_right - f.right_to_wrong) / (double)f.n, "right_to_wrong",
                     (json_int_t)f.right_to_wrong, "wrong_to_right", (json_int_t)f.wrong_to_right,
                     "mcnemar_p", mcnemar_exact(f.right_to_wrong, f.wrong_to_right),
                     "equivalence_delta", delta, "noninferior_p", q.noninferior_p, "tost_p",
                     q.tost_p);
}

/* 一个指标的逐文档比较；存档里没有这一列（或长度不同）为 NULL。 */
static json_t *compare_metric(const Evaluation *v, const Task *t, const DocValue *x,
                              const json_t *old) {
    if (json_array_size(old) != t->n_docs) return NULL;
    Arena a = {0};
    double *diff = ARENA_ARRAY(&a, double, t->n_docs, NULL);
    Flips f = {.n = (int64_t)t->n_docs};
    bool binary = true;
    for (size_t i = 0; diff && i < t->n_docs; i++) {
        double was = json_number_value(json_array_get(old, i)), now = x[i].value;
        binary = binary && (was == 0 || was == 1) && (now == 0 || now == 1);
        f.right_to_wrong += was > now;
        f.wrong_to_right += now > was;
        diff[i] = now - was;
    }
    json_t *o = !diff ? NULL : binary ? flips_json(v, f) : json_pack("{s:I}", "n", (json_int_t)f.n);
    if (o) {
        double se = stats_stderr(diff, t->n_docs);
        json_object_set_new(o, "delta", json_real(stats_mean(diff, t->n_docs)));
        json_object_set_new(o, "delta_stderr", isfinite(se) ? json_real(se) : json_null());
    }
    arena_free(&a);
    return o;
}

static json_t *compare_task(const Evaluation *v, const Task *t, const DocValue *values) {
    json_t *old = load_archive(v, t), *o = NULL;
    if (!old) return NULL;
    const json_t *lists = json_object_get(old, "values");
    const char *run_key = json_string_value(json_object_get(old, "run_key"));
    o = json_pack("{s:s, s:o}", "run_key", run_key, "result_file", baseline_file(v, run_key));
    for (size_t m = 0; o && m < t->n_metrics; m++)
        for (size_t f = 0; f < t->n_filters; f++) {
            char key[256];
            key_name(key, sizeof key, t, m, f);
            json_t *one = compare_metric(v, t, values_of(t, values, m, f), json_object_get(lists, key));
            if (one) json_object_set_new(o, key, one);
        }
    json_decref(old);
    return o;
}

/* 组：各叶子的翻转数相加；有叶子没有基线就不比。 */
static void compare_group(const Evaluation *v, const GroupChoice *g, json_t *all) {
    const TaskSet *s = v->tasks;
    json_t *into = json_object_get(all, g->name), *base = json_object();
    const char *key;
    json_t *value;
    json_object_foreach(into, key, value) {
        Flips sum = {0};
        bool complete = json_is_real(value) && !strstr(key, "_stderr,");
        for (size_t i = 0; complete && i < g->n_leaves; i++) {
            const json_t *leaf = json_object_get(all, s->tasks[g->leaves[i]].name);
            const json_t *b = json_object_get(json_object_get(leaf, "baseline"), key);
            complete = json_object_get(b, "mcnemar_p") != NULL;
            sum.n += json_integer_value(json_object_get(b, "n"));
            sum.right_to_wrong += json_integer_value(json_object_get(b, "right_to_wrong"));
            sum.wrong_to_right += json_integer_value(json_object_get(b, "wrong_to_right"));
        }
        if (complete) json_object_set_new(base, key, flips_json(v, sum));
    }
    json_object_set_new(into, "baseline", json_object_size(base) ? json_incref(base) : json_null());
    json_decref(base);
}

/* ---------- 合起来 ---------- */

static void print_result(const char *name, const json_t *r) {
    Str s = {0};
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)r, key, v) {
        const char *comma = strchr(key, ',');
        if (!comma || strstr(key, "_stderr,") || !json_is_real(v)) continue;
        char se[256];
        snprintf(se, sizeof se, "%.*s_stderr%s", (int)(comma - key), key, comma);
        const json_t *d = json_object_get(r, se);
        str_addf(&s, "%s%s %.4f", s.len ? "，" : "", key, json_real_value(v));
        if (json_is_real(d)) str_addf(&s, " ± %.4f", json_real_value(d));
    }
    if (s.len && !s.failed) log_line(LOG_EVAL, "%s：%s", name, s.data);
    str_free(&s);
}

/* 0/1 的指标：每份文档的得分，一个字符一份（"0110…"），供排行榜成对检验；别的指标不存。 */
static bool add_scores(const Task *t, const DocValue *values, json_t *result, Err *e) {
    Arena a = {0};
    json_t *all = json_object();
    char *text = arena_alloc(&a, t->n_docs + 1, e);
    bool ok = text && all;
    for (size_t m = 0; ok && m < t->n_metrics; m++)
        for (size_t f = 0; ok && f < t->n_filters; f++) {
            const DocValue *x = values_of(t, values, m, f);
            char key[256];
            bool binary = true;
            for (size_t i = 0; i < t->n_docs; i++) {
                binary = binary && (x[i].value == 0 || x[i].value == 1);
                text[i] = x[i].value == 0 ? '0' : '1';
            }
            key_name(key, sizeof key, t, m, f);
            ok = !binary || json_object_set_new(all, key, json_stringn(text, t->n_docs)) == 0;
        }
    ok = ok && json_object_set(result, "doc_scores", all) == 0;
    json_decref(all);
    arena_free(&a);
    return ok || err_set(e, ERR_MEMORY, "内存不足");
}

static bool finish_task(const Evaluation *v, const Task *t, const DocValue *values, json_t *result,
                        Err *e) {
    if (v->options->log_samples && !write_samples(v, t, values, result, e)) return false;
    if (!add_scores(t, values, result, e)) return false;
    if (v->is_baseline && !save_archive(v, t, values, e)) return false;
    json_t *base = v->is_baseline ? NULL : compare_task(v, t, values);
    return json_object_set_new(result, "baseline", base ? base : json_null()) == 0 ||
           err_set(e, ERR_MEMORY, "内存不足");
}

json_t *evaluate_tasks(const Evaluation *v, ScoreCost *cost, Err *e) {
    TaskSet *s = v->tasks;
    Encoder encoder = {0};
    Arena a = {0};
    *cost = (ScoreCost){0};
    if (s->n == 0) {
        json_t *none = json_object();
        if (!none) err_set(e, ERR_MEMORY, "内存不足");
        return none;
    }
    DocValue **values = ARENA_ARRAY(&a, DocValue *, s->n, e);
    json_t *all = NULL;
    bool ok = values && encoder_init(&encoder, v->tokenizer, v->max_length, e);
    encoder.eos = v->eos;
    ok = ok && taskset_encode(s, &encoder, e) && taskset_run(s, v->model, v->tokenizer, cost, e);
    for (size_t i = 0; ok && i < s->n; i++)
        ok = task_values(&s->tasks[i], v->tokenizer, &values[i], &a, e);
    ok = ok && (all = taskset_results(s, values, e)) != NULL;
    for (size_t i = 0; ok && i < s->n; i++)
        ok = finish_task(v, &s->tasks[i], values[i], json_object_get(all, s->tasks[i].name), e);
    if (ok) {
        const char *name;
        json_t *r;
        for (size_t i = 0; i < s->selection.n_groups; i++)
            compare_group(v, &s->selection.groups[i], all);
        json_object_foreach(all, name, r) print_result(name, r);
    }
    arena_free(&a);
    if (ok) return all;
    json_decref(all);
    return NULL;
}
