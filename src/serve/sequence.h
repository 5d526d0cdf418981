/* sequence — 一个回答：一条提示写下去的时间线
 * 管：逐 token 的文字（不完整的 UTF-8 等下一个 token）、停止串、对数概率、采样；不管何时算、和谁一起算。 */
#ifndef PTQ_SERVE_SEQUENCE_H
#define PTQ_SERVE_SEQUENCE_H
#include "model/session.h"
#include "model/tokenizer.h"
#include "tasks/eos.h"
#include "serve/api.h"

/* 逐 token 的得分：logprob[i] 与 k 个候选。 */
typedef struct TokenScores {
    double *logprob;  /* NaN 为没有 */
    int32_t *top_id;  /* (cap, k) */
    double *top_logprob;
    size_t n, cap;
    int k;
} TokenScores;

typedef struct Sequence {
    const ApiRequest *request;
    const Tokenizer *tokenizer;
    const EosSet *eos;
    size_t index;       /* 回答的序号 */
    const ApiPrompt *prompt;
    const int32_t *ids; /* 提示的 token (n) */
    int64_t n;
    uint64_t seed;
    Session session;
    bool open, done, ended; /* ended：因 EOS 而停 */
    int64_t fed;        /* 已喂入的提示 token 数 */
    TokenIds out;       /* 写出的 token，含 EOS */
    TokenScores scores; /* 提示的（echo 时）与写出的 */
    Str text;           /* 写出的文字，只含完整的字符 */
    size_t decoded;     /* out 的前几个已进 text */
    size_t sent, sent_tokens; /* 流式：已送出 text 的字节、out 的个数 */
    bool echoed;              /* 流式：提示已送出 */
    size_t held;        /* text 末尾可能是停止串开头的字节，流式时先不送 */
    const char *finish; /* "stop"、"length" */
} Sequence;

void sequence_free(Sequence *s);
/* 要不要逐 token 的得分；要不要整行 logits（采样、多个候选）。 */
bool sequence_wants_scores(const Sequence *s);
bool sequence_wants_logits(const Sequence *s);
/* 添一个 token 的得分。logprob 为 NaN 时没有候选。 */
bool scores_add(TokenScores *t, double logprob, const int32_t *top_id, const double *top_logprob,
                Err *e);
/* 由一行 logits 添 id 的得分与最大的 k 个候选。 */
bool scores_add_logits(TokenScores *t, const float *logits, int64_t vocab, int32_t id, Err *e);
/* 由一行 logits 取第 step 个 token：temperature 为 0 取最大（并列取最小的 id），否则按 top_p 采样。 */
int32_t sequence_sample(const Sequence *s, const float *logits, int64_t vocab, int64_t step,
                        double *work, int32_t *order);
/* 记下写出的 token；EOS、停止串、写满时 done。 */
bool sequence_accept(Sequence *s, int32_t id, Err *e);
/* 回答的 JSON。part 为真只含上次之后的部分（流式），没有新内容返回 NULL 且 *empty 为真。 */
json_t *sequence_json(Sequence *s, bool part, bool *empty, Err *e);
#endif
