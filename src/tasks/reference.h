/* reference — 基线（fp16 运行）的存档，供量化后的运行配对比较
 * 存两样：每个窗口的平均 NLL；前若干窗口各打分位置最终归一化后的隐藏状态（f32）。
 * 隐藏状态乘一次语言模型头就得到基线的全部 logits，所以 KL 是精确的，没有 top-k 截断的误差。
 * 文件：data/processed/reference/{key}.ref；key 由权重、dtype、分词器、文本、协议、计算精度决定。 */
#ifndef PTQ_TASKS_REFERENCE_H
#define PTQ_TASKS_REFERENCE_H
#include <stdio.h>

#include "io/file.h"
#include "io/hash.h"

typedef struct Reference {
    FileMap map;
    char run_key[HASH_HEX]; /* 产生它的运行 */
    int64_t n_windows;      /* 有 NLL 的窗口数 */
    int64_t hidden_windows; /* 有隐藏状态的窗口数 */
    int64_t rows, width;    /* 每窗口打分的位置数、隐藏维数 */
    const double *window_nll;
    const float *hidden; /* (hidden_windows·rows, width) */
} Reference;

/* 打开 dir/{key}.ref。返回: 不存在、损坏（打印 ⚠️）或形状不同都为 false；读到的一定完整。 */
bool reference_open(Reference *r, const char *dir, const char *key, int64_t rows, int64_t width);
void reference_close(Reference *r);

/* 写入器：边算边写临时文件，reference_commit 时才改名生效；中途崩溃只留下临时文件。 */
typedef struct ReferenceWriter {
    FILE *file;
    char *tmp, *path; /* arena 内 */
    int64_t hidden_windows, rows, width;
} ReferenceWriter;
bool reference_begin(ReferenceWriter *w, Arena *a, const char *dir, const char *key, int64_t rows,
                     int64_t width, Err *e);
bool reference_add(ReferenceWriter *w, const float *hidden, Err *e);
bool reference_commit(ReferenceWriter *w, const char *run_key, const double *window_nll,
                      int64_t n_windows, Err *e);
void reference_abort(ReferenceWriter *w); /* 可对已提交或未开始者调用 */
#endif
