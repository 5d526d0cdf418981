/* hub — Hugging Face Hub 的模型与数据集的下载（libcurl），与 huggingface_hub 共用一个缓存
 * 布局: 缓存/{models,datasets}--组织--名字/{blobs/散列, refs/版本, snapshots/提交/文件 → ../../blobs/散列}，
 * 未完的下载是 blobs/散列.incomplete，锁在 缓存/.locks/。
 * 不变式: blobs/ 里不带后缀的文件都已核对散列；下载随时中断，下次从断处续传，完成的不再取。 */
#ifndef PTQ_IO_HUB_H
#define PTQ_IO_HUB_H
#include <stddef.h>

#include "base/str.h"

typedef struct HubOptions {
    const char *endpoint; /* 不以 / 结尾 */
    const char *cache;    /* 缓存的文件夹 */
    const char *token;    /* NULL 为没有 */
    bool offline;
    double retry_seconds; /* 第一次重试前的等待，其后加倍 */
} HubOptions;
/* 按环境变量取: HF_ENDPOINT、HF_HUB_CACHE（HUGGINGFACE_HUB_CACHE）、HF_HOME、XDG_CACHE_HOME、HF_TOKEN
 * （HUGGING_FACE_HUB_TOKEN）或令牌文件（HF_TOKEN_PATH、$HF_HOME/token）、HF_HUB_OFFLINE。
 * 错误: 没有 HOME、内存不足、令牌中有控制字符。 */
bool hub_options(HubOptions *o, Arena *a, Err *e);

/* id 是否像 Hub 的模型（组织/名字）。 */
bool hub_is_id(const char *id);

/* 取得模型的快照。参数: id 组织/名字；revision 分支、标签或提交（NULL 为 main）。
 * 返回: *dir 为快照文件夹（含 config.json、分词器、safetensors；归 a），*commit 为提交。先问 Hub 版本指向哪个提交
 * （revision 就是提交而缓存里齐了时不问），只下载缺的；问不到（断网）时用缓存里的，并警告。
 * 错误: 没有这个模型或版本、要授权（说明怎么办）、网络、限流、磁盘满、散列不符、服务器的答复不合规矩。 */
bool hub_model(const HubOptions *o, Arena *a, const char *id, const char *revision,
               const char **dir, const char **commit, Err *e);

/* 数据集的一个划分。config 为 NULL 是缺省的那个；revision 为 NULL 是 main。 */
typedef struct HubSplit {
    const char *id; /* 组织/名字，旧的只有名字 */
    const char *config, *split, *revision;
} HubSplit;
typedef struct HubSplitFiles {
    const char **paths; /* 缓存里的文件（JSONL、JSON、CSV、Parquet），按次序；归 a */
    size_t n;
    const char *commit;
    const char *from; /* 版本: main，或 Hub 自动转换的 refs/convert/parquet */
} HubSplitFiles;
/* 取得一个划分的文件。依次看: README 里 configs 写的 data_files、文件名与文件夹名的惯例、Hub 自动转换的 Parquet。
 * 错误: 没有这个数据集、配置、划分；其余同 hub_model。 */
bool hub_dataset(const HubOptions *o, Arena *a, const HubSplit *s, HubSplitFiles *out, Err *e);
/* 经 datasets-server 的 rows API 取得一个划分，逐行写成 JSONL 追加到 out。revision 是答复里的版本（没有为空串）。
 * 服务器的地址由 HF_ENDPOINT 得出（https://datasets-server.主机；http 的就是它自己）。
 * 错误: 同上；一格被服务器截短；途中版本变了。 */
bool hub_dataset_rows(const HubOptions *o, Arena *a, const HubSplit *s, Str *out, char revision[41], Err *e);
#endif
