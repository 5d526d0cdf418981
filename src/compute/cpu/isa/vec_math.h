/* vec_math — 建在 vec16 上的指数、tanh、归约与带掩码的读写
 * exp、exp2 的多项式是相对误差极小极大逼近（Remez，误差 1.9e-9），连同舍入不超过 2 ulp；
 * NaN 原样传出，-inf 得 0，上溢得 +inf。归约一律是固定的树。 */
#ifndef PTQ_COMPUTE_CPU_VEC_MATH_H
#define PTQ_COMPUTE_CPU_VEC_MATH_H
#include "compute/cpu/isa/vec16.h"

/* 前 n 个（0..16）元素，其余为 0 */
VEC_INLINE vf vf_load_n(const float *a, int64_t n) {
    if (n >= 16) return vf_load(a);
    float tmp[16] = {0};
    for (int64_t i = 0; i < n; i++) tmp[i] = a[i];
    return vf_load(tmp);
}
VEC_INLINE void vf_store_n(float *a, vf x, int64_t n) {
    if (n >= 16) {
        vf_store(a, x);
        return;
    }
    float tmp[16];
    vf_store(tmp, x);
    for (int64_t i = 0; i < n; i++) a[i] = tmp[i];
}
/* 掩码：lane < n（0..16） */
VEC_INLINE vu vu_first(int64_t n) {
    static const uint32_t ONES_ZEROS[32] = {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u,
                                            ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u};
    return vu_load(ONES_ZEROS + 16 - (n > 16 ? 16 : n));
}
/* 掩码：lo <= lane < hi */
VEC_INLINE vu vu_range(int64_t lo, int64_t hi) {
    vu below = vu_first(lo > 0 ? lo : 0);
    return vu_and(vu_first(hi), vu_xor(below, vu_set1(~0u)));
}

VEC_INLINE float vf_sum(vf x) {
    float a[16];
    vf_store(a, x);
    for (int w = 8; w; w /= 2)
        for (int i = 0; i < w; i++) a[i] += a[i + w];
    return a[0];
}
VEC_INLINE double vf_sum_double(vf x) {
    float a[16];
    double s[8];
    vf_store(a, x);
    for (int i = 0; i < 8; i++) s[i] = (double)a[i] + (double)a[i + 8];
    for (int w = 4; w; w /= 2)
        for (int i = 0; i < w; i++) s[i] += s[i + w];
    return s[0];
}
VEC_INLINE float vf_hmax(vf x) {
#if defined(VEC_AVX512)
    return _mm512_reduce_max_ps((__m512)x.p[0]);
#else
    float a[16];
    vf_store(a, x);
    for (int w = 8; w; w /= 2)
        for (int i = 0; i < w; i++) a[i] = a[i] > a[i + w] ? a[i] : a[i + w];
    return a[0];
#endif
}
/* 是否有某一路 a < b */
VEC_INLINE int vf_any_less(vf a, vf b) {
#if defined(VEC_AVX512)
    return _mm512_cmp_ps_mask((__m512)a.p[0], (__m512)b.p[0], _CMP_LT_OQ) != 0;
#else
    uint32_t m[16], any = 0;
    vu_store(m, vf_less(a, b));
    for (int i = 0; i < 16; i++) any |= m[i];
    return any != 0;
#endif
}
/* x·2^n，n 为整数值且 |n| <= 250（分两步乘，次正规数只舍入一次） */
VEC_INLINE vf vf_scale2(vf x, vf n) {
#if defined(VEC_AVX512)
    x.p[0] = (vec_nf)_mm512_scalef_ps((__m512)x.p[0], (__m512)n.p[0]);
    return x;
#else
    vu i = vu_from_float(n), bias = vu_set1(127);
    vu half = vu_sub(vu_shr(vu_add(i, vu_set1(512)), 1), vu_set1(256)); /* floor(i/2) */
    vf a = vf_bits(vu_shl(vu_add(half, bias), 23));
    vf b = vf_bits(vu_shl(vu_add(vu_sub(i, half), bias), 23));
    return vf_mul(vf_mul(x, a), b);
#endif
}
VEC_INLINE vf vf_exp(vf x) {
    x = vf_max(vf_set1(-104.0f), x); /* 次序要紧：NaN 须传出 */
    x = vf_min(vf_set1(89.0f), x);
    vf n = vf_rint(vf_mul(x, vf_set1(1.44269504f)));
    vf r = vf_fma(n, vf_set1(-0x1.62e4p-1f), x); /* ln2 的高 15 位，乘积精确 */
    r = vf_fma(n, vf_set1(-1.42860682e-6f), r);
    vf p = vf_fma(vf_set1(1.38368357e-3f), r, vf_set1(8.37482403e-3f));
    p = vf_fma(p, r, vf_set1(4.16682262e-2f));
    p = vf_fma(p, r, vf_set1(1.66664201e-1f));
    p = vf_fma(p, r, vf_set1(4.99999921e-1f));
    p = vf_fma(p, r, vf_set1(1.00000004f));
    p = vf_fma(p, r, vf_set1(1.0f));
    return vf_scale2(p, n);
}
/* 2^x，x <= 126（softmax 用，x 不大于零左右） */
VEC_INLINE vf vf_exp2(vf x) {
#if defined(VEC_AVX512)
    vf f; /* x − floor(x)；±inf 时为 0 */
    f.p[0] = (vec_nf)_mm512_reduce_ps((__m512)x.p[0], 0x09);
    vf p = vf_fma(vf_set1(2.17022557e-4f), f, vf_set1(1.24396877e-3f));
    p = vf_fma(p, f, vf_set1(9.67884102e-3f));
    p = vf_fma(p, f, vf_set1(5.54833420e-2f));
    p = vf_fma(p, f, vf_set1(2.40229836e-1f));
    p = vf_fma(p, f, vf_set1(6.93146984e-1f));
    p = vf_fma(p, f, vf_set1(1.0f));
    return vf_scale2(p, x); /* scalef 自己取 floor */
#else
    x = vf_max(vf_set1(-160.0f), x);
    vf n = vf_rint(x), f = vf_sub(x, n);
    vf p = vf_fma(vf_set1(1.53458122e-4f), f, vf_set1(1.33999312e-3f));
    p = vf_fma(p, f, vf_set1(9.61848896e-3f));
    p = vf_fma(p, f, vf_set1(5.55032878e-2f));
    p = vf_fma(p, f, vf_set1(2.40226469e-1f));
    p = vf_fma(p, f, vf_set1(6.93147206e-1f));
    p = vf_fma(p, f, vf_set1(1.0f));
    return vf_scale2(p, n);
#endif
}
/* erfc(a/√2)/2，a >= 0：e^(−a²/2)·P(s)，s = 2/(1+0.26a)−1；P 以相对误差极小极大拟合（5.4e-9），连同舍入约 5e-7 */
VEC_INLINE vf vf_half_erfc(vf a) {
    vf one = vf_set1(1.0f), t = vf_div(one, vf_fma(a, vf_set1(0.26f), one));
    vf s = vf_sub(vf_add(t, t), one);
    vf p = vf_fma(vf_set1(6.621136708417907e-05f), s, vf_set1(-6.96152274031192e-05f));
    p = vf_fma(p, s, vf_set1(-0.0006700319936499f));
    p = vf_fma(p, s, vf_set1(-0.00030910084024071693f));
    p = vf_fma(p, s, vf_set1(0.00621496606618166f));
    p = vf_fma(p, s, vf_set1(0.02744195982813835f));
    p = vf_fma(p, s, vf_set1(0.06910079717636108f));
    p = vf_fma(p, s, vf_set1(0.12513311207294464f));
    p = vf_fma(p, s, vf_set1(0.17529156804084778f));
    p = vf_fma(p, s, vf_set1(0.09780013561248779f));
    return vf_mul(p, vf_exp(vf_mul(vf_mul(a, a), vf_set1(-0.5f))));
}
/* tanh：|x| < 1/4 用泰勒奇多项式（截断误差 8e-9），否则 (1−e)/(1+e)，e = exp(−2|x|) */
VEC_INLINE vf vf_tanh(vf x) {
    vu sign = vu_and(vu_bits(x), vu_set1(0x80000000u));
    vf a = vf_bits(vu_xor(vu_bits(x), sign)), one = vf_set1(1.0f);
    vf e = vf_exp(vf_mul(a, vf_set1(-2.0f)));
    vf big = vf_div(vf_sub(one, e), vf_add(one, e));
    vf s = vf_mul(a, a);
    vf p = vf_fma(vf_set1(2.18694885e-2f), s, vf_set1(-5.39682540e-2f));
    p = vf_fma(p, s, vf_set1(1.33333333e-1f));
    p = vf_fma(p, s, vf_set1(-3.33333333e-1f));
    vf small = vf_fma(vf_mul(p, s), a, a);
    vf r = vf_select(vf_less(a, vf_set1(0.25f)), small, big);
    return vf_bits(vu_or(vu_bits(r), sign));
}
#endif
