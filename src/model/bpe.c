/* bpe — 对一个预切分片段做归并
 * 片段先变成符号（字节级：每字节一个；否则每字符一个，词表外的按字节 token 或 unk），排成双向链表；
 * 所有可归并的相邻对放进堆，按（次序，位置）取最小者归并，再放入新形成的两对。堆中过期的对在取出时按产物识别。
 * n 个符号用时 O(n log n)，长串也不会平方。 */
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"

#define REMOVED (-2)

typedef struct Symbol {
    int32_t id, prev, next; /* 链表以 -1 结尾；next 为 REMOVED 表示已并入左边 */
} Symbol;

typedef struct Candidate {
    uint64_t key; /* 次序 << 32 | 左符号的位置 */
    int32_t product;
} Candidate;

struct BpeWork {
    Symbol *symbols;
    size_t cap_symbols;
    Candidate *heap;
    size_t n_heap, cap_heap;
    Str text; /* 加了前缀、后缀的字符；查整词用的文本 */
};

BpeWork *bpe_work_new(void) {
    return calloc(1, sizeof(BpeWork));
}

void bpe_work_free(BpeWork *w) {
    if (!w) return;
    free(w->symbols);
    free(w->heap);
    str_free(&w->text);
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

static bool reserve_symbols(BpeWork *w, size_t n) {
    if (n <= w->cap_symbols) return true;
    size_t cap = n < 256 ? 256 : n + n / 2;
    Symbol *p = realloc(w->symbols, cap * sizeof *p);
    if (!p) return false;
    w->symbols = p;
    w->cap_symbols = cap;
    return true;
}

static void add_symbol(BpeWork *w, size_t *count, int32_t id) {
    w->symbols[*count] = (Symbol){id, (int32_t)*count - 1, (int32_t)*count + 1};
    ++*count;
}

/* 原始字节 → 符号。词表外的字节按 unk 规则处理。 */
static size_t byte_symbols(const Bpe *b, BpeWork *w, const char *s, size_t n) {
    size_t count = 0;
    bool unk_before = false;
    for (size_t i = 0; i < n; i++) {
        int32_t id = b->alphabet[(uint8_t)s[i]];
        bool unk = id < 0;
        if (unk && (b->unk_id < 0 || (unk_before && b->fuse_unk))) continue;
        unk_before = unk;
        add_symbol(w, &count, unk ? b->unk_id : id);
    }
    return count;
}

/* s[i..i+len) 的一个字符（加上前缀、后缀）的 id，-1 为不在词表中；*text 为所查的文本。 */
static int32_t char_id(const Bpe *b, BpeWork *w, const char *s, size_t n, size_t i, size_t *len,
                       const char **text, size_t *n_text) {
    bool plain = !(b->n_prefix && i > 0);
    *text = s + i;
    if ((uint8_t)s[i] < 0x80 && plain && !b->n_suffix) {
        *len = *n_text = 1;
        return b->ascii[(uint8_t)s[i]];
    }
    utf8_next(s + i, n - i, len);
    *n_text = *len;
    if (!plain || (b->n_suffix && i + *len == n)) {
        w->text.len = 0;
        if (!plain) str_addn(&w->text, b->prefix, b->n_prefix);
        str_addn(&w->text, s + i, *len);
        if (i + *len == n) str_addn(&w->text, b->suffix, b->n_suffix);
        if (w->text.failed) return -1;
        *text = w->text.data;
        *n_text = w->text.len;
    }
    return vocab_find_model(b->vocab, *text, *n_text);
}

/* 把词表外的字符写成字节 token。返回: 缺少其中某个则 false，不写。 */
static bool fall_back(const Bpe *b, BpeWork *w, const char *text, size_t n, size_t *count) {
    for (size_t i = 0; i < n; i++)
        if (b->fallback[(uint8_t)text[i]] < 0) return false;
    for (size_t i = 0; i < n; i++) add_symbol(w, count, b->fallback[(uint8_t)text[i]]);
    return true;
}

/* 字符 → 符号。unk 延到下一个认得的字符之前才写（字节 token 不算），与 HF 相同。 */
static size_t char_symbols(const Bpe *b, BpeWork *w, const char *s, size_t n) {
    size_t count = 0, len, n_text;
    const char *text;
    bool unk = false;
    for (size_t i = 0; i < n; i += len) {
        int32_t id = char_id(b, w, s, n, i, &len, &text, &n_text);
        if (id >= 0) {
            if (unk) add_symbol(w, &count, b->unk_id);
            unk = false;
            add_symbol(w, &count, id);
        } else if (!(b->byte_fallback && fall_back(b, w, text, n_text, &count)) && b->unk_id >= 0) {
            if (unk && !b->fuse_unk) add_symbol(w, &count, b->unk_id);
            unk = true;
        }
    }
    if (unk) add_symbol(w, &count, b->unk_id);
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

static bool encode_word(const Bpe *b, BpeWork *w, const char *s, size_t n, TokenIds *out, Err *e) {
    size_t extra = b->byte_fallback ? b->n_prefix + b->n_suffix : 0, count = 0;
    if (n > INT32_MAX / 2 / (1 + extra))
        return err_set(e, ERR_UNSUPPORTED, "一个不可切分的片段有 %zu 字节，过长", n);
    bool ok = reserve_symbols(w, n * (1 + extra) + 1);
    if (ok) count = b->raw_bytes ? byte_symbols(b, w, s, n) : char_symbols(b, w, s, n);
    if (count) w->symbols[count - 1].next = -1;
    w->n_heap = 0;
    ok = ok && !w->text.failed;
    for (size_t i = 0; ok && i + 1 < count; i++) ok = push_pair(b, w, (int32_t)i);
    if (!ok || !merge_all(b, w))
        return err_set(e, ERR_MEMORY, "内存不足：归并 %zu 字节的片段", n);
    for (int32_t i = count ? 0 : -1; i >= 0; i = w->symbols[i].next) {
        int32_t id = w->symbols[i].id;
        if (id == UNK_MISSING)
            return err_set(e, ERR_FORMAT, "文本中有词表外的字符，而 unk_token 不在词表中");
        if (!token_ids_add(out, id, e)) return false;
    }
    return true;
}

/* ignore_merges: 整个片段就是一个 token 时直接取它。返回: id 或 -1。 */
static int32_t find_whole(const Bpe *b, BpeWork *w, const char *s, size_t n) {
    if (!b->raw_bytes) return vocab_find_model(b->vocab, s, n);
    w->text.len = 0;
    for (size_t i = 0; i < n; i++) utf8_add(&w->text, byte_to_char((uint8_t)s[i]));
    return w->text.failed ? -1 : vocab_find_model(b->vocab, w->text.data, w->text.len);
}

bool bpe_encode(const Bpe *b, BpeWork *w, const char *s, size_t n, TokenIds *out, Err *e) {
    int32_t whole = b->ignore_merges ? find_whole(b, w, s, n) : -1;
    return whole >= 0 ? token_ids_add(out, whole, e) : encode_word(b, w, s, n, out, e);
}
