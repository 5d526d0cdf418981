/* linear — 矩阵乘的一次调用（linear.c 的浮点路与 linear_int8.c 的整数路共用切法；单行在 linear_row.c） */
#ifndef PTQ_COMPUTE_CPU_LINEAR_H
#define PTQ_COMPUTE_CPU_LINEAR_H
#include "compute/cpu/gemm_kernels.h"

static inline int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}
static inline int64_t min_i64(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static inline int64_t max_i64(int64_t a, int64_t b) {
    return a > b ? a : b;
}

typedef struct LinearJob {
    const GemmKernels *k;
    CpuBackend *cpu;
    int n_threads;
    TileFn *const *tiles;
    float *y;
    int64_t ldy;
    const char *x;     /* f32 或 s8；bf16 时已排成小块（见 linear_packed_at） */
    int64_t x_stride;  /* 行距，4 字节为单位；0 表示已排成小块 */
    int64_t n, panel0; /* 行数；首面板 */
    int64_t n_out;     /* 输出列数 */
    const QTensor *w;
    const float *bias;
    const ActRows *act; /* 整数路：量化后的激活；浮点路为 NULL */
    bool bf16, direct;  /* direct: 权重本身就是展开块 */
    int64_t steps, kc;  /* 总步数与一段的步数 */
    int64_t step0, w_steps; /* 只取 direct 的权重的一段列：首步，整行的步数；w_steps 为 0 表示整行 */
    int64_t tiles_per_task, panels_per_task, panels_per_block, n_row_tasks;
} LinearJob;

static inline int64_t linear_tiles(const LinearJob *j) {
    return ceil_div(j->n, j->k->tile_rows);
}
/* 各行均分成激活小块：第 t 个小块的首行。 */
static inline int64_t linear_tile_row(const LinearJob *j, int64_t t) {
    return j->n * t / linear_tiles(j);
}

/* 已排成小块的激活：第 t 个小块、第 s 段的首址；小块内行距 TILE_X_STRIDE，一段至多 j->kc 步。 */
static inline char *linear_packed_at(const LinearJob *j, char *packed, int64_t t, int64_t s) {
    return packed + (t * ceil_div(j->steps, j->kc) + s) * j->k->tile_rows * TILE_X_STRIDE * 4;
}
static inline size_t linear_packed_bytes(const LinearJob *j) {
    return (size_t)(linear_tiles(j) * ceil_div(j->steps, j->kc) * j->k->tile_rows * TILE_X_STRIDE) * 4;
}

/* 定切法（j 的形状、k、direct、bf16、n_threads 已定）。 */
void linear_plan(LinearJob *j);
/* 多行；先 linear_plan。返回: 内存不足为假（错误在 b->err）。 */
bool linear_gemm(Backend *b, LinearJob *j);
/* 为各线程备好工作区。返回: 内存不足为假。 */
bool linear_prepare(Backend *b, const LinearJob *j);
/* 整个 j 由本线程在任务之内算（先 linear_prepare）；切法里只用段长 kc。 */
void linear_gemm_here(const LinearJob *j, int thread);
/* 一个线性层的输出行 [row0, row1)（row0 是面板行数的倍数）：y、bias 从 row0 起。 */
typedef struct LinearPart {
    float *y;
    const QTensor *w;
    const float *bias;
    int64_t row0, row1;
} LinearPart;
/* 单行 x 的几段，一次派发。错误（内存不足）在 b->err。 */
void linear_row(Backend *b, const LinearPart *parts, int n_parts, const float *x, bool bf16);
/* 同上，激活已量化。 */
void linear_row_int8(Backend *b, const LinearPart *parts, int n_parts, const ActRows *act);
/* 激活的列换成权重存放的次序，放进共用槽。返回: 内存不足为 NULL。 */
const float *linear_permute(Backend *b, const float *x, int64_t n, const QTensor *w);
#endif
