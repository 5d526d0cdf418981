/* arch_gguf — 由 GGUF 的元数据读出超参数
 * 键名依 GGUF 规范与 llama.cpp 的约定（"{架构}.{后缀}"）；偏置、q/k 归一化之类由文件里有没有那个张量决定。
 * 打开之后还要查每个张量的形状、有没有用不上的张量，所以认错的配置不会悄悄通过。 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/arch.h"

#define MAX_DIM ((int64_t)1 << 20)

typedef struct Meta {
    const Gguf *g;
    const char *arch;
    Err *e;
} Meta;

static const char *key_of(const Meta *m, const char *suffix, char *buf, size_t cap) {
    snprintf(buf, cap, "%s.%s", m->arch, suffix);
    return buf;
}
static bool get_int(const Meta *m, const char *suffix, bool required, int64_t hi, int64_t *out) {
    char key[128];
    return gguf_get_int(m->g, key_of(m, suffix, key, sizeof key), required, 0, hi, out, m->e);
}
static bool get_num(const Meta *m, const char *suffix, double *out) {
    char key[128];
    return gguf_get_num(m->g, key_of(m, suffix, key, sizeof key), false, out, m->e);
}
static const GgufValue *find(const Meta *m, const char *suffix) {
    char key[128];
    return gguf_find(m->g, key_of(m, suffix, key, sizeof key));
}
static bool has(const Meta *m, const char *tensor) {
    return tensorfile_find(&m->g->file, tensor) != NULL;
}

static bool read_sizes(const Meta *m, ModelConfig *c) {
    const char *path = m->g->file.path;
    const FileTensor *embed = tensorfile_find(&m->g->file, "token_embd.weight");
    if (!embed || embed->n_dims != 2)
        return err_set(m->e, ERR_MISSING, "%s: 缺少词嵌入 token_embd.weight", path);
    if (!get_int(m, "block_count", true, ARCH_MAX_LAYERS, &c->n_layers) ||
        !get_int(m, "embedding_length", true, MAX_DIM, &c->hidden) ||
        !get_int(m, "feed_forward_length", true, MAX_DIM, &c->intermediate) ||
        !get_int(m, "attention.head_count", true, MAX_DIM, &c->n_heads))
        return false;
    if (c->n_layers < 1 || c->hidden < 1 || c->intermediate < 1 || c->n_heads < 1)
        return err_set(m->e, ERR_FORMAT, "%s: 层数、宽度与头数须为正", path);
    c->n_kv_heads = c->n_heads;
    c->head_dim = c->hidden / c->n_heads;
    c->max_position = 2048;
    if (!get_int(m, "attention.head_count_kv", false, c->n_heads, &c->n_kv_heads) ||
        !get_int(m, "attention.key_length", false, MAX_DIM, &c->head_dim) ||
        !get_int(m, "context_length", false, (int64_t)1 << 40, &c->max_position))
        return false;
    if (c->n_kv_heads < 1 || c->head_dim < 1 || c->max_position < 1)
        return err_set(m->e, ERR_FORMAT, "%s: head_dim、键值头数与 context_length 须为正（hidden 不可小于头数）",
                       path);
    int64_t value = c->head_dim;
    if (!get_int(m, "attention.value_length", false, MAX_DIM, &value)) return false;
    if (value != c->head_dim)
        return err_set(m->e, ERR_UNSUPPORTED, "%s: 值的头宽 %lld 与键的 %lld 不同的 GGUF 不支持", path,
                       (long long)value, (long long)c->head_dim);
    c->vocab = embed->shape[0];
    c->embed_dim = c->hidden;
    c->tied = !has(m, "output.weight");
    return get_num(m, c->arch->layer_norm ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon",
                   &c->norm_eps);
}

static bool read_rope(const Meta *m, ModelConfig *c) {
    RopeConfig *r = &c->rope;
    r->theta = 10000;
    r->factor = r->attention_factor = 1;
    r->rotary_dim = c->head_dim;
    r->original_max_position = c->max_position;
    r->beta_fast = 32;
    r->beta_slow = 1;
    r->truncate = true;
    const GgufValue *type = find(m, "rope.scaling.type");
    static const struct {
        const char *name;
        RopeKind kind;
    } KINDS[] = {{"none", ROPE_DEFAULT}, {"linear", ROPE_LINEAR}, {"yarn", ROPE_YARN}, {"longrope", ROPE_LONGROPE}};
    bool known = !type || type->type != GGUF_STRING;
    for (int i = 0; !known && i < 4; i++)
        if (type->s.len == strlen(KINDS[i].name) && memcmp(type->s.data, KINDS[i].name, type->s.len) == 0) {
            r->kind = KINDS[i].kind;
            known = true;
        }
    if (!known)
        return err_set(m->e, ERR_UNSUPPORTED, "%s: 不支持的 rope 类型 '%.*s'（支持 none、linear、yarn、longrope）",
                       m->g->file.path, (int)(type->s.len < 40 ? type->s.len : 40), type->s.data);
    if (has(m, "rope_factors_long.weight")) r->kind = ROPE_LONGROPE;
    double attention = 0;
    if (!get_num(m, "rope.freq_base", &r->theta) || !get_num(m, "rope.scaling.factor", &r->factor) ||
        !get_int(m, "rope.dimension_count", false, MAX_DIM, &r->rotary_dim) ||
        !get_int(m, "rope.scaling.original_context_length", false, (int64_t)1 << 40, &r->original_max_position) ||
        !get_num(m, "rope.scaling.attn_factor", &attention))
        return false;
    if (r->kind == ROPE_YARN) r->attention_factor = r->factor <= 1 ? 1 : 0.1 * log(r->factor) + 1;
    double ratio = (double)c->max_position / (double)(r->original_max_position ? r->original_max_position : 1);
    if (r->kind == ROPE_LONGROPE && ratio > 1)
        r->attention_factor = sqrt(1 + log(ratio) / log((double)r->original_max_position));
    if (attention > 0) r->attention_factor = attention;
    c->local_rope = *r;
    c->local_rope.kind = ROPE_DEFAULT;
    c->local_rope.factor = 1;
    c->local_rope.theta = 10000;
    return !c->arch->local_rope || get_num(m, "rope.freq_base_swa", &c->local_rope.theta);
}

static bool read_windows(const Meta *m, ModelConfig *c) {
    const ArchSpec *s = c->arch;
    int64_t every = s->window_pattern;
    if (s->window == WINDOW_NONE || s->window == WINDOW_SWITCH) return true;
    if (!get_int(m, "attention.sliding_window", false, (int64_t)1 << 40, &c->sliding_window)) return false;
    const GgufValue *list = find(m, "attention.sliding_window_pattern");
    bool each = list && list->type == GGUF_ARRAY && (int64_t)list->n >= c->n_layers && list->items;
    if (list && !each && list->type != GGUF_ARRAY) every = list->i;
    for (int64_t i = 0; i < c->n_layers && c->sliding_window; i++) {
        bool window = each ? gguf_item_int(list, (size_t)i) != 0 : every < 1 || (i + 1) % every != 0;
        if (!window) continue;
        c->layer[i] |= LAYER_WINDOW;
        if (s->local_rope) c->layer[i] |= LAYER_LOCAL_ROPE;
    }
    for (int64_t i = 0; s->nope_full && i < c->n_layers; i++)
        if (!(c->layer[i] & LAYER_WINDOW)) c->layer[i] |= LAYER_NO_ROPE;
    return true;
}

static bool read_experts(const Meta *m, ModelConfig *c) {
    int64_t n = 0;
    if (c->arch->router == ROUTER_NONE) return true;
    if (!get_int(m, "expert_count", true, ARCH_MAX_EXPERTS, &n) ||
        !get_int(m, "expert_used_count", true, n, &c->top_k))
        return false;
    c->n_experts = n;
    c->expert_ff = c->intermediate;
    /* llama.cpp 的 qwen3moe、mixtral 都归一化选中的系数，olmoe 不 */
    c->norm_topk = strcmp(c->arch->name, "olmoe") != 0;
    if (n < 1 || c->top_k < 1)
        return err_set(m->e, ERR_FORMAT, "%s: expert_count 与 expert_used_count 须为正", m->g->file.path);
    for (int64_t i = 0; i < c->n_layers; i++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%lld.ffn_gate_inp.weight", (long long)i);
        if (has(m, name)) c->layer[i] |= LAYER_EXPERTS;
    }
    return get_int(m, "expert_feed_forward_length", false, MAX_DIM, &c->expert_ff);
}

static bool read_special(const Meta *m, ModelConfig *c) {
    double scale = 0, query = 0;
    c->attn_scale = 1 / sqrt((double)c->head_dim);
    if (strcmp(c->arch->name, "gemma2") == 0) c->attn_softcap = 50, c->logit_softcap = 30; /* llama.cpp 的默认值 */
    if (c->arch->embed_scale) c->embed_scale = (double)(float)sqrt((double)c->hidden);
    if (!get_num(m, "attn_logit_softcapping", &c->attn_softcap) ||
        !get_num(m, "final_logit_softcapping", &c->logit_softcap) ||
        !get_num(m, "attention.scale", &query) || !get_num(m, "logit_scale", &scale))
        return false;
    /* gemma 的 27B：query_pre_attn_scalar = hidden/heads，GGUF 里没有记 */
    bool big = (strcmp(c->arch->name, "gemma2") == 0 && c->n_layers == 46) ||
               (strcmp(c->arch->name, "gemma3_text") == 0 && c->n_layers == 62);
    if (big) c->attn_scale = 1 / sqrt((double)c->hidden / (double)c->n_heads);
    if (query > 0) c->attn_scale = query;
    if (strcmp(c->arch->name, "granite") == 0)
        return get_num(m, "embedding_scale", &c->embed_scale) &&
               get_num(m, "residual_scale", &c->residual_scale) && (c->logit_scale = scale > 0 ? 1 / scale : 1) > 0;
    if (scale > 0) c->logit_scale = scale;
    return true;
}

/* 由张量的有无定下的。 */
static void read_presence(const Meta *m, ModelConfig *c) {
    c->q_bias = has(m, "blk.0.attn_q.bias") || has(m, "blk.0.attn_qkv.bias");
    c->o_bias = has(m, "blk.0.attn_output.bias");
    c->mlp_bias = has(m, "blk.0.ffn_up.bias");
    if (c->arch->parallel) {
        bool second = has(m, "blk.0.ffn_norm.weight") || has(m, "blk.0.attn_norm_2.weight");
        if (c->arch->shared_norm) c->parallel = !has(m, "blk.0.ffn_norm.weight");
        c->shared_norm = c->parallel && c->arch->shared_norm && !second;
        const GgufValue *v = find(m, "use_parallel_residual");
        if (v) c->parallel = v->i != 0;
    }
    if (!has(m, "blk.0.attn_q_norm.weight")) c->qk_norm = QK_NONE;
    if (!has(m, "blk.0.attn_norm.weight") && c->form != FORM_BRANCH) c->norm_plain = true;
}

bool arch_from_gguf(ModelConfig *c, const Gguf *g, Err *e) {
    const char *path = g->file.path;
    const GgufValue *a = gguf_find(g, "general.architecture");
    if (!a || a->type != GGUF_STRING)
        return err_set(e, ERR_FORMAT, "%s: 缺少 general.architecture", path);
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)(a->s.len < 60 ? a->s.len : 60), a->s.data);
    Meta m = {g, name, e};
    const ArchSpec *spec = arch_find(name, true);
    /* mixtral 在 GGUF 里也叫 llama */
    if (spec && strcmp(name, "llama") == 0 && find(&m, "expert_count") && find(&m, "expert_count")->i > 0)
        spec = arch_find("mixtral", false);
    if (!spec) return arch_unsupported(path, name, e);
    arch_defaults(c, spec);
    if (!read_sizes(&m, c)) return false;
    read_presence(&m, c);
    if (!read_special(&m, c) || !read_rope(&m, c) || !read_windows(&m, c) || !read_experts(&m, c))
        return false;
    if (spec->qkv_bias && strcmp(spec->qkv_bias, ALWAYS) == 0 && !c->q_bias)
        return err_set(e, ERR_MISSING, "%s: %s 应有 q、k、v 偏置，却缺少 blk.0.attn_q.bias", path, name);
    return arch_check(c, path, e);
}
