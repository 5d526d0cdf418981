/* stats — 逐窗数据的统计的实现
 * 和一律用 double 依下标次序累加，结果与线程数、平台无关。 */
#include "tasks/stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

double stats_mean(const double *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i];
    return n ? sum / (double)n : NAN;
}

double stats_stderr(const double *x, size_t n) {
    if (n < 2) return NAN;
    double mean = stats_mean(x, n), sum = 0;
    for (size_t i = 0; i < n; i++) sum += (x[i] - mean) * (x[i] - mean);
    return sqrt(sum / (double)(n - 1) / (double)n);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void stats_sort(double *x, size_t n) {
    if (n > 1) qsort(x, n, sizeof *x, by_value);
}

double stats_median_sorted(const double *x, size_t n) {
    if (n == 0) return NAN;
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

double stats_median(const double *x, size_t n) {
    double *sorted = n ? malloc(n * sizeof *sorted) : NULL;
    if (!sorted) return NAN;
    memcpy(sorted, x, n * sizeof *sorted);
    stats_sort(sorted, n);
    double m = stats_median_sorted(sorted, n);
    free(sorted);
    return m;
}

/* 一次重抽的均值：依次放 ⌈n/len⌉ 个随机起点的块（循环接续），截到 n 个。 */
static double resample(const double *d, size_t n, size_t len, uint64_t seed, uint64_t round) {
    double sum = 0;
    size_t done = 0;
    for (uint64_t block = 0; done < n; block++) {
        size_t at = (size_t)rng_below(seed, round, block, n);
        for (size_t i = 0; i < len && done < n; i++, done++) {
            sum += d[at];
            if (++at == n) at = 0;
        }
    }
    return sum / (double)n;
}

/* 已排序的 x 的 q 分位（线性内插）。 */
static double quantile(const double *x, size_t n, double q) {
    double at = q * (double)(n - 1);
    size_t i = (size_t)at;
    return i + 1 < n ? x[i] + (at - (double)i) * (x[i + 1] - x[i]) : x[n - 1];
}

bool stats_bootstrap_means(const double *x, size_t n, uint64_t seed, double *means) {
    if (n == 0) return false;
    size_t len = (size_t)lround(cbrt((double)n));
    if (len < 1) len = 1;
    for (uint64_t r = 0; r < STATS_RESAMPLES; r++) means[r] = resample(x, n, len, seed, r);
    return true;
}

double stats_shift_p(const double *means, double mean) {
    size_t extreme = 0;
    /* 相差不到舍入误差的算相等，使常数差与全零差有确定的 p */
    for (size_t r = 0; r < STATS_RESAMPLES; r++)
        extreme += fabs(means[r] - mean) >= fabs(mean) * (1 - 1e-12);
    return (double)(extreme + 1) / (STATS_RESAMPLES + 1);
}

bool stats_paired_bootstrap(const double *a, const double *b, size_t n, uint64_t seed, double *mean,
                            double *lo, double *hi, double *p) {
    if (n == 0 || n > SIZE_MAX / sizeof(double)) return false;
    double *d = malloc(n * sizeof *d), *means = malloc(STATS_RESAMPLES * sizeof *means);
    bool ok = d && means;
    for (size_t i = 0; ok && i < n; i++) {
        d[i] = a[i] - b[i];
        ok = isfinite(d[i]) != 0;
    }
    if (ok) {
        stats_bootstrap_means(d, n, seed, means);
        *mean = stats_mean(d, n);
        *p = n < 2 ? 1 : stats_shift_p(means, *mean);
        stats_sort(means, STATS_RESAMPLES);
        *lo = quantile(means, STATS_RESAMPLES, 0.025);
        *hi = quantile(means, STATS_RESAMPLES, 0.975);
    }
    free(d);
    free(means);
    return ok;
}

bool stats_holm(const double *p, size_t n, double *adjusted) {
    size_t *order = malloc((n ? n : 1) * sizeof *order);
    if (!order) return false;
    for (size_t i = 0; i < n; i++) { /* 插入排序：检验数很少 */
        size_t j = i;
        for (; j > 0 && p[order[j - 1]] > p[i]; j--) order[j] = order[j - 1];
        order[j] = i;
    }
    double running = 0;
    for (size_t k = 0; k < n; k++) {
        double v = p[order[k]] * (double)(n - k);
        if (v > 1) v = 1;
        if (v > running) running = v;
        adjusted[order[k]] = running;
    }
    free(order);
    return true;
}
