/* test_group — 输入组：折进去的通道缩放不改变函数（GQA、没有门的 MLP、偏置、专家与路由、MLA、LayerNorm 之外的各种形状）；
 * 折不了的地方说折不了 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "model/forward.h"
#include "model/group.h"

enum { HIDDEN = 24, DIM = 6, FF = 20, N = 7, EXPERTS = 4, MOST = ROLE_COUNT + 3 + 3 * EXPERTS };

typedef struct Tiny {
    Backend backend;
    Model model;
    Workspace work;
    float x[N * HIDDEN], y[N * HIDDEN]; /* 块的输入；折叠之前的输出 */
} Tiny;

static float noise(uint64_t stream, int64_t i) {
    return (float)(2 * rng_unit(9, stream, (uint64_t)i) - 1);
}

/* 块的输出 → out。 */
static void forward(Tiny *t, float *out) {
    Err e = {0};
    Segment s = {.n = N};
    Block *b = &t->model.blocks[0];
    for (int64_t r = 0; r < b->n_linears; r++)
        if (b->linears[r].rows)
            assert_true(model_pack_linear(&t->model, &b->linears[r], b->linears[r].weight, &t->model.arena, &e));
    memcpy(t->work.x, t->x, sizeof t->x);
    if (!block_forward(&t->model, 0, &t->work, N, &s, 1, NULL, &e)) fail_msg("%s", e.msg);
    memcpy(out, t->work.x, sizeof t->x);
}

static float *random_floats(Tiny *t, uint64_t stream, int64_t n, float middle, float by) {
    Err e = {0};
    float *w = ARENA_ARRAY(&t->model.meta, float, n, &e);
    for (int64_t i = 0; i < n; i++) w[i] = middle + by * noise(stream, i);
    return w;
}

static void add_linear(Tiny *t, int r, LinearRole role, int group, int64_t rows, int64_t cols, bool bias) {
    Model *m = &t->model;
    Linear *l = &m->blocks[0].linears[r];
    *l = (Linear){.name = "测试", .role = role, .group = group, .rows = rows, .cols = cols};
    if (!rows) return;
    l->weight = random_floats(t, 20 + (uint64_t)r, rows * cols, 0, 0.4f);
    if (bias) l->bias = random_floats(t, 80 + (uint64_t)r, rows, 0, 1);
}

static void set_linear(Tiny *t, LinearRole r, int64_t rows, int64_t cols) {
    static const int GROUP[] = {INPUT_QKV, INPUT_QKV, INPUT_QKV, INPUT_O, INPUT_GATE_UP, INPUT_GATE_UP, INPUT_DOWN};
    add_linear(t, (int)r, r, GROUP[r], rows, cols, true);
}

/* 一块的随机小模型的壳，家族 arch。 */
static ModelConfig *open_shell(Tiny *t, const char *arch, int64_t heads, int64_t kv, int64_t n_linears) {
    Err e = {0};
    *t = (Tiny){0};
    assert_true(backend_open_cpu(&t->backend, 1, COMPUTE_F32, NULL, &e));
    Model *m = &t->model;
    *m = (Model){.backend = &t->backend, .dtype = DT_F32};
    ModelConfig *c = &m->config;
    arch_defaults(c, arch_find(arch, false));
    c->n_layers = 1, c->hidden = c->embed_dim = HIDDEN, c->intermediate = FF, c->n_heads = heads;
    c->n_kv_heads = kv, c->head_dim = DIM, c->vocab = 8, c->norm_eps = 1e-5, c->tied = true;
    c->attn_scale = 1 / sqrt(DIM), c->gated = true, c->activation = ACTF_SILU;
    c->rope = (RopeConfig){.theta = 100, .rotary_dim = 4}; /* 末两维不旋转 */
    m->blocks = ARENA_ARRAY(&m->meta, Block, 1, &e);
    m->inv_freq = ARENA_ARRAY(&m->meta, double, DIM / 2, &e);
    Block *b = &m->blocks[0];
    b->attn_norm = random_floats(t, 1, HIDDEN, 1, 0.3f);
    b->mlp_norm = random_floats(t, 2, HIDDEN, 1, 0.3f);
    b->linears = ARENA_ARRAY(&m->meta, Linear, n_linears, &e);
    b->n_linears = n_linears;
    for (int i = 0; i < N * HIDDEN; i++) t->x[i] = noise(3, i);
    return c;
}

static void ready(Tiny *t) {
    Err e = {0};
    if (!model_ensure_rope(&t->model, N, &e) || !workspace_open(&t->work, &t->model, N, &e)) fail_msg("%s", e.msg);
    forward(t, t->y);
}

/* plain：没有门的 MLP。 */
static void open_tiny(Tiny *t, int64_t heads, int64_t kv, bool plain, Activation f) {
    ModelConfig *c = open_shell(t, "llama", heads, kv, ROLE_COUNT);
    c->gated = !plain, c->activation = f;
    set_linear(t, ROLE_Q, heads * DIM, HIDDEN);
    set_linear(t, ROLE_K, kv * DIM, HIDDEN);
    set_linear(t, ROLE_V, kv * DIM, HIDDEN);
    set_linear(t, ROLE_O, HIDDEN, heads * DIM);
    set_linear(t, ROLE_GATE, plain ? 0 : FF, HIDDEN);
    set_linear(t, ROLE_UP, FF, HIDDEN);
    set_linear(t, ROLE_DOWN, HIDDEN, FF);
    ready(t);
}

/* 专家（与共享的专家，若有）从第 base 个线性层起。 */
static void add_experts(Tiny *t, int base, int64_t shared_ff) {
    Err e = {0};
    ModelConfig *c = &t->model.config;
    Block *b = &t->model.blocks[0];
    c->n_experts = EXPERTS, c->top_k = 2, c->expert_ff = FF / 2, c->shared_ff = shared_ff, c->norm_topk = true;
    c->layer[0] |= LAYER_EXPERTS, c->routed_scale = 1;
    add_linear(t, ROLE_GATE, ROLE_GATE, INPUT_GATE_UP, shared_ff, HIDDEN, false);
    add_linear(t, ROLE_UP, ROLE_UP, INPUT_GATE_UP, shared_ff, HIDDEN, false);
    add_linear(t, ROLE_DOWN, ROLE_DOWN, INPUT_DOWN, shared_ff ? HIDDEN : 0, shared_ff, false);
    for (int i = 0; i < EXPERTS; i++)
        for (int k = 0; k < 3; k++)
            add_linear(t, base + 3 * i + k, ROLE_COUNT, GROUP_EXPERTS + 2 * i + k / 2, k < 2 ? FF / 2 : HIDDEN,
                       k < 2 ? HIDDEN : FF / 2, false);
    b->router = random_floats(t, 5, EXPERTS * HIDDEN, 0, 1);
    b->router_bias = c->arch->router == ROUTER_SIGMOID ? random_floats(t, 6, EXPERTS, 0, 0.1f) : NULL;
    assert_true(qtensor_new_dense(&b->router_q, &t->model.arena, DT_F32, EXPERTS, HIDDEN, &e));
    op_pack_dense(&t->backend, &b->router_q, tensor_f32(b->router, EXPERTS, HIDDEN));
}

static void open_mixtral(Tiny *t) {
    open_shell(t, "mixtral", 4, 2, ROLE_COUNT + 3 * EXPERTS);
    set_linear(t, ROLE_Q, 4 * DIM, HIDDEN);
    set_linear(t, ROLE_K, 2 * DIM, HIDDEN);
    set_linear(t, ROLE_V, 2 * DIM, HIDDEN);
    set_linear(t, ROLE_O, HIDDEN, 4 * DIM);
    add_experts(t, ROLE_COUNT, 0);
    ready(t);
}

/* q_lora 为 0 时 q 直接由隐藏状态来。 */
static void open_deepseek(Tiny *t, int64_t q_lora) {
    enum { HEADS = 2, NOPE = 4, ROPE = 4, V = 6, KV_LORA = 10 };
    ModelConfig *c = open_shell(t, "deepseek_v3", HEADS, HEADS, MOST);
    c->q_lora = q_lora, c->kv_lora = KV_LORA, c->nope_dim = NOPE, c->rope_dim = ROPE, c->v_dim = V;
    c->head_dim = NOPE + ROPE, c->n_group = c->topk_group = 1;
    add_linear(t, ROLE_Q, ROLE_Q, q_lora ? GROUP_Q_B : INPUT_QKV, HEADS * (NOPE + ROPE), q_lora ? q_lora : HIDDEN, false);
    add_linear(t, ROLE_O, ROLE_O, INPUT_O, HIDDEN, HEADS * V, false);
    add_linear(t, ROLE_COUNT, ROLE_COUNT, INPUT_QKV, q_lora, HIDDEN, false);
    add_linear(t, ROLE_COUNT + 1, ROLE_COUNT, INPUT_QKV, KV_LORA + ROPE, HIDDEN, false);
    add_linear(t, ROLE_COUNT + 2, ROLE_COUNT, GROUP_KV_B, HEADS * (NOPE + V), KV_LORA, false);
    t->model.blocks[0].q_a_norm = q_lora ? random_floats(t, 7, q_lora, 1, 0.3f) : NULL;
    t->model.blocks[0].kv_a_norm = random_floats(t, 8, KV_LORA, 1, 0.3f);
    add_experts(t, ROLE_COUNT + 3, FF);
    ready(t);
}

static void close_tiny(Tiny *t) {
    workspace_close(&t->work);
    model_close(&t->model);
    backend_close(&t->backend);
}

static double difference(Tiny *t) {
    float out[N * HIDDEN];
    double d = 0, top = 0;
    forward(t, out);
    for (int i = 0; i < N * HIDDEN; i++) {
        d = fmax(d, fabs((double)out[i] - (double)t->y[i]));
        top = fmax(top, fabs((double)t->y[i]));
    }
    return d / top;
}

/* 各组都以 0.3–3 倍的随机 s 折叠，块的输出不变；只乘不除则大变（测试看得见缩放）。 */
static void check_folds(Tiny *t, int want_folds) {
    Err e = {0};
    Group g[GROUP_EXPERTS + 2 * EXPERTS];
    Block *b = &t->model.blocks[0];
    float *const norm[] = {b->attn_norm, b->mlp_norm};
    float s[64];
    int folds = 0;
    group_list(&t->model, 0, g);
    for (int i = 0; i < block_n_groups(&t->model.config, 0); i++) {
        if (g[i].feed == FEED_NONE) continue;
        assert_true(g[i].n_scales <= 64 && g[i].cols % g[i].n_scales == 0);
        for (int64_t k = 0; k < g[i].n_scales; k++) s[k] = powf(3, noise(60 + (uint64_t)i, k));
        assert_true(group_fold_scale(&t->model, 0, &g[i], norm, s, &e));
        assert_true(difference(t) < 2e-6);
        folds++;
    }
    assert_int_equal(folds, want_folds);
    Linear *o = &b->linears[ROLE_O];
    for (int64_t i = 0; i < o->rows * o->cols; i++) o->weight[i] *= s[i % 3];
    assert_true(difference(t) > 1e-2);
}

/* 专家：gate、up 与路由同一个 s，各专家的 down 自己的；MLA：q_a、kv_a 之后的归一化。 */
static void test_experts_and_mla(void **state) {
    (void)state;
    static Tiny t;
    open_mixtral(&t);
    check_folds(&t, 3 + EXPERTS); /* qkv、o、gate/up */
    close_tiny(&t);
    open_deepseek(&t, 8);
    check_folds(&t, 5 + EXPERTS); /* qkv、q_b、kv_b、gate/up、共享的 down */
    close_tiny(&t);
    open_deepseek(&t, 0);
    check_folds(&t, 4 + EXPERTS);
    close_tiny(&t);
}

static void test_folds(void **state) {
    (void)state;
    static Tiny t;
    static const struct {
        int64_t heads, kv;
        bool plain;
        Activation f;
        int folds;
    } CASES[] = {{4, 4, false, ACTF_SILU, 4}, {4, 2, false, ACTF_SILU, 4}, {6, 1, false, ACTF_GELU_TANH, 4},
                 {4, 2, true, ACTF_RELU, 4},  {4, 4, true, ACTF_GELU_ERF, 3}};
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        open_tiny(&t, CASES[i].heads, CASES[i].kv, CASES[i].plain, CASES[i].f);
        check_folds(&t, CASES[i].folds);
        close_tiny(&t);
    }
}

/* q 乘、k 除：RoPE 与 GQA 之下注意力不变。 */
static void test_qk(void **state) {
    (void)state;
    static Tiny t;
    for (int pairs = 0; pairs < 2; pairs++) {
        open_tiny(&t, 4, 2, false, ACTF_SILU);
        t.model.config.rope.pairs = pairs;
        forward(&t, t.y);
        for (LinearRole r = ROLE_Q; r <= ROLE_K; r++)
            for (int64_t i = 0; i < t.model.blocks[0].linears[r].rows; i++) {
                float x = powf(3, noise(70, group_qk_scale(&t.model.config, r, i)));
                float by = r == ROLE_Q ? x : 1 / x;
                for (int64_t c = 0; c < HIDDEN; c++) t.model.blocks[0].linears[r].weight[i * HIDDEN + c] *= by;
                t.model.blocks[0].linears[r].bias[i] *= by;
            }
        assert_true(difference(&t) < 2e-6);
        close_tiny(&t);
    }
}

/* 折不了的：归一化的位置、没有权重、两处共用、还供着残差或路由；v 不直接供 o。 */
static void test_refused(void **state) {
    (void)state;
    static Tiny t;
    open_tiny(&t, 4, 2, false, ACTF_SILU);
    ModelConfig keep = t.model.config, *c = &t.model.config;
    Group g[GROUP_EXPERTS];
    for (int i = 0; i < 6; i++) {
        static ArchSpec mla;
        *c = keep;
        if (i == 0) c->form = FORM_BRANCH;
        if (i == 1) c->form = FORM_AFTER;
        if (i == 2) c->norm_plain = true;
        if (i == 3) c->shared_norm = true;
        if (i == 4) c->residual_from_norm = true;
        if (i == 5) mla = *c->arch, mla.mla = true, c->arch = &mla;
        group_list(&t.model, 0, g);
        assert_int_equal(g[INPUT_QKV].feed, i == 5 ? FEED_NORM : FEED_NONE);
        assert_int_equal(g[INPUT_GATE_UP].feed, i == 5 ? FEED_NORM : FEED_NONE);
        assert_int_equal(g[INPUT_O].feed, i == 5 ? FEED_NONE : FEED_LINEAR);
        assert_int_equal(g[INPUT_DOWN].feed, FEED_LINEAR);
    }
    *c = keep;
    c->form = FORM_SANDWICH;
    group_list(&t.model, 0, g);
    assert_int_equal(g[INPUT_QKV].feed, FEED_NORM);
    close_tiny(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_folds), cmocka_unit_test(test_experts_and_mla),
                                       cmocka_unit_test(test_qk),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
