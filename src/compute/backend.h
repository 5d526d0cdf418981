/* backend — 计算后端：一张算子表
 * 表中每个算子都必须有，CPU 与 CUDA 相同；上层只经 ops.h（唯一的门）调用，那里统一检查形状、类型与粘滞错误。
 * 计算与设备的错误粘在 Backend.err 里，每个线性层、块或批之后看一次（backend_check）。
 * 归约次序固定：结果与线程数、批大小无关，逐位相同（例外见 COMPUTE_BF16）。
 *
 * 内存：张量的数据（Tensor.data、QTensor 与 KvStore 的各段，下面的参数里没有注明「主机」的指针）在后端的内存里，
 * 分配自 backend_arena 的 Arena。主机的代码不直接碰它：要看、要改，经 op_read、op_write，或 memory.h 的映射
 * （CPU 上就是原来的指针，不复制；CUDA 上复制）。 */
#ifndef PTQ_COMPUTE_BACKEND_H
#define PTQ_COMPUTE_BACKEND_H
#include <stdint.h>

#include "base/arena.h"
#include "compute/kvstore.h"
#include "compute/qtensor.h"
#include "compute/search.h"
#include "compute/tensor.h"

/* 矩阵乘的输入精度。F32：全程 f32。BF16：激活与权重舍入到 bf16，乘积累加为 f32（AVX512-BF16）；
 * 单行（解码）遇到组宽是 32 的倍数（或整行一组）的量化权重时以编码相乘，权重不再舍入：更快更准，但与多行不逐位相同。
 * 归一化、softmax、残差、log-softmax 始终是 f32。 */
typedef enum { COMPUTE_F32, COMPUTE_BF16 } ComputeMode;

/* 注意力的参数。第 i 个查询的绝对位置是 first+i，它看位置 j 满足 j <= first+i，
 * 且 window>0 时 j > first+i-window。 */
typedef struct AttnSpec {
    int64_t n_heads, n_kv_heads, head_dim;
    int64_t first;  /* 第一个查询的绝对位置 */
    int64_t window; /* 0 表示不限 */
    float scale;    /* 乘在 q·k 上，通常 1/sqrt(head_dim) */
    float softcap;  /* 非 0：乘过 scale 的分数再取 softcap·tanh(分数/softcap) */
    const float *bias;    /* (n_heads, bias_stride)：分数再加上各头按键的绝对位置的偏置（ALiBi）；NULL 不加 */
    int64_t bias_stride;  /* 不小于键数，是 ATTN_BIAS_STEP 的倍数 */
} AttnSpec;
enum { ATTN_BIAS_STEP = 64, CPU_BATCH_ROWS = 2048 };

/* 归一化：RMS 为 x/sqrt(mean(x²)+eps)；center 时先减去平均值（LayerNorm）。再乘 weight、加 bias。 */
typedef struct NormSpec {
    const float *weight; /* (period, d)；NULL 不乘 */
    const float *bias;   /* 同形；NULL 不加；只在 center 时可有 */
    int64_t period;      /* 第 i 行用 weight 的第 i mod period 行，通常 1（每头一行时为头数） */
    float eps;
    bool center;
} NormSpec;

/* 激活函数。QUICK 是 x·sigmoid(1.702x)；TANH 是 gelu 的 tanh 近似，ERF 是原式。 */
typedef enum { ACTF_SILU, ACTF_GELU_ERF, ACTF_GELU_TANH, ACTF_GELU_QUICK, ACTF_RELU } Activation;

/* 位置 t 的查询，哪些位置读量化的（远），其余读原样的（近）。R 是 residual：
 *   NONE 都读近的；ALL 都读远的，连同 t 自己；STEP 远的是 [0, R·⌊t/R⌋)（攒满 R 个才一起量化，KIVI 的键）；
 *   SLIDE 远的是 [0, t−R)（KIVI 的值：近的留 t 与之前 R 个）。 */
typedef enum { FAR_NONE, FAR_ALL, FAR_STEP, FAR_SLIDE } FarRule;

/* 注意力的一侧（键或值）的来源。 */
typedef struct AttnSide {
    const KvStore *near; /* DENSE 或 TILES（两侧相同，且没有远的、不旋转）；须含一切查询要读的近的位置 */
    const KvStore *far;  /* 量化的，从位置 0 起；rule 为 NONE 时可为 NULL */
    FarRule rule;
    int64_t residual;
    const float *cos_table, *sin_table; /* (位置, half)：读出后旋转（存的是 RoPE 之前的键）；NULL 不转 */
    int64_t half;
    bool interleaved; /* 同 op_rope */
} AttnSide;

/* 位置 pos 的查询读远的 [0, 返回值)。 */
static inline int64_t attn_far_end(const AttnSide *s, int64_t pos) {
    switch (s->rule) {
    case FAR_NONE: return 0;
    case FAR_ALL: return pos + 1;
    case FAR_STEP: return pos / s->residual * s->residual;
    case FAR_SLIDE: break;
    }
    return pos > s->residual ? pos - s->residual : 0;
}

/* 逐 token 解码的注意力：n 条时间线各一个查询。第 i 条的位置是 rows[i].pos：q、k 的第 i 行就地旋转，k、v 添到缓存的末尾，
 * 查询再看缓存里的 [0, pos]。 */
typedef struct StepRow {
    KvStore *k, *v; /* 原样存的，同一类型，末尾是 pos，还放得下一个；各条互不相同 */
    int64_t pos;
} StepRow;
typedef struct StepJob {
    int64_t n; /* 不大于 STEP_MAX_ROWS */
    const StepRow *rows;
    float *q, *k, *v; /* (n, heads·dim)、(n, kv_heads·dim)；q、k 之后内容不定 */
    void *out;        /* 同 q；f32，或 bf16 */
    bool half_out;    /* out 是 bf16；只在 Backend.half_step 允许、头的维数不大于 STEP_HALF_DIM 时可用 */
    AttnSpec spec;    /* first 不用 */
    const float *cos_table, *sin_table; /* 同 op_rope；NULL 不转 */
    int64_t half;
    bool interleaved;
} StepJob;
enum { STEP_MAX_ROWS = 32, STEP_HALF_DIM = 256 };

/* 预填的注意力：各段自成一条时间线，从位置 0 起，看得见的都在段内。等于逐段就地旋转 q、k，再算注意力。 */
typedef struct PrefillSegment {
    int64_t row0, n;
} PrefillSegment;
typedef struct PrefillJob {
    int64_t n;                      /* 段数 */
    const PrefillSegment *segments; /* 在主机，互不重叠 */
    void *q, *k, *v, *out;          /* (行, heads·dim)、(行, kv_heads·dim)；f32，或 bf16；q、k、v 之后内容不定 */
    bool half_in, half_out;         /* q、k、v（out）是 bf16；以下三项只在 prefill_accepts 为真时可用 */
    bool f16;                       /* 旋转之后的 k、v 先舍入到 f16（缓存的类型） */
    AttnSpec spec;                  /* first 不用 */
    const float *cos_table, *sin_table; /* 同 op_rope；NULL 不转 */
    int64_t half;
    bool interleaved;
} PrefillJob;

/* 语言模型头 + log-softmax + 打分，一趟完成，不存整块 logits。
 * ref_x/ref_head 非空时同时对照基线：KL(基线‖当前) 与首位是否相同。 */
typedef struct ScoreJob {
    int64_t n;              /* 位置数 */
    const float *x;         /* (n, d) 最终归一化之后的隐藏状态 */
    const QTensor *head;    /* (vocab, d) */
    const int32_t *targets; /* (n) 下一个 token；<0 表示该位置不打分（nll 置 0） */
    float softcap;          /* 0 表示无；否则 logits = softcap·tanh(logits/softcap) */
    /* targets 与下面的出参在主机 */
    double *nll;            /* (n) 出：−log p(target) */
    double *lse;            /* (n) 出：log Σ exp(logits)，可为 NULL */
    int32_t *top1;          /* (n) 出：最大 logit 的下标（并列取最小），可为 NULL */
    double *top_nll;        /* (n) 出：−log p(top1)，可为 NULL */
    const float *ref_x;     /* (n, d_ref) 或 NULL */
    const QTensor *ref_head;
    double *kl;             /* (n) 出，ref_x 非空时 */
    int32_t *ref_top1;      /* (n) 出，ref_x 非空时 */
} ScoreJob;

enum { LINEAR_OUT_MAX = 8 /* 一次调用至多几个 */ };
/* 线性层的输入 (n, in)：原样的，或由它当场算出（GPU 上省去一趟写出与读入；结果与先算好再输入相同）。 */
typedef enum { IN_PLAIN, IN_NORM, IN_ACTIVATE } InputKind;
typedef struct LinearIn {
    InputKind kind;
    const float *x;   /* PLAIN 的输入；NORM 归一化之前的；ACTIVATE 的 gate */
    NormSpec norm;    /* NORM */
    const float *up;  /* ACTIVATE：f(gate)·up；NULL 即 f(gate) */
    Activation f;
    bool opaque;      /* ACTIVATE：gate、up 是 LinearOut.opaque 的输出 */
    bool half;        /* PLAIN：x 是 bf16（PrefillJob、StepJob 的 half_out 的输出）；激活的量化不是 ACT_TENSOR */
    float *tmp;       /* NORM、ACTIVATE：(n, in) 的暂存，之后内容不定；可以就是 x（ACTIVATE）*/
} LinearIn;

/* 共用一个输入的线性层之一：y(n, w->rows) = x(n,in)·Wᵀ + bias。 */
typedef struct LinearOut {
    float *y;
    const QTensor *w;
    const float *bias; /* (w->rows) 或 NULL */
    float *sum;        /* 非 NULL：y 加上结果，而不是写成结果；sum 是 (n, w->rows) 的暂存，之后内容不定 */
    bool opaque;       /* y 可以用后端自己的形式存（CUDA 的 bf16 计算存 bf16），只能再作 IN_ACTIVATE 的输入；sum 须为 NULL */
    bool half;         /* y 存成 bf16，供 PrefillJob.half_in（prefill_accepts 为真时）；sum 须为 NULL */
    Activation f;      /* opaque：那个 IN_ACTIVATE 的 f（后端可以当场就算） */
} LinearOut;

/* 逐列取整、把误差反馈给本块后面的列（GPTQ 算法 1 的内层）。对每一行、依次对 [i1, i2) 的每一列 i：
 * q = scale·(clamp(rint(w/scale)+zero) − zero)，err = (w−q)/u[i,i]，w[i+1..i2) −= err·u[i, i+1..i2)，w[i] = q。 */
typedef struct FeedbackJob {
    int64_t rows, cols, i1, i2;
    float *w;           /* (rows, cols) */
    const float *u;     /* (cols, cols) 上三角 */
    float *err;         /* (rows, i2−i1) 出 */
    const float *scale, *zero; /* (rows, n_groups) */
    const int32_t *group;      /* (cols) 每列的组号，在主机 */
    int64_t n_groups;
    int bits;
} FeedbackJob;

/* H(n,n)[i][j] = norm·gram[perm[i]][perm[j]]，对角另：dead[i] 者为 1，再都加 damp。
 * u = H⁻¹ 的上三角 Cholesky 因子（H⁻¹ = uᵀ·u），以双精度算，存成 f32，下三角为 0。 */
typedef struct FactorJob {
    int64_t n;
    const float *gram;   /* (n, n) 对称 */
    const int32_t *perm; /* (n) 主机 */
    const bool *dead;    /* (n) 主机 */
    double norm, damp;
    float *u;            /* (n, n) 出 */
    double *work;        /* 主机的暂存 (n, n+LINALG_BLOCK)；CUDA 不用 */
} FactorJob;

/* 上面打分的反向：dx = Σ scale·∂nll/∂x（没有 softcap）。 */
typedef struct ScoreGradJob {
    int64_t n;
    const float *x;         /* (n, d) */
    const QTensor *head;    /* (vocab, d) */
    const int32_t *targets; /* (n)；<0 不打分；在主机 */
    float scale;            /* 每个位置的 nll 在损失中的系数，如 1/位置数 */
    double *nll;            /* (n) 出，在主机 */
    float *dx;              /* (n, d) 出 */
} ScoreGradJob;

/* AdamW 一步中各参数共用的系数，见 adamw.c。 */
typedef struct AdamStep {
    int64_t n;
    float *param, *m, *v; /* (n) */
    const float *grad;
    float keep, rate1, beta2, rate2, eps, size, root;
} AdamStep;

typedef struct BackendOps {
    /* 主机与后端内存之间、后端内存之内的复制；copy 的两段可以重叠 */
    void (*read)(Backend *b, void *host, const void *src, size_t bytes);
    void (*write)(Backend *b, void *dst, const void *host, size_t bytes);
    void (*copy)(Backend *b, void *dst, const void *src, size_t bytes);
    /* n 段、每段 bytes 字节，第 i 段在 dst + i·dst_step、src + i·src_step；不可重叠 */
    void (*copy_2d)(Backend *b, void *dst, size_t dst_step, const void *src, size_t src_step,
                    int64_t n, size_t bytes);
    /* dst(n) f32 = 主机内存里 n 个 t（F32、F16、BF16）类型的数，再舍入到 rounded（同上三种；值仍是 f32） */
    void (*decode)(Backend *b, float *dst, const void *host, DType t, DType rounded, int64_t n);
    /* out 的 n_out 个线性层，输入都是 in；各个的结果与单独算时逐位相同（CUDA 的 bf16 计算、行数不多时只差末位：怎样沿 K 分给各块取决于
     * 一起算的有多少） */
    void (*linear)(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n);
    /* y(n,cols) = 表(rows,cols) 的第 ids[i] 行（稠密或量化皆可）；ids 在主机 */
    void (*embed)(Backend *b, float *y, const QTensor *table, const int32_t *ids, int64_t n);
    /* 逐行归一化 (n,d)；y 可与 x 相同 */
    void (*norm)(Backend *b, float *y, const float *x, const NormSpec *s, int64_t n, int64_t d);
    /* 就地旋转 x(n,heads,dim) 的前 2·half 维（HF 的 rotate_half 约定：i 与 i+half 成对；interleaved 时 2i 与 2i+1 成对）。
     * cos、sin 为 (位置, half) 的表，第 i 行用位置 first+i */
    void (*rope)(Backend *b, float *x, int64_t n, int64_t heads, int64_t dim, int64_t half,
                 const float *cos_table, const float *sin_table, int64_t first, bool interleaved);
    /* out(n,heads·dim)、q 同；k、v 须存有位置 [0, first+n) 中查询要读的 */
    void (*attention)(Backend *b, float *out, const float *q, const AttnSide *k, const AttnSide *v,
                      int64_t n, const AttnSpec *s);
    /* 见 StepJob；与分开调用 rope、kv_write、attention 相同（CUDA 上一趟做完） */
    void (*attend_step)(Backend *b, const StepJob *job);
    /* 见 PrefillJob；prefill_accepts：这样的一批（共 rows 行）能不能用 bf16 的 q、k、v、out 与 f16（CPU 恒为假） */
    void (*attend_prefill)(Backend *b, const PrefillJob *job);
    bool (*prefill_accepts)(Backend *b, const PrefillJob *job, int64_t rows);
    /* DENSE、TILES 的末尾添 n 行 x(n, heads·dim) */
    void (*kv_write)(Backend *b, KvStore *s, const float *x, int64_t n);
    /* 把 near（DENSE）的位置 [pos, pos+n) 量化进 s，之后 s->length = pos+n。参数逐通道时 pos 是组宽的倍数 */
    void (*kv_quantize)(Backend *b, KvStore *s, const KvStore *near, int64_t pos, int64_t n);
    /* y = f(gate)·up；up 为 NULL 时 y = f(gate)。y 可与二者同址 */
    void (*activate)(Backend *b, float *y, const float *gate, const float *up, int64_t n,
                     Activation f);
    void (*add)(Backend *b, float *y, const float *x, int64_t n); /* y += x */
    /* y = a·x；y 可与 x 相同；a 为 0 时恒得 0 */
    void (*multiply)(Backend *b, float *y, const float *x, float a, int64_t n);
    /* dst 的第 i 行 = src 的第 index[i] 行，行宽 d；index 在主机 */
    void (*gather_rows)(Backend *b, float *dst, const float *src, const int32_t *index, int64_t n,
                        int64_t d);
    /* dst 的第 index[i] 行 += weight[i]·src 的第 i 行；index 各不相同；index、weight 在主机 */
    void (*scatter_rows)(Backend *b, float *dst, const float *src, const int32_t *index,
                         const float *weight, int64_t n, int64_t d);
    void (*score)(Backend *b, const ScoreJob *job);
    /* 稠密 f32 (rows,cols) → 面板（按 q->dense 舍入） */
    void (*pack_dense)(Backend *b, QTensor *q, const float *w);
    /* 主机内存里行主序的 (rows,cols) 个 stored（F32、F16、BF16）类型的数直接装成稠密权重，不经 f32 的副本；*finite 为装好的都有限，
     * finite 为 NULL 即不用查 */
    void (*pack_stored)(Backend *b, QTensor *q, const void *host, DType stored, bool *finite);
    /* 由 w(rows,cols) 定 scale、zero（f32，(rows,n_groups)），RTN/GPTQ 的格点，见 ops.h */
    void (*qparams)(Backend *b, float *scale, float *zero, const float *w, int64_t rows,
                    int64_t cols, const QSpec *spec);
    /* 就近取整并装包：code = clamp(round(w/scale)+zero) */
    void (*quantize)(Backend *b, QTensor *q, const float *w, const float *scale,
                     const float *zero);
    /* 反量化（或解包稠密）到 f32 (rows,cols) */
    void (*dequantize)(Backend *b, float *w, const QTensor *q);
    /* y(n,out) = x(n,in)·Wᵀ，恒为 f32（不受 compute 影响），供求解器 */
    void (*linear_exact)(Backend *b, float *y, const float *x, int64_t n, const QTensor *w);
    /* 激活量化的线性层，见 ops.h */
    void (*linear_int8)(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n,
                        const ActQuant *act);
    /* 同上，取整后的值照常相乘；act->group 非 0 时每 group 列当作一行 */
    void (*linear_rounded)(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n,
                           const ActQuant *act);
    /* 就地取整 x(n,d)；act->group 已化入 n、d */
    void (*round_act)(Backend *b, float *x, int64_t n, int64_t d, const ActQuant *act);
    /* 在主机上并行执行 fn(ctx, 0..n-1)；各任务互不相干，只碰主机内存 */
    void (*parallel)(Backend *b, int64_t n, void (*fn)(void *ctx, int64_t task), void *ctx);
    /* g(d,d) 的上三角 += x(n,d)ᵀ·x，累加为 f32；下三角的值不定 */
    void (*gram)(Backend *b, float *g, const float *x, int64_t n, int64_t d);
    void (*feedback)(Backend *b, const FeedbackJob *job);
    /* g(d,d) 的下三角 = 上三角 */
    void (*symmetrize)(Backend *b, float *g, int64_t d);
    /* 逐列：max[c] = max(max[c], |x[r][c]|)；sum[c] += Σ行 |x[r][c]|（双精度，逐行依次）。二者可为 NULL */
    void (*column_stats)(Backend *b, float *max, double *sum, const float *x, int64_t n,
                         int64_t cols);
    /* y(cols) = Σ行 x(n,cols)，逐行依次 */
    void (*column_sum)(Backend *b, float *y, const float *x, int64_t n, int64_t cols);
    /* out[r] = Σ_c (x[r][c] − y[r·ldy+c])²，双精度；x (rows,cols)；out 在主机 */
    void (*row_errors)(Backend *b, double *out, const float *x, const float *y, int64_t ldy,
                       int64_t rows, int64_t cols);
    /* y(rows,cols)[r][c] = x[r·ldx+c] / s[c mod n] */
    void (*divide)(Backend *b, float *y, const float *x, int64_t ldx, const float *s, int64_t n,
                   int64_t rows, int64_t cols);
    /* dst[r][i] = index[i] < 0 ? 0 : src[r][index[i]]，均为 (rows,n)；index 在主机 */
    void (*gather_columns)(Backend *b, float *dst, const float *src, const int32_t *index,
                           int64_t rows, int64_t n);
    /* w[:, i2:] −= err(rows, i2−i1)·u[i1:i2, i2:]；w (rows,n)，u (n,n)；恒为 f32 */
    void (*update_rest)(Backend *b, float *w, const float *err, const float *u, int64_t rows,
                        int64_t n, int64_t i1, int64_t i2);
    /* 全部有限 */
    bool (*all_finite)(Backend *b, const float *x, int64_t n);
    /* 不等结果的 all_finite：不全有限就记下 tag（>= 0）；watched 取出记下的最小的一个并清除，没有为 -1 */
    void (*watch)(Backend *b, const float *x, int64_t n, int tag);
    int (*watched)(Backend *b);
    /* 见 FactorJob。返回: 正定 */
    bool (*factor)(Backend *b, const FactorJob *job);
    void (*adamw)(Backend *b, const AdamStep *step);
    /* d = scale·(x − y)，(rows,cols)。返回: Σ (x − y)²（平方以 f32，行内、行间依次以双精度相加） */
    double (*mse_grad)(Backend *b, float *d, const float *x, const float *y, float scale,
                       int64_t rows, int64_t cols);
    /* 以下供反向与学习，公式见 ops.h。 */
    /* y(m,n) = a·c，或 aᵀ·c（a 为 (k,m)）；c(k,n)。精度随 compute */
    void (*matmul)(Backend *b, float *y, const float *a, const float *c, int64_t m, int64_t k,
                   int64_t n, bool transpose_a);
    void (*rmsnorm_grad)(Backend *b, float *dx, float *dweight, const float *dy, const float *x,
                         const float *weight, int64_t n, int64_t d, float eps);
    void (*silu_mul_grad)(Backend *b, float *dgate, float *dup, const float *dy, const float *gate,
                          const float *up, int64_t n);
    /* q、d_out、dq (n,heads·dim)；k、v、dk、dv (n,kv_heads·dim)；s->first 须为 0；CPU 恒为 f32，CUDA 随 compute */
    void (*attention_grad)(Backend *b, float *dq, float *dk, float *dv, const float *d_out,
                           const float *q, const float *k, const float *v, int64_t n,
                           const AttnSpec *s);
    /* round_act（ACT_TOKEN）的反向：d 就地，x 是取整之前的 (n,cols) */
    void (*round_act_grad)(Backend *b, float *d, const float *x, int64_t n, int64_t cols, int bits);
    void (*score_grad)(Backend *b, const ScoreGradJob *job);
    /* 每组的最小、最大值 (rows, n_groups) */
    void (*group_range)(Backend *b, float *lo, float *hi, const float *x, int64_t rows,
                        int64_t cols, int64_t group);
    void (*group_range_grad)(Backend *b, float *dx, const float *x, const float *lo, const float *hi,
                             const float *d_lo, const float *d_hi, int64_t rows, int64_t cols,
                             int64_t group);
    void (*scale)(Backend *b, float *y, const float *x, const float *row, const float *col,
                  int64_t rows, int64_t cols);
    void (*scale_grad)(Backend *b, float *d_row, float *d_col, const float *dy, const float *x,
                       const float *row, const float *col, int64_t rows, int64_t cols);
    void (*fake_quant)(Backend *b, float *y, const float *x, const float *scale, const float *zero,
                       int64_t rows, int64_t cols, const QSpec *spec);
    void (*fake_quant_grad)(Backend *b, float *dx, float *dscale, const float *dy, const float *x,
                            const float *scale, const float *zero, int64_t rows, int64_t cols,
                            const QSpec *spec);
    /* 以下是方法的内层循环，见 ops.h 与 search.h。 */
    /* w[r][c] /= s[r] */
    void (*divide_rows)(Backend *b, float *w, const float *s, int64_t rows, int64_t cols);
    /* Σ (d·G)∘d，d (rows,cols)；tmp (rows,cols) 是暂存 */
    double (*quadratic)(Backend *b, const float *d, const QTensor *g, float *tmp, int64_t rows,
                        int64_t cols);
    void (*clip)(Backend *b, const ClipJob *job);
    void (*clamp_grid)(Backend *b, const ClampJob *job);
    void (*clamp_grid_grad)(Backend *b, const ClampJob *job);
    void (*fake_pack)(Backend *b, QTensor *q, float *y, const float *x, const float *scale,
                      const float *zero, const QSpec *spec);
    void (*linear_grad)(Backend *b, const LinearGrad *job);
    void (*sparse)(Backend *b, const SparseJob *job);
    /* var[c]（主机）= 第 c 列的方差，除以 rows − 1，双精度 */
    void (*column_variance)(Backend *b, double *var, const float *x, int64_t rows, int64_t cols);
    /* start (块数+1)：各块（面板 × QT_KBLOCK 列）之前的离群值个数。返回: 总数 */
    int64_t (*count_outliers)(Backend *b, uint32_t *start, const uint8_t *mask, int64_t rows, int64_t cols);
    /* 填 q->outliers 的 at、value，w 的那些位置置 0。返回: 值都存得下 */
    bool (*split_outliers)(Backend *b, const QTensor *q, float *w, const uint8_t *mask);
} BackendOps;

/* 设备（GPU）的身份，写进结果。 */
typedef struct DeviceInfo {
    char name[256];             /* 如 "NVIDIA H100 80GB HBM3" */
    char driver[32], cuda[32];  /* 驱动与 CUDA 运行库的版本 */
    size_t memory;              /* 显存，字节 */
} DeviceInfo;

/* 预取：BEGIN 与 END 之间的装载（op_decode、op_write、装包、分配）在另一条流上，与已派发的计算并行；
 * 它只碰上一次 JOIN 之前派发的计算用过的内存。JOIN：其后的计算等预取完。 */
typedef enum { SIDE_BEGIN, SIDE_END, SIDE_JOIN } SideStep;

struct Backend {
    const BackendOps *ops;
    const char *name;     /* "cpu" / "cuda" */
    const char *isa;      /* 实际选中的内核，如 "avx512_bf16"、"sm_90" */
    ComputeMode compute;
    int n_threads;
    Allocator *memory; /* 后端的内存 */
    bool separate;     /* 主机不能直接读写它 */
    int64_t batch_rows; /* 一批前向合适的行数，CPU 为 CPU_BATCH_ROWS */
    int watched;       /* CPU：watch 记下的，-1 为无 */
    int64_t half_step; /* 其后的线性层不少于几行时 StepJob.half_out 可用；0 为不可用 */
    bool kv_tiles;     /* 未量化的键值可用 KV_TILES 存（CPU 的 bf16 计算） */
    void (*guard)(Backend *b, bool open); /* 每次派发前后调用（严格模式）；NULL 即无 */
    Err err;              /* 粘滞 */
    void *impl;
    void (*close)(Backend *b);         /* 归还 impl */
    Backend *host;                     /* CUDA：主机上的 CPU 后端（parallel 用），随之关闭 */
    const DeviceInfo *device;          /* CUDA；CPU 为 NULL */
    size_t (*vram_peak)(Backend *b);   /* CUDA：驱动所见的显存峰值，字节；CPU 为 NULL */
    Allocator *mapped; /* 在主机而算子也能直接读写的内存（锁页）；NULL 即没有。装得下显存放不下的大数组 */
    void (*side)(Backend *b, SideStep step); /* 见 SideStep；NULL 即不能预取 */
    size_t (*room)(Backend *b);        /* 还能分配多少字节的后端内存；NULL 即不知道 */
    void (*recover)(Backend *b);       /* 分配失败之后：等计算做完，放掉缓存的工作区。设备已坏的话粘在 err */
};

/* 运行在哪里；次序同 config_schema.c 的 DEVICES。 */
typedef enum { DEVICE_AUTO, DEVICE_CPU, DEVICE_CUDA } Device;

/* 打开 CPU 后端。参数: n_threads 0 表示全部在线核；isa NULL 为自动，或 "generic" "avx2" "avx512"
 * "avx512_bf16"（测试用，机器不支持时报错）。compute 为 BF16 而机器没有 AVX512-BF16 时报 ERR_UNSUPPORTED。 */
bool backend_open_cpu(Backend *b, int n_threads, ComputeMode compute, const char *isa, Err *e);
/* 打开 CUDA 后端：装入 libptq_cuda.so（环境变量 PTQ_CUDA_LIBRARY，或程序旁边，或它上面两层），n_threads 供主机上的并行。
 * 错误: ERR_UNSUPPORTED（没有这个库、没有驱动、没有可用的 GPU）、ERR_DEVICE（CUDA 的调用失败）、ERR_MEMORY。 */
bool backend_open_cuda(Backend *b, int n_threads, ComputeMode compute, Err *e);
/* 这台机器看上去有 CUDA：库与驱动都在。不打开设备。 */
bool backend_has_cuda(void);
/* 把刚打开的 CPU 后端变成严格模式（测试用）：后端的内存平时不可读写，只在算子之内放开，所以主机的代码直接碰它就会崩溃；映射是
 * 复制的，与 CUDA 相同。数值与普通的逐位相同。 */
bool backend_make_strict(Backend *b, Err *e);
void backend_close(Backend *b);
/* 还能分配多少字节的后端内存；不知道为 SIZE_MAX。 */
static inline size_t backend_room(Backend *b) {
    return b->room ? b->room(b) : SIZE_MAX;
}
/* 一个空的、内存在后端的 Arena。 */
static inline Arena backend_arena(const Backend *b) {
    return (Arena){.allocator = b->memory};
}
/* 取出粘滞错误（并清除）。返回: 没有错误为 true。 */
bool backend_check(Backend *b, Err *e);
/* 本机 CPU 是否有原生 bf16 点积。 */
bool cpu_has_bf16(void);
/* 本机可用的最好指令集名，写入结果。 */
const char *cpu_best_isa(void);
#endif
