/* env_info — 运行环境的自动记录
 * 编译时的事实（提交、编译器、参数、库版本）由 Makefile 以宏给出；运行时再向 git、/proc 与 uname 查一遍，
 * 查不到就用编译时的。取不到的项一律为 null，绝不猜。 */
#include "env_info.h"

#include <fcntl.h>
#include <gnu/libc-version.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/str.h"
#include "io/file.h"

#ifndef PTQ_CFLAGS
#define PTQ_CFLAGS ""
#endif
#ifndef PTQ_LIBRARIES
#define PTQ_LIBRARIES ""
#endif
#ifndef PTQ_BUILD_COMMIT
#define PTQ_BUILD_COMMIT ""
#endif

/* ---------- 小工具 ---------- */

static json_t *text_or_null(const char *s) {
    return s && *s ? json_string(s) : json_null();
}

static bool put(json_t *o, const char *key, json_t *v) {
    return json_object_set_new(o, key, v ? v : json_null()) == 0;
}

/* 读 path 中以 key 开头的第一行里 sep 之后的部分，去掉首尾空白与引号。 */
static bool line_value(const char *path, const char *key, char sep, char *out, size_t cap) {
    FILE *f = fopen(path, "r");
    if (!f) return false;
    char line[8192];
    bool found = false;
    while (!found && fgets(line, sizeof line, f)) {
        if (!str_starts(line, key)) continue;
        char *v = strchr(line, sep);
        if (!v) continue;
        v += 1 + strspn(v + 1, " \t\"");
        v[strcspn(v, "\"\n")] = '\0';
        snprintf(out, cap, "%s", v);
        found = true;
    }
    fclose(f);
    return found;
}

/* 运行 argv（不经 shell），读它的标准输出。返回: 退出码为 0 且读到了；末尾换行已去。 */
static bool capture(char *const argv[], char *out, size_t cap) {
    int fd[2];
    if (pipe2(fd, O_CLOEXEC)) return false;
    posix_spawn_file_actions_t fa;
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_adddup2(&fa, fd[1], STDOUT_FILENO);
    posix_spawn_file_actions_addopen(&fa, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    pid_t pid;
    extern char **environ;
    bool ok = posix_spawnp(&pid, argv[0], &fa, NULL, argv, environ) == 0;
    posix_spawn_file_actions_destroy(&fa);
    close(fd[1]);
    size_t len = 0;
    ssize_t n;
    char drain[4096];
    while (ok && (n = read(fd[0], drain, sizeof drain)) > 0)
        for (ssize_t i = 0; i < n; i++)
            if (len + 1 < cap) out[len++] = drain[i];
    close(fd[0]);
    out[len] = '\0';
    while (len && out[len - 1] == '\n') out[--len] = '\0';
    int status = 0;
    if (ok) ok = waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    return ok;
}

/* ---------- 各部分 ---------- */

static bool git(const char *root, char *a, char *b, char *c, char *out, size_t cap) {
    char *argv[] = {"git", "-C", (char *)root, a, b, c, NULL};
    return capture(argv, out, cap);
}

/* 项目根就是某个 git 工作树的顶层时才用它的提交（否则那是别人的仓库）。 */
static bool is_git_top(const char *root) {
    char top[PATH_MAX];
    if (!git(root, "rev-parse", "--show-toplevel", NULL, top, sizeof top)) return false;
    char *mine = realpath(root, NULL);
    bool same = mine && strcmp(mine, top) == 0;
    free(mine);
    return same;
}

static bool add_git(json_t *o, const char *root) {
    char commit[128], changes[64];
    if (is_git_top(root) && git(root, "rev-parse", "HEAD", NULL, commit, sizeof commit)) {
        bool known = git(root, "status", "--porcelain", "--untracked-files=no", changes,
                         sizeof changes);
        return put(o, "git_commit", json_string(commit)) &&
               put(o, "git_dirty", known ? json_boolean(changes[0] != '\0') : NULL) &&
               put(o, "git_build_commit", text_or_null(PTQ_BUILD_COMMIT));
    }
    return put(o, "git_commit", text_or_null(PTQ_BUILD_COMMIT)) && put(o, "git_dirty", NULL) &&
           put(o, "git_build_commit", text_or_null(PTQ_BUILD_COMMIT));
}

/* /proc/cpuinfo 的 flags 中与本程序的内核有关的。 */
static json_t *cpu_flags(void) {
    static const char *const WANT[] = {"sse4_2", "avx",       "avx2",        "fma",
                                       "f16c",   "avx512f",   "avx512bw",    "avx512dq",
                                       "avx512vl", "avx512_vnni", "avx512_vbmi", "avx512_bf16",
                                       "amx_tile", "amx_bf16",   "amx_int8"};
    char flags[8192];
    json_t *list = json_array();
    if (!list || !line_value("/proc/cpuinfo", "flags", ':', flags, sizeof flags)) return list;
    char *save = NULL;
    for (char *f = strtok_r(flags, " ", &save); f; f = strtok_r(NULL, " ", &save))
        for (size_t i = 0; i < sizeof WANT / sizeof *WANT; i++)
            if (strcmp(f, WANT[i]) == 0 && json_array_append_new(list, json_string(f)))
                return list;
    return list;
}

static bool add_machine(json_t *o) {
    char text[512] = "";
    struct utsname u;
    line_value("/proc/cpuinfo", "model name", ':', text, sizeof text);
    bool ok = put(o, "cpu", text_or_null(text)) && put(o, "cpu_flags", cpu_flags()) &&
              put(o, "cpu_cores", json_integer(sysconf(_SC_NPROCESSORS_ONLN)));
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    ok = ok && put(o, "memory_total_mb",
                   pages > 0 && page > 0 ? json_integer((json_int_t)pages * page / 1000000) : NULL);
    text[0] = '\0';
    line_value("/etc/os-release", "PRETTY_NAME", '=', text, sizeof text);
    ok = ok && put(o, "os", text_or_null(text));
    if (uname(&u) == 0) snprintf(text, sizeof text, "%s %s %s", u.sysname, u.release, u.machine);
    return ok && put(o, "kernel", uname(&u) == 0 ? json_string(text) : NULL);
}

static bool add_build(json_t *o) {
#if defined(__clang__)
    const char *compiler = "clang " __clang_version__;
#else
    const char *compiler = "gcc " __VERSION__;
#endif
    return put(o, "ptq_bench", json_string(PTQ_VERSION)) &&
           put(o, "compiler", json_string(compiler)) && put(o, "cflags", text_or_null(PTQ_CFLAGS)) &&
           put(o, "libraries", text_or_null(PTQ_LIBRARIES)) &&
           put(o, "libc", json_string(gnu_get_libc_version())) &&
           put(o, "jansson", json_string(jansson_version_str()));
}

json_t *env_info(const char *root) {
    json_t *o = json_object();
    /* 不用 Python 栈；gpu、cuda、driver 由 runner 填（在 CPU 上为 null）。键照指南保留 */
    static const char *const ABSENT[] = {"gpu", "cuda", "driver", "torch", "transformers", "lm_eval"};
    bool ok = o != NULL;
    for (size_t i = 0; ok && i < sizeof ABSENT / sizeof *ABSENT; i++) ok = put(o, ABSENT[i], NULL);
    ok = ok && add_build(o) && add_git(o, root ? root : ".") && add_machine(o) &&
         put(o, "conda_env", text_or_null(getenv("CONDA_DEFAULT_ENV")));
    if (ok) return o;
    json_decref(o);
    return NULL;
}

size_t env_rss_peak(void) {
    struct rusage u;
    return getrusage(RUSAGE_SELF, &u) == 0 ? (size_t)u.ru_maxrss * 1024 : 0;
}

/* dir 及其各级上层中第一个含 configs/config.yaml 的；原地截短 dir。 */
static bool climb(char *dir) {
    char probe[PATH_MAX + 32];
    for (;;) {
        snprintf(probe, sizeof probe, "%s/configs/config.yaml", dir);
        if (file_exists(probe)) return true;
        char *slash = strrchr(dir, '/');
        if (!slash || slash == dir) return false;
        *slash = '\0';
    }
}

const char *env_project_root(void) {
    static char root[PATH_MAX];
    const char *given = getenv("PTQ_BENCH_ROOT");
    if (given && *given) return given;
    if (root[0]) return root;
    ssize_t n = readlink("/proc/self/exe", root, sizeof root - 1);
    if (n > 0) {
        root[n] = '\0';
        if (climb(root)) return root;
    }
    if (!getcwd(root, sizeof root) || !climb(root)) snprintf(root, sizeof root, ".");
    return root;
}
