/* task_fields — 文档的三样取值：题面、答案、选项
 * 规则（lm_eval/api/task.py 的 doc_to_text、doc_to_target、doc_to_choice）：!function 调函数；名字是数据的一列就取那一列；
 * 否则当作 Jinja 模板渲染，全是数字且任务有 doc_to_choice 时成为整数。 */
#include <string.h>

#include "tasks/jinja.h"
#include "tasks/task.h"
#include "tasks/task_functions.h"

/* 名字是不是数据的一列：看第一份文档。 */
static bool is_feature(const Task *t, const char *name) {
    return t->n_docs && json_object_get(t->docs[0].doc, name);
}

static json_t *call(const json_t *fn, const json_t *doc, Err *e) {
    const char *name = json_string_value(json_object_get(fn, "!function"));
    TaskFunction f = name ? task_function(name) : NULL;
    if (f) return f(doc, e);
    err_set(e, ERR_UNSUPPORTED, "没有用 C 写的函数 '%s'", name ? name : "?");
    return NULL;
}

static bool has_choices(const Task *t) {
    const json_t *v = json_object_get(t->config, "doc_to_choice");
    return v && !json_is_null(v);
}

static json_t *integer_of(const char *text, size_t len, const char *where, Err *e) {
    json_t *v = NULL;
    return python_literal(&v, text, len, where, e) ? v : NULL;
}

/* 模板 → 文字，或（选择题）整数，或（答案）列表。 */
static json_t *render(const Task *t, const char *template_, const char *where, const json_t *doc,
                      bool lists, Err *e) {
    Arena a = {0};
    const char *text;
    size_t n;
    json_t *out = NULL;
    if (jinja_render_n(&a, &text, &n, template_, where, doc, e)) {
        Err ignored = {0};
        if (has_choices(t) && python_isdigit(text, n)) {
            out = integer_of(text, n, where, e);
        } else {
            bool list = lists && n >= 2 && text[0] == '[' && text[n - 1] == ']';
            if (!list || !python_literal(&out, text, n, where, &ignored)) out = json_stringn(text, n);
            if (!out) err_set(e, ERR_MEMORY, "内存不足");
        }
    }
    arena_free(&a);
    return out;
}

static json_t *field(const Task *t, const json_t *doc, const char *key, const json_t *over, bool lists,
                     Err *e) {
    const json_t *v = over && !json_is_null(over) ? over : json_object_get(t->config, key);
    char where[256];
    snprintf(where, sizeof where, "%s:%s", t->name, key);
    if (json_is_integer(v) || (lists && json_is_array(v))) return json_deep_copy(v);
    if (json_is_object(v)) return call(v, doc, e);
    const char *text = json_string_value(v);
    if (!text) {
        err_set(e, ERR_CONFIG, "缺少 %s，或它的类型不对", key);
        return NULL;
    }
    if (!is_feature(t, text)) return render(t, text, where, doc, lists, e);
    json_t *cell = json_object_get(doc, text);
    if (cell) return json_incref(cell);
    err_set(e, ERR_FORMAT, "文档没有 '%s' 这一列", text);
    return NULL;
}

json_t *task_text(const Task *t, const json_t *doc, const json_t *override_, Err *e) {
    return field(t, doc, "doc_to_text", override_, false, e);
}

json_t *task_target(const Task *t, const json_t *doc, const json_t *override_, Err *e) {
    return field(t, doc, "doc_to_target", override_, true, e);
}

static json_t *choice_value(const Task *t, const json_t *doc, const json_t *v, Err *e) {
    char where[256];
    json_t *out = NULL;
    snprintf(where, sizeof where, "%s:doc_to_choice", t->name);
    if (json_is_array(v)) return json_deep_copy(v);
    if (json_is_object(v)) {
        if (json_object_get(v, "!function")) return call(v, doc, e);
        const char *key;
        json_t *item;
        out = json_array();
        json_object_foreach((json_t *)v, key, item) if (out) json_array_append(out, item);
        return out;
    }
    const char *text = json_string_value(v);
    if (!text) {
        err_set(e, ERR_CONFIG, "缺少 doc_to_choice，或它的类型不对");
        return NULL;
    }
    if (is_feature(t, text)) return json_incref(json_object_get(doc, text));
    return jinja_eval(&out, text, where, doc, e) ? out : NULL;
}

json_t *task_choices(const Task *t, const json_t *doc, const json_t *override_, Err *e) {
    const json_t *v = override_ && !json_is_null(override_) ? override_
                                                            : json_object_get(t->config, "doc_to_choice");
    json_t *out = choice_value(t, doc, v, e);
    bool ok = out && json_is_array(out) && json_array_size(out) > 0;
    for (size_t i = 0; ok && i < json_array_size(out); i++)
        ok = json_is_string(json_array_get(out, i));
    if (ok) return out;
    if (out) err_set(e, ERR_FORMAT, "doc_to_choice 应得到一列文字");
    json_decref(out);
    return NULL;
}

const char *task_resolve(Task *t, const json_t *doc, const json_t *value, Err *e) {
    const char *text = json_string_value(value), *out;
    if (!value || json_is_null(value) || (text && !*text)) return "";
    if (!text) {
        err_set(e, ERR_UNSUPPORTED, "description 与 gen_prefix 须是文字或模板");
        return NULL;
    }
    const json_t *cell = json_object_get(doc, text);
    if (json_is_string(cell)) return json_string_value(cell);
    return jinja_render(&t->arena, &out, text, t->name, doc, e) ? out : NULL;
}
