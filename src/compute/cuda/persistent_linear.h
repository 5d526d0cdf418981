/* persistent_linear — 常驻的内核里的线性层（persistent.cu）：输入化成 bf16，权重由 TMA 的整段复制一直往前取
 * 环形缓冲有几个槽，每槽一个 mbarrier；槽用完就取下一步的，跨过各步之间的会合也不停。
 *   量化的：全块一个环，一槽是一对面板（32 行输出，gemv.h）的 64 块（2048 列），各线程束各算 4 块，部分和在共享内存里按固定次序相加；
 *   线程 0 取数：一个槽等全块都读过才重填，故晚一槽再填。
 *   稠密的：各线程束有自己的环，一束一行，不用相加；一槽 2048 列。product 时是 gate、up 的同一行先后做。 */
#ifndef PTQ_COMPUTE_CUDA_PERSISTENT_LINEAR_H
#define PTQ_COMPUTE_CUDA_PERSISTENT_LINEAR_H
#include "compute/cuda/gemv.h"
#include "compute/cuda/hopper.h"
#include "compute/cuda/input.h"
#include "compute/cuda/persistent_attend.h"

enum {
    PHASES = 110, OUTS = 3, /* 一队至多几步，一步至多几个权重 */
    ROUNDS = 8,            /* 几对面板做完才一起相加 */
    MOST_SLOTS = 8, CHUNK_COLS = 2048 /* 稠密的一槽 */
};
struct PhaseOut {
    GemvSide side;
    void *y;
    int first; /* 首对（稠密的：首行）在整串里的序号 */
};
struct LinearPhase {
    PhaseOut out[OUTS]; /* product：gate、up */
    GemvFormat f;
    int n_out, cols, blocks, units, watch; /* units：几对（稠密的：几行）；watch：输出不有限时记下的号，没有为 -1 */
    bool add, product, norm, half;         /* half：raw 是 bf16 */
    Activation act;
    const float *raw, *weight;
    float eps;
};
struct alignas(16) Phase {
    bool attend;
    union {
        LinearPhase linear;
        AttendPhase step;
    };
};
struct PersistentJob {
    int n, ldx; /* 几步；输入在共享内存里占几列 */
    unsigned base, *barrier;
    int *watched;
    Phase phase[PHASES];
};

/* 一槽。FINE：组宽不是 128 的倍数。 */
template <int BITS, bool FINE> struct alignas(16) Slot {
    enum { OWN = 4 /* 一束几块 */, BLOCKS = WARPS * OWN, GROUPS = FINE ? BLOCKS : WARPS + 1 /* 至多跨几组 */, RING = 150 * 1024,
           UNITS = BITS * QT_PANEL / 4 /* 一块一个面板几个 16 字节 */ };
    uint4 codes[2][BLOCKS][UNITS]; /* [面板][块] */
    char scale[2][GROUPS * QT_PANEL * 4];
    char zero[2][BITS > 4 ? GROUPS * QT_PANEL : (GROUPS * QT_PANEL / 2 + 8 + 15) / 16 * 16]; /* 4 位的从 16 字节的边界取起 */
};
template <> struct alignas(16) Slot<0, false> {
    enum { RING = 192 * 1024 };
    uint4 w[CHUNK_COLS / 8];
};
template <int BITS, bool FINE> struct Ring {
    enum { STREAMS = BITS ? 1 : (int)WARPS /* 几个环 */, EACH = STREAMS * sizeof(Slot<BITS, FINE>), FIT = Slot<BITS, FINE>::RING / EACH, DEPTH = FIT > MOST_SLOTS ? MOST_SLOTS : FIT, BYTES = DEPTH * EACH };
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* 内核里的 PersistentJob。 */
struct Work {
    int n;
    int *watched;
    const Phase *phase; /* 量化的搬进了共享内存（参数在常量缓存里，不命中一次要几百个周期）；稠密的放不下 */
};

/* ---- 输入 → 共享内存里的 bf16，与每 32 列的和 ---- */

struct Input {
    __nv_bfloat16 *x;
    float *sum; /* 量化的权重才有 */
};
enum { QUADS = 2, CHUNK = THREADS * QUADS * 4 };
__device__ static void read_quads(float4 *x, const float *from, int first, int cols) {
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        int k = first + (q * THREADS + threadIdx.x) * 4;
        x[q] = k < cols ? __ldcg((const float4 *)(from + k)) : float4{};
    }
}
__device__ static float norm_factor(const LinearPhase &l, float4 *x) {
    __shared__ float sums[WARPS];
    float sum = 0;
    for (int first = 0; first < l.cols; first += CHUNK) {
        if (first) read_quads(x, l.raw, first, l.cols);
#pragma unroll
        for (int q = 0; q < QUADS; q++) sum += x[q].x * x[q].x + x[q].y * x[q].y + x[q].z * x[q].z + x[q].w * x[q].w;
    }
    for (int o = 16; o; o /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, o);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) sum += sums[i];
    return 1.0f / sqrtf(sum / (float)l.cols + l.eps);
}
__device__ static float half_sum(uint32_t two) {
    __nv_bfloat162 v = *(__nv_bfloat162 *)&two;
    return __low2float(v) + __high2float(v);
}
__device__ static void make_input(const Input &to, const LinearPhase &l, int ldx) {
    float4 x[QUADS], w[QUADS];
    read_quads(x, l.raw, 0, l.cols);
    if (l.norm) read_quads(w, l.weight, 0, l.cols);
    float r = l.norm ? norm_factor(l, x) : 1;
    for (int first = 0; first < ldx; first += CHUNK) {
        if (first || (l.norm && l.cols > CHUNK)) read_quads(x, l.raw, first, l.cols);
        if (first && l.norm) read_quads(w, l.weight, first, l.cols);
#pragma unroll
        for (int q = 0; q < QUADS; q++) {
            int k = first + (q * THREADS + threadIdx.x) * 4;
            float v[4] = {x[q].x, x[q].y, x[q].z, x[q].w};
            const float by[4] = {w[q].x, w[q].y, w[q].z, w[q].w};
#pragma unroll
            for (int i = 0; l.norm && i < 4; i++) v[i] = __fmul_rn(v[i] * r, by[i]);
            uint2 two = make_uint2(pack2(v[0], v[1]), pack2(v[2], v[3]));
            float sum = half_sum(two.x) + half_sum(two.y);
            for (int o = 1; to.sum && o < 8; o *= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, o);
            if (k < ldx) *(uint2 *)(to.x + k) = two;
            if (to.sum && k < ldx && threadIdx.x % 8 == 0) to.sum[k / QT_KBLOCK] = sum;
        }
    }
}
/* 已经是 bf16 的；列数是 8 的倍数。 */
__device__ static void copy_input(const Input &to, const LinearPhase &l, int ldx) {
    for (int first = 0; first < ldx; first += THREADS * 8) {
        int k = first + threadIdx.x * 8;
        uint4 v = k < l.cols ? __ldcg((const uint4 *)((const __nv_bfloat16 *)l.raw + k)) : uint4{};
        float sum = half_sum(v.x) + half_sum(v.y) + half_sum(v.z) + half_sum(v.w);
        for (int o = 1; to.sum && o < 4; o *= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, o);
        if (k < ldx) *(uint4 *)(to.x + k) = v;
        if (to.sum && k < ldx && threadIdx.x % 4 == 0) to.sum[k / QT_KBLOCK] = sum;
    }
}

/* ---- 往前取权重；只有各束的线程 0 用到 ---- */

/* 整段复制 bytes 字节（16 的倍数，两边都从 16 字节的边界起）。 */
__device__ static void copy_bulk(uint32_t to, const void *from, int bytes, uint32_t bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(bar)
                 : "memory");
}
__device__ static GemvPair pair_of(const LinearPhase &l, int at, int *which) {
    int i = l.product ? 0 : l.n_out - 1;
    while (i && at < l.out[i].first) i--;
    *which = i;
    return gemv_pair(&l.out[i].side, &l.out[l.product ? 1 : i].side, at - l.out[i].first, l.product);
}
/* 第 k 块在第几组。 */
__device__ static int group_of(const GemvFormat &f, int k) {
    return f.shift >= 0 ? k >> f.shift : k / f.per;
}
/* 取到哪里了：哪一步、哪一对、哪一块，首尾相接。 */
template <int BITS, bool FINE> struct Cursor {
    typedef Slot<BITS, FINE> S;
    const char *codes[2], *scales[2], *zeros[2]; /* 面板的开头 */
    int phase, at, k;

    __device__ void start(const LinearPhase &l) {
        int which;
        GemvPair pair = pair_of(l, at, &which);
        k = 0;
#pragma unroll
        for (int p = 0; p < 2; p++) {
            int64_t group = (int64_t)pair.panel[p] * l.f.groups;
            codes[p] = (const char *)pair.side[p]->data + (int64_t)pair.panel[p] * l.blocks * S::UNITS * 16;
            scales[p] = (const char *)pair.side[p]->scales + group * (l.f.scale_type == DT_F16 ? 2 * QT_PANEL : 4 * QT_PANEL);
            zeros[p] = l.f.zero_kind == ZERO_SYM ? NULL : (const char *)pair.side[p]->zeros + group * (BITS > 4 ? QT_PANEL : QT_PANEL / 2);
        }
    }
    /* 从第 i 步起，第一个有活干的。 */
    __device__ void enter(const Work &j, int i) {
        at = blockIdx.x;
        for (phase = i; phase < j.n; phase++)
            if (!j.phase[phase].attend && at < j.phase[phase].linear.units) return start(j.phase[phase].linear);
    }
    __device__ void fetch(const Work &j, uint32_t to, uint32_t bar) {
        if (phase >= j.n) return;
        const LinearPhase &l = j.phase[phase].linear;
        int n = l.blocks - k < S::BLOCKS ? l.blocks - k : S::BLOCKS, bytes = n * S::UNITS * 16, low[2], zero_bytes[2];
        int first = group_of(l.f, k), count = group_of(l.f, k + n - 1) + 1 - first, each = l.f.scale_type == DT_F16 ? 2 * QT_PANEL : 4 * QT_PANEL;
        const char *zero[2];
#pragma unroll
        for (int p = 0; p < 2; p++) {
            zero[p] = zeros[p] + first * (BITS > 4 ? QT_PANEL : QT_PANEL / 2);
            low[p] = BITS > 4 ? 0 : (int)((uintptr_t)zero[p] & 15);
            zero_bytes[p] = !zeros[p] ? 0 : BITS > 4 ? count * QT_PANEL : (low[p] + count * QT_PANEL / 2 + 15) & ~15;
        }
        barrier_expect(bar, 2 * (bytes + count * each) + zero_bytes[0] + zero_bytes[1]);
#pragma unroll
        for (int p = 0; p < 2; p++) {
            copy_bulk(to + p * sizeof(S::codes) / 2, codes[p] + (int64_t)k * S::UNITS * 16, bytes, bar);
            copy_bulk(to + sizeof(S::codes) + p * sizeof(S::scale) / 2, scales[p] + first * each, count * each, bar);
            if (zeros[p]) copy_bulk(to + sizeof(S::codes) + sizeof(S::scale) + p * sizeof(S::zero) / 2, zero[p] - low[p], zero_bytes[p], bar);
        }
        k += S::BLOCKS;
        if (k < l.blocks) return;
        at += gridDim.x;
        if (at < l.units)
            start(l);
        else
            enter(j, phase + 1);
    }
};
/* 稠密的：一行的哪里。全部线程束轮流取行。 */
__device__ static int first_row() {
    return blockIdx.x + threadIdx.x / 32 * gridDim.x;
}
__device__ static const PhaseOut &row_out(const LinearPhase &l, int at, int second, int *row) {
    int i = l.product ? second : l.n_out - 1;
    while (!l.product && i && at < l.out[i].first) i--;
    *row = l.product ? at : at - l.out[i].first;
    return l.out[i];
}
template <> struct Cursor<0, false> {
    typedef Slot<0, false> S;
    const __nv_bfloat16 *w;
    int phase, at, second, k, cols;

    __device__ void start(const LinearPhase &l) {
        int row;
        const PhaseOut &o = row_out(l, at, second, &row);
        w = (const __nv_bfloat16 *)o.side.data + (int64_t)row * o.side.stride, k = 0, cols = l.cols;
    }
    __device__ void enter(const Work &j, int i) {
        at = first_row(), second = 0;
        for (phase = i; phase < j.n; phase++)
            if (!j.phase[phase].attend && at < j.phase[phase].linear.units) return start(j.phase[phase].linear);
    }
    __device__ void fetch(const Work &j, uint32_t to, uint32_t bar) {
        if (phase >= j.n) return;
        int n = cols - k < CHUNK_COLS ? cols - k : CHUNK_COLS;
        barrier_expect(bar, 2 * n);
        copy_bulk(to, w + k, 2 * n, bar);
        k += CHUNK_COLS;
        if (k < cols) return;
        const LinearPhase &l = j.phase[phase].linear;
        second = l.product && !second;
        if (!second) at += WARPS * gridDim.x;
        if (at < l.units)
            start(l);
        else
            enter(j, phase + 1);
    }
};
__device__ static void bars_open(uint32_t bars, int n, int count) {
    for (int d = 0; d < n; d++) barrier_init(bars + 8 * d, count);
    asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::: "memory");
}
/* 量化的：全块一个环。 */
template <int BITS, bool FINE> struct Stream {
    typedef Slot<BITS, FINE> S;
    enum { D = Ring<BITS, FINE>::DEPTH };
    Cursor<BITS, FINE> cursor; /* 线程 0 用 */
    const S *ring;
    uint32_t at, bars, parity, late_parity; /* bars：各槽满了，其后是各槽空了 */
    int slot, late;                         /* late：用完还没有重填的槽，没有为 -1 */

    __device__ void open(const Work &j, S *own, uint64_t *own_bars) {
        ring = own, at = shared_at(own), bars = shared_at(own_bars), slot = 0, parity = 0, late = -1, late_parity = 0;
        if (threadIdx.x == 0) {
            bars_open(bars, D, 1);
            bars_open(bars + 8 * D, D, WARPS);
            cursor.enter(j, 0);
            for (int d = 0; d < D; d++) cursor.fetch(j, at + d * (uint32_t)sizeof(S), bars + 8 * d);
        }
        __syncthreads();
    }
    __device__ const S &wait() {
        barrier_wait(bars + 8 * slot, parity);
        return ring[slot];
    }
    /* 重填用完的槽；线程 0。 */
    __device__ void refill(const Work &j) {
        if (late < 0) return;
        barrier_wait(bars + 8 * (D + late), late_parity);
        cursor.fetch(j, at + late * (uint32_t)sizeof(S), bars + 8 * late);
    }
    /* 本束用完了这一槽。 */
    __device__ void next(const Work &j) {
        __syncwarp();
        if (threadIdx.x % 32 == 0) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bars + 8 * (D + slot)) : "memory");
        if (threadIdx.x == 0) refill(j);
        late = slot, late_parity = parity;
        if (++slot == D) slot = 0, parity ^= 1;
    }
    /* 全块都用完了各槽。 */
    __device__ void settle(const Work &j) {
        if (threadIdx.x == 0) refill(j);
        late = -1;
    }
};
/* 稠密的：一束一个环。 */
template <> struct Stream<0, false> {
    typedef Slot<0, false> S;
    enum { D = Ring<0, false>::DEPTH };
    Cursor<0, false> cursor; /* 各束的线程 0 用 */
    const S *ring;
    uint32_t at, bars, parity;
    int slot;

    __device__ void open(const Work &j, S *rings, uint64_t *all_bars) {
        int warp = threadIdx.x / 32;
        ring = rings + warp * D, at = shared_at(ring), bars = shared_at(all_bars + warp * D), slot = 0, parity = 0;
        if (threadIdx.x % 32 == 0) {
            bars_open(bars, D, 1);
            cursor.enter(j, 0);
            for (int d = 0; d < D; d++) cursor.fetch(j, at + d * (uint32_t)sizeof(S), bars + 8 * d);
        }
        __syncwarp();
    }
    __device__ const S &wait() {
        barrier_wait(bars + 8 * slot, parity);
        return ring[slot];
    }
    /* 这一槽用完了。 */
    __device__ void next(const Work &j) {
        __syncwarp();
        if (threadIdx.x % 32 == 0) cursor.fetch(j, at + slot * (uint32_t)sizeof(S), bars + 8 * slot);
        if (++slot == D) slot = 0, parity ^= 1;
    }
};

/* ---- 量化的 ---- */

/* 本束的 OWN 块乘输入；acc[u][h]：线程的第 2u+h 行。block：首块在槽里的序号，k：它是第几块；x、sums 已移到它；first：槽里的首组，
 * odd：首组的零点是不是 16 字节里的后一半。 */
template <int BITS, bool FINE>
__device__ static void multiply_own(float (*acc)[2], const Slot<BITS, FINE> &w, const GemvFormat &f, const __nv_bfloat16 *x, const float *sums,
                                    int block, int k, int first, int odd, int g, int t) {
    typedef Slot<BITS, FINE> S;
    float part[2][4] = {};
    int side = g / 4, quad = g % 4;
#pragma unroll
    for (int s = 0; s < S::OWN; s++) {
        uint4 in = *(const uint4 *)(x + s * QT_KBLOCK);
        Rows<BITS> rows = rows_of<BITS>(w.codes[side][block + s], quad, t);
#pragma unroll
        for (int u = 0; u < 2; u++) {
            Octet<BITS> two[2] = {octet_of<BITS>(rows, 2 * u, t), octet_of<BITS>(rows, 2 * u + 1, t)};
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint32_t a[4];
#pragma unroll
                for (int i = 0; i < 4; i++) a[i] = octet_pair<BITS>(two[i & 1], 2 * h + i / 2);
                mma(part[u], a, h ? &in.z : &in.x);
            }
        }
        if (!FINE && s < S::OWN - 1) continue;
        int at = group_of(f, FINE ? k + s : k), group = (at < f.groups ? at : f.groups - 1) - first;
        float4 scale = scales_at(w.scale[side] + group * QT_PANEL * (f.scale_type == DT_F16 ? 2 : 4), quad, f.scale_type);
        uint32_t zeros = zeros_at<BITS>(w.zero[side] + (BITS > 4 ? group * QT_PANEL : (odd + group) * QT_PANEL / 2), quad, f.zero_kind);
        float sum = sums[s];
        if (!FINE) {
            float4 four = *(const float4 *)sums;
            sum = four.x + four.y + four.z + four.w;
        }
        const float by[4] = {scale.x, scale.y, scale.z, scale.w};
#pragma unroll
        for (int row = 0; row < 4; row++) {
            acc[row / 2][row % 2] += (part[row / 2][row % 2 * 2] - offset_of<BITS>(zeros, row) * sum) * by[row];
            part[row / 2][row % 2 * 2] = 0;
        }
    }
}
/* 一对面板的一行：一个线程。 */
struct OutRow {
    int which, row;
    bool valid;
    float old;
};
__device__ static OutRow row_of(const LinearPhase &l, int at) {
    int lane = threadIdx.x % 32, side = lane / QT_PANEL;
    OutRow r;
    GemvPair pair = pair_of(l, at, &r.which);
    if (l.product) r.which = side;
    r.row = (side ? pair.first[1] : pair.first[0]) + lane % QT_PANEL;
    r.valid = r.row < l.out[r.which].side.rows;
    r.old = l.add && r.valid ? __ldcg((const float *)l.out[r.which].y + r.row) : 0;
    return r;
}
__device__ static void write_row(const LinearPhase &l, const OutRow &r, const float (*sums)[2 * QT_PANEL], int *watched) {
    int lane = threadIdx.x % 32, local = lane % QT_PANEL, at = local % 4 * 8 + lane / QT_PANEL * 4 + local / 4;
    const PhaseOut &o = l.out[r.which];
    float s = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) s += sums[w][at];
    if (o.side.bias && r.valid) s += o.side.bias[r.row];
    if (l.product) {
        float up = __shfl_down_sync(0xFFFFFFFFu, s, QT_PANEL);
        if (lane < QT_PANEL && r.valid) ((__nv_bfloat16 *)l.out[0].y)[r.row] = __float2bfloat16_rn(activation(s, l.act) * up);
        return;
    }
    s = l.add ? r.old + s : s;
    if (r.valid) ((float *)o.y)[r.row] = s;
    if (r.valid && l.watch >= 0 && !isfinite(s)) atomicMin(watched, l.watch);
}
template <int BITS, bool FINE> __device__ static void linear_rows(const Work &j, int phase, const Input &in, Stream<BITS, FINE> *stream) {
    typedef Slot<BITS, FINE> S;
    __shared__ float sums[ROUNDS][WARPS][2 * QT_PANEL];
    const LinearPhase &l = j.phase[phase].linear;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, stride = gridDim.x, own = warp * S::OWN;
    for (int base = blockIdx.x; base < l.units; base += ROUNDS * stride) {
        OutRow out = {};
        bool writes = warp < ROUNDS && base + warp * stride < l.units;
        if (writes) out = row_of(l, base + warp * stride);
        for (int r = 0, at = base; r < ROUNDS && at < l.units; r++, at += stride) {
            float acc[2][2] = {};
            int which;
            GemvPair pair = pair_of(l, at, &which);
            int group0 = (g / 4 ? pair.panel[1] : pair.panel[0]) * l.f.groups;
            for (int k = 0; k < l.blocks; k += S::BLOCKS) {
                const S &w = stream->wait();
                int mine = k + own, first = group_of(l.f, k);
                if (mine < l.blocks)
                    multiply_own(acc, w, l.f, in.x + mine * QT_KBLOCK + 8 * t, in.sum + mine, own, mine, first, (group0 + first) & 1, g, t);
                stream->next(j);
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (t == 0) sums[r][warp][i * 8 + g] = acc[i / 2][i % 2];
        }
        __syncthreads();
        stream->settle(j);
        if (writes) write_row(l, out, sums[warp], j.watched);
        if (base + ROUNDS * stride < l.units) __syncthreads();
    }
}

/* ---- 稠密的 ---- */

__device__ static void add_products(float *sum, uint32_t w, uint32_t x) {
    sum[0] += __uint_as_float(w << 16) * __uint_as_float(x << 16);
    sum[1] += __uint_as_float(w & 0xFFFF0000u) * __uint_as_float(x & 0xFFFF0000u);
}
/* 一行的点积，各线程都得到。 */
__device__ static float dot_row(const Work &j, const LinearPhase &l, const Input &in, Stream<0, false> *stream) {
    int lane = threadIdx.x % 32;
    float sum[4] = {};
    for (int k = 0; k < l.cols; k += CHUNK_COLS) {
        const Slot<0, false> &w = stream->wait();
#pragma unroll
        for (int i = 0; i < CHUNK_COLS / 256; i++) {
            int at = 32 * i + lane;
            if (k + 8 * at >= l.cols) continue;
            uint4 a = w.w[at], b = *(const uint4 *)(in.x + k + 8 * at);
            add_products(sum, a.x, b.x), add_products(sum + 2, a.y, b.y), add_products(sum, a.z, b.z), add_products(sum + 2, a.w, b.w);
        }
        stream->next(j);
    }
    float s = sum[0] + sum[1] + (sum[2] + sum[3]);
    for (int o = 16; o; o /= 2) s += __shfl_xor_sync(0xFFFFFFFFu, s, o);
    return s;
}
__device__ static void linear_rows(const Work &j, int phase, const Input &in, Stream<0, false> *stream) {
    const LinearPhase &l = j.phase[phase].linear;
    int lane = threadIdx.x % 32;
    for (int at = first_row(); at < l.units; at += WARPS * gridDim.x) {
        int row;
        const PhaseOut &o = row_out(l, at, 0, &row);
        float old = l.add && lane == 0 ? __ldcg((const float *)o.y + row) : 0, s = dot_row(j, l, in, stream);
        if (o.side.bias) s += o.side.bias[row];
        if (l.product) {
            float up = dot_row(j, l, in, stream);
            if (l.out[1].side.bias) up += l.out[1].side.bias[row];
            if (lane == 0) ((__nv_bfloat16 *)o.y)[row] = __float2bfloat16_rn(activation(s, l.act) * up);
            continue;
        }
        s += old;
        if (lane == 0) ((float *)o.y)[row] = s;
        if (lane == 0 && l.watch >= 0 && !isfinite(s)) atomicMin(j.watched, l.watch);
    }
}
template <int BITS, bool FINE> __device__ static void linear_phase(const Work &j, int phase, const Input &in, Stream<BITS, FINE> *stream) {
    const LinearPhase &l = j.phase[phase].linear;
    int pad = BITS ? 8 * QT_KBLOCK : 8, ldx = (l.cols + pad - 1) / pad * pad;
    l.half ? copy_input(in, l, ldx) : make_input(in, l, ldx);
    __syncthreads();
    linear_rows(j, phase, in, stream);
}
#endif
#endif
