/* statset — 校准统计的存档的实现 */
#include "model/statset.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { PATH_BYTES = 4096, NAME_CHARS = 32 }; /* 文件夹名取 key 的前 32 个字符 */

typedef struct Head {
    char magic[8];
    int64_t index;
    uint64_t bytes;
    char key[HASH_HEX], sha256[HASH_HEX];
    char pad[64 - (24 + 2 * HASH_HEX) % 64]; /* 内容从 64 的倍数起 */
} Head;
static const char MAGIC[8] = "ptqsta1";

static bool set_dir(char *buf, const char *dir, const char *key) {
    int n = snprintf(buf, PATH_BYTES, "%s/%.*s", dir, NAME_CHARS, key);
    return n > 0 && n < PATH_BYTES - 16;
}

static bool record_path(char *buf, const char *dir, const char *key, int64_t i) {
    if (!set_dir(buf, dir, key)) return false;
    size_t n = strlen(buf);
    snprintf(buf + n, PATH_BYTES - n, "/%04lld.stat", (long long)i);
    return true;
}

/* 一份：映射并校验。 */
static bool open_record(FileMap *f, const char *path, const char *key, int64_t i) {
    Head h;
    char sha256[HASH_HEX];
    if (!file_exists(path) || !file_map(f, path, &(Err){0})) return false;
    bool ok = f->size >= sizeof h;
    if (ok) memcpy(&h, f->data, sizeof h);
    ok = ok && memcmp(h.magic, MAGIC, sizeof h.magic) == 0 && h.index == i &&
         memcmp(h.key, key, HASH_HEX) == 0 && h.bytes == f->size - sizeof h;
    if (ok) {
        hash_bytes(f->data + sizeof h, f->size - sizeof h, sha256);
        ok = memcmp(sha256, h.sha256, HASH_HEX) == 0;
        file_map_drop(f->data, f->size);
    }
    if (!ok) file_unmap(f);
    return ok;
}

bool statset_open(StatSet *s, const char *dir, const char *key, int64_t n) {
    char path[PATH_BYTES];
    *s = (StatSet){0};
    s->maps = ARENA_ARRAY(&s->arena, FileMap, n, NULL);
    bool ok = s->maps != NULL;
    for (int64_t i = 0; ok && i < n; i++) {
        ok = record_path(path, dir, key, i) && open_record(&s->maps[i], path, key, i);
        s->n += ok;
    }
    if (!ok)
        statset_close(s);
    else if (set_dir(path, dir, key))
        utimensat(AT_FDCWD, path, NULL, 0); /* 不成也无妨：只影响谁先被清走 */
    return ok;
}

void statset_close(StatSet *s) {
    for (int64_t i = 0; i < s->n; i++) file_unmap(&s->maps[i]);
    arena_free(&s->arena);
    *s = (StatSet){0};
}

const void *statset_get(const StatSet *s, int64_t i, size_t bytes) {
    return s->maps[i].size == sizeof(Head) + bytes ? s->maps[i].data + sizeof(Head) : NULL;
}

void statset_drop(const StatSet *s, int64_t i) {
    file_map_drop(s->maps[i].data, s->maps[i].size);
}

bool statset_save(const char *dir, const char *key, int64_t i, const FilePart *parts, size_t n,
                  Err *e) {
    Head h = {.index = i};
    char path[PATH_BYTES];
    Arena a = {0};
    Hash *hash = hash_new();
    FilePart *out = ARENA_ARRAY(&a, FilePart, n + 1, e);
    memcpy(h.magic, MAGIC, sizeof h.magic);
    memcpy(h.key, key, HASH_HEX);
    for (size_t k = 0; hash && out && k < n; k++) {
        hash_add(hash, parts[k].data, parts[k].len);
        h.bytes += parts[k].len;
        out[k + 1] = parts[k];
    }
    if (hash) hash_end(hash, h.sha256);
    bool ok = hash && out ? true : err_set(e, ERR_MEMORY, "内存不足：校准统计的存档");
    if (ok) out[0] = (FilePart){&h, sizeof h};
    ok = ok && (set_dir(path, dir, key) || err_set(e, ERR_IO, "路径太长: %s", dir)) &&
         file_mkdirs(path, e) && record_path(path, dir, key, i) &&
         file_write_parts(path, out, n + 1, e);
    arena_free(&a);
    return ok;
}

/* ---- 清理 ---- */

typedef struct OldSet {
    char name[NAME_CHARS + 1];
    int64_t used; /* 上次使用，Unix 秒 */
    size_t bytes;
} OldSet;

/* 一套的大小；remove 为真时连文件带文件夹删去。只碰自己的文件。 */
static size_t walk_set(const char *dir, const char *name, bool and_remove) {
    char path[PATH_BYTES], file[PATH_BYTES + 300];
    size_t bytes = 0;
    if (!set_dir(path, dir, name)) return 0;
    DIR *d = opendir(path);
    for (struct dirent *x; d && (x = readdir(d));) {
        struct stat st;
        const char *dot = strrchr(x->d_name, '.');
        bool mine = (dot && strcmp(dot, ".stat") == 0) || strncmp(x->d_name, ".ptq-tmp-", 9) == 0;
        snprintf(file, sizeof file, "%s/%s", path, x->d_name);
        if (!mine || stat(file, &st) != 0) continue;
        bytes += (size_t)st.st_size;
        if (and_remove) remove(file);
    }
    if (d) closedir(d);
    if (and_remove) remove(path);
    return bytes;
}

static int older_first(const void *a, const void *b) {
    const OldSet *x = a, *y = b;
    return x->used != y->used ? (x->used < y->used ? -1 : 1) : strcmp(x->name, y->name);
}

/* 文件夹的名字像一套（32 个十六进制字符）。 */
static bool is_set(const char *name) {
    return strlen(name) == NAME_CHARS && strspn(name, "0123456789abcdef") == NAME_CHARS;
}

bool statset_make_room(const char *dir, const char *key, size_t need, size_t limit, int max_days) {
    enum { MOST = 4096 };
    if (need > limit) return false;
    Arena a = {0};
    OldSet *sets = ARENA_ARRAY(&a, OldSet, MOST, NULL);
    size_t n = 0, total = 0;
    char path[PATH_BYTES];
    DIR *d = sets ? opendir(dir) : NULL;
    for (struct dirent *x; d && n < MOST && (x = readdir(d));) {
        struct stat st;
        if (!is_set(x->d_name) || strncmp(x->d_name, key, NAME_CHARS) == 0) continue;
        if (!set_dir(path, dir, x->d_name) || stat(path, &st) != 0 || !S_ISDIR(st.st_mode)) continue;
        memcpy(sets[n].name, x->d_name, NAME_CHARS + 1);
        sets[n].used = (int64_t)st.st_mtime;
        total += sets[n].bytes = walk_set(dir, x->d_name, false);
        n++;
    }
    if (d) closedir(d);
    if (n) qsort(sets, n, sizeof *sets, older_first);
    int64_t horizon = (int64_t)time(NULL) - (int64_t)max_days * 86400;
    for (size_t i = 0; i < n && (total > limit - need || sets[i].used < horizon); i++) {
        walk_set(dir, sets[i].name, true);
        total -= sets[i].bytes;
    }
    arena_free(&a);
    return true;
}
