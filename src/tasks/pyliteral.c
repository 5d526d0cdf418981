/* pyliteral — ast.literal_eval：Python 字面量 → JSON 值
 * 框架把 doc_to_choice 渲染成的文字（多半是列表的 repr()）这样读回来。括号之内可以换行、写注释。 */
#include <stdlib.h>
#include <string.h>

#include "tasks/jinja.h"
#include "tasks/pystr.h"

enum { DEPTH_MAX = 100, VALUES_MAX = 1000000 };

typedef struct Reader {
    PyText s;
    size_t at;
    int depth, values; /* 值的嵌套、已读的值 */
    int nest;          /* 在几层括号里：其中换行与注释不算什么 */
    const char *where;
    Err *e;
} Reader;

static json_t *value(Reader *r);

static void *fail(Reader *r, const char *what) {
    if (r->e->code == ERR_NONE)
        err_set(r->e, ERR_FORMAT, "%s: 渲染出的文字不是 Python 字面量（第 %zu 字节: %s）: %.60s", r->where,
                r->at, what, r->s.p);
    return NULL;
}

static char peek(const Reader *r) {
    return r->at < r->s.n ? r->s.p[r->at] : '\0';
}

static void skip(Reader *r) {
    for (;; r->at++) {
        char c = peek(r);
        if (c == '#' && r->nest) {
            while (r->at < r->s.n && r->s.p[r->at] != '\n') r->at++;
            if (r->at >= r->s.n) return;
        } else if (!(c == ' ' || c == '\t' || c == '\f' || (r->nest && (c == '\n' || c == '\r')))) {
            return;
        }
    }
}

static bool accept(Reader *r, const char *word) {
    size_t n = strlen(word);
    if (r->s.n - r->at < n || memcmp(r->s.p + r->at, word, n) != 0) return false;
    r->at += n;
    return true;
}

static bool hex(Reader *r, int n, int32_t *cp) {
    *cp = 0;
    for (int i = 0; i < n; i++, r->at++) {
        const char *digits = "0123456789abcdef", *hit;
        char c = peek(r);
        if (!c || !(hit = strchr(digits, c | (c > '9' ? 0x20 : 0)))) return false;
        *cp = *cp * 16 + (int32_t)(hit - digits);
        if (*cp > 0x10FFFF) return false;
    }
    return *cp < 0xD800 || *cp > 0xDFFF;
}

/* 反斜杠之后的一个转义。 */
static bool escape(Reader *r, Str *out) {
    static const char FROM[] = "\\'\"abfnrtv", TO[] = "\\'\"\a\b\f\n\r\t\v";
    char c = peek(r);
    const char *hit = c ? strchr(FROM, c) : NULL;
    int32_t cp = 0;
    if (hit) {
        str_addn(out, &TO[hit - FROM], 1);
        r->at++;
    } else if (c == '\n') {
        r->at++;
    } else if (c == 'x' || c == 'u' || c == 'U') {
        r->at++;
        if (!hex(r, c == 'x' ? 2 : c == 'u' ? 4 : 8, &cp)) return fail(r, "转义不对");
        py_add(out, cp);
    } else if (c >= '0' && c <= '7') {
        for (int i = 0; i < 3 && peek(r) >= '0' && peek(r) <= '7'; i++)
            cp = cp * 8 + (r->s.p[r->at++] - '0');
        py_add(out, cp);
    } else if (c == 'N') {
        return fail(r, "不支持 \\N{…}");
    } else {
        str_add(out, "\\");
    }
    return true;
}

/* 一个字符串，r->at 在引号上。 */
static bool one_string(Reader *r, bool raw, Str *out) {
    char quote = peek(r);
    char triple[4] = {quote, quote, quote, '\0'};
    bool long_form = accept(r, triple);
    if (!long_form) r->at++;
    while (r->at < r->s.n) {
        if (long_form ? accept(r, triple) : peek(r) == quote) {
            r->at += !long_form;
            return true;
        }
        char c = r->s.p[r->at];
        if (c == '\n' && !long_form) return fail(r, "字符串里有换行");
        if (c == '\\' && raw) {
            size_t n = r->s.n - r->at >= 2 ? 2 : 1;
            str_addn(out, r->s.p + r->at, n);
            r->at += n;
        } else if (c == '\\') {
            r->at++;
            if (!escape(r, out)) return false;
        } else {
            str_addn(out, &c, 1);
            r->at++;
        }
    }
    return fail(r, "字符串没有结束");
}

/* 引号之前的前缀（r、u，大小写不限）的长度；不是字符串为 -1。 */
static int string_prefix(const Reader *r, bool *raw) {
    char c = peek(r), next = r->at + 1 < r->s.n ? r->s.p[r->at + 1] : '\0';
    *raw = (c | 0x20) == 'r';
    if (c == '\'' || c == '"') return *raw = false, 0;
    if (((c | 0x20) == 'r' || (c | 0x20) == 'u') && (next == '\'' || next == '"')) return 1;
    return -1;
}

static json_t *string(Reader *r) {
    Str s = {0};
    bool raw, ok = true;
    for (int n; ok && (n = string_prefix(r, &raw)) >= 0; skip(r)) { /* 相邻的连成一个 */
        r->at += (size_t)n;
        ok = one_string(r, raw, &s);
    }
    json_t *v = NULL;
    if (s.failed) err_set(r->e, ERR_MEMORY, "%s: 内存不足", r->where);
    else if (ok && !(v = json_stringn(s.data ? s.data : "", s.len))) fail(r, "字符串不是合法的 UTF-8");
    str_free(&s);
    return v;
}

static json_t *number(Reader *r, bool negative) {
    size_t from = r->at;
    int64_t i;
    double d;
    bool overflow;
    while (r->at < r->s.n) {
        char c = r->s.p[r->at];
        bool sign = (c == '+' || c == '-') && r->at > from && (r->s.p[r->at - 1] | 0x20) == 'e' &&
                    !(r->at > from + 1 && (r->s.p[from + 1] | 0x20) == 'x');
        bool digit = c >= '0' && c <= '9', letter = (c | 0x20) >= 'a' && (c | 0x20) <= 'z';
        if (!sign && c != '.' && c != '_' && !digit && !letter) break;
        r->at++;
    }
    PyText t = {r->s.p + from, r->at - from};
    if (py_parse_int(t, 0, &i, &overflow)) {
        if (overflow) return fail(r, "整数超出 64 位");
        return json_integer(negative ? -i : i);
    }
    if (!t.n || strspn(t.p, "0123456789._eE+-") < t.n || !py_parse_float(t, &d))
        return fail(r, "不认得的值");
    return json_real(negative ? -d : d);
}

/* 括号里逗号分开的一串，到 close 为止。first 是已经读出的第一个值（归这里所有），可为 NULL。
 * single 为 () 里只有一个值且没有逗号时返回它本身。 */
static json_t *sequence(Reader *r, char close, bool single, json_t *first) {
    json_t *list = json_array();
    bool comma = true;
    r->nest++;
    for (skip(r); list && (first || peek(r) != close); skip(r)) {
        json_t *v = first ? first : comma ? value(r) : fail(r, "缺少逗号");
        first = NULL;
        if (!v || json_array_append_new(list, v) != 0) {
            json_decref(list);
            return NULL;
        }
        skip(r);
        comma = accept(r, ",");
    }
    if (!list) {
        json_decref(first);
        return NULL;
    }
    r->at++;
    r->nest--;
    if (!single || comma || json_array_size(list) != 1) return list;
    json_t *only = json_incref(json_array_get(list, 0));
    json_decref(list);
    return only;
}

/* 字典的键：字符串照旧，其余用其写法。 */
static bool put(Reader *r, json_t *o, const json_t *key, size_t from, size_t to, json_t *v) {
    const char *name = json_is_string(key) ? json_string_value(key) : r->s.p + from;
    size_t n = json_is_string(key) ? json_string_length(key) : to - from;
    if (memchr(name, '\0', n)) {
        json_decref(v);
        return fail(r, "字典的键不能含 NUL");
    }
    return json_object_setn_new(o, name, n, v) == 0 || fail(r, "字典的键不能用");
}

static json_t *braces(Reader *r) {
    r->nest++;
    skip(r);
    json_t *o = json_object();
    bool comma = true, ok = o != NULL;
    size_t n = 0;
    for (; ok && peek(r) != '}'; n++) {
        size_t from = r->at;
        json_t *key = comma ? value(r) : fail(r, "缺少逗号");
        size_t to = r->at;
        ok = key != NULL;
        skip(r);
        if (ok && n == 0 && peek(r) != ':') { /* 集合 */
            json_decref(o);
            r->nest--;
            return sequence(r, '}', false, key);
        }
        ok = ok && (accept(r, ":") || fail(r, "缺少冒号"));
        skip(r);
        json_t *v = ok ? value(r) : NULL;
        ok = v && put(r, o, key, from, to, v);
        json_decref(key);
        skip(r);
        comma = accept(r, ",");
        skip(r);
    }
    if (!ok) {
        json_decref(o);
        return NULL;
    }
    r->at++;
    r->nest--;
    return o;
}

static json_t *value_inner(Reader *r) {
    bool raw;
    if (string_prefix(r, &raw) >= 0) return string(r);
    if (accept(r, "[")) return sequence(r, ']', false, NULL);
    if (accept(r, "(")) return sequence(r, ')', true, NULL);
    if (accept(r, "{")) return braces(r);
    if (accept(r, "None")) return json_null();
    if (accept(r, "True")) return json_true();
    if (accept(r, "False")) return json_false();
    bool negative = peek(r) == '-';
    if (negative || peek(r) == '+') r->at++;
    skip(r);
    return number(r, negative);
}

static json_t *value(Reader *r) {
    if (r->depth++ >= DEPTH_MAX || r->values++ >= VALUES_MAX) return fail(r, "嵌套过深或值太多");
    skip(r);
    json_t *v = value_inner(r);
    r->depth--;
    return v;
}

bool python_literal(json_t **out, const char *text, size_t len, const char *where, Err *e) {
    Err own = {0};
    Reader r = {.s = {text, len}, .where = where, .e = &own};
    while (r.at < len && (text[r.at] == ' ' || text[r.at] == '\t')) r.at++;
    json_t *v = len ? value(&r) : fail(&r, "是空的");
    while (v && r.at < len && py_isspace((unsigned char)text[r.at])) r.at++;
    if (v && peek(&r) == ',' && r.at < len) { /* 1, 2 也是元组 */
        json_t *list = json_array();
        if (list) json_array_append_new(list, v);
        while (list && accept(&r, ",")) {
            skip(&r);
            if (r.at >= len) break;
            json_t *next = value(&r);
            if (!next || json_array_append_new(list, next) != 0) {
                json_decref(list);
                list = NULL;
            }
            skip(&r);
        }
        v = list;
    }
    if (v && r.at < len) {
        json_decref(v);
        v = fail(&r, "后面还有别的内容");
    }
    *out = v;
    if (!v && own.code == ERR_NONE) err_set(&own, ERR_MEMORY, "%s: 内存不足", where);
    if (!v && e) {
        *e = own;
        str_clean(e->msg);
    }
    return v != NULL;
}
