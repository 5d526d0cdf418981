/* test_pack — 从文件里的类型直接装面板，与先解码成 f32 再装逐位相同
 * 每个指令集、每种来源与目的类型，形状有整有零，来源不对齐，查与不查；NaN、Inf、舍入后溢出的都要认出来。 */
#include "tests/ops/reference.h"

static const DType TYPES[] = {DT_F32, DT_F16, DT_BF16};
enum { N_TYPES = 3, MAX = 70 * 96 };

/* x → 来源类型的字节，从奇数地址开始。 */
static char *store(char *to, const float *x, int64_t n, DType t) {
    for (int64_t i = 0; i < n; i++) {
        uint16_t h = t == DT_F16 ? f32_to_f16(x[i]) : f32_to_bf16(x[i]);
        if (t == DT_F32) memcpy(to + 4 * i, &x[i], 4);
        else memcpy(to + 2 * i, &h, 2);
    }
    return to;
}

static void check_one(Backend *b, const char *target, DType from, DType to, int64_t rows, int64_t cols) {
    Arena a = backend_arena(b);
    Err e = {0};
    QTensor got, want;
    float *x = ref_random(rows * cols, (uint64_t)(rows * cols), 3), *w = ref_zeros(rows * cols);
    char *raw = malloc(MAX * 4 + 1);
    assert_non_null(raw);
    assert_true(qtensor_new_dense(&got, &a, to, rows, cols, &e) && qtensor_new_dense(&want, &a, to, rows, cols, &e));
    const char *src = store(raw + 1, x, rows * cols, from);
    op_decode(b, w, src, from, to, rows * cols);
    op_pack_dense(b, &want, tensor_f32(w, rows, cols));
    for (int checked = 0; checked < 2; checked++) {
        memset(got.data, 0x5A, got.data_bytes);
        assert_true(op_pack_stored(b, &got, src, from, checked));
        ref_check(b);
        for (int64_t i = 0; i < rows * cols; i++)
            if (qtensor_at(&got, i / cols, i % cols) != qtensor_at(&want, i / cols, i % cols))
                fail_msg("%s %s→%s %lld×%lld 第 %lld 个不同", target, dtype_name(from), dtype_name(to), (long long)rows,
                         (long long)cols, (long long)i);
    }
    if (memcmp(got.data, want.data, got.data_bytes) != 0) /* 补的零也相同 */
        fail_msg("%s %s→%s %lld×%lld 补的零不同", target, dtype_name(from), dtype_name(to), (long long)rows, (long long)cols);
    free(x);
    free(w);
    free(raw);
    arena_free(&a);
}

static void test_same(void **state) {
    (void)state;
    static const int64_t SHAPES[][2] = {{16, 32}, {48, 96}, {70, 64}, {5, 96}, {33, 31}, {16, 33}, {1, 1}};
    RefTarget targets[REF_MAX_TARGETS];
    int n = ref_targets(targets);
    for (int i = 0; i < n; i++) {
        Backend b = ref_open(&targets[i], 2);
        for (int f = 0; f < N_TYPES; f++)
            for (int t = 0; t < N_TYPES; t++)
                for (size_t s = 0; s < sizeof SHAPES / sizeof *SHAPES; s++)
                    check_one(&b, targets[i].name, TYPES[f], TYPES[t], SHAPES[s][0], SHAPES[s][1]);
        backend_close(&b);
    }
}

/* 把第 at 个换成 bad，不得装成。 */
static void refuse(Backend *b, DType from, DType to, int64_t cols, float bad, int64_t at) {
    Arena a = backend_arena(b);
    Err e = {0};
    QTensor q;
    float x[32 * 48];
    char raw[sizeof x];
    ref_fill(x, 32 * cols, 4, 1);
    assert_true(qtensor_new_dense(&q, &a, to, 32, cols, &e));
    x[at] = bad;
    if (op_pack_stored(b, &q, store(raw, x, 32 * cols, from), from, false))
        fail_msg("%s→%s：第 %lld 个是 %g，没有认出来", dtype_name(from), dtype_name(to), (long long)at, (double)bad);
    arena_free(&a);
}

static void test_refused(void **state) {
    (void)state;
    RefTarget targets[REF_MAX_TARGETS];
    int n = ref_targets(targets);
    for (int i = 0; i < n; i++) {
        Backend b = ref_open(&targets[i], 2);
        for (int f = 0; f < N_TYPES; f++)
            for (int t = 0; t < N_TYPES; t++)
                for (int64_t cols = 47; cols <= 48; cols++)
                    for (int64_t at = 0; at < 32 * cols; at += 37) {
                        refuse(&b, TYPES[f], TYPES[t], cols, NAN, at);
                        refuse(&b, TYPES[f], TYPES[t], cols, at % 2 ? INFINITY : -INFINITY, at);
                    }
        for (int64_t cols = 32; cols <= 48; cols += 16)
            for (int64_t at = 0; at < 32 * cols; at++) refuse(&b, DT_BF16, DT_BF16, cols, at % 2 ? NAN : -INFINITY, at);
        refuse(&b, DT_F32, DT_F16, 32, 65520, 100); /* 舍入后溢出 */
        refuse(&b, DT_BF16, DT_F16, 32, -131072, 100);
        refuse(&b, DT_F32, DT_BF16, 32, 3.4e38f, 100);
        backend_close(&b);
    }
}

/* 大的：CUDA 上一段段地传（锁页的缓冲 64 MB、要换算的工作区 16 MB），末尾的不是有限值也认得出。 */
static void test_large(void **state) {
    (void)state;
    enum { ROWS = 2053, COLS = 4099 };
    RefTarget targets[REF_MAX_TARGETS];
    int n = ref_targets(targets);
    char *raw = malloc((size_t)ROWS * COLS * 4);
    float *x = ref_random((int64_t)ROWS * COLS, 5, 1);
    assert_non_null(raw);
    for (int f = 0; f < N_TYPES; f++) {
        Backend b = ref_open(&targets[n - 1], 2);
        Arena a = backend_arena(&b);
        Err e = {0};
        QTensor q;
        int64_t rows = ROWS, cols = COLS - (f == 2), last = rows * cols - 1; /* BF16 的列数取偶：布局相同，不换算 */
        assert_true(qtensor_new_dense(&q, &a, DT_BF16, rows, cols, &e));
        store(raw, x, rows * cols, TYPES[f]);
        assert_true(op_pack_stored(&b, &q, raw, TYPES[f], false));
        for (int64_t i = 0; i <= last; i += i < last - 97 ? 97 : 1) {
            float v = TYPES[f] == DT_F16 ? f16_to_f32(f32_to_f16(x[i])) : x[i], want = bf16_to_f32(f32_to_bf16(v));
            if (qtensor_at(&q, i / cols, i % cols) != want) fail_msg("%s：第 %lld 个不同", dtype_name(TYPES[f]), (long long)i);
        }
        float keep = x[last];
        x[last] = INFINITY;
        store(raw, x, rows * cols, TYPES[f]);
        x[last] = keep;
        assert_false(op_pack_stored(&b, &q, raw, TYPES[f], false));
        arena_free(&a);
        backend_close(&b);
    }
    free(x);
    free(raw);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same), cmocka_unit_test(test_refused), cmocka_unit_test(test_large)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
