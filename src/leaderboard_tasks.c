/* leaderboard_tasks — 榜上 lm-eval 任务的一节：准确率，与困惑度的排名分开
 * 一个表 = 同一轨道、模型（权重与 dtype）、计算类型、同样的一组任务（请求的 SHA-256 相同）；一行一个方法与设置的最新结果，
 * 一列一个直接点名的任务或组。按平均准确率排，不给排名组：差别够不够大看 ± 标准误与 McNemar 的 p。 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/hash.h"
#include "leaderboard.h"
#include "markdown.h"

typedef struct TaskRow {
    const ResultFile *file;
    const char *method, *settings;
    char key[HASH_HEX]; /* 表的身份 */
    double average;
} TaskRow;

static json_t *tasks_of(const ResultFile *f) {
    return json_object_get(json_object_get(f->json, "results"), "lm_eval");
}

/* 列：不在组里的任务，和不在别的组里的组。 */
static bool is_column(const char *name, const json_t *t) {
    return name[0] != '_' && json_is_object(t) && !json_is_true(json_object_get(t, "in_group"));
}

static void hash_text(Hash *h, const char *s) {
    hash_add(h, s, strlen(s) + 1);
}

static bool table_key(const ResultFile *f, char key[HASH_HEX], Err *e) {
    static const char *const SAME[] = {"config.track", "config.model", "model.weights_sha256",
                                       "model.dtype", "compute.mode"};
    Hash *h = hash_new();
    const char *name;
    json_t *t;
    if (!h) return err_set(e, ERR_MEMORY, "内存不足");
    for (size_t i = 0; i < sizeof SAME / sizeof *SAME; i++)
        hash_text(h, json_text_at(f->json, SAME[i], ""));
    json_object_foreach(tasks_of(f), name, t) {
        hash_text(h, name);
        hash_text(h, json_text_at(t, "requests_sha256", ""));
    }
    hash_end(h, key);
    return true;
}

static int by_table(const void *a, const void *b) {
    const TaskRow *x = a, *y = b;
    static const char *const ORDER[] = {"config.track", "config.model"};
    for (size_t i = 0; i < 2; i++) {
        int c = strcmp(json_text_at(x->file->json, ORDER[i], ""), json_text_at(y->file->json, ORDER[i], ""));
        if (c) return c;
    }
    int c = strcmp(x->key, y->key);
    if (c) return c;
    if (x->average != y->average && !isnan(x->average) && !isnan(y->average))
        return x->average > y->average ? -1 : 1;
    c = strcmp(x->method, y->method);
    return c ? c : strcmp(x->settings, y->settings);
}

/* 收集有任务的结果；同一表里同方法同设置只留最新的。 */
static bool collect(const ResultFile *files, size_t n, TaskRow *rows, size_t *n_rows, Arena *a, Err *e) {
    for (size_t i = n; i-- > 0;) {
        const json_t *r = files[i].json;
        if (!json_is_true(json_at(r, "status.ok")) || !json_object_size(tasks_of(&files[i]))) continue;
        TaskRow row = {.file = &files[i], .method = json_text_at(r, "config.method", "?"),
                       .average = json_number_at(tasks_of(&files[i]), "_avg_accuracy")};
        row.settings = leaderboard_settings(r, a, e);
        if (!row.settings || !table_key(&files[i], row.key, e)) return false;
        bool older = false;
        for (size_t k = 0; k < *n_rows && !older; k++)
            older = strcmp(rows[k].key, row.key) == 0 && strcmp(rows[k].method, row.method) == 0 &&
                    strcmp(rows[k].settings, row.settings) == 0;
        if (!older) rows[(*n_rows)++] = row;
    }
    return true;
}

/* 一个任务的主指标：acc_norm，没有则 acc，再没有则第一个。 */
static const char *main_metric(json_t *t) {
    static const char *const FIRST[] = {"acc_norm,none", "acc,none"};
    for (size_t i = 0; i < 2; i++)
        if (json_is_number(json_object_get(t, FIRST[i]))) return FIRST[i];
    const char *key;
    json_t *v;
    json_object_foreach(t, key, v)
        if (strchr(key, ',') && !strstr(key, "_stderr,") && json_is_number(v)) return key;
    return NULL;
}

static void add_cell(Str *out, json_t *t) {
    const char *key = main_metric(t), *comma = key ? strchr(key, ',') : NULL;
    char se[256];
    if (!key) {
        str_add(out, " — |");
        return;
    }
    snprintf(se, sizeof se, "%.*s_stderr%s", (int)(comma - key), key, comma);
    str_add(out, " ");
    md_number(out, "%.4f", json_object_get(t, key));
    if (json_is_number(json_object_get(t, se))) md_number(out, " ±%.4f", json_object_get(t, se));
    const json_t *b = json_object_get(json_object_get(t, "baseline"), key);
    if (json_object_get(b, "mcnemar_p")) {
        str_add(out, "（");
        md_value(out, json_object_get(b, "right_to_wrong"));
        str_add(out, "↓ ");
        md_value(out, json_object_get(b, "wrong_to_right"));
        md_number(out, "↑ p=%.2g）", json_object_get(b, "mcnemar_p"));
    }
    str_add(out, " |");
}

static void add_table(Str *out, const TaskRow *rows, size_t n) {
    const json_t *first = rows[0].file->json;
    const char *name;
    json_t *t;
    size_t columns = 0;
    str_addf(out, "\n### 轨道 %.1s · ", json_text_at(first, "config.track", "?"));
    md_text(out, json_text_at(first, "config.model", ""));
    str_addf(out, " · 权重 %s · 计算 %s\n\n| 方法 | 设置 | 平均准确率 |",
             json_text_at(first, "model.dtype", ""), json_text_at(first, "compute.mode", ""));
    json_object_foreach(tasks_of(rows[0].file), name, t) {
        if (!is_column(name, t)) continue;
        const char *key = main_metric(t);
        str_add(out, " ");
        md_text(out, name);
        str_addf(out, "（%s", key ? key : "—");
        str_add(out, "，");
        md_value(out, json_object_get(t, "sample_len"));
        str_add(out, " 份） |");
        columns++;
    }
    str_add(out, "\n|---|---|---:|");
    for (size_t i = 0; i < columns; i++) str_add(out, "---:|");
    for (size_t i = 0; i < n; i++) {
        json_t *lm = tasks_of(rows[i].file);
        str_add(out, "\n| ");
        md_text(out, rows[i].method);
        str_add(out, " | ");
        md_text(out, rows[i].settings);
        str_add(out, " | ");
        md_number(out, "%.4f", json_object_get(lm, "_avg_accuracy"));
        str_add(out, " |");
        json_object_foreach(lm, name, t) {
            if (is_column(name, t)) add_cell(out, t);
        }
    }
    str_add(out, "\n");
}

bool leaderboard_tasks_markdown(const ResultFile *files, size_t n, Str *out, Err *e) {
    Arena a = {0};
    size_t n_rows = 0;
    TaskRow *rows = ARENA_ARRAY(&a, TaskRow, n, e);
    bool ok = rows && collect(files, n, rows, &n_rows, &a, e);
    if (ok && n_rows) {
        qsort(rows, n_rows, sizeof *rows, by_table);
        str_add(out, "\n## lm-eval 任务\n\n准确率与困惑度各自排列，互不影响。括号里是对同样文档的 fp16 的翻转数（↓ 对变错，↑ 错变对）与 "
                     "McNemar 精确检验的 p。\n");
        for (size_t i = 0, k; i < n_rows; i = k) {
            for (k = i + 1; k < n_rows && strcmp(rows[k].key, rows[i].key) == 0;) k++;
            add_table(out, rows + i, k - i);
        }
    }
    arena_free(&a);
    return ok && (!out->failed || err_set(e, ERR_MEMORY, "内存不足：排行榜的任务一节"));
}
