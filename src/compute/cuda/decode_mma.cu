/* decode_mma — 查询很少的注意力，bf16 计算的张量核的一份（含义与参数同 decode.cu）
 * 一块一个（键值头的至多 16 个查询头, 查询, 一段键），四个线程束各管自己的键：一步 16 个，由 cp.async 送进各自的环形缓冲，头两步在前一个
 * 内核还没做完时就已在路上。mma 的 16 行是查询头（不足的补零），n 是键（分数）或维（加权）；在线 softmax 各线程束各算各的，最后四份按固定
 * 次序相加；段不止一个时最后做完的块按段的次序合并。没有次序不定的累加，同样的输入得到同样的位。
 * 舍入：q 旋转之后、缓存里 f16 的 k、v 都舍入到 bf16，同 CPU；概率相乘时也是 bf16，它的和不舍入；累加是 f32。
 * 提早读缓存：它只由上一步（其后有过不提早的派发，如 embed）或不提早的 kv_write 写过。 */
#include "compute/cuda/decode.h"

enum { WARPS = 4, THREADS = WARPS * 32, KEYS = 16 /* 一个线程束一步几个键 */, DEPTH = 3, ROWS = 16 };

/* 共享内存：各线程束的环（一步的 k、v 各 KEYS 行，行尾多 16 字节免得撞同一组存储体），q。最后放各线程束的结果。 */
template <int STEPS> struct Layout {
    enum { DIM = 16 * STEPS, LINE = DIM * 2 + 16, STAGE = 2 * KEYS * LINE, RING = WARPS * DEPTH * STAGE, BYTES = RING + ROWS * LINE };
    static_assert(WARPS * ROWS * (DIM + 2) * 4 <= RING, "放得下各线程束的结果");
};

__device__ static uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}
/* 16 字节；live 为假则填零。 */
__device__ static void copy_unit(uint32_t to, const void *from, bool live) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(live ? 16 : 0));
}
__device__ static void load4(uint32_t *r, uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
__device__ static void load4_transposed(uint32_t *r, uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
/* f16 的各对 → bf16 的。 */
__device__ static void convert4(uint32_t *r) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 x = __half22float2(*(__half2 *)&r[i]);
        r[i] = pack2(x.x, x.y);
    }
}
__device__ static float power(float x) { /* e^x */
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950409f));
    return y;
}

/* 一块的工作：哪个查询，哪些头，哪一段键。 */
struct Work {
    int t, kv, h0, heads, pos, j0, j1;
    bool first; /* 这个键值头的第一批查询头：新的 k、v 由它写 */

    __device__ Work(const DecodeArgs &a) {
        int group = (int)a.s.n_heads / (int)a.s.n_kv_heads, per = (group + ROWS - 1) / ROWS, batch = blockIdx.y % per * ROWS;
        t = blockIdx.z, kv = blockIdx.y / per, h0 = kv * group + batch, heads = group - batch < ROWS ? group - batch : ROWS;
        pos = (int)a.row[t].pos, first = batch == 0;
        int from = a.s.window > 0 && pos >= a.s.window ? pos - (int)a.s.window + 1 : 0, len = pos + 1 - from;
        int each = (len + a.splits - 1) / a.splits;
        j0 = from + each * blockIdx.x, j1 = j0 + each < pos + 1 ? j0 + each : pos + 1;
    }
};

/* 一个线程束取它的键：第 i 步是从 first + i·WARPS·KEYS 起的 KEYS 个。 */
template <int STEPS> struct Keys {
    typedef Layout<STEPS> L;
    const __half *k, *v; /* 位置 0 的这个头（缓存的首行未必是位置 0，只按差取） */
    char *ring;
    int64_t width;
    int first, n, j1, skip; /* n：几步；skip：不取的位置（这一段里的新键），-1 为没有 */

    __device__ void fetch(int i) const {
        enum { UNITS = 2 * STEPS };
        int lane = threadIdx.x % 32, j = first + i * WARPS * KEYS;
        uint32_t to = shared_address(ring + i % DEPTH * L::STAGE);
        if (i < n)
#pragma unroll
            for (int u = lane; u < KEYS * UNITS; u += 32) {
                int row = u / UNITS, unit = u % UNITS;
                bool live = j + row < j1;
                int64_t from = (live ? j + row : first) * width + unit * 8; /* 填零时给一个读得的地址 */
                if (j + row == skip) continue;
                copy_unit(to + row * L::LINE + unit * 16, k + from, live);
                copy_unit(to + (KEYS + row) * L::LINE + unit * 16, v + from, live);
            }
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
};

/* 旋转、舍入之后的 q → 共享内存；没有的头是零。 */
template <int STEPS> __device__ static void make_queries(char *to, const DecodeArgs &a, const Work &w) {
    typedef Layout<STEPS> L;
    enum { AT_ONCE = 4 };
    const float *heads = a.q + (int64_t)(w.t * (int)a.s.n_heads + w.h0) * L::DIM;
    StepArgs s = a.step;
    if (!s.k) s.cos_table = NULL; /* 已经转过 */
#pragma unroll 1
    for (int i = threadIdx.x; i < w.heads * L::DIM; i += AT_ONCE * THREADS) {
        Turn x[AT_ONCE];
#pragma unroll
        for (int q = 0; q < AT_ONCE; q++) {
            int at = i + q * THREADS < w.heads * L::DIM ? i + q * THREADS : i;
            x[q] = turn_load(heads + at / L::DIM * L::DIM, at % L::DIM, s, w.pos);
        }
#pragma unroll
        for (int q = 0; q < AT_ONCE; q++) {
            int at = i + q * THREADS;
            if (at < w.heads * L::DIM) *(__nv_bfloat16 *)(to + at / L::DIM * L::LINE + at % L::DIM * 2) = __float2bfloat16_rn(turned(x[q]));
        }
    }
    for (int i = w.heads * L::LINE / 16 + threadIdx.x; i < ROWS * L::LINE / 16; i += THREADS) ((uint4 *)to)[i] = make_uint4(0, 0, 0, 0);
}
/* 新的 k、v：旋转，放进这一步的第 row 行与缓存。 */
template <int STEPS>
__device__ static void add_key(char *stage, const DecodeArgs &a, const Work &w, const Keys<STEPS> &keys, int row) {
    typedef Layout<STEPS> L;
    enum { EACH = (L::DIM + 31) / 32 };
    const float *k = a.step.k + w.t * keys.width + w.kv * L::DIM, *v = a.step.v + w.t * keys.width + w.kv * L::DIM;
    __half *to_k = (__half *)keys.k + w.pos * keys.width, *to_v = (__half *)keys.v + w.pos * keys.width;
    Turn x[EACH];
    float y[EACH];
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int d = lane + 32 * i < L::DIM ? lane + 32 * i : lane;
        x[i] = turn_load(k, d, a.step, w.pos), y[i] = v[d];
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int d = lane + 32 * i;
        if (d >= L::DIM) continue;
        __half hk = __float2half_rn(turned(x[i])), hv = __float2half_rn(y[i]);
        ((__half *)(stage + row * L::LINE))[d] = hk, ((__half *)(stage + (KEYS + row) * L::LINE))[d] = hv;
        if (w.first) to_k[d] = hk, to_v[d] = hv;
    }
}
/* 分数的尾声：s[片][4] 是行 g（后两个：g+8）× 键 8·片 + 2t、+1，键从 j 起，不到 j1 的才算。 */
__device__ static void finish_scores(float (*s)[4], const DecodeArgs &a, const Work &w, int j) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int key = j + i / 4 * 8 + 2 * t + i % 2, row = g + i % 4 / 2 * 8;
        float y = s[i / 4][i % 4] * a.s.scale;
        if (a.s.softcap > 0) y = a.s.softcap * tanhf(y / a.s.softcap);
        if (a.s.bias && row < w.heads && key < w.j1) y += a.s.bias[(w.h0 + row) * a.s.bias_stride + key];
        s[i / 4][i % 4] = key < w.j1 ? y : -INFINITY;
    }
}
/* 一行的最大值、Σ 的更新；p 换成系数。返回: 已有的要乘多少。 */
__device__ static float soften(float (*s)[4], int half, float *max, float *sum) {
    float m = *max, add = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) m = fmaxf(m, s[i / 2][half * 2 + i % 2]);
    m = fmaxf(m, __shfl_xor_sync(0xFFFFFFFFu, m, 1));
    m = fmaxf(m, __shfl_xor_sync(0xFFFFFFFFu, m, 2));
    float shrink = power(*max - m);
#pragma unroll
    for (int i = 0; i < 4; i++) add += s[i / 2][half * 2 + i % 2] = power(s[i / 2][half * 2 + i % 2] - m);
    *sum = *sum * shrink + add, *max = m;
    return shrink;
}

/* 一个线程束的结果：acc[8 维一片][4]，各行的最大值与 Σ（本线程的键的）。 */
template <int STEPS> struct Partial {
    float acc[2 * STEPS][4], max[2], sum[2];
};
/* 一步：16 行 × 16 个键。 */
template <int STEPS>
__device__ static void attend_keys(Partial<STEPS> &p, const char *stage, const char *q, const DecodeArgs &a, const Work &w, int j) {
    typedef Layout<STEPS> L;
    int lane = threadIdx.x % 32, half = lane / 8;
    uint32_t k_at = shared_address(stage + (half / 2 * 8 + lane % 8) * L::LINE + half % 2 * 16);
    uint32_t v_at = shared_address(stage + (KEYS + half % 2 * 8 + lane % 8) * L::LINE + half / 2 * 16);
    uint32_t q_at = shared_address(q + (half % 2 * 8 + lane % 8) * L::LINE + half / 2 * 16);
    float s[2][4] = {};
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        uint32_t key[4], query[4];
        load4(key, k_at + i * 32);
        load4(query, q_at + i * 32);
        convert4(key);
        mma(s[0], query, key), mma(s[1], query, key + 2);
    }
    finish_scores(s, a, w, j);
    float shrink[2] = {soften(s, 0, &p.max[0], &p.sum[0]), soften(s, 1, &p.max[1], &p.sum[1])};
    if (__any_sync(0xFFFFFFFFu, shrink[0] != 1 || shrink[1] != 1))
#pragma unroll
        for (int i = 0; i < 2 * STEPS; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) p.acc[i][e] *= shrink[e / 2];
    const uint32_t c[4] = {pack2(s[0][0], s[0][1]), pack2(s[0][2], s[0][3]), pack2(s[1][0], s[1][1]), pack2(s[1][2], s[1][3])};
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        uint32_t v[4];
        load4_transposed(v, v_at + i * 32);
        convert4(v);
        mma(p.acc[2 * i], c, v), mma(p.acc[2 * i + 1], c, v + 2);
    }
}
/* 各线程束的结果放到共享内存：(线程束, 行) 的最大值与 Σ，其后是加权的和。 */
template <int STEPS> __device__ static void store_partial(float *shared, Partial<STEPS> &p, int heads) {
    enum { DIM = 16 * STEPS };
    int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    float *sums = shared + WARPS * ROWS * 2;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int row = g + 8 * h;
        p.sum[h] += __shfl_xor_sync(0xFFFFFFFFu, p.sum[h], 1);
        p.sum[h] += __shfl_xor_sync(0xFFFFFFFFu, p.sum[h], 2);
        if (row >= heads) continue;
        if (t == 0) shared[(warp * ROWS + row) * 2] = p.max[h], shared[(warp * ROWS + row) * 2 + 1] = p.sum[h];
#pragma unroll
        for (int i = 0; i < 2 * STEPS; i++)
            *(float2 *)(sums + (warp * ROWS + row) * DIM + 8 * i + 2 * t) = make_float2(p.acc[i][2 * h], p.acc[i][2 * h + 1]);
    }
}
/* 四份相加，写出（只有一段时就是结果）。 */
template <int STEPS> __device__ static void join(const float *shared, const DecodeArgs &a, const Work &w) {
    enum { DIM = 16 * STEPS };
    const float *sums = shared + WARPS * ROWS * 2;
#pragma unroll 1
    for (int i = threadIdx.x; i < w.heads * DIM; i += THREADS) {
        int g = i / DIM, d = i % DIM;
        int64_t row = w.t * a.s.n_heads + w.h0 + g;
        float m = -INFINITY, total = 0, sum = 0;
        for (int k = 0; k < WARPS; k++) m = fmaxf(m, shared[(k * ROWS + g) * 2]);
        for (int k = 0; k < WARPS; k++) {
            float max = shared[(k * ROWS + g) * 2], f = max == -INFINITY ? 0 : power(max - m);
            total += f * shared[(k * ROWS + g) * 2 + 1], sum += f * sums[(k * ROWS + g) * DIM + d];
        }
        if (a.splits == 1) {
            put_out(a, row * DIM + d, sum / total);
            continue;
        }
        float *to = a.part + (row * a.splits + blockIdx.x) * (DIM + 2) + 2;
        to[d] = sum;
        if (d == 0) to[-2] = m, to[-1] = total;
    }
}

template <int STEPS> __global__ __launch_bounds__(THREADS) static void decode_mma_kernel(const __grid_constant__ DecodeArgs a) {
    typedef Layout<STEPS> L;
    extern __shared__ uint4 shared[];
    __shared__ bool last;
    Work w(a);
    int warp = threadIdx.x / 32;
    char *q = (char *)shared + L::RING;
    const DecodeRow &row = a.row[w.t];
    Keys<STEPS> keys;
    keys.width = a.s.n_kv_heads * L::DIM, keys.j1 = w.j1, keys.first = w.j0 + warp * KEYS, keys.skip = a.step.k && w.pos < w.j1 ? w.pos : -1;
    keys.n = keys.first < w.j1 ? (w.j1 - keys.first - 1) / (WARPS * KEYS) + 1 : 0;
    keys.k = (const __half *)row.k + w.kv * L::DIM - row.k_first * keys.width, keys.v = (const __half *)row.v + w.kv * L::DIM - row.v_first * keys.width;
    keys.ring = (char *)shared + warp * DEPTH * L::STAGE;
    for (int i = 0; i < DEPTH - 1; i++) keys.fetch(i);
    grid_release();
    grid_wait();
    make_queries<STEPS>(q, a, w);
    __syncthreads();
    Partial<STEPS> p = {};
    p.max[0] = p.max[1] = -INFINITY;
    for (int i = 0; i < keys.n; i++) {
        int j = keys.first + i * WARPS * KEYS;
        char *stage = keys.ring + i % DEPTH * L::STAGE;
        asm volatile("cp.async.wait_group %0;" ::"n"(DEPTH - 2) : "memory");
        if (keys.skip >= j && keys.skip < j + KEYS) add_key(stage, a, w, keys, keys.skip - j);
        __syncwarp();
        keys.fetch(i + DEPTH - 1); /* 上一步用完的 */
        attend_keys<STEPS>(p, stage, q, a, w, j);
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    store_partial<STEPS>((float *)shared, p, w.heads);
    __syncthreads();
    join<STEPS>((float *)shared, a, w);
    if (a.splits == 1) return;
    __threadfence();
    __syncthreads();
    int *done = a.done + blockIdx.z * gridDim.y + blockIdx.y;
    if (threadIdx.x == 0) last = atomicAdd(done, 1) == a.splits - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    merge_splits(a, w.t, w.h0, w.heads, (float *)shared);
    if (threadIdx.x == 0) *done = 0;
}

bool decode_mma_accepts(Backend *b, const DecodeArgs *a) {
    int64_t dim = a->s.head_dim;
    int need = dim == 256 ? (int)Layout<16>::BYTES : (int)Layout<8>::BYTES; /* 有的 GPU 没有这么多共享内存 */
    return b->compute == COMPUTE_BF16 && a->dtype == DT_F16 && (dim == 64 || dim == 80 || dim == 96 || dim == 128 || dim == 256) &&
           need + 64 <= cuda_of(b)->shared;
}
template <int STEPS> static void launch(Backend *b, const DecodeArgs &a, dim3 grid) {
    static bool allowed; /* 共享内存多于 48 KB 要先说 */
    if (!allowed)
        allowed = cuda_ok(b, cudaFuncSetAttribute(decode_mma_kernel<STEPS>, cudaFuncAttributeMaxDynamicSharedMemorySize, Layout<STEPS>::BYTES),
                          "共享内存") &&
                  cuda_ok(b, cudaFuncSetAttribute(decode_mma_kernel<STEPS>, cudaFuncAttributePreferredSharedMemoryCarveout, 100), "共享内存");
    launch_early(b, decode_mma_kernel<STEPS>, grid, dim3(THREADS), Layout<STEPS>::BYTES, a);
}
bool decode_mma(Backend *b, DecodeArgs *a, int64_t n, int64_t longest) {
    /* 切几段：每个流式多处理器两块就占满带宽；一段不少于各线程束一步 */
    int64_t group = a->s.n_heads / a->s.n_kv_heads, each = a->s.n_kv_heads * ((group - 1) / ROWS + 1), most = (longest - 1) / (WARPS * KEYS) + 1;
    int64_t splits = 2 * cuda_of(b)->sms / (n * each);
    if (splits > most) splits = most;
    a->splits = (int)(splits < 1 ? 1 : splits > MAX_SPLITS ? MAX_SPLITS : splits);
    a->done = cuda_of(b)->counters;
    if (a->splits > 1) {
        a->part = (float *)cuda_slot(b, SLOT_A, (size_t)(n * a->s.n_heads * a->splits * (a->s.head_dim + 2)) * 4);
        if (!a->part) return false;
    }
    dim3 grid((unsigned)a->splits, (unsigned)each, (unsigned)n);
    switch (a->s.head_dim) {
    case 64: launch<4>(b, *a, grid); break;
    case 80: launch<5>(b, *a, grid); break;
    case 96: launch<6>(b, *a, grid); break;
    case 128: launch<8>(b, *a, grid); break;
    default: launch<16>(b, *a, grid); break;
    }
    return LAUNCHED(b, "decode");
}
