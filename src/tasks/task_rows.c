/* task_rows — 任务数据的文字格式：JSONL、CSV → 行的数组 */
#include <stdlib.h>
#include <string.h>

#include "tasks/task_data.h"

enum { MAX_ROWS = 20000000, MAX_COLUMNS = 4096 };

/* ---------- JSONL ---------- */

static bool is_blank(const char *p, const char *end) {
    while (p < end && (*p == ' ' || *p == '\t' || *p == '\r')) p++;
    return p == end;
}

static bool append(json_t *rows, json_t *row, const char *where, size_t line, Err *e) {
    if (!json_is_object(row)) {
        json_decref(row);
        return err_set(e, ERR_FORMAT, "%s:%zu: 一行应是一个 JSON 对象", where, line);
    }
    if (json_array_size(rows) >= MAX_ROWS) {
        json_decref(row);
        return err_set(e, ERR_FORMAT, "%s: 超过 %d 行", where, MAX_ROWS);
    }
    return json_array_append_new(rows, row) == 0 || err_set(e, ERR_MEMORY, "内存不足");
}

static bool parse_lines(json_t *rows, const char *where, const char *text, size_t len, Err *e) {
    const char *end = text + len;
    size_t line = 1;
    for (const char *p = text; p < end; line++) {
        const char *next = memchr(p, '\n', (size_t)(end - p));
        const char *stop = next ? next : end;
        if (!is_blank(p, stop)) {
            Err inner = {0};
            json_t *row = json_parse("行", p, (size_t)(stop - p), &inner);
            if (!row) return err_set(e, inner.code, "%s:%zu: %s", where, line, inner.msg);
            if (!append(rows, row, where, line, e)) return false;
        }
        p = next ? next + 1 : end;
    }
    return true;
}

json_t *task_rows_jsonl(const char *where, const char *text, size_t len, Err *e) {
    json_t *rows = json_array();
    if (!rows) {
        err_set(e, ERR_MEMORY, "内存不足");
        return NULL;
    }
    if (len >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) text += 3, len -= 3;
    if (parse_lines(rows, where, text, len, e)) return rows;
    json_decref(rows);
    return NULL;
}

/* ---------- CSV（RFC 4180） ---------- */

typedef struct Csv {
    const char *p, *end, *where;
    size_t line;
} Csv;

/* 读一格到 out；*last 为真表示这一格之后是行末。 */
static bool read_cell(Csv *c, Str *out, bool *last, Err *e) {
    bool quoted = c->p < c->end && *c->p == '"';
    size_t start = c->line;
    str_addn(out, "", 0);
    if (quoted) c->p++;
    while (c->p < c->end) {
        char ch = *c->p;
        if (quoted && ch == '"') {
            if (c->p + 1 < c->end && c->p[1] == '"') {
                c->p++;
            } else {
                quoted = false;
                c->p++;
                continue;
            }
        } else if (!quoted && (ch == ',' || ch == '\n')) {
            break;
        }
        if (ch == '\n') c->line++;
        if (quoted || ch != '\r') str_addn(out, &ch, 1);
        c->p++;
    }
    if (quoted) return err_set(e, ERR_FORMAT, "%s:%zu: 引号没有配对", c->where, start);
    *last = c->p >= c->end || *c->p == '\n';
    if (c->p < c->end) c->p++;
    if (*last) c->line++;
    return !out->failed || err_set(e, ERR_MEMORY, "内存不足");
}

/* 读一行的各格。 */
static json_t *read_record(Csv *c, Err *e) {
    json_t *cells = json_array();
    bool last = false, ok = cells != NULL || err_set(e, ERR_MEMORY, "内存不足");
    while (ok && !last) {
        Str cell = {0};
        size_t line = c->line;
        ok = read_cell(c, &cell, &last, e);
        if (ok && json_array_size(cells) >= MAX_COLUMNS)
            ok = err_set(e, ERR_FORMAT, "%s:%zu: 超过 %d 列", c->where, line, MAX_COLUMNS);
        json_t *text = ok ? json_stringn(cell.data ? cell.data : "", cell.len) : NULL;
        if (ok && !text) ok = err_set(e, ERR_FORMAT, "%s:%zu: 不是合法的 UTF-8", c->where, line);
        if (ok && json_array_append_new(cells, text) != 0) ok = err_set(e, ERR_MEMORY, "内存不足");
        str_free(&cell);
    }
    if (ok) return cells;
    json_decref(cells);
    return NULL;
}

static bool record_row(json_t *rows, const json_t *head, const json_t *cells, const Csv *c, Err *e) {
    size_t n = json_array_size(head);
    if (json_array_size(cells) == 1 && json_string_length(json_array_get(cells, 0)) == 0) return true;
    if (json_array_size(cells) != n)
        return err_set(e, ERR_FORMAT, "%s:%zu: 有 %zu 格，首行有 %zu 列", c->where, c->line - 1,
                       json_array_size(cells), n);
    json_t *row = json_object();
    for (size_t i = 0; row && i < n; i++)
        if (json_object_set(row, json_string_value(json_array_get(head, i)),
                            json_array_get(cells, i)) != 0) {
            json_decref(row);
            row = NULL;
        }
    return row ? append(rows, row, c->where, c->line, e) : err_set(e, ERR_MEMORY, "内存不足");
}

/* 十进制整数的规范写法（没有多余的 0 与 +）且不超过 15 位。 */
static bool plain_integer(const char *s) {
    if (*s == '-') s++;
    size_t n = strspn(s, "0123456789");
    return n >= 1 && n <= 15 && s[n] == '\0' && (n == 1 || s[0] != '0');
}

/* 整列都是整数的列改成整数（与 datasets 读 CSV 时的推断相同）。 */
static bool type_columns(json_t *rows, const json_t *head, Err *e) {
    for (size_t k = 0; k < json_array_size(head); k++) {
        const char *key = json_string_value(json_array_get(head, k));
        bool ints = json_array_size(rows) > 0;
        for (size_t i = 0; ints && i < json_array_size(rows); i++)
            ints = plain_integer(json_string_value(json_object_get(json_array_get(rows, i), key)));
        for (size_t i = 0; ints && i < json_array_size(rows); i++) {
            json_t *row = json_array_get(rows, i);
            long long v = strtoll(json_string_value(json_object_get(row, key)), NULL, 10);
            if (json_object_set_new(row, key, json_integer(v)) != 0)
                return err_set(e, ERR_MEMORY, "内存不足");
        }
    }
    return true;
}

/* 首行的列名不得相同：否则一行里后一格会悄悄盖掉前一格。 */
static bool unique_columns(const json_t *head, const char *where, Err *e) {
    json_t *seen = json_object();
    bool ok = seen != NULL || err_set(e, ERR_MEMORY, "内存不足");
    for (size_t k = 0; ok && k < json_array_size(head); k++) {
        const char *name = json_string_value(json_array_get(head, k));
        if (json_object_get(seen, name))
            ok = err_set(e, ERR_FORMAT, "%s:1: 有两列都叫 '%.80s'", where, name);
        else if (json_object_set_new(seen, name, json_true()) != 0)
            ok = err_set(e, ERR_MEMORY, "内存不足");
    }
    json_decref(seen);
    return ok;
}

json_t *task_rows_csv(const char *where, const char *text, size_t len, Err *e) {
    if (len >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) text += 3, len -= 3;
    Csv c = {.p = text, .end = text + len, .where = where, .line = 1};
    json_t *rows = json_array(), *head = rows ? read_record(&c, e) : NULL;
    bool ok = head ? unique_columns(head, where, e)
                   : !rows && err_set(e, ERR_MEMORY, "内存不足");
    while (ok && c.p < c.end) {
        json_t *cells = read_record(&c, e);
        ok = cells && record_row(rows, head, cells, &c, e);
        json_decref(cells);
    }
    ok = ok && type_columns(rows, head, e);
    json_decref(head);
    if (ok) return rows;
    json_decref(rows);
    return NULL;
}
