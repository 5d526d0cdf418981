/* attention_grad — 因果注意力的反向：先求各行的 (max, sum) 与 D = Σ P∘dP，再由一束线程算 dQ 的一行、dK 与 dV 的一行 */
#include <math.h>

#include "compute/cuda/cuda_ops.h"

enum { LANE_DIMS = 16 }; /* 每个线程至多 16 维：头的维数至多 512 */


__global__ static void grad_rows_kernel(float *stat, float *dq, const float *d_out, const float *q, const float *k, const float *v,
                                        int64_t n, AttnSpec s) {
    int64_t item = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (item >= n * s.n_heads) return;
    int lane = threadIdx.x % 32;
    int64_t t = item / s.n_heads, h = item % s.n_heads, kv = h / (s.n_heads / s.n_kv_heads), dim = s.head_dim;
    int64_t from = s.window > 0 && t >= s.window ? t - s.window + 1 : 0, width = s.n_kv_heads * dim;
    const float *qr = q + (t * s.n_heads + h) * dim, *dr = d_out + (t * s.n_heads + h) * dim;
    float max = -INFINITY, sum = 0, dsum = 0;
    for (int pass = 0; pass < 2; pass++) {
        float acc[LANE_DIMS] = {0};
        for (int64_t j = from; j <= t; j++) {
            const float *kr = k + j * width + kv * dim, *vr = v + j * width + kv * dim;
            float dot = 0, dp = 0;
            for (int64_t d = lane; d < dim; d += 32) dot += qr[d] * kr[d], dp += dr[d] * vr[d];
            for (int o = 16; o; o /= 2) {
                dot += __shfl_xor_sync(0xFFFFFFFFu, dot, o);
                dp += __shfl_xor_sync(0xFFFFFFFFu, dp, o);
            }
            dot *= s.scale;
            if (pass == 0) {
                float m = dot > max ? dot : max, shrink = expf(max - m), p = expf(dot - m);
                sum = sum * shrink + p, dsum = dsum * shrink + p * dp, max = m;
            } else {
                float p = expf(dot - max) / sum, ds = s.scale * p * (dp - dsum);
#pragma unroll
                for (int i = 0; i < LANE_DIMS; i++)
                    if (lane + 32 * i < dim) acc[i] += ds * kr[lane + 32 * i];
            }
        }
        if (pass == 0) {
            dsum /= sum;
            continue;
        }
#pragma unroll
        for (int i = 0; i < LANE_DIMS; i++)
            if (lane + 32 * i < dim) dq[(t * s.n_heads + h) * dim + lane + 32 * i] = acc[i];
    }
    if (lane == 0) stat[3 * item] = max, stat[3 * item + 1] = sum, stat[3 * item + 2] = dsum;
}
/* 一束线程一个（键, 键值头）：沿组内的头、查询依次累加。 */
__global__ static void grad_keys_kernel(float *dk, float *dv, const float *stat, const float *d_out, const float *q, const float *k,
                                        const float *v, int64_t n, AttnSpec s) {
    int64_t item = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (item >= n * s.n_kv_heads) return;
    int lane = threadIdx.x % 32;
    int64_t j = item / s.n_kv_heads, kv = item % s.n_kv_heads, group = s.n_heads / s.n_kv_heads, dim = s.head_dim;
    int64_t end = s.window > 0 && j + s.window < n ? j + s.window : n;
    const float *kr = k + item * dim, *vr = v + item * dim;
    float ak[LANE_DIMS] = {0}, av[LANE_DIMS] = {0};
    for (int64_t h = kv * group; h < (kv + 1) * group; h++)
        for (int64_t t = j; t < end; t++) {
            const float *qr = q + (t * s.n_heads + h) * dim, *dr = d_out + (t * s.n_heads + h) * dim;
            const float *st = stat + 3 * (t * s.n_heads + h);
            float dot = 0, dp = 0;
            for (int64_t d = lane; d < dim; d += 32) dot += qr[d] * kr[d], dp += dr[d] * vr[d];
            for (int o = 16; o; o /= 2) {
                dot += __shfl_xor_sync(0xFFFFFFFFu, dot, o);
                dp += __shfl_xor_sync(0xFFFFFFFFu, dp, o);
            }
            float p = expf(dot * s.scale - st[0]) / st[1], ds = s.scale * p * (dp - st[2]);
#pragma unroll
            for (int i = 0; i < LANE_DIMS; i++)
                if (lane + 32 * i < dim) ak[i] += ds * qr[lane + 32 * i], av[i] += p * dr[lane + 32 * i];
        }
#pragma unroll
    for (int i = 0; i < LANE_DIMS; i++)
        if (lane + 32 * i < dim) dk[item * dim + lane + 32 * i] = ak[i], dv[item * dim + lane + 32 * i] = av[i];
}
void cuda_attention_grad(Backend *b, float *dq, float *dk, float *dv, const float *d_out, const float *q, const float *k,
                         const float *v, int64_t n, const AttnSpec *s) {
    if (s->head_dim > 32 * LANE_DIMS) {
        cuda_fail(b, ERR_UNSUPPORTED, "CUDA 的注意力只支持头的维数不大于 %d", 32 * LANE_DIMS);
        return;
    }
    float *stat = (float *)cuda_slot(b, SLOT_A, (size_t)(3 * n * s->n_heads) * 4);
    if (!stat) return;
    grad_rows_kernel<<<cuda_blocks(n * s->n_heads, 4), 128, 0, STREAM(b)>>>(stat, dq, d_out, q, k, v, n, *s);
    grad_keys_kernel<<<cuda_blocks(n * s->n_kv_heads, 4), 128, 0, STREAM(b)>>>(dk, dv, stat, d_out, q, k, v, n, *s);
    LAUNCHED(b, "attention_grad");
}
