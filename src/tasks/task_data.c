/* task_data — 找到、读入任务的数据文件 */
#include "tasks/task_data.h"

#include <stdlib.h>
#include <string.h>

#include "io/file.h"
#include "io/parquet.h"

/* ---------- 找文件 ---------- */

static const char *const SUFFIXES[] = {".jsonl", ".json", ".csv", ".parquet"};
enum { N_SUFFIXES = sizeof SUFFIXES / sizeof *SUFFIXES, MAX_PARTS = 10000 };

/* 依次试的位置；找到则 found（一个或几个文件），都没有时 tried 是试过的（供错误信息）。 */
typedef struct Search {
    Arena *a;
    const char *data_dir, *split;
    const char **found;
    size_t n_found;
    Str tried;
} Search;

static bool take_file(Search *s, const char *path, Err *e) {
    if (!path || !(s->found = ARENA_ARRAY(s->a, const char *, 1, e))) return false;
    s->found[s->n_found++] = path;
    return true;
}

/* 分片的名字: 划分-00000-of-00002.parquet（旧的还带 -散列）。返回: 不是这个划分的分片为假。 */
static bool parse_part(const char *name, const char *split, const char *suffix, long *k, long *n) {
    size_t len = strlen(split);
    char *end;
    if (strncmp(name, split, len) != 0 || name[len] != '-') return false;
    *k = strtol(name + len + 1, &end, 10);
    if (end == name + len + 1 || strncmp(end, "-of-", 4) != 0) return false;
    *n = strtol(end + 4, &end, 10);
    return *k >= 0 && *n > 0 && *n <= MAX_PARTS && *k < *n && (*end == '-' || strcmp(end, suffix) == 0);
}

/* 文件夹里的分片：按序号排好，须一个不缺、一个不重。 */
static bool take_parts(Search *s, const char *dir, const char *suffix, Err *e) {
    char **names;
    size_t n_names = 0;
    long k, n, total = 0;
    if (!file_list(s->a, dir, suffix, &names, &n_names, e)) return false;
    for (size_t i = 0; i < n_names; i++) {
        if (!parse_part(names[i], s->split, suffix, &k, &n)) continue;
        if (!total && !(s->found = ARENA_ARRAY(s->a, const char *, n, e))) return false;
        if (!total) total = n;
        if (n != total || s->found[k])
            return err_set(e, ERR_FORMAT, "%s: 划分 %s 的分片有两套（%s）", dir, s->split, names[i]);
        if (!(s->found[k] = file_join(s->a, dir, names[i], e))) return false;
        s->n_found++;
    }
    for (k = 0; k < total; k++)
        if (!s->found[k])
            return err_set(e, ERR_MISSING, "%s: 划分 %s 缺第 %ld 个分片（共 %ld 个）", dir, s->split, k, total);
    return true;
}

/* Hub 自动转换的布局：划分/0000.parquet、0001.parquet…。 */
static bool take_folder(Search *s, const char *dir, Err *e) {
    char **names;
    size_t n = 0;
    if (!file_is_dir(dir)) return true;
    if (!file_list(s->a, dir, ".parquet", &names, &n, e)) return false;
    if (n && !(s->found = ARENA_ARRAY(s->a, const char *, n, e))) return false;
    for (; s->n_found < n; s->n_found++)
        if (!(s->found[s->n_found] = file_join(s->a, dir, names[s->n_found], e))) return false;
    return true;
}

static bool try_folder(Search *s, const char *folder, Err *e) {
    if (s->n_found) return true;
    str_addf(&s->tried, "%s%s/%s", s->tried.len ? "、" : "", folder, s->split);
    const char *dir = arena_printf(s->a, e, "%s/raw/tasks/%s", s->data_dir, folder);
    const char *inner = dir ? arena_printf(s->a, e, "%s/%s", dir, s->split) : NULL;
    if (!inner) return false;
    for (int i = 0; i < N_SUFFIXES; i++) {
        const char *path = arena_printf(s->a, e, "%s%s", inner, SUFFIXES[i]);
        if (!path) return false;
        if (file_exists(path) && !file_is_dir(path)) return take_file(s, path, e);
    }
    for (int i = 0; i < N_SUFFIXES && !s->n_found && file_is_dir(dir); i++)
        if (!take_parts(s, dir, SUFFIXES[i], e)) return false;
    return s->n_found || take_folder(s, inner, e);
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
    return !file_exists(path) || file_is_dir(path) || take_file(s, path, e);
}

static bool missing(const Search *s, const char *task, const json_t *config, Err *e) {
    const char *path = json_string_value(json_object_get(config, "dataset_path"));
    const char *name = json_string_value(json_object_get(config, "dataset_name"));
    return err_set(
        e, ERR_MISSING,
        "任务 %s 缺少数据（划分 %s）。在 %s/raw/tasks/ 下找过：%s（.jsonl、.json、.csv、.parquet）。\n取得：scripts/prepare_data.sh "
        "--task %s（从 Hugging Face Hub 的数据集 %s%s%s%s 下载；连不上先 export HF_ENDPOINT=https://hf-mirror.com）\n"
        "已有文件（JSONL、CSV、Parquet，列名不变）：scripts/prepare_data.sh --task %s --from %s.jsonl",
        task, s->split, s->data_dir, s->tried.data ? s->tried.data : "", task,
        path ? path : "（任务没有写 dataset_path）", name ? "（" : "", name ? name : "", name ? "）" : "", task,
        s->split);
}

/* ---------- 读 ---------- */

static json_t *read_rows(const char *path, const FileMap *m, Err *e) {
    const char *text = m->data ? (const char *)m->data : "";
    if (str_ends(path, ".parquet")) return parquet_rows(path, text, m->size, PARQUET_MEMORY, e);
    if (str_ends(path, ".csv")) return task_rows_csv(path, text, m->size, e);
    size_t blank = 0;
    while (blank < m->size && strchr(" \t\r\n", text[blank])) blank++;
    if (str_ends(path, ".jsonl") || (blank < m->size && text[blank] == '{')) /* .json 也常是一行一个对象 */
        return task_rows_jsonl(path, text, m->size, e);
    json_t *v = json_parse(path, text, m->size, e);
    if (!v || json_is_array(v)) return v;
    err_set(e, ERR_FORMAT, "%s: 应是对象的数组", path);
    json_decref(v);
    return NULL;
}

static bool check_rows(const char *path, const json_t *rows, Err *e) {
    size_t n = json_array_size(rows);
    if (n == 0) return err_set(e, ERR_FORMAT, "%s: 没有一行数据", path);
    for (size_t i = 0; i < n; i++)
        if (!json_is_object(json_array_get(rows, i)))
            return err_set(e, ERR_FORMAT, "%s: 第 %zu 个元素不是对象", path, i);
    return true;
}

json_t *task_rows_file(const char *path, Hash *hash, Err *e) {
    FileMap m;
    if (!file_map(&m, path, e)) return NULL;
    if (hash) hash_add(hash, m.data, m.size);
    json_t *rows = read_rows(path, &m, e);
    file_unmap(&m);
    if (rows && check_rows(path, rows, e)) return rows;
    json_decref(rows);
    return NULL;
}

static bool find_files(Search *s, Arena *a, const char *data_dir, const char *name,
                       const json_t *config, const char *split, Err *e) {
    *s = (Search){.a = a, .data_dir = data_dir, .split = split};
    bool ok = (safe_part(split) || err_set(e, ERR_CONFIG, "任务 %s 的划分名不对", name)) &&
              data_file(s, config, e) && (s->n_found || find_split(s, name, config, e)) &&
              (s->n_found || missing(s, name, config, e));
    str_free(&s->tried);
    return ok;
}

const char *task_data_find(Arena *a, const char *data_dir, const char *name, const json_t *config,
                           const char *split, Err *e) {
    Search s;
    return find_files(&s, a, data_dir, name, config, split, e) ? s.found[0] : NULL;
}

bool task_data_open(TaskFile *f, Arena *a, const char *data_dir, const char *name,
                    const json_t *config, const char *split, Err *e) {
    Search s;
    *f = (TaskFile){.split = split};
    if (!find_files(&s, a, data_dir, name, config, split, e)) return false;
    f->path = s.found[0];
    Hash *hash = hash_new();
    bool ok = hash != NULL || err_set(e, ERR_MEMORY, "内存不足");
    for (size_t i = 0; ok && i < s.n_found; i++) {
        json_t *rows = task_rows_file(s.found[i], hash, e);
        ok = rows && (!f->rows || json_array_extend(f->rows, rows) == 0 || err_set(e, ERR_MEMORY, "内存不足"));
        if (ok && !f->rows)
            f->rows = rows;
        else
            json_decref(rows);
    }
    if (hash) hash_end(hash, f->sha256);
    if (ok) return true;
    json_decref(f->rows);
    f->rows = NULL;
    return false;
}
