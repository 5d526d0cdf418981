/* test_round_act — 激活取整成 FP8、LLM.int8 的混合，以及取整后照常相乘的线性层
 * 参考：FP8 的全部值由它的定义用 ldexp 列出，逐个找最近的（并列取偶）；LLM.int8 按论文的分解以双精度直接写。
 * 取整须逐位相同；线性层与「先取整、再 op_linear」逐位相同，输入不被改动。 */
#include "tests/ops/reference.h"

static const char *const ISAS[] = {"generic", "avx2", "avx512", "avx512_bf16"};
#define COUNT(a) (sizeof(a) / sizeof(a)[0])
enum { N = 5, MAX_D = 577, MAX = N * MAX_D };

static Arena arena;
static float f8_values[127]; /* 不小于 0 的 e4m3fn，升序；第 i 个的尾数末位是 i 的末位 */

static void list_values(void) {
    for (int i = 0; i < 127; i++) {
        int e = i >> 3, m = i & 7;
        f8_values[i] = e ? ldexpf(1 + (float)m / 8, e - 7) : ldexpf((float)m / 8, -6);
    }
    assert_true(f8_values[126] == 448);
}

static float nearest_f8(float x) {
    float a = fabsf(x);
    int best = 0;
    for (int i = 1; i < 127; i++) {
        double now = fabs((double)a - (double)f8_values[i]), was = fabs((double)a - (double)f8_values[best]);
        if (now < was || (now == was && i % 2 == 0)) best = i;
    }
    return copysignf(f8_values[best], x);
}

static float max_of(const float *x, int64_t n) {
    float m = 0;
    for (int64_t i = 0; i < n; i++) m = fmaxf(m, fabsf(x[i]));
    return m;
}

static void reference_f8(float *x, int64_t n, int64_t d, const ActQuant *act) {
    float all = max_of(x, n * d);
    int64_t width = act->group ? act->group : d;
    for (int64_t i = 0; i < n * d; i += width) {
        float m = act->kind == ACT_TENSOR ? all : max_of(x + i, width), s = m == 0 ? 1 : m / 448;
        if (act->kind == ACT_STATIC) s = act->scale;
        for (int64_t k = i; k < i + width; k++) x[k] = nearest_f8(fmaxf(-448, fminf(448, x[k] / s))) * s;
    }
}

static float half(float x) {
    return f16_to_f32(f32_to_f16(x));
}

/* 取整的部分以 float 算（它是定义的一部分），列的取舍另写。返回: 有几列不取整。 */
static int reference_mixed(float *x, int64_t n, int64_t d, float threshold) {
    int apart_columns = 0;
    float m[N] = {0};
    bool apart[MAX_D] = {false};
    for (int64_t i = 0; i < n * d; i++) {
        float a = fabsf(half(x[i]));
        bool out = threshold > 0 && a >= threshold;
        if (out && !apart[i % d]) apart[i % d] = true, apart_columns++;
        if (!out) m[i / d] = fmaxf(m[i / d], a);
    }
    for (int64_t i = 0; i < n * d; i++) {
        float top = m[i / d];
        if (!apart[i % d]) x[i] = top == 0 ? 0 : rintf(half(x[i]) * (127 / top)) * (top * (1.0f / 127));
    }
    return apart_columns;
}

static void fill(float *x, int64_t n, int64_t d, uint64_t seed) {
    ref_fill(x, n * d, seed, 2);
    for (int64_t i = 0; i < n * d; i += 7) x[i] *= 1e-4f;      /* 次正规数的一头 */
    for (int64_t i = 3; i < n * d; i += 41) x[i] *= 5;         /* 离群值 */
    memset(x + (n - 1) * d, 0, (size_t)d * sizeof *x);         /* 全零的一行 */
}

static bool open_isa(Backend *b, size_t i) {
    Err e = {0};
    if (ref_backend(b, 1 + 2 * (int)(i % 2), COMPUTE_F32, ISAS[i / 2], &e)) return true;
    assert_int_equal(e.code, ERR_UNSUPPORTED);
    return false;
}

static void same(const float *got, const float *want, int64_t n) {
    for (int64_t i = 0; i < n; i++) assert_true(got[i] == want[i]); /* 0 的符号不论 */
}

static void test_f8_values(void **state) {
    (void)state;
    enum { STEPS = 2000 };
    float x[STEPS], want[STEPS];
    ActQuant act = {.kind = ACT_STATIC, .bits = 8, .scale = 1, .form = ACT_F8};
    for (size_t t = 0; t < COUNT(ISAS) * 2; t++) {
        Backend b;
        if (!open_isa(&b, t)) continue;
        for (int i = 0; i < STEPS; i++) { /* 每个值、每两个值的正中、正中的两旁，两种符号 */
            float lo = f8_values[i / 8 % 126], hi = f8_values[i / 8 % 126 + 1], mid = (lo + hi) / 2;
            float v = i / 2 % 4 == 0 ? lo : i / 2 % 4 == 1 ? mid : nextafterf(mid, i / 2 % 4 == 2 ? 0 : 1e9f);
            x[i] = want[i] = i % 2 ? -v : v;
        }
        x[0] = want[0] = 1e6f, x[1] = want[1] = -449;
        reference_f8(want, 1, STEPS, &act);
        op_round_act(&b, tensor_f32(x, 1, STEPS), &act);
        same(x, want, STEPS);
        assert_true(x[0] == 448 && x[1] == -448);
        ref_check(&b);
        backend_close(&b);
    }
}

static void test_f8_kinds(void **state) {
    (void)state;
    static const int64_t WIDTHS[] = {1, 15, 64, 576};
    static float x[MAX], want[MAX];
    for (size_t t = 0; t < COUNT(ISAS) * 2 * COUNT(WIDTHS) * 4; t++) {
        int64_t d = WIDTHS[t / 4 % COUNT(WIDTHS)];
        ActQuant act = {.kind = t % 4 == 3 ? ACT_TOKEN : ACT_TOKEN + (ActKind)(t % 4), .bits = 8, .scale = 0.01f,
                        .form = ACT_F8, .group = t % 4 == 3 ? (d % 3 ? d : d / 3) : 0};
        Backend b;
        if (!open_isa(&b, t / 4 / COUNT(WIDTHS))) continue;
        fill(x, N, d, t % 4);
        memcpy(want, x, sizeof want);
        reference_f8(want, N, d, &act);
        op_round_act(&b, tensor_f32(x, N, d), &act);
        same(x, want, N * d);
        ref_check(&b);
        backend_close(&b);
    }
}

static void test_mixed(void **state) {
    (void)state;
    static const int64_t WIDTHS[] = {1, 63, 64, 65, 577};
    static const float THRESHOLDS[] = {6, 0, 1e-3f};
    static float x[MAX], want[MAX];
    for (size_t t = 0; t < COUNT(ISAS) * 2 * COUNT(WIDTHS) * COUNT(THRESHOLDS); t++) {
        int64_t d = WIDTHS[t / COUNT(THRESHOLDS) % COUNT(WIDTHS)];
        ActQuant act = {.kind = ACT_TENSOR, .bits = 8, .form = ACT_MIXED, .threshold = THRESHOLDS[t % COUNT(THRESHOLDS)]};
        Backend b;
        if (!open_isa(&b, t / COUNT(THRESHOLDS) / COUNT(WIDTHS))) continue;
        fill(x, N, d, 9);
        if (d > 3) x[2] = 6; /* 恰在门槛上的也是离群值 */
        memcpy(want, x, sizeof want);
        int apart = reference_mixed(want, N, d, act.threshold);
        if (d > 3) assert_true(act.threshold == 6 ? apart > 0 && apart < d : act.threshold == 0 ? apart == 0 : apart > d / 2);
        op_round_act(&b, tensor_f32(x, N, d), &act);
        same(x, want, N * d);
        ref_check(&b);
        backend_close(&b);
    }
}

/* 非有限的激活只影响它那一行；MIXED 的 Inf 是离群值，整列原样。 */
static void test_not_finite(void **state) {
    (void)state;
    enum { D = 40 };
    for (size_t t = 0; t < COUNT(ISAS) * 2 * 3; t++) {
        float x[N * D];
        ActQuant act = {.kind = t % 3 == 1 ? ACT_STATIC : ACT_TOKEN, .bits = 8, .scale = 0.1f, .form = ACT_F8, .threshold = 6};
        if (t % 3 == 2) act.kind = ACT_TENSOR, act.form = ACT_MIXED;
        Backend b;
        if (!open_isa(&b, t / 3)) continue;
        ref_fill(x, N * D, 3, 1);
        x[1 * D + 39] = NAN;
        x[3 * D + 5] = -INFINITY;
        op_round_act(&b, tensor_f32(x, N, D), &act);
        for (int k = 0; k < N * D; k++) {
            bool inf = k / D == 3 && act.form == ACT_MIXED;
            assert_int_equal(isnan(x[k]) != 0, !(act.form == ACT_MIXED && k % D == 5) && !inf && (k / D == 1 || k / D == 3));
            if (inf && k % D == 5) assert_true(x[k] == -INFINITY);
        }
        backend_close(&b);
    }
}

/* 与先取整再相乘逐位相同；输入不动；输出可加到 y 上。 */
static void test_linear(void **state) {
    (void)state;
    enum { ROWS = 33, D = 96 };
    static const ActQuant ACTS[] = {
        {.kind = ACT_TOKEN, .bits = 8, .form = ACT_F8}, {.kind = ACT_TOKEN, .bits = 8, .form = ACT_F8, .group = 32},
        {.kind = ACT_STATIC, .bits = 8, .form = ACT_F8, .scale = 0.02f},
        {.kind = ACT_TENSOR, .bits = 8, .form = ACT_MIXED, .threshold = 6}, {.kind = ACT_TOKEN, .bits = 8, .form = ACT_VALUES}};
    QSpec spec = {.bits = 4, .group_size = 32, .zero = ZERO_INT, .scale_dtype = DT_F32};
    float *w = ARENA_ARRAY(&arena, float, ROWS * D, NULL), scale[ROWS * 3], zero[ROWS * 3], bias[ROWS];
    static float x[N * D], kept[N * D], rounded[N * D], up[N * D], tmp[N * D], y[N * ROWS], want[N * ROWS], sum[N * ROWS];
    ref_fill(w, ROWS * D, 1, 0.5);
    ref_fill(bias, ROWS, 2, 1);
    for (size_t t = 0; t < COUNT(ISAS) * 2 * COUNT(ACTS) * 2; t++) {
        const ActQuant *act = &ACTS[t / 2 % COUNT(ACTS)];
        bool activate = t % 2;
        Backend b;
        QTensor q;
        if (!open_isa(&b, t / 2 / COUNT(ACTS))) continue;
        assert_true(qtensor_new(&q, &arena, spec, ROWS, D, NULL));
        op_qparams(&b, tensor_f32(scale, ROWS, 3), tensor_f32(zero, ROWS, 3), tensor_f32(w, ROWS, D), &q.spec);
        op_quantize(&b, &q, tensor_f32(w, ROWS, D), tensor_f32(scale, ROWS, 3), tensor_f32(zero, ROWS, 3));
        fill(x, N, D, 4);
        ref_fill(up, N * D, 5, 1);
        ref_fill(y, N * ROWS, 6, 1);
        memcpy(kept, x, sizeof x);
        if (activate)
            op_activate(&b, tensor_f32(rounded, N, D), tensor_f32(x, N, D), tensor_f32(up, N, D), ACTF_SILU);
        else
            memcpy(rounded, x, sizeof x);
        op_round_act(&b, tensor_f32(rounded, N, D), act);
        op_linear(&b, tensor_f32(want, N, ROWS), tensor_f32(rounded, N, D), &q, tensor_f32_1d(bias, ROWS));
        for (int i = 0; activate && i < N * ROWS; i++) want[i] += y[i];
        LinearIn in = {.kind = activate ? IN_ACTIVATE : IN_PLAIN, .x = x, .up = up, .f = ACTF_SILU, .tmp = tmp};
        LinearOut out = {.y = y, .w = &q, .bias = bias, .sum = activate ? sum : NULL};
        op_linear_rounded_from(&b, &out, 1, &in, N, act);
        if (ref_on_cuda() && activate) /* cuBLAS 先加 y 再加偏置 */
            for (int i = 0; i < N * ROWS; i++) ref_near((double)y[i], (double)want[i], 0x1p-20 * (1 + fabs((double)want[i])), "cuda", "加到 y 上");
        else
            same(y, want, N * ROWS);
        same(x, kept, N * D);
        ref_check(&b);
        backend_close(&b);
    }
}

int main(void) {
    list_values();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_f8_values), cmocka_unit_test(test_f8_kinds),
                                       cmocka_unit_test(test_mixed), cmocka_unit_test(test_not_finite),
                                       cmocka_unit_test(test_linear)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arena_free(&arena);
    return failed;
}
