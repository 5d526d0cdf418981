/* matmul — 行主序稠密矩阵的乘法 y = a·c 或 aᵀ·c（反向用）
 * 借用线性层的内核：c 的每 16 列恰是一个面板；aᵀ 先转置成行。精度随计算模式，切法不影响任何一位。 */
#include "compute/cpu/cpu.h"
#include "compute/cpu/grad_kernels.h"
#include "compute/cpu/kernels.h"

typedef struct MatmulJob {
    const GradKernels *kernels;
    const float *a, *c;
    char *panels;
    size_t panel_bytes;
    float *rows; /* aᵀ (m, k) */
    int64_t m, k, n, n_panels;
    bool bf16;
} MatmulJob;

/* 前 n_panels 个任务各装 c 的一个面板，其余各转置 a 的 16 列。 */
static void prepare_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const MatmulJob *j = ctx;
    if (task < j->n_panels) {
        j->kernels->slice_panel(j->panels + (size_t)task * j->panel_bytes, j->c, j->k, j->n, task,
                                j->bf16);
        return;
    }
    int64_t col = (task - j->n_panels) * QT_PANEL;
    int64_t width = j->m - col < QT_PANEL ? j->m - col : QT_PANEL;
    j->kernels->transpose(j->rows + col * j->k, j->k, j->a + col, j->m, j->k, width);
}

void cpu_matmul(Backend *b, float *y, const float *a, const float *c, int64_t m, int64_t k,
                int64_t n, bool transpose_a) {
    CpuBackend *cpu = b->impl;
    bool bf16 = b->compute == COMPUTE_BF16;
    MatmulJob j = {.kernels = cpu->kernels->grad, .a = a, .c = c, .m = m, .k = k, .n = n,
                   .n_panels = (n + QT_PANEL - 1) / QT_PANEL, .bf16 = bf16};
    j.panel_bytes = (size_t)(bf16 ? (k + 1) / 2 : k) * QT_PANEL * 4;
    size_t panels = (size_t)j.n_panels * j.panel_bytes;
    j.panels = cpu_scratch(b, 0, panels + (transpose_a ? (size_t)(m * k) * sizeof *a : 0));
    if (!j.panels) return;
    j.rows = (float *)(j.panels + panels);
    int64_t n_rows = transpose_a ? (m + QT_PANEL - 1) / QT_PANEL : 0;
    pool_run(cpu->pool, j.n_panels + n_rows, prepare_task, &j);
    QTensor w = {.rows = n, .cols = k, .dense = bf16 ? DT_BF16 : DT_F32, .data = j.panels,
                 .data_bytes = panels};
    cpu_linear_rows(b, y, n, transpose_a ? j.rows : a, m, &w, 0, n);
}
