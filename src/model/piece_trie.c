/* piece_trie — 词表的字节字典树（Unigram 与 WordPiece 的前缀匹配）
 * 边存在一张以（父结点，字节）为键的开放寻址哈希里：不论结点有多少分支，走一步都是一次查表。 */
#include <string.h>

#include "model/tokenizer_internal.h"

static size_t edge_slot(const PieceTrie *t, uint32_t from, uint8_t byte) {
    uint64_t h = ((uint64_t)from << 8 | byte) * 0x9E3779B97F4A7C15u;
    size_t mask = t->n_slots - 1, i = (h >> 32) & mask;
    while (t->edges[i].to && (t->edges[i].from != from || t->edges[i].byte != byte))
        i = (i + 1) & mask;
    return i;
}

uint32_t piece_trie_next(const PieceTrie *t, uint32_t node, uint8_t byte) {
    return t->edges[edge_slot(t, node, byte)].to;
}

static void insert(PieceTrie *t, const char *text, size_t len, int32_t id) {
    uint32_t node = 0;
    for (size_t i = 0; i < len; i++) {
        PieceEdge *edge = &t->edges[edge_slot(t, node, (uint8_t)text[i])];
        if (!edge->to) {
            *edge = (PieceEdge){node, (uint32_t)t->n_nodes, (uint8_t)text[i]};
            t->ids[t->n_nodes++] = -1;
        }
        node = edge->to;
    }
    t->ids[node] = id;
}

bool piece_trie_build(PieceTrie *t, const Vocab *v, Arena *a, Err *e) {
    size_t bytes = 1; /* 结点数的上限 */
    for (int32_t i = 0; i < v->n_ids; i++)
        if (v->by_id[i].text && !v->by_id[i].extra) bytes += v->by_id[i].len;
    if (bytes > (size_t)1 << 28)
        return err_set(e, ERR_UNSUPPORTED, "词表的文本共 %zu 字节，过长", bytes);
    *t = (PieceTrie){.n_slots = 64, .n_nodes = 1};
    while (t->n_slots < bytes * 2) t->n_slots *= 2;
    t->edges = ARENA_ARRAY(a, PieceEdge, t->n_slots, e);
    t->ids = ARENA_ARRAY(a, int32_t, bytes, e);
    if (!t->edges || !t->ids) return false;
    t->ids[0] = -1;
    for (int32_t i = 0; i < v->n_ids; i++) {
        const VocabEntry *k = &v->by_id[i];
        if (k->text && k->len && !k->extra) insert(t, k->text, k->len, vocab_find(v, k->text, k->len));
    }
    return true;
}
