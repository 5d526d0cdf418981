/* stats — 逐窗数据的统计
 * 窗口（不是 token）是独立单位。成对比较用移动块自助法（Künsch 1989；Liu 与 Singh 1992）：
 * 相邻窗口来自同一篇文章而相关，所以整块重抽，块长 max(1, round(n^(1/3)))，10000 次。
 * 随机数是 (seed, 重抽号, 块号) 的纯函数，同样的输入总是同样的区间。 */
#ifndef PTQ_TASKS_STATS_H
#define PTQ_TASKS_STATS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STATS_RESAMPLES 10000

/* 平均值。n==0 时为 NaN。 */
double stats_mean(const double *x, size_t n);
/* 平均值的标准误（样本标准差 / √n）。n<2 时为 NaN。 */
double stats_stderr(const double *x, size_t n);
/* 就地从小到大排。 */
void stats_sort(double *x, size_t n);
/* 已排好的一组数的中位数；n==0 时为 NaN。 */
double stats_median_sorted(const double *x, size_t n);
/* 中位数（不改动 x）。n==0 或内存不足时为 NaN。 */
double stats_median(const double *x, size_t n);
/* 成对差 a−b 的均值、95 % 区间（百分位法）与双侧 p 值（均值平移到 0 的自助分布里不小于观测偏差的比例）。
 * 参数: a、b 同样窗口的两组数，(n)。差全为 0 时区间为 [0,0]，p=1；n==1 时区间退化为一点，p=1。
 * 返回: n==0、有非有限值或内存不足时为 false（输出不变）。 */
bool stats_paired_bootstrap(const double *a, const double *b, size_t n, uint64_t seed, double *mean,
                            double *lo, double *hi, double *p);
/* 块自助的 STATS_RESAMPLES 个均值写入 means（未排序）。同样的 n 与 seed 抽到同样的块，所以两组数的
 * means 逐个相减就是成对差的自助均值：多行两两比较时每行只抽一次。n==0 时为 false。 */
bool stats_bootstrap_means(const double *x, size_t n, uint64_t seed, double *means);
/* 双侧 p：means 中偏离 mean 不小于 |mean| 的比例，分子分母各加一。 */
double stats_shift_p(const double *means, double mean);
/* Holm（1979）逐步校正：adjusted[i] 为 p[i] 在 n 个检验族中的校正值（不超过 1）。
 * 返回: 内存不足为 false。 */
bool stats_holm(const double *p, size_t n, double *adjusted);
#endif
