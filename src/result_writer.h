/* result_writer — 结果的写出与读回
 * 一次运行 = 一个 JSON（全部事实，格式见 docs/result-format.md）+ 一个由它生成的 Markdown。
 * 先写 .md 再写 .json，都经临时文件、fsync、不覆盖的改名：有 .json 就是完整的结果。
 * 写的时候持有目录的共享锁（flock），result_clean 取独占锁，因此不会误删正在写的。 */
#ifndef PTQ_RESULT_WRITER_H
#define PTQ_RESULT_WRITER_H
#include "base/str.h"
#include "io/json.h"

#define RESULT_SCHEMA "ptq-bench/1"

/* 写出。参数: result 完整的结果对象；dir 结果目录（自动建立）。
 * 返回: 成功时 path_out（可为 NULL）得到 .json 路径（arena 内）。名字 YYYYMMDD_HHMMSS__{model}__{method}__track{T}，
 * 已存在时秒数后加 -2、-3…。 */
bool result_write(const json_t *result, const char *dir, Arena *a, const char **path_out, Err *e);
/* 收拾被强行终止的进程留下的东西：没有 .json 的结果 .md（写到一半）与临时文件。
 * 只动名字是本程序写法的文件；别的进程正在写结果时什么也不做。 */
void result_clean(const char *dir);
/* 结果 → Markdown 文本（中文）。 */
bool result_markdown(const json_t *result, Str *out, Err *e);

/* 一个 JSON 值是不是可用的结果：schema、config 的三个名字、status、各数据集的数的类型。
 * 错误: 带 name 与键名。ok 的结果里 PPL 必为有限的正数。 */
bool result_check(const json_t *result, const char *name, Err *e);

typedef struct ResultFile {
    const char *path;
    json_t *json;
} ResultFile;
/* 读目录下全部结果，按文件名排序；坏文件打印 ⚠️ 并跳过。 */
/* 目录不存在等同没有结果。 */
bool result_load_all(const char *dir, Arena *a, ResultFile **files, size_t *n, Err *e);
void result_free_all(ResultFile *files, size_t n);
/* 在 dir 中找 run_key 相同且成功的结果（最新的一个）；没有返回 NULL。返回值须 json_decref。 */
json_t *result_find(const char *dir, const char *run_key, const char **path_out, Arena *a);
/* 有没有同模型、方法、轨道的结果（设置与成败不论）。没有，就不会有哪个 run_key 相同的。 */
bool result_any(const char *dir, const char *model, const char *method, char track, Arena *a);
/* run_key 相同的最新结果（无论成败）的路径；没有返回 NULL。 */
const char *result_newest(const char *dir, const char *run_key, Arena *a);
#endif
