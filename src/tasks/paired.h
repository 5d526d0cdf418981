/* paired — 两个模型在同样文档上的 0/1 得分的配对检验
 * 只有翻转了的文档（一对一错）带来信息：无差别时，翻转的方向各半。三样：
 * McNemar 精确检验（有没有差别）；Tango（1998，Statistics in Medicine 17:891）的得分检验（差是否在 ±δ 内，即 TOST 与「不差于」，
 * 没有一份翻转时也不会误得必然）；分层符号检验（几个任务的平均准确率之差）。 */
#ifndef PTQ_TASKS_PAIRED_H
#define PTQ_TASKS_PAIRED_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* McNemar 精确检验的双侧 p：b、c 是两个方向的翻转数；没有翻转为 1。 */
double mcnemar_exact(int64_t b, int64_t c);

/* 等价检验的两个单侧 p（Schuirmann 1987 的 TOST，各侧用 Tango 的得分统计量）。 */
typedef struct Equivalence {
    double noninferior_p; /* H0：准确率低了 δ 以上 */
    double nonsuperior_p; /* H0：准确率高了 δ 以上 */
    double tost_p;        /* 两者之大者：小于 0.05 即在 ±δ 内等价 */
} Equivalence;
/* 参数: n 文档数；worse 对→错、better 错→对的份数；delta 等价界，0 < δ < 1。n 为 0 时全为 NaN。 */
Equivalence paired_equivalence(int64_t n, int64_t worse, int64_t better, double delta);

/* 一层（一个任务）：翻转数与每份文档的权重。 */
typedef struct PairedStratum {
    int64_t worse, better;
    double weight;
} PairedStratum;
/* 加权的差 Σ 权重·(better − worse) 的双侧 p：无差别时每份翻转的方向各半、互相独立。权重都相同的层并成一层，就是 McNemar 精确检验；
 * 否则抽 STATS_RESAMPLES 次，p 为不小于观测者的比例，分子分母各加一。没有翻转为 1。 */
double paired_stratified_p(const PairedStratum *s, size_t n, uint64_t seed);
#endif
