/* leaderboard — 全部结果的汇总：分榜、排序、排名组
 * 一个榜 = 同一轨道、模型（权重与 dtype）、数据集（文本 SHA-256）、协议、窗口数、计算类型；绝不混排。
 * 同一方法同样设置只留最新的结果。排名组：逐窗 NLL 成对块自助检验，整榜 Holm 校正，0.05 上分不开的同组。 */
#ifndef PTQ_LEADERBOARD_H
#define PTQ_LEADERBOARD_H
#include "base/str.h"
#include "io/hash.h"
#include "result_writer.h"

typedef struct BoardRow {
    const ResultFile *file;
    const char *method, *settings; /* settings: "W4 g128 sym" 之类的短写 */
    double ppl, ppl_stderr;
    double delta_ppl;                     /* 对同榜 fp16；没有 fp16 时为 NAN */
    double delta_nll, delta_lo, delta_hi; /* 95 % 区间 */
    double kl_mean, kl_p99, same_top1;
    double bits_linear, bits_model, weights_mb, memory_mb;
    double prefill, decode, quant_seconds;
    int group;            /* 排名组，从 1 数；0 表示没有逐窗数据，无法检验 */
    const double *window_nll; /* (n_windows)，没有时为 NULL */
    size_t n_windows;
} BoardRow;

typedef struct Board {
    char track;
    const char *model, *dataset, *protocol, *compute, *dtype, *text_sha256;
    int64_t n_windows, n_windows_total;
    BoardRow *rows; /* 按 PPL 升序 */
    size_t n_rows;
} Board;

/* ---- lm-eval 任务的榜（leaderboard_tasks.c）：准确率自成一表，与 PPL 的排名无关 ---- */
typedef struct TaskCell { /* 一行（方法）一列（任务或组） */
    const json_t *task;   /* results.lm_eval.任务 */
    const char *metric;   /* 主指标的键 "acc_norm,none"；没有为 NULL */
    double value, error;  /* error 为标准误，没有为 NAN */
    const json_t *paired; /* 对 fp16 的比较（该指标的 baseline），没有为 NULL */
    double p_holm;        /* McNemar 的 p 在本表全部（行，列）上的 Holm 校正值；没有为 NAN */
} TaskCell;

typedef struct TaskRow {
    const ResultFile *file;
    const char *method, *settings;
    char key[HASH_HEX]; /* 表的身份 */
    double average;     /* _avg_accuracy；没有为 NAN */
    int group;          /* 排名组，从 1 数；0 为没有逐文档的得分，无法检验 */
    TaskCell *cells;    /* (n_columns) */
} TaskRow;

/* 一个表 = 同一轨道、模型（权重与 dtype）、计算类型、同样的一组任务（请求的 SHA-256 相同）；一行一个方法与设置的最新结果。 */
typedef struct TaskBoard {
    char track;
    const char *model, *dtype, *compute;
    const char **columns; /* 任务或组的名字 */
    size_t n_columns;
    TaskRow *rows; /* 按平均准确率降序 */
    size_t n_rows;
} TaskBoard;

typedef struct Leaderboard {
    Arena arena;
    Board *boards; /* 按轨道、模型、数据集、协议排序 */
    size_t n_boards;
    TaskBoard *task_boards;
    size_t n_task_boards;
    const ResultFile **failed; /* 失败且之后没有成功过的运行 */
    size_t n_failed, n_results;
    const ResultFile *files; /* (n_results) 建榜用的全部结果 */
} Leaderboard;

/* 由读回的结果建榜。files 须比 lb 活得长。 */
bool leaderboard_build(Leaderboard *lb, const ResultFile *files, size_t n, Err *e);
void leaderboard_free(Leaderboard *lb);
/* 设置的短写，如 "W4 g64 asym"；fp16 为权重的 dtype。 */
const char *leaderboard_settings(const json_t *result, Arena *a, Err *e);

/* 建任务的榜（由 leaderboard_build 调用）。 */
bool leaderboard_build_tasks(Leaderboard *lb, const ResultFile *files, size_t n, Err *e);
/* 任务的三种写法（leaderboard_tasks_render.c，由下面三个调用）；没有任务则什么也不写。CSV 的列见 leaderboard_csv。 */
void leaderboard_tasks_markdown(const Leaderboard *lb, Str *out);
void leaderboard_tasks_csv(const Leaderboard *lb, Str *out);
void leaderboard_tasks_screen(const Leaderboard *lb, Str *out);
void csv_text(Str *out, const char *s); /* RFC 4180 的一格 */
/* 三种写法：Markdown 全表、CSV（一行一个结果的一个数据集或任务，数字全精度）、终端上按显示宽度对齐的简表。 */
bool leaderboard_markdown(const Leaderboard *lb, Str *out, Err *e);
bool leaderboard_csv(const Leaderboard *lb, Str *out, Err *e);
void leaderboard_screen(const Leaderboard *lb, Str *out);
#endif
