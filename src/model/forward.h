/* forward — 一个解码块的前向，所有家族共用
 * 一批行（token）由若干段组成，每段是一条时间线上的连续位置；线性层对整批一起算，注意力逐段算。
 * 时间线可以分叉：段的过去由同一批里的 parent、或上一批留下的 KvPast 给出，相同的开头只算一次。
 * 不变式：每一行的结果只取决于它自己的时间线，与批里还有谁、批多大无关（逐位相同）。 */
#ifndef PTQ_MODEL_FORWARD_H
#define PTQ_MODEL_FORWARD_H
#include "model/model.h"

/* 批中的一段：行 [row0, row0+n) 是某条时间线的位置 [first, first+n)。 */
typedef struct Segment Segment;
struct Segment {
    int64_t row0, n, first;
    KvLayer *kv; /* 该层的键值缓存（过去都在其中）；NULL 则算完即弃，过去由 parent 给出 */
    const Segment *parent; /* 同一批里在前的一段，位置 [parent->first, first) 是它的开头几行；
                            * NULL 时过去 [0, first) 全在 Workspace.past */
};

/* 一条时间线的开头 [0, n) 在各层的键值（量化之前的 f32），供后面各批的段接着算。 */
typedef struct KvPast {
    int64_t n, capacity;
    float *k, *v; /* (n_layers, capacity, kv_heads·dim) */
} KvPast;

/* 一批的工作区：行数上限 max_rows。 */
typedef struct Workspace {
    Arena arena;
    int64_t max_rows;
    float *x;          /* (rows, hidden) 残差 */
    float *h;          /* (rows, hidden) 归一化后 / 线性层输出 */
    float *q, *att;    /* (rows, heads·dim) */
    float *k, *v;      /* (rows, kv_heads·dim) */
    float *gate, *up;  /* (rows, intermediate) */
    float *side;       /* (rows, hidden) 并行残差的另一半、专家的和；家族用不着时为 NULL，下同 */
    float *picked, *scores; /* 专家：(rows, hidden) 选中的行；(rows, n_experts) 路由的分数 */
    float *latent, *kv_a, *kv_b; /* MLA：(rows, max(q_lora, kv_lora))、(rows, kv_lora+rope)、(rows, heads·(nope+v)) */
    Arena host;        /* 下面几个在主机 */
    int32_t *positions; /* (rows) 各行的位置 */
    struct Routing *routing; /* 专家的名单，见 experts.c */
    int64_t horizon;   /* 这些时间线最终至多多长，供 model_ensure_rope；0 即由批里的段定 */
    const Segment *segments; /* 正在算的批的分段，block_forward 设 */
    size_t n_segments;
    KvLayer kv;        /* 没有缓存的段借用，逐段逐层重来 */
    Arena kv_arena;
    int64_t kv_rows;
    const Segment *held; /* 这一层里，借用的缓存现在存着谁的时间线 */
    bool forks;          /* 这一批里有段接在别的段之后 */
    const KvPast *past; /* NULL 表示没有 */
    KvPast *record;     /* 把各段的键值记在这里的 [first, first+n)；NULL 不记 */
    KvBytes kv_bytes;  /* 没有缓存的各段存了多少，全部层累计 */
    int64_t kv_tokens;
} Workspace;

/* 打开。w->horizon 在打开之后按需设。 */
bool workspace_open(Workspace *w, const Model *m, int64_t max_rows, Err *e);
void workspace_close(Workspace *w);
/* 工作区的字节数，供 --dry_run。 */
size_t workspace_bytes(const ModelConfig *c, int64_t max_rows);

InputGroup input_group(LinearRole role);

/* 旁听：算每个线性层组之前，把它的输入 x(n, cols) 交给 see。group 见 Linear.group。 */
typedef struct BlockTap {
    void (*see)(void *ctx, int group, const float *x, int64_t n, int64_t cols);
    void *ctx;
    int last;  /* 交出这一组之后的都不算（输出无意义）；-1 为算完整个块 */
    bool done; /* 已交出 last */
} BlockTap;

/* 第 layer 块：w->x 的前 n 行就地更新。错误: 非有限值（报出层号）、设备错误。 */
bool block_forward(Model *m, int64_t layer, Workspace *w, int64_t n, const Segment *segments,
                   size_t n_segments, BlockTap *tap, Err *e);

/* 依次算各块：w->x 的前 n 行就地更新。kv 非 NULL 时第 i 段在第 l 层的缓存是 kv[i][l]。各块的非有限值最后一起查。 */
bool forward_blocks(Model *m, Workspace *w, int64_t n, Segment *segments, size_t n_segments,
                    KvLayer *const *kv, Err *e);

/* 块的两半，各自从 w->h（归一化后的输入，前 n 行）到 w->h（之后的归一化与加残差之前的输出）。 */
void attention_forward(Model *m, int64_t layer, Workspace *w, int64_t n, const Segment *segments,
                       size_t n_segments, BlockTap *tap);
void mlp_forward(Model *m, int64_t layer, Workspace *w, int64_t n, BlockTap *tap);

/* 一批行的词嵌入 → w->x：查表、乘系数、投影、加学得的位置、归一化。w->h 被改写。 */
void forward_embed(Model *m, Workspace *w, const int32_t *ids, int64_t n, const Segment *segments,
                   size_t n_segments);
/* 末块之后：x (n, hidden) → out：最终归一化、投影、乘 logits 的系数；out 与 head 相乘（再软截断）就是 logits。x 可能被改写。 */
void forward_finish(Model *m, float *out, float *x, int64_t n);

/* 任意分段的一批：ids (n)，各段首尾相接地占满 n 行，父在子前，kv 都为 NULL → w->h 为最终归一化后的 (n, hidden)。 */
bool forward_segments(Model *m, Workspace *w, const int32_t *ids, int64_t n, const Segment *segments,
                      size_t n_segments, Err *e);
/* n_windows 个等长窗口，每 batch 个一批，各批一起一块一块地走（流式时每块的权重只传一遍）：末块的输出写到 x
 * (n_windows·len, hidden)，后端内存，之后一批一批 forward_finish。各批与单独 forward_windows 逐位相同。 */
bool forward_stack(Model *m, Workspace *w, float *x, const int32_t *ids, int64_t n_windows, int64_t len,
                   int64_t batch, Err *e);
/* n_windows 个等长窗口（各自从位置 0 起）一起前向：ids (n_windows·len) → w->h 为最终归一化后的 (n_windows·len, hidden)。 */
bool forward_windows(Model *m, Workspace *w, const int32_t *ids, int64_t n_windows, int64_t len,
                     Err *e);
#endif
