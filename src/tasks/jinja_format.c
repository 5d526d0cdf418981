/* jinja_format — '…' % (…) 与 '…'.format(…)
 * 格式说明 [[fill]align][sign][#][0][width][,][.precision][type] 两者共用；{} 里支持 名字、序号、.属性、[下标]、!r !s。 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tasks/jinja_internal.h"

enum { WIDTH_MAX = 10000, PRECISION_MAX = 300 };

typedef struct Spec {
    PyText fill;
    char align, sign, type;
    bool alternate, zero, comma;
    int width, precision; /* precision 没有为 -1 */
} Spec;

/* 每三位一个逗号（只动整数部分）。 */
static void add_commas(Str *out, const char *digits) {
    size_t n = strspn(digits, "0123456789");
    for (size_t i = 0; i < n; i++) {
        if (i && (n - i) % 3 == 0) str_add(out, ",");
        str_addn(out, digits + i, 1);
    }
    str_add(out, digits + n);
}

/* 补到宽度：sign_len 是最前面的符号与前缀的字节数（'=' 对齐时填充在其后）。 */
static void pad(Str *out, const Spec *s, const Str *body, size_t sign_len, char def) {
    PyText t = {body->data ? body->data : "", body->len};
    int n = (int)py_length(t), gap = s->width > n ? s->width - n : 0;
    char align = s->align ? s->align : def;
    int left = align == '>' ? gap : align == '^' ? gap / 2 : 0;
    PyText fill = s->fill.n ? s->fill : (PyText){s->zero && align == '=' ? "0" : " ", 1};
    for (int i = 0; i < left; i++) str_addn(out, fill.p, fill.n);
    str_addn(out, t.p, align == '=' ? sign_len : t.n);
    if (align == '=') {
        for (int i = 0; i < gap; i++) str_addn(out, fill.p, fill.n);
        str_addn(out, t.p + sign_len, t.n - sign_len);
    } else {
        for (int i = left; i < gap; i++) str_addn(out, fill.p, fill.n);
    }
}

static void add_sign(Str *out, const Spec *s, bool negative) {
    if (negative) str_add(out, "-");
    else if (s->sign == '+' || s->sign == ' ') str_addf(out, "%c", s->sign);
}

static bool format_int(Interp *in, Str *out, const Spec *s, int64_t v) {
    uint64_t u = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
    char digits[72];
    Str body = {0};
    add_sign(&body, s, v < 0);
    size_t n = 0, sign;
    if (s->type == 'b') {
        for (int bit = 63; bit >= 0; bit--)
            if (n || bit == 0 || (u >> bit) & 1) digits[n++] = (char)('0' + ((u >> bit) & 1));
        digits[n] = '\0';
    } else {
        const char *fmt = s->type == 'x' ? "%llx" : s->type == 'X' ? "%llX"
                          : s->type == 'o' ? "%llo" : "%llu";
        snprintf(digits, sizeof digits, fmt, (unsigned long long)u);
    }
    if (s->alternate && s->type && strchr("xXob", s->type)) str_addf(&body, "0%c", s->type);
    sign = body.len;
    if (s->comma) add_commas(&body, digits);
    else str_add(&body, digits);
    pad(out, s, &body, sign, s->zero ? '=' : '>');
    bool ok = !body.failed;
    str_free(&body);
    return ok || jinja_fail(in, "内存不足");
}

/* 没有类型字母、但有精度时的写法：像 g，但至少一位小数。 */
static void general(Str *out, double v, int precision) {
    char buf[400];
    snprintf(buf, sizeof buf, "%.*g", precision ? precision : 1, v);
    str_add(out, buf);
    if (!strpbrk(buf, ".eni")) str_add(out, ".0");
}

static bool format_real(Interp *in, Str *out, const Spec *s, double v) {
    char number[700];
    Str body = {0}, plain = {0};
    int precision = s->precision < 0 ? 6 : s->precision;
    double u = fabs(v);
    add_sign(&body, s, signbit(v) && !isnan(v));
    size_t sign = body.len;
    if (!isfinite(v)) {
        str_add(&plain, isnan(v) ? "nan" : "inf");
    } else if (!s->type && s->precision < 0) {
        py_float(&plain, u);
    } else if (!s->type) {
        general(&plain, u, precision);
    } else {
        const char fmt[] = {'%', '.', '*', s->type == '%' ? 'f' : s->type, '\0'};
        snprintf(number, sizeof number, fmt, precision, s->type == '%' ? u * 100 : u);
        str_add(&plain, number);
    }
    if (s->comma) add_commas(&body, plain.data ? plain.data : "");
    else str_addn(&body, plain.data, plain.len);
    if (s->type == '%') str_add(&body, "%");
    pad(out, s, &body, sign, s->zero ? '=' : '>');
    bool ok = !body.failed && !plain.failed;
    str_free(&body);
    str_free(&plain);
    return ok || jinja_fail(in, "内存不足");
}

static bool format_text(Interp *in, Str *out, const Spec *s, PyText t) {
    Str body = {0};
    if (s->precision >= 0) t.n = py_offset(t, (size_t)s->precision);
    str_addn(&body, t.p, t.n);
    pad(out, s, &body, 0, '<');
    bool ok = !body.failed;
    str_free(&body);
    return ok || jinja_fail(in, "内存不足");
}

static bool format_value(Interp *in, Str *out, const Spec *s, Value v) {
    int64_t i;
    double d;
    PyText t;
    bool real = s->type && strchr("eEfFgG%", s->type);
    if (!jinja_defined(in, v) || !jinja_spend(in, (size_t)s->width)) return false;
    if (v.kind == V_BOOL && !s->type) return v_to_text(in, v, &t) && format_text(in, out, s, t);
    if (v_integer(v, &i) && !real) return format_int(in, out, s, i);
    if (v_number(v, &d) && (real || !s->type)) return format_real(in, out, s, d);
    if (s->type && s->type != 's')
        return jinja_fail(in, "格式 '%c' 不能用于 %s", s->type, jinja_type_name(v));
    return v_to_text(in, v, &t) && format_text(in, out, s, t);
}

static bool small_number(Interp *in, PyText t, size_t *at, int max, int *out) {
    *out = 0;
    for (; *at < t.n && t.p[*at] >= '0' && t.p[*at] <= '9'; (*at)++) {
        *out = *out * 10 + (t.p[*at] - '0');
        if (*out > max) return jinja_fail(in, "格式里的宽度或精度太大");
    }
    return true;
}

static char at_char(PyText t, size_t at) {
    return at < t.n ? t.p[at] : '\0';
}

/* {…:说明} 的说明。 */
static bool parse_spec(Interp *in, PyText t, Spec *s) {
    size_t at = 0, fill = 0;
    *s = (Spec){.precision = -1};
    if (t.n) py_next(t, &fill);
    if (fill && at_char(t, fill) && strchr("<>^=", at_char(t, fill))) {
        s->fill = (PyText){t.p, fill};
        s->align = t.p[fill];
        at = fill + 1;
    } else if (t.n && strchr("<>^=", *t.p) && *t.p) {
        s->align = t.p[at++];
    }
    if (at_char(t, at) && strchr("+- ", at_char(t, at))) s->sign = t.p[at++];
    if (at_char(t, at) == '#') s->alternate = true, at++;
    if (at_char(t, at) == '0') s->zero = true, at++;
    if (!small_number(in, t, &at, WIDTH_MAX, &s->width)) return false;
    if (at_char(t, at) == ',') s->comma = true, at++;
    if (at_char(t, at) == '.') {
        at++;
        if (!small_number(in, t, &at, PRECISION_MAX, &s->precision)) return false;
    }
    if (at < t.n) s->type = t.p[at++];
    if (at < t.n || (s->type && !strchr("bdoxXeEfFgGs%", s->type)))
        return jinja_fail(in, "不认得的格式说明 '%.*s'", (int)(t.n < 60 ? t.n : 60), t.p);
    if (s->type == 'd') s->type = '\0';
    return true;
}

typedef struct Fields {
    const Args *args;
    int64_t automatic; /* 下一个自动序号 */
} Fields;

/* 「名字或序号(.属性|[下标])*」。 */
static bool field_value(Interp *in, Fields *f, PyText t, Value *out) {
    size_t end = 0;
    int64_t index = -1;
    bool overflow;
    while (end < t.n && t.p[end] != '.' && t.p[end] != '[') end++;
    PyText head = {t.p, end};
    if (!end) index = f->automatic++;
    else if (!py_parse_int(head, 10, &index, &overflow)) index = -1;
    bool found = index >= 0 && (size_t)index < f->args->n;
    if (found) *out = f->args->items[index];
    for (size_t i = 0; index < 0 && i < f->args->n_named; i++)
        if (py_same(py_text(f->args->names[i]), head)) *out = f->args->named[i], found = true;
    if (!found) return jinja_fail(in, "format 缺少参数 '%.*s'", (int)(t.n < 60 ? t.n : 60), t.p);
    while (end < t.n) {
        size_t from = end + 1;
        bool item = t.p[end] == '[';
        end = from;
        while (end < t.n && (item ? t.p[end] != ']' : t.p[end] != '.' && t.p[end] != '[')) end++;
        PyText name = {t.p + from, end - from};
        if (item && end++ >= t.n) return jinja_fail(in, "format 的 [ 没有结束");
        Value key = item && py_parse_int(name, 10, &index, &overflow) ? v_int(index) : v_text(name);
        const char *attr = arena_strndup(&in->arena, name.p, name.n, in->e);
        if (!attr) return false;
        if (item ? !jinja_item(in, *out, key, out) : !jinja_attribute(in, *out, attr, out))
            return false;
    }
    return true;
}

/* 一个 {…}（不含花括号）。 */
static bool replacement(Interp *in, Fields *f, PyText t, Str *out) {
    size_t colon = py_find(t, py_text(":"), 0), end = colon == SIZE_MAX ? t.n : colon;
    char conversion = '\0';
    if (end >= 2 && t.p[end - 2] == '!') {
        conversion = t.p[end - 1];
        if (conversion != 'r' && conversion != 's')
            return jinja_fail(in, "format 不认得转换 !%c", conversion);
        end -= 2;
    }
    Value v;
    Spec spec;
    PyText spec_text = {"", 0};
    if (colon != SIZE_MAX) spec_text = (PyText){t.p + colon + 1, t.n - colon - 1};
    if (py_find(spec_text, py_text("{"), 0) != SIZE_MAX)
        return jinja_fail(in, "format 的说明里不支持嵌套的 {}");
    if (!field_value(in, f, (PyText){t.p, end}, &v) || !parse_spec(in, spec_text, &spec))
        return false;
    if (conversion) {
        Str s = {0};
        bool ok = jinja_defined(in, v) &&
                  (conversion == 'r' ? v_repr(in, &s, v) : v_show(in, &s, v));
        if (!v_take_str(in, &s, &v) || !ok) return false;
    }
    return format_value(in, out, &spec, v);
}

bool jinja_format_method(Interp *in, Value self, const Args *args, Value *out) {
    PyText t = self.u.str;
    Fields f = {.args = args};
    Str s = {0};
    bool ok = true;
    for (size_t at = 0; ok && at < t.n;) {
        char c = t.p[at];
        if ((c == '{' || c == '}') && at_char(t, at + 1) == c) {
            str_addn(&s, &c, 1);
            at += 2;
        } else if (c == '{') {
            size_t close = py_find(t, py_text("}"), at);
            ok = close != SIZE_MAX || jinja_fail(in, "format 的 { 没有结束");
            ok = ok && replacement(in, &f, (PyText){t.p + at + 1, close - at - 1}, &s);
            at = close + 1;
        } else if (c == '}') {
            ok = jinja_fail(in, "format 里有单独的 }");
        } else {
            str_addn(&s, &c, 1);
            at++;
        }
        if (s.len > JINJA_OUTPUT) ok = jinja_fail(in, "输出超过 16 MB");
    }
    return v_take_str(in, &s, out) && ok;
}

/* % 的一个转换说明，*at 在 % 之后。 */
static bool percent_one(Interp *in, PyText t, size_t *at, Value args, size_t *used, Str *out) {
    Spec s = {.precision = -1};
    Value v = args;
    bool named = at_char(t, *at) == '(', left = false;
    if (named) {
        size_t close = py_find(t, py_text(")"), *at);
        if (close == SIZE_MAX || args.kind != V_DICT) return jinja_fail(in, "%%(名字) 要字典");
        Value *found, key = v_text((PyText){t.p + *at + 1, close - *at - 1});
        if (!v_find(in, args.u.dict, key, &found)) return false;
        if (!found) return jinja_fail(in, "%%(名字) 的键不存在");
        v = *found;
        *at = close + 1;
    }
    for (char c; (c = at_char(t, *at)) && strchr("-+ #0", c); (*at)++) {
        if (c == '-') left = true;
        else if (c == '#') s.alternate = true;
        else if (c == '0') s.zero = true;
        else s.sign = s.sign == '+' ? '+' : c;
    }
    if (!small_number(in, t, at, WIDTH_MAX, &s.width)) return false;
    if (at_char(t, *at) == '.') {
        ++*at;
        if (!small_number(in, t, at, PRECISION_MAX, &s.precision)) return false;
    }
    char type = at_char(t, (*at)++);
    if (type == '%') {
        str_add(out, "%");
        return true;
    }
    if (!type || !strchr("sdifFeEgGxXor", type))
        return jinja_fail(in, "不认得的格式 %%%c", type ? type : ' ');
    if (!named && args.kind == V_TUPLE) {
        if (*used >= args.u.list->n) return jinja_fail(in, "格式要的参数比给的多");
        v = args.u.list->items[*used];
    } else if (!named && *used) {
        return jinja_fail(in, "格式要的参数比给的多");
    }
    ++*used;
    s.align = left ? '<' : '\0';
    if (left) s.zero = false;
    if (type == 's' || type == 'r') {
        Str text = {0};
        bool ok = jinja_defined(in, v) &&
                  (type == 'r' ? v_repr(in, &text, v) : v_show(in, &text, v));
        if (!v_take_str(in, &text, &v) || !ok) return false;
        if (!left) s.align = '>';
        return format_text(in, out, &s, v.u.str);
    }
    double d;
    if (!v_number(v, &d)) return jinja_fail(in, "%%%c 要数，实为 %s", type, jinja_type_name(v));
    if (type == 'd' || type == 'i') {
        if (v.kind == V_FLOAT && !(fabs(d) < 9.2e18)) return jinja_fail(in, "整数超出 64 位");
        if (v.kind == V_FLOAT) v = v_int((int64_t)d);
        s.precision = -1;
    } else {
        s.type = type;
    }
    return format_value(in, out, &s, v);
}

bool jinja_percent(Interp *in, PyText t, Value args, Value *out) {
    Str s = {0};
    size_t used = 0;
    bool ok = true;
    for (size_t at = 0; ok && at < t.n;) {
        if (t.p[at] != '%') {
            str_addn(&s, t.p + at++, 1);
        } else {
            at++;
            ok = percent_one(in, t, &at, args, &used, &s);
        }
        if (s.len > JINJA_OUTPUT) ok = jinja_fail(in, "输出超过 16 MB");
    }
    size_t given = args.kind == V_TUPLE ? args.u.list->n : args.kind == V_DICT ? used : 1;
    if (ok && used < given) ok = jinja_fail(in, "格式用不完给的参数");
    return v_take_str(in, &s, out) && ok;
}
