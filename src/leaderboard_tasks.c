/* leaderboard_tasks — 任务的榜：分表、选主指标、对 fp16 的 p 的校正、排名组
 * 排名组：平均准确率之差的分层符号检验（逐文档的 0/1 得分，paired.h），两两作，整表 Holm 校正；
 * 从最好的一行起，与组长在 0.05 上分不开的同组。 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "leaderboard.h"
#include "markdown.h"
#include "tasks/paired.h"
#include "tasks/stats.h"

#define ALPHA 0.05
#define SEED 0
enum { MAX_ROWS = 2000 }; /* 再多就不两两检验 */

static json_t *tasks_of(const ResultFile *f) {
    return json_object_get(json_object_get(f->json, "results"), "lm_eval");
}

/* ---------- 列与主指标 ---------- */

/* 主指标：acc_norm，没有则 acc，再没有则第一个。 */
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

static bool is_accuracy(const char *metric) {
    return metric && (strcmp(metric, "acc_norm,none") == 0 || strcmp(metric, "acc,none") == 0);
}

static bool lists(const json_t *names, const char *name) {
    for (size_t i = 0; i < json_array_size(names); i++) {
        const char *one = json_string_value(json_array_get(names, i));
        if (one && strcmp(one, name) == 0) return true;
    }
    return false;
}

/* 列：直接点名而有指标的组；不在这样的组里的任务。 */
static bool is_column(json_t *lm, const char *name, json_t *t) {
    const char *other;
    json_t *g;
    if (name[0] == '_' || !json_is_object(t) || !main_metric(t)) return false;
    if (json_is_true(json_object_get(t, "group"))) return !json_is_true(json_object_get(t, "in_group"));
    if (!json_is_true(json_object_get(t, "in_group"))) return true;
    json_object_foreach(lm, other, g)
        if (json_is_true(json_object_get(g, "group")) && main_metric(g) &&
            (!json_object_get(g, "tasks") || lists(json_object_get(g, "tasks"), name)))
            return false;
    return true;
}

/* ---------- 分表 ---------- */

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
    if (isnan(x->average) != isnan(y->average)) return isnan(x->average) ? 1 : -1;
    if (x->average != y->average && !isnan(x->average)) return x->average > y->average ? -1 : 1;
    c = strcmp(x->method, y->method);
    return c ? c : strcmp(x->settings, y->settings);
}

/* 收集有任务的结果（文件从新到旧）；同一表里同方法同设置只留最新的。 */
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

/* ---------- 各格 ---------- */

static void fill_cell(TaskCell *c, json_t *t) {
    *c = (TaskCell){.task = t, .metric = main_metric(t), .value = NAN, .error = NAN, .p_holm = NAN};
    if (!c->metric) return;
    char se[256];
    const char *comma = strchr(c->metric, ',');
    snprintf(se, sizeof se, "%.*s_stderr%s", (int)(comma - c->metric), c->metric, comma);
    const json_t *v = json_object_get(t, c->metric), *d = json_object_get(t, se);
    if (json_is_number(v)) c->value = json_number_value(v);
    if (json_is_number(d)) c->error = json_number_value(d);
    const json_t *b = json_object_get(json_object_get(t, "baseline"), c->metric);
    if (json_is_object(b)) c->paired = b;
}

static bool fill_cells(TaskBoard *b, Arena *a, Err *e) {
    json_t *first = tasks_of(b->rows[0].file), *t;
    const char *name;
    b->columns = ARENA_ARRAY(a, const char *, json_object_size(first), e);
    if (!b->columns) return false;
    json_object_foreach(first, name, t)
        if (is_column(first, name, t)) b->columns[b->n_columns++] = name;
    for (size_t i = 0; i < b->n_rows; i++) {
        b->rows[i].cells = ARENA_ARRAY(a, TaskCell, b->n_columns, e);
        if (!b->rows[i].cells) return false;
        for (size_t k = 0; k < b->n_columns; k++)
            fill_cell(&b->rows[i].cells[k], json_object_get(tasks_of(b->rows[i].file), b->columns[k]));
    }
    return true;
}

/* 表里全部对 fp16 的 McNemar 的 p 一起校正。 */
static bool adjust_cells(TaskBoard *b, Err *e) {
    Arena a = {0};
    size_t n = 0, k = 0;
    double *p = ARENA_ARRAY(&a, double, 2 * b->n_rows * b->n_columns, e);
    double *q = p ? p + b->n_rows * b->n_columns : NULL;
    for (int pass = 0; p && pass < 2; pass++) {
        for (size_t i = 0; i < b->n_rows; i++)
            for (size_t c = 0; c < b->n_columns; c++) {
                TaskCell *cell = &b->rows[i].cells[c];
                const json_t *v = json_object_get(cell->paired, "mcnemar_p");
                if (!json_is_number(v)) continue;
                if (pass == 0) p[n++] = json_number_value(v);
                else cell->p_holm = q[k++];
            }
        if (pass == 0 && !stats_holm(p, n, q)) p = NULL;
    }
    arena_free(&a);
    return p || err_set(e, ERR_MEMORY, "内存不足：任务的检验");
}

/* ---------- 排名组 ---------- */

typedef struct Stratum { /* 一个任务：两行共有的文档 */
    const char *task, *metric;
    double weight; /* 每份文档在平均准确率里的权重 */
} Stratum;

static const char *scores_of(const TaskRow *r, const Stratum *s, size_t *n) {
    const json_t *t = json_object_get(tasks_of(r->file), s->task);
    const json_t *v = json_object_get(json_object_get(t, "doc_scores"), s->metric);
    *n = json_string_length(v);
    return json_string_value(v);
}

/* 平均准确率由哪些文档各以多大的权重组成。返回: 层数；有任务没有逐文档的得分为 0。 */
static size_t strata_of(const TaskBoard *b, const TaskRow *r, Stratum *out) {
    size_t n = 0, counted = 0;
    for (size_t c = 0; c < b->n_columns; c++) counted += is_accuracy(r->cells[c].metric);
    for (size_t c = 0; c < b->n_columns; c++) {
        const TaskCell *cell = &r->cells[c];
        if (!is_accuracy(cell->metric)) continue;
        const json_t *leaves = json_object_get(cell->task, "tasks");
        const json_t *equal = json_object_get(cell->task, "equal_weights");
        char plain[32];
        snprintf(plain, sizeof plain, "%.*s", (int)strcspn(cell->metric, ","), cell->metric);
        size_t first = n, k = json_array_size(leaves), docs, total = 0;
        if (!k) out[n++] = (Stratum){b->columns[c], cell->metric, 0};
        for (size_t i = 0; i < k; i++) {
            const char *leaf = json_string_value(json_array_get(leaves, i));
            out[n++] = (Stratum){leaf ? leaf : "", cell->metric, 0};
        }
        for (size_t i = first; i < n; i++) {
            if (!scores_of(r, &out[i], &docs) || docs == 0) return 0;
            total += docs;
        }
        for (size_t i = first; i < n; i++) {
            scores_of(r, &out[i], &docs);
            double share = lists(equal, plain) ? 1 / (double)((n - first) * docs) : 1 / (double)total;
            out[i].weight = share / (double)counted;
        }
    }
    return n;
}

/* 两行之差的双侧 p；得分对不上（份数不同）为 NAN。 */
static double pair_p(const TaskRow *x, const TaskRow *y, const Stratum *s, size_t n,
                     PairedStratum *work) {
    for (size_t i = 0; i < n; i++) {
        size_t nx, ny;
        const char *a = scores_of(x, &s[i], &nx), *b = scores_of(y, &s[i], &ny);
        if (!a || !b || nx != ny) return NAN;
        work[i] = (PairedStratum){.weight = s[i].weight};
        for (size_t d = 0; d < nx; d++) {
            work[i].worse += a[d] > b[d];
            work[i].better += a[d] < b[d];
        }
    }
    return paired_stratified_p(work, n, SEED);
}

/* 与各组长相比：分不开的同组，分得开的另立一组。 */
static void assign_groups(TaskRow **rows, size_t n, const double *adjusted) {
    int group = 0;
    size_t leader = 0;
    for (size_t j = 0; j < n; j++) {
        size_t at = leader * n - leader * (leader + 1) / 2 + (j - leader - 1); /* 上三角中的 (leader, j) */
        if (j == 0 || adjusted[at] < ALPHA) group++, leader = j;
        rows[j]->group = group;
    }
}

static bool rank_board(TaskBoard *b, Err *e) {
    Arena a = {0};
    size_t cap = json_object_size(tasks_of(b->rows[0].file)) * (b->n_columns + 1), n = 0, k = 0;
    if (b->n_rows > MAX_ROWS) return true;
    TaskRow **rows = ARENA_ARRAY(&a, TaskRow *, b->n_rows, e);
    Stratum *strata = ARENA_ARRAY(&a, Stratum, cap, e);
    PairedStratum *work = ARENA_ARRAY(&a, PairedStratum, cap, e);
    bool ok = rows && strata && work;
    for (size_t i = 0; ok && i < b->n_rows; i++)
        if (!isnan(b->rows[i].average) && strata_of(b, &b->rows[i], strata)) rows[n++] = &b->rows[i];
    size_t pairs = n * (n ? n - 1 : 0) / 2;
    double *p = ok ? ARENA_ARRAY(&a, double, 2 * pairs, e) : NULL;
    size_t m = p && n ? strata_of(b, rows[0], strata) : 0;
    for (size_t i = 0; p && i < n; i++)
        for (size_t j = i + 1; j < n; j++) {
            double v = pair_p(rows[i], rows[j], strata, m, work);
            p[k++] = isnan(v) ? 1 : v;
        }
    ok = p && stats_holm(p, pairs, p + pairs);
    if (ok) assign_groups(rows, n, p + pairs);
    arena_free(&a);
    return ok || err_set(e, ERR_MEMORY, "内存不足：任务的排名检验");
}

bool leaderboard_build_tasks(Leaderboard *lb, const ResultFile *files, size_t n, Err *e) {
    size_t n_rows = 0;
    TaskRow *rows = ARENA_ARRAY(&lb->arena, TaskRow, n, e);
    lb->task_boards = ARENA_ARRAY(&lb->arena, TaskBoard, n, e);
    if (!rows || !lb->task_boards || !collect(files, n, rows, &n_rows, &lb->arena, e)) return false;
    if (n_rows) qsort(rows, n_rows, sizeof *rows, by_table);
    for (size_t i = 0, k; i < n_rows; i = k) {
        for (k = i + 1; k < n_rows && strcmp(rows[k].key, rows[i].key) == 0;) k++;
        const json_t *r = rows[i].file->json;
        TaskBoard *b = &lb->task_boards[lb->n_task_boards++];
        *b = (TaskBoard){.track = json_text_at(r, "config.track", "?")[0],
                         .model = json_text_at(r, "config.model", ""),
                         .dtype = json_text_at(r, "model.dtype", ""),
                         .compute = json_text_at(r, "compute.mode", ""),
                         .rows = rows + i, .n_rows = k - i};
        if (!fill_cells(b, &lb->arena, e) || !adjust_cells(b, e) || !rank_board(b, e)) return false;
    }
    return true;
}
