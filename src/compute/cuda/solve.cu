/* solve — 求解器与反向用的矩阵乘、误差反馈、Hessian 的分解 */
#include <stdlib.h>

#include "compute/cuda/cuda.h"

__global__ static void to_bf16_kernel(__nv_bfloat16 *dst, int64_t ld, const float *x, int64_t rows, int64_t cols) {
    EACH(i, rows * ld) {
        int64_t r = i / ld, k = i % ld;
        dst[i] = __float2bfloat16_rn(k >= cols ? 0 : x[r * cols + k]);
    }
}

enum { GRAM_STRIPS = 8, GRAM_MIN = 1024 }; /* 只算上三角的若干条 */
void cuda_gram(Backend *b, float *g, const float *x, int64_t n, int64_t d) {
    bool bf16 = b->compute == COMPUTE_BF16;
    const void *xd = x;
    int64_t ld = bf16 ? (d + 7) / 8 * 8 : d;
    if (bf16) {
        xd = cuda_slot(b, SLOT_X, (size_t)(n * ld) * 2);
        if (!xd) return;
        to_bf16_kernel<<<cuda_blocks(n * ld, 256), 256, 0, STREAM(b)>>>((__nv_bfloat16 *)xd, ld, x, n, d);
    }
    const float one = 1;
    cudaDataType_t t = bf16 ? CUDA_R_16BF : CUDA_R_32F;
    int64_t item = bf16 ? 2 : 4, strip = (d / GRAM_STRIPS + 127) / 128 * 128;
    if (strip < GRAM_MIN) strip = GRAM_MIN;
    for (int64_t i = 0; i < d; i += strip) { /* 行 [i, i+strip) 的上三角部分：列从 i 起；列主序看是 d−i 行 */
        int64_t rows = d - i < strip ? d - i : strip;
        const char *from = (const char *)xd + i * item;
        if (!cuda_blas_ok(b, cublasGemmEx(cuda_blas(b), CUBLAS_OP_N, CUBLAS_OP_T, (int)(d - i), (int)rows, (int)n, &one, from, t,
                                          (int)ld, from, t, (int)ld, &one, g + i * d + i, CUDA_R_32F, (int)d,
                                          bf16 ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_PEDANTIC, CUBLAS_GEMM_DEFAULT), "gram"))
            return;
    }
}

void cuda_update_rest(Backend *b, float *w, const float *err, const float *u, int64_t rows, int64_t n, int64_t i1,
                      int64_t i2) {
    const float minus = -1, one = 1;
    int64_t k = i2 - i1, rest = n - i2;
    cuda_blas_ok(b, cublasGemmEx(cuda_blas(b), CUBLAS_OP_N, CUBLAS_OP_N, (int)rest, (int)rows, (int)k, &minus,
                            u + i1 * n + i2, CUDA_R_32F, (int)n, err, CUDA_R_32F, (int)k, &one, w + i2, CUDA_R_32F,
                            (int)n, CUBLAS_COMPUTE_32F_PEDANTIC, CUBLAS_GEMM_DEFAULT), "update_rest");
}

/* y(m,n) = a·c 或 aᵀ·c，行主序；列主序看是 yᵀ = cᵀ·aᵀ。 */
void cuda_matmul(Backend *b, float *y, const float *a, const float *c, int64_t m, int64_t k, int64_t n,
                 bool transpose_a) {
    bool bf16 = b->compute == COMPUTE_BF16;
    const void *ad = a, *cd = c;
    if (bf16) {
        __nv_bfloat16 *pa = (__nv_bfloat16 *)cuda_slot(b, SLOT_X, (size_t)(m * k) * 2);
        __nv_bfloat16 *pc = (__nv_bfloat16 *)cuda_slot(b, SLOT_W, (size_t)(k * n) * 2);
        if (!pa || !pc) return;
        to_bf16_kernel<<<cuda_blocks(m * k, 256), 256, 0, STREAM(b)>>>(pa, m * k, a, 1, m * k);
        to_bf16_kernel<<<cuda_blocks(k * n, 256), 256, 0, STREAM(b)>>>(pc, k * n, c, 1, k * n);
        ad = pa, cd = pc;
    }
    const float one = 1, zero = 0;
    cudaDataType_t t = bf16 ? CUDA_R_16BF : CUDA_R_32F;
    cuda_blas_ok(b, cublasGemmEx(cuda_blas(b), CUBLAS_OP_N, transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, (int)n, (int)m,
                            (int)k, &one, cd, t, (int)n, ad, t, (int)(transpose_a ? m : k), &zero, y, CUDA_R_32F,
                            (int)n, bf16 ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_PEDANTIC, CUBLAS_GEMM_DEFAULT), "matmul");
}

/* 一块一行：列依次，块内各线程分担后面的列。次序同 CPU：每个 w 依次减去 err·u。 */
__global__ static void feedback_kernel(FeedbackJob j, const int32_t *group) {
    extern __shared__ float w[];
    __shared__ float d;
    int64_t r = blockIdx.x, width = j.i2 - j.i1;
    float top = (float)((1 << j.bits) - 1);
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x) w[i] = j.w[r * j.cols + j.i1 + i];
    for (int64_t i = 0; i < width; i++) {
        const float *u = j.u + (j.i1 + i) * j.cols + j.i1;
        __syncthreads();
        if (threadIdx.x == 0) {
            int32_t g = group[j.i1 + i];
            float s = j.scale[r * j.n_groups + g], z = j.zero[r * j.n_groups + g];
            float c = __fadd_rn(rintf(__fdiv_rn(w[i], s)), z);
            c = c > 0 ? c < top ? c : top : 0;
            float q = __fmul_rn(s, __fadd_rn(c, -z));
            d = __fdiv_rn(__fadd_rn(w[i], -q), u[i]);
            w[i] = q;
            j.err[r * width + i] = d;
        }
        __syncthreads();
        for (int64_t k = i + 1 + threadIdx.x; k < width; k += blockDim.x) w[k] = __fadd_rn(w[k], -__fmul_rn(d, u[k]));
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x) j.w[r * j.cols + j.i1 + i] = w[i];
}
void cuda_feedback(Backend *b, const FeedbackJob *job) {
    int32_t *g = (int32_t *)cuda_slot(b, SLOT_HOST, (size_t)job->cols * 4);
    if (!g || !cuda_ok(b, cudaMemcpyAsync(g, job->group, (size_t)job->cols * 4, cudaMemcpyHostToDevice, STREAM(b)), "组号"))
        return;
    size_t shared = (size_t)(job->i2 - job->i1) * 4;
    feedback_kernel<<<(unsigned)job->rows, 64, shared, STREAM(b)>>>(*job, g);
    LAUNCHED(b, "feedback");
}

/* ---- Hessian 的分解（双精度，cuSOLVER） ----
 * 行列倒序后 A = LLᵀ，X = L⁻¹，再倒回来就是 u（见 linalg.h）。cuSOLVER 是列主序，其下三角存的 (i, j) 在 i + j·n。 */
__global__ static void fill_kernel(double *f, FactorJob j, const int32_t *perm, const uint8_t *dead) {
    EACH(i, j.n * j.n) {
        int64_t r = j.n - 1 - i / j.n, c = j.n - 1 - i % j.n;
        double v = j.norm * (double)j.gram[perm[r] * j.n + perm[c]];
        f[i] = r == c ? (dead[r] ? 1 : v) + j.damp : v;
    }
}
__global__ static void store_kernel(float *u, const double *f, int64_t n) {
    __shared__ double tile[32][33];
    int64_t r0 = (int64_t)blockIdx.y * 32, c0 = (int64_t)blockIdx.x * 32; /* u 的一格 */
    int64_t r = r0 + threadIdx.x, c = c0 + threadIdx.y;
    if (r < n && c < n) tile[threadIdx.y][threadIdx.x] = f[(n - 1 - r) + (n - 1 - c) * n];
    __syncthreads();
    r = r0 + threadIdx.y, c = c0 + threadIdx.x;
    if (r < n && c < n) u[r * n + c] = r <= c ? (float)tile[threadIdx.x][threadIdx.y] : 0;
}
static bool solver_ok(Backend *b, cusolverStatus_t code, const char *what) {
    if (!cuda_ok(b, cudaGetLastError(), what)) return false;
    return code == CUSOLVER_STATUS_SUCCESS ||
           cuda_fail(b, code == CUSOLVER_STATUS_ALLOC_FAILED ? ERR_MEMORY : ERR_DEVICE, "cuSOLVER：%s 失败：错误码 %d", what,
                     (int)code);
}
/* 暂存各段的大小由 cuSOLVER 给出。返回: 两步的 info 都是 0。 */
static bool factor_on_device(Backend *b, cusolverDnHandle_t h, const FactorJob *job, double *f, char *small) {
    int64_t n = job->n;
    int32_t *perm = (int32_t *)small;
    uint8_t *dead = (uint8_t *)(perm + n);
    int *info = (int *)(small + (n * 5 + 15) / 16 * 16), result[2] = {1, 1};
    size_t dev[2] = {}, host[2] = {};
    cudaDataType t = CUDA_R_64F;
    b->ops->write(b, perm, job->perm, (size_t)n * 4);
    b->ops->write(b, dead, job->dead, (size_t)n);
    if (b->err.code != ERR_NONE ||
        !solver_ok(b, cusolverDnXpotrf_bufferSize(h, NULL, CUBLAS_FILL_MODE_LOWER, n, t, f, n, t, &dev[0], &host[0]), "问大小") ||
        !solver_ok(b, cusolverDnXtrtri_bufferSize(h, CUBLAS_FILL_MODE_LOWER, CUBLAS_DIAG_NON_UNIT, n, t, f, n, &dev[1], &host[1]),
                   "问大小"))
        return false;
    size_t dev_bytes = dev[0] > dev[1] ? dev[0] : dev[1], host_bytes = host[0] > host[1] ? host[0] : host[1];
    void *work = cuda_slot(b, SLOT_W, dev_bytes), *host_work = malloc(host_bytes + 1);
    bool ok = work && host_work;
    if (!host_work) cuda_fail(b, ERR_MEMORY, "内存不足");
    if (ok) {
        fill_kernel<<<cuda_blocks(n * n, 256), 256, 0, STREAM(b)>>>(f, *job, perm, dead);
        ok = LAUNCHED(b, "Hessian") &&
             solver_ok(b, cusolverDnXpotrf(h, NULL, CUBLAS_FILL_MODE_LOWER, n, t, f, n, t, work, dev_bytes, host_work, host_bytes,
                                      info), "Cholesky");
        if (ok) b->ops->read(b, result, info, 4); /* 不正定就不必求逆 */
        if (ok && result[0] == 0) {
            ok = solver_ok(b, cusolverDnXtrtri(h, CUBLAS_FILL_MODE_LOWER, CUBLAS_DIAG_NON_UNIT, n, t, f, n, work, dev_bytes,
                                          host_work, host_bytes, info + 1), "求逆");
            if (ok) b->ops->read(b, result + 1, info + 1, 4);
        }
    }
    free(host_work);
    if (!ok || b->err.code != ERR_NONE || result[0] || result[1]) return false;
    dim3 grid((unsigned)((n + 31) / 32), (unsigned)((n + 31) / 32)), block(32, 32);
    store_kernel<<<grid, block, 0, STREAM(b)>>>(job->u, f, n);
    return LAUNCHED(b, "Hessian");
}
bool cuda_factor(Backend *b, const FactorJob *job) {
    CudaBackend *c = cuda_of(b);
    size_t n = (size_t)job->n;
    double *f = (double *)cuda_slot(b, SLOT_Z, n * n * 8);
    char *small = (char *)cuda_slot(b, SLOT_HOST, n * 5 + 64);
    if (!f || !small) return false;
    if (!c->solver && !solver_ok(b, cusolverDnCreate(&c->solver), "打开")) return false;
    return solver_ok(b, cusolverDnSetStream(c->solver, STREAM(b)), "设置流") && factor_on_device(b, c->solver, job, f, small);
}
