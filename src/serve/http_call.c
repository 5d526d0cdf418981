/* http_call — 一个请求的一生：引擎的回调与送出回应
 * 挂起期间网络线程看不到对方断开，所以引擎每步经 call_gone 查一次套接字。 */
#include "serve/http_internal.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

/* ---------- Call ---------- */

Call *call_new(Server *s, struct MHD_Connection *connection) {
    Call *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    *c = (Call){.server = s, .connection = connection, .fd = info ? info->connect_fd : -1, .refs = 1};
    pthread_mutex_lock(&s->lock);
    s->n_calls++;
    pthread_mutex_unlock(&s->lock);
    return c;
}

/* 拿着锁调用。 */
void call_drop_body(Call *c) {
    c->server->bodies -= c->body.cap;
    str_free(&c->body);
    c->body = (Str){0};
}

/* 拿着锁调用；归零时释放。 */
void call_unref(Call *c) {
    if (--c->refs > 0) return;
    call_drop_body(c);
    str_free(&c->reply);
    c->server->n_calls--;
    free(c);
}

/* 拿着锁调用。 */
void call_wake(Call *c) {
    if (!c->suspended || !c->connection) return;
    c->suspended = false;
    MHD_resume_connection(c->connection);
}

/* ---------- 引擎的回调（计算线程） ---------- */

bool call_gone(void *owner) {
    Call *c = owner;
    pthread_mutex_lock(&c->server->lock);
    bool gone = !c->connection;
    if (!gone && c->suspended && c->fd >= 0) {
        struct pollfd p = {.fd = c->fd, .events = POLLRDHUP};
        gone = poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
    }
    pthread_mutex_unlock(&c->server->lock);
    return gone;
}

void call_open_stream(void *owner) {
    Call *c = owner;
    pthread_mutex_lock(&c->server->lock);
    c->streaming = true;
    c->status = 200;
    call_wake(c);
    pthread_mutex_unlock(&c->server->lock);
}

void call_send(void *owner, const char *data, size_t n) {
    Call *c = owner;
    pthread_mutex_lock(&c->server->lock);
    str_addn(&c->reply, data, n);
    call_wake(c);
    pthread_mutex_unlock(&c->server->lock);
}

void call_finish(void *owner, int status, Str *body) {
    Call *c = owner;
    Server *s = c->server;
    pthread_mutex_lock(&s->lock);
    c->done = true;
    if (!c->streaming) {
        c->status = status;
        c->reply = *body;
        *body = (Str){0};
    }
    call_wake(c);
    call_unref(c);
    pthread_mutex_unlock(&s->lock);
    str_free(body);
}

/* ---------- 回应（网络线程） ---------- */

static enum MHD_Result queue(struct MHD_Connection *connection, int status, char *text, size_t n,
                             const char *type) {
    struct MHD_Response *r = MHD_create_response_from_buffer(n, text, MHD_RESPMEM_MUST_FREE);
    if (!r) {
        free(text);
        return MHD_NO;
    }
    MHD_add_response_header(r, "Content-Type", type);
    if (status == 401) MHD_add_response_header(r, "WWW-Authenticate", "Bearer");
    if (status == 429 || status == 503) MHD_add_response_header(r, "Retry-After", "1");
    enum MHD_Result ok = MHD_queue_response(connection, (unsigned)status, r);
    MHD_destroy_response(r);
    return ok;
}

enum MHD_Result http_queue_json(struct MHD_Connection *connection, int status, json_t *v) {
    char *text = v ? json_dumps(v, JSON_COMPACT) : NULL;
    json_decref(v);
    return text ? queue(connection, status, text, strlen(text), "application/json") : MHD_NO;
}

enum MHD_Result http_queue_error(struct MHD_Connection *connection, const ApiError *err) {
    Str s = {0};
    api_error_json(err, &s);
    if (s.failed) return MHD_NO;
    return queue(connection, err->status, s.data, s.len, "application/json");
}

/* 流式回应要下一段：有就给，没有就挂起，等 on_send。 */
static ssize_t read_stream(void *cls, uint64_t pos, char *buf, size_t max) {
    (void)pos;
    Call *c = cls;
    ssize_t n = 0;
    pthread_mutex_lock(&c->server->lock);
    size_t left = c->reply.len - c->replied;
    if (left) {
        n = (ssize_t)(left < max ? left : max);
        memcpy(buf, c->reply.data + c->replied, (size_t)n);
        c->replied += (size_t)n;
        if (c->replied == c->reply.len) c->reply.len = c->replied = 0;
    } else if (c->done) {
        n = c->reply.failed ? MHD_CONTENT_READER_END_WITH_ERROR : MHD_CONTENT_READER_END_OF_STREAM;
    } else if (c->connection) {
        c->suspended = true;
        MHD_suspend_connection(c->connection);
    }
    pthread_mutex_unlock(&c->server->lock);
    return n;
}

static void end_stream(void *cls) {
    Call *c = cls;
    Server *s = c->server;
    pthread_mutex_lock(&s->lock);
    call_unref(c);
    pthread_mutex_unlock(&s->lock);
}

static enum MHD_Result queue_stream(struct MHD_Connection *connection, Call *c) {
    pthread_mutex_lock(&c->server->lock);
    c->refs++;
    pthread_mutex_unlock(&c->server->lock);
    struct MHD_Response *r =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 16 << 10, read_stream, c, end_stream);
    if (!r) {
        end_stream(c);
        return MHD_NO;
    }
    MHD_add_response_header(r, "Content-Type", "text/event-stream");
    MHD_add_response_header(r, "Cache-Control", "no-cache");
    enum MHD_Result ok = MHD_queue_response(connection, 200, r);
    MHD_destroy_response(r);
    return ok;
}

/* 引擎恢复了连接：送出回应。 */
enum MHD_Result call_answer(struct MHD_Connection *connection, Call *c) {
    Server *s = c->server;
    pthread_mutex_lock(&s->lock);
    bool stream = c->streaming, done = c->done;
    if (!stream && !done) { /* 还没有结果就被叫醒：接着等 */
        c->suspended = true;
        MHD_suspend_connection(connection);
        pthread_mutex_unlock(&s->lock);
        return MHD_YES;
    }
    Str reply = c->reply;
    int status = c->status;
    if (!stream) c->reply = (Str){0};
    pthread_mutex_unlock(&s->lock);
    if (stream) return queue_stream(connection, c);
    if (!reply.data) return MHD_NO; /* 客户已经走了 */
    return queue(connection, status, reply.data, reply.len, "application/json");
}
