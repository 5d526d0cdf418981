/* jinja — Jinja2 模板的解释器（lm-evaluation-harness 的任务 YAML 用的就是它）
 * 语义与 jinja2 3.1（StrictUndefined、keep_trailing_newline、默认的空白规则）及 Python 的 str()、repr() 相同：
 * 打印 None、True、1.0、['a'] 的写法，按码位数字符，大小写按 Unicode。没有：import、include、继承、自动转义、
 * 64 位以外的整数（报错）。恶意的模板以错误结束：解析深度、求值步数、内存与输出都有上限。 */
#ifndef PTQ_TASKS_JINJA_H
#define PTQ_TASKS_JINJA_H
#include "base/arena.h"
#include "io/json.h"

/* 渲染。参数: where 用于错误信息（如 "arc_easy.yaml:doc_to_text"）；context 是对象，其键即模板里的名字。
 * 返回: *out 在 a 中，以 '\0' 结尾（文字中的 NUL 会使它显得更短，需要长度时用 jinja_render_n）。
 * 错误: 语法、用到未定义的名字、类型不合、超出上限；都带 where 与模板的行号。 */
bool jinja_render(Arena *a, const char **out, const char *template_, const char *where,
                  const json_t *context, Err *e);
bool jinja_render_n(Arena *a, const char **out, size_t *len, const char *template_,
                    const char *where, const json_t *context, Err *e);

/* 渲染后再按 Python 的 ast.literal_eval 读成值，即框架对 doc_to_choice 的做法。
 * 返回: *out 为新引用；元组、集合成为数组，字典的非字符串键成为其 str()。错误: 同上，或文字不是字面量。 */
bool jinja_eval(json_t **out, const char *template_, const char *where, const json_t *context,
                Err *e);

/* 只检查语法与过滤器、测试的名字，不求值。 */
bool jinja_check(const char *template_, const char *where, Err *e);

/* Python 字面量（ast.literal_eval）→ 值；用于框架里另有的几处（doc_to_target 的 "[…]"）。 */
bool python_literal(json_t **out, const char *text, size_t len, const char *where, Err *e);

/* Python 的 str.isdigit()：非空且每个字符都是 Unicode 数字字符（含上标，不含汉字数字）。 */
bool python_isdigit(const char *text, size_t len);
#endif
