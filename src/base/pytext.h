/* pytext — 与 Python 的 str 一致的文字规则
 * 评测框架用 Python 写成，「空白」「字符数」都按 str 的定义；这里的文字是 UTF-8。 */
#ifndef PTQ_BASE_PYTEXT_H
#define PTQ_BASE_PYTEXT_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* 一个字符的码点与字节数。坏的 UTF-8：码点为 0xFFFD，*n 为 1。len 须不为 0。 */
uint32_t pytext_char(const char *text, size_t len, size_t *n);
/* 同 str.isspace 对一个字符。 */
bool pytext_is_space(uint32_t c);
/* 去掉末尾（开头）空白后的终点（起点），同 str.rstrip()、str.lstrip()。 */
size_t pytext_rstrip(const char *text, size_t len);
size_t pytext_lstrip(const char *text, size_t len);
/* 字符数，同 len(str)。 */
size_t pytext_length(const char *text, size_t len);
#endif
