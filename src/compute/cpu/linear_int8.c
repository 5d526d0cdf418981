/* linear_int8 — 激活也量化的线性层
 * 先把激活逐行取整为 s8（每行记 s 与编码之和），再走整数矩阵乘：
 * y = (Σ code·x − zero·Σx)·(s_w·s_x) + bias，括号内是 int32 的精确值。权重的 INT8 面板就是 VNNI 的操作数，不展开。 */
#include "compute/cpu/linear.h"

enum { ROUND_TASK = 64 * 1024 }; /* 一个取整任务的元素数 */

typedef struct ActJob {
    const GemmKernels *k;
    const float *x;
    float *rounded; /* 就地取整时的去处 */
    ActRows out;
    int64_t n, cols, rows_per_task;
    ActKind kind;
    int top;     /* 2^(bits-1)−1 */
    float fixed; /* ACT_TENSOR、ACT_STATIC 的 s */
} ActJob;

/* s = max(max|x|, 1e-5)·(1/top)；NaN 传出。 */
static float act_scale(float absmax, int top) {
    return (absmax < 1e-5f ? 1e-5f : absmax) * (1.0f / (float)top);
}

/* 各行的 max|x|，暂存在 scale 里。 */
static void absmax_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const ActJob *j = ctx;
    int64_t end = min_i64((task + 1) * j->rows_per_task, j->n);
    for (int64_t r = task * j->rows_per_task; r < end; r++)
        j->out.scale[r] = j->k->act_absmax(j->x + r * j->cols, j->cols);
}

/* 取整各行；scale 里已有 max|x|（ACT_TENSOR）或这里现求。非有限的激活使 s 为 NaN，于是输出也是 NaN。 */
static void round_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const ActJob *j = ctx;
    int64_t end = min_i64((task + 1) * j->rows_per_task, j->n);
    for (int64_t r = task * j->rows_per_task; r < end; r++) {
        const float *x = j->x + r * j->cols;
        float m = j->kind == ACT_TENSOR ? j->out.scale[r] : j->k->act_absmax(x, j->cols);
        float s = j->kind == ACT_TOKEN ? act_scale(m, j->top) : j->fixed + (m - m);
        if (j->rounded) {
            j->k->act_round(j->rounded + r * j->cols, j->cols, s, j->top);
            continue;
        }
        j->out.scale[r] = s;
        j->out.sum[r] = j->k->act_codes(j->out.codes + r * j->out.stride, x, j->cols, s, j->top);
    }
}

static void run_rounding(Backend *b, ActJob *j, const ActQuant *act) {
    CpuBackend *cpu = b->impl;
    j->k = cpu->kernels->gemm;
    j->kind = act->kind;
    j->top = (1 << (act->bits - 1)) - 1;
    j->fixed = act->scale;
    j->rows_per_task = max_i64(1, ROUND_TASK / j->cols);
    int64_t tasks = ceil_div(j->n, j->rows_per_task);
    if (j->kind == ACT_TENSOR) {
        float m = 0;
        pool_run(cpu->pool, tasks, absmax_task, j);
        for (int64_t r = 0; r < j->n; r++)
            if (!(j->out.scale[r] <= m)) m = j->out.scale[r]; /* NaN 也留下 */
        j->fixed = act_scale(m, j->top);
    }
    pool_run(cpu->pool, tasks, round_task, j);
}

void cpu_linear_int8(Backend *b, const LinearOut *out, int n_out, const float *x, int64_t n,
                     const ActQuant *act) {
    CpuBackend *cpu = b->impl;
    for (int i = 0; i < n_out; i++) /* 换过列序的各自算 */
        if (out[i].w->perm && n_out > 1) {
            for (i = 0; i < n_out; i++) cpu_linear_int8(b, &out[i], 1, x, n, act);
            return;
        }
    const QTensor *w = out[0].w;
    if (w->perm) x = linear_permute(b, x, n, w);
    if (!x) return;
    int64_t stride = ceil_div(w->cols, QT_KBLOCK) * QT_KBLOCK;
    char *space = cpu_slot(b, 2 * b->n_threads, (size_t)n * ((size_t)stride + 8));
    if (!space) return;
    ActJob a = {.x = x, .n = n, .cols = w->cols};
    a.out = (ActRows){.codes = (int8_t *)space, .stride = stride,
                      .scale = (float *)(space + n * stride),
                      .sum = (int32_t *)(space + n * (stride + 4))};
    run_rounding(b, &a, act);
    if (n == 1) {
        LinearPart parts[LINEAR_OUT_MAX];
        for (int i = 0; i < n_out; i++)
            parts[i] = (LinearPart){.y = out[i].y, .w = out[i].w, .bias = out[i].bias,
                                    .row1 = out[i].w->rows};
        linear_row_int8(b, parts, n_out, &a.out);
        return;
    }
    for (int i = 0; i < n_out; i++) {
        int64_t rows = out[i].w->rows;
        LinearJob j = {.k = cpu->kernels->gemm, .cpu = cpu, .n_threads = b->n_threads,
                       .y = out[i].y, .ldy = rows, .x = space, .x_stride = stride / 4, .n = n,
                       .n_out = rows, .w = out[i].w, .bias = out[i].bias, .act = &a.out,
                       .tiles = cpu->kernels->gemm->tiles_int8, .direct = true, .steps = stride / 4};
        linear_plan(&j);
        if (!linear_gemm(b, &j)) return;
    }
}

void cpu_round_int(Backend *b, float *x, int64_t n, int64_t d, const ActQuant *act) {
    ActJob a = {.x = x, .rounded = x, .n = n, .cols = d};
    if (act->kind == ACT_TENSOR) {
        a.out.scale = cpu_slot(b, 2 * b->n_threads, (size_t)n * sizeof(float));
        if (!a.out.scale) return;
    }
    run_rounding(b, &a, act);
}
