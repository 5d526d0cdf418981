/* test_spqr_storage — 两级统计与离群值：写进去的取得回来，矩阵乘、逐字生成、反量化都真用它们
 * 对照：写入时另存的一份码、格点与离群值，按 qtensor.h 的公式逐个标量算出权重，再以双精度相乘。 */
#include "reference.h"

static const char *const ISAS[] = {"generic", "avx2", "avx512", "avx512_bf16"};
#define COUNT(a) (sizeof(a) / sizeof(a)[0])

static Arena arena;

static uint64_t pick(uint64_t stream, int64_t i, uint64_t n) {
    return rng_below(11, stream, (uint64_t)i, n);
}
static float real(uint64_t stream, int64_t i, double lo, double hi) {
    return (float)(lo + (hi - lo) * rng_unit(11, stream, (uint64_t)i));
}
static float stored(const QSpec *s, float x) {
    return s->scale_dtype == DT_F16 ? f16_to_f32(f32_to_f16(x)) : x;
}
static float *floats(int64_t n) {
    float *x = ARENA_ARRAY(&arena, float, n, NULL);
    assert_non_null(x);
    return x;
}

/* 一种统计的全部值：随机的码与格点写进 q，返回 (rows, n_groups) 的值。不是两级的由 op_quantize 存。 */
static float *fill_stat(QTensor *q, StatKind kind, int bits, double lo, double hi) {
    float *value = floats(q->rows * q->n_groups);
    for (int64_t i = 0; i < q->rows * q->n_groups; i++) {
        int64_t r = i / q->n_groups, g = i % q->n_groups, at = r / q->two.rows * q->n_groups + g;
        if (!bits) {
            value[i] = stored(&q->spec, real(20 + kind, i, lo, hi));
            if (kind == STAT_ZERO && q->spec.zero == ZERO_INT)
                value[i] = (float)pick(22, i, (uint64_t)1 << q->spec.bits);
            continue;
        }
        StatGrid grid = {stored(&q->spec, real(30 + kind, at, lo / 8, hi / 8)),
                         stored(&q->spec, -real(40 + kind, at, 0.5, 3))};
        int code = (int)pick(50 + kind, i, (uint64_t)1 << bits);
        qtensor_set_stat_grid(q, kind, r / q->two.rows, g, grid);
        qtensor_set_stat_code(q, kind, r, g, code);
        value[i] = grid.scale * ((float)code - grid.zero);
    }
    for (int64_t i = 0; bits && i < q->rows * q->n_groups; i++) /* 相邻的码没有互相覆盖 */
        assert_int_equal(qtensor_stat_code(q, kind, i / q->n_groups, i % q->n_groups),
                         (int)pick(50 + kind, i, (uint64_t)1 << bits));
    return value;
}

/* 填好 q，返回它应当代表的权重 (rows, cols)。 */
static float *fill(QTensor *q, double share) {
    Backend b;
    Err e = {0};
    assert_true(ref_backend(&b, 1, COMPUTE_F32, "generic", &e));
    int64_t n = q->rows * q->cols;
    float *scale = fill_stat(q, STAT_SCALE, q->two.scale_bits, 0.05, 0.2);
    float *zero = fill_stat(q, STAT_ZERO, q->two.zero_bits, 1, 6);
    float *w = floats(n), *out = floats(n);
    uint8_t *mask = ARENA_ARRAY(&arena, uint8_t, n, NULL);
    float top = (float)((1 << q->spec.bits) - 1);
    for (int64_t i = 0; i < n; i++) {
        int64_t at = i / q->cols * q->n_groups + i % q->cols / q->spec.group_size;
        w[i] = real(1, i, -1, 1);
        mask[i] = real(2, i, 0, 1) < (float)share;
        float code = q->spec.zero == ZERO_INT ? rintf(w[i] / scale[at]) + zero[at]
                                              : rintf(w[i] / scale[at] + zero[at]);
        code = code < 0 ? 0 : code > top ? top : code;
        out[i] = mask[i] ? stored(&q->spec, 3 * w[i]) : scale[at] * (code - zero[at]);
    }
    op_quantize(&b, q, tensor_f32(w, q->rows, q->cols), tensor_f32(scale, q->rows, q->n_groups),
                tensor_f32(zero, q->rows, q->n_groups));
    for (int64_t i = 0; i < n; i++) w[i] *= 3;
    if (share > 0) assert_true(qtensor_set_outliers(q, &arena, w, mask, &e));
    assert_true(backend_check(&b, &e));
    backend_close(&b);
    return out;
}

static void check_products(const QTensor *q, const float *w, const char *isa, ComputeMode mode) {
    enum { N = 15 };
    Backend b;
    Err e = {0};
    if (!ref_backend(&b, 2, mode, isa, &e)) return;
    float *x = floats(N * q->cols), *y = floats(N * q->rows), *one = floats(q->rows);
    float *back = floats(q->rows * q->cols);
    for (int64_t i = 0; i < N * q->cols; i++) x[i] = real(5, i, -2, 2);
    op_linear(&b, tensor_f32(y, N, q->rows), tensor_f32(x, N, q->cols), q, (Tensor){0});
    op_dequantize(&b, tensor_f32(back, q->rows, q->cols), q);
    assert_memory_equal(back, w, (size_t)(q->rows * q->cols) * sizeof *w);
    for (int64_t i = 0; i < N; i++) {
        op_linear(&b, tensor_f32(one, 1, q->rows), tensor_f32(x + i * q->cols, 1, q->cols), q,
                  (Tensor){0});
        bool bf16 = mode == COMPUTE_BF16, by_codes = ref_by_codes(q, bf16, 1);
        if (!by_codes && !ref_on_cuda()) assert_memory_equal(one, y + i * q->rows, (size_t)q->rows * sizeof *one);
        for (int64_t r = 0; r < q->rows; r++) {
            double sum = 0, size = 0;
            for (int64_t c = 0; c < q->cols; c++) {
                float a = x[i * q->cols + c], reach;
                float v = ref_weight(q, r, c, bf16, by_codes, &reach);
                if (bf16) a = bf16_to_f32(f32_to_bf16(a));
                sum += (double)v * (double)a;
                size += fabs((double)reach * (double)a);
            }
            double bound = ((double)q->cols + 4) * 0x1p-24 * size + 1e-30;
            assert_true(fabs((double)one[r] - sum) <= bound);
        }
    }
    if (!backend_check(&b, &e)) fail_msg("%s", e.msg);
    backend_close(&b);
}

static void test_products(void **state) {
    (void)state;
    static const int64_t SHAPES[][2] = {{1, 1}, {16, 32}, {17, 33}, {50, 100}, {64, 160}};
    static const TwoLevel TWO[] = {{3, 3, 16}, {2, 0, 16}, {0, 5, 32}, {7, 8, 48}, {0, 0, 0}};
    static const int64_t GROUPS[] = {16, 32, 5, -1};
    for (size_t s = 0; s < COUNT(SHAPES); s++)
        for (size_t t = 0; t < COUNT(TWO); t++)
            for (size_t g = 0; g < COUNT(GROUPS); g++) {
                ArenaMark mark = arena_mark(&arena);
                bool half = (s + t + g) % 2, two = TWO[t].scale_bits || TWO[t].zero_bits;
                QSpec spec = {.bits = (int)(2 + (s + t + g) % 4), .group_size = GROUPS[g],
                              .zero = TWO[t].zero_bits || g % 2 ? ZERO_FLOAT : ZERO_INT,
                              .scale_dtype = half ? DT_F16 : DT_F32};
                QTensor q;
                Err e = {0};
                TwoLevel none = {.rows = 16};
                if (!qtensor_new_two_level(&q, &arena, spec, two ? TWO[t] : none, SHAPES[s][0],
                                           SHAPES[s][1], &e))
                    fail_msg("%s", e.msg);
                float *w = fill(&q, g == 1 && two ? 0 : 0.07);
                for (int64_t i = 0; i < q.rows * q.cols; i++)
                    assert_true(qtensor_at(&q, i / q.cols, i % q.cols) == w[i]);
                for (size_t i = 0; i < COUNT(ISAS); i++) check_products(&q, w, ISAS[i], COMPUTE_F32);
                check_products(&q, w, "avx512_bf16", COMPUTE_BF16);
                arena_rewind(&arena, mark);
            }
}

/* 字节数是数出来的：码、两级统计、离群值各占多少。 */
static void test_bytes(void **state) {
    (void)state;
    QTensor q;
    Err e = {0};
    QSpec spec = {.bits = 3, .group_size = 16, .zero = ZERO_FLOAT, .scale_dtype = DT_F16};
    assert_true(qtensor_new_two_level(&q, &arena, spec, (TwoLevel){3, 3, 16}, 64, 64, &e));
    assert_int_equal(q.data_bytes, 64 * 64 * 3 / 8);
    assert_int_equal(q.scale_bytes, 64 * 4 * 3 / 8 + 4 * 4 * 2 * 2); /* 码 + 4 行组 × 4 组 × 两个 f16 */
    assert_int_equal(q.zero_bytes, q.scale_bytes);
    float *w = floats(64 * 64);
    uint8_t *mask = ARENA_ARRAY(&arena, uint8_t, 64 * 64, NULL);
    mask[5] = mask[4095] = mask[77] = 1;
    assert_true(qtensor_set_outliers(&q, &arena, w, mask, &e));
    assert_int_equal(q.outliers.n, 3);
    assert_int_equal(q.outliers.bytes, 3 * (2 + 2) + (4 * 2 + 1) * 4); /* 值与位置；4 面板 × 2 块的起点 */
    assert_int_equal(qtensor_bytes(&q),
                     q.data_bytes + q.scale_bytes + q.zero_bytes + q.outliers.bytes);
    QtPart part[QT_PARTS];
    size_t stored = 0;
    qtensor_parts(&q, part); /* 存盘的各段合起来就是全部 */
    for (int i = 0; i < QT_PARTS; i++) stored += part[i].bytes;
    assert_int_equal(stored, qtensor_bytes(&q));
}

static void test_bad_requests(void **state) {
    (void)state;
    QTensor q;
    Err e = {0};
    QSpec spec = {.bits = 3, .group_size = 16, .zero = ZERO_FLOAT, .scale_dtype = DT_F16};
    QSpec whole = spec;
    whole.zero = ZERO_INT;
    assert_false(qtensor_new_two_level(&q, &arena, spec, (TwoLevel){9, 3, 16}, 64, 64, &e));
    assert_int_equal(e.code, ERR_CONFIG);
    assert_false(qtensor_new_two_level(&q, &arena, spec, (TwoLevel){3, 1, 16}, 64, 64, &e));
    assert_false(qtensor_new_two_level(&q, &arena, spec, (TwoLevel){3, 3, 24}, 64, 64, &e));
    assert_false(qtensor_new_two_level(&q, &arena, spec, (TwoLevel){3, 3, 0}, 64, 64, &e));
    assert_false(qtensor_new_two_level(&q, &arena, whole, (TwoLevel){3, 3, 16}, 64, 64, &e));
    assert_true(qtensor_new_two_level(&q, &arena, spec, (TwoLevel){3, 3, 16}, 8, 8, &e));
    float w[64] = {[9] = 70000.0f};
    uint8_t mask[64] = {[9] = 1};
    e = (Err){0};
    assert_false(qtensor_set_outliers(&q, &arena, w, mask, &e));
    assert_int_equal(e.code, ERR_NUMERIC);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_bad_requests),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arena_free(&arena);
    return failed;
}
