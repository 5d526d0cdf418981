/* pystr — Python 的 str 操作：按码位、按 Unicode
 * 只管文字，不知道模板。位置与个数都以码位计；输入须是合法 UTF-8（来自 JSON 与检查过的模板）。 */
#ifndef PTQ_TASKS_PYSTR_H
#define PTQ_TASKS_PYSTR_H
#include <stdint.h>

#include "base/str.h"

typedef struct PyText {
    const char *p;
    size_t n; /* 字节 */
} PyText;

PyText py_text(const char *s);
bool py_same(PyText a, PyText b);
/* 是否合法的 UTF-8。 */
bool py_valid(PyText t);
/* 从 *at 读一个码位并前移；坏字节当作一个码位。 */
int32_t py_next(PyText t, size_t *at);
/* 追加一个码位。 */
void py_add(Str *out, int32_t cp);
size_t py_length(PyText t);
/* 第 i 个码位的字节位置（i 可等于长度）。 */
size_t py_offset(PyText t, size_t i);
bool py_isspace(int32_t cp);
bool py_isdigit_cp(int32_t cp);
bool py_isalnum_cp(int32_t cp);
bool py_isalpha_cp(int32_t cp);
/* repr() 时原样显示。 */
bool py_isprintable(int32_t cp);
/* 从 text 的 from 字节起找 what。返回: 字节位置，没有为 SIZE_MAX。 */
size_t py_find(PyText text, PyText what, size_t from);
size_t py_rfind(PyText text, PyText what, size_t end);

/* 去掉两端（left、right）在 chars 中的字符；chars.p 为 NULL 时去空白。 */
PyText py_strip(PyText t, PyText chars, bool left, bool right);
void py_upper(Str *out, PyText t);
void py_lower(Str *out, PyText t);
void py_capitalize(Str *out, PyText t);
void py_title(Str *out, PyText t);     /* str.title() */
void py_swapcase(Str *out, PyText t);
/* count < 0 为全部。 */
void py_replace(Str *out, PyText t, PyText old, PyText with, int64_t count);
/* str(float)。 */
void py_float(Str *out, double v);
/* repr(str)。 */
void py_repr(Str *out, PyText t);
/* float(str)、int(str, base)；不是数则返回 false。超出 64 位时 *overflow 置真。 */
bool py_parse_float(PyText t, double *v);
bool py_parse_int(PyText t, int base, int64_t *v, bool *overflow);
#endif
