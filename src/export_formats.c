/* export_formats — 各格式里一个线性层怎样写
 * gptq：AutoGPTQ 的 qweight、qzeros、scales、g_idx。awq：AutoAWQ 的 gemm 排法。compressed-tensors：vLLM 与
 * llm-compressor 的 pack-quantized（只量化权重）与 int-quantized（W8A8）。hf-dequantized：反量化成普通的权重。
 * 位的排法都以各项目装入的代码为准；docs/export.md 有说明。 */
#include <string.h>

#include "export.h"

static int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

static int64_t n_groups(const Linear *l) {
    return l->q.n_groups;
}

static bool is_permuted(const Linear *l) {
    return l->q.perm != NULL;
}

/* 各格式共同的要求：一级的整数零点、没有离群值。 */
static bool check_plain(const Linear *l, const char *format, Err *e) {
    const QTensor *q = &l->q;
    const char *why = q->outliers.start                        ? "有离群值"
                      : q->two.scale_bits || q->two.zero_bits  ? "缩放与零点是两级量化的"
                      : q->spec.zero == ZERO_FLOAT             ? "零点是实数"
                                                               : NULL;
    if (!why) return true;
    return err_set(e, ERR_UNSUPPORTED, "%s: %s 格式放不下（%s）；请改用 --format hf-dequantized", l->name, format,
                   why);
}

static bool check_bits(const Linear *l, const char *format, const char *bits, Err *e) {
    if (strchr(bits, '0' + l->q.spec.bits)) return true;
    return err_set(e, ERR_UNSUPPORTED, "%s: %s 格式没有 %d 位（可用的位宽：%s）", l->name, format, l->q.spec.bits, bits);
}

static bool check_dense_act(const Linear *l, const char *format, Err *e) {
    if (l->act.kind == ACT_NONE) return true;
    return err_set(e, ERR_UNSUPPORTED, "%s: 激活也量化了，%s 格式放不下；请改用 --format compressed-tensors", l->name,
                   format);
}

static uint16_t *put_f16(const float *x, int64_t rows, int64_t cols, bool transposed, uint16_t *dst) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++)
            dst[transposed ? c * rows + r : r * cols + c] = f32_to_f16(x[r * cols + c]);
    return dst;
}

/* ---- gptq：AutoGPTQ，checkpoint_format gptq_v2（零点原样存，不减一） ---- */

static bool gptq_check(const Linear *l, Err *e) {
    if (!check_plain(l, "gptq", e) || !check_bits(l, "gptq", "2348", e) || !check_dense_act(l, "gptq", e))
        return false;
    if (l->cols % 32 || l->rows % 32)
        return err_set(e, ERR_UNSUPPORTED, "%s: gptq 格式要求行列都是 32 的倍数，实为 %lld×%lld", l->name,
                       (long long)l->rows, (long long)l->cols);
    return true;
}

static int gptq_parts(const Linear *l, ExportPart *out) {
    int64_t words = l->cols * l->q.spec.bits / 32, zeros = l->rows * l->q.spec.bits / 32;
    out[0] = (ExportPart){0, ".qweight", DT_I32, 2, {words, l->rows}};
    out[1] = (ExportPart){1, ".qzeros", DT_I32, 2, {n_groups(l), zeros}};
    out[2] = (ExportPart){2, ".scales", DT_F16, 2, {n_groups(l), l->rows}};
    out[3] = (ExportPart){3, ".g_idx", DT_I32, 1, {l->cols, 0}};
    return 4;
}

/* n 个 bits 位的数从低位起连着排进 u32，相邻两个字在 dst 里相距 step；跨字的数拆开（3 位）。 */
static void pack_stream(uint32_t *dst, int64_t step, int64_t n, int bits, const uint8_t *code) {
    uint64_t word = 0;
    int have = 0;
    for (int64_t i = 0; i < n; i++) {
        word |= (uint64_t)code[i] << have;
        for (have += bits; have >= 32; have -= 32, word >>= 32, dst += step) *dst = (uint32_t)word;
    }
    if (have) *dst = (uint32_t)word;
}

/* 第 g 组各行的零点连着排，相邻两个字相距 step。 */
static void pack_zeros(uint32_t *dst, int64_t step, const PackedLinear *p, int64_t g) {
    uint8_t zeros[32];
    for (int64_t r = 0; r < p->rows; r += 32, dst += step * p->bits) {
        int64_t n = p->rows - r < 32 ? p->rows - r : 32;
        for (int64_t i = 0; i < n; i++) zeros[i] = (uint8_t)p->zero[(r + i) * p->n_groups + g];
        pack_stream(dst, step, n, p->bits, zeros);
    }
}

static void gptq_fill(const PackedLinear *p, int kind, void *dst) {
    uint32_t *word = dst;
    switch (kind) {
    case 0:
        for (int64_t r = 0; r < p->rows; r++)
            pack_stream(word + r, p->rows, p->cols, p->bits, p->code + r * p->cols);
        break;
    case 1:
        for (int64_t g = 0; g < p->n_groups; g++) pack_zeros(word + g * (p->rows * p->bits / 32), 1, p, g);
        break;
    case 2: put_f16(p->scale, p->rows, p->n_groups, true, dst); break;
    default: memcpy(dst, p->group, (size_t)p->cols * sizeof *p->group);
    }
}

static json_t *gptq_config(const Model *m, const Linear *first) {
    (void)m;
    const QSpec *s = &first->q.spec;
    int64_t group = first->q.n_groups == 1 ? -1 : s->group_size;
    return json_pack("{s:s, s:i, s:I, s:b, s:b, s:s, s:b}", "quant_method", "gptq", "bits", s->bits, "group_size",
                     (json_int_t)group, "desc_act", is_permuted(first), "sym", s->zero == ZERO_SYM,
                     "checkpoint_format", "gptq_v2", "true_sequential", 0);
}

/* ---- awq：AutoAWQ 的 gemm 排法 ---- */

static bool awq_check(const Linear *l, Err *e) {
    if (!check_plain(l, "awq", e) || !check_bits(l, "awq", "4", e) || !check_dense_act(l, "awq", e)) return false;
    const QTensor *q = &l->q;
    if (is_permuted(l))
        return err_set(e, ERR_UNSUPPORTED, "%s: awq 格式没有 act-order；请改用 --format gptq", l->name);
    if (l->rows % 8 || l->cols % q->spec.group_size)
        return err_set(e, ERR_UNSUPPORTED, "%s: awq 格式要求行数是 8 的倍数、组宽整除列数，实为 %lld×%lld、组宽 %lld", l->name,
                       (long long)l->rows, (long long)l->cols, (long long)q->spec.group_size);
    return true;
}

static int awq_parts(const Linear *l, ExportPart *out) {
    out[0] = (ExportPart){0, ".qweight", DT_I32, 2, {l->cols, l->rows / 8}};
    out[1] = (ExportPart){1, ".qzeros", DT_I32, 2, {n_groups(l), l->rows / 8}};
    out[2] = (ExportPart){2, ".scales", DT_F16, 2, {n_groups(l), l->rows}};
    return 3;
}

/* 8 个输出一个字，低位起依次是第 0 2 4 6 1 3 5 7 个。 */
static uint32_t awq_word(const int *eight) {
    static const int ORDER[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    uint32_t w = 0;
    for (int i = 0; i < 8; i++) w |= (uint32_t)eight[ORDER[i]] << (4 * i);
    return w;
}

static void awq_fill(const PackedLinear *p, int kind, void *dst) {
    uint32_t *word = dst;
    int eight[8];
    if (kind == 2) {
        put_f16(p->scale, p->rows, p->n_groups, true, dst);
        return;
    }
    int64_t n = kind == 0 ? p->cols : p->n_groups;
    for (int64_t i = 0; i < n; i++)
        for (int64_t r = 0; r < p->rows; r += 8) {
            for (int k = 0; k < 8; k++)
                eight[k] = kind == 0 ? p->code[(r + k) * p->cols + i] : (int)p->zero[(r + k) * p->n_groups + i];
            *word++ = awq_word(eight);
        }
}

static json_t *awq_config(const Model *m, const Linear *first) {
    (void)m;
    return json_pack("{s:s, s:i, s:I, s:b, s:s, s:n}", "quant_method", "awq", "bits", first->q.spec.bits,
                     "group_size", (json_int_t)first->q.spec.group_size, "zero_point", 1, "version", "gemm",
                     "modules_to_not_convert");
}

/* ---- compressed-tensors ---- */

/* 张量的种类；ct_parts 按层的形式选几种，ExportPart.kind 记着是哪一种。 */
enum { CT_INT8, CT_PACKED, CT_SCALE_F16, CT_SCALE_F32, CT_SHAPE, CT_GROUPS, CT_ZEROS };

static bool is_int_quantized(const Linear *l) {
    return l->act.kind != ACT_NONE;
}

static bool ct_check(const Linear *l, Err *e) {
    if (!check_plain(l, "compressed-tensors", e) || !check_bits(l, "compressed-tensors", "248", e)) return false;
    const QTensor *q = &l->q;
    if (l->out.kind != ACT_NONE)
        return err_set(e, ERR_UNSUPPORTED, "%s: compressed-tensors 格式放不下注意力 BMM 的量化", l->name);
    if (is_int_quantized(l) && (l->act.kind != ACT_TOKEN || l->act.form != ACT_INT || l->act.bits != 8 || q->spec.zero != ZERO_SYM))
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: compressed-tensors 格式的 W8A8 只写得下对称的权重与逐 token 动态的 8 位激活", l->name);
    if (q->n_groups > 1 && l->cols % q->spec.group_size)
        return err_set(e, ERR_UNSUPPORTED, "%s: compressed-tensors 格式要求组宽 %lld 整除列数 %lld", l->name,
                       (long long)q->spec.group_size, (long long)l->cols);
    return true;
}

static int ct_parts(const Linear *l, ExportPart *out) {
    int n = 0;
    DType scale = l->q.spec.scale_dtype;
    out[n++] = is_int_quantized(l)
                   ? (ExportPart){CT_INT8, ".weight", DT_I8, 2, {l->rows, l->cols}}
                   : (ExportPart){CT_PACKED, ".weight_packed", DT_I32, 2,
                                  {l->rows, ceil_div(l->cols * l->q.spec.bits, 32)}};
    out[n++] = (ExportPart){scale == DT_F16 ? CT_SCALE_F16 : CT_SCALE_F32, ".weight_scale", scale, 2, {l->rows, n_groups(l)}};
    if (is_int_quantized(l)) return n;
    out[n++] = (ExportPart){CT_SHAPE, ".weight_shape", DT_I64, 1, {2, 0}};
    if (is_permuted(l)) out[n++] = (ExportPart){CT_GROUPS, ".weight_g_idx", DT_I32, 1, {l->cols, 0}};
    if (l->q.spec.zero != ZERO_SYM)
        out[n++] = (ExportPart){CT_ZEROS, ".weight_zero_point", DT_I32, 2,
                                {ceil_div(l->rows * l->q.spec.bits, 32), n_groups(l)}};
    return n;
}

/* 编码减 2^(bits−1) 成有号数，装包时又加回，故位就是编码本身：每行（零点每组）从低位起连着排。 */
static void ct_fill(const PackedLinear *p, int kind, void *dst) {
    int64_t words = ceil_div(p->cols * p->bits, 32);
    int64_t shape[2] = {p->rows, p->cols};
    switch (kind) {
    case CT_INT8:
        for (int64_t i = 0; i < p->rows * p->cols; i++) ((int8_t *)dst)[i] = (int8_t)(p->code[i] - 128);
        break;
    case CT_PACKED:
        for (int64_t r = 0; r < p->rows; r++)
            pack_stream((uint32_t *)dst + r * words, 1, p->cols, p->bits, p->code + r * p->cols);
        break;
    case CT_SCALE_F16: put_f16(p->scale, p->rows, p->n_groups, false, dst); break;
    case CT_SCALE_F32: memcpy(dst, p->scale, (size_t)(p->rows * p->n_groups) * sizeof *p->scale); break;
    case CT_SHAPE: memcpy(dst, shape, sizeof shape); break;
    case CT_GROUPS: memcpy(dst, p->group, (size_t)p->cols * sizeof *p->group); break;
    case CT_ZEROS:
        for (int64_t g = 0; g < p->n_groups; g++)
            pack_zeros((uint32_t *)dst + g, p->n_groups, p, g);
        break;
    }
}

static json_t *ct_quant(int bits, const char *strategy, bool dynamic, bool symmetric) {
    return json_pack("{s:i, s:s, s:b, s:s, s:b}", "num_bits", bits, "type", "int", "symmetric", symmetric, "strategy",
                     strategy, "dynamic", dynamic);
}

/* 没有量化的线性层（skip_layers 等）与头。 */
static json_t *ct_ignored(const Model *m) {
    json_t *a = json_array();
    for (int64_t i = 0; i < m->config.n_layers; i++)
        for (int64_t k = 0; k < m->blocks[i].n_linears; k++) {
            const Linear *l = &m->blocks[i].linears[k];
            if (l->rows && l->q.dense != DT_NONE) json_array_append_new(a, json_string(l->name));
        }
    json_array_append_new(a, json_string("lm_head"));
    return a;
}

static json_t *ct_config(const Model *m, const Linear *first) {
    const QSpec *s = &first->q.spec;
    bool grouped = first->q.n_groups > 1;
    json_t *weights = ct_quant(s->bits, grouped ? "group" : "channel", false, s->zero == ZERO_SYM);
    if (grouped) json_object_set_new(weights, "group_size", json_integer(s->group_size));
    if (is_permuted(first)) json_object_set_new(weights, "actorder", json_string("group"));
    json_t *inputs = is_int_quantized(first) ? ct_quant(8, "token", true, true) : json_null();
    return json_pack("{s:s, s:s, s:s, s:{s:{s:[s], s:o, s:o, s:n}}, s:o, s:n}", "quant_method", "compressed-tensors",
                     "format", is_int_quantized(first) ? "int-quantized" : "pack-quantized", "quantization_status",
                     "compressed", "config_groups", "group_0", "targets", "Linear", "weights", weights,
                     "input_activations", inputs, "output_activations", "ignore", ct_ignored(m), "kv_cache_scheme");
}

/* ---- hf-dequantized ---- */

static bool dense_check(const Linear *l, Err *e) {
    return check_dense_act(l, "hf-dequantized", e);
}

/* 张量由 export.c 反量化写出。 */
static int dense_parts(const Linear *l, ExportPart *out) {
    out[0] = (ExportPart){0, ".weight", DT_F32, 2, {l->rows, l->cols}};
    return 1;
}

const ExportFormat EXPORT_FORMATS[] = {
    {"gptq", "AutoGPTQ / GPTQModel / vLLM（2、3、4、8 位）", gptq_check, gptq_parts, gptq_fill, gptq_config, true},
    {"awq", "AutoAWQ / vLLM（4 位）", awq_check, awq_parts, awq_fill, awq_config, true},
    {"compressed-tensors", "vLLM / transformers（2、4、8 位；W8A8）", ct_check, ct_parts, ct_fill, ct_config, false},
    {"hf-dequantized", "反量化成普通的 float32 权重，任何工具都能读", dense_check, dense_parts, NULL, NULL, true},
};
const size_t N_EXPORT_FORMATS = sizeof EXPORT_FORMATS / sizeof *EXPORT_FORMATS;
