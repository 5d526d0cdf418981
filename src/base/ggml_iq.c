/* ggml_iq — GGUF 的码本类型（IQ1…IQ4）、三值类型（TQ）与四位浮点（MXFP4、NVFP4）
 * IQ 类型把 8（或 4）个元素一起编成码本中的一项：元素 = 比例 × 码本值 × 符号。
 * 7 位的符号以第 8 位凑成偶数个负号。 */
#include "base/ggml_blocks.h"

static const float LEVELS2[4] = {8, 25, 43, 0};                       /* IQ2 */
static const float LEVELS3[8] = {4, 12, 20, 28, 36, 44, 52, 62};      /* IQ3_XXS */
static const float LEVELS1[4] = {-1, 0, 1, 0};                        /* IQ1 */
static const float LEVELS4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113}; /* IQ4 */
static const float FP4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}; /* 两倍 */

static uint8_t even_signs(uint32_t seven) {
    uint32_t x = seven ^ seven >> 4;
    x ^= x >> 2;
    return (uint8_t)(seven | ((x ^ x >> 1) & 1) << 7);
}

static float with_sign(float v, uint8_t signs, int i) {
    return signs >> i & 1 ? -v : v;
}

/* 8 个元素：码本的一项（2 位一个）、比例、符号。 */
static void put8(float *y, uint16_t entry, float scale, uint8_t signs) {
    for (int i = 0; i < 8; i++)
        y[i] = with_sign(scale * LEVELS2[entry >> 2 * i & 3], signs, i);
}

static void decode_iq2_xxs(const uint8_t *b, float *y) {
    float d = ggml_half(b);
    for (int g = 0; g < 8; g++) { /* 32 个元素：4 个下标，4 个 7 位符号与 4 位比例 */
        const uint8_t *q = b + 2 + 8 * g;
        uint32_t aux = ggml_u32(q + 4);
        float scale = d * (0.5f + (float)(aux >> 28)) * 0.25f;
        for (int k = 0; k < 4; k++)
            put8(y + 32 * g + 8 * k, GGML_GRID_IQ2XXS[q[k]], scale, even_signs(aux >> 7 * k & 127));
    }
}

static void decode_iq2_xs(const uint8_t *b, float *y) {
    float d = ggml_half(b);
    for (int k = 0; k < 32; k++) {
        uint16_t q = ggml_u16(b + 2 + 2 * k);
        int s = b[66 + k / 4] >> 4 * (k / 2 % 2) & 15;
        float scale = d * (0.5f + (float)s) * 0.25f;
        put8(y + 8 * k, GGML_GRID_IQ2XS[q & 511], scale, even_signs(q >> 9));
    }
}

static void decode_iq2_s(const uint8_t *b, float *y) {
    float d = ggml_half(b);
    const uint8_t *low = b + 2, *signs = b + 34, *high = b + 66, *scales = b + 74;
    for (int k = 0; k < 32; k++) {
        int s = scales[k / 4] >> 4 * (k / 2 % 2) & 15;
        int index = low[k] | (high[k / 4] >> 2 * (k % 4) & 3) << 8;
        put8(y + 8 * k, GGML_GRID_IQ2S[index], d * (0.5f + (float)s) * 0.25f, signs[k]);
    }
}

static void decode_iq3_xxs(const uint8_t *b, float *y) {
    float d = ggml_half(b);
    for (int g = 0; g < 8; g++) {
        const uint8_t *q = b + 2 + 8 * g;
        uint32_t aux = ggml_u32(b + 66 + 4 * g);
        float scale = d * (0.5f + (float)(aux >> 28)) * 0.5f;
        for (int i = 0; i < 32; i++) {
            float v = scale * LEVELS3[GGML_GRID_IQ3XXS[q[i / 4]] >> 4 * (i % 4) & 7];
            y[32 * g + i] = with_sign(v, even_signs(aux >> 7 * (i / 8) & 127), i % 8);
        }
    }
}

static void decode_iq3_s(const uint8_t *b, float *y) {
    float d = ggml_half(b);
    const uint8_t *low = b + 2, *high = b + 66, *signs = b + 74, *scales = b + 106;
    for (int i = 0; i < 256; i++) {
        int k = i / 4, g = i / 32;
        int index = low[k] | (high[k / 8] >> k % 8 & 1) << 8;
        int level = 1 + 2 * (GGML_GRID_IQ3S[index] >> 4 * (i % 4) & 7);
        float scale = d * (float)(1 + 2 * (scales[g / 2] >> 4 * (g % 2) & 15));
        y[i] = with_sign(scale * (float)level, signs[i / 8], i % 8);
    }
}

/* IQ1：元素 = 比例 × (码本值 ± 1/8)。 */
static void put1(float *y, int index, float scale, bool negative) {
    float delta = negative ? -0.125f : 0.125f;
    for (int i = 0; i < 8; i++)
        y[i] = scale * (LEVELS1[GGML_GRID_IQ1S[index] >> 2 * i & 3] + delta);
}

static void decode_iq1_s(const uint8_t *b, float *y) {
    float d = ggml_half(b);
    for (int k = 0; k < 32; k++) {
        uint16_t h = ggml_u16(b + 34 + 2 * (k / 4));
        int index = b[2 + k] | (h >> 3 * (k % 4) & 7) << 8;
        put1(y + 8 * k, index, d * (float)(2 * (h >> 12 & 7) + 1), h & 0x8000);
    }
}

/* IQ1_M 的 f16 比例拆在 4 个 16 位字的最高 4 位里。 */
static void decode_iq1_m(const uint8_t *b, float *y) {
    uint16_t half = 0;
    for (int i = 0; i < 4; i++) half |= (uint16_t)((ggml_u16(b + 48 + 2 * i) >> 12) << 4 * i);
    float d = f16_to_f32(half);
    for (int k = 0; k < 32; k++) {
        int s = ggml_u16(b + 48 + 2 * (k / 8)) >> 3 * (k / 2 % 4) & 7;
        int h = b[32 + k / 2] >> 4 * (k % 2) & 15;
        put1(y + 8 * k, b[k] | (h & 7) << 8, d * (float)(2 * s + 1), h & 8);
    }
}

static void decode_iq4_nl(const uint8_t *b, float *y) {
    float d = ggml_half(b);
    for (int i = 0; i < 16; i++) {
        y[i] = d * LEVELS4[b[2 + i] & 15];
        y[i + 16] = d * LEVELS4[b[2 + i] >> 4];
    }
}

static void decode_iq4_xs(const uint8_t *b, float *y) {
    float d = ggml_half(b);
    uint16_t high = ggml_u16(b + 2);
    for (int g = 0; g < 8; g++) {
        int s = (b[4 + g / 2] >> 4 * (g % 2) & 15) | (high >> 2 * g & 3) << 4;
        float dl = d * (float)(s - 32);
        const uint8_t *q = b + 8 + 16 * g;
        for (int i = 0; i < 16; i++) {
            y[32 * g + i] = dl * LEVELS4[q[i] & 15];
            y[32 * g + i + 16] = dl * LEVELS4[q[i] >> 4];
        }
    }
}

/* 三值：一个字节装 5 个（3 进制的小数），取第 k 位。 */
static float trit(uint8_t q, int k) {
    static const uint8_t POW3[5] = {1, 3, 9, 27, 81};
    return (float)(((uint8_t)(q * POW3[k]) * 3 >> 8) - 1);
}

static void decode_tq1_0(const uint8_t *b, float *y) {
    float d = ggml_half(b + 52);
    for (int k = 0; k < 5; k++)
        for (int i = 0; i < 32; i++) y[32 * k + i] = d * trit(b[i], k);
    for (int k = 0; k < 5; k++)
        for (int i = 0; i < 16; i++) y[160 + 16 * k + i] = d * trit(b[32 + i], k);
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 4; i++) y[240 + 4 * k + i] = d * trit(b[48 + i], k);
}

static void decode_tq2_0(const uint8_t *b, float *y) {
    float d = ggml_half(b + 64);
    for (int i = 0; i < 256; i++)
        y[i] = d * (float)((b[i / 128 * 32 + i % 32] >> 2 * (i % 128 / 32) & 3) - 1);
}

/* 比例是 8 位的指数（2 的幂，减半以配合两倍的 FP4）。 */
static void decode_mxfp4(const uint8_t *b, float *y) {
    union { uint32_t u; float f; } d;
    d.u = b[0] < 2 ? 0x00200000u << b[0] : (uint32_t)(b[0] - 1) << 23;
    for (int i = 0; i < 16; i++) {
        y[i] = d.f * FP4[b[1 + i] & 15];
        y[i + 16] = d.f * FP4[b[1 + i] >> 4];
    }
}

/* 无符号的 E4M3（偏移 7），同样减半；0x7F 作 0。 */
static float ue4m3_half(uint8_t x) {
    int e = x >> 3 & 15, m = x & 7;
    if (x == 0x7F) return 0;
    union { uint32_t u; float f; } power = {.u = (uint32_t)(e + 120) << 23};
    return (e ? (1.0f + (float)m / 8.0f) * power.f : (float)m * 0x1p-9f) * 0.5f;
}

static void decode_nvfp4(const uint8_t *b, float *y) {
    for (int g = 0; g < 4; g++) {
        float d = ue4m3_half(b[g]);
        for (int i = 0; i < 8; i++) {
            uint8_t q = b[4 + 8 * g + i];
            y[16 * g + i] = d * FP4[q & 15];
            y[16 * g + i + 8] = d * FP4[q >> 4];
        }
    }
}

BlockDecode ggml_iq_decoder(DType t) {
    switch (t) {
    case DT_IQ1_S: return decode_iq1_s;
    case DT_IQ1_M: return decode_iq1_m;
    case DT_IQ2_XXS: return decode_iq2_xxs;
    case DT_IQ2_XS: return decode_iq2_xs;
    case DT_IQ2_S: return decode_iq2_s;
    case DT_IQ3_XXS: return decode_iq3_xxs;
    case DT_IQ3_S: return decode_iq3_s;
    case DT_IQ4_NL: return decode_iq4_nl;
    case DT_IQ4_XS: return decode_iq4_xs;
    case DT_TQ1_0: return decode_tq1_0;
    case DT_TQ2_0: return decode_tq2_0;
    case DT_MXFP4: return decode_mxfp4;
    case DT_NVFP4: return decode_nvfp4;
    default: return NULL;
    }
}
