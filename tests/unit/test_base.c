/* test_base — base 室：err、arena、str、rng
 * arena 的分配失败由 Allocator.fail_at 注入；rng 对照 Random123 的已知答案。 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <cmocka.h>

#include "base/rng.h"
#include "base/str.h"

static void test_err_messages(void **state) {
    (void)state;
    Err e = {0};
    assert_false(err_set(&e, ERR_CONFIG, "键 %s", "w_bits"));
    assert_false(err_wrap(&e, "%s:%d", "a.yaml", 3));
    assert_string_equal(e.msg, "a.yaml:3: 键 w_bits");
    assert_int_equal(e.code, ERR_CONFIG);
    assert_false(err_set(NULL, ERR_IO, "无处可写"));
    assert_false(err_wrap(NULL, "无处可写"));
}

/* 过长的消息截断在字符边界上。 */
static void test_err_truncation(void **state) {
    (void)state;
    for (int shift = 0; shift < 4; shift++) {
        char text[2048];
        memset(text, 'x', (size_t)shift);
        for (int i = shift; i + 3 < 2040; i += 3) memcpy(text + i, "量", 4);
        Err e = {0};
        err_set(&e, ERR_IO, "%s", text);
        size_t n = strlen(e.msg);
        assert_true(n >= 1020 && n <= 1023 && (n - (size_t)shift) % 3 == 0);
        err_wrap(&e, "前缀");
        n = strlen(e.msg);
        assert_true(n >= 1018 && memcmp(e.msg + n - 3, "量", 3) == 0);
    }
}

/* 来自文件的控制字符、坏 UTF-8 不会原样出现在消息里。 */
static void test_err_clean(void **state) {
    (void)state;
    Err e = {0};
    err_set(&e, ERR_FORMAT, "键 %s", "a\x1b[2J\r\xff\xe9\x87\xc2\x9b\x7f\t量\n二");
    assert_string_equal(e.msg, "键 a?[2J???????\t量\n二");
    char text[] = "";
    str_clean(text);
    assert_string_equal(text, "");
}

static void test_err_codes(void **state) {
    (void)state;
    assert_string_equal(err_code_name(ERR_NONE), "none");
    assert_string_equal(err_code_name(ERR_INTERRUPTED), "interrupted");
    assert_string_equal(err_code_name((ErrCode)99), "unknown");
    assert_int_equal(err_exit_code(ERR_NONE), 0);
    assert_int_equal(err_exit_code(ERR_USAGE), 2);
    assert_int_equal(err_exit_code(ERR_INTERRUPTED), 130);
    assert_int_equal(err_exit_code(ERR_NUMERIC), 1);
}

static Allocator fresh_allocator(void) {
    Allocator al = *allocator_default();
    al.used = al.peak = 0;
    al.n_allocs = al.fail_at = 0;
    return al;
}

static void assert_zero(const void *p, size_t n) {
    for (size_t i = 0; i < n; i++) assert_int_equal(((const uint8_t *)p)[i], 0);
}

static void test_arena_alignment(void **state) {
    (void)state;
    Allocator al = fresh_allocator();
    Arena a = {.allocator = &al};
    static const size_t SIZES[] = {0, 1, 63, 64, 65, 1000, 65536, 300000, 1 << 20};
    for (int round = 0; round < 3; round++)
        for (size_t i = 0; i < sizeof SIZES / sizeof *SIZES; i++) {
            uint8_t *p = arena_alloc(&a, SIZES[i], NULL);
            assert_non_null(p);
            assert_int_equal((uintptr_t)p % 64, 0);
            assert_zero(p, SIZES[i]);
            memset(p, 0xAA, SIZES[i]);
        }
    assert_true(al.used >= a.used && al.peak == al.used);
    arena_free(&a);
    assert_int_equal(al.used, 0);
    arena_free(&a); /* 再释放一次无妨 */
}

static void test_arena_rewind(void **state) {
    (void)state;
    Allocator al = fresh_allocator();
    Arena a = {.allocator = &al};
    ArenaMark empty = arena_mark(&a);
    char *keep = arena_strdup(&a, "留下", NULL);
    ArenaMark m = arena_mark(&a);
    size_t used = a.used, held = al.used;
    char *p = arena_alloc(&a, 5000, NULL);
    memset(p, 0xAA, 5000);
    assert_non_null(arena_alloc(&a, 400000, NULL));
    arena_rewind(&a, m);
    assert_int_equal(a.used, used);
    assert_int_equal(al.used, held);
    assert_string_equal(keep, "留下");
    char *again = arena_alloc(&a, 5000, NULL);
    assert_ptr_equal(again, p);
    assert_zero(again, 5000);
    arena_rewind(&a, empty);
    assert_int_equal(al.used, 0);
    arena_free(&a);
}

/* 归还的大块清零再用；合计不超过峰值，有上限时不留。 */
static void test_allocator_keeps(void **state) {
    (void)state;
    enum { BIG = 1 << 20, MAPPED = 256 };
    Allocator al = fresh_allocator();
    allocator_trim();
    uint8_t *p = al.alloc(&al, BIG);
    assert_non_null(p);
    memset(p, 0xAA, BIG);
    al.release(&al, p, BIG);
    assert_int_equal(al.used, 0);
    uint8_t *again = al.alloc(&al, BIG);
    assert_ptr_equal(again, p);
    assert_zero(again, BIG);
    al.release(&al, again, BIG);
    uint8_t *other = al.alloc(&al, BIG - 4096); /* 大小不同：另要一块，留着的超过峰值就还 */
    assert_non_null(other);
    unsigned char in_core[MAPPED];
    assert_int_equal(mincore(p, BIG, in_core), -1);
    al.limit = 2 * BIG;
    al.release(&al, other, BIG - 4096);
    assert_int_equal(mincore(other, BIG - 4096, in_core), -1);
}

static void test_arena_failure(void **state) {
    (void)state;
    Allocator al = fresh_allocator();
    Arena a = {.allocator = &al};
    Err e = {0};
    al.fail_at = 2;
    assert_non_null(arena_alloc(&a, 10, &e));
    assert_int_equal(e.code, ERR_NONE);
    assert_null(arena_alloc(&a, 100000, &e));
    assert_int_equal(e.code, ERR_MEMORY);
    assert_non_null(arena_alloc(&a, 100000, &e)); /* 只失败一次 */
    assert_null(arena_array(&a, SIZE_MAX / 4, 8, &e));
    assert_null(arena_alloc(&a, SIZE_MAX - 10, &e));
    assert_null(arena_alloc(&a, SIZE_MAX / 2 - 10, NULL));
    arena_free(&a);
    assert_int_equal(al.used, 0);
}

static void test_arena_text(void **state) {
    (void)state;
    Arena a = {0};
    assert_string_equal(arena_printf(&a, NULL, "%s-%03d", "层", 7), "层-007");
    assert_string_equal(arena_strndup(&a, "abcdef", 3, NULL), "abc");
    assert_string_equal(arena_strndup(&a, "", 0, NULL), "");
    arena_free(&a);
}

static void test_str_growth(void **state) {
    (void)state;
    Str s = {0};
    for (int i = 0; i < 1000; i++) str_addf(&s, "%03d,", i);
    assert_false(s.failed);
    assert_int_equal(s.len, 4000);
    assert_memory_equal(s.data + 3996, "999,", 5);
    str_addn(&s, "x", SIZE_MAX / 2);
    assert_true(s.failed);
    str_add(&s, "失败后不再追加");
    assert_int_equal(s.len, 4000);
    str_free(&s);
    assert_null(s.data);
}

static void test_str_width(void **state) {
    (void)state;
    assert_int_equal(str_width(""), 0);
    assert_int_equal(str_width("abc"), 3);
    assert_int_equal(str_width("量化"), 4);
    assert_int_equal(str_width("（，。）"), 8);
    assert_int_equal(str_width("é"), 1);
    assert_int_equal(str_width("e\u0301"), 1); /* 组合符 */
    assert_int_equal(str_width("📊"), 2);
    assert_int_equal(str_width("⚠️"), 2); /* U+26A0 U+FE0F */
    assert_int_equal(str_width("⏱️"), 2);
    assert_int_equal(str_width("±Δ"), 2);
    assert_int_equal(str_width("a\xff\xfe"), 3); /* 坏 UTF-8 每字节一列 */
    assert_int_equal(str_width("\xe9\x87"), 2);
}

static void test_str_padding(void **state) {
    (void)state;
    Str s = {0};
    str_add_padded(&s, "方法", 6, false);
    str_add_padded(&s, "|", 0, false);
    str_add_padded(&s, "3.5", 6, true);
    str_add_padded(&s, "超过宽度", 3, false);
    assert_string_equal(s.data, "方法  |   3.5超过宽度");
    str_free(&s);
}

static void test_str_nearest(void **state) {
    (void)state;
    static const char *const NAMES[] = {"w_bits", "group_size", "symmetric", "fp16"};
    assert_string_equal(str_nearest("w_bit", NAMES, 4), "w_bits");
    assert_string_equal(str_nearest("groupsize", NAMES, 4), "group_size");
    assert_string_equal(str_nearest("fp8", NAMES, 4), "fp16");
    assert_null(str_nearest("temperature", NAMES, 4));
    assert_null(str_nearest("x", NAMES, 0));
    char longer[300];
    memset(longer, 'a', sizeof longer - 1);
    longer[299] = '\0';
    assert_string_equal(str_nearest(longer, (const char *const[]){longer}, 1), longer);
}

static void test_str_small(void **state) {
    (void)state;
    char buf[32];
    assert_true(str_starts("model.safetensors", "model."));
    assert_false(str_starts("mod", "model"));
    assert_true(str_ends("a.json", ".json"));
    assert_false(str_ends("json", ".json"));
    assert_string_equal(str_bytes(buf, sizeof buf, 999), "999 B");
    assert_string_equal(str_bytes(buf, sizeof buf, 14.0e6), "14.0 MB");
    assert_string_equal(str_seconds(buf, sizeof buf, 3.21), "3.2 秒");
    assert_string_equal(str_seconds(buf, sizeof buf, 245), "4 分 05 秒");
    assert_string_equal(str_seconds(buf, sizeof buf, 3720), "1 时 02 分");
}

/* Random123 的 kat_vectors：philox4x32 10 的三组。计数器 = (index, stream)，密钥 = seed。 */
static void test_rng_known_answers(void **state) {
    (void)state;
    assert_int_equal(rng_u64(0, 0, 0), 0xe169c58d6627e8d5u);
    assert_int_equal(rng_u64(UINT64_MAX, UINT64_MAX, UINT64_MAX), 0x41c83b0e408f276du);
    assert_int_equal(rng_u64(0x299f31d0a4093822u, 0x0370734413198a2eu, 0x85a308d3243f6a88u),
                     0x94fdccebd16cfe09u);
}

static void test_rng_ranges(void **state) {
    (void)state;
    int count[7] = {0};
    double sum = 0;
    for (uint64_t i = 0; i < 70000; i++) {
        uint64_t v = rng_below(1, 2, i, 7);
        assert_true(v < 7);
        count[v]++;
        double u = rng_unit(3, 4, i);
        assert_true(u >= 0 && u < 1);
        sum += u;
    }
    for (int i = 0; i < 7; i++) assert_in_range(count[i], 9600, 10400);
    assert_true(sum / 70000 > 0.495 && sum / 70000 < 0.505);
    assert_int_equal(rng_below(1, 2, 3, 1), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_err_messages),   cmocka_unit_test(test_err_truncation),
        cmocka_unit_test(test_err_clean),
        cmocka_unit_test(test_err_codes),      cmocka_unit_test(test_arena_alignment),
        cmocka_unit_test(test_arena_rewind), cmocka_unit_test(test_allocator_keeps),
        cmocka_unit_test(test_arena_failure),
        cmocka_unit_test(test_arena_text),     cmocka_unit_test(test_str_growth),
        cmocka_unit_test(test_str_width),      cmocka_unit_test(test_str_padding),
        cmocka_unit_test(test_str_nearest),    cmocka_unit_test(test_str_small),
        cmocka_unit_test(test_rng_known_answers), cmocka_unit_test(test_rng_ranges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
