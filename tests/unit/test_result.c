/* test_result — 结果的写出、读回、检查、Markdown
 * 名字永不相撞；写不成时什么也不留；坏文件点名跳过；外来文字弄不坏 Markdown 表格。 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <cmocka.h>

#include "base/log.h"
#include "io/file.h"
#include "markdown.h"
#include "result_fixture.h"
#include "result_writer.h"
#include "tmp.h"

static const char *dir_for(const char *name) {
    const char *d = tmp_path(name);
    assert_true(file_mkdirs(d, NULL));
    return d;
}

static size_t count(const char *dir, const char *suffix) {
    Arena a = {0};
    char **names;
    size_t n = 0;
    assert_true(file_list(&a, dir, suffix, &names, &n, NULL));
    arena_free(&a);
    return n;
}

static void test_names(void **state) {
    (void)state;
    Arena a = {0};
    Err e = {0};
    const char *path, *dir = dir_for("names");
    json_t *r = fixture_result((Fixture){.method = "rtn", .bits = 4});
    assert_true(result_write(r, dir, &a, &path, &e));
    assert_true(str_ends(path, "/20260214_102553__demo__rtn__trackA.json"));
    assert_true(result_write(r, dir, &a, &path, &e));
    assert_true(str_ends(path, "/20260214_102553-2__demo__rtn__trackA.json"));
    /* 名字里的怪字符不会跑出文件夹，也不会混淆分隔符 */
    json_object_set_new(json_object_get(r, "config"), "model", json_string("../a__b/c d"));
    assert_true(result_write(r, dir, &a, &path, &e));
    assert_true(str_ends(path, "/20260214_102553__..-a_b-c-d__rtn__trackA.json"));
    assert_int_equal(count(dir, ".json"), 3);
    assert_int_equal(count(dir, ".md"), 3);
    json_t *back = json_load(path, &e);
    assert_true(json_equal(back, r));
    json_decref(back);
    json_decref(r);
    arena_free(&a);
}

/* 多个进程同一秒写同一名字：一个不少，一个不坏。 */
static void test_race(void **state) {
    (void)state;
    enum { PROCS = 4, EACH = 10 };
    const char *dir = dir_for("race");
    for (int p = 0; p < PROCS; p++)
        if (fork() == 0) {
            Arena a = {0};
            json_t *r = fixture_result((Fixture){.method = "rtn", .bits = 4});
            bool ok = true;
            for (int i = 0; i < EACH; i++) ok = ok && result_write(r, dir, &a, NULL, NULL);
            _exit(!ok);
        }
    for (int p = 0; p < PROCS; p++) {
        int status = 0;
        wait(&status);
        assert_int_equal(status, 0);
    }
    Arena a = {0};
    ResultFile *files;
    size_t n;
    Err e = {0};
    assert_true(result_load_all(dir, &a, &files, &n, &e));
    assert_int_equal(n, PROCS * EACH);
    assert_int_equal(count(dir, ".md"), PROCS * EACH);
    result_free_all(files, n);
    arena_free(&a);
}

static void test_write_errors(void **state) {
    (void)state;
    Arena a = {0};
    Err e = {0};
    json_t *r = fixture_result((Fixture){.method = "rtn", .bits = 4});
    tmp_write(tmp_path("plain"), "x", 1);
    assert_false(result_write(r, tmp_path("plain"), &a, NULL, &e));
    assert_int_equal(e.code, ERR_IO);
    if (geteuid() != 0) { /* root 不受权限约束 */
        const char *dir = dir_for("readonly");
        assert_int_equal(chmod(dir, 0555), 0);
        assert_false(result_write(r, dir, &a, NULL, &e));
        assert_int_equal(count(dir, ""), 0);
        assert_int_equal(chmod(dir, 0755), 0);
    }
    json_decref(r);
    arena_free(&a);
}

static void test_clean(void **state) {
    (void)state;
    Arena a = {0};
    const char *dir = dir_for("clean");
    json_t *r = fixture_result((Fixture){.method = "rtn", .bits = 4});
    assert_true(result_write(r, dir, &a, NULL, NULL));
    json_decref(r);
    char path[1200];
    static const char *const FILES[] = {"20260101_000000__m__rtn__trackA.md", /* 写到一半 */
                                        "README.md", "leaderboard.md", "notes__trackA.md",
                                        ".ptq-tmp-999999999-0"};
    for (size_t i = 0; i < 5; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, FILES[i]);
        tmp_write(path, "x", 1);
    }
    char live[1200];
    snprintf(live, sizeof live, "%s/.ptq-tmp-%ld-0", dir, (long)getpid());
    tmp_write(live, "x", 1);
    result_clean(dir);
    for (size_t i = 0; i < 5; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, FILES[i]);
        assert_int_equal(file_exists(path), i >= 1 && i <= 3);
    }
    assert_true(file_exists(live)); /* 进程还在，不动 */
    assert_int_equal(count(dir, ".json"), 1);
    assert_int_equal(count(dir, "trackA.md"), 2);
    arena_free(&a);
}

static void test_find(void **state) {
    (void)state;
    Arena a = {0};
    Err e = {0};
    const char *dir = dir_for("find"), *path = NULL;
    json_t *old = fixture_result((Fixture){.method = "rtn", .bits = 4, .run_key = "K"});
    json_t *new = fixture_result((Fixture){
        .method = "rtn", .bits = 4, .run_key = "K", .started = "2026-03-01T00:00:00+0000"});
    assert_true(result_write(old, dir, &a, NULL, &e));
    fixture_fail(new, "memory", "内存不足");
    assert_true(result_write(new, dir, &a, NULL, &e));
    json_t *found = result_find(dir, "K", &path, &a);
    assert_true(json_equal(found, old)); /* 失败的不算 */
    assert_true(str_ends(path, "20260214_102553__demo__rtn__trackA.json"));
    assert_true(str_ends(result_newest(dir, "K", &a), "20260301_000000__demo__rtn__trackA.json"));
    assert_null(result_find(dir, "other", NULL, &a));
    assert_null(result_find(tmp_path("nowhere"), "K", NULL, &a));
    json_decref(found);
    json_decref(old);
    json_decref(new);
    arena_free(&a);
}

static void test_load_skips_bad(void **state) {
    (void)state;
    Arena a = {0};
    Err e = {0};
    const char *dir = dir_for("bad");
    json_t *r = fixture_result((Fixture){.method = "rtn", .bits = 4});
    assert_true(result_write(r, dir, &a, NULL, &e));
    json_decref(r);
    char path[1200];
    static const char *const TEXTS[] = {"", "{", "[]", "{}", "null", "{\"schema\": \"other\"}"};
    for (size_t i = 0; i < sizeof TEXTS / sizeof *TEXTS; i++) {
        snprintf(path, sizeof path, "%s/bad%zu.json", dir, i);
        tmp_write(path, TEXTS[i], strlen(TEXTS[i]));
    }
    ResultFile *files;
    size_t n;
    assert_true(result_load_all(dir, &a, &files, &n, &e));
    assert_int_equal(n, 1);
    result_free_all(files, n);
    assert_true(result_load_all(tmp_path("nowhere"), &a, &files, &n, &e));
    assert_int_equal(n, 0);
    arena_free(&a);
}

/* 改坏一个键，检查须拒绝，并说出是哪个键。 */
static void spoil(const char *object, const char *key, json_t *value, const char *want) {
    json_t *r = fixture_result((Fixture){.method = "rtn", .bits = 4});
    json_t *o = *object ? (json_t *)(uintptr_t)json_at(r, object) : r;
    assert_int_equal(value ? json_object_set_new(o, key, value) : json_object_del(o, key), 0);
    Err e = {0};
    if (result_check(r, "r.json", &e)) fail_msg("本应拒绝 %s.%s", object, key);
    if (!strstr(e.msg, want) || !str_starts(e.msg, "r.json: ")) fail_msg("消息: %s", e.msg);
    json_decref(r);
}

static void test_check(void **state) {
    (void)state;
    spoil("", "schema", json_string("ptq-bench/0"), "\"schema\"");
    spoil("", "config", json_array(), "\"config\"");
    spoil("config", "model", json_integer(3), "config.model");
    spoil("config", "method", NULL, "config.method");
    spoil("config", "track", json_string("Z"), "config.track");
    spoil("status", "ok", json_string("yes"), "status.ok");
    spoil("results", "ppl", NULL, "results.ppl");
    spoil("results.ppl", "demo", json_integer(1), "results.ppl.demo");
    spoil("results.ppl.demo", "ppl", json_string("6.1"), "results.ppl.demo.ppl");
    spoil("results.ppl.demo", "ppl", json_real(-1), "正的有限数");
    spoil("results.ppl.demo", "ppl", NULL, "正的有限数");
    spoil("results.ppl.demo", "window_nll", json_object(), "window_nll");
    spoil("results.ppl.demo", "window_nll", json_pack("[f, s]", 1.0, "x"), "第 2 项");
    json_t *r = fixture_result((Fixture){.method = "rtn", .bits = 4});
    fixture_fail(r, "numeric", "第 3 层有 NaN");
    Err e = {0};
    assert_true(result_check(r, "r.json", &e)); /* 失败的结果不必有 PPL */
    json_decref(r);
}

static void test_markdown(void **state) {
    (void)state;
    Err e = {0};
    json_t *r = fixture_result((Fixture){.method = "rtn", .bits = 4});
    Str md = {0};
    assert_true(result_markdown(r, &md, &e));
    static const char *const WANT[] = {"# demo × rtn × Track A", "✅ 成功", "ptq-bench run_one",
                                       "| `weight.w_bits` | 4 |", "gptq-512", "## 环境", "峰值显存"};
    for (size_t i = 0; i < sizeof WANT / sizeof *WANT; i++)
        if (!strstr(md.data, WANT[i])) fail_msg("Markdown 里没有 '%s'", WANT[i]);
    assert_null(strstr(md.data, "fallback detected"));
    str_free(&md);

    json_array_append_new(json_object_get(r, "fallbacks"), json_string("组宽 64 不整除 100 列"));
    json_array_append_new(json_object_get(r, "warnings"), json_string("PPL | 没有变\n第二行"));
    json_object_set_new(r, "command", json_string("run ```x```"));
    fixture_fail(r, "memory", "内存 | 不足\n<b>");
    assert_true(result_markdown(r, &md, &e));
    assert_non_null(strstr(md.data, "## ⚠️ fallback detected\n\n- 组宽 64"));
    assert_non_null(strstr(md.data, "- PPL \\| 没有变<br>第二行"));
    assert_non_null(strstr(md.data, "> 内存 \\| 不足<br>&lt;b&gt;"));
    assert_non_null(strstr(md.data, "````bash\nrun ```x```\n````"));
    str_free(&md);
    json_decref(r);
    json_t *empty = json_object(); /* 什么都没有也排得出来 */
    assert_true(result_markdown(empty, &md, &e));
    str_free(&md);
    json_decref(empty);
}

static int quiet_setup(void **state) {
    log_set_quiet(true);
    return tmp_make(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),        cmocka_unit_test(test_race),
        cmocka_unit_test(test_write_errors), cmocka_unit_test(test_clean),
        cmocka_unit_test(test_find),         cmocka_unit_test(test_load_skips_bad),
        cmocka_unit_test(test_check),        cmocka_unit_test(test_markdown),
    };
    return cmocka_run_group_tests(tests, quiet_setup, tmp_done);
}
