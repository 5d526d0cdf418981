/* sparse — SpQR 的内层循环：定组的格点（留一法、两级统计）、逐列取整与误差补偿、离群值；列的方差，离群值的分出
 * 共用二级格点的若干行是一个任务：到组首就定格点，然后逐行递推。 */
#include <math.h>

#include "base/dtype.h"
#include "compute/cpu/cpu.h"
#include "compute/cpu/search.h"

enum { VARIANCE_COLS = 64 };

/* 一个格点：值 = scale·(码 − zero)，码 0..top。 */
typedef struct Levels {
    float scale, zero, top;
} Levels;

/* 由范围定格点（quant_groups.py 的 find_params，zero 不取整）。 */
static Levels grid_of(float lo, float hi, int bits) {
    float top = (float)((1 << bits) - 1);
    if (!(lo < hi)) lo = -1, hi = 1;
    float scale = (hi - lo) / top;
    return (Levels){scale, -lo / scale, top};
}

static float code_of(float x, Levels g) {
    float code = rintf(x / (g.scale > 1e-9f ? g.scale : 1e-9f) + g.zero);
    return code < 0 ? 0 : code > g.top ? g.top : code;
}

static float rounded(float x, Levels g) {
    return g.scale * (code_of(x, g) - g.zero);
}

static float stored(float x, DType t) {
    return t == DT_F16 ? f16_to_f32(f32_to_f16(x)) : x;
}

/* 以格点 g 量化 x 的误差 Σ((q−x)/U)²，不计第 skip 个。u 的步长为 n+1（U 的对角）。 */
static float group_error(const float *x, const float *u, int64_t step, int64_t width, Levels g,
                         int64_t skip) {
    float sum = 0;
    for (int64_t i = 0; i < width; i++) {
        float d = (rounded(x[i], g) - x[i]) / u[i * step];
        if (i != skip) sum += d * d;
    }
    return sum;
}

/* 一行的一组的范围，排除留一法认出的可能离群值：去掉第 j 个权重、由其余的定格点，本组误差（不计 j）减少超过阈值。
 * 只有去掉最小或最大者格点才变；去掉别的，减少的就是它自己的误差。 */
static void group_range(const SparseJob *s, const float *x, int64_t col, int64_t width, float *lo,
                        float *hi) {
    int64_t step = s->cols + 1, at_lo = 0, at_hi = 0;
    const float *u = s->u + col * step;
    for (int64_t i = 1; i < width; i++) {
        if (x[i] < x[at_lo]) at_lo = i;
        if (x[i] > x[at_hi]) at_hi = i;
    }
    *lo = x[at_lo];
    *hi = x[at_hi];
    if (!s->leave_one_out || width < 2) return;
    float lo2 = x[at_lo ? 0 : 1], hi2 = x[at_hi ? 0 : 1]; /* 去掉最小、最大之后的 */
    for (int64_t i = 0; i < width; i++) {
        if (i != at_lo && x[i] < lo2) lo2 = x[i];
        if (i != at_hi && x[i] > hi2) hi2 = x[i];
    }
    Levels all = grid_of(*lo, *hi, s->bits);
    float base = group_error(x, u, step, width, all, -1), kept_lo = INFINITY, kept_hi = -INFINITY;
    for (int64_t j = 0; j < width; j++) {
        Levels g = all;
        if (j == at_lo || j == at_hi)
            g = grid_of(j == at_lo ? lo2 : *lo, j == at_hi ? hi2 : *hi, s->bits);
        float d = (rounded(x[j], all) - x[j]) / u[j * step];
        float gain = j == at_lo || j == at_hi ? base - group_error(x, u, step, width, g, j) : d * d;
        if (gain > s->limit) continue;
        if (x[j] < kept_lo) kept_lo = x[j];
        if (x[j] > kept_hi) kept_hi = x[j];
    }
    *lo = kept_lo;
    *hi = kept_hi; /* 全是离群值时 lo > hi，grid_of 取 ±1 */
}

/* 行 [r0,r1) 的第 g 组的一种统计再量化：由这些行的范围定二级格点，值换成量化后的。 */
static void quantize_stat(const SparseJob *s, float *v, uint8_t *codes, float *grids, int bits, int64_t r0,
                          int64_t r1, int64_t g) {
    float lo = INFINITY, hi = -INFINITY;
    for (int64_t r = r0; r < r1; r++) {
        float *x = v + r * s->n_groups + g;
        if (!bits) *x = stored(*x, s->scale_dtype);
        if (*x < lo) lo = *x;
        if (*x > hi) hi = *x;
    }
    if (!bits) return;
    Levels grid = grid_of(lo, hi, bits);
    float *to = grids + 2 * (r0 / s->stat_rows * s->n_groups + g);
    to[0] = grid.scale = stored(grid.scale, s->scale_dtype);
    to[1] = grid.zero = stored(grid.zero, s->scale_dtype);
    for (int64_t r = r0; r < r1; r++) {
        int64_t at = r * s->n_groups + g;
        float code = code_of(v[at], grid);
        codes[at] = (uint8_t)code;
        v[at] = grid.scale * (code - grid.zero);
    }
}

/* 行 [r0,r1) 的第 g 组：由当时的 W 定 scale、zero，再量化。 */
static void fit_group(const SparseJob *s, int64_t r0, int64_t r1, int64_t g) {
    int64_t col = g * s->group, width = col + s->group < s->cols ? s->group : s->cols - col;
    for (int64_t r = r0; r < r1; r++) {
        float lo, hi;
        group_range(s, s->w + r * s->cols + col, col, width, &lo, &hi);
        Levels grid = grid_of(lo, hi, s->bits);
        s->scale[r * s->n_groups + g] = grid.scale;
        s->zero[r * s->n_groups + g] = grid.zero;
    }
    quantize_stat(s, s->scale, s->scale_code, s->scale_grid, s->scale_bits, r0, r1, g);
    quantize_stat(s, s->zero, s->zero_code, s->zero_grid, s->zero_bits, r0, r1, g);
}

/* 一行的列 [c1,c2)（同一组）的递推：太敏感的留作离群值（没有误差），其余取整，误差补偿到本块末。 */
static void solve_row(const SparseJob *s, int64_t r, int64_t c1, int64_t c2) {
    int64_t at = r * s->n_groups + c1 / s->group;
    Levels g = {s->scale[at], s->zero[at], (float)((1 << s->bits) - 1)};
    float *w = s->w + r * s->cols, *err = s->err + r * (s->i2 - s->i1) - s->i1;
    for (int64_t i = c1; i < c2; i++) {
        const float *u = s->u + i * s->cols;
        float q = rounded(w[i], g), d = (w[i] - q) / u[i];
        bool keep = d * d > s->limit;
        s->outlier[r * s->cols + i] = keep;
        err[i] = keep ? 0 : d;
        if (keep) continue;
        w[i] = q;
        for (int64_t j = i + 1; j < s->i2; j++) w[j] -= d * u[j];
    }
}

static void rows_task(void *ctx, int64_t row_group, int thread) {
    (void)thread;
    const SparseJob *s = ctx;
    int64_t r0 = row_group * s->stat_rows, r1 = r0 + s->stat_rows;
    if (r1 > s->rows) r1 = s->rows;
    for (int64_t c = s->i1, end; c < s->i2; c = end) {
        end = (c / s->group + 1) * s->group;
        if (end > s->i2) end = s->i2;
        if (c % s->group == 0) fit_group(s, r0, r1, c / s->group);
        for (int64_t r = r0; r < r1; r++) solve_row(s, r, c, end);
    }
}

void cpu_sparse(Backend *b, const SparseJob *job) {
    SparseJob j = *job;
    pool_run(((CpuBackend *)b->impl)->pool, (j.rows - 1) / j.stat_rows + 1, rows_task, &j);
}

typedef struct VarianceJob {
    double *var;
    const float *x;
    int64_t rows, cols;
} VarianceJob;

/* 一段列，各列沿行依次累加。 */
static void variance_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const VarianceJob *j = ctx;
    int64_t c0 = task * VARIANCE_COLS, n = j->cols - c0 < VARIANCE_COLS ? j->cols - c0 : VARIANCE_COLS;
    double sum[VARIANCE_COLS] = {0}, square[VARIANCE_COLS] = {0};
    for (int64_t r = 0; r < j->rows; r++)
        for (int64_t c = 0; c < n; c++) sum[c] += (double)j->x[r * j->cols + c0 + c];
    for (int64_t r = 0; r < j->rows; r++)
        for (int64_t c = 0; c < n; c++) {
            double d = (double)j->x[r * j->cols + c0 + c] - sum[c] / (double)j->rows;
            square[c] += d * d;
        }
    for (int64_t c = 0; c < n; c++) j->var[c0 + c] = square[c] / (double)(j->rows - 1);
}

void cpu_column_variance(Backend *b, double *var, const float *x, int64_t rows, int64_t cols) {
    VarianceJob j = {var, x, rows, cols};
    pool_run(((CpuBackend *)b->impl)->pool, (cols - 1) / VARIANCE_COLS + 1, variance_task, &j);
}

/* ---- 离群值：一个面板一个任务 ---- */

typedef struct OutlierJob {
    const QTensor *q; /* 分出时 */
    uint32_t *start;
    float *w;
    const uint8_t *mask;
    int64_t rows, cols, blocks;
    uint8_t *too_big; /* 各面板 */
} OutlierJob;

static int64_t rows_end(const OutlierJob *j, int64_t panel) {
    return (panel + 1) * QT_PANEL < j->rows ? (panel + 1) * QT_PANEL : j->rows;
}

static void count_task(void *ctx, int64_t panel, int thread) {
    (void)thread;
    const OutlierJob *j = ctx;
    uint32_t *n = j->start + panel * j->blocks + 1;
    for (int64_t r = panel * QT_PANEL; r < rows_end(j, panel); r++)
        for (int64_t k = 0; k < j->cols; k++) n[k / QT_KBLOCK] += j->mask[r * j->cols + k] != 0;
}

int64_t cpu_count_outliers(Backend *b, uint32_t *start, const uint8_t *mask, int64_t rows, int64_t cols) {
    OutlierJob j = {.start = start, .mask = mask, .rows = rows, .cols = cols, .blocks = (cols - 1) / QT_KBLOCK + 1};
    int64_t panels = (rows - 1) / QT_PANEL + 1;
    for (int64_t i = 0; i <= panels * j.blocks; i++) start[i] = 0;
    pool_run(((CpuBackend *)b->impl)->pool, panels, count_task, &j);
    for (int64_t i = 0; i < panels * j.blocks; i++) start[i + 1] += start[i];
    return start[panels * j.blocks];
}

static void split_task(void *ctx, int64_t panel, int thread) {
    (void)thread;
    const OutlierJob *j = ctx;
    const Outliers *o = &j->q->outliers;
    int64_t n = o->start[panel * j->blocks];
    for (int64_t k = 0; k < j->cols; k++)
        for (int64_t r = panel * QT_PANEL; r < rows_end(j, panel); r++) {
            if (!j->mask[r * j->cols + k]) continue;
            float v = j->w[r * j->cols + k];
            j->w[r * j->cols + k] = 0;
            o->at[n] = (uint16_t)(k % QT_KBLOCK * QT_PANEL + r % QT_PANEL);
            if (j->q->spec.scale_dtype == DT_F16) {
                j->too_big[panel] |= !(v >= -65504 && v <= 65504);
                ((uint16_t *)o->value)[n++] = f32_to_f16(v);
            } else {
                ((float *)o->value)[n++] = v;
            }
        }
}

bool cpu_split_outliers(Backend *b, const QTensor *q, float *w, const uint8_t *mask) {
    OutlierJob j = {.q = q, .w = w, .mask = mask, .rows = q->rows, .cols = q->cols,
                    .blocks = (q->cols - 1) / QT_KBLOCK + 1};
    int64_t panels = (q->rows - 1) / QT_PANEL + 1;
    bool ok = true;
    j.too_big = cpu_scratch(b, 0, (size_t)panels);
    if (!j.too_big) return false;
    for (int64_t i = 0; i < panels; i++) j.too_big[i] = 0;
    pool_run(((CpuBackend *)b->impl)->pool, panels, split_task, &j);
    for (int64_t i = 0; i < panels; i++) ok &= !j.too_big[i];
    return ok;
}
