/* http — HTTP 服务器（libmicrohttpd）：路由、请求体、流式回应、并发与大小的上限
 * 一个网络线程（epoll）管所有连接，慢的客户不挡别人；交给 engine 的请求挂起连接，算完再恢复。 */
#ifndef PTQ_SERVE_HTTP_H
#define PTQ_SERVE_HTTP_H
#include "serve/chat.h"
#include "serve/engine.h"

typedef struct Server Server;
typedef struct ServerOptions {
    const char *host;   /* 如 "127.0.0.1"、"0.0.0.0"、"::1" */
    int port;           /* 0 为任选一个空闲的 */
    const char *api_key; /* NULL 为不要 */
    size_t max_body;    /* 请求体的字节上限 */
    unsigned max_connections;
    unsigned idle_seconds; /* 连接上这么久没有动静就断开 */
    ChatTemplate chat;    /* text 为 NULL：不提供聊天 */
    EngineOptions engine; /* hooks 由服务器填 */
} ServerOptions;

bool server_open(Server **s, const ServerOptions *o, Err *e);
/* 实际监听的端口。 */
int server_port(const Server *s);
/* 见 engine_broken。 */
bool server_broken(Server *s, Err *e);
/* 停：不再收新连接，手头的请求以 503 结束，等回应送出（至多两秒）后关闭。s、counts 可为 NULL。 */
void server_close(Server *s, EngineCounts *counts);
#endif
