/* test_linear_int8 — 激活量化的线性层：指令集 × 形状 × 零点 × 激活的三种量化
 * 参考是逐元素的 64 位整数和与单独写出的两次乘法一次加法，须逐位相同；再与双精度的 Σ w·x 对照，
 * 误差不超过两边取整半格的上界。批大小、线程数不改变任何一位；非有限的激活只影响它那一行。 */
#include "tests/ops/reference.h"

static const char *const ISAS[] = {"generic", "avx2", "avx512", "avx512_bf16"};
static const int64_t ROWS[] = {1, 15, 16, 17, 33, 100, 130};
static const int64_t COLS[] = {1, 3, 31, 32, 33, 64, 100, 576, 1700};
static const int64_t BATCHES[] = {1, 2, 3, 13, 14, 15, 29, 60};
#define COUNT(a) (sizeof(a) / sizeof(a)[0])

static Arena arena;

static float *new_floats(int64_t n) {
    float *x = ARENA_ARRAY(&arena, float, n, NULL);
    assert_non_null(x);
    return x;
}

static bool open_isa(Backend *b, const char *isa, int threads) {
    Err e = {0};
    if (ref_backend(b, threads, COMPUTE_F32, isa, &e)) return true;
    assert_int_equal(e.code, ERR_UNSUPPORTED);
    return false;
}

/* 随机权重按 spec 量化；permuted 时列另有次序。 */
static QTensor make_weight(QSpec spec, int64_t rows, int64_t cols, bool permuted) {
    Backend b;
    assert_true(open_isa(&b, "generic", 1));
    QTensor q;
    assert_true(qtensor_new(&q, &arena, spec, rows, cols, NULL));
    float *w = new_floats(rows * cols), *s = new_floats(rows), *z = new_floats(rows);
    ref_fill(w, rows * cols, (uint64_t)(rows * 31 + cols), 0.7);
    Tensor tw = tensor_f32(w, rows, cols), ts = tensor_f32(s, rows, 1), tz = tensor_f32(z, rows, 1);
    op_qparams(&b, ts, tz, tw, &q.spec);
    op_quantize(&b, &q, tw, ts, tz);
    if (permuted) {
        int32_t *perm = ARENA_ARRAY(&arena, int32_t, cols, NULL);
        for (int64_t i = 0; i < cols; i++) perm[i] = (int32_t)(cols - 1 - i);
        assert_true(qtensor_set_perm(&q, &arena, perm, NULL));
    }
    ref_check(&b);
    backend_close(&b);
    return q;
}

/* 一行的 s：absmax 已知。 */
static float scale_of(const ActQuant *act, float row_max, float all_max) {
    float top = (float)((1 << (act->bits - 1)) - 1);
    if (act->kind == ACT_STATIC) return act->scale;
    return fmaxf(act->kind == ACT_TOKEN ? row_max : all_max, 1e-5f) * (1 / top);
}

static float absmax_of(const float *x, int64_t n) {
    float m = 0;
    for (int64_t i = 0; i < n; i++) m = fmaxf(m, fabsf(x[i]));
    return m;
}

static int code_of(float x, float s, int bits) {
    int top = (1 << (bits - 1)) - 1;
    float q = rintf(x / s);
    return q > (float)top ? top : q < (float)(-top - 1) ? -top - 1 : (int)q;
}

/* 逐元素的参考；取整的误差界另以双精度核对。 */
static void reference(float *y, const float *x, int64_t n, const QTensor *w, const float *bias,
                      const ActQuant *act) {
    float all = absmax_of(x, n * w->cols);
    for (int64_t i = 0; i < n; i++) {
        const float *row = x + i * w->cols;
        float s = scale_of(act, absmax_of(row, w->cols), all);
        for (int64_t r = 0; r < w->rows; r++) {
            int64_t sum = 0;
            double exact = bias ? (double)bias[r] : 0, bound = 0;
            int zero = (int)qtensor_zero(w, r, 0);
            for (int64_t c = 0; c < w->cols; c++) {
                float v = row[w->perm ? w->perm[c] : c];
                int code = code_of(v, s, act->bits);
                sum += (int64_t)(qtensor_code(w, r, c) - zero) * code;
                exact += (double)v * qtensor_at(w, r, c);
                double lost = fabs((double)v - (double)s * code);
                if (act->kind != ACT_STATIC) assert_true(lost <= 0.5000002 * (double)s);
                bound += lost * fabs((double)qtensor_at(w, r, c));
            }
            assert_true(llabs(sum) < INT32_MAX);
            float dot = (float)(int32_t)sum * (qtensor_scale(w, r, 0) * s);
            float *out = &y[i * w->rows + r];
            *out = bias ? dot + bias[r] : dot;
            ref_near(*out, exact, bound + 1e-5 * (fabs(exact) + 1), "参考", "与双精度");
        }
    }
}

static void run_case(const QTensor *w, int64_t n, bool with_bias, const ActQuant *act) {
    ArenaMark mark = arena_mark(&arena);
    float *x = new_floats(n * w->cols), *y = new_floats(n * w->rows), *want = new_floats(n * w->rows);
    float *bias = with_bias ? new_floats(w->rows) : NULL;
    ref_fill(x, n * w->cols, (uint64_t)n, 1.5);
    memset(x + (n - 1) * w->cols, 0, (size_t)(n > 2 ? w->cols : 0) * sizeof *x); /* 全零的一行 */
    if (bias) ref_fill(bias, w->rows, 5, 1);
    reference(want, x, n, w, bias, act);
    Tensor tb = tensor_f32_1d(bias, w->rows);
    for (size_t i = 0; i < COUNT(ISAS) * 2; i++) {
        Backend b;
        if (!open_isa(&b, ISAS[i / 2], 1 + 2 * (int)(i % 2))) continue;
        memset(y, 0xAB, (size_t)(n * w->rows) * sizeof *y);
        op_linear_int8(&b, tensor_f32(y, n, w->rows), tensor_f32(x, n, w->cols), w, tb, act);
        ref_same(y, want, n * w->rows, ISAS[i / 2], "整批");
        for (int64_t r = 0; act->kind != ACT_TENSOR && r < n; r += n > 20 ? 9 : 1) {
            op_linear_int8(&b, tensor_f32(y, 1, w->rows), tensor_f32(x + r * w->cols, 1, w->cols),
                           w, tb, act);
            ref_same(y, want + r * w->rows, w->rows, ISAS[i / 2], "单行");
        }
        ref_check(&b);
        backend_close(&b);
    }
    arena_rewind(&arena, mark);
}

static void test_shapes(void **state) {
    (void)state;
    size_t i = 0;
    for (size_t r = 0; r < COUNT(ROWS); r++)
        for (size_t c = 0; c < COUNT(COLS); c++, i++) {
            ArenaMark mark = arena_mark(&arena);
            QSpec spec = {.bits = 8, .group_size = -1, .zero = i % 3 ? ZERO_SYM : ZERO_INT,
                          .scale_dtype = i % 4 ? DT_F32 : DT_F16,
                          .grid = i % 3 == 1 ? GRID_ABSMAX : i % 3 == 2 ? GRID_TENSOR : GRID_GPTQ, CODE_INT};
            QTensor w = make_weight(spec, ROWS[r], COLS[c], i % 5 == 0);
            ActQuant act = {.kind = ACT_TOKEN + (ActKind)(i % 3), .bits = i % 7 ? 8 : 4,
                            .scale = 0.01f};
            run_case(&w, BATCHES[i % COUNT(BATCHES)], i % 2, &act);
            arena_rewind(&arena, mark);
        }
}

/* 编码与激活都取极值：没有饱和、没有溢出。 */
static void test_extremes(void **state) {
    (void)state;
    enum { K = 1600, N = 17 };
    QSpec spec = {.bits = 8, .group_size = -1, .zero = ZERO_INT, .scale_dtype = DT_F32};
    QTensor w;
    assert_true(qtensor_new(&w, &arena, spec, 2, K, NULL));
    for (int64_t r = 0; r < 2; r++) {
        qtensor_set_scale(&w, r, 0, 1);
        qtensor_set_zero(&w, r, 0, r ? 255 : 0);
        for (int64_t c = 0; c < K; c++) qtensor_set_code(&w, r, c, r ? 0 : 255);
    }
    float *x = new_floats(N * K), *y = new_floats(N * 2);
    for (int64_t i = 0; i < N * K; i++) x[i] = i / K % 2 ? -1000 : 1000; /* 超出静态范围 */
    ActQuant act = {.kind = ACT_STATIC, .bits = 8, .scale = 1};
    for (size_t i = 0; i < COUNT(ISAS); i++) {
        Backend b;
        if (!open_isa(&b, ISAS[i], 2)) continue;
        op_linear_int8(&b, tensor_f32(y, N, 2), tensor_f32(x, N, K), &w, (Tensor){0}, &act);
        for (int64_t r = 0; r < N; r++) {
            float q = r % 2 ? -128 : 127;
            assert_true(y[2 * r] == 255 * q * K && y[2 * r + 1] == -255 * q * K);
        }
        ref_check(&b);
        backend_close(&b);
    }
}

static void test_not_finite(void **state) {
    (void)state;
    QSpec spec = {.bits = 8, .group_size = -1, .zero = ZERO_SYM, .scale_dtype = DT_F32,
                  .grid = GRID_ABSMAX, CODE_INT};
    QTensor w = make_weight(spec, 20, 40, false);
    float x[15 * 40], y[15 * 20], z[15 * 40];
    static const ActKind KINDS[] = {ACT_TOKEN, ACT_STATIC};
    for (size_t i = 0; i < COUNT(ISAS) * COUNT(KINDS); i++) {
        Backend b;
        if (!open_isa(&b, ISAS[i / COUNT(KINDS)], 1)) continue;
        ActQuant act = {.kind = KINDS[i % COUNT(KINDS)], .bits = 8, .scale = 0.02f};
        ref_fill(x, 15 * 40, 3, 1);
        x[2 * 40 + 39] = NAN;
        x[7 * 40 + 5] = -INFINITY;
        op_linear_int8(&b, tensor_f32(y, 15, 20), tensor_f32(x, 15, 40), &w, (Tensor){0}, &act);
        memcpy(z, x, sizeof x);
        op_round_act(&b, tensor_f32(z, 15, 40), &act);
        for (int k = 0; k < 15 * 20; k++)
            assert_int_equal(isnan(y[k]) != 0, k / 20 == 2 || k / 20 == 7);
        for (int k = 0; k < 15 * 40; k++)
            assert_int_equal(isnan(z[k]) != 0, k / 40 == 2 || k / 40 == 7);
        backend_close(&b);
    }
}

static void test_round_act(void **state) {
    (void)state;
    static const int64_t WIDTHS[] = {1, 15, 64, 192, 577};
    for (size_t i = 0; i < COUNT(ISAS) * COUNT(WIDTHS) * 3; i++) {
        int64_t n = 5, d = WIDTHS[i / 3 % COUNT(WIDTHS)];
        ActQuant act = {.kind = ACT_TOKEN + (ActKind)(i % 3), .bits = i % 2 ? 8 : 6, .scale = 0.03f};
        Backend b;
        if (!open_isa(&b, ISAS[i / 3 / COUNT(WIDTHS)], 2)) continue;
        ArenaMark mark = arena_mark(&arena);
        float *x = new_floats(n * d), *y = new_floats(n * d);
        ref_fill(x, n * d, i, 2);
        memcpy(y, x, (size_t)(n * d) * sizeof *x);
        op_round_act(&b, tensor_f32(y, n, d), &act);
        for (int64_t k = 0; k < n * d; k++) {
            float s = scale_of(&act, absmax_of(x + k / d * d, d), absmax_of(x, n * d));
            assert_true(y[k] == s * (float)code_of(x[k], s, act.bits));
        }
        ref_check(&b);
        backend_close(&b);
        arena_rewind(&arena, mark);
    }
}

/* max|w| 的格点：逐行、逐组、整个矩阵；全零与极小的行不除以零。 */
static void test_absmax_grid(void **state) {
    (void)state;
    enum { R = 21, C = 70, G = 32, N_G = 3 };
    float w[R * C], scale[R * N_G], zero[R * N_G];
    ref_fill(w, R * C, 8, 0.3);
    for (int c = 0; c < C; c++) w[3 * C + c] = 0, w[4 * C + c] *= 1e-7f;
    for (size_t i = 0; i < COUNT(ISAS) * 4; i++) {
        bool tensor = i % 2;
        int64_t group = i / 2 % 2 ? G : -1, groups = group < 0 ? 1 : N_G;
        QSpec s = {.bits = 8, .group_size = group, .zero = ZERO_SYM, .scale_dtype = DT_F32,
                   .grid = tensor ? GRID_TENSOR : GRID_ABSMAX, CODE_INT};
        Backend b;
        if (!open_isa(&b, ISAS[i / 4], 2)) continue;
        op_qparams(&b, tensor_f32(scale, R, groups), tensor_f32(zero, R, groups),
                   tensor_f32(w, R, C), &s);
        for (int64_t r = 0; r < R; r++)
            for (int64_t g = 0; g < groups; g++) {
                int64_t k = g * G, n = groups == 1 ? C : k + G > C ? C - k : G;
                float m = tensor ? absmax_of(w, R * C) : absmax_of(w + r * C + k, n);
                assert_true(scale[r * groups + g] == fmaxf(m, 1e-5f) * (1.0f / 127));
                assert_true(zero[r * groups + g] == 128);
            }
        ref_check(&b);
        backend_close(&b);
    }
    QTensor q;
    Err e = {0};
    QSpec bad = {.bits = 8, .group_size = -1, .zero = ZERO_INT, .scale_dtype = DT_F32,
                 .grid = GRID_ABSMAX, CODE_INT};
    assert_false(qtensor_measure(&q, DT_NONE, bad, 4, 4, &e));
    assert_int_equal(e.code, ERR_CONFIG);
}

static void test_accepts(void **state) {
    (void)state;
    QSpec spec = {.bits = 8, .group_size = -1, .zero = ZERO_SYM, .scale_dtype = DT_F32};
    QTensor q;
    assert_true(qtensor_measure(&q, DT_NONE, spec, 4, 131071, NULL) && linear_int8_accepts(&q));
    assert_true(qtensor_measure(&q, DT_NONE, spec, 4, 131072, NULL) && !linear_int8_accepts(&q));
    spec.group_size = 32;
    assert_true(qtensor_measure(&q, DT_NONE, spec, 4, 64, NULL) && !linear_int8_accepts(&q));
    spec = (QSpec){.bits = 4, .group_size = -1, .zero = ZERO_SYM, .scale_dtype = DT_F32};
    assert_true(qtensor_measure(&q, DT_NONE, spec, 4, 64, NULL) && !linear_int8_accepts(&q));
    assert_true(qtensor_measure(&q, DT_F32, spec, 4, 64, NULL) && !linear_int8_accepts(&q));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),    cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_not_finite), cmocka_unit_test(test_round_act),
        cmocka_unit_test(test_absmax_grid), cmocka_unit_test(test_accepts),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arena_free(&arena);
    return failed;
}
