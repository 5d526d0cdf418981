/* decode — 查询很少（逐 token 解码）的注意力：直接读缓存，沿键切开分给许多块
 * 一块一个（键值头的一批查询头, 查询, 一段键），4 个线程束轮流取键、各自在线 softmax；段不止一个时部分结果写到显存，
 * 最后做完的块按段的次序合并。bf16 计算时 q、k、v 先舍入到 bf16，同 flash.cu。 */
#include <math.h>

#include "compute/cuda/attention.h"

enum { WARPS = 4, SPLIT_KEYS = 64, MAX_SPLITS = 32, AHEAD = 4 /* 一次取几个键 */ };

struct DecodeRow {
    void *k, *v;
    int64_t k_first, v_first, pos; /* 缓存首行的位置，查询的位置 */
};
struct DecodeArgs {
    float *out, *part; /* part：(查询, 头, 段, dim+2) */
    const float *q;
    DecodeRow row[STEP_MAX_ROWS];
    DType dtype;
    int *done; /* 各（查询, 批）已做完的段数，用完归零 */
    int splits, batches;
    bool round;
    AttnSpec s;
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
template <typename T, int N> __device__ static Pack<T, N> load_dims(const T *data, int64_t at, int valid, bool aligned) {
    Pack<T, N> p = {};
    if (aligned && valid >= N) return *(const Pack<T, N> *)(data + at);
#pragma unroll
    for (int i = 0; i < N; i++)
        if (i < valid) p.x[i] = data[at + i];
    return p;
}

/* 一批 G 个查询头；一个线程管 N 个相邻的维。 */
template <typename T, int N, int G> __global__ __launch_bounds__(WARPS * 32) static void decode_kernel(const __grid_constant__ DecodeArgs a) {
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
    float q[G][N], acc[G][N] = {}, max[G], sum[G] = {};
#pragma unroll
    for (int g = 0; g < G; g++) {
        max[g] = -INFINITY;
#pragma unroll
        for (int i = 0; i < N; i++)
            q[g][i] = g < heads && i < valid ? rounded(a.q[(t * a.s.n_heads + h0 + g) * dim + d0 + i], a.round) : 0;
    }
    const T *keys = (const T *)row0.k, *values = (const T *)row0.v;
    bool aligned = dim % N == 0;
    for (int64_t first = j0 + warp; first < j1; first += WARPS * AHEAD) {
        Pack<T, N> k[AHEAD], v[AHEAD];
#pragma unroll
        for (int s = 0; s < AHEAD; s++) {
            int64_t j = first + s * WARPS;
            if (j < j1) {
                k[s] = load_dims<T, N>(keys, (j - row0.k_first) * width + kv * dim + d0, valid, aligned);
                v[s] = load_dims<T, N>(values, (j - row0.v_first) * width + kv * dim + d0, valid, aligned);
            }
        }
#pragma unroll
        for (int s = 0; s < AHEAD; s++) {
            int64_t j = first + s * WARPS;
            if (j >= j1) break;
            float dot[G];
#pragma unroll
            for (int g = 0; g < G; g++) {
                dot[g] = 0;
#pragma unroll
                for (int i = 0; i < N; i++) dot[g] += q[g][i] * rounded(value(k[s].x[i]), a.round);
            }
#pragma unroll
            for (int o = 16; o; o /= 2)
#pragma unroll
                for (int g = 0; g < G; g++) dot[g] += __shfl_xor_sync(0xFFFFFFFFu, dot[g], o);
#pragma unroll
            for (int g = 0; g < G; g++) {
                float x = dot[g] * a.s.scale;
                if (a.s.softcap > 0) x = a.s.softcap * tanhf(x / a.s.softcap);
                if (a.s.bias) x += a.s.bias[(h0 + (g < heads ? g : 0)) * a.s.bias_stride + j];
                float m = fmaxf(max[g], x), base = m == -INFINITY ? 0 : m, shrink = expf(max[g] - base), p = expf(x - base);
                sum[g] = sum[g] * shrink + p;
                max[g] = m;
#pragma unroll
                for (int i = 0; i < N; i++) acc[g][i] = acc[g][i] * shrink + p * rounded(value(v[s].x[i]), a.round);
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
        for (int i = 0; i < valid; i++) to[d0 + i] = o[i] * inv;
        if (a.splits > 1 && lane == 0) to[-2] = m, to[-1] = total;
    }
    if (a.splits == 1) return;
    __threadfence();
    __syncthreads();
    int *done = a.done + blockIdx.z * gridDim.y + blockIdx.y;
    if (threadIdx.x == 0) last = atomicAdd(done, 1) == a.splits - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    for (int g = warp; g < heads; g += WARPS) {
        int64_t row = t * a.s.n_heads + h0 + g;
        const volatile float *part = a.part + row * a.splits * (dim + 2);
        float m = -INFINITY, total = 0, o[N] = {};
        for (int s = 0; s < a.splits; s++) m = fmaxf(m, part[s * (dim + 2)]);
        for (int s = 0; s < a.splits; s++) {
            float f = part[s * (dim + 2)] == -INFINITY ? 0 : expf(part[s * (dim + 2)] - m);
            total += part[s * (dim + 2) + 1] * f;
            for (int i = 0; i < valid; i++) o[i] += part[s * (dim + 2) + 2 + d0 + i] * f;
        }
        for (int i = 0; i < valid; i++) a.out[row * dim + d0 + i] = o[i] / total;
    }
    if (threadIdx.x == 0) *done = 0;
}

bool decode_accepts(const AttnSide *k, const AttnSide *v, int64_t n, const AttnSpec *s) {
    return n <= DECODE_MAX_ROWS && s->head_dim <= 256 && k->rule == FAR_NONE && v->rule == FAR_NONE && !k->cos_table &&
           !v->cos_table && s->n_heads * n <= COUNTERS;
}
template <typename T, int N> static void launch(const DecodeArgs &a, int64_t n, cudaStream_t st) {
    int64_t group = a.s.n_heads / a.s.n_kv_heads, g = group >= 4 ? 4 : group >= 2 ? 2 : 1, per = (group + g - 1) / g;
    dim3 grid((unsigned)a.splits, (unsigned)(a.s.n_kv_heads * per), (unsigned)n);
    if (g == 4)
        decode_kernel<T, N, 4><<<grid, WARPS * 32, 0, st>>>(a);
    else if (g == 2)
        decode_kernel<T, N, 2><<<grid, WARPS * 32, 0, st>>>(a);
    else
        decode_kernel<T, N, 1><<<grid, WARPS * 32, 0, st>>>(a);
}
template <typename T> static void launch_dims(const DecodeArgs &a, int64_t n, cudaStream_t st) {
    if (a.s.head_dim <= 64)
        launch<T, 2>(a, n, st);
    else if (a.s.head_dim <= 128)
        launch<T, 4>(a, n, st);
    else
        launch<T, 8>(a, n, st);
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
        launch_dims<float>(*a, n, STREAM(b));
    else if (a->dtype == DT_F16)
        launch_dims<__half>(*a, n, STREAM(b));
    else
        launch_dims<__nv_bfloat16>(*a, n, STREAM(b));
    return LAUNCHED(b, "decode");
}
bool cuda_decode(Backend *b, float *out, const float *q, const KvStore *k, const KvStore *v, int64_t n, const AttnSpec *s) {
    DecodeArgs a = {};
    a.out = out, a.q = q, a.s = *s, a.dtype = k->f.dtype;
    for (int64_t i = 0; i < n; i++) a.row[i] = DecodeRow{k->data, v->data, k->first, v->first, s->first + i};
    return run(b, &a, n, s->window > 0 && s->window < s->first + n ? s->window : s->first + n);
}

/* 一行一块：q、k 旋转，k、v 写进缓存。 */
__global__ static void step_kernel(const __grid_constant__ DecodeArgs a, float *q, const float *k, const float *v,
                                   const float *cos_t, const float *sin_t, int half, bool interleaved) {
    const DecodeRow &row = a.row[blockIdx.x];
    int dim = (int)a.s.head_dim, heads = (int)a.s.n_heads, width = (int)a.s.n_kv_heads * dim, step = interleaved ? 1 : half;
    const float *co = cos_t + row.pos * half, *si = sin_t + row.pos * half;
    q += (int64_t)blockIdx.x * heads * dim, k += (int64_t)blockIdx.x * width, v += (int64_t)blockIdx.x * width;
    for (int i = threadIdx.x; i < heads * half; i += blockDim.x) {
        int j = i % half;
        float *p = q + i / half * dim + (interleaved ? 2 * j : j), x = p[0], y = p[step];
        p[0] = __fadd_rn(__fmul_rn(x, co[j]), -__fmul_rn(y, si[j]));
        p[step] = __fadd_rn(__fmul_rn(y, co[j]), __fmul_rn(x, si[j]));
    }
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        int d = i % dim, j = interleaved ? d / 2 : d % (half ? half : 1);
        float x = k[i];
        if (d < 2 * half) {
            bool head = interleaved ? d % 2 == 0 : d < half;
            float y = k[head ? i + step : i - step];
            x = head ? __fadd_rn(__fmul_rn(x, co[j]), -__fmul_rn(y, si[j])) : __fadd_rn(__fmul_rn(x, co[j]), __fmul_rn(y, si[j]));
        }
        real_put(row.k, a.dtype, (row.pos - row.k_first) * width + i, x);
        real_put(row.v, a.dtype, (row.pos - row.v_first) * width + i, v[i]);
    }
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
    step_kernel<<<(unsigned)j->n, 512, 0, STREAM(b)>>>(a, j->q, j->k, j->v, j->cos_table, j->sin_table,
                                                      j->cos_table ? (int)j->half : 0, j->interleaved);
    if (!LAUNCHED(b, "step") || !run(b, &a, j->n, longest)) return;
    for (int64_t i = 0; i < j->n; i++) j->rows[i].k->length++, j->rows[i].v->length++;
}
