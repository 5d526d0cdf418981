/* rope — 位置的表：旋转位置编码的频率与表、ALiBi 的偏置
 * 频率：θ^(-2i/d)（RoFormer §3.2.2），各种缩放依 transformers 的 modeling_rope_utils.py；表以 f32 存，与 transformers 一样
 * 由 f32 的 位置·频率 求 cos、sin。longrope 与 dynamic 的频率取决于整条时间线有多长（「规矩」，regime），换了就重造。 */
#include "model/rope.h"

#include <math.h>
#include <stdio.h>

#include "base/dtype.h"

/* llama3：波长短于 old/high 的不变，长于 old/low 的除以 factor，中间线性过渡。 */
static float llama3_scale(float inv_freq, const RopeConfig *r) {
    double old = (double)r->original_max_position, wavelen = 2 * M_PI / (double)inv_freq;
    if (wavelen > old / r->low_freq_factor) return (float)((double)inv_freq / r->factor);
    if (wavelen < old / r->high_freq_factor) return inv_freq;
    double smooth =
        (old / wavelen - r->low_freq_factor) / (r->high_freq_factor - r->low_freq_factor);
    return (float)((1 - smooth) * (double)inv_freq / r->factor + smooth * (double)inv_freq);
}

/* yarn：转 rotations 圈的是第几维。 */
static double yarn_dim(const RopeConfig *r, double rotations) {
    return (double)r->rotary_dim * log((double)r->original_max_position / (rotations * 2 * M_PI)) /
           (2 * log(r->theta));
}

/* 高频（转得快的）不变，低频除以 factor，其间线性过渡。 */
static float yarn_scale(float inv_freq, const RopeConfig *r, int64_t i) {
    double low = yarn_dim(r, r->beta_fast), high = yarn_dim(r, r->beta_slow);
    if (r->truncate) low = floor(low), high = ceil(high);
    low = fmax(low, 0);
    high = fmin(high, (double)(r->rotary_dim - 1));
    if (low == high) high += 0.001;
    float ramp = (float)fmin(fmax(((double)i - low) / (high - low), 0), 1);
    return (float)((double)inv_freq / r->factor) * ramp + inv_freq * (1 - ramp);
}

static float frequency(const RopeConfig *r, int64_t i, double theta, int64_t regime) {
    float f = (float)(1.0 / pow(theta, (double)(2 * i) / (double)r->rotary_dim));
    switch (r->kind) {
    case ROPE_LINEAR: return (float)((double)f / r->factor);
    case ROPE_LLAMA3: return llama3_scale(f, r);
    case ROPE_YARN: return yarn_scale(f, r, i);
    case ROPE_LONGROPE: return f / (regime ? r->long_factor[i] : r->short_factor[i]);
    default: return f;
    }
}

int64_t model_rope_regime(const ModelConfig *c, int64_t n) {
    const RopeConfig *r = &c->rope;
    if (r->kind == ROPE_LONGROPE) return n > r->original_max_position;
    return r->kind == ROPE_DYNAMIC && n > c->max_position ? n : 0;
}

/* dynamic NTK：时间线超过 max_position 时放大 θ。 */
static double base_of(const ModelConfig *c, const RopeConfig *r, int64_t regime) {
    if (r->kind != ROPE_DYNAMIC || !regime) return r->theta;
    double d = (double)r->rotary_dim;
    double scale = r->factor * (double)regime / (double)c->max_position - (r->factor - 1);
    return r->theta * pow(scale, d / (d - 2));
}

static void frequencies(const ModelConfig *c, const RopeConfig *r, int64_t regime, double *out) {
    double theta = base_of(c, r, regime);
    for (int64_t i = 0; i < r->rotary_dim / 2; i++) out[i] = frequency(r, i, theta, regime);
}

/* GGUF 把缩放存成每个频率的除数：llama3 一份；longrope 长短两份（arch_from_gguf 读不到，从这里补）。 */
static bool gguf_factors(Model *m, const char *name, float *out, bool *found, Err *e) {
    int64_t half = m->config.rope.rotary_dim / 2;
    *found = m->weights.is_gguf && weights_find(&m->weights, name);
    if (!*found) return true;
    TensorSource src = {.rows = half};
    snprintf(src.name, sizeof src.name, "%s", name);
    if (!weights_load(&m->weights, &src, 0, half, DT_F32, out, e)) return false;
    for (int64_t i = 0; i < half; i++)
        if (!(out[i] > 0))
            return err_set(e, ERR_FORMAT, "%s: %s[%lld]=%g 须为正", m->weights.path, name,
                           (long long)i, (double)out[i]);
    return true;
}

static void set_frequencies(Model *m, int64_t regime) {
    frequencies(&m->config, &m->config.rope, regime, m->inv_freq);
    for (int64_t i = 0; m->rope_factors && i < m->config.rope.rotary_dim / 2; i++)
        m->inv_freq[i] = (float)(m->inv_freq[i] / (double)m->rope_factors[i]);
}

bool rope_init(Model *m, Err *e) {
    RopeConfig *r = &m->config.rope;
    int64_t half = r->rotary_dim / 2;
    bool divided = false, is_short = false, is_long = false;
    if (m->config.position != POS_ROPE) return true;
    m->inv_freq = ARENA_ARRAY(&m->meta, double, half, e);
    float *factors = ARENA_ARRAY(&m->meta, float, half, e);
    if (!m->inv_freq || !factors || !gguf_factors(m, "rope_freqs.weight", factors, &divided, e))
        return false;
    if (half <= ROPE_MAX_FACTORS &&
        (!gguf_factors(m, "rope_factors_short.weight", r->short_factor, &is_short, e) ||
         !gguf_factors(m, "rope_factors_long.weight", r->long_factor, &is_long, e)))
        return false;
    if (is_short != is_long || (m->weights.is_gguf && r->kind == ROPE_LONGROPE && !is_long))
        return err_set(e, ERR_MISSING, "%s: longrope 须有 rope_factors_short 与 rope_factors_long",
                       m->weights.path);
    m->rope_factors = divided ? factors : NULL;
    set_frequencies(m, 0);
    return true;
}

/* 一套 cos、sin 的表 (cap, half)。 */
static bool build_table(Model *m, const RopeConfig *r, const double *inv_freq, int64_t cap,
                        float **cos_out, float **sin_out, Err *e) {
    int64_t half = r->rotary_dim / 2;
    float *c = ARENA_ARRAY(&m->rope_arena, float, cap * half, e);
    float *s = ARENA_ARRAY(&m->rope_arena, float, cap * half, e);
    HostView v = host_view(m->backend);
    float *ch = HOST_MAP(&v, float, c, cap * half, HOST_WRITE);
    float *sh = HOST_MAP(&v, float, s, cap * half, HOST_WRITE);
    bool ok = c && s && ch && sh, scaled = r->attention_factor != 1 && r->attention_factor != 0;
    float scale = scaled ? (float)r->attention_factor : 1;
    for (int64_t p = 0; ok && p < cap; p++)
        for (int64_t i = 0; i < half; i++) {
            float angle = (float)p * (float)inv_freq[i];
            ch[p * half + i] = (float)cos((double)angle) * scale;
            sh[p * half + i] = (float)sin((double)angle) * scale;
        }
    host_end(&v);
    *cos_out = c;
    *sin_out = s;
    return backend_check(m->backend, e) && ok;
}

/* 第 h 个头的斜率（ALiBi §3；头数不是 2 的幂时从两倍的序列里隔一个取一个）。 */
static double alibi_slope(int64_t h, int64_t n_heads) {
    int64_t power = 1;
    while (2 * power <= n_heads) power *= 2;
    if (h < power) return pow(2, -8.0 / (double)power * (double)(h + 1));
    return pow(2, -4.0 / (double)power * (double)(2 * (h - power) + 1));
}

/* 偏置 = 斜率·键的位置。falcon 以 bf16 相乘，且与分数一起乘 1/√dim。 */
static bool build_alibi(Model *m, int64_t cap, Err *e) {
    const ModelConfig *c = &m->config;
    bool bf16 = c->position == POS_ALIBI_BF16;
    m->alibi_stride = (cap + ATTN_BIAS_STEP - 1) / ATTN_BIAS_STEP * ATTN_BIAS_STEP;
    m->alibi = ARENA_ARRAY(&m->rope_arena, float, c->n_heads * m->alibi_stride, e);
    if (!m->alibi) return false;
    HostView v = host_view(m->backend);
    float *t = HOST_MAP(&v, float, m->alibi, c->n_heads * m->alibi_stride, HOST_WRITE);
    for (int64_t h = 0; t && h < c->n_heads; h++) {
        float slope = (float)alibi_slope(h, c->n_heads);
        if (bf16) slope = bf16_to_f32(f32_to_bf16(slope));
        for (int64_t j = 0; j < m->alibi_stride; j++) {
            float at = (float)j;
            if (bf16) at = bf16_to_f32(f32_to_bf16(at));
            float x = slope * at;
            t[h * m->alibi_stride + j] = bf16 ? bf16_to_f32(f32_to_bf16(x)) * (float)c->attn_scale : x;
        }
    }
    host_end(&v);
    return backend_check(m->backend, e);
}

static bool build_rope(Model *m, int64_t cap, int64_t regime, Err *e) {
    const ModelConfig *c = &m->config;
    set_frequencies(m, regime);
    if (!build_table(m, &c->rope, m->inv_freq, cap, &m->cos_table, &m->sin_table, e)) return false;
    bool local = false;
    for (int64_t i = 0; i < c->n_layers; i++) local |= (c->layer[i] & LAYER_LOCAL_ROPE) != 0;
    if (!local) return true;
    Arena tmp = {0};
    double *f = ARENA_ARRAY(&tmp, double, c->local_rope.rotary_dim / 2, e);
    if (f) frequencies(c, &c->local_rope, 0, f);
    bool ok = f && build_table(m, &c->local_rope, f, cap, &m->local_cos, &m->local_sin, e);
    arena_free(&tmp);
    return ok;
}

bool model_ensure_rope(Model *m, int64_t n, Err *e) {
    const ModelConfig *c = &m->config;
    int64_t regime = model_rope_regime(c, n), cap = m->n_rope ? 2 * m->n_rope : 512;
    if (n <= m->n_rope && regime == m->rope_regime) return true;
    if (c->position == POS_LEARNED && n > c->max_position)
        return err_set(e, ERR_UNSUPPORTED, "家族 %s 的位置是学得的，只有 %lld 个，而时间线要 %lld 个",
                       c->arch->name, (long long)c->max_position, (long long)n);
    if (n <= m->n_rope) cap = m->n_rope;
    if (cap < n) cap = n;
    arena_free(&m->rope_arena);
    m->n_rope = 0;
    if (c->position == POS_ROPE ? !build_rope(m, cap, regime, e)
                                : c->position != POS_LEARNED && !build_alibi(m, cap, e))
        return false;
    m->n_rope = cap;
    m->rope_regime = regime;
    return true;
}

bool model_rope(const Model *m, int64_t layer, const float **cos_table, const float **sin_table) {
    const ModelConfig *c = &m->config;
    if (c->position != POS_ROPE || c->layer[layer] & LAYER_NO_ROPE) return false;
    bool local = c->layer[layer] & LAYER_LOCAL_ROPE;
    *cos_table = local ? m->local_cos : m->cos_table;
    *sin_table = local ? m->local_sin : m->sin_table;
    return true;
}
