/* result_writer — 一次运行的 .md 与 .json 的写出
 * 先以独占方式建 .md（占住名字），再写 .json；.json 写不成则撤掉 .md。因此有 .json 就是完整的结果，
 * 两个进程同一秒写出也不会相撞。 */
#include "result_writer.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "io/file.h"

#define MAX_SAME_SECOND 1000

/* "2026-02-14T10:25:53+00:00" → "20260214_102553"；不是这种写法时用当前时刻（UTC）。 */
static void stamp_of(const json_t *result, char out[16]) {
    const char *iso =
        json_string_value(json_object_get(json_object_get(result, "time"), "started"));
    static const char SHAPE[] = "dddd-dd-ddTdd:dd:dd";
    size_t n = 0;
    for (size_t i = 0; iso && SHAPE[i]; i++) {
        bool want_digit = SHAPE[i] == 'd';
        if (want_digit ? !isdigit((unsigned char)iso[i]) : iso[i] != SHAPE[i]) {
            iso = NULL;
        } else if (want_digit) {
            out[n++] = iso[i];
            if (n == 8) out[n++] = '_';
        }
    }
    out[15] = '\0';
    if (iso) return;
    time_t now = time(NULL);
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(out, 16, "%Y%m%d_%H%M%S", &tm);
}

/* 文件名里只留字母数字与 . - _，且不含分隔用的 "__"。 */
static void add_safe(Str *s, const char *name) {
    char last = 0;
    for (const char *p = name && *name ? name : "unknown"; *p; p++) {
        char c = isalnum((unsigned char)*p) || *p == '.' || *p == '_' ? *p : '-';
        if (c == '_' && last == '_') continue;
        str_addn(s, &c, 1);
        last = c;
    }
}

static const char *config_name(const json_t *result, const char *key) {
    return json_string_value(json_object_get(json_object_get(result, "config"), key));
}

/* dir/stamp[-k]__model__method__trackT，不含扩展名。 */
static char *base_path(const json_t *result, const char *dir, int k, Arena *a, Err *e) {
    char stamp[16];
    stamp_of(result, stamp);
    Str s = {0};
    str_addf(&s, "%s/%s", dir, stamp);
    if (k > 1) str_addf(&s, "-%d", k);
    str_add(&s, "__");
    add_safe(&s, config_name(result, "model"));
    str_add(&s, "__");
    add_safe(&s, config_name(result, "method"));
    str_add(&s, "__track");
    add_safe(&s, config_name(result, "track"));
    char *out = s.failed ? NULL : arena_strdup(a, s.data, e);
    if (s.failed) err_set(e, ERR_MEMORY, "内存不足：结果的文件名");
    str_free(&s);
    return out;
}

/* 取目录的锁；取不到（或文件系统不支持）返回 -1。用 close 放开。 */
static int lock_dir(const char *dir, int how) {
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0 && flock(fd, how) != 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static bool write_pair(const char *base, const Str *md, const Str *json, Arena *a, bool *exists,
                       const char **path_out, Err *e) {
    char *md_path = arena_printf(a, e, "%s.md", base);
    char *json_path = arena_printf(a, e, "%s.json", base);
    if (!md_path || !json_path) return false;
    if (file_exists(json_path)) { /* .md 被人删掉了的旧结果 */
        *exists = true;
        return false;
    }
    if (!file_write_new(md_path, md->data, md->len, exists, e)) return false;
    if (!file_write_new(json_path, json->data, json->len, exists, e)) {
        unlink(md_path);
        return false;
    }
    if (path_out) *path_out = json_path;
    return true;
}

bool result_write(const json_t *result, const char *dir, Arena *a, const char **path_out, Err *e) {
    if (!file_mkdirs(dir, e)) return false;
    Str md = {0}, json = {0};
    json_text(&json, result);
    bool ok = result_markdown(result, &md, e);
    if (ok && json.failed) ok = err_set(e, ERR_MEMORY, "内存不足：生成结果的 JSON");
    bool done = false;
    int lock = lock_dir(dir, LOCK_SH);
    for (int k = 1; ok && !done; k++) {
        bool exists = false;
        char *base = base_path(result, dir, k, a, e);
        done = base && write_pair(base, &md, &json, a, &exists, path_out, e);
        if (!base || (!done && !exists)) ok = false;
        if (ok && !done && k >= MAX_SAME_SECOND)
            ok = err_set(e, ERR_IO, "%s: 同一秒已有 %d 个同名结果", dir, k);
    }
    if (lock >= 0) close(lock);
    str_free(&md);
    str_free(&json);
    return ok;
}

/* 形如 YYYYMMDD_HHMMSS…__…__…__trackX.md 的名字。 */
static bool is_result_md(const char *name) {
    for (int i = 0; i < 15; i++)
        if (i == 8 ? name[i] != '_' : !isdigit((unsigned char)name[i])) return false;
    const char *track = strstr(name, "__track");
    return track && track[7] && strcmp(track + 8, ".md") == 0;
}

/* ".ptq-tmp-进程号-…" 且那个进程已不在。 */
static bool is_dead_temp(const char *name) {
    static const char PREFIX[] = ".ptq-tmp-";
    if (!str_starts(name, PREFIX)) return false;
    long pid = strtol(name + sizeof PREFIX - 1, NULL, 10);
    return pid > 0 && kill((pid_t)pid, 0) != 0 && errno == ESRCH;
}

void result_clean(const char *dir) {
    int lock = lock_dir(dir, LOCK_EX | LOCK_NB);
    if (lock < 0) return;
    DIR *d = opendir(dir);
    for (struct dirent *ent; d && (ent = readdir(d));) {
        char path[PATH_MAX + 8];
        int n = snprintf(path, sizeof path - 8, "%s/%s", dir, ent->d_name);
        if (n < 0 || (size_t)n >= sizeof path - 8) continue;
        bool drop = is_dead_temp(ent->d_name);
        if (is_result_md(ent->d_name)) {
            strcpy(path + n - 3, ".json");
            drop = !file_exists(path);
            strcpy(path + n - 3, ".md");
        }
        if (drop) unlink(path);
    }
    if (d) closedir(d);
    close(lock);
}
