/* group — 输入组：共用一个输入的几个线性层，与产生这个输入的归一化或线性层
 * Y = XWᵀ = (X/s)(W·s)ᵀ：W 的各列乘 s，产生 X 的那一头除以 s，函数不变。哪里能这样折、GQA 时几列共用一个 s，
 * 都只在这里知道：方法（AWQ、SmoothQuant、OmniQuant）只管选 s。 */
#ifndef PTQ_MODEL_GROUP_H
#define PTQ_MODEL_GROUP_H
#include "model/model.h"

/* 输入由谁产生，即 1/s 折到哪里。 */
typedef enum {
    FEED_NONE,   /* 折不了：没有归一化的权重、归一化还供着别处、隔着非线性 */
    FEED_NORM,   /* 前面的归一化 */
    FEED_LINEAR  /* 前面的线性层的各行（与偏置） */
} GroupFeed;

enum { NORM_ATTN, NORM_MLP, NORM_Q_A, NORM_KV_A }; /* FEED_NORM 的归一化 */

typedef struct Group {
    int input;        /* 输入组（InputGroup 或 GROUP_…） */
    bool routed;      /* INPUT_GATE_UP 且有专家：各专家的 gate、up 也在组内，路由用同一个输入 */
    GroupFeed feed;
    int norm;         /* FEED_NORM */
    int64_t from;     /* FEED_LINEAR：块的第几个线性层 */
    int64_t cols;     /* 输入的宽度；没有线性层的组为 0 */
    int64_t n_scales; /* 可自由选的 s 的个数：通常即 cols；GQA 的 v→o 是 v 的行数 */
    int64_t share, dim; /* 每 share 个头（头宽 dim）的列共用一个头的 s */
} Group;

/* 第 layer 块的输入组，g 有 block_n_groups 个，第 i 个的 input 就是 i。专家的 gate、up 归 INPUT_GATE_UP（它们自己的组 cols 为 0）。 */
void group_list(const Model *m, int64_t layer, Group *g);
/* 输入属于第 group 组（Linear.group）的线性层用哪一组的 s。 */
int group_of(int group);
/* 组内在第 r 个之后的线性层（r 从 −1 起）；没有了为 −1。 */
int64_t group_next(const Block *b, const Group *g, int64_t r);
/* 只供注意力的分数（q、k，MLA 的 q_a）：AWQ 不截断它们。 */
bool linear_makes_scores(const Linear *l);
/* 输入的第 col 列归第几个 s（FEED_LINEAR 时也就是 from 的第几行）。 */
int64_t group_scale_of(const Group *g, int64_t col);
/* q 乘、k 除同一个 s，注意力不变：RoPE 的同一对、共用键值头的各 q 头须用同一个。
 * 返回: q 或 k（role）的第 row 行归第几个（共 n_kv_heads·head_dim 个）。 */
int64_t group_qk_scale(const ModelConfig *c, LinearRole role, int64_t row);

/* 折叠：组内各线性层的 weight（就地）与路由的各列乘 s，产生输入的一头除以 s。
 * 参数: norm 是 attn_norm、mlp_norm；s (n_scales) 在主机。g->feed 不可为 FEED_NONE。错误: 设备。 */
bool group_fold_scale(Model *m, int64_t layer, const Group *g, float *const norm[2], const float *s, Err *e);

/* 可学的缩放（OmniQuant 的等价变换）：全部 s 排成一个向量，依次是 qkv 的输入、gate/up 的输入、v/o、q/k。 */
typedef struct ScaleMap { /* 一个线性层：u = row·w·col 的因子各取哪个 s；−1 为 1 */
    int64_t rows, cols;
    int32_t *row, *col;
    bool divide; /* 行除以 s（列与其余的行是乘） */
} ScaleMap;

/* s 的个数；*attn、*mlp 是两个归一化（除以 s）各自的 s 从第几个起。各组都须折得了（down 的输入不变换，不论）。 */
int64_t group_learned_scales(const Model *m, int64_t layer, int64_t *attn, int64_t *mlp);
/* 第 layer 块的线性层 r 的映射，内存来自 a（主机）。 */
bool scale_map_new(ScaleMap *map, Arena *a, const Model *m, int64_t layer, LinearRole r, Err *e);
/* s → 因子 row (rows)、col (cols)；都在主机，下同。 */
void scale_map_factors(const ScaleMap *map, const float *s, float *row, float *col);
/* 反向：因子的导数 → s 的梯度，加进 grad。 */
void scale_map_grad(const ScaleMap *map, const float *s, const float *d_row, const float *d_col,
                    float *grad);
#endif
