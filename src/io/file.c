/* file — 文件：映射、整读、原子写入的实现
 * 写入的不变式：目标名在任何时刻要么是旧内容，要么是已 fsync 的完整新内容；
 * 失败时临时文件（.ptq-tmp-*）被删除，旧文件不动。 */
#include "io/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/str.h"

static const char *why(int err) {
    switch (err) {
    case ENOENT: return "文件或文件夹不存在";
    case EACCES:
    case EPERM: return "没有权限";
    case ENOSPC: return "磁盘已满，请腾出空间后重试";
    case EDQUOT: return "磁盘配额已用完";
    case EFBIG: return "超过文件大小限制";
    case EISDIR: return "是文件夹";
    case ENOTDIR: return "路径中的某一级不是文件夹";
    case EROFS: return "文件系统只读";
    case EMFILE:
    case ENFILE: return "打开的文件过多";
    case ENAMETOOLONG: return "文件名过长";
    case ELOOP: return "符号链接成环";
    case EIO: return "设备读写错误";
    case ENOMEM: return "内存不足";
    default: return strerror(err);
    }
}

/* 打开来读。返回: 描述符，失败为 -1；*st 为其状态。
 * flags 为 O_NONBLOCK 时遇到命名管道不等写者；为 0 时像 cat 那样等。 */
static int open_read(const char *path, int flags, struct stat *st, Err *e) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | flags);
    if (fd < 0) {
        err_set(e, ERR_IO, "打不开 %s: %s", path, why(errno));
        return -1;
    }
    if (fstat(fd, st) != 0) {
        err_set(e, ERR_IO, "读不到 %s 的状态: %s", path, why(errno));
        close(fd);
        return -1;
    }
    if (S_ISDIR(st->st_mode)) {
        err_set(e, ERR_IO, "打不开 %s: 是文件夹，这里需要一个文件", path);
        close(fd);
        return -1;
    }
    return fd;
}

bool file_map(FileMap *m, const char *path, Err *e) {
    *m = (FileMap){0};
    struct stat st;
    int fd = open_read(path, O_NONBLOCK, &st, e);
    if (fd < 0) return false;
    bool ok = true;
    if (!S_ISREG(st.st_mode)) {
        ok = err_set(e, ERR_IO, "%s 不是普通文件，无法映射", path);
    } else if (st.st_size > 0) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED)
            ok = err_set(e, ERR_IO, "映射 %s（%lld 字节）失败: %s", path, (long long)st.st_size,
                         why(errno));
        else
            *m = (FileMap){p, (size_t)st.st_size};
    }
    close(fd);
    return ok;
}

void file_unmap(FileMap *m) {
    if (m->data) munmap((void *)(uintptr_t)m->data, m->size);
    *m = (FileMap){0};
}

void file_map_drop(const void *p, size_t bytes) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)p + page - 1) / page * page;
    uintptr_t to = ((uintptr_t)p + bytes) / page * page;
    if (to > from) madvise((void *)from, to - from, MADV_DONTNEED); /* 失败只是不省内存 */
}

static bool too_big(const char *path, size_t limit, Err *e) {
    return err_set(e, ERR_FORMAT, "%s 大于上限 %zu 字节", path, limit);
}

/* 读满 want 字节或到文件末尾。返回: 读到的字节数，出错为 -1。 */
static ssize_t read_full(int fd, char *buf, size_t want) {
    size_t got = 0;
    while (got < want) {
        ssize_t n = read(fd, buf + got, want - got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        if (n == 0) break;
        got += (size_t)n;
    }
    return (ssize_t)got;
}

/* 大小未知的来源（管道、/proc）：边读边增长，再复制进 a。 */
static char *read_stream(Arena *a, int fd, const char *path, size_t limit, size_t *len, Err *e) {
    Str s = {0};
    char buf[16384], *out = NULL;
    ssize_t n;
    while ((n = read_full(fd, buf, sizeof buf)) > 0 && s.len <= limit && !s.failed)
        str_addn(&s, buf, (size_t)n);
    if (n < 0)
        err_set(e, ERR_IO, "读取 %s 出错: %s", path, why(errno));
    else if (s.failed)
        err_set(e, ERR_MEMORY, "读取 %s 时内存不足", path);
    else if (s.len > limit)
        too_big(path, limit, e);
    else if ((out = arena_strndup(a, s.data ? s.data : "", s.len, e)) && len)
        *len = s.len;
    str_free(&s);
    return out;
}

char *file_read(Arena *a, const char *path, size_t limit, size_t *len, Err *e) {
    struct stat st;
    int fd = open_read(path, 0, &st, e);
    if (fd < 0) return NULL;
    char *out = NULL;
    if (!S_ISREG(st.st_mode) || st.st_size == 0) {
        out = read_stream(a, fd, path, limit, len, e);
    } else if ((uintmax_t)st.st_size > limit) {
        too_big(path, limit, e);
    } else if ((out = arena_alloc(a, (size_t)st.st_size + 1, e))) {
        ssize_t n = read_full(fd, out, (size_t)st.st_size);
        if (n < 0) {
            err_set(e, ERR_IO, "读取 %s 出错: %s", path, why(errno));
            out = NULL;
        } else if (n != st.st_size) {
            err_set(e, ERR_IO, "%s 在读取时变短了，请重试", path);
            out = NULL;
        } else if (len) {
            *len = (size_t)n;
        }
    }
    close(fd);
    return out;
}

/* 在 path 所在文件夹建一个独占的临时文件，名字写入 temp。返回: 描述符，失败为 -1。 */
static int open_temp(const char *path, char *temp, size_t cap, Err *e) {
    static atomic_uint counter;
    const char *slash = strrchr(path, '/');
    int dir_len = slash ? (int)(slash - path) + 1 : 0;
    for (int tries = 0; tries < 1000; tries++) {
        int n = snprintf(temp, cap, "%.*s.ptq-tmp-%ld-%u", dir_len, path, (long)getpid(),
                         atomic_fetch_add(&counter, 1));
        if (n < 0 || (size_t)n >= cap) {
            err_set(e, ERR_IO, "路径过长: %s", path);
            return -1;
        }
        int fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0) return fd;
        if (errno != EEXIST) break; /* 同名者是被强行终止的旧进程留下的，换下一个号 */
    }
    err_set(e, ERR_IO, "无法在 %s 所在的文件夹新建文件: %s", path, why(errno));
    return -1;
}

static bool write_all(int fd, const char *p, size_t len) {
    while (len > 0) {
        ssize_t n = write(fd, p, len);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return false;
        p += n;
        len -= (size_t)n;
    }
    return true;
}

/* 写满、fsync、close 临时文件 temp；失败时删除它。 */
static bool fill_temp(int fd, const char *temp, const char *path, const FilePart *parts, size_t n,
                      Err *e) {
    bool ok = true;
    for (size_t i = 0; i < n && ok; i++) ok = write_all(fd, parts[i].data, parts[i].len);
    ok = ok && fsync(fd) == 0;
    int err = ok ? 0 : errno;
    if (close(fd) != 0 && ok) ok = false, err = errno;
    if (ok) return true;
    unlink(temp);
    return err_set(e, ERR_IO, "写入 %s 失败: %s", path, why(err));
}

/* fsync path 所在的文件夹，使改名落盘。不支持的文件系统（EINVAL）视为成功。 */
static bool sync_dir(const char *path, Err *e) {
    char dir[PATH_MAX];
    const char *slash = strrchr(path, '/');
    if (!slash)
        snprintf(dir, sizeof dir, ".");
    else
        snprintf(dir, sizeof dir, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return err_set(e, ERR_IO, "打不开文件夹 %s: %s", dir, why(errno));
    bool ok = fsync(fd) == 0 || errno == EINVAL || errno == EROFS;
    if (!ok) err_set(e, ERR_IO, "文件夹 %s 落盘失败: %s", dir, why(errno));
    close(fd);
    return ok;
}

bool file_write_parts(const char *path, const FilePart *parts, size_t n, Err *e) {
    char temp[PATH_MAX];
    int fd = open_temp(path, temp, sizeof temp, e);
    if (fd < 0 || !fill_temp(fd, temp, path, parts, n, e)) return false;
    if (rename(temp, path) != 0) {
        err_set(e, ERR_IO, "无法替换 %s: %s", path, why(errno));
        unlink(temp);
        return false;
    }
    return sync_dir(path, e);
}

bool file_write_atomic(const char *path, const void *data, size_t len, Err *e) {
    return file_write_parts(path, &(FilePart){data, len}, 1, e);
}

bool file_write_new(const char *path, const void *data, size_t len, bool *exists, Err *e) {
    *exists = false;
    char temp[PATH_MAX];
    int fd = open_temp(path, temp, sizeof temp, e);
    if (fd < 0 || !fill_temp(fd, temp, path, &(FilePart){data, len}, 1, e)) return false;
    int err = link(temp, path) == 0 ? 0 : errno;
    if (err == EPERM || err == EOPNOTSUPP || err == ENOSYS) /* 不支持硬链接的文件系统 */
        err = renameat2(AT_FDCWD, temp, AT_FDCWD, path, RENAME_NOREPLACE) == 0 ? 0 : errno;
    unlink(temp); /* 已被改名时不存在，无妨 */
    if (err == EEXIST) {
        *exists = true;
        return err_set(e, ERR_IO, "%s 已存在，不覆盖", path);
    }
    if (err) return err_set(e, ERR_IO, "无法建立 %s: %s", path, why(err));
    return sync_dir(path, e);
}

bool file_mkdirs(const char *dir, Err *e) {
    char part[PATH_MAX];
    size_t n = strlen(dir);
    if (n == 0 || n >= sizeof part) return err_set(e, ERR_IO, "文件夹名为空或过长: %s", dir);
    for (size_t i = 1; i <= n; i++) {
        if (dir[i] != '/' && dir[i] != '\0') continue;
        memcpy(part, dir, i);
        part[i] = '\0';
        if (mkdir(part, 0777) == 0 || file_is_dir(part)) continue;
        return err_set(e, ERR_IO, "无法建立文件夹 %s: %s", part,
                       errno == EEXIST ? "同名的文件已存在" : why(errno));
    }
    return true;
}

bool file_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

bool file_is_dir(const char *path) {
    int saved = errno;
    struct stat st;
    bool yes = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
    errno = saved;
    return yes;
}

static int by_bytes(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* 把以 suffix 结尾的名字逐个追加到 s（各以 '\0' 结尾）。返回: 个数，出错为 -1。 */
static long read_names(DIR *d, const char *suffix, Str *s) {
    long n = 0;
    for (;;) {
        errno = 0;
        struct dirent *ent = readdir(d);
        if (!ent) return errno || s->failed ? -1 : n;
        if (ent->d_name[0] == '.' || !str_ends(ent->d_name, suffix)) continue;
        str_addn(s, ent->d_name, strlen(ent->d_name) + 1);
        n++;
    }
}

bool file_list(Arena *a, const char *dir, const char *suffix, char ***names, size_t *n, Err *e) {
    DIR *d = opendir(dir);
    if (!d) return err_set(e, ERR_IO, "打不开文件夹 %s: %s", dir, why(errno));
    Str s = {0};
    long count = read_names(d, suffix, &s);
    bool ok = count >= 0;
    if (!ok) err_set(e, ERR_IO, "读取文件夹 %s 出错: %s", dir, why(s.failed ? ENOMEM : errno));
    closedir(d);
    char **list = ok ? ARENA_ARRAY(a, char *, count, e) : NULL;
    char *text = list ? arena_strndup(a, s.data ? s.data : "", s.len, e) : NULL;
    ok = ok && list && text;
    if (ok) {
        for (long i = 0; i < count; i++, text += strlen(text) + 1) list[i] = text;
        qsort(list, (size_t)count, sizeof *list, by_bytes);
        *names = list;
        *n = (size_t)count;
    }
    str_free(&s);
    return ok;
}

char *file_join(Arena *a, const char *dir, const char *name, Err *e) {
    if (name[0] == '/' || dir[0] == '\0') return arena_strdup(a, name, e);
    return arena_printf(a, e, "%s%s%s", dir, str_ends(dir, "/") ? "" : "/", name);
}
