/* test_smoothquant — W8A8：SmoothQuant 四行与 RTN（naive 一行），对照官方代码的结果（demo_rows.h）
 * 抽样层 k_proj 的反量化权重须与对照相同（对照存成 f16）；折叠由 PPL 看出：s 错了，归一化与权重就不再抵消。线程数、批的分法不改变结果。 */
#include "tests/golden/demo_rows.h"

static void add_settings(Overrides *o, const json_t *settings) {
    const json_t *alpha = json_object_get(settings, "alpha");
    bool is_static = strcmp(json_string_value(json_object_get(settings, "mode")), "static") == 0;
    char text[32];
    add_light(o);
    if (json_is_number(alpha)) {
        snprintf(text, sizeof text, "%g", json_number_value(alpha));
        add(o, "smoothquant.alpha", text);
    } else {
        add(o, "smoothquant.smooth", "false");
    }
    add(o, "activation.scheme", is_static ? "static" : "per_token");
    add(o, "weight.granularity", is_static ? "per_tensor" : "per_channel");
    bool bmm = json_is_true(json_object_get(settings, "quantize_bmm_input"));
    add(o, "activation.quantize_bmm_input", bmm ? "true" : "false");
}

static void check_row(void **state) {
    const char *name = *state;
    const json_t *row = golden_row(name);
    if (quick) {
        print_message("插桩构建不跑完整校准；由线程数一项覆盖\n");
        skip();
    }
    Overrides o = {0};
    char buf[1024];
    const char *dump_dir = dump_dir_of(name, buf, sizeof buf);
    add_common(&o, 0);
    add_settings(&o, json_object_get(row, "settings"));
    json_t *result = run("smoothquant", "B", &o, dump_dir);
    check_offsets(result);
    check_ppl(row, result, 0);
    compare_npy(name, "w", dump_dir, 1.0 / 2048);
    json_decref(result);
}

/* 轨道 B 的 rtn 就是不平滑的 W8A8：与 naive 一行相同，也与 smoothquant.smooth=false 逐位相同。 */
static void rtn_is_naive(void **state) {
    (void)state;
    static const char NAME[] = "smoothquant-w8a8-pertoken-naive";
    const json_t *row = golden ? golden_row(NAME) : NULL;
    json_t *results[2];
    char buf[1024];
    for (int i = 0; i < 2; i++) {
        Overrides o = {0};
        add_common(&o, quick ? 1 : i ? 8 : 0);
        if (i) add(&o, "smoothquant.smooth", "false");
        if (i) add_int(&o, "calibration.samples", 1);
        results[i] = run(i ? "smoothquant" : "rtn", "B", &o,
                         dump_dir_of(i ? "smooth-false" : "rtn-b", buf, sizeof buf));
        if (row) compare_npy(NAME, "w", buf, 1.0 / 2048);
    }
    if (row) check_ppl(row, results[0], 0);
    const json_t *all = json_object_get(demo_ppl(results[0]), "window_nll");
    const json_t *few = json_object_get(demo_ppl(results[1]), "window_nll");
    assert_true(json_array_size(few) > 0 && json_array_size(few) <= json_array_size(all));
    for (size_t i = 0; i < json_array_size(few); i++)
        assert_true(json_real_value(json_array_get(few, i)) ==
                    json_real_value(json_array_get(all, i)));
    json_decref(results[0]);
    json_decref(results[1]);
}

/* 各种设置下 1 与 2 线程逐位相同；state 是一串设置。 */
static void same_for_any_thread_count(void **state) {
    same_on_two_threads("smoothquant", "B", true, *state);
}

/* 每个张量一个 scale 的张量是一个窗口：前几个窗口的结果与后面还有没有窗口无关。 */
static void tensor_scale_is_per_window(void **state) {
    (void)state;
    json_t *results[2];
    for (int i = 0; i < 2; i++) {
        Overrides o = {0};
        add_common(&o, i + 1);
        add(&o, "activation.scheme", "per_tensor");
        results[i] = run("rtn", "B", &o, NULL);
    }
    assert_true(json_real_value(json_array_get(json_object_get(demo_ppl(results[0]), "window_nll"), 0)) ==
                json_real_value(json_array_get(json_object_get(demo_ppl(results[1]), "window_nll"), 0)));
    json_decref(results[0]);
    json_decref(results[1]);
}

/* 每种错误的设置都是配置错误，话里说出该改什么。 */
static void bad_settings(void **state) {
    (void)state;
    refuse("smoothquant", "B", (const char *const[]){"activation.scheme", "none", NULL},
           "activation.scheme");
    refuse("smoothquant", "B", (const char *const[]){"weight.w_bits", "4", NULL}, "weight.w_bits=8");
    refuse("smoothquant", "B", (const char *const[]){"smoothquant.alpha", "1.5", NULL},
           "smoothquant.alpha");
    refuse("rtn", "B", (const char *const[]){"activation.scheme", "static", NULL}, "smoothquant");
    refuse("rtn", "B", (const char *const[]){"weight.granularity", "per_group", "weight.group_size",
                                             "64", NULL},
           "per_channel");
}

int main(void) {
    if (!golden_open("smoothquant")) return 1;
    static const char *const O1[] = {"smoothquant.preset", "O1", NULL};
    static const char *const O2[] = {"smoothquant.preset", "O2", NULL};
    static const char *const O3[] = {"smoothquant.preset", "O3", NULL};
    static const char *const SEARCH[] = {"smoothquant.search", "true", NULL};
#define ROW(name) {name, check_row, NULL, NULL, (void *)(uintptr_t)name}
#define THREADS(text, list)                                                                        \
    {text "：1 与 2 线程逐位相同", same_for_any_thread_count, NULL, NULL, (void *)(uintptr_t)list}
    const struct CMUnitTest tests[] = {
        ROW("smoothquant-w8a8-pertoken-a0.5-light"),
        ROW("smoothquant-w8a8-static-naive-light"),
        ROW("smoothquant-w8a8-static-a0.5-light"),
        ROW("smoothquant-w8a8-pertoken-a0.5-bmm-light"),
        cmocka_unit_test(rtn_is_naive),
        THREADS("O1", O1),
        THREADS("O2", O2),
        THREADS("O3", O3),
        THREADS("search", SEARCH),
        cmocka_unit_test(tensor_scale_is_per_window),
        cmocka_unit_test(bad_settings),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(golden);
    return failed;
}
