/* grad — 逐元素与逐行算子的反向、伪量化：切成块分给线程
 * 任务只切分输出的行（RMSNorm 权重的梯度切分列），所以结果与线程数无关。 */
#include "compute/cpu/cpu.h"
#include "compute/cpu/grad_kernels.h"
#include "compute/cpu/kernels.h"

enum { CHUNK = 16384 /* 一个任务的元素数，16 的倍数 */, WEIGHT_COLS = 64 };

typedef struct GradJob {
    const GradKernels *k;
    float *out, *out2, *r;
    const float *dy, *x, *w;
    int64_t n, d, per_task;
    float eps, top;
} GradJob;

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static void run(Backend *b, GradJob *j, int64_t row_elems, void (*fn)(void *, int64_t, int)) {
    CpuBackend *c = b->impl;
    j->k = c->kernels->grad;
    j->per_task = row_elems >= CHUNK ? 1 : CHUNK / row_elems;
    pool_run(c->pool, (j->n - 1) / j->per_task + 1, fn, j);
}

static void rmsnorm_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const GradJob *j = ctx;
    int64_t end = min64(j->n, (task + 1) * j->per_task);
    for (int64_t i = task * j->per_task; i < end; i++)
        j->r[i] = j->k->rmsnorm_row(j->out + i * j->d, j->dy + i * j->d, j->x + i * j->d, j->w,
                                    j->d, j->eps);
}

static void rmsnorm_weight_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const GradJob *j = ctx;
    int64_t c = task * WEIGHT_COLS;
    j->k->rmsnorm_weight(j->out2 + c, j->dy + c, j->x + c, j->r, j->n, j->d,
                         min64(WEIGHT_COLS, j->d - c));
}

void cpu_rmsnorm_grad(Backend *b, float *dx, float *dweight, const float *dy, const float *x,
                      const float *weight, int64_t n, int64_t d, float eps) {
    CpuBackend *c = b->impl;
    GradJob j = {.out = dx, .out2 = dweight, .dy = dy, .x = x, .w = weight, .n = n, .d = d,
                 .eps = eps, .r = cpu_scratch(b, 0, (size_t)n * sizeof *dx)};
    if (!j.r) return;
    run(b, &j, d, rmsnorm_task);
    if (dweight) pool_run(c->pool, (d - 1) / WEIGHT_COLS + 1, rmsnorm_weight_task, &j);
}

static void silu_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const GradJob *j = ctx;
    int64_t i = task * j->per_task;
    j->k->silu_mul(j->out + i, j->out2 + i, j->dy + i, j->x + i, j->w + i,
                   min64(j->per_task, j->n - i));
}

void cpu_silu_mul_grad(Backend *b, float *dgate, float *dup, const float *dy, const float *gate,
                       const float *up, int64_t n) {
    GradJob j = {.out = dgate, .out2 = dup, .dy = dy, .x = gate, .w = up, .n = n};
    run(b, &j, 1, silu_task);
}

static void round_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const GradJob *j = ctx;
    int64_t end = min64(j->n, (task + 1) * j->per_task);
    float top = j->top;
    for (int64_t i = task * j->per_task; i < end; i++) {
        const float *x = j->x + i * j->d;
        float *d = j->out + i * j->d, lo, hi, ds, zero = top + 1;
        j->k->range_row(&lo, &hi, x, j->d, j->d);
        float m = -lo > hi ? -lo : hi, s = m / top;
        if (!(m >= 1e-5f)) continue; /* s 取了下限，与 x 无关 */
        j->k->fake_quant_grad_row(NULL, &ds, d, x, &s, &zero, j->d, j->d, 2 * top + 1);
        int64_t at = 0;
        while (at + 1 < j->d && x[at] != m && x[at] != -m) at++;
        d[at] += (x[at] < 0 ? -ds : ds) / top;
    }
}

void cpu_round_act_grad(Backend *b, float *d, const float *x, int64_t n, int64_t cols, int bits) {
    GradJob j = {.out = d, .x = x, .n = n, .d = cols, .top = (float)((1 << (bits - 1)) - 1)};
    run(b, &j, cols, round_task);
}

/* 每组一个数的表：按行切分。 */
typedef struct GroupJob {
    const GradKernels *k;
    void (*row)(const struct GroupJob *j, int64_t row);
    float *out, *out2;
    const float *dy, *x, *scale, *zero; /* 或：行、列的因子；最小、最大值的导数 */
    const float *lo, *hi;
    int64_t rows, cols, group, n_groups, per_task;
    float top;
} GroupJob;

static void range_row(const GroupJob *j, int64_t r) {
    j->k->range_row(j->out + r * j->n_groups, j->out2 + r * j->n_groups, j->x + r * j->cols,
                    j->cols, j->group);
}
static void quant_row(const GroupJob *j, int64_t r) {
    int64_t g = r * j->n_groups, c = r * j->cols;
    j->k->fake_quant_row(j->out + c, j->x + c, j->scale + g, j->zero + g, j->cols, j->group,
                         j->top);
}
static void quant_grad_row(const GroupJob *j, int64_t r) {
    int64_t g = r * j->n_groups, c = r * j->cols;
    j->k->fake_quant_grad_row(j->out ? j->out + c : NULL, j->out2 + g, j->dy + c, j->x + c,
                              j->scale + g, j->zero + g, j->cols, j->group, j->top);
}

static void range_grad_row(const GroupJob *j, int64_t r) {
    const float *x = j->x + r * j->cols;
    float *dx = j->out + r * j->cols;
    for (int64_t g = r * j->n_groups, c = 0; c < j->cols; g++) {
        int64_t end = min64(c + j->group, j->cols);
        int n_lo = 0, n_hi = 0;
        for (int64_t i = c; i < end; i++) n_lo += x[i] == j->lo[g], n_hi += x[i] == j->hi[g];
        for (; c < end; c++) {
            if (x[c] == j->lo[g]) dx[c] += j->scale[g] / (float)n_lo;
            if (x[c] == j->hi[g]) dx[c] += j->zero[g] / (float)n_hi;
        }
    }
}
static void scale_row(const GroupJob *j, int64_t r) {
    float row = j->scale ? j->scale[r] : 1;
    for (int64_t c = 0; c < j->cols; c++)
        j->out[r * j->cols + c] = j->x[r * j->cols + c] * (row * j->zero[c]);
}
static void scale_grad_row(const GroupJob *j, int64_t r) {
    const float *dy = j->dy + r * j->cols, *x = j->x + r * j->cols;
    float sum = 0;
    for (int64_t c = 0; c < j->cols; c++) sum += dy[c] * x[c] * j->zero[c];
    j->out[r] = sum;
}

static void group_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const GroupJob *j = ctx;
    int64_t end = min64(j->rows, (task + 1) * j->per_task);
    for (int64_t r = task * j->per_task; r < end; r++) j->row(j, r);
}

static void run_groups(Backend *b, GroupJob *j) {
    CpuBackend *c = b->impl;
    j->k = c->kernels->grad;
    j->n_groups = (j->cols - 1) / j->group + 1;
    j->per_task = j->cols >= CHUNK ? 1 : CHUNK / j->cols;
    pool_run(c->pool, (j->rows - 1) / j->per_task + 1, group_task, j);
}

void cpu_group_range(Backend *b, float *lo, float *hi, const float *x, int64_t rows, int64_t cols,
                     int64_t group) {
    GroupJob j = {.row = range_row, .out = lo, .out2 = hi, .x = x, .rows = rows, .cols = cols,
                  .group = group};
    run_groups(b, &j);
}

void cpu_group_range_grad(Backend *b, float *dx, const float *x, const float *lo, const float *hi,
                          const float *d_lo, const float *d_hi, int64_t rows, int64_t cols,
                          int64_t group) {
    GroupJob j = {.row = range_grad_row, .out = dx, .x = x, .lo = lo, .hi = hi, .scale = d_lo,
                  .zero = d_hi, .rows = rows, .cols = cols, .group = group};
    run_groups(b, &j);
}

void cpu_scale(Backend *b, float *y, const float *x, const float *row, const float *col,
               int64_t rows, int64_t cols) {
    GroupJob j = {.row = scale_row, .out = y, .x = x, .scale = row, .zero = col, .rows = rows,
                  .cols = cols, .group = cols};
    run_groups(b, &j);
}

/* 一段列：Σ_r 依次累加。 */
static void scale_cols_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const GroupJob *j = ctx;
    int64_t c0 = task * WEIGHT_COLS, width = min64(WEIGHT_COLS, j->cols - c0);
    float sum[WEIGHT_COLS] = {0};
    for (int64_t r = 0; r < j->rows; r++) {
        const float *dy = j->dy + r * j->cols + c0, *x = j->x + r * j->cols + c0;
        for (int64_t c = 0; c < width; c++) sum[c] += dy[c] * x[c] * j->scale[r];
    }
    for (int64_t c = 0; c < width; c++) j->out2[c0 + c] = sum[c];
}

void cpu_scale_grad(Backend *b, float *d_row, float *d_col, const float *dy, const float *x,
                    const float *row, const float *col, int64_t rows, int64_t cols) {
    CpuBackend *cpu = b->impl;
    GroupJob j = {.row = scale_grad_row, .out = d_row, .out2 = d_col, .dy = dy, .x = x,
                  .scale = row, .zero = col, .rows = rows, .cols = cols, .group = cols};
    run_groups(b, &j);
    pool_run(cpu->pool, (cols - 1) / WEIGHT_COLS + 1, scale_cols_task, &j);
}

void cpu_fake_quant(Backend *b, float *y, const float *x, const float *scale, const float *zero,
                    int64_t rows, int64_t cols, const QSpec *spec) {
    GroupJob j = {.row = quant_row, .out = y, .x = x, .scale = scale, .zero = zero, .rows = rows,
                  .cols = cols, .group = qspec_group_size(spec, cols),
                  .top = (float)((1 << spec->bits) - 1)};
    run_groups(b, &j);
}

void cpu_fake_quant_grad(Backend *b, float *dx, float *dscale, const float *dy, const float *x,
                         const float *scale, const float *zero, int64_t rows, int64_t cols,
                         const QSpec *spec) {
    GroupJob j = {.row = quant_grad_row, .out = dx, .out2 = dscale, .dy = dy, .x = x,
                  .scale = scale, .zero = zero, .rows = rows, .cols = cols,
                  .group = qspec_group_size(spec, cols), .top = (float)((1 << spec->bits) - 1)};
    run_groups(b, &j);
}
