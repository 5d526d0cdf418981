/* kv — 键值缓存的写入与量化 */
#include <math.h>
#include <stdlib.h>

#include "compute/cuda/cuda_ops.h"
#include "compute/cuda/kvstore.h"

__global__ static void kv_write_kernel(KvStore s, const float *x, int64_t n) {
    int64_t width = s.heads * s.dim;
    EACH(i, n * width) real_put(s.data, s.f.dtype, s.length * width + i, x[i]);
}
void cuda_kv_write(Backend *b, KvStore *s, const float *x, int64_t n) {
    kv_write_kernel<<<cuda_blocks(n * s->heads * s->dim, 256), 256, 0, STREAM(b)>>>(*s, x, n);
    if (LAUNCHED(b, "kv_write")) s->length += n;
}

__device__ static int affine_code(const KvStore &s, float x, float scale, float min) {
    float top = (float)((1 << s.f.bits) - 1), c = scale > 0 ? rintf(__fdiv_rn(__fadd_rn(x, -min), scale)) : 0;
    return (int)(c > 0 ? c < top ? c : top : 0);
}
/* 减去偏置后的原值。 */
__device__ static float raw_at(const KvStore &s, const Store &near, int64_t pos, int64_t col) {
    float x = kv_at(near, pos, col / s.dim, col % s.dim);
    return s.f.bias ? __fadd_rn(x, -s.f.bias[col]) : x;
}
/* 定参数：逐通道的组每（组, 通道）一个线程，逐 token 的每（token, 头, 组）一个线程。 */
__global__ static void affine_params_kernel(KvStore s, Store near, int64_t pos, int64_t n) {
    int64_t width = s.heads * s.dim, all = s.heads * s.vecs * KV_LANES;
    int64_t count = s.f.per_channel ? (n + s.f.group - 1) / s.f.group * width : n * s.heads * s.n_groups;
    EACH(i, count) {
        int64_t c0, c1, p0, p1, at, step;
        if (s.f.per_channel) {
            int64_t g = pos / s.f.group + i / width;
            c0 = i % width, c1 = c0 + 1;
            p0 = g * s.f.group, p1 = p0 + s.f.group < pos + n ? p0 + s.f.group : pos + n;
            if (s.f.sink > p0 && s.f.sink < p1) p0 = s.f.sink;
            at = g * 2 * all + c0 / s.dim * s.vecs * KV_LANES + c0 % s.dim, step = all;
        } else {
            int64_t h = i / s.n_groups % s.heads, g = i % s.n_groups;
            p0 = pos + i / s.n_groups / s.heads, p1 = p0 + 1;
            c0 = h * s.dim + g * s.f.group;
            c1 = (g + 1) * s.f.group < s.dim ? c0 + s.f.group : (h + 1) * s.dim;
            at = 2 * ((p0 * s.heads + h) * s.n_groups + g), step = 1;
        }
        float lo = raw_at(s, near, p0, c0), hi = lo;
        for (int64_t p = p0; p < p1; p++)
            for (int64_t c = c0; c < c1; c++) {
                float x = raw_at(s, near, p, c);
                lo = x < lo ? x : lo, hi = x > hi ? x : hi;
            }
        real_put(s.params, s.f.dtype, at, __fdiv_rn(__fadd_rn(hi, -lo), (float)((1 << s.f.bits) - 1)));
        real_put(s.params, s.f.dtype, at + step, lo);
    }
}
/* 一个 token 的上下分位点：第 m 大与第 m−1 大之间插值（见 cpu/kv.c 的 row_thresholds）。一块一个 token。 */
__device__ static void thresholds(const KvStore &s, const Store &near, int64_t pos, float *lower, float *upper) {
    __shared__ float sh[256];
    __shared__ int cnt[256];
    int64_t width = s.heads * s.dim;
    double rank = (1 - s.f.outliers / 2) * (double)(width - 1), t = rank - floor(rank);
    int64_t m = width - (int64_t)floor(rank);
    for (int side = 0; side < 2; side++) {
        float value = INFINITY, before = INFINITY; /* 第 m 大与它的前一个 */
        int64_t seen = 0;
        while (seen < m) { /* 依次取严格更小的最大值，数它出现几次 */
            float best = -INFINITY;
            for (int64_t c = threadIdx.x; c < width; c += blockDim.x) {
                float x = raw_at(s, near, pos, c);
                x = side ? -x : x;
                if (x < value && x > best) best = x;
            }
            best = block_max(best, sh);
            int times = 0;
            for (int64_t c = threadIdx.x; c < width; c += blockDim.x) {
                float x = raw_at(s, near, pos, c);
                times += (side ? -x : x) == best;
            }
            times = block_sum(times, cnt);
            before = seen + times >= m && times > 1 && m - seen > 1 ? best : value;
            value = best;
            if (!times) break;
            seen += times;
        }
        if (m <= 1) before = value;
        float end = (float)((double)value + ((double)before - (double)value) * t);
        if (side) *lower = -end; else *upper = end;
    }
}
/* 查表的一个 token 一块：参数、编码前的位图。 */
__global__ static void lut_params_kernel(KvStore s, Store near, int64_t pos, uint8_t *mask, uint32_t *count) {
    __shared__ float sh[256];
    __shared__ int cnt[256];
    int64_t p = pos + blockIdx.x, width = s.heads * s.dim;
    float lower = 0, upper = 0, lo = INFINITY, hi = -INFINITY;
    if (!s.f.per_channel && mask) thresholds(s, near, p, &lower, &upper);
    int n = 0;
    for (int64_t c = threadIdx.x; c < width; c += blockDim.x) {
        float x = raw_at(s, near, p, c);
        bool out = mask && (s.f.per_channel ? x < s.f.lower[c] || x > s.f.upper[c] : x <= lower || x >= upper);
        if (mask) mask[blockIdx.x * width + c] = out;
        n += out && p >= s.f.sink;
        if (out) continue;
        lo = x < lo ? x : lo, hi = x > hi ? x : hi;
    }
    hi = block_max(hi, sh);
    lo = -block_max(-lo, sh);
    n = block_sum(n, cnt);
    if (threadIdx.x) return;
    if (count) count[blockIdx.x] = (uint32_t)n;
    if (s.f.per_channel) return;
    if (lo > hi) lo = hi = 0;
    real_put(s.params, s.f.dtype, 2 * p, __fmul_rn(__fadd_rn(hi, -lo), 0.5f));
    real_put(s.params, s.f.dtype, 2 * p + 1, __fmul_rn(__fadd_rn(hi, lo), 0.5f));
}
/* 编码：一个线程一个（token, 头, 16 通道一组）。 */
__global__ static void kv_codes_kernel(Store v, Store near, int64_t pos, int64_t n) {
    const KvStore &s = v.s;
    int64_t all = s.heads * s.vecs * KV_LANES, width = s.heads * s.dim;
    EACH(i, n * s.heads * s.vecs) {
        int64_t p = pos + i / s.vecs / s.heads, h = i / s.vecs % s.heads, d0 = i % s.vecs * KV_LANES;
        uint16_t word[8] = {0};
        for (int l = 0; l < KV_LANES && d0 + l < s.dim; l++) {
            int64_t d = d0 + l, c = h * s.dim + d;
            float x = raw_at(s, near, p, c);
            if (p < s.f.sink) real_put(s.sink_rows, s.f.dtype, p * width + c, kv_at(near, p, h, d));
            int code = 0;
            if (s.f.form == KV_AFFINE) {
                int64_t at = s.f.per_channel ? p / s.f.group * 2 * all + h * s.vecs * KV_LANES + d
                                             : 2 * ((p * s.heads + h) * s.n_groups + d / s.f.group);
                code = affine_code(s, x, real_at(s.params, s.f.dtype, at),
                                   real_at(s.params, s.f.dtype, at + (s.f.per_channel ? all : 1)));
            } else {
                float half, mid;
                if (s.f.per_channel) {
                    half = __fmul_rn(__fadd_rn(s.f.upper[c], -s.f.lower[c]), 0.5f);
                    mid = __fmul_rn(__fadd_rn(s.f.upper[c], s.f.lower[c]), 0.5f);
                } else {
                    half = real_at(s.params, s.f.dtype, 2 * p), mid = real_at(s.params, s.f.dtype, 2 * p + 1);
                }
                float y = half > 0 ? __fdiv_rn(__fadd_rn(x, -mid), half) : 0;
                for (int b = s.f.bits - 1; b >= 0; b--) code += (y > v.boundary[code + (1 << b) - 1]) << b;
            }
            for (int b = 0; b < s.f.bits; b++) word[b] |= (uint16_t)((code >> b & 1) << l);
        }
        uint16_t *w = (uint16_t *)s.data + (p * s.heads * s.vecs + h * s.vecs + d0 / KV_LANES) * s.f.bits;
        for (int b = 0; b < s.f.bits; b++) w[b] = word[b];
    }
}
__global__ static void outliers_kernel(KvStore s, Store near, int64_t pos, int64_t n, const uint8_t *mask) {
    int64_t width = s.heads * s.dim;
    EACH(i, n) {
        int64_t p = pos + i;
        uint32_t at = p ? s.row_end[p - 1] : 0;
        for (int64_t c = 0; p >= s.f.sink && c < width; c++)
            if (mask[i * width + c]) {
                s.columns[at] = (uint16_t)c;
                real_put(s.values, s.f.dtype, at++, kv_at(near, p, c / s.dim, c % s.dim));
            }
    }
}
static bool reserve_outliers(Backend *b, KvStore *s, int64_t n) {
    if (n <= s->cap_outliers) return true;
    Allocator *a = s->memory;
    int64_t cap = 2 * s->cap_outliers > n ? 2 * s->cap_outliers : n, old = s->cap_outliers;
    size_t item = kvstore_item(s);
    uint16_t *columns = (uint16_t *)a->alloc(a, (size_t)cap * 2);
    void *values = columns ? a->alloc(a, (size_t)cap * item) : NULL;
    if (!values) {
        if (columns) a->release(a, columns, (size_t)cap * 2);
        return cuda_fail(b, ERR_MEMORY, "键值缓存的离群值：显存不足");
    }
    if (old) {
        cuda_ok(b, cudaMemcpyAsync(columns, s->columns, (size_t)old * 2, cudaMemcpyDeviceToDevice, STREAM(b)), "复制");
        cuda_ok(b, cudaMemcpyAsync(values, s->values, (size_t)old * item, cudaMemcpyDeviceToDevice, STREAM(b)), "复制");
        a->release(a, s->columns, (size_t)old * 2);
        a->release(a, s->values, (size_t)old * item);
    }
    s->columns = columns, s->values = values, s->cap_outliers = cap;
    return true;
}
/* 由各 token 的个数（设备）求前缀和，备好空间。 */
static bool place_outliers(Backend *b, KvStore *s, int64_t pos, int64_t n, const uint32_t *count) {
    uint32_t *host = (uint32_t *)malloc((size_t)n * 4);
    if (!host) return cuda_fail(b, ERR_MEMORY, "内存不足");
    b->ops->read(b, host, count, (size_t)n * 4);
    uint64_t total = 0;
    uint32_t last = 0;
    if (pos) b->ops->read(b, &last, s->row_end + pos - 1, 4);
    total = last;
    for (int64_t i = 0; i < n; i++) host[i] = (uint32_t)(total += host[i]);
    bool ok = b->err.code == ERR_NONE && (total <= UINT32_MAX || cuda_fail(b, ERR_UNSUPPORTED, "键值缓存的离群值超过 2^32 个"));
    if (ok) b->ops->write(b, s->row_end + pos, host, (size_t)n * 4);
    s->n_outliers = (int64_t)total;
    free(host);
    return ok && b->err.code == ERR_NONE && reserve_outliers(b, s, (int64_t)total);
}
void cuda_kv_quantize(Backend *b, KvStore *s, const KvStore *near, int64_t pos, int64_t n) {
    Store nv = store_of(near, true);
    cudaStream_t st = STREAM(b);
    int64_t width = s->heads * s->dim;
    uint8_t *mask = NULL;
    uint32_t *count = NULL;
    if (s->f.sparse) {
        mask = (uint8_t *)cuda_slot(b, SLOT_Z, (size_t)(n * width));
        count = (uint32_t *)cuda_slot(b, SLOT_HOST, (size_t)n * 4);
        if (!mask || !count) return;
    }
    if (s->f.form == KV_LUT)
        lut_params_kernel<<<(unsigned)n, 256, 0, st>>>(*s, nv, pos, mask, count);
    else
        affine_params_kernel<<<cuda_blocks(n * width, 128), 128, 0, st>>>(*s, nv, pos, n);
    kv_codes_kernel<<<cuda_blocks(n * s->heads * s->vecs, 128), 128, 0, st>>>(store_of(s, false), nv, pos, n);
    if (!LAUNCHED(b, "kv_quantize")) return;
    if (s->f.sparse) {
        if (!place_outliers(b, s, pos, n, count)) return;
        outliers_kernel<<<cuda_blocks(n, 64), 64, 0, st>>>(*s, nv, pos, n, mask);
        if (!LAUNCHED(b, "离群值")) return;
    }
    s->length = pos + n;
}
