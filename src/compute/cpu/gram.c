/* gram — 校准输入的二阶矩 G += xᵀx
 * 借用线性层的内核：Xᵀ 的行是激活、Xᵀ 装成面板作权重；只算上三角的块，所以乘加数是满矩阵的一半多一点。
 * 不变式：每个元素沿样本依次累加，与线程数无关；f32 累加一批（至多几千行）后再加进 G。
 * compute=bfloat16 时输入舍入到 bf16（线性层看到的正是它），乘积与累加仍为 f32。 */
#include <string.h>

#include "compute/cpu/cpu.h"
#include "compute/cpu/gemm_kernels.h"

enum { ROW_BLOCK = 112 /* 16 与小块行数 14 的公倍数 */ };

typedef struct GramJob {
    const GemmKernels *k;
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

/* 一个面板：16 列、每次 16 行，先抄成小方块再转置写出，读写都连续。 */
static void transpose_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const GramJob *j = ctx;
    int64_t c0 = task * QT_PANEL, width = min_i64(QT_PANEL, j->d - c0);
    for (int64_t k0 = 0; k0 < j->n; k0 += QT_PANEL) {
        int64_t height = min_i64(QT_PANEL, j->n - k0);
        float block[QT_PANEL][QT_PANEL] = {{0}};
        for (int64_t k = 0; k < height; k++)
            memcpy(block[k], j->x + (k0 + k) * j->d + c0, (size_t)width * sizeof(float));
        for (int64_t c = 0; c < width; c++)
            for (int64_t k = 0; k < height; k++) j->rows[(c0 + c) * j->n + k0 + k] = block[k][c];
        if (j->bf16) {
            int64_t pairs = (j->n + 1) / 2;
            uint32_t *dst = (uint32_t *)j->panels + (task * pairs + k0 / 2) * QT_PANEL;
            uint16_t half[QT_PANEL][QT_PANEL]; /* 不满 16 行时其余为 0 */
            j->k->round_bf16(half[0], block[0], QT_PANEL * QT_PANEL);
            for (int64_t k = 0; k < height; k += 2)
                for (int64_t c = 0; c < QT_PANEL; c++)
                    dst[k / 2 * QT_PANEL + c] = half[k][c] | (uint32_t)half[k + 1][c] << 16;
        } else {
            memcpy((float *)j->panels + (task * j->n + k0) * QT_PANEL, block,
                   (size_t)height * sizeof block[0]);
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
    int64_t panels = (d + QT_PANEL - 1) / QT_PANEL;
    GramJob j = {.k = cpu->kernels->gemm, .x = x, .n = n, .d = d, .g = g, .bf16 = b->compute == COMPUTE_BF16};
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
