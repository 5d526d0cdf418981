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
    return model_pack_linear(job->model, l, tensor_data_f32(w), e);
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

static bool quantize_linear(QuantJob *job, Linear *l, LinearFn fn, Err *e) {
    int64_t n = l->rows * l->cols;
    float *w = ARENA_ARRAY(&job->scratch, float, n, e);
    float *original = ARENA_ARRAY(&job->scratch, float, n, e); /* fn 可能改写 w */
    if (!w || !original || !model_load_linear(job->model, l, w, e)) return false;
    memcpy(original, w, (size_t)n * sizeof *w);
    if (!fn(job, l, tensor_f32(w, l->rows, l->cols), e)) return false;
    CHECK(l->q.data != NULL);
    if (l->q.dense != DT_NONE) return true;
    double t = clock_seconds();
    bool ok = measure_error(job, l, original, e);
    job->stats_seconds += clock_seconds() - t;
    return ok;
}

bool quantize_each_linear(QuantJob *job, LinearFn fn, Err *e) {
    Model *m = job->model;
    Progress p = progress_start(LOG_QUANT, "量化", "块", m->config.n_layers);
    bool ok = true;
    for (int64_t i = 0; ok && i < m->config.n_layers; i++) {
        for (LinearRole r = 0; ok && r < ROLE_COUNT; r++) {
            Linear *l = &m->blocks[i].linears[r];
            ArenaMark mark = arena_mark(&job->scratch);
            ok = interrupt_check(e) && quantize_linear(job, l, fn, e);
            if (!ok && e->code != ERR_INTERRUPTED) err_wrap(e, "%s", l->name);
            arena_rewind(&job->scratch, mark);
        }
        progress_step(&p, i + 1);
    }
    progress_end(&p);
    return ok;
}

bool job_run(QuantJob *job, const Method *method, const void *options, Model *model, Err *e) {
    job->method = method;
    job->options = options;
    job->model = model;
    return method->quantize(job, e) && backend_check(model->backend, e) && model_finish(model, e);
}

void job_close(QuantJob *job) {
    arena_free(&job->scratch);
    arena_free(&job->notes);
    *job = (QuantJob){0};
}
