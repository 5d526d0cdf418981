/* test_kv — 键值缓存的量化与展开、近远两份的注意力，对照双精度的直白参考
 * 展开对照 kvstore_at（逐元素、不用位面的内核）逐位相同；量化对照定义：仿射误差不超过半格，查表取最近的一项，
 * 离群值与开头的位置是原值。注意力对照逐行按 attn_far_end 取值的参考，并与任意切分、线程数逐位相同。 */
#include "reference.h"

typedef struct Case {
    KvFormat f;
    int64_t heads, dim, n;
} Case;

static const float LUT[16] = {-0.9f, -0.7f, -0.55f, -0.4f, -0.3f, -0.2f, -0.1f, -0.02f,
                              0.05f, 0.15f, 0.25f,  0.35f, 0.5f,  0.6f,  0.8f,  1.0f};

static const Case CASES[] = {
    {{.form = KV_AFFINE, .dtype = DT_F16, .bits = 2, .group = 32}, 2, 64, 40},
    {{.form = KV_AFFINE, .dtype = DT_F32, .bits = 4, .group = 7}, 3, 48, 9},
    {{.form = KV_AFFINE, .dtype = DT_F16, .bits = 3, .group = 100, .sink = 2}, 2, 10, 33},
    {{.form = KV_AFFINE, .dtype = DT_F16, .bits = 2, .per_channel = true, .group = 32}, 2, 64, 96},
    {{.form = KV_AFFINE, .dtype = DT_F32, .bits = 5, .per_channel = true, .group = 7, .sink = 3},
     1, 33, 40},
    {{.form = KV_AFFINE, .dtype = DT_F16, .bits = 8, .per_channel = true, .group = 16}, 4, 16, 50},
    {{.form = KV_LUT, .dtype = DT_F16, .bits = 3, .per_channel = true, .sparse = true}, 2, 64, 50},
    {{.form = KV_LUT, .dtype = DT_F32, .bits = 4, .per_channel = true}, 2, 20, 21},
    {{.form = KV_LUT, .dtype = DT_F16, .bits = 4, .sparse = true, .outliers = 0.01}, 2, 64, 40},
    {{.form = KV_LUT, .dtype = DT_F32, .bits = 2, .sparse = true, .outliers = 0.2, .sink = 4},
     3, 12, 40},
    {{.form = KV_LUT, .dtype = DT_F16, .bits = 1}, 1, 5, 3},
};
enum { N_CASES = sizeof CASES / sizeof *CASES };

/* 造好的一例：原值、偏置、阈值、存放 */
typedef struct Made {
    Case c;
    float *x, *bias, *lower, *upper;
    Arena arena;
    KvStore near, far;
} Made;

static void make(Made *m, int index, bool bias, Backend *b) {
    Err e = {0};
    *m = (Made){.c = CASES[index]};
    int64_t width = m->c.heads * m->c.dim;
    m->x = ref_random(m->c.n * width, 100 + (uint64_t)index, 1);
    m->bias = ref_random(width, 200 + (uint64_t)index, 50);
    m->lower = ref_random(width, 300, 0.2);
    m->upper = ref_random(width, 400, 0.2);
    for (int64_t i = 0; i < width; i++) {
        m->lower[i] = -1.6f - fabsf(m->lower[i]);
        m->upper[i] = 1.4f + fabsf(m->upper[i]);
        if (i % 3) m->bias[i] = 0; /* 少数通道很大，如 Qwen2.5 */
        for (int64_t t = 0; bias && t < m->c.n; t++) m->x[t * width + i] += m->bias[i];
    }
    KvFormat f = m->c.f;
    f.lut = LUT;
    f.lower = m->lower;
    f.upper = m->upper;
    f.bias = bias ? m->bias : NULL;
    m->near = kvstore_view(m->x, m->c.heads, m->c.dim, 0, m->c.n);
    assert_true(kvstore_new(&m->far, &m->arena, &f, m->c.heads, m->c.dim, m->c.n, &e));
    op_kv_quantize(b, &m->far, &m->near, 0, m->c.n);
    ref_check(b);
}
static void unmake(Made *m) {
    kvstore_close(&m->far);
    arena_free(&m->arena);
    free(m->x);
    free(m->bias);
    free(m->lower);
    free(m->upper);
}

static float stored(const KvFormat *f, float x) {
    return f->dtype == DT_F16 ? f16_to_f32(f32_to_f16(x)) : x;
}

/* 与 (t, c) 同组的数的最小、最大值（减去偏置） */
static void group_range(const Made *m, int64_t t, int64_t c, double *lo, double *hi) {
    const KvFormat *f = &m->c.f;
    int64_t width = m->c.heads * m->c.dim, d = c % m->c.dim, head = c - d, g = f->group;
    int64_t t0 = t, t1 = t + 1, c0 = c, c1 = c + 1;
    if (f->per_channel) {
        t0 = t / g * g;
        t1 = t0 + g < m->c.n ? t0 + g : m->c.n;
        if (t0 < f->sink) t0 = f->sink;
    } else {
        c0 = head + d / g * g;
        c1 = c0 + g < head + m->c.dim ? c0 + g : head + m->c.dim;
    }
    *lo = INFINITY;
    *hi = -INFINITY;
    for (int64_t i = t0; i < t1; i++)
        for (int64_t j = c0; j < c1; j++) {
            double v = (double)m->x[i * width + j] - (m->far.f.bias ? (double)m->bias[j] : 0);
            if (v < *lo) *lo = v;
            if (v > *hi) *hi = v;
        }
}

static void check_affine(const Made *m, int64_t t, int64_t c, double got, double x) {
    const KvFormat *f = &m->c.f;
    double lo, hi, levels = (1 << f->bits) - 1;
    group_range(m, t, c, &lo, &hi);
    double step = (hi - lo) / levels, slack = f->dtype == DT_F16 ? 0x1p-11 : 0x1p-22;
    double bound = step / 2 + slack * (fabs(lo) + step * levels * 2) + fabs(x) * 0x1p-22;
    ref_near(got, x, bound, "affine", "半格");
}

/* 一行的上下分位点（排序后线性插值） */
static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double quantile(const double *sorted, int64_t n, double q) {
    double rank = q * (double)(n - 1);
    int64_t i = (int64_t)floor(rank);
    return i + 1 < n ? sorted[i] + (sorted[i + 1] - sorted[i]) * (rank - (double)i) : sorted[i];
}

static void check_lut_row(const Made *m, int64_t t) {
    const KvFormat *f = &m->c.f;
    int64_t width = m->c.heads * m->c.dim;
    double *row = malloc(sizeof *row * (size_t)width), *sorted = malloc(sizeof *row * (size_t)width);
    double lo = INFINITY, hi = -INFINITY, down = -INFINITY, up = INFINITY;
    for (int64_t c = 0; c < width; c++)
        sorted[c] = row[c] = (double)m->x[t * width + c] - (m->far.f.bias ? (double)m->bias[c] : 0);
    qsort(sorted, (size_t)width, sizeof *sorted, by_value);
    if (f->sparse && !f->per_channel) {
        down = quantile(sorted, width, f->outliers / 2);
        up = quantile(sorted, width, 1 - f->outliers / 2);
    }
    for (int64_t c = 0; c < width; c++) {
        if (row[c] <= down || row[c] >= up) continue;
        lo = fmin(lo, row[c]);
        hi = fmax(hi, row[c]);
    }
    for (int64_t c = 0; c < width; c++) {
        float raw = m->x[t * width + c], got = kvstore_at(&m->far, t, c / m->c.dim, c % m->c.dim);
        if (f->per_channel) {
            lo = (double)m->lower[c];
            hi = (double)m->upper[c];
        }
        bool out = f->sparse && (f->per_channel ? row[c] < lo || row[c] > hi
                                                : row[c] <= down || row[c] >= up);
        if (out) {
            assert_true(got == stored(f, raw));
            continue;
        }
        double best = INFINITY, half = (hi - lo) / 2, mid = (hi + lo) / 2;
        for (int i = 0; i < 1 << f->bits; i++)
            best = fmin(best, fabs(row[c] - (mid + half * (double)LUT[i])));
        double slack = (f->dtype == DT_F16 ? 0x1p-9 : 0x1p-20) * (half + fabs(mid)) +
                       fabs((double)raw) * 0x1p-22;
        ref_near(fabs((double)got - (double)raw), best, slack, "lut", "最近的表项");
    }
    free(row);
    free(sorted);
}

static void test_quantize(void **state) {
    (void)state;
    RefTarget target = {.isa = "generic"};
    Backend b = ref_open(&target, 2);
    for (int k = 0; k < N_CASES; k++)
        for (int bias = 0; bias < 2; bias++) {
            Made m;
            make(&m, k, bias, &b);
            int64_t width = m.c.heads * m.c.dim;
            for (int64_t t = 0; t < m.c.n; t++) {
                for (int64_t c = 0; c < width; c++) {
                    float x = m.x[t * width + c];
                    float got = kvstore_at(&m.far, t, c / m.c.dim, c % m.c.dim);
                    if (t < m.c.f.sink)
                        assert_true(got == stored(&m.c.f, x));
                    else if (m.c.f.form == KV_AFFINE)
                        check_affine(&m, t, c, (double)got, (double)x);
                }
                if (m.c.f.form == KV_LUT && t >= m.c.f.sink) check_lut_row(&m, t);
            }
            unmake(&m);
        }
    backend_close(&b);
}

/* 用注意力读出一个位置的值：只看它一个（窗口为 1），softmax 的权重是 1。 */
static void read_back(Backend *b, const Made *m, int64_t t, float *out) {
    const Case *c = &m->c;
    float *q = ref_zeros(c->heads * c->dim);
    AttnSpec s = {.n_heads = c->heads, .n_kv_heads = c->heads, .head_dim = c->dim, .first = t,
                  .window = 1, .scale = 1};
    AttnSide side = {.near = &m->near, .far = &m->far, .rule = FAR_ALL};
    op_attention_kv(b, tensor_f32_3d(out, 1, c->heads, c->dim),
                    tensor_f32_3d(q, 1, c->heads, c->dim), &side, &side, &s);
    ref_check(b);
    free(q);
}

/* 各指令集的展开 = kvstore_at，逐位（f32 计算）；编码与线程数无关 */
static void test_expand(void **state) {
    (void)state;
    RefTarget targets[REF_MAX_TARGETS];
    int n_targets = ref_targets(targets);
    for (int t = 0; t < n_targets; t++) {
        if (targets[t].compute != COMPUTE_F32) continue;
        Backend one = ref_open(&targets[t], 1), two = ref_open(&targets[t], 3);
        for (int k = 0; k < N_CASES; k++) {
            Made m, other;
            make(&m, k, k % 2, &one);
            make(&other, k, k % 2, &two);
            float *out = ref_zeros(m.c.heads * m.c.dim + KV_LANES);
            for (int64_t pos = 0; pos < m.c.n; pos++) {
                read_back(&one, &m, pos, out);
                for (int64_t c = 0; c < m.c.heads * m.c.dim; c++) {
                    float want = kvstore_at(&m.far, pos, c / m.c.dim, c % m.c.dim);
                    float same = kvstore_at(&other.far, pos, c / m.c.dim, c % m.c.dim);
                    ref_same(out + c, &want, 1, targets[t].name, "展开");
                    ref_same(&same, &want, 1, targets[t].name, "线程数");
                }
            }
            free(out);
            unmake(&m);
            unmake(&other);
        }
        backend_close(&one);
        backend_close(&two);
    }
}

/* 大的偏置分开放，量化误差与没有偏置时相当；不分开则差得多 */
static void test_bias_apart(void **state) {
    (void)state;
    RefTarget target = {.isa = "generic"};
    Backend b = ref_open(&target, 1);
    double error[3] = {0};
    for (int k = 0; k < 3; k++) { /* 无偏置；分开；不分开 */
        Made m;
        make(&m, 1, k > 0, &b);
        KvFormat f = m.far.f;
        if (k == 2) {
            f.bias = NULL;
            assert_true(kvstore_new(&m.far, &m.arena, &f, m.c.heads, m.c.dim, m.c.n, NULL));
            op_kv_quantize(&b, &m.far, &m.near, 0, m.c.n);
        }
        int64_t width = m.c.heads * m.c.dim;
        for (int64_t i = 0; i < m.c.n * width; i++) {
            double d = (double)kvstore_at(&m.far, i / width, i % width / m.c.dim, i % m.c.dim);
            error[k] += (d - (double)m.x[i]) * (d - (double)m.x[i]);
        }
        unmake(&m);
    }
    assert_true(error[1] < 1.01 * error[0]);
    assert_true(error[2] > 20 * error[0]);
    backend_close(&b);
}

typedef struct Mixed {
    int64_t n, heads, kv_heads, dim, window;
    FarRule k_rule, v_rule;
    int64_t residual;
    int half; /* 读时旋转的半维数 */
} Mixed;

/* 位置 pos、头 head 的键或值（查询在 at）的双精度值 */
static double side_value(const RefTarget *t, const AttnSide *s, int64_t at, int64_t pos,
                         int64_t head, int64_t d) {
    const KvStore *store = pos < attn_far_end(s, at) ? s->far : s->near;
    float x = kvstore_at(store, pos, head, d);
    if (s->cos_table && d < 2 * s->half) {
        int64_t i = d % s->half;
        double c = (double)s->cos_table[pos * s->half + i], sn = (double)s->sin_table[pos * s->half + i];
        double a = (double)kvstore_at(store, pos, head, i);
        double b = (double)kvstore_at(store, pos, head, i + s->half);
        x = (float)(d < s->half ? a * c - b * sn : b * c + a * sn);
    }
    return (double)ref_input(t, x);
}

static void check_row(const RefTarget *t, const Mixed *c, const float *q, const AttnSide *k,
                      const AttnSide *v, int64_t i, int64_t h, const float *got) {
    int64_t from = c->window && i >= c->window ? i - c->window + 1 : 0;
    int64_t kv = h / (c->heads / c->kv_heads);
    double p[512], max = -INFINITY, sum = 0, max_abs = 0;
    for (int64_t j = from; j <= i; j++) {
        double abs_s = 0;
        p[j] = 0;
        for (int64_t d = 0; d < c->dim; d++) {
            double x = (double)ref_input(t, q[(i * c->heads + h) * c->dim + d]) *
                       side_value(t, k, i, j, kv, d);
            p[j] += x;
            abs_s += fabs(x);
        }
        max = fmax(max, p[j] *= 0.2);
        max_abs = fmax(max_abs, 0.2 * abs_s);
    }
    for (int64_t j = from; j <= i; j++) sum += p[j] = exp(p[j] - max);
    for (int64_t d = 0; d < c->dim; d++) {
        double want = 0, max_v = 0;
        for (int64_t j = from; j <= i; j++) {
            double x = side_value(t, v, i, j, kv, d);
            want += p[j] / sum * x;
            max_v = fmax(max_v, fabs(x));
        }
        /* 旋转后再舍入到 bf16：参考的旋转有末位之差，可能差一个 bf16 的末位 */
        double half_bf16 = t->compute == COMPUTE_BF16 ? c->half ? 0x1p-6 : 0x1p-9 : 0;
        ref_near((double)got[(i * c->heads + h) * c->dim + d], want,
                 max_v * (half_bf16 + 0x1p-24 * (16 + 12 * max_abs)), t->name, "近远混合");
    }
}

static const Mixed MIXED[] = {
    {.n = 200, .heads = 4, .kv_heads = 2, .dim = 64, .k_rule = FAR_STEP, .v_rule = FAR_SLIDE, .residual = 64},
    {.n = 150, .heads = 3, .kv_heads = 1, .dim = 20, .k_rule = FAR_SLIDE, .v_rule = FAR_SLIDE, .residual = 37},
    {.n = 130, .heads = 2, .kv_heads = 2, .dim = 32, .k_rule = FAR_SLIDE, .v_rule = FAR_SLIDE},
    {.n = 140, .heads = 6, .kv_heads = 2, .dim = 48, .k_rule = FAR_ALL, .v_rule = FAR_ALL, .half = 24},
    {.n = 150, .heads = 4, .kv_heads = 2, .dim = 16, .window = 50, .k_rule = FAR_STEP,
     .v_rule = FAR_SLIDE, .residual = 32, .half = 4},
    {.n = 100, .heads = 2, .kv_heads = 1, .dim = 33, .k_rule = FAR_NONE, .v_rule = FAR_SLIDE, .residual = 9},
};

static void test_mixed(void **state) {
    (void)state;
    static const int64_t STEPS[] = {1, 13, 64};
    RefTarget targets[REF_MAX_TARGETS];
    int n_targets = ref_targets(targets);
    for (size_t m = 0; m < sizeof MIXED / sizeof *MIXED; m++) {
        const Mixed *c = &MIXED[m];
        int64_t kv_width = c->kv_heads * c->dim, width = c->heads * c->dim;
        float *x[2] = {ref_random(c->n * kv_width, 500, 1), ref_random(c->n * kv_width, 501, 1)};
        float *q = ref_random(c->n * width, 502, 1), *turn = ref_random(c->n * 64, 503, 0.5);
        float *got = ref_zeros(c->n * width), *again = ref_zeros(c->n * width);
        for (int t = 0; t < n_targets; t++) {
            Arena a = {0};
            Backend b = ref_open(&targets[t], 2);
            KvStore near[2], far[2];
            AttnSide side[2];
            for (int i = 0; i < 2; i++) {
                KvFormat dense = {.form = KV_DENSE, .dtype = i ? DT_F16 : DT_F32};
                KvFormat f = {.form = KV_AFFINE, .dtype = DT_F16, .bits = 2, .group = 16, .sink = 3};
                assert_true(kvstore_new(&near[i], &a, &dense, c->kv_heads, c->dim, c->n, NULL));
                assert_true(kvstore_new(&far[i], &a, &f, c->kv_heads, c->dim, c->n, NULL));
                op_kv_write(&b, &near[i], tensor_f32(x[i], c->n, kv_width));
                op_kv_quantize(&b, &far[i], &near[i], 0, c->n);
                side[i] = (AttnSide){.near = &near[i], .far = &far[i], .residual = c->residual,
                                     .rule = i ? c->v_rule : c->k_rule};
            }
            if (c->half) {
                side[0].cos_table = turn;
                side[0].sin_table = turn + c->n * 32;
                side[0].half = c->half;
            }
            for (int s = -1; s < 3; s++) {
                float *out = s < 0 ? got : again;
                int64_t step = s < 0 ? c->n : STEPS[s];
                for (int64_t i = 0; i < c->n; i += step) {
                    int64_t n = c->n - i < step ? c->n - i : step;
                    AttnSpec spec = {.n_heads = c->heads, .n_kv_heads = c->kv_heads,
                                     .head_dim = c->dim, .first = i, .window = c->window,
                                     .scale = 0.2f};
                    op_attention_kv(&b, tensor_f32_3d(out + i * width, n, c->heads, c->dim),
                                    tensor_f32_3d(q + i * width, n, c->heads, c->dim), &side[0],
                                    &side[1], &spec);
                    ref_check(&b);
                }
                if (s >= 0) ref_same(again, got, c->n * width, targets[t].name, "切分");
            }
            for (int64_t i = 0; i < c->n; i += 7)
                for (int64_t h = 0; h < c->heads; h++)
                    check_row(&targets[t], c, q, &side[0], &side[1], i, h, got);
            backend_close(&b);
            arena_free(&a);
        }
        free(x[0]);
        free(x[1]);
        free(q);
        free(turn);
        free(got);
        free(again);
    }
}

/* 逐 token 追加、补齐末组，与一次量化相同 */
/* TILES 与 DENSE 的 F32：逐位置添入、各种分段与窗口，注意力逐位相同；存的就是舍入到 bf16 的值。 */
static void check_tiles(const RefTarget *t, int64_t n, int64_t kv_heads, int64_t group, int64_t dim,
                        int64_t window) {
    static const int64_t STEPS[] = {1, 5, 33, 64};
    int64_t kv_width = kv_heads * dim, heads = kv_heads * group, width = heads * dim;
    float *x[2] = {ref_random(n * kv_width, 700, 1), ref_random(n * kv_width, 701, 1)};
    float *q = ref_random(n * width, 702, 1), *want = ref_zeros(n * width), *got = ref_zeros(n * width);
    Arena a = {0};
    Backend b = ref_open(t, 2);
    AttnSpec spec = {.n_heads = heads, .n_kv_heads = kv_heads, .head_dim = dim, .window = window, .scale = 0.2f};
    op_attention(&b, tensor_f32_3d(want, n, heads, dim), tensor_f32_3d(q, n, heads, dim),
                 tensor_f32_3d(x[0], n, kv_heads, dim), tensor_f32_3d(x[1], n, kv_heads, dim), &spec);
    for (size_t s = 0; s < sizeof STEPS / sizeof *STEPS && b.kv_tiles; s++) {
        KvStore store[2];
        AttnSide side[2];
        for (int i = 0; i < 2; i++) {
            KvFormat f = {.form = KV_TILES, .dtype = DT_BF16, .keys = i == 0};
            assert_true(kvstore_new(&store[i], &a, &f, kv_heads, dim, n, NULL));
            side[i] = (AttnSide){.near = &store[i]};
        }
        for (int64_t i = 0, step; i < n; i += step) {
            step = n - i < STEPS[s] ? n - i : STEPS[s];
            for (int k = 0; k < 2; k++)
                op_kv_write(&b, &store[k], tensor_f32(x[k] + i * kv_width, step, kv_width));
            spec.first = i;
            op_attention_kv(&b, tensor_f32_3d(got + i * width, step, heads, dim),
                            tensor_f32_3d(q + i * width, step, heads, dim), &side[0], &side[1], &spec);
        }
        ref_check(&b);
        ref_same(got, want, n * width, t->name, "TILES");
        for (int64_t i = 0; i < n * kv_width; i++)
            for (int k = 0; k < 2; k++)
                assert_true(kvstore_at(&store[k], i / kv_width, i % kv_width / dim, i % dim) ==
                            bf16_to_f32(f32_to_bf16(x[k][i])));
    }
    backend_close(&b);
    arena_free(&a);
    free(x[0]);
    free(x[1]);
    free(q);
    free(want);
    free(got);
}

static void test_tiles(void **state) {
    (void)state;
    RefTarget targets[REF_MAX_TARGETS];
    int n_targets = ref_targets(targets);
    for (int t = 0; t < n_targets; t++) {
        check_tiles(&targets[t], 150, 3, 3, 64, 0);
        check_tiles(&targets[t], 131, 1, 4, 40, 20);
        check_tiles(&targets[t], 70, 2, 1, 17, 0);
        check_tiles(&targets[t], 16, 1, 1, 1, 3);
    }
}

static void test_append(void **state) {
    (void)state;
    RefTarget target = {.isa = "generic"};
    Backend b = ref_open(&target, 2);
    for (int k = 0; k < N_CASES; k++) {
        Made m;
        KvStore grown;
        make(&m, k, false, &b);
        bool group = m.c.f.form == KV_AFFINE && m.c.f.per_channel;
        assert_true(kvstore_new(&grown, &m.arena, &m.far.f, m.c.heads, m.c.dim, m.c.n, NULL));
        for (int64_t t = 0; t < m.c.n; t++) {
            int64_t pos = group ? t / m.c.f.group * m.c.f.group : t;
            op_kv_quantize(&b, &grown, &m.near, pos, t + 1 - pos);
        }
        ref_check(&b);
        assert_memory_equal(grown.data, m.far.data, (size_t)(m.c.n * kvstore_code_words(&grown)) * 2);
        for (int64_t t = 0; t < m.c.n; t++)
            for (int64_t d = 0; d < m.c.dim; d++) {
                float x = kvstore_at(&grown, t, m.c.heads - 1, d);
                float y = kvstore_at(&m.far, t, m.c.heads - 1, d);
                ref_same(&x, &y, 1, "generic", "追加");
            }
        assert_int_equal(kvstore_bytes(&grown, m.c.n).outliers, kvstore_bytes(&m.far, m.c.n).outliers);
        kvstore_close(&grown);
        unmake(&m);
    }
    backend_close(&b);
}

/* 非法的规格报错；字节数按定义 */
static void test_format(void **state) {
    (void)state;
    Arena a = {0};
    Err e = {0};
    KvStore s;
    KvFormat f = {.form = KV_AFFINE, .dtype = DT_F16, .bits = 9, .group = 32};
    assert_false(kvstore_new(&s, &a, &f, 2, 64, 10, &e));
    assert_int_equal(e.code, ERR_CONFIG);
    f.bits = 2;
    f.group = 0;
    assert_false(kvstore_new(&s, &a, &f, 2, 64, 10, &e));
    f.group = 32;
    assert_false(kvstore_new(&s, &a, &f, 1024, 65, 10, &e)); /* 通道号放不进 u16 */
    assert_int_equal(e.code, ERR_UNSUPPORTED);
    assert_true(kvstore_new(&s, &a, &f, 2, 64, 10, &e));
    KvBytes b = kvstore_bytes(&s, 10);
    assert_int_equal(b.codes, 10 * 128 * 2 / 8);
    assert_int_equal(b.params, 10 * 4 * 2 * 2);
    assert_int_equal(b.dense + b.outliers, 0);
    arena_free(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantize), cmocka_unit_test(test_expand),
        cmocka_unit_test(test_bias_apart), cmocka_unit_test(test_mixed),
        cmocka_unit_test(test_append), cmocka_unit_test(test_format),
        cmocka_unit_test(test_tiles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
