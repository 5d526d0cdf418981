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
/* 把 [0, n) 均分给各线程，每个线程从自己那一段的开头起每次取 step 个，算完再帮别的线程：各线程读的内存因而基本相邻。 */
void pool_run_ranges(CpuPool *p, int64_t n, int64_t step,
                     void (*fn)(void *ctx, int64_t first, int64_t last, int thread), void *ctx);

typedef struct CpuKernels CpuKernels; /* 某一指令集的内核表，见 kernels.h */
typedef struct CpuBackend {
    CpuPool *pool;
    const CpuKernels *kernels;
    int64_t block_bytes; /* 矩阵乘的权重块的大小上限：二级缓存的五分之四 */
    int n_slots;    /* 2·线程数+3：每线程工作区、矩阵乘的每线程工作区、矩阵乘共用的两块（bf16 或 s8 激活、换序的激活）、二阶矩与误差的反馈 */
    void **scratch; /* 按需增长 */
    size_t *scratch_bytes;
} CpuBackend;

/* 第 thread 个线程的工作区（64 字节对齐、内容不定），至少 bytes 字节。内存不足: 置 b->err 并返回 NULL。
 * 只能在 pool_run 之外调用（先为所有线程备好），任务内只取用。 */
void *cpu_scratch(Backend *b, int thread, size_t bytes);
/* 同上，按槽号取。[0,T) 即 cpu_scratch；[T,2T] 专供 cpu_linear_rows，故在 cpu_scratch 的内容有效时可调它。 */
void *cpu_slot(Backend *b, int slot, size_t bytes);

/* y(n, row1-row0) = x(n,in)·W[row0:row1]ᵀ，y 的行距为 ldy；row0 须为 16 的倍数。多线程。op_linear 与 op_score 共用。 */
void cpu_linear_rows(Backend *b, float *y, int64_t ldy, const float *x, int64_t n,
                     const QTensor *w, int64_t row0, int64_t row1);
/* 同上，但不论计算模式都用 f32 的激活（统计量不能有 bf16 的舍入）。 */
void cpu_linear_rows_f32(Backend *b, float *y, int64_t ldy, const float *x, int64_t n,
                         const QTensor *w, int64_t row0, int64_t row1);

/* 算子的实现，含义与参数见 backend.h 的 BackendOps。 */
void cpu_linear(Backend *b, const LinearOut *out, int n_out, const float *x, int64_t n);
/* 同上两个，输入由 in 定，可加到 y 上。 */
void cpu_linear_from(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n);
void cpu_linear_int8_from(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n,
                          const ActQuant *act);
void cpu_linear_rounded(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n,
                        const ActQuant *act);
void cpu_attend_step(Backend *b, const StepJob *job);
void cpu_attend_prefill(Backend *b, const PrefillJob *job);
bool cpu_prefill_accepts(Backend *b, const PrefillJob *job, int64_t rows);
bool cpu_factor(Backend *b, const FactorJob *job);
void cpu_linear_int8(Backend *b, const LinearOut *out, int n_out, const float *x, int64_t n,
                     const ActQuant *act);
void cpu_round_act(Backend *b, float *x, int64_t n, int64_t d, const ActQuant *act);
/* 同上，取整成整数（linear_int8.c）。 */
void cpu_round_int(Backend *b, float *x, int64_t n, int64_t d, const ActQuant *act);
/* 线性层的输入 (n, cols)：in->x，或算到 in->tmp。 */
const float *cpu_input(Backend *b, const LinearIn *in, int64_t n, int64_t cols);
void cpu_embed(Backend *b, float *y, const QTensor *table, const int32_t *ids, int64_t n);
void cpu_norm(Backend *b, float *y, const float *x, const NormSpec *s, int64_t n, int64_t d);
void cpu_rope(Backend *b, float *x, int64_t n, int64_t heads, int64_t dim, int64_t half,
              const float *cos_table, const float *sin_table, int64_t first, bool interleaved);
void cpu_attention(Backend *b, float *out, const float *q, const AttnSide *k, const AttnSide *v,
                   int64_t n, const AttnSpec *s);
void cpu_kv_write(Backend *b, KvStore *s, const float *x, int64_t n);
void cpu_kv_quantize(Backend *b, KvStore *s, const KvStore *near, int64_t pos, int64_t n);
void cpu_activate(Backend *b, float *y, const float *gate, const float *up, int64_t n,
                  Activation f);
void cpu_multiply(Backend *b, float *y, const float *x, float a, int64_t n);
void cpu_gather_rows(Backend *b, float *dst, const float *src, const int32_t *index, int64_t n,
                     int64_t d);
void cpu_scatter_rows(Backend *b, float *dst, const float *src, const int32_t *index,
                      const float *weight, int64_t n, int64_t d);
void cpu_add(Backend *b, float *y, const float *x, int64_t n);
void cpu_score(Backend *b, const ScoreJob *job);
void cpu_pack_dense(Backend *b, QTensor *q, const float *w);
void cpu_pack_stored(Backend *b, QTensor *q, const void *host, DType stored, bool *finite);
void cpu_qparams(Backend *b, float *scale, float *zero, const float *w, int64_t rows, int64_t cols,
                 const QSpec *spec);
void cpu_quantize(Backend *b, QTensor *q, const float *w, const float *scale, const float *zero);
void cpu_dequantize(Backend *b, float *w, const QTensor *q);
void cpu_linear_exact(Backend *b, float *y, const float *x, int64_t n, const QTensor *w);
void cpu_parallel(Backend *b, int64_t n, void (*fn)(void *ctx, int64_t task), void *ctx);
void cpu_gram(Backend *b, float *g, const float *x, int64_t n, int64_t d);
void cpu_feedback(Backend *b, const FeedbackJob *job);
void cpu_matmul(Backend *b, float *y, const float *a, const float *c, int64_t m, int64_t k,
                int64_t n, bool transpose_a);
void cpu_rmsnorm_grad(Backend *b, float *dx, float *dweight, const float *dy, const float *x,
                      const float *weight, int64_t n, int64_t d, float eps);
void cpu_silu_mul_grad(Backend *b, float *dgate, float *dup, const float *dy, const float *gate,
                       const float *up, int64_t n);
void cpu_attention_grad(Backend *b, float *dq, float *dk, float *dv, const float *d_out,
                        const float *q, const float *k, const float *v, int64_t n,
                        const AttnSpec *s);
void cpu_round_act_grad(Backend *b, float *d, const float *x, int64_t n, int64_t cols, int bits);
void cpu_score_grad(Backend *b, const ScoreGradJob *job);
void cpu_group_range(Backend *b, float *lo, float *hi, const float *x, int64_t rows, int64_t cols,
                     int64_t group);
void cpu_group_range_grad(Backend *b, float *dx, const float *x, const float *lo, const float *hi,
                          const float *d_lo, const float *d_hi, int64_t rows, int64_t cols,
                          int64_t group);
void cpu_scale(Backend *b, float *y, const float *x, const float *row, const float *col,
               int64_t rows, int64_t cols);
void cpu_scale_grad(Backend *b, float *d_row, float *d_col, const float *dy, const float *x,
                    const float *row, const float *col, int64_t rows, int64_t cols);
void cpu_fake_quant(Backend *b, float *y, const float *x, const float *scale, const float *zero,
                    int64_t rows, int64_t cols, const QSpec *spec);
void cpu_fake_quant_grad(Backend *b, float *dx, float *dscale, const float *dy, const float *x,
                         const float *scale, const float *zero, int64_t rows, int64_t cols,
                         const QSpec *spec);
#endif
