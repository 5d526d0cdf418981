/* test_gguf — GGUF 的读取
 * 样本由官方 gguf 包写出（tests/tools/make_gguf_blocks.py）；坏文件逐一检查在 test_bad_files。 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "io/gguf.h"

#define OFFICIAL "tests/data/gguf_blocks.gguf"

static Gguf open_official(void) {
    Err e = {0};
    Gguf g;
    if (!gguf_open(&g, OFFICIAL, &e)) fail_msg("%s", e.msg);
    return g;
}

static void assert_int_value(const Gguf *g, const char *key, int64_t want) {
    Err e = {0};
    int64_t v = 0;
    if (!gguf_get_int(g, key, true, INT64_MIN, INT64_MAX, &v, &e)) fail_msg("%s", e.msg);
    assert_true(v == want);
}

static void test_scalars(void **state) {
    (void)state;
    Gguf g = open_official();
    Err e = {0};
    double d;
    bool b = false;
    assert_int_value(&g, "test.u8", 200);
    assert_int_value(&g, "test.i8", -100);
    assert_int_value(&g, "test.u16", 60000);
    assert_int_value(&g, "test.i16", -30000);
    assert_int_value(&g, "test.u32", 4000000000);
    assert_int_value(&g, "test.i32", -2000000000);
    assert_int_value(&g, "test.u64", 9000000000000000000);
    assert_int_value(&g, "test.i64", -9000000000000000000);
    assert_true(gguf_get_num(&g, "test.f32", true, &d, &e) && d == (double)0.1f);
    assert_true(gguf_get_num(&g, "test.f64", true, &d, &e) && d == 0.1);
    assert_true(gguf_get_num(&g, "test.i16", true, &d, &e) && d == -30000);
    assert_true(gguf_get_bool(&g, "test.bool", &b, &e) && b);
    const GgufValue *s = gguf_find(&g, "test.string");
    assert_non_null(s);
    assert_int_equal(s->s.len, 6);
    assert_memory_equal(s->s.data, "量化", 6);
    gguf_close(&g);
    assert_null(gguf_find(&g, "test.u8"));
}

static void test_arrays(void **state) {
    (void)state;
    Gguf g = open_official();
    const GgufValue *v = gguf_find(&g, "test.ints");
    assert_true(v && v->type == GGUF_ARRAY && v->item_type == GGUF_I32 && v->n == 3);
    assert_int_equal(gguf_item_int(v, 1), -2);
    assert_true(gguf_item_num(v, 2) == 3);
    v = gguf_find(&g, "test.floats");
    assert_true(v && v->n == 2 && gguf_item_num(v, 1) == -1.5 && gguf_item_int(v, 1) == -1);
    v = gguf_find(&g, "test.strings");
    assert_true(v && v->n == 3 && v->strings[1].len == 0 && v->strings[2].data[0] == 'c');
    assert_memory_equal(v->strings[0].data, "甲", 3);
    gguf_close(&g);
}

static void test_get_errors(void **state) {
    (void)state;
    Gguf g = open_official();
    Err e = {0};
    int64_t v = 42;
    double d = 42;
    bool b = true;
    assert_false(gguf_get_int(&g, "absent", true, 0, 9, &v, &e));
    assert_string_equal(e.msg, OFFICIAL ": 缺少元数据 absent");
    assert_true(gguf_get_int(&g, "absent", false, 0, 9, &v, &e) && v == 42);
    assert_true(gguf_get_num(&g, "absent", false, &d, &e) && d == 42);
    assert_false(gguf_get_num(&g, "absent", true, &d, &e));
    assert_true(gguf_get_bool(&g, "absent", &b, &e) && b);
    assert_false(gguf_get_int(&g, "test.u8", true, 0, 199, &v, &e));
    assert_string_equal(e.msg, OFFICIAL ": 元数据 test.u8 为 200，超出范围 [0, 199]");
    assert_false(gguf_get_int(&g, "test.f32", true, 0, 9, &v, &e));
    assert_false(gguf_get_int(&g, "test.bool", true, 0, 9, &v, &e));
    assert_false(gguf_get_int(&g, "test.string", true, 0, 9, &v, &e));
    assert_false(gguf_get_int(&g, "test.ints", true, 0, 9, &v, &e));
    assert_false(gguf_get_num(&g, "test.string", true, &d, &e));
    assert_false(gguf_get_bool(&g, "test.u8", &b, &e));
    assert_int_equal(e.code, ERR_FORMAT);
    gguf_close(&g);
}

/* 手写的最小文件：一个 F64 数组与一个 F32 标量 NaN。 */
static void test_odd_numbers(void **state) {
    (void)state;
    uint8_t file[] = "GGUF\3\0\0\0\0\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0"
                     "\1\0\0\0\0\0\0\0a\x09\0\0\0\x0c\0\0\0\4\0\0\0\0\0\0\0"
                     "\0\0\0\0\0\0\xf8\x7f" /* NaN */
                     "\0\0\0\0\0\0\xf0\x7f" /* Inf */
                     "\0\0\0\0\0\0\xf0\xff" /* -Inf */
                     "\0\0\0\0\0\0\xfc\xbf" /* -1.75 */
                     "\1\0\0\0\0\0\0\0b\6\0\0\0\0\0\xc0\x7f";
    Err e = {0};
    Gguf g;
    double d;
    if (!gguf_parse(&g, "t", file, sizeof file - 1, &e)) fail_msg("%s", e.msg);
    const GgufValue *v = gguf_find(&g, "a");
    assert_int_equal(gguf_item_int(v, 0), 0);
    assert_true(gguf_item_int(v, 1) == INT64_MAX && gguf_item_int(v, 2) == INT64_MIN);
    assert_int_equal(gguf_item_int(v, 3), -1);
    assert_false(gguf_get_num(&g, "b", true, &d, &e)); /* NaN 不当作数 */
    gguf_close(&g);
}

static void test_tensors(void **state) {
    (void)state;
    Gguf g = open_official();
    const FileTensor *t = tensorfile_find(&g.file, "Q8_0");
    assert_non_null(t);
    assert_int_equal(t->dtype, DT_Q8_0);
    assert_int_equal(t->shape[0], 2); /* 2 行，每行 4 块 */
    assert_int_equal(t->shape[1], 128);
    assert_int_equal(t->bytes, 2 * 4 * 34);
    gguf_close(&g);
    Err e = {0};
    if (!gguf_open(&g, "tests/data/ok/gguf/align_64.gguf", &e)) fail_msg("%s", e.msg);
    t = tensorfile_find(&g.file, "v");
    assert_true(t && t->shape[0] == 4 && t->shape[1] == 2); /* 文件中 ne = (2, 4) */
    assert_int_equal((const uint8_t *)t->data - g.file.map.data, g.file.map.size - 32);
    gguf_close(&g);
    assert_false(gguf_open(&g, "tests/data/absent.gguf", &e));
    assert_int_equal(e.code, ERR_IO);
}

/* 一个好文件在任何一处截断都是错误；任何一个比特改动都不会崩溃。 */
static void test_cuts_and_flips(void **state) {
    (void)state;
    Err e = {0};
    Arena a = {0};
    size_t size;
    char *good = file_read(&a, "tests/data/ok/gguf/align_64.gguf", 4096, &size, &e);
    if (!good) fail_msg("%s", e.msg);
    for (size_t n = 0; n < size; n++) {
        uint8_t *exact = malloc(n ? n : 1); /* 恰为 n 字节的块，使越界读被 ASan 抓住 */
        memcpy(exact, good, n);
        Gguf g;
        assert_false(gguf_parse(&g, "t", exact, n, &e));
        assert_int_equal(e.code, ERR_FORMAT);
        gguf_close(&g);
        free(exact);
    }
    for (size_t i = 0; i < size; i++)
        for (int bit = 0; bit < 8; bit++) {
            Gguf g;
            good[i] ^= (char)(1 << bit);
            gguf_parse(&g, "t", (uint8_t *)good, size, &e);
            gguf_close(&g);
            good[i] ^= (char)(1 << bit);
        }
    arena_free(&a);
}

static void test_out_of_memory(void **state) {
    (void)state;
    Allocator *al = allocator_default();
    bool ok = false;
    int failures = 0;
    for (long i = 1; !ok && i < 100; i++) {
        Err e = {0};
        Gguf g;
        size_t before = al->used;
        al->fail_at = al->n_allocs + i;
        ok = gguf_open(&g, OFFICIAL, &e);
        al->fail_at = 0;
        if (ok) gguf_close(&g);
        if (!ok) assert_int_equal(e.code, ERR_MEMORY);
        failures += !ok;
        assert_int_equal(al->used, before);
    }
    assert_true(ok && failures > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scalars),        cmocka_unit_test(test_arrays),
        cmocka_unit_test(test_get_errors),     cmocka_unit_test(test_odd_numbers),
        cmocka_unit_test(test_tensors),        cmocka_unit_test(test_cuts_and_flips),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
