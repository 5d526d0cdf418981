/* task — 任务的打开、请求的拼接与编码 */
#include "tasks/task.h"

#include <stdlib.h>
#include <string.h>

#include "tasks/task_functions.h"

enum { DEFAULT_GEN_TOKENS = 256, FEWSHOT_SEED = 1234, MAX_FEWSHOT = 1024 };

/* ---------- 打开 ---------- */

static const char *const KEYS[] = {
    "task", "task_alias", "tag", "group", "dataset_path", "dataset_name", "dataset_kwargs",
    "training_split", "validation_split", "test_split", "fewshot_split", "process_docs", "doc_to_text",
    "doc_to_target", "doc_to_choice", "process_results", "description", "target_delimiter",
    "fewshot_delimiter", "fewshot_config", "num_fewshot", "metric_list", "output_type",
    "generation_kwargs", "repeats", "filter_list", "should_decontaminate",
    "doc_to_decontamination_query", "gen_prefix", "metadata", "custom_dataset", "doc_to_image",
    "doc_to_audio", "unsafe_code", "use_prompt"};
enum { N_KEYS = sizeof KEYS / sizeof *KEYS };

static bool is_set(const json_t *config, const char *key) {
    const json_t *v = json_object_get(config, key);
    return v && !json_is_null(v) && !json_is_false(v);
}

static bool check_keys(const Task *t, Err *e) {
    static const char *const PYTHON[] = {"custom_dataset", "doc_to_image", "doc_to_audio",
                                         "unsafe_code", "use_prompt"};
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)t->config, key, v) {
        bool known = false;
        for (int i = 0; i < N_KEYS; i++) known = known || strcmp(KEYS[i], key) == 0;
        if (known) continue;
        const char *near = str_nearest(key, KEYS, N_KEYS);
        return err_set(e, ERR_CONFIG, "未知的键 '%s'%s%s%s", key, near ? "，是否想写 '" : "",
                       near ? near : "", near ? "'？" : "");
    }
    for (size_t i = 0; i < sizeof PYTHON / sizeof *PYTHON; i++)
        if (is_set(t->config, PYTHON[i]))
            return err_set(e, ERR_UNSUPPORTED, "'%s' 要用 Python，原生路径不支持", PYTHON[i]);
    int64_t repeats;
    if (!json_get_int_or(t->config, t->name, "repeats", 1, 1, 1000000, &repeats, e)) return false;
    return repeats == 1 || err_set(e, ERR_UNSUPPORTED, "repeats 为 %lld，原生路径只做一次贪心生成",
                                   (long long)repeats);
}

/* 各处的 !function 都要有 C 的实现。 */
static bool check_functions(const json_t *config, Err *e) {
    static const char *const FIELDS[] = {"process_docs", "doc_to_text", "doc_to_target",
                                         "doc_to_choice", "description", "gen_prefix"};
    for (size_t i = 0; i < sizeof FIELDS / sizeof *FIELDS; i++) {
        const char *name = task_function_name(config, FIELDS[i]);
        if (name && !task_function(name))
            return err_set(e, ERR_UNSUPPORTED, "%s: !function %s 是 Python 函数，没有 C 的实现", FIELDS[i],
                           name);
    }
    return true;
}

static bool open_output(Task *t, Err *e) {
    static const char *const NAMES[] = {"loglikelihood", "loglikelihood_rolling", "multiple_choice",
                                        "generate_until"};
    const json_t *v = json_object_get(t->config, "output_type");
    const char *name = json_is_string(v) ? json_string_value(v) : "generate_until";
    int i = 0;
    while (i < 4 && strcmp(NAMES[i], name) != 0) i++;
    if (i == 4) return err_set(e, ERR_CONFIG, "output_type 没有取值 '%s'", name);
    t->output = (OutputType)i;
    const char *results = task_function_name(t->config, "process_results");
    if (is_set(t->config, "process_results") &&
        !(results && strcmp(results, "wikitext/preprocess_wikitext.process_results") == 0))
        return err_set(e, ERR_UNSUPPORTED, "process_results 是 Python 函数，没有 C 的实现");
    return metrics_open(&t->metrics, &t->n_metrics, json_object_get(t->config, "metric_list"), name,
                        &t->arena, e) &&
           filters_open(&t->filters, &t->n_filters, json_object_get(t->config, "filter_list"),
                        &t->arena, e);
}

static bool add_until(Task *t, const json_t *v, Err *e) {
    if (!json_is_string(v)) return err_set(e, ERR_CONFIG, "generation_kwargs.until 应是一列文字");
    t->until[t->n_until++] = json_string_value(v);
    return true;
}

static bool open_generation(Task *t, Err *e) {
    static const char *const LIMITS[] = {"max_gen_toks", "max_new_tokens", "max_tokens",
                                         "max_completion_tokens"};
    const json_t *g = json_object_get(t->config, "generation_kwargs");
    const json_t *until = json_object_get(g, "until"), *sample = json_object_get(g, "do_sample");
    double temperature;
    if (!json_get_num_or(g, "generation_kwargs", "temperature", 0, &temperature, e)) return false;
    if (json_is_true(sample) || (temperature > 0 && !json_is_false(sample)))
        return err_set(e, ERR_UNSUPPORTED, "generation_kwargs 要求抽样，原生路径只做贪心生成");
    t->max_new = -1;
    for (size_t i = 0; i < sizeof LIMITS / sizeof *LIMITS && t->max_new < 0; i++)
        if (!json_get_int_or(g, "generation_kwargs", LIMITS[i], -1, 1, 1 << 20, &t->max_new, e))
            return false;
    if (t->max_new < 0) t->max_new = DEFAULT_GEN_TOKENS;
    t->until = ARENA_ARRAY(&t->arena, const char *, json_array_size(until) + 2, e);
    if (!t->until) return false;
    if (json_is_array(until)) {
        for (size_t i = 0; i < json_array_size(until); i++)
            if (!add_until(t, json_array_get(until, i), e)) return false;
    } else if (until) {
        return add_until(t, until, e);
    } else {
        const json_t *d = json_object_get(t->config, "fewshot_delimiter");
        t->until[t->n_until++] = json_is_string(d) ? json_string_value(d) : "\n\n";
    }
    return true;
}

static const char *split_name(const json_t *config, const char *key) {
    return json_string_value(json_object_get(config, key));
}

void task_splits(const json_t *config, const char **eval, const char **fewshot) {
    static const char *const ELSE[] = {"training_split", "validation_split", "test_split"};
    *eval = split_name(config, "test_split");
    if (!*eval) *eval = split_name(config, "validation_split");
    *fewshot = split_name(json_object_get(config, "fewshot_config"), "split");
    if (!*fewshot) *fewshot = split_name(config, "fewshot_split");
    for (int i = 0; i < 3 && !*fewshot; i++) *fewshot = split_name(config, ELSE[i]);
}

static bool open_splits(Task *t, const TaskOptions *o, Err *e) {
    if (!json_get_int_or(t->config, t->name, "num_fewshot", 0, 0, MAX_FEWSHOT, &t->n_fewshot, e))
        return false;
    bool fixed = json_is_integer(json_object_get(t->config, "num_fewshot")) && t->n_fewshot == 0;
    if (o->fewshot >= 0 && !fixed) t->n_fewshot = o->fewshot;
    task_splits(t->config, &t->eval_split, &t->fewshot_split);
    if (!t->eval_split) return err_set(e, ERR_CONFIG, "没有 test_split，也没有 validation_split");
    return task_data_open(&t->eval_file, &t->arena, o->data_dir, t->name, t->config, t->eval_split, e);
}

static json_t *process_doc(const Task *t, const json_t *config, json_t *row, Err *e) {
    const char *name = task_function_name(config, "process_docs");
    (void)t;
    return name ? task_function(name)(row, e) : json_incref(row);
}

static bool open_fewshot(Task *t, const TaskOptions *o, Err *e) {
    if (t->n_fewshot == 0) return true;
    const json_t *few = json_object_get(t->config, "fewshot_config");
    const json_t *samples = json_object_get(few, "samples");
    const json_t *from = json_object_get(few, "process_docs") ? few : t->config;
    if (!json_object_get(few, "split") && !split_name(t->config, "fewshot_split") && json_is_array(samples)) {
        t->fewshot_docs = json_deep_copy(samples);
        return t->fewshot_docs != NULL || err_set(e, ERR_MEMORY, "内存不足");
    }
    if (!check_functions(from, e) ||
        !task_data_open(&t->fewshot_file, &t->arena, o->data_dir, t->name, t->config,
                        t->fewshot_split, e))
        return false;
    t->fewshot_docs = json_array();
    for (size_t i = 0; t->fewshot_docs && i < json_array_size(t->fewshot_file.rows); i++) {
        json_t *doc = process_doc(t, from, json_array_get(t->fewshot_file.rows, i), e);
        if (!doc) return err_wrap(e, "%s 第 %zu 行", t->fewshot_file.path, i + 1);
        json_array_append_new(t->fewshot_docs, doc);
    }
    return t->fewshot_docs != NULL || err_set(e, ERR_MEMORY, "内存不足");
}

static bool open_docs(Task *t, const TaskOptions *o, Err *e) {
    t->n_total = json_array_size(t->eval_file.rows);
    size_t n = o->limit > 0 && (size_t)o->limit < t->n_total ? (size_t)o->limit : t->n_total;
    t->docs = ARENA_ARRAY(&t->arena, TaskDoc, n, e);
    for (size_t i = 0; t->docs && i < n; i++) {
        json_t *doc = process_doc(t, t->config, json_array_get(t->eval_file.rows, i), e);
        if (!doc) return err_wrap(e, "%s 第 %zu 行", t->eval_file.path, i + 1);
        t->docs[t->n_docs++] = (TaskDoc){.id = (int64_t)i, .doc = doc};
    }
    return t->docs != NULL;
}

bool task_open(Task *t, const TaskChoice *choice, const TaskOptions *o, Err *e) {
    *t = (Task){.name = choice->name, .file = choice->file, .config = choice->config};
    bool ok = check_keys(t, e) && check_functions(t->config, e) && open_output(t, e) &&
              open_generation(t, e) && open_splits(t, o, e) && open_docs(t, o, e) &&
              open_fewshot(t, o, e);
    if (ok) return true;
    err_wrap(e, "任务 %s（%s）", choice->name, choice->file);
    task_close(t);
    return false;
}

void task_close(Task *t) {
    for (size_t i = 0; i < t->n_docs; i++) {
        TaskDoc *d = &t->docs[i];
        for (size_t k = 0; k < d->n_requests; k++) token_ids_free(&d->requests[k].generate.out);
        json_decref(d->doc);
        json_decref(d->target);
        json_decref(d->gold);
        json_decref(d->choices);
    }
    metrics_close(t->metrics, t->n_metrics);
    filters_close(t->filters, t->n_filters);
    json_decref(t->eval_file.rows);
    json_decref(t->fewshot_file.rows);
    json_decref(t->fewshot_docs);
    arena_free(&t->arena);
    *t = (Task){0};
}

/* ---------- 请求 ---------- */

static bool set_text(Task *t, const char **out, size_t *n, const char *a, const json_t *b, Err *e) {
    size_t head = strlen(a), tail = b ? json_string_length(b) : 0;
    char *text = arena_alloc(&t->arena, head + tail + 1, e);
    if (!text) return false;
    memcpy(text, a, head);
    if (tail) memcpy(text + head, json_string_value(b), tail);
    *out = text;
    *n = head + tail;
    return true;
}

static bool add_request(Task *t, TaskDoc *d, const json_t *context, const char *delimiter,
                        const json_t *continuation, Err *e) {
    TaskRequest *r = &d->requests[d->n_requests++];
    *r = (TaskRequest){0};
    return set_text(t, &r->context, &r->n_context, "", context, e) &&
           set_text(t, &r->continuation, &r->n_continuation, delimiter, continuation, e);
}

static bool wants_unconditional(const Task *t) {
    for (size_t i = 0; i < t->n_metrics; i++)
        if (t->metrics[i].kind == METRIC_ACC_MUTUAL) return true;
    return false;
}

/* 选择题：选项在 continuation 里；多 context 时选项在 context 里，continuation 都是答案的文字。 */
static bool build_choice(Task *t, TaskDoc *d, const json_t *contexts, Err *e) {
    const json_t *dv = json_object_get(t->config, "target_delimiter");
    const char *delimiter = json_is_string(dv) ? json_string_value(dv) : " ";
    size_t n = json_array_size(d->choices);
    bool mutual = wants_unconditional(t);
    d->requests = ARENA_ARRAY(&t->arena, TaskRequest, n * 2, e);
    if (!d->requests) return false;
    if (t->multiple_input && !json_is_string(d->target))
        return err_set(e, ERR_FORMAT, "doc_to_target 应是文字（各选项在 context 里）");
    for (size_t i = 0; i < n; i++) {
        bool many = t->multiple_input;
        if (!add_request(t, d, json_array_get(contexts, many ? i : 0), delimiter,
                         many ? d->target : json_array_get(d->choices, i), e))
            return false;
    }
    for (size_t i = 0; mutual && i < n; i++)
        if (!add_request(t, d, NULL, delimiter, json_array_get(d->choices, i), e)) return false;
    d->gold = t->multiple_input ? task_text(t, d->doc, NULL, e) : json_incref(d->target);
    return d->gold != NULL;
}

static bool build_doc(Task *t, TaskDoc *d, PyRandom *rng, Err *e) {
    json_t *contexts = NULL;
    bool ok = (d->target = task_target(t, d->doc, NULL, e)) != NULL;
    if (ok && t->output == OUT_CHOICE) ok = (d->choices = task_choices(t, d->doc, NULL, e)) != NULL;
    if (ok && t->output != OUT_ROLLING) ok = (contexts = task_context(t, d->doc, rng, e)) != NULL;
    if (ok && t->output == OUT_CHOICE) {
        ok = build_choice(t, d, contexts, e);
    } else if (ok) {
        bool text = t->output != OUT_GENERATE;
        if (text && !json_is_string(d->target))
            ok = err_set(e, ERR_FORMAT, "doc_to_target 应是文字");
        d->requests = ok ? ARENA_ARRAY(&t->arena, TaskRequest, 1, e) : NULL;
        ok = d->requests && add_request(t, d, contexts ? json_array_get(contexts, 0) : NULL, "",
                                        text ? d->target : NULL, e);
    }
    json_decref(contexts);
    return ok || err_wrap(e, "任务 %s 的第 %lld 份文档", t->name, (long long)d->id);
}

/* 第一份文档的题面是整数：那是答案的下标，选项在 context 里；答案是列表：有几个都算对。 */
static bool probe(Task *t, Err *e) {
    json_t *target = task_target(t, t->docs[0].doc, NULL, e);
    json_t *text = target && t->output != OUT_ROLLING ? task_text(t, t->docs[0].doc, NULL, e) : NULL;
    bool ok = target && (text || t->output == OUT_ROLLING);
    t->multiple_input = t->output == OUT_CHOICE && json_is_integer(text);
    t->multiple_target = json_is_array(target);
    json_decref(target);
    json_decref(text);
    return ok || err_wrap(e, "任务 %s 的第 0 份文档", t->name);
}

bool task_build(Task *t, Err *e) {
    PyRandom rng;
    pyrandom_seed(&rng, FEWSHOT_SEED);
    Hash *h = hash_new();
    bool ok = h ? probe(t, e) : err_set(e, ERR_MEMORY, "内存不足");
    for (size_t i = 0; ok && i < t->n_docs; i++) {
        TaskDoc *d = &t->docs[i];
        ok = build_doc(t, d, &rng, e);
        for (size_t k = 0; ok && k < d->n_requests; k++) {
            hash_add(h, d->requests[k].context, d->requests[k].n_context);
            hash_add(h, "\x1f", 1);
            hash_add(h, d->requests[k].continuation, d->requests[k].n_continuation);
            hash_add(h, "\x1e", 1);
        }
    }
    if (h) hash_end(h, t->requests_sha256);
    return ok;
}

/* ---------- 编码 ---------- */

static bool encode_generate(Task *t, TaskRequest *r, const Encoder *c, Err *e) {
    int64_t room = c->max_length - t->max_new;
    if (room < 1)
        return err_set(e, ERR_CONFIG, "要生成 %lld 个 token，不小于上下文长度 %lld",
                       (long long)t->max_new, (long long)c->max_length);
    TokenIds ids = {0};
    bool ok = encode_text(c, r->context, r->n_context, &ids, e);
    int64_t n = (int64_t)ids.n < room ? (int64_t)ids.n : room;
    int32_t *kept = ok ? ARENA_ARRAY(&t->arena, int32_t, n, e) : NULL;
    if (ok && n == 0) ok = err_set(e, ERR_FORMAT, "提示是空的");
    if (kept && n) memcpy(kept, ids.ids + (int64_t)ids.n - n, (size_t)n * sizeof *kept);
    r->generate = (GenerateRequest){.ids = kept, .n = n, .max_new = t->max_new, .stop = t->until,
                                    .n_stop = t->n_until, .eos = c->eos};
    token_ids_free(&ids);
    return ok && kept;
}

static bool encode_request(Task *t, TaskRequest *r, const Encoder *c, Err *e) {
    if (t->output == OUT_GENERATE) return encode_generate(t, r, c, e);
    if (t->output == OUT_ROLLING)
        return encode_rolling(c, r->continuation, r->n_continuation, &r->score, &r->n_score,
                              &t->arena, e);
    r->score = ARENA_NEW(&t->arena, ScoreRequest, e);
    r->n_score = 1;
    return r->score && encode_pair(c, r->context, r->n_context, r->continuation, r->n_continuation,
                                   r->score, &t->arena, e);
}

bool task_encode(Task *t, const Encoder *c, Err *e) {
    for (size_t i = 0; i < t->n_docs; i++)
        for (size_t k = 0; k < t->docs[i].n_requests; k++)
            if (!encode_request(t, &t->docs[i].requests[k], c, e))
                return err_wrap(e, "任务 %s 的第 %lld 份文档", t->name, (long long)t->docs[i].id);
    return true;
}
