/* jinja_value — 值：建立、来自 JSON、真假、相等、大小、包含、遍历、str() 与 repr()
 * 列表与字典是引用（与 Python 相同，append 会被别处看见）；能自己包含自己，所以每次递归都数深度。 */
#include <math.h>
#include <string.h>

#include "tasks/jinja_internal.h"

bool jinja_fail(Interp *in, const char *fmt, ...) {
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (in->e->code != ERR_NONE) return false; /* 保留最先的原因 */
    str_clean(text);
    return err_set(in->e, ERR_FORMAT, "%s: 模板第 %d 行: %s", in->where, in->line, text);
}

bool jinja_spend(Interp *in, size_t work) {
    in->steps += 1 + (int64_t)(work / 8);
    if (in->steps <= JINJA_STEPS) return true;
    return jinja_fail(in, "运算超过 %d 步，可能是死循环", JINJA_STEPS);
}

void *jinja_alloc(Interp *in, size_t bytes) {
    if (bytes > JINJA_MEMORY || in->arena.used + bytes > JINJA_MEMORY) {
        jinja_fail(in, "用到的内存超过 64 MB");
        return NULL;
    }
    return arena_alloc(&in->arena, bytes, in->e);
}

Value v_none(void) {
    return (Value){.kind = V_NONE};
}
Value v_bool(bool b) {
    return (Value){.kind = V_BOOL, .u.boolean = b};
}
Value v_int(int64_t i) {
    return (Value){.kind = V_INT, .u.integer = i};
}
Value v_float(double d) {
    return (Value){.kind = V_FLOAT, .u.real = d};
}
Value v_text(PyText t) {
    return (Value){.kind = V_STR, .u.str = t};
}
Value v_str(const char *s) {
    return v_text(py_text(s));
}
Value v_undef(const char *what) {
    return (Value){.kind = V_UNDEF, .u.what = what};
}

bool jinja_defined(Interp *in, Value v) {
    if (v.kind != V_UNDEF) return true;
    return jinja_fail(in, "%s", v.u.what ? v.u.what : "值未定义");
}

const char *jinja_type_name(Value v) {
    static const char *const NAMES[] = {"缺省", "Undefined", "NoneType", "bool", "int", "float",
                                        "str", "list", "tuple", "iterator", "dict", "Namespace",
                                        "function"};
    return NAMES[v.kind];
}

bool v_list(Interp *in, ValueKind kind, size_t cap, Value *out) {
    *out = (Value){.kind = kind};
    List *l = jinja_alloc(in, sizeof *l);
    if (!l) return false;
    if (cap && cap > JINJA_MEMORY / sizeof(Value)) return jinja_fail(in, "列表太长");
    l->items = cap ? jinja_alloc(in, cap * sizeof(Value)) : NULL;
    l->cap = cap;
    out->u.list = l;
    return !cap || l->items;
}

bool v_push(Interp *in, Value list, Value item) {
    List *l = list.u.list;
    if (!jinja_spend(in, 0)) return false;
    if (l->n == l->cap) {
        size_t cap = l->cap ? 2 * l->cap : 8;
        Value *items = jinja_alloc(in, cap * sizeof *items);
        if (!items) return false;
        if (l->n) memcpy(items, l->items, l->n * sizeof *items);
        l->items = items;
        l->cap = cap;
    }
    l->items[l->n++] = item;
    return true;
}

bool v_dict(Interp *in, size_t cap, Value *out) {
    *out = (Value){.kind = V_DICT, .u.dict = jinja_alloc(in, sizeof(Dict))};
    Dict *d = out->u.dict;
    if (!d || !cap) return d != NULL;
    d->cap = cap;
    d->keys = jinja_alloc(in, cap * sizeof(Value));
    d->values = jinja_alloc(in, cap * sizeof(Value));
    return d->keys && d->values;
}

bool v_find(Interp *in, const Dict *d, Value key, Value **value) {
    *value = NULL;
    if (!jinja_spend(in, 0)) return false;
    for (size_t i = 0; i < d->n && !*value; i++) {
        bool same;
        if (!v_equal(in, d->keys[i], key, &same)) return false;
        if (same) *value = &d->values[i];
    }
    return true;
}

bool v_put(Interp *in, Dict *d, Value key, Value value) {
    Value *old;
    if (key.kind == V_LIST || key.kind == V_DICT || key.kind == V_UNDEF)
        return jinja_fail(in, "%s 不能作字典的键", jinja_type_name(key));
    if (!v_find(in, d, key, &old)) return false;
    if (old) {
        *old = value;
        return true;
    }
    if (d->n == d->cap) {
        size_t cap = d->cap ? 2 * d->cap : 8;
        Value *keys = jinja_alloc(in, cap * sizeof *keys);
        Value *values = jinja_alloc(in, cap * sizeof *values);
        if (!keys || !values) return false;
        if (d->n) memcpy(keys, d->keys, d->n * sizeof *keys);
        if (d->n) memcpy(values, d->values, d->n * sizeof *values);
        d->keys = keys;
        d->values = values;
        d->cap = cap;
    }
    d->keys[d->n] = key;
    d->values[d->n++] = value;
    return true;
}

bool v_take_str(Interp *in, Str *s, Value *out) {
    char *copy = NULL;
    if (s->failed)
        err_set(in->e, ERR_MEMORY, "%s: 内存不足", in->where);
    else if ((copy = jinja_alloc(in, s->len + 1)) != NULL && s->len)
        memcpy(copy, s->data, s->len);
    *out = v_text((PyText){copy, s->len});
    str_free(s);
    *s = (Str){0};
    return copy && jinja_spend(in, out->u.str.n);
}

static bool enter(Interp *in) {
    if (in->depth++ < JINJA_EVAL_DEPTH) return true;
    return jinja_fail(in, "值嵌套过深，或包含了自己");
}

static bool object_from_json(Interp *in, const json_t *j, Value *out) {
    const char *key;
    size_t len;
    json_t *item;
    if (!v_dict(in, json_object_size(j), out)) return false;
    Dict *d = out->u.dict;
    json_object_keylen_foreach((json_t *)(uintptr_t)j, key, len, item) {
        d->keys[d->n] = v_text((PyText){key, len});
        if (!v_from_json(in, item, &d->values[d->n])) return false;
        d->n++;
    }
    return true;
}

static bool array_from_json(Interp *in, const json_t *j, Value *out) {
    size_t n = json_array_size(j);
    if (!v_list(in, V_LIST, n, out)) return false;
    for (size_t i = 0; i < n; i++)
        if (!v_from_json(in, json_array_get(j, i), &out->u.list->items[out->u.list->n++]))
            return false;
    return true;
}

bool v_from_json(Interp *in, const json_t *j, Value *out) {
    bool ok = true;
    if (!jinja_spend(in, 0)) return false;
    switch (json_typeof(j)) {
    case JSON_NULL: *out = v_none(); break;
    case JSON_TRUE:
    case JSON_FALSE: *out = v_bool(json_is_true(j)); break;
    case JSON_INTEGER: *out = v_int(json_integer_value(j)); break;
    case JSON_REAL: *out = v_float(json_real_value(j)); break;
    case JSON_STRING: *out = v_text((PyText){json_string_value(j), json_string_length(j)}); break;
    case JSON_ARRAY:
    case JSON_OBJECT:
        ok = enter(in) && (json_is_array(j) ? array_from_json(in, j, out)
                                            : object_from_json(in, j, out));
        in->depth--;
        break;
    }
    return ok;
}

bool v_number(Value v, double *d) {
    if (v.kind == V_BOOL) *d = v.u.boolean;
    else if (v.kind == V_INT) *d = (double)v.u.integer;
    else if (v.kind == V_FLOAT) *d = v.u.real;
    else return false;
    return true;
}

bool v_integer(Value v, int64_t *i) {
    if (v.kind == V_BOOL) *i = v.u.boolean;
    else if (v.kind == V_INT) *i = v.u.integer;
    else return false;
    return true;
}

static bool is_list(Value v) {
    return v.kind == V_LIST || v.kind == V_TUPLE || v.kind == V_SEQ;
}

bool v_truth(Interp *in, Value v, bool *yes) {
    double d;
    if (v.kind == V_UNDEF && !v.soft) return jinja_defined(in, v);
    if (v_number(v, &d)) *yes = d != 0;
    else if (v.kind == V_STR) *yes = v.u.str.n != 0;
    else if (is_list(v)) *yes = v.u.list->n != 0 || (v.kind == V_SEQ && !v.u.list->shown);
    else if (v.kind == V_DICT) *yes = v.u.dict->n != 0;
    else *yes = v.kind != V_NONE && v.kind != V_UNDEF;
    return true;
}

/* 整数与实数精确比较：-1、0、1；NaN 为 2。 */
static int number_order(Value l, Value r) {
    int64_t a, b;
    double x = 0, y = 0;
    if (v_integer(l, &a) && v_integer(r, &b)) return (a > b) - (a < b);
    v_number(l, &x);
    v_number(r, &y);
    if (isnan(x) || isnan(y)) return 2;
    if (v_integer(l, &a) || v_integer(r, &b)) { /* 一个整数、一个实数：long double 能装下 64 位整数 */
        long double p = v_integer(l, &a) ? (long double)a : x;
        long double q = v_integer(r, &b) ? (long double)b : y;
        return (p > q) - (p < q);
    }
    return (x > y) - (x < y);
}

static bool lists_equal(Interp *in, const List *l, const List *r, bool *yes) {
    *yes = l->n == r->n;
    for (size_t i = 0; *yes && i < l->n; i++)
        if (!v_equal(in, l->items[i], r->items[i], yes)) return false;
    return true;
}

static bool dicts_equal(Interp *in, const Dict *l, const Dict *r, bool *yes) {
    *yes = l->n == r->n;
    for (size_t i = 0; *yes && i < l->n; i++) {
        Value *other;
        if (!v_find(in, r, l->keys[i], &other)) return false;
        *yes = other != NULL;
        if (other && !v_equal(in, l->values[i], *other, yes)) return false;
    }
    return true;
}

bool v_equal(Interp *in, Value l, Value r, bool *yes) {
    double d;
    /* 每比一对算一步：长列表之间的 ==、in、unique 因此有界 */
    if (!jinja_defined(in, l) || !jinja_defined(in, r) || !jinja_spend(in, 0)) return false;
    if (v_number(l, &d) && v_number(r, &d)) {
        *yes = number_order(l, r) == 0;
        return true;
    }
    *yes = false;
    if (l.kind != r.kind) return true;
    if (l.kind == V_NONE) *yes = true;
    if (l.kind == V_STR) {
        *yes = py_same(l.u.str, r.u.str);
        return jinja_spend(in, *yes ? l.u.str.n : 0);
    }
    if (l.kind == V_NAMESPACE || l.kind == V_CALL || l.kind == V_SEQ) {
        *yes = memcmp(&l.u, &r.u, sizeof(void *)) == 0;
        return true;
    }
    if (l.kind != V_LIST && l.kind != V_TUPLE && l.kind != V_DICT) return true;
    bool ok = enter(in) &&
              (l.kind == V_DICT ? dicts_equal(in, l.u.dict, r.u.dict, yes)
                                : lists_equal(in, l.u.list, r.u.list, yes));
    in->depth--;
    return ok;
}

static int text_order(PyText a, PyText b) {
    size_t n = a.n < b.n ? a.n : b.n;
    int c = n ? memcmp(a.p, b.p, n) : 0; /* UTF-8 的字节序就是码位序 */
    return c ? (c > 0) - (c < 0) : (a.n > b.n) - (a.n < b.n);
}

bool v_compare(Interp *in, const char *op, Value l, Value r, int *order) {
    double d;
    if (!jinja_defined(in, l) || !jinja_defined(in, r) || !jinja_spend(in, 0)) return false;
    if (v_number(l, &d) && v_number(r, &d)) {
        *order = number_order(l, r);
        return true;
    }
    if (l.kind == V_STR && r.kind == V_STR) {
        *order = text_order(l.u.str, r.u.str);
        return jinja_spend(in, l.u.str.n < r.u.str.n ? l.u.str.n : r.u.str.n);
    }
    if (l.kind != r.kind || (l.kind != V_LIST && l.kind != V_TUPLE))
        return jinja_fail(in, "'%s' 不能用于 %s 与 %s", op, jinja_type_name(l), jinja_type_name(r));
    const List *a = l.u.list, *b = r.u.list;
    for (size_t i = 0; i < a->n && i < b->n; i++) {
        bool same;
        if (!v_equal(in, a->items[i], b->items[i], &same)) return false;
        if (same) continue;
        bool ok = enter(in) && v_compare(in, op, a->items[i], b->items[i], order);
        in->depth--;
        return ok;
    }
    *order = (a->n > b->n) - (a->n < b->n);
    return true;
}

bool v_contains(Interp *in, Value c, Value item, bool *yes) {
    *yes = false;
    if (!jinja_defined(in, c) || !jinja_defined(in, item)) return false;
    if (c.kind == V_STR) {
        if (item.kind != V_STR)
            return jinja_fail(in, "'in <str>' 的左边应为 str，实为 %s", jinja_type_name(item));
        *yes = py_find(c.u.str, item.u.str, 0) != SIZE_MAX;
        return jinja_spend(in, c.u.str.n);
    }
    if (c.kind == V_DICT) {
        Value *v;
        if (!v_find(in, c.u.dict, item, &v)) return false;
        *yes = v != NULL;
        return true;
    }
    if (!is_list(c)) return jinja_fail(in, "%s 不能用 in 去找", jinja_type_name(c));
    for (size_t i = 0; !*yes && i < c.u.list->n; i++)
        if (!v_equal(in, c.u.list->items[i], item, yes)) return false;
    return true;
}

bool v_iterate(Interp *in, Value v, List *out) {
    if (v.kind == V_UNDEF && v.soft) {
        *out = (List){0};
        return true;
    }
    if (!jinja_defined(in, v)) return false;
    if (is_list(v)) {
        *out = *v.u.list;
    } else if (v.kind == V_DICT) {
        *out = (List){.items = v.u.dict->keys, .n = v.u.dict->n};
    } else if (v.kind == V_STR) {
        Value list;
        if (!v_list(in, V_LIST, py_length(v.u.str), &list)) return false;
        for (size_t at = 0; at < v.u.str.n;) {
            size_t start = at;
            py_next(v.u.str, &at);
            if (!v_push(in, list, v_text((PyText){v.u.str.p + start, at - start}))) return false;
        }
        *out = *list.u.list;
    } else {
        return jinja_fail(in, "%s 不能遍历", jinja_type_name(v));
    }
    return true;
}
