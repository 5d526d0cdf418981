/* task_config — 任务文件：configs/tasks/ 下的 YAML，写法就是 lm-evaluation-harness 的
 * 一个文件是一个任务（task: 名字）或一个组（group: 名字，task: 成员的列表）；include 的内容先合并进来，自己的键优先。
 * 读成 JSON：!function 的值成为 {"!function": "所在文件夹/模块.函数"}，由 task_functions 按名字找 C 函数。 */
#ifndef PTQ_TASKS_TASK_CONFIG_H
#define PTQ_TASKS_TASK_CONFIG_H
#include "io/json.h"

typedef struct TaskEntry {
    const char *name, *file;
    bool is_group;
    json_t *config; /* include 已合并 */
} TaskEntry;

typedef struct TaskIndex {
    Arena arena;
    TaskEntry *entries; /* 按名字排序 */
    size_t n;
} TaskIndex;

/* 读 dir 下（逐层）全部 .yaml；坏的文件打印 ⚠️ 并跳过，不影响别的任务。错误: 内存不足、文件夹不存在。 */
bool task_index_open(TaskIndex *x, const char *dir, Err *e);
void task_index_close(TaskIndex *x);
const TaskEntry *task_index_find(const TaskIndex *x, const char *name);
/* 一个 YAML（连同 include）→ JSON 新引用。 */
json_t *task_config_load(const char *path, Err *e);

/* 选中的任务：叶子不重复，按第一次遇到的次序；组记着它的叶子。 */
typedef struct TaskChoice {
    const char *name, *file;
    json_t *config; /* 借自 TaskIndex，或（组里另有改动时）自有，由 task_select_free 归还 */
    bool owned;
} TaskChoice;
typedef struct GroupChoice {
    const char *name;
    const json_t *config;
    size_t *leaves, n_leaves; /* TaskChoice 的下标 */
    int depth;                /* 0 为直接点名的 */
} GroupChoice;
typedef struct TaskSelection {
    TaskChoice *tasks;
    GroupChoice *groups;
    size_t n_tasks, n_groups;
} TaskSelection;

/* 按名字（任务、组、tag）选。错误: 没有这个名字（给出最近的）、组套组成环、层数过深。内存来自 a。 */
bool task_select(TaskSelection *s, const TaskIndex *x, Arena *a, const char *const *names, size_t n,
                 Err *e);
void task_select_free(TaskSelection *s);
#endif
