/* tensor — 张量的视图
 * 一个值：数据指针、类型、形状。行主序、连续、从不拥有内存（内存归 Arena 或 Backend）。无步长、无广播、无图。 */
#ifndef PTQ_COMPUTE_TENSOR_H
#define PTQ_COMPUTE_TENSOR_H
#include "base/dtype.h"

typedef struct Backend Backend;

typedef struct Tensor {
    void *data;
    DType dtype;
    int n_dims;
    int64_t shape[4];
} Tensor;

static inline Tensor tensor_f32(float *data, int64_t rows, int64_t cols) {
    return (Tensor){data, DT_F32, 2, {rows, cols, 1, 1}};
}
static inline Tensor tensor_f32_3d(float *data, int64_t n, int64_t heads, int64_t dim) {
    return (Tensor){data, DT_F32, 3, {n, heads, dim, 1}};
}
static inline Tensor tensor_f32_1d(float *data, int64_t n) {
    return (Tensor){data, DT_F32, 1, {n, 1, 1, 1}};
}
static inline float *tensor_data_f32(Tensor t) { return (float *)t.data; }
#endif
