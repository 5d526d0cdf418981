/* linear — 线性层与查表：把 y = x·Wᵀ 切成任务
 * 任务是输出的一块 (若干行 × 若干面板)；任务内沿 k 分段，每段把权重展开成二级缓存里的块（F32 直接用），
 * 激活每次取 tile_rows 行、行距固定的小块（bf16 舍入时就排成小块；否则复制到一级缓存），再对各面板调小块内核。
 * 不变式：每个输出只属于一个任务，沿 k 依次累加；切法只影响速度，不影响任何一位。 */
#include <string.h>

#include "compute/cpu/linear.h"

enum {
    SMALL_STEPS = 128,        /* 行数很少时的分段：展开块留在一级缓存 */
    SMALL_ROWS = 28,
    TASKS_PER_THREAD = 6,
    MIN_PANELS = 6,           /* 要展开的权重一个任务至少的面板数（激活小块的复制由它们分摊） */
    EXPANDED_ROWS = 1024      /* 展开一次至少供这么多行用 */
};

/* 任务用的工作区：激活小块、边角小块、展开块。 */
static size_t x_tile_bytes(const GemmKernels *k) {
    return (size_t)k->tile_rows * TILE_X_STRIDE * sizeof(float);
}
static size_t edge_bytes(const GemmKernels *k) {
    return (size_t)k->tile_rows * (size_t)k->tile_panels * QT_PANEL * sizeof(float);
}

/* 一个小块的位置：y 的左上角、行数与面板数、有效列数；row、panel 是它在激活与权重里的首行与首面板。 */
typedef struct TileAt {
    float *y;
    int rows, panels;
    int64_t valid, row, panel;
} TileAt;

/* 整数的小块算完最后一段：化为 f32。 */
static void finish_tile(const LinearJob *j, const TileAt *t, float *y, int64_t ldy) {
    int64_t width = (int64_t)t->panels * QT_PANEL;
    j->k->finish_int8(y, ldy, t->rows, min_i64(t->valid, width), j->w, t->panel, j->act, t->row,
                      j->bias ? j->bias + (t->panel - j->panel0) * QT_PANEL : NULL);
}

/* 一个小块；不满 16·panels 列时借道 edge。last: 是最后一段。 */
static void run_tile(const LinearJob *j, const TileAt *t, const void *x, const void *w,
                     int64_t w_stride, int64_t steps, bool accumulate, bool last, float *edge) {
    TileFn *tile = j->tiles[(t->rows - 1) * j->k->tile_panels + t->panels - 1];
    int64_t width = (int64_t)t->panels * QT_PANEL;
    if (t->valid >= width) {
        tile(t->y, j->ldy, x, w, w_stride, steps, accumulate);
        if (j->act && last) finish_tile(j, t, t->y, j->ldy);
        return;
    }
    size_t bytes = (size_t)t->valid * sizeof(float);
    for (int r = 0; accumulate && r < t->rows; r++)
        memcpy(edge + r * width, t->y + r * j->ldy, bytes);
    tile(edge, width, x, w, w_stride, steps, accumulate);
    if (j->act && last) finish_tile(j, t, edge, width);
    for (int r = 0; r < t->rows; r++) memcpy(t->y + r * j->ldy, edge + r * width, bytes);
}

/* 展开面板 [panel, panel+panels) 的步 [s0, s1)。返回: 块的首址，面板间距写入 stride。 */
static const char *expand_block(const LinearJob *j, float *scratch, int64_t panel, int64_t panels,
                                int64_t s0, int64_t s1, int64_t *stride) {
    if (j->direct) {
        *stride = (j->w_steps ? j->w_steps : j->steps) * QT_PANEL;
        return (const char *)j->w->data + (panel * *stride + (j->step0 + s0) * QT_PANEL) * 4;
    }
    *stride = ceil_div(s1 - s0, QT_KBLOCK) * QT_KBLOCK * QT_PANEL;
    for (int64_t p = 0; p < panels; p++) {
        float *dst = scratch + p * *stride;
        if (j->bf16)
            j->k->expand_bf16((uint32_t *)dst, j->w, panel + p, 2 * s0,
                              min_i64(2 * s1, j->w->cols));
        else
            j->k->expand(dst, j->w, panel + p, s0, s1);
    }
    return (const char *)scratch;
}

/* 把第 t 个激活小块的第 part/parts 份预取到二级缓存。 */
static void prefetch_tile(const LinearJob *j, int64_t t, int64_t s0, int64_t s1, int64_t part,
                          int64_t parts) {
    int64_t first = linear_tile_row(j, t), rows = linear_tile_row(j, t + 1) - first;
    int64_t lines = ceil_div(s1 - s0, 16), stride = j->x_stride ? j->x_stride : TILE_X_STRIDE;
    const char *x = j->x_stride ? j->x + (first * stride + s0) * 4
                                : linear_packed_at(j, (char *)j->x, t, s0 / j->kc);
    for (int64_t r = rows * part / parts; r < rows * (part + 1) / parts; r++)
        for (int64_t i = 0; i < lines; i++) __builtin_prefetch(x + (r * stride + i * 16) * 4, 0, 2);
}

/* 第 t 个激活小块的步 [s0, s1)：排好的，或复制到 to。 */
static const char *take_tile(const LinearJob *j, char *to, int64_t t, int64_t s0, int64_t s1) {
    if (!j->x_stride) return linear_packed_at(j, (char *)j->x, t, s0 / j->kc);
    int64_t first = linear_tile_row(j, t), last = linear_tile_row(j, t + 1);
    for (int64_t r = first; r < last; r++)
        memcpy(to + (r - first) * TILE_X_STRIDE * 4, j->x + (r * j->x_stride + s0) * 4,
               (size_t)(s1 - s0) * 4);
    return to;
}

/* 一段 k：激活小块 [t0, t1) × 块内所有面板。panel 从本次调用的首面板算起。 */
static void run_segment(const LinearJob *j, char *scratch, int64_t t0, int64_t t1, int64_t panel,
                        int64_t panels, int64_t s0, int64_t s1) {
    float *edge = (float *)(scratch + x_tile_bytes(j->k));
    float *block = (float *)(scratch + x_tile_bytes(j->k) + edge_bytes(j->k));
    int64_t stride, per = j->k->tile_panels;
    const char *w = expand_block(j, block, j->panel0 + panel, panels, s0, s1, &stride);
    bool accumulate = s0 > 0 || (j->bias && !j->act);
    for (int64_t t = t0; t < t1; t++) {
        int64_t first = linear_tile_row(j, t);
        int rows = (int)(linear_tile_row(j, t + 1) - first);
        const char *x = take_tile(j, scratch, t, s0, s1);
        for (int64_t p = 0; p < panels; p += per) {
            int64_t col = (panel + p) * QT_PANEL;
            TileAt at = {.y = j->y + first * j->ldy + col, .rows = rows, .valid = j->n_out - col,
                         .panels = (int)min_i64(per, panels - p), .row = first,
                         .panel = j->panel0 + panel + p};
            run_tile(j, &at, x, w + p * stride * 4, stride, s1 - s0, accumulate, s1 == j->steps,
                     edge);
            if (t + 1 < t1) prefetch_tile(j, t + 1, s0, s1, p / per, ceil_div(panels, per));
        }
    }
}

/* 激活小块 [t0, t1) × 面板 [p0, p1)。 */
static void run_block(const LinearJob *j, int thread, int64_t t0, int64_t t1, int64_t p0, int64_t p1) {
    char *scratch = j->cpu->scratch[j->n_threads + thread];
    int64_t col0 = p0 * QT_PANEL, col1 = min_i64(p1 * QT_PANEL, j->n_out);
    for (int64_t r = linear_tile_row(j, t0); j->bias && !j->act && r < linear_tile_row(j, t1); r++)
        memcpy(j->y + r * j->ldy + col0, j->bias + col0, (size_t)(col1 - col0) * sizeof(float));
    for (int64_t p = p0; p < p1; p += j->panels_per_block)
        for (int64_t s = 0; s < j->steps; s += j->kc)
            run_segment(j, scratch, t0, t1, p, min_i64(j->panels_per_block, p1 - p), s,
                        min_i64(s + j->kc, j->steps));
}

static void gemm_task(void *ctx, int64_t task, int thread) {
    const LinearJob *j = ctx;
    int64_t t0 = task % j->n_row_tasks * j->tiles_per_task;
    int64_t p0 = task / j->n_row_tasks * j->panels_per_task;
    run_block(j, thread, t0, min_i64(t0 + j->tiles_per_task, linear_tiles(j)), p0,
              min_i64(p0 + j->panels_per_task, ceil_div(j->n_out, QT_PANEL)));
}

void linear_gemm_here(const LinearJob *j, int thread) {
    run_block(j, thread, 0, linear_tiles(j), 0, ceil_div(j->n_out, QT_PANEL));
}

void linear_plan(LinearJob *j) {
    int64_t panels = ceil_div(j->n_out, QT_PANEL), per = j->k->tile_panels;
    bool small = j->n <= SMALL_ROWS && !j->direct;
    int64_t limit = small ? SMALL_STEPS : TILE_STEPS_MAX;
    j->kc = ceil_div(ceil_div(j->steps, ceil_div(j->steps, limit)), QT_KBLOCK) * QT_KBLOCK;
    int64_t fit = j->cpu->block_bytes / (j->kc * QT_PANEL * 4) / per * per;
    int64_t want = j->n_threads == 1 ? 1 : (int64_t)TASKS_PER_THREAD * j->n_threads;
    /* 要展开的权重宁可按面板分任务：按行分则每个任务都要展开一遍 */
    if (!j->direct) fit = min_i64(fit, max_i64(MIN_PANELS, ceil_div(ceil_div(panels, want), per) * per));
    if (small) fit = per;
    j->panels_per_block = min_i64(max_i64(fit, per), ceil_div(panels, per) * per);
    /* 均分成块，免得最后一块很小 */
    int64_t n_blocks = ceil_div(panels, j->panels_per_block);
    j->panels_per_block = ceil_div(ceil_div(panels, n_blocks), per) * per;
    int64_t block_tasks = min_i64(ceil_div(panels, j->panels_per_block), want);
    j->panels_per_task =
        ceil_div(ceil_div(panels, j->panels_per_block), block_tasks) * j->panels_per_block;
    int64_t n_panel_tasks = ceil_div(panels, j->panels_per_task);
    int64_t tiles = linear_tiles(j), least = j->direct ? 8 : EXPANDED_ROWS / j->k->tile_rows;
    int64_t row_tasks = min_i64(ceil_div(want, n_panel_tasks), ceil_div(tiles, least));
    j->tiles_per_task = ceil_div(tiles, row_tasks);
    j->n_row_tasks = ceil_div(tiles, j->tiles_per_task);
}

bool linear_prepare(Backend *b, const LinearJob *j) {
    size_t bytes = x_tile_bytes(j->k) + edge_bytes(j->k);
    if (!j->direct) bytes += (size_t)(j->panels_per_block * j->kc * QT_PANEL) * 4;
    for (int t = 0; t < b->n_threads; t++)
        if (!cpu_slot(b, b->n_threads + t, bytes)) return false;
    return true;
}

bool linear_gemm(Backend *b, LinearJob *j) {
    if (!linear_prepare(b, j)) return false;
    int64_t n_panel_tasks = ceil_div(ceil_div(j->n_out, QT_PANEL), j->panels_per_task);
    pool_run(j->cpu->pool, j->n_row_tasks * n_panel_tasks, gemm_task, j);
    return true;
}

typedef struct RoundJob {
    const LinearJob *j;
    const float *x;
    char *packed;
} RoundJob;

/* 一个激活小块：各行各段舍入到它的位置。 */
static void round_task(void *ctx, int64_t t, int thread) {
    (void)thread;
    const RoundJob *r = ctx;
    const LinearJob *j = r->j;
    int64_t cols = j->w->cols, first = linear_tile_row(j, t), last = linear_tile_row(j, t + 1);
    for (int64_t i = first; i < last; i++)
        for (int64_t s = 0; s < j->steps; s += j->kc) {
            char *tile = linear_packed_at(j, r->packed, t, s / j->kc);
            j->k->round_bf16((uint16_t *)tile + (i - first) * TILE_X_STRIDE * 2, r->x + i * cols + 2 * s,
                             min_i64(2 * j->kc, cols - 2 * s));
        }
}

/* 激活舍入到 bf16，排成小块，放进共用槽。返回: 内存不足为假。 */
static bool round_input(Backend *b, LinearJob *j, const float *x) {
    char *packed = cpu_slot(b, 2 * b->n_threads, linear_packed_bytes(j));
    if (!packed) return false;
    RoundJob r = {.j = j, .x = x, .packed = packed};
    pool_run(j->cpu->pool, linear_tiles(j), round_task, &r);
    j->x = packed;
    j->x_stride = 0;
    return true;
}

typedef struct PermJob {
    float *dst;
    const float *x;
    const int32_t *perm;
    int64_t cols;
} PermJob;

static void perm_task(void *ctx, int64_t row, int thread) {
    (void)thread;
    const PermJob *j = ctx;
    const float *src = j->x + row * j->cols;
    float *dst = j->dst + row * j->cols;
    for (int64_t i = 0; i < j->cols; i++) dst[i] = src[j->perm[i]];
}

const float *linear_permute(Backend *b, const float *x, int64_t n, const QTensor *w) {
    CpuBackend *cpu = b->impl;
    float *dst = cpu_slot(b, 2 * b->n_threads + 1, (size_t)(n * w->cols) * sizeof *dst);
    if (!dst) return NULL;
    PermJob p = {.dst = dst, .x = x, .perm = w->perm, .cols = w->cols};
    pool_run(cpu->pool, n, perm_task, &p);
    return dst;
}

/* 共用输入 x(n,in) 的几段：激活只舍入一次（各段的列都按原序时）。 */
static void run_parts(Backend *b, const LinearPart *parts, int n_parts, int64_t ldy, const float *x,
                      int64_t n, bool bf16) {
    CpuBackend *cpu = b->impl;
    if (n == 1) {
        linear_row(b, parts, n_parts, x, bf16);
        return;
    }
    LinearJob j = {.k = cpu->kernels->gemm, .cpu = cpu, .n_threads = b->n_threads, .n = n,
                   .bf16 = bf16};
    j.tiles = bf16 ? j.k->tiles_bf16 : j.k->tiles;
    int64_t packed_kc = 0; /* 排好的激活的段长 */
    for (int i = 0; i < n_parts; i++) {
        const LinearPart *p = &parts[i];
        const float *from = p->w->perm ? linear_permute(b, x, n, p->w) : x;
        if (!from) return;
        j.w = p->w;
        j.y = p->y;
        j.ldy = ldy ? ldy : p->w->rows;
        j.bias = p->bias;
        j.panel0 = p->row0 / QT_PANEL;
        j.n_out = p->row1 - p->row0;
        j.direct = p->w->dense == (bf16 ? DT_BF16 : DT_F32);
        j.steps = bf16 ? ceil_div(p->w->cols, 2) : p->w->cols;
        linear_plan(&j);
        if (!bf16) {
            j.x = (const char *)from;
            j.x_stride = p->w->cols;
        } else if (j.kc != packed_kc || p->w->perm || parts[i - 1].w->perm) {
            if (!round_input(b, &j, from)) return;
            packed_kc = j.kc;
        }
        if (!linear_gemm(b, &j)) return;
    }
}

static void run_rows(Backend *b, float *y, int64_t ldy, const float *x, int64_t n,
                     const QTensor *w, int64_t row0, int64_t row1, bool bf16) {
    CHECK(row0 % QT_PANEL == 0 && row0 <= row1 && row1 <= w->rows);
    LinearPart part = {.y = y, .w = w, .row0 = row0, .row1 = row1};
    if (n > 0 && row0 < row1) run_parts(b, &part, 1, ldy, x, n, bf16);
}

void cpu_linear_rows(Backend *b, float *y, int64_t ldy, const float *x, int64_t n,
                     const QTensor *w, int64_t row0, int64_t row1) {
    run_rows(b, y, ldy, x, n, w, row0, row1, b->compute == COMPUTE_BF16);
}

void cpu_linear(Backend *b, const LinearOut *out, int n_out, const float *x, int64_t n) {
    LinearPart parts[LINEAR_OUT_MAX];
    for (int i = 0; i < n_out; i++)
        parts[i] = (LinearPart){.y = out[i].y, .w = out[i].w, .bias = out[i].bias,
                                .row1 = out[i].w->rows};
    run_parts(b, parts, n_out, 0, x, n, b->compute == COMPUTE_BF16);
}

void cpu_linear_rows_f32(Backend *b, float *y, int64_t ldy, const float *x, int64_t n,
                         const QTensor *w, int64_t row0, int64_t row1) {
    run_rows(b, y, ldy, x, n, w, row0, row1, false);
}

void cpu_linear_exact(Backend *b, float *y, const float *x, int64_t n, const QTensor *w) {
    cpu_linear_rows_f32(b, y, w->rows, x, n, w, 0, w->rows);
}

typedef struct EmbedJob {
    const GemmKernels *k;
    float *y;
    const QTensor *table;
    const int32_t *ids;
} EmbedJob;

/* 一个 token：逐 32 列展开它所在的面板，取出它那一路。 */
static void embed_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const EmbedJob *j = ctx;
    const QTensor *t = j->table;
    float block[QT_KBLOCK * QT_PANEL], *y = j->y + task * t->cols;
    int64_t panel = j->ids[task] / QT_PANEL, lane = j->ids[task] % QT_PANEL;
    for (int64_t k = 0; k < t->cols; k += QT_KBLOCK) {
        int64_t end = min_i64(k + QT_KBLOCK, t->cols);
        j->k->expand(block, t, panel, k, end);
        for (int64_t i = k; i < end; i++) y[i] = block[(i - k) * QT_PANEL + lane];
    }
}

void cpu_embed(Backend *b, float *y, const QTensor *table, const int32_t *ids, int64_t n) {
    CpuBackend *cpu = b->impl;
    EmbedJob j = {.k = cpu->kernels->gemm, .y = y, .table = table, .ids = ids};
    pool_run(cpu->pool, n, embed_task, &j);
}
