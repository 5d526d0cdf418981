/* search — 方法的内层循环的实现，含义见 backend.h 的 BackendOps */
#ifndef PTQ_COMPUTE_CPU_SEARCH_H
#define PTQ_COMPUTE_CPU_SEARCH_H
#include "compute/backend.h"

void cpu_divide_rows(Backend *b, float *w, const float *s, int64_t rows, int64_t cols);
double cpu_quadratic(Backend *b, const float *d, const QTensor *g, float *tmp, int64_t rows, int64_t cols);
void cpu_clip(Backend *b, const ClipJob *job);
void cpu_clamp_grid(Backend *b, const ClampJob *job);
void cpu_clamp_grid_grad(Backend *b, const ClampJob *job);
void cpu_fake_pack(Backend *b, QTensor *q, float *y, const float *x, const float *scale, const float *zero,
                   const QSpec *spec);
void cpu_linear_grad(Backend *b, const LinearGrad *job);
#endif
