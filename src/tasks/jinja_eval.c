/* jinja_eval — 表达式求值
 * 未定义的名字求值得到「未定义」而不立即报错：is defined 与 default 要看它，其余一用就报错（StrictUndefined）。 */
#include <string.h>

#include "tasks/jinja_internal.h"

static bool lookup(Interp *in, const char *name, Value *out) {
    for (Scope *s = in->scope; s; s = s->outer)
        for (Binding *b = s->first; b; b = b->next)
            if (strcmp(b->name, name) == 0) {
                *out = b->value;
                return true;
            }
    const json_t *j = json_object_get(in->context, name);
    if (j) /* 记下来：同一个列表须是同一个值 */
        return v_from_json(in, j, out) && jinja_bind(in, &in->globals, name, *out);
    const JinjaDef *def = jinja_global(name);
    if (def) {
        Callable *c = jinja_alloc(in, sizeof *c);
        if (!c) return false;
        *c = (Callable){.name = name, .def = def};
        *out = (Value){.kind = V_CALL, .u.call = c};
        return true;
    }
    const char *what = arena_printf(&in->arena, in->e, "'%.100s' 未定义", name);
    *out = v_undef(what);
    return what != NULL;
}

static bool eval_args(Interp *in, const Node *list, Args *args) {
    size_t n = 0, named = 0;
    for (const Node *x = list; x; x = x->next) x->name ? named++ : n++;
    Value *items = jinja_alloc(in, (n + named + 1) * sizeof *items);
    const char **names = jinja_alloc(in, (named + 1) * sizeof *names);
    *args = (Args){.items = items, .n = n, .names = names, .named = items + n, .n_named = named};
    if (!items || !names) return false;
    size_t at = 0;
    for (const Node *x = list; x; x = x->next, at++) {
        if (x->name) names[at - n] = x->name; /* 有名字的都排在后面 */
        if (!jinja_value(in, x->a, &items[at])) return false;
    }
    return true;
}

/* 按 "a b? c?" 把参数排好。 */
static bool arrange(Interp *in, const char *what, const char *params, const Args *args,
                    Value *slots, size_t cap) {
    size_t i = 0, used = 0;
    for (const char *p = params; p && *p; i++) {
        size_t len = strcspn(p, " "), name_len = len - (p[len - 1] == '?');
        CHECK(i < cap);
        slots[i] = (Value){.kind = V_ABSENT};
        if (i < args->n) slots[i] = args->items[i];
        for (size_t k = 0; k < args->n_named; k++)
            if (strlen(args->names[k]) == name_len && strncmp(args->names[k], p, name_len) == 0) {
                if (i < args->n) return jinja_fail(in, "%s 的参数 %s 给了两次", what, args->names[k]);
                slots[i] = args->named[k];
                used++;
            }
        if (slots[i].kind == V_ABSENT && name_len == len)
            return jinja_fail(in, "%s 缺少参数 %.*s", what, (int)len, p);
        if (!jinja_defined(in, slots[i])) return false;
        p += len + (p[len] == ' ');
    }
    if (args->n > i || used < args->n_named) return jinja_fail(in, "%s 的参数多了或名字不对", what);
    return true;
}

bool jinja_call(Interp *in, const char *what, const JinjaDef *def, Value self, const Args *args,
                Value *out) {
    Value slots[6];
    if (!jinja_spend(in, 0)) return false;
    if (def->raw) return def->raw(in, self, args, out);
    return arrange(in, what, def->params, args, slots, sizeof slots / sizeof *slots) &&
           def->fn(in, self, slots, out);
}

static bool eval_call(Interp *in, const Node *n, Value *out) {
    Value callee;
    Args args;
    if (!jinja_value(in, n->a, &callee) || !jinja_defined(in, callee)) return false;
    if (callee.kind != V_CALL) return jinja_fail(in, "%s 不能当函数调用", jinja_type_name(callee));
    if (!eval_args(in, n->items, &args)) return false;
    const Callable *c = callee.u.call;
    if (c->macro) return jinja_call_macro(in, c->macro, &args, out);
    return jinja_call(in, c->name, c->def, c->self, &args, out);
}

static bool eval_filter(Interp *in, const Node *n, Value *out) {
    Value v;
    Args args;
    if (!jinja_value(in, n->a, &v)) return false;
    if (!n->def->lenient && !v.soft && !jinja_defined(in, v)) return false;
    return eval_args(in, n->items, &args) && jinja_call(in, n->name, n->def, v, &args, out);
}

static bool eval_test(Interp *in, const Node *n, Value *out) {
    Value v;
    Args args;
    return jinja_value(in, n->a, &v) && eval_args(in, n->items, &args) &&
           jinja_call(in, n->name, n->def, v, &args, out);
}

static bool compare_one(Interp *in, const char *op, Value l, Value r, bool *yes) {
    int order;
    if (strcmp(op, "in") == 0) return v_contains(in, r, l, yes);
    if (strcmp(op, "ni") == 0) {
        bool ok = v_contains(in, r, l, yes);
        *yes = !*yes;
        return ok;
    }
    if (strcmp(op, "==") == 0 || strcmp(op, "!=") == 0) {
        bool ok = v_equal(in, l, r, yes);
        if (op[0] == '!') *yes = !*yes;
        return ok;
    }
    if (!v_compare(in, op, l, r, &order)) return false;
    if (order == 2) *yes = false;
    else if (op[0] == '<') *yes = order < 0 || (op[1] && order == 0);
    else *yes = order > 0 || (op[1] && order == 0);
    return true;
}

/* a < b < c：逐对比较，每个操作数只求一次。 */
static bool eval_compare(Interp *in, const Node *n, Value *out) {
    Value l, r;
    bool yes = true;
    if (!jinja_value(in, n->a, &l)) return false;
    for (const Node *x = n->items; x && yes; x = x->next, l = r)
        if (!jinja_value(in, x->a, &r) || !compare_one(in, x->op, l, r, &yes)) return false;
    *out = v_bool(yes);
    return true;
}

static bool eval_logic(Interp *in, const Node *n, Value *out) {
    bool yes;
    if (!jinja_value(in, n->a, out) || !v_truth(in, *out, &yes)) return false;
    return yes == (n->kind == N_OR) || jinja_value(in, n->b, out);
}

static bool eval_cond(Interp *in, const Node *n, Value *out) {
    Value cond;
    bool yes;
    if (!jinja_value(in, n->b, &cond) || !v_truth(in, cond, &yes)) return false;
    if (yes) return jinja_value(in, n->a, out);
    if (n->c) return jinja_value(in, n->c, out);
    *out = v_undef("条件不成立，又没有 else");
    out->soft = true;
    return true;
}

static bool eval_list(Interp *in, const Node *n, Value *out) {
    if (!v_list(in, n->kind == N_LIST ? V_LIST : V_TUPLE, 0, out)) return false;
    for (const Node *x = n->items; x; x = x->next) {
        Value v;
        if (!jinja_value(in, x, &v) || !v_push(in, *out, v)) return false;
    }
    return true;
}

static bool eval_dict(Interp *in, const Node *n, Value *out) {
    if (!v_dict(in, 0, out)) return false;
    for (const Node *k = n->items, *x = n->more; k; k = k->next, x = x->next) {
        Value key, v;
        if (!jinja_value(in, k, &key) || !jinja_value(in, x, &v) ||
            !v_put(in, out->u.dict, key, v))
            return false;
    }
    return true;
}

static bool eval_concat(Interp *in, const Node *n, Value *out) {
    Str s = {0};
    bool ok = true;
    for (const Node *x = n->items; ok && x; x = x->next) {
        Value v;
        ok = jinja_value(in, x, &v) && v_show(in, &s, v);
    }
    return v_take_str(in, &s, out) && ok;
}

static bool eval_negative(Interp *in, const Node *n, Value *out) {
    Value v;
    if (!jinja_value(in, n->a, &v)) return false;
    if (v.kind == V_FLOAT) {
        *out = v_float(n->kind == N_NEG ? -v.u.real : v.u.real);
        return true;
    }
    return jinja_binary(in, n->kind == N_NEG ? "-" : "+", v_int(0), v, out);
}

/* 切片的一个端点：缺省或 None 取 def，否则夹到 [lo, hi]，负数从末尾数。 */
static bool bound(Interp *in, const Node *n, int64_t len, int64_t def, int64_t lo, int64_t hi,
                  int64_t *out) {
    Value v = v_none();
    *out = def;
    if (n && !jinja_value(in, n, &v)) return false;
    if (v.kind == V_NONE) return true;
    if (!jinja_defined(in, v)) return false;
    if (!v_integer(v, out)) return jinja_fail(in, "切片的端点应为整数，实为 %s", jinja_type_name(v));
    if (*out < 0) *out += len;
    *out = *out < lo ? lo : *out > hi ? hi : *out;
    return true;
}

static bool eval_slice(Interp *in, const Node *n, Value *out) {
    Value v, item;
    int64_t from, to, step;
    if (!jinja_value(in, n->a, &v) || !jinja_defined(in, v)) return false;
    if (v.kind != V_STR && v.kind != V_LIST && v.kind != V_TUPLE)
        return jinja_fail(in, "%s 不能切片", jinja_type_name(v));
    List all;
    if (!v_iterate(in, v, &all)) return false;
    int64_t len = (int64_t)all.n;
    if (!bound(in, n->items->c, 0, 1, INT64_MIN, INT64_MAX, &step)) return false;
    if (step == 0) return jinja_fail(in, "切片的步长不能为 0");
    if (step > len + 1 || step < -len - 1) step = step > 0 ? len + 1 : -len - 1;
    int64_t lo = step > 0 ? 0 : -1, hi = step > 0 ? len : len - 1;
    if (!bound(in, n->items->a, len, step > 0 ? lo : hi, lo, hi, &from) ||
        !bound(in, n->items->b, len, step > 0 ? hi : lo, lo, hi, &to))
        return false;
    Str s = {0};
    bool ok = v.kind == V_STR || v_list(in, v.kind, 0, out);
    for (int64_t i = from; ok && (step > 0 ? i < to : i > to); i += step) {
        item = all.items[i];
        if (v.kind == V_STR) ok = v_show(in, &s, item);
        else ok = v_push(in, *out, item);
    }
    if (v.kind == V_STR) return v_take_str(in, &s, out) && ok;
    return ok;
}

static bool eval_inner(Interp *in, const Node *n, Value *out) {
    Value l, r;
    bool yes;
    switch (n->kind) {
    case N_CONST: *out = n->value; return true;
    case N_NAME: return lookup(in, n->name, out);
    case N_ATTR: return jinja_value(in, n->a, &l) && jinja_attribute(in, l, n->name, out);
    case N_ITEM:
        return jinja_value(in, n->a, &l) && jinja_value(in, n->b, &r) && jinja_item(in, l, r, out);
    case N_SLICE: return eval_slice(in, n, out);
    case N_CALL: return eval_call(in, n, out);
    case N_FILTER: return eval_filter(in, n, out);
    case N_TEST: return eval_test(in, n, out);
    case N_NEG:
    case N_POS: return eval_negative(in, n, out);
    case N_BINARY:
        return jinja_value(in, n->a, &l) && jinja_value(in, n->b, &r) &&
               jinja_binary(in, n->op, l, r, out);
    case N_COMPARE: return eval_compare(in, n, out);
    case N_AND:
    case N_OR: return eval_logic(in, n, out);
    case N_NOT:
        if (!jinja_value(in, n->a, &l) || !v_truth(in, l, &yes)) return false;
        *out = v_bool(!yes);
        return true;
    case N_COND: return eval_cond(in, n, out);
    case N_LIST:
    case N_TUPLE: return eval_list(in, n, out);
    case N_DICT: return eval_dict(in, n, out);
    case N_CONCAT: return eval_concat(in, n, out);
    default: return jinja_fail(in, "语句不能求值");
    }
}

bool jinja_value(Interp *in, const Node *n, Value *out) {
    in->line = n->line;
    if (!jinja_spend(in, 0)) return false;
    if (in->depth++ >= JINJA_EVAL_DEPTH) return jinja_fail(in, "求值嵌套过深");
    bool ok = eval_inner(in, n, out);
    in->depth--;
    return ok;
}
