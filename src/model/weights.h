/* weights — 权重的来源：HF 文件夹（safetensors，单个或分片）或 GGUF 文件
 * 以文件里的名字取用（名字由 layout.h 定）；行的对应（融合、重排、转置）由 TensorSource 说明，在这里换算掉。
 * 数据留在 mmap 里，逐张量解码为 f32，用完即可丢弃页面。 */
#ifndef PTQ_MODEL_WEIGHTS_H
#define PTQ_MODEL_WEIGHTS_H
#include "io/gguf.h"
#include "io/hash.h"
#include "model/arch.h"
#include "model/checkpoint_config.h"

/* 要取的 (n, cols) 在文件的张量里的位置：第 r 行 = 文件的第 r/block·stride + offset + r%block 行。 */
typedef struct TensorSource {
    char name[192];      /* 文件里的名字 */
    int64_t rows, cols;  /* 文件里的形状（转置之后；多维的前几维连成行）；cols 为 0 是一维 */
    bool transposed;     /* 文件里是 (cols, rows) */
    int64_t block, stride, offset; /* block 为 0 即原样 */
    int64_t heads;       /* 非 0：GGUF 中按头重排过的 q、k */
} TensorSource;

typedef struct WeightStore {
    Arena arena;
    const char *path;   /* 文件夹或 .gguf 文件 */
    const char *format; /* "safetensors" 或 "gguf" */
    bool is_gguf;
    Gguf gguf;
    TensorFile *shards;
    size_t n_shards;
    const FileTensor **sorted; /* 全部张量，按名字排序 */
    bool *used;                /* (n_tensors) weights_check 查过的 */
    size_t n_tensors;
    const CheckpointConfig *checkpoint; /* 已量化的检查点的格式；不是则 NULL */
    char strip[32], add[64];   /* 名字表里的名字要去掉、加上的前缀（layout.c 定） */
} WeightStore;

/* 打开。path 为文件夹（须有 config.json 与 model.safetensors 或 model.safetensors.index.json）或 .gguf 文件；
 * 同时读出超参数。参数: adapter 非 NULL 时代替 config.json 的 model_type。
 * 错误: 缺文件、分片缺失、同名张量、格式错误（含文件与位置）。 */
bool weights_open(WeightStore *w, const char *path, const char *adapter, ModelConfig *config,
                  Err *e);
void weights_close(WeightStore *w);
/* 按文件里的名字找；没有返回 NULL。 */
const FileTensor *weights_find(const WeightStore *w, const char *name);
/* 同上，并记下用到了它。 */
const FileTensor *weights_use(const WeightStore *w, const char *name);
/* 检查存在与形状，并记下用到了它。错误: 缺少张量、形状不符。 */
bool weights_check(const WeightStore *w, const TensorSource *s, Err *e);
/* 第 row0 行起的 n 行解码为 f32 (n, cols)；dtype 为 DT_F16/DT_BF16 时再就近舍入到该类型（值仍以 f32 存）。
 * 错误: 缺失、形状不符、含 NaN/Inf（报出张量名与下标）。 */
bool weights_load(const WeightStore *w, const TensorSource *s, int64_t row0, int64_t n, DType dtype,
                  float *out, Err *e);
/* 来源的第 row0 行起 n 行若在文件里相连、类型是 F32、F16 或 BF16，返回其首址与类型，不必经 weights_load；否则 NULL。
 * 不查有没有非有限值。 */
const void *weights_direct(const WeightStore *w, const TensorSource *s, int64_t row0, int64_t n, DType *t);
/* 权重自身的类型：线性层全为 F16 / BF16 时即其类型，其余（F32、块量化、混合）为 F32。已量化的检查点只看没有量化的矩阵。 */
DType weights_native_dtype(const WeightStore *w);
/* 全部权重文件的 SHA-256：单文件即其哈希；多文件为各哈希按文件名顺序连接后的哈希，至多 threads 个线程同时算。 */
bool weights_sha256(const WeightStore *w, int threads, const char *cache_dir, char hex[HASH_HEX], Err *e);
#endif
