/* arch — 由 config.json 读出超参数
 * 同一个意思在各家族有不同的键名，表 KEYS 列出同义的。读过的键都记下；剩下的键若不是众所周知不影响计算的，
 * 又不是「关着」的值（null、false、0、空），就报错：宁可不开，不可算错。
 * 数值范围在这里一次查清，之后各处可以放心相乘。 */
#include "model/arch.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_DIM ((int64_t)1 << 20)
enum { MAX_SEEN = 96 };

/* 正在读的 config.json。错误一旦发生，其余的读取都不做事。 */
typedef struct Reader {
    const json_t *root;
    const char *name;
    const char *seen[MAX_SEEN];
    int n_seen;
    bool ok;
    Err *e;
} Reader;

static void mark(Reader *r, const char *key) {
    CHECK(r->n_seen < MAX_SEEN);
    r->seen[r->n_seen++] = key;
}

/* keys 是以 '|' 分开的同义键，取第一个有值的；都没有时返回 NULL。buf 放键名。 */
static const char *pick(Reader *r, const char *keys, char *buf, size_t cap) {
    const char *found = NULL;
    for (const char *k = keys; k; k = strchr(k, '|') ? strchr(k, '|') + 1 : NULL) {
        size_t n = strcspn(k, "|");
        char key[64];
        snprintf(key, sizeof key, "%.*s", (int)n, k);
        const json_t *v = json_object_get(r->root, key);
        if (!v) continue;
        void *it = json_object_iter_at((json_t *)r->root, key);
        mark(r, json_object_iter_key(it));
        if (json_is_null(v) || found) continue;
        snprintf(buf, cap, "%s", key);
        found = buf;
    }
    return found;
}

static void get_int(Reader *r, const char *keys, int64_t def, int64_t lo, int64_t hi,
                    int64_t *out) {
    char key[64];
    *out = def;
    if (!r->ok || !pick(r, keys, key, sizeof key)) return;
    r->ok = json_get_int(r->root, r->name, key, lo, hi, out, r->e);
}

static void need_int(Reader *r, const char *keys, int64_t hi, int64_t *out) {
    char key[64];
    if (!r->ok) return;
    if (!pick(r, keys, key, sizeof key))
        snprintf(key, sizeof key, "%.*s", (int)strcspn(keys, "|"), keys);
    r->ok = json_get_int(r->root, r->name, key, 1, hi, out, r->e);
}

static void get_num(Reader *r, const char *keys, double def, double *out) {
    char key[64];
    *out = def;
    if (!r->ok || !pick(r, keys, key, sizeof key)) return;
    r->ok = json_get_num_or(r->root, r->name, key, def, out, r->e);
    if (r->ok && !isfinite(*out))
        r->ok = err_set(r->e, ERR_FORMAT, "%s: '%s' 不是有限的数", r->name, key);
}

static bool get_bool(Reader *r, const char *key, bool def) {
    char buf[64];
    bool out = def;
    if (r->ok && pick(r, key, buf, sizeof buf))
        r->ok = json_get_bool_or(r->root, r->name, buf, def, &out, r->e);
    return out;
}

static const char *get_str(Reader *r, const char *keys) {
    char key[64];
    const char *out = NULL;
    if (r->ok && pick(r, keys, key, sizeof key))
        r->ok = json_get_str_or(r->root, r->name, key, NULL, &out, r->e);
    return out;
}

/* 有的模型写成列表（多个 eos），取第一个。 */
static int64_t token_id(const json_t *root, const char *key) {
    const json_t *v = json_object_get(root, key);
    if (json_is_array(v)) v = json_array_get(v, 0);
    return json_is_integer(v) ? (int64_t)json_integer_value(v) : -1;
}

bool arch_activation(const char *name, Activation *out) {
    static const struct {
        const char *name;
        Activation f;
    } KNOWN[] = {{"silu", ACTF_SILU}, {"swish", ACTF_SILU}, {"gelu", ACTF_GELU_ERF},
                 {"gelu_python", ACTF_GELU_ERF}, {"gelu_new", ACTF_GELU_TANH},
                 {"gelu_pytorch_tanh", ACTF_GELU_TANH}, {"gelu_python_tanh", ACTF_GELU_TANH},
                 {"gelu_fast", ACTF_GELU_TANH}, {"gelu_accurate", ACTF_GELU_TANH},
                 {"quick_gelu", ACTF_GELU_QUICK}, {"relu", ACTF_RELU}};
    for (size_t i = 0; i < sizeof KNOWN / sizeof *KNOWN; i++)
        if (strcmp(KNOWN[i].name, name) == 0) {
            *out = KNOWN[i].f;
            return true;
        }
    return false;
}

/* gemma 早期的 config.json 有 hidden_act=gelu，实际用的是 hidden_activation（transformers 亦然）。 */
static void read_activation(Reader *r, ModelConfig *c) {
    const char *act = get_str(r, c->arch->embed_scale ? "hidden_activation|hidden_act"
                                                      : "hidden_act|activation_function|activation");
    if (c->arch->embed_scale && !json_is_string(json_object_get(r->root, "hidden_activation")))
        act = NULL;
    if (r->ok && act && !arch_activation(act, &c->activation))
        r->ok = err_set(r->e, ERR_UNSUPPORTED,
                        "%s: 不支持的激活函数 '%s'（支持 silu、gelu、gelu_new、gelu_pytorch_tanh、gelu_fast、"
                        "quick_gelu、relu）",
                        r->name, act);
}

static bool read_bias(Reader *r, const char *key, bool def) {
    return key && (strcmp(key, ALWAYS) == 0 || get_bool(r, key, def));
}

static void read_sizes(Reader *r, ModelConfig *c) {
    bool heads_full = c->arch->position != POS_ROPE || c->fused_qkv == FUSED_GROUPED;
    need_int(r, "num_hidden_layers|n_layer", ARCH_MAX_LAYERS, &c->n_layers);
    need_int(r, "hidden_size|n_embd|n_embed", MAX_DIM, &c->hidden);
    need_int(r, "num_attention_heads|n_head", MAX_DIM, &c->n_heads);
    need_int(r, "vocab_size", (int64_t)1 << 24, &c->vocab);
    if (!r->ok) return;
    get_int(r, "num_key_value_heads|num_kv_heads", c->n_heads, 1, c->n_heads, &c->n_kv_heads);
    get_int(r, "head_dim", c->hidden / c->n_heads, 1, MAX_DIM, &c->head_dim);
    if (heads_full && c->hidden % c->n_heads)
        r->ok = err_set(r->e, ERR_FORMAT, "%s: hidden_size %lld 不是头数 %lld 的倍数", r->name,
                        (long long)c->hidden, (long long)c->n_heads);
    if (c->arch->plain_mlp)
        get_int(r, "intermediate_size|ffn_dim|n_inner|ffn_hidden_size", 4 * c->hidden, 1, MAX_DIM,
                &c->intermediate);
    else
        need_int(r, "intermediate_size", MAX_DIM, &c->intermediate);
    get_int(r, "max_position_embeddings|n_positions|n_ctx", 2048, 1, (int64_t)1 << 40,
            &c->max_position);
    get_num(r, "rms_norm_eps|layer_norm_eps|layer_norm_epsilon|norm_epsilon", c->norm_eps,
            &c->norm_eps);
    c->tied = get_bool(r, "tie_word_embeddings", c->tied);
}

/* layer_types：["full_attention", "sliding_attention", …]。返回: 文件里有。 */
static bool read_layer_types(Reader *r, ModelConfig *c) {
    const json_t *list = json_object_get(r->root, "layer_types");
    if (!r->ok || !list) return false;
    mark(r, "layer_types");
    if (json_is_null(list)) return false;
    if (!json_is_array(list) || (int64_t)json_array_size(list) != c->n_layers) {
        r->ok = err_set(r->e, ERR_FORMAT, "%s: layer_types 须是每层一项的列表（%lld 层）", r->name,
                        (long long)c->n_layers);
        return true;
    }
    for (int64_t i = 0; r->ok && i < c->n_layers; i++) {
        const char *t = json_string_value(json_array_get(list, (size_t)i));
        bool sliding = t && strcmp(t, "sliding_attention") == 0;
        if (sliding)
            c->layer[i] |= LAYER_WINDOW;
        else if (!t || strcmp(t, "full_attention") != 0)
            r->ok = err_set(r->e, ERR_UNSUPPORTED,
                            "%s: layer_types[%lld] 是 '%s'（支持 full_attention、sliding_attention）",
                            r->name, (long long)i, t ? t : "?");
    }
    return true;
}

static void read_windows(Reader *r, ModelConfig *c) {
    const ArchSpec *s = c->arch;
    bool listed = read_layer_types(r, c), use = true;
    int64_t from = 0, every = 0;
    if (s->window == WINDOW_NONE) {
        for (int64_t i = 0; r->ok && i < c->n_layers; i++)
            if (c->layer[i] & LAYER_WINDOW)
                r->ok = err_set(r->e, ERR_UNSUPPORTED, "%s: 家族 %s 没有滑动窗口，layer_types 却有", r->name,
                                s->name);
        return;
    }
    get_int(r, "sliding_window", s->window == WINDOW_PATTERN ? 4096 : 0, 0, (int64_t)1 << 40,
            &c->sliding_window);
    if (s->window == WINDOW_SWITCH) {
        use = get_bool(r, "use_sliding_window", false);
        get_int(r, "max_window_layers", s->router ? 0 : 28, 0, MAX_DIM, &from);
        if (s->router) from = 0; /* qwen3_moe：各层一律 */
    }
    if (s->window == WINDOW_PATTERN)
        get_int(r, "sliding_window_pattern|_sliding_window_pattern", s->window_pattern, 1, MAX_DIM,
                &every);
    if (!use || c->sliding_window == 0) {
        c->sliding_window = 0;
        for (int64_t i = 0; i < c->n_layers; i++) c->layer[i] &= (uint8_t)~LAYER_WINDOW;
    } else if (!listed) {
        for (int64_t i = 0; i < c->n_layers; i++)
            if (i >= from && (!every || (i + 1) % every)) c->layer[i] |= LAYER_WINDOW;
    }
    for (int64_t i = 0; i < c->n_layers; i++) {
        bool window = c->layer[i] & LAYER_WINDOW;
        if (s->local_rope && window) c->layer[i] |= LAYER_LOCAL_ROPE;
        if (s->nope_full && !window) c->layer[i] |= LAYER_NO_ROPE;
    }
}

static void read_shape(Reader *r, ModelConfig *c) {
    const ArchSpec *s = c->arch;
    if (s->parallel && strcmp(s->parallel, ALWAYS) != 0)
        c->parallel = get_bool(r, s->parallel, s->parallel_default);
    c->shared_norm = c->parallel && s->shared_norm;
    if (s->qk_norm_key && !get_bool(r, s->qk_norm_key, false)) c->qk_norm = QK_NONE;
    c->q_bias = read_bias(r, s->qkv_bias, s->bias_default);
    c->o_bias = read_bias(r, s->o_bias, s->bias_default);
    c->mlp_bias = read_bias(r, s->mlp_bias, s->bias_default);
    c->embed_dim = c->hidden;
}

/* 各家族独有的键。 */
static void read_special(Reader *r, ModelConfig *c) {
    const char *family = c->arch->name;
    double scalar;
    c->attn_scale = 1.0 / sqrt((double)c->head_dim);
    if (c->arch->embed_scale) c->embed_scale = (double)(float)sqrt((double)c->hidden);
    if (c->arch->query_scalar) {
        get_num(r, "query_pre_attn_scalar", 256, &scalar);
        c->attn_scale = pow(scalar, -0.5);
        get_num(r, "attn_logit_softcapping", strcmp(family, "gemma2") ? 0 : 50, &c->attn_softcap);
        get_num(r, "final_logit_softcapping", strcmp(family, "gemma2") ? 0 : 30, &c->logit_softcap);
        /* 明写的 null 是「没有」；gemma3 的注意力不用这个键（transformers 亦然） */
        bool gemma3 = strcmp(family, "gemma2") != 0;
        if (gemma3 || json_is_null(json_object_get(r->root, "attn_logit_softcapping"))) c->attn_softcap = 0;
        if (json_is_null(json_object_get(r->root, "final_logit_softcapping"))) c->logit_softcap = 0;
    }
    if (strcmp(family, "granite") == 0) {
        get_num(r, "attention_multiplier", 1, &c->attn_scale);
        get_num(r, "embedding_multiplier", 1, &c->embed_scale);
        get_num(r, "residual_multiplier", 1, &c->residual_scale);
        get_num(r, "logits_scaling", 1, &scalar);
        c->logit_scale = 1 / scalar;
    }
    if (strncmp(family, "cohere", 6) == 0) get_num(r, "logit_scale", 0.0625, &c->logit_scale);
    if (strcmp(family, "gpt2") == 0) {
        if (!get_bool(r, "scale_attn_weights", true)) c->attn_scale = 1;
        c->attn_scale_by_layer = get_bool(r, "scale_attn_by_inverse_layer_idx", false);
        get_bool(r, "reorder_and_upcast_attn", false); /* 只改次序，不改式子 */
    }
    if (strcmp(family, "opt") == 0) {
        if (!get_bool(r, "do_layer_norm_before", true)) c->form = FORM_AFTER;
        c->no_final_norm = get_bool(r, "_remove_final_layer_norm", false) || c->form == FORM_AFTER;
        c->norm_plain = !get_bool(r, "layer_norm_elementwise_affine", true);
        get_int(r, "word_embed_proj_dim", c->hidden, 1, MAX_DIM, &c->embed_dim);
    }
    if (strcmp(family, "bloom") == 0)
        c->residual_from_norm = get_bool(r, "apply_residual_connection_post_layernorm", false);
}

static void read_falcon(Reader *r, ModelConfig *c) {
    int64_t n_norms;
    bool grouped = get_bool(r, "new_decoder_architecture", false);
    bool multi_query = get_bool(r, "multi_query", true);
    if (grouped) c->parallel = true;
    get_int(r, "num_ln_in_parallel_attn", grouped ? 2 : 1, 1, 2, &n_norms);
    c->shared_norm = c->parallel && n_norms == 1;
    if (!grouped) c->n_kv_heads = multi_query ? 1 : c->n_heads;
    if (get_bool(r, "alibi", false)) c->position = POS_ALIBI_BF16;
}

static void read_experts(Reader *r, ModelConfig *c) {
    const ArchSpec *s = c->arch;
    int64_t step = 1, first = 0;
    if (s->router == ROUTER_NONE) return;
    need_int(r, "num_experts|num_local_experts|n_routed_experts", ARCH_MAX_EXPERTS, &c->n_experts);
    need_int(r, "num_experts_per_tok", c->n_experts, &c->top_k);
    get_int(r, "moe_intermediate_size", c->intermediate, 1, MAX_DIM, &c->expert_ff);
    c->norm_topk = get_bool(r, "norm_topk_prob", strcmp(s->name, "mixtral") == 0 || s->mla);
    if (strcmp(s->name, "mixtral") == 0) c->norm_topk = true;
    get_int(r, "decoder_sparse_step", 1, 1, MAX_DIM, &step);
    const json_t *dense = json_object_get(r->root, "mlp_only_layers");
    if (dense) mark(r, "mlp_only_layers");
    if (s->mla) {
        int64_t shared;
        get_int(r, "first_k_dense_replace", 3, 0, MAX_DIM, &first);
        get_int(r, "n_shared_experts", 1, 0, 64, &shared);
        c->shared_ff = shared * c->expert_ff;
        get_num(r, "routed_scaling_factor", 2.5, &c->routed_scale);
        get_int(r, "n_group", 8, 1, ARCH_MAX_EXPERTS, &c->n_group);
        get_int(r, "topk_group", 4, 1, ARCH_MAX_EXPERTS, &c->topk_group);
        const char *how = get_str(r, "topk_method"), *score = get_str(r, "scoring_func");
        if (r->ok && ((how && strcmp(how, "noaux_tc")) || (score && strcmp(score, "sigmoid"))))
            r->ok = err_set(r->e, ERR_UNSUPPORTED,
                            "%s: 只支持 topk_method=noaux_tc、scoring_func=sigmoid 的路由", r->name);
        get_int(r, "moe_layer_freq", 1, 1, MAX_DIM, &step);
        if (r->ok && step != 1)
            r->ok = err_set(r->e, ERR_UNSUPPORTED, "%s: 只支持 moe_layer_freq=1", r->name);
    }
    for (int64_t i = first; r->ok && i < c->n_layers; i++) {
        bool only_mlp = false;
        for (size_t k = 0; k < json_array_size(dense); k++)
            only_mlp |= json_integer_value(json_array_get(dense, k)) == i;
        if (!only_mlp && (s->mla || (i + 1) % step == 0)) c->layer[i] |= LAYER_EXPERTS;
    }
}

static void read_mla(Reader *r, ModelConfig *c) {
    if (!c->arch->mla) return;
    need_int(r, "kv_lora_rank", MAX_DIM, &c->kv_lora);
    get_int(r, "q_lora_rank", 0, 1, MAX_DIM, &c->q_lora);
    need_int(r, "qk_nope_head_dim", MAX_DIM, &c->nope_dim);
    need_int(r, "qk_rope_head_dim", MAX_DIM, &c->rope_dim);
    need_int(r, "v_head_dim", MAX_DIM, &c->v_dim);
    int64_t given;
    get_int(r, "qk_head_dim", 0, 0, MAX_DIM, &given);
    c->mla_bias = get_bool(r, "attention_bias", false);
    c->rope.pairs = get_bool(r, "rope_interleave", true);
    if (!r->ok) return;
    int64_t qk = c->nope_dim + c->rope_dim;
    c->n_kv_heads = c->n_heads;
    c->head_dim = qk > c->v_dim ? qk : c->v_dim;
    c->attn_scale = 1 / sqrt((double)qk);
}

/* MLA 的 yarn：分数另乘 mscale²（DeepseekV3Attention）。 */
static void mla_scale(Reader *r, ModelConfig *c) {
    const json_t *o = json_object_get(r->root, "rope_parameters");
    if (!json_is_object(o)) o = json_object_get(r->root, "rope_scaling");
    double all = 0;
    if (!r->ok || !c->arch->mla || c->rope.kind == ROPE_DEFAULT || !json_is_object(o)) return;
    r->ok = json_get_num_or(o, r->name, "mscale_all_dim", 0, &all, r->e);
    if (all == 0 || !(c->rope.factor > 1)) return;
    double m = 0.1 * all * log(c->rope.factor) + 1;
    c->attn_scale *= m * m;
}

/* 不影响前向的键：训练、生成、记录、分类头。'*' 结尾为前缀，'*' 开头为后缀。 */
static bool harmless(const char *key) {
    static const char *const KEYS[] = {
        "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "use_cache",
        "auto_map", "_*", "*_token_id", "*dropout", "*pdrop", "*_token_ids", "init_std",
        "initializer*", "layerdrop", "pretraining_tp", "slow_but_exact", "output_*", "return_dict*",
        "torchscript", "use_bfloat16", "pruned_heads", "is_encoder_decoder", "is_decoder",
        "add_cross_attention", "cross_attention_hidden_size", "chunk_size_feed_forward", "id2label",
        "label2id", "num_labels", "problem_type", "task_specific_params", "tokenizer_class",
        "prefix", "summary_*", "classifier_*", "finetuning_task", "router_aux_loss_coef",
        "router_jitter_noise", "aux_loss_alpha", "seq_aux", "ep_size", "num_nextn_predict_layers",
        "cache_implementation", "attn_implementation", "max_length", "min_length", "num_beams",
        "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p",
        "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "early_stopping",
        "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "do_sample",
        "forced_*", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
        "begin_suppress_tokens", "tie_encoder_decoder", "tf_legacy_loss", "hidden_act",
        "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "rotary_pct",
        "rotary_emb_base", "rope_local_base_freq", "original_max_position_embeddings",
        "unsloth_*", "n_special", "predict_special_tokens", "afn", "bias_dropout_fusion", "offset_alibi",
        "masked_softmax_fusion", "attention_softmax_in_fp32", "seq_length", "skip_bias_add*",
        "vision_config", "image_*", "mm_tokens_per_image", "boi_token_index", "eoi_token_index",
        "quantization_config", "layer_norm_elementwise_affine", "use_flash_attn", "max_window_layers", "qk_head_dim", "num_local_experts"};
    size_t n = strlen(key);
    for (size_t i = 0; i < sizeof KEYS / sizeof *KEYS; i++) {
        const char *k = KEYS[i];
        size_t m = strlen(k);
        if (k[0] == '*' ? n >= m - 1 && strcmp(key + n - (m - 1), k + 1) == 0
            : k[m - 1] == '*' ? strncmp(key, k, m - 1) == 0 : strcmp(key, k) == 0)
            return true;
    }
    return false;
}

static bool is_off(const json_t *v) {
    return json_is_null(v) || json_is_false(v) || (json_is_number(v) && json_number_value(v) == 0) ||
           (json_is_string(v) && json_string_length(v) == 0) ||
           (json_is_array(v) && json_array_size(v) == 0) ||
           (json_is_object(v) && json_object_size(v) == 0);
}

static bool check_unknown(const Reader *r, const ModelConfig *c) {
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)r->root, key, v) {
        bool seen = harmless(key) || is_off(v);
        for (int i = 0; !seen && i < r->n_seen; i++) seen = strcmp(r->seen[i], key) == 0;
        if (!seen)
            return err_set(r->e, ERR_UNSUPPORTED,
                           "%s: 不认识键 '%s'（家族 %s），它可能改变计算；若确知无关，请从 config.json 删去它",
                           r->name, key, c->arch->name);
    }
    return true;
}

bool arch_from_json(ModelConfig *c, const json_t *root, const char *name, const char *adapter,
                    Err *e) {
    const char *type = adapter;
    if (!json_is_object(root)) return err_set(e, ERR_FORMAT, "%s: 顶层须是对象", name);
    if (!type && !json_get_str_or(root, name, "model_type", NULL, &type, e)) return false;
    if (!type)
        return err_set(e, ERR_FORMAT, "%s: 缺少 model_type（可在模型 YAML 里以 adapter 指明家族）", name);
    const ArchSpec *spec = arch_find(type, false);
    if (!spec) return arch_unsupported(name, type, e);
    const json_t *text = json_object_get(root, "text_config");
    if (json_is_object(text)) root = text;
    arch_defaults(c, spec);
    Reader r = {.root = root, .name = name, .ok = true, .e = e};
    read_sizes(&r, c);
    if (r.ok) read_activation(&r, c);
    if (r.ok) read_shape(&r, c);
    if (r.ok) read_windows(&r, c);
    if (r.ok) read_special(&r, c);
    if (r.ok && strcmp(spec->name, "falcon") == 0) read_falcon(&r, c);
    if (r.ok) read_mla(&r, c);
    if (r.ok) read_experts(&r, c);
    if (r.ok) r.ok = arch_read_rope(c, root, name, e);
    mla_scale(&r, c);
    c->bos_id = token_id(root, "bos_token_id");
    c->eos_id = token_id(root, "eos_token_id");
    return r.ok && check_unknown(&r, c) && arch_check(c, name, e);
}
