/* pyregex — Python re 模块的正则（PCRE2）
 * 语法上与 re 只差几处，在编译时改写：\Z、\uXXXX、\UXXXXXXXX、\N{…} 之外的都同义；\d \w \s \b 按 Unicode。
 * 匹配步数有上限：回溯爆炸以错误结束。 */
#ifndef PTQ_TASKS_PYREGEX_H
#define PTQ_TASKS_PYREGEX_H
#include <stdint.h>

#include "base/str.h"

typedef struct PyRegex PyRegex;

enum { PYREGEX_IGNORECASE = 1, PYREGEX_MULTILINE = 2, PYREGEX_DOTALL = 4 };

/* 编译。错误: 语法不对（带位置）、用了 re 没有的写法。 */
bool pyregex_open(PyRegex **re, const char *pattern, size_t len, int flags, Err *e);
void pyregex_close(PyRegex *re); /* NULL 无妨 */
/* 捕获组的个数（不算整个匹配）。 */
int pyregex_groups(const PyRegex *re);

/* 一处匹配：第 i 组是 text[start[i], end[i])，没有参与的为 SIZE_MAX；第 0 组是整个匹配。 */
typedef struct PyMatch {
    size_t start[32], end[32];
} PyMatch;
/* 从 from 起找下一处。返回: false 且 e 未设为没有；出错则 e 已设。 */
bool pyregex_search(const PyRegex *re, const char *text, size_t len, size_t from, PyMatch *m,
                    Err *e);
/* re.findall 的遍历顺序：在 *from 处找下一处并把 *from 移到其后（空匹配之后前进一个字符）。 */
bool pyregex_next(const PyRegex *re, const char *text, size_t len, size_t *from, PyMatch *m,
                  Err *e);
/* re.sub(pattern, repl, text, count)：repl 中 \1、\g<1>、\g<名字>、\n 等与 Python 相同。结果追加到 out。 */
bool pyregex_sub(const PyRegex *re, const char *text, size_t len, const char *repl,
                 size_t repl_len, int64_t count, Str *out, Err *e);
#endif
