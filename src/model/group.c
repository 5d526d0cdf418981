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

void group_list(const Model *m, int64_t layer, Group g[INPUT_COUNT]) {
    static const Group SHAPE[INPUT_COUNT] = {
        {.input = INPUT_QKV, .first = ROLE_Q, .n = 3, .feed = FEED_NORM, .norm = 0},
        {.input = INPUT_O, .first = ROLE_O, .n = 1, .feed = FEED_LINEAR, .from = ROLE_V},
        {.input = INPUT_GATE_UP, .first = ROLE_GATE, .n = 2, .feed = FEED_NORM, .norm = 1},
        {.input = INPUT_DOWN, .first = ROLE_DOWN, .n = 1, .feed = FEED_LINEAR, .from = ROLE_UP}};
    const ModelConfig *c = &m->config;
    const Linear *l = m->blocks[layer].linears;
    for (int i = 0; i < INPUT_COUNT; i++) {
        g[i] = SHAPE[i];
        for (int k = 0; k < g[i].n; k++)
            if (l[g[i].first + k].rows) g[i].cols = l[g[i].first + k].cols;
        g[i].n_scales = g[i].cols;
        g[i].share = 1;
        g[i].dim = g[i].cols;
        bool routed = i == INPUT_GATE_UP && arch_has_experts(c, layer); /* 归一化还供着路由与各专家 */
        bool ok = g[i].feed == FEED_NORM ? norm_folds(c) && !routed : i != INPUT_DOWN || mlp_folds(c);
        if (!g[i].cols || !ok || (i == INPUT_O && c->arch->mla)) g[i].feed = FEED_NONE;
    }
    if (g[INPUT_O].feed == FEED_NONE) return;
    g[INPUT_O].n_scales = l[ROLE_V].rows;
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

/* 组里各层的各列乘 s（大矩阵留在后端内存里）。 */
static bool scale_columns(Backend *b, const Group *g, const Linear *linears, const Tensor *w, const float *s, Err *e) {
    Arena host = {0}, tmp = backend_arena(b);
    float *each = ARENA_ARRAY(&host, float, g->cols, e), *col = ARENA_ARRAY(&tmp, float, g->cols, e);
    for (int64_t c = 0; each && c < g->cols; c++) each[c] = s[g->share == 1 ? c : group_scale_of(g, c)];
    if (each && col) {
        op_write(b, col, each, (size_t)g->cols * sizeof *col);
        for (int r = g->first; r < g->first + g->n; r++)
            if (linears[r].rows) op_scale(b, w[r], w[r], (Tensor){0}, tensor_f32_1d(col, g->cols));
    }
    arena_free(&host);
    arena_free(&tmp);
    return each && col && backend_check(b, e);
}

bool group_fold_scale(Backend *b, const Group *g, const Linear *linears, const Tensor *w,
                      float *const norm[2], const float *s, Err *e) {
    CHECK(g->feed != FEED_NONE);
    if (!scale_columns(b, g, linears, w, s, e)) return false;
    Arena tmp = backend_arena(b);
    float *each = ARENA_ARRAY(&tmp, float, g->n_scales, e);
    Tensor t = tensor_f32_1d(each, g->n_scales);
    if (each) op_write(b, each, s, (size_t)g->n_scales * sizeof *each);
    if (each && g->feed == FEED_LINEAR) {
        float *bias = linears[g->from].bias;
        op_divide_rows(b, w[g->from], t);
        if (bias) op_divide_rows(b, tensor_f32(bias, g->n_scales, 1), t);
    } else if (each) {
        op_divide(b, tensor_f32(norm[g->norm], 1, g->cols), norm[g->norm], g->cols, t);
    }
    arena_free(&tmp);
    return each && backend_check(b, e);
}

int64_t group_learned_scales(const Model *m, int64_t layer, int64_t *attn, int64_t *mlp) {
    Group g[INPUT_COUNT];
    group_list(m, layer, g);
    CHECK(g[INPUT_QKV].feed == FEED_NORM && g[INPUT_GATE_UP].feed == FEED_NORM && g[INPUT_O].feed == FEED_LINEAR);
    *attn = 0;
    *mlp = g[INPUT_QKV].n_scales;
    return *mlp + g[INPUT_GATE_UP].n_scales + g[INPUT_O].n_scales + m->config.n_kv_heads * m->config.head_dim;
}

bool scale_map_new(ScaleMap *map, Arena *a, const Model *m, int64_t layer, LinearRole r, Err *e) {
    const Linear *l = &m->blocks[layer].linears[r];
    Group g[INPUT_COUNT];
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
