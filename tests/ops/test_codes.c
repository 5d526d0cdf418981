/* test_codes — 不是整数的编码（查表、FP8）、嵌套缩放、bf16 缩放：矩阵乘、逐字生成、反量化都真用它们
 * 对照：写入时另存的码、表与缩放，按 qtensor.h 的公式逐个标量算出权重，再以双精度相乘。FP8 的值由它的定义用 ldexp 算。 */
#include "reference.h"

static const char *const ISAS[] = {"generic", "avx2", "avx512", "avx512_bf16"};
#define COUNT(a) (sizeof(a) / sizeof(a)[0])

static Arena arena;

static float real(uint64_t stream, int64_t i, double lo, double hi) {
    return (float)(lo + (hi - lo) * rng_unit(12, stream, (uint64_t)i));
}
static float *floats(int64_t n) {
    float *x = ARENA_ARRAY(&arena, float, n, NULL);
    assert_non_null(x);
    return x;
}
static float stored(DType t, float x) {
    return t == DT_F16 ? f16_to_f32(f32_to_f16(x)) : t == DT_BF16 ? bf16_to_f32(f32_to_bf16(x)) : x;
}

/* FP8 的定义：(−1)^s·2^(e−偏移)·1.m，e=0 时为次正规数。 */
static float f8(int code, bool e5m2) {
    int bits = e5m2 ? 2 : 3, bias = e5m2 ? 15 : 7, exp = (code & 127) >> bits, man = code & ((1 << bits) - 1);
    double m = (double)man / (1 << bits), v = exp ? ldexp(1 + m, exp - bias) : ldexp(m, 1 - bias);
    return (float)(code & 128 ? -v : v);
}

static void test_f8_values(void **state) {
    (void)state;
    for (int i = 0; i < 256; i++)
        for (int k = 0; k < 2; k++) {
            float v = f8_to_f32((uint8_t)i, k);
            bool special = k ? (i & 127) >= 124 : (i & 127) == 127;
            if (special)
                assert_false(isfinite(v));
            else
                assert_true(v == f8(i, k));
        }
    assert_true(f8_to_f32(0x7E, false) == 448 && f8_to_f32(0x7B, true) == 57344 && f8_to_f32(1, false) == 0x1p-9f);
}

/* 缩放：直接存放，或嵌套（码、表、外层）。返回 (rows, n_groups) 的值。 */
static float *fill_scales(QTensor *q) {
    int64_t n = q->rows * q->n_groups;
    float *value = floats(n), table[256];
    if (!q->nested.per) {
        for (int64_t i = 0; i < n; i++) {
            value[i] = stored(q->spec.scale_dtype, real(1, i, 0.01, 0.2));
            qtensor_set_scale(q, i / q->n_groups, i % q->n_groups, value[i]);
        }
        return value;
    }
    float *outer = floats(qtensor_n_outer(q));
    for (int i = 0; i < 256; i++) table[i] = real(2, i, -0.5, 1);
    for (int64_t i = 0; i < qtensor_n_outer(q); i++) outer[i] = real(3, i, 0.1, 0.3);
    qtensor_set_nested(q, table, outer);
    for (int64_t i = 0; i < n; i++) {
        int code = (int)rng_below(12, 4, (uint64_t)i, 256);
        int64_t at = (q->nested.first + i) / q->nested.per - q->nested.first / q->nested.per;
        qtensor_set_stat_code(q, STAT_SCALE, i / q->n_groups, i % q->n_groups, code);
        value[i] = table[code] * outer[at] + q->nested.offset;
    }
    return value;
}

/* 填好 q，返回它应当代表的权重 (rows, cols)。 */
static float *fill(QTensor *q) {
    int64_t n = q->rows * q->cols, top = 1 << q->spec.bits;
    float *w = floats(n), *scale = fill_scales(q), table[256];
    uint8_t *code = ARENA_ARRAY(&arena, uint8_t, n + QT_PANEL * q->cols, NULL);
    for (int i = 0; i < 256; i++) table[i] = real(5, i, -1, 1);
    if (q->spec.codes == CODE_TABLE) assert_true(qtensor_set_table(q, &arena, table, NULL));
    for (int64_t i = 0; i < n; i++) {
        int64_t r = i / q->cols, g = i % q->cols / q->spec.group_size;
        int c = (int)rng_below(12, 6, (uint64_t)i, (uint64_t)top);
        bool e5m2 = q->spec.codes == CODE_F8_E5M2;
        if (q->spec.codes > CODE_TABLE && (c & 127) >= (e5m2 ? 124 : 127)) c -= 8;
        code[i] = (uint8_t)c;
        float v = q->spec.codes == CODE_TABLE ? table[c] : q->spec.codes == CODE_INT ? (float)(c - top / 2) : f8(c, e5m2);
        w[i] = scale[r * q->n_groups + g] * v;
    }
    for (int64_t p = 0; p * QT_PANEL < q->rows; p++) qtensor_pack_panel(q, p, code + p * QT_PANEL * q->cols);
    for (int64_t i = 0; i < n; i++) assert_int_equal(qtensor_code(q, i / q->cols, i % q->cols), code[i]);
    return w;
}

static void check_products(const QTensor *q, const float *w, const char *isa, ComputeMode mode) {
    enum { N = 11 };
    Backend b;
    Err e = {0};
    if (!ref_backend(&b, 2, mode, isa, &e)) return;
    float *x = floats(N * q->cols), *y = floats(N * q->rows), *one = floats(q->rows);
    float *back = floats(q->rows * q->cols);
    for (int64_t i = 0; i < N * q->cols; i++) x[i] = real(7, i, -2, 2);
    op_linear(&b, tensor_f32(y, N, q->rows), tensor_f32(x, N, q->cols), q, (Tensor){0});
    op_dequantize(&b, tensor_f32(back, q->rows, q->cols), q);
    assert_memory_equal(back, w, (size_t)(q->rows * q->cols) * sizeof *w);
    for (int64_t i = 0; i < N; i++) {
        op_linear(&b, tensor_f32(one, 1, q->rows), tensor_f32(x + i * q->cols, 1, q->cols), q, (Tensor){0});
        bool bf16 = mode == COMPUTE_BF16, by_codes = ref_by_codes(q, bf16, 1);
        if (!by_codes && !ref_on_cuda()) assert_memory_equal(one, y + i * q->rows, (size_t)q->rows * sizeof *one);
        for (int64_t r = 0; r < q->rows; r++) {
            double sum = 0, size = 0;
            for (int64_t c = 0; c < q->cols; c++) {
                float a = x[i * q->cols + c], reach, v = ref_weight(q, r, c, bf16, by_codes, &reach);
                if (bf16) a = bf16_to_f32(f32_to_bf16(a));
                sum += (double)v * (double)a;
                size += fabs((double)reach * (double)a);
            }
            double bound = ((double)q->cols + 4) * 0x1p-24 * size + 1e-30;
            if (!(fabs((double)one[r] - sum) <= bound))
                fail_msg("%s/%s codes %d bits %d per %lld %lldx%lld: %.9g != %.9g ± %.3g", isa, bf16 ? "bf16" : "f32", q->spec.codes, q->spec.bits,
                         (long long)q->nested.per, (long long)q->rows, (long long)q->cols, (double)one[r], sum, bound);
        }
    }
    if (!backend_check(&b, &e)) fail_msg("%s", e.msg);
    backend_close(&b);
}

static void test_products(void **state) {
    (void)state;
    static const int64_t SHAPES[][2] = {{1, 1}, {16, 32}, {17, 33}, {40, 100}, {33, 128}};
    static const int64_t GROUPS[] = {32, 5, -1};
    static const struct {
        CodeKind codes;
        int bits;
        DType scale;
        int64_t per, first;
    } KINDS[] = {{CODE_TABLE, 4, DT_F32, 0, 0},   {CODE_TABLE, 4, DT_F32, 7, 0},    {CODE_TABLE, 4, DT_F32, 4, 13},
                 {CODE_TABLE, 3, DT_BF16, 0, 0},  {CODE_F8_E4M3, 8, DT_BF16, 0, 0}, {CODE_F8_E4M3, 8, DT_F32, 0, 0},
                 {CODE_F8_E5M2, 8, DT_F16, 0, 0}, {CODE_INT, 4, DT_BF16, 0, 0},     {CODE_INT, 8, DT_BF16, 0, 0},
                 {CODE_INT, 3, DT_BF16, 0, 0},    {CODE_INT, 4, DT_F32, 5, 2}};
    for (size_t s = 0; s < COUNT(SHAPES); s++)
        for (size_t k = 0; k < COUNT(KINDS); k++)
            for (size_t g = 0; g < COUNT(GROUPS); g++) {
                ArenaMark mark = arena_mark(&arena);
                QSpec spec = {.bits = KINDS[k].bits, .group_size = GROUPS[g], .zero = ZERO_SYM,
                              .scale_dtype = KINDS[k].scale, .codes = KINDS[k].codes};
                NestedScale nested = {.per = KINDS[k].per, .first = KINDS[k].first, .offset = 0.01f};
                QTensor q;
                Err e = {0};
                if (!(nested.per ? qtensor_new_nested(&q, &arena, spec, nested, SHAPES[s][0], SHAPES[s][1], &e)
                                 : qtensor_new(&q, &arena, spec, SHAPES[s][0], SHAPES[s][1], &e)))
                    fail_msg("%s", e.msg);
                float *w = fill(&q);
                for (int64_t i = 0; i < q.rows * q.cols; i++)
                    assert_true(qtensor_at(&q, i / q.cols, i % q.cols) == w[i]);
                for (size_t i = 0; i < COUNT(ISAS); i++) check_products(&q, w, ISAS[i], COMPUTE_F32);
                check_products(&q, w, "avx512_bf16", COMPUTE_BF16);
                arena_rewind(&arena, mark);
            }
}

/* W8A8 的整数路也认 bf16 的缩放；查表与 FP8 的不走整数路。 */
static void test_int8(void **state) {
    (void)state;
    QSpec spec = {.bits = 8, .group_size = -1, .zero = ZERO_SYM, .scale_dtype = DT_BF16};
    ActQuant act = {.kind = ACT_TOKEN, .bits = 8};
    QTensor q;
    Err e = {0};
    assert_true(qtensor_new(&q, &arena, spec, 20, 40, &e));
    fill(&q);
    assert_true(linear_int8_accepts(&q));
    for (size_t k = 0; k < COUNT(ISAS); k++) {
        Backend b;
        if (!ref_backend(&b, 1, COMPUTE_F32, ISAS[k], &e)) continue;
        float *x = floats(3 * 40), *y = floats(3 * 20);
        for (int i = 0; i < 3 * 40; i++) x[i] = real(8, i, -2, 2);
        op_linear_int8(&b, tensor_f32(y, 3, 20), tensor_f32(x, 3, 40), &q, (Tensor){0}, &act);
        assert_true(backend_check(&b, &e));
        for (int i = 0; i < 3; i++) {
            float m = 0;
            for (int c = 0; c < 40; c++) m = fmaxf(m, fabsf(x[i * 40 + c]));
            float s = m * (1.0f / 127);
            for (int r = 0; r < 20; r++) {
                double sum = 0;
                for (int c = 0; c < 40; c++) sum += (qtensor_code(&q, r, c) - 128) * (double)rintf(x[i * 40 + c] / s);
                double want = sum * (double)qtensor_scale(&q, r, 0) * (double)s;
                assert_true(fabs((double)y[i * 20 + r] - want) <= 1e-5 * fabs(want) + 1e-7);
            }
        }
        backend_close(&b);
    }
    spec.codes = CODE_F8_E4M3;
    assert_true(qtensor_new(&q, &arena, spec, 20, 40, &e));
    assert_false(linear_int8_accepts(&q));
}

static void test_bytes_and_errors(void **state) {
    (void)state;
    QTensor q;
    Err e = {0};
    QSpec spec = {.bits = 4, .group_size = 64, .zero = ZERO_SYM, .scale_dtype = DT_F32, .codes = CODE_TABLE};
    float table[16] = {0};
    assert_true(qtensor_new_nested(&q, &arena, spec, (NestedScale){.per = 256}, 64, 128, &e));
    assert_true(qtensor_set_table(&q, &arena, table, &e));
    assert_int_equal(q.data_bytes, 64 * 128 / 2);
    assert_int_equal(q.scale_bytes, 64 * 2 + (256 + 1) * 4); /* 码、表、一个外层 */
    assert_int_equal(q.table_bytes, 64);
    QtPart part[QT_PARTS];
    size_t bytes = 0;
    qtensor_parts(&q, part);
    for (int i = 0; i < QT_PARTS; i++) bytes += part[i].bytes;
    assert_int_equal(bytes, qtensor_bytes(&q));
    assert_false(qtensor_new_nested(&q, &arena, spec, (NestedScale){.per = -1}, 64, 128, &e));
    spec.zero = ZERO_INT;
    assert_false(qtensor_new(&q, &arena, spec, 64, 128, &e));
    spec = (QSpec){.bits = 4, .group_size = 64, .zero = ZERO_SYM, .scale_dtype = DT_F32, .codes = CODE_F8_E4M3};
    assert_false(qtensor_new(&q, &arena, spec, 64, 128, &e));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f8_values),
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_int8),
        cmocka_unit_test(test_bytes_and_errors),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arena_free(&arena);
    return failed;
}
