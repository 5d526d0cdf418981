/* test_json — JSON 的读、写、取字段
 * 坏输入的逐文件检查在 test_bad_files；这里查取值规则、排版、实数写法、内存不足。 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <cmocka.h>

#include "base/rng.h"
#include "io/file.h"
#include "io/json.h"
#include "tests/unit/tmp.h"

static json_t *parse(const char *text) {
    Err e = {0};
    json_t *v = json_parse("t.json", text, strlen(text), &e);
    if (!v) fail_msg("%s", e.msg);
    return v;
}

static void assert_text(const json_t *v, const char *want) {
    Str s = {0};
    json_text(&s, v);
    assert_string_equal(s.data, want);
    str_free(&s);
}

static void test_layout(void **state) {
    (void)state;
    json_t *v = parse("{\"z\":1,\"a\":{\"文\":\"引\\\"号\\n\\u0001\"},\"n\":[1,2.5],\"l\":[\"x\",{}],"
                      "\"e\":[],\"t\":true,\"f\":false,\"u\":null}");
    assert_text(v, "{\n  \"z\": 1,\n  \"a\": {\n    \"文\": \"引\\\"号\\n\\u0001\"\n  },\n"
                   "  \"n\": [1, 2.5],\n  \"l\": [\n    \"x\",\n    {}\n  ],\n  \"e\": [],\n"
                   "  \"t\": true,\n  \"f\": false,\n  \"u\": null\n}\n");
    json_decref(v);
}

static void test_reals(void **state) {
    (void)state;
    static const struct {
        double v;
        const char *text;
    } CASES[] = {{0.1, "0.1\n"},       {22.6534, "22.6534\n"}, {1, "1.0\n"},
                 {1e30, "1e+30\n"},    {-0.0, "-0.0\n"},       {1.0 / 3, "0.3333333333333333\n"},
                 {5e-324, "4.94065645841247e-324\n"}, {123456789012345680.0, "1.2345678901234568e+17\n"}};
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        json_t *v = json_real(CASES[i].v);
        assert_text(v, CASES[i].text);
        json_decref(v);
    }
}

/* 随机的双精度数写出再读，逐位相等。 */
static void test_reals_round_trip(void **state) {
    (void)state;
    for (uint64_t i = 0; i < 20000; i++) {
        uint64_t u = rng_u64(7, 0, i);
        double d;
        memcpy(&d, &u, sizeof d);
        if (!isfinite(d)) continue;
        json_t *v = json_real(d);
        Str s = {0};
        json_text(&s, v);
        json_t *again = parse(s.data);
        double back = json_real_value(again);
        assert_true(json_is_real(again));
        assert_memory_equal(&back, &d, sizeof d);
        json_decref(again);
        json_decref(v);
        str_free(&s);
    }
}

static void test_save_load(void **state) {
    (void)state;
    Err e = {0};
    const char *path = tmp_path("v.json");
    json_t *v = parse("{\"a\": [1, {\"b\": \"\\u0000\"}]}"), *again;
    assert_true(json_save(path, v, &e));
    again = json_load(path, &e);
    assert_true(again && json_equal(v, again));
    json_decref(again);
    assert_false(json_save(tmp_path("none/v.json"), v, &e));
    assert_int_equal(e.code, ERR_IO);
    assert_null(json_load(tmp_path("absent.json"), &e));
    assert_int_equal(e.code, ERR_IO);
    json_decref(v);
}

/* 超出 int64 的整数按实数读；最近的双精度数至多差一个末位。 */
static void test_wide_integers(void **state) {
    (void)state;
    json_t *v = parse("[1000000000000000019884624838656, -123456789012345678901234, "
                      "9223372036854775807, 9223372036854775808]");
    assert_true(json_real_value(json_array_get(v, 0)) == 1e30);
    double neg = json_real_value(json_array_get(v, 1));
    assert_true(fabs(neg / -123456789012345678901234.0 - 1) < 3e-16);
    assert_true(json_integer_value(json_array_get(v, 2)) == INT64_MAX);
    assert_true(json_is_real(json_array_get(v, 3)));
    json_decref(v);
}

/* 几个字节换一百多字节内存的输入在解析前就被拒绝。 */
static void test_too_many_values(void **state) {
    (void)state;
    size_t n = 5000000;
    char *text = malloc(3 * n + 2);
    text[0] = '[';
    for (size_t i = 0; i < n; i++) memcpy(text + 1 + 3 * i, "[],", 3);
    text[3 * n] = ']';
    Err e = {0};
    assert_null(json_parse("t", text, 3 * n + 1, &e));
    assert_string_equal(e.msg, "t: JSON 中的值过多，解析需要的内存超过上限");
    memset(text + 1, ' ', 3 * n - 1); /* 大而简单的没有问题 */
    json_t *v = json_parse("t", text, 3 * n + 1, &e);
    assert_true(v && json_array_size(v) == 0);
    json_decref(v);
    free(text);
}

static void test_get_int(void **state) {
    (void)state;
    json_t *o = parse("{\"i\": 5, \"r\": 5.0, \"s\": \"5\", \"n\": null}");
    Err e = {0};
    int64_t v = -1;
    assert_true(json_get_int(o, "c.json", "i", 1, 5, &v, &e));
    assert_int_equal(v, 5);
    assert_false(json_get_int(o, "c.json", "i", 6, 9, &v, &e));
    assert_string_equal(e.msg, "c.json: \"i\" 为 5，超出范围 [6, 9]");
    assert_false(json_get_int(o, "c.json", "r", 0, 9, &v, &e));
    assert_string_equal(e.msg, "c.json: \"r\" 应为整数，实为实数");
    assert_false(json_get_int(o, "c.json", "absent", 0, 9, &v, &e));
    assert_string_equal(e.msg, "c.json: 缺少整数 \"absent\"");
    assert_false(json_get_int(o, "c.json", "n", 0, 9, &v, &e));
    assert_true(json_get_int_or(o, "c.json", "n", 7, 0, 9, &v, &e));
    assert_int_equal(v, 7);
    assert_true(json_get_int_or(o, "c.json", "absent", -3, 0, 9, &v, &e));
    assert_int_equal(v, -3);
    assert_false(json_get_int_or(o, "c.json", "s", 0, 0, 9, &v, &e));
    assert_int_equal(e.code, ERR_FORMAT);
    json_decref(o);
}

static void test_get_others(void **state) {
    (void)state;
    json_t *o = parse("{\"i\": 5, \"r\": 2.5, \"s\": \"x\", \"t\": true, \"n\": null}");
    Err e = {0};
    double d;
    bool b;
    const char *s;
    assert_true(json_get_num_or(o, "c", "i", 0, &d, &e) && d == 5);
    assert_true(json_get_num_or(o, "c", "r", 0, &d, &e) && d == 2.5);
    assert_true(json_get_num_or(o, "c", "n", 1e-5, &d, &e) && d == 1e-5);
    assert_false(json_get_num_or(o, "c", "s", 0, &d, &e));
    assert_true(json_get_bool_or(o, "c", "t", false, &b, &e) && b);
    assert_true(json_get_bool_or(o, "c", "absent", true, &b, &e) && b);
    assert_false(json_get_bool_or(o, "c", "i", false, &b, &e));
    assert_true(json_get_str_or(o, "c", "s", NULL, &s, &e) && strcmp(s, "x") == 0);
    assert_true(json_get_str_or(o, "c", "n", "默认", &s, &e) && strcmp(s, "默认") == 0);
    assert_false(json_get_str_or(o, "c", "i", NULL, &s, &e));
    assert_string_equal(e.msg, "c: \"i\" 应为字符串，实为整数");
    json_decref(o);
    o = parse("[1]"); /* 不是对象：一切键都缺失，不崩溃 */
    int64_t i;
    assert_false(json_get_int(o, "c", "i", 0, 9, &i, &e));
    assert_true(json_get_num_or(o, "c", "i", 3, &d, &e) && d == 3);
    json_decref(o);
}

static long fail_after, live;
static void *failing_malloc(size_t n) {
    void *p = fail_after-- == 0 ? NULL : malloc(n);
    live += p != NULL;
    return p;
}
static void counting_free(void *p) {
    live -= p != NULL;
    free(p);
}

/* jansson 的每一次内存分配依次失败：总是干净地报错、不泄漏。
 * （在词法层失败时 jansson 报的是语法错误，因此错误码有两种。） */
static void test_out_of_memory(void **state) {
    (void)state;
    const char *text = "{\"a\": [1, 2.5, \"x\", {\"b\": null}], \"c\": \"长一点的字符串\"}";
    json_t *v = NULL;
    int failures = 0, memory = 0;
    json_set_alloc_funcs(failing_malloc, counting_free);
    for (long i = 0; !v && i < 1000; i++) {
        Err e = {0};
        fail_after = i;
        v = json_parse("t", text, strlen(text), &e);
        if (v) break;
        failures++;
        memory += e.code == ERR_MEMORY;
        assert_true(e.code == ERR_MEMORY || e.code == ERR_FORMAT);
        assert_int_equal(live, 0);
    }
    assert_non_null(v);
    assert_true(failures > 10 && memory > 0);
    json_decref(v);
    assert_int_equal(live, 0);
    json_set_alloc_funcs(malloc, free);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),        cmocka_unit_test(test_reals),
        cmocka_unit_test(test_reals_round_trip), cmocka_unit_test(test_save_load),
        cmocka_unit_test(test_wide_integers), cmocka_unit_test(test_get_int),
        cmocka_unit_test(test_too_many_values), cmocka_unit_test(test_get_others),    cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, tmp_make, tmp_done);
}
