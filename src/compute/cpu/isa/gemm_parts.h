/* gemm_parts — 矩阵乘内核各源文件之间的内部声明（按指令集加后缀） */
#ifndef PTQ_COMPUTE_CPU_GEMM_PARTS_H
#define PTQ_COMPUTE_CPU_GEMM_PARTS_H
#include "compute/cpu/gemm_kernels.h"
#include "compute/cpu/isa/vec16.h"

/* 一个面板的一组的缩放与零点（SYM 时零点为 2^(b-1)）。 */
typedef struct GroupParams {
    vf scale, zero;
} GroupParams;

VEC_INLINE GroupParams group_params(const QTensor *w, int64_t panel, int64_t group) {
    int64_t at = (panel * w->n_groups + group) * QT_PANEL;
    bool half = w->spec.scale_dtype == DT_F16;
    GroupParams g;
    g.scale = half ? vf_load_f16((const uint16_t *)w->scales + at)
                   : vf_load((const float *)w->scales + at);
    if (w->spec.zero == ZERO_SYM) {
        g.zero = vf_set1((float)(1 << (w->spec.bits - 1)));
    } else if (w->spec.zero == ZERO_FLOAT) {
        g.zero = half ? vf_load_f16((const uint16_t *)w->zeros + at)
                      : vf_load((const float *)w->zeros + at);
    } else {
        const uint8_t *z = (const uint8_t *)w->zeros + (w->spec.bits > 4 ? at : at / 2);
        float f[16];
        for (int i = 0; i < 16; i++)
            f[i] = (float)(w->spec.bits > 4 ? z[i] : z[i / 2] >> i % 2 * 4 & 15);
        g.zero = vf_load(f);
    }
    return g;
}

/* 块内第 j 个 k 的 16 个编码（转成 f32）；bits、j 应为编译期常数。 */
VEC_INLINE vf block_code(const uint32_t *block, int bits, int j) {
    vu code = vu_set1(0);
    int first = 0, left = bits;
    if (bits == 8) {
        code = vu_and(vu_shr(vu_load(block + j / 4 * 16), j % 4 * 8), vu_set1(255));
        left = 0;
    }
    VEC_UNROLL for (int p = 4; p >= 1; p /= 2) {
        if (!(left & p)) continue;
        int per_word = 32 / p, shift = j % per_word * p - first;
        vu word = vu_load(block + (first + j / per_word) * 16);
        word = shift >= 0 ? vu_shr(word, shift) : vu_shl(word, -shift);
        code = vu_or(code, vu_and(word, vu_set1(((1u << p) - 1) << first)));
        first += p;
    }
    return vf_from_int(code);
}

VEC_INLINE vf dequantize(vf code, GroupParams g) {
    return vf_mul(g.scale, vf_sub(code, g.zero));
}

void KERNEL_NAME(gemm_expand)(float *dst, const QTensor *w, int64_t panel, int64_t k0, int64_t k1);
void KERNEL_NAME(gemm_expand_bf16)(uint32_t *dst, const QTensor *w, int64_t panel, int64_t k0,
                                   int64_t k1);
void KERNEL_NAME(gemm_round_bf16)(uint16_t *dst, const float *x, int64_t n);
void KERNEL_NAME(gemv)(float *y, const float *x, const QTensor *w, int64_t panel, int64_t n_out);
void KERNEL_NAME(gemv_bf16)(float *y, const uint16_t *x, const QTensor *w, int64_t panel,
                            int64_t n_out);
void KERNEL_NAME(pack_panel)(QTensor *q, const float *w, int64_t panel);
void KERNEL_NAME(unpack_panel)(float *w, const QTensor *q, int64_t panel);
void KERNEL_NAME(quantize_panel)(QTensor *q, const float *w, const float *scale, const float *zero,
                                 int64_t panel);
void KERNEL_NAME(qparams_row)(float *scale, float *zero, const float *w, int64_t cols,
                              int64_t group, const QSpec *spec);
#endif
