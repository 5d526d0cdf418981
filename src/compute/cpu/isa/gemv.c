/* gemv — 单行（逐字生成）：直接从存放形式算，不落地展开
 * 同时推进几个面板以掩盖乘加的延迟；每个输出仍是一个累加器沿 k 依次累加，与 GEMM 逐位相同。
 * 例外是 bf16 计算时的量化权重：这里按编码算，比 GEMM（先把权重舍入到 bf16）更快也更准，因而不逐位相同。 */
#include "compute/cpu/isa/gemm_parts.h"
#include "compute/cpu/isa/vec_math.h"

enum { DENSE_PANELS = 8 / VEC_PARTS, INT_PANELS = VEC_PARTS == 1 ? 4 : 1, CODED_PANELS = 4 };

/* 写出一个面板的结果，valid 为有效的输出数（不大于 0 时不写）。 */
VEC_INLINE void store_panel(float *y, vf acc, int64_t valid) {
    if (valid >= QT_PANEL) {
        vf_store(y, acc);
        return;
    }
    float t[QT_PANEL];
    vf_store(t, acc);
    if (valid > 0) memcpy(y, t, (size_t)valid * sizeof *y);
}

/* 一个面板的累加起点：偏置（没有则为 0）。valid 为有效的输出数，可不大于 0。 */
VEC_INLINE vf start_panel(const float *bias, int64_t valid) {
    if (!bias || valid <= 0) return vf_zero();
    return valid >= QT_PANEL ? vf_load(bias) : vf_load_n(bias, valid);
}
/* 下 n 个输出的偏置。 */
VEC_INLINE const float *skip_bias(const float *bias, int64_t n) {
    return bias ? bias + n : NULL;
}

/* 预取多远（字节）：下一组面板的同一处；面板很长时硬件预取已够，只取近处。 */
VEC_INLINE int64_t prefetch_distance(int64_t group_bytes) {
    return group_bytes <= 192 * 1024 ? group_bytes : 2048;
}

/* 稠密类型：w 是首面板，stride 是面板间距（字节）。一步一个 k（BF16 一步一对）。 */
VEC_INLINE vf load_f32(const char *w, int64_t k) {
    return vf_load((const float *)w + 16 * k);
}
VEC_INLINE vf load_f16(const char *w, int64_t k) {
    return vf_load_f16((const uint16_t *)w + 16 * k);
}
#define DEFINE_DENSE(name, load, step_bytes)                                                       \
    VEC_INLINE void name##_n(float *y, const float *x, const char *w, int64_t stride,              \
                             int64_t cols, int64_t n_out, const float *bias,                       \
                             const int panels) {                                                   \
        vf acc[DENSE_PANELS];                                                                      \
        int64_t ahead = prefetch_distance(panels * stride);                                        \
        VEC_UNROLL for (int p = 0; p < panels; p++)                                                \
            acc[p] = start_panel(skip_bias(bias, 16 * p), n_out - 16 * p);                         \
        for (int64_t k = 0; k < cols; k++)                                                         \
            VEC_UNROLL for (int p = 0; p < panels; p++) {                                          \
                __builtin_prefetch(w + p * stride + k * step_bytes + ahead, 0, 2);                 \
                acc[p] = vf_fma(vf_set1(x[k]), load(w + p * stride, k), acc[p]);                   \
            }                                                                                      \
        VEC_UNROLL for (int p = 0; p < panels; p++)                                                \
            store_panel(y + 16 * p, acc[p], n_out - 16 * p);                                       \
    }                                                                                              \
    DEFINE_WALK(name, const float)
/* 先每次 DENSE_PANELS 个面板，剩下的一次一个。 */
#define DEFINE_WALK(name, X)                                                                       \
    static void name(float *y, X *x, const char *w, int64_t stride, int64_t cols, int64_t n_out,   \
                     const float *bias) {                                                          \
        for (; n_out > 16 * (DENSE_PANELS - 1); n_out -= 16 * DENSE_PANELS) {                      \
            name##_n(y, x, w, stride, cols, n_out, bias, DENSE_PANELS);                            \
            y += 16 * DENSE_PANELS;                                                                \
            w += DENSE_PANELS * stride;                                                            \
            bias = skip_bias(bias, 16 * DENSE_PANELS);                                             \
        }                                                                                          \
        for (; n_out > 0; n_out -= 16, y += 16, w += stride, bias = skip_bias(bias, 16))           \
            name##_n(y, x, w, stride, cols, n_out, bias, 1);                                       \
    }
DEFINE_DENSE(gemv_f32, load_f32, 64)
DEFINE_DENSE(gemv_f16, load_f16, 32)

VEC_INLINE void gemv_pairs_n(float *y, const float *x, const char *w, int64_t stride, int64_t cols,
                             int64_t n_out, const float *bias, const int panels) {
    vf acc[DENSE_PANELS];
    int64_t ahead = prefetch_distance(panels * stride);
    VEC_UNROLL for (int p = 0; p < panels; p++)
        acc[p] = start_panel(skip_bias(bias, 16 * p), n_out - 16 * p);
    for (int64_t k = 0; k < cols / 2; k++) {
        vf lo = vf_set1(x[2 * k]), hi = vf_set1(x[2 * k + 1]);
        VEC_UNROLL for (int p = 0; p < panels; p++) {
            __builtin_prefetch(w + p * stride + 64 * k + ahead, 0, 2);
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

/* 任何类型：逐块展开到栈上再乘。编码的组界不在块界上、或位宽少见时用它。 */
static void gemv_any(float *y, const float *x, const QTensor *w, int64_t panel, int64_t n_out,
                     const float *bias) {
    float block[QT_KBLOCK * QT_PANEL];
    for (; n_out > 0; n_out -= 16, y += 16, panel++, bias = skip_bias(bias, 16)) {
        vf acc = start_panel(bias, n_out);
        for (int64_t k = 0; k < w->cols; k += QT_KBLOCK) {
            int64_t end = k + QT_KBLOCK < w->cols ? k + QT_KBLOCK : w->cols;
            KERNEL_NAME(gemm_expand)(block, w, panel, k, end);
            for (int64_t i = k; i < end; i++)
                acc = vf_fma(vf_set1(x[i]), vf_load(block + 16 * (i - k)), acc);
        }
        store_panel(y, acc, n_out);
    }
}

#if VEC_PARTS <= 2
/* 一个 32 块：x 是 f32。 */
VEC_INLINE vf int_block_f32(vf acc, const float *x, const uint32_t *d, const Placed *g,
                            const int bits, const DequantKind kind, const int j) {
    acc = vf_fma(vf_set1(x[j]), block_weight(d, g, bits, kind, j), acc);
    return vf_fma(vf_set1(x[j + 1]), block_weight(d, g, bits, kind, j + 1), acc);
}
/* 尾块（不满 32 列）展开后逐列乘。 */
VEC_INLINE vf int_tail_f32(vf acc, const float *x, const float *tail, int64_t n) {
    for (int64_t k = 0; k < n; k++)
        acc = vf_fma(vf_set1(x[k]), vf_load(tail + 16 * k), acc);
    return acc;
}
/* 编码的每个 32 块整个属于一组（组宽是 32 的倍数或整行）：在寄存器里反量化。
 * 一次 INT_PANELS 个面板；面板不够时重复最后一个，多算的不写出。 */
#define DEFINE_INT_WALK(name, X, step, end_step)                                                   \
    VEC_INLINE void name(float *y, const X *x, const QTensor *w, int64_t panel, int64_t n_out,     \
                         const float *bias, const int bits, const DequantKind kind) {              \
        int64_t blocks = (w->cols - 1) / QT_KBLOCK + 1, full = w->cols / QT_KBLOCK;                \
        int64_t per_group = (w->spec.group_size + QT_KBLOCK - 1) / QT_KBLOCK;                      \
        int64_t ahead = prefetch_distance(INT_PANELS * blocks * bits * QT_PANEL * 4);              \
        for (; n_out > 0; n_out -= 16 * INT_PANELS, y += 16 * INT_PANELS, panel += INT_PANELS,     \
                          bias = skip_bias(bias, 16 * INT_PANELS)) {                               \
            vf acc[INT_PANELS];                                                                    \
            Placed g[INT_PANELS];                                                                  \
            int64_t at[INT_PANELS];                                                                \
            const uint32_t *d[INT_PANELS];                                                         \
            VEC_UNROLL for (int p = 0; p < INT_PANELS; p++) {                                      \
                at[p] = n_out > 16 * p ? panel + p : panel;                                        \
                d[p] = (const uint32_t *)w->data + at[p] * blocks * bits * QT_PANEL;               \
                acc[p] = start_panel(skip_bias(bias, 16 * p), n_out - 16 * p);                     \
            }                                                                                      \
            for (int64_t group = 0, block = 0; block < full; group++) {                            \
                VEC_UNROLL for (int p = 0; p < INT_PANELS; p++)                                    \
                    g[p] = place_params(group_params(w, at[p], group), bits, kind);                \
                int64_t stop = block + per_group < full ? block + per_group : full;                \
                for (; block < stop; block++) {                                                    \
                    VEC_UNROLL for (int i = 0; i < bits; i++)                                      \
                        VEC_UNROLL for (int p = 0; p < INT_PANELS; p++)                            \
                            __builtin_prefetch((const char *)(d[p] + 16 * i) + ahead, 0, 2);       \
                    VEC_UNROLL for (int j = 0; j < QT_KBLOCK; j += 2)                              \
                        VEC_UNROLL for (int p = 0; p < INT_PANELS; p++)                            \
                            acc[p] = step(acc[p], x + QT_KBLOCK * block, d[p], &g[p], bits, kind,  \
                                          j);                                                      \
                    VEC_UNROLL for (int p = 0; p < INT_PANELS; p++) d[p] += bits * QT_PANEL;       \
                }                                                                                  \
            }                                                                                      \
            VEC_UNROLL for (int p = 0; p < INT_PANELS; p++) {                                      \
                float tail[QT_KBLOCK * QT_PANEL];                                                  \
                int64_t k = full * QT_KBLOCK;                                                      \
                if (k < w->cols) {                                                                 \
                    KERNEL_NAME(gemm_expand)(tail, w, at[p], k, w->cols);                          \
                    acc[p] = end_step(acc[p], x + k, tail, w->cols - k);                           \
                }                                                                                  \
                store_panel(y + 16 * p, acc[p], n_out - 16 * p);                                   \
            }                                                                                      \
        }                                                                                          \
    }
#define DEFINE_INT(walk, X, bits, kind)                                                            \
    static void walk##_##bits##_##kind(float *y, const X *x, const QTensor *w, int64_t panel,      \
                                       int64_t n_out, const float *bias) {                         \
        walk(y, x, w, panel, n_out, bias, bits, kind);                                             \
    }
DEFINE_INT_WALK(walk_f32, float, int_block_f32, int_tail_f32)
#define EACH_WALK(X)                                                                               \
    X(2, DEQUANT_FUSED) X(2, DEQUANT_INT) X(3, DEQUANT_FUSED) X(3, DEQUANT_INT)                    \
    X(4, DEQUANT_FUSED) X(4, DEQUANT_INT) X(8, DEQUANT_FUSED) X(8, DEQUANT_INT)
#define DEFINE_WALK_F32(bits, kind) DEFINE_INT(walk_f32, float, bits, kind)
EACH_WALK(DEFINE_WALK_F32)
/* 常见的组合才各编一份；其余走 gemv_any。 */
#define LIST_WALK_F32(bits, kind) [bits][kind] = walk_f32_##bits##_##kind,
static void (*const WALKS[9][DEQUANT_KINDS])(float *, const float *, const QTensor *, int64_t,
                                             int64_t, const float *) = {EACH_WALK(LIST_WALK_F32)};
#endif

static void gemv_int(float *y, const float *x, const QTensor *w, int64_t panel, int64_t n_out,
                     const float *bias) {
#if VEC_PARTS <= 2
    bool aligned = w->spec.codes == CODE_INT && !w->outliers.start &&
                   (w->n_groups == 1 || w->spec.group_size % QT_KBLOCK == 0);
    if (aligned && WALKS[w->spec.bits][dequant_kind(w)]) {
        WALKS[w->spec.bits][dequant_kind(w)](y, x, w, panel, n_out, bias);
        return;
    }
#endif
    gemv_any(y, x, w, panel, n_out, bias);
}

void KERNEL_NAME(gemv)(float *y, const float *x, const QTensor *w, int64_t panel, int64_t n_out,
                       const float *bias) {
    if (w->dense == DT_NONE) {
        gemv_int(y, x, w, panel, n_out, bias);
        return;
    }
    int64_t steps = w->dense == DT_BF16 ? w->cols / 2 + w->cols % 2 : w->cols;
    int64_t stride = steps * QT_PANEL * (w->dense == DT_F16 ? 2 : 4);
    const char *data = (const char *)w->data + panel * stride;
    (w->dense == DT_F32   ? gemv_f32
     : w->dense == DT_F16 ? gemv_f16
                          : gemv_pairs)(y, x, data, stride, w->cols, n_out, bias);
}

#if defined(KERNEL_ISA_avx512_bf16)
VEC_INLINE void gemv_dot_n(float *y, const uint16_t *x, const char *w, int64_t stride, int64_t cols,
                           int64_t n_out, const float *bias, const int panels) {
    vf acc[DENSE_PANELS];
    int64_t ahead = prefetch_distance(panels * stride);
    VEC_UNROLL for (int p = 0; p < panels; p++)
        acc[p] = start_panel(skip_bias(bias, 16 * p), n_out - 16 * p);
    for (int64_t k = 0; k < (cols + 1) / 2; k++) {
        uint32_t pair;
        memcpy(&pair, x + 2 * k, sizeof pair);
        VEC_UNROLL for (int p = 0; p < panels; p++) {
            __builtin_prefetch(w + p * stride + 64 * k + ahead, 0, 2);
            acc[p] = vf_dot_pairs(acc[p], vu_set1(pair), vu_load(w + p * stride + 64 * k));
        }
    }
    VEC_UNROLL for (int p = 0; p < panels; p++)
        store_panel(y + 16 * p, acc[p], n_out - 16 * p);
}
DEFINE_WALK(gemv_dot, const uint16_t)

VEC_INLINE vf block_bf16(vf acc, const uint16_t *x, const uint32_t *block, int64_t n) {
    for (int64_t k = 0; k < n; k += 2, block += 16) {
        uint32_t pair;
        memcpy(&pair, x + k, sizeof pair);
        acc = vf_dot_pairs(acc, vu_set1(pair), vu_load(block));
    }
    return acc;
}

/* BF16 以外、也不按编码算的类型：逐块展开、舍入成对，再点积。 */
static void gemv_any_bf16(float *y, const uint16_t *x, const QTensor *w, int64_t panel,
                          int64_t n_out, const float *bias) {
    uint32_t block[QT_KBLOCK / 2 * QT_PANEL];
    for (; n_out > 0; n_out -= 16, y += 16, panel++, bias = skip_bias(bias, 16)) {
        vf acc = start_panel(bias, n_out);
        for (int64_t k = 0; k < w->cols; k += QT_KBLOCK) {
            int64_t end = k + QT_KBLOCK < w->cols ? k + QT_KBLOCK : w->cols;
            KERNEL_NAME(gemm_expand_bf16)(block, w, panel, k, end);
            acc = block_bf16(acc, x + k, block, end - k);
        }
        store_panel(y, acc, n_out);
    }
}

/* 按编码算（见 gemm_kernels.h）：一组先累加 Σ x·编码，组末才用缩放与零点。编码在寄存器里展开，一次 panels 个面板。 */
VEC_INLINE void coded_n(float *y, const uint16_t *x, const float *minus_sums, const QTensor *w,
                        int64_t panel, int64_t n_out, const float *bias, const int bits,
                        const int panels) {
    int64_t blocks = (w->cols - 1) / QT_KBLOCK + 1, stride = blocks * bits * QT_PANEL;
    int64_t per_group = (w->spec.group_size + QT_KBLOCK - 1) / QT_KBLOCK;
    int64_t ahead = prefetch_distance(panels * stride * 4);
    const uint32_t *d = (const uint32_t *)w->data + panel * stride;
    vf total[CODED_PANELS];
    VEC_UNROLL for (int p = 0; p < panels; p++)
        total[p] = start_panel(skip_bias(bias, 16 * p), n_out - 16 * p);
    for (int64_t group = 0, block = 0; group < w->n_groups; group++) {
        int64_t stop = block + per_group < blocks ? block + per_group : blocks;
        vf part[CODED_PANELS];
        VEC_UNROLL for (int p = 0; p < panels; p++) part[p] = vf_zero();
        for (; block < stop; block++, d += bits * QT_PANEL, x += QT_KBLOCK) {
            VEC_UNROLL for (int i = 0; i < bits; i++)
                VEC_UNROLL for (int p = 0; p < panels; p++)
                    __builtin_prefetch((const char *)(d + p * stride + 16 * i) + ahead, 0, 2);
            VEC_UNROLL for (int j = 0; j < QT_KBLOCK; j += 2) {
                uint32_t pair;
                memcpy(&pair, x + j, sizeof pair);
                VEC_UNROLL for (int p = 0; p < panels; p++)
                    part[p] = vf_dot_pairs(part[p], vu_set1(pair),
                                           block_code_pairs(d + p * stride, bits, j));
            }
        }
        VEC_UNROLL for (int p = 0; p < panels; p++) {
            GroupParams g = group_stats(w, panel + p, group);
            vf sum = vf_fma(g.zero, vf_set1(minus_sums[group]), part[p]);
            total[p] = vf_fma(g.scale, sum, total[p]);
        }
    }
    VEC_UNROLL for (int p = 0; p < panels; p++) store_panel(y + 16 * p, total[p], n_out - 16 * p);
}
/* 先每次 CODED_PANELS 个面板，剩下的一次一个。 */
#define DEFINE_CODED(bits)                                                                         \
    static void coded_##bits(float *y, const uint16_t *x, const float *minus_sums,                 \
                             const QTensor *w, int64_t panel, int64_t n_out, const float *bias) {  \
        for (; n_out > 16 * (CODED_PANELS - 1); n_out -= 16 * CODED_PANELS) {                      \
            coded_n(y, x, minus_sums, w, panel, n_out, bias, bits, CODED_PANELS);                  \
            y += 16 * CODED_PANELS;                                                                \
            panel += CODED_PANELS;                                                                 \
            bias = skip_bias(bias, 16 * CODED_PANELS);                                             \
        }                                                                                          \
        for (; n_out > 0; n_out -= 16, y += 16, panel++, bias = skip_bias(bias, 16))               \
            coded_n(y, x, minus_sums, w, panel, n_out, bias, bits, 1);                             \
    }
#define EACH_BITS(X) X(2) X(3) X(4) X(5) X(6) X(7) X(8)
EACH_BITS(DEFINE_CODED)
#define LIST_CODED(bits) [bits] = coded_##bits,
static void (*const CODED[9])(float *, const uint16_t *, const float *, const QTensor *, int64_t,
                              int64_t, const float *) = {EACH_BITS(LIST_CODED)};

void KERNEL_NAME(gemv_bf16)(float *y, const uint16_t *x, const float *minus_sums, const QTensor *w,
                            int64_t panel, int64_t n_out, const float *bias) {
    if (w->dense == DT_BF16) {
        int64_t stride = (w->cols / 2 + w->cols % 2) * QT_PANEL * 4;
        gemv_dot(y, x, (const char *)w->data + panel * stride, stride, w->cols, n_out, bias);
    } else if (minus_sums) {
        CODED[w->spec.bits](y, x, minus_sums, w, panel, n_out, bias);
    } else {
        gemv_any_bf16(y, x, w, panel, n_out, bias);
    }
}

void KERNEL_NAME(group_sums)(float *dst, const uint16_t *x, int64_t cols, int64_t group) {
    for (int64_t k = 0; k < cols; k += group) {
        int64_t end = k + group < cols ? k + group : cols;
        vf sum = vf_zero();
        for (int64_t i = k; i < end; i += 16) {
            __mmask16 live = (__mmask16)(end - i < 16 ? (1u << (end - i)) - 1 : 0xFFFFu);
            __m512i half = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(live, x + i));
            vf v;
            v.p[0] = (vec_nf)_mm512_slli_epi32(half, 16);
            sum = vf_add(sum, v);
        }
        *dst++ = -vf_sum(sum);
    }
}
#endif
