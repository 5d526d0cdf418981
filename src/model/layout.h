/* layout — 布局：一个家族的块由哪些线性层与向量组成，它们各在文件的哪里
 * 融合的张量（q|k|v、gate|up、全部专家）在这里拆开：上层只见一个个线性层，行的对应关系记在 TensorSource。
 * 名字：HF 的由家族的名字表，GGUF 的由一张共用的表；'|' 分开的是别名，取文件里有的。 */
#ifndef PTQ_MODEL_LAYOUT_H
#define PTQ_MODEL_LAYOUT_H
#include "model/model.h"

enum { LAYOUT_MAX_VECTORS = 16 };

/* 块内的一个向量（归一化的权重、偏置等）。 */
typedef struct BlockVector {
    float **data;
    TensorSlot slot;
    const char *suffix;  /* ".weight"、".bias" 或 "" */
    int64_t rows, cols;  /* cols 为 0 是一维 */
    bool split;          /* 一行一个张量（'@' 为行号） */
    bool plus_one;       /* 载入后加 1 */
} BlockVector;

/* 列出第 layer 块应有的向量。返回: 个数，至多 LAYOUT_MAX_VECTORS。 */
size_t layout_vectors(const ModelConfig *c, int64_t layer, Block *b, BlockVector *out);
/* 建立第 layer 块的线性层表，查清全部张量存在、形状相符。 */
bool layout_block(Model *m, int64_t layer, Err *e);
/* 查清块外的张量（词嵌入、位置、最终归一化、头）。 */
bool layout_ends(Model *m, Err *e);
/* 文件里有没有用不上的张量（众所周知无关的除外）：有就是家族认错了或配置不对。 */
bool layout_check_rest(const Model *m, Err *e);
/* slot 在文件里的名字加 suffix；layer、index 填入 '#'、'@'。 */
void layout_name(const Model *m, TensorSlot slot, int64_t layer, int64_t index, const char *suffix,
                 char *out, size_t cap);
/* slot 写成 GGUF 时的名字加 suffix。 */
void layout_gguf_name(const ModelConfig *c, TensorSlot slot, int64_t layer, const char *suffix, char *out, size_t cap);
/* 线性层的权重（bias 为真则偏置）的来源。 */
void layout_linear(const Model *m, const Linear *l, bool bias, TensorSource *src);
/* 把语言模型头当作一个线性层看（已量化的检查点可能连它也装了包）。 */
Linear layout_head(const Model *m);
/* 整个张量。 */
TensorSource layout_whole(const Model *m, TensorSlot slot, int64_t layer, int64_t index,
                          const char *suffix, int64_t rows, int64_t cols);
#endif
