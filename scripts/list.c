/* list — 列出模型、方法、轨道、任务与全部设置
 * 内容来自 configs/ 与登记表，不另有清单；只打印到标准输出。 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "config.h"
#include "config_schema.h"
#include "env_info.h"
#include "io/file.h"
#include "registry.h"
#include "scripts/cli.h"
#include "scripts/commands.h"
#include "tasks/dataset.h"
#include "tasks/task_config.h"
#include "tasks/task_data.h"

enum { MAX_COLUMNS = 6 };

/* 对齐的文字表：先收单元格，最后按显示宽度排版。 */
typedef struct Table {
    Arena *arena;
    const char *cells[1024][MAX_COLUMNS];
    size_t n_rows, n_columns;
} Table;

static void table_row(Table *t, const char *const *cells) {
    if (t->n_rows == sizeof t->cells / sizeof *t->cells) return;
    for (size_t c = 0; c < t->n_columns; c++) {
        const char *text = cells[c] ? cells[c] : "";
        t->cells[t->n_rows][c] = arena_strdup(t->arena, text, NULL);
    }
    t->n_rows++;
}

static void table_print(const Table *t) {
    size_t width[MAX_COLUMNS] = {0};
    for (size_t i = 0; i < t->n_rows; i++)
        for (size_t c = 0; c < t->n_columns; c++) {
            size_t w = t->cells[i][c] ? str_width(t->cells[i][c]) : 0;
            if (w > width[c]) width[c] = w;
        }
    Str out = {0};
    for (size_t i = 0; i < t->n_rows; i++)
        for (size_t c = 0; c < t->n_columns; c++) {
            bool last = c + 1 == t->n_columns;
            const char *text = t->cells[i][c] ? t->cells[i][c] : "";
            str_add_padded(&out, text, last ? 0 : width[c] + 2, false);
            if (last) str_add(&out, "\n");
        }
    if (out.data && !out.failed) fputs(out.data, stdout);
    str_free(&out);
}

static const char *node_text(const YamlNode *map, const char *path) {
    const YamlNode *n = yaml_path(map, path);
    return n && n->text ? n->text : "";
}

/* 对 dir 中每个 YAML 调用 fn（坏文件点名跳过）。 */
typedef void (*EachYaml)(Table *t, const char *name, const YamlNode *y);
static bool each_yaml(Table *t, const char *dir, EachYaml fn, Err *e) {
    char **names;
    size_t n;
    char *full = file_join(t->arena, env_project_root(), dir, e);
    if (!full || !file_list(t->arena, full, ".yaml", &names, &n, e)) return false;
    for (size_t i = 0; i < n; i++) {
        Err bad = {0};
        char *path = file_join(t->arena, full, names[i], e);
        if (!path) return false;
        YamlNode *y = yaml_load(t->arena, path, &bad);
        names[i][strlen(names[i]) - strlen(".yaml")] = '\0';
        if (y)
            fn(t, names[i], y);
        else
            log_line(LOG_WARN, "%s", bad.msg);
    }
    return true;
}

static bool model_present(const char *name) {
    static const char *const OVERRIDES[] = {"trust_remote_code=false", "adapter=auto"};
    ConfigRequest r = {.root = env_project_root(), .model = name, .method = "fp16", .track = "A",
                       .overrides = OVERRIDES, .n_overrides = 2};
    Config c;
    if (!config_load(&c, &r, NULL)) return false;
    Err e = {0};
    bool found = config_model_path(&c, &e) != NULL;
    config_free(&c);
    return found;
}

static void model_row(Table *t, const char *name, const YamlNode *y) {
    table_row(t, (const char *[]){name, node_text(y, "model_id"), node_text(y, "dtype"),
                                  node_text(y, "max_seq_len"),
                                  model_present(name) ? "已在本机" : "未取得"});
}

static bool list_models(Table *t, Err *e) {
    t->n_columns = 5;
    table_row(t, (const char *[]){"名字", "model_id", "dtype", "上下文", "文件"});
    return each_yaml(t, "configs/models", model_row, e);
}

static bool list_methods(Table *t, Err *e) {
    t->n_columns = 4;
    table_row(t, (const char *[]){"名字", "轨道", "说明", "设置"});
    size_t n;
    const Method *const *all = registry_methods(&n);
    for (size_t i = 0; i < n; i++) {
        char *rel = arena_printf(t->arena, e, "configs/methods/%s.yaml", all[i]->name);
        char *path = rel ? file_join(t->arena, env_project_root(), rel, e) : NULL;
        if (!path) return false;
        Err bad = {0};
        YamlNode *y = yaml_load(t->arena, path, &bad);
        if (!y) log_line(LOG_WARN, "%s", bad.msg);
        Str keys = {0};
        for (const Option *o = all[i]->options; o && o->key; o++)
            str_addf(&keys, "%s%s", keys.len ? ", " : "", o->key);
        table_row(t, (const char *[]){all[i]->name, all[i]->tracks, node_text(y, "display_name"),
                                      keys.len ? keys.data : "—"});
        str_free(&keys);
    }
    return true;
}

static void track_row(Table *t, const char *name, const YamlNode *y) {
    Str methods = {0};
    char letter[2] = {(char)(name[strlen(name) - 1] - 'a' + 'A'), 0};
    const YamlNode *list = yaml_get(y, "methods");
    for (size_t i = 0; list && i < list->n; i++) {
        const char *m = list->items[i]->text;
        if (!m) continue;
        const Method *known = registry_find(m, NULL);
        str_addf(&methods, "%s%s%s", methods.len ? ", " : "", m, known ? "" : "（尚无）");
    }
    table_row(t, (const char *[]){letter, node_text(y, "display_name"), node_text(y, "condition"),
                                  methods.len ? methods.data : ""});
    str_free(&methods);
}

static bool list_tracks(Table *t, Err *e) {
    t->n_columns = 4;
    table_row(t, (const char *[]){"轨道", "名称", "条件", "方法"});
    return each_yaml(t, "configs/tracks", track_row, e);
}

/* 任务的评测数据是否在本机。 */
static const char *data_state(Table *t, const TaskEntry *task) {
    const json_t *c = task->config;
    const char *split = json_string_value(json_object_get(c, "test_split"));
    if (!split) split = json_string_value(json_object_get(c, "validation_split"));
    char *dir = file_join(t->arena, env_project_root(), "data", NULL);
    Err e = {0};
    return split && dir && task_data_find(t->arena, dir, task->name, c, split, &e) ? "已在本机"
                                                                                  : "未取得";
}

static bool list_tasks(Table *t, Err *e) {
    TaskIndex index;
    char *dir = file_join(t->arena, env_project_root(), "configs/tasks", e);
    if (!dir || !task_index_open(&index, dir, e)) return false;
    t->n_columns = 4;
    table_row(t, (const char *[]){"名字", "题型", "数据", "Hub 数据集"});
    for (size_t i = 0; i < index.n; i++) {
        const TaskEntry *one = &index.entries[i];
        const char *type = json_string_value(json_object_get(one->config, "output_type"));
        const char *path = json_string_value(json_object_get(one->config, "dataset_path"));
        const char *name = json_string_value(json_object_get(one->config, "dataset_name"));
        char *hub = arena_printf(t->arena, NULL, "%s%s%s", path ? path : "", name ? " " : "",
                                 name ? name : "");
        table_row(t, (const char *[]){one->name, one->is_group ? "组" : type ? type : "generate_until",
                                      one->is_group ? "" : data_state(t, one), hub});
    }
    task_index_close(&index);
    return true;
}

static bool list_datasets(Table *t, Err *e) {
    (void)e;
    t->n_columns = 3;
    table_row(t, (const char *[]){"名字", "种类", "说明"});
    for (const char *const *n = text_names(); *n; n++)
        table_row(t, (const char *[]){*n, "困惑度文本", text_describe(*n)});
    table_row(t, (const char *[]){"路径", "困惑度文本", "任何本地文本文件，以其 SHA-256 固定"});
    return true;
}

static void option_rows(Table *t, const Option *table, const char *owner) {
    for (const Option *o = table; o && o->key; o++) {
        Str range = {0}, def = {0};
        bool list = option_find(LIST_OPTIONS, o->key) == o;
        option_describe_range(o, &range);
        option_describe_default(o, &def);
        table_row(t, (const char *[]){o->key, owner, list ? "列表" : option_type_name(o),
                                      list ? "[]" : def.data, list ? "名字" : range.data, o->help});
        str_free(&range);
        str_free(&def);
    }
}

static bool list_options(Table *t, Err *e) {
    (void)e;
    t->n_columns = 6;
    table_row(t, (const char *[]){"键", "属于", "类型", "默认值", "取值", "说明"});
    option_rows(t, RUN_OPTIONS, "运行");
    option_rows(t, LIST_OPTIONS, "运行");
    option_rows(t, MODEL_OPTIONS, "模型");
    size_t n;
    const Method *const *all = registry_methods(&n);
    for (size_t i = 0; i < n; i++) option_rows(t, all[i]->options, all[i]->name);
    return true;
}

typedef struct Topic {
    const char *name;
    bool (*fill)(Table *t, Err *e);
} Topic;
static const Topic TOPICS[] = {{"models", list_models}, {"methods", list_methods},
                               {"tracks", list_tracks}, {"tasks", list_tasks},
                               {"datasets", list_datasets}, {"options", list_options}};
enum { N_TOPICS = sizeof TOPICS / sizeof *TOPICS };

static int unknown_topic(const char *name) {
    const char *names[N_TOPICS];
    for (int i = 0; i < N_TOPICS; i++) names[i] = TOPICS[i].name;
    const char *near = str_nearest(name, names, N_TOPICS);
    log_line(LOG_FAIL, "list: 没有 '%s'%s%s%s可列出: models methods tracks tasks datasets options", name,
             near ? "，是否想写 '" : "", near ? near : "", near ? "'？" : "。");
    return err_exit_code(ERR_USAGE);
}

static int show(const char *name, bool markdown) {
    const Topic *topic = NULL;
    for (int i = 0; i < N_TOPICS; i++)
        if (strcmp(TOPICS[i].name, name) == 0) topic = &TOPICS[i];
    if (!topic) return unknown_topic(name);
    if (markdown) {
        Str out = {0};
        if (topic->fill != list_options) {
            log_line(LOG_FAIL, "list: --markdown 只用于 list options");
            return err_exit_code(ERR_USAGE);
        }
        schema_markdown(&out);
        if (out.data && !out.failed) fputs(out.data, stdout);
        str_free(&out);
        return 0;
    }
    Arena a = {0};
    Err e = {0};
    Table *t = ARENA_NEW(&a, Table, &e);
    if (t) t->arena = &a;
    bool ok = t && topic->fill(t, &e);
    if (ok) table_print(t);
    arena_free(&a);
    return ok ? 0 : cli_fail(&e);
}

int cmd_list(int argc, char **argv) {
    bool markdown = false;
    CliList rest = {calloc((size_t)argc, sizeof *rest.items), 0};
    const CliFlag flags[] = {
        {"--markdown", CLI_BOOL, &markdown, NULL, "options 写成 Markdown 表（docs/config.md 由此生成）",
         false},
        {0}};
    const CliSpec spec = {.command = "list", .about = "列出模型、方法、轨道、任务或全部设置",
                          .flags = flags, .positional = "models|methods|tracks|tasks|datasets|options",
                          .rest = &rest,
                          .epilog = "例: ptq-bench list methods"};
    if (!rest.items) return 1;
    CliResult parsed = cli_parse(&spec, argc, argv);
    int code = parsed == CLI_DONE ? 0 : err_exit_code(ERR_USAGE);
    if (parsed == CLI_GO && rest.n == 0)
        log_line(LOG_FAIL, "list: 要列出什么？可列出: models methods tracks tasks datasets options");
    else if (parsed == CLI_GO)
        for (size_t i = 0; i < rest.n; i++) {
            if (i) putchar('\n');
            code = show(rest.items[i], markdown);
            if (code) break;
        }
    free(rest.items);
    return code;
}
