/* export — 把量化好的模型写成别的工具能装入的文件夹（HF 的样子：safetensors、config.json、分词器）
 * 写的就是评测的：编码、缩放、零点逐个取自存放形式，不再取整一次。没有量化的张量从源文件原样抄过去；
 * 方法改过的（折叠过的归一化、偏置）写现在的值。 */
#ifndef PTQ_EXPORT_H
#define PTQ_EXPORT_H
#include "io/json.h"
#include "model/model.h"

/* 一个线性层的量化内容，在主机，列按原来的次序。 */
typedef struct PackedLinear {
    int bits;
    int64_t rows, cols, group_size, n_groups;
    bool symmetric;       /* 零点恒为 2^(bits−1) */
    const uint8_t *code;  /* (rows, cols) */
    const float *scale, *zero; /* (rows, n_groups) */
    const int32_t *group; /* (cols) 各列的组号 */
} PackedLinear;

/* 量化的线性层写成的张量之一：名字是 层名 + suffix。 */
typedef struct ExportPart {
    int kind; /* 由格式定，交回给 fill */
    const char *suffix;
    DType dtype;
    int n_dims;
    int64_t shape[2];
} ExportPart;
enum { EXPORT_MAX_PARTS = 5 };

/* 一种格式。 */
typedef struct ExportFormat {
    const char *name, *about;
    /* 这一层能否无损地写成这种格式；不能时说明原因。 */
    bool (*check)(const Linear *l, Err *e);
    /* 列出各张量。返回: 个数，至多 EXPORT_MAX_PARTS。 */
    int (*parts)(const Linear *l, ExportPart *out);
    /* kind 一种的张量的内容写到 dst；NULL 即反量化。 */
    void (*fill)(const PackedLinear *p, int kind, void *dst);
    /* config.json 的 quantization_config，first 是第一个量化的线性层；NULL 即没有这一项。 */
    json_t *(*config)(const Model *m, const Linear *first);
    bool conv1d; /* 文件里转置存放的（gpt2 的 Conv1D）也写得下 */
} ExportFormat;

extern const ExportFormat EXPORT_FORMATS[];
extern const size_t N_EXPORT_FORMATS;

/* 写到文件夹 out（须不存在或为空）。config.json 最后写，半途而废的文件夹因而装不起来。
 * 融合的张量（q|k|v、gate|up）仍写成融合的。错误: 源不是 HF 文件夹、层的形式写不进这种格式、写文件失败。 */
bool export_model(Model *m, const ExportFormat *f, const char *out, Err *e);
#endif
