/* test_spqr — SpQR 一行对照官方代码的结果（demo_rows.h）；离群值与位宽的账；线程数；错误的设置
 * 抽样层 k_proj 以 float32 的二级格点量化时，编码、两级统计的码、列序、离群值都须与对照全同。 */
#include "tests/golden/demo_rows.h"

static const char ROW[] = "spqr-w3-readme-light";

static double number(const json_t *v, const char *a, const char *b) {
    v = json_object_get(json_object_get(json_object_get(v, "quantization"), a), b);
    assert_true(json_is_number(v));
    return json_number_value(v);
}

/* 默认设置（二级格点与离群值存 f16）：PPL；位宽 = 官方公式 + 我们多数的列序与离群值的分块起点。 */
static void check_row(void **state) {
    (void)state;
    const json_t *row = golden_row(ROW);
    if (quick) {
        print_message("插桩构建不跑完整校准；由线程数一项覆盖\n");
        skip();
    }
    Overrides o = {0};
    add_common(&o, 0);
    add_light(&o);
    json_t *result = run("spqr", "A", &o, NULL);
    check_offsets(result);
    check_ppl(row, result, 0);
    double bits = number(result, "effective_bits", "linear");
    double want = json_number_value(json_object_get(row, "effective_bits"));
    double share = json_number_value(json_object_get(row, "outlier_share"));
    double params = number(result, "bytes", "codes") * 8 / 3;
    double perm = number(result, "bytes", "permutations") * 8 / params, starts = 32.0 / 512;
    double outliers = (number(result, "bytes", "outliers") * 8 / params - starts) / 32;
    print_message("# 位宽 %.4f = 官方公式 %.4f + 列序 %.4f + 分块起点 %.4f；离群值 %.5f（对照 %.5f）\n", bits, want,
                  perm, starts, outliers, share);
    assert_true(fabs(outliers / share - 1) < 0.01);
    assert_true(fabs(bits - want - perm - starts) < 0.01);
    json_decref(result);
}

static void same_tensors(void **state) {
    (void)state;
    golden_row(ROW);
    if (quick) {
        print_message("插桩构建不跑完整校准\n");
        skip();
    }
    Overrides o = {0};
    char buf[1024];
    const char *dump_dir = dump_dir_of(ROW, buf, sizeof buf);
    add_common(&o, 1);
    add_light(&o);
    add(&o, "weight.scale_dtype", "float32");
    json_decref(run("spqr", "A", &o, dump_dir));
    compare_parts(ROW, "code", "codes", dump_dir, 0);
    compare_npy(ROW, "qscale", dump_dir, 0);
    compare_npy(ROW, "qzero", dump_dir, 0);
    compare_npy(ROW, "perm", dump_dir, 0);
    compare_npy(ROW, "outliers", dump_dir, 1e-5);
    compare_npy(ROW, "w", dump_dir, 1.0 / 1024);
}

/* 各种设置下 1 与 2 线程逐位相同；state 是一串设置。 */
static void same_for_any_thread_count(void **state) {
    same_on_two_threads("spqr", "A", true, *state);
}

/* 阈值很大就没有离群值。 */
static void no_outliers(void **state) {
    (void)state;
    Overrides o = {0};
    add_common(&o, 1);
    add_int(&o, "calibration.samples", 1);
    add_int(&o, "calibration.length", 32);
    add(&o, "spqr.outlier_threshold", "1e30");
    json_t *result = run("spqr", "A", &o, NULL);
    double blocks = number(result, "bytes", "codes") * 8 / 3 / 512;
    assert_true(number(result, "bytes", "outliers") <= 4 * (blocks + 8 * 7)); /* 只有分块起点 */
    json_decref(result);
}

static void bad_settings(void **state) {
    (void)state;
    refuse("spqr", "A", (const char *const[]){"spqr.stat_rows", "24", "calibration.samples", "1", NULL},
           "16 的倍数");
    refuse("spqr", "A", (const char *const[]){"spqr.scale_bits", "1", "calibration.samples", "1", NULL},
           "0（不用）或 2 到 8");
    refuse("spqr", "A", (const char *const[]){"weight.group_size", "0", NULL}, "weight.group_size");
}

int main(void) {
    if (!golden_open("spqr")) return 1;
    static const char *const PLAIN[] = {NULL};
    static const char *const ODD[] = {"weight.group_size", "24", "spqr.zero_bits", "0",
                                      "spqr.stat_rows", "48", "spqr.act_order", "false",
                                      "spqr.block_size", "100", "spqr.leave_one_out", "false", NULL};
    const struct CMUnitTest tests[] = {
        {ROW, check_row, NULL, NULL, NULL},
        cmocka_unit_test(same_tensors),
        {"默认：1 与 2 线程逐位相同", same_for_any_thread_count, NULL, NULL, (void *)(uintptr_t)PLAIN},
        {"各项都改：1 与 2 线程逐位相同", same_for_any_thread_count, NULL, NULL, (void *)(uintptr_t)ODD},
        cmocka_unit_test(no_outliers),
        cmocka_unit_test(bad_settings),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(golden);
    return failed;
}
