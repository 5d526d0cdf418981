/* step — 逐 token 解码的注意力：逐条调用旋转、写入与注意力 */
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
        cpu_attention(b, j->out + i * heads * dim, q, &(AttnSide){.near = r->k},
                      &(AttnSide){.near = r->v}, 1, &spec);
    }
}
