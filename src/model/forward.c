/* forward — 解码块前向的实现
 * x → x + o(attn(rope(qkv(norm x)))) → x + down(silu(gate)·up)。残差与归一化始终是 f32。 */
#include "model/forward.h"

#include <math.h>

#include "base/log.h"

size_t workspace_bytes(const ModelConfig *c, int64_t max_rows) {
    int64_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    return (size_t)(max_rows * (2 * c->hidden + 2 * q + 2 * kv + 2 * c->intermediate)) * 4;
}

bool workspace_open(Workspace *w, const Model *m, int64_t max_rows, Err *e) {
    const ModelConfig *c = &m->config;
    int64_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    *w = (Workspace){.max_rows = max_rows, .arena = backend_arena(m->backend),
                     .kv_arena = backend_arena(m->backend)};
    struct {
        float **p;
        int64_t width;
    } parts[] = {{&w->x, c->hidden}, {&w->h, c->hidden}, {&w->q, q},
                 {&w->att, q},       {&w->k, kv},        {&w->v, kv},
                 {&w->gate, c->intermediate}, {&w->up, c->intermediate}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        *parts[i].p = ARENA_ARRAY(&w->arena, float, max_rows * parts[i].width, e);
        if (!*parts[i].p) {
            workspace_close(w);
            return false;
        }
    }
    return true;
}

void workspace_close(Workspace *w) {
    kv_layer_close(&w->kv);
    arena_free(&w->kv_arena);
    arena_free(&w->arena);
    *w = (Workspace){0};
}

static bool same_act(const ActQuant *a, const ActQuant *b) {
    return a->kind == b->kind && a->bits == b->bits && a->scale == b->scale;
}

/* 一段行的几个线性层，输入与输出按 l->act、l->out 量化。各层的 act 相同。 */
static void linear_rows(Model *m, const Linear *const *l, float *const *y, int n_out, const float *x,
                        int64_t row0, int64_t n) {
    LinearOut out[LINEAR_OUT_MAX];
    Tensor tx = tensor_f32((float *)x + row0 * l[0]->cols, n, l[0]->cols);
    for (int i = 0; i < n_out; i++)
        out[i] = (LinearOut){y[i] + row0 * l[i]->rows, &l[i]->q, l[i]->bias};
    if (l[0]->act.kind == ACT_NONE)
        op_linear_many(m->backend, out, n_out, tx);
    else
        op_linear_int8_many(m->backend, out, n_out, tx, &l[0]->act);
    for (int i = 0; i < n_out; i++)
        if (l[i]->out.kind != ACT_NONE)
            op_round_act(m->backend, tensor_f32(out[i].y, n, l[i]->rows), &l[i]->out);
}

/* 共用输入 x 的几个线性层。整批一起算；「整个张量一个 s」的张量是一条时间线这次喂入的行，故逐段算。 */
static void linears(Model *m, const Linear *const *l, float *const *y, int n_out, const float *x,
                    int64_t n, const Workspace *w) {
    for (int first = 0, last; first < n_out; first = last) {
        for (last = first + 1; last < n_out && same_act(&l[first]->act, &l[last]->act);) last++;
        if (l[first]->act.kind != ACT_TENSOR || w->n_segments <= 1) {
            linear_rows(m, l + first, y + first, last - first, x, 0, n);
            continue;
        }
        for (size_t i = 0; i < w->n_segments; i++)
            linear_rows(m, l + first, y + first, last - first, x, w->segments[i].row0,
                        w->segments[i].n);
    }
}

static void linear(Model *m, const Linear *l, float *y, const float *x, int64_t n,
                   const Workspace *w) {
    linears(m, &l, &y, 1, x, n, w);
}

static void norm(Model *m, float *y, const float *x, const float *weight, int64_t n) {
    int64_t d = m->config.hidden;
    op_rmsnorm(m->backend, tensor_f32(y, n, d), tensor_f32((float *)x, n, d),
               tensor_f32_1d((float *)weight, d), (float)m->config.norm_eps);
}

static void count_kv(Workspace *w, KvBytes b) {
    w->kv_bytes.codes += b.codes;
    w->kv_bytes.params += b.params;
    w->kv_bytes.outliers += b.outliers;
    w->kv_bytes.dense += b.dense;
}

/* 没有缓存的段借用的一层，能放 n 个位置。返回: 内存不足为 NULL（错误在 Backend.err）。 */
static KvLayer *borrow_kv(Model *m, int64_t layer, Workspace *w, int64_t n) {
    w->held = NULL;
    n = (n + 511) / 512 * 512; /* 少重开几次 */
    if (w->kv_rows >= n) {
        kv_layer_reset(&w->kv, m, layer);
        return &w->kv;
    }
    kv_layer_close(&w->kv);
    arena_free(&w->kv_arena);
    w->kv_rows = 0;
    if (!kv_layer_open(&w->kv, &w->kv_arena, m, layer, n, n, &m->backend->err)) return NULL;
    w->kv_rows = n;
    return &w->kv;
}

/* 借用的一层里现在存着 held 的时间线；其开头 [0, s->first) 是否恰是 s 的过去。 */
static bool holds_past(const Workspace *w, const Segment *s) {
    if (!w->held) return false;
    int64_t shared = w->held->first + w->held->n;
    for (const Segment *h = w->held; h; h = h->parent) {
        if (h == s->parent) return s->first <= shared;
        if (h->first < shared) shared = h->first;
    }
    return !s->parent && s->first <= shared;
}

/* 依次添上 s 的过去：KvPast 的开头，再由远及近的各段。 */
static void append_past(Model *m, int64_t layer, Workspace *w, const Segment *s, KvLayer *kv) {
    int64_t width = m->config.n_kv_heads * m->config.head_dim;
    if (s->parent) {
        const Segment *p = s->parent;
        append_past(m, layer, w, p, kv);
        kv_layer_append(m, layer, kv, w->k + p->row0 * width, w->v + p->row0 * width, p->first,
                        s->first - p->first);
    } else if (s->first) {
        int64_t at = layer * w->past->capacity * width;
        kv_layer_append(m, layer, kv, w->past->k + at, w->past->v + at, 0, s->first);
    }
}

/* 没有缓存的段：备好含它的过去的一层。 */
static KvLayer *rebuild_past(Model *m, int64_t layer, Workspace *w, const Segment *s) {
    bool dense = !m->kv, ready = dense && w->kv_rows >= s->first + s->n && holds_past(w, s);
    if (ready) {
        w->kv.k_near.length = w->kv.v_near.length = s->first;
    } else {
        if (!borrow_kv(m, layer, w, s->first + s->n)) return NULL;
        append_past(m, layer, w, s, &w->kv);
    }
    w->held = s;
    return &w->kv;
}

static void record_past(const Model *m, int64_t layer, const Workspace *w, const Segment *s) {
    KvPast *r = w->record;
    int64_t width = m->config.n_kv_heads * m->config.head_dim;
    int64_t to = (layer * r->capacity + s->first) * width;
    CHECK(s->first + s->n <= r->capacity);
    size_t bytes = (size_t)(s->n * width) * sizeof(float);
    op_copy(m->backend, r->k + to, w->k + s->row0 * width, bytes);
    op_copy(m->backend, r->v + to, w->v + s->row0 * width, bytes);
}

/* 有没有别的段接在后面，要不要经过借用的一层。 */
static bool is_alone(const Model *m, const Workspace *w, const Segment *s) {
    return !s->kv && !m->kv && m->kv_dtype != DT_F16 && s->first == 0 && !w->forks;
}

static void attend(Model *m, int64_t layer, Workspace *w, const Segment *s) {
    const ModelConfig *c = &m->config;
    int64_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    int64_t half = c->rope.rotary_dim / 2;
    float *qs = w->q + s->row0 * q, *ks = w->k + s->row0 * kv, *vs = w->v + s->row0 * kv;
    Tensor cos_t = tensor_f32(m->cos_table, m->n_rope, half);
    Tensor sin_t = tensor_f32(m->sin_table, m->n_rope, half);
    Tensor q_t = tensor_f32_3d(qs, s->n, c->n_heads, c->head_dim);
    Tensor out_t = tensor_f32_3d(w->att + s->row0 * q, s->n, c->n_heads, c->head_dim);
    op_rope(m->backend, q_t, cos_t, sin_t, s->first);
    if (!kv_pre_rope(m, layer))
        op_rope(m->backend, tensor_f32_3d(ks, s->n, c->n_kv_heads, c->head_dim), cos_t, sin_t,
                s->first);
    if (w->record) record_past(m, layer, w, s);
    AttnSpec spec = {.n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim,
                     .first = s->first, .window = arch_window(c, layer),
                     .scale = (float)(1.0 / sqrt((double)c->head_dim))};
    if (layer == 0) w->kv_tokens += s->kv ? 0 : s->n;
    if (is_alone(m, w, s)) {
        size_t item = kv_near_dtype(m) == DT_F32 ? sizeof(float) : sizeof(uint16_t);
        count_kv(w, (KvBytes){.dense = (size_t)(2 * s->n * kv) * item});
        op_attention(m->backend, out_t, q_t, tensor_f32_3d(ks, s->n, c->n_kv_heads, c->head_dim),
                     tensor_f32_3d(vs, s->n, c->n_kv_heads, c->head_dim), &spec);
        return;
    }
    KvLayer *cache = s->kv ? s->kv : rebuild_past(m, layer, w, s);
    AttnSide k_side, v_side;
    if (!cache) return;
    kv_layer_append(m, layer, cache, ks, vs, s->first, s->n);
    kv_layer_sides(m, layer, cache, s->first, &k_side, &v_side);
    op_attention_kv(m->backend, out_t, q_t, &k_side, &v_side, &spec);
    if (!s->kv) count_kv(w, kv_layer_bytes(m, cache, s->first + s->n));
}

InputGroup input_group(LinearRole role) {
    return role <= ROLE_V ? INPUT_QKV : role == ROLE_O ? INPUT_O
         : role == ROLE_DOWN ? INPUT_DOWN : INPUT_GATE_UP;
}

/* 交给旁听者。返回: 后面还要算。 */
static bool show(const BlockTap *tap, InputGroup group, const float *x, int64_t n, int64_t cols) {
    if (!tap) return true;
    tap->see(tap->ctx, group, x, n, cols);
    return group != tap->last;
}

void attention_forward(Model *m, int64_t layer, Workspace *w, int64_t n, const Segment *segments,
                       size_t n_segments, const BlockTap *tap) {
    const Linear *l = m->blocks[layer].linears;
    if (!show(tap, INPUT_QKV, w->h, n, m->config.hidden)) return;
    linears(m, (const Linear *[]){&l[ROLE_Q], &l[ROLE_K], &l[ROLE_V]},
            (float *[]){w->q, w->k, w->v}, 3, w->h, n, w);
    w->held = NULL;
    w->forks = false;
    for (size_t i = 0; i < n_segments; i++) w->forks |= segments[i].parent != NULL;
    for (size_t i = 0; i < n_segments; i++) attend(m, layer, w, &segments[i]);
    if (!show(tap, INPUT_O, w->att, n, l[ROLE_O].cols)) return;
    linear(m, &l[ROLE_O], w->h, w->att, n, w);
}

void mlp_forward(Model *m, int64_t layer, Workspace *w, int64_t n, const BlockTap *tap) {
    const Linear *l = m->blocks[layer].linears;
    int64_t ff = m->config.intermediate;
    if (!show(tap, INPUT_GATE_UP, w->h, n, m->config.hidden)) return;
    linears(m, (const Linear *[]){&l[ROLE_GATE], &l[ROLE_UP]}, (float *[]){w->gate, w->up}, 2,
            w->h, n, w);
    op_silu_mul(m->backend, tensor_f32(w->gate, n, ff), tensor_f32(w->gate, n, ff),
                tensor_f32(w->up, n, ff));
    if (!show(tap, INPUT_DOWN, w->gate, n, ff)) return;
    linear(m, &l[ROLE_DOWN], w->h, w->gate, n, w);
}

bool block_forward(Model *m, int64_t layer, Workspace *w, int64_t n, const Segment *segments,
                   size_t n_segments, const BlockTap *tap, Err *e) {
    const Block *b = &m->blocks[layer];
    int64_t d = m->config.hidden;
    if (!model_need_block(m, layer, e)) return false;
    w->segments = segments;
    w->n_segments = n_segments;
    norm(m, w->h, w->x, b->attn_norm, n);
    attention_forward(m, layer, w, n, segments, n_segments, tap);
    if (tap && tap->last <= INPUT_O) return backend_check(m->backend, e);
    op_add(m->backend, tensor_f32(w->x, n, d), tensor_f32(w->h, n, d));
    norm(m, w->h, w->x, b->mlp_norm, n);
    mlp_forward(m, layer, w, n, tap);
    if (tap && tap->last <= INPUT_DOWN) return backend_check(m->backend, e);
    op_add(m->backend, tensor_f32(w->x, n, d), tensor_f32(w->h, n, d));
    if (!backend_check(m->backend, e)) return false;
    if (!op_all_finite(m->backend, tensor_f32(w->x, n, d)))
        return err_set(e, ERR_NUMERIC, "第 %lld 层（从 0 数）的输出出现 NaN 或 Inf",
                       (long long)layer);
    return true;
}

bool forward_segments(Model *m, Workspace *w, const int32_t *ids, int64_t n, const Segment *segments,
                      size_t n_segments, Err *e) {
    const ModelConfig *c = &m->config;
    int64_t last = 0;
    CHECK(n <= w->max_rows);
    for (size_t i = 0; i < n_segments; i++)
        if (segments[i].first + segments[i].n > last) last = segments[i].first + segments[i].n;
    if (!model_ensure_rope(m, last, e)) return false;
    op_embed(m->backend, tensor_f32(w->x, n, c->hidden), &m->embed, ids);
    for (int64_t l = 0; l < c->n_layers; l++)
        if (!interrupt_check(e) || !block_forward(m, l, w, n, segments, n_segments, NULL, e))
            return false;
    norm(m, w->h, w->x, m->final_norm, n);
    return backend_check(m->backend, e);
}

bool forward_windows(Model *m, Workspace *w, const int32_t *ids, int64_t n_windows, int64_t len,
                     Err *e) {
    Arena tmp = {0};
    Segment *s = ARENA_ARRAY(&tmp, Segment, n_windows, e);
    for (int64_t i = 0; s && i < n_windows; i++) s[i] = (Segment){.row0 = i * len, .n = len};
    bool ok = s && forward_segments(m, w, ids, n_windows * len, s, (size_t)n_windows, e);
    arena_free(&tmp);
    return ok;
}
