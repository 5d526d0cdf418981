/* prefill — 预填的注意力：q、k 旋转，三者舍入到 bf16，按 tiled.h 分块存放，一趟做完；再交给 flash_wgmma.cu，各段一次派发
 * 那里不做的（别的 GPU、维数、有窗口等）逐段调用 rope 与 attention。 */
#include <math.h>

#include "compute/cuda/input.h"
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
    int half, heads, kv_heads, first, n_blocks; /* first：首块的块号 */
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
template <int D, typename T> static bool launch(Backend *b, const PrepareArgs &s) {
    prepare_kernel<D, T><<<dim3((unsigned)s.n_blocks, SPLIT), THREADS, 0, STREAM(b)>>>(s);
    return LAUNCHED(b, "旋转与分块");
}
static bool prepare(Backend *b, PrepareArgs *s, int64_t dim, bool half) {
    bool ok = s->n_blocks == 0 || (dim == 64 ? half ? launch<64, __nv_bfloat16>(b, *s) : launch<64, float>(b, *s)
                                             : half ? launch<128, __nv_bfloat16>(b, *s) : launch<128, float>(b, *s));
    s->first += s->n_blocks, s->n_blocks = 0;
    return ok;
}
/* 一段的 n 行，首个位置 pos：按 TILE_KEYS 行补齐的各块，满了就派发。 */
static bool prepare_rows(Backend *b, PrepareArgs *s, int64_t dim, bool half, int64_t row0, int64_t n, int64_t pos) {
    for (int64_t r = 0; r < (n + TILE_KEYS - 1) / TILE_KEYS * TILE_KEYS; r += TILE_ROWS) {
        int64_t rows = n - r < 0 ? 0 : n - r < TILE_ROWS ? n - r : TILE_ROWS;
        s->block[s->n_blocks++] = PrepareBlock{(int32_t)(row0 + r), (int32_t)rows, (int32_t)(pos + r)};
        if (s->n_blocks == MAX_BLOCKS && !prepare(b, s, dim, half)) return false;
    }
    return true;
}
static bool add_item(Backend *b, TiledArgs *a, int64_t dim, const TiledItem &item) {
    a->item[a->n_items++] = item;
    if (a->n_items < TILED_ITEMS) return true;
    bool ok = cuda_tiled(b, a, dim);
    a->n_items = 0;
    return ok;
}
static int64_t blocks_of(int64_t n) {
    return (n + TILE_KEYS - 1) / TILE_KEYS * (TILE_KEYS / TILE_ROWS);
}
/* 分块存放的空间：q 的 q_blocks 块，k、v 各 kv_blocks 块（都以 TILE_ROWS 行计）。 */
static bool tiles(Backend *b, TiledArgs *a, const AttnSpec *s, int64_t q_blocks, int64_t kv_blocks) {
    size_t q = (size_t)(q_blocks * TILE_ROWS * s->n_heads * s->head_dim) * 2;
    size_t kv = (size_t)(kv_blocks * TILE_ROWS * s->n_kv_heads * s->head_dim) * 2;
    a->q = (__nv_bfloat16 *)cuda_slot(b, SLOT_A, q);
    a->k = (__nv_bfloat16 *)cuda_slot(b, SLOT_B, kv);
    a->v = (__nv_bfloat16 *)cuda_slot(b, SLOT_Z, kv);
    a->heads = (int)s->n_heads, a->kv_heads = (int)s->n_kv_heads, a->scale = s->scale, a->counters = cuda_of(b)->counters;
    return a->q && a->k && a->v;
}
static PrepareArgs prepare_of(const TiledArgs &a) {
    PrepareArgs s = {};
    s.q_to = (__nv_bfloat16 *)a.q, s.k_to = (__nv_bfloat16 *)a.k, s.v_to = (__nv_bfloat16 *)a.v;
    s.heads = a.heads, s.kv_heads = a.kv_heads;
    return s;
}

bool cuda_tiled_rows(Backend *b, float *out, const float *q, const __nv_bfloat16 *k, const __nv_bfloat16 *v, int64_t n,
                     const AttnSpec *s) {
    TiledArgs a = {};
    int64_t keys = s->first + n, dim = s->head_dim, most = tiled_rows(dim);
    if (!tiles(b, &a, s, blocks_of(n), blocks_of(keys))) return false;
    PrepareArgs p = prepare_of(a);
    p.q = q, p.kv_heads = 0;
    if (!prepare_rows(b, &p, dim, false, 0, n, s->first) || !prepare(b, &p, dim, false)) return false;
    p = prepare_of(a);
    p.k = k, p.v = v, p.heads = 0;
    if (!prepare_rows(b, &p, dim, true, 0, keys, 0) || !prepare(b, &p, dim, true)) return false;
    a.out = out;
    for (int64_t r = (n - 1) / most * most; r >= 0; r -= most) {
        int64_t rows = n - r < most ? n - r : most;
        if (!add_item(b, &a, dim, TiledItem{(int32_t)r, (int32_t)rows, (int32_t)(r / TILE_ROWS), 0, (int32_t)(s->first + r)})) return false;
    }
    return a.n_items == 0 || cuda_tiled(b, &a, dim);
}

/* 各段一趟：备好，再从最长的起逐批。 */
static bool together(Backend *b, const PrefillJob *j) {
    const AttnSpec *s = &j->spec;
    TiledArgs a = {};
    int64_t dim = s->head_dim, most = tiled_rows(dim), blocks = 0, longest = 0;
    for (int64_t i = 0; i < j->n; i++) {
        blocks += blocks_of(j->segments[i].n);
        if (j->segments[i].n > longest) longest = j->segments[i].n;
    }
    if (!tiles(b, &a, s, blocks, blocks)) return false;
    PrepareArgs p = prepare_of(a);
    p.q = j->q, p.k = j->k, p.v = j->v, p.f16 = j->f16;
    p.cos_table = j->cos_table, p.sin_table = j->sin_table, p.half = j->cos_table ? (int)j->half : 0, p.interleaved = j->interleaved;
    for (int64_t i = 0; i < j->n; i++)
        if (!prepare_rows(b, &p, dim, j->half_in, j->segments[i].row0, j->segments[i].n, 0)) return false;
    if (!prepare(b, &p, dim, j->half_in)) return false;
    a.out = j->out, a.half_out = j->half_out;
    for (int64_t r = (longest - 1) / most * most; r >= 0; r -= most) {
        int64_t first = 0; /* 这一段的首块 */
        for (int64_t i = 0; i < j->n; first += blocks_of(j->segments[i++].n)) {
            int64_t left = j->segments[i].n - r, row = j->segments[i].row0 + r;
            if (left <= 0) continue;
            TiledItem it = {(int32_t)row, (int32_t)(left < most ? left : most), (int32_t)(first + r / TILE_ROWS),
                            (int32_t)(first * TILE_ROWS / TILE_KEYS), (int32_t)r};
            if (!add_item(b, &a, dim, it)) return false;
        }
    }
    return a.n_items == 0 || cuda_tiled(b, &a, dim);
}
static KvStore rows_view(float *rows, int64_t heads, int64_t dim, int64_t n) {
    KvStore s = {};
    s.f.dtype = DT_F32, s.heads = heads, s.dim = dim, s.length = s.capacity = n, s.data = rows;
    return s;
}
static void apart(Backend *b, const PrefillJob *j) {
    int64_t heads = j->spec.n_heads, kv = j->spec.n_kv_heads, dim = j->spec.head_dim;
    for (int64_t i = 0; i < j->n && b->err.code == ERR_NONE; i++) {
        int64_t n = j->segments[i].n, row = j->segments[i].row0;
        float *q = (float *)j->q + row * heads * dim, *k = (float *)j->k + row * kv * dim, *v = (float *)j->v + row * kv * dim;
        if (j->cos_table) {
            cuda_rope(b, q, n, heads, dim, j->half, j->cos_table, j->sin_table, 0, j->interleaved);
            cuda_rope(b, k, n, kv, dim, j->half, j->cos_table, j->sin_table, 0, j->interleaved);
        }
        KvStore ks = rows_view(k, kv, dim, n), vs = rows_view(v, kv, dim, n);
        AttnSide k_side = {}, v_side = {};
        AttnSpec s = j->spec;
        k_side.near = &ks, v_side.near = &vs, s.first = 0;
        cuda_attention(b, (float *)j->out + row * heads * dim, q, &k_side, &v_side, n, &s);
    }
}
static bool fits(Backend *b, const PrefillJob *j) {
    return tiled_accepts(b, &j->spec) && (!j->cos_table || j->half % 8 == 0);
}
bool cuda_prefill_accepts(Backend *b, const PrefillJob *j, int64_t rows) {
    return fits(b, j) && cuda_opaque(b, rows);
}
void cuda_attend_prefill(Backend *b, const PrefillJob *j) {
    if (fits(b, j))
        together(b, j);
    else
        apart(b, j);
}
