/* gemv — 单行（逐字生成）：直接从存放形式算，不落地展开
 * 同时推进几个面板以掩盖乘加的延迟；每个输出仍是一个累加器沿 k 依次累加，与 GEMM 逐位相同。 */
#include "compute/cpu/isa/gemm_parts.h"

enum { DENSE_PANELS = 32 / VEC_PARTS / 4, INT_PANELS = VEC_PARTS == 1 ? 2 : 1 };

/* 写出一个面板的结果，valid 为有效的输出数。 */
VEC_INLINE void store_panel(float *y, vf acc, int64_t valid) {
    if (valid >= QT_PANEL) {
        vf_store(y, acc);
        return;
    }
    float t[QT_PANEL];
    vf_store(t, acc);
    memcpy(y, t, (size_t)valid * sizeof *y);
}

/* 稠密类型：w 是首面板，stride 是面板间距（字节）。一步一个 k（BF16 一步一对）。 */
VEC_INLINE vf load_f32(const char *w, int64_t k) {
    return vf_load((const float *)w + 16 * k);
}
VEC_INLINE vf load_f16(const char *w, int64_t k) {
    return vf_load_f16((const uint16_t *)w + 16 * k);
}
#define DEFINE_DENSE(name, load)                                                                   \
    VEC_INLINE void name##_n(float *y, const float *x, const char *w, int64_t stride,              \
                             int64_t cols, int64_t n_out, const int panels) {                      \
        vf acc[DENSE_PANELS];                                                                      \
        VEC_UNROLL for (int p = 0; p < panels; p++) acc[p] = vf_zero();                            \
        for (int64_t k = 0; k < cols; k++)                                                         \
            VEC_UNROLL for (int p = 0; p < panels; p++)                                            \
                acc[p] = vf_fma(vf_set1(x[k]), load(w + p * stride, k), acc[p]);                   \
        VEC_UNROLL for (int p = 0; p < panels; p++)                                                \
            store_panel(y + 16 * p, acc[p], n_out - 16 * p);                                       \
    }                                                                                              \
    DEFINE_WALK(name, const float)
/* 先每次 DENSE_PANELS 个面板，剩下的一次一个。 */
#define DEFINE_WALK(name, X)                                                                       \
    static void name(float *y, X *x, const char *w, int64_t stride, int64_t cols, int64_t n_out) { \
        for (; n_out > 16 * (DENSE_PANELS - 1); n_out -= 16 * DENSE_PANELS) {                      \
            name##_n(y, x, w, stride, cols, n_out, DENSE_PANELS);                                  \
            y += 16 * DENSE_PANELS;                                                                \
            w += DENSE_PANELS * stride;                                                            \
        }                                                                                          \
        for (; n_out > 0; n_out -= 16, y += 16, w += stride)                                       \
            name##_n(y, x, w, stride, cols, n_out, 1);                                             \
    }
DEFINE_DENSE(gemv_f32, load_f32)
DEFINE_DENSE(gemv_f16, load_f16)

VEC_INLINE void gemv_pairs_n(float *y, const float *x, const char *w, int64_t stride, int64_t cols,
                             int64_t n_out, const int panels) {
    vf acc[DENSE_PANELS];
    VEC_UNROLL for (int p = 0; p < panels; p++) acc[p] = vf_zero();
    for (int64_t k = 0; k < cols / 2; k++) {
        vf lo = vf_set1(x[2 * k]), hi = vf_set1(x[2 * k + 1]);
        VEC_UNROLL for (int p = 0; p < panels; p++) {
            vu pair = vu_load(w + p * stride + 64 * k);
            acc[p] = vf_fma(lo, vf_bits(vu_shl(pair, 16)), acc[p]);
            acc[p] = vf_fma(hi, vf_bits(vu_and(pair, vu_set1(0xFFFF0000u))), acc[p]);
        }
    }
    VEC_UNROLL for (int p = 0; p < panels; p++) {
        if (cols % 2)
            acc[p] = vf_fma(vf_set1(x[cols - 1]),
                            vf_bits(vu_shl(vu_load(w + p * stride + cols / 2 * 64), 16)), acc[p]);
        store_panel(y + 16 * p, acc[p], n_out - 16 * p);
    }
}
DEFINE_WALK(gemv_pairs, const float)

/* INT：每个 32 块整个属于一组时（组宽是 32 的倍数或整行），编码在寄存器里反量化。 */
VEC_INLINE void gemv_int_n(float *y, const float *x, const QTensor *w, int64_t panel,
                           int64_t n_out, const int bits, const int panels) {
    int64_t blocks = (w->cols - 1) / QT_KBLOCK + 1, full = w->cols / QT_KBLOCK;
    int64_t per_group = (w->spec.group_size + QT_KBLOCK - 1) / QT_KBLOCK;
    int64_t block_words = (int64_t)bits * QT_PANEL;
    const uint32_t *data = (const uint32_t *)w->data + panel * blocks * block_words;
    vf acc[INT_PANELS];
    GroupParams g[INT_PANELS];
    VEC_UNROLL for (int p = 0; p < panels; p++) acc[p] = vf_zero();
    for (int64_t group = 0, block = 0; block < full; group++) {
        VEC_UNROLL for (int p = 0; p < panels; p++) g[p] = group_params(w, panel + p, group);
        int64_t stop = block + per_group < full ? block + per_group : full;
        for (; block < stop; block++) {
            const uint32_t *d = data + block * block_words;
            VEC_UNROLL for (int j = 0; j < QT_KBLOCK; j++)
                VEC_UNROLL for (int p = 0; p < panels; p++)
                    acc[p] = vf_fma(vf_set1(x[QT_KBLOCK * block + j]),
                                    dequantize(block_code(d + p * blocks * block_words, bits, j),
                                               g[p]),
                                    acc[p]);
        }
    }
    VEC_UNROLL for (int p = 0; p < panels; p++) {
        if (w->cols % QT_KBLOCK) {
            float tail[QT_KBLOCK * QT_PANEL];
            int64_t k0 = full * QT_KBLOCK;
            KERNEL_NAME(gemm_expand)(tail, w, panel + p, k0, w->cols);
            for (int64_t k = k0; k < w->cols; k++)
                acc[p] = vf_fma(vf_set1(x[k]), vf_load(tail + 16 * (k - k0)), acc[p]);
        }
        store_panel(y + 16 * p, acc[p], n_out - 16 * p);
    }
}
#define DEFINE_INT(bits)                                                                           \
    static void int_##bits(float *y, const float *x, const QTensor *w, int64_t panel,              \
                           int64_t n_out) {                                                        \
        for (; n_out > 16 * (INT_PANELS - 1); n_out -= 16 * INT_PANELS) {                          \
            gemv_int_n(y, x, w, panel, n_out, bits, INT_PANELS);                                   \
            y += 16 * INT_PANELS;                                                                  \
            panel += INT_PANELS;                                                                   \
        }                                                                                          \
        for (; n_out > 0; n_out -= 16, y += 16, panel++)                                           \
            gemv_int_n(y, x, w, panel, n_out, bits, 1);                                            \
    }
#define EACH_BITS(X) X(2) X(3) X(4) X(5) X(6) X(7) X(8)
EACH_BITS(DEFINE_INT)
#define LIST_INT(bits) [bits] = int_##bits,
static void (*const INTS[9])(float *, const float *, const QTensor *, int64_t, int64_t) = {
    EACH_BITS(LIST_INT)};

/* 组界不在块界上的少见情形：逐块展开到栈上再乘。 */
static void gemv_mixed(float *y, const float *x, const QTensor *w, int64_t panel, int64_t n_out) {
    float block[QT_KBLOCK * QT_PANEL];
    for (; n_out > 0; n_out -= 16, y += 16, panel++) {
        vf acc = vf_zero();
        for (int64_t k = 0; k < w->cols; k += QT_KBLOCK) {
            int64_t end = k + QT_KBLOCK < w->cols ? k + QT_KBLOCK : w->cols;
            KERNEL_NAME(gemm_expand)(block, w, panel, k, end);
            for (int64_t i = k; i < end; i++)
                acc = vf_fma(vf_set1(x[i]), vf_load(block + 16 * (i - k)), acc);
        }
        store_panel(y, acc, n_out);
    }
}

void KERNEL_NAME(gemv)(float *y, const float *x, const QTensor *w, int64_t panel, int64_t n_out) {
    if (w->dense == DT_NONE) {
        bool aligned = w->n_groups == 1 || w->spec.group_size % QT_KBLOCK == 0;
        (aligned ? INTS[w->spec.bits] : gemv_mixed)(y, x, w, panel, n_out);
        return;
    }
    int64_t steps = w->dense == DT_BF16 ? w->cols / 2 + w->cols % 2 : w->cols;
    int64_t stride = steps * QT_PANEL * (w->dense == DT_F16 ? 2 : 4);
    const char *data = (const char *)w->data + panel * stride;
    (w->dense == DT_F32   ? gemv_f32
     : w->dense == DT_F16 ? gemv_f16
                          : gemv_pairs)(y, x, data, stride, w->cols, n_out);
}

#if defined(KERNEL_ISA_avx512_bf16)
VEC_INLINE void gemv_dot_n(float *y, const uint16_t *x, const char *w, int64_t stride, int64_t cols,
                           int64_t n_out, const int panels) {
    vf acc[DENSE_PANELS];
    VEC_UNROLL for (int p = 0; p < panels; p++) acc[p] = vf_zero();
    for (int64_t k = 0; k < (cols + 1) / 2; k++) {
        uint32_t pair;
        memcpy(&pair, x + 2 * k, sizeof pair);
        VEC_UNROLL for (int p = 0; p < panels; p++)
            acc[p].p[0] = (vec_nf)_mm512_dpbf16_ps(
                (__m512)acc[p].p[0], (__m512bh)_mm512_set1_epi32((int)pair),
                (__m512bh)_mm512_loadu_si512(w + p * stride + 64 * k));
    }
    VEC_UNROLL for (int p = 0; p < panels; p++)
        store_panel(y + 16 * p, acc[p], n_out - 16 * p);
}
DEFINE_WALK(gemv_dot, const uint16_t)

void KERNEL_NAME(gemv_bf16)(float *y, const uint16_t *x, const QTensor *w, int64_t panel,
                            int64_t n_out) {
    int64_t stride = (w->cols / 2 + w->cols % 2) * QT_PANEL * 4;
    gemv_dot(y, x, (const char *)w->data + panel * stride, stride, w->cols, n_out);
}
#endif
