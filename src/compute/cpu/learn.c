/* learn — OmniQuant 的内层循环：可学的钳位与它的反向，伪量化连同装包，线性层的反向 */
#include <math.h>

#include "compute/cpu/cpu.h"
#include "compute/cpu/search.h"

enum { GROUPS_PER_TASK = 2048 };

static float sigmoid(float x) {
    return 1 / (1 + expf(-x));
}
static float clampf(float x, float lo, float hi) {
    return x < lo ? lo : x > hi ? hi : x;
}

/* quantizer.py 的 per_token_dynamic_calibration。 */
static void grid_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const ClampJob *j = ctx;
    float top = (float)((1 << j->bits) - 1), half = (float)((1 << (j->bits - 1)) - 1);
    int64_t end = (task + 1) * GROUPS_PER_TASK < j->n ? (task + 1) * GROUPS_PER_TASK : j->n;
    for (int64_t g = task * GROUPS_PER_TASK; g < end; g++) {
        float lo = j->lo[g], hi = j->hi[g];
        if (j->low) {
            lo *= sigmoid(j->low[g]);
            hi *= sigmoid(j->high[g]);
        }
        float step = j->symmetric ? fmaxf(fabsf(hi), fabsf(lo)) / half : (hi - lo) / top;
        j->scale[g] = clampf(step, j->least, j->most);
        j->zero[g] = j->symmetric ? half : rintf(clampf(-lo / j->scale[g], -j->most, j->most));
    }
}

void cpu_clamp_grid(Backend *b, const ClampJob *job) {
    ClampJob j = *job;
    pool_run(((CpuBackend *)b->impl)->pool, (j.n - 1) / GROUPS_PER_TASK + 1, grid_task, &j);
}

/* d_scale → β、γ 与组的最小最大值的导数。 */
static void grad_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const ClampJob *j = ctx;
    float top = (float)((1 << j->bits) - 1), half = (float)((1 << (j->bits - 1)) - 1);
    int64_t end = (task + 1) * GROUPS_PER_TASK < j->n ? (task + 1) * GROUPS_PER_TASK : j->n;
    for (int64_t g = task * GROUPS_PER_TASK; g < end; g++) {
        float a = j->low ? sigmoid(j->low[g]) : 1, b = j->low ? sigmoid(j->high[g]) : 1;
        float lo = a * j->lo[g], hi = b * j->hi[g], d = j->d_scale[g], d_lo = -d / top, d_hi = d / top;
        if (j->symmetric) {
            bool low_wins = fabsf(lo) > fabsf(hi);
            d_lo = low_wins ? (lo < 0 ? -d : d) / half : 0;
            d_hi = low_wins ? 0 : (hi < 0 ? -d : d) / half;
        }
        if (j->scale[g] <= j->least || j->scale[g] >= j->most) d_lo = d_hi = 0; /* 被截住 */
        if (j->low) {
            j->d_low[g] = d_lo * lo * (1 - a);
            j->d_high[g] = d_hi * hi * (1 - b);
        }
        j->d_lo[g] = d_lo * a;
        j->d_hi[g] = d_hi * b;
    }
}

void cpu_clamp_grid_grad(Backend *b, const ClampJob *job) {
    ClampJob j = *job;
    pool_run(((CpuBackend *)b->impl)->pool, (j.n - 1) / GROUPS_PER_TASK + 1, grad_task, &j);
}

void cpu_fake_pack(Backend *b, QTensor *q, float *y, const float *x, const float *scale, const float *zero,
                   const QSpec *spec) {
    cpu_fake_quant(b, y, x, scale, zero, q->rows, q->cols, spec);
    cpu_pack_dense(b, q, y);
}

void cpu_linear_grad(Backend *b, const LinearGrad *j) {
    int64_t rows = j->w->rows, cols = j->w->cols;
    if (j->dw) cpu_matmul(b, j->dw, j->dy, j->x, rows, j->n, cols, true);
    if (!j->dx) return;
    if (!j->ready) cpu_dequantize(b, j->dense, j->w);
    if (b->err.code == ERR_NONE) cpu_matmul(b, j->dx, j->dy, j->dense, j->n, rows, cols, false);
}
