/* test_yaml — YAML 节点树
 * 坏输入的逐文件检查在 test_bad_files；这里查定型规则、位置、路径、上限、内存不足。 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <cmocka.h>

#include "base/str.h"
#include "io/yaml.h"
#include "tests/unit/tmp.h"

static YamlNode *value(Arena *a, const char *text) {
    Err e = {0};
    YamlNode *v = yaml_parse_value(a, text, "命令行", &e);
    if (!v) fail_msg("%s: %s", text, e.msg);
    return v;
}

static void assert_kinds(YamlKind kind, const char *const *texts) {
    Arena a = {0};
    for (; *texts; texts++) {
        YamlNode *v = value(&a, *texts);
        if (v->kind != kind)
            fail_msg("\"%s\" 定型为%s，应为%s", *texts, yaml_kind_name(v->kind),
                     yaml_kind_name(kind));
    }
    arena_free(&a);
}

static void test_kinds(void **state) {
    (void)state;
    static const char *const NULLS[] = {"", "~", "null", "Null", "NULL", "# 注释", NULL};
    static const char *const BOOLS[] = {"true", "True", "TRUE", "false", "False", "FALSE", NULL};
    static const char *const INTS[] = {"0", "-12", "+7", "0x1F", "0o17", "017", "00", NULL};
    static const char *const FLOATS[] = {"1.5", ".5", "5.", "-1e-5", "1E3", "+.5e+2", ".inf",
                                         "-.INF", "+.Inf", ".nan", ".NaN", ".NAN", NULL};
    static const char *const STRS[] = {
        "yes", "no", "on", "off", "y", "tRUE", "nULL", "\"1\"", "'true'", "\"\"", "1_000", "0b1",
        "1e", "e5", ".", "+", "0x", "0o8", "-0x1", "1.2.3", "12:30", "2001-01-01", ".Nan",
        "-.nan", ".e5", "1 2", "0xg", "infinity", "nan", NULL};
    assert_kinds(YAML_NULL, NULLS);
    assert_kinds(YAML_BOOL, BOOLS);
    assert_kinds(YAML_INT, INTS);
    assert_kinds(YAML_FLOAT, FLOATS);
    assert_kinds(YAML_STR, STRS);
}

static void test_values(void **state) {
    (void)state;
    Arena a = {0};
    assert_true(value(&a, "True")->boolean);
    assert_false(value(&a, "FALSE")->boolean);
    assert_int_equal(value(&a, "0x1F")->integer, 31);
    assert_int_equal(value(&a, "0o17")->integer, 15);
    assert_int_equal(value(&a, "017")->integer, 17);
    assert_int_equal(value(&a, "-9223372036854775808")->integer, INT64_MIN);
    assert_int_equal(value(&a, "9223372036854775807")->integer, INT64_MAX);
    assert_true(value(&a, "12")->number == 12.0);
    assert_true(value(&a, "1e-5")->number == 1e-5);
    assert_true(value(&a, "-.inf")->number == -INFINITY);
    assert_true(isnan(value(&a, ".nan")->number));
    assert_true(value(&a, "1e-999")->number == 0.0); /* 下溢不是错误 */
    assert_string_equal(value(&a, "1e-5")->text, "1e-5");
    assert_string_equal(value(&a, "'it''s'")->text, "it's");
    assert_string_equal(value(&a, "\"\\u91cf\\n\"")->text, "量\n");
    YamlNode *l = value(&a, "[2, 3, x]");
    assert_int_equal(l->kind, YAML_LIST);
    assert_int_equal(l->n, 3);
    assert_int_equal(l->items[1]->integer, 3);
    assert_string_equal(l->items[0]->file, "命令行");
    assert_null(l->keys);
    assert_null(l->text);
    arena_free(&a);
}

static void test_tree(void **state) {
    (void)state;
    const char *p = tmp_path("t.yaml"), *text = "# 头\nmodel: demo\nweight:\n  w_bits: 4\n"
                                                "  skip:\n    - lm_head\n    - embed\n空:\n";
    tmp_write(p, text, strlen(text));
    Arena a = {0};
    Err e = {0};
    YamlNode *root = yaml_load(&a, p, &e);
    if (!root) fail_msg("%s", e.msg);
    assert_int_equal(root->n, 3);
    assert_string_equal(root->keys[1], "weight");
    YamlNode *bits = yaml_path(root, "weight.w_bits");
    assert_int_equal(bits->integer, 4);
    assert_int_equal(bits->line, 4);
    assert_string_equal(bits->file, p);
    assert_int_equal(yaml_path(root, "weight.skip")->items[1]->line, 7);
    assert_int_equal(yaml_get(root, "空")->kind, YAML_NULL);
    assert_null(yaml_path(root, "weight.w_bit"));
    assert_null(yaml_path(root, "model.x"));
    assert_null(yaml_path(root, "weight."));
    assert_null(yaml_path(root, ""));
    assert_null(yaml_get(bits, "x"));
    assert_null(yaml_get(NULL, "x"));
    assert_string_equal(yaml_kind_name(YAML_INT), "整数");
    assert_string_equal(yaml_kind_name((YamlKind)99), "?");
    assert_null(yaml_load(&a, tmp_path("absent.yaml"), &e));
    assert_int_equal(e.code, ERR_IO);
    arena_free(&a);
}

/* 任务文件收 !function 与核心的类型标签；一般的配置文件都不收。 */
static void test_tags(void **state) {
    (void)state;
    const char *p = tmp_path("tags.yaml");
    const char *text = "a: !!null \"null\"\nb: !!str 5\nc: !!int \"7\"\nd: !!float 2\ne: !!bool 'true'\n"
                       "f: !!seq [1]\ng: !!map {x: 1}\nh: !function m.f\n";
    static const YamlKind KINDS[] = {YAML_NULL, YAML_STR, YAML_INT, YAML_FLOAT,
                                     YAML_BOOL, YAML_LIST, YAML_MAP, YAML_STR};
    Arena a = {0};
    Err e = {0};
    tmp_write(p, text, strlen(text));
    YamlNode *root = yaml_load_task(&a, p, &e);
    if (!root) fail_msg("%s", e.msg);
    for (size_t i = 0; i < root->n; i++) assert_int_equal(root->items[i]->kind, KINDS[i]);
    assert_string_equal(root->items[1]->text, "5");
    assert_int_equal(root->items[2]->integer, 7);
    assert_true(root->items[3]->number == 2.0);
    assert_true(root->items[7]->function);
    assert_null(yaml_load(&a, p, &e));
    /* 重复的键：任务文件里取后者（同 PyYAML），配置里是错误 */
    text = "a: 1\nb: 2\na: {x: 3, x: 4}\n";
    tmp_write(p, text, strlen(text));
    root = yaml_load_task(&a, p, &e);
    if (!root) fail_msg("%s", e.msg);
    assert_int_equal(root->n, 2);
    assert_int_equal(yaml_path(root, "a.x")->integer, 4);
    assert_null(yaml_load(&a, p, &e));
    static const char *const BAD[] = {"a: !!int x", "a: !!bool 1", "a: !!seq {x: 1}", "a: !!map 1",
                                      "a: !!int 99999999999999999999", "a: !!python/tuple [1]",
                                      "a: !x 1", "a: !!seq x"};
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        tmp_write(p, BAD[i], strlen(BAD[i]));
        if (yaml_load_task(&a, p, &e)) fail_msg("%s", BAD[i]);
        assert_int_equal(e.code, ERR_CONFIG);
    }
    arena_free(&a);
}

/* 节点恰为十万可以，多一个报错；重复键在大映射里也找得到。 */
static void test_limits(void **state) {
    (void)state;
    Arena a = {0};
    Err e = {0};
    Str s = {0};
    str_add(&s, "[");
    for (int i = 0; i < 99999; i++) str_add(&s, "1,");
    YamlNode *v = NULL;
    str_add(&s, "]");
    v = yaml_parse(&a, "t", s.data, s.len, &e);
    if (!v) fail_msg("%s", e.msg);
    assert_int_equal(v->n, 99999);
    s.data[s.len - 1] = ' ';
    str_add(&s, "1]");
    assert_null(yaml_parse(&a, "t", s.data, s.len, &e));
    assert_string_equal(e.msg, "t:1: 节点数超过上限 100000");
    str_free(&s);
    for (int i = 0; i < 50000; i++) str_addf(&s, "k%d: 1\n", i % 49999);
    assert_null(yaml_parse(&a, "t", s.data, s.len, &e));
    assert_string_equal(e.msg, "t:50000: 重复的键 \"k0\"（第 1 行已有）");
    str_free(&s);
    char *big = calloc(1, (8u << 20) + 1);
    assert_null(yaml_parse(&a, "t", big, (8u << 20) + 1, &e));
    assert_non_null(strstr(e.msg, "超过 YAML 的上限"));
    free(big);
    arena_free(&a);
}

/* Arena 的每一次向系统要内存依次失败：干净的 ERR_MEMORY。 */
static void test_out_of_memory(void **state) {
    (void)state;
    Str s = {0};
    for (int i = 0; i < 2000; i++) str_addf(&s, "k%d: [a, {b: %d}]\n", i, i);
    YamlNode *v = NULL;
    int failures = 0;
    for (long i = 1; !v && i < 1000; i++) {
        Allocator al = *allocator_default();
        al.used = 0;
        al.n_allocs = 0;
        al.fail_at = i;
        Arena a = {.allocator = &al};
        Err e = {0};
        v = yaml_parse(&a, "t", s.data, s.len, &e);
        if (!v) {
            assert_int_equal(e.code, ERR_MEMORY);
            failures++;
        }
        arena_free(&a);
        assert_int_equal(al.used, 0);
    }
    assert_non_null(v);
    assert_true(failures > 5);
    str_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds), cmocka_unit_test(test_values), cmocka_unit_test(test_tree),
        cmocka_unit_test(test_tags),  cmocka_unit_test(test_limits), cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, tmp_make, tmp_done);
}
