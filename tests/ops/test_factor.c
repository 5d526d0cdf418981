/* test_factor — Hessian 的分解对照双精度：uᵀ·u·H = I；不正定报出；watch 记下最小的 tag */
#include "reference.h"

enum { MAX_N = 300 };

/* H = norm·gram 按 perm，死列的对角为 1，再加 damp。 */
static double hessian_at(const FactorJob *j, int64_t r, int64_t c) {
    double v = j->norm * (double)j->gram[j->perm[r] * j->n + j->perm[c]];
    return r == c ? (j->dead[r] ? 1 : v) + j->damp : v;
}

static void check_factor(Backend *b, int64_t n, bool order) {
    float *x = ref_random(2 * n * n, (uint64_t)n, 1), *gram = ref_zeros(n * n), *u = ref_zeros(n * n);
    int32_t *perm = malloc(sizeof *perm * (size_t)n);
    bool *dead = calloc((size_t)n, sizeof *dead);
    double *work = malloc(sizeof *work * (size_t)(n * (n + 128)));
    assert_true(perm && dead && work);
    for (int64_t r = 0; r < 2 * n; r++) x[r * n + n / 2] = 0; /* 一个死列 */
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            double s = 0;
            for (int64_t r = 0; r < 2 * n; r++) s += (double)x[r * n + i] * (double)x[r * n + j];
            gram[i * n + j] = (float)s;
        }
    for (int64_t i = 0; i < n; i++) perm[i] = (int32_t)(order ? n - 1 - i : i);
    for (int64_t i = 0; i < n; i++) dead[i] = perm[i] == n / 2;
    FactorJob job = {.n = n, .gram = gram, .perm = perm, .dead = dead, .norm = 1.0 / (double)n, .damp = 0.01,
                     .u = u, .work = work};
    assert_true(op_factor(b, &job));
    ref_check(b);
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < n; k++) {
            if (k < i) assert_true(u[i * n + k] == 0);
            double s = 0; /* (u·H·uᵀ)[i][k] = I */
            for (int64_t r = i; r < n; r++)
                for (int64_t c = k; c < n; c++)
                    s += (double)u[i * n + r] * hessian_at(&job, r, c) * (double)u[k * n + c];
            if ((i + 7 * k) % 11 == 0 || i == k) ref_near(s, i == k, 1e-5, "分解", "u·H·uᵀ");
            if (n > 64) k += 37;
        }
    job.damp = -3; /* 不正定 */
    assert_false(op_factor(b, &job));
    ref_check(b);
    free(x);
    free(gram);
    free(u);
    free(perm);
    free(dead);
    free(work);
}

static void test_factors(void **state) {
    (void)state;
    static const int64_t NS[] = {1, 2, 31, 33, 129};
    RefTarget targets[REF_MAX_TARGETS];
    ref_targets(targets);
    Backend b = ref_open(&targets[0], 2);
    for (int i = 0; i < 5; i++)
        for (int order = 0; order < 2; order++) check_factor(&b, NS[i], order);
    backend_close(&b);
}

static void test_watch(void **state) {
    (void)state;
    RefTarget targets[REF_MAX_TARGETS];
    ref_targets(targets);
    Backend b = ref_open(&targets[0], 1);
    float x[MAX_N];
    ref_fill(x, MAX_N, 3, 1);
    op_watch(&b, tensor_f32(x, 3, MAX_N / 3), 4);
    assert_int_equal(op_watched(&b), -1);
    x[MAX_N - 1] = INFINITY;
    for (int tag = 9; tag >= 0; tag -= 3) op_watch(&b, tensor_f32(x, 3, MAX_N / 3), tag == 0 ? 7 : tag);
    x[MAX_N - 1] = 1;
    op_watch(&b, tensor_f32(x, 3, MAX_N / 3), 0);
    assert_int_equal(op_watched(&b), 3);
    assert_int_equal(op_watched(&b), -1);
    ref_check(&b);
    backend_close(&b);
}

/* 文件里的类型 → f32，再舍入。 */
static void test_decode(void **state) {
    (void)state;
    enum { N = 70000 };
    static const DType TYPES[] = {DT_F32, DT_F16, DT_BF16};
    RefTarget targets[REF_MAX_TARGETS];
    ref_targets(targets);
    Backend b = ref_open(&targets[0], 2);
    float *x = ref_random(N, 5, 3), *got = ref_zeros(N), *want = ref_zeros(N);
    uint16_t *half = malloc(N * sizeof *half);
    assert_non_null(half);
    x[3] = 0x1p-20f, x[4] = 65504;
    for (int t = 0; t < 3; t++)
        for (int r = 0; r < 3; r++) {
            for (int64_t i = 0; i < N; i++) {
                if (t) half[i] = t == 1 ? f32_to_f16(x[i]) : f32_to_bf16(x[i]);
                float v = t == 0 ? x[i] : t == 1 ? f16_to_f32(half[i]) : bf16_to_f32(half[i]);
                want[i] = r == 0 ? v : r == 1 ? f16_to_f32(f32_to_f16(v)) : bf16_to_f32(f32_to_bf16(v));
            }
            op_decode(&b, got, t ? (const void *)half : x, TYPES[t], TYPES[r], N);
            ref_check(&b);
            ref_same(got, want, N, "装载", dtype_name(TYPES[t]));
        }
    free(x);
    free(got);
    free(want);
    free(half);
    backend_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_factors), cmocka_unit_test(test_watch), cmocka_unit_test(test_decode)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
