/* linear — 一个线性层：名字、形状、存放形式、偏置
 * 存放形式 q 是稠密面板或量化面板；评测用的就是它。不变式：模型就绪后 q.data != NULL，或 streamed。 */
#ifndef PTQ_MODEL_LINEAR_H
#define PTQ_MODEL_LINEAR_H
#include "compute/qtensor.h"
#include "compute/tensor.h"

typedef enum { ROLE_Q, ROLE_K, ROLE_V, ROLE_O, ROLE_GATE, ROLE_UP, ROLE_DOWN, ROLE_COUNT } LinearRole;

/* rows 为 0 表示这个家族没有（如没有门的 MLP 的 ROLE_GATE），只占位。 */
typedef struct Linear {
    const char *name; /* HF 名，如 "model.layers.0.self_attn.k_proj" */
    LinearRole role;  /* ROLE_COUNT：不在基本的七个之内（MLA 的降维、专家） */
    int layer, slot, expert; /* slot 即 TensorSlot；expert 是专家号 */
    int group;               /* 它的输入属于哪一组（InputGroup 或 GROUP_…） */
    int64_t rows, cols; /* (out_features, in_features) */
    bool has_bias;
    QTensor q;
    float *bias; /* (rows) 或 NULL，在后端内存 */
    ActQuant act; /* 输入的量化；kind 为 ACT_NONE 即不量化 */
    ActQuant out; /* 输出的取整（q、k、v：注意力两个 BMM 的输入） */
    bool packed;   /* 来自已量化的检查点，照原样装入（checkpoint.h） */
    bool streamed; /* 不留在后端内存里，用到时才载入（stream.c）：未量化的来自权重文件，量化的来自 home */
    const QTensor *home; /* streamed 的量化矩阵在主机的一份 */
    bool checked;        /* 权重已查过都是有限值 */
    float *weight;       /* 正在量化它所在的块：稠密的权重 (rows, cols)，在后端内存；此外为 NULL */
    double weight_mse; /* 量化前后权重的均方误差；未量化为 0 */
} Linear;

/* 换上量化结果 q（浅复制，内存须与模型同寿命）。返回: 形状与本层不符时为 false。 */
bool linear_set_quantized(Linear *l, const QTensor *q);
/* weight 的视图。 */
static inline Tensor linear_weight(const Linear *l) {
    return tensor_f32(l->weight, l->rows, l->cols);
}
#endif
