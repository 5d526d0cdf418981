/* request — 请求：给一段文字打分、接着写下去
 * 评测框架的三种请求都化成 token：loglikelihood 与 loglikelihood_rolling 是 ScoreRequest，generate_until 是
 * GenerateRequest。打分请求按 token 排序，相同的开头只算一次，许多短请求拼成一个大矩阵，没有补齐；
 * 不变式：一个请求的结果只取决于它自己，与别的请求、次序、批大小、线程数无关，逐位相同。 */
#ifndef PTQ_TASKS_REQUEST_H
#define PTQ_TASKS_REQUEST_H
#include "model/model.h"
#include "model/tokenizer.h"
#include "tasks/eos.h"

/* 打分：ids = context 接 continuation，打分的是 [n_context, n)。 */
typedef struct ScoreRequest {
    const int32_t *ids;
    int64_t n, n_context; /* 1 <= n_context <= n；相等则没有要打分的（和为 0，is_greedy 为真） */
    double loglikelihood; /* 出：Σ log p（nat） */
    bool is_greedy;       /* 出：每个要打分的 token 都是当时最可能的 */
    /* 以下可为 NULL；否则出，每个打分的位置一个 (n − n_context) */
    double *token_logprob;   /* log p(这个 token) */
    int32_t *top_id;         /* 当时最可能的 token（并列取最小的 id） */
    double *top_logprob;     /* 它的 log p */
} ScoreRequest;

typedef struct ScoreOptions {
    int64_t max_rows; /* 一批的行数上限，0 为默认（2048） */
    bool quiet;       /* 不画进度 */
} ScoreOptions;

/* 实际做了多少：共享开头省下的就是两者之差。 */
typedef struct ScoreCost {
    int64_t n_tokens; /* 各请求喂入的 token 数之和（逐个算要算这么多行） */
    int64_t n_rows;   /* 真正算的行数 */
    double seconds;
} ScoreCost;

/* 打分 n 个请求，结果写回各请求。参数: cost 可为 NULL。错误: id 不在词表、NaN、中断、设备、内存。 */
bool requests_score(Model *m, const ScoreOptions *o, ScoreRequest *r, size_t n, ScoreCost *cost,
                    Err *e);

/* 贪心地写下去，直到出现停止串、EOS 或写满。 */
typedef struct GenerateRequest {
    const int32_t *ids; /* 提示 (n)，n >= 1 */
    int64_t n, max_new;
    const char *const *stop; /* 停止串；出现在已写出的文字里就停 */
    size_t n_stop;
    const EosSet *eos; /* 生成其中之一就停；NULL 没有 */
    TokenIds out; /* 出：写出的 token（含 EOS）；token_ids_free */
    bool stopped; /* 出：因停止串或 EOS 而停（否则写满了） */
} GenerateRequest;

/* 参数: t 用来把写出的 token 解码以查停止串。若干条时间线一起逐 token 解码，结果与单独一条逐位相同。 */
bool requests_generate(Model *m, const Tokenizer *t, GenerateRequest *r, size_t n, bool quiet,
                       Err *e);

/* ---------- 编码（lm-evaluation-harness 0.4.13 的 HF 后端，HFLM） ---------- */

typedef struct Encoder {
    const Tokenizer *tokenizer;
    int64_t max_length; /* 上下文长度 */
    int32_t prefix;     /* 空的 context 与滚动窗口用的 token：BOS，没有则 EOS */
    const EosSet *eos;  /* 生成类任务的终点；encoder_init 之后由调用者填 */
} Encoder;

/* 由分词器与上下文长度填好。错误: 既无 BOS 也无 EOS。 */
bool encoder_init(Encoder *c, const Tokenizer *t, int64_t max_length, Err *e);
/* HFLM 的 tok_encode：按模型的规则加特殊 token，文本已以 BOS（prefix）的文字开头时不加。追加到 out。 */
bool encode_text(const Encoder *c, const char *text, size_t len, TokenIds *out, Err *e);
/* HFLM 的 _encode_pair：context 末尾的空白移到 continuation，整体编码后按 context 的长度切开；
 * 总长超过 max_length+1 时从左边截去。out 的 ids 指向 a。错误: continuation 编成的 token 为空或长于 max_length。 */
bool encode_pair(const Encoder *c, const char *context, size_t n_context, const char *continuation,
                 size_t n_continuation, ScoreRequest *out, Arena *a, Err *e);
/* HFLM 的 loglikelihood_rolling：整篇切成首尾相接的窗口，每个 token 恰打分一次；第一个窗口以 prefix 开头。
 * *out 为窗口 (n)，在 a 里；它们的 loglikelihood 之和即整篇的。空文本没有窗口。 */
bool encode_rolling(const Encoder *c, const char *text, size_t len, ScoreRequest **out, size_t *n,
                    Arena *a, Err *e);
#endif
