/* task_data — 找到、读入任务的数据文件 */
#include "tasks/task_data.h"

#include <stdlib.h>
#include <string.h>

#include "io/file.h"

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

/* ---------- 找文件 ---------- */

static const char *const SUFFIXES[] = {".jsonl", ".json", ".csv"};

/* 依次试的位置；找到则 *found，都没有时 tried 是试过的（供错误信息）。 */
typedef struct Search {
    Arena *a;
    const char *data_dir, *split;
    const char *found;
    Str tried;
} Search;

static bool try_folder(Search *s, const char *folder, Err *e) {
    if (s->found) return true;
    str_addf(&s->tried, "%s%s/%s", s->tried.len ? "、" : "", folder, s->split);
    for (size_t i = 0; i < sizeof SUFFIXES / sizeof *SUFFIXES; i++) {
        char *path = arena_printf(s->a, e, "%s/raw/tasks/%s/%s%s", s->data_dir, folder, s->split,
                                  SUFFIXES[i]);
        if (!path) return false;
        if (file_exists(path) && !file_is_dir(path)) {
            s->found = path;
            return true;
        }
    }
    return true;
}

static bool safe_part(const char *s) {
    return s && *s && *s != '/' && !strstr(s, "..");
}

static bool find_split(Search *s, const char *task, const json_t *config, Err *e) {
    const char *path = json_string_value(json_object_get(config, "dataset_path"));
    const char *name = json_string_value(json_object_get(config, "dataset_name"));
    if (!safe_part(task) || (path && !safe_part(path)) || (name && !safe_part(name)))
        return err_set(e, ERR_CONFIG, "任务 %s 的 dataset_path、dataset_name 不能含 '..' 或以 / 开头", task);
    if (!try_folder(s, task, e)) return false;
    const char *slash = path ? strrchr(path, '/') : NULL, *last = slash ? slash + 1 : path;
    const char *bases[2] = {path, last};
    for (int i = 0; i < 2 && path; i++) {
        const char *folder = name ? arena_printf(s->a, e, "%s/%s", bases[i], name) : bases[i];
        if (!folder || !try_folder(s, folder, e)) return false;
    }
    return true;
}

/* dataset_kwargs.data_files：{划分: 文件} 或一个文件（算作 train，与 datasets 相同）。相对数据文件夹。 */
static bool data_file(Search *s, const json_t *config, Err *e) {
    const json_t *files = json_object_get(json_object_get(config, "dataset_kwargs"), "data_files");
    const json_t *v = json_is_string(files) ? strcmp(s->split, "train") == 0 ? files : NULL
                                            : json_object_get(files, s->split);
    const char *file = json_string_value(v);
    if (!file) return true;
    char *path = file_join(s->a, s->data_dir, file, e);
    if (!path) return false;
    str_addf(&s->tried, "%s", path);
    if (file_exists(path) && !file_is_dir(path)) s->found = path;
    return true;
}

static bool missing(const Search *s, const char *task, const json_t *config, Err *e) {
    const char *path = json_string_value(json_object_get(config, "dataset_path"));
    const char *name = json_string_value(json_object_get(config, "dataset_name"));
    return err_set(
        e, ERR_MISSING,
        "任务 %s 缺少数据（划分 %s）。在 %s/raw/tasks/ 下找过：%s（.jsonl、.json、.csv）。\n取得：scripts/prepare_data.sh "
        "--task %s（用 python3 的 datasets 从 Hugging Face 的 %s%s%s%s 导出；没有则先 pip install datasets，连不上先 export "
        "HF_ENDPOINT=https://hf-mirror.com）\n已有导出的文件（每行一个 JSON 对象，列名不变）：scripts/prepare_data.sh --task %s "
        "--from %s.jsonl",
        task, s->split, s->data_dir, s->tried.data ? s->tried.data : "", task,
        path ? path : "（任务没有写 dataset_path）", name ? "（" : "", name ? name : "", name ? "）" : "", task,
        s->split);
}

static json_t *read_rows(const char *path, const FileMap *m, Err *e) {
    const char *text = m->data ? (const char *)m->data : "";
    if (str_ends(path, ".csv")) return task_rows_csv(path, text, m->size, e);
    if (str_ends(path, ".jsonl")) return task_rows_jsonl(path, text, m->size, e);
    json_t *v = json_parse(path, text, m->size, e);
    if (!v || json_is_array(v)) return v;
    err_set(e, ERR_FORMAT, "%s: 应是对象的数组", path);
    json_decref(v);
    return NULL;
}

static bool check_rows(const TaskFile *f, Err *e) {
    size_t n = json_array_size(f->rows);
    if (n == 0) return err_set(e, ERR_FORMAT, "%s: 没有一行数据", f->path);
    for (size_t i = 0; i < n; i++)
        if (!json_is_object(json_array_get(f->rows, i)))
            return err_set(e, ERR_FORMAT, "%s: 第 %zu 个元素不是对象", f->path, i);
    return true;
}

const char *task_data_find(Arena *a, const char *data_dir, const char *name, const json_t *config,
                           const char *split, Err *e) {
    Search s = {.a = a, .data_dir = data_dir, .split = split};
    bool ok = (safe_part(split) || err_set(e, ERR_CONFIG, "任务 %s 的划分名不对", name)) &&
              data_file(&s, config, e) && (s.found || find_split(&s, name, config, e)) &&
              (s.found || missing(&s, name, config, e));
    str_free(&s.tried);
    return ok ? s.found : NULL;
}

bool task_data_open(TaskFile *f, Arena *a, const char *data_dir, const char *name,
                    const json_t *config, const char *split, Err *e) {
    *f = (TaskFile){.split = split, .path = task_data_find(a, data_dir, name, config, split, e)};
    FileMap m;
    if (!f->path || !file_map(&m, f->path, e)) return false;
    hash_bytes(m.data, m.size, f->sha256);
    f->rows = read_rows(f->path, &m, e);
    file_unmap(&m);
    if (f->rows && check_rows(f, e)) return true;
    json_decref(f->rows);
    f->rows = NULL;
    return false;
}
