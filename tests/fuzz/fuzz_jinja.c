/* fuzz_jinja — 模板解释器、Python 字面量与正则的模糊测试
 * 首字节选一样；除不崩溃、不越界外还查：出错必有错误码，成功的输出是合法 UTF-8 的 JSON 字符串装得下的。 */
#include <stdlib.h>
#include <string.h>

#include "tasks/jinja.h"
#include "tasks/pyregex.h"
#include "tasks/pystr.h"

static void render(const char *text) {
    static json_t *context;
    if (!context)
        context = json_pack("{s:s, s:[s,s,s], s:i, s:f, s:n, s:b, s:{s:s, s:[i,i]}}", "question",
                            "What's 中文?", "choices", "a", "b'\"", "\n", "label", 2, "x", 0.5,
                            "none_", "yes", 1, "doc", "text", "t", "ids", 1, 2);
    Arena a = {0};
    Err e = {0};
    const char *out;
    size_t len;
    bool ok = jinja_render_n(&a, &out, &len, text, "fuzz", context, &e);
    if (ok && py_valid(py_text(text)) && !py_valid((PyText){out, len})) abort();
    if (!ok && e.code == ERR_NONE) abort();
    arena_free(&a);
}

static void literal(const char *text, size_t size) {
    json_t *v = NULL;
    Err e = {0};
    if (python_literal(&v, text, size, "fuzz", &e) != (v != NULL)) abort();
    if (!v && e.code == ERR_NONE) abort();
    json_decref(v);
}

/* 正则与被匹配的文字以首个换行分开。 */
static void regex(const char *text, size_t size) {
    const char *line = memchr(text, '\n', size);
    size_t n = line ? (size_t)(line - text) : size;
    PyRegex *re;
    Err e = {0};
    Str s = {0};
    PyText rest = {text + n, size - n};
    if (pyregex_open(&re, text, n, 0, &e)) {
        bool ok = pyregex_sub(re, rest.p, rest.n, "<\\g<0>>", 7, 0, &s, &e);
        if (!ok && e.code == ERR_NONE) abort();
        pyregex_close(re);
    } else if (e.code == ERR_NONE) {
        abort();
    }
    str_free(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0 || size > 4096) return 0;
    char *text = malloc(size);
    if (!text) return 0;
    memcpy(text, data + 1, size - 1);
    text[size - 1] = '\0';
    if (data[0] == 'L') literal(text, size - 1);
    else if (data[0] == 'R') regex(text, size - 1);
    else render(text);
    free(text);
    return 0;
}
