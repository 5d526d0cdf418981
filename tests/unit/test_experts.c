/* test_experts — 混合专家的校准：没分到 token 的专家以就近取整量化，记入结果的 fallbacks
 * 极小的 mixtral，路由总选前两个专家（隐藏状态的第 0 维恒大，路由的权重只认它）：后两个一个 token 也没有。 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/log.h"
#include "base/str.h"
#include "env_info.h"
#include "io/npy.h"
#include "runner.h"
#include "tmp.h"

enum { VOCAB = 4096, HIDDEN = 32, FF = 48, EXPERTS = 4 };

static const char CONFIG[] =
    "{\"model_type\": \"mixtral\", \"num_hidden_layers\": 1, \"hidden_size\": 32, \"intermediate_size\": 48,"
    " \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"num_local_experts\": 4, \"num_experts_per_tok\": 2,"
    " \"vocab_size\": 4096, \"max_position_embeddings\": 256, \"tie_word_embeddings\": true}";

static float noise(int tensor, int i) {
    uint32_t x = (uint32_t)(i * 2654435761u) ^ (uint32_t)(tensor + 1) * 2246822519u;
    x ^= x >> 15, x *= 2654435769u, x ^= x >> 13;
    return (float)(x % 2001) / 1000 - 1;
}

static void add_tensor(Str *header, Str *data, int *index, const char *name, int rows, int cols) {
    size_t begin = data->len;
    for (int i = 0; i < rows * (cols ? cols : 1); i++) {
        float x = cols ? 0.3f * noise(*index, i) : 1;
        if (strstr(name, "embed") && i % cols == 0) x = 2; /* 恒大的一维 */
        if (strstr(name, "moe.gate")) x = i % cols ? 0.05f * x : i / cols < 2 ? 3 : -3;
        if (strstr(name, "o_proj") && i / cols == 0) x = 0; /* 注意力不碰那一维 */
        str_addn(data, (const char *)&x, sizeof x);
    }
    str_addf(header, "%s\"model.%s.weight\":{\"dtype\":\"F32\",\"shape\":[%d", *index ? "," : "{", name, rows);
    if (cols) str_addf(header, ",%d", cols);
    str_addf(header, "],\"data_offsets\":[%zu,%zu]}", begin, data->len);
    ++*index;
}

static void write_model(const char *dir) {
    static const struct {
        const char *name;
        int rows, cols;
    } LAYER[] = {{"input_layernorm", HIDDEN, 0}, {"post_attention_layernorm", HIDDEN, 0},
                 {"self_attn.q_proj", HIDDEN, HIDDEN}, {"self_attn.k_proj", HIDDEN / 2, HIDDEN},
                 {"self_attn.v_proj", HIDDEN / 2, HIDDEN}, {"self_attn.o_proj", HIDDEN, HIDDEN},
                 {"block_sparse_moe.gate", EXPERTS, HIDDEN}};
    Str header = {0}, data = {0}, file = {0};
    char name[128], path[1200], tokenizer[4096];
    int n = 0;
    add_tensor(&header, &data, &n, "embed_tokens", VOCAB, HIDDEN);
    add_tensor(&header, &data, &n, "norm", HIDDEN, 0);
    for (size_t i = 0; i < sizeof LAYER / sizeof *LAYER; i++) {
        snprintf(name, sizeof name, "layers.0.%s", LAYER[i].name);
        add_tensor(&header, &data, &n, name, LAYER[i].rows, LAYER[i].cols);
    }
    for (int x = 0; x < EXPERTS; x++)
        for (int k = 1; k <= 3; k++) {
            snprintf(name, sizeof name, "layers.0.block_sparse_moe.experts.%d.w%d", x, k);
            add_tensor(&header, &data, &n, name, k == 2 ? HIDDEN : FF, k == 2 ? FF : HIDDEN);
        }
    str_add(&header, "}");
    uint64_t size = header.len;
    str_addn(&file, (const char *)&size, 8);
    str_addn(&file, header.data, header.len);
    str_addn(&file, data.data, data.len);
    if (mkdir(dir, 0755) != 0) fail_msg("建不了 %s", dir);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    tmp_write(path, file.data, file.len);
    snprintf(path, sizeof path, "%s/config.json", dir);
    tmp_write(path, CONFIG, strlen(CONFIG));
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    if (!realpath("data/raw/demo/model/tokenizer.json", tokenizer) || symlink(tokenizer, path) != 0)
        fail_msg("备不好 %s", path);
    str_free(&header);
    str_free(&data);
    str_free(&file);
}

/* 量化并把第 0 层的一个专家的权重导出到 dump。 */
static json_t *run(const char *dir, const char *method, int expert, int w, const char *dump) {
    char layer[128], text[4][700];
    const char *list[16];
    size_t n = 0;
    static const char *const COMMON[] = {"eval.ppl_protocol=gptq-64", "eval.limit=1", "eval.speed=false",
                                         "eval.kl_windows=0", "compute=float32", "weight.w_bits=3", "weight.group_size=16"};
    snprintf(text[0], sizeof text[0], "data_dir=%s", tmp_path("data"));
    snprintf(text[1], sizeof text[1], "results_dir=%s", tmp_path("results"));
    snprintf(text[2], sizeof text[2], "eval.ppl_datasets=%s", tmp_path("text.txt"));
    snprintf(text[3], sizeof text[3], "calibration.dataset=%s", tmp_path("text.txt"));
    bool calibrated = strcmp(method, "rtn") != 0;
    for (int i = 0; i < (calibrated ? 4 : 3); i++) list[n++] = text[i];
    for (size_t i = 0; i < sizeof COMMON / sizeof *COMMON; i++) list[n++] = COMMON[i];
    if (calibrated) list[n++] = "calibration.samples=4", list[n++] = "calibration.length=64";
    snprintf(layer, sizeof layer, "model.layers.0.block_sparse_moe.experts.%d.w%d", expert, w);
    RunRequest r = {.config = {.root = env_project_root(), .model = dir, .method = method, .track = "A",
                               .overrides = list, .n_overrides = n},
                    .command = "test", .dump_linear = layer, .dump_dir = dump};
    json_t *result = NULL;
    Err e = {0};
    if (!run_experiment(&r, &result, &e)) fail_msg("%s：%s", method, e.msg);
    return result;
}

/* 两次导出的权重中不同的个数。 */
static int differences(const char *a, const char *b) {
    Arena arena = {0};
    Err e = {0};
    Npy x, y;
    const char *dir[2] = {a, b};
    for (int i = 0; i < 2; i++)
        if (!npy_read(&arena, file_join(&arena, dir[i], "w.npy", &e), i ? &y : &x, &e)) fail_msg("%s", e.msg);
    size_t n = (size_t)(x.shape[0] * x.shape[1]), bytes = dtype_block_bytes(x.dtype), different = 0;
    assert_true(x.dtype == y.dtype && n == (size_t)(y.shape[0] * y.shape[1]));
    for (size_t i = 0; i < n; i++)
        different += memcmp((const char *)x.data + i * bytes, (const char *)y.data + i * bytes, bytes) != 0;
    arena_free(&arena);
    return (int)different;
}

static void test_starved(void **state) {
    (void)state;
    const char *method = *state;
    char dir[600], plain[600], solved[600];
    snprintf(dir, sizeof dir, "%s/model", tmp_dir);
    for (int expert = 1; expert <= 2; expert++)
        for (int w = 1; w <= 2; w++) { /* w1 是 gate，w2 是 down */
            snprintf(plain, sizeof plain, "%s/%s-plain%d%d", tmp_dir, method, expert, w);
            snprintf(solved, sizeof solved, "%s/%s-solved%d%d", tmp_dir, method, expert, w);
            json_t *rtn = run(dir, "rtn", expert, w, plain), *q = run(dir, method, expert, w, solved), *note;
            int n = differences(plain, solved);
            if (expert < 2 && n == 0) fail_msg("%s：专家 %d 有 token，权重却与就近取整相同", method, expert);
            if (expert >= 2 && n > 0) fail_msg("%s：专家 %d 没有 token，却有 %d 个权重不是就近取整", method, expert, n);
            json_t *notes = json_object_get(q, "fallbacks");
            bool said[EXPERTS] = {false};
            size_t i;
            json_array_foreach(notes, i, note) {
                int layer, which, tokens;
                const char *text = json_string_value(note);
                if (sscanf(text, "第 %d 层的专家 %d 在校准中只有 %d 个", &layer, &which, &tokens) != 3) continue;
                assert_true(layer == 0 && which >= 0 && which < EXPERTS && tokens == 0);
                said[which] = true;
            }
            if (said[0] || said[1] || !said[2] || !said[3])
                fail_msg("%s 的 fallbacks 应正好说到专家 2、3：%s", method, json_dumps(notes, JSON_ENCODE_ANY));
            assert_int_equal(json_array_size(json_object_get(rtn, "fallbacks")), 0);
            json_decref(rtn);
            json_decref(q);
        }
}

static int prepare(void **state) {
    char raw[4096], dir[600];
    if (tmp_make(state) != 0) return -1;
    log_set_quiet(true);
    snprintf(dir, sizeof dir, "%s/model", tmp_dir);
    write_model(dir);
    FILE *f = fopen(tmp_path("text.txt"), "w");
    if (!f || mkdir(tmp_path("data"), 0755) != 0 || !realpath("data/raw", raw) || symlink(raw, tmp_path("data/raw")) != 0)
        return -1;
    for (int i = 0; i < 60; i++) fprintf(f, "The ship number %d was lying in the harbour at noon.\n", i * 37);
    return fclose(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        {"gptq", test_starved, NULL, NULL, (void *)(uintptr_t)"gptq"},
    };
    return cmocka_run_group_tests(tests, prepare, tmp_done);
}
