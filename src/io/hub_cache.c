/* hub_cache — Hub 缓存的布局：文件夹、符号链接、引用、锁、环境变量
 * 与 huggingface_hub 相同，两者共用一个缓存。服务器给的名字、散列、提交都先查过才用来拼路径。 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/file.h"
#include "io/hub_internal.h"

/* ---- 名字 ---- */

static bool is_hex(const char *s, size_t n) {
    if (strlen(s) != n) return false;
    for (size_t i = 0; i < n; i++)
        if (!strchr("0123456789abcdef", s[i])) return false;
    return true;
}

bool hub_is_commit(const char *s) {
    return is_hex(s, 40);
}

bool hub_is_etag(const char *s) {
    return is_hex(s, 40) || is_hex(s, 64);
}

/* 只含字母、数字与 extra 中的字符，且没有 .. 与开头的 . - /。 */
static bool plain(const char *s, const char *extra, size_t limit) {
    size_t n = strlen(s);
    if (n == 0 || n > limit || strchr(".-/", s[0]) || strstr(s, "..") || strstr(s, "//")) return false;
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        bool letter = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
        if (!letter && !strchr(extra, c)) return false;
    }
    return true;
}

bool hub_is_id(const char *id) {
    const char *slash = strchr(id, '/');
    return slash && !strchr(slash + 1, '/') && slash[1] && !strchr(".-", slash[1]) &&
           plain(id, "/._-", 96) && !str_ends(id, ".gguf");
}

bool hub_safe_name(const char *name) {
    return plain(name, "._-+ ", 200);
}

bool hub_safe_path(const char *name) {
    return plain(name, "/._-+ ", 200) && !strstr(name, "/.") && !str_ends(name, "/");
}

bool hub_safe_revision(const char *revision) {
    return plain(revision, "/._-", 200) && !str_ends(revision, "/");
}

/* ---- 路径 ---- */

const char *hub_blob_path(const HubRepo *r, Arena *a, const char *etag, const char *suffix, Err *e) {
    return arena_printf(a, e, "%s/blobs/%s%s", r->root, etag, suffix);
}

const char *hub_snapshot_dir(const HubRepo *r, Arena *a, Err *e) {
    return arena_printf(a, e, "%s/snapshots/%s", r->root, r->commit);
}

const char *hub_read_ref(const HubRepo *r, Arena *a) {
    if (hub_is_commit(r->revision)) return r->revision;
    size_t len;
    const char *path = arena_printf(a, NULL, "%s/refs/%s", r->root, r->revision);
    char *text = path && file_exists(path) ? file_read(a, path, 4096, &len, NULL) : NULL;
    if (!text) return NULL;
    text[strcspn(text, " \r\n\t")] = '\0';
    return hub_is_commit(text) ? text : NULL;
}

bool hub_make_dir(const HubRepo *r, const char *dir, Err *e) {
    char root[PATH_MAX], real[PATH_MAX], part[PATH_MAX];
    struct stat st;
    if (!file_mkdirs(r->root, e)) return false;
    if (strlen(dir) >= sizeof part || !realpath(r->root, root))
        return err_set(e, ERR_IO, "%s: 路径过长，或打不开", dir);
    strcpy(part, dir); /* 先查已有的最深一级，才建其下的 */
    while (lstat(part, &st) != 0 && strlen(part) > strlen(r->root)) *strrchr(part, '/') = '\0';
    size_t n = strlen(root);
    if (!realpath(part, real) || strncmp(real, root, n) != 0 || (real[n] && real[n] != '/'))
        return err_set(e, ERR_FORMAT, "%s 经符号链接指到了缓存 %s 之外，不往那里写；请删除这个链接", part, root);
    return file_mkdirs(dir, e);
}

static bool make_parent(const HubRepo *r, Arena *a, const char *path, Err *e) {
    char *dir = arena_strdup(a, path, e);
    if (!dir) return false;
    *strrchr(dir, '/') = '\0';
    return hub_make_dir(r, dir, e);
}

bool hub_write_ref(const HubRepo *r, Arena *a, Err *e) {
    if (hub_is_commit(r->revision)) return true;
    char *path = arena_printf(a, e, "%s/refs/%s", r->root, r->revision);
    return path && make_parent(r, a, path, e) && file_write_atomic(path, r->commit, strlen(r->commit), e);
}

bool hub_has_blob(const HubRepo *r, Arena *a, const HubFile *f) {
    const char *path = hub_blob_path(r, a, f->etag, "", NULL);
    struct stat st;
    return path && lstat(path, &st) == 0 && S_ISREG(st.st_mode) && st.st_size == f->size;
}

bool hub_link(const HubRepo *r, Arena *a, const HubFile *f, Err *e) {
    const char *dir = hub_snapshot_dir(r, a, e);
    const char *path = dir ? arena_printf(a, e, "%s/%s", dir, f->name) : NULL;
    Str up = {0};
    for (const char *p = f->name; (p = strchr(p, '/')); p++) str_add(&up, "../");
    const char *target = path && !up.failed ? arena_printf(a, e, "%s../../blobs/%s", up.data ? up.data : "",
                                                           f->etag) : NULL;
    str_free(&up);
    const char *tmp = target ? arena_printf(a, e, "%s/.ptq-link-%ld", dir, (long)getpid()) : NULL;
    if (!tmp || !make_parent(r, a, path, e)) return false;
    char old[128];
    ssize_t n = readlink(path, old, sizeof old);
    if (n > 0 && (size_t)n == strlen(target) && memcmp(old, target, (size_t)n) == 0) return true;
    unlink(tmp);
    if (symlink(target, tmp) != 0 || rename(tmp, path) != 0) {
        int err = errno;
        unlink(tmp);
        return err_set(e, ERR_IO, "%s: 无法建立符号链接：%s", path, strerror(err));
    }
    return true;
}

int hub_lock(const HubRepo *r, Arena *a, const char *etag, Err *e) {
    const char *name = strrchr(r->root, '/') + 1;
    const char *dir = arena_printf(a, e, "%s/.locks/%s", r->o->cache, name);
    const char *path = dir ? arena_printf(a, e, "%s/%s.lock", dir, etag) : NULL;
    if (!path || !file_mkdirs(dir, e)) return -1;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) {
        err_set(e, ERR_IO, "%s: 无法建立锁：%s", path, strerror(errno));
        return -1;
    }
    while (flock(fd, LOCK_EX) != 0)
        if (errno != EINTR) {
            err_set(e, ERR_IO, "%s: 无法加锁：%s", path, strerror(errno));
            close(fd);
            return -1;
        }
    return fd;
}

/* ---- 环境变量 ---- */

static const char *env(const char *name) {
    const char *v = getenv(name);
    return v && *v ? v : NULL;
}

static bool env_true(const char *name) {
    const char *v = env(name);
    return v && (strcmp(v, "1") == 0 || strcasecmp(v, "true") == 0 || strcasecmp(v, "yes") == 0 ||
                 strcasecmp(v, "on") == 0);
}

static const char *find_home(Arena *a, Err *e) {
    const char *xdg = env("XDG_CACHE_HOME"), *home = env("HOME");
    if (env("HF_HOME")) return env("HF_HOME");
    if (xdg) return arena_printf(a, e, "%s/huggingface", xdg);
    if (home) return arena_printf(a, e, "%s/.cache/huggingface", home);
    err_set(e, ERR_CONFIG, "没有设 HOME，不知道 Hub 的缓存在哪里：请设 HF_HOME 或 HF_HUB_CACHE");
    return NULL;
}

/* 令牌：环境变量，否则令牌文件的第一行。 */
static bool find_token(HubOptions *o, const char *home, Arena *a, Err *e) {
    o->token = env("HF_TOKEN") ? env("HF_TOKEN") : env("HUGGING_FACE_HUB_TOKEN");
    const char *path = env("HF_TOKEN_PATH");
    if (!path && !(path = arena_printf(a, e, "%s/token", home))) return false;
    size_t len;
    if (!o->token && file_exists(path)) {
        char *text = file_read(a, path, 4096, &len, e);
        if (!text) return false;
        text[strcspn(text, "\r\n")] = '\0';
        if (*text) o->token = text;
    }
    for (const char *p = o->token; p && *p; p++)
        if (*p <= ' ' || *p >= 0x7F)
            return err_set(e, ERR_CONFIG, "HF_TOKEN（或令牌文件）中有空白或控制字符");
    return true;
}

bool hub_options(HubOptions *o, Arena *a, Err *e) {
    *o = (HubOptions){.endpoint = env("HF_ENDPOINT"), .cache = env("HF_HUB_CACHE"),
                      .offline = env_true("HF_HUB_OFFLINE"), .retry_seconds = 1};
    const char *home = find_home(a, e);
    if (!home) return false;
    if (!o->cache) o->cache = env("HUGGINGFACE_HUB_CACHE");
    if (!o->cache && !(o->cache = arena_printf(a, e, "%s/hub", home))) return false;
    char *endpoint = arena_strdup(a, o->endpoint ? o->endpoint : "https://huggingface.co", e);
    if (!endpoint) return false;
    for (size_t n = strlen(endpoint); n > 0 && endpoint[n - 1] == '/'; n--) endpoint[n - 1] = '\0';
    o->endpoint = endpoint;
    if (!str_starts(endpoint, "http://") && !str_starts(endpoint, "https://"))
        return err_set(e, ERR_CONFIG, "HF_ENDPOINT 应以 http:// 或 https:// 开头");
    return find_token(o, home, a, e);
}
