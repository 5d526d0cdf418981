/* hub_server — 供 test_hub 用的假 Hub：另一个进程里的 HTTP 服务（libmicrohttpd）
 * 像 Hub 那样：API 列文件（大小、散列）、resolve 给小文件、大文件改道到另一个端口（当作别的主机）、Range 续传。
 * 各种坏行为由共享内存中的 mode 打开，计数也在那里。 */
#ifndef TESTS_UNIT_HUB_SERVER_H
#define TESTS_UNIT_HUB_SERVER_H
#include <microhttpd.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/str.h"
#include "io/file.h"
#include "io/hash.h"
#include "tests/unit/tmp.h"

typedef enum {
    HUB_GOOD,
    HUB_SLOW,        /* 每块之间停一停（供中途打断） */
    HUB_CUT,         /* 每次给一段就断开连接 */
    HUB_NO_RANGE,    /* 不理会 Range */
    HUB_LIMITED,     /* 前几次答 429（Retry-After）与 503 */
    HUB_WRONG,       /* 内容改了一个字节 */
    HUB_LONGER,      /* 给得比记录的长 */
    HUB_GATED, HUB_HIDDEN, HUB_MISSING, /* 403、401、404 */
    HUB_LOOP,        /* 改道成环 */
    HUB_HEADERS,     /* 头没完没了 */
    HUB_EVIL_NAMES,  /* 文件名带 ../、绝对路径 */
    HUB_EVIL_ETAG,   /* 散列带 ../ */
    HUB_NO_HASH,     /* 不给散列 */
    HUB_NOT_JSON
} HubMode;

#define HUB_FILES 5
#define HUB_COMMIT "0123456789abcdef0123456789abcdef01234567"

typedef struct HubShared {
    volatile HubMode mode;
    volatile int n_requests, n_limited; /* 文件请求数；已答的 429、503 */
    volatile int n_leaks;               /* 令牌到了别的主机 */
    volatile int n_tokens;              /* 带着正确令牌的请求 */
    volatile int n_again;               /* 请求了已经完成的文件 */
    volatile int64_t n_bytes;           /* 发出的文件字节 */
    volatile int port, other_port;
    char blobs[1024]; /* 缓存的 blobs 文件夹，供查「已经完成」 */
} HubShared;

typedef struct HubEntry {
    const char *name;
    size_t size;
    uint8_t *data;
    int lfs;
    char etag[65];
} HubEntry;


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
#endif
