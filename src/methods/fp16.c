/* fp16 — 不量化的基线
 * 权重按模型的 dtype 原样存放（float32 / float16 / bfloat16），三个轨道的对照都由它给出。 */
#include "methods/base.h"

/* 没有量化的线性层由模型自己直接装入，不经 f32 的副本。 */
static bool fp16_quantize(QuantJob *job, Err *e) {
    (void)job;
    (void)e;
    return true;
}

PTQ_METHOD(fp16) = {.name = "fp16", .tracks = "ABC", .quantize = fp16_quantize};
