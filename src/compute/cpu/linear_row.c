/* linear_row — 单行（逐 token 解码）的线性层
 * 下限是把权重读一遍的时间，所以一切为了连续地读：共用输入的几个线性层（q、k、v）接成一条面板的序列，
 * 每个线程先算自己那一段相邻的面板，预取因而总是下一步要用的；算完再帮别的线程。
 * 不变式：每个输出一个累加器沿 k 依次累加（见 isa/gemv.c），切法不影响任何一位。 */
#include "compute/cpu/linear.h"

enum { CLAIM_BYTES = 24 * 1024 /* 一次领取大约读这么多 */ };

/* 领取的单位：内核一次推进的面板数（见 isa/gemv.c）。 */
static int64_t unit_panels(const QTensor *w) {
    return w->dense == DT_NONE ? 4 : 8;
}

typedef struct RowJob {
    const GemmKernels *k;
    const void *x;
    bool bf16;
    const ActRows *act;
    const LinearPart *parts;
    int n_parts;
    int64_t first[LINEAR_OUT_MAX + 1];            /* 各段的首单位 */
    const float *minus_sums[LINEAR_OUT_MAX];      /* 按编码算的各段的 −Σx，否则为 NULL */
} RowJob;

/* 一段里的面板 [panel, panel+panels)，从 row0 数。 */
static void run_panels(const RowJob *j, int part, int64_t panel, int64_t panels) {
    const LinearPart *p = &j->parts[part];
    int64_t at = panel * QT_PANEL, n_out = min_i64(p->row1 - p->row0 - at, panels * QT_PANEL);
    float *y = p->y + at;
    const float *bias = p->bias ? p->bias + at : NULL;
    panel += p->row0 / QT_PANEL;
    if (j->act) {
        j->k->gemv_int8(y, j->act->codes, p->w, panel, n_out);
        j->k->finish_int8(y, 0, 1, n_out, p->w, panel, j->act, 0, bias);
    } else if (j->bf16) {
        j->k->gemv_bf16(y, j->x, j->minus_sums[part], p->w, panel, n_out, bias);
    } else {
        j->k->gemv(y, j->x, p->w, panel, n_out, bias);
    }
}

/* 单位 [first, last)，可以跨段。 */
static void run_units(void *ctx, int64_t first, int64_t last, int thread) {
    (void)thread;
    const RowJob *j = ctx;
    for (int i = 0; i < j->n_parts; i++) {
        int64_t from = max_i64(first, j->first[i]), to = min_i64(last, j->first[i + 1]);
        int64_t unit = unit_panels(j->parts[i].w);
        if (from < to) run_panels(j, i, (from - j->first[i]) * unit, (to - from) * unit);
    }
}

static void run(Backend *b, RowJob *j) {
    CpuBackend *cpu = b->impl;
    const QTensor *w = j->parts[0].w;
    j->k = cpu->kernels->gemm;
    for (int i = 0; i < j->n_parts; i++) {
        int64_t panels = ceil_div(j->parts[i].row1 - j->parts[i].row0, QT_PANEL);
        j->first[i + 1] = j->first[i] + ceil_div(panels, unit_panels(j->parts[i].w));
    }
    int64_t unit_bytes = (int64_t)(w->data_bytes / (size_t)ceil_div(w->rows, QT_PANEL)) *
                         unit_panels(w);
    pool_run_ranges(cpu->pool, j->first[j->n_parts], max_i64(1, CLAIM_BYTES / max_i64(unit_bytes, 1)),
                    run_units, j);
}

/* 激活舍入到 bf16 并补 0 到 32 的倍数；按编码算的各段另求各组之和（组宽相同的共用）。返回: 内存不足为假。 */
static bool prepare_bf16(Backend *b, RowJob *j, const float *x) {
    int64_t cols = j->parts[0].w->cols, sums = 0;
    for (int i = 0; i < j->n_parts; i++)
        if (linear_by_codes(j->parts[i].w)) sums += j->parts[i].w->n_groups;
    size_t sum_bytes = (size_t)sums * sizeof(float);
    char *space = cpu_slot(b, 2 * b->n_threads,
                           sum_bytes + (size_t)(cols + 1 + QT_KBLOCK) * sizeof(uint16_t));
    if (!space) return false;
    const GemmKernels *k = ((CpuBackend *)b->impl)->kernels->gemm;
    uint16_t *dst = (uint16_t *)(space + sum_bytes);
    k->round_bf16(dst, x, cols);
    for (int64_t i = cols + cols % 2; i < cols + QT_KBLOCK; i++) dst[i] = 0;
    j->x = dst;
    float *sum = (float *)space;
    for (int i = 0; i < j->n_parts; i++) {
        const QTensor *w = j->parts[i].w, *last = i ? j->parts[i - 1].w : NULL;
        if (!linear_by_codes(w)) continue;
        if (i && j->minus_sums[i - 1] && last->spec.group_size == w->spec.group_size) {
            j->minus_sums[i] = j->minus_sums[i - 1];
            continue;
        }
        k->group_sums(sum, dst, cols, w->spec.group_size);
        j->minus_sums[i] = sum;
        sum += w->n_groups;
    }
    return true;
}

void linear_row(Backend *b, const LinearPart *parts, int n_parts, const float *x, bool bf16) {
    for (int i = 0; i < n_parts; i++) /* 换过列序的各自算 */
        if (parts[i].w->perm && n_parts > 1) {
            for (i = 0; i < n_parts; i++) linear_row(b, &parts[i], 1, x, bf16);
            return;
        }
    if (parts[0].w->perm) x = linear_permute(b, x, 1, parts[0].w);
    if (!x) return;
    RowJob j = {.x = x, .bf16 = bf16, .parts = parts, .n_parts = n_parts};
    j.k = ((CpuBackend *)b->impl)->kernels->gemm;
    if (!bf16 || prepare_bf16(b, &j, x)) run(b, &j);
}

void linear_row_int8(Backend *b, const LinearPart *parts, int n_parts, const ActRows *act) {
    RowJob j = {.act = act, .parts = parts, .n_parts = n_parts};
    run(b, &j);
}
