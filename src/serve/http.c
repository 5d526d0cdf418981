/* http — HTTP 服务器的实现：路由、请求体、开关
 * 连接的一生：收齐请求体 → 路由 →（/v1/completions）交给 engine 并挂起 → 算完恢复、送出（http_call.c）。 */
#include "serve/http_internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"

#define BODIES_MAX ((size_t)256 << 20) /* 全部连接暂存的请求体合计 */

/* ---------- 路由 ---------- */

/* 用时与内容无关的比较。 */
static bool same_key(const char *a, const char *b) {
    size_t n = strlen(a), m = strlen(b);
    unsigned char diff = n != m;
    for (size_t i = 0; i < n; i++) diff |= (unsigned char)(a[i] ^ b[m ? i % m : 0]);
    return !diff;
}

static bool authorized(const Server *s, struct MHD_Connection *connection) {
    if (!s->o.api_key) return true;
    const char *h = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Authorization");
    if (!h || strncasecmp(h, "Bearer ", 7) != 0) return false;
    h += 7;
    while (*h == ' ') h++;
    return same_key(h, s->o.api_key);
}

static enum MHD_Result submit(struct MHD_Connection *connection, Call *c, bool chat) {
    Server *s = c->server;
    ApiRequest request;
    ApiError err;
    const char *body = c->body.data ? c->body.data : "";
    int64_t vocab = s->o.engine.model->config.vocab;
    bool ok = chat ? api_parse_chat(&request, body, c->body.len, vocab, &s->o.chat, &err)
                   : api_parse(&request, body, c->body.len, vocab, &err);
    pthread_mutex_lock(&s->lock);
    call_drop_body(c);
    c->submitted = true;
    c->suspended = true;
    c->refs++;
    bool stopping = s->stopping;
    if (ok && !stopping) MHD_suspend_connection(connection);
    pthread_mutex_unlock(&s->lock);
    if (ok && !stopping && engine_submit(s->engine, &request, c)) return MHD_YES;
    pthread_mutex_lock(&s->lock);
    bool suspended = ok && !stopping;
    if (ok) api_fail(&err, 503, "overloaded", NULL, stopping ? "服务正在停止" : "排队的请求已满，请稍后再试");
    c->done = true;
    c->status = err.status;
    api_error_json(&err, &c->reply);
    c->suspended = suspended;
    call_wake(c);
    call_unref(c);
    pthread_mutex_unlock(&s->lock);
    api_request_free(&request);
    return suspended ? MHD_YES : call_answer(connection, c);
}

static enum MHD_Result fail(struct MHD_Connection *connection, int status, const char *code,
                            const char *text) {
    ApiError err;
    api_fail(&err, status, code, NULL, "%s", text);
    return http_queue_error(connection, &err);
}

/* 这一路径允许的方法对不对。 */
static bool is_get(const char *method) {
    return strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0;
}

static enum MHD_Result route(struct MHD_Connection *connection, Call *c, const char *url,
                             const char *method) {
    Server *s = c->server;
    bool chat = strcmp(url, "/v1/chat/completions") == 0;
    bool completions = chat || strcmp(url, "/v1/completions") == 0;
    bool models = strcmp(url, "/v1/models") == 0, health = strcmp(url, "/health") == 0;
    char text[300];
    if (!completions && !models && !health) {
        snprintf(text, sizeof text, "没有 %.200s；有 /v1/completions、/v1/chat/completions、/v1/models、/health", url);
        return fail(connection, 404, "not_found", text);
    }
    if (!health && !authorized(s, connection))
        return fail(connection, 401, "invalid_api_key", "要 Authorization: Bearer 密钥，且与服务器的相同");
    if (completions ? strcmp(method, "POST") != 0 : !is_get(method)) {
        snprintf(text, sizeof text, "%s 要用 %s", url, completions ? "POST" : "GET");
        return fail(connection, 405, "method_not_allowed", text);
    }
    if (c->too_large) {
        snprintf(text, sizeof text, "请求体超过上限 %zu 字节（--max_body）", s->o.max_body);
        return fail(connection, 413, "request_too_large", text);
    }
    if (c->no_room) return fail(connection, 503, "overloaded", "正在接收的请求体太多，请稍后再试");
    if (completions) return submit(connection, c, chat);
    if (models) return http_queue_json(connection, 200, api_models_json(s->o.engine.name, s->started));
    return http_queue_json(connection, 200, json_pack("{s:s}", "status", "ok"));
}

/* ---------- 请求体 ---------- */

/* 声明的长度就超过上限：不必收。 */
static bool declared_too_large(const Server *s, struct MHD_Connection *connection) {
    const char *h = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Content-Length");
    if (!h) return false;
    errno = 0;
    unsigned long long n = strtoull(h, NULL, 10);
    return errno == ERANGE || n > s->o.max_body;
}

/* 存下一段。返回: 该断开（超过上限太多还在送）为假。 */
static bool take_body(Call *c, const char *data, size_t n) {
    Server *s = c->server;
    bool go = true;
    pthread_mutex_lock(&s->lock);
    c->received += n;
    if (c->received > s->o.max_body) c->too_large = true;
    if (c->too_large || c->no_room) {
        call_drop_body(c);
        go = c->received < 4 * s->o.max_body + ((size_t)1 << 20);
    } else {
        size_t before = c->body.cap;
        str_addn(&c->body, data, n);
        s->bodies += c->body.cap - before;
        if (c->body.failed || s->bodies > BODIES_MAX) c->no_room = true;
    }
    pthread_mutex_unlock(&s->lock);
    return go;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *size, void **state) {
    (void)version;
    Server *s = cls;
    Call *c = *state;
    if (!c) { /* 只有请求头 */
        c = *state = call_new(s, connection);
        if (!c) return MHD_NO;
        c->too_large = declared_too_large(s, connection);
        return c->too_large ? route(connection, c, url, method) : MHD_YES;
    }
    if (*size) {
        bool go = take_body(c, data, *size);
        *size = 0;
        return go ? MHD_YES : MHD_NO;
    }
    return c->submitted ? call_answer(connection, c) : route(connection, c, url, method);
}

static void on_completed(void *cls, struct MHD_Connection *connection, void **state,
                         enum MHD_RequestTerminationCode why) {
    (void)connection, (void)why;
    Server *s = cls;
    Call *c = *state;
    if (!c) return;
    pthread_mutex_lock(&s->lock);
    c->connection = NULL;
    c->suspended = false;
    call_unref(c);
    pthread_mutex_unlock(&s->lock);
    *state = NULL;
}

/* ---------- 开关 ---------- */

/* 监听的套接字；地址可以是 IPv4、IPv6 或名字。 */
static int listen_on(const char *host, int port, Err *e) {
    char service[16];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list;
    snprintf(service, sizeof service, "%d", port);
    int rc = getaddrinfo(host, service, &hints, &list);
    if (rc != 0) {
        err_set(e, ERR_USAGE, "--host %s: %s", host, gai_strerror(rc));
        return -1;
    }
    int fd = -1, one = 1, why = 0;
    for (const struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0) continue;
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, 256) == 0) break;
        why = errno;
        close(fd);
        fd = -1;
    }
    freeaddrinfo(list);
    if (fd < 0) err_set(e, ERR_IO, "不能在 %s:%d 上监听（%s），换一个 --port 或 0", host, port, strerror(why));
    return fd;
}

static int bound_port(int fd) {
    struct sockaddr_storage a;
    socklen_t n = sizeof a;
    if (getsockname(fd, (struct sockaddr *)&a, &n) != 0) return 0;
    return ntohs(a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&a)->sin6_port
                                         : ((struct sockaddr_in *)&a)->sin_port);
}

bool server_open(Server **out, const ServerOptions *o, Err *e) {
    Server *s = calloc(1, sizeof *s);
    *out = NULL;
    if (!s) return err_set(e, ERR_MEMORY, "内存不足");
    s->o = *o;
    s->o.engine.hooks = (EngineHooks){call_gone, call_open_stream, call_send, call_finish};
    s->started = (int64_t)time(NULL);
    pthread_mutex_init(&s->lock, NULL);
    int fd = listen_on(o->host, o->port, e);
    bool ok = fd >= 0 && engine_open(&s->engine, &s->o.engine, e);
    if (ok) {
        s->port = bound_port(fd);
        s->daemon = MHD_start_daemon(
            MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME, 0, NULL, NULL, on_request, s,
            MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_NOTIFY_COMPLETED, on_completed, s,
            MHD_OPTION_CONNECTION_LIMIT, o->max_connections, MHD_OPTION_CONNECTION_TIMEOUT,
            o->idle_seconds, MHD_OPTION_END);
        if (!s->daemon) ok = err_set(e, ERR_IO, "不能启动 HTTP 服务");
    }
    if (!ok) {
        if (fd >= 0 && !s->daemon) close(fd);
        engine_close(s->engine);
        pthread_mutex_destroy(&s->lock);
        free(s);
        return false;
    }
    *out = s;
    return true;
}

bool server_broken(Server *s, Err *e) {
    return engine_broken(s->engine, e);
}

int server_port(const Server *s) {
    return s->port;
}

void server_close(Server *s, EngineCounts *counts) {
    if (!s) return;
    pthread_mutex_lock(&s->lock);
    s->stopping = true;
    pthread_mutex_unlock(&s->lock);
    MHD_socket fd = MHD_quiesce_daemon(s->daemon);
    engine_stop(s->engine);
    if (counts) *counts = engine_counts(s->engine);
    for (int i = 0; i < 100; i++) { /* 等最后的回应送出 */
        pthread_mutex_lock(&s->lock);
        size_t left = s->n_calls;
        pthread_mutex_unlock(&s->lock);
        if (!left) break;
        usleep(20000);
    }
    MHD_stop_daemon(s->daemon);
    engine_close(s->engine);
    if (fd != MHD_INVALID_SOCKET) close(fd);
    pthread_mutex_destroy(&s->lock);
    free(s);
}
