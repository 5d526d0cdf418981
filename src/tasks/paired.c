/* paired — 0/1 得分的配对检验的实现 */
#include "tasks/paired.h"

#include <math.h>

#include "base/rng.h"
#include "tasks/stats.h"

double mcnemar_exact(int64_t b, int64_t c) {
    int64_t n = b + c, k = b < c ? b : c;
    if (n == 0) return 1;
    double tail = 0;
    for (int64_t i = 0; i <= k; i++)
        tail += exp(lgamma((double)n + 1) - lgamma((double)i + 1) - lgamma((double)(n - i) + 1) -
                    (double)n * log(2));
    return 2 * tail < 1 ? 2 * tail : 1;
}

/* Tango 的得分统计量：真实的差为 lambda 时近似标准正态。
 * q 是「对→错」的概率在差恰为 lambda 时的最大似然估计：2n·q² + B·q − worse·λ(1−λ) = 0 的大根。 */
static double tango_z(double n, double worse, double better, double lambda) {
    double a = 2 * n, b = -better - worse + (2 * n - better + worse) * lambda;
    double c = -worse * lambda * (1 - lambda), root = b * b - 4 * a * c;
    double q = (sqrt(root > 0 ? root : 0) - b) / (2 * a);
    double var = n * (2 * q + lambda * (1 - lambda));
    return var > 0 ? (better - worse - n * lambda) / sqrt(var) : 0;
}

Equivalence paired_equivalence(int64_t n, int64_t worse, int64_t better, double delta) {
    if (n < 1) return (Equivalence){NAN, NAN, NAN};
    double low = tango_z((double)n, (double)worse, (double)better, -delta);
    double high = tango_z((double)n, (double)worse, (double)better, delta);
    Equivalence r = {.noninferior_p = erfc(low / sqrt(2)) / 2, .nonsuperior_p = erfc(-high / sqrt(2)) / 2};
    r.tost_p = r.noninferior_p > r.nonsuperior_p ? r.noninferior_p : r.nonsuperior_p;
    return r;
}

/* m 次掷币的正面数。bits 是已用掉的 64 位数的个数。 */
static int64_t heads(int64_t m, uint64_t seed, uint64_t round, uint64_t *bits) {
    int64_t sum = 0;
    for (; m > 0; m -= 64) {
        uint64_t r = rng_u64(seed, round, (*bits)++);
        sum += __builtin_popcountll(m < 64 ? r >> (64 - m) : r);
    }
    return sum;
}

double paired_stratified_p(const PairedStratum *s, size_t n, uint64_t seed) {
    int64_t worse = 0, better = 0;
    double observed = 0, total = 0;
    bool same = true;
    for (size_t i = 0; i < n; i++) {
        worse += s[i].worse;
        better += s[i].better;
        observed += s[i].weight * (double)(s[i].better - s[i].worse);
        total += fabs(s[i].weight) * (double)(s[i].better + s[i].worse);
        same = same && s[i].weight == s[0].weight;
    }
    if (worse + better == 0) return 1;
    if (same) return mcnemar_exact(worse, better);
    int64_t extreme = 0;
    for (uint64_t r = 0; r < STATS_RESAMPLES; r++) {
        double sum = 0;
        uint64_t bits = 0;
        for (size_t i = 0; i < n; i++) {
            int64_t m = s[i].worse + s[i].better;
            sum += s[i].weight * (double)(2 * heads(m, seed, r, &bits) - m);
        }
        extreme += fabs(sum) >= fabs(observed) - 1e-12 * total; /* 相差不到舍入误差的算相等 */
    }
    return (double)(extreme + 1) / (STATS_RESAMPLES + 1);
}
