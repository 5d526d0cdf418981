/* jinja_show — 值的 Python 写法：str() 与 repr()
 * 列表与字典里的元素用 repr()，最外层的字符串用 str()；这就是 {{ choices }} 打印出 "['a', 'b']" 的缘故。 */
#include <string.h>

#include "tasks/jinja_internal.h"

static bool show_items(Interp *in, Str *out, const List *l, const char *open, const char *close) {
    str_add(out, open);
    for (size_t i = 0; i < l->n; i++) {
        if (i) str_add(out, ", ");
        if (!v_repr(in, out, l->items[i])) return false;
    }
    str_add(out, close);
    return true;
}

static bool show_dict(Interp *in, Str *out, const Dict *d) {
    str_add(out, "{");
    for (size_t i = 0; i < d->n; i++) {
        if (i) str_add(out, ", ");
        if (!v_repr(in, out, d->keys[i])) return false;
        str_add(out, ": ");
        if (!v_repr(in, out, d->values[i])) return false;
    }
    str_add(out, "}");
    return true;
}

static bool show_sequence(Interp *in, Str *out, const List *l) {
    if (!l->shown) return jinja_fail(in, "生成器不能打印，请先 |list");
    str_add(out, l->shown);
    return !l->view || show_items(in, out, l, "([", "])");
}

static bool show_inner(Interp *in, Str *out, Value v) {
    switch (v.kind) {
    case V_NONE: str_add(out, "None"); return true;
    case V_BOOL: str_add(out, v.u.boolean ? "True" : "False"); return true;
    case V_INT: str_addf(out, "%lld", (long long)v.u.integer); return true;
    case V_FLOAT: py_float(out, v.u.real); return true;
    case V_STR: py_repr(out, v.u.str); return true;
    case V_LIST: return show_items(in, out, v.u.list, "[", "]");
    case V_TUPLE: return show_items(in, out, v.u.list, "(", v.u.list->n == 1 ? ",)" : ")");
    case V_SEQ: return show_sequence(in, out, v.u.list);
    case V_DICT: return show_dict(in, out, v.u.dict);
    default: return jinja_fail(in, "%s 没有可以打印的内容", jinja_type_name(v));
    }
}

bool v_repr(Interp *in, Str *out, Value v) {
    if (v.kind == V_UNDEF) { /* 列表里的；单独打印的在 v_show 报错 */
        str_add(out, "Undefined");
        return true;
    }
    size_t before = out->len;
    if (in->depth++ >= JINJA_EVAL_DEPTH) return jinja_fail(in, "值嵌套过深，或包含了自己");
    bool ok = show_inner(in, out, v);
    in->depth--;
    if (out->len > JINJA_OUTPUT) return jinja_fail(in, "输出超过 16 MB");
    return ok && jinja_spend(in, v.kind == V_STR ? out->len - before : 0);
}

bool v_show(Interp *in, Str *out, Value v) {
    if (v.kind == V_UNDEF) return v.soft || jinja_defined(in, v);
    if (v.kind != V_STR) return v_repr(in, out, v);
    str_addn(out, v.u.str.p, v.u.str.n);
    if (out->len > JINJA_OUTPUT) return jinja_fail(in, "输出超过 16 MB");
    return jinja_spend(in, v.u.str.n);
}

bool v_to_text(Interp *in, Value v, PyText *out) {
    Str s = {0};
    Value text = v;
    if (v.kind != V_STR) {
        bool ok = v_show(in, &s, v);
        if (!v_take_str(in, &s, &text) || !ok) return false;
    }
    *out = text.u.str;
    return true;
}
