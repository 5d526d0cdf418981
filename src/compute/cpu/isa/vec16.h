/* vec16 — 16 个 float 的向量，各指令集同一套写法
 * vf/vu 是 16 个 f32/u32：AVX-512 为 1 个寄存器，AVX2 为 2 个，generic 为 4 个（SSE2）。
 * 只供 isa/ 内按指令集编译的源文件包含；全部 always_inline。
 * 乘加 vf_fma 在有 FMA 的指令集上只舍入一次，generic 上舍入两次。 */
#ifndef PTQ_COMPUTE_CPU_VEC16_H
#define PTQ_COMPUTE_CPU_VEC16_H
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "base/dtype.h"

#if defined(KERNEL_ISA_avx512) || defined(KERNEL_ISA_avx512_bf16)
#define VEC_AVX512 1
#define VEC_LANES 16
#elif defined(KERNEL_ISA_avx2)
#define VEC_AVX2 1
#define VEC_LANES 8
#else
#define VEC_LANES 4
#endif
#define VEC_PARTS (16 / VEC_LANES)

#define VEC_INLINE static inline __attribute__((always_inline, unused))
#if defined(VEC_NO_UNROLL) /* 插桩构建：展开后的插桩代码要编译几分钟 */
#define VEC_UNROLL
#elif defined(__clang__)
#define VEC_UNROLL _Pragma("clang loop unroll(full)")
#else
#define VEC_UNROLL _Pragma("GCC unroll 64")
#endif
#define VEC_EACH for (int vec_i = 0; vec_i < VEC_PARTS; vec_i++)

typedef float vec_nf __attribute__((vector_size(VEC_LANES * 4)));
typedef uint32_t vec_nu __attribute__((vector_size(VEC_LANES * 4)));
typedef int32_t vec_ni __attribute__((vector_size(VEC_LANES * 4)));
typedef uint16_t vec_nuh __attribute__((vector_size(VEC_LANES * 4)));
typedef int16_t vec_nh __attribute__((vector_size(VEC_LANES * 4)));
typedef struct {
    vec_nf p[VEC_PARTS];
} vf;
typedef struct {
    vec_nu p[VEC_PARTS];
} vu;

VEC_INLINE vf vf_load(const float *a) {
    vf r;
    VEC_UNROLL VEC_EACH memcpy(&r.p[vec_i], a + vec_i * VEC_LANES, sizeof r.p[0]);
    return r;
}
VEC_INLINE void vf_store(float *a, vf x) {
    VEC_UNROLL VEC_EACH memcpy(a + vec_i * VEC_LANES, &x.p[vec_i], sizeof x.p[0]);
}
VEC_INLINE vu vu_load(const void *a) {
    vu r;
    VEC_UNROLL VEC_EACH memcpy(&r.p[vec_i], (const char *)a + vec_i * VEC_LANES * 4, sizeof r.p[0]);
    return r;
}
VEC_INLINE void vu_store(void *a, vu x) {
    VEC_UNROLL VEC_EACH memcpy((char *)a + vec_i * VEC_LANES * 4, &x.p[vec_i], sizeof x.p[0]);
}
VEC_INLINE vf vf_set1(float a) {
    vf r;
    VEC_UNROLL VEC_EACH r.p[vec_i] = a - (vec_nf){0}; /* a - 0 保持 -0 */
    return r;
}
VEC_INLINE vu vu_set1(uint32_t a) {
    vu r;
    VEC_UNROLL VEC_EACH r.p[vec_i] = a + (vec_nu){0};
    return r;
}
VEC_INLINE vf vf_zero(void) {
    vf r;
    VEC_UNROLL VEC_EACH r.p[vec_i] = (vec_nf){0};
    return r;
}
#define VEC_BINARY(type, name, op)                                                                 \
    VEC_INLINE type name(type a, type b) {                                                         \
        VEC_UNROLL VEC_EACH a.p[vec_i] = a.p[vec_i] op b.p[vec_i];                                 \
        return a;                                                                                  \
    }
VEC_BINARY(vf, vf_add, +)
VEC_BINARY(vf, vf_sub, -)
VEC_BINARY(vf, vf_mul, *)
VEC_BINARY(vf, vf_div, /)
VEC_BINARY(vu, vu_and, &)
VEC_BINARY(vu, vu_or, |)
VEC_BINARY(vu, vu_xor, ^)
VEC_BINARY(vu, vu_add, +)
VEC_BINARY(vu, vu_sub, -)
VEC_BINARY(vu, vu_mul, *) /* 模 2^32 */
#undef VEC_BINARY
VEC_INLINE vu vu_shl(vu a, int n) {
    VEC_UNROLL VEC_EACH a.p[vec_i] <<= n;
    return a;
}
VEC_INLINE vu vu_shr(vu a, int n) {
    VEC_UNROLL VEC_EACH a.p[vec_i] >>= n;
    return a;
}
/* (a & mask) | c */
VEC_INLINE vu vu_and_or(vu a, vu mask, vu c) {
#if defined(VEC_AVX512)
    a.p[0] = (vec_nu)_mm512_ternarylogic_epi32((__m512i)a.p[0], (__m512i)mask.p[0],
                                               (__m512i)c.p[0], 0xEA);
    return a;
#else
    return vu_or(vu_and(a, mask), c);
#endif
}
VEC_INLINE vf vf_bits(vu a) { /* 位模式不变 */
    vf r;
    VEC_UNROLL VEC_EACH r.p[vec_i] = (vec_nf)a.p[vec_i];
    return r;
}
VEC_INLINE vu vu_bits(vf a) {
    vu r;
    VEC_UNROLL VEC_EACH r.p[vec_i] = (vec_nu)a.p[vec_i];
    return r;
}
/* 掩码（全 1 或全 0 的 u32）：a < b；含 NaN 为假 */
VEC_INLINE vu vf_less(vf a, vf b) {
    vu r;
    VEC_UNROLL VEC_EACH r.p[vec_i] = (vec_nu)(a.p[vec_i] < b.p[vec_i]);
    return r;
}
/* 掩码为真取 a，否则取 b */
VEC_INLINE vf vf_select(vu mask, vf a, vf b) {
    vf r;
    VEC_UNROLL VEC_EACH r.p[vec_i] = (vec_nf)((mask.p[vec_i] & (vec_nu)a.p[vec_i]) |
                                              (~mask.p[vec_i] & (vec_nu)b.p[vec_i]));
    return r;
}
/* a·b + c */
VEC_INLINE vf vf_fma(vf a, vf b, vf c) {
#if defined(VEC_AVX512)
    c.p[0] = (vec_nf)_mm512_fmadd_ps((__m512)a.p[0], (__m512)b.p[0], (__m512)c.p[0]);
#elif defined(VEC_AVX2)
    VEC_UNROLL VEC_EACH c.p[vec_i] = (vec_nf)_mm256_fmadd_ps(
        (__m256)a.p[vec_i], (__m256)b.p[vec_i], (__m256)c.p[vec_i]);
#else
    VEC_UNROLL VEC_EACH c.p[vec_i] = a.p[vec_i] * b.p[vec_i] + c.p[vec_i];
#endif
    return c;
}
/* MINPS / MAXPS 的语义：任一为 NaN 时返回 b */
VEC_INLINE vf vf_min(vf a, vf b) {
#if defined(VEC_AVX512)
    a.p[0] = (vec_nf)_mm512_min_ps((__m512)a.p[0], (__m512)b.p[0]);
#elif defined(VEC_AVX2)
    VEC_UNROLL VEC_EACH a.p[vec_i] = (vec_nf)_mm256_min_ps((__m256)a.p[vec_i], (__m256)b.p[vec_i]);
#else
    VEC_UNROLL VEC_EACH a.p[vec_i] = (vec_nf)_mm_min_ps((__m128)a.p[vec_i], (__m128)b.p[vec_i]);
#endif
    return a;
}
VEC_INLINE vf vf_max(vf a, vf b) {
#if defined(VEC_AVX512)
    a.p[0] = (vec_nf)_mm512_max_ps((__m512)a.p[0], (__m512)b.p[0]);
#elif defined(VEC_AVX2)
    VEC_UNROLL VEC_EACH a.p[vec_i] = (vec_nf)_mm256_max_ps((__m256)a.p[vec_i], (__m256)b.p[vec_i]);
#else
    VEC_UNROLL VEC_EACH a.p[vec_i] = (vec_nf)_mm_max_ps((__m128)a.p[vec_i], (__m128)b.p[vec_i]);
#endif
    return a;
}
/* 有符号 32 位整数 → f32（就近取偶） */
VEC_INLINE vf vf_from_int(vu a) {
    vf r;
    VEC_UNROLL VEC_EACH r.p[vec_i] = __builtin_convertvector((vec_ni)a.p[vec_i], vec_nf);
    return r;
}
/* f32 → 有符号 32 位整数（截断；调用者保证在范围内） */
VEC_INLINE vu vu_from_float(vf a) {
    vu r;
    VEC_UNROLL VEC_EACH r.p[vec_i] = (vec_nu)__builtin_convertvector(a.p[vec_i], vec_ni);
    return r;
}
#if defined(VEC_AVX512)
#define VEC_MADD(a, b) (vec_nu) _mm512_madd_epi16((__m512i)(a), (__m512i)(b))
#elif defined(VEC_AVX2)
#define VEC_MADD(a, b) (vec_nu) _mm256_madd_epi16((__m256i)(a), (__m256i)(b))
#else
#define VEC_MADD(a, b) (vec_nu) _mm_madd_epi16((__m128i)(a), (__m128i)(b))
#endif
/* acc + 每路 4 个 u8·s8 的和（模 2^32）；没有 VNNI 时偶、奇字节各展成 16 位的对，不会饱和 */
VEC_INLINE vu vu_dot_u8s8(vu acc, vu w, vu x) {
#if defined(KERNEL_ISA_avx512_bf16)
    acc.p[0] = (vec_nu)_mm512_dpbusd_epi32((__m512i)acc.p[0], (__m512i)w.p[0], (__m512i)x.p[0]);
#else
    vu low = vu_set1(0x00FF00FFu), even = vu_and(w, low), odd = vu_and(vu_shr(w, 8), low);
    VEC_UNROLL VEC_EACH {
        vec_nuh h = (vec_nuh)x.p[vec_i];
        acc.p[vec_i] += VEC_MADD(even.p[vec_i], (vec_nh)(h << 8) >> 8);
        acc.p[vec_i] += VEC_MADD(odd.p[vec_i], (vec_nh)h >> 8);
    }
#endif
    return acc;
}
/* 16 个 [-128, 127] 内的整数存为 s8 */
VEC_INLINE void vu_store_s8(int8_t *dst, vu a) {
#if defined(VEC_AVX512)
    _mm_storeu_si128((__m128i *)dst, _mm512_cvtepi32_epi8((__m512i)a.p[0]));
#else
    __m128i q[4];
    memcpy(q, a.p, sizeof q);
    _mm_storeu_si128((__m128i *)dst, _mm_packs_epi16(_mm_packs_epi32(q[0], q[1]),
                                                     _mm_packs_epi32(q[2], q[3])));
#endif
}
/* 就近取整，一半取偶（同 rintf 的默认舍入） */
VEC_INLINE vf vf_rint(vf a) {
#if defined(VEC_AVX512)
    a.p[0] = (vec_nf)_mm512_roundscale_ps((__m512)a.p[0], 0x08);
    return a;
#elif defined(VEC_AVX2)
    VEC_UNROLL VEC_EACH a.p[vec_i] = (vec_nf)_mm256_round_ps((__m256)a.p[vec_i], 0x08);
    return a;
#else
    vu sign = vu_and(vu_bits(a), vu_set1(0x80000000u));
    vf abs = vf_bits(vu_and(vu_bits(a), vu_set1(0x7FFFFFFFu))), big = vf_set1(0x1p23f);
    vf r = vf_bits(vu_or(vu_bits(vf_sub(vf_add(abs, big), big)), sign));
    return vf_select(vf_less(abs, big), r, a);
#endif
}
/* 16 个 f16 → f32（精确） */
VEC_INLINE vf vf_load_f16(const uint16_t *h) {
    vf r;
#if defined(VEC_AVX512)
    r.p[0] = (vec_nf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)h));
#elif defined(VEC_AVX2)
    VEC_UNROLL VEC_EACH r.p[vec_i] =
        (vec_nf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(h + 8 * vec_i)));
#else
    uint32_t w[16];
    for (int i = 0; i < 16; i++) w[i] = h[i];
    vu x = vu_load(w), mag = vu_and(x, vu_set1(0x7FFFu));
    vu sign = vu_shl(vu_and(x, vu_set1(0x8000u)), 16);
    vf value = vf_mul(vf_bits(vu_shl(mag, 13)), vf_set1(0x1p112f)); /* 次正规数也精确 */
    vu special = vu_or(vu_shl(mag, 13), vu_set1(0x7F800000u));      /* Inf、NaN */
    vu normal = vf_less(vf_from_int(mag), vf_set1(0x7C00));
    r = vf_bits(vu_or(vu_bits(vf_select(normal, value, vf_bits(special))), sign));
#endif
    return r;
}
/* 一个 f16 → f32（精确） */
VEC_INLINE float vec_f16(uint16_t h) {
#if defined(VEC_AVX512) || defined(VEC_AVX2)
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h)));
#else
    return f16_to_f32(h);
#endif
}
/* 16 个 bf16 → f32（精确） */
VEC_INLINE vf vf_load_bf16(const uint16_t *h) {
    uint32_t w[16];
    for (int i = 0; i < 16; i++) w[i] = (uint32_t)h[i] << 16;
    return vf_bits(vu_load(w));
}
/* 16 个 u8 → f32 */
VEC_INLINE vf vf_from_u8(__m128i b) {
    vf r;
#if defined(VEC_AVX512)
    r.p[0] = (vec_nf)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(b));
#elif defined(VEC_AVX2)
    r.p[0] = (vec_nf)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(b));
    r.p[1] = (vec_nf)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(b, 8)));
#else
    __m128i zero = _mm_setzero_si128();
    __m128i lo = _mm_unpacklo_epi8(b, zero), hi = _mm_unpackhi_epi8(b, zero);
    r.p[0] = (vec_nf)_mm_cvtepi32_ps(_mm_unpacklo_epi16(lo, zero));
    r.p[1] = (vec_nf)_mm_cvtepi32_ps(_mm_unpackhi_epi16(lo, zero));
    r.p[2] = (vec_nf)_mm_cvtepi32_ps(_mm_unpacklo_epi16(hi, zero));
    r.p[3] = (vec_nf)_mm_cvtepi32_ps(_mm_unpackhi_epi16(hi, zero));
#endif
    return r;
}
VEC_INLINE vf vf_load_u8(const uint8_t *a) {
    return vf_from_u8(_mm_loadu_si128((const __m128i *)a));
}
/* 16 个半字节（8 字节，低半在前）→ f32 */
VEC_INLINE vf vf_load_u4(const uint8_t *a) {
    __m128i b = _mm_loadl_epi64((const __m128i *)a), mask = _mm_set1_epi8(15);
    return vf_from_u8(_mm_unpacklo_epi8(_mm_and_si128(b, mask),
                                        _mm_and_si128(_mm_srli_epi16(b, 4), mask)));
}
/* 每个 u32 的低 4 位 → f32（AVX-512 上一次查表，高位不必清） */
VEC_INLINE vf vf_from_u4(vu a) {
#if defined(VEC_AVX512)
    const __m512 table = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    vf r;
    r.p[0] = (vec_nf)_mm512_permutexvar_ps((__m512i)a.p[0], table);
    return r;
#else
    return vf_from_int(vu_and(a, vu_set1(15)));
#endif
}
/* f32 → f16（就近取偶） */
VEC_INLINE void vf_store_f16(uint16_t *h, vf a) {
#if defined(VEC_AVX512)
    _mm256_storeu_si256((__m256i *)h, _mm512_cvtps_ph((__m512)a.p[0], 0));
#elif defined(VEC_AVX2)
    VEC_UNROLL VEC_EACH _mm_storeu_si128((__m128i *)(h + 8 * vec_i),
                                         _mm256_cvtps_ph((__m256)a.p[vec_i], 0));
#else
    float f[16];
    vf_store(f, a);
    for (int i = 0; i < 16; i++) h[i] = f32_to_f16(f[i]);
#endif
}
/* f32 → bf16（就近取偶，NaN 保持），结果在每个 u32 的低 16 位；与 base/dtype 的 f32_to_bf16 逐位相同 */
VEC_INLINE vu vu_round_bf16(vf a) {
    vu x = vu_bits(a), odd = vu_and(vu_shr(x, 16), vu_set1(1));
    vu rounded = vu_shr(vu_add(vu_add(x, vu_set1(0x7FFFu)), odd), 16);
    vu nan = vu_or(vu_shr(x, 16), vu_set1(0x40u));
    vu is_number = vf_less(vf_bits(vu_and(x, vu_set1(0x7FFFFFFFu))), vf_set1(__builtin_inff()));
    vu is_inf = vu_and(x, vu_set1(0x7FFFFFFFu)); /* Inf 的舍入结果不变，单独保留 */
    VEC_UNROLL VEC_EACH is_inf.p[vec_i] = (vec_nu)(is_inf.p[vec_i] == 0x7F800000u);
    return vu_bits(vf_select(vu_or(is_number, is_inf), vf_bits(rounded), vf_bits(nan)));
}

/* 4×4 转置：dst[i·dst_stride + j] = src[j·src_stride + i] */
typedef float vec_f4 __attribute__((vector_size(16)));
VEC_INLINE void vec_transpose4(float *dst, int64_t dst_stride, const float *src,
                               int64_t src_stride) {
    vec_f4 a, b, c, d;
    memcpy(&a, src, 16);
    memcpy(&b, src + src_stride, 16);
    memcpy(&c, src + 2 * src_stride, 16);
    memcpy(&d, src + 3 * src_stride, 16);
    vec_f4 ab_lo = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    vec_f4 ab_hi = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    vec_f4 cd_lo = __builtin_shufflevector(c, d, 0, 4, 1, 5);
    vec_f4 cd_hi = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    a = __builtin_shufflevector(ab_lo, cd_lo, 0, 1, 4, 5);
    b = __builtin_shufflevector(ab_lo, cd_lo, 2, 3, 6, 7);
    c = __builtin_shufflevector(ab_hi, cd_hi, 0, 1, 4, 5);
    d = __builtin_shufflevector(ab_hi, cd_hi, 2, 3, 6, 7);
    memcpy(dst, &a, 16);
    memcpy(dst + dst_stride, &b, 16);
    memcpy(dst + 2 * dst_stride, &c, 16);
    memcpy(dst + 3 * dst_stride, &d, 16);
}
/* 16×16 转置 */
VEC_INLINE void vec_transpose16(float *dst, int64_t dst_stride, const float *src,
                                int64_t src_stride) {
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 16; j += 4)
            vec_transpose4(dst + i * dst_stride + j, dst_stride, src + j * src_stride + i,
                           src_stride);
}
#endif
