/* arch — 模型家族与超参数
 * 每个家族是 families.c 里的一行数据（ArchSpec：标志、默认值与张量的名字），forward 只有一份；
 * config.json（新旧两种写法）与 GGUF 元数据都读成 ModelConfig，此后各处只看 ModelConfig。
 * 不认识的架构、激活函数、rope 类型、会改变计算的键都是错误，绝不悄悄当作别的算。 */
#ifndef PTQ_MODEL_ARCH_H
#define PTQ_MODEL_ARCH_H
#include "compute/backend.h"
#include "io/gguf.h"
#include "io/json.h"

enum { ARCH_MAX_LAYERS = 4096, ARCH_MAX_EXPERTS = 1024 };

/* 张量在模型里的位置。名字的表（ArchNames）按它排；'#' 代表层号，'@' 代表专家号（或头号）。 */
typedef enum TensorSlot {
    T_EMBED, T_POSITION, T_EMBED_NORM, T_PROJECT_IN, T_PROJECT_OUT, T_FINAL_NORM, T_HEAD,
    T_ATTN_NORM, T_MLP_NORM, T_POST_ATTN_NORM, T_POST_MLP_NORM, T_Q_NORM, T_K_NORM,
    T_QKV, T_Q, T_K, T_V, T_O, T_GATE_UP, T_GATE, T_UP, T_DOWN,
    T_Q_A, T_Q_A_NORM, T_Q_B, T_KV_A, T_KV_A_NORM, T_KV_B,
    T_ROUTER, T_ROUTER_BIAS, T_EXPERT_GATE, T_EXPERT_UP, T_EXPERT_DOWN,
    T_SHARED_GATE, T_SHARED_UP, T_SHARED_DOWN,
    T_COUNT
} TensorSlot;
typedef const char *ArchNames[T_COUNT];

/* q、k 在旋转之前的归一化：没有；每头共用一个 (dim) 的权重；每头各有 (heads, dim)；同上但一头一个张量；整行 (heads·dim)。 */
typedef enum { QK_NONE, QK_SHARED, QK_PER_HEAD, QK_PER_HEAD_SPLIT, QK_WHOLE } QkNorm;
/* 块的形状：归一化在半块之前；之前之后都有（gemma2、glm4）；只在半块之后、加残差之前（olmo2）；加残差之后（OPT-350m）。 */
typedef enum { FORM_PRE, FORM_SANDWICH, FORM_BRANCH, FORM_AFTER } BlockForm;
typedef enum { POS_ROPE, POS_LEARNED, POS_ALIBI, POS_ALIBI_BF16 } PositionKind;
/* 融合的 q、k、v：没有；依次堆叠 q|k|v；每个键值头一组 (它的 q 头…, k, v)。 */
typedef enum { FUSED_NONE, FUSED_STACKED, FUSED_GROUPED } FusedQkv;
/* 滑动窗口：没有；每层（mistral）；use_sliding_window 与 max_window_layers（qwen）；layer_types 或固定的间隔（gemma、cohere2）。 */
typedef enum { WINDOW_NONE, WINDOW_ALL, WINDOW_SWITCH, WINDOW_PATTERN } WindowRule;
typedef enum { ROUTER_NONE, ROUTER_SOFTMAX, ROUTER_SIGMOID } RouterKind;

/* 一个家族。没有写的就是 llama 的样子；键名决定的，键缺失时取 ..._default 或「文件里有没有」。 */
typedef struct ArchSpec {
    const char *name;       /* model_type */
    const char *gguf;       /* GGUF 的 general.architecture；NULL 为没有。同名的几个家族，读时取表里的第一个 */
    const ArchNames *names;
    const char *qkv_bias, *o_bias, *mlp_bias; /* 决定偏置的键；ALWAYS 恒有；NULL 恒无 */
    bool bias_default;      /* 上面的键缺失时 */
    bool layer_norm;        /* LayerNorm（否则 RMSNorm） */
    bool norm_bias;         /* LayerNorm 有偏置 */
    bool norm_plus_one;     /* 文件里存的是 weight−1（gemma；GGUF 里已加回） */
    double norm_eps;        /* 默认的 eps */
    BlockForm form;
    const char *parallel;   /* 并行残差：x + attn(h) + mlp(h)，由此键决定；ALWAYS 恒是 */
    bool parallel_default, shared_norm; /* shared_norm：并行时两半共用一个归一化 */
    QkNorm qk_norm;
    const char *qk_norm_key; /* 非 NULL：由此键决定有没有 */
    bool plain_mlp;         /* 没有门：down(f(up x)) */
    Activation activation;  /* 默认 */
    PositionKind position;
    int position_offset;    /* 学得的位置从第几行起（OPT 2） */
    bool rope_pairs;        /* 相邻两维成对旋转 */
    double partial_rotary;  /* 默认的旋转比例；0 即 1 */
    FusedQkv fused_qkv;
    bool fused_gate_up, transposed; /* transposed：Conv1D，文件里是 (in, out) */
    WindowRule window;
    int window_pattern;     /* 没有 layer_types 时每几层有一层不限窗口 */
    bool nope_full;         /* 不限窗口的层不旋转（cohere2） */
    bool local_rope;        /* 有窗口的层用自己的 rope（gemma3） */
    bool query_scalar;      /* 注意力的系数是 query_pre_attn_scalar^-1/2 */
    bool embed_scale;       /* 词嵌入乘 √hidden */
    bool tied_default;
    RouterKind router;
    bool mla;
    bool gguf_permuted_qk;  /* GGUF 中 q、k 的行按交错旋转重排过 */
    bool gguf_two_norms;    /* GGUF 中并行的两个归一化叫 attn_norm_2（注意力的）与 attn_norm（MLP 的） */
} ArchSpec;
#define ALWAYS "*"

typedef enum {
    ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3, ROPE_DYNAMIC, ROPE_YARN, ROPE_LONGROPE
} RopeKind;
enum { ROPE_MAX_FACTORS = 256 };

typedef struct RopeConfig {
    RopeKind kind;
    double theta, factor, low_freq_factor, high_freq_factor;
    double beta_fast, beta_slow, attention_factor; /* yarn、longrope；attention_factor 乘在 cos、sin 上 */
    bool truncate;
    int64_t original_max_position;
    int64_t rotary_dim; /* 每头参与旋转的维数（偶数） */
    bool pairs;         /* 2i 与 2i+1 成对，否则 i 与 i+half */
    float short_factor[ROPE_MAX_FACTORS], long_factor[ROPE_MAX_FACTORS]; /* longrope */
} RopeConfig;

/* 每层的标志（按位或）。 */
enum { LAYER_WINDOW = 1, LAYER_EXPERTS = 2, LAYER_LOCAL_ROPE = 4, LAYER_NO_ROPE = 8 };

typedef struct ModelConfig {
    const ArchSpec *arch;
    int64_t n_layers, hidden, intermediate, n_heads, n_kv_heads, head_dim, vocab, max_position;
    double norm_eps;
    RopeConfig rope, local_rope;
    bool q_bias, o_bias, mlp_bias, tied;
    int64_t sliding_window;  /* 0 表示无 */
    uint8_t layer[ARCH_MAX_LAYERS];
    int64_t bos_id, eos_id; /* 没有为 -1 */
    /* 归一化与块的形状 */
    bool norm_plain;         /* 归一化没有可学的权重 */
    bool norm_plus_one, parallel, shared_norm, no_final_norm, residual_from_norm;
    BlockForm form;
    QkNorm qk_norm;
    /* MLP */
    Activation activation;
    bool gated;
    /* 位置与系数；1 或 0 即没有 */
    PositionKind position;
    double attn_scale, embed_scale, residual_scale, logit_scale, attn_softcap, logit_softcap;
    bool attn_scale_by_layer; /* 第 i 层再除以 i+1（GPT-2） */
    int64_t embed_dim;        /* 词嵌入的宽度，通常即 hidden（OPT-350m 另有投影） */
    FusedQkv fused_qkv;
    bool fused_gate_up, transposed;
    /* 专家 */
    int64_t n_experts, top_k, expert_ff, shared_ff, n_group, topk_group;
    bool norm_topk;
    double routed_scale;
    /* MLA：head_dim 是 max(nope+rope, v)，键值按展开后的存 */
    int64_t kv_lora, q_lora, nope_dim, rope_dim, v_dim;
    bool mla_bias; /* q_a、kv_a、o 的偏置 */
} ModelConfig;

/* 由 config.json 填写。参数: name 用于错误信息（通常是文件路径）；adapter 非 NULL 时代替 model_type。 */
bool arch_from_json(ModelConfig *c, const json_t *root, const char *name, const char *adapter,
                    Err *e);
/* 由 GGUF 元数据填写；词表的大小取自词嵌入的行数，没有 output.weight 表示共享词嵌入。 */
bool arch_from_gguf(ModelConfig *c, const Gguf *g, Err *e);
/* 各字段之间的一致性；两种来源共用。 */
bool arch_check(const ModelConfig *c, const char *name, Err *e);
/* 按 model_type 或 GGUF 的架构名找；没有返回 NULL，arch_unsupported 给出错误。 */
const ArchSpec *arch_find(const char *name, bool gguf);
bool arch_unsupported(const char *where, const char *name, Err *e);
/* 家族的默认值填进 c。 */
void arch_defaults(ModelConfig *c, const ArchSpec *spec);
/* 读 rope 的设置（rope_parameters 或 rope_scaling）到 c->rope、c->local_rope。seen 见 arch.c。 */
bool arch_read_rope(ModelConfig *c, const json_t *root, const char *name, Err *e);
/* 名字是激活函数的哪一种；不认识为 false。 */
bool arch_activation(const char *name, Activation *out);
/* 第 layer 层的滑动窗口（0 表示不限）。 */
int64_t arch_window(const ModelConfig *c, int64_t layer);
bool arch_has_experts(const ModelConfig *c, int64_t layer);
/* 每个 token 在全部层要乘的线性层权重的个数（专家只计选中的）。 */
int64_t arch_linear_params(const ModelConfig *c);

/* 方法可能不支持的家族特征（按位或）。 */
enum {
    FEATURE_LAYER_NORM = 1, FEATURE_FORM = 2, FEATURE_PARALLEL = 4, FEATURE_QK_NORM = 8,
    FEATURE_PLAIN_MLP = 16, FEATURE_ACTIVATION = 32, FEATURE_SOFTCAP = 64, FEATURE_POSITION = 128,
    FEATURE_SCALES = 256, FEATURE_EXPERTS = 512, FEATURE_MLA = 1024, FEATURE_POST_NORM = 2048,
    FEATURE_SHARED_NORM = 4096, FEATURE_ALL = 8191
};
unsigned arch_features(const ModelConfig *c);
/* 有 refused 中的特征则报错：「who 不支持 家族 的 某某」。返回: 都没有为 true。 */
bool arch_require(const ModelConfig *c, unsigned refused, const char *who, Err *e);
#endif
