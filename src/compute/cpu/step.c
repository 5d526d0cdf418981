/* step — 逐 token 解码、整段预填的注意力：逐条（段）调用旋转、写入与注意力 */
#include "compute/cpu/cpu.h"

void cpu_attend_step(Backend *b, const StepJob *j) {
    const AttnSpec *s = &j->spec;
    int64_t heads = s->n_heads, kv = s->n_kv_heads, dim = s->head_dim;
    for (int64_t i = 0; i < j->n && b->err.code == ERR_NONE; i++) {
        const StepRow *r = &j->rows[i];
        float *q = j->q + i * heads * dim, *k = j->k + i * kv * dim;
        if (j->cos_table) {
            cpu_rope(b, q, 1, heads, dim, j->half, j->cos_table, j->sin_table, r->pos, j->interleaved);
            cpu_rope(b, k, 1, kv, dim, j->half, j->cos_table, j->sin_table, r->pos, j->interleaved);
        }
        cpu_kv_write(b, r->k, k, 1);
        cpu_kv_write(b, r->v, j->v + i * kv * dim, 1);
        AttnSpec spec = *s;
        spec.first = r->pos;
        cpu_attention(b, (float *)j->out + i * heads * dim, q, &(AttnSide){.near = r->k},
                      &(AttnSide){.near = r->v}, 1, &spec);
    }
}

bool cpu_prefill_accepts(Backend *b, const PrefillJob *j, int64_t rows) {
    (void)b, (void)j, (void)rows;
    return false;
}
void cpu_attend_prefill(Backend *b, const PrefillJob *j) {
    const AttnSpec *s = &j->spec;
    int64_t heads = s->n_heads, kv = s->n_kv_heads, dim = s->head_dim;
    for (int64_t i = 0; i < j->n && b->err.code == ERR_NONE; i++) {
        int64_t n = j->segments[i].n, row = j->segments[i].row0;
        float *q = (float *)j->q + row * heads * dim, *k = (float *)j->k + row * kv * dim;
        float *v = (float *)j->v + row * kv * dim;
        if (j->cos_table) {
            cpu_rope(b, q, n, heads, dim, j->half, j->cos_table, j->sin_table, 0, j->interleaved);
            cpu_rope(b, k, n, kv, dim, j->half, j->cos_table, j->sin_table, 0, j->interleaved);
        }
        KvStore ks = kvstore_view(k, kv, dim, 0, n), vs = kvstore_view(v, kv, dim, 0, n);
        AttnSpec spec = *s;
        spec.first = 0;
        cpu_attention(b, (float *)j->out + row * heads * dim, q, &(AttnSide){.near = &ks},
                      &(AttnSide){.near = &vs}, n, &spec);
    }
}
