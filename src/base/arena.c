/* arena — 分配器与区域内存的实现
 * 每块从 Allocator 取得，块内线性推进；大于块长的请求独占一块。 */
#include "base/arena.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ALIGN 64
#define CHUNK_BYTES ((size_t)1 << 16)
#define MMAP_BYTES ((size_t)1 << 18) /* 不小于此的块直接 mmap */
#define HUGE_BYTES ((size_t)2 << 20) /* 不小于此的块请求 2 MiB 大页：少缺页、少 TLB 未命中；小于它的一次备好各页 */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* 归还的大块先留着，同样大小的再要时清零给出：逐块的工作反复要同样的内存，而内核给的新页要缺页、清零，慢得多。
 * 不变式：在用的与留着的之和不超过峰值，留着的不超过 KEPT_BYTES。旧的在前。 */
enum { KEPT_MOST = 64, KEPT_BYTES = 256 << 20 };
typedef struct Kept {
    void *p;
    size_t bytes;
} Kept;
static Kept kept[KEPT_MOST];
static int n_kept;
static size_t kept_bytes;

/* 取出第 i 块（以下各函数都已上锁）。 */
static void *remove_kept(int i) {
    void *p = kept[i].p;
    kept_bytes -= kept[i].bytes;
    memmove(kept + i, kept + i + 1, (size_t)(--n_kept - i) * sizeof *kept);
    return p;
}

static void *take_kept(size_t bytes) {
    for (int i = n_kept - 1; i >= 0; i--)
        if (kept[i].bytes == bytes) return remove_kept(i);
    return NULL;
}

/* 从旧的起归还，直到至多留 room 字节、most 块。 */
static void trim_kept(size_t room, int most) {
    while (n_kept > 0 && (kept_bytes > room || n_kept > most)) {
        size_t bytes = kept[0].bytes;
        munmap(remove_kept(0), bytes);
    }
}

void allocator_trim(void) {
    pthread_mutex_lock(&lock);
    trim_kept(0, 0);
    pthread_mutex_unlock(&lock);
}

static void *default_alloc(Allocator *self, size_t bytes) {
    pthread_mutex_lock(&lock);
    bool inject = self->fail_at > 0 && self->n_allocs + 1 == self->fail_at;
    if (inject) self->fail_at = 0;
    bool full = allocator_full(self, bytes), large = bytes >= MMAP_BYTES;
    void *p = inject || full || !large ? NULL : take_kept(bytes);
    pthread_mutex_unlock(&lock);
    if (inject || full) return NULL;
    if (p) {
        memset(p, 0, bytes);
    } else if (large) {
        int populate = bytes < HUGE_BYTES ? MAP_POPULATE : 0;
        p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | populate, -1, 0);
        if (p == MAP_FAILED) return NULL;
        if (bytes >= HUGE_BYTES) madvise(p, bytes, MADV_HUGEPAGE); /* 只是建议，不成也无妨 */
    } else {
        if (posix_memalign(&p, ALIGN, bytes)) return NULL;
        memset(p, 0, bytes);
    }
    pthread_mutex_lock(&lock);
    self->n_allocs++;
    self->used += bytes;
    if (self->used > self->peak) self->peak = self->used;
    trim_kept(self->limit ? 0 : self->peak - self->used, KEPT_MOST);
    pthread_mutex_unlock(&lock);
    return p;
}

static void default_release(Allocator *self, void *p, size_t bytes) {
    pthread_mutex_lock(&lock);
    self->used -= bytes;
    bool large = bytes >= MMAP_BYTES, keep = large && !self->limit && bytes <= KEPT_BYTES;
    if (keep) {
        trim_kept(KEPT_BYTES - bytes, KEPT_MOST - 1);
        kept[n_kept++] = (Kept){p, bytes};
        kept_bytes += bytes;
    }
    pthread_mutex_unlock(&lock);
    if (large && !keep) munmap(p, bytes);
    if (!large) free(p);
}

Allocator *allocator_default(void) {
    static Allocator a = {.alloc = default_alloc, .release = default_release};
    return &a;
}

struct ArenaChunk {
    ArenaChunk *below;
    size_t bytes, used; /* 主机内存的块含本头 */
    char *base;         /* 块的开头：主机内存即本头，否则是 Allocator 给的 */
    char pad[ALIGN - 4 * sizeof(size_t)];
};
_Static_assert(sizeof(ArenaChunk) == ALIGN, "块头须为一个对齐单位");

/* 向 Allocator 要一块。主机内存的头在块内；其余的头另取自默认分配器。返回: 内存不足为 NULL。 */
static ArenaChunk *new_chunk(Allocator *from, size_t bytes) {
    if (!from->clear) {
        ArenaChunk *c = from->alloc(from, bytes);
        if (c) *c = (ArenaChunk){.bytes = bytes, .used = sizeof *c, .base = (char *)c};
        return c;
    }
    Allocator *host = allocator_default();
    ArenaChunk *c = host->alloc(host, sizeof *c);
    char *base = c ? from->alloc(from, bytes) : NULL;
    if (base) {
        *c = (ArenaChunk){.bytes = bytes, .base = base};
        return c;
    }
    if (c) host->release(host, c, sizeof *c);
    return NULL;
}

bool arena_reserve(Arena *a, size_t bytes, Err *e) {
    if (!a->allocator) a->allocator = allocator_default();
    if (bytes > SIZE_MAX / 2) return err_set(e, ERR_MEMORY, "请求的内存过大（%zu 字节）", bytes);
    if (a->top && a->top->bytes - a->top->used >= bytes) return true;
    size_t want = bytes + sizeof(ArenaChunk);
    if (want < CHUNK_BYTES) want = CHUNK_BYTES;
    ArenaChunk *c = new_chunk(a->allocator, want);
    if (!c)
        return err_set(e, ERR_MEMORY, "%s不足：无法分配 %zu 字节", a->allocator->name ? a->allocator->name : "内存", want);
    c->below = a->top;
    a->top = c;
    return true;
}

void *arena_alloc(Arena *a, size_t bytes, Err *e) {
    if (bytes == 0) bytes = 1;
    size_t most = SIZE_MAX / 2 - ALIGN, whole = bytes > most ? bytes : (bytes + ALIGN - 1) / ALIGN * ALIGN;
    if (!arena_reserve(a, whole, e)) return NULL;
    bytes = whole;
    ArenaChunk *c = a->top;
    void *p = c->base + c->used;
    c->used += bytes;
    a->used += bytes;
    return p;
}

void *arena_array(Arena *a, size_t n, size_t size, Err *e) {
    if (size && n > SIZE_MAX / 2 / size) {
        err_set(e, ERR_MEMORY, "请求的内存过大（%zu × %zu 字节）", n, size);
        return NULL;
    }
    return arena_alloc(a, n * size, e);
}

char *arena_strndup(Arena *a, const char *s, size_t n, Err *e) {
    char *p = arena_alloc(a, n + 1, e);
    if (p) memcpy(p, s, n);
    return p;
}

char *arena_strdup(Arena *a, const char *s, Err *e) {
    return arena_strndup(a, s, strlen(s), e);
}

char *arena_printf(Arena *a, Err *e, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *p = n < 0 ? NULL : arena_alloc(a, (size_t)n + 1, e);
    if (p) vsnprintf(p, (size_t)n + 1, fmt, again);
    va_end(again);
    return p;
}

ArenaMark arena_mark(const Arena *a) {
    return (ArenaMark){a->top, a->top ? a->top->used : 0, a->used};
}

static void pop_chunk(Arena *a) {
    ArenaChunk *c = a->top;
    a->top = c->below;
    a->allocator->release(a->allocator, c->base, c->bytes);
    if (!a->allocator->clear) return;
    Allocator *host = allocator_default();
    host->release(host, c, sizeof *c);
}

void arena_rewind(Arena *a, ArenaMark m) {
    while (a->top && a->top != m.chunk) pop_chunk(a);
    if (a->top) { /* 复用的部分重新清零，保持「已清零」的不变式 */
        char *from = a->top->base + m.chunk_used;
        size_t bytes = a->top->used - m.chunk_used;
        if (!a->allocator->clear)
            memset(from, 0, bytes);
        else if (bytes)
            a->allocator->clear(a->allocator, from, bytes);
        a->top->used = m.chunk_used;
    }
    a->used = m.used;
}

void arena_free(Arena *a) {
    while (a->top) pop_chunk(a);
    a->used = 0;
}
