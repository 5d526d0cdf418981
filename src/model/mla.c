/* mla — 多头潜注意力（DeepSeek-V2 §2.1）：由低秩的潜向量展开 q、k、v
 * q = q_b(norm(q_a x))，[潜, 公共的 rope 键] = kv_a x，[k, v] = kv_b(norm 潜)。展开之后就是普通的多头注意力：
 * 各头按 [rope|nope] 排（旋转作用于前 rope_dim 维），值补零到 head_dim，键值缓存存展开后的。分数不受排法影响。 */
#include "model/forward_parts.h"

/* 各 (行, 头) 的一段：n 段，每段 width 个 float。 */
static void copy_part(Model *m, float *dst, int64_t dst_step, const float *src, int64_t src_step,
                      int64_t n, int64_t width) {
    op_copy_2d(m->backend, dst, (size_t)dst_step * sizeof *dst, src, (size_t)src_step * sizeof *src, n,
               (size_t)width * sizeof *dst);
}

static const double LATENT_EPS = 1e-6; /* 潜向量的归一化用默认的 eps，与 rms_norm_eps 无关 */

bool mla_project(Model *m, int64_t layer, Workspace *w, int64_t n, BlockTap *tap) {
    const ModelConfig *c = &m->config;
    const Block *b = &m->blocks[layer];
    const Linear *l = b->linears, *q_a = &l[ROLE_COUNT], *kv_a = q_a + 1, *kv_b = q_a + 2;
    int64_t nope = c->nope_dim, rope = c->rope_dim, v = c->v_dim, dim = c->head_dim, heads = c->n_heads;
    int64_t wide = kv_a->rows;
    forward_linear(m, kv_a, w->kv_a, w->h, n, w);
    const float *query = w->h;
    if (q_a->rows) {
        forward_linear(m, q_a, w->latent, w->h, n, w);
        forward_norm(m, w->latent, w->latent, b->q_a_norm, NULL, n, c->q_lora, 1, LATENT_EPS);
        if (!forward_show(tap, GROUP_Q_B, w->latent, n, c->q_lora)) return false;
        query = w->latent;
    }
    forward_linear(m, &l[ROLE_Q], w->att, query, n, w);
    copy_part(m, w->q, dim, w->att + nope, nope + rope, n * heads, rope);
    copy_part(m, w->q + rope, dim, w->att, nope + rope, n * heads, nope);
    copy_part(m, w->latent, c->kv_lora, w->kv_a, wide, n, c->kv_lora);
    forward_norm(m, w->latent, w->latent, b->kv_a_norm, NULL, n, c->kv_lora, 1, LATENT_EPS);
    if (!forward_show(tap, GROUP_KV_B, w->latent, n, c->kv_lora)) return false;
    forward_linear(m, kv_b, w->kv_b, w->latent, n, w);
    for (int64_t h = 0; h < heads; h++)
        copy_part(m, w->k + h * dim, heads * dim, w->kv_a + c->kv_lora, wide, n, rope);
    copy_part(m, w->k + rope, dim, w->kv_b, nope + v, n * heads, nope);
    copy_part(m, w->v, dim, w->kv_b + nope, nope + v, n * heads, v);
    return true;
}

const float *mla_values(Model *m, Workspace *w, int64_t n) {
    const ModelConfig *c = &m->config;
    if (c->v_dim == c->head_dim) return w->att;
    copy_part(m, w->q, c->v_dim, w->att, c->head_dim, n * c->n_heads, c->v_dim);
    return w->q;
}
