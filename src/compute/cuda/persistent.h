/* persistent — 逐 token 解码的一串派发，攒起来交给一个常驻的内核（persistent.cu） */
#ifndef PTQ_COMPUTE_CUDA_PERSISTENT_H
#define PTQ_COMPUTE_CUDA_PERSISTENT_H
#include "compute/cuda/gemv.h"

bool persistent_open(Backend *b);
void persistent_close(CudaBackend *c);
/* 排进队里：一行输入的线性层，一条时间线的一步注意力，前一个线性层的输出 x(n) 的 watch。返回: 不归它管（没有排）为假。 */
bool persistent_linear(Backend *b, const LinearOut *out, int n_out, const LinearIn *in);
bool persistent_step(Backend *b, const StepJob *j);
bool persistent_watch(Backend *b, const float *x, int64_t n, int tag);
#endif
