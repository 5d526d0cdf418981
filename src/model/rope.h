/* rope — 旋转位置编码的频率（表由 model_ensure_rope 按需生成） */
#ifndef PTQ_MODEL_ROPE_H
#define PTQ_MODEL_ROPE_H
#include "model/model.h"

/* 备好频率所需的（表由 model_ensure_rope 造）。错误: 内存不足、GGUF 的 rope_freqs 不合法。 */
bool rope_init(Model *m, Err *e);
#endif
