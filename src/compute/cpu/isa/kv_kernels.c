/* kv_kernels — 展开键值缓存：编码 → f32 行
 * 一次 16 个通道：由位面拼出编码，查表或乘加。离群值与开头的原值最后盖上去。 */
#include "compute/cpu/kv_kernels.h"

#include "compute/cpu/isa/attn_core.h"
#include "compute/cpu/kernels.h"

enum { DENSE_AHEAD = 16 /* 一个头的各行相隔一整行，硬件的预取跟不上：预取后面第几行 */ };

static float item_at(const KvStore *s, const void *array, int64_t i) {
    return s->f.dtype == DT_F16 ? vec_f16(((const uint16_t *)array)[i]) : ((const float *)array)[i];
}

/* dtype 数组从第 i 个起的 n（0..16）个，其余为 0 */
VEC_INLINE vf load_items(const KvStore *s, const void *array, int64_t i, int64_t n) {
    if (s->f.dtype == DT_F32) return vf_load_n((const float *)array + i, n);
    const uint16_t *h = (const uint16_t *)array + i;
    if (n >= 16) return vf_load_f16(h);
    uint16_t tmp[16] = {0};
    for (int64_t j = 0; j < n; j++) tmp[j] = h[j];
    return vf_load_f16(tmp);
}

/* 位面 → 16 个编码 */
VEC_INLINE vu join_planes(const uint16_t *w, const int bits) {
    vu code = vu_set1(0);
#if defined(VEC_AVX512)
    VEC_UNROLL for (int p = 0; p < bits; p++)
        code.p[0] = (vec_nu)_mm512_mask_or_epi32((__m512i)code.p[0], w[p], (__m512i)code.p[0],
                                                 _mm512_set1_epi32(1 << p));
#else
    static const uint32_t LANE[16] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512,
                                      1024, 2048, 4096, 8192, 16384, 32768};
    vu lane = vu_load(LANE);
    VEC_UNROLL for (int p = 0; p < bits; p++) {
        vu hit = vu_and(vu_set1(w[p]), lane), bit = vu_set1(1u << p);
        VEC_EACH code.p[vec_i] |= (vec_nu)(hit.p[vec_i] != 0) & bit.p[vec_i];
    }
#endif
    return code;
}

/* 编码 → 值：AFFINE 就是它自己，LUT 查 table（补到 16 项） */
VEC_INLINE vf decode(const uint16_t *w, const int bits, const float *table) {
    vu code = join_planes(w, bits);
    if (!table) return vf_from_int(code);
#if defined(VEC_AVX512)
    return (vf){{(vec_nf)_mm512_permutexvar_ps((__m512i)code.p[0], _mm512_loadu_ps(table))}};
#else
    uint32_t index[16];
    float x[16];
    vu_store(index, code);
    for (int i = 0; i < 16; i++) x[i] = table[index[i]];
    return vf_load(x);
#endif
}

/* 16 个通道的参数 x = b + a·v */
typedef struct Params {
    vf a, b;
} Params;

/* 头内第 v 组 16 个通道、位置 pos 的参数 */
VEC_INLINE Params load_params(const KvStore *s, int64_t head, int64_t pos, int64_t v) {
    Params p;
    int64_t d = v * KV_LANES;
    if (s->f.form == KV_LUT && s->f.per_channel) {
        vf lo = vf_load_n(s->f.lower + head * s->dim + d, s->dim - d);
        vf hi = vf_load_n(s->f.upper + head * s->dim + d, s->dim - d), half = vf_set1(0.5f);
        p.a = vf_mul(vf_sub(hi, lo), half);
        p.b = vf_mul(vf_add(hi, lo), half);
    } else if (s->f.form == KV_LUT) {
        p.a = vf_set1(item_at(s, s->params, 2 * pos));
        p.b = vf_set1(item_at(s, s->params, 2 * pos + 1));
    } else if (s->f.per_channel) {
        int64_t all = s->heads * s->vecs * KV_LANES, at = pos / s->f.group * 2 * all;
        at += head * s->vecs * KV_LANES + d;
        p.a = load_items(s, s->params, at, 16);
        p.b = load_items(s, s->params, at + all, 16);
    } else {
        const int64_t base = (pos * s->heads + head) * s->n_groups, g = s->f.group;
        int64_t first = d / g, last = (d + KV_LANES - 1) / g;
        if (last >= s->n_groups) last = s->n_groups - 1;
        p.a = vf_set1(item_at(s, s->params, 2 * (base + first)));
        p.b = vf_set1(item_at(s, s->params, 2 * (base + first) + 1));
        for (int64_t i = first + 1; i <= last; i++) { /* 组的边界落在这 16 个通道里 */
            vu rest = vu_range(i * g - d, 16);
            p.a = vf_select(rest, vf_set1(item_at(s, s->params, 2 * (base + i))), p.a);
            p.b = vf_select(rest, vf_set1(item_at(s, s->params, 2 * (base + i) + 1)), p.b);
        }
    }
    return p;
}

VEC_INLINE void expand_codes(const int bits, const KvStore *s, int64_t head, int64_t pos,
                             int64_t n, float *dst, int64_t stride, const float *table) {
    bool fixed = s->f.per_channel;
    for (int64_t v = 0; v < s->vecs; v++) {
        vf bias = vf_zero();
        int64_t d = v * KV_LANES;
        if (s->f.bias) bias = vf_load_n(s->f.bias + head * s->dim + d, s->dim - d);
        Params p = load_params(s, head, pos, v);
        for (int64_t i = 0; i < n; i++) {
            const uint16_t *w = (const uint16_t *)s->data + (pos + i) * kvstore_code_words(s) +
                                (head * s->vecs + v) * bits;
            bool edge = s->f.form == KV_AFFINE && fixed && (pos + i) % s->f.group == 0;
            if (i > 0 && (!fixed || edge)) p = load_params(s, head, pos + i, v);
            vf x = vf_add(p.b, vf_mul(p.a, decode(w, bits, table)));
            if (s->f.bias) x = vf_add(x, bias);
            vf_store(dst + i * stride + d, x);
        }
    }
}

/* 离群值：本头的通道范围内的各项盖上去 */
static void put_outliers(const KvStore *s, int64_t head, int64_t pos, float *dst) {
    int64_t lo = head * s->dim, hi = lo + s->dim;
    for (int64_t i = pos ? s->row_end[pos - 1] : 0; i < s->row_end[pos]; i++)
        if (s->columns[i] >= lo && s->columns[i] < hi)
            dst[s->columns[i] - lo] = item_at(s, s->values, i);
}

static void load_row(const KvStore *s, const void *rows, int64_t row, int64_t head, float *dst) {
    int64_t at = (row * s->heads + head) * s->dim;
    for (int64_t d = 0; d < s->dim; d += KV_LANES)
        vf_store(dst + d, load_items(s, rows, at + d, s->dim - d));
}

static void expand(const KvStore *s, int64_t head, int64_t pos, int64_t n, float *dst,
                   int64_t stride) {
    if (s->f.form == KV_DENSE) {
        int64_t ahead = DENSE_AHEAD * s->heads * s->dim * (int64_t)kvstore_item(s);
        for (int64_t i = 0; i < n; i++) {
            const char *row = (const char *)s->data +
                              ((pos - s->first + i) * s->heads + head) * s->dim * (int64_t)kvstore_item(s);
            for (int64_t at = 0; at < s->dim * (int64_t)kvstore_item(s); at += 64)
                __builtin_prefetch(row + ahead + at);
            load_row(s, s->data, pos - s->first + i, head, dst + i * stride);
        }
        return;
    }
    float table[16] = {0};
    const float *lut = NULL;
    if (s->f.form == KV_LUT) {
        memcpy(table, s->f.values ? s->f.values : s->f.lut, sizeof *table << s->f.bits);
        lut = table;
    }
    switch (s->f.bits) {
    case 1: expand_codes(1, s, head, pos, n, dst, stride, lut); break;
    case 2: expand_codes(2, s, head, pos, n, dst, stride, lut); break;
    case 3: expand_codes(3, s, head, pos, n, dst, stride, lut); break;
    case 4: expand_codes(4, s, head, pos, n, dst, stride, lut); break;
    case 5: expand_codes(5, s, head, pos, n, dst, stride, NULL); break;
    case 6: expand_codes(6, s, head, pos, n, dst, stride, NULL); break;
    case 7: expand_codes(7, s, head, pos, n, dst, stride, NULL); break;
    default: expand_codes(8, s, head, pos, n, dst, stride, NULL); break;
    }
    for (int64_t i = 0; i < n; i++) {
        if (pos + i < s->f.sink)
            load_row(s, s->sink_rows, pos + i, head, dst + i * stride);
        else if (s->row_end)
            put_outliers(s, head, pos + i, dst + i * stride);
    }
}

static void to_f16(uint16_t *dst, const float *x, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) vf_store_f16(dst + i, vf_load(x + i));
    for (; i < n; i++) dst[i] = f32_to_f16(x[i]);
}

const KvKernels KERNEL_NAME(kv_kernels) = {
    .expand = expand,
    .to_f16 = to_f16,
#if defined(KERNEL_ISA_avx512_bf16)
    .write_tiles = KERNEL_NAME(attn_write_tiles),
#endif
};
