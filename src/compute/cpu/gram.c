/* gram — 校准输入的二阶矩 G += xᵀx
 * 借用线性层的小块内核：Xᵀ 的行是激活、Xᵀ 装成面板作权重；只算上三角的块，所以乘加数是满矩阵的一半多一点。
 * x 逐行读一遍装成面板，激活小块再由面板转置而来（不再各列跳着读 x）；一个任务是一块行 × 一段面板，结果先在本线程的工作区里。
 * 不变式：每个元素沿样本依次累加，与线程数无关；f32 累加一批（至多几千行）后再加进 G。
 * compute=bfloat16 时输入舍入到 bf16（线性层看到的正是它），乘积与累加仍为 f32。 */
#include <string.h>

#include "compute/cpu/grad_kernels.h"
#include "compute/cpu/linear.h"

enum {
    ROW_BLOCK = 112,     /* 16 与小块行数 14 的公倍数 */
    ROW_PANELS = ROW_BLOCK / QT_PANEL,
    TASK_PANELS = 14,    /* 一个任务至多的面板数：结果与所读的面板都在二级缓存里 */
    SLICE_ROWS = 32,     /* 一次装进面板的行数（偶数） */
    TURN = 16            /* 一次转置 16 步 × 16 列 */
};

typedef struct GramJob {
    const GradKernels *grad;
    LinearJob gemm; /* 共用的部分：内核、段长 */
    const float *x;
    char *panels; /* 16 列一个面板：F32 [k][16]，BF16 [k/2][16][2]；都是 4 字节一步 */
    char *packed; /* 各块行的激活小块 */
    size_t block_bytes; /* 一块行的 */
    float *g;
    int64_t n, d, n_panels;
} GramJob;

/* SLICE_ROWS 行装进各面板。 */
static void slice_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const GramJob *j = ctx;
    int64_t row = task * SLICE_ROWS, step = j->gemm.bf16 ? row / 2 : row;
    for (int64_t p = 0; p < j->n_panels; p++)
        j->grad->slice_panel(j->panels + (p * j->gemm.steps + step) * QT_PANEL * 4, j->x + row * j->d,
                             min_i64(SLICE_ROWS, j->n - row), j->d, p, j->gemm.bf16);
}

/* 第 block 块行的一次矩阵乘（切法之外的都定好）。 */
static LinearJob block_job(const GramJob *j, int64_t block) {
    LinearJob l = j->gemm;
    l.n = min_i64(ROW_BLOCK, j->d - block * ROW_BLOCK);
    l.x = j->packed + (size_t)block * j->block_bytes;
    return l;
}

/* 一个面板（16 列）转置成 16 行激活，放到各自的小块里。 */
static void turn_task(void *ctx, int64_t panel, int thread) {
    (void)thread;
    const GramJob *j = ctx;
    const LinearJob l = block_job(j, panel / ROW_PANELS);
    float turned[TURN * QT_PANEL];
    int64_t tiles = linear_tiles(&l), first = panel % ROW_PANELS * QT_PANEL;
    for (int64_t k = 0; k < l.steps; k += TURN) {
        int64_t steps = min_i64(TURN, l.steps - k), segment = k / l.kc;
        const char *src = j->panels + (panel * l.steps + k) * QT_PANEL * 4;
        j->grad->transpose(turned, TURN, (const float *)src, QT_PANEL, steps, QT_PANEL);
        for (int64_t r = first; r < first + QT_PANEL && r < l.n; r++) {
            int64_t t = ((r + 1) * tiles - 1) / l.n; /* 第 r 行所在的小块 */
            char *tile = linear_packed_at(&l, (char *)l.x, t, segment);
            memcpy(tile + ((r - linear_tile_row(&l, t)) * TILE_X_STRIDE + k - segment * l.kc) * 4,
                   turned + (r - first) * TURN, (size_t)steps * 4);
        }
    }
}

/* 第 block 块行从对角起的面板数，与分成的段数。 */
static int64_t block_panels(const GramJob *j, int64_t block) {
    return j->n_panels - block * ROW_PANELS;
}
static int64_t block_tasks(const GramJob *j, int64_t block) {
    return ceil_div(block_panels(j, block), TASK_PANELS);
}

static void gram_task(void *ctx, int64_t task, int thread) {
    const GramJob *j = ctx;
    int64_t block = 0;
    for (; task >= block_tasks(j, block); block++) task -= block_tasks(j, block);
    int64_t parts = block_tasks(j, block), panels = block_panels(j, block);
    int64_t p0 = panels * task / parts, p1 = panels * (task + 1) / parts;
    LinearJob l = block_job(j, block);
    l.panel0 = block * ROW_PANELS + p0;
    l.n_out = min_i64((p1 - p0) * QT_PANEL, j->d - l.panel0 * QT_PANEL);
    l.ldy = TASK_PANELS * QT_PANEL;
    l.y = l.cpu->scratch[thread];
    linear_gemm_here(&l, thread);
    for (int64_t r = 0; r < l.n; r++) {
        float *dst = j->g + (block * ROW_BLOCK + r) * j->d + l.panel0 * QT_PANEL;
        const float *src = l.y + r * l.ldy;
        for (int64_t i = 0; i < l.n_out; i++) dst[i] += src[i];
    }
}

void cpu_gram(Backend *b, float *g, const float *x, int64_t n, int64_t d) {
    CpuBackend *cpu = b->impl;
    bool bf16 = b->compute == COMPUTE_BF16;
    int64_t steps = bf16 ? ceil_div(n, 2) : n, n_blocks = ceil_div(d, ROW_BLOCK), tasks = 0;
    QTensor w = {.rows = d, .cols = n, .dense = bf16 ? DT_BF16 : DT_F32};
    GramJob j = {.grad = cpu->kernels->grad, .x = x, .n = n, .d = d, .g = g,
                 .n_panels = ceil_div(d, QT_PANEL)};
    j.gemm = (LinearJob){.k = cpu->kernels->gemm, .cpu = cpu, .n_threads = b->n_threads, .n = ROW_BLOCK,
                         .n_out = TASK_PANELS * QT_PANEL, .w = &w, .bf16 = bf16, .direct = true,
                         .steps = steps};
    j.gemm.tiles = bf16 ? j.gemm.k->tiles_bf16 : j.gemm.k->tiles;
    linear_plan(&j.gemm);
    j.block_bytes = linear_packed_bytes(&j.gemm);
    w.data_bytes = (size_t)(j.n_panels * steps * QT_PANEL) * 4;
    for (int t = 0; t < b->n_threads; t++)
        if (!cpu_scratch(b, t, ROW_BLOCK * TASK_PANELS * QT_PANEL * sizeof(float))) return;
    char *work = cpu_slot(b, 2 * b->n_threads + 2, w.data_bytes + (size_t)n_blocks * j.block_bytes);
    if (!work || !linear_prepare(b, &j.gemm)) return;
    w.data = j.panels = work;
    j.packed = work + w.data_bytes;
    for (int64_t i = 0; i < n_blocks; i++) tasks += block_tasks(&j, i);
    pool_run(cpu->pool, ceil_div(n, SLICE_ROWS), slice_task, &j);
    pool_run(cpu->pool, j.n_panels, turn_task, &j);
    pool_run(cpu->pool, tasks, gram_task, &j);
}
