/* hub_fetch — 同时从 Hub 下载几个文件
 * 写进 blobs/散列.incomplete，从已有的长度续传，写满并核对散列后改名。 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "io/hub_request.h"

#define PARALLEL 4 /* 同时下载的文件数 */

typedef struct Transfer {
    HubRequest q;
    const HubFile *file;
    int fd, lock;
    int64_t have, counted;  /* 已写的字节；已计入进度的 */
    HubHasher *hasher;
    double wait_until;      /* 到此时再试 */
    bool busy, done, restart;
    int64_t *total_done;
} Transfer;

/* ---- 写下收到的 ---- */

static bool write_all(Transfer *t, const char *p, size_t n) {
    while (n) {
        ssize_t got = pwrite(t->fd, p, n, t->have);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            int err = errno;
            return err_set(&t->q.err, ERR_IO, "下载 %s 时写不进 %s：%s。已下载的保留着，腾出空间后再运行会接着下",
                           t->file->name, t->q.r->root,
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
    curl_easy_getinfo(t->q.curl, CURLINFO_RESPONSE_CODE, &status);
    if (status != 200 && status != 206) return n; /* 出错的页面：不要 */
    int64_t start = status == 206 ? t->q.range_start : 0;
    if (start != t->have && t->counted == t->have) {
        t->restart = true; /* 服务器不从断处给：从头来 */
        return 0;
    }
    if (t->have + (int64_t)n > t->file->size) {
        err_set(&t->q.err, ERR_FORMAT, "%s: 服务器给的比记录的 %lld 字节长", t->file->name,
                (long long)t->file->size);
        return 0;
    }
    if (!write_all(t, p, n)) return 0;
    hub_hasher_written(t->hasher, t->have);
    return n;
}

/* ---- 文件 ---- */

static bool open_partial(Transfer *t, Arena *a, Err *e) {
    const char *path = hub_blob_path(t->q.r, a, t->file->etag, ".incomplete", e);
    if (!path || (t->lock = hub_lock(t->q.r, a, t->file->etag, e)) < 0) return false;
    if (hub_has_blob(t->q.r, a, t->file)) { /* 等锁的时候别的进程下完了 */
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
    const HubRepo *r = t->q.r;
    str_addf(url, "%s/%s%s/resolve/%s/", r->o->endpoint, r->dataset ? "datasets/" : "", r->id, r->commit);
    hub_escape(url, t->file->name, "/");
    return !url->failed;
}

static bool start_request(Transfer *t, CURLM *multi, Err *e) {
    Str url = {0};
    bool ok = file_url(t, &url) || err_set(e, ERR_MEMORY, "内存不足：下载");
    ok = ok && hub_request_prepare(&t->q, url.data, e);
    str_free(&url);
    if (!ok) return false;
    t->counted = t->have;
    t->restart = false;
    if (t->have > 0) curl_easy_setopt(t->q.curl, CURLOPT_RESUME_FROM_LARGE, (curl_off_t)t->have);
    t->busy = curl_multi_add_handle(multi, t->q.curl) == CURLM_OK;
    return t->busy || err_set(e, ERR_MEMORY, "内存不足：libcurl");
}

/* 写满了：核对散列，改名。散列不符则清空，可再试一次。 */
static bool finish_file(Transfer *t, Arena *a, bool *again, Err *e) {
    char hex[65];
    hub_hasher_end(t->hasher, false, hex);
    t->hasher = NULL;
    const char *from = hub_blob_path(t->q.r, a, t->file->etag, ".incomplete", e);
    const char *to = hub_blob_path(t->q.r, a, t->file->etag, "", e);
    if (!from || !to) return false;
    if (strcmp(hex, t->file->etag) != 0) {
        *again = ++t->q.tries < 2;
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
    t->q.status = 0;
    curl_easy_getinfo(t->q.curl, CURLINFO_RESPONSE_CODE, &t->q.status);
    *t->total_done += t->have - t->counted;
    bool moved = t->have > t->counted;
    t->counted = t->have;
    bool full = rc == CURLE_OK && (t->q.status == 200 || t->q.status == 206) &&
                t->have == t->file->size;
    if (t->have == t->file->size && t->q.status == 416) full = true;
    if (t->q.err.code) return hub_request_fail(&t->q, t->file->name, rc, e);
    if (full) {
        bool again = false;
        return finish_file(t, a, &again, e);
    }
    bool stale = t->restart || t->q.status == 416 || rc == CURLE_RANGE_ERROR;
    bool cut = rc == CURLE_OK && (t->q.status == 200 || t->q.status == 206); /* 少给了 */
    if (moved) t->q.tries = 0; /* 有进展就不算白试 */
    if (++t->q.tries >= HUB_TRIES || !(stale || cut || hub_worth_retry(rc, t->q.status)))
        return hub_request_fail(&t->q, t->file->name, cut ? CURLE_PARTIAL_FILE : rc, e);
    if (stale) return start_over(t, e);
    t->wait_until = clock_seconds() + hub_wait_seconds(&t->q);
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
        if (list[i].busy) curl_multi_remove_handle(multi, list[i].q.curl);
        hub_request_close(&list[i].q);
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
        list[i] = (Transfer){.q = {.r = r, .write = on_data, .owner = &list[i]}, .file = files[i],
                             .fd = -1, .lock = -1, .total_done = &done};
    bool ok = run_all(list, n, multi, &p, &done, e);
    progress_end(&p);
    close_all(list, n, multi);
    curl_multi_cleanup(multi);
    free(list);
    return ok;
}
