/* task_config — 任务文件的读入与选取 */
#include "tasks/task_config.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "io/file.h"
#include "io/yaml.h"

enum { MAX_DEPTH = 8, MAX_CHOICES = 16384, NEAR = 3 };

/* ---------- YAML → JSON ---------- */

/* file 所在文件夹的末段：a/hellaswag/hellaswag.yaml → hellaswag。 */
static char *folder_of(Arena *a, const char *file, Err *e) {
    const char *end = strrchr(file, '/');
    if (!end) return arena_strdup(a, "", e);
    const char *start = end;
    while (start > file && start[-1] != '/') start--;
    return arena_strndup(a, start, (size_t)(end - start), e);
}

static json_t *to_json(const YamlNode *v, const char *folder) {
    switch (v->kind) {
    case YAML_NULL: return json_null();
    case YAML_BOOL: return json_boolean(v->boolean);
    case YAML_INT: return json_integer(v->integer);
    case YAML_FLOAT: return json_real(v->number);
    case YAML_STR: break;
    case YAML_LIST:
    case YAML_MAP: {
        json_t *all = v->kind == YAML_MAP ? json_object() : json_array();
        for (size_t i = 0; all && i < v->n; i++) {
            json_t *item = to_json(v->items[i], folder);
            int rc = v->kind == YAML_MAP ? json_object_set_new(all, v->keys[i], item)
                                         : json_array_append_new(all, item);
            if (rc != 0) {
                json_decref(all);
                return NULL;
            }
        }
        return all;
    }
    }
    if (!v->function) return json_string(v->text);
    return json_pack("{s:s++}", "!function", folder, "/", v->text);
}

static json_t *load_config(Arena *a, const char *path, int depth, Err *e);

/* 把 include（一个名字或一列）依次合并进 base。 */
static bool merge_includes(Arena *a, json_t *base, const YamlNode *inc, const char *path, int depth,
                           Err *e) {
    const char *slash = strrchr(path, '/');
    char *dir = arena_strndup(a, path, slash ? (size_t)(slash - path) : 0, e);
    size_t n = inc->kind == YAML_LIST ? inc->n : 1;
    if (!dir) return false;
    for (size_t i = 0; i < n; i++) {
        const YamlNode *name = inc->kind == YAML_LIST ? inc->items[i] : inc;
        if (name->kind != YAML_STR)
            return err_set(e, ERR_CONFIG, "%s:%d: include 要写文件名", path, name->line);
        char *file = slash ? file_join(a, dir, name->text, e) : arena_strdup(a, name->text, e);
        json_t *part = file ? load_config(a, file, depth + 1, e) : NULL;
        if (!part) return err_wrap(e, "%s:%d", path, name->line);
        int rc = json_object_update(base, part);
        json_decref(part);
        if (rc) return err_set(e, ERR_MEMORY, "内存不足");
    }
    return true;
}

static json_t *load_config(Arena *a, const char *path, int depth, Err *e) {
    if (depth > MAX_DEPTH) {
        err_set(e, ERR_CONFIG, "%s: include 超过 %d 层（是否互相包含？）", path, MAX_DEPTH);
        return NULL;
    }
    YamlNode *y = yaml_load_task(a, path, e);
    if (!y) return NULL;
    if (y->kind != YAML_MAP) {
        err_set(e, ERR_CONFIG, "%s: 任务文件应是 键: 值", path);
        return NULL;
    }
    char *folder = folder_of(a, path, e);
    json_t *base = json_object(), *own = folder ? to_json(y, folder) : NULL;
    YamlNode *inc = yaml_get(y, "include");
    bool ok = base && own;
    if (!ok && folder) err_set(e, ERR_MEMORY, "内存不足");
    if (ok && inc) ok = merge_includes(a, base, inc, path, depth, e);
    if (ok) {
        json_object_del(own, "include");
        ok = json_object_update(base, own) == 0 || err_set(e, ERR_MEMORY, "内存不足");
    }
    json_decref(own);
    if (ok) return base;
    json_decref(base);
    return NULL;
}

json_t *task_config_load(const char *path, Err *e) {
    Arena a = {0};
    json_t *v = load_config(&a, path, 0, e);
    arena_free(&a);
    return v;
}

/* ---------- 索引 ---------- */

typedef struct Files {
    char **paths;
    size_t n, cap;
} Files;

static bool add_path(Files *f, char *path, Err *e) {
    if (f->n == f->cap) {
        size_t cap = f->cap ? 2 * f->cap : 256;
        char **grown = realloc(f->paths, cap * sizeof *grown);
        if (!grown) return err_set(e, ERR_MEMORY, "内存不足");
        f->paths = grown;
        f->cap = cap;
    }
    f->paths[f->n++] = path;
    return true;
}

static bool collect(Arena *a, Files *f, const char *dir, int depth, Err *e) {
    char **names;
    size_t n;
    if (!file_list(a, dir, "", &names, &n, e)) return false;
    for (size_t i = 0; i < n; i++) {
        char *path = file_join(a, dir, names[i], e);
        if (!path) return false;
        if (file_is_dir(path)) {
            if (depth < MAX_DEPTH && !collect(a, f, path, depth + 1, e)) return false;
        } else if (str_ends(path, ".yaml") && !add_path(f, path, e)) {
            return false;
        }
    }
    return true;
}

static int by_name(const void *a, const void *b) {
    const TaskEntry *x = a, *y = b;
    int c = strcmp(x->name, y->name);
    return c ? c : strcmp(x->file, y->file);
}

/* 读一个文件；不是任务也不是组（只供 include）的不进索引。 */
static bool add_entry(TaskIndex *x, char *path, Err *e) {
    Err bad = {0};
    json_t *config = task_config_load(path, &bad);
    if (!config && bad.code == ERR_MEMORY) return err_set(e, ERR_MEMORY, "%s", bad.msg);
    if (!config) {
        log_line(LOG_WARN, "跳过任务文件：%s", bad.msg);
        return true;
    }
    const char *group = json_string_value(json_object_get(config, "group"));
    const char *name = group ? group : json_string_value(json_object_get(config, "task"));
    if (!name) {
        json_decref(config);
        return true;
    }
    x->entries[x->n] = (TaskEntry){.name = arena_strdup(&x->arena, name, e), .file = path,
                                   .is_group = group != NULL, .config = config};
    return x->entries[x->n++].name != NULL;
}

bool task_index_open(TaskIndex *x, const char *dir, Err *e) {
    *x = (TaskIndex){0};
    Files f = {0};
    bool ok = collect(&x->arena, &f, dir, 0, e);
    if (ok) {
        x->entries = ARENA_ARRAY(&x->arena, TaskEntry, f.n, e);
        ok = x->entries != NULL;
    }
    for (size_t i = 0; ok && i < f.n; i++) ok = add_entry(x, f.paths[i], e);
    free(f.paths);
    if (!ok) {
        task_index_close(x);
        return false;
    }
    qsort(x->entries, x->n, sizeof *x->entries, by_name);
    for (size_t i = 1; i < x->n; i++)
        if (strcmp(x->entries[i - 1].name, x->entries[i].name) == 0)
            log_line(LOG_WARN, "任务 '%s' 有两个文件：%s 与 %s，取前者", x->entries[i].name,
                     x->entries[i - 1].file, x->entries[i].file);
    return true;
}

void task_index_close(TaskIndex *x) {
    for (size_t i = 0; i < x->n; i++) json_decref(x->entries[i].config);
    arena_free(&x->arena);
    *x = (TaskIndex){0};
}

const TaskEntry *task_index_find(const TaskIndex *x, const char *name) {
    for (size_t i = 0; i < x->n; i++)
        if (strcmp(x->entries[i].name, name) == 0) return &x->entries[i];
    return NULL;
}

/* ---------- 选取 ---------- */

typedef struct Selector {
    TaskSelection *s;
    const TaskIndex *x;
    Arena *a;
} Selector;

static bool has_tag(const json_t *config, const char *tag) {
    const json_t *t = json_object_get(config, "tag");
    if (json_is_string(t)) return strcmp(json_string_value(t), tag) == 0;
    for (size_t i = 0; i < json_array_size(t); i++) {
        const char *one = json_string_value(json_array_get(t, i));
        if (one && strcmp(one, tag) == 0) return true;
    }
    return false;
}

static bool unknown_task(const TaskIndex *x, const char *name, Err *e) {
    Arena a = {0};
    size_t n = 0;
    const char **names = ARENA_ARRAY(&a, const char *, 2 * x->n + 1, NULL);
    for (size_t i = 0; names && i < x->n; i++) {
        const char *tag = json_string_value(json_object_get(x->entries[i].config, "tag"));
        names[n++] = x->entries[i].name;
        if (tag) names[n++] = tag;
    }
    Str near = {0};
    for (size_t k = 0; names && k < NEAR; k++) { /* 最近的几个，找到一个去掉一个 */
        const char *one = str_nearest(name, names, n);
        for (size_t i = 0; !one && i < n; i++) /* 少写了前后缀：ceval → ceval-valid */
            if (str_starts(names[i], name)) one = names[i];
        if (!one) break;
        str_addf(&near, "%s'%s'", near.len ? "、" : "", one);
        size_t kept = 0;
        for (size_t i = 0; i < n; i++)
            if (strcmp(names[i], one) != 0) names[kept++] = names[i];
        n = kept;
    }
    err_set(e, ERR_CONFIG, "没有任务 '%s'%s%s。原生的任务: ptq-bench list tasks；"
            "lm-eval 的其他任务经 lm_eval 评测（没有装的话先 pip install \"lm_eval[api]\"）", name,
            near.len ? "，是否想写 " : "", near.len ? near.data : "");
    str_free(&near);
    arena_free(&a);
    return false;
}

/* 记一个叶子，并登记到正在展开的各层组 [first_group, n_groups) 中标为 open 的那些。 */
static bool add_leaf(Selector *c, const char *name, const char *file, json_t *config, bool owned,
                     const size_t *open, size_t n_open, Err *e) {
    TaskSelection *s = c->s;
    size_t i = 0;
    while (i < s->n_tasks && strcmp(s->tasks[i].name, name) != 0) i++;
    if (i == s->n_tasks) {
        if (i == MAX_CHOICES) {
            if (owned) json_decref(config);
            return err_set(e, ERR_CONFIG, "选中的任务超过 %d 个", MAX_CHOICES);
        }
        s->tasks[s->n_tasks++] = (TaskChoice){.name = name, .file = file, .config = config,
                                              .owned = owned};
    } else if (owned) {
        json_decref(config);
    }
    for (size_t k = 0; k < n_open; k++) {
        GroupChoice *g = &s->groups[open[k]];
        bool seen = false;
        for (size_t j = 0; j < g->n_leaves; j++) seen = seen || g->leaves[j] == i;
        if (!seen) g->leaves[g->n_leaves++] = i;
    }
    return true;
}

static bool select_name(Selector *c, const char *name, const size_t *open, size_t n_open, Err *e);

static bool select_group(Selector *c, const char *name, const json_t *config, const size_t *open,
                         size_t n_open, Err *e);

/* 组成员：名字，或 {task: 名字, 改动…}、{group: 名字, task: […]}。 */
static bool select_member(Selector *c, json_t *m, const size_t *open, size_t n_open, Err *e) {
    if (json_is_string(m)) return select_name(c, json_string_value(m), open, n_open, e);
    const char *group = json_string_value(json_object_get(m, "group"));
    if (group) return select_group(c, group, m, open, n_open, e);
    const char *task = json_string_value(json_object_get(m, "task"));
    const TaskEntry *base = task ? task_index_find(c->x, task) : NULL;
    if (!task) return err_set(e, ERR_CONFIG, "组的成员应是名字或 {task: 名字, …}");
    if (!base) return unknown_task(c->x, task, e);
    json_t *merged = json_copy(base->config);
    if (!merged || json_object_update(merged, m) != 0) {
        json_decref(merged);
        return err_set(e, ERR_MEMORY, "内存不足");
    }
    return add_leaf(c, base->name, base->file, merged, true, open, n_open, e);
}

static bool select_group(Selector *c, const char *name, const json_t *config, const size_t *open,
                         size_t n_open, Err *e) {
    if (n_open >= MAX_DEPTH)
        return err_set(e, ERR_CONFIG, "组 '%s' 套了超过 %d 层（是否成环？）", name, MAX_DEPTH);
    TaskSelection *s = c->s;
    if (s->n_groups == MAX_CHOICES) return err_set(e, ERR_CONFIG, "选中的组过多");
    size_t inner[MAX_DEPTH + 1], *leaves = ARENA_ARRAY(c->a, size_t, c->x->n + 1, e);
    if (!leaves) return false;
    if (n_open) memcpy(inner, open, n_open * sizeof *open);
    inner[n_open] = s->n_groups;
    s->groups[s->n_groups++] = (GroupChoice){.name = name, .config = config, .leaves = leaves,
                                             .depth = (int)n_open};
    json_t *members = json_object_get(config, "task");
    if (json_is_string(members)) return select_member(c, members, inner, n_open + 1, e);
    for (size_t i = 0; i < json_array_size(members); i++)
        if (!select_member(c, json_array_get(members, i), inner, n_open + 1, e))
            return err_wrap(e, "组 %s", name);
    return true;
}

static bool select_name(Selector *c, const char *name, const size_t *open, size_t n_open, Err *e) {
    const TaskEntry *t = task_index_find(c->x, name);
    if (t && t->is_group) return select_group(c, t->name, t->config, open, n_open, e);
    if (t) return add_leaf(c, t->name, t->file, t->config, false, open, n_open, e);
    bool any = false;
    for (size_t i = 0; i < c->x->n; i++) {
        const TaskEntry *one = &c->x->entries[i];
        if (one->is_group || !has_tag(one->config, name)) continue;
        any = true;
        if (!add_leaf(c, one->name, one->file, one->config, false, open, n_open, e)) return false;
    }
    return any || unknown_task(c->x, name, e);
}

bool task_select(TaskSelection *s, const TaskIndex *x, Arena *a, const char *const *names, size_t n,
                 Err *e) {
    *s = (TaskSelection){0};
    s->tasks = ARENA_ARRAY(a, TaskChoice, MAX_CHOICES, e);
    s->groups = ARENA_ARRAY(a, GroupChoice, MAX_CHOICES, e);
    Selector c = {.s = s, .x = x, .a = a};
    bool ok = s->tasks && s->groups;
    for (size_t i = 0; ok && i < n; i++) ok = select_name(&c, names[i], NULL, 0, e);
    if (!ok) task_select_free(s);
    return ok;
}

void task_select_free(TaskSelection *s) {
    for (size_t i = 0; i < s->n_tasks; i++)
        if (s->tasks[i].owned) json_decref(s->tasks[i].config);
    s->n_tasks = 0;
}
