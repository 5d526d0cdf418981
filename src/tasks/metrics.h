/* metrics — 指标、聚合与标准误（lm_eval/api/metrics.py）
 * 一份文档对一个指标给出一个数（困惑度类另有权重）；聚合把全部文档的数化成一个。标准误：mean 用样本标准差 / √n，
 * perplexity 与 median 用自助法（与框架同样的 Python 随机数，十万次），其余没有（"N/A"）。 */
#ifndef PTQ_TASKS_METRICS_H
#define PTQ_TASKS_METRICS_H
#include "io/json.h"
#include "tasks/pyregex.h"

typedef enum {
    METRIC_ACC, METRIC_ACC_NORM, METRIC_ACC_BYTES, METRIC_ACC_MUTUAL, METRIC_EXACT_MATCH,
    METRIC_PERPLEXITY, METRIC_WORD_PPL, METRIC_BYTE_PPL, METRIC_BITS_PER_BYTE
} MetricKind;
typedef enum { AGG_MEAN, AGG_MEDIAN, AGG_PERPLEXITY, AGG_WEIGHTED_PPL, AGG_BITS_PER_BYTE } Aggregation;

typedef struct MetricSpec {
    MetricKind kind;
    Aggregation aggregation;
    bool higher_is_better;
    /* exact_match */
    PyRegex **ignore; /* regexes_to_ignore */
    size_t n_ignore;
    bool ignore_case, ignore_punctuation, ignore_numbers;
} MetricSpec;

const char *metric_name(MetricKind k);
/* 由 metric_list 建立；没有时取 output_type 的默认。错误: 原生路径没有的指标或聚合。 */
bool metrics_open(MetricSpec **specs, size_t *n, const json_t *metric_list, const char *output_type,
                  Arena *a, Err *e);
void metrics_close(MetricSpec *specs, size_t n);
/* exact_match：按设置去掉、化小写之后是否相同。 */
bool metric_exact_match(const MetricSpec *m, const char *gold, size_t n_gold, const char *got,
                        size_t n_got, bool *same, Err *e);
/* 聚合 x（权重 w，不用时可为 NULL）。 */
double metric_aggregate(Aggregation g, const double *x, const double *w, size_t n);
/* 标准误；没有或 n < 2 返回 NaN。 */
double metric_stderr(Aggregation g, const double *x, size_t n);

/* 组的聚合：按样本数加权（或等权）的平均，与合并的标准误。 */
double group_mean(const double *x, const size_t *sizes, size_t n, bool weighted);
double group_stderr(const double *se, const size_t *sizes, size_t n, bool weighted);
#endif
