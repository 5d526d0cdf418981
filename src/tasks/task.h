/* task — 一个任务：配置、文档、每份文档的请求与得分
 * 语义逐条同 lm-evaluation-harness 0.4.13 的 ConfigurableTask（lm_eval/api/task.py）：doc_to_text、doc_to_choice、
 * doc_to_target 的取值规则，少样本的抽取与拼接，四种 output_type 的请求，每份文档的指标。 */
#ifndef PTQ_TASKS_TASK_H
#define PTQ_TASKS_TASK_H
#include "base/pyrandom.h"
#include "tasks/filters.h"
#include "tasks/metrics.h"
#include "tasks/request.h"
#include "tasks/task_config.h"
#include "tasks/task_data.h"

typedef enum { OUT_LOGLIKELIHOOD, OUT_ROLLING, OUT_CHOICE, OUT_GENERATE } OutputType;

/* 一个文字请求：给 continuation 打分、给全文打分，或从 context 写下去。 */
typedef struct TaskRequest {
    const char *context, *continuation; /* 在任务的 arena 里；没有的为空串 */
    size_t n_context, n_continuation;
    ScoreRequest *score; /* 编码之后：LOGLIKELIHOOD、CHOICE 一个；ROLLING n_score 个窗口 */
    size_t n_score;
    GenerateRequest generate;
} TaskRequest;

typedef struct TaskDoc {
    int64_t id;   /* 行号 */
    json_t *doc;  /* process_docs 之后；自有 */
    json_t *target; /* doc_to_target；自有 */
    json_t *gold;   /* 选择题的答案：整数、整数的列表；文字的话是选项之一。自有，其余题型为 NULL */
    json_t *choices; /* 选择题的选项；自有，其余为 NULL */
    TaskRequest *requests;
    size_t n_requests;
} TaskDoc;

typedef struct Task {
    const char *name, *file;
    const json_t *config; /* 借自选取 */
    Arena arena;
    OutputType output;
    int64_t n_fewshot;
    const char *eval_split, *fewshot_split; /* 后者可为 NULL */
    TaskFile eval_file, fewshot_file;       /* fewshot_file.rows 可为 NULL */
    json_t *fewshot_docs;                   /* process_docs 之后；没有少样本为 NULL */
    bool multiple_input, multiple_target;
    TaskDoc *docs;
    size_t n_docs, n_total; /* 取了多少；数据共有多少 */
    MetricSpec *metrics;
    size_t n_metrics;
    FilterPipe *filters;
    size_t n_filters;
    /* 生成 */
    const char **until;
    size_t n_until;
    int64_t max_new;
    char requests_sha256[HASH_HEX]; /* 全部请求的 context、0x1F、continuation、0x1E */
} Task;

typedef struct TaskOptions {
    const char *data_dir;
    int64_t limit;    /* 每个任务最多多少份文档，0 为全部 */
    int64_t fewshot;  /* 少样本数，-1 为任务自己的 */
} TaskOptions;

/* 读配置与数据，检查原生路径支持其全部设置。错误带任务名。 */
bool task_open(Task *t, const TaskChoice *choice, const TaskOptions *o, Err *e);
void task_close(Task *t);
/* 任务的两个划分：评测用 test_split，没有则 validation_split；少样本用 fewshot_config.split、fewshot_split，
 * 没有则 train、validation、test。都没有写的为 NULL。 */
void task_splits(const json_t *config, const char **eval, const char **fewshot);
/* 拼好每份文档的请求（文字），算 requests_sha256。 */
bool task_build(Task *t, Err *e);
/* 编码成 token。 */
bool task_encode(Task *t, const Encoder *c, Err *e);

/* ---- 取值（task_fields.c） ---- */
/* doc_to_text / doc_to_target：文字、整数或列表（新引用）。override 为 fewshot_config 里的同名键，没有则 NULL。 */
json_t *task_text(const Task *t, const json_t *doc, const json_t *override_, Err *e);
json_t *task_target(const Task *t, const json_t *doc, const json_t *override_, Err *e);
/* doc_to_choice：文字的列表（新引用）。 */
json_t *task_choices(const Task *t, const json_t *doc, const json_t *override_, Err *e);
/* description、gen_prefix：文档的字段或模板；没有为空串。在 t->arena 里。 */
const char *task_resolve(Task *t, const json_t *doc, const json_t *field, Err *e);
/* 少样本的文档（task_fewshot.c）：抽 n 个，写入 picks（下标）。rng 已按 1234 播种，逐份文档接着用。 */
bool fewshot_sample(PyRandom *rng, const json_t *pool, int64_t n, const json_t *exclude,
                    bool first_n, size_t *picks, Err *e);
/* 拼出一份文档的 context（选择题的多 context 时每个选项一个）：文字的数组。 */
json_t *task_context(Task *t, const json_t *doc, PyRandom *rng, Err *e);
#endif
