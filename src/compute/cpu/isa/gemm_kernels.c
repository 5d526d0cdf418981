/* gemm_kernels — 矩阵乘的小块内核与本指令集的内核表
 * 小块 (行数 × 面板数) 的累加器全在寄存器里：AVX-512 为 14×2，AVX2 为 6×1，generic 为 2×1。
 * 每步读各面板一个 16 宽向量、广播每行一个激活，每个输出只有一个累加器，因此与小块大小、批大小无关。
 * 三种步：f32 一个 k，bf16 一对 k，int8 四个 k（累加到 int32）。 */
#include "compute/cpu/isa/gemm_parts.h"

#if defined(VEC_AVX512)
enum { TILE_ROWS = 14, TILE_PANELS = 2 };
#define EACH_TILE(X)                                                                               \
    X(1, 1) X(1, 2) X(2, 1) X(2, 2) X(3, 1) X(3, 2) X(4, 1) X(4, 2) X(5, 1) X(5, 2) X(6, 1)        \
    X(6, 2) X(7, 1) X(7, 2) X(8, 1) X(8, 2) X(9, 1) X(9, 2) X(10, 1) X(10, 2) X(11, 1) X(11, 2)    \
    X(12, 1) X(12, 2) X(13, 1) X(13, 2) X(14, 1) X(14, 2)
#elif defined(VEC_AVX2)
enum { TILE_ROWS = 6, TILE_PANELS = 1 };
#define EACH_TILE(X) X(1, 1) X(2, 1) X(3, 1) X(4, 1) X(5, 1) X(6, 1)
#else
enum { TILE_ROWS = 2, TILE_PANELS = 1 };
#define EACH_TILE(X) X(1, 1) X(2, 1)
#endif

VEC_INLINE vf step_f32(vf acc, const float *x, vf w) {
    return vf_fma(vf_set1(*x), w, acc);
}
#if defined(VEC_NO_UNROLL) /* 插桩构建：累加器不能放在数组里（每次读写都要查），一个一个算；结果逐位相同 */
#define TILE_BODY(step)                                                                            \
    for (int i = 0; i < rows * panels; i++) {                                                      \
        float *out = y + i / panels * ldy + 16 * (i % panels);                                     \
        const float *from = x + i / panels * TILE_X_STRIDE, *b = w + i % panels * w_stride;        \
        vf acc = accumulate ? vf_load(out) : vf_zero();                                            \
        for (int64_t k = 0; k < steps; k++) acc = step(acc, from + k, vf_load(b + 16 * k));        \
        vf_store(out, acc);                                                                        \
    }
#else
#define TILE_BODY(step)                                                                            \
    vf acc[TILE_ROWS][TILE_PANELS];                                                                \
    VEC_UNROLL for (int r = 0; r < rows; r++)                                                      \
        VEC_UNROLL for (int p = 0; p < panels; p++)                                                \
            acc[r][p] = accumulate ? vf_load(y + r * ldy + 16 * p) : vf_zero();                    \
    VEC_UNROLL for (int r = 0; r < rows; r++) /* 右邻小块的输出，下一次就要用 */                   \
        VEC_UNROLL for (int p = 0; p < panels; p++)                                                \
            __builtin_prefetch(y + r * ldy + 16 * (panels + p), 1, 2);                             \
    for (int64_t k = 0; k < steps; k++) {                                                          \
        vf b[TILE_PANELS];                                                                         \
        VEC_UNROLL for (int p = 0; p < panels; p++) b[p] = vf_load(w + p * w_stride + 16 * k);     \
        VEC_UNROLL for (int r = 0; r < rows; r++)                                                  \
            VEC_UNROLL for (int p = 0; p < panels; p++)                                            \
                acc[r][p] = step(acc[r][p], x + r * TILE_X_STRIDE + k, b[p]);                      \
    }                                                                                              \
    VEC_UNROLL for (int r = 0; r < rows; r++)                                                      \
        VEC_UNROLL for (int p = 0; p < panels; p++) vf_store(y + r * ldy + 16 * p, acc[r][p]);
#endif

VEC_INLINE void tile_f32(float *y, int64_t ldy, const float *x, const float *w, int64_t w_stride,
                         int64_t steps, bool accumulate, const int rows, const int panels) {
    TILE_BODY(step_f32)
}
#define DEFINE_TILE(rows, panels)                                                                  \
    static void tile_##rows##_##panels(float *y, int64_t ldy, const void *x, const void *w,        \
                                       int64_t w_stride, int64_t steps, bool accumulate) {         \
        tile_f32(y, ldy, x, w, w_stride, steps, accumulate, rows, panels);                         \
    }
EACH_TILE(DEFINE_TILE)
#define LIST_TILE(rows, panels) tile_##rows##_##panels,
static TileFn *const TILES[] = {EACH_TILE(LIST_TILE)};

#if defined(KERNEL_ISA_avx512_bf16)
VEC_INLINE vf step_bf16(vf acc, const float *x, vf w) {
    return vf_dot_pairs(acc, vu_bits(vf_set1(*x)), vu_bits(w));
}
VEC_INLINE void tile_bf16(float *y, int64_t ldy, const float *x, const float *w, int64_t w_stride,
                          int64_t steps, bool accumulate, const int rows, const int panels) {
    TILE_BODY(step_bf16)
}
#define DEFINE_TILE_BF16(rows, panels)                                                             \
    static void tile_bf16_##rows##_##panels(float *y, int64_t ldy, const void *x, const void *w,   \
                                            int64_t w_stride, int64_t steps, bool accumulate) {    \
        tile_bf16(y, ldy, x, w, w_stride, steps, accumulate, rows, panels);                        \
    }
EACH_TILE(DEFINE_TILE_BF16)
#define LIST_TILE_BF16(rows, panels) tile_bf16_##rows##_##panels,
static TileFn *const TILES_BF16[] = {EACH_TILE(LIST_TILE_BF16)};
#endif

/* 整数小块：一步是 4 个 k，累加器是 16 个 int32 的位。 */
VEC_INLINE vf step_int8(vf acc, const float *x, vf w) {
    uint32_t four;
    memcpy(&four, x, sizeof four);
    return vf_bits(vu_dot_u8s8(vu_bits(acc), vu_bits(w), vu_set1(four)));
}
VEC_INLINE void tile_int8(float *y, int64_t ldy, const float *x, const float *w, int64_t w_stride,
                          int64_t steps, bool accumulate, const int rows, const int panels) {
    TILE_BODY(step_int8)
}
#define DEFINE_TILE_INT8(rows, panels)                                                             \
    static void tile_int8_##rows##_##panels(float *y, int64_t ldy, const void *x, const void *w,   \
                                            int64_t w_stride, int64_t steps, bool accumulate) {    \
        tile_int8(y, ldy, x, w, w_stride, steps, accumulate, rows, panels);                        \
    }
EACH_TILE(DEFINE_TILE_INT8)
#define LIST_TILE_INT8(rows, panels) tile_int8_##rows##_##panels,
static TileFn *const TILES_INT8[] = {EACH_TILE(LIST_TILE_INT8)};

const GemmKernels KERNEL_NAME(gemm_kernels) = {
    .tile_rows = TILE_ROWS,
    .tile_panels = TILE_PANELS,
    .tiles = TILES,
#if defined(KERNEL_ISA_avx512_bf16)
    .tiles_bf16 = TILES_BF16,
    .expand_bf16 = KERNEL_NAME(gemm_expand_bf16),
    .round_bf16 = KERNEL_NAME(gemm_round_bf16),
    .gemv_bf16 = KERNEL_NAME(gemv_bf16),
    .group_sums = KERNEL_NAME(group_sums),
#endif
    .tiles_int8 = TILES_INT8,
    .act_absmax = KERNEL_NAME(act_absmax),
    .act_codes = KERNEL_NAME(act_codes),
    .act_round = KERNEL_NAME(act_round),
    .gemv_int8 = KERNEL_NAME(gemv_int8),
    .finish_int8 = KERNEL_NAME(finish_int8),
    .expand = KERNEL_NAME(gemm_expand),
    .gemv = KERNEL_NAME(gemv),
    .pack_panel = KERNEL_NAME(pack_panel),
    .pack_stored_panel = KERNEL_NAME(pack_stored_panel),
    .unpack_panel = KERNEL_NAME(unpack_panel),
    .quantize_panel = KERNEL_NAME(quantize_panel),
    .qparams_row = KERNEL_NAME(qparams_row),
};
