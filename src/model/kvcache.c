/* kvcache — 键值缓存的实现 */
#include "model/kvcache.h"

#include "model/model.h"

DType kv_near_dtype(const Model *m) {
    if (m->kv_dtype == DT_F16) return DT_F16;
    return m->backend->kv_tiles && !m->kv ? DT_BF16 : DT_F32;
}

static bool is_grouped(const KvFormat *f) {
    return f->form == KV_AFFINE && f->per_channel;
}

/* 一侧的界：近的几个位置、怎样越过界。 */
static FarRule rule_of(const Model *m, const KvFormat *f, int64_t first) {
    if (f->form == KV_DENSE || (m->kv_mode == KV_MODE_PREFILL_FP && first == 0)) return FAR_NONE;
    if (m->kv_mode == KV_MODE_ALL) return FAR_ALL;
    return is_grouped(f) ? FAR_STEP : FAR_SLIDE;
}

bool kv_pre_rope(const Model *m, int64_t layer) {
    const float *cos_table, *sin_table;
    return m->kv && m->kv[layer].pre_rope && model_rope(m, layer, &cos_table, &sin_table);
}

static bool same_layout(const KvFormat *a, const KvFormat *b) {
    return a->form == b->form && a->dtype == b->dtype && a->bits == b->bits &&
           a->per_channel == b->per_channel && a->group == b->group && a->sparse == b->sparse &&
           a->sink == b->sink;
}

bool kv_spec_check(const Model *m, int64_t layer, const KvSpec *s, Err *e) {
    const KvFormat *sides[2] = {&s->k, &s->v};
    if (!arch_require(&m->config, FEATURE_MLA, "键值缓存的量化", e)) return false;
    for (int i = 0; i < 2; i++) {
        const KvFormat *f = sides[i];
        if (is_grouped(f) && (s->residual < 1 || s->residual % f->group != 0))
            return err_set(e, ERR_CONFIG,
                           "kv_cache 的残留窗口 %lld 须是组宽 %lld 的正整数倍（键按通道、沿 token 成组）",
                           (long long)s->residual, (long long)f->group);
    }
    if (layer > 0)
        CHECK(same_layout(&s->k, &m->kv[0].k) && same_layout(&s->v, &m->kv[0].v) &&
              s->residual == m->kv[0].residual);
    return true;
}

/* 近的一份的容量：不量化时全部位置，否则残留窗口加上一段。 */
static int64_t near_capacity(const Model *m, const KvSpec *s, const KvFormat *f, int64_t capacity,
                             int64_t max_rows) {
    if (!s || f->form == KV_DENSE) return capacity;
    int64_t keep = s->residual + 1 + max_rows;
    if (m->kv_mode == KV_MODE_ALL && is_grouped(f)) keep += f->group;
    return keep < capacity ? keep : capacity;
}

static const KvSpec *spec_of(const Model *m, int64_t layer) {
    return m->kv ? &m->kv[layer] : NULL;
}

bool kv_layer_open(KvLayer *kv, Arena *a, const Model *m, int64_t layer, int64_t capacity,
                   int64_t max_rows, Err *e) {
    const ModelConfig *c = &m->config;
    const KvSpec *s = spec_of(m, layer);
    KvStore *near[2] = {&kv->k_near, &kv->v_near}, *far[2] = {&kv->k_far, &kv->v_far};
    *kv = (KvLayer){0};
    for (int i = 0; i < 2; i++) {
        const KvFormat *f = s ? i ? &s->v : &s->k : NULL;
        KvFormat dense = {.dtype = kv_near_dtype(m), .keys = i == 0};
        dense.form = dense.dtype == DT_BF16 ? KV_TILES : KV_DENSE;
        int64_t rows = near_capacity(m, s, f, capacity, max_rows);
        if (!kvstore_new(near[i], a, &dense, c->n_kv_heads, c->head_dim, rows, e)) return false;
        if (f && f->form != KV_DENSE &&
            !kvstore_new(far[i], a, f, c->n_kv_heads, c->head_dim, capacity, e))
            return false;
    }
    kv_layer_reset(kv, m, layer);
    return true;
}

void kv_layer_close(KvLayer *kv) {
    kvstore_close(&kv->k_near);
    kvstore_close(&kv->v_near);
    kvstore_close(&kv->k_far);
    kvstore_close(&kv->v_far);
}

static void rebind(KvStore *s, const KvFormat *f, const float *bias) {
    s->length = 0;
    s->f.lut = f->lut;
    s->f.values = f->values;
    s->f.lower = f->lower;
    s->f.upper = f->upper;
    s->f.bias = bias;
}

void kv_layer_reset(KvLayer *kv, const Model *m, int64_t layer) {
    const KvSpec *s = spec_of(m, layer);
    kv->k_near.first = kv->k_near.length = kv->v_near.first = kv->v_near.length = 0;
    if (!s) return;
    const Block *b = &m->blocks[layer];
    const float *bias = b->k_norm ? NULL : b->linears[ROLE_K].bias; /* 归一化之后偏置已不可分 */
    rebind(&kv->k_far, &s->k, s->pre_rope && s->split_bias ? bias : NULL);
    rebind(&kv->v_far, &s->v, NULL);
}

/* 会话里已经量化、近的不必再留的位置数：逐通道时是到最近的组首。 */
static int64_t settled(const KvStore *far) {
    return is_grouped(&far->f) ? far->length / far->f.group * far->f.group : far->length;
}

static void append_side(Model *m, const KvSpec *s, KvStore *near, KvStore *far, const float *x,
                        int64_t first, int64_t n) {
    int64_t width = near->heads * near->dim, end = first + n;
    CHECK(near->first + near->length == first);
    if (near->length + n > near->capacity) op_kv_drop(m->backend, near, settled(far));
    op_kv_write(m->backend, near, tensor_f32((float *)x, n, width));
    if (!s || !far->data) return;
    AttnSide side = {.rule = rule_of(m, &far->f, first + 1), .residual = s->residual};
    int64_t until = attn_far_end(&side, end - 1), pos = settled(far);
    if (until > pos) op_kv_quantize(m->backend, far, near, pos, until - pos);
}

void kv_layer_append(Model *m, int64_t layer, KvLayer *kv, const float *k, const float *v,
                     int64_t first, int64_t n) {
    const KvSpec *s = spec_of(m, layer);
    append_side(m, s, &kv->k_near, &kv->k_far, k, first, n);
    append_side(m, s, &kv->v_near, &kv->v_far, v, first, n);
}

void kv_layer_sides(const Model *m, int64_t layer, const KvLayer *kv, int64_t first, AttnSide *k,
                    AttnSide *v) {
    const KvSpec *s = spec_of(m, layer);
    *k = (AttnSide){.near = &kv->k_near};
    *v = (AttnSide){.near = &kv->v_near};
    if (!s) return;
    AttnSide *sides[2] = {k, v};
    const KvStore *far[2] = {&kv->k_far, &kv->v_far};
    for (int i = 0; i < 2; i++) {
        sides[i]->far = far[i];
        sides[i]->rule = rule_of(m, i ? &s->v : &s->k, first);
        sides[i]->residual = s->residual;
    }
    if (!s->pre_rope || !model_rope(m, layer, &k->cos_table, &k->sin_table)) return;
    k->half = m->config.rope.rotary_dim / 2;
    k->interleaved = m->config.rope.pairs;
}

KvBytes kv_layer_bytes(const Model *m, const KvLayer *kv, int64_t n) {
    const KvStore *near[2] = {&kv->k_near, &kv->v_near}, *far[2] = {&kv->k_far, &kv->v_far};
    KvBytes total = {0};
    for (int i = 0; i < 2; i++) {
        int64_t done = 0;
        if (m->kv && far[i]->data) {
            done = settled(far[i]);
            KvBytes b = kvstore_bytes(far[i], far[i]->length);
            total.codes += b.codes;
            total.params += b.params;
            total.outliers += b.outliers;
            total.dense += b.dense;
        }
        total.dense += kvstore_bytes(near[i], n - done).dense;
    }
    return total;
}
