/* test_elementwise — RMSNorm、RoPE、SiLU·乘、加法与向量 exp、tanh 对照双精度
 * 各算子与计算精度（f32/bf16）无关，故每个指令集只测 f32；结果与线程数、切分逐位无关。 */
#include <float.h>

#include "compute/cpu/cpu.h"
#include "compute/cpu/elem_kernels.h"
#include "compute/cpu/kernels.h"
#include "reference.h"

static const int64_t ROWS[] = {1, 2, 3, 17, 64, 130};
static const int64_t WIDTHS[] = {1, 8, 16, 17, 63, 64, 65, 192, 576, 577};
enum { N_ROWS = sizeof ROWS / sizeof *ROWS, N_WIDTHS = sizeof WIDTHS / sizeof *WIDTHS };

/* 每个 f32 后端 × 线程数 1、2、3 */
static void each_backend(void (*fn)(Backend *b, const RefTarget *t)) {
    RefTarget targets[REF_MAX_TARGETS];
    int n = ref_targets(targets);
    for (int i = 0; i < n; i++)
        for (int threads = 1; threads <= (ref_on_cuda() ? 1 : 3) && targets[i].compute == COMPUTE_F32; threads++) {
            Backend b = ref_open(&targets[i], threads);
            fn(&b, &targets[i]);
            ref_check(&b);
            backend_close(&b);
        }
}

static void rmsnorm_case(Backend *b, const RefTarget *t) {
    for (int a = 0; a < N_ROWS; a++)
        for (int w = 0; w < N_WIDTHS; w++) {
            int64_t n = ROWS[a], d = WIDTHS[w];
            double scale = w % 3 == 0 ? 1e-3 : w % 3 == 1 ? 1 : 300;
            float *x = ref_random(n * d, 10, scale), *weight = ref_random(d, 11, 1);
            float *y = ref_zeros(n * d), *one = ref_zeros(d);
            const float eps = 1e-5f;
            op_rmsnorm(b, tensor_f32(y, n, d), tensor_f32(x, n, d), tensor_f32_1d(weight, d), eps);
            for (int64_t i = 0; i < n; i++) {
                double ss = 0;
                for (int64_t k = 0; k < d; k++) ss += (double)x[i * d + k] * (double)x[i * d + k];
                double r = 1 / sqrt(ss / (double)d + (double)eps);
                for (int64_t k = 0; k < d; k++) {
                    double want = (double)x[i * d + k] * r * (double)weight[k];
                    ref_near((double)y[i * d + k], want, fabs(want) * 6e-7, t->name, "rmsnorm");
                }
                op_rmsnorm(b, tensor_f32(one, 1, d), tensor_f32(x + i * d, 1, d),
                           tensor_f32_1d(weight, d), eps);
                ref_same(one, y + i * d, d, t->name, "rmsnorm 单行");
            }
            op_rmsnorm(b, tensor_f32(x, n, d), tensor_f32(x, n, d), tensor_f32_1d(weight, d), eps);
            ref_same(x, y, n * d, t->name, "rmsnorm 就地");
            free(x);
            free(weight);
            free(y);
            free(one);
        }
}
static void test_rmsnorm(void **state) {
    (void)state;
    each_backend(rmsnorm_case);
}

static void rope_case(Backend *b, const RefTarget *t) {
    static const int64_t DIMS[][2] = {{2, 1}, {8, 4}, {16, 8}, {32, 16}, {48, 24}, {64, 32},
                                      {80, 40}, {80, 16}, {128, 64}, {6, 0}};
    static const int64_t HEADS[] = {1, 3, 9}, FIRSTS[] = {0, 1, 63};
    for (uint64_t k = 0; k < 60; k++) {
        int64_t n = REF_PICK(5, k, ROWS), heads = REF_PICK(6, k, HEADS);
        int64_t dim = DIMS[k % 10][0], half = DIMS[k % 10][1], first = REF_PICK(7, k, FIRSTS);
        float *x = ref_random(n * heads * dim, 20 + k, 2), *y = ref_zeros(n * heads * dim);
        float *c = ref_zeros((first + n) * half), *s = ref_zeros((first + n) * half);
        for (int64_t i = 0; i < (first + n) * half; i++) {
            double angle = (double)(i / half) * pow(10000, -(double)(i % half) / (double)half);
            c[i] = (float)cos(angle);
            s[i] = (float)sin(angle);
        }
        memcpy(y, x, sizeof *x * (size_t)(n * heads * dim));
        op_rope(b, tensor_f32_3d(y, n, heads, dim), tensor_f32(c, first + n, half),
                tensor_f32(s, first + n, half), first);
        for (int64_t r = 0; r < n * heads; r++) {
            const float *in = x + r * dim, *out = y + r * dim;
            const float *cr = c + (first + r / heads) * half, *sr = s + (first + r / heads) * half;
            for (int64_t i = 0; i < half; i++) {
                double p = (double)in[i], q = (double)in[i + half];
                double bound = 2e-7 * (fabs(p) + fabs(q));
                double ci = (double)cr[i], si = (double)sr[i];
                ref_near((double)out[i], p * ci - q * si, bound, t->name, "rope 前半");
                ref_near((double)out[i + half], q * ci + p * si, bound, t->name, "rope 后半");
            }
            ref_same(out + 2 * half, in + 2 * half, dim - 2 * half, t->name, "rope 未旋转的维");
        }
        free(x);
        free(y);
        free(c);
        free(s);
    }
}
static void test_rope(void **state) {
    (void)state;
    each_backend(rope_case);
}

static void silu_case(Backend *b, const RefTarget *t) {
    for (int w = 0; w < N_WIDTHS; w++) {
        int64_t n = w == 0 ? 130 : 17, d = WIDTHS[w] * (w % 4 ? 1 : 9); /* 跨过分块的大小 */
        float *g = ref_random(n * d, 30, 8), *u = ref_random(n * d, 31, 3), *y = ref_zeros(n * d);
        static const float SPECIAL[] = {0, -0.0f, 88, -88, 104, -104, 1e4f, -1e4f, 1e-30f, -87.5f};
        for (int64_t i = 0; i < n * d && i < 10; i++) g[i] = SPECIAL[i];
        op_silu_mul(b, tensor_f32(y, n, d), tensor_f32(g, n, d), tensor_f32(u, n, d));
        for (int64_t i = 0; i < n * d; i++) {
            double x = (double)g[i], want = x / (1 + exp(-x)) * (double)u[i];
            double tiny = fabs(x) > 86 ? 1e-33 : 1e-44; /* exp(-x) 将溢出处，silu 本身小到无意义 */
            ref_near((double)y[i], want, fabs(want) * 5e-7 + tiny, t->name, "silu_mul");
        }
        float *z = ref_zeros(n * d);
        memcpy(z, y, sizeof *y * (size_t)(n * d));
        op_add(b, tensor_f32(z, n, d), tensor_f32(u, n, d));
        for (int64_t i = 0; i < n * d; i++)
            if (z[i] != y[i] + u[i]) fail_msg("%s: add", t->name);
        op_silu_mul(b, tensor_f32(g, n, d), tensor_f32(g, n, d), tensor_f32(u, n, d));
        ref_same(g, y, n * d, t->name, "silu_mul 就地");
        free(g);
        free(u);
        free(y);
        free(z);
    }
}
static void test_silu_add(void **state) {
    (void)state;
    each_backend(silu_case);
}

/* 大到必须多线程的输入：与单线程逐位相同 */
static void test_threads(void **state) {
    (void)state;
    RefTarget targets[REF_MAX_TARGETS];
    int n_targets = ref_targets(targets);
    enum { N = 90, D = 1001 };
    float *x = ref_random(N * D, 40, 3), *u = ref_random(N * D, 41, 1);
    float *want = ref_zeros(3 * N * D), *got = ref_zeros(3 * N * D);
    for (int i = 0; i < n_targets; i++)
        for (int threads = 1; threads <= 3; threads++) {
            Backend b = ref_open(&targets[i], threads);
            float *y = threads == 1 ? want : got;
            op_rmsnorm(&b, tensor_f32(y, N, D), tensor_f32(x, N, D), tensor_f32_1d(u, D), 1e-6f);
            op_silu_mul(&b, tensor_f32(y + N * D, N, D), tensor_f32(x, N, D), tensor_f32(u, N, D));
            memcpy(y + 2 * N * D, x, sizeof *x * N * D);
            op_rope(&b, tensor_f32_3d(y + 2 * N * D, N, 1, D), tensor_f32(u, N, 500),
                    tensor_f32(x, N, 500), 0);
            op_add(&b, tensor_f32(y + 2 * N * D, N, D), tensor_f32(u, N, D));
            if (threads > 1) ref_same(got, want, 3 * N * D, targets[i].name, "线程数");
            ref_check(&b);
            backend_close(&b);
        }
    free(x);
    free(u);
    free(want);
    free(got);
}

/* 单个数的 exp：不超过 2 ulp，两端与特殊值正确 */
static void test_exp(void **state) {
    (void)state;
    if (ref_on_cuda()) skip(); /* CPU 的内核，CUDA 用自己的 */
    RefTarget targets[REF_MAX_TARGETS];
    int n_targets = ref_targets(targets);
    for (int i = 0; i < n_targets; i++) {
        Backend b = ref_open(&targets[i], 1);
        const ElemKernels *k = ((CpuBackend *)b.impl)->kernels->elem;
        double worst = 0;
        for (uint64_t j = 0; j < 60000; j++) {
            float x = (float)(-103 + 191.7 * rng_unit(1, 2, j)), zero = 0;
            double got = k->sum_exp(&x, 1, zero), want = exp((double)x);
            int exponent;
            frexp(want, &exponent);
            double ulp = ldexp(1, exponent - 24 < -149 ? -149 : exponent - 24);
            if (fabs(got - want) / ulp > worst) worst = fabs(got - want) / ulp;
        }
        ref_near(worst, 0, 2, targets[i].name, "exp 的最大误差（ulp）");
        static const float IN[] = {-INFINITY, -1e30f, -110, 0, 89, 1e30f, INFINITY};
        static const double OUT[] = {0, 0, 0, 1, INFINITY, INFINITY, INFINITY};
        for (int j = 0; j < 7; j++)
            if (k->sum_exp(&IN[j], 1, 0) != OUT[j])
                fail_msg("%s: exp(%g)", targets[i].name, (double)IN[j]);
        float nan_in[17] = {[16] = NAN};
        assert_true(isnan(k->sum_exp(nan_in, 17, 0)));
        assert_true(k->max(nan_in, 17) == 0);
        backend_close(&b);
    }
}

static void test_softcap(void **state) {
    (void)state;
    if (ref_on_cuda()) skip(); /* CPU 的内核，CUDA 用自己的 */
    RefTarget targets[REF_MAX_TARGETS];
    int n_targets = ref_targets(targets);
    enum { N = 4001 };
    float z[N];
    for (int i = 0; i < n_targets; i++) {
        Backend b = ref_open(&targets[i], 1);
        const ElemKernels *k = ((CpuBackend *)b.impl)->kernels->elem;
        for (int j = 0; j < N; j++) z[j] = (float)(j - N / 2) * (j % 2 ? 0.05f : 1e-4f);
        k->softcap(z, N, 30.0f);
        for (int j = 0; j < N; j++) {
            float x = (float)(j - N / 2) * (j % 2 ? 0.05f : 1e-4f);
            double want = 30 * tanh((double)x / 30);
            ref_near((double)z[j], want, fabs(want) * 6e-7, targets[i].name, "softcap");
        }
        backend_close(&b);
    }
}

/* 对照：同样的递推以双精度的更新、逐列写出；取整的码须相同（格点取 2 的幂，舍入不落在半格）。 */
static void feedback_case(Backend *b, const RefTarget *t) {
    static const int64_t SHAPES[][4] = {{1, 5, 0, 5}, {3, 40, 8, 40}, {17, 130, 100, 128}, {5, 64, 3, 20}};
    for (size_t c = 0; c < sizeof SHAPES / sizeof *SHAPES; c++) {
        int64_t rows = SHAPES[c][0], cols = SHAPES[c][1], i1 = SHAPES[c][2], i2 = SHAPES[c][3];
        int64_t n = i2 - i1, groups = (cols + 15) / 16;
        float *w = ref_random(rows * cols, 20, 1), *u = ref_random(cols * cols, 21, 0.2);
        float *scale = ref_zeros(rows * groups), *zero = ref_zeros(rows * groups);
        float *err = ref_zeros(rows * n);
        double *want = calloc((size_t)(rows * cols), sizeof *want);
        int32_t *group = calloc((size_t)cols, sizeof *group);
        for (int64_t i = 0; i < cols; i++) group[i] = (int32_t)(i / 16), u[i * cols + i] = 2;
        for (int64_t i = 0; i < rows * groups; i++) scale[i] = 0.25f, zero[i] = 8;
        for (int64_t i = 0; i < rows * cols; i++) want[i] = (double)w[i];
        FeedbackJob job = {.rows = rows, .cols = cols, .i1 = i1, .i2 = i2, .w = w, .u = u, .err = err,
                           .scale = scale, .zero = zero, .group = group, .n_groups = groups, .bits = 4};
        op_feedback(b, &job);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = i1; i < i2; i++) {
                double *x = want + r * cols, q = rint(x[i] / 0.25) + 8;
                q = 0.25 * ((q < 0 ? 0 : q > 15 ? 15 : q) - 8);
                double e1 = (x[i] - q) / 2;
                for (int64_t j = i + 1; j < i2; j++) x[j] -= e1 * (double)u[i * cols + j];
                x[i] = q;
                ref_near((double)err[r * n + i - i1], e1, 1e-5, t->name, "feedback err");
            }
        for (int64_t i = 0; i < rows * cols; i++)
            ref_near((double)w[i], want[i], 1e-5, t->name, "feedback w");
        free(w), free(u), free(scale), free(zero), free(err), free(want), free(group);
    }
}
static void test_feedback(void **state) {
    (void)state;
    each_backend(feedback_case);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_feedback), cmocka_unit_test(test_rmsnorm), cmocka_unit_test(test_rope),
        cmocka_unit_test(test_silu_add), cmocka_unit_test(test_threads),
        cmocka_unit_test(test_exp), cmocka_unit_test(test_softcap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
