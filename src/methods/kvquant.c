/* kvquant — KVQuant（Hooper 等，arXiv 2401.18079）：键值缓存的非均匀量化，离群值另存
 * 键量化 RoPE 之前的（§3.2），每通道的范围由校准定死；值每 token 当场定范围（§3.1）。一层一侧共用一张 2^b 项的表，
 * 表项是归一到 [−1,1] 的数据的加权 k 均值，权重是 Fisher 信息（损失对该元素的梯度的平方，§3.3 式 1）。
 * 离群值（键：超出校准的分位点；值：本 token 的分位点以外）原样稀疏地存（§3.4）；开头几个 token 可以原样保留（§3.5）；
 * Q-Norm：读出的表调整到量化前后均值与方差相同（附录）。次序与分位点同官方代码 simquant_module_quantizer.py；
 * k 均值在 [−1,1] 的直方图上由动态规划直接得到全局最优（Wang 与 Song，Ckmeans.1d.dp，2011），不随机起步。 */
#include "methods/base.h"

#include <stdlib.h>

enum { BINS = 16384, MAX_LEVELS = 16 };

typedef struct KvquantOptions {
    int64_t k_bits, v_bits, residual, sink;
    int scale_dtype;
    double outliers;
    bool nuq, fisher, q_norm;
} KvquantOptions;

static const Option OPTIONS[] = {
    OPT_INT(KvquantOptions, k_bits, "kv_cache.k_bits", 4, 1, 4, "键的位宽"),
    OPT_INT(KvquantOptions, v_bits, "kv_cache.v_bits", 4, 1, 4, "值的位宽"),
    OPT_INT(KvquantOptions, residual, "kv_cache.residual_length", 0, 0, 1048576,
            "最近的多少个 token 不量化"),
    OPT_INT(KvquantOptions, sink, "kv_cache.sink_tokens", 0, 0, 1024,
            "开头的多少个 token 原样保存（论文的 attention sink，取 1）"),
    OPT_ENUM(KvquantOptions, scale_dtype, "kv_cache.scale_dtype", KV_SCALE, 0,
             "值的范围、离群值的存放类型"),
    OPT_FLOAT(KvquantOptions, outliers, "kvquant.outliers", 0.01, 0, 0.5,
              "离群值的比例（两端合计），0 为不另存"),
    OPT_BOOL(KvquantOptions, nuq, "kvquant.nuq", 1, "非均匀的表（k 均值）；false 为均匀"),
    OPT_BOOL(KvquantOptions, fisher, "kvquant.fisher", 1, "k 均值以 Fisher 信息加权"),
    OPT_BOOL(KvquantOptions, q_norm, "kvquant.q_norm", 0,
             "读出的表调整到均值与方差不变（论文用于 2 位）"),
    OPT_END};

/* 归一化数据的直方图：个数与前两阶矩，不加权（Q-Norm 用）与加权。 */
typedef struct Histogram {
    double n[BINS], x[BINS], xx[BINS], w[BINS], wx[BINS], wxx[BINS];
} Histogram;

/* 一侧：样本、梯度与要定的东西 */
typedef struct Side {
    QuantJob *job;
    const KvquantOptions *o;
    const KvSample *s;
    const float *x, *grad; /* 主机上的映射 */
    bool keys;
    float *columns;       /* 键：(width, n) 转置，排序用；值：(n, width) 各行排序用 */
    float *lower, *upper; /* 键：(width)，值：(n)，在主机 */
    float *lower_mem, *upper_mem; /* 键：后端的副本 */
    Histogram *h;
    float *lut, *values;
    int bits;
} Side;

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* numpy.percentile 的线性插值。 */
static float percentile(const float *sorted, int64_t n, double q) {
    double rank = q * (double)(n - 1);
    int64_t i = (int64_t)floor(rank);
    if (i + 1 >= n) return sorted[n - 1];
    double a = (double)sorted[i], d = (double)sorted[i + 1] - a;
    return (float)(a + d * (rank - (double)i));
}

/* 第 i 个通道（键）或第 i 个 token（值）的上下分位点。 */
static void threshold_task(void *ctx, int64_t i) {
    const Side *d = ctx;
    int64_t width = d->s->width, n = d->keys ? d->s->n : width;
    float *sorted = d->columns + i * n;
    for (int64_t j = 0; j < n; j++)
        sorted[j] = d->keys ? d->x[j * width + i] : d->x[i * width + j];
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    double tail = d->o->outliers / 2;
    d->upper[i] = percentile(sorted, n, 1 - tail);
    d->lower[i] = percentile(sorted, n, tail);
}

/* 归一到 [−1,1] 后记进直方图；超出者（离群值）与开头几个 token 不算。 */
static void fill_histogram(const Side *d) {
    Histogram *h = d->h;
    int64_t width = d->s->width;
    memset(h, 0, sizeof *h);
    for (int64_t t = 0; t < d->s->n; t++) {
        if (t % d->s->length < d->o->sink) continue;
        for (int64_t c = 0; c < width; c++) {
            int64_t i = d->keys ? c : t;
            float half = (d->upper[i] - d->lower[i]) / 2, mid = (d->upper[i] + d->lower[i]) / 2;
            float x = (d->x[t * width + c] - mid) / half, g = d->grad[t * width + c];
            if (!(x >= -1 && x <= 1)) continue;
            int64_t b = (int64_t)((x + 1) * (BINS / 2));
            if (b == BINS) b = BINS - 1;
            double v = (double)x, w = d->o->fisher ? (double)g * (double)g : 1;
            h->n[b] += 1, h->x[b] += v, h->xx[b] += v * v;
            h->w[b] += w, h->wx[b] += w * v, h->wxx[b] += w * v * v;
        }
    }
}

/* 前 j 层把前 i 格分成 j 类的最小误差；各类是连续的格。前缀和在 w、wx、wxx 里。 */
typedef struct Partition {
    const double *w, *x, *xx; /* (BINS+1) 前缀和 */
    double *before, *now;     /* (BINS+1) */
    uint16_t *cut;            /* (levels, BINS+1) 最后一类从哪一格起 */
} Partition;

static double cluster_cost(const Partition *p, int64_t from, int64_t to) {
    double w = p->w[to] - p->w[from], x = p->x[to] - p->x[from];
    return w > 0 ? p->xx[to] - p->xx[from] - x * x / w : 0;
}

/* 分治：最优的切点随 i 单调，所以 now[lo..hi] 的切点都在 [from, to]。 */
static void solve_level(Partition *p, uint16_t *cut, int64_t lo, int64_t hi, int64_t from,
                        int64_t to) {
    if (lo > hi) return;
    int64_t mid = (lo + hi) / 2, best = from, last = to < mid ? to : mid;
    double cost = INFINITY;
    for (int64_t c = from; c <= last; c++) {
        double t = p->before[c] + cluster_cost(p, c, mid);
        if (t < cost) {
            cost = t;
            best = c;
        }
    }
    p->now[mid] = cost;
    cut[mid] = (uint16_t)best;
    solve_level(p, cut, lo, mid - 1, from, best);
    solve_level(p, cut, mid + 1, hi, best, to);
}

/* 加权的一维 k 均值：全局最优的 levels 个中心 → lut。空类取其格的中点。 */
static bool k_means(const Histogram *h, int levels, float *lut, Arena *a, Err *e) {
    double *sums = ARENA_ARRAY(a, double, 5 * (BINS + 1), e);
    uint16_t *cut = ARENA_ARRAY(a, uint16_t, levels * (BINS + 1), e);
    if (!sums || !cut) return false;
    double *w = sums, *x = w + BINS + 1, *xx = x + BINS + 1;
    for (int64_t i = 0; i < BINS; i++) {
        w[i + 1] = w[i] + h->w[i];
        x[i + 1] = x[i] + h->wx[i];
        xx[i + 1] = xx[i] + h->wxx[i];
    }
    Partition p = {w, x, xx, xx + BINS + 1, xx + 2 * (BINS + 1), cut};
    for (int64_t i = 0; i <= BINS; i++) p.before[i] = cluster_cost(&p, 0, i);
    for (int k = 1; k < levels; k++) {
        solve_level(&p, cut + k * (BINS + 1), 0, BINS, 0, BINS);
        double *t = p.before;
        p.before = p.now;
        p.now = t;
    }
    int64_t end = BINS;
    for (int k = levels - 1; k >= 0; k--) {
        int64_t begin = k ? cut[k * (BINS + 1) + end] : 0;
        double sum = w[end] - w[begin];
        double center = sum > 0 ? (x[end] - x[begin]) / sum
                                : (double)(begin + end) / BINS - 1;
        lut[k] = (float)center;
        end = begin;
    }
    return true;
}

/* Q-Norm：量化前后（不加权的）均值 m1、m2 与标准差 s1、s2 → values = lut·s1/s2 + m1 − m2·s1/s2。 */
static void q_norm(const Histogram *h, int levels, const float *lut, float *values) {
    double n = 0, x = 0, xx = 0, q = 0, qq = 0;
    int k = 0;
    for (int64_t b = 0; b < BINS; b++) {
        double center = (2 * (double)b + 1) / BINS - 1;
        while (k + 1 < levels && center > ((double)lut[k] + (double)lut[k + 1]) / 2) k++;
        n += h->n[b], x += h->x[b], xx += h->xx[b];
        q += h->n[b] * (double)lut[k];
        qq += h->n[b] * (double)lut[k] * (double)lut[k];
    }
    double m1 = x / n, m2 = q / n, s1 = sqrt(xx / n - m1 * m1), s2 = sqrt(qq / n - m2 * m2);
    double scale = s2 > 0 && isfinite(s1) ? s1 / s2 : 1;
    for (int i = 0; i < levels; i++) values[i] = (float)((double)lut[i] * scale + m1 - m2 * scale);
}

/* 定一侧的表（与键的阈值）。 */
static bool fit_side(Side *d, Err *e) {
    Arena *scratch = job_host(d->job), *model = job_model_arena(d->job);
    Backend *b = job_backend(d->job);
    int64_t n = d->s->n, width = d->s->width, rows = d->keys ? width : n;
    int levels = 1 << d->bits;
    d->columns = ARENA_ARRAY(scratch, float, n * width, e);
    d->lower = ARENA_ARRAY(scratch, float, rows, e);
    d->upper = ARENA_ARRAY(scratch, float, rows, e);
    d->h = ARENA_NEW(scratch, Histogram, e);
    d->lut = ARENA_ARRAY(job_model_host(d->job), float, 2 * MAX_LEVELS, e);
    if (!d->columns || !d->lower || !d->upper || !d->h || !d->lut) return false;
    job_parallel(d->job, rows, threshold_task, d);
    if (d->keys) {
        size_t bytes = (size_t)width * sizeof *d->lower;
        d->lower_mem = arena_alloc(model, bytes, e);
        d->upper_mem = arena_alloc(model, bytes, e);
        if (!d->lower_mem || !d->upper_mem) return false;
        op_write(b, d->lower_mem, d->lower, bytes);
        op_write(b, d->upper_mem, d->upper, bytes);
    }
    fill_histogram(d);
    if (d->o->nuq) {
        if (!k_means(d->h, levels, d->lut, scratch, e)) return false;
    } else {
        for (int i = 0; i < levels; i++) d->lut[i] = 2.0f * (float)i / (float)(levels - 1) - 1;
    }
    d->values = d->o->q_norm ? d->lut + MAX_LEVELS : NULL;
    if (d->values) q_norm(d->h, levels, d->lut, d->values);
    return backend_check(b, e);
}

static KvFormat side_format(const Side *d) {
    const KvquantOptions *o = d->o;
    return (KvFormat){.form = KV_LUT, .dtype = o->scale_dtype == 1 ? DT_F32 : DT_F16,
                      .bits = d->bits, .per_channel = d->keys, .sparse = o->outliers > 0,
                      .outliers = o->outliers, .lut = d->lut, .values = d->values,
                      .lower = d->lower_mem, .upper = d->upper_mem,
                      .sink = o->sink};
}

static bool kvquant_layer(void *ctx, const KvSample *s, Err *e) {
    QuantJob *job = ctx;
    const KvquantOptions *o = job_options(job);
    Side k = {.job = job, .o = o, .s = s, .keys = true, .bits = (int)o->k_bits};
    Side v = {.job = job, .o = o, .s = s, .bits = (int)o->v_bits};
    ArenaMark mark = arena_mark(job_host(job));
    HostView view = host_view(job_backend(job));
    int64_t cells = s->n * s->width;
    k.x = HOST_MAP(&view, float, s->k, cells, HOST_READ);
    k.grad = HOST_MAP(&view, float, s->k_grad, cells, HOST_READ);
    v.x = HOST_MAP(&view, float, s->v, cells, HOST_READ);
    v.grad = HOST_MAP(&view, float, s->v_grad, cells, HOST_READ);
    bool ok = backend_check(job_backend(job), e) && fit_side(&k, e) && fit_side(&v, e);
    host_end(&view);
    arena_rewind(job_host(job), mark);
    if (!ok) return false;
    KvSpec spec = {.k = side_format(&k), .v = side_format(&v), .residual = o->residual,
                   .pre_rope = true};
    return job_set_kv(job, s->layer, &spec, e);
}

static bool kvquant_quantize(QuantJob *job, Err *e) {
    return quantize_each_cache(job, kvquant_layer, e);
}

PTQ_METHOD(kvquant) = {.name = "kvquant", .tracks = "C", .options = OPTIONS,
                       .options_size = sizeof(KvquantOptions), .calibrated = true,
                       .quantize = kvquant_quantize};
