/* decode — 查询很少（逐 token 解码）的注意力：直接读缓存，沿键切开分给许多块
 * 一块一个（键值头的一批查询头, 查询, 一段键），各线程束轮流取键、一次几个、各自在线 softmax；段不止一个时部分结果写到显存，
 * 最后做完的块按段的次序合并。bf16 计算时 q、k、v 先舍入到 bf16，同 flash.cu。
 * 一步解码（STEP）连同旋转、写入缓存：q 在取的时候转，看得见最末一个键的那一块转 k 并把 k、v 写进缓存。 */
#include <math.h>

#include "compute/cuda/attention.h"

enum { WARPS = 8, SPLIT_KEYS = 64, MAX_SPLITS = 32, AHEAD = 4 /* 一次取几个键 */ };

struct DecodeRow {
    void *k, *v;
    int64_t k_first, v_first, pos; /* 缓存首行的位置，查询的位置 */
};
/* 一步解码的新键值与旋转。 */
struct StepArgs {
    const float *k, *v, *cos_table, *sin_table; /* 表 NULL：不转 */
    int half;
    bool interleaved;
};
struct DecodeArgs {
    float *out, *part; /* part：(查询, 头, 段, dim+2) */
    const float *q;
    DecodeRow row[STEP_MAX_ROWS];
    DType dtype;
    int *done; /* 各（查询, 批）已做完的段数，用完归零 */
    int splits;
    bool round;
    AttnSpec s;
    StepArgs step;
};

__device__ static float rounded(float x, bool round) {
    return round ? __bfloat162float(__float2bfloat16_rn(x)) : x;
}
/* 一个线程的 N 个相邻的元素：整个都有时一次读来。 */
template <typename T, int N> struct alignas(sizeof(T) * N) Pack {
    T x[N];
};
__device__ static float value(float x) {
    return x;
}
__device__ static float value(__half x) {
    return __half2float(x);
}
__device__ static float value(__nv_bfloat16 x) {
    return __bfloat162float(x);
}
__device__ static void put(float *to, float x) {
    *to = x;
}
__device__ static void put(__half *to, float x) {
    *to = __float2half_rn(x);
}
__device__ static void put(__nv_bfloat16 *to, float x) {
    *to = __float2bfloat16_rn(x);
}
template <typename T, int N> __device__ static Pack<T, N> load_dims(const T *data, int64_t at, int valid, bool aligned) {
    Pack<T, N> p = {};
    if (aligned && valid >= N) return *(const Pack<T, N> *)(data + at);
#pragma unroll
    for (int i = 0; i < N; i++)
        if (i < valid) p.x[i] = data[at + i];
    return p;
}
/* 一个头的第 d 维旋转之后。 */
__device__ static float turned(const float *head, int d, const StepArgs &s, int64_t pos) {
    if (!s.cos_table || d >= 2 * s.half) return head[d];
    int j = s.interleaved ? d / 2 : d % s.half, step = s.interleaved ? 1 : s.half;
    bool lead = s.interleaved ? d % 2 == 0 : d < s.half;
    float co = s.cos_table[pos * s.half + j], si = s.sin_table[pos * s.half + j], x = head[d], y = head[lead ? d + step : d - step];
    return lead ? __fadd_rn(__fmul_rn(x, co), -__fmul_rn(y, si)) : __fadd_rn(__fmul_rn(x, co), __fmul_rn(y, si));
}

/* 各线程束的在线 softmax：state 是 (最大值, Σ)，sums 是加权和，按线程束的次序合并；写出一段的结果。 */
template <int N, int G> __device__ static void merge_warps(const DecodeArgs &a, const float (*state)[G][2], const float (*sums)[G][32 * N],
                                                           int64_t t, int64_t h0, int heads, int split) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = (int)a.s.head_dim, d0 = lane * N;
    for (int g = warp; g < heads; g += WARPS) { /* 线程束 g 合并第 g 个头 */
        float m = -INFINITY, total = 0, o[N] = {};
        for (int w = 0; w < WARPS; w++) m = fmaxf(m, state[w][g][0]);
        for (int w = 0; w < WARPS; w++) {
            float f = state[w][g][0] == -INFINITY ? 0 : expf(state[w][g][0] - m);
            total += state[w][g][1] * f;
#pragma unroll
            for (int i = 0; i < N; i++) o[i] += sums[w][g][d0 + i] * f;
        }
        int64_t row = t * a.s.n_heads + h0 + g;
        float *to = a.splits == 1 ? a.out + row * dim : a.part + (row * a.splits + split) * (dim + 2) + 2;
        float inv = a.splits == 1 ? 1 / total : 1;
        for (int i = 0; i < N; i++)
            if (d0 + i < dim) to[d0 + i] = o[i] * inv;
        if (a.splits > 1 && lane == 0) to[-2] = m, to[-1] = total;
    }
}
/* 各段的结果合并：一个线程束一个头，线程 s 管段 s 的系数（MAX_SPLITS 不多于 32）。 */
template <int N> __device__ static void merge_splits(const DecodeArgs &a, int64_t t, int64_t h0, int heads) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = (int)a.s.head_dim, d0 = lane * N;
    for (int g = warp; g < heads; g += WARPS) {
        int64_t row = t * a.s.n_heads + h0 + g;
        const float *part = a.part + row * a.splits * (dim + 2);
        float mine = lane < a.splits ? __ldcg(part + lane * (dim + 2)) : -INFINITY, m = mine;
        float sum = lane < a.splits ? __ldcg(part + lane * (dim + 2) + 1) : 0;
        for (int o = 16; o; o /= 2) m = fmaxf(m, __shfl_xor_sync(0xFFFFFFFFu, m, o));
        float f = mine == -INFINITY ? 0 : expf(mine - m), total = sum * f, o[N] = {};
        for (int k = 16; k; k /= 2) total += __shfl_xor_sync(0xFFFFFFFFu, total, k);
#pragma unroll 8
        for (int s = 0; s < a.splits; s++) {
            float fs = __shfl_sync(0xFFFFFFFFu, f, s);
#pragma unroll
            for (int i = 0; i < N; i++)
                if (d0 + i < dim) o[i] += __ldcg(part + s * (dim + 2) + 2 + d0 + i) * fs;
        }
        for (int i = 0; i < N; i++)
            if (d0 + i < dim) a.out[row * dim + d0 + i] = o[i] / total;
    }
}

/* 一批 G 个查询头；一个线程管 N 个相邻的维。 */
template <typename T, int N, int G, bool STEP>
__global__ __launch_bounds__(WARPS * 32) static void decode_kernel(const __grid_constant__ DecodeArgs a) {
    __shared__ float state[WARPS][G][2], sums[WARPS][G][32 * N];
    __shared__ bool last;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, split = blockIdx.x;
    int64_t t = blockIdx.z, dim = a.s.head_dim, group = a.s.n_heads / a.s.n_kv_heads, per = (group + G - 1) / G;
    int64_t kv = blockIdx.y / per, h0 = kv * group + blockIdx.y % per * G;
    int heads = (int)(kv * group + group - h0 < G ? kv * group + group - h0 : G), d0 = lane * N;
    int valid = (int)(dim - d0 < N ? dim - d0 : N);
    const DecodeRow &row0 = a.row[t];
    int64_t pos = row0.pos, from = a.s.window > 0 && pos >= a.s.window ? pos - a.s.window + 1 : 0;
    int64_t len = pos + 1 - from, j0 = from + len * split / a.splits, j1 = from + len * (split + 1) / a.splits;
    int64_t width = a.s.n_kv_heads * dim;
    const T *keys = (const T *)row0.k, *values = (const T *)row0.v;
    bool aligned = dim % N == 0;
    grid_release();
    grid_wait();
    float q[G][N], acc[G][N] = {}, max[G], sum[G] = {};
#pragma unroll
    for (int g = 0; g < G; g++) {
        max[g] = -INFINITY;
        const float *head = a.q + (t * a.s.n_heads + h0 + (g < heads ? g : 0)) * dim;
#pragma unroll
        for (int i = 0; i < N; i++)
            q[g][i] = i < valid ? rounded(STEP ? turned(head, d0 + i, a.step, pos) : head[d0 + i], a.round) : 0;
    }
    for (int64_t first = j0 + warp; first < j1; first += WARPS * AHEAD) {
        Pack<T, N> k[AHEAD], v[AHEAD];
        float x[G][AHEAD];
#pragma unroll
        for (int s = 0; s < AHEAD; s++) {
            int64_t j = first + s * WARPS;
            if (STEP && j == pos && j < j1) {
                const float *new_k = a.step.k + t * width + kv * dim, *new_v = a.step.v + t * width + kv * dim;
                for (int i = 0; i < N; i++) {
                    if (i >= valid) continue;
                    put(&k[s].x[i], turned(new_k, d0 + i, a.step, pos)), put(&v[s].x[i], new_v[d0 + i]);
                    if (blockIdx.y % per) continue;
                    ((T *)row0.k)[(pos - row0.k_first) * width + kv * dim + d0 + i] = k[s].x[i];
                    ((T *)row0.v)[(pos - row0.v_first) * width + kv * dim + d0 + i] = v[s].x[i];
                }
            } else if (j < j1) {
                k[s] = load_dims<T, N>(keys, (j - row0.k_first) * width + kv * dim + d0, valid, aligned);
                v[s] = load_dims<T, N>(values, (j - row0.v_first) * width + kv * dim + d0, valid, aligned);
            }
        }
#pragma unroll
        for (int s = 0; s < AHEAD; s++)
#pragma unroll
            for (int g = 0; g < G; g++) {
                x[g][s] = 0;
#pragma unroll
                for (int i = 0; i < N; i++)
                    if (i < valid) x[g][s] += q[g][i] * rounded(value(k[s].x[i]), a.round);
            }
#pragma unroll
        for (int o = 16; o; o /= 2)
#pragma unroll
            for (int s = 0; s < AHEAD; s++)
#pragma unroll
                for (int g = 0; g < G; g++) x[g][s] += __shfl_xor_sync(0xFFFFFFFFu, x[g][s], o);
#pragma unroll
        for (int g = 0; g < G; g++) {
            float m = max[g];
#pragma unroll
            for (int s = 0; s < AHEAD; s++) {
                int64_t j = first + s * WARPS;
                x[g][s] *= a.s.scale;
                if (a.s.softcap > 0) x[g][s] = a.s.softcap * tanhf(x[g][s] / a.s.softcap);
                if (a.s.bias && j < j1) x[g][s] += a.s.bias[(h0 + (g < heads ? g : 0)) * a.s.bias_stride + j];
                if (j >= j1) x[g][s] = -INFINITY;
                m = fmaxf(m, x[g][s]);
            }
            float base = m == -INFINITY ? 0 : m, shrink = expf(max[g] - base);
            sum[g] *= shrink, max[g] = m;
#pragma unroll
            for (int i = 0; i < N; i++) acc[g][i] *= shrink;
#pragma unroll
            for (int s = 0; s < AHEAD; s++) {
                if (first + s * WARPS >= j1) break;
                float p = expf(x[g][s] - base);
                sum[g] += p;
#pragma unroll
                for (int i = 0; i < N; i++)
                    if (i < valid) acc[g][i] += p * rounded(value(v[s].x[i]), a.round);
            }
        }
    }
#pragma unroll
    for (int g = 0; g < G; g++) {
        if (lane == 0) state[warp][g][0] = max[g], state[warp][g][1] = sum[g];
#pragma unroll
        for (int i = 0; i < N; i++) sums[warp][g][d0 + i] = acc[g][i];
    }
    __syncthreads();
    merge_warps<N, G>(a, state, sums, t, h0, heads, split);
    if (a.splits == 1) return;
    __threadfence();
    __syncthreads();
    int *done = a.done + blockIdx.z * gridDim.y + blockIdx.y;
    if (threadIdx.x == 0) last = atomicAdd(done, 1) == a.splits - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    merge_splits<N>(a, t, h0, heads);
    if (threadIdx.x == 0) *done = 0;
}

bool decode_accepts(const AttnSide *k, const AttnSide *v, int64_t n, const AttnSpec *s) {
    return n <= DECODE_MAX_ROWS && s->head_dim <= 256 && k->rule == FAR_NONE && v->rule == FAR_NONE && !k->cos_table &&
           !v->cos_table && s->n_heads * n <= COUNTERS;
}
template <typename T, int N, int G> static void launch(Backend *b, const DecodeArgs &a, int64_t n) {
    int64_t group = a.s.n_heads / a.s.n_kv_heads, per = (group + G - 1) / G;
    dim3 grid((unsigned)a.splits, (unsigned)(a.s.n_kv_heads * per), (unsigned)n), block(WARPS * 32);
    launch_early(b, a.step.k ? decode_kernel<T, N, G, true> : decode_kernel<T, N, G, false>, grid, block, 0, a);
}
template <typename T, int N> static void launch_group(Backend *b, const DecodeArgs &a, int64_t n) {
    int64_t group = a.s.n_heads / a.s.n_kv_heads;
    if (group >= 4)
        launch<T, N, 4>(b, a, n);
    else if (group >= 2)
        launch<T, N, 2>(b, a, n);
    else
        launch<T, N, 1>(b, a, n);
}
template <typename T> static void launch_dims(Backend *b, const DecodeArgs &a, int64_t n) {
    if (a.s.head_dim <= 64)
        launch_group<T, 2>(b, a, n);
    else if (a.s.head_dim <= 128)
        launch_group<T, 4>(b, a, n);
    else
        launch_group<T, 8>(b, a, n);
}
/* 各行已填好；longest：看得见的键最多几个。 */
static bool run(Backend *b, DecodeArgs *a, int64_t n, int64_t longest) {
    int64_t splits = (longest - 1) / SPLIT_KEYS + 1, dim = a->s.head_dim;
    a->splits = (int)(splits > MAX_SPLITS ? MAX_SPLITS : splits);
    a->round = b->compute == COMPUTE_BF16, a->done = cuda_of(b)->counters;
    if (a->splits > 1) {
        a->part = (float *)cuda_slot(b, SLOT_A, (size_t)(n * a->s.n_heads * a->splits * (dim + 2)) * 4);
        if (!a->part) return false;
    }
    if (a->dtype == DT_F32)
        launch_dims<float>(b, *a, n);
    else if (a->dtype == DT_F16)
        launch_dims<__half>(b, *a, n);
    else
        launch_dims<__nv_bfloat16>(b, *a, n);
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
        cuda_attention(b, j->out + i * heads * dim, q, &ks, &vs, 1, &spec);
    }
}
void cuda_attend_step(Backend *b, const StepJob *j) {
    const AttnSpec *s = &j->spec;
    DecodeArgs a = {};
    int64_t longest = 1;
    if (s->head_dim > 256) {
        step_apart(b, j);
        return;
    }
    a.out = j->out, a.q = j->q, a.s = *s, a.dtype = j->rows[0].k->f.dtype;
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
