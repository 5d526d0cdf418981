/* test_demo_kv — 键值缓存的量化：KIVI 三行、KVQuant 三行，对照官方代码的结果（demo_rows.h）
 * KVQuant 另对照第 0 层键的上下阈值。清点的字节数、线程数不改变结果也在这里看。 */
#include "tests/golden/demo_rows.h"

static void add_kivi(Overrides *o, const json_t *settings) {
    const char *variant = json_string_value(json_object_get(settings, "variant"));
    add_int(o, "kv_cache.k_bits", json_integer_value(json_object_get(settings, "k_bits")));
    add_int(o, "kv_cache.v_bits", json_integer_value(json_object_get(settings, "v_bits")));
    add_int(o, "kv_cache.group_size", json_integer_value(json_object_get(settings, "group_size")));
    add_int(o, "kv_cache.residual_length",
            json_integer_value(json_object_get(settings, "residual_length")));
    add(o, "eval.kv_mode", strcmp(variant, "decode") == 0 ? "decode" : "prefill_fp");
}

static void check_kivi(void **state) {
    const json_t *row = golden_row(*state);
    Overrides o = {0};
    add_common(&o, quick ? 2 : 0);
    add_kivi(&o, json_object_get(row, "settings"));
    json_t *result = run("kivi", "C", &o, NULL);
    check_ppl(row, result, 0);
    json_decref(result);
}

static void check_kvquant(void **state) {
    const char *name = *state;
    const json_t *row = golden_row(name);
    if (quick) {
        print_message("插桩构建不跑完整校准；由线程数一项覆盖\n");
        skip();
    }
    const json_t *settings = json_object_get(row, "settings");
    Overrides o = {0};
    char buf[1024], share[32];
    const char *dump_dir = dump_dir_of(name, buf, sizeof buf);
    int64_t bits = json_integer_value(json_object_get(settings, "bits"));
    snprintf(share, sizeof share, "%g", json_number_value(json_object_get(settings, "outliers")));
    add_common(&o, 0);
    add_light(&o);
    add_int(&o, "kv_cache.k_bits", bits);
    add_int(&o, "kv_cache.v_bits", bits);
    add(&o, "kvquant.outliers", share);
    add(&o, "eval.kv_mode", "all");
    json_t *result = run("kvquant", "C", &o, dump_dir);
    check_offsets(result);
    check_ppl(row, result, 0);
    if (strcmp(name, "kvquant-nuq3-1%-fisher-light") == 0) {
        static const char TENSORS[] = "kvquant-nuq3-1pct-fisher-light";
        compare_npy(TENSORS, "klower0", dump_dir, 1e-4);
        compare_npy(TENSORS, "kupper0", dump_dir, 1e-4);
    }
    json_decref(result);
}

/* 2 位、组 32、f16 的 scale 与最小值：量化的部分正好 3 位，残留窗口另计。 */
static void counted_bits(void **state) {
    (void)state;
    Overrides o = {0};
    add_common(&o, 1);
    json_t *result = run("kivi", "C", &o, NULL);
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
    same_on_two_threads(*state, "C", strcmp(*state, "kvquant") == 0, NULL);
}

#define ROW(name, fn)                                                                              \
    { name, fn, NULL, NULL, (void *)(uintptr_t)name }
#define THREADS(method)                                                                            \
    {                                                                                              \
        method "：1 与 2 线程逐位相同", same_for_any_thread_count, NULL, NULL,                      \
            (void *)(uintptr_t)method                                                              \
    }

int main(void) {
    if (!golden_open("demo_kv")) return 1;
    const struct CMUnitTest tests[] = {
        ROW("kivi-kv2-g32-r128-decode", check_kivi),
        ROW("kivi-kv4-g32-r128-decode", check_kivi),
        ROW("kivi-prefill-official", check_kivi),
        ROW("kvquant-nuq3-1%-fisher-light", check_kvquant),
        ROW("kvquant-nuq4-1%-fisher-light", check_kvquant),
        ROW("kvquant-nuq3-dense-fisher-light", check_kvquant),
        ROW("KIVI 的字节数", counted_bits),
        THREADS("kivi"), THREADS("rtn"), THREADS("kvquant"),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(golden);
    return failed;
}
