/* jinja_tests — is 之后的测试、全局函数、tojson */
#include <math.h>
#include <string.h>

#include "tasks/jinja_internal.h"

static bool answer(Value *out, bool yes) {
    *out = v_bool(yes);
    return true;
}

static bool t_defined(Interp *in, Value v, const Value *a, Value *out) {
    (void)in, (void)a;
    return answer(out, v.kind != V_UNDEF);
}
static bool t_undefined(Interp *in, Value v, const Value *a, Value *out) {
    (void)in, (void)a;
    return answer(out, v.kind == V_UNDEF);
}

/* 只看种类的测试：kinds 是 ValueKind 的位集。 */
#define KIND_TEST(name, kinds)                                                                     \
    static bool name(Interp *in, Value v, const Value *a, Value *out) {                            \
        (void)in, (void)a;                                                                         \
        return answer(out, ((kinds) >> v.kind) & 1);                                               \
    }
#define BIT(k) (1u << (k))
KIND_TEST(t_none, BIT(V_NONE))
KIND_TEST(t_boolean, BIT(V_BOOL))
KIND_TEST(t_integer, BIT(V_INT))
KIND_TEST(t_float, BIT(V_FLOAT))
KIND_TEST(t_number, BIT(V_BOOL) | BIT(V_INT) | BIT(V_FLOAT))
KIND_TEST(t_string, BIT(V_STR))
KIND_TEST(t_mapping, BIT(V_DICT))
KIND_TEST(t_callable, BIT(V_CALL))

static bool t_iterable(Interp *in, Value v, const Value *a, Value *out) {
    (void)a;
    if (!v.soft && !jinja_defined(in, v)) return false;
    return answer(out, v.soft || v.kind == V_STR || v.kind == V_LIST || v.kind == V_TUPLE ||
                           v.kind == V_SEQ || v.kind == V_DICT);
}
static bool t_sequence(Interp *in, Value v, const Value *a, Value *out) {
    if (!t_iterable(in, v, a, out)) return false;
    bool indexed = v.kind != V_SEQ || (v.u.list->shown && !v.u.list->view);
    return answer(out, out->u.boolean && indexed);
}
static bool t_true(Interp *in, Value v, const Value *a, Value *out) {
    (void)in, (void)a;
    return answer(out, v.kind == V_BOOL && v.u.boolean);
}
static bool t_false(Interp *in, Value v, const Value *a, Value *out) {
    (void)in, (void)a;
    return answer(out, v.kind == V_BOOL && !v.u.boolean);
}

static bool modulo(Interp *in, Value v, Value by, int64_t want, Value *out) {
    Value m;
    bool same;
    if (!jinja_binary(in, "%", v, by, &m) || !v_equal(in, m, v_int(want), &same)) return false;
    return answer(out, same);
}
static bool t_odd(Interp *in, Value v, const Value *a, Value *out) {
    (void)a;
    return modulo(in, v, v_int(2), 1, out);
}
static bool t_even(Interp *in, Value v, const Value *a, Value *out) {
    (void)a;
    return modulo(in, v, v_int(2), 0, out);
}
static bool t_divisibleby(Interp *in, Value v, const Value *a, Value *out) {
    return modulo(in, v, a[0], 0, out);
}

static bool t_sameas(Interp *in, Value v, const Value *a, Value *out) {
    bool same = v.kind == a[0].kind;
    if (same && (v.kind == V_BOOL || v.kind == V_INT || v.kind == V_FLOAT || v.kind == V_STR))
        return v_equal(in, v, a[0], &same) && answer(out, same);
    if (same && v.kind != V_NONE) same = v.u.list == a[0].u.list;
    return answer(out, same);
}
static bool t_in(Interp *in, Value v, const Value *a, Value *out) {
    bool yes;
    return v_contains(in, a[0], v, &yes) && answer(out, yes);
}
static bool t_eq(Interp *in, Value v, const Value *a, Value *out) {
    bool yes;
    return v_equal(in, v, a[0], &yes) && answer(out, yes);
}
static bool t_ne(Interp *in, Value v, const Value *a, Value *out) {
    bool yes;
    return v_equal(in, v, a[0], &yes) && answer(out, !yes);
}
static bool t_lt(Interp *in, Value v, const Value *a, Value *out) {
    int order;
    return v_compare(in, "<", v, a[0], &order) && answer(out, order == -1);
}
static bool t_le(Interp *in, Value v, const Value *a, Value *out) {
    int order;
    return v_compare(in, "<=", v, a[0], &order) && answer(out, order == -1 || order == 0);
}
static bool t_gt(Interp *in, Value v, const Value *a, Value *out) {
    int order;
    return v_compare(in, ">", v, a[0], &order) && answer(out, order == 1);
}
static bool t_ge(Interp *in, Value v, const Value *a, Value *out) {
    int order;
    return v_compare(in, ">=", v, a[0], &order) && answer(out, order == 0 || order == 1);
}

/* 有字母，且大写（小写）后不变。 */
static bool same_case(Interp *in, Value v, void (*fn)(Str *, PyText),
                      void (*other)(Str *, PyText), Value *out) {
    PyText t;
    Str s = {0}, o = {0};
    Value mapped, flipped;
    if (!v_to_text(in, v, &t)) return false;
    fn(&s, t);
    other(&o, t);
    bool ok = v_take_str(in, &s, &mapped);
    if (!v_take_str(in, &o, &flipped) || !ok) return false; /* 不论成败都收走两段 */
    return answer(out, py_same(mapped.u.str, t) && !py_same(flipped.u.str, t));
}
static bool t_upper(Interp *in, Value v, const Value *a, Value *out) {
    (void)a;
    return same_case(in, v, py_upper, py_lower, out);
}
static bool t_lower(Interp *in, Value v, const Value *a, Value *out) {
    (void)a;
    return same_case(in, v, py_lower, py_upper, out);
}

static const JinjaDef TESTS[] = {
    {"!=", "other", t_ne, NULL, true}, {"<", "other", t_lt, NULL, true},
    {"<=", "other", t_le, NULL, true}, {"==", "other", t_eq, NULL, true},
    {">", "other", t_gt, NULL, true}, {">=", "other", t_ge, NULL, true},
    {"boolean", "", t_boolean, NULL, true}, {"callable", "", t_callable, NULL, true},
    {"defined", "", t_defined, NULL, true}, {"divisibleby", "num", t_divisibleby, NULL, true},
    {"eq", "other", t_eq, NULL, true}, {"equalto", "other", t_eq, NULL, true},
    {"even", "", t_even, NULL, true}, {"false", "", t_false, NULL, true},
    {"float", "", t_float, NULL, true}, {"ge", "other", t_ge, NULL, true},
    {"greaterthan", "other", t_gt, NULL, true}, {"gt", "other", t_gt, NULL, true},
    {"in", "seq", t_in, NULL, true}, {"integer", "", t_integer, NULL, true},
    {"iterable", "", t_iterable, NULL, true}, {"le", "other", t_le, NULL, true},
    {"lessthan", "other", t_lt, NULL, true}, {"lower", "", t_lower, NULL, true},
    {"lt", "other", t_lt, NULL, true}, {"mapping", "", t_mapping, NULL, true},
    {"ne", "other", t_ne, NULL, true}, {"none", "", t_none, NULL, true},
    {"number", "", t_number, NULL, true}, {"odd", "", t_odd, NULL, true},
    {"sameas", "other", t_sameas, NULL, true}, {"sequence", "", t_sequence, NULL, true},
    {"string", "", t_string, NULL, true}, {"true", "", t_true, NULL, true},
    {"undefined", "", t_undefined, NULL, true}, {"upper", "", t_upper, NULL, true},
};

const JinjaDef *jinja_test(const char *name) {
    for (size_t i = 0; i < sizeof TESTS / sizeof *TESTS; i++)
        if (strcmp(TESTS[i].name, name) == 0) return &TESTS[i];
    return NULL;
}

static bool g_range(Interp *in, Value self, const Value *a, Value *out) {
    (void)self;
    int64_t from = 0, to, step = 1;
    if (!v_integer(a[0], &to) || (a[1].kind != V_ABSENT && !v_integer(a[1], &step)) ||
        (a[2].kind != V_ABSENT && !v_integer(a[2], &step)) || step == 0)
        return jinja_fail(in, "range 要整数，步长不能为 0");
    if (a[1].kind != V_ABSENT) {
        from = to;
        v_integer(a[1], &to);
        step = 1;
        if (a[2].kind != V_ABSENT) v_integer(a[2], &step);
    }
    double n = ceil(((double)to - (double)from) / (double)step);
    if (n > 1000000) return jinja_fail(in, "range 太长");
    if (!v_list(in, V_SEQ, 0, out)) return false;
    List *l = out->u.list;
    const char *fmt = step == 1 ? "range(%lld, %lld)" : "range(%lld, %lld, %lld)";
    char text[96];
    snprintf(text, sizeof text, fmt, (long long)from, (long long)to, (long long)step);
    l->shown = arena_strdup(&in->arena, text, in->e);
    for (int64_t i = 0; (double)i < n; i++) {
        uint64_t at = (uint64_t)from + (uint64_t)i * (uint64_t)step;
        if (!v_push(in, *out, v_int((int64_t)at))) return false;
    }
    return l->shown != NULL;
}

/* namespace(a=1)、dict(a=1)。 */
static bool from_names(Interp *in, const Args *args, Value *out) {
    if (!v_dict(in, args->n_named, out)) return false;
    for (size_t i = 0; i < args->n; i++) {
        if (args->items[i].kind != V_DICT) return jinja_fail(in, "dict、namespace 的位置参数应为字典");
        const Dict *d = args->items[i].u.dict;
        for (size_t k = 0; k < d->n; k++)
            if (!v_put(in, out->u.dict, d->keys[k], d->values[k])) return false;
    }
    for (size_t i = 0; i < args->n_named; i++)
        if (!v_put(in, out->u.dict, v_str(args->names[i]), args->named[i])) return false;
    return true;
}
static bool g_dict(Interp *in, Value self, const Args *args, Value *out) {
    (void)self;
    return from_names(in, args, out);
}
static bool g_namespace(Interp *in, Value self, const Args *args, Value *out) {
    (void)self;
    bool ok = from_names(in, args, out);
    out->kind = V_NAMESPACE;
    return ok;
}

static bool g_cycle(Interp *in, Value self, const Args *args, Value *out) {
    Value *index;
    if (!args->n) return jinja_fail(in, "loop.cycle 要至少一个参数");
    if (!v_find(in, self.u.dict, v_str("index0"), &index)) return false;
    *out = args->items[(size_t)index->u.integer % args->n];
    return true;
}

static bool g_raise(Interp *in, Value self, const Value *a, Value *out) {
    (void)self, (void)out;
    PyText t;
    return v_to_text(in, a[0], &t) &&
           jinja_fail(in, "模板报错: %.*s", (int)(t.n < 200 ? t.n : 200), t.p);
}

const JinjaDef *jinja_global(const char *name) {
    static const JinjaDef GLOBALS[] = {
        {"dict", NULL, NULL, g_dict, false}, {"loop.cycle", NULL, NULL, g_cycle, false},
        {"namespace", NULL, NULL, g_namespace, false},
        {"raise_exception", "message", g_raise, NULL, false},
        {"range", "a b? c?", g_range, NULL, false}};
    for (size_t i = 0; i < sizeof GLOBALS / sizeof *GLOBALS; i++)
        if (strcmp(GLOBALS[i].name, name) == 0) return &GLOBALS[i];
    return NULL;
}

/* json.dumps(ensure_ascii=True, sort_keys=True) 再把 < > & ' 写成 \u003c 等（jinja2 的 htmlsafe）。 */
static void json_string_to(Str *out, PyText t) {
    str_add(out, "\"");
    for (size_t at = 0; at < t.n;) {
        int32_t c = py_next(t, &at);
        const char *hit = c > 0 && c < 128 ? strchr("\"\\\b\f\n\r\t", (char)c) : NULL;
        if (hit)
            str_addf(out, "\\%c", "\"\\bfnrt"[hit - "\"\\\b\f\n\r\t"]);
        else if (c >= 0x10000)
            str_addf(out, "\\u%04x\\u%04x", 0xD800 + ((c - 0x10000) >> 10), 0xDC00 + (c & 0x3FF));
        else if (c < 32 || c > 126 || strchr("<>&'", (char)c))
            str_addf(out, "\\u%04x", (unsigned)c);
        else
            str_addf(out, "%c", (char)c);
    }
    str_add(out, "\"");
}

static bool add_json(Interp *in, Str *out, Value v, int64_t indent, int level);

static void new_line(Str *out, int64_t indent, int level, bool comma) {
    if (comma) str_add(out, indent < 0 ? ", " : ",");
    if (indent >= 0) str_addf(out, "\n%*s", (int)indent * level, "");
}

static bool add_json_object(Interp *in, Str *out, Value v, int64_t indent, int level) {
    Value items, sorted, none = {.kind = V_ABSENT};
    Value args[3] = {v_bool(true), none, none};
    Args pack = {.items = args, .n = 1};
    if (!jinja_call(in, "items", jinja_filter("items"), v, &(Args){0}, &items) ||
        !jinja_call(in, "dictsort", jinja_filter("dictsort"), v, &pack, &sorted))
        return false;
    const List *l = sorted.u.list;
    str_add(out, "{");
    for (size_t i = 0; i < l->n; i++) {
        const List *kv = l->items[i].u.list;
        PyText key;
        new_line(out, indent, level + 1, i > 0);
        if (!v_to_text(in, kv->items[0], &key)) return false;
        json_string_to(out, key);
        str_add(out, ": ");
        if (!add_json(in, out, kv->items[1], indent, level + 1)) return false;
    }
    if (l->n) new_line(out, indent, level, false);
    str_add(out, "}");
    return true;
}

static bool add_json(Interp *in, Str *out, Value v, int64_t indent, int level) {
    if (!jinja_spend(in, 0) || out->len > JINJA_OUTPUT) return jinja_fail(in, "输出超过 16 MB");
    if (level > JINJA_VALUE_DEPTH) return jinja_fail(in, "值嵌套过深，或包含了自己");
    if (v.kind == V_NONE) str_add(out, "null");
    else if (v.kind == V_BOOL) str_add(out, v.u.boolean ? "true" : "false");
    else if (v.kind == V_FLOAT && !isfinite(v.u.real))
        str_add(out, isnan(v.u.real) ? "NaN" : v.u.real > 0 ? "Infinity" : "-Infinity");
    else if (v.kind == V_INT || v.kind == V_FLOAT) return v_repr(in, out, v);
    else if (v.kind == V_STR) json_string_to(out, v.u.str);
    else if (v.kind == V_DICT) return add_json_object(in, out, v, indent, level);
    else if (v.kind == V_LIST || v.kind == V_TUPLE) {
        const List *l = v.u.list;
        str_add(out, "[");
        for (size_t i = 0; i < l->n; i++) {
            new_line(out, indent, level + 1, i > 0);
            if (!add_json(in, out, l->items[i], indent, level + 1)) return false;
        }
        if (l->n) new_line(out, indent, level, false);
        str_add(out, "]");
    } else {
        return jinja_fail(in, "%s 不能写成 JSON", jinja_type_name(v));
    }
    return true;
}

bool jinja_tojson(Interp *in, Value self, const Value *a, Value *out) {
    int64_t indent = -1;
    Str s = {0};
    if (a[0].kind != V_ABSENT && a[0].kind != V_NONE &&
        (!v_integer(a[0], &indent) || indent < 0 || indent > 16))
        return jinja_fail(in, "tojson 的 indent 应为 0 到 16");
    bool ok = add_json(in, &s, self, indent, 0);
    return v_take_str(in, &s, out) && ok;
}
