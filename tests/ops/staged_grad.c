/* staged_grad — CUDA 外壳的反向与学习的算子，见 staged.c */
#include "tests/ops/staged_parts.h"

void s_matmul(Backend *b, float *y, const float *a, const float *c, int64_t m, int64_t k, int64_t n,
              bool transpose_a) {
    a = staged_floats(b, a, m * k, IN), c = staged_floats(b, c, k * n, IN),
    y = staged_floats(b, y, m * n, OUT);
    CUDA(matmul, y, a, c, m, k, n, transpose_a);
}
void s_rmsnorm_grad(Backend *b, float *dx, float *dw, const float *dy, const float *x,
                    const float *w, int64_t n, int64_t d, float eps) {
    dy = staged_floats(b, dy, n * d, IN), x = staged_floats(b, x, n * d, IN),
    w = staged_floats(b, w, d, IN);
    dx = staged_floats(b, dx, n * d, OUT), dw = staged_floats(b, dw, d, OUT);
    CUDA(rmsnorm_grad, dx, dw, dy, x, w, n, d, eps);
}
void s_silu_mul_grad(Backend *b, float *dg, float *du, const float *dy, const float *g,
                     const float *u, int64_t n) {
    dy = staged_floats(b, dy, n, IN), g = staged_floats(b, g, n, IN),
    u = staged_floats(b, u, n, IN);
    dg = staged_floats(b, dg, n, OUT), du = staged_floats(b, du, n, OUT);
    CUDA(silu_mul_grad, dg, du, dy, g, u, n);
}
void s_attention_grad(Backend *b, float *dq, float *dk, float *dv, const float *d_out,
                      const float *q, const float *k, const float *v, int64_t n,
                      const AttnSpec *s) {
    int64_t wide = n * s->n_heads * s->head_dim, narrow = n * s->n_kv_heads * s->head_dim;
    d_out = staged_floats(b, d_out, wide, IN), q = staged_floats(b, q, wide, IN);
    k = staged_floats(b, k, narrow, IN), v = staged_floats(b, v, narrow, IN);
    dq = staged_floats(b, dq, wide, OUT), dk = staged_floats(b, dk, narrow, OUT),
    dv = staged_floats(b, dv, narrow, OUT);
    CUDA(attention_grad, dq, dk, dv, d_out, q, k, v, n, s);
}
void s_round_act_grad(Backend *b, float *d, const float *x, int64_t n, int64_t cols, int bits) {
    x = staged_floats(b, x, n * cols, IN), d = staged_floats(b, d, n * cols, BOTH);
    CUDA(round_act_grad, d, x, n, cols, bits);
}
void s_score_grad(Backend *b, const ScoreGradJob *job) {
    ScoreGradJob j = *job;
    QTensor head = staged_weight(b, job->head, IN);
    j.head = &head;
    j.x = staged_floats(b, job->x, job->n * job->head->cols, IN);
    j.dx = staged_floats(b, job->dx, job->n * job->head->cols, OUT);
    CUDA(score_grad, &j);
}
void s_group_range(Backend *b, float *lo, float *hi, const float *x, int64_t rows, int64_t cols,
                   int64_t group) {
    int64_t n = rows * ((cols - 1) / group + 1);
    x = staged_floats(b, x, rows * cols, IN), lo = staged_floats(b, lo, n, OUT),
    hi = staged_floats(b, hi, n, OUT);
    CUDA(group_range, lo, hi, x, rows, cols, group);
}
void s_group_range_grad(Backend *b, float *dx, const float *x, const float *lo, const float *hi,
                        const float *d_lo, const float *d_hi, int64_t rows, int64_t cols,
                        int64_t group) {
    int64_t n = rows * ((cols - 1) / group + 1);
    x = staged_floats(b, x, rows * cols, IN), lo = staged_floats(b, lo, n, IN),
    hi = staged_floats(b, hi, n, IN);
    d_lo = staged_floats(b, d_lo, n, IN), d_hi = staged_floats(b, d_hi, n, IN),
    dx = staged_floats(b, dx, rows * cols, BOTH);
    CUDA(group_range_grad, dx, x, lo, hi, d_lo, d_hi, rows, cols, group);
}
void s_scale(Backend *b, float *y, const float *x, const float *row, const float *col, int64_t rows,
             int64_t cols) {
    x = staged_floats(b, x, rows * cols, IN), row = staged_floats(b, row, rows, IN),
    col = staged_floats(b, col, cols, IN);
    y = staged_floats(b, y, rows * cols, OUT);
    CUDA(scale, y, x, row, col, rows, cols);
}
void s_scale_grad(Backend *b, float *d_row, float *d_col, const float *dy, const float *x,
                  const float *row, const float *col, int64_t rows, int64_t cols) {
    dy = staged_floats(b, dy, rows * cols, IN), x = staged_floats(b, x, rows * cols, IN);
    row = staged_floats(b, row, rows, IN), col = staged_floats(b, col, cols, IN);
    d_row = staged_floats(b, d_row, rows, OUT), d_col = staged_floats(b, d_col, cols, OUT);
    CUDA(scale_grad, d_row, d_col, dy, x, row, col, rows, cols);
}
void s_fake_quant(Backend *b, float *y, const float *x, const float *scale, const float *zero,
                  int64_t rows, int64_t cols, const QSpec *spec) {
    int64_t n = rows * groups_of(spec, cols);
    x = staged_floats(b, x, rows * cols, IN), scale = staged_floats(b, scale, n, IN),
    zero = staged_floats(b, zero, n, IN);
    y = staged_floats(b, y, rows * cols, OUT);
    CUDA(fake_quant, y, x, scale, zero, rows, cols, spec);
}
void s_fake_quant_grad(Backend *b, float *dx, float *dscale, const float *dy, const float *x,
                       const float *scale, const float *zero, int64_t rows, int64_t cols,
                       const QSpec *spec) {
    int64_t n = rows * groups_of(spec, cols);
    dy = staged_floats(b, dy, rows * cols, IN), x = staged_floats(b, x, rows * cols, IN);
    scale = staged_floats(b, scale, n, IN), zero = staged_floats(b, zero, n, IN);
    dx = staged_floats(b, dx, rows * cols, OUT), dscale = staged_floats(b, dscale, n, OUT);
    CUDA(fake_quant_grad, dx, dscale, dy, x, scale, zero, rows, cols, spec);
}
