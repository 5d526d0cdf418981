/* test_awq — AWQ 一行对照官方代码的结果（demo_rows.h）；剪枝的搜索与穷举的结果相同；v → o 的折叠；线程数；错误的设置
 * 抽样层 k_proj 的 scale、zero、反量化权重须与对照相同：它们都乘着搜出的 s，s 不同就都不同。 */
#include "tests/golden/demo_rows.h"

static void check_row(void **state) {
    const char *name = *state;
    const json_t *row = golden_row(name), *settings = json_object_get(row, "settings");
    if (quick) {
        print_message("插桩构建不跑完整校准；由线程数一项覆盖\n");
        skip();
    }
    Overrides o = {0};
    char buf[1024];
    const char *dump_dir = dump_dir_of(name, buf, sizeof buf);
    add_common(&o, 0);
    add_light(&o);
    add_int(&o, "weight.w_bits", json_integer_value(json_object_get(settings, "bits")));
    add_int(&o, "weight.group_size", json_integer_value(json_object_get(settings, "q_group_size")));
    json_t *result = run("awq", "A", &o, dump_dir);
    check_offsets(result);
    check_ppl(row, result, 0);
    compare_npy(name, "scale", dump_dir, 1e-6);
    compare_npy(name, "zero", dump_dir, 0);
    compare_npy(name, "w", dump_dir, 1.0 / 1024);
    json_decref(result);
}

/* 逐次减半选出的比例与穷举全同，于是评测逐位相同。 */
static void pruned_is_exact(void **state) {
    (void)state;
    if (quick) {
        print_message("插桩构建不跑完整校准\n");
        skip();
    }
    json_t *results[2];
    for (int i = 0; i < 2; i++) {
        Overrides o = {0};
        add_common(&o, 2);
        add_light(&o);
        add_int(&o, "weight.group_size", 64);
        add(&o, "awq.search", i ? "exact" : "pruned");
        results[i] = run("awq", "A", &o, NULL);
    }
    same_windows(results[0], results[1]);
    json_decref(results[0]);
    json_decref(results[1]);
}

static void same_for_any_thread_count(void **state) {
    (void)state;
    static const char *const FULL[] = {"weight.group_size", "96", NULL}; /* 不整除 256 列 */
    static const char *const QUICK[] = {"weight.group_size", "96", "awq.n_grid", "3",
                                        "awq.clip_shrink", "0.1", NULL};
    same_on_two_threads("awq", "A", true, quick ? QUICK : FULL);
}

/* ---- v → o：注意力头数相同（MHA）、v 有偏置的极小模型 ---- */
enum { HIDDEN = 32, FF = 48, VOCAB = 4096 };

static float value_at(int tensor, int i) {
    return (float)(sin(0.37 * i + tensor) + 0.5 * cos(1.91 * i * (tensor + 1))) * 0.3f;
}

/* 写出 qwen2 的权重；norm 全 1，词嵌入各维、v 各行的幅度不同，好让搜出的 s 不是全 1。 */
static void write_model(const char *dir) {
    static const struct {
        const char *name;
        int rows, cols;
    } TENSORS[] = {{"embed_tokens.weight", VOCAB, HIDDEN},
                   {"norm.weight", HIDDEN, 0},
                   {"layers.0.input_layernorm.weight", HIDDEN, 0},
                   {"layers.0.post_attention_layernorm.weight", HIDDEN, 0},
                   {"layers.0.self_attn.q_proj.weight", HIDDEN, HIDDEN},
                   {"layers.0.self_attn.k_proj.weight", HIDDEN, HIDDEN},
                   {"layers.0.self_attn.v_proj.weight", HIDDEN, HIDDEN},
                   {"layers.0.self_attn.o_proj.weight", HIDDEN, HIDDEN},
                   {"layers.0.self_attn.q_proj.bias", HIDDEN, 0},
                   {"layers.0.self_attn.k_proj.bias", HIDDEN, 0},
                   {"layers.0.self_attn.v_proj.bias", HIDDEN, 0},
                   {"layers.0.mlp.gate_proj.weight", FF, HIDDEN},
                   {"layers.0.mlp.up_proj.weight", FF, HIDDEN},
                   {"layers.0.mlp.down_proj.weight", HIDDEN, FF}};
    static const char CONFIG[] =
        "{\"model_type\": \"qwen2\", \"num_hidden_layers\": 1, \"hidden_size\": 32,"
        " \"intermediate_size\": 48, \"num_attention_heads\": 4, \"num_key_value_heads\": 4,"
        " \"vocab_size\": 4096, \"rms_norm_eps\": 1e-5, \"max_position_embeddings\": 512,"
        " \"tie_word_embeddings\": true}";
    char path[2048], header[4096];
    size_t used = 0, at = 0;
    header[used++] = '{';
    for (size_t t = 0; t < sizeof TENSORS / sizeof *TENSORS; t++) {
        size_t bytes = (size_t)TENSORS[t].rows * (size_t)(TENSORS[t].cols ? TENSORS[t].cols : 1) * 4;
        used += (size_t)snprintf(header + used, sizeof header - used,
                                 "%s\"model.%s\":{\"dtype\":\"F32\",\"shape\":[%d", t ? "," : "",
                                 TENSORS[t].name, TENSORS[t].rows);
        if (TENSORS[t].cols)
            used += (size_t)snprintf(header + used, sizeof header - used, ",%d", TENSORS[t].cols);
        used += (size_t)snprintf(header + used, sizeof header - used,
                                 "],\"data_offsets\":[%zu,%zu]}", at, at + bytes);
        at += bytes;
    }
    header[used++] = '}';
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    uint64_t n = used;
    fwrite(&n, 8, 1, f);
    fwrite(header, 1, used, f);
    for (int t = 0; t < (int)(sizeof TENSORS / sizeof *TENSORS); t++) {
        int cols = TENSORS[t].cols ? TENSORS[t].cols : 1;
        bool norm = strstr(TENSORS[t].name, "norm") != NULL;
        for (int i = 0; i < TENSORS[t].rows * cols; i++) {
            float v = norm ? 1 : value_at(t, i);
            if (t == 0) v *= i % cols % 7 == 0 ? 0.8f : 0.06f;
            if (strstr(TENSORS[t].name, "v_proj")) v *= i / cols % 5 == 0 ? 8.0f : 0.3f;
            fwrite(&v, 4, 1, f);
        }
    }
    assert_int_equal(fclose(f), 0);
    snprintf(path, sizeof path, "%s/config.json", dir);
    f = fopen(path, "w");
    assert_non_null(f);
    fputs(CONFIG, f);
    assert_int_equal(fclose(f), 0);
    char tokenizer[4096];
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    if (!realpath("data/raw/demo/model/tokenizer.json", tokenizer) ||
        (symlink(tokenizer, path) != 0 && errno != EEXIST))
        fail_msg("备不好 %s", path);
}

static json_t *run_tiny(const char *dir, const char *method, const char *layer, const char *dump) {
    Overrides o = {0};
    add_common(&o, 1);
    if (strcmp(method, "awq") == 0) {
        add_int(&o, "weight.w_bits", 8);
        add_int(&o, "weight.group_size", -1);
        add(&o, "awq.clip", "false");
        add_int(&o, "calibration.samples", 2);
        add_int(&o, "calibration.length", 64);
    }
    RunRequest r = {.config = {.root = ".", .model = dir, .method = method, .track = "A",
                               .overrides = o.list, .n_overrides = o.n},
                    .command = "tests/golden", .dump_linear = layer, .dump_dir = dump};
    json_t *result = NULL;
    Err e = {0};
    if (!run_experiment(&r, &result, &e)) fail_msg("%s", e.msg);
    return result;
}

static void v_folds_into_o(void **state) {
    (void)state;
    char dir[1024], dump[2][1100];
    Arena a = {0};
    Err e = {0};
    Npy w[2];
    dump_dir_of("mha", dir, sizeof dir);
    write_model(dir);
    json_t *dense = run_tiny(dir, "fp16", NULL, NULL);
    for (int i = 0; i < 2; i++) {
        snprintf(dump[i], sizeof dump[i], "%s/%c", dir, "vo"[i]);
        json_t *q = run_tiny(dir, "awq",
                             i ? "model.layers.0.self_attn.o_proj" : "model.layers.0.self_attn.v_proj",
                             dump[i]);
        double ratio = ppl_of(q) / ppl_of(dense); /* 8 位：少折了 v 的权重或偏置就差 1.5e-3 以上 */
        if (!(fabs(ratio - 1) < 5e-4)) fail_msg("折叠前后 PPL 之比 %.6f", ratio);
        json_decref(q);
        char *path = arena_printf(&a, &e, "%s/w.npy", dump[i]);
        if (!npy_read(&a, path, &w[i], &e)) fail_msg("%s", e.msg);
    }
    /* o 的第 c 列乘了 s_c */
    double lo = INFINITY, hi = 0;
    for (int c = 0; c < HIDDEN; c++) {
        double stored = 0, original = 0;
        for (int r = 0; r < HIDDEN; r++) {
            stored += fabs(npy_at(&w[1], (size_t)(r * HIDDEN + c)));
            original += fabs((double)value_at(7, r * HIDDEN + c));
        }
        lo = fmin(lo, stored / original);
        hi = fmax(hi, stored / original);
    }
    assert_true(hi / lo > 1.05);
    json_decref(dense);
    arena_free(&a);
}

static void bad_settings(void **state) {
    (void)state;
    refuse("awq", "A", (const char *const[]){"weight.zero_point", "float", NULL}, "weight.zero_point");
    refuse("awq", "A", (const char *const[]){"weight.group_size", "0", NULL}, "weight.group_size");
    refuse("awq", "A", (const char *const[]){"awq.search", "fast", NULL}, "awq.search");
    refuse("awq", "A", (const char *const[]){"weight.granularity", "per_tensor", NULL},
           "weight.granularity");
}

int main(void) {
    if (!golden_open("awq")) return 1;
    static const char ROW[] = "awq-w4-g64-asym-light";
    const struct CMUnitTest tests[] = {
        {ROW, check_row, NULL, NULL, (void *)(uintptr_t)ROW},
        cmocka_unit_test(pruned_is_exact),
        {"1 与 2 线程逐位相同", same_for_any_thread_count, NULL, NULL, NULL},
        cmocka_unit_test(v_folds_into_o),
        cmocka_unit_test(bad_settings),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(golden);
    return failed;
}
