/* base — 方法可用的助手的实现
 * 循环在这里，算法在方法文件里；每个线性层的临时内存随层释放，所以峰值只比装好的权重多一层。 */
#include "methods/base.h"

#include <stdio.h>
#include <string.h>

#include "methods/job.h"

const void *job_options(const QuantJob *job) {
    return job->options;
}
Backend *job_backend(QuantJob *job) {
    return job->model->backend;
}
Arena *job_scratch(QuantJob *job) {
    return &job->scratch;
}
Arena *job_model_arena(QuantJob *job) {
    return &job->model->arena;
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

bool job_keep_dense(QuantJob *job, Linear *l, Tensor w, Err *e) {
    return model_pack_linear(job->model, l, tensor_data_f32(w), &job->model->arena, e);
}

/* 由存放形式反量化，与原权重比较。 */
static bool measure_error(QuantJob *job, Linear *l, const float *w, Err *e) {
    size_t n = (size_t)l->rows * (size_t)l->cols;
    float *back = ARENA_ARRAY(&job->scratch, float, n, e);
    if (!back) return false;
    op_dequantize(job->model->backend, tensor_f32(back, l->rows, l->cols), &l->q);
    if (!backend_check(job->model->backend, e)) return false;
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)back[i] - (double)w[i];
        sum += d * d;
    }
    l->weight_mse = sum / (double)n;
    job->squared_error += sum;
    job->n_quantized += (int64_t)n;
    return true;
}

void job_note_remainder(QuantJob *job, const QSpec *spec, int64_t cols) {
    int64_t g = spec->group_size, rest = g > 0 && g < cols ? cols % g : 0;
    if (rest)
        job_fallback(job, "组宽 %lld 不整除 %lld 列，每行末组取 %lld 列", (long long)g, (long long)cols,
                     (long long)rest);
}

static bool quantize_linear(QuantJob *job, Linear *l, const InputStats *st, LinearFn fn, Err *e) {
    int64_t n = l->rows * l->cols;
    float *w = ARENA_ARRAY(&job->scratch, float, n, e);
    float *original = ARENA_ARRAY(&job->scratch, float, n, e); /* fn 可能改写 w */
    if (!w || !original || !model_load_linear(job->model, l, w, e)) return false;
    memcpy(original, w, (size_t)n * sizeof *w);
    l->q = (QTensor){0}; /* 校准用的稠密形式到此为止 */
    if (!fn(job, l, tensor_f32(w, l->rows, l->cols), st, e)) return false;
    CHECK(l->q.data != NULL);
    if (l->q.dense != DT_NONE) return true;
    double t = clock_seconds();
    bool ok = measure_error(job, l, original, e);
    job->check_seconds += clock_seconds() - t;
    return ok;
}

/* 把第 layer 块以稠密形式装进 a，供校准前向。 */
static bool load_dense_block(Model *m, int64_t layer, Arena *a, Err *e) {
    if (!model_load_norms(m, layer, e)) return false;
    Arena tmp = {0};
    bool ok = true;
    for (LinearRole r = 0; ok && r < ROLE_COUNT; r++) {
        Linear *l = &m->blocks[layer].linears[r];
        ArenaMark mark = arena_mark(&tmp);
        float *w = ARENA_ARRAY(&tmp, float, l->rows * l->cols, e);
        ok = w && model_load_linear(m, l, w, e) && model_pack_linear(m, l, w, a, e);
        arena_rewind(&tmp, mark);
    }
    arena_free(&tmp);
    return ok;
}

static bool quantize_block(QuantJob *job, int64_t layer, CalibStream *s, unsigned kinds,
                           LinearFn fn, Err *e) {
    Model *m = job->model;
    Arena block = {0};
    InputStats stats[INPUT_COUNT];
    bool ok = true;
    if (kinds) {
        double t = clock_seconds();
        ok = load_dense_block(m, layer, &block, e) &&
             calib_stream_pass(s, layer, kinds, stats, &block, false, e);
        job->calib_seconds += clock_seconds() - t;
    }
    for (LinearRole r = 0; ok && r < ROLE_COUNT; r++) {
        Linear *l = &m->blocks[layer].linears[r];
        ArenaMark mark = arena_mark(&job->scratch);
        ok = interrupt_check(e) &&
             quantize_linear(job, l, kinds ? &stats[input_group(r)] : NULL, fn, e);
        if (!ok && e->code != ERR_INTERRUPTED) err_wrap(e, "%s", l->name);
        arena_rewind(&job->scratch, mark);
    }
    if (ok && kinds && layer + 1 < m->config.n_layers) {
        double t = clock_seconds();
        ok = calib_stream_pass(s, layer, 0, NULL, NULL, true, e);
        job->calib_seconds += clock_seconds() - t;
    }
    arena_free(&block);
    return ok;
}

bool quantize_each_linear(QuantJob *job, unsigned stats, LinearFn fn, Err *e) {
    Model *m = job->model;
    CalibStream s = {0};
    if (stats) {
        CHECK(job->calib != NULL);
        if (!model_load_embed(m, e) || !calib_stream_open(&s, m, job->calib, e)) return false;
    }
    Progress p = progress_start(LOG_QUANT, "量化", "块", m->config.n_layers);
    bool ok = true;
    for (int64_t i = 0; ok && i < m->config.n_layers; i++) {
        ok = quantize_block(job, i, &s, stats, fn, e);
        progress_step(&p, i + 1);
    }
    progress_end(&p);
    if (stats) calib_stream_close(&s);
    return ok;
}

bool job_run(QuantJob *job, const Method *method, const void *options, Model *model,
             const CalibSet *calib, Err *e) {
    job->method = method;
    job->options = options;
    job->model = model;
    job->calib = calib;
    CHECK(!method->calibrated || calib);
    return method->quantize(job, e) && backend_check(model->backend, e) && model_finish(model, e);
}

void job_close(QuantJob *job) {
    arena_free(&job->scratch);
    arena_free(&job->notes);
    *job = (QuantJob){0};
}
