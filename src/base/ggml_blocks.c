/* ggml_blocks — GGUF 的整数块类型：Q4_0…Q8_1 与 K 量化
 * 每个解码函数逐块、直白。元素 = 比例 × 整数（- 最小值 × 比例）。 */
#include "base/ggml_blocks.h"

/* 32 元素的块。Q4/Q5 的前 16 个元素在低半字节，后 16 个在高半字节。 */
static void decode_q8_0(const uint8_t *b, float *y) {
    float d = ggml_half(b);
    for (int i = 0; i < 32; i++) y[i] = d * (float)(int8_t)b[2 + i];
}
static void decode_q4_0(const uint8_t *b, float *y) {
    float d = ggml_half(b);
    for (int i = 0; i < 16; i++) {
        y[i] = d * (float)((b[2 + i] & 15) - 8);
        y[i + 16] = d * (float)((b[2 + i] >> 4) - 8);
    }
}
static void decode_q4_1(const uint8_t *b, float *y) {
    float d = ggml_half(b), m = ggml_half(b + 2);
    for (int i = 0; i < 16; i++) {
        y[i] = d * (float)(b[4 + i] & 15) + m;
        y[i + 16] = d * (float)(b[4 + i] >> 4) + m;
    }
}
static void decode_q5_0(const uint8_t *b, float *y) {
    float d = ggml_half(b);
    uint32_t high = ggml_u32(b + 2);
    for (int i = 0; i < 16; i++) {
        y[i] = d * (float)((int)((b[6 + i] & 15) | (high >> i & 1) << 4) - 16);
        y[i + 16] = d * (float)((int)((b[6 + i] >> 4) | (high >> (i + 16) & 1) << 4) - 16);
    }
}
static void decode_q5_1(const uint8_t *b, float *y) {
    float d = ggml_half(b), m = ggml_half(b + 2);
    uint32_t high = ggml_u32(b + 4);
    for (int i = 0; i < 16; i++) {
        y[i] = d * (float)((b[8 + i] & 15) | (high >> i & 1) << 4) + m;
        y[i + 16] = d * (float)((b[8 + i] >> 4) | (high >> (i + 16) & 1) << 4) + m;
    }
}

/* K 量化的 6 位 scale/min：8 对塞在 12 字节里（低 4 对直接 6 位，高 4 对拆成 4+2 位）。 */
static void k_scale_min(int j, const uint8_t *s, int *scale, int *min) {
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        *min = (s[j + 4] >> 4) | (s[j] >> 6) << 4;
    }
}
static void decode_q4_k(const uint8_t *b, float *y) {
    float d = ggml_half(b), dmin = ggml_half(b + 2);
    for (int j = 0; j < 8; j++) {
        int sc, mn;
        k_scale_min(j, b + 4, &sc, &mn);
        const uint8_t *q = b + 16 + 32 * (j / 2);
        float ds = d * (float)sc, dm = dmin * (float)mn;
        for (int i = 0; i < 32; i++)
            y[32 * j + i] = ds * (float)(j % 2 ? q[i] >> 4 : q[i] & 15) - dm;
    }
}
static void decode_q5_k(const uint8_t *b, float *y) {
    float d = ggml_half(b), dmin = ggml_half(b + 2);
    for (int j = 0; j < 8; j++) {
        int sc, mn;
        k_scale_min(j, b + 4, &sc, &mn);
        const uint8_t *high = b + 16, *q = b + 48 + 32 * (j / 2);
        float ds = d * (float)sc, dm = dmin * (float)mn;
        for (int i = 0; i < 32; i++) {
            int low = j % 2 ? q[i] >> 4 : q[i] & 15;
            y[32 * j + i] = ds * (float)(low + ((high[i] >> j & 1) << 4)) - dm;
        }
    }
}
static void decode_q6_k(const uint8_t *b, float *y) {
    float d = ggml_half(b + 208);
    for (int half = 0; half < 2; half++) {
        const uint8_t *low = b + 64 * half, *high = b + 128 + 32 * half;
        const int8_t *sc = (const int8_t *)(b + 192 + 8 * half);
        for (int quarter = 0; quarter < 4; quarter++)
            for (int i = 0; i < 32; i++) {
                uint8_t l = low[32 * (quarter % 2) + i];
                int q = (quarter < 2 ? l & 15 : l >> 4) | (high[i] >> 2 * quarter & 3) << 4;
                y[128 * half + 32 * quarter + i] =
                    d * (float)sc[2 * quarter + i / 16] * (float)(q - 32);
            }
    }
}

static void decode_q8_1(const uint8_t *b, float *y) {
    float d = ggml_half(b);
    for (int i = 0; i < 32; i++) y[i] = d * (float)(int8_t)b[4 + i];
}

/* 2 位：16 组各有 4 位的比例与最小值。 */
static void decode_q2_k(const uint8_t *b, float *y) {
    float d = ggml_half(b + 80), dmin = ggml_half(b + 82);
    for (int g = 0; g < 16; g++) {
        float dl = d * (float)(b[g] & 15), ml = dmin * (float)(b[g] >> 4);
        const uint8_t *q = b + 16 + 32 * (g / 8) + 16 * (g % 2);
        int shift = 2 * (g % 8 / 2);
        for (int i = 0; i < 16; i++) y[16 * g + i] = dl * (float)(q[i] >> shift & 3) - ml;
    }
}

/* 3 位：低 2 位与高位分开存，16 组各有 6 位的比例。 */
static void decode_q3_k(const uint8_t *b, float *y) {
    const uint8_t *high = b, *s = b + 96;
    float d = ggml_half(b + 108);
    for (int g = 0; g < 16; g++) {
        int low = s[g % 8] >> 4 * (g / 8) & 15, top = s[8 + g % 4] >> 2 * (g / 4) & 3;
        float dl = d * (float)((low | top << 4) - 32);
        const uint8_t *q = b + 32 + 32 * (g / 8) + 16 * (g % 2);
        const uint8_t *h = high + 16 * (g % 2);
        int shift = 2 * (g % 8 / 2);
        for (int i = 0; i < 16; i++) {
            int v = (q[i] >> shift & 3) - (h[i] >> (g / 2) & 1 ? 0 : 4);
            y[16 * g + i] = dl * (float)v;
        }
    }
}

/* 8 位：f32 的比例；末尾的各组之和只供点积用。 */
static void decode_q8_k(const uint8_t *b, float *y) {
    union { uint32_t u; float f; } d = {.u = ggml_u32(b)};
    for (int i = 0; i < 256; i++) y[i] = d.f * (float)(int8_t)b[4 + i];
}

BlockDecode ggml_block_decoder(DType t) {
    switch (t) {
    case DT_Q8_0: return decode_q8_0;
    case DT_Q8_1: return decode_q8_1;
    case DT_Q4_0: return decode_q4_0;
    case DT_Q4_1: return decode_q4_1;
    case DT_Q5_0: return decode_q5_0;
    case DT_Q5_1: return decode_q5_1;
    case DT_Q2_K: return decode_q2_k;
    case DT_Q3_K: return decode_q3_k;
    case DT_Q4_K: return decode_q4_k;
    case DT_Q5_K: return decode_q5_k;
    case DT_Q6_K: return decode_q6_k;
    case DT_Q8_K: return decode_q8_k;
    default: return ggml_iq_decoder(t);
    }
}
