/* prefill — 整批都是从头开始的时间线时，注意力一趟做完（评测、校准的批都是这样）
 * 后端肯时 q、k、v 与注意力的输出用 bf16 存，省去转换的几趟；否则与逐段算逐位相同。 */
#include "model/forward_parts.h"

bool prefill_plan(Model *m, int64_t layer, const Workspace *w, int64_t n, const Segment *segments,
                  size_t n_segments, const BlockTap *tap, PrefillJob *job) {
    const ModelConfig *c = &m->config;
    const Linear *l = m->blocks[layer].linears;
    bool plain = c->qk_norm == QK_NONE && !c->arch->mla;
    *job = (PrefillJob){.spec = forward_attn_spec(m, layer, 0), .interleaved = c->rope.pairs,
                        .f16 = m->kv_dtype == DT_F16};
    for (size_t i = 0; i < n_segments; i++)
        if (segments[i].kv || segments[i].first || segments[i].parent) return false;
    if (model_rope(m, layer, &job->cos_table, &job->sin_table)) job->half = c->rope.rotary_dim / 2;
    if (m->kv || w->record) return false;
    if (!op_prefill_accepts(m->backend, job, n)) return !job->f16;
    for (int i = ROLE_Q; i <= ROLE_V; i++)
        plain = plain && l[i].out.kind == ACT_NONE && !act_needs_input(&l[i].act);
    job->half_in = plain;
    job->half_out = !tap && !c->arch->mla && !act_needs_input(&l[ROLE_O].act);
    return true;
}

enum { PREFILL_SEGMENTS = 256 /* 一趟至多几段 */ };
void prefill_attend(Model *m, int64_t layer, Workspace *w, const Segment *segments, size_t n,
                    const PrefillJob *plan) {
    const ModelConfig *c = &m->config;
    PrefillSegment part[PREFILL_SEGMENTS];
    PrefillJob job = *plan;
    size_t item = kv_near_dtype(m) == DT_F32 ? sizeof(float) : sizeof(uint16_t);
    int64_t kv = c->n_kv_heads * c->head_dim;
    job.q = w->q, job.k = w->k, job.v = w->v, job.out = w->att, job.segments = part;
    for (size_t at = 0; at < n; at += PREFILL_SEGMENTS) {
        job.n = n - at < PREFILL_SEGMENTS ? (int64_t)(n - at) : PREFILL_SEGMENTS;
        for (int64_t i = 0; i < job.n; i++) {
            const Segment *s = &segments[at + (size_t)i];
            part[i] = (PrefillSegment){s->row0, s->n};
            if (layer == 0) w->kv_tokens += s->n;
            forward_count_kv(w, (KvBytes){.dense = (size_t)(2 * s->n * kv) * item});
        }
        op_attend_prefill(m->backend, &job);
    }
}
