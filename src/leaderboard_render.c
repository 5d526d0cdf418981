/* leaderboard_render — 榜的三种写法：Markdown、CSV、终端
 * Markdown 与终端共用一张列表（列名、取文字的函数、是否上屏）；CSV 给程序读，数字保持全精度。 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "leaderboard.h"
#include "markdown.h"

/* ---------- 列 ---------- */

static void number(Str *out, const char *fmt, double v) {
    json_t *j = isfinite(v) ? json_real(v) : NULL;
    md_number(out, fmt, j);
    json_decref(j);
}

static void show_group(const BoardRow *r, Str *out) {
    if (r->group)
        str_addf(out, "%d", r->group);
    else
        str_add(out, "—");
}
static void show_method(const BoardRow *r, Str *out) { str_add(out, r->method); }
static void show_settings(const BoardRow *r, Str *out) { str_add(out, r->settings); }
static void show_ppl(const BoardRow *r, Str *out) {
    number(out, "%.4f", r->ppl);
    if (isfinite(r->ppl_stderr)) number(out, " ±%.3f", r->ppl_stderr);
}
static void show_delta_ppl(const BoardRow *r, Str *out) { number(out, "%+.4f", r->delta_ppl); }
static void show_delta_nll(const BoardRow *r, Str *out) {
    number(out, "%+.5f", r->delta_nll);
    if (!isfinite(r->delta_lo) || !isfinite(r->delta_hi)) return;
    number(out, " [%+.5f, ", r->delta_lo);
    number(out, "%+.5f]", r->delta_hi);
}
static void show_delta_short(const BoardRow *r, Str *out) { number(out, "%+.5f", r->delta_nll); }
static void show_kl(const BoardRow *r, Str *out) { number(out, "%.5f", r->kl_mean); }
static void show_kl_p99(const BoardRow *r, Str *out) { number(out, "%.4f", r->kl_p99); }
static void show_top1(const BoardRow *r, Str *out) {
    number(out, "%.2f %%", 100 * r->same_top1);
}
static void show_bits_linear(const BoardRow *r, Str *out) { number(out, "%.3f", r->bits_linear); }
static void show_bits_model(const BoardRow *r, Str *out) { number(out, "%.3f", r->bits_model); }
static void show_weights(const BoardRow *r, Str *out) { number(out, "%.2f", r->weights_mb); }
static void show_memory(const BoardRow *r, Str *out) { number(out, "%.1f", r->memory_mb); }
static void show_speed(const BoardRow *r, Str *out) {
    number(out, "%.0f", r->prefill);
    str_add(out, " / ");
    number(out, "%.1f", r->decode);
}
static void show_quant(const BoardRow *r, Str *out) { number(out, "%.2f", r->quant_seconds); }
static void show_file(const BoardRow *r, Str *out) {
    const char *slash = strrchr(r->file->path, '/');
    str_add(out, slash ? slash + 1 : r->file->path);
}

typedef enum { IN_MARKDOWN = 1, ON_SCREEN = 2 } Where;
typedef struct Column {
    const char *title;
    void (*show)(const BoardRow *r, Str *out);
    bool right;
    int where;
    bool link; /* Markdown 里链到同名的 .md */
} Column;

static const Column COLUMNS[] = {
    {"排名组", show_group, true, IN_MARKDOWN | ON_SCREEN, false},
    {"方法", show_method, false, IN_MARKDOWN | ON_SCREEN, false},
    {"设置", show_settings, false, IN_MARKDOWN | ON_SCREEN, false},
    {"PPL", show_ppl, true, IN_MARKDOWN | ON_SCREEN, false},
    {"ΔPPL", show_delta_ppl, true, IN_MARKDOWN, false},
    {"ΔNLL [95 %]", show_delta_nll, true, IN_MARKDOWN, false},
    {"ΔNLL", show_delta_short, true, ON_SCREEN, false},
    {"KL", show_kl, true, IN_MARKDOWN | ON_SCREEN, false},
    {"KL p99", show_kl_p99, true, IN_MARKDOWN, false},
    {"同 top-1", show_top1, true, IN_MARKDOWN | ON_SCREEN, false},
    {"bit 线性", show_bits_linear, true, IN_MARKDOWN | ON_SCREEN, false},
    {"bit 模型", show_bits_model, true, IN_MARKDOWN | ON_SCREEN, false},
    {"权重 MB", show_weights, true, IN_MARKDOWN | ON_SCREEN, false},
    {"峰值 MB", show_memory, true, IN_MARKDOWN | ON_SCREEN, false},
    {"tok/s 预填/解码", show_speed, true, IN_MARKDOWN | ON_SCREEN, false},
    {"量化 秒", show_quant, true, IN_MARKDOWN | ON_SCREEN, false},
    {"结果文件", show_file, false, IN_MARKDOWN, true},
};
enum { N_COLUMNS = sizeof COLUMNS / sizeof *COLUMNS };

/* ---------- Markdown ---------- */

static void board_title(const Board *b, Str *out) {
    str_addf(out, "%s · %s · %s · ", b->model, b->dataset, b->protocol);
    if (b->n_windows < b->n_windows_total)
        str_addf(out, "前 %lld / %lld 窗口", (long long)b->n_windows, (long long)b->n_windows_total);
    else
        str_addf(out, "%lld 窗口", (long long)b->n_windows);
    str_addf(out, " · 权重 %s · 计算 %s", b->dtype, b->compute);
}

/* "x.json" → [x](x.md)；文件名由 result_write 写出，只含安全的字符，别的名字不加链接。 */
static void add_link(const char *file, Str *out) {
    static const char SAFE[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-";
    size_t n = strlen(file);
    if (!str_ends(file, ".json") || file[strspn(file, SAFE)]) {
        md_text(out, file);
        return;
    }
    str_addf(out, "[%.*s](%.*s.md)", (int)n - 5, file, (int)n - 5, file);
}

static void markdown_board(const Board *b, Str *out) {
    Str title = {0};
    board_title(b, &title);
    str_add(out, "\n### ");
    if (!title.failed) md_text(out, title.data);
    str_free(&title);
    str_add(out, "\n\n文本 SHA-256 ");
    md_code(out, b->text_sha256);
    if (b->n_windows < b->n_windows_total)
        str_add(out, "。⚠️ 只评测了前一部分窗口，不可与完整的结果相比");
    str_add(out, "\n\n|");
    for (int c = 0; c < N_COLUMNS; c++)
        if (COLUMNS[c].where & IN_MARKDOWN) str_addf(out, " %s |", COLUMNS[c].title);
    str_add(out, "\n|");
    for (int c = 0; c < N_COLUMNS; c++)
        if (COLUMNS[c].where & IN_MARKDOWN) str_add(out, COLUMNS[c].right ? "---:|" : "---|");
    for (size_t i = 0; i < b->n_rows; i++) {
        str_add(out, "\n|");
        for (int c = 0; c < N_COLUMNS; c++) {
            if (!(COLUMNS[c].where & IN_MARKDOWN)) continue;
            Str cell = {0};
            COLUMNS[c].show(&b->rows[i], &cell);
            str_add(out, " ");
            if (COLUMNS[c].link)
                add_link(cell.data ? cell.data : "", out);
            else
                md_text(out, cell.data);
            str_add(out, " |");
            str_free(&cell);
        }
    }
    str_add(out, "\n");
}

static void markdown_failed(const Leaderboard *lb, Str *out) {
    if (!lb->n_failed) return;
    str_add(out, "\n## 失败的运行\n\n| 模型 | 方法 | 轨道 | 原因 | 结果文件 |\n|---|---|---|---|---|\n");
    for (size_t i = 0; i < lb->n_failed; i++) {
        const json_t *r = lb->failed[i]->json;
        const char *slash = strrchr(lb->failed[i]->path, '/');
        const char *cells[] = {json_text_at(r, "config.model", "?"),
                               json_text_at(r, "config.method", "?"),
                               json_text_at(r, "config.track", "?"),
                               json_text_at(r, "status.message", "没有记下原因"),
                               slash ? slash + 1 : lb->failed[i]->path};
        str_add(out, "|");
        for (size_t k = 0; k < sizeof cells / sizeof *cells; k++) {
            str_add(out, " ");
            if (k + 1 < sizeof cells / sizeof *cells)
                md_text(out, cells[k]);
            else
                add_link(cells[k], out);
            str_add(out, " |");
        }
        str_add(out, "\n");
    }
}

static const char *track_title(char t) {
    return t == 'A' ? "仅权重量化" : t == 'B' ? "权重与激活量化" : "KV 缓存量化";
}

bool leaderboard_markdown(const Leaderboard *lb, Str *out, Err *e) {
    str_addf(out,
             "# 排行榜\n\n由 `ptq-bench leaderboard` 从 %zu 个结果文件生成，请勿手改。"
             "按 PPL 升序；不同协议、文本、窗口数、计算类型的数字从不同榜。\n\n"
             "- 排名组：逐窗 NLL 的成对块自助检验，整榜 Holm 校正，0.05 上分不开的行同组；— 为没有逐窗数据\n"
             "- ΔPPL、ΔNLL、KL、同 top-1 都是对同一模型、文本、协议的 fp16 运行\n"
             "- bit 由实际存储的字节数算得；峰值为进程的常驻内存\n",
             lb->n_results);
    char track = 0;
    for (size_t i = 0; i < lb->n_boards; i++) {
        const Board *b = &lb->boards[i];
        if (b->track != track)
            str_addf(out, "\n## Track %c：%s\n", b->track, track_title(b->track));
        track = b->track;
        markdown_board(b, out);
    }
    leaderboard_tasks_markdown(lb, out);
    if (!lb->n_boards && !lb->n_task_boards) str_add(out, "\n还没有成功的结果。\n");
    markdown_failed(lb, out);
    return !out->failed || err_set(e, ERR_MEMORY, "内存不足：生成排行榜");
}

/* ---------- CSV（RFC 4180） ---------- */

void csv_text(Str *out, const char *s) {
    bool quote = strpbrk(s, ",\"\r\n") != NULL;
    if (quote) str_add(out, "\"");
    for (; *s; s++) {
        str_addn(out, s, 1);
        if (*s == '"') str_add(out, "\"");
    }
    if (quote) str_add(out, "\"");
}

static void csv_row(const Board *b, const BoardRow *r, Str *out) {
    const char *slash = strrchr(r->file->path, '/');
    const char *texts[] = {b->model, b->dataset, b->protocol, b->compute, b->dtype, r->method,
                           r->settings};
    const double numbers[] = {r->ppl,        r->ppl_stderr,  r->delta_ppl,  r->delta_nll,
                              r->delta_lo,   r->delta_hi,    r->kl_mean,    r->kl_p99,
                              r->same_top1,  r->bits_linear, r->bits_model, r->weights_mb,
                              r->memory_mb,  r->prefill,     r->decode,     r->quant_seconds};
    str_addf(out, "%c,", b->track);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        csv_text(out, texts[i]);
        str_add(out, ",");
    }
    str_addf(out, "%lld,%lld,%d,", (long long)b->n_windows, (long long)b->n_windows_total, r->group);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (isfinite(numbers[i])) str_addf(out, "%.17g", numbers[i]);
        str_add(out, ",");
    }
    csv_text(out, b->text_sha256);
    str_add(out, ",");
    csv_text(out, slash ? slash + 1 : r->file->path);
    double average = json_number_at(r->file->json, "results.lm_eval._avg_accuracy");
    str_add(out, ",,,,,,"); /* 任务的列：只有平均准确率 */
    if (isfinite(average)) str_addf(out, "%.17g", average);
    str_add(out, ",,,,,,,\n");
}

bool leaderboard_csv(const Leaderboard *lb, Str *out, Err *e) {
    str_add(out, "track,model,dataset,protocol,compute,dtype,method,settings,n_windows,"
                 "n_windows_total,rank_group,ppl,ppl_stderr,delta_ppl,delta_nll,delta_nll_ci_low,"
                 "delta_nll_ci_high,kl_mean,kl_p99,same_top1,bits_linear,bits_model,weights_mb,"
                 "rss_peak_mb,prefill_tok_s,decode_tok_s,quant_time_seconds,text_sha256,"
                 "result_file,metric,value,value_stderr,n_docs,num_fewshot,avg_accuracy,"
                 "right_to_wrong,wrong_to_right,mcnemar_p,mcnemar_p_holm,equivalence_delta,"
                 "noninferior_p,tost_p\n");
    for (size_t i = 0; i < lb->n_boards; i++)
        for (size_t j = 0; j < lb->boards[i].n_rows; j++)
            csv_row(&lb->boards[i], &lb->boards[i].rows[j], out);
    leaderboard_tasks_csv(lb, out);
    return !out->failed || err_set(e, ERR_MEMORY, "内存不足：生成排行榜");
}

/* ---------- 终端 ---------- */

static void screen_board(const Board *b, Str *out) {
    size_t width[N_COLUMNS];
    for (int c = 0; c < N_COLUMNS; c++) {
        width[c] = str_width(COLUMNS[c].title);
        for (size_t i = 0; i < b->n_rows; i++) {
            Str cell = {0};
            COLUMNS[c].show(&b->rows[i], &cell);
            size_t w = cell.data ? str_width(cell.data) : 0;
            if (w > width[c]) width[c] = w;
            str_free(&cell);
        }
    }
    str_addf(out, "\nTrack %c · ", b->track);
    board_title(b, out);
    str_add(out, "\n");
    size_t total = 0;
    for (int c = 0; c < N_COLUMNS; c++) {
        if (!(COLUMNS[c].where & ON_SCREEN)) continue;
        str_add(out, total ? "  " : "");
        str_add_padded(out, COLUMNS[c].title, width[c], COLUMNS[c].right);
        total += width[c] + (total ? 2 : 0);
    }
    str_add(out, "\n");
    for (size_t i = 0; i < total; i++) str_add(out, "─");
    for (size_t i = 0; i < b->n_rows; i++) {
        const char *gap = "\n";
        for (int c = 0; c < N_COLUMNS; c++) {
            if (!(COLUMNS[c].where & ON_SCREEN)) continue;
            Str cell = {0};
            COLUMNS[c].show(&b->rows[i], &cell);
            str_add(out, gap);
            str_add_padded(out, cell.data ? cell.data : "", width[c], COLUMNS[c].right);
            str_free(&cell);
            gap = "  ";
        }
    }
    str_add(out, "\n");
}

void leaderboard_screen(const Leaderboard *lb, Str *out) {
    for (size_t i = 0; i < lb->n_boards; i++) screen_board(&lb->boards[i], out);
    leaderboard_tasks_screen(lb, out);
    if (!lb->n_boards && !lb->n_task_boards) str_add(out, "还没有成功的结果。\n");
    if (!lb->n_failed) return;
    str_add(out, "\n失败的运行\n");
    for (size_t i = 0; i < lb->n_failed; i++) {
        const json_t *r = lb->failed[i]->json;
        const char *why = json_text_at(r, "status.message", "没有记下原因");
        str_addf(out, "  %s × %s × Track %s: %.*s\n", json_text_at(r, "config.model", "?"),
                 json_text_at(r, "config.method", "?"), json_text_at(r, "config.track", "?"),
                 (int)strcspn(why, "\n"), why);
    }
}
