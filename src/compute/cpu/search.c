/* search — AWQ 的内层循环：按行相除、二次型、截断的搜索
 * 截断：各步一起算，第 k 步的第 r 行放在 k·rows+r 行；量化、反量化、乘 G 都是现成的算子，一次至多 CLIP_CELLS 个权重
 * （各步的各份都在二级缓存里，内存也只要一次）。 */
#include "compute/cpu/search.h"

#include <math.h>

#include "compute/cpu/linear.h"

enum {
    CLIP_CELLS = 1 << 13,
    QUAD_COLS = 256 /* QT_PANEL 的倍数 */
};

typedef struct DivideJob {
    float *w;
    const float *s;
    int64_t cols;
} DivideJob;

static void divide_task(void *ctx, int64_t row, int thread) {
    (void)thread;
    const DivideJob *j = ctx;
    for (int64_t c = row * j->cols; c < (row + 1) * j->cols; c++) j->w[c] /= j->s[row];
}

void cpu_divide_rows(Backend *b, float *w, const float *s, int64_t rows, int64_t cols) {
    DivideJob j = {w, s, cols};
    pool_run(((CpuBackend *)b->impl)->pool, rows, divide_task, &j);
}

/* y[:, c0..c1) = d[:, k0..k1)·G[c0..c1, k0..k1)ᵀ。返回: Σ y∘d。 */
static double cross(Backend *b, const float *d, const QTensor *g, float *y, int64_t rows, int64_t c0,
                    int64_t c1, int64_t k0, int64_t k1) {
    CpuBackend *cpu = b->impl;
    int64_t cols = g->cols;
    LinearJob j = {.k = cpu->kernels->gemm, .cpu = cpu, .n_threads = b->n_threads, .n = rows,
                   .tiles = cpu->kernels->gemm->tiles, .w = g, .direct = true, .panel0 = c0 / QT_PANEL,
                   .n_out = c1 - c0, .y = y + c0, .ldy = cols, .x = (const char *)(d + k0),
                   .x_stride = cols, .steps = k1 - k0, .step0 = k0, .w_steps = cols};
    linear_plan(&j);
    if (!linear_gemm(b, &j)) return 0;
    double sum = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = c0; c < c1; c++) sum += (double)y[r * cols + c] * (double)d[r * cols + c];
    return sum;
}

/* G 对称：对角线以外的块只乘一半，算两次。 */
double cpu_quadratic(Backend *b, const float *d, const QTensor *g, float *tmp, int64_t rows, int64_t cols) {
    double sum = 0;
    for (int64_t c = 0; c < cols && b->err.code == ERR_NONE; c += QUAD_COLS) {
        int64_t end = min_i64(c + QUAD_COLS, cols);
        sum += cross(b, d, g, tmp, rows, c, end, c, end);
        if (c) sum += 2 * cross(b, d, g, tmp, rows, c, end, 0, c);
    }
    return sum;
}

/* 一批行。clipped、d、y 都是 (steps·rows, width)。 */
typedef struct ClipPart {
    const ClipJob *job;
    float *w;
    int64_t rows;
    float *clipped, *d, *y, *limit;
} ClipPart;

static float clamp(float x, float top) {
    return x > top ? top : x < -top ? -top : x;
}

/* 一行的各个候选。 */
static void cut_task(void *ctx, int64_t r, int thread) {
    (void)thread;
    const ClipPart *p = ctx;
    const ClipJob *j = p->job;
    const float *row = p->w + r * j->ld;
    float top = 0;
    for (int64_t c = 0; c < j->width; c++) top = fabsf(row[c]) > top ? fabsf(row[c]) : top;
    for (int64_t k = 0; k < j->steps; k++) {
        int64_t i = k * p->rows + r;
        p->limit[i] = top * (float)(1 - (double)k / (double)j->grid);
        for (int64_t c = 0; c < j->width; c++) p->clipped[i * j->width + c] = clamp(row[c], p->limit[i]);
    }
}

/* d = Q(clamp(w)) − w，一行的各个候选。 */
static void subtract_task(void *ctx, int64_t r, int thread) {
    (void)thread;
    const ClipPart *p = ctx;
    const ClipJob *j = p->job;
    for (int64_t i = r; i < j->steps * p->rows; i += p->rows)
        for (int64_t c = 0; c < j->width; c++) p->d[i * j->width + c] -= p->w[r * j->ld + c];
}

/* 取误差 Σ d·y 最小的一步的界（同样的取先），就地截断。 */
static void pick_task(void *ctx, int64_t r, int thread) {
    (void)thread;
    const ClipPart *p = ctx;
    int64_t width = p->job->width;
    float *to = p->w + r * p->job->ld, least = INFINITY, best = p->limit[r];
    for (int64_t i = r; i < p->job->steps * p->rows; i += p->rows) {
        float sum = 0;
        for (int64_t c = 0; c < width; c++) sum += p->d[i * width + c] * p->y[i * width + c];
        if (sum < least) least = sum, best = p->limit[i];
    }
    for (int64_t c = 0; c < width; c++) to[c] = clamp(to[c], best);
}

static void clip_part(Backend *b, Arena *a, const ClipJob *job, float *w, int64_t rows) {
    CpuPool *pool = ((CpuBackend *)b->impl)->pool;
    int64_t n = rows * job->steps, width = job->width;
    ClipPart p = {.job = job, .w = w, .rows = rows};
    QTensor q;
    p.clipped = ARENA_ARRAY(a, float, n * width, &b->err);
    p.d = ARENA_ARRAY(a, float, n * width, &b->err);
    p.y = ARENA_ARRAY(a, float, n * width, &b->err);
    p.limit = ARENA_ARRAY(a, float, n, &b->err);
    float *scale = ARENA_ARRAY(a, float, n, &b->err), *zero = ARENA_ARRAY(a, float, n, &b->err);
    if (!p.clipped || !p.d || !p.y || !p.limit || !scale || !zero ||
        !qtensor_new(&q, a, job->spec, n, width, &b->err))
        return;
    pool_run(pool, rows, cut_task, &p);
    cpu_qparams(b, scale, zero, p.clipped, n, width, &q.spec);
    cpu_quantize(b, &q, p.clipped, scale, zero);
    cpu_dequantize(b, p.d, &q);
    pool_run(pool, rows, subtract_task, &p);
    cpu_linear_exact(b, p.y, p.d, n, job->gram);
    if (b->err.code == ERR_NONE) pool_run(pool, rows, pick_task, &p);
}

/* rows 行所需的内存（宁多勿少）：clipped、d、y、码，limit、scale、zero。 */
static size_t clip_bytes(const ClipJob *job, int64_t rows) {
    int64_t width = (job->width + QT_KBLOCK - 1) / QT_KBLOCK * QT_KBLOCK;
    return (size_t)((rows + QT_PANEL) * job->steps * (4 * width + 6) + 4096) * sizeof(float);
}

void cpu_clip(Backend *b, const ClipJob *job) {
    int64_t most = CLIP_CELLS / job->width > 1 ? CLIP_CELLS / job->width : 1;
    Arena a = backend_arena(b);
    if (!arena_reserve(&a, clip_bytes(job, job->rows < most ? job->rows : most), &b->err)) return;
    for (int64_t r = 0; r < job->rows && b->err.code == ERR_NONE; r += most) {
        ArenaMark mark = arena_mark(&a);
        clip_part(b, &a, job, job->w + r * job->ld, job->rows - r < most ? job->rows - r : most);
        arena_rewind(&a, mark);
    }
    arena_free(&a);
}
