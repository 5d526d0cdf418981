/* normalizer — 规范化：一步步把一段文本换成另一段
 * 各步有四种做法：Unicode 规范形式、逐字符的变换（小写、去重音、BERT 的清理……）、替换、掐头去尾与前缀。
 * 另外跟踪「开头有多少字节出自原文第一个字符」（zero），Metaspace 的 prepend_scheme=first 靠它判断。 */
#include <string.h>

#include "model/tokenizer_internal.h"

#define GROWTH_MAX 256
#define GROWTH_FREE ((size_t)1 << 20) /* 短文本不计倍数 */

/* ---- 逐字符的变换 ---- */

void norm_map_lower(Str *out, int32_t cp) {
    unicode_add_lower(out, cp);
}

void norm_map_strip_accents(Str *out, int32_t cp) {
    if (!unicode_combining(cp)) utf8_add(out, cp);
}

void norm_map_bert_accents(Str *out, int32_t cp) {
    if (!unicode_nonspacing(cp)) utf8_add(out, cp);
}

/* SentencePiece nmt 规则的空白与控制字符。 */
void norm_map_nmt(Str *out, int32_t cp) {
    if ((cp >= 1 && cp <= 8) || cp == 0xB || (cp >= 0xE && cp <= 0x1F) || cp == 0x7F ||
        cp == 0x8F || cp == 0x9F)
        return;
    bool blank = cp == 9 || cp == 0xA || cp == 0xC || cp == 0xD || cp == 0x1680 ||
                 (cp >= 0x200B && cp <= 0x200F) || cp == 0x2028 || cp == 0x2029 || cp == 0x2581 ||
                 cp == 0xFEFF || cp == 0xFFFD;
    utf8_add(out, blank ? ' ' : cp);
}

void norm_map_bytes(Str *out, int32_t cp) {
    char raw[4];
    size_t from = out->len;
    utf8_add(out, cp);
    if (out->failed) return;
    size_t n = out->len - from;
    memcpy(raw, out->data + from, n);
    out->len = from;
    for (size_t i = 0; i < n; i++) utf8_add(out, byte_to_char((uint8_t)raw[i]));
}

void norm_map_bert_clean(Str *out, int32_t cp) {
    bool blank = cp == '\t' || cp == '\n' || cp == '\r';
    if (!blank && (cp == 0 || cp == 0xFFFD || unicode_control(cp))) return;
    utf8_add(out, blank || unicode_space(cp) ? ' ' : cp);
}

void norm_map_bert_chinese(Str *out, int32_t cp) {
    bool chinese = (cp >= 0x4E00 && cp <= 0x9FFF) || (cp >= 0x3400 && cp <= 0x4DBF) ||
                   (cp >= 0x20000 && cp <= 0x2A6DF) || (cp >= 0x2A700 && cp <= 0x2B81F) ||
                   (cp >= 0x2B920 && cp <= 0x2CEAF) || (cp >= 0xF900 && cp <= 0xFAFF) ||
                   (cp >= 0x2F800 && cp <= 0x2FA1F);
    if (chinese) str_add(out, " ");
    utf8_add(out, cp);
    if (chinese) str_add(out, " ");
}

/* ---- 建立 ---- */

NormStep *normalizer_add(Normalizer *z, NormKind kind, const char *where, Err *e) {
    if (z->n == NORM_STEPS) {
        err_set(e, ERR_UNSUPPORTED, "%s: normalizer 超过 %d 步", where, NORM_STEPS);
        return NULL;
    }
    NormStep *s = &z->steps[z->n++];
    *s = (NormStep){.kind = kind};
    return s;
}

bool normalizer_add_map(Normalizer *z, NormMap map, const char *where, Err *e) {
    NormStep *s = normalizer_add(z, NORM_MAP, where, e);
    if (s) s->map = map;
    return s != NULL;
}

bool normalizer_add_form(Normalizer *z, NormForm form, const char *where, Err *e) {
    NormStep *s = normalizer_add(z, NORM_FORM, where, e);
    if (s) s->form = form;
    return s != NULL;
}

bool normalizer_add_replace(Normalizer *z, const char *where, const char *pattern, size_t n_pattern,
                            bool literal, const char *text, size_t len, Err *e) {
    NormStep *s = normalizer_add(z, NORM_REPLACE, where, e);
    if (!s) return false;
    s->text = text;
    s->len = len;
    return rx_open(&s->rx, where, pattern, n_pattern, literal, e);
}

void normalizer_close(Normalizer *z) {
    for (size_t i = 0; i < z->n; i++) rx_close(&z->steps[i].rx);
    z->n = 0;
}

/* ---- 运行 ---- */

void norm_work_free(NormWork *w) {
    str_free(&w->buf[0]);
    str_free(&w->buf[1]);
    rx_work_free(&w->rx);
}

static bool run_form(NormForm form, NormText *t, Str *out, Err *e) {
    size_t zero = 0;
    if (t->zero) { /* 分解时第一个字符可能变成几个 */
        if (!unicode_normalize(form, t->s, t->zero, out, e)) return false;
        zero = out->len ? out->len : 1;
        out->len = 0;
    }
    t->zero = zero;
    return unicode_normalize(form, t->s, t->n, out, e);
}

static void run_map(NormMap map, NormText *t, Str *out) {
    size_t first = 0, len;
    for (size_t i = 0; i < t->n; i += len) {
        map(out, utf8_next(t->s + i, t->n - i, &len));
        if (i < t->zero) first = out->len;
    }
    t->zero = first;
}

static void run_strip(const NormStep *st, NormText *t) {
    size_t from = 0, to = t->n, len;
    while (st->left && from < to && unicode_space(utf8_next(t->s + from, to - from, &len)))
        from += len;
    while (st->right && to > from) {
        size_t k = to;
        do k--;
        while (k > from && ((uint8_t)t->s[k] & 0xC0) == 0x80);
        if (!unicode_space(utf8_next(t->s + k, to - k, &len))) break;
        to = k;
    }
    t->s += from;
    t->n = to - from;
    t->zero = t->zero > from ? t->zero - from : 0;
    if (t->zero > t->n) t->zero = t->n;
}

static void run_prepend(const NormStep *st, NormText *t, Str *out) {
    if (t->n) str_addn(out, st->text, st->len);
    str_addn(out, t->s, t->n);
    if (t->zero) t->zero += st->len;
}

/* 坏文件可以让每一步都成倍变长，必须有个限度。 */
static bool too_long(const NormWork *w, const Str *out, Err *e) {
    if (out->len <= w->limit) return false;
    err_set(e, ERR_UNSUPPORTED, "规范化后的文本超过原文的 %d 倍，分词器的 normalizer 不正常", GROWTH_MAX);
    return true;
}

static bool run_replace(const NormStep *st, NormWork *w, NormText *t, Str *out, Err *e) {
    size_t done = 0, start, end, zero = 0;
    RxIter it = {0};
    int rc;
    while ((rc = rx_next(&st->rx, &w->rx, t->s, t->n, &it, &start, &end, e)) > 0) {
        str_addn(out, t->s + done, start - done);
        if (done < t->zero) zero = out->len - (start > t->zero ? start - t->zero : 0);
        str_addn(out, st->text, st->len);
        if (too_long(w, out, e)) return false;
        if (end == 0 || end <= t->zero) zero = out->len; /* 替换的内容随匹配的最后一个字符 */
        done = end;
    }
    str_addn(out, t->s + done, t->n - done);
    if (done < t->zero) zero = out->len - (t->n - t->zero);
    t->zero = zero;
    return rc == 0;
}

static bool run_step(const NormStep *st, NormWork *w, NormText *t, Str *out, Err *e) {
    out->len = 0;
    switch (st->kind) {
    case NORM_STRIP: run_strip(st, t); return true;
    case NORM_FORM:
        if (!run_form(st->form, t, out, e)) return false;
        break;
    case NORM_MAP: run_map(st->map, t, out); break;
    case NORM_PREPEND: run_prepend(st, t, out); break;
    case NORM_REPLACE:
        if (!run_replace(st, w, t, out, e)) return false;
        break;
    case NORM_CHARSMAP: charsmap_run(&st->charsmap, t->s, t->n, out, &t->zero); break;
    }
    if (out->failed) return err_set(e, ERR_MEMORY, "内存不足：规范化 %zu 字节的文本", t->n);
    if (too_long(w, out, e)) return false;
    t->s = out->data ? out->data : "";
    t->n = out->len;
    if (t->zero > t->n) t->zero = t->n;
    while (t->zero < t->n && ((uint8_t)t->s[t->zero] & 0xC0) == 0x80) t->zero++; /* 整个字符 */
    return true;
}

bool normalizer_run(const Normalizer *z, NormWork *w, NormText *t, Err *e) {
    w->limit = GROWTH_FREE + (t->n < SIZE_MAX / 2 / GROWTH_MAX ? t->n * GROWTH_MAX : SIZE_MAX / 2);
    for (size_t i = 0, k = 0; i < z->n; i++) {
        if (!run_step(&z->steps[i], w, t, &w->buf[k], e)) return false;
        if (z->steps[i].kind != NORM_STRIP) k ^= 1; /* 掐头去尾就地做，不换缓冲 */
    }
    return true;
}
