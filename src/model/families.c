/* families — 模型家族的数据：每个家族一行标志、一张张量名字的表
 * 加一个家族 = 在 SPECS 里加一行（名字不同于已有的表时再加一张表），然后在 tests/tools/families.py 里加它的随机小模型。
 * 依据 transformers 5 各家族的 configuration_*.py 与 modeling_*.py。 */
#include <string.h>

#include "model/arch.h"

#define L "model.layers.#."
#define ENDS [T_EMBED] = "model.embed_tokens", [T_FINAL_NORM] = "model.norm", [T_HEAD] = "lm_head"
#define QKVO                                                                                       \
    [T_Q] = L "self_attn.q_proj", [T_K] = L "self_attn.k_proj", [T_V] = L "self_attn.v_proj",      \
    [T_O] = L "self_attn.o_proj"
#define MLP                                                                                        \
    [T_GATE] = L "mlp.gate_proj", [T_UP] = L "mlp.up_proj", [T_DOWN] = L "mlp.down_proj"
#define PRE_NORMS                                                                                  \
    [T_ATTN_NORM] = L "input_layernorm", [T_MLP_NORM] = L "post_attention_layernorm"
#define QK_NORMS [T_Q_NORM] = L "self_attn.q_norm", [T_K_NORM] = L "self_attn.k_norm"

static const ArchNames LLAMA = {ENDS, QKVO, MLP, PRE_NORMS, QK_NORMS};
static const ArchNames GEMMA2 = {ENDS, QKVO, MLP, QK_NORMS,
                                 [T_ATTN_NORM] = L "input_layernorm",
                                 [T_MLP_NORM] = L "pre_feedforward_layernorm",
                                 [T_POST_ATTN_NORM] = L "post_attention_layernorm",
                                 [T_POST_MLP_NORM] = L "post_feedforward_layernorm"};
static const ArchNames OLMO2 = {ENDS, QKVO, MLP, QK_NORMS,
                                [T_POST_ATTN_NORM] = L "post_attention_layernorm",
                                [T_POST_MLP_NORM] = L "post_feedforward_layernorm"};
static const ArchNames PHI3 = {ENDS, PRE_NORMS, [T_QKV] = L "self_attn.qkv_proj",
                               [T_O] = L "self_attn.o_proj", [T_GATE_UP] = L "mlp.gate_up_proj",
                               [T_DOWN] = L "mlp.down_proj"};
static const ArchNames GLM4 = {ENDS, QKVO, PRE_NORMS, [T_GATE_UP] = L "mlp.gate_up_proj",
                               [T_DOWN] = L "mlp.down_proj",
                               [T_POST_ATTN_NORM] = L "post_self_attn_layernorm",
                               [T_POST_MLP_NORM] = L "post_mlp_layernorm"};
static const ArchNames STARCODER2 = {ENDS, QKVO, PRE_NORMS, [T_UP] = L "mlp.c_fc",
                                     [T_DOWN] = L "mlp.c_proj"};
static const ArchNames STABLELM = {ENDS, QKVO, MLP, PRE_NORMS,
                                   [T_Q_NORM] = L "self_attn.q_layernorm.norms.@",
                                   [T_K_NORM] = L "self_attn.k_layernorm.norms.@"};
static const ArchNames GPT2 = {
    [T_EMBED] = "transformer.wte", [T_POSITION] = "transformer.wpe",
    [T_FINAL_NORM] = "transformer.ln_f", [T_HEAD] = "lm_head",
    [T_ATTN_NORM] = "transformer.h.#.ln_1", [T_MLP_NORM] = "transformer.h.#.ln_2",
    [T_QKV] = "transformer.h.#.attn.c_attn", [T_O] = "transformer.h.#.attn.c_proj",
    [T_UP] = "transformer.h.#.mlp.c_fc", [T_DOWN] = "transformer.h.#.mlp.c_proj"};
#define D "model.decoder."
static const ArchNames OPT = {
    [T_EMBED] = D "embed_tokens", [T_POSITION] = D "embed_positions",
    [T_PROJECT_IN] = D "project_in", [T_PROJECT_OUT] = D "project_out",
    [T_FINAL_NORM] = D "final_layer_norm", [T_HEAD] = "lm_head",
    [T_ATTN_NORM] = D "layers.#.self_attn_layer_norm", [T_MLP_NORM] = D "layers.#.final_layer_norm",
    [T_Q] = D "layers.#.self_attn.q_proj", [T_K] = D "layers.#.self_attn.k_proj",
    [T_V] = D "layers.#.self_attn.v_proj", [T_O] = D "layers.#.self_attn.out_proj",
    [T_UP] = D "layers.#.fc1", [T_DOWN] = D "layers.#.fc2"};
#define N "gpt_neox.layers.#."
static const ArchNames NEOX = {
    [T_EMBED] = "gpt_neox.embed_in", [T_FINAL_NORM] = "gpt_neox.final_layer_norm",
    [T_HEAD] = "embed_out|lm_head", [T_ATTN_NORM] = N "input_layernorm",
    [T_MLP_NORM] = N "post_attention_layernorm", [T_QKV] = N "attention.query_key_value",
    [T_O] = N "attention.dense", [T_UP] = N "mlp.dense_h_to_4h", [T_DOWN] = N "mlp.dense_4h_to_h"};
#define H "transformer.h.#."
#define BLOOM_MOST                                                                                 \
    [T_EMBED] = "transformer.word_embeddings", [T_FINAL_NORM] = "transformer.ln_f",                \
    [T_HEAD] = "lm_head", [T_QKV] = H "self_attention.query_key_value",                            \
    [T_O] = H "self_attention.dense", [T_UP] = H "mlp.dense_h_to_4h",                              \
    [T_DOWN] = H "mlp.dense_4h_to_h"
static const ArchNames BLOOM = {BLOOM_MOST, [T_EMBED_NORM] = "transformer.word_embeddings_layernorm",
                                [T_ATTN_NORM] = H "input_layernorm",
                                [T_MLP_NORM] = H "post_attention_layernorm"};
static const ArchNames FALCON = {BLOOM_MOST, [T_ATTN_NORM] = H "input_layernorm|" H "ln_attn",
                                 [T_MLP_NORM] = H "post_attention_layernorm|" H "ln_mlp"};
static const ArchNames MIXTRAL = {ENDS, QKVO, PRE_NORMS, [T_ROUTER] = L "block_sparse_moe.gate",
                                  [T_EXPERT_GATE] = L "block_sparse_moe.experts.@.w1",
                                  [T_EXPERT_UP] = L "block_sparse_moe.experts.@.w3",
                                  [T_EXPERT_DOWN] = L "block_sparse_moe.experts.@.w2"};
#define EXPERTS                                                                                    \
    [T_ROUTER] = L "mlp.gate", [T_ROUTER_BIAS] = L "mlp.gate.e_score_correction_bias",             \
    [T_EXPERT_GATE] = L "mlp.experts.@.gate_proj", [T_EXPERT_UP] = L "mlp.experts.@.up_proj",      \
    [T_EXPERT_DOWN] = L "mlp.experts.@.down_proj"
static const ArchNames QWEN3_MOE = {ENDS, QKVO, MLP, PRE_NORMS, QK_NORMS, EXPERTS};
static const ArchNames DEEPSEEK = {
    ENDS, MLP, PRE_NORMS, EXPERTS, [T_Q] = L "self_attn.q_proj", [T_O] = L "self_attn.o_proj",
    [T_Q_A] = L "self_attn.q_a_proj", [T_Q_A_NORM] = L "self_attn.q_a_layernorm",
    [T_Q_B] = L "self_attn.q_b_proj",
    [T_KV_A] = L "self_attn.kv_a_proj_with_mqa", [T_KV_A_NORM] = L "self_attn.kv_a_layernorm",
    [T_KV_B] = L "self_attn.kv_b_proj", [T_SHARED_GATE] = L "mlp.shared_experts.gate_proj",
    [T_SHARED_UP] = L "mlp.shared_experts.up_proj",
    [T_SHARED_DOWN] = L "mlp.shared_experts.down_proj"};

#define ATTENTION_BIAS .qkv_bias = "attention_bias", .o_bias = "attention_bias"
#define ALL_BIAS .qkv_bias = ALWAYS, .o_bias = ALWAYS, .mlp_bias = ALWAYS
#define LAYER_NORM .layer_norm = true, .norm_bias = true
#define GEMMA                                                                                      \
    .norm_plus_one = true, .activation = ACTF_GELU_TANH, .embed_scale = true, .tied_default = true, \
    ATTENTION_BIAS

static const ArchSpec SPECS[] = {
    {.name = "llama", .gguf = "llama", .names = &LLAMA, ATTENTION_BIAS, .mlp_bias = "mlp_bias",
     .gguf_permuted_qk = true},
    {.name = "mistral", .gguf = "llama", .names = &LLAMA, .window = WINDOW_ALL,
     .gguf_permuted_qk = true},
    {.name = "qwen2", .gguf = "qwen2", .names = &LLAMA, .qkv_bias = ALWAYS,
     .window = WINDOW_SWITCH},
    {.name = "qwen3", .gguf = "qwen3", .names = &LLAMA, ATTENTION_BIAS, .qk_norm = QK_SHARED,
     .window = WINDOW_SWITCH},
    {.name = "gemma", .gguf = "gemma", .names = &LLAMA, GEMMA},
    {.name = "gemma2", .gguf = "gemma2", .names = &GEMMA2, GEMMA, .form = FORM_SANDWICH,
     .window = WINDOW_PATTERN, .window_pattern = 2, .query_scalar = true},
    {.name = "gemma3_text", .gguf = "gemma3", .names = &GEMMA2, GEMMA, .form = FORM_SANDWICH,
     .qk_norm = QK_SHARED, .window = WINDOW_PATTERN, .window_pattern = 6, .local_rope = true,
     .query_scalar = true},
    {.name = "phi3", .gguf = "phi3", .names = &PHI3, .fused_qkv = FUSED_STACKED,
     .fused_gate_up = true, .norm_eps = 1e-5, .window = WINDOW_ALL},
    {.name = "gpt2", .gguf = "gpt2", .names = &GPT2, ALL_BIAS, LAYER_NORM, .plain_mlp = true,
     .activation = ACTF_GELU_TANH, .position = POS_LEARNED, .fused_qkv = FUSED_STACKED,
     .transposed = true, .tied_default = true},
    {.name = "opt", .names = &OPT, .qkv_bias = "enable_bias", .o_bias = "enable_bias",
     .mlp_bias = "enable_bias", .bias_default = true, LAYER_NORM, .plain_mlp = true,
     .activation = ACTF_RELU, .position = POS_LEARNED, .position_offset = 2, .tied_default = true},
    {.name = "gpt_neox", .gguf = "gptneox", .names = &NEOX, ATTENTION_BIAS, .mlp_bias = ALWAYS,
     .bias_default = true, LAYER_NORM, .parallel = "use_parallel_residual",
     .parallel_default = true, .plain_mlp = true, .activation = ACTF_GELU_ERF,
     .partial_rotary = 0.25, .fused_qkv = FUSED_GROUPED},
    {.name = "bloom", .gguf = "bloom", .names = &BLOOM, ALL_BIAS, LAYER_NORM, .plain_mlp = true,
     .activation = ACTF_GELU_TANH, .position = POS_ALIBI, .fused_qkv = FUSED_GROUPED,
     .tied_default = true},
    {.name = "falcon", .gguf = "falcon", .names = &FALCON, .qkv_bias = "bias", .o_bias = "bias",
     .mlp_bias = "bias", LAYER_NORM, .parallel = "parallel_attn", .parallel_default = true,
     .shared_norm = true, .plain_mlp = true, .activation = ACTF_GELU_ERF,
     .fused_qkv = FUSED_GROUPED, .tied_default = true, .gguf_two_norms = true},
    {.name = "mixtral", .gguf = "llama", .names = &MIXTRAL, .norm_eps = 1e-5, .window = WINDOW_ALL,
     .router = ROUTER_SOFTMAX, .gguf_permuted_qk = true},
    {.name = "qwen3_moe", .gguf = "qwen3moe", .names = &QWEN3_MOE, ATTENTION_BIAS,
     .qk_norm = QK_SHARED, .window = WINDOW_SWITCH, .router = ROUTER_SOFTMAX},
    {.name = "olmoe", .gguf = "olmoe", .names = &QWEN3_MOE, ATTENTION_BIAS, .norm_eps = 1e-5,
     .qk_norm = QK_WHOLE, .router = ROUTER_SOFTMAX},
    {.name = "olmo2", .gguf = "olmo2", .names = &OLMO2, ATTENTION_BIAS, .norm_eps = 1e-5,
     .form = FORM_BRANCH, .qk_norm = QK_WHOLE},
    {.name = "olmo3", .names = &OLMO2, ATTENTION_BIAS, .norm_eps = 1e-5, .form = FORM_BRANCH,
     .qk_norm = QK_WHOLE, .window = WINDOW_PATTERN, .window_pattern = 4},
    {.name = "starcoder2", .gguf = "starcoder2", .names = &STARCODER2, .qkv_bias = "use_bias",
     .o_bias = "use_bias", .mlp_bias = "use_bias", .bias_default = true, LAYER_NORM,
     .plain_mlp = true, .activation = ACTF_GELU_TANH, .window = WINDOW_ALL, .tied_default = true},
    {.name = "stablelm", .gguf = "stablelm", .names = &STABLELM, .qkv_bias = "use_qkv_bias",
     LAYER_NORM, .parallel = "use_parallel_residual", .shared_norm = true,
     .qk_norm = QK_PER_HEAD_SPLIT, .qk_norm_key = "qk_layernorm", .partial_rotary = 0.25},
    {.name = "granite", .gguf = "granite", .names = &LLAMA, ATTENTION_BIAS, .mlp_bias = "mlp_bias",
     .gguf_permuted_qk = true},
    {.name = "cohere", .gguf = "command-r", .names = &LLAMA, ATTENTION_BIAS, .layer_norm = true,
     .parallel = ALWAYS, .shared_norm = true, .qk_norm = QK_PER_HEAD, .qk_norm_key = "use_qk_norm",
     .rope_pairs = true, .tied_default = true},
    {.name = "cohere2", .gguf = "cohere2", .names = &LLAMA, ATTENTION_BIAS, .layer_norm = true,
     .parallel = ALWAYS, .shared_norm = true, .rope_pairs = true, .window = WINDOW_PATTERN,
     .window_pattern = 4, .nope_full = true, .tied_default = true},
    {.name = "deepseek_v3", .names = &DEEPSEEK, .rope_pairs = true, .router = ROUTER_SIGMOID,
     .mla = true},
    {.name = "glm4", .gguf = "glm4", .names = &GLM4, .qkv_bias = "attention_bias",
     .norm_eps = 1.5625e-07, .form = FORM_SANDWICH, .rope_pairs = true, .partial_rotary = 0.5,
     .fused_gate_up = true},
};

const ArchSpec *arch_find(const char *name, bool gguf) {
    if (!gguf && strcmp(name, "gemma3") == 0) name = "gemma3_text"; /* 多模态的外壳里的文本部分 */
    for (size_t i = 0; i < sizeof SPECS / sizeof *SPECS; i++) {
        const char *known = gguf ? SPECS[i].gguf : SPECS[i].name;
        if (known && strcmp(known, name) == 0) return &SPECS[i];
    }
    return NULL;
}

bool arch_unsupported(const char *where, const char *name, Err *e) {
    char list[600] = "";
    for (size_t i = 0; i < sizeof SPECS / sizeof *SPECS; i++) {
        strncat(list, i ? "、" : "", sizeof list - strlen(list) - 1);
        strncat(list, SPECS[i].name, sizeof list - strlen(list) - 1);
    }
    return err_set(e, ERR_UNSUPPORTED, "%s: 不支持的架构 '%s'（支持 %s）", where, name, list);
}

void arch_defaults(ModelConfig *c, const ArchSpec *s) {
    *c = (ModelConfig){.arch = s, .bos_id = -1, .eos_id = -1, .norm_eps = s->norm_eps,
                       .norm_plus_one = s->norm_plus_one, .form = s->form,
                       .parallel = s->parallel_default, .qk_norm = s->qk_norm,
                       .activation = s->activation, .gated = !s->plain_mlp, .position = s->position,
                       .embed_scale = 1, .residual_scale = 1, .logit_scale = 1, .routed_scale = 1,
                       .tied = s->tied_default, .fused_qkv = s->fused_qkv,
                       .fused_gate_up = s->fused_gate_up, .transposed = s->transposed};
    if (s->parallel && strcmp(s->parallel, ALWAYS) == 0) c->parallel = true;
    if (!(c->norm_eps > 0)) c->norm_eps = s->layer_norm ? 1e-5 : 1e-6;
    c->rope.pairs = c->local_rope.pairs = s->rope_pairs;
}

int64_t arch_window(const ModelConfig *c, int64_t layer) {
    return c->layer[layer] & LAYER_WINDOW ? c->sliding_window : 0;
}

bool arch_has_experts(const ModelConfig *c, int64_t layer) {
    return c->layer[layer] & LAYER_EXPERTS;
}

static int64_t attention_params(const ModelConfig *c) {
    int64_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    if (!c->arch->mla) return c->hidden * (2 * q + 2 * kv);
    int64_t qk = c->n_heads * (c->nope_dim + c->rope_dim);
    int64_t query = c->q_lora ? c->q_lora * (c->hidden + qk) : c->hidden * qk;
    return query + c->hidden * (c->kv_lora + c->rope_dim) +
           c->kv_lora * c->n_heads * (c->nope_dim + c->v_dim) + c->n_heads * c->v_dim * c->hidden;
}

int64_t arch_linear_params(const ModelConfig *c) {
    int64_t sum = 0, parts = c->gated ? 3 : 2;
    for (int64_t i = 0; i < c->n_layers; i++) {
        int64_t ff = arch_has_experts(c, i) ? c->top_k * c->expert_ff + c->shared_ff
                                            : c->intermediate;
        sum += attention_params(c) + parts * c->hidden * ff;
    }
    return sum;
}

unsigned arch_features(const ModelConfig *c) {
    bool scaled = c->embed_scale != 1 || c->residual_scale != 1 || c->logit_scale != 1 ||
                  c->attn_scale_by_layer || c->embed_dim != c->hidden;
    bool rope = c->position == POS_ROPE && !c->rope.pairs, moved = false;
    for (int64_t i = 0; i < c->n_layers; i++)
        moved |= (c->layer[i] & (LAYER_LOCAL_ROPE | LAYER_NO_ROPE)) != 0;
    const bool has[] = {c->arch->layer_norm || c->norm_plain || (*c->arch->names)[T_EMBED_NORM],
                        c->form == FORM_BRANCH || c->form == FORM_AFTER || c->no_final_norm ||
                            c->residual_from_norm,
                        c->parallel, c->qk_norm != QK_NONE, !c->gated,
                        c->activation != ACTF_SILU, c->attn_softcap > 0 || c->logit_softcap > 0,
                        !rope || moved, scaled, c->n_experts > 0, c->arch->mla,
                        c->form == FORM_SANDWICH, c->shared_norm};
    unsigned bits = 0;
    for (size_t i = 0; i < sizeof has / sizeof *has; i++) bits |= has[i] ? 1u << i : 0;
    return bits;
}

bool arch_require(const ModelConfig *c, unsigned refused, const char *who, Err *e) {
    static const char *const NAMES[] = {"LayerNorm", "归一化的位置（不在半块之前）", "并行残差", "q、k 的归一化",
                                        "没有门的 MLP", "silu 之外的激活函数", "软截断",
                                        "位置编码（不是全层相同的 RoPE）", "词嵌入、残差或 logits 的系数", "混合专家",
                                        "MLA", "半块之后的归一化", "两半共用的归一化"};
    unsigned bad = arch_features(c) & refused;
    for (size_t i = 0; bad && i < sizeof NAMES / sizeof *NAMES; i++)
        if (bad >> i & 1)
            return err_set(e, ERR_UNSUPPORTED, "%s不支持家族 %s 的「%s」；请换一个方法",
                           who, c->arch->name, NAMES[i]);
    return true;
}
