/* test_group — 输入组：折进去的通道缩放不改变函数（GQA、没有门的 MLP、偏置、LayerNorm 之外的各种形状）；折不了的地方说折不了 */
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

enum { HIDDEN = 24, DIM = 6, FF = 20, N = 7 };

typedef struct Tiny {
    Backend backend;
    Model model;
    Workspace work;
    Tensor w[ROLE_COUNT];
    float x[N * HIDDEN], y[N * HIDDEN]; /* 块的输入；折叠之前的输出 */
} Tiny;

static float noise(uint64_t stream, int64_t i) {
    return (float)(2 * rng_unit(9, stream, (uint64_t)i) - 1);
}

/* 块的输出 → out。 */
static void forward(Tiny *t, float *out) {
    Err e = {0};
    Segment s = {.n = N};
    for (LinearRole r = 0; r < ROLE_COUNT; r++)
        if (t->w[r].data)
            assert_true(model_pack_linear(&t->model, &t->model.blocks[0].linears[r],
                                          tensor_data_f32(t->w[r]), &t->model.arena, &e));
    memcpy(t->work.x, t->x, sizeof t->x);
    if (!block_forward(&t->model, 0, &t->work, N, &s, 1, NULL, &e)) fail_msg("%s", e.msg);
    memcpy(out, t->work.x, sizeof t->x);
}

static void set_linear(Tiny *t, LinearRole r, int64_t rows, int64_t cols) {
    Err e = {0};
    Model *m = &t->model;
    Linear *l = &m->blocks[0].linears[r];
    static const int GROUP[] = {INPUT_QKV, INPUT_QKV, INPUT_QKV, INPUT_O, INPUT_GATE_UP, INPUT_GATE_UP, INPUT_DOWN};
    *l = (Linear){.name = "测试", .role = r, .group = GROUP[r], .rows = rows, .cols = cols};
    if (!rows) return;
    float *w = ARENA_ARRAY(&m->meta, float, rows * cols, &e);
    l->bias = ARENA_ARRAY(&m->meta, float, rows, &e);
    for (int64_t i = 0; i < rows * cols; i++) w[i] = 0.4f * noise(20 + r, i);
    for (int64_t i = 0; i < rows; i++) l->bias[i] = noise(40 + r, i);
    t->w[r] = tensor_f32(w, rows, cols);
}

/* 一块的随机小模型。plain：没有门的 MLP。 */
static void open_tiny(Tiny *t, int64_t heads, int64_t kv, bool plain, Activation f) {
    Err e = {0};
    *t = (Tiny){0};
    assert_true(backend_open_cpu(&t->backend, 1, COMPUTE_F32, NULL, &e));
    static ModelConfig c;
    c = (ModelConfig){0};
    arch_defaults(&c, arch_find("llama", false));
    c.n_layers = 1, c.hidden = c.embed_dim = HIDDEN, c.intermediate = FF, c.n_heads = heads;
    c.n_kv_heads = kv, c.head_dim = DIM, c.vocab = 8, c.norm_eps = 1e-5, c.tied = true;
    c.attn_scale = 1 / sqrt(DIM), c.gated = !plain, c.activation = f;
    c.rope = (RopeConfig){.theta = 100, .rotary_dim = 4}; /* 末两维不旋转 */
    Model *m = &t->model;
    *m = (Model){.config = c, .backend = &t->backend, .dtype = DT_F32};
    m->blocks = ARENA_ARRAY(&m->meta, Block, 1, &e);
    m->inv_freq = ARENA_ARRAY(&m->meta, double, DIM / 2, &e);
    Block *b = &m->blocks[0];
    b->attn_norm = ARENA_ARRAY(&m->meta, float, HIDDEN, &e);
    b->mlp_norm = ARENA_ARRAY(&m->meta, float, HIDDEN, &e);
    b->linears = ARENA_ARRAY(&m->meta, Linear, ROLE_COUNT, &e);
    b->n_linears = ROLE_COUNT;
    for (int i = 0; i < HIDDEN; i++) b->attn_norm[i] = 1 + 0.3f * noise(1, i), b->mlp_norm[i] = 1 + 0.3f * noise(2, i);
    set_linear(t, ROLE_Q, heads * DIM, HIDDEN);
    set_linear(t, ROLE_K, kv * DIM, HIDDEN);
    set_linear(t, ROLE_V, kv * DIM, HIDDEN);
    set_linear(t, ROLE_O, HIDDEN, heads * DIM);
    set_linear(t, ROLE_GATE, plain ? 0 : FF, HIDDEN);
    set_linear(t, ROLE_UP, FF, HIDDEN);
    set_linear(t, ROLE_DOWN, HIDDEN, FF);
    for (int i = 0; i < N * HIDDEN; i++) t->x[i] = noise(3, i);
    assert_true(model_ensure_rope(m, N, &e) && workspace_open(&t->work, m, N, &e));
    forward(t, t->y);
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
    Group g[INPUT_COUNT];
    Block *b = &t->model.blocks[0];
    float *const norm[] = {b->attn_norm, b->mlp_norm};
    float s[64];
    int folds = 0;
    group_list(&t->model, 0, g);
    for (int i = 0; i < INPUT_COUNT; i++) {
        if (g[i].feed == FEED_NONE) continue;
        assert_true(g[i].n_scales <= 64 && g[i].cols % g[i].n_scales == 0);
        for (int64_t k = 0; k < g[i].n_scales; k++) s[k] = powf(3, noise(60 + (uint64_t)i, k));
        assert_true(group_fold_scale(&t->backend, &g[i], b->linears, t->w, norm, s, &e));
        assert_true(difference(t) < 2e-6);
        folds++;
    }
    assert_int_equal(folds, want_folds);
    float *o = tensor_data_f32(t->w[ROLE_O]);
    for (int64_t i = 0; i < t->w[ROLE_O].shape[0] * t->w[ROLE_O].shape[1]; i++) o[i] *= s[i % 3];
    assert_true(difference(t) > 1e-2);
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
            for (int64_t i = 0; i < t.w[r].shape[0]; i++) {
                float x = powf(3, noise(70, group_qk_scale(&t.model.config, r, i)));
                float by = r == ROLE_Q ? x : 1 / x;
                for (int64_t c = 0; c < HIDDEN; c++) tensor_data_f32(t.w[r])[i * HIDDEN + c] *= by;
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
    Group g[INPUT_COUNT];
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
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_folds), cmocka_unit_test(test_qk),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
