/* gram — 校准输入的二阶矩 G += xᵀx
 * 借用线性层的内核：Xᵀ 的行是激活、Xᵀ 装成面板作权重；只算上三角的块，所以乘加数是满矩阵的一半多一点。
 * 不变式：每个元素沿样本依次累加，与线程数无关；f32 累加一批（至多几千行）后再加进 G。 */
#include <string.h>

#include "compute/cpu/cpu.h"

enum { ROW_BLOCK = 112 /* 16 与小块行数 14 的公倍数 */ };

typedef struct GramJob {
    const float *x;
    float *rows, *panels; /* (d, n) 的行与面板两种排法 */
    float *g;
    const float *part;
    int64_t n, d, first, width;
} GramJob;

/* 一个 16 列的面板：面板就是 x 的 16 列，行是它的转置。 */
static void transpose_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const GramJob *j = ctx;
    int64_t c0 = task * QT_PANEL, width = j->d - c0 < QT_PANEL ? j->d - c0 : QT_PANEL;
    for (int64_t k = 0; k < j->n; k++) {
        const float *src = j->x + k * j->d + c0;
        float *dst = j->panels + (task * j->n + k) * QT_PANEL;
        for (int64_t c = 0; c < width; c++) {
            dst[c] = src[c];
            j->rows[(c0 + c) * j->n + k] = src[c];
        }
    }
}

static void add_task(void *ctx, int64_t row, int thread) {
    (void)thread;
    const GramJob *j = ctx;
    float *dst = j->g + (j->first + row) * j->d + j->first;
    const float *src = j->part + row * j->width;
    for (int64_t i = 0; i < j->width; i++) dst[i] += src[i];
}

void cpu_gram(Backend *b, float *g, const float *x, int64_t n, int64_t d) {
    CpuBackend *cpu = b->impl;
    Arena tmp = {0};
    int64_t panels = (d + QT_PANEL - 1) / QT_PANEL;
    GramJob j = {.x = x, .n = n, .d = d, .g = g};
    j.rows = ARENA_ARRAY(&tmp, float, d * n, &b->err);
    j.panels = ARENA_ARRAY(&tmp, float, panels * QT_PANEL * n, &b->err);
    float *part = ARENA_ARRAY(&tmp, float, ROW_BLOCK * d, &b->err);
    if (j.rows && j.panels && part) {
        QTensor w = {.rows = d, .cols = n, .dense = DT_F32, .data = j.panels,
                     .data_bytes = (size_t)(panels * QT_PANEL * n) * sizeof(float)};
        pool_run(cpu->pool, panels, transpose_task, &j);
        for (int64_t i = 0; i < d; i += ROW_BLOCK) {
            int64_t rows = d - i < ROW_BLOCK ? d - i : ROW_BLOCK;
            j.first = i;
            j.width = d - i;
            j.part = part;
            cpu_linear_rows_f32(b, part, j.width, j.rows + i * n, rows, &w, i, d);
            pool_run(cpu->pool, rows, add_task, &j);
        }
    }
    arena_free(&tmp);
}
