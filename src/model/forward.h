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

bool workspace_open(Workspace *w, const Model *m, int64_t max_rows, Err *e);
void workspace_close(Workspace *w);
/* 工作区的字节数，供 --dry_run。 */
size_t workspace_bytes(const ModelConfig *c, int64_t max_rows);

/* 共用同一输入的线性层组（校准统计以组为单位）。 */
typedef enum { INPUT_QKV, INPUT_O, INPUT_GATE_UP, INPUT_DOWN, INPUT_COUNT } InputGroup;
InputGroup input_group(LinearRole role);

/* 旁听：算每个线性层组之前，把它的输入 x(n, cols) 交给 see。 */
typedef struct BlockTap {
    void (*see)(void *ctx, InputGroup group, const float *x, int64_t n, int64_t cols);
    void *ctx;
    InputGroup last; /* 交出这一组之后的都不算（输出无意义）；INPUT_COUNT 为算完整个块 */
} BlockTap;

/* 第 layer 块：w->x 的前 n 行就地更新。错误: 非有限值（报出层号）、设备错误。 */
bool block_forward(Model *m, int64_t layer, Workspace *w, int64_t n, const Segment *segments,
                   size_t n_segments, const BlockTap *tap, Err *e);

/* 块的两半，各自从 w->h（归一化后的输入，前 n 行）到 w->h（加回残差之前的输出）。块 = 归一化、半块、加残差，两次。 */
void attention_forward(Model *m, int64_t layer, Workspace *w, int64_t n, const Segment *segments,
                       size_t n_segments, const BlockTap *tap);
void mlp_forward(Model *m, int64_t layer, Workspace *w, int64_t n, const BlockTap *tap);

/* 任意分段的一批：ids (n)，各段首尾相接地占满 n 行，父在子前，kv 都为 NULL → w->h 为最终归一化后的 (n, hidden)。 */
bool forward_segments(Model *m, Workspace *w, const int32_t *ids, int64_t n, const Segment *segments,
                      size_t n_segments, Err *e);
/* n_windows 个等长窗口（各自从位置 0 起）一起前向：ids (n_windows·len) → w->h 为最终归一化后的 (n_windows·len, hidden)。 */
bool forward_windows(Model *m, Workspace *w, const int32_t *ids, int64_t n_windows, int64_t len,
                     Err *e);
#endif
