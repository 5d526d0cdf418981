/* statset — 校准统计的存档：一套 = 一个文件夹，每块（层）一个文件，一个矩阵的各次运行共用
 * 文件 = 头（版本、key、序号、内容的 SHA-256）+ 内容；写临时文件再改名。只读自己写的：整套都在、都对才算有，
 * 缺一个、坏一个就当作没有（重算并覆盖）。 */
#ifndef PTQ_MODEL_STATSET_H
#define PTQ_MODEL_STATSET_H
#include "io/file.h"
#include "io/hash.h"

typedef struct StatSet {
    Arena arena;
    FileMap *maps; /* (n) */
    int64_t n;     /* 0 为没有 */
} StatSet;

/* 打开 dir 里 key 的一套的前 n 份，校验，并记下用过它。返回: 不全或不对为假（*s 为空）。 */
bool statset_open(StatSet *s, const char *dir, const char *key, int64_t n);
void statset_close(StatSet *s);
/* 第 i 份的内容，只读，活到 statset_close。返回: 长度不是 bytes 为 NULL。 */
const void *statset_get(const StatSet *s, int64_t i, size_t bytes);
/* 读完了第 i 份：不再占常驻内存。 */
void statset_drop(const StatSet *s, int64_t i);
/* 原子地写出第 i 份，内容由 n 段相接而成。 */
bool statset_save(const char *dir, const char *key, int64_t i, const FilePart *parts, size_t n,
                  Err *e);
/* 为 key 的一套腾出 need 字节：删去 max_days 天没有用过的各套，仍放不下（总共至多 limit 字节）就从最久没有用的删起。
 * 返回: 放得下为真；一套就超过 limit 时为假，什么也不删。 */
bool statset_make_room(const char *dir, const char *key, size_t need, size_t limit, int max_days);
#endif
