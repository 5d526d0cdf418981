/* attention_grad — 因果注意力的反向
 * float32 计算：先求各行的 (max, sum) 与 D = Σ P∘dP，再由一束线程算 dQ 的一行、dK 与 dV 的一行。
 * bfloat16 计算：查询每 QUERIES 个一段，五个成批的 cuBLAS 矩阵乘（S = QKᵀ、dP = dO·Vᵀ、dV += PᵀdO、dK += dSᵀQ、dQ = dS·K），
 * 中间一趟由 S、dP 得 P 与 dS = P∘(dP − D)。一段只乘它看得见的键；各段依次累加，所以次序固定。
 * 组内的头与查询排在一起（键值头, 查询, 组内的头, 维），一个键值头的 Q、dO 便是一个矩阵。 */
#include <math.h>

#include "compute/cuda/cuda_ops.h"

enum { LANE_DIMS = 16, /* 每个线程至多 16 维：头的维数至多 512 */
       QUERIES = 256, ROW_THREADS = 128 };

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
static void grad_f32(Backend *b, float *dq, float *dk, float *dv, const float *d_out, const float *q, const float *k,
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

/* ---- bf16 ---- */

__global__ static void to_bf16_kernel(__nv_bfloat16 *dst, const float *x, int64_t n) {
    EACH(i, n) dst[i] = __float2bfloat16_rn(x[i]);
}
/* (n, 头, 维) f32 → (键值头, n, 组内的头, 维) bf16；to_heads 为假时反过来，f32 → f32。 */
__global__ static void regroup_kernel(__nv_bfloat16 *half, float *wide, const float *x, int64_t n, int heads, int group, int dim,
                                      bool to_heads) {
    int64_t t = blockIdx.x;
    for (int i = threadIdx.x; i < heads * dim; i += blockDim.x) {
        int h = i / dim, d = i % dim;
        int64_t packed = ((h / group * n + t) * group + h % group) * dim + d, plain = t * heads * dim + i;
        if (to_heads)
            half[packed] = __float2bfloat16_rn(x[plain]);
        else
            wide[plain] = x[packed];
    }
}

__device__ static float row_max(float x, float *sh) {
    for (int o = 16; o; o /= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, o));
    __syncthreads();
    if (threadIdx.x % 32 == 0) sh[threadIdx.x / 32] = x;
    __syncthreads();
    x = sh[0];
    for (int i = 1; i < ROW_THREADS / 32; i++) x = fmaxf(x, sh[i]);
    return x;
}
__device__ static float row_sum(float x, float *sh) {
    for (int o = 16; o; o /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, o);
    __syncthreads();
    if (threadIdx.x % 32 == 0) sh[threadIdx.x / 32] = x;
    __syncthreads();
    x = sh[0];
    for (int i = 1; i < ROW_THREADS / 32; i++) x += sh[i];
    return x;
}
/* 一块一行（一个查询的一个头）：S、dP (行, keys) → P、dS；看不见的键为 0。S 已乘 scale。 */
__global__ static void __launch_bounds__(ROW_THREADS)
    grad_soft_kernel(__nv_bfloat16 *p, __nv_bfloat16 *ds, const float *s, const float *dp, int64_t first, int64_t group,
                     int64_t rows, int64_t keys, int64_t window, float scale) {
    __shared__ float sh[ROW_THREADS / 32];
    int64_t row = blockIdx.x, q = first + row % rows / group, at = row * keys;
    int end = (int)q + 1, from = window > 0 && q >= window ? (int)(q - window + 1) : 0;
    float max = -INFINITY, sum = 0, dot = 0;
    for (int j = from + threadIdx.x; j < end; j += ROW_THREADS) max = fmaxf(max, s[at + j]);
    max = row_max(max, sh);
    for (int j = from + threadIdx.x; j < end; j += ROW_THREADS) {
        float e = expf(s[at + j] - max);
        sum += e, dot += e * dp[at + j];
    }
    sum = row_sum(sum, sh);
    dot = row_sum(dot, sh) / sum;
    for (int j = threadIdx.x; j < keys; j += ROW_THREADS) {
        bool seen = j >= from && j < end;
        float e = seen ? expf(s[at + j] - max) / sum : 0;
        p[at + j] = __float2bfloat16_rn(e);
        ds[at + j] = __float2bfloat16_rn(seen ? scale * e * (dp[at + j] - dot) : 0);
    }
}

/* 一批（各键值头）矩阵乘，列主序：c(m,n) = alpha·op(a)·op(b) + beta·c；b 不转置。 */
struct Operand {
    const void *at;
    int64_t ld, step; /* step：相邻两个键值头之间 */
};
static bool batched(Backend *b, cublasOperation_t op_a, cublasOperation_t op_b, int64_t m, int64_t n, int64_t k, float alpha,
                    Operand a, Operand c, float beta, float *y, int64_t ldy, int64_t step, int64_t count) {
    return cuda_blas_ok(b, cublasGemmStridedBatchedEx(cuda_blas(b), op_a, op_b, (int)m, (int)n, (int)k, &alpha, a.at,
                                                      CUDA_R_16BF, (int)a.ld, a.step, c.at, CUDA_R_16BF, (int)c.ld, c.step, &beta,
                                                      y, CUDA_R_32F, (int)ldy, step, (int)count, CUBLAS_COMPUTE_32F,
                                                      CUBLAS_GEMM_DEFAULT),
                        "attention_grad 的矩阵乘");
}
static void grad_bf16(Backend *b, float *dq, float *dk, float *dv, const float *d_out, const float *q, const float *k,
                      const float *v, int64_t n, const AttnSpec *s) {
    int64_t kv = s->n_kv_heads, group = s->n_heads / kv, dim = s->head_dim, wide = n * s->n_heads * dim, narrow = n * kv * dim;
    int64_t most = (n < QUERIES ? n : QUERIES) * group, cells = kv * most * n, head = n * group * dim;
    cudaStream_t st = STREAM(b);
    __nv_bfloat16 *qh = (__nv_bfloat16 *)cuda_slot(b, SLOT_X, (size_t)wide * 4), *oh = qh + wide;
    __nv_bfloat16 *kh = (__nv_bfloat16 *)cuda_slot(b, SLOT_W, (size_t)narrow * 4), *vh = kh + narrow;
    float *sc = (float *)cuda_slot(b, SLOT_A, (size_t)cells * 8), *dp = sc + cells;
    __nv_bfloat16 *p = (__nv_bfloat16 *)cuda_slot(b, SLOT_B, (size_t)cells * 4), *ds = p + cells;
    float *dqh = (float *)cuda_slot(b, SLOT_Z, (size_t)wide * 4);
    if (!qh || !kh || !sc || !p || !dqh) return;
    regroup_kernel<<<(unsigned)n, 256, 0, st>>>(qh, NULL, q, n, (int)s->n_heads, (int)group, (int)dim, true);
    regroup_kernel<<<(unsigned)n, 256, 0, st>>>(oh, NULL, d_out, n, (int)s->n_heads, (int)group, (int)dim, true);
    to_bf16_kernel<<<cuda_blocks(narrow, 256), 256, 0, st>>>(kh, k, narrow);
    to_bf16_kernel<<<cuda_blocks(narrow, 256), 256, 0, st>>>(vh, v, narrow);
    bool ok = LAUNCHED(b, "attention_grad 的输入") &&
              cuda_ok(b, cudaMemsetAsync(dk, 0, (size_t)narrow * 4, st), "清零") &&
              cuda_ok(b, cudaMemsetAsync(dv, 0, (size_t)narrow * 4, st), "清零");
    for (int64_t q0 = 0; ok && q0 < n; q0 += QUERIES) {
        int64_t keys = n < q0 + QUERIES ? n : q0 + QUERIES, rows = (keys - q0) * group, ld = kv * dim, cell = rows * keys;
        Operand K = {kh, ld, dim}, V = {vh, ld, dim}, Q = {qh + q0 * group * dim, dim, head}, O = {oh + q0 * group * dim, dim, head};
        Operand P = {p, keys, cell}, D = {ds, keys, cell};
        ok = batched(b, CUBLAS_OP_T, CUBLAS_OP_N, keys, rows, dim, s->scale, K, Q, 0, sc, keys, cell, kv) &&
             batched(b, CUBLAS_OP_T, CUBLAS_OP_N, keys, rows, dim, 1, V, O, 0, dp, keys, cell, kv);
        if (!ok) return;
        grad_soft_kernel<<<(unsigned)(kv * rows), ROW_THREADS, 0, st>>>(p, ds, sc, dp, q0, group, rows, keys, s->window, s->scale);
        ok = LAUNCHED(b, "attention_grad 的 P") &&
             batched(b, CUBLAS_OP_N, CUBLAS_OP_T, dim, keys, rows, 1, O, P, 1, dv, ld, dim, kv) &&
             batched(b, CUBLAS_OP_N, CUBLAS_OP_T, dim, keys, rows, 1, Q, D, 1, dk, ld, dim, kv) &&
             batched(b, CUBLAS_OP_N, CUBLAS_OP_N, dim, rows, keys, 1, K, D, 0, dqh + q0 * group * dim, dim, head, kv);
    }
    if (!ok) return;
    regroup_kernel<<<(unsigned)n, 256, 0, st>>>(NULL, dq, dqh, n, (int)s->n_heads, (int)group, (int)dim, false);
    LAUNCHED(b, "attention_grad 的 dq");
}

void cuda_attention_grad(Backend *b, float *dq, float *dk, float *dv, const float *d_out, const float *q, const float *k,
                         const float *v, int64_t n, const AttnSpec *s) {
    if (b->compute == COMPUTE_BF16)
        grad_bf16(b, dq, dk, dv, d_out, q, k, v, n, s);
    else
        grad_f32(b, dq, dk, dv, d_out, q, k, v, n, s);
}
