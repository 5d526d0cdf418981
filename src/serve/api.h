/* api — OpenAI /v1/completions 的请求与回应：JSON 文字 ↔ 结构
 * 只管格式，不碰网络与模型，因此可以单独做模糊测试。错误按 OpenAI 的样子：
 * {"error": {"message", "type", "param", "code"}}。 */
#ifndef PTQ_SERVE_API_H
#define PTQ_SERVE_API_H
#include <stdint.h>

#include "base/arena.h"
#include "io/json.h"

enum {
    API_MAX_CHOICES = 256, /* 提示数 × n */
    API_MAX_LOGPROBS = 20,
    API_MAX_STOPS = 64,
    API_CHAT_TOKENS = 1024 /* 聊天没有写 max_tokens 时至多写多少 */
};

typedef struct ApiError {
    int status; /* HTTP 状态码 */
    const char *type, *code, *param; /* code、param 可为 NULL（写成 null） */
    char message[512];
} ApiError;
/* 设置错误。返回: 恒为 false。 */
bool api_fail(ApiError *err, int status, const char *code, const char *param, const char *fmt, ...)
    PTQ_PRINTF(5, 6);
/* 错误的 JSON 文字，追加到 out。 */
void api_error_json(const ApiError *err, Str *out);

struct ChatTemplate; /* serve/chat.h */

/* 一条提示：文字，或（ids 非 NULL）token。 */
typedef struct ApiPrompt {
    const char *text;
    size_t len;
    int32_t *ids;
    int64_t n;
} ApiPrompt;

typedef struct ApiRequest {
    Arena arena; /* 以下全部内存 */
    ApiPrompt *prompts;
    size_t n_prompts;
    int64_t n; /* 每条提示的回答数 */
    int64_t max_tokens; /* -1：写到上下文的末尾（至多 API_CHAT_TOKENS，只在聊天） */
    double temperature, top_p;
    uint64_t seed;
    bool has_seed, echo, stream, stream_usage;
    bool chat; /* 提示是聊天模板渲染的：不另加 BOS，回应是 chat.completion 的样子 */
    int logprobs; /* 要几个候选的对数概率；-1 为不要 */
    const char **stop;
    size_t n_stop;
} ApiRequest;

/* 解析并检查请求体。参数: vocab 词表大小（检查 token id）。失败后 r 亦须 api_request_free。 */
bool api_parse(ApiRequest *r, const void *body, size_t len, int64_t vocab, ApiError *err);
/* 同上，请求是 /v1/chat/completions 的，提示由 chat 的模板渲染。 */
bool api_parse_chat(ApiRequest *r, const void *body, size_t len, int64_t vocab,
                    const struct ChatTemplate *chat, ApiError *err);
void api_request_free(ApiRequest *r);

/* 一个回答。logprobs 各数组长 n；不要时 n_tokens 为 0 且 with_logprobs 为假。 */
typedef struct ApiChoice {
    size_t index;
    const char *text;
    size_t len;
    const char *finish; /* "stop"、"length"；NULL 写成 null（流式的中途） */
    bool chat, part; /* 聊天的样子；流式的一段 */
    bool with_logprobs;
    size_t n_tokens;
    const char *const *tokens;
    const double *logprob;      /* NaN 写成 null（首个 token 没有条件概率） */
    const int64_t *text_offset;
    int n_top;                  /* 每个 token 的候选数 */
    const char *const *top_tokens; /* (n_tokens, n_top)，NULL 为没有 */
    const double *top_logprob;
} ApiChoice;
json_t *api_choice_json(const ApiChoice *c);

typedef struct ApiUsage {
    int64_t prompt, completion;
} ApiUsage;
/* 整个回应。object 如 "text_completion"；choices 归本函数所有；usage 可为 NULL。返回: 新引用，内存不足为 NULL。 */
json_t *api_response_json(const char *id, const char *object, int64_t created, const char *model,
                          json_t *choices, const ApiUsage *usage);
json_t *api_models_json(const char *model, int64_t created);
#endif
