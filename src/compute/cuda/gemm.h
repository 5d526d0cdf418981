/* gemm — Hopper 上自己的矩阵乘（bf16 或 int8），尾声与乘法在一个内核里 */
#ifndef PTQ_COMPUTE_CUDA_GEMM_H
#define PTQ_COMPUTE_CUDA_GEMM_H
#include "compute/cuda/cuda.h"

enum { GEMM_OUT_MAX = 3 };
/* y 的样子：f32；bf16；GATED 是 f(out[0])·out[1] 的 bf16，写在 out[0].y。 */
typedef enum { GEMM_F32, GEMM_BF16, GEMM_GATED } GemmForm;

/* y(n, rows) = x·wᵀ + bias；w (rows, cols) 按行存放，行距 ldw 个元素。int8 时再乘 scale[row]·x_scale[token]。 */
struct GemmOut {
    const void *w;
    int64_t ldw, rows;
    void *y;
    const float *bias; /* 或 NULL */
    const void *scale; /* int8：scale_type 类型的 (rows) */
    DType scale_type;
    bool add;          /* F32：y 加上结果 */
};
/* 共用 x(n, cols)（行距 ldx 个元素）的几个。 */
struct GemmCall {
    bool int8; /* x、w 是 s8，累加是精确的 int32；否则是 bf16，累加是 f32 */
    GemmForm form;
    Activation f;
    const void *x;
    const float *x_scale;
    int64_t ldx, n, cols;
    GemmOut out[GEMM_OUT_MAX];
    int n_out;
};
/* 这个 GPU、这些形状与地址能不能用。 */
bool gemm_accepts(Backend *b, const GemmCall *c);
bool gemm_run(Backend *b, const GemmCall *c);
/* 同上，n 在 9 到 64（skinny.cu）；GATED 的 f 不限，其余的样子都可以有偏置。 */
bool skinny_accepts(Backend *b, const GemmCall *c);
bool skinny_run(Backend *b, const GemmCall *c);
/* 不透明的输出（opaque）存成哪一种：may_fuse 而 gate、up 一对能合就 GATED（记进 CudaBackend.product），否则 BF16；不是则 F32。 */
void gemm_choose(Backend *b, GemmCall *c, bool opaque, bool may_fuse);
#endif
