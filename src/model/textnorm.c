/* textnorm — 文本的最底层：UTF-8、Unicode 规范化、字节级字母表
 * 规范化自己做「分解 → 按组合类稳定排序」，只把合成交给 utf8proc：
 * utf8proc 的排序是插入式的，遇到一长串组合符会变成平方时间。 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "model/tokenizer_internal.h"

/* 首字节 → 序列长度与第二字节的范围（Unicode 表 3-7）；0 表示不能作首字节。 */
static size_t lead_info(uint8_t b, uint8_t *lo, uint8_t *hi) {
    *lo = 0x80;
    *hi = 0xBF;
    if (b >= 0xC2 && b <= 0xDF) return 2;
    if (b >= 0xE0 && b <= 0xEF) {
        if (b == 0xE0) *lo = 0xA0;
        if (b == 0xED) *hi = 0x9F; /* 代理区 */
        return 3;
    }
    if (b >= 0xF0 && b <= 0xF4) {
        if (b == 0xF0) *lo = 0x90;
        if (b == 0xF4) *hi = 0x8F;
        return 4;
    }
    return 0;
}

int32_t utf8_next(const char *s, size_t n, size_t *len) {
    const uint8_t *p = (const uint8_t *)s;
    *len = 1;
    if (p[0] < 0x80) return p[0];
    uint8_t lo, hi;
    size_t want = lead_info(p[0], &lo, &hi);
    if (want == 0) return -1;
    int32_t cp = p[0] & (0xFF >> (want + 1));
    for (size_t i = 1; i < want; i++) {
        if (i >= n || p[i] < lo || p[i] > hi) {
            *len = i;
            return -1;
        }
        cp = cp << 6 | (p[i] & 0x3F);
        lo = 0x80;
        hi = 0xBF;
    }
    *len = want;
    return cp;
}

bool utf8_valid(const char *s, size_t n) {
    size_t len;
    for (size_t i = 0; i < n; i += len)
        if (utf8_next(s + i, n - i, &len) < 0) return false;
    return true;
}

void utf8_add_lossy(Str *out, const char *s, size_t n) {
    size_t good = 0, i = 0, len;
    if (n == 0) return; /* s 可能是 NULL */
    for (; i < n; i += len) {
        if (utf8_next(s + i, n - i, &len) >= 0) continue;
        str_addn(out, s + good, i - good);
        str_addn(out, "\xEF\xBF\xBD", 3);
        good = i + len;
    }
    str_addn(out, s + good, n - good);
}

void utf8_add(Str *out, int32_t cp) {
    uint8_t b[4];
    str_addn(out, (const char *)b, (size_t)utf8proc_encode_char(cp, b));
}

bool unicode_space(int32_t cp) {
    return (cp >= 0x09 && cp <= 0x0D) || cp == 0x20 || cp == 0x85 || cp == 0xA0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F ||
           cp == 0x205F || cp == 0x3000;
}

bool unicode_word(int32_t cp) {
    const char *fresh = cp >= 0x300 ? unicode_new_category(cp) : NULL;
    if (fresh)
        return fresh[0] == 'L' || fresh[0] == 'M' || strcmp(fresh, "Nd") == 0 ||
               strcmp(fresh, "Pc") == 0;
    switch (utf8proc_category(cp)) {
    case UTF8PROC_CATEGORY_LU: case UTF8PROC_CATEGORY_LL: case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM: case UTF8PROC_CATEGORY_LO: case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC: case UTF8PROC_CATEGORY_ME: case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL: case UTF8PROC_CATEGORY_PC:
        return true;
    default: /* Join_Control 与 Other_Alphabetic 中的圈字母 */
        return cp == 0x200C || cp == 0x200D || (cp >= 0x24B6 && cp <= 0x24E9) ||
               (cp >= 0x1F130 && cp <= 0x1F149) || (cp >= 0x1F150 && cp <= 0x1F169) ||
               (cp >= 0x1F170 && cp <= 0x1F189);
    }
}

bool unicode_numeric(int32_t cp) {
    if (cp < 0x80) return cp >= '0' && cp <= '9';
    const char *fresh = unicode_new_category(cp);
    if (fresh) return fresh[0] == 'N';
    utf8proc_category_t c = utf8proc_category(cp); /* 末两段是 Unicode 17 的 */
    return (c >= UTF8PROC_CATEGORY_ND && c <= UTF8PROC_CATEGORY_NO) ||
           (cp >= 0x11DE0 && cp <= 0x11DE9) || (cp >= 0x16FF4 && cp <= 0x16FF6);
}

/* ---- 规范化 ---- */

typedef struct CodePoints {
    utf8proc_int32_t *data;
    size_t n, cap;
} CodePoints;

static bool reserve(CodePoints *c, size_t more) {
    if (c->n + more <= c->cap) return true;
    size_t cap = c->cap ? c->cap : 256;
    while (cap < c->n + more) cap *= 2;
    if (cap > SIZE_MAX / sizeof *c->data) return false;
    void *p = realloc(c->data, cap * sizeof *c->data);
    if (!p) return false;
    c->data = p;
    c->cap = cap;
    return true;
}

static int combining_class(int32_t cp) {
    return cp < 0x300 ? 0 : utf8proc_get_property(cp)->combining_class;
}

/* 把 data[from..to)（都是组合符）按组合类稳定排序；tmp 至少同长。 */
static void sort_marks(utf8proc_int32_t *d, size_t n, utf8proc_int32_t *tmp) {
    size_t count[257] = {0};
    for (size_t i = 0; i < n; i++) count[combining_class(d[i]) + 1]++;
    for (int k = 1; k < 257; k++) count[k] += count[k - 1];
    for (size_t i = 0; i < n; i++) tmp[count[combining_class(d[i])]++] = d[i];
    memcpy(d, tmp, n * sizeof *d);
}

static bool reorder(CodePoints *c) {
    utf8proc_int32_t *tmp = NULL;
    for (size_t i = 0; i < c->n;) {
        if (combining_class(c->data[i]) == 0) {
            i++;
            continue;
        }
        size_t from = i;
        while (i < c->n && combining_class(c->data[i]) != 0) i++;
        if (i - from < 2) continue;
        if (!tmp && !(tmp = malloc(c->n * sizeof *tmp))) return false;
        sort_marks(c->data + from, i - from, tmp);
    }
    free(tmp);
    return true;
}

/* 把 [from, n) 的一段分解到 c，遇到不动的字符停下。返回: 停下的位置，出错则 SIZE_MAX。 */
static size_t decompose(CodePoints *c, const char *s, size_t from, size_t n, int options) {
    size_t len;
    for (size_t i = from; i < n; i += len) {
        int32_t cp = utf8_next(s + i, n - i, &len);
        if (unicode_norm_inert(cp)) return i;
        int boundary = 0;
        if (!reserve(c, 32)) return SIZE_MAX; /* 最长的分解为 18 个码点 */
        utf8proc_ssize_t got = utf8proc_decompose_char(
            cp, c->data + c->n, 32, (utf8proc_option_t)options, &boundary);
        if (got < 0 || got > 32) return SIZE_MAX;
        c->n += (size_t)got;
    }
    return n;
}

/* 规范化从 from 起的一段并追加到 out。返回: 段末，出错则 SIZE_MAX。 */
static size_t normalize_run(CodePoints *c, NormForm form, const char *s, size_t from, size_t n,
                            Str *out) {
    bool compat = form == NORM_NFKC || form == NORM_NFKD;
    bool compose = form == NORM_NFC || form == NORM_NFKC;
    int options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compat ? UTF8PROC_COMPAT : 0);
    c->n = 0;
    size_t end = decompose(c, s, from, n, options);
    if (end == SIZE_MAX || !reorder(c)) return SIZE_MAX;
    utf8proc_ssize_t count = (utf8proc_ssize_t)c->n;
    if (compose)
        count = utf8proc_normalize_utf32(c->data, count, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    for (utf8proc_ssize_t k = 0; k < count; k++) utf8_add(out, c->data[k]);
    return count < 0 ? SIZE_MAX : end;
}

bool unicode_normalize(NormForm form, const char *s, size_t n, Str *out, Err *e) {
    uint8_t limit = form == NORM_NFC ? 0xCC : 0x80; /* U+0300 之前的字符 NFC 不变 */
    size_t i = 0;
    while (i < n && (uint8_t)s[i] < limit) i++;
    if (i == n) {
        str_addn(out, s, n);
        return true;
    }
    CodePoints c = {0};
    for (i = 0; i < n && i != SIZE_MAX;) {
        i = normalize_run(&c, form, s, i, n, out);
        size_t len = 0;
        if (i >= n) break;
        utf8_next(s + i, n - i, &len); /* 不动的字符原样照抄 */
        str_addn(out, s + i, len);
        i += len;
    }
    free(c.data);
    if (i == SIZE_MAX || out->failed)
        return err_set(e, ERR_MEMORY, "内存不足：规范化 %zu 字节的文本", n);
    return true;
}

/* ---- 字节级字母表 ---- */

/* 可打印的 ASCII 与 Latin-1 字节对应自身，其余 68 个依次对应 U+0100 起的码点。 */
static bool byte_is_plain(int b) {
    return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xFF && b != 0xAD);
}

int32_t byte_to_char(uint8_t b) {
    if (byte_is_plain(b)) return b;
    if (b <= 0x20) return 0x100 + b;
    return b == 0xAD ? 0x143 : 0x121 + (b - 0x7F);
}

int byte_from_char(int32_t cp) {
    if (cp < 0x100) return byte_is_plain(cp) ? cp : -1;
    if (cp <= 0x120) return cp - 0x100;
    if (cp <= 0x142) return 0x7F + (cp - 0x121);
    return cp == 0x143 ? 0xAD : -1;
}

int byte_token_value(const char *text, size_t len) {
    if (len != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
    int v = 0;
    for (int i = text[3] == '+' ? 4 : 3; i < 5; i++) { /* Rust 收开头的加号 */
        int c = text[i] | 0x20, d = c >= '0' && c <= '9' ? c - '0' : c - 'a' + 10;
        if (!isxdigit((unsigned char)text[i])) return -1;
        v = v * 16 + d;
    }
    return v;
}
