/* leaderboard_tasks_render — 任务的榜的三种写法：Markdown、CSV、终端
 * 终端按 100 列排：任务放不下时分成几段，每段重复方法与设置。 */
#include <math.h>
#include <string.h>

#include "leaderboard.h"
#include "markdown.h"

#define ALPHA 0.05
enum { SCREEN_WIDTH = 100 };

static const char *file_name(const TaskRow *r) {
    const char *slash = strrchr(r->file->path, '/');
    return slash ? slash + 1 : r->file->path;
}

/* 与 fp16 相比的判断：校正后显著的变化为 ↓ 或 ↑，在 ±δ 内等价为 ≈，其余为空。 */
static const char *verdict(const TaskCell *c) {
    if (!c->paired) return "";
    double worse = json_number_at(c->paired, "right_to_wrong");
    double better = json_number_at(c->paired, "wrong_to_right");
    if (c->p_holm < ALPHA) return worse > better ? "↓" : "↑";
    return json_number_at(c->paired, "tost_p") < ALPHA ? "≈" : "";
}

static void add_number(Str *out, const char *fmt, double v) {
    json_t *j = isfinite(v) ? json_real(v) : NULL;
    md_number(out, fmt, j);
    json_decref(j);
}

static void add_group(Str *out, const TaskRow *r) {
    if (r->group) str_addf(out, "%d", r->group);
    else str_add(out, "—");
}

/* ---------- Markdown ---------- */

static void markdown_cell(Str *out, const TaskCell *c) {
    str_add(out, " ");
    add_number(out, "%.4f", c->value);
    if (isfinite(c->error)) add_number(out, " ±%.4f", c->error);
    if (json_object_get(c->paired, "mcnemar_p")) {
        str_add(out, "（");
        md_value(out, json_object_get(c->paired, "right_to_wrong"));
        str_add(out, "↓ ");
        md_value(out, json_object_get(c->paired, "wrong_to_right"));
        add_number(out, "↑ p=%.2g", c->p_holm);
        str_addf(out, "）%s", verdict(c));
    }
    str_add(out, " |");
}

static void markdown_head(Str *out, const TaskBoard *b) {
    str_addf(out, "\n### 轨道 %c · ", b->track);
    md_text(out, b->model);
    str_addf(out, " · 权重 %s · 计算 %s\n\n| 排名组 | 方法 | 设置 | 平均准确率 |", b->dtype, b->compute);
    for (size_t i = 0; i < b->n_columns; i++) {
        const TaskCell *c = &b->rows[0].cells[i];
        const json_t *shots = json_object_get(c->task, "num_fewshot");
        str_add(out, " ");
        md_text(out, b->columns[i]);
        str_addf(out, "（%s，", c->metric ? c->metric : "—");
        md_value(out, json_object_get(c->task, "sample_len"));
        str_add(out, " 份");
        if (json_integer_value(shots) > 0) str_addf(out, "，%lld 样本", (long long)json_integer_value(shots));
        str_add(out, "） |");
    }
    str_add(out, "\n|---:|---|---|---:|");
    for (size_t i = 0; i < b->n_columns; i++) str_add(out, "---:|");
}

void leaderboard_tasks_markdown(const Leaderboard *lb, Str *out) {
    if (!lb->n_task_boards) return;
    str_add(out, "\n## lm-eval 任务\n\n准确率与困惑度各自排列，互不影响。\n\n"
                 "- 排名组：平均准确率之差按逐文档得分作分层符号检验（单个任务即 McNemar 精确检验），整表 Holm 校正，0.05 上分不开的行同组\n"
                 "- 括号里是对同样文档的 fp16 的翻转数（↓ 对变错，↑ 错变对）与 McNemar 精确检验的 p（整表 Holm 校正后）；"
                 "其后的 ↓ ↑ 是校正后显著的变化，≈ 是在 ±δ 内等价（TOST，δ 为 eval.equivalence_delta）\n");
    for (size_t i = 0; i < lb->n_task_boards; i++) {
        const TaskBoard *b = &lb->task_boards[i];
        markdown_head(out, b);
        for (size_t k = 0; k < b->n_rows; k++) {
            const TaskRow *r = &b->rows[k];
            str_add(out, "\n| ");
            add_group(out, r);
            str_add(out, " | ");
            md_text(out, r->method);
            str_add(out, " | ");
            md_text(out, r->settings);
            str_add(out, " | ");
            add_number(out, "%.4f", r->average);
            str_add(out, " |");
            for (size_t c = 0; c < b->n_columns; c++) markdown_cell(out, &r->cells[c]);
        }
        str_add(out, "\n");
    }
}

/* ---------- CSV ---------- */

static void csv_number(Str *out, double v) {
    str_add(out, ",");
    if (isfinite(v)) str_addf(out, "%.17g", v);
}

static void csv_cell(const TaskBoard *b, const TaskRow *r, size_t column, Str *out) {
    enum { PPL_NUMBERS = 16 };
    static const char *const PAIRED[] = {"right_to_wrong", "wrong_to_right", "mcnemar_p"};
    static const char *const MARGIN[] = {"equivalence_delta", "noninferior_p", "tost_p"};
    const TaskCell *c = &r->cells[column];
    const char *texts[] = {b->model, b->columns[column], "lm-eval", b->compute, b->dtype, r->method,
                           r->settings};
    str_addf(out, "%c,", b->track);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        csv_text(out, texts[i]);
        str_add(out, ",");
    }
    str_addf(out, ",,%d,", r->group);
    for (int i = 0; i < PPL_NUMBERS; i++) str_add(out, ",");
    csv_text(out, json_text_at(c->task, "requests_sha256", ""));
    str_add(out, ",");
    csv_text(out, file_name(r));
    str_add(out, ",");
    csv_text(out, c->metric ? c->metric : "");
    csv_number(out, c->value);
    csv_number(out, c->error);
    csv_number(out, json_number_at(c->task, "sample_len"));
    csv_number(out, json_number_at(c->task, "num_fewshot"));
    csv_number(out, r->average);
    for (int i = 0; i < 3; i++) csv_number(out, json_number_at(c->paired, PAIRED[i]));
    csv_number(out, c->p_holm);
    for (int i = 0; i < 3; i++) csv_number(out, json_number_at(c->paired, MARGIN[i]));
    str_add(out, "\n");
}

void leaderboard_tasks_csv(const Leaderboard *lb, Str *out) {
    for (size_t i = 0; i < lb->n_task_boards; i++) {
        const TaskBoard *b = &lb->task_boards[i];
        for (size_t k = 0; k < b->n_rows; k++)
            for (size_t c = 0; c < b->n_columns; c++) csv_cell(b, &b->rows[k], c, out);
    }
}

/* ---------- 终端 ---------- */

enum { FIXED = 4 }; /* 排名组、方法、设置、平均 */

/* 一格的文字：column 小于 FIXED 为固定的列，其余为任务；row 为 NULL 时是标题。 */
static void show(const TaskBoard *b, const TaskRow *r, size_t column, Str *out) {
    static const char *const TITLES[FIXED] = {"排名组", "方法", "设置", "平均"};
    if (!r) {
        str_add(out, column < FIXED ? TITLES[column] : b->columns[column - FIXED]);
        return;
    }
    if (column >= FIXED) {
        const TaskCell *c = &r->cells[column - FIXED];
        add_number(out, "%.4f", c->value);
        if (isfinite(c->error)) str_addf(out, "±%.3f", c->error);
        str_add(out, verdict(c));
        return;
    }
    if (column == 0) add_group(out, r);
    else if (column == 3) add_number(out, "%.4f", r->average);
    else str_add(out, column == 1 ? r->method : r->settings);
}

static size_t width_of(const TaskBoard *b, size_t column) {
    size_t width = 0;
    for (size_t i = 0; i <= b->n_rows; i++) {
        Str cell = {0};
        show(b, i ? &b->rows[i - 1] : NULL, column, &cell);
        size_t w = cell.data ? str_width(cell.data) : 0;
        if (w > width) width = w;
        str_free(&cell);
    }
    return width;
}

/* 固定的列与 [from, to) 的任务的一行。 */
static void screen_line(const TaskBoard *b, const TaskRow *r, size_t from, size_t to, Str *out) {
    bool first = true;
    for (size_t c = 0; c < to; c = c + 1 == FIXED ? from : c + 1) {
        Str cell = {0};
        show(b, r, c, &cell);
        str_add(out, first ? "\n" : "  ");
        str_add_padded(out, cell.data ? cell.data : "", width_of(b, c), c != 1 && c != 2);
        str_free(&cell);
        first = false;
    }
}

static void screen_board(const TaskBoard *b, Str *out) {
    size_t fixed = 0, all = FIXED + b->n_columns;
    for (size_t c = 0; c < FIXED; c++) fixed += width_of(b, c) + (c ? 2 : 0);
    str_addf(out, "\nTrack %c · %s · lm-eval 任务 · 权重 %s · 计算 %s", b->track, b->model, b->dtype,
             b->compute);
    for (size_t from = FIXED, to; from < all; from = to) {
        size_t width = fixed;
        for (to = from; to < all; to++) {
            size_t more = width_of(b, to) + 2;
            if (to > from && width + more > SCREEN_WIDTH) break;
            width += more;
        }
        screen_line(b, NULL, from, to, out);
        str_add(out, "\n");
        for (size_t i = 0; i < width; i++) str_add(out, "─");
        for (size_t i = 0; i < b->n_rows; i++) screen_line(b, &b->rows[i], from, to, out);
        if (to < all) str_add(out, "\n");
    }
    str_add(out, "\n");
}

void leaderboard_tasks_screen(const Leaderboard *lb, Str *out) {
    for (size_t i = 0; i < lb->n_task_boards; i++) screen_board(&lb->task_boards[i], out);
    if (lb->n_task_boards)
        str_add(out, "（± 标准误；对 fp16：↓ ↑ 显著的变化，≈ 在 ±δ 内等价，空白为尚不能断定）\n");
}
