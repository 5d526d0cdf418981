/* linear — 矩阵乘的一次调用（linear.c 的浮点路与 linear_int8.c 的整数路共用切法；单行在 linear_row.c） */
#ifndef PTQ_COMPUTE_CPU_LINEAR_H
#define PTQ_COMPUTE_CPU_LINEAR_H
#include "compute/cpu/gemm_kernels.h"

typedef struct LinearJob {
    const GemmKernels *k;
    CpuBackend *cpu;
    int n_threads;
    TileFn *const *tiles;
    float *y;
    int64_t ldy;
    const char *x;     /* f32，或舍入后的 bf16，或 s8 */
    int64_t x_stride;  /* 行距，4 字节为单位 */
    int64_t n, panel0; /* 行数；首面板 */
    int64_t n_out;     /* 输出列数 */
    const QTensor *w;
    const float *bias;
    const ActRows *act; /* 整数路：量化后的激活；浮点路为 NULL */
    bool bf16, direct;  /* direct: 权重本身就是展开块 */
    int64_t steps, kc;  /* 总步数与一段的步数 */
    int64_t rows_per_task, panels_per_task, panels_per_block, n_row_tasks;
} LinearJob;

/* 多行；切法由 j 的形状定。返回: 内存不足为假（错误在 b->err）。 */
bool linear_gemm(Backend *b, LinearJob *j);
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

static inline int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}
static inline int64_t min_i64(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static inline int64_t max_i64(int64_t a, int64_t b) {
    return a > b ? a : b;
}
#endif
