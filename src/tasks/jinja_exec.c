/* jinja_exec — 执行语句，输出累积在 in->out
 * 作用域：for 的每一轮、macro、set 块各有一层，if 没有；在内层 set 的名字出了那一层就没有了（与 jinja2 相同）。 */
#include <string.h>

#include "tasks/jinja_internal.h"

bool jinja_bind(Interp *in, Scope *scope, const char *name, Value v) {
    for (Binding *b = scope->first; b; b = b->next)
        if (strcmp(b->name, name) == 0) {
            b->value = v;
            return true;
        }
    Binding *b = jinja_alloc(in, sizeof *b);
    if (!b) return false;
    *b = (Binding){.name = name, .value = v, .next = scope->first};
    scope->first = b;
    return true;
}

static bool assign(Interp *in, const Node *target, Value v) {
    if (target->kind == N_NAME) return jinja_bind(in, in->scope, target->name, v);
    if (target->kind == N_ATTR) {
        Value ns;
        if (!jinja_value(in, target->a, &ns)) return false;
        if (ns.kind != V_NAMESPACE) return jinja_fail(in, "只能给 namespace 的属性赋值");
        return v_put(in, ns.u.dict, v_str(target->name), v);
    }
    List items;
    if (!v_iterate(in, v, &items)) return false;
    size_t i = 0;
    for (const Node *x = target->items; x; x = x->next, i++)
        if (i >= items.n || !assign(in, x, items.items[i]))
            return jinja_fail(in, "要拆成的个数与 %zu 个值不符", items.n);
    return i == items.n || jinja_fail(in, "要拆成 %zu 个，却有 %zu 个值", i, items.n);
}

/* 在新的一层作用域里执行。 */
static bool exec_inside(Interp *in, Scope *scope, const Node *body) {
    scope->outer = in->scope;
    in->scope = scope;
    bool ok = jinja_exec(in, body);
    in->scope = scope->outer;
    return ok;
}

/* 输出改记到别处执行 body，得到其文字。 */
static bool capture(Interp *in, Scope *scope, const Node *body, Value *out) {
    Str saved = in->out;
    in->out = (Str){0};
    bool ok = exec_inside(in, scope, body);
    ok = v_take_str(in, &in->out, out) && ok;
    in->out = saved;
    return ok;
}

bool jinja_call_macro(Interp *in, const Node *macro, const Args *args, Value *out) {
    Scope scope = {0}, *caller = in->scope;
    size_t i = 0, used = 0;
    if (in->depth > JINJA_EVAL_DEPTH / 2) return jinja_fail(in, "macro 递归过深");
    in->scope = scope.outer = &in->globals;
    bool ok = true;
    for (const Node *p = macro->a->items; ok && p; p = p->next, i++) {
        Value v = v_undef("macro 的参数没有给");
        bool given = i < args->n;
        if (given) v = args->items[i];
        for (size_t k = 0; k < args->n_named; k++)
            if (strcmp(args->names[k], p->name) == 0) v = args->named[k], given = true, used++;
        if (!given && p->a) {
            in->scope = &scope;
            ok = jinja_value(in, p->a, &v);
        }
        ok = ok && jinja_bind(in, &scope, p->name, v);
    }
    if (ok && (args->n > i || used < args->n_named))
        ok = jinja_fail(in, "macro %s 的参数多了或名字不对", macro->name);
    in->scope = &in->globals;
    ok = ok && capture(in, &scope, macro->items, out);
    in->scope = caller;
    return ok;
}

enum { LOOP_INDEX, LOOP_INDEX0, LOOP_REV, LOOP_REV0, LOOP_FIRST, LOOP_LAST, LOOP_LENGTH, LOOP_PREV,
       LOOP_NEXT, LOOP_DEPTH, LOOP_DEPTH0, LOOP_CYCLE, LOOP_FIELDS };

static bool open_loop(Interp *in, Value *loop) {
    static const char *const NAMES[] = {"index", "index0", "revindex", "revindex0", "first", "last",
                                        "length", "previtem", "nextitem", "depth", "depth0",
                                        "cycle"};
    if (!v_dict(in, LOOP_FIELDS, loop)) return false;
    Dict *d = loop->u.dict;
    loop->kind = V_NAMESPACE;
    for (d->n = 0; d->n < LOOP_FIELDS; d->n++) d->keys[d->n] = v_str(NAMES[d->n]);
    d->values[LOOP_DEPTH] = v_int(1);
    d->values[LOOP_DEPTH0] = v_int(0);
    Callable *c = jinja_alloc(in, sizeof *c);
    if (!c) return false;
    *c = (Callable){.name = "cycle", .def = jinja_global("loop.cycle"), .self = *loop};
    d->values[LOOP_CYCLE] = (Value){.kind = V_CALL, .u.call = c};
    return true;
}

static void fill_loop(Value *v, const List *items, size_t i) {
    int64_t n = (int64_t)items->n, k = (int64_t)i;
    v[LOOP_INDEX] = v_int(k + 1);
    v[LOOP_INDEX0] = v_int(k);
    v[LOOP_REV] = v_int(n - k);
    v[LOOP_REV0] = v_int(n - k - 1);
    v[LOOP_FIRST] = v_bool(k == 0);
    v[LOOP_LAST] = v_bool(k == n - 1);
    v[LOOP_LENGTH] = v_int(n);
    v[LOOP_PREV] = i > 0 ? items->items[i - 1] : v_undef("没有上一项");
    v[LOOP_NEXT] = i + 1 < items->n ? items->items[i + 1] : v_undef("没有下一项");
}

/* for … if：先留下符合条件的。 */
static bool filter_items(Interp *in, const Node *n, List *items) {
    Value kept;
    if (!v_list(in, V_LIST, 0, &kept)) return false;
    for (size_t i = 0; i < items->n; i++) {
        Scope scope = {.outer = in->scope};
        Value cond;
        bool yes = false;
        in->scope = &scope;
        bool ok = assign(in, n->a, items->items[i]) && jinja_value(in, n->c, &cond) &&
                  v_truth(in, cond, &yes) && (!yes || v_push(in, kept, items->items[i]));
        in->scope = scope.outer;
        if (!ok) return false;
    }
    *items = *kept.u.list;
    return true;
}

static bool exec_for(Interp *in, const Node *n) {
    Value v, loop;
    List items;
    if (!jinja_value(in, n->b, &v) || !v_iterate(in, v, &items)) return false;
    if (n->c && !filter_items(in, n, &items)) return false;
    if (!items.n) {
        Scope scope = {0};
        return exec_inside(in, &scope, n->more);
    }
    if (!open_loop(in, &loop)) return false;
    for (size_t i = 0; i < items.n; i++) {
        Scope scope = {.outer = in->scope};
        fill_loop(loop.u.dict->values, &items, i);
        in->scope = &scope;
        bool ok = jinja_bind(in, &scope, "loop", loop) && assign(in, n->a, items.items[i]);
        in->scope = scope.outer;
        if (!ok || !exec_inside(in, &scope, n->items)) return false;
        bool leave = in->jump == N_BREAK;
        in->jump = N_DATA;
        if (leave) break;
    }
    return true;
}

static bool exec_if(Interp *in, const Node *n) {
    Value cond;
    bool yes;
    if (!jinja_value(in, n->a, &cond) || !v_truth(in, cond, &yes)) return false;
    return jinja_exec(in, yes ? n->items : n->more);
}

static bool exec_macro(Interp *in, const Node *n) {
    Callable *c = jinja_alloc(in, sizeof *c);
    if (!c) return false;
    *c = (Callable){.name = n->name, .macro = n};
    return jinja_bind(in, in->scope, n->name, (Value){.kind = V_CALL, .u.call = c});
}

static bool exec_one(Interp *in, const Node *n) {
    Value v;
    Scope scope = {0};
    in->line = n->line;
    switch (n->kind) {
    case N_DATA: return v_show(in, &in->out, n->value);
    case N_OUTPUT: return jinja_value(in, n->a, &v) && v_show(in, &in->out, v);
    case N_FOR: return exec_for(in, n);
    case N_IF: return exec_if(in, n);
    case N_SET: return jinja_value(in, n->b, &v) && assign(in, n->a, v);
    case N_SET_BLOCK: return capture(in, &scope, n->items, &v) && assign(in, n->a, v);
    case N_MACRO: return exec_macro(in, n);
    default: in->jump = n->kind; return true; /* break、continue */
    }
}

bool jinja_exec(Interp *in, const Node *body) {
    if (in->depth++ >= JINJA_EVAL_DEPTH) return jinja_fail(in, "语句嵌套过深");
    bool ok = true;
    for (; ok && body && in->jump == N_DATA; body = body->next)
        ok = jinja_spend(in, 0) && exec_one(in, body);
    in->depth--;
    return ok;
}
