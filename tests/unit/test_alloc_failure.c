/* test_alloc_failure — 一次运行的第 n 次分配失败：报错而不崩溃、不泄漏、不留下写到一半的文件
 * 「分配」包括 Allocator 与本项目代码（含替 jansson 分配的）里的 malloc 一族（链接时 --wrap）。
 * n 取前 500 次的每一次，其后直到最后一次按步长抽取。插桩构建里同样运行，泄漏由 LeakSanitizer 报出。 */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "env_info.h"
#include "result_writer.h"
#include "runner.h"
#include "tmp.h"

enum { FIRST = 500, LATER = 60 };

static long n_allocs, fail_at; /* 已分配次数；0 为不注入 */

static bool fails(void) {
    return __atomic_add_fetch(&n_allocs, 1, __ATOMIC_RELAXED) == fail_at;
}

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *p, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *p, size_t bytes);
void *__wrap_malloc(size_t bytes) {
    return fails() ? NULL : __real_malloc(bytes);
}
void *__wrap_calloc(size_t n, size_t bytes) {
    return fails() ? NULL : __real_calloc(n, bytes);
}
void *__wrap_realloc(void *p, size_t bytes) {
    return fails() ? NULL : __real_realloc(p, bytes);
}

static void *(*arena_source)(Allocator *self, size_t bytes);
static void *counted_source(Allocator *self, size_t bytes) {
    return fails() ? NULL : arena_source(self, bytes);
}

/* 数一个目录里名字含 part 的文件。 */
static int count_files(const char *dir, const char *part) {
    DIR *d = opendir(dir);
    int n = 0;
    if (!d) return 0;
    for (struct dirent *f; (f = readdir(d));) n += strstr(f->d_name, part) != NULL;
    closedir(d);
    return n;
}

typedef struct World {
    char results[600], overrides[9][700];
    const char *override_list[9];
} World;

static void write_text(const char *path, int n) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (int i = 0; i < n; i++) fprintf(f, "The ship number %d was lying in the harbour at noon.\n", i * 37);
    fclose(f);
}

/* 一次完整的运行，结果写进 results。返回: 成功与否。 */
static bool run_once(World *w, Err *e) {
    RunRequest r = {.config = {.root = env_project_root(), .model = "demo", .method = "gptq", .track = "A",
                               .overrides = w->override_list,
                               .n_overrides = sizeof w->override_list / sizeof *w->override_list},
                    .command = "test"};
    json_t *result = NULL;
    bool ok = run_experiment(&r, &result, e);
    if (result) {
        Arena a = {0};
        Err we = {0};
        bool written = result_write(result, w->results, &a, NULL, &we);
        if (ok && !written) *e = we;
        ok = ok && written;
        arena_free(&a);
        json_decref(result);
    }
    return ok;
}

static int n_bad;
#define BAD(...) (print_error(__VA_ARGS__), print_error("\n"), n_bad++)

static void try_failure(World *w, long at) {
    Err e = {0};
    size_t used = allocator_default()->used;
    n_allocs = 0;
    fail_at = at;
    bool ok = run_once(w, &e);
    fail_at = 0;
    if (!ok && !strstr(e.msg, "内存")) BAD("第 %ld 次分配失败，错误却是「%s」", at, e.msg);
    if (allocator_default()->used != used)
        BAD("第 %ld 次分配失败后漏了 %zu 字节", at, allocator_default()->used - used);
    if (count_files(w->results, "tmp")) BAD("第 %ld 次分配失败后留下了临时文件", at);
}

static void test_every_allocation(void **state) {
    (void)state;
    static World w;
    const char *text = tmp_path("text.txt");
    snprintf(w.results, sizeof w.results, "%s", tmp_path("results"));
    assert_int_equal(mkdir(w.results, 0755), 0);
    write_text(text, 20);
    snprintf(w.overrides[0], sizeof w.overrides[0], "eval.ppl_datasets=[%s]", text);
    snprintf(w.overrides[1], sizeof w.overrides[1], "calibration.dataset=%s", text);
    static const char *const MORE[] = {"calibration.samples=2", "calibration.length=16", "eval.limit=1",
                                       "eval.ppl_protocol=gptq-32", "eval.speed=false", "threads=2"};
    for (size_t i = 0; i < 6; i++) strcpy(w.overrides[2 + i], MORE[i]);
    snprintf(w.overrides[8], sizeof w.overrides[8], "results_dir=%s", w.results);
    for (size_t i = 0; i < 9; i++) w.override_list[i] = w.overrides[i];

    log_set_quiet(true);
    Err e = {0};
    if (!run_once(&w, &e)) fail_msg("不注入失败时也没有成功：%s", e.msg); /* 建立各种缓存 */
    arena_source = allocator_default()->alloc;
    allocator_default()->alloc = counted_source;
    n_allocs = 0;
    assert_true(run_once(&w, &e));
    long total = n_allocs;
    assert_true(total > FIRST);
    for (long i = 1; i <= FIRST; i++) try_failure(&w, i);
    for (long i = 0; i < LATER; i++) try_failure(&w, FIRST + 1 + (total - FIRST - 1) * i / (LATER - 1));
    allocator_default()->alloc = arena_source;
    assert_int_equal(n_bad, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_allocation)};
    return cmocka_run_group_tests(tests, tmp_make, tmp_done);
}
