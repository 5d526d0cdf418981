/* task_data — 任务的数据：本地的 JSONL、JSON、CSV、Parquet
 * 位置：data/raw/tasks/ 下以任务名、或以 Hub 的数据集名命名的文件夹，一个划分一个文件（test.jsonl），
 * 或几个分片（test-00000-of-00002.parquet；或文件夹 test/ 里的 0000.parquet…）；
 * 任务写 dataset_path: json 与 dataset_kwargs.data_files 时就是那里写的文件。SHA-256 记进结果
 * （几个分片的是依次相接的内容的）。 */
#ifndef PTQ_TASKS_TASK_DATA_H
#define PTQ_TASKS_TASK_DATA_H
#include "io/hash.h"
#include "io/json.h"

typedef struct TaskFile {
    const char *split, *path; /* 分片的 path 是第一个 */
    char sha256[HASH_HEX];
    json_t *rows; /* 对象的数组 */
} TaskFile;

/* 读任务 name（合并后的配置 config）的一个划分。内存（路径）来自 a，rows 由 json_decref 归还。
 * 错误: 找不到（找过哪些地方、怎样取得）；坏的一行（文件:行）；一行不是对象；没有一行。 */
bool task_data_open(TaskFile *f, Arena *a, const char *data_dir, const char *name,
                    const json_t *config, const char *split, Err *e);
/* 只找不读。返回: 路径（在 a 里）；找不到为 NULL，e 说明找过哪些地方、怎样取得。 */
const char *task_data_find(Arena *a, const char *data_dir, const char *name, const json_t *config,
                           const char *split, Err *e);
/* 按后缀读一个文件的行（新引用），内容加进 hash（可为 NULL）。错误: 没有一行；一行不是对象。 */
json_t *task_rows_file(const char *path, Hash *hash, Err *e);
/* 一段 JSONL 或 CSV 文字 → 行的数组（新引用）。CSV 首行是列名；整列都是整数的列读成整数。 */
json_t *task_rows_jsonl(const char *where, const char *text, size_t len, Err *e);
json_t *task_rows_csv(const char *where, const char *text, size_t len, Err *e);
#endif
