/* test_calib — 校准的零件：CPython 的随机数、二阶矩、逆 Cholesky、列的排列
 * 随机数的对照值由 Python 3.11 的 random 模块打印。 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/pyrandom.h"
#include "base/rng.h"
#include "compute/linalg.h"
#include "compute/ops.h"
#include "model/calib.h"

static void test_pyrandom(void **state) {
    (void)state;
    PyRandom r;
    static const int64_t LIGHT[] = {110680, 50494, 99346, 55125, 5306, 33936};
    pyrandom_seed(&r, 0);
    for (int i = 0; i < 6; i++) assert_int_equal(pyrandom_int(&r, 0, 112375 - 512 - 1), LIGHT[i]);
    pyrandom_seed(&r, 12345678901234ull); /* 种子超过 32 位；randint 跨 32 位；random()；getrandbits(64) */
    assert_int_equal(pyrandom_int(&r, -5, 1000000000000), 614287875196);
    assert_true(pyrandom_unit(&r) == 0.14532691110186335);
    assert_true(pyrandom_bits(&r, 64) == 9773762279372442862ull);
    for (int i = 0; i < 1000; i++) assert_int_equal(pyrandom_int(&r, 7, 7), 7);
}

static void test_draw(void **state) {
    (void)state;
    Arena a = {0};
    Err e = {0};
    int32_t ids[100];
    for (int i = 0; i < 100; i++) ids[i] = i;
    CalibSet s;
    assert_true(calib_draw(&s, &a, "t", ids, 100, 5, 20, 3, &e));
    for (int i = 0; i < 5; i++) {
        assert_in_range(s.offsets[i], 0, 79);
        assert_int_equal(s.ids[i * 20 + 19], s.offsets[i] + 19);
    }
    assert_false(calib_draw(&s, &a, "t", ids, 20, 1, 20, 3, &e));
    assert_int_equal(e.code, ERR_FORMAT);
    arena_free(&a);
}

static float noise(uint64_t i) {
    return (float)(2 * rng_unit(1, 2, i) - 1);
}

/* bf16 模式下先把 x 舍入，所以对照不变。 */
static void check_gram(ComputeMode mode) {
    static const int SHAPES[][2] = {{1, 1}, {3, 5}, {17, 16}, {40, 33}, {100, 130}, {65, 250}};
    Err e = {0};
    for (size_t s = 0; s < sizeof SHAPES / sizeof *SHAPES; s++) {
        int n = SHAPES[s][0], d = SHAPES[s][1];
        float *x = calloc((size_t)(n * d), 4), *g = calloc((size_t)(d * d), 4);
        float *one = calloc((size_t)(d * d), 4);
        for (int i = 0; i < n * d; i++) {
            x[i] = noise((uint64_t)i);
            if (mode == COMPUTE_BF16) x[i] = bf16_to_f32(f32_to_bf16(x[i]));
        }
        for (int threads = 1; threads <= 2; threads++) {
            Backend b;
            assert_true(backend_open_cpu(&b, threads, mode, NULL, &e));
            float *out = threads == 1 ? one : g;
            op_gram(&b, tensor_f32(out, d, d), tensor_f32(x, n, d));
            assert_true(backend_check(&b, &e));
            backend_close(&b);
        }
        for (int i = 0; i < d; i++)
            for (int j = i; j < d; j++) {
                double want = 0, size = 0;
                for (int k = 0; k < n; k++) {
                    want += (double)x[k * d + i] * (double)x[k * d + j];
                    size += fabs((double)x[k * d + i] * (double)x[k * d + j]);
                }
                assert_true(fabs((double)g[i * d + j] - want) <= 1e-7 * (n + 8) * size + 1e-12);
                assert_true(g[i * d + j] == one[i * d + j]);
            }
        free(x);
        free(g);
        free(one);
    }
}
static void test_gram(void **state) {
    (void)state;
    check_gram(COMPUTE_F32);
    if (cpu_has_bf16()) check_gram(COMPUTE_BF16);
}

/* H⁻¹ = UᵀU，故 U·H·Uᵀ = I。 */
static void check_inverse_upper(Backend *b, int n) {
    size_t bytes = (size_t)n * (size_t)n * sizeof(double);
    double *h = calloc(1, bytes), *u = calloc(1, bytes), *t = calloc(1, bytes);
    double *work = calloc((size_t)n * LINALG_BLOCK, sizeof *work);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            for (int k = 0; k < n + 20; k++)
                h[i * n + j] += (double)noise((uint64_t)(i * 512 + k)) * (double)noise((uint64_t)(j * 512 + k));
    for (int i = 0; i < n * n; i++) u[i] = h[i];
    assert_true(linalg_inverse_upper(b, u, n, work));
    for (int i = 0; i < n; i++)
        for (int j = 0; j < i; j++) assert_true(u[i * n + j] == 0);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            for (int k = 0; k < n; k++) t[i * n + j] += u[i * n + k] * h[k * n + j];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            double sum = 0;
            for (int k = 0; k < n; k++) sum += t[i * n + k] * u[j * n + k];
            assert_true(fabs(sum - (i == j)) < 1e-9);
        }
    h[0] = -1; /* 不正定、NaN 都被拒绝 */
    assert_false(linalg_inverse_upper(b, h, n, work));
    h[0] = NAN;
    assert_false(linalg_inverse_upper(b, h, n, work));
    free(h), free(u), free(t), free(work);
}

/* 小于一块、恰好几块、末块不满；一个与两个线程。 */
static void test_inverse_upper(void **state) {
    (void)state;
    Err e = {0};
    for (int threads = 1; threads <= 2; threads++) {
        Backend b;
        assert_true(backend_open_cpu(&b, threads, COMPUTE_F32, NULL, &e));
        check_inverse_upper(&b, 37);
        check_inverse_upper(&b, 256);
        check_inverse_upper(&b, 300);
        backend_close(&b);
    }
}

/* 按排列存放的矩阵：乘法与反量化都回到原来的列序。 */
static void test_perm(void **state) {
    (void)state;
    enum { ROWS = 20, COLS = 40, N = 3 };
    Err e = {0};
    Arena a = {0};
    Backend b;
    assert_true(backend_open_cpu(&b, 2, COMPUTE_F32, NULL, &e));
    float w[ROWS * COLS], shuffled[ROWS * COLS], x[N * COLS], back[ROWS * COLS];
    float y[N * ROWS], want[N * ROWS], scale[ROWS], zero[ROWS];
    int32_t perm[COLS];
    for (int i = 0; i < COLS; i++) perm[i] = i * 7 % COLS;
    for (int i = 0; i < ROWS * COLS; i++) w[i] = noise((uint64_t)i);
    for (int i = 0; i < N * COLS; i++) x[i] = noise((uint64_t)(5000 + i));
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLS; c++) shuffled[r * COLS + c] = w[r * COLS + perm[c]];
    QSpec spec = {.bits = 8, .group_size = -1, .zero = ZERO_INT, .scale_dtype = DT_F32};
    QTensor plain, q;
    assert_true(qtensor_new(&plain, &a, spec, ROWS, COLS, &e));
    assert_true(qtensor_new(&q, &a, spec, ROWS, COLS, &e));
    assert_true(qtensor_set_perm(&q, &a, perm, &e));
    assert_int_equal(qtensor_bytes(&q), qtensor_bytes(&plain) + COLS * 4);
    Tensor s = tensor_f32(scale, ROWS, 1), z = tensor_f32(zero, ROWS, 1);
    op_qparams(&b, s, z, tensor_f32(w, ROWS, COLS), &plain.spec);
    op_quantize(&b, &plain, tensor_f32(w, ROWS, COLS), s, z);
    op_quantize(&b, &q, tensor_f32(shuffled, ROWS, COLS), s, z);
    op_dequantize(&b, tensor_f32(back, ROWS, COLS), &q);
    for (int i = 0; i < ROWS * COLS; i++)
        assert_true(back[i] == qtensor_at(&plain, i / COLS, i % COLS));
    op_linear(&b, tensor_f32(want, N, ROWS), tensor_f32(x, N, COLS), &plain, tensor_f32_1d(NULL, 0));
    op_linear(&b, tensor_f32(y, N, ROWS), tensor_f32(x, N, COLS), &q, tensor_f32_1d(NULL, 0));
    assert_true(backend_check(&b, &e));
    for (int i = 0; i < N * ROWS; i++) assert_true(fabsf(y[i] - want[i]) < 1e-4f);
    backend_close(&b);
    arena_free(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pyrandom), cmocka_unit_test(test_draw), cmocka_unit_test(test_gram),
        cmocka_unit_test(test_inverse_upper), cmocka_unit_test(test_perm)};
    return cmocka_run_group_tests_name("calib", tests, NULL, NULL);
}
