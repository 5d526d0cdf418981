/* gemm_expand — 把任意存放形式的面板展开成内核直接用的块
 * f32: [k][16]；bf16: [k/2][16][2]。反量化严格按 qtensor.h 的次序以 f32 计算。 */
#include "compute/cpu/isa/gemm_parts.h"

#if VEC_PARTS == 4 /* generic 展开成直线代码只会拖慢编译 */
#define BLOCK_UNROLL
#else
#define BLOCK_UNROLL VEC_UNROLL
#endif
/* 一个 32 块的编码 → f32（未反量化）。 */
#define DEFINE_CODES(bits)                                                                         \
    static void codes_##bits(float *dst, const uint32_t *block) {                                  \
        BLOCK_UNROLL for (int j = 0; j < QT_KBLOCK; j++)                                           \
            vf_store(dst + 16 * j, block_code(block, bits, j));                                    \
    }
/* 一个 32 块整个属于一组：展开并反量化。 */
#define DEFINE_BLOCK(bits, kind)                                                                   \
    static void block_##bits##_##kind(float *dst, const uint32_t *block, const GroupParams *g) {   \
        Placed local = place_params(*g, bits, kind);                                               \
        BLOCK_UNROLL for (int j = 0; j < QT_KBLOCK; j++)                                           \
            vf_store(dst + 16 * j, block_weight(block, &local, bits, kind, j));                    \
    }
#define EACH_BITS(X) X(2) X(3) X(4) X(5) X(6) X(7) X(8)
#define DEFINE_ALL(bits)                                                                           \
    DEFINE_CODES(bits)                                                                             \
    DEFINE_BLOCK(bits, DEQUANT_FUSED)                                                              \
    DEFINE_BLOCK(bits, DEQUANT_INT)                                                                \
    DEFINE_BLOCK(bits, DEQUANT_REAL)
EACH_BITS(DEFINE_ALL)
#define LIST_CODES(bits) [bits] = codes_##bits,
static void (*const CODES[9])(float *, const uint32_t *) = {EACH_BITS(LIST_CODES)};
#define LIST_BLOCK(bits)                                                                           \
    [bits] = {block_##bits##_DEQUANT_FUSED, block_##bits##_DEQUANT_INT,                            \
              block_##bits##_DEQUANT_REAL},
static void (*const BLOCKS[9][DEQUANT_KINDS])(float *, const uint32_t *, const GroupParams *) = {
    EACH_BITS(LIST_BLOCK)};

/* 预取前面第 AHEAD 块的编码：展开穿插在各块的乘加之间，硬件的预取每次都要重新起步。越过面板末尾就是下一个面板。 */
VEC_INLINE const uint32_t *take_block(const QTensor *w, int64_t block) {
    enum { AHEAD = 8 };
    const uint32_t *at = (const uint32_t *)w->data + block * w->spec.bits * QT_PANEL;
    for (int i = 0; i < w->spec.bits; i++)
        __builtin_prefetch((const char *)at + (AHEAD * w->spec.bits + i) * QT_PANEL * 4);
    return at;
}

/* 块跨越组界：先取编码，再逐组反量化。k 是块首的列号。 */
static void expand_mixed(float *dst, const QTensor *w, int64_t panel, int64_t k,
                         const uint32_t *block) {
    CODES[w->spec.bits](dst, block);
    int64_t end = k + QT_KBLOCK < w->cols ? k + QT_KBLOCK : w->cols;
    for (int64_t i = k; i < end;) {
        int64_t group = i / w->spec.group_size, stop = (group + 1) * w->spec.group_size;
        GroupParams g = group_params(w, panel, group);
        for (stop = stop < end ? stop : end; i < stop; i++) {
            float *d = dst + 16 * (i - k);
            vf_store(d, dequantize(vf_load(d), g, dequant_kind(w)));
        }
    }
}

/* 查表与 FP8：先取编码，逐个换成它的值，再乘该组的缩放。 */
static void expand_values(float *dst, const QTensor *w, int64_t panel, int64_t k0, int64_t k1) {
    int64_t blocks = (w->cols - 1) / QT_KBLOCK + 1, group = -1;
    const float *value = qtensor_code_values(w);
    GroupParams g = {vf_zero(), vf_zero()};
    for (int64_t k = k0; k < k1; k += QT_KBLOCK, dst += 16 * QT_KBLOCK) {
        const uint32_t *block = (const uint32_t *)w->data +
                                (panel * blocks + k / QT_KBLOCK) * w->spec.bits * QT_PANEL;
        CODES[w->spec.bits](dst, block);
        for (int64_t i = 0; i < QT_KBLOCK && k + i < w->cols; i++) {
            float *d = dst + 16 * i;
            int64_t want = (k + i) / w->spec.group_size;
            if (want != group) g = group_stats(w, panel, group = want);
            for (int r = 0; r < QT_PANEL; r++) d[r] = value[(int)d[r]];
            vf_store(d, vf_mul(g.scale, vf_load(d)));
        }
    }
}

static void expand_int(float *dst, const QTensor *w, int64_t panel, int64_t k0, int64_t k1) {
    int64_t blocks = (w->cols - 1) / QT_KBLOCK + 1, size = w->spec.group_size, group = -1;
    void (*const expand_block)(float *, const uint32_t *, const GroupParams *) =
        BLOCKS[w->spec.bits][dequant_kind(w)];
    GroupParams g = {vf_zero(), vf_zero()};
    for (int64_t k = k0; k < k1; k += QT_KBLOCK, dst += 16 * QT_KBLOCK) {
        const uint32_t *block = take_block(w, panel * blocks + k / QT_KBLOCK);
        int64_t end = k + QT_KBLOCK < w->cols ? k + QT_KBLOCK : w->cols, first = k / size;
        if ((end - 1) / size != first) {
            expand_mixed(dst, w, panel, k, block);
            continue;
        }
        if (first != group) g = group_params(w, panel, group = first);
        expand_block(dst, block, &g);
    }
}

/* 把块里的离群值放到它们的位置上（k0 是块首）。 */
static void put_outliers(float *dst, const QTensor *w, int64_t panel, int64_t k0, int64_t k1) {
    const Outliers *o = &w->outliers;
    int64_t blocks = (w->cols - 1) / QT_KBLOCK + 1;
    const uint32_t *start = o->start + panel * blocks;
    DType type = w->spec.scale_dtype;
    for (int64_t block = k0 / QT_KBLOCK; block * QT_KBLOCK < k1; block++) {
        float *d = dst + (block * QT_KBLOCK - k0) * QT_PANEL;
        for (uint32_t i = start[block]; i < start[block + 1]; i++)
            d[o->at[i]] = type == DT_F32   ? ((const float *)o->value)[i]
                          : type == DT_F16 ? f16_to_f32(((const uint16_t *)o->value)[i])
                                           : bf16_to_f32(((const uint16_t *)o->value)[i]);
    }
}

static void expand_bf16_pairs(float *dst, const uint32_t *src, int64_t n_pairs) {
    for (int64_t i = 0; i < n_pairs; i++) {
        vu pair = vu_load(src + 16 * i);
        vf_store(dst + 32 * i, vf_bits(vu_shl(pair, 16)));
        vf_store(dst + 32 * i + 16, vf_bits(vu_and(pair, vu_set1(0xFFFF0000u))));
    }
}

void KERNEL_NAME(gemm_expand)(float *dst, const QTensor *w, int64_t panel, int64_t k0, int64_t k1) {
    int64_t at = (panel * w->cols + k0) * QT_PANEL, pairs = w->cols / 2 + w->cols % 2;
    switch (w->dense) {
    case DT_F32:
        memcpy(dst, (const float *)w->data + at, (size_t)(k1 - k0) * QT_PANEL * sizeof *dst);
        break;
    case DT_F16:
        for (int64_t i = 0; i < (k1 - k0) * QT_PANEL; i += 16)
            vf_store(dst + i, vf_load_f16((const uint16_t *)w->data + at + i));
        break;
    case DT_BF16:
        expand_bf16_pairs(dst, (const uint32_t *)w->data + (panel * pairs + k0 / 2) * QT_PANEL,
                          (k1 - k0 + 1) / 2);
        break;
    default:
        if (w->spec.codes != CODE_INT)
            expand_values(dst, w, panel, k0, k1);
        else
            expand_int(dst, w, panel, k0, k1);
        if (w->outliers.start) put_outliers(dst, w, panel, k0, k1);
    }
}

#if defined(KERNEL_ISA_avx512_bf16)
/* 一个 32 块整个属于一组：在寄存器里反量化并舍入成对。 */
#define DEFINE_PAIRS(bits, kind)                                                                   \
    static void pairs_##bits##_##kind(uint32_t *dst, const uint32_t *block, const GroupParams *g) { \
        Placed local = place_params(*g, bits, kind);                                               \
        BLOCK_UNROLL for (int j = 0; j < QT_KBLOCK; j += 2)                                        \
            vu_store(dst + 8 * j, vu_round_pairs(block_weight(block, &local, bits, kind, j),       \
                                                 block_weight(block, &local, bits, kind, j + 1))); \
    }
DEFINE_PAIRS(4, DEQUANT_FUSED)
DEFINE_PAIRS(4, DEQUANT_INT)
DEFINE_PAIRS(8, DEQUANT_FUSED)
DEFINE_PAIRS(8, DEQUANT_INT)
typedef void PairsFn(uint32_t *dst, const uint32_t *block, const GroupParams *g);
static PairsFn *const PAIRS[9][DEQUANT_KINDS] = {
    [4] = {pairs_4_DEQUANT_FUSED, pairs_4_DEQUANT_INT, NULL},
    [8] = {pairs_8_DEQUANT_FUSED, pairs_8_DEQUANT_INT, NULL},
};

/* 任何类型：展开成 f32 再舍入。k 是块首，end 是块尾（不含）。 */
static void round_block(uint32_t *dst, const QTensor *w, int64_t panel, int64_t k, int64_t end) {
    float block[QT_KBLOCK * QT_PANEL];
    KERNEL_NAME(gemm_expand)(block, w, panel, k, end);
    if ((end - k) % 2) vf_store(block + 16 * (end - k), vf_zero());
    for (int64_t i = 0; i < end - k; i += 2, dst += 16)
        vu_store(dst, vu_round_pairs(vf_load(block + 16 * i), vf_load(block + 16 * i + 16)));
}

void KERNEL_NAME(gemm_expand_bf16)(uint32_t *dst, const QTensor *w, int64_t panel, int64_t k0,
                                   int64_t k1) {
    int64_t pairs = w->cols / 2 + w->cols % 2, blocks = (w->cols - 1) / QT_KBLOCK + 1, group = -1;
    if (w->dense == DT_BF16) {
        memcpy(dst, (const uint32_t *)w->data + (panel * pairs + k0 / 2) * QT_PANEL,
               (size_t)(k1 - k0 + 1) / 2 * QT_PANEL * sizeof *dst);
        return;
    }
    bool plain = w->dense == DT_NONE && w->spec.codes == CODE_INT && !w->outliers.start;
    PairsFn *fast = plain ? PAIRS[w->spec.bits][dequant_kind(w)] : NULL;
    GroupParams g = {vf_zero(), vf_zero()};
    for (int64_t k = k0; k < k1; k += QT_KBLOCK, dst += 8 * QT_KBLOCK) {
        int64_t end = k + QT_KBLOCK, first = fast ? k / w->spec.group_size : 0;
        if (!fast || end > k1 || (end - 1) / w->spec.group_size != first) {
            round_block(dst, w, panel, k, end < k1 ? end : k1);
            continue;
        }
        if (first != group) g = group_params(w, panel, group = first);
        fast(dst, take_block(w, panel * blocks + k / QT_KBLOCK), &g);
    }
}

void KERNEL_NAME(gemm_round_bf16)(uint16_t *dst, const float *x, int64_t n) {
    int64_t i = 0;
    for (; i + 32 <= n; i += 32)
        _mm512_storeu_si512(dst + i, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + i + 16),
                                                                  _mm512_loadu_ps(x + i)));
    if (i == n) return;
    float tail[32] = {0};
    uint16_t rounded[32];
    memcpy(tail, x + i, (size_t)(n - i) * sizeof *x);
    KERNEL_NAME(gemm_round_bf16)(rounded, tail, 32);
    memcpy(dst + i, rounded, (size_t)((n - i + 1) / 2 * 2) * sizeof *dst);
}
#endif
