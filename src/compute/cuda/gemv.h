/* gemv — 一个线程束怎样取权重、把编码化成 bf16，供 gemv.cu 与 persistent.cu
 * 一对面板（32 行输出）乘一步（几个 32 列的块）的输入。m16n8k16 的 A 是 16 行权重，B 是至多 8 个 token 的激活；行、k 的次序都换过（A、B 一同）：
 * 线程 (g, t) 在每 32 列里取第 8t..8t+7 列，正是打包时的一组；量化的取面板 g/4 的行 4(g%4)..+3（16 字节一次读），稠密的取两个面板的行 g、g+8。 */
#ifndef PTQ_COMPUTE_CUDA_GEMV_H
#define PTQ_COMPUTE_CUDA_GEMV_H
#include "compute/cuda/linear.h"

/* 一个权重的几行。 */
struct GemvSide {
    const void *data, *scales, *zeros;
    const float *bias;
    int stride;              /* 稠密的行距 */
    int panel, panels, rows; /* 首个面板，总共几个面板，几行（从首个面板起） */
};
struct GemvFormat {
    int groups, per, shift; /* 一行几组，一组几块；shift：per 是 2 的几次方，不是的为 -1 */
    DType scale_type;
    int zero_kind;
};
/* 一对面板。 */
struct GemvPair {
    const GemvSide *side[2];
    int panel[2], first[2]; /* first：面板里首行是第几个输出 */
};
/* 第 i 对；apart：两个面板取自两个权重的同一位置（gate、up），否则是同一个权重相邻的两个。 */
__device__ static inline GemvPair gemv_pair(const GemvSide *a, const GemvSide *b, int i, bool apart) {
    GemvPair r = {{a, b}, {}, {}};
#pragma unroll
    for (int p = 0; p < 2; p++) {
        const GemvSide &side = *r.side[p];
        int at = apart ? i : 2 * i + p;
        r.first[p] = at * QT_PANEL;
        r.panel[p] = side.panel + at < side.panels ? side.panel + at : side.panel; /* 单数个时凑成一对的：不写出 */
    }
    return r;
}
/* 权重的种类：稠密为 0，否则 2·位宽 + 组宽是否细碎（每块各有自己的缩放）；种类相同的可以一起算。 */
int gemv_kind(const QTensor *w);
GemvFormat gemv_format(const QTensor *w);
GemvSide gemv_side(const LinearOut *out, int64_t row0, int64_t rows);
/* 两个恰是 gate、up，可以当场算出 f(gate)·up。 */
bool gemv_product(const LinearOut *out, int n_out);

template <int BITS> struct Rows {
    uint4 w[Octet<BITS>::WORDS]; /* 4 行，各一组 8 列 */
};
__device__ static uint32_t word_of(const uint4 &v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}
template <int BITS> __device__ static Rows<BITS> rows_of(const uint4 *w, int quad, int t) {
    enum { LINE = QT_PANEL / 4 };
    Rows<BITS> r;
    int at = 0, first = 0;
    if (BITS == 8) {
        r.w[0] = w[2 * t * LINE + quad], r.w[Octet<BITS>::WORDS - 1] = w[(2 * t + 1) * LINE + quad];
        return r;
    }
    if (BITS & 4) r.w[at++] = w[t * LINE + quad], first = 4;
    if (BITS & 2) r.w[at++] = w[(first + t / 2) * LINE + quad], first += 2;
    if (BITS & 1) r.w[at++] = w[first * LINE + quad];
    return r;
}
template <int BITS> __device__ static Octet<BITS> octet_of(const Rows<BITS> &rows, int r, int t) {
    Octet<BITS> o;
#pragma unroll
    for (int i = 0; i < Octet<BITS>::WORDS; i++) o.w[i] = word_of(rows.w[i], r);
    if (BITS < 8 && (BITS & 2)) o.w[BITS & 4 ? 1 : 0] >>= (t & 1) * 8;
    if (BITS < 8 && (BITS & 1)) o.w[Octet<BITS>::WORDS - 1] >>= t * 4;
    return o;
}
/* 4 行的缩放。 */
__device__ static float4 scales_at(const char *scales, int quad, DType type) {
    if (type != DT_F16) return ((const float4 *)scales)[quad];
    uint2 raw = ((const uint2 *)scales)[quad];
    float2 a = __half22float2(*(__half2 *)&raw.x), b = __half22float2(*(__half2 *)&raw.y);
    return make_float4(a.x, a.y, b.x, b.y);
}
/* 4 行的零点，原样：各 4 位（BITS 大于 4 时 8 位）。 */
template <int BITS> __device__ static uint32_t zeros_at(const char *zeros, int quad, int kind) {
    if (kind == ZERO_SYM) return (BITS > 4 ? 0x01010101u : 0x1111u) << (BITS - 1);
    return BITS > 4 ? ((const uint32_t *)zeros)[quad] : ((const uint16_t *)zeros)[quad];
}

/* (a & mask) | bits */
__device__ static uint32_t masked(uint32_t a, uint32_t mask, uint32_t bits) {
    uint32_t r;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(r) : "r"(a), "r"(mask), "r"(bits));
    return r;
}
/* 第 i 对编码，成 bf16 的一对：BITS<8 时是 128 + 编码（尾数够放，或上去就是加），否则是编码。 */
template <int BITS> __device__ static uint32_t octet_pair(const Octet<BITS> &o, int i) {
    if (BITS == 8) {
        uint32_t w = o.w[i / 2] >> (i & 1) * 16;
        return pack2(__uint_as_float(masked(w, 255, 0x4B000000u)) - 8388608.0f, __uint_as_float(masked(w >> 8, 255, 0x4B000000u)) - 8388608.0f);
    }
    uint32_t code = 0x43004300u;
    int at = 0, first = 0;
    if (BITS & 4) code = masked(o.w[at++] >> 4 * i, 0x000F000Fu, code), first = 4;
    if (BITS & 2) code |= (o.w[at++] >> 2 * i & 0x00030003u) << first, first += 2;
    if (BITS & 1) code |= (o.w[at++] >> i & 0x00010001u) << first;
    return code;
}
/* 编码里多出来的加上零点：要减去几倍的 Σx。 */
template <int BITS> __device__ static float offset_of(uint32_t zeros, int r) {
    return BITS > 4 ? (float)(zeros >> 8 * r & 255) : 128.0f + (float)(zeros >> 4 * r & 15);
}
#endif
