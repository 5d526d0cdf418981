/* experiment — 打开一次实验 */
#include "experiment.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "bridge.h"
#include "env_info.h"
#include "io/file.h"
#include "model/checkpoint.h"
#include "pretrained.h"
#include "retreat.h"
#include "tasks/protocol.h"

bool experiment_is_baseline(const Experiment *x) {
    return strcmp(x->config.method->name, "fp16") == 0 && !x->model.head_int8;
}

Evaluation experiment_evaluation(const Experiment *x) {
    return (Evaluation){.options = &x->config.run, .model = (Model *)&x->model,
                        .tokenizer = x->tokenizer, .texts = x->texts, .n_texts = x->n_texts,
                        .protocol = x->protocol, .reference_dir = x->reference_dir,
                        .run_key = x->run_key, .results_dir = x->results_dir,
                        .tasks = (TaskSet *)&x->tasks, .task_key = x->task_key,
                        .max_length = x->max_length, .eos = &x->eos, .is_baseline = experiment_is_baseline(x),
                        .warnings = x->warnings, .fallbacks = x->fallbacks};
}

void experiment_fall_back(Experiment *x, const char *fmt, ...) {
    char text[1200];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    log_line(LOG_WARN, "%s", text);
    json_array_append_new(x->fallbacks, json_string(text));
}

/* CUDA 后端。auto 而打不开时退到 CPU（有库有驱动却打不开才算退让，要说出来）。 */
static bool open_cuda(Experiment *x, Err *e) {
    const RunOptions *o = &x->config.run;
    Err why = {0};
    if (o->device == DEVICE_CPU || (o->device == DEVICE_AUTO && !backend_has_cuda())) return true;
    x->backend_open = backend_open_cuda(&x->backend, (int)o->threads, x->compute, &why);
    if (x->backend_open) return true;
    if (o->device == DEVICE_AUTO) {
        experiment_fall_back(x, "GPU 打不开，退回 CPU：%s", why.msg);
        return true;
    }
    *e = why;
    return false;
}

static bool open_backend(Experiment *x, Err *e) {
    const RunOptions *o = &x->config.run;
    x->compute = o->compute == 2 ? COMPUTE_BF16 : COMPUTE_F32;
    if (!open_cuda(x, e)) return false;
    if (x->backend_open) return true;
    if (x->compute == COMPUTE_BF16 && !cpu_has_bf16()) {
        experiment_fall_back(x, "%s", "CPU 没有 AVX512-BF16，compute=bfloat16 退回 float32");
        x->compute = COMPUTE_F32;
    }
    x->backend_open = backend_open_cpu(&x->backend, (int)o->threads, x->compute, NULL, e);
    return x->backend_open;
}

static bool open_tokenizer(Experiment *x, Err *e) {
    const char *id = x->config.model.tokenizer_id;
    if (id && *id) {
        const char *dir = file_join(&x->arena, x->config.root, id, e);
        if (!dir) return false;
        return tokenizer_open_dir(&x->tokenizer, dir, e) || err_wrap(e, "tokenizer_id");
    }
    if (x->model.weights.is_gguf)
        return tokenizer_open_gguf(&x->tokenizer, &x->model.weights.gguf, e);
    return tokenizer_open_dir(&x->tokenizer, x->model_path, e);
}

static bool open_model(Experiment *x, Err *e) {
    static const DType DTYPES[] = {DT_NONE, DT_F32, DT_F16, DT_BF16};
    x->model_path = config_fetch_model(&x->config, e);
    if (!x->model_path) return false;
    const char *adapter = x->config.model.adapter;
    if (adapter && strcmp(adapter, "auto") == 0) adapter = NULL;
    x->model_open = model_open_as(&x->model, x->model_path, adapter, DTYPES[x->config.model.dtype],
                                  &x->backend, e);
    if (!x->model_open || !pretrained_check(x->config.method, &x->model, e) || !open_tokenizer(x, e)) return false;
    x->model.head_int8 = x->config.model.head_quant == 1;
    int64_t vocab = tokenizer_vocab_size(x->tokenizer);
    if (vocab > x->model.config.vocab)
        return err_set(e, ERR_FORMAT, "%s: 分词器有 %lld 个 token，多于模型词表的 %lld 个", x->model_path,
                       (long long)vocab, (long long)x->model.config.vocab);
    return eos_open(&x->eos, x->model_path, x->tokenizer, x->model.config.vocab, e);
}

static bool open_texts(Experiment *x, Err *e) {
    const RunOptions *o = &x->config.run;
    x->n_texts = o->n_ppl_datasets;
    x->texts = ARENA_ARRAY(&x->arena, EvalText, x->n_texts, e);
    if (!x->texts) return false;
    for (size_t i = 0; i < x->n_texts; i++) {
        if (!text_open(&x->texts[i].text, &x->arena, x->config.root, o->data_dir,
                       o->ppl_datasets[i], e))
            return false;
        x->n_open_texts = i + 1;
        for (size_t j = 0; j < i; j++)
            if (strcmp(x->texts[i].text.name, x->texts[j].text.name) == 0)
                return err_set(e, ERR_CONFIG, "eval.ppl_datasets 里 '%s' 出现了两次",
                               x->texts[i].text.name);
    }
    return true;
}

/* 打开并拼好全部任务的请求（不编码）：数据缺了在这里就报出。 */
static bool open_tasks(Experiment *x, Err *e) {
    const RunOptions *o = &x->config.run;
    TaskOptions options = {.data_dir = x->data_dir, .limit = o->task_limit, .fewshot = o->num_fewshot};
    const char *dir = file_join(&x->arena, x->config.root, "configs/tasks", e);
    const char **native;
    size_t n;
    return dir && ((bridge_split(x, dir, &native, &n, e) &&
                    taskset_open(&x->tasks, dir, native, n, &options, e)) ||
                   err_wrap(e, "eval.lm_eval_tasks"));
}

/* 需要校准的方法：抽出样本，并查它与评测文本是否为同一份。 */
static bool open_calib(Experiment *x, Err *e) {
    const CalibOptions *o = &x->config.calib;
    if (!x->config.method->calibrated) return true;
    TextData t;
    TokenIds ids = {0};
    if (!text_open(&t, &x->arena, x->config.root, x->config.run.data_dir, o->dataset, e))
        return err_wrap(e, "calibration.dataset");
    bool ok = tokenizer_encode(x->tokenizer, t.data, t.len, true, &ids, e) &&
              calib_draw(&x->calib, &x->arena, t.name, ids.ids, (int64_t)ids.n, o->samples,
                         o->length, o->seed, e);
    for (size_t i = 0; ok && i < x->n_texts; i++)
        if (strcmp(x->texts[i].text.sha256, t.sha256) == 0) {
            const char *text = "校准文本就是评测文本：结果偏乐观，不能与别的校准相比";
            log_line(LOG_WARN, "%s", text);
            json_array_append_new(x->warnings, json_string(text));
        }
    x->has_calib = ok;
    token_ids_free(&ids);
    text_close(&t);
    return ok;
}

/* 依次加入各段文字（以换行分开）后的哈希。 */
static bool hash_texts(char hex[HASH_HEX], const char *const *parts, size_t n, Err *e) {
    Hash *h = hash_new();
    if (!h) return err_set(e, ERR_MEMORY, "内存不足");
    for (size_t i = 0; i < n; i++) {
        hash_add(h, parts[i], strlen(parts[i]));
        hash_add(h, "\n", 1);
    }
    hash_end(h, hex);
    return true;
}

/* 各存档的身份里的计算方式：GPU 与 CPU 的结果不混用。 */
static const char *compute_name(const Experiment *x) {
    bool bf16 = x->compute == COMPUTE_BF16;
    if (x->backend.device) return bf16 ? "bfloat16 cuda" : "float32 cuda";
    return bf16 ? "bfloat16" : "float32";
}

/* 模型文件夹的 config.json（超参数不在权重里）。 */
static bool hash_config(Experiment *x, Err *e) {
    if (x->model.weights.is_gguf) return true;
    const char *path = file_join(&x->arena, x->model_path, "config.json", e);
    return path && (!file_exists(path) || hash_file(path, NULL, x->config_sha256, e));
}

/* 校准统计的身份：程序本身（每次编译都不同）、权重、超参数、存放类型、校准 ids、怎样算。 */
static bool identify_stats(Experiment *x, Err *e) {
    char program[HASH_HEX], shape[64];
    if (!x->has_calib) return true;
    const char *adapter = x->config.model.adapter;
    snprintf(shape, sizeof shape, "%lld x %lld", (long long)x->calib.n_samples, (long long)x->calib.length);
    if (!hash_file("/proc/self/exe", NULL, program, &(Err){0})) return true; /* 认不出程序就不存 */
    const char *const parts[] = {program, x->weights_sha256, x->config_sha256, adapter ? adapter : "auto",
                                 dtype_name(x->model.dtype), compute_name(x), x->backend.isa,
                                 x->calib.sha256, shape};
    return hash_texts(x->stats_key, parts, sizeof parts / sizeof *parts, e);
}

static bool identify(Experiment *x, Err *e) {
    int64_t max_len = x->config.model.max_seq_len ? x->config.model.max_seq_len
                                                  : x->model.config.max_position;
    x->max_length = max_len;
    char buf[32];
    Protocol protocol;
    const char *name = evaluate_protocol_name(&x->config.run, max_len, buf, sizeof buf);
    if (!protocol_parse(&protocol, name, e)) return false;
    memcpy(x->protocol, protocol.name, sizeof protocol.name);
    const char *cache = arena_printf(&x->arena, e, "%s/meta", x->data_dir);
    char *canonical = config_canonical(&x->config, &x->arena, e);
    if (!cache || !canonical ||
        !weights_sha256(&x->model.weights, x->backend.n_threads, cache, x->weights_sha256, e))
        return false;
    const char *tokenizer = tokenizer_sha256(x->tokenizer), *compute = compute_name(x);
    size_t n = 0;
    const char **parts = ARENA_ARRAY(&x->arena, const char *, x->n_texts + 9, e);
    if (!parts || !hash_config(x, e)) return false;
    const char *const head[] = {PTQ_VERSION, canonical, x->weights_sha256, x->config_sha256, tokenizer,
                                x->protocol, compute};
    for (; n < 7; n++) parts[n] = head[n];
    for (size_t i = 0; i < x->n_texts; i++) parts[n++] = x->texts[i].text.sha256;
    if (x->has_calib) parts[n++] = x->calib.sha256;
    if (x->tasks.n) parts[n++] = x->tasks.sha256;
    if (!hash_texts(x->run_key, parts, n, e)) return false;
    const char *kv_dtype = dtype_name(run_kv_dtype(&x->config.run));
    char length[24];
    snprintf(length, sizeof length, "%lld", (long long)max_len);
    const char *const task[] = {PTQ_VERSION, "tasks", x->weights_sha256, x->config_sha256, dtype_name(x->model.dtype),
                                tokenizer, compute, kv_dtype, length};
    if (!hash_texts(x->task_key, task, sizeof task / sizeof *task, e)) return false;
    for (size_t i = 0; i < x->n_texts; i++) {
        const char *const ref[] = {PTQ_VERSION, "reference", x->weights_sha256, x->config_sha256,
                                   dtype_name(x->model.dtype), tokenizer, x->protocol, compute, kv_dtype,
                                   x->texts[i].text.sha256};
        if (!hash_texts(x->texts[i].reference_key, ref, sizeof ref / sizeof *ref, e)) return false;
    }
    return identify_stats(x, e);
}

bool experiment_open(Experiment *x, const ConfigRequest *r, Err *e) {
    *x = (Experiment){.warnings = json_array(), .fallbacks = json_array()};
    if (!x->warnings || !x->fallbacks) return err_set(e, ERR_MEMORY, "内存不足");
    if (!config_load(&x->config, r, e)) return false;
    for (size_t i = 0; i < x->config.n_warnings; i++)
        json_array_append_new(x->warnings, json_string(x->config.warnings[i]));
    const RunOptions *o = &x->config.run;
    x->data_dir = file_join(&x->arena, x->config.root, o->data_dir, e);
    x->results_dir = file_join(&x->arena, x->config.root, o->results_dir, e);
    if (!x->data_dir || !x->results_dir) return false;
    x->reference_dir = arena_printf(&x->arena, e, "%s/processed/reference", x->data_dir);
    return x->reference_dir && open_backend(x, e) && open_model(x, e) && retreat_plan(x, e) &&
           open_texts(x, e) && open_tasks(x, e) &&
           open_calib(x, e) && identify(x, e);
}

/* 量化一遍。job 由这里填，不论成败都要 job_close。 */
static bool quantize_once(Experiment *x, QuantJob *job, Err *e) {
    *job = (QuantJob){.track = x->config.track, .block_key = x->run_key};
    job->block_dir = arena_printf(&x->arena, e, "%s/processed/blocks/%.16s", x->data_dir, x->run_key);
    if (!job->block_dir) return false;
    if (x->stats_key[0] && x->config.run.stats_cache_bytes && !x->backend.device) { /* GPU 上算比存快 */
        job->stats_dir = arena_printf(&x->arena, e, "%s/processed/stats", x->data_dir);
        job->stats_key = x->stats_key;
        job->stats_limit = x->config.run.stats_cache_bytes;
        if (!job->stats_dir) return false;
    }
    return job_run(job, x->config.method, x->config.method_options, &x->model,
                   x->has_calib ? &x->calib : NULL, e);
}

bool experiment_quantize(Experiment *x, QuantJob *job, Err *e) {
    bool ok = quantize_once(x, job, e);
    while (!ok && e->code == ERR_MEMORY) {
        job_close(job);
        if (!retreat_reload(x, e)) return false;
        ok = quantize_once(x, job, e);
    }
    const char *note = ok ? checkpoint_note(&x->model) : NULL;
    if (note) {
        log_line(LOG_WARN, "%s", note);
        json_array_append_new(x->warnings, json_string(note));
    }
    x->model.kv_mode = (KvMode)x->config.run.kv_mode;
    x->model.kv_dtype = run_kv_dtype(&x->config.run);
    for (size_t i = 0; i < job->n_fallbacks; i++) {
        log_line(LOG_WARN, "退让：%s", job->fallbacks[i]);
        json_array_append_new(x->fallbacks, json_string(job->fallbacks[i]));
    }
    return ok;
}

void experiment_describe(const Experiment *x) {
    const ModelConfig *c = &x->model.config;
    char size[32];
    size_t bytes = 0;
    for (size_t i = 0; i < x->model.weights.n_tensors; i++)
        bytes += x->model.weights.sorted[i]->bytes;
    log_line(LOG_LOAD, "模型 %s：%s，%lld 层，隐藏维 %lld，词表 %lld，文件 %s（%s）", x->config.model.name,
             c->arch->name, (long long)c->n_layers, (long long)c->hidden, (long long)c->vocab,
             str_bytes(size, sizeof size, (double)bytes), x->model.weights.format);
    const DeviceInfo *d = x->backend.device;
    if (d)
        log_line(LOG_INFO, "GPU：%s，显存 %s，驱动 %s，CUDA %s", d->name,
                 str_bytes(size, sizeof size, (double)d->memory), d->driver, d->cuda);
    log_line(LOG_INFO, "计算 %s，内核 %s，%d 线程；权重存放 %s；BOS：%s",
             x->compute == COMPUTE_BF16 ? "bfloat16" : "float32", x->backend.isa,
             x->backend.n_threads, dtype_name(x->model.dtype), tokenizer_bos_policy(x->tokenizer));
}

void experiment_close(Experiment *x) {
    for (size_t i = 0; i < x->n_open_texts; i++) text_close(&x->texts[i].text);
    taskset_close(&x->tasks);
    tokenizer_close(x->tokenizer);
    if (x->model_open) model_close(&x->model);
    if (x->backend_open) backend_close(&x->backend);
    config_free(&x->config);
    json_decref(x->warnings);
    json_decref(x->fallbacks);
    arena_free(&x->arena);
    *x = (Experiment){0};
}
