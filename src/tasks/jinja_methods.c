/* jinja_methods — 字符串、列表、字典的方法（x.strip()、l.index(v)、d.items()…）
 * 语义与 Python 3 的同名方法相同；位置以码位计。 */
#include <string.h>

#include "tasks/jinja_internal.h"

#define METHOD(name) static bool name(Interp *in, Value self, const Value *a, Value *out)

static bool need_text(Interp *in, Value v, PyText *t) {
    if (v.kind != V_STR) return jinja_fail(in, "方法的参数应为 str，实为 %s", jinja_type_name(v));
    *t = v.u.str;
    return true;
}

static bool optional_int(Interp *in, Value v, int64_t *i) {
    if (v.kind == V_ABSENT || v.kind == V_NONE || v_integer(v, i)) return true;
    return jinja_fail(in, "方法的参数应为整数，实为 %s", jinja_type_name(v));
}

static bool strip(Interp *in, Value self, const Value *a, bool left, bool right, Value *out) {
    PyText chars = {0};
    if (a[0].kind != V_ABSENT && a[0].kind != V_NONE) {
        if (!need_text(in, a[0], &chars)) return false;
        if (!chars.p) chars.p = "";
    }
    *out = v_text(py_strip(self.u.str, chars, left, right));
    return jinja_spend(in, self.u.str.n + chars.n);
}
METHOD(m_strip) { return strip(in, self, a, true, true, out); }
METHOD(m_lstrip) { return strip(in, self, a, true, false, out); }
METHOD(m_rstrip) { return strip(in, self, a, false, true, out); }

static bool mapped(Interp *in, Value self, void (*fn)(Str *, PyText), Value *out) {
    Str s = {0};
    fn(&s, self.u.str);
    return v_take_str(in, &s, out);
}
METHOD(m_upper) { (void)a; return mapped(in, self, py_upper, out); }
METHOD(m_lower) { (void)a; return mapped(in, self, py_lower, out); }
METHOD(m_capitalize) { (void)a; return mapped(in, self, py_capitalize, out); }
METHOD(m_title) { (void)a; return mapped(in, self, py_title, out); }
METHOD(m_swapcase) { (void)a; return mapped(in, self, py_swapcase, out); }

METHOD(m_replace) {
    PyText old, with, t = self.u.str;
    int64_t count = -1;
    Str s = {0};
    if (!need_text(in, a[0], &old) || !need_text(in, a[1], &with) ||
        !optional_int(in, a[2], &count))
        return false;
    if (with.n > 1 && t.n > JINJA_OUTPUT / with.n) return jinja_fail(in, "replace 的结果会太长");
    py_replace(&s, t, old, with, count);
    return v_take_str(in, &s, out);
}

static bool piece(Interp *in, Value list, PyText t, size_t from, size_t end) {
    return v_push(in, list, v_text((PyText){t.p + from, end - from}));
}

/* 按空白分，连续的空白算一处，两端不留空串；last 为最后一段（其余全部）时去掉左端空白。 */
static bool split_space(Interp *in, PyText t, int64_t limit, Value list) {
    t = py_strip(t, (PyText){0}, true, false);
    for (int64_t i = 0; t.n; i++) {
        size_t end = 0;
        if (limit >= 0 && i == limit) return piece(in, list, t, 0, t.n);
        while (end < t.n) {
            size_t at = end;
            if (py_isspace(py_next(t, &at))) break;
            end = at;
        }
        if (!piece(in, list, t, 0, end)) return false;
        t = py_strip((PyText){t.p + end, t.n - end}, (PyText){0}, true, false);
    }
    return true;
}

METHOD(m_split) {
    PyText t = self.u.str, sep;
    int64_t limit = -1;
    if (!optional_int(in, a[1], &limit) || !v_list(in, V_LIST, 0, out) || !jinja_spend(in, t.n))
        return false;
    if (a[0].kind == V_ABSENT || a[0].kind == V_NONE) return split_space(in, t, limit, *out);
    if (!need_text(in, a[0], &sep)) return false;
    if (!sep.n) return jinja_fail(in, "split 的分隔串不能为空");
    size_t at = 0;
    for (int64_t i = 0; limit < 0 || i < limit; i++) {
        size_t hit = py_find(t, sep, at);
        if (hit == SIZE_MAX) break;
        if (!piece(in, *out, t, at, hit)) return false;
        at = hit + sep.n;
    }
    return piece(in, *out, t, at, t.n);
}

static void turn_around(List *l) {
    for (size_t i = 0, j = l->n; i + 1 < j; i++) {
        Value v = l->items[i];
        l->items[i] = l->items[--j];
        l->items[j] = v;
    }
}

METHOD(m_rsplit) {
    PyText t = self.u.str, sep = {0};
    int64_t limit = -1;
    if (!optional_int(in, a[1], &limit)) return false;
    if (limit < 0) return m_split(in, self, a, out);
    if (a[0].kind == V_ABSENT || a[0].kind == V_NONE)
        return jinja_fail(in, "rsplit 限次数时要给分隔串");
    if (!need_text(in, a[0], &sep) || !v_list(in, V_LIST, 0, out) || !jinja_spend(in, t.n))
        return false;
    if (!sep.n) return jinja_fail(in, "rsplit 的分隔串不能为空");
    size_t end = t.n;
    for (; limit > 0; limit--) {
        size_t hit = py_rfind(t, sep, end);
        if (hit == SIZE_MAX) break;
        if (!piece(in, *out, t, hit + sep.n, end)) return false;
        end = hit;
    }
    if (!piece(in, *out, t, 0, end)) return false;
    turn_around(out->u.list);
    return true;
}

static bool is_line_end(int32_t c) {
    return (c >= 10 && c <= 13) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
}

METHOD(m_splitlines) {
    PyText t = self.u.str;
    bool keep = false;
    if (a[0].kind != V_ABSENT && !v_truth(in, a[0], &keep)) return false;
    if (!v_list(in, V_LIST, 0, out)) return false;
    for (size_t at = 0, from = 0; at < t.n; from = at) {
        size_t end = at;
        int32_t c = 0;
        while (at < t.n && !is_line_end(c = py_next(t, &at))) end = at;
        if (c == '\r' && at < t.n && t.p[at] == '\n') at++;
        if (!piece(in, *out, t, from, keep ? at : end)) return false;
    }
    return true;
}

METHOD(m_join) {
    List l;
    Str s = {0};
    if (!v_iterate(in, a[0], &l)) return false;
    bool ok = true;
    for (size_t i = 0; ok && i < l.n; i++) {
        if (l.items[i].kind != V_STR)
            ok = jinja_fail(in, "join 的第 %zu 项应为 str，实为 %s", i, jinja_type_name(l.items[i]));
        if (i) str_addn(&s, self.u.str.p, self.u.str.n);
        ok = ok && v_show(in, &s, l.items[i]);
    }
    return v_take_str(in, &s, out) && ok;
}

/* 把 [from, to) 的码位界变成字节界；缺省为整段。越过末尾时返回 false 表示找不到。 */
static bool window(Interp *in, PyText t, const Value *a, size_t *from, size_t *to, bool *inside) {
    int64_t n = (int64_t)py_length(t), lo = 0, hi = n;
    if (!optional_int(in, a[0], &lo) || !optional_int(in, a[1], &hi) || !jinja_spend(in, t.n))
        return false;
    if (lo < 0) lo = lo + n < 0 ? 0 : lo + n;
    if (hi < 0) hi = hi + n < 0 ? 0 : hi + n;
    if (hi > n) hi = n;
    *inside = lo <= hi;
    *from = py_offset(t, lo > n ? (size_t)n : (size_t)lo);
    *to = py_offset(t, (size_t)hi);
    return true;
}

static bool search(Interp *in, Value self, const Value *a, bool right, int64_t *pos) {
    PyText t = self.u.str, what;
    size_t from, to;
    bool inside;
    if (!need_text(in, a[0], &what) || !window(in, t, a + 1, &from, &to, &inside)) return false;
    *pos = -1;
    if (!inside) return true;
    PyText part = {t.p, to};
    size_t hit = right ? py_rfind(part, what, to) : py_find(part, what, from);
    if (hit != SIZE_MAX && hit >= from) *pos = (int64_t)py_length((PyText){t.p, hit});
    return true;
}

static bool find_with(Interp *in, Value self, const Value *a, bool right, bool must, Value *out) {
    int64_t pos;
    if (!search(in, self, a, right, &pos)) return false;
    if (must && pos < 0) return jinja_fail(in, "index 没有找到要找的子串");
    *out = v_int(pos);
    return true;
}
METHOD(m_find) { return find_with(in, self, a, false, false, out); }
METHOD(m_rfind) { return find_with(in, self, a, true, false, out); }
METHOD(m_index) { return find_with(in, self, a, false, true, out); }
METHOD(m_rindex) { return find_with(in, self, a, true, true, out); }

METHOD(m_count) {
    PyText what, t = self.u.str;
    size_t from, to;
    bool inside;
    int64_t n = 0;
    if (!need_text(in, a[0], &what) || !window(in, t, a + 1, &from, &to, &inside)) return false;
    t.n = to;
    if (inside && !what.n) n = (int64_t)py_length((PyText){t.p + from, to - from}) + 1;
    for (size_t at = from; inside && what.n && (at = py_find(t, what, at)) != SIZE_MAX; n++)
        at += what.n;
    *out = v_int(n);
    return true;
}

/* startswith、endswith：参数可以是元组。 */
static bool affix(Interp *in, Value self, const Value *a, bool end, Value *out) {
    PyText t = self.u.str;
    List one = {.items = (Value *)(uintptr_t)&a[0], .n = 1};
    if (a[0].kind == V_TUPLE) one = *a[0].u.list;
    *out = v_bool(false);
    for (size_t i = 0; i < one.n; i++) {
        PyText w;
        if (!need_text(in, one.items[i], &w)) return false;
        if (w.n > t.n) continue;
        PyText part = {end ? t.p + t.n - w.n : t.p, w.n};
        if (py_same(part, w)) *out = v_bool(true);
    }
    return jinja_spend(in, one.n);
}
METHOD(m_startswith) { return affix(in, self, a, false, out); }
METHOD(m_endswith) { return affix(in, self, a, true, out); }

static bool without(Interp *in, Value self, const Value *a, bool end, Value *out) {
    PyText t = self.u.str;
    Value yes;
    if (a[0].kind != V_STR) return jinja_fail(in, "removeprefix、removesuffix 要 str");
    if (!affix(in, self, a, end, &yes)) return false;
    size_t n = yes.u.boolean ? a[0].u.str.n : 0;
    *out = v_text((PyText){end ? t.p : t.p + n, t.n - n});
    return true;
}
METHOD(m_removeprefix) { return without(in, self, a, false, out); }
METHOD(m_removesuffix) { return without(in, self, a, true, out); }

static bool cut(Interp *in, Value self, const Value *a, bool right, Value *out) {
    PyText t = self.u.str, sep;
    if (!need_text(in, a[0], &sep)) return false;
    if (!sep.n) return jinja_fail(in, "partition 的分隔串不能为空");
    size_t hit = right ? py_rfind(t, sep, t.n) : py_find(t, sep, 0);
    bool found = hit != SIZE_MAX;
    size_t before = found ? hit : right ? 0 : t.n, after = found ? hit + sep.n : before;
    return v_list(in, V_TUPLE, 3, out) && jinja_spend(in, t.n) && piece(in, *out, t, 0, before) &&
           piece(in, *out, t, before, after) && piece(in, *out, t, after, t.n);
}
METHOD(m_partition) { return cut(in, self, a, false, out); }
METHOD(m_rpartition) { return cut(in, self, a, true, out); }

/* 非空且每个字符都满足 fn。 */
static bool every(Interp *in, Value self, bool (*fn)(int32_t), Value *out) {
    PyText t = self.u.str;
    bool yes = t.n > 0;
    for (size_t at = 0; yes && at < t.n;) yes = fn(py_next(t, &at));
    *out = v_bool(yes);
    return jinja_spend(in, t.n);
}
METHOD(m_isdigit) { (void)a; return every(in, self, py_isdigit_cp, out); }
METHOD(m_isalpha) { (void)a; return every(in, self, py_isalpha_cp, out); }
METHOD(m_isalnum) { (void)a; return every(in, self, py_isalnum_cp, out); }
METHOD(m_isspace) { (void)a; return every(in, self, py_isspace, out); }

static bool case_test(Interp *in, Value self, const char *name, Value *out) {
    return jinja_call(in, name, jinja_test(name), self, &(Args){0}, out);
}
METHOD(m_isupper) { (void)a; return case_test(in, self, "upper", out); }
METHOD(m_islower) { (void)a; return case_test(in, self, "lower", out); }

METHOD(m_zfill) {
    int64_t width = 0, n = (int64_t)py_length(self.u.str);
    Str s = {0};
    if (!optional_int(in, a[0], &width)) return false;
    if (width > 1 << 20) return jinja_fail(in, "zfill 的宽度太大");
    PyText t = self.u.str;
    size_t sign = t.n && (*t.p == '+' || *t.p == '-');
    str_addn(&s, t.p, sign);
    for (int64_t i = n; i < width; i++) str_add(&s, "0");
    str_addn(&s, t.p + sign, t.n - sign);
    return v_take_str(in, &s, out);
}

METHOD(m_list_index) {
    bool same = false;
    for (size_t i = 0; i < self.u.list->n; i++) {
        if (!v_equal(in, self.u.list->items[i], a[0], &same)) return false;
        *out = v_int((int64_t)i);
        if (same) return true;
    }
    return jinja_fail(in, "index: 列表里没有这个值");
}

METHOD(m_list_count) {
    int64_t n = 0;
    for (size_t i = 0; i < self.u.list->n; i++) {
        bool same;
        if (!v_equal(in, self.u.list->items[i], a[0], &same)) return false;
        n += same;
    }
    *out = v_int(n);
    return true;
}

METHOD(m_append) {
    *out = v_none();
    return v_push(in, self, a[0]);
}

METHOD(m_extend) {
    List l;
    *out = v_none();
    if (!v_iterate(in, a[0], &l)) return false;
    for (size_t i = 0; i < l.n; i++)
        if (!v_push(in, self, l.items[i])) return false;
    return true;
}

METHOD(m_pop) {
    List *l = self.u.list;
    int64_t i = -1;
    if (!optional_int(in, a[0], &i)) return false;
    if (i < 0) i += (int64_t)l->n;
    if (i < 0 || i >= (int64_t)l->n) return jinja_fail(in, "pop 的下标越界");
    *out = l->items[i];
    memmove(l->items + i, l->items + i + 1, (l->n - (size_t)i - 1) * sizeof(Value));
    l->n--;
    return jinja_spend(in, l->n);
}

METHOD(m_get) {
    Value *v;
    if (!v_find(in, self.u.dict, a[0], &v)) return false;
    *out = v ? *v : a[1].kind == V_ABSENT ? v_none() : a[1];
    return true;
}

static bool view(Interp *in, Value list, const char *name, Value *out) {
    List *l = jinja_alloc(in, sizeof *l);
    if (!l) return false;
    *l = *list.u.list;
    l->shown = name;
    l->view = true;
    *out = (Value){.kind = V_SEQ, .u.list = l};
    return true;
}
METHOD(m_items) {
    (void)a;
    Value l;
    return jinja_call(in, "items", jinja_filter("items"), self, &(Args){0}, &l) &&
           view(in, l, "dict_items", out);
}
METHOD(m_keys) {
    (void)a;
    List l = {.items = self.u.dict->keys, .n = self.u.dict->n};
    return view(in, (Value){.kind = V_LIST, .u.list = &l}, "dict_keys", out);
}
METHOD(m_values) {
    (void)a;
    List l = {.items = self.u.dict->values, .n = self.u.dict->n};
    return view(in, (Value){.kind = V_LIST, .u.list = &l}, "dict_values", out);
}

METHOD(m_update) {
    *out = v_none();
    if (a[0].kind != V_DICT) return jinja_fail(in, "update 要字典");
    const Dict *d = a[0].u.dict;
    for (size_t i = 0, n = d->n; i < n; i++)
        if (!v_put(in, self.u.dict, d->keys[i], d->values[i])) return false;
    return true;
}

static const JinjaDef TEXT[] = {
    {"capitalize", "", m_capitalize, NULL, false},
    {"count", "sub start? end?", m_count, NULL, false},
    {"endswith", "suffix", m_endswith, NULL, false},
    {"find", "sub start? end?", m_find, NULL, false},
    {"format", NULL, NULL, jinja_format_method, false},
    {"index", "sub start? end?", m_index, NULL, false}, {"isalnum", "", m_isalnum, NULL, false},
    {"isalpha", "", m_isalpha, NULL, false}, {"isdigit", "", m_isdigit, NULL, false},
    {"islower", "", m_islower, NULL, false}, {"isspace", "", m_isspace, NULL, false},
    {"isupper", "", m_isupper, NULL, false}, {"join", "iterable", m_join, NULL, false},
    {"lower", "", m_lower, NULL, false}, {"lstrip", "chars?", m_lstrip, NULL, false},
    {"partition", "sep", m_partition, NULL, false},
    {"removeprefix", "prefix", m_removeprefix, NULL, false},
    {"removesuffix", "suffix", m_removesuffix, NULL, false},
    {"replace", "old new count?", m_replace, NULL, false},
    {"rfind", "sub start? end?", m_rfind, NULL, false},
    {"rindex", "sub start? end?", m_rindex, NULL, false},
    {"rpartition", "sep", m_rpartition, NULL, false},
    {"rsplit", "sep? maxsplit?", m_rsplit, NULL, false},
    {"rstrip", "chars?", m_rstrip, NULL, false},
    {"split", "sep? maxsplit?", m_split, NULL, false},
    {"splitlines", "keepends?", m_splitlines, NULL, false},
    {"startswith", "prefix", m_startswith, NULL, false}, {"strip", "chars?", m_strip, NULL, false},
    {"swapcase", "", m_swapcase, NULL, false}, {"title", "", m_title, NULL, false},
    {"upper", "", m_upper, NULL, false}, {"zfill", "width", m_zfill, NULL, false}, {0}};
static const JinjaDef LIST[] = {
    {"append", "object", m_append, NULL, false}, {"count", "value", m_list_count, NULL, false},
    {"extend", "iterable", m_extend, NULL, false}, {"index", "value", m_list_index, NULL, false},
    {"pop", "index?", m_pop, NULL, false}, {0}};
static const JinjaDef TUPLE[] = {{"count", "value", m_list_count, NULL, false},
                                 {"index", "value", m_list_index, NULL, false}, {0}};
static const JinjaDef DICT[] = {
    {"get", "key default?", m_get, NULL, false}, {"items", "", m_items, NULL, false},
    {"keys", "", m_keys, NULL, false}, {"update", "other", m_update, NULL, false},
    {"values", "", m_values, NULL, false}, {0}};

const JinjaDef *jinja_method(ValueKind kind, const char *name) {
    const JinjaDef *d = kind == V_STR ? TEXT : kind == V_LIST ? LIST : kind == V_TUPLE ? TUPLE
                        : kind == V_DICT ? DICT : NULL;
    for (; d && d->name; d++)
        if (strcmp(d->name, name) == 0) return d;
    return NULL;
}
