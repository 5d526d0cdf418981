/* hash — SHA-256 的实现
 * 缓存文件 hashes.tsv 一行一个文件：sha256、大小、mtime、ctime（纳秒）、设备、inode、绝对路径。
 * 不变式：任何一项不符、行残缺、缓存读不到，都只是重算；缓存写失败不影响结果。 */
#include "io/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/str.h"
#include "io/file.h"

#define CACHE_NAME "hashes.tsv"
#define CACHE_LIMIT ((size_t)4 << 20)
#define CACHE_MIN_BYTES (1 << 20) /* 更小的文件直接算 */
#define READ_BYTES ((size_t)1 << 18)
#define HASH_THREADS 16
#define SETTLE_SECONDS 2 /* 刚改过的文件不进缓存：同一时间刻度内的再次修改看不出来 */

struct Hash {
    EVP_MD_CTX *ctx;
};

static Hash *new_hash(const EVP_MD *kind) {
    Hash *h = malloc(sizeof *h);
    if (!h) return NULL;
    h->ctx = EVP_MD_CTX_new();
    if (!h->ctx || EVP_DigestInit_ex(h->ctx, kind, NULL) != 1) {
        EVP_MD_CTX_free(h->ctx);
        free(h);
        return NULL;
    }
    return h;
}

Hash *hash_new(void) {
    return new_hash(EVP_sha256());
}

Hash *hash_new_sha1(void) {
    return new_hash(EVP_sha1());
}

void hash_add(Hash *h, const void *data, size_t len) {
    CHECK(EVP_DigestUpdate(h->ctx, data, len) == 1);
}

static void to_hex(const unsigned char *digest, unsigned n, char hex[HASH_HEX]) {
    for (unsigned i = 0; i < n; i++) snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}

void hash_end(Hash *h, char hex[HASH_HEX]) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    CHECK(EVP_DigestFinal_ex(h->ctx, digest, &n) == 1 && (n == 32 || n == 20));
    to_hex(digest, n, hex);
    EVP_MD_CTX_free(h->ctx);
    free(h);
}

void hash_bytes(const void *data, size_t len, char hex[HASH_HEX]) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    CHECK(EVP_Digest(data, len, digest, NULL, EVP_sha256(), NULL) == 1);
    to_hex(digest, 32, hex);
}

/* 缓存行中 sha256 之后的部分，唯一标识文件的一个状态。返回: 放得下与否。 */
static bool cache_key(char *buf, size_t cap, const char *path, const struct stat *st) {
    int n = snprintf(buf, cap, "\t%lld\t%lld.%09ld\t%lld.%09ld\t%llu\t%llu\t%s\n",
                     (long long)st->st_size, (long long)st->st_mtim.tv_sec, st->st_mtim.tv_nsec,
                     (long long)st->st_ctim.tv_sec, st->st_ctim.tv_nsec,
                     (unsigned long long)st->st_dev, (unsigned long long)st->st_ino, path);
    return n > 0 && (size_t)n < cap && !strpbrk(path, "\n\t");
}

static bool is_hex(const char *s) {
    for (int i = 0; i < HASH_HEX - 1; i++)
        if (!strchr("0123456789abcdef", s[i]) || !s[i]) return false;
    return true;
}

static const char *next_line(const char *p) {
    const char *nl = strchr(p, '\n');
    return nl ? nl + 1 : p + strlen(p);
}

static bool cache_find(const char *text, const char *key, char hex[HASH_HEX]) {
    size_t n = strlen(key);
    for (const char *p = text; *p; p = next_line(p)) {
        if (!is_hex(p) || strncmp(p + HASH_HEX - 1, key, n) != 0) continue;
        memcpy(hex, p, HASH_HEX - 1);
        hex[HASH_HEX - 1] = '\0';
        return true;
    }
    return false;
}

/* 完整的一行（含 '\n'）中路径的起点；残缺的行返回 NULL。 */
static const char *row_path(const char *row, size_t n) {
    if (n <= HASH_HEX || row[n - 1] != '\n' || !is_hex(row)) return NULL;
    int tabs = 0;
    const char *path = row;
    for (size_t i = 0; i < n; i++)
        if (row[i] == '\t') tabs++, path = row + i + 1;
    return tabs == 6 ? path : NULL;
}

/* 写回缓存：去掉同一路径的旧行与残缺的行，加上新行。 */
static void cache_store(const char *cache, const char *text, const char *path, const char *key,
                        const char *hex) {
    Str out = {0};
    size_t len = strlen(path);
    for (const char *row = text, *end; *row; row = end) {
        end = next_line(row);
        const char *old = row_path(row, (size_t)(end - row));
        bool same = old && (size_t)(end - 1 - old) == len && memcmp(old, path, len) == 0;
        if (old && !same) str_addn(&out, row, (size_t)(end - row));
    }
    str_add(&out, hex);
    str_add(&out, key);
    if (!out.failed && out.len <= CACHE_LIMIT) file_write_atomic(cache, out.data, out.len, NULL);
    str_free(&out);
}

static bool same_state(const struct stat *a, const struct stat *b) {
    return a->st_size == b->st_size && a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
           a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static bool hash_fd(int fd, const char *path, char hex[HASH_HEX], Err *e) {
    Hash *h = hash_new();
    char *buf = malloc(READ_BYTES);
    ssize_t n = -1;
    bool ok = h && buf;
    if (!ok) err_set(e, ERR_MEMORY, "计算 %s 的 SHA-256 时内存不足", path);
    while (ok && (n = read(fd, buf, READ_BYTES)) != 0) {
        if (n > 0)
            hash_add(h, buf, (size_t)n);
        else if (errno != EINTR)
            ok = err_set(e, ERR_IO, "读取 %s 出错: %s", path, strerror(errno));
    }
    free(buf);
    if (h) hash_end(h, hex);
    return ok;
}

/* 用缓存计算已打开的大文件。写缓存前重读它：别的线程刚添的行不能丢。 */
static bool hash_cached(int fd, const char *path, const struct stat *st, const char *cache_dir,
                        char hex[HASH_HEX], Err *e) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    char real[PATH_MAX], key[PATH_MAX + 256], cache[PATH_MAX];
    int n = snprintf(cache, sizeof cache, "%s/%s", cache_dir, CACHE_NAME);
    if (n < 0 || (size_t)n >= sizeof cache || !realpath(path, real) ||
        !cache_key(key, sizeof key, real, st))
        return hash_fd(fd, path, hex, e);
    Arena a = {0};
    const char *text = file_read(&a, cache, CACHE_LIMIT, NULL, NULL);
    bool ok = text && cache_find(text, key, hex);
    if (!ok && (ok = hash_fd(fd, path, hex, e))) {
        struct stat after;
        bool settled = fstat(fd, &after) == 0 && same_state(st, &after) &&
                       time(NULL) - st->st_mtim.tv_sec > SETTLE_SECONDS;
        pthread_mutex_lock(&lock);
        if (settled && file_mkdirs(cache_dir, &(Err){0})) {
            text = file_read(&a, cache, CACHE_LIMIT, NULL, NULL);
            cache_store(cache, text ? text : "", real, key, hex);
        }
        pthread_mutex_unlock(&lock);
    }
    arena_free(&a);
    return ok;
}

bool hash_file(const char *path, const char *cache_dir, char hex[HASH_HEX], Err *e) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return err_set(e, ERR_IO, "打不开 %s: %s", path, strerror(errno));
    struct stat st;
    bool ok;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        ok = err_set(e, ERR_IO, "%s 不是普通文件，无法计算 SHA-256", path);
    else if (cache_dir && st.st_size >= CACHE_MIN_BYTES)
        ok = hash_cached(fd, path, &st, cache_dir, hex, e);
    else
        ok = hash_fd(fd, path, hex, e);
    close(fd);
    return ok;
}

/* ---- 几个文件 ---- */

typedef struct HashMany {
    const char *const *paths;
    const char *cache_dir;
    char (*hex)[HASH_HEX];
    size_t n;
    atomic_size_t next;
    atomic_bool failed;
    pthread_mutex_t lock;
    Err err; /* 先失败的一个 */
} HashMany;

static void *hash_some(void *arg) {
    HashMany *m = arg;
    for (size_t i; !atomic_load(&m->failed) && (i = atomic_fetch_add(&m->next, 1)) < m->n;) {
        Err e = {0};
        if (hash_file(m->paths[i], m->cache_dir, m->hex[i], &e)) continue;
        pthread_mutex_lock(&m->lock);
        if (!atomic_exchange(&m->failed, true)) m->err = e;
        pthread_mutex_unlock(&m->lock);
    }
    return NULL;
}

bool hash_files(const char *const *paths, size_t n, int threads, const char *cache_dir, char (*hex)[HASH_HEX], Err *e) {
    HashMany m = {.paths = paths, .cache_dir = cache_dir, .hex = hex, .n = n, .lock = PTHREAD_MUTEX_INITIALIZER};
    pthread_t helper[HASH_THREADS];
    int started = 0, want = (size_t)threads < n ? threads : (int)n;
    if (want > HASH_THREADS) want = HASH_THREADS;
    while (started < want - 1 && pthread_create(&helper[started], NULL, hash_some, &m) == 0) started++;
    hash_some(&m); /* 建不了线程也算得完 */
    while (started) pthread_join(helper[--started], NULL);
    pthread_mutex_destroy(&m.lock);
    if (atomic_load(&m.failed) && e) *e = m.err;
    return !atomic_load(&m.failed);
}

bool base64_decode(const char *text, size_t len, void *out, size_t *n) {
    *n = 0;
    if (len % 4 != 0 || len > INT_MAX || memchr(text, '\n', len) || memchr(text, ' ', len))
        return false;
    size_t pad = 0;
    while (pad < 2 && pad < len && text[len - 1 - pad] == '=') pad++;
    if (len && EVP_DecodeBlock(out, (const unsigned char *)text, (int)len) != (int)(len / 4 * 3))
        return false;
    *n = len / 4 * 3 - pad;
    return true;
}
