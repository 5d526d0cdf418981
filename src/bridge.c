/* bridge — 桥的后一半：开服务、跑 lm_eval、读它的结果 JSON */
#include "bridge.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "io/file.h"
#include "serve/http.h"

enum { ARGS_MAX = 64, CONNECTIONS = 80, CONCURRENT = 64 };

/* ---------- 运行 ---------- */

typedef struct Command {
    char *argv[ARGS_MAX + 1];
    int n;
    Arena *arena;
    Err *e;
} Command;

static void arg(Command *c, const char *text) {
    if (c->e->code != ERR_NONE) return;
    if (c->n == ARGS_MAX) {
        err_set(c->e, ERR_CONFIG, "eval.lm_eval_args 的参数太多");
        return;
    }
    c->argv[c->n++] = arena_strdup(c->arena, text, c->e);
}

/* 空格分开的附加参数。 */
static void split_args(Command *c, const char *text) {
    while (text && *text) {
        size_t n = strcspn(text, " ");
        char *one = n ? arena_strndup(c->arena, text, n, c->e) : NULL;
        if (one) arg(c, one);
        text += n + (text[n] == ' ');
    }
}

static bool build_command(Experiment *x, int port, const char *dir, Command *c) {
    const RunOptions *o = &x->config.run;
    char number[24];
    Str tasks = {0}, model = {0};
    for (size_t i = 0; i < x->n_bridge_tasks; i++)
        str_addf(&tasks, "%s%s", i ? "," : "", x->bridge_tasks[i]);
    str_addf(&model,
             "model=%s,tokenizer=%s,base_url=http://127.0.0.1:%d/v1/completions,"
             "tokenizer_backend=huggingface,num_concurrent=%d,max_length=%lld,timeout=86400",
             x->config.model.name, x->bridge_tokenizer, port, CONCURRENT, (long long)x->max_length);
    if (strpbrk(x->bridge_tokenizer, ",="))
        err_set(c->e, ERR_CONFIG, "%s: 路径里有逗号或等号，lm_eval 的 --model_args 写不下", x->bridge_tokenizer);
    if (tasks.failed || model.failed) err_set(c->e, ERR_MEMORY, "内存不足");
    const char *const fixed[] = {o->lm_eval_command, "--model", "local-completions", "--model_args",
                                 model.data, "--tasks", tasks.data, "--batch_size", "1",
                                 "--output_path", dir, NULL};
    for (int i = 0; c->e->code == ERR_NONE && fixed[i]; i++) arg(c, fixed[i]);
    if (o->task_limit) {
        snprintf(number, sizeof number, "%lld", (long long)o->task_limit);
        arg(c, "--limit");
        arg(c, number);
    }
    if (o->num_fewshot >= 0) {
        snprintf(number, sizeof number, "%lld", (long long)o->num_fewshot);
        arg(c, "--num_fewshot");
        arg(c, number);
    }
    split_args(c, o->lm_eval_args);
    str_free(&tasks);
    str_free(&model);
    return c->e->code == ERR_NONE;
}

pid_t bridge_spawn(char *const *argv, const char *log) {
    pid_t pid = fork();
    if (pid != 0) return pid;
    int out = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    int in = open("/dev/null", O_RDONLY | O_CLOEXEC);
    setpgid(0, 0); /* Ctrl-C 由我们转告，不直接到它 */
    if (out < 0 || in < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0) _exit(127);
    execvp(argv[0], argv);
    _exit(127);
}

/* 等它结束；被中断就结束它和它的子进程。 */
static bool wait_for(pid_t pid, int *status, Err *e) {
    for (;;) {
        pid_t got = waitpid(pid, status, WNOHANG);
        if (got == pid) return true;
        if (got < 0 && errno != EINTR) return err_set(e, ERR_IO, "等待 lm_eval 失败：%s", strerror(errno));
        if (interrupt_requested()) {
            kill(-pid, SIGTERM);
            for (int i = 0; i < 50 && waitpid(pid, status, WNOHANG) == 0; i++) usleep(100000);
            kill(-pid, SIGKILL);
            waitpid(pid, status, 0);
            return interrupt_check(e);
        }
        usleep(50000);
    }
}

/* 日志的末尾，放进错误信息。 */
static const char *log_tail(Arena *a, const char *path) {
    FileMap m;
    Err ignored = {0};
    if (!file_map(&m, path, &ignored)) return "";
    size_t n = m.size < 400 ? m.size : 400;
    char *text = arena_strndup(a, (const char *)m.data + (m.size - n), n, NULL);
    file_unmap(&m);
    if (text) str_clean(text);
    return text ? text : "";
}

static bool run_lm_eval(Experiment *x, const char *dir, int port, Err *e) {
    Command c = {.arena = &x->arena, .e = e};
    const char *log = arena_printf(&x->arena, e, "%s/lm_eval.log", dir);
    int status = 0;
    if (!log || !build_command(x, port, dir, &c)) return false;
    log_line(LOG_EVAL, "桥：%s 评测 %zu 个不是原生的任务（日志 %s）", c.argv[0], x->n_bridge_tasks, log);
    double started = clock_seconds();
    pid_t pid = bridge_spawn(c.argv, log);
    if (pid < 0) return err_set(e, ERR_IO, "不能启动 %s：%s", c.argv[0], strerror(errno));
    if (!wait_for(pid, &status, e)) return false;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return err_set(e, ERR_IO, "%s 失败（退出码 %d），日志 %s 的末尾：%s", c.argv[0],
                       WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), log,
                       log_tail(&x->arena, log));
    char took[32];
    log_line(LOG_TIME, "桥：用时 %s", str_seconds(took, sizeof took, clock_seconds() - started));
    return true;
}

/* ---------- 结果 ---------- */

/* dir 之下（逐层）名为 results_*.json 的文件；没有为 NULL。 */
static const char *find_results(Arena *a, const char *dir, int depth) {
    DIR *d = depth < 4 ? opendir(dir) : NULL;
    const char *found = NULL;
    for (struct dirent *f; d && !found && (f = readdir(d)) != NULL;) {
        if (f->d_name[0] == '.') continue;
        const char *path = arena_printf(a, NULL, "%s/%s", dir, f->d_name);
        if (!path) break;
        if (str_starts(f->d_name, "results_") && str_ends(f->d_name, ".json")) found = path;
        else if (f->d_type == DT_DIR) found = find_results(a, path, depth + 1);
    }
    if (d) closedir(d);
    return found;
}

/* 一个任务：它的指标，加上来源、版本、文档数。 */
static json_t *task_result(const json_t *all, const char *name, const json_t *metrics) {
    json_t *o = json_object();
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)metrics, key, v) {
        bool missing = json_is_string(v) && strcmp(json_string_value(v), "N/A") == 0;
        if (strcmp(key, "alias") != 0) json_object_set_new(o, key, missing ? json_null() : json_incref(v));
    }
    json_object_set_new(o, "source", json_string("lm_eval"));
    json_t *version = json_object_get(json_object_get(all, "versions"), name);
    if (version) json_object_set(o, "version", version);
    json_t *n = json_object_get(json_object_get(json_object_get(all, "n-samples"), name), "effective");
    if (n) json_object_set(o, "sample_len", n);
    json_t *harness = json_object_get(all, "lm_eval_version");
    if (harness) json_object_set(o, "lm_eval_version", harness);
    return o;
}

/* 点名的各任务的 acc_norm（没有则 acc）的平均。 */
static void average(const RunOptions *o, json_t *lm_eval) {
    double sum = 0;
    int n = 0;
    for (size_t i = 0; i < o->n_lm_eval_tasks; i++) {
        const json_t *t = json_object_get(lm_eval, o->lm_eval_tasks[i]);
        const json_t *v = json_object_get(t, "acc_norm,none");
        if (!json_is_number(v)) v = json_object_get(t, "acc,none");
        if (!json_is_number(v)) continue;
        sum += json_number_value(v);
        n++;
    }
    if (n) json_object_set_new(lm_eval, "_avg_accuracy", json_real(sum / n));
}

static bool merge(Experiment *x, const char *dir, json_t *lm_eval, Err *e) {
    const char *path = find_results(&x->arena, dir, 0);
    if (!path) return err_set(e, ERR_MISSING, "lm_eval 没有在 %s 写出 results_*.json", dir);
    json_t *all = json_load(path, e);
    if (!all) return false;
    const char *name;
    json_t *metrics;
    json_object_foreach(json_object_get(all, "results"), name, metrics) {
        json_object_set_new(lm_eval, name, task_result(all, name, metrics));
        const json_t *acc = json_object_get(metrics, "acc,none");
        if (json_is_number(acc)) log_line(LOG_EVAL, "%s（桥）：acc %.4f", name, json_number_value(acc));
    }
    average(&x->config.run, lm_eval);
    json_decref(all);
    for (size_t i = 0; i < x->n_bridge_tasks; i++)
        if (!json_object_get(lm_eval, x->bridge_tasks[i]))
            return err_set(e, ERR_MISSING, "lm_eval 的结果 %s 里没有任务 %s", path, x->bridge_tasks[i]);
    return true;
}

bool bridge_run(Experiment *x, json_t *lm_eval, Err *e) {
    if (!x->n_bridge_tasks) return true;
    const char *dir = arena_printf(&x->arena, e, "%s/processed/bridge/%.16s-%ld", x->data_dir,
                                   x->run_key, (long)getpid());
    ServerOptions o = {.host = "127.0.0.1", .max_body = (size_t)16 << 20,
                       .max_connections = CONNECTIONS, .idle_seconds = 3600,
                       .engine = {.model = &x->model, .tokenizer = x->tokenizer, .eos = &x->eos,
                                  .name = x->config.model.name, .max_length = x->max_length,
                                  .max_queue = 2 * CONCURRENT}};
    Server *s;
    if (!dir || !file_mkdirs(dir, e) || !server_open(&s, &o, e)) return false;
    bool ok = run_lm_eval(x, dir, server_port(s), e);
    server_close(s, NULL);
    return (ok && merge(x, dir, lm_eval, e)) || err_wrap(e, "eval.lm_eval_tasks（桥）");
}
