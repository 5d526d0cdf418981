/* test_linear — 线性层、查表、装包与量化：每种类型 × 指令集 × 计算模式
 * 对照逐元素的布局定义（qtensor_at）与双精度参考；误差界为 (K+4)·ε·Σ|x·w|（单累加器的标准界），
 * 按编码算的单行 |w| 换成 scale·(code+|zero|)，见 ref_weight。
 * 结果与批大小（除按编码算的单行）、线程数无关须逐位成立；取整量化与逐个标量的参考须逐位相同。 */
#include "reference.h"

enum { MAX_N = 100 };
static const char *const ISAS[] = {"generic", "avx2", "avx512", "avx512_bf16"};
static const int64_t BATCHES[] = {1, 2, 3, 5, 7, 12, 13, 31};
static const int64_t ROWS[] = {1, 15, 16, 17, 33, 100};
static const int64_t COLS[] = {1, 2, 31, 33, 64, 100, 576};
#define COUNT(a) (sizeof(a) / sizeof(a)[0])

static Arena arena;

static float *random_floats(int64_t n, uint64_t stream, float scale) {
    float *x = ARENA_ARRAY(&arena, float, n, NULL);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++)
        x[i] = scale * (float)(rng_unit(7, stream, (uint64_t)i) * 2 - 1);
    return x;
}

/* 打开指令集；本机没有的返回假。 */
static bool open_backend(Backend *b, const char *isa, ComputeMode mode, int threads) {
    Err e = {0};
    if (ref_backend(b, threads, mode, isa, &e)) return true;
    assert_int_equal(e.code, ERR_UNSUPPORTED);
    return false;
}

static void no_error(Backend *b) {
    Err e = {0};
    if (!backend_check(b, &e)) fail_msg("%s", e.msg);
}

/* 双精度参考与误差界。 */
static void check_reference(const float *y, const float *x, const QTensor *q, const float *bias,
                            int64_t n, bool bf16) {
    float *w = ARENA_ARRAY(&arena, float, q->rows *q->cols, NULL);
    bool by_codes = ref_by_codes(q, bf16, n);
    float *reach = ARENA_ARRAY(&arena, float, q->rows *q->cols, NULL);
    for (int64_t r = 0; r < q->rows; r++)
        for (int64_t c = 0; c < q->cols; c++)
            w[r * q->cols + c] = ref_weight(q, r, c, bf16, by_codes, &reach[r * q->cols + c]);
    for (int64_t i = 0; i < n; i++)
        for (int64_t r = 0; r < q->rows; r++) {
            double sum = bias ? (double)bias[r] : 0, size = fabs(sum);
            for (int64_t c = 0; c < q->cols; c++) {
                float a = x[i * q->cols + c];
                if (bf16) a = bf16_to_f32(f32_to_bf16(a));
                sum += (double)a * w[r * q->cols + c];
                size += fabs((double)a * reach[r * q->cols + c]);
            }
            double bound = ((double)q->cols + 4) * 0x1p-24 * size + 1e-30;
            double error = fabs((double)y[i * q->rows + r] - sum);
            if (!(error <= bound))
                fail_msg("行 %d 列 %d（%d×%d 位宽 %d 组 %d）: %g，应为 %g ± %g", (int)i, (int)r,
                         (int)q->rows, (int)q->cols, q->spec.bits, (int)q->spec.group_size,
                         (double)y[i * q->rows + r], sum, bound);
        }
}

/* 大批一次算出，与参考对照；各种小批与线程数须逐位相同。 */
static void check_linear(const char *isa, ComputeMode mode, const QTensor *q, int64_t n,
                         bool with_bias) {
    Backend b;
    if (!open_backend(&b, isa, mode, 1)) return;
    ArenaMark mark = arena_mark(&arena);
    float *x = random_floats(n * q->cols, 1, 2), *bias = random_floats(q->rows, 2, 1);
    float *y = ARENA_ARRAY(&arena, float, n *q->rows, NULL);
    float *part = ARENA_ARRAY(&arena, float, n *q->rows, NULL);
    if (!with_bias) bias = NULL;
    Tensor tb = tensor_f32_1d(bias, q->rows);
    op_linear(&b, tensor_f32(y, n, q->rows), tensor_f32(x, n, q->cols), q, tb);
    check_reference(y, x, q, bias, n < 13 ? n : 13, mode == COMPUTE_BF16);
    for (size_t i = 0; i < COUNT(BATCHES) && BATCHES[i] <= n; i++)
        for (int64_t at = n - BATCHES[i]; at >= 0; at = at == 0 ? -1 : 0) { /* 尾与首 */
            op_linear(&b, tensor_f32(part, BATCHES[i], q->rows),
                      tensor_f32(x + at * q->cols, BATCHES[i], q->cols), q, tb);
            if (ref_by_codes(q, mode == COMPUTE_BF16, BATCHES[i]))
                check_reference(part, x + at * q->cols, q, bias, 1, true);
            else if (ref_on_cuda()) /* cuBLAS 按形状选次序：各批都在界内 */
                check_reference(part, x + at * q->cols, q, bias, BATCHES[i], mode == COMPUTE_BF16);
            else
                assert_memory_equal(part, y + at * q->rows,
                                    (size_t)(BATCHES[i] * q->rows) * sizeof *y);
        }
    float *single = ARENA_ARRAY(&arena, float, q->rows, NULL);
    op_linear(&b, tensor_f32(single, 1, q->rows), tensor_f32(x, 1, q->cols), q, tb);
    no_error(&b);
    backend_close(&b);
    for (int threads = 2; threads <= 3 && !ref_on_cuda(); threads++) {
        assert_true(open_backend(&b, isa, mode, threads));
        memset(part, 0, (size_t)(n * q->rows) * sizeof *part);
        op_linear(&b, tensor_f32(part, n, q->rows), tensor_f32(x, n, q->cols), q, tb);
        assert_memory_equal(part, y, (size_t)(n * q->rows) * sizeof *y);
        op_linear(&b, tensor_f32(part, 1, q->rows), tensor_f32(x, 1, q->cols), q, tb);
        assert_memory_equal(part, single, (size_t)q->rows * sizeof *y);
        no_error(&b);
        backend_close(&b);
    }
    arena_rewind(&arena, mark);
}

static void check_all_isas(const QTensor *q, int64_t n, bool with_bias) {
    for (size_t i = 0; i < COUNT(ISAS); i++) check_linear(ISAS[i], COMPUTE_F32, q, n, with_bias);
    check_linear("avx512_bf16", COMPUTE_BF16, q, n, with_bias);
}

static void test_linear_dense(void **state) {
    (void)state;
    static const DType TYPES[] = {DT_F32, DT_F16, DT_BF16};
    Backend b;
    assert_true(open_backend(&b, "generic", COMPUTE_F32, 1));
    for (size_t t = 0; t < COUNT(TYPES); t++)
        for (size_t r = 0; r < COUNT(ROWS); r++)
            for (size_t c = 0; c < COUNT(COLS); c++) {
                ArenaMark mark = arena_mark(&arena);
                QTensor q;
                assert_true(qtensor_new_dense(&q, &arena, TYPES[t], ROWS[r], COLS[c], NULL));
                float *w = random_floats(ROWS[r] * COLS[c], 3, 1);
                op_pack_dense(&b, &q, tensor_f32(w, ROWS[r], COLS[c]));
                check_all_isas(&q, (r + c) % 3 == 0 ? MAX_N : 13, (r + c) % 2 == 0);
                arena_rewind(&arena, mark);
            }
    no_error(&b);
    backend_close(&b);
}

/* 跨多段 k、多个块与多个任务的大矩阵。 */
static void test_linear_large(void **state) {
    (void)state;
    Backend b;
    assert_true(open_backend(&b, NULL, COMPUTE_F32, 1));
    static const struct {
        DType type;
        int64_t rows, cols, n;
    } CASES[] = {{DT_F32, 700, 1000, 60}, {DT_F16, 500, 1537, 60}, {DT_BF16, 500, 1601, 60}};
    for (size_t i = 0; i < COUNT(CASES); i++) {
        ArenaMark mark = arena_mark(&arena);
        QTensor q;
        assert_true(
            qtensor_new_dense(&q, &arena, CASES[i].type, CASES[i].rows, CASES[i].cols, NULL));
        float *w = random_floats(CASES[i].rows * CASES[i].cols, 3, 1);
        op_pack_dense(&b, &q, tensor_f32(w, CASES[i].rows, CASES[i].cols));
        for (size_t k = 1; k < COUNT(ISAS); k++)
            check_linear(ISAS[k], COMPUTE_F32, &q, CASES[i].n, i == 0);
        check_linear("avx512_bf16", COMPUTE_BF16, &q, CASES[i].n, false);
        arena_rewind(&arena, mark);
    }
    backend_close(&b);
}

/* 逐个标量写出的定义：与内核无关的另一份实现。 */
static float round_stored(float x, DType t) {
    return t == DT_F16 ? f16_to_f32(f32_to_f16(x)) : x;
}
static void reference_params(const float *w, int64_t n, const QSpec *s, float *scale, float *zero) {
    float lo = w[0], hi = w[0], top = (float)((1 << s->bits) - 1);
    for (int64_t i = 1; i < n; i++) {
        lo = fminf(lo, w[i]);
        hi = fmaxf(hi, w[i]);
    }
    if (s->zero == ZERO_INT) {
        lo = fminf(lo, 0);
        hi = fmaxf(hi, 0);
        if (lo == 0 && hi == 0) lo = -1, hi = 1;
        *scale = round_stored((hi - lo) / top, s->scale_dtype);
        *zero = rintf(-lo / *scale);
    } else if (s->zero == ZERO_SYM) {
        float m = fmaxf(fabsf(lo), fabsf(hi));
        *scale = round_stored(2 * (m == 0 ? 1 : m) / top, s->scale_dtype);
        *zero = (float)(1 << (s->bits - 1));
    } else {
        float least = s->scale_dtype == DT_F16 ? fabsf(lo) / 65504 : 0;
        *scale = round_stored(fmaxf(hi == lo ? 1 : (hi - lo) / top, least), s->scale_dtype);
        *zero = round_stored(-lo / *scale, s->scale_dtype);
    }
}
static int reference_code(float w, float scale, float zero, const QSpec *s) {
    float c = s->zero == ZERO_FLOAT ? rintf(w / scale + zero) : rintf(w / scale) + zero;
    float top = (float)((1 << s->bits) - 1);
    return (int)(c < 0 ? 0 : c > top ? top : c);
}

static void check_quantized(const char *isa, const float *w, const QTensor *want, const float *ws,
                            const float *wz) {
    Backend b;
    if (!open_backend(&b, isa, COMPUTE_F32, 2)) return;
    ArenaMark mark = arena_mark(&arena);
    int64_t rows = want->rows, cols = want->cols, n = rows * want->n_groups;
    float *scale = ARENA_ARRAY(&arena, float, n, NULL), *zero = ARENA_ARRAY(&arena, float, n, NULL);
    float *back = ARENA_ARRAY(&arena, float, rows *cols, NULL);
    QTensor q;
    assert_true(qtensor_new(&q, &arena, want->spec, rows, cols, NULL));
    Tensor tw = tensor_f32((float *)w, rows, cols);
    Tensor ts = tensor_f32(scale, rows, q.n_groups), tz = tensor_f32(zero, rows, q.n_groups);
    op_qparams(&b, ts, tz, tw, &want->spec);
    assert_memory_equal(scale, ws, (size_t)n * sizeof *scale);
    for (int64_t i = 0; i < n; i++) assert_true(zero[i] == wz[i]); /* -0 与 0 不区分 */
    op_quantize(&b, &q, tw, ts, tz);
    assert_memory_equal(q.data, want->data, q.data_bytes);
    assert_memory_equal(q.scales, want->scales, q.scale_bytes);
    for (int64_t i = 0; i < n; i++)
        assert_true(qtensor_zero(&q, i / q.n_groups, i % q.n_groups) == wz[i]);
    op_dequantize(&b, tensor_f32(back, rows, cols), &q);
    int32_t ids[3] = {0, (int32_t)(rows / 2), (int32_t)rows - 1};
    float *row = ARENA_ARRAY(&arena, float, 3 * cols, NULL);
    op_embed(&b, tensor_f32(row, 3, cols), &q, ids);
    for (int64_t i = 0; i < rows * cols; i++) {
        float at = qtensor_at(want, i / cols, i % cols);
        assert_memory_equal(back + i, &at, sizeof at);
    }
    for (int i = 0; i < 3; i++)
        assert_memory_equal(row + i * cols, back + ids[i] * cols, (size_t)cols * sizeof *row);
    no_error(&b);
    backend_close(&b);
    arena_rewind(&arena, mark);
}

static void check_spec(QSpec spec, int64_t rows, int64_t cols, int64_t n) {
    ArenaMark mark = arena_mark(&arena);
    QTensor q;
    assert_true(qtensor_new(&q, &arena, spec, rows, cols, NULL));
    float *w = random_floats(rows * cols, (uint64_t)(rows * 7 + cols), 1);
    float *scale = ARENA_ARRAY(&arena, float, rows *q.n_groups, NULL);
    float *zero = ARENA_ARRAY(&arena, float, rows *q.n_groups, NULL);
    memset(w, 0, (size_t)(rows > 1 ? cols : 0) * sizeof *w); /* 一整行的零 */
    for (int64_t r = 0; r < rows; r++)
        for (int64_t g = 0; g < q.n_groups; g++) {
            int64_t k = g * q.spec.group_size, end = k + q.spec.group_size, at = r * q.n_groups + g;
            if (end > cols) end = cols;
            reference_params(w + r * cols + k, end - k, &q.spec, scale + at, zero + at);
            qtensor_set_scale(&q, r, g, scale[at]);
            qtensor_set_zero(&q, r, g, zero[at]);
            for (; k < end; k++)
                qtensor_set_code(&q, r, k,
                                 reference_code(w[r * cols + k], scale[at], zero[at], &q.spec));
        }
    for (size_t i = 0; i < COUNT(ISAS); i++) check_quantized(ISAS[i], w, &q, scale, zero);
    check_all_isas(&q, n, n % 2 == 0);
    arena_rewind(&arena, mark);
}

static void test_linear_int(void **state) {
    (void)state;
    static const int64_t GROUPS[] = {1, 7, 32, 48, 64, 128, -1};
    size_t i = 0;
    for (int bits = 2; bits <= 8; bits++)
        for (int zero = 0; zero < 3; zero++)
            for (int half = 0; half < 2; half++)
                for (size_t g = 0; g < COUNT(GROUPS); g++, i++) {
                    QSpec s = {bits, GROUPS[g], (ZeroKind)zero, half ? DT_F16 : DT_F32, GRID_GPTQ, CODE_INT};
                    check_spec(s, ROWS[i % COUNT(ROWS)], COLS[i / 5 % (COUNT(COLS) - 1)],
                               BATCHES[i % COUNT(BATCHES)]);
                    if (i % 5 == 0) check_spec(s, 33, 130, 5);
                    if (i % 40 == 0) check_spec(s, 40, 576, 31);
                }
}

/* 几个共用输入的线性层一次算完，与各自单独算逐位相同：稠密、各种位宽与组宽、偏置、换过列序的混在一起。 */
static void check_many(const char *isa, ComputeMode mode, int threads, bool with_perm) {
    enum { COLS_MANY = 130, N_OUT = 5, MANY_ROWS = 3 };
    static const int64_t OUT_ROWS[N_OUT] = {1, 40, 200, 15, 64};
    static const QSpec SPECS[N_OUT] = {{4, 64, ZERO_INT, DT_F16, GRID_GPTQ, CODE_INT}, {4, 64, ZERO_INT, DT_F16, GRID_GPTQ, CODE_INT},
                                       {8, -1, ZERO_SYM, DT_F32, GRID_ABSMAX, CODE_INT}, {0}, {3, 7, ZERO_SYM, DT_F16, GRID_GPTQ, CODE_INT}};
    Backend b;
    if (!open_backend(&b, isa, mode, threads)) return;
    ArenaMark mark = arena_mark(&arena);
    QTensor q[N_OUT];
    LinearOut out[N_OUT];
    float *x = random_floats(MANY_ROWS * COLS_MANY, 3, 2);
    int32_t perm[COLS_MANY];
    for (int k = 0; k < COLS_MANY; k++) perm[k] = (k + 17) % COLS_MANY;
    for (int i = 0; i < N_OUT; i++) {
        int64_t rows = OUT_ROWS[i], size = rows * COLS_MANY;
        float *w = random_floats(size, 20 + (uint64_t)i, 1), *bias = random_floats(rows, 30 + (uint64_t)i, 1);
        if (SPECS[i].bits == 0) {
            assert_true(qtensor_new_dense(&q[i], &arena, mode == COMPUTE_BF16 ? DT_BF16 : DT_F32, rows, COLS_MANY, NULL));
            op_pack_dense(&b, &q[i], tensor_f32(w, rows, COLS_MANY));
        } else {
            assert_true(qtensor_new(&q[i], &arena, SPECS[i], rows, COLS_MANY, NULL));
            Tensor scale = tensor_f32(random_floats(rows * q[i].n_groups, 1, 1), rows, q[i].n_groups);
            Tensor zero = tensor_f32(random_floats(rows * q[i].n_groups, 1, 1), rows, q[i].n_groups);
            op_qparams(&b, scale, zero, tensor_f32(w, rows, COLS_MANY), &q[i].spec);
            op_quantize(&b, &q[i], tensor_f32(w, rows, COLS_MANY), scale, zero);
        }
        if (with_perm && i == 1) assert_true(qtensor_set_perm(&q[i], &arena, perm, NULL));
        out[i] = (LinearOut){.y = random_floats(MANY_ROWS * rows, 2, 1), .w = &q[i], .bias = i % 2 ? bias : NULL};
    }
    for (int64_t n = 1; n <= MANY_ROWS; n += 2) {
        op_linear_many(&b, out, N_OUT, tensor_f32(x, n, COLS_MANY));
        for (int i = 0; i < N_OUT; i++) {
            int64_t rows = OUT_ROWS[i];
            float *single = random_floats(n * rows, 4, 1);
            op_linear(&b, tensor_f32(single, n, rows), tensor_f32(x, n, COLS_MANY), &q[i],
                      tensor_f32_1d((float *)out[i].bias, out[i].bias ? rows : 0));
            assert_memory_equal(out[i].y, single, (size_t)(n * rows) * sizeof *single);
        }
    }
    no_error(&b);
    backend_close(&b);
    arena_rewind(&arena, mark);
}

static void test_linear_many(void **state) {
    (void)state;
    for (int threads = 1; threads <= 3; threads++)
        for (int perm = 0; perm < 2; perm++) {
            for (size_t i = 0; i < COUNT(ISAS); i++) check_many(ISAS[i], COMPUTE_F32, threads, perm);
            check_many("avx512_bf16", COMPUTE_BF16, threads, perm);
        }
}

/* 解码一批的行数（CUDA 上 9 到 64 行另有内核，沿 K 分给几块）：稠密 bf16 的几个一起，对照双精度参考，两次逐位相同。 */
static void test_linear_few(void **state) {
    (void)state;
    enum { N_OUT = 3, MOST = 64 };
    static const int64_t CASES[][1 + N_OUT] = {{72, 1, 64, 130}, {200, 129, 33, 256}, {1024, 320, 64, 64}, {4104, 600, 100, 8}};
    static const int64_t NS[] = {9, 16, 17, 32, 33, MOST};
    Backend b;
    if (!open_backend(&b, "avx512_bf16", COMPUTE_BF16, 2)) return;
    for (size_t k = 0; k < COUNT(CASES) * COUNT(NS); k++) {
        const int64_t *shape = CASES[k / COUNT(NS)], cols = shape[0], n = NS[k % COUNT(NS)];
        ArenaMark mark = arena_mark(&arena);
        float *x = random_floats(n * cols, 71, 1), *again[N_OUT];
        QTensor q[N_OUT];
        LinearOut out[N_OUT], twice[N_OUT];
        for (int i = 0; i < N_OUT; i++) {
            int64_t rows = shape[1 + i];
            assert_true(qtensor_new_dense(&q[i], &arena, DT_BF16, rows, cols, NULL));
            op_pack_dense(&b, &q[i], tensor_f32(random_floats(rows * cols, 72 + (uint64_t)i, 1), rows, cols));
            out[i] = (LinearOut){.y = random_floats(n * rows, 75, 1), .w = &q[i], .bias = i ? random_floats(rows, 76, 1) : NULL};
            twice[i] = out[i], again[i] = twice[i].y = random_floats(n * rows, 77, 1);
        }
        op_linear_many(&b, out, N_OUT, tensor_f32(x, n, cols));
        op_linear_many(&b, twice, N_OUT, tensor_f32(x, n, cols));
        no_error(&b);
        for (int i = 0; i < N_OUT; i++) {
            assert_memory_equal(out[i].y, again[i], (size_t)(n * q[i].rows) * sizeof(float));
            check_reference(out[i].y, x, &q[i], out[i].bias, n, true);
        }
        arena_rewind(&arena, mark);
    }
    backend_close(&b);
}

/* 输入当场归一化（或激活）、输出加到 y 上：与分开的算子逐位相同（CUDA 上只差末位）。 */
static void check_from(Backend *b, const QTensor *q, int64_t n, InputKind kind, bool add, const ActQuant *act,
                       const char *target) {
    ArenaMark mark = arena_mark(&arena);
    int64_t cols = q->cols, rows = q->rows;
    float *x = random_floats(n * cols, 21, 1), *up = random_floats(n * cols, 22, 1), *w = random_floats(cols, 23, 1);
    float *tmp = random_floats(n * cols, 24, 1), *sum = random_floats(n * rows, 25, 1), *bias = random_floats(rows, 26, 1);
    float *got = random_floats(n * rows, 27, 1), *want = random_floats(n * rows, 27, 1), *plain = random_floats(n * rows, 28, 1);
    LinearIn in = {.kind = kind, .x = x, .up = up, .norm = {w, NULL, 1, 1e-5f, false}, .f = ACTF_SILU, .tmp = tmp};
    LinearOut out = {.y = got, .w = q, .bias = bias, .sum = add ? sum : NULL};
    float *y = random_floats(n * cols, 29, 1);
    Tensor tx = tensor_f32(x, n, cols), ty = tensor_f32(y, n, cols), tp = tensor_f32(plain, n, rows);
    if (act)
        op_linear_int8_from(b, &out, 1, &in, n, act);
    else
        op_linear_from(b, &out, 1, &in, n);
    if (kind == IN_NORM)
        op_norm(b, ty, tx, &in.norm);
    else
        op_activate(b, ty, tx, tensor_f32(up, n, cols), ACTF_SILU);
    if (act)
        op_linear_int8(b, tp, ty, q, tensor_f32_1d(bias, rows), act);
    else
        op_linear(b, tp, ty, q, tensor_f32_1d(bias, rows));
    if (add)
        op_add(b, tensor_f32(want, n, rows), tp);
    else
        memcpy(want, plain, (size_t)(n * rows) * sizeof *want);
    no_error(b);
    ref_same_row(got, want, n * rows, target, kind == IN_NORM ? "当场归一化" : "当场激活");
    arena_rewind(&arena, mark);
}

static void test_linear_from(void **state) {
    (void)state;
    static const int64_t NS[] = {1, 5, 31, 70};
    static const QSpec SPECS[] = {
        {.bits = 4, .group_size = 64, .zero = ZERO_INT, .scale_dtype = DT_F16, .grid = GRID_GPTQ},
        {.bits = 8, .group_size = -1, .zero = ZERO_SYM, .scale_dtype = DT_F16, .grid = GRID_ABSMAX}};
    for (size_t i = 0; i < 2 * COUNT(ISAS); i++) {
        Backend b;
        bool bf16 = i % 2;
        if (!open_backend(&b, ISAS[i / 2], bf16 ? COMPUTE_BF16 : COMPUTE_F32, 2)) continue;
        ArenaMark mark = arena_mark(&arena);
        int64_t rows = 75, cols = 192;
        float *w = random_floats(rows * cols, 20, 1);
        QTensor q[3];
        assert_true(qtensor_new_dense(&q[0], &arena, bf16 ? DT_BF16 : DT_F32, rows, cols, NULL));
        op_pack_dense(&b, &q[0], tensor_f32(w, rows, cols));
        for (int k = 0; k < 2; k++) {
            assert_true(qtensor_new(&q[k + 1], &arena, SPECS[k], rows, cols, NULL));
            Tensor scale = tensor_f32(random_floats(rows * q[k + 1].n_groups, 1, 1), rows, q[k + 1].n_groups);
            Tensor zero = tensor_f32(random_floats(rows * q[k + 1].n_groups, 1, 1), rows, q[k + 1].n_groups);
            op_qparams(&b, scale, zero, tensor_f32(w, rows, cols), &q[k + 1].spec);
            op_quantize(&b, &q[k + 1], tensor_f32(w, rows, cols), scale, zero);
        }
        const ActQuant act = {.kind = ACT_TOKEN, .bits = 8};
        const char *target = bf16 ? "bf16" : "f32";
        for (int n = 0; n < 4; n++)
            for (int mode = 0; mode < 4; mode++)
                for (int k = 0; k < 4; k++)
                    check_from(&b, &q[k < 3 ? k : 2], NS[n], mode % 2 ? IN_NORM : IN_ACTIVATE, mode / 2,
                               k == 3 ? &act : NULL, target);
        backend_close(&b);
        arena_rewind(&arena, mark);
    }
}

/* gate、up 的输出不透明地交给 down，与经 f32 的相近。 */
static void test_opaque(void **state) {
    (void)state;
    static const int64_t NS[] = {1, 17, 33, 200};
    for (size_t i = 0; i < 2 * COUNT(ISAS); i++) {
        Backend b;
        bool bf16 = i % 2;
        if (!open_backend(&b, ISAS[i / 2], bf16 ? COMPUTE_BF16 : COMPUTE_F32, 2)) continue;
        ArenaMark mark = arena_mark(&arena);
        int64_t d = 96, ff = 128;
        QTensor q[3];
        for (int k = 0; k < 3; k++) {
            int64_t rows = k == 2 ? d : ff, cols = k == 2 ? ff : d;
            assert_true(qtensor_new_dense(&q[k], &arena, bf16 ? DT_BF16 : DT_F32, rows, cols, NULL));
            op_pack_dense(&b, &q[k], tensor_f32(random_floats(rows * cols, 40 + (uint64_t)k, 0.1), rows, cols));
        }
        for (size_t c = 0; c < COUNT(NS); c++) {
            int64_t n = NS[c];
            float *x = random_floats(n * d, 50, 1), *g = random_floats(n * ff, 51, 1), *u = random_floats(n * ff, 52, 1);
            float *y = random_floats(n * d, 53, 1), *want = random_floats(n * d, 54, 1);
            LinearOut out[2] = {{.y = g, .w = &q[0]}, {.y = u, .w = &q[1]}};
            op_linear_many(&b, out, 2, tensor_f32(x, n, d));
            op_activate(&b, tensor_f32(g, n, ff), tensor_f32(g, n, ff), tensor_f32(u, n, ff), ACTF_SILU);
            op_linear(&b, tensor_f32(want, n, d), tensor_f32(g, n, ff), &q[2], (Tensor){0});
            out[0].opaque = out[1].opaque = true;
            op_linear_many(&b, out, 2, tensor_f32(x, n, d));
            LinearIn in = {.kind = IN_ACTIVATE, .x = g, .up = u, .f = ACTF_SILU, .opaque = true, .tmp = g};
            op_linear_from(&b, &(LinearOut){.y = y, .w = &q[2]}, 1, &in, n);
            no_error(&b);
            ref_same_row(y, want, n * d, bf16 ? "bf16" : "f32", "不透明");
        }
        backend_close(&b);
        arena_rewind(&arena, mark);
    }
}

/* 存成 bf16 的输出与输入（CUDA 的预填用），与 f32 的相近；bf16 计算的 CPU 没有。 */
static void test_half(void **state) {
    (void)state;
    enum { N = 150, D = 96, OUT = 128 };
    Backend b;
    PrefillJob job = {.spec = {.n_heads = 1, .n_kv_heads = 1, .head_dim = 64, .scale = 1}};
    if (!open_backend(&b, "avx512_bf16", COMPUTE_BF16, 2)) return;
    if (op_prefill_accepts(&b, &job, N)) {
        ArenaMark mark = arena_mark(&arena);
        QTensor q[3];
        LinearOut out[3] = {0};
        float *x = random_floats(N * D, 60, 1), *want = random_floats(N * OUT, 61, 1), *got = random_floats(N * OUT, 62, 1);
        uint16_t *half = arena_alloc(&arena, N * D * sizeof(float), NULL);
        for (int64_t i = 0; i < N * D; i++) half[i] = f32_to_bf16(x[i]), x[i] = bf16_to_f32(half[i]);
        for (int k = 0; k < 3; k++) {
            assert_true(qtensor_new_dense(&q[k], &arena, DT_BF16, OUT, D, NULL));
            op_pack_dense(&b, &q[k], tensor_f32(random_floats(OUT * D, 63 + (uint64_t)k, 0.1), OUT, D));
            out[k] = (LinearOut){.y = random_floats(N * OUT, 66, 1), .w = &q[k], .half = true};
        }
        op_linear_from(&b, out, 3, &(LinearIn){.x = (const float *)(void *)half, .half = true}, N);
        for (int k = 0; k < 3; k++) {
            op_linear(&b, tensor_f32(want, N, OUT), tensor_f32(x, N, D), &q[k], (Tensor){0});
            for (int64_t i = 0; i < N * OUT; i++) {
                uint16_t u;
                memcpy(&u, (char *)out[k].y + i * (int64_t)sizeof u, sizeof u);
                got[i] = bf16_to_f32(u);
            }
            no_error(&b);
            ref_same_row(got, want, N * OUT, "bf16", "bf16 的输出与输入");
        }
        arena_rewind(&arena, mark);
    }
    backend_close(&b);
}

static void test_pack_round_trip(void **state) {
    (void)state;
    static const DType TYPES[] = {DT_F32, DT_F16, DT_BF16};
    for (size_t i = 0; i < COUNT(ISAS) * COUNT(TYPES); i++) {
        Backend b;
        if (!open_backend(&b, ISAS[i / COUNT(TYPES)], COMPUTE_F32, 2)) continue;
        ArenaMark mark = arena_mark(&arena);
        DType type = TYPES[i % COUNT(TYPES)];
        int64_t rows = 37, cols = 77;
        QTensor q;
        assert_true(qtensor_new_dense(&q, &arena, type, rows, cols, NULL));
        float *w = random_floats(rows * cols, 9, 1), *back = random_floats(rows * cols, 10, 1);
        w[5] = 65519.0f, w[6] = 1e-7f, w[7] = -0.0f, w[8] = INFINITY, w[9] = 3e-8f;
        w[10] = 1.0f + 0x1p-8f, w[11] = 1.0f + 0x3p-8f, w[12] = -70000.0f;
        op_pack_dense(&b, &q, tensor_f32(w, rows, cols));
        op_dequantize(&b, tensor_f32(back, rows, cols), &q);
        for (int64_t k = 0; k < rows * cols; k++) {
            float want = type == DT_F32   ? w[k]
                         : type == DT_F16 ? f16_to_f32(f32_to_f16(w[k]))
                                          : bf16_to_f32(f32_to_bf16(w[k]));
            float at = qtensor_at(&q, k / cols, k % cols);
            assert_memory_equal(back + k, &want, sizeof want);
            assert_memory_equal(&at, &want, sizeof want);
        }
        no_error(&b);
        backend_close(&b);
        arena_rewind(&arena, mark);
    }
}

/* NaN、Inf 只影响它所在的行与列，不吞掉也不扩散。 */
static void test_nan_propagates(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(ISAS); i++) {
        Backend b;
        if (!open_backend(&b, ISAS[i], COMPUTE_F32, 2)) continue;
        ArenaMark mark = arena_mark(&arena);
        QTensor q;
        assert_true(qtensor_new_dense(&q, &arena, DT_F32, 20, 40, NULL));
        float *w = random_floats(20 * 40, 1, 1), *x = random_floats(15 * 40, 2, 1), y[15 * 20];
        w[3 * 40 + 1] = NAN;
        x[7 * 40 + 2] = INFINITY;
        op_pack_dense(&b, &q, tensor_f32(w, 20, 40));
        op_linear(&b, tensor_f32(y, 15, 20), tensor_f32(x, 15, 40), &q, (Tensor){0});
        for (int k = 0; k < 15 * 20; k++) {
            if (k % 20 == 3)
                assert_true(isnan(y[k]));
            else
                assert_true(k / 20 == 7 ? isinf(y[k]) : isfinite(y[k]));
        }
        backend_close(&b);
        arena_rewind(&arena, mark);
    }
}

static void test_bad_requests(void **state) {
    (void)state;
    Backend b;
    Err e = {0};
    QTensor q;
    assert_false(backend_open_cpu(&b, 1, COMPUTE_F32, "sse9", &e));
    assert_int_equal(e.code, ERR_USAGE);
    assert_false(backend_open_cpu(&b, 1, COMPUTE_BF16, "avx2", &e));
    assert_int_equal(e.code, ERR_UNSUPPORTED);
    assert_false(backend_open_cpu(&b, -1, COMPUTE_F32, NULL, &e));
    assert_int_equal(e.code, ERR_USAGE);
    QSpec good = {4, -1, ZERO_INT, DT_F16, GRID_GPTQ, CODE_INT},
          bad = {9, -1, ZERO_INT, DT_F16, GRID_GPTQ, CODE_INT};
    assert_false(qtensor_measure(&q, DT_NONE, bad, 4, 4, &e));
    assert_int_equal(e.code, ERR_CONFIG);
    bad = (QSpec){4, 0, ZERO_INT, DT_F16, GRID_GPTQ, CODE_INT};
    assert_false(qtensor_measure(&q, DT_NONE, bad, 4, 4, &e));
    assert_false(qtensor_measure(&q, DT_NONE, good, 0, 4, &e));
    assert_int_equal(e.code, ERR_FORMAT);
    assert_false(qtensor_measure(&q, DT_F32, good, INT64_MAX / 4, INT64_MAX / 4, &e));
    assert_int_equal(e.code, ERR_MEMORY);
    assert_true(qtensor_measure(&q, DT_NONE, good, 17, 33, &e));
    assert_int_equal(q.data_bytes, 2 * 2 * 4 * 64); /* 2 面板 × 2 块 × 4 位 */
    assert_int_equal(q.scale_bytes, 2 * 16 * 2);
    assert_int_equal(q.zero_bytes, 2 * 8);
    assert_true(open_backend(&b, NULL, COMPUTE_F32, 1));
    assert_true(qtensor_new_dense(&q, &arena, DT_F32, 4, 4, NULL));
    float y[4] = {5, 5, 5, 5};
    int32_t id = 4;
    op_embed(&b, tensor_f32(y, 1, 4), &q, &id); /* 越界的 id：粘滞错误，不写输出 */
    id = 0;
    op_embed(&b, tensor_f32(y, 1, 4), &q, &id);
    assert_true(y[0] == 5);
    assert_false(backend_check(&b, &e));
    assert_int_equal(e.code, ERR_FORMAT);
    op_embed(&b, tensor_f32(y, 1, 4), &q, &id);
    assert_true(y[0] == 0 && backend_check(&b, &e));
    backend_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear_dense),    cmocka_unit_test(test_linear_large),
        cmocka_unit_test(test_linear_int),      cmocka_unit_test(test_linear_many),
        cmocka_unit_test(test_linear_few),      cmocka_unit_test(test_linear_from),
        cmocka_unit_test(test_opaque), cmocka_unit_test(test_half),
        cmocka_unit_test(test_pack_round_trip),
        cmocka_unit_test(test_nan_propagates),  cmocka_unit_test(test_bad_requests),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arena_free(&arena);
    return failed;
}
