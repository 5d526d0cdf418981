/* job — 一次量化的内部结构（方法文件看不到，只供 base.c 与 runner） */
#ifndef PTQ_METHODS_JOB_H
#define PTQ_METHODS_JOB_H
#include "methods/base.h"
#include "model/model.h"

struct QuantJob {
    const Method *method;
    const void *options;
    Model *model;
    Arena scratch;
    Arena notes;           /* fallbacks 的文字 */
    const char **fallbacks;
    size_t n_fallbacks, cap_fallbacks;
    double squared_error;  /* 各量化层误差平方和 */
    int64_t n_quantized;   /* 量化的权重个数 */
    double stats_seconds;  /* 算误差等统计的用时 */
};

/* 量化整个模型：method->quantize，然后 model_finish。job 由调用者清零；用完 job_close。 */
bool job_run(QuantJob *job, const Method *method, const void *options, Model *model, Err *e);
void job_close(QuantJob *job);
#endif
