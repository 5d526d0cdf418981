/* tokenizer_scan — tokenizer.json 中两块大数据（model.vocab、model.merges）的直接扫描
 * 通用的 JSON 库为十几万个条目各建一个对象，打开 Llama 3 的分词器要半秒；这里只扫一遍文本。
 * 做法: 找到两块的位置；其余部分（两块换成空的 {} 与 []，行数不变）交给通用库严格解析；
 * 两块由这里的小解析器严格解析，语法与 RFC 8259 相同，错误带 文件:行。 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/json.h"
#include "model/tokenizer_internal.h"

/* ---- 定位 ---- */

typedef struct Cursor {
    const char *p;
    size_t n, i;
} Cursor;

static char look(const Cursor *c) {
    return c->i < c->n ? c->p[c->i] : '\0';
}

static void skip_space(Cursor *c) {
    while (c->i < c->n && (c->p[c->i] == ' ' || c->p[c->i] == '\n' || c->p[c->i] == '\t' ||
                           c->p[c->i] == '\r'))
        c->i++;
}

/* 跳过字符串（光标在开头的引号上）；没有结束则到末尾。 */
static void skip_string(Cursor *c) {
    for (c->i++; c->i < c->n && c->p[c->i] != '"'; c->i++)
        if (c->p[c->i] == '\\') c->i++;
    c->i = c->i < c->n ? c->i + 1 : c->n;
}

/* 粗略跳过一个值，只数括号；真正的检查另有人做。 */
static void skip_value(Cursor *c) {
    size_t depth = 0;
    skip_space(c);
    do {
        char ch = look(c);
        if (ch == '"') {
            skip_string(c);
            continue;
        }
        if ((ch == ',' || ch == '}' || ch == ']') && depth == 0) return;
        if (ch == '{' || ch == '[') depth++;
        if (ch == '}' || ch == ']') depth--;
        if (c->i < c->n) c->i++;
    } while (c->i < c->n && (depth > 0 || !strchr(",}]", look(c))));
}

/* 在对象中找键 key：光标在 '{' 上，找到后停在它的值上。 */
static bool find_key(Cursor c, const char *key, Cursor *found) {
    size_t n = strlen(key);
    if (look(&c) != '{') return false;
    for (c.i++;; c.i++) {
        skip_space(&c);
        if (look(&c) != '"') return false;
        size_t from = c.i + 1;
        skip_string(&c);
        bool hit = c.i == from + n + 1 && memcmp(c.p + from, key, n) == 0;
        skip_space(&c);
        if (look(&c) != ':') return false;
        c.i++;
        skip_space(&c);
        if (hit) {
            *found = c;
            return true;
        }
        skip_value(&c);
        skip_space(&c);
        if (look(&c) != ',') return false;
    }
}

static ScanSpan span_of(Cursor model, const char *key) {
    Cursor c;
    if (!find_key(model, key, &c)) return (ScanSpan){0};
    size_t start = c.i;
    skip_value(&c);
    return (ScanSpan){start, c.i};
}

/* 把 s 换成空的括号与同样多的换行。 */
static void add_blank(Str *out, const char *text, ScanSpan s) {
    if (s.start == s.end) return;
    bool object = text[s.start] == '{';
    str_add(out, object ? "{" : "[");
    for (size_t i = s.start; i < s.end; i++)
        if (text[i] == '\n') str_addn(out, "\n", 1);
    str_add(out, object ? "}" : "]");
}

json_t *scan_skeleton(const char *name, const char *text, size_t len, ScanSpan *vocab,
                      ScanSpan *merges, Err *e) {
    Cursor c = {text, len, 0}, model;
    if (len >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) c.i = 3;
    skip_space(&c);
    *vocab = *merges = (ScanSpan){0};
    if (find_key(c, "model", &model)) {
        *vocab = span_of(model, "vocab");
        *merges = span_of(model, "merges");
    }
    bool vocab_ok = vocab->end > vocab->start && strchr("{[", text[vocab->start]);
    bool merges_ok = merges->end > merges->start && text[merges->start] == '[';
    if (!merges_ok) *merges = (ScanSpan){0};
    if (!vocab_ok) { /* 不是这种文件：由通用库指出语法错误，或由调用者指出缺什么 */
        *vocab = *merges = (ScanSpan){0};
        return json_parse(name, text, len, e);
    }
    bool swap = vocab->start > merges->start;
    ScanSpan a = swap ? *merges : *vocab, b = swap ? *vocab : *merges;
    Str s = {0};
    size_t done = 0;
    if (a.end) { /* 只有词表时 a 是空的 */
        str_addn(&s, text, a.start);
        add_blank(&s, text, a);
        done = a.end;
    }
    str_addn(&s, text + done, b.start - done);
    add_blank(&s, text, b);
    str_addn(&s, text + b.end, len - b.end);
    json_t *root = s.failed ? NULL : json_parse(name, s.data, s.len, e);
    if (s.failed) err_set(e, ERR_MEMORY, "%s: 内存不足", name);
    str_free(&s);
    return root;
}

/* ---- 严格解析 ---- */

typedef struct Scanner {
    Cursor c; /* n 为块的末尾 */
    const char *name;
    Err *e;
} Scanner;

static bool bad(const Scanner *s, const char *what) {
    size_t line = 1;
    for (size_t i = 0; i < s->c.i && i < s->c.n; i++) line += s->c.p[i] == '\n';
    return err_set(s->e, ERR_FORMAT, "%s:%zu: %s", s->name, line, what);
}

static bool expect(Scanner *s, char ch, const char *what) {
    skip_space(&s->c);
    if (look(&s->c) != ch || s->c.i >= s->c.n) return bad(s, what);
    s->c.i++;
    return true;
}

static int hex4(const Cursor *c, size_t at) {
    int v = 0;
    if (at + 4 > c->n) return -1;
    for (size_t i = at; i < at + 4; i++) {
        char ch = c->p[i];
        int d = ch >= '0' && ch <= '9'   ? ch - '0'
                : ch >= 'a' && ch <= 'f' ? ch - 'a' + 10
                : ch >= 'A' && ch <= 'F' ? ch - 'A' + 10
                                         : -1;
        if (d < 0) return -1;
        v = v * 16 + d;
    }
    return v;
}

/* \uXXXX（光标在反斜杠上），代理对合成一个码点。 */
static bool unicode_escape(Scanner *s, Str *buf) {
    Cursor *c = &s->c;
    int hi = hex4(c, c->i + 2), lo;
    if (hi < 0) return bad(s, "\\u 之后应是四位十六进制数");
    c->i += 6;
    if (hi >= 0xD800 && hi < 0xDC00) {
        bool pair = c->i + 6 <= c->n && c->p[c->i] == '\\' && c->p[c->i + 1] == 'u';
        lo = pair ? hex4(c, c->i + 2) : -1;
        if (lo < 0xDC00 || lo > 0xDFFF) return bad(s, "不成对的代理 \\uD8xx");
        c->i += 6;
        hi = 0x10000 + ((hi - 0xD800) << 10) + (lo - 0xDC00);
    } else if (hi >= 0xDC00 && hi < 0xE000) {
        return bad(s, "不成对的代理 \\uDCxx");
    }
    utf8_add(buf, hi);
    return true;
}

static bool escape(Scanner *s, Str *buf) {
    static const char FROM[] = "\"\\/bfnrt", TO[] = "\"\\/\b\f\n\r\t";
    char ch = s->c.i + 1 < s->c.n ? s->c.p[s->c.i + 1] : '\0';
    if (ch == 'u') return unicode_escape(s, buf);
    const char *k = ch ? strchr(FROM, ch) : NULL;
    if (!k) return bad(s, "字符串中的转义不合法");
    str_addn(buf, TO + (k - FROM), 1);
    s->c.i += 2;
    return true;
}

/* 读一个字符串。无转义时指向原文，否则写入 buf。 */
static bool read_string(Scanner *s, Str *buf, const char **text, size_t *len) {
    if (!expect(s, '"', "应是字符串")) return false;
    Cursor *c = &s->c;
    size_t from = c->i;
    while (c->i < c->n && (uint8_t)c->p[c->i] >= 0x20 && c->p[c->i] != '"' && c->p[c->i] != '\\')
        c->i++;
    *text = c->p + from;
    *len = c->i - from;
    if (look(c) == '\\' && c->i < c->n) {
        buf->len = 0;
        str_addn(buf, c->p + from, c->i - from);
        while (c->i < c->n && c->p[c->i] != '"') {
            if ((uint8_t)c->p[c->i] < 0x20) return bad(s, "字符串中有控制字符");
            if (c->p[c->i] == '\\') {
                if (!escape(s, buf)) return false;
                continue;
            }
            str_addn(buf, c->p + c->i++, 1);
        }
        if (buf->failed) return err_set(s->e, ERR_MEMORY, "%s: 内存不足", s->name);
        *text = buf->data;
        *len = buf->len;
    }
    if (c->i >= c->n || c->p[c->i] != '"') return bad(s, "字符串没有结束，或其中有控制字符");
    c->i++;
    return utf8_valid(*text, *len) || bad(s, "字符串不是合法的 UTF-8");
}

static bool read_id(Scanner *s, int64_t *id) {
    Cursor *c = &s->c;
    skip_space(c);
    bool minus = look(c) == '-';
    if (minus) c->i++;
    size_t from = c->i;
    *id = 0;
    while (c->i < c->n && c->p[c->i] >= '0' && c->p[c->i] <= '9') {
        if (*id > INT32_MAX) return bad(s, "id 过大");
        *id = *id * 10 + (c->p[c->i++] - '0');
    }
    size_t digits = c->i - from;
    char next = c->i < c->n ? c->p[c->i] : '\0';
    if (digits == 0 || (digits > 1 && c->p[from] == '0') || (next && strchr(".eE", next)))
        return bad(s, "token 的 id 不是整数");
    if (minus) *id = -*id;
    return true;
}

/* 元素之间的逗号。返回: 1 还有下一个，0 到了 close，-1 出错。 */
static int separator(Scanner *s, char close) {
    skip_space(&s->c);
    char ch = look(&s->c);
    if (ch != ',' && ch != close) {
        bad(s, "应是逗号或结束的括号");
        return -1;
    }
    s->c.i++;
    return ch == ',';
}

/* 空的容器：光标在开括号之后。 */
static bool at_close(Scanner *s, char close) {
    skip_space(&s->c);
    if (look(&s->c) != close) return false;
    s->c.i++;
    return true;
}

bool scan_vocab(Vocab *v, const char *name, const char *text, ScanSpan span, Err *e) {
    Scanner s = {{text, span.end, span.start}, name, e};
    Str buf = {0};
    const char *key;
    size_t len;
    int64_t id;
    int more = expect(&s, '{', "model.vocab 应为对象") ? 1 : -1;
    if (more > 0 && at_close(&s, '}')) more = 0;
    while (more > 0) {
        bool ok = read_string(&s, &buf, &key, &len) && expect(&s, ':', "应是冒号") &&
                  read_id(&s, &id) && vocab_add(v, name, key, len, id, e);
        more = ok ? separator(&s, '}') : -1;
    }
    str_free(&buf);
    return more == 0;
}

/* JSON 的数。取值同 serde_json 的快速算法：有效数字（u64）乘或除以 10 的幂。 */
static bool read_number(Scanner *s, double *out) {
    Cursor *c = &s->c;
    uint64_t digits = 0;
    int64_t exponent = 0, written = 0;
    size_t n = 0;
    bool minus, point = false, full = false;
    skip_space(c);
    if ((minus = look(c) == '-')) c->i++;
    for (; c->i < c->n; c->i++) {
        char ch = c->p[c->i];
        if (ch == '.' && !point && n > 0) {
            point = true;
            continue;
        }
        if (ch < '0' || ch > '9') break;
        n++;
        full = full || digits > (UINT64_MAX - 9) / 10;
        if (!full) digits = digits * 10 + (uint64_t)(ch - '0');
        exponent += full ? !point : -(int64_t)point;
    }
    if (n == 0) return bad(s, "token 的分数不是数");
    if (c->i < c->n && (look(c) | 0x20) == 'e') {
        c->i++;
        bool negative = look(c) == '-';
        if (c->i < c->n && (negative || look(c) == '+')) c->i++;
        size_t from = c->i;
        for (; c->i < c->n && c->p[c->i] >= '0' && c->p[c->i] <= '9'; c->i++)
            if (written < 100000) written = written * 10 + (c->p[c->i] - '0');
        if (c->i == from) return bad(s, "token 的分数不是数");
        exponent += negative ? -written : written;
    }
    double v = (double)digits;
    for (; exponent < -308; exponent += 308) v /= 1e308;
    if (exponent > 308 && v != 0) return bad(s, "token 的分数过大");
    double power = pow(10, (double)(exponent < 0 ? -exponent : exponent > 308 ? 0 : exponent));
    v = exponent < 0 ? v / power : v * power;
    if (!isfinite(v)) return bad(s, "token 的分数过大");
    *out = minus ? -v : v;
    return true;
}

/* 一项 [文本, 分数]。 */
static bool scan_pair(Scanner *s, Vocab *v, Str *buf, double **scores, size_t *cap) {
    const char *text;
    size_t len;
    double score = 0;
    if (!expect(s, '[', "应是 [文本, 分数]") || !read_string(s, buf, &text, &len) ||
        !expect(s, ',', "应是 [文本, 分数]") || !read_number(s, &score) ||
        !expect(s, ']', "应是 [文本, 分数]"))
        return false;
    size_t id = (size_t)v->n_ids;
    if (id == *cap) {
        *cap = *cap ? *cap * 2 : 1024;
        double *p = ARENA_ARRAY(v->arena, double, *cap, s->e);
        if (!p) return false;
        if (id) memcpy(p, *scores, id * sizeof *p);
        *scores = p;
    }
    (*scores)[id] = score;
    return vocab_add_again(v, s->name, text, len, (int64_t)id, s->e);
}

bool scan_scored(Vocab *v, double **scores, const char *name, const char *text, ScanSpan span,
                 Err *e) {
    Scanner s = {{text, span.end, span.start}, name, e};
    Str buf = {0};
    size_t cap = 0;
    *scores = NULL;
    int more = expect(&s, '[', "model.vocab 应为数组") ? 1 : -1;
    if (more > 0 && at_close(&s, ']')) more = 0;
    while (more > 0) more = scan_pair(&s, v, &buf, scores, &cap) ? separator(&s, ']') : -1;
    str_free(&buf);
    return more == 0;
}

/* 第 index 条归并，"a b" 或 ["a", "b"]。旧式列表里的 "#version" 行不算。 */
static bool scan_merge(Scanner *s, Bpe *b, Str *left, Str *right, size_t *index) {
    const char *l, *r;
    size_t nl, nr;
    skip_space(&s->c);
    if (look(&s->c) == '"') {
        if (!read_string(s, left, &l, &nl)) return false;
        if (nl >= 8 && memcmp(l, "#version", 8) == 0) return true;
        return bpe_add_merge_text(b, s->name, (*index)++, l, nl, s->e);
    }
    return expect(s, '[', "归并应是 \"a b\" 或 [\"a\", \"b\"]") && read_string(s, left, &l, &nl) &&
           expect(s, ',', "归并应有两项") && read_string(s, right, &r, &nr) &&
           expect(s, ']', "归并应有两项") &&
           bpe_add_merge(b, s->name, (*index)++, l, nl, r, nr, s->e);
}

bool scan_merges(Bpe *b, const char *name, const char *text, ScanSpan span, Err *e) {
    Scanner s = {{text, span.end, span.start}, name, e};
    Str left = {0}, right = {0};
    size_t index = 0;
    int more = expect(&s, '[', "model.merges 应为数组") ? 1 : -1;
    if (more > 0 && at_close(&s, ']')) more = 0;
    while (more > 0)
        more = scan_merge(&s, b, &left, &right, &index) ? separator(&s, ']') : -1;
    str_free(&left);
    str_free(&right);
    return more == 0;
}
