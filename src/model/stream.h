/* stream — 流式的内部约定（只供 model.c） */
#ifndef PTQ_MODEL_STREAM_H
#define PTQ_MODEL_STREAM_H
#include "model/model.h"

/* 放掉流式用的内存。 */
void stream_close(Model *m);
#endif
