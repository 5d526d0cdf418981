/* str — 字符串小工具的实现
 * 显示宽度交给 utf8proc 的 East Asian Width 数据，不自带表。 */
#include "base/str.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static bool reserve(Str *s, size_t more) {
    if (s->failed) return false;
    if (more > SIZE_MAX / 4 || s->len > SIZE_MAX / 4) return !(s->failed = true);
    size_t need = s->len + more + 1;
    if (need <= s->cap) return true;
    size_t cap = s->cap ? s->cap : 64;
    while (cap < need) cap *= 2;
    char *p = realloc(s->data, cap);
    if (!p) {
        s->failed = true;
        return false;
    }
    s->data = p;
    s->cap = cap;
    return true;
}

void str_addn(Str *s, const char *text, size_t n) {
    if (!reserve(s, n)) return;
    if (n) memcpy(s->data + s->len, text, n);
    s->len += n;
    s->data[s->len] = '\0';
}

void str_add(Str *s, const char *text) {
    str_addn(s, text, strlen(text));
}

void str_addf(Str *s, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n >= 0 && reserve(s, (size_t)n)) {
        vsnprintf(s->data + s->len, (size_t)n + 1, fmt, again);
        s->len += (size_t)n;
    }
    va_end(again);
}

void str_free(Str *s) {
    free(s->data);
    *s = (Str){0};
}

size_t str_width(const char *utf8) {
    size_t w = 0;
    const utf8proc_uint8_t *p = (const utf8proc_uint8_t *)utf8;
    utf8proc_ssize_t left = (utf8proc_ssize_t)strlen(utf8);
    size_t last = 0;
    while (left > 0) {
        utf8proc_int32_t c;
        utf8proc_ssize_t n = utf8proc_iterate(p, left, &c);
        if (n <= 0) {
            n = 1;
            last = 1;
            w += 1;
        } else if (c == 0xFE0F) { /* 变体选择符-16：前一字符按 emoji 显示，占两列 */
            if (last == 1) w += 1;
            last = 0;
        } else {
            int cw = utf8proc_charwidth(c);
            last = cw > 0 ? (size_t)cw : 0;
            w += last;
        }
        p += n;
        left -= n;
    }
    return w;
}

void str_add_padded(Str *s, const char *text, size_t width, bool right) {
    size_t w = str_width(text), pad = w < width ? width - w : 0;
    if (right)
        for (size_t i = 0; i < pad; i++) str_addn(s, " ", 1);
    str_add(s, text);
    if (!right)
        for (size_t i = 0; i < pad; i++) str_addn(s, " ", 1);
}

/* Levenshtein 距离，名字长于 64 时只比前 64 字节。 */
static size_t edit_distance(const char *a, const char *b) {
    enum { MAX = 64 };
    size_t row[MAX + 1], na = strlen(a), nb = strlen(b);
    if (na > MAX) na = MAX;
    if (nb > MAX) nb = MAX;
    for (size_t j = 0; j <= nb; j++) row[j] = j;
    for (size_t i = 1; i <= na; i++) {
        size_t diag = row[0];
        row[0] = i;
        for (size_t j = 1; j <= nb; j++) {
            size_t up = row[j], best = diag + (a[i - 1] != b[j - 1]);
            if (up + 1 < best) best = up + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diag = up;
            row[j] = best;
        }
    }
    return row[nb];
}

const char *str_nearest(const char *want, const char *const *names, size_t n) {
    size_t limit = strlen(want) / 2, best = SIZE_MAX;
    if (limit < 2) limit = 2;
    const char *name = NULL;
    for (size_t i = 0; i < n; i++) {
        size_t d = edit_distance(want, names[i]);
        if (d <= limit && d < best) best = d, name = names[i];
    }
    return name;
}

void str_clean(char *text) {
    utf8proc_uint8_t *p = (utf8proc_uint8_t *)text;
    utf8proc_ssize_t left = (utf8proc_ssize_t)strlen(text);
    while (left > 0) {
        utf8proc_int32_t c;
        utf8proc_ssize_t n = utf8proc_iterate(p, left, &c);
        bool bad = n <= 0 || (c < 0x20 && c != '\n' && c != '\t') || (c >= 0x7F && c < 0xA0);
        if (n <= 0) n = 1;
        if (bad) memset(p, '?', (size_t)n);
        p += n;
        left -= n;
    }
}

bool str_starts(const char *s, const char *prefix) {
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

bool str_ends(const char *s, const char *suffix) {
    size_t n = strlen(s), m = strlen(suffix);
    return n >= m && memcmp(s + n - m, suffix, m) == 0;
}

char *str_bytes(char *buf, size_t cap, double bytes) {
    static const char *const UNITS[] = {"B", "KB", "MB", "GB", "TB"};
    int u = 0;
    while (bytes >= 1000 && u < 4) bytes /= 1000, u++;
    snprintf(buf, cap, u == 0 ? "%.0f %s" : "%.1f %s", bytes, UNITS[u]);
    return buf;
}

char *str_seconds(char *buf, size_t cap, double s) {
    if (s < 0) s = 0;
    if (s < 60)
        snprintf(buf, cap, "%.1f 秒", s);
    else if (s < 3600)
        snprintf(buf, cap, "%d 分 %02d 秒", (int)s / 60, (int)s % 60);
    else
        snprintf(buf, cap, "%d 时 %02d 分", (int)(s / 3600), (int)(s / 60) % 60);
    return buf;
}

bool str_parse_bytes(const char *text, size_t *bytes) {
    static const char UNITS[] = "KMGT";
    char *end;
    double v = strtod(text, &end);
    if (end == text || !(v >= 0)) return false;
    while (*end == ' ') end++;
    const char *unit = *end ? strchr(UNITS, *end & ~0x20) : NULL;
    if (unit) {
        for (const char *u = UNITS; u <= unit; u++) v *= 1000;
        end++;
    }
    if (*end == 'B' || *end == 'b') end++;
    if (*end || v >= 9e18) return false;
    *bytes = (size_t)v;
    return true;
}
