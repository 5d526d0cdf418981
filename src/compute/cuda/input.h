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

/* 一个线性层的输入 (n, cols)，写到行距 ld 的一处，行尾补零；perm 是列序，或 NULL。 */
struct Source {
    InputKind kind;
    const float *x;
    NormSpec norm;
    Gated act;
    const int32_t *perm;
    int64_t cols, ld;
};
static inline Source source_of(Backend *b, const LinearIn *in, int64_t n, int64_t cols, int64_t ld, const int32_t *perm) {
    Source s = {};
    s.kind = in->kind, s.x = in->x, s.norm = in->norm, s.act = gated_of(b, in, n), s.perm = perm, s.cols = cols, s.ld = ld;
    if (in->half) s.kind = IN_ACTIVATE, s.act.half = s.act.product = true; /* 与算好了的激活同样地取 */
    return s;
}
/* 一块 ROW_THREADS 个线程管一行、整行在寄存器里，一个线程几个 4 列（1、2、4 或 8）；这样取不了的为 0。 */
enum { ROW_THREADS = 512 };
static inline int row_fours(const Source &s) {
    int64_t fours = (s.ld + 4 * ROW_THREADS - 1) / (4 * ROW_THREADS);
    uintptr_t at = (uintptr_t)s.x | (s.kind == IN_NORM ? (uintptr_t)s.norm.weight | (uintptr_t)s.norm.bias : 0);
    if (s.perm || s.cols % 4 || at % 16 || (s.kind == IN_ACTIVATE && !s.act.product) || fours > 8) return 0;
    return fours <= 2 ? (int)fours : fours <= 4 ? 4 : 8;
}
/* 按行宽与是否归一化选一份：模板参数是 (几个 4 列, 归一化)。 */
#define ROW_KERNEL(kernel, fours, norm)                                                                                \
    ((norm) ? ((fours) == 1 ? kernel<1, true> : (fours) == 2 ? kernel<2, true> : (fours) == 4 ? kernel<4, true> : kernel<8, true>) \
            : ((fours) == 1 ? kernel<1, false> : (fours) == 2 ? kernel<2, false> : (fours) == 4 ? kernel<4, false> : kernel<8, false>))
#define ROW_BOUNDS(fours, norm) __launch_bounds__(ROW_THREADS, (norm) && (fours) > 2 ? 1 : 2)
/* 第 i 个 4 列的列号。 */
__device__ static inline int64_t four_at(int i) {
    return ((int64_t)i * ROW_THREADS + threadIdx.x) * 4;
}
/* blockIdx.x 行的值，cols 之外为 0。 */
template <int FOURS, bool NORM> __device__ static inline void load_row(const Source &s, float (*v)[4], double *shared) {
    int64_t row = blockIdx.x, base = row * s.cols;
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        int64_t k = four_at(i);
        float4 x = make_float4(0, 0, 0, 0);
        if (!NORM && k < s.cols && s.kind == IN_ACTIVATE) {
            uint2 h = *(const uint2 *)((const __nv_bfloat16 *)s.act.gate + base + k);
            float2 a = __bfloat1622float2(*(__nv_bfloat162 *)&h.x), b = __bfloat1622float2(*(__nv_bfloat162 *)&h.y);
            x = make_float4(a.x, a.y, b.x, b.y);
        } else if (k < s.cols) {
            x = *(const float4 *)(s.x + base + k);
        }
        v[i][0] = x.x, v[i][1] = x.y, v[i][2] = x.z, v[i][3] = x.w;
    }
    if (!NORM) return;
    double mean = 0, sum = 0;
    if (s.norm.center) {
#pragma unroll
        for (int i = 0; i < 4 * FOURS; i++) mean += (double)v[i / 4][i % 4];
        mean = warp_block_sum(mean, shared) / (double)s.cols;
    }
#pragma unroll
    for (int i = 0; i < 4 * FOURS; i++)
        if (four_at(i / 4) < s.cols) sum += ((double)v[i / 4][i % 4] - mean) * ((double)v[i / 4][i % 4] - mean);
    sum = warp_block_sum(sum, shared);
    float r = 1.0f / sqrtf((float)(sum / (double)s.cols) + s.norm.eps);
#pragma unroll
    for (int i = 0; i < 4 * FOURS; i++) {
        int64_t k = four_at(i / 4);
        if (k < s.cols) v[i / 4][i % 4] = norm_at(v[i / 4][i % 4], s.norm, row % s.norm.period * s.cols + k + i % 4, (float)mean, r);
    }
}
#endif
