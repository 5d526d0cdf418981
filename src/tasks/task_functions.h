/* task_functions — 任务 YAML 里 !function 指的函数，用 C 写成，按「文件夹/模块.函数」登记
 * 每个与框架里同名的 Python 函数逐字节同样的输出。 */
#ifndef PTQ_TASKS_TASK_FUNCTIONS_H
#define PTQ_TASKS_TASK_FUNCTIONS_H
#include "io/json.h"

/* 文档 → 值（doc_to_*、逐行的 process_docs）。返回: 新引用；NULL 为错误。 */
typedef json_t *(*TaskFunction)(const json_t *doc, Err *e);

/* name 形如 "hellaswag/utils.process_docs"。没有登记返回 NULL。 */
TaskFunction task_function(const char *name);
/* config 的键 key 若是 !function，返回它的名字；否则 NULL。 */
const char *task_function_name(const json_t *config, const char *key);
#endif
