/* layout — 布局的实现
 * GGUF 的名字依 llama.cpp 的约定：融合的 q、k、v 恒为依次堆叠，专家堆成三维，Conv1D 已转置，gemma 的归一化已加 1。 */
#include "model/layout.h"

#include <stdio.h>
#include <string.h>

#include "model/checkpoint.h"

#define B "blk.#."
static const ArchNames GGUF_NAMES = {
    [T_EMBED] = "token_embd", [T_POSITION] = "position_embd", [T_EMBED_NORM] = "token_embd_norm",
    [T_FINAL_NORM] = "output_norm", [T_HEAD] = "output", [T_ATTN_NORM] = B "attn_norm_2|" B "attn_norm",
    [T_MLP_NORM] = B "ffn_norm|" B "attn_norm", [T_POST_ATTN_NORM] = B "post_attention_norm",
    [T_POST_MLP_NORM] = B "post_ffw_norm", [T_Q_NORM] = B "attn_q_norm", [T_K_NORM] = B "attn_k_norm",
    [T_QKV] = B "attn_qkv", [T_Q] = B "attn_q", [T_K] = B "attn_k", [T_V] = B "attn_v",
    [T_O] = B "attn_output", [T_GATE_UP] = B "ffn_up", [T_GATE] = B "ffn_gate", [T_UP] = B "ffn_up",
    [T_DOWN] = B "ffn_down", [T_ROUTER] = B "ffn_gate_inp", [T_EXPERT_GATE] = B "ffn_gate_exps",
    [T_EXPERT_UP] = B "ffn_up_exps", [T_EXPERT_DOWN] = B "ffn_down_exps"};

/* 一个别名（到 '|' 或结尾）展开 '#'、'@'，去掉或加上文件的前缀，再接后缀。 */
static void expand(const Model *m, const char *pattern, int64_t layer, int64_t index,
                   const char *suffix, char *out, size_t cap) {
    const WeightStore *w = &m->weights;
    size_t n = 0, strip = strlen(w->strip);
    if (!w->is_gguf && strip && strncmp(pattern, w->strip, strip) == 0) pattern += strip;
    if (!w->is_gguf) n = (size_t)snprintf(out, cap, "%s", w->add);
    for (; *pattern && *pattern != '|' && n + 24 < cap; pattern++) {
        if (*pattern == '#' || *pattern == '@')
            n += (size_t)snprintf(out + n, cap - n, "%lld", (long long)(*pattern == '#' ? layer : index));
        else
            out[n++] = *pattern;
    }
    snprintf(out + n, cap - n, "%s", suffix);
}

void layout_name(const Model *m, TensorSlot slot, int64_t layer, int64_t index, const char *suffix,
                 char *out, size_t cap) {
    const ArchNames *names = m->weights.is_gguf ? &GGUF_NAMES : m->config.arch->names;
    const char *pattern = (*names)[slot] ? (*names)[slot] : "?";
    expand(m, pattern, layer, index, suffix, out, cap);
    if (!strchr(pattern, '|') || weights_find(&m->weights, out)) return;
    for (const char *k = strchr(pattern, '|'); k; k = strchr(k, '|')) {
        char other[192];
        expand(m, ++k, layer, index, suffix, other, sizeof other);
        if (weights_find(&m->weights, other)) {
            snprintf(out, cap, "%s", other);
            return;
        }
    }
}

void layout_gguf_name(const ModelConfig *c, TensorSlot slot, int64_t layer, const char *suffix, char *out, size_t cap) {
    const char *pattern = GGUF_NAMES[slot] ? GGUF_NAMES[slot] : "?", *second = strchr(pattern, '|');
    bool two = c->arch->gguf_two_norms && c->parallel && !c->shared_norm;
    if (second && (slot == T_ATTN_NORM) != two) pattern = second + 1;
    Model plain = {.weights = {.is_gguf = true}};
    expand(&plain, pattern, layer, 0, suffix, out, cap);
}

TensorSource layout_whole(const Model *m, TensorSlot slot, int64_t layer, int64_t index,
                          const char *suffix, int64_t rows, int64_t cols) {
    TensorSource s = {.rows = rows, .cols = cols};
    layout_name(m, slot, layer, index, suffix, s.name, sizeof s.name);
    return s;
}

/* q、k、v 在融合的张量里：第几份（0、1、2）。 */
static void fused_rows(const ModelConfig *c, TensorSource *s, int part, FusedQkv how) {
    int64_t group = c->n_heads / c->n_kv_heads, dim = c->head_dim;
    int64_t q = c->n_heads * dim, kv = c->n_kv_heads * dim;
    s->rows = q + 2 * kv;
    if (how == FUSED_GROUPED) {
        s->block = part ? dim : group * dim;
        s->stride = (group + 2) * dim;
        s->offset = part ? (group + part - 1) * dim : 0;
        return;
    }
    s->block = s->stride = part ? kv : q;
    s->offset = part ? q + (part - 1) * kv : 0;
}

/* 文件里该线性层与别的融合在一起，或是 GGUF 而只有融合的张量。 */
static bool is_fused(const Model *m, const Linear *l, TensorSlot fused, bool by_spec) {
    char name[192];
    if (!m->weights.is_gguf) return by_spec;
    if (fused == T_GATE_UP) return by_spec;
    layout_name(m, (TensorSlot)l->slot, l->layer, 0, ".weight", name, sizeof name);
    if (weights_find(&m->weights, name)) return false;
    layout_name(m, fused, l->layer, 0, ".weight", name, sizeof name);
    return weights_find(&m->weights, name) != NULL;
}

void layout_linear(const Model *m, const Linear *l, bool bias, TensorSource *src) {
    const ModelConfig *c = &m->config;
    const char *suffix = bias ? ".bias" : ".weight";
    TensorSlot slot = (TensorSlot)l->slot;
    bool gguf = m->weights.is_gguf;
    *src = (TensorSource){.rows = l->rows, .cols = bias ? 0 : l->cols,
                          .transposed = c->transposed && !gguf && !bias};
    if (slot >= T_Q && slot <= T_V && is_fused(m, l, T_QKV, c->fused_qkv != FUSED_NONE)) {
        fused_rows(c, src, (int)(slot - T_Q), gguf ? FUSED_STACKED : c->fused_qkv);
        slot = T_QKV;
    } else if ((slot == T_GATE || slot == T_UP) && is_fused(m, l, T_GATE_UP, c->fused_gate_up)) {
        src->rows = 2 * l->rows;
        src->block = src->stride = l->rows;
        src->offset = slot == T_UP ? l->rows : 0;
        slot = T_GATE_UP;
    } else if (gguf && slot >= T_EXPERT_GATE && slot <= T_EXPERT_DOWN) {
        src->rows = c->n_experts * l->rows;
        src->block = src->stride = l->rows;
        src->offset = l->expert * l->rows;
    }
    if (gguf && c->arch->gguf_permuted_qk && (slot == T_Q || slot == T_K))
        src->heads = slot == T_Q ? c->n_heads : c->n_kv_heads;
    layout_name(m, slot, l->layer, l->expert, suffix, src->name, sizeof src->name);
}

size_t layout_vectors(const ModelConfig *c, int64_t layer, Block *b, BlockVector *out) {
    size_t n = 0;
    const ArchSpec *s = c->arch;
    bool weight = !c->norm_plain, bias = weight && s->norm_bias, plus = c->norm_plus_one;
    bool before = weight && c->form != FORM_BRANCH, after = c->form == FORM_SANDWICH || c->form == FORM_BRANCH;
    int64_t d = c->hidden, q = c->n_heads, kv = c->n_kv_heads, dim = c->head_dim;
    bool heads = c->qk_norm == QK_PER_HEAD || c->qk_norm == QK_PER_HEAD_SPLIT;
    const struct {
        bool use;
        BlockVector v;
    } all[] = {
        {before, {&b->attn_norm, T_ATTN_NORM, ".weight", d, 0, false, plus}},
        {before && bias, {&b->attn_norm_bias, T_ATTN_NORM, ".bias", d, 0, false, false}},
        {before && !c->shared_norm, {&b->mlp_norm, T_MLP_NORM, ".weight", d, 0, false, plus}},
        {before && bias && !c->shared_norm, {&b->mlp_norm_bias, T_MLP_NORM, ".bias", d, 0, false, false}},
        {after, {&b->post_attn_norm, T_POST_ATTN_NORM, ".weight", d, 0, false, plus}},
        {after, {&b->post_mlp_norm, T_POST_MLP_NORM, ".weight", d, 0, false, plus}},
        {c->qk_norm == QK_SHARED, {&b->q_norm, T_Q_NORM, ".weight", dim, 0, false, plus}},
        {c->qk_norm == QK_SHARED, {&b->k_norm, T_K_NORM, ".weight", dim, 0, false, plus}},
        {c->qk_norm == QK_WHOLE, {&b->q_norm, T_Q_NORM, ".weight", q * dim, 0, false, plus}},
        {c->qk_norm == QK_WHOLE, {&b->k_norm, T_K_NORM, ".weight", kv * dim, 0, false, plus}},
        {heads, {&b->q_norm, T_Q_NORM, ".weight", q, dim, c->qk_norm == QK_PER_HEAD_SPLIT, false}},
        {heads, {&b->k_norm, T_K_NORM, ".weight", kv, dim, c->qk_norm == QK_PER_HEAD_SPLIT, false}},
        {s->mla && c->q_lora, {&b->q_a_norm, T_Q_A_NORM, ".weight", c->q_lora, 0, false, false}},
        {s->mla, {&b->kv_a_norm, T_KV_A_NORM, ".weight", c->kv_lora, 0, false, false}},
        {arch_has_experts(c, layer), {&b->router, T_ROUTER, ".weight", c->n_experts, d, false, false}},
        {arch_has_experts(c, layer) && s->router == ROUTER_SIGMOID,
         {&b->router_bias, T_ROUTER_BIAS, "", c->n_experts, 0, false, false}},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].use) out[n++] = all[i].v;
    CHECK(n <= LAYOUT_MAX_VECTORS);
    return n;
}

/* 添一个线性层；rows 为 0 表示这个家族没有，只占位。 */
static Linear *add(Model *m, Block *b, LinearRole role, TensorSlot slot, int group, int64_t rows,
                   int64_t cols, bool bias) {
    Linear *l = &b->linears[b->n_linears++];
    (void)m;
    *l = (Linear){.role = role, .slot = (int)slot, .group = group, .rows = rows, .cols = rows ? cols : 0,
                  .has_bias = rows && bias};
    return l;
}

static void add_attention(Model *m, Block *b) {
    const ModelConfig *c = &m->config;
    int64_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim, d = c->hidden;
    if (!c->arch->mla) {
        add(m, b, ROLE_Q, T_Q, INPUT_QKV, q, d, c->q_bias);
        add(m, b, ROLE_K, T_K, INPUT_QKV, kv, d, c->q_bias);
        add(m, b, ROLE_V, T_V, INPUT_QKV, kv, d, c->q_bias);
        add(m, b, ROLE_O, T_O, INPUT_O, d, q, c->o_bias);
        return;
    }
    int64_t qk = c->n_heads * (c->nope_dim + c->rope_dim);
    if (c->q_lora)
        add(m, b, ROLE_Q, T_Q_B, GROUP_Q_B, qk, c->q_lora, false);
    else
        add(m, b, ROLE_Q, T_Q, INPUT_QKV, qk, d, false);
    add(m, b, ROLE_K, T_K, INPUT_QKV, 0, 0, false);
    add(m, b, ROLE_V, T_V, INPUT_QKV, 0, 0, false);
    add(m, b, ROLE_O, T_O, INPUT_O, d, c->n_heads * c->v_dim, c->mla_bias);
}

static void add_mlp(Model *m, Block *b, int64_t layer) {
    const ModelConfig *c = &m->config;
    bool experts = arch_has_experts(c, layer);
    int64_t ff = experts ? c->shared_ff : c->intermediate, d = c->hidden;
    TensorSlot gate = experts ? T_SHARED_GATE : T_GATE, up = experts ? T_SHARED_UP : T_UP;
    add(m, b, ROLE_GATE, gate, INPUT_GATE_UP, c->gated ? ff : 0, d, c->mlp_bias);
    add(m, b, ROLE_UP, up, INPUT_GATE_UP, ff, d, c->mlp_bias);
    add(m, b, ROLE_DOWN, experts ? T_SHARED_DOWN : T_DOWN, INPUT_DOWN, ff ? d : 0, ff, c->mlp_bias);
}

static void add_extras(Model *m, Block *b, int64_t layer) {
    const ModelConfig *c = &m->config;
    int64_t d = c->hidden;
    if (c->arch->mla) {
        add(m, b, ROLE_COUNT, T_Q_A, INPUT_QKV, c->q_lora, d, c->mla_bias);
        add(m, b, ROLE_COUNT, T_KV_A, INPUT_QKV, c->kv_lora + c->rope_dim, d, c->mla_bias);
        add(m, b, ROLE_COUNT, T_KV_B, GROUP_KV_B, c->n_heads * (c->nope_dim + c->v_dim), c->kv_lora,
            false);
    }
    for (int i = 0; arch_has_experts(c, layer) && i < c->n_experts; i++) {
        int in = GROUP_EXPERTS + 2 * i;
        add(m, b, ROLE_COUNT, T_EXPERT_GATE, in, c->expert_ff, d, false)->expert = i;
        add(m, b, ROLE_COUNT, T_EXPERT_UP, in, c->expert_ff, d, false)->expert = i;
        add(m, b, ROLE_COUNT, T_EXPERT_DOWN, in + 1, d, c->expert_ff, false)->expert = i;
    }
}

/* 线性层的名字：张量名去掉 .weight；融合的再接 .q、.up 之类。 */
static bool name_linear(Model *m, Linear *l, Err *e) {
    static const char *const PART[T_COUNT] = {[T_Q] = ".q", [T_K] = ".k", [T_V] = ".v",
                                              [T_GATE] = ".gate", [T_UP] = ".up"};
    const ModelConfig *c = &m->config;
    const char *pattern = (*c->arch->names)[l->slot], *part = "";
    if (!pattern) {
        pattern = (*c->arch->names)[l->slot <= T_V ? T_QKV : T_GATE_UP];
        part = PART[l->slot] ? PART[l->slot] : "";
    }
    char name[192];
    Model plain = {.config = {.arch = c->arch}, .weights = {.strip = "", .add = ""}};
    expand(&plain, pattern ? pattern : "?", l->layer, l->expert, part, name, sizeof name);
    return (l->name = arena_strdup(&m->meta, name, e)) != NULL;
}

bool layout_block(Model *m, int64_t layer, Err *e) {
    const ModelConfig *c = &m->config;
    Block *b = &m->blocks[layer];
    int64_t n = ROLE_COUNT + 3 + (arch_has_experts(c, layer) ? 3 * c->n_experts : 0);
    BlockVector v[LAYOUT_MAX_VECTORS];
    b->linears = ARENA_ARRAY(&m->meta, Linear, n, e);
    if (!b->linears) return false;
    add_attention(m, b);
    add_mlp(m, b, layer);
    add_extras(m, b, layer);
    CHECK(b->n_linears <= n);
    for (int i = 0; i < b->n_linears; i++) {
        Linear *l = &b->linears[i];
        TensorSource s;
        l->layer = (int)layer;
        if (!name_linear(m, l, e)) return false;
        if (!l->rows) continue;
        layout_linear(m, l, false, &s);
        l->packed = checkpoint_is_packed(m, l);
        if (!(l->packed ? checkpoint_check(m, l, e) : weights_check(&m->weights, &s, e))) return false;
        if (!l->has_bias) continue;
        layout_linear(m, l, true, &s);
        if (!weights_check(&m->weights, &s, e)) return false;
    }
    size_t n_vectors = layout_vectors(c, layer, b, v);
    for (size_t i = 0; i < n_vectors; i++)
        for (int64_t k = 0; k < (v[i].split && !m->weights.is_gguf ? v[i].rows : 1); k++) {
            bool split = v[i].split && !m->weights.is_gguf;
            TensorSource s = layout_whole(m, v[i].slot, layer, k, v[i].suffix,
                                          split ? v[i].cols : v[i].rows, split ? 0 : v[i].cols);
            if (!weights_check(&m->weights, &s, e)) return false;
        }
    return true;
}

Linear layout_head(const Model *m) {
    return (Linear){.name = "lm_head", .role = ROLE_COUNT, .slot = T_HEAD, .rows = m->config.vocab,
                    .cols = m->config.embed_dim};
}

/* 文件里的名字有没有前缀：整个照写、去掉头一节（只存了 base model）、多模态的外壳。 */
static void find_prefix(Model *m) {
    WeightStore *w = &m->weights;
    char shell[64], first[32];
    const char *embed = (*m->config.arch->names)[T_EMBED];
    size_t n = strcspn(embed, ".") + 1;
    snprintf(first, sizeof first, "%.*s", (int)n, embed);
    snprintf(shell, sizeof shell, "%slanguage_model.", first);
    const char *const TRY[][2] = {{"", ""}, {first, ""}, {"", "language_model."}, {first, shell}};
    char name[192];
    for (size_t i = 0; i < sizeof TRY / sizeof *TRY; i++) {
        snprintf(w->strip, sizeof w->strip, "%s", TRY[i][0]);
        snprintf(w->add, sizeof w->add, "%s", TRY[i][1]);
        layout_name(m, T_EMBED, 0, 0, ".weight", name, sizeof name);
        if (weights_find(w, name)) return;
    }
    w->strip[0] = w->add[0] = 0;
}

bool layout_ends(Model *m, Err *e) {
    const ModelConfig *c = &m->config;
    int64_t d = c->hidden, wide = c->embed_dim, places = c->max_position + c->arch->position_offset;
    if (!m->weights.is_gguf) find_prefix(m);
    bool bias = c->arch->norm_bias && !c->norm_plain, embed_norm = (*c->arch->names)[T_EMBED_NORM];
    const struct {
        bool use;
        TensorSlot slot;
        const char *suffix;
        int64_t rows, cols;
    } all[] = {{true, T_EMBED, ".weight", c->vocab, wide},
               {c->position == POS_LEARNED, T_POSITION, ".weight", places, d},
               {embed_norm, T_EMBED_NORM, ".weight", d, 0},
               {embed_norm && bias, T_EMBED_NORM, ".bias", d, 0},
               {wide != d, T_PROJECT_IN, ".weight", d, wide},
               {wide != d, T_PROJECT_OUT, ".weight", wide, d},
               {!c->no_final_norm && !c->norm_plain, T_FINAL_NORM, ".weight", d, 0},
               {!c->no_final_norm && bias, T_FINAL_NORM, ".bias", d, 0},
               {!c->tied, T_HEAD, ".weight", c->vocab, wide}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (!all[i].use) continue;
        TensorSource s = layout_whole(m, all[i].slot, 0, 0, all[i].suffix, all[i].rows, all[i].cols);
        Linear head = layout_head(m);
        bool packed = all[i].slot == T_HEAD && checkpoint_is_packed(m, &head);
        if (!(packed ? checkpoint_check(m, &head, e) : weights_check(&m->weights, &s, e))) return false;
    }
    return true;
}

/* 与前向无关的张量：旋转频率、因果掩码、共享时多存的头、多 token 预测的层、视觉塔。 */
static bool ignorable(const Model *m, const char *name) {
    static const char *const ENDS[] = {".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias",
                                       ".attention.bias", ".attention.masked_bias",
                                       ".attention.rotary_emb.inv_freq"};
    static const char *const STARTS[] = {"vision_tower.", "multi_modal_projector.", "model.vision_tower.",
                                         "model.multi_modal_projector.", "rope_freqs.", "rope_factors_",
                                         "v.", "mm."};
    size_t n = strlen(name);
    for (size_t i = 0; i < sizeof ENDS / sizeof *ENDS; i++)
        if (n > strlen(ENDS[i]) && strcmp(name + n - strlen(ENDS[i]), ENDS[i]) == 0) return true;
    for (size_t i = 0; i < sizeof STARTS / sizeof *STARTS; i++)
        if (strncmp(name, STARTS[i], strlen(STARTS[i])) == 0) return true;
    char next[192];
    snprintf(next, sizeof next, "model.layers.%lld.", (long long)m->config.n_layers);
    if (m->config.arch->mla && strncmp(name, next, strlen(next)) == 0) return true;
    return m->config.tied && (strstr(name, "lm_head.weight") || strcmp(name, "output.weight") == 0 ||
                              strcmp(name, "embed_out.weight") == 0);
}

bool layout_check_rest(const Model *m, Err *e) {
    const WeightStore *w = &m->weights;
    for (size_t i = 0; i < w->n_tensors; i++)
        if (!w->used[i] && !ignorable(m, w->sorted[i]->name))
            return err_set(e, ERR_UNSUPPORTED,
                           "%s: 家族 %s 用不到张量 '%s'：可能是认错了家族，或 config.json 与权重不配套", w->path,
                           m->config.arch->name, w->sorted[i]->name);
    return true;
}
