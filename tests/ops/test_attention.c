/* test_attention — 注意力对照双精度参考；预填与解码、任意切分、任意线程数逐位相同
 * 误差界：f32 由 q·k 的舍入（与 Σ|q·k| 成比例）与累加决定；bf16 先把 q、k、v 舍入再做参考，只剩 p 的舍入。 */
#include "reference.h"

typedef struct Case {
    int64_t n, dim, heads, kv_heads, window, first;
    double q_scale;
    float *q, *k, *v;
    float softcap, *bias; /* bias (heads, bias_stride) */
    int64_t bias_stride;
} Case;

static void case_make(Case *c, uint64_t stream) {
    int64_t keys = c->first + c->n;
    c->q = ref_random(c->n * c->heads * c->dim, stream, c->q_scale);
    c->k = ref_random(keys * c->kv_heads * c->dim, stream + 1, 1);
    c->v = ref_random(keys * c->kv_heads * c->dim, stream + 2, 1);
}
static void case_free(Case *c) {
    free(c->q);
    free(c->k);
    free(c->v);
}
static AttnSpec case_spec(const Case *c, int64_t first) {
    return (AttnSpec){.n_heads = c->heads, .n_kv_heads = c->kv_heads, .head_dim = c->dim,
                      .first = first, .window = c->window, .scale = 1.0f / sqrtf((float)c->dim)};
}

/* 查询 [i0, i0+n) 一次算完 */
static void attend(Backend *b, const Case *c, float *out, int64_t i0, int64_t n) {
    int64_t width = c->heads * c->dim, keys = c->first + i0 + n;
    AttnSpec s = case_spec(c, c->first + i0);
    op_attention(b, tensor_f32_3d(out + i0 * width, n, c->heads, c->dim),
                 tensor_f32_3d(c->q + i0 * width, n, c->heads, c->dim),
                 tensor_f32_3d(c->k, keys, c->kv_heads, c->dim),
                 tensor_f32_3d(c->v, keys, c->kv_heads, c->dim), &s);
    ref_check(b);
}

/* 一行的双精度参考；返回该行的误差界 */
static double reference_row(const RefTarget *t, const Case *c, int64_t i, int64_t h, double *out) {
    int64_t pos = c->first + i, from = c->window && pos >= c->window ? pos - c->window + 1 : 0;
    int64_t kv = h / (c->heads / c->kv_heads), kv_width = c->kv_heads * c->dim;
    const float *q = c->q + (i * c->heads + h) * c->dim;
    double scale = 1.0 / sqrt((double)c->dim), max = -INFINITY, max_abs = 0, sum = 0, max_v = 0;
    double *p = malloc(sizeof *p * (size_t)(pos + 1));
    assert_non_null(p);
    for (int64_t j = from; j <= pos; j++) {
        double s = 0, abs_s = 0;
        for (int64_t d = 0; d < c->dim; d++) {
            double x = (double)ref_input(t, q[d]) *
                       (double)ref_input(t, c->k[j * kv_width + kv * c->dim + d]);
            s += x;
            abs_s += fabs(x);
        }
        p[j] = s * scale;
        double top = abs_s * scale + (double)c->softcap;
        if (c->softcap > 0) p[j] = (double)c->softcap * tanh(p[j] / (double)c->softcap);
        if (c->bias) p[j] += (double)c->bias[h * c->bias_stride + j], top += fabs((double)c->bias[h * c->bias_stride + j]);
        if (p[j] > max) max = p[j];
        if (top > max_abs) max_abs = top;
    }
    for (int64_t j = from; j <= pos; j++) sum += p[j] = exp(p[j] - max);
    for (int64_t d = 0; d < c->dim; d++) out[d] = 0;
    for (int64_t j = from; j <= pos; j++)
        for (int64_t d = 0; d < c->dim; d++) {
            double v = (double)ref_input(t, c->v[j * kv_width + kv * c->dim + d]);
            out[d] += p[j] / sum * v;
            if (fabs(v) > max_v) max_v = fabs(v);
        }
    free(p);
    double eps = 0x1p-24, half_bf16 = t->compute == COMPUTE_BF16 ? 0x1p-9 : 0;
    return max_v * (half_bf16 + eps * (16 + 6 * max_abs));
}

static void compare(const RefTarget *t, const Case *c, const float *got) {
    double *want = malloc(sizeof *want * (size_t)c->dim);
    assert_non_null(want);
    char what[160];
    for (int64_t i = 0; i < c->n; i++)
        for (int64_t h = 0; h < c->heads; h++) {
            double bound = reference_row(t, c, i, h, want);
            for (int64_t d = 0; d < c->dim; d++) {
                snprintf(what, sizeof what,
                         "n=%d dim=%d heads=%d/%d window=%d first=%d 的 (%d,%d,%d)", (int)c->n,
                         (int)c->dim, (int)c->heads, (int)c->kv_heads, (int)c->window,
                         (int)c->first, (int)i, (int)h, (int)d);
                ref_near((double)got[(i * c->heads + h) * c->dim + d], want[d], bound, t->name,
                         what);
            }
        }
    free(want);
}

/* 随机取遍形状的组合；参考只看舍入后的输入，所以各后端各算一遍 */
static void test_shapes(void **state) {
    (void)state;
    static const int64_t NS[] = {1, 2, 3, 17, 63, 64, 65, 130, 140};
    static const int64_t DIMS[] = {1, 7, 8, 16, 32, 48, 64, 80, 128, 256};
    static const int64_t HEADS[][2] = {{1, 1}, {4, 2}, {9, 3}, {8, 1}};
    static const int64_t WINDOWS[] = {0, 1, 16, 100}, FIRSTS[] = {0, 1, 63, 64, 200};
    RefTarget targets[REF_MAX_TARGETS];
    int n_targets = ref_targets(targets);
    Backend b[REF_MAX_TARGETS];
    for (int t = 0; t < n_targets; t++) b[t] = ref_open(&targets[t], 2);
    for (uint64_t k = 0; k < 200; k++) {
        const int64_t *h = HEADS[rng_below(77, 2, k, 4)];
        Case c = {.n = REF_PICK(0, k, NS), .dim = REF_PICK(1, k, DIMS), .heads = h[0],
                  .kv_heads = h[1], .window = REF_PICK(3, k, WINDOWS),
                  .first = REF_PICK(4, k, FIRSTS), .q_scale = 1};
        case_make(&c, 1000 + 3 * k);
        float *out = ref_zeros(c.n * c.heads * c.dim);
        for (int t = (int)(k % 2); t < n_targets; t += 2) {
            attend(&b[t], &c, out, 0, c.n);
            compare(&targets[t], &c, out);
        }
        free(out);
        case_free(&c);
    }
    for (int t = 0; t < n_targets; t++) backend_close(&b[t]);
}

static const Case ORDER_CASES[] = {
    {.n = 200, .dim = 64, .heads = 9, .kv_heads = 3, .q_scale = 2},
    {.n = 150, .dim = 80, .heads = 4, .kv_heads = 2, .window = 37, .first = 29, .q_scale = 1},
    {.n = 131, .dim = 15, .heads = 8, .kv_heads = 1, .window = 100, .first = 64, .q_scale = 3},
};

/* 整段预填 = 任意切分 = 逐 token 解码，线程数任意 */
static void test_bit_equality(void **state) {
    (void)state;
    static const int64_t STEPS[] = {1, 7, 64, 79};
    RefTarget targets[REF_MAX_TARGETS];
    int n_targets = ref_targets(targets);
    for (size_t k = 0; k < sizeof ORDER_CASES / sizeof *ORDER_CASES; k++) {
        Case c = ORDER_CASES[k];
        case_make(&c, 9000 + 3 * k);
        int64_t size = c.n * c.heads * c.dim;
        float *want = ref_zeros(size), *got = ref_zeros(size);
        for (int t = 0; t < n_targets; t++)
            for (int threads = 1; threads <= 3; threads++) {
                Backend b = ref_open(&targets[t], threads);
                attend(&b, &c, threads == 1 ? want : got, 0, c.n);
                if (threads > 1) ref_same(got, want, size, targets[t].name, "线程数");
                for (int s = 0; s < 4; s++) {
                    memset(got, 0, sizeof *got * (size_t)size);
                    for (int64_t i = 0; i < c.n; i += STEPS[s])
                        attend(&b, &c, got, i, c.n - i < STEPS[s] ? c.n - i : STEPS[s]);
                    ref_same_row(got, want, size, targets[t].name, "切分");
                }
                backend_close(&b);
            }
        free(want);
        free(got);
        case_free(&c);
    }
}

/* 看不见的键值（未来、窗外）是 NaN 也不影响结果 */
static void test_isolation(void **state) {
    (void)state;
    RefTarget targets[REF_MAX_TARGETS];
    int n_targets = ref_targets(targets);
    for (int t = 0; t < n_targets; t++) {
        Case c = {.n = 100, .dim = 32, .heads = 6, .kv_heads = 2, .window = 21, .q_scale = 1};
        case_make(&c, 700);
        int64_t width = c.heads * c.dim, kv_width = c.kv_heads * c.dim;
        float *want = ref_zeros(c.n * width), *got = ref_zeros(c.n * width);
        Backend b = ref_open(&targets[t], 2);
        attend(&b, &c, want, 0, c.n);
        for (int64_t bad = 40; bad <= 71; bad++) {
            float k0 = c.k[bad * kv_width], v0 = c.v[bad * kv_width];
            c.k[bad * kv_width] = c.v[bad * kv_width] = NAN;
            attend(&b, &c, got, 0, c.n);
            c.k[bad * kv_width] = k0;
            c.v[bad * kv_width] = v0;
            int64_t end = bad + c.window;
            ref_same(got, want, bad * width, targets[t].name, "未来的 NaN");
            assert_true(isnan(got[bad * width]));
            assert_true(isnan(got[(end - 1) * width]));
            ref_same(got + end * width, want + end * width, (c.n - end) * width, targets[t].name,
                     "窗外的 NaN");
        }
        backend_close(&b);
        free(want);
        free(got);
        case_free(&c);
    }
}

/* 极端的 logits：±1e4 量级、全部相等、一个远大于其余 */
static void test_extremes(void **state) {
    (void)state;
    RefTarget targets[REF_MAX_TARGETS];
    int n_targets = ref_targets(targets);
    for (int t = 0; t < n_targets; t++) {
        Case c = {.n = 70, .dim = 16, .heads = 2, .kv_heads = 1, .first = 10, .q_scale = 4e3};
        case_make(&c, 800);
        int64_t size = c.n * c.heads * c.dim;
        float *out = ref_zeros(size);
        Backend b = ref_open(&targets[t], 2);
        attend(&b, &c, out, 0, c.n);
        compare(&targets[t], &c, out);
        memset(c.q, 0, sizeof *c.q * (size_t)size); /* 全相等：结果是均值 */
        attend(&b, &c, out, 0, c.n);
        compare(&targets[t], &c, out);
        for (int64_t i = 0; i < size; i++) c.q[i] = 1;
        for (int64_t i = 0; i < (c.first + c.n) * c.dim; i++) c.k[i] = -3e35f;
        for (int64_t d = 0; d < c.dim; d++) c.k[5 * c.dim + d] = 0; /* 只有键 5 有权重 */
        attend(&b, &c, out, 0, c.n);
        for (int64_t i = 0; i < size; i++)
            ref_near((double)out[i], (double)ref_input(&targets[t], c.v[5 * c.dim + i % c.dim]), 0,
                     targets[t].name, "独占的键");
        backend_close(&b);
        free(out);
        case_free(&c);
    }
}

enum { STEP_ROOM = 480, BIAS_STRIDE = 512 };
typedef struct Step {
    DType type;
    int64_t n, heads, kv, dim, half;
    bool pairs;
    int64_t window;
    bool shaped; /* 软截断与偏置 */
} Step;
/* 第 i 条时间线已有几个键：从 0 到 STEP_ROOM - 1，长短相间。 */
static int64_t step_past(int64_t i) {
    static const int64_t FIRST[] = {130, 0, 1, 63, 64, STEP_ROOM - 1};
    return i < 6 ? FIRST[i] : (i * 181 + 7) % STEP_ROOM;
}

/* 一条时间线对照双精度参考：q、k 已旋转，past 是原来的键值。 */
static void compare_step(const RefTarget *t, const Step *s, const AttnSpec *spec, const float *const past[2], int64_t len, const float *q,
                         const float *k, const float *v, const float *got) {
    int64_t narrow = s->kv * s->dim;
    const float *fresh[2] = {k, v};
    float *all[2];
    for (int side = 0; side < 2; side++) {
        all[side] = ref_zeros((len + 1) * narrow);
        for (int64_t i = 0; i < (len + 1) * narrow; i++)
            all[side][i] = i < len * narrow ? past[side][i] : fresh[side][i - len * narrow];
        for (int64_t i = 0; s->type == DT_F16 && i < (len + 1) * narrow; i++) all[side][i] = f16_to_f32(f32_to_f16(all[side][i]));
    }
    Case c = {.n = 1, .dim = s->dim, .heads = s->heads, .kv_heads = s->kv, .window = s->window, .first = len,
              .q = (float *)q, .k = all[0], .v = all[1], .softcap = spec->softcap, .bias = (float *)spec->bias,
              .bias_stride = spec->bias_stride};
    compare(t, &c, got);
    free(all[0]);
    free(all[1]);
}

/* 输出存成 bf16 的一份（CUDA），与 f32 的只差舍入；k、q 是没有旋转过的，缓存退回一步。 */
static void step_in_half(Backend *b, const StepJob *first, const float *q, const float *k) {
    int64_t wide = first->spec.n_heads * first->spec.head_dim, n = first->n * wide, narrow = first->n * first->spec.n_kv_heads * first->spec.head_dim;
    StepJob job = *first;
    uint16_t *out = malloc((size_t)n * sizeof *out);
    assert_non_null(out);
    job.q = ref_zeros(n), job.k = ref_zeros(narrow), job.out = out, job.half_out = true;
    memcpy(job.q, q, (size_t)n * sizeof *q), memcpy(job.k, k, (size_t)narrow * sizeof *k);
    for (int64_t i = 0; i < job.n; i++) job.rows[i].k->length--, job.rows[i].v->length--;
    op_attend_step(b, &job);
    ref_check(b);
    for (int64_t i = 0; i < n; i++) assert_int_equal(out[i], f32_to_bf16(((const float *)first->out)[i]));
    free(job.q);
    free(job.k);
    free(out);
}

/* 各条时间线走一步 = 分开旋转、写入、算注意力，也合双精度参考 */
static void step_case(const RefTarget *t, const Step *s) {
    int64_t n = s->n, dim = s->dim, wide = s->heads * dim, narrow = s->kv * dim;
    Backend b = ref_open(t, 2);
    Arena arena = {0};
    KvFormat f = {.form = KV_DENSE, .dtype = s->type};
    KvStore store[2][STEP_MAX_ROWS][2];
    StepRow rows[STEP_MAX_ROWS];
    float *past[STEP_MAX_ROWS][2];
    float *bias = s->shaped ? ref_random(s->heads * BIAS_STRIDE, 66, 3) : NULL;
    float *cos_t = ref_random(STEP_ROOM * s->half, 61, 0.7), *sin_t = ref_random(STEP_ROOM * s->half, 62, 0.7);
    float *q[2], *k[2], *v = ref_random(n * narrow, 65, 1), *out[2] = {ref_zeros(n * wide), ref_zeros(n * wide)};
    for (int64_t i = 0; i < n; i++)
        for (int side = 0; side < 2; side++)
            past[i][side] = ref_random((step_past(i) + 1) * narrow, 70 + (uint64_t)(2 * i + side), 1);
    for (int c = 0; c < 2; c++) {
        q[c] = ref_random(n * wide, 63, 1), k[c] = ref_random(n * narrow, 64, 1);
        for (int64_t i = 0; i < n; i++)
            for (int side = 0; side < 2; side++) {
                KvStore *to = &store[c][i][side];
                assert_true(kvstore_new(to, &arena, &f, s->kv, dim, STEP_ROOM, NULL));
                if (step_past(i)) op_kv_write(&b, to, tensor_f32(past[i][side], step_past(i), narrow));
            }
    }
    StepJob job = {.n = n, .rows = rows, .q = q[0], .k = k[0], .v = v, .out = out[0], .cos_table = cos_t,
                   .sin_table = sin_t, .half = s->half, .interleaved = s->pairs,
                   .spec = {.n_heads = s->heads, .n_kv_heads = s->kv, .head_dim = dim, .window = s->window, .scale = 1 / sqrtf((float)dim),
                            .softcap = s->shaped ? 2.5f : 0, .bias = bias, .bias_stride = bias ? BIAS_STRIDE : 0}};
    for (int64_t i = 0; i < n; i++) rows[i] = (StepRow){&store[0][i][0], &store[0][i][1], step_past(i)};
    op_attend_step(&b, &job);
    if (b.half_step) step_in_half(&b, &job, q[1], k[1]);
    for (int64_t i = 0; i < n; i++) {
        Tensor tq = tensor_f32_3d(q[1] + i * wide, 1, s->heads, dim), tk = tensor_f32_3d(k[1] + i * narrow, 1, s->kv, dim);
        Tensor co = tensor_f32(cos_t, STEP_ROOM, s->half), si = tensor_f32(sin_t, STEP_ROOM, s->half);
        (s->pairs ? op_rope_pairs : op_rope)(&b, tq, co, si, step_past(i));
        (s->pairs ? op_rope_pairs : op_rope)(&b, tk, co, si, step_past(i));
        op_kv_write(&b, &store[1][i][0], tensor_f32(k[1] + i * narrow, 1, narrow));
        op_kv_write(&b, &store[1][i][1], tensor_f32(v + i * narrow, 1, narrow));
        AttnSpec spec = job.spec;
        spec.first = step_past(i);
        op_attention_kv(&b, tensor_f32_3d(out[1] + i * wide, 1, s->heads, dim), tq, &(AttnSide){.near = &store[1][i][0]},
                        &(AttnSide){.near = &store[1][i][1]}, &spec);
        assert_int_equal(store[0][i][0].length, store[1][i][0].length);
        compare_step(t, s, &spec, (const float *const *)past[i], step_past(i), q[1] + i * wide, k[1] + i * narrow, v + i * narrow,
                     out[0] + i * wide);
    }
    ref_check(&b);
    size_t row = (size_t)narrow * (s->type == DT_F32 ? 4 : 2);
    for (int64_t i = 0; i < n; i++)
        for (int side = 0; side < 2; side++) {
            assert_memory_equal((char *)store[0][i][side].data + (size_t)step_past(i) * row,
                                (char *)store[1][i][side].data + (size_t)step_past(i) * row, row);
            free(past[i][side]);
        }
    ref_same_row(out[0], out[1], n * wide, t->name, "一步");
    for (int c = 0; c < 2; c++) {
        free(q[c]);
        free(k[c]);
        free(out[c]);
    }
    free(v);
    free(bias);
    free(cos_t);
    free(sin_t);
    arena_free(&arena);
    backend_close(&b);
}

static void test_step(void **state) {
    (void)state;
    static const Step CASES[] = {
        {DT_F32, 5, 6, 2, 64, 32, false, 0, false},    {DT_F16, 5, 6, 2, 128, 64, false, 100, false},
        {DT_F16, 5, 6, 2, 80, 20, true, 0, false},     {DT_F16, 1, 8, 2, 128, 64, false, 0, false},
        {DT_F16, 32, 8, 2, 128, 64, false, 0, false},  {DT_F16, 32, 4, 4, 64, 32, false, 0, true},
        {DT_F16, 9, 14, 2, 64, 16, true, 0, false},    {DT_F16, 17, 8, 1, 80, 40, false, 200, false},
        {DT_F16, 3, 20, 1, 96, 48, false, 0, true},    {DT_F16, 2, 34, 2, 64, 32, false, 31, false},
        {DT_F16, 6, 4, 1, 128, 64, true, 1, false},    {DT_F16, 7, 2, 1, 256, 128, false, 0, false},
        {DT_F32, 12, 8, 2, 128, 64, false, 64, false}, {DT_F16, 4, 4, 2, 48, 24, false, 0, true}};
    RefTarget targets[REF_MAX_TARGETS];
    int n = ref_targets(targets);
    for (int t = 0; t < n; t++)
        for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) step_case(&targets[t], &CASES[i]);
}

enum { PIECES = 4, PIECE_ROWS = 1 + 65 + 33 + 200 };
static const PrefillSegment SEGMENTS[PIECES] = {{0, 1}, {1, 65}, {66, 33}, {99, 200}};

/* f32 的数就地换成 bf16；换回来在 unpack。 */
static void pack_half(float *x, int64_t n) {
    uint16_t *to = (uint16_t *)(void *)x;
    for (int64_t i = 0; i < n; i++) {
        float v;
        memcpy(&v, (char *)x + i * (int64_t)sizeof v, sizeof v);
        uint16_t u = f32_to_bf16(v);
        memcpy(to + i, &u, sizeof u);
    }
}
static void unpack_half(float *x, int64_t n) {
    for (int64_t i = n - 1; i >= 0; i--) {
        uint16_t u;
        memcpy(&u, (char *)x + i * (int64_t)sizeof u, sizeof u);
        float v = bf16_to_f32(u);
        memcpy((char *)x + i * (int64_t)sizeof v, &v, sizeof v);
    }
}
typedef struct Prefill {
    int64_t dim, heads, kv, half;
    bool pairs, half_in, half_out, f16;
} Prefill;

/* 各段一趟 = 逐段旋转再算注意力：CPU 上逐位相同；bf16、f16 的几种存法对照双精度参考。 */
static void prefill_case(const RefTarget *t, const Prefill *p) {
    int64_t wide = p->heads * p->dim, narrow = p->kv * p->dim;
    Backend b = ref_open(t, 2);
    float *cos_t = ref_random(PIECE_ROWS * p->half, 81, 0.7), *sin_t = ref_random(PIECE_ROWS * p->half, 82, 0.7);
    float *q[2], *k[2], *v[2], *out = ref_zeros(PIECE_ROWS * wide), *want = ref_zeros(PIECE_ROWS * wide);
    for (int c = 0; c < 2; c++) {
        q[c] = ref_random(PIECE_ROWS * wide, 83, 1), k[c] = ref_random(PIECE_ROWS * narrow, 84, 1);
        v[c] = ref_random(PIECE_ROWS * narrow, 85, 1);
    }
    PrefillJob job = {.n = PIECES, .segments = SEGMENTS, .q = q[0], .k = k[0], .v = v[0], .out = out, .half = p->half,
                      .cos_table = p->half ? cos_t : NULL, .sin_table = p->half ? sin_t : NULL, .interleaved = p->pairs, .half_in = p->half_in,
                      .half_out = p->half_out, .f16 = p->f16,
                      .spec = {.n_heads = p->heads, .n_kv_heads = p->kv, .head_dim = p->dim, .scale = 1 / sqrtf((float)p->dim)}};
    bool special = p->half_in || p->half_out || p->f16;
    if (!special || op_prefill_accepts(&b, &job, PIECE_ROWS)) {
        for (int64_t i = 0; p->half_in && i < PIECE_ROWS * wide; i++) q[1][i] = ref_bf16(q[1][i]);
        for (int64_t i = 0; p->half_in && i < PIECE_ROWS * narrow; i++)
            k[1][i] = ref_bf16(k[1][i]), v[1][i] = ref_bf16(v[1][i]);
        if (p->half_in) pack_half(q[0], PIECE_ROWS * wide), pack_half(k[0], PIECE_ROWS * narrow), pack_half(v[0], PIECE_ROWS * narrow);
        op_attend_prefill(&b, &job);
        ref_check(&b);
        if (p->half_out) unpack_half(out, PIECE_ROWS * wide);
        for (int i = 0; i < PIECES; i++) {
            int64_t row = SEGMENTS[i].row0, n = SEGMENTS[i].n;
            Tensor tq = tensor_f32_3d(q[1] + row * wide, n, p->heads, p->dim), tk = tensor_f32_3d(k[1] + row * narrow, n, p->kv, p->dim);
            Tensor co = tensor_f32(cos_t, PIECE_ROWS, p->half), si = tensor_f32(sin_t, PIECE_ROWS, p->half);
            if (p->half) (p->pairs ? op_rope_pairs : op_rope)(&b, tq, co, si, 0), (p->pairs ? op_rope_pairs : op_rope)(&b, tk, co, si, 0);
            for (int64_t e = row * narrow; p->f16 && e < (row + n) * narrow; e++)
                k[1][e] = f16_to_f32(f32_to_f16(k[1][e])), v[1][e] = f16_to_f32(f32_to_f16(v[1][e]));
            Case c = {.n = n, .dim = p->dim, .heads = p->heads, .kv_heads = p->kv, .q = q[1] + row * wide,
                      .k = k[1] + row * narrow, .v = v[1] + row * narrow};
            attend(&b, &c, want + row * wide, 0, n);
            if (!p->half_out) compare(t, &c, out + row * wide);
        }
        if (!special && !ref_on_cuda()) ref_same(out, want, PIECE_ROWS * wide, t->name, "预填");
        for (int64_t i = 0; i < PIECE_ROWS * wide; i++)
            ref_near((double)out[i], (double)want[i], 0x1p-7 * (1 + fabs((double)want[i])), t->name, "预填与逐段");
    }
    for (int c = 0; c < 2; c++) free(q[c]), free(k[c]), free(v[c]);
    free(cos_t), free(sin_t), free(out), free(want);
    backend_close(&b);
}

static void test_prefill(void **state) {
    (void)state;
    static const Prefill CASES[] = {
        {64, 4, 2, 32, false, false, false, false}, {128, 4, 1, 64, false, true, true, true},
        {64, 3, 1, 16, false, true, false, false},  {64, 4, 4, 32, true, false, true, true},
        {128, 2, 1, 32, true, true, true, false},   {128, 2, 2, 0, false, false, false, true},
        {80, 2, 1, 20, true, false, false, false}};
    RefTarget targets[REF_MAX_TARGETS];
    int n = ref_targets(targets);
    for (int t = 0; t < n; t++)
        for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) prefill_case(&targets[t], &CASES[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_bit_equality),
        cmocka_unit_test(test_isolation),
        cmocka_unit_test(test_extremes), cmocka_unit_test(test_step), cmocka_unit_test(test_prefill),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
