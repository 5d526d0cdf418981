/* flash_wgmma — Hopper 的因果注意力：整段复制 + wgmma（FlashAttention-3，arXiv 2407.08608）
 * 常驻的线程块，一块一批（64·WGS 个查询, 头）、长的先做：一个生产者线程把键块、值块送进共享内存，WGS 个消费者（各 4 个线程束、
 * 64 个查询）计算。每个消费者让这一块的 q·k 与上一块的 p·v 一起在张量核上跑，同时算 softmax；消费者之间轮流占用张量核。
 * 分数与概率不出寄存器。各批互不相干，所以哪一块取到哪一批不影响结果。 */
#include <math.h>
#include <string.h>

#include "compute/cuda/hopper.h"
#include "compute/cuda/tiled.h"

enum { STAGES = 2, WGS_64 = 3, WGS_128 = 2 /* 消费者的个数 */ };

#define REGS4(d, i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define REGS16(d, i) REGS4(d, i), REGS4(d, (i) + 4), REGS4(d, (i) + 8), REGS4(d, (i) + 12)
#define REGS32(d) REGS16(d, 0), REGS16(d, 16)
#define REGS64(d) REGS16(d, 0), REGS16(d, 16), REGS16(d, 32), REGS16(d, 48)
#define LIST32                                                                                     \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"   \
    "%25,%26,%27,%28,%29,%30,%31"
#define LIST64                                                                                     \
    LIST32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52," \
           "%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
/* ---- mbarrier 与整段复制 ---- */
/* 等到第 parity（奇偶）次完成。循环写在 C 里：整个写成一段汇编（barrier_wait）时寄存器会不够。 */
__device__ static void barrier_await(uint32_t bar, uint32_t parity) {
    uint32_t done;
    do {
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(bar), "r"(parity) : "memory");
    } while (!done);
}
__device__ static void bulk_copy(uint32_t to, const void *from, int bytes, uint32_t bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from),
                 "r"(bytes), "r"(bar) : "memory");
}
/* 命名的栅栏：两个消费者之间的轮换。 */
__device__ static void turn_wait(int id) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(2 * WG) : "memory");
}
__device__ static void turn_pass(int id) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(2 * WG) : "memory");
}

/* ---- wgmma ---- */
/* 共享内存里的一个操作数；lead 是相邻两面的距离（只用于转置的）。地址不到 2^18，不必截断。 */
__device__ static uint64_t operand(uint32_t at, uint32_t lead) {
    return (uint64_t)(at >> 4) | (uint64_t)(lead >> 4) << 16 | (uint64_t)(8 * ROW >> 4) << 32 | (uint64_t)1 << 62;
}
/* 累加器此后（此前）才可读写。 */
template <int N> __device__ static void touch(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
/* d(64,128) (+)= q(64,16)·kᵀ */
__device__ static void mma_qk(float (&d)[64], uint64_t q, uint64_t k, int add) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" LIST64 "}, %64, %65, p, 1, 1, 0, 0; }"
                 : REGS64(d) : "l"(q), "l"(k), "r"(add));
}
/* d(64,128) += p(64,16)·v(16,128) */
__device__ static void mma_pv(float (&d)[64], const uint32_t *p, uint64_t v) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" LIST64 "}, {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
                 : REGS64(d) : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(v));
}
/* d(64,64) += p(64,16)·v(16,64) */
__device__ static void mma_pv(float (&d)[32], const uint32_t *p, uint64_t v) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" LIST32 "}, {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
                 : REGS32(d) : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(v));
}

__device__ static float pow2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

/* 共享内存的各段（字节地址）。 */
template <int D, int WGS> struct Layout {
    enum {
        Q_BLOCK = TILE_ROWS * D * 2, TILE = TILE_KEYS * D * 2, K = WGS * Q_BLOCK, V = K + STAGES * TILE, BARS = V + STAGES * TILE,
        Q_FULL = BARS, Q_EMPTY = BARS + 8, K_FULL = BARS + 16, K_EMPTY = K_FULL + 8 * STAGES, V_FULL = K_EMPTY + 8 * STAGES,
        V_EMPTY = V_FULL + 8 * STAGES, WORK = V_EMPTY + 8 * STAGES, BYTES = WORK + 16, ALIGN = 1024
    };
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
/* 两行（g 与 g+8）的在线 softmax 的状态。 */
struct Online {
    float max[2], sum[2], shrink[2];
};
/* 分数 → 概率，成对舍入到 bf16；scale 已乘 log2 e。limit：各行看得见的最后一个键（相对本线程的首列），MASK 时用。 */
template <bool MASK> __device__ static void softmax(float (&s)[64], Online *m, float scale, const int *limit) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top[2] = {m->max[r], m->max[r]};
#pragma unroll
        for (int i = 0; i < 16; i++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                float &x = s[4 * i + 2 * r + k];
                if (MASK && 8 * i + k > limit[r]) x = -INFINITY;
                top[k] = fmaxf(top[k], x);
            }
        float t = fmaxf(top[0], top[1]);
        t = fmaxf(t, __shfl_xor_sync(0xFFFFFFFFu, t, 1));
        t = fmaxf(t, __shfl_xor_sync(0xFFFFFFFFu, t, 2));
        float base = t == -INFINITY ? 0 : t * scale;
        m->shrink[r] = pow2(m->max[r] * scale - base);
        m->max[r] = t;
        float sum[2] = {m->sum[r] * m->shrink[r], 0};
#pragma unroll
        for (int i = 0; i < 16; i++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                float &x = s[4 * i + 2 * r + k];
                x = pow2(x * scale - base);
                sum[k] += x;
            }
        m->sum[r] = sum[0] + sum[1];
    }
}
__device__ static void round_scores(uint32_t (&p)[8][4], const float (&s)[64]) {
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int k = 0; k < 4; k++) p[j][k] = pack2(s[8 * j + 2 * k], s[8 * j + 2 * k + 1]);
}
template <int D> __device__ static void start_qk(float (&s)[64], uint32_t q, uint32_t k) {
    touch(s);
    multiply_begin();
#pragma unroll
    for (int c = 0; c < D / 16; c++)
        mma_qk(s, operand(q + c / 4 * (TILE_ROWS * ROW) + c % 4 * 32, 0), operand(k + c / 4 * (TILE_KEYS * ROW) + c % 4 * 32, 0), c);
    multiply_commit();
    touch(s);
}
template <int N> __device__ static void start_pv(float (&o)[N], const uint32_t (&p)[8][4], uint32_t v) {
    touch(o);
    multiply_begin();
#pragma unroll
    for (int j = 0; j < TILE_KEYS / 16; j++) mma_pv(o, p[j], operand(v + j * 16 * ROW, TILE_KEYS * ROW));
    multiply_commit();
    touch(o);
}
template <int N> __device__ static void rescale(float (&o)[N], const Online &m) {
#pragma unroll
    for (int i = 0; i < N; i++) o[i] *= m.shrink[i / 2 % 2];
}

/* 一行里 4 片（32 维）在 4 个线程间转置：原来线程 t 有各片的第 t 个字，之后有第 t 片的 4 个字。 */
__device__ static uint4 gather_piece(const uint32_t *x, int t) {
    bool odd = t & 1, high = t & 2;
    uint32_t got0 = __shfl_xor_sync(0xFFFFFFFFu, odd ? x[0] : x[1], 1), got1 = __shfl_xor_sync(0xFFFFFFFFu, odd ? x[2] : x[3], 1);
    uint32_t y0 = odd ? got0 : x[0], y1 = odd ? x[1] : got0, z0 = odd ? got1 : x[2], z1 = odd ? x[3] : got1;
    got0 = __shfl_xor_sync(0xFFFFFFFFu, high ? y0 : z0, 2), got1 = __shfl_xor_sync(0xFFFFFFFFu, high ? y1 : z1, 2);
    return high ? make_uint4(got0, got1, z0, z1) : make_uint4(y0, y1, got0, got1);
}
/* 本线程的两行写出去；row 是其中第一行在这一批里的行号。 */
template <int D> __device__ static void put_rows(const TiledArgs &a, const TiledItem &it, int head, int row, const float (&o)[D / 2],
                                                 const Online &m) {
    int t = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = m.sum[r];
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
        float inv = 1 / sum;
        bool valid = row + 8 * r < it.rows;
        int64_t at = ((int64_t)(it.row0 + row + 8 * r) * a.heads + head) * D;
        if (a.half_out) {
#pragma unroll
            for (int i = 0; i < D / 8; i += 4) {
                uint32_t x[4];
#pragma unroll
                for (int k = 0; k < 4; k++) x[k] = pack2(o[4 * (i + k) + 2 * r] * inv, o[4 * (i + k) + 2 * r + 1] * inv);
                uint4 y = gather_piece(x, t);
                if (valid) *(uint4 *)((__nv_bfloat16 *)a.out + at + 8 * (i + t)) = y;
            }
        } else if (valid) {
#pragma unroll
            for (int i = 0; i < D / 8; i++)
                *(float2 *)((float *)a.out + at + 8 * i + 2 * t) = make_float2(o[4 * i + 2 * r] * inv, o[4 * i + 2 * r + 1] * inv);
        }
    }
}

template <int D, int WGS> __device__ static void produce(const TiledArgs &a, uint32_t base, int *work_slot) {
    typedef Layout<D, WGS> L;
    int all = a.n_items * a.heads, group = a.heads / a.kv_heads;
    uint32_t c = 0, phase = 0; /* 已送的键块数，已送的批数的奇偶 */
    for (int work = blockIdx.x;; phase ^= 1) {
        barrier_await(base + L::Q_EMPTY, phase ^ 1);
        if (work >= all) {
            *work_slot = -1;
            barrier_arrive(base + L::Q_FULL);
            break;
        }
        const TiledItem &it = a.item[work / a.heads];
        int head = work % a.heads, blocks = (it.rows + TILE_ROWS - 1) / TILE_ROWS, tiles = (it.pos + it.rows - 1) / TILE_KEYS + 1;
        *work_slot = work;
        barrier_expect(base + L::Q_FULL, blocks * L::Q_BLOCK);
        for (int i = 0; i < blocks; i++)
            bulk_copy(base + i * L::Q_BLOCK, a.q + ((int64_t)(it.block + i) * a.heads + head) * (L::Q_BLOCK / 2), L::Q_BLOCK,
                      base + L::Q_FULL);
        work = (int)gridDim.x + atomicAdd(a.counters, 1);
        for (int n = tiles - 1; n >= 0; n--, c++) {
            uint32_t s = c % STAGES, turn = c / STAGES & 1;
            int64_t at = ((int64_t)(it.tile + n) * a.kv_heads + head / group) * (L::TILE / 2);
            barrier_await(base + L::K_EMPTY + 8 * s, turn ^ 1);
            barrier_expect(base + L::K_FULL + 8 * s, L::TILE);
            bulk_copy(base + L::K + s * L::TILE, a.k + at, L::TILE, base + L::K_FULL + 8 * s);
            barrier_await(base + L::V_EMPTY + 8 * s, turn ^ 1);
            barrier_expect(base + L::V_FULL + 8 * s, L::TILE);
            bulk_copy(base + L::V + s * L::TILE, a.v + at, L::TILE, base + L::V_FULL + 8 * s);
        }
    }
    if (atomicAdd(a.counters + 1, 1) == (int)gridDim.x - 1) a.counters[0] = a.counters[1] = 0; /* 都取完了 */
}

/* 一个消费者的一块键：这一块的 q·k 与上一块的 p·v 同时跑。c 是这一块的序号。 */
template <int D, int WGS, bool MASK>
__device__ static void step(uint32_t base, uint32_t q, int wg, uint32_t c, float scale, const int *limit, float (&s)[64],
                            float (&o)[D / 2], uint32_t (&p)[8][4], Online *m) {
    typedef Layout<D, WGS> L;
    uint32_t stage = c % STAGES, before = (c - 1) % STAGES;
    bool leader = threadIdx.x % 32 == 0;
    barrier_await(base + L::K_FULL + 8 * stage, c / STAGES & 1);
    turn_wait(1 + wg);
    start_qk<D>(s, q, base + L::K + stage * L::TILE);
    barrier_await(base + L::V_FULL + 8 * before, (c - 1) / STAGES & 1);
    touch(o);
    if (__any_sync(0xFFFFFFFFu, m->shrink[0] != 1 || m->shrink[1] != 1)) rescale(o, *m); /* 最大值常常不变 */
    start_pv(o, p, base + L::V + before * L::TILE);
    turn_pass(1 + (wg + 1) % WGS);
    multiply_wait<1>();
    touch(s);
    softmax<MASK>(s, m, scale, limit);
    /* 和总不是负的：这一句只为让概率都在下一个等待之前算完（编译器会把它们挪到后面，就不与 p·v 重叠了） */
    if (leader && !(m->sum[0] + m->sum[1] < 0)) barrier_arrive(base + L::K_EMPTY + 8 * stage);
    multiply_wait<0>();
    touch(o);
    if (leader) barrier_arrive(base + L::V_EMPTY + 8 * before);
    round_scores(p, s);
}
template <int D, int WGS> __device__ static void consume(const TiledArgs &a, uint32_t base, const int *work_slot, int wg) {
    typedef Layout<D, WGS> L;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, row = wg * TILE_ROWS + warp * 16 + lane / 4;
    uint32_t c = 0, q = base + wg * L::Q_BLOCK;
    float scale = a.scale * 1.44269504f;
    bool leader = lane == 0;
    if (wg == WGS - 1) turn_pass(1);
    for (uint32_t phase = 0;; phase ^= 1) {
        barrier_await(base + L::Q_FULL, phase);
        int work = *(const volatile int *)work_slot;
        if (work < 0) break;
        const TiledItem &it = a.item[work / a.heads];
        int tiles = (it.pos + it.rows - 1) / TILE_KEYS + 1, n = tiles - 1, limit[2];
        /* 块 n 的首列在各行的界限里是第几：8i+k <= limit 的看得见 */
        int see = it.pos + row - 2 * (lane % 4), clear = (it.pos + wg * TILE_ROWS + 1) / TILE_KEYS; /* 前 clear 块不必遮 */
        float s[64], o[D / 2];
        uint32_t p[8][4];
        Online m = {{-INFINITY, -INFINITY}, {0, 0}, {0, 0}};
#pragma unroll
        for (int i = 0; i < D / 2; i++) o[i] = 0;
        limit[0] = see - n * TILE_KEYS, limit[1] = limit[0] + 8;
        barrier_await(base + L::K_FULL + 8 * (c % STAGES), c / STAGES & 1);
        start_qk<D>(s, q, base + L::K + c % STAGES * L::TILE);
        multiply_wait<0>();
        touch(s);
        if (leader) barrier_arrive(base + L::K_EMPTY + 8 * (c % STAGES));
        softmax<true>(s, &m, scale, limit);
        round_scores(p, s);
        for (n--, c++; n >= clear; n--, c++) {
            limit[0] = see - n * TILE_KEYS, limit[1] = limit[0] + 8;
            step<D, WGS, true>(base, q, wg, c, scale, limit, s, o, p, &m);
        }
        for (; n >= 0; n--, c++) step<D, WGS, false>(base, q, wg, c, scale, limit, s, o, p, &m);
        if (leader) barrier_arrive(base + L::Q_EMPTY);
        uint32_t last = (c - 1) % STAGES;
        rescale(o, m);
        barrier_await(base + L::V_FULL + 8 * last, (c - 1) / STAGES & 1);
        start_pv(o, p, base + L::V + last * L::TILE);
        multiply_wait<0>();
        touch(o);
        if (leader) barrier_arrive(base + L::V_EMPTY + 8 * last);
        put_rows<D>(a, it, work % a.heads, row, o, m);
    }
}
#endif

template <int D, int WGS>
__global__ __launch_bounds__((WGS + 1) * WG, 1) static void tiled_kernel(const __grid_constant__ TiledArgs a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    typedef Layout<D, WGS> L;
    extern __shared__ char smem[];
    char *aligned = smem + (-shared_at(smem) & (L::ALIGN - 1));
    uint32_t base = shared_at(aligned);
    int *work_slot = (int *)(aligned + L::WORK);
    if (threadIdx.x == 0) {
        barrier_init(base + L::Q_FULL, 1), barrier_init(base + L::Q_EMPTY, WGS * 4);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(base + L::K_FULL + 8 * i, 1), barrier_init(base + L::K_EMPTY + 8 * i, WGS * 4);
            barrier_init(base + L::V_FULL + 8 * i, 1), barrier_init(base + L::V_EMPTY + 8 * i, WGS * 4);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x < WG) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(WGS == 2 ? 24 : 32));
        if (threadIdx.x == 0) produce<D, WGS>(a, base, work_slot);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(WGS == 2 ? 240 : 160));
        consume<D, WGS>(a, base, work_slot, (int)threadIdx.x / WG - 1);
    }
#endif
}

template <int D, int WGS> static bool launch(Backend *b, const TiledArgs &a) {
    int bytes = Layout<D, WGS>::BYTES + Layout<D, WGS>::ALIGN, processors = 0, work = a.n_items * a.heads;
    if (!cuda_ok(b, cudaFuncSetAttribute(tiled_kernel<D, WGS>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "共享内存") ||
        !cuda_ok(b, cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0), "cudaDeviceGetAttribute"))
        return false;
    tiled_kernel<D, WGS><<<work < processors ? work : processors, (WGS + 1) * WG, bytes, STREAM(b)>>>(a);
    return LAUNCHED(b, "attention");
}

bool tiled_accepts(Backend *b, const AttnSpec *s) {
    return b->compute == COMPUTE_BF16 && strcmp(b->isa, "sm_90") == 0 && (s->head_dim == 64 || s->head_dim == 128) &&
           s->window == 0 && s->softcap == 0 && !s->bias && s->scale > 0;
}
int tiled_rows(int64_t dim) {
    return TILE_ROWS * (dim == 64 ? WGS_64 : WGS_128);
}
bool cuda_tiled(Backend *b, const TiledArgs *a, int64_t dim) {
    return dim == 64 ? launch<64, WGS_64>(b, *a) : launch<128, WGS_128>(b, *a);
}
