/* model — 打开的模型：超参数、权重来源、逐块的线性层与归一化、词嵌入与语言模型头
 * 生命周期：model_open 只读元数据并查清全部张量；quantize 逐块把线性层装成存放形式；model_finish 载入其余部分。
 * 不变式：model_finish 之后可以 forward；此前只能问形状。 */
#ifndef PTQ_MODEL_MODEL_H
#define PTQ_MODEL_MODEL_H
#include "compute/memory.h"
#include "io/file.h"
#include "io/spill.h"
#include "model/kvcache.h"
#include "model/linear.h"
#include "model/weights.h"

/* 共用同一输入的线性层组（校准统计以组为单位）。家族独有的接在 INPUT_COUNT 之后：MLA 的 q_b、kv_b，
 * 第 i 个专家的 gate 与 up（GROUP_EXPERTS+2i）、down（再加 1）。 */
typedef enum { INPUT_QKV, INPUT_O, INPUT_GATE_UP, INPUT_DOWN, INPUT_COUNT } InputGroup;
enum { GROUP_Q_B = INPUT_COUNT, GROUP_KV_B, GROUP_EXPERTS };

/* 向量都在后端内存，家族没有的为 NULL。 */
typedef struct Block {
    float *attn_norm, *mlp_norm; /* (hidden) 半块之前（FORM_AFTER：加残差之后）的归一化 */
    float *attn_norm_bias, *mlp_norm_bias;
    float *post_attn_norm, *post_mlp_norm; /* (hidden) 半块之后、加残差之前 */
    float *q_norm, *k_norm;      /* 旋转之前，形状见 QkNorm */
    float *q_a_norm, *kv_a_norm; /* MLA */
    float *router, *router_bias; /* (n_experts, hidden)、(n_experts)：不量化 */
    QTensor router_q;            /* router 装成的 f32 矩阵 */
    bool loaded;                 /* 以上已载入 */
    Linear *linears;  /* 前 ROLE_COUNT 个按 LinearRole 排，之后是家族独有的 */
    int64_t n_linears;
    FileMap file; /* 由存盘的块装入时的映射（blockfile.h） */
    Arena arena;  /* 装好的线性层，在后端内存 */
} Block;
/* 输入组的个数。 */
static inline int block_n_groups(const ModelConfig *c, int64_t layer) {
    return GROUP_EXPERTS + (arch_has_experts(c, layer) ? 2 * (int)c->n_experts : 0);
}

/* 流式时后端内存里的一块。 */
typedef struct StreamSlot {
    Arena arena;
    ArenaMark empty; /* 回到这里就能装下一块 */
    size_t bytes;    /* 备下的 */
    int64_t layer;   /* -1 为空 */
} StreamSlot;
enum { STREAM_SLOTS = 2 /* 能预取的后端：一块在算，一块在传 */ };

struct Model {
    Arena arena; /* 线性层之外装好的权重，在后端内存 */
    Arena meta;  /* 名字等元数据，在主机 */
    ModelConfig config;
    WeightStore weights;
    Backend *backend;
    DType dtype; /* 未量化权重的存放类型 */
    bool head_int8; /* 词嵌入与头存成 8 位；载入之前定好 */
    Block *blocks;
    QTensor embed;       /* (vocab, hidden) */
    QTensor own_head;    /* 不共享时的 lm_head */
    bool head_unrounded; /* 检查点要 lm_head 的激活也取整，而这里不取整 */
    const QTensor *head; /* 共享时指向 embed */
    float *final_norm, *final_norm_bias;
    float *embed_norm, *embed_norm_bias;
    QTensor positions;           /* (位置, hidden) 学得的位置 */
    QTensor project_in, project_out; /* 词嵌入与 hidden 之间的投影，补零成 (hidden, hidden) */
    bool ends_loaded;            /* 以上除头之外已载入 */
    Arena rope_arena;
    double *inv_freq;    /* (rotary_dim/2) */
    const float *rope_factors; /* GGUF 存的各频率的除数；没有为 NULL */
    float *cos_table, *sin_table; /* (n_rope, rotary_dim/2)，按需增长 */
    float *local_cos, *local_sin; /* 有窗口的层另用的（gemma3）；没有为 NULL */
    float *alibi;        /* (n_heads, alibi_stride) 各头对各键位置的偏置；没有为 NULL */
    int64_t n_rope, alibi_stride;
    int64_t rope_regime; /* 表是为多长的时间线造的，见 model_ensure_rope */
    double load_seconds, pack_seconds;
    Allocator spill;      /* max_memory 之下校准的大数组放在磁盘上；alloc 为 NULL 即没有 */
    bool stream;          /* 线性层不留在后端内存里，逐块载入（stream.c） */
    StreamSlot slots[STREAM_SLOTS];
    int slot;             /* 正在用的那一块 */
    bool no_prefetch;     /* 装不下第二块；model_reset 不改它 */
    Arena homes;          /* Linear.home 的内存，在主机 */
    KvSpec *kv;     /* (n_layers) 键值缓存的量化；NULL 为不量化 */
    KvMode kv_mode; /* 开会话或窗口之前定好 */
    DType kv_dtype; /* 不量化的键值的存放类型：F32、F16；NONE 即 F32（量化期间的前向） */
};

/* 打开并检查：所有张量存在且形状相符。参数: dtype 为 DT_NONE 时取文件自身的类型。 */
bool model_open(Model *m, const char *path, DType dtype, Backend *b, Err *e);
/* 同上，另指明家族（模型 YAML 的 adapter；NULL 由 config.json 决定）。 */
bool model_open_as(Model *m, const char *path, const char *adapter, DType dtype, Backend *b, Err *e);
/* 载入归一化、偏置、词嵌入与头；未装好的线性层装成稠密。已载入的不再做。 */
bool model_finish(Model *m, Err *e);
/* 回到刚打开时：装好的权重都放掉，文件仍开着；dtype、head_int8、stream、spill 不变。 */
bool model_reset(Model *m, Err *e);
void model_close(Model *m);
/* 提前载入（校准需要）；已载入则不做事。 */
bool model_load_norms(Model *m, int64_t layer, Err *e);
bool model_load_embed(Model *m, Err *e);
/* 词嵌入（或头）将占多少字节：填 q 的 *_bytes。 */
bool model_measure_embed(const Model *m, QTensor *q, Err *e);
/* 载入偏置（有而未载入时）。 */
bool model_load_bias(Model *m, Linear *l, Err *e);
/* 全部权重将占多少字节：线性层按 spec 量化（NULL 为按模型的 dtype 稠密），加上词嵌入与头。 */
bool model_measure_weights(const Model *m, const QSpec *spec, size_t *bytes, Err *e);
/* 把第 layer 块的线性层 l 的权重解码到 w (rows,cols) f32（后端内存），并载入偏置。 */
bool model_load_linear(Model *m, Linear *l, float *w, Err *e);
/* 由文件按模型的 dtype 装成稠密的 l，内存来自 a（后端内存）；连同偏置。 */
bool model_load_dense(Model *m, Linear *l, Arena *a, Err *e);
/* 把稠密权重 w（后端内存）按模型的 dtype 装入 l，内存来自 a（后端内存）。 */
bool model_pack_linear(Model *m, Linear *l, const float *w, Arena *a, Err *e);
/* 装好的 l 的内存（后端的）：它的块的，或模型的（头）。 */
Arena *model_linear_arena(Model *m, const Linear *l);
/* 装校准的大数组（全部样本的隐藏状态、输入、键值）的 Arena：流式时在磁盘（spill）或锁页的主机内存上，否则是后端内存。 */
Arena model_big_arena(Model *m);
/* stream 时代替 model_pack_linear：只记下要多少字节，用到时再载入。 */
bool model_stream_linear(Model *m, Linear *l, Err *e);
/* 第 layer 块的线性层已经装好：内存分开的后端在 stream 时把它移到主机（未量化的不留，用时再从文件载入），放掉后端内存。 */
bool model_leave_block(Model *m, int64_t layer, Err *e);
/* 已装好的模型改为流式（后端内存不够）。 */
bool model_start_stream(Model *m, Err *e);
/* 前向用到第 layer 块之前调用：stream 时载入它，并放掉前面的。 */
bool model_need_block(Model *m, int64_t layer, Err *e);
/* 第 layer 块的计算已派发：载入下一块（末块之后是第 0 块），与计算并行。装不下就不再预取；错误留给用到时报。 */
void model_prefetch_next(Model *m, int64_t layer);
/* 此后只留一块的位置，不再预取。 */
void model_stop_prefetch(Model *m);
/* 按名字找线性层；没有返回 NULL。 */
Linear *model_find_linear(Model *m, const char *name);
/* 备好位置的表（旋转、ALiBi），供长至 n 的时间线。longrope 与 dynamic 的频率随时间线的长度变（transformers 亦然），
 * 所以每次前向之前都要以整条时间线将有的长度调用：表不合用就重造。错误: 学得的位置不够、内存不足。 */
bool model_ensure_rope(Model *m, int64_t n, Err *e);
/* 第 layer 层的旋转表；不旋转的层（或家族）返回 false。 */
bool model_rope(const Model *m, int64_t layer, const float **cos_table, const float **sin_table);
/* 长 n 的时间线用哪一套频率：同一个值即同一套。 */
int64_t model_rope_regime(const ModelConfig *c, int64_t n);
/* 最终归一化后的 hidden (n, hidden) → logits (n, vocab)，含软截断。 */
void model_logits(Model *m, float *logits, const float *hidden, int64_t n);

/* 存放的字节数与参数个数，逐项清点（共享的词嵌入只算一次）。 */
typedef struct ModelBytes {
    size_t codes, scales, zeros, permutations, outliers, unquantized, total;
    int64_t linear_params, params; /* 线性层参数；全部参数 */
    size_t linear_bytes;           /* 块内线性层的字节（含其中未量化者） */
} ModelBytes;
ModelBytes model_bytes(const Model *m);
#endif
