/* test_jinja — 模板解释器
 * 输出的期望值都由真正的 jinja2 3.1 生成（tests/data/jinja/cases.jsonl，tests/tools/make_jinja_cases.py）；
 * 这里另查字面量的读法（期望值取自 Python 的 ast.literal_eval）、正则的替换、上限与出错的位置。 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/str.h"
#include "tasks/jinja.h"
#include "tasks/pyregex.h"

static void check_case(const json_t *c, const json_t *context, int line) {
    Arena a = {0};
    Err e = {0};
    const char *out, *template_ = json_string_value(json_object_get(c, "template"));
    size_t len;
    const json_t *want = json_object_get(c, "out");
    bool ok = jinja_render_n(&a, &out, &len, template_, "t", context, &e);
    if (ok != (want != NULL))
        fail_msg("cases.jsonl:%d: %s: %s", line, template_, ok ? "本应报错" : e.msg);
    if (ok && (len != json_string_length(want) || memcmp(out, json_string_value(want), len) != 0))
        fail_msg("cases.jsonl:%d: %s: 得 '%s'，应为 '%s'", line, template_, out,
                 json_string_value(want));
    if (!ok) assert_int_equal(e.code, ERR_FORMAT);
    arena_free(&a);
}

static void test_cases(void **state) {
    (void)state;
    FILE *f = fopen("tests/data/jinja/cases.jsonl", "r");
    assert_non_null(f);
    char *text = NULL;
    size_t cap = 0;
    json_t *context = NULL;
    int line = 0;
    for (ssize_t n; (n = getline(&text, &cap, f)) > 0;) {
        Err e = {0};
        json_t *c = json_parse("cases.jsonl", text, (size_t)n, &e);
        assert_non_null(c);
        if (line++ == 0) context = json_incref(json_object_get(c, "context"));
        else check_case(c, context, line);
        json_decref(c);
    }
    assert_true(line > 200);
    json_decref(context);
    free(text);
    fclose(f);
}

/* 字面量 → JSON 的紧凑写法；"!" 表示应报错。 */
static void literal(const char *text, const char *want) {
    json_t *v = NULL;
    Err e = {0};
    bool ok = python_literal(&v, text, strlen(text), "t", &e);
    char *got = ok ? json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    if (strcmp(ok ? got : "!", want) != 0) fail_msg("%s: 得 %s（%s），应为 %s", text, got, e.msg, want);
    if (!ok) assert_int_equal(e.code, ERR_FORMAT);
    free(got);
    json_decref(v);
}

static void test_literal(void **state) {
    (void)state;
    literal("['a', \"b'c\", 'd\\'e']", "[\"a\",\"b'c\",\"d'e\"]");
    literal("[1, -2, 3.5, 1e3, True, None]", "[1,-2,3.5,1000.0,true,null]");
    literal("  (1,)", "[1]");
    literal("(1)", "1");
    literal("1, 2", "[1,2]");
    literal("{'a': 1, 2: [3]}", "{\"a\":1,\"2\":[3]}");
    literal("{1, 2}", "[1,2]");
    literal("{}", "{}");
    literal("[\n 'a', # x\n 'b'\n]", "[\"a\",\"b\"]");
    literal("'a' \"b\"", "\"ab\"");
    literal("r'\\n'", "\"\\\\n\"");
    literal("'\\x41\\u4e2d\\n\\q'", "\"A中\\n\\\\q\"");
    literal("'''a\nb'''", "\"a\\nb\"");
    literal("0x10", "16");
    literal("[]", "[]");
    static const char *const BAD[] = {"", "abc", "[1", "[1 2]", "['a]", "{'a'}x", "{'a': }",
                                      "1 +", "f('a')", "'a\nb'", "99999999999999999999", "[,]", "True1", "--1", NULL};
    for (int i = 0; BAD[i]; i++) literal(BAD[i], "!");
}

static void test_eval(void **state) {
    (void)state;
    json_t *context = json_pack("{s:[s,s], s:i}", "choices", "it's", "\"x\"\n", "n", 2), *v;
    Err e = {0};
    assert_true(jinja_eval(&v, "{{ choices }}", "t", context, &e));
    assert_string_equal(json_string_value(json_array_get(v, 1)), "\"x\"\n");
    json_decref(v);
    assert_true(jinja_eval(&v, "{{ n + 1 }}", "t", context, &e));
    assert_int_equal(json_integer_value(v), 3);
    json_decref(v);
    assert_false(jinja_eval(&v, "{{ choices[0] }}", "t", context, &e));
    assert_null(v);
    json_decref(context);
}

static void fails(const char *template_, const char *part) {
    Arena a = {0};
    Err e = {0};
    const char *out;
    json_t *context = json_object();
    if (jinja_render(&a, &out, template_, "任务.yaml:doc_to_text", context, &e))
        fail_msg("%.60s: 本应报错", template_);
    if (!strstr(e.msg, part)) fail_msg("%.60s: '%s' 里没有 '%s'", template_, e.msg, part);
    json_decref(context);
    arena_free(&a);
}

static char *repeated(const char *part, int n) {
    Str s = {0};
    for (int i = 0; i < n; i++) str_add(&s, part);
    return s.data;
}

static void fails_repeated(const char *part, int n, const char *message) {
    char *t = repeated(part, n);
    fails(t, message);
    free(t);
}

/* 恶意的模板：以错误结束，不崩溃、不吊住、不吃光内存。 */
static void test_hostile(void **state) {
    (void)state;
    fails_repeated("{{ (", 5000, "嵌套过深");
    fails_repeated("{{ -", 5000, "嵌套过深");
    fails_repeated("{% if 1 %}", 5000, "嵌套过深");
    fails_repeated("{{ [[[[[[[[[[[[[[[[[[[[[[[[[", 50, "嵌套过深");
    fails("{% for a in range(999999) %}{% for b in range(999999) %}{% endfor %}{% endfor %}",
          "超过");
    fails("{{ 'x' * 1000000000000 }}", "太长");
    fails("{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = ns.s ~ ns.s %}"
          "{% endfor %}", "超过");
    fails("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "过深");
    fails("{% set l = [] %}{% set _ = l.append(l) %}{{ l }}", "包含了自己");
    fails("{% set l = [] %}{% set _ = l.append(l) %}{{ l == [[[]]] or l|tojson }}", "自己");
    fails("{{ '%1000000d' % 3 }}", "太大");
    fails("{{ range(100000000) }}", "太长");
    fails("{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!'|regex_replace('(a+)+$', '') }}", "正则");
    fails("{{ 9223372036854775807 + 1 }}", "64 位");
    fails("{{ -9223372036854775807 - 2 }}", "64 位");
    char *deep = repeated("{", 20000);
    json_t *v;
    Err e = {0};
    assert_false(python_literal(&v, deep, strlen(deep), "t", &e));
    free(deep);
    /* 每比一对都算步数：长列表之间的 == 与 unique 也有界 */
    fails("{% set l = range(90000)|list %}{% set m = range(90000)|list %}"
          "{% for i in range(90000) %}{% if l == m %}{% endif %}{% endfor %}", "死循环");
    fails("{{ range(200000)|unique|list }}", "死循环");
}

static void test_messages(void **state) {
    (void)state;
    fails("a\nb {{ missing }}", "任务.yaml:doc_to_text: 模板第 2 行: 'missing' 未定义");
    fails("{{ 1|nosuch }}", "没有过滤器 'nosuch'");
    fails("\n\n{% endfor %}", "模板第 3 行");
    fails("{% include 'x' %}", "不支持的语句");
}

static void sub(const char *pattern, const char *repl, const char *text, const char *want) {
    Err e = {0};
    PyRegex *re;
    Str s = {0};
    assert_true(pyregex_open(&re, pattern, strlen(pattern), 0, &e));
    bool ok = pyregex_sub(re, text, strlen(text), repl, strlen(repl), 0, &s, &e);
    if (!ok || strcmp(s.data ? s.data : "", want) != 0)
        fail_msg("%s → %s 于 %s: 得 '%s'（%s），应为 '%s'", pattern, repl, text, s.data, e.msg, want);
    pyregex_close(re);
    str_free(&s);
}

/* 期望值取自 Python 3.11 的 re.sub。 */
static void test_regex(void **state) {
    (void)state;
    sub("a*", "-", "baac", "-b--c-");
    sub("", "-", "ab中", "-a-b-中-");
    sub("\\d+", "<\\g<0>>", "a1b٣٤", "a<1>b<٣٤>");
    sub("(?P<x>\\w)(\\w)", "\\2\\g<x>\\n", "ab cd", "ba\n dc\n");
    sub("\\u4e2d|x\\Z", "Y", "中x中x", "YxYY");
    sub("[[a]", "_", "[a]", "__]");
    sub("[]a]", "_", "]a[", "__[");
    sub("(a)|b", "[\\1]", "ab", "[a][]");
    sub("\\.", "\\.", "a.b", "a\\.b");
    static const char *const BAD[] = {"(", "[a", "\\K", "\\Q", "a{2,1}", NULL};
    for (int i = 0; BAD[i]; i++) {
        PyRegex *re;
        Err e = {0};
        if (pyregex_open(&re, BAD[i], strlen(BAD[i]), 0, &e)) fail_msg("%s: 本应报错", BAD[i]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),    cmocka_unit_test(test_literal),
        cmocka_unit_test(test_eval),     cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_messages), cmocka_unit_test(test_regex),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
