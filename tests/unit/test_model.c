/* test_model — 模型文件夹的读取：好的能算，坏的报出文件与原因
 * 在临时文件夹里写一个极小的 llama（config.json + safetensors），每个用例改坏一处，看错误码与消息。 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/str.h"
#include "methods/job.h"
#include "model/session.h"
#include "tmp.h"

enum { VOCAB = 40, HIDDEN = 24, FF = 20, HEADS = 3, KV = 1, DIM = 8, LAYERS = 2 };

static const char CONFIG[] =
    "{\"model_type\": \"llama\", \"num_hidden_layers\": 2, \"hidden_size\": 24,"
    " \"intermediate_size\": 20, \"num_attention_heads\": 3, \"num_key_value_heads\": 1,"
    " \"vocab_size\": 40, \"rms_norm_eps\": 1e-5, \"max_position_embeddings\": 64,"
    " \"tie_word_embeddings\": false%s}";

/* 要写进 safetensors 的张量；drop 为跳过的名字，poison 为首元素换成 NaN 的名字，wrong 为行数加一的名字。 */
typedef struct Variant {
    const char *drop, *poison, *wrong;
} Variant;

static void add_tensor(Str *header, Str *data, const Variant *v, const char *name, int rows,
                       int cols) {
    if (v->drop && strcmp(v->drop, name) == 0) return;
    if (v->wrong && strcmp(v->wrong, name) == 0) rows++;
    size_t begin = data->len;
    for (int i = 0; i < rows * (cols ? cols : 1); i++) {
        float x = cols ? 0.2f * sinf((float)(i * 7 + (int)strlen(name))) : 1.0f;
        if (i == 0 && v->poison && strcmp(v->poison, name) == 0) x = NAN;
        str_addn(data, (const char *)&x, sizeof x);
    }
    str_addf(header, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%d", header->len > 1 ? "," : "", name,
             rows);
    if (cols) str_addf(header, ",%d", cols);
    str_addf(header, "],\"data_offsets\":[%zu,%zu]}", begin, data->len);
}

static void write_weights(const char *path, const Variant *v) {
    static const struct {
        const char *name;
        int rows, cols;
    } LAYER[] = {{"input_layernorm", HIDDEN, 0}, {"post_attention_layernorm", HIDDEN, 0},
                 {"self_attn.q_proj", HEADS *DIM, HIDDEN}, {"self_attn.k_proj", KV *DIM, HIDDEN},
                 {"self_attn.v_proj", KV *DIM, HIDDEN}, {"self_attn.o_proj", HIDDEN, HEADS *DIM},
                 {"mlp.gate_proj", FF, HIDDEN}, {"mlp.up_proj", FF, HIDDEN},
                 {"mlp.down_proj", HIDDEN, FF}};
    Str header = {0}, data = {0}, file = {0};
    str_add(&header, "{");
    add_tensor(&header, &data, v, "model.embed_tokens.weight", VOCAB, HIDDEN);
    for (int l = 0; l < LAYERS; l++)
        for (size_t i = 0; i < sizeof LAYER / sizeof *LAYER; i++) {
            char name[128];
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", l, LAYER[i].name);
            add_tensor(&header, &data, v, name, LAYER[i].rows, LAYER[i].cols);
        }
    add_tensor(&header, &data, v, "model.norm.weight", HIDDEN, 0);
    add_tensor(&header, &data, v, "lm_head.weight", VOCAB, HIDDEN);
    str_add(&header, "}");
    uint64_t n = header.len;
    str_addn(&file, (const char *)&n, 8);
    str_addn(&file, header.data, header.len);
    str_addn(&file, data.data, data.len);
    tmp_write(path, file.data, file.len);
    str_free(&header);
    str_free(&data);
    str_free(&file);
}

/* 新建模型文件夹 name。extra 追加到 config.json（以逗号开头）。 */
static const char *make_model(const char *name, const char *extra, const Variant *v) {
    static char dir[1024], path[1200], text[2048];
    snprintf(dir, sizeof dir, "%s", tmp_path(name));
    assert_true(file_mkdirs(dir, NULL));
    snprintf(text, sizeof text, CONFIG, extra);
    snprintf(path, sizeof path, "%s/config.json", dir);
    tmp_write(path, text, strlen(text));
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    write_weights(path, v);
    return dir;
}

static bool open_and_pack(Model *m, Backend *b, const char *dir, Err *e) {
    extern const Method ptq_method_fp16;
    QuantJob job = {0};
    if (!backend_open_cpu(b, 1, COMPUTE_F32, NULL, e)) return false;
    bool ok = model_open(m, dir, DT_NONE, b, e);
    if (ok && !job_run(&job, &ptq_method_fp16, NULL, m, NULL, e)) {
        model_close(m);
        ok = false;
    }
    job_close(&job);
    if (!ok) backend_close(b);
    return ok;
}

static void expect_error(const char *dir, ErrCode code, const char *part) {
    Model m;
    Backend b;
    Err e = {0};
    assert_false(open_and_pack(&m, &b, dir, &e));
    if (e.code != code || !strstr(e.msg, part))
        fail_msg("期望 %s 与 '%s'，得到 %s: %s", err_code_name(code), part, err_code_name(e.code), e.msg);
}

static void test_good(void **state) {
    (void)state;
    Variant none = {0};
    Model m;
    Backend b;
    Err e = {0};
    if (!open_and_pack(&m, &b, make_model("good", "", &none), &e)) fail_msg("%s", e.msg);
    assert_string_equal(m.config.arch->name, "llama");
    assert_int_equal(m.config.head_dim, DIM);
    ModelBytes bytes = model_bytes(&m);
    assert_int_equal(bytes.linear_params, arch_linear_params(&m.config));
    assert_int_equal(bytes.params, arch_linear_params(&m.config) + (2 * LAYERS + 1) * HIDDEN +
                                       2 * VOCAB * HIDDEN);

    /* 会话：一次喂入与逐个喂入逐位相同；id 越界与容量不足是错误 */
    int32_t ids[9] = {1, 5, 39, 0, 7, 7, 12, 30, 2};
    float whole[9 * HIDDEN], single[9 * HIDDEN];
    Session s;
    assert_true(session_open(&s, &m, 9, 9, &e));
    assert_true(session_forward(&s, ids, 9, whole, &e));
    session_reset(&s);
    for (int i = 0; i < 9; i++) assert_true(session_forward(&s, ids + i, 1, single + i * HIDDEN, &e));
    assert_memory_equal(whole, single, sizeof whole);
    assert_false(session_forward(&s, ids, 1, NULL, &e));
    assert_non_null(strstr(e.msg, "容量"));
    session_reset(&s);
    ids[0] = VOCAB;
    assert_false(session_forward(&s, ids, 1, NULL, &e));
    assert_non_null(strstr(e.msg, "词表"));
    session_close(&s);
    model_close(&m);
    backend_close(&b);
}

static void test_bad_tensors(void **state) {
    (void)state;
    Variant drop = {.drop = "model.layers.1.mlp.up_proj.weight"};
    expect_error(make_model("drop", "", &drop), ERR_MISSING, "model.layers.1.mlp.up_proj.weight");
    Variant wrong = {.wrong = "model.layers.0.self_attn.k_proj.weight"};
    expect_error(make_model("wrong", "", &wrong), ERR_FORMAT, "[9, 24]");
    Variant nan = {.poison = "model.layers.1.self_attn.o_proj.weight"};
    expect_error(make_model("nan", "", &nan), ERR_NUMERIC, "model.layers.1.self_attn.o_proj");
    Variant nan_norm = {.poison = "model.norm.weight"};
    expect_error(make_model("nan_norm", "", &nan_norm), ERR_NUMERIC, "model.norm.weight");
    Variant head = {.drop = "lm_head.weight"};
    expect_error(make_model("head", "", &head), ERR_MISSING, "lm_head.weight");
    /* attention_bias 要求 o_proj.bias 等 */
    Variant none = {0};
    expect_error(make_model("bias", ", \"attention_bias\": true", &none), ERR_MISSING,
                 "q_proj.bias");
}

static void test_bad_config(void **state) {
    (void)state;
    static const struct {
        const char *extra, *part;
        ErrCode code;
    } CASES[] = {
        {", \"hidden_act\": \"mish\"", "mish", ERR_UNSUPPORTED},
        {", \"rope_scaling\": {\"rope_type\": \"spiral\", \"factor\": 4}", "spiral", ERR_UNSUPPORTED},
        {", \"clip_qkv\": 8.0", "clip_qkv", ERR_UNSUPPORTED}, /* 不认识的键 */
        {", \"layer_types\": [\"full_attention\"]", "layer_types", ERR_FORMAT},
        {", \"layer_types\": [\"full_attention\", \"sliding_attention\"]", "滑动窗口", ERR_UNSUPPORTED},
        {", \"rope_scaling\": {\"rope_type\": \"longrope\", \"short_factor\": [1]}", "short_factor", ERR_FORMAT},
        {", \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4,"
         " \"high_freq_factor\": 1}", "low_freq_factor", ERR_FORMAT},
        {", \"quantization_config\": {\"bits\": 4}", "quant_method", ERR_UNSUPPORTED},
        {", \"head_dim\": 0", "head_dim", ERR_FORMAT},
        {", \"head_dim\": 7", "head_dim", ERR_FORMAT},
        {", \"rope_theta\": \"big\"", "rope_theta", ERR_FORMAT},
        {", \"partial_rotary_factor\": 40", "head_dim", ERR_FORMAT},
    };
    Variant none = {0};
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        char name[32];
        snprintf(name, sizeof name, "config%zu", i);
        expect_error(make_model(name, CASES[i].extra, &none), CASES[i].code, CASES[i].part);
    }
}

static void put(const char *dir, const char *name, const char *text) {
    char path[1200];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    tmp_write(path, text, strlen(text));
}

static void test_bad_index(void **state) {
    (void)state;
    Variant none = {0};
    const char *dir = make_model("index", "", &none);
    put(dir, "model.safetensors.index.json", "{\"weight_map\": {}}");
    expect_error(dir, ERR_FORMAT, "weight_map");
    put(dir, "model.safetensors.index.json",
        "{\"weight_map\": {\"model.norm.weight\": \"../../etc/passwd\"}}");
    expect_error(dir, ERR_FORMAT, "不合法");
    put(dir, "model.safetensors.index.json",
        "{\"weight_map\": {\"model.norm.weight\": \"gone.safetensors\"}}");
    expect_error(dir, ERR_MISSING, "gone.safetensors");
    put(dir, "model.safetensors.index.json",
        "{\"weight_map\": {\"model.nothing\": \"model.safetensors\"}}");
    expect_error(dir, ERR_MISSING, "model.nothing");
    expect_error(tmp_path("nowhere"), ERR_IO, "nowhere");
}

/* llama3 缩放的三段：短波长不变、长波长除以 factor、中间单调过渡。 */
static void test_rope(void **state) {
    (void)state;
    Variant none = {0};
    Model m;
    Backend b;
    Err e = {0};
    const char *extra = ", \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0,"
                        " \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0,"
                        " \"original_max_position_embeddings\": 64}";
    if (!open_and_pack(&m, &b, make_model("rope", extra, &none), &e)) fail_msg("%s", e.msg);
    for (int i = 0; i < DIM / 2; i++) {
        double f = pow(10000.0, -2.0 * i / DIM), wavelen = 2 * M_PI / f, want = f;
        if (wavelen > 64) want = f / 8;
        else if (wavelen > 16) want = f / 8 + (f - f / 8) * (64 / wavelen - 1) / 3;
        assert_true(fabs(m.inv_freq[i] - want) <= 1e-6 * want);
    }
    assert_true(model_ensure_rope(&m, 3000, &e)); /* 增长后旧位置不变 */
    assert_true(fabsf(m.cos_table[100 * DIM / 2] - cosf(100.0f)) < 1e-6f);
    model_close(&m);
    backend_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),      cmocka_unit_test(test_bad_tensors),
        cmocka_unit_test(test_bad_config), cmocka_unit_test(test_bad_index),
        cmocka_unit_test(test_rope)};
    return cmocka_run_group_tests_name("model", tests, tmp_make, tmp_done);
}
