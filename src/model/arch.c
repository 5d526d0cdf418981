/* arch — 模型家族与超参数的读取
 * 数值范围在这里一次查清，之后各处可以放心相乘。键名依据 transformers 的 LlamaConfig、Qwen2Config 与 GGUF 规范。 */
#include "model/arch.h"

#include <stdio.h>
#include <string.h>

#define MAX_DIM ((int64_t)1 << 20)

static const ArchSpec SPECS[] = {
    {.name = "llama", .class_name = "LlamaForCausalLM", .bias_keys = true,
     .gguf_permuted_qk = true},
    {.name = "qwen2", .class_name = "Qwen2ForCausalLM", .qkv_bias = true,
     .max_window_layers = true},
};

static const ArchSpec *find_spec(const char *name) {
    for (size_t i = 0; i < sizeof SPECS / sizeof *SPECS; i++)
        if (strcmp(SPECS[i].name, name) == 0) return &SPECS[i];
    return NULL;
}

static bool unsupported_arch(const char *where, const char *name, Err *e) {
    return err_set(e, ERR_UNSUPPORTED, "%s: 不支持的架构 '%s'（支持 llama、qwen2）", where, name);
}

/* 各字段之间的一致性；两种来源共用。 */
static bool check_config(ModelConfig *c, const char *name, Err *e) {
    if (c->n_heads % c->n_kv_heads)
        return err_set(e, ERR_FORMAT, "%s: 注意力头数 %lld 不是键值头数 %lld 的倍数", name,
                       (long long)c->n_heads, (long long)c->n_kv_heads);
    if (c->rope.rotary_dim % 2 || c->rope.rotary_dim < 2 || c->rope.rotary_dim > c->head_dim)
        return err_set(e, ERR_FORMAT, "%s: 旋转维数 %lld 须为不超过 head_dim=%lld 的正偶数", name,
                       (long long)c->rope.rotary_dim, (long long)c->head_dim);
    if (!(c->norm_eps > 0 && c->norm_eps < 1))
        return err_set(e, ERR_FORMAT, "%s: 归一化的 eps=%g 不合理", name, c->norm_eps);
    if (!(c->rope.theta > 1))
        return err_set(e, ERR_FORMAT, "%s: rope_theta=%g 不合理", name, c->rope.theta);
    if (c->rope.kind != ROPE_DEFAULT && !(c->rope.factor >= 1))
        return err_set(e, ERR_FORMAT, "%s: rope 的 factor=%g 须不小于 1", name, c->rope.factor);
    if (c->rope.kind == ROPE_LLAMA3 &&
        !(c->rope.low_freq_factor > 0 && c->rope.high_freq_factor > c->rope.low_freq_factor &&
          c->rope.original_max_position > 0))
        return err_set(e, ERR_FORMAT,
                       "%s: llama3 rope 需要 0 < low_freq_factor < high_freq_factor 与正的 "
                       "original_max_position_embeddings",
                       name);
    return true;
}

/* rope_scaling（旧）或 rope_parameters（新）。 */
static bool read_rope(ModelConfig *c, const json_t *root, const char *name, Err *e) {
    RopeConfig *r = &c->rope;
    const json_t *o = json_object_get(root, "rope_parameters");
    if (!json_is_object(o)) o = json_object_get(root, "rope_scaling");
    if (!json_get_num_or(root, name, "rope_theta", 10000, &r->theta, e)) return false;
    double partial = 1;
    if (!json_get_num_or(root, name, "partial_rotary_factor", 1, &partial, e)) return false;
    r->rotary_dim = (int64_t)((double)c->head_dim * partial);
    if (!json_is_object(o)) return true;
    const char *type = NULL;
    if (!json_get_str_or(o, name, "rope_type", NULL, &type, e)) return false;
    if (!type && !json_get_str_or(o, name, "type", "default", &type, e)) return false;
    if (!json_get_num_or(o, name, "rope_theta", r->theta, &r->theta, e)) return false;
    if (strcmp(type, "default") == 0) return true;
    if (strcmp(type, "linear") == 0)
        r->kind = ROPE_LINEAR;
    else if (strcmp(type, "llama3") == 0)
        r->kind = ROPE_LLAMA3;
    else
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: 不支持的 rope 类型 '%s'（支持 default、linear、llama3）", name, type);
    return json_get_num_or(o, name, "factor", 1, &r->factor, e) &&
           json_get_num_or(o, name, "low_freq_factor", 1, &r->low_freq_factor, e) &&
           json_get_num_or(o, name, "high_freq_factor", 4, &r->high_freq_factor, e) &&
           json_get_int_or(o, name, "original_max_position_embeddings", c->max_position, 1,
                           (int64_t)1 << 40, &r->original_max_position, e);
}

/* 有的模型写成列表（多个 eos），取第一个。 */
static int64_t token_id(const json_t *root, const char *key) {
    const json_t *v = json_object_get(root, key);
    if (json_is_array(v)) v = json_array_get(v, 0);
    return json_is_integer(v) ? (int64_t)json_integer_value(v) : -1;
}

static bool read_window(ModelConfig *c, const json_t *root, const char *name, Err *e) {
    bool use = false;
    if (!json_get_bool_or(root, name, "use_sliding_window", false, &use, e)) return false;
    if (!c->arch->max_window_layers || !use) return true;
    const json_t *w = json_object_get(root, "sliding_window");
    if (!w || json_is_null(w)) return true;
    return json_get_int(root, name, "sliding_window", 1, (int64_t)1 << 40, &c->sliding_window,
                        e) &&
           json_get_int_or(root, name, "max_window_layers", c->n_layers, 0, MAX_DIM,
                           &c->first_window_layer, e);
}

bool arch_from_json(ModelConfig *c, const json_t *root, const char *name, Err *e) {
    *c = (ModelConfig){0};
    const char *type = NULL, *act = NULL;
    if (!json_is_object(root)) return err_set(e, ERR_FORMAT, "%s: 顶层须是对象", name);
    if (!json_get_str_or(root, name, "model_type", NULL, &type, e)) return false;
    if (!type) return err_set(e, ERR_FORMAT, "%s: 缺少 model_type", name);
    c->arch = find_spec(type);
    if (!c->arch) return unsupported_arch(name, type, e);
    if (!json_get_str_or(root, name, "hidden_act", "silu", &act, e)) return false;
    if (!act || strcmp(act, "silu") != 0)
        return err_set(e, ERR_UNSUPPORTED, "%s: 不支持的激活函数 '%s'（支持 silu）", name,
                       act ? act : "null");
    if (json_is_object(json_object_get(root, "quantization_config")))
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: 这是已量化的检查点（有 quantization_config），本版只读未量化的权重", name);
    if (!json_get_int(root, name, "num_hidden_layers", 1, 4096, &c->n_layers, e) ||
        !json_get_int(root, name, "hidden_size", 1, MAX_DIM, &c->hidden, e) ||
        !json_get_int(root, name, "intermediate_size", 1, MAX_DIM, &c->intermediate, e) ||
        !json_get_int(root, name, "num_attention_heads", 1, MAX_DIM, &c->n_heads, e) ||
        !json_get_int(root, name, "vocab_size", 1, (int64_t)1 << 24, &c->vocab, e) ||
        !json_get_int_or(root, name, "num_key_value_heads", c->n_heads, 1, c->n_heads,
                         &c->n_kv_heads, e) ||
        !json_get_int_or(root, name, "head_dim", c->hidden / c->n_heads, 1, MAX_DIM, &c->head_dim,
                         e) ||
        !json_get_int_or(root, name, "max_position_embeddings", 2048, 1, (int64_t)1 << 40,
                         &c->max_position, e) ||
        !json_get_num_or(root, name, "rms_norm_eps", 1e-6, &c->norm_eps, e) ||
        !json_get_bool_or(root, name, "tie_word_embeddings", false, &c->tied, e) ||
        !read_rope(c, root, name, e) || !read_window(c, root, name, e))
        return false;
    c->q_bias = c->arch->qkv_bias;
    if (c->arch->bias_keys) {
        if (!json_get_bool_or(root, name, "attention_bias", false, &c->q_bias, e) ||
            !json_get_bool_or(root, name, "mlp_bias", false, &c->mlp_bias, e))
            return false;
        c->o_bias = c->q_bias;
    }
    c->bos_id = token_id(root, "bos_token_id");
    c->eos_id = token_id(root, "eos_token_id");
    return check_config(c, name, e);
}

/* 取 "{架构}.{后缀}" 的整数。 */
static bool meta_int(const Gguf *g, const char *arch, const char *suffix, bool required,
                     int64_t hi, int64_t *out, Err *e) {
    char key[128];
    snprintf(key, sizeof key, "%s.%s", arch, suffix);
    return gguf_get_int(g, key, required, 1, hi, out, e);
}

static bool meta_num(const Gguf *g, const char *arch, const char *suffix, bool required,
                     double *out, Err *e) {
    char key[128];
    snprintf(key, sizeof key, "%s.%s", arch, suffix);
    return gguf_get_num(g, key, required, out, e);
}

static bool gguf_rope(ModelConfig *c, const Gguf *g, Err *e) {
    const char *arch = c->arch->name, *path = g->file.path;
    RopeConfig *r = &c->rope;
    r->theta = 10000;
    r->rotary_dim = c->head_dim;
    char key[128];
    snprintf(key, sizeof key, "%s.rope.scaling.type", arch);
    const GgufValue *type = gguf_find(g, key);
    if (type && type->type == GGUF_STRING) {
        if (type->s.len == 6 && memcmp(type->s.data, "linear", 6) == 0)
            r->kind = ROPE_LINEAR;
        else if (!(type->s.len == 4 && memcmp(type->s.data, "none", 4) == 0))
            return err_set(e, ERR_UNSUPPORTED, "%s: 不支持的 rope 类型 '%.*s'（支持 none、linear）",
                           path, (int)(type->s.len < 40 ? type->s.len : 40), type->s.data);
    }
    r->factor = 1;
    return meta_num(g, arch, "rope.freq_base", false, &r->theta, e) &&
           meta_num(g, arch, "rope.scaling.factor", false, &r->factor, e) &&
           meta_int(g, arch, "rope.dimension_count", false, MAX_DIM, &r->rotary_dim, e);
}

bool arch_from_gguf(ModelConfig *c, const Gguf *g, Err *e) {
    *c = (ModelConfig){.bos_id = -1, .eos_id = -1};
    const char *path = g->file.path;
    const GgufValue *a = gguf_find(g, "general.architecture");
    if (!a || a->type != GGUF_STRING)
        return err_set(e, ERR_FORMAT, "%s: 缺少 general.architecture", path);
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)(a->s.len < 60 ? a->s.len : 60), a->s.data);
    c->arch = find_spec(name);
    if (!c->arch) return unsupported_arch(path, name, e);
    const FileTensor *embed = tensorfile_find(&g->file, "token_embd.weight");
    if (!embed || embed->n_dims != 2)
        return err_set(e, ERR_MISSING, "%s: 缺少词嵌入 token_embd.weight", path);
    if (!meta_int(g, name, "block_count", true, 4096, &c->n_layers, e) ||
        !meta_int(g, name, "embedding_length", true, MAX_DIM, &c->hidden, e) ||
        !meta_int(g, name, "feed_forward_length", true, MAX_DIM, &c->intermediate, e) ||
        !meta_int(g, name, "attention.head_count", true, MAX_DIM, &c->n_heads, e))
        return false;
    c->n_kv_heads = c->n_heads;
    c->head_dim = c->hidden / c->n_heads;
    c->max_position = 2048;
    c->norm_eps = 1e-5;
    if (!meta_int(g, name, "attention.head_count_kv", false, c->n_heads, &c->n_kv_heads, e) ||
        !meta_int(g, name, "attention.key_length", false, MAX_DIM, &c->head_dim, e) ||
        !meta_int(g, name, "context_length", false, (int64_t)1 << 40, &c->max_position, e) ||
        !meta_num(g, name, "attention.layer_norm_rms_epsilon", true, &c->norm_eps, e) ||
        !gguf_rope(c, g, e))
        return false;
    if (c->head_dim < 1)
        return err_set(e, ERR_FORMAT, "%s: head_dim 为 0（hidden 小于头数）", path);
    c->vocab = embed->shape[0];
    c->tied = !tensorfile_find(&g->file, "output.weight");
    c->q_bias = tensorfile_find(&g->file, "blk.0.attn_q.bias") != NULL;
    c->o_bias = tensorfile_find(&g->file, "blk.0.attn_output.bias") != NULL;
    c->mlp_bias = tensorfile_find(&g->file, "blk.0.ffn_gate.bias") != NULL;
    if (c->arch->qkv_bias && !c->q_bias)
        return err_set(e, ERR_MISSING, "%s: %s 应有 q、k、v 偏置，却缺少 blk.0.attn_q.bias", path,
                       name);
    return check_config(c, path, e);
}

int64_t arch_window(const ModelConfig *c, int64_t layer) {
    return c->sliding_window && layer >= c->first_window_layer ? c->sliding_window : 0;
}

int64_t arch_linear_params(const ModelConfig *c) {
    int64_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    return c->n_layers * (c->hidden * (2 * q + 2 * kv) + 3 * c->hidden * c->intermediate);
}
