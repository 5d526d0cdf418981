/* test_safetensors — safetensors 的读取
 * 坏文件逐一检查在 test_bad_files；这里查官方包写出的文件、查找、任意截断、内存不足。 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "io/tensorfile.h"

#define OFFICIAL "tests/data/gguf_blocks.safetensors" /* 由官方 Python 包写出 */
#define DEMO "data/raw/demo/model/model.safetensors"

static void test_official(void **state) {
    (void)state;
    Err e = {0};
    TensorFile f;
    if (!safetensors_open(&f, OFFICIAL, &e)) fail_msg("%s", e.msg);
    assert_int_equal(f.n_tensors, 27);
    const FileTensor *t = tensorfile_find(&f, "Q4_K");
    assert_non_null(t);
    assert_int_equal(t->dtype, DT_F32);
    assert_int_equal(t->n_dims, 2);
    assert_int_equal(t->shape[0], 2);
    assert_int_equal(t->shape[1], 512);
    assert_int_equal(t->bytes, 4096);
    assert_string_equal(t->path, OFFICIAL);
    assert_null(tensorfile_find(&f, "Q4_"));
    assert_null(tensorfile_find(&f, ""));
    for (size_t i = 1; i < f.n_tensors; i++)
        assert_true(strcmp(f.tensors[i - 1].name, f.tensors[i].name) < 0);
    tensorfile_close(&f);
    assert_null(tensorfile_find(&f, "Q4_K")); /* 关闭后为空 */
    tensorfile_close(&f);
}

static void test_demo_model(void **state) {
    (void)state;
    Err e = {0};
    TensorFile f;
    if (!safetensors_open(&f, DEMO, &e)) fail_msg("%s", e.msg);
    const FileTensor *t = tensorfile_find(&f, "model.embed_tokens.weight");
    assert_non_null(t);
    assert_int_equal(t->dtype, DT_BF16);
    assert_int_equal(t->shape[0], 4096);
    tensorfile_close(&f);
}

static void test_open_errors(void **state) {
    (void)state;
    Err e = {0};
    TensorFile f;
    assert_false(safetensors_open(&f, "tests/data/absent.safetensors", &e));
    assert_int_equal(e.code, ERR_IO);
    assert_false(safetensors_open(&f, "tests/data", &e));
    assert_int_equal(e.code, ERR_IO);
}

/* 一个好文件在任何一处截断都是错误；任何一个字节改动都不会崩溃。 */
static void test_cuts_and_flips(void **state) {
    (void)state;
    Err e = {0};
    Arena a = {0};
    size_t size;
    char *good = file_read(&a, "tests/data/ok/safetensors/two.safetensors", 4096, &size, &e);
    if (!good) fail_msg("%s", e.msg);
    for (size_t n = 0; n < size; n++) {
        uint8_t *cut = malloc(n + 1); /* 恰为 n 字节的块，使越界读被 ASan 抓住 */
        uint8_t *exact = n ? realloc(cut, n) : cut;
        memcpy(exact, good, n);
        TensorFile f;
        e.code = ERR_NONE;
        assert_false(safetensors_parse(&f, "t", exact, n, &e));
        assert_int_equal(e.code, ERR_FORMAT);
        tensorfile_close(&f);
        free(exact);
    }
    for (size_t i = 0; i < size; i++)
        for (int bit = 0; bit < 8; bit++) {
            TensorFile f;
            good[i] ^= (char)(1 << bit);
            safetensors_parse(&f, "t", (uint8_t *)good, size, &e);
            tensorfile_close(&f);
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
        TensorFile f;
        size_t before = al->used;
        al->fail_at = al->n_allocs + i;
        ok = safetensors_open(&f, OFFICIAL, &e);
        al->fail_at = 0;
        if (ok) tensorfile_close(&f);
        if (!ok) assert_int_equal(e.code, ERR_MEMORY);
        failures += !ok;
        assert_int_equal(al->used, before);
    }
    assert_true(ok && failures > 0);
}

static void test_count(void **state) {
    (void)state;
    size_t n;
    assert_true(tensorfile_count(NULL, 0, &n) && n == 1);
    assert_true(tensorfile_count((int64_t[]){3, 0}, 2, &n) && n == 0);
    assert_false(tensorfile_count((int64_t[]){-1}, 1, &n));
    assert_false(tensorfile_count((int64_t[]){INT64_MAX, 2}, 2, &n));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_official),       cmocka_unit_test(test_demo_model),
        cmocka_unit_test(test_open_errors),    cmocka_unit_test(test_cuts_and_flips),
        cmocka_unit_test(test_out_of_memory),  cmocka_unit_test(test_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
