/* input — 线性层的输入怎样取（见 LinearIn），供 linear.cu 与 linear_int8.cu */
#ifndef PTQ_COMPUTE_CUDA_INPUT_H
#define PTQ_COMPUTE_CUDA_INPUT_H
#include "compute/cuda/cuda.h"

__device__ static inline float activation(float x, Activation f) {
    switch (f) {
    case ACTF_GELU_ERF: return x * (0.5f * erfcf(-x * 0.70710678f));
    case ACTF_GELU_TANH: return x / (1.0f + expf(-1.5957691216f * (x + 0.044715f * (x * x * x))));
    case ACTF_GELU_QUICK: return x / (1.0f + expf(-1.702f * x));
    case ACTF_RELU: return x < 0 ? 0 : x;
    default: return x / (1.0f + expf(-x));
    }
}

/* 激活函数的输入：gate、up 是 f32，half 时是 bf16，product 时 gate 就是 f(gate)·up（LinearOut.opaque 的几种存法）。 */
struct Gated {
    const void *gate, *up;
    Activation f;
    bool half, product;
};
__device__ static inline float gated_at(const Gated &a, int64_t i) {
    float g = a.half ? __bfloat162float(((const __nv_bfloat16 *)a.gate)[i]) : ((const float *)a.gate)[i];
    if (a.product) return g;
    float r = activation(g, a.f);
    if (!a.up) return r;
    return r * (a.half ? __bfloat162float(((const __nv_bfloat16 *)a.up)[i]) : ((const float *)a.up)[i]);
}
/* 整块的和，各线程都得到；shared 有 32 个，线程数是 32 的倍数。次序只由线程数定。 */
__device__ static inline double warp_block_sum(double x, double *shared) {
    for (int o = 16; o; o /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, o);
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? shared[threadIdx.x % 32] : 0;
    for (int o = 16; o; o /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, o);
    return x;
}
/* 一行的归一化的统计（块内各线程都得到）：减去 mean 再乘 r。 */
__device__ static inline void norm_stats(const float *row, int64_t d, const NormSpec &s, double *shared, float *mean, float *r) {
    double m = 0, sum = 0;
    if (s.center) {
        for (int64_t i = threadIdx.x; i < d; i += blockDim.x) m += (double)row[i];
        m = warp_block_sum(m, shared) / (double)d;
    }
    for (int64_t i = threadIdx.x; i < d; i += blockDim.x) sum += ((double)row[i] - m) * ((double)row[i] - m);
    sum = warp_block_sum(sum, shared);
    *r = 1.0f / sqrtf((float)(sum / (double)d) + s.eps);
    *mean = (float)m;
}
__device__ static inline float norm_at(float x, const NormSpec &s, int64_t at, float mean, float r) {
    float v = s.center ? __fmul_rn(__fadd_rn(x, -mean), r) : x * r;
    if (s.weight) v = __fmul_rn(v, s.weight[at]);
    return s.bias ? __fadd_rn(v, s.bias[at]) : v;
}
/* 输出用 bf16 存（LinearOut.opaque）：只在 bf16 计算、行数不少时。 */
bool cuda_opaque(const Backend *b, int64_t n);
/* in 是 IN_ACTIVATE 时，它的输入怎样存。 */
static inline Gated gated_of(Backend *b, const LinearIn *in, int64_t n) {
    Gated g = {};
    g.gate = in->x, g.up = in->up, g.f = in->f;
    g.product = in->opaque && cuda_of(b)->product;
    g.half = in->opaque && (g.product || cuda_opaque(b, n));
    return g;
}
#endif
