/* demo_rows — 演示模型对照测试的公共部分
 * 对照数: $PTQ_SHARED/goldens/methods/demo.json 与 demo.tensors/（官方代码在演示模型上的结果）。
 * 一个测试程序以 golden_open 开始；插桩构建（quick）下少跑窗口、不比 PPL，只对照张量。 */
#ifndef PTQ_TESTS_DEMO_ROWS_H
#define PTQ_TESTS_DEMO_ROWS_H
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
#include "io/npy.h"
#include "runner.h"

#define LAYER "model.layers.0.self_attn.k_proj"
#define MAX_OVERRIDES 24

static json_t *golden; /* demo.json；没有对照数据时为 NULL */
static char golden_dir[512];
static char tmp_dir[512];
static char data_dir[600]; /* 替代 data/，使测试不往树里写缓存 */
static bool quick;          /* 插桩构建：少跑窗口、不比 PPL */

typedef struct Overrides {
    char text[MAX_OVERRIDES][128];
    const char *list[MAX_OVERRIDES];
    size_t n;
} Overrides;

static inline void add(Overrides *o, const char *key, const char *value) {
    assert_true(o->n < MAX_OVERRIDES);
    snprintf(o->text[o->n], sizeof o->text[0], "%s=%s", key, value);
    o->list[o->n] = o->text[o->n];
    o->n++;
}

static inline void add_int(Overrides *o, const char *key, int64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)value);
    add(o, key, text);
}

/* 共同设置：只算 PPL，不对照基线、不测速。 */
static inline void add_common(Overrides *o, int64_t limit) {
    add(o, "eval.ppl_datasets", "[demo]");
    add(o, "eval.ppl_protocol", "gptq-512");
    const char *device = getenv("PTQ_TEST_DEVICE"); /* cuda：在 GPU 上对照，见 docs/gpu.md */
    add(o, "compute", "float32");
    add(o, "device", device ? device : "cpu");
    add(o, "eval.kl_windows", "0");
    add(o, "eval.speed", "false");
    add(o, "results_dir", tmp_dir);
    add(o, "data_dir", data_dir);
    add_int(o, "eval.limit", limit);
}

/* 备好临时文件夹（build/tmp/{name}-…）并读对照数。返回: 备不好为假。 */
static inline bool golden_open(const char *name) {
    const char *shared = getenv("PTQ_SHARED"), *tmp = getenv("PTQ_TEST_TMP");
    const char *build = getenv("PTQ_TEST_BUILD");
    quick = build && strcmp(build, "build") != 0;
    snprintf(golden_dir, sizeof golden_dir, "%s/goldens/methods", shared ? shared : "../shared");
    snprintf(tmp_dir, sizeof tmp_dir, "%s/%s-%s", tmp ? tmp : "build/tmp", name,
             quick ? "quick" : "full");
    char path[1024], raw[4096];
    Err e = {0};
    snprintf(data_dir, sizeof data_dir, "%s/data", tmp_dir);
    snprintf(path, sizeof path, "%s/raw", data_dir);
    if (!file_mkdirs(data_dir, &e) || !realpath("data/raw", raw) ||
        (symlink(raw, path) != 0 && errno != EEXIST)) {
        fprintf(stderr, "备不好 %s\n", data_dir);
        return false;
    }
    snprintf(path, sizeof path, "%s/demo.json", golden_dir);
    golden = file_exists(path) ? json_load(path, NULL) : NULL;
    return true;
}

/* 名为 name 的一行；没有对照数据时跳过当前测试。 */
static inline const json_t *golden_row(const char *name) {
    if (!golden) {
        print_message("没有 $PTQ_SHARED/goldens/methods/demo.json\n");
        skip();
    }
    size_t i;
    json_t *row;
    json_array_foreach(json_object_get(golden, "results"), i, row) {
        if (strcmp(json_string_value(json_object_get(row, "name")), name) == 0) return row;
    }
    fail_msg("demo.json 里没有 %s", name);
    return NULL;
}

/* 存放该行张量的文件夹，已建好。 */
static inline const char *dump_dir_of(const char *name, char *buf, size_t cap) {
    Err e = {0};
    snprintf(buf, cap, "%s/%s", tmp_dir, name);
    if (!file_mkdirs(buf, &e)) fail_msg("%s", e.msg);
    return buf;
}

/* 跑一次实验；dump_dir 非 NULL 时写出抽样层的张量。 */
static inline json_t *run(const char *method, const char *track, const Overrides *o,
                          const char *dump_dir) {
    RunRequest r = {.config = {.root = ".", .model = "demo", .method = method, .track = track,
                               .overrides = o->list, .n_overrides = o->n},
                    .command = "tests/golden",
                    .dump_linear = dump_dir ? LAYER : NULL,
                    .dump_dir = dump_dir};
    json_t *result = NULL;
    Err e = {0};
    if (!run_experiment(&r, &result, &e)) fail_msg("%s", e.msg);
    assert_non_null(result);
    return result;
}

static inline const json_t *demo_ppl(const json_t *result) {
    const json_t *v = json_object_get(json_object_get(result, "results"), "ppl");
    v = json_object_get(v, "demo");
    assert_non_null(v);
    return v;
}

static inline double ppl_of(const json_t *result) {
    return json_number_value(json_object_get(demo_ppl(result), "ppl"));
}

static inline double npy_at(const Npy *a, size_t i) {
    switch (a->dtype) {
    case DT_F32: return ((const float *)a->data)[i];
    case DT_F16: return f16_to_f32(((const uint16_t *)a->data)[i]);
    case DT_U8: return ((const uint8_t *)a->data)[i];
    case DT_I8: return ((const int8_t *)a->data)[i];
    case DT_I32: return ((const int32_t *)a->data)[i];
    default: fail_msg("未料到的 npy 类型 %s", dtype_name(a->dtype)); return NAN;
    }
}

/* 两个 .npy 逐元素比较：|差| <= rel·|对照|。theirs_part 是对照文件里的名字。 */
static inline void compare_parts(const char *name, const char *part, const char *theirs_part,
                                 const char *dump_dir, double rel) {
    Arena a = {0};
    Err e = {0};
    Npy want, got;
    const char *ours = arena_printf(&a, &e, "%s/%s.npy", dump_dir, part);
    const char *theirs = arena_printf(&a, &e, "%s/demo.tensors/%s.%s.npy", golden_dir, name,
                                      theirs_part);
    if (!npy_read(&a, theirs, &want, &e) || !npy_read(&a, ours, &got, &e)) fail_msg("%s", e.msg);
    assert_int_equal(want.n, got.n);
    for (size_t i = 0; i < want.n; i++) {
        double w = npy_at(&want, i), g = npy_at(&got, i);
        if (!(fabs(w - g) <= rel * fabs(w)))
            fail_msg("%s 的 %s[%zu]：应为 %.9g，得到 %.9g", name, part, i, w, g);
    }
    arena_free(&a);
}

static inline void compare_npy(const char *name, const char *part, const char *dump_dir, double rel) {
    compare_parts(name, part, part, dump_dir, rel);
}

/* PPL 须在相对容差 tolerance 以内（<=0 取该行自己的）；插桩构建不比。 */
static inline void check_ppl(const json_t *row, const json_t *result, double tolerance) {
    if (quick) return;
    double want = json_number_value(json_object_get(row, "ppl_exact")), got = ppl_of(result);
    if (tolerance <= 0) tolerance = json_number_value(json_object_get(row, "tolerance"));
    print_message("# %s：PPL %.6f，对照 %.6f，相对差 %.1e（容差 %.1e）\n",
                  json_string_value(json_object_get(row, "name")), got, want, fabs(got / want - 1),
                  tolerance);
    assert_true(fabs(got / want - 1) <= tolerance);
}

/* 校准样本的起点与对照数的 light 校准集相同（CPython 的 random.Random(0)）。 */
static inline void check_offsets(const json_t *result) {
    const json_t *info = json_object_get(golden, "info");
    const json_t *light = json_array_get(json_object_get(info, "calibrations"), 0);
    const json_t *ours = json_object_get(result, "calibration");
    assert_true(json_equal(json_object_get(light, "offsets"), json_object_get(ours, "offsets")));
}

/* light 校准集：16 × 512，种子 0。 */
static inline void add_light(Overrides *o) {
    add_int(o, "calibration.samples", 16);
    add_int(o, "calibration.length", 512);
}
/* 追加设置：键、值、…、NULL；settings 可为 NULL。 */
static inline void add_pairs(Overrides *o, const char *const *settings) {
    for (; settings && *settings; settings += 2) add(o, settings[0], settings[1]);
}

/* 两次运行各窗口的 NLL 逐位相同。 */
static inline void same_windows(const json_t *a, const json_t *b) {
    assert_true(ppl_of(a) > 1);
    assert_true(json_equal(json_object_get(demo_ppl(a), "window_nll"),
                           json_object_get(demo_ppl(b), "window_nll")));
}

/* 线程数不改变结果：以 1 与 2 线程各跑一次。calibrated 的方法用很小的校准集（插桩构建也跑得动）。 */
static inline void same_on_two_threads(const char *method, const char *track, bool calibrated,
                                       const char *const *settings) {
    json_t *results[2];
    for (int i = 0; i < 2; i++) {
        Overrides o = {0};
        add_common(&o, quick ? 1 : 5); /* 一批 4 个窗口：最后一批不满 */
        add_int(&o, "threads", i + 1);
        if (calibrated) {
            add_int(&o, "calibration.samples", 3);
            add_int(&o, "calibration.length", 64);
        }
        add_pairs(&o, settings);
        results[i] = run(method, track, &o, NULL);
    }
    same_windows(results[0], results[1]);
    json_decref(results[0]);
    json_decref(results[1]);
}

/* 这样设置是配置错误，话里提到 said。 */
static inline void refuse(const char *method, const char *track, const char *const *settings,
                          const char *said) {
    Overrides o = {0};
    add_common(&o, 1);
    add_pairs(&o, settings);
    RunRequest r = {.config = {.root = ".", .model = "demo", .method = method, .track = track,
                               .overrides = o.list, .n_overrides = o.n},
                    .command = "tests/golden"};
    json_t *result = NULL;
    Err e = {0};
    assert_false(run_experiment(&r, &result, &e));
    assert_int_equal(e.code, ERR_CONFIG);
    if (!strstr(e.msg, said)) fail_msg("没有提到 %s：%s", said, e.msg);
    json_decref(result);
}
#endif
