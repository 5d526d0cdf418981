/* api — 请求的解析与回应的书写
 * 每个字段先查类型再查范围；没有实现而又会改变结果的参数（如 presence_penalty）非缺省值时报错，不假装照办；
 * 不认得的字段不理会（各家客户端会多带一些）。 */
#include "serve/api.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "serve/chat.h"

bool api_fail(ApiError *err, int status, const char *code, const char *param, const char *fmt,
              ...) {
    *err = (ApiError){.status = status, .code = code, .param = param};
    err->type = status == 401 ? "authentication_error" : status == 429 ? "rate_limit_error"
                : status >= 500 ? "server_error" : "invalid_request_error";
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->message, sizeof err->message, fmt, ap);
    va_end(ap);
    str_clean(err->message);
    return false;
}

void api_error_json(const ApiError *err, Str *out) {
    json_t *v = json_pack("{s:{s:s, s:s, s:s?, s:s?}}", "error", "message", err->message, "type",
                          err->type, "param", err->param, "code", err->code);
    char *text = v ? json_dumps(v, JSON_COMPACT) : NULL;
    str_add(out, text ? text : "{\"error\":{\"message\":\"out of memory\",\"type\":\"server_error\","
                               "\"param\":null,\"code\":null}}");
    free(text);
    json_decref(v);
}

static bool bad(ApiError *err, const char *param, const char *what) {
    return api_fail(err, 400, NULL, param, "%s %s", param, what);
}

static bool memory(ApiError *err) {
    return api_fail(err, 500, NULL, NULL, "内存不足");
}

/* 缺失与 null 都取默认值。 */
static bool get_int(const json_t *o, const char *key, int64_t def, int64_t lo, int64_t hi,
                    int64_t *out, ApiError *err) {
    const json_t *v = json_object_get(o, key);
    *out = def;
    if (!v || json_is_null(v)) return true;
    double d = json_number_value(v);
    bool whole = json_is_integer(v) || (json_is_real(v) && d == floor(d) && fabs(d) < 1e15);
    if (!whole) return bad(err, key, "应为整数");
    *out = json_is_integer(v) ? json_integer_value(v) : (int64_t)d;
    if (*out >= lo && *out <= hi) return true;
    return api_fail(err, 400, NULL, key, "%s 为 %lld，应在 [%lld, %lld] 内", key, (long long)*out,
                    (long long)lo, (long long)hi);
}

static bool get_real(const json_t *o, const char *key, double def, double lo, double hi, double *out,
                     ApiError *err) {
    const json_t *v = json_object_get(o, key);
    *out = def;
    if (!v || json_is_null(v)) return true;
    if (!json_is_number(v)) return bad(err, key, "应为数");
    *out = json_number_value(v);
    if (*out >= lo && *out <= hi) return true;
    return api_fail(err, 400, NULL, key, "%s 为 %g，应在 [%g, %g] 内", key, *out, lo, hi);
}

static bool get_bool(const json_t *o, const char *key, bool *out, ApiError *err) {
    const json_t *v = json_object_get(o, key);
    *out = json_is_true(v);
    return !v || json_is_null(v) || json_is_boolean(v) || bad(err, key, "应为 true 或 false");
}

/* 复制字符串（请求的 JSON 树用完即放）。 */
static bool copy_text(Arena *a, const json_t *v, const char **text, size_t *len, ApiError *err) {
    *len = json_string_length(v);
    *text = arena_strndup(a, json_string_value(v), *len, NULL);
    return *text || memory(err);
}

static bool parse_ids(Arena *a, const json_t *list, int64_t vocab, ApiPrompt *p, ApiError *err) {
    size_t n = json_array_size(list);
    p->ids = ARENA_ARRAY(a, int32_t, n, NULL);
    p->n = (int64_t)n;
    if (!p->ids) return memory(err);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, i);
        if (!json_is_integer(v)) return bad(err, "prompt", "的 token 数组里有不是整数的元素");
        int64_t id = json_integer_value(v);
        if (id < 0 || id >= vocab)
            return api_fail(err, 400, NULL, "prompt", "prompt 的第 %zu 个 token id %lld 不在词表 [0, %lld) 内",
                            i, (long long)id, (long long)vocab);
        p->ids[i] = (int32_t)id;
    }
    return true;
}

/* prompt：字符串、字符串数组、整数数组、整数数组的数组。 */
static bool parse_prompt(ApiRequest *r, const json_t *v, int64_t vocab, ApiError *err) {
    static const char WHAT[] = "应为字符串、字符串的数组、token id 的数组，或其数组，且不能为空";
    bool single = json_is_string(v) || json_is_integer(json_array_get(v, 0));
    if (!json_is_string(v) && json_array_size(v) == 0) return bad(err, "prompt", WHAT);
    r->n_prompts = single ? 1 : json_array_size(v);
    if (r->n_prompts > API_MAX_CHOICES)
        return api_fail(err, 400, NULL, "prompt", "一次至多 %d 条 prompt，这里有 %zu 条",
                        API_MAX_CHOICES, r->n_prompts);
    r->prompts = ARENA_ARRAY(&r->arena, ApiPrompt, r->n_prompts, NULL);
    if (!r->prompts) return memory(err);
    for (size_t i = 0; i < r->n_prompts; i++) {
        const json_t *one = single ? v : json_array_get(v, i);
        ApiPrompt *p = &r->prompts[i];
        if (json_is_string(one)) {
            if (!copy_text(&r->arena, one, &p->text, &p->len, err)) return false;
        } else if (json_array_size(one) > 0) {
            if (!parse_ids(&r->arena, one, vocab, p, err)) return false;
        } else {
            return bad(err, "prompt", WHAT);
        }
    }
    return true;
}

static bool parse_stop(ApiRequest *r, const json_t *v, ApiError *err) {
    size_t n = json_is_string(v) ? 1 : json_array_size(v);
    if (!v || json_is_null(v)) return true;
    if (!json_is_string(v) && !json_is_array(v)) return bad(err, "stop", "应为字符串或字符串的数组");
    if (n > API_MAX_STOPS)
        return api_fail(err, 400, NULL, "stop", "stop 至多 %d 个，这里有 %zu 个", API_MAX_STOPS, n);
    r->stop = ARENA_ARRAY(&r->arena, const char *, n, NULL);
    if (!r->stop) return memory(err);
    for (size_t i = 0; i < n; i++) {
        const json_t *one = json_is_string(v) ? v : json_array_get(v, i);
        const char *text;
        size_t len;
        if (!json_is_string(one)) return bad(err, "stop", "应为字符串或字符串的数组");
        if (!copy_text(&r->arena, one, &text, &len, err)) return false;
        if (strlen(text) != len) return bad(err, "stop", "不能含 NUL 字符");
        if (len > 1024) return bad(err, "stop", "每个至多 1024 字节");
        if (len) r->stop[r->n_stop++] = text; /* 空串不算 */
    }
    return true;
}

/* 会改变结果而这里没有的参数：只许缺省值。 */
static bool reject_unsupported(const json_t *o, int64_t n, ApiError *err) {
    static const char *const ZERO[] = {"presence_penalty", "frequency_penalty", NULL};
    double d;
    for (int i = 0; ZERO[i]; i++)
        if (!get_real(o, ZERO[i], 0, 0, 0, &d, err))
            return api_fail(err, 400, "unsupported_parameter", ZERO[i], "不支持 %s（只能为 0 或不给）", ZERO[i]);
    if (json_object_size(json_object_get(o, "logit_bias")) > 0)
        return api_fail(err, 400, "unsupported_parameter", "logit_bias", "不支持 logit_bias");
    const json_t *suffix = json_object_get(o, "suffix");
    if (suffix && !json_is_null(suffix) && json_string_length(suffix) > 0)
        return api_fail(err, 400, "unsupported_parameter", "suffix", "不支持 suffix");
    int64_t best;
    if (!get_int(o, "best_of", n, 1, API_MAX_CHOICES, &best, err)) return false;
    return best == n || api_fail(err, 400, "unsupported_parameter", "best_of", "不支持与 n 不同的 best_of");
}

static bool parse_seed(ApiRequest *r, const json_t *o, ApiError *err) {
    int64_t seed;
    const json_t *v = json_object_get(o, "seed");
    if (!get_int(o, "seed", 0, INT64_MIN, INT64_MAX, &seed, err)) return false;
    r->has_seed = v && !json_is_null(v);
    r->seed = (uint64_t)seed;
    return true;
}

static bool parse_object(ApiRequest *r, const json_t *o, int64_t vocab, ApiError *err) {
    int64_t logprobs;
    if (!json_is_object(o)) return api_fail(err, 400, NULL, NULL, "请求体应为 JSON 对象");
    const json_t *prompt = json_object_get(o, "prompt"), *model = json_object_get(o, "model");
    if (!prompt) return api_fail(err, 400, NULL, "prompt", "缺少 prompt");
    if (model && !json_is_null(model) && !json_is_string(model)) return bad(err, "model", "应为字符串");
    if (!parse_prompt(r, prompt, vocab, err) ||
        !get_int(o, "max_tokens", 16, 0, 1 << 20, &r->max_tokens, err) ||
        !get_int(o, "n", 1, 1, API_MAX_CHOICES, &r->n, err) ||
        !get_int(o, "logprobs", -1, 0, API_MAX_LOGPROBS, &logprobs, err) ||
        !get_real(o, "temperature", 1, 0, 2, &r->temperature, err) ||
        !get_real(o, "top_p", 1, 0, 1, &r->top_p, err) || !get_bool(o, "echo", &r->echo, err) ||
        !get_bool(o, "stream", &r->stream, err) || !parse_seed(r, o, err) ||
        !parse_stop(r, json_object_get(o, "stop"), err) || !reject_unsupported(o, r->n, err))
        return false;
    r->logprobs = (int)logprobs;
    const json_t *options = json_object_get(o, "stream_options");
    if (json_is_object(options) && !get_bool(options, "include_usage", &r->stream_usage, err))
        return false;
    if ((int64_t)r->n_prompts * r->n > API_MAX_CHOICES)
        return api_fail(err, 400, NULL, "n", "prompt 数 × n 至多 %d", API_MAX_CHOICES);
    return true;
}

bool api_parse(ApiRequest *r, const void *body, size_t len, int64_t vocab, ApiError *err) {
    Err e = {0};
    *r = (ApiRequest){0};
    json_t *o = json_parse("请求体", body, len, &e);
    if (!o)
        return api_fail(err, e.code == ERR_MEMORY ? 500 : 400, NULL, NULL, "%s", e.msg);
    bool ok = parse_object(r, o, vocab, err);
    json_decref(o);
    return ok;
}

/* 聊天的请求 → 续写的请求：messages 渲染成 prompt，max_completion_tokens 就是 max_tokens。 */
static bool chat_to_completion(json_t *o, const ChatTemplate *chat, ApiError *err) {
    static const char *const ABSENT[] = {"tools", "functions", "response_format", "prompt", "echo"};
    Str text = {0};
    if (!json_is_object(o)) return api_fail(err, 400, NULL, NULL, "请求体应为 JSON 对象");
    for (size_t i = 0; i < sizeof ABSENT / sizeof *ABSENT; i++) {
        const json_t *v = json_object_get(o, ABSENT[i]), *type = json_object_get(v, "type");
        bool plain = json_is_string(type) && strcmp(json_string_value(type), "text") == 0;
        if (v && !json_is_null(v) && !json_is_false(v) && !plain && !(json_is_array(v) && !json_array_size(v)))
            return api_fail(err, 400, "unsupported_parameter", ABSENT[i], "聊天不支持 %s", ABSENT[i]);
        json_object_del(o, ABSENT[i]);
    }
    if (json_is_true(json_object_get(o, "logprobs")) || json_integer_value(json_object_get(o, "top_logprobs")) > 0)
        return api_fail(err, 400, "unsupported_parameter", "logprobs", "聊天不给 logprobs，请用 /v1/completions");
    json_object_del(o, "logprobs");
    json_t *limit = json_object_get(o, "max_completion_tokens");
    if (limit && !json_is_null(limit)) json_object_set(o, "max_tokens", limit);
    bool ok = chat_render(chat, o, &text, err);
    ok = ok && (json_object_set_new(o, "prompt", json_stringn(text.data ? text.data : "", text.len)) == 0 ||
                api_fail(err, 400, NULL, "messages", "聊天模板渲染出的不是合法的 UTF-8"));
    str_free(&text);
    return ok;
}

bool api_parse_chat(ApiRequest *r, const void *body, size_t len, int64_t vocab,
                    const ChatTemplate *chat, ApiError *err) {
    Err e = {0};
    *r = (ApiRequest){0};
    json_t *o = json_parse("请求体", body, len, &e);
    if (!o) return api_fail(err, e.code == ERR_MEMORY ? 500 : 400, NULL, NULL, "%s", e.msg);
    const json_t *limit;
    bool ok = chat_to_completion(o, chat, err) && parse_object(r, o, vocab, err);
    limit = json_object_get(o, "max_tokens");
    r->chat = true;
    if (!limit || json_is_null(limit)) r->max_tokens = -1;
    json_decref(o);
    return ok;
}

void api_request_free(ApiRequest *r) {
    arena_free(&r->arena);
    *r = (ApiRequest){0};
}

/* 一个 token 的候选：文字 → 对数概率；解码成同样文字的取大者。 */
static json_t *top_json(const ApiChoice *c, size_t i) {
    json_t *o = json_object();
    for (int k = 0; o && k < c->n_top; k++) {
        const char *text = c->top_tokens[i * (size_t)c->n_top + (size_t)k];
        double lp = c->top_logprob[i * (size_t)c->n_top + (size_t)k];
        const json_t *old = text ? json_object_get(o, text) : NULL;
        if (text && !(old && json_real_value(old) >= lp)) json_object_set_new(o, text, json_real(lp));
    }
    return o;
}

static json_t *logprobs_json(const ApiChoice *c) {
    json_t *tokens = json_array(), *lp = json_array(), *top = json_array(), *offset = json_array();
    for (size_t i = 0; i < c->n_tokens; i++) {
        bool first = isnan(c->logprob[i]);
        json_array_append_new(tokens, json_string(c->tokens[i]));
        json_array_append_new(lp, first ? json_null() : json_real(c->logprob[i]));
        json_array_append_new(top, first || !c->n_top ? json_null() : top_json(c, i));
        json_array_append_new(offset, json_integer(c->text_offset[i]));
    }
    if (!c->n_top) {
        json_decref(top);
        top = json_null();
    }
    return json_pack("{s:o, s:o, s:o, s:o}", "tokens", tokens, "token_logprobs", lp, "top_logprobs",
                     top, "text_offset", offset);
}

json_t *api_choice_json(const ApiChoice *c) {
    if (c->chat)
        return json_pack("{s:I, s:{s:s, s:s%}, s:n, s:s?}", "index", (json_int_t)c->index,
                         c->part ? "delta" : "message", "role", "assistant", "content",
                         c->text ? c->text : "", c->len, "logprobs", "finish_reason", c->finish);
    json_t *logprobs = c->with_logprobs ? logprobs_json(c) : json_null();
    return json_pack("{s:s%, s:I, s:o, s:s?}", "text", c->text ? c->text : "", c->len, "index",
                     (json_int_t)c->index, "logprobs", logprobs, "finish_reason", c->finish);
}

json_t *api_response_json(const char *id, const char *object, int64_t created, const char *model,
                          json_t *choices, const ApiUsage *usage) {
    json_t *v = json_pack("{s:s, s:s, s:I, s:s, s:o}", "id", id, "object", object,
                          "created", (json_int_t)created, "model", model, "choices", choices);
    if (v && usage)
        json_object_set_new(v, "usage",
                            json_pack("{s:I, s:I, s:I}", "prompt_tokens", (json_int_t)usage->prompt,
                                      "completion_tokens", (json_int_t)usage->completion,
                                      "total_tokens",
                                      (json_int_t)(usage->prompt + usage->completion)));
    return v;
}

json_t *api_models_json(const char *model, int64_t created) {
    return json_pack("{s:s, s:[{s:s, s:s, s:I, s:s}]}", "object", "list", "data", "id", model,
                     "object", "model", "created", (json_int_t)created, "owned_by", "ptq-bench");
}
