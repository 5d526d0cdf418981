/* task_run — 一组任务的打开与计算 */
#include "tasks/task_run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

static void hash_text(Hash *h, const char *s) {
    hash_add(h, s, strlen(s));
    hash_add(h, "\n", 1);
}

/* 决定数字的一切：配置、数据、样本数、请求。 */
static bool digest(TaskSet *s, Err *e) {
    Hash *h = hash_new();
    bool ok = h != NULL;
    for (size_t i = 0; ok && i < s->n; i++) {
        const Task *t = &s->tasks[i];
        char *config = json_dumps(t->config, JSON_COMPACT | JSON_SORT_KEYS);
        ok = config != NULL;
        hash_text(h, t->name);
        if (config) hash_text(h, config);
        hash_text(h, t->eval_file.sha256);
        hash_text(h, t->fewshot_file.sha256);
        hash_text(h, t->requests_sha256);
        free(config);
    }
    if (h) hash_end(h, s->sha256);
    return ok || err_set(e, ERR_MEMORY, "内存不足");
}

/* 数据先找一遍，缺的一次说全：第一个细说找过哪里、怎样取得，其余列名。 */
static bool check_data(const TaskSelection *s, const TaskOptions *o, Err *e) {
    enum { NAMED = 8 };
    Arena a = {0};
    Err first = {0}, why;
    Str others = {0};
    size_t missing = 0;
    for (size_t i = 0; i < s->n_tasks; i++) {
        const TaskChoice *t = &s->tasks[i];
        const char *eval, *fewshot;
        task_splits(t->config, &eval, &fewshot);
        why = (Err){0};
        if (!eval || task_data_find(&a, o->data_dir, t->name, t->config, eval, &why) ||
            why.code != ERR_MISSING)
            continue; /* 别的错误由打开时报 */
        if (++missing == 1) first = why;
        else if (missing <= NAMED) str_addf(&others, "%s%s", missing > 2 ? "、" : "", t->name);
    }
    if (missing > 1)
        err_set(e, ERR_MISSING, "%s\n%zu 个任务里有 %zu 个缺数据，另有：%s%s", first.msg, s->n_tasks, missing,
                others.data ? others.data : "", missing > NAMED ? "…" : "");
    else if (missing)
        *e = first;
    str_free(&others);
    arena_free(&a);
    return !missing;
}

bool taskset_open(TaskSet *s, const char *tasks_dir, const char *const *names, size_t n,
                  const TaskOptions *o, Err *e) {
    *s = (TaskSet){0};
    if (n == 0) return true;
    bool ok = task_index_open(&s->index, tasks_dir, e) &&
              task_select(&s->selection, &s->index, &s->arena, names, n, e);
    if (ok) {
        s->tasks = ARENA_ARRAY(&s->arena, Task, s->selection.n_tasks, e);
        ok = s->tasks != NULL;
    }
    ok = ok && check_data(&s->selection, o, e);
    for (size_t i = 0; ok && i < s->selection.n_tasks; i++) {
        Task *t = &s->tasks[i];
        ok = task_open(t, &s->selection.tasks[i], o, e);
        if (!ok) break;
        s->n++;
        ok = task_build(t, e);
        s->n_docs += (int64_t)t->n_docs;
        for (size_t d = 0; d < t->n_docs; d++) s->n_requests += (int64_t)t->docs[d].n_requests;
    }
    if (ok) ok = digest(s, e);
    if (!ok) taskset_close(s);
    return ok;
}

void taskset_close(TaskSet *s) {
    for (size_t i = 0; i < s->n; i++) task_close(&s->tasks[i]);
    task_select_free(&s->selection);
    task_index_close(&s->index);
    arena_free(&s->arena);
    *s = (TaskSet){0};
}

/* 对每个请求调用 fn。 */
typedef void (*EachRequest)(void *ctx, Task *t, TaskRequest *r);
static void each_request(TaskSet *s, EachRequest fn, void *ctx) {
    for (size_t i = 0; i < s->n; i++)
        for (size_t d = 0; d < s->tasks[i].n_docs; d++)
            for (size_t k = 0; k < s->tasks[i].docs[d].n_requests; k++)
                fn(ctx, &s->tasks[i], &s->tasks[i].docs[d].requests[k]);
}

static void count_tokens(void *ctx, Task *t, TaskRequest *r) {
    int64_t *n = ctx;
    if (t->output == OUT_GENERATE) *n += r->generate.n + r->generate.max_new;
    for (size_t i = 0; i < r->n_score; i++) *n += r->score[i].n - 1;
}

bool taskset_encode(TaskSet *s, const Encoder *c, Err *e) {
    for (size_t i = 0; i < s->n; i++)
        if (!interrupt_check(e) || !task_encode(&s->tasks[i], c, e)) return false;
    s->n_tokens = 0;
    each_request(s, count_tokens, &s->n_tokens);
    return true;
}

static void hash_ids(Hash *h, const int32_t *ids, int64_t n, const char *end) {
    char text[16];
    for (int64_t i = 0; i < n; i++)
        hash_add(h, text, (size_t)snprintf(text, sizeof text, i ? ",%d" : "%d", (int)ids[i]));
    hash_add(h, end, 1);
}

bool task_ids_sha256(const Task *t, char hex[HASH_HEX], Err *e) {
    Hash *h = hash_new();
    if (!h) return err_set(e, ERR_MEMORY, "内存不足");
    for (size_t d = 0; d < t->n_docs; d++)
        for (size_t k = 0; k < t->docs[d].n_requests; k++) {
            const TaskRequest *r = &t->docs[d].requests[k];
            if (t->output == OUT_GENERATE) hash_ids(h, r->generate.ids, r->generate.n, "\n");
            for (size_t i = 0; i < r->n_score; i++) {
                const ScoreRequest *q = &r->score[i];
                hash_ids(h, q->ids, q->n_context, ";");
                hash_ids(h, q->ids + q->n_context, q->n - q->n_context, "\n");
            }
        }
    hash_end(h, hex);
    return true;
}

/* 全部请求收成两列；算完写回。 */
typedef struct Flat {
    ScoreRequest *score;
    GenerateRequest *generate;
    size_t n_score, n_generate;
} Flat;

static void count_flat(void *ctx, Task *t, TaskRequest *r) {
    Flat *f = ctx;
    if (t->output == OUT_GENERATE) f->n_generate++;
    f->n_score += r->n_score;
}
static void gather(void *ctx, Task *t, TaskRequest *r) {
    Flat *f = ctx;
    if (t->output == OUT_GENERATE) f->generate[f->n_generate++] = r->generate;
    for (size_t i = 0; i < r->n_score; i++) f->score[f->n_score++] = r->score[i];
}
static void scatter(void *ctx, Task *t, TaskRequest *r) {
    Flat *f = ctx;
    if (t->output == OUT_GENERATE) r->generate = f->generate[f->n_generate++];
    for (size_t i = 0; i < r->n_score; i++) r->score[i] = f->score[f->n_score++];
}

bool taskset_run(TaskSet *s, Model *m, const Tokenizer *t, ScoreCost *cost, Err *e) {
    Flat f = {0};
    each_request(s, count_flat, &f);
    Arena a = {0};
    size_t n_score = f.n_score, n_generate = f.n_generate;
    f.score = ARENA_ARRAY(&a, ScoreRequest, n_score, e);
    f.generate = ARENA_ARRAY(&a, GenerateRequest, n_generate, e);
    bool ok = f.score && f.generate;
    if (ok) {
        f.n_score = f.n_generate = 0;
        each_request(s, gather, &f);
        ok = requests_score(m, NULL, f.score, n_score, cost, e) &&
             (n_generate == 0 || requests_generate(m, t, f.generate, n_generate, false, e));
        f.n_score = f.n_generate = 0;
        for (size_t i = 0; !ok && i < n_generate; i++) token_ids_free(&f.generate[i].out); /* 可以再来一次 */
        each_request(s, scatter, &f);
    }
    arena_free(&a);
    return ok;
}

/* ---------- 结果 ---------- */

static bool put(json_t *o, const char *name, const char *suffix, const char *filter, double v, Err *e) {
    char key[256];
    snprintf(key, sizeof key, "%s%s,%s", name, suffix, filter);
    json_t *value = isfinite(v) ? json_real(v) : json_string("N/A");
    return json_object_set_new(o, key, value) == 0 || err_set(e, ERR_MEMORY, "内存不足");
}

static json_t *version_of(const json_t *config) {
    json_t *v = json_object_get(json_object_get(config, "metadata"), "version");
    return v ? json_incref(v) : json_null();
}

static const char *alias_of(const json_t *config, const char *key, const char *name) {
    const char *alias = json_string_value(json_object_get(config, key));
    return alias ? alias : name;
}

static bool put_metric(json_t *o, const Task *t, size_t metric, size_t filter, const DocValue *v,
                       Err *e) {
    Arena a = {0};
    double *x = ARENA_ARRAY(&a, double, t->n_docs, e), *w = ARENA_ARRAY(&a, double, t->n_docs, e);
    const MetricSpec *m = &t->metrics[metric];
    bool ok = x && w;
    for (size_t i = 0; ok && i < t->n_docs; i++) {
        x[i] = v[i].value;
        w[i] = v[i].weight;
    }
    const char *name = metric_name(m->kind), *pipe = t->filters[filter].name;
    if (ok)
        ok = put(o, name, "", pipe, metric_aggregate(m->aggregation, x, w, t->n_docs), e) &&
             put(o, name, "_stderr", pipe, metric_stderr(m->aggregation, x, t->n_docs), e);
    arena_free(&a);
    return ok;
}

static json_t *task_result(const Task *t, const DocValue *v, Err *e) {
    json_t *o = json_object();
    bool ok = o != NULL;
    for (size_t m = 0; ok && m < t->n_metrics; m++)
        for (size_t f = 0; ok && f < t->n_filters; f++, v += t->n_docs)
            ok = put_metric(o, t, m, f, v, e);
    json_t *about = ok ? json_pack(
        "{s:s, s:I, s:o, s:I, s:I, s:I, s:s, s:s, s:s, s:s}", "alias",
        alias_of(t->config, "task_alias", t->name), "sample_len", (json_int_t)t->n_docs, "version",
        version_of(t->config), "num_fewshot", (json_int_t)t->n_fewshot, "n_docs",
        (json_int_t)t->n_docs, "n_docs_total", (json_int_t)t->n_total, "data_path",
        t->eval_file.path, "data_sha256", t->eval_file.sha256, "fewshot_sha256",
        t->fewshot_file.sha256, "requests_sha256", t->requests_sha256) : NULL;
    ok = about && json_object_update(o, about) == 0;
    json_decref(about);
    if (ok) return o;
    json_decref(o);
    if (e->code == ERR_NONE) err_set(e, ERR_MEMORY, "内存不足");
    return NULL;
}

/* 组对一个键（如 "acc,none"）的聚合；没有叶子有它时不写。 */
static bool put_group_key(json_t *o, const TaskSet *s, const GroupChoice *g, const json_t *results,
                          const char *metric, const char *filter, bool weighted, Err *e) {
    Arena a = {0};
    double *x = ARENA_ARRAY(&a, double, 2 * g->n_leaves, e), *se = x + g->n_leaves;
    size_t *sizes = ARENA_ARRAY(&a, size_t, g->n_leaves, e), n = 0, n_se = 0;
    char key[256], se_key[256];
    bool ok = x && sizes;
    snprintf(key, sizeof key, "%s,%s", metric, filter);
    snprintf(se_key, sizeof se_key, "%s_stderr,%s", metric, filter);
    for (size_t i = 0; ok && i < g->n_leaves; i++) {
        const Task *t = &s->tasks[g->leaves[i]];
        const json_t *r = json_object_get(results, t->name);
        const json_t *v = json_object_get(r, key), *dv = json_object_get(r, se_key);
        if (!json_is_real(v)) continue;
        sizes[n] = t->n_docs;
        x[n++] = json_real_value(v);
        if (json_is_real(dv)) se[n_se++] = json_real_value(dv);
    }
    if (ok && n) {
        ok = put(o, metric, "", filter, group_mean(x, sizes, n, weighted), e) &&
             put(o, metric, "_stderr", filter,
                 n_se == n ? group_stderr(se, sizes, n, weighted) : NAN, e);
    }
    arena_free(&a);
    return ok;
}

/* 各叶子对 metric 用过的过滤器。 */
static bool put_group_metric(json_t *o, const TaskSet *s, const GroupChoice *g, const json_t *results,
                             const json_t *agg, Err *e) {
    const char *metric = json_string_value(json_object_get(agg, "metric"));
    const json_t *want = json_object_get(agg, "filter_list"), *w = json_object_get(agg, "weight_by_size");
    bool weighted = !w || json_is_true(w);
    if (!metric) return err_set(e, ERR_CONFIG, "组 %s 的 aggregate_metric_list 要有 metric", g->name);
    if (!weighted) {
        json_t *equal = json_object_get(o, "equal_weights");
        if (!equal && json_object_set_new(o, "equal_weights", equal = json_array()) != 0)
            return err_set(e, ERR_MEMORY, "内存不足");
        if (json_array_append_new(equal, json_string(metric)) != 0)
            return err_set(e, ERR_MEMORY, "内存不足");
    }
    for (size_t i = 0; i < g->n_leaves; i++) {
        const Task *t = &s->tasks[g->leaves[i]];
        for (size_t f = 0; f < t->n_filters; f++) {
            const char *name = t->filters[f].name;
            char key[256];
            bool listed = !want || json_is_null(want) ||
                          (json_is_string(want) && strcmp(json_string_value(want), name) == 0);
            for (size_t k = 0; k < json_array_size(want); k++) {
                const char *one = json_string_value(json_array_get(want, k));
                listed = listed || (one && strcmp(one, name) == 0);
            }
            snprintf(key, sizeof key, "%s,%s", metric, name);
            if (listed && !json_object_get(o, key) &&
                !put_group_key(o, s, g, results, metric, name, weighted, e))
                return false;
        }
    }
    return true;
}

static json_t *group_result(const TaskSet *s, const GroupChoice *g, const json_t *results, Err *e) {
    json_t *o = json_object(), *list = json_object_get(g->config, "aggregate_metric_list");
    bool ok = o != NULL;
    json_int_t docs = 0;
    for (size_t i = 0; ok && i < json_array_size(list); i++)
        ok = put_group_metric(o, s, g, results, json_array_get(list, i), e);
    json_t *names = json_array();
    for (size_t i = 0; i < g->n_leaves; i++) {
        docs += (json_int_t)s->tasks[g->leaves[i]].n_docs;
        ok = ok && json_array_append_new(names, json_string(s->tasks[g->leaves[i]].name)) == 0;
    }
    ok = json_object_set_new(o, "tasks", names) == 0 && ok;
    if (ok)
        ok = json_object_set_new(o, "alias",
                                 json_string(alias_of(g->config, "group_alias", g->name))) == 0 &&
             json_object_set_new(o, "sample_len", json_integer(docs)) == 0 &&
             json_object_set_new(o, "version", version_of(g->config)) == 0 &&
             json_object_set_new(o, "group", json_true()) == 0 &&
             json_object_set_new(o, "n_tasks", json_integer((json_int_t)g->n_leaves)) == 0;
    if (ok) return o;
    json_decref(o);
    if (e->code == ERR_NONE) err_set(e, ERR_MEMORY, "内存不足");
    return NULL;
}

static double accuracy_of(const json_t *r) {
    const json_t *v = json_object_get(r, "acc_norm,none");
    if (!json_is_real(v)) v = json_object_get(r, "acc,none");
    return json_is_real(v) ? json_real_value(v) : NAN;
}

/* 各任务的 acc_norm（没有则 acc）的平均；直接点名而有聚合的组算一个任务。 */
static json_t *average(const TaskSet *s, const json_t *results) {
    double sum = 0;
    int n = 0;
    for (size_t i = 0; i < s->selection.n_groups; i++) {
        const GroupChoice *g = &s->selection.groups[i];
        double v = g->depth == 0 ? accuracy_of(json_object_get(results, g->name)) : NAN;
        if (isfinite(v)) sum += v, n++;
    }
    for (size_t i = 0; i < s->n; i++) {
        bool inside = false;
        for (size_t k = 0; k < s->selection.n_groups; k++) {
            const GroupChoice *g = &s->selection.groups[k];
            bool counts = g->depth == 0 && isfinite(accuracy_of(json_object_get(results, g->name)));
            for (size_t j = 0; counts && j < g->n_leaves; j++) inside = inside || g->leaves[j] == i;
        }
        double v = inside ? NAN : accuracy_of(json_object_get(results, s->tasks[i].name));
        if (isfinite(v)) sum += v, n++;
    }
    return n ? json_real(sum / n) : json_null();
}

/* 在组里的任务与组标上 in_group，榜上只列直接点名的。 */
static bool mark_members(const TaskSet *s, json_t *all) {
    bool ok = true;
    for (size_t i = 0; i < s->selection.n_groups; i++) {
        const GroupChoice *g = &s->selection.groups[i];
        json_t *self = json_object_get(all, g->name);
        if (g->depth > 0) ok = ok && json_object_set_new(self, "in_group", json_true()) == 0;
        for (size_t k = 0; k < g->n_leaves; k++)
            ok = ok && json_object_set_new(json_object_get(all, s->tasks[g->leaves[k]].name),
                                           "in_group", json_true()) == 0;
    }
    return ok;
}

json_t *taskset_results(const TaskSet *s, DocValue *const *values, Err *e) {
    json_t *tasks = json_object(), *all = json_object();
    bool ok = tasks && all;
    for (size_t i = 0; ok && i < s->n; i++) {
        json_t *one = task_result(&s->tasks[i], values[i], e);
        ok = one && json_object_set_new(tasks, s->tasks[i].name, one) == 0;
    }
    for (size_t i = 0; ok && i < s->selection.n_groups; i++) {
        const GroupChoice *g = &s->selection.groups[i];
        json_t *one = group_result(s, g, tasks, e);
        ok = one && json_object_set_new(all, g->name, one) == 0;
    }
    ok = ok && json_object_update(all, tasks) == 0 && mark_members(s, all);
    if (ok && s->n) ok = json_object_set_new(all, "_avg_accuracy", average(s, all)) == 0;
    json_decref(tasks);
    if (ok) return all;
    json_decref(all);
    if (e->code == ERR_NONE) err_set(e, ERR_MEMORY, "内存不足");
    return NULL;
}
