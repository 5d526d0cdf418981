/* kvsample — 键值缓存的校准：各层 k_proj、v_proj 在校准集上的输出，与损失对它们的梯度
 * 梯度要从最后一块反传回来，所以一次得到所有层；内存不够放下所有层时分几趟，每趟只留一部分层。 */
#ifndef PTQ_MODEL_KVSAMPLE_H
#define PTQ_MODEL_KVSAMPLE_H
#include "model/calib.h"

/* 一层的样本，(n, width)，在后端内存；n = 样本数·长度，width = kv_heads·dim。 */
typedef struct KvSample {
    int64_t layer, n, width, length; /* length：每个样本的 token 数 */
    const float *k, *v;              /* k 在 RoPE 之前，含偏置 */
    const float *k_grad, *v_grad;    /* dL/dk、dL/dv，L 是所在样本的平均损失 */
} KvSample;
typedef bool KvSampleFn(void *ctx, const KvSample *s, Err *e);

/* 依次对每一层调用 fn。模型须已 model_finish。错误: 内存不足、数值非有限、中断。 */
bool kv_sample_each(Model *m, const CalibSet *set, KvSampleFn *fn, void *ctx, Err *e);
#endif
