/* fp16 — 不量化的基线
 * 权重按模型的 dtype 原样存放（float32 / float16 / bfloat16），三个轨道的对照都由它给出。 */
#include "methods/base.h"

static bool fp16_linear(QuantJob *job, Linear *l, Tensor w, const InputStats *st, Err *e) {
    (void)st;
    return job_keep_dense(job, l, w, e);
}

static bool fp16_quantize(QuantJob *job, Err *e) {
    return quantize_each_linear(job, STAT_NONE, FLOW_QUANTIZED, fp16_linear, e);
}

PTQ_METHOD(fp16) = {.name = "fp16", .tracks = "ABC", .quantize = fp16_quantize};
