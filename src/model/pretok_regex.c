/* pretok_regex — 把 Oniguruma（Ruby 语法）的正则译成语义相同的 PCRE2 正则
 * HF 的预切分用 Oniguruma，两者在几处不同，这里逐一改写，改写不了的报「不支持」，决不悄悄变义：
 *   \s \S \w \W \b \h \v 的含义、脚本名（PCRE2 默认取 Script_Extensions）、(?m) 即「点匹配换行」、
 *   {n,m}+ 是重复而非占有、{,n}、\uHHHH、类别的长名字、[:alpha:] 之类、比 PCRE2 更新的 Unicode 字符。 */
#include <stdio.h>
#include <string.h>

#include "model/tokenizer_internal.h"

#define GROUP_DEPTH_MAX 64

typedef struct Translator {
    const char *where, *p;
    size_t n, i; /* 模式长度；当前位置 */
    Str *out;
    size_t groups[GROUP_DEPTH_MAX], depth; /* 各层括号在 out 中的起点 */
    size_t atom;                           /* 最近一个原子在 out 中的起点 */
    bool in_class;
    Err *e;
} Translator;

static bool unsupported(Translator *t, const char *what) {
    return err_set(t->e, ERR_UNSUPPORTED, "%s: 正则第 %zu 字节处用了不支持的写法 %s", t->where,
                   t->i, what);
}

static char peek(const Translator *t, size_t ahead) {
    return t->i + ahead < t->n ? t->p[t->i + ahead] : '\0';
}

static void copy(Translator *t, size_t n) {
    if (n > t->n - t->i) n = t->n - t->i;
    str_addn(t->out, t->p + t->i, n);
    t->i += n;
}

static void replace(Translator *t, size_t n, const char *with) {
    str_add(t->out, with);
    t->i += n;
}

/* 在 out 的 at 处插入文本。 */
static void insert(Str *out, size_t at, const char *text) {
    size_t n = strlen(text), tail = out->len - at;
    str_addn(out, text, n);
    if (out->failed) return;
    memmove(out->data + at + n, out->data + at, tail);
    memcpy(out->data + at, text, n);
}

/* ---- 属性 \p{…} ---- */

static const char *const GENERAL[][2] = {
    {"Letter", "L"},           {"Uppercase_Letter", "Lu"}, {"Lowercase_Letter", "Ll"},
    {"Titlecase_Letter", "Lt"}, {"Modifier_Letter", "Lm"},  {"Other_Letter", "Lo"},
    {"Mark", "M"},             {"Nonspacing_Mark", "Mn"},  {"Spacing_Mark", "Mc"},
    {"Enclosing_Mark", "Me"},  {"Number", "N"},            {"Decimal_Number", "Nd"},
    {"Letter_Number", "Nl"},   {"Other_Number", "No"},     {"Punctuation", "P"},
    {"Symbol", "S"},           {"Separator", "Z"},         {"Space_Separator", "Zs"},
    {"Other", "C"},            {"Control", "Cc"},          {"Punct", "P"},
    {"Alpha", "Alphabetic"},   {"Space", "White_Space"},   {"Upper", "Uppercase"},
    {"Lower", "Lowercase"},    {"Digit", "Nd"},            {"White_Space", "White_Space"},
    {"Alphabetic", "Alphabetic"}, {"Emoji", "Emoji"},      {"Any", "Any"}};

/* 比 PCRE2 更新的字符中属于属性 name（已是 PCRE2 的写法）的那些。 */
static void add_new(Str *out, const char *name) {
    if (strcmp(name, "sc:Han") == 0) name = "Han";
    if (strcmp(name, "Alphabetic") == 0) name = "L";
    if (strcmp(name, "Uppercase") == 0) name = "Lu";
    if (strcmp(name, "Lowercase") == 0) name = "Ll";
    if (strlen(name) <= 3) unicode_new_ranges(out, name);
}

/* 追加属性 name 或其补集。方括号中的补集无法排除新字符，只按 PCRE2 自己的数据。 */
static void add_property(Translator *t, const char *name, bool negated) {
    Str extra = {0};
    if (!(t->in_class && negated)) add_new(&extra, name);
    if (extra.failed) t->out->failed = true;
    if (!extra.len)
        str_addf(t->out, "\\%c{%s}", negated ? 'P' : 'p', name);
    else if (t->in_class)
        str_addf(t->out, "\\p{%s}%s", name, extra.data);
    else
        str_addf(t->out, "[%s\\p{%s}%s]", negated ? "^" : "", name, extra.data);
    str_free(&extra);
}

/* 单词字符（方括号内的写法），前后接上给定的文本。 */
static void add_word(Translator *t, const char *before, const char *after) {
    static const char *const ITEMS[] = {"Alphabetic", "M", "Nd", "Pc"};
    str_add(t->out, before);
    for (size_t i = 0; i < 4; i++) {
        str_addf(t->out, "\\p{%s}", ITEMS[i]);
        add_new(t->out, ITEMS[i]);
    }
    if (!t->in_class) str_add(t->out, "\\xb2\\xb3\\xb9\\xbc-\\xbe"); /* Oniguruma 的特例 */
    str_add(t->out, after);
}

/* \p{…}、\P{…}、\p{^…}。类别与布尔属性原样，其余当作脚本名并限定为 Script。 */
static bool property(Translator *t) {
    bool negated = t->p[t->i + 1] == 'P';
    size_t from = t->i + 3, end = from;
    if (peek(t, 2) != '{') return unsupported(t, "\\p 后没有 {");
    while (end < t->n && t->p[end] != '}') end++;
    if (end == t->n || end - from > 60) return unsupported(t, "\\p{…（没有结束）");
    if (t->p[from] == '^') {
        negated = !negated;
        from++;
    }
    char name[80];
    int n = (int)(end - from);
    snprintf(name, sizeof name, "%s%.*s", n > 2 ? "sc:" : "", n, t->p + from);
    for (size_t k = 0; n > 2 && k < sizeof GENERAL / sizeof *GENERAL; k++)
        if (strcasecmp(name + 3, GENERAL[k][0]) == 0) {
            snprintf(name, sizeof name, "%s", GENERAL[k][1]);
            break;
        }
    add_property(t, name, negated);
    t->i = end + 1;
    return true;
}

/* ---- 转义 ---- */

static void word_boundary(Translator *t) {
    add_word(t, "(?:(?<=[", "])");
    add_word(t, "(?![", "])|");
    add_word(t, "(?<![", "])");
    add_word(t, "(?=[", "]))");
}

static bool escape(Translator *t) {
    char c = peek(t, 1);
    if (t->in_class && (c == 'W' || c == 'H')) return unsupported(t, "方括号中的 \\W、\\H");
    switch (c) {
    case 'p': case 'P': return property(t);
    case 's': replace(t, 2, "\\p{White_Space}"); return true;
    case 'S': replace(t, 2, "\\P{White_Space}"); return true;
    case 'h': replace(t, 2, t->in_class ? "0-9A-Fa-f" : "[0-9A-Fa-f]"); return true;
    case 'H': replace(t, 2, "[^0-9A-Fa-f]"); return true;
    case 'v': replace(t, 2, "\\x0b"); return true;
    case 'w': add_word(t, t->in_class ? "" : "[", t->in_class ? "" : "]"); break;
    case 'W': add_word(t, "[^", "]"); break;
    case 'd': case 'D': add_property(t, "Nd", c == 'D'); break;
    case 'b':
        if (t->in_class) { /* 退格，两者相同 */
            copy(t, 2);
            return true;
        }
        word_boundary(t);
        break;
    case 'u':
        if (t->i + 6 > t->n) return unsupported(t, "\\u（不足四位）");
        str_addf(t->out, "\\x{%.4s}", t->p + t->i + 2);
        t->i += 6;
        return true;
    case 'B': case 'y': case 'Y': case 'N': case 'O': case 'C': case 'M': case 'Q': case 'E':
    case 'K': case 'X': case 'R':
        return unsupported(t, (char[]){'\\', c, '\0'});
    default: copy(t, 2); return true;
    }
    t->i += 2;
    return true;
}

/* ---- 方括号、括号、量词 ---- */

/* 方括号中的 [:alpha:] 之类，取 Oniguruma 的 Unicode 含义。 */
static bool posix_class(Translator *t) {
    static const struct {
        const char *name, *first, *second;
    } CLASSES[] = {{"alpha", "Alphabetic", NULL}, {"digit", "Nd", NULL},
                   {"alnum", "Alphabetic", "Nd"}, {"space", "White_Space", NULL},
                   {"upper", "Uppercase", NULL},  {"lower", "Lowercase", NULL},
                   {"punct", "P", "S"}};
    for (size_t i = 0; i < sizeof CLASSES / sizeof *CLASSES; i++) {
        size_t n = strlen(CLASSES[i].name);
        if (t->n - t->i < n + 4 || memcmp(t->p + t->i + 2, CLASSES[i].name, n) != 0 ||
            memcmp(t->p + t->i + 2 + n, ":]", 2) != 0)
            continue;
        add_property(t, CLASSES[i].first, false);
        if (CLASSES[i].second) add_property(t, CLASSES[i].second, false);
        t->i += n + 4;
        return true;
    }
    return unsupported(t, "[:…:]");
}

static bool class_item(Translator *t) {
    char c = t->p[t->i];
    if (c == '\\') return escape(t);
    if (c == '[' && peek(t, 1) == ':') {
        return posix_class(t);
    }
    if (c == '[') return unsupported(t, "嵌套的方括号");
    if (c == '&' && peek(t, 1) == '&') return unsupported(t, "方括号中的 &&");
    copy(t, 1);
    return true;
}

static bool bracket(Translator *t) {
    t->atom = t->out->len;
    t->in_class = true;
    copy(t, peek(t, 1) == '^' ? 2 : 1);
    if (peek(t, 0) == ']') copy(t, 1);
    while (t->i < t->n && t->p[t->i] != ']')
        if (!class_item(t)) return false;
    t->in_class = false;
    copy(t, 1);
    return true;
}

/* "(?im-im" 之后是 ':' 或 ')'。Ruby 的 m 是 PCRE2 的 s。 */
static bool options(Translator *t) {
    size_t k = t->i + 2;
    while (k < t->n && strchr("im-", t->p[k])) k++;
    bool scoped = k < t->n && t->p[k] == ':';
    if (!scoped && (t->i > 0 || k >= t->n || t->p[k] != ')'))
        return unsupported(t, "(?选项)（只能在开头）");
    str_add(t->out, "(?");
    for (t->i += 2; t->i < k; t->i++)
        str_addn(t->out, t->p[t->i] == 'm' ? "s" : t->p + t->i, 1);
    if (scoped) {
        copy(t, 1);
    } else {
        copy(t, 1);
        t->depth--;
    }
    return true;
}

static bool open_group(Translator *t) {
    if (t->depth == GROUP_DEPTH_MAX) return unsupported(t, "过深的括号");
    if (peek(t, 1) == '*') return unsupported(t, "(*");
    t->groups[t->depth++] = t->out->len;
    if (peek(t, 1) != '?') {
        copy(t, 1);
        return true;
    }
    char c = peek(t, 2);
    if (c && strchr("im-", c)) return options(t);
    if (!c || !strchr(":=!><#", c)) return unsupported(t, "(?…");
    if (c == '#') {
        while (t->i < t->n && t->p[t->i] != ')') t->i++;
        if (t->i < t->n) t->i++;
        t->depth--;
        return true;
    }
    copy(t, 3);
    return true;
}

/* {n}、{n,}、{n,m}、{,m} 的长度；不是量词则 0。 */
static size_t interval(const Translator *t, bool *fixed, bool *no_low) {
    size_t k = t->i + 1, digits = 0;
    while (k < t->n && t->p[k] >= '0' && t->p[k] <= '9') k++, digits++;
    *no_low = digits == 0;
    *fixed = !(k < t->n && t->p[k] == ',');
    if (!*fixed)
        for (k++; k < t->n && t->p[k] >= '0' && t->p[k] <= '9'; k++) digits++;
    return digits && k < t->n && t->p[k] == '}' ? k + 1 - t->i : 0;
}

static bool brace(Translator *t) {
    bool fixed, no_low;
    size_t n = interval(t, &fixed, &no_low);
    if (n == 0) {
        t->atom = t->out->len;
        copy(t, 1);
        return true;
    }
    if (no_low) {
        replace(t, 1, "{0");
        n--;
    }
    copy(t, n);
    char next = peek(t, 0);
    if (next == '+' || (next == '?' && fixed)) { /* 在 Ruby 中这是对前面整体的再次重复 */
        insert(t->out, t->atom, "(?:");
        str_add(t->out, ")");
    }
    return true;
}

static bool item(Translator *t) {
    switch (t->p[t->i]) {
    case '\\':
        t->atom = t->out->len;
        return t->i + 1 < t->n ? escape(t) : unsupported(t, "末尾的 \\");
    case '[': return bracket(t);
    case '(': return open_group(t);
    case ')':
        if (t->depth) t->atom = t->groups[--t->depth];
        copy(t, 1);
        return true;
    case '{': return brace(t);
    case '*': case '+': case '?': case '|':
        copy(t, 1);
        return true;
    default: {
        size_t len;
        utf8_next(t->p + t->i, t->n - t->i, &len);
        t->atom = t->out->len;
        copy(t, len);
        return true;
    }
    }
}

bool pretok_translate(const char *where, const char *pattern, size_t len, Str *out, Err *e) {
    Translator t = {.where = where, .p = pattern, .n = len, .out = out, .e = e};
    t.atom = out->len;
    while (t.i < t.n)
        if (!item(&t)) return false;
    if (out->failed) return err_set(e, ERR_MEMORY, "%s: 内存不足：译正则", where);
    return true;
}
