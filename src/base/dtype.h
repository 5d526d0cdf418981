/* dtype — 数值类型与解码
 * 文件与计算共用的元素类型；GGUF 的块类型（Q4_0 等）只出现在文件里，载入时解码成 F32。
 * 块布局的出处：ggml 的 GGUF 规范（docs/gguf.md）与 ggml-common.h 中的结构说明。 */
#ifndef PTQ_BASE_DTYPE_H
#define PTQ_BASE_DTYPE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    DT_NONE = 0,
    DT_F32, DT_F16, DT_BF16, DT_F64,
    DT_I8, DT_U8, DT_I16, DT_U16, DT_I32, DT_U32, DT_I64, DT_U64, DT_BOOL,
    DT_F8_E4M3, DT_F8_E5M2, /* 只出现在已量化的检查点里，不经 dtype_decode */
    DT_Q8_0, DT_Q4_0, DT_Q4_1, DT_Q5_0, DT_Q5_1, DT_Q4_K, DT_Q5_K, DT_Q6_K,
    DT_Q8_1, DT_Q2_K, DT_Q3_K, DT_Q8_K, DT_IQ1_S, DT_IQ1_M, DT_IQ2_XXS, DT_IQ2_XS, DT_IQ2_S,
    DT_IQ3_XXS, DT_IQ3_S, DT_IQ4_NL, DT_IQ4_XS, DT_TQ1_0, DT_TQ2_0, DT_MXFP4, DT_NVFP4,
    DT_COUNT
} DType;

/* 名字，如 "F32"、"Q4_K"。 */
const char *dtype_name(DType t);
/* 每块的元素数（非块类型为 1）与字节数。 */
size_t dtype_block_elems(DType t);
size_t dtype_block_bytes(DType t);
/* n 个元素的字节数；n 不是块长的倍数、类型未知或溢出时返回 SIZE_MAX。 */
size_t dtype_bytes(DType t, size_t n);
/* 把 src 的 n 个元素解码为 float（n 为块长的倍数）。返回: 不支持的类型为 false。源可以不对齐。 */
bool dtype_decode(DType t, const void *src, float *dst, size_t n);

float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f);  /* 就近取偶；溢出为 Inf，保留 NaN */
static inline float bf16_to_f32(uint16_t h) {
    union { uint32_t u; float f; } v = {.u = (uint32_t)h << 16};
    return v.f;
}
uint16_t f32_to_bf16(float f); /* 就近取偶；NaN 保持为 NaN */
#endif
