/* hessian — 二阶求解共用部件的实现 */
#include "compute/hessian.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compute/linalg.h"
#include "compute/ops.h"

enum { DAMP_TRIES = 6 };

typedef struct Column {
    float diag;
    int32_t at;
} Column;

static int larger_first(const void *a, const void *b) {
    const Column *x = a, *y = b;
    if (x->diag != y->diag) return x->diag < y->diag ? 1 : -1;
    return x->at < y->at ? -1 : 1;
}

static bool order_columns(Hessian *h, Arena *a, const float *gram, bool descending, Err *e) {
    Column *c = ARENA_ARRAY(a, Column, h->n, e);
    if (!c) return false;
    for (int64_t i = 0; i < h->n; i++) {
        c[i] = (Column){gram[i * h->n + i], (int32_t)i};
        if (!(c[i].diag >= 0 && isfinite(c[i].diag)))
            return err_set(e, ERR_NUMERIC, "校准激活的第 %lld 列有 NaN 或 Inf", (long long)i);
    }
    if (descending) qsort(c, (size_t)h->n, sizeof *c, larger_first);
    for (int64_t i = 0; i < h->n; i++) {
        h->perm[i] = c[i].at;
        h->dead[i] = c[i].diag == 0;
        h->n_dead += h->dead[i];
    }
    return true;
}

bool hessian_factor(Hessian *h, Arena *a, const float *gram, int64_t tokens, int64_t n,
                    bool descending, double damp, Err *e) {
    *h = (Hessian){.n = n};
    h->perm = ARENA_ARRAY(a, int32_t, n, e);
    h->dead = ARENA_ARRAY(a, bool, n, e);
    h->u = ARENA_ARRAY(a, float, n * n, e);
    if (!h->perm || !h->dead || !h->u) return false;
    ArenaMark mark = arena_mark(a);
    double *f = ARENA_ARRAY(a, double, n * n, e), mean = 0, norm = 2.0 / (double)tokens;
    bool ok = f && order_columns(h, a, gram, descending, e), found = false;
    for (int64_t i = 0; ok && i < n; i++) /* 死列的对角先置 1，也算进均值，同官方代码 */
        mean += (h->dead[i] ? 1 : norm * (double)gram[h->perm[i] * (n + 1)]) / (double)n;
    double next = damp;
    for (int t = 0; ok && !found && t < DAMP_TRIES; t++) {
        h->damp = next;
        next = next > 0 ? next * 10 : 0.01;
        for (int64_t i = 0; i < n; i++) {
            const float *row = gram + h->perm[i] * n;
            for (int64_t j = 0; j < n; j++) f[i * n + j] = norm * (double)row[h->perm[j]];
            f[i * n + i] = (h->dead[i] ? 1 : f[i * n + i]) + h->damp * mean;
        }
        found = linalg_inverse_upper(f, n);
    }
    for (int64_t i = 0; found && i < n * n; i++) h->u[i] = (float)f[i];
    arena_rewind(a, mark);
    if (ok && !found)
        return err_set(e, ERR_NUMERIC, "Hessian 直到阻尼 %g 仍不正定（%lld 个校准 token），请增加校准样本",
                       h->damp, (long long)tokens);
    return ok;
}

void hessian_gather(const Hessian *h, float *dst, const float *w, int64_t rows) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < h->n; i++)
            dst[r * h->n + i] = h->dead[i] ? 0 : w[r * h->n + h->perm[i]];
}

bool hessian_update_rest(const Hessian *h, Backend *b, Arena *scratch, float *w, const float *err,
                         int64_t rows, int64_t i1, int64_t i2, Err *e) {
    int64_t n = h->n, rest = n - i2, k = i2 - i1;
    if (rest == 0) return true;
    ArenaMark mark = arena_mark(scratch);
    float *ut = ARENA_ARRAY(scratch, float, rest * k, e);
    float *delta = ARENA_ARRAY(scratch, float, rows * rest, e);
    QTensor q;
    bool ok = ut && delta && qtensor_new_dense(&q, scratch, DT_F32, rest, k, e);
    if (ok) {
        for (int64_t j = 0; j < rest; j++)
            for (int64_t i = 0; i < k; i++) ut[j * k + i] = h->u[(i1 + i) * n + i2 + j];
        op_pack_dense(b, &q, tensor_f32(ut, rest, k));
        op_linear_exact(b, tensor_f32(delta, rows, rest), tensor_f32((float *)err, rows, k), &q);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < rest; j++) w[r * n + i2 + j] -= delta[r * rest + j];
        ok = backend_check(b, e);
    }
    arena_rewind(scratch, mark);
    return ok;
}
