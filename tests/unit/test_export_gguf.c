/* test_export_gguf — GGUF 的写出：每种块由 dtype_decode 解回来就是存放形式的权重；头与元数据由 gguf_parse 读得回来 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "export_gguf.h"
#include "tmp.h"

enum { ROWS = 18, COLS = 96 };

static Arena arena;

static QTensor make(int bits, ZeroKind zero, int64_t group) {
    QTensor q;
    Err e = {0};
    uint8_t code[(ROWS + QT_PANEL) * COLS] = {0};
    QSpec spec = {.bits = bits, .group_size = group, .zero = zero, .scale_dtype = DT_F16};
    assert_true(qtensor_new(&q, &arena, spec, ROWS, COLS, &e));
    for (int i = 0; i < ROWS * COLS; i++) code[i] = (uint8_t)rng_below(3, 1, (uint64_t)i, (uint64_t)1 << bits);
    for (int p = 0; p < 2; p++) qtensor_pack_panel(&q, p, code + p * QT_PANEL * COLS);
    for (int64_t i = 0; i < ROWS * q.n_groups; i++) {
        qtensor_set_scale(&q, i / q.n_groups, i % q.n_groups, 0.01f + 0.1f * (float)rng_unit(3, 2, (uint64_t)i));
        if (zero == ZERO_INT) qtensor_set_zero(&q, i / q.n_groups, i % q.n_groups, (float)rng_below(3, 3, (uint64_t)i, (uint64_t)1 << bits));
        if (zero == ZERO_FLOAT) qtensor_set_zero(&q, i / q.n_groups, i % q.n_groups, (float)rng_unit(3, 3, (uint64_t)i) * 7);
    }
    return q;
}

static void test_blocks(void **state) {
    (void)state;
    static const struct {
        int bits;
        ZeroKind zero;
        int64_t group;
        DType type;
    } CASES[] = {{2, ZERO_SYM, 32, DT_Q4_0}, {3, ZERO_SYM, 96, DT_Q4_0},  {4, ZERO_SYM, 32, DT_Q4_0}, {4, ZERO_SYM, -1, DT_Q4_0},
                 {4, ZERO_INT, 32, DT_Q4_1}, {3, ZERO_FLOAT, 64, DT_Q4_1}, {5, ZERO_SYM, 32, DT_Q8_0}, {8, ZERO_SYM, 64, DT_Q8_0},
                 {6, ZERO_INT, 32, DT_Q8_0}, {7, ZERO_INT, -1, DT_Q8_0},  {8, ZERO_INT, 32, DT_F16},  {4, ZERO_SYM, 48, DT_F16},
                 {8, ZERO_FLOAT, 32, DT_F16}};
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        QTensor q = make(CASES[i].bits, CASES[i].zero, CASES[i].group);
        assert_int_equal(gguf_block_type(&q), CASES[i].type);
        if (CASES[i].type == DT_F16) continue;
        uint8_t block[COLS / 32 * 34];
        float w[COLS];
        for (int r = 0; r < ROWS; r++) {
            assert_true(gguf_encode_row(&q, CASES[i].type, r, block));
            assert_true(dtype_decode(CASES[i].type, block, w, COLS));
            for (int c = 0; c < COLS; c++) {
                float want = qtensor_at(&q, r, c), s = qtensor_scale(&q, r, c / q.spec.group_size);
                float slack = CASES[i].type == DT_Q4_1 ? 16 * s * 0x1p-11f : 0; /* 最小值舍入一次 */
                assert_true(fabsf(w[c] - want) <= slack);
            }
        }
    }
    QTensor q = make(4, ZERO_SYM, 32);
    int32_t perm[COLS];
    for (int i = 0; i < COLS; i++) perm[i] = COLS - 1 - i;
    assert_true(qtensor_set_perm(&q, &arena, perm, NULL));
    assert_int_equal(gguf_block_type(&q), DT_F16);
    QSpec big = {.bits = 4, .group_size = 32, .zero = ZERO_SYM, .scale_dtype = DT_F32};
    assert_true(qtensor_new(&q, &arena, big, 1, 32, NULL));
    qtensor_set_scale(&q, 0, 0, 1e9f);
    uint8_t block[18];
    assert_false(gguf_encode_row(&q, DT_Q4_0, 0, block)); /* f16 里溢出 */
}

static void test_file(void **state) {
    (void)state;
    GgufWriter w = {0};
    Gguf g;
    Err e = {0};
    float x[6] = {1, 2, 3, 4, 5, 6}, y[3] = {7, 8, 9};
    const GgufString words[2] = {{"a b", 3}, {"", 0}};
    const int32_t types[3] = {1, -2, 3};
    const GgufTensor t[2] = {{"m.weight", DT_F32, 2, {2, 3, 0}, x, sizeof x}, {"v", DT_F32, 1, {3, 0, 0}, y, sizeof y}};
    gguf_put_string(&w, "general.architecture", "llama", 5);
    gguf_put_u32(&w, "llama.block_count", 7);
    gguf_put_f32(&w, "eps", 0.5f);
    gguf_put_bool(&w, "flag", true);
    gguf_put_strings(&w, "words", words, 2);
    gguf_put_i32s(&w, "types", types, 3);
    gguf_put_f32s(&w, "scores", y, 3);
    const char *path = tmp_path("x.gguf");
    if (!gguf_save(&w, t, 2, path, &e) || !gguf_open(&g, path, &e)) fail_msg("%s", e.msg);
    int64_t count = 0;
    double eps = 0;
    bool flag = false;
    assert_true(gguf_get_int(&g, "llama.block_count", true, 0, 99, &count, &e) && count == 7);
    assert_true(gguf_get_num(&g, "eps", true, &eps, &e) && eps == 0.5);
    assert_true(gguf_get_bool(&g, "flag", &flag, &e) && flag);
    const GgufValue *v = gguf_find(&g, "words");
    assert_true(v && v->n == 2 && v->strings[0].len == 3 && memcmp(v->strings[0].data, "a b", 3) == 0 && v->strings[1].len == 0);
    v = gguf_find(&g, "types");
    assert_true(v && v->n == 3 && gguf_item_int(v, 1) == -2);
    v = gguf_find(&g, "scores");
    assert_true(v && v->n == 3 && v->item_type == GGUF_F32 && gguf_item_num(v, 2) == 9);
    const FileTensor *m = tensorfile_find(&g.file, "m.weight"), *one = tensorfile_find(&g.file, "v");
    assert_true(m && m->n_dims == 2 && m->shape[0] == 2 && m->shape[1] == 3 && memcmp(m->data, x, sizeof x) == 0);
    assert_true(one && one->n_dims == 1 && one->shape[0] == 3 && memcmp(one->data, y, sizeof y) == 0);
    gguf_close(&g);
    const GgufTensor bad = {"b", DT_I64, 1, {1, 0, 0}, x, 8};
    Str out = {0};
    assert_false(gguf_header(&w, &bad, 1, &out, &e));
    assert_int_equal(e.code, ERR_UNSUPPORTED);
    str_free(&out);
    gguf_writer_free(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_blocks), cmocka_unit_test(test_file)};
    int failed = cmocka_run_group_tests(tests, tmp_make, tmp_done);
    arena_free(&arena);
    return failed;
}
