/* attention_grad — 因果注意力的反向（GQA、可选滑动窗口），恒为 f32
 * 一个查询头一个任务，按查询块重算 P，再求
 *   dV += Pᵀ·dO，dP = dO·Vᵀ，dS = scale·P∘(dP − Σ P∘dP)，dQ = dS·K，dK += dSᵀ·Q；
 * 乘积都用矩阵乘的小块内核。各头的 dK、dV 分开放，最后按组内次序相加，所以结果与线程数无关。 */
#include <string.h>

#include "compute/cpu/cpu.h"
#include "compute/cpu/gemm_kernels.h"
#include "compute/cpu/grad_kernels.h"
#include "compute/cpu/kernels.h"

enum { QUERY_BLOCK = 112 /* 16 与小块行数 14 的公倍数 */ };

/* 一个线程的工作区。 */
typedef struct Work {
    float *k_rows, *v_rows;  /* K、V 的行作输出：[键面板][dim][16] */
    float *k_cols;           /* K 的列作输出：[维面板][键][16] */
    float *q_cols, *do_cols; /* 一个查询块的 Q、dO：[维面板][查询][16] */
    float *head;             /* (n, dim) 取出的一个头 */
    float *p, *dp;           /* (QUERY_BLOCK, 补齐的键数) */
    float *flipped;          /* 转置 (键数, QUERY_BLOCK) */
    float *x_tile, *edge;
} Work;

typedef struct AttnGradJob {
    const GemmKernels *gemm;
    const GradKernels *grad;
    const AttnSpec *spec;
    float *dq, *dk, *dv;
    const float *d_out, *q, *k, *v;
    float *part; /* (头, 2, n, dim)：各头的 dK、dV */
    int64_t n;
    void **work;
} AttnGradJob;

static int64_t round16(int64_t n) {
    return (n + 15) / 16 * 16;
}
static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static size_t carve(Work *w, float *base, const AttnGradJob *j) {
    int64_t np = round16(j->n), dim = j->spec->head_dim, dp = round16(dim), at = 0;
    float **part[] = {&w->k_rows, &w->v_rows, &w->k_cols, &w->q_cols, &w->do_cols, &w->head,
                      &w->p, &w->dp, &w->flipped, &w->x_tile, &w->edge};
    int64_t size[] = {np * dim, np * dim, dp * np, dp * QUERY_BLOCK, dp * QUERY_BLOCK, np * dim,
                      QUERY_BLOCK * np, QUERY_BLOCK * np, np * QUERY_BLOCK,
                      (int64_t)j->gemm->tile_rows * TILE_X_STRIDE,
                      (int64_t)j->gemm->tile_rows * j->gemm->tile_panels * QT_PANEL};
    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        if (base) *part[i] = base + at;
        at += round16(size[i]);
    }
    return (size_t)at * sizeof(float);
}

/* y(rows, n_out) = 或 += x(rows, steps)·w，w 为间距 w_stride 的面板；单线程。 */
static void multiply(const AttnGradJob *j, const Work *w, float *y, int64_t ldy, const float *x,
                     int64_t ldx, int64_t rows, const float *panels, int64_t w_stride,
                     int64_t n_out, int64_t steps, bool accumulate) {
    int64_t per = j->gemm->tile_panels, n_tiles = (rows - 1) / j->gemm->tile_rows + 1;
    for (int64_t s0 = 0; s0 < steps; s0 += TILE_STEPS_MAX) {
        int64_t kc = min64(TILE_STEPS_MAX, steps - s0);
        bool add = accumulate || s0 > 0;
        for (int64_t t = 0; t < n_tiles; t++) {
            int64_t r0 = rows * t / n_tiles, nr = rows * (t + 1) / n_tiles - r0;
            for (int64_t r = 0; r < nr; r++)
                memcpy(w->x_tile + r * TILE_X_STRIDE, x + (r0 + r) * ldx + s0, (size_t)kc * 4);
            for (int64_t c = 0; c < n_out; c += per * QT_PANEL) {
                int64_t np = min64(per, (n_out - c + QT_PANEL - 1) / QT_PANEL);
                int64_t width = np * QT_PANEL, valid = min64(width, n_out - c);
                TileFn *tile = j->gemm->tiles[(nr - 1) * per + np - 1];
                const float *block = panels + c / QT_PANEL * w_stride + s0 * QT_PANEL;
                float *dst = y + r0 * ldy + c;
                if (valid == width) {
                    tile(dst, ldy, w->x_tile, block, w_stride, kc, add);
                    continue;
                }
                for (int64_t r = 0; add && r < nr; r++)
                    memcpy(w->edge + r * width, dst + r * ldy, (size_t)valid * 4);
                tile(w->edge, width, w->x_tile, block, w_stride, kc, add);
                for (int64_t r = 0; r < nr; r++)
                    memcpy(dst + r * ldy, w->edge + r * width, (size_t)valid * 4);
            }
        }
    }
}

/* x(n, heads·dim) 的第 head 头 → (n, dim)。 */
static void gather_head(float *dst, const float *x, int64_t n, int64_t heads, int64_t head,
                        int64_t dim) {
    for (int64_t i = 0; i < n; i++)
        memcpy(dst + i * dim, x + (i * heads + head) * dim, (size_t)dim * 4);
}

/* 行作输出的面板：x(n, dim) → [n/16][dim][16]，补出的行为 0。 */
static void row_panels(const GradKernels *g, float *dst, const float *x, int64_t n, int64_t dim) {
    for (int64_t i = 0; i < n; i += 16) {
        if (n - i < 16) memset(dst + i * dim, 0, (size_t)(16 * dim) * 4);
        g->transpose(dst + i * dim, 16, x + i * dim, dim, min64(16, n - i), dim);
    }
}

/* 列作输出的面板：x(n, dim) → [dim/16][n][16] */
static void col_panels(const GradKernels *g, float *dst, const float *x, int64_t n, int64_t dim) {
    for (int64_t p = 0; p * 16 < dim; p++) g->slice_panel(dst + p * n * 16, x, n, dim, p, false);
}

/* 查询 [i0, i1)：看得见的键在 [k0, i1) 内。 */
static void query_block(const AttnGradJob *j, const Work *w, int64_t head, int64_t i0, int64_t i1) {
    const AttnSpec *s = j->spec;
    const GradKernels *g = j->grad;
    int64_t dim = s->head_dim, stride = s->n_heads * dim, rows = i1 - i0, n = j->n;
    int64_t k0 = s->window > 0 && i0 >= s->window ? (i0 - s->window + 1) / 16 * 16 : 0;
    int64_t keys = i1 - k0, np = round16(keys);
    const float *q = j->q + i0 * stride + head * dim, *d_out = j->d_out + i0 * stride + head * dim;
    float *dk = j->part + head * 2 * n * dim + k0 * dim, *dv = dk + n * dim;

    multiply(j, w, w->p, np, q, stride, rows, w->k_rows + k0 * dim, dim * 16, np, dim, false);
    multiply(j, w, w->dp, np, d_out, stride, rows, w->v_rows + k0 * dim, dim * 16, np, dim, false);
    for (int64_t r = 0; r < rows; r++) {
        int64_t at = i0 + r - k0, lo = s->window > 0 && at >= s->window ? at - s->window + 1 : 0;
        g->softmax_row(w->p + r * np, lo, at + 1, np, s->scale);
    }
    gather_head(w->head, j->d_out + i0 * stride, rows, s->n_heads, head, dim);
    col_panels(g, w->do_cols, w->head, rows, dim);
    g->transpose(w->flipped, QUERY_BLOCK, w->p, np, rows, keys);
    multiply(j, w, dv, dim, w->flipped, QUERY_BLOCK, keys, w->do_cols, rows * 16, dim, rows, true);

    for (int64_t r = 0; r < rows; r++)
        g->softmax_grad_row(w->dp + r * np, w->p + r * np, np, s->scale);
    multiply(j, w, j->dq + i0 * stride + head * dim, stride, w->dp, np, rows, w->k_cols + k0 * 16,
             n * 16, dim, keys, false);
    gather_head(w->head, j->q + i0 * stride, rows, s->n_heads, head, dim);
    col_panels(g, w->q_cols, w->head, rows, dim);
    g->transpose(w->flipped, QUERY_BLOCK, w->dp, np, rows, keys);
    multiply(j, w, dk, dim, w->flipped, QUERY_BLOCK, keys, w->q_cols, rows * 16, dim, rows, true);
}

static void head_task(void *ctx, int64_t head, int thread) {
    const AttnGradJob *j = ctx;
    const AttnSpec *s = j->spec;
    int64_t dim = s->head_dim, n = j->n, kv = head / (s->n_heads / s->n_kv_heads);
    Work w;
    carve(&w, j->work[thread], j);
    gather_head(w.head, j->k, n, s->n_kv_heads, kv, dim);
    row_panels(j->grad, w.k_rows, w.head, n, dim);
    col_panels(j->grad, w.k_cols, w.head, n, dim);
    gather_head(w.head, j->v, n, s->n_kv_heads, kv, dim);
    row_panels(j->grad, w.v_rows, w.head, n, dim);
    memset(j->part + head * 2 * n * dim, 0, (size_t)(2 * n * dim) * sizeof(float));
    for (int64_t i = 0; i < n; i += QUERY_BLOCK) query_block(j, &w, head, i, min64(i + QUERY_BLOCK, n));
}

/* 位置 i：组内各头的 dK、dV 相加。 */
static void sum_task(void *ctx, int64_t i, int thread) {
    (void)thread;
    const AttnGradJob *j = ctx;
    const AttnSpec *s = j->spec;
    int64_t dim = s->head_dim, group = s->n_heads / s->n_kv_heads;
    for (int64_t h = 0; h < s->n_heads; h++) {
        const float *k = j->part + (h * 2 * j->n + i) * dim, *v = k + j->n * dim;
        float *dk = j->dk + (i * s->n_kv_heads + h / group) * dim;
        float *dv = j->dv + (i * s->n_kv_heads + h / group) * dim;
        for (int64_t c = 0; c < dim; c++) dk[c] = h % group ? dk[c] + k[c] : k[c];
        for (int64_t c = 0; c < dim; c++) dv[c] = h % group ? dv[c] + v[c] : v[c];
    }
}

void cpu_attention_grad(Backend *b, float *dq, float *dk, float *dv, const float *d_out,
                        const float *q, const float *k, const float *v, int64_t n,
                        const AttnSpec *s) {
    CpuBackend *c = b->impl;
    AttnGradJob j = {.gemm = c->kernels->gemm, .grad = c->kernels->grad, .spec = s, .dq = dq,
                     .dk = dk, .dv = dv, .d_out = d_out, .q = q, .k = k, .v = v, .n = n,
                     .work = c->scratch};
    Work w;
    size_t bytes = carve(&w, NULL, &j);
    for (int t = 0; t < b->n_threads; t++)
        if (!cpu_scratch(b, t, bytes)) return;
    j.part = cpu_slot(b, 2 * b->n_threads, (size_t)(2 * s->n_heads * n * s->head_dim) * sizeof *dq);
    if (!j.part) return;
    pool_run(c->pool, s->n_heads, head_task, &j);
    pool_run(c->pool, n, sum_task, &j);
}
