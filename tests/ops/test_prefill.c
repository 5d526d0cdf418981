/* test_prefill — 行数很多（长提示）的线性层：几个共用输入的一次算，偏置、加到 y 上、gate·up、当场归一化与 W8A8
 * 形状大到 CUDA 上走自己的矩阵乘（gemm.cu），各维都不是输出块的倍数；稠密的按双精度的界抽查，W8A8 须逐位相同。
 * 同样的调用两次逐位相同。 */
#include "tests/ops/reference.h"

enum { N = 261, COLS = 136, N_OUT = 3, FF = 5640, SAMPLES = 3000 };
static const int64_t ROWS[N_OUT] = {4104, 520, 1024};

static Arena arena;

/* 行列号：先是四角，再是随机的。 */
static int64_t sample(int i, int64_t n, int64_t rows) {
    if (i < 4) return (i / 2 ? n - 1 : 0) * rows + (i % 2 ? rows - 1 : 0);
    return rng_below(9, 1, (uint64_t)i, (uint64_t)(n * rows));
}
static double dot(const float *x, const QTensor *q, int64_t at, bool bf16, double *size) {
    const float *row = x + at / q->rows * q->cols;
    double sum = 0;
    for (int64_t c = 0; c < q->cols; c++) {
        float a = bf16 ? ref_bf16(row[c]) : row[c], w = qtensor_at(q, at % q->rows, c);
        double p = (double)a * (double)(bf16 ? ref_bf16(w) : w);
        sum += p, *size += fabs(p);
    }
    return sum;
}
static QTensor dense(Backend *b, DType t, int64_t rows, int64_t cols, uint64_t stream) {
    QTensor q;
    float *w = ref_random(rows * cols, stream, 0.1);
    assert_true(qtensor_new_dense(&q, &arena, t, rows, cols, NULL));
    op_pack_dense(b, &q, tensor_f32(w, rows, cols));
    free(w);
    return q;
}
static QTensor int8(Backend *b, int64_t rows, int64_t cols, uint64_t stream, DType scale_type) {
    QSpec spec = {.bits = 8, .group_size = -1, .zero = ZERO_SYM, .scale_dtype = scale_type, .grid = GRID_ABSMAX};
    QTensor q;
    float *w = ref_random(rows * cols, stream, 0.1), *s = ref_zeros(rows), *z = ref_zeros(rows);
    Tensor tw = tensor_f32(w, rows, cols), ts = tensor_f32(s, rows, 1), tz = tensor_f32(z, rows, 1);
    assert_true(qtensor_new(&q, &arena, spec, rows, cols, NULL));
    op_qparams(b, ts, tz, tw, &q.spec);
    op_quantize(b, &q, tw, ts, tz);
    free(w), free(s), free(z);
    return q;
}

typedef struct Case {
    float *x, *bias[N_OUT], *y[N_OUT], *old[N_OUT], *sum[N_OUT];
    QTensor q[N_OUT];
} Case;
/* 第 1 个有偏置，第 2 个加到 y 上，第 3 个两样都有。 */
static void run(Backend *b, Case *c, const ActQuant *act) {
    LinearOut out[N_OUT];
    for (int i = 0; i < N_OUT; i++) {
        memcpy(c->y[i], c->old[i], (size_t)(N * ROWS[i]) * sizeof(float));
        out[i] = (LinearOut){.y = c->y[i], .w = &c->q[i], .bias = i == 1 ? NULL : c->bias[i], .sum = i ? c->sum[i] : NULL};
    }
    LinearIn in = {.x = c->x};
    if (act)
        op_linear_int8_from(b, out, N_OUT, &in, N, act);
    else
        op_linear_from(b, out, N_OUT, &in, N);
    ref_check(b);
}
static void each_backend(const RefTarget *t, bool w8a8) {
    Backend b = ref_open(t, 2);
    bool bf16 = t->compute == COMPUTE_BF16;
    Case c = {.x = ref_random(N * COLS, 1, 1)};
    for (int i = 0; i < N_OUT; i++) {
        uint64_t k = (uint64_t)i;
        c.q[i] = w8a8 ? int8(&b, ROWS[i], COLS, 2 + k, i ? DT_F16 : DT_F32)
                      : dense(&b, bf16 ? DT_BF16 : DT_F32, ROWS[i], COLS, 2 + k);
        c.bias[i] = ref_random(ROWS[i], 5 + k, 1), c.old[i] = ref_random(N * ROWS[i], 8 + k, 1);
        c.y[i] = ref_zeros(N * ROWS[i]), c.sum[i] = ref_zeros(N * ROWS[i]);
    }
    const ActQuant act = {.kind = ACT_TOKEN, .bits = 8};
    run(&b, &c, w8a8 ? &act : NULL);
    for (int i = 0; i < N_OUT; i++)
        for (int k = 0; k < SAMPLES; k++) {
            int64_t at = sample(k, N, ROWS[i]), row = at / ROWS[i], r = at % ROWS[i];
            float bias = i == 1 ? 0 : c.bias[i][r], old = i ? c.old[i][at] : 0;
            if (!w8a8) {
                double size = fabs((double)bias) + fabs((double)old), want = dot(c.x, &c.q[i], at, bf16, &size);
                ref_near((double)c.y[i][at], want + (double)bias + (double)old, (COLS + 6) * 0x1p-24 * size, t->name, "线性层");
                continue;
            }
            float m = 1e-5f;
            int64_t sum = 0;
            for (int64_t j = 0; j < COLS; j++) m = fmaxf(m, fabsf(c.x[row * COLS + j]));
            float s = m * (1 / 127.0f);
            for (int64_t j = 0; j < COLS; j++)
                sum += (int64_t)(qtensor_code(&c.q[i], r, j) - 128) * (int64_t)rintf(c.x[row * COLS + j] / s);
            float want = (float)sum * (qtensor_scale(&c.q[i], r, 0) * s);
            if (i != 1) want = want + bias;
            if (i) want = old + want;
            ref_same(&c.y[i][at], &want, 1, t->name, "W8A8");
        }
    float *again = ref_zeros(N * ROWS[0]);
    memcpy(again, c.y[0], (size_t)(N * ROWS[0]) * sizeof *again);
    run(&b, &c, w8a8 ? &act : NULL);
    ref_same(c.y[0], again, N * ROWS[0], t->name, "再一次");
    free(again), free(c.x);
    for (int i = 0; i < N_OUT; i++) free(c.bias[i]), free(c.old[i]), free(c.y[i]), free(c.sum[i]);
    backend_close(&b);
    arena_free(&arena);
}
/* 机器上最快的指令集，两种精度。 */
static void each_target(bool w8a8) {
    RefTarget t[REF_MAX_TARGETS];
    int n = ref_targets(t);
    for (int i = n > 2 ? n - 2 : 0; i < n; i++) each_backend(&t[i], w8a8);
}
static void test_many(void **state) {
    (void)state;
    each_target(false);
}
static void test_int8(void **state) {
    (void)state;
    each_target(true);
}

/* gate、up 不透明地交给 down，与分开算的相近：f(gate)·up 至多差 bf16 的一次舍入（W8A8 再差半格）。 */
static void gated(const RefTarget *t, Activation f, bool w8a8) {
    enum { MID = 72 };
    Backend b = ref_open(t, 2);
    bool bf16 = t->compute == COMPUTE_BF16;
    QTensor q[3];
    for (int i = 0; i < 3; i++) {
        int64_t rows = i == 2 ? MID : FF, cols = i == 2 ? FF : MID;
        q[i] = w8a8 ? int8(&b, rows, cols, 20 + (uint64_t)i, DT_F32)
                    : dense(&b, bf16 ? DT_BF16 : DT_F32, rows, cols, 20 + (uint64_t)i);
    }
    float *x = ref_random(N * MID, 30, 1), *g = ref_zeros(N * FF), *u = ref_zeros(N * FF), *y = ref_zeros(N * MID);
    float *h = ref_zeros(N * FF), *want = ref_zeros(N * MID);
    const ActQuant act = {.kind = ACT_TOKEN, .bits = 8};
    LinearOut out[2] = {{.y = g, .w = &q[0]}, {.y = u, .w = &q[1]}}, down = {.y = want, .w = &q[2]};
    LinearIn in = {.x = x}, mid = {.x = h};
    (w8a8 ? op_linear_int8_from(&b, out, 2, &in, N, &act) : op_linear_from(&b, out, 2, &in, N));
    op_activate(&b, tensor_f32(h, N, FF), tensor_f32(g, N, FF), tensor_f32(u, N, FF), f);
    (w8a8 ? op_linear_int8_from(&b, &down, 1, &mid, N, &act) : op_linear_from(&b, &down, 1, &mid, N));
    for (int i = 0; i < 2; i++) out[i].opaque = true, out[i].f = f;
    down.y = y;
    mid = (LinearIn){.kind = IN_ACTIVATE, .x = g, .up = u, .f = f, .opaque = true, .tmp = g};
    (w8a8 ? op_linear_int8_from(&b, out, 2, &in, N, &act) : op_linear_from(&b, out, 2, &in, N));
    (w8a8 ? op_linear_int8_from(&b, &down, 1, &mid, N, &act) : op_linear_from(&b, &down, 1, &mid, N));
    ref_check(&b);
    double error = 0, power = 0, limit = !bf16 ? 2e-6 : w8a8 ? 2e-2 : 6e-3;
    for (int64_t i = 0; i < N * MID; i++) {
        error += ((double)y[i] - (double)want[i]) * ((double)y[i] - (double)want[i]);
        power += (double)want[i] * (double)want[i];
    }
    ref_near(sqrt(error / power), 0, limit, t->name, "不透明的 gate·up");
    free(x), free(g), free(u), free(y), free(h), free(want);
    backend_close(&b);
    arena_free(&arena);
}
static void test_gated(void **state) {
    (void)state;
    static const Activation FS[] = {ACTF_SILU, ACTF_GELU_TANH, ACTF_GELU_QUICK, ACTF_GELU_ERF, ACTF_RELU};
    RefTarget t[REF_MAX_TARGETS];
    int n = ref_targets(t);
    for (int i = n > 2 ? n - 2 : 0; i < n; i++)
        for (int k = 0; k < 5; k++) gated(&t[i], FS[k], k % 2);
    for (int i = n > 2 ? n - 2 : 0; i < n; i++) gated(&t[i], ACTF_SILU, true);
}

/* 当场归一化的输入，各种行宽：与先归一化相同（CUDA 上只差末位）。 */
static void normed(const RefTarget *t, int64_t cols, bool center, bool w8a8) {
    enum { SOME = 40, OUT = 24 };
    Backend b = ref_open(t, 2);
    QTensor q = w8a8 ? int8(&b, OUT, cols, 41, DT_F32)
                     : dense(&b, t->compute == COMPUTE_BF16 ? DT_BF16 : DT_F32, OUT, cols, 41);
    float *x = ref_random(SOME * cols, 42, 3), *h = ref_zeros(SOME * cols), *w = ref_random(cols, 43, 1);
    float *y = ref_zeros(SOME * OUT), *want = ref_zeros(SOME * OUT), *tmp = ref_zeros(SOME * cols);
    const ActQuant act = {.kind = ACT_TOKEN, .bits = 8};
    LinearOut out = {.y = want, .w = &q};
    LinearIn in = {.x = h}, fused = {.kind = IN_NORM, .x = x, .norm = {w, center ? w : NULL, 1, 1e-5f, center}, .tmp = tmp};
    op_norm(&b, tensor_f32(h, SOME, cols), tensor_f32(x, SOME, cols), &fused.norm);
    (w8a8 ? op_linear_int8_from(&b, &out, 1, &in, SOME, &act) : op_linear_from(&b, &out, 1, &in, SOME));
    out.y = y;
    (w8a8 ? op_linear_int8_from(&b, &out, 1, &fused, SOME, &act) : op_linear_from(&b, &out, 1, &fused, SOME));
    ref_check(&b);
    ref_same_row(y, want, SOME * OUT, t->name, center ? "当场 LayerNorm" : "当场 RMSNorm");
    free(x), free(h), free(w), free(y), free(want), free(tmp);
    backend_close(&b);
    arena_free(&arena);
}
static void test_norm(void **state) {
    (void)state;
    static const int64_t WIDE[] = {2044, 4096, 6148, 9000, 17000};
    RefTarget t[REF_MAX_TARGETS];
    int n = ref_targets(t);
    for (int i = n > 2 ? n - 2 : 0; i < n; i++)
        for (int k = 0; k < 20; k++) normed(&t[i], WIDE[k / 4], k % 2, k / 2 % 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_many), cmocka_unit_test(test_int8),
                                       cmocka_unit_test(test_gated), cmocka_unit_test(test_norm)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
