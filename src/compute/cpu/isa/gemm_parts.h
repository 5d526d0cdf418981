/* gemm_parts — 矩阵乘内核各源文件之间的内部声明（按指令集加后缀） */
#ifndef PTQ_COMPUTE_CPU_GEMM_PARTS_H
#define PTQ_COMPUTE_CPU_GEMM_PARTS_H
#include "compute/cpu/gemm_kernels.h"
#include "compute/cpu/isa/vec16.h"

/* 反量化的三种算法，结果都与 qtensor.h 的定义逐位相同。
 * FUSED: 缩放是 f16 或 bf16、零点是整数时，scale·code 与 scale·zero 至多 19 位有效数字，在 f32 中精确，
 *        scale·(code−zero) 因而等于一次乘加 scale·code+offset，offset = −scale·zero。
 * INT:   零点是整数，code−zero 精确。REAL: 零点是实数，依定义逐步计算。 */
typedef enum { DEQUANT_FUSED, DEQUANT_INT, DEQUANT_REAL, DEQUANT_KINDS } DequantKind;

VEC_INLINE DequantKind dequant_kind(const QTensor *w) {
    if (w->spec.zero == ZERO_FLOAT) return DEQUANT_REAL;
    return w->spec.scale_dtype != DT_F32 && !w->two.scale_bits ? DEQUANT_FUSED : DEQUANT_INT;
}

/* 一个面板的一组的缩放与零点（FUSED 时 zero 是 offset）。 */
typedef struct GroupParams {
    vf scale, zero;
} GroupParams;

/* 缩放表（或同型的零点表）从 at 起的 16 个数。 */
VEC_INLINE vf load_reals(const QTensor *w, const void *table, int64_t at) {
    if (w->spec.scale_dtype == DT_F32) return vf_load((const float *)table + at);
    const uint16_t *half = (const uint16_t *)table + at;
    return w->spec.scale_dtype == DT_F16 ? vf_load_f16(half) : vf_load_bf16(half);
}

/* 嵌套缩放：一个面板的一组的 16 个值（尾部行为 0）。 */
VEC_INLINE vf nested_values(const QTensor *w, int64_t panel, int64_t group) {
    float s[QT_PANEL] = {0};
    for (int64_t r = panel * QT_PANEL, i = 0; i < QT_PANEL && r + i < w->rows; i++)
        s[i] = qtensor_scale(w, r + i, group);
    return vf_load(s);
}

/* 两级统计：一个面板的一组的 16 个值。16 个 c 位的码共 2c 字节，前后各 8 个码用两次整字读取。 */
VEC_INLINE vf two_level_values(const QTensor *w, StatKind kind, int64_t panel, int64_t group) {
    int bits = kind == STAT_SCALE ? w->two.scale_bits : w->two.zero_bits;
    const uint8_t *table = kind == STAT_SCALE ? w->scales : w->zeros;
    const uint8_t *src = table + (panel * w->n_groups + group) * 2 * bits;
    StatGrid g = qtensor_stat_grid(w, kind, panel * QT_PANEL / w->two.rows, group);
    uint64_t lo, hi, mask = (1u << bits) - 1;
    memcpy(&lo, src, sizeof lo);
    memcpy(&hi, src + bits, sizeof hi);
    float code[QT_PANEL];
    for (int i = 0; i < 8; i++) {
        code[i] = (float)(int32_t)(lo >> i * bits & mask);
        code[8 + i] = (float)(int32_t)(hi >> i * bits & mask);
    }
    return vf_mul(vf_set1(g.scale), vf_sub(vf_load(code), vf_set1(g.zero)));
}

/* 存下的缩放与零点。 */
VEC_INLINE GroupParams group_stats(const QTensor *w, int64_t panel, int64_t group) {
    int64_t at = (panel * w->n_groups + group) * QT_PANEL;
    GroupParams g;
    if (w->nested.per)
        g.scale = nested_values(w, panel, group);
    else if (w->two.scale_bits)
        g.scale = two_level_values(w, STAT_SCALE, panel, group);
    else
        g.scale = load_reals(w, w->scales, at);
    if (w->two.zero_bits) {
        g.zero = two_level_values(w, STAT_ZERO, panel, group);
        return g;
    }
    if (w->spec.zero == ZERO_FLOAT) {
        g.zero = load_reals(w, w->zeros, at);
        return g;
    }
    if (w->spec.zero == ZERO_SYM)
        g.zero = vf_set1((float)(1 << (w->spec.bits - 1)));
    else if (w->spec.bits > 4)
        g.zero = vf_load_u8((const uint8_t *)w->zeros + at);
    else
        g.zero = vf_load_u4((const uint8_t *)w->zeros + at / 2);
    return g;
}

/* 反量化用的：FUSED 时零点换成 offset。 */
VEC_INLINE GroupParams group_params(const QTensor *w, int64_t panel, int64_t group) {
    GroupParams g = group_stats(w, panel, group);
    if (dequant_kind(w) == DEQUANT_FUSED) g.zero = vf_sub(vf_zero(), vf_mul(g.scale, g.zero));
    return g;
}

/* 位面 p 中第 j 个编码在 32 位字里的移位（布局见 qtensor.h）。 */
VEC_INLINE int code_shift(const int p, const int j) {
    const int at = j % (32 / p);
    return p == 8 ? 8 * at : at % 2 * 16 + at / 2 * p;
}

/* 块内第 j 个 k 的 16 个编码（转成 f32）；bits、j 应为编译期常数。 */
VEC_INLINE vf block_code(const uint32_t *block, const int bits, const int j) {
    if (bits == 8)
        return vf_from_int(vu_and(vu_shr(vu_load(block + j / 4 * 16), code_shift(8, j)), vu_set1(255)));
    if (bits == 4) return vf_from_u4(vu_shr(vu_load(block + j / 8 * 16), code_shift(4, j)));
    vu code = vu_set1(0);
    int first = 0;
    VEC_UNROLL for (int p = 4; p >= 1; p /= 2) {
        if (!(bits & p)) continue;
        int shift = code_shift(p, j) - first;
        vu word = vu_load(block + (first + j / (32 / p)) * 16);
        word = shift >= 0 ? vu_shr(word, shift) : vu_shl(word, -shift);
        code = vu_or(code, vu_and(word, vu_set1(((1u << p) - 1) << first)));
        first += p;
    }
    return bits < 4 ? vf_from_u4(code) : vf_from_int(code);
}

VEC_INLINE vf dequantize(vf code, GroupParams g, const DequantKind kind) {
    if (kind == DEQUANT_FUSED) return vf_fma(g.scale, code, g.zero);
    return vf_mul(g.scale, vf_sub(code, g.zero));
}

/* 「嵌入」：4、8 位的编码不必移到最低位再转成 f32。移到尾数里的第 p 位（从低数），并上 2^23 的指数，就是
 * V = 2^23 + code·2^p；因为 (V − 2^23 − zero·2^p)·(scale·2^−p) = (code−zero)·scale，且各步都精确（缩放小到次正规数除外），
 * 结果逐位不变。4 位用第 12、16 位（一次移位可供两个编码，居中的两个不必移），8 位用第 15 位。 */
enum { PLACES = 2 };
typedef struct Placed {
    vf scale[PLACES], zero[PLACES]; /* 各位置上的缩放与零点（FUSED 时是 offset）；不嵌入时只用第 0 份 */
} Placed;

VEC_INLINE int is_placed(const int bits, const DequantKind kind) {
    return (bits == 4 || bits == 8) && kind != DEQUANT_REAL;
}
/* 块内第 j 个编码用哪一份、在第几位、要右移多少（负为左移）。 */
VEC_INLINE int place_of(const int bits, const int j) {
    return bits == 4 && (j % 8 == 1 || j % 8 == 2 || j % 8 == 5 || j % 8 == 7);
}
VEC_INLINE int place_bit(const int bits, const int place) {
    return bits == 8 ? 15 : place ? 16 : 12;
}
VEC_INLINE int place_shift(const int bits, const int j) {
    return code_shift(bits, j) - place_bit(bits, place_of(bits, j));
}
/* 把一组的缩放与零点化为各位置的。 */
VEC_INLINE Placed place_params(GroupParams g, const int bits, const DequantKind kind) {
    Placed p = {{g.scale, g.scale}, {g.zero, g.zero}};
    if (!is_placed(bits, kind)) return p;
    VEC_UNROLL for (int i = 0; i < PLACES; i++) {
        float unit = (float)(1 << place_bit(bits, i)), first = 0x1p23f;
        p.scale[i] = vf_mul(g.scale, vf_set1(1.0f / unit));
        if (kind == DEQUANT_FUSED) /* offset − scale·2^(23−p) */
            p.zero[i] = vf_sub(g.zero, vf_mul(g.scale, vf_set1(first / unit)));
        else
            p.zero[i] = vf_add(vf_set1(first), vf_mul(g.zero, vf_set1(unit)));
    }
    return p;
}
/* 块内第 j 个 k 的 16 个权重；bits、kind、j 应为编译期常数。 */
VEC_INLINE vf block_weight(const uint32_t *block, const Placed *p, const int bits,
                           const DequantKind kind, const int j) {
    if (!is_placed(bits, kind))
        return dequantize(block_code(block, bits, j), (GroupParams){p->scale[0], p->zero[0]}, kind);
    const int i = place_of(bits, j), shift = place_shift(bits, j);
    vu word = vu_load(block + j * bits / 32 * 16);
    word = shift > 0 ? vu_shr(word, shift) : shift < 0 ? vu_shl(word, -shift) : word;
    vu mask = vu_set1(((1u << bits) - 1) << place_bit(bits, i));
    vf v = vf_bits(vu_and_or(word, mask, vu_set1(0x4B000000u)));
    return dequantize(v, (GroupParams){p->scale[i], p->zero[i]}, kind);
}

#if defined(KERNEL_ISA_avx512_bf16)
/* 两个 f32 向量 → 16 对 bf16（lo 在低半）。 */
VEC_INLINE vu vu_round_pairs(vf lo, vf hi) {
    const __m512i interleave = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
        19, 3, 18, 2, 17, 1, 16, 0);
    __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)hi.p[0], (__m512)lo.p[0]);
    vu r;
    r.p[0] = (vec_nu)_mm512_permutexvar_epi16(interleave, halves);
    return r;
}
/* acc + 成对点积；x 是一对 bf16。 */
VEC_INLINE vf vf_dot_pairs(vf acc, vu x, vu w) {
    acc.p[0] = (vec_nf)_mm512_dpbf16_ps((__m512)acc.p[0], (__m512bh)x.p[0], (__m512bh)w.p[0]);
    return acc;
}
/* 块内第 j、j+1（j 为偶数）个编码，成对的 bf16；编码不大于 255，在 bf16 中精确。
 * 4 位：一对编码在 32 位字的两半的同一处，一次查表得到两个（表长 32，以 16 为周期，高位不必清）。 */
VEC_INLINE vu block_code_pairs(const uint32_t *block, const int bits, const int j) {
    if (bits == 4) {
        const __m512i table = _mm512_set_epi16(
            0x4170, 0x4160, 0x4150, 0x4140, 0x4130, 0x4120, 0x4110, 0x4100, 0x40E0, 0x40C0, 0x40A0,
            0x4080, 0x4040, 0x4000, 0x3F80, 0, 0x4170, 0x4160, 0x4150, 0x4140, 0x4130, 0x4120,
            0x4110, 0x4100, 0x40E0, 0x40C0, 0x40A0, 0x4080, 0x4040, 0x4000, 0x3F80, 0);
        vu r, word = vu_shr(vu_load(block + j / 8 * 16), code_shift(4, j));
        r.p[0] = (vec_nu)_mm512_permutexvar_epi16((__m512i)word.p[0], table);
        return r;
    }
    vf lo, hi;
    if (bits == 8) { /* 2^23 + 编码，与 2^23 + 256·编码：第二个字节不必移 */
        vu word = vu_shr(vu_load(block + j / 4 * 16), code_shift(8, j));
        vu first = vu_and_or(word, vu_set1(0xFFu), vu_set1(0x4B000000u));
        vu second = vu_and_or(word, vu_set1(0xFF00u), vu_set1(0x4B000000u));
        lo = vf_sub(vf_bits(first), vf_set1(0x1p23f));
        hi = vf_fma(vf_bits(second), vf_set1(0x1p-8f), vf_set1(-0x1p15f));
    } else {
        lo = block_code(block, bits, j);
        hi = block_code(block, bits, j + 1);
    }
    return vu_and_or(vu_bits(hi), vu_set1(0xFFFF0000u), vu_shr(vu_bits(lo), 16));
}
#endif

float KERNEL_NAME(act_absmax)(const float *x, int64_t n);
int32_t KERNEL_NAME(act_codes)(int8_t *dst, const float *x, int64_t n, float scale, int top);
void KERNEL_NAME(act_round)(float *x, int64_t n, float scale, int top);
void KERNEL_NAME(gemv_int8)(float *y, const int8_t *x, const QTensor *w, int64_t panel,
                            int64_t n_out);
void KERNEL_NAME(finish_int8)(float *y, int64_t ldy, int rows, int64_t n_out, const QTensor *w,
                              int64_t panel, const ActRows *x, int64_t row, const float *bias);
void KERNEL_NAME(gemm_expand)(float *dst, const QTensor *w, int64_t panel, int64_t k0, int64_t k1);
void KERNEL_NAME(gemm_expand_bf16)(uint32_t *dst, const QTensor *w, int64_t panel, int64_t k0,
                                   int64_t k1);
void KERNEL_NAME(gemm_round_bf16)(uint16_t *dst, const float *x, int64_t n);
void KERNEL_NAME(gemv)(float *y, const float *x, const QTensor *w, int64_t panel, int64_t n_out,
                       const float *bias);
void KERNEL_NAME(gemv_bf16)(float *y, const uint16_t *x, const float *minus_sums, const QTensor *w,
                            int64_t panel, int64_t n_out, const float *bias);
void KERNEL_NAME(group_sums)(float *dst, const uint16_t *x, int64_t cols, int64_t group);
void KERNEL_NAME(pack_panel)(QTensor *q, const float *w, int64_t panel);
bool KERNEL_NAME(pack_stored_panel)(QTensor *q, const void *stored, DType type, int64_t panel);
void KERNEL_NAME(unpack_panel)(float *w, const QTensor *q, int64_t panel);
void KERNEL_NAME(quantize_panel)(QTensor *q, const float *w, const float *scale, const float *zero,
                                 int64_t panel);
void KERNEL_NAME(qparams_row)(float *scale, float *zero, const float *w, int64_t cols,
                              int64_t group, const QSpec *spec);
#endif
