/* pystr_case — pystr 用的两张 Unicode 小表 */
#ifndef PTQ_TASKS_PYSTR_CASE_H
#define PTQ_TASKS_PYSTR_CASE_H
#include <stdbool.h>
#include <stdint.h>

/* cp 大写（title 时为词首大写）成的多个字符（UTF-8）；一对一的为 NULL。 */
const char *py_special_case(int32_t cp, bool title);
/* 不属于 Nd 类而 str.isdigit() 为真的字符（上标、带圈数字等）。 */
bool py_special_digit(int32_t cp);
#endif
