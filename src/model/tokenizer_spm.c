/* tokenizer_spm — GGUF 的 llama（SentencePiece BPE）、t5（Unigram）、bert（WordPiece）三种词表
 * llama 没有合并表：SentencePiece 每次归并「相接后是 token」的相邻对中分数最高、最靠左的一对。
 * 由词表推出这张表：每个 token 的每一种两分（两边都在词表中）是一条归并，次序按分数，同分同次序（再比位置）。 */
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"

#define MARK "\xE2\x96\x81" /* ▁ */

/* 分数数组 → 双精度，按 id。 */
static bool load_scores(double **scores, const Tokenizer *t, Arena *a, const char *name,
                        const Gguf *g, Hash *h, Err *e) {
    const GgufValue *v = gguf_find(g, "tokenizer.ggml.scores");
    size_t n = (size_t)t->vocab.n_ids;
    bool numbers = v && v->type == GGUF_ARRAY && v->item_type == GGUF_F32 && v->n == n;
    if (!numbers)
        return err_set(e, ERR_FORMAT, "%s: tokenizer.ggml.scores 应是 %zu 个 f32", name, n);
    if (!(*scores = ARENA_ARRAY(a, double, n, e))) return false;
    for (size_t i = 0; i < n; i++) {
        (*scores)[i] = gguf_item_num(v, i);
        if ((*scores)[i] != (*scores)[i])
            return err_set(e, ERR_FORMAT, "%s: tokenizer.ggml.scores 第 %zu 项不是数", name, i);
        hash_add(h, &(*scores)[i], sizeof **scores);
    }
    return true;
}

/* ---- llama ---- */

static int higher_first(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* 分数在由高到低的各不相同的分数中排第几。 */
static int32_t rank_of(const double *sorted, size_t n, double score) {
    size_t lo = 0, hi = n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (sorted[mid] > score)
            lo = mid + 1;
        else
            hi = mid;
    }
    return (int32_t)lo;
}

static bool add_splits(Tokenizer *t, int32_t id, int32_t rank, Err *e) {
    const Vocab *v = &t->vocab;
    const VocabEntry *k = &v->by_id[id];
    size_t len;
    for (size_t i = 0; i < k->len; i += len) {
        utf8_next(k->text + i, k->len - i, &len);
        if (i == 0) continue;
        int32_t left = vocab_find_model(v, k->text, i);
        int32_t right = left < 0 ? -1 : vocab_find_model(v, k->text + i, k->len - i);
        if (right >= 0 && !bpe_put_merge(&t->bpe, left, right, rank, id, e)) return false;
    }
    return true;
}

static bool build_merges(Tokenizer *t, const double *scores, Err *e) {
    size_t n = (size_t)t->vocab.n_ids;
    double *sorted = malloc((n + 1) * sizeof *sorted);
    if (!sorted) return err_set(e, ERR_MEMORY, "内存不足：归并表");
    if (n) memcpy(sorted, scores, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, higher_first);
    bool ok = true;
    for (size_t i = 0; ok && i < n; i++)
        if (!t->vocab.by_id[i].extra)
            ok = add_splits(t, (int32_t)i, rank_of(sorted, n, scores[i]), e);
    free(sorted);
    return ok;
}

static bool load_llama(Tokenizer *t, const char *name, const Gguf *g, int64_t unk, Hash *h, Err *e) {
    Arena tmp = {0};
    double *scores;
    Bpe *b = &t->bpe;
    b->byte_fallback = b->fuse_unk = true;
    b->unk_id = (int32_t)unk;
    bool ok = load_scores(&scores, t, &tmp, name, g, h, e) &&
              bpe_init(b, &t->vocab, (size_t)t->vocab.n_ids * 2, e) && build_merges(t, scores, e);
    arena_free(&tmp);
    return ok;
}

/* ---- t5 ---- */

static bool load_charsmap(Tokenizer *t, const char *name, const Gguf *g, Hash *h, Err *e) {
    const GgufValue *v = gguf_find(g, "tokenizer.ggml.precompiled_charsmap");
    if (!v) return true;
    if (v->type != GGUF_ARRAY || (v->item_type != GGUF_U8 && v->item_type != GGUF_I8))
        return err_set(e, ERR_FORMAT, "%s: tokenizer.ggml.precompiled_charsmap 应是字节数组", name);
    if (v->n == 0) return true;
    NormStep *s = normalizer_add(&t->normalizer, NORM_CHARSMAP, name, e);
    uint8_t *blob = s ? arena_alloc(&t->arena, v->n, e) : NULL;
    if (!blob) return false;
    memcpy(blob, v->items, v->n);
    hash_add(h, blob, v->n);
    return charsmap_open(&s->charsmap, name, blob, v->n, e);
}

/* 去掉首尾的空格，中间的并成一个。 */
static bool squeeze(Normalizer *z, const char *name, Err *e) {
    NormStep *s = normalizer_add(z, NORM_STRIP, name, e);
    if (!s) return false;
    s->left = s->right = true;
    return normalizer_add_replace(z, name, " {2,}", 5, false, " ", 1, e);
}

static bool load_t5(Tokenizer *t, const char *name, const Gguf *g, int64_t unk, Hash *h, Err *e) {
    Unigram *u = &t->unigram;
    bool extra = false;
    u->unk_id = (int32_t)unk;
    u->n_scores = (size_t)t->vocab.n_ids;
    return gguf_get_bool(g, "tokenizer.ggml.remove_extra_whitespaces", &extra, e) &&
           load_charsmap(t, name, g, h, e) && (!extra || squeeze(&t->normalizer, name, e)) &&
           load_scores(&u->scores, t, &t->arena, name, g, h, e) &&
           unigram_init(u, &t->vocab, &t->arena, e);
}

/* 空格换成 ▁，段首补一个；解码时倒过来。 */
static bool load_spaces(Tokenizer *t, const char *name, bool prefix, bool bytes, Err *e) {
    Normalizer *z = &t->normalizer;
    NormStep *s = prefix ? normalizer_add(z, NORM_PREPEND, name, e) : NULL;
    if (prefix && !s) return false;
    if (s) s->text = MARK;
    if (s) s->len = 3;
    if (!normalizer_add_replace(z, name, " ", 1, true, MARK, 3, e)) return false;
    DecodeStep *d = decoder_add(&t->decoder, DECODE_REPLACE, name, e);
    if (!d || !rx_open(&d->rx, name, MARK, 3, true, e)) return false;
    d->extra = " ";
    d->n_extra = 1;
    if (bytes && !decoder_add(&t->decoder, DECODE_BYTE_FALLBACK, name, e)) return false;
    if (!prefix) return true;
    if (!decoder_add(&t->decoder, DECODE_FUSE, name, e) ||
        !(d = decoder_add(&t->decoder, DECODE_STRIP, name, e)))
        return false;
    d->text = " ";
    d->len = 1;
    d->start = 1;
    return true;
}

/* ---- bert ---- */

/* GGUF 把 "##x" 写成 "x"，词首的 "x" 写成 "▁x"。规范化同 llama.cpp：总是小写、去重音。 */
static bool load_bert(Tokenizer *t, const char *name, int64_t unk, Err *e) {
    Normalizer *z = &t->normalizer;
    WordPiece *w = &t->wordpiece;
    w->unk_id = (int32_t)unk;
    w->max_chars = INT32_MAX;
    DecodeStep *d = decoder_add(&t->decoder, DECODE_METASPACE, name, e);
    if (!d) return false;
    d->text = MARK;
    d->len = 3;
    d->flag = true;
    return normalizer_add_map(z, norm_map_bert_clean, name, e) &&
           normalizer_add_map(z, norm_map_bert_chinese, name, e) &&
           normalizer_add_form(z, NORM_NFD, name, e) &&
           normalizer_add_map(z, norm_map_bert_accents, name, e) &&
           normalizer_add_map(z, norm_map_lower, name, e) &&
           pretok_add_class(&t->pretok, name, class_space, false, SPLIT_REMOVED, false, e) &&
           pretok_add_class(&t->pretok, name, class_punct, false, SPLIT_ISOLATED, false, e) &&
           wordpiece_init(w, &t->vocab, &t->arena, "", 0, MARK, 3, e);
}

bool tokenizer_load_spm(Tokenizer *t, const char *name, const Gguf *g, SpmKind kind, Hash *h,
                        Err *e) {
    int64_t unk = kind == SPM_LLAMA ? 0 : kind == SPM_T5 ? 2 : 100, last = t->vocab.n_ids - 1;
    bool prefix = true;
    if (unk > last) unk = -1;
    if (!gguf_get_int(g, "tokenizer.ggml.unknown_token_id", false, 0, last, &unk, e) ||
        !gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", &prefix, e))
        return false;
    if (kind == SPM_BERT) return load_bert(t, name, unk, e);
    return (kind == SPM_LLAMA ? load_llama(t, name, g, unk, h, e) : load_t5(t, name, g, unk, h, e)) &&
           load_spaces(t, name, prefix, kind == SPM_LLAMA, e);
}
