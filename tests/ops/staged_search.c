/* staged_search — CUDA 的外壳之二：方法的内层循环 */
#include "compute/ops.h"
#include "tests/ops/staged_parts.h"

void s_divide_rows(Backend *b, float *w, const float *s, int64_t rows, int64_t cols) {
    s = staged_floats(b, s, rows, IN), w = staged_floats(b, w, rows * cols, BOTH);
    CUDA(divide_rows, w, s, rows, cols);
}
double s_quadratic(Backend *b, const float *d, const QTensor *g, float *tmp, int64_t rows, int64_t cols) {
    Backend *cuda = staged_of(b)->gpu;
    QTensor q = staged_weight(b, g, IN);
    d = staged_floats(b, d, rows * cols, IN), tmp = staged_floats(b, tmp, rows * cols, OUT);
    double sum = cuda->ops->quadratic(cuda, d, &q, tmp, rows, cols);
    staged_done(b);
    return sum;
}
void s_clip(Backend *b, const ClipJob *job) {
    ClipJob j = *job;
    QTensor g = staged_weight(b, job->gram, IN);
    j.gram = &g;
    j.w = staged_floats(b, j.w, (j.rows - 1) * j.ld + j.width, BOTH);
    CUDA(clip, &j);
}
static ClampJob stage_clamp(Backend *b, const ClampJob *job, bool back) {
    ClampJob j = *job;
    float **in[] = {(float **)&j.lo, (float **)&j.hi, (float **)&j.low, (float **)&j.high};
    float **out[] = {&j.d_low, &j.d_high, &j.d_lo, &j.d_hi};
    for (int i = 0; i < 4; i++) *in[i] = staged_floats(b, *in[i], j.n, IN);
    j.scale = staged_floats(b, j.scale, j.n, back ? IN : OUT), j.zero = staged_floats(b, j.zero, j.n, back ? IN : OUT);
    j.d_scale = staged_floats(b, j.d_scale, back ? j.n : 0, IN);
    for (int i = 0; i < 4; i++) *out[i] = staged_floats(b, *out[i], back ? j.n : 0, OUT);
    return j;
}
void s_clamp_grid(Backend *b, const ClampJob *job) {
    ClampJob j = stage_clamp(b, job, false);
    CUDA(clamp_grid, &j);
}
void s_clamp_grid_grad(Backend *b, const ClampJob *job) {
    ClampJob j = stage_clamp(b, job, true);
    CUDA(clamp_grid_grad, &j);
}
void s_fake_pack(Backend *b, QTensor *q, float *y, const float *x, const float *scale, const float *zero,
                        const QSpec *spec) {
    Staged *s = staged_of(b);
    int64_t n = q->rows * q->cols, groups = q->rows * groups_of(spec, q->cols);
    QTensor d = *q;
    x = staged_floats(b, x, n, IN), scale = staged_floats(b, scale, groups, IN), zero = staged_floats(b, zero, groups, IN);
    float *back = staged_floats(b, y, n, OUT);
    d.data = staged_bytes(b, q->data, q->data_bytes, IN);
    s->gpu->ops->fake_pack(s->gpu, &d, NULL, x, scale, zero, spec);
    CUDA(dequantize, back, &d);
    op_pack_dense(&s->cpu, q, tensor_f32(y, q->rows, q->cols));
}
void s_linear_grad(Backend *b, const LinearGrad *job) {
    LinearGrad j = *job;
    QTensor w = staged_weight(b, job->w, IN);
    int64_t rows = w.rows, cols = w.cols;
    j.w = &w;
    j.dy = staged_floats(b, j.dy, j.n * rows, IN), j.x = staged_floats(b, j.x, j.n * cols, IN);
    j.dense = staged_floats(b, j.dense, rows * cols, j.ready ? IN : OUT);
    j.dx = staged_floats(b, j.dx, j.n * cols, OUT), j.dw = staged_floats(b, j.dw, rows * cols, OUT);
    CUDA(linear_grad, &j);
}

void s_sparse(Backend *b, const SparseJob *job) {
    SparseJob j = *job;
    int64_t ng = j.rows * j.n_groups, grids = 2 * ((j.rows - 1) / j.stat_rows + 1) * j.n_groups;
    j.u = staged_floats(b, j.u, j.cols * j.cols, IN);
    j.w = staged_floats(b, j.w, j.rows * j.cols, BOTH), j.err = staged_floats(b, j.err, j.rows * (j.i2 - j.i1), OUT);
    j.outlier = staged_bytes(b, j.outlier, (size_t)(j.rows * j.cols), BOTH);
    j.scale = staged_floats(b, j.scale, ng, BOTH), j.zero = staged_floats(b, j.zero, ng, BOTH);
    j.scale_code = staged_bytes(b, j.scale_code, (size_t)ng, BOTH), j.zero_code = staged_bytes(b, j.zero_code, (size_t)ng, BOTH);
    j.scale_grid = staged_floats(b, j.scale_grid, grids, BOTH), j.zero_grid = staged_floats(b, j.zero_grid, grids, BOTH);
    CUDA(sparse, &j);
}
void s_column_variance(Backend *b, double *var, const float *x, int64_t rows, int64_t cols) {
    x = staged_floats(b, x, rows * cols, IN);
    CUDA(column_variance, var, x, rows, cols);
}
int64_t s_count_outliers(Backend *b, uint32_t *start, const uint8_t *mask, int64_t rows, int64_t cols) {
    Backend *cuda = staged_of(b)->gpu;
    int64_t all = ((rows - 1) / QT_PANEL + 1) * ((cols - 1) / QT_KBLOCK + 1);
    mask = staged_bytes(b, mask, (size_t)(rows * cols), IN), start = staged_bytes(b, start, (size_t)(all + 1) * sizeof *start, OUT);
    int64_t n = cuda->ops->count_outliers(cuda, start, mask, rows, cols);
    staged_done(b);
    return n;
}
bool s_split_outliers(Backend *b, const QTensor *q, float *w, const uint8_t *mask) {
    Backend *cuda = staged_of(b)->gpu;
    QTensor d = *q;
    int64_t all = ((q->rows - 1) / QT_PANEL + 1) * ((q->cols - 1) / QT_KBLOCK + 1);
    size_t item = q->spec.scale_dtype == DT_F32 ? 4 : 2, n = (size_t)q->outliers.n;
    mask = staged_bytes(b, mask, (size_t)(q->rows * q->cols), IN), w = staged_floats(b, w, q->rows * q->cols, BOTH);
    d.outliers.start = staged_bytes(b, q->outliers.start, (size_t)(all + 1) * 4, IN);
    d.outliers.at = staged_bytes(b, q->outliers.at, n * 2, OUT), d.outliers.value = staged_bytes(b, q->outliers.value, n * item, OUT);
    bool fits = cuda->ops->split_outliers(cuda, &d, w, mask);
    staged_done(b);
    return fits;
}
