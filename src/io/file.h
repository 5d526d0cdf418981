/* file — 文件：映射、整读、原子写入
 * 结果文件只用 file_write_atomic：同目录临时文件 → 写 → fsync → rename → fsync 目录，
 * 因此任何时刻崩溃、断电、磁盘满都不会留下半个文件。 */
#ifndef PTQ_IO_FILE_H
#define PTQ_IO_FILE_H
#include <stdint.h>

#include "base/arena.h"

typedef struct FileMap {
    const uint8_t *data; /* 只读；空文件时为 NULL */
    size_t size;
} FileMap;

/* 只读映射整个文件。错误: 打不开、是文件夹。 */
bool file_map(FileMap *m, const char *path, Err *e);
void file_unmap(FileMap *m);
/* 告诉系统映射中的一段近期不再使用（可从 RSS 中移除）。 */
void file_map_drop(const void *p, size_t bytes);
/* 整读为以 '\0' 结尾的内存；大于 limit 字节报错。 */
char *file_read(Arena *a, const char *path, size_t limit, size_t *len, Err *e);
/* 原子写入。错误: 目录不可写、磁盘满（旧文件保持原样，临时文件被删除）。 */
bool file_write_atomic(const char *path, const void *data, size_t len, Err *e);
/* 同上，内容由 n 段依次相接而成。 */
typedef struct FilePart {
    const void *data;
    size_t len;
} FilePart;
bool file_write_parts(const char *path, const FilePart *parts, size_t n, Err *e);
/* 同 file_write_atomic，但目标已存在时报错而不覆盖（link(2) 实现，结果文件名永不相撞）；已存在时 *exists 置真并返回 false。 */
bool file_write_new(const char *path, const void *data, size_t len, bool *exists, Err *e);
/* 逐级建立文件夹。 */
bool file_mkdirs(const char *dir, Err *e);
bool file_exists(const char *path);
bool file_is_dir(const char *path);
/* 列出文件夹中以 suffix 结尾的文件名（按字节序排序，不含路径；隐藏文件与临时文件除外）。 */
bool file_list(Arena *a, const char *dir, const char *suffix, char ***names, size_t *n, Err *e);
/* 拼接路径 dir/name；name 为绝对路径时就是 name。 */
char *file_join(Arena *a, const char *dir, const char *name, Err *e);
#endif
