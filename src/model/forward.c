/* forward — 解码块前向的实现
 * x → x + o(attn(rope(qkv(norm x)))) → x + down(f(gate)·up)，各家族的出入由 ModelConfig 的标志定，每个标志只在一处用到。
 * 残差与归一化始终是 f32。专家在 experts.c，MLA 在 mla.c。 */
#include "model/forward.h"

#include <string.h>

#include "base/log.h"
#include "model/forward_parts.h"

enum { N_PARTS = 16 };
typedef struct Part {
    float **p;
    int64_t width;
} Part;

static void list_parts(Workspace *w, const ModelConfig *c, Part *out) {
    int64_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim, d = c->hidden;
    int64_t ff = c->intermediate > c->shared_ff ? c->intermediate : c->shared_ff;
    if (c->expert_ff > ff) ff = c->expert_ff;
    int64_t latent = c->q_lora > c->kv_lora ? c->q_lora : c->kv_lora, moe = c->n_experts > 0;
    const Part parts[N_PARTS] = {
        {&w->x, d}, {&w->h, d}, {&w->q, q}, {&w->att, q}, {&w->k, kv}, {&w->v, kv}, {&w->gate, ff},
        {&w->up, ff}, {&w->side, c->parallel || moe ? d : 0}, {&w->picked, moe ? d : 0},
        {&w->scores, c->n_experts}, {&w->latent, latent},
        {&w->kv_a, c->arch->mla ? c->kv_lora + c->rope_dim : 0},
        {&w->kv_b, c->arch->mla ? c->n_heads * (c->nope_dim + c->v_dim) : 0}};
    memcpy(out, parts, sizeof parts);
}

size_t workspace_bytes(const ModelConfig *c, int64_t max_rows) {
    Workspace w;
    Part parts[N_PARTS];
    int64_t width = 0;
    list_parts(&w, c, parts);
    for (int i = 0; i < N_PARTS; i++) width += parts[i].width;
    return (size_t)(max_rows * width) * sizeof(float);
}

bool workspace_open(Workspace *w, const Model *m, int64_t max_rows, Err *e) {
    const ModelConfig *c = &m->config;
    Part parts[N_PARTS];
    *w = (Workspace){.max_rows = max_rows, .arena = backend_arena(m->backend),
                     .kv_arena = backend_arena(m->backend)};
    list_parts(w, c, parts);
    bool ok = true;
    for (int i = 0; ok && i < N_PARTS; i++)
        if (parts[i].width)
            ok = (*parts[i].p = ARENA_ARRAY(&w->arena, float, max_rows * parts[i].width, e)) != NULL;
    if (ok && c->position == POS_LEARNED)
        ok = (w->positions = ARENA_ARRAY(&w->host, int32_t, max_rows, e)) != NULL;
    ok = ok && (!c->n_experts || (w->routing = routing_new(&w->host, c, max_rows, e)) != NULL);
    if (!ok) workspace_close(w);
    return ok;
}

void workspace_close(Workspace *w) {
    kv_layer_close(&w->kv);
    arena_free(&w->kv_arena);
    arena_free(&w->host);
    arena_free(&w->arena);
    *w = (Workspace){0};
}

void forward_norm(Model *m, float *y, const float *x, const float *weight, const float *bias,
                  int64_t n, int64_t d, int64_t period, double eps) {
    NormSpec s = {weight, bias, period, (float)eps, m->config.arch->layer_norm};
    op_norm(m->backend, tensor_f32(y, n, d), tensor_f32((float *)x, n, d), &s);
}

static void norm(Model *m, float *y, const float *x, const float *weight, const float *bias,
                 int64_t n) {
    forward_norm(m, y, x, weight, bias, n, m->config.hidden, 1, m->config.norm_eps);
}

void forward_count_kv(Workspace *w, KvBytes b) {
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

AttnSpec forward_attn_spec(const Model *m, int64_t layer, int64_t first) {
    const ModelConfig *c = &m->config;
    double scale = c->attn_scale / (c->attn_scale_by_layer ? (double)(layer + 1) : 1);
    return (AttnSpec){.n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim,
                      .first = first, .window = arch_window(c, layer), .scale = (float)scale,
                      .softcap = (float)c->attn_softcap, .bias = m->alibi,
                      .bias_stride = m->alibi_stride};
}

/* 就地旋转 x 的 n 行（位置从 first 起）。 */
static void rotate(Model *m, int64_t layer, float *x, int64_t n, int64_t heads, int64_t first) {
    const ModelConfig *c = &m->config;
    const float *cos_table, *sin_table;
    int64_t half = c->rope.rotary_dim / 2;
    if (!model_rope(m, layer, &cos_table, &sin_table)) return;
    (c->rope.pairs ? op_rope_pairs : op_rope)(
        m->backend, tensor_f32_3d(x, n, heads, c->head_dim),
        tensor_f32((float *)cos_table, m->n_rope, half),
        tensor_f32((float *)sin_table, m->n_rope, half), first);
}

static void attend(Model *m, int64_t layer, Workspace *w, const Segment *s) {
    const ModelConfig *c = &m->config;
    int64_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    float *qs = w->q + s->row0 * q, *ks = w->k + s->row0 * kv, *vs = w->v + s->row0 * kv;
    Tensor q_t = tensor_f32_3d(qs, s->n, c->n_heads, c->head_dim);
    Tensor out_t = tensor_f32_3d(w->att + s->row0 * q, s->n, c->n_heads, c->head_dim);
    rotate(m, layer, qs, s->n, c->n_heads, s->first);
    if (!kv_pre_rope(m, layer)) rotate(m, layer, ks, s->n, c->n_kv_heads, s->first);
    if (w->record) record_past(m, layer, w, s);
    AttnSpec spec = forward_attn_spec(m, layer, s->first);
    if (layer == 0) w->kv_tokens += s->kv ? 0 : s->n;
    if (is_alone(m, w, s)) {
        size_t item = kv_near_dtype(m) == DT_F32 ? sizeof(float) : sizeof(uint16_t);
        forward_count_kv(w, (KvBytes){.dense = (size_t)(2 * s->n * kv) * item});
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
    if (!s->kv) forward_count_kv(w, kv_layer_bytes(m, cache, s->first + s->n));
}

/* 各段都是一条时间线的一个 token、缓存不量化、都还放得下：可以一趟做完。 */
static bool is_step(const Model *m, const Workspace *w, const Segment *segments, size_t n) {
    bool ok = !m->kv && !w->record;
    for (size_t i = 0; ok && i < n; i++) {
        const KvLayer *kv = segments[i].kv;
        ok = kv && segments[i].n == 1 && kv->k_near.length < kv->k_near.capacity &&
             kv->v_near.length < kv->v_near.capacity;
    }
    return ok;
}

/* half：输出存成 bf16。 */
static void attend_step(Model *m, int64_t layer, Workspace *w, const Segment *segments, size_t n, bool half) {
    const ModelConfig *c = &m->config;
    int64_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    StepRow rows[STEP_MAX_ROWS];
    StepJob job = {.rows = rows, .spec = forward_attn_spec(m, layer, 0), .interleaved = c->rope.pairs,
                   .half_out = half};
    if (model_rope(m, layer, &job.cos_table, &job.sin_table)) job.half = c->rope.rotary_dim / 2;
    for (size_t at = 0; at < n; at += STEP_MAX_ROWS) {
        const Segment *s = segments + at;
        job.n = n - at < STEP_MAX_ROWS ? (int64_t)(n - at) : STEP_MAX_ROWS;
        for (int64_t i = 0; i < job.n; i++)
            rows[i] = (StepRow){&s[i].kv->k_near, &s[i].kv->v_near, s[i].first};
        job.q = w->q + s->row0 * q, job.out = (char *)w->att + (size_t)(s->row0 * q) * (half ? sizeof(uint16_t) : sizeof *w->att);
        job.k = w->k + s->row0 * kv, job.v = w->v + s->row0 * kv;
        op_attend_step(m->backend, &job);
    }
}

/* 一步解码的输出可以存成 bf16 交给 o。 */
static bool step_in_half(const Model *m, const Linear *o, int64_t n) {
    const ModelConfig *c = &m->config;
    return m->backend->half_step && n >= m->backend->half_step && c->head_dim <= STEP_HALF_DIM && !c->arch->mla &&
           !act_needs_input(&o->act);
}

InputGroup input_group(LinearRole role) {
    return role <= ROLE_V ? INPUT_QKV : role == ROLE_O ? INPUT_O
         : role == ROLE_DOWN ? INPUT_DOWN : INPUT_GATE_UP;
}

bool forward_show(BlockTap *tap, int group, const float *x, int64_t n, int64_t cols) {
    if (!tap) return true;
    tap->see(tap->ctx, group, x, n, cols);
    tap->done = group == tap->last;
    return !tap->done;
}

/* q 或 k 在旋转之前的归一化。 */
static void norm_heads(Model *m, float *x, const float *weight, int64_t n, int64_t heads) {
    const ModelConfig *c = &m->config;
    bool whole = c->qk_norm == QK_WHOLE, shared = c->qk_norm == QK_SHARED;
    if (c->qk_norm == QK_NONE) return;
    forward_norm(m, x, x, weight, NULL, whole ? n : n * heads,
                 whole ? heads * c->head_dim : c->head_dim, whole || shared ? 1 : heads, c->norm_eps);
}

/* 从 in 到 out（o 的输出写到哪里）。 */
static void attention_half(Model *m, int64_t layer, Workspace *w, int64_t n, const Segment *segments,
                           size_t n_segments, BlockTap *tap, const LinearIn *in, LinearOut out) {
    const ModelConfig *c = &m->config;
    const Block *b = &m->blocks[layer];
    const Linear *l = b->linears, *o = &l[ROLE_O];
    PrefillJob job;
    bool prefill = prefill_plan(m, layer, w, n, segments, n_segments, tap, &job), half = prefill && job.half_in;
    if (!forward_show(tap, INPUT_QKV, w->h, n, c->hidden)) return;
    if (c->arch->mla) {
        if (!mla_project(m, layer, w, n, tap)) return;
    } else {
        forward_linears(m, (const Linear *[]){&l[ROLE_Q], &l[ROLE_K], &l[ROLE_V]},
                (LinearOut[]){{.y = w->q, .half = half}, {.y = w->k, .half = half}, {.y = w->v, .half = half}},
                3, in, n, w);
    }
    norm_heads(m, w->q, b->q_norm, n, c->n_heads);
    norm_heads(m, w->k, b->k_norm, n, c->n_kv_heads);
    w->held = NULL;
    w->forks = false;
    for (size_t i = 0; i < n_segments; i++) w->forks |= segments[i].parent != NULL;
    bool step = is_step(m, w, segments, n_segments), half_out = prefill && job.half_out;
    if (step) {
        half_out = !tap && step_in_half(m, o, n);
        attend_step(m, layer, w, segments, n_segments, half_out);
    } else if (prefill) {
        prefill_attend(m, layer, w, segments, n_segments, &job);
    } else {
        for (size_t i = 0; i < n_segments; i++) attend(m, layer, w, &segments[i]);
    }
    const float *att = c->arch->mla ? mla_values(m, w, n) : w->att;
    if (!forward_show(tap, INPUT_O, att, n, o->cols)) return;
    forward_linears(m, &o, &out, 1, &(LinearIn){.x = att, .half = half_out}, n, w);
}

void attention_forward(Model *m, int64_t layer, Workspace *w, int64_t n, const Segment *segments,
                       size_t n_segments, BlockTap *tap) {
    attention_half(m, layer, w, n, segments, n_segments, tap, &(LinearIn){.x = w->h},
                   (LinearOut){.y = w->h});
}

/* 没有旁听者时，激活函数留给 down 的输入去算。 */
static bool mlp_part(Model *m, const Linear *gate, const Linear *up, const Linear *down,
                     LinearOut out, const LinearIn *in, int64_t n, int group, Workspace *w,
                     BlockTap *tap) {
    Tensor g = tensor_f32(w->gate, n, up->rows), u = tensor_f32(w->up, n, up->rows);
    bool gated = gate->rows > 0, opaque = !tap && !act_needs_input(&down->act);
    LinearOut to[2] = {{.y = w->gate, .opaque = opaque, .f = m->config.activation},
                       {.y = w->up, .opaque = opaque, .f = m->config.activation}};
    if (!forward_show(tap, group, in->x, n, up->cols)) return false;
    if (gated)
        forward_linears(m, (const Linear *[]){gate, up}, to, 2, in, n, w);
    else
        forward_linears(m, &up, &to[1], 1, in, n, w);
    LinearIn act = {.kind = IN_ACTIVATE, .x = gated ? w->gate : w->up, .up = gated ? w->up : NULL,
                    .f = m->config.activation, .opaque = opaque, .tmp = w->gate};
    if (tap) {
        op_activate(m->backend, g, gated ? g : u, gated ? u : (Tensor){0}, m->config.activation);
        if (!forward_show(tap, group + 1, w->gate, n, up->rows)) return false;
        act = (LinearIn){.x = w->gate};
    }
    forward_linears(m, &down, &out, 1, &act, n, w);
    return true;
}

bool forward_mlp(Model *m, const Linear *gate, const Linear *up, const Linear *down, float *y,
                 const float *x, int64_t n, int group, Workspace *w, BlockTap *tap) {
    return mlp_part(m, gate, up, down, (LinearOut){.y = y}, &(LinearIn){.x = x}, n, group, w, tap);
}

static void mlp_half(Model *m, int64_t layer, Workspace *w, int64_t n, BlockTap *tap,
                     const LinearIn *in, LinearOut out) {
    const Linear *l = m->blocks[layer].linears;
    if (arch_has_experts(&m->config, layer))
        experts_forward(m, layer, w, n, tap);
    else
        mlp_part(m, &l[ROLE_GATE], &l[ROLE_UP], &l[ROLE_DOWN], out, in, n, INPUT_GATE_UP, w, tap);
}

void mlp_forward(Model *m, int64_t layer, Workspace *w, int64_t n, BlockTap *tap) {
    mlp_half(m, layer, w, n, tap, &(LinearIn){.x = w->h}, (LinearOut){.y = w->h});
}

/* 半块的输出 w->h：之后的归一化、乘系数。 */
static void finish_half(Model *m, Workspace *w, const float *post_norm, int64_t n) {
    const ModelConfig *c = &m->config;
    Tensor h = tensor_f32(w->h, n, c->hidden);
    if (post_norm) norm(m, w->h, w->h, post_norm, NULL, n);
    if (c->residual_scale != 1) op_multiply(m->backend, h, h, (float)c->residual_scale);
}

static void add_residual(Model *m, Workspace *w, const float *y, int64_t n) {
    int64_t d = m->config.hidden;
    op_add(m->backend, tensor_f32(w->x, n, d), tensor_f32((float *)y, n, d));
}

/* 半块的输入：w->x 的归一化，或原样。later 时归一化留给线性层去算，否则算到 w->h。 */
static LinearIn start_half(Model *m, Workspace *w, const float *weight, const float *bias, int64_t n,
                           bool later) {
    const ModelConfig *c = &m->config;
    size_t bytes = (size_t)(n * c->hidden) * sizeof *w->x;
    bool plain = c->form == FORM_BRANCH || c->form == FORM_AFTER;
    if (later && !plain && !c->residual_from_norm)
        return (LinearIn){.kind = IN_NORM, .x = w->x, .tmp = w->h,
                          .norm = {weight, bias, 1, (float)c->norm_eps, c->arch->layer_norm}};
    if (plain)
        op_copy(m->backend, w->h, w->x, bytes);
    else
        norm(m, w->h, w->x, weight, bias, n);
    if (c->residual_from_norm) op_copy(m->backend, w->x, w->h, bytes);
    return (LinearIn){.x = w->h};
}

/* 半块的输出：能直接加到残差上就加（sum 在 w->h），否则写到 w->h，再由 finish_half 与 add_residual。 */
static LinearOut half_output(const Model *m, const Workspace *w, const float *post_norm, bool plain,
                             const Linear *last) {
    const ModelConfig *c = &m->config;
    bool direct = plain && !post_norm && c->residual_scale == 1 && !c->parallel &&
                  last->out.kind == ACT_NONE;
    return direct ? (LinearOut){.y = w->x, .sum = w->h} : (LinearOut){.y = w->h};
}

/* 块的计算；旁听者要停时提前返回。 */
static void run_block(Model *m, int64_t layer, Workspace *w, int64_t n, const Segment *segments,
                      size_t n_segments, BlockTap *tap) {
    const ModelConfig *c = &m->config;
    const Block *b = &m->blocks[layer];
    bool after = c->form == FORM_AFTER, shared = c->shared_norm, dense = !arch_has_experts(c, layer);
    LinearIn in = start_half(m, w, b->attn_norm, b->attn_norm_bias, n, !tap && !c->arch->mla);
    LinearOut out = half_output(m, w, b->post_attn_norm, true, &b->linears[ROLE_O]);
    attention_half(m, layer, w, n, segments, n_segments, tap, &in, out);
    if (tap && tap->done) return;
    if (!out.sum) finish_half(m, w, b->post_attn_norm, n);
    if (c->parallel)
        op_copy(m->backend, w->side, w->h, (size_t)(n * c->hidden) * sizeof *w->h);
    else if (!out.sum)
        add_residual(m, w, w->h, n);
    if (after) norm(m, w->x, w->x, b->attn_norm, b->attn_norm_bias, n);
    in = start_half(m, w, shared ? b->attn_norm : b->mlp_norm,
                    shared ? b->attn_norm_bias : b->mlp_norm_bias, n, !tap && dense);
    out = half_output(m, w, b->post_mlp_norm, dense, &b->linears[ROLE_DOWN]);
    mlp_half(m, layer, w, n, tap, &in, out);
    if (tap && tap->done) return;
    if (!out.sum) finish_half(m, w, b->post_mlp_norm, n);
    if (c->parallel) add_residual(m, w, w->side, n);
    if (!out.sum) add_residual(m, w, w->h, n);
    if (after) norm(m, w->x, w->x, b->mlp_norm, b->mlp_norm_bias, n);
}

/* 前向的各块只记下有没有非有限值，全部算完再看：GPU 不必逐层等。 */
bool forward_block(Model *m, int64_t layer, Workspace *w, int64_t n, const Segment *segments, size_t n_segments,
                   BlockTap *tap, Err *e) {
    if (!model_need_block(m, layer, e)) return false;
    w->segments = segments;
    w->n_segments = n_segments;
    if (tap) tap->done = false;
    run_block(m, layer, w, n, segments, n_segments, tap);
    if (!backend_check(m->backend, e)) return false;
    if (!tap || !tap->done) op_watch(m->backend, tensor_f32(w->x, n, m->config.hidden), (int)layer);
    return true;
}

bool forward_finite(Model *m, Err *e) {
    int layer = op_watched(m->backend);
    if (layer >= 0)
        return err_set(e, ERR_NUMERIC, "第 %d 层（从 0 数）的输出出现 NaN 或 Inf", layer);
    return backend_check(m->backend, e);
}

bool block_forward(Model *m, int64_t layer, Workspace *w, int64_t n, const Segment *segments,
                   size_t n_segments, BlockTap *tap, Err *e) {
    return forward_block(m, layer, w, n, segments, n_segments, tap, e) && forward_finite(m, e);
}

bool forward_blocks(Model *m, Workspace *w, int64_t n, Segment *segments, size_t n_segments,
                    KvLayer *const *kv, Err *e) {
    for (int64_t l = 0; l < m->config.n_layers; l++) {
        for (size_t i = 0; kv && i < n_segments; i++) segments[i].kv = &kv[i][l];
        if (!interrupt_check(e) || !forward_block(m, l, w, n, segments, n_segments, NULL, e))
            return false;
        model_prefetch_next(m, l);
    }
    return forward_finite(m, e);
}

void forward_embed(Model *m, Workspace *w, const int32_t *ids, int64_t n, const Segment *segments,
                   size_t n_segments) {
    const ModelConfig *c = &m->config;
    Tensor x = tensor_f32(w->x, n, c->hidden), h = tensor_f32(w->h, n, c->hidden);
    op_embed(m->backend, x, &m->embed, ids);
    if (c->embed_scale != 1) op_multiply(m->backend, x, x, (float)c->embed_scale);
    if (c->embed_dim != c->hidden) {
        op_linear(m->backend, h, x, &m->project_in, (Tensor){0});
        op_copy(m->backend, w->x, w->h, (size_t)(n * c->hidden) * sizeof *w->x);
    }
    if (c->position == POS_LEARNED) {
        for (size_t i = 0; i < n_segments; i++)
            for (int64_t k = 0; k < segments[i].n; k++)
                w->positions[segments[i].row0 + k] =
                    (int32_t)(segments[i].first + k + c->arch->position_offset);
        op_embed(m->backend, h, &m->positions, w->positions);
        op_add(m->backend, x, h);
    }
    if (m->embed_norm) norm(m, w->x, w->x, m->embed_norm, m->embed_norm_bias, n);
}

void forward_finish(Model *m, float *out, float *x, int64_t n) {
    const ModelConfig *c = &m->config;
    bool projected = c->embed_dim != c->hidden;
    float *to = projected ? x : out;
    Tensor y = tensor_f32(out, n, c->hidden);
    if (!c->no_final_norm)
        norm(m, to, x, m->final_norm, m->final_norm_bias, n);
    else if (to != x)
        op_copy(m->backend, to, x, (size_t)(n * c->hidden) * sizeof *x);
    if (projected) op_linear(m->backend, y, tensor_f32(x, n, c->hidden), &m->project_out, (Tensor){0});
    if (c->logit_scale != 1) op_multiply(m->backend, y, y, (float)c->logit_scale);
}

bool forward_segments(Model *m, Workspace *w, const int32_t *ids, int64_t n, const Segment *segments,
                      size_t n_segments, Err *e) {
    int64_t last = w->horizon;
    CHECK(n <= w->max_rows);
    for (size_t i = 0; i < n_segments; i++)
        if (segments[i].first + segments[i].n > last) last = segments[i].first + segments[i].n;
    if (!model_ensure_rope(m, last, e)) return false;
    forward_embed(m, w, ids, n, segments, n_segments);
    if (!forward_blocks(m, w, n, (Segment *)segments, n_segments, NULL, e)) return false;
    forward_finish(m, w->h, w->x, n);
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
