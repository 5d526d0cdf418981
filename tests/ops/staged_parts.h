/* staged_parts — CUDA 外壳的内部约定（staged.c、staged_grad.c、staged_search.c 之间） */
#ifndef PTQ_TESTS_OPS_STAGED_PARTS_H
#define PTQ_TESTS_OPS_STAGED_PARTS_H
#include "compute/backend.h"

enum { MAX_PIECES = 96, SLACK = 8 /* 两级统计的段之后须可读的字节 */ };
enum { IN = 1, OUT = 2, BOTH = 3 };

typedef struct Piece {
    char *host, *dev;
    size_t bytes;
    int mode;
} Piece;

typedef struct Staged {
    Backend *gpu, cpu;
    Piece piece[MAX_PIECES];
    int n;
} Staged;

static inline Staged *staged_of(Backend *b) {
    return b->impl;
}
static inline int64_t groups_of(const QSpec *spec, int64_t cols) {
    return (cols - 1) / qspec_group_size(spec, cols) + 1;
}

/* host 的 bytes 字节在显存里的副本（host 为 NULL 或没有字节时是 NULL）；已在某一块里的就用那一块。先登记输入，再登记输出。 */
void *staged_bytes(Backend *b, const void *host, size_t bytes, int mode);
float *staged_floats(Backend *b, const float *host, int64_t n, int mode);
/* 权重在显存里的样子。 */
QTensor staged_weight(Backend *b, const QTensor *q, int mode);
/* 输出复制回来，全部归还；CUDA 的错误交给外壳。 */
Backend *staged_done(Backend *b);

#define CUDA(op, ...)                                                                              \
    do {                                                                                           \
        Backend *cuda_ = staged_of(b)->gpu;                                                      \
        cuda_->ops->op(cuda_, __VA_ARGS__);                                                        \
        staged_done(b);                                                                                   \
    } while (0)

/* staged_search.c 里的算子。 */
void s_divide_rows(Backend *b, float *w, const float *s, int64_t rows, int64_t cols);
double s_quadratic(Backend *b, const float *d, const QTensor *g, float *tmp, int64_t rows, int64_t cols);
void s_clip(Backend *b, const ClipJob *job);
void s_clamp_grid(Backend *b, const ClampJob *job);
void s_clamp_grid_grad(Backend *b, const ClampJob *job);
void s_fake_pack(Backend *b, QTensor *q, float *y, const float *x, const float *scale, const float *zero,
                        const QSpec *spec);
void s_linear_grad(Backend *b, const LinearGrad *job);
void s_sparse(Backend *b, const SparseJob *job);
void s_column_variance(Backend *b, double *var, const float *x, int64_t rows, int64_t cols);
int64_t s_count_outliers(Backend *b, uint32_t *start, const uint8_t *mask, int64_t rows, int64_t cols);
bool s_split_outliers(Backend *b, const QTensor *q, float *w, const uint8_t *mask);
/* staged_grad.c 里的算子。 */
void s_matmul(Backend *b, float *y, const float *a, const float *c, int64_t m, int64_t k, int64_t n,
                     bool transpose_a);
void s_rmsnorm_grad(Backend *b, float *dx, float *dw, const float *dy, const float *x, const float *w,
                           int64_t n, int64_t d, float eps);
void s_silu_mul_grad(Backend *b, float *dg, float *du, const float *dy, const float *g, const float *u,
                            int64_t n);
void s_attention_grad(Backend *b, float *dq, float *dk, float *dv, const float *d_out, const float *q,
                             const float *k, const float *v, int64_t n, const AttnSpec *s);
void s_round_act_grad(Backend *b, float *d, const float *x, int64_t n, int64_t cols, int bits);
void s_score_grad(Backend *b, const ScoreGradJob *job);
void s_group_range(Backend *b, float *lo, float *hi, const float *x, int64_t rows, int64_t cols,
                          int64_t group);
void s_group_range_grad(Backend *b, float *dx, const float *x, const float *lo, const float *hi,
                               const float *d_lo, const float *d_hi, int64_t rows, int64_t cols, int64_t group);
void s_scale(Backend *b, float *y, const float *x, const float *row, const float *col, int64_t rows,
                    int64_t cols);
void s_scale_grad(Backend *b, float *d_row, float *d_col, const float *dy, const float *x, const float *row,
                         const float *col, int64_t rows, int64_t cols);
void s_fake_quant(Backend *b, float *y, const float *x, const float *scale, const float *zero, int64_t rows,
                         int64_t cols, const QSpec *spec);
void s_fake_quant_grad(Backend *b, float *dx, float *dscale, const float *dy, const float *x,
                              const float *scale, const float *zero, int64_t rows, int64_t cols,
                              const QSpec *spec);
#endif
