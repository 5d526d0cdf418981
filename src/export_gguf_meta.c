/* export_gguf_meta — GGUF 的超参数，以及 llama.cpp 的各架构放得下什么
 * LIMITS 一行一个架构，依 llama.cpp 的 src/models；写好的元数据再由读的那一套（arch_gguf.c）读一遍，与原来的逐项相同才写文件：
 * 元数据说不出的设置（别的激活函数、系数、旋转……）就在这里拒绝。 */
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "export_gguf.h"
#include "model/checkpoint.h"
#include "model/layout.h"

/* 偏置：可以有、必须有；头：不能有自己的、必须有；head_dim 可与 hidden/heads 不同；整头旋转；滑动窗口；llama3、longrope 的旋转；
 * 专家须每层都有；每头各有权重的 q、k 归一化只在不少于 64 层时；键值头须与查询头一样多。 */
enum {
    QKV = 1, QKV_MUST = 2, O = 4, O_MUST = 8, MLP = 16, MLP_MUST = 32, HEAD_NEVER = 64, HEAD_MUST = 128, OWN_DIM = 256,
    WHOLE_ROPE = 512, WINDOWS = 1024, LLAMA3 = 2048, LONGROPE = 4096, NORM_AT_64 = 8192, SAME_HEADS = 16384,
    BIASES = QKV | O | MLP, MUST_BIASES = QKV_MUST | O_MUST | MLP_MUST
};

static const struct {
    const char *arch;
    unsigned can;
} LIMITS[] = {{"llama", BIASES | OWN_DIM | WHOLE_ROPE | LLAMA3 | LONGROPE},
              {"qwen2", QKV_MUST},
              {"qwen3", OWN_DIM},
              {"gemma", OWN_DIM | HEAD_NEVER},
              {"gemma2", OWN_DIM | HEAD_NEVER | WINDOWS},
              {"gemma3", OWN_DIM | WINDOWS},
              {"phi3", LONGROPE},
              {"gpt2", MUST_BIASES},
              {"gptneox", MUST_BIASES | HEAD_MUST},
              {"bloom", MUST_BIASES},
              {"falcon", WHOLE_ROPE},
              {"qwen3moe", OWN_DIM},
              {"olmoe", HEAD_MUST | SAME_HEADS},
              {"olmo2", HEAD_MUST},
              {"starcoder2", MUST_BIASES},
              {"stablelm", QKV | HEAD_MUST},
              {"granite", BIASES | OWN_DIM | LLAMA3 | LONGROPE},
              {"command-r", HEAD_NEVER | NORM_AT_64},
              {"cohere2", HEAD_NEVER | WINDOWS},
              {"glm4", QKV | OWN_DIM}};

static bool find_limits(const ModelConfig *c, unsigned *can) {
    for (size_t i = 0; c->arch->gguf && i < sizeof LIMITS / sizeof *LIMITS; i++)
        if (strcmp(LIMITS[i].arch, c->arch->gguf) == 0) {
            *can = LIMITS[i].can;
            return true;
        }
    return false;
}

static bool can(const ModelConfig *c, unsigned what) {
    unsigned all = 0;
    return find_limits(c, &all) && (all & what);
}

bool gguf_needs_head(const ModelConfig *c) {
    return can(c, HEAD_MUST);
}

static bool each_layer_has_experts(const ModelConfig *c) {
    for (int64_t i = 0; i < c->n_layers; i++)
        if (!arch_has_experts(c, i)) return false;
    return true;
}

bool gguf_check_family(const Model *m, Err *e) {
    const ModelConfig *c = &m->config;
    const RopeConfig *r = &c->rope;
    unsigned all = 0;
    if (!find_limits(c, &all))
        return err_set(e, ERR_UNSUPPORTED, "%s: 家族 %s 还不能写成 GGUF（各家族见 docs/export.md）", m->weights.path, c->arch->name);
    bool plain_rope = r->kind == ROPE_DEFAULT || r->kind == ROPE_LINEAR || r->kind == ROPE_YARN || c->position != POS_ROPE;
    bool per_head = c->qk_norm == QK_PER_HEAD;
    Linear head = layout_head(m);
    const struct {
        bool bad;
        const char *what;
    } checks[] = {
        {c->q_bias && !(all & (QKV | QKV_MUST)), "q、k、v 的偏置"},
        {!c->q_bias && (all & QKV_MUST), "没有偏置的 q、k、v"},
        {c->o_bias && !(all & (O | O_MUST)), "注意力输出的偏置"},
        {!c->o_bias && (all & O_MUST), "没有偏置的注意力输出"},
        {c->mlp_bias && !(all & (MLP | MLP_MUST)), "MLP 的偏置"},
        {!c->mlp_bias && (all & MLP_MUST), "没有偏置的 MLP"},
        {!c->tied && (all & HEAD_NEVER), "不与词嵌入共享的 lm_head"},
        {c->n_heads * c->head_dim != c->hidden && !(all & OWN_DIM), "与 hidden/heads 不同的 head_dim"},
        {r->rotary_dim != c->head_dim && c->position == POS_ROPE && (all & WHOLE_ROPE), "只旋转一部分"},
        {!plain_rope && !(r->kind == ROPE_LLAMA3 && (all & LLAMA3)) && !(r->kind == ROPE_LONGROPE && (all & LONGROPE)),
         "这种旋转位置（rope_scaling）"},
        {c->n_experts > 0 && !each_layer_has_experts(c), "只有几层有专家"},
        {(all & SAME_HEADS) && c->n_kv_heads != c->n_heads, "比查询头少的键值头"},
        {(all & NORM_AT_64) && per_head != (c->n_layers >= 64), "这个层数的 q、k 归一化（llama.cpp 按有没有 64 层认）"},
        {c->arch->norm_bias && c->norm_plain, "没有权重的归一化"},
        {m->head_int8, "head_quant=int8"},
        {!c->tied && checkpoint_is_packed(m, &head), "量化过的 lm_head"}};
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++)
        if (checks[i].bad)
            return err_set(e, ERR_UNSUPPORTED, "%s: llama.cpp 的 %s 不支持「%s」，写不成 GGUF", m->weights.path, c->arch->gguf,
                           checks[i].what);
    return true;
}

/* ---- 写 ---- */

static bool any_window(const ModelConfig *c) {
    for (int64_t i = 0; i < c->n_layers; i++)
        if (arch_window(c, i)) return true;
    return false;
}

/* llama.cpp 里这个架构没有窗口的，只在窗口之内相同：上下文就写到窗口。 */
static int64_t context_length(const ModelConfig *c) {
    bool cut = any_window(c) && !can(c, WINDOWS) && c->sliding_window < c->max_position;
    return cut ? c->sliding_window : c->max_position;
}

static void put_int(GgufWriter *w, const ModelConfig *c, const char *suffix, int64_t v) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", c->arch->gguf, suffix);
    gguf_put_u32(w, key, (uint32_t)v);
}
static void put_num(GgufWriter *w, const ModelConfig *c, const char *suffix, double v) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", c->arch->gguf, suffix);
    gguf_put_f32(w, key, (float)v);
}

static void put_sizes(GgufWriter *w, const ModelConfig *c) {
    const struct {
        bool use;
        const char *key;
        int64_t v;
    } ints[] = {{true, "block_count", c->n_layers}, {true, "context_length", context_length(c)},
                {true, "embedding_length", c->hidden}, {true, "feed_forward_length", c->intermediate},
                {true, "attention.head_count", c->n_heads}, {true, "attention.head_count_kv", c->n_kv_heads},
                {true, "attention.key_length", c->head_dim}, {true, "attention.value_length", c->head_dim},
                {true, "vocab_size", c->vocab}, {c->position == POS_ROPE, "rope.dimension_count", c->rope.rotary_dim},
                {c->n_experts > 0, "expert_count", c->n_experts}, {c->n_experts > 0, "expert_used_count", c->top_k},
                {c->n_experts > 0, "expert_feed_forward_length", c->expert_ff}};
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++)
        if (ints[i].use) put_int(w, c, ints[i].key, ints[i].v);
}

static void put_windows(GgufWriter *w, const ModelConfig *c) {
    int32_t each[ARCH_MAX_LAYERS];
    char key[96];
    if (!can(c, WINDOWS)) return;
    put_int(w, c, "attention.sliding_window", any_window(c) ? c->sliding_window : 0);
    if (!any_window(c)) return;
    for (int64_t i = 0; i < c->n_layers; i++) each[i] = arch_window(c, i) > 0;
    snprintf(key, sizeof key, "%s.attention.sliding_window_pattern", c->arch->gguf);
    gguf_put_i32s(w, key, each, (size_t)c->n_layers);
    if (c->arch->local_rope) put_num(w, c, "rope.freq_base_swa", c->local_rope.theta);
}

static void put_rope(GgufWriter *w, const ModelConfig *c) {
    static const char *const KINDS[] = {[ROPE_LINEAR] = "linear", [ROPE_YARN] = "yarn", [ROPE_LONGROPE] = "longrope"};
    const RopeConfig *r = &c->rope;
    char key[96];
    if (c->position != POS_ROPE) return;
    put_num(w, c, "rope.freq_base", r->theta);
    if (r->kind != ROPE_LINEAR && r->kind != ROPE_YARN && r->kind != ROPE_LONGROPE) return;
    snprintf(key, sizeof key, "%s.rope.scaling.type", c->arch->gguf);
    gguf_put_string(w, key, KINDS[r->kind], strlen(KINDS[r->kind]));
    if (r->kind != ROPE_LONGROPE) put_num(w, c, "rope.scaling.factor", r->factor);
    if (r->kind != ROPE_LINEAR) put_int(w, c, "rope.scaling.original_context_length", r->original_max_position);
    if (r->kind == ROPE_LONGROPE) put_num(w, c, "rope.scaling.attn_factor", r->attention_factor);
}

/* 词嵌入、注意力、残差、logits 的系数与软截断：家族要的才写（granite、cohere、gemma）。 */
static void put_scales(GgufWriter *w, const ModelConfig *c) {
    bool granite = strcmp(c->arch->name, "granite") == 0, cohere = strncmp(c->arch->name, "cohere", 6) == 0;
    bool gemma2 = strcmp(c->arch->name, "gemma2") == 0;
    if (granite) {
        put_num(w, c, "attention.scale", c->attn_scale);
        put_num(w, c, "embedding_scale", c->embed_scale);
        put_num(w, c, "residual_scale", c->residual_scale);
        put_num(w, c, "logit_scale", 1 / c->logit_scale);
    }
    if (cohere) put_num(w, c, "logit_scale", c->logit_scale);
    if (gemma2) put_num(w, c, "attn_logit_softcapping", c->attn_softcap);
    if (gemma2 || c->logit_softcap > 0) put_num(w, c, "final_logit_softcapping", c->logit_softcap);
}

void gguf_put_model(GgufWriter *w, const ModelConfig *c, const char *name) {
    char key[96];
    gguf_put_string(w, "general.architecture", c->arch->gguf, strlen(c->arch->gguf));
    gguf_put_string(w, "general.name", name, strlen(name));
    gguf_put_u32(w, "general.quantization_version", 2);
    put_sizes(w, c);
    put_num(w, c, c->arch->layer_norm ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon", c->norm_eps);
    put_rope(w, c);
    put_windows(w, c);
    put_scales(w, c);
    if (!c->arch->parallel || strcmp(c->arch->parallel, ALWAYS) == 0) return;
    snprintf(key, sizeof key, "%s.use_parallel_residual", c->arch->gguf);
    gguf_put_bool(w, key, c->parallel);
}

/* ---- 读回来 ---- */

/* 读得回来的设置。 */
typedef enum { INT64, FLAG, ENUM, NUMBER } FieldKind;
typedef struct Field {
    const char *name;
    size_t at;
    FieldKind kind;
} Field;
#define FIELD(name, kind) {#name, offsetof(ModelConfig, name), kind}

static const Field FIELDS[] = {
    FIELD(n_layers, INT64), FIELD(hidden, INT64), FIELD(intermediate, INT64), FIELD(n_heads, INT64), FIELD(n_kv_heads, INT64),
    FIELD(head_dim, INT64), FIELD(vocab, INT64), FIELD(embed_dim, INT64), FIELD(norm_eps, NUMBER), FIELD(q_bias, FLAG),
    FIELD(o_bias, FLAG), FIELD(mlp_bias, FLAG), FIELD(norm_plain, FLAG), FIELD(norm_plus_one, FLAG), FIELD(parallel, FLAG),
    FIELD(shared_norm, FLAG), FIELD(no_final_norm, FLAG), FIELD(residual_from_norm, FLAG), FIELD(form, ENUM),
    FIELD(qk_norm, ENUM), FIELD(activation, ENUM), FIELD(gated, FLAG), FIELD(position, ENUM), FIELD(attn_scale, NUMBER),
    FIELD(embed_scale, NUMBER), FIELD(residual_scale, NUMBER), FIELD(logit_scale, NUMBER), FIELD(attn_softcap, NUMBER),
    FIELD(logit_softcap, NUMBER), FIELD(attn_scale_by_layer, FLAG), FIELD(n_experts, INT64), FIELD(top_k, INT64),
    FIELD(expert_ff, INT64), FIELD(shared_ff, INT64), FIELD(norm_topk, FLAG), FIELD(routed_scale, NUMBER)};
static const Field ROPE_FIELDS[] = { /* 旋转的才看 */
    FIELD(rope.kind, ENUM), FIELD(rope.theta, NUMBER), FIELD(rope.rotary_dim, INT64), FIELD(rope.pairs, FLAG)};
static const Field LOCAL_FIELDS[] = { /* 有窗口的层用自己的旋转时 */
    FIELD(local_rope.kind, ENUM), FIELD(local_rope.theta, NUMBER), FIELD(local_rope.rotary_dim, INT64)};
static const Field SCALING_FIELDS[] = { /* 有缩放的旋转才看 */
    FIELD(rope.factor, NUMBER), FIELD(rope.attention_factor, NUMBER)};
static const Field STRETCH_FIELDS[] = { /* yarn、longrope */
    FIELD(rope.original_max_position, INT64), FIELD(rope.beta_fast, NUMBER), FIELD(rope.beta_slow, NUMBER),
    FIELD(rope.truncate, FLAG)};

static double value(const ModelConfig *c, const Field *f) {
    const char *at = (const char *)c + f->at;
    switch (f->kind) {
    case INT64: return (double)*(const int64_t *)(const void *)at;
    case FLAG: return *(const bool *)at;
    case ENUM: return *(const int *)(const void *)at;
    default: return *(const double *)(const void *)at;
    }
}

/* 第一个不同的（f32 存的实数允许舍入一次）；没有为 NULL。 */
static const char *differs(const ModelConfig *a, const ModelConfig *b, const Field *f, size_t n) {
    for (size_t i = 0; i < n; i++) {
        double x = value(a, &f[i]), y = value(b, &f[i]);
        if (fabs(x - y) > 1e-6 * fabs(x)) return f[i].name;
    }
    return NULL;
}

static const char *compare(const ModelConfig *c, const ModelConfig *back) {
    bool rope = c->position == POS_ROPE, scaled = rope && c->rope.kind != ROPE_DEFAULT && c->rope.kind != ROPE_LLAMA3;
    bool local = can(c, WINDOWS) && c->arch->local_rope && any_window(c);
    ModelConfig want = *c;
    if (want.rope.kind == ROPE_LLAMA3) want.rope.kind = ROPE_DEFAULT; /* 在 rope_freqs 里 */
    const struct {
        bool use;
        const Field *f;
        size_t n;
    } sets[] = {{true, FIELDS, sizeof FIELDS / sizeof *FIELDS},
                {rope, ROPE_FIELDS, sizeof ROPE_FIELDS / sizeof *ROPE_FIELDS},
                {local, LOCAL_FIELDS, sizeof LOCAL_FIELDS / sizeof *LOCAL_FIELDS},
                {scaled && c->rope.kind != ROPE_LONGROPE, SCALING_FIELDS, 1},
                {scaled, SCALING_FIELDS + 1, 1},
                {scaled && c->rope.kind != ROPE_LINEAR, STRETCH_FIELDS, sizeof STRETCH_FIELDS / sizeof *STRETCH_FIELDS}};
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        const char *name = sets[i].use ? differs(&want, back, sets[i].f, sets[i].n) : NULL;
        if (name) return name;
    }
    int mask = LAYER_EXPERTS | (can(c, WINDOWS) ? LAYER_WINDOW | LAYER_LOCAL_ROPE | LAYER_NO_ROPE : 0);
    for (int64_t i = 0; i < c->n_layers; i++) {
        if ((c->layer[i] ^ back->layer[i]) & mask) return "layer_types";
        if (can(c, WINDOWS) && arch_window(c, i) != arch_window(back, i)) return "sliding_window";
    }
    return NULL;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const FileTensor *)a)->name, ((const FileTensor *)b)->name);
}

bool gguf_check_reread(const GgufWriter *w, const GgufTensor *t, size_t n, const Model *m, Err *e) {
    Str blob = {0};
    Gguf g = {0};
    Arena a = {0};
    ModelConfig *back = ARENA_NEW(&a, ModelConfig, e);
    FileTensor *list = ARENA_ARRAY(&a, FileTensor, n, e);
    bool ok = back && list && gguf_header(w, NULL, 0, &blob, e) &&
              gguf_parse(&g, m->weights.path, (const uint8_t *)blob.data, blob.len, e);
    for (size_t i = 0; ok && i < n; i++) {
        list[i] = (FileTensor){.name = t[i].name, .dtype = t[i].dtype, .n_dims = t[i].n_dims, .bytes = t[i].bytes};
        memcpy(list[i].shape, t[i].shape, sizeof t[i].shape);
    }
    if (ok) {
        qsort(list, n, sizeof *list, by_name);
        g.file.tensors = list;
        g.file.n_tensors = n;
        ok = arch_from_gguf(back, &g, e);
    }
    const char *name = ok ? compare(&m->config, back) : NULL;
    if (name)
        ok = err_set(e, ERR_UNSUPPORTED, "%s: GGUF（%s）表示不了这个模型的 %s，写不成", m->weights.path, m->config.arch->gguf, name);
    if (ok && context_length(&m->config) < m->config.max_position)
        log_line(LOG_WARN, "llama.cpp 的 %s 没有滑动窗口：上下文写成窗口的 %lld（此内完全相同）", m->config.arch->gguf,
                 (long long)m->config.sliding_window);
    gguf_close(&g);
    str_free(&blob);
    arena_free(&a);
    return ok;
}
