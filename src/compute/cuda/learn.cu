/* learn — OmniQuant 的内层循环：可学的钳位与它的反向，伪量化连同装包与它的反向，线性层的反向 */
#include "compute/cuda/cuda_ops.h"
#include "compute/cuda/grid.h"
#include "compute/cuda/linear.h"

enum { ROW_WARPS = 8 };

__device__ static float sigmoid(float x) {
    return __fdiv_rn(1, __fadd_rn(1, expf(-x)));
}
__device__ static float clampf(float x, float lo, float hi) {
    return x < lo ? lo : x > hi ? hi : x;
}

/* ---- 钳位的格点 ---- */

__global__ static void clamp_kernel(ClampJob j) {
    float top = (float)((1 << j.bits) - 1), half = (float)((1 << (j.bits - 1)) - 1);
    EACH(g, j.n) {
        float lo = j.lo[g], hi = j.hi[g];
        if (j.low) lo = __fmul_rn(lo, sigmoid(j.low[g])), hi = __fmul_rn(hi, sigmoid(j.high[g]));
        float step = j.symmetric ? __fdiv_rn(fmaxf(fabsf(hi), fabsf(lo)), half) : __fdiv_rn(__fadd_rn(hi, -lo), top);
        step = clampf(step, j.least, j.most);
        j.scale[g] = step;
        j.zero[g] = j.symmetric ? half : rintf(clampf(__fdiv_rn(-lo, step), -j.most, j.most));
    }
}
void cuda_clamp_grid(Backend *b, const ClampJob *job) {
    clamp_kernel<<<cuda_blocks(job->n, 256), 256, 0, STREAM(b)>>>(*job);
    LAUNCHED(b, "clamp_grid");
}
__global__ static void clamp_grad_kernel(ClampJob j) {
    float top = (float)((1 << j.bits) - 1), half = (float)((1 << (j.bits - 1)) - 1);
    EACH(g, j.n) {
        float a = j.low ? sigmoid(j.low[g]) : 1, b = j.low ? sigmoid(j.high[g]) : 1;
        float lo = __fmul_rn(a, j.lo[g]), hi = __fmul_rn(b, j.hi[g]), d = j.d_scale[g], d_lo = -d / top, d_hi = d / top;
        if (j.symmetric) {
            bool low_wins = fabsf(lo) > fabsf(hi);
            d_lo = low_wins ? (lo < 0 ? -d : d) / half : 0;
            d_hi = low_wins ? 0 : (hi < 0 ? -d : d) / half;
        }
        if (j.scale[g] <= j.least || j.scale[g] >= j.most) d_lo = d_hi = 0;
        if (j.low) j.d_low[g] = d_lo * lo * (1 - a), j.d_high[g] = d_hi * hi * (1 - b);
        j.d_lo[g] = d_lo * a, j.d_hi[g] = d_hi * b;
    }
}
void cuda_clamp_grid_grad(Backend *b, const ClampJob *job) {
    clamp_grad_kernel<<<cuda_blocks(job->n, 256), 256, 0, STREAM(b)>>>(*job);
    LAUNCHED(b, "clamp_grid_grad");
}

/* ---- 伪量化 ---- */

struct Fake {
    const float *x, *scale, *zero;
    int64_t rows, cols, group, groups;
    float top;
};
static Fake fake_of(const float *x, const float *scale, const float *zero, int64_t rows, int64_t cols, const QSpec *spec) {
    Fake f = {};
    f.x = x, f.scale = scale, f.zero = zero, f.rows = rows, f.cols = cols;
    f.group = spec->group_size < 0 || spec->group_size > cols ? cols : spec->group_size;
    f.groups = (cols - 1) / f.group + 1, f.top = (float)((1 << spec->bits) - 1);
    return f;
}
__device__ static float fake_at(const Fake &f, float x, float s, float z) {
    float c = clampf(__fadd_rn(rintf(__fdiv_rn(x, s)), z), 0, f.top);
    return __fmul_rn(s, __fadd_rn(c, -z));
}
/* 块 (列段, 行)。y 的类型 T，行距 ld（不小于 cols，余下的补零）。VEC：列数与组宽都是 4 的倍数，一个线程 4 列。 */
__device__ static void put4(float *y, const float *v) {
    *(float4 *)y = make_float4(v[0], v[1], v[2], v[3]);
}
__device__ static void put4(__nv_bfloat16 *y, const float *v) {
    *(uint2 *)y = make_uint2(pack2(v[0], v[1]), pack2(v[2], v[3]));
}
__device__ static void put1(float *y, float v) {
    *y = v;
}
__device__ static void put1(__nv_bfloat16 *y, float v) {
    *y = __float2bfloat16_rn(v);
}
__device__ static void put1(__half *y, float v) {
    *y = __float2half_rn(v);
}
template <typename T> __global__ static void fake_vec_kernel(T *y, int64_t ld, Fake f) {
    for (int64_t r = blockIdx.y; r < f.rows; r += gridDim.y) {
        int k = (int)(blockIdx.x * blockDim.x + threadIdx.x) * 4;
        if (k >= f.cols) continue;
        int64_t g = r * f.groups + k / (int)f.group;
        float4 x = *(const float4 *)(f.x + r * f.cols + k);
        float s = f.scale[g], z = f.zero[g];
        float v[4] = {fake_at(f, x.x, s, z), fake_at(f, x.y, s, z), fake_at(f, x.z, s, z), fake_at(f, x.w, s, z)};
        put4(y + r * ld + k, v);
    }
}
template <typename T> __global__ static void fake_any_kernel(T *y, int64_t ld, Fake f) {
    EACH(i, f.rows * ld) {
        int64_t r = i / ld, k = i % ld, g = r * f.groups + k / f.group;
        put1(y + i, k < f.cols ? fake_at(f, f.x[r * f.cols + k], f.scale[g], f.zero[g]) : 0);
    }
}
template <typename T> static void fake_any(Backend *b, T *y, int64_t ld, const Fake &f) {
    fake_any_kernel<T><<<cuda_blocks(f.rows * ld, 256), 256, 0, STREAM(b)>>>(y, ld, f);
    LAUNCHED(b, "fake_quant");
}
template <typename T> static void fake(Backend *b, T *y, int64_t ld, const Fake &f) {
    if (f.cols % 4 || f.group % 4 || ld != f.cols || f.cols > INT32_MAX / 2) return fake_any(b, y, ld, f);
    dim3 grid((unsigned)((f.cols / 4 + 255) / 256), (unsigned)(f.rows < 65535 ? f.rows : 65535));
    fake_vec_kernel<T><<<grid, 256, 0, STREAM(b)>>>(y, ld, f);
    LAUNCHED(b, "fake_quant");
}
void cuda_fake_quant(Backend *b, float *y, const float *x, const float *scale, const float *zero, int64_t rows, int64_t cols,
                     const QSpec *spec) {
    Fake f = fake_of(x, scale, zero, rows, cols, spec);
    fake(b, y, cols, f);
}
void cuda_fake_pack(Backend *b, QTensor *q, float *, const float *x, const float *scale, const float *zero, const QSpec *spec) {
    Fake f = fake_of(x, scale, zero, q->rows, q->cols, spec);
    int64_t ld = dense_stride(q);
    if (q->dense == DT_BF16) fake(b, (__nv_bfloat16 *)q->data, ld, f);
    else if (q->dense == DT_F32) fake(b, (float *)q->data, ld, f);
    else fake_any(b, (__half *)q->data, ld, f);
}

/* 一束线程一组。VEC：组宽与列数都是 4 的倍数。 */
template <bool VEC>
__global__ static void fake_grad_kernel(float *dx, float *ds, const float *dy, Fake f) {
    int64_t i = (int64_t)blockIdx.x * ROW_WARPS + threadIdx.x / 32, k0, n;
    int lane = threadIdx.x % 32;
    if (i >= f.rows * f.groups) return;
    k0 = i % f.groups * f.group;
    n = f.cols - k0 < f.group ? f.cols - k0 : f.group;
    int64_t at = i / f.groups * f.cols + k0;
    float s = f.scale[i], z = f.zero[i];
    double sum = 0;
    for (int64_t k = lane * (VEC ? 4 : 1); k < n; k += VEC ? 128 : 32) {
        float x[4], d[4];
        if (VEC) {
            float4 a = *(const float4 *)(f.x + at + k), c = *(const float4 *)(dy + at + k);
            x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, d[0] = c.x, d[1] = c.y, d[2] = c.z, d[3] = c.w;
        } else {
            x[0] = f.x[at + k], d[0] = dy[at + k];
        }
#pragma unroll
        for (int e = 0; e < (VEC ? 4 : 1); e++) {
            float q = __fdiv_rn(x[e], s), c = __fadd_rn(rintf(q), z);
            bool inside = c >= 0 && c <= f.top;
            c = clampf(c, 0, f.top);
            sum += (double)(d[e] * ((c - z) - (inside ? q : 0)));
            if (dx) dx[at + k + e] = inside ? d[e] : 0;
        }
    }
    sum = warp_sum(sum);
    if (lane == 0) ds[i] = (float)sum;
}
void cuda_fake_quant_grad(Backend *b, float *dx, float *dscale, const float *dy, const float *x, const float *scale,
                          const float *zero, int64_t rows, int64_t cols, const QSpec *spec) {
    Fake f = fake_of(x, scale, zero, rows, cols, spec);
    unsigned grid = (unsigned)((rows * f.groups + ROW_WARPS - 1) / ROW_WARPS);
    if (cols % 4 == 0 && f.group % 4 == 0)
        fake_grad_kernel<true><<<grid, 32 * ROW_WARPS, 0, STREAM(b)>>>(dx, dscale, dy, f);
    else
        fake_grad_kernel<false><<<grid, 32 * ROW_WARPS, 0, STREAM(b)>>>(dx, dscale, dy, f);
    LAUNCHED(b, "fake_quant_grad");
}

/* ---- 线性层的反向 ---- */

/* x(n) → dst，按 T 舍入；n 是 4 的倍数时一个线程 4 个。 */
__global__ static void to_half_kernel(__nv_bfloat16 *dst, const float *x, int64_t n, bool vec) {
    if (!vec) {
        EACH(i, n) dst[i] = __float2bfloat16_rn(x[i]);
        return;
    }
    EACH(i, n / 4) {
        float4 v = ((const float4 *)x)[i];
        ((uint2 *)dst)[i] = make_uint2(pack2(v.x, v.y), pack2(v.z, v.w));
    }
}
static const void *operand(Backend *b, int slot, const float *x, int64_t n) {
    if (b->compute != COMPUTE_BF16) return x;
    __nv_bfloat16 *dst = (__nv_bfloat16 *)cuda_slot(b, slot, (size_t)n * 2);
    if (!dst) return NULL;
    to_half_kernel<<<cuda_blocks(n / 4 + 1, 256), 256, 0, STREAM(b)>>>(dst, x, n, n % 4 == 0 && (uintptr_t)x % 16 == 0);
    return LAUNCHED(b, "反向的输入") ? dst : NULL;
}
/* y(m,n) = a·c 或 aᵀ·c，行主序，a、c 的行距 lda、ldc。 */
static bool product(Backend *b, float *y, const void *a, int64_t lda, const void *c, int64_t ldc, int64_t m, int64_t k,
                    int64_t n, bool transpose_a) {
    const float one = 1, zero = 0;
    bool bf16 = b->compute == COMPUTE_BF16;
    cudaDataType_t t = bf16 ? CUDA_R_16BF : CUDA_R_32F;
    return cuda_blas_ok(b, cublasGemmEx(cuda_blas(b), CUBLAS_OP_N, transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, (int)n, (int)m,
                                        (int)k, &one, c, t, (int)ldc, a, t, (int)lda, &zero, y, CUDA_R_32F, (int)n,
                                        bf16 ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_PEDANTIC, CUBLAS_GEMM_DEFAULT),
                        transpose_a ? "反向 dW" : "反向 dx");
}
void cuda_linear_grad(Backend *b, const LinearGrad *j) {
    int64_t rows = j->w->rows, cols = j->w->cols;
    bool bf16 = b->compute == COMPUTE_BF16;
    const void *dy = operand(b, SLOT_X, j->dy, j->n * rows);
    if (j->dw) {
        const void *x = dy ? operand(b, SLOT_W, j->x, j->n * cols) : NULL;
        if (!x || !product(b, j->dw, dy, rows, x, cols, rows, j->n, cols, true)) return;
    }
    if (!j->dx || !dy) return;
    bool direct = j->w->dense == (bf16 ? DT_BF16 : DT_F32) && !j->w->perm;
    int64_t ld = direct ? dense_stride(j->w) : cols;
    const void *w = j->w->data;
    if (!direct) {
        float *wide = (float *)cuda_slot(b, SLOT_A, (size_t)(rows * cols) * 4);
        if (!wide || !cuda_expand(b, wide, j->w, 0, rows)) return;
        w = operand(b, SLOT_W, wide, rows * cols);
    }
    if (w) product(b, j->dx, dy, rows, w, ld, j->n, rows, cols, false);
}
