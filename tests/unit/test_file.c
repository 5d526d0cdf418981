/* test_file — 文件的映射、整读与原子写入
 * 磁盘满用 RLIMIT_FSIZE 与（有权限时）小 tmpfs 造出；强行终止用 SIGKILL 在写入循环中随机落下。 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <cmocka.h>

#include "io/file.h"
#include "tests/unit/tmp.h"

#define CHILD_SKIP 77

static void assert_content(const char *path, const char *want) {
    Arena a = {0};
    Err e = {0};
    char *got = file_read(&a, path, 1 << 20, NULL, &e);
    if (!got) fail_msg("%s", e.msg);
    assert_string_equal(got, want);
    arena_free(&a);
}

/* 文件夹中（含隐藏的）条目数。 */
static int count_entries(const char *dir) {
    char cmd[1200], line[32] = "";
    snprintf(cmd, sizeof cmd, "ls -A '%s' | wc -l", dir);
    FILE *p = popen(cmd, "r");
    assert_non_null(p);
    assert_non_null(fgets(line, sizeof line, p));
    pclose(p);
    return (int)strtol(line, NULL, 10);
}

/* 在子进程中跑 fn，返回其退出码；死于信号时为 -1。 */
static int in_child(int (*fn)(const char *dir), const char *dir) {
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) _exit(fn(dir));
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_read(void **state) {
    (void)state;
    Arena a = {0};
    Err e = {0};
    size_t len = 99;
    const char *p = tmp_path("read.bin");
    tmp_write(p, "a\0b", 3);
    char *s = file_read(&a, p, 3, &len, &e);
    assert_non_null(s);
    assert_int_equal(len, 3);
    assert_memory_equal(s, "a\0b", 4);
    assert_null(file_read(&a, p, 2, &len, &e));
    assert_int_equal(e.code, ERR_FORMAT);
    tmp_write(p, "", 0);
    assert_string_equal(file_read(&a, p, 0, &len, &e), "");
    assert_int_equal(len, 0);
    assert_non_null(file_read(&a, "/proc/self/status", 1 << 16, &len, &e)); /* 大小报为 0 */
    assert_true(len > 100);
    assert_null(file_read(&a, "/dev/zero", 100000, &len, &e));
    assert_int_equal(e.code, ERR_FORMAT);
    arena_free(&a);
}

static void test_read_errors(void **state) {
    (void)state;
    Arena a = {0};
    Err e = {0};
    FileMap m;
    assert_null(file_read(&a, tmp_path("absent"), 10, NULL, &e));
    assert_int_equal(e.code, ERR_IO);
    assert_non_null(strstr(e.msg, "不存在"));
    assert_null(file_read(&a, tmp_dir, 10, NULL, &e));
    assert_non_null(strstr(e.msg, "是文件夹"));
    assert_false(file_map(&m, tmp_dir, &e));
    assert_null(m.data);
    assert_false(file_map(&m, "/dev/null", &e));
    assert_non_null(strstr(e.msg, "不是普通文件"));
    const char *fifo = tmp_path("fifo");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_false(file_map(&m, fifo, &e)); /* 不会卡住等写者 */
    unlink(fifo);
    arena_free(&a);
}

static int feed_fifo(const char *path) {
    int fd = open(path, O_WRONLY);
    for (int i = 0; i < 1000; i++)
        if (write(fd, "0123456789", 10) != 10) return 1;
    return close(fd);
}

/* 命名管道的写者晚来，也读得全。 */
static void test_read_late_writer(void **state) {
    (void)state;
    char path[600];
    snprintf(path, sizeof path, "%s/late", tmp_dir);
    assert_int_equal(mkfifo(path, 0600), 0);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        usleep(50000);
        _exit(feed_fifo(path));
    }
    Arena a = {0};
    Err e = {0};
    size_t len;
    if (!file_read(&a, path, 1 << 20, &len, &e)) fail_msg("%s", e.msg);
    assert_int_equal(len, 10000);
    waitpid(pid, NULL, 0);
    unlink(path);
    arena_free(&a);
}

/* 管道中一段段到来的内容读得全。 */
static void test_read_pipe(void **state) {
    (void)state;
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    fflush(NULL);
    pid_t pid = fork();
    char path[64];
    snprintf(path, sizeof path, "/dev/fd/%d", fds[pid == 0]);
    if (pid == 0) {
        close(fds[0]);
        usleep(20000);
        _exit(feed_fifo(path));
    }
    close(fds[1]);
    Arena a = {0};
    Err e = {0};
    size_t len;
    if (!file_read(&a, path, 1 << 20, &len, &e)) fail_msg("%s", e.msg);
    assert_int_equal(len, 10000);
    close(fds[0]);
    waitpid(pid, NULL, 0);
    arena_free(&a);
}

static void test_map(void **state) {
    (void)state;
    Err e = {0};
    FileMap m;
    const char *p = tmp_path("map.bin");
    char *big = malloc(100000);
    memset(big, 'm', 100000);
    tmp_write(p, big, 100000);
    free(big);
    assert_true(file_map(&m, p, &e));
    assert_int_equal(m.size, 100000);
    file_map_drop(m.data + 10, 90000); /* 丢掉的页再读仍是原内容 */
    for (size_t i = 0; i < m.size; i++) assert_int_equal(m.data[i], 'm');
    file_map_drop(m.data, 5);
    file_unmap(&m);
    assert_null(m.data);
    file_unmap(&m);
    tmp_write(p, "", 0);
    assert_true(file_map(&m, p, &e));
    assert_null(m.data);
    assert_int_equal(m.size, 0);
}

static void test_atomic(void **state) {
    (void)state;
    Err e = {0};
    const char *dir = tmp_path("atomic"), *p = tmp_path("atomic/r.json");
    assert_true(file_mkdirs(dir, &e));
    assert_true(file_write_atomic(p, "旧", 3, &e));
    assert_true(file_write_atomic(p, "新内容", 9, &e));
    assert_content(p, "新内容");
    FilePart parts[] = {{"一", 3}, {"", 0}, {"二", 3}};
    assert_true(file_write_parts(p, parts, 3, &e));
    assert_content(p, "一二");
    assert_true(file_write_atomic(p, NULL, 0, &e));
    assert_content(p, "");
    assert_int_equal(count_entries(dir), 1);
    assert_false(file_write_atomic(tmp_path("absent/r.json"), "x", 1, &e));
    assert_int_equal(e.code, ERR_IO);
    assert_false(file_write_atomic(dir, "x", 1, &e)); /* 目标是非空文件夹 */
    assert_int_equal(count_entries(dir), 1);
    assert_int_equal(chdir(tmp_dir), 0);
    assert_true(file_write_atomic("plain.txt", "当前文件夹", 15, &e));
    assert_content("plain.txt", "当前文件夹");
}

/* 被强行终止的同号进程留下的临时文件不妨碍写入。 */
static void test_stale_temp(void **state) {
    (void)state;
    Err e = {0};
    assert_true(file_mkdirs(tmp_path("stale"), &e));
    for (int i = 0; i < 60; i++) {
        char name[64];
        snprintf(name, sizeof name, "stale/.ptq-tmp-%ld-%d", (long)getpid(), i);
        tmp_write(tmp_path(name), "残", 3);
    }
    assert_true(file_write_atomic(tmp_path("stale/a"), "好", 3, &e));
    assert_content(tmp_path("stale/a"), "好");
    assert_int_equal(count_entries(tmp_path("stale")), 61);
}

static void test_write_new(void **state) {
    (void)state;
    Err e = {0};
    bool exists = true;
    const char *dir = tmp_path("new"), *p = tmp_path("new/r.json");
    assert_true(file_mkdirs(dir, &e));
    assert_true(file_write_new(p, "先", 3, &exists, &e));
    assert_false(exists);
    assert_false(file_write_new(p, "后", 3, &exists, &e));
    assert_true(exists);
    assert_int_equal(e.code, ERR_IO);
    assert_content(p, "先");
    assert_int_equal(count_entries(dir), 1);
    assert_false(file_write_new(tmp_path("none/r.json"), "x", 1, &exists, &e));
    assert_false(exists);
}

static int race_one(const char *path) {
    Err e = {0};
    bool exists;
    char text[32];
    int n = snprintf(text, sizeof text, "%ld", (long)getpid());
    return file_write_new(path, text, (size_t)n, &exists, &e) ? 0 : exists ? 1 : 2;
}

/* 多个进程争写同一个新文件：恰有一个成功，其余都得知已存在。 */
static void test_write_new_race(void **state) {
    (void)state;
    const char *p = tmp_path("race.json");
    pid_t pids[8], winner = 0;
    fflush(NULL);
    for (int i = 0; i < 8; i++)
        if ((pids[i] = fork()) == 0) _exit(race_one(p));
    for (int i = 0; i < 8; i++) {
        int status;
        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) <= 1);
        if (WEXITSTATUS(status) == 0) {
            assert_int_equal(winner, 0);
            winner = pids[i];
        }
    }
    char want[32];
    snprintf(want, sizeof want, "%ld", (long)winner);
    assert_content(p, want);
}

/* 写 200 KB 应当失败，旧文件不变，不留临时文件。返回: 0 为如此。 */
static int write_too_much(const char *dir, const char *message) {
    Err e = {0};
    bool exists;
    char path[1100], fresh[1100];
    snprintf(path, sizeof path, "%s/r.json", dir);
    snprintf(fresh, sizeof fresh, "%s/new.json", dir);
    if (!file_write_atomic(path, "旧", 3, &e)) return 1;
    char *big = calloc(1, 200000);
    bool wrote = file_write_atomic(path, big, 200000, &e);
    bool told = e.code == ERR_IO && strstr(e.msg, message);
    bool made = file_write_new(fresh, big, 200000, &exists, &e);
    free(big);
    if (wrote || !told) return 2;
    if (made || exists || file_exists(fresh)) return 3;
    assert_content(path, "旧");
    return count_entries(dir) == 1 ? 0 : 4;
}

static int child_rlimit(const char *dir) {
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit lim = {100000, 100000};
    if (setrlimit(RLIMIT_FSIZE, &lim) != 0) return CHILD_SKIP;
    return write_too_much(dir, "超过文件大小限制");
}

static int child_tmpfs(const char *dir) {
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", dir, "tmpfs", 0, "size=64k") != 0)
        return CHILD_SKIP;
    return write_too_much(dir, "磁盘已满");
}

static void test_size_limit(void **state) {
    (void)state;
    Err e = {0};
    assert_true(file_mkdirs(tmp_path("limit"), &e));
    assert_int_equal(in_child(child_rlimit, tmp_path("limit")), 0);
}

static void test_disk_full(void **state) {
    (void)state;
    Err e = {0};
    assert_true(file_mkdirs(tmp_path("full"), &e));
    int rc = in_child(child_tmpfs, tmp_path("full"));
    if (rc == CHILD_SKIP) {
        print_message("跳过：没有挂载 tmpfs 的权限（RLIMIT_FSIZE 的测试已覆盖同一路径）\n");
        skip();
    }
    assert_int_equal(rc, 0);
}

static int write_forever(const char *dir) {
    static char text[2][30000];
    char path[1100];
    Err e = {0};
    snprintf(path, sizeof path, "%s/r.json", dir);
    memset(text[0], 'a', sizeof text[0]);
    memset(text[1], 'b', sizeof text[1]);
    for (int i = 0;; i ^= 1)
        if (!file_write_atomic(path, text[i], sizeof text[i], &e)) return 1;
}

/* 写入循环在随机时刻被 SIGKILL：文件总是完整的一份。 */
static void test_kill(void **state) {
    (void)state;
    Err e = {0};
    Arena a = {0};
    const char *dir = tmp_path("kill"), *path = tmp_path("kill/r.json");
    assert_true(file_mkdirs(dir, &e));
    tmp_write(path, "", 0);
    bool written = false;
    for (int i = 0; i < 30; i++) {
        fflush(NULL);
        pid_t pid = fork();
        if (pid == 0) _exit(write_forever(dir));
        usleep((useconds_t)(1000 + i * 371 % 7000));
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        size_t len;
        char *s = file_read(&a, path, 1 << 20, &len, &e);
        assert_non_null(s);
        if (len == 0 && !written) continue; /* 还没来得及写第一份 */
        written = true;
        assert_int_equal(len, 30000);
        for (size_t k = 1; k < len; k++) assert_int_equal(s[k], s[0]);
    }
    assert_true(written);
    arena_free(&a);
}

static void test_mkdirs(void **state) {
    (void)state;
    Err e = {0};
    assert_true(file_mkdirs(tmp_path("a/b//c/"), &e));
    assert_true(file_is_dir(tmp_path("a/b/c")));
    assert_true(file_mkdirs(tmp_path("a/b/c"), &e));
    tmp_write(tmp_path("a/plain"), "x", 1);
    assert_false(file_is_dir(tmp_path("a/plain")));
    assert_true(file_exists(tmp_path("a/plain")));
    assert_false(file_mkdirs(tmp_path("a/plain/d"), &e));
    assert_int_equal(e.code, ERR_IO);
    assert_false(file_mkdirs(tmp_path("a/plain"), &e));
    assert_non_null(strstr(e.msg, "同名的文件已存在"));
    assert_false(file_mkdirs("", &e));
}

static void test_list(void **state) {
    (void)state;
    Err e = {0};
    Arena a = {0};
    char **names;
    size_t n;
    assert_true(file_mkdirs(tmp_path("list"), &e));
    assert_true(file_list(&a, tmp_path("list"), ".json", &names, &n, &e));
    assert_int_equal(n, 0);
    static const char *const FILES[] = {"b.json", "a.json", "结果.json", "c.md", ".hidden.json",
                                        ".ptq-tmp-1-1"};
    for (size_t i = 0; i < 6; i++) {
        char name[64];
        snprintf(name, sizeof name, "list/%s", FILES[i]);
        tmp_write(tmp_path(name), "{}", 2);
    }
    assert_true(file_list(&a, tmp_path("list"), ".json", &names, &n, &e));
    assert_int_equal(n, 3);
    assert_string_equal(names[0], "a.json");
    assert_string_equal(names[1], "b.json");
    assert_string_equal(names[2], "结果.json");
    assert_true(file_list(&a, tmp_path("list"), "", &names, &n, &e));
    assert_int_equal(n, 4);
    assert_false(file_list(&a, tmp_path("nothing"), "", &names, &n, &e));
    assert_string_equal(file_join(&a, "d", "f", &e), "d/f");
    assert_string_equal(file_join(&a, "d/", "f", &e), "d/f");
    assert_string_equal(file_join(&a, "d", "/f", &e), "/f");
    assert_string_equal(file_join(&a, "", "f", &e), "f");
    arena_free(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),       cmocka_unit_test(test_read_errors),
        cmocka_unit_test(test_read_pipe),  cmocka_unit_test(test_map),
        cmocka_unit_test(test_read_late_writer),
        cmocka_unit_test(test_stale_temp), cmocka_unit_test(test_write_new),
        cmocka_unit_test(test_write_new_race), cmocka_unit_test(test_size_limit),
        cmocka_unit_test(test_disk_full),  cmocka_unit_test(test_kill),
        cmocka_unit_test(test_mkdirs),     cmocka_unit_test(test_list),
        cmocka_unit_test(test_atomic), /* 改变当前文件夹，放在最后 */
    };
    return cmocka_run_group_tests(tests, tmp_make, tmp_done);
}
