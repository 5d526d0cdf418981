/* checkpoint_config — config.json 的 quantization_config：已量化的检查点是哪一种格式、怎样设置
 * 只读设置；各线性层是不是真的装了包、形状对不对，由 checkpoint.c 对着张量查。 */
#ifndef PTQ_MODEL_CHECKPOINT_CONFIG_H
#define PTQ_MODEL_CHECKPOINT_CONFIG_H
#include "compute/qtensor.h"
#include "io/json.h"

typedef enum {
    CKPT_GPTQ, CKPT_AWQ, CKPT_COMPRESSED, CKPT_BITSANDBYTES, CKPT_HQQ, CKPT_KINDS
} CheckpointKind;

/* compressed-tensors 的一组（config_groups 的一项）。 */
typedef struct CtScheme {
    int bits;
    bool is_float, symmetric;
    int64_t group_size; /* 0：没有给（整行或整个张量） */
    int64_t block[2];   /* strategy=block：一块的行数与列数；否则为 0 */
    ActQuant act;       /* 激活也取整；没有则 ACT_NONE */
} CtScheme;
enum { CT_MAX_SCHEMES = 8 };

typedef struct CheckpointConfig {
    CheckpointKind kind;
    int bits;           /* gptq、awq */
    int64_t group_size; /* gptq、awq；-1 为整行 */
    bool v1;            /* gptq：零点减一存的（checkpoint_format 不是 gptq_v2） */
    bool desc_act;
    CtScheme scheme[CT_MAX_SCHEMES];
    int n_schemes;
    float threshold; /* bitsandbytes：LLM.int8 的离群值的门槛 */
} CheckpointConfig;

/* 名字，如 "gptq"；方法名是 "pretrained:" 加它。 */
const char *checkpoint_name(CheckpointKind kind);
/* 由 quantization_config 的对象 q 填写。参数: name 用于错误信息（通常是 config.json 的路径）。
 * 错误: 不认识的 quant_method（列出支持的）、缺少或越界的设置、不支持的变体。 */
bool checkpoint_parse(CheckpointConfig *c, const json_t *q, const char *name, Err *e);
#endif
