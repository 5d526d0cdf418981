/* dispatch — 派发与形状检查的共用部分（只供 ops.c、ops_memory.c） */
#ifndef PTQ_COMPUTE_DISPATCH_H
#define PTQ_COMPUTE_DISPATCH_H
#include "compute/backend.h"

/* 调用表中的 op；严格模式在前后放开、收起后端的内存。 */
#define CALL(b, op, ...)                                                                           \
    do {                                                                                           \
        if ((b)->guard) (b)->guard((b), true);                                                     \
        (b)->ops->op((b), __VA_ARGS__);                                                            \
        if ((b)->guard) (b)->guard((b), false);                                                    \
    } while (0)

static inline bool failed(const Backend *b) {
    return b->err.code != ERR_NONE;
}

static inline int64_t row_width(Tensor t) {
    int64_t w = 1;
    for (int i = 1; i < t.n_dims; i++) w *= t.shape[i];
    return w;
}

static inline int64_t n_elements(Tensor t) {
    return t.shape[0] * row_width(t);
}

/* f32、形状合法；没有元素时不要求有内存。 */
static inline void check_f32(Tensor t, int n_dims) {
    CHECK(t.dtype == DT_F32 && t.n_dims == n_dims);
    for (int i = 0; i < n_dims; i++) CHECK(t.shape[i] >= 0);
    CHECK(t.data || n_elements(t) == 0);
}

static inline void check_2d(Tensor t, int64_t rows, int64_t cols) {
    CHECK(t.dtype == DT_F32 && t.n_dims >= 2);
    CHECK(t.shape[0] == rows && row_width(t) == cols && (t.data || rows * cols == 0));
}
#endif
