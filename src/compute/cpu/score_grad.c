/* score_grad — 打分的反向：dx = Σ_v scale·(p_v − [v = target])·head_v
 * 词表分段走两遍：先由 cpu_score 得 lse，再逐段重算 logits 化为系数、乘上这一段的头；整块 logits 从不存在。 */
#include <string.h>

#include "compute/cpu/cpu.h"
#include "compute/cpu/grad_kernels.h"
#include "compute/cpu/kernels.h"

enum { CHUNK = 1024 /* 词表每段的行数，16 的倍数 */ };

typedef struct ScoreGrad {
    const CpuKernels *kernels;
    const ScoreGradJob *job;
    double *lse;
    float *z;    /* (n, width) */
    float *head; /* (width, d) */
    float *part; /* (n, d) */
    int64_t v0, width, d;
} ScoreGrad;

/* logits 的一行 → 损失对它的导数。 */
static void coefficient_task(void *ctx, int64_t i, int thread) {
    (void)thread;
    const ScoreGrad *s = ctx;
    float *z = s->z + i * s->width;
    int64_t target = s->job->targets[i];
    if (target < 0) {
        memset(z, 0, (size_t)s->width * sizeof *z);
        return;
    }
    s->kernels->grad->softmax_shift(z, s->width, (float)s->lse[i], s->job->scale);
    if (target >= s->v0 && target < s->v0 + s->width) z[target - s->v0] -= s->job->scale;
}

/* 稠密的头的第 v0 行起 width 行（v0 是面板行数的倍数）。 */
static QTensor head_rows(const QTensor *head, int64_t v0, int64_t width) {
    QTensor v = *head;
    size_t panel_bytes = head->data_bytes / (size_t)((head->rows - 1) / QT_PANEL + 1);
    v.rows = width;
    v.data = (char *)head->data + panel_bytes * (size_t)(v0 / QT_PANEL);
    v.data_bytes = panel_bytes * (size_t)((width - 1) / QT_PANEL + 1);
    return v;
}

static void add_chunk(Backend *b, ScoreGrad *s) {
    const ScoreGradJob *job = s->job;
    CpuBackend *c = b->impl;
    QTensor head = head_rows(job->head, s->v0, s->width);
    cpu_linear_rows(b, s->z, s->width, job->x, job->n, &head, 0, s->width);
    if (b->err.code != ERR_NONE) return;
    pool_run(c->pool, job->n, coefficient_task, s);
    cpu_dequantize(b, s->head, &head);
    cpu_matmul(b, s->part, s->z, s->head, job->n, s->width, s->d, false);
    if (b->err.code == ERR_NONE) cpu_add(b, job->dx, s->part, job->n * s->d);
}

void cpu_score_grad(Backend *b, const ScoreGradJob *job) {
    CpuBackend *c = b->impl;
    Arena tmp = {0};
    int64_t n = job->n, d = job->head->cols, vocab = job->head->rows;
    CHECK(job->head->dense != DT_NONE);
    ScoreGrad s = {.kernels = c->kernels, .job = job, .d = d};
    s.lse = ARENA_ARRAY(&tmp, double, n, &b->err);
    s.z = ARENA_ARRAY(&tmp, float, n * CHUNK, &b->err);
    s.head = ARENA_ARRAY(&tmp, float, CHUNK * d, &b->err);
    s.part = ARENA_ARRAY(&tmp, float, n * d, &b->err);
    if (s.lse && s.z && s.head && s.part) {
        ScoreJob score = {.n = n, .x = job->x, .head = job->head, .targets = job->targets,
                          .nll = job->nll, .lse = s.lse};
        cpu_score(b, &score);
        memset(job->dx, 0, (size_t)(n * d) * sizeof *job->dx);
        for (s.v0 = 0; s.v0 < vocab && b->err.code == ERR_NONE; s.v0 += CHUNK) {
            s.width = vocab - s.v0 < CHUNK ? vocab - s.v0 : CHUNK;
            add_chunk(b, &s);
        }
    }
    arena_free(&tmp);
}
