/* piece_cache — 片段 → ids 的缓存
 * 同一片段（词）在文本中反复出现，结果只算一次。开放寻址哈希，键与 ids 各自首尾相接；属于一次编码，有上限。 */
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"

#define CACHE_MIN 1024
#define CACHE_MAX 65536 /* 缓存的片段数上限 */

struct CacheSlot {
    uint32_t hash, key, ids; /* key、ids: 在 keys、ids 中的位置 */
    uint16_t len, n;         /* 字节数（0 为空槽）；id 个数 */
};

static uint32_t hash_piece(const char *s, size_t n) {
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < n; i++) h = (h ^ (uint8_t)s[i]) * 16777619u;
    return h ^ h >> 15;
}

static bool grow(PieceCache *w) {
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
static CacheSlot *find(PieceCache *w, uint32_t hash, const char *s, size_t n) {
    size_t i = hash & (w->n_slots - 1);
    for (; w->slots[i].len; i = (i + 1) & (w->n_slots - 1)) {
        CacheSlot *c = &w->slots[i];
        if (c->hash == hash && c->len == n && memcmp(w->keys.data + c->key, s, n) == 0) break;
    }
    return &w->slots[i];
}

int piece_cache_get(PieceCache *w, const char *s, size_t n, TokenIds *out, Err *e) {
    if (w->n_slots == 0) return 0;
    const CacheSlot *c = find(w, hash_piece(s, n), s, n);
    if (!c->len) return 0;
    for (size_t i = 0; i < c->n; i++)
        if (!token_ids_add(out, w->ids.ids[c->ids + i], e)) return -1;
    return 1;
}

bool piece_cache_put(PieceCache *w, const char *s, size_t n, const TokenIds *out, size_t from,
                     Err *e) {
    if (w->n_cached >= CACHE_MAX || n == 0 || n > PIECE_CACHE_KEY || out->n - from > UINT16_MAX)
        return true;
    if (w->n_cached * 2 >= w->n_slots && !grow(w))
        return err_set(e, ERR_MEMORY, "内存不足：分词缓存");
    uint32_t hash = hash_piece(s, n);
    CacheSlot fresh = {.hash = hash, .key = (uint32_t)w->keys.len, .ids = (uint32_t)w->ids.n,
                       .len = (uint16_t)n, .n = (uint16_t)(out->n - from)};
    str_addn(&w->keys, s, n);
    if (w->keys.failed) return err_set(e, ERR_MEMORY, "内存不足：分词缓存");
    for (size_t i = from; i < out->n; i++)
        if (!token_ids_add(&w->ids, out->ids[i], e)) return false;
    *find(w, hash, s, n) = fresh;
    w->n_cached++;
    return true;
}

void piece_cache_free(PieceCache *w) {
    free(w->slots);
    str_free(&w->keys);
    token_ids_free(&w->ids);
    *w = (PieceCache){0};
}
