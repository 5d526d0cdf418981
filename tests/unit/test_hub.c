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

/* ---------- 假 Hub ---------- */

static HubShared *hub;
static HubEntry files[HUB_FILES] = {{.name = "config.json", .size = 700},
                                    {.name = "tokenizer.json", .size = 90000},
                                    {.name = "model-00001-of-00002.safetensors", .size = 3000000, .lfs = 1},
                                    {.name = "model-00002-of-00002.safetensors", .size = 1500000, .lfs = 1},
                                    {.name = "model.safetensors.index.json"}};

static void fill_files(void) {
    static char index[400];
    snprintf(index, sizeof index, "{\"weight_map\": {\"a\": \"%s\", \"b\": \"%s\"}}", files[2].name,
             files[3].name);
    uint64_t x = 88172645463325252u;
    for (int i = 0; i < HUB_FILES; i++) {
        HubEntry *f = &files[i];
        bool text = i == HUB_FILES - 1;
        if (text) f->size = strlen(index);
        f->data = malloc(f->size);
        for (size_t k = 0; k < f->size; k++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            f->data[k] = text ? (uint8_t)index[k] : (uint8_t)x;
        }
        Hash *h = f->lfs ? hash_new() : hash_new_sha1();
        char head[40];
        int n = snprintf(head, sizeof head, "blob %zu", f->size);
        if (!f->lfs) hash_add(h, head, (size_t)n + 1);
        hash_add(h, f->data, f->size);
        hash_end(h, f->etag);
    }
}

static enum MHD_Result reply(struct MHD_Connection *c, unsigned status, const char *text,
                             const char *key, const char *value) {
    struct MHD_Response *r =
        MHD_create_response_from_buffer(strlen(text), (void *)(uintptr_t)text, MHD_RESPMEM_MUST_COPY);
    if (key) MHD_add_response_header(r, key, value);
    enum MHD_Result ok = MHD_queue_response(c, status, r);
    MHD_destroy_response(r);
    return ok;
}

typedef struct Body {
    const HubEntry *f;
    size_t from;
} Body;

static ssize_t read_body(void *ctx, uint64_t pos, char *buf, size_t max) {
    Body *b = ctx;
    HubMode mode = hub->mode;
    size_t at = b->from + (size_t)pos, left = b->f->size + (mode == HUB_LONGER ? 64 : 0) - at;
    if (mode == HUB_CUT && pos >= 400000) return MHD_CONTENT_READER_END_WITH_ERROR;
    if (left == 0) return MHD_CONTENT_READER_END_OF_STREAM;
    size_t n = max < left ? max : left;
    if (mode == HUB_SLOW || mode == HUB_CUT) n = n < 40000 ? n : 40000;
    if (mode == HUB_SLOW) usleep(3000);
    for (size_t i = 0; i < n; i++) buf[i] = at + i < b->f->size ? (char)b->f->data[at + i] : 'x';
    if (mode == HUB_WRONG && at == 0) buf[0] ^= 1;
    __atomic_fetch_add((int64_t *)(uintptr_t)&hub->n_bytes, (int64_t)n, __ATOMIC_RELAXED);
    return (ssize_t)n;
}

static enum MHD_Result send_file(struct MHD_Connection *c, const HubEntry *f) {
    const char *range = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Range");
    char done[1200];
    snprintf(done, sizeof done, "%s/%s", hub->blobs, f->etag);
    if (hub->blobs[0] && file_exists(done)) hub->n_again++;
    hub->n_requests++;
    if (hub->mode == HUB_LIMITED && hub->n_limited < 4)
        return reply(c, hub->n_limited++ % 2 ? 503 : 429, "slow down", "Retry-After", "0");
    size_t from = 0;
    if (range && hub->mode != HUB_NO_RANGE) from = strtoull(range + 6, NULL, 10);
    if (from > 0 && from >= f->size) return reply(c, 416, "", NULL, NULL);
    Body *b = malloc(sizeof *b);
    *b = (Body){.f = f, .from = from};
    size_t extra = hub->mode == HUB_LONGER ? 64 : 0;
    struct MHD_Response *r =
        MHD_create_response_from_callback(f->size + extra - from, 65536, read_body, b, free);
    char text[100];
    snprintf(text, sizeof text, "bytes %zu-%zu/%zu", from, f->size - 1, f->size);
    if (from) MHD_add_response_header(r, "Content-Range", text);
    enum MHD_Result ok = MHD_queue_response(c, from ? 206 : 200, r);
    MHD_destroy_response(r);
    return ok;
}

/* 另一个端口（别的主机）上的 /散列：不该看到令牌。 */
static enum MHD_Result on_other(void *ctx, struct MHD_Connection *c, const char *url,
                                const char *method, const char *version, const char *data,
                                size_t *n, void **state) {
    (void)ctx, (void)method, (void)version, (void)data, (void)n, (void)state;
    if (MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Authorization")) hub->n_leaks++;
    for (int i = 0; i < HUB_FILES; i++)
        if (strcmp(url + 1, files[i].etag) == 0) return send_file(c, &files[i]);
    return reply(c, 404, "no", NULL, NULL);
}

static enum MHD_Result api(struct MHD_Connection *c) {
    static const char *const EVIL[] = {"../../evil.json", "/etc/evil.safetensors", "a/../../b.safetensors",
                                       "model-\n.safetensors", "..safetensors"};
    HubMode mode = hub->mode;
    Str s = {0};
    str_addf(&s, "{\"sha\": \"%s\", \"siblings\": [{\"rfilename\": \"README.md\"},"
                 "{\"rfilename\": \"pytorch_model.bin\", \"size\": 5},"
                 "{\"rfilename\": \"onnx/model.onnx\", \"size\": 5}", HUB_COMMIT);
    for (int i = 0; i < HUB_FILES; i++) {
        const HubEntry *f = &files[i];
        const char *etag = mode == HUB_EVIL_ETAG ? "../../../evil" : f->etag;
        str_addf(&s, ", {\"rfilename\": \"%s\"", f->name);
        if (mode != HUB_NO_HASH && f->lfs)
            str_addf(&s, ", \"size\": %zu, \"blobId\": \"%s\", \"lfs\": {\"sha256\": \"%s\", \"size\": %zu}",
                     f->size, HUB_COMMIT, etag, f->size);
        else if (mode != HUB_NO_HASH)
            str_addf(&s, ", \"size\": %zu, \"blobId\": \"%s\"", f->size, etag);
        str_add(&s, "}");
    }
    for (size_t i = 0; mode == HUB_EVIL_NAMES && i < sizeof EVIL / sizeof *EVIL; i++) {
        Str name = {0};
        for (const char *p = EVIL[i]; *p; p++) str_addf(&name, *p == '\n' ? "\\n" : "%c", *p);
        str_addf(&s, ", {\"rfilename\": \"%s\", \"size\": 700, \"blobId\": \"%s\"}", name.data,
                 files[0].etag);
        str_free(&name);
    }
    str_add(&s, "]}");
    enum MHD_Result ok = reply(c, 200, mode == HUB_NOT_JSON ? "<html>" : s.data, NULL, NULL);
    str_free(&s);
    return ok;
}

static enum MHD_Result endless_headers(struct MHD_Connection *c) {
    struct MHD_Response *r = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    char *big = malloc(20001);
    memset(big, 'h', 20000);
    big[20000] = '\0';
    for (int i = 0; i < 30; i++) MHD_add_response_header(r, "X-Filler", big);
    free(big);
    enum MHD_Result ok = MHD_queue_response(c, 200, r);
    MHD_destroy_response(r);
    return ok;
}

static enum MHD_Result on_hub(void *ctx, struct MHD_Connection *c, const char *url,
                              const char *method, const char *version, const char *data, size_t *n,
                              void **state) {
    (void)ctx, (void)method, (void)version, (void)data, (void)n, (void)state;
    const char *auth = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Authorization");
    char where[200];
    if (auth && strcmp(auth, "Bearer hf_secret") == 0) hub->n_tokens++;
    switch (hub->mode) {
    case HUB_GATED: return reply(c, 403, "gated", "X-Error-Code", "GatedRepo");
    case HUB_HIDDEN: return reply(c, 401, "who", NULL, NULL);
    case HUB_MISSING: return reply(c, 404, "no", "X-Error-Code", "RevisionNotFound");
    case HUB_LOOP: return reply(c, 302, "", "Location", url);
    case HUB_HEADERS: return endless_headers(c);
    default: break;
    }
    if (strncmp(url, "/api/models/org/model/revision/", 31) == 0) return api(c);
    for (int i = 0; i < HUB_FILES; i++) {
        snprintf(where, sizeof where, "/org/model/resolve/%s/%s", HUB_COMMIT, files[i].name);
        if (strcmp(url, where) != 0) continue;
        if (!files[i].lfs) return send_file(c, &files[i]);
        snprintf(where, sizeof where, "http://127.0.0.1:%d/%s", hub->other_port, files[i].etag);
        return reply(c, 302, "", "Location", where);
    }
    return reply(c, 404, "no", NULL, NULL);
}

static int listen_on(MHD_AccessHandlerCallback on) {
    struct MHD_Daemon *d = MHD_start_daemon(
        MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION, 0, NULL, NULL, on, NULL,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)1 << 20, MHD_OPTION_END);
    if (!d) return 0;
    return MHD_get_daemon_info(d, MHD_DAEMON_INFO_BIND_PORT)->port;
}

static pid_t server;

static int start_server(void **state) {
    if (tmp_make(state) != 0) return -1;
    fill_files();
    hub = mmap(NULL, sizeof *hub, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (hub == MAP_FAILED || (server = fork()) < 0) return -1;
    if (server == 0) {
        hub->other_port = listen_on(on_other);
        hub->port = listen_on(on_hub);
        for (;;) pause();
    }
    for (int i = 0; i < 500 && !hub->port; i++) usleep(10000);
    log_set_quiet(true);
    signal(SIGXFSZ, SIG_IGN);
    return hub->port ? 0 : -1;
}

static int stop_server(void **state) {
    kill(server, SIGKILL);
    waitpid(server, NULL, 0);
    for (int i = 0; i < HUB_FILES; i++) free(files[i].data);
    return tmp_done(state);
}

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
