/* charsmap — SentencePiece 的预编译替换表（normalizer 的 Precompiled、GGUF 的 precompiled_charsmap）
 * 内容是一棵 Darts 双数组字典树（键 → 替换文本的位置）加以 NUL 分隔的替换文本。
 * 用法同 spm_precompiled：逐字素查，短于 6 字节的字素整个查（取最短的前缀匹配），否则逐字符查。 */
#include <string.h>
#include <utf8proc.h>

#include "model/tokenizer_internal.h"

#define GRAPHEME_MAX 6 /* 不短于此的字素逐字符查 */

bool charsmap_open(Charsmap *m, const char *where, const void *blob, size_t len, Err *e) {
    const uint8_t *p = blob;
    if (len < 4) return err_set(e, ERR_FORMAT, "%s: 替换表不足 4 字节", where);
    size_t bytes = p[0] | (size_t)p[1] << 8 | (size_t)p[2] << 16 | (size_t)p[3] << 24;
    if (bytes > len - 4 || bytes % 4 != 0)
        return err_set(e, ERR_FORMAT, "%s: 替换表的树长 %zu 不对（共 %zu 字节）", where, bytes, len);
    *m = (Charsmap){p + 4, bytes / 4, (const char *)p + 4 + bytes, len - 4 - bytes};
    return utf8_valid(m->text, m->n_text) ||
           err_set(e, ERR_FORMAT, "%s: 替换表的文本不是合法的 UTF-8", where);
}

static uint32_t unit_at(const Charsmap *m, size_t i) {
    const uint8_t *p = m->units + i * 4;
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static size_t unit_offset(uint32_t unit) {
    return (size_t)(unit >> 10) << ((unit & 1u << 9) >> 6);
}

/* key 的最短前缀匹配。返回: 替换文本（*len 为长度），没有则 NULL。 */
static const char *lookup(const Charsmap *m, const char *key, size_t n, size_t *len) {
    if (m->n_units == 0) return NULL;
    size_t node = unit_offset(unit_at(m, 0));
    for (size_t i = 0; i < n && key[i]; i++) {
        node ^= (uint8_t)key[i];
        if (node >= m->n_units) return NULL;
        uint32_t unit = unit_at(m, node);
        if ((unit & (1u << 31 | 0xFF)) != (uint8_t)key[i]) return NULL;
        node ^= unit_offset(unit);
        if (!(unit >> 8 & 1)) continue;
        if (node >= m->n_units) return NULL;
        size_t at = unit_at(m, node) & 0x7FFFFFFF;
        if (at > m->n_text || (at < m->n_text && ((uint8_t)m->text[at] & 0xC0) == 0x80)) return NULL;
        *len = strnlen(m->text + at, m->n_text - at);
        return m->text + at;
    }
    return NULL;
}

/* 从 i 开始的字素的字节数。 */
static size_t grapheme(const char *s, size_t n) {
    size_t len, at;
    int32_t before = utf8_next(s, n, &at), state = 0;
    if (before < 0x80 && at < n && (uint8_t)s[at] < 0x80 && before != '\r') return at;
    while (at < n) {
        int32_t cp = utf8_next(s + at, n - at, &len);
        const char *fresh = cp >= 0x300 ? unicode_new_category(cp) : NULL;
        bool mark = fresh && fresh[0] == 'M' && before >= 0x20; /* utf8proc 还不认得的组合符 */
        if (!mark && utf8proc_grapheme_break_stateful(before, cp, &state)) break;
        before = cp;
        at += len;
    }
    return at;
}

static size_t count_chars(const char *s, size_t n) {
    size_t k = 0;
    for (size_t i = 0; i < n; i++) k += ((uint8_t)s[i] & 0xC0) != 0x80;
    return k;
}

/* 写一部分的结果，跟踪它是否算出自第一个字符。HF 对开头被删的字符不计位置，其后的都向前错位，照做。 */
typedef struct Track {
    size_t base, at, limit; /* out 的起点；已读的字符数；不到 limit 的算出自第一个字符 */
    size_t zero;
} Track;

static void add_part(Track *k, Str *out, const char *text, size_t len, size_t n_chars) {
    str_addn(out, text, len);
    if (out->len == k->base && k->limit) k->limit += n_chars;
    if (out->len > k->base && k->at < k->limit) k->zero = out->len - k->base;
    k->at += n_chars;
}

void charsmap_run(const Charsmap *m, const char *s, size_t n, Str *out, size_t *zero) {
    Track k = {.base = out->len, .limit = count_chars(s, *zero)};
    size_t len;
    for (size_t i = 0, g; i < n; i += g) {
        g = grapheme(s + i, n - i);
        const char *text = g < GRAPHEME_MAX ? lookup(m, s + i, g, &len) : NULL;
        if (text) {
            add_part(&k, out, text, len, k.limit ? count_chars(s + i, g) : 0);
            continue;
        }
        for (size_t j = 0, c; j < g; j += c) {
            utf8_next(s + i + j, g - j, &c);
            text = lookup(m, s + i + j, c, &len);
            add_part(&k, out, text ? text : s + i + j, text ? len : c, 1);
        }
    }
    *zero = k.zero;
}
