/* test_gradient — 反向与学习用的算子，对照双精度的直白公式（各自独立地写出，不与内核共用代码）
 * 每个（指令集 × 精度）× 线程数 1、3；两种线程数的结果须逐位相同。 */
#include "reference.h"

static Tensor mat(const float *x, int64_t r, int64_t c) {
    return tensor_f32((float *)x, r, c);
}

/* fn 把全部输出写进 out（n 个数）；对照由 fn 在 threads==1 时做。 */
static void each_target(void (*fn)(Backend *b, const RefTarget *t, float *out), int64_t n) {
    RefTarget targets[REF_MAX_TARGETS];
    int n_targets = ref_targets(targets);
    float *one = ref_zeros(n), *many = ref_zeros(n);
    for (int i = 0; i < n_targets; i++) {
        for (int threads = 1; threads <= 3; threads += 2) {
            Backend b = ref_open(&targets[i], threads);
            fn(&b, &targets[i], threads == 1 ? one : many);
            ref_check(&b);
            backend_close(&b);
        }
        ref_same(many, one, n, targets[i].name, "线程数");
    }
    free(one);
    free(many);
}

static const int64_t SHAPES[][3] = {{1, 1, 1},   {3, 5, 2},    {17, 16, 33},  {40, 33, 70},
                                    {64, 511, 48}, {113, 64, 260}, {30, 777, 19}};
enum { N_SHAPES = sizeof SHAPES / sizeof *SHAPES, MATMUL_OUT = 113 * 260 };

static void matmul_case(Backend *b, const RefTarget *t, float *out) {
    for (int s = 0; s < 2 * N_SHAPES; s++) {
        int64_t m = SHAPES[s / 2][0], k = SHAPES[s / 2][1], n = SHAPES[s / 2][2];
        bool flip = s % 2;
        float *a = ref_random(m * k, 1, 1), *c = ref_random(k * n, 2, 1);
        op_matmul(b, mat(out, m, n), flip ? mat(a, k, m) : mat(a, m, k), mat(c, k, n), flip);
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) {
                double want = 0, size = 0;
                for (int64_t p = 0; p < k; p++) {
                    double x = (double)ref_input(t, flip ? a[p * m + i] : a[i * k + p]);
                    double y = (double)ref_input(t, c[p * n + j]);
                    want += x * y;
                    size += fabs(x * y);
                }
                ref_near((double)out[i * n + j], want, 1e-7 * (double)(k + 8) * size, t->name, "matmul");
            }
        free(a);
        free(c);
    }
}
static void test_matmul(void **state) {
    (void)state;
    each_target(matmul_case, MATMUL_OUT);
}

enum { NORM_ROWS = 37, NORM_MAX = 577 };
static void rmsnorm_case(Backend *b, const RefTarget *t, float *out) {
    static const int64_t WIDTHS[] = {1, 15, 64, 100, NORM_MAX};
    for (int w = 0; w < 5; w++) {
        int64_t n = NORM_ROWS, d = WIDTHS[w];
        float *x = ref_random(n * d, 3, 2), *dy = ref_random(n * d, 4, 1), *g = ref_random(d, 5, 1);
        float *dx = out, *dw = out + n * d;
        const double eps = 1e-5;
        op_rmsnorm_grad(b, mat(dx, n, d), tensor_f32_1d(dw, d), mat(dy, n, d), mat(x, n, d),
                        tensor_f32_1d(g, d), (float)eps);
        double *want_dw = calloc((size_t)d, sizeof *want_dw);
        for (int64_t i = 0; i < n; i++) {
            const float *xi = x + i * d, *di = dy + i * d;
            double ss = 0, dot = 0, size = 0;
            for (int64_t j = 0; j < d; j++) {
                ss += (double)xi[j] * (double)xi[j];
                dot += (double)di[j] * (double)g[j] * (double)xi[j];
                size += fabs((double)di[j] * (double)g[j] * (double)xi[j]);
            }
            double r = 1 / sqrt(ss / (double)d + eps);
            for (int64_t j = 0; j < d; j++) {
                double a = r * (double)g[j] * (double)di[j];
                double c = (double)xi[j] * r * r * r / (double)d;
                double bound = 1e-6 * (fabs(a) + fabs(c) * size) + 1e-12;
                ref_near((double)dx[i * d + j], a - c * dot, bound, t->name, "rmsnorm_grad dx");
                want_dw[j] += (double)di[j] * (double)xi[j] * r;
            }
        }
        for (int64_t j = 0; j < d; j++)
            ref_near((double)dw[j], want_dw[j], 2e-5, t->name, "rmsnorm_grad dweight");
        free(want_dw);
        free(x);
        free(dy);
        free(g);
    }
}
static void test_rmsnorm(void **state) {
    (void)state;
    each_target(rmsnorm_case, NORM_ROWS * NORM_MAX + NORM_MAX);
}

enum { SILU_N = 41 * 901 };
static void silu_case(Backend *b, const RefTarget *t, float *out) {
    int64_t n = SILU_N;
    float *g = ref_random(n, 6, 4), *u = ref_random(n, 7, 2), *dy = ref_random(n, 8, 1);
    static const float SPECIAL[] = {0, 60, -60, 88, -88, 1000, -1000};
    memcpy(g, SPECIAL, sizeof SPECIAL);
    float *dg = out, *du = out + n;
    op_silu_mul_grad(b, mat(dg, 41, 901), mat(du, 41, 901), mat(dy, 41, 901), mat(g, 41, 901), mat(u, 41, 901));
    for (int64_t i = 0; i < n; i++) {
        double x = (double)g[i], s = 1 / (1 + exp(-x)), slope = s * (1 + x * (1 - s));
        double want_u = (double)dy[i] * x * s, want_g = (double)dy[i] * (double)u[i] * slope;
        double size = fabs((double)dy[i] * (double)u[i]) * s * (1 + fabs(x));
        ref_near((double)du[i], want_u, 6e-7 * fabs(want_u) + 1e-30, t->name, "silu_mul_grad dup");
        ref_near((double)dg[i], want_g, 1e-6 * size + 1e-30, t->name, "silu_mul_grad dgate");
    }
    op_silu_mul_grad(b, mat(dy, 41, 901), mat(u, 41, 901), mat(dy, 41, 901), mat(g, 41, 901), mat(u, 41, 901));
    ref_same(dy, dg, n, t->name, "silu_mul_grad 就地 dgate");
    ref_same(u, du, n, t->name, "silu_mul_grad 就地 dup");
    free(g);
    free(u);
    free(dy);
}
static void test_silu(void **state) {
    (void)state;
    each_target(silu_case, 2 * SILU_N);
}

typedef struct AttnCase {
    int64_t n, heads, kv, dim, window;
} AttnCase;
static const AttnCase ATTN[] = {{1, 1, 1, 8, 0},    {5, 2, 1, 16, 0},  {70, 4, 2, 24, 0},
                                {130, 3, 1, 40, 0}, {150, 2, 2, 16, 33}, {240, 6, 2, 64, 0},
                                {300, 2, 1, 8, 64}};
enum { ATTN_OUT = 240 * (6 + 4) * 64 };

/* 双精度：按定义逐个查询累加。 */
static void attention_want(const AttnCase *a, const float *d_out, const float *q, const float *k,
                           const float *v, double *dq, double *dk, double *dv) {
    double scale = 1 / sqrt((double)a->dim);
    double *p = malloc(sizeof *p * (size_t)a->n), *dp = malloc(sizeof *dp * (size_t)a->n);
    for (int64_t i = 0; i < a->n; i++)
        for (int64_t h = 0; h < a->heads; h++) {
            int64_t kh = h / (a->heads / a->kv), at = (i * a->heads + h) * a->dim;
            int64_t lo = a->window && i >= a->window ? i - a->window + 1 : 0;
            double top = -INFINITY, sum = 0, mean = 0;
            for (int64_t j = lo; j <= i; j++) {
                p[j] = dp[j] = 0;
                for (int64_t c = 0; c < a->dim; c++) {
                    p[j] += (double)q[at + c] * (double)k[(j * a->kv + kh) * a->dim + c] * scale;
                    dp[j] += (double)d_out[at + c] * (double)v[(j * a->kv + kh) * a->dim + c];
                }
                if (p[j] > top) top = p[j];
            }
            for (int64_t j = lo; j <= i; j++) sum += p[j] = exp(p[j] - top);
            for (int64_t j = lo; j <= i; j++) mean += (p[j] /= sum) * dp[j];
            for (int64_t j = lo; j <= i; j++) {
                double ds = scale * p[j] * (dp[j] - mean);
                for (int64_t c = 0; c < a->dim; c++) {
                    int64_t kc = (j * a->kv + kh) * a->dim + c;
                    dq[at + c] += ds * (double)k[kc];
                    dk[kc] += ds * (double)q[at + c];
                    dv[kc] += p[j] * (double)d_out[at + c];
                }
            }
        }
    free(p);
    free(dp);
}

static void attention_case(Backend *b, const RefTarget *t, float *out) {
    for (size_t s = 0; s < sizeof ATTN / sizeof *ATTN; s++) {
        const AttnCase *a = &ATTN[s];
        int64_t wide = a->heads * a->dim, narrow = a->kv * a->dim, n = a->n;
        float *q = ref_random(n * wide, 10, 1), *k = ref_random(n * narrow, 11, 1);
        float *v = ref_random(n * narrow, 12, 1), *d_out = ref_random(n * wide, 13, 1);
        float *dq = out, *dk = dq + n * wide, *dv = dk + n * narrow;
        AttnSpec spec = {.n_heads = a->heads, .n_kv_heads = a->kv, .head_dim = a->dim,
                         .window = a->window, .scale = (float)(1 / sqrt((double)a->dim))};
        op_attention_grad(b, mat(dq, n, wide), mat(dk, n, narrow), mat(dv, n, narrow),
                          mat(d_out, n, wide), mat(q, n, wide), mat(k, n, narrow), mat(v, n, narrow),
                          &spec);
        double *want = calloc((size_t)(n * (wide + 2 * narrow)), sizeof *want);
        attention_want(a, d_out, q, k, v, want, want + n * wide, want + n * (wide + narrow));
        /* CUDA 的 bf16 计算：q、k、v、d_out、P、dS 都舍入到 bf16 */
        bool rough = ref_on_cuda() && t->compute == COMPUTE_BF16;
        double error = 0, size = 0;
        for (int64_t i = 0; i < n * (wide + 2 * narrow); i++) {
            ref_near((double)out[i], want[i], rough ? 0.1 : 2e-5, t->name, "attention_grad");
            error += ((double)out[i] - want[i]) * ((double)out[i] - want[i]);
            size += want[i] * want[i];
        }
        ref_near(sqrt(error), 0, (rough ? 1e-2 : 1e-5) * sqrt(size) + 1e-12, t->name, "attention_grad 的均方误差");
        free(want);
        free(q);
        free(k);
        free(v);
        free(d_out);
    }
}
static void test_attention(void **state) {
    (void)state;
    each_target(attention_case, ATTN_OUT);
}

enum { SCORE_N = 9, SCORE_D = 24, VOCAB = 2100 };
static void score_case(Backend *b, const RefTarget *t, float *out) {
    Arena a = {0};
    Err e = {0};
    QTensor head;
    float *x = ref_random(SCORE_N * SCORE_D, 14, 1), *w = ref_random(VOCAB * SCORE_D, 15, 0.5);
    assert_true(qtensor_new_dense(&head, &a, DT_F32, VOCAB, SCORE_D, &e));
    op_pack_dense(b, &head, mat(w, VOCAB, SCORE_D));
    int32_t targets[SCORE_N] = {0, 5, -1, 1023, 1024, 2099, 77, 2048, 3};
    double nll[SCORE_N];
    float scale = 0.125f;
    ScoreGradJob job = {.n = SCORE_N, .x = x, .head = &head, .targets = targets, .scale = scale,
                        .nll = nll, .dx = out};
    op_score_grad(b, &job);
    ref_check(b);
    double *z = malloc(sizeof *z * VOCAB), slack = t->compute == COMPUTE_BF16 ? 2e-3 : 1e-6;
    for (int64_t i = 0; i < SCORE_N; i++) {
        double sum = 0;
        for (int64_t v = 0; v < VOCAB; v++) {
            z[v] = 0;
            for (int64_t c = 0; c < SCORE_D; c++)
                z[v] += (double)ref_input(t, x[i * SCORE_D + c]) * (double)ref_input(t, w[v * SCORE_D + c]);
            sum += exp(z[v]);
        }
        if (targets[i] >= 0)
            ref_near(nll[i], log(sum) - z[targets[i]], 2e-5, t->name, "score_grad nll");
        for (int64_t c = 0; c < SCORE_D; c++) {
            double want = 0;
            for (int64_t v = 0; v < VOCAB && targets[i] >= 0; v++)
                want += (double)scale * (exp(z[v]) / sum - (v == targets[i])) *
                        (double)ref_input(t, w[v * SCORE_D + c]);
            ref_near((double)out[i * SCORE_D + c], want, slack, t->name, "score_grad dx");
        }
    }
    free(z);
    free(x);
    free(w);
    arena_free(&a);
}
static void test_score(void **state) {
    (void)state;
    each_target(score_case, SCORE_N * SCORE_D);
}

enum { FQ_ROWS = 70, FQ_COLS = 300 };
static void fake_quant_case(Backend *b, const RefTarget *t, float *out) {
    static const int64_t GROUPS[] = {-1, 16, 64, 37, 100};
    for (int s = 0; s < 5; s++) {
        QSpec spec = {.bits = 3, .group_size = GROUPS[s]};
        int64_t group = qspec_group_size(&spec, FQ_COLS), ng = (FQ_COLS - 1) / group + 1;
        float *x = ref_random(FQ_ROWS * FQ_COLS, 16, 1), *dy = ref_random(FQ_ROWS * FQ_COLS, 17, 1);
        float *scale = ref_random(FQ_ROWS * ng, 18, 0.05), *zero = ref_zeros(FQ_ROWS * ng);
        float *y = out, *dx = y + FQ_ROWS * FQ_COLS, *ds = dx + FQ_ROWS * FQ_COLS;
        float *lo = ds + FQ_ROWS * FQ_COLS / 16 + FQ_ROWS, *hi = lo + FQ_ROWS * FQ_COLS / 16 + FQ_ROWS;
        for (int64_t i = 0; i < FQ_ROWS * ng; i++) {
            scale[i] = 0.4f + scale[i]; /* 步长使一部分元素被钳位 */
            zero[i] = (float)(1 + i % 6);
        }
        Tensor tx = mat(x, FQ_ROWS, FQ_COLS), tg = mat(scale, FQ_ROWS, ng), tz = mat(zero, FQ_ROWS, ng);
        op_fake_quant(b, mat(y, FQ_ROWS, FQ_COLS), tx, tg, tz, &spec);
        op_fake_quant_grad(b, mat(dx, FQ_ROWS, FQ_COLS), mat(ds, FQ_ROWS, ng),
                           mat(dy, FQ_ROWS, FQ_COLS), tx, tg, tz, &spec);
        op_group_range(b, mat(lo, FQ_ROWS, ng), mat(hi, FQ_ROWS, ng), tx, &spec);
        for (int64_t r = 0; r < FQ_ROWS; r++)
            for (int64_t g = 0; g < ng; g++) {
                double sum = 0;
                float low = INFINITY, high = -INFINITY, sc = scale[r * ng + g], z = zero[r * ng + g];
                for (int64_t c = g * group; c < (g + 1) * group && c < FQ_COLS; c++) {
                    int64_t i = r * FQ_COLS + c;
                    float steps = x[i] / sc, code = rintf(steps) + z;
                    bool inside = code >= 0 && code <= 7;
                    float clamped = code < 0 ? 0 : code > 7 ? 7 : code;
                    if (y[i] != sc * (clamped - z)) fail_msg("%s: fake_quant", t->name);
                    if (dx[i] != (inside ? dy[i] : 0)) fail_msg("%s: fake_quant_grad dx", t->name);
                    sum += (double)dy[i] * ((double)(clamped - z) - (inside ? (double)steps : 0));
                    low = x[i] < low ? x[i] : low;
                    high = x[i] > high ? x[i] : high;
                }
                ref_near((double)ds[r * ng + g], sum, 1e-4, t->name, "fake_quant_grad dscale");
                if (lo[r * ng + g] != low || hi[r * ng + g] != high) fail_msg("%s: group_range", t->name);
            }
        float *again = ref_zeros(FQ_ROWS * ng);
        op_fake_quant_grad(b, mat(NULL, 0, 0), mat(again, FQ_ROWS, ng), mat(dy, FQ_ROWS, FQ_COLS), tx,
                           tg, tz, &spec);
        ref_same(again, ds, FQ_ROWS * ng, t->name, "不要 dx");
        free(again);
        free(x);
        free(dy);
        free(scale);
        free(zero);
    }
}
static void test_fake_quant(void **state) {
    (void)state;
    each_target(fake_quant_case, 3 * FQ_ROWS * FQ_COLS);
}

/* 每行一个 s = max|x|/127：x̂ = s·rint(x/s)；s 对 |x| 最大的一个求导 */
enum { ROUND_ROWS = 33, ROUND_COLS = 150 };
static void round_case(Backend *b, const RefTarget *t, float *out) {
    ActQuant act = {.kind = ACT_TOKEN, .bits = 8};
    float *x = ref_random(ROUND_ROWS * ROUND_COLS, 19, 1), *dy = ref_random(ROUND_ROWS * ROUND_COLS, 20, 1);
    memset(x + ROUND_COLS, 0, ROUND_COLS * sizeof *x); /* 一行全 0：s 取下限，不求导 */
    memcpy(out, dy, sizeof *dy * ROUND_ROWS * ROUND_COLS);
    op_round_act_grad(b, mat(out, ROUND_ROWS, ROUND_COLS), mat(x, ROUND_ROWS, ROUND_COLS), &act);
    for (int64_t r = 0; r < ROUND_ROWS; r++) {
        const float *row = x + r * ROUND_COLS;
        int64_t top = 0;
        for (int64_t c = 0; c < ROUND_COLS; c++)
            if (fabsf(row[c]) > fabsf(row[top])) top = c;
        double s = fabs((double)row[top]) / 127, sum = 0;
        for (int64_t c = 0; c < ROUND_COLS && s > 0; c++)
            sum += (double)dy[r * ROUND_COLS + c] * (rint((double)row[c] / s) - (double)row[c] / s);
        for (int64_t c = 0; c < ROUND_COLS; c++) {
            double extra = c == top ? sum / 127 * (row[top] < 0 ? -1 : 1) : 0;
            ref_near((double)out[r * ROUND_COLS + c], (double)dy[r * ROUND_COLS + c] + extra,
                     c == top ? 0.02 : 0, t->name, "round_act_grad"); /* 0.02：一个元素恰在取整的边界 */
        }
    }
    free(x);
    free(dy);
}
static void test_round(void **state) {
    (void)state;
    each_target(round_case, ROUND_ROWS * ROUND_COLS);
}

enum { SC_ROWS = 45, SC_COLS = 130 };
static void scale_case(Backend *b, const RefTarget *t, float *out) {
    float *x = ref_random(SC_ROWS * SC_COLS, 21, 1), *dy = ref_random(SC_ROWS * SC_COLS, 22, 1);
    float *row = ref_random(SC_ROWS, 23, 1), *col = ref_random(SC_COLS, 24, 1);
    float *y = out, *d_row = y + SC_ROWS * SC_COLS, *d_col = d_row + SC_ROWS;
    Tensor tr = tensor_f32_1d(row, SC_ROWS), tc = tensor_f32_1d(col, SC_COLS);
    op_scale(b, mat(y, SC_ROWS, SC_COLS), mat(x, SC_ROWS, SC_COLS), tr, tc);
    op_scale_grad(b, tensor_f32_1d(d_row, SC_ROWS), tensor_f32_1d(d_col, SC_COLS),
                  mat(dy, SC_ROWS, SC_COLS), mat(x, SC_ROWS, SC_COLS), tr, tc);
    double want_col[SC_COLS] = {0};
    for (int64_t r = 0; r < SC_ROWS; r++) {
        double want_row = 0;
        for (int64_t c = 0; c < SC_COLS; c++) {
            double v = (double)x[r * SC_COLS + c], d = (double)dy[r * SC_COLS + c];
            double want = v * (double)row[r] * (double)col[c];
            ref_near((double)y[r * SC_COLS + c], want, 3e-7 * fabs(want), t->name, "scale");
            want_row += d * v * (double)col[c];
            want_col[c] += d * v * (double)row[r];
        }
        ref_near((double)d_row[r], want_row, 1e-4, t->name, "scale_grad 行");
    }
    for (int64_t c = 0; c < SC_COLS; c++)
        ref_near((double)d_col[c], want_col[c], 1e-4, t->name, "scale_grad 列");
    op_scale(b, mat(dy, SC_ROWS, SC_COLS), mat(x, SC_ROWS, SC_COLS), (Tensor){0}, tc); /* 只乘列 */
    for (int64_t i = 0; i < SC_ROWS * SC_COLS; i++)
        ref_near((double)dy[i], (double)(x[i] * col[i % SC_COLS]), 0, t->name, "scale 列");
    free(x);
    free(dy);
    free(row);
    free(col);
}
static void test_scale(void **state) {
    (void)state;
    each_target(scale_case, SC_ROWS * SC_COLS + SC_ROWS + SC_COLS);
}

/* 组内 (1, 3, 3, −2 | 5)：最大值并列平分；单元素的组既是最小也是最大 */
static void range_grad_case(Backend *b, const RefTarget *t, float *out) {
    static const float X[5] = {1, 3, 3, -2, 5}, LO[2] = {-2, 5}, HI[2] = {3, 5};
    static const float D_LO[2] = {10, 20}, D_HI[2] = {100, 200}, WANT[5] = {1, 51, 51, 11, 221};
    QSpec spec = {.bits = 4, .group_size = 4};
    for (int i = 0; i < 5; i++) out[i] = 1;
    op_group_range_grad(b, mat(out, 1, 5), mat(X, 1, 5), mat(LO, 1, 2), mat(HI, 1, 2),
                        mat(D_LO, 1, 2), mat(D_HI, 1, 2), &spec);
    for (int i = 0; i < 5; i++) ref_near((double)out[i], (double)WANT[i], 0, t->name, "group_range_grad");
}
static void test_range_grad(void **state) {
    (void)state;
    each_target(range_grad_case, 5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul),    cmocka_unit_test(test_rmsnorm),
        cmocka_unit_test(test_silu),      cmocka_unit_test(test_attention),
        cmocka_unit_test(test_score),     cmocka_unit_test(test_fake_quant),
        cmocka_unit_test(test_round),     cmocka_unit_test(test_scale),
        cmocka_unit_test(test_range_grad),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
