/* task_run — 一组任务一起评测：打开、拼请求、编码、打分与生成、算指标
 * 全部任务的请求放在一起装批（request.h）：相同的少样本开头只算一次。结果的键同 lm-evaluation-harness 0.4.13。 */
#ifndef PTQ_TASKS_TASK_RUN_H
#define PTQ_TASKS_TASK_RUN_H
#include "tasks/task.h"

typedef struct TaskSet {
    Arena arena;
    TaskIndex index;
    TaskSelection selection;
    Task *tasks;
    size_t n;
    char sha256[HASH_HEX]; /* 各任务的配置、数据、样本数：决定数字的一切 */
    int64_t n_docs, n_requests, n_tokens; /* 编码之后 */
} TaskSet;

/* 选取、读配置与数据、拼请求（文字）。names 为任务、组或 tag。 */
bool taskset_open(TaskSet *s, const char *tasks_dir, const char *const *names, size_t n,
                  const TaskOptions *o, Err *e);
void taskset_close(TaskSet *s);
/* 任务全部请求的 token 的摘要：每个请求一行「context ids;continuation ids\n」，以逗号分隔。编码之后才可用。 */
bool task_ids_sha256(const Task *t, char hex[HASH_HEX], Err *e);
bool taskset_encode(TaskSet *s, const Encoder *c, Err *e);
/* 算完全部请求，结果在各 TaskRequest 里。cost 可为 NULL。 */
bool taskset_run(TaskSet *s, Model *m, const Tokenizer *t, ScoreCost *cost, Err *e);

/* 一份文档对一个（指标, 过滤器）的值。 */
typedef struct DocValue {
    double value, weight;
} DocValue;
/* 一个任务的全部值：values[(metric·n_filters + filter)·n_docs + doc]，在 a 里。 */
bool task_values(Task *t, const Tokenizer *tokenizer, DocValue **values, Arena *a, Err *e);
/* 选择题各文档的预测（下标）。 */
int64_t choice_argmax(const TaskDoc *d, MetricKind norm);
/* 生成的文字（停止串之前）→ out。 */
bool generated_text(const Task *t, const TaskRequest *r, const Tokenizer *tokenizer, Str *out, Err *e);

/* 结果：{"arc_easy": {"acc,none": …, "acc_stderr,none": …, "sample_len": …, "version": …}, 组…, "_avg_accuracy": …}。
 * values[i] 是第 i 个任务的值。新引用。 */
json_t *taskset_results(const TaskSet *s, DocValue *const *values, Err *e);
#endif
