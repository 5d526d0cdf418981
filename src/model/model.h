/* model — 打开的模型：超参数、权重来源、逐块的线性层与归一化、词嵌入与语言模型头
 * 生命周期：model_open 只读元数据并查清全部张量；quantize 逐块把线性层装成存放形式；model_finish 载入其余部分。
 * 不变式：model_finish 之后可以 forward；此前只能问形状。 */
#ifndef PTQ_MODEL_MODEL_H
#define PTQ_MODEL_MODEL_H
#include "compute/memory.h"
#include "io/file.h"
#include "model/kvcache.h"
#include "model/linear.h"
#include "model/weights.h"

typedef struct Block {
    float *attn_norm, *mlp_norm; /* (hidden)，在后端内存 */
    Linear linears[ROLE_COUNT];
    FileMap file; /* 由存盘的块装入时的映射（blockfile.h） */
} Block;

struct Model {
    Arena arena; /* 装好的权重，在后端内存 */
    Arena meta;  /* 名字等元数据，在主机 */
    ModelConfig config;
    WeightStore weights;
    Backend *backend;
    DType dtype; /* 未量化权重的存放类型 */
    bool head_int8; /* 词嵌入与头存成 8 位；载入之前定好 */
    Block *blocks;
    QTensor embed;       /* (vocab, hidden) */
    QTensor own_head;    /* 不共享时的 lm_head */
    const QTensor *head; /* 共享时指向 embed */
    float *final_norm;
    double *inv_freq;    /* (rotary_dim/2) */
    float *cos_table, *sin_table; /* (n_rope, rotary_dim/2)，按需增长 */
    int64_t n_rope;
    double load_seconds, pack_seconds;
    bool stream;          /* 未量化的线性层不留在内存里，逐块载入 */
    Arena stream_arena;   /* 正在用的那一块 */
    int64_t stream_layer; /* 它的层号；还没有则 -1 */
    KvSpec *kv;     /* (n_layers) 键值缓存的量化；NULL 为不量化 */
    KvMode kv_mode; /* 开会话或窗口之前定好 */
    DType kv_dtype; /* 不量化的键值的存放类型：F32、F16；NONE 即 F32（量化期间的前向） */
};

/* 打开并检查：所有张量存在且形状相符。参数: dtype 为 DT_NONE 时取文件自身的类型。 */
bool model_open(Model *m, const char *path, DType dtype, Backend *b, Err *e);
/* 载入归一化、偏置、词嵌入与头；未装好的线性层装成稠密。已载入的不再做。 */
bool model_finish(Model *m, Err *e);
void model_close(Model *m);
/* 提前载入（校准需要）；已载入则不做事。 */
bool model_load_norms(Model *m, int64_t layer, Err *e);
bool model_load_embed(Model *m, Err *e);
/* 词嵌入（或头）将占多少字节：填 q 的 *_bytes。 */
bool model_measure_embed(const Model *m, QTensor *q, Err *e);
/* 把第 layer 块的线性层 l 的权重解码到 w (rows,cols) f32（后端内存），并载入偏置。 */
bool model_load_linear(Model *m, Linear *l, float *w, Err *e);
/* 把稠密权重 w（后端内存）按模型的 dtype 装入 l，内存来自 a（后端内存）。 */
bool model_pack_linear(Model *m, Linear *l, const float *w, Arena *a, Err *e);
/* stream 时代替 model_pack_linear：只记下要多少字节，用到时再载入。 */
bool model_stream_linear(Model *m, Linear *l, Err *e);
/* 前向用到第 layer 块之前调用：stream 时载入它的未量化的线性层，并放掉上一块的。 */
bool model_need_block(Model *m, int64_t layer, Err *e);
/* 按名字找线性层；没有返回 NULL。 */
Linear *model_find_linear(Model *m, const char *name);
/* 保证旋转表至少有 n 个位置。 */
bool model_ensure_rope(Model *m, int64_t n, Err *e);

/* 存放的字节数与参数个数，逐项清点（共享的词嵌入只算一次）。 */
typedef struct ModelBytes {
    size_t codes, scales, zeros, permutations, outliers, unquantized, total;
    int64_t linear_params, params; /* 线性层参数；全部参数 */
    size_t linear_bytes;           /* 块内线性层的字节（含其中未量化者） */
} ModelBytes;
ModelBytes model_bytes(const Model *m);
#endif
