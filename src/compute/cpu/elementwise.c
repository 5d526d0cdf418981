/* elementwise — 归一化、RoPE、激活函数、加法与数乘：切成块分给线程
 * 小的输入不值得唤醒线程，直接在主线程算；切分不影响任何元素的运算次序。 */
#include "compute/cpu/cpu.h"
#include "compute/cpu/elem_kernels.h"
#include "compute/cpu/grad_kernels.h"
#include "compute/cpu/kernels.h"

enum { CHUNK = 16384 }; /* 一个任务的元素数（16 的倍数） */

typedef struct ElemJob {
    const ElemKernels *kernels;
    float *y;
    const float *x, *u;   /* u: 权重、up 或 cos 表 */
    const float *sin_table;
    int64_t n;            /* 总行数或总元素数 */
    int64_t per_task;     /* 每任务的行数 */
    int64_t d, heads, half, first;
    bool interleaved;
    Activation f;
    float a;
    const NormSpec *norm;
} ElemJob;

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* 元素总数不足两块时就地做完 */
static void dispatch(Backend *b, ElemJob *j, int64_t row_elems,
                     void (*fn)(void *ctx, int64_t task, int thread)) {
    CpuBackend *c = b->impl;
    if (j->n <= 0) return;
    j->kernels = c->kernels->elem;
    j->per_task = row_elems >= CHUNK ? 1 : CHUNK / row_elems;
    int64_t n_tasks = (j->n + j->per_task - 1) / j->per_task;
    if (n_tasks > 1 && b->n_threads > 1) {
        pool_run(c->pool, n_tasks, fn, j);
        return;
    }
    for (int64_t t = 0; t < n_tasks; t++) fn(j, t, 0);
}

static void norm_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const ElemJob *j = ctx;
    const NormSpec *s = j->norm;
    int64_t end = min64(j->n, (task + 1) * j->per_task);
    for (int64_t i = task * j->per_task; i < end; i++) {
        int64_t at = i % s->period * j->d;
        float *y = j->y + i * j->d;
        const float *x = j->x + i * j->d, *w = s->weight ? s->weight + at : NULL;
        if (s->center)
            j->kernels->layernorm_row(y, x, w, s->bias ? s->bias + at : NULL, j->d, s->eps);
        else
            j->kernels->rmsnorm_row(y, x, w, j->d, s->eps);
    }
}

void cpu_norm(Backend *b, float *y, const float *x, const NormSpec *s, int64_t n, int64_t d) {
    ElemJob j = {.y = y, .x = x, .norm = s, .n = n, .d = d};
    if (d > 0) dispatch(b, &j, d, norm_task);
}

static void rope_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const ElemJob *j = ctx;
    int64_t end = min64(j->n, (task + 1) * j->per_task);
    for (int64_t i = task * j->per_task; i < end; i++) {
        const float *cos_row = j->u + (j->first + i) * j->half;
        const float *sin_row = j->sin_table + (j->first + i) * j->half;
        void (*turn)(float *, int64_t, const float *, const float *) =
            j->interleaved ? j->kernels->rope_pairs : j->kernels->rope_head;
        for (int64_t h = 0; h < j->heads; h++)
            turn(j->y + (i * j->heads + h) * j->d, j->half, cos_row, sin_row);
    }
}

void cpu_rope(Backend *b, float *x, int64_t n, int64_t heads, int64_t dim, int64_t half,
              const float *cos_table, const float *sin_table, int64_t first, bool interleaved) {
    CHECK(half >= 0 && 2 * half <= dim);
    ElemJob j = {.y = x, .u = cos_table, .sin_table = sin_table, .n = n, .d = dim, .heads = heads,
                 .half = half, .first = first, .interleaved = interleaved};
    if (heads > 0 && dim > 0) dispatch(b, &j, heads * dim, rope_task);
}

static void activate_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const ElemJob *j = ctx;
    int64_t i = task * j->per_task;
    j->kernels->activate(j->y + i, j->x + i, j->u ? j->u + i : NULL, min64(j->per_task, j->n - i),
                         j->f);
}

void cpu_activate(Backend *b, float *y, const float *gate, const float *up, int64_t n,
                  Activation f) {
    ElemJob j = {.y = y, .x = gate, .u = up, .n = n, .f = f};
    dispatch(b, &j, 1, activate_task);
}

static void multiply_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const ElemJob *j = ctx;
    int64_t i = task * j->per_task;
    j->kernels->multiply(j->y + i, j->x + i, j->a, min64(j->per_task, j->n - i));
}

void cpu_multiply(Backend *b, float *y, const float *x, float a, int64_t n) {
    ElemJob j = {.y = y, .x = x, .a = a, .n = n};
    dispatch(b, &j, 1, multiply_task);
}

static void add_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const ElemJob *j = ctx;
    int64_t i = task * j->per_task;
    j->kernels->add(j->y + i, j->x + i, min64(j->per_task, j->n - i));
}

void cpu_add(Backend *b, float *y, const float *x, int64_t n) {
    ElemJob j = {.y = y, .x = x, .n = n};
    dispatch(b, &j, 1, add_task);
}

typedef struct FeedbackTask {
    const FeedbackJob *job;
    const CpuKernels *kernels;
    void **scratch;
} FeedbackTask;

enum { LANES = 16 };

/* 16 行一起：转置成一行一路，算完转回。 */
static void feedback_task(void *ctx, int64_t task, int thread) {
    const FeedbackTask *t = ctx;
    const FeedbackJob *j = t->job;
    int64_t n = j->i2 - j->i1, row = task * LANES, rows = min64(LANES, j->rows - row);
    float *w = j->w + row * j->cols + j->i1, *w16 = t->scratch[thread], *err16 = w16 + n * LANES;
    t->kernels->grad->transpose(w16, LANES, w, j->cols, rows, n);
    t->kernels->elem->feedback_rows(w16, err16, n, j->u + j->i1 * j->cols + j->i1, j->cols,
                                    (int)rows, j->scale + row * j->n_groups,
                                    j->zero + row * j->n_groups, j->n_groups, j->group + j->i1,
                                    (float)((1 << j->bits) - 1));
    t->kernels->grad->transpose(w, j->cols, w16, LANES, n, rows);
    t->kernels->grad->transpose(j->err + row * n, n, err16, LANES, n, rows);
}

void cpu_feedback(Backend *b, const FeedbackJob *job) {
    CpuBackend *c = b->impl;
    size_t bytes = (size_t)(2 * (job->i2 - job->i1) * LANES) * sizeof(float);
    for (int i = 0; i < b->n_threads; i++)
        if (!cpu_scratch(b, i, bytes)) return;
    FeedbackTask t = {job, c->kernels, c->scratch};
    pool_run(c->pool, (job->rows + LANES - 1) / LANES, feedback_task, &t);
}
