/* jinja_lex — 模板源码 → 记号
 * 两种状态：标签之外是文字（到下一个 {{、{%、{# 为止），标签之内是名字、数、字符串、运算符；
 * 括号没有配平时 }} 与 %} 只是运算符。空白控制（{%-、-%}）在这里做完，语法分析看不到它。 */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tasks/jinja_internal.h"

typedef struct Lexer {
    Interp *in;
    PyText s;
    size_t at;
    int line;
    Token *tokens;
    size_t n, cap;
    char balance[JINJA_PARSE_DEPTH]; /* 等着的右括号 */
    int n_balance;
    bool variable; /* 正在 {{ }} 里，否则在 {% %} 里 */
} Lexer;

static Token *push(Lexer *x, TokenKind kind) {
    if (x->n == x->cap) {
        size_t cap = x->cap ? 2 * x->cap : 64;
        Token *t = jinja_alloc(x->in, cap * sizeof *t);
        if (!t) return NULL;
        if (x->n) memcpy(t, x->tokens, x->n * sizeof *t);
        x->tokens = t;
        x->cap = cap;
    }
    x->tokens[x->n] = (Token){.kind = kind, .line = x->line};
    return &x->tokens[x->n++];
}

static bool error(Lexer *x, const char *what) {
    x->in->line = x->line;
    return jinja_fail(x->in, "%s", what);
}

static bool starts(const Lexer *x, const char *what) {
    size_t n = strlen(what);
    return x->s.n - x->at >= n && memcmp(x->s.p + x->at, what, n) == 0;
}

static void advance(Lexer *x, size_t to) {
    for (; x->at < to; x->at++) x->line += x->s.p[x->at] == '\n';
}

static void skip_space(Lexer *x) {
    for (size_t at = x->at; at < x->s.n;) {
        if (!py_isspace(py_next(x->s, &at))) return;
        advance(x, at);
    }
}

static bool add_data(Lexer *x, size_t from, size_t to, bool strip) {
    PyText t = {x->s.p + from, to - from};
    if (strip) t = py_strip(t, (PyText){0}, false, true);
    if (!t.n) return true;
    Token *k = push(x, T_DATA);
    if (k) k->text = t;
    return k != NULL;
}

/* x->at 在 {# 之后的符号之后：跳过注释。 */
static bool skip_comment(Lexer *x) {
    size_t end = py_find(x->s, py_text("#}"), x->at);
    if (end == SIZE_MAX) return error(x, "注释 {# 没有以 #} 结束");
    bool trim = end > x->at && x->s.p[end - 1] == '-';
    advance(x, end + 2);
    if (trim) skip_space(x);
    return true;
}

/* 在 at 处匹配「[-+]? 空白 word 空白 [-]?%}」。返回: 匹配到的末尾，否则 SIZE_MAX。 */
static size_t match_tag(const Lexer *x, size_t at, const char *word, bool *trim_before,
                        bool *trim_after) {
    const char *p = x->s.p;
    size_t n = x->s.n;
    *trim_before = at < n && p[at] == '-';
    if (at < n && (p[at] == '-' || p[at] == '+')) at++;
    while (at < n && isspace((unsigned char)p[at])) at++;
    size_t len = strlen(word);
    if (n - at < len || memcmp(p + at, word, len) != 0) return SIZE_MAX;
    at += len;
    while (at < n && isspace((unsigned char)p[at])) at++;
    *trim_after = at < n && p[at] == '-';
    if (at < n && (p[at] == '-' || p[at] == '+')) at++;
    return n - at >= 2 && memcmp(p + at, "%}", 2) == 0 ? at + 2 : SIZE_MAX;
}

/* {% raw %} 之后到 {% endraw %}：原样的文字。 */
static bool raw_block(Lexer *x, size_t start, bool trim) {
    advance(x, start);
    if (trim) skip_space(x);
    size_t from = x->at;
    for (size_t at = from;; at += 2) {
        at = py_find(x->s, py_text("{%"), at);
        if (at == SIZE_MAX) return error(x, "{% raw %} 没有以 {% endraw %} 结束");
        bool before, after;
        size_t end = match_tag(x, at + 2, "endraw", &before, &after);
        if (end == SIZE_MAX) continue;
        if (!add_data(x, from, at, before)) return false;
        advance(x, end);
        if (after) skip_space(x);
        return true;
    }
}

/* 标签之外：文字，直到进入一个标签或到头。 */
static bool lex_text(Lexer *x, bool *inside) {
    size_t from = x->at, at = from;
    *inside = false;
    while (at < x->s.n && !(x->s.p[at] == '{' && at + 1 < x->s.n &&
                            strchr("{%#", x->s.p[at + 1]) != NULL && x->s.p[at + 1]))
        at++;
    if (at >= x->s.n) {
        if (!add_data(x, from, x->s.n, false)) return false;
        advance(x, x->s.n);
        return true;
    }
    char kind = x->s.p[at + 1], sign = at + 2 < x->s.n ? x->s.p[at + 2] : '\0';
    if (!add_data(x, from, at, sign == '-')) return false;
    bool before, after;
    size_t raw = kind == '%' ? match_tag(x, at + 2, "raw", &before, &after) : SIZE_MAX;
    if (raw != SIZE_MAX) return raw_block(x, raw, after);
    advance(x, at + 2 + (sign == '-' || sign == '+'));
    if (kind == '#') return skip_comment(x);
    *inside = true;
    x->variable = kind == '{';
    return push(x, kind == '{' ? T_VAR_BEGIN : T_BLOCK_BEGIN) != NULL;
}

/* 十六进制转义：读 n 位。 */
static bool hex_escape(PyText s, size_t *at, int n, int32_t *cp) {
    *cp = 0;
    for (int i = 0; i < n; i++, (*at)++) {
        if (*at >= s.n || !isxdigit((unsigned char)s.p[*at])) return false;
        char c = s.p[*at];
        *cp = *cp * 16 + (c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
        if (*cp > 0x10FFFF) return false;
    }
    return *cp < 0xD800 || *cp > 0xDFFF;
}

/* 反斜杠之后的一个转义。Python 不认得的保留反斜杠。 */
static bool escape(Lexer *x, PyText s, size_t *at, Str *out) {
    static const char FROM[] = "\\'\"abfnrtv", TO[] = "\\'\"\a\b\f\n\r\t\v";
    size_t start = *at;
    int32_t c = py_next(s, at);
    const char *hit = c > 0 && c < 128 ? strchr(FROM, (char)c) : NULL;
    if (hit) {
        str_addn(out, &TO[hit - FROM], 1);
    } else if (c == '\n') {
        return true;
    } else if (c == 'x' || c == 'u' || c == 'U') {
        int32_t cp;
        if (!hex_escape(s, at, c == 'x' ? 2 : c == 'u' ? 4 : 8, &cp))
            return error(x, "字符串里的 \\x、\\u 或 \\U 转义不对");
        py_add(out, cp);
    } else if (c >= '0' && c <= '7') {
        int32_t cp = c - '0';
        for (int i = 0; i < 2 && *at < s.n && s.p[*at] >= '0' && s.p[*at] <= '7'; i++)
            cp = cp * 8 + (s.p[(*at)++] - '0');
        py_add(out, cp);
    } else if (c == 'N') {
        return error(x, "不支持 \\N{…} 转义，请写成 \\uXXXX");
    } else if (c >= 128) { /* 先变成 \xXX、\uXXXX 再去转义，前面的反斜杠便成了 \\ 的前一半 */
        str_addf(out, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)c);
    } else {
        str_add(out, "\\");
        str_addn(out, s.p + start, *at - start);
    }
    return true;
}

static bool lex_string(Lexer *x) {
    char quote = x->s.p[x->at];
    size_t end = x->at + 1;
    while (end < x->s.n && x->s.p[end] != quote) end += x->s.p[end] == '\\' ? 2 : 1;
    if (end >= x->s.n) return error(x, "字符串没有结束");
    Token *t = push(x, T_STR);
    if (!t) return false;
    size_t index = x->n - 1;
    PyText body = {x->s.p + x->at + 1, end - x->at - 1};
    Str out = {0};
    bool ok = true;
    for (size_t at = 0; ok && at < body.n;) {
        if (body.p[at] != '\\') {
            str_addn(&out, body.p + at++, 1);
        } else {
            at++;
            ok = escape(x, body, &at, &out);
        }
    }
    Value v;
    ok = v_take_str(x->in, &out, &v) && ok;
    if (ok) x->tokens[index].text = v.u.str;
    advance(x, end + 1);
    return ok;
}

/* 数字与夹在其中的下划线：从 at 起抄到 buf，返回末尾。 */
static size_t digits(const Lexer *x, size_t at, char *buf, size_t *n, size_t cap) {
    while (at < x->s.n && *n + 1 < cap) {
        char c = x->s.p[at];
        bool gap = c == '_' && at + 1 < x->s.n && isdigit((unsigned char)x->s.p[at + 1]);
        if (!gap && !isdigit((unsigned char)c)) break;
        if (!gap) buf[(*n)++] = c;
        at++;
    }
    return at;
}

static char char_at(const Lexer *x, size_t at) {
    return at < x->s.n ? x->s.p[at] : '\0';
}

/* 指数部分的末尾；没有则原样返回 at。 */
static size_t exponent(const Lexer *x, size_t at, char *buf, size_t *n, size_t cap) {
    size_t p = at + 1, kept = *n;
    if ((char_at(x, at) | 0x20) != 'e') return at;
    if (*n + 2 >= cap) return at;
    buf[(*n)++] = 'e';
    if (char_at(x, p) == '+' || char_at(x, p) == '-') buf[(*n)++] = x->s.p[p++];
    if (isdigit((unsigned char)char_at(x, p))) return digits(x, p, buf, n, cap);
    *n = kept;
    return at;
}

static bool lex_number(Lexer *x) {
    char buf[400];
    size_t n = 0, at = digits(x, x->at, buf, &n, sizeof buf);
    bool real = false;
    if (!(x->at > 0 && x->s.p[x->at - 1] == '.')) { /* a.0.1 不是小数 */
        if (char_at(x, at) == '.' && isdigit((unsigned char)char_at(x, at + 1)) &&
            n + 2 < sizeof buf) {
            buf[n++] = '.';
            at = digits(x, at + 1, buf, &n, sizeof buf);
            real = true;
        }
        size_t end = exponent(x, at, buf, &n, sizeof buf);
        real = real || end != at;
        at = end;
    }
    if (n + 1 >= sizeof buf) return error(x, "数太长");
    buf[n] = '\0';
    int64_t v = 0;
    char base = (char)(char_at(x, x->at + 1) | 0x20);
    bool overflow = false;
    if (!real && n == 1 && buf[0] == '0' && strchr("xob", base) && base) {
        at = x->at + 2;
        while (isalnum((unsigned char)char_at(x, at)) || char_at(x, at) == '_') at++;
        if (!py_parse_int((PyText){x->s.p + x->at, at - x->at}, 0, &v, &overflow))
            return error(x, "数写得不对");
    } else if (!real) {
        /* 0 开头的十进制数只认 0 本身 */
        if (buf[0] == '0' && n > 1 && buf[strspn(buf, "0")] != '\0') return error(x, "整数不能以 0 开头");
        if (!py_parse_int((PyText){buf, n}, 10, &v, &overflow)) return error(x, "数写得不对");
    }
    if (overflow) return error(x, "整数超出 64 位");
    Token *t = push(x, real ? T_FLOAT : T_INT);
    if (!t) return false;
    t->integer = v;
    t->real = real ? strtod(buf, NULL) : 0;
    advance(x, at);
    return true;
}

static bool lex_operator(Lexer *x) {
    static const char *const TWO[] = {"//", "**", "==", "!=", ">=", "<=", NULL};
    char op[3] = {x->s.p[x->at], 0, 0};
    for (int i = 0; TWO[i]; i++)
        if (starts(x, TWO[i])) memcpy(op, TWO[i], 3);
    if (!op[1] && !strchr("+-/*%~[](){}><=.:|,;", op[0])) {
        char text[80];
        snprintf(text, sizeof text, "不该出现的字符（0x%02x）", (unsigned char)op[0]);
        return error(x, text);
    }
    char close = op[0] == '{' ? '}' : op[0] == '(' ? ')' : op[0] == '[' ? ']' : '\0';
    if (close) {
        if (x->n_balance == JINJA_PARSE_DEPTH) return error(x, "括号嵌套过深");
        x->balance[x->n_balance++] = close;
    } else if (strchr("})]", op[0])) {
        if (x->n_balance == 0 || x->balance[--x->n_balance] != op[0])
            return error(x, "括号不配对");
    }
    Token *t = push(x, T_OP);
    if (!t) return false;
    memcpy(t->op, op, 3);
    advance(x, x->at + strlen(op));
    return true;
}

static bool name_char(int32_t c, bool first) {
    return c == '_' || (first ? py_isalpha_cp(c) : py_isalnum_cp(c));
}

static bool lex_name(Lexer *x) {
    size_t end = x->at;
    for (size_t at = end; at < x->s.n; end = at)
        if (!name_char(py_next(x->s, &at), false)) break;
    Token *t = push(x, T_NAME);
    if (!t) return false;
    char *copy = arena_strndup(&x->in->arena, x->s.p + x->at, end - x->at, x->in->e);
    if (!copy) return false;
    t->text = (PyText){copy, end - x->at};
    advance(x, end);
    return true;
}

/* 标签之内的一个记号；到标签结束时 *inside 置假。 */
static bool lex_inside(Lexer *x, bool *inside) {
    bool variable = x->variable;
    skip_space(x);
    if (x->at >= x->s.n) return error(x, variable ? "{{ 没有以 }} 结束" : "{% 没有以 %} 结束");
    const char *close = variable ? "}}" : "%}";
    bool trim = x->s.p[x->at] == '-', plus = x->s.p[x->at] == '+' && !variable;
    size_t skip = trim || plus ? 1 : 0;
    if (!x->n_balance && x->s.n - x->at >= skip + 2 &&
        memcmp(x->s.p + x->at + skip, close, 2) == 0) {
        if (!push(x, variable ? T_VAR_END : T_BLOCK_END)) return false;
        advance(x, x->at + skip + 2);
        if (trim) skip_space(x);
        *inside = false;
        return true;
    }
    size_t at = x->at;
    int32_t c = py_next(x->s, &at);
    if (c == '\'' || c == '"') return lex_string(x);
    if (c >= '0' && c <= '9') return lex_number(x);
    if (name_char(c, true)) return lex_name(x);
    return lex_operator(x);
}

/* 换行一律成 \n。 */
static char *normalize(Interp *in, const char *s, size_t *n) {
    size_t len = strlen(s), k = 0;
    char *copy = jinja_alloc(in, len + 1);
    for (size_t i = 0; copy && i < len; i++) {
        if (s[i] == '\r' && s[i + 1] == '\n') continue;
        copy[k++] = s[i] == '\r' ? '\n' : s[i];
    }
    *n = k;
    return copy;
}

bool jinja_lex(Interp *in, const char *source, Token **tokens) {
    Lexer x = {.in = in, .line = 1};
    if (strlen(source) > JINJA_SOURCE) return error(&x, "模板超过 1 MB");
    x.s.p = normalize(in, source, &x.s.n);
    if (!x.s.p) return false;
    if (!py_valid(x.s)) return error(&x, "模板不是合法的 UTF-8");
    bool inside = false;
    while (x.at < x.s.n || inside) {
        if (inside ? !lex_inside(&x, &inside) : !lex_text(&x, &inside)) return false;
        if (!inside) x.n_balance = 0;
    }
    if (!push(&x, T_EOF)) return false;
    *tokens = x.tokens;
    return true;
}
