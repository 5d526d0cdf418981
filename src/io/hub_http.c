/* hub_http — 与 Hub 说话：一次请求（令牌、改道、重试、错误的说明）与取 JSON 文本
 * 连接断了、限流、服务器出错时等一会儿再试（尊重 Retry-After）；令牌只给最初的主机，改道到别的主机时 libcurl 不带它。 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "io/hub_request.h"

#define TEXT_MAX ((size_t)32 << 20)      /* JSON 答复的上限 */
#define HEADERS_MAX ((size_t)256 << 10)  /* 一次请求的头的上限 */
#define WAIT_MAX 300.0                   /* 重试前至多等几秒 */

void hub_escape(Str *out, const char *text, const char *keep) {
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        bool plain = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
                     strchr("-._~", c) || strchr(keep, c);
        if (plain)
            str_addn(out, text, 1);
        else
            str_addf(out, "%%%02X", c);
    }
}

static size_t on_header(char *p, size_t size, size_t n, void *ctx) {
    HubRequest *t = ctx;
    n *= size;
    t->header_bytes += n;
    if (t->header_bytes > HEADERS_MAX) {
        err_set(&t->err, ERR_FORMAT, "%s: 答复的头过长", t->r->o->endpoint);
        return 0;
    }
    if (n >= 5 && memcmp(p, "HTTP/", 5) == 0) { /* 改道之后是新的一组头 */
        t->range_start = -1;
        t->retry_after = 0;
    }
    char line[256];
    snprintf(line, sizeof line, "%.*s", n < 255 ? (int)n : 255, p);
    line[strcspn(line, "\r\n")] = '\0';
    if (strncasecmp(line, "retry-after:", 12) == 0) t->retry_after = strtod(line + 12, NULL);
    if (strncasecmp(line, "x-error-code:", 13) == 0) sscanf(line + 13, " %63s", t->code);
    if (strncasecmp(line, "x-revision:", 11) == 0) sscanf(line + 11, " %40s", t->revision);
    if (strncasecmp(line, "content-range:", 14) == 0) {
        long long from;
        if (sscanf(line + 14, " bytes %lld-", &from) == 1) t->range_start = from;
    }
    return n;
}

static size_t on_text(char *p, size_t size, size_t n, void *ctx) {
    HubRequest *t = ctx;
    Str *text = t->text;
    n *= size;
    if (text->len + n > TEXT_MAX) {
        err_set(&t->err, ERR_FORMAT, "%s: 答复超过 32 MB", t->r->o->endpoint);
        return 0;
    }
    str_addn(text, p, n);
    return text->failed ? 0 : n;
}

/* ---- 请求 ---- */

bool hub_request_prepare(HubRequest *t, const char *url, Err *e) {
    const HubOptions *o = t->r->o;
    if (!t->curl && !(t->curl = curl_easy_init())) return err_set(e, ERR_MEMORY, "内存不足：libcurl");
    CURL *c = t->curl;
    curl_easy_reset(c);
    curl_slist_free_all(t->headers);
    t->headers = NULL;
    if (o->token) {
        Str s = {0};
        str_addf(&s, "Authorization: Bearer %s", o->token);
        t->headers = s.failed ? NULL : curl_slist_append(NULL, s.data);
        str_free(&s);
        if (!t->headers) return err_set(e, ERR_MEMORY, "内存不足：libcurl");
    }
    t->header_bytes = 0;
    t->code[0] = t->revision[0] = '\0';
    t->retry_after = 0;
    t->range_start = -1;
    bool secure = str_starts(o->endpoint, "https://");
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS_STR, secure ? "https" : "http,https");
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, t->headers);
    curl_easy_setopt(c, CURLOPT_USERAGENT, "ptq-bench");
    curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(c, CURLOPT_MAXREDIRS, 10L);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, 20L);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, 60L);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_BUFFERSIZE, 512L << 10);
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, t);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, t->text ? on_text : t->write);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, t->text ? t : t->owner);
    curl_easy_setopt(c, CURLOPT_PRIVATE, t->owner);
    return true;
}

void hub_request_close(HubRequest *t) {
    curl_easy_cleanup(t->curl);
    curl_slist_free_all(t->headers);
    t->curl = NULL;
    t->headers = NULL;
}

bool hub_worth_retry(CURLcode rc, long status) {
    switch (rc) {
    case CURLE_OK: return status == 408 || status == 425 || status == 429 || status >= 500;
    case CURLE_COULDNT_RESOLVE_HOST: case CURLE_COULDNT_CONNECT: case CURLE_PARTIAL_FILE:
    case CURLE_OPERATION_TIMEDOUT: case CURLE_GOT_NOTHING: case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR: case CURLE_SSL_CONNECT_ERROR: case CURLE_HTTP2: case CURLE_HTTP2_STREAM:
        return true;
    default: return false;
    }
}

double hub_wait_seconds(const HubRequest *t) {
    double s = t->r->o->retry_seconds;
    for (int i = 1; i < t->tries; i++) s *= 2;
    if (t->retry_after > s) s = t->retry_after;
    return s < WAIT_MAX ? s : WAIT_MAX;
}

static bool status_error(const HubRepo *r, const char *url, long status, const char *code, Err *e) {
    const char *page = r->o->endpoint;
    if (strcmp(code, "GatedRepo") == 0 || status == 403)
        return err_set(e, ERR_MISSING,
                       "%s 需要授权：先在 %s/%s 上登录并接受许可，再 export HF_TOKEN=xxx（在 %s/settings/tokens 取得）",
                       r->id, page, r->id, page);
    if (status == 401)
        return err_set(e, ERR_MISSING,
                       "Hub 上没有 %s，或它不公开、需要授权：请核对名字；有权限的话 export HF_TOKEN=xxx%s", r->id,
                       r->o->token ? "（现在的令牌不被接受）" : "");
    if (strcmp(code, "RevisionNotFound") == 0)
        return err_set(e, ERR_MISSING, "Hub 上的 %s 没有版本 %s", r->id, r->revision);
    if (status == 404) return err_set(e, ERR_MISSING, "Hub 上没有 %s（%s 答 404）", r->id, url);
    if (status == 429)
        return err_set(e, ERR_IO, "%s 限流（429），等了又试仍不行：过一会儿再运行，已下载的不会重来；"
                                  "export HF_TOKEN=xxx 可放宽", page);
    return err_set(e, ERR_IO, "%s 答 HTTP %ld，稍后再试；也可 export HF_ENDPOINT=镜像的地址", url, status);
}

bool hub_request_fail(const HubRequest *t, const char *url, CURLcode rc, Err *e) {
    if (t->err.code) {
        if (e) *e = t->err;
        return false;
    }
    if (rc == CURLE_TOO_MANY_REDIRECTS)
        return err_set(e, ERR_FORMAT, "%s: 改道超过 10 次（成环）", url);
    if (rc != CURLE_OK)
        return err_set(e, ERR_IO, "%s: %s。请检查网络；也可 export HF_ENDPOINT=镜像的地址，或 HF_HUB_OFFLINE=1 只用缓存",
                       url, curl_easy_strerror(rc));
    return status_error(t->r, url, t->status, t->code, e);
}

/* ---- 取文本 ---- */

/* 等到 until（可被 Ctrl-C 打断）。 */
static bool pause_until(double until, Err *e) {
    while (clock_seconds() < until) {
        if (!interrupt_check(e)) return false;
        usleep(20000);
    }
    return true;
}

bool hub_get_text(const HubRepo *r, const char *url, Str *out, char revision[41], Err *e) {
    HubRequest t = {.r = r, .text = out};
    bool ok = false;
    CURLcode rc = CURLE_OK;
    for (;;) {
        out->len = 0;
        if (!interrupt_check(e) || !hub_request_prepare(&t, url, e)) break;
        rc = curl_easy_perform(t.curl);
        t.status = 0;
        if (rc == CURLE_OK) curl_easy_getinfo(t.curl, CURLINFO_RESPONSE_CODE, &t.status);
        ok = rc == CURLE_OK && t.status == 200;
        if (ok || t.err.code || ++t.tries >= (r->impatient ? 1 : HUB_TRIES) ||
            !hub_worth_retry(rc, t.status)) {
            if (!ok) hub_request_fail(&t, url, rc, e);
            break;
        }
        if (!pause_until(clock_seconds() + hub_wait_seconds(&t), e)) break;
    }
    if (revision) memcpy(revision, t.revision, sizeof t.revision);
    hub_request_close(&t);
    return ok;
}
