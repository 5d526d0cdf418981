/* pystr — Python 的 str 操作的实现
 * 码位性质取自 utf8proc，一对多的大小写取自 pystr_case；数的写法用能原样读回的最短十进制。 */
#include "tasks/pystr.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/pytext.h"
#include "tasks/pystr_case.h"

PyText py_text(const char *s) {
    return (PyText){s, strlen(s)};
}

bool py_same(PyText a, PyText b) {
    return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

int32_t py_next(PyText t, size_t *at) {
    utf8proc_int32_t cp;
    utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)t.p + *at,
                                          (utf8proc_ssize_t)(t.n - *at), &cp);
    if (n > 0) {
        *at += (size_t)n;
        return cp;
    }
    (*at)++;
    return 0xFFFD;
}

bool py_valid(PyText t) {
    utf8proc_int32_t cp;
    for (size_t at = 0; at < t.n;) {
        utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)t.p + at,
                                              (utf8proc_ssize_t)(t.n - at), &cp);
        if (n <= 0) return false;
        at += (size_t)n;
    }
    return true;
}

void py_add(Str *out, int32_t cp) {
    utf8proc_uint8_t buf[4];
    utf8proc_ssize_t n = utf8proc_encode_char(cp, buf);
    str_addn(out, (const char *)buf, (size_t)n);
}

size_t py_length(PyText t) {
    size_t n = 0;
    for (size_t i = 0; i < t.n; i++) n += ((unsigned char)t.p[i] & 0xC0) != 0x80;
    return n;
}

size_t py_offset(PyText t, size_t i) {
    size_t at = 0;
    while (i-- > 0 && at < t.n) py_next(t, &at);
    return at;
}

bool py_isspace(int32_t c) {
    return pytext_is_space((uint32_t)c);
}

bool py_isdigit_cp(int32_t c) {
    return utf8proc_category(c) == UTF8PROC_CATEGORY_ND || py_special_digit(c);
}

bool py_isalpha_cp(int32_t c) {
    utf8proc_category_t k = utf8proc_category(c);
    return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
}

bool py_isalnum_cp(int32_t c) {
    utf8proc_category_t k = utf8proc_category(c);
    return py_isalpha_cp(c) || (k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO);
}

bool py_isprintable(int32_t c) {
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP: return false;
    case UTF8PROC_CATEGORY_ZS: return c == ' ';
    default: return true;
    }
}

size_t py_find(PyText text, PyText what, size_t from) {
    if (from > text.n || what.n > text.n - from) return SIZE_MAX;
    if (what.n == 0) return from;
    const char *p = memmem(text.p + from, text.n - from, what.p, what.n);
    return p ? (size_t)(p - text.p) : SIZE_MAX;
}

size_t py_rfind(PyText text, PyText what, size_t end) {
    if (end > text.n) end = text.n;
    for (size_t at = end < what.n ? SIZE_MAX : end - what.n; at != SIZE_MAX; at--)
        if (memcmp(text.p + at, what.p, what.n) == 0) return at;
    return SIZE_MAX;
}

static bool in_set(PyText chars, int32_t cp) {
    if (!chars.p) return py_isspace(cp);
    for (size_t at = 0; at < chars.n;)
        if (py_next(chars, &at) == cp) return true;
    return false;
}

PyText py_strip(PyText t, PyText chars, bool left, bool right) {
    while (left && t.n) {
        size_t at = 0;
        if (!in_set(chars, py_next(t, &at))) break;
        t.p += at;
        t.n -= at;
    }
    while (right && t.n) {
        size_t start = t.n - 1;
        while (start > 0 && ((unsigned char)t.p[start] & 0xC0) == 0x80) start--;
        size_t at = start;
        if (!in_set(chars, py_next(t, &at))) break;
        t.n = start;
    }
    return t;
}

static void add_upper(Str *out, int32_t cp, bool title) {
    const char *special = py_special_case(cp, title);
    if (special)
        str_add(out, special);
    else
        py_add(out, title ? utf8proc_totitle(cp) : utf8proc_toupper(cp));
}

void py_upper(Str *out, PyText t) {
    for (size_t at = 0; at < t.n;) add_upper(out, py_next(t, &at), false);
}

static bool cased(int32_t c) {
    utf8proc_category_t k = utf8proc_category(c);
    return k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT ||
           utf8proc_toupper(c) != c || utf8proc_tolower(c) != c;
}

static bool case_ignorable(int32_t c) {
    utf8proc_category_t k = utf8proc_category(c);
    return k == UTF8PROC_CATEGORY_MN || k == UTF8PROC_CATEGORY_ME || k == UTF8PROC_CATEGORY_CF ||
           k == UTF8PROC_CATEGORY_LM || k == UTF8PROC_CATEGORY_SK || c == '\'' || c == '.' ||
           c == ':' || c == 0xB7 || c == 0x2019;
}

/* Σ 在词末写成 ς：前面（跳过可忽略者）有字母、后面没有。t.p[start, end) 是这个 Σ。 */
static bool final_sigma(PyText t, size_t start, size_t end) {
    bool before = false;
    while (start > 0) {
        do start--;
        while (start > 0 && ((unsigned char)t.p[start] & 0xC0) == 0x80);
        size_t at = start;
        int32_t c = py_next(t, &at);
        if (case_ignorable(c)) continue;
        before = cased(c);
        break;
    }
    while (before && end < t.n) {
        int32_t c = py_next(t, &end);
        if (!case_ignorable(c)) return !cased(c);
    }
    return before;
}

static void add_lower(Str *out, PyText t, size_t start, size_t end, int32_t cp) {
    if (cp == 0x130)
        str_add(out, "i\xCC\x87");
    else if (cp == 0x3A3)
        py_add(out, final_sigma(t, start, end) ? 0x3C2 : 0x3C3);
    else
        py_add(out, utf8proc_tolower(cp));
}

void py_lower(Str *out, PyText t) {
    for (size_t at = 0; at < t.n;) {
        size_t start = at;
        int32_t cp = py_next(t, &at);
        add_lower(out, t, start, at, cp);
    }
}

void py_capitalize(Str *out, PyText t) {
    for (size_t at = 0; at < t.n;) {
        size_t start = at;
        int32_t cp = py_next(t, &at);
        if (start == 0)
            add_upper(out, cp, true);
        else
            add_lower(out, t, start, at, cp);
    }
}

void py_title(Str *out, PyText t) {
    bool inside = false;
    for (size_t at = 0; at < t.n;) {
        size_t start = at;
        int32_t cp = py_next(t, &at);
        if (inside)
            add_lower(out, t, start, at, cp);
        else
            add_upper(out, cp, true);
        inside = cased(cp);
    }
}

void py_swapcase(Str *out, PyText t) {
    for (size_t at = 0; at < t.n;) {
        size_t start = at;
        int32_t cp = py_next(t, &at);
        if (utf8proc_category(cp) == UTF8PROC_CATEGORY_LU)
            add_lower(out, t, start, at, cp);
        else if (cased(cp))
            add_upper(out, cp, false);
        else
            py_add(out, cp);
    }
}

void py_replace(Str *out, PyText t, PyText old, PyText with, int64_t count) {
    size_t at = 0;
    while (count != 0 && at <= t.n) {
        size_t hit = py_find(t, old, at);
        if (hit == SIZE_MAX) break;
        str_addn(out, t.p + at, hit - at);
        str_addn(out, with.p, with.n);
        at = hit + old.n;
        if (count > 0) count--;
        if (old.n) continue;
        if (at >= t.n) return; /* 空串插在每个字符之间与两端 */
        size_t next = at;
        py_next(t, &next);
        str_addn(out, t.p + at, next - at);
        at = next;
    }
    if (at < t.n) str_addn(out, t.p + at, t.n - at);
}

void py_float(Str *out, double v) {
    if (isnan(v) || isinf(v)) {
        str_add(out, isnan(v) ? "nan" : v > 0 ? "inf" : "-inf");
        return;
    }
    char buf[40], digits[24] = "";
    int places = 17;
    for (int p = 1; p <= 17; p++) {
        snprintf(buf, sizeof buf, "%.*e", p - 1, v);
        places = p;
        if (strtod(buf, NULL) == v) break;
    }
    long exponent = strtol(strchr(buf, 'e') + 1, NULL, 10);
    if (exponent >= -4 && exponent < 16) {
        int decimals = places - 1 - (int)exponent;
        str_addf(out, "%.*f", decimals > 0 ? decimals : 0, v);
        if (decimals <= 0) str_add(out, ".0");
        return;
    }
    snprintf(digits, sizeof digits, "%.*s", (int)(strchr(buf, 'e') - buf), buf);
    str_addf(out, "%se%c%02ld", digits, exponent < 0 ? '-' : '+', labs(exponent));
}

void py_repr(Str *out, PyText t) {
    bool single = memchr(t.p ? t.p : "", '\'', t.n), both = memchr(t.p ? t.p : "", '"', t.n);
    char quote = single && !both ? '"' : '\'';
    str_addn(out, &quote, 1);
    for (size_t at = 0; at < t.n;) {
        size_t start = at;
        int32_t c = py_next(t, &at);
        if (c == quote || c == '\\')
            str_addf(out, "\\%c", (char)c);
        else if (c == '\n' || c == '\r' || c == '\t')
            str_add(out, c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t");
        else if (py_isprintable(c))
            str_addn(out, t.p + start, at - start);
        else
            str_addf(out, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)c);
    }
    str_addn(out, &quote, 1);
}

/* 去掉下划线（只许在两个数字之间）抄到 buf。 */
static bool plain_number(PyText t, char *buf, size_t cap) {
    size_t n = 0;
    t = py_strip(t, (PyText){0}, true, true);
    for (size_t i = 0; i < t.n; i++) {
        char c = t.p[i];
        if (c == '_') {
            bool inside = i > 0 && i + 1 < t.n && t.p[i - 1] != '_' && !strchr("+-.", t.p[i - 1]);
            if (!inside) return false;
            continue;
        }
        if (n + 1 >= cap || c == '\0') return false;
        buf[n++] = c;
    }
    buf[n] = '\0';
    return n > 0;
}

bool py_parse_float(PyText t, double *v) {
    char buf[512], *end;
    if (!plain_number(t, buf, sizeof buf) || strpbrk(buf, "xXpP()")) return false;
    *v = strtod(buf, &end);
    return end != buf && *end == '\0';
}

bool py_parse_int(PyText t, int base, int64_t *v, bool *overflow) {
    char buf[512], *end;
    *overflow = false;
    if (!plain_number(t, buf, sizeof buf)) return false;
    char *p = buf + (*buf == '-' || *buf == '+');
    char kind = p[0] == '0' ? (char)(p[1] | 0x20) : 0;
    int prefix = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 0;
    if (prefix && (base == 0 || base == prefix)) {
        base = prefix;
        memmove(p, p + 2, strlen(p + 2) + 1);
    } else if (base == 0) {
        if (p[0] == '0' && p[strspn(p, "0")] != '\0') return false; /* int("012", 0) 不行 */
        base = 10;
    }
    if (!(*p >= '0' && *p <= '9') && !((*p | 0x20) >= 'a' && (*p | 0x20) <= 'z')) return false;
    errno = 0;
    *v = strtoll(buf, &end, base);
    if (*end != '\0' || end == buf) return false;
    *overflow = errno == ERANGE;
    return true;
}
