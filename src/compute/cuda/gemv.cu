/* gemv — 行数很少（解码）的线性层：bf16 的张量核，权重只读一遍，量化的就以编码相乘
 * 一块线程一个面板（16 行输出），各线程束分担 k，块内按固定次序相加。m16n8k16 的 A 是 16 行权重，B 是至多 8 个 token 的
 * 激活；k 的次序在 A、B 里一同换过：线程 (g, t) 在每 32 列里取第 8t..8t+7 列，正是打包时的一组。
 * 编码减去零点是绝对值不大于 256 的整数，在 bf16 里精确；一组之内以 f32 累加，组末才乘缩放。 */
#include "compute/cuda/linear.h"

enum { TILE_N = 8, WARPS = 8, PAIR = 2 /* 量化的权重一块两个面板 */, PAIR_PANELS = 1024 /* 面板少时一块一个 */ };

struct GemvOut {
    View w;
    const float *bias;
    float *y;
    int panel0; /* 它的首个面板在整串里的序号 */
    int64_t row0, rows; /* 只算权重的行 [row0, row0+rows) */
    bool add;
};
struct GemvJob {
    GemvOut out[LINEAR_OUT_MAX];
    int n_out, n, blocks; /* 块：每 32 列 */
    const __nv_bfloat16 *x;
    int64_t ldx;
};

/* 第 i 对编码减零点，成 bf16 的一对。zero：BITS<8 时是 bf16 对 128+z，否则是浮点 2^23+z。 */
template <int BITS> __device__ static uint32_t octet_pair(const Octet<BITS> &o, int i, uint32_t zero) {
    if (BITS == 8) {
        uint32_t w = o.w[i / 2] >> (i & 1) * 16;
        float z = __uint_as_float(zero);
        float a = __uint_as_float(0x4B000000u | (w & 255)) - z, b = __uint_as_float(0x4B000000u | (w >> 8 & 255)) - z;
        return pack2(a, b);
    }
    uint32_t code = 0;
    int at = 0, first = 0;
    if (BITS & 4) code = o.w[at++] >> 4 * i & 0x000F000Fu, first = 4;
    if (BITS & 2) code |= (o.w[at++] >> 2 * i & 0x00030003u) << first, first += 2;
    if (BITS & 1) code |= (o.w[at++] >> i & 0x00010001u) << first;
    code |= 0x43004300u;
    __nv_bfloat162 v = __hsub2(*(__nv_bfloat162 *)&code, *(__nv_bfloat162 *)&zero);
    return *(uint32_t *)&v;
}
template <int BITS> __device__ static uint32_t zero_word(float z) {
    return BITS == 8 ? __float_as_uint(8388608.0f + z) : pack2(128.0f + z, 128.0f + z);
}

enum { STEP = 4 /* 一步几块 */ };

/* 一步里一个面板的权重：编码与各行的缩放、零点。FINE：组宽不是 128 的倍数，每块各有自己的。 */
template <int BITS, bool FINE> struct Weights {
    enum { GROUPS = FINE ? STEP : 1 };
    Octet<BITS> o[STEP][2];
    uint32_t scale[GROUPS][2], zero[GROUPS][2]; /* 读来的原样：在用的时候才换算，免得每次读都等 */
};
__device__ static float scale_value(uint32_t raw, DType t) {
    return t == DT_F16 ? __half2float(__ushort_as_half((unsigned short)raw)) : __uint_as_float(raw);
}
template <int BITS> __device__ static float zero_value(uint32_t raw, int kind, int row) {
    if (kind == ZERO_SYM) return (float)(1 << (BITS - 1));
    return (float)(BITS > 4 ? raw : raw >> row % 2 * 4 & 15);
}
template <int BITS, bool FINE>
__device__ static void load_weights(Weights<BITS, FINE> *w, const View &v, int panel, int k, int k1, int g, int t, int per) {
    const uint32_t *words = (const uint32_t *)v.data + ((int64_t)panel * v.blocks + k) * (BITS * QT_PANEL);
#pragma unroll
    for (int s = 0; s < STEP; s++)
        if (k + s < k1)
            for (int r = 0; r < 2; r++) w->o[s][r] = load_octet<BITS>(words + s * BITS * QT_PANEL, g + 8 * r, t);
#pragma unroll
    for (int s = 0; s < Weights<BITS, FINE>::GROUPS; s++)
        if (k + s < k1) {
            int at = (panel * (int)v.groups + (per ? (k + s) / per : 0)) * QT_PANEL + g;
            for (int r = 0; r < 2; r++, at += 8) {
                w->scale[s][r] = v.scale_type == DT_F16 ? ((const uint16_t *)v.scales)[at] : ((const uint32_t *)v.scales)[at];
                w->zero[s][r] = v.zero_kind == ZERO_SYM ? 0 : ((const uint8_t *)v.zeros)[BITS > 4 ? at : at / 2];
            }
        }
}
template <int NT>
__device__ static void load_input(uint4 (*x)[NT], const GemvJob &j, int k, int k1, int g, int t) {
#pragma unroll
    for (int s = 0; s < STEP; s++)
#pragma unroll
        for (int i = 0; i < NT; i++) {
            int row = i * TILE_N + g;
            x[s][i] = k + s < k1 && row < j.n ? *(const uint4 *)(j.x + row * j.ldx + (k + s) * QT_KBLOCK + 8 * t) : uint4{};
        }
}
/* 一个线程束：P 个面板的块 [k0, k1)，acc[P·NT][4] 是 (行 g、g+8) × (token 2t、2t+1)。算一步的同时下一步的权重在路上。
 * 不存在的面板（单数个时的最后一个）以前一个代替，结果不写出。 */
template <int BITS, int NT, int P, bool FINE>
__device__ static void quant_part(const GemvJob &j, const View &v, int panel, int k0, int k1, float (*acc)[4]) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, per = (int)(v.group / QT_KBLOCK);
    int panels = (int)((v.rows - 1) / QT_PANEL + 1);
    Weights<BITS, FINE> next[P], w[P];
#pragma unroll
    for (int p = 0; p < P; p++)
        load_weights<BITS, FINE>(&next[p], v, panel + p < panels ? panel + p : panel, k0, k1, g, t, per);
    for (int k = k0; k < k1; k += STEP) {
#pragma unroll
        for (int p = 0; p < P; p++) {
            w[p] = next[p];
            if (k + STEP < k1)
                load_weights<BITS, FINE>(&next[p], v, panel + p < panels ? panel + p : panel, k + STEP, k1, g, t, per);
        }
        uint4 x[STEP][NT];
        load_input<NT>(x, j, k, k1, g, t);
#pragma unroll
        for (int p = 0; p < P; p++) {
            float part[NT][4] = {};
            uint32_t zero[2];
#pragma unroll
            for (int s = 0; s < STEP; s++) {
                if (k + s >= k1) break;
                int at = FINE ? s : 0;
                if (FINE || s == 0)
                    for (int r = 0; r < 2; r++) zero[r] = zero_word<BITS>(zero_value<BITS>(w[p].zero[at][r], v.zero_kind, g));
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    uint32_t a[4];
#pragma unroll
                    for (int i = 0; i < 4; i++) a[i] = octet_pair<BITS>(w[p].o[s][i & 1], 2 * h + i / 2, zero[i & 1]);
#pragma unroll
                    for (int i = 0; i < NT; i++) mma(part[i], a, h ? &x[s][i].z : &x[s][i].x);
                }
                if (FINE || s == STEP - 1 || k + s + 1 >= k1) {
                    float scale[2] = {scale_value(w[p].scale[at][0], v.scale_type), scale_value(w[p].scale[at][1], v.scale_type)};
#pragma unroll
                    for (int i = 0; i < NT; i++)
                        for (int r = 0; r < 4; r++) acc[p * NT + i][r] += part[i][r] * scale[r / 2], part[i][r] = 0;
                }
            }
        }
    }
}

/* 稠密的 bf16，行主序。 */
template <int NT>
__device__ static void dense_part(const GemvJob &j, const View &v, int panel, int k0, int k1, float (*acc)[4]) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const __nv_bfloat16 *rows[2];
    bool valid[2];
    for (int r = 0; r < 2; r++) {
        int64_t row = panel * QT_PANEL + g + 8 * r;
        valid[r] = row < v.rows;
        rows[r] = (const __nv_bfloat16 *)v.data + (valid[r] ? row : 0) * v.stride;
    }
    for (int k = k0; k < k1; k += STEP) {
        uint4 w[STEP][2];
#pragma unroll
        for (int s = 0; s < STEP; s++)
            for (int r = 0; r < 2; r++) {
                int64_t col = (int64_t)(k + s) * QT_KBLOCK + 8 * t;
                w[s][r] = k + s < k1 && valid[r] && col < v.cols ? __ldcs((const uint4 *)(rows[r] + col)) : uint4{};
            }
        uint4 x[STEP][NT];
        load_input<NT>(x, j, k, k1, g, t);
#pragma unroll
        for (int s = 0; s < STEP; s++) {
            if (k + s >= k1) break;
            uint32_t a0[4] = {w[s][0].x, w[s][1].x, w[s][0].y, w[s][1].y};
            uint32_t a1[4] = {w[s][0].z, w[s][1].z, w[s][0].w, w[s][1].w};
#pragma unroll
            for (int i = 0; i < NT; i++) mma(acc[i], a0, &x[s][i].x), mma(acc[i], a1, &x[s][i].z);
        }
    }
}

/* 一块 P 个面板。BITS 为 0 是稠密的。一个内核只管一种权重：寄存器少，同时在跑的线程束才多。 */
template <int BITS, int NT, int P, bool FINE> __global__ __launch_bounds__(WARPS * 32) static void gemv_kernel(const __grid_constant__ GemvJob j) {
    __shared__ float sums[WARPS][P * NT * QT_PANEL * TILE_N];
    int which = j.n_out - 1, warp = threadIdx.x / 32, lane = threadIdx.x % 32, block = (int)blockIdx.x * P;
    while (which && block < j.out[which].panel0) which--;
    const GemvOut &o = j.out[which];
    int local = block - o.panel0, panel = (int)(o.row0 / QT_PANEL) + local;
    if ((int64_t)local * QT_PANEL >= o.rows) return; /* 凑成一对的空位 */
    /* 各线程束的一段 k 从 STEP 块的边界开始 */
    int steps = (j.blocks + STEP - 1) / STEP, k0 = steps * warp / WARPS * STEP, k1 = steps * (warp + 1) / WARPS * STEP;
    float acc[P * NT][4] = {};
    if (k1 > j.blocks) k1 = j.blocks;
    if (BITS)
        quant_part<BITS ? BITS : 8, NT, P, FINE>(j, o.w, panel, k0, k1, acc);
    else
        dense_part<NT>(j, o.w, panel, k0, k1, acc);
#pragma unroll
    for (int i = 0; i < P * NT; i++)
#pragma unroll
        for (int r = 0; r < 4; r++) { /* [面板][token][行] */
            int token = i % NT * TILE_N + lane % 4 * 2 + r % 2, row = lane / 4 + r / 2 * 8;
            sums[warp][(i / NT * NT * TILE_N + token) * QT_PANEL + row] = acc[i][r];
        }
    __syncthreads();
    for (int i = threadIdx.x; i < P * j.n * QT_PANEL; i += WARPS * 32) {
        int p = i / (j.n * QT_PANEL), rest = i % (j.n * QT_PANEL), token = rest / QT_PANEL;
        int64_t row = (int64_t)(local + p) * QT_PANEL + rest % QT_PANEL;
        if (row >= o.rows) continue;
        float s = 0;
        for (int w = 0; w < WARPS; w++) s += sums[w][p * NT * TILE_N * QT_PANEL + rest];
        if (o.bias) s += o.bias[row];
        float *y = o.y + token * o.rows + row;
        *y = o.add ? *y + s : s;
    }
}

bool gemv_accepts(const QTensor *w) {
    if (w->dense != DT_NONE) return w->dense == DT_BF16 && w->cols % 8 == 0;
    int bits = w->spec.bits; /* 其余的位宽少见，不值得多编几份内核 */
    if (w->spec.codes != CODE_INT || w->nested.per || w->spec.scale_dtype == DT_BF16) return false;
    return (bits <= 4 || bits == 8) && w->spec.zero != ZERO_FLOAT && !w->two.scale_bits && !w->two.zero_bits && !w->outliers.start &&
           (w->spec.group_size % QT_KBLOCK == 0 || w->n_groups == 1);
}

static void add_out(GemvJob *j, int64_t *panels, const LinearOut *out, int64_t row0, int64_t rows) {
    GemvOut *o = &j->out[j->n_out++];
    o->w = view_of(out->w), o->bias = out->bias, o->y = out->y, o->add = out->sum != NULL;
    o->row0 = row0, o->rows = rows, o->panel0 = (int)*panels;
    if (out->w->dense == DT_NONE && out->w->n_groups == 1) o->w.group = 0; /* 一组到底 */
    *panels += ((rows - 1) / QT_PANEL + 1 + PAIR - 1) / PAIR * PAIR;       /* 各从一对的开头起 */
}
/* 权重的种类：稠密为 0，否则 2·位宽 + 组宽是否细碎。 */
static int kind_of(const QTensor *w) {
    bool coarse = w->n_groups == 1 || w->spec.group_size % (STEP * QT_KBLOCK) == 0;
    return w->dense != DT_NONE ? 0 : 2 * w->spec.bits + !coarse;
}
template <int BITS> static void launch(const GemvJob &j, int64_t panels, bool fine, cudaStream_t st) {
    if (j.n > TILE_N)
        gemv_kernel<BITS, 4, 1, true><<<(unsigned)panels, WARPS * 32, 0, st>>>(j);
    else if (panels < PAIR_PANELS && fine)
        gemv_kernel<BITS, 1, 1, true><<<(unsigned)panels, WARPS * 32, 0, st>>>(j);
    else if (panels < PAIR_PANELS)
        gemv_kernel<BITS, 1, 1, false><<<(unsigned)panels, WARPS * 32, 0, st>>>(j);
    else if (fine)
        gemv_kernel<BITS, 1, PAIR, true><<<(unsigned)(panels / PAIR), WARPS * 32, 0, st>>>(j);
    else
        gemv_kernel<BITS, 1, PAIR, false><<<(unsigned)(panels / PAIR), WARPS * 32, 0, st>>>(j);
}
/* j 的各个同一种类。k 的切法只由权重定，一个权重的结果不随一同算的几个变。 */
static bool run(Backend *b, GemvJob *j, int64_t panels, int kind, const __nv_bfloat16 *x, int64_t ldx, int64_t n, int64_t cols) {
    cudaStream_t st = STREAM(b);
    j->n = (int)n, j->x = x, j->ldx = ldx, j->blocks = (int)((cols - 1) / QT_KBLOCK + 1);
    switch (kind / 2) {
    case 0:
        if (n > TILE_N)
            gemv_kernel<0, 4, 1, false><<<(unsigned)panels, WARPS * 32, 0, st>>>(*j);
        else
            gemv_kernel<0, 1, 1, false><<<(unsigned)panels, WARPS * 32, 0, st>>>(*j);
        break;
    case 2: launch<2>(*j, panels, kind % 2, st); break;
    case 3: launch<3>(*j, panels, kind % 2, st); break;
    case 4: launch<4>(*j, panels, kind % 2, st); break;
    default: launch<8>(*j, panels, kind % 2, st); break;
    }
    return LAUNCHED(b, "gemv");
}
bool cuda_gemv(Backend *b, const LinearOut *out, int n_out, const __nv_bfloat16 *x, int64_t ldx, int64_t n) {
    for (int i = 0, k; i < n_out; i = k) {
        GemvJob j = {};
        int64_t panels = 0;
        for (k = i; k < n_out && kind_of(out[k].w) == kind_of(out[i].w); k++) add_out(&j, &panels, &out[k], 0, out[k].w->rows);
        if (!run(b, &j, panels, kind_of(out[i].w), x, ldx, n, out[0].w->cols)) return false;
    }
    return true;
}
bool cuda_gemv_part(Backend *b, float *y, const QTensor *w, int64_t row0, int64_t rows, const __nv_bfloat16 *x, int64_t ldx,
                    int64_t n) {
    GemvJob j = {};
    LinearOut out = {};
    int64_t panels = 0;
    out.y = y, out.w = w;
    add_out(&j, &panels, &out, row0, rows);
    return run(b, &j, panels, kind_of(w), x, ldx, n, w->cols);
}
