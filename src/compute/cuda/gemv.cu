/* gemv — 行数很少（解码）的线性层：bf16 的张量核，权重只读一遍，量化的就以编码相乘
 * 一对面板（32 行输出：一个权重相邻的两个，或 gate、up 同一位置的各一个，后者当场算出 f(gate)·up）由几个线程束分担 k，按固定次序
 * 相加；对多时一块同时做几对，相加的次数少，对少时全块做一对。编码（或 128 + 编码）在 bf16 里精确，以 f32 累加；一组的末尾减去零点乘 Σx，再乘缩放。
 * 权重由 cp.async 送进各线程束自己的环形缓冲，一直有几步在路上；程序化依赖启动：前一个内核还没做完，头几步已经在路上。
 * 只有一个 token 时输入（归一化在内）由各块自己化成 bf16。
 *
 * m16n8k16 的 A 是 16 行权重，B 是至多 8 个 token 的激活；行、k 的次序都换过（A、B 一同）：线程 (g, t) 在每 32 列里取第 8t..8t+7 列，
 * 正是打包时的一组；量化的取面板 g/4 的行 4(g%4)..+3（16 字节一次读），稠密的取两个面板的行 g、g+8。 */
#include <limits.h>

#include "compute/cuda/gemv.h"
#include "compute/cuda/input.h"
#include "compute/cuda/persistent.h"

enum { TILE_N = 8, WARPS = 8, THREADS = WARPS * 32, SHARED_X = 32768 /* 化成 bf16 的输入至多几字节 */ };

struct GemvOut {
    GemvSide side[2]; /* product 时是 gate、up，否则相同 */
    GemvFormat f;
    void *y;
    int pair0; /* 首对在整串里的序号 */
    bool add, product;
};
struct GemvJob {
    GemvOut out[LINEAR_OUT_MAX];
    int n_out, n, cols, blocks, pairs, split; /* 块：每 32 列；split：一对分给几个线程束 */
    Activation f;
    const __nv_bfloat16 *x; /* (n, ldx)；NULL 时由 raw 化来（n 为 1） */
    int64_t ldx;
    const float *raw;
    bool norm, half; /* half：raw 是 bf16，原样取 */
    NormSpec spec;
};
__device__ static GemvPair find_pair(const GemvJob &j, int at, const GemvOut **out) {
    int which = j.n_out - 1;
    while (which && at < j.out[which].pair0) which--;
    const GemvOut *o = *out = &j.out[which];
    return gemv_pair(&o->side[0], &o->side[1], at - o->pair0, o->product);
}

/* ---- 一步（几个 32 列的块）的权重，在一个线程束的共享内存里 ---- */

__device__ static void copy_async(void *to, const void *from, int bytes) {
    unsigned at = (unsigned)__cvta_generic_to_shared(to);
    if (bytes == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from));
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(at), "l"(from));
}
__device__ static void copies_end() {
    asm volatile("cp.async.commit_group;");
}
template <int LEFT> __device__ static void copies_wait() { /* 至多还有 LEFT 步在路上 */
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

/* 量化的。FINE：组宽不是 128 的倍数，每块各有自己的缩放。 */
template <int BITS, bool FINE> struct alignas(16) Stage {
    enum { BLOCKS = 4, GROUPS = FINE ? BLOCKS : 1, DEPTH = BITS == 8 ? 3 : 4, UNITS = BITS * QT_PANEL / 4 /* 一块一个面板几个 16 字节 */ };
    uint4 w[2][BLOCKS][UNITS]; /* [面板][块] */
    char scale[GROUPS][2][QT_PANEL * 4], zero[GROUPS][2][QT_PANEL];

    /* 一对面板里取到哪里：本线程的起点；缩放与零点由线程 8p..（面板 p）各取一段。 */
    struct Source {
        const uint4 *w[2];
        const char *stats;
        int bytes, to, stride, group, left, groups, per; /* 一段几字节（0：不取），放在哪里，组距；现在的组，它还剩几块 */

        __device__ void start(const GemvPair &pair, const GemvFormat &f, int k, int blocks) {
            int lane = threadIdx.x % 32, part = lane % 8;
            const GemvSide &side = lane / 8 == 1 ? *pair.side[1] : *pair.side[0];
            int64_t panel = lane / 8 == 1 ? pair.panel[1] : pair.panel[0];
#pragma unroll
            for (int p = 0; p < 2; p++)
                w[p] = (const uint4 *)pair.side[p]->data + ((int64_t)pair.panel[p] * blocks + k) * UNITS + lane;
            int units = f.scale_type == DT_F16 ? 2 : 4, zeros = BITS > 4 ? 16 : 8;
            groups = f.groups, per = f.per, group = k / per, left = per - k % per;
            bytes = lane >= 16 || part > units || (part == units && f.zero_kind == ZERO_SYM) ? 0 : part < units ? 16 : zeros;
            stride = part < units ? units * 16 : zeros;
            stats = (const char *)(part < units ? side.scales : side.zeros) + panel * groups * stride + (part < units ? 16 * part : 0);
            to = part < units ? lane / 8 * QT_PANEL * 4 + 16 * part : GROUPS * 2 * QT_PANEL * 4 + lane / 8 * QT_PANEL;
        }
    };
    __device__ void load(Source *from, int k, int blocks) {
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int p = 0; p < 2; p++) {
#pragma unroll
            for (int i = 0; i < (BLOCKS * UNITS + 31) / 32; i++) {
                int at = lane + 32 * i;
                if ((BLOCKS * UNITS % 32 == 0 || at < BLOCKS * UNITS) && (k + BLOCKS <= blocks || k + at / UNITS < blocks))
                    copy_async(&w[p][0][0] + at, from->w[p] + 32 * i, 16);
            }
            from->w[p] += BLOCKS * UNITS;
        }
#pragma unroll
        for (int s = 0; s < GROUPS; s++) {
            int group = from->group < from->groups ? from->group : from->groups - 1;
            bool own = from->to >= GROUPS * 2 * QT_PANEL * 4; /* 零点 */
            if (from->bytes)
                copy_async(&scale[0][0][0] + from->to + s * (own ? 2 * QT_PANEL : 2 * QT_PANEL * 4), from->stats + group * from->stride, from->bytes);
            from->left -= BLOCKS / GROUPS;
            if (from->left <= 0) from->group++, from->left += from->per;
        }
    }
};
/* 稠密的 bf16，行主序。 */
template <> struct alignas(16) Stage<0, false> {
    enum { BLOCKS = 2, DEPTH = 3 };
    uint4 w[BLOCKS][2][2][32]; /* [块][面板][行 g、g+8][线程] */

    struct Source {
        const __nv_bfloat16 *row[2][2];
        int stride;

        __device__ void start(const GemvPair &pair, const GemvFormat &, int k, int) {
            int lane = threadIdx.x % 32;
#pragma unroll
            for (int p = 0; p < 2; p++) {
                const GemvSide &from = *pair.side[p];
                int last = from.panel * QT_PANEL + from.rows - 1;
                stride = (int)from.stride;
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    int at = pair.panel[p] * QT_PANEL + lane / 4 + 8 * r;
                    row[p][r] = (const __nv_bfloat16 *)from.data + (int64_t)(at < last ? at : last) * stride + k * QT_KBLOCK + lane % 4 * 8;
                }
            }
        }
    };
    __device__ void load(Source *from, int k, int) {
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int s = 0; s < BLOCKS; s++) {
            bool valid = (k + s) * QT_KBLOCK + lane % 4 * 8 < from->stride;
#pragma unroll
            for (int p = 0; p < 2; p++)
#pragma unroll
                for (int r = 0; r < 2; r++)
                    if (valid)
                        copy_async(&w[s][p][r][lane], from->row[p][r] + s * QT_KBLOCK, 16);
                    else
                        w[s][p][r][lane] = uint4{};
        }
#pragma unroll
        for (int i = 0; i < 4; i++) from->row[i / 2][i % 2] += BLOCKS * QT_KBLOCK;
    }
};
/* 一块的输入；没有的 token 以最后一个代替，结果不写出。 */
template <int NT> __device__ static void load_input(uint4 *x, const __nv_bfloat16 *const *rows, int k) {
#pragma unroll
    for (int i = 0; i < NT; i++) x[i] = *(const uint4 *)(rows[i] + k * QT_KBLOCK);
}
/* 4 行 × 32 列乘输入，加到 part：[第 2u、2u+1 行][8 个 token 一份][4]；sum 是全 1 的一行乘输入，即各 token 的 Σx。 */
template <int BITS, int NT>
__device__ static void multiply_block(float (*part)[NT][4], float (*sum)[4], const uint4 *w, const uint4 *x, int quad, int t) {
    const uint32_t ones[4] = {0x3F803F80u, 0x3F803F80u, 0x3F803F80u, 0x3F803F80u};
    Rows<BITS> rows = rows_of<BITS>(w, quad, t);
#pragma unroll
    for (int i = 0; i < NT; i++) mma(sum[i], ones, &x[i].x), mma(sum[i], ones, &x[i].z);
#pragma unroll
    for (int u = 0; u < 2; u++) {
        Octet<BITS> two[2] = {octet_of<BITS>(rows, 2 * u, t), octet_of<BITS>(rows, 2 * u + 1, t)};
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t a[4];
#pragma unroll
            for (int i = 0; i < 4; i++) a[i] = octet_pair<BITS>(two[i & 1], 2 * h + i / 2);
#pragma unroll
            for (int i = 0; i < NT; i++) mma(part[u][i], a, h ? &x[i].z : &x[i].x);
        }
    }
}
/* 一步。acc[u][8 个 token 一份][4]：线程的第 2u、2u+1 行（稠密的：面板 u 的行 g、g+8）× token 2t、2t+1。 */
template <int BITS, int NT, bool FINE>
__device__ static void multiply(float (*acc)[NT][4], const Stage<BITS, FINE> &w, const GemvOut &o,
                                const __nv_bfloat16 *const *rows, int k, int g, int t) {
    typedef Stage<BITS, FINE> S;
    float part[2][NT][4] = {}, sum[NT][4] = {};
    int side = g / 4, quad = g % 4;
#pragma unroll
    for (int s = 0; s < S::BLOCKS; s++) {
        uint4 x[NT];
        load_input<NT>(x, rows, k + s);
        multiply_block<BITS, NT>(part, sum, w.w[side][s], x, quad, t);
        if (!FINE && s < S::BLOCKS - 1) continue;
        float4 scale = scales_at(w.scale[FINE ? s : 0][side], quad, o.f.scale_type);
        uint32_t zeros = zeros_at<BITS>(w.zero[FINE ? s : 0][side], quad, o.f.zero_kind);
        const float by[4] = {scale.x, scale.y, scale.z, scale.w};
#pragma unroll
        for (int row = 0; row < 4; row++) {
            float offset = offset_of<BITS>(zeros, row);
#pragma unroll
            for (int i = 0; i < NT; i++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    float *to = &part[row / 2][i][row % 2 * 2 + r];
                    acc[row / 2][i][row % 2 * 2 + r] += (*to - offset * sum[i][r]) * by[row];
                    *to = 0;
                }
        }
#pragma unroll
        for (int i = 0; i < NT; i++) sum[i][0] = sum[i][1] = 0;
    }
}
template <int NT>
__device__ static void multiply(float (*acc)[NT][4], const Stage<0, false> &w, const GemvOut &, const __nv_bfloat16 *const *rows,
                                int k, int g, int t) {
#pragma unroll
    for (int s = 0; s < Stage<0, false>::BLOCKS; s++) {
        uint4 x[NT];
        load_input<NT>(x, rows, k + s);
#pragma unroll
        for (int u = 0; u < 2; u++) {
            uint4 v = w.w[s][u][0][g * 4 + t], z = w.w[s][u][1][g * 4 + t];
            uint32_t a0[4] = {v.x, z.x, v.y, z.y}, a1[4] = {v.z, z.z, v.w, z.w};
#pragma unroll
            for (int i = 0; i < NT; i++) mma(acc[u][i], a0, &x[i].x), mma(acc[u][i], a1, &x[i].z);
        }
    }
}

/* 一个 token 的输入化成 bf16，放进共享内存。一次取 CHUNK 个（各线程 4 个 4 列），都在路上了再用。 */
enum { QUADS = 4, CHUNK = THREADS * QUADS * 4 };
__device__ static void read_chunk(float4 *x, const float *from, int first, int cols) {
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        int k = first + (q * THREADS + threadIdx.x) * 4;
        x[q] = k < cols ? *(const float4 *)(from + k) : float4{};
    }
}
__device__ static void make_input(__nv_bfloat16 *to, const GemvJob &j) {
    __shared__ double sums[WARPS];
    float4 x[QUADS], w[QUADS];
    float r = 1;
    bool weighted = j.norm && j.spec.weight;
    if (weighted) read_chunk(w, j.spec.weight, 0, j.cols);
    if (j.norm) {
        double sum = 0;
        for (int first = 0; first < j.cols; first += CHUNK) {
            read_chunk(x, j.raw, first, j.cols);
#pragma unroll
            for (int q = 0; q < QUADS; q++)
                sum += (double)x[q].x * x[q].x + (double)x[q].y * x[q].y + (double)x[q].z * x[q].z + (double)x[q].w * x[q].w;
        }
        for (int o = 16; o; o /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, o);
        if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
        __syncthreads();
        sum = 0;
#pragma unroll
        for (int i = 0; i < WARPS; i++) sum += sums[i];
        r = 1.0f / sqrtf((float)(sum / (double)j.cols) + j.spec.eps);
    }
    for (int first = 0; first < j.ldx; first += CHUNK) {
        if (!j.norm || j.cols > CHUNK) read_chunk(x, j.raw, first, j.cols); /* 只有一段的还在手里 */
        if (weighted && first) read_chunk(w, j.spec.weight, first, j.cols);
#pragma unroll
        for (int q = 0; q < QUADS; q++) {
            int k = first + (q * THREADS + threadIdx.x) * 4;
            float v[4] = {x[q].x, x[q].y, x[q].z, x[q].w};
            const float by[4] = {w[q].x, w[q].y, w[q].z, w[q].w};
#pragma unroll
            for (int i = 0; j.norm && i < 4; i++) v[i] = weighted ? __fmul_rn(v[i] * r, by[i]) : v[i] * r;
            if (k < j.ldx) *(uint2 *)(to + k) = make_uint2(pack2(v[0], v[1]), pack2(v[2], v[3]));
        }
    }
    __syncthreads();
}
/* 已经是 bf16 的。 */
__device__ static void copy_input(__nv_bfloat16 *to, const GemvJob &j) {
    for (int k = threadIdx.x * 8; k < j.ldx; k += THREADS * 8) /* 列数是 8 的倍数 */
        *(uint4 *)(to + k) = k < j.cols ? *(const uint4 *)((const __nv_bfloat16 *)j.raw + k) : uint4{};
    __syncthreads();
}
/* 从第 base 对起的几对：各线程束的部分和相加，写出。 */
template <bool QUANT, int TOKENS>
__device__ static void write_pairs(const GemvJob &j, int base, const float (*sums)[2 * QT_PANEL * TOKENS]) {
    bool product = j.out[0].product;
    int per = j.n * QT_PANEL * (product ? 1 : 2);
    for (int i = threadIdx.x; i < WARPS / j.split * per; i += THREADS) {
        int first = i / per, side = i % per / (j.n * QT_PANEL), token = i / QT_PANEL % j.n, local = i % QT_PANEL;
        if (base + first >= j.pairs) continue;
        const GemvOut *out;
        GemvPair pair = find_pair(j, base + first, &out);
        const GemvOut &o = *out;
        int row = (side ? pair.first[1] : pair.first[0]) + local, rows = o.side[side].rows;
        if (row >= rows) continue;
        float s[2];
#pragma unroll
        for (int p = 0; p < 2; p++) { /* 面板、行 → 线程存放的位置 */
            if (p && !product) continue;
            int q = product ? p : side, at = QUANT ? local % 4 * TILE_N + q * 4 + local / 4 : q * QT_PANEL + local;
            s[p] = 0;
            for (int w = 0; w < j.split; w++) s[p] += sums[first * j.split + w][at * TOKENS + token];
            if (o.side[q].bias) s[p] += o.side[q].bias[row];
        }
        int64_t to = (int64_t)token * rows + row;
        if (product)
            ((__nv_bfloat16 *)o.y)[to] = __float2bfloat16_rn(activation(s[0], j.f) * s[1]);
        else
            ((float *)o.y)[to] = o.add ? ((float *)o.y)[to] + s[0] : s[0];
    }
}

/* BITS 为 0 是稠密的。一个内核只管一种权重：寄存器少，同时在跑的线程束才多。 */
template <int BITS, int NT, bool FINE>
__global__ __launch_bounds__(THREADS, NT == 1 ? 2 : 1) static void gemv_kernel(const __grid_constant__ GemvJob j) {
    typedef Stage<BITS, FINE> S;
    enum { D = S::DEPTH, STEP = S::BLOCKS, TOKENS = NT * TILE_N };
    extern __shared__ uint4 dynamic[];
    __shared__ float sums[WARPS][2 * QT_PANEL * TOKENS]; /* [行][token] */
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int part = warp % j.split, own_pair = warp / j.split, at_once = WARPS / j.split, stride = gridDim.x * at_once;
    int steps = (j.blocks + STEP - 1) / STEP, k0 = steps * part / j.split * STEP, k1 = steps * (part + 1) / j.split * STEP;
    S *ring = (S *)dynamic + warp * D;
    typename S::Source from;
    int at = blockIdx.x * at_once + own_pair, next_at = k0 < k1 ? at : j.pairs, next_k = k0; /* 取到哪里了：各对、每对里的各步，首尾相接 */
    const GemvOut *out;
    auto start = [&](int pair) {
        GemvPair first = find_pair(j, pair, &out);
        from.start(first, out->f, k0, j.blocks);
    };
    if (next_at < j.pairs) start(at);
    auto fetch = [&](int slot) {
        if (next_at < j.pairs) {
            ring[slot].load(&from, next_k, j.blocks);
            next_k += STEP;
            if (next_k >= k1) {
                next_k = k0, next_at += stride;
                if (next_at < j.pairs) start(next_at);
            }
        }
        copies_end();
    };
    for (int d = 0; d < D - 1; d++) fetch(d);
    grid_release();
    grid_wait();
    const __nv_bfloat16 *x = j.x, *rows[NT];
    if (!x) {
        __nv_bfloat16 *own = (__nv_bfloat16 *)((S *)dynamic + WARPS * D);
        j.half ? copy_input(own, j) : make_input(own, j);
        x = own;
    }
#pragma unroll
    for (int i = 0; i < NT; i++) rows[i] = x + (i * TILE_N + g < j.n ? i * TILE_N + g : j.n - 1) * j.ldx + 8 * t;
    int slot = 0;
    for (int base = blockIdx.x * at_once; base < j.pairs; base += stride, at += stride) {
        float acc[2][NT][4] = {};
        const GemvOut *mine;
        find_pair(j, at < j.pairs ? at : 0, &mine);
        for (int k = at < j.pairs ? k0 : k1; k < k1; k += STEP) {
            copies_wait<D - 2>();
            __syncwarp();
            fetch(slot ? slot - 1 : D - 1); /* 上一步用完的 */
            multiply(acc, ring[slot], *mine, rows, k, g, t);
            slot = slot + 1 < D ? slot + 1 : 0;
        }
#pragma unroll
        for (int u = 0; u < 2; u++)
#pragma unroll
            for (int i = 0; i < NT; i++)
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    int row = BITS ? (2 * u + r / 2) * TILE_N + g : u * QT_PANEL + r / 2 * TILE_N + g;
                    sums[warp][row * TOKENS + i * TILE_N + 2 * t + r % 2] = acc[u][i][r];
                }
        __syncthreads();
        write_pairs<BITS != 0, TOKENS>(j, base, sums);
        __syncthreads();
    }
}

bool gemv_accepts(const QTensor *w, int64_t n) {
    if (w->dense != DT_NONE) return n <= TILE_N && w->dense == DT_BF16 && w->cols % 8 == 0; /* 再多 cuBLAS 更快 */
    if (n > GEMV_MAX_ROWS) return false;
    int bits = w->spec.bits; /* 其余的位宽少见，不值得多编几份内核 */
    if (w->spec.codes != CODE_INT || w->nested.per || w->spec.scale_dtype == DT_BF16) return false;
    return (bits <= 4 || bits == 8) && w->spec.zero != ZERO_FLOAT && !w->two.scale_bits && !w->two.zero_bits && !w->outliers.start &&
           (w->spec.group_size % QT_KBLOCK == 0 || w->n_groups == 1);
}

int gemv_kind(const QTensor *w) {
    bool coarse = w->n_groups == 1 || w->spec.group_size % (4 * QT_KBLOCK) == 0;
    return w->dense != DT_NONE ? 0 : 2 * w->spec.bits + !coarse;
}
GemvSide gemv_side(const LinearOut *out, int64_t row0, int64_t rows) {
    GemvSide s = {};
    s.data = out->w->data, s.scales = out->w->scales, s.zeros = out->w->zeros, s.bias = out->bias;
    s.stride = (int)dense_stride(out->w), s.panel = (int)(row0 / QT_PANEL), s.rows = (int)rows;
    s.panels = (int)((out->w->rows - 1) / QT_PANEL + 1);
    return s;
}
GemvFormat gemv_format(const QTensor *w) {
    GemvFormat f = {(int)w->n_groups, INT_MAX, 30, w->spec.scale_dtype, w->spec.zero};
    if (w->dense != DT_NONE || w->n_groups == 1) return f;
    f.per = (int)(w->spec.group_size / QT_KBLOCK), f.shift = 0;
    while (1 << f.shift < f.per) f.shift++;
    if (1 << f.shift != f.per) f.shift = -1;
    return f;
}
/* up 非 NULL：与 out（gate）成对。 */
static void add_out(GemvJob *j, const LinearOut *out, const LinearOut *up, int64_t row0, int64_t rows) {
    GemvOut *o = &j->out[j->n_out++];
    const QTensor *w = out->w;
    o->side[0] = gemv_side(out, row0, rows), o->side[1] = gemv_side(up ? up : out, row0, rows), o->f = gemv_format(w);
    o->y = out->y, o->add = out->sum != NULL, o->product = up != NULL, o->pair0 = j->pairs;
    int panels = (int)((rows - 1) / QT_PANEL + 1);
    j->pairs += up ? panels : (panels + 1) / 2;
}
template <int BITS, int NT, bool FINE> static void launch(Backend *b, GemvJob &j) {
    int sms = cuda_of(b)->sms, each = BITS ? 2 : 1; /* 每个上几块；稠密的一块就够占满带宽 */
    j.split = j.pairs >= 6 * sms ? 2 : j.pairs >= 3 * sms ? 4 : WARPS;
    int rounds = (j.pairs * j.split - 1) / WARPS + 1;
    int grid = rounds <= sms ? sms : rounds < each * sms ? rounds : each * sms; /* 不足一轮也每个都占上：否则下一个内核先到的块会挤在空着的上 */
    size_t ring = sizeof(Stage<BITS, FINE>) * WARPS * Stage<BITS, FINE>::DEPTH, own = j.x ? 0 : (size_t)j.ldx * 2;
    static bool allowed; /* 共享内存多于 48 KB 要先说 */
    if (!allowed)
        allowed = cuda_ok(b, cudaFuncSetAttribute(gemv_kernel<BITS, NT, FINE>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  (int)ring + SHARED_X), "共享内存");
    launch_early(b, gemv_kernel<BITS, NT, FINE>, dim3((unsigned)grid), dim3(THREADS), ring + own, j);
}
template <int BITS> static void launch_bits(Backend *b, GemvJob &j, bool fine) {
    if (j.n > TILE_N)
        launch<BITS, 4, true>(b, j);
    else if (fine)
        launch<BITS, 1, true>(b, j);
    else
        launch<BITS, 1, false>(b, j);
}
/* j 的各个同一种类。 */
static bool run(Backend *b, GemvJob *j, int kind) {
    switch (kind / 2) {
    case 0: launch<0, 1, false>(b, *j); break;
    case 2: launch_bits<2>(b, *j, kind % 2); break;
    case 3: launch_bits<3>(b, *j, kind % 2); break;
    case 4: launch_bits<4>(b, *j, kind % 2); break;
    default: launch_bits<8>(b, *j, kind % 2); break;
    }
    return LAUNCHED(b, "gemv");
}
/* 输入：一个 token 的由内核自己化成 bf16，否则先化好。 */
static bool set_input(Backend *b, GemvJob *j, const LinearIn *in, int64_t n, int64_t cols, const int32_t *perm) {
    bool half = gated_of(b, in, n).product && !perm && cols % 8 == 0;
    const NormSpec *s = &in->norm;
    bool fast = half || (in->kind == IN_PLAIN && !perm) || (in->kind == IN_NORM && !perm && !s->center && !s->bias && s->period == 1);
    j->n = (int)n, j->cols = (int)cols, j->blocks = (int)((cols - 1) / QT_KBLOCK + 1);
    j->ldx = (cols + 4 * QT_KBLOCK - 1) / (4 * QT_KBLOCK) * (4 * QT_KBLOCK); /* 整步 */
    if (n == 1 && fast && cols % 4 == 0 && j->ldx * 2 <= SHARED_X) {
        j->raw = in->x, j->norm = in->kind == IN_NORM, j->spec = *s, j->half = half;
        return true;
    }
    j->x = cuda_input_bf16(b, in, n, cols, j->ldx, perm);
    return j->x != NULL;
}
bool gemv_product(const LinearOut *out, int n_out) {
    const QTensor *g = out[0].w, *u = out[n_out - 1].w;
    return n_out == 2 && out[0].opaque && out[1].opaque && !g->perm && !u->perm && g->rows == u->rows && g->rows % QT_KBLOCK == 0 &&
           gemv_kind(g) == gemv_kind(u) && g->n_groups == u->n_groups && g->spec.scale_dtype == u->spec.scale_dtype &&
           g->spec.group_size == u->spec.group_size && g->spec.zero == u->spec.zero;
}
bool cuda_gemv(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n) {
    int64_t cols = out[0].w->cols;
    bool product = gemv_product(out, n_out);
    if (n == 1 && persistent_linear(b, out, n_out, in)) return true;
    for (int i = 0, k; i < n_out; i = k) { /* [i, k)：种类与列序相同的几个 */
        GemvJob j = {};
        const int32_t *perm = out[i].w->perm;
        int kind = gemv_kind(out[i].w);
        if (!set_input(b, &j, in, n, cols, perm)) return false;
        j.f = out[i].f;
        if (product) add_out(&j, &out[0], &out[1], 0, out[0].w->rows);
        for (k = product ? n_out : i; k < n_out && gemv_kind(out[k].w) == kind && out[k].w->perm == perm; k++)
            add_out(&j, &out[k], NULL, 0, out[k].w->rows);
        if (!run(b, &j, kind)) return false;
    }
    if (out[0].opaque) cuda_of(b)->product = product;
    return true;
}
bool cuda_gemv_part(Backend *b, float *y, const QTensor *w, int64_t row0, int64_t rows, const float *x, int64_t n) {
    GemvJob j = {};
    LinearOut out = {};
    LinearIn in = {};
    out.y = y, out.w = w, in.x = x;
    add_out(&j, &out, NULL, row0, rows);
    return set_input(b, &j, &in, n, w->cols, w->perm) && run(b, &j, gemv_kind(w));
}
