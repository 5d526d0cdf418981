/* jinja_filters_list — 过滤器之二：列表、字典、JSON
 * map、select 一类得到「生成器」：可以遍历、join、list，但没有长度、不能打印，同 jinja2。 */
#include <string.h>

#include "tasks/jinja_internal.h"

/* attribute 参数的求值：'a.b.0' 逐级取下标；整数直接取。缺省则原样。 */
static bool by_attribute(Interp *in, Value item, Value attribute, Value *out) {
    *out = item;
    if (attribute.kind == V_ABSENT || attribute.kind == V_NONE) return true;
    if (attribute.kind == V_INT) return jinja_item(in, item, attribute, out);
    if (attribute.kind != V_STR) return jinja_fail(in, "attribute 应为字符串或整数");
    PyText t = attribute.u.str;
    for (size_t at = 0; at <= t.n;) {
        size_t end = py_find(t, py_text("."), at);
        if (end == SIZE_MAX) end = t.n;
        PyText part = {t.p + at, end - at};
        int64_t i;
        bool overflow, digits = part.n && strspn(part.p, "0123456789") >= part.n;
        Value key = digits && py_parse_int(part, 10, &i, &overflow) ? v_int(i) : v_text(part);
        if (!jinja_item(in, *out, key, out)) return false;
        at = end + 1;
    }
    return true;
}

static bool f_join(Interp *in, Value self, const Value *a, Value *out) {
    List l;
    PyText sep = {"", 0};
    Str s = {0};
    if (!v_iterate(in, self, &l)) return false;
    if (a[0].kind != V_ABSENT && !v_to_text(in, a[0], &sep)) return false;
    bool ok = true;
    for (size_t i = 0; ok && i < l.n; i++) {
        Value v;
        if (i) str_addn(&s, sep.p, sep.n);
        ok = by_attribute(in, l.items[i], a[1], &v) && v_show(in, &s, v);
    }
    return v_take_str(in, &s, out) && ok;
}

static bool f_length(Interp *in, Value self, const Value *a, Value *out) {
    (void)a;
    List l;
    if (self.kind == V_STR) {
        *out = v_int((int64_t)py_length(self.u.str));
        return jinja_spend(in, self.u.str.n);
    }
    if (self.kind == V_SEQ && !self.u.list->shown) return jinja_fail(in, "生成器没有长度，请先 |list");
    if (!v_iterate(in, self, &l)) return false;
    *out = v_int((int64_t)l.n);
    return true;
}

static bool f_list(Interp *in, Value self, const Value *a, Value *out) {
    (void)a;
    List l;
    if (!v_iterate(in, self, &l) || !v_list(in, V_LIST, l.n, out)) return false;
    for (size_t i = 0; i < l.n; i++)
        if (!v_push(in, *out, l.items[i])) return false;
    return true;
}

static bool edge(Interp *in, Value self, bool last, Value *out) {
    List l;
    if (!v_iterate(in, self, &l)) return false;
    *out = !l.n ? v_undef("序列是空的，没有首项与末项") : l.items[last ? l.n - 1 : 0];
    return true;
}
static bool f_first(Interp *in, Value self, const Value *a, Value *out) {
    (void)a;
    return edge(in, self, false, out);
}
static bool f_last(Interp *in, Value self, const Value *a, Value *out) {
    (void)a;
    return edge(in, self, true, out);
}

static bool f_reverse(Interp *in, Value self, const Value *a, Value *out) {
    List l;
    Str s = {0};
    if (self.kind != V_STR) {
        if (!v_iterate(in, self, &l) || !v_list(in, V_SEQ, l.n, out)) return false;
        for (size_t i = l.n; i-- > 0;)
            if (!v_push(in, *out, l.items[i])) return false;
        return true;
    }
    (void)a;
    if (!v_iterate(in, self, &l)) return false;
    for (size_t i = l.n; i-- > 0;) str_addn(&s, l.items[i].u.str.p, l.items[i].u.str.n);
    return v_take_str(in, &s, out);
}

/* 大小写不敏感的比较键。 */
static bool sort_key(Interp *in, Value v, Value attribute, bool sensitive, Value *key) {
    Str s = {0};
    if (!by_attribute(in, v, attribute, key)) return false;
    if (sensitive || key->kind != V_STR) return true;
    py_lower(&s, key->u.str);
    return v_take_str(in, &s, key);
}

static bool flag(Interp *in, Value v, bool *yes) {
    *yes = false;
    return v.kind == V_ABSENT || v_truth(in, v, yes);
}

/* 归并排序（稳定）：keys 与 items 一起动。 */
static bool merge_sort(Interp *in, Value *keys, Value *items, size_t n, bool reverse, Value *tmp) {
    if (n < 2) return true;
    size_t half = n / 2, i = 0, j = half, k = 0;
    if (!merge_sort(in, keys, items, half, reverse, tmp) ||
        !merge_sort(in, keys + half, items + half, n - half, reverse, tmp))
        return false;
    while (i < half || j < n) {
        int order = -1;
        if (i < half && j < n && !v_compare(in, "<", keys[j], keys[i], &order)) return false;
        bool right = i >= half || (j < n && (reverse ? order == 1 : order == -1));
        size_t from = right ? j++ : i++;
        tmp[2 * k] = keys[from];
        tmp[2 * k++ + 1] = items[from];
    }
    for (i = 0; i < n; i++) {
        keys[i] = tmp[2 * i];
        items[i] = tmp[2 * i + 1];
    }
    return true;
}

static bool sorted(Interp *in, const List *l, Value attribute, bool sensitive, bool reverse,
                   Value *out) {
    Value *keys = jinja_alloc(in, (l->n + 1) * sizeof *keys);
    Value *tmp = jinja_alloc(in, (2 * l->n + 1) * sizeof *tmp);
    if (!keys || !tmp || !v_list(in, V_LIST, l->n, out)) return false;
    for (size_t i = 0; i < l->n; i++)
        if (!sort_key(in, l->items[i], attribute, sensitive, &keys[i]) ||
            !v_push(in, *out, l->items[i]))
            return false;
    return merge_sort(in, keys, out->u.list->items, l->n, reverse, tmp);
}

static bool f_sort(Interp *in, Value self, const Value *a, Value *out) {
    List l;
    bool reverse, sensitive;
    return flag(in, a[0], &reverse) && flag(in, a[1], &sensitive) && v_iterate(in, self, &l) &&
           sorted(in, &l, a[2], sensitive, reverse, out);
}

static bool extreme(Interp *in, Value self, const Value *a, bool largest, Value *out) {
    List l;
    bool sensitive;
    Value best, key;
    if (!flag(in, a[0], &sensitive) || !v_iterate(in, self, &l)) return false;
    *out = v_undef("空序列没有最大、最小值");
    for (size_t i = 0; i < l.n; i++) {
        int order = 0;
        if (!sort_key(in, l.items[i], a[1], sensitive, &key)) return false;
        if (i && !v_compare(in, largest ? ">" : "<", key, best, &order)) return false;
        if (i && order != (largest ? 1 : -1)) continue;
        best = key;
        *out = l.items[i];
    }
    return true;
}
static bool f_max(Interp *in, Value self, const Value *a, Value *out) {
    return extreme(in, self, a, true, out);
}
static bool f_min(Interp *in, Value self, const Value *a, Value *out) {
    return extreme(in, self, a, false, out);
}

static bool f_sum(Interp *in, Value self, const Value *a, Value *out) {
    List l;
    if (!v_iterate(in, self, &l)) return false;
    *out = a[1].kind == V_ABSENT ? v_int(0) : a[1];
    for (size_t i = 0; i < l.n; i++) {
        Value v;
        if (!by_attribute(in, l.items[i], a[0], &v) || !jinja_binary(in, "+", *out, v, out))
            return false;
    }
    return true;
}

static bool f_unique(Interp *in, Value self, const Value *a, Value *out) {
    List l;
    Value seen, key;
    bool sensitive, have;
    if (!flag(in, a[0], &sensitive) || !v_iterate(in, self, &l) || !v_list(in, V_LIST, 0, &seen) ||
        !v_list(in, V_SEQ, 0, out))
        return false;
    for (size_t i = 0; i < l.n; i++)
        if (!sort_key(in, l.items[i], a[1], sensitive, &key) || !v_contains(in, seen, key, &have) ||
            (!have && (!v_push(in, seen, key) || !v_push(in, *out, l.items[i]))))
            return false;
    return true;
}

static bool pair(Interp *in, Value k, Value v, Value *out) {
    return v_list(in, V_TUPLE, 2, out) && v_push(in, *out, k) && v_push(in, *out, v);
}

static bool f_items(Interp *in, Value self, const Value *a, Value *out) {
    (void)a;
    if (self.kind != V_DICT) return jinja_fail(in, "items 要字典，实为 %s", jinja_type_name(self));
    const Dict *d = self.u.dict;
    if (!v_list(in, V_SEQ, d->n, out)) return false;
    for (size_t i = 0; i < d->n; i++) {
        Value p;
        if (!pair(in, d->keys[i], d->values[i], &p) || !v_push(in, *out, p)) return false;
    }
    return true;
}

static bool f_dictsort(Interp *in, Value self, const Value *a, Value *out) {
    Value items;
    bool sensitive, reverse;
    bool value = a[1].kind == V_STR && py_same(a[1].u.str, py_text("value"));
    return f_items(in, self, a, &items) && flag(in, a[0], &sensitive) && flag(in, a[2], &reverse) &&
           sorted(in, items.u.list, v_int(value), sensitive, reverse, out);
}

static bool f_attr(Interp *in, Value self, const Value *a, Value *out) {
    if (a[0].kind != V_STR) return jinja_fail(in, "attr 要字符串");
    if (self.kind == V_DICT) { /* attr 只看属性，不看键 */
        *out = v_undef("字典没有这个属性（键请用 ['…']）");
        return true;
    }
    const char *name = arena_strndup(&in->arena, a[0].u.str.p, a[0].u.str.n, in->e);
    return name && jinja_attribute(in, self, name, out);
}

/* 去掉前 k 个位置参数之后的参数。 */
static Args rest(const Args *args, size_t k) {
    Args r = *args;
    r.items += k;
    r.n -= k;
    return r;
}

/* map、select 一类对假的值（None、0…）当作空的，不管能不能遍历。 */
static bool items_of(Interp *in, Value self, List *l) {
    bool yes;
    *l = (List){0};
    return v_truth(in, self, &yes) && (!yes || v_iterate(in, self, l));
}

static bool f_map(Interp *in, Value self, const Args *args, Value *out) {
    List l;
    const JinjaDef *def = NULL;
    Value attribute = {.kind = V_ABSENT}, fallback = {.kind = V_ABSENT};
    for (size_t i = 0; !args->n && i < args->n_named; i++)
        *(strcmp(args->names[i], "default") == 0 ? &fallback : &attribute) = args->named[i];
    if (args->n && args->items[0].kind == V_STR) {
        const char *name = arena_strndup(&in->arena, args->items[0].u.str.p,
                                         args->items[0].u.str.n, in->e);
        if (!name) return false;
        def = jinja_filter(name);
        if (!def) return jinja_fail(in, "没有过滤器 '%.60s'", name);
    } else if (attribute.kind == V_ABSENT) {
        return jinja_fail(in, "map 要过滤器的名字或 attribute=");
    }
    if (!items_of(in, self, &l) || !v_list(in, V_SEQ, l.n, out)) return false;
    Args more = def ? rest(args, 1) : *args;
    for (size_t i = 0; i < l.n; i++) {
        Value v;
        if (def ? !jinja_call(in, def->name, def, l.items[i], &more, &v)
                : !by_attribute(in, l.items[i], attribute, &v))
            return false;
        if (v.kind == V_UNDEF && fallback.kind != V_ABSENT) v = fallback;
        if (!v_push(in, *out, v)) return false;
    }
    return true;
}

/* select、reject、selectattr、rejectattr：attr 时第一个参数是属性；其后是测试的名字与参数，没有则看真假。 */
static bool choose(Interp *in, Value self, const Args *args, bool attr, bool want, Value *out) {
    List l;
    const JinjaDef *def = NULL;
    size_t k = attr ? 1 : 0;
    if (args->n < k) return jinja_fail(in, "缺少属性的名字");
    if (args->n > k) {
        const Value *t = &args->items[k];
        const char *name = t->kind == V_STR
                               ? arena_strndup(&in->arena, t->u.str.p, t->u.str.n, in->e) : "";
        def = name ? jinja_test(name) : NULL;
        if (!def) return jinja_fail(in, "没有测试 '%.60s'", name ? name : "");
    }
    if (!items_of(in, self, &l) || !v_list(in, V_SEQ, 0, out)) return false;
    Args more = rest(args, def ? k + 1 : k);
    for (size_t i = 0; i < l.n; i++) {
        Value v = l.items[i], result;
        bool yes;
        if (attr && !by_attribute(in, v, args->items[0], &v)) return false;
        if (def ? !jinja_call(in, def->name, def, v, &more, &result) || !v_truth(in, result, &yes)
                : !v_truth(in, v, &yes))
            return false;
        if (yes == want && !v_push(in, *out, l.items[i])) return false;
    }
    return true;
}
static bool f_select(Interp *in, Value self, const Args *args, Value *out) {
    return choose(in, self, args, false, true, out);
}
static bool f_reject(Interp *in, Value self, const Args *args, Value *out) {
    return choose(in, self, args, false, false, out);
}
static bool f_selectattr(Interp *in, Value self, const Args *args, Value *out) {
    return choose(in, self, args, true, true, out);
}
static bool f_rejectattr(Interp *in, Value self, const Args *args, Value *out) {
    return choose(in, self, args, true, false, out);
}

const JinjaDef JINJA_LIST_FILTERS[] = {
    {"attr", "name", f_attr, NULL, false},
    {"count", "", f_length, NULL, false},
    {"dictsort", "case_sensitive? by? reverse?", f_dictsort, NULL, false},
    {"first", "", f_first, NULL, false},
    {"items", "", f_items, NULL, false},
    {"join", "d? attribute?", f_join, NULL, false},
    {"last", "", f_last, NULL, false},
    {"length", "", f_length, NULL, false},
    {"list", "", f_list, NULL, false},
    {"map", NULL, NULL, f_map, false},
    {"max", "case_sensitive? attribute?", f_max, NULL, false},
    {"min", "case_sensitive? attribute?", f_min, NULL, false},
    {"reject", NULL, NULL, f_reject, false},
    {"rejectattr", NULL, NULL, f_rejectattr, false},
    {"reverse", "", f_reverse, NULL, false},
    {"select", NULL, NULL, f_select, false},
    {"selectattr", NULL, NULL, f_selectattr, false},
    {"sort", "reverse? case_sensitive? attribute?", f_sort, NULL, false},
    {"sum", "attribute? start?", f_sum, NULL, false},
    {"tojson", "indent?", jinja_tojson, NULL, false},
    {"unique", "case_sensitive? attribute?", f_unique, NULL, false},
    {0},
};
