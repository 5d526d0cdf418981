/* markdown — Markdown 小工具的实现
 * 只处理表格会用到的那点语法；目标是任何输入都不越出自己的单元格。 */
#include "markdown.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

void md_text(Str *out, const char *text) {
    if (!text || !*text) {
        str_add(out, "—");
        return;
    }
    for (const char *p = text; *p; p++) {
        if (*p == '\n')
            str_add(out, "<br>");
        else if (*p == '<')
            str_add(out, "&lt;");
        else if (*p == '>')
            str_add(out, "&gt;");
        else if (*p == '_' && p > text && isalnum((unsigned char)p[-1]) &&
                 isalnum((unsigned char)p[1]))
            str_add(out, "_"); /* 词中的下划线没有语法含义 */
        else if (strchr("|\\`*_", *p))
            str_addf(out, "\\%c", *p);
        else if ((unsigned char)*p >= 0x20)
            str_addn(out, p, 1);
    }
}

void md_code(Str *out, const char *text) {
    if (!text || !*text) {
        str_add(out, "—");
        return;
    }
    bool plain = !strpbrk(text, "`|\n\r\t");
    str_add(out, plain ? "`" : "<code>");
    for (const char *p = text; *p; p++) {
        if (plain)
            str_addn(out, p, 1);
        else if (*p == '|')
            str_add(out, "&#124;");
        else if (*p == '<')
            str_add(out, "&lt;");
        else if (*p == '`')
            str_add(out, "&#96;");
        else
            str_addn(out, (unsigned char)*p < 0x20 ? " " : p, 1);
    }
    str_add(out, plain ? "`" : "</code>");
}

void md_number(Str *out, const char *fmt, const json_t *v) {
    double x = json_is_number(v) ? json_number_value(v) : NAN;
    if (!isfinite(x)) {
        str_add(out, "—");
        return;
    }
    char buf[400];
    snprintf(buf, sizeof buf, fmt, x);
    str_add(out, buf);
}

void md_value(Str *out, const json_t *v) {
    if (!v || json_is_null(v)) {
        str_add(out, "—");
    } else if (json_is_string(v)) {
        md_text(out, json_string_value(v));
    } else if (json_is_boolean(v)) {
        str_add(out, json_is_true(v) ? "true" : "false");
    } else if (json_is_integer(v)) {
        str_addf(out, "%lld", (long long)json_integer_value(v));
    } else if (json_is_real(v)) {
        str_addf(out, "%.6g", json_real_value(v));
    } else if (json_is_array(v)) {
        enum { SHOWN = 32 };
        size_t n = json_array_size(v);
        for (size_t i = 0; i < n && i < SHOWN; i++) {
            if (i) str_add(out, ", ");
            const json_t *x = json_array_get(v, i);
            if (json_is_array(x) || json_is_object(x))
                str_add(out, "…");
            else
                md_value(out, x);
        }
        if (n == 0) str_add(out, "—");
        if (n > SHOWN) str_addf(out, " … 共 %zu 项", n);
    } else {
        str_addf(out, "（%zu 项）", json_object_size(v));
    }
}

const json_t *json_at(const json_t *o, const char *path) {
    char key[128];
    for (const char *dot; o && (dot = strchr(path, '.')); path = dot + 1) {
        if ((size_t)(dot - path) >= sizeof key) return NULL;
        memcpy(key, path, (size_t)(dot - path));
        key[dot - path] = '\0';
        o = json_object_get(o, key);
    }
    return o ? json_object_get(o, path) : NULL;
}

const char *json_text_at(const json_t *o, const char *path, const char *def) {
    const char *s = json_string_value(json_at(o, path));
    return s ? s : def;
}

double json_number_at(const json_t *o, const char *path) {
    const json_t *v = json_at(o, path);
    double x = json_is_number(v) ? json_number_value(v) : NAN;
    return isfinite(x) ? x : NAN;
}
