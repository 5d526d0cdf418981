/* http_internal — HTTP 服务器各部分之间的契约（只供 http*.c 包含）
 * Call 由连接与引擎共有，两边都放手才释放；连接只在 Call.suspended 为真时处于挂起，且恢复恰好一次。 */
#ifndef PTQ_SERVE_HTTP_INTERNAL_H
#define PTQ_SERVE_HTTP_INTERNAL_H
#include <microhttpd.h>
#include <pthread.h>

#include "serve/http.h"

struct Server {
    ServerOptions o;
    Engine *engine;
    struct MHD_Daemon *daemon;
    pthread_mutex_t lock; /* Call 的状态与 bodies */
    size_t bodies, n_calls;
    bool stopping;
    int64_t started;
    int port;
};

typedef struct Call {
    Server *server;
    struct MHD_Connection *connection; /* 连接结束后为 NULL */
    int fd;
    Str body;        /* 请求体 */
    size_t received; /* 已收的字节，超出上限的只数不存 */
    bool too_large, no_room;
    int refs;
    /* 引擎一侧 */
    bool submitted, streaming, done, suspended;
    int status;
    Str reply;       /* 回应；流式为还没送出的部分 */
    size_t replied;
} Call;

/* ---- http_call：一个请求的一生、引擎的回调、回应 ---- */
/* 新的一个连接的 Call（引用数 1）。返回: 内存不足为 NULL。 */
Call *call_new(Server *s, struct MHD_Connection *connection);
/* 放掉请求体。拿着锁调用。 */
void call_drop_body(Call *c);
/* 少一个引用，归零时释放。拿着锁调用。 */
void call_unref(Call *c);
/* 连接挂起着就恢复它。拿着锁调用。 */
void call_wake(Call *c);
/* 送出 v（偷走引用）。 */
enum MHD_Result http_queue_json(struct MHD_Connection *connection, int status, json_t *v);
/* 送出一个错误。 */
enum MHD_Result http_queue_error(struct MHD_Connection *connection, const ApiError *err);
/* 引擎恢复了连接：送出回应。 */
enum MHD_Result call_answer(struct MHD_Connection *connection, Call *c);
/* 引擎的回调（计算线程）：客户走了没有；开始流式；送一段；算完。 */
bool call_gone(void *owner);
void call_open_stream(void *owner);
void call_send(void *owner, const char *data, size_t n);
void call_finish(void *owner, int status, Str *body);
#endif
