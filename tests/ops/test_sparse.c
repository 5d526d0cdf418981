/* test_sparse — SpQR 的内层循环对照双精度：定组的格点（留一法逐个重算）、两级统计、逐列补偿；列的方差，离群值的分出 */
#include "reference.h"

typedef struct Case {
    int64_t rows, cols, group, block, stat_rows;
    int bits, scale_bits, zero_bits;
    DType dtype;
    bool leave_one_out;
    float limit;
} Case;
static const Case CASES[] = {
    {37, 96, 16, 32, 16, 3, 3, 3, DT_F16, true, 0.004f},  {20, 100, 24, 64, 32, 4, 0, 2, DT_F32, true, 0.001f},
    {16, 130, 130, 48, 16, 3, 4, 0, DT_F16, false, 0.02f}, {5, 70, 33, 70, 16, 2, 3, 3, DT_F32, true, 0.05f},
    {3, 1, 1, 1, 16, 3, 3, 3, DT_F32, true, 1e30f},        {17, 600, 16, 600, 16, 3, 3, 3, DT_F16, true, 0.004f}};

typedef struct Levels {
    double scale, zero, top;
} Levels;
static Levels grid_of(double lo, double hi, int bits) {
    if (!(lo < hi)) lo = -1, hi = 1;
    double top = (1 << bits) - 1, scale = (hi - lo) / top;
    return (Levels){scale, -lo / scale, top};
}
static double code_of(double x, Levels g) {
    return fmin(fmax(rint(x / fmax(g.scale, 1e-9) + g.zero), 0), g.top);
}
static double rounded(double x, Levels g) {
    return g.scale * (code_of(x, g) - g.zero);
}
static double stored(double x, DType t) {
    return t == DT_F16 ? (double)f16_to_f32(f32_to_f16((float)x)) : x;
}

/* 去掉第 skip 个（−1 不去）的范围与误差。 */
static double error_without(const double *x, const float *diag, int64_t n, int64_t skip, int bits, double *lo, double *hi) {
    double sum = 0;
    *lo = INFINITY, *hi = -INFINITY;
    for (int64_t i = 0; i < n; i++)
        if (i != skip) *lo = fmin(*lo, x[i]), *hi = fmax(*hi, x[i]);
    Levels g = grid_of(*lo, *hi, bits);
    for (int64_t i = 0; i < n; i++) {
        double d = (rounded(x[i], g) - x[i]) / (double)diag[i];
        if (i != skip) sum += d * d;
    }
    return sum;
}
static Levels fit(const Case *k, const double *x, const float *diag, int64_t n) {
    double lo, hi, base = error_without(x, diag, n, -1, k->bits, &lo, &hi), kept_lo = INFINITY, kept_hi = -INFINITY, a, b;
    if (!k->leave_one_out || n < 2) return grid_of(lo, hi, k->bits);
    for (int64_t j = 0; j < n; j++) {
        if (base - error_without(x, diag, n, j, k->bits, &a, &b) > (double)k->limit) continue;
        kept_lo = fmin(kept_lo, x[j]), kept_hi = fmax(kept_hi, x[j]);
    }
    return grid_of(kept_lo, kept_hi, k->bits);
}

/* 一种统计：v 的第 g 组（行距 n_groups）换成再量化后的，码写进 code。 */
static void quantize_stat(const Case *k, double *v, uint8_t *code, int bits, int64_t g, int64_t n_groups) {
    for (int64_t r0 = 0; r0 < k->rows; r0 += k->stat_rows) {
        int64_t r1 = r0 + k->stat_rows < k->rows ? r0 + k->stat_rows : k->rows;
        double lo = INFINITY, hi = -INFINITY;
        for (int64_t r = r0; r < r1; r++) lo = fmin(lo, v[r * n_groups + g]), hi = fmax(hi, v[r * n_groups + g]);
        Levels grid = grid_of(lo, hi, bits ? bits : 1);
        grid.scale = stored(grid.scale, k->dtype), grid.zero = stored(grid.zero, k->dtype);
        for (int64_t r = r0; r < r1; r++) {
            double *x = v + r * n_groups + g;
            if (bits) code[r * n_groups + g] = (uint8_t)code_of(*x, grid);
            *x = bits ? rounded(*x, grid) : stored(*x, k->dtype);
        }
    }
}

static void *zeros(int64_t n, size_t size) {
    void *p = calloc((size_t)n + 1, size);
    assert_non_null(p);
    return p;
}

static void sparse_case(Backend *b, const RefTarget *t, const Case *k, float *w) {
    int64_t rows = k->rows, cols = k->cols, ng = (cols - 1) / k->group + 1, n = rows * cols;
    int64_t grids = 2 * ((rows - 1) / k->stat_rows + 1) * ng;
    float *u = ref_random(cols * cols, 21, 0.05), *err = ref_zeros(rows * k->block), *diag = ref_zeros(cols);
    float *scale = ref_zeros(rows * ng), *zero = ref_zeros(rows * ng);
    double *x = zeros(n, sizeof *x), *s = zeros(rows * ng, sizeof *s), *z = zeros(rows * ng, sizeof *z);
    uint8_t *mask = zeros(n, 1), *code[2] = {zeros(rows * ng, 1), zeros(rows * ng, 1)};
    uint8_t *want[2] = {zeros(rows * ng, 1), zeros(rows * ng, 1)}, *kept = zeros(n, 1);
    double *d = zeros(rows * cols, sizeof *d);
    ref_fill(w, n, 22, 0.1);
    for (int64_t i = 0; i < n; i += 29) w[i] *= 6; /* 离群值 */
    for (int64_t i = 0; i < cols; i++) {
        for (int64_t j = 0; j < i; j++) u[i * cols + j] = 0;
        u[i * cols + i] = diag[i] = 0.6f + 0.1f * (float)(i % 7);
    }
    for (int64_t i = 0; i < n; i++) x[i] = (double)w[i];
    SparseJob job = {.rows = rows, .cols = cols, .group = k->group, .n_groups = ng, .stat_rows = k->stat_rows, .bits = k->bits,
                     .scale_bits = k->scale_bits, .zero_bits = k->zero_bits, .scale_dtype = k->dtype,
                     .leave_one_out = k->leave_one_out, .limit = k->limit, .w = w, .u = u, .err = err, .outlier = mask,
                     .scale = scale, .zero = zero, .scale_code = code[0], .zero_code = code[1],
                     .scale_grid = ref_zeros(grids), .zero_grid = ref_zeros(grids)};
    for (job.i1 = 0; job.i1 < cols; job.i1 = job.i2) {
        job.i2 = job.i1 + k->block < cols ? job.i1 + k->block : cols;
        op_sparse(b, &job);
        op_update_rest(b, tensor_f32(w, rows, cols), tensor_f32(err, rows, job.i2 - job.i1), tensor_f32(u, cols, cols), job.i1,
                       job.i2);
    }
    ref_check(b);
    for (int64_t c = 0; c < cols; c++) {
        int64_t g = c / k->group, width = cols - c < k->group ? cols - c : k->group;
        /* 组的格点取自当时的 W：本块之后的列还没有本块的补偿 */
        for (int64_t r = 0; r < rows && c % k->group == 0; r++) {
            double *at = zeros(width, sizeof *at);
            for (int64_t i = 0; i < width; i++) {
                at[i] = x[r * cols + c + i];
                int64_t block = c / k->block * k->block;
                for (int64_t j = block; j < c && c + i >= block + k->block; j++) at[i] += d[r * cols + j] * (double)u[j * cols + c + i];
            }
            Levels grid = fit(k, at, diag + c, width);
            s[r * ng + g] = grid.scale, z[r * ng + g] = grid.zero;
            free(at);
        }
        if (c % k->group == 0) {
            quantize_stat(k, s, want[0], k->scale_bits, g, ng);
            quantize_stat(k, z, want[1], k->zero_bits, g, ng);
        }
        for (int64_t r = 0; r < rows; r++) {
            Levels grid = {s[r * ng + g], z[r * ng + g], (1 << k->bits) - 1};
            double q = rounded(x[r * cols + c], grid), e = (x[r * cols + c] - q) / (double)diag[c];
            kept[r * cols + c] = e * e > (double)k->limit;
            d[r * cols + c] = kept[r * cols + c] ? 0 : e;
            if (kept[r * cols + c]) continue;
            x[r * cols + c] = q;
            for (int64_t j = c + 1; j < cols; j++) x[r * cols + j] -= e * (double)u[c * cols + j];
        }
    }
    int64_t outliers = 0;
    for (int64_t i = 0; i < n; i++) {
        assert_int_equal(mask[i], kept[i]);
        ref_near((double)w[i], x[i], 2e-5 * (1 + fabs(x[i])), t->name, "权重");
        outliers += mask[i];
    }
    if (n > 1000) assert_true(outliers > 5 && outliers < n / 4);
    for (int64_t i = 0; i < rows * ng; i++) {
        ref_near((double)scale[i], s[i], 2e-5 * fabs(s[i]), t->name, "scale");
        ref_near((double)zero[i], z[i], 1e-4 * (1 + fabs(z[i])), t->name, "zero");
    }
    for (int v = 0; v < 2; v++)
        if (v ? k->zero_bits : k->scale_bits) assert_memory_equal(code[v], want[v], (size_t)(rows * ng));
    void *all[] = {u, err, diag, scale, zero, x, s, z, mask, code[0], code[1], want[0], want[1], kept, d, job.scale_grid, job.zero_grid};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static void test_sparse(void **state) {
    (void)state;
    RefTarget targets[REF_MAX_TARGETS];
    int n = ref_targets(targets);
    for (size_t k = 0; k < sizeof CASES / sizeof *CASES; k++)
        for (int i = 0; i < n; i++) {
            int64_t cells = CASES[k].rows * CASES[k].cols;
            float *w = ref_zeros(cells), *again = ref_zeros(cells);
            for (int threads = 1; threads < 3; threads++) {
                Backend b = ref_open(&targets[i], threads);
                sparse_case(&b, &targets[i], &CASES[k], threads == 1 ? w : again);
                backend_close(&b);
            }
            ref_same(again, w, cells, targets[i].name, "线程数");
            free(w);
            free(again);
        }
}

static void test_variance(void **state) {
    (void)state;
    static const int64_t SHAPES[][2] = {{2, 1}, {3, 70}, {300, 129}, {1000, 3}};
    RefTarget targets[REF_MAX_TARGETS];
    ref_targets(targets);
    Backend b = ref_open(&targets[0], 2);
    for (int i = 0; i < 4; i++) {
        int64_t rows = SHAPES[i][0], cols = SHAPES[i][1];
        float *x = ref_random(rows * cols, 23, 2);
        double *var = zeros(cols, sizeof *var);
        for (int64_t k = 0; k < rows * cols; k++) x[k] += 5;
        op_column_variance(&b, var, tensor_f32(x, rows, cols));
        ref_check(&b);
        for (int64_t c = 0; c < cols; c++) {
            double mean = 0, sum = 0;
            for (int64_t r = 0; r < rows; r++) mean += (double)x[r * cols + c] / (double)rows;
            for (int64_t r = 0; r < rows; r++) sum += ((double)x[r * cols + c] - mean) * ((double)x[r * cols + c] - mean);
            ref_near(var[c], sum / (double)(rows - 1), 1e-12 * (1 + sum), targets[0].name, "方差");
        }
        free(x);
        free(var);
    }
    backend_close(&b);
}

/* 与 qtensor_set_outliers 逐位相同，w 的那些位置为 0；f16 放不下的报出。 */
static void test_split(void **state) {
    (void)state;
    static const int64_t SHAPES[][2] = {{1, 1}, {16, 32}, {37, 100}, {65, 576}};
    RefTarget targets[REF_MAX_TARGETS];
    ref_targets(targets);
    Backend b = ref_open(&targets[0], 2);
    for (int i = 0; i < 8; i++) {
        int64_t rows = SHAPES[i / 2][0], cols = SHAPES[i / 2][1], n = rows * cols;
        Arena a = {0};
        Err e = {0};
        QTensor want, got;
        QSpec spec = {.bits = 3, .group_size = 16, .zero = ZERO_FLOAT, .scale_dtype = i % 2 ? DT_F16 : DT_F32};
        float *w = ref_random(n, 24, 2);
        uint8_t *mask = zeros(n, 1);
        for (int64_t k = 0; k < n; k++) mask[k] = rng_below(9, 25, (uint64_t)k, 100) < 7;
        assert_true(qtensor_new(&want, &a, spec, rows, cols, &e));
        got = want;
        assert_true(qtensor_set_outliers(&want, &a, w, mask, &e));
        float *left = ref_zeros(n);
        memcpy(left, w, (size_t)n * sizeof *w);
        op_split_outliers(&b, &got, &a, tensor_f32(left, rows, cols), mask);
        ref_check(&b);
        int64_t blocks = ((rows - 1) / QT_PANEL + 1) * ((cols - 1) / QT_KBLOCK + 1);
        assert_int_equal(got.outliers.n, want.outliers.n);
        assert_int_equal(got.outliers.bytes, want.outliers.bytes);
        assert_memory_equal(got.outliers.start, want.outliers.start, (size_t)(blocks + 1) * 4);
        assert_memory_equal(got.outliers.at, want.outliers.at, (size_t)want.outliers.n * 2);
        assert_memory_equal(got.outliers.value, want.outliers.value, (size_t)want.outliers.n * (i % 2 ? 2 : 4));
        for (int64_t k = 0; k < n; k++) assert_true(left[k] == (mask[k] ? 0 : w[k]));
        w[0] = 1e6f, mask[0] = 1;
        op_split_outliers(&b, &got, &a, tensor_f32(w, rows, cols), mask);
        assert_int_equal(backend_check(&b, &e), i % 2 == 0);
        free(w);
        free(left);
        free(mask);
        arena_free(&a);
    }
    backend_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sparse), cmocka_unit_test(test_variance), cmocka_unit_test(test_split)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
