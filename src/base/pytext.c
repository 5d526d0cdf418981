/* pytext — 与 Python 的 str 一致的文字规则的实现 */
#include "base/pytext.h"

uint32_t pytext_char(const char *text, size_t len, size_t *n) {
    static const uint32_t LEAST[5] = {0, 0, 0x80, 0x800, 0x10000};
    unsigned char c = (unsigned char)text[0];
    size_t size = c < 0x80 ? 1 : c >= 0xc2 && c < 0xe0 ? 2 : c >= 0xe0 && c < 0xf0 ? 3
                : c >= 0xf0 && c < 0xf5 ? 4 : 0;
    *n = 1;
    if (size == 1) return c;
    if (size == 0 || size > len) return 0xFFFD;
    uint32_t v = c & (0x7fu >> size);
    for (size_t i = 1; i < size; i++) {
        unsigned char t = (unsigned char)text[i];
        if ((t & 0xc0) != 0x80) return 0xFFFD;
        v = v << 6 | (t & 0x3fu);
    }
    if (v < LEAST[size] || v > 0x10FFFF || (v >= 0xD800 && v < 0xE000)) return 0xFFFD;
    *n = size;
    return v;
}

bool pytext_is_space(uint32_t c) {
    return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
           c == 0x202F || c == 0x205F || c == 0x3000;
}

size_t pytext_rstrip(const char *text, size_t len) {
    while (len) {
        size_t at = len - 1, n;
        while (at > 0 && len - at < 4 && ((unsigned char)text[at] & 0xc0) == 0x80) at--;
        uint32_t c = pytext_char(text + at, len - at, &n);
        if (!pytext_is_space(c) || at + n != len) break;
        len = at;
    }
    return len;
}

size_t pytext_lstrip(const char *text, size_t len) {
    size_t at = 0;
    while (at < len) {
        size_t n;
        if (!pytext_is_space(pytext_char(text + at, len - at, &n))) break;
        at += n;
    }
    return at;
}

size_t pytext_length(const char *text, size_t len) {
    size_t count = 0;
    for (size_t at = 0, n; at < len; at += n, count++) pytext_char(text + at, len - at, &n);
    return count;
}
