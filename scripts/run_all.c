/* run_all — 跑一个实验矩阵：每个单元一个子进程，崩溃、被杀都只失这一格
 * 「有没有做过」只看结果文件夹里有没有同 run_key 的成功结果，此外没有状态文件；结果的写出是原子的，
 * 所以任何时刻被中断都可以原样再来。同一结果文件夹同时只许一个 run_all（flock）。 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "env_info.h"
#include "io/file.h"
#include "matrix.h"
#include "registry.h"
#include "result_writer.h"
#include "runner.h"
#include "scripts/child.h"
#include "scripts/cli.h"
#include "scripts/commands.h"
#include "scripts/publish.h"

typedef enum { CELL_TODO, CELL_DONE, CELL_SKIPPED, CELL_FAILED, CELL_NOT_APPLICABLE } CellState;

typedef struct Sweep {
    const char *root, *results;
    Matrix matrix;
    CellState *states;
    bool quiet;
    Arena arena; /* 结果路径等，活到结束 */
} Sweep;

static ConfigRequest request_of(const Sweep *s, const Cell *c) {
    return (ConfigRequest){.root = s->root, .model = c->model, .method = c->method,
                           .track = c->track, .overrides = c->overrides,
                           .n_overrides = c->n_overrides};
}

/* "demo × rtn × Track A（W4）" */
static void describe(const Cell *c, Str *out) {
    str_addf(out, "%s × %s × Track %s", c->model, c->method, c->track);
    if (c->label) {
        str_addf(out, "（%s）", c->label);
        return;
    }
    for (size_t i = 0; i < c->n_overrides; i++)
        str_addf(out, "%s%s", i ? " " : "（", c->overrides[i]);
    if (c->n_overrides) str_add(out, "）");
}

static void say(LogKind kind, const Cell *c, size_t i, size_t n, const char *what) {
    Str name = {0};
    describe(c, &name);
    if (!name.failed) log_line(kind, "[%zu/%zu] %s: %s", i + 1, n, name.data, what);
    str_free(&name);
}

static bool applicable(const Cell *c) {
    const Method *m = registry_find(c->method, NULL);
    if (!m || !c->track[0]) return true; /* 名字的错由 config 报 */
    char t = c->track[strlen(c->track) - 1];
    if (t >= 'a' && t <= 'z') t = (char)(t - 'a' + 'A');
    return t < 'A' || t > 'C' || strchr(m->tracks, t) != NULL;
}

/* ---------- 失败的结果（子进程没能自己写下时） ---------- */

static json_t *failure_json(const Sweep *s, const Cell *c, const char *run_key, const Err *why) {
    char started[40], track[2] = {c->track[0] ? c->track[strlen(c->track) - 1] : '?', 0};
    time_t now = time(NULL);
    struct tm tm;
    localtime_r(&now, &tm);
    strftime(started, sizeof started, "%Y-%m-%dT%H:%M:%S%z", &tm);
    if (track[0] >= 'a' && track[0] <= 'z') track[0] = (char)(track[0] - 'a' + 'A');
    json_t *overrides = json_array();
    Str command = {0};
    str_addf(&command, "ptq-bench run_one --model %s --method %s --track %s", c->model, c->method,
             c->track);
    for (size_t i = 0; i < c->n_overrides; i++) {
        json_array_append_new(overrides, json_string(c->overrides[i]));
        char *quoted = cli_command_line("--override", 1, (char *[]){(char *)c->overrides[i]});
        str_addf(&command, " %s", quoted ? quoted : "");
        free(quoted);
    }
    json_t *r = json_pack(
        "{s:s, s:{s:b, s:s, s:s}, s:s, s:{s:s, s:s, s:s, s:o}, s:s, s:{s:s}, s:o, s:[], s:[]}",
        "schema", RESULT_SCHEMA, "status", "ok", 0, "code", err_code_name(why->code), "message",
        why->msg, "run_key", run_key, "config", "model", c->model, "method", c->method, "track",
        track, "overrides", overrides, "command", command.data ? command.data : "", "time",
        "started", started, "environment", env_info(s->root), "warnings", "fallbacks");
    str_free(&command);
    return r;
}

static void record_failure(Sweep *s, const Cell *c, const char *run_key, const Err *why) {
    const char *path = NULL;
    Err e = {0};
    json_t *r = failure_json(s, c, run_key, why);
    if (!r || !result_check(r, c->model, &e) || !result_write(r, s->results, &s->arena, &path, &e))
        log_line(LOG_WARN, "失败的记录没有写成: %s", r ? e.msg : "内存不足");
    else
        log_line(LOG_FAIL, "失败的原因已记在 %s", path);
    json_decref(r);
}

/* ---------- 子进程 ---------- */

/* 一个单元的命令行：各项借自 c 与 s，数组由调用者 free。内存不足为 NULL。 */
static char **cell_argv(const Sweep *s, const Cell *c) {
    size_t n = 0;
    char **argv = calloc(2 * c->n_overrides + 16, sizeof *argv);
    const char *fixed[] = {program_name, "run_one", "--model", c->model, "--method", c->method,
                           "--track", c->track, "--results", s->results};
    for (size_t i = 0; argv && i < sizeof fixed / sizeof *fixed; i++) argv[n++] = (char *)fixed[i];
    for (size_t i = 0; argv && i < c->n_overrides; i++) {
        argv[n++] = "--override";
        argv[n++] = (char *)c->overrides[i];
    }
    if (argv && s->quiet) argv[n++] = "--quiet";
    return argv;
}

/* key 为空：从前没有这一格的结果，run_key 到失败时才问；问不出来的缘故就是失败的缘故。 */
static CellState launch(Sweep *s, const Cell *c, char key[65], Err *why) {
    const char *before = key[0] ? result_newest(s->results, key, &s->arena) : NULL;
    char **argv = cell_argv(s, c);
    bool done = argv ? child_run(argv, why) : err_set(why, ERR_MEMORY, "内存不足");
    free(argv);
    if (done) return CELL_DONE;
    if (interrupt_requested() || why->code == ERR_INTERRUPTED) return CELL_TODO;
    ConfigRequest r = request_of(s, c);
    Err cause = {0};
    if (!key[0] && !run_key_of(&r, key, &cause)) *why = cause;
    const char *after = key[0] ? result_newest(s->results, key, &s->arena) : NULL;
    bool recorded = after && (!before || strcmp(before, after) != 0);
    if (!recorded) record_failure(s, c, key, why);
    return CELL_FAILED;
}

/* ---------- 各单元 ---------- */

/* 从前有没有这一格的结果（设置不论）；配置读不通也算有，好问出缘故。 */
static bool has_results(Sweep *s, const ConfigRequest *r) {
    Config c;
    if (!config_load(&c, r, NULL)) return true;
    bool found = result_any(s->results, c.model.name, c.method_name, c.track, &s->arena);
    config_free(&c);
    return found;
}

/* 查明一个单元该不该跑。run_key 要打开模型才知道：peek 为真时，从前没有结果的就不打开，key 为空。
 * 错误: 配置、模型或数据有问题。 */
static bool examine(Sweep *s, const Cell *c, bool peek, CellState *state, char key[65], Err *e) {
    key[0] = '\0';
    *state = CELL_NOT_APPLICABLE;
    if (!applicable(c)) return true;
    ConfigRequest r = request_of(s, c);
    *state = CELL_TODO;
    if (peek && !has_results(s, &r)) return true;
    if (!run_key_of(&r, key, e)) return false;
    json_t *found = result_find(s->results, key, NULL, &s->arena);
    *state = found ? CELL_SKIPPED : CELL_TODO;
    json_decref(found);
    return true;
}

static void run_cells(Sweep *s) {
    size_t n = s->matrix.n;
    for (size_t i = 0; i < n && !interrupt_requested(); i++) {
        const Cell *c = &s->matrix.cells[i];
        char key[65];
        Err e = {0};
        if (!examine(s, c, true, &s->states[i], key, &e)) {
            say(LOG_FAIL, c, i, n, e.msg);
            record_failure(s, c, key, &e);
            s->states[i] = CELL_FAILED;
        } else if (s->states[i] == CELL_NOT_APPLICABLE) {
            say(LOG_INFO, c, i, n, "方法不支持这个轨道，不跑");
        } else if (s->states[i] == CELL_SKIPPED) {
            say(LOG_INFO, c, i, n, "已有结果，跳过");
        } else {
            say(LOG_INFO, c, i, n, "开始");
            s->states[i] = launch(s, c, key, &e);
            if (s->states[i] == CELL_FAILED) say(LOG_FAIL, c, i, n, e.msg);
        }
    }
}

static int list_cells(Sweep *s) {
    size_t n = s->matrix.n;
    int bad = 0;
    for (size_t i = 0; i < n; i++) {
        const Cell *c = &s->matrix.cells[i];
        char key[65];
        Err e = {0};
        CellState state;
        if (!examine(s, c, false, &state, key, &e)) {
            say(LOG_FAIL, c, i, n, e.msg);
            bad = 1;
        } else {
            say(LOG_INFO, c, i, n,
                state == CELL_SKIPPED          ? "已有结果，将跳过"
                : state == CELL_NOT_APPLICABLE ? "方法不支持这个轨道，不跑"
                                               : "将运行");
        }
    }
    return bad;
}

static int summarize(const Sweep *s) {
    static const struct {
        LogKind kind;
        const char *text;
    } SHOWN[] = {{LOG_WARN, "没有跑"}, {LOG_OK, "完成"}, {LOG_OK, "已有结果"},
                 {LOG_FAIL, "失败"},   {LOG_INFO, "不适用"}};
    size_t count[5] = {0}, n = s->matrix.n;
    log_line(LOG_INFO, "实验 %s 的 %zu 个单元:", s->matrix.name, n);
    for (size_t i = 0; i < n; i++) {
        count[s->states[i]]++;
        say(SHOWN[s->states[i]].kind, &s->matrix.cells[i], i, n, SHOWN[s->states[i]].text);
    }
    log_line(count[CELL_FAILED] ? LOG_FAIL : LOG_OK,
             "完成 %zu，已有 %zu，失败 %zu，不适用 %zu，没有跑 %zu", count[CELL_DONE], count[CELL_SKIPPED],
             count[CELL_FAILED], count[CELL_NOT_APPLICABLE], count[CELL_TODO]);
    if (interrupt_requested()) {
        log_line(LOG_WARN, "已中断。完成的结果都在；再次运行同一命令即从这里继续");
        return err_exit_code(ERR_INTERRUPTED);
    }
    if (count[CELL_FAILED]) log_line(LOG_INFO, "失败的单元会在下一次 run_all 时重跑");
    return count[CELL_FAILED] ? 1 : 0;
}

/* ---------- 入口 ---------- */

/* 占住结果文件夹。被杀的前一个 run_all 的子进程可能还要一瞬间才消失，所以等一会儿。返回: 描述符，失败 -1。 */
static int take_lock(const Sweep *s, Err *e) {
    Str path = {0};
    str_addf(&path, "%s/.run_all.lock", s->results);
    int fd = path.failed ? -1 : open(path.data, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) {
        err_set(e, ERR_IO, "打不开 %s: %s", path.data ? path.data : "", strerror(errno));
        str_free(&path);
        return -1;
    }
    for (int tries = 0; flock(fd, LOCK_EX | LOCK_NB) != 0; tries++) {
        char who[32] = "";
        if (tries < 40) {
            struct timespec pause = {0, 50 * 1000 * 1000};
            nanosleep(&pause, NULL);
            continue;
        }
        ssize_t got = pread(fd, who, sizeof who - 1, 0);
        who[got > 0 ? strcspn(who, "\n") : 0] = '\0';
        err_set(e, ERR_IO, "%s 正被另一个 run_all（进程 %s）使用；等它结束，或用 --results 换一个文件夹",
                s->results, who[0] ? who : "?");
        close(fd);
        fd = -1;
        break;
    }
    char pid[32];
    int len = snprintf(pid, sizeof pid, "%ld\n", (long)getpid());
    if (fd >= 0 && (ftruncate(fd, 0) != 0 || pwrite(fd, pid, (size_t)len, 0) != len))
        log_line(LOG_WARN, "%s 写不进进程号", path.data); /* 只影响提示，不影响互斥 */
    str_free(&path);
    return fd;
}

/* 结果文件夹: --results，否则第一个读得通的单元的 results_dir。 */
static const char *results_dir(Sweep *s, const char *given, Err *e) {
    if (given && given[0] == '/') return given;
    char *cwd = given ? getcwd(NULL, 0) : NULL;
    const char *dir = given && cwd ? file_join(&s->arena, cwd, given, e) : NULL;
    free(cwd);
    for (size_t i = 0; !given && !dir && i < s->matrix.n; i++) {
        Config c;
        ConfigRequest r = request_of(s, &s->matrix.cells[i]);
        if (!config_load(&c, &r, NULL)) continue;
        dir = arena_strdup(&s->arena, c.run.results_dir, e);
        config_free(&c);
    }
    return dir ? dir : file_join(&s->arena, s->root, given ? given : "results", e);
}

static int sweep(Sweep *s, bool dry_run, bool no_leaderboard, const char *plots) {
    Err e = {0};
    if (dry_run) return list_cells(s);
    if (!file_mkdirs(s->results, &e)) return cli_fail(&e);
    int lock = take_lock(s, &e);
    if (lock < 0) return cli_fail(&e);
    result_clean(s->results);
    interrupt_install();
    double started = clock_seconds();
    run_cells(s);
    int code = summarize(s);
    char took[48];
    log_line(LOG_TIME, "总用时 %s", str_seconds(took, sizeof took, clock_seconds() - started));
    if (!no_leaderboard && code != err_exit_code(ERR_INTERRUPTED) &&
        !publish_leaderboard(s->results, plots, s->quiet, &e)) {
        int failed = cli_fail(&e);
        code = code ? code : failed;
    }
    close(lock);
    return code;
}

typedef struct Args {
    const char *results, *plots, *device, *threads, *limit, *compute, *max_memory;
    CliList overrides, rest;
    bool dry_run, quiet, no_leaderboard;
} Args;

static CliResult parse(Args *a, int argc, char **argv) {
    const CliFlag flags[] = {
        {"--override", CLI_LIST, &a->overrides, "键=值", "覆盖每个单元的一个设置", false},
        {"--dry_run", CLI_BOOL, &a->dry_run, NULL, "只列出单元：哪些将运行，哪些已有结果", false},
        {"--device", CLI_STR, &a->device, "auto|cpu|cuda", "运行设备", false},
        {"--threads", CLI_STR, &a->threads, "N", "线程数，0 为全部核", false},
        {"--limit", CLI_STR, &a->limit, "N", "每个数据集最多多少个窗口", false},
        {"--compute", CLI_STR, &a->compute, "auto|float32|bfloat16", "矩阵乘的计算类型", false},
        {"--max_memory", CLI_STR, &a->max_memory, "大小", "内存（GPU 上是显存）上限，如 400MB：装不下时逐块载入", false},
        {"--results", CLI_STR, &a->results, "文件夹", "结果写到哪里（默认 results/）", false},
        {"--plots", CLI_STR, &a->plots, "文件夹", "图画到哪里（默认 plots/）", false},
        {"--no_leaderboard", CLI_BOOL, &a->no_leaderboard, NULL, "结束时不更新排行榜", false},
        {"--quiet", CLI_BOOL, &a->quiet, NULL, "只打印警告与错误", false},
        {0}};
    const CliSpec spec = {
        .command = "run_all", .about = "跑一个实验矩阵；可中断，再次运行即续跑", .flags = flags,
        .positional = "实验.yaml", .rest = &a->rest,
        .epilog = "例: ptq-bench run_all configs/experiments/demo.yaml\n"
                  "    ptq-bench run_all demo --dry_run\n"
                  "已有成功结果（同样的模型、数据、设置）的单元跳过；失败的重跑。"};
    return cli_parse(&spec, argc, argv);
}

/* 标志 → override，放在 --override 之后。返回 false 为内存不足。 */
static bool add_flag(Arena *arena, Args *a, const char *key, const char *value) {
    if (!value) return true;
    char *text = arena_printf(arena, NULL, "%s=%s", key, value);
    if (text) a->overrides.items[a->overrides.n++] = text;
    return text != NULL;
}

static int run(Args *a) {
    Sweep s = {.root = env_project_root(), .quiet = a->quiet};
    Err e = {0};
    log_set_quiet(a->quiet);
    bool ok = add_flag(&s.arena, a, "device", a->device) &&
              add_flag(&s.arena, a, "threads", a->threads) &&
              add_flag(&s.arena, a, "eval.limit", a->limit) &&
              add_flag(&s.arena, a, "compute", a->compute) &&
              add_flag(&s.arena, a, "max_memory", a->max_memory) &&
              matrix_load(&s.matrix, s.root, a->rest.items[0], a->overrides.items, a->overrides.n,
                          &e);
    if (ok) s.states = ARENA_ARRAY(&s.arena, CellState, s.matrix.n, &e);
    if (ok && s.states) s.results = results_dir(&s, a->results, &e);
    const char *plots = a->plots ? a->plots : file_join(&s.arena, s.root, "plots", &e);
    int code = s.results && plots ? sweep(&s, a->dry_run, a->no_leaderboard, plots) : cli_fail(&e);
    matrix_free(&s.matrix);
    arena_free(&s.arena);
    return code;
}

int cmd_run_all(int argc, char **argv) {
    enum { EXTRA = 8 };
    Args a = {0};
    a.overrides.items = calloc((size_t)argc + EXTRA, sizeof *a.overrides.items);
    a.rest.items = calloc((size_t)argc + 1, sizeof *a.rest.items);
    int code = 1;
    if (a.overrides.items && a.rest.items) {
        CliResult parsed = parse(&a, argc, argv);
        code = parsed == CLI_DONE ? 0 : err_exit_code(ERR_USAGE);
        if (parsed == CLI_GO && a.rest.n != 1)
            log_line(LOG_FAIL, "run_all: 要给出一个实验 YAML，如 configs/experiments/demo.yaml");
        else if (parsed == CLI_GO)
            code = run(&a);
    }
    free(a.overrides.items);
    free(a.rest.items);
    return code;
}
