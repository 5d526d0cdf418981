/* pyregex — Python re 的实现
 * 编译时把 Python 的写法逐个改成 PCRE2 的；匹配一律整段文字上做（环视与 \b 看得见前文）。 */
#include "tasks/pyregex.h"

#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

enum { GROUPS_MAX = 31, MATCH_LIMIT = 2000000 };
#define PATTERN_MAX ((size_t)64 << 10)
#define OUTPUT_MAX ((size_t)64 << 20)

struct PyRegex {
    pcre2_code *code;
    pcre2_match_data *data;
    pcre2_match_context *context;
    uint32_t groups;
};

static bool is_hex(const char *p, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!strchr("0123456789abcdefABCDEF", p[i]) || !p[i]) return false;
    return true;
}

/* 反斜杠开头的一个转义（p 指向反斜杠，left 为剩余字节）→ 追加改写后的；返回用掉的字节数。 */
static size_t translate_escape(const char *p, size_t left, bool in_class, Str *out) {
    char c = left > 1 ? p[1] : '\0';
    size_t digits = c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits && left >= 2 + digits && is_hex(p + 2, digits)) {
        str_addf(out, "\\x{%.*s}", (int)digits, p + 2);
        return 2 + digits;
    }
    if (c == 'Z' && !in_class) {
        str_add(out, "\\z");
        return 2;
    }
    str_addn(out, p, left > 1 ? 2 : 1);
    return left > 1 ? 2 : 1;
}

static bool translate(const char *pattern, size_t len, Str *out, Err *e) {
    bool in_class = false;
    size_t class_at = 0;
    for (size_t i = 0; i < len;) {
        char c = pattern[i];
        if (c == '\\') {
            char next = i + 1 < len ? pattern[i + 1] : '\0';
            if (next && strchr("CEGHKLNPQRVXceghkopyz", next))
                return err_set(e, ERR_FORMAT, "正则 '%.*s': Python 的 re 没有 \\%c", (int)len, pattern,
                               next);
            i += translate_escape(pattern + i, len - i, in_class, out);
            continue;
        }
        if (!in_class && c == '[') {
            in_class = true;
            class_at = i + 1 + (i + 1 < len && pattern[i + 1] == '^');
        } else if (in_class && c == ']' && i > class_at) {
            in_class = false;
        } else if (in_class && c == '[') {
            str_add(out, "\\["); /* [[:alpha:]] 在 Python 里不是字符类 */
            i++;
            continue;
        }
        if (in_class && c == ']' && i == class_at) str_add(out, "\\");
        str_addn(out, &c, 1);
        i++;
    }
    return !out->failed || err_set(e, ERR_MEMORY, "内存不足");
}

static bool compile(PyRegex *re, const Str *s, const char *pattern, size_t len, int flags, Err *e) {
    uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
    if (flags & PYREGEX_IGNORECASE) options |= PCRE2_CASELESS;
    if (flags & PYREGEX_MULTILINE) options |= PCRE2_MULTILINE;
    if (flags & PYREGEX_DOTALL) options |= PCRE2_DOTALL;
    int code;
    PCRE2_SIZE at;
    PCRE2_SPTR source = (PCRE2_SPTR)(s->data ? s->data : "");
    re->code = pcre2_compile(source, s->len, options, &code, &at, NULL);
    if (!re->code) {
        PCRE2_UCHAR text[160];
        pcre2_get_error_message(code, text, sizeof text);
        return err_set(e, ERR_FORMAT, "正则 '%.*s' 第 %zu 字节处有误（%s）", (int)(len < 200 ? len : 200),
                       pattern, (size_t)at, (char *)text);
    }
    pcre2_pattern_info(re->code, PCRE2_INFO_CAPTURECOUNT, &re->groups);
    if (re->groups > GROUPS_MAX)
        return err_set(e, ERR_FORMAT, "正则 '%.*s' 的组多于 %d 个", (int)(len < 200 ? len : 200), pattern,
                       GROUPS_MAX);
    re->data = pcre2_match_data_create_from_pattern(re->code, NULL);
    re->context = pcre2_match_context_create(NULL);
    if (!re->data || !re->context) return err_set(e, ERR_MEMORY, "内存不足");
    pcre2_set_match_limit(re->context, MATCH_LIMIT);
    pcre2_set_heap_limit(re->context, 64 << 10);
    return true;
}

bool pyregex_open(PyRegex **out, const char *pattern, size_t len, int flags, Err *e) {
    Str s = {0};
    *out = NULL;
    if (len > PATTERN_MAX) return err_set(e, ERR_FORMAT, "正则超过 64 KB");
    PyRegex *re = calloc(1, sizeof *re);
    if (!re) return err_set(e, ERR_MEMORY, "内存不足");
    bool ok = translate(pattern, len, &s, e) && compile(re, &s, pattern, len, flags, e);
    str_free(&s);
    if (ok) *out = re;
    else pyregex_close(re);
    return ok;
}

void pyregex_close(PyRegex *re) {
    if (!re) return;
    pcre2_match_data_free(re->data);
    pcre2_match_context_free(re->context);
    pcre2_code_free(re->code);
    free(re);
}

int pyregex_groups(const PyRegex *re) {
    return (int)re->groups;
}

static bool match(const PyRegex *re, const char *text, size_t len, size_t from, uint32_t options,
                  PyMatch *m, Err *e) {
    int n = pcre2_match(re->code, (PCRE2_SPTR)(text ? text : ""), len, from, options, re->data,
                        re->context);
    if (n == PCRE2_ERROR_NOMATCH) return false;
    if (n < 0) {
        PCRE2_UCHAR why[160];
        pcre2_get_error_message(n, why, sizeof why);
        return err_set(e, ERR_FORMAT, "正则匹配失败（%s）", (char *)why);
    }
    const PCRE2_SIZE *v = pcre2_get_ovector_pointer(re->data);
    for (uint32_t i = 0; i <= re->groups; i++) {
        bool set = i < (uint32_t)n && v[2 * i] != PCRE2_UNSET;
        m->start[i] = set ? v[2 * i] : SIZE_MAX;
        m->end[i] = set ? v[2 * i + 1] : SIZE_MAX;
    }
    if (m->start[0] > m->end[0]) m->start[0] = m->end[0]; /* \K 已被禁用，仍守住不变式 */
    return true;
}

bool pyregex_search(const PyRegex *re, const char *text, size_t len, size_t from, PyMatch *m,
                    Err *e) {
    return from <= len && match(re, text, len, from, 0, m, e);
}

static size_t next_char(const char *text, size_t len, size_t at) {
    at++;
    while (at < len && ((unsigned char)text[at] & 0xC0) == 0x80) at++;
    return at;
}

/* Python 3.7 起：空匹配可以紧接在非空匹配之后，但同一位置不会出现两次空匹配。
 * *from 的最高位记「上一处是停在这里的空匹配」：此时先要求非空，不成再前进一个字符。 */
#define EMPTY_HERE ((size_t)1 << 63)

bool pyregex_next(const PyRegex *re, const char *text, size_t len, size_t *from, PyMatch *m,
                  Err *e) {
    bool empty_here = *from & EMPTY_HERE;
    size_t at = *from & ~EMPTY_HERE;
    if (at > len) return false;
    const uint32_t here = PCRE2_NOTEMPTY_ATSTART | PCRE2_ANCHORED;
    bool hit = empty_here && match(re, text, len, at, here, m, e);
    if (empty_here && !hit) {
        if (e->code != ERR_NONE || at >= len) return false;
        hit = match(re, text, len, next_char(text, len, at), 0, m, e);
    } else if (!hit) {
        hit = match(re, text, len, at, 0, m, e);
    }
    if (hit) *from = m->end[0] | (m->end[0] == m->start[0] ? EMPTY_HERE : 0);
    return hit;
}

static bool group_text(const PyMatch *m, uint32_t i, const PyRegex *re, const char *text, Str *out,
                       Err *e) {
    if (i > re->groups) return err_set(e, ERR_FORMAT, "替换文字引用了不存在的组 %u", i);
    if (m->start[i] != SIZE_MAX) str_addn(out, text + m->start[i], m->end[i] - m->start[i]);
    return true;
}

/* \g<…>：p 指向 '<' 之后，*used 为到 '>' 的字节数。 */
static bool named_group(const PyRegex *re, const PyMatch *m, const char *p, size_t left,
                        const char *text, Str *out, size_t *used, Err *e) {
    const char *close = memchr(p, '>', left);
    char name[64];
    if (!close || close == p || (size_t)(close - p) >= sizeof name)
        return err_set(e, ERR_FORMAT, "替换文字里的 \\g<…> 不完整");
    *used = (size_t)(close - p) + 1;
    memcpy(name, p, *used - 1);
    name[*used - 1] = '\0';
    if (name[strspn(name, "0123456789")] == '\0') {
        unsigned long i = strlen(name) > 4 ? 9999 : strtoul(name, NULL, 10);
        return group_text(m, (uint32_t)i, re, text, out, e);
    }
    int i = pcre2_substring_number_from_name(re->code, (PCRE2_SPTR)name);
    if (i < 0) return err_set(e, ERR_FORMAT, "替换文字引用了不存在的组 '%s'", name);
    return group_text(m, (uint32_t)i, re, text, out, e);
}

/* 替换文字里反斜杠之后的部分（p[0] 是其后的字符）。 */
static bool expand_escape(const PyRegex *re, const PyMatch *m, const char *p, size_t left,
                          const char *text, Str *out, size_t *used, Err *e) {
    static const char FROM[] = "abfnrtv\\", TO[] = "\a\b\f\n\r\t\v\\";
    const char *hit = left && p[0] ? strchr(FROM, p[0]) : NULL;
    *used = 1;
    if (left >= 2 && p[0] == 'g' && p[1] == '<') {
        bool ok = named_group(re, m, p + 2, left - 2, text, out, used, e);
        *used += 2;
        return ok;
    }
    if (left && p[0] >= '1' && p[0] <= '9') {
        uint32_t i = (uint32_t)(p[0] - '0');
        if (left >= 2 && p[1] >= '0' && p[1] <= '9') {
            i = 10 * i + (uint32_t)(p[1] - '0');
            *used = 2;
        }
        return group_text(m, i, re, text, out, e);
    }
    if (left && p[0] == '0') {
        str_addn(out, "", 1);
        return true;
    }
    if (hit) {
        str_addn(out, &TO[hit - FROM], 1);
        return true;
    }
    if (!left || (p[0] | 0x20) < 'a' || (p[0] | 0x20) > 'z') { /* 其他标点保留反斜杠 */
        str_add(out, "\\");
        *used = 0;
        return true;
    }
    return err_set(e, ERR_FORMAT, "替换文字里不认得的转义 \\%c", p[0]);
}

static bool expand(const PyRegex *re, const PyMatch *m, const char *repl, size_t n,
                   const char *text, Str *out, Err *e) {
    for (size_t i = 0; i < n;) {
        if (repl[i] != '\\') {
            str_addn(out, repl + i++, 1);
            continue;
        }
        size_t used;
        if (!expand_escape(re, m, repl + i + 1, n - i - 1, text, out, &used, e)) return false;
        i += 1 + used;
    }
    return true;
}

bool pyregex_sub(const PyRegex *re, const char *text, size_t len, const char *repl,
                 size_t repl_len, int64_t count, Str *out, Err *e) {
    size_t from = 0, kept = 0;
    PyMatch m;
    Err own = {0};
    for (int64_t i = 0; count <= 0 || i < count; i++) {
        if (!pyregex_next(re, text, len, &from, &m, &own)) break;
        str_addn(out, text + kept, m.start[0] - kept);
        if (!expand(re, &m, repl, repl_len, text, out, &own)) break;
        kept = m.end[0];
        if (out->len > OUTPUT_MAX) {
            err_set(&own, ERR_FORMAT, "正则替换的结果超过 64 MB");
            break;
        }
    }
    if (own.code != ERR_NONE) {
        if (e) *e = own;
        return false;
    }
    if (kept < len) str_addn(out, text + kept, len - kept);
    return !out->failed || err_set(e, ERR_MEMORY, "内存不足");
}
