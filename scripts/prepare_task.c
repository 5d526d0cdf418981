/* prepare_task — lm-eval 任务的数据：复制已有的文件，或从 Hugging Face Hub 取得还缺的划分
 * 下载的经 Hub 的缓存（核对散列），再放到 data/raw/tasks/；版本（提交）与 SHA-256 记进来历。 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "env_info.h"
#include "io/file.h"
#include "io/hash.h"
#include "io/hub.h"
#include "scripts/prepare.h"
#include "tasks/task.h"

/* name 可带子文件夹（mmlu/anatomy）。 */
static bool safe_task(const char *name) {
    static const char SAFE[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./";
    return *name && *name != '/' && !strstr(name, "..") && !name[strspn(name, SAFE)];
}

/* 核对 file，复制到 data/raw/tasks/{name}/{base}，记下来历。 */
static bool place(Job *j, const char *name, const char *file, const char *base, const char *source,
                  Err *e) {
    char sha[HASH_HEX];
    Hash *hash = hash_new();
    json_t *rows = hash ? task_rows_file(file, hash, e) : NULL;
    size_t n = json_array_size(rows);
    json_decref(rows);
    if (!hash) return err_set(e, ERR_MEMORY, "内存不足");
    hash_end(hash, sha);
    if (!rows) return false;
    char *dir = arena_printf(&j->arena, e, "%s/raw/tasks/%s", j->data, name);
    char *target = dir ? file_join(&j->arena, dir, base, e) : NULL;
    char *meta = arena_printf(&j->arena, e, "task-%s-%s", name, base);
    if (!target || !meta || !file_mkdirs(dir, e) || !prepare_copy(file, target, e)) return false;
    for (char *p = meta; *p; p++)
        if (*p == '/') *p = '-';
    log_line(LOG_OK, "任务数据 %s：%zu 行，sha256 %.16s… → %s", name, n, sha, target);
    return prepare_meta(j, meta, "task", target, sha, source, NULL, e);
}

static const char *suffix_of(const char *file) {
    static const char *const KNOWN[] = {".jsonl", ".json", ".csv", ".parquet"};
    for (size_t i = 0; i < sizeof KNOWN / sizeof *KNOWN; i++)
        if (str_ends(file, KNOWN[i])) return KNOWN[i];
    return NULL;
}

static bool copy_file(Job *j, const char *name, Err *e) {
    const char *slash = strrchr(j->from, '/'), *base = slash ? slash + 1 : j->from;
    if (!safe_task(name)) return err_set(e, ERR_USAGE, "--task 的名字 '%s' 不对", name);
    if (!suffix_of(base)) return err_set(e, ERR_USAGE, "%s: 应是 .jsonl、.json、.csv 或 .parquet", j->from);
    return place(j, name, j->from, base, j->from, e);
}

/* ---------- 从 Hub 取得 ---------- */

/* 缓存里的各文件 → 划分.parquet，几个时是 划分-00000-of-00002.parquet。 */
static bool take_files(Job *j, const char *task, const HubSplit *s, const HubSplitFiles *f, Err *e) {
    for (size_t i = 0; i < f->n; i++) {
        const char *suffix = suffix_of(f->paths[i]), *at = strstr(f->paths[i], "/snapshots/");
        char *base = f->n == 1 ? arena_printf(&j->arena, e, "%s%s", s->split, suffix)
                               : arena_printf(&j->arena, e, "%s-%05zu-of-%05zu%s", s->split, i, f->n, suffix);
        char *source = arena_printf(&j->arena, e, "Hugging Face Hub: datasets/%s@%s（%s）%s", s->id, f->commit,
                                    f->from, strchr(at + strlen("/snapshots/"), '/'));
        if (!base || !source || !place(j, task, f->paths[i], base, source, e)) return false;
    }
    return true;
}

static bool take_rows(Job *j, const char *task, const HubOptions *o, const HubSplit *s, const char *tmp, Err *e) {
    char revision[41];
    Str text = {0};
    char *base = arena_printf(&j->arena, e, "%s.jsonl", s->split);
    char *file = base ? file_join(&j->arena, tmp, base, e) : NULL;
    bool ok = file && hub_dataset_rows(o, &j->arena, s, &text, revision, e) &&
              file_write_atomic(file, text.data ? text.data : "", text.len, e);
    char *source = ok ? arena_printf(&j->arena, e, "datasets-server rows: %s %s %s @%s", s->id,
                                     s->config ? s->config : "default", s->split,
                                     *revision ? revision : "（没有给出版本）") : NULL;
    str_free(&text);
    return source && place(j, task, file, base, source, e);
}

static bool obtain_split(Job *j, const TaskChoice *t, const char *split, const char *tmp, Err *e) {
    const json_t *kwargs = json_object_get(t->config, "dataset_kwargs");
    HubSplit s = {.id = json_string_value(json_object_get(t->config, "dataset_path")),
                  .config = json_string_value(json_object_get(t->config, "dataset_name")),
                  .revision = json_string_value(json_object_get(kwargs, "revision")), .split = split};
    HubOptions o;
    HubSplitFiles files;
    if (!s.id || !safe_task(split))
        return err_set(e, ERR_UNSUPPORTED, "任务 %s 没有写 dataset_path，或划分名不对，不能自动取得", t->name);
    if (!hub_options(&o, &j->arena, e)) return false;
    log_line(LOG_LOAD, "%s：从 %s 取得数据集 %s%s%s 的 %s", t->name, o.endpoint, s.id, s.config ? " / " : "",
             s.config ? s.config : "", split);
    bool ok = j->rows ? take_rows(j, t->name, &o, &s, tmp, e)
                      : hub_dataset(&o, &j->arena, &s, &files, e) && take_files(j, t->name, &s, &files, e);
    return ok || err_wrap(e, "任务 %s", t->name);
}

/* 一个任务还缺的划分。 */
static bool obtain_task(Job *j, const TaskChoice *t, const char *tmp, size_t *n, Err *e) {
    const char *splits[2];
    task_splits(t->config, &splits[0], &splits[1]);
    for (int i = 0; i < 2; i++) {
        Err missing = {0};
        if (!splits[i] || (i && splits[0] && strcmp(splits[0], splits[1]) == 0)) continue;
        if (task_data_find(&j->arena, j->data, t->name, t->config, splits[i], &missing)) continue;
        if (missing.code != ERR_MISSING) return err_set(e, missing.code, "%s", missing.msg);
        if (!obtain_split(j, t, splits[i], tmp, e)) return false;
        ++*n;
    }
    return true;
}

static bool obtain_all(Job *j, const char *name, Err *e) {
    TaskIndex index;
    TaskSelection s = {0};
    size_t n = 0;
    const char *dir = file_join(&j->arena, env_project_root(), "configs/tasks", e);
    char *home = arena_printf(&j->arena, e, "%s/raw", j->data);
    char *tmp = home ? arena_printf(&j->arena, e, "%s/.download-XXXXXX", home) : NULL;
    if (!dir || !tmp || !file_mkdirs(home, e) || !task_index_open(&index, dir, e)) return false;
    if (!mkdtemp(tmp)) {
        task_index_close(&index);
        return err_set(e, ERR_IO, "建不了临时文件夹 %s: %s", tmp, strerror(errno));
    }
    bool ok = task_select(&s, &index, &j->arena, &name, 1, e);
    for (size_t i = 0; ok && i < s.n_tasks; i++) ok = obtain_task(j, &s.tasks[i], tmp, &n, e);
    if (ok)
        log_line(LOG_OK, n ? "%s：%zu 个任务的数据齐了（新取得 %zu 个文件）" : "%s：%zu 个任务的数据都已经有了", name,
                 s.n_tasks, n);
    task_select_free(&s);
    task_index_close(&index);
    prepare_remove_tree(tmp);
    return ok;
}

bool prepare_task(Job *j, const char *name, Err *e) {
    return j->from ? copy_file(j, name, e) : obtain_all(j, name, e);
}
