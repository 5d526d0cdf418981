/* attn_bf16_kernels — 注意力的 bf16 内核（AVX512-BF16；其他指令集不含本文件的代码）
 * q、k、v、p 就近取偶舍入到 bf16，vdpbf16ps 累加到 f32：q·k 沿维度成对，p·v 按绝对键号的奇偶成对。
 * 一对里看不见的那个键以零代替（不是乘以零），因此结果与预填时它是什么无关。 */
#include "compute/cpu/isa/attn_core.h"

#if defined(KERNEL_ISA_avx512_bf16)

/* 32 个 float（a 在前）→ 32 个 bf16 */
VEC_INLINE __m512i to_bf16(__m512 a, __m512 b) {
    return (__m512i)_mm512_cvtne2ps_pbh(b, a);
}
VEC_INLINE __m512i load_bf16(const float *x, int64_t n) {
    return to_bf16(_mm512_maskz_loadu_ps(attn_mask(n), x),
                   _mm512_maskz_loadu_ps(attn_mask(n - 16), n > 16 ? x + 16 : x));
}
VEC_INLINE __m512 dot(__m512 acc, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
}
/* 一对 bf16 广播到 16 路 */
VEC_INLINE __m512i pair(const uint32_t *p) {
    return _mm512_set1_epi32((int)*p);
}

static void pack_q(float *dst, const float *q, int64_t dim) {
    uint32_t *w = (uint32_t *)dst;
    for (int64_t d = 0; d < dim; d += 32)
        _mm512_mask_storeu_epi32(w + d / 2, attn_mask((dim - d + 1) / 2),
                                 load_bf16(q + d, dim - d));
}

/* [维度对][16 键][2] */
static void pack_k(float *dst, const float *k, int64_t stride, int64_t n_keys, int64_t dim) {
    int64_t pairs = (dim + 1) / 2;
    for (int64_t d = 0; d < pairs; d += 16) {
        __m512i x[16];
        VEC_UNROLL for (int j = 0; j < 16; j++)
            x[j] = j < n_keys ? load_bf16(k + j * stride + 2 * d, dim - 2 * d)
                              : _mm512_setzero_si512();
        attn_transpose(x);
        VEC_UNROLL for (int c = 0; c < 16; c++)
            if (d + c < pairs) _mm512_storeu_si512(dst + (d + c) * 16, x[c]);
    }
}

/* [键对][dv 路][2] */
static void pack_v(float *dst, const float *v, int64_t stride, int lo, int hi, int64_t dim) {
    int64_t dv = attn_v_floats(dim);
    uint16_t order[32];
    for (int i = 0; i < 32; i++) order[i] = (uint16_t)(i / 2 + i % 2 * 16);
    __m512i interleave = _mm512_loadu_si512(order);
    for (int j = lo / 2; 2 * j < hi; j++)
        for (int64_t d = 0; d < dim; d += 16) {
            __mmask16 m = attn_mask(dim - d);
            const float *at = v + 2 * j * stride + d;
            __m512 zero = _mm512_setzero_ps();
            __m512 even = 2 * j >= lo ? _mm512_maskz_loadu_ps(m, at) : zero;
            __m512 odd = 2 * j + 1 < hi ? _mm512_maskz_loadu_ps(m, at + stride) : zero;
            __m512i x = _mm512_permutexvar_epi16(interleave, to_bf16(even, odd));
            _mm512_storeu_si512(dst + j * dv + d, x);
        }
}

VEC_INLINE void qk_tile(const int rows, const int vecs, float *s, const uint32_t *q, int64_t dq,
                        const float *k, int64_t pairs) {
    __m512 acc[ATTN_ROWS][ATTN_VECS];
    __m512i kv[ATTN_VECS];
    VEC_UNROLL for (int r = 0; r < rows; r++)
        VEC_UNROLL for (int p = 0; p < vecs; p++) acc[r][p] = _mm512_setzero_ps();
    for (int64_t d = 0; d < pairs; d++) {
        VEC_UNROLL for (int p = 0; p < vecs; p++)
            kv[p] = _mm512_loadu_si512(k + (p * pairs + d) * 16);
        VEC_UNROLL for (int r = 0; r < rows; r++) {
            __m512i x = pair(q + r * dq + d);
            VEC_UNROLL for (int p = 0; p < vecs; p++) acc[r][p] = dot(acc[r][p], kv[p], x);
        }
    }
    VEC_UNROLL for (int r = 0; r < rows; r++)
        VEC_UNROLL for (int p = 0; p < vecs; p++)
            _mm512_storeu_ps(s + r * ATTN_BLOCK + p * 16, acc[r][p]);
}

static void qk(float *s, const float *q, const float *k, int rows, int p0, int p1, int64_t dim) {
    int64_t dq = attn_q_floats(dim);
    for (int p = p0, n; p < p1; p += n) {
        n = attn_step(p1 - p);
        ATTN_DISPATCH(qk_tile, rows, n, s + p * 16, (const uint32_t *)q, dq, k + p * 8 * dq,
                      dq / 2)
    }
}

/* acc += 第 j 对；mask 把看不见的那一半清零 */
VEC_INLINE void pv_pair(const int rows, const int vecs, __m512 acc[ATTN_ROWS][ATTN_VECS],
                        int64_t dv, const uint32_t *p, const float *v, int64_t j, uint32_t mask) {
    __m512i x[ATTN_VECS];
    VEC_UNROLL for (int i = 0; i < vecs; i++) {
        x[i] = _mm512_loadu_si512(v + j * dv + i * 16);
        if (mask != ~0u) x[i] = _mm512_and_si512(x[i], _mm512_set1_epi32((int)mask));
    }
    VEC_UNROLL for (int r = 0; r < rows; r++) {
        __m512i w = pair(p + r * (ATTN_BLOCK / 2) + j);
        VEC_UNROLL for (int i = 0; i < vecs; i++) acc[r][i] = dot(acc[r][i], x[i], w);
    }
}

VEC_INLINE void pv_tile(const int rows, const int vecs, float *o, int64_t dv, const float *alpha,
                        const uint32_t *p, const float *v, int lo, int hi) {
    __m512 acc[ATTN_ROWS][ATTN_VECS];
    VEC_UNROLL for (int r = 0; r < rows; r++)
        VEC_UNROLL for (int i = 0; i < vecs; i++)
            acc[r][i] = _mm512_mul_ps(_mm512_loadu_ps(o + r * dv + i * 16),
                                      _mm512_set1_ps(alpha[r]));
    int64_t j = lo / 2, end = hi / 2;
    if (lo % 2) {
        pv_pair(rows, vecs, acc, dv, p, v, j, 0xFFFF0000u);
        j++;
    }
    for (; j < end; j++) pv_pair(rows, vecs, acc, dv, p, v, j, ~0u);
    if (hi % 2) pv_pair(rows, vecs, acc, dv, p, v, end, 0x0000FFFFu);
    VEC_UNROLL for (int r = 0; r < rows; r++)
        VEC_UNROLL for (int i = 0; i < vecs; i++) _mm512_storeu_ps(o + r * dv + i * 16, acc[r][i]);
}

static void pv(float *o, int64_t dv, const float *alpha, const float *p, const float *v, int rows,
               int lo, int hi) {
    uint32_t w[ATTN_ROWS * ATTN_BLOCK / 2];
    for (int r = 0; r < rows; r++)
        for (int j = lo / 32 * 32; j < hi; j += 32) {
            const float *at = p + r * ATTN_BLOCK + j;
            _mm512_storeu_si512(w + (r * ATTN_BLOCK + j) / 2,
                                to_bf16(_mm512_loadu_ps(at), _mm512_loadu_ps(at + 16)));
        }
    for (int64_t d = 0, n; d < dv; d += 16 * n) {
        n = attn_step((dv - d) / 16);
        ATTN_DISPATCH(pv_tile, rows, n, o + d, dv, alpha, w, v + d, lo, hi)
    }
}

/* 键：一个位置的各对散在面板的一路；整面板的 16 个位置一起转置。 */
static void write_keys(const KvStore *s, int64_t head, int64_t pos, int64_t n, const float *x) {
    int64_t stride = s->heads * s->dim;
    for (int64_t i = 0, step; i < n; i += step, x += step * stride) {
        uint16_t *at = (uint16_t *)s->data + kvstore_tile_index(s, head, pos + i, 0);
        step = (pos + i) % 16 == 0 && n - i >= 16 ? 16 : 1;
        if (step == 16) {
            pack_k((float *)(void *)at, x, stride, 16, s->dim);
            continue;
        }
        uint32_t row[KV_LANES];
        for (int64_t d = 0; d < s->dim; d += 32) {
            _mm512_storeu_si512(row, load_bf16(x + d, s->dim - d));
            for (int64_t c = 0; c < 16 && d + 2 * c < s->dim; c++)
                memcpy(at + (d / 2 + c) * 32, row + c, sizeof *row);
        }
    }
}

/* 值：一个位置占各字的低半或高半。 */
static void write_values(const KvStore *s, int64_t head, int64_t pos, int64_t n, const float *x) {
    for (int64_t i = 0; i < n; i++, x += s->heads * s->dim) {
        int64_t even = (pos + i) / 2 * 2;
        bool high = (pos + i) % 2;
        uint32_t *at = (uint32_t *)s->data + kvstore_tile_index(s, head, even, 0) / 2;
        for (int64_t d = 0; d < s->dim; d += 16) {
            __m512i v = _mm512_cvtepu16_epi32(
                (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(attn_mask(s->dim - d), x + d)));
            __m512i old = _mm512_loadu_si512(at + d);
            v = high ? _mm512_or_si512(_mm512_and_si512(old, _mm512_set1_epi32(0xFFFF)),
                                       _mm512_slli_epi32(v, 16))
                     : _mm512_or_si512(_mm512_andnot_si512(_mm512_set1_epi32(0xFFFF), old), v);
            _mm512_storeu_si512(at + d, v);
        }
    }
}

void KERNEL_NAME(attn_write_tiles)(const KvStore *s, int64_t pos, int64_t n, const float *x) {
    for (int64_t h = 0; h < s->heads; h++)
        (s->f.keys ? write_keys : write_values)(s, h, pos, n, x + h * s->dim);
}

const AttnCore KERNEL_NAME(attn_core_bf16) = {2, pack_q, pack_k, pack_v, qk, pv};
#endif
