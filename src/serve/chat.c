/* chat — 聊天模板的寻找与渲染 */
#include "serve/chat.h"

#include <string.h>

#include "io/file.h"
#include "tasks/jinja.h"

enum { TEMPLATE_MAX = 1 << 20, MESSAGES_MAX = 1000 };

/* ---------- 找模板 ---------- */

/* tokenizer_config.json 的 chat_template：文字，或 [{name, template}]（取 default）。 */
static const char *from_config(const json_t *config) {
    const json_t *v = json_object_get(config, "chat_template");
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *one = json_array_get(v, i);
        const char *name = json_string_value(json_object_get(one, "name"));
        if (name && strcmp(name, "default") == 0) return json_string_value(json_object_get(one, "template"));
    }
    return json_string_value(v);
}

static bool from_folder(ChatTemplate *t, Arena *a, const char *dir, Err *e) {
    const char *jinja = file_join(a, dir, "chat_template.jinja", e);
    const char *config = file_join(a, dir, "tokenizer_config.json", e);
    size_t len;
    if (!jinja || !config) return false;
    if (file_exists(jinja)) return (t->text = file_read(a, jinja, TEMPLATE_MAX, &len, e)) != NULL;
    if (!file_exists(config)) return true;
    json_t *v = json_load(config, e);
    const char *text = from_config(v);
    bool ok = v && (!text || (t->text = arena_strdup(a, text, e)));
    json_decref(v);
    return ok;
}

static const char *token_text(const Tokenizer *t, int32_t id, Arena *a, Err *e) {
    Str s = {0};
    bool ok = id < 0 || tokenizer_decode(t, &id, 1, false, &s, e);
    const char *text = ok ? arena_strdup(a, s.data ? s.data : "", e) : NULL;
    str_free(&s);
    return text;
}

/* transformers 渲染聊天模板时用 trim_blocks 与 lstrip_blocks：语句、注释之后的一个换行不要，
 * 独占行首的语句之前的空白不要（写了 + 的除外），模板末尾的一个换行不要。我们的解释器没有这两个开关，就先从模板的文字里去掉它们。 */
static const char *trim_blocks(Arena *a, const char *text, Err *e) {
    Str out = {0};
    for (const char *p = text; *p;) {
        bool comment = p[0] == '{' && p[1] == '#', block = (p[0] == '{' && p[1] == '%') || comment;
        const char *end = block ? strstr(p + 2, comment ? "#}" : "%}") : NULL;
        if (!end) {
            str_addn(&out, p++, 1);
            continue;
        }
        const char *line = p; /* 这一行的开头，若前面都是空白 */
        while (line > text && (line[-1] == ' ' || line[-1] == '\t')) line--;
        if (p[2] != '+' && (line == text || line[-1] == '\n')) out.len -= (size_t)(p - line);
        str_addn(&out, p, (size_t)(end + 2 - p));
        p = end + 2;
        if (end[-1] != '+') p += *p == '\n' ? 1 : p[0] == '\r' && p[1] == '\n' ? 2 : 0;
    }
    if (out.len && out.data[out.len - 1] == '\n') out.len--; /* 末尾的一个换行也不要 */
    const char *copy = out.failed ? NULL : arena_strndup(a, out.data ? out.data : "", out.len, e);
    str_free(&out);
    return copy;
}

bool chat_template_open(ChatTemplate *t, Arena *a, const char *dir, const Gguf *gguf,
                        const Tokenizer *tokenizer, Err *e) {
    *t = (ChatTemplate){0};
    const GgufValue *v = !dir && gguf ? gguf_find(gguf, "tokenizer.chat_template") : NULL;
    if (dir && !from_folder(t, a, dir, e)) return false;
    if (v && v->type == GGUF_STRING && !(t->text = arena_strndup(a, v->s.data, v->s.len, e))) return false;
    if (!t->text) return true;
    t->bos = token_text(tokenizer, tokenizer_bos(tokenizer), a, e);
    t->eos = token_text(tokenizer, tokenizer_eos(tokenizer), a, e);
    return t->bos && t->eos && (t->text = trim_blocks(a, t->text, e)) && jinja_check(t->text, "聊天模板", e);
}

/* ---------- 渲染 ---------- */

static bool bad(ApiError *err, size_t i, const char *what) {
    return api_fail(err, 400, NULL, "messages", "messages 的第 %zu 项%s", i, what);
}

/* content：文字，或 [{type: text, text}] 连起来；没有则空。返回: 新引用，不合规矩为 NULL。 */
static json_t *plain_content(const json_t *v) {
    if (!v || json_is_null(v)) return json_string("");
    if (json_is_string(v)) return json_copy((json_t *)(uintptr_t)v);
    if (!json_is_array(v)) return NULL;
    Str s = {0};
    bool ok = true;
    for (size_t i = 0; ok && i < json_array_size(v); i++) {
        const json_t *part = json_array_get(v, i), *text = json_object_get(part, "text");
        const char *type = json_string_value(json_object_get(part, "type"));
        ok = type && strcmp(type, "text") == 0 && json_is_string(text);
        if (ok) str_addn(&s, json_string_value(text), json_string_length(text));
    }
    json_t *out = ok && !s.failed ? json_stringn(s.data ? s.data : "", s.len) : NULL;
    str_free(&s);
    return out;
}

static json_t *plain_messages(const json_t *list, ApiError *err) {
    size_t n = json_array_size(list);
    if (n == 0 || n > MESSAGES_MAX) {
        api_fail(err, 400, NULL, "messages", "messages 应为 1 到 %d 条消息的数组", MESSAGES_MAX);
        return NULL;
    }
    json_t *out = json_array();
    bool ok = out != NULL || api_fail(err, 500, NULL, NULL, "内存不足");
    for (size_t i = 0; ok && i < n; i++) {
        const json_t *m = json_array_get(list, i), *role = json_object_get(m, "role");
        json_t *content = plain_content(json_object_get(m, "content")), *one = NULL;
        if (!json_is_string(role)) ok = bad(err, i, "没有 role");
        else if (!content) ok = bad(err, i, "的 content 应为文字（只支持文字）");
        if (ok) one = json_pack("{s:O, s:O}", "role", role, "content", content);
        json_decref(content);
        ok = ok && ((one && json_array_append_new(out, one) == 0) || api_fail(err, 500, NULL, NULL, "内存不足"));
    }
    if (ok) return out;
    json_decref(out);
    return NULL;
}

bool chat_render(const ChatTemplate *t, const json_t *request, Str *out, ApiError *err) {
    Arena a = {0};
    Err e = {0};
    const char *text;
    size_t len;
    if (!t->text)
        return api_fail(err, 400, "no_chat_template", NULL,
                        "这个模型没有聊天模板（tokenizer_config.json 的 chat_template），请用 /v1/completions");
    json_t *messages = plain_messages(json_object_get(request, "messages"), err);
    if (!messages) return false;
    json_t *context = json_pack("{s:o, s:b, s:s, s:s, s:n, s:n}", "messages", messages, "add_generation_prompt", 1,
                                "bos_token", t->bos, "eos_token", t->eos, "tools", "documents");
    bool ok = context || api_fail(err, 500, NULL, NULL, "内存不足");
    if (ok && !jinja_render_n(&a, &text, &len, t->text, "聊天模板", context, &e))
        ok = api_fail(err, 400, NULL, "messages", "聊天模板不接受这些消息：%s", e.msg);
    if (ok) str_addn(out, text, len);
    json_decref(context);
    arena_free(&a);
    return ok && (!out->failed || api_fail(err, 500, NULL, NULL, "内存不足"));
}
