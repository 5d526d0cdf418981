/* cuda — CUDA 后端的内部约定（只供 src/compute/cuda/ 内使用）
 * 一个流、一个 cuBLAS 句柄；每次 CUDA 调用都查，错误粘在 Backend.err。稠密权重按行存放（行距补到偶数），
 * 量化权重与 CPU 同样的面板。归约次序固定，不用原子加浮点数，所以同样的输入得到同样的位。 */
#ifndef PTQ_COMPUTE_CUDA_H
#define PTQ_COMPUTE_CUDA_H
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <cusolverDn.h>

#define _Noreturn
extern "C" {
#include "compute/plugin.h"
}

enum { SLOT_X, SLOT_W, SLOT_Z, SLOT_A, SLOT_B, SLOT_HOST, SLOT_GRAD, SLOT_ROUNDED, SLOT_PART, N_SLOTS };

enum { COUNTERS = 65536 };

struct Profile;
struct Uploader;
struct PersistentQueue;

/* 两条流：MAIN 上计算，SIDE 上预取权重；各有自己的工作区。 */
enum { LANE_MAIN, LANE_SIDE, N_LANES };

typedef struct CudaBackend {
    Backend *self;
    cudaStream_t stream;       /* 现在派发到的：lanes[lane]；经 STREAM 取 */
    cudaStream_t lanes[N_LANES];
    int lane;
    cudaEvent_t computed, loaded; /* 预取可以开始改写的时刻；预取完的时刻 */
    cudaMemPool_t pool;
    cublasHandle_t blas;
    cusolverDnHandle_t solver; /* 第一次分解时打开 */
    int *counters; /* 显存：COUNTERS 个 0，供块之间的交接，用完归零 */
    int sms, shared;           /* 几个流式多处理器；一块的共享内存至多几字节 */
    bool early;                /* 能用程序化依赖启动 */
    bool chain, chained;       /* 上一次派发是 launch_early 的；这一次（还没查）是 */
    bool product;              /* 最近一次不透明的输出是 f(gate)·up（bf16，在 out[0].y） */
    int *watched;              /* 显存：watch 记下的，INT_MAX 为无 */
    Allocator memory, mapped;  /* memory.used 含工作区 */
    void *slot[N_LANES][N_SLOTS];
    size_t slot_bytes[N_LANES][N_SLOTS];
    size_t peak; /* 归还给驱动之前见过的占用 */
    DeviceInfo device;
    char isa[16];
    Uploader *uploader; /* 第一次传大块时打开 */
    Profile *profile; /* 见 profile.cu；NULL 即不记 */
    PersistentQueue *queue; /* 见 persistent.cu；NULL 即这种 GPU 不用 */
    int queued;             /* 排了几步还没有派发 */
} CudaBackend;

static inline CudaBackend *cuda_of(Backend *b) {
    return (CudaBackend *)b->impl;
}
/* 显存、工作区、两条流（memory.cu）。 */
bool memory_open(Backend *b);
void memory_close(CudaBackend *c);
/* 把错误记进 b->err（已有错误时不盖过）。返回: 恒为假。插件不引用主程序的符号，所以不用 err_set。 */
bool cuda_fail(Backend *b, ErrCode code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* 不多的几个整数（一步解码的 id、目标）：作内核的参数，不必为它们等一次传输。 */
enum { FEW = 64 };
struct Few {
    int32_t v[FEW];
};
static inline Few few_of(const int32_t *from, int64_t n) {
    Few f = {};
    for (int64_t i = 0; i < n && i < FEW; i++) f.v[i] = from[i];
    return f;
}
/* 失败时把错误记进 b->err。返回: 成功与否。 */
bool cuda_ok(Backend *b, cudaError_t code, const char *what);
bool cuda_blas_ok(Backend *b, cublasStatus_t code, const char *what);
/* 主机的 bytes 字节 → 显存。返回后 host 可改。 */
bool cuda_upload(Backend *b, void *dst, const void *host, size_t bytes);
void cuda_decode_weights(Backend *, float *, const void *, DType, DType, int64_t);
void cuda_pack_stored(Backend *, QTensor *, const void *, DType, bool *);
void uploader_close(CudaBackend *c);
/* 第 slot 块显存工作区，至少 bytes 字节，内容不定。失败返回 NULL。 */
void *cuda_slot(Backend *b, int slot, size_t bytes);

/* 派发还在排队的（persistent.cu）；凡要用流、要等、要改内存的，先派发它们。 */
void cuda_flush(Backend *b);
static inline cudaStream_t cuda_stream(Backend *b) {
    if (cuda_of(b)->queued) cuda_flush(b);
    return cuda_of(b)->stream;
}
/* 接着要做的不是 launch_early 的派发（可能改了权重或缓存）：后面的内核等它做完再开始。 */
static inline void cuda_unchain(Backend *b) {
    cuda_stream(b);
    cuda_of(b)->chain = cuda_of(b)->chained = false;
}
static inline cublasHandle_t cuda_blas(Backend *b) {
    cuda_stream(b);
    return cuda_of(b)->blas;
}
#define STREAM(b) cuda_stream(b)
/* 一次派发之后：查错误。返回: 成功与否。 */
bool cuda_launched(Backend *b, const char *what);
#define LAUNCHED(b, what) cuda_launched((b), (what))
void profile_open(CudaBackend *c);
void profile_mark(CudaBackend *c, const char *what);
void profile_close(CudaBackend *c);

/* 程序化依赖启动（计算能力 9.0 起）：这样派发的内核可以在前一个做完之前开始，须在碰前面的结果（读或写）之前 grid_wait；
 * grid_release 之后下一个就可以开始。权重在 grid_wait 之前就读：所以前一次派发若不是这一类（或许正写着权重），就等它做完。 */
__device__ static inline void grid_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ static inline void grid_release() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
template <typename... P, typename... A>
static inline void launch_early(Backend *b, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... args) {
    cudaLaunchConfig_t c = {};
    cudaLaunchAttribute a = {};
    a.id = cudaLaunchAttributeProgrammaticStreamSerialization, a.val.programmaticStreamSerializationAllowed = 1;
    c.gridDim = grid, c.blockDim = block, c.dynamicSmemBytes = shared, c.stream = STREAM(b);
    c.attrs = &a, c.numAttrs = cuda_of(b)->early && cuda_of(b)->chain ? 1 : 0;
    cudaLaunchKernelEx(&c, kernel, P(args)...);
    cuda_of(b)->chained = true;
}

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

__device__ static inline uint32_t pack2(float a, float b) {
    __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
    return *(uint32_t *)&v;
}
/* c(16,8) += a(16,16)·b(16,8)，bf16 → f32，各线程持有的部分见 PTX 的 mma.m16n8k16。 */
__device__ static inline void mma(float *c, const uint32_t *a, const uint32_t *b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* 算子，含义见 backend.h。 */
void cuda_linear(Backend *, const LinearOut *, int, const LinearIn *, int64_t);
void cuda_linear_exact(Backend *, float *, const float *, int64_t, const QTensor *);
void cuda_linear_int8(Backend *, const LinearOut *, int, const LinearIn *, int64_t, const ActQuant *);
bool cuda_factor(Backend *, const FactorJob *);
void cuda_linear_rounded(Backend *, const LinearOut *, int, const LinearIn *, int64_t, const ActQuant *);
void cuda_round_act(Backend *, float *, int64_t, int64_t, const ActQuant *);
/* 同上，FP8 与 LLM.int8 的（round_act.cu）。 */
void cuda_round_values(Backend *, float *, int64_t, int64_t, const ActQuant *);
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
/* in 化为 f32 (n, cols)，在 in->x 或 in->tmp。 */
const float *cuda_input_f32(Backend *b, const LinearIn *in, int64_t n, int64_t cols);
/* W[row0:row0+rows] → 行主序 f32。 */
bool cuda_expand(Backend *b, float *dst, const QTensor *w, int64_t row0, int64_t rows);
#endif
