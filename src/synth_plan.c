/* synth_plan — 各模型的形状、张量的清单、config.json 与分词器
 * 形状取自各模型公开的 config.json；键用旧写法（rope_theta、torch_dtype），新旧 transformers 都收。 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "synth.h"

#define LLAMA "llama", "LlamaForCausalLM"

const SynthShape SYNTH_SHAPES[] = {
    {"smollm2-135m", LLAMA, 30, 576, 1536, 9, 3, 64, 49152, 8192, 1e5, 1e-5, .tied = true},
    {"llama3.2-1b", LLAMA, 16, 2048, 8192, 32, 8, 64, 128256, 131072, 5e5, 1e-5, .rope_factor = 32, .tied = true},
    {"llama3.1-8b", LLAMA, 32, 4096, 14336, 32, 8, 128, 128256, 131072, 5e5, 1e-5, .rope_factor = 8},
    {"llama2-7b", LLAMA, 32, 4096, 11008, 32, 32, 128, 32000, 4096, 1e4, 1e-5, .tied = false},
    {"mistral-7b", "mistral", "MistralForCausalLM", 32, 4096, 14336, 32, 8, 128, 32768, 32768, 1e6, 1e-5, .tied = false},
    {"qwen2.5-7b", "qwen2", "Qwen2ForCausalLM", 28, 3584, 18944, 28, 4, 128, 152064, 131072, 1e6, 1e-6,
     .qkv_bias = true},
    {"qwen3-8b", "qwen3", "Qwen3ForCausalLM", 36, 4096, 12288, 32, 8, 128, 151936, 40960, 1e6, 1e-6,
     .qk_norm = true},
    {"gemma2-2b", "gemma2", "Gemma2ForCausalLM", 26, 2304, 9216, 8, 4, 256, 256000, 8192, 1e4, 1e-6,
     .tied = true, .sandwich = true},
};
const size_t N_SYNTH_SHAPES = sizeof SYNTH_SHAPES / sizeof *SYNTH_SHAPES;

enum { LAYER_TENSORS = 16, MAX_LAYERS = 1024, EOS = 256 };
static const size_t SHARD_BYTES = (size_t)5000 * 1000 * 1000;
static const char EOS_TEXT[] = "<|endoftext|>";

const SynthShape *synth_find(const char *name, Err *e) {
    const char *names[32];
    char all[512] = "";
    for (size_t i = 0; i < N_SYNTH_SHAPES; i++) {
        names[i] = SYNTH_SHAPES[i].name;
        if (strcmp(name, names[i]) == 0) return &SYNTH_SHAPES[i];
        strncat(all, i ? "、" : "", sizeof all - strlen(all) - 1);
        strncat(all, names[i], sizeof all - strlen(all) - 1);
    }
    const char *near = str_nearest(name, names, N_SYNTH_SHAPES);
    err_set(e, ERR_USAGE, "--like 没有 '%.60s'%s%s%s（可用：%s）", name, near ? "，是否想写 '" : "", near ? near : "",
            near ? "'？" : "", all);
    return NULL;
}

/* ---- 张量 ---- */

/* 添一个张量；cols 为 0 是一维的。layer 为负时名字原样，否则前加 model.layers.层号.。 */
static bool add(SynthPlan *p, int64_t layer, const char *name, int64_t rows, int64_t cols, SynthFill fill, Err *e) {
    FileTensor *t = &p->files[p->n];
    *t = (FileTensor){.dtype = p->dtype, .n_dims = cols ? 2 : 1, .shape = {rows, cols}};
    t->name = layer < 0 ? name : arena_printf(&p->arena, e, "model.layers.%lld.%s", (long long)layer, name);
    t->bytes = (size_t)(rows * (cols ? cols : 1)) * dtype_block_bytes(p->dtype);
    p->fills[p->n++] = fill;
    p->bytes += t->bytes;
    return t->name != NULL;
}

static SynthFill linear(int64_t cols, double gain) {
    return (SynthFill){.std = gain / sqrt((double)cols)};
}

static bool add_attention(SynthPlan *p, int64_t i, double down, Err *e) {
    const SynthShape *s = &p->shape;
    static const char *const NAMES[] = {"q_proj", "k_proj", "v_proj"};
    int64_t q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim, h = s->hidden;
    const SynthFill norm = {0.1, 1, 0, false}, bias = {.std = 0.1};
    for (int k = 0; k < 3; k++) {
        char name[48];
        snprintf(name, sizeof name, "self_attn.%s.weight", NAMES[k]);
        if (!add(p, i, name, k ? kv : q, h, linear(h, 1), e)) return false;
        snprintf(name, sizeof name, "self_attn.%s.bias", NAMES[k]);
        if (s->qkv_bias && !add(p, i, name, k ? kv : q, 0, bias, e)) return false;
    }
    return (!s->qk_norm || (add(p, i, "self_attn.q_norm.weight", s->head_dim, 0, norm, e) &&
                            add(p, i, "self_attn.k_norm.weight", s->head_dim, 0, norm, e))) &&
           add(p, i, "self_attn.o_proj.weight", h, q, linear(q, down), e);
}

/* 一层。o 与 down 的输出缩到 1/√(2·层数)（有半块之后的归一化的，缩在那里），残差因而不随层数发散。 */
static bool add_layer(SynthPlan *p, int64_t i, Err *e) {
    const SynthShape *s = &p->shape;
    int64_t h = s->hidden;
    double down = 1 / sqrt(2.0 * (double)s->layers);
    SynthFill up = linear(h, 1), norm = {0.1, 1, s->sandwich, true}, post = {0.1, down, 1, false};
    up.outliers = true;
    const char *mlp_norm = s->sandwich ? "pre_feedforward_layernorm.weight" : "post_attention_layernorm.weight";
    return add(p, i, "input_layernorm.weight", h, 0, norm, e) && add_attention(p, i, down, e) &&
           add(p, i, mlp_norm, h, 0, norm, e) && add(p, i, "mlp.gate_proj.weight", s->ff, h, linear(h, 1), e) &&
           add(p, i, "mlp.up_proj.weight", s->ff, h, up, e) &&
           add(p, i, "mlp.down_proj.weight", h, s->ff, linear(s->ff, down), e) &&
           (!s->sandwich || (add(p, i, "post_attention_layernorm.weight", h, 0, post, e) &&
                             add(p, i, "post_feedforward_layernorm.weight", h, 0, post, e)));
}

/* 各张量的文件名：依次装满各片。 */
static bool split(SynthPlan *p, Err *e) {
    char name[64];
    size_t used = 0, *shard = ARENA_ARRAY(&p->arena, size_t, p->n, e);
    if (!shard) return false;
    for (size_t i = 0; i < p->n; i++) {
        if (used && used + p->files[i].bytes > SHARD_BYTES) used = 0, p->n_shards++;
        shard[i] = p->n_shards;
        used += p->files[i].bytes;
    }
    p->n_shards++;
    for (size_t i = 0; i < p->n; i++) {
        bool same = i && shard[i] == shard[i - 1];
        if (!same) safetensors_shard_name(name, sizeof name, shard[i], p->n_shards);
        p->files[i].path = same ? p->files[i - 1].path : arena_strdup(&p->arena, name, e);
        if (!p->files[i].path) return false;
    }
    return true;
}

bool synth_plan(SynthPlan *p, const SynthShape *s, int64_t layers, DType dtype, Err *e) {
    *p = (SynthPlan){.shape = *s, .dtype = dtype};
    if (layers < 0 || layers > MAX_LAYERS)
        return err_set(e, ERR_USAGE, "--layers 应在 1 到 %d 之间", MAX_LAYERS);
    if (layers) p->shape.layers = layers;
    size_t cap = (size_t)p->shape.layers * LAYER_TENSORS + 3;
    p->files = ARENA_ARRAY(&p->arena, FileTensor, cap, e);
    p->fills = ARENA_ARRAY(&p->arena, SynthFill, cap, e);
    bool ok = p->files && p->fills &&
              add(p, -1, "model.embed_tokens.weight", s->vocab, s->hidden, (SynthFill){.std = 0.02}, e);
    for (int64_t i = 0; ok && i < p->shape.layers; i++) ok = add_layer(p, i, e);
    ok = ok && add(p, -1, "model.norm.weight", s->hidden, 0, (SynthFill){0.1, 1, s->sandwich, false}, e) &&
         (s->tied || add(p, -1, "lm_head.weight", s->vocab, s->hidden, linear(s->hidden, 1), e)) && split(p, e);
    if (!ok) synth_plan_free(p);
    return ok;
}

void synth_plan_free(SynthPlan *p) {
    arena_free(&p->arena);
    *p = (SynthPlan){0};
}

/* ---- 旁边的文件 ---- */

static bool save(const char *dir, const char *name, json_t *root, Err *e) {
    Arena a = {0};
    char *path = file_join(&a, dir, name, e);
    bool ok = path && (root || err_set(e, ERR_MEMORY, "内存不足")) && json_save(path, root, e);
    json_decref(root);
    arena_free(&a);
    return ok;
}

/* 字节在 GPT-2 的字节级写法里的字符（UTF-8）：可见的是自己，其余依次排在 U+0100 之后。 */
static void byte_char(int byte, char out[3]) {
    int next = 0, code = 0;
    for (int b = 0; b <= byte; b++) {
        bool visible = (b > 32 && b < 127) || (b > 160 && b != 173);
        code = visible ? b : 256 + next++;
    }
    if (code < 128) {
        snprintf(out, 3, "%c", code);
    } else {
        out[0] = (char)(0xC0 | code >> 6);
        out[1] = (char)(0x80 | (code & 63));
        out[2] = '\0';
    }
}

static json_t *tokenizer_json(void) {
    json_t *vocab = json_object();
    for (int b = 0; b < 256; b++) {
        char text[3];
        byte_char(b, text);
        json_object_set_new(vocab, text, json_integer(b));
    }
    json_t *level = json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1,
                              "use_regex", 1);
    json_t *model = json_pack("{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:o, s:[]}", "type", "BPE", "dropout",
                              "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0,
                              "byte_fallback", 0, "ignore_merges", 0, "vocab", vocab, "merges");
    json_t *eos = json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", EOS, "content", EOS_TEXT, "single_word", 0,
                            "lstrip", 0, "rstrip", 0, "normalized", 0, "special", 1);
    return json_pack("{s:s, s:n, s:n, s:[o], s:n, s:O, s:n, s:o, s:o}", "version", "1.0", "truncation", "padding",
                     "added_tokens", eos, "normalizer", "pre_tokenizer", level, "post_processor", "decoder", level,
                     "model", model);
}

static void set_family(const SynthPlan *p, json_t *c) {
    const SynthShape *s = &p->shape;
    if (s->rope_factor > 0)
        json_object_set_new(c, "rope_scaling",
                            json_pack("{s:s, s:f, s:f, s:f, s:i}", "rope_type", "llama3", "factor", s->rope_factor,
                                      "low_freq_factor", 1.0, "high_freq_factor", 4.0,
                                      "original_max_position_embeddings", 8192));
    if (strcmp(s->type, "mistral") == 0) json_object_set_new(c, "sliding_window", json_null());
    if (s->qkv_bias || s->qk_norm) json_object_set_new(c, "use_sliding_window", json_false());
    if (!s->sandwich) return;
    json_object_update_new(c, json_pack("{s:s, s:i, s:i, s:f, s:f}", "hidden_activation", "gelu_pytorch_tanh",
                                        "query_pre_attn_scalar", 256, "sliding_window", 4096,
                                        "attn_logit_softcapping", 50.0, "final_logit_softcapping", 30.0));
}

static json_t *config_json(const SynthPlan *p) {
    const SynthShape *s = &p->shape;
    json_t *c = json_pack(
        "{s:[s], s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:s, s:b, s:i, s:i, s:s}", "architectures",
        s->architecture, "model_type", s->type, "hidden_size", (json_int_t)s->hidden, "intermediate_size",
        (json_int_t)s->ff, "num_hidden_layers", (json_int_t)s->layers, "num_attention_heads", (json_int_t)s->heads,
        "num_key_value_heads", (json_int_t)s->kv_heads, "head_dim", (json_int_t)s->head_dim, "vocab_size",
        (json_int_t)s->vocab, "max_position_embeddings", (json_int_t)s->max_position, "rope_theta", s->theta,
        "rms_norm_eps", s->eps, "hidden_act", s->sandwich ? "gelu_pytorch_tanh" : "silu", "tie_word_embeddings",
        s->tied, "bos_token_id", EOS, "eos_token_id", EOS, "torch_dtype",
        p->dtype == DT_BF16 ? "bfloat16" : "float16");
    if (c) set_family(p, c);
    return c;
}

bool synth_write_json(const SynthPlan *p, const char *dir, Err *e) {
    return save(dir, "tokenizer.json", tokenizer_json(), e) &&
           save(dir, "tokenizer_config.json",
                json_pack("{s:s, s:s, s:s, s:I}", "tokenizer_class", "PreTrainedTokenizerFast", "bos_token", EOS_TEXT,
                          "eos_token", EOS_TEXT, "model_max_length", (json_int_t)p->shape.max_position),
                e) &&
           save(dir, "generation_config.json",
                json_pack("{s:i, s:i, s:b}", "bos_token_id", EOS, "eos_token_id", EOS, "do_sample", 0), e) &&
           (p->n_shards == 1 || safetensors_save_index(dir, p->files, p->n, e)) &&
           save(dir, "config.json", config_json(p), e);
}
