/* dtype — 数值类型与解码的实现
 * 标量类型的换算在这里；GGUF 的块类型在 ggml_blocks.c 与 ggml_iq.c。都按字节读取，不要求对齐。 */
#include "base/dtype.h"

#include <math.h>
#include <string.h>

#include "base/ggml_blocks.h"

static const struct {
    const char *name;
    uint16_t elems, bytes;
} TYPES[DT_COUNT] = {
    [DT_NONE] = {"NONE", 0, 0},    [DT_F32] = {"F32", 1, 4},      [DT_F16] = {"F16", 1, 2},
    [DT_BF16] = {"BF16", 1, 2},    [DT_F64] = {"F64", 1, 8},      [DT_I8] = {"I8", 1, 1},
    [DT_U8] = {"U8", 1, 1},        [DT_I16] = {"I16", 1, 2},      [DT_U16] = {"U16", 1, 2},
    [DT_I32] = {"I32", 1, 4},      [DT_U32] = {"U32", 1, 4},      [DT_I64] = {"I64", 1, 8},
    [DT_U64] = {"U64", 1, 8},      [DT_BOOL] = {"BOOL", 1, 1},    [DT_Q8_0] = {"Q8_0", 32, 34},
    [DT_F8_E4M3] = {"F8_E4M3", 1, 1}, [DT_F8_E5M2] = {"F8_E5M2", 1, 1},
    [DT_Q4_0] = {"Q4_0", 32, 18},  [DT_Q4_1] = {"Q4_1", 32, 20},  [DT_Q5_0] = {"Q5_0", 32, 22},
    [DT_Q5_1] = {"Q5_1", 32, 24},  [DT_Q4_K] = {"Q4_K", 256, 144}, [DT_Q5_K] = {"Q5_K", 256, 176},
    [DT_Q6_K] = {"Q6_K", 256, 210}, [DT_Q8_1] = {"Q8_1", 32, 36},  [DT_Q2_K] = {"Q2_K", 256, 84},
    [DT_Q3_K] = {"Q3_K", 256, 110}, [DT_Q8_K] = {"Q8_K", 256, 292},
    [DT_IQ1_S] = {"IQ1_S", 256, 50}, [DT_IQ1_M] = {"IQ1_M", 256, 56},
    [DT_IQ2_XXS] = {"IQ2_XXS", 256, 66}, [DT_IQ2_XS] = {"IQ2_XS", 256, 74},
    [DT_IQ2_S] = {"IQ2_S", 256, 82}, [DT_IQ3_XXS] = {"IQ3_XXS", 256, 98},
    [DT_IQ3_S] = {"IQ3_S", 256, 110}, [DT_IQ4_NL] = {"IQ4_NL", 32, 18},
    [DT_IQ4_XS] = {"IQ4_XS", 256, 136}, [DT_TQ1_0] = {"TQ1_0", 256, 54},
    [DT_TQ2_0] = {"TQ2_0", 256, 66}, [DT_MXFP4] = {"MXFP4", 32, 17}, [DT_NVFP4] = {"NVFP4", 64, 36},
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

bool dtype_decode(DType t, const void *src, float *dst, size_t n) {
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
    BlockDecode decode = ggml_block_decoder(t);
    if (!decode || n % TYPES[t].elems) return false;
    for (size_t b = 0; b < n / TYPES[t].elems; b++)
        decode(p + b * TYPES[t].bytes, dst + b * TYPES[t].elems);
    return true;
}
