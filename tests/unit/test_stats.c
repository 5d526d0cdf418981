/* test_stats — 逐窗统计：已知值、区间的覆盖率、p 的检验水平、Holm
 * 随机数据由计数器式随机数生成，所以每次相同。 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/rng.h"
#include "tasks/paired.h"
#include "tasks/stats.h"

static void near(double got, double want, double tol) {
    if (!(fabs(got - want) <= tol)) fail_msg("%.17g，应为 %.17g ± %g", got, want, tol);
}

static void test_known(void **state) {
    (void)state;
    const double x[] = {4, 1, 3, 2};
    near(stats_mean(x, 4), 2.5, 0);
    near(stats_stderr(x, 4), sqrt(5.0 / 3 / 4), 1e-15);
    near(stats_median(x, 4), 2.5, 0);
    near(stats_median(x, 3), 3, 0);
    assert_true(isnan(stats_mean(x, 0)) && isnan(stats_stderr(x, 1)) && isnan(stats_median(x, 0)));
}

static void test_degenerate(void **state) {
    (void)state;
    const double a[] = {1, 2, 3, 4, 5}, b[] = {0.5, 1.5, 2.5, 3.5, 4.5};
    double m, lo, hi, p;
    assert_true(stats_paired_bootstrap(a, a, 5, 0, &m, &lo, &hi, &p));
    assert_true(m == 0 && lo == 0 && hi == 0 && p == 1);
    assert_true(stats_paired_bootstrap(a, b, 5, 0, &m, &lo, &hi, &p));
    near(m, 0.5, 0), near(lo, 0.5, 1e-12), near(hi, 0.5, 1e-12);
    near(p, 1.0 / (STATS_RESAMPLES + 1), 1e-12); /* 每窗都差同样多：最小的 p */
    assert_true(stats_paired_bootstrap(a, b, 1, 0, &m, &lo, &hi, &p));
    near(p, 1, 0);
    m = 7;
    const double bad[] = {1, NAN, 3, 4, 5};
    assert_false(stats_paired_bootstrap(a, bad, 5, 0, &m, &lo, &hi, &p));
    assert_false(stats_paired_bootstrap(a, b, 0, 0, &m, &lo, &hi, &p));
    near(m, 7, 0); /* 失败时不动输出 */
}

static double normal(uint64_t seed, uint64_t i) {
    double u = rng_unit(seed, 1, i), v = rng_unit(seed, 2, i);
    return sqrt(-2 * log(1 - u)) * cos(2 * 3.14159265358979323846 * v);
}

/* 独立正态差：均值、区间须与正态理论相近；同样的种子逐位重现。 */
static void test_normal(void **state) {
    (void)state;
    enum { N = 200 };
    double a[N], b[N], d[N];
    for (int i = 0; i < N; i++) {
        b[i] = normal(1, (uint64_t)i);
        d[i] = 0.3 + normal(2, (uint64_t)i);
        a[i] = b[i] + d[i];
    }
    double m, lo, hi, p, m2, lo2, hi2, p2;
    assert_true(stats_paired_bootstrap(a, b, N, 5, &m, &lo, &hi, &p));
    assert_true(stats_paired_bootstrap(a, b, N, 5, &m2, &lo2, &hi2, &p2));
    assert_true(m == m2 && lo == lo2 && hi == hi2 && p == p2);
    near(m, stats_mean(d, N), 1e-12);
    double half = 1.96 * stats_stderr(d, N);
    near(lo, m - half, 0.3 * half);
    near(hi, m + half, 0.3 * half);
    assert_true(p < 0.01);
}

/* 没有差别时，p<0.05 的比例应接近 5 %，区间含 0 的比例应接近 95 %。 */
static void test_level(void **state) {
    (void)state;
    enum { N = 60, TRIALS = 120 };
    int rejected = 0, covered = 0;
    for (int t = 0; t < TRIALS; t++) {
        double a[N], zero[N] = {0}, m, lo, hi, p;
        for (int i = 0; i < N; i++) a[i] = normal(100 + (uint64_t)t, (uint64_t)i);
        assert_true(stats_paired_bootstrap(a, zero, N, 0, &m, &lo, &hi, &p));
        rejected += p < 0.05;
        covered += lo <= 0 && 0 <= hi;
    }
    assert_in_range(rejected, 1, 20);
    assert_in_range(covered, 100, 119);
}

/* 相邻窗口相关时，块自助的区间须比独立假设的宽。 */
static void test_blocks(void **state) {
    (void)state;
    enum { N = 216 };
    double a[N], zero[N] = {0}, m, lo, hi, p, e = 0;
    for (int i = 0; i < N; i++) {
        e = 0.8 * e + normal(9, (uint64_t)i);
        a[i] = e;
    }
    assert_true(stats_paired_bootstrap(a, zero, N, 0, &m, &lo, &hi, &p));
    assert_true(hi - lo > 1.4 * 2 * 1.96 * stats_stderr(a, N));
}

/* 两行各自的自助均值相减 = 成对差的自助均值（排行榜靠它只抽 n 次）。 */
static void test_shared_draws(void **state) {
    (void)state;
    enum { N = 50 };
    static double a[N], b[N], d[N], ma[STATS_RESAMPLES], mb[STATS_RESAMPLES], md[STATS_RESAMPLES];
    for (int i = 0; i < N; i++) {
        a[i] = normal(3, (uint64_t)i), b[i] = normal(4, (uint64_t)i);
        d[i] = a[i] - b[i];
    }
    assert_true(stats_bootstrap_means(a, N, 0, ma) && stats_bootstrap_means(b, N, 0, mb) &&
                stats_bootstrap_means(d, N, 0, md));
    for (int r = 0; r < STATS_RESAMPLES; r++) near(ma[r] - mb[r], md[r], 1e-12);
}

static void test_holm(void **state) {
    (void)state;
    const double p[] = {0.01, 0.04, 0.03, 0.005};
    double q[4];
    assert_true(stats_holm(p, 4, q));
    near(q[3], 0.02, 1e-15), near(q[0], 0.03, 1e-15);
    near(q[2], 0.06, 1e-15), near(q[1], 0.06, 1e-15); /* 单调：不小于前一个 */
    const double big[] = {0.9, 0.8};
    assert_true(stats_holm(big, 2, q));
    near(q[0], 1, 0), near(q[1], 1, 0);
    assert_true(stats_holm(p, 0, q));
}

/* scipy.stats.binomtest(min(b,c), b+c, 0.5).pvalue */
static void test_mcnemar(void **state) {
    (void)state;
    near(mcnemar_exact(1, 9), 0.021484375, 1e-12);
    near(mcnemar_exact(20, 12), 0.21532714972272515, 1e-12);
    near(mcnemar_exact(150, 120), 0.07738939898021849, 1e-12);
    near(mcnemar_exact(0, 0), 1, 0), near(mcnemar_exact(5, 5), 1, 0);
}

/* 期望值：scipy 数值求受限的最大似然估计，再算得分统计量；第一行即 Tango（1998）的例子，Z = 1.709，p = 0.044。 */
static void test_equivalence(void **state) {
    (void)state;
    static const struct {
        int n, worse, better;
        double delta, noninferior, nonsuperior;
    } WANT[] = {
        {44, 1, 0, 0.1, 0.0437658444, 0.0071529392}, {44, 0, 1, 0.1, 0.0071529392, 0.0437658444},
        {100, 0, 0, 0.01, 0.1574393248, 0.1574393248}, {100, 3, 7, 0.05, 0.0059507867, 0.3770363261},
        {500, 20, 12, 0.02, 0.3626117251, 0.0014221539},
        {2376, 150, 120, 0.01, 0.6481259104, 0.0005802309}, {40, 6, 2, 0.1, 0.5, 0.0056561634}};
    for (size_t i = 0; i < sizeof WANT / sizeof *WANT; i++) {
        Equivalence q = paired_equivalence(WANT[i].n, WANT[i].worse, WANT[i].better, WANT[i].delta);
        near(q.noninferior_p, WANT[i].noninferior, 1e-8);
        near(q.nonsuperior_p, WANT[i].nonsuperior, 1e-8);
        near(q.tost_p, fmax(q.noninferior_p, q.nonsuperior_p), 0);
    }
    assert_true(isnan(paired_equivalence(0, 0, 0, 0.01).tost_p));
    /* 全部翻转、全部同向：仍是概率 */
    Equivalence all = paired_equivalence(50, 50, 0, 0.01);
    assert_true(all.noninferior_p > 0.999 && all.nonsuperior_p < 1e-6);
}

/* 期望值：三层的符号分布逐点卷积得到的精确 p；抽样的误差在三倍标准差之内。 */
static void test_stratified(void **state) {
    (void)state;
    const PairedStratum a[] = {{1, 6, 0.5}, {4, 2, 0.2}};
    const PairedStratum b[] = {{2, 9, 1.0 / 300}, {10, 8, 1.0 / 1000}, {0, 3, 0.01}};
    const PairedStratum c[] = {{30, 50, 1.0 / 2376}, {40, 25, 1.0 / 1267}, {33, 30, 1.0 / 1838}};
    near(paired_stratified_p(a, 2, 0), 0.14892578125, 0.011);
    near(paired_stratified_p(b, 3, 0), 0.009150892496109, 0.003);
    near(paired_stratified_p(c, 3, 0), 0.5559471160135572, 0.015);
    /* 权重相同：就是 McNemar 精确检验 */
    const PairedStratum d[] = {{1, 5, 0.1}, {0, 4, 0.1}}, none[] = {{0, 0, 1}, {0, 0, 2}};
    near(paired_stratified_p(d, 2, 0), mcnemar_exact(1, 9), 0);
    near(paired_stratified_p(none, 2, 0), 1, 0);
    near(paired_stratified_p(none, 0, 0), 1, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known),        cmocka_unit_test(test_degenerate),
        cmocka_unit_test(test_normal),       cmocka_unit_test(test_level),
        cmocka_unit_test(test_blocks),       cmocka_unit_test(test_shared_draws),
        cmocka_unit_test(test_holm),         cmocka_unit_test(test_mcnemar),
        cmocka_unit_test(test_equivalence),  cmocka_unit_test(test_stratified),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
