/* unigram — Unigram 模型：分数之和最大的切分（Viterbi；Kudo 2018）
 * 从每个字符位置沿字典树走一遍，更新各终点的最好路径（双精度，先到者在同分时为先，与 HF 相同）；
 * 没有单字符 token 的位置以 unk 走一个字符，分数为最低分减 10。相邻的 unk 合成一个再换成字节 token 或 unk。 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"

#define UNK_PENALTY 10.0

bool unigram_init(Unigram *u, const Vocab *v, Arena *a, Err *e) {
    double low = INFINITY;
    u->vocab = v;
    for (size_t i = 0; i < u->n_scores; i++)
        if (!v->by_id[i].extra && u->scores[i] < low) low = u->scores[i];
    u->unk_score = low - UNK_PENALTY;
    for (int i = 0; i < 256; i++) {
        char hex[8];
        snprintf(hex, sizeof hex, "<0x%02X>", i);
        u->fallback[i] = vocab_find(v, hex, 6);
    }
    return piece_trie_build(&u->trie, v, a, e);
}

typedef struct Node { /* 到此位置的最好路径 */
    double score;
    int32_t start, id; /* 最后一个 token 的起点（-1 为到不了）与 id */
    int32_t next;      /* 回溯时写：最好路径上下一个 token 的终点 */
} Node;

/* 以 id 把从 from 到 to 的一步记下（更好的话）。 */
static void relax(Node *nodes, size_t from, size_t to, double score, int32_t id) {
    double total = nodes[from].score + score;
    if (nodes[to].start < 0 || total > nodes[to].score)
        nodes[to] = (Node){total, (int32_t)from, id, 0};
}

static bool search(const Unigram *u, Node *nodes, const char *s, size_t n, Err *e) {
    size_t len;
    for (size_t i = 0; i < n; i += len) {
        utf8_next(s + i, n - i, &len);
        bool single = false;
        uint32_t node = 0;
        for (size_t k = i; k < n && (node = piece_trie_next(&u->trie, node, (uint8_t)s[k])); k++) {
            int32_t id = u->trie.ids[node];
            if (id < 0) continue;
            relax(nodes, i, k + 1, u->scores[id], id);
            if (k + 1 - i == len) single = true;
        }
        if (single) continue;
        if (u->unk_id < 0)
            return err_set(e, ERR_FORMAT, "文本中有词表外的字符，而分词器没有 unk_id");
        relax(nodes, i, i + len, u->unk_score, u->unk_id);
    }
    return true;
}

/* 一段 unk 的文本 → 词表中恰有则取之，否则字节 token，否则 unk。 */
static bool emit_text(const Unigram *u, const char *s, size_t n, TokenIds *out, Err *e) {
    int32_t id = vocab_find_model(u->vocab, s, n);
    bool bytes = id < 0 && u->byte_fallback;
    for (size_t i = 0; bytes && i < n; i++) bytes = u->fallback[(uint8_t)s[i]] >= 0;
    if (!bytes) return token_ids_add(out, id >= 0 ? id : u->unk_id, e);
    for (size_t i = 0; i < n; i++)
        if (!token_ids_add(out, u->fallback[(uint8_t)s[i]], e)) return false;
    return true;
}

bool unigram_encode(const Unigram *u, UnigramWork *w, const char *s, size_t n, TokenIds *out,
                    Err *e) {
    if (n >= INT32_MAX)
        return err_set(e, ERR_UNSUPPORTED, "一个不可切分的片段有 %zu 字节，过长", n);
    if (n + 1 > w->cap) {
        size_t cap = n + n / 2 + 256;
        void *p = realloc(w->nodes, cap * sizeof(Node));
        if (!p) return err_set(e, ERR_MEMORY, "内存不足：切分 %zu 字节的片段", n);
        w->nodes = p;
        w->cap = cap;
    }
    Node *nodes = w->nodes;
    for (size_t i = 0; i <= n; i++) nodes[i] = (Node){.start = -1};
    if (!search(u, nodes, s, n, e)) return false;
    for (int32_t at = (int32_t)n; at > 0; at = nodes[at].start) nodes[nodes[at].start].next = at;
    for (int32_t at = 0; at < (int32_t)n;) {
        int32_t to = nodes[at].next;
        while (nodes[to].id == u->unk_id && to < (int32_t)n && nodes[nodes[to].next].id == u->unk_id)
            to = nodes[to].next; /* 相邻的 unk 合成一个 */
        if (!emit_text(u, s + at, (size_t)(to - at), out, e)) return false;
        at = to;
    }
    return true;
}
