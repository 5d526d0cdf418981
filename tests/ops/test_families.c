/* test_families — 各模型家族要的算子对照双精度：LayerNorm、激活函数、成对旋转、专家的取行与加回、注意力的软截断与偏置
 * 每个算子的一行（或一个元素）与它在批里的位置、线程数无关，逐位相同。 */
#include "reference.h"

static void each_backend(void (*fn)(Backend *b, const RefTarget *t)) {
    RefTarget targets[REF_MAX_TARGETS];
    int n = ref_targets(targets);
    for (int i = 0; i < n; i++)
        for (int threads = 1; threads <= (ref_on_cuda() ? 1 : 2) && targets[i].compute == COMPUTE_F32; threads++) {
            Backend b = ref_open(&targets[i], threads);
            fn(&b, &targets[i]);
            ref_check(&b);
            backend_close(&b);
        }
}

/* 均值不为零的行；period 大于 1 时各行轮流用一份权重。 */
static void norm_case(Backend *b, const RefTarget *t) {
    static const int64_t WIDTHS[] = {1, 7, 16, 33, 64, 65, 577}, PERIODS[] = {1, 3};
    for (uint64_t k = 0; k < 56; k++) {
        int64_t d = WIDTHS[k % 7], n = 1 + (int64_t)(k * 5 % 19), period = PERIODS[k / 7 % 2];
        bool center = k % 3 != 0, weighted = k % 5 != 0, biased = center && k % 2;
        float *x = ref_random(n * d, 500 + k, 2), *y = ref_zeros(n * d), *one = ref_zeros(d);
        float *w = ref_random(period * d, 600 + k, 1), *c = ref_random(period * d, 700 + k, 1);
        for (int64_t i = 0; i < n * d; i++) x[i] += 3;
        NormSpec s = {weighted ? w : NULL, biased ? c : NULL, period, 1e-5f, center};
        op_norm(b, tensor_f32(y, n, d), tensor_f32(x, n, d), &s);
        for (int64_t i = 0; i < n; i++) {
            double mean = 0, square = 0, size = 0;
            for (int64_t j = 0; center && j < d; j++) mean += (double)x[i * d + j] / (double)d;
            for (int64_t j = 0; j < d; j++) square += pow((double)x[i * d + j] - mean, 2) / (double)d;
            double r = 1 / sqrt(square + (double)s.eps);
            for (int64_t j = 0; j < d; j++) size = fmax(size, fabs((double)x[i * d + j]));
            for (int64_t j = 0; j < d; j++) {
                int64_t at = i % period * d + j;
                double scale = weighted ? (double)w[at] : 1, want = ((double)x[i * d + j] - mean) * r * scale;
                if (biased) want += (double)c[at];
                /* 减均值的舍入有 |x| 那么大，再放大 r 倍；行宽 1 时方差只剩 eps */
                double bound = 8e-7 * (fabs(want) + fabs(scale) * size * r + (biased ? fabs((double)c[at]) : 0));
                ref_near((double)y[i * d + j], want, bound, t->name, "norm");
            }
            NormSpec row = s;
            if (s.weight) row.weight = w + i % period * d;
            if (s.bias) row.bias = c + i % period * d;
            row.period = 1;
            op_norm(b, tensor_f32(one, 1, d), tensor_f32(x + i * d, 1, d), &row);
            ref_same(one, y + i * d, d, t->name, "norm 单行");
        }
        op_norm(b, tensor_f32(x, n, d), tensor_f32(x, n, d), &s);
        ref_same(x, y, n * d, t->name, "norm 就地");
        float *all[] = {x, y, one, w, c};
        for (int i = 0; i < 5; i++) free(all[i]);
    }
}
static void test_norm(void **state) {
    (void)state;
    each_backend(norm_case);
}

static double activation(double x, Activation f) {
    switch (f) {
    case ACTF_SILU: return x / (1 + exp(-x));
    case ACTF_GELU_ERF: return x * 0.5 * erfc(-x / sqrt(2));
    case ACTF_GELU_TANH: return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case ACTF_GELU_QUICK: return x / (1 + exp(-1.702 * x));
    case ACTF_RELU: return x < 0 ? 0 : x;
    }
    return NAN;
}

static void activate_case(Backend *b, const RefTarget *t) {
    enum { N = 29, D = 701 };
    static const float SPECIAL[] = {0, -0.0f, 1e-30f, 30, -30, 100, -100, 1e4f, -1e4f, 5.5f, -5.5f};
    float *g = ref_random(N * D, 800, 3), *u = ref_random(N * D, 801, 2), *y = ref_zeros(N * D);
    memcpy(g, SPECIAL, sizeof SPECIAL);
    for (int f = ACTF_SILU; f <= ACTF_RELU; f++)
        for (int gated = 0; gated < 2; gated++) {
            Tensor up = gated ? tensor_f32(u, N, D) : (Tensor){0};
            op_activate(b, tensor_f32(y, N, D), tensor_f32(g, N, D), up, (Activation)f);
            for (int64_t i = 0; i < N * D; i++) {
                double x = (double)g[i], by = gated ? (double)u[i] : 1;
                double want = activation(x, (Activation)f) * by;
                /* 指数的舍入随 x² 长大，而函数值也随之消失：绝对误差不过 1e-6·|x| */
                ref_near((double)y[i], want, (1.2e-6 * fabs(want) + 2.5e-7 * fmin(fabs(x), 1) * fabs(by)) + 1e-37,
                         t->name, "activate");
            }
            float one = 0;
            op_activate(b, tensor_f32(&one, 1, 1), tensor_f32(g + 777, 1, 1),
                        gated ? tensor_f32(u + 777, 1, 1) : (Tensor){0}, (Activation)f);
            ref_same(&one, y + 777, 1, t->name, "activate 单个");
        }
    op_multiply(b, tensor_f32(y, N, D), tensor_f32(g, N, D), 0.375f);
    for (int64_t i = 0; i < N * D; i++) assert_true(y[i] == 0.375f * g[i]);
    y[3] = NAN;
    op_multiply(b, tensor_f32(y, N, D), tensor_f32(y, N, D), 0); /* 清零，不论原来是什么 */
    for (int64_t i = 0; i < N * D; i++) assert_true(y[i] == 0);
    free(g);
    free(u);
    free(y);
}
static void test_activate(void **state) {
    (void)state;
    each_backend(activate_case);
}

/* 成对旋转 = 把偶数维、奇数维分到前后两半再作普通的旋转，逐位相同。 */
static void pairs_case(Backend *b, const RefTarget *t) {
    static const int64_t DIMS[][2] = {{2, 1}, {8, 4}, {34, 17}, {80, 16}, {64, 32}};
    for (uint64_t k = 0; k < 10; k++) {
        int64_t n = 1 + (int64_t)k, heads = 3, dim = DIMS[k % 5][0], half = DIMS[k % 5][1], first = (int64_t)(k % 3);
        int64_t size = n * heads * dim, table = (first + n) * half;
        float *x = ref_random(size, 900 + k, 2), *y = ref_zeros(size), *c = ref_random(table, 920 + k, 0.5);
        float *s = ref_random(table, 940 + k, 0.5), *split = ref_zeros(size);
        memcpy(y, x, sizeof *x * (size_t)size);
        for (int64_t i = 0; i < size; i++) {
            int64_t row = i / dim * dim, d = i % dim;
            split[row + (d >= 2 * half ? d : d / 2 + d % 2 * half)] = x[i];
        }
        Tensor ct = tensor_f32(c, first + n, half), st = tensor_f32(s, first + n, half);
        op_rope_pairs(b, tensor_f32_3d(y, n, heads, dim), ct, st, first);
        op_rope(b, tensor_f32_3d(split, n, heads, dim), ct, st, first);
        for (int64_t i = 0; i < size; i++) {
            int64_t row = i / dim * dim, d = i % dim;
            ref_same(&y[i], &split[row + (d >= 2 * half ? d : d / 2 + d % 2 * half)], 1, t->name, "成对旋转");
        }
        float *all[] = {x, y, c, s, split};
        for (int i = 0; i < 5; i++) free(all[i]);
    }
}
static void test_pairs(void **state) {
    (void)state;
    each_backend(pairs_case);
}

static void rows_case(Backend *b, const RefTarget *t) {
    enum { ROWS = 70, D = 131, PICK = 23 };
    int32_t index[PICK];
    float weight[PICK];
    float *x = ref_random(ROWS * D, 960, 1), *picked = ref_zeros(PICK * D), *y = ref_random(ROWS * D, 961, 1);
    float *before = ref_zeros(ROWS * D);
    memcpy(before, y, sizeof *y * ROWS * D);
    for (int i = 0; i < PICK; i++) {
        index[i] = (i * 3 + 5) % ROWS;
        weight[i] = 0.1f * (float)(i + 1);
    }
    op_gather_rows(b, tensor_f32(picked, PICK, D), tensor_f32(x, ROWS, D), index);
    for (int i = 0; i < PICK; i++) ref_same(picked + i * D, x + index[i] * D, D, t->name, "取行");
    op_scatter_rows(b, tensor_f32(y, ROWS, D), tensor_f32(picked, PICK, D), index, weight);
    for (int i = 0; i < PICK; i++)
        for (int d = 0; d < D; d++) before[index[i] * D + d] += weight[i] * picked[i * D + d];
    ref_same(y, before, ROWS * D, t->name, "加回");
    free(x);
    free(picked);
    free(y);
    free(before);
}
static void test_rows(void **state) {
    (void)state;
    each_backend(rows_case);
}

/* 注意力的软截断与偏置：双精度参考；逐个查询与一次算完逐位相同。 */
static void attention_case(Backend *b, const RefTarget *t) {
    for (uint64_t k = 0; k < 12; k++) {
        int64_t n = k % 4 == 3 ? 130 : 9 + (int64_t)k, heads = 6, kv = k % 2 ? 3 : 1, dim = 24, first = k % 3 ? 61 : 0;
        int64_t keys = first + n, stride = (keys + ATTN_BIAS_STEP - 1) / ATTN_BIAS_STEP * ATTN_BIAS_STEP;
        float *q = ref_random(n * heads * dim, 970 + k, 2), *kk = ref_random(keys * kv * dim, 990 + k, 1);
        float *v = ref_random(keys * kv * dim, 1010 + k, 1), *bias = ref_random(heads * stride, 1030 + k, 3);
        float *out = ref_zeros(n * heads * dim), *one = ref_zeros(heads * dim);
        AttnSpec s = {.n_heads = heads, .n_kv_heads = kv, .head_dim = dim, .first = first, .window = k % 5 ? 0 : 40,
                      .scale = 0.3f, .softcap = k % 3 ? 2.5f : 0, .bias = k % 3 == 1 ? NULL : bias, .bias_stride = stride};
        op_attention(b, tensor_f32_3d(out, n, heads, dim), tensor_f32_3d(q, n, heads, dim),
                     tensor_f32_3d(kk, keys, kv, dim), tensor_f32_3d(v, keys, kv, dim), &s);
        double p[256];
        for (int64_t i = 0; i < n; i++)
            for (int64_t h = 0; h < heads; h++) {
                int64_t pos = first + i, from = s.window && pos >= s.window ? pos - s.window + 1 : 0;
                double sum = 0;
                for (int64_t j = from; j <= pos; j++) {
                    double z = 0;
                    for (int64_t d = 0; d < dim; d++)
                        z += (double)q[(i * heads + h) * dim + d] * (double)kk[(j * kv + h / (heads / kv)) * dim + d];
                    z *= (double)s.scale;
                    if (s.softcap > 0) z = (double)s.softcap * tanh(z / (double)s.softcap);
                    if (s.bias) z += (double)bias[h * stride + j];
                    sum += p[j] = exp(z);
                }
                for (int64_t d = 0; d < dim; d++) {
                    double want = 0;
                    for (int64_t j = from; j <= pos; j++)
                        want += p[j] / sum * (double)v[(j * kv + h / (heads / kv)) * dim + d];
                    ref_near((double)out[(i * heads + h) * dim + d], want, 2e-5, t->name, "软截断与偏置");
                }
            }
        for (int64_t i = 0; i < n; i += 7) {
            AttnSpec row = s;
            row.first = first + i;
            op_attention(b, tensor_f32_3d(one, 1, heads, dim), tensor_f32_3d(q + i * heads * dim, 1, heads, dim),
                         tensor_f32_3d(kk, first + i + 1, kv, dim), tensor_f32_3d(v, first + i + 1, kv, dim), &row);
            ref_same_row(one, out + i * heads * dim, heads * dim, t->name, "软截断与偏置 单个查询");
        }
        float *all[] = {q, kk, v, bias, out, one};
        for (int i = 0; i < 6; i++) free(all[i]);
    }
}
static void test_attention(void **state) {
    (void)state;
    each_backend(attention_case);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_norm), cmocka_unit_test(test_activate),
                                       cmocka_unit_test(test_pairs), cmocka_unit_test(test_rows),
                                       cmocka_unit_test(test_attention)};
    return cmocka_run_group_tests_name("ops_families", tests, NULL, NULL);
}
