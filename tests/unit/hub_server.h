/* hub_server — 供 test_hub 用的假 Hub：另一个进程里的 HTTP 服务（libmicrohttpd）
 * 像 Hub 那样：API 列文件（大小、散列）、resolve 给小文件、大文件改道到另一个端口（当作别的主机）、Range 续传。
 * 各种坏行为由共享内存中的 mode 打开，计数也在那里。 */
#ifndef TESTS_UNIT_HUB_SERVER_H
#define TESTS_UNIT_HUB_SERVER_H
#include <stddef.h>
#include <stdint.h>

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

#endif
