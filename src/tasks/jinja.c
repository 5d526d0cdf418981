/* jinja — 公共入口：建解释器、解析、执行、收结果
 * 解释器自己的内存在一个区域里，结束时整体释放；只有输出抄到调用者那里。 */
#include "tasks/jinja.h"

#include <string.h>

#include "tasks/jinja_internal.h"

static Node *parse(Interp *in, const char *source) {
    Token *tokens;
    if (!jinja_lex(in, source, &tokens)) return NULL;
    in->tokens = tokens;
    Node *root = jinja_parse_template(in);
    in->depth = 0;
    if (!root) jinja_fail(in, "语法错误");
    return root;
}

/* 输出留在 in->out。 */
static bool render(Interp *in, const char *source) {
    Node *root = parse(in, source);
    in->scope = &in->globals;
    in->jump = N_DATA;
    return root && jinja_exec(in, root->items) &&
           (!in->out.failed || err_set(in->e, ERR_MEMORY, "%s: 内存不足", in->where));
}

static void close_interp(Interp *in) {
    str_free(&in->out);
    arena_free(&in->arena);
}

bool jinja_render_n(Arena *a, const char **out, size_t *len, const char *template_,
                    const char *where, const json_t *context, Err *e) {
    Err own = {0};
    Interp in = {.e = &own, .where = where, .context = context, .line = 1};
    bool ok = render(&in, template_);
    if (ok) {
        char *copy = arena_strndup(a, in.out.data ? in.out.data : "", in.out.len, &own);
        *out = copy;
        *len = in.out.len;
        ok = copy != NULL;
    }
    if (!ok && e) *e = own;
    close_interp(&in);
    return ok;
}

bool jinja_render(Arena *a, const char **out, const char *template_, const char *where,
                  const json_t *context, Err *e) {
    size_t len;
    return jinja_render_n(a, out, &len, template_, where, context, e);
}

bool jinja_eval(json_t **out, const char *template_, const char *where, const json_t *context,
                Err *e) {
    Err own = {0};
    Interp in = {.e = &own, .where = where, .context = context, .line = 1};
    *out = NULL;
    bool ok = render(&in, template_) &&
              python_literal(out, in.out.data ? in.out.data : "", in.out.len, where, &own);
    if (!ok && e) *e = own;
    close_interp(&in);
    return ok;
}

bool jinja_check(const char *template_, const char *where, Err *e) {
    Err own = {0};
    Interp in = {.e = &own, .where = where, .line = 1};
    bool ok = parse(&in, template_) != NULL;
    if (!ok && e) *e = own;
    close_interp(&in);
    return ok;
}

bool python_isdigit(const char *text, size_t len) {
    PyText t = {text, len};
    for (size_t at = 0; at < len;)
        if (!py_isdigit_cp(py_next(t, &at))) return false;
    return len > 0;
}
