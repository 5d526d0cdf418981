/* skinny — Hopper 上 token 不多（解码一批）的矩阵乘：y(n, rows) = x(n, K)·w(rows, K)ᵀ，n 至多 64，时间就是把权重读一遍的时间
 * 算的是转置：wgmma 的 M 是权重的 128 行（64 行的两半；GATED 时是 gate、up 同样的 64 行，同一线程里就有成对的两个数），N 是补到
 * 16、32 或 64 的 token。全部（权重块, K 的一步）排成一串，均分给各个流式多处理器，所以不论形状都一样忙；一个权重块因而可能由几块分着算：
 * 各把部分和写到工作区，最后做完的按次序相加。一块 160 个线程：一个用 TMA 取数，一个 warpgroup 算；环有几级，共享内存只占一半，下一个
 * 内核的块得以先住进来。程序化依赖启动：权重是常数，头几级在前一个内核还没做完时就取，激活在 grid_wait 之后才取。
 * 次序只由形状与 GPU 定，所以同样的输入得到同样的位，且与 n 无关。 */
#include <cuda.h>
#include <stdlib.h>
#include <string.h>

#include "compute/cuda/gemm.h"
#include "compute/cuda/hopper.h"
#include "compute/cuda/input.h"

enum { TILE = 128, HALF = 64, STEP = ROW / 2 /* 一步的 K */, HALF_BYTES = HALF * ROW, THREADS = WG + 32, MOST_TOKENS = 64, LEAST_TOKENS = 9 };
template <int N> struct Ring {
    enum { STAGES = N > 32 ? 4 : 5, STAGE_BYTES = 2 * HALF_BYTES + N * ROW, AT_BARRIERS = STAGES * STAGE_BYTES,
           AT_LAST = AT_BARRIERS + 2 * STAGES * 8, SMEM_BYTES = AT_LAST + 16, PARTIAL = TILE * N /* 一份部分和几个数 */ };
};

/* 一个权重与它的输出。 */
struct Part {
    int tile0, rows; /* 首个权重块的号 */
    const float *bias;
    void *y;
    bool add;
};
struct SkinnyJob {
    CUtensorMap x, w[GEMM_OUT_MAX];
    Part part[GEMM_OUT_MAX];
    int parts, n, tiles, steps; /* steps：一个权重块沿 K 几步 */
    Activation f;
    float *partial; /* 各块两份：它的首个、末个权重块 */
    int *counters;  /* 各权重块已写好几份，用完归零 */
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* 串里的第 u 个是第 u / steps 个权重块的第 u % steps 步；第 b 块管 [share(b), share(b + 1))。乘积都在 32 位之内（skinny_accepts）。 */
__device__ static inline int share(const SkinnyJob &j, unsigned b) {
    return (int)((unsigned)(j.tiles * j.steps) * b / gridDim.x);
}
/* 第 u 个归哪一块。 */
__device__ static inline int owner(const SkinnyJob &j, unsigned u) {
    unsigned all = (unsigned)(j.tiles * j.steps);
    return (int)(((u + 1) * gridDim.x + all - 1) / all) - 1;
}

/* 本块的写都已做完，记一笔；之后看得见先记的各块写的。返回: 先记了几笔。 */
__device__ static inline int arrive(int *counter) {
    int before;
    asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    return before;
}

/* 一个权重块：哪个权重，从它的哪一行起。 */
struct Tile {
    int part, row;
};
template <bool GATED> __device__ static inline Tile tile_at(const SkinnyJob &j, int t) {
    Tile a = {0, t * HALF};
    while (!GATED && a.part + 1 < j.parts && t >= j.part[a.part + 1].tile0) a.part++;
    if (!GATED) a.row = (t - j.part[a.part].tile0) * TILE;
    return a;
}

/* 取数的线程。 */
template <int N, bool GATED> __device__ static void produce(const SkinnyJob &j, uint32_t base, int u0, int u1) {
    typedef Ring<N> R;
    uint32_t full = base + R::AT_BARRIERS, empty = full + R::STAGES * 8;
    int t = u0 / j.steps, k = u0 % j.steps, steps = j.steps, ahead = k; /* 权重、激活各取到 K 的哪一步 */
    Tile a = tile_at<GATED>(j, t);
    auto weights = [&](int stage) {
        uint32_t to = base + stage * R::STAGE_BYTES, bar = full + stage * 8;
        barrier_expect(bar, R::STAGE_BYTES);
        load_box(to, &j.w[a.part], k * STEP, a.row, bar, 0);
        load_box(to + HALF_BYTES, &j.w[GATED ? 1 : a.part], k * STEP, GATED ? a.row : a.row + HALF, bar, 0);
        if (++k == steps) k = 0, a = tile_at<GATED>(j, ++t);
    };
    auto tokens = [&](int stage) {
        load_box(base + stage * R::STAGE_BYTES + 2 * HALF_BYTES, &j.x, ahead * STEP, 0, full + stage * 8, 0);
        if (++ahead == steps) ahead = 0;
    };
    int first = u1 - u0 < R::STAGES ? u1 - u0 : R::STAGES, stage = 0, parity = 0;
    for (int i = 0; i < first; i++) weights(i);
    prefetch_map(&j.x);
    grid_wait();
    for (int i = 0; i < first; i++) tokens(i);
    for (int u = u0 + first; u < u1; u++) {
        barrier_wait(empty + stage * 8, parity);
        weights(stage);
        tokens(stage);
        if (++stage == R::STAGES) stage = 0, parity ^= 1;
    }
}

/* 一个权重块的结果：acc[半][4j + 2h + e] 是行 16·线程束 + g + 8h、token 8j + 2t + e（t = 线程 % 4）。加到 y 上的先都取来，再都写。 */
template <int N, int OUT> __device__ static void finish(const SkinnyJob &j, int t, float (*acc)[N / 2]) {
    enum { TOKENS = N / 4 };
    int thread = threadIdx.x, row0 = thread / 32 * 16 + thread % 32 / 4, token0 = thread % 4 * 2, n = j.n;
    Tile a = tile_at<OUT == GEMM_GATED>(j, t);
    const Part p = j.part[a.part];
    const float *up_bias = OUT == GEMM_GATED ? j.part[1].bias : NULL;
#pragma unroll
    for (int half = 0; half < (OUT == GEMM_GATED ? 1 : 2); half++) {
        float old[2][TOKENS];
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int c = 0; c < TOKENS; c++) {
                int row = a.row + half * HALF + row0 + 8 * h, token = c / 2 * 8 + token0 + c % 2;
                old[h][c] = OUT == GEMM_F32 && p.add && row < p.rows && token < n ? __ldcg((const float *)p.y + (int64_t)token * p.rows + row) : 0;
            }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int row = a.row + half * HALF + row0 + 8 * h;
            if (row >= p.rows) continue;
            float bias = p.bias ? p.bias[row] : 0, other = up_bias ? up_bias[row] : 0;
#pragma unroll
            for (int c = 0; c < TOKENS; c++) {
                int token = c / 2 * 8 + token0 + c % 2, at = c / 2 * 4 + 2 * h + c % 2;
                int64_t to = (int64_t)token * p.rows + row;
                if (token >= n) continue;
                float v = acc[half][at] + bias;
                if (OUT == GEMM_GATED) v = activation(v, j.f) * (acc[1][at] + other);
                if (OUT == GEMM_F32)
                    ((float *)p.y)[to] = p.add ? old[h][c] + v : v;
                else
                    ((__nv_bfloat16 *)p.y)[to] = __float2bfloat16_rn(v);
            }
        }
    }
}
/* 几块分着算的：写下自己的一份；最后写好的把各份按块的次序加起来。返回: 是不是最后的（acc 已是总和）。
 * 一块有两处可放：首个权重块、末个权重块；只有最先的那一块是把 t 当作末个。 */
template <int N> __device__ static bool join(const SkinnyJob &j, int t, float (*acc)[N / 2], int *last) {
    enum { FOURS = N / 4, EACH = N / 8 /* 半块几个 4 个数 */, AT_ONCE = N > 32 ? 1 : 3 };
    int begin = t * j.steps, first = owner(j, begin), end = owner(j, begin + j.steps - 1) + 1;
    bool later = share(j, first) < begin;
    auto at = [&](int b) {
        return (float4 *)(j.partial + (int64_t)(2 * b + (later && b == first)) * Ring<N>::PARTIAL) + threadIdx.x;
    };
    float4 *to = at(blockIdx.x);
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        const float *v = acc[i / EACH] + i % EACH * 4;
        to[i * WG] = make_float4(v[0], v[1], v[2], v[3]);
    }
    group_sync(0);
    if (threadIdx.x == 0) {
        *last = arrive(j.counters + t) == end - first - 1;
        if (*last) j.counters[t] = 0;
    }
    group_sync(0);
    if (!*last) return false;
#pragma unroll
    for (int i = 0; i < N; i++) acc[i / (N / 2)][i % (N / 2)] = 0;
    for (int b = first; b < end; b += AT_ONCE) {
        float4 v[AT_ONCE][FOURS];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
#pragma unroll
            for (int i = 0; i < FOURS; i++) v[k][i] = b + k < end ? __ldcg(at(b + k) + i * WG) : make_float4(0, 0, 0, 0);
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
#pragma unroll
            for (int i = 0; i < FOURS; i++) {
                float *sum = acc[i / EACH] + i % EACH * 4;
                sum[0] += v[k][i].x, sum[1] += v[k][i].y, sum[2] += v[k][i].z, sum[3] += v[k][i].w;
            }
    }
    return true;
}
template <int N, int OUT> __device__ static void consume(const SkinnyJob &j, char *smem, uint32_t base, int u0, int u1) {
    typedef Ring<N> R;
    uint32_t full = base + R::AT_BARRIERS, empty = full + R::STAGES * 8, parity = 0;
    int stage = 0;
    float acc[2][N / 2] = {};
    grid_wait();
    for (int u = u0; u < u1;) {
        int t = u / j.steps, end = (t + 1) * j.steps < u1 ? (t + 1) * j.steps : u1, begin = u;
        for (; u < end; u++) {
            uint32_t at = base + stage * R::STAGE_BYTES;
            uint64_t a = operand_at(at), x = operand_at(at + 2 * HALF_BYTES);
            barrier_wait(full + stage * 8, parity);
            multiply_begin();
#pragma unroll
            for (int s = 0; s < 4; s++) {
                multiply_few<N>(acc[0], a + 2 * s, x + 2 * s, u != begin || s);
                multiply_few<N>(acc[1], a + (HALF_BYTES >> 4) + 2 * s, x + 2 * s, u != begin || s);
            }
            multiply_commit();
            multiply_wait<1>(); /* 上一步的做完了：它那一级可以再取 */
            int last = stage == 0 ? R::STAGES - 1 : stage - 1;
            if (u != begin && threadIdx.x % 32 == 0) barrier_arrive(empty + last * 8);
            if (++stage == R::STAGES) stage = 0, parity ^= 1;
        }
        multiply_wait<0>();
        settle_few<N>(acc[0]);
        settle_few<N>(acc[1]);
        int last = stage == 0 ? R::STAGES - 1 : stage - 1;
        if (threadIdx.x % 32 == 0) barrier_arrive(empty + last * 8);
        if (end - begin == j.steps || join<N>(j, t, acc, (int *)(smem + R::AT_LAST))) finish<N, OUT>(j, t, acc);
    }
}
#endif

template <int N, int OUT> __global__ __launch_bounds__(THREADS, 2) static void skinny_kernel(const __grid_constant__ SkinnyJob j) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    typedef Ring<N> R;
    extern __shared__ __align__(1024) char smem[];
    uint32_t base = shared_at(smem);
    if (base % 1024) __trap(); /* swizzle 按地址算 */
    if (threadIdx.x == 0) {
        for (int s = 0; s < R::STAGES; s++) {
            barrier_init(base + R::AT_BARRIERS + s * 8, 1);
            barrier_init(base + R::AT_BARRIERS + (R::STAGES + s) * 8, WG / 32);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    grid_release();
    int u0 = share(j, blockIdx.x), u1 = share(j, blockIdx.x + 1);
    if (threadIdx.x >= WG) {
        if (threadIdx.x == WG) produce<N, OUT == GEMM_GATED>(j, base, u0, u1);
    } else {
        consume<N, OUT>(j, smem, base, u0, u1);
    }
#endif
}

/* ---- 主机 ---- */

/* PTQ_CUDA_SKINNY=0：不用（对照用）。 */
static bool enabled() {
    static int state;
    const char *text = state ? NULL : getenv("PTQ_CUDA_SKINNY");
    if (!state) state = text && strcmp(text, "0") == 0 ? -1 : 1;
    return state > 0;
}
bool skinny_accepts(Backend *b, const GemmCall *c) {
    bool gated = c->form == GEMM_GATED, ok = enabled() && tensor_maps(b) && !c->int8 && c->n >= LEAST_TOKENS && c->n <= MOST_TOKENS &&
                                             c->n_out >= 1 && c->n_out <= GEMM_OUT_MAX && c->cols <= INT32_MAX / 2;
    ok = ok && (uintptr_t)c->x % 16 == 0 && c->ldx % 8 == 0;
    int64_t tiles = 0;
    for (int i = 0; ok && i < c->n_out; i++) {
        const GemmOut *o = &c->out[i];
        ok = (uintptr_t)o->w % 16 == 0 && o->ldw % 8 == 0 && !(o->add && c->form != GEMM_F32);
        tiles += (o->rows + HALF - 1) / HALF;
    }
    int64_t units = tiles * ((c->cols + STEP - 1) / STEP);
    ok = ok && tiles <= COUNTERS && units < INT32_MAX / (cuda_of(b)->sms + 1);
    return ok && (!gated || (c->n_out == 2 && c->out[0].rows == c->out[1].rows));
}

static bool describe(Backend *b, const GemmCall *c, int tokens, SkinnyJob *j) {
    bool gated = c->form == GEMM_GATED;
    bool ok = tensor_map(b, &j->x, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, c->x, c->n, c->cols, c->ldx, tokens);
    j->parts = c->n_out, j->n = (int)c->n, j->steps = (int)((c->cols + STEP - 1) / STEP), j->f = c->f;
    for (int i = 0; ok && i < c->n_out; i++) {
        const GemmOut *o = &c->out[i];
        ok = tensor_map(b, &j->w[i], CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, o->w, o->rows, c->cols, o->ldw, HALF);
        j->part[i] = Part{j->tiles, (int)o->rows, o->bias, o->y, o->add};
        if (!gated || i == 0) j->tiles += (int)((o->rows - 1) / (gated ? HALF : TILE) + 1);
    }
    j->counters = cuda_of(b)->counters;
    return ok;
}
template <int N, int OUT> static bool start(Backend *b, const GemmCall *c) {
    enum { LEAST_UNITS = 4 }; /* 一块至少几步 */
    static bool allowed; /* 共享内存多于 48 KB 要先说 */
    SkinnyJob j = {};
    if (!allowed)
        allowed = cuda_ok(b, cudaFuncSetAttribute(skinny_kernel<N, OUT>, cudaFuncAttributeMaxDynamicSharedMemorySize, Ring<N>::SMEM_BYTES),
                          "共享内存") &&
                  cuda_ok(b, cudaFuncSetAttribute(skinny_kernel<N, OUT>, cudaFuncAttributePreferredSharedMemoryCarveout, 100), "共享内存");
    if (!allowed || !describe(b, c, N, &j)) return false;
    int64_t blocks = (int64_t)j.tiles * j.steps / LEAST_UNITS, sms = cuda_of(b)->sms;
    blocks = blocks < 1 ? 1 : blocks < sms ? blocks : sms;
    j.partial = (float *)cuda_slot(b, SLOT_PART, (size_t)(2 * blocks * Ring<N>::PARTIAL) * 4);
    if (!j.partial) return false;
    launch_early(b, skinny_kernel<N, OUT>, dim3((unsigned)blocks), dim3(THREADS), Ring<N>::SMEM_BYTES, j);
    return LAUNCHED(b, "skinny");
}
template <int OUT> static bool start_for(Backend *b, const GemmCall *c) {
    return c->n <= 16 ? start<16, OUT>(b, c) : c->n <= 32 ? start<32, OUT>(b, c) : start<64, OUT>(b, c);
}
bool skinny_run(Backend *b, const GemmCall *c) {
    switch (c->form) {
    case GEMM_F32: return start_for<GEMM_F32>(b, c);
    case GEMM_BF16: return start_for<GEMM_BF16>(b, c);
    default: return start_for<GEMM_GATED>(b, c);
    }
}
