/* json — JSON 文件（jansson）
 * 输入一律走 json_load / json_parse：限制大小与深度、拒绝重复键，错误带 文件:行:列。 */
#ifndef PTQ_IO_JSON_H
#define PTQ_IO_JSON_H
#include <jansson.h>

#include "base/arena.h"
#include "base/str.h"

/* 读入文件。超出 int64 的整数按实数读；字符串可含 NUL（用 json_string_length）。
 * 错误: 打不开；大于 256 MB；值过多（解析要用约 1 GB 以上内存）；语法、重复键、坏 UTF-8、嵌套超过 2048 层。 */
json_t *json_load(const char *path, Err *e);
/* 解析内存中的文本；name 只用于错误信息。 */
json_t *json_parse(const char *name, const void *text, size_t len, Err *e);
/* 追加缩进的文本：键按插入顺序、UTF-8 不转义、实数取能原样读回的最短写法、末尾换行。 */
void json_text(Str *out, const json_t *v);
/* 把 json_text 的文本原子写入文件。 */
bool json_save(const char *path, const json_t *v, Err *e);

/* 取字段：缺失或类型不符时置 e（消息带 name 与键名）并返回 false；有默认值的版本缺失时取默认值。
 * 值为 null 一律按缺失处理（HF 的 config.json 常把未设的键写成 null）。 */
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
