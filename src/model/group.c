/* group — 输入组的实现 */
#include "model/group.h"

#include "model/forward.h"

/* 半块之前的归一化能不能折：要有自己的权重，且只供着这一组。 */
static bool norm_folds(const ModelConfig *c) {
    bool before = c->form == FORM_PRE || c->form == FORM_SANDWICH;
    return before && !c->norm_plain && !c->shared_norm && !c->residual_from_norm;
}

/* 一个 s>0 的缩放能不能穿过 MLP 的中间：有门时 up 是乘数；没有门时激活须是正齐次的。 */
static bool mlp_folds(const ModelConfig *c) {
    return c->gated || c->activation == ACTF_RELU;
}

int group_of(int group) {
    return group >= GROUP_EXPERTS && (group - GROUP_EXPERTS) % 2 == 0 ? INPUT_GATE_UP : group;
}

bool linear_makes_scores(const Linear *l) {
    return l->role == ROLE_Q || l->role == ROLE_K || l->slot == T_Q_A;
}

int64_t group_next(const Block *b, const Group *g, int64_t r) {
    while (++r < b->n_linears)
        if (b->linears[r].rows && group_of(b->linears[r].group) == g->input) return r;
    return -1;
}

/* 第 i 组的输入由谁产生。 */
static void set_feed(const Model *m, int64_t layer, Group *g) {
    const ModelConfig *c = &m->config;
    bool expert = g->input >= GROUP_EXPERTS;
    switch (g->input) {
    case INPUT_QKV:
    case INPUT_GATE_UP:
        g->norm = g->input == INPUT_QKV ? NORM_ATTN : NORM_MLP;
        g->feed = norm_folds(c) ? FEED_NORM : FEED_NONE;
        g->routed = g->input == INPUT_GATE_UP && arch_has_experts(c, layer);
        return;
    case GROUP_Q_B:
    case GROUP_KV_B:
        g->norm = g->input == GROUP_Q_B ? NORM_Q_A : NORM_KV_A;
        g->feed = FEED_NORM;
        return;
    case INPUT_O: /* MLA 的 v 与 k 的一半同出一个矩阵，官方不缩放 */
        g->from = ROLE_V;
        g->feed = c->arch->mla ? FEED_NONE : FEED_LINEAR;
        return;
    default: /* down：基本的（或共享的专家的），或第几个专家的 */
        g->from = expert ? m->blocks[layer].n_linears - 3 * (c->n_experts - (g->input - GROUP_EXPERTS) / 2) + 1 : ROLE_UP;
        g->feed = mlp_folds(c) ? FEED_LINEAR : FEED_NONE;
    }
}

void group_list(const Model *m, int64_t layer, Group *g) {
    const ModelConfig *c = &m->config;
    const Block *b = &m->blocks[layer];
    for (int i = 0; i < block_n_groups(c, layer); i++) {
        g[i] = (Group){.input = i, .share = 1};
        int64_t first = group_next(b, &g[i], -1);
        if (first < 0) continue;
        g[i].cols = g[i].n_scales = g[i].dim = b->linears[first].cols;
        set_feed(m, layer, &g[i]);
    }
    if (g[INPUT_O].feed == FEED_NONE) return;
    g[INPUT_O].n_scales = b->linears[ROLE_V].rows;
    g[INPUT_O].share = c->n_heads / c->n_kv_heads;
    g[INPUT_O].dim = c->head_dim;
}

int64_t group_scale_of(const Group *g, int64_t col) {
    return col / g->dim / g->share * g->dim + col % g->dim;
}

int64_t group_qk_scale(const ModelConfig *c, LinearRole role, int64_t row) {
    int64_t dim = c->head_dim, half = c->rope.rotary_dim / 2, j = row % dim;
    int64_t head = row / dim / (role == ROLE_Q ? c->n_heads / c->n_kv_heads : 1);
    if (c->position == POS_ROPE && j < 2 * half) j = c->rope.pairs ? j / 2 * 2 : j % half;
    return head * dim + j;
}

/* 组里各层（与路由）的各列乘 s。 */
static bool scale_columns(Model *m, Block *b, const Group *g, const float *s, Err *e) {
    Backend *be = m->backend;
    Arena host = {0}, tmp = backend_arena(be);
    float *each = ARENA_ARRAY(&host, float, g->cols, e), *col = ARENA_ARRAY(&tmp, float, g->cols, e);
    bool ok = each && col;
    for (int64_t c = 0; ok && c < g->cols; c++) each[c] = s[g->share == 1 ? c : group_scale_of(g, c)];
    if (ok) op_write(be, col, each, (size_t)g->cols * sizeof *col);
    for (int64_t r = -1; ok && (r = group_next(b, g, r)) >= 0;) {
        Tensor w = linear_weight(&b->linears[r]);
        op_scale(be, w, w, (Tensor){0}, tensor_f32_1d(col, g->cols));
    }
    if (ok && g->routed) {
        Tensor router = tensor_f32(b->router, m->config.n_experts, g->cols);
        op_scale(be, router, router, (Tensor){0}, tensor_f32_1d(col, g->cols));
        op_pack_dense(be, &b->router_q, router);
    }
    arena_free(&host);
    arena_free(&tmp);
    return ok && backend_check(be, e);
}

bool group_fold_scale(Model *m, int64_t layer, const Group *g, float *const norm[2], const float *s, Err *e) {
    Backend *be = m->backend;
    Block *b = &m->blocks[layer];
    float *const norms[] = {norm[0], norm[1], b->q_a_norm, b->kv_a_norm};
    CHECK(g->feed != FEED_NONE);
    if (!scale_columns(m, b, g, s, e)) return false;
    Arena tmp = backend_arena(be);
    float *each = ARENA_ARRAY(&tmp, float, g->n_scales, e);
    Tensor t = tensor_f32_1d(each, g->n_scales);
    if (each) op_write(be, each, s, (size_t)g->n_scales * sizeof *each);
    if (each && g->feed == FEED_LINEAR) {
        const Linear *from = &b->linears[g->from];
        op_divide_rows(be, linear_weight(from), t);
        if (from->bias) op_divide_rows(be, tensor_f32(from->bias, g->n_scales, 1), t);
    } else if (each) {
        op_divide(be, tensor_f32(norms[g->norm], 1, g->cols), norms[g->norm], g->cols, t);
    }
    arena_free(&tmp);
    return each && backend_check(be, e);
}

int64_t group_learned_scales(const Model *m, int64_t layer, int64_t *attn, int64_t *mlp) {
    Group g[GROUP_EXPERTS];
    CHECK(!arch_has_experts(&m->config, layer));
    group_list(m, layer, g);
    CHECK(g[INPUT_QKV].feed == FEED_NORM && g[INPUT_GATE_UP].feed == FEED_NORM && g[INPUT_O].feed == FEED_LINEAR);
    *attn = 0;
    *mlp = g[INPUT_QKV].n_scales;
    return *mlp + g[INPUT_GATE_UP].n_scales + g[INPUT_O].n_scales + m->config.n_kv_heads * m->config.head_dim;
}

bool scale_map_new(ScaleMap *map, Arena *a, const Model *m, int64_t layer, LinearRole r, Err *e) {
    const Linear *l = &m->blocks[layer].linears[r];
    Group g[GROUP_EXPERTS];
    int64_t attn, mlp, qk = group_learned_scales(m, layer, &attn, &mlp) - m->config.n_kv_heads * m->config.head_dim;
    group_list(m, layer, g);
    const int64_t first[INPUT_COUNT] = {[INPUT_QKV] = attn, [INPUT_GATE_UP] = mlp,
                                        [INPUT_O] = qk - g[INPUT_O].n_scales, [INPUT_DOWN] = -1};
    InputGroup in = input_group(r);
    *map = (ScaleMap){.rows = l->rows, .cols = l->cols, .divide = r == ROLE_Q || r == ROLE_V};
    map->row = ARENA_ARRAY(a, int32_t, l->rows, e);
    map->col = ARENA_ARRAY(a, int32_t, l->cols, e);
    if (!map->row || !map->col) return false;
    for (int64_t i = 0; i < l->rows; i++)
        map->row[i] = (int32_t)(r <= ROLE_K   ? qk + group_qk_scale(&m->config, r, i)
                                : r == ROLE_V ? first[INPUT_O] + i
                                              : -1);
    for (int64_t i = 0; i < l->cols; i++)
        map->col[i] = (int32_t)(first[in] < 0 ? -1 : first[in] + group_scale_of(&g[in], i));
    return true;
}

void scale_map_factors(const ScaleMap *map, const float *s, float *row, float *col) {
    for (int64_t i = 0; i < map->rows; i++)
        row[i] = map->row[i] < 0 ? 1 : map->divide ? 1 / s[map->row[i]] : s[map->row[i]];
    for (int64_t i = 0; i < map->cols; i++) col[i] = map->col[i] < 0 ? 1 : s[map->col[i]];
}

void scale_map_grad(const ScaleMap *map, const float *s, const float *d_row, const float *d_col,
                    float *grad) {
    for (int64_t i = 0; i < map->rows; i++) {
        int32_t k = map->row[i];
        if (k >= 0) grad[k] += map->divide ? -d_row[i] / (s[k] * s[k]) : d_row[i];
    }
    for (int64_t i = 0; i < map->cols; i++)
        if (map->col[i] >= 0) grad[map->col[i]] += d_col[i];
}
