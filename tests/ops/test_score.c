/* test_score — 打分（语言模型头 + log-softmax + KL）对照双精度参考
 * 形状含词表段（1024）与位置批（2048）的边界；结果与位置数、线程数逐位无关；NaN、并列、softcap。 */
#include "reference.h"

typedef struct Model {
    int64_t vocab, d;
    float *w;
    QTensor head;
} Model;

typedef struct Result {
    double *nll, *kl;
    int32_t *top1, *ref_top1;
} Result;

static Arena arena;

/* 权重取 bf16 可表示的值：两种计算精度看到同样的权重 */
static Model model_make(Backend *b, int64_t vocab, int64_t d, uint64_t stream, double scale) {
    Model m = {.vocab = vocab, .d = d, .w = ref_random(vocab * d, stream, scale)};
    Err e = {0};
    for (int64_t i = 0; i < vocab * d; i++) m.w[i] = ref_bf16(m.w[i]);
    if (!qtensor_new_dense(&m.head, &arena, DT_F32, vocab, d, &e)) fail_msg("%s", e.msg);
    op_pack_dense(b, &m.head, tensor_f32(m.w, vocab, d));
    return m;
}

static Result result_make(int64_t n) {
    Result r = {.nll = malloc(sizeof(double) * (size_t)n), .kl = malloc(sizeof(double) * (size_t)n),
                .top1 = malloc(sizeof(int32_t) * (size_t)n),
                .ref_top1 = malloc(sizeof(int32_t) * (size_t)n)};
    assert_true(r.nll && r.kl && r.top1 && r.ref_top1);
    return r;
}
static void result_free(Result *r) {
    free(r->nll);
    free(r->kl);
    free(r->top1);
    free(r->ref_top1);
}

/* 位置 [i0, i0+n) 打分，写到 r 的同一区间 */
static void score(Backend *b, const Model *m, const float *x, const Model *ref, const float *ref_x,
                  const int32_t *targets, float softcap, Result *r, int64_t i0, int64_t n) {
    ScoreJob job = {.n = n, .x = x + i0 * m->d, .head = &m->head, .targets = targets + i0,
                    .softcap = softcap, .nll = r->nll + i0, .top1 = r->top1 + i0};
    if (ref) {
        job.ref_x = ref_x + i0 * ref->d;
        job.ref_head = &ref->head;
        job.kl = r->kl + i0;
        job.ref_top1 = r->ref_top1 + i0;
    }
    op_score(b, &job);
    ref_check(b);
}

static void logits_row(const RefTarget *t, const Model *m, const float *x, double softcap,
                       double *z) {
    for (int64_t v = 0; v < m->vocab; v++) {
        z[v] = 0;
        for (int64_t k = 0; k < m->d; k++)
            z[v] += (double)m->w[v * m->d + k] * (double)ref_input(t, x[k]);
        if (softcap > 0) z[v] = softcap * tanh(z[v] / softcap);
    }
}
static double log_sum_exp(const double *z, int64_t n) {
    double max = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++)
        if (z[i] > max) max = z[i];
    for (int64_t i = 0; i < n; i++) sum += exp(z[i] - max);
    return max + log(sum);
}
/* top1 须是最大者；与最大值之差在舍入之内的别的下标也可 */
static void check_top1(const double *z, int64_t n, int32_t got, double tolerance,
                       const char *target) {
    assert_in_range(got, 0, n - 1);
    for (int64_t i = 0; i < n; i++)
        if (z[i] > z[got] + tolerance) fail_msg("%s: top1=%d 不是最大", target, (int)got);
}

static void test_shapes(void **state) {
    (void)state;
    static const int64_t VOCABS[] = {1, 15, 16, 17, 1000, 1023, 1024, 1025, 2500};
    static const int64_t DIMS[] = {1, 8, 33, 64}, NS[] = {1, 2, 9, 17, 65};
    RefTarget targets[REF_MAX_TARGETS];
    int n_targets = ref_targets(targets);
    for (uint64_t k = 0; k < 40; k++) {
        const RefTarget *t = &targets[k % (uint64_t)n_targets];
        int64_t n = REF_PICK(50, k, NS), vocab = REF_PICK(51, k, VOCABS);
        double softcap = k % 3 == 1 ? 5 : 0;
        Backend b = ref_open(t, 2);
        Model m = model_make(&b, vocab, REF_PICK(52, k, DIMS), 60 + k, k % 5 ? 0.3 : 2);
        Model ref = model_make(&b, vocab, REF_PICK(53, k, DIMS), 160 + k, 0.3);
        float *x = ref_random(n * m.d, 260, 1.5), *ref_x = ref_random(n * ref.d, 261, 1.5);
        int32_t *ids = malloc(sizeof *ids * (size_t)n);
        Result r = result_make(n);
        for (int64_t i = 0; i < n; i++)
            ids[i] = i % 7 == 5 ? -1 : (int32_t)rng_below(3, k, (uint64_t)i, (uint64_t)vocab);
        score(&b, &m, x, &ref, ref_x, ids, (float)softcap, &r, 0, n);
        double *z = malloc(sizeof *z * (size_t)vocab), *zp = malloc(sizeof *z * (size_t)vocab);
        for (int64_t i = 0; i < n; i++) {
            logits_row(t, &m, x + i * m.d, softcap, z);
            logits_row(t, &ref, ref_x + i * ref.d, softcap, zp);
            double lse = log_sum_exp(z, vocab), lse_p = log_sum_exp(zp, vocab), kl = 0;
            for (int64_t v = 0; v < vocab; v++)
                kl += exp(zp[v] - lse_p) * ((zp[v] - lse_p) - (z[v] - lse));
            ref_near(r.nll[i], ids[i] < 0 ? 0 : lse - z[ids[i]], 2e-5, t->name, "nll");
            ref_near(r.kl[i], kl, 2e-5 + 1e-6 * fabs(kl), t->name, "kl");
            check_top1(z, vocab, r.top1[i], 2e-5, t->name);
            check_top1(zp, vocab, r.ref_top1[i], 2e-5, t->name);
        }
        free(z);
        free(zp);
        free(x);
        free(ref_x);
        free(ids);
        free(m.w);
        free(ref.w);
        result_free(&r);
        backend_close(&b);
        arena_free(&arena);
    }
}

/* 整体 = 分段 = 逐个，线程 1、2、3；超过一批的位置数 */
static void test_bit_equality(void **state) {
    (void)state;
    enum { N = 2100, VOCAB = 1100, D = 12 };
    static const int64_t STEPS[] = {N, 1999, 130};
    RefTarget targets[REF_MAX_TARGETS];
    int n_targets = ref_targets(targets);
    float *x = ref_random(N * D, 300, 1), *ref_x = ref_random(N * D, 301, 1);
    int32_t ids[N];
    for (int i = 0; i < N; i++) ids[i] = i * 7 % VOCAB;
    Result want = result_make(N), got = result_make(N);
    for (int t = 0; t < n_targets; t++)
        for (int threads = 1; threads <= 3; threads++) {
            Backend b = ref_open(&targets[t], threads);
            Model m = model_make(&b, VOCAB, D, 302, 1), ref = model_make(&b, VOCAB, D, 303, 1);
            Result *r = threads == 1 ? &want : &got;
            for (int64_t i = 0; i < N; i += STEPS[threads - 1]) {
                int64_t n = N - i < STEPS[threads - 1] ? N - i : STEPS[threads - 1];
                score(&b, &m, x, &ref, ref_x, ids, 0, r, i, n);
            }
            for (int64_t i = 0; i < 5; i++)
                score(&b, &m, x, &ref, ref_x, ids, 0, r, 400 * i, 1);
            if (threads > 1 && ref_on_cuda()) /* 矩阵乘的次序随批大小，只差末位 */
                for (int i = 0; i < N; i++) {
                    ref_near(got.nll[i], want.nll[i], 2e-5, targets[t].name, "批大小：nll");
                    ref_near(got.kl[i], want.kl[i], 2e-5, targets[t].name, "批大小：kl");
                }
            if (threads > 1 && !ref_on_cuda()) {
                assert_memory_equal(want.nll, got.nll, sizeof(double) * N);
                assert_memory_equal(want.kl, got.kl, sizeof(double) * N);
                assert_memory_equal(want.top1, got.top1, sizeof(int32_t) * N);
                assert_memory_equal(want.ref_top1, got.ref_top1, sizeof(int32_t) * N);
            }
            score(&b, &m, x, &m, x, ids, 0, r, 0, 50); /* 与自己的 KL 为 0 */
            for (int i = 0; i < 50; i++) assert_true(r->kl[i] == 0);
            for (int64_t i = 0; threads == 1 && i < N; i += 1999) /* 复原供下一轮比较 */
                score(&b, &m, x, &ref, ref_x, ids, 0, r, i, N - i < 1999 ? N - i : 1999);
            free(m.w);
            free(ref.w);
            backend_close(&b);
            arena_free(&arena);
        }
    free(x);
    free(ref_x);
    result_free(&want);
    result_free(&got);
}

/* logits 由权重直接给出（d=1，x=1） */
static void test_special(void **state) {
    (void)state;
    enum { VOCAB = 2100 };
    RefTarget targets[REF_MAX_TARGETS];
    int n_targets = ref_targets(targets);
    const float x[4] = {1, 2, NAN, -1};
    const int32_t ids[4] = {1500, 3, 4, 0};
    for (int t = 0; t < n_targets; t++) {
        Backend b = ref_open(&targets[t], 2);
        Model m = model_make(&b, VOCAB, 1, 400, 0);
        Result r = result_make(4);
        score(&b, &m, x, NULL, NULL, ids, 0, &r, 0, 4); /* 全相等：并列取最小下标 */
        ref_near(r.nll[0], log(VOCAB), 1e-9, targets[t].name, "均匀分布");
        assert_int_equal(r.top1[0], 0);
        assert_true(isnan(r.nll[2]) && !isnan(r.nll[1]) && !isnan(r.nll[3]));
        for (int i = 0; i < VOCAB; i++) m.w[i] = -9984.0f;
        m.w[1500] = m.w[2047] = 9984.0f; /* 极大的差距（bf16 可表示）；并列者在不同的段 */
        op_pack_dense(&b, &m.head, tensor_f32(m.w, VOCAB, 1));
        score(&b, &m, x, &m, x, ids, 0, &r, 0, 4);
        ref_near(r.nll[0], log(2), 1e-12, targets[t].name, "两个并列");
        assert_int_equal(r.top1[0], 1500);
        assert_int_equal(r.ref_top1[0], 1500);
        assert_int_equal(r.top1[3], 0);
        ref_near(r.nll[1], 4 * 9984.0 + log(2), 1e-9, targets[t].name, "极大的 nll");
        assert_true(r.kl[0] == 0 && r.kl[1] == 0);
        free(m.w);
        result_free(&r);
        backend_close(&b);
        arena_free(&arena);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_bit_equality),
        cmocka_unit_test(test_special),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
