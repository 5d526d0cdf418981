/* err — 错误值的实现
 * 消息定长，过长则截断在 UTF-8 字符边界上，不会留下半个汉字；其中来自文件的控制字符与坏字节换成 '?'。 */
#include "base/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"

/* 把 buf 末尾不完整的 UTF-8 序列去掉。 */
static void trim_utf8(char *buf) {
    size_t n = strlen(buf), i = n;
    while (i > 0 && ((unsigned char)buf[i - 1] & 0xC0) == 0x80) i--;
    if (i == 0) return;
    unsigned char lead = (unsigned char)buf[i - 1];
    size_t want = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 1;
    if (n - (i - 1) < want) buf[i - 1] = '\0';
}

bool err_set(Err *e, ErrCode code, const char *fmt, ...) {
    if (!e) return false;
    va_list ap;
    va_start(ap, fmt);
    e->code = code;
    vsnprintf(e->msg, sizeof e->msg, fmt, ap);
    va_end(ap);
    trim_utf8(e->msg);
    str_clean(e->msg);
    return false;
}

bool err_wrap(Err *e, const char *fmt, ...) {
    if (!e) return false;
    char old[sizeof e->msg];
    memcpy(old, e->msg, sizeof old);
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(e->msg, sizeof e->msg, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof e->msg)
        snprintf(e->msg + n, sizeof e->msg - (size_t)n, ": %s", old);
    trim_utf8(e->msg);
    str_clean(e->msg);
    return false;
}

const char *err_code_name(ErrCode code) {
    static const char *const NAMES[] = {"none",        "usage",  "config",  "io",     "format",
                                        "missing",     "unsupported", "memory", "numeric",
                                        "device",      "interrupted"};
    return (size_t)code < sizeof NAMES / sizeof *NAMES ? NAMES[code] : "unknown";
}

int err_exit_code(ErrCode code) {
    return code == ERR_NONE ? 0 : code == ERR_USAGE ? 2 : code == ERR_INTERRUPTED ? 130 : 1;
}

_Noreturn void err_check_failed(const char *file, int line, const char *cond) {
    fprintf(stderr, "❌ 程序缺陷 %s:%d: %s\n", file, line, cond);
    abort();
}
