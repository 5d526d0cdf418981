/* test_gradient — 块与整模型的反向，对照双精度前向的中心差分
 * 双精度的前向在这里按定义另写一遍（逐元素循环），与被测代码没有共用。 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "compute/adamw.h"
#include "model/gradient.h"
#include "model/group.h"

enum {
    HIDDEN = 20, HEADS = 4, KV = 2, DIM = 6, FF = 28, VOCAB = 37, LAYERS = 2, N = 9, WINDOW = 5,
    Q = HEADS * DIM, K = KV * DIM, MAX_W = FF * HIDDEN
};
static const int64_t ROWS[ROLE_COUNT] = {Q, K, K, HIDDEN, FF, FF, HIDDEN};
static const int64_t COLS[ROLE_COUNT] = {HIDDEN, HIDDEN, HIDDEN, Q, HIDDEN, HIDDEN, FF};

/* 双精度的参数；差分时改其中一个数。 */
typedef struct Ref {
    double w[LAYERS][ROLE_COUNT][MAX_W], bias[LAYERS][ROLE_COUNT][FF];
    double attn_norm[LAYERS][HIDDEN], mlp_norm[LAYERS][HIDDEN], final_norm[HIDDEN];
    double embed[VOCAB][HIDDEN];
    double dk[LAYERS][N][K], dv[LAYERS][N][K]; /* 加在 k_proj、v_proj 输出上的扰动 */
} Ref;
static Ref ref;

static double noise(uint64_t stream, uint64_t i) {
    return (double)(float)((2 * rng_unit(5, stream, i) - 1));
}

static void ref_norm(double *y, const double *x, const double *w) {
    double ss = 0;
    for (int i = 0; i < HIDDEN; i++) ss += x[i] * x[i];
    double r = 1 / sqrt(ss / HIDDEN + 1e-5);
    for (int i = 0; i < HIDDEN; i++) y[i] = x[i] * r * w[i];
}
static void ref_linear(double *y, const double *x, int layer, LinearRole role) {
    for (int64_t r = 0; r < ROWS[role]; r++) {
        y[r] = ref.bias[layer][role][r];
        for (int64_t c = 0; c < COLS[role]; c++) y[r] += x[c] * ref.w[layer][role][r * COLS[role] + c];
    }
}
static void ref_rope(double *x, int heads, int pos) {
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < DIM / 2; i++) {
            double angle = pos * pow(100, -2.0 * i / DIM), *p = x + h * DIM + i;
            double a = p[0], b = p[DIM / 2];
            p[0] = a * cos(angle) - b * sin(angle);
            p[DIM / 2] = b * cos(angle) + a * sin(angle);
        }
}

static void ref_attention(double *out, const double *q, double k[N][K], double v[N][K], int i,
                          int window) {
    memset(out, 0, Q * sizeof *out);
    for (int h = 0; h < HEADS; h++) {
        const int kh = h / (HEADS / KV) * DIM;
        double p[N], sum = 0;
        for (int j = window && i >= window ? i - window + 1 : 0; j <= i; j++) {
            double s = 0;
            for (int c = 0; c < DIM; c++) s += q[h * DIM + c] * k[j][kh + c];
            sum += p[j] = exp(s / sqrt(DIM));
        }
        for (int j = window && i >= window ? i - window + 1 : 0; j <= i; j++)
            for (int c = 0; c < DIM; c++) out[h * DIM + c] += p[j] / sum * v[j][kh + c];
    }
}

static void ref_block(double x[N][HIDDEN], int layer, int window) {
    static double q[N][Q], k[N][K], v[N][K];
    double h[HIDDEN], att[Q], o[HIDDEN], gate[FF], up[FF];
    for (int i = 0; i < N; i++) {
        ref_norm(h, x[i], ref.attn_norm[layer]);
        ref_linear(q[i], h, layer, ROLE_Q);
        ref_linear(k[i], h, layer, ROLE_K);
        ref_linear(v[i], h, layer, ROLE_V);
        for (int c = 0; c < K; c++) k[i][c] += ref.dk[layer][i][c], v[i][c] += ref.dv[layer][i][c];
        ref_rope(q[i], HEADS, i);
        ref_rope(k[i], KV, i);
    }
    for (int i = 0; i < N; i++) {
        ref_attention(att, q[i], k, v, i, window);
        ref_linear(o, att, layer, ROLE_O);
        for (int c = 0; c < HIDDEN; c++) x[i][c] += o[c];
        ref_norm(h, x[i], ref.mlp_norm[layer]);
        ref_linear(gate, h, layer, ROLE_GATE);
        ref_linear(up, h, layer, ROLE_UP);
        for (int c = 0; c < FF; c++) gate[c] *= up[c] / (1 + exp(-gate[c]));
        ref_linear(o, gate, layer, ROLE_DOWN);
        for (int c = 0; c < HIDDEN; c++) x[i][c] += o[c];
    }
}

/* 被测模型：参数与 ref 相同（f32），window 为第 1 块的滑动窗口。 */
static void open_model(Model *m, Backend *b, int window) {
    Err e = {0};
    static ModelConfig c;
    arch_defaults(&c, arch_find("llama", false));
    c.n_layers = LAYERS, c.hidden = c.embed_dim = HIDDEN, c.intermediate = FF, c.n_heads = HEADS;
    c.n_kv_heads = KV, c.head_dim = DIM, c.vocab = VOCAB, c.norm_eps = 1e-5, c.tied = true;
    c.attn_scale = 1 / sqrt(DIM);
    c.rope = (RopeConfig){.theta = 100, .rotary_dim = DIM};
    c.sliding_window = window;
    for (int i = 1; i < LAYERS; i++) c.layer[i] = window ? LAYER_WINDOW : 0;
    *m = (Model){.config = c, .backend = b, .dtype = DT_F32};
    m->blocks = ARENA_ARRAY(&m->meta, Block, LAYERS, &e);
    m->inv_freq = ARENA_ARRAY(&m->meta, double, DIM / 2, &e);
    float w[MAX_W > VOCAB * HIDDEN ? MAX_W : VOCAB * HIDDEN];
    memset(&ref, 0, sizeof ref);
    for (int l = 0; l < LAYERS; l++) {
        Block *k = &m->blocks[l];
        k->attn_norm = ARENA_ARRAY(&m->meta, float, HIDDEN, &e);
        k->mlp_norm = ARENA_ARRAY(&m->meta, float, HIDDEN, &e);
        k->linears = ARENA_ARRAY(&m->meta, Linear, ROLE_COUNT, &e);
        k->n_linears = ROLE_COUNT;
        for (int i = 0; i < HIDDEN; i++) {
            ref.attn_norm[l][i] = k->attn_norm[i] = (float)(1 + 0.5 * noise(1, (uint64_t)(l * 99 + i)));
            ref.mlp_norm[l][i] = k->mlp_norm[i] = (float)(1 + 0.5 * noise(2, (uint64_t)(l * 99 + i)));
        }
        for (LinearRole r = 0; r < ROLE_COUNT; r++) {
            Linear *n = &k->linears[r];
            *n = (Linear){.name = "测试", .role = r, .group = input_group(r), .layer = l, .rows = ROWS[r], .cols = COLS[r]};
            n->bias = ARENA_ARRAY(&m->meta, float, ROWS[r], &e);
            for (int64_t i = 0; i < ROWS[r]; i++)
                ref.bias[l][r][i] = n->bias[i] = (float)(0.2 * noise(3 + r, (uint64_t)(l * 99 + i)));
            for (int64_t i = 0; i < ROWS[r] * COLS[r]; i++)
                ref.w[l][r][i] = w[i] = (float)(0.4 * noise(20 + r, (uint64_t)(l * 9999 + i)));
            assert_true(model_pack_linear(m, n, w, &m->arena, &e));
        }
    }
    m->final_norm = ARENA_ARRAY(&m->meta, float, HIDDEN, &e);
    for (int i = 0; i < HIDDEN; i++) ref.final_norm[i] = m->final_norm[i] = (float)(1 + 0.3 * noise(40, (uint64_t)i));
    for (int i = 0; i < VOCAB * HIDDEN; i++)
        ref.embed[i / HIDDEN][i % HIDDEN] = w[i] = (float)noise(41, (uint64_t)i);
    assert_true(qtensor_new_dense(&m->embed, &m->arena, DT_F32, VOCAB, HIDDEN, &e));
    op_pack_dense(b, &m->embed, tensor_f32(w, VOCAB, HIDDEN));
    m->head = &m->embed;
}

/* 块的损失：Σ weight·输出。 */
static double block_input[N][HIDDEN], block_weight[N][HIDDEN];
static double block_loss(int layer, int window) {
    double x[N][HIDDEN], sum = 0;
    memcpy(x, block_input, sizeof x);
    ref_block(x, layer, window);
    for (int i = 0; i < N * HIDDEN; i++) sum += x[i / HIDDEN][i % HIDDEN] * block_weight[i / HIDDEN][i % HIDDEN];
    return sum;
}

static void near(double got, double want, const char *what, int64_t i) {
    if (!(fabs(got - want) <= 3e-5 + 3e-5 * fabs(want)))
        fail_msg("%s[%lld]：得到 %.9g，差分 %.9g", what, (long long)i, got, want);
}
/* 对 p[0..n) 逐个（至多 60 个）做中心差分，与 got 比较。 */
static void check_block(const char *what, double *p, const float *got, int64_t n, int layer, int window) {
    int64_t step = n / 60 + 1;
    for (int64_t i = 0; i < n; i += step) {
        double keep = p[i], h = 1e-5;
        p[i] = keep + h;
        double up = block_loss(layer, window);
        p[i] = keep - h;
        double down = block_loss(layer, window);
        p[i] = keep;
        near((double)got[i], (up - down) / (2 * h), what, i);
    }
}

static float *floats(Arena *a, int64_t n) {
    Err e = {0};
    float *p = ARENA_ARRAY(a, float, n, &e);
    assert_non_null(p);
    return p;
}

static void check_layer(Model *m, int layer, int window) {
    Err e = {0};
    Arena a = {0};
    BlockTrace t;
    assert_true(block_trace_open(&t, m, N + 3, (ActQuant){0}, false, &e));
    float x[N * HIDDEN], d_out[N * HIDDEN];
    for (int i = 0; i < N * HIDDEN; i++) {
        block_input[i / HIDDEN][i % HIDDEN] = x[i] = (float)noise(50, (uint64_t)i);
        block_weight[i / HIDDEN][i % HIDDEN] = d_out[i] = (float)noise(51, (uint64_t)i);
    }
    BlockGrad g = {.x = floats(&a, N * HIDDEN), .attn_norm = floats(&a, HIDDEN),
                   .mlp_norm = floats(&a, HIDDEN), .k = floats(&a, N * K), .v = floats(&a, N * K)};
    for (LinearRole r = 0; r < ROLE_COUNT; r++) {
        g.w[r] = floats(&a, ROWS[r] * COLS[r]);
        g.bias[r] = floats(&a, ROWS[r]);
    }
    assert_true(block_trace_forward(m, layer, &t, x, N, &e));

    Workspace w; /* 前向与 forward.c 逐位相同 */
    Segment s = {.n = N};
    assert_true(workspace_open(&w, m, N, &e));
    memcpy(w.x, x, sizeof x);
    assert_true(block_forward(m, layer, &w, N, &s, 1, NULL, &e));
    assert_memory_equal(w.x, t.out, sizeof x);
    workspace_close(&w);

    float target[N * HIDDEN] = {0}, d_loss[N * HIDDEN]; /* mean((out − 0)²) */
    double mean = block_trace_mse(&t, m, target, d_loss), want = 0;
    for (int i = 0; i < N * HIDDEN; i++) {
        want += (double)t.out[i] * (double)t.out[i] / (N * HIDDEN);
        near((double)d_loss[i], 2 * (double)t.out[i] / (N * HIDDEN), "d_loss", i);
    }
    near(mean, want, "mse", 0);

    assert_true(block_trace_backward(m, layer, &t, d_out, &g, &e));
    check_block("dx", &block_input[0][0], g.x, N * HIDDEN, layer, window);
    check_block("attn_norm", ref.attn_norm[layer], g.attn_norm, HIDDEN, layer, window);
    check_block("mlp_norm", ref.mlp_norm[layer], g.mlp_norm, HIDDEN, layer, window);
    check_block("k", &ref.dk[layer][0][0], g.k, N * K, layer, window);
    check_block("v", &ref.dv[layer][0][0], g.v, N * K, layer, window);
    for (LinearRole r = 0; r < ROLE_COUNT; r++) {
        check_block("dW", ref.w[layer][r], g.w[r], ROWS[r] * COLS[r], layer, window);
        check_block("dbias", ref.bias[layer][r], g.bias[r], ROWS[r], layer, window);
    }

    /* 只要一部分、稠密权重由外面给：结果不变 */
    float k[N * K], dense[MAX_W];
    for (int64_t i = 0; i < ROWS[ROLE_DOWN] * COLS[ROLE_DOWN]; i++) dense[i] = (float)ref.w[layer][ROLE_DOWN][i];
    BlockGrad few = {.k = k, .dense[ROLE_DOWN] = dense};
    assert_true(block_trace_forward(m, layer, &t, x, N, &e));
    assert_true(block_trace_backward(m, layer, &t, d_out, &few, &e));
    assert_memory_equal(k, g.k, sizeof k);
    block_trace_close(&t);
    arena_free(&a);
}

/* 激活取整：8 位的直通估计与不取整的梯度相近；权重的梯度用取整后的输入 */
static void check_rounding(Model *m, int layer) {
    Err e = {0};
    Arena a = {0};
    BlockTrace t[2];
    float x[N * HIDDEN], d_out[N * HIDDEN], *dx[2], *dw[2];
    for (int i = 0; i < N * HIDDEN; i++) x[i] = (float)noise(50, (uint64_t)i), d_out[i] = (float)noise(51, (uint64_t)i);
    for (int i = 0; i < 2; i++) {
        ActQuant act = {.kind = i ? ACT_TOKEN : ACT_NONE, .bits = 8};
        BlockGrad g = {.x = dx[i] = floats(&a, N * HIDDEN), .w[ROLE_DOWN] = dw[i] = floats(&a, HIDDEN * FF)};
        assert_true(block_trace_open(&t[i], m, N, act, true, &e));
        assert_true(block_trace_forward(m, layer, &t[i], x, N, &e));
        assert_true(block_trace_backward(m, layer, &t[i], d_out, &g, &e));
    }
    double same = 0, size = 0, other = 0;
    for (int i = 0; i < N * HIDDEN; i++) {
        same += (double)dx[0][i] * (double)dx[1][i];
        size += (double)dx[0][i] * (double)dx[0][i];
        other += (double)dx[1][i] * (double)dx[1][i];
    }
    assert_true(same / sqrt(size * other) > 0.999 && fabs(other / size - 1) < 0.05);
    for (int r = 0; r < HIDDEN; r++)
        for (int c = 0; c < FF; c++) {
            double want = 0;
            for (int i = 0; i < N; i++) want += (double)d_out[i * HIDDEN + r] * (double)t[1].prod[i * FF + c];
            near((double)dw[1][r * FF + c], want, "取整后的 dW", r * FF + c);
        }
    double step = 0; /* prod 的确取过整 */
    for (int c = 0; c < FF; c++) step = fmax(step, fabs((double)t[1].raw[INPUT_DOWN][c]) / 127);
    for (int c = 0; c < FF; c++) {
        double code = (double)t[1].prod[c] / step;
        assert_true(fabs(code - rint(code)) < 1e-3);
    }
    block_trace_close(&t[0]);
    block_trace_close(&t[1]);
    arena_free(&a);
}

static void test_block(void **state) {
    (void)state;
    Err e = {0};
    for (int threads = 1; threads <= 2; threads++) {
        Backend b;
        Model m;
        assert_true(backend_open_cpu(&b, threads, COMPUTE_F32, NULL, &e));
        open_model(&m, &b, WINDOW);
        check_layer(&m, 0, 0);
        check_layer(&m, 1, WINDOW);
        check_rounding(&m, 0);
        arena_free(&m.rope_arena);
        arena_free(&m.arena);
        arena_free(&m.meta);
        backend_close(&b);
    }
}

static const int32_t IDS[N] = {3, 36, 0, 7, 7, 21, 14, 30, 1};
static double model_loss(void) {
    double x[N][HIDDEN], h[HIDDEN], loss = 0;
    for (int i = 0; i < N; i++) memcpy(x[i], ref.embed[IDS[i]], sizeof x[i]);
    for (int l = 0; l < LAYERS; l++) ref_block(x, l, 0);
    for (int i = 0; i + 1 < N; i++) {
        double sum = 0, z[VOCAB];
        ref_norm(h, x[i], ref.final_norm);
        for (int v = 0; v < VOCAB; v++) {
            z[v] = 0;
            for (int c = 0; c < HIDDEN; c++) z[v] += h[c] * ref.embed[v][c];
            sum += exp(z[v]);
        }
        loss += (log(sum) - z[IDS[i + 1]]) / (N - 1);
    }
    return loss;
}

static void see_kv(void *ctx, int64_t layer, const float *d_k, const float *d_v, int64_t n) {
    int *calls = ctx;
    assert_int_equal(n, N);
    assert_int_equal(layer, LAYERS - 1 - (*calls)++);
    for (int i = 0; i < 2 * N * K; i += 7) {
        int at = i % (N * K);
        double *p = i < N * K ? &ref.dk[layer][at / K][at % K] : &ref.dv[layer][at / K][at % K], h = 1e-4;
        *p = h;
        double up = model_loss();
        *p = -h;
        double down = model_loss();
        *p = 0;
        double got = (double)(i < N * K ? d_k : d_v)[at], want = (up - down) / (2 * h);
        if (!(fabs(got - want) <= 2e-6 + 1e-4 * fabs(want)))
            fail_msg("第 %lld 块 %s[%d]：得到 %.9g，差分 %.9g", (long long)layer, i < N * K ? "dk" : "dv", at, got, want);
    }
}

static void test_model(void **state) {
    (void)state;
    Err e = {0};
    Backend b;
    Model m;
    ModelGradient g;
    int calls = 0;
    double loss;
    assert_true(backend_open_cpu(&b, 2, COMPUTE_F32, NULL, &e));
    open_model(&m, &b, 0);
    assert_true(model_gradient_open(&g, &m, N + 4, &e));
    assert_true(model_gradient_window(&g, IDS, N, &loss, see_kv, &calls, &e));
    assert_int_equal(calls, LAYERS);
    assert_true(fabs(loss - model_loss()) < 1e-5);
    m.blocks[1].attn_norm[3] = INFINITY; /* 非有限的损失是错误 */
    assert_false(model_gradient_window(&g, IDS, N, NULL, see_kv, &calls, &e));
    assert_int_equal(e.code, ERR_NUMERIC);
    model_gradient_close(&g);
    arena_free(&m.rope_arena);
    arena_free(&m.arena);
    arena_free(&m.meta);
    backend_close(&b);
}

/* 对照 torch.optim.AdamW（lr 0.01，权重衰减 0.1）走三步 */
static void test_adamw(void **state) {
    (void)state;
    static const float GRAD[3][3] = {{1e-9f, 0.3f, -2}, {2e-8f, -0.1f, 0}, {0, 0.7f, 1}};
    static const float WANT[3] = {0.988328755f, -2.01507974f, 0.516948104f};
    Arena a = {0};
    Err e = {0};
    AdamW o;
    Backend b;
    assert_true(backend_open_cpu(&b, 2, COMPUTE_F32, NULL, &e));
    assert_true(adamw_new(&o, &a, 3, 0.01, &e));
    o.weight_decay = 0.1;
    o.param[0] = 1, o.param[1] = -2, o.param[2] = 0.5f;
    for (int t = 0; t < 3; t++) {
        memcpy(o.grad, GRAD[t], sizeof GRAD[t]);
        adamw_step(&o, &b);
    }
    for (int i = 0; i < 3; i++)
        if (!(fabsf(o.param[i] - WANT[i]) <= 3e-7f)) fail_msg("第 %d 个参数 %.9g，应为 %.9g", i, (double)o.param[i], (double)WANT[i]);
    backend_close(&b);
    arena_free(&a);
}

/* s（双精度）→ 第 layer 块的线性层 r 的权重与偏置，在 ref 里；w0、b0 是变换之前的。 */
static void scale_ref(const ScaleMap *map, const double *s, int layer, LinearRole r, const double *w0,
                      const double *b0) {
    for (int64_t i = 0; i < map->rows; i++) {
        double row = map->row[i] < 0 ? 1 : map->divide ? 1 / s[map->row[i]] : s[map->row[i]];
        ref.bias[layer][r][i] = b0[i] * row;
        for (int64_t c = 0; c < map->cols; c++)
            ref.w[layer][r][i * map->cols + c] =
                w0[i * map->cols + c] * row * (map->col[c] < 0 ? 1 : s[map->col[c]]);
    }
}

/* 等价变换（OmniQuant 的 LET）的梯度：只变换一个线性层（全变换则函数不变、梯度为 0），偏置也变；对照中心差分。 */
static void test_scales(void **state) {
    (void)state;
    enum { MOST = 2 * HIDDEN + 2 * K };
    Backend b;
    Model m;
    Err e = {0};
    BlockTrace t;
    Arena a = {0};
    assert_true(backend_open_cpu(&b, 1, COMPUTE_F32, NULL, &e));
    open_model(&m, &b, 0);
    int64_t attn, mlp, n = group_learned_scales(&m, 0, &attn, &mlp), seen = 0;
    assert_true(n == MOST && attn == 0 && mlp == HIDDEN);
    assert_true(block_trace_open(&t, &m, N, (ActQuant){0}, false, &e));
    float x[N * HIDDEN], d_out[N * HIDDEN], s[MOST], row[FF], col[FF], d_row[FF], d_col[FF];
    float w[MAX_W], u[MAX_W], dw[MAX_W], dbias[FF];
    double exact[MOST], w0[MAX_W], b0[FF];
    for (int i = 0; i < N * HIDDEN; i++) {
        block_input[i / HIDDEN][i % HIDDEN] = x[i] = (float)noise(50, (uint64_t)i);
        block_weight[i / HIDDEN][i % HIDDEN] = d_out[i] = (float)noise(51, (uint64_t)i);
    }
    for (int i = 0; i < MOST; i++) exact[i] = (double)(s[i] = 1 + 0.5f * (float)noise(52, (uint64_t)i));
    for (LinearRole r = 0; r < ROLE_COUNT; r++) {
        Linear *l = &m.blocks[0].linears[r];
        ScaleMap map;
        float grad[MOST] = {0};
        assert_true(scale_map_new(&map, &a, &m, 0, r, &e));
        scale_map_factors(&map, s, row, col);
        memcpy(w0, ref.w[0][r], sizeof w0);
        memcpy(b0, ref.bias[0][r], sizeof b0);
        for (int64_t i = 0; i < map.rows * map.cols; i++) w[i] = (float)w0[i];
        Tensor tw = tensor_f32(w, map.rows, map.cols), tu = tensor_f32(u, map.rows, map.cols);
        Tensor tr = tensor_f32_1d(row, map.rows), tc = tensor_f32_1d(col, map.cols);
        op_scale(&b, tu, tw, tr, tc);
        assert_true(model_pack_linear(&m, l, u, &m.arena, &e));
        for (int64_t i = 0; i < map.rows; i++) l->bias[i] = (float)b0[i] * row[i];
        BlockGrad g = {0};
        g.w[r] = dw;
        g.bias[r] = dbias;
        assert_true(block_trace_forward(&m, 0, &t, x, N, &e) && block_trace_backward(&m, 0, &t, d_out, &g, &e));
        op_scale_grad(&b, tensor_f32_1d(d_row, map.rows), tensor_f32_1d(d_col, map.cols),
                      tensor_f32(dw, map.rows, map.cols), tw, tr, tc);
        for (int64_t i = 0; i < map.rows; i++) d_row[i] += dbias[i] * (float)b0[i];
        scale_map_grad(&map, s, d_row, d_col, grad);
        for (int i = 0; i < MOST; i++) {
            double keep = exact[i], h = 1e-5, up, down;
            exact[i] = keep + h;
            scale_ref(&map, exact, 0, r, w0, b0);
            up = block_loss(0, 0);
            exact[i] = keep - h;
            scale_ref(&map, exact, 0, r, w0, b0);
            down = block_loss(0, 0);
            exact[i] = keep;
            double want = (up - down) / (2 * h);
            if (!(fabs((double)grad[i] - want) <= 2e-4 + 1e-4 * fabs(want)))
                fail_msg("第 %d 个线性层 ds[%d]：得到 %.9g，差分 %.9g", (int)r, i, (double)grad[i], want);
            seen += fabs(want) > 1e-3;
        }
        memcpy(ref.w[0][r], w0, sizeof w0);
        memcpy(ref.bias[0][r], b0, sizeof b0);
        assert_true(model_pack_linear(&m, l, w, &m.arena, &e));
        for (int64_t i = 0; i < map.rows; i++) l->bias[i] = (float)b0[i];
    }
    assert_true(seen > MOST); /* 各线性层都有不为 0 的 */
    block_trace_close(&t);
    arena_free(&a);
    arena_free(&m.rope_arena);
    arena_free(&m.arena);
    arena_free(&m.meta);
    backend_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_block), cmocka_unit_test(test_scales), cmocka_unit_test(test_model),
                                       cmocka_unit_test(test_adamw)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
