/* staged_parts — CUDA 外壳的内部约定（staged.c 与 staged_search.c 之间） */
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
#endif
