/* evaluator — 评测的实现
 * 数字都从 PplResult 抄进 JSON，不在这里另算。 */
#include "evaluator.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "model/session.h"
#include "result_writer.h"
#include "tasks/perplexity.h"
#include "tasks/stats.h"

const char *evaluate_protocol_name(const RunOptions *o, int64_t max_seq_len, char *buf,
                                   size_t cap) {
    if (strcmp(o->ppl_protocol, "auto") != 0) return o->ppl_protocol;
    int64_t len = 2048;
    while (len > 8 && len > max_seq_len) len /= 2;
    snprintf(buf, cap, "gptq-%lld", (long long)len);
    return buf;
}

static void warn(const Evaluation *v, const char *fmt, ...) PTQ_PRINTF(2, 3);
static void warn(const Evaluation *v, const char *fmt, ...) {
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    size_t i;
    json_t *old;
    json_array_foreach(v->warnings, i, old) if (strcmp(json_string_value(old), text) == 0) return; /* 退让后重做 */
    log_line(LOG_WARN, "%s", text);
    json_array_append_new(v->warnings, json_string(text));
}

static bool tokenize_text(const Evaluation *v, const TextData *t, TokenIds *out, Err *e) {
    if (!tokenizer_encode(v->tokenizer, t->data, t->len, true, out, e))
        return err_wrap(e, "%s", t->path);
    int64_t want = text_expected_tokens(t->sha256, tokenizer_sha256(v->tokenizer));
    if (want >= 0 && (size_t)want != out->n)
        return err_set(e, ERR_FORMAT, "%s: 分出 %zu 个 token，已知应为 %lld，分词器有误", t->path, out->n,
                       (long long)want);
    return session_check_ids(&v->model->config, out->ids, (int64_t)out->n, e);
}

json_t *baseline_file(const Evaluation *v, const char *run_key) {
    Arena a = {0};
    const char *path = NULL;
    json_t *found = result_find(v->results_dir, run_key, &path, &a);
    const char *slash = path ? strrchr(path, '/') : NULL;
    json_t *name = found && path ? json_string(slash ? slash + 1 : path) : json_null();
    json_decref(found);
    arena_free(&a);
    return name;
}

/* 对基线的比较。两者窗口数不同时只比共有的前若干个。 */
static json_t *baseline_json(const Evaluation *v, const PplResult *r, const Reference *ref,
                             Err *e) {
    int64_t n = r->n_windows < ref->n_windows ? r->n_windows : ref->n_windows;
    double mean, lo, hi, p;
    if (!stats_paired_bootstrap(r->window_nll, ref->window_nll, (size_t)n,
                                (uint64_t)v->options->seed, &mean, &lo, &hi, &p)) {
        err_set(e, ERR_MEMORY, "内存不足");
        return NULL;
    }
    json_t *kl = r->n_kl ? json_pack("{s:f, s:f, s:f, s:f, s:I}", "mean", r->kl_mean, "median",
                                     r->kl_median, "p99", r->kl_p99, "max", r->kl_max, "n",
                                     (json_int_t)r->n_kl)
                         : json_null();
    return json_pack("{s:s, s:o, s:I, s:{s:f, s:f, s:f, s:f}, s:f, s:o, s:o}", "run_key",
                     ref->run_key, "result_file", baseline_file(v, ref->run_key), "n_windows",
                     (json_int_t)n, "delta_nll", "mean", mean, "ci_low", lo, "ci_high", hi,
                     "p_value", p, "ppl_ratio", exp(mean), "kl", kl, "same_top1",
                     r->n_kl ? json_real(r->same_top1) : json_null());
}

static json_t *int_array(const int64_t *v, int64_t n) {
    json_t *a = json_array();
    for (int64_t i = 0; i < n; i++) json_array_append_new(a, json_integer(v[i]));
    return a;
}

/* 键值缓存：怎样算的、每 token 多少字节（全部层，窗口末尾的存量除以窗口长）。 */
static json_t *kv_json(const Evaluation *v, const Protocol *p, const PplResult *r) {
    const Model *m = v->model;
    const ModelConfig *c = &m->config;
    double n = (double)(r->n_windows * p->window);
    double codes = (double)r->kv.codes / n, params = (double)r->kv.params / n;
    double outliers = (double)r->kv.outliers / n, dense = (double)r->kv.dense / n;
    double total = codes + params + outliers + dense;
    double values = (double)(2 * c->n_layers * c->n_kv_heads * c->head_dim);
    return json_pack("{s:b, s:s?, s:s, s:f, s:f, s:{s:f, s:f, s:f, s:f}}", "quantized", m->kv != NULL,
                     "mode", m->kv ? KV_MODES[m->kv_mode] : NULL, "dtype",
                     dtype_name(kv_near_dtype(m)), "bytes_per_token", total,
                     "bits_per_value", 8 * total / values, "bytes", "codes", codes, "params",
                     params, "outliers", outliers, "unquantized", dense);
}

static json_t *ppl_json(const Evaluation *v, const EvalText *t, const Protocol *p,
                        const TokenIds *ids, const PplResult *r) {
    json_t *nll = json_array(), *first = json_array();
    for (int64_t i = 0; i < r->n_windows; i++) json_array_append_new(nll, json_real(r->window_nll[i]));
    for (size_t i = 0; i < ids->n && i < 16; i++)
        json_array_append_new(first, json_integer(ids->ids[i]));
    return json_pack(
        "{s:f, s:f, s:s, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:f, s:{s:I, s:f}, s:o, s:s, s:s, s:o, "
        "s:s, s:f, s:f, s:o, s:o}",
        "ppl", r->ppl, "ppl_gptq", r->ppl_gptq, "protocol", p->name, "nll_mean", r->nll_mean,
        "nll_stderr", r->nll_stderr, "ppl_stderr", r->ppl_stderr, "n_tokens", (json_int_t)ids->n,
        "n_windows", (json_int_t)r->n_windows, "n_windows_total", (json_int_t)r->n_windows_total,
        "n_scored", (json_int_t)r->n_scored, "median_window_nll", r->median_nll, "worst_window",
        "index", (json_int_t)r->worst_window, "nll", r->window_nll[r->worst_window],
        "outlier_windows", int_array(r->outliers, r->n_outliers), "text_path", t->text.path,
        "text_sha256", t->text.sha256, "first_ids", first, "bos", tokenizer_bos_policy(v->tokenizer),
        "seconds", r->seconds, "tok_per_s", r->tok_per_s, "window_nll", nll, "kv_cache",
        kv_json(v, p, r));
}

/* 指南 §10 的警告：量化没有作用、困惑度荒谬、离群窗口。 */
static void check_result(const Evaluation *v, const EvalText *t, const PplResult *r,
                         const Reference *ref) {
    double vocab = (double)v->model->config.vocab;
    if (r->ppl > vocab / 10)
        warn(v, "%s: PPL %.4g 大于词表大小的十分之一，模型几乎在乱猜：请检查分词器、BOS 与量化设置", t->text.name,
             r->ppl);
    if (r->n_outliers)
        warn(v, "%s: %lld 个窗口的 NLL 偏离中位数超过 5 倍稳健标准差（见结果的 outlier_windows）", t->text.name,
             (long long)r->n_outliers);
    if (!ref || v->is_baseline) return;
    int64_t n = r->n_windows < ref->n_windows ? r->n_windows : ref->n_windows;
    if (memcmp(r->window_nll, ref->window_nll, (size_t)n * sizeof(double)) != 0) return;
    if (v->model->kv && v->model->kv_mode == KV_MODE_PREFILL_FP)
        warn(v, "%s: eval.kv_mode=prefill_fp 的窗口一次预填，看到的都是未量化的键值，PPL 与基线相同", t->text.name);
    else
        warn(v, "%s: 量化后 PPL 与基线完全相同，量化没有起作用", t->text.name);
}

/* 基线运行：存档只在窗口数不少于旧档时更新。 */
static bool begin_archive(const Evaluation *v, const EvalText *t, const Protocol *p,
                          const Reference *old, int64_t n_windows, ReferenceWriter *w, Arena *a,
                          Err *e) {
    int64_t hidden = v->options->kl_windows < n_windows ? v->options->kl_windows : n_windows;
    if (old->map.data && old->n_windows >= n_windows && old->hidden_windows >= hidden) return true;
    return reference_begin(w, a, v->reference_dir, t->reference_key, protocol_scored(p),
                           v->model->config.hidden, e);
}

static bool has_reference(const Evaluation *v, const EvalText *t, const Protocol *p, bool *have,
                          Err *e) {
    TokenIds ids = {0};
    bool ok = tokenize_text(v, &t->text, &ids, e);
    int64_t n = ok ? protocol_windows(p, (int64_t)ids.n) : 0, limit = v->options->limit;
    token_ids_free(&ids);
    if (!ok) return false;
    if (limit && limit < n) n = limit;
    int64_t hidden = v->options->kl_windows < n ? v->options->kl_windows : n;
    Reference ref;
    *have = reference_open(&ref, v->reference_dir, t->reference_key, protocol_scored(p),
                           v->model->config.hidden) &&
            ref.n_windows >= n && ref.hidden_windows >= hidden;
    reference_close(&ref);
    return true;
}

bool evaluate_has_reference(const Evaluation *v, bool *have, Err *e) {
    Protocol p;
    *have = true;
    if (!protocol_parse(&p, v->protocol, e)) return false;
    for (size_t i = 0; *have && i < v->n_texts; i++)
        if (!has_reference(v, &v->texts[i], &p, have, e)) return false;
    return true;
}

static json_t *evaluate_text(const Evaluation *v, const EvalText *t, const Protocol *p, Arena *a,
                             TokenIds *ids, Err *e) {
    if (!tokenize_text(v, &t->text, ids, e)) return NULL;
    Reference ref;
    bool have = reference_open(&ref, v->reference_dir, t->reference_key, protocol_scored(p),
                               v->model->config.hidden);
    int64_t total = protocol_windows(p, (int64_t)ids->n), limit = v->options->limit;
    ReferenceWriter writer = {0};
    PplResult r;
    json_t *out = NULL;
    bool ok = !v->is_baseline || begin_archive(v, t, p, &ref, limit && limit < total ? limit : total,
                                               &writer, a, e);
    PplJob job = {.model = v->model, .protocol = p, .ids = ids->ids, .n_tokens = (int64_t)ids->n,
                  .limit = limit, .bos = tokenizer_adds_bos(v->tokenizer) ? tokenizer_bos(v->tokenizer) : -1,
                  .kl_windows = v->options->kl_windows,
                  .reference = have && !v->is_baseline ? &ref : NULL,
                  .writer = writer.file ? &writer : NULL};
    ok = ok && perplexity_run(&job, &r, a, e);
    if (ok && writer.file)
        ok = reference_commit(&writer, v->run_key, r.window_nll, r.n_windows, e);
    if (ok) {
        check_result(v, t, &r, have ? &ref : NULL);
        out = ppl_json(v, t, p, ids, &r);
        json_t *base = job.reference ? baseline_json(v, &r, &ref, e) : json_null();
        /* out 为 NULL 时 json_object_set_new 放掉 base，返回失败 */
        if (!base || json_object_set_new(out, "baseline", base) != 0) {
            if (e->code == ERR_NONE) err_set(e, ERR_MEMORY, "内存不足");
            json_decref(out);
            out = NULL;
        }
    }
    reference_abort(&writer);
    reference_close(&ref);
    return out;
}

json_t *evaluate_ppl(const Evaluation *v, Err *e) {
    Protocol p;
    if (!protocol_parse(&p, v->protocol, e)) return NULL;
    if (p.window > v->model->config.max_position)
        warn(v, "窗口 %lld 超过模型训练的最大长度 %lld，数字仅供参考", (long long)p.window,
             (long long)v->model->config.max_position);
    json_t *all = json_object();
    Arena a = {0};
    bool ok = all != NULL;
    for (size_t i = 0; ok && i < v->n_texts; i++) {
        TokenIds ids = {0};
        json_t *one = evaluate_text(v, &v->texts[i], &p, &a, &ids, e);
        ok = one && json_object_set_new(all, v->texts[i].text.name, one) == 0;
        token_ids_free(&ids);
    }
    arena_free(&a);
    if (ok) return all;
    if (e->code == ERR_NONE) err_set(e, ERR_MEMORY, "内存不足"); /* JSON 只会因此造不出来 */
    json_decref(all);
    return NULL;
}
