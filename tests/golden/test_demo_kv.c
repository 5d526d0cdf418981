/* test_demo_kv — 演示模型上键值缓存量化的困惑度，对照 KIVI 与 KVQuant 官方代码的结果
 * 对照数: $PTQ_SHARED/goldens/methods/demo.json。每一行按其 settings 化为本程序的设置，跑完整的 200 个 512 窗口，
 * PPL 须在行内的相对容差以内。插桩构建只跑 2 个窗口，不比 PPL。 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/file.h"
#include "io/json.h"
#include "runner.h"

enum { MAX_OVERRIDES = 24 };

static json_t *golden;      /* demo.json；没有对照数据时为 NULL */
static char golden_dir[512], tmp_dir[512];
static char data_dir[600];  /* 替代 data/，使测试不往树里写缓存 */
static bool quick;          /* 插桩构建 */

typedef struct Overrides {
    char text[MAX_OVERRIDES][128];
    const char *list[MAX_OVERRIDES];
    size_t n;
} Overrides;

static void add(Overrides *o, const char *key, const char *value) {
    assert_true(o->n < MAX_OVERRIDES);
    snprintf(o->text[o->n], sizeof o->text[0], "%s=%s", key, value);
    o->list[o->n] = o->text[o->n];
    o->n++;
}
static void add_int(Overrides *o, const char *key, int64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)value);
    add(o, key, text);
}

static void add_common(Overrides *o, int64_t limit) {
    add(o, "eval.ppl_datasets", "[demo]");
    add(o, "eval.ppl_protocol", "gptq-512");
    add(o, "eval.kl_windows", "0");
    add(o, "eval.speed", "false");
    add(o, "results_dir", tmp_dir);
    add(o, "data_dir", data_dir);
    add_int(o, "eval.limit", limit);
}

static void add_kivi(Overrides *o, const json_t *settings) {
    const char *variant = json_string_value(json_object_get(settings, "variant"));
    add_int(o, "kv_cache.k_bits", json_integer_value(json_object_get(settings, "k_bits")));
    add_int(o, "kv_cache.v_bits", json_integer_value(json_object_get(settings, "v_bits")));
    add_int(o, "kv_cache.group_size", json_integer_value(json_object_get(settings, "group_size")));
    add_int(o, "kv_cache.residual_length",
            json_integer_value(json_object_get(settings, "residual_length")));
    add(o, "eval.kv_mode", strcmp(variant, "decode") == 0 ? "decode" : "prefill_fp");
}

static json_t *run(const char *method, const Overrides *o) {
    RunRequest r = {.config = {.root = ".", .model = "demo", .method = method, .track = "C",
                               .overrides = o->list, .n_overrides = o->n},
                    .command = "test_demo_kv"};
    json_t *result = NULL;
    Err e = {0};
    if (!run_experiment(&r, &result, &e)) fail_msg("%s", e.msg);
    assert_non_null(result);
    return result;
}

static const json_t *demo_ppl(const json_t *result) {
    const json_t *v = json_object_get(json_object_get(result, "results"), "ppl");
    return json_object_get(v, "demo");
}

static const json_t *find_row(const char *name) {
    size_t i;
    json_t *row;
    json_array_foreach(json_object_get(golden, "results"), i, row) {
        if (strcmp(json_string_value(json_object_get(row, "name")), name) == 0) return row;
    }
    fail_msg("对照数里没有 %s", name);
    return NULL;
}

static void check_row(void **state) {
    const char *name = *state;
    if (!golden) {
        print_message("没有 $PTQ_SHARED/goldens/methods/demo.json\n");
        skip();
    }
    const json_t *row = find_row(name);
    Overrides o = {0};
    add_common(&o, quick ? 2 : 0);
    add_kivi(&o, json_object_get(row, "settings"));
    json_t *result = run("kivi", &o);
    double got = json_number_value(json_object_get(demo_ppl(result), "ppl"));
    double want = json_number_value(json_object_get(row, "ppl_exact"));
    double tolerance = json_number_value(json_object_get(row, "tolerance"));
    if (!quick) {
        print_message("# %s：PPL %.6f，对照 %.6f，相对差 %.1e（容差 %.1e）\n", name, got, want,
                      fabs(got / want - 1), tolerance);
        assert_true(fabs(got / want - 1) <= tolerance);
    }
    json_decref(result);
}

/* 2 位、组 32、f16 的 scale 与最小值：量化的部分正好 3 位，残留窗口另计。 */
static void counted_bits(void **state) {
    (void)state;
    Overrides o = {0};
    add_common(&o, 1);
    json_t *result = run("kivi", &o);
    const json_t *kv = json_object_get(demo_ppl(result), "kv_cache");
    const json_t *bytes = json_object_get(kv, "bytes");
    double codes = json_number_value(json_object_get(bytes, "codes"));
    double params = json_number_value(json_object_get(bytes, "params"));
    double dense = json_number_value(json_object_get(bytes, "unquantized"));
    double width = 8 * 2 * 64; /* 层 × 头 × 维，一侧 */
    /* 窗口末尾（位置 511）：键 384 个、值 383 个已量化，其余是 f16 */
    assert_true(codes == width * (384 + 383) * 2 / 8 / 512);
    assert_true(params == width * (384 + 383) * 4 / 32 / 512);
    assert_true(dense == width * (128 + 129) * 2 / 512);
    assert_string_equal(json_string_value(json_object_get(kv, "mode")), "decode");
    const json_t *metrics = json_object_get(json_object_get(result, "results"), "system_metrics");
    assert_true(json_number_value(json_object_get(metrics, "kv_bytes_per_token")) ==
                codes + params + dense);
    json_decref(result);
}

/* 线程数不改变结果：逐位相同。 */
static void same_for_any_thread_count(void **state) {
    const char *method = *state;
    json_t *results[2];
    for (int i = 0; i < 2; i++) {
        Overrides o = {0};
        add_common(&o, quick ? 1 : 8);
        add_int(&o, "threads", i + 1);
        results[i] = run(method, &o);
    }
    assert_true(json_equal(json_object_get(demo_ppl(results[0]), "window_nll"),
                           json_object_get(demo_ppl(results[1]), "window_nll")));
    json_decref(results[0]);
    json_decref(results[1]);
}

int main(void) {
    const char *shared = getenv("PTQ_SHARED"), *tmp = getenv("PTQ_TEST_TMP");
    const char *build = getenv("PTQ_TEST_BUILD");
    quick = build && strcmp(build, "build") != 0;
    snprintf(golden_dir, sizeof golden_dir, "%s/goldens/methods", shared ? shared : "../shared");
    snprintf(tmp_dir, sizeof tmp_dir, "%s/demo_kv-%s", tmp ? tmp : "build/tmp",
             quick ? "quick" : "full");
    char path[1024], raw[4096];
    Err e = {0};
    snprintf(data_dir, sizeof data_dir, "%s/data", tmp_dir);
    snprintf(path, sizeof path, "%s/raw", data_dir);
    if (!file_mkdirs(data_dir, &e) || !realpath("data/raw", raw) ||
        (symlink(raw, path) != 0 && errno != EEXIST)) {
        fprintf(stderr, "备不好 %s\n", data_dir);
        return 1;
    }
    snprintf(path, sizeof path, "%s/demo.json", golden_dir);
    golden = file_exists(path) ? json_load(path, NULL) : NULL;

    static const char *const ROWS[] = {"kivi-kv2-g32-r128-decode", "kivi-kv4-g32-r128-decode",
                                       "kivi-prefill-official"};
    enum { N_ROWS = sizeof ROWS / sizeof *ROWS };
    struct CMUnitTest tests[N_ROWS + 3];
    for (int i = 0; i < N_ROWS; i++)
        tests[i] = (struct CMUnitTest){ROWS[i], check_row, NULL, NULL, (void *)(uintptr_t)ROWS[i]};
    tests[N_ROWS] = (struct CMUnitTest){"KIVI 的字节数", counted_bits, NULL, NULL, NULL};
    tests[N_ROWS + 1] = (struct CMUnitTest){"kivi：1 与 2 线程逐位相同", same_for_any_thread_count,
                                            NULL, NULL, (void *)(uintptr_t) "kivi"};
    tests[N_ROWS + 2] = (struct CMUnitTest){"rtn：1 与 2 线程逐位相同", same_for_any_thread_count,
                                            NULL, NULL, (void *)(uintptr_t) "rtn"};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(golden);
    return failed;
}
