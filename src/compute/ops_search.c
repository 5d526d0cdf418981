/* ops_search — 算子的入口之三：方法的内层循环（搜索与学习） */
#include <math.h>

#include "compute/dispatch.h"
#include "compute/ops.h"

void op_divide_rows(Backend *b, Tensor w, Tensor s) {
    check_2d(w, w.shape[0], row_width(w));
    CHECK(s.dtype == DT_F32 && n_elements(s) == w.shape[0]);
    if (failed(b) || n_elements(w) == 0) return;
    CALL(b, divide_rows, w.data, s.data, w.shape[0], row_width(w));
}

double op_quadratic(Backend *b, Tensor d, const QTensor *g, Tensor tmp) {
    int64_t rows = d.shape[0], cols = row_width(d);
    check_2d(d, rows, cols);
    check_2d(tmp, rows, cols);
    CHECK(g && g->data && g->dense == DT_F32 && g->rows == cols && g->cols == cols);
    if (failed(b)) return NAN;
    if (rows == 0) return 0;
    if (b->guard) b->guard(b, true);
    double sum = b->ops->quadratic(b, d.data, g, tmp.data, rows, cols);
    if (b->guard) b->guard(b, false);
    return failed(b) ? NAN : sum;
}

void op_clip(Backend *b, const ClipJob *j) {
    CHECK(j && j->rows >= 0 && j->width >= 1 && j->ld >= j->width && j->steps >= 1 && j->grid >= j->steps);
    CHECK(j->spec.group_size == -1 && j->spec.grid != GRID_TENSOR && j->spec.zero != ZERO_FLOAT);
    CHECK(j->gram && j->gram->data && j->gram->dense == DT_F32 && j->gram->rows == j->width &&
          j->gram->cols == j->width);
    if (failed(b) || j->rows == 0) return;
    CHECK(j->w);
    CALL(b, clip, j);
}

static void check_clamp(const ClampJob *j) {
    CHECK(j && j->n >= 0 && j->bits >= 2 && j->bits <= 8 && j->least > 0 && j->most > j->least);
    CHECK(j->n == 0 || (j->lo && j->hi && j->scale && j->zero && !j->low == !j->high));
}

void op_clamp_grid(Backend *b, const ClampJob *j) {
    check_clamp(j);
    if (failed(b) || j->n == 0) return;
    CALL(b, clamp_grid, j);
}

void op_clamp_grid_grad(Backend *b, const ClampJob *j) {
    check_clamp(j);
    if (failed(b) || j->n == 0) return;
    CHECK(j->d_scale && j->d_lo && j->d_hi && (!j->low || (j->d_low && j->d_high)));
    CALL(b, clamp_grid_grad, j);
}

void op_fake_pack(Backend *b, QTensor *q, Tensor y, Tensor x, Tensor scale, Tensor zero,
                  const QSpec *spec) {
    int64_t rows = x.shape[0], cols = row_width(x);
    CHECK(q && q->data && q->dense != DT_NONE && q->rows == rows && q->cols == cols && !q->perm);
    check_2d(x, rows, cols);
    check_2d(y, rows, cols);
    CHECK(spec && spec->bits >= 2 && spec->bits <= 8);
    int64_t groups = (cols - 1) / qspec_group_size(spec, cols) + 1;
    check_2d(scale, rows, groups);
    check_2d(zero, rows, groups);
    if (failed(b)) return;
    CALL(b, fake_pack, q, y.data, x.data, scale.data, zero.data, spec);
}

void op_linear_grad(Backend *b, const LinearGrad *j) {
    CHECK(j && j->n >= 0 && j->w && j->w->data && (!j->dx || j->dense) && (!j->dw || j->x || j->n == 0));
    if (failed(b) || j->n == 0 || (!j->dx && !j->dw)) return;
    CHECK(j->dy);
    CALL(b, linear_grad, j);
}

void op_sparse(Backend *b, const SparseJob *j) {
    CHECK(j && j->rows >= 0 && j->i1 >= 0 && j->i1 < j->i2 && j->i2 <= j->cols && j->group >= 1);
    CHECK(j->n_groups == (j->cols - 1) / j->group + 1 && j->stat_rows >= 1);
    CHECK(j->bits >= 2 && j->bits <= 8 && (j->scale_dtype == DT_F32 || j->scale_dtype == DT_F16));
    if (failed(b) || j->rows == 0) return;
    CHECK(j->w && j->u && j->err && j->outlier && j->scale && j->zero);
    CHECK(!j->scale_bits || (j->scale_code && j->scale_grid));
    CHECK(!j->zero_bits || (j->zero_code && j->zero_grid));
    CALL(b, sparse, j);
}

void op_column_variance(Backend *b, double *var, Tensor x) {
    int64_t rows = x.shape[0], cols = row_width(x);
    check_2d(x, rows, cols);
    CHECK(rows >= 2 && var);
    if (failed(b) || cols == 0) return;
    CALL(b, column_variance, var, x.data, rows, cols);
}

static int64_t count_outliers(Backend *b, uint32_t *start, const uint8_t *mask, int64_t rows, int64_t cols) {
    if (b->guard) b->guard(b, true);
    int64_t n = b->ops->count_outliers(b, start, mask, rows, cols);
    if (b->guard) b->guard(b, false);
    return n;
}

void op_split_outliers(Backend *b, QTensor *q, Arena *a, Tensor w, const uint8_t *mask) {
    CHECK(q && q->dense == DT_NONE && mask && a);
    check_2d(w, q->rows, q->cols);
    if (failed(b)) return;
    int64_t blocks = ((q->rows - 1) / QT_PANEL + 1) * ((q->cols - 1) / QT_KBLOCK + 1);
    size_t size = q->spec.scale_dtype == DT_F32 ? 4 : 2;
    Outliers o = {0};
    if (q->rows * q->cols > UINT32_MAX) {
        err_set(&b->err, ERR_UNSUPPORTED, "矩阵太大（%lld×%lld），存不下离群值的位置", (long long)q->rows,
                (long long)q->cols);
        return;
    }
    o.start = ARENA_ARRAY(a, uint32_t, blocks + 1, &b->err);
    if (!o.start) return;
    o.n = count_outliers(b, o.start, mask, q->rows, q->cols);
    if (failed(b)) return;
    o.at = ARENA_ARRAY(a, uint16_t, o.n, &b->err);
    o.value = arena_array(a, (size_t)o.n, size, &b->err);
    o.bytes = (size_t)(blocks + 1) * sizeof *o.start + (size_t)o.n * (sizeof *o.at + size);
    if (!o.at || !o.value) return;
    q->outliers = o;
    if (b->guard) b->guard(b, true);
    bool fits = b->ops->split_outliers(b, q, w.data, mask);
    if (b->guard) b->guard(b, false);
    if (!fits && !failed(b)) err_set(&b->err, ERR_NUMERIC, "离群值超出 float16 的范围，请改用 float32 的缩放");
}
