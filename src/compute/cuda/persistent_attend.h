/* persistent_attend — 常驻的内核里的一步注意力（persistent.cu）：旋转、写入缓存、看缓存
 * 一块一份：一个键值头的至多 HEADS 个查询头，一段键。q、k、v 先舍入到 bf16，同 decode.cu。 */
#ifndef PTQ_COMPUTE_CUDA_PERSISTENT_ATTEND_H
#define PTQ_COMPUTE_CUDA_PERSISTENT_ATTEND_H
#include "compute/cuda/decode.h"

enum { WARPS = 16, THREADS = WARPS * 32, HEADS = 4, TILE = 64, KEY_LANES = THREADS / TILE, MAX_DIM = 128 };

struct AttendPhase {
    float *out, *part; /* part：(头, 段, dim+2) */
    const float *q;
    StepArgs step;
    void *keys, *values; /* 位置 0 的行（缓存的首行减去它的位置） */
    int *done;
    int pos, heads, kv_heads, dim, window, splits;
    float scale, softcap;
    bool f16;
};

template <typename T> __device__ static float bf16_of(T x) {
    return rounded(value(x), true);
}
/* 一份：键值头 kv 的查询头 [h0, h0+heads)，位置 [j0, j1)。 */
struct Share {
    int head, split, kv, h0, heads, j0, j1;
    bool first; /* 这个键值头的头一份 */
};
__device__ static int shares_of(const AttendPhase &a) {
    int group = a.heads / a.kv_heads;
    return a.kv_heads * ((group + HEADS - 1) / HEADS) * a.splits;
}
__device__ static Share share_at(const AttendPhase &a, int i) {
    int group = a.heads / a.kv_heads, per = (group + HEADS - 1) / HEADS;
    Share s;
    s.head = i / a.splits, s.split = i % a.splits, s.kv = s.head / per, s.first = s.head % per == 0;
    s.h0 = s.kv * group + s.head % per * HEADS;
    s.heads = (s.kv + 1) * group - s.h0 < HEADS ? (s.kv + 1) * group - s.h0 : HEADS;
    int from = a.window > 0 && a.pos >= a.window ? a.pos - a.window + 1 : 0, each = (a.pos + a.splits - from) / a.splits;
    s.j0 = from + each * s.split, s.j1 = s.j0 + each < a.pos + 1 ? s.j0 + each : a.pos + 1;
    return s;
}
/* 本线程用到的一批键值：键是第 tid/KEY_LANES 个的一部分维，值是两维、每 slices 个取一个。旧的不依赖前面的结果，头一批在会合之前就取。 */
struct Early {
    uint4 key[MAX_DIM / (KEY_LANES * 8)];
    uint32_t value[TILE * MAX_DIM / (2 * THREADS)];
};
__device__ static void load_keys(Early *e, const AttendPhase &a, const Share &s, int j) {
    int tid = threadIdx.x, pairs = a.dim / 2, slices = THREADS / pairs, slice = tid / pairs, end = s.j1 < a.pos ? s.j1 : a.pos;
    int64_t width = (int64_t)a.kv_heads * a.dim;
    const uint16_t *key = (const uint16_t *)a.keys + (j + tid / KEY_LANES) * width + s.kv * a.dim;
    const uint16_t *value = (const uint16_t *)a.values + j * width + s.kv * a.dim + tid % pairs * 2;
#pragma unroll
    for (int i = 0; i < MAX_DIM / (KEY_LANES * 8); i++) {
        int d = (tid % KEY_LANES + i * KEY_LANES) * 8;
        if (j + tid / KEY_LANES < end && d < a.dim) e->key[i] = *(const uint4 *)(key + d);
    }
#pragma unroll
    for (int i = 0; i < TILE * MAX_DIM / (2 * THREADS); i++)
        if (slice < slices && slice + i * slices < TILE && j + slice + i * slices < end)
            e->value[i] = *(const uint32_t *)(value + (slice + i * slices) * width);
}
__device__ static void load_early(Early *e, const AttendPhase &a) {
    if ((int)blockIdx.x >= shares_of(a)) return;
    Share s = share_at(a, blockIdx.x);
    load_keys(e, a, s, s.j0);
}
template <typename T> struct AttendShared {
    float q[HEADS][MAX_DIM], score[HEADS][TILE], state[HEADS][4]; /* state：最大值，Σ，这次的收缩 */
    float stats[HEADS][MAX_SPLITS][2];
    T key[MAX_DIM], value[MAX_DIM]; /* 新的 */
    float sums[2 * THREADS * HEADS]; /* (份, 头, 维) */
};
/* 一个头的 n 个分数 → 系数，更新 state；一个线程束。 */
__device__ static void soften(float *score, float *state, int n) {
    int lane = threadIdx.x % 32;
    float a = lane < n ? score[lane] : -INFINITY, b = lane + 32 < n ? score[lane + 32] : -INFINITY, old = state[0], m = fmaxf(old, fmaxf(a, b));
    for (int o = 16; o; o /= 2) m = fmaxf(m, __shfl_xor_sync(0xFFFFFFFFu, m, o));
    float base = m == -INFINITY ? 0 : m;
    a = expf(a - base), b = expf(b - base);
    float sum = a + b;
    for (int o = 16; o; o /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, o);
    score[lane] = a, score[lane + 32] = b;
    __syncwarp();
    if (lane) return;
    state[2] = expf(old - base);
    state[1] = state[1] * state[2] + sum, state[0] = m;
}
/* 一个键的一部分维与各头的 q 的积。 */
template <typename T> __device__ static void dots(float *x, const AttendShared<T> &sh, const Early &e, bool fresh, int dim) {
#pragma unroll
    for (int i = 0; i < MAX_DIM / (KEY_LANES * 8); i++) {
        int d = (threadIdx.x % KEY_LANES + i * KEY_LANES) * 8;
        if (d >= dim) continue;
        uint4 raw = fresh ? *(const uint4 *)&sh.key[d] : e.key[i];
        const T *k = (const T *)&raw;
#pragma unroll
        for (int g = 0; g < HEADS; g++) {
            float4 a = *(const float4 *)&sh.q[g][d], b = *(const float4 *)&sh.q[g][d + 4];
            x[g] += a.x * bf16_of(k[0]) + a.y * bf16_of(k[1]) + a.z * bf16_of(k[2]) + a.w * bf16_of(k[3]);
            x[g] += b.x * bf16_of(k[4]) + b.y * bf16_of(k[5]) + b.z * bf16_of(k[6]) + b.w * bf16_of(k[7]);
        }
    }
}
/* 各段的部分结果合并；最后做完的一块。 */
template <typename T> __device__ static void merge_shares(const AttendPhase &a, const Share &s, AttendShared<T> &sh) {
    enum { AHEAD = 16 }; /* 先取这么多段，与各段的统计同时在路上 */
    int dim = a.dim, i = threadIdx.x, g = i / dim, d = i % dim;
    const float *part = a.part + (int64_t)(s.h0 + g) * a.splits * (dim + 2) + 2 + d;
    float v[AHEAD], m = -INFINITY, total = 0, o = 0;
    bool mine = i < s.heads * dim; /* HEADS·MAX_DIM 不多于 THREADS */
#pragma unroll
    for (int p = 0; p < AHEAD; p++) v[p] = mine && p < a.splits ? __ldcg(part + p * (dim + 2)) : 0;
    for (int n = i; n < s.heads * a.splits; n += THREADS) {
        const float *stats = a.part + ((int64_t)(s.h0 + n / a.splits) * a.splits + n % a.splits) * (dim + 2);
        sh.stats[n / a.splits][n % a.splits][0] = __ldcg(stats), sh.stats[n / a.splits][n % a.splits][1] = __ldcg(stats + 1);
    }
    __syncthreads();
    if (!mine) return;
    for (int p = 0; p < a.splits; p++) m = fmaxf(m, sh.stats[g][p][0]);
    auto add = [&](int p, float x) {
        float f = sh.stats[g][p][0] == -INFINITY ? 0 : expf(sh.stats[g][p][0] - m);
        total += sh.stats[g][p][1] * f, o += x * f;
    };
#pragma unroll
    for (int p = 0; p < AHEAD; p++)
        if (p < a.splits) add(p, v[p]);
    for (int p = AHEAD; p < a.splits; p++) add(p, __ldcg(part + p * (dim + 2)));
    a.out[(s.h0 + g) * dim + d] = o / total;
}
/* early：头一批键值已在手里。 */
template <typename T> __device__ static void attend_share(const AttendPhase &a, const Share &s, Early &early, AttendShared<T> &sh) {
    __shared__ bool last;
    int tid = threadIdx.x, dim = a.dim, width = a.kv_heads * dim;
    int pairs = dim / 2, slices = THREADS / pairs, slice = tid / pairs, d = tid % pairs * 2; /* 加权时：两维、一份键 */
    T *keys = (T *)a.keys + s.kv * dim, *values = (T *)a.values + s.kv * dim;
    float acc[HEADS][2] = {};
    for (int i = tid; i < HEADS * dim; i += THREADS)
        sh.q[i / dim][i % dim] = i / dim < s.heads ? rounded(turned(a.q + (s.h0 + i / dim) * dim, i % dim, a.step, a.pos), true) : 0;
    for (int e = tid; s.j1 == a.pos + 1 && s.j0 < s.j1 && e < dim; e += THREADS) {
        put(&sh.key[e], turned(a.step.k + s.kv * dim, e, a.step, a.pos)), put(&sh.value[e], __ldcg(a.step.v + s.kv * dim + e));
        if (s.first) keys[(int64_t)a.pos * width + e] = sh.key[e], values[(int64_t)a.pos * width + e] = sh.value[e];
    }
    if (tid < HEADS) sh.state[tid][0] = -INFINITY, sh.state[tid][1] = 0;
    __syncthreads();
    for (int j = s.j0; j < s.j1; j += TILE) {
        int n = s.j1 - j < TILE ? s.j1 - j : TILE, key = tid / KEY_LANES, part = tid % KEY_LANES;
        float x[HEADS] = {};
        if (j > s.j0) load_keys(&early, a, s, j);
        if (key < n) dots(x, sh, early, j + key == a.pos, dim);
#pragma unroll
        for (int g = 0; g < HEADS; g++) {
            for (int o = KEY_LANES / 2; o; o /= 2) x[g] += __shfl_xor_sync(0xFFFFFFFFu, x[g], o);
            float y = x[g] * a.scale;
            if (a.softcap > 0) y = a.softcap * tanhf(y / a.softcap);
            if (part == g) sh.score[g][key] = y;
        }
        __syncthreads();
        if (tid / 32 < HEADS) soften(sh.score[tid / 32], sh.state[tid / 32], n);
        __syncthreads();
#pragma unroll
        for (int g = 0; g < HEADS; g++) acc[g][0] *= sh.state[g][2], acc[g][1] *= sh.state[g][2];
#pragma unroll
        for (int k = 0; k < TILE * MAX_DIM / (2 * THREADS); k++) {
            int i = slice + k * slices;
            if (slice >= slices || i >= n) continue;
            uint32_t raw = j + i == a.pos ? *(const uint32_t *)&sh.value[d] : early.value[k];
            const T *v = (const T *)&raw;
            float v0 = bf16_of(v[0]), v1 = bf16_of(v[1]);
#pragma unroll
            for (int g = 0; g < HEADS; g++) acc[g][0] += sh.score[g][i] * v0, acc[g][1] += sh.score[g][i] * v1;
        }
        __syncthreads();
    }
#pragma unroll
    for (int g = 0; g < HEADS; g++)
        if (slice < slices) *(float2 *)&sh.sums[(slice * HEADS + g) * dim + d] = make_float2(acc[g][0], acc[g][1]);
    __syncthreads();
    for (int i = tid; i < s.heads * dim; i += THREADS) {
        int g = i / dim, e = i % dim;
        float sum = 0, *to = a.part + ((int64_t)(s.h0 + g) * a.splits + s.split) * (dim + 2);
        for (int p = 0; p < slices; p++) sum += sh.sums[(p * HEADS + g) * dim + e];
        if (a.splits == 1)
            a.out[(s.h0 + g) * dim + e] = sum / sh.state[g][1];
        else
            to[2 + e] = sum;
        if (a.splits > 1 && e == 0) to[0] = sh.state[g][0], to[1] = sh.state[g][1];
    }
    if (a.splits == 1) return;
    __syncthreads();
    if (tid == 0) {
        unsigned before;
        asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(a.done + s.head), "r"(a.splits - 1) : "memory"); /* 满了归零 */
        last = (int)before == a.splits - 1;
    }
    __syncthreads();
    if (last) merge_shares(a, s, sh);
}
/* early：本块的头一份的头一批。 */
template <typename T> __device__ static void attend_all(const AttendPhase &a, Early &early, void *shared) {
    for (int i = blockIdx.x; i < shares_of(a); i += gridDim.x) {
        Share s = share_at(a, i);
        if (i >= (int)gridDim.x) load_keys(&early, a, s, s.j0);
        attend_share(a, s, early, *(AttendShared<T> *)shared);
        __syncthreads();
    }
}
#endif
