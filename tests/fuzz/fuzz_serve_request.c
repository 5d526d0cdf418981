/* fuzz_serve_request — HTTP 服务的请求体解析的模糊测试
 * 失败必有 4xx/5xx 与能读回的错误 JSON；成功的请求各字段在范围内、id 在词表内、停止串不为空。 */
#include <stdlib.h>
#include <string.h>

#include "serve/chat.h"

enum { VOCAB = 4096 };

static void check_request(const ApiRequest *r) {
    if (!r->n_prompts || r->n < 1 || (int64_t)r->n_prompts * r->n > API_MAX_CHOICES) abort();
    if (r->max_tokens < (r->chat ? -1 : 0) || (r->chat && r->n_prompts != 1) || !(r->temperature >= 0 && r->temperature <= 2)) abort();
    if (!(r->top_p >= 0 && r->top_p <= 1)) abort();
    if (r->logprobs < -1 || r->logprobs > API_MAX_LOGPROBS || r->n_stop > API_MAX_STOPS) abort();
    for (size_t i = 0; i < r->n_stop; i++)
        if (!r->stop[i][0]) abort();
    for (size_t i = 0; i < r->n_prompts; i++) {
        const ApiPrompt *p = &r->prompts[i];
        if (!p->ids && !p->text) abort();
        for (int64_t k = 0; p->ids && k < p->n; k++)
            if (p->ids[k] < 0 || p->ids[k] >= VOCAB) abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ApiRequest r;
    ApiError err = {0};
    static const ChatTemplate CHAT = {
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}",
        "<s>", "</s>"};
    bool chat = size > 0 && data[0] == '#'; /* 首字节 #：聊天的请求 */
    if (chat) data++, size--;
    if (chat ? api_parse_chat(&r, data, size, VOCAB, &CHAT, &err) : api_parse(&r, data, size, VOCAB, &err)) {
        check_request(&r);
    } else {
        Str s = {0};
        Err e = {0};
        api_error_json(&err, &s);
        json_t *v = json_parse("错误", s.data, s.len, &e);
        if (err.status < 400 || err.status > 599 || !json_object_get(v, "error")) abort();
        json_decref(v);
        str_free(&s);
    }
    api_request_free(&r);
    return 0;
}
