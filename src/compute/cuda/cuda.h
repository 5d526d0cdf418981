/* cuda — CUDA 后端的内部约定（只供 src/compute/cuda/ 内使用）
 * 一个流、一个 cuBLAS 句柄；每次 CUDA 调用都查，错误粘在 Backend.err。稠密权重按行存放（行距补到偶数），
 * 量化权重与 CPU 同样的面板。归约次序固定，不用原子加浮点数，所以同样的输入得到同样的位。 */
#ifndef PTQ_COMPUTE_CUDA_H
#define PTQ_COMPUTE_CUDA_H
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define _Noreturn
extern "C" {
#include "compute/plugin.h"
}

enum { SLOT_X, SLOT_W, SLOT_Z, SLOT_A, SLOT_B, SLOT_HOST, SLOT_GRAD, N_SLOTS };

typedef struct CudaBackend {
    cudaStream_t stream;
    cublasHandle_t blas;
    Allocator memory;
    void *slot[N_SLOTS];
    size_t slot_bytes[N_SLOTS];
    DeviceInfo device;
    char isa[16];
} CudaBackend;

static inline CudaBackend *cuda_of(Backend *b) {
    return (CudaBackend *)b->impl;
}
/* 把错误记进 b->err（已有错误时不盖过）。返回: 恒为假。插件不引用主程序的符号，所以不用 err_set。 */
bool cuda_fail(Backend *b, ErrCode code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* 失败时把错误记进 b->err。返回: 成功与否。 */
bool cuda_ok(Backend *b, cudaError_t code, const char *what);
bool cuda_blas_ok(Backend *b, cublasStatus_t code, const char *what);
/* 第 slot 块显存工作区，至少 bytes 字节，内容不定。失败返回 NULL。 */
void *cuda_slot(Backend *b, int slot, size_t bytes);

#define STREAM(b) (cuda_of(b)->stream)
#define LAUNCHED(b, what) cuda_ok((b), cudaGetLastError(), (what))

static inline unsigned cuda_blocks(int64_t n, int64_t per) {
    int64_t k = (n + per - 1) / per;
    return (unsigned)(k < 1 ? 1 : k > 65535 * 16 ? 65535 * 16 : k);
}
#define EACH(i, n)                                                                                 \
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n);                      \
         i += (int64_t)gridDim.x * blockDim.x)

/* 存放的实数。 */
__device__ static inline float real_at(const void *table, DType t, int64_t i) {
    if (t == DT_F16) return __half2float(((const __half *)table)[i]);
    if (t == DT_BF16) return __bfloat162float(((const __nv_bfloat16 *)table)[i]);
    return ((const float *)table)[i];
}
__device__ static inline void real_put(void *table, DType t, int64_t i, float x) {
    if (t == DT_F16)
        ((__half *)table)[i] = __float2half_rn(x);
    else if (t == DT_BF16)
        ((__nv_bfloat16 *)table)[i] = __float2bfloat16_rn(x);
    else
        ((float *)table)[i] = x;
}

/* 一块（threads 个线程，2 的幂）内的归约，次序固定的树；各线程得到同一个结果。shared 须有 blockDim.x 个。 */
template <typename T> __device__ static T block_sum(T x, T *shared) {
    int t = (int)threadIdx.x;
    __syncthreads();
    shared[t] = x;
    for (int s = (int)blockDim.x / 2; s > 0; s /= 2) {
        __syncthreads();
        if (t < s) shared[t] += shared[t + s];
    }
    __syncthreads();
    return shared[0];
}
template <typename T> __device__ static T block_max(T x, T *shared) {
    int t = (int)threadIdx.x;
    __syncthreads();
    shared[t] = x;
    for (int s = (int)blockDim.x / 2; s > 0; s /= 2) {
        __syncthreads();
        if (t < s) shared[t] = shared[t + s] > shared[t] || shared[t + s] != shared[t + s] ? shared[t + s] : shared[t];
    }
    __syncthreads();
    return shared[0];
}

/* 算子，含义见 backend.h。 */
void cuda_linear(Backend *, const LinearOut *, int, const float *, int64_t);
void cuda_linear_exact(Backend *, float *, const float *, int64_t, const QTensor *);
void cuda_linear_int8(Backend *, const LinearOut *, int, const float *, int64_t, const ActQuant *);
void cuda_round_act(Backend *, float *, int64_t, int64_t, const ActQuant *);
void cuda_embed(Backend *, float *, const QTensor *, const int32_t *, int64_t);
void cuda_pack_dense(Backend *, QTensor *, const float *);
void cuda_quantize(Backend *, QTensor *, const float *, const float *, const float *);
void cuda_dequantize(Backend *, float *, const QTensor *);
void cuda_qparams(Backend *, float *, float *, const float *, int64_t, int64_t, const QSpec *);
void cuda_gram(Backend *, float *, const float *, int64_t, int64_t);
void cuda_feedback(Backend *, const FeedbackJob *);
void cuda_matmul(Backend *, float *, const float *, const float *, int64_t, int64_t, int64_t, bool);
void cuda_update_rest(Backend *, float *, const float *, const float *, int64_t, int64_t, int64_t,
                      int64_t);
/* y(n, rows) = x(n, cols)·W[row0:row0+rows]ᵀ，exact 时恒为 f32。 */
bool cuda_linear_part(Backend *b, float *y, const float *x, int64_t n, const QTensor *w,
                      int64_t row0, int64_t rows, bool exact);
/* W[row0:row0+rows] → 行主序 f32。 */
bool cuda_expand(Backend *b, float *dst, const QTensor *w, int64_t row0, int64_t rows);
#endif
