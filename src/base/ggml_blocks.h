/* ggml_blocks — GGUF 块类型的解码（只供 base/dtype.c 与同组的文件包含）
 * 块布局的出处：ggml 的 ggml-common.h；解码的运算次序与 gguf Python 包的 quants.py 逐位相同。 */
#ifndef PTQ_BASE_GGML_BLOCKS_H
#define PTQ_BASE_GGML_BLOCKS_H
#include "base/dtype.h"

/* 把一块解码为 float；源可以不对齐。 */
typedef void (*BlockDecode)(const uint8_t *block, float *out);
/* 返回: t 的解码函数，不是块类型则 NULL。 */
BlockDecode ggml_block_decoder(DType t);
/* 同上，只管 IQ、TQ 与四位浮点（ggml_iq.c）。 */
BlockDecode ggml_iq_decoder(DType t);

static inline uint16_t ggml_u16(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}
static inline uint32_t ggml_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
static inline float ggml_half(const uint8_t *p) {
    return f16_to_f32(ggml_u16(p));
}

extern const uint16_t GGML_GRID_IQ2XXS[256], GGML_GRID_IQ2XS[512], GGML_GRID_IQ2S[1024],
    GGML_GRID_IQ3XXS[256], GGML_GRID_IQ3S[512], GGML_GRID_IQ1S[2048];
#endif
