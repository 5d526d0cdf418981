/* prefill — 预填的注意力之前：q、k 旋转，三者舍入到 bf16，按 tiled.h 分块存放，一趟做完 */
#include <math.h>

#include "compute/cuda/tiled.h"

enum { SPLIT = 16 /* 一个查询块分给几个线程块 */, THREADS = 256, MAX_BLOCKS = 256 };

/* 64 行：输入的首行、行数（可为 0，补零）、首行的位置。 */
struct PrepareBlock {
    int32_t row0, rows, pos;
};
struct PrepareArgs {
    const void *q, *k, *v;           /* (行, 头·维) f32 或 bf16 */
    __nv_bfloat16 *q_to, *k_to, *v_to;
    const float *cos_table, *sin_table; /* (位置, half)；NULL 不转 */
    int half, heads, kv_heads, first;   /* first：首块的块号 */
    bool interleaved, f16;              /* f16：键值先舍入到 f16 */
    PrepareBlock block[MAX_BLOCKS];
};

struct Octet8 {
    float x[8];
};
template <typename T> __device__ static Octet8 load8(const void *from, int64_t at) {
    Octet8 r;
    if (sizeof(T) == 2) {
        uint4 u = *(const uint4 *)((const __nv_bfloat16 *)from + at);
        const __nv_bfloat162 *h = (const __nv_bfloat162 *)&u;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 f = __bfloat1622float2(h[i]);
            r.x[2 * i] = f.x, r.x[2 * i + 1] = f.y;
        }
    } else {
        float4 a = *(const float4 *)((const float *)from + at), b = *(const float4 *)((const float *)from + at + 4);
        r.x[0] = a.x, r.x[1] = a.y, r.x[2] = a.z, r.x[3] = a.w, r.x[4] = b.x, r.x[5] = b.y, r.x[6] = b.z, r.x[7] = b.w;
    }
    return r;
}
__device__ static void store8(void *to, const Octet8 &v) {
    *(uint4 *)to = make_uint4(pack2(v.x[0], v.x[1]), pack2(v.x[2], v.x[3]), pack2(v.x[4], v.x[5]), pack2(v.x[6], v.x[7]));
}
__device__ static void turn(float *a, float *c, float co, float si) {
    float x = *a, y = *c;
    *a = __fadd_rn(__fmul_rn(x, co), -__fmul_rn(y, si));
    *c = __fadd_rn(__fmul_rn(y, co), __fmul_rn(x, si));
}
/* 两片 a、c（首维 d0、d1）就地旋转。不交错时二者相距 half；table 是这个位置在表里的首个下标。 */
__device__ static void rotate2(const PrepareArgs &s, Octet8 *a, Octet8 *c, int d0, int d1, int64_t table) {
    if (s.interleaved) {
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
            turn(&a->x[i], &a->x[i + 1], s.cos_table[table + (d0 + i) / 2], s.sin_table[table + (d0 + i) / 2]);
            turn(&c->x[i], &c->x[i + 1], s.cos_table[table + (d1 + i) / 2], s.sin_table[table + (d1 + i) / 2]);
        }
        return;
    }
    Octet8 co = load8<float>(s.cos_table, table + d0), si = load8<float>(s.sin_table, table + d0);
#pragma unroll
    for (int i = 0; i < 8; i++) turn(&a->x[i], &c->x[i], co.x[i], si.x[i]);
}
/* 键值的舍入；值里的 NaN、Inf 换成 0，键换成 NaN（看得见它的查询仍得 NaN，看不见的不受影响）。 */
__device__ static void settle(Octet8 *k, Octet8 *v, bool f16) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (f16) k->x[i] = __half2float(__float2half_rn(k->x[i])), v->x[i] = __half2float(__float2half_rn(v->x[i]));
        if (!isfinite(v->x[i])) v->x[i] = 0, k->x[i] = NAN;
    }
}

/* 一个线程：一行一头的两片。维数 D 的片两两成对：旋转的第 i 片与第 i+half/8 片（交错时相邻两片），其余相邻两片。 */
template <int D, typename T> __global__ __launch_bounds__(THREADS) static void prepare_kernel(const __grid_constant__ PrepareArgs s) {
    enum { PAIRS = D / 16, ROWS = TILE_ROWS / SPLIT };
    const PrepareBlock &b = s.block[blockIdx.x];
    int64_t block = s.first + (int64_t)blockIdx.x;
    int all = s.heads + s.kv_heads, turned = s.cos_table ? s.half / 8 : 0;
    for (int i = threadIdx.x; i < ROWS * all * PAIRS; i += THREADS) {
        int pair = i % PAIRS, h = i / PAIRS % all, row = (int)blockIdx.y * ROWS + i / PAIRS / all;
        bool apart = pair < turned && !s.interleaved, valid = row < b.rows, query = h < s.heads;
        int c0 = apart ? pair : 2 * pair, c1 = apart ? pair + turned : c0 + 1;
        int heads = query ? s.heads : s.kv_heads, head = query ? h : h - s.heads;
        int64_t at = ((int64_t)(b.row0 + row) * heads + head) * D;
        Octet8 x0 = {}, x1 = {}, v0 = {}, v1 = {};
        if (valid) {
            x0 = load8<T>(query ? s.q : s.k, at + 8 * c0), x1 = load8<T>(query ? s.q : s.k, at + 8 * c1);
            if (c0 < 2 * turned) rotate2(s, &x0, &x1, 8 * c0, 8 * c1, (int64_t)(b.pos + row) * s.half);
            if (!query) {
                v0 = load8<T>(s.v, at + 8 * c0), v1 = load8<T>(s.v, at + 8 * c1);
                settle(&x0, &v0, s.f16), settle(&x1, &v1, s.f16);
            }
        }
        if (query) {
            char *to = (char *)(s.q_to + (block * s.heads + head) * (TILE_ROWS * D));
            store8(to + tiled_at(row, c0, TILE_ROWS), x0), store8(to + tiled_at(row, c1, TILE_ROWS), x1);
        } else {
            int64_t tile = (block / 2 * s.kv_heads + head) * (TILE_KEYS * D);
            int r = (int)(block % 2) * TILE_ROWS + row;
            uint32_t p0 = tiled_at(r, c0, TILE_KEYS), p1 = tiled_at(r, c1, TILE_KEYS);
            store8((char *)(s.k_to + tile) + p0, x0), store8((char *)(s.k_to + tile) + p1, x1);
            store8((char *)(s.v_to + tile) + p0, v0), store8((char *)(s.v_to + tile) + p1, v1);
        }
    }
}
template <int D, typename T> static bool prepare(Backend *b, const PrepareArgs &s, int n_blocks) {
    prepare_kernel<D, T><<<dim3((unsigned)n_blocks, SPLIT), THREADS, 0, STREAM(b)>>>(s);
    return LAUNCHED(b, "旋转与分块");
}
