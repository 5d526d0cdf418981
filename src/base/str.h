/* str — 字符串小工具
 * 可增长的缓冲 Str、显示宽度（汉字与 emoji 占两列）、最近名字（编辑距离）、路径拼接。 */
#ifndef PTQ_BASE_STR_H
#define PTQ_BASE_STR_H
#include <stddef.h>

#include "base/arena.h"

/* 可增长的字节缓冲，data 始终以 '\0' 结尾（或为 NULL，当 len==0）。分配失败后 failed 粘滞，后续追加无效。 */
typedef struct Str {
    char *data;
    size_t len, cap;
    bool failed;
} Str;
void str_add(Str *s, const char *text);
void str_addn(Str *s, const char *text, size_t n);
void str_addf(Str *s, const char *fmt, ...) PTQ_PRINTF(2, 3);
void str_free(Str *s);

/* 终端显示宽度（列数）：东亚宽字符与 emoji 为 2，组合符与变体选择符为 0。坏 UTF-8 每字节计 1。 */
size_t str_width(const char *utf8);
/* 追加 text 并用空格补到 width 列；right 为真则右对齐。 */
void str_add_padded(Str *s, const char *text, size_t width, bool right);

/* 在 n 个名字中找与 want 编辑距离最小者。返回: 名字；距离超过 max(2, len/2) 时返回 NULL。 */
const char *str_nearest(const char *want, const char *const *names, size_t n);

/* 就地把控制字符（换行、制表除外）与坏 UTF-8 的每个字节换成 '?'：
 * 来自文件的文字显示在终端、写进 JSON 之前都经过它，不能借转义序列操纵终端。 */
void str_clean(char *text);

bool str_starts(const char *s, const char *prefix);
bool str_ends(const char *s, const char *suffix);
/* 人类可读的字节数，如 "14.0 MB"（MB=10^6）。写入 buf 并返回 buf。 */
char *str_bytes(char *buf, size_t cap, double bytes);
/* "400MB"、"1.5 GB"、"800000" → 字节（K、M、G、T 为 10 的幂，后可带 B）。返回: 写法不对为假。 */
bool str_parse_bytes(const char *text, size_t *bytes);
/* 人类可读的秒数，如 "3.2 秒"、"4 分 05 秒"。 */
char *str_seconds(char *buf, size_t cap, double s);
#endif
