/* json — JSON 文件（jansson）
 * 输入一律走 json_load / json_parse：限制大小与深度、拒绝重复键，错误带 文件:行:列。 */
#ifndef PTQ_IO_JSON_H
#define PTQ_IO_JSON_H
#include <jansson.h>

#include "base/arena.h"

json_t *json_load(const char *path, Err *e); /* 大小上限 256 MB */
json_t *json_parse(const char *name, const void *text, size_t len, Err *e);
/* 缩进输出（键按插入顺序、UTF-8 不转义、末尾换行），原子写入。 */
bool json_save(const char *path, const json_t *v, Err *e);

/* 取字段：缺失或类型不符时置 e（消息带 name 与键名）并返回 false；有默认值的版本缺失时取默认值。 */
bool json_get_int(const json_t *o, const char *name, const char *key, int64_t lo, int64_t hi,
                  int64_t *out, Err *e);
bool json_get_int_or(const json_t *o, const char *name, const char *key, int64_t def, int64_t lo,
                     int64_t hi, int64_t *out, Err *e);
bool json_get_num_or(const json_t *o, const char *name, const char *key, double def, double *out,
                     Err *e);
bool json_get_bool_or(const json_t *o, const char *name, const char *key, bool def, bool *out,
                      Err *e);
/* 字符串字段；缺失或 null 时 *out 为 def。指针归 o 所有。 */
bool json_get_str_or(const json_t *o, const char *name, const char *key, const char *def,
                     const char **out, Err *e);
#endif
