/* jinja_filters — 过滤器之一：文字、数、缺省值、JSON
 * 每个过滤器一个函数，末尾一张表；语义逐个对照 jinja2.filters。需要文字的先按 str() 变成文字。 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tasks/jinja_internal.h"
#include "tasks/pyregex.h"

/* 文字 → 文字的一类。 */
static bool map_text(Interp *in, Value self, void (*fn)(Str *, PyText), Value *out) {
    PyText t;
    Str s = {0};
    if (!v_to_text(in, self, &t)) return false;
    fn(&s, t);
    return v_take_str(in, &s, out);
}

static bool f_upper(Interp *in, Value self, const Value *a, Value *out) {
    (void)a;
    return map_text(in, self, py_upper, out);
}
static bool f_lower(Interp *in, Value self, const Value *a, Value *out) {
    (void)a;
    return map_text(in, self, py_lower, out);
}
static bool f_capitalize(Interp *in, Value self, const Value *a, Value *out) {
    (void)a;
    return map_text(in, self, py_capitalize, out);
}

/* 过滤器 title 与 str.title() 不同：只在空白、- ( { [ < 之后换大写。 */
static void title_words(Str *out, PyText t) {
    size_t from = 0;
    while (from < t.n) {
        size_t end = from;
        while (end < t.n) {
            size_t at = end;
            int32_t c = py_next(t, &at);
            if (py_isspace(c) || (c < 128 && strchr("-({[<", (char)c) && c)) break;
            end = at;
        }
        if (end > from) {
            size_t head = from;
            py_next(t, &head);
            py_upper(out, (PyText){t.p + from, head - from});
            py_lower(out, (PyText){t.p + head, end - head});
        }
        size_t at = end;
        if (end < t.n) py_next(t, &at);
        str_addn(out, t.p + end, at - end);
        from = at;
    }
}

static bool f_title(Interp *in, Value self, const Value *a, Value *out) {
    (void)a;
    return map_text(in, self, title_words, out);
}

static bool f_string(Interp *in, Value self, const Value *a, Value *out) {
    (void)a;
    PyText t;
    if (!v_to_text(in, self, &t)) return false;
    *out = v_text(t);
    return true;
}

static bool f_trim(Interp *in, Value self, const Value *a, Value *out) {
    PyText t, chars = {0};
    if (!v_to_text(in, self, &t)) return false;
    if (a[0].kind == V_STR) chars = a[0].u.str.p ? a[0].u.str : py_text("");
    *out = v_text(py_strip(t, chars, true, true));
    return jinja_spend(in, t.n);
}

static bool f_replace(Interp *in, Value self, const Value *a, Value *out) {
    PyText t, old, with;
    int64_t count = -1;
    Str s = {0};
    if (!v_to_text(in, self, &t) || !v_to_text(in, a[0], &old) || !v_to_text(in, a[1], &with))
        return false;
    if (a[2].kind != V_ABSENT && a[2].kind != V_NONE && !v_integer(a[2], &count))
        return jinja_fail(in, "replace 的 count 应为整数");
    if (with.n > 1 && t.n > JINJA_OUTPUT / with.n) return jinja_fail(in, "replace 的结果会太长");
    py_replace(&s, t, old, with, count);
    return v_take_str(in, &s, out);
}

static bool f_regex_replace(Interp *in, Value self, const Value *a, Value *out) {
    int64_t count = 0;
    Str s = {0};
    if (self.kind != V_STR || a[0].kind != V_STR || a[1].kind != V_STR ||
        (a[2].kind != V_ABSENT && !v_integer(a[2], &count)))
        return jinja_fail(in, "regex_replace 要三个字符串");
    Err e = {0};
    PyRegex *re;
    bool ok = pyregex_open(&re, a[0].u.str.p, a[0].u.str.n, 0, &e);
    if (ok) {
        ok = pyregex_sub(re, self.u.str.p, self.u.str.n, a[1].u.str.p, a[1].u.str.n, count, &s, &e);
        pyregex_close(re);
    }
    if (!ok) jinja_fail(in, "%s", e.msg);
    return v_take_str(in, &s, out) && ok;
}

static bool f_default(Interp *in, Value self, const Value *a, Value *out) {
    bool yes = true, by_truth = false;
    if (self.kind != V_UNDEF && a[1].kind != V_ABSENT &&
        (!v_truth(in, a[1], &by_truth) || (by_truth && !v_truth(in, self, &yes))))
        return false;
    *out = self.kind != V_UNDEF && yes ? self : a[0].kind == V_ABSENT ? v_str("") : a[0];
    return true;
}

static bool f_int(Interp *in, Value self, const Value *a, Value *out) {
    int64_t base = 10, v;
    double d;
    bool overflow = false;
    if (a[1].kind != V_ABSENT && (!v_integer(a[1], &base) || base < 0 || base > 36 || base == 1))
        return jinja_fail(in, "int 的 base 不对");
    *out = a[0].kind == V_ABSENT ? v_int(0) : a[0];
    if (v_integer(self, &v) ||
        (self.kind == V_STR && py_parse_int(self.u.str, (int)base, &v, &overflow))) {
        if (overflow) return jinja_fail(in, "整数超出 64 位");
        *out = v_int(v);
    } else if (v_number(self, &d) || (self.kind == V_STR && py_parse_float(self.u.str, &d))) {
        if (fabs(d) < 9.2e18) *out = v_int((int64_t)d);
        else if (isfinite(d)) return jinja_fail(in, "整数超出 64 位");
    }
    return true;
}

static bool f_float(Interp *in, Value self, const Value *a, Value *out) {
    (void)in;
    double d;
    *out = a[0].kind == V_ABSENT ? v_float(0) : a[0];
    if (v_number(self, &d) || (self.kind == V_STR && py_parse_float(self.u.str, &d)))
        *out = v_float(d);
    return true;
}

static bool f_abs(Interp *in, Value self, const Value *a, Value *out) {
    (void)a;
    int64_t i;
    if (self.kind == V_FLOAT) {
        *out = v_float(fabs(self.u.real));
        return true;
    }
    if (!v_integer(self, &i)) return jinja_fail(in, "abs 要一个数，实为 %s", jinja_type_name(self));
    if (i == INT64_MIN) return jinja_fail(in, "整数超出 64 位");
    *out = v_int(i < 0 ? -i : i);
    return true;
}

static bool f_round(Interp *in, Value self, const Value *a, Value *out) {
    int64_t places = 0;
    double d;
    const char *method = "common";
    if (a[1].kind == V_STR) method = py_same(a[1].u.str, py_text("ceil")) ? "ceil"
                                   : py_same(a[1].u.str, py_text("floor")) ? "floor" : "common";
    if (!v_number(self, &d) || (a[0].kind != V_ABSENT && !v_integer(a[0], &places)))
        return jinja_fail(in, "round 要一个数与整数的位数");
    if (places < -300 || places > 300) return jinja_fail(in, "round 的位数应在 ±300 之内");
    if (method[0] == 'c' && method[1] == 'o') {
        if (self.kind != V_FLOAT && places >= 0) {
            *out = self;
            return true;
        }
        if (places < 0) return jinja_fail(in, "round 不支持负的位数");
        char buf[700];
        snprintf(buf, sizeof buf, "%.*f", (int)places, d);
        *out = v_float(strtod(buf, NULL));
        return true;
    }
    double scale = pow(10, (double)places);
    *out = v_float((method[0] == 'c' ? ceil(d * scale) : floor(d * scale)) / scale);
    return true;
}

static bool f_center(Interp *in, Value self, const Value *a, Value *out) {
    PyText t;
    int64_t width = 80;
    if (!v_to_text(in, self, &t)) return false;
    if (a[0].kind != V_ABSENT && !v_integer(a[0], &width)) return jinja_fail(in, "center 要整数");
    int64_t len = (int64_t)py_length(t), pad = width - len;
    if (width > 1 << 20) return jinja_fail(in, "center 的宽度太大");
    if (pad < 0) pad = 0;
    int64_t left = pad / 2 + (pad & width & 1); /* CPython 的 str.center */
    Str s = {0};
    str_addf(&s, "%*s", (int)left, "");
    str_addn(&s, t.p, t.n);
    str_addf(&s, "%*s", (int)(pad - left), "");
    return v_take_str(in, &s, out);
}

/* 除第一行外（first 则连第一行）每行前加空格；空行不加（blank 则加）。 */
static bool f_indent(Interp *in, Value self, const Value *a, Value *out) {
    PyText t, pad;
    int64_t width = 4;
    bool first = false, blank = false;
    Str s = {0};
    if (!v_to_text(in, self, &t)) return false;
    if (a[0].kind == V_STR) {
        pad = a[0].u.str;
    } else {
        static const char SPACES[65] = "                                "
                                       "                                ";
        if (a[0].kind != V_ABSENT && !v_integer(a[0], &width)) return jinja_fail(in, "indent 要整数");
        if (width > 64) return jinja_fail(in, "indent 的宽度至多 64");
        pad = (PyText){SPACES, width > 0 ? (size_t)width : 0};
    }
    if ((a[1].kind != V_ABSENT && !v_truth(in, a[1], &first)) ||
        (a[2].kind != V_ABSENT && !v_truth(in, a[2], &blank)))
        return false;
    for (size_t at = 0; at < t.n;) {
        size_t end = py_find(t, py_text("\n"), at), next = end == SIZE_MAX ? t.n : end + 1;
        bool empty = end == at;
        if ((at > 0 || first) && (!empty || blank)) str_addn(&s, pad.p, pad.n);
        str_addn(&s, t.p + at, next - at);
        at = next;
        if (s.len > JINJA_OUTPUT) break;
    }
    return v_take_str(in, &s, out);
}

static bool f_wordcount(Interp *in, Value self, const Value *a, Value *out) {
    (void)a;
    PyText t;
    int64_t n = 0;
    bool inside = false;
    if (!v_to_text(in, self, &t)) return false;
    for (size_t at = 0; at < t.n;) {
        int32_t c = py_next(t, &at);
        bool word = c == '_' || py_isalnum_cp(c);
        n += word && !inside;
        inside = word;
    }
    *out = v_int(n);
    return jinja_spend(in, t.n);
}

static bool f_format(Interp *in, Value self, const Args *args, Value *out) {
    PyText t;
    Value tuple;
    if (!v_to_text(in, self, &t)) return false;
    if (args->n_named) {
        if (args->n) return jinja_fail(in, "format 不能同时有位置参数与名字参数");
        if (!v_dict(in, args->n_named, &tuple)) return false;
        for (size_t i = 0; i < args->n_named; i++)
            if (!v_put(in, tuple.u.dict, v_str(args->names[i]), args->named[i])) return false;
    } else {
        if (!v_list(in, V_TUPLE, args->n, &tuple)) return false;
        for (size_t i = 0; i < args->n; i++)
            if (!v_push(in, tuple, args->items[i])) return false;
    }
    return jinja_percent(in, t, tuple, out);
}

static const JinjaDef FILTERS[] = {
    {"abs", "", f_abs, NULL, false},
    {"capitalize", "", f_capitalize, NULL, false},
    {"center", "width?", f_center, NULL, false},
    {"d", "default_value? boolean?", f_default, NULL, true},
    {"default", "default_value? boolean?", f_default, NULL, true},
    {"float", "default?", f_float, NULL, false},
    {"format", NULL, NULL, f_format, false},
    {"indent", "width? first? blank?", f_indent, NULL, false},
    {"int", "default? base?", f_int, NULL, false},
    {"lower", "", f_lower, NULL, false},
    {"regex_replace", "pattern repl count?", f_regex_replace, NULL, false},
    {"replace", "old new count?", f_replace, NULL, false},
    {"round", "precision? method?", f_round, NULL, false},
    {"safe", "", f_string, NULL, false},
    {"string", "", f_string, NULL, false},
    {"title", "", f_title, NULL, false},
    {"trim", "chars?", f_trim, NULL, false},
    {"upper", "", f_upper, NULL, false},
    {"wordcount", "", f_wordcount, NULL, false},
};

const JinjaDef *jinja_filter(const char *name) {
    for (size_t i = 0; i < sizeof FILTERS / sizeof *FILTERS; i++)
        if (strcmp(FILTERS[i].name, name) == 0) return &FILTERS[i];
    for (const JinjaDef *d = JINJA_LIST_FILTERS; d->name; d++)
        if (strcmp(d->name, name) == 0) return d;
    return NULL;
}
