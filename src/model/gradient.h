/* gradient — 手写的反向：一个解码块，以及整个模型
 * 只有一种图（解码块），所以不要自动微分：前向留下中间量（BlockTrace），反向按相反的次序逐个算子求伴随。
 * 整模型的反向只留各块的输入，到每块时重算一遍前向，故峰值是一块的中间量加各块的输入。
 * 指针都指后端内存。矩阵乘的精度随 Backend.compute；归约次序固定，结果与线程数无关。 */
#ifndef PTQ_MODEL_GRADIENT_H
#define PTQ_MODEL_GRADIENT_H
#include "model/forward.h"

/* 会被取整的各处：四组线性层的输入（InputGroup），q、k、v 的输出。 */
enum { TRACE_Q = INPUT_COUNT, TRACE_K, TRACE_V, TRACE_ROUNDED };

/* 一条时间线（位置从 0 起的 n 行）过一个块时的中间量。 */
typedef struct BlockTrace {
    Arena arena;
    int64_t max_rows, n;
    float *x;              /* (n, hidden) 块的输入 */
    float *h1, *h2;        /* (n, hidden) 两次归一化之后 */
    float *q, *k, *v;      /* q、k 在 RoPE 之后 */
    float *att;            /* (n, heads·dim) o_proj 的输入 */
    float *mid;            /* (n, hidden) 注意力残差之后 */
    float *gate, *up, *prod; /* (n, intermediate)，prod = silu(gate)·up */
    float *out;            /* (n, hidden) 块的输出 */
    float *neg_sin;        /* (max_rows, rotary_dim/2) 反向旋转用 */
    float *d_hidden[2], *d_att, *d_q, *d_k, *d_v, *d_gate, *d_up; /* 反向的工作区 */
    float *weight;         /* 最大的一个线性层的稠密权重 */
    ComputeMode compute;   /* 这一块的矩阵乘用的精度；打开时同后端，可改 */
    ActQuant act;          /* 线性层的输入怎样取整（kind 为 ACT_NONE 或 ACT_TOKEN） */
    bool round_qkv;        /* q、k、v 的输出也照 act 取整 */
    float *raw[TRACE_ROUNDED]; /* act 有效时：各处取整之前的样子 */
} BlockTrace;

/* 要哪些梯度：非 NULL 的写入（覆盖）。 */
typedef struct BlockGrad {
    float *x;                     /* (n, hidden) dL/d(块的输入) */
    float *w[ROLE_COUNT];         /* (rows, cols) dL/dW */
    float *bias[ROLE_COUNT];      /* (rows) */
    float *attn_norm, *mlp_norm;  /* (hidden) */
    float *k, *v;                 /* (n, kv_heads·dim) dL/d(k_proj、v_proj 的输出)，RoPE 之前 */
    float *dense[ROLE_COUNT];     /* 入：该层的稠密权重 (rows, cols)（见 LinearGrad）；NULL 则由存放形式反量化 */
} BlockGrad;

/* 打开，行数上限 max_rows（也会备好旋转表）。参数: act、round_qkv 见上；取整的反向是直通估计（op_round_act_grad）。
 * 错误: 内存不足。 */
bool block_trace_open(BlockTrace *t, Model *m, int64_t max_rows, ActQuant act, bool round_qkv,
                      Err *e);
void block_trace_close(BlockTrace *t);
/* 第 layer 块的前向：x (n, hidden) → t->out，并留下中间量。各线性层须已装好。 */
bool block_trace_forward(Model *m, int64_t layer, BlockTrace *t, const float *x, int64_t n, Err *e);
/* 反向：d_out (n, hidden) = dL/d(t->out) → g 中要的各项。须紧接同一块的 block_trace_forward。 */
bool block_trace_backward(Model *m, int64_t layer, BlockTrace *t, const float *d_out,
                          const BlockGrad *g, Err *e);

/* 块的损失：L = mean((t->out − target)²)，d_out = dL/d(t->out)，均为 (n, hidden)。返回: L。 */
double block_trace_mse(const BlockTrace *t, Model *m, const float *target, float *d_out);

/* 整模型的反向。 */
typedef struct ModelGradient {
    Model *model;
    Arena arena, host;   /* 张量在后端内存；targets、nll 在主机 */
    BlockTrace trace;
    int64_t max_len;
    float *inputs;       /* (n_layers, max_len, hidden) 各块的输入 */
    float *d_x[2];       /* (max_len, hidden) */
    float *d_k, *d_v;    /* (max_len, kv_heads·dim) */
    int32_t *targets;
    double *nll;
} ModelGradient;

/* 某一块的 dL/d(k_proj 输出)、dL/d(v_proj 输出)，均为 (n, kv_heads·dim)、RoPE 之前；从最后一块到第一块依次调用。 */
typedef void KvGradFn(void *ctx, int64_t layer, const float *d_k, const float *d_v, int64_t n);

/* 打开。模型须已 model_finish。参数: max_len 窗口长度的上限。 */
bool model_gradient_open(ModelGradient *g, Model *m, int64_t max_len, Err *e);
void model_gradient_close(ModelGradient *g);
/* 一个窗口 ids (n)，n >= 2：损失 L = 后 n−1 个 token 的平均负对数似然（HF CausalLM 的 loss），写入 *loss（可为 NULL）；
 * 各块的 dL/dk、dL/dv 交给 see。错误: 数值非有限、设备错误、中断。 */
bool model_gradient_window(ModelGradient *g, const int32_t *ids, int64_t n, double *loss,
                           KvGradFn *see, void *ctx, Err *e);
#endif
