/* test_parquet — Parquet 读成的行与 pyarrow 写下的 JSONL 相同；任意截断、改字节都只是报错 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/file.h"
#include "io/parquet.h"
#include "tasks/task_data.h"

static const char *const NAMES[] = {"nested_snappy_v1", "nested_zstd_v2", "many_gzip_plain", "many_delta_v2"};
enum { N_NAMES = sizeof NAMES / sizeof *NAMES };

static FileMap open_sample(const char *name) {
    char path[200];
    FileMap m;
    Err e = {0};
    snprintf(path, sizeof path, "tests/data/ok/parquet/%s.parquet", name);
    if (!file_map(&m, path, &e)) fail_msg("%s", e.msg);
    return m;
}

static void test_values(void **state) {
    (void)state;
    for (int i = 0; i < N_NAMES; i++) {
        FileMap m = open_sample(NAMES[i]), text;
        char path[200];
        Err e = {0};
        snprintf(path, sizeof path, "tests/data/parquet/%s.jsonl", NAMES[i]);
        assert_true(file_map(&text, path, &e));
        json_t *want = task_rows_jsonl(path, (const char *)text.data, text.size, &e);
        json_t *got = parquet_rows(NAMES[i], m.data, m.size, PARQUET_MEMORY, &e);
        if (!got || !want) fail_msg("%s: %s", NAMES[i], e.msg);
        if (!json_equal(got, want)) fail_msg("%s: 与 %s 不同", NAMES[i], path);
        json_decref(got);
        json_decref(want);
        file_unmap(&text);
        file_unmap(&m);
    }
}

/* 列的次序就是文件中的次序。 */
static void test_order(void **state) {
    (void)state;
    static const char *const KEYS[] = {"question", "choices", "answer", "pairs", "score", "good"};
    FileMap m = open_sample(NAMES[0]);
    Err e = {0};
    json_t *rows = parquet_rows("x", m.data, m.size, PARQUET_MEMORY, &e), *row = json_array_get(rows, 0);
    size_t i = 0;
    assert_int_equal(json_object_size(row), 6);
    for (void *it = json_object_iter(row); it; it = json_object_iter_next(row, it))
        assert_string_equal(json_object_iter_key(it), KEYS[i++]);
    json_decref(rows);
    file_unmap(&m);
}

/* 每一处截断、几千处改字节：要么读出来，要么有说明。 */
static void test_damage(void **state) {
    (void)state;
    for (int i = 0; i < N_NAMES; i++) {
        FileMap m = open_sample(NAMES[i]);
        uint8_t *copy = malloc(m.size);
        unsigned seed = 3;
        for (size_t n = 0; n < m.size; n += 1 + n / 200) {
            Err e = {0};
            memcpy(copy, m.data, m.size);
            assert_null(parquet_rows("x", copy, n, PARQUET_MEMORY, &e));
            assert_int_not_equal(e.code, ERR_NONE);
            e = (Err){0};
            copy[(size_t)rand_r(&seed) % m.size] ^= (uint8_t)(1u << rand_r(&seed) % 8);
            copy[n] = (uint8_t)rand_r(&seed);
            json_t *rows = parquet_rows("x", copy, m.size, (size_t)64 << 20, &e);
            assert_true(rows ? e.code == ERR_NONE : e.code != ERR_NONE);
            json_decref(rows);
        }
        free(copy);
        file_unmap(&m);
    }
}

/* 内存的上限：同一个文件，给得够就读得出。 */
static void test_limit(void **state) {
    (void)state;
    FileMap m = open_sample("many_delta_v2");
    Err e = {0};
    assert_null(parquet_rows("x", m.data, m.size, 100000, &e));
    assert_non_null(strstr(e.msg, "上限"));
    json_t *rows = parquet_rows("x", m.data, m.size, 2000000, &e);
    assert_int_equal(json_array_size(rows), 300);
    json_decref(rows);
    file_unmap(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
