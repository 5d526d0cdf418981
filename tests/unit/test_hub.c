/* test_hub — 从 Hub 下载：对着一个像 Hub 那样（和像坏人那样）行事的回环服务器 */
#include <microhttpd.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "io/file.h"
#include "io/hash.h"
#include "io/hub_internal.h"
#include "tests/unit/hub_server.h"
#include "tests/unit/tmp.h"

/* ---------- 测试的一次运行 ---------- */

typedef struct Run {
    char dir[1024], endpoint[64];
    HubOptions o;
    Arena a;
    const char *snapshot, *commit;
    Err e;
} Run;

static void make_dir(char *dir, size_t cap) {
    snprintf(dir, cap, "%s/XXXXXX", tmp_dir);
    assert_non_null(mkdtemp(dir));
}

static void run_open(Run *r, HubMode mode) {
    *r = (Run){0};
    make_dir(r->dir, sizeof r->dir);
    snprintf(r->endpoint, sizeof r->endpoint, "http://127.0.0.1:%d", hub->port);
    r->o = (HubOptions){.endpoint = r->endpoint, .cache = r->dir, .token = "hf_secret",
                        .retry_seconds = 0.01};
    snprintf(hub->blobs, sizeof hub->blobs, "%s/models--org--model/blobs", r->dir);
    hub->n_requests = hub->n_limited = hub->n_leaks = hub->n_tokens = hub->n_again = 0;
    hub->n_bytes = 0;
    hub->mode = mode;
}

static bool run_get(Run *r) {
    r->e = (Err){0};
    return hub_model(&r->o, &r->a, "org/model", NULL, &r->snapshot, &r->commit, &r->e);
}

static void run_close(Run *r) {
    arena_free(&r->a);
}

/* 快照里的文件都与服务器的逐字节相同，链接是相对的，没有半成品。 */
static void check_snapshot(Run *r) {
    for (int i = 0; i < HUB_FILES; i++) {
        char path[2200], link[200] = {0}, want[100];
        FileMap m;
        snprintf(path, sizeof path, "%s/%s", r->snapshot, files[i].name);
        assert_true(readlink(path, link, sizeof link - 1) > 0);
        snprintf(want, sizeof want, "../../blobs/%s", files[i].etag);
        assert_string_equal(link, want);
        if (!file_map(&m, path, &r->e)) fail_msg("%s", r->e.msg);
        assert_int_equal(m.size, files[i].size);
        assert_memory_equal(m.data, files[i].data, m.size);
        file_unmap(&m);
    }
    char ref[1200];
    size_t len;
    snprintf(ref, sizeof ref, "%s/models--org--model/refs/main", r->dir);
    assert_string_equal(file_read(&r->a, ref, 100, &len, NULL), HUB_COMMIT);
    char **names;
    size_t n;
    assert_true(file_list(&r->a, hub->blobs, ".incomplete", &names, &n, NULL));
    assert_int_equal(n, 0);
    assert_string_equal(r->commit, HUB_COMMIT);
}

/* 缓存之外什么也没写。 */
static void check_nothing_outside(const Run *r) {
    char path[1200];
    snprintf(path, sizeof path, "%s/../evil.json", r->dir);
    assert_false(file_exists(path));
    assert_false(file_exists("/etc/evil.safetensors"));
    snprintf(path, sizeof path, "%s/evil.json", r->dir);
    assert_false(file_exists(path));
}

static void expect_good(HubMode mode) {
    Run r;
    run_open(&r, mode);
    if (!run_get(&r)) fail_msg("模式 %d: %s", (int)mode, r.e.msg);
    check_snapshot(&r);
    check_nothing_outside(&r);
    assert_int_equal(hub->n_leaks, 0);
    assert_int_equal(hub->n_again, 0);
    assert_true(hub->n_tokens > 0);
    run_close(&r);
}

static void expect_bad(HubMode mode, const char *text) {
    Run r;
    run_open(&r, mode);
    assert_false(run_get(&r));
    if (!strstr(r.e.msg, text)) fail_msg("模式 %d: 「%s」中没有「%s」", (int)mode, r.e.msg, text);
    check_nothing_outside(&r);
    run_close(&r);
}

/* ---------- 测试 ---------- */

static void test_good(void **state) {
    (void)state;
    Run r;
    run_open(&r, HUB_GOOD);
    if (!run_get(&r)) fail_msg("%s", r.e.msg);
    check_snapshot(&r);
    assert_int_equal(hub->n_requests, HUB_FILES); /* .bin、ONNX 没有取 */
    assert_int_equal(hub->n_leaks, 0);
    assert_true(run_get(&r)); /* 第二次什么也不下载 */
    assert_int_equal(hub->n_requests, HUB_FILES);
    r.o.offline = true;
    assert_true(run_get(&r));
    r.o.offline = false;
    r.o.endpoint = "http://127.0.0.1:1"; /* 连不上：用缓存 */
    assert_true(run_get(&r));
    check_snapshot(&r);
    run_close(&r);
}

static void test_odd_servers(void **state) {
    (void)state;
    expect_good(HUB_CUT);
    expect_good(HUB_LIMITED);
    expect_good(HUB_EVIL_NAMES);
    expect_bad(HUB_WRONG, "散列不符");
    expect_bad(HUB_LONGER, "长");
    expect_bad(HUB_GATED, "export HF_TOKEN=xxx");
    expect_bad(HUB_HIDDEN, "不公开、需要授权");
    expect_bad(HUB_MISSING, "没有版本 main");
    expect_bad(HUB_LOOP, "成环");
    expect_bad(HUB_HEADERS, "头过长");
    expect_bad(HUB_EVIL_ETAG, "没有给出");
    expect_bad(HUB_NO_HASH, "没有给出");
    expect_bad(HUB_NOT_JSON, "api/models/org/model");
}

/* 在 20 个随机的时刻杀掉下载的进程，接着下；最后散列对，完成的文件没有再取过。 */
static void test_killed(void **state) {
    (void)state;
    Run r;
    run_open(&r, HUB_SLOW);
    unsigned seed = 7;
    for (int i = 0; i < 20; i++) {
        pid_t pid = fork();
        if (pid == 0) _exit(run_get(&r) ? 0 : 1);
        usleep(5000 + (unsigned)rand_r(&seed) % 60000);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    hub->mode = HUB_GOOD;
    if (!run_get(&r)) fail_msg("%s", r.e.msg);
    check_snapshot(&r);
    assert_int_equal(hub->n_again, 0);
    run_close(&r);
}

/* 断处之后服务器不理会 Range：从头来；半成品坏了：散列不符后重取。 */
static void test_partial(void **state) {
    (void)state;
    static const HubMode MODES[] = {HUB_NO_RANGE, HUB_GOOD};
    for (int i = 0; i < 2; i++) {
        Run r;
        char path[1300], junk[1000];
        memset(junk, 'j', sizeof junk);
        run_open(&r, MODES[i]);
        assert_true(file_mkdirs(hub->blobs, &r.e));
        snprintf(path, sizeof path, "%s/%s.incomplete", hub->blobs, files[2].etag);
        assert_true(file_write_atomic(path, junk, sizeof junk, &r.e));
        if (!run_get(&r)) fail_msg("%s", r.e.msg);
        check_snapshot(&r);
        run_close(&r);
    }
}

/* 写满（以文件大小的限制代替）：说清楚，留下已有的，之后能接着下。 */
static void test_full(void **state) {
    (void)state;
    Run r;
    struct rlimit old, small;
    run_open(&r, HUB_GOOD);
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 1000000;
    setrlimit(RLIMIT_FSIZE, &small);
    bool ok = run_get(&r);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_false(ok);
    assert_non_null(strstr(r.e.msg, "写不进"));
    hub->n_bytes = 0;
    if (!run_get(&r)) fail_msg("%s", r.e.msg);
    check_snapshot(&r);
    assert_true(hub->n_bytes <= 3000000 + 1500000 - 900000 + 200000);
    run_close(&r);
}

/* 缓存里有人放了指到外面的链接：文件夹的不往里写，文件的不跟着走，外面的一个字节也没变。 */
static void test_links(void **state) {
    (void)state;
    static const char *const DIRS[] = {"blobs", "snapshots", "refs"};
    char outside[1024], victim[1100], path[2400], target[1200];
    Err e = {0};
    make_dir(outside, sizeof outside);
    snprintf(victim, sizeof victim, "%s/victim", outside);
    assert_true(file_write_atomic(victim, "keep", 4, &e));
    for (int i = 0; i < 6; i++) {
        Run r;
        run_open(&r, HUB_GOOD);
        snprintf(path, sizeof path, "%s/models--org--model/%s", r.dir,
                 i < 3 ? "" : i == 5 ? "snapshots/" HUB_COMMIT : "blobs");
        assert_true(file_mkdirs(path, &e));
        if (i < 3)
            snprintf(target, sizeof target, "%s", DIRS[i]);
        else if (i < 5)
            snprintf(target, sizeof target, "/%s%s", files[0].etag, i == 3 ? ".incomplete" : "");
        else
            snprintf(target, sizeof target, "/%s", files[0].name);
        strncat(path, target, sizeof path - strlen(path) - 1);
        assert_int_equal(symlink(i < 3 ? outside : victim, path), 0);
        bool ok = run_get(&r);
        if (ok != (i > 3)) fail_msg("%s: %s", path, r.e.msg);
        if (ok) check_snapshot(&r);
        size_t len;
        char **names;
        assert_string_equal(file_read(&r.a, victim, 100, &len, NULL), "keep");
        assert_true(file_list(&r.a, outside, "", &names, &len, NULL) && len == 1);
        run_close(&r);
    }
}

static void test_names(void **state) {
    (void)state;
    assert_true(hub_is_id("meta-llama/Llama-3.1-8B"));
    assert_true(hub_is_id("org/a.b_c"));
    static const char *const BAD[] = {"demo", "data/raw/demo", "../x", "a/..", "/abs/x", "a/b/c", "a/", "a b/c",
                                      "org/x.gguf", "a//b", "~/x", "a/.b"};
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++)
        if (hub_is_id(BAD[i])) fail_msg("%s", BAD[i]);
    assert_true(hub_safe_name("model-00001-of-00002.safetensors"));
    assert_false(hub_safe_name("a/b"));
    assert_false(hub_safe_name(".."));
    assert_false(hub_safe_name("a\nb"));
    assert_true(hub_safe_revision("refs/pr/1"));
    assert_false(hub_safe_revision("../main"));
    assert_false(hub_is_etag("../../0123"));
}

static void test_environment(void **state) {
    (void)state;
    Arena a = {0};
    Err e = {0};
    HubOptions o;
    char dir[1024], token[1100];
    make_dir(dir, sizeof dir);
    snprintf(token, sizeof token, "%s/token", dir);
    assert_true(file_write_atomic(token, "hf_abc\n", 7, &e));
    unsetenv("HF_TOKEN");
    unsetenv("HUGGING_FACE_HUB_TOKEN");
    unsetenv("HF_HUB_CACHE");
    unsetenv("HUGGINGFACE_HUB_CACHE");
    setenv("HF_HOME", dir, 1);
    setenv("HF_ENDPOINT", "https://mirror.example//", 1);
    setenv("HF_HUB_OFFLINE", "1", 1);
    assert_true(hub_options(&o, &a, &e));
    assert_string_equal(o.token, "hf_abc");
    assert_string_equal(o.endpoint, "https://mirror.example");
    assert_true(str_starts(o.cache, dir) && str_ends(o.cache, "/hub") && o.offline);
    setenv("HF_TOKEN", "bad\ntoken", 1);
    assert_false(hub_options(&o, &a, &e));
    setenv("HF_TOKEN", "x", 1);
    setenv("HF_ENDPOINT", "ftp://x", 1);
    assert_false(hub_options(&o, &a, &e));
    arena_free(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),  cmocka_unit_test(test_odd_servers),
        cmocka_unit_test(test_killed), cmocka_unit_test(test_partial),
        cmocka_unit_test(test_full), cmocka_unit_test(test_links),  cmocka_unit_test(test_names),
        cmocka_unit_test(test_environment),
    };
    return cmocka_run_group_tests(tests, start_server, stop_server);
}
