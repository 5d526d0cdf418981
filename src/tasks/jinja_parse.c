/* jinja_parse — 表达式的语法分析（递归下降，优先级与 jinja2 的 Parser 逐级相同）
 * 从低到高：a if b else c、or、and、not、比较与 in、+ -、~、* / // %、**、一元、后缀（.x、[]、()）、过滤器与 is。
 * 过滤器与测试的名字在这里就查好，因此写错的名字不必等到求值才发现。 */
#include <string.h>

#include "tasks/jinja_internal.h"

static const Token *now(const Interp *in) {
    return &in->tokens[in->at];
}

bool jinja_is_op(const Interp *in, const char *op) {
    return now(in)->kind == T_OP && strcmp(now(in)->op, op) == 0;
}

bool jinja_is_name(const Interp *in, const char *name) {
    return now(in)->kind == T_NAME && strcmp(now(in)->text.p, name) == 0;
}

bool jinja_skip_op(Interp *in, const char *op) {
    bool hit = jinja_is_op(in, op);
    in->at += hit;
    return hit;
}

bool jinja_skip_name(Interp *in, const char *name) {
    bool hit = jinja_is_name(in, name);
    in->at += hit;
    return hit;
}

/* 现在的记号的样子，供错误信息。 */
static const char *describe(const Interp *in) {
    const Token *t = now(in);
    switch (t->kind) {
    case T_EOF: return "模板的末尾";
    case T_NAME: return t->text.p;
    case T_OP: return t->op;
    case T_STR: return "字符串";
    case T_INT:
    case T_FLOAT: return "数";
    case T_VAR_END: return "}}";
    case T_BLOCK_END: return "%}";
    default: return "文字";
    }
}

static Node *unexpected(Interp *in, const char *want) {
    in->line = now(in)->line;
    jinja_fail(in, "这里应为%s，实为 '%.60s'", want, describe(in));
    return NULL;
}

bool jinja_expect_op(Interp *in, const char *op) {
    if (jinja_skip_op(in, op)) return true;
    char want[16];
    snprintf(want, sizeof want, " '%s'", op);
    unexpected(in, want);
    return false;
}

Node *jinja_node(Interp *in, NodeKind kind) {
    Node *n = jinja_alloc(in, sizeof *n);
    if (n) {
        n->kind = kind;
        n->line = now(in)->line;
    }
    return n;
}

static Node *node_ab(Interp *in, NodeKind kind, const char *op, Node *a, Node *b) {
    Node *n = a ? jinja_node(in, kind) : NULL;
    if (!n) return NULL;
    strcpy(n->op, op);
    n->a = a;
    n->b = b;
    return n;
}

static Node *constant(Interp *in, Value v) {
    Node *n = jinja_node(in, N_CONST);
    if (n) n->value = v;
    return n;
}

/* 逗号分开的一串，到右括号 close 为止（已在左括号之后）；尾随逗号可有。 */
static bool sequence(Interp *in, Node *list, const char *close, bool pairs) {
    Node **items = &list->items, **more = &list->more;
    for (bool first = true; !jinja_skip_op(in, close); first = false) {
        if (!first && !jinja_expect_op(in, ",")) return false;
        if (!first && jinja_skip_op(in, close)) return true;
        Node *item = jinja_parse_expr(in);
        if (!item) return false;
        *items = item;
        items = &item->next;
        if (!pairs) continue;
        if (!jinja_expect_op(in, ":")) return false;
        Node *value = jinja_parse_expr(in);
        if (!value) return false;
        *more = value;
        more = &value->next;
    }
    return true;
}

static Node *string_constant(Interp *in) {
    Str s = {0};
    while (now(in)->kind == T_STR) { /* 相邻的字符串连成一个 */
        str_addn(&s, now(in)->text.p, now(in)->text.n);
        in->at++;
    }
    Value v;
    return v_take_str(in, &s, &v) ? constant(in, v) : NULL;
}

static Node *name_or_constant(Interp *in) {
    static const struct {
        const char *name;
        ValueKind kind;
        bool yes;
    } NAMED[] = {{"true", V_BOOL, true}, {"True", V_BOOL, true}, {"false", V_BOOL, false},
                 {"False", V_BOOL, false}, {"none", V_NONE, false}, {"None", V_NONE, false}};
    const char *name = now(in)->text.p;
    for (size_t i = 0; i < sizeof NAMED / sizeof *NAMED; i++)
        if (strcmp(name, NAMED[i].name) == 0) {
            in->at++;
            return constant(in, NAMED[i].kind == V_NONE ? v_none() : v_bool(NAMED[i].yes));
        }
    Node *n = jinja_node(in, N_NAME);
    if (n) n->name = name;
    in->at++;
    return n;
}

Node *jinja_parse_primary(Interp *in) {
    const Token *t = now(in);
    if (t->kind == T_NAME) return name_or_constant(in);
    if (t->kind == T_STR) return string_constant(in);
    if (t->kind == T_INT || t->kind == T_FLOAT) {
        in->at++;
        return constant(in, t->kind == T_INT ? v_int(t->integer) : v_float(t->real));
    }
    if (jinja_skip_op(in, "(")) {
        Node *n = jinja_parse_tuple(in, NULL, true, true);
        return n && jinja_expect_op(in, ")") ? n : NULL;
    }
    bool list = jinja_is_op(in, "[");
    if (!list && !jinja_is_op(in, "{")) return unexpected(in, "一个值");
    in->at++;
    Node *n = jinja_node(in, list ? N_LIST : N_DICT);
    return n && sequence(in, n, list ? "]" : "}", !list) ? n : NULL;
}

static bool tuple_ends(const Interp *in, const char *end_name) {
    TokenKind k = now(in)->kind;
    return k == T_VAR_END || k == T_BLOCK_END || k == T_EOF || jinja_is_op(in, ")") ||
           (end_name && jinja_is_name(in, end_name));
}

static Node *or_expr(Interp *in);

Node *jinja_parse_tuple(Interp *in, const char *end_name, bool explicit_parens, bool with_cond) {
    Node *tuple = jinja_node(in, N_TUPLE), **last = tuple ? &tuple->items : NULL;
    bool comma = false;
    while (tuple && !tuple_ends(in, end_name)) {
        Node *item = with_cond ? jinja_parse_expr(in) : or_expr(in);
        if (!item) return NULL;
        *last = item;
        last = &item->next;
        if (!jinja_skip_op(in, ",")) break;
        comma = true;
    }
    if (!tuple || comma) return tuple;
    if (tuple->items) return tuple->items;
    return explicit_parens ? tuple : unexpected(in, "表达式");
}

Node *jinja_parse_args(Interp *in) {
    Node *call = jinja_node(in, N_CALL), **last = call ? &call->items : NULL;
    bool named = false;
    for (bool first = true; call && !jinja_skip_op(in, ")"); first = false) {
        if (!first && !jinja_expect_op(in, ",")) return NULL;
        if (!first && jinja_skip_op(in, ")")) break;
        if (jinja_is_op(in, "*") || jinja_is_op(in, "**"))
            return unexpected(in, "参数（不支持 *args、**kwargs）");
        const char *name = NULL;
        const Token *next = &in->tokens[in->at + (now(in)->kind != T_EOF)];
        if (now(in)->kind == T_NAME && next->kind == T_OP && strcmp(next->op, "=") == 0) {
            name = now(in)->text.p;
            in->at += 2;
        }
        if (named && !name) return unexpected(in, "有名字的参数（不能排在有名字的之后）");
        named = name != NULL;
        Node *item = jinja_parse_expr(in);
        Node *arg = item ? jinja_node(in, N_CONST) : NULL; /* 外壳：a 是值，name 是名字 */
        if (!arg) return NULL;
        arg->a = item;
        arg->name = name;
        *last = arg;
        last = &arg->next;
    }
    return call;
}

/* [ 之后：下标或切片。 */
static Node *subscript(Interp *in, Node *of) {
    Node *part[3] = {0};
    int colons = 0;
    while (!jinja_is_op(in, "]")) {
        if (jinja_skip_op(in, ":")) {
            if (++colons > 2) return unexpected(in, " ']'");
            continue;
        }
        if (part[colons]) return unexpected(in, " ']'");
        if (!(part[colons] = jinja_parse_expr(in))) return NULL;
    }
    in->at++;
    if (!colons && !part[0]) return unexpected(in, "下标");
    Node *n = node_ab(in, colons ? N_SLICE : N_ITEM, "", of, part[0]);
    if (!n || !colons) return n;
    n->items = jinja_node(in, N_CONST); /* 外壳：a、b、c 为起、止、步 */
    if (!n->items) return NULL;
    n->items->a = part[0];
    n->items->b = part[1];
    n->items->c = part[2];
    return n;
}

static Node *call_expr(Interp *in, Node *callee) {
    Node *call = jinja_parse_args(in);
    if (call) call->a = callee;
    return call;
}

static Node *postfix(Interp *in, Node *n) {
    while (n) {
        if (jinja_skip_op(in, ".")) {
            const Token *t = now(in);
            if (t->kind == T_NAME) {
                n = node_ab(in, N_ATTR, "", n, NULL);
                if (n) n->name = t->text.p;
            } else if (t->kind == T_INT) {
                n = node_ab(in, N_ITEM, "", n, constant(in, v_int(t->integer)));
            } else {
                return unexpected(in, "属性名");
            }
            in->at++;
        } else if (jinja_skip_op(in, "[")) {
            n = subscript(in, n);
        } else if (jinja_skip_op(in, "(")) {
            n = call_expr(in, n);
        } else {
            return n;
        }
    }
    return n;
}

static Node *unknown(Interp *in, const char *what, const char *name) {
    in->line = now(in)->line;
    jinja_fail(in, "没有%s '%.60s'", what, name);
    return NULL;
}

static Node *filter(Interp *in, Node *of) {
    if (now(in)->kind != T_NAME) return unexpected(in, "过滤器的名字");
    const char *name = now(in)->text.p;
    const JinjaDef *def = jinja_filter(name);
    if (!def) return unknown(in, "过滤器", name);
    in->at++;
    Node *n = jinja_skip_op(in, "(") ? jinja_parse_args(in) : jinja_node(in, N_FILTER);
    if (!n) return NULL;
    n->kind = N_FILTER;
    n->name = name;
    n->def = def;
    n->a = of;
    return n;
}

/* 没有括号的参数：is divisibleby 3 */
static bool bare_argument(const Interp *in) {
    const Token *t = now(in);
    if (t->kind == T_STR || t->kind == T_INT || t->kind == T_FLOAT) return true;
    if (jinja_is_op(in, "[") || jinja_is_op(in, "{")) return true;
    return t->kind == T_NAME && !jinja_is_name(in, "else") && !jinja_is_name(in, "or") &&
           !jinja_is_name(in, "and");
}

static Node *test(Interp *in, Node *of) {
    bool negate = jinja_skip_name(in, "not");
    if (now(in)->kind != T_NAME) return unexpected(in, "测试的名字");
    const char *name = now(in)->text.p;
    const JinjaDef *def = jinja_test(name);
    if (!def) return unknown(in, "测试", name);
    in->at++;
    Node *n = jinja_skip_op(in, "(") ? jinja_parse_args(in) : jinja_node(in, N_TEST);
    if (!n) return NULL;
    if (n->kind != N_CALL && bare_argument(in)) {
        if (jinja_is_name(in, "is")) return unexpected(in, "别的（is 不能连用）");
        Node *value = postfix(in, jinja_parse_primary(in));
        Node *arg = value ? jinja_node(in, N_CONST) : NULL;
        if (!arg) return NULL;
        arg->a = value;
        n->items = arg;
    }
    n->kind = N_TEST;
    n->name = name;
    n->def = def;
    n->a = of;
    return negate ? node_ab(in, N_NOT, "", n, NULL) : n;
}

static Node *filters(Interp *in, Node *n) {
    while (n) {
        if (jinja_skip_op(in, "|"))
            n = filter(in, n);
        else if (jinja_skip_name(in, "is"))
            n = test(in, n);
        else if (jinja_skip_op(in, "("))
            n = call_expr(in, n);
        else
            break;
    }
    return n;
}

static Node *unary(Interp *in, bool with_filters) {
    if (++in->depth > JINJA_PARSE_DEPTH) {
        jinja_fail(in, "表达式嵌套过深");
        return NULL;
    }
    Node *n;
    if (jinja_skip_op(in, "-"))
        n = node_ab(in, N_NEG, "", unary(in, false), NULL);
    else if (jinja_skip_op(in, "+"))
        n = node_ab(in, N_POS, "", unary(in, false), NULL);
    else
        n = jinja_parse_primary(in);
    n = postfix(in, n);
    if (with_filters) n = filters(in, n);
    in->depth--;
    return n;
}

/* 左结合的一级：next 之间以 ops 中的任一个相连。 */
static Node *left_chain(Interp *in, Node *(*next)(Interp *), const char *const *ops) {
    Node *n = next(in);
    while (n) {
        const char *const *op = ops;
        while (*op && !jinja_is_op(in, *op)) op++;
        if (!*op) break;
        in->at++;
        Node *right = next(in);
        n = right ? node_ab(in, N_BINARY, *op, n, right) : NULL;
    }
    return n;
}

static Node *unary_with_filters(Interp *in) {
    return unary(in, true);
}

static Node *power(Interp *in) {
    static const char *const OPS[] = {"**", NULL};
    return left_chain(in, unary_with_filters, OPS);
}

static Node *product(Interp *in) {
    static const char *const OPS[] = {"*", "/", "//", "%", NULL};
    return left_chain(in, power, OPS);
}

static Node *concat(Interp *in) {
    Node *n = product(in);
    if (!n || !jinja_is_op(in, "~")) return n;
    Node *all = jinja_node(in, N_CONCAT);
    if (!all) return NULL;
    all->items = n;
    while (n && jinja_skip_op(in, "~")) n = n->next = product(in);
    return n ? all : NULL;
}

static Node *sum(Interp *in) {
    static const char *const OPS[] = {"+", "-", NULL};
    return left_chain(in, concat, OPS);
}

/* 现在的记号是比较运算符则越过它。 */
static const char *comparison_op(Interp *in) {
    static const char *const OPS[] = {"==", "!=", "<", "<=", ">", ">=", NULL};
    for (int i = 0; OPS[i]; i++)
        if (jinja_skip_op(in, OPS[i])) return OPS[i];
    if (jinja_skip_name(in, "in")) return "in";
    if (!jinja_is_name(in, "not")) return NULL;
    const Token *next = &in->tokens[in->at + 1];
    if (next->kind != T_NAME || strcmp(next->text.p, "in") != 0) return NULL;
    in->at += 2;
    return "ni";
}

static Node *comparison(Interp *in) {
    Node *n = sum(in), **last = NULL;
    if (!n) return NULL;
    Node *all = NULL;
    for (const char *op; (op = comparison_op(in)) != NULL;) {
        Node *right = sum(in);
        if (!right) return NULL;
        if (!all) {
            all = node_ab(in, N_COMPARE, "", n, NULL);
            if (!all) return NULL;
            last = &all->items;
        }
        Node *operand = node_ab(in, N_CONST, op, right, NULL); /* 外壳：op 与右边 a */
        if (!operand) return NULL;
        *last = operand;
        last = &operand->next;
    }
    return all ? all : n;
}

static Node *not_expr(Interp *in) {
    int nots = 0;
    while (jinja_skip_name(in, "not")) nots++;
    if (nots > JINJA_PARSE_DEPTH) {
        jinja_fail(in, "not 太多");
        return NULL;
    }
    Node *n = comparison(in);
    while (n && nots-- > 0) n = node_ab(in, N_NOT, "", n, NULL);
    return n;
}

static Node *and_expr(Interp *in) {
    Node *n = not_expr(in);
    while (n && jinja_skip_name(in, "and")) {
        Node *right = not_expr(in);
        n = right ? node_ab(in, N_AND, "", n, right) : NULL;
    }
    return n;
}

static Node *or_expr(Interp *in) {
    Node *n = and_expr(in);
    while (n && jinja_skip_name(in, "or")) {
        Node *right = and_expr(in);
        n = right ? node_ab(in, N_OR, "", n, right) : NULL;
    }
    return n;
}

Node *jinja_parse_expr(Interp *in) {
    if (++in->depth > JINJA_PARSE_DEPTH) {
        jinja_fail(in, "表达式嵌套过深");
        return NULL;
    }
    Node *n = or_expr(in);
    while (n && jinja_skip_name(in, "if")) {
        Node *cond = or_expr(in), *all = cond ? node_ab(in, N_COND, "", n, cond) : NULL;
        if (!all) return NULL;
        if (jinja_skip_name(in, "else") && !(all->c = jinja_parse_expr(in))) return NULL;
        n = all;
    }
    in->depth--;
    return n;
}
