/* kvstore — 键值缓存在设备上的样子，供 attention.cu 与 kv.cu */
#ifndef PTQ_COMPUTE_CUDA_KVSTORE_H
#define PTQ_COMPUTE_CUDA_KVSTORE_H
#include "compute/cuda/cuda.h"

enum { MAX_LUT = 1 << KV_MAX_LUT_BITS };
struct Store {
    KvStore s;
    float lut[MAX_LUT], boundary[MAX_LUT];
};
static inline Store store_of(const KvStore *s, bool reading) {
    Store v;
    v.s = *s;
    for (int i = 0; s->f.form == KV_LUT && i < 1 << s->f.bits; i++) {
        v.lut[i] = reading && s->f.values ? s->f.values[i] : s->f.lut[i];
        if (i) v.boundary[i - 1] = (s->f.lut[i - 1] + s->f.lut[i]) / 2;
    }
    return v;
}

__device__ static inline float kv_at(const Store &v, int64_t pos, int64_t head, int64_t d) {
    const KvStore &s = v.s;
    DType t = s.f.dtype;
    int64_t col = head * s.dim + d, width = s.heads * s.dim;
    if (s.f.form == KV_DENSE) return real_at(s.data, t, (pos - s.first) * width + col);
    if (pos < s.f.sink) return real_at(s.sink_rows, t, pos * width + col);
    if (s.row_end)
        for (uint32_t i = pos ? s.row_end[pos - 1] : 0; i < s.row_end[pos]; i++)
            if (s.columns[i] == col) return real_at(s.values, t, i);
    const uint16_t *w = (const uint16_t *)s.data + (pos * s.heads * s.vecs + head * s.vecs + d / KV_LANES) * s.f.bits;
    int code = 0;
    for (int p = 0; p < s.f.bits; p++) code |= (w[p] >> d % KV_LANES & 1) << p;
    float a, c;
    if (s.f.form == KV_AFFINE && s.f.per_channel) {
        int64_t all = s.heads * s.vecs * KV_LANES, at = pos / s.f.group * 2 * all + head * s.vecs * KV_LANES + d;
        a = real_at(s.params, t, at), c = real_at(s.params, t, at + all);
    } else if (s.f.form == KV_LUT && s.f.per_channel) {
        a = __fmul_rn(__fadd_rn(s.f.upper[col], -s.f.lower[col]), 0.5f);
        c = __fmul_rn(__fadd_rn(s.f.upper[col], s.f.lower[col]), 0.5f);
    } else {
        int64_t at = s.f.form == KV_LUT ? pos : (pos * s.heads + head) * s.n_groups + d / s.f.group;
        a = real_at(s.params, t, 2 * at), c = real_at(s.params, t, 2 * at + 1);
    }
    float x = __fadd_rn(c, __fmul_rn(a, s.f.form == KV_LUT ? v.lut[code] : (float)code));
    return s.f.bias ? __fadd_rn(x, s.f.bias[col]) : x;
}
#endif
