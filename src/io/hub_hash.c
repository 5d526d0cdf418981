/* hub_hash — 跟在写入后面算散列的线程
 * 下载线程写多少，它读多少（刚写的都在页缓存里），下载完时散列也差不多算完了；算过的随即催着写回磁盘，最后的 fsync 便只剩一点。 */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "io/hash.h"
#include "io/hub_internal.h"

#define READ_BYTES ((size_t)1 << 18)   /* 留在二级缓存里 */
#define FLUSH_BYTES ((int64_t)16 << 20) /* 攒够这么多催一次写回 */

struct HubHasher {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t more;
    int fd;
    int64_t written;
    bool ended, cancelled, failed;
    Hash *hash;
};

/* 等到有 at 之后的数据。返回: 可读到的位置；到头了（或取消）则为 at。 */
static int64_t wait_beyond(HubHasher *h, int64_t at) {
    pthread_mutex_lock(&h->lock);
    while (h->written <= at && !h->ended) pthread_cond_wait(&h->more, &h->lock);
    int64_t to = h->cancelled ? at : h->written;
    pthread_mutex_unlock(&h->lock);
    return to;
}

static void *run(void *arg) {
    HubHasher *h = arg;
    char *buf = malloc(READ_BYTES);
    int64_t at = 0, to, flushed = 0;
    h->failed = !buf;
    while (!h->failed && (to = wait_beyond(h, at)) > at) {
        size_t n = to - at < (int64_t)READ_BYTES ? (size_t)(to - at) : READ_BYTES;
        ssize_t got = pread(h->fd, buf, n, at);
        if (got <= 0) {
            h->failed = true;
            break;
        }
        hash_add(h->hash, buf, (size_t)got);
        at += got;
        if (at - flushed < FLUSH_BYTES) continue;
        sync_file_range(h->fd, flushed, at - flushed, SYNC_FILE_RANGE_WRITE); /* 只是催；不成也无妨 */
        flushed = at;
    }
    free(buf);
    return NULL;
}

HubHasher *hub_hasher_start(int fd, bool git, int64_t size, Err *e) {
    HubHasher *h = calloc(1, sizeof *h);
    if (h) h->hash = git ? hash_new_sha1() : hash_new();
    if (!h || !h->hash) {
        free(h);
        err_set(e, ERR_MEMORY, "内存不足：散列");
        return NULL;
    }
    if (git) { /* git 的 blob：以 "blob 长度\0" 开头 */
        char head[40];
        int n = snprintf(head, sizeof head, "blob %lld", (long long)size);
        hash_add(h->hash, head, (size_t)n + 1);
    }
    h->fd = fd;
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->more, NULL);
    if (pthread_create(&h->thread, NULL, run, h) != 0) {
        char hex[HASH_HEX];
        hash_end(h->hash, hex);
        free(h);
        err_set(e, ERR_MEMORY, "无法建立散列线程");
        return NULL;
    }
    return h;
}

void hub_hasher_written(HubHasher *h, int64_t bytes) {
    pthread_mutex_lock(&h->lock);
    h->written = bytes;
    pthread_cond_signal(&h->more);
    pthread_mutex_unlock(&h->lock);
}

void hub_hasher_end(HubHasher *h, bool cancel, char hex[65]) {
    pthread_mutex_lock(&h->lock);
    h->ended = true;
    h->cancelled = cancel;
    pthread_cond_signal(&h->more);
    pthread_mutex_unlock(&h->lock);
    pthread_join(h->thread, NULL);
    hash_end(h->hash, hex);
    if (h->failed) hex[0] = '\0';
    pthread_mutex_destroy(&h->lock);
    pthread_cond_destroy(&h->more);
    free(h);
}
