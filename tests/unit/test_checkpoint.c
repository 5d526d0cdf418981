/* test_checkpoint — 已量化的检查点：每种格式按它的公式造一个极小的模型，装入后反量化，与双精度的公式逐个相比
 * 造的一侧独立于读的一侧（逐位写进字里）；坏的文件（缺张量、类型或形状不对、组号越界……）须报出张量与原因。 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/str.h"
#include "compute/ops.h"
#include "model/checkpoint.h"
#include "tmp.h"

enum { VOCAB = 32, HIDDEN = 64, FF = 96, Q = 64, KV = 32, MODULES = 7, MOST = 192 * 96 };

typedef enum { GPTQ, AWQ, CT_PACKED, CT_INT8, CT_FP8, NF4, NF4_NESTED, INT8, HQQ } Kind;

/* 一个检查点怎样造。 */
typedef struct Case {
    Kind kind;
    int bits, group;
    bool v2, symmetric, permuted, fused; /* fused：phi3 */
    const char *config;                  /* quantization_config 的内容 */
    char detail;                         /* 各格式的变体 */
} Case;

/* 对 k_proj（融合的则 qkv_proj）的一个张量动手脚。 */
typedef struct Damage {
    const char *suffix;
    enum { NONE, DROP, RETYPE, RESHAPE, POKE } how;
    uint32_t value;
} Damage;

typedef struct Writer {
    Str header, data;
    Damage damage;
} Writer;

static const struct {
    const char *name;
    int rows, cols;
} LLAMA[MODULES] = {{"self_attn.q_proj", Q, HIDDEN}, {"self_attn.k_proj", KV, HIDDEN}, {"self_attn.v_proj", KV, HIDDEN},
                    {"self_attn.o_proj", HIDDEN, Q}, {"mlp.gate_proj", FF, HIDDEN}, {"mlp.up_proj", FF, HIDDEN},
                    {"mlp.down_proj", HIDDEN, FF}},
  PHI3[4] = {{"self_attn.qkv_proj", Q + 2 * KV, HIDDEN}, {"self_attn.o_proj", HIDDEN, Q},
             {"mlp.gate_up_proj", 2 * FF, HIDDEN}, {"mlp.down_proj", HIDDEN, FF}};

static double expected[MODULES][MOST];

/* ---- 写 ---- */

static void add(Writer *w, const char *module, const char *suffix, const char *dtype, int rows, int cols,
                const void *data, size_t bytes) {
    bool hit = w->damage.how && strcmp(w->damage.suffix, suffix) == 0 && (strstr(module, ".k_proj") || strstr(module, "qkv"));
    if (hit && w->damage.how == DROP) return;
    size_t begin = w->data.len;
    str_addn(&w->data, data, bytes);
    if (hit && w->damage.how == POKE) memcpy(w->data.data + begin, &w->damage.value, 4);
    if (hit && w->damage.how == RETYPE)
        dtype = strcmp(dtype, "I32") == 0 ? "F32" : strcmp(dtype, "F32") == 0 ? "I32" : strcmp(dtype, "F16") == 0 ? "I16" : "BOOL";
    if (hit && w->damage.how == RESHAPE && rows % 2 == 0) rows /= 2, cols = cols ? cols * 2 : 2;
    str_addf(&w->header, "%s\"%s%s\":{\"dtype\":\"%s\",\"shape\":[", w->header.len > 1 ? "," : "", module, suffix, dtype);
    if (rows) str_addf(&w->header, "%d", rows);
    if (cols) str_addf(&w->header, ",%d", cols);
    str_addf(&w->header, "],\"data_offsets\":[%zu,%zu]}", begin, w->data.len);
}

static void put_bits(void *words, long bit, int bits, int value) {
    for (int b = 0; b < bits; b++, bit++)
        if (value >> b & 1) ((uint8_t *)words)[bit / 8] |= (uint8_t)(1 << bit % 8);
}

static int code_at(const Case *k, int r, int c) {
    return (r * 7 + c * 13 + r * c) % (1 << k->bits);
}
static int zero_at(const Case *k, int r, int g) {
    return k->symmetric ? 1 << (k->bits - 1) : (r + 3 * g) % (1 << k->bits);
}
static float scale_at(int r, int g) {
    return f16_to_f32(f32_to_f16(0.01f + 0.001f * (float)((5 * r + 3 * g) % 17)));
}
/* 第 c 列在哪一组。 */
static int group_of(const Case *k, int c, int cols) {
    return (k->permuted ? (c * 35 + 7) % cols : c) / k->group;
}
static void set_expected(const Case *k, int m, int rows, int cols) {
    for (int i = 0; i < rows * cols; i++) {
        int r = i / cols, c = i % cols, g = group_of(k, c, cols);
        expected[m][i] = (double)scale_at(r, g) * (code_at(k, r, c) - zero_at(k, r, g));
    }
}

/* (组, rows) 或 (rows, 组) 的缩放，半精度。 */
static void add_scales(Writer *w, const char *module, const char *suffix, int rows, int ng, bool by_group) {
    uint16_t s[MOST];
    for (int i = 0; i < rows * ng; i++)
        s[i] = f32_to_f16(by_group ? scale_at(i % rows, i / rows) : scale_at(i / ng, i % ng));
    add(w, module, suffix, "F16", by_group ? ng : rows, by_group ? rows : ng, s, (size_t)(rows * ng) * 2);
}

static void add_gptq(Writer *w, const Case *k, const char *module, int m, int rows, int cols) {
    int ng = (cols - 1) / k->group + 1, b = k->bits, words = cols * b / 32;
    static uint32_t q[MOST];
    uint32_t column[256], z[MOST] = {0};
    int32_t g_idx[256];
    for (int r = 0; r < rows; r++) {
        memset(column, 0, sizeof column);
        for (int c = 0; c < cols; c++) put_bits(column, (long)c * b, b, code_at(k, r, c));
        for (int i = 0; i < words; i++) q[i * rows + r] = column[i];
    }
    for (int g = 0; g < ng; g++) {
        uint32_t *row = z + g * (rows * b / 32);
        for (int r = 0; r < rows; r++)
            put_bits(row, (long)r * b, b, (zero_at(k, r, g) - (b == 3 && !k->v2)) & ((1 << b) - 1));
        for (int i = 0; !k->v2 && b != 3 && i < rows * b / 32; i++) /* 整字减，借位进相邻的数 */
            row[i] -= b == 2 ? 0x55555555u : b == 4 ? 0x11111111u : 0x01010101u;
    }
    for (int c = 0; c < cols; c++) g_idx[c] = group_of(k, c, cols);
    add(w, module, ".qweight", "I32", words, rows, q, (size_t)(words * rows) * 4);
    add(w, module, ".qzeros", "I32", ng, rows * b / 32, z, (size_t)(ng * rows * b / 32) * 4);
    add_scales(w, module, ".scales", rows, ng, true);
    if (k->permuted || k->detail == 'g') add(w, module, ".g_idx", "I32", cols, 0, g_idx, (size_t)cols * 4);
    set_expected(k, m, rows, cols);
}

static void add_awq(Writer *w, const Case *k, const char *module, int m, int rows, int cols) {
    static const int AT[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    int ng = cols / k->group;
    uint32_t q[MOST / 8] = {0}, z[MOST / 8] = {0};
    for (int c = 0; c < cols; c++)
        for (int r = 0; r < rows; r++) q[c * (rows / 8) + r / 8] |= (uint32_t)code_at(k, r, c) << 4 * AT[r % 8];
    for (int g = 0; g < ng; g++)
        for (int r = 0; r < rows; r++) z[g * (rows / 8) + r / 8] |= (uint32_t)zero_at(k, r, g) << 4 * AT[r % 8];
    add(w, module, ".qweight", "I32", cols, rows / 8, q, (size_t)(cols * rows / 8) * 4);
    add(w, module, ".qzeros", "I32", ng, rows / 8, z, (size_t)(ng * rows / 8) * 4);
    add_scales(w, module, ".scales", rows, ng, true);
    set_expected(k, m, rows, cols);
}

static void add_ct_packed(Writer *w, const Case *k, const char *module, int m, int rows, int cols) {
    int ng = (cols - 1) / k->group + 1, b = k->bits, words = (cols * b + 31) / 32, zw = (rows * b + 31) / 32;
    static uint32_t q[MOST];
    uint32_t z[MOST] = {0}, column[64];
    int64_t shape[2] = {rows, cols};
    int32_t g_idx[256];
    memset(q, 0, sizeof q);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) put_bits(q + r * words, (long)c * b, b, code_at(k, r, c));
    for (int g = 0; g < ng; g++) {
        memset(column, 0, sizeof column);
        for (int r = 0; r < rows; r++) put_bits(column, (long)r * b, b, zero_at(k, r, g));
        for (int i = 0; i < zw; i++) z[i * ng + g] = column[i];
    }
    for (int c = 0; c < cols; c++) g_idx[c] = group_of(k, c, cols);
    add(w, module, ".weight_packed", "I32", rows, words, q, (size_t)(rows * words) * 4);
    add(w, module, ".weight_shape", "I64", 2, 0, shape, sizeof shape);
    add_scales(w, module, ".weight_scale", rows, ng, false);
    if (!k->symmetric) add(w, module, ".weight_zero_point", "I32", zw, ng, z, (size_t)(zw * ng) * 4);
    if (k->permuted) add(w, module, ".weight_g_idx", "I32", cols, 0, g_idx, (size_t)cols * 4);
    set_expected(k, m, rows, cols);
}

/* int-quantized：detail 's' 另有静态的激活缩放，'z' 非对称。 */
static void add_ct_int8(Writer *w, const Case *k, const char *module, int m, int rows, int cols) {
    int8_t q[MOST], z[256];
    float in = 0.05f;
    int half = 1 << (k->bits - 1);
    for (int i = 0; i < rows * cols; i++) q[i] = (int8_t)(code_at(k, i / cols, i % cols) - half);
    for (int r = 0; r < rows; r++) z[r] = (int8_t)(zero_at(k, r, 0) - half);
    add(w, module, ".weight", "I8", rows, cols, q, (size_t)(rows * cols));
    add_scales(w, module, ".weight_scale", rows, (cols - 1) / k->group + 1, false);
    if (k->detail == 's') add(w, module, ".input_scale", "F32", 1, 0, &in, 4);
    if (k->detail == 'z') add(w, module, ".weight_zero_point", "I8", rows, 1, z, (size_t)rows);
    set_expected(k, m, rows, cols);
}

/* FP8 的值，由它的定义算：detail '5' 是 e5m2。 */
static double f8_value(int code, bool e5m2) {
    int bits = e5m2 ? 2 : 3, exp = (code & 127) >> bits, man = code & ((1 << bits) - 1), bias = e5m2 ? 15 : 7;
    double v = exp ? ldexp(1 + man / (double)(1 << bits), exp - bias) : ldexp(man / (double)(1 << bits), 1 - bias);
    return code & 128 ? -v : v;
}

/* float-quantized：detail 't' 整个张量一个缩放，'b' 分块（32×16），'5' e5m2，其余每行一个。 */
static void add_ct_fp8(Writer *w, const Case *k, const char *module, int m, int rows, int cols) {
    uint8_t q[MOST];
    bool e5m2 = k->detail == '5', block = k->detail == 'b', tensor = k->detail == 't';
    float s[MOST];
    for (int i = 0; i < rows * cols; i++) {
        int code = code_at(k, i / cols, i % cols);
        if ((code & 127) >= (e5m2 ? 124 : 127)) code -= 8; /* 不要 NaN、Inf */
        int r = block ? i / cols / 32 : tensor ? 0 : i / cols, g = block ? i % cols / 16 : 0;
        q[i] = (uint8_t)code;
        expected[m][i] = (double)scale_at(r, g) * f8_value(code, e5m2);
    }
    int n = block ? rows / 32 : tensor ? 1 : rows, ng = block ? cols / 16 : 1;
    for (int i = 0; i < n * ng; i++) s[i] = scale_at(i / ng, i % ng);
    add(w, module, ".weight", e5m2 ? "F8_E5M2" : "F8_E4M3", rows, cols, q, (size_t)(rows * cols));
    add(w, module, ".weight_scale", "F32", tensor ? 0 : n, tensor ? 0 : ng, s, (size_t)(n * ng) * 4);
}

static float table_at(int i, int n) {
    return (float)(2.0 * i / (n - 1) - 1) * (0.5f + 0.5f * fabsf((float)(2.0 * i / (n - 1) - 1)));
}

/* bitsandbytes 4 位：块长 64，摊平数；嵌套时每 8 块一个外层缩放。detail 'f' 是 fp4。 */
static void add_nf4(Writer *w, const Case *k, const char *module, int m, int rows, int cols) {
    enum { BLOCK = 64, NESTED = 8 };
    int n = rows * cols, blocks = (n - 1) / BLOCK + 1, outer = (blocks - 1) / NESTED + 1;
    uint8_t q[MOST / 2] = {0}, code[MOST / BLOCK];
    float map[16], nested_map[256], absmax[MOST / BLOCK], outer_max[MOST];
    bool nested = k->kind == NF4_NESTED;
    double offset = 0.03125;
    for (int i = 0; i < 16; i++) map[i] = table_at(i, 16);
    for (int i = 0; i < 256; i++) nested_map[i] = table_at(i, 256);
    for (int i = 0; i < outer; i++) outer_max[i] = scale_at(i, 1);
    for (int i = 0; i < blocks; i++) code[i] = (uint8_t)(i * 37), absmax[i] = scale_at(i, 2);
    for (int i = 0; i < n; i++) {
        int c = code_at(k, i / cols, i % cols), b = i / BLOCK;
        q[i / 2] |= (uint8_t)(c << (i % 2 ? 0 : 4));
        double scale = nested ? (double)nested_map[code[b]] * (double)outer_max[b / NESTED] + offset : (double)absmax[b];
        expected[m][i] = scale * (double)map[c];
    }
    char state[256];
    snprintf(state, sizeof state, "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"float32\", \"shape\": [%d, %d]%s}", rows,
             cols, nested ? ", \"nested_blocksize\": 8, \"nested_dtype\": \"float32\", \"nested_offset\": 0.03125" : "");
    add(w, module, ".weight", "U8", n / 2, 1, q, (size_t)n / 2);
    if (nested) {
        add(w, module, ".weight.absmax", "U8", blocks, 0, code, (size_t)blocks);
        add(w, module, ".weight.nested_absmax", "F32", outer, 0, outer_max, (size_t)outer * 4);
        add(w, module, ".weight.nested_quant_map", "F32", 256, 0, nested_map, sizeof nested_map);
    } else {
        add(w, module, ".weight.absmax", "F32", blocks, 0, absmax, (size_t)blocks * 4);
    }
    add(w, module, ".weight.quant_map", "F32", 16, 0, map, sizeof map);
    add(w, module, k->detail == 'f' ? ".weight.quant_state.bitsandbytes__fp4" : ".weight.quant_state.bitsandbytes__nf4", "U8",
        (int)strlen(state), 0, state, strlen(state));
}

static void add_int8(Writer *w, const Case *k, const char *module, int m, int rows, int cols) {
    int8_t q[MOST];
    float scb[256];
    uint8_t format = 0;
    for (int r = 0; r < rows; r++) scb[r] = 127 * scale_at(r, 0);
    for (int i = 0; i < rows * cols; i++) {
        q[i] = (int8_t)(code_at(k, i / cols, i % cols) - 128);
        expected[m][i] = (double)q[i] * (double)scb[i / cols] / 127;
    }
    add(w, module, ".weight", "I8", rows, cols, q, (size_t)(rows * cols));
    add(w, module, ".SCB", "F32", rows, 0, scb, (size_t)rows * 4);
    add(w, module, ".weight_format", "U8", 0, 0, &format, 1);
}

/* HQQ：(组数, 组宽) 的码沿第 0 维分段叠起来；3 位十段叠在 32 位里，末段补零。 */
static void add_hqq(Writer *w, const Case *k, const char *module, int m, int rows, int cols) {
    int n = rows * cols, all = n / k->group, b = k->bits, per = b == 3 ? 10 : 8 / b, steps = (all + per - 1) / per;
    static uint32_t q[MOST];
    uint8_t bytes[MOST];
    float s[MOST], z[MOST];
    int32_t nbits = b, group = k->group, axis = k->detail == '0' ? 0 : 1;
    memset(q, 0, sizeof q);
    for (int i = 0; i < n; i++) {
        int row = i / k->group, at = row % steps * k->group + i % k->group;
        s[row] = scale_at(row, 0);
        z[row] = 0.25f + (float)(row % 5);
        q[at] |= (uint32_t)code_at(k, i / cols, i % cols) << b * (per - 1 - row / steps);
        expected[m][i] = (double)s[row] * (code_at(k, i / cols, i % cols) - (double)z[row]);
    }
    for (int i = 0; i < steps * k->group; i++) bytes[i] = (uint8_t)q[i];
    if (b == 3)
        add(w, module, ".W_q", "I32", steps, k->group, q, (size_t)(steps * k->group) * 4);
    else
        add(w, module, ".W_q", "U8", steps, k->group, bytes, (size_t)(steps * k->group));
    add(w, module, ".scale", "F32", all, 1, s, (size_t)all * 4);
    add(w, module, ".zero", "F32", all, 1, z, (size_t)all * 4);
    add(w, module, ".nbits", "I32", 0, 0, &nbits, 4);
    add(w, module, ".group_size", "I32", 0, 0, &group, 4);
    add(w, module, ".axis", "I32", 0, 0, &axis, 4);
    add(w, module, ".packing", "U8", 7, 0, "4bit_u8", 7);
}

static void (*const ADD[])(Writer *, const Case *, const char *, int, int, int) = {
    add_gptq, add_awq, add_ct_packed, add_ct_int8, add_ct_fp8, add_nf4, add_nf4, add_int8, add_hqq};

static void add_plain(Writer *w, const char *name, int rows, int cols) {
    float x[VOCAB * HIDDEN];
    for (int i = 0; i < rows * (cols ? cols : 1); i++) x[i] = sinf((float)i);
    add(w, name, "", "F32", rows, cols, x, (size_t)(rows * (cols ? cols : 1)) * 4);
}

static const char *make(const Case *k, Damage damage) {
    static char dir[1024];
    char text[2048], path[1200];
    Writer w = {.damage = damage};
    Str file = {0};
    snprintf(dir, sizeof dir, "%s", tmp_path("model"));
    assert_true(file_mkdirs(dir, NULL));
    snprintf(text, sizeof text,
             "{\"model_type\": \"%s\", \"num_hidden_layers\": 1, \"hidden_size\": 64, \"intermediate_size\": 96,"
             " \"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"vocab_size\": 32, \"rms_norm_eps\": 1e-5,"
             " \"max_position_embeddings\": 64, \"tie_word_embeddings\": true, \"quantization_config\": {%s}}",
             k->fused ? "phi3" : "llama", k->config);
    snprintf(path, sizeof path, "%s/config.json", dir);
    tmp_write(path, text, strlen(text));
    str_add(&w.header, "{");
    for (int i = 0; i < (k->fused ? 4 : MODULES); i++) {
        char name[128];
        snprintf(name, sizeof name, "model.layers.0.%s", k->fused ? PHI3[i].name : LLAMA[i].name);
        ADD[k->kind](&w, k, name, i, k->fused ? PHI3[i].rows : LLAMA[i].rows, k->fused ? PHI3[i].cols : LLAMA[i].cols);
    }
    add_plain(&w, "model.embed_tokens.weight", VOCAB, HIDDEN);
    add_plain(&w, "model.norm.weight", HIDDEN, 0);
    add_plain(&w, "model.layers.0.input_layernorm.weight", HIDDEN, 0);
    add_plain(&w, "model.layers.0.post_attention_layernorm.weight", HIDDEN, 0);
    str_add(&w.header, "}");
    uint64_t n = w.header.len;
    str_addn(&file, (const char *)&n, 8);
    str_addn(&file, w.header.data, w.header.len);
    str_addn(&file, w.data.data, w.data.len);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    tmp_write(path, file.data, file.len);
    str_free(&file);
    str_free(&w.header);
    str_free(&w.data);
    return dir;
}

/* ---- 读 ---- */

static bool open_model(Model *m, Backend *b, const char *dir, Err *e) {
    assert_true(backend_open_cpu(b, 2, COMPUTE_F32, NULL, e));
    bool ok = model_open(m, dir, DT_NONE, b, e);
    if (ok && !model_finish(m, e)) {
        model_close(m);
        ok = false;
    }
    if (!ok) backend_close(b);
    return ok;
}

/* 线性层在哪个模块里、从哪一行起。 */
static const double *expect_of(const Case *k, const Linear *l) {
    static const int MODULE[] = {0, 0, 0, 1, 2, 2, 3}, ROW[] = {0, Q, Q + KV, 0, 0, FF, 0};
    if (!k->fused) return expected[l->role];
    return expected[MODULE[l->role]] + ROW[l->role] * l->cols;
}

static void check_case(const Case *k) {
    Model m;
    Backend b;
    Err e = {0};
    Damage none = {.how = NONE};
    float w[MOST];
    if (!open_model(&m, &b, make(k, none), &e)) fail_msg("%s（%d 位）: %s", k->config, k->bits, e.msg);
    assert_int_equal(m.dtype, DT_F32);
    for (int i = 0; i < MODULES; i++) {
        const Linear *l = &m.blocks[0].linears[i];
        const double *want = expect_of(k, l);
        assert_true(l->packed && l->q.dense == DT_NONE && l->q.spec.bits == k->bits);
        op_dequantize(&b, tensor_f32(w, l->rows, l->cols), &l->q);
        assert_true(backend_check(&b, &e));
        for (int64_t j = 0; j < l->rows * l->cols; j++)
            if (!(fabs((double)w[j] - want[j]) <= 4e-7 * fabs(want[j]) + 1e-8))
                fail_msg("%s（%d 位，%c）%s[%lld]: %.9g，应为 %.9g", k->config, k->bits, k->detail ? k->detail : '-', l->name,
                         (long long)j, (double)w[j], want[j]);
        if (k->symmetric && (k->kind == GPTQ || k->kind == CT_PACKED)) assert_int_equal(l->q.zero_bytes, 0);
        assert_true((l->q.perm != NULL) == (k->permuted && k->group < l->cols));
    }
    ModelBytes bytes = model_bytes(&m);
    assert_true(bytes.codes >= (size_t)(bytes.linear_params * k->bits / 8) && bytes.scales > 0);
    model_close(&m);
    backend_close(&b);
}

#define GPTQ_CONFIG(b, g, f) "\"quant_method\": \"gptq\", \"bits\": " #b ", \"group_size\": " #g ", \"checkpoint_format\": \"" f "\""
#define CT_CONFIG(format, w, act)                                                                              \
    "\"quant_method\": \"compressed-tensors\", \"format\": \"" format "\", \"ignore\": [\"lm_head\"],"            \
    " \"config_groups\": {\"group_0\": {\"targets\": [\"Linear\"], \"weights\": {" w "}, \"input_activations\": " act "}}"
#define CT_INT(b, sym, group) "\"num_bits\": " #b ", \"type\": \"int\", \"symmetric\": " sym ", \"strategy\": \"group\", \"group_size\": " #group
#define BNB "\"quant_method\": \"bitsandbytes\""
#define HQQ_CONFIG "\"quant_method\": \"hqq\", \"quant_config\": {}"
#define AWQ_CONFIG "\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 32, \"version\": \"gemm\", \"zero_point\": true"
#define INT8_WEIGHTS "\"num_bits\": 8, \"type\": \"int\", \"symmetric\": true, \"strategy\": \"channel\""
#define FP8_WEIGHTS(s) "\"num_bits\": 8, \"type\": \"float\", \"symmetric\": true, \"strategy\": \"" s "\""
#define TOKEN_ACT "{\"num_bits\": 8, \"type\": \"int\", \"symmetric\": true, \"strategy\": \"token\", \"dynamic\": true}"
#define STATIC_ACT "{\"num_bits\": 8, \"type\": \"int\", \"symmetric\": true, \"strategy\": \"tensor\", \"dynamic\": false}"

static void test_gptq(void **state) {
    (void)state;
    static const Case CASES[] = {
        {.kind = GPTQ, .bits = 2, .group = 32, .config = GPTQ_CONFIG(2, 32, "gptq")},
        {.kind = GPTQ, .bits = 3, .group = 32, .config = GPTQ_CONFIG(3, 32, "gptq")},
        {.kind = GPTQ, .bits = 4, .group = 32, .config = GPTQ_CONFIG(4, 32, "gptq"), .detail = 'g'},
        {.kind = GPTQ, .bits = 8, .group = 32, .config = GPTQ_CONFIG(8, 32, "gptq")},
        {.kind = GPTQ, .bits = 3, .group = 64, .v2 = true, .config = GPTQ_CONFIG(3, 64, "gptq_v2"), .permuted = true},
        {.kind = GPTQ, .bits = 4, .group = 16, .v2 = true, .config = GPTQ_CONFIG(4, 16, "gptq_v2"), .permuted = true},
        {.kind = GPTQ, .bits = 4, .group = 32, .symmetric = true, .config = GPTQ_CONFIG(4, 32, "gptq")},
        {.kind = GPTQ, .bits = 4, .group = 1000000, .config = GPTQ_CONFIG(4, -1, "gptq")},
        {.kind = GPTQ, .bits = 4, .group = 1000000, .config = GPTQ_CONFIG(4, 2000000000, "gptq")}, /* 大于列数即整行 */
        {.kind = GPTQ, .bits = 4, .group = 32, .config = GPTQ_CONFIG(4, 32, "gptq"), .fused = true},
        {.kind = AWQ, .bits = 4, .group = 32, .config = AWQ_CONFIG},
        {.kind = AWQ, .bits = 4, .group = 32, .config = AWQ_CONFIG, .fused = true},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) check_case(&CASES[i]);
}

static void test_compressed(void **state) {
    (void)state;
    static const Case CASES[] = {
        {.kind = CT_PACKED, .bits = 4, .group = 32, .symmetric = true,
         .config = CT_CONFIG("pack-quantized", CT_INT(4, "true", 32), "null")},
        {.kind = CT_PACKED, .bits = 4, .group = 16, .config = CT_CONFIG("pack-quantized", CT_INT(4, "false", 16), "null")},
        {.kind = CT_PACKED, .bits = 3, .group = 32, .config = CT_CONFIG("pack-quantized", CT_INT(3, "false", 32), "null")},
        {.kind = CT_PACKED, .bits = 8, .group = 32, .config = CT_CONFIG("pack-quantized", CT_INT(8, "false", 32), "null")},
        {.kind = CT_PACKED, .bits = 4, .group = 32, .permuted = true,
         .config = CT_CONFIG("pack-quantized", CT_INT(4, "false", 32), "null")},
        {.kind = CT_PACKED, .bits = 4, .group = 32, .fused = true,
         .config = CT_CONFIG("pack-quantized", CT_INT(4, "false", 32), "null")},
        {.kind = CT_INT8, .bits = 8, .group = 1000, .symmetric = true, .config = CT_CONFIG("int-quantized", INT8_WEIGHTS, TOKEN_ACT)},
        {.kind = CT_INT8, .bits = 8, .group = 1000, .symmetric = true, .detail = 's',
         .config = CT_CONFIG("int-quantized", INT8_WEIGHTS, STATIC_ACT)},
        {.kind = CT_INT8, .bits = 4, .group = 32, .symmetric = true, .config = CT_CONFIG("int-quantized", CT_INT(4, "true", 32), TOKEN_ACT)},
        {.kind = CT_INT8, .bits = 8, .group = 1000, .detail = 'z', .config = CT_CONFIG("int-quantized", INT8_WEIGHTS, "null")},
        {.kind = CT_FP8, .bits = 8, .group = 1000, .config = CT_CONFIG("float-quantized", FP8_WEIGHTS("channel"), "null")},
        {.kind = CT_FP8, .bits = 8, .group = 1000, .detail = 't', .config = CT_CONFIG("float-quantized", FP8_WEIGHTS("tensor"), "null")},
        {.kind = CT_FP8, .bits = 8, .group = 1000, .detail = '5', .config = CT_CONFIG("float-quantized", FP8_WEIGHTS("channel"), "null")},
        {.kind = CT_FP8, .bits = 8, .group = 16, .detail = 'b', .fused = true,
         .config = CT_CONFIG("float-quantized", FP8_WEIGHTS("block") ", \"block_structure\": [32, 16]", "null")},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) check_case(&CASES[i]);
}

static void test_others(void **state) {
    (void)state;
    static const Case CASES[] = {
        {.kind = NF4, .bits = 4, .group = 64, .config = BNB},
        {.kind = NF4, .bits = 4, .group = 64, .config = BNB, .detail = 'f', .fused = true},
        {.kind = NF4_NESTED, .bits = 4, .group = 64, .config = BNB},
        {.kind = NF4_NESTED, .bits = 4, .group = 64, .config = BNB, .fused = true},
        {.kind = INT8, .bits = 8, .group = 1000, .config = BNB},
        {.kind = HQQ, .bits = 2, .group = 64, .config = HQQ_CONFIG},
        {.kind = HQQ, .bits = 3, .group = 64, .config = HQQ_CONFIG},
        {.kind = HQQ, .bits = 4, .group = 32, .config = HQQ_CONFIG, .fused = true},
        {.kind = HQQ, .bits = 8, .group = 64, .config = HQQ_CONFIG},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) check_case(&CASES[i]);
}

#define ACT(type, strategy, dynamic, more)                                                                    \
    "{\"num_bits\": 8, \"type\": \"" type "\", \"symmetric\": true, \"strategy\": \"" strategy "\", \"dynamic\": " dynamic more "}"

/* 激活怎样取整由检查点定。 */
static void test_activations(void **state) {
    (void)state;
    static const struct {
        Case k;
        ActQuant act;
        const char *scheme, *codes;
    } CASES[] = {
        {{.kind = CT_INT8, .bits = 8, .group = 1000, .symmetric = true, .detail = 's', .config = CT_CONFIG("int-quantized", INT8_WEIGHTS, STATIC_ACT)},
         {.kind = ACT_STATIC, .bits = 8, .scale = 0.05f}, "static", "int8"},
        {{.kind = CT_PACKED, .bits = 4, .group = 32, .config = CT_CONFIG("pack-quantized", CT_INT(4, "false", 32), TOKEN_ACT)},
         {.kind = ACT_TOKEN, .bits = 8, .form = ACT_VALUES}, "per_token", "int8"},
        {{.kind = CT_FP8, .bits = 8, .group = 1000, .config = CT_CONFIG("float-quantized", FP8_WEIGHTS("channel"), ACT("float", "token", "true", ""))},
         {.kind = ACT_TOKEN, .bits = 8, .form = ACT_F8}, "per_token", "fp8_e4m3"},
        {{.kind = CT_FP8, .bits = 8, .group = 1000, .config = CT_CONFIG("float-quantized", FP8_WEIGHTS("channel"), ACT("float", "tensor", "true", ""))},
         {.kind = ACT_TENSOR, .bits = 8, .form = ACT_F8}, "per_tensor", "fp8_e4m3"},
        {{.kind = CT_FP8, .bits = 8, .group = 1000, .config = CT_CONFIG("float-quantized", FP8_WEIGHTS("channel"), ACT("float", "group", "true", ", \"group_size\": 32"))},
         {.kind = ACT_TOKEN, .bits = 8, .form = ACT_F8, .group = 32}, "per_token", "fp8_e4m3"},
        {{.kind = INT8, .bits = 8, .group = 1000, .config = BNB},
         {.kind = ACT_TENSOR, .bits = 8, .form = ACT_MIXED, .threshold = 6}, "per_tensor", "llm_int8"},
        {{.kind = INT8, .bits = 8, .group = 1000, .config = BNB ", \"llm_int8_threshold\": 3.5"},
         {.kind = ACT_TENSOR, .bits = 8, .form = ACT_MIXED, .threshold = 3.5f}, "per_tensor", "llm_int8"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        Model m;
        Backend b;
        Err e = {0};
        if (!open_model(&m, &b, make(&CASES[i].k, (Damage){.how = NONE}), &e)) fail_msg("%s", e.msg);
        const ActQuant *a = &m.blocks[0].linears[0].act, *want = &CASES[i].act;
        assert_true(a->kind == want->kind && a->bits == want->bits && a->scale == want->scale);
        assert_true(a->form == want->form && a->group == want->group && a->threshold == want->threshold);
        json_t *o = checkpoint_json(&m);
        assert_string_equal(json_string_value(json_object_get(o, "activation.scheme")), CASES[i].scheme);
        assert_string_equal(json_string_value(json_object_get(o, "activation.codes")), CASES[i].codes);
        json_decref(o);
        assert_int_equal(checkpoint_note(&m) != NULL, want->form == ACT_MIXED);
        model_close(&m);
        backend_close(&b);
    }
}

static void expect_error(const Case *k, Damage d, ErrCode code, const char *part) {
    Model m;
    Backend b;
    Err e = {0};
    if (open_model(&m, &b, make(k, d), &e)) fail_msg("没有报错：%s %s", k->config, d.suffix ? d.suffix : "");
    if (e.code != code || !strstr(e.msg, part))
        fail_msg("期望 %s 与 '%s'，得到 %s: %s", err_code_name(code), part, err_code_name(e.code), e.msg);
}

static void test_damaged(void **state) {
    (void)state;
    static const Case GOOD[] = {
        {.kind = GPTQ, .bits = 4, .group = 32, .permuted = true, .config = GPTQ_CONFIG(4, 32, "gptq")},
        {.kind = AWQ, .bits = 4, .group = 32, .config = AWQ_CONFIG},
        {.kind = CT_PACKED, .bits = 4, .group = 32, .config = CT_CONFIG("pack-quantized", CT_INT(4, "false", 32), "null")},
        {.kind = CT_FP8, .bits = 8, .group = 1000, .config = CT_CONFIG("float-quantized", FP8_WEIGHTS("channel"), "null")},
        {.kind = NF4_NESTED, .bits = 4, .group = 64, .config = BNB},
        {.kind = INT8, .bits = 8, .group = 1000, .config = BNB},
        {.kind = HQQ, .bits = 4, .group = 64, .config = HQQ_CONFIG},
        {.kind = CT_INT8, .bits = 4, .group = 32, .symmetric = true, .config = CT_CONFIG("int-quantized", CT_INT(4, "true", 32), "null")},
    };
    static const struct {
        int good;
        Damage d;
        ErrCode code;
        const char *part;
    } BAD[] = {
        {0, {".scales", DROP, 0}, ERR_MISSING, "k_proj.scales"},
        {0, {".qzeros", DROP, 0}, ERR_MISSING, "k_proj.qzeros"},
        {0, {".qweight", DROP, 0}, ERR_MISSING, "k_proj"},
        {0, {".qweight", RETYPE, 0}, ERR_FORMAT, "类型是 F32"},
        {0, {".scales", RESHAPE, 0}, ERR_FORMAT, "形状是 [1, 64]"},
        {0, {".scales", POKE, 0x7C007C00}, ERR_NUMERIC, "不是有限的数"},
        {0, {".g_idx", POKE, 9}, ERR_FORMAT, "组号（g_idx）是 9"},
        {0, {".g_idx", POKE, 0xFFFFFFFF}, ERR_FORMAT, "组号（g_idx）是 -1"},
        {0, {".g_idx", POKE, 1}, ERR_FORMAT, "多于组宽"},
        {1, {".scales", DROP, 0}, ERR_MISSING, "k_proj.scales"},
        {1, {".qzeros", RESHAPE, 0}, ERR_FORMAT, "qzeros"},
        {2, {".weight_scale", DROP, 0}, ERR_MISSING, "weight_scale"},
        {2, {".weight_scale", RESHAPE, 0}, ERR_FORMAT, "weight_scale"},
        {2, {".weight_zero_point", DROP, 0}, ERR_MISSING, "weight_zero_point"},
        {2, {".weight_zero_point", RESHAPE, 0}, ERR_FORMAT, "weight_zero_point"},
        {2, {".weight_shape", POKE, 77}, ERR_FORMAT, "weight_shape"},
        {2, {".weight_packed", RESHAPE, 0}, ERR_FORMAT, "k_proj"},
        {3, {".weight", POKE, 0x7F}, ERR_NUMERIC, "不是有限的数"},
        {3, {".weight_scale", RETYPE, 0}, ERR_FORMAT, "weight_scale"},
        {4, {".weight.absmax", DROP, 0}, ERR_FORMAT, "k_proj.weight"},
        {4, {".weight.quant_map", DROP, 0}, ERR_MISSING, "quant_map"},
        {4, {".weight.nested_absmax", DROP, 0}, ERR_MISSING, "nested_absmax"},
        {4, {".weight.nested_quant_map", RESHAPE, 0}, ERR_FORMAT, "nested_quant_map"},
        {4, {".weight.quant_state.bitsandbytes__nf4", POKE, 0x20202020}, ERR_FORMAT, "bitsandbytes__nf4"},
        {5, {".SCB", DROP, 0}, ERR_MISSING, "SCB"},
        {5, {".weight_format", RETYPE, 0}, ERR_FORMAT, "weight_format"},
        {6, {".scale", DROP, 0}, ERR_MISSING, "k_proj.scale"},
        {6, {".group_size", POKE, 0}, ERR_FORMAT, "group_size"},
        {6, {".group_size", POKE, 0x7FFFFFFF}, ERR_FORMAT, "group_size"},
        {6, {".nbits", POKE, 1}, ERR_UNSUPPORTED, "nbits"},
        {6, {".nbits", POKE, 8}, ERR_FORMAT, "W_q"},
        {6, {".axis", POKE, 0}, ERR_UNSUPPORTED, "axis=0"},
        {7, {".weight", POKE, 0x08}, ERR_FORMAT, "超出 4 位"},
    };
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) expect_error(&GOOD[BAD[i].good], BAD[i].d, BAD[i].code, BAD[i].part);
}

static void test_bad_config(void **state) {
    (void)state;
    static const struct {
        const char *config;
        ErrCode code;
        const char *part;
    } BAD[] = {
        {"\"quant_method\": \"quip\"", ERR_UNSUPPORTED, "gptq、awq、compressed-tensors、bitsandbytes、hqq"},
        {"\"bits\": 4", ERR_UNSUPPORTED, "quant_method"},
        {"\"quant_method\": \"gptq\"", ERR_FORMAT, "bits"},
        {"\"quant_method\": 7", ERR_FORMAT, "quant_method"},
        {GPTQ_CONFIG(5, 32, "gptq"), ERR_UNSUPPORTED, "2348"},
        {GPTQ_CONFIG(4, 0, "gptq"), ERR_FORMAT, "group_size"},
        {GPTQ_CONFIG(4, -2, "gptq"), ERR_FORMAT, "group_size"},
        {GPTQ_CONFIG(4, 16, "gptq"), ERR_FORMAT, "scales"}, /* 与张量不符 */
        {GPTQ_CONFIG(8, 32, "gptq"), ERR_FORMAT, "qweight"},
        {GPTQ_CONFIG(4, 32, "marlin"), ERR_UNSUPPORTED, "marlin"},
        {"\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 32, \"version\": \"gemv\"", ERR_UNSUPPORTED, "gemv"},
        {"\"quant_method\": \"compressed-tensors\", \"format\": \"nvfp4-pack-quantized\"", ERR_UNSUPPORTED, "nvfp4"},
        {"\"quant_method\": \"compressed-tensors\", \"config_groups\": {}", ERR_FORMAT, "config_groups"},
        {CT_CONFIG("pack-quantized", CT_INT(4, "true", 32), "null") ", \"kv_cache_scheme\": {\"num_bits\": 8}", ERR_UNSUPPORTED,
         "kv_cache_scheme"},
        {CT_CONFIG("pack-quantized", "\"num_bits\": 12", "null"), ERR_UNSUPPORTED, "num_bits"},
        {CT_CONFIG("int-quantized", INT8_WEIGHTS, "{\"num_bits\": 4}"), ERR_UNSUPPORTED, "input_activations"},
        {CT_CONFIG("int-quantized", INT8_WEIGHTS, ACT("float", "group", "true", "")), ERR_UNSUPPORTED, "strategy=group"},
        {CT_CONFIG("int-quantized", INT8_WEIGHTS, ACT("float", "group", "false", ", \"group_size\": 32")), ERR_UNSUPPORTED, "静态"},
        {BNB ", \"llm_int8_threshold\": -1", ERR_FORMAT, "llm_int8_threshold"},
        {BNB ", \"llm_int8_threshold\": \"6\"", ERR_FORMAT, "llm_int8_threshold"},
    };
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        Case k = {.kind = GPTQ, .bits = 4, .group = 32, .config = BAD[i].config};
        expect_error(&k, (Damage){.how = NONE}, BAD[i].code, BAD[i].part);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gptq),        cmocka_unit_test(test_compressed), cmocka_unit_test(test_others),
        cmocka_unit_test(test_activations), cmocka_unit_test(test_damaged),    cmocka_unit_test(test_bad_config),
    };
    return cmocka_run_group_tests(tests, tmp_make, tmp_done);
}
