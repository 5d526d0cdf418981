/* linear — 一个线性层：名字、形状、存放形式、偏置
 * 存放形式 q 是稠密面板或量化面板；评测用的就是它。不变式：模型就绪后 q.data != NULL。 */
#ifndef PTQ_MODEL_LINEAR_H
#define PTQ_MODEL_LINEAR_H
#include "compute/qtensor.h"

typedef enum { ROLE_Q, ROLE_K, ROLE_V, ROLE_O, ROLE_GATE, ROLE_UP, ROLE_DOWN, ROLE_COUNT } LinearRole;

/* 激活（线性层的输入）怎样取整到 bits 位的整数，对称：x ≈ s·round(x/s)，s = max|x|/(2^(bits-1)−1)。 */
typedef enum {
    ACT_NONE,   /* 不量化 */
    ACT_TOKEN,  /* 每个 token 一个 s，当场求 */
    ACT_TENSOR, /* 整个张量一个 s，当场求 */
    ACT_STATIC  /* 整个张量一个 s，事先由校准定好 */
} ActKind;
typedef struct ActQuant {
    ActKind kind;
    int bits;
    float scale; /* ACT_STATIC 用 */
    bool output; /* 输出也照 kind 取整（q、k、v：注意力的两个 BMM 的输入） */
} ActQuant;

typedef struct Linear {
    const char *name; /* HF 名，如 "model.layers.0.self_attn.k_proj" */
    LinearRole role;
    int layer;
    int64_t rows, cols; /* (out_features, in_features) */
    QTensor q;
    float *bias; /* (rows) 或 NULL */
    ActQuant act;
    double weight_mse; /* 量化前后权重的均方误差；未量化为 0 */
} Linear;

/* 换上量化结果 q（浅复制，内存须与模型同寿命）。返回: 形状与本层不符时为 false。 */
bool linear_set_quantized(Linear *l, const QTensor *q);
#endif
