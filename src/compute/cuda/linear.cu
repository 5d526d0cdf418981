/* linear — 线性层：输入化为 bf16（连同归一化或激活函数，一趟），再按行数与形状走 gemv.cu、skinny.cu、gemm.cu 或 cuBLAS
 * 稠密权重就是 cuBLAS 的操作数（行主序）；量化权重先展开成行主序的 f32 或 bf16 再乘。 */
#include "compute/cuda/gemm.h"
#include "compute/cuda/input.h"
#include "compute/cuda/linear.h"

bool cuda_opaque(const Backend *b, int64_t n) {
    return b->compute == COMPUTE_BF16 && n > GEMV_MAX_ROWS;
}

/* ---- 输入 → bf16 (n, ld)，行尾补零 ---- */

/* 行数多的。 */
template <int FOURS, bool NORM> __global__ ROW_BOUNDS(FOURS, NORM) static void input_rows_kernel(__nv_bfloat16 *dst, Source s) {
    __shared__ double sh[32];
    float v[FOURS][4];
    load_row<FOURS, NORM>(s, v, sh);
#pragma unroll
    for (int i = 0; i < FOURS; i++)
        if (four_at(i) < s.ld)
            *(uint2 *)(dst + blockIdx.x * s.ld + four_at(i)) = make_uint2(pack2(v[i][0], v[i][1]), pack2(v[i][2], v[i][3]));
}
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
    Source s = source_of(b, in, n, cols, ld, perm);
    if (s.act.product && !perm && ld == cols) return (const __nv_bfloat16 *)in->x;
    __nv_bfloat16 *dst = (__nv_bfloat16 *)cuda_slot(b, SLOT_X, (size_t)(n * ld) * 2);
    if (!dst) return NULL;
    bool few = n <= GEMV_MAX_ROWS;
    int fours = few ? 0 : row_fours(s);
    if (fours) {
        auto kernel = ROW_KERNEL(input_rows_kernel, fours, s.kind == IN_NORM);
        kernel<<<(unsigned)n, ROW_THREADS, 0, STREAM(b)>>>(dst, s);
        return LAUNCHED(b, "输入") ? dst : NULL;
    }
    dim3 grid((unsigned)n, few && in->kind != IN_NORM ? (unsigned)((ld + 1023) / 1024) : 1);
    unsigned threads = few && in->kind == IN_NORM ? 1024 : 256;
    auto kernel = cols % 4 == 0 && !perm ? input_kernel<true> : input_kernel<false>;
    static bool carved[2]; /* 与前后的内核一样多的共享内存，免得为改配比而等 */
    bool *ready = &carved[cols % 4 == 0 && !perm];
    if (!*ready) *ready = cuda_ok(b, cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100), "共享内存");
    launch_early(b, kernel, grid, dim3(threads), 0, dst, s);
    return LAUNCHED(b, "输入") ? dst : NULL;
}

/* ---- cuBLAS ---- */

/* y(n, rows) 行主序 (+)= x(n, ldx)·wᵀ(rows, ldw)：列主序看是 (rows×n) = w(cols×rows)ᵀ·x(cols×n)。 */
static bool gemm(Backend *b, void *y, bool half_out, bool add, const void *x, int64_t ldx, const void *w, int64_t ldw,
                 int64_t n, int64_t rows, int64_t cols, bool bf16) {
    const float one = 1, beta = add ? 1 : 0;
    cudaDataType_t t = bf16 ? CUDA_R_16BF : CUDA_R_32F;
    return cuda_blas_ok(b, cublasGemmEx(cuda_blas(b), CUBLAS_OP_T, CUBLAS_OP_N, (int)rows, (int)n, (int)cols,
                                   &one, w, t, (int)ldw, x, t, (int)ldx, &beta, y, half_out ? CUDA_R_16BF : CUDA_R_32F,
                                   (int)rows, bf16 ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_PEDANTIC,
                                   CUBLAS_GEMM_DEFAULT),
                   "矩阵乘");
}
__global__ static void permute_kernel(float *dst, const float *x, int64_t rows, int64_t cols,
                                      const int32_t *perm) {
    EACH(i, rows * cols) dst[i] = x[i / cols * cols + perm[i % cols]];
}

static bool gemm_f32(Backend *b, float *y, bool add, const float *x, int64_t n, const QTensor *w, int64_t row0, int64_t rows) {
    const float *wd = (const float *)w->data + row0 * w->cols;
    if (w->dense != DT_F32 || w->perm) {
        float *to = (float *)cuda_slot(b, SLOT_W, (size_t)(rows * w->cols) * 4);
        wd = to && cuda_expand_f32(b, to, w, row0, rows, false) ? to : NULL;
    }
    if (wd && w->perm) {
        float *to = (float *)cuda_slot(b, SLOT_X, (size_t)(n * w->cols) * 4);
        if (!to) return false;
        permute_kernel<<<cuda_blocks(n * w->cols, 256), 256, 0, STREAM(b)>>>(to, x, n, w->cols, w->perm);
        x = to;
    }
    return wd && LAUNCHED(b, "展开") && gemm(b, y, false, add, x, w->cols, wd, w->cols, n, rows, w->cols, false);
}

/* ---- bf16 的矩阵乘 ---- */

__global__ static void bias_kernel(void *y, const float *bias, int64_t n, int64_t rows, bool half) {
    EACH(i, n * rows) {
        if (half)
            ((__nv_bfloat16 *)y)[i] = __float2bfloat16_rn(__bfloat162float(((__nv_bfloat16 *)y)[i]) + bias[i % rows]);
        else
            ((float *)y)[i] += bias[i % rows];
    }
}
static bool add_bias(Backend *b, void *y, const float *bias, int64_t n, int64_t rows, bool half) {
    if (!bias) return true;
    bias_kernel<<<cuda_blocks(n * rows, 256), 256, 0, STREAM(b)>>>(y, bias, n, rows, half);
    return LAUNCHED(b, "偏置");
}
/* 权重 w[i] 从 row0[i] 起的 c->out[i].rows 行作操作数：本来就是 bf16 的直接用，其余的展开到 SLOT_W。 */
static bool operands(Backend *b, GemmCall *c, const QTensor *const *w, int64_t row0) {
    int64_t ld = (c->cols + 7) / 8 * 8, rows = 0;
    for (int i = 0; i < c->n_out; i++)
        if (w[i]->dense != DT_BF16 || w[i]->perm) rows += c->out[i].rows;
    __nv_bfloat16 *to = rows ? (__nv_bfloat16 *)cuda_slot(b, SLOT_W, (size_t)(rows * ld) * 2) : NULL;
    for (int i = 0; i < c->n_out; i++) {
        GemmOut *o = &c->out[i];
        o->w = to, o->ldw = ld;
        if (w[i]->dense == DT_BF16 && !w[i]->perm) {
            o->ldw = dense_stride(w[i]), o->w = (const __nv_bfloat16 *)w[i]->data + row0 * o->ldw;
            continue;
        }
        if (!to || !cuda_expand_bf16(b, to, ld, w[i], row0, o->rows)) return false;
        to += o->rows * ld;
    }
    return true;
}
/* 一起算，或各用 cuBLAS。 */
static bool multiply(Backend *b, const GemmCall *c) {
    if (skinny_accepts(b, c)) return skinny_run(b, c);
    if (gemm_accepts(b, c)) return gemm_run(b, c);
    for (int i = 0; i < c->n_out; i++) {
        const GemmOut *o = &c->out[i];
        bool half = c->form == GEMM_BF16;
        if (!gemm(b, o->y, half, o->add, c->x, c->ldx, o->w, o->ldw, c->n, o->rows, c->cols, true) ||
            !add_bias(b, o->y, o->bias, c->n, o->rows, half))
            return false;
    }
    return true;
}

bool cuda_linear_part(Backend *b, float *y, const float *x, int64_t n, const QTensor *w, int64_t row0, int64_t rows,
                      bool exact) {
    if (b->compute != COMPUTE_BF16 || exact) return gemm_f32(b, y, false, x, n, w, row0, rows);
    if (row0 % QT_PANEL == 0 && gemv_accepts(w, n)) return cuda_gemv_part(b, y, w, row0, rows, x, n);
    int64_t ldx = (w->cols + 31) / 32 * 32;
    LinearIn in = {};
    in.x = x;
    const __nv_bfloat16 *xd = cuda_input_bf16(b, &in, n, w->cols, ldx, w->perm);
    if (!xd) return false;
    GemmCall c = {};
    c.x = xd, c.ldx = ldx, c.n = n, c.cols = w->cols, c.n_out = 1, c.out[0].rows = rows, c.out[0].y = y;
    return operands(b, &c, &w, row0) && multiply(b, &c);
}

/* 输出存成哪一种：gate、up 一对尽量当场算成积。 */
static void choose_form(Backend *b, GemmCall *c, const LinearOut *out) {
    c->form = out->opaque ? GEMM_GATED : out->half ? GEMM_BF16 : GEMM_F32;
    if (!out->opaque) return;
    if (skinny_accepts(b, c))
        cuda_of(b)->product = true;
    else
        gemm_choose(b, c, cuda_opaque(b, c->n), true);
}
/* 列序、存法相同的几个（不多于 GEMM_OUT_MAX）。 */
static bool linear_many(Backend *b, const LinearOut *out, int n_out, const __nv_bfloat16 *x, int64_t ldx, int64_t n) {
    const QTensor *w[GEMM_OUT_MAX];
    GemmCall c = {};
    c.x = x, c.ldx = ldx, c.n = n, c.cols = out[0].w->cols, c.n_out = n_out, c.f = out[0].f;
    for (int i = 0; i < n_out; i++) {
        w[i] = out[i].w;
        c.out[i].rows = w[i]->rows, c.out[i].y = out[i].y, c.out[i].bias = out[i].bias, c.out[i].add = out[i].sum != NULL;
    }
    if (!operands(b, &c, w, 0)) return false;
    choose_form(b, &c, out);
    return multiply(b, &c);
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
        while (k < n_out && k - i < GEMM_OUT_MAX && out[k].w->perm == perm && same_form(&out[k], &out[i])) k++;
        if (!x || !linear_many(b, out + i, k - i, x, ldx, n)) return;
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
        if (!gemm_f32(b, out[i].y, out[i].sum != NULL, x, n, out[i].w, 0, out[i].w->rows) ||
            !add_bias(b, out[i].y, out[i].bias, n, out[i].w->rows, false))
            return;
}
void cuda_linear_exact(Backend *b, float *y, const float *x, int64_t n, const QTensor *w) {
    cuda_linear_part(b, y, x, n, w, 0, w->rows, true);
}
