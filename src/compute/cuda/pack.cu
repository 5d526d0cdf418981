/* pack — 权重的装包、量化与展开
 * 展开成行主序：bf16 的走八列一组的快路，其余逐元素。 */
#include "compute/cuda/grid.h"
#include "compute/cuda/linear.h"

/* 位面里的一个编码：words 是块的开头。 */
__device__ static int plane_bits(const uint32_t *words, int first, int width, int k, int lane) {
    int per = 32 / width, at = k % per;
    int shift = width == 8 ? at * 8 : at % 2 * 16 + at / 2 * width;
    return (int)(words[(first + k / per) * QT_PANEL + lane] >> shift & ((1u << width) - 1));
}
__device__ static int code_of(const View &v, int64_t row, int64_t k) {
    const uint32_t *w = (const uint32_t *)v.data +
                        (row / QT_PANEL * v.blocks + k / QT_KBLOCK) * v.bits * QT_PANEL;
    int at = (int)(k % QT_KBLOCK), lane = (int)(row % QT_PANEL), first = 0, code = 0;
    if (v.bits == 8) return plane_bits(w, 0, 8, at, lane);
    for (int p = 4; p; p /= 2)
        if (v.bits & p) {
            code |= plane_bits(w, first, p, at, lane) << first;
            first += p;
        }
    return code;
}

/* 存放次序的元素 (row, k)。 */
__device__ static float weight_at(const View &v, int64_t row, int64_t k) {
    if (v.dense != DT_NONE) return real_at(v.data, v.dense, row * v.stride + k);
    if (v.start) {
        int64_t block = row / QT_PANEL * v.blocks + k / QT_KBLOCK;
        uint16_t want = (uint16_t)(k % QT_KBLOCK * QT_PANEL + row % QT_PANEL);
        for (uint32_t i = v.start[block]; i < v.start[block + 1]; i++)
            if (v.at[i] == want) return real_at(v.value, v.scale_type, i);
    }
    int64_t g = k / v.group;
    if (v.codes != CODE_INT) return __fmul_rn(scale_of(v, row, g), code_value(v, code_of(v, row, k)));
    return __fmul_rn(scale_of(v, row, g), __fadd_rn((float)code_of(v, row, k), -zero_of(v, row, g)));
}

__global__ static void expand_kernel(View v, void *dst, DType type, int64_t ld, int64_t row0,
                                     int64_t rows, bool original) {
    EACH(i, rows * v.cols) {
        int64_t r = i / v.cols, k = i % v.cols, to = original && v.perm ? v.perm[k] : k;
        real_put(dst, type, r * ld + to, weight_at(v, row0 + r, k));
    }
}

/* 量化的展开：一个线程一行里的 8 列（同 gemv.cu 的一组），写 16 字节。离群值由 outlier_kernel 盖过。 */
template <int BITS> __global__ static void expand_octets_kernel(View v, __nv_bfloat16 *dst, int64_t ld, int panel0, int rows) {
    int unit = blockIdx.x * blockDim.x + threadIdx.x, t = unit % 4, lane = unit / 4 % QT_PANEL, block = unit / 64;
    int blocks = (int)v.blocks, panel = block / blocks, k0 = block % blocks * QT_KBLOCK + 8 * t;
    int out_row = panel * QT_PANEL + lane;
    if (out_row >= rows || k0 >= v.cols) return;
    int64_t row = (int64_t)(panel0 + panel) * QT_PANEL + lane;
    const uint32_t *w = (const uint32_t *)v.data + ((int64_t)(panel0 + panel) * blocks + block % blocks) * BITS * QT_PANEL;
    Octet<BITS> o = load_octet<BITS>(w, lane, t);
    int group = (int)v.group, g = k0 / group;
    float scale = scale_of(v, row, g), zero = zero_of(v, row, g);
    uint32_t pair[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float x[2];
#pragma unroll
        for (int j = 0; j < 2; j++) {
            int k = k0 + 2 * i + j;
            if (k / group != g && k < v.cols) g = k / group, scale = scale_of(v, row, g), zero = zero_of(v, row, g);
            int code = octet_code<BITS>(o, 2 * i + j);
            float value = v.codes == CODE_INT ? __fadd_rn((float)code, -zero) : code_value(v, code);
            x[j] = k < v.cols ? __fmul_rn(scale, value) : 0;
        }
        pair[i] = pack2(x[0], x[1]);
    }
    *(uint4 *)(dst + (int64_t)out_row * ld + k0) = make_uint4(pair[0], pair[1], pair[2], pair[3]);
}
__global__ static void outlier_kernel(View v, __nv_bfloat16 *dst, int64_t ld, int64_t panel0, int64_t rows) {
    int64_t panels = (rows - 1) / QT_PANEL + 1;
    EACH(i, panels * v.blocks) {
        int64_t block = panel0 * v.blocks + i;
        for (uint32_t e = v.start[block]; e < v.start[block + 1]; e++) {
            int64_t r = i / v.blocks * QT_PANEL + v.at[e] % QT_PANEL, k = i % v.blocks * QT_KBLOCK + v.at[e] / QT_PANEL;
            if (r < rows) dst[r * ld + k] = __float2bfloat16_rn(real_at(v.value, v.scale_type, e));
        }
    }
}

bool cuda_expand_bf16(Backend *b, __nv_bfloat16 *dst, int64_t ld, const QTensor *w, int64_t row0, int64_t rows) {
    View v = view_of(w);
    cudaStream_t st = STREAM(b);
    int64_t units = ((rows - 1) / QT_PANEL + 1) * v.blocks * 64;
    if (v.dense != DT_NONE || row0 % QT_PANEL || units > INT32_MAX - 256 || ld % 8) {
        if (ld != w->cols && !cuda_ok(b, cudaMemsetAsync(dst, 0, (size_t)(rows * ld) * 2, st), "清零")) return false;
        expand_kernel<<<cuda_blocks(rows * w->cols, 256), 256, 0, st>>>(v, dst, DT_BF16, ld, row0, rows, false);
        return LAUNCHED(b, "展开权重");
    }
    unsigned grid = (unsigned)((units + 255) / 256);
    int p0 = (int)(row0 / QT_PANEL), n = (int)rows;
    switch (v.bits) {
    case 2: expand_octets_kernel<2><<<grid, 256, 0, st>>>(v, dst, ld, p0, n); break;
    case 3: expand_octets_kernel<3><<<grid, 256, 0, st>>>(v, dst, ld, p0, n); break;
    case 4: expand_octets_kernel<4><<<grid, 256, 0, st>>>(v, dst, ld, p0, n); break;
    case 5: expand_octets_kernel<5><<<grid, 256, 0, st>>>(v, dst, ld, p0, n); break;
    case 6: expand_octets_kernel<6><<<grid, 256, 0, st>>>(v, dst, ld, p0, n); break;
    case 7: expand_octets_kernel<7><<<grid, 256, 0, st>>>(v, dst, ld, p0, n); break;
    default: expand_octets_kernel<8><<<grid, 256, 0, st>>>(v, dst, ld, p0, n); break;
    }
    if (v.start) outlier_kernel<<<cuda_blocks((units / 64), 128), 128, 0, st>>>(v, dst, ld, p0, n);
    return LAUNCHED(b, "展开权重");
}

bool cuda_expand_f32(Backend *b, float *dst, const QTensor *w, int64_t row0, int64_t rows, bool original) {
    expand_kernel<<<cuda_blocks(rows * w->cols, 256), 256, 0, STREAM(b)>>>(view_of(w), dst, DT_F32, w->cols, row0, rows,
                                                                           original);
    return LAUNCHED(b, "展开权重");
}
bool cuda_expand(Backend *b, float *dst, const QTensor *w, int64_t row0, int64_t rows) {
    return cuda_expand_f32(b, dst, w, row0, rows, true);
}

void cuda_dequantize(Backend *b, float *w, const QTensor *q) {
    cuda_expand(b, w, q, 0, q->rows);
}

__global__ static void pack_kernel(View v, void *dst, const float *w) {
    EACH(i, v.rows * v.stride) {
        int64_t r = i / v.stride, k = i % v.stride;
        real_put(dst, v.dense, i, k < v.cols ? w[r * v.cols + k] : 0);
    }
}
void cuda_pack_dense(Backend *b, QTensor *q, const float *w) {
    View v = view_of(q);
    pack_kernel<<<cuda_blocks(v.rows * v.stride, 256), 256, 0, STREAM(b)>>>(v, q->data, w);
    LAUNCHED(b, "pack_dense");
}

__global__ static void store_params_kernel(View v, void *scales, void *zeros, const float *scale,
                                           const float *zero) {
    EACH(i, v.rows * v.groups) {
        int64_t r = i / v.groups, g = i % v.groups;
        int64_t at = (r / QT_PANEL * v.groups + g) * QT_PANEL + r % QT_PANEL;
        if (!v.scale_bits) real_put(scales, v.scale_type, at, scale[i]);
        if (v.zero_bits || v.zero_kind == ZERO_SYM) continue;
        if (v.zero_kind == ZERO_FLOAT)
            real_put(zeros, v.scale_type, at, zero[i]);
        else if (v.bits > 4)
            ((uint8_t *)zeros)[at] = (uint8_t)zero[i];
    }
}
/* 半字节的零点：一个线程写一个字节（两行）。 */
__global__ static void store_nibbles_kernel(View v, uint8_t *zeros, const float *zero) {
    int64_t panels = (v.rows - 1) / QT_PANEL + 1;
    EACH(i, panels * v.groups * 8) {
        int64_t g = i / 8 % v.groups, r = i / 8 / v.groups * QT_PANEL + i % 8 * 2;
        int lo = r < v.rows ? (int)zero[r * v.groups + g] : 0;
        int hi = r + 1 < v.rows ? (int)zero[(r + 1) * v.groups + g] : 0;
        zeros[i] = (uint8_t)(lo | hi << 4);
    }
}

/* 一个线程一个字：块（面板 × 32 列）里的第 j 个字、通道 lane。 */
__global__ static void quantize_kernel(View v, uint32_t *data, const float *w) {
    int64_t panels = (v.rows - 1) / QT_PANEL + 1;
    EACH(i, panels * v.blocks * v.bits * QT_PANEL) {
        int lane = (int)(i % QT_PANEL), j = (int)(i / QT_PANEL % v.bits);
        int64_t block = i / QT_PANEL / v.bits, row = block / v.blocks * QT_PANEL + lane;
        int first = 0, width = v.bits == 8 ? 8 : 0;
        for (int p = 4; p && v.bits < 8; p /= 2) {
            if (!(v.bits & p)) continue;
            width = p;
            if (j < first + p) break;
            first += p;
        }
        int per = 32 / width;
        uint32_t word = 0;
        for (int t = 0; t < per && row < v.rows; t++) {
            int64_t k = block % v.blocks * QT_KBLOCK + (j - first) * per + t, g = k / v.group;
            if (k >= v.cols) break;
            float x = w[row * v.cols + k];
            int code = (int)grid_code(x, scale_of(v, row, g), zero_of(v, row, g), v.bits, v.zero_kind == ZERO_FLOAT);
            int shift = width == 8 ? t * 8 : t % 2 * 16 + t / 2 * width;
            word |= (uint32_t)(code >> first & ((1 << width) - 1)) << shift;
        }
        data[i] = word;
    }
}

void cuda_quantize(Backend *b, QTensor *q, const float *w, const float *scale, const float *zero) {
    View v = view_of(q);
    cudaStream_t s = STREAM(b);
    store_params_kernel<<<cuda_blocks(v.rows * v.groups, 256), 256, 0, s>>>(v, q->scales, q->zeros, scale, zero);
    if (v.zero_kind == ZERO_INT && v.bits <= 4)
        store_nibbles_kernel<<<cuda_blocks(v.rows * v.groups, 256), 256, 0, s>>>(v, (uint8_t *)q->zeros, zero);
    quantize_kernel<<<cuda_blocks((int64_t)q->data_bytes / 4, 256), 256, 0, s>>>(v, (uint32_t *)q->data, w);
    LAUNCHED(b, "quantize");
}

__global__ static void qparams_kernel(float *scale, float *zero, const float *w, int64_t rows,
                                      int64_t cols, int64_t group, int64_t groups, QSpec s) {
    int lane = threadIdx.x % 32;
    int64_t warps = (int64_t)gridDim.x * (blockDim.x / 32); /* 一组一个线程束 */
    for (int64_t i = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; i < rows * groups; i += warps) {
        const float *x = w + i / groups * cols + i % groups * group;
        int64_t n = cols - i % groups * group < group ? cols - i % groups * group : group;
        float lo = x[0], hi = x[0];
        for (int64_t k = lane; k < n; k += 32) {
            lo = x[k] < lo ? x[k] : lo;
            hi = x[k] > hi ? x[k] : hi;
        }
        for (int o = 16; o; o /= 2) {
            float l = __shfl_xor_sync(0xFFFFFFFFu, lo, o), u = __shfl_xor_sync(0xFFFFFFFFu, hi, o);
            lo = l < lo ? l : lo;
            hi = u > hi ? u : hi;
        }
        float sc, z;
        fit_grid(lo, hi, s, &sc, &z);
        if (lane == 0) scale[i] = sc, zero[i] = z;
    }
}
__global__ static void spread_max_kernel(float *scale, int64_t n) { /* 一块 */
    __shared__ float sh[256];
    float m = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) m = scale[i] > m ? scale[i] : m;
    m = block_max(m, sh);
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) scale[i] = m;
}
void cuda_qparams(Backend *b, float *scale, float *zero, const float *w, int64_t rows, int64_t cols,
                  const QSpec *spec) {
    int64_t group = spec->group_size < 0 || spec->group_size > cols ? cols : spec->group_size;
    int64_t groups = (cols - 1) / group + 1;
    qparams_kernel<<<cuda_blocks(rows * groups, 4), 128, 0, STREAM(b)>>>(scale, zero, w, rows, cols,
                                                                           group, groups, *spec);
    if (spec->grid == GRID_TENSOR)
        spread_max_kernel<<<1, 256, 0, STREAM(b)>>>(scale, rows * groups);
    LAUNCHED(b, "qparams");
}

/* ids 为 NULL：在 few 里。这个内核不提早开始，一步解码因而在此断开：其后的内核可以提早读以前写好的缓存（decode_mma.cu）。 */
__global__ static void embed_kernel(View v, float *y, const int32_t *ids, const __grid_constant__ Few few, int64_t n) {
    EACH(i, n * v.cols) {
        int64_t r = i / v.cols, k = i % v.cols, to = v.perm ? v.perm[k] : k;
        y[r * v.cols + to] = weight_at(v, ids ? ids[r] : few.v[r], k);
    }
}
void cuda_embed(Backend *b, float *y, const QTensor *table, const int32_t *ids, int64_t n) {
    int32_t *d = n <= FEW ? NULL : (int32_t *)cuda_slot(b, SLOT_HOST, (size_t)n * 4);
    if (n > FEW && (!d || !cuda_ok(b, cudaMemcpyAsync(d, ids, (size_t)n * 4, cudaMemcpyHostToDevice, STREAM(b)), "上传 ids"))) return;
    embed_kernel<<<cuda_blocks(n * table->cols, 256), 256, 0, STREAM(b)>>>(view_of(table), y, d, few_of(ids, n), n);
    LAUNCHED(b, "embed");
}
