/* test_alloc_failure — 一次运行的第 n 次分配失败：报错而不崩溃、不泄漏、不留下写到一半的文件
 * 「分配」包括 Allocator 与本项目代码（含替 jansson 分配的）里的 malloc 一族（链接时 --wrap）。
 * GPTQ 取前 500 次的每一次，其后直到最后一次按步长抽取；其余方法在整个运行里按步长抽取。
 * 插桩构建里取得稀（一次运行慢二十倍），泄漏由 LeakSanitizer 报出。 */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "env_info.h"
#include "result_writer.h"
#include "runner.h"
#include "tmp.h"

#ifdef __SANITIZE_ADDRESS__
enum { FIRST = 500, STEP = 9, LATER = 16, SAMPLED = 4 };
#else
enum { FIRST = 500, STEP = 1, LATER = 40, SAMPLED = 10 };
#endif

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

/* 一个方法的一次运行：小小的校准集与评测文本，结果写进临时文件夹。 */
typedef struct World {
    const char *method, *track;
    char results[600], overrides[16][700];
    const char *list[16];
    size_t n;
} World;

static void set(World *w, const char *key, const char *value) {
    assert_true(w->n < 16);
    snprintf(w->overrides[w->n], sizeof w->overrides[0], "%s=%s", key, value);
    w->list[w->n] = w->overrides[w->n];
    w->n++;
}

static void write_text(const char *path, int n) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (int i = 0; i < n; i++) fprintf(f, "The ship number %d was lying in the harbour at noon.\n", i * 37);
    fclose(f);
}

/* 替代 data/ 的文件夹，使测试不往树里写缓存。 */
static const char *data_folder(void) {
    char raw[4096];
    const char *data = tmp_path("data");
    if (mkdir(data, 0755) == 0) {
        assert_non_null(realpath("data/raw", raw));
        assert_int_equal(symlink(raw, tmp_path("data/raw")), 0);
        write_text(tmp_path("text.txt"), 20);
        write_text(tmp_path("calib.txt"), 21);
    }
    return data;
}

static void world_open(World *w, const char *method, const char *track) {
    const char *text = tmp_path("text.txt");
    *w = (World){.method = method, .track = track};
    snprintf(w->results, sizeof w->results, "%s-%s", tmp_path(method), track);
    assert_int_equal(mkdir(w->results, 0755), 0);
    set(w, "data_dir", data_folder());
    set(w, "results_dir", w->results);
    set(w, "eval.ppl_datasets", text);
    set(w, "eval.ppl_protocol", "gptq-32");
    set(w, "eval.limit", "1");
    set(w, "eval.speed", "false");
    set(w, "threads", "2");
}

static void add_calibration(World *w) {
    set(w, "calibration.dataset", tmp_path("calib.txt"));
    set(w, "calibration.samples", "2");
    set(w, "calibration.length", "16");
}

/* 一次完整的运行。返回: 成功与否。 */
static bool run_once(World *w, Err *e) {
    RunRequest r = {.config = {.root = env_project_root(), .model = "demo", .method = w->method,
                               .track = w->track, .overrides = w->list, .n_overrides = w->n},
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
    if (!ok && !strstr(e.msg, "内存")) BAD("%s 第 %ld 次分配失败，错误却是「%s」", w->method, at, e.msg);
    if (allocator_default()->used != used)
        BAD("%s 第 %ld 次分配失败后漏了 %zu 字节", w->method, at, allocator_default()->used - used);
    if (count_files(w->results, "tmp")) BAD("%s 第 %ld 次分配失败后留下了临时文件", w->method, at);
}

/* 前 first 次分配逐次失败，其后抽 sampled 次。 */
static void fail_each(World *w, long first, long sampled) {
    log_set_quiet(true);
    Err e = {0};
    if (!run_once(w, &e)) fail_msg("%s 不注入失败时也没有成功：%s", w->method, e.msg); /* 建立各种缓存 */
    arena_source = allocator_default()->alloc;
    allocator_default()->alloc = counted_source;
    n_allocs = n_bad = 0;
    assert_true(run_once(w, &e));
    long total = n_allocs;
    assert_true(total > first);
    for (long i = 1; i <= first; i += STEP) try_failure(w, i);
    for (long i = 0; i < sampled; i++) try_failure(w, first + 1 + (total - first - 1) * i / (sampled - 1));
    allocator_default()->alloc = arena_source;
    assert_int_equal(n_bad, 0);
}

static void test_every_allocation(void **state) {
    (void)state;
    static World w;
    world_open(&w, "gptq", "A");
    add_calibration(&w);
    fail_each(&w, FIRST, LATER);
}

static void test_every_method(void **state) {
    (void)state;
    static World w;
    static const struct {
        const char *method, *track, *key, *value;
        bool calibrated;
    } CASES[] = {
        {"fp16", "A", "eval.kl_windows", "1", false},  {"rtn", "A", "weight.w_bits", "4", false},
        {"rtn", "B", "weight.w_bits", "8", false},     {"rtn", "C", "kv_cache.k_bits", "4", false},
        {"awq", "A", "awq.n_grid", "2", true},      {"spqr", "A", "weight.w_bits", "3", true},
        {"omniquant", "A", "omniquant.epochs", "1", true},
        {"smoothquant", "B", "smoothquant.search", "true", true},
        {"kivi", "C", "kv_cache.k_bits", "2", false},  {"kvquant", "C", "kv_cache.k_bits", "3", true},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        world_open(&w, CASES[i].method, CASES[i].track);
        set(&w, CASES[i].key, CASES[i].value);
        if (CASES[i].calibrated) add_calibration(&w);
        fail_each(&w, 0, SAMPLED);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_allocation),
                                       cmocka_unit_test(test_every_method)};
    return cmocka_run_group_tests(tests, tmp_make, tmp_done);
}
