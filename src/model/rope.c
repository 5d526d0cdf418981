/* rope — 旋转位置编码的频率与表
 * 频率：θ^(-2i/d)（RoFormer §3.2.2）；llama3 的分段缩放依 transformers 的 _compute_llama3_parameters；
 * 表以 f32 存，与 transformers 一样由 f32 的 位置·频率 求 cos、sin。 */
#include <math.h>

#include "model/rope.h"

/* llama3：波长短于 old/high 的不变，长于 old/low 的除以 factor，中间线性过渡。 */
static float llama3_scale(float inv_freq, const RopeConfig *r) {
    double old = (double)r->original_max_position, wavelen = 2 * M_PI / (double)inv_freq;
    if (wavelen > old / r->low_freq_factor) return (float)((double)inv_freq / r->factor);
    if (wavelen < old / r->high_freq_factor) return inv_freq;
    double smooth =
        (old / wavelen - r->low_freq_factor) / (r->high_freq_factor - r->low_freq_factor);
    return (float)((1 - smooth) * (double)inv_freq / r->factor + smooth * (double)inv_freq);
}

bool rope_init(Model *m, Err *e) {
    const RopeConfig *r = &m->config.rope;
    int64_t half = r->rotary_dim / 2;
    m->inv_freq = ARENA_ARRAY(&m->meta, double, half, e);
    if (!m->inv_freq) return false;
    for (int64_t i = 0; i < half; i++) {
        float f = (float)(1.0 / pow(r->theta, (double)(2 * i) / (double)r->rotary_dim));
        if (r->kind == ROPE_LINEAR) f = (float)((double)f / r->factor);
        if (r->kind == ROPE_LLAMA3) f = llama3_scale(f, r);
        m->inv_freq[i] = f;
    }
    /* GGUF 把 llama3 的缩放存成每个频率的除数 */
    if (!m->weights.is_gguf || !weights_find(&m->weights, "rope_freqs.weight")) return true;
    float *factors = ARENA_ARRAY(&m->meta, float, half, e);
    if (!factors || !weights_load(&m->weights, "rope_freqs.weight", half, 0, DT_F32, factors, e))
        return false;
    for (int64_t i = 0; i < half; i++) {
        if (!(factors[i] > 0))
            return err_set(e, ERR_FORMAT, "%s: rope_freqs.weight[%lld]=%g 须为正", m->weights.path,
                           (long long)i, (double)factors[i]);
        m->inv_freq[i] = (float)(m->inv_freq[i] / (double)factors[i]);
    }
    return true;
}

bool model_ensure_rope(Model *m, int64_t n, Err *e) {
    if (n <= m->n_rope) return true;
    int64_t half = m->config.rope.rotary_dim / 2, cap = m->n_rope ? 2 * m->n_rope : 512;
    if (cap < n) cap = n;
    float *c = ARENA_ARRAY(&m->arena, float, cap * half, e);
    float *s = ARENA_ARRAY(&m->arena, float, cap * half, e);
    HostView v = host_view(m->backend);
    float *ch = HOST_MAP(&v, float, c, cap * half, HOST_WRITE);
    float *sh = HOST_MAP(&v, float, s, cap * half, HOST_WRITE);
    bool ok = c && s && ch && sh;
    for (int64_t p = 0; ok && p < cap; p++)
        for (int64_t i = 0; i < half; i++) {
            float angle = (float)p * (float)m->inv_freq[i];
            ch[p * half + i] = (float)cos((double)angle);
            sh[p * half + i] = (float)sin((double)angle);
        }
    host_end(&v);
    if (!backend_check(m->backend, e) || !ok) return false;
    m->cos_table = c;
    m->sin_table = s;
    m->n_rope = cap;
    return true;
}
