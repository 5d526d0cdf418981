/* wordpiece — WordPiece（从左到右取最长匹配）与 WordLevel（整词查表）
 * 词首从字典树的一个结点出发，其余从前缀（如 ##）所到的结点出发；有一处接不上，整词就是 unk。 */
#include "model/tokenizer_internal.h"

#define NO_NODE UINT32_MAX

static uint32_t walk(const PieceTrie *t, const char *s, size_t n) {
    uint32_t node = 0;
    for (size_t i = 0; i < n; i++)
        if (!(node = piece_trie_next(t, node, (uint8_t)s[i]))) return NO_NODE;
    return node;
}

bool wordpiece_init(WordPiece *w, const Vocab *v, Arena *a, const char *inner, size_t n_inner,
                    const char *outer, size_t n_outer, Err *e) {
    w->vocab = v;
    if (!piece_trie_build(&w->trie, v, a, e)) return false;
    w->inner = walk(&w->trie, inner, n_inner);
    w->outer = walk(&w->trie, outer, n_outer);
    return true;
}

static bool emit_unk(const WordPiece *w, TokenIds *out, Err *e) {
    if (w->unk_id < 0)
        return err_set(e, ERR_FORMAT, "文本中有词表外的词，而 unk_token 不在词表中");
    return token_ids_add(out, w->unk_id, e);
}

/* 从 node 起的最长匹配。返回: 字节数，0 为没有。 */
static size_t longest(const PieceTrie *t, uint32_t node, const char *s, size_t n, int32_t *id) {
    size_t best = 0;
    for (size_t i = 0; i < n && (node = piece_trie_next(t, node, (uint8_t)s[i])); i++) {
        if (t->ids[node] < 0) continue;
        *id = t->ids[node];
        best = i + 1;
    }
    return best;
}

bool wordpiece_encode(const WordPiece *w, const char *s, size_t n, TokenIds *out, Err *e) {
    int64_t chars = 0;
    size_t from = out->n, len;
    for (size_t i = 0; i < n; i += len, chars++) utf8_next(s + i, n - i, &len);
    if (chars > w->max_chars) return emit_unk(w, out, e);
    for (size_t i = 0; i < n; i += len) {
        uint32_t start = i ? w->inner : w->outer;
        int32_t id = -1;
        len = start == NO_NODE ? 0 : longest(&w->trie, start, s + i, n - i, &id);
        if (len == 0) {
            out->n = from;
            return emit_unk(w, out, e);
        }
        if (!token_ids_add(out, id, e)) return false;
    }
    return true;
}

bool wordlevel_encode(const WordPiece *w, const char *s, size_t n, TokenIds *out, Err *e) {
    int32_t id = vocab_find_model(w->vocab, s, n);
    return id >= 0 ? token_ids_add(out, id, e) : emit_unk(w, out, e);
}
