/* added_tokens — 文本中先行匹配的 token（特殊 token 与用户添加的 token）
 * 两棵字节字典树：一棵在规范化之前匹配原文，一棵（normalized 为真者）在规范化之后匹配。
 * 取最左、同一起点取最长，互不重叠；single_word、lstrip、rstrip 的细节与 HF tokenizers 相同。 */
#include <string.h>

#include "model/tokenizer_internal.h"

bool added_put(AddedTokens *a, Arena *arena, const AddedToken *t, VocabEntry *entry, Err *e) {
    if (entry->added) {
        AddedToken *old = &a->items[entry->added - 1];
        bool special = old->special || t->special; /* HF 的特殊 token 集合只增不减 */
        *old = *t;
        old->special = special;
        return true;
    }
    if (a->n == a->cap) {
        size_t cap = a->cap ? a->cap * 2 : 64;
        AddedToken *p = ARENA_ARRAY(arena, AddedToken, cap, e);
        if (!p) return false;
        if (a->n) memcpy(p, a->items, a->n * sizeof *p);
        a->items = p;
        a->cap = cap;
    }
    a->items[a->n++] = *t;
    entry->added = (int32_t)a->n;
    if (t->id > a->max_id) a->max_id = t->id;
    return true;
}

/* ---- 字典树 ---- */

static int32_t trie_child(const Trie *t, int32_t node, uint8_t byte) {
    if (node == 0) return t->first[byte];
    int32_t k = t->nodes[node].child;
    while (k && t->nodes[k].byte != byte) k = t->nodes[k].sibling;
    return k;
}

static bool trie_add(Trie *t, const char *text, size_t len, int32_t token, Err *e) {
    int32_t node = 0;
    for (size_t i = 0; i < len; i++) {
        uint8_t byte = (uint8_t)text[i];
        int32_t next = trie_child(t, node, byte);
        if (!next) {
            next = (int32_t)t->n++;
            t->nodes[next] = (TrieNode){.token = -1, .byte = byte};
            if (node == 0) {
                t->first[byte] = next;
            } else {
                t->nodes[next].sibling = t->nodes[node].child;
                t->nodes[node].child = next;
            }
        }
        node = next;
    }
    if (t->nodes[node].token >= 0)
        return err_set(e, ERR_FORMAT, "两个添加的 token 规范化后同为 \"%.*s\"",
                       len > 64 ? 64 : (int)len, text);
    t->nodes[node].token = token;
    return true;
}

/* 定 shown 与 hidden。 */
static bool show_tokens(AddedTokens *a, Arena *arena, const Vocab *v, const Normalizer *z, Err *e) {
    NormWork work = {0};
    bool ok = true;
    for (size_t i = 0; ok && i < a->n; i++) {
        AddedToken *k = &a->items[i];
        NormText text = {k->text, k->len, 0};
        if (k->normalized) ok = normalizer_run(z, &work, &text, e);
        bool same = text.n == k->len && memcmp(text.s, k->text, text.n) == 0;
        k->shown = !ok || same ? k->text : arena_strndup(arena, text.s, text.n, e);
        k->n_shown = text.n;
        ok = ok && k->shown;
        int32_t id = ok ? vocab_find(v, k->shown, k->n_shown) : -1;
        int32_t other = id >= 0 ? v->by_id[id].added : 0;
        k->hidden = other && a->items[other - 1].special;
    }
    norm_work_free(&work);
    return ok;
}

/* 把 normalized 属性为 want 的 token 收进一棵树。 */
static bool build_trie(AddedTokens *a, Trie *t, bool want, Arena *arena, Err *e) {
    *t = (Trie){.n = 1};
    bool any = false;
    for (size_t i = 0; i < a->n; i++) {
        const AddedToken *k = &a->items[i];
        if (k->normalized != want) continue;
        if (t->n + k->n_shown > INT32_MAX / 2)
            return err_set(e, ERR_FORMAT, "添加的 token 过多或过长");
        if (t->n + k->n_shown > t->cap) {
            t->cap = (t->n + k->n_shown) * 2 + 256;
            TrieNode *p = ARENA_ARRAY(arena, TrieNode, t->cap, e);
            if (!p) return false;
            if (any) memcpy(p, t->nodes, t->n * sizeof *p);
            t->nodes = p;
        }
        any = true;
        if (k->n_shown && !trie_add(t, k->shown, k->n_shown, (int32_t)i, e)) return false;
    }
    return true;
}

bool added_build(AddedTokens *a, Arena *arena, const Vocab *v, const Normalizer *z, Err *e) {
    return show_tokens(a, arena, v, z, e) && build_trie(a, &a->raw, false, arena, e) &&
           build_trie(a, &a->normalized, true, arena, e);
}

/* 从 at 开始的最长匹配。返回: token 下标或 -1；*len 为匹配的字节数。 */
static int32_t longest(const Trie *t, const char *s, size_t n, size_t at, size_t *len) {
    int32_t found = -1, node = 0;
    for (size_t i = at; i < n && (node = trie_child(t, node, (uint8_t)s[i])); i++) {
        if (t->nodes[node].token < 0) continue;
        found = t->nodes[node].token;
        *len = i + 1 - at;
    }
    return found;
}

/* ---- 匹配 ---- */

/* s[0..n) 末尾字符的起点（s 是合法 UTF-8，n > 0）。 */
static size_t last_char(const char *s, size_t n) {
    do n--;
    while (n > 0 && ((uint8_t)s[n] & 0xC0) == 0x80);
    return n;
}

static bool word_around(const char *s, size_t n, size_t start, size_t end) {
    size_t len;
    if (start > 0) {
        size_t k = last_char(s, start);
        if (unicode_word(utf8_next(s + k, start - k, &len))) return true;
    }
    return end < n && unicode_word(utf8_next(s + end, n - end, &len));
}

static size_t strip_left(const char *s, size_t from, size_t start) {
    while (start > from) {
        size_t len, k = last_char(s, start);
        if (k < from || !unicode_space(utf8_next(s + k, start - k, &len))) break;
        start = k;
    }
    return start;
}

static size_t strip_right(const char *s, size_t n, size_t end) {
    size_t len;
    while (end < n && unicode_space(utf8_next(s + end, n - end, &len))) end += len;
    return end;
}

bool added_next(const AddedTokens *a, const Trie *trie, const char *s, size_t n, AddedScan *scan,
                AddedHit *hit) {
    if (!trie->nodes) return false;
    for (size_t at = scan->next; at < n; at++) {
        size_t len = 0;
        int32_t k = trie->first[(uint8_t)s[at]] ? longest(trie, s, n, at, &len) : -1;
        if (k < 0) continue;
        const AddedToken *t = &a->items[k];
        scan->next = at + len;
        if (t->single_word && word_around(s, n, at, at + len)) {
            at += len - 1;
            continue;
        }
        hit->id = t->id;
        hit->start = at;
        if (t->lstrip && at >= scan->from) hit->start = strip_left(s, scan->from, at);
        if (t->lstrip && at < scan->from) hit->start = scan->from; /* 已被前一个的 rstrip 吞掉 */
        hit->end = t->rstrip ? strip_right(s, n, at + len) : at + len;
        return true;
    }
    return false;
}
