/* prepare_task — lm-eval 任务的数据：复制已导出的文件，或用 python3 的 datasets 从 Hugging Face 导出
 * 程序本身不用 Python；这里只在用户要求取得数据时运行它，得到的 JSONL 与手工导出的一样核对、记下 SHA-256。 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "env_info.h"
#include "io/file.h"
#include "io/hash.h"
#include "scripts/prepare.h"
#include "tasks/task.h"

/* argv: dataset_path dataset_name 划分 输出文件；图片之类的列导不成 JSON，会报错。 */
static const char EXPORT[] =
    "import sys\n"
    "from datasets import load_dataset\n"
    "path, name, split, out = sys.argv[1:]\n"
    "load_dataset(path, name or None, split=split).to_json(out, force_ascii=False)\n";

/* name 可带子文件夹（mmlu/anatomy）。 */
static bool safe_task(const char *name) {
    static const char SAFE[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./";
    return *name && *name != '/' && !strstr(name, "..") && !name[strspn(name, SAFE)];
}

static bool check_file(const char *path, size_t *rows, char sha[HASH_HEX], Err *e) {
    FileMap m;
    if (!file_map(&m, path, e)) return false;
    const char *text = m.data ? (const char *)m.data : "";
    json_t *all = str_ends(path, ".csv") ? task_rows_csv(path, text, m.size, e)
                                         : task_rows_jsonl(path, text, m.size, e);
    hash_bytes(text, m.size, sha);
    *rows = json_array_size(all);
    bool ok = all != NULL;
    json_decref(all);
    file_unmap(&m);
    return ok && (*rows > 0 || err_set(e, ERR_FORMAT, "%s: 没有一行数据", path));
}

/* 核对 file，放到 data/raw/tasks/{name}/{base}，记下来历。 */
static bool place(Job *j, const char *name, const char *file, const char *base, const char *source,
                  Err *e) {
    char sha[HASH_HEX];
    size_t rows;
    if (!check_file(file, &rows, sha, e)) return false;
    char *dir = arena_printf(&j->arena, e, "%s/raw/tasks/%s", j->data, name);
    char *target = dir ? file_join(&j->arena, dir, base, e) : NULL;
    char *meta = arena_printf(&j->arena, e, "task-%s-%s", name, base);
    if (!target || !meta || !file_mkdirs(dir, e) || !prepare_install(j, file, target, e)) return false;
    for (char *p = meta; *p; p++)
        if (*p == '/') *p = '-';
    log_line(LOG_OK, "任务数据 %s：%zu 行，sha256 %.16s… → %s", name, rows, sha, target);
    return prepare_meta(j, meta, "task", target, sha, source, NULL, e);
}

static bool copy_file(Job *j, const char *name, Err *e) {
    const char *slash = strrchr(j->from, '/'), *base = slash ? slash + 1 : j->from;
    if (!safe_task(name)) return err_set(e, ERR_USAGE, "--task 的名字 '%s' 不对", name);
    if (!str_ends(base, ".jsonl") && !str_ends(base, ".csv"))
        return err_set(e, ERR_USAGE, "%s: 应是 .jsonl 或 .csv", j->from);
    return place(j, name, j->from, base, j->from, e);
}

/* ---------- 从 Hugging Face 导出 ---------- */

static bool check_python(Err *e) {
    if (prepare_run((const char *[]){"python3", "-c", "import datasets", NULL}) == 0) return true;
    return err_set(e, ERR_MISSING,
                   "没有 python3 的 datasets 包。安装: python3 -m pip install datasets；或自行导出 JSONL 再以 --from 给出");
}

static bool export_split(Job *j, const TaskChoice *t, const char *split, const char *tmp, Err *e) {
    const char *path = json_string_value(json_object_get(t->config, "dataset_path"));
    const char *config = json_string_value(json_object_get(t->config, "dataset_name"));
    char *base = arena_printf(&j->arena, e, "%s.jsonl", split);
    char *out = base ? file_join(&j->arena, tmp, base, e) : NULL;
    char *source = arena_printf(&j->arena, e, "Hugging Face datasets: %s %s %s", path ? path : "",
                                config ? config : "", split);
    if (!out || !source) return false;
    if (!path || !safe_task(split))
        return err_set(e, ERR_UNSUPPORTED, "任务 %s 没有写 dataset_path，或划分名不对，不能自动取得", t->name);
    log_line(LOG_LOAD, "%s：导出 %s%s%s 的 %s", t->name, path, config ? " / " : "", config ? config : "",
             split);
    int rc = prepare_run((const char *[]){"python3", "-c", EXPORT, path, config ? config : "", split,
                                          out, NULL});
    if (!interrupt_check(e)) return false;
    if (rc != 0)
        return err_set(e, ERR_IO, "任务 %s：导出 %s 的 %s 失败（退出码 %d，原因见上）；连不上 Hugging Face 时先 export "
                       "HF_ENDPOINT=https://hf-mirror.com", t->name, path, split, rc);
    return place(j, t->name, out, base, source, e);
}

/* 一个任务还缺的划分。 */
static bool export_task(Job *j, const TaskChoice *t, const char *tmp, size_t *n, Err *e) {
    const char *splits[2];
    task_splits(t->config, &splits[0], &splits[1]);
    for (int i = 0; i < 2; i++) {
        Err missing = {0};
        if (!splits[i] || (i && splits[0] && strcmp(splits[0], splits[1]) == 0)) continue;
        if (task_data_find(&j->arena, j->data, t->name, t->config, splits[i], &missing)) continue;
        if (missing.code != ERR_MISSING) return err_set(e, missing.code, "%s", missing.msg);
        if (*n == 0 && !check_python(e)) return false;
        if (!export_split(j, t, splits[i], tmp, e)) return false;
        ++*n;
    }
    return true;
}

static bool export_all(Job *j, const char *name, Err *e) {
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
    for (size_t i = 0; ok && i < s.n_tasks; i++) ok = export_task(j, &s.tasks[i], tmp, &n, e);
    if (ok)
        log_line(LOG_OK, n ? "%s：%zu 个任务的数据齐了（新取得 %zu 个文件）" : "%s：%zu 个任务的数据都已经有了", name,
                 s.n_tasks, n);
    task_select_free(&s);
    task_index_close(&index);
    prepare_remove_tree(tmp);
    return ok;
}

bool prepare_task(Job *j, const char *name, Err *e) {
    return j->from ? copy_file(j, name, e) : export_all(j, name, e);
}
