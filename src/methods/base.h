/* base — 量化方法的契约（冻结：内容改变则测试失败）
 *
 * 一个方法 = src/methods/{name}.c + configs/methods/{name}.yaml。方法文件只包含本头文件。
 * 方法只看得到模型（逐块、逐线性层）与校准统计，看不到评测任务。
 *
 *     PTQ_METHOD(rtn) = {.name = "rtn", .tracks = "A", .options = OPTIONS,
 *                        .options_size = sizeof(RtnOptions), .quantize = rtn_quantize};
 *
 * 编译时自动收集 src/methods/ 下所有 .c 生成登记表，不改任何其他文件；文件名与登记名不一致是链接错误。 */
#ifndef PTQ_METHODS_BASE_H
#define PTQ_METHODS_BASE_H
#include <math.h>
#include <string.h>

#include "base/log.h"
#include "base/option.h"
#include "base/rng.h"
#include "compute/adamw.h"
#include "compute/hessian.h"
#include "compute/linalg.h"
#include "compute/memory.h"
#include "compute/ops.h"
#include "model/calib.h"
#include "model/gradient.h"
#include "model/kvsample.h"

typedef struct QuantJob QuantJob; /* 一次量化：模型、后端、校准数据、方法设置、记录 */

typedef struct Method {
    const char *name;       /* 与文件名、YAML 的 name 相同 */
    const char *tracks;     /* 支持的轨道，如 "ABC" */
    const Option *options;  /* 以 OPT_END 结尾；可为 NULL */
    size_t options_size;    /* 选项结构体的字节数 */
    bool calibrated;        /* 需要校准数据 */
    bool (*check)(const void *options, char track, Err *e); /* 设置之间的矛盾，打开实验时就查；可为 NULL */
    bool (*quantize)(QuantJob *job, Err *e);
} Method;

#define PTQ_METHOD(ident) const Method ptq_method_##ident

/* 填好的选项结构体（类型由方法的 options 决定）。 */
const void *job_options(const QuantJob *job);
/* 所在的轨道：'A'、'B' 或 'C'。 */
char job_track(const QuantJob *job);
Backend *job_backend(QuantJob *job);
/* 张量的数据（参数里的 w、统计、归一化、偏置、样本，以及 job_scratch、job_model_arena 的内存）都在后端的内存：
 * 方法只经 op_* 用它，要在主机上看或改时用 compute/memory.h 的映射（CPU 上不花什么，GPU 上复制）。
 * 只活到当前线性层（或块）结束的临时内存：后端的、主机的。 */
Arena *job_scratch(QuantJob *job);
Arena *job_host(QuantJob *job);
/* 与打包后的权重同寿命的内存：后端的、主机的。 */
Arena *job_model_arena(QuantJob *job);
Arena *job_model_host(QuantJob *job);
/* 在主机上并行执行 fn(ctx, 0..n-1)，各任务须互不相干（结果才与线程数无关），只碰主机内存与映射。 */
void job_parallel(QuantJob *job, int64_t n, void (*fn)(void *ctx, int64_t task), void *ctx);
/* 记录一次退让（阻尼升高、组宽不整除等），写入结果的「⚠️ fallback detected」；相同的只记一次。 */
void job_fallback(QuantJob *job, const char *fmt, ...) PTQ_PRINTF(2, 3);

/* 权重量化的共同选项：放进方法的选项结构体，选项行由 WEIGHT_OPTIONS 展开。 */
typedef struct WeightOptions {
    int64_t w_bits, group_size;
    int granularity, scheme, zero_point, scale_dtype, group_remainder;
} WeightOptions;
enum { PER_GROUP, PER_CHANNEL, PER_TENSOR }; /* granularity */
extern const char *const WEIGHT_GRANULARITY[], *const WEIGHT_SCHEME[], *const WEIGHT_POINT[],
    *const WEIGHT_SCALE[], *const WEIGHT_REMAINDER[];
#define WEIGHT_OPTIONS(T, f)                                                                       \
    OPT_INT(T, f.w_bits, "weight.w_bits", 4, 2, 8, "权重位宽"),                                    \
    OPT_INT(T, f.group_size, "weight.group_size", 128, -1, 65536,                                  \
            "每组的列数，-1 为整行一组；granularity 为 per_channel 时不用"),                       \
    OPT_ENUM(T, f.granularity, "weight.granularity", WEIGHT_GRANULARITY, 0,                        \
             "scale 的粒度：每组、每输出通道或整个矩阵"),                                                    \
    OPT_ENUM(T, f.scheme, "weight.scheme", WEIGHT_SCHEME, 0, "对称或非对称"),                      \
    OPT_ENUM(T, f.zero_point, "weight.zero_point", WEIGHT_POINT, 0, "非对称时零点取整或为实数"),   \
    OPT_ENUM(T, f.scale_dtype, "weight.scale_dtype", WEIGHT_SCALE, 0, "scale 的存放类型"),         \
    OPT_ENUM(T, f.group_remainder, "weight.group_remainder", WEIGHT_REMAINDER, 0,                  \
             "组宽不整除行长时：末组较短，或报错")
/* 供 Method.check：选项之间没有矛盾。integer_zero：方法的零点是整数。 */
bool check_weight_options(const WeightOptions *o, bool integer_zero, Err *e);
/* 由选项得到 cols 列的规格；组宽不整除时按选项报错，或末组较短并记为退让。 */
bool job_weight_spec(QuantJob *job, const WeightOptions *o, int64_t cols, QSpec *spec, Err *e);
/* 定 scale/zero（op_qparams）→ 就近取整装包到 q，内存来自 a（试算候选用）。 */
bool job_round_nearest(QuantJob *job, QTensor *q, Arena *a, Tensor w, const QSpec *spec, Err *e);
/* 同上，内存与模型同寿命，并换上。 */
bool job_quantize_nearest(QuantJob *job, Linear *l, Tensor w, const QSpec *spec, Err *e);

/* 激活量化的共同选项（轨道 B），用法同 WeightOptions。scheme 即 ActKind。 */
typedef struct ActOptions {
    int64_t a_bits;
    int scheme;
    bool bmm;
} ActOptions;
extern const char *const ACT_SCHEME[];
#define ACT_OPTIONS(T, f)                                                                          \
    OPT_INT(T, f.a_bits, "activation.a_bits", 8, 2, 8, "激活位宽"),                                \
    OPT_ENUM(T, f.scheme, "activation.scheme", ACT_SCHEME, 0,                                      \
             "激活的 scale：none 不量化；per_token、per_tensor 当场求；static 每层一个，由校准定"), \
    OPT_BOOL(T, f.bmm, "activation.quantize_bmm_input", 0,                                         \
             "q、k、v 的输出也取整（注意力两个矩阵乘的输入）")
/* 供 Method.check：激活也量化时，权重须是 8 位、整行一组、整数零点（op_linear_int8）。 */
bool check_act_options(const WeightOptions *w, const ActOptions *a, Err *e);
/* 同 job_weight_spec；激活也量化时对称的格点是 max|w|/127（SmoothQuant 官方代码 fake_quant.py）。 */
bool job_int8_spec(QuantJob *job, const WeightOptions *w, const ActOptions *a, int64_t cols,
                   QSpec *spec, Err *e);
/* 按选项设 l->act 与 l->out；存放形式须已换上。参数: in_max、out_max 是校准中输入、输出的最大绝对值，只在 static 用。
 * 错误: 这一层的存放形式不能用（零点不是整数）。 */
bool job_set_act(Linear *l, const ActOptions *o, float in_max, float out_max, Err *e);

/* hessian_factor；输入相同的线性层只分解一次，h 活到下一次分解。死列与阻尼升高记为退让。 */
bool job_factor_hessian(QuantJob *job, const Linear *l, const InputStats *st, bool descending,
                        double damp, Hessian *h, Err *e);
/* 按模型的 dtype 原样存放 w（不量化）。 */
bool job_keep_dense(QuantJob *job, Linear *l, Tensor w, Err *e);

/* 键值缓存量化的共同选项（轨道 C），用法同 WeightOptions。bits 是默认位宽。 */
typedef struct KvOptions {
    int64_t k_bits, v_bits, group_size, residual, sink;
    int scale_dtype, key_position;
} KvOptions;
extern const char *const KV_POSITION[], *const KV_SCALE[];
#define KV_OPTIONS(T, f, bits)                                                                     \
    OPT_INT(T, f.k_bits, "kv_cache.k_bits", bits, 1, 8, "键的位宽"),                               \
    OPT_INT(T, f.v_bits, "kv_cache.v_bits", bits, 1, 8, "值的位宽"),                               \
    OPT_INT(T, f.group_size, "kv_cache.group_size", 32, 1, 65536,                                  \
            "每组的通道数（在一个头之内），键按通道时是每组的 token 数"),                          \
    OPT_INT(T, f.residual, "kv_cache.residual_length", 128, 0, 1048576,                            \
            "最近的多少个 token 不量化"),                                                          \
    OPT_INT(T, f.sink, "kv_cache.sink_tokens", 0, 0, 1024, "开头的多少个 token 原样保存"),         \
    OPT_ENUM(T, f.scale_dtype, "kv_cache.scale_dtype", KV_SCALE, 0, "scale 与最小值的存放类型"),   \
    OPT_ENUM(T, f.key_position, "kv_cache.key_position", KV_POSITION, 0,                           \
             "量化 RoPE 之前还是之后的键；auto：k_proj 有偏置（如 Qwen2.5）时取之前并把偏置另放，"  \
             "否则之后")
/* 由选项得到两侧按组的仿射量化：值按 token；键按通道（keys_per_channel）或按 token。 */
bool job_kv_spec(QuantJob *job, const KvOptions *o, bool keys_per_channel, KvSpec *spec, Err *e);
/* 设第 layer 层（-1 为全部层）的键值缓存；其中的指针须与模型同寿命。错误: 组宽与残留窗口不合。 */
bool job_set_kv(QuantJob *job, int64_t layer, const KvSpec *spec, Err *e);
/* 权重不量化；依次对每层调用 fn（ctx 就是 job），给它校准集上的键、值与损失的梯度（KvSample），
 * fn 以 job_set_kv 设该层。方法须登记 calibrated。 */
bool quantize_each_cache(QuantJob *job, KvSampleFn *fn, Err *e);

/* 校准样本怎样流过各块。样本的隐藏状态停在下一块的输入处，一块一块往前推。 */
typedef enum {
    FLOW_QUANTIZED,  /* 统计取自量化前的本块，下一块的输入来自量化后的本块（GPTQ、SpQR） */
    FLOW_SEQUENTIAL, /* 同上，但块内按输入组依次：每组的统计来自前几组量化之后（GPTQ 的 true-sequential） */
    FLOW_ORIGINAL,   /* 全程未量化的模型（AWQ、SmoothQuant） */
    FLOW_BOTH        /* 输入来自量化后的流，另有原始流的块输出作目标（OmniQuant） */
} CalibFlow;

/* 处理一个线性层：w 是稠密权重 (rows,cols) f32，不可改写；st 是它的输入的统计（没有要则 NULL）。
 * 须以 linear_set_quantized 或 job_keep_dense 换上存放形式。 */
typedef bool (*LinearFn)(QuantJob *job, Linear *l, Tensor w, const InputStats *st, Err *e);
/* 依次对每个块的每个线性层调用 fn，再由存放形式反量化算出误差。错误带层名。
 * stats 为 StatKinds 的或；为 0 时不需要校准，flow 不用。 */
bool quantize_each_linear(QuantJob *job, unsigned stats, CalibFlow flow, LinearFn fn, Err *e);

/* 一个块，供跨线性层的方法。 */
typedef struct QuantBlock {
    int64_t layer;
    Linear *linears;             /* ROLE_COUNT 个；有校准时 q 暂为稠密形式，可以 forward */
    Tensor w[ROLE_COUNT];        /* 稠密 f32 (rows, cols)；只可作严格等价的折叠（乘除通道），误差对照返回时的它 */
    float *attn_norm, *mlp_norm; /* (hidden)，模型自己的，可就地折叠 */
    const InputStats *stats;     /* INPUT_COUNT 组；没有要则 NULL */
    const float *inputs;         /* (样本数·长度, hidden) 本块的输入；FLOW_ORIGINAL 时为 NULL */
    const float *targets;        /* 同形，原始流的块输出；只在 FLOW_BOTH */
    Model *model;                /* 供 attention_forward / mlp_forward */
    const CalibSet *calib;
} QuantBlock;
typedef bool (*BlockFn)(QuantJob *job, QuantBlock *b, Err *e);
/* 依次对每个块调用 fn；fn 须给每个线性层换上存放形式。flow 不可为 FLOW_SEQUENTIAL。 */
bool quantize_each_block(QuantJob *job, unsigned stats, CalibFlow flow, BlockFn fn, Err *e);
#endif
