/* decode — 查询很少的注意力的两个内核（decode.cu、decode_mma.cu）共用的：参数、旋转、各段的合并 */
#ifndef PTQ_COMPUTE_CUDA_DECODE_H
#define PTQ_COMPUTE_CUDA_DECODE_H
#include <math.h>

#include "compute/cuda/attention.h"

enum { MAX_SPLITS = 32 };

struct DecodeRow {
    void *k, *v;
    int64_t k_first, v_first, pos; /* 缓存首行的位置，查询的位置 */
};
/* 一步解码的新键值与旋转。 */
struct StepArgs {
    const float *k, *v, *cos_table, *sin_table; /* 表 NULL：不转 */
    int half;
    bool interleaved;
};
struct DecodeArgs {
    float *out, *part; /* part：(查询, 头, 段, dim+2) */
    const float *q;
    DecodeRow row[STEP_MAX_ROWS];
    DType dtype;
    int *done; /* 各（查询, 批）已做完的段数，用完归零 */
    int splits;
    bool round, half; /* half：out 是 bf16 */
    AttnSpec s;
    StepArgs step;
};

__device__ static inline float rounded(float x, bool round) {
    return round ? __bfloat162float(__float2bfloat16_rn(x)) : x;
}
__device__ static inline float value(float x) {
    return x;
}
__device__ static inline float value(__half x) {
    return __half2float(x);
}
__device__ static inline float value(__nv_bfloat16 x) {
    return __bfloat162float(x);
}
__device__ static inline void put(float *to, float x) {
    *to = x;
}
__device__ static inline void put(__half *to, float x) {
    *to = __float2half_rn(x);
}
__device__ static inline void put(__nv_bfloat16 *to, float x) {
    *to = __float2bfloat16_rn(x);
}
__device__ static inline void put_out(const DecodeArgs &a, int64_t i, float x) {
    if (a.half)
        ((__nv_bfloat16 *)a.out)[i] = __float2bfloat16_rn(x);
    else
        a.out[i] = x;
}
/* 一个头的第 d 维与它的旋转：先取，后算，几个才能一起在路上。head 可能是同一个内核里别的块刚写的（persistent.cu），所以绕过一级缓存。 */
struct Turn {
    float x, y, co, si;
    bool lead;
};
__device__ static inline Turn turn_load(const float *head, int d, const StepArgs &s, int64_t pos) {
    Turn t = {__ldcg(head + d), 0, 1, 0, true};
    if (!s.cos_table || d >= 2 * s.half) return t;
    int j = s.interleaved ? d / 2 : d % s.half, step = s.interleaved ? 1 : s.half;
    t.lead = s.interleaved ? d % 2 == 0 : d < s.half;
    t.co = s.cos_table[pos * s.half + j], t.si = s.sin_table[pos * s.half + j], t.y = __ldcg(head + (t.lead ? d + step : d - step));
    return t;
}
__device__ static inline float turned(const Turn &t) {
    return t.lead ? __fadd_rn(__fmul_rn(t.x, t.co), -__fmul_rn(t.y, t.si)) : __fadd_rn(__fmul_rn(t.x, t.co), __fmul_rn(t.y, t.si));
}
__device__ static inline float turned(const float *head, int d, const StepArgs &s, int64_t pos) {
    return turned(turn_load(head, d, s, pos));
}

/* 各段的结果合并（整块一起）：先求各头各段的系数，再按段的次序相加。factor：共享内存，heads·(MAX_SPLITS + 1) 个。 */
__device__ static inline void merge_splits(const DecodeArgs &a, int64_t t, int64_t h0, int heads, float *factor) {
    enum { AT_ONCE = 4 };
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = (int)a.s.head_dim, line = dim + 2;
    const float *part = a.part + (t * a.s.n_heads + h0) * a.splits * line;
    float *total = factor + heads * MAX_SPLITS;
#pragma unroll 1
    for (int g = warp; g < heads; g += blockDim.x / 32) { /* 线程 s 管段 s */
        const float *from = part + (g * a.splits + lane) * line;
        float mine = lane < a.splits ? __ldcg(from) : -INFINITY, sum = lane < a.splits ? __ldcg(from + 1) : 0, m = mine;
        for (int o = 16; o; o /= 2) m = fmaxf(m, __shfl_xor_sync(0xFFFFFFFFu, m, o));
        float f = mine == -INFINITY ? 0 : expf(mine - m), all = sum * f;
        for (int k = 16; k; k /= 2) all += __shfl_xor_sync(0xFFFFFFFFu, all, k);
        factor[g * MAX_SPLITS + lane] = f;
        if (lane == 0) total[g] = all;
    }
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < heads * dim; i += AT_ONCE * blockDim.x) {
        const float *from[AT_ONCE], *by[AT_ONCE];
        float sum[AT_ONCE] = {};
#pragma unroll
        for (int q = 0; q < AT_ONCE; q++) {
            int at = i + q * (int)blockDim.x, g = at < heads * dim ? at / dim : 0;
            from[q] = part + g * a.splits * line + 2 + (at < heads * dim ? at % dim : 0), by[q] = factor + g * MAX_SPLITS;
        }
#pragma unroll 4
        for (int s = 0; s < a.splits; s++)
#pragma unroll
            for (int q = 0; q < AT_ONCE; q++) sum[q] += __ldcg(from[q] + s * line) * by[q][s];
#pragma unroll
        for (int q = 0; q < AT_ONCE; q++) {
            int at = i + q * (int)blockDim.x;
            if (at < heads * dim) put_out(a, (t * a.s.n_heads + h0) * dim + at, sum[q] / total[at / dim]);
        }
    }
}

/* bf16 计算、f16 的缓存、头的维数是 64、80、96、128、256。 */
bool decode_mma_accepts(Backend *b, const DecodeArgs *a);
/* 各行已填好；longest：看得见的键最多几个。 */
bool decode_mma(Backend *b, DecodeArgs *a, int64_t n, int64_t longest);
#endif
