/* hessian — 二阶求解共用部件的实现 */
#include "compute/hessian.h"

#include <math.h>
#include <stdlib.h>

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

static bool order_columns(Hessian *h, Arena *a, const float *diag, bool descending, Err *e) {
    Column *c = ARENA_ARRAY(a, Column, h->n, e);
    if (!c) return false;
    for (int64_t i = 0; i < h->n; i++) {
        c[i] = (Column){diag[i], (int32_t)i};
        if (!(c[i].diag >= 0 && isfinite(c[i].diag)))
            return err_set(e, ERR_NUMERIC, "校准激活的第 %lld 列有 NaN 或 Inf", (long long)i);
    }
    if (descending) qsort(c, (size_t)h->n, sizeof *c, larger_first);
    for (int64_t i = 0; i < h->n; i++) {
        h->perm[i] = c[i].at;
        h->dead[i] = c[i].diag == 0;
        h->n_dead += h->dead[i];
        h->from[i] = h->dead[i] ? -1 : h->perm[i];
    }
    return true;
}

bool hessian_diagonal(Backend *b, float *diag, const float *gram, int64_t n, Err *e) {
    Arena tmp = backend_arena(b);
    float *d = ARENA_ARRAY(&tmp, float, n, e);
    if (d) op_copy_2d(b, d, sizeof *d, gram, (size_t)(n + 1) * sizeof *d, n, sizeof *d);
    if (d) op_read(b, diag, d, (size_t)n * sizeof *d);
    arena_free(&tmp);
    return d && backend_check(b, e);
}

static bool factor(Hessian *h, Backend *b, const float *gram, const float *diag, double *work,
                   int64_t tokens, double damp, Err *e) {
    FactorJob job = {.n = h->n, .gram = gram, .perm = h->perm, .dead = h->dead, .u = h->u,
                     .work = work, .norm = 2.0 / (double)tokens};
    double mean = 0, next = damp;
    for (int64_t i = 0; i < h->n; i++) /* 死列的对角先置 1，也算进均值，同官方代码 */
        mean += (h->dead[i] ? 1 : job.norm * (double)diag[h->perm[i]]) / (double)h->n;
    for (int k = 0; k < DAMP_TRIES; k++) {
        h->damp = next;
        next = next > 0 ? next * 10 : 0.01;
        job.damp = h->damp * mean;
        if (op_factor(b, &job)) return true;
        if (!backend_check(b, e)) return false;
    }
    return err_set(e, ERR_NUMERIC,
                   "Hessian 直到阻尼 %g 仍不正定（%lld 个校准 token），请增加校准样本", h->damp,
                   (long long)tokens);
}

bool hessian_factor(Hessian *h, Backend *b, Arena *a, Arena *host, const float *gram,
                    int64_t tokens, int64_t n, bool descending, double damp, Err *e) {
    *h = (Hessian){.n = n};
    h->perm = ARENA_ARRAY(host, int32_t, n, e);
    h->from = ARENA_ARRAY(host, int32_t, n, e);
    h->dead = ARENA_ARRAY(host, bool, n, e);
    h->u = ARENA_ARRAY(a, float, n * n, e);
    if (!h->perm || !h->from || !h->dead || !h->u) return false;
    ArenaMark mark = arena_mark(host);
    float *diag = ARENA_ARRAY(host, float, n, e);
    double *work = b->host ? NULL : ARENA_ARRAY(host, double, n * (n + LINALG_BLOCK), e);
    bool ok = diag && (work || b->host) && hessian_diagonal(b, diag, gram, n, e) &&
              order_columns(h, host, diag, descending, e) &&
              factor(h, b, gram, diag, work, tokens, damp, e);
    arena_rewind(host, mark);
    return ok;
}

void hessian_gather(const Hessian *h, Backend *b, float *dst, const float *w, int64_t rows) {
    op_gather_columns(b, tensor_f32(dst, rows, h->n), tensor_f32((float *)w, rows, h->n), h->from);
}

void hessian_update_rest(const Hessian *h, Backend *b, float *w, const float *err, int64_t rows,
                         int64_t i1, int64_t i2) {
    op_update_rest(b, tensor_f32(w, rows, h->n), tensor_f32((float *)err, rows, i2 - i1),
                   tensor_f32(h->u, h->n, h->n), i1, i2);
}
