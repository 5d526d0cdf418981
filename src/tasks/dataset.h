/* dataset — 困惑度文本：按名字或路径找到、整读、固定哈希
 * 已知名字的文本必须与登记的 SHA-256 相同，否则拒绝：换了一份「wikitext2」的数字没有意义。 */
#ifndef PTQ_TASKS_DATASET_H
#define PTQ_TASKS_DATASET_H
#include "io/hash.h"
#include "io/file.h"

typedef struct TextData {
    const char *name; /* 结果里的键：登记名，或文件名 */
    const char *path;
    const char *data; /* 文本，未必以 '\0' 结尾 */
    size_t len;
    char sha256[HASH_HEX]; /* data 的哈希（拼接类为拼接之后） */
    FileMap map;
} TextData;

/* 打开。参数: name 登记名（text_names）或本地文本文件的路径；data_dir 数据目录；root 项目根。
 * 错误: 找不到（说明去哪里找过、怎样取得）、哈希与登记的不符、空文件。内存来自 a。 */
bool text_open(TextData *t, Arena *a, const char *root, const char *data_dir, const char *name,
               Err *e);
void text_close(TextData *t);
/* 登记的名字，NULL 结尾；以及一句说明。 */
const char *const *text_names(void);
const char *text_describe(const char *name);
/* 登记的文件（相对数据目录）与 SHA-256；没有登记返回 false。 */
bool text_registered(const char *name, const char **file, const char **sha256);
/* 已知 (文本, 分词器) 的 token 数；未知为 -1。 */
int64_t text_expected_tokens(const char *text_sha256, const char *tokenizer_sha256);
#endif
