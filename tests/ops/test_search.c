/* test_search — 方法的内层循环对照双精度：按行相除、二次型、截断的搜索、可学的钳位、伪量化连同装包、线性层的反向 */
#include "reference.h"

static Tensor mat(const float *x, int64_t rows, int64_t cols) {
    return tensor_f32((float *)x, rows, cols);
}

static void each_target(void (*check)(Backend *b, const RefTarget *t)) {
    RefTarget targets[REF_MAX_TARGETS];
    int n = ref_targets(targets);
    for (int i = 0; i < n; i++) {
        Backend b = ref_open(&targets[i], 2);
        check(&b, &targets[i]);
        backend_close(&b);
    }
}

static void divide_case(Backend *b, const RefTarget *t) {
    static const int64_t SHAPES[][2] = {{1, 1}, {7, 13}, {33, 576}};
    for (int i = 0; i < 3; i++) {
        int64_t rows = SHAPES[i][0], cols = SHAPES[i][1], n = rows * cols;
        float *w = ref_random(n, 1, 1), *s = ref_random(rows, 2, 1), *want = ref_zeros(n);
        for (int64_t k = 0; k < n; k++) want[k] = w[k] / s[k / cols];
        op_divide_rows(b, mat(w, rows, cols), tensor_f32_1d(s, rows));
        ref_check(b);
        ref_same(w, want, n, t->name, "divide_rows");
        free(w);
        free(s);
        free(want);
    }
}
static void test_divide_rows(void **state) {
    (void)state;
    each_target(divide_case);
}

/* XᵀX 装成稠密 f32（n 个 token）。 */
static float *gram_of(Backend *b, QTensor *q, Arena *a, int64_t n, int64_t cols, uint64_t stream) {
    float *x = ref_random(n * cols, stream, 1), *g = ref_zeros(cols * cols);
    Err e = {0};
    for (int64_t c = 0; c < cols; c += 5)
        for (int64_t r = 0; r < n; r++) x[r * cols + c] *= 6;
    for (int64_t r = 0; r < n; r++)
        for (int64_t i = 0; i < cols; i++)
            for (int64_t k = 0; k < cols; k++) g[i * cols + k] += x[r * cols + i] * x[r * cols + k];
    assert_true(qtensor_new_dense(q, a, DT_F32, cols, cols, &e));
    op_pack_dense(b, q, mat(g, cols, cols));
    ref_check(b);
    free(x);
    return g;
}

/* d·G·dᵀ 与各项绝对值的和。 */
static double quadratic(const float *d, const float *g, int64_t cols, double *reach) {
    double sum = 0, all = 0;
    for (int64_t i = 0; i < cols; i++)
        for (int64_t k = 0; k < cols; k++) {
            double v = (double)d[i] * (double)g[i * cols + k] * (double)d[k];
            sum += v, all += fabs(v);
        }
    *reach += all;
    return sum;
}

static void quadratic_case(Backend *b, const RefTarget *t) {
    static const int64_t SHAPES[][2] = {{1, 1}, {9, 24}, {5, 130}, {17, 200}, {3, 530}};
    for (int i = 0; i < 5; i++) {
        int64_t rows = SHAPES[i][0], cols = SHAPES[i][1];
        Arena a = {0};
        QTensor q;
        float *g = gram_of(b, &q, &a, 8, cols, 3), *d = ref_random(rows * cols, 4, 0.1), *tmp = ref_zeros(rows * cols);
        double got = op_quadratic(b, mat(d, rows, cols), &q, mat(tmp, rows, cols)), want = 0, reach = 0;
        ref_check(b);
        for (int64_t r = 0; r < rows; r++) want += quadratic(d + r * cols, g, cols, &reach);
        bool tf32 = ref_on_cuda() && t->compute == COMPUTE_BF16;
        ref_near(got, want, reach * (tf32 ? 2e-3 : 2e-6), t->name, "quadratic");
        free(g);
        free(d);
        free(tmp);
        arena_free(&a);
    }
}
static void test_quadratic(void **state) {
    (void)state;
    each_target(quadratic_case);
}

/* ---- 截断 ---- */

static float clamp(float x, float top) {
    return x > top ? top : x < -top ? -top : x;
}

/* d = Q(clamp(w, limit)) − w，一行一组，照 ops.h 的公式。 */
static void candidate(float *d, const float *w, int64_t n, float limit, const QSpec *s) {
    float lo = INFINITY, hi = -INFINITY, top = (float)((1 << s->bits) - 1), scale, zero;
    for (int64_t c = 0; c < n; c++) {
        lo = fminf(lo, clamp(w[c], limit));
        hi = fmaxf(hi, clamp(w[c], limit));
    }
    if (s->grid == GRID_RANGE) {
        scale = fmaxf(hi - lo, 1e-5f) / top;
        if (s->scale_dtype == DT_F16) scale = f16_to_f32(f32_to_f16(scale));
        zero = fminf(fmaxf(rintf(-lo / scale), 0), top);
    } else {
        scale = fmaxf(fmaxf(-lo, hi), 1e-5f) * (1 / (float)((1 << (s->bits - 1)) - 1));
        if (s->scale_dtype == DT_F16) scale = f16_to_f32(f32_to_f16(scale));
        zero = (float)(1 << (s->bits - 1));
    }
    for (int64_t c = 0; c < n; c++) {
        float code = fminf(fmaxf(rintf(clamp(w[c], limit) / scale) + zero, 0), top);
        d[c] = scale * (code - zero) - w[c];
    }
}

/* 每一行须是某一步的截断，而那一步的误差（双精度）与最小的相差无几。 */
static void check_clip(Backend *b, const RefTarget *t, int64_t rows, int64_t width, int64_t ld, QSpec spec) {
    enum { STEPS = 10, GRID = 20 };
    Arena a = {0};
    QTensor q;
    float *g = gram_of(b, &q, &a, 6, width, 5), *w = ref_random(rows * ld, 6, 0.2), *d = ref_zeros(width);
    for (int64_t r = 0; r < rows; r++) w[r * ld + r % width] *= 5; /* 离群值：截断才有用 */
    float *got = malloc(sizeof *got * (size_t)(rows * ld));
    assert_non_null(got);
    memcpy(got, w, sizeof *got * (size_t)(rows * ld));
    ClipJob job = {.rows = rows, .width = width, .ld = ld, .w = got, .gram = &q, .spec = spec, .steps = STEPS, .grid = GRID};
    op_clip(b, &job);
    ref_check(b);
    int64_t clipped = 0;
    for (int64_t r = 0; r < rows; r++) {
        const float *x = w + r * ld, *y = got + r * ld;
        float top = 0, limit[STEPS];
        double error[STEPS], least = INFINITY, reach = 0, chosen = INFINITY;
        for (int64_t c = 0; c < width; c++) top = fmaxf(top, fabsf(x[c]));
        for (int k = 0; k < STEPS; k++) {
            limit[k] = top * (float)(1 - (double)k / GRID);
            candidate(d, x, width, limit[k], &spec);
            error[k] = quadratic(d, g, width, &reach);
            if (error[k] < least) least = error[k];
        }
        for (int k = 0; k < STEPS; k++) {
            bool same = true;
            for (int64_t c = 0; c < width; c++) same &= y[c] == clamp(x[c], limit[k]);
            if (same && error[k] < chosen) chosen = error[k], clipped += k > 0;
        }
        ref_near(chosen, least, 1e-5 * reach / STEPS, t->name, "截断的误差");
        for (int64_t c = width; c < ld && r + 1 < rows; c++) assert_true(y[c] == x[c]); /* 别的列不动 */
    }
    if (rows > 8 && width > 8) assert_true(clipped > 0);
    free(g);
    free(w);
    free(d);
    free(got);
    arena_free(&a);
}

static void clip_case(Backend *b, const RefTarget *t) {
    static const QSpec SPECS[] = {
        {.bits = 4, .group_size = -1, .zero = ZERO_INT, .scale_dtype = DT_F32, .grid = GRID_RANGE},
        {.bits = 3, .group_size = -1, .zero = ZERO_INT, .scale_dtype = DT_F16, .grid = GRID_RANGE},
        {.bits = 4, .group_size = -1, .zero = ZERO_SYM, .scale_dtype = DT_F16, .grid = GRID_ABSMAX}};
    for (int s = 0; s < 3; s++) {
        check_clip(b, t, 37, 128, 576, SPECS[s]);
        check_clip(b, t, 18, 36, 100, SPECS[s]); /* 不整除的末组 */
        check_clip(b, t, 3, 1, 1, SPECS[s]);
    }
    check_clip(b, t, 1100, 16, 16, SPECS[0]); /* CPU 上分几批 */
}
static void test_clip(void **state) {
    (void)state;
    each_target(clip_case);
}

/* ---- 可学的钳位 ---- */

static double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

static void check_clamp(Backend *b, const RefTarget *t, bool symmetric, bool learned, int bits) {
    enum { N = 3000 };
    float *p = ref_random(11 * N, 7, 1), *out[6];
    const float *lo = p, *hi = p + N, *low = p + 2 * N, *high = p + 3 * N, *d_scale = p + 4 * N;
    for (int i = 0; i < 6; i++) out[i] = p + (5 + i) * N;
    for (int i = 0; i < N; i++) p[i] = -fabsf(p[i]), p[N + i] = fabsf(p[N + i]), p[3 * N + i] += 4;
    p[0] = p[N] = 0; /* scale 截到下限 */
    ClampJob j = {.n = N, .bits = bits, .symmetric = symmetric, .least = 1e-5f, .most = 1e4f, .lo = lo, .hi = hi,
                  .low = learned ? low : NULL, .high = learned ? high : NULL, .scale = out[0], .zero = out[1],
                  .d_scale = d_scale, .d_low = out[2], .d_high = out[3], .d_lo = out[4], .d_hi = out[5]};
    op_clamp_grid(b, &j);
    op_clamp_grid_grad(b, &j);
    ref_check(b);
    double top = (1 << bits) - 1, half = (1 << (bits - 1)) - 1;
    for (int i = 0; i < N; i++) {
        double sa = learned ? sigmoid((double)low[i]) : 1, sb = learned ? sigmoid((double)high[i]) : 1, d = (double)d_scale[i];
        double l = sa * (double)lo[i], h = sb * (double)hi[i];
        double scale = symmetric ? fmax(fabs(l), fabs(h)) / half : (h - l) / top, d_lo = -d / top, d_hi = d / top;
        bool held = scale <= 1e-5;
        if (held) scale = 1e-5;
        double zero = symmetric ? half : -l / (double)out[0][i];
        if (symmetric) d_lo = fabs(l) > fabs(h) ? -d / half : 0, d_hi = fabs(l) > fabs(h) ? 0 : d / half;
        if (held) d_lo = d_hi = 0;
        ref_near((double)out[0][i], scale, 1e-6 * scale, t->name, "scale");
        ref_near((double)out[1][i], zero, symmetric ? 0 : 0.5 + 1e-4, t->name, "zero");
        assert_true(out[1][i] == rintf(out[1][i]));
        ref_near((double)out[4][i], d_lo * sa, 1e-6 * fabs(d), t->name, "d_lo");
        ref_near((double)out[5][i], d_hi * sb, 1e-6 * fabs(d), t->name, "d_hi");
        if (!learned) continue;
        ref_near((double)out[2][i], d_lo * l * (1 - sa), 1e-6 * fabs(d), t->name, "d_low");
        ref_near((double)out[3][i], d_hi * h * (1 - sb), 1e-6 * fabs(d), t->name, "d_high");
    }
    free(p);
}
static void clamp_case(Backend *b, const RefTarget *t) {
    for (int k = 0; k < 8; k++) check_clamp(b, t, k & 1, k & 2, k & 4 ? 4 : 3);
}
static void test_clamp_grid(void **state) {
    (void)state;
    each_target(clamp_case);
}

/* q = pack(fake_quant(x))：与先伪量化、再装包的逐位相同。 */
static void pack_case(Backend *b, const RefTarget *t) {
    static const int64_t SHAPES[][3] = {{1, 1, -1}, {19, 37, 8}, {33, 576, 128}, {5, 100, 64}, {7, 40, 6}};
    static const DType TYPES[] = {DT_F32, DT_BF16, DT_F16};
    for (int i = 0; i < 15; i++) {
        int64_t rows = SHAPES[i / 3][0], cols = SHAPES[i / 3][1], n = rows * cols;
        QSpec spec = {.bits = 3, .group_size = SHAPES[i / 3][2], .zero = ZERO_INT, .scale_dtype = DT_F32};
        int64_t groups = rows * ((cols - 1) / qspec_group_size(&spec, cols) + 1);
        Arena a = {0};
        Err e = {0};
        QTensor q, want;
        float *x = ref_random(n, 8, 1), *y = ref_zeros(n), *scale = ref_zeros(groups), *zero = ref_zeros(groups);
        assert_true(qtensor_new_dense(&q, &a, TYPES[i % 3], rows, cols, &e));
        assert_true(qtensor_new_dense(&want, &a, TYPES[i % 3], rows, cols, &e));
        op_qparams(b, mat(scale, rows, groups / rows), mat(zero, rows, groups / rows), mat(x, rows, cols), &spec);
        op_fake_quant(b, mat(y, rows, cols), mat(x, rows, cols), mat(scale, rows, groups / rows), mat(zero, rows, groups / rows),
                      &spec);
        op_pack_dense(b, &want, mat(y, rows, cols));
        op_fake_pack(b, &q, mat(y, rows, cols), mat(x, rows, cols), mat(scale, rows, groups / rows),
                     mat(zero, rows, groups / rows), &spec);
        ref_check(b);
        for (int64_t k = 0; k < n; k++) {
            float got = qtensor_at(&q, k / cols, k % cols), w = qtensor_at(&want, k / cols, k % cols);
            ref_same(&got, &w, 1, t->name, dtype_name(TYPES[i % 3]));
        }
        free(x);
        free(y);
        free(scale);
        free(zero);
        arena_free(&a);
    }
}
static void test_fake_pack(void **state) {
    (void)state;
    each_target(pack_case);
}

/* ---- 线性层的反向 ---- */

static void check_linear_grad(Backend *b, const RefTarget *t, int64_t n, int64_t rows, int64_t cols, DType dense) {
    Arena a = {0};
    Err e = {0};
    QTensor q;
    float *w = ref_random(rows * cols, 9, 0.5), *dy = ref_random(n * rows, 10, 0.5), *x = ref_random(n * cols, 11, 1);
    float *dx = ref_zeros(n * cols), *dw = ref_zeros(rows * cols), *wide = ref_zeros(rows * cols);
    if (dense != DT_NONE) {
        assert_true(qtensor_new_dense(&q, &a, dense, rows, cols, &e));
        op_pack_dense(b, &q, mat(w, rows, cols));
    } else {
        QSpec spec = {.bits = 4, .group_size = 16, .zero = ZERO_INT, .scale_dtype = DT_F16};
        assert_true(qtensor_new(&q, &a, spec, rows, cols, &e));
        float *scale = ref_zeros(rows * q.n_groups), *zero = ref_zeros(rows * q.n_groups);
        op_qparams(b, mat(scale, rows, q.n_groups), mat(zero, rows, q.n_groups), mat(w, rows, cols), &q.spec);
        op_quantize(b, &q, mat(w, rows, cols), mat(scale, rows, q.n_groups), mat(zero, rows, q.n_groups));
        free(scale);
        free(zero);
    }
    LinearGrad job = {.dy = dy, .x = x, .w = &q, .dense = wide, .dx = dx, .dw = dw, .n = n};
    op_linear_grad(b, &job);
    ref_check(b);
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < cols; c++) {
            double want = 0, reach = 0;
            for (int64_t r = 0; r < rows; r++) {
                double v = (double)ref_input(t, dy[i * rows + r]) * (double)ref_input(t, qtensor_at(&q, r, c));
                want += v, reach += fabs(v);
            }
            ref_near((double)dx[i * cols + c], want, 3e-6 * reach + 1e-7, t->name, "dx");
        }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            double want = 0, reach = 0;
            for (int64_t i = 0; i < n; i++) {
                double v = (double)ref_input(t, dy[i * rows + r]) * (double)ref_input(t, x[i * cols + c]);
                want += v, reach += fabs(v);
            }
            ref_near((double)dw[r * cols + c], want, 3e-6 * reach + 1e-7, t->name, "dw");
        }
    float *again = ref_zeros(n * cols);
    for (int64_t i = 0; i < rows * cols; i++) wide[i] = qtensor_at(&q, i / cols, i % cols);
    job.dx = again, job.dw = NULL, job.ready = true; /* 给了展开的权重：相同 */
    op_linear_grad(b, &job);
    ref_check(b);
    ref_same(again, dx, n * cols, t->name, "dx");
    free(again);
    free(w);
    free(dy);
    free(x);
    free(dx);
    free(dw);
    free(wide);
    arena_free(&a);
}
static void linear_grad_case(Backend *b, const RefTarget *t) {
    static const DType TYPES[] = {DT_F32, DT_BF16, DT_NONE};
    for (int i = 0; i < 3; i++) {
        check_linear_grad(b, t, 1, 1, 1, TYPES[i]);
        check_linear_grad(b, t, 13, 33, 21, TYPES[i]);
        check_linear_grad(b, t, 40, 48, 72, TYPES[i]);
    }
}
static void test_linear_grad(void **state) {
    (void)state;
    each_target(linear_grad_case);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_divide_rows), cmocka_unit_test(test_quadratic),
                                       cmocka_unit_test(test_clip),        cmocka_unit_test(test_clamp_grid),
                                       cmocka_unit_test(test_fake_pack),   cmocka_unit_test(test_linear_grad)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
