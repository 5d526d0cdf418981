/* jinja_block — 语句的语法分析：文字、{{ }}、for、if、set、macro、break、continue
 * 一段语句读到等着的结束词（endfor、else…）为止，结束词留给开了这一段的语句去看。 */
#include <string.h>

#include "tasks/jinja_internal.h"

static const Token *now(const Interp *in) {
    return &in->tokens[in->at];
}

static bool block_end(Interp *in) {
    if (now(in)->kind == T_BLOCK_END) {
        in->at++;
        return true;
    }
    in->line = now(in)->line;
    return jinja_fail(in, "这里应为 '%%}'");
}

static bool body(Interp *in, const char *const *ends, Node **list);

/* 读一段到 ends 之一，越过 "{% 结束词"。*which 为结束词的序号。 */
static bool body_until(Interp *in, const char *const *ends, Node **list, int *which) {
    if (!body(in, ends, list)) return false;
    for (*which = 0; ends[*which]; ++*which)
        if (jinja_skip_name(in, ends[*which])) return true;
    in->line = now(in)->line;
    return jinja_fail(in, "模板到头了，缺少 {%% %s %%}", ends[0]);
}

static Node *target(Interp *in, bool attributes);

/* 赋值的目标：名字、名字.属性，或它们的元组。 */
static Node *target_one(Interp *in, bool attributes) {
    if (jinja_skip_op(in, "(")) {
        if (++in->depth > JINJA_PARSE_DEPTH) {
            jinja_fail(in, "括号嵌套过深");
            return NULL;
        }
        Node *n = target(in, attributes);
        in->depth--;
        return n && jinja_expect_op(in, ")") ? n : NULL;
    }
    in->line = now(in)->line;
    if (now(in)->kind != T_NAME) {
        jinja_fail(in, "赋值的左边只能是名字");
        return NULL;
    }
    Node *n = jinja_parse_primary(in);
    if (n && n->kind != N_NAME) {
        jinja_fail(in, "不能给常量赋值");
        return NULL;
    }
    if (!n || !attributes || !jinja_skip_op(in, ".")) return n;
    Node *attr = jinja_node(in, N_ATTR);
    if (!attr || now(in)->kind != T_NAME) return NULL;
    attr->a = n;
    attr->name = now(in)->text.p;
    in->at++;
    return attr;
}

static Node *target(Interp *in, bool attributes) {
    Node *first = target_one(in, attributes);
    if (!first || !jinja_is_op(in, ",")) return first;
    Node *tuple = jinja_node(in, N_TUPLE);
    if (!tuple) return NULL;
    tuple->items = first;
    for (Node *last = first; jinja_skip_op(in, ",");) {
        if (now(in)->kind != T_NAME) break; /* 尾随逗号 */
        if (!(last = last->next = target_one(in, attributes))) return NULL;
    }
    return tuple;
}

static Node *parse_for(Interp *in) {
    static const char *const ENDS[] = {"endfor", "else", NULL};
    Node *n = jinja_node(in, N_FOR);
    int which;
    if (!n || !(n->a = target(in, false))) return NULL;
    if (!jinja_skip_name(in, "in")) {
        jinja_fail(in, "for 里缺少 in");
        return NULL;
    }
    if (!(n->b = jinja_parse_tuple(in, "if", false, false))) return NULL;
    if (jinja_skip_name(in, "if") && !(n->c = jinja_parse_expr(in))) return NULL;
    if (jinja_is_name(in, "recursive")) {
        jinja_fail(in, "不支持 for … recursive");
        return NULL;
    }
    in->loops++;
    bool ok = block_end(in) && body_until(in, ENDS, &n->items, &which);
    in->loops--;
    if (!ok) return NULL;
    if (which == 1 && !(block_end(in) && body_until(in, (const char *const[]){"endfor", NULL},
                                                    &n->more, &which)))
        return NULL;
    return n;
}

static Node *parse_if(Interp *in) {
    static const char *const ENDS[] = {"endif", "elif", "else", NULL};
    static const char *const LAST[] = {"endif", NULL};
    Node *first = NULL, **slot = &first;
    for (int which = 1; which == 1;) {
        Node *n = jinja_node(in, N_IF);
        if (!n || !(n->a = jinja_parse_tuple(in, NULL, false, false))) return NULL;
        if (!block_end(in) || !body_until(in, ENDS, &n->items, &which)) return NULL;
        *slot = n;
        slot = &n->more;
        if (which == 2 && (!block_end(in) || !body_until(in, LAST, slot, &which))) return NULL;
    }
    return first;
}

static Node *parse_set(Interp *in) {
    static const char *const ENDS[] = {"endset", NULL};
    Node *n = jinja_node(in, N_SET);
    int which;
    if (!n || !(n->a = target(in, true))) return NULL;
    if (jinja_skip_op(in, "=")) {
        n->b = jinja_parse_tuple(in, NULL, false, true);
        return n->b ? n : NULL;
    }
    n->kind = N_SET_BLOCK;
    return block_end(in) && body_until(in, ENDS, &n->items, &which) ? n : NULL;
}

static Node *parse_macro(Interp *in) {
    static const char *const ENDS[] = {"endmacro", NULL};
    Node *n = jinja_node(in, N_MACRO), *params = jinja_node(in, N_LIST);
    int which, loops = in->loops;
    if (!n || !params) return NULL;
    if (now(in)->kind != T_NAME) {
        jinja_fail(in, "macro 缺少名字");
        return NULL;
    }
    n->name = now(in)->text.p;
    in->at++;
    if (!jinja_expect_op(in, "(")) return NULL;
    n->a = params;
    Node **last = &params->items;
    for (bool first = true; !jinja_skip_op(in, ")"); first = false) {
        if (!first && !jinja_expect_op(in, ",")) return NULL;
        Node *p = jinja_node(in, N_CONST); /* 外壳：name 与默认值 a */
        if (!p || now(in)->kind != T_NAME) {
            jinja_fail(in, "macro 的参数应为名字");
            return NULL;
        }
        p->name = now(in)->text.p;
        in->at++;
        if (jinja_skip_op(in, "=") && !(p->a = jinja_parse_expr(in))) return NULL;
        *last = p;
        last = &p->next;
    }
    in->loops = 0; /* macro 里的 break 管不到外面的 for */
    bool ok = block_end(in) && body_until(in, ENDS, &n->items, &which);
    in->loops = loops;
    return ok ? n : NULL;
}

static Node *parse_jump(Interp *in, NodeKind kind) {
    if (in->loops) return jinja_node(in, kind);
    jinja_fail(in, "break、continue 只能在 for 里");
    return NULL;
}

static Node *statement(Interp *in) {
    in->line = now(in)->line;
    if (jinja_skip_name(in, "for")) return parse_for(in);
    if (jinja_skip_name(in, "if")) return parse_if(in);
    if (jinja_skip_name(in, "set")) return parse_set(in);
    if (jinja_skip_name(in, "macro")) return parse_macro(in);
    if (jinja_skip_name(in, "break")) return parse_jump(in, N_BREAK);
    if (jinja_skip_name(in, "continue")) return parse_jump(in, N_CONTINUE);
    const char *name = now(in)->kind == T_NAME ? now(in)->text.p : "";
    jinja_fail(in, "不支持的语句 {%% %.40s %%}（支持 for、if、set、macro、raw、break、continue）", name);
    return NULL;
}

static Node *output(Interp *in) {
    Node *n = jinja_node(in, N_OUTPUT);
    in->at++;
    if (!n || !(n->a = jinja_parse_tuple(in, NULL, false, true))) return NULL;
    if (now(in)->kind == T_VAR_END) {
        in->at++;
        return n;
    }
    in->line = now(in)->line;
    jinja_fail(in, "表达式之后应为 '}}'");
    return NULL;
}

static bool ends_here(const Interp *in, const char *const *ends) {
    for (; *ends; ends++)
        if (jinja_is_name(in, *ends)) return true;
    return false;
}

static bool body(Interp *in, const char *const *ends, Node **list) {
    if (++in->depth > JINJA_PARSE_DEPTH) return jinja_fail(in, "语句嵌套过深");
    while (now(in)->kind != T_EOF) {
        Node *n;
        const Token *t = now(in);
        if (t->kind == T_DATA) {
            n = jinja_node(in, N_DATA);
            if (n) n->value = v_text(t->text);
            in->at++;
        } else if (t->kind == T_VAR_BEGIN) {
            n = output(in);
        } else {
            in->at++;
            if (ends_here(in, ends)) break;
            n = statement(in);
            if (n && !block_end(in)) return false;
        }
        if (!n) return false;
        *list = n;
        list = &n->next;
    }
    in->depth--;
    return true;
}

Node *jinja_parse_template(Interp *in) {
    static const char *const NONE[] = {NULL};
    Node *root = jinja_node(in, N_IF); /* 外壳：语句在 items */
    return root && body(in, NONE, &root->items) ? root : NULL;
}
