/* checkpoint — 已量化的检查点：装了包的线性层照原样装进 QTensor，不经过反量化再量化
 * 每种格式给出一个 unpack：查清一个模块的张量（存在、类型、形状），解出编码、缩放、零点、组号；
 * 融合的拆开、act-order 的列排好、装进面板由这里统一做。哪些层装了包看张量，不看配置里的名单。 */
#ifndef PTQ_MODEL_CHECKPOINT_H
#define PTQ_MODEL_CHECKPOINT_H
#include "model/model.h"

/* 一个线性层是不是装了包的。 */
bool checkpoint_is_packed(const Model *m, const Linear *l);
/* 查清它的各张量，并记为用到了。错误: 缺张量、类型或形状不符。 */
bool checkpoint_check(const Model *m, const Linear *l, Err *e);
/* 装进 l->q（与模型同寿命）并设好 l->act、偏置。错误: 同上，另有组号越界、缩放不是有限的数等。 */
bool checkpoint_load(Model *m, Linear *l, Err *e);
/* 装入后将占多少字节：填 q 的 *_bytes（嵌套的缩放按不嵌套算）。 */
bool checkpoint_measure(const Model *m, const Linear *l, QTensor *q, Err *e);
/* 给结果的 JSON：格式与第一个装了包的层的设置；不是已量化的检查点返回空对象。返回值须 json_decref。 */
json_t *checkpoint_json(const Model *m);
/* 评测与检查点的原意有出入时的说明；没有为 NULL。模型须已就绪。 */
const char *checkpoint_note(const Model *m);

/* ---- 以下供各格式的源文件 ---- */

/* 一个模块在文件里的样子。rows、cols 是文件里的形状（融合的还没有拆）。 */
typedef struct PackedSource {
    WeightStore *w;
    const CheckpointConfig *c;
    const char *module; /* 如 "model.layers.0.self_attn.q_proj" */
    int64_t rows, cols;
} PackedSource;

/* 一个模块解出的内容；没有的为 NULL。 */
typedef struct PackedModule {
    QSpec spec;       /* group_size 为正且不大于 cols */
    int64_t n_groups;
    uint8_t *code;    /* (rows, cols) */
    float *scale, *zero; /* (rows, n_groups)；对称的 zero 为 NULL */
    int32_t *group;   /* (cols) 各列的组号；NULL 为依次 */
    float *table;     /* CODE_TABLE 的 2^bits 项 */
    /* 嵌套缩放，代替 scale */
    NestedScale nested;
    uint8_t *scale_code; /* (rows, n_groups) */
    float *nested_table, *outer;
    ActQuant act;
} PackedModule;

/* 解开一个模块。参数: a 为 NULL 时只查张量、填 spec 与 n_groups，不解内容。 */
typedef bool UnpackFn(const PackedSource *s, PackedModule *p, Arena *a, Err *e);
UnpackFn unpack_gptq, unpack_awq, unpack_compressed, unpack_bitsandbytes, unpack_hqq;

/* 模块的一个张量。suffix 含点，如 ".qweight"；types 以 DT_NONE 结尾；cols 为 0 是一维（rows 为 0 则不查形状）。
 * 返回: 不合时为 NULL 并置 e。 */
const FileTensor *packed_tensor(const PackedSource *s, const char *suffix, const DType *types, int64_t rows,
                                int64_t cols, Err *e);
/* 同上，可以没有：没有时 *out 为 NULL 并返回真。 */
bool packed_optional(const PackedSource *s, const char *suffix, const DType *types, int64_t rows, int64_t cols,
                     const FileTensor **out, Err *e);
/* 有没有这个张量（不记为用到）。 */
const FileTensor *packed_find(const PackedSource *s, const char *suffix);
extern const DType PACKED_INT32[], PACKED_REALS[], PACKED_U8[], PACKED_I8[];
/* 实数张量解码成 n 个 f32。返回: a 里的数组；有 NaN、Inf 或内存不足时为 NULL。 */
float *packed_floats(const FileTensor *t, size_t n, Arena *a, Err *e);
/* 定 spec 的组宽与组数。错误: 组数与缩放的不符。 */
bool packed_groups(const PackedSource *s, PackedModule *p, int64_t group_size, int64_t n_groups, Err *e);
/* u32 数组（文件里可以不对齐）的第 i 个。 */
static inline uint32_t packed_word(const FileTensor *t, int64_t i) {
    const uint8_t *b = (const uint8_t *)t->data + 4 * i;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}
#endif
