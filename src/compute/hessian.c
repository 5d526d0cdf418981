/* hessian — 二阶求解共用部件的实现 */
#include "compute/hessian.h"

#include <math.h>
#include <stdlib.h>

#include "compute/linalg.h"
#include "compute/memory.h"

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
        h->from[i] = h->dead[i] ? -1 : h->perm[i];
    }
    return true;
}

/* 由 gram 填 f：按处理的次序、加阻尼；反过来由 f 出 u。按行块分成任务。 */
typedef struct Fill {
    const Hessian *h;
    const float *gram;
    double *f, norm, mean;
    float *u;
} Fill;

enum { ROWS_PER_TASK = 64 };

static int64_t fill_tasks(int64_t n) {
    return (n + ROWS_PER_TASK - 1) / ROWS_PER_TASK;
}

static void fill_task(void *ctx, int64_t task) {
    const Fill *t = ctx;
    const Hessian *h = t->h;
    int64_t n = h->n, end = (task + 1) * ROWS_PER_TASK < n ? (task + 1) * ROWS_PER_TASK : n;
    for (int64_t i = task * ROWS_PER_TASK; i < end; i++) {
        const float *row = t->gram + h->perm[i] * n;
        for (int64_t j = 0; j < n; j++) t->f[i * n + j] = t->norm * (double)row[h->perm[j]];
        t->f[i * n + i] = (h->dead[i] ? 1 : t->f[i * n + i]) + h->damp * t->mean;
    }
}

static void store_task(void *ctx, int64_t task) {
    const Fill *t = ctx;
    int64_t n = t->h->n, end = (task + 1) * ROWS_PER_TASK < n ? (task + 1) * ROWS_PER_TASK : n;
    for (int64_t i = task * ROWS_PER_TASK * n; i < end * n; i++) t->u[i] = (float)t->f[i];
}

/* 主机上的分解：gram (n,n) → u。f 是 (n, n+LINALG_BLOCK) 的暂存。 */
static bool factor(Hessian *h, Backend *b, Arena *host, const float *gram, float *u, double *f,
                   int64_t tokens, bool descending, double damp, Err *e) {
    int64_t n = h->n;
    Fill t = {.h = h, .gram = gram, .f = f, .norm = 2.0 / (double)tokens, .u = u};
    bool found = false;
    if (!order_columns(h, host, gram, descending, e)) return false;
    for (int64_t i = 0; i < n; i++) /* 死列的对角先置 1，也算进均值，同官方代码 */
        t.mean += (h->dead[i] ? 1 : t.norm * (double)gram[h->perm[i] * (n + 1)]) / (double)n;
    double next = damp;
    for (int k = 0; !found && k < DAMP_TRIES; k++) {
        h->damp = next;
        next = next > 0 ? next * 10 : 0.01;
        b->ops->parallel(b, fill_tasks(n), fill_task, &t);
        found = linalg_inverse_upper(b, f, n, f + n * n);
    }
    if (found) b->ops->parallel(b, fill_tasks(n), store_task, &t);
    return found || err_set(e, ERR_NUMERIC,
                            "Hessian 直到阻尼 %g 仍不正定（%lld 个校准 token），请增加校准样本",
                            h->damp, (long long)tokens);
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
    double *f = ARENA_ARRAY(host, double, n * (n + LINALG_BLOCK), e);
    HostView v = host_view(b);
    const float *g = HOST_MAP(&v, float, gram, n *n, HOST_READ);
    float *u = HOST_MAP(&v, float, h->u, n *n, HOST_WRITE);
    bool ok = f && g && u && factor(h, b, host, g, u, f, tokens, descending, damp, e);
    host_end(&v);
    arena_rewind(host, mark);
    return backend_check(b, e) && ok;
}

void hessian_gather(const Hessian *h, Backend *b, float *dst, const float *w, int64_t rows) {
    op_gather_columns(b, tensor_f32(dst, rows, h->n), tensor_f32((float *)w, rows, h->n), h->from);
}

void hessian_update_rest(const Hessian *h, Backend *b, float *w, const float *err, int64_t rows,
                         int64_t i1, int64_t i2) {
    op_update_rest(b, tensor_f32(w, rows, h->n), tensor_f32((float *)err, rows, i2 - i1),
                   tensor_f32(h->u, h->n, h->n), i1, i2);
}
