/* gram — 校准输入的二阶矩 G += xᵀx
 * 借用线性层的内核：Xᵀ 的行是激活、Xᵀ 装成面板作权重；只算上三角的块，所以乘加数是满矩阵的一半多一点。
 * 不变式：每个元素沿样本依次累加，与线程数无关；f32 累加一批（至多几千行）后再加进 G。
 * compute=bfloat16 时输入舍入到 bf16（线性层看到的正是它），乘积与累加仍为 f32。 */
#include "compute/cpu/cpu.h"
#include "compute/cpu/gemm_kernels.h"
#include "compute/cpu/grad_kernels.h"
#include "compute/cpu/kernels.h"

enum { ROW_BLOCK = 112 /* 16 与小块行数 14 的公倍数 */ };

typedef struct GramJob {
    const GradKernels *grad;
    const float *x;
    float *rows;  /* (d, n) x 的转置 */
    void *panels; /* 16 列一个面板：F32 [k][16]，BF16 [k/2][16][2] */
    float *g;
    const float *part;
    int64_t n, d, first, width;
    bool bf16;
} GramJob;

static int64_t min_i64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* 16 列：转置成 16 行激活，又装成一个面板。 */
static void transpose_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const GramJob *j = ctx;
    int64_t c0 = task * QT_PANEL, steps = j->bf16 ? (j->n + 1) / 2 : j->n;
    j->grad->transpose(j->rows + c0 * j->n, j->n, j->x + c0, j->d, j->n,
                       min_i64(QT_PANEL, j->d - c0));
    j->grad->slice_panel((uint32_t *)j->panels + task * steps * QT_PANEL, j->x, j->n, j->d, task,
                         j->bf16);
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
    int64_t panels = (d + QT_PANEL - 1) / QT_PANEL;
    GramJob j = {.grad = cpu->kernels->grad, .x = x, .n = n, .d = d, .g = g, .bf16 = b->compute == COMPUTE_BF16};
    size_t rows_bytes = (size_t)(d * n) * sizeof(float), part_bytes = ROW_BLOCK * (size_t)d * 4;
    size_t panel_bytes = (size_t)(panels * QT_PANEL * ((n + 1) / 2 * 2)) * (j.bf16 ? 2 : 4);
    /* 64 字节对齐的三段 */
    size_t rows_end = (rows_bytes + 63) / 64 * 64, panels_end = rows_end + (panel_bytes + 63) / 64 * 64;
    char *work = cpu_slot(b, 2 * b->n_threads + 2, panels_end + part_bytes);
    if (!work) return;
    j.rows = (float *)work;
    j.panels = work + rows_end;
    float *part = (float *)(work + panels_end);
    QTensor w = {.rows = d, .cols = n, .dense = j.bf16 ? DT_BF16 : DT_F32, .data = j.panels,
                 .data_bytes = panel_bytes};
    pool_run(cpu->pool, panels, transpose_task, &j);
    for (int64_t i = 0; i < d && b->err.code == ERR_NONE; i += ROW_BLOCK) {
        int64_t rows = min_i64(ROW_BLOCK, d - i);
        j.first = i;
        j.width = d - i;
        j.part = part;
        if (j.bf16)
            cpu_linear_rows(b, part, j.width, j.rows + i * n, rows, &w, i, d);
        else
            cpu_linear_rows_f32(b, part, j.width, j.rows + i * n, rows, &w, i, d);
        pool_run(cpu->pool, rows, add_task, &j);
    }
}
