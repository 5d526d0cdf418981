/* test_stats — 逐窗统计：已知值、区间的覆盖率、p 的检验水平、Holm
 * 随机数据由计数器式随机数生成，所以每次相同。 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/rng.h"
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known),        cmocka_unit_test(test_degenerate),
        cmocka_unit_test(test_normal),       cmocka_unit_test(test_level),
        cmocka_unit_test(test_blocks),       cmocka_unit_test(test_shared_draws),
        cmocka_unit_test(test_holm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
