/* cpu — CPU 后端的内部约定（只供 src/compute/cpu/ 内使用）
 * 一份内核源码按指令集各编译一次（generic、avx2、avx512、avx512_bf16），运行时选表；
 * 线程只切分输出（行、列块、头），从不切分归约维，因此结果与线程数无关。 */
#ifndef PTQ_COMPUTE_CPU_H
#define PTQ_COMPUTE_CPU_H
#include "compute/backend.h"

/* 线程池：主线程也干活；task 动态领取。fn 的 thread 在 [0, n_threads) 内。 */
typedef struct CpuPool CpuPool;
CpuPool *pool_open(int n_threads);
void pool_close(CpuPool *p);
void pool_run(CpuPool *p, int64_t n_tasks, void (*fn)(void *ctx, int64_t task, int thread),
              void *ctx);

typedef struct CpuKernels CpuKernels; /* 某一指令集的内核表，见 kernels.h */
typedef struct CpuBackend {
    CpuPool *pool;
    const CpuKernels *kernels;
    void **scratch; /* 每线程工作区，按需增长 */
    size_t *scratch_bytes;
} CpuBackend;

/* 第 thread 个线程的工作区（64 字节对齐、内容不定），至少 bytes 字节。内存不足: 置 b->err 并返回 NULL。
 * 只能在 pool_run 之外调用（先为所有线程备好），任务内只取用。 */
void *cpu_scratch(Backend *b, int thread, size_t bytes);

/* y(n, row1-row0) = x(n,in)·W[row0:row1]ᵀ，y 的行距为 ldy；row0 须为 16 的倍数。多线程。op_linear 与 op_score 共用。 */
void cpu_linear_rows(Backend *b, float *y, int64_t ldy, const float *x, int64_t n,
                     const QTensor *w, int64_t row0, int64_t row1);
#endif
