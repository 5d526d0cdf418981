/* experts — 混合专家的 MLP：路由、取行、逐个专家算、加回
 * 路由在主机上算（分数 f32，恒以 f32 的矩阵乘得到）：softmax 取前 k 个（mixtral、qwen3_moe），或 sigmoid 加修正、按组筛（deepseek_v3）。
 * 不变式：一个 token 的结果按专家号从小到大相加，只取决于它自己，与批里还有谁无关。并列时取号小的。 */
#include <math.h>

#include "model/forward_parts.h"

struct Routing {
    float *score;     /* (max_rows, n_experts) 读回的分数 */
    int32_t *expert;  /* (max_rows, top_k) 升序 */
    float *weight;    /* (max_rows, top_k) */
    int32_t *rows;    /* (max_rows) 一个专家的行号 */
    float *row_weight;
    float *bias;      /* (n_experts) 读回的修正 */
    float *choice;    /* (n_experts) 用来挑选的分数 */
    bool *chosen;     /* (n_experts) */
};

Routing *routing_new(Arena *a, const ModelConfig *c, int64_t max_rows, Err *e) {
    Routing *r = ARENA_ARRAY(a, Routing, 1, e);
    if (!r) return NULL;
    r->score = ARENA_ARRAY(a, float, max_rows * c->n_experts, e);
    r->expert = ARENA_ARRAY(a, int32_t, max_rows * c->top_k, e);
    r->weight = ARENA_ARRAY(a, float, max_rows * c->top_k, e);
    r->rows = ARENA_ARRAY(a, int32_t, max_rows, e);
    r->row_weight = ARENA_ARRAY(a, float, max_rows, e);
    r->bias = ARENA_ARRAY(a, float, c->n_experts, e);
    r->choice = ARENA_ARRAY(a, float, c->n_experts, e);
    r->chosen = ARENA_ARRAY(a, bool, c->n_experts, e);
    return r->score && r->expert && r->weight && r->rows && r->row_weight && r->bias && r->choice &&
                   r->chosen ? r : NULL;
}

/* v 的 [0, n) 里没有取过的最大者的下标；mark 记下。 */
static int64_t take_best(const float *v, bool *mark, int64_t n) {
    int64_t best = -1;
    for (int64_t i = 0; i < n; i++)
        if (!mark[i] && (best < 0 || v[i] > v[best])) best = i;
    mark[best] = true;
    return best;
}

/* 每组以最大的两个之和为分，只留 topk_group 组；落选组的专家标为取过。 */
static void drop_groups(const ModelConfig *c, const float *choice, bool *chosen) {
    int64_t per = c->n_experts / c->n_group;
    float sum[ARCH_MAX_EXPERTS];
    bool keep[ARCH_MAX_EXPERTS] = {0};
    for (int64_t g = 0; g < c->n_group; g++) {
        float first = -INFINITY, second = -INFINITY;
        for (int64_t i = g * per; i < (g + 1) * per; i++) {
            float v = choice[i];
            if (v > first) {
                second = first;
                first = v;
            } else if (v > second) {
                second = v;
            }
        }
        sum[g] = first + second;
    }
    for (int64_t k = 0; k < c->topk_group; k++) take_best(sum, keep, c->n_group);
    for (int64_t i = 0; i < c->n_experts; i++) chosen[i] = !keep[i / per];
}

/* 一行的分数 → 选中的专家（升序）与系数。 */
static void route_row(const ModelConfig *c, Routing *r, float *score, int32_t *expert,
                      float *weight) {
    bool sigmoid = c->arch->router == ROUTER_SIGMOID;
    double max = -INFINITY, sum = 0;
    for (int64_t i = 0; i < c->n_experts; i++) max = fmax(max, (double)score[i]);
    for (int64_t i = 0; i < c->n_experts; i++) {
        double p = sigmoid ? 1 / (1 + exp(-(double)score[i])) : exp((double)score[i] - max);
        r->choice[i] = sigmoid ? (float)p + r->bias[i] : score[i];
        score[i] = (float)p;
        sum += p;
        r->chosen[i] = false;
    }
    if (sigmoid && c->n_group > 1) drop_groups(c, r->choice, r->chosen);
    bool blocked[ARCH_MAX_EXPERTS];
    for (int64_t i = 0; i < c->n_experts; i++) blocked[i] = r->chosen[i];
    for (int64_t k = 0; k < c->top_k; k++) take_best(r->choice, r->chosen, c->n_experts);
    float total = 0;
    int64_t n = 0;
    for (int64_t i = 0; i < c->n_experts; i++)
        if (r->chosen[i] && !blocked[i]) {
            expert[n] = (int32_t)i;
            weight[n] = sigmoid ? score[i] : (float)((double)score[i] / sum);
            total += weight[n++];
        }
    for (int64_t k = 0; k < n; k++) {
        if (c->norm_topk) weight[k] /= sigmoid ? total + 1e-20f : total;
        weight[k] *= (float)c->routed_scale;
    }
}

/* 选中专家 e 的各行。返回: 行数。 */
static int64_t rows_of_expert(const ModelConfig *c, Routing *r, int64_t n, int64_t e) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < c->top_k; k++)
            if (r->expert[i * c->top_k + k] == e) {
                r->rows[count] = (int32_t)i;
                r->row_weight[count++] = r->weight[i * c->top_k + k];
            }
    return count;
}

void experts_forward(Model *m, int64_t layer, Workspace *w, int64_t n, BlockTap *tap) {
    const ModelConfig *c = &m->config;
    const Block *b = &m->blocks[layer];
    Backend *be = m->backend;
    Routing *r = w->routing;
    int64_t d = c->hidden, base = b->n_linears - 3 * c->n_experts;
    Tensor h = tensor_f32(w->h, n, d), sum = tensor_f32(w->side, n, d);
    if (!b->linears[ROLE_UP].rows && !forward_show(tap, INPUT_GATE_UP, w->h, n, d)) return; /* 有共享的专家时由它 */
    op_linear_exact(be, tensor_f32(w->scores, n, c->n_experts), h, &b->router_q);
    op_read(be, r->score, w->scores, (size_t)(n * c->n_experts) * sizeof *r->score);
    if (b->router_bias) op_read(be, r->bias, b->router_bias, (size_t)c->n_experts * sizeof *r->bias);
    if (be->err.code != ERR_NONE) return;
    for (int64_t i = 0; i < n; i++)
        route_row(c, r, r->score + i * c->n_experts, r->expert + i * c->top_k, r->weight + i * c->top_k);
    op_multiply(be, sum, sum, 0);
    for (int64_t e = 0; e < c->n_experts; e++) {
        int64_t k = rows_of_expert(c, r, n, e);
        const Linear *l = b->linears + base + 3 * e;
        if (k == 0) continue;
        op_gather_rows(be, tensor_f32(w->picked, k, d), h, r->rows);
        if (!forward_mlp(m, &l[0], &l[1], &l[2], w->picked, w->picked, k, GROUP_EXPERTS + 2 * (int)e, w, tap))
            return;
        op_scatter_rows(be, sum, tensor_f32(w->picked, k, d), r->rows, r->row_weight);
    }
    const Linear *shared = b->linears;
    if (shared[ROLE_UP].rows) {
        if (!forward_mlp(m, &shared[ROLE_GATE], &shared[ROLE_UP], &shared[ROLE_DOWN], w->h, w->h, n,
                         INPUT_GATE_UP, w, tap))
            return;
        op_add(be, h, sum);
    } else {
        op_copy(be, w->h, w->side, (size_t)(n * d) * sizeof *w->h);
    }
}
