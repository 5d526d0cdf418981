/* ops_memory — 算子的入口之二：复制、统计与比较 */
#include <math.h>

#include "compute/dispatch.h"
#include "compute/ops.h"

void op_read(Backend *b, void *host, const void *src, size_t bytes) {
    if (failed(b) || bytes == 0) return;
    CHECK(host && src);
    CALL(b, read, host, src, bytes);
}

void op_write(Backend *b, void *dst, const void *host, size_t bytes) {
    if (failed(b) || bytes == 0) return;
    CHECK(dst && host);
    CALL(b, write, dst, host, bytes);
}

void op_copy(Backend *b, void *dst, const void *src, size_t bytes) {
    if (failed(b) || bytes == 0) return;
    CHECK(dst && src);
    CALL(b, copy, dst, src, bytes);
}

static bool is_real(DType t) {
    return t == DT_F32 || t == DT_F16 || t == DT_BF16;
}

void op_decode(Backend *b, float *dst, const void *host, DType t, DType rounded, int64_t n) {
    if (failed(b) || n == 0) return;
    CHECK(dst && host && is_real(t) && is_real(rounded));
    CALL(b, decode, dst, host, t, rounded, n);
}

void op_copy_2d(Backend *b, void *dst, size_t dst_step, const void *src, size_t src_step, int64_t n,
                size_t bytes) {
    if (failed(b) || bytes == 0 || n == 0) return;
    CHECK(dst && src && n > 0 && dst_step >= bytes && src_step >= bytes);
    CALL(b, copy_2d, dst, dst_step, src, src_step, n, bytes);
}

void op_kv_drop(Backend *b, KvStore *s, int64_t before) {
    CHECK(s->f.form == KV_DENSE);
    int64_t gone = before - s->first;
    if (gone <= 0) return;
    if (gone > s->length) gone = s->length;
    size_t row = (size_t)(s->heads * s->dim) * kvstore_item(s);
    op_copy(b, s->data, (char *)s->data + (size_t)gone * row, (size_t)(s->length - gone) * row);
    s->first += gone;
    s->length -= gone;
}

void op_symmetrize(Backend *b, Tensor g) {
    check_2d(g, g.shape[0], g.shape[0]);
    if (failed(b) || n_elements(g) == 0) return;
    CALL(b, symmetrize, g.data, g.shape[0]);
}

void op_column_stats(Backend *b, float *max, double *sum, Tensor x) {
    check_2d(x, x.shape[0], row_width(x));
    if (failed(b) || n_elements(x) == 0 || (!max && !sum)) return;
    CALL(b, column_stats, max, sum, x.data, x.shape[0], row_width(x));
}

void op_column_sum(Backend *b, Tensor y, Tensor x) {
    check_2d(x, x.shape[0], row_width(x));
    CHECK(y.dtype == DT_F32 && n_elements(y) == row_width(x));
    if (failed(b) || row_width(x) == 0) return;
    CALL(b, column_sum, y.data, x.data, x.shape[0], row_width(x));
}

void op_row_errors(Backend *b, double *out, Tensor x, const float *y, int64_t ldy) {
    check_2d(x, x.shape[0], row_width(x));
    CHECK(out && (y || n_elements(x) == 0) && ldy >= 0);
    if (failed(b) || n_elements(x) == 0) return;
    CALL(b, row_errors, out, x.data, y, ldy, x.shape[0], row_width(x));
}

void op_divide(Backend *b, Tensor y, const float *x, int64_t ldx, Tensor s) {
    int64_t n = n_elements(s);
    check_2d(y, y.shape[0], row_width(y));
    CHECK(s.dtype == DT_F32 && n >= 1 && row_width(y) % n == 0 && (x || n_elements(y) == 0));
    if (failed(b) || n_elements(y) == 0) return;
    CALL(b, divide, y.data, x, ldx, s.data, n, y.shape[0], row_width(y));
}

void op_gather_columns(Backend *b, Tensor dst, Tensor src, const int32_t *index) {
    int64_t n = row_width(src);
    check_2d(src, src.shape[0], n);
    check_2d(dst, src.shape[0], n);
    CHECK(index);
    for (int64_t i = 0; i < n; i++) CHECK(index[i] < n);
    if (failed(b) || n_elements(src) == 0) return;
    CALL(b, gather_columns, dst.data, src.data, index, src.shape[0], n);
}

void op_update_rest(Backend *b, Tensor w, Tensor err, Tensor u, int64_t i1, int64_t i2) {
    int64_t rows = w.shape[0], n = row_width(w);
    CHECK(i1 >= 0 && i1 < i2 && i2 <= n);
    check_2d(w, rows, n);
    check_2d(err, rows, i2 - i1);
    check_2d(u, n, n);
    if (failed(b) || rows == 0 || i2 == n) return;
    CALL(b, update_rest, w.data, err.data, u.data, rows, n, i1, i2);
}

bool op_all_finite(Backend *b, Tensor x) {
    check_2d(x, x.shape[0], row_width(x));
    if (failed(b) || n_elements(x) == 0) return true;
    if (b->guard) b->guard(b, true);
    bool ok = b->ops->all_finite(b, x.data, n_elements(x));
    if (b->guard) b->guard(b, false);
    return ok;
}

void op_watch(Backend *b, Tensor x, int tag) {
    check_2d(x, x.shape[0], row_width(x));
    CHECK(tag >= 0);
    if (failed(b) || n_elements(x) == 0) return;
    CALL(b, watch, x.data, n_elements(x), tag);
}

int op_watched(Backend *b) {
    return failed(b) ? -1 : b->ops->watched(b);
}

bool op_factor(Backend *b, const FactorJob *j) {
    CHECK(j->n >= 1 && j->gram && j->perm && j->dead && j->u && (j->work || b->host));
    if (failed(b)) return false;
    if (b->guard) b->guard(b, true);
    bool ok = b->ops->factor(b, j);
    if (b->guard) b->guard(b, false);
    return ok && !failed(b);
}

void op_adamw(Backend *b, const AdamStep *step) {
    CHECK(step && step->n >= 0 && step->param && step->m && step->v && step->grad);
    if (failed(b) || step->n == 0) return;
    CALL(b, adamw, step);
}

double op_mse_grad(Backend *b, Tensor d, Tensor x, Tensor y, float scale) {
    int64_t rows = x.shape[0], cols = row_width(x);
    check_2d(x, rows, cols);
    check_2d(y, rows, cols);
    check_2d(d, rows, cols);
    if (failed(b) || rows * cols == 0) return NAN;
    if (b->guard) b->guard(b, true);
    double sum = b->ops->mse_grad(b, d.data, x.data, y.data, scale, rows, cols);
    if (b->guard) b->guard(b, false);
    return sum;
}

void op_multiply(Backend *b, Tensor y, Tensor x, float a) {
    CHECK(y.dtype == DT_F32 && x.dtype == DT_F32 && n_elements(y) == n_elements(x));
    if (failed(b) || n_elements(y) == 0) return;
    CALL(b, multiply, y.data, x.data, a, n_elements(y));
}

void op_gather_rows(Backend *b, Tensor dst, Tensor src, const int32_t *index) {
    int64_t n = dst.shape[0], d = row_width(src);
    check_2d(src, src.shape[0], d);
    check_2d(dst, n, d);
    for (int64_t i = 0; i < n; i++) CHECK(index[i] >= 0 && index[i] < src.shape[0]);
    if (failed(b) || n * d == 0) return;
    CALL(b, gather_rows, dst.data, src.data, index, n, d);
}

void op_scatter_rows(Backend *b, Tensor dst, Tensor src, const int32_t *index,
                     const float *weight) {
    int64_t n = src.shape[0], d = row_width(src);
    check_2d(src, n, d);
    check_2d(dst, dst.shape[0], d);
    for (int64_t i = 0; i < n; i++) CHECK(index[i] >= 0 && index[i] < dst.shape[0]);
    if (failed(b) || n * d == 0) return;
    CALL(b, scatter_rows, dst.data, src.data, index, weight, n, d);
}
