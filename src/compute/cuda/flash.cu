/* flash — 因果注意力（多个查询）：bf16 的张量核，在线 softmax，分数不落显存（FlashAttention-2，arXiv 2307.08691 算法 1）
 * 一块一个头，4 个线程束各 16·MT 个查询；键、值按 BC 个一块流过共享内存，下一块的复制与这一块的计算重叠。
 * 共享内存里一行按 16 字节分片，片号与行号的低 3 位异或，ldmatrix 因而没有冲突。 */
#include <math.h>

#include "compute/cuda/attention.h"

enum { WARPS = 4, CHUNK = 8 /* 一片的 bf16 个数 */ };

__device__ static uint32_t shared_at(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}
__device__ static void copy16(uint32_t to, const void *from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0));
}
__device__ static void commit() {
    asm volatile("cp.async.commit_group;");
}
template <int N> __device__ static void wait_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N));
}
__device__ static void load4(uint32_t *r, uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
}
__device__ static void load4_transposed(uint32_t *r, uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
}
/* 行 row、第 c 片的字节偏移。 */
template <int D> __device__ static uint32_t at(int row, int c) {
    return (uint32_t)((row * (D / CHUNK) + (c ^ (row & 7))) * 16);
}

/* 键（或值）的行 [j0, j0+BC) 进共享内存；[lo, hi) 之外与 dim 之外补零。 */
template <int D, int BC> __device__ static void fetch(uint32_t to, const __nv_bfloat16 *rows, const FlashArgs &a, int j0) {
    int width = (int)a.width, lo = (int)a.lo, hi = (int)a.hi, dim = (int)a.dim;
#pragma unroll
    for (int k = 0; k < BC * (D / CHUNK) / (WARPS * 32); k++) {
        int i = threadIdx.x + k * WARPS * 32, r = i / (D / CHUNK), c = i % (D / CHUNK), j = j0 + r;
        bool valid = j >= lo && j < hi && c * CHUNK < dim;
        copy16(to + at<D>(r, c), rows + (valid ? (int64_t)j * width + c * CHUNK : 0), valid);
    }
}

/* 2^x，相对误差 2^-22；负无穷得 0。 */
__device__ static float pow2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* 一对行（16 行的小块里的 g 与 g+8）的在线 softmax 的状态。 */
struct Rows2 {
    float max[2], sum[2];
};
/* 分数 s（已乘 log2 e）→ 概率，acc 跟着缩小。 */
template <int N_D, int N_S> __device__ static void softmax(float (*s)[4], float (*acc)[4], Rows2 *m) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = m->max[r];
#pragma unroll
        for (int i = 0; i < N_S; i++) top = fmaxf(top, fmaxf(s[i][2 * r], s[i][2 * r + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, 2));
        float base = top == -INFINITY ? 0 : top, shrink = pow2(m->max[r] - base), sum = 0;
        m->max[r] = top;
#pragma unroll
        for (int i = 0; i < N_S; i++)
#pragma unroll
            for (int k = 2 * r; k < 2 * r + 2; k++) sum += s[i][k] = pow2(s[i][k] - base);
        m->sum[r] = m->sum[r] * shrink + sum;
#pragma unroll
        for (int i = 0; i < N_D; i++) acc[i][2 * r] *= shrink, acc[i][2 * r + 1] *= shrink;
    }
}

/* PLAIN：没有软截断与偏置。 */
template <int D, int MT, int BC, bool PLAIN> __global__ __launch_bounds__(WARPS * 32) static void flash_kernel(const __grid_constant__ FlashArgs a) {
    extern __shared__ __align__(128) char smem[];
    enum { BR = WARPS * 16 * MT, TILE = BC * D * 2, N_D = D / 8, N_S = BC / 8 };
    uint32_t sq = shared_at(smem), sk = sq + BR * D * 2, sv = sk + 2 * TILE;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, n = (int)a.n, dim = (int)a.dim;
    int heads = (int)a.s.n_heads, h = blockIdx.x, kv = h / (heads / (int)a.s.n_kv_heads), window = (int)a.s.window;
    int r0 = (int)(gridDim.y - 1 - blockIdx.y) * BR;
    /* q → bf16 → 共享内存 */
    for (int i = threadIdx.x; i < BR * (D / 4); i += WARPS * 32) {
        int r = i / (D / 4), d = i % (D / 4) * 4;
        float4 x = make_float4(0, 0, 0, 0);
        if (r0 + r < n && d < dim) x = *(const float4 *)(a.q + ((int64_t)(r0 + r) * heads + h) * dim + d);
        *(uint2 *)(smem + at<D>(r, d / CHUNK) + d % CHUNK * 2) = make_uint2(pack2(x.x, x.y), pack2(x.z, x.w));
    }
    const __nv_bfloat16 *keys = a.k + kv * dim, *values = a.v + kv * dim;
    int first = (int)a.s.first + r0, last = (int)a.s.first + (r0 + BR < n ? r0 + BR : n) - 1;
    int begin = window > 0 && first >= window ? (first - window + 1) / BC * BC : 0, tiles = (last - begin) / BC + 1;
    fetch<D, BC>(sk, keys, a, begin);
    fetch<D, BC>(sv, values, a, begin);
    commit();
    float acc[MT][N_D][4] = {};
    Rows2 state[MT];
    for (int m = 0; m < MT; m++) state[m] = Rows2{{-INFINITY, -INFINITY}, {0, 0}};
    int mine = first + warp * 16 * MT; /* 本线程束的首个查询的位置 */
    float scale = a.s.scale * 1.44269504f;
    for (int tile = 0; tile < tiles; tile++) {
        int j0 = begin + tile * BC;
        uint32_t k_at = sk + (tile & 1) * TILE, v_at = sv + (tile & 1) * TILE;
        if (tile + 1 < tiles) {
            fetch<D, BC>(sk + (~tile & 1) * TILE, keys, a, j0 + BC);
            fetch<D, BC>(sv + (~tile & 1) * TILE, values, a, j0 + BC);
        }
        commit();
        wait_groups<1>();
        __syncthreads();
        if (j0 <= mine + 16 * MT - 1) { /* 这一块不全在对角线之上 */
            float s[MT][N_S][4] = {};
#pragma unroll
            for (int c = 0; c < D / 16; c++) {
                uint32_t q[MT][4];
#pragma unroll
                for (int m = 0; m < MT; m++) load4(q[m], sq + at<D>((warp * MT + m) * 16 + lane % 16, 2 * c + lane / 16));
#pragma unroll
                for (int i = 0; i < N_S / 2; i++) {
                    uint32_t k[4]; /* 键 16i..+7 的前后半、键 16i+8..+15 的前后半 */
                    load4(k, k_at + at<D>(16 * i + lane / 16 * 8 + lane % 8, 2 * c + lane / 8 % 2));
#pragma unroll
                    for (int m = 0; m < MT; m++) mma(s[m][2 * i], q[m], k), mma(s[m][2 * i + 1], q[m], k + 2);
                }
            }
            bool edge = j0 + BC - 1 > mine || (window > 0 && j0 <= mine + 16 * MT - 1 - window);
#pragma unroll
            for (int m = 0; m < MT; m++) {
#pragma unroll
                for (int i = 0; i < N_S; i++)
#pragma unroll
                    for (int r = 0; r < 4; r++) {
                        float x = s[m][i][r] * (PLAIN ? scale : a.s.scale);
                        if (!PLAIN) {
                            int j = j0 + 8 * i + 2 * t + r % 2;
                            if (a.s.softcap > 0) x = a.s.softcap * tanhf(x / a.s.softcap);
                            if (a.s.bias && j < (int)a.hi) x += a.s.bias[h * a.s.bias_stride + j];
                            x *= 1.44269504f;
                        }
                        s[m][i][r] = x;
                    }
                if (edge)
#pragma unroll
                    for (int i = 0; i < N_S; i++)
#pragma unroll
                        for (int r = 0; r < 4; r++) {
                            int j = j0 + 8 * i + 2 * t + r % 2, pos = mine + 16 * m + g + r / 2 * 8;
                            if (j > pos || (window > 0 && j <= pos - window)) s[m][i][r] = -INFINITY;
                        }
                softmax<N_D, N_S>(s[m], acc[m], &state[m]);
            }
#pragma unroll
            for (int i = 0; i < N_S / 2; i++) { /* 键 16i..16i+15 */
                uint32_t p[MT][4];
#pragma unroll
                for (int m = 0; m < MT; m++)
#pragma unroll
                    for (int k = 0; k < 4; k++) p[m][k] = pack2(s[m][2 * i + k / 2][k % 2 * 2], s[m][2 * i + k / 2][k % 2 * 2 + 1]);
#pragma unroll
                for (int c = 0; c < N_D / 2; c++) {
                    uint32_t v[4]; /* 维 16c..+7 的键前后半、维 16c+8..+15 的键前后半 */
                    load4_transposed(v, v_at + at<D>(16 * i + lane % 16, 2 * c + lane / 16));
#pragma unroll
                    for (int m = 0; m < MT; m++) mma(acc[m][2 * c], p[m], v), mma(acc[m][2 * c + 1], p[m], v + 2);
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float sum = state[m].sum[r];
            sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
            sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
            int row = r0 + (warp * MT + m) * 16 + g + 8 * r;
            if (row >= n) continue;
            float inv = 1 / sum;
            float *o = a.out + ((int64_t)row * heads + h) * dim;
#pragma unroll
            for (int i = 0; i < N_D; i++)
                if (8 * i + 2 * t < dim)
                    *(float2 *)(o + 8 * i + 2 * t) = make_float2(acc[m][i][2 * r] * inv, acc[m][i][2 * r + 1] * inv);
        }
}

template <int D, int MT, int BC, bool PLAIN> static bool launch(Backend *b, const FlashArgs &a) {
    enum { BR = WARPS * 16 * MT };
    int bytes = (BR + 4 * BC) * D * 2;
    dim3 grid((unsigned)a.s.n_heads, (unsigned)((a.n + BR - 1) / BR)); /* 长的先做 */
    if (!cuda_ok(b, cudaFuncSetAttribute(flash_kernel<D, MT, BC, PLAIN>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "共享内存"))
        return false;
    flash_kernel<D, MT, BC, PLAIN><<<grid, WARPS * 32, bytes, STREAM(b)>>>(a);
    return LAUNCHED(b, "attention");
}
template <int D, int MT, int BC> static bool run(Backend *b, const FlashArgs &a) {
    return a.s.softcap > 0 || a.s.bias ? launch<D, MT, BC, false>(b, a) : launch<D, MT, BC, true>(b, a);
}
bool flash_accepts(const Backend *b, const AttnSpec *s) {
    return b->compute == COMPUTE_BF16 && s->head_dim % CHUNK == 0 && s->head_dim <= 256;
}
bool cuda_flash(Backend *b, const FlashArgs *a) {
    if (a->dim <= 64) return run<64, 2, 64>(b, *a);
    if (a->dim <= 128) return run<128, 1, 64>(b, *a);
    return run<256, 1, 32>(b, *a); /* 96 KiB 共享内存 */
}
