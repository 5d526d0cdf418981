/* test_synth — 随机权重的模型：清单同形状表，内容与线程数无关、统计量与离群通道如所说，坏的目标报错并收拾干净 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "model/arch.h"
#include "synth.h"
#include "tests/unit/tmp.h"

static void write_model(const SynthPlan *p, uint64_t seed, int threads, const char *dir) {
    Err e = {0};
    Backend b;
    assert_true(backend_open_cpu(&b, threads, COMPUTE_F32, "generic", &e));
    if (!synth_write(p, seed, dir, &b, &e)) fail_msg("%s", e.msg);
    backend_close(&b);
}

static TensorFile open_model(const char *dir) {
    Err e = {0};
    TensorFile f;
    char path[1200];
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    if (!safetensors_open(&f, path, &e)) fail_msg("%s", e.msg);
    return f;
}

/* 一个小的形状，走到每种张量。 */
static const SynthShape SMALL = {"small", "llama", "LlamaForCausalLM", 2, 64, 4100, 4, 2, 16, 512, 128, 1e4, 1e-5,
                                 .qkv_bias = true, .qk_norm = true};

/* 张量解码成 float，须 test_free。 */
static float *values(const TensorFile *f, const char *name, size_t *n) {
    const FileTensor *t = tensorfile_find(f, name);
    assert_non_null(t);
    *n = t->bytes / 2;
    float *v = test_malloc(*n * sizeof *v);
    assert_true(dtype_decode(t->dtype, t->data, v, *n));
    return v;
}

/* 各表里的形状：清单的参数量是公开的数（百万），每一片不超过上限，config.json 我们自己读得懂。 */
static void test_shapes(void **state) {
    (void)state;
    static const struct {
        const char *name;
        double millions;
    } KNOWN[] = {{"smollm2-135m", 134.515}, {"llama3.2-1b", 1235.814}, {"llama3.1-8b", 8030.261},
                 {"llama2-7b", 6738.416},   {"mistral-7b", 7248.024},  {"qwen2.5-7b", 7615.617},
                 {"qwen3-8b", 8190.735},    {"gemma2-2b", 2614.342}};
    assert_int_equal(sizeof KNOWN / sizeof *KNOWN, N_SYNTH_SHAPES);
    for (size_t i = 0; i < N_SYNTH_SHAPES; i++) {
        Err e = {0};
        SynthPlan p;
        const SynthShape *s = synth_find(KNOWN[i].name, &e);
        assert_non_null(s);
        assert_true(synth_plan(&p, s, 0, DT_BF16, &e));
        assert_float_equal((double)p.bytes / 2e6, KNOWN[i].millions, 0.001);
        assert_true(p.n_shards == (p.bytes + 4999999999u) / 5000000000u);
        const char *dir = tmp_path(KNOWN[i].name);
        assert_true(file_mkdirs(dir, &e) && synth_write_json(&p, dir, &e));
        char path[1200];
        snprintf(path, sizeof path, "%s/config.json", dir);
        json_t *root = json_load(path, &e);
        ModelConfig c;
        if (!root || !arch_from_json(&c, root, path, NULL, &e)) fail_msg("%s", e.msg);
        assert_int_equal(c.n_layers, s->layers);
        assert_int_equal(c.tied, s->tied);
        assert_int_equal(c.rope.kind, s->rope_factor > 0 ? ROPE_LLAMA3 : ROPE_DEFAULT);
        json_decref(root);
        synth_plan_free(&p);
    }
    Err e = {0};
    assert_null(synth_find("llama3.1-8", &e));
    assert_non_null(strstr(e.msg, "'llama3.1-8b'？"));
}

static void test_threads(void **state) {
    (void)state;
    Err e = {0};
    SynthPlan p;
    assert_true(synth_plan(&p, &SMALL, 0, DT_F16, &e));
    write_model(&p, 7, 1, tmp_path("one"));
    write_model(&p, 7, 3, tmp_path("three"));
    write_model(&p, 8, 3, tmp_path("other"));
    TensorFile a = open_model(tmp_path("one")), b = open_model(tmp_path("three")), c = open_model(tmp_path("other"));
    assert_int_equal(a.map.size, b.map.size);
    assert_memory_equal(a.map.data, b.map.data, a.map.size);
    const FileTensor *x = tensorfile_find(&a, "lm_head.weight"), *y = tensorfile_find(&c, "lm_head.weight");
    assert_memory_not_equal(x->data, y->data, x->bytes);
    tensorfile_close(&a);
    tensorfile_close(&b);
    tensorfile_close(&c);
    synth_plan_free(&p);
}

static void test_statistics(void **state) {
    (void)state;
    Err e = {0};
    SynthPlan p;
    size_t n;
    assert_true(synth_plan(&p, &SMALL, 1, DT_BF16, &e));
    write_model(&p, 1, 2, tmp_path("stats"));
    TensorFile f = open_model(tmp_path("stats"));
    float *v = values(&f, "model.layers.0.mlp.gate_proj.weight", &n);
    double sum = 0, square = 0, fourth = 0, lag = 0;
    for (size_t i = 0; i < n; i++) {
        double z = (double)v[i] * 8; /* std 是 1/√64 */
        sum += z;
        square += z * z;
        fourth += z * z * z * z;
        if (i) lag += z * (double)v[i - 1] * 8;
    }
    double d = (double)n; /* 262400 个：各界都是标准误的 5 倍以上 */
    assert_float_equal(sum / d, 0, 0.01);
    assert_float_equal(square / d, 1, 0.015);
    assert_float_equal(fourth / d, 3, 0.1);
    assert_float_equal(lag / d, 0, 0.01);
    test_free(v);

    int loud = 0; /* up：1 + 4100/2048 = 3 行放大 8 倍（可能重合） */
    v = values(&f, "model.layers.0.mlp.up_proj.weight", &n);
    for (size_t r = 0; r < n / 64; r++) {
        square = 0;
        for (size_t k = 0; k < 64; k++) square += (double)v[r * 64 + k] * (double)v[r * 64 + k];
        loud += square > 16;
    }
    assert_in_range(loud, 1, 3);
    test_free(v);

    float *attn = values(&f, "model.layers.0.input_layernorm.weight", &n);
    float *mlp = values(&f, "model.layers.0.post_attention_layernorm.weight", &n);
    loud = 0;
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(fabsf(attn[i]) > 5, fabsf(mlp[i]) > 5); /* 同样的通道 */
        loud += attn[i] > 5;
        if (attn[i] <= 5) assert_in_range((int)(attn[i] * 100), 50, 150);
    }
    assert_in_range(loud, 1, 2);
    test_free(attn);
    test_free(mlp);
    tensorfile_close(&f);
    synth_plan_free(&p);
}

static void test_refused(void **state) {
    (void)state;
    Err e = {0};
    SynthPlan p;
    Backend b;
    assert_true(backend_open_cpu(&b, 1, COMPUTE_F32, "generic", &e));
    assert_true(synth_plan(&p, &SMALL, 0, DT_BF16, &e));
    const char *dir = tmp_path("full");
    assert_true(file_mkdirs(dir, &e));
    tmp_write(tmp_path("full/x"), "x", 1);
    assert_false(synth_write(&p, 0, dir, &b, &e));
    assert_non_null(strstr(e.msg, "不是空的"));
    assert_true(file_exists(tmp_path("full/x")));
    p.bytes = (size_t)1 << 60; /* 放不下：写之前就说，不留下文件夹 */
    assert_false(synth_write(&p, 0, tmp_path("huge"), &b, &e));
    assert_non_null(strstr(e.msg, "磁盘只剩"));
    assert_false(file_exists(tmp_path("huge")));
    synth_plan_free(&p);
    assert_false(synth_plan(&p, &SMALL, 100000, DT_BF16, &e));
    backend_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shapes), cmocka_unit_test(test_threads),
                                       cmocka_unit_test(test_statistics), cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, tmp_make, tmp_done);
}
