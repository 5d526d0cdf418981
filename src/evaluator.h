/* evaluator — 评测：困惑度（含对基线的比较）与速度，产出结果 JSON 的 results 部分
 * 只经会话与 forward 使用模型，不知道用的是哪个方法。 */
#ifndef PTQ_EVALUATOR_H
#define PTQ_EVALUATOR_H
#include "config.h"
#include "io/json.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "tasks/dataset.h"
#include "tasks/task_run.h"

typedef struct EvalText {
    TextData text;
    char reference_key[HASH_HEX]; /* 基线存档的 key */
} EvalText;

typedef struct Evaluation {
    const RunOptions *options;
    Model *model;
    Tokenizer *tokenizer;
    EvalText *texts;
    size_t n_texts;
    const char *protocol;      /* 已解析 auto */
    const char *reference_dir; /* 基线存档目录 */
    const char *run_key;
    const char *results_dir;   /* 用来找基线的结果文件名 */
    TaskSet *tasks;            /* 已打开；没有任务时 n 为 0 */
    const char *task_key;      /* 模型、分词器、计算精度：基线的任务存档的 key 的一部分 */
    int64_t max_length;        /* 任务的上下文长度 */
    const EosSet *eos;         /* 生成的终点 */
    bool is_baseline;          /* fp16：存档；否则比较 */
    json_t *warnings, *fallbacks; /* 字符串数组，追加 */
} Evaluation;

/* 全部文本的困惑度。返回: {"demo": {...}} 新引用；失败为 NULL。 */
json_t *evaluate_ppl(const Evaluation *v, Err *e);
/* 全部 lm-eval 任务。返回: results.lm_eval（新引用，没有任务为空对象）；失败为 NULL。cost 是打分的用量。 */
json_t *evaluate_tasks(const Evaluation *v, ScoreCost *cost, Err *e);
/* 全部文本的 fp16 存档是否够用（窗口数、算 KL 的隐藏状态）。错误: 分词失败、协议不对。 */
bool evaluate_has_reference(const Evaluation *v, bool *have, Err *e);
/* 全部原生任务的 fp16 逐文档得分是否都在。 */
bool evaluate_has_task_scores(const Evaluation *v);
/* 基线的结果文件名（不含目录）；找不到为 null。新引用。 */
json_t *baseline_file(const Evaluation *v, const char *run_key);
/* 速度（token/秒），量不了为 0。 */
typedef struct Speed {
    double prefill; /* 批大小 1，512 个 token 一次预填，只算末位的 logits；三次的中位数 */
    double decode;  /* eval.speed_batch 条各接在 eval.speed_context 个 token 之后，贪心逐 token 解码，
                     * 全批合计，按单步用时的中位数 */
} Speed;
/* 量速度。文本太短时相应的一项为 0。 */
bool evaluate_speed(const Evaluation *v, Speed *s, Err *e);
/* 由 eval.ppl_protocol 与模型的最大长度定出协议名（auto 时取不超过 2048 的最大 2 的幂）。写入 buf。 */
const char *evaluate_protocol_name(const RunOptions *o, int64_t max_seq_len, char *buf, size_t cap);
#endif
