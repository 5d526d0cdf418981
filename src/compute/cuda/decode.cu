/* decode — 查询很少（逐 token 解码）的注意力：直接读缓存，沿键切开分给许多块；bf16 计算、常见的维数走 decode_mma.cu
 * 一块一个（键值头的一批查询头, 查询, 一段键）。一次取 TILE 个键值到共享内存，先算全部的分数，再定 softmax 的系数，再加权；段不止一个时部分
 * 结果写到显存，最后做完的块按段的次序合并。bf16 计算时 q、k、v 先舍入到 bf16，同 flash.cu。
 * 一步解码（step.k 非 NULL）连同旋转、写入缓存：q 在取的时候转，看得见最末一个键的那一块转 k 并把 k、v 写进缓存。
 * 一次派发只做几微秒，代码因此求短：展开得多了，取指令的时间反而比算的长。 */
#include <math.h>

#include "compute/cuda/decode.h"
#include "compute/cuda/persistent.h"

enum { THREADS = 256, TILE = 64, MAX_DIM = 256, PARTS = THREADS / TILE /* 几个线程算一个键的分数 */ };

/* 共享内存：q，分数，各头的系数，k、v 各 TILE 行（行距 stride 个元素，多出 16 字节免得撞同一组存储体）。 */
template <typename T, int G> struct Tile {
    T *k, *v;
    float *q, (*score)[TILE], (*state)[4]; /* state：最大值，Σ，这次的收缩 */
    int stride, padded;                    /* padded：dim 补到整 16 字节 */
};
template <typename T> static __host__ __device__ int padded_dim(int dim) {
    enum { UNIT = 16 / sizeof(T) };
    return (dim + UNIT - 1) / UNIT * UNIT;
}
template <typename T, int G> static __host__ __device__ size_t tile_bytes(int dim) {
    size_t stats = (size_t)G * (padded_dim<T>(dim) + TILE + 4) * 4, sums = (size_t)G * 2 * THREADS * 4; /* 各份的和放回 k、v 处 */
    size_t tiles = (size_t)2 * TILE * (padded_dim<T>(dim) * sizeof(T) + 16);
    return stats + (tiles > sums ? tiles : sums);
}
template <typename T, int G> __device__ static Tile<T, G> tile_at(char *shared, int dim) {
    Tile<T, G> t;
    t.padded = padded_dim<T>(dim), t.stride = t.padded + 16 / (int)sizeof(T);
    t.q = (float *)shared, t.score = (float(*)[TILE])(t.q + G * t.padded), t.state = (float(*)[4])(t.score + G);
    t.k = (T *)(t.state + G), t.v = t.k + TILE * t.stride;
    return t;
}
/* 键 [j, j+n) 的 k 或 v 送进共享内存；行尾补零。 */
template <typename T> __device__ static void fetch(T *to, const T *from, int width, int n, int dim, int padded, int stride) {
    enum { UNIT = 16 / sizeof(T) };
    int units = padded / UNIT;
    bool whole = dim % UNIT == 0 && width % UNIT == 0; /* 各行都从 16 字节的边界开始 */
#pragma unroll 1
    for (int i = threadIdx.x; i < n * units; i += THREADS) {
        int row = i / units, d = i % units * UNIT;
        T *at = to + row * stride + d;
        if (whole) {
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(at)), "l"(from + (int64_t)row * width + d));
        } else {
#pragma unroll 1
            for (int e = 0; e < UNIT; e++) put(at + e, d + e < dim ? value(from[(int64_t)row * width + d + e]) : 0);
        }
    }
}
/* 一个键的一部分维与各头的 q 的积。 */
template <typename T, int G> __device__ static void dots(float *x, const Tile<T, G> &t, int key, int part, bool round) {
    enum { UNIT = 16 / sizeof(T) };
#pragma unroll
    for (int g = 0; g < G; g++) x[g] = 0;
#pragma unroll 1
    for (int d = part * UNIT; d < t.padded; d += PARTS * UNIT) {
        uint4 raw = *(const uint4 *)(t.k + key * t.stride + d);
        const T *k = (const T *)&raw;
#pragma unroll
        for (int e = 0; e < UNIT; e++) {
            float ke = rounded(value(k[e]), round);
#pragma unroll
            for (int g = 0; g < G; g++) x[g] += t.q[g * t.padded + d + e] * ke;
        }
    }
}
/* 一个头的 n 个分数 → 系数，更新 state；一个线程束。 */
__device__ static void soften(float *score, float *state, int n) {
    int lane = threadIdx.x % 32;
    float m = state[0], sum = 0;
#pragma unroll 1
    for (int i = lane; i < n; i += 32) m = fmaxf(m, score[i]);
    for (int o = 16; o; o /= 2) m = fmaxf(m, __shfl_xor_sync(0xFFFFFFFFu, m, o));
    float base = m == -INFINITY ? 0 : m;
#pragma unroll 1
    for (int i = lane; i < n; i += 32) sum += score[i] = expf(score[i] - base);
    for (int o = 16; o; o /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, o);
    __syncwarp();
    if (lane) return;
    state[2] = expf(state[0] - base);
    state[1] = state[1] * state[2] + sum, state[0] = m;
}
/* 一批至多 G 个查询头。 */
template <typename T, int G> __global__ __launch_bounds__(THREADS) static void decode_kernel(const __grid_constant__ DecodeArgs a) {
    extern __shared__ uint4 shared[];
    __shared__ bool last;
    int tid = threadIdx.x, split = blockIdx.x, dim = (int)a.s.head_dim, t = blockIdx.z;
    int group = (int)a.s.n_heads / (int)a.s.n_kv_heads, per = (group + G - 1) / G, kv = blockIdx.y / per;
    int h0 = kv * group + blockIdx.y % per * G, heads = kv * group + group - h0 < G ? kv * group + group - h0 : G;
    const DecodeRow &row0 = a.row[t];
    int pos = (int)row0.pos, from = a.s.window > 0 && pos >= a.s.window ? pos - (int)a.s.window + 1 : 0, len = pos + 1 - from;
    int each = (len + a.splits - 1) / a.splits, j0 = from + each * split, j1 = j0 + each < pos + 1 ? j0 + each : pos + 1;
    int width = (int)a.s.n_kv_heads * dim;
    Tile<T, G> tile = tile_at<T, G>((char *)shared, dim);
    int pairs = (dim + 1) / 2, slices = THREADS / pairs, slice = tid / pairs, d = tid % pairs * 2; /* 加权时：两维、一份键 */
    float acc[G][2] = {};
    bool step = a.step.k != NULL;
    grid_release();
    grid_wait();
#pragma unroll 1
    for (int i = tid; i < G * tile.padded; i += THREADS) {
        int g = i / tile.padded, e = i % tile.padded;
        const float *head = a.q + (int64_t)(t * (int)a.s.n_heads + h0 + g) * dim;
        tile.q[i] = g < heads && e < dim ? rounded(step ? turned(head, e, a.step, pos) : head[e], a.round) : 0;
    }
    if (tid < G) tile.state[tid][0] = -INFINITY, tile.state[tid][1] = 0;
#pragma unroll 1
    for (int j = j0; j < j1; j += TILE) {
        int n = j1 - j < TILE ? j1 - j : TILE, old = step && j + n > pos ? n - 1 : n; /* 新的键在最末 */
        const T *keys = (const T *)row0.k + (j - row0.k_first) * width + kv * dim;
        const T *values = (const T *)row0.v + (j - row0.v_first) * width + kv * dim;
        fetch(tile.k, keys, width, old, dim, tile.padded, tile.stride);
        fetch(tile.v, values, width, old, dim, tile.padded, tile.stride);
#pragma unroll 1
        for (int e = tid; old < n && e < tile.padded; e += THREADS) {
            T *k = tile.k + old * tile.stride + e, *v = tile.v + old * tile.stride + e;
            put(k, e < dim ? turned(a.step.k + t * width + kv * dim, e, a.step, pos) : 0);
            put(v, e < dim ? a.step.v[t * width + kv * dim + e] : 0);
            if (e < dim && blockIdx.y % per == 0) ((T *)keys)[(int64_t)old * width + e] = *k, ((T *)values)[(int64_t)old * width + e] = *v;
        }
        asm volatile("cp.async.wait_all;" ::: "memory");
        __syncthreads();
        int key = tid / PARTS;
        float x[G];
        if (key < n) dots<T, G>(x, tile, key, tid % PARTS, a.round);
#pragma unroll
        for (int g = 0; g < G; g++) {
            for (int o = PARTS / 2; o; o /= 2) x[g] += __shfl_xor_sync(0xFFFFFFFFu, x[g], o);
            if (key >= n || tid % PARTS) continue;
            float y = x[g] * a.s.scale;
            if (a.s.softcap > 0) y = a.s.softcap * tanhf(y / a.s.softcap);
            if (a.s.bias) y += a.s.bias[(h0 + (g < heads ? g : 0)) * a.s.bias_stride + j + key];
            tile.score[g][key] = y;
        }
        __syncthreads();
#pragma unroll 1
        for (int g = tid / 32; g < G; g += THREADS / 32) soften(tile.score[g], tile.state[g], n);
        __syncthreads();
#pragma unroll
        for (int g = 0; g < G; g++) acc[g][0] *= tile.state[g][2], acc[g][1] *= tile.state[g][2];
        if (slice < slices)
#pragma unroll 2
            for (int i = slice; i < n; i += slices) {
                const T *v = tile.v + i * tile.stride + d;
                float v0 = rounded(value(v[0]), a.round), v1 = rounded(value(v[1]), a.round);
#pragma unroll
                for (int g = 0; g < G; g++) acc[g][0] += tile.score[g][i] * v0, acc[g][1] += tile.score[g][i] * v1;
            }
        __syncthreads();
    }
    float *sums = (float *)tile.k; /* (份, 头, 维)：k、v 已经用完 */
#pragma unroll
    for (int g = 0; g < G; g++)
        for (int e = 0; e < 2; e++)
            if (slice < slices && d + e < dim) sums[(slice * G + g) * dim + d + e] = acc[g][e];
    __syncthreads();
#pragma unroll 1
    for (int i = tid; i < heads * dim; i += THREADS) {
        int g = i / dim, e = i % dim;
        int64_t row = t * (int)a.s.n_heads + h0 + g;
        float sum = 0;
#pragma unroll 1
        for (int s = 0; s < slices; s++) sum += sums[(s * G + g) * dim + e];
        if (a.splits == 1) {
            put_out(a, row * dim + e, sum / tile.state[g][1]);
            continue;
        }
        float *to = a.part + (row * a.splits + split) * (dim + 2) + 2;
        to[e] = sum;
        if (e == 0) to[-2] = tile.state[g][0], to[-1] = tile.state[g][1];
    }
    if (a.splits == 1) return;
    __threadfence();
    __syncthreads();
    int *done = a.done + blockIdx.z * gridDim.y + blockIdx.y;
    if (tid == 0) last = atomicAdd(done, 1) == a.splits - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    merge_splits(a, t, h0, heads, (float *)shared);
    if (tid == 0) *done = 0;
}

bool decode_accepts(const AttnSide *k, const AttnSide *v, int64_t n, const AttnSpec *s) {
    return n <= DECODE_MAX_ROWS && s->head_dim <= MAX_DIM && k->rule == FAR_NONE && v->rule == FAR_NONE && !k->cos_table &&
           !v->cos_table && s->n_heads * n <= COUNTERS;
}
template <typename T, int G> static void launch(Backend *b, const DecodeArgs &a, int64_t n) {
    int64_t group = a.s.n_heads / a.s.n_kv_heads, per = (group + G - 1) / G;
    dim3 grid((unsigned)a.splits, (unsigned)(a.s.n_kv_heads * per), (unsigned)n), block(THREADS);
    static bool allowed; /* 共享内存多于 48 KB 要先说 */
    if (!allowed)
        allowed = cuda_ok(b, cudaFuncSetAttribute(decode_kernel<T, G>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  (int)tile_bytes<T, G>(MAX_DIM)), "共享内存");
    launch_early(b, decode_kernel<T, G>, grid, block, tile_bytes<T, G>((int)a.s.head_dim), a);
}
template <typename T> static void launch_group(Backend *b, const DecodeArgs &a, int64_t n) {
    int64_t group = a.s.n_heads / a.s.n_kv_heads;
    if (group > 4)
        launch<T, 8>(b, a, n);
    else if (group > 1)
        launch<T, 4>(b, a, n);
    else
        launch<T, 1>(b, a, n);
}
/* 各行已填好；longest：看得见的键最多几个。 */
static bool run(Backend *b, DecodeArgs *a, int64_t n, int64_t longest) {
    if (decode_mma_accepts(b, a)) return decode_mma(b, a, n, longest);
    /* 切几段：块数约够每个流式多处理器四块，一段不少于半个 TILE */
    int64_t dim = a->s.head_dim, most = (longest - 1) / (TILE / 2) + 1, splits = 4 * cuda_of(b)->sms / (n * a->s.n_kv_heads);
    if (splits > most) splits = most;
    a->splits = (int)(splits < 1 ? 1 : splits > MAX_SPLITS ? MAX_SPLITS : splits);
    a->round = b->compute == COMPUTE_BF16, a->done = cuda_of(b)->counters;
    if (a->splits > 1) {
        a->part = (float *)cuda_slot(b, SLOT_A, (size_t)(n * a->s.n_heads * a->splits * (dim + 2)) * 4);
        if (!a->part) return false;
    }
    if (a->dtype == DT_F32)
        launch_group<float>(b, *a, n);
    else if (a->dtype == DT_F16)
        launch_group<__half>(b, *a, n);
    else
        launch_group<__nv_bfloat16>(b, *a, n);
    return LAUNCHED(b, "decode");
}
bool cuda_decode(Backend *b, float *out, const float *q, const KvStore *k, const KvStore *v, int64_t n, const AttnSpec *s) {
    DecodeArgs a = {};
    a.out = out, a.q = q, a.s = *s, a.dtype = k->f.dtype;
    for (int64_t i = 0; i < n; i++) a.row[i] = DecodeRow{k->data, v->data, k->first, v->first, s->first + i};
    return run(b, &a, n, s->window > 0 && s->window < s->first + n ? s->window : s->first + n);
}

/* 头太宽：逐条分开调用。 */
static void step_apart(Backend *b, const StepJob *j) {
    int64_t heads = j->spec.n_heads, kv = j->spec.n_kv_heads, dim = j->spec.head_dim;
    for (int64_t i = 0; i < j->n && b->err.code == ERR_NONE; i++) {
        const StepRow *r = &j->rows[i];
        float *q = j->q + i * heads * dim, *k = j->k + i * kv * dim;
        if (j->cos_table) {
            cuda_rope(b, q, 1, heads, dim, j->half, j->cos_table, j->sin_table, r->pos, j->interleaved);
            cuda_rope(b, k, 1, kv, dim, j->half, j->cos_table, j->sin_table, r->pos, j->interleaved);
        }
        cuda_kv_write(b, r->k, k, 1);
        cuda_kv_write(b, r->v, j->v + i * kv * dim, 1);
        AttnSpec spec = j->spec;
        AttnSide ks = {}, vs = {};
        spec.first = r->pos, ks.near = r->k, vs.near = r->v;
        cuda_attention(b, (float *)j->out + i * heads * dim, q, &ks, &vs, 1, &spec);
    }
}
void cuda_attend_step(Backend *b, const StepJob *j) {
    const AttnSpec *s = &j->spec;
    DecodeArgs a = {};
    int64_t longest = 1;
    if (persistent_step(b, j)) return;
    if (s->head_dim > MAX_DIM) {
        step_apart(b, j);
        return;
    }
    a.out = (float *)j->out, a.half = j->half_out, a.q = j->q, a.s = *s, a.dtype = j->rows[0].k->f.dtype;
    for (int64_t i = 0; i < j->n; i++) {
        const StepRow *r = &j->rows[i];
        int64_t seen = s->window > 0 && s->window < r->pos + 1 ? s->window : r->pos + 1;
        a.row[i] = DecodeRow{r->k->data, r->v->data, r->k->first, r->v->first, r->pos};
        if (seen > longest) longest = seen;
    }
    a.step = StepArgs{j->k, j->v, j->cos_table, j->sin_table, (int)j->half, j->interleaved};
    if (!run(b, &a, j->n, longest)) return;
    for (int64_t i = 0; i < j->n; i++) j->rows[i].k->length++, j->rows[i].v->length++;
}
