/* grid — 权重的格点：由一组的范围定 scale、zero，取整（含义见 ops.h 的 op_qparams、op_quantize） */
#ifndef PTQ_COMPUTE_CUDA_GRID_H
#define PTQ_COMPUTE_CUDA_GRID_H
#include "compute/cuda/cuda.h"

/* 缩放舍入到存放类型；f16 时饱和，使商有定义。 */
__device__ static inline float stored_scale(float x, DType t, bool positive) {
    if (t == DT_BF16) return __bfloat162float(__float2bfloat16_rn(x));
    if (t != DT_F16) return x;
    if (positive && x < 0x1p-24f) return 0x1p-24f;
    if (x > 65504.0f) return 65504.0f;
    if (x < -65504.0f) return -65504.0f;
    return __half2float(__float2half_rn(x));
}
__device__ static inline void fit_grid(float lo, float hi, const QSpec &s, float *scale, float *zero) {
    float m = fabsf(lo) > fabsf(hi) ? fabsf(lo) : fabsf(hi), top = (float)((1 << s.bits) - 1);
    float sc, z = (float)(1 << (s.bits - 1));
    if (s.grid == GRID_ABSMAX || s.grid == GRID_TENSOR) {
        float half = (float)((1 << (s.bits - 1)) - 1);
        sc = stored_scale(__fmul_rn(m < 1e-5f ? 1e-5f : m, __fdiv_rn(1.0f, half)), s.scale_dtype, true);
    } else if (s.grid == GRID_RANGE) {
        float d = __fadd_rn(hi, -lo);
        sc = stored_scale(__fdiv_rn(d < 1e-5f ? 1e-5f : d, top), s.scale_dtype, true);
        z = rintf(__fdiv_rn(-lo, sc));
        z = z < 0 ? 0 : z > top ? top : z;
    } else if (s.zero == ZERO_SYM) {
        if (m == 0) m = 1;
        sc = stored_scale(__fdiv_rn(2 * m, top), s.scale_dtype, true);
    } else if (s.zero == ZERO_INT) {
        lo = lo < 0 ? lo : 0, hi = hi > 0 ? hi : 0;
        if (lo == 0 && hi == 0) lo = -1, hi = 1;
        sc = stored_scale(__fdiv_rn(__fadd_rn(hi, -lo), top), s.scale_dtype, true);
        z = rintf(__fdiv_rn(-lo, sc));
        z = z < 0 ? 0 : z > top ? top : z;
    } else {
        sc = __fdiv_rn(__fadd_rn(hi, -lo), top);
        if (sc == 0) sc = 1;
        if (s.scale_dtype == DT_F16 && sc < fabsf(lo) / 65504.0f) sc = fabsf(lo) / 65504.0f;
        sc = stored_scale(sc, s.scale_dtype, true);
        z = stored_scale(__fdiv_rn(-lo, sc), s.scale_dtype, false);
    }
    *scale = sc, *zero = z;
}
/* 编码（实数）；零点为实数（real）时先加后取整。NaN → 0。 */
__device__ static inline float grid_code(float w, float scale, float zero, int bits, bool real) {
    float top = (float)((1 << bits) - 1), steps = __fdiv_rn(w, scale);
    float c = real ? rintf(__fadd_rn(steps, zero)) : __fadd_rn(rintf(steps), zero);
    return c > 0 ? c < top ? c : top : 0;
}
/* 一束线程里求最小、最大（各线程得到同一结果）。 */
__device__ static inline void warp_range(float *lo, float *hi) {
    for (int o = 16; o; o /= 2) {
        float l = __shfl_xor_sync(0xFFFFFFFFu, *lo, o), h = __shfl_xor_sync(0xFFFFFFFFu, *hi, o);
        *lo = l < *lo ? l : *lo;
        *hi = h > *hi ? h : *hi;
    }
}
template <typename T> __device__ static inline T warp_sum(T x) {
    for (int o = 16; o; o /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, o);
    return x;
}
#endif
