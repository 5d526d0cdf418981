/* plan — run_one --dry_run：解析并检查一切，说明将要做什么、要多少内存与时间，不量化也不评测
 * 时间由本机现测的矩阵乘速率推算；内存由与真正分配相同的公式清点。 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "baseline.h"
#include "experiment.h"
#include "io/file.h"
#include "model/checkpoint.h"
#include "model/session.h"
#include "pretrained.h"
#include "result_writer.h"
#include "tasks/perplexity.h"
#include "tasks/protocol.h"

static void print_config(const json_t *merged) {
    const char *key;
    json_t *v;
    size_t width = 0;
    json_object_foreach((json_t *)merged, key, v) if (strlen(key) > width) width = strlen(key);
    log_line(LOG_INFO, "配置（键 = 值 ← 来源）");
    json_object_foreach((json_t *)merged, key, v) {
        char *text = json_dumps(json_object_get(v, "value"), JSON_ENCODE_ANY | JSON_COMPACT);
        const char *from = json_string_value(json_object_get(v, "from"));
        log_line(LOG_INFO, "  %-*s = %s ← %s", (int)width, key, text ? text : "?",
                 from ? from : "?");
        free(text);
    }
}

/* 组宽不整除的层，列数相同的归在一行。 */
static void print_groups(const Model *m, const QSpec *spec) {
    if (spec->group_size < 1) return;
    const Linear *l = m->blocks[0].linears;
    for (LinearRole r = 0; r < ROLE_COUNT; r++) {
        if (!l[r].rows) continue;
        int64_t cols = l[r].cols, rest = spec->group_size < cols ? cols % spec->group_size : 0;
        bool seen = rest == 0;
        for (LinearRole before = 0; before < r; before++) seen |= l[before].cols == cols;
        if (seen) continue;
        Str names = {0};
        int64_t n = 0;
        for (LinearRole same = r; same < ROLE_COUNT; same++)
            if (l[same].cols == cols) {
                str_addf(&names, "%s%s", n++ ? "、" : "", strrchr(l[same].name, '.') + 1);
            }
        log_line(LOG_WARN, "组宽 %lld 不整除 %lld 列（%s，共 %lld 层）：每行末组 %lld 列",
                 (long long)spec->group_size, (long long)cols, names.failed ? "" : names.data,
                 (long long)(n * m->config.n_layers), (long long)rest);
        str_free(&names);
    }
}

/* 现测矩阵乘的速率（每秒乘加数×2），约 0.1 秒。 */
static double measure_rate(Experiment *x, Err *e) {
    enum { ROWS = 512, DIM = 512 };
    Arena a = backend_arena(&x->backend);
    float *w = ARENA_ARRAY(&a, float, DIM * DIM, e);
    float *in = ARENA_ARRAY(&a, float, ROWS * DIM, e);
    float *out = ARENA_ARRAY(&a, float, ROWS * DIM, e);
    QTensor q;
    double rate = 0;
    if (w && in && out && qtensor_new_dense(&q, &a, x->model.dtype, DIM, DIM, e)) {
        op_pack_dense(&x->backend, &q, tensor_f32(w, DIM, DIM));
        double start = clock_seconds(), took = 0;
        int64_t n = 0;
        while (took < 0.1) {
            op_linear(&x->backend, tensor_f32(out, ROWS, DIM), tensor_f32(in, ROWS, DIM), &q,
                      tensor_f32_1d(NULL, 0));
            n++;
            took = clock_seconds() - start;
        }
        rate = 2.0 * ROWS * DIM * DIM * (double)n / took;
    }
    arena_free(&a);
    return rate;
}

static bool print_texts(Experiment *x, const Protocol *p, int64_t *tokens, Err *e) {
    int64_t limit = x->config.run.limit;
    *tokens = 0;
    for (size_t i = 0; i < x->n_texts; i++) {
        const TextData *t = &x->texts[i].text;
        TokenIds ids = {0};
        bool ok = tokenizer_encode(x->tokenizer, t->data, t->len, true,
                                   &ids, e);
        int64_t n = ok ? protocol_windows(p, (int64_t)ids.n) : 0;
        size_t count = ids.n;
        token_ids_free(&ids);
        if (!ok) return err_wrap(e, "%s", t->path);
        if (n == 0)
            return err_set(e, ERR_FORMAT, "%s: 只有 %zu 个 token，不足协议 %s 的一个窗口", t->path, count,
                           p->name);
        int64_t used = limit && limit < n ? limit : n;
        log_line(LOG_EVAL, "数据集 %s（%s）：%zu token，%lld 个窗口，评测 %lld 个；sha256 %.16s…", t->name,
                 p->name, count, (long long)n, (long long)used, t->sha256);
        *tokens += used * p->window;
    }
    return true;
}

/* 编码全部请求，数出 token。 */
static bool print_tasks(Experiment *x, int64_t *tokens, Err *e) {
    TaskSet *s = &x->tasks;
    Encoder c;
    if (s->n == 0) return true;
    if (!encoder_init(&c, x->tokenizer, x->max_length, e) || !taskset_encode(s, &c, e)) return false;
    for (size_t i = 0; i < s->n; i++) {
        const Task *t = &s->tasks[i];
        size_t n = 0;
        for (size_t d = 0; d < t->n_docs; d++) n += t->docs[d].n_requests;
        log_line(LOG_EVAL, "任务 %s：%zu 份文档（共 %zu），%zu 个请求，少样本 %lld；%s，sha256 %.16s…", t->name,
                 t->n_docs, t->n_total, n, (long long)t->n_fewshot, t->eval_file.path,
                 t->eval_file.sha256);
        char ids[HASH_HEX];
        if (!task_ids_sha256(t, ids, e)) return false;
        log_line(LOG_EVAL, "  请求的 SHA-256：文字 %s，token %s", t->requests_sha256, ids);
    }
    log_line(LOG_EVAL, "任务合计 %zu 个，%lld 个请求，%lld 个 token（共享开头之前）", s->n,
             (long long)s->n_requests, (long long)s->n_tokens);
    *tokens += s->n_tokens;
    return true;
}

static bool print_cost(Experiment *x, const Protocol *p, int64_t tokens, const QSpec *spec,
                       Err *e) {
    const ModelConfig *c = &x->model.config;
    size_t weights;
    if (!model_measure_weights(&x->model, spec, &weights, e)) return false;
    double rate = measure_rate(x, e);
    if (rate <= 0) return false;
    size_t work = workspace_bytes(c, perplexity_batch(p, CPU_BATCH_ROWS) * p->window);
    size_t block = (size_t)c->hidden * (size_t)c->intermediate * 4 * 3;
    char a[32], b[32], d[32], f[32], s[48];
    log_line(LOG_INFO, "内存：权重 %s，评测工作区 %s（一批 %lld token，含键值），量化时临时 %s，合计约 %s",
             str_bytes(a, sizeof a, (double)weights), str_bytes(b, sizeof b, (double)work),
             (long long)(perplexity_batch(p, CPU_BATCH_ROWS) * p->window), str_bytes(d, sizeof d, (double)block),
             str_bytes(f, sizeof f, (double)(weights + (work > block ? work : block))));
    log_line(LOG_INFO, "解码时键值缓存（未量化）：每 token %s",
             str_bytes(a, sizeof a, (double)session_kv_bytes_per_token(c, run_kv_dtype(&x->config.run))));
    double per_token = 2.0 * ((double)arch_linear_params(c) + (double)(c->vocab * c->hidden)) +
                       2.0 * (double)(c->n_layers * c->n_heads * c->head_dim * p->window);
    log_line(LOG_TIME, "预计评测 %s（本机矩阵乘现测 %.0f GFLOP/s，每 token %.0f MFLOP）",
             str_seconds(s, sizeof s, per_token * (double)tokens / rate), rate / 1e9,
             per_token / 1e6);
    return true;
}

static void print_files(const Experiment *x) {
    const WeightStore *w = &x->model.weights;
    for (size_t i = 0; i < w->n_shards; i++) {
        char size[32];
        log_line(LOG_LOAD, "权重 %s（%s，%zu 个张量）", w->shards[i].path,
                 str_bytes(size, sizeof size, (double)w->shards[i].map.size),
                 w->shards[i].n_tensors);
    }
}

static bool print_baseline(const Experiment *x, Err *e) {
    bool missing;
    if (experiment_is_baseline(x) || pretrained_is(x->config.method)) return true;
    if (!baseline_missing(x, &missing, e)) return false;
    log_line(LOG_INFO, "fp16 基线：%s", !missing ? "已有同样数据与设置的存档"
                                        : x->config.run.baseline == BASELINE_OFF
                                            ? "没有，eval.baseline=off，不作比较"
                                            : "没有，将先跑一次 fp16（时间与内存另计）");
    return true;
}

bool run_plan(const RunRequest *r, Err *e) {
    Experiment x;
    ConfigRequest request = r->config;
    request.no_download = true;
    bool ok = experiment_open(&x, &request, e);
    if (ok) {
        Protocol p;
        QSpec spec;
        int64_t tokens = 0;
        json_t *merged = config_merged_json(&x.config);
        bool quantized = x.config.track != 'C' && config_weight_spec(merged, &spec);
        print_config(merged);
        json_decref(merged);
        print_files(&x);
        log_line(LOG_LOAD, "%s：%lld 层，隐藏维 %lld，权重存放 %s，BOS：%s", x.model.config.arch->name,
                 (long long)x.model.config.n_layers, (long long)x.model.config.hidden,
                 dtype_name(x.model.dtype), tokenizer_bos_policy(x.tokenizer));
        if (quantized) print_groups(&x.model, &spec);
        if (x.has_calib)
            log_line(LOG_INFO, "校准：%s，%lld 个样本 × %lld token，种子 %lld，sha256 %.16s…",
                     x.calib.dataset, (long long)x.calib.n_samples, (long long)x.calib.length,
                     (long long)x.calib.seed, x.calib.sha256);
        ok = protocol_parse(&p, x.protocol, e) && print_texts(&x, &p, &tokens, e) &&
             print_tasks(&x, &tokens, e) &&
             print_cost(&x, &p, tokens, quantized ? &spec : NULL, e);
        ok = ok && print_baseline(&x, e);
        if (ok) {
            Arena a = {0};
            const char *path = NULL;
            json_t *old = result_find(x.results_dir, x.run_key, &path, &a);
            if (old) log_line(LOG_INFO, "同样输入的结果已经有了：%s", path);
            json_decref(old);
            arena_free(&a);
            log_line(LOG_OK, "检查通过，没有计算任何东西。run_key %.16s…", x.run_key);
        }
    }
    experiment_close(&x);
    return ok;
}
