/* hub_net — 与 Hub 说话：取 JSON、同时下载几个文件（libcurl 只出现在这里）
 * 下载写进 blobs/散列.incomplete，从已有的长度续传，写满并核对散列后改名。连接断了、限流、服务器出错时
 * 等一会儿再试（尊重 Retry-After）；令牌只给 HF_ENDPOINT 的主机，改道到别的主机时 libcurl 不带它。 */
#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "io/hub_internal.h"

#define TRIES 6                          /* 一个请求至多试几次 */
#define PARALLEL 4                       /* 同时下载的文件数 */
#define TEXT_MAX ((size_t)32 << 20)      /* JSON 答复的上限 */
#define HEADERS_MAX ((size_t)256 << 10)  /* 一次请求的头的上限 */
#define WAIT_MAX 300.0                   /* 重试前至多等几秒 */

typedef struct Transfer {
    const HubRepo *r;
    CURL *curl;
    struct curl_slist *headers;
    size_t header_bytes;
    long status;
    double retry_after;
    char code[64];          /* X-Error-Code */
    int64_t range_start;    /* Content-Range 的起点，-1 为没有 */
    Str *text;              /* 取文本 */
    const HubFile *file;    /* 取文件 */
    int fd, lock, tries;
    int64_t have, counted;  /* 已写的字节；已计入进度的 */
    HubHasher *hasher;
    double wait_until;      /* 到此时再试 */
    bool busy, done, restart;
    Err err;                /* 回调中的错误（磁盘满等），不重试 */
    Progress *progress;
    int64_t *total_done;
} Transfer;

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

/* ---- 回调 ---- */

static size_t on_header(char *p, size_t size, size_t n, void *ctx) {
    Transfer *t = ctx;
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
    if (strncasecmp(line, "content-range:", 14) == 0) {
        long long from;
        if (sscanf(line + 14, " bytes %lld-", &from) == 1) t->range_start = from;
    }
    return n;
}

static size_t on_text(char *p, size_t size, size_t n, void *ctx) {
    Transfer *t = ctx;
    n *= size;
    if (t->text->len + n > TEXT_MAX) {
        err_set(&t->err, ERR_FORMAT, "%s: 答复超过 32 MB", t->r->o->endpoint);
        return 0;
    }
    str_addn(t->text, p, n);
    return t->text->failed ? 0 : n;
}

static bool write_all(Transfer *t, const char *p, size_t n) {
    while (n) {
        ssize_t got = pwrite(t->fd, p, n, t->have);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            int err = errno;
            return err_set(&t->err, ERR_IO, "下载 %s 时写不进 %s：%s。已下载的保留着，腾出空间后再运行会接着下",
                           t->file->name, t->r->root,
                           err == ENOSPC ? "磁盘已满" : err == EFBIG ? "超过文件大小限制" : strerror(err));
        }
        p += got;
        n -= (size_t)got;
        t->have += got;
    }
    return true;
}

static size_t on_data(char *p, size_t size, size_t n, void *ctx) {
    Transfer *t = ctx;
    n *= size;
    long status = 0;
    curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &status);
    if (status != 200 && status != 206) return n; /* 出错的页面：不要 */
    int64_t start = status == 206 ? t->range_start : 0;
    if (start != t->have && t->counted == t->have) {
        t->restart = true; /* 服务器不从断处给：从头来 */
        return 0;
    }
    if (t->have + (int64_t)n > t->file->size) {
        err_set(&t->err, ERR_FORMAT, "%s: 服务器给的比记录的 %lld 字节长", t->file->name,
                (long long)t->file->size);
        return 0;
    }
    if (!write_all(t, p, n)) return 0;
    hub_hasher_written(t->hasher, t->have);
    return n;
}

/* ---- 请求 ---- */

static bool prepare(Transfer *t, const char *url, Err *e) {
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
    t->code[0] = '\0';
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
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, t->text ? on_text : on_data);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(c, CURLOPT_PRIVATE, t);
    return true;
}

static void transfer_close(Transfer *t) {
    curl_easy_cleanup(t->curl);
    curl_slist_free_all(t->headers);
    t->curl = NULL;
    t->headers = NULL;
}

/* 值得再试的: 连接类的错误、限流、服务器的错误。 */
static bool worth_retry(CURLcode rc, long status) {
    switch (rc) {
    case CURLE_OK: return status == 408 || status == 425 || status == 429 || status >= 500;
    case CURLE_COULDNT_RESOLVE_HOST: case CURLE_COULDNT_CONNECT: case CURLE_PARTIAL_FILE:
    case CURLE_OPERATION_TIMEDOUT: case CURLE_GOT_NOTHING: case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR: case CURLE_SSL_CONNECT_ERROR: case CURLE_HTTP2: case CURLE_HTTP2_STREAM:
        return true;
    default: return false;
    }
}

static double wait_seconds(const Transfer *t) {
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

static bool fail(const Transfer *t, const char *url, CURLcode rc, Err *e) {
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

/* 等到 until（可被 Ctrl-C 打断）。 */
static bool pause_until(double until, Err *e) {
    while (clock_seconds() < until) {
        if (!interrupt_check(e)) return false;
        usleep(20000);
    }
    return true;
}

bool hub_get_text(const HubRepo *r, const char *url, Str *out, long *status, Err *e) {
    Transfer t = {.r = r, .text = out, .fd = -1};
    bool ok = false;
    CURLcode rc = CURLE_OK;
    *status = 0;
    for (;;) {
        out->len = 0;
        if (!interrupt_check(e) || !prepare(&t, url, e)) break;
        rc = curl_easy_perform(t.curl);
        t.status = 0;
        if (rc == CURLE_OK) curl_easy_getinfo(t.curl, CURLINFO_RESPONSE_CODE, &t.status);
        *status = t.status;
        ok = rc == CURLE_OK && t.status == 200;
        if (ok || t.err.code || ++t.tries >= (r->impatient ? 1 : TRIES) ||
            !worth_retry(rc, t.status)) {
            if (!ok) fail(&t, url, rc, e);
            break;
        }
        if (!pause_until(clock_seconds() + wait_seconds(&t), e)) break;
    }
    transfer_close(&t);
    return ok;
}

/* ---- 文件 ---- */

static bool open_partial(Transfer *t, Arena *a, Err *e) {
    const char *path = hub_blob_path(t->r, a, t->file->etag, ".incomplete", e);
    if (!path || (t->lock = hub_lock(t->r, a, t->file->etag, e)) < 0) return false;
    if (hub_has_blob(t->r, a, t->file)) { /* 等锁的时候别的进程下完了 */
        t->done = true;
        return true;
    }
    t->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    struct stat st;
    if (t->fd < 0 || fstat(t->fd, &st) != 0)
        return err_set(e, ERR_IO, "%s: 打不开：%s", path, strerror(errno));
    t->have = S_ISREG(st.st_mode) ? st.st_size : 0;
    if (t->have > t->file->size) t->have = 0;
    return ftruncate(t->fd, t->have) == 0 ||
           err_set(e, ERR_IO, "%s: 写不了：%s", path, strerror(errno));
}

static bool start_hasher(Transfer *t, Err *e) {
    bool git = strlen(t->file->etag) == 40;
    t->hasher = hub_hasher_start(t->fd, git, t->file->size, e);
    if (t->hasher) hub_hasher_written(t->hasher, t->have);
    return t->hasher != NULL;
}

static bool start_over(Transfer *t, Err *e) {
    char hex[65];
    hub_hasher_end(t->hasher, true, hex);
    t->hasher = NULL;
    *t->total_done -= t->counted;
    t->have = t->counted = 0;
    if (ftruncate(t->fd, 0) != 0) return err_set(e, ERR_IO, "%s: 清不空", t->file->name);
    return start_hasher(t, e);
}

static bool file_url(const Transfer *t, Str *url) {
    str_addf(url, "%s/%s/resolve/%s/", t->r->o->endpoint, t->r->id, t->r->commit);
    hub_escape(url, t->file->name, "");
    return !url->failed;
}

static bool start_request(Transfer *t, CURLM *multi, Err *e) {
    Str url = {0};
    bool ok = file_url(t, &url) || err_set(e, ERR_MEMORY, "内存不足：下载");
    ok = ok && prepare(t, url.data, e);
    str_free(&url);
    if (!ok) return false;
    t->counted = t->have;
    t->restart = false;
    if (t->have > 0) curl_easy_setopt(t->curl, CURLOPT_RESUME_FROM_LARGE, (curl_off_t)t->have);
    t->busy = curl_multi_add_handle(multi, t->curl) == CURLM_OK;
    return t->busy || err_set(e, ERR_MEMORY, "内存不足：libcurl");
}

/* 写满了：核对散列，改名。散列不符则清空，可再试一次。 */
static bool finish_file(Transfer *t, Arena *a, bool *again, Err *e) {
    char hex[65];
    hub_hasher_end(t->hasher, false, hex);
    t->hasher = NULL;
    const char *from = hub_blob_path(t->r, a, t->file->etag, ".incomplete", e);
    const char *to = hub_blob_path(t->r, a, t->file->etag, "", e);
    if (!from || !to) return false;
    if (strcmp(hex, t->file->etag) != 0) {
        *again = ++t->tries < 2;
        *t->total_done -= t->have;
        t->have = t->counted = 0;
        bool cleared = ftruncate(t->fd, 0) == 0 && (*again || unlink(from) == 0);
        if (*again && cleared) return start_hasher(t, e);
        return err_set(e, ERR_FORMAT, "%s 的散列不符：应为 %s，实为 %s（已删除）。换个 HF_ENDPOINT 或稍后再试",
                       t->file->name, t->file->etag, hex[0] ? hex : "（读不出）");
    }
    if (fsync(t->fd) != 0 || rename(from, to) != 0)
        return err_set(e, ERR_IO, "%s: 存不下：%s", to, strerror(errno));
    t->done = true;
    return true;
}

/* 一次请求结束。返回: 假为不可挽回。 */
static bool end_request(Transfer *t, CURLcode rc, Arena *a, Err *e) {
    t->busy = false;
    t->status = 0;
    curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &t->status);
    *t->total_done += t->have - t->counted;
    bool moved = t->have > t->counted;
    t->counted = t->have;
    bool full = rc == CURLE_OK && (t->status == 200 || t->status == 206) &&
                t->have == t->file->size;
    if (t->have == t->file->size && t->status == 416) full = true;
    if (t->err.code) return fail(t, t->file->name, rc, e);
    if (full) {
        bool again = false;
        return finish_file(t, a, &again, e);
    }
    bool stale = t->restart || t->status == 416 || rc == CURLE_RANGE_ERROR;
    bool cut = rc == CURLE_OK && (t->status == 200 || t->status == 206); /* 少给了 */
    if (moved) t->tries = 0; /* 有进展就不算白试 */
    if (++t->tries >= TRIES || !(stale || cut || worth_retry(rc, t->status)))
        return fail(t, t->file->name, cut ? CURLE_PARTIAL_FILE : rc, e);
    if (stale) return start_over(t, e);
    t->wait_until = clock_seconds() + wait_seconds(t);
    return true;
}

static bool poll_done(CURLM *multi, Arena *a, Err *e) {
    CURLMsg *m;
    int left;
    while ((m = curl_multi_info_read(multi, &left))) {
        if (m->msg != CURLMSG_DONE) continue;
        Transfer *t = NULL;
        CURLcode rc = m->data.result;
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&t);
        curl_multi_remove_handle(multi, m->easy_handle);
        if (!end_request(t, rc, a, e)) return false;
    }
    return true;
}

/* 开始轮得到的: 没完、没在下、等够了，同时至多 PARALLEL 个。 */
static bool start_some(Transfer *list, size_t n, CURLM *multi, size_t *pending, Arena *a, Err *e) {
    size_t busy = 0;
    *pending = 0;
    for (size_t i = 0; i < n; i++) busy += list[i].busy;
    for (size_t i = 0; i < n; i++) {
        Transfer *t = &list[i];
        if (!t->done && !t->busy && busy < PARALLEL && clock_seconds() >= t->wait_until) {
            if (t->fd < 0 && !open_partial(t, a, e)) return false;
            if (!t->done && !t->hasher) {
                if (!start_hasher(t, e)) return false;
                *t->total_done += t->have;
                t->counted = t->have;
            }
            bool again = false;
            if (!t->done && t->have == t->file->size) { /* 只差核对 */
                if (!finish_file(t, a, &again, e)) return false;
            }
            if (!t->done && !start_request(t, multi, e)) return false;
            busy += t->busy;
        }
        *pending += !t->done;
    }
    return true;
}

static void show(const Transfer *list, size_t n, Progress *p, int64_t total_done) {
    for (size_t i = 0; i < n; i++) total_done += list[i].busy ? list[i].have - list[i].counted : 0;
    progress_step(p, total_done);
}

static bool run_all(Transfer *list, size_t n, CURLM *multi, Progress *p, int64_t *done, Err *e) {
    Arena a = {0};
    size_t pending = 0;
    bool ok;
    while ((ok = interrupt_check(e) && start_some(list, n, multi, &pending, &a, e)) && pending) {
        int running;
        curl_multi_perform(multi, &running);
        if (!(ok = poll_done(multi, &a, e))) break;
        show(list, n, p, *done);
        curl_multi_poll(multi, NULL, 0, running ? 200 : 20, NULL);
    }
    arena_free(&a);
    return ok;
}

static void close_all(Transfer *list, size_t n, CURLM *multi) {
    char hex[65];
    for (size_t i = 0; i < n; i++) {
        if (list[i].busy) curl_multi_remove_handle(multi, list[i].curl);
        transfer_close(&list[i]);
        if (list[i].hasher) hub_hasher_end(list[i].hasher, true, hex);
        if (list[i].fd >= 0) close(list[i].fd);
        if (list[i].lock >= 0) close(list[i].lock);
    }
}

bool hub_fetch(const HubRepo *r, const HubFile *const *files, size_t n, Err *e) {
    int64_t total = 0, done = 0;
    Transfer *list = calloc(n, sizeof *list);
    CURLM *multi = list ? curl_multi_init() : NULL;
    if (!multi) {
        free(list);
        return err_set(e, ERR_MEMORY, "内存不足：下载");
    }
    for (size_t i = 0; i < n; i++) total += files[i]->size > 0 ? files[i]->size : 0;
    Progress p = progress_start(LOG_LOAD, r->id, "字节", total);
    for (size_t i = 0; i < n; i++)
        list[i] = (Transfer){.r = r, .file = files[i], .fd = -1, .lock = -1, .progress = &p,
                             .total_done = &done};
    bool ok = run_all(list, n, multi, &p, &done, e);
    progress_end(&p);
    close_all(list, n, multi);
    curl_multi_cleanup(multi);
    free(list);
    return ok;
}
