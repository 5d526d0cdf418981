/* dtype — 数值类型与解码的实现
 * 块格式：ggml-common.h 的结构（Q4_0…Q6_K）；每个解码函数逐块、直白，按字节读取，不要求对齐。 */
#include "base/dtype.h"

#include <math.h>
#include <string.h>

static const struct {
    const char *name;
    uint16_t elems, bytes;
} TYPES[DT_COUNT] = {
    [DT_NONE] = {"NONE", 0, 0},    [DT_F32] = {"F32", 1, 4},      [DT_F16] = {"F16", 1, 2},
    [DT_BF16] = {"BF16", 1, 2},    [DT_F64] = {"F64", 1, 8},      [DT_I8] = {"I8", 1, 1},
    [DT_U8] = {"U8", 1, 1},        [DT_I16] = {"I16", 1, 2},      [DT_U16] = {"U16", 1, 2},
    [DT_I32] = {"I32", 1, 4},      [DT_U32] = {"U32", 1, 4},      [DT_I64] = {"I64", 1, 8},
    [DT_U64] = {"U64", 1, 8},      [DT_BOOL] = {"BOOL", 1, 1},    [DT_Q8_0] = {"Q8_0", 32, 34},
    [DT_Q4_0] = {"Q4_0", 32, 18},  [DT_Q4_1] = {"Q4_1", 32, 20},  [DT_Q5_0] = {"Q5_0", 32, 22},
    [DT_Q5_1] = {"Q5_1", 32, 24},  [DT_Q4_K] = {"Q4_K", 256, 144}, [DT_Q5_K] = {"Q5_K", 256, 176},
    [DT_Q6_K] = {"Q6_K", 256, 210},
};

const char *dtype_name(DType t) {
    return (unsigned)t < DT_COUNT ? TYPES[t].name : "?";
}
size_t dtype_block_elems(DType t) {
    return (unsigned)t < DT_COUNT ? TYPES[t].elems : 0;
}
size_t dtype_block_bytes(DType t) {
    return (unsigned)t < DT_COUNT ? TYPES[t].bytes : 0;
}

size_t dtype_bytes(DType t, size_t n) {
    size_t be = dtype_block_elems(t), bb = dtype_block_bytes(t);
    if (be == 0 || n % be != 0 || n / be > SIZE_MAX / 2 / bb) return SIZE_MAX;
    return n / be * bb;
}

static uint16_t u16_at(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}
static uint32_t u32_at(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
static float half_at(const uint8_t *p) {
    return f16_to_f32(u16_at(p));
}

float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = (h >> 10) & 31, man = h & 0x3FFu;
    union { uint32_t u; float f; } v;
    if (exp == 31)
        v.u = sign | 0x7F800000u | man << 13;
    else if (exp)
        v.u = sign | (exp + 112) << 23 | man << 13;
    else {
        v.f = (float)man * 0x1p-24f; /* 次正规数 */
        v.u |= sign;
    }
    return v.f;
}

uint16_t f32_to_f16(float f) {
    union { float f; uint32_t u; } v = {.f = f};
    uint32_t sign = v.u >> 16 & 0x8000u, a = v.u & 0x7FFFFFFFu;
    if (a > 0x7F800000u) return (uint16_t)(sign | 0x7E00u);
    if (a >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u); /* 舍入后不小于 65536 */
    if (a < 0x38800000u) {                                   /* 次正规：用 2^-24 的整数倍表示 */
        float x = fabsf(f) * 0x1p24f;
        return (uint16_t)(sign | (uint32_t)rintf(x));
    }
    uint32_t r = a + 0xFFFu + (a >> 13 & 1u) - (112u << 23);
    return (uint16_t)(sign | r >> 13);
}

uint16_t f32_to_bf16(float f) {
    union { float f; uint32_t u; } v = {.f = f};
    if ((v.u & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)(v.u >> 16 | 0x40u);
    return (uint16_t)((v.u + 0x7FFFu + (v.u >> 16 & 1u)) >> 16);
}

/* 32 元素的块。Q4/Q5 的前 16 个元素在低半字节，后 16 个在高半字节。 */
static void decode_q8_0(const uint8_t *b, float *y) {
    float d = half_at(b);
    for (int i = 0; i < 32; i++) y[i] = d * (float)(int8_t)b[2 + i];
}
static void decode_q4_0(const uint8_t *b, float *y) {
    float d = half_at(b);
    for (int i = 0; i < 16; i++) {
        y[i] = d * (float)((b[2 + i] & 15) - 8);
        y[i + 16] = d * (float)((b[2 + i] >> 4) - 8);
    }
}
static void decode_q4_1(const uint8_t *b, float *y) {
    float d = half_at(b), m = half_at(b + 2);
    for (int i = 0; i < 16; i++) {
        y[i] = d * (float)(b[4 + i] & 15) + m;
        y[i + 16] = d * (float)(b[4 + i] >> 4) + m;
    }
}
static void decode_q5_0(const uint8_t *b, float *y) {
    float d = half_at(b);
    uint32_t high = u32_at(b + 2);
    for (int i = 0; i < 16; i++) {
        y[i] = d * (float)((int)((b[6 + i] & 15) | (high >> i & 1) << 4) - 16);
        y[i + 16] = d * (float)((int)((b[6 + i] >> 4) | (high >> (i + 16) & 1) << 4) - 16);
    }
}
static void decode_q5_1(const uint8_t *b, float *y) {
    float d = half_at(b), m = half_at(b + 2);
    uint32_t high = u32_at(b + 4);
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
    float d = half_at(b), dmin = half_at(b + 2);
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
    float d = half_at(b), dmin = half_at(b + 2);
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
    float d = half_at(b + 208);
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

bool dtype_decode(DType t, const void *src, float *dst, size_t n) {
    static void (*const BLOCK[DT_COUNT])(const uint8_t *, float *) = {
        [DT_Q8_0] = decode_q8_0, [DT_Q4_0] = decode_q4_0, [DT_Q4_1] = decode_q4_1,
        [DT_Q5_0] = decode_q5_0, [DT_Q5_1] = decode_q5_1, [DT_Q4_K] = decode_q4_k,
        [DT_Q5_K] = decode_q5_k, [DT_Q6_K] = decode_q6_k};
    const uint8_t *p = src;
    switch (t) {
    case DT_F32:
        memcpy(dst, src, n * 4);
        return true;
    case DT_F16:
        for (size_t i = 0; i < n; i++) dst[i] = half_at(p + 2 * i);
        return true;
    case DT_BF16:
        for (size_t i = 0; i < n; i++) dst[i] = bf16_to_f32(u16_at(p + 2 * i));
        return true;
    case DT_F64:
        for (size_t i = 0; i < n; i++) {
            double v;
            memcpy(&v, p + 8 * i, 8);
            dst[i] = (float)v;
        }
        return true;
    default:
        break;
    }
    if ((unsigned)t >= DT_COUNT || !BLOCK[t] || n % TYPES[t].elems) return false;
    for (size_t b = 0; b < n / TYPES[t].elems; b++)
        BLOCK[t](p + b * TYPES[t].bytes, dst + b * TYPES[t].elems);
    return true;
}
