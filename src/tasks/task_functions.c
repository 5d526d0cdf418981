/* task_functions — 登记的函数
 * 出处：lm-evaluation-harness 0.4.13 的 tasks/{hellaswag/utils,winogrande/preprocess_winogrande,super_glue/copa/utils,
 * wikitext/preprocess_wikitext}.py。 */
#include "tasks/task_functions.h"

#include <string.h>

#include "tasks/pyregex.h"
#include "tasks/pystr.h"

/* ---------- 小工具 ---------- */

static bool text_of(const json_t *v, const char *key, PyText *t, Err *e) {
    if (!json_is_string(v)) return err_set(e, ERR_FORMAT, "文档里的 '%s' 应是文字", key);
    *t = (PyText){json_string_value(v), json_string_length(v)};
    return true;
}

static bool field(const json_t *doc, const char *key, PyText *t, Err *e) {
    return text_of(json_object_get(doc, key), key, t, e);
}

static json_t *finish(Str *s, Err *e) {
    json_t *v = s->failed ? NULL : json_stringn(s->data ? s->data : "", s->len);
    if (!v) err_set(e, ERR_MEMORY, "内存不足");
    str_free(s);
    return v;
}

/* str.replace。 */
static void replace_all(Str *s, const char *from, const char *to) {
    Str out = {.failed = s->failed};
    py_replace(&out, (PyText){s->data ? s->data : "", s->len}, py_text(from), py_text(to), -1);
    str_free(s);
    *s = out;
}

/* re.sub。 */
static bool substitute(Str *s, const char *pattern, const char *repl, Err *e) {
    PyRegex *r = NULL;
    Str out = {0};
    bool ok = pyregex_open(&r, pattern, strlen(pattern), 0, e) &&
              pyregex_sub(r, s->data ? s->data : "", s->len, repl, strlen(repl), 0, &out, e);
    pyregex_close(r);
    str_free(s);
    *s = out;
    return ok;
}

/* ---------- hellaswag ---------- */

static json_t *preprocess(PyText text, Err *e) {
    Str s = {0};
    PyText t = py_strip(text, (PyText){0}, true, true);
    str_addn(&s, t.p, t.n);
    replace_all(&s, " [title]", ". ");
    if (!substitute(&s, "\\[.*?\\]", "", e)) {
        str_free(&s);
        return NULL;
    }
    replace_all(&s, "  ", " ");
    return finish(&s, e);
}

static json_t *hellaswag_query(const json_t *doc, Err *e) {
    PyText label, a, b;
    if (!field(doc, "activity_label", &label, e) || !field(doc, "ctx_a", &a, e) ||
        !field(doc, "ctx_b", &b, e))
        return NULL;
    Str s = {0};
    str_addn(&s, label.p, label.n);
    str_add(&s, ": ");
    str_addn(&s, a.p, a.n);
    str_add(&s, " ");
    py_capitalize(&s, b);
    json_t *out = s.failed ? NULL : preprocess((PyText){s.data, s.len}, e);
    if (s.failed) err_set(e, ERR_MEMORY, "内存不足");
    str_free(&s);
    return out;
}

static json_t *hellaswag_choices(const json_t *doc, Err *e) {
    const json_t *endings = json_object_get(doc, "endings");
    json_t *out = json_array();
    if (!json_is_array(endings)) err_set(e, ERR_FORMAT, "文档里的 'endings' 应是一列文字");
    bool ok = out && json_is_array(endings);
    for (size_t i = 0; ok && i < json_array_size(endings); i++) {
        PyText t;
        json_t *v = text_of(json_array_get(endings, i), "endings", &t, e) ? preprocess(t, e) : NULL;
        ok = v && json_array_append_new(out, v) == 0;
    }
    if (ok) return out;
    json_decref(out);
    return NULL;
}

static json_t *hellaswag_docs(const json_t *doc, Err *e) {
    json_t *query = hellaswag_query(doc, e), *choices = query ? hellaswag_choices(doc, e) : NULL;
    json_t *out = choices ? json_copy((json_t *)doc) : NULL;
    if (out && (json_object_set(out, "query", query) || json_object_set(out, "choices", choices))) {
        json_decref(out);
        out = NULL;
        err_set(e, ERR_MEMORY, "内存不足");
    }
    json_decref(query);
    json_decref(choices);
    return out;
}

/* ---------- winogrande：空格 '_' 填入两个选项，各成一个 context ---------- */

static bool blank(const json_t *doc, PyText *before, PyText *after, Err *e) {
    PyText s;
    if (!field(doc, "sentence", &s, e)) return false;
    size_t at = py_find(s, py_text("_"), 0);
    if (at == SIZE_MAX) return err_set(e, ERR_FORMAT, "winogrande 的 sentence 里没有 '_'");
    *before = (PyText){s.p, at};
    *after = (PyText){s.p + at + 1, s.n - at - 1};
    return true;
}

static json_t *winogrande_text(const json_t *doc, Err *e) {
    const char *answer = json_string_value(json_object_get(doc, "answer"));
    if (answer && strcmp(answer, "1") == 0) return json_integer(0);
    if (answer && strcmp(answer, "2") == 0) return json_integer(1);
    err_set(e, ERR_FORMAT, "winogrande 的 answer 应是 \"1\" 或 \"2\"");
    return NULL;
}

static json_t *winogrande_target(const json_t *doc, Err *e) {
    PyText before, after;
    if (!blank(doc, &before, &after, e)) return NULL;
    after = py_strip(after, (PyText){0}, true, true);
    return json_stringn(after.p, after.n);
}

static json_t *winogrande_choice(const json_t *doc, Err *e) {
    static const char *const KEYS[2] = {"option1", "option2"};
    PyText before, after, option;
    if (!blank(doc, &before, &after, e)) return NULL;
    json_t *out = json_array();
    for (int i = 0; out && i < 2; i++) {
        Str text = {0};
        bool ok = field(doc, KEYS[i], &option, e);
        str_addn(&text, before.p, before.n);
        if (ok) str_addn(&text, option.p, option.n);
        json_t *v = finish(&text, e);
        if (!ok || json_array_append_new(out, v) != 0) {
            if (!ok) json_decref(v);
            json_decref(out);
            out = NULL;
        }
    }
    return out;
}

/* ---------- copa ---------- */

static json_t *copa_text(const json_t *doc, Err *e) {
    PyText premise, question;
    if (!field(doc, "premise", &premise, e) || !field(doc, "question", &question, e)) return NULL;
    bool cause = py_same(question, py_text("cause"));
    if (!cause && !py_same(question, py_text("effect"))) {
        err_set(e, ERR_FORMAT, "copa 的 question 应是 cause 或 effect");
        return NULL;
    }
    premise = py_strip(premise, (PyText){0}, true, true);
    size_t chars = py_length(premise);
    Str s = {0};
    str_addn(&s, premise.p, chars ? py_offset(premise, chars - 1) : 0); /* 去掉句点 */
    str_add(&s, cause ? " because" : " therefore");
    return finish(&s, e);
}

/* 首字母小写，前面一个空格。 */
static json_t *copa_convert(const json_t *doc, const char *key, Err *e) {
    PyText t;
    if (!field(doc, key, &t, e)) return NULL;
    if (t.n == 0) {
        err_set(e, ERR_FORMAT, "文档里的 '%s' 是空的", key);
        return NULL;
    }
    size_t first = py_offset(t, 1);
    Str s = {0};
    str_add(&s, " ");
    py_lower(&s, (PyText){t.p, first});
    str_addn(&s, t.p + first, t.n - first);
    return finish(&s, e);
}

static json_t *copa_target(const json_t *doc, Err *e) {
    bool first = json_integer_value(json_object_get(doc, "label")) == 0;
    return copa_convert(doc, first ? "choice1" : "choice2", e);
}

static json_t *copa_choice(const json_t *doc, Err *e) {
    json_t *x = copa_convert(doc, "choice1", e), *y = x ? copa_convert(doc, "choice2", e) : NULL;
    if (x && y) return json_pack("[o, o]", x, y);
    json_decref(x);
    return NULL;
}

/* ---------- wikitext：还原分词 ---------- */

static json_t *wikitext_text(const json_t *doc, Err *e) {
    static const struct {
        const char *from, *to;
        bool regex;
    } STEPS[] = {
        {"s '", "s'", false},       {"/' [0-9]/", "/'[0-9]/", true}, {" @-@ ", "-", false},
        {" @,@ ", ",", false},      {" @.@ ", ".", false},           {" : ", ": ", false},
        {" ; ", "; ", false},       {" . ", ". ", false},            {" ! ", "! ", false},
        {" ? ", "? ", false},       {" , ", ", ", false},
        {"\\(\\s*([^\\)]*?)\\s*\\)", "(\\1)", true},
        {"\\[\\s*([^\\]]*?)\\s*\\]", "[\\1]", true},
        {"\\{\\s*([^}]*?)\\s*\\}", "{\\1}", true},
        {"\"\\s*([^\"]*?)\\s*\"", "\"\\1\"", true},
        {"'\\s*([^']*?)\\s*'", "'\\1'", true},
        {"= = = =", "====", false}, {"= = =", "===", false},         {"= =", "==", false},
        {" \xc2\xb0 ", "\xc2\xb0", false}, {" \n", "\n", false},     {"\n ", "\n", false},
        {" N ", " 1 ", false},      {" 's", "'s", false}};
    PyText page;
    if (!field(doc, "page", &page, e)) return NULL;
    Str s = {0};
    bool ok = true;
    str_addn(&s, page.p, page.n);
    for (size_t i = 0; ok && i < sizeof STEPS / sizeof *STEPS; i++) {
        if (STEPS[i].regex)
            ok = substitute(&s, STEPS[i].from, STEPS[i].to, e);
        else
            replace_all(&s, STEPS[i].from, STEPS[i].to);
    }
    if (ok) return finish(&s, e);
    str_free(&s);
    return NULL;
}

/* ---------- 登记 ---------- */

TaskFunction task_function(const char *name) {
    static const struct {
        const char *name;
        TaskFunction fn;
    } TABLE[] = {
        {"hellaswag/utils.process_docs", hellaswag_docs},
        {"winogrande/preprocess_winogrande.doc_to_text", winogrande_text},
        {"winogrande/preprocess_winogrande.doc_to_target", winogrande_target},
        {"winogrande/preprocess_winogrande.doc_to_choice", winogrande_choice},
        {"copa/utils.doc_to_text", copa_text},
        {"copa/utils.doc_to_target", copa_target},
        {"copa/utils.doc_to_choice", copa_choice},
        {"wikitext/preprocess_wikitext.wikitext_detokenizer", wikitext_text},
    };
    for (size_t i = 0; i < sizeof TABLE / sizeof *TABLE; i++)
        if (strcmp(TABLE[i].name, name) == 0) return TABLE[i].fn;
    return NULL;
}

const char *task_function_name(const json_t *config, const char *key) {
    return json_string_value(json_object_get(json_object_get(config, key), "!function"));
}
