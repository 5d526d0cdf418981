/* linear — 线性层：输入化为 bf16（连同归一化或激活函数，一趟），行数少的走 gemv.cu，其余走 cuBLAS
 * 稠密权重就是 cuBLAS 的操作数（行主序）；量化权重先展开成行主序的 f32 或 bf16 再乘。 */
#include "compute/cuda/input.h"
#include "compute/cuda/linear.h"

bool cuda_opaque(const Backend *b, int64_t n) {
    return b->compute == COMPUTE_BF16 && n > GEMV_MAX_ROWS;
}

/* ---- 输入 → bf16 (n, ld)，行尾补零 ---- */

struct Source {
    InputKind kind;
    const float *x;
    NormSpec norm;
    Gated act;
    const int32_t *perm;
    int64_t cols, ld;
};
/* blockIdx.x 是行，blockIdx.y 分担一行的列（归一化时各块各自求统计）。VEC：列数是 4 的倍数、不换列序，一次 4 列。 */
template <bool VEC> __global__ static void input_kernel(__nv_bfloat16 *dst, Source s) {
    __shared__ double sh[32];
    int64_t row = blockIdx.x, base = row * s.cols, at = 0;
    float mean = 0, r = 0;
    __nv_bfloat16 *to = dst + row * s.ld;
    grid_release();
    grid_wait();
    if (s.kind == IN_NORM) {
        norm_stats(s.x + base, s.cols, s.norm, sh, &mean, &r);
        at = row % s.norm.period * s.cols;
    }
    int64_t step = (int64_t)gridDim.y * blockDim.x * (VEC ? 4 : 1);
    for (int64_t k = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * (VEC ? 4 : 1); k < s.ld; k += step) {
        if (VEC) {
            float v[4] = {};
            if (k < s.cols) {
                if (s.kind == IN_ACTIVATE) {
                    for (int i = 0; i < 4; i++) v[i] = gated_at(s.act, base + k + i);
                } else {
                    float4 x = *(const float4 *)(s.x + base + k);
                    v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
                    for (int i = 0; s.kind == IN_NORM && i < 4; i++) v[i] = norm_at(v[i], s.norm, at + k + i, mean, r);
                }
            }
            *(uint2 *)(to + k) = make_uint2(pack2(v[0], v[1]), pack2(v[2], v[3]));
        } else {
            int64_t from = s.perm && k < s.cols ? s.perm[k] : k;
            float v = 0;
            if (k < s.cols && s.kind == IN_ACTIVATE) v = gated_at(s.act, base + from);
            if (k < s.cols && s.kind != IN_ACTIVATE) v = s.x[base + from];
            if (k < s.cols && s.kind == IN_NORM) v = norm_at(v, s.norm, at + from, mean, r);
            to[k] = __float2bfloat16_rn(v);
        }
    }
}
const __nv_bfloat16 *cuda_input_bf16(Backend *b, const LinearIn *in, int64_t n, int64_t cols, int64_t ld, const int32_t *perm) {
    Source s = {};
    s.kind = in->kind, s.x = in->x, s.norm = in->norm, s.perm = perm, s.cols = cols, s.ld = ld;
    s.act = gated_of(b, in, n);
    if (s.act.product && !perm && ld == cols) return (const __nv_bfloat16 *)in->x;
    __nv_bfloat16 *dst = (__nv_bfloat16 *)cuda_slot(b, SLOT_X, (size_t)(n * ld) * 2);
    if (!dst) return NULL;
    bool few = n <= GEMV_MAX_ROWS;
    dim3 grid((unsigned)n, few && in->kind != IN_NORM ? (unsigned)((ld + 1023) / 1024) : 1);
    unsigned threads = few && in->kind == IN_NORM ? 1024 : 256;
    launch_early(b, cols % 4 == 0 && !perm ? input_kernel<true> : input_kernel<false>, grid, dim3(threads), 0, dst, s);
    return LAUNCHED(b, "输入") ? dst : NULL;
}

/* ---- cuBLAS ---- */

/* y(n, rows) 行主序 (+)= x(n, ldx)·wᵀ(rows, ldw)：列主序看是 (rows×n) = w(cols×rows)ᵀ·x(cols×n)。 */
static bool gemm(Backend *b, void *y, bool half_out, bool add, const void *x, int64_t ldx, const void *w, int64_t ldw,
                 int64_t n, int64_t rows, int64_t cols, bool bf16) {
    const float one = 1, beta = add ? 1 : 0;
    cudaDataType_t t = bf16 ? CUDA_R_16BF : CUDA_R_32F;
    return cuda_blas_ok(b, cublasGemmEx(cuda_of(b)->blas, CUBLAS_OP_T, CUBLAS_OP_N, (int)rows, (int)n, (int)cols,
                                   &one, w, t, (int)ldw, x, t, (int)ldx, &beta, y, half_out ? CUDA_R_16BF : CUDA_R_32F,
                                   (int)rows, bf16 ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_PEDANTIC,
                                   CUBLAS_GEMM_DEFAULT),
                   "矩阵乘");
}
__global__ static void permute_kernel(float *dst, const float *x, int64_t rows, int64_t cols,
                                      const int32_t *perm) {
    EACH(i, rows * cols) dst[i] = x[i / cols * cols + perm[i % cols]];
}

/* 权重的行 [row0, row0+rows) 作操作数：本来就是的直接用，否则展开到 SLOT_W。 */
static const void *operand(Backend *b, const QTensor *w, int64_t row0, int64_t rows, bool bf16, int64_t *ld) {
    if (w->dense == (bf16 ? DT_BF16 : DT_F32) && !w->perm) {
        *ld = dense_stride(w);
        return (const char *)w->data + row0 * *ld * (bf16 ? 2 : 4);
    }
    *ld = bf16 ? (w->cols + 7) / 8 * 8 : w->cols;
    void *to = cuda_slot(b, SLOT_W, (size_t)(rows * *ld) * (bf16 ? 2 : 4));
    if (!to) return NULL;
    bool ok = bf16 ? cuda_expand_bf16(b, (__nv_bfloat16 *)to, *ld, w, row0, rows)
                   : cuda_expand_f32(b, (float *)to, w, row0, rows, false);
    return ok ? to : NULL;
}
static bool gemm_f32(Backend *b, float *y, bool add, const float *x, int64_t n, const QTensor *w, int64_t row0, int64_t rows) {
    int64_t ld;
    const void *wd = operand(b, w, row0, rows, false, &ld);
    if (wd && w->perm) {
        float *to = (float *)cuda_slot(b, SLOT_X, (size_t)(n * w->cols) * 4);
        if (!to) return false;
        permute_kernel<<<cuda_blocks(n * w->cols, 256), 256, 0, STREAM(b)>>>(to, x, n, w->cols, w->perm);
        x = to;
    }
    return wd && LAUNCHED(b, "展开") && gemm(b, y, false, add, x, w->cols, wd, ld, n, rows, w->cols, false);
}

bool cuda_linear_part(Backend *b, float *y, const float *x, int64_t n, const QTensor *w, int64_t row0, int64_t rows,
                      bool exact) {
    if (b->compute != COMPUTE_BF16 || exact) return gemm_f32(b, y, false, x, n, w, row0, rows);
    if (row0 % QT_PANEL == 0 && gemv_accepts(w, n)) return cuda_gemv_part(b, y, w, row0, rows, x, n);
    int64_t ldx = (w->cols + 31) / 32 * 32, ldw;
    LinearIn in = {};
    in.x = x;
    const __nv_bfloat16 *xd = cuda_input_bf16(b, &in, n, w->cols, ldx, w->perm);
    const void *wd = xd ? operand(b, w, row0, rows, true, &ldw) : NULL;
    return wd && gemm(b, y, false, false, xd, ldx, wd, ldw, n, rows, w->cols, true);
}

__global__ static void bias_kernel(void *y, const float *bias, int64_t n, int64_t rows, bool half) {
    EACH(i, n * rows) {
        if (half)
            ((__nv_bfloat16 *)y)[i] = __float2bfloat16_rn(__bfloat162float(((__nv_bfloat16 *)y)[i]) + bias[i % rows]);
        else
            ((float *)y)[i] += bias[i % rows];
    }
}
static bool add_bias(Backend *b, const LinearOut *o, int64_t n, bool half) {
    if (!o->bias) return true;
    bias_kernel<<<cuda_blocks(n * o->w->rows, 256), 256, 0, STREAM(b)>>>(o->y, o->bias, n, o->w->rows, half);
    return LAUNCHED(b, "偏置");
}

static void linear_bf16(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n) {
    int64_t cols = out[0].w->cols, ldx = (cols + 31) / 32 * 32;
    const __nv_bfloat16 *x = NULL;
    for (int i = 0, k; i < n_out; i = k) { /* [i, k)：都走同一条路的几个 */
        const int32_t *perm = out[i].w->perm;
        bool few = gemv_accepts(out[i].w, n);
        for (k = i + 1; k < n_out && few && gemv_accepts(out[k].w, n);) k++;
        if (few) {
            if (!cuda_gemv(b, out + i, k - i, in, n)) return;
            x = NULL;
            continue;
        }
        if (!x || perm || out[i - 1].w->perm) x = cuda_input_bf16(b, in, n, cols, ldx, perm);
        bool half = out[i].opaque && cuda_opaque(b, n);
        int64_t ldw;
        const void *w = x ? operand(b, out[i].w, 0, out[i].w->rows, true, &ldw) : NULL;
        if (!w || !gemm(b, out[i].y, half, out[i].sum != NULL, x, ldx, w, ldw, n, out[i].w->rows, cols, true) ||
            !add_bias(b, &out[i], n, half))
            return;
    }
}
const float *cuda_input_f32(Backend *b, const LinearIn *in, int64_t n, int64_t cols) {
    if (in->kind == IN_PLAIN) return in->x;
    if (in->kind == IN_NORM)
        b->ops->norm(b, in->tmp, in->x, &in->norm, n, cols);
    else
        b->ops->activate(b, in->tmp, in->x, in->up, n * cols, in->f);
    return in->tmp;
}
void cuda_linear(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n) {
    if (out[0].opaque) cuda_of(b)->product = false;
    if (b->compute == COMPUTE_BF16) return linear_bf16(b, out, n_out, in, n);
    const float *x = cuda_input_f32(b, in, n, out[0].w->cols);
    for (int i = 0; i < n_out; i++)
        if (!gemm_f32(b, out[i].y, out[i].sum != NULL, x, n, out[i].w, 0, out[i].w->rows) || !add_bias(b, &out[i], n, false))
            return;
}
void cuda_linear_exact(Backend *b, float *y, const float *x, int64_t n, const QTensor *w) {
    cuda_linear_part(b, y, x, n, w, 0, w->rows, true);
}
