/* arch — 模型家族与超参数
 * 每个家族由一张标志表描述（ArchSpec），forward 只有一份；config.json（新旧两种写法）与 GGUF 元数据都读成 ModelConfig。
 * 不认识的架构、激活函数、rope 类型是错误，绝不悄悄当作别的算。 */
#ifndef PTQ_MODEL_ARCH_H
#define PTQ_MODEL_ARCH_H
#include "io/gguf.h"
#include "io/json.h"

/* 家族标志：默认值；config.json 里有同义键时以文件为准。 */
typedef struct ArchSpec {
    const char *name;        /* model_type，也是 GGUF 的 general.architecture */
    const char *class_name;  /* architectures[0] */
    bool qkv_bias;           /* q、k、v 恒有偏置（qwen2） */
    bool bias_keys;          /* 由 attention_bias / mlp_bias 决定偏置（llama） */
    bool gguf_permuted_qk;   /* GGUF 中 q、k 的行按交错旋转重排过（llama） */
    bool max_window_layers;  /* use_sliding_window + max_window_layers（qwen2） */
} ArchSpec;

typedef enum { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3 } RopeKind;

typedef struct RopeConfig {
    RopeKind kind;
    double theta, factor, low_freq_factor, high_freq_factor;
    int64_t original_max_position;
    int64_t rotary_dim; /* 每头参与旋转的维数（偶数） */
} RopeConfig;

typedef struct ModelConfig {
    const ArchSpec *arch;
    int64_t n_layers, hidden, intermediate, n_heads, n_kv_heads, head_dim, vocab, max_position;
    double norm_eps;
    RopeConfig rope;
    bool q_bias, o_bias, mlp_bias, tied;
    int64_t sliding_window;  /* 0 表示无 */
    int64_t first_window_layer; /* 此层起用滑动窗口 */
    int64_t bos_id, eos_id; /* 没有为 -1 */
} ModelConfig;

/* 由 config.json 填写。name 用于错误信息（通常是文件路径）。 */
bool arch_from_json(ModelConfig *c, const json_t *root, const char *name, Err *e);
/* 由 GGUF 元数据填写；has_output 表示存在 output.weight（不共享词嵌入），vocab 取自词嵌入的行数。 */
bool arch_from_gguf(ModelConfig *c, const Gguf *g, Err *e);
/* 第 layer 层的滑动窗口（0 表示不限）。 */
int64_t arch_window(const ModelConfig *c, int64_t layer);
/* 每 token 每层的参数量等由形状得出：全部线性层的参数个数。 */
int64_t arch_linear_params(const ModelConfig *c);
#endif
