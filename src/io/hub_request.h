/* hub_request — 对 Hub 的一次请求（libcurl）：hub_http 与 hub_fetch 共用，只供这两个文件包含
 * 令牌、改道、超时、头的上限、重试与错误的说明都在这里；正文归谁由 write 决定。 */
#ifndef PTQ_IO_HUB_REQUEST_H
#define PTQ_IO_HUB_REQUEST_H
#include <curl/curl.h>

#include "io/hub_internal.h"

#define HUB_TRIES 6 /* 一个请求至多试几次 */

typedef struct HubRequest {
    const HubRepo *r;
    CURL *curl;
    struct curl_slist *headers;
    size_t header_bytes;
    long status;
    double retry_after;
    char code[64];       /* X-Error-Code */
    char revision[41];   /* X-Revision（rows API 的版本） */
    int64_t range_start; /* Content-Range 的起点，-1 为没有 */
    int tries;
    Err err;             /* 回调中的错误（磁盘满等），不重试 */
    Str *text;           /* 非 NULL：正文收进这里，不用 write */
    curl_write_callback write;
    void *owner;         /* 交给 write */
} HubRequest;

/* 为取 url 设好 curl；可重复调用。 */
bool hub_request_prepare(HubRequest *t, const char *url, Err *e);
void hub_request_close(HubRequest *t);
/* 值得再试的: 连接类的错误、限流、服务器的错误。 */
bool hub_worth_retry(CURLcode rc, long status);
/* 下一次重试前等几秒（尊重 Retry-After）。 */
double hub_wait_seconds(const HubRequest *t);
/* 请求失败的说明。返回: 恒为假。 */
bool hub_request_fail(const HubRequest *t, const char *url, CURLcode rc, Err *e);
#endif
