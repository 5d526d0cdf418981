/* tokenizer — 分词器的公共接口与流水线
 * 编码: 修补 UTF-8 → 匹配不规范化的添加 token → 其余各段规范化 → 匹配其余添加 token → 预切分 → 归并；
 * 最后按模板在前后加 BOS/EOS。解码: 各 token 的文本经字节级字母表还原成字节，再按 UTF-8 修补。 */
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
    PretokWork *pretok;
    Str norm[2]; /* 规范化的两个交替缓冲 */
    TokenIds *out;
} Encoder;

static bool emit_piece(void *ctx, const char *s, size_t n, Err *e) {
    Encoder *x = ctx;
    return bpe_encode(&x->t->bpe, x->bpe, s, n, x->out, e);
}

typedef bool (*SegmentFn)(Encoder *x, const char *s, size_t n, Err *e);

/* 用 trie 找出 s 中的添加 token，其余各段交给 next。 */
static bool split_added(Encoder *x, const Trie *trie, const char *s, size_t n, SegmentFn next,
                        Err *e) {
    AddedScan scan = {0};
    AddedHit hit;
    while (added_next(&x->t->added, trie, s, n, &scan, &hit)) {
        if (scan.from < hit.start && !next(x, s + scan.from, hit.start - scan.from, e))
            return false;
        if (!token_ids_add(x->out, hit.id, e)) return false;
        scan.from = hit.end;
    }
    return scan.from == n || next(x, s + scan.from, n - scan.from, e);
}

static bool encode_plain(Encoder *x, const char *s, size_t n, Err *e) {
    return pretok_run(&x->t->pretok, x->pretok, s, n, emit_piece, x, e);
}

static bool encode_segment(Encoder *x, const char *s, size_t n, Err *e) {
    for (size_t i = 0; i < x->t->n_norms; i++) {
        Str *to = &x->norm[i % 2];
        to->len = 0;
        if (!unicode_normalize(x->t->norms[i], s, n, to, e)) return false;
        s = to->data;
        n = to->len;
    }
    return n == 0 || split_added(x, &x->t->added.normalized, s, n, encode_plain, e);
}

static bool add_list(const TokenList *l, TokenIds *out, Err *e) {
    for (size_t i = 0; i < l->n; i++)
        if (!token_ids_add(out, l->ids[i], e)) return false;
    return true;
}

bool tokenizer_encode(const Tokenizer *t, const char *text, size_t len, bool add_special,
                      TokenIds *out, Err *e) {
    Encoder x = {.t = t, .out = out, .bpe = bpe_work_new(), .pretok = pretok_work_new(&t->pretok)};
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
    ok = ok && (!add_special || add_list(&t->prefix, out, e)) &&
         (len == 0 || split_added(&x, &t->added.raw, text, len, encode_segment, e)) &&
         (!add_special || add_list(&t->suffix, out, e));
    if (!ok) out->n = from;
    bpe_work_free(x.bpe);
    pretok_work_free(x.pretok);
    str_free(&x.norm[0]);
    str_free(&x.norm[1]);
    str_free(&fixed);
    return ok;
}

/* ---- 解码 ---- */

/* 追加一个 token 的字节：每个字符都在字节级字母表中则还原成字节，否则取其 UTF-8 原文。 */
static void add_token_bytes(Str *raw, const VocabEntry *v) {
    size_t from = raw->len, len;
    for (size_t i = 0; i < v->len; i += len) {
        int b = byte_from_char(utf8_next(v->text + i, v->len - i, &len));
        if (b < 0) {
            raw->len = from;
            str_addn(raw, v->text, v->len);
            return;
        }
        str_addn(raw, (const char[]){(char)b}, 1);
    }
}

bool tokenizer_decode(const Tokenizer *t, const int32_t *ids, size_t n, bool skip_special, Str *out,
                      Err *e) {
    const Vocab *v = &t->bpe.vocab;
    Str raw = {0};
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= v->n_ids) {
            str_free(&raw);
            return err_set(e, ERR_FORMAT, "第 %zu 个 id %d 超出词表（0 到 %d）", i, ids[i],
                           v->n_ids - 1);
        }
        const VocabEntry *k = &v->by_id[ids[i]];
        bool special = k->added && t->added.items[k->added - 1].special;
        if (k->text && !(special && skip_special)) /* 词表中的空缺，HF 也跳过 */
            add_token_bytes(&raw, k);
    }
    utf8_add_lossy(out, raw.data, raw.len);
    bool ok = !raw.failed && !out->failed;
    str_free(&raw);
    return ok || err_set(e, ERR_MEMORY, "内存不足：解码 %zu 个 id", n);
}

/* ---- 建立 ---- */

Tokenizer *tokenizer_new(Err *e) {
    Tokenizer *t = calloc(1, sizeof *t);
    if (!t) {
        err_set(e, ERR_MEMORY, "内存不足：分词器");
        return NULL;
    }
    t->bos = t->eos = t->bpe.unk_id = t->added.max_id = -1;
    return t;
}

bool tokenizer_add_token(Tokenizer *t, const char *name, AddedToken *token, Err *e) {
    Vocab *v = &t->bpe.vocab;
    token->id = vocab_find(v, token->text, token->len);
    if (token->id < 0) {
        token->id = t->added.max_id >= t->n_model ? t->added.max_id + 1 : t->n_model;
        if (!vocab_add(v, name, token->text, token->len, token->id, e)) return false;
    }
    VocabEntry *entry = &v->by_id[token->id];
    token->text = entry->text;
    return added_put(&t->added, &t->arena, token, entry, e);
}

/* 写 "<|begin_of_text|>(128000)"。 */
static void describe(Str *s, const Tokenizer *t, const TokenList *l) {
    for (size_t i = 0; i < l->n; i++) {
        const VocabEntry *v = &t->bpe.vocab.by_id[l->ids[i]];
        str_add(s, i ? "、" : "");
        utf8_add_lossy(s, v->text, v->len > 64 ? 64 : v->len);
        str_addf(s, "(%d)", l->ids[i]);
    }
}

bool tokenizer_finish(Tokenizer *t, const char *name, Err *e) {
    if (!added_build(&t->added, &t->arena, t->norms, t->n_norms, e)) return err_wrap(e, "%s", name);
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
    pretok_free(&t->pretok);
    arena_free(&t->arena);
    free(t);
}

/* ---- 查询 ---- */

int32_t tokenizer_vocab_size(const Tokenizer *t) {
    return t->bpe.vocab.n_ids;
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
