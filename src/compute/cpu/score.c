/* score — 语言模型头、log-softmax 与打分
 * 词表按固定的 CHUNK 行一段：矩阵乘得到若干段 logits，再逐行逐段在线更新 (最大值, Σexp)，整块 logits 从不存在。
 * 位置少（解码）时一次算许多段，线程不必每段会合两次。段内是 16 路 f32 累加，段间以双精度合并；段的划分固定，故结果与位置数、线程数无关。
 * 对照基线时同一趟累加 T = Σ e^{zp−m}(zp−zq)，KL(p‖q) = T/Σp − lse_p + lse_q。 */
#include <math.h>

#include "compute/cpu/cpu.h"
#include "compute/cpu/elem_kernels.h"
#include "compute/cpu/kernels.h"

enum {
    CHUNK = 1024,    /* 词表每段的行数（16 的倍数）；改它会改变舍入 */
    MAX_ROWS = 2048, /* 一次处理的位置数：每份 logits 段至多 8 MiB */
    TASK_ROWS = 8
};

/* 一行的在线 softmax 状态 */
typedef struct RowState {
    double sum, dot; /* Σ e^{z−max}；Σ e^{z−max}(z−另一个 z)，仅基线用 */
    float max, target;
    int32_t top1;
} RowState;

typedef struct ScorePass {
    const ElemKernels *kernels;
    const ScoreJob *job;
    RowState *cur, *ref;   /* 每行一个；ref 可为 NULL */
    float *z_cur, *z_ref;  /* (行, width) */
    int64_t width;         /* 一次算的词表行数，CHUNK 的倍数 */
    int64_t row0, n_rows;  /* 这一批位置 */
    int64_t col0, n_cols;  /* 这次的词表 */
} ScorePass;

static void row_start(RowState *s) {
    *s = (RowState){.max = -INFINITY, .target = NAN};
}

/* 把最大值更新到本段，旧的和随之缩放；并列时保留较小的下标 */
static void row_raise_max(const ElemKernels *k, RowState *s, const float *z, int64_t n,
                          int64_t col0) {
    float m = k->max(z, n);
    if (!(m > s->max)) return;
    double shrink = exp((double)s->max - (double)m); /* 第一段：exp(-inf) = 0 */
    s->sum *= shrink;
    s->dot *= shrink;
    s->max = m;
    int64_t i = 0;
    while (i < n && z[i] != m) i++;
    s->top1 = (int32_t)(col0 + i);
}

/* 一行的一段：词表 [col0+at, col0+at+n) */
static void row_chunk(const ScorePass *p, int64_t row, int64_t at, int64_t n) {
    const ElemKernels *k = p->kernels;
    RowState *cur = &p->cur[row];
    float *z = p->z_cur + row * p->width + at;
    if (p->job->softcap > 0) k->softcap(z, n, p->job->softcap);
    row_raise_max(k, cur, z, n, p->col0 + at);
    cur->sum += k->sum_exp(z, n, cur->max);
    int64_t target = (int64_t)p->job->targets[p->row0 + row] - p->col0 - at;
    if (target >= 0 && target < n) cur->target = z[target];
    if (!p->ref) return;
    RowState *ref = &p->ref[row];
    float *zr = p->z_ref + row * p->width + at;
    if (p->job->softcap > 0) k->softcap(zr, n, p->job->softcap);
    row_raise_max(k, ref, zr, n, p->col0 + at);
    double dot;
    ref->sum += k->sum_exp_dot(zr, z, n, ref->max, &dot);
    ref->dot += dot;
}

static void chunk_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const ScorePass *p = ctx;
    int64_t end = (task + 1) * TASK_ROWS < p->n_rows ? (task + 1) * TASK_ROWS : p->n_rows;
    for (int64_t r = task * TASK_ROWS; r < end; r++)
        for (int64_t at = 0; at < p->n_cols; at += CHUNK)
            row_chunk(p, r, at, p->n_cols - at < CHUNK ? p->n_cols - at : CHUNK);
}

/* 一批位置的结果写回 */
static void write_rows(const ScorePass *p) {
    const ScoreJob *job = p->job;
    for (int64_t r = 0; r < p->n_rows; r++) {
        const RowState *c = &p->cur[r];
        int64_t i = p->row0 + r;
        double lse = (double)c->max + log(c->sum);
        job->nll[i] = job->targets[i] < 0 ? 0 : lse - (double)c->target;
        if (job->lse) job->lse[i] = lse;
        if (job->top1) job->top1[i] = c->top1;
        if (job->top_nll) job->top_nll[i] = lse - (double)c->max;
        if (!p->ref) continue;
        const RowState *f = &p->ref[r];
        double kl = f->dot / f->sum - ((double)f->max + log(f->sum)) + lse;
        job->kl[i] = kl < 0 && kl > -1e-7 ? 0 : kl; /* 只抹掉舍入造成的微小负数 */
        if (job->ref_top1) job->ref_top1[i] = f->top1;
    }
}

static void score_rows(Backend *b, ScorePass *p) {
    const ScoreJob *job = p->job;
    CpuBackend *c = b->impl;
    int64_t vocab = job->head->rows;
    for (int64_t r = 0; r < p->n_rows; r++) {
        row_start(&p->cur[r]);
        if (p->ref) row_start(&p->ref[r]);
    }
    for (p->col0 = 0; p->col0 < vocab; p->col0 += p->width) {
        int64_t end = p->col0 + p->width < vocab ? p->col0 + p->width : vocab;
        p->n_cols = end - p->col0;
        cpu_linear_rows(b, p->z_cur, p->width, job->x + p->row0 * job->head->cols, p->n_rows,
                        job->head, p->col0, end);
        if (p->ref)
            cpu_linear_rows(b, p->z_ref, p->width, job->ref_x + p->row0 * job->ref_head->cols,
                            p->n_rows, job->ref_head, p->col0, end);
        if (b->err.code != ERR_NONE) return;
        pool_run(c->pool, (p->n_rows + TASK_ROWS - 1) / TASK_ROWS, chunk_task, p);
    }
    write_rows(p);
}

void cpu_score(Backend *b, const ScoreJob *job) {
    CpuBackend *c = b->impl;
    if (job->n <= 0) return;
    bool has_ref = job->ref_x != NULL;
    int64_t rows = job->n < MAX_ROWS ? job->n : MAX_ROWS, n_models = has_ref ? 2 : 1;
    int64_t chunks = (job->head->rows + CHUNK - 1) / CHUNK, fit = MAX_ROWS / rows;
    int64_t width = (fit < chunks ? fit : chunks) * CHUNK;
    size_t z_bytes = (size_t)(rows * width) * sizeof(float);
    size_t state_bytes = (size_t)rows * sizeof(RowState);
    char *work = cpu_scratch(b, 0, (size_t)n_models * (z_bytes + state_bytes));
    if (!work) return;
    ScorePass p = {.kernels = c->kernels->elem, .job = job, .width = width, .z_cur = (float *)work,
                   .cur = (RowState *)(work + (size_t)n_models * z_bytes)};
    if (has_ref) {
        p.z_ref = (float *)(work + z_bytes);
        p.ref = p.cur + rows;
    }
    for (p.row0 = 0; p.row0 < job->n; p.row0 += rows) {
        p.n_rows = job->n - p.row0 < rows ? job->n - p.row0 : rows;
        score_rows(b, &p);
        if (b->err.code != ERR_NONE) return;
    }
}
