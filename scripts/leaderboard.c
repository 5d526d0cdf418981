/* leaderboard — 汇总结果文件夹：排行榜（Markdown、CSV、终端）与图
 * 读不了的结果点名跳过；输出都是原子写入。 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "env_info.h"
#include "io/file.h"
#include "leaderboard.h"
#include "plot.h"
#include "scripts/cli.h"
#include "scripts/commands.h"
#include "scripts/publish.h"

typedef bool (*Render)(const Leaderboard *lb, Str *out, Err *e);

static bool save(const Leaderboard *lb, Render render, Arena *a, const char *dir, const char *name,
                 Err *e) {
    Str text = {0};
    char *path = file_join(a, dir, name, e);
    bool ok = path && render(lb, &text, e) && file_write_atomic(path, text.data, text.len, e);
    str_free(&text);
    return ok;
}

bool publish_leaderboard(const char *results, const char *plots, bool quiet, Err *e) {
    Arena a = {0};
    ResultFile *files;
    size_t n, drawn = 0;
    Leaderboard lb;
    if (!result_load_all(results, &a, &files, &n, e)) {
        arena_free(&a);
        return false;
    }
    bool built = leaderboard_build(&lb, files, n, e);
    bool ok = built && file_mkdirs(results, e) &&
              save(&lb, leaderboard_markdown, &a, results, "leaderboard.md", e) &&
              save(&lb, leaderboard_csv, &a, results, "leaderboard.csv", e) &&
              (!plots || plot_boards(&lb, plots, &drawn, e));
    if (ok && !quiet) {
        Str screen = {0};
        leaderboard_screen(&lb, &screen);
        if (!screen.failed) fputs(screen.data, stdout);
        fflush(stdout);
        str_free(&screen);
    }
    if (ok) {
        log_line(LOG_OK, "%zu 个结果 → %s/leaderboard.md、leaderboard.csv", n, results);
        if (drawn) log_line(LOG_OK, "%zu 张图 → %s/", drawn, plots);
    }
    if (built) leaderboard_free(&lb);
    result_free_all(files, n);
    arena_free(&a);
    return ok;
}

int cmd_leaderboard(int argc, char **argv) {
    const char *results = NULL, *plots = NULL;
    bool no_plots = false, quiet = false;
    const CliFlag flags[] = {
        {"--results", CLI_STR, &results, "文件夹", "结果在哪里（默认 results/）", false},
        {"--plots", CLI_STR, &plots, "文件夹", "图画到哪里（默认 plots/）", false},
        {"--no_plots", CLI_BOOL, &no_plots, NULL, "不画图", false},
        {"--quiet", CLI_BOOL, &quiet, NULL, "不在屏幕上打印榜", false},
        {0}};
    const CliSpec spec = {.command = "leaderboard", .about = "汇总全部结果为排行榜与图",
                          .flags = flags,
                          .epilog = "写出 results/leaderboard.md、results/leaderboard.csv 与 plots/ 下的图"};
    CliResult parsed = cli_parse(&spec, argc, argv);
    if (parsed != CLI_GO) return parsed == CLI_DONE ? 0 : err_exit_code(ERR_USAGE);
    log_set_quiet(quiet);
    Arena a = {0};
    Err e = {0};
    const char *root = env_project_root();
    const char *from = results ? results : file_join(&a, root, "results", &e);
    const char *to = plots ? plots : file_join(&a, root, "plots", &e);
    bool ok = from && to;
    if (ok && !file_is_dir(from))
        ok = err_set(&e, ERR_MISSING, "%s: 没有这个结果文件夹；先运行 ptq-bench run_one 或 run_all", from);
    ok = ok && publish_leaderboard(from, no_plots ? NULL : to, quiet, &e);
    arena_free(&a);
    return ok ? 0 : cli_fail(&e);
}
