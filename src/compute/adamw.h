/* adamw — AdamW 优化器（Loshchilov、Hutter，arXiv 1711.05101），运算次序同 torch.optim.AdamW */
#ifndef PTQ_COMPUTE_ADAMW_H
#define PTQ_COMPUTE_ADAMW_H
#include "compute/backend.h"

/* 一组学习率相同的参数。改 param 的是 adamw_step，填 grad 的是调用者。 */
typedef struct AdamW {
    int64_t n, step;
    double lr, beta1, beta2, eps, weight_decay;
    float *param, *grad, *m, *v; /* (n)，在后端内存 */
} AdamW;

/* 自 arena（后端内存）分配 n 个参数（置 0），beta 0.9、0.999，eps 1e-8，无权重衰减。错误: 内存不足。 */
bool adamw_new(AdamW *a, Arena *arena, int64_t n, double lr, Err *e);
/* 走一步：θ −= lr·wd·θ；m、v 为梯度与其平方的滑动平均；θ −= lr·m̂/(√v̂+eps)。各参数互不相干，分给线程。 */
void adamw_step(AdamW *a, Backend *b);
#endif
