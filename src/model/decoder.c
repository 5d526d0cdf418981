/* decoder — 解码：各 token 的文本 → 一段文本
 * HF 的各种 decoder 都是「一串文本 → 一串文本」，依次做完后首尾相接；没有 decoder 时以空格相接。
 * 文本可能短暂地不是合法 UTF-8（字节 token 拼接之前），换成 U+FFFD 的规则各步自理。 */
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"

#define DECODED_MAX ((size_t)1 << 30) /* 坏文件的替换可以成倍变长 */

bool token_texts_end(TokenTexts *t, Err *e) {
    if (t->n == t->cap) {
        size_t cap = t->cap ? t->cap * 2 : 256;
        size_t *p = cap <= SIZE_MAX / sizeof *p ? realloc(t->ends, cap * sizeof *p) : NULL;
        if (!p) return err_set(e, ERR_MEMORY, "内存不足：解码");
        t->ends = p;
        t->cap = cap;
    }
    t->ends[t->n++] = t->text.len;
    return true;
}

void token_texts_free(TokenTexts *t) {
    str_free(&t->text);
    free(t->ends);
    *t = (TokenTexts){0};
}

DecodeStep *decoder_add(Decoder *d, DecodeKind kind, const char *where, Err *e) {
    if (d->n == DECODE_MAX) {
        err_set(e, ERR_UNSUPPORTED, "%s: decoder 超过 %d 步", where, DECODE_MAX);
        return NULL;
    }
    DecodeStep *s = &d->steps[d->n++];
    *s = (DecodeStep){.kind = kind};
    return s;
}

void decoder_close(Decoder *d) {
    for (size_t i = 0; i < d->n; i++) rx_close(&d->steps[i].rx);
    d->n = 0;
}

typedef struct Item {
    const char *s;
    size_t n;
} Item;

static Item item_at(const TokenTexts *t, size_t i) {
    size_t from = i ? t->ends[i - 1] : 0;
    return (Item){t->text.data ? t->text.data + from : "", t->ends[i] - from};
}

static bool item_is(Item a, const char *text, size_t len) {
    return a.n == len && (len == 0 || memcmp(a.s, text, len) == 0);
}

static bool item_starts(Item a, const char *text, size_t len) {
    return a.n >= len && (len == 0 || memcmp(a.s, text, len) == 0);
}

/* 把 from（非空）的每一处换成 to。 */
static void add_replaced(Str *out, const char *s, size_t n, const char *from, size_t n_from,
                         const char *to) {
    while (n_from && n) {
        const char *p = memmem(s, n, from, n_from);
        if (!p) break;
        str_addn(out, s, (size_t)(p - s));
        str_add(out, to);
        n -= (size_t)(p - s) + n_from;
        s = p + n_from;
    }
    str_addn(out, s, n);
}

/* HF 的 cleanup：英文标点前的空格与缩写。在 buf 的 [from, 末尾) 上就地做。 */
static void cleanup(Str *buf, size_t from, Str *tmp) {
    static const char *const PAIRS[][2] = {
        {" .", "."},      {" ?", "?"},   {" !", "!"},           {" ,", ","},
        {" ' ", "'"},     {" n't", "n't"}, {" 'm", "'m"},       {" do not", " don't"},
        {" 's", "'s"},    {" 've", "'ve"}, {" 're", "'re"}};
    if (buf->failed || !memchr(buf->data + from, ' ', buf->len - from)) return;
    for (size_t i = 0; i < sizeof PAIRS / sizeof *PAIRS; i++) {
        tmp->len = 0;
        add_replaced(tmp, buf->data + from, buf->len - from, PAIRS[i][0], strlen(PAIRS[i][0]),
                     PAIRS[i][1]);
        if (tmp->failed) buf->failed = true;
        buf->len = from;
        str_addn(buf, tmp->data, tmp->len);
    }
}

/* ---- 各步：t → out ---- */

/* 每个字符都在字节级字母表中则还原成字节，否则取原文。 */
static void add_token_bytes(Str *raw, Item a) {
    size_t from = raw->len, len;
    for (size_t i = 0; i < a.n; i += len) {
        int b = byte_from_char(utf8_next(a.s + i, a.n - i, &len));
        if (b < 0) {
            raw->len = from;
            str_addn(raw, a.s, a.n);
            return;
        }
        str_addn(raw, (const char[]){(char)b}, 1);
    }
}

static bool byte_level(const TokenTexts *t, TokenTexts *out, Str *tmp, Err *e) {
    tmp->len = 0;
    for (size_t i = 0; i < t->n; i++) add_token_bytes(tmp, item_at(t, i));
    utf8_add_lossy(&out->text, tmp->data, tmp->len);
    if (tmp->failed) out->text.failed = true;
    return token_texts_end(out, e);
}

static bool wordpiece(const DecodeStep *st, const TokenTexts *t, TokenTexts *out, Str *tmp, Err *e) {
    for (size_t i = 0; i < t->n; i++) {
        Item a = item_at(t, i);
        size_t from = out->text.len;
        bool inner = i > 0 && item_starts(a, st->text, st->len);
        if (i > 0 && !inner) str_add(&out->text, " ");
        size_t skip = inner ? st->len : 0;
        str_addn(&out->text, a.s + skip, a.n - skip);
        if (st->flag) cleanup(&out->text, from, tmp);
        if (!token_texts_end(out, e)) return false;
    }
    return true;
}

static bool metaspace(const DecodeStep *st, const TokenTexts *t, TokenTexts *out, Err *e) {
    for (size_t i = 0; i < t->n; i++) {
        Item a = item_at(t, i);
        add_replaced(&out->text, a.s, a.n, st->text, st->len, i == 0 && st->flag ? "" : " ");
        if (!token_texts_end(out, e)) return false;
    }
    return true;
}

static bool bpe(const DecodeStep *st, const TokenTexts *t, TokenTexts *out, Err *e) {
    for (size_t i = 0; i < t->n; i++) {
        Item a = item_at(t, i);
        add_replaced(&out->text, a.s, a.n, st->text, st->len, i + 1 == t->n ? "" : " ");
        if (!token_texts_end(out, e)) return false;
    }
    return true;
}

/* 一串字节：合法则是一项文本，否则每个字节一项 U+FFFD。 */
static bool flush_bytes(TokenTexts *out, Str *bytes, Err *e) {
    if (bytes->failed) out->text.failed = true;
    bool valid = utf8_valid(bytes->data, bytes->len);
    size_t n = valid ? bytes->len > 0 : bytes->len;
    for (size_t i = 0; i < n; i++) {
        if (valid)
            str_addn(&out->text, bytes->data, bytes->len);
        else
            str_add(&out->text, "\xEF\xBF\xBD");
        if (!token_texts_end(out, e)) return false;
    }
    bytes->len = 0;
    return true;
}

static bool byte_fallback(const TokenTexts *t, TokenTexts *out, Str *tmp, Err *e) {
    tmp->len = 0;
    for (size_t i = 0; i < t->n; i++) {
        Item a = item_at(t, i);
        int b = byte_token_value(a.s, a.n);
        if (b >= 0) {
            str_addn(tmp, (const char[]){(char)b}, 1);
            continue;
        }
        if (!flush_bytes(out, tmp, e)) return false;
        str_addn(&out->text, a.s, a.n);
        if (!token_texts_end(out, e)) return false;
    }
    return flush_bytes(out, tmp, e);
}

static bool strip(const DecodeStep *st, const TokenTexts *t, TokenTexts *out, Err *e) {
    for (size_t i = 0; i < t->n; i++) {
        Item a = item_at(t, i);
        for (int64_t k = 0; k < st->start && a.n && item_starts(a, st->text, st->len); k++) {
            a.s += st->len;
            a.n -= st->len;
        }
        for (int64_t k = 0; k < st->stop && a.n >= st->len &&
                            memcmp(a.s + a.n - st->len, st->text, st->len) == 0; k++)
            a.n -= st->len;
        str_addn(&out->text, a.s, a.n);
        if (!token_texts_end(out, e)) return false;
    }
    return true;
}

static bool replace(const DecodeStep *st, RxWork *w, const TokenTexts *t, TokenTexts *out, Err *e) {
    for (size_t i = 0; i < t->n; i++) {
        Item a = item_at(t, i);
        size_t done = 0, start, end;
        RxIter it = {0};
        int rc = 0;
        while (a.n && (rc = rx_next(&st->rx, w, a.s, a.n, &it, &start, &end, e)) > 0) {
            str_addn(&out->text, a.s + done, start - done);
            str_addn(&out->text, st->extra, st->n_extra);
            if (out->text.len > DECODED_MAX)
                return err_set(e, ERR_UNSUPPORTED, "解码的文本超过 %zu 字节", DECODED_MAX);
            done = end;
        }
        if (rc < 0) return false;
        str_addn(&out->text, a.s + done, a.n - done);
        if (!token_texts_end(out, e)) return false;
    }
    return true;
}

static bool ctc(const DecodeStep *st, const TokenTexts *t, TokenTexts *out, Str *tmp, Err *e) {
    for (size_t i = 0; i < t->n; i++) {
        Item a = item_at(t, i), before = i ? item_at(t, i - 1) : (Item){0};
        size_t from = out->text.len;
        if (i && item_is(a, before.s, before.n)) continue; /* 相邻的重复只算一个 */
        add_replaced(&out->text, a.s, a.n, st->text, st->len, "");
        if (st->flag && !out->text.failed) {
            cleanup(&out->text, from, tmp);
            tmp->len = 0;
            add_replaced(tmp, out->text.data + from, out->text.len - from, st->extra, st->n_extra,
                         " ");
            if (tmp->failed) out->text.failed = true;
            out->text.len = from;
            str_addn(&out->text, tmp->data, tmp->len);
        }
        if (out->text.len > from && !token_texts_end(out, e)) return false;
    }
    return true;
}

static bool run_step(const DecodeStep *st, RxWork *w, const TokenTexts *t, TokenTexts *out,
                     Str *tmp, Err *e) {
    switch (st->kind) {
    case DECODE_BYTE_LEVEL: return byte_level(t, out, tmp, e);
    case DECODE_WORDPIECE: return wordpiece(st, t, out, tmp, e);
    case DECODE_METASPACE: return metaspace(st, t, out, e);
    case DECODE_BPE: return bpe(st, t, out, e);
    case DECODE_BYTE_FALLBACK: return byte_fallback(t, out, tmp, e);
    case DECODE_FUSE:
        str_addn(&out->text, t->text.data, t->text.len);
        return token_texts_end(out, e);
    case DECODE_STRIP: return strip(st, t, out, e);
    case DECODE_REPLACE: return replace(st, w, t, out, e);
    case DECODE_CTC: return ctc(st, t, out, tmp, e);
    }
    return false;
}

bool decoder_run(const Decoder *d, TokenTexts *t, Str *out, Err *e) {
    TokenTexts next = {0};
    RxWork w = {0};
    Str tmp = {0};
    bool ok = true;
    for (size_t i = 0; ok && i < d->n; i++) {
        next.n = next.text.len = 0;
        ok = run_step(&d->steps[i], &w, t, &next, &tmp, e);
        TokenTexts swap = *t;
        *t = next;
        next = swap;
    }
    for (size_t i = 0; ok && d->spaces && i < t->n; i++) {
        Item a = item_at(t, i);
        if (i) str_add(out, " ");
        str_addn(out, a.s, a.n);
    }
    if (!d->spaces) str_addn(out, t->text.data, t->text.len);
    if (ok && (t->text.failed || out->failed)) ok = err_set(e, ERR_MEMORY, "内存不足：解码");
    rx_work_free(&w);
    token_texts_free(&next);
    str_free(&tmp);
    return ok;
}
