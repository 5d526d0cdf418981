/* weights — 权重的来源：HF 文件夹（safetensors，单个或分片）或 GGUF 文件
 * 一律以 HF 名字取用；GGUF 的名字与 q/k 行重排在这里翻译掉，上层看不出差别。
 * 数据留在 mmap 里，逐张量解码为 f32，用完即可丢弃页面。 */
#ifndef PTQ_MODEL_WEIGHTS_H
#define PTQ_MODEL_WEIGHTS_H
#include "io/gguf.h"
#include "io/hash.h"
#include "model/arch.h"

typedef struct WeightStore {
    Arena arena;
    const char *path;   /* 文件夹或 .gguf 文件 */
    const char *format; /* "safetensors" 或 "gguf" */
    bool is_gguf;
    Gguf gguf;
    TensorFile *shards;
    size_t n_shards;
    const FileTensor **sorted; /* 全部张量，按名字排序 */
    size_t n_tensors;
    const ModelConfig *config; /* GGUF 重排需要头数；归模型所有 */
} WeightStore;

/* 打开。path 为文件夹（须有 config.json 与 model.safetensors 或 model.safetensors.index.json）或 .gguf 文件；
 * 同时读出超参数。错误: 缺文件、分片缺失、同名张量、格式错误（含文件与位置）。 */
bool weights_open(WeightStore *w, const char *path, ModelConfig *config, Err *e);
void weights_close(WeightStore *w);
/* 按 HF 名找；没有返回 NULL。 */
const FileTensor *weights_find(const WeightStore *w, const char *hf_name);
/* 检查形状（cols 为 0 表示一维）。错误: 缺少张量、形状不符。 */
bool weights_check(const WeightStore *w, const char *hf_name, int64_t rows, int64_t cols, Err *e);
/* 解码为 f32 (rows, cols)；dtype 为 DT_F16/DT_BF16 时再就近舍入到该类型（值仍以 f32 存）。
 * 错误: 缺失、形状不符、含 NaN/Inf（报出张量名与下标）。 */
bool weights_load(const WeightStore *w, const char *hf_name, int64_t rows, int64_t cols,
                  DType dtype, float *out, Err *e);
/* 同上，只取第 row0 行起的 n 行。 */
bool weights_load_rows(const WeightStore *w, const char *hf_name, int64_t rows, int64_t cols,
                       int64_t row0, int64_t n, DType dtype, float *out, Err *e);
/* 丢弃该张量占用的映射页（只影响 RSS）。 */
void weights_drop(const WeightStore *w, const char *hf_name);
/* 权重自身的类型：线性层全为 F16 / BF16 时即其类型，其余（F32、块量化、混合）为 F32。 */
DType weights_native_dtype(const WeightStore *w);
/* 全部权重文件的 SHA-256：单文件即其哈希；多文件为各哈希按文件名顺序连接后的哈希。 */
bool weights_sha256(const WeightStore *w, const char *cache_dir, char hex[HASH_HEX], Err *e);
#endif
