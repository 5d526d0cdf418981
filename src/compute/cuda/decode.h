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
    bool round;
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
/* 一个头的第 d 维旋转之后。 */
__device__ static inline float turned(const float *head, int d, const StepArgs &s, int64_t pos) {
    if (!s.cos_table || d >= 2 * s.half) return head[d];
    int j = s.interleaved ? d / 2 : d % s.half, step = s.interleaved ? 1 : s.half;
    bool lead = s.interleaved ? d % 2 == 0 : d < s.half;
    float co = s.cos_table[pos * s.half + j], si = s.sin_table[pos * s.half + j], x = head[d], y = head[lead ? d + step : d - step];
    return lead ? __fadd_rn(__fmul_rn(x, co), -__fmul_rn(y, si)) : __fadd_rn(__fmul_rn(x, co), __fmul_rn(y, si));
}

/* 各段的结果合并：一个线程束一个头，线程 s 管段 s 的系数（MAX_SPLITS 不多于 32）。 */
__device__ static inline void merge_splits(const DecodeArgs &a, int64_t t, int64_t h0, int heads) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = (int)a.s.head_dim;
#pragma unroll 1
    for (int g = warp; g < heads; g += blockDim.x / 32) {
        int64_t row = t * a.s.n_heads + h0 + g;
        const float *part = a.part + row * a.splits * (dim + 2);
        float mine = lane < a.splits ? __ldcg(part + lane * (dim + 2)) : -INFINITY, m = mine;
        float sum = lane < a.splits ? __ldcg(part + lane * (dim + 2) + 1) : 0;
        for (int o = 16; o; o /= 2) m = fmaxf(m, __shfl_xor_sync(0xFFFFFFFFu, m, o));
        float f = mine == -INFINITY ? 0 : expf(mine - m), total = sum * f;
        for (int k = 16; k; k /= 2) total += __shfl_xor_sync(0xFFFFFFFFu, total, k);
#pragma unroll 1
        for (int d = lane; d < (dim + 31) / 32 * 32; d += 32) {
            float o = 0;
#pragma unroll 8
            for (int s = 0; s < a.splits; s++)
                o += (d < dim ? __ldcg(part + s * (dim + 2) + 2 + d) : 0) * __shfl_sync(0xFFFFFFFFu, f, s);
            if (d < dim) a.out[row * dim + d] = o / total;
        }
    }
}

/* bf16 计算、f16 的缓存、头的维数是 64、80、96、128、256。 */
bool decode_mma_accepts(Backend *b, const DecodeArgs *a);
/* 各行已填好；longest：看得见的键最多几个。 */
bool decode_mma(Backend *b, DecodeArgs *a, int64_t n, int64_t longest);
#endif
