/* test_config — 五层合并、检查与提示、模型位置、规范文本
 * 用一个临时的项目根写各层 YAML；方法是真的 fp16 与 rtn。 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "config.h"
#include "config_schema.h"
#include "io/file.h"
#include "registry.h"
#include "tmp.h"

static void put(const char *rel, const char *text) {
    char path[1200], dir[1200];
    snprintf(path, sizeof path, "%s/%s", tmp_dir, rel);
    snprintf(dir, sizeof dir, "%s", path);
    *strrchr(dir, '/') = '\0';
    assert_true(file_mkdirs(dir, NULL));
    tmp_write(path, text, strlen(text));
}

#define BASE "seed: 1\nthreads: 1\neval:\n  limit: 5\n"
#define MODEL "name: m\nmodel_id: data/raw/m\ndtype: bfloat16\neval:\n  limit: 6\n"
#define RTN_TRACKS "supported_tracks: [A, B, C]\n" /* 与 rtn.c 登记的一致 */
#define RTN "name: rtn\ndisplay_name: RTN\n" RTN_TRACKS "library: x\n" \
            "weight:\n  w_bits: 4\n  group_size: 32\ncalibration:\n  required: false\n"
#define FP16 "name: fp16\nsupported_tracks: [A, B, C]\n"
#define TRACK "name: track_a\ndisplay_name: t\ncondition: c\nmethods: [rtn]\neval:\n" \
              "  ppl_datasets: [demo]\n  lm_eval_tasks: []\n"

static int fresh(void **state) {
    (void)state;
    put("configs/config.yaml", BASE);
    put("configs/models/m.yaml", MODEL);
    put("configs/methods/rtn.yaml", RTN);
    put("configs/methods/fp16.yaml", FP16);
    put("configs/tracks/track_a.yaml", TRACK);
    return 0;
}

static bool load_as(Config *c, const char *model, const char *method, const char *track,
                    const char *override, Err *e) {
    *e = (Err){0};
    ConfigRequest r = {.root = tmp_dir, .model = model, .method = method, .track = track,
                       .overrides = &override, .n_overrides = override ? 1 : 0};
    return config_load(c, &r, e);
}

/* 载入须失败，消息含 want。 */
static void refuse(const char *model, const char *method, const char *track, const char *override,
                   ErrCode code, const char *want) {
    Config c;
    Err e;
    if (load_as(&c, model, method, track, override, &e)) {
        config_free(&c);
        fail_msg("本应拒绝: %s", want);
    }
    if (!strstr(e.msg, want)) fail_msg("消息 '%s' 里没有 '%s'", e.msg, want);
    assert_int_equal(e.code, code);
}

static int64_t w_bits(const Config *c) {
    return *(const int64_t *)((const char *)c->method_options +
                              option_find(c->method->options, "weight.w_bits")->offset);
}

static void test_layers(void **state) {
    (void)state;
    Config c;
    Err e;
    assert_true(load_as(&c, "m", "rtn", "a", NULL, &e));
    assert_int_equal(c.run.seed, 1);
    assert_int_equal(c.run.limit, 6); /* 模型层盖过 config.yaml */
    assert_int_equal(w_bits(&c), 4);
    assert_int_equal(c.track, 'A');
    assert_int_equal(c.run.n_ppl_datasets, 1);
    assert_string_equal(c.run.ppl_datasets[0], "demo");
    config_free(&c);
    put("configs/methods/rtn.yaml", RTN "eval:\n  limit: 7\n");
    put("configs/tracks/track_a.yaml", TRACK "weight:\n  w_bits: 5\n");
    assert_true(load_as(&c, "m", "rtn", "track_a", NULL, &e));
    assert_int_equal(c.run.limit, 7); /* 方法层盖过模型层 */
    assert_int_equal(w_bits(&c), 5);  /* 轨道层盖过方法层 */
    config_free(&c);
    assert_true(load_as(&c, "m", "rtn", "A", "weight.w_bits=3", &e));
    assert_int_equal(w_bits(&c), 3); /* 命令行最高 */
    json_t *merged = config_merged_json(&c);
    assert_string_equal(
        json_string_value(json_object_get(json_object_get(merged, "weight.w_bits"), "from")),
        "命令行 --override");
    json_decref(merged);
    config_free(&c);
}

static void test_origin(void **state) {
    (void)state;
    Config c;
    Err e;
    assert_true(load_as(&c, "m", "rtn", "A", NULL, &e));
    json_t *m = config_merged_json(&c);
    const json_t *bits = json_object_get(m, "weight.w_bits");
    assert_string_equal(json_string_value(json_object_get(bits, "from")),
                        "configs/methods/rtn.yaml:6");
    assert_int_equal(json_integer_value(json_object_get(bits, "value")), 4);
    assert_string_equal(
        json_string_value(json_object_get(json_object_get(m, "weight.scheme"), "from")), "默认值");
    json_decref(m);
    config_free(&c);
}

static void test_unknown_keys(void **state) {
    (void)state;
    refuse("m", "rtn", "A", "weight.w_bit=3", ERR_CONFIG, "是否想写 'weight.w_bits'");
    refuse("m", "rtn", "A", "w_bits=3", ERR_CONFIG, "是否想写 'weight.w_bits'");
    refuse("m", "rtn", "A", "weight=3", ERR_CONFIG, "是一组设置");
    refuse("m", "fp16", "A", "weight.w_bits=3", ERR_CONFIG, "有它的方法: ");
    refuse("m", "rtn", "A", "name=x", ERR_CONFIG, "未知的键 'name'");
    put("configs/methods/rtn.yaml", RTN "wieght:\n  w_bits: 4\n");
    refuse("m", "rtn", "A", NULL, ERR_CONFIG,
           "configs/methods/rtn.yaml:11: 未知的键 'wieght.w_bits'，是否想写 'weight.w_bits'");
    put("configs/methods/rtn.yaml", RTN);
    put("configs/config.yaml", "sed: 1\n");
    refuse("m", "rtn", "A", NULL, ERR_CONFIG, "configs/config.yaml:1: 未知的键 'sed'");
    /* 公共层里别的方法的设置：放行，但不生效 */
    put("configs/config.yaml", BASE "weight:\n  w_bits: 3\n");
    Config c;
    Err e;
    assert_true(load_as(&c, "m", "fp16", "A", NULL, &e));
    assert_null(yaml_path(c.merged, "weight.w_bits"));
    config_free(&c);
}

static void test_values(void **state) {
    (void)state;
    refuse("m", "rtn", "A", "weight.w_bits=9", ERR_CONFIG, "2 到 8");
    refuse("m", "rtn", "A", "weight.w_bits=1", ERR_CONFIG, "超出范围");
    refuse("m", "rtn", "A", "weight.w_bits=4.0", ERR_CONFIG, "整数");
    refuse("m", "rtn", "A", "weight.w_bits='4'", ERR_CONFIG, "类型不对");
    refuse("m", "rtn", "A", "weight.w_bits=", ERR_CONFIG, "类型不对");
    refuse("m", "rtn", "A", "weight.w_bits=[4]", ERR_CONFIG, "类型不对");
    refuse("m", "rtn", "A", "weight.scheme=symetric", ERR_CONFIG, "'symmetric'");
    refuse("m", "rtn", "A", "eval.speed=yes", ERR_CONFIG, "true | false");
    refuse("m", "rtn", "A", "seed=-1", ERR_CONFIG, "超出范围");
    refuse("m", "rtn", "A", "eval.ppl_datasets={a: 1}", ERR_CONFIG, "应为列表");
    refuse("m", "rtn", "A", "eval.ppl_datasets=[demo, demo]", ERR_CONFIG, "两次");
    refuse("m", "rtn", "A", "eval.ppl_datasets=[[demo]]", ERR_CONFIG, "第 1 项");
    refuse("m", "rtn", "A", "nothing", ERR_CONFIG, "键=值");
    refuse("m", "rtn", "A", "device=gpu", ERR_CONFIG, "cuda");
    refuse("m", "rtn", "A", "eval.lm_eval_tasks={a: 1}", ERR_CONFIG, "应为列表");
    refuse("m", "rtn", "A", "eval.num_fewshot=-2", ERR_CONFIG, "超出范围");
}

static void test_names(void **state) {
    (void)state;
    refuse("mm", "rtn", "A", NULL, ERR_CONFIG, "是否想写 'm'");
    refuse("m", "rtm", "A", NULL, ERR_CONFIG, "方法 'rtm' 未注册，是否想写 'rtn'");
    put("configs/methods/gptq.yaml", "name: gptq\nsupported_tracks: [A]\n");
    refuse("m", "gptq", "B", NULL, ERR_UNSUPPORTED, "方法 gptq 不支持 Track B");
    refuse("m", "rtn", "D", NULL, ERR_CONFIG, "没有轨道 'D'");
    refuse("m", "rtn", "track_", NULL, ERR_CONFIG, "没有轨道");
    refuse("../models/m", "rtn", "A", NULL, ERR_CONFIG, "没有模型");
    put("configs/models/m.yaml", "name: n\n");
    refuse("m", "rtn", "A", NULL, ERR_CONFIG, "configs/models/m.yaml:1: name 是 'n'");
    put("configs/models/m.yaml", "dtype: auto\n");
    refuse("m", "rtn", "A", NULL, ERR_CONFIG, "缺少 'name'");
    put("configs/models/m.yaml", "- 1\n");
    refuse("m", "rtn", "A", NULL, ERR_CONFIG, "最外层应为映射");
    put("configs/models/m.yaml", MODEL);
    put("configs/methods/rtn.yaml", "name: rtn\nsupported_tracks: [A]\n");
    refuse("m", "rtn", "A", NULL, ERR_CONFIG, "rtn.yaml:2: supported_tracks");
    put("configs/methods/rtn.yaml", "name: rtn\n" RTN_TRACKS "calibration:\n  required: 1\n");
    refuse("m", "rtn", "A", NULL, ERR_CONFIG, "rtn.yaml:4: 'calibration.required'");
    unlink(tmp_path("configs/methods/rtn.yaml"));
    refuse("m", "rtn", "A", NULL, ERR_CONFIG, "缺少 configs/methods/rtn.yaml");
}

static void test_warnings(void **state) {
    (void)state;
    Config c;
    Err e;
    assert_true(load_as(&c, "m", "rtn", "A", "trust_remote_code=true", &e));
    assert_int_equal(c.n_warnings, 1);
    assert_non_null(strstr(c.warnings[0], "从不运行"));
    config_free(&c);
}

static void test_model_path(void **state) {
    (void)state;
    Config c;
    Err e;
    assert_true(load_as(&c, "m", "rtn", "A", NULL, &e));
    assert_null(config_model_path(&c, &e));
    assert_int_equal(e.code, ERR_MISSING);
    put("data/raw/m/a.gguf", "x");
    e = (Err){0};
    assert_non_null(strstr(config_model_path(&c, &e), "data/raw/m/a.gguf"));
    put("data/raw/m/b.gguf", "x");
    assert_null(config_model_path(&c, &e));
    assert_non_null(strstr(e.msg, "2 个 .gguf"));
    put("data/raw/m/config.json", "{}");
    e = (Err){0};
    assert_true(file_is_dir(config_model_path(&c, &e)));
    config_free(&c);
    /* 以路径给出 */
    put("models/My Model.GGUF", "x");
    assert_true(load_as(&c, tmp_path("models/My Model.GGUF"), "rtn", "A", NULL, &e));
    assert_true(c.model_is_path);
    assert_string_equal(c.model.name, "my-model");
    assert_non_null(config_model_path(&c, &e));
    config_free(&c);
    /* 需要授权的模型 */
    put("configs/models/m.yaml", "name: m\nmodel_id: meta-llama/X\ndata_dir: none\n");
    assert_true(load_as(&c, "m", "rtn", "A", NULL, &e));
    assert_null(config_model_path(&c, &e));
    assert_non_null(strstr(e.msg, "export HF_TOKEN=xxx"));
    config_free(&c);
}

static char *canonical(const char *override) {
    static char text[2][4096];
    static int next;
    Config c;
    Err e;
    assert_true(load_as(&c, "m", "rtn", "A", override, &e));
    char *t = config_canonical(&c, &c.arena, &e);
    assert_non_null(t);
    next = !next;
    snprintf(text[next], sizeof text[next], "%s", t);
    config_free(&c);
    return text[next];
}

static void test_canonical(void **state) {
    (void)state;
    assert_string_equal(canonical(NULL), canonical("threads=8"));
    assert_string_equal(canonical(NULL), canonical("results_dir=elsewhere"));
    assert_string_equal(canonical(NULL), canonical("weight.w_bits=4")); /* 写不写默认都一样 */
    assert_string_equal(canonical(NULL), canonical("compute=float32"));
    assert_string_not_equal(canonical(NULL), canonical("weight.w_bits=3"));
    assert_string_not_equal(canonical(NULL), canonical("eval.limit=1"));
    assert_string_not_equal(canonical(NULL), canonical("seed=2"));
    assert_string_not_equal(canonical(NULL), canonical("eval.ppl_datasets=[ptb]"));
}

/* 随项目发布的每个模型、方法、轨道都读得通。 */
static void test_shipped(void **state) {
    (void)state;
    Arena a = {0};
    char **models;
    size_t n, n_methods;
    const Method *const *methods = registry_methods(&n_methods);
    assert_true(file_list(&a, "configs/models", ".yaml", &models, &n, NULL));
    assert_true(n >= 4);
    for (size_t i = 0; i < n; i++)
        for (size_t m = 0; m < n_methods; m++)
            for (const char *t = methods[m]->tracks; *t; t++) {
                char name[256], track[2] = {*t, 0};
                snprintf(name, sizeof name, "%.*s", (int)strlen(models[i]) - 5, models[i]);
                ConfigRequest r = {.root = ".", .model = name, .method = methods[m]->name,
                                   .track = track};
                Config c;
                Err e = {0};
                if (!config_load(&c, &r, &e)) fail_msg("%s", e.msg);
                config_free(&c);
            }
    arena_free(&a);
}

/* docs/config.md 里的表就是由选项表生成的。 */
static void test_documented(void **state) {
    (void)state;
    Arena a = {0};
    Err e = {0};
    Str want = {0};
    char *doc = file_read(&a, "docs/config.md", 1 << 20, NULL, &e);
    schema_markdown(&want);
    assert_non_null(doc);
    if (!strstr(doc, want.data))
        fail_msg("docs/config.md 过时：用 ptq-bench list options --markdown 重新生成表格");
    str_free(&want);
    arena_free(&a);
}

static void test_registry(void **state) {
    (void)state;
    size_t n;
    const Method *const *all = registry_methods(&n);
    assert_true(n >= 2);
    for (size_t i = 0; i + 1 < n; i++) assert_true(strcmp(all[i]->name, all[i + 1]->name) < 0);
    Err e = {0};
    assert_ptr_equal(registry_find("rtn", &e)->name, registry_find("rtn", NULL)->name);
    assert_true(registry_check_track(registry_find("fp16", &e), 'C', &e));
    assert_false(registry_check_track(registry_find("rtn", &e), '\0', &e));
    assert_null(registry_find("", &e));
    assert_non_null(strstr(e.msg, "已注册: awq、fp16"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_layers, fresh),
        cmocka_unit_test_setup(test_origin, fresh),
        cmocka_unit_test_setup(test_unknown_keys, fresh),
        cmocka_unit_test_setup(test_values, fresh),
        cmocka_unit_test_setup(test_names, fresh),
        cmocka_unit_test_setup(test_warnings, fresh),
        cmocka_unit_test_setup(test_model_path, fresh),
        cmocka_unit_test_setup(test_canonical, fresh),
        cmocka_unit_test(test_shipped),
        cmocka_unit_test(test_documented),
        cmocka_unit_test(test_registry),
    };
    return cmocka_run_group_tests(tests, tmp_make, tmp_done);
}
