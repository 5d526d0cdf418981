/* memory — 复制、统计与比较的实现，含义见 backend.h 的 BackendOps */
#ifndef PTQ_COMPUTE_CPU_MEMORY_H
#define PTQ_COMPUTE_CPU_MEMORY_H
#include "compute/backend.h"

void cpu_read(Backend *b, void *host, const void *src, size_t bytes);
void cpu_write(Backend *b, void *dst, const void *host, size_t bytes);
void cpu_copy(Backend *b, void *dst, const void *src, size_t bytes);
void cpu_symmetrize(Backend *b, float *g, int64_t d);
void cpu_column_stats(Backend *b, float *max, double *sum, const float *x, int64_t n, int64_t cols);
void cpu_column_sum(Backend *b, float *y, const float *x, int64_t n, int64_t cols);
void cpu_row_errors(Backend *b, double *out, const float *x, const float *y, int64_t ldy,
                    int64_t rows, int64_t cols);
void cpu_copy_2d(Backend *b, void *dst, size_t dst_step, const void *src, size_t src_step,
                 int64_t n, size_t bytes);
void cpu_divide(Backend *b, float *y, const float *x, int64_t ldx, const float *s, int64_t n,
                int64_t rows, int64_t cols);
void cpu_gather_columns(Backend *b, float *dst, const float *src, const int32_t *index,
                        int64_t rows, int64_t n);
void cpu_update_rest(Backend *b, float *w, const float *err, const float *u, int64_t rows,
                     int64_t n, int64_t i1, int64_t i2);
bool cpu_all_finite(Backend *b, const float *x, int64_t n);
void cpu_decode(Backend *b, float *dst, const void *host, DType t, DType rounded, int64_t n);
void cpu_watch(Backend *b, const float *x, int64_t n, int tag);
int cpu_watched(Backend *b);
void cpu_adamw(Backend *b, const AdamStep *step);
double cpu_mse_grad(Backend *b, float *d, const float *x, const float *y, float scale,
                    int64_t rows, int64_t cols);
/* backend_close 的一步：归还严格模式的地址空间；普通的后端不做事。 */
void strict_close(Backend *b);
#endif
