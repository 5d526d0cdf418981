/* jinja_ops — 运算符、属性、下标、切片
 * 整数限于 64 位，溢出报错而不悄悄变成别的数；// 与 % 按 Python 向下取整。 */
#include <math.h>
#include <string.h>

#include "tasks/jinja_internal.h"

static bool mismatch(Interp *in, const char *op, Value l, Value r) {
    return jinja_fail(in, "运算 %s 不能用于 %s 与 %s", op, jinja_type_name(l), jinja_type_name(r));
}

static bool int_power(Interp *in, int64_t base, int64_t n, Value *out) {
    int64_t v = 1;
    if (n < 0) {
        if (base == 0) return jinja_fail(in, "0 不能取负的幂");
        *out = v_float(pow((double)base, (double)n));
        return true;
    }
    if (base >= -1 && base <= 1) {
        *out = v_int(base == -1 && n % 2 == 0 ? 1 : n == 0 ? 1 : base);
        return true;
    }
    for (; n > 0; n--)
        if (__builtin_mul_overflow(v, base, &v)) return jinja_fail(in, "整数超出 64 位");
    *out = v_int(v);
    return true;
}

static bool int_math(Interp *in, const char *op, int64_t a, int64_t b, Value *out) {
    int64_t v = 0;
    bool over = false;
    if (strcmp(op, "**") == 0) return int_power(in, a, b, out);
    if (strchr("/%", op[0]) && b == 0) return jinja_fail(in, "除以 0");
    if (strcmp(op, "/") == 0) {
        *out = v_float((double)a / (double)b);
        return true;
    }
    if (op[0] == '+') over = __builtin_add_overflow(a, b, &v);
    else if (op[0] == '-') over = __builtin_sub_overflow(a, b, &v);
    else if (op[0] == '*') over = __builtin_mul_overflow(a, b, &v);
    else if (b == -1) over = op[0] == '/' && __builtin_sub_overflow((int64_t)0, a, &v);
    else if (op[0] == '/') v = a / b - (a % b != 0 && (a % b < 0) != (b < 0));
    else v = a % b + (a % b != 0 && (a % b < 0) != (b < 0) ? b : 0);
    if (over) return jinja_fail(in, "整数超出 64 位");
    *out = v_int(v);
    return true;
}

static bool real_math(Interp *in, const char *op, double a, double b, Value *out) {
    if (strchr("/%", op[0]) && b == 0) return jinja_fail(in, "除以 0");
    double v = a * b;
    if (strcmp(op, "**") == 0) {
        v = pow(a, b);
        if (isfinite(a) && isfinite(b) && !isfinite(v)) return jinja_fail(in, "幂的结果不是有限的实数");
    } else if (op[0] == '+') {
        v = a + b;
    } else if (op[0] == '-') {
        v = a - b;
    } else if (strcmp(op, "/") == 0) {
        v = a / b;
    } else if (op[0] == '/' || op[0] == '%') {
        double m = fmod(a, b);
        if (m != 0 && (m < 0) != (b < 0)) m += b;
        if (m == 0) m = copysign(0, b);
        double q = (a - m) / b, f = floor(q);
        if (q != 0 && q - f > 0.5) f += 1;
        v = op[0] == '%' ? m : q != 0 ? f : copysign(0, a / b);
    }
    *out = v_float(v);
    return true;
}

static bool join_lists(Interp *in, Value l, Value r, Value *out) {
    size_t n = l.u.list->n + r.u.list->n;
    if (!v_list(in, l.kind, n, out)) return false;
    List *o = out->u.list;
    if (l.u.list->n) memcpy(o->items, l.u.list->items, l.u.list->n * sizeof(Value));
    if (r.u.list->n) memcpy(o->items + l.u.list->n, r.u.list->items, r.u.list->n * sizeof(Value));
    o->n = n;
    return jinja_spend(in, n);
}

static bool join_texts(Interp *in, PyText l, PyText r, Value *out) {
    char *p = jinja_alloc(in, l.n + r.n + 1);
    if (!p) return false;
    if (l.n) memcpy(p, l.p, l.n);
    if (r.n) memcpy(p + l.n, r.p, r.n);
    *out = v_text((PyText){p, l.n + r.n});
    return jinja_spend(in, l.n + r.n);
}

/* 'ab' * 3、[1] * 3。 */
static bool repeat(Interp *in, Value v, int64_t times, Value *out) {
    size_t n = v.kind == V_STR ? v.u.str.n : v.u.list->n * sizeof(Value);
    if (times < 0) times = 0;
    if (n && (uint64_t)times > JINJA_MEMORY / n) return jinja_fail(in, "重复出的内容太长");
    if (v.kind == V_STR) {
        char *p = jinja_alloc(in, n * (size_t)times + 1);
        for (int64_t i = 0; p && n && i < times; i++) memcpy(p + (size_t)i * n, v.u.str.p, n);
        *out = v_text((PyText){p, n * (size_t)times});
        return p && jinja_spend(in, n * (size_t)times);
    }
    if (!v_list(in, v.kind, v.u.list->n * (size_t)times, out)) return false;
    for (int64_t i = 0; n && i < times; i++)
        for (size_t k = 0; k < v.u.list->n; k++)
            if (!v_push(in, *out, v.u.list->items[k])) return false;
    return true;
}

bool jinja_binary(Interp *in, const char *op, Value l, Value r, Value *out) {
    int64_t a, b;
    double x, y;
    if (!jinja_defined(in, l) || !jinja_defined(in, r)) return false;
    if (v_integer(l, &a) && v_integer(r, &b)) return int_math(in, op, a, b, out);
    if (v_number(l, &x) && v_number(r, &y)) return real_math(in, op, x, y, out);
    if (strcmp(op, "+") == 0 && l.kind == r.kind) {
        if (l.kind == V_STR) return join_texts(in, l.u.str, r.u.str, out);
        if (l.kind == V_LIST || l.kind == V_TUPLE) return join_lists(in, l, r, out);
    }
    if (strcmp(op, "%") == 0 && l.kind == V_STR) return jinja_percent(in, l.u.str, r, out);
    if (strcmp(op, "*") == 0) {
        bool left = l.kind == V_STR || l.kind == V_LIST || l.kind == V_TUPLE;
        bool right = r.kind == V_STR || r.kind == V_LIST || r.kind == V_TUPLE;
        if (left && v_integer(r, &b)) return repeat(in, l, b, out);
        if (right && v_integer(l, &a)) return repeat(in, r, a, out);
    }
    return mismatch(in, op, l, r);
}

static bool undefined(Interp *in, Value *out, const char *fmt, const char *type,
                      const char *name) {
    const char *what = arena_printf(&in->arena, in->e, fmt, type, name);
    *out = v_undef(what);
    return what != NULL;
}

bool jinja_attribute(Interp *in, Value v, const char *name, Value *out) {
    if (!jinja_defined(in, v)) return false;
    const JinjaDef *def = jinja_method(v.kind, name);
    if (def) {
        Callable *c = jinja_alloc(in, sizeof *c);
        if (!c) return false;
        *c = (Callable){.name = def->name, .def = def, .self = v};
        *out = (Value){.kind = V_CALL, .u.call = c};
        return true;
    }
    if (v.kind == V_DICT || v.kind == V_NAMESPACE) {
        Value *found;
        if (!v_find(in, v.u.dict, v_str(name), &found)) return false;
        if (found) {
            *out = *found;
            return true;
        }
    }
    return undefined(in, out, "%s 没有属性或键 '%.100s'", jinja_type_name(v), name);
}

/* 第 i 个字符或元素；i 可为负。越界返回未定义。 */
static bool element(Interp *in, Value v, int64_t i, Value *out) {
    bool text = v.kind == V_STR;
    int64_t n = (int64_t)(text ? py_length(v.u.str) : v.u.list->n);
    if (!jinja_spend(in, text ? v.u.str.n : 0)) return false;
    if (i < 0) i += n;
    if (i < 0 || i >= n) return undefined(in, out, "%s 的下标越界%s", jinja_type_name(v), "");
    if (!text) {
        *out = v.u.list->items[i];
        return true;
    }
    size_t start = py_offset(v.u.str, (size_t)i), end = start;
    py_next(v.u.str, &end);
    *out = v_text((PyText){v.u.str.p + start, end - start});
    return true;
}

bool jinja_item(Interp *in, Value v, Value key, Value *out) {
    int64_t i;
    if (!jinja_defined(in, v) || !jinja_defined(in, key)) return false;
    if (v.kind == V_DICT) {
        Value *found;
        if (!v_find(in, v.u.dict, key, &found)) return false;
        if (found) {
            *out = *found;
            return true;
        }
    }
    bool indexable = v.kind == V_STR || v.kind == V_LIST || v.kind == V_TUPLE ||
                     (v.kind == V_SEQ && v.u.list->shown && !v.u.list->view);
    if (indexable && v_integer(key, &i)) return element(in, v, i, out);
    if (key.kind == V_STR) {
        const char *name = arena_strndup(&in->arena, key.u.str.p, key.u.str.n, in->e);
        return name && jinja_attribute(in, v, name, out);
    }
    return undefined(in, out, "%s 里没有%s", jinja_type_name(v), "这个下标");
}
