/* kv — 键值缓存的写入与量化
 * 写入：f32 行 → DENSE。量化：读 DENSE 的行，定参数、取编码、装位面；任务是若干 token（逐 token 的参数）或一个
 * token 组（逐通道的参数），互不相干，所以结果与线程数无关；各指令集共用这一份标量代码，编码也就逐位相同。
 * 离群值分两步：并行地定编码并把离群的位置记成位图，求前缀和之后再并行抄出原值。
 * KIVI（arXiv 2402.02750 §4）：scale = (max−min)/(2^b−1)，code = round((x−min)/scale)。
 * KVQuant（arXiv 2401.18079 §3，官方 quant_fn_nuq_recon）：除以半距归一到 [−1,1] 后取最近的表项。 */
#include <math.h>
#include <string.h>

#include "compute/cpu/cpu.h"
#include "compute/cpu/kernels.h"
#include "compute/cpu/kv_kernels.h"

enum { TOKENS_PER_TASK = 16 };

typedef struct KvJob {
    const KvKernels *kernels;
    KvStore *s;
    const KvStore *near; /* 来源 */
    int64_t pos, n, per_task;
    float boundary[1 << KV_MAX_LUT_BITS]; /* LUT：相邻表项的中点 */
    uint8_t *mask;        /* (n, mask_bytes) 离群的位图，sparse 时 */
    int64_t mask_bytes;
    void **work;          /* 每线程：组内各行 f32 与编码 */
} KvJob;

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static void put_item(const KvStore *s, void *array, int64_t i, float x) {
    if (s->f.dtype == DT_F16)
        ((uint16_t *)array)[i] = f32_to_f16(x);
    else
        ((float *)array)[i] = x;
}
/* 存成 dtype 之后的值 */
static float rounded(const KvStore *s, float x) {
    return s->f.dtype == DT_F16 ? f16_to_f32(f32_to_f16(x)) : x;
}

/* 一个 token 的原值 → row (heads·dim)，减去 bias；row 末尾须另有 15 个位置 */
static void load_row(const KvJob *j, int64_t pos, float *row, bool biased) {
    const KvStore *near = j->near;
    int64_t width = near->heads * near->dim;
    if (near->f.dtype == DT_F32)
        memcpy(row, (const float *)near->data + (pos - near->first) * width,
               (size_t)width * sizeof *row);
    else
        for (int64_t h = 0; h < near->heads; h++)
            j->kernels->expand(near, h, pos, 1, row + h * near->dim, near->vecs * KV_LANES);
    for (int64_t i = 0; biased && j->s->f.bias && i < width; i++) row[i] -= j->s->f.bias[i];
}

/* 8 个编码各取第 p 位，拼成一个字节：乘法把第 i 个字节的最低位送到第 56+i 位 */
static unsigned gather_bits(const uint8_t *code, int p) {
    uint64_t x;
    memcpy(&x, code, sizeof x);
    return (unsigned)(((x >> p & 0x0101010101010101u) * 0x0102040810204080u) >> 56);
}

/* 头 head 的编码（补齐到 16 的倍数）→ 位面 */
static void pack_head(const KvStore *s, int64_t pos, int64_t head, const uint8_t *code) {
    uint16_t *w = (uint16_t *)s->data + pos * kvstore_code_words(s) + head * s->vecs * s->f.bits;
    for (int64_t v = 0; v < s->vecs; v++)
        for (int p = 0; p < s->f.bits; p++)
            *w++ = (uint16_t)(gather_bits(code + v * KV_LANES, p) |
                              gather_bits(code + v * KV_LANES + 8, p) << 8);
}

/* 一组数的 scale、min（已舍入到存放的类型） */
typedef struct Affine {
    float scale, min;
} Affine;

static Affine affine_of(const KvStore *s, float lo, float hi) {
    float levels = (float)((1 << s->f.bits) - 1);
    return (Affine){rounded(s, (hi - lo) / levels), rounded(s, lo)};
}

static uint8_t affine_code(const KvStore *s, float x, Affine a) {
    float top = (float)((1 << s->f.bits) - 1), c = a.scale > 0 ? rintf((x - a.min) / a.scale) : 0;
    return (uint8_t)(c > 0 ? c < top ? c : top : 0); /* NaN 得 0：由前向的非有限检查报出 */
}

static void affine_token(const KvJob *j, int64_t pos, const float *row, uint8_t *code) {
    const KvStore *s = j->s;
    for (int64_t h = 0; h < s->heads; h++) {
        const float *x = row + h * s->dim;
        for (int64_t g = 0; g < s->n_groups; g++) {
            int64_t d0 = g * s->f.group, d1 = min64(d0 + s->f.group, s->dim);
            float lo = x[d0], hi = x[d0];
            for (int64_t d = d0 + 1; d < d1; d++) {
                lo = x[d] < lo ? x[d] : lo;
                hi = x[d] > hi ? x[d] : hi;
            }
            Affine a = affine_of(s, lo, hi);
            int64_t at = (pos * s->heads + h) * s->n_groups + g;
            put_item(s, s->params, 2 * at, a.scale);
            put_item(s, s->params, 2 * at + 1, a.min);
            for (int64_t d = d0; d < d1; d++) code[d] = affine_code(s, x[d], a);
        }
        pack_head(s, pos, h, code);
    }
}

/* 一个 token 组（rows 行，可不满）按通道量化。rows 是 (n, width)。 */
static void affine_channels(const KvJob *j, int64_t pos, int64_t n, const float *rows,
                            uint8_t *code, Affine *params) {
    const KvStore *s = j->s;
    int64_t width = s->heads * s->dim, all = s->heads * s->vecs * KV_LANES;
    int64_t at = pos / s->f.group * 2 * all;
    int64_t first = s->f.sink > pos && s->f.sink < pos + n ? s->f.sink - pos : 0; /* 原样存的不算 */
    for (int64_t c = 0; c < width; c++) {
        float lo = rows[first * width + c], hi = lo;
        for (int64_t i = first + 1; i < n; i++) {
            float x = rows[i * width + c];
            lo = x < lo ? x : lo;
            hi = x > hi ? x : hi;
        }
        params[c] = affine_of(s, lo, hi);
        int64_t slot = at + c / s->dim * s->vecs * KV_LANES + c % s->dim;
        put_item(s, s->params, slot, params[c].scale);
        put_item(s, s->params, slot + all, params[c].min);
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t h = 0; h < s->heads; h++) {
            const float *x = rows + i * width + h * s->dim;
            for (int64_t d = 0; d < s->dim; d++)
                code[d] = affine_code(s, x[d], params[h * s->dim + d]);
            pack_head(s, pos + i, h, code);
        }
}

/* 线性插值的分位点：sorted 的下标 rank（实数）处 */
static float lerp_at(float a, float b, double t) {
    return (float)((double)a + ((double)b - (double)a) * t);
}

/* 一行的上下分位点（两端各 share/2）。top 至少有 tail_count 个位置。 */
typedef struct Thresholds {
    float lower, upper;
} Thresholds;

static int64_t tail_count(int64_t n, double share) {
    return n - (int64_t)floor((1 - share / 2) * (double)(n - 1));
}

static Thresholds row_thresholds(const float *x, int64_t n, double share, float *top) {
    double rank = (1 - share / 2) * (double)(n - 1), t = rank - floor(rank);
    int64_t m = tail_count(n, share); /* 从大到小的前 m 个包含 rank 与 rank+1 */
    float end[2];
    for (int side = 0; side < 2; side++) { /* 1 号：取负后找最大 */
        int64_t have = 0;
        for (int64_t i = 0; i < n; i++) {
            float v = side ? -x[i] : x[i];
            if (have == m && !(v > top[m - 1])) continue;
            int64_t k = have < m ? have++ : m - 1;
            for (; k > 0 && top[k - 1] < v; k--) top[k] = top[k - 1];
            top[k] = v;
        }
        end[side] = lerp_at(top[m - 1], m > 1 ? top[m - 2] : top[m - 1], t);
    }
    return (Thresholds){-end[1], end[0]};
}

static void lut_token(const KvJob *j, int64_t pos, const float *row, uint8_t *code, float *top) {
    const KvStore *s = j->s;
    int64_t width = s->heads * s->dim;
    uint8_t *mask = j->mask ? j->mask + (pos - j->pos) * j->mask_bytes : NULL;
    Thresholds t = {0};
    float lo = INFINITY, hi = -INFINITY, half = 0, mid = 0;
    if (!s->f.per_channel) {
        if (mask) t = row_thresholds(row, width, s->f.outliers, top);
        for (int64_t c = 0; c < width; c++) {
            if (mask && (row[c] <= t.lower || row[c] >= t.upper)) continue;
            lo = row[c] < lo ? row[c] : lo;
            hi = row[c] > hi ? row[c] : hi;
        }
        if (lo > hi) lo = hi = 0; /* 全是离群值 */
        half = rounded(s, (hi - lo) / 2);
        mid = rounded(s, (hi + lo) / 2);
        put_item(s, s->params, 2 * pos, half);
        put_item(s, s->params, 2 * pos + 1, mid);
    }
    for (int64_t h = 0; h < s->heads; h++) {
        for (int64_t d = 0; d < s->dim; d++) {
            int64_t c = h * s->dim + d;
            if (s->f.per_channel) {
                t = (Thresholds){s->f.lower[c], s->f.upper[c]};
                half = (t.upper - t.lower) / 2;
                mid = (t.upper + t.lower) / 2;
            }
            bool out = mask && (s->f.per_channel ? row[c] < t.lower || row[c] > t.upper
                                                 : row[c] <= t.lower || row[c] >= t.upper);
            if (out) mask[c / 8] |= (uint8_t)(1 << c % 8);
            float x = half > 0 ? (row[c] - mid) / half : 0;
            int k = 0;
            for (int p = s->f.bits - 1; p >= 0; p--) /* 二分：小于等于中点取左 */
                k += (x > j->boundary[k + (1 << p) - 1]) << p;
            code[d] = (uint8_t)k;
        }
        pack_head(s, pos, h, code);
    }
}

/* 线程工作区：rows 行 f32，每通道的参数（或分位点用的极值），一个头的编码 */
typedef struct Work {
    float *rows, *extra;
    uint8_t *code;
} Work;
static size_t work_bytes(const KvStore *s, int64_t rows) {
    int64_t width = s->heads * s->dim;
    return (size_t)(rows * width + KV_LANES + 2 * width) * sizeof(float) +
           (size_t)(s->vecs * KV_LANES);
}
static Work carve(void *base, const KvStore *s, int64_t rows) {
    Work w;
    w.rows = base;
    w.extra = w.rows + rows * s->heads * s->dim + KV_LANES;
    w.code = (uint8_t *)(w.extra + 2 * s->heads * s->dim);
    return w;
}

static void quantize_task(void *ctx, int64_t task, int thread) {
    const KvJob *j = ctx;
    const KvStore *s = j->s;
    int64_t p0 = j->pos + task * j->per_task, p1 = min64(p0 + j->per_task, j->pos + j->n);
    bool group = s->f.form == KV_AFFINE && s->f.per_channel;
    int64_t width = s->heads * s->dim;
    Work w = carve(j->work[thread], s, group ? j->per_task : 1);
    memset(w.code, 0, (size_t)(s->vecs * KV_LANES));
    for (int64_t pos = p0; pos < p1; pos++) {
        float *row = w.rows + (group ? (pos - p0) * width : 0);
        if (pos < s->f.sink) {
            load_row(j, pos, row, false);
            for (int64_t c = 0; c < width; c++) put_item(s, s->sink_rows, pos * width + c, row[c]);
        }
        load_row(j, pos, row, true);
        if (s->f.form == KV_LUT)
            lut_token(j, pos, row, w.code, w.extra);
        else if (!group)
            affine_token(j, pos, row, w.code);
    }
    if (group) affine_channels(j, p0, p1 - p0, w.rows, w.code, (Affine *)w.extra);
}

static void outlier_task(void *ctx, int64_t task, int thread) {
    const KvJob *j = ctx;
    const KvStore *s = j->s;
    int64_t width = s->heads * s->dim;
    int64_t p0 = j->pos + task * j->per_task, p1 = min64(p0 + j->per_task, j->pos + j->n);
    Work w = carve(j->work[thread], s, 1);
    for (int64_t pos = p0; pos < p1; pos++) {
        const uint8_t *mask = j->mask + (pos - j->pos) * j->mask_bytes;
        int64_t at = pos ? s->row_end[pos - 1] : 0;
        if (at == s->row_end[pos]) continue;
        load_row(j, pos, w.rows, false);
        for (int64_t c = 0; c < width; c++)
            if (mask[c / 8] >> c % 8 & 1) {
                s->columns[at] = (uint16_t)c;
                put_item(s, s->values, at++, w.rows[c]);
            }
    }
}

/* 由位图求各 token 的离群值个数的前缀和，备好空间。 */
static bool count_outliers(Backend *b, KvJob *j) {
    KvStore *s = j->s;
    int64_t total = j->pos ? s->row_end[j->pos - 1] : 0;
    for (int64_t i = 0; i < j->n; i++) {
        for (int64_t k = 0; j->pos + i >= s->f.sink && k < j->mask_bytes; k++)
            total += __builtin_popcount(j->mask[i * j->mask_bytes + k]);
        if (total > UINT32_MAX)
            return err_set(&b->err, ERR_UNSUPPORTED, "键值缓存的离群值超过 2^32 个");
        s->row_end[j->pos + i] = (uint32_t)total;
    }
    s->n_outliers = total;
    return kvstore_reserve(s, total) || err_set(&b->err, ERR_MEMORY, "键值缓存的离群值：内存不足");
}

void cpu_kv_quantize(Backend *b, KvStore *s, const KvStore *near, int64_t pos, int64_t n) {
    CpuBackend *cpu = b->impl;
    KvJob j = {.kernels = cpu->kernels->kv, .s = s, .near = near, .pos = pos, .n = n,
               .per_task = TOKENS_PER_TASK, .work = cpu->scratch};
    Arena tmp = {0};
    bool group = s->f.form == KV_AFFINE && s->f.per_channel, ok = true;
    if (group) j.per_task = s->f.group;
    for (int k = 0; s->f.form == KV_LUT && k + 1 < 1 << s->f.bits; k++)
        j.boundary[k] = (s->f.lut[k] + s->f.lut[k + 1]) / 2;
    for (int t = 0; t < b->n_threads; t++)
        if (!cpu_scratch(b, t, work_bytes(s, group ? j.per_task : 1))) return;
    if (s->f.sparse) {
        j.mask_bytes = (s->heads * s->dim + 7) / 8;
        j.mask = ARENA_ARRAY(&tmp, uint8_t, n * j.mask_bytes, &b->err);
        ok = j.mask != NULL;
    }
    int64_t n_tasks = (n + j.per_task - 1) / j.per_task;
    if (ok) pool_run(cpu->pool, n_tasks, quantize_task, &j);
    if (ok && s->f.sparse && count_outliers(b, &j)) pool_run(cpu->pool, n_tasks, outlier_task, &j);
    s->length = pos + n;
    arena_free(&tmp);
}

typedef struct WriteJob {
    const KvKernels *kernels;
    const KvStore *s;
    const float *x;
    int64_t row, n, width; /* 从 s 的第 row 行起写 n 行 */
} WriteJob;

static void write_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const WriteJob *j = ctx;
    /* 任务按绝对的行号对齐：TILES 里成对的两行因而总在一个任务里 */
    int64_t first = (j->row / TOKENS_PER_TASK + task) * TOKENS_PER_TASK;
    int64_t row = first > j->row ? first : j->row, i = row - j->row;
    int64_t rows = min64(first + TOKENS_PER_TASK, j->row + j->n) - row;
    int64_t at = row * j->width, n = rows * j->width;
    if (j->s->f.form == KV_TILES) {
        j->kernels->write_tiles(j->s, row, rows, j->x + i * j->width);
        return;
    }
    if (j->s->f.dtype == DT_F16)
        j->kernels->to_f16((uint16_t *)j->s->data + at, j->x + i * j->width, n);
    else
        memcpy((float *)j->s->data + at, j->x + i * j->width, (size_t)n * sizeof(float));
}

void cpu_kv_write(Backend *b, KvStore *s, const float *x, int64_t n) {
    CpuBackend *cpu = b->impl;
    WriteJob j = {.kernels = cpu->kernels->kv, .s = s, .x = x, .row = s->length, .n = n,
                  .width = s->heads * s->dim};
    int64_t last = (j.row + n - 1) / TOKENS_PER_TASK;
    CHECK(s->f.form != KV_TILES || (s->first == 0 && j.kernels->write_tiles));
    pool_run(cpu->pool, last - j.row / TOKENS_PER_TASK + 1, write_task, &j);
    s->length += n;
}
