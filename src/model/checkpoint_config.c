/* checkpoint_config — 读 quantization_config
 * 各键的意思以写出它的项目为准：AutoGPTQ / GPTQModel、AutoAWQ、compressed-tensors、transformers 的
 * BitsAndBytesConfig 与 HqqConfig。做不到的变体在这里就说清楚，不留到算错的时候。 */
#include "model/checkpoint_config.h"

#include <string.h>
#include <strings.h>

static const char *const NAMES[CKPT_KINDS] = {"gptq", "awq", "compressed-tensors", "bitsandbytes", "hqq"};

const char *checkpoint_name(CheckpointKind kind) {
    return NAMES[kind];
}

/* 组宽：-1 或不小于 1。 */
static bool read_group(const json_t *q, const char *name, int64_t *out, Err *e) {
    if (!json_get_int_or(q, name, "group_size", -1, -1, INT32_MAX, out, e)) return false;
    return *out != 0 || err_set(e, ERR_FORMAT, "%s: quantization_config 的 group_size 为 0", name);
}

static bool read_bits(const json_t *q, const char *name, const char *key, const char *allowed, int *out, Err *e) {
    int64_t bits;
    if (!json_get_int(q, name, key, 1, 16, &bits, e)) return false;
    *out = (int)bits;
    return (bits <= 9 && strchr(allowed, (int)('0' + bits))) ||
           err_set(e, ERR_UNSUPPORTED, "%s: quantization_config 的 %s 是 %d，这种格式支持的位宽：%s", name, key, *out,
                   allowed);
}

static bool parse_gptq(CheckpointConfig *c, const json_t *q, const char *name, Err *e) {
    const char *format;
    if (!read_bits(q, name, "bits", "2348", &c->bits, e) || !read_group(q, name, &c->group_size, e) ||
        !json_get_bool_or(q, name, "desc_act", false, &c->desc_act, e) ||
        !json_get_str_or(q, name, "checkpoint_format", "gptq", &format, e))
        return false;
    c->v1 = strcasecmp(format, "gptq_v2") != 0;
    return !c->v1 || strcasecmp(format, "gptq") == 0 || !*format ||
           err_set(e, ERR_UNSUPPORTED, "%s: gptq 的 checkpoint_format '%.40s' 不支持（支持 gptq 与 gptq_v2）", name,
                   format);
}

static bool parse_awq(CheckpointConfig *c, const json_t *q, const char *name, Err *e) {
    const char *version;
    const char *bits = json_object_get(q, "bits") ? "bits" : "w_bit", *group = "q_group_size";
    if (!read_bits(q, name, bits, "4", &c->bits, e) ||
        !json_get_str_or(q, name, "version", "gemm", &version, e))
        return false;
    if (strcasecmp(version, "gemm") != 0)
        return err_set(e, ERR_UNSUPPORTED, "%s: awq 的 version '%.40s' 不支持，只支持 gemm 排法", name, version);
    if (json_object_get(q, "group_size") || !json_object_get(q, group)) return read_group(q, name, &c->group_size, e);
    return json_get_int(q, name, group, 1, INT32_MAX, &c->group_size, e);
}

/* ---- compressed-tensors ---- */

static const char *text_at(const json_t *o, const char *key, const char *def) {
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : def;
}

/* 激活的量化：8 位的整数或 FP8。 */
static bool parse_act(CtScheme *s, const json_t *a, const char *name, Err *e) {
    if (!json_is_object(a)) return true;
    int64_t bits, group;
    bool symmetric, real = strcmp(text_at(a, "type", "int"), "float") == 0;
    if (!json_get_int_or(a, name, "num_bits", 8, 1, 16, &bits, e) ||
        !json_get_int_or(a, name, "group_size", 0, -1, INT32_MAX, &group, e) ||
        !json_get_bool_or(a, name, "symmetric", true, &symmetric, e))
        return false;
    const char *strategy = text_at(a, "strategy", "tensor");
    bool dynamic = json_is_true(json_object_get(a, "dynamic"));
    bool grouped = dynamic && group > 0 && strcmp(strategy, "group") == 0;
    bool token = (dynamic && strcmp(strategy, "token") == 0) || grouped, tensor = strcmp(strategy, "tensor") == 0;
    if (bits != 8 || !symmetric || !(token || tensor))
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: input_activations（%d 位%s、%s、strategy=%.20s、%s）不支持；支持 8 位（整数或 FP8）对称的"
                       "逐 token、逐组动态或逐张量",
                       name, (int)bits, real ? "浮点" : "", symmetric ? "对称" : "非对称", strategy,
                       dynamic ? "动态" : "静态");
    s->act = (ActQuant){.kind = token ? ACT_TOKEN : dynamic ? ACT_TENSOR : ACT_STATIC, .bits = 8,
                        .form = real ? ACT_F8 : grouped ? ACT_VALUES : ACT_INT, .group = grouped ? group : 0};
    return true;
}

static bool parse_block(CtScheme *s, const json_t *w, const char *name, Err *e) {
    const json_t *b = json_object_get(w, "block_structure");
    for (size_t i = 0; i < 2; i++) {
        s->block[i] = json_integer_value(json_array_get(b, i));
        if (json_array_size(b) != 2 || s->block[i] < 1 || s->block[i] > INT32_MAX)
            return err_set(e, ERR_FORMAT, "%s: block_structure 应为两个正整数", name);
    }
    return true;
}

static bool parse_scheme(CtScheme *s, const json_t *g, const char *name, Err *e) {
    const json_t *w = json_object_get(g, "weights");
    if (!json_is_object(w))
        return err_set(e, ERR_UNSUPPORTED, "%s: compressed-tensors 的一组没有 weights（只量化激活的不支持）", name);
    const char *strategy = text_at(w, "strategy", ""), *type = text_at(w, "type", "int");
    s->is_float = strcmp(type, "float") == 0;
    if (!read_bits(w, name, "num_bits", s->is_float ? "8" : "2345678", &s->bits, e) ||
        !json_get_bool_or(w, name, "symmetric", true, &s->symmetric, e) ||
        !json_get_int_or(w, name, "group_size", 0, -1, INT32_MAX, &s->group_size, e))
        return false;
    if (s->group_size < 0) s->group_size = 0;
    if (strcmp(strategy, "block") == 0 && !parse_block(s, w, name, e)) return false;
    static const char *const KNOWN[] = {"", "tensor", "channel", "group", "block"};
    bool known = false;
    for (size_t i = 0; i < sizeof KNOWN / sizeof *KNOWN; i++) known |= strcmp(strategy, KNOWN[i]) == 0;
    if (!known) return err_set(e, ERR_UNSUPPORTED, "%s: 权重的 strategy '%.40s' 不支持", name, strategy);
    return parse_act(s, json_object_get(g, "input_activations"), name, e);
}

static bool is_set(const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    return v && !json_is_null(v) && !(json_is_object(v) && json_object_size(v) == 0);
}

static bool parse_compressed(CheckpointConfig *c, const json_t *q, const char *name, Err *e) {
    static const char *const FORMATS[] = {"pack-quantized", "int-quantized", "float-quantized", "naive-quantized",
                                          "mixed-precision"};
    const char *format = text_at(q, "format", "pack-quantized");
    bool known = false;
    for (size_t i = 0; i < sizeof FORMATS / sizeof *FORMATS; i++) known |= strcmp(format, FORMATS[i]) == 0;
    if (!known)
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: compressed-tensors 的 format '%.40s' 不支持；支持 pack-quantized、int-quantized、float-quantized",
                       name, format);
    if (is_set(q, "kv_cache_scheme"))
        return err_set(e, ERR_UNSUPPORTED, "%s: 键值缓存也量化的（kv_cache_scheme）不支持", name);
    if (is_set(q, "transform_config"))
        return err_set(e, ERR_UNSUPPORTED, "%s: 带在线旋转的（transform_config）不支持", name);
    const char *sparsity = text_at(json_object_get(q, "sparsity_config"), "format", "dense");
    if (strcmp(sparsity, "dense") != 0)
        return err_set(e, ERR_UNSUPPORTED, "%s: 稀疏的（sparsity_config.format=%.40s）不支持", name, sparsity);
    json_t *groups = json_object_get(q, "config_groups"), *g;
    const char *key;
    if (!json_is_object(groups) || json_object_size(groups) == 0 || json_object_size(groups) > CT_MAX_SCHEMES)
        return err_set(e, ERR_FORMAT, "%s: config_groups 应有 1 到 %d 组", name, CT_MAX_SCHEMES);
    json_object_foreach(groups, key, g) {
        if (!parse_scheme(&c->scheme[c->n_schemes++], g, name, e))
            return err_wrap(e, "config_groups.%.40s", key);
    }
    return true;
}

/* 其余的设置都存在张量旁边。 */
static bool parse_bitsandbytes(CheckpointConfig *c, const json_t *q, const char *name, Err *e) {
    double threshold;
    if (!json_get_num_or(q, name, "llm_int8_threshold", 6, &threshold, e)) return false;
    c->threshold = (float)threshold;
    return (c->threshold >= 0 && c->threshold <= 65504) ||
           err_set(e, ERR_FORMAT, "%s: quantization_config 的 llm_int8_threshold 应在 0 到 65504 之间", name);
}

bool checkpoint_parse(CheckpointConfig *c, const json_t *q, const char *name, Err *e) {
    const char *method;
    *c = (CheckpointConfig){0};
    if (!json_is_object(q)) return err_set(e, ERR_FORMAT, "%s: quantization_config 应为对象", name);
    if (!json_get_str_or(q, name, "quant_method", "", &method, e)) return false;
    for (c->kind = 0; c->kind < CKPT_KINDS && strcasecmp(method, NAMES[c->kind]) != 0;) c->kind++;
    switch (c->kind) {
    case CKPT_GPTQ: return parse_gptq(c, q, name, e);
    case CKPT_AWQ: return parse_awq(c, q, name, e);
    case CKPT_COMPRESSED: return parse_compressed(c, q, name, e);
    case CKPT_BITSANDBYTES: return parse_bitsandbytes(c, q, name, e);
    case CKPT_HQQ: return true; /* 设置都存在张量旁边 */
    default: break;
    }
    c->kind = 0;
    return err_set(e, ERR_UNSUPPORTED,
                   "%s: 不认识的 quant_method '%.40s'；能评测的已量化检查点：gptq、awq、compressed-tensors、bitsandbytes、hqq",
                   name, method);
}
