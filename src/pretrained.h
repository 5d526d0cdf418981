/* pretrained — 方法 pretrained:gptq、pretrained:awq……：评测已量化好的检查点，权重照原样装入（model/checkpoint.h）
 * 它们不在 src/methods/ 里：不量化，也没有 YAML，设置都在检查点的 config.json 里。 */
#ifndef PTQ_PRETRAINED_H
#define PTQ_PRETRAINED_H
#include "methods/base.h"
#include "model/model.h"

/* 按名字找（"pretrained:gptq"）；不是这一类返回 NULL。 */
const Method *pretrained_find(const char *name);
bool pretrained_is(const Method *m);
/* 第 i 个（CheckpointKind 的次序）。 */
const Method *pretrained_at(int i);
/* 模型 YAML 里 pretrained_quant_models 的键，如 "compressed_tensors"。 */
const char *pretrained_key(const Method *m);
/* 模型与方法相配：已量化的要以它的格式的方法评测，没有量化的不能。错误: 说明该用哪个方法。 */
bool pretrained_check(const Method *m, const Model *model, Err *e);
#endif
