/* gemm_kernels — 矩阵乘、装包与量化的内核表（每个指令集一张）
 * 权重块在这里统一成「展开块」：f32 为 [面板][k][16]，bf16 为 [面板][k/2][16][2]，面板间距由参数给出；
 * F32（bf16 模式下 BF16）的权重本来就是这种样子，直接用，不复制。 */
#ifndef PTQ_COMPUTE_CPU_GEMM_KERNELS_H
#define PTQ_COMPUTE_CPU_GEMM_KERNELS_H
#include "compute/cpu/kernels.h"

enum {
    TILE_X_STRIDE = 400, /* 激活小块的行距（4 字节为单位）；1600 字节使各行落在不同的缓存组 */
    TILE_STEPS_MAX = 384 /* 一块的最大步数：f32 一步是一个 k，bf16 一步是一对 k */
};

/* y 的一小块 (rows, 16·panels) = 或 += x·wᵀ。x 是行距 TILE_X_STRIDE 的激活小块（f32，或成对的 bf16）；
 * w 是展开块，面板间距 w_stride（4 字节为单位）；每个输出一个累加器，沿 k 依次累加。 */
typedef void TileFn(float *y, int64_t ldy, const void *x, const void *w, int64_t w_stride,
                    int64_t steps, bool accumulate);

/* bf16 计算、单行时量化的权重按编码算：y = Σ_组 scale·(Σ x·编码 − zero·Σx)。编码在 bf16 中精确，不必逐个反量化、
 * 舍入，所以又快又准。返回: 能这样算（组界在 32 列界上，没有离群值）。 */
static inline bool linear_by_codes(const QTensor *w) {
    return w->dense == DT_NONE && w->spec.codes == CODE_INT && !w->outliers.start &&
           (w->n_groups == 1 || w->spec.group_size % QT_KBLOCK == 0);
}

/* 量化后的激活：(n, stride) 的 s8，stride 是列数补到 32 的倍数，补的是 0。 */
typedef struct ActRows {
    int8_t *codes;
    int64_t stride;
    float *scale; /* (n) 每行的 s */
    int32_t *sum; /* (n) 每行编码之和 */
} ActRows;

struct GemmKernels {
    int tile_rows, tile_panels;
    /* 下标 (rows-1)·tile_panels + panels-1 */
    TileFn *const *tiles;
    TileFn *const *tiles_bf16; /* 无原生 bf16 时为 NULL */
    /* x 是 s8（4 个 k 一步），w 是 INT8 的面板本身，y 里是 int32 的位，由 finish_int8 化为 f32。 */
    TileFn *const *tiles_int8;
    /* max|x|；有 NaN 或 Inf 时为 NaN。 */
    float (*act_absmax)(const float *x, int64_t n);
    /* dst[i] = rint(x[i]/scale) 限制在 [-top-1, top]，补 0 到 32 的倍数。返回: 编码之和。 */
    int32_t (*act_codes)(int8_t *dst, const float *x, int64_t n, float scale, int top);
    /* 就地 x = scale·编码。 */
    void (*act_round)(float *x, int64_t n, float scale, int top);
    /* 单行的整数和，写法同 gemv，y 里是 int32 的位。 */
    void (*gemv_int8)(float *y, const int8_t *x, const QTensor *w, int64_t panel, int64_t n_out);
    /* 就地把 (rows, n_out) 个整数和 Σ code·x 化为 (Σ code·x − zero·Σx)·(s_w·s_x) + bias；
     * 首列是面板 panel 的第 0 路，首行是 x 的第 row 行；bias 从首列起，可为 NULL。 */
    void (*finish_int8)(float *y, int64_t ldy, int rows, int64_t n_out, const QTensor *w,
                        int64_t panel, const ActRows *x, int64_t row, const float *bias);
    /* 展开面板 panel 的 k ∈ [k0, k1) 到 dst；k0 是 32 的倍数；dst 有补到 32 的倍数的空间。 */
    void (*expand)(float *dst, const QTensor *w, int64_t panel, int64_t k0, int64_t k1);
    void (*expand_bf16)(uint32_t *dst, const QTensor *w, int64_t panel, int64_t k0, int64_t k1);
    /* x 的 n 个数舍入为 bf16；n 为奇数时补一个 0。 */
    void (*round_bf16)(uint16_t *dst, const float *x, int64_t n);
    /* 单行：y[0, n_out) = bias + W[panel·16 起]·x，n_out 个输出（最后一个面板可以不满）；
     * bias 从首个输出起，可为 NULL，是累加的起点（与 GEMM 相同）。 */
    void (*gemv)(float *y, const float *x, const QTensor *w, int64_t panel, int64_t n_out,
                 const float *bias);
    /* 同上，x 为舍入后的 bf16（补 0 到 32 的倍数）；无原生 bf16 时为 NULL。minus_sums 是 group_sums 的结果，
     * 非 NULL 则按编码算。 */
    void (*gemv_bf16)(float *y, const uint16_t *x, const float *minus_sums, const QTensor *w,
                      int64_t panel, int64_t n_out, const float *bias);
    /* 各组的 −Σx。 */
    void (*group_sums)(float *dst, const uint16_t *x, int64_t cols, int64_t group);
    /* 以下按面板：w 是整个 (rows, cols) 的 f32 矩阵，scale、zero 是 (rows, n_groups)。 */
    void (*pack_panel)(QTensor *q, const float *w, int64_t panel);
    /* 同 pack_panel，但直接从存放的类型（F32、F16、BF16）装。返回: 装好的都是有限值。 */
    bool (*pack_stored_panel)(QTensor *q, const void *stored, DType type, int64_t panel);
    void (*unpack_panel)(float *w, const QTensor *q, int64_t panel);
    void (*quantize_panel)(QTensor *q, const float *w, const float *scale, const float *zero,
                           int64_t panel);
    /* 一行的各组。group 为正的组宽。 */
    void (*qparams_row)(float *scale, float *zero, const float *w, int64_t cols, int64_t group,
                        const QSpec *spec);
};
#endif
