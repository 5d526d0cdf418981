/* tokenizer — 分词器的公共接口与流水线
 * 编码: 修补 UTF-8 → 匹配不规范化的添加 token → 其余各段规范化 → 匹配其余添加 token → 预切分 → 模型；
 * 最后按模板在前后加 BOS/EOS。解码: 各 token 的文本经 decoder 相接。 */
#include "model/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"

/* ---- TokenIds ---- */

bool token_ids_add(TokenIds *t, int32_t id, Err *e) {
    if (t->n == t->cap) {
        size_t cap = t->cap ? t->cap * 2 : 256;
        int32_t *p = cap <= SIZE_MAX / sizeof *p ? realloc(t->ids, cap * sizeof *p) : NULL;
        if (!p) return err_set(e, ERR_MEMORY, "内存不足：%zu 个 token id", cap);
        t->ids = p;
        t->cap = cap;
    }
    t->ids[t->n++] = id;
    return true;
}

void token_ids_free(TokenIds *t) {
    free(t->ids);
    *t = (TokenIds){0};
}

/* ---- 编码 ---- */

typedef struct Encoder {
    const Tokenizer *t;
    BpeWork *bpe;
    UnigramWork unigram;
    PieceCache cache;
    PretokWork *pretok;
    NormWork norm;
    TokenIds *out;
    const char *text; /* 原文的开头 */
} Encoder;

static bool encode_piece(Encoder *x, const char *s, size_t n, Err *e) {
    const Tokenizer *t = x->t;
    switch (t->kind) {
    case MODEL_BPE: return bpe_encode(&t->bpe, x->bpe, s, n, x->out, e);
    case MODEL_UNIGRAM: return unigram_encode(&t->unigram, &x->unigram, s, n, x->out, e);
    case MODEL_WORDPIECE: return wordpiece_encode(&t->wordpiece, s, n, x->out, e);
    case MODEL_WORDLEVEL: return wordlevel_encode(&t->wordpiece, s, n, x->out, e);
    }
    return false;
}

static bool emit_piece(void *ctx, const char *s, size_t n, Err *e) {
    Encoder *x = ctx;
    const Tokenizer *t = x->t;
    if (n == 1 && t->kind == MODEL_BPE && t->bpe.raw_bytes && t->bpe.alphabet[(uint8_t)s[0]] >= 0)
        return token_ids_add(x->out, t->bpe.alphabet[(uint8_t)s[0]], e);
    int hit = n <= PIECE_CACHE_KEY ? piece_cache_get(&x->cache, s, n, x->out, e) : 0;
    size_t from = x->out->n;
    if (hit) return hit > 0;
    return encode_piece(x, s, n, e) && piece_cache_put(&x->cache, s, n, x->out, from, e);
}

typedef bool (*SegmentFn)(Encoder *x, NormText t, Err *e);

/* 用 trie 找出 s 中的添加 token，其余各段交给 next。 */
static bool split_added(Encoder *x, const Trie *trie, NormText t, SegmentFn next, Err *e) {
    AddedScan scan = {0};
    AddedHit hit;
    while (added_next(&x->t->added, trie, t.s, t.n, &scan, &hit)) {
        NormText part = {t.s + scan.from, hit.start - scan.from,
                         t.zero > scan.from ? t.zero - scan.from : 0};
        if (scan.from < hit.start && !next(x, part, e)) return false;
        /* 空的匹配（空白已被前一个吞掉）不算，与 HF 相同 */
        if (hit.start < hit.end && !token_ids_add(x->out, hit.id, e)) return false;
        scan.from = hit.end;
    }
    NormText rest = {t.s + scan.from, t.n - scan.from, t.zero > scan.from ? t.zero - scan.from : 0};
    return rest.n == 0 || next(x, rest, e);
}

static bool encode_plain(Encoder *x, NormText t, Err *e) {
    return pretok_run(&x->t->pretok, x->pretok, t, emit_piece, x, e);
}

static bool encode_segment(Encoder *x, NormText t, Err *e) {
    return normalizer_run(&x->t->normalizer, &x->norm, &t, e) &&
           (t.n == 0 || split_added(x, &x->t->added.normalized, t, encode_plain, e));
}

/* 一段原文：原文开头的第一个字符要记住（NormText 的 zero）。 */
static bool encode_raw(Encoder *x, NormText t, Err *e) {
    t.zero = 0;
    if (t.s == x->text) utf8_next(t.s, t.n, &t.zero);
    return encode_segment(x, t, e);
}

static bool add_list(const TokenList *l, TokenIds *out, Err *e) {
    for (size_t i = 0; i < l->n; i++)
        if (!token_ids_add(out, l->ids[i], e)) return false;
    return true;
}

bool tokenizer_encode(const Tokenizer *t, const char *text, size_t len, bool add_special,
                      TokenIds *out, Err *e) {
    Encoder x = {.t = t, .out = out, .bpe = bpe_work_new(), .pretok = pretok_work_new()};
    Str fixed = {0};
    bool ok = x.bpe && x.pretok;
    if (ok && !utf8_valid(text, len)) {
        utf8_add_lossy(&fixed, text, len);
        ok = !fixed.failed;
        text = fixed.data;
        len = fixed.len;
    }
    if (!ok) err_set(e, ERR_MEMORY, "内存不足：编码 %zu 字节的文本", len);
    size_t from = out->n;
    x.text = text;
    ok = ok && (!add_special || add_list(&t->prefix, out, e)) &&
         (len == 0 || split_added(&x, &t->added.raw, (NormText){text, len, 0}, encode_raw, e)) &&
         (!add_special || add_list(&t->suffix, out, e));
    if (!ok) out->n = from;
    bpe_work_free(x.bpe);
    free(x.unigram.nodes);
    piece_cache_free(&x.cache);
    pretok_work_free(x.pretok);
    norm_work_free(&x.norm);
    str_free(&fixed);
    return ok;
}

/* ---- 解码 ---- */

static bool collect(const Tokenizer *t, const int32_t *ids, size_t n, bool skip_special,
                    TokenTexts *out, Err *e) {
    const Vocab *v = &t->vocab;
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= v->n_ids)
            return err_set(e, ERR_FORMAT, "第 %zu 个 id %d 超出词表（0 到 %d）", i, ids[i],
                           v->n_ids - 1);
        const VocabEntry *k = &v->by_id[ids[i]];
        const AddedToken *added = k->added ? &t->added.items[k->added - 1] : NULL;
        if (!k->text || (added && added->hidden && skip_special)) continue; /* 空缺 HF 也跳过 */
        str_addn(&out->text, added ? added->shown : k->text, added ? added->n_shown : k->len);
        if (!token_texts_end(out, e)) return false;
    }
    return true;
}

bool tokenizer_decode(const Tokenizer *t, const int32_t *ids, size_t n, bool skip_special, Str *out,
                      Err *e) {
    TokenTexts texts = {0};
    Str raw = {0};
    bool ok = collect(t, ids, n, skip_special, &texts, e) &&
              decoder_run(&t->decoder, &texts, &raw, e);
    if (ok) utf8_add_lossy(out, raw.data, raw.len);
    if (ok && out->failed) ok = err_set(e, ERR_MEMORY, "内存不足：解码 %zu 个 id", n);
    token_texts_free(&texts);
    str_free(&raw);
    return ok;
}

/* ---- 建立 ---- */

Tokenizer *tokenizer_new(Err *e) {
    Tokenizer *t = calloc(1, sizeof *t);
    if (!t) {
        err_set(e, ERR_MEMORY, "内存不足：分词器");
        return NULL;
    }
    t->bos = t->eos = t->bpe.unk_id = t->added.max_id = -1;
    t->unigram.unk_id = t->wordpiece.unk_id = -1;
    return t;
}

bool tokenizer_add_token(Tokenizer *t, const char *name, AddedToken *token, Err *e) {
    Vocab *v = &t->vocab;
    token->id = vocab_find(v, token->text, token->len);
    if (token->id < 0) {
        token->id = t->added.max_id >= t->n_model ? t->added.max_id + 1 : t->n_model;
        if (!vocab_add(v, name, token->text, token->len, token->id, e)) return false;
        v->by_id[token->id].extra = true;
    }
    VocabEntry *entry = &v->by_id[token->id];
    token->text = entry->text;
    return added_put(&t->added, &t->arena, token, entry, e);
}

/* 写 "<|begin_of_text|>(128000)"。 */
static void describe(Str *s, const Tokenizer *t, const TokenList *l) {
    for (size_t i = 0; i < l->n; i++) {
        const VocabEntry *v = &t->vocab.by_id[l->ids[i]];
        str_add(s, i ? "、" : "");
        utf8_add_lossy(s, v->text, v->len > 64 ? 64 : v->len);
        str_addf(s, "(%d)", l->ids[i]);
    }
}

/* 末级是字节级字母表时由 BPE 直接按字节处理，不必真的换成字母表。 */
static void fuse_byte_level(Tokenizer *t) {
    Bpe *b = &t->bpe;
    bool last = t->pretok.n && t->pretok.stages[t->pretok.n - 1].kind == PRETOK_BYTES;
    if (t->kind != MODEL_BPE || !last || b->byte_fallback || b->n_prefix || b->n_suffix) return;
    b->raw_bytes = true;
    t->pretok.n--;
}

bool tokenizer_finish(Tokenizer *t, const char *name, Err *e) {
    fuse_byte_level(t);
    if (!added_build(&t->added, &t->arena, &t->vocab, &t->normalizer, e)) return err_wrap(e, "%s", name);
    Str s = {0};
    if (t->prefix.n) {
        str_add(&s, "按模型文件在开头添加 ");
        describe(&s, t, &t->prefix);
    }
    if (t->suffix.n) {
        str_add(&s, t->prefix.n ? "，在末尾添加 " : "按模型文件在末尾添加 ");
        describe(&s, t, &t->suffix);
    }
    if (!s.len) str_add(&s, "不添加");
    t->bos_policy = s.failed ? NULL : arena_strdup(&t->arena, s.data, e);
    bool ok = t->bos_policy || (s.failed && err_set(e, ERR_MEMORY, "内存不足：分词器"));
    str_free(&s);
    return ok;
}

void tokenizer_close(Tokenizer *t) {
    if (!t) return;
    normalizer_close(&t->normalizer);
    pretok_free(&t->pretok);
    decoder_close(&t->decoder);
    arena_free(&t->arena);
    free(t);
}

/* ---- 查询 ---- */

int32_t tokenizer_vocab_size(const Tokenizer *t) {
    return t->vocab.n_ids;
}

int32_t tokenizer_bos(const Tokenizer *t) {
    return t->bos;
}

int32_t tokenizer_eos(const Tokenizer *t) {
    return t->eos;
}

bool tokenizer_adds_bos(const Tokenizer *t) {
    return t->prefix.n > 0;
}

const char *tokenizer_bos_policy(const Tokenizer *t) {
    return t->bos_policy;
}

const char *tokenizer_sha256(const Tokenizer *t) {
    return t->sha256;
}
