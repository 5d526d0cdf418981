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
void cpu_sparse(Backend *b, const SparseJob *job);
void cpu_column_variance(Backend *b, double *var, const float *x, int64_t rows, int64_t cols);
int64_t cpu_count_outliers(Backend *b, uint32_t *start, const uint8_t *mask, int64_t rows, int64_t cols);
bool cpu_split_outliers(Backend *b, const QTensor *q, float *w, const uint8_t *mask);
#endif
