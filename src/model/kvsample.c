/* kvsample — 键值缓存校准的实现 */
#include "model/kvsample.h"

#include "base/log.h"
#include "model/gradient.h"

enum { PASS_BYTES = 1 << 30 }; /* 一趟留下的样本至多约 1 GiB */

typedef struct Collect {
    ModelGradient *gradient;
    int64_t first, last; /* 这一趟留下的层 [first, last) */
    int64_t row, n, width;
    float *k, *v, *k_grad, *v_grad; /* (last−first, n, width) */
    const Arena *arena;
} Collect;

/* 反向刚走过第 layer 块：它的中间量还在 trace 里。k 由归一化后的输入重算（trace 里的已经旋转）。 */
static void see(void *ctx, int64_t layer, const float *d_k, const float *d_v, int64_t n) {
    Collect *c = ctx;
    if (layer < c->first || layer >= c->last) return;
    Model *m = c->gradient->model;
    const BlockTrace *t = &c->gradient->trace;
    const Linear *l = &m->blocks[layer].linears[ROLE_K];
    int64_t at = ((layer - c->first) * c->n + c->row) * c->width;
    size_t bytes = (size_t)(n * c->width) * sizeof *d_k;
    op_linear(m->backend, tensor_f32(c->k + at, n, l->rows), tensor_f32(t->h1, n, l->cols), &l->q,
              tensor_f32_1d(l->bias, l->bias ? l->rows : 0));
    op_copy(m->backend, c->v + at, t->v, bytes);
    op_copy(m->backend, c->k_grad + at, d_k, bytes);
    op_copy(m->backend, c->v_grad + at, d_v, bytes);
    float *const part[] = {c->k, c->v, c->k_grad, c->v_grad};
    for (int i = 0; i < 4; i++) spill_drop(c->arena, part[i] + at, bytes);
}

static bool run_pass(Collect *c, const CalibSet *set, Progress *p, int64_t done, Err *e) {
    for (int64_t i = 0; i < set->n_samples; i++) {
        c->row = i * set->length;
        if (!model_gradient_window(c->gradient, set->ids + c->row, set->length, NULL, see, c, e))
            return false;
        progress_step(p, done + i + 1);
    }
    return backend_check(c->gradient->model->backend, e);
}

bool kv_sample_each(Model *m, const CalibSet *set, KvSampleFn *fn, void *ctx, Err *e) {
    int64_t n = set->n_samples * set->length, layers = m->config.n_layers;
    int64_t width = m->config.n_kv_heads * m->config.head_dim;
    int64_t per_pass = PASS_BYTES / (4 * n * width * (int64_t)sizeof(float));
    per_pass = per_pass < 1 ? 1 : per_pass > layers ? layers : per_pass;
    Arena a = model_big_arena(m);
    ModelGradient g = {0};
    Collect c = {.gradient = &g, .n = n, .width = width, .arena = &a};
    float **parts[] = {&c.k, &c.v, &c.k_grad, &c.v_grad};
    bool ok = true;
    for (int i = 0; ok && i < 4; i++)
        ok = (*parts[i] = ARENA_ARRAY(&a, float, per_pass * n * width, e)) != NULL;
    ok = ok && model_gradient_open(&g, m, set->length, e);
    int64_t passes = (layers + per_pass - 1) / per_pass;
    Progress p = progress_start(LOG_QUANT, "校准", "样本", passes * set->n_samples);
    for (int64_t i = 0; ok && i < passes; i++) {
        c.first = i * per_pass;
        c.last = c.first + per_pass < layers ? c.first + per_pass : layers;
        ok = run_pass(&c, set, &p, i * set->n_samples, e);
        for (int64_t l = c.first; ok && l < c.last; l++) {
            int64_t at = (l - c.first) * n * width;
            KvSample s = {l, n, width, set->length, c.k + at, c.v + at, c.k_grad + at, c.v_grad + at};
            ok = fn(ctx, &s, e);
            for (int k = 0; k < 4; k++)
                spill_drop(&a, *parts[k] + at, (size_t)(n * width) * sizeof(float));
        }
    }
    progress_end(&p);
    model_gradient_close(&g);
    arena_free(&a);
    return ok;
}
