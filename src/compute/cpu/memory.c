/* memory — 复制、统计与比较；严格模式
 * CPU 的后端内存就是主机内存。严格模式把它放在一段单独的地址空间，平时 PROT_NONE，只在算子之内可读写，
 * 以此在没有显卡的机器上查出直接碰后端内存的主机代码。 */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "compute/cpu/cpu.h"
#include "compute/cpu/memory.h"

void cpu_read(Backend *b, void *host, const void *src, size_t bytes) {
    (void)b;
    memcpy(host, src, bytes);
}

void cpu_write(Backend *b, void *dst, const void *host, size_t bytes) {
    (void)b;
    memcpy(dst, host, bytes);
}

enum { COPY_CHUNK = 1 << 20 };

typedef struct CopyJob {
    char *dst;
    const char *src;
    size_t bytes;
} CopyJob;

static void copy_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const CopyJob *j = ctx;
    size_t at = (size_t)task * COPY_CHUNK, rest = j->bytes - at;
    memcpy(j->dst + at, j->src + at, rest < COPY_CHUNK ? rest : COPY_CHUNK);
}

void cpu_copy(Backend *b, void *dst, const void *src, size_t bytes) {
    CpuBackend *cpu = b->impl;
    CopyJob j = {dst, src, bytes};
    bool apart = (const char *)dst + bytes <= (const char *)src ||
                 (const char *)src + bytes <= (const char *)dst;
    if (apart && bytes >= 2 * COPY_CHUNK)
        pool_run(cpu->pool, (int64_t)((bytes + COPY_CHUNK - 1) / COPY_CHUNK), copy_task, &j);
    else
        memmove(dst, src, bytes);
}

void cpu_copy_2d(Backend *b, void *dst, size_t dst_step, const void *src, size_t src_step,
                 int64_t n, size_t bytes) {
    (void)b;
    for (int64_t i = 0; i < n; i++)
        memcpy((char *)dst + (size_t)i * dst_step, (const char *)src + (size_t)i * src_step, bytes);
}

enum { SYM_ROWS = 32 };

typedef struct SymJob {
    float *g;
    int64_t d;
} SymJob;

/* SYM_ROWS 行，一次一个方块：按列读的那边也留在缓存里。 */
static void symmetrize_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const SymJob *s = ctx;
    int64_t r0 = task * SYM_ROWS, r1 = r0 + SYM_ROWS < s->d ? r0 + SYM_ROWS : s->d;
    for (int64_t c0 = 0; c0 <= r0; c0 += SYM_ROWS)
        for (int64_t i = r0; i < r1; i++)
            for (int64_t j = c0; j < c0 + SYM_ROWS && j < i; j++)
                s->g[i * s->d + j] = s->g[j * s->d + i];
}

void cpu_symmetrize(Backend *b, float *g, int64_t d) {
    CpuBackend *cpu = b->impl;
    SymJob s = {g, d};
    pool_run(cpu->pool, (d + SYM_ROWS - 1) / SYM_ROWS, symmetrize_task, &s);
}

enum { COLUMNS_PER_TASK = 64 };

/* 一个任务 COLUMNS_PER_TASK 列，各列只归一个任务，沿行依次累加。 */
typedef struct ColumnJob {
    float *max, *y;
    double *sum;
    const float *x;
    int64_t n, cols;
} ColumnJob;

static int64_t task_width(const ColumnJob *j, int64_t first) {
    return j->cols - first < COLUMNS_PER_TASK ? j->cols - first : COLUMNS_PER_TASK;
}

static void stats_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const ColumnJob *j = ctx;
    int64_t first = task * COLUMNS_PER_TASK, width = task_width(j, first);
    float top[COLUMNS_PER_TASK] = {0};
    double sum[COLUMNS_PER_TASK] = {0};
    for (int64_t i = 0; i < j->n; i++) {
        const float *x = j->x + i * j->cols + first;
        for (int64_t c = 0; c < width; c++) {
            float v = fabsf(x[c]);
            top[c] = v > top[c] ? v : top[c];
            sum[c] += (double)v;
        }
    }
    for (int64_t c = 0; c < width; c++) {
        if (j->max && top[c] > j->max[first + c]) j->max[first + c] = top[c];
        if (j->sum) j->sum[first + c] += sum[c];
    }
}

static void run_columns(Backend *b, void (*task)(void *, int64_t, int), ColumnJob *j) {
    CpuBackend *cpu = b->impl;
    pool_run(cpu->pool, (j->cols + COLUMNS_PER_TASK - 1) / COLUMNS_PER_TASK, task, j);
}

void cpu_column_stats(Backend *b, float *max, double *sum, const float *x, int64_t n,
                      int64_t cols) {
    ColumnJob j = {.max = max, .sum = sum, .x = x, .n = n, .cols = cols};
    run_columns(b, stats_task, &j);
}

static void sum_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const ColumnJob *j = ctx;
    int64_t first = task * COLUMNS_PER_TASK, width = task_width(j, first);
    for (int64_t c = 0; c < width; c++) j->y[first + c] = 0;
    for (int64_t r = 0; r < j->n; r++)
        for (int64_t c = first; c < first + width; c++) j->y[c] += j->x[r * j->cols + c];
}

void cpu_column_sum(Backend *b, float *y, const float *x, int64_t n, int64_t cols) {
    ColumnJob j = {.y = y, .x = x, .n = n, .cols = cols};
    run_columns(b, sum_task, &j);
}

typedef struct RowJob {
    double *out;
    float *d;
    const float *x, *y, *s;
    const int32_t *index;
    int64_t cols, ld, n;
    float scale;
} RowJob;

static void error_task(void *ctx, int64_t row, int thread) {
    (void)thread;
    const RowJob *j = ctx;
    double sum = 0;
    const float *x = j->x + row * j->cols, *y = j->y + row * j->ld;
    for (int64_t i = 0; i < j->cols; i++) {
        double d = (double)x[i] - (double)y[i];
        sum += d * d;
    }
    j->out[row] = sum;
}

void cpu_row_errors(Backend *b, double *out, const float *x, const float *y, int64_t ldy,
                    int64_t rows, int64_t cols) {
    CpuBackend *cpu = b->impl;
    RowJob j = {.out = out, .x = x, .y = y, .cols = cols, .ld = ldy};
    pool_run(cpu->pool, rows, error_task, &j);
}

static void divide_task(void *ctx, int64_t row, int thread) {
    (void)thread;
    const RowJob *j = ctx;
    const float *x = j->x + row * j->ld;
    float *y = j->d + row * j->cols;
    for (int64_t c = 0; c < j->cols; c += j->n)
        for (int64_t i = 0; i < j->n; i++) y[c + i] = x[c + i] / j->s[i];
}

void cpu_divide(Backend *b, float *y, const float *x, int64_t ldx, const float *s, int64_t n,
                int64_t rows, int64_t cols) {
    CpuBackend *cpu = b->impl;
    RowJob j = {.d = y, .x = x, .s = s, .cols = cols, .ld = ldx, .n = n};
    pool_run(cpu->pool, rows, divide_task, &j);
}

static void gather_task(void *ctx, int64_t row, int thread) {
    (void)thread;
    const RowJob *j = ctx;
    const float *x = j->x + row * j->cols;
    float *y = j->d + row * j->cols;
    for (int64_t i = 0; i < j->cols; i++) y[i] = j->index[i] < 0 ? 0 : x[j->index[i]];
}

void cpu_gather_columns(Backend *b, float *dst, const float *src, const int32_t *index,
                        int64_t rows, int64_t n) {
    CpuBackend *cpu = b->impl;
    RowJob j = {.d = dst, .x = src, .index = index, .cols = n};
    pool_run(cpu->pool, rows, gather_task, &j);
}

/* 一次 update_rest：u 的右上块装成面板，乘出 delta，再减。 */
typedef struct RestJob {
    float *w, *panels, *delta;
    const float *u; /* 块 [i1, i2) 的行、i2 起的列 */
    int64_t n, i2, k, rest;
} RestJob;

static void panel_task(void *ctx, int64_t panel, int thread) {
    (void)thread;
    const RestJob *j = ctx;
    int64_t col = panel * QT_PANEL, width = j->rest - col < QT_PANEL ? j->rest - col : QT_PANEL;
    float *dst = j->panels + col * j->k;
    for (int64_t i = 0; i < j->k; i++, dst += QT_PANEL)
        for (int64_t c = 0; c < QT_PANEL; c++) dst[c] = c < width ? j->u[i * j->n + col + c] : 0;
}

static void subtract_task(void *ctx, int64_t row, int thread) {
    (void)thread;
    const RestJob *j = ctx;
    float *w = j->w + row * j->n + j->i2;
    const float *delta = j->delta + row * j->rest;
    for (int64_t i = 0; i < j->rest; i++) w[i] -= delta[i];
}

void cpu_update_rest(Backend *b, float *w, const float *err, const float *u, int64_t rows,
                     int64_t n, int64_t i1, int64_t i2) {
    CpuBackend *cpu = b->impl;
    int64_t k = i2 - i1, n_panels = (n - i2 + QT_PANEL - 1) / QT_PANEL, wide = n_panels * QT_PANEL;
    if (n_panels == 0) return;
    RestJob j = {.w = w, .u = u + i1 * n + i2, .n = n, .i2 = i2, .k = k, .rest = n - i2};
    j.panels = cpu_slot(b, 2 * b->n_threads + 2, (size_t)(wide * k + rows * j.rest) * sizeof *w);
    if (!j.panels) return;
    j.delta = j.panels + wide * k;
    QTensor q = {.rows = j.rest, .cols = k, .dense = DT_F32, .data = j.panels,
                 .data_bytes = (size_t)(wide * k) * sizeof *w};
    pool_run(cpu->pool, n_panels, panel_task, &j);
    cpu_linear_exact(b, j.delta, err, rows, &q);
    if (b->err.code == ERR_NONE) pool_run(cpu->pool, rows, subtract_task, &j);
}

/* 有限值减自己为 0，非有限值得 NaN：整段只需一趟无分支的求和。 */
bool cpu_all_finite(Backend *b, const float *x, int64_t n) {
    (void)b;
    float bad = 0;
    for (int64_t i = 0; i < n; i++) bad += x[i] - x[i];
    return bad == 0;
}

void cpu_watch(Backend *b, const float *x, int64_t n, int tag) {
    if ((b->watched < 0 || tag < b->watched) && !cpu_all_finite(b, x, n)) b->watched = tag;
}
int cpu_watched(Backend *b) {
    int tag = b->watched;
    b->watched = -1;
    return tag;
}

enum { ADAM_CHUNK = 2048 };

static void adam_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const AdamStep *t = ctx;
    int64_t end = (task + 1) * ADAM_CHUNK < t->n ? (task + 1) * ADAM_CHUNK : t->n;
    for (int64_t i = task * ADAM_CHUNK; i < end; i++) {
        float g = t->grad[i];
        t->m[i] += t->rate1 * (g - t->m[i]);
        t->v[i] = t->v[i] * t->beta2 + t->rate2 * (g * g);
        float denom = sqrtf(t->v[i]) / t->root + t->eps;
        t->param[i] = t->param[i] * t->keep - t->size * (t->m[i] / denom);
    }
}

void cpu_adamw(Backend *b, const AdamStep *step) {
    CpuBackend *cpu = b->impl;
    AdamStep s = *step;
    pool_run(cpu->pool, (s.n + ADAM_CHUNK - 1) / ADAM_CHUNK, adam_task, &s);
}

static void mse_task(void *ctx, int64_t row, int thread) {
    (void)thread;
    const RowJob *j = ctx;
    double sum = 0;
    for (int64_t i = row * j->cols; i < (row + 1) * j->cols; i++) {
        float d = j->x[i] - j->y[i];
        sum += (double)(d * d);
        j->d[i] = j->scale * d;
    }
    j->out[row] = sum;
}

double cpu_mse_grad(Backend *b, float *d, const float *x, const float *y, float scale,
                    int64_t rows, int64_t cols) {
    CpuBackend *cpu = b->impl;
    RowJob j = {.d = d, .x = x, .y = y, .cols = cols, .scale = scale};
    j.out = cpu_scratch(b, 0, (size_t)rows * sizeof *j.out);
    if (!j.out) return NAN;
    pool_run(cpu->pool, rows, mse_task, &j);
    double sum = 0;
    for (int64_t i = 0; i < rows; i++) sum += j.out[i];
    return sum;
}

/* ---- 严格模式 ---- */

enum { PAGE = 4096 };
static const size_t STRICT_BYTES = (size_t)8 << 30; /* 地址空间，不占内存 */

typedef struct Range {
    size_t at, bytes;
} Range;

typedef struct StrictMemory {
    Allocator allocator; /* 首成员 */
    char *base;
    Range *used;         /* 按位置排列 */
    size_t n_used, cap_used;
    bool open, aside; /* 可读写；在 SIDE_BEGIN 与 SIDE_END 之间 */
} StrictMemory;

static void set_access(StrictMemory *s, bool open) {
    int prot = open ? PROT_READ | PROT_WRITE : PROT_NONE;
    CHECK(mprotect(s->base, STRICT_BYTES, prot) == 0); /* 整段一起改，大页才不会拆开 */
    s->open = open;
}

static void strict_guard(Backend *b, bool open) {
    StrictMemory *s = (StrictMemory *)b->memory;
    CHECK(s->open != open);
    set_access(s, open);
}

/* 首个放得下的空处。 */
static void *strict_alloc(Allocator *self, size_t bytes) {
    StrictMemory *s = (StrictMemory *)self;
    if (self->fail_at > 0 && self->n_allocs + 1 == self->fail_at) {
        self->fail_at = 0;
        return NULL;
    }
    bytes = (bytes + PAGE - 1) / PAGE * PAGE;
    if (allocator_full(self, bytes)) return NULL;
    if (s->n_used == s->cap_used) {
        size_t cap = s->cap_used ? 2 * s->cap_used : 64;
        Range *more = realloc(s->used, cap * sizeof *more);
        if (!more) return NULL;
        s->used = more;
        s->cap_used = cap;
    }
    size_t at = 0, i = 0;
    for (; i < s->n_used && s->used[i].at - at < bytes; i++) at = s->used[i].at + s->used[i].bytes;
    if (bytes > STRICT_BYTES - at) return NULL;
    memmove(s->used + i + 1, s->used + i, (s->n_used - i) * sizeof *s->used);
    s->used[i] = (Range){at, bytes};
    s->n_used++;
    self->n_allocs++;
    self->used += bytes;
    if (self->used > self->peak) self->peak = self->used;
    return s->base + at;
}

static void strict_release(Allocator *self, void *p, size_t bytes) {
    StrictMemory *s = (StrictMemory *)self;
    bytes = (bytes + PAGE - 1) / PAGE * PAGE;
    size_t at = (size_t)((char *)p - s->base), i = 0;
    while (i < s->n_used && s->used[i].at != at) i++;
    CHECK(i < s->n_used && s->used[i].bytes == bytes);
    memmove(s->used + i, s->used + i + 1, (s->n_used - i - 1) * sizeof *s->used);
    s->n_used--;
    self->used -= bytes;
    madvise(p, bytes, MADV_DONTNEED); /* 再用时是零 */
}

static void strict_clear(Allocator *self, void *p, size_t bytes) {
    StrictMemory *s = (StrictMemory *)self;
    bool open = s->open;
    if (!open) set_access(s, true);
    memset(p, 0, bytes);
    if (!open) set_access(s, false);
}

/* 预取：没有另一条流，只查成对。 */
static void strict_side(Backend *b, SideStep step) {
    StrictMemory *s = (StrictMemory *)b->memory;
    CHECK(s->aside == (step == SIDE_END));
    s->aside = step == SIDE_BEGIN;
}
static size_t strict_room(Backend *b) {
    const Allocator *a = b->memory;
    return a->limit ? a->limit > a->used ? a->limit - a->used : 0 : SIZE_MAX;
}

bool backend_make_strict(Backend *b, Err *e) {
    StrictMemory *s = calloc(1, sizeof *s);
    void *base = s ? mmap(NULL, STRICT_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                          -1, 0)
                   : MAP_FAILED;
    if (base == MAP_FAILED) {
        free(s);
        return err_set(e, ERR_MEMORY, "严格模式：不能保留地址空间");
    }
    madvise(base, STRICT_BYTES, MADV_HUGEPAGE); /* 改权限时页表短得多；不成也无妨 */
    *s = (StrictMemory){.allocator = {.alloc = strict_alloc, .release = strict_release,
                                      .clear = strict_clear},
                        .base = base};
    b->memory = &s->allocator;
    b->separate = true;
    b->guard = strict_guard;
    b->side = strict_side;
    b->room = strict_room;
    b->mapped = allocator_default();
    return true;
}

void strict_close(Backend *b) {
    if (b->guard != strict_guard) return;
    StrictMemory *s = (StrictMemory *)b->memory;
    CHECK(s->n_used == 0); /* 后端的内存须已全部归还 */
    munmap(s->base, STRICT_BYTES);
    free(s->used);
    free(s);
}
