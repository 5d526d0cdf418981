/* attn_core — 注意力块的公共骨架与两种精度（f32、bf16）之间的接口
 * 骨架（attn_kernels.c）管键块的次序、可见范围与在线 softmax；打包与两个乘积由 AttnCore 给出。
 * 布局：k 为 [16 键一面板][维度（或成对）][16]，面板间距 16·attn_q_floats(dim)/pair；v 为 [键（或成对）][dv 路]；s、p 为 [行][ATTN_BLOCK]。 */
#ifndef PTQ_COMPUTE_CPU_ATTN_CORE_H
#define PTQ_COMPUTE_CPU_ATTN_CORE_H
#include "compute/cpu/attn_kernels.h"
#include "compute/cpu/isa/vec_math.h"
#include "compute/cpu/kernels.h"

/* 微内核一次的行数与 16 路向量数，按寄存器个数取 */
#if defined(VEC_AVX512)
enum { ATTN_ROWS = 6, ATTN_VECS = 4 };
#elif defined(VEC_AVX2)
enum { ATTN_ROWS = 3, ATTN_VECS = 2 };
#else
enum { ATTN_ROWS = 2, ATTN_VECS = 1 };
#endif

struct AttnCore {
    int pair; /* 一个 float 的地方放几个数：f32 为 1，bf16 为 2 */
    /* 一行查询 → dst（每行 attn_q_floats(dim) 个 float 的地方） */
    void (*pack_q)(float *dst, const float *q, int64_t dim);
    /* n_keys（1..16）行键 → 一个面板，其余键补零 */
    void (*pack_k)(float *dst, const float *k, int64_t stride, int64_t n_keys, int64_t dim);
    /* 块内键 [lo,hi) 的值 → dst */
    void (*pack_v)(float *dst, const float *v, int64_t stride, int lo, int hi, int64_t dim);
    /* s[行][16·面板..] = q·k，面板 [p0,p1) */
    void (*qk)(float *s, const float *q, const float *k, int rows, int p0, int p1, int64_t dim);
    /* o[行] = o[行]·alpha[行] + Σ_{lo<=j<hi} p[行][j]·v[j]，各行的 [lo,hi) 相同 */
    void (*pv)(float *o, int64_t dv, const float *alpha, const float *p, const float *v, int rows,
               int lo, int hi);
};

static inline int64_t attn_q_floats(int64_t dim) {
    return (dim + 1) / 2 * 2;
}
static inline int64_t attn_v_floats(int64_t dim) {
    return (dim + 15) / 16 * 16;
}

extern const AttnCore KERNEL_NAME(attn_core_bf16);
void KERNEL_NAME(attn_write_tiles)(const KvStore *s, int64_t pos, int64_t n, const float *x);

/* 把运行时的 (行数, 向量数) 变成编译期常数：f(行, 向量, ...) */
#define ATTN_CASE(f, r, v, ...)                                                                    \
    case (r) * 8 + (v):                                                                            \
        f(r, v, __VA_ARGS__);                                                                      \
        break;
#if defined(VEC_AVX512)
#define ATTN_CASES(f, r, ...)                                                                      \
    ATTN_CASE(f, r, 1, __VA_ARGS__)                                                                \
    ATTN_CASE(f, r, 2, __VA_ARGS__)                                                                \
    ATTN_CASE(f, r, 4, __VA_ARGS__)
#define ATTN_DISPATCH(f, r, v, ...)                                                                \
    switch ((r) * 8 + (v)) {                                                                       \
        ATTN_CASES(f, 1, __VA_ARGS__)                                                              \
        ATTN_CASES(f, 2, __VA_ARGS__)                                                              \
        ATTN_CASES(f, 3, __VA_ARGS__)                                                              \
        ATTN_CASES(f, 4, __VA_ARGS__)                                                              \
        ATTN_CASES(f, 5, __VA_ARGS__)                                                              \
        ATTN_CASES(f, 6, __VA_ARGS__)                                                              \
    }
#elif defined(VEC_AVX2)
#define ATTN_CASES(f, r, ...)                                                                      \
    ATTN_CASE(f, r, 1, __VA_ARGS__)                                                                \
    ATTN_CASE(f, r, 2, __VA_ARGS__)
#define ATTN_DISPATCH(f, r, v, ...)                                                                \
    switch ((r) * 8 + (v)) {                                                                       \
        ATTN_CASES(f, 1, __VA_ARGS__)                                                              \
        ATTN_CASES(f, 2, __VA_ARGS__)                                                              \
        ATTN_CASES(f, 3, __VA_ARGS__)                                                              \
    }
#else
#define ATTN_DISPATCH(f, r, v, ...)                                                                \
    switch ((r) * 8 + (v)) {                                                                       \
        ATTN_CASE(f, 1, 1, __VA_ARGS__)                                                            \
        ATTN_CASE(f, 2, 1, __VA_ARGS__)                                                            \
    }
#endif
/* 剩 left 个向量时这一步取几个：ATTN_VECS、2 或 1 */
static inline int attn_step(int64_t left) {
    if (left >= ATTN_VECS) return ATTN_VECS;
    return left >= 2 ? 2 : 1;
}

#if defined(VEC_AVX512)
/* 就地转置 16×16 个 u32 */
VEC_INLINE void attn_transpose(__m512i r[16]) {
    __m512i t[16], u[16];
    VEC_UNROLL for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    VEC_UNROLL for (int i = 0; i < 16; i += 4) {
        u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    /* u[4i+j] 的第 L 个 128 位：行 4i..4i+3、列 4L+j */
    VEC_UNROLL for (int j = 0; j < 4; j++) {
        __m512i even0 = _mm512_shuffle_i32x4(u[j], u[4 + j], 0x88);
        __m512i even1 = _mm512_shuffle_i32x4(u[8 + j], u[12 + j], 0x88);
        __m512i odd0 = _mm512_shuffle_i32x4(u[j], u[4 + j], 0xDD);
        __m512i odd1 = _mm512_shuffle_i32x4(u[8 + j], u[12 + j], 0xDD);
        r[j] = _mm512_shuffle_i32x4(even0, even1, 0x88);
        r[4 + j] = _mm512_shuffle_i32x4(odd0, odd1, 0x88);
        r[8 + j] = _mm512_shuffle_i32x4(even0, even1, 0xDD);
        r[12 + j] = _mm512_shuffle_i32x4(odd0, odd1, 0xDD);
    }
}
/* 掩码：前 n 个（可为负或超过 16） */
VEC_INLINE __mmask16 attn_mask(int64_t n) {
    return n >= 16 ? (__mmask16)0xFFFF : n <= 0 ? (__mmask16)0 : (__mmask16)((1u << n) - 1);
}
#endif
#endif
