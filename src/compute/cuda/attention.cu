/* attention — 因果注意力的三条路：查询很少的走 decode.cu，bf16 计算走 flash_wgmma.cu 或 flash.cu，其余一个线程束一个（查询, 头），沿键在线 softmax
 * 后两条先把键值由存放形式展开成行主序（bf16 或 f32）。bf16 计算时 q、k、v 都先舍入到 bf16。 */
#include <math.h>

#include "compute/cuda/attention.h"
#include "compute/cuda/kvstore.h"
#include "compute/cuda/tiled.h"

/* 值里的 NaN、Inf：换成 0，同一位置的键换成 NaN。看得见它的查询因而仍得 NaN，看不见的（概率为 0）不受影响。 */
__device__ static float keep_finite(float v, __nv_bfloat16 *key) {
    if (isfinite(v)) return v;
    *key = __float2bfloat16_rn(NAN);
    return 0;
}
/* 位置 [p0, p1) → 行主序的 type（行号即位置），cos 非 NULL 时旋转。 */
__global__ static void kv_expand_kernel(Store v, void *dst, __nv_bfloat16 *keys, DType type, int64_t p0, int64_t p1, const float *cos_t, const float *sin_t,
                                        int64_t half, bool interleaved) {
    int64_t width = v.s.heads * v.s.dim;
    EACH(i, (p1 - p0) * width) {
        int64_t pos = p0 + i / width, h = i % width / v.s.dim, d = i % v.s.dim;
        float x = kv_at(v, pos, h, d);
        if (cos_t && d < 2 * half) {
            bool head = interleaved ? d % 2 == 0 : d < half;
            int64_t step = interleaved ? 1 : half, j = interleaved ? d / 2 : d % half;
            float y = kv_at(v, pos, h, head ? d + step : d - step);
            float co = cos_t[pos * half + j], si = sin_t[pos * half + j];
            x = head ? __fadd_rn(__fmul_rn(x, co), -__fmul_rn(y, si)) : __fadd_rn(__fmul_rn(x, co), __fmul_rn(y, si));
        }
        int64_t at = pos * width + i % width;
        real_put(dst, type, at, keys ? keep_finite(x, keys + at) : x);
    }
}

/* 原样的 f32 行 → bf16，n 是 4 的倍数。 */
__global__ static void rows_to_bf16_kernel(__nv_bfloat16 *dst, __nv_bfloat16 *keys, const float *x, int64_t n) {
    EACH(i, n / 4) {
        float4 v = ((const float4 *)x)[i];
        if (keys) {
            v.x = keep_finite(v.x, keys + 4 * i), v.y = keep_finite(v.y, keys + 4 * i + 1);
            v.z = keep_finite(v.z, keys + 4 * i + 2), v.w = keep_finite(v.w, keys + 4 * i + 3);
        }
        ((uint2 *)dst)[i] = make_uint2(pack2(v.x, v.y), pack2(v.z, v.w));
    }
}

/* 一侧展开后的近、远两份（行号即绝对位置），far 可为 NULL。 */
struct Rows {
    const float *near_rows, *far_rows;
    FarRule rule;
    int64_t residual;
};
static bool expand_side(Backend *b, const AttnSide *a, int64_t first, int64_t n, int near_slot, int far_slot, Rows *out) {
    const KvStore *s = a->near;
    int64_t end = first + n, width = s->heads * s->dim, far = a->rule == FAR_NONE ? 0 : attn_far_end(a, end - 1);
    out->rule = a->rule, out->residual = a->residual, out->far_rows = NULL;
    if (s->f.dtype == DT_F32 && s->first == 0 && !a->cos_table) {
        out->near_rows = (const float *)s->data;
    } else {
        float *to = (float *)cuda_slot(b, near_slot, (size_t)(end * width) * 4);
        if (!to) return false;
        int64_t from = s->first, till = s->first + s->length < end ? s->first + s->length : end;
        if (till > from)
            kv_expand_kernel<<<cuda_blocks((till - from) * width, 256), 256, 0, STREAM(b)>>>(
                store_of(s, true), to, NULL, DT_F32, from, till, a->cos_table, a->sin_table, a->half, a->interleaved);
        out->near_rows = to;
    }
    if (far > 0) {
        float *to = (float *)cuda_slot(b, far_slot, (size_t)(far * width) * 4);
        if (!to) return false;
        kv_expand_kernel<<<cuda_blocks(far * width, 256), 256, 0, STREAM(b)>>>(store_of(a->far, true), to, NULL, DT_F32, 0, far,
                                                                           a->cos_table, a->sin_table, a->half, a->interleaved);
        out->far_rows = to;
    }
    return LAUNCHED(b, "键值展开");
}
__device__ static int64_t far_end(const Rows &r, int64_t pos) {
    if (r.rule == FAR_NONE) return 0;
    if (r.rule == FAR_ALL) return pos + 1;
    if (r.rule == FAR_STEP) return pos / r.residual * r.residual;
    return pos > r.residual ? pos - r.residual : 0;
}

enum { LANE_DIMS = 16 }; /* 每个线程至多 16 维：头的维数至多 512 */
__device__ static float rounded(float x, bool round) {
    return round ? __bfloat162float(__float2bfloat16_rn(x)) : x;
}
__global__ static void attention_kernel(float *out, const float *q, Rows k, Rows v, int64_t n, AttnSpec s, bool round) {
    int64_t item = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (item >= n * s.n_heads) return;
    int lane = threadIdx.x % 32;
    int64_t t = n - 1 - item / s.n_heads, h = item % s.n_heads, kv = h / (s.n_heads / s.n_kv_heads), dim = s.head_dim;
    int64_t pos = s.first + t, from = s.window > 0 && pos >= s.window ? pos - s.window + 1 : 0;
    int64_t k_far = far_end(k, pos), v_far = far_end(v, pos), width = s.n_kv_heads * dim;
    float qr[LANE_DIMS], acc[LANE_DIMS], max = -INFINITY, sum = 0;
#pragma unroll
    for (int i = 0; i < LANE_DIMS; i++) {
        int64_t d = lane + 32 * i;
        qr[i] = d < dim ? rounded(q[(t * s.n_heads + h) * dim + d], round) : 0;
        acc[i] = 0;
    }
    for (int64_t j = from; j <= pos; j++) {
        const float *kr = (j < k_far ? k.far_rows : k.near_rows) + j * width + kv * dim;
        const float *vr = (j < v_far ? v.far_rows : v.near_rows) + j * width + kv * dim;
        float dot = 0;
#pragma unroll
        for (int i = 0; i < LANE_DIMS; i++)
            if (lane + 32 * i < dim) dot += qr[i] * rounded(kr[lane + 32 * i], round);
        for (int o = 16; o; o /= 2) dot += __shfl_xor_sync(0xFFFFFFFFu, dot, o);
        dot *= s.scale;
        if (s.softcap > 0) dot = s.softcap * tanhf(dot / s.softcap);
        if (s.bias) dot += s.bias[h * s.bias_stride + j];
        float m = dot > max ? dot : max, shrink = expf(max - m), p = expf(dot - m);
        sum = sum * shrink + p;
        max = m;
#pragma unroll
        for (int i = 0; i < LANE_DIMS; i++)
            if (lane + 32 * i < dim) acc[i] = acc[i] * shrink + p * rounded(vr[lane + 32 * i], round);
    }
#pragma unroll
    for (int i = 0; i < LANE_DIMS; i++)
        if (lane + 32 * i < dim) out[(t * s.n_heads + h) * dim + lane + 32 * i] = acc[i] / sum;
}
/* 一侧 → bf16 行（行号即位置），*lo 是首个有效的位置。只用于全近或全远。keys：这一侧是值时，已展开的键。 */
static __nv_bfloat16 *expand_bf16(Backend *b, const AttnSide *a, int64_t end, int slot, int64_t *lo, __nv_bfloat16 *keys) {
    const KvStore *s = a->rule == FAR_ALL ? a->far : a->near;
    int64_t width = s->heads * s->dim, from = s->first, till = s->first + s->length < end ? s->first + s->length : end;
    __nv_bfloat16 *to = (__nv_bfloat16 *)cuda_slot(b, slot, (size_t)(end * width) * 2);
    if (!to) return NULL;
    if (from > *lo) *lo = from;
    if (s->f.form == KV_DENSE && s->f.dtype == DT_F32 && !a->cos_table) /* width 是 8 的倍数 */
        rows_to_bf16_kernel<<<cuda_blocks((till - from) * width, 1024), 256, 0, STREAM(b)>>>(to + from * width, keys ? keys + from * width : NULL,
                                                                                       (const float *)s->data,
                                                                                       (till - from) * width);
    else if (till > from)
        kv_expand_kernel<<<cuda_blocks((till - from) * width, 256), 256, 0, STREAM(b)>>>(
            store_of(s, true), to, keys, DT_BF16, from, till, a->cos_table, a->sin_table, a->half, a->interleaved);
    return LAUNCHED(b, "键值展开") ? to : NULL;
}
static bool one_source(const AttnSide *a) {
    return a->rule == FAR_NONE || a->rule == FAR_ALL;
}
static void flash(Backend *b, float *out, const float *q, const AttnSide *k, const AttnSide *v, int64_t n, const AttnSpec *s) {
    FlashArgs a = {};
    a.out = out, a.q = q, a.n = n, a.s = *s, a.dim = s->head_dim, a.width = s->n_kv_heads * s->head_dim, a.hi = s->first + n;
    a.k = expand_bf16(b, k, a.hi, SLOT_X, &a.lo, NULL);
    if (a.k) a.v = expand_bf16(b, v, a.hi, SLOT_W, &a.lo, (__nv_bfloat16 *)a.k);
    if (!a.k || !a.v) return;
    if (a.lo == 0 && tiled_accepts(b, s))
        cuda_tiled_rows(b, out, q, a.k, a.v, n, s);
    else
        cuda_flash(b, &a);
}
void cuda_attention(Backend *b, float *out, const float *q, const AttnSide *k, const AttnSide *v, int64_t n, const AttnSpec *s) {
    Rows kr, vr;
    if (decode_accepts(k, v, n, s)) {
        cuda_decode(b, out, q, k->near, v->near, n, s);
        return;
    }
    if (flash_accepts(b, s) && one_source(k) && one_source(v)) {
        flash(b, out, q, k, v, n, s);
        return;
    }
    if (s->head_dim > 32 * LANE_DIMS) {
        cuda_fail(b, ERR_UNSUPPORTED, "CUDA 的注意力只支持头的维数不大于 %d", 32 * LANE_DIMS);
        return;
    }
    if (!expand_side(b, k, s->first, n, SLOT_X, SLOT_W, &kr) || !expand_side(b, v, s->first, n, SLOT_A, SLOT_B, &vr)) return;
    attention_kernel<<<cuda_blocks(n * s->n_heads, 4), 128, 0, STREAM(b)>>>(out, q, kr, vr, n, *s, b->compute == COMPUTE_BF16);
    LAUNCHED(b, "attention");
}
