/* runner — 一次实验的全过程，一屏看完
 * experiment_open → quantize → evaluate → 结果 JSON。失败也产出结果（status.ok=false 与原因）。 */
#include "runner.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "baseline.h"
#include "bridge.h"
#include "dump.h"
#include "env_info.h"
#include "experiment.h"
#include "methods/job.h"
#include "model/blockfile.h"
#include "model/checkpoint.h"
#include "model/session.h"
#include "retreat.h"

static json_t *model_json(const Experiment *x) {
    const Model *m = &x->model;
    return json_pack("{s:s, s:s, s:s, s:s, s:I, s:s, s:s?, s:s, s:s}", "path", x->model_path,
                     "format", m->weights.format, "architecture", m->config.arch->name, "dtype",
                     dtype_name(m->dtype), "n_params", (json_int_t)model_bytes(m).params,
                     "weights_sha256", x->weights_sha256, "revision",
                     x->config.hub_commit ? x->config.hub_commit : x->config.model.revision,
                     "tokenizer_sha256", tokenizer_sha256(x->tokenizer), "bos_policy",
                     tokenizer_bos_policy(x->tokenizer));
}

static json_t *config_json(const Experiment *x, const ConfigRequest *r) {
    const char track[2] = {x->config.track, 0};
    json_t *overrides = json_array();
    for (size_t i = 0; i < r->n_overrides; i++)
        json_array_append_new(overrides, json_string(r->overrides[i]));
    return json_pack("{s:s, s:s, s:s, s:s, s:o, s:o}", "model", x->config.model.name, "method",
                     x->config.method_name, "track", track, "display_name",
                     x->config.method_display_name, "overrides", overrides, "merged",
                     config_merged_json(&x->config));
}

/* 没有量化的矩阵：跳过的线性层、词嵌入、头。 */
static json_t *unquantized_json(const Model *m) {
    json_t *a = json_array();
    if (!m->head_int8) json_array_append_new(a, json_string("model.embed_tokens"));
    if (!m->head_int8 && !m->config.tied) json_array_append_new(a, json_string("lm_head"));
    for (int64_t i = 0; i < m->config.n_layers; i++)
        for (int64_t r = 0; r < m->blocks[i].n_linears; r++) {
            const Linear *l = &m->blocks[i].linears[r];
            if (l->rows && l->q.dense != DT_NONE) json_array_append_new(a, json_string(l->name));
        }
    return a;
}

/* 校准集：可由 Python 的 random.Random(seed) 重现的起点与 ids 的哈希。 */
static json_t *calibration_json(const Experiment *x) {
    const CalibSet *c = &x->calib;
    if (!x->has_calib) return json_null();
    json_t *offsets = json_array();
    for (int64_t i = 0; i < c->n_samples; i++)
        json_array_append_new(offsets, json_integer(c->offsets[i]));
    return json_pack("{s:s, s:I, s:I, s:I, s:s, s:o}", "dataset", c->dataset, "samples",
                     (json_int_t)c->n_samples, "length", (json_int_t)c->length, "seed",
                     (json_int_t)c->seed, "sha256", c->sha256, "offsets", offsets);
}

static json_t *quantization_json(const Experiment *x, const QuantJob *job) {
    ModelBytes b = model_bytes(&x->model);
    json_t *settings = checkpoint_json(&x->model), *merged = config_merged_json(&x->config);
    for (const Option *o = x->config.method->options; o && o->key; o++) {
        json_t *value = json_object_get(json_object_get(merged, o->key), "value");
        if (value) json_object_set(settings, o->key, value);
    }
    json_decref(merged);
    return json_pack("{s:o, s:{s:f, s:f}, s:{s:I, s:I, s:I, s:I, s:I, s:I, s:I}, s:o, s:o}", "settings",
                     settings, "effective_bits", "linear",
                     8.0 * (double)b.linear_bytes / (double)b.linear_params, "model",
                     8.0 * (double)b.total / (double)b.params, "bytes", "codes",
                     (json_int_t)b.codes, "scales", (json_int_t)b.scales, "zeros",
                     (json_int_t)b.zeros, "permutations", (json_int_t)b.permutations, "outliers",
                     (json_int_t)b.outliers, "unquantized", (json_int_t)b.unquantized, "total",
                     (json_int_t)b.total, "unquantized_tensors", unquantized_json(&x->model),
                     "weight_mse",
                     job->n_quantized ? json_real(job->squared_error / (double)job->n_quantized)
                                      : json_null());
}

static json_t *vram_peak_json(Backend *b) {
    return b->vram_peak ? json_real((double)b->vram_peak(b) / 1e6) : json_null();
}

static json_t *metrics_json(const Experiment *x, const json_t *ppl, const Speed *speed,
                            const ScoreCost *cost) {
    const char *name;
    json_t *v, *kv = NULL;
    json_object_foreach((json_t *)ppl, name, v) {
        if (!kv) kv = json_object_get(v, "kv_cache");
    }
    double rate = cost->seconds > 0 ? (double)cost->n_tokens / cost->seconds : 0;
    return json_pack("{s:o, s:f, s:f, s:f, s:O?, s:O?, s:O?, s:o, s:o, s:I, s:I, s:o}", "vram_peak_mb",
                     vram_peak_json((Backend *)&x->backend), "rss_peak_mb",
                     (double)env_rss_peak() / 1e6, "alloc_peak_mb",
                     (double)allocator_default()->peak / 1e6, "weights_mb",
                     (double)model_bytes(&x->model).total / 1e6, "kv_bytes_per_token",
                     json_object_get(kv, "bytes_per_token"), "kv_bits_per_value",
                     json_object_get(kv, "bits_per_value"), "kv_mode", json_object_get(kv, "mode"),
                     "prefill_tok_s", speed->prefill > 0 ? json_real(speed->prefill) : json_null(),
                     "decode_tok_s", speed->decode > 0 ? json_real(speed->decode) : json_null(),
                     "decode_batch", (json_int_t)x->config.run.speed_batch, "decode_context",
                     (json_int_t)x->config.run.speed_context,
                     "lm_eval",
                     rate > 0 ? json_pack("{s:I, s:I, s:f, s:f}", "n_tokens",
                                          (json_int_t)cost->n_tokens, "n_rows",
                                          (json_int_t)cost->n_rows, "seconds", cost->seconds,
                                          "tok_per_s", rate)
                              : json_null());
}

/* 环境；在 GPU 上另记它的名字与版本。 */
static json_t *environment_json(const Experiment *x) {
    json_t *o = env_info(x->config.root);
    const DeviceInfo *d = x->backend.device;
    if (!o || !d) return o;
    json_object_set_new(o, "gpu", json_string(d->name));
    json_object_set_new(o, "cuda", json_string(d->cuda));
    json_object_set_new(o, "driver", json_string(d->driver));
    return o;
}

/* 量化 → 评测，把各部分装进 result。 */
static bool run_stages(Experiment *x, const RunRequest *r, json_t *result, Err *e) {
    QuantJob job;
    double started = clock_seconds(), quantized;
    Speed speed = {0};
    ScoreCost cost = {0};
    json_t *ppl = NULL, *tasks = NULL;
    bool ok = experiment_quantize(x, &job, e);
    quantized = clock_seconds();
    if (ok && r->dump_linear) ok = dump_linear(&x->model, r->dump_linear, r->dump_dir, e);
    if (ok) {
        double total = quantized - started - x->model.load_seconds - job.check_seconds;
        json_object_set_new(result, "model", model_json(x));
        json_object_set_new(result, "quantization", quantization_json(x, &job));
        json_object_set_new(result, "calibration", calibration_json(x));
        json_object_set_new(result, "quant_time_seconds", json_real(total > 0 ? total : 0));
        json_object_set_new(result, "quant_time",
                            json_pack("{s:f, s:f, s:f, s:f, s:b}", "load", x->model.load_seconds,
                                      "quantize", total > 0 ? total : 0, "calibration",
                                      job.calib_seconds, "error_check", job.check_seconds,
                                      "shared_statistics", job.stats_shared));
        Evaluation v = experiment_evaluation(x);
        do ppl = evaluate_ppl(&v, e);
        while (!ppl && retreat(x, e));
        ok = ppl != NULL;
        if (ok) do tasks = evaluate_tasks(&v, &cost, e);
            while (!tasks && retreat(x, e));
        ok = ok && tasks && bridge_run(x, tasks, e);
        if (ok && x->config.run.speed && x->n_texts) do ok = evaluate_speed(&v, &speed, e);
            while (!ok && retreat(x, e));
        if (ok)
            json_object_set_new(result, "results",
                                json_pack("{s:O, s:O, s:o}", "ppl", ppl, "lm_eval", tasks,
                                          "system_metrics", metrics_json(x, ppl, &speed, &cost)));
    }
    if (ok) blockfile_clear(job.block_dir, x->model.config.n_layers);
    json_decref(ppl);
    json_decref(tasks);
    job_close(&job);
    return ok;
}

/* 结果里与成败无关的部分。 */
static json_t *new_result(const Experiment *x, const RunRequest *r) {
    char started[40];
    time_t now = time(NULL);
    struct tm tm;
    localtime_r(&now, &tm);
    strftime(started, sizeof started, "%Y-%m-%dT%H:%M:%S%z", &tm);
    return json_pack("{s:s, s:s, s:o, s:b, s:{s:s, s:s, s:s, s:i}, s:s, s:o, s:{s:s}}", "schema",
                     "ptq-bench/1", "run_key", x->run_key, "config", config_json(x, &r->config),
                     "limited", x->config.run.limit > 0 || x->config.run.task_limit > 0, "compute", "mode",
                     x->compute == COMPUTE_BF16 ? "bfloat16" : "float32", "device", x->backend.name, "isa",
                     x->backend.isa,
                     "threads", x->backend.n_threads, "command", r->command ? r->command : "",
                     "environment", environment_json(x), "time", "started", started);
}

static void set_status(json_t *result, bool ok, const Err *e) {
    json_object_set_new(result, "status",
                        json_pack("{s:b, s:s, s:s}", "ok", ok, "code",
                                  ok ? "none" : err_code_name(e->code), "message",
                                  ok ? "" : e->msg));
}

bool run_experiment(const RunRequest *r, json_t **result, Err *e) {
    *result = NULL;
    double started = clock_seconds();
    Experiment x;
    bool ok = experiment_open(&x, &r->config, e);
    if (ok) {
        *result = new_result(&x, r);
        if (!*result) ok = err_set(e, ERR_MEMORY, "内存不足");
    }
    if (ok) {
        experiment_describe(&x);
        ok = baseline_ensure(&x, r, e) && run_stages(&x, r, *result, e);
        set_status(*result, ok, e);
        json_object_set(*result, "warnings", x.warnings);
        json_object_set(*result, "fallbacks", x.fallbacks);
        json_object_set_new(json_object_get(*result, "time"), "seconds",
                            json_real(clock_seconds() - started));
    }
    experiment_close(&x);
    return ok;
}

bool run_key_of(const ConfigRequest *r, char key[65], Err *e) {
    Experiment x;
    bool ok = experiment_open(&x, r, e);
    if (ok) memcpy(key, x.run_key, HASH_HEX);
    experiment_close(&x);
    return ok;
}
