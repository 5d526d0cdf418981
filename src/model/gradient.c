/* gradient — 反向的实现
 * 块：y = m + down(silu(gate(h2))·up(h2))，m = x + o(attn(rope(q(h1)), rope(k(h1)), v(h1)))，h = 归一化。
 * 残差的伴随是相加，RoPE 的伴随是反向旋转（sin 取负），线性层 y = x·Wᵀ 的伴随是 dy·W 与 dyᵀ·x。 */
#include "model/gradient.h"

#include <math.h>

#include "base/log.h"

static Tensor mat(const float *x, int64_t rows, int64_t cols) {
    return tensor_f32((float *)x, rows, cols);
}
static Tensor vec(const float *x, int64_t n) {
    return tensor_f32_1d((float *)x, x ? n : 0);
}

bool block_trace_open(BlockTrace *t, Model *m, int64_t max_rows, ActQuant act, bool round_qkv,
                      Err *e) {
    const ModelConfig *c = &m->config;
    int64_t d = c->hidden, ff = c->intermediate, half = c->rope.rotary_dim / 2;
    int64_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim, largest = 0;
    for (LinearRole r = 0; r < ROLE_COUNT; r++) {
        const Linear *l = &m->blocks[0].linears[r];
        if (l->rows * l->cols > largest) largest = l->rows * l->cols;
    }
    CHECK(act.kind == ACT_NONE || act.kind == ACT_TOKEN);
    *t = (BlockTrace){0};
    if (!arch_require(c, FEATURE_ALL, "要求梯度的方法（手写的反向）", e)) return false;
    bool inputs = act.kind != ACT_NONE, qkv = inputs && round_qkv;
    *t = (BlockTrace){.max_rows = max_rows, .arena = backend_arena(m->backend), .compute = m->backend->compute, .act = act,
                      .round_qkv = qkv};
    struct {
        float **p;
        int64_t width;
    } parts[] = {{&t->x, d},      {&t->h1, d},    {&t->h2, d},          {&t->q, q},
                 {&t->k, kv},     {&t->v, kv},    {&t->att, q},         {&t->mid, d},
                 {&t->gate, ff},  {&t->up, ff},   {&t->prod, ff},        {&t->out, d},
                 {&t->d_att, q},  {&t->d_q, q},   {&t->d_k, kv},        {&t->d_v, kv},
                 {&t->d_gate, ff}, {&t->d_up, ff}, {&t->d_hidden[0], d}, {&t->d_hidden[1], d},
                 {&t->neg_sin, half},
                 {&t->raw[INPUT_QKV], inputs ? d : 0},     {&t->raw[INPUT_O], inputs ? q : 0},
                 {&t->raw[INPUT_GATE_UP], inputs ? d : 0}, {&t->raw[INPUT_DOWN], inputs ? ff : 0},
                 {&t->raw[TRACE_Q], qkv ? q : 0},          {&t->raw[TRACE_K], qkv ? kv : 0},
                 {&t->raw[TRACE_V], qkv ? kv : 0}};
    bool ok = model_ensure_rope(m, max_rows, e);
    for (size_t i = 0; ok && i < sizeof parts / sizeof *parts; i++) {
        *parts[i].p = ARENA_ARRAY(&t->arena, float, max_rows * parts[i].width, e);
        ok = *parts[i].p != NULL;
    }
    if (ok) ok = (t->weight = ARENA_ARRAY(&t->arena, float, largest, e)) != NULL;
    HostView v = host_view(m->backend);
    float *neg = ok ? HOST_MAP(&v, float, t->neg_sin, max_rows *half, HOST_WRITE) : NULL;
    const float *sin_t = HOST_MAP(&v, float, m->sin_table, max_rows *half, HOST_READ);
    ok = ok && neg && sin_t;
    for (int64_t i = 0; ok && i < max_rows * half; i++) neg[i] = -sin_t[i];
    host_end(&v);
    ok = backend_check(m->backend, e) && ok;
    if (!ok) block_trace_close(t);
    return ok;
}

void block_trace_close(BlockTrace *t) {
    arena_free(&t->arena);
    *t = (BlockTrace){0};
}

static void linear(Model *m, const Linear *l, float *y, const float *x, int64_t n) {
    op_linear(m->backend, mat(y, n, l->rows), mat(x, n, l->cols), &l->q, vec(l->bias, l->rows));
}

static void norm(Model *m, float *y, const float *x, const float *weight, int64_t n) {
    int64_t d = m->config.hidden;
    op_rmsnorm(m->backend, mat(y, n, d), mat(x, n, d), vec(weight, d), (float)m->config.norm_eps);
}

/* q、k 就地旋转；sin_table 取负即反向。 */
static void rotate(Model *m, float *q, float *k, int64_t n, const float *sin_table) {
    const ModelConfig *c = &m->config;
    int64_t half = c->rope.rotary_dim / 2;
    Tensor cos_t = mat(m->cos_table, n, half), sin_t = mat(sin_table, n, half);
    op_rope(m->backend, tensor_f32_3d(q, n, c->n_heads, c->head_dim), cos_t, sin_t, 0);
    op_rope(m->backend, tensor_f32_3d(k, n, c->n_kv_heads, c->head_dim), cos_t, sin_t, 0);
}

/* 该处要取整时：留下原样，就地取整。 */
static void round_at(Model *m, BlockTrace *t, int at, float *x, int64_t n, int64_t cols) {
    if (t->act.kind == ACT_NONE || (at >= TRACE_Q && !t->round_qkv)) return;
    op_copy(m->backend, t->raw[at], x, (size_t)(n * cols) * sizeof *x);
    op_round_act(m->backend, mat(x, n, cols), &t->act);
}
static void round_back(Model *m, const BlockTrace *t, int at, float *dx, int64_t n, int64_t cols) {
    if (t->act.kind == ACT_NONE || (at >= TRACE_Q && !t->round_qkv)) return;
    op_round_act_grad(m->backend, mat(dx, n, cols), mat(t->raw[at], n, cols), &t->act);
}

static AttnSpec attention_spec(const ModelConfig *c, int64_t layer) {
    return (AttnSpec){.n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads,
                      .head_dim = c->head_dim, .window = arch_window(c, layer),
                      .scale = (float)c->attn_scale};
}

bool block_trace_forward(Model *m, int64_t layer, BlockTrace *t, const float *x, int64_t n,
                         Err *e) {
    const ModelConfig *c = &m->config;
    const Block *b = &m->blocks[layer];
    const Linear *l = b->linears;
    Backend *be = m->backend;
    int64_t d = c->hidden, ff = c->intermediate;
    CHECK(n >= 1 && n <= t->max_rows);
    if (!model_need_block(m, layer, e)) return false;
    ComputeMode usual = be->compute;
    be->compute = t->compute;
    t->n = n;
    op_copy(be, t->x, x, (size_t)(n * d) * sizeof *x);
    norm(m, t->h1, t->x, b->attn_norm, n);
    round_at(m, t, INPUT_QKV, t->h1, n, d);
    linear(m, &l[ROLE_Q], t->q, t->h1, n);
    linear(m, &l[ROLE_K], t->k, t->h1, n);
    linear(m, &l[ROLE_V], t->v, t->h1, n);
    round_at(m, t, TRACE_Q, t->q, n, l[ROLE_Q].rows);
    round_at(m, t, TRACE_K, t->k, n, l[ROLE_K].rows);
    round_at(m, t, TRACE_V, t->v, n, l[ROLE_V].rows);
    rotate(m, t->q, t->k, n, m->sin_table);
    AttnSpec s = attention_spec(c, layer);
    op_attention(be, tensor_f32_3d(t->att, n, s.n_heads, s.head_dim),
                 tensor_f32_3d(t->q, n, s.n_heads, s.head_dim),
                 tensor_f32_3d(t->k, n, s.n_kv_heads, s.head_dim),
                 tensor_f32_3d(t->v, n, s.n_kv_heads, s.head_dim), &s);
    round_at(m, t, INPUT_O, t->att, n, l[ROLE_O].cols);
    linear(m, &l[ROLE_O], t->out, t->att, n);
    op_copy(be, t->mid, t->x, (size_t)(n * d) * sizeof *x);
    op_add(be, mat(t->mid, n, d), mat(t->out, n, d));

    norm(m, t->h2, t->mid, b->mlp_norm, n);
    round_at(m, t, INPUT_GATE_UP, t->h2, n, d);
    linear(m, &l[ROLE_GATE], t->gate, t->h2, n);
    linear(m, &l[ROLE_UP], t->up, t->h2, n);
    op_silu_mul(be, mat(t->prod, n, ff), mat(t->gate, n, ff), mat(t->up, n, ff));
    round_at(m, t, INPUT_DOWN, t->prod, n, ff);
    linear(m, &l[ROLE_DOWN], t->d_hidden[0], t->prod, n);
    op_copy(be, t->out, t->mid, (size_t)(n * d) * sizeof *x);
    op_add(be, mat(t->out, n, d), mat(t->d_hidden[0], n, d));
    be->compute = usual;
    return backend_check(be, e);
}

/* 一层的反向：x 是它的输入，dy 是输出的导数；要的 dW、dbias 写入 g，dx 非 NULL 时写入或累加（add 暂存处非 NULL 时）。 */
static void linear_back(Model *m, const Linear *l, BlockTrace *t, const float *x, const float *dy,
                        float *dx, float *add, const BlockGrad *g) {
    Backend *be = m->backend;
    int64_t n = t->n, rows = l->rows, cols = l->cols;
    LinearGrad job = {.dy = dy, .x = x, .w = &l->q, .n = n, .dw = g->w[l->role], .dx = add ? add : dx,
                      .dense = g->dense[l->role] ? g->dense[l->role] : t->weight,
                      .ready = g->dense[l->role] != NULL};
    if (!dx) job.dx = NULL;
    op_linear_grad(be, &job);
    float *bias = g->bias[l->role];
    if (bias) op_column_sum(be, vec(bias, rows), mat(dy, n, rows));
    if (dx && add) op_add(be, mat(dx, n, cols), mat(add, n, cols));
}

/* MLP 一半：d_out → d_mid（含残差），放在 d_hidden[0]。 */
static void mlp_back(Model *m, int64_t layer, BlockTrace *t, const float *d_out,
                     const BlockGrad *g) {
    const Block *b = &m->blocks[layer];
    const Linear *l = b->linears;
    Backend *be = m->backend;
    int64_t n = t->n, d = m->config.hidden, ff = m->config.intermediate;
    float *d_mid = t->d_hidden[0], *tmp = t->d_hidden[1];
    linear_back(m, &l[ROLE_DOWN], t, t->prod, d_out, t->d_gate, NULL, g);
    round_back(m, t, INPUT_DOWN, t->d_gate, n, ff);
    op_silu_mul_grad(be, mat(t->d_gate, n, ff), mat(t->d_up, n, ff), mat(t->d_gate, n, ff),
                     mat(t->gate, n, ff), mat(t->up, n, ff));
    linear_back(m, &l[ROLE_GATE], t, t->h2, t->d_gate, d_mid, NULL, g);
    linear_back(m, &l[ROLE_UP], t, t->h2, t->d_up, d_mid, tmp, g);
    round_back(m, t, INPUT_GATE_UP, d_mid, n, d);
    op_copy(be, tmp, d_mid, (size_t)(n * d) * sizeof *tmp);
    op_rmsnorm_grad(be, mat(d_mid, n, d), vec(g->mlp_norm, d), mat(tmp, n, d), mat(t->mid, n, d),
                    vec(b->mlp_norm, d), (float)m->config.norm_eps);
    op_add(be, mat(d_mid, n, d), mat(d_out, n, d));
}

/* 注意力一半：d_mid（d_hidden[0]）→ q、k、v 的导数与块输入的导数。 */
static void attention_back(Model *m, int64_t layer, BlockTrace *t, const BlockGrad *g) {
    const Block *b = &m->blocks[layer];
    const Linear *l = b->linears;
    Backend *be = m->backend;
    int64_t n = t->n, d = m->config.hidden, q = l[ROLE_Q].rows, kv = l[ROLE_K].rows;
    float *d_mid = t->d_hidden[0], *d_h = t->d_hidden[1];
    AttnSpec s = attention_spec(&m->config, layer);
    linear_back(m, &l[ROLE_O], t, t->att, d_mid, t->d_att, NULL, g);
    round_back(m, t, INPUT_O, t->d_att, n, q);
    op_attention_grad(be, mat(t->d_q, n, q), mat(t->d_k, n, kv), mat(t->d_v, n, kv),
                      mat(t->d_att, n, q), mat(t->q, n, q), mat(t->k, n, kv), mat(t->v, n, kv), &s);
    rotate(m, t->d_q, t->d_k, n, t->neg_sin);
    round_back(m, t, TRACE_Q, t->d_q, n, q);
    round_back(m, t, TRACE_K, t->d_k, n, kv);
    round_back(m, t, TRACE_V, t->d_v, n, kv);
    if (g->k) op_copy(be, g->k, t->d_k, (size_t)(n * kv) * sizeof *g->k);
    if (g->v) op_copy(be, g->v, t->d_v, (size_t)(n * kv) * sizeof *g->v);
    bool down = g->x || g->attn_norm;
    float *add = t->h2; /* 此后不再用 */
    linear_back(m, &l[ROLE_Q], t, t->h1, t->d_q, down ? d_h : NULL, NULL, g);
    linear_back(m, &l[ROLE_K], t, t->h1, t->d_k, down ? d_h : NULL, add, g);
    linear_back(m, &l[ROLE_V], t, t->h1, t->d_v, down ? d_h : NULL, add, g);
    if (!down) return;
    round_back(m, t, INPUT_QKV, d_h, n, d);
    float *d_x = g->x ? g->x : add;
    op_rmsnorm_grad(be, mat(d_x, n, d), vec(g->attn_norm, d), mat(d_h, n, d), mat(t->x, n, d),
                    vec(b->attn_norm, d), (float)m->config.norm_eps);
    op_add(be, mat(d_x, n, d), mat(d_mid, n, d));
}

bool block_trace_backward(Model *m, int64_t layer, BlockTrace *t, const float *d_out,
                          const BlockGrad *g, Err *e) {
    Backend *be = m->backend;
    ComputeMode usual = be->compute;
    be->compute = t->compute;
    mlp_back(m, layer, t, d_out, g);
    attention_back(m, layer, t, g);
    be->compute = usual;
    return backend_check(be, e);
}

double block_trace_mse(const BlockTrace *t, Model *m, const float *target, float *d_out) {
    int64_t d = m->config.hidden;
    double n = (double)(t->n * d);
    return op_mse_grad(m->backend, mat(d_out, t->n, d), mat(t->out, t->n, d), mat(target, t->n, d),
                       (float)(2.0 / n)) / n;
}

bool model_gradient_open(ModelGradient *g, Model *m, int64_t max_len, Err *e) {
    const ModelConfig *c = &m->config;
    int64_t kv = c->n_kv_heads * c->head_dim;
    *g = (ModelGradient){.model = m, .max_len = max_len, .arena = backend_arena(m->backend)};
    CHECK(m->head && m->final_norm && max_len >= 2);
    if (m->head_int8)
        return err_set(e, ERR_CONFIG, "这个方法要求梯度，头须不量化：head_quant=none");
    Arena *a = &g->arena;
    bool ok = (g->inputs = ARENA_ARRAY(a, float, c->n_layers * max_len * c->hidden, e)) &&
              (g->d_x[0] = ARENA_ARRAY(a, float, max_len * c->hidden, e)) &&
              (g->d_x[1] = ARENA_ARRAY(a, float, max_len * c->hidden, e)) &&
              (g->d_k = ARENA_ARRAY(a, float, max_len * kv, e)) &&
              (g->d_v = ARENA_ARRAY(a, float, max_len * kv, e)) &&
              (g->targets = ARENA_ARRAY(&g->host, int32_t, max_len, e)) &&
              (g->nll = ARENA_ARRAY(&g->host, double, max_len, e)) &&
              block_trace_open(&g->trace, m, max_len, (ActQuant){0}, false, e);
    if (!ok) model_gradient_close(g);
    return ok;
}

void model_gradient_close(ModelGradient *g) {
    block_trace_close(&g->trace);
    arena_free(&g->host);
    arena_free(&g->arena);
    *g = (ModelGradient){0};
}

/* 前向到头：各块的输入留在 g->inputs，损失对最后一块输出的导数写入 g->d_x[0]。 */
static bool loss_gradient(ModelGradient *g, const int32_t *ids, int64_t n, double *loss, Err *e) {
    Model *m = g->model;
    const ModelConfig *c = &m->config;
    int64_t d = c->hidden, step = g->max_len * d;
    op_embed(m->backend, mat(g->inputs, n, d), &m->embed, ids);
    for (int64_t l = 0; l < c->n_layers; l++) {
        if (!interrupt_check(e) ||
            !block_trace_forward(m, l, &g->trace, g->inputs + l * step, n, e))
            return false;
        if (l + 1 < c->n_layers)
            op_copy(m->backend, g->inputs + (l + 1) * step, g->trace.out, (size_t)(n * d) * sizeof(float));
    }
    const float *out = g->trace.out;
    norm(m, g->d_x[1], out, m->final_norm, n);
    for (int64_t i = 0; i < n; i++) g->targets[i] = i + 1 < n ? ids[i + 1] : -1;
    ScoreGradJob job = {.n = n, .x = g->d_x[1], .head = m->head, .targets = g->targets,
                        .scale = (float)(1.0 / (double)(n - 1)), .nll = g->nll,
                        .dx = g->trace.d_hidden[0]};
    op_score_grad(m->backend, &job);
    op_rmsnorm_grad(m->backend, mat(g->d_x[0], n, d), vec(NULL, 0), mat(job.dx, n, d),
                    mat(out, n, d), vec(m->final_norm, d), (float)c->norm_eps);
    double sum = 0;
    for (int64_t i = 0; i + 1 < n; i++) sum += g->nll[i];
    if (loss) *loss = sum / (double)(n - 1);
    if (!backend_check(m->backend, e)) return false;
    if (!isfinite(sum)) return err_set(e, ERR_NUMERIC, "反向传播：窗口的损失不是有限值");
    return true;
}

bool model_gradient_window(ModelGradient *g, const int32_t *ids, int64_t n, double *loss,
                           KvGradFn *see, void *ctx, Err *e) {
    Model *m = g->model;
    int64_t step = g->max_len * m->config.hidden;
    CHECK(n >= 2 && n <= g->max_len);
    if (!loss_gradient(g, ids, n, loss, e)) return false;
    float *d_out = g->d_x[0], *d_x = g->d_x[1];
    for (int64_t l = m->config.n_layers - 1; l >= 0; l--) {
        BlockGrad want = {.x = l > 0 ? d_x : NULL, .k = g->d_k, .v = g->d_v};
        bool kept = l + 1 == m->config.n_layers; /* 前向刚走完最后一块 */
        if (!interrupt_check(e) ||
            !(kept || block_trace_forward(m, l, &g->trace, g->inputs + l * step, n, e)) ||
            !block_trace_backward(m, l, &g->trace, d_out, &want, e))
            return false;
        see(ctx, l, g->d_k, g->d_v, n);
        float *t = d_out;
        d_out = d_x;
        d_x = t;
    }
    return true;
}
