/* arch_rope — config.json 里旋转位置编码的设置，以及各字段之间的一致性
 * 旧的写法是 rope_theta + rope_scaling + partial_rotary_factor，新的（transformers 5）是 rope_parameters，
 * 其中可以再按 layer_types 分成几份。依据 transformers 的 modeling_rope_utils.py。 */
#include <math.h>
#include <string.h>

#include "model/arch.h"

/* 逐频率的因子（longrope）。 */
static bool read_factors(const json_t *o, const char *name, const char *key, int64_t half,
                         float *out, Err *e) {
    const json_t *list = json_object_get(o, key);
    if (!json_is_array(list) || (int64_t)json_array_size(list) != half || half > ROPE_MAX_FACTORS)
        return err_set(e, ERR_FORMAT, "%s: rope 的 '%s' 须是 %lld 个数的列表（至多 %d）", name, key,
                       (long long)half, ROPE_MAX_FACTORS);
    for (int64_t i = 0; i < half; i++) {
        out[i] = (float)json_number_value(json_array_get(list, (size_t)i));
        if (!(out[i] > 0) || !isfinite(out[i]))
            return err_set(e, ERR_FORMAT, "%s: rope 的 '%s' 第 %lld 个须是正数", name, key,
                           (long long)i);
    }
    return true;
}

static bool read_kind(const json_t *o, const char *name, RopeKind *kind, Err *e) {
    static const char *const NAMES[] = {"default", "linear", "llama3", "dynamic", "yarn", "longrope"};
    const char *type = NULL;
    if (!json_get_str_or(o, name, "rope_type", NULL, &type, e)) return false;
    if (!type && !json_get_str_or(o, name, "type", "default", &type, e)) return false;
    if (strcmp(type, "su") == 0) type = "longrope"; /* phi3 早期的叫法 */
    for (int i = 0; i < 6; i++)
        if (strcmp(type, NAMES[i]) == 0) {
            *kind = (RopeKind)i;
            return true;
        }
    return err_set(e, ERR_UNSUPPORTED,
                   "%s: 不支持的 rope 类型 '%s'（支持 default、linear、llama3、dynamic、yarn、longrope）",
                   name, type);
}

static double yarn_scale(double factor, double m) {
    return factor <= 1 ? 1 : 0.1 * m * log(factor) + 1;
}

/* yarn 与 longrope 的 attention_factor；没有 factor 时取两个长度之比。 */
static bool read_attention_factor(ModelConfig *c, RopeConfig *r, const json_t *o, const char *name,
                                  bool has_factor, Err *e) {
    double mscale, all, given;
    if (!json_get_num_or(o, name, "mscale", 0, &mscale, e) ||
        !json_get_num_or(o, name, "mscale_all_dim", 0, &all, e) ||
        !json_get_num_or(o, name, "attention_factor", 0, &given, e))
        return false;
    if (!has_factor) r->factor = (double)c->max_position / (double)r->original_max_position;
    if (r->kind == ROPE_YARN)
        r->attention_factor = mscale != 0 && all != 0
                                  ? yarn_scale(r->factor, mscale) / yarn_scale(r->factor, all)
                                  : yarn_scale(r->factor, 1);
    else
        r->attention_factor = r->factor <= 1 ? 1
                                             : sqrt(1 + log(r->factor) /
                                                            log((double)r->original_max_position));
    if (given != 0) r->attention_factor = given;
    return true;
}

/* 一份设置。root 里的 original_max_position_embeddings 优先（phi3）。 */
static bool read_one(ModelConfig *c, RopeConfig *r, const json_t *o, const json_t *root,
                     const char *name, Err *e) {
    int64_t top;
    if (!read_kind(o, name, &r->kind, e) ||
        !json_get_num_or(o, name, "rope_theta", r->theta, &r->theta, e))
        return false;
    double partial;
    int64_t dim = c->arch->mla ? c->rope_dim : c->head_dim;
    if (!json_get_num_or(o, name, "partial_rotary_factor", -1, &partial, e)) return false;
    if (partial >= 0) r->rotary_dim = (int64_t)((double)dim * partial);
    bool has_factor = json_is_number(json_object_get(o, "factor"));
    if (!json_get_num_or(o, name, "factor", 1, &r->factor, e) ||
        !json_get_num_or(o, name, "low_freq_factor", 1, &r->low_freq_factor, e) ||
        !json_get_num_or(o, name, "high_freq_factor", 4, &r->high_freq_factor, e) ||
        !json_get_num_or(o, name, "beta_fast", 32, &r->beta_fast, e) ||
        !json_get_num_or(o, name, "beta_slow", 1, &r->beta_slow, e) ||
        !json_get_bool_or(o, name, "truncate", true, &r->truncate, e) ||
        !json_get_int_or(o, name, "original_max_position_embeddings", c->max_position, 1,
                         (int64_t)1 << 40, &r->original_max_position, e) ||
        !json_get_int_or(root, name, "original_max_position_embeddings", r->original_max_position,
                         1, (int64_t)1 << 40, &top, e))
        return false;
    r->original_max_position = top;
    if (r->beta_fast == 0) r->beta_fast = 32;
    if (r->beta_slow == 0) r->beta_slow = 1;
    if ((r->kind == ROPE_YARN || r->kind == ROPE_LONGROPE) &&
        !read_attention_factor(c, r, o, name, has_factor, e))
        return false;
    if (r->kind != ROPE_LONGROPE) return true;
    return read_factors(o, name, "short_factor", r->rotary_dim / 2, r->short_factor, e) &&
           read_factors(o, name, "long_factor", r->rotary_dim / 2, r->long_factor, e);
}

bool arch_read_rope(ModelConfig *c, const json_t *root, const char *name, Err *e) {
    RopeConfig *r = &c->rope;
    int64_t dim = c->arch->mla ? c->rope_dim : c->head_dim;
    double partial = c->arch->partial_rotary > 0 ? c->arch->partial_rotary : 1, theta = 10000;
    if (!json_get_num_or(root, name, "rope_theta", theta, &r->theta, e) ||
        !json_get_num_or(root, name, "rotary_emb_base", r->theta, &r->theta, e) ||
        !json_get_num_or(root, name, "rotary_pct", partial, &partial, e) ||
        !json_get_num_or(root, name, "partial_rotary_factor", partial, &partial, e))
        return false;
    if (strncmp(c->arch->name, "cohere", 6) == 0) partial = 1; /* CohereRotaryEmbedding 不看它 */
    r->attention_factor = r->factor = 1;
    r->rotary_dim = (int64_t)((double)dim * partial);
    c->local_rope = *r;
    if (c->arch->local_rope) {
        if (!json_is_number(json_object_get(root, "rope_theta"))) r->theta = 1000000;
        if (!json_get_num_or(root, name, "rope_local_base_freq", 10000, &c->local_rope.theta, e))
            return false;
    }
    const json_t *o = json_object_get(root, "rope_parameters");
    if (!json_is_object(o)) o = json_object_get(root, "rope_scaling");
    if (!json_is_object(o)) return true;
    const json_t *full = json_object_get(o, "full_attention");
    const json_t *sliding = json_object_get(o, "sliding_attention");
    if (!full && !sliding) {
        /* olmo3：scaling 只用在不限窗口的层；gemma3：有窗口的层用 local_rope */
        return read_one(c, r, o, root, name, e);
    }
    if (json_is_object(full) && !read_one(c, r, full, root, name, e)) return false;
    if (!json_is_object(sliding)) return true;
    for (int64_t i = 0; i < c->n_layers; i++)
        if (c->layer[i] & LAYER_WINDOW) c->layer[i] |= LAYER_LOCAL_ROPE;
    return read_one(c, &c->local_rope, sliding, root, name, e);
}

static bool check_rope(const ModelConfig *c, const RopeConfig *r, const char *name, Err *e) {
    int64_t dim = c->arch->mla ? c->rope_dim : c->head_dim;
    if (c->position != POS_ROPE) return true;
    if (r->rotary_dim % 2 || r->rotary_dim < 2 || r->rotary_dim > dim)
        return err_set(e, ERR_FORMAT, "%s: 旋转维数 %lld 须为不超过 head_dim=%lld 的正偶数", name,
                       (long long)r->rotary_dim, (long long)dim);
    if (!(r->theta > 1)) return err_set(e, ERR_FORMAT, "%s: rope_theta=%g 不合理", name, r->theta);
    if (r->kind != ROPE_DEFAULT && r->kind != ROPE_LONGROPE && !(r->factor >= 1))
        return err_set(e, ERR_FORMAT, "%s: rope 的 factor=%g 须不小于 1", name, r->factor);
    if (r->kind == ROPE_DYNAMIC && r->rotary_dim <= 2)
        return err_set(e, ERR_FORMAT, "%s: dynamic rope 的旋转维数须大于 2", name);
    if ((r->kind == ROPE_YARN || r->kind == ROPE_LONGROPE) &&
        !(r->attention_factor > 0 && isfinite(r->attention_factor) && r->original_max_position > 1))
        return err_set(e, ERR_FORMAT, "%s: rope 的 attention_factor 或 original_max_position_embeddings 不合理",
                       name);
    if (r->kind == ROPE_LLAMA3 &&
        !(r->low_freq_factor > 0 && r->high_freq_factor > r->low_freq_factor &&
          r->original_max_position > 0))
        return err_set(e, ERR_FORMAT,
                       "%s: llama3 rope 需要 0 < low_freq_factor < high_freq_factor 与正的 "
                       "original_max_position_embeddings",
                       name);
    return true;
}

static bool check_experts(const ModelConfig *c, const char *name, Err *e) {
    if (!c->n_experts) return true;
    if (c->top_k > c->n_experts)
        return err_set(e, ERR_FORMAT, "%s: 每个 token 选 %lld 个专家，多于专家数 %lld", name,
                       (long long)c->top_k, (long long)c->n_experts);
    if (c->n_group && (c->n_experts % c->n_group || c->topk_group > c->n_group ||
                       c->top_k > c->topk_group * (c->n_experts / c->n_group) ||
                       c->n_experts / c->n_group < 2))
        return err_set(e, ERR_FORMAT, "%s: 专家的分组（n_group=%lld、topk_group=%lld）与专家数 %lld 不合", name,
                       (long long)c->n_group, (long long)c->topk_group, (long long)c->n_experts);
    return true;
}

bool arch_check(const ModelConfig *c, const char *name, Err *e) {
    const double scales[] = {c->attn_scale, c->embed_scale, c->residual_scale, c->logit_scale};
    for (int i = 0; i < 4; i++)
        if (!(scales[i] > 0 && scales[i] < 1e9))
            return err_set(e, ERR_FORMAT, "%s: 注意力、词嵌入、残差或 logits 的系数 %g 不合理", name,
                           scales[i]);
    if (c->head_dim < 1) return err_set(e, ERR_FORMAT, "%s: head_dim 为 0（hidden 小于头数）", name);
    if (c->n_heads % c->n_kv_heads)
        return err_set(e, ERR_FORMAT, "%s: 注意力头数 %lld 不是键值头数 %lld 的倍数", name,
                       (long long)c->n_heads, (long long)c->n_kv_heads);
    if (!(c->norm_eps > 0 && c->norm_eps < 1))
        return err_set(e, ERR_FORMAT, "%s: 归一化的 eps=%g 不合理", name, c->norm_eps);
    if (!(c->attn_softcap >= 0 && c->logit_softcap >= 0))
        return err_set(e, ERR_FORMAT, "%s: 软截断须不小于 0", name);
    if (c->embed_dim > c->hidden)
        return err_set(e, ERR_UNSUPPORTED, "%s: word_embed_proj_dim 大于 hidden_size 的模型不支持", name);
    return check_rope(c, &c->rope, name, e) &&
           (!c->arch->local_rope || check_rope(c, &c->local_rope, name, e)) &&
           check_experts(c, name, e);
}
