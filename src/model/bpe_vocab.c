/* bpe_vocab — 词表与合并表
 * 词表: id → 文本的数组，加一张按文本的开放寻址哈希。合并表: (左 id, 右 id) → (次序, 产物 id)。
 * 不变式: id 与文本一一对应；每条归并的产物文本恰为左右文本相接，所以归并不会循环。 */
#include <stdio.h>
#include <string.h>

#include "model/tokenizer_internal.h"

#define POOL_BYTES ((size_t)1 << 18)
#define MERGE_EMPTY UINT64_MAX

static uint32_t hash_text(const char *s, size_t n) {
    uint64_t h = 0x9E3779B97F4A7C15u ^ n;
    for (; n >= 8; s += 8, n -= 8) {
        uint64_t x;
        memcpy(&x, s, 8);
        h = (h ^ x) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    uint64_t x = 0;
    memcpy(&x, s, n);
    h = (h ^ x) * 0xD6E8FEB86659FD93u;
    return (uint32_t)(h ^ h >> 32);
}

static size_t slots_for(size_t n) {
    size_t slots = 64;
    while (slots < n * 2) slots *= 2;
    return slots;
}

/* text 的槽：已有则是它所在的槽，否则是可用的空槽。先比哈希，少碰词表的内存。 */
static VocabSlot *find_slot(const Vocab *v, uint32_t hash, const char *text, size_t len) {
    size_t mask = v->n_slots - 1, i = hash & mask;
    for (; v->slots[i].id1; i = (i + 1) & mask) {
        if (v->slots[i].hash != hash) continue;
        const VocabEntry *t = &v->by_id[v->slots[i].id1 - 1];
        if (t->len == len && memcmp(t->text, text, len) == 0) break;
    }
    return &v->slots[i];
}

static bool rehash(Vocab *v, size_t n_slots, Err *e) {
    VocabSlot *slots = ARENA_ARRAY(v->arena, VocabSlot, n_slots, e);
    if (!slots) return false;
    for (size_t i = 0; i < v->n_slots; i++) {
        if (!v->slots[i].id1) continue;
        size_t k = v->slots[i].hash & (n_slots - 1);
        while (slots[k].id1) k = (k + 1) & (n_slots - 1);
        slots[k] = v->slots[i];
    }
    v->slots = slots;
    v->n_slots = n_slots;
    return true;
}

static bool grow_ids(Vocab *v, size_t need, Err *e) {
    size_t cap = v->cap_ids ? (size_t)v->cap_ids : 256;
    while (cap < need) cap *= 2;
    VocabEntry *p = ARENA_ARRAY(v->arena, VocabEntry, cap, e);
    if (!p) return false;
    if (v->n_ids) memcpy(p, v->by_id, (size_t)v->n_ids * sizeof *p);
    v->by_id = p;
    v->cap_ids = (int32_t)cap;
    return true;
}

/* 文本成块存放：arena 的每次分配都按 64 字节对齐，逐个存太费。 */
static char *pool_copy(Vocab *v, const char *text, size_t len, Err *e) {
    if (!v->pool || v->pool_left < len) {
        size_t bytes = len > POOL_BYTES ? len : POOL_BYTES;
        if (!(v->pool = arena_alloc(v->arena, bytes, e))) return NULL;
        v->pool_left = bytes;
    }
    char *p = v->pool;
    if (len) memcpy(p, text, len);
    v->pool += len;
    v->pool_left -= len;
    return p;
}

bool vocab_init(Vocab *v, Arena *a, size_t n, Err *e) {
    if (n > TOKEN_ID_MAX) n = TOKEN_ID_MAX;
    *v = (Vocab){.arena = a};
    return grow_ids(v, n, e) && rehash(v, slots_for(n), e);
}

static bool put(Vocab *v, const char *name, const char *text, size_t len, int64_t id, bool again,
                Err *e) {
    int show = len > 64 ? 64 : (int)len;
    if (id < 0 || id > TOKEN_ID_MAX)
        return err_set(e, ERR_FORMAT, "%s: token \"%.*s\" 的 id %lld 超出 0 到 %d", name, show, text,
                       (long long)id, TOKEN_ID_MAX);
    if (len > INT32_MAX / 4)
        return err_set(e, ERR_FORMAT, "%s: id %lld 的 token 过长", name, (long long)id);
    if (id >= v->cap_ids && !grow_ids(v, (size_t)id + 1, e)) return false;
    if ((v->n + 1) * 2 > v->n_slots && !rehash(v, v->n_slots * 2, e)) return false;
    VocabEntry *t = &v->by_id[id];
    if (t->text)
        return err_set(e, ERR_FORMAT, "%s: id %lld 重复：\"%.*s\" 与 \"%.*s\"", name, (long long)id,
                       t->len > 64 ? 64 : (int)t->len, t->text, show, text);
    uint32_t hash = hash_text(text, len);
    VocabSlot *slot = find_slot(v, hash, text, len);
    if (slot->id1 && !again)
        return err_set(e, ERR_FORMAT, "%s: token \"%.*s\" 重复：id %d 与 %lld", name, show, text,
                       slot->id1 - 1, (long long)id);
    if (!(t->text = pool_copy(v, text, len, e))) return false;
    t->len = (uint32_t)len;
    *slot = (VocabSlot){hash, (int32_t)id + 1};
    v->n++;
    if (id >= v->n_ids) v->n_ids = (int32_t)id + 1;
    return true;
}

bool vocab_add(Vocab *v, const char *name, const char *text, size_t len, int64_t id, Err *e) {
    return put(v, name, text, len, id, false, e);
}

bool vocab_add_again(Vocab *v, const char *name, const char *text, size_t len, int64_t id, Err *e) {
    return put(v, name, text, len, id, true, e);
}

int32_t vocab_find(const Vocab *v, const char *text, size_t len) {
    return find_slot(v, hash_text(text, len), text, len)->id1 - 1;
}

int32_t vocab_find_model(const Vocab *v, const char *text, size_t len) {
    int32_t id = vocab_find(v, text, len);
    return id >= 0 && v->by_id[id].extra ? -1 : id;
}

/* ---- 合并表 ---- */

static size_t merge_slot(const Bpe *b, uint64_t pair) {
    uint64_t h = pair * 0x9E3779B97F4A7C15u;
    size_t mask = b->n_slots - 1, i = (h ^ h >> 29) & mask;
    while (b->merges[i].pair != MERGE_EMPTY && b->merges[i].pair != pair) i = (i + 1) & mask;
    return i;
}

/* 换成 n_slots 个槽的新表。 */
static bool resize_merges(Bpe *b, size_t n_slots, Err *e) {
    Merge *old = b->merges;
    size_t n_old = b->n_slots;
    b->merges = ARENA_ARRAY(b->vocab->arena, Merge, n_slots, e);
    if (!b->merges) return false;
    b->n_slots = n_slots;
    for (size_t i = 0; i < n_slots; i++) b->merges[i].pair = MERGE_EMPTY;
    for (size_t i = 0; i < n_old; i++)
        if (old[i].pair != MERGE_EMPTY) b->merges[merge_slot(b, old[i].pair)] = old[i];
    return true;
}

bool bpe_init(Bpe *b, Vocab *v, size_t n_merges, Err *e) {
    b->vocab = v;
    for (int i = 0; i < 256; i++) {
        Str s = {0};
        char hex[8], c = (char)i;
        utf8_add(&s, byte_to_char((uint8_t)i));
        if (s.failed) return err_set(e, ERR_MEMORY, "内存不足：词表");
        b->alphabet[i] = vocab_find(v, s.data, s.len);
        str_free(&s);
        snprintf(hex, sizeof hex, "<0x%02X>", i);
        b->fallback[i] = vocab_find(v, hex, 6);
        if (i < 128) b->ascii[i] = vocab_find(v, &c, 1);
    }
    return resize_merges(b, slots_for(n_merges), e);
}

bool bpe_put_merge(Bpe *b, int32_t left, int32_t right, int32_t rank, int32_t product, Err *e) {
    if ((b->n_merges + 1) * 2 > b->n_slots && !resize_merges(b, b->n_slots * 2, e)) return false;
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    Merge *m = &b->merges[merge_slot(b, pair)]; /* 同一对出现两次时后者有效，与 HF 相同 */
    b->n_merges += m->pair == MERGE_EMPTY;
    *m = (Merge){.pair = pair, .rank = rank, .product = product};
    return true;
}

const Merge *bpe_find_merge(const Bpe *b, int32_t left, int32_t right) {
    const Merge *m = &b->merges[merge_slot(b, (uint64_t)(uint32_t)left << 32 | (uint32_t)right)];
    return m->pair == MERGE_EMPTY ? NULL : m;
}

static int32_t find_product(const Bpe *b, const char *left, size_t n_left, const char *right,
                            size_t n_right) {
    char stack[256];
    if (n_left + n_right <= sizeof stack) {
        memcpy(stack, left, n_left);
        memcpy(stack + n_left, right, n_right);
        return vocab_find(b->vocab, stack, n_left + n_right);
    }
    Str s = {0};
    str_addn(&s, left, n_left);
    str_addn(&s, right, n_right);
    int32_t id = s.failed ? -1 : vocab_find(b->vocab, s.data, s.len);
    str_free(&s);
    return id;
}

static bool merge_error(Err *e, const char *name, size_t index, const char *left, size_t n_left,
                        const char *right, size_t n_right, const char *why) {
    return err_set(e, ERR_FORMAT, "%s: 第 %zu 条归并 \"%.*s\" + \"%.*s\"：%s", name, index,
                   n_left > 64 ? 64 : (int)n_left, left, n_right > 64 ? 64 : (int)n_right, right,
                   why);
}

bool bpe_add_merge(Bpe *b, const char *name, size_t index, const char *left, size_t n_left,
                   const char *right, size_t n_right, Err *e) {
    const char *why = NULL;
    int32_t l = vocab_find(b->vocab, left, n_left), r = vocab_find(b->vocab, right, n_right);
    /* 右边的前缀（如 ##）不进产物 */
    size_t skip = n_right > b->n_prefix ? b->n_prefix : 0;
    int32_t product = find_product(b, left, n_left, right + skip, n_right - skip);
    if (n_left == 0 || n_right == 0)
        why = "一侧为空，产物等于另一侧，归并会循环";
    else if (l < 0)
        why = "左边不在词表中";
    else if (r < 0)
        why = "右边不在词表中";
    else if (product < 0)
        why = "两者相接的 token 不在词表中";
    if (why) return merge_error(e, name, index, left, n_left, right, n_right, why);
    if (index > INT32_MAX) return err_set(e, ERR_FORMAT, "%s: 归并过多", name);
    return bpe_put_merge(b, l, r, (int32_t)index, product, e);
}

bool bpe_add_merge_text(Bpe *b, const char *name, size_t index, const char *text, size_t len,
                        Err *e) {
    const char *space = memchr(text, ' ', len);
    size_t n = space ? (size_t)(space - text) : len;
    if (!space || memchr(space + 1, ' ', len - n - 1))
        return err_set(e, ERR_FORMAT, "%s: 第 %zu 条归并 \"%.*s\" 应是空格隔开的两个 token", name,
                       index, len > 128 ? 128 : (int)len, text);
    return bpe_add_merge(b, name, index, text, n, space + 1, len - n - 1, e);
}
