/* synth — 造一个随机权重的 HF 文件夹：形状同某个真实的模型，供测速与显存（没有真权重的机器上）
 * 每个元素只由（种子、张量、下标）决定，与线程数无关。幅度仿真实的模型：线性层保方差，o、down 按层数缩小，
 * 归一化在几个固定的通道上放大 10 到 30 倍（激活的离群通道），up 的几行放大 8 倍。
 * 分词器是 256 个字节加一个 <|endoftext|>，没有合并；词表大小仍是原模型的。 */
#ifndef PTQ_SYNTH_H
#define PTQ_SYNTH_H
#include "base/str.h"
#include "compute/backend.h"
#include "io/json.h"
#include "io/tensorfile.h"

typedef struct SynthShape {
    const char *name;          /* --like 的名字 */
    const char *type, *architecture; /* config.json 的 model_type、architectures */
    int64_t layers, hidden, ff, heads, kv_heads, head_dim, vocab, max_position;
    double theta, eps;
    double rope_factor; /* llama3 的 rope 倍数；0 为没有 */
    bool tied, qkv_bias, qk_norm;
    bool sandwich; /* gemma2：半块之后也有归一化，文件里存 weight−1 */
} SynthShape;
extern const SynthShape SYNTH_SHAPES[];
extern const size_t N_SYNTH_SHAPES;
/* 按名字找；没有则报出全部与最近的名字。 */
const SynthShape *synth_find(const char *name, Err *e);

/* 一个张量怎样填：二维的是 N(0, std²)，outliers 时几行放大；一维的是 mean·(1 + std·N)（mean 为 0 时 std·N），
 * outliers 时固定的通道放大，最后减 minus。 */
typedef struct SynthFill {
    double std, mean, minus;
    bool outliers;
} SynthFill;

typedef struct SynthPlan {
    Arena arena;
    SynthShape shape; /* layers 已按要求缩短 */
    DType dtype;
    FileTensor *files; /* (n) 名字、形状；path 是分片的文件名 */
    SynthFill *fills;  /* (n) */
    size_t n, n_shards;
    size_t bytes;      /* 张量合计 */
} SynthPlan;
/* 列出张量、分好片（一片约 5 GB）。参数: layers 0 为原来的层数；dtype 为 DT_BF16 或 DT_F16。须 synth_plan_free。 */
bool synth_plan(SynthPlan *p, const SynthShape *s, int64_t layers, DType dtype, Err *e);
void synth_plan_free(SynthPlan *p);
/* 分词器、生成设置与（最后）config.json 写到文件夹。 */
bool synth_write_json(const SynthPlan *p, const char *dir, Err *e);

/* 造出文件夹 out（须不存在或为空）。b 供并行。config.json 最后写：半途中断的文件夹装不起来；失败时删去写了的。
 * 错误: 文件夹不空、磁盘放不下、写失败、被中断。 */
bool synth_write(const SynthPlan *p, uint64_t seed, const char *out, Backend *b, Err *e);
#endif
