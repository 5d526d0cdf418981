/* bpe — 对一个预切分片段做归并
 * 片段的每个字节是一个符号，排成双向链表；所有可归并的相邻对放进堆，按（次序，位置）取最小者归并，
 * 再放入新形成的两对。堆中过期的对在取出时按产物识别。n 个符号用时 O(n log n)，长串也不会平方。
 * 片段 → ids 的结果按片段缓存，缓存属于一次编码，有上限。 */
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"

#define CACHE_MIN 1024
#define CACHE_MAX 65536 /* 缓存的片段数上限 */
#define CACHE_KEY 64    /* 只缓存不长于此的片段 */
#define REMOVED (-2)

typedef struct Symbol {
    int32_t id, prev, next; /* 链表以 -1 结尾；next 为 REMOVED 表示已并入左边 */
} Symbol;

typedef struct Candidate {
    uint64_t key; /* 次序 << 32 | 左符号的位置 */
    int32_t product;
} Candidate;

typedef struct CacheSlot {
    uint32_t hash, key, ids; /* key、ids: 在 keys、ids 中的位置 */
    uint16_t len, n;         /* 字节数（0 为空槽）；id 个数 */
} CacheSlot;

struct BpeWork {
    Symbol *symbols;
    size_t cap_symbols;
    Candidate *heap;
    size_t n_heap, cap_heap;
    CacheSlot *slots;
    size_t n_slots, n_cached;
    Str keys;
    TokenIds ids; /* 缓存的 id */
};

BpeWork *bpe_work_new(void) {
    return calloc(1, sizeof(BpeWork));
}

void bpe_work_free(BpeWork *w) {
    if (!w) return;
    free(w->symbols);
    free(w->heap);
    free(w->slots);
    str_free(&w->keys);
    token_ids_free(&w->ids);
    free(w);
}

/* ---- 堆（小者在上） ---- */

static bool heap_push(BpeWork *w, Candidate c) {
    if (w->n_heap == w->cap_heap) {
        size_t cap = w->cap_heap ? w->cap_heap * 2 : 256;
        Candidate *p = realloc(w->heap, cap * sizeof *p);
        if (!p) return false;
        w->heap = p;
        w->cap_heap = cap;
    }
    size_t i = w->n_heap++;
    while (i > 0 && w->heap[(i - 1) / 2].key > c.key) {
        w->heap[i] = w->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    w->heap[i] = c;
    return true;
}

static Candidate heap_pop(BpeWork *w) {
    Candidate top = w->heap[0], last = w->heap[--w->n_heap];
    size_t i = 0, n = w->n_heap;
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && w->heap[child + 1].key < w->heap[child].key) child++;
        if (w->heap[child].key >= last.key) break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = last;
    return top;
}

/* ---- 归并 ---- */

/* 若位置 left 与其右邻可归并，则放入堆。 */
static bool push_pair(const Bpe *b, BpeWork *w, int32_t left) {
    int32_t right = left < 0 ? -1 : w->symbols[left].next;
    if (right < 0) return true;
    const Merge *m = bpe_find_merge(b, w->symbols[left].id, w->symbols[right].id);
    if (!m) return true;
    uint64_t key = (uint64_t)(uint32_t)m->rank << 32 | (uint32_t)left;
    return heap_push(w, (Candidate){.key = key, .product = m->product});
}

/* 片段的字节 → 符号链表。词表外的字节按 unk 规则处理。返回: 符号个数。 */
static size_t make_symbols(const Bpe *b, BpeWork *w, const char *s, size_t n) {
    size_t count = 0;
    bool unk_before = false;
    for (size_t i = 0; i < n; i++) {
        int32_t id = b->byte_ids[(uint8_t)s[i]];
        bool unk = id < 0;
        if (unk && (b->unk_id < 0 || (unk_before && b->fuse_unk))) continue;
        unk_before = unk;
        w->symbols[count] = (Symbol){unk ? b->unk_id : id, (int32_t)count - 1, (int32_t)count + 1};
        count++;
    }
    if (count) w->symbols[count - 1].next = -1;
    return count;
}

static bool merge_all(const Bpe *b, BpeWork *w) {
    Symbol *s = w->symbols;
    while (w->n_heap) {
        Candidate c = heap_pop(w);
        int32_t at = (int32_t)(c.key & UINT32_MAX), right = s[at].next;
        if (right < 0) continue; /* 已并入左边，或已是最后一个 */
        const Merge *m = bpe_find_merge(b, s[at].id, s[right].id);
        if (!m || m->product != c.product) continue;
        s[at].id = c.product;
        s[at].next = s[right].next;
        s[right].next = REMOVED;
        if (s[at].next >= 0) s[s[at].next].prev = at;
        if (!push_pair(b, w, s[at].prev) || !push_pair(b, w, at)) return false;
    }
    return true;
}

static bool reserve_symbols(BpeWork *w, size_t n) {
    if (n <= w->cap_symbols) return true;
    size_t cap = n < 256 ? 256 : n + n / 2;
    Symbol *p = realloc(w->symbols, cap * sizeof *p);
    if (!p) return false;
    w->symbols = p;
    w->cap_symbols = cap;
    return true;
}

static bool encode_word(const Bpe *b, BpeWork *w, const char *s, size_t n, TokenIds *out, Err *e) {
    if (n > INT32_MAX / 2)
        return err_set(e, ERR_UNSUPPORTED, "一个不可切分的片段有 %zu 字节，过长", n);
    bool ok = reserve_symbols(w, n);
    size_t count = ok ? make_symbols(b, w, s, n) : 0;
    w->n_heap = 0;
    for (size_t i = 0; ok && i + 1 < count; i++) ok = push_pair(b, w, (int32_t)i);
    if (!ok || !merge_all(b, w))
        return err_set(e, ERR_MEMORY, "内存不足：归并 %zu 字节的片段", n);
    for (int32_t i = count ? 0 : -1; i >= 0; i = w->symbols[i].next)
        if (!token_ids_add(out, w->symbols[i].id, e)) return false;
    return true;
}

/* ignore_merges: 整个片段就是一个 token 时直接取它。返回: id 或 -1。 */
static int32_t find_whole(const Bpe *b, const char *s, size_t n) {
    Str text = {0};
    for (size_t i = 0; i < n; i++) utf8_add(&text, byte_to_char((uint8_t)s[i]));
    int32_t id = text.failed ? -1 : vocab_find(&b->vocab, text.data, text.len);
    str_free(&text);
    return id;
}

static bool encode_uncached(const Bpe *b, BpeWork *w, const char *s, size_t n, TokenIds *out,
                            Err *e) {
    int32_t whole = b->ignore_merges ? find_whole(b, s, n) : -1;
    return whole >= 0 ? token_ids_add(out, whole, e) : encode_word(b, w, s, n, out, e);
}

/* ---- 缓存 ---- */

static uint32_t hash_bytes32(const char *s, size_t n) {
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < n; i++) h = (h ^ (uint8_t)s[i]) * 16777619u;
    return h ^ h >> 15;
}

static bool cache_grow(BpeWork *w) {
    size_t n = w->n_slots ? w->n_slots * 2 : CACHE_MIN;
    CacheSlot *slots = calloc(n, sizeof *slots);
    if (!slots) return false;
    for (size_t i = 0; i < w->n_slots; i++) {
        if (!w->slots[i].len) continue;
        size_t k = w->slots[i].hash & (n - 1);
        while (slots[k].len) k = (k + 1) & (n - 1);
        slots[k] = w->slots[i];
    }
    free(w->slots);
    w->slots = slots;
    w->n_slots = n;
    return true;
}

/* 返回: 片段所在的槽，或可放入的空槽。 */
static CacheSlot *cache_slot(BpeWork *w, uint32_t hash, const char *s, size_t n) {
    size_t i = hash & (w->n_slots - 1);
    for (; w->slots[i].len; i = (i + 1) & (w->n_slots - 1)) {
        CacheSlot *c = &w->slots[i];
        if (c->hash == hash && c->len == n && memcmp(w->keys.data + c->key, s, n) == 0) break;
    }
    return &w->slots[i];
}

static bool encode_cached(const Bpe *b, BpeWork *w, const char *s, size_t n, TokenIds *out,
                          Err *e) {
    if (w->n_cached * 2 >= w->n_slots && !cache_grow(w))
        return err_set(e, ERR_MEMORY, "内存不足：分词缓存");
    uint32_t hash = hash_bytes32(s, n);
    CacheSlot *c = cache_slot(w, hash, s, n);
    if (c->len) {
        for (size_t i = 0; i < c->n; i++)
            if (!token_ids_add(out, w->ids.ids[c->ids + i], e)) return false;
        return true;
    }
    size_t from = out->n;
    if (!encode_uncached(b, w, s, n, out, e)) return false;
    if (w->n_cached >= CACHE_MAX) return true;
    CacheSlot fresh = {.hash = hash, .key = (uint32_t)w->keys.len, .ids = (uint32_t)w->ids.n,
                       .len = (uint16_t)n, .n = (uint16_t)(out->n - from)};
    str_addn(&w->keys, s, n);
    if (w->keys.failed) return err_set(e, ERR_MEMORY, "内存不足：分词缓存");
    for (size_t i = from; i < out->n; i++)
        if (!token_ids_add(&w->ids, out->ids[i], e)) return false;
    *c = fresh;
    w->n_cached++;
    return true;
}

bool bpe_encode(const Bpe *b, BpeWork *w, const char *s, size_t n, TokenIds *out, Err *e) {
    if (n == 0) return true;
    if (n == 1 && b->byte_ids[(uint8_t)s[0]] >= 0)
        return token_ids_add(out, b->byte_ids[(uint8_t)s[0]], e);
    if (n <= CACHE_KEY) return encode_cached(b, w, s, n, out, e);
    return encode_uncached(b, w, s, n, out, e);
}
