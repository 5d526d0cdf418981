/* pretok_regex — 把 Oniguruma（Ruby 语法）的正则译成语义相同的 PCRE2 正则
 * HF 的预切分用 Oniguruma，两者在几处不同，这里逐一改写，改写不了的报「不支持」，决不悄悄变义：
 *   \s \S \w \W \b \h \v 的含义、脚本名（PCRE2 默认取 Script_Extensions）、(?m) 即「点匹配换行」、
 *   {n,m}+ 是重复而非占有、{,n}、\uHHHH、类别的长名字。 */
#include <string.h>

#include "model/tokenizer_internal.h"

#define GROUP_DEPTH_MAX 64
#define WORD_ITEMS "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"

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

/* \p{…}、\P{…}、\p{^…}。类别与布尔属性原样，其余当作脚本名并限定为 Script。 */
static bool property(Translator *t) {
    bool negated = t->p[t->i + 1] == 'P';
    size_t from = t->i + 3, end = from;
    if (peek(t, 2) != '{') return unsupported(t, "\\p 后没有 {");
    while (end < t->n && t->p[end] != '}') end++;
    if (end == t->n || end - from > 60) return unsupported(t, "\\p{…（没有结束）");
    char name[64] = {0};
    if (t->p[from] == '^') {
        negated = !negated;
        from++;
    }
    memcpy(name, t->p + from, end - from);
    const char *prefix = end - from > 2 ? "sc:" : "", *target = name;
    for (size_t k = 0; k < sizeof GENERAL / sizeof *GENERAL; k++) {
        if (strcasecmp(name, GENERAL[k][0]) != 0) continue;
        prefix = "";
        target = GENERAL[k][1];
    }
    str_addf(t->out, "\\%c{%s%s}", negated ? 'P' : 'p', prefix, target);
    t->i = end + 1;
    return true;
}

/* ---- 转义 ---- */

static bool escape(Translator *t) {
    char c = peek(t, 1);
    const char *word = t->in_class ? WORD_ITEMS : "[" WORD_ITEMS "]";
    switch (c) {
    case 'p': case 'P': return property(t);
    case 's': replace(t, 2, "\\p{White_Space}"); return true;
    case 'S': replace(t, 2, "\\P{White_Space}"); return true;
    case 'w': replace(t, 2, word); return true;
    case 'W':
        if (t->in_class) return unsupported(t, "方括号中的 \\W");
        replace(t, 2, "[^" WORD_ITEMS "]");
        return true;
    case 'h': replace(t, 2, t->in_class ? "0-9A-Fa-f" : "[0-9A-Fa-f]"); return true;
    case 'H':
        if (t->in_class) return unsupported(t, "方括号中的 \\H");
        replace(t, 2, "[^0-9A-Fa-f]");
        return true;
    case 'v': replace(t, 2, "\\x0b"); return true;
    case 'b':
        if (t->in_class) break; /* 退格，两者相同 */
        replace(t, 2, "(?:(?<=[" WORD_ITEMS "])(?![" WORD_ITEMS "])|(?<![" WORD_ITEMS
                      "])(?=[" WORD_ITEMS "]))");
        return true;
    case 'u':
        if (t->i + 6 > t->n) return unsupported(t, "\\u（不足四位）");
        str_addf(t->out, "\\x{%.4s}", t->p + t->i + 2);
        t->i += 6;
        return true;
    case 'B': case 'y': case 'Y': case 'N': case 'O': case 'C': case 'M': case 'Q': case 'E':
    case 'K': case 'X': case 'R':
        return unsupported(t, (char[]){'\\', c, '\0'});
    default: break;
    }
    copy(t, 2);
    return true;
}

/* ---- 方括号、括号、量词 ---- */

static bool class_item(Translator *t) {
    char c = t->p[t->i];
    if (c == '\\') return escape(t);
    if (c == '[' && peek(t, 1) == ':') {
        const char *end = memmem(t->p + t->i, t->n - t->i, ":]", 2);
        if (!end) return unsupported(t, "[:（没有结束）");
        copy(t, (size_t)(end + 2 - (t->p + t->i)));
        return true;
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

/* "(?imx-imx" 之后是 ':' 或 ')'。Ruby 的 m 是 PCRE2 的 s。 */
static bool options(Translator *t) {
    size_t k = t->i + 2;
    while (k < t->n && strchr("imx-", t->p[k])) k++;
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
    t->groups[t->depth++] = t->out->len;
    if (peek(t, 1) != '?') {
        copy(t, 1);
        return true;
    }
    char c = peek(t, 2);
    if (c && strchr("imx-", c)) return options(t);
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
