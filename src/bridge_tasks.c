/* bridge_tasks — 桥的前一半：哪些任务是原生的，其余的 lm_eval 认不认得、能不能用
 * 都在量化之前问清楚：写错的名字当场报出（最近的原生名字在前），不等到评测。 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "bridge.h"
#include "io/file.h"

/* 命令的文件：带斜杠的就是它，否则逐个找 PATH。不能运行为 NULL。 */
static const char *find_command(const char *command, char *full, size_t cap) {
    const char *path = getenv("PATH");
    if (!*command) return NULL;
    if (strchr(command, '/')) return access(command, X_OK) == 0 ? command : NULL;
    for (const char *p = path ? path : ""; *p;) {
        size_t n = strcspn(p, ":");
        snprintf(full, cap, "%.*s/%s", (int)n, p, command);
        if (n && access(full, X_OK) == 0) return full;
        p += n + (p[n] == ':');
    }
    return NULL;
}

bool bridge_available(const RunOptions *o) {
    char full[4096];
    return o->lm_eval_command && find_command(o->lm_eval_command, full, sizeof full);
}

/* 名字能不能原生评测；不能时 why 说明（不认得，或它的 YAML 不行）。 */
static bool is_native(const TaskIndex *index, const char *name, Err *why) {
    Arena a = {0};
    TaskSelection s = {0};
    bool found = task_select(&s, index, &a, &name, 1, why);
    task_select_free(&s);
    arena_free(&a);
    return found;
}

/* 运行到结束。返回: 退出码；起不来、被信号结束为 -1。 */
static int run_to_end(char *const *argv, const char *log) {
    int status = 0;
    pid_t pid = bridge_spawn(argv, log);
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
    return pid > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* lm_eval 的脚本首行（#!）写着的 Python，拆成 argv；不是 Python 的脚本返回 0。 */
static int interpreter(const char *file, char *line, size_t cap, char *argv[3]) {
    FILE *f = fopen(file, "r");
    bool ok = f && fgets(line, (int)cap, f) && str_starts(line, "#!") && strstr(line, "python");
    int n = 0;
    if (f) fclose(f);
    char *rest = ok ? line + 2 : NULL, *save;
    for (char *w = rest ? strtok_r(rest, " \t\r\n", &save) : NULL; w && n < 2;
         w = strtok_r(NULL, " \t\r\n", &save))
        argv[n++] = w;
    argv[n] = NULL;
    return n;
}

/* 量化之前先看 lm_eval 用得了 local-completions：它要 [api] 那几个包，缺了要到评测时才报。 */
static bool check_extras(const RunOptions *o, Err *e) {
    static const char CHECK[] =
        "import sys, importlib.util as u\n"
        "missing = [m for m in ('lm_eval', 'aiohttp', 'requests', 'tenacity', 'tqdm') if u.find_spec(m) is None]\n"
        "sys.exit(3 if missing else 0)\n";
    char full[4096], line[1024], *argv[5];
    const char *file = find_command(o->lm_eval_command, full, sizeof full);
    int n = file ? interpreter(file, line, sizeof line, argv) : 0;
    if (n == 0) return true;
    argv[n] = "-c";
    argv[n + 1] = (char *)(uintptr_t)CHECK;
    argv[n + 2] = NULL;
    if (run_to_end(argv, "/dev/null") == 0) return true;
    return err_set(e, ERR_MISSING,
                   "%s 不能经 HTTP 评测：%s 里缺 lm_eval 或它的 [api] 依赖。安装: %s -m pip install \"lm_eval[api]\"", file,
                   argv[n - 1], argv[n - 1]);
}

/* lm_eval 用的分词器：HF 文件夹。 */
static const char *tokenizer_dir(Experiment *x, Err *e) {
    const char *id = x->config.model.tokenizer_id;
    if (id && *id) return file_join(&x->arena, x->config.root, id, e);
    if (!x->model.weights.is_gguf) return x->model_path;
    err_set(e, ERR_CONFIG,
            "任务 %s 要由 lm_eval 评测，它需要 HF 格式的分词器，而模型是 GGUF：用 tokenizer_id 指明分词器文件夹",
            x->bridge_tasks[0]);
    return NULL;
}

/* ---------- 问 lm_eval ---------- */

/* eval.lm_eval_args 里的 --include_path；没有为 NULL。 */
static const char *include_path(Arena *a, const char *args) {
    static const char FLAG[] = "--include_path";
    const char *p = args ? strstr(args, FLAG) : NULL;
    if (!p) return NULL;
    p += strlen(FLAG);
    p += strspn(p, " =");
    return arena_strndup(a, p, strcspn(p, " "), NULL);
}

/* name 是否在以「, 」分开的一行里。 */
static bool in_list(const char *line, const char *name) {
    size_t n = strlen(name);
    for (const char *p = line; (p = strstr(p, name)); p += n)
        if ((p == line || p[-1] == ' ') && (p[n] == ',' || p[n] == '\n' || p[n] == '\0')) return true;
    return false;
}

/* 问一次 lm_eval validate。返回: 它说没有的名字的那一行；都有、或问不出来（旧版、坏了，留给运行时报）为 NULL。 */
static const char *ask_missing(Experiment *x, const char *const *names, size_t n, Err *e) {
    static const char MARK[] = "Tasks not found: ";
    const char *dir = arena_printf(&x->arena, e, "%s/processed/bridge", x->data_dir);
    const char *log = dir ? arena_printf(&x->arena, e, "%s/validate-%ld.log", dir, (long)getpid()) : NULL;
    const char *include = include_path(&x->arena, x->config.run.lm_eval_args);
    Str list = {0};
    for (size_t i = 0; i < n; i++) str_addf(&list, "%s%s", i ? "," : "", names[i]);
    char *tasks = arena_strdup(&x->arena, list.data ? list.data : "", e);
    str_free(&list);
    if (!log || !tasks || !file_mkdirs(dir, e)) return NULL;
    log_line(LOG_EVAL, "问 %s 有没有任务 %s", x->config.run.lm_eval_command, tasks);
    const char *argv[] = {x->config.run.lm_eval_command, "validate", "--tasks", tasks,
                          include ? "--include_path" : NULL, include, NULL};
    char **plain = (char **)(uintptr_t)argv;
    size_t len;
    char *text = run_to_end(plain, log) > 0 ? file_read(&x->arena, log, 1 << 20, &len, NULL) : NULL;
    unlink(log);
    const char *line = text ? strstr(text, MARK) : NULL;
    return line ? line + strlen(MARK) : NULL;
}

/* 不是原生的名字都问过：lm_eval 也没有的报出原生路径的说明（最近的名字），再加一句。 */
static bool check_known(Experiment *x, const TaskIndex *index, Err *e) {
    Err why = {0};
    const char *missing = ask_missing(x, x->bridge_tasks, x->n_bridge_tasks, &why);
    for (size_t i = 0; missing && i < x->n_bridge_tasks; i++) {
        if (!in_list(missing, x->bridge_tasks[i])) continue;
        is_native(index, x->bridge_tasks[i], &why);
        return err_set(e, why.code, "%s\n（已问过 %s：它也没有 '%s'）", why.msg, x->config.run.lm_eval_command,
                       x->bridge_tasks[i]);
    }
    if (why.code == ERR_NONE) return true;
    if (e) *e = why;
    return false;
}

bool bridge_split(Experiment *x, const char *tasks_dir, const char ***native, size_t *n_native,
                  Err *e) {
    const RunOptions *o = &x->config.run;
    TaskIndex index;
    *native = o->lm_eval_tasks;
    *n_native = o->n_lm_eval_tasks;
    if (!o->n_lm_eval_tasks || !bridge_available(o)) return true;
    const char **names = ARENA_ARRAY(&x->arena, const char *, o->n_lm_eval_tasks, e);
    x->bridge_tasks = ARENA_ARRAY(&x->arena, const char *, o->n_lm_eval_tasks, e);
    if (!names || !x->bridge_tasks || !task_index_open(&index, tasks_dir, e)) return false;
    *native = names;
    *n_native = 0;
    for (size_t i = 0; i < o->n_lm_eval_tasks; i++) {
        Err why = {0};
        const char *name = o->lm_eval_tasks[i];
        if (is_native(&index, name, &why)) {
            names[(*n_native)++] = name;
            continue;
        }
        if (task_index_find(&index, name))
            log_line(LOG_WARN, "任务 %s 有原生的 YAML 而不能用（%s），交给 lm_eval", name, why.msg);
        x->bridge_tasks[x->n_bridge_tasks++] = name;
    }
    bool ok = !x->n_bridge_tasks || check_known(x, &index, e);
    task_index_close(&index);
    if (!ok || !x->n_bridge_tasks) return ok;
    return (x->bridge_tokenizer = tokenizer_dir(x, e)) != NULL && check_extras(o, e);
}
