/* quant — 装包、量化、反量化：按面板（或行）分给线程 */
#include <stdatomic.h>
#include <string.h>

#include "compute/cpu/cpu.h"
#include "compute/cpu/gemm_kernels.h"
#include "compute/cpu/linear.h"

enum { ROWS_PER_TASK = 16 };
/* 装到新要的内存：各线程各写相连的一段，一次至少这么多字节。几个线程同时碰一个 2 MiB 的大页，内核里各要一页、各自清零，只留一页。 */
enum { APART = 4 << 20 };

typedef struct PanelJob {
    const GemmKernels *k;
    QTensor *q;
    const QTensor *source;
    float *out;
    const float *w, *scale, *zero;
    const void *stored;
    DType type;
    atomic_bool bad; /* stored 里有不是有限值的 */
} PanelJob;

static void run_panels(Backend *b, int64_t rows, void (*task)(void *, int64_t, int), PanelJob *j) {
    CpuBackend *cpu = b->impl;
    j->k = cpu->kernels->gemm;
    pool_run(cpu->pool, (rows - 1) / QT_PANEL + 1, task, j);
}

static void pack_task(void *ctx, int64_t panel, int thread) {
    (void)thread;
    PanelJob *j = ctx;
    j->k->pack_panel(j->q, j->w, panel);
}

void cpu_pack_dense(Backend *b, QTensor *q, const float *w) {
    PanelJob j = {.q = q, .w = w};
    run_panels(b, q->rows, pack_task, &j);
}

static void pack_stored_range(void *ctx, int64_t first, int64_t last, int thread) {
    (void)thread;
    PanelJob *j = ctx;
    for (int64_t p = first; p < last; p++)
        if (!j->k->pack_stored_panel(j->q, j->stored, j->type, p)) atomic_store(&j->bad, true);
}

void cpu_pack_stored(Backend *b, QTensor *q, const void *host, DType stored, bool *finite) {
    PanelJob j = {.q = q, .stored = host, .type = stored};
    CpuBackend *cpu = b->impl;
    int64_t n = (q->rows - 1) / QT_PANEL + 1;
    j.k = cpu->kernels->gemm;
    pool_run_ranges(cpu->pool, n, max_i64(1, APART * n / (int64_t)q->data_bytes), pack_stored_range, &j);
    if (finite) *finite = !atomic_load(&j.bad);
}

static void quantize_task(void *ctx, int64_t panel, int thread) {
    (void)thread;
    PanelJob *j = ctx;
    j->k->quantize_panel(j->q, j->w, j->scale, j->zero, panel);
}

void cpu_quantize(Backend *b, QTensor *q, const float *w, const float *scale, const float *zero) {
    PanelJob j = {.q = q, .w = w, .scale = scale, .zero = zero};
    run_panels(b, q->rows, quantize_task, &j);
}

static void dequantize_task(void *ctx, int64_t panel, int thread) {
    (void)thread;
    PanelJob *j = ctx;
    j->k->unpack_panel(j->out, j->source, panel);
}

/* 各行由存放的次序换回原来的次序。 */
static void unpermute(Backend *b, float *w, const QTensor *q) {
    Arena tmp = {0};
    float *row = ARENA_ARRAY(&tmp, float, q->cols, &b->err);
    for (int64_t r = 0; row && r < q->rows; r++) {
        float *dst = w + r * q->cols;
        memcpy(row, dst, (size_t)q->cols * sizeof *row);
        for (int64_t i = 0; i < q->cols; i++) dst[q->perm[i]] = row[i];
    }
    arena_free(&tmp);
}

void cpu_dequantize(Backend *b, float *w, const QTensor *q) {
    PanelJob j = {.source = q, .out = w};
    run_panels(b, q->rows, dequantize_task, &j);
    if (q->perm) unpermute(b, w, q);
}

typedef struct ParamsJob {
    const GemmKernels *k;
    float *scale, *zero;
    const float *w;
    int64_t rows, cols, group, n_groups;
    const QSpec *spec;
} ParamsJob;

static void qparams_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const ParamsJob *j = ctx;
    int64_t end = (task + 1) * ROWS_PER_TASK < j->rows ? (task + 1) * ROWS_PER_TASK : j->rows;
    for (int64_t r = task * ROWS_PER_TASK; r < end; r++)
        j->k->qparams_row(j->scale + r * j->n_groups, j->zero + r * j->n_groups, j->w + r * j->cols,
                          j->cols, j->group, j->spec);
}

void cpu_qparams(Backend *b, float *scale, float *zero, const float *w, int64_t rows, int64_t cols,
                 const QSpec *spec) {
    CpuBackend *cpu = b->impl;
    int64_t group = qspec_group_size(spec, cols);
    ParamsJob j = {.k = cpu->kernels->gemm, .scale = scale, .zero = zero, .w = w, .rows = rows,
                   .cols = cols, .group = group, .n_groups = (cols - 1) / group + 1, .spec = spec};
    pool_run(cpu->pool, (rows - 1) / ROWS_PER_TASK + 1, qparams_task, &j);
    if (spec->grid != GRID_TENSOR) return;
    float m = 0;
    for (int64_t i = 0; i < rows * j.n_groups; i++) m = scale[i] > m ? scale[i] : m;
    for (int64_t i = 0; i < rows * j.n_groups; i++) scale[i] = m; /* 最大的 scale 属于最大的 max|w| */
}
