/* base — 方法可用的助手的实现
 * 循环在 base_walk.c，共同的选项在 base_options.c，算法在方法文件里。 */
#include "methods/base.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "methods/job.h"

const void *job_options(const QuantJob *job) {
    return job->options;
}
char job_track(const QuantJob *job) {
    return job->track ? job->track : 'A';
}
Backend *job_backend(QuantJob *job) {
    return job->model->backend;
}
Arena *job_scratch(QuantJob *job) {
    return &job->scratch;
}
Arena *job_host(QuantJob *job) {
    return &job->host;
}
Arena *job_model_arena(QuantJob *job) {
    return job->block_arena ? job->block_arena : &job->model->arena;
}
Arena *job_model_host(QuantJob *job) {
    return &job->model->meta;
}

void job_parallel(QuantJob *job, int64_t n, void (*fn)(void *ctx, int64_t task), void *ctx) {
    Backend *b = job->model->backend;
    b->ops->parallel(b, n, fn, ctx);
}

void job_fallback(QuantJob *job, const char *fmt, ...) {
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    for (size_t i = 0; i < job->n_fallbacks; i++)
        if (strcmp(job->fallbacks[i], text) == 0) return;
    if (job->n_fallbacks == job->cap_fallbacks) {
        size_t cap = job->cap_fallbacks ? 2 * job->cap_fallbacks : 8;
        const char **more = ARENA_ARRAY(&job->notes, const char *, cap, NULL);
        if (!more) return;
        if (job->n_fallbacks) memcpy(more, job->fallbacks, job->n_fallbacks * sizeof *more);
        job->fallbacks = more;
        job->cap_fallbacks = cap;
    }
    const char *copy = arena_strdup(&job->notes, text, NULL);
    if (copy) job->fallbacks[job->n_fallbacks++] = copy;
}

bool job_round_nearest(QuantJob *job, QTensor *q, Arena *a, Tensor w, const QSpec *spec, Err *e) {
    Backend *b = job->model->backend;
    int64_t rows = w.shape[0], cols = w.shape[1];
    if (!qtensor_new(q, a, *spec, rows, cols, e)) return false;
    Tensor scale = tensor_f32(NULL, rows, q->n_groups), zero = scale;
    scale.data = ARENA_ARRAY(&job->scratch, float, rows * q->n_groups, e);
    zero.data = ARENA_ARRAY(&job->scratch, float, rows * q->n_groups, e);
    if (!scale.data || !zero.data) return false;
    op_qparams(b, scale, zero, w, &q->spec);
    op_quantize(b, q, w, scale, zero);
    return backend_check(b, e);
}

bool job_quantize_nearest(QuantJob *job, Linear *l, Tensor w, const QSpec *spec, Err *e) {
    QTensor q;
    return job_round_nearest(job, &q, job_model_arena(job), w, spec, e) &&
           linear_set_quantized(l, &q);
}

bool job_set_kv(QuantJob *job, int64_t layer, const KvSpec *spec, Err *e) {
    Model *m = job->model;
    int64_t n = m->config.n_layers;
    if (!m->kv && !(m->kv = ARENA_ARRAY(&m->meta, KvSpec, n, e))) return false;
    for (int64_t l = layer < 0 ? 0 : layer; l < (layer < 0 ? n : layer + 1); l++) {
        m->kv[l] = *spec;
        if (!kv_spec_check(m, l, spec, e)) return false;
    }
    return true;
}

void job_drop_factor(QuantJob *job) {
    arena_free(&job->factor_arena);
    arena_free(&job->factor_host);
    job->factor_of = NULL;
}

enum { MAX_NAMED = 8 }; /* 死列至多说出这么多个 */

bool job_factor_hessian(QuantJob *job, const Linear *l, const InputStats *st, bool descending,
                        double damp, Hessian *h, Err *e) {
    if (job->factor_of != st || job->factor_descending != descending || job->factor_damp != damp) {
        job_drop_factor(job);
        job->factor_arena = backend_arena(job->model->backend);
        if (!hessian_factor(&job->factor, job->model->backend, &job->factor_arena, &job->factor_host,
                            st->gram, st->n, st->cols, descending, damp, e))
            return false;
        job->factor_of = st;
        job->factor_descending = descending;
        job->factor_damp = damp;
    }
    *h = job->factor;
    if (h->n_dead) {
        Str which = {0};
        int64_t shown = 0;
        for (int64_t i = 0; i < h->n; i++)
            if (h->dead[i] && shown++ < MAX_NAMED) /* 处理的次序里死列也是从小到大 */
                str_addf(&which, "%s%d", shown > 1 ? "、" : "", (int)h->perm[i]);
        job_fallback(job, "%s: %lld 个输入列在校准中恒为 0（第 %s%s 列，从 0 数），其权重置 0", l->name,
                     (long long)h->n_dead, which.data ? which.data : "", h->n_dead > MAX_NAMED ? "…" : "");
        str_free(&which);
    }
    if (h->damp > damp)
        job_fallback(job, "%s: Hessian 不正定，阻尼由 %g 升到 %g", l->name, damp, h->damp);
    return true;
}

bool job_keep_dense(QuantJob *job, Linear *l, Tensor w, Err *e) {
    if (job->model->stream) return model_stream_linear(job->model, l, e);
    return model_pack_linear(job->model, l, tensor_data_f32(w), job_model_arena(job), e);
}

bool job_run(QuantJob *job, const Method *method, const void *options, Model *model,
             const CalibSet *calib, Err *e) {
    job->method = method;
    job->options = options;
    job->model = model;
    job->calib = calib;
    job->scratch = backend_arena(model->backend);
    CHECK(!method->calibrated || calib);
    return method->quantize(job, e) && backend_check(model->backend, e) && model_finish(model, e);
}

void job_close(QuantJob *job) {
    job_drop_factor(job);
    arena_free(&job->scratch);
    arena_free(&job->host);
    arena_free(&job->notes);
    *job = (QuantJob){0};
}
