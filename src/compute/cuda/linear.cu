/* linear — 权重的装包、量化、展开与矩阵乘
 * 稠密权重就是 cuBLAS 的操作数（行主序）；量化权重先展开成行主序的 f32 或 bf16 再乘。 */
#include "compute/cuda/cuda.h"

/* 设备上看一个 QTensor。 */
struct View {
    int64_t rows, cols, stride, groups, group, blocks, stat_rows;
    DType dense, scale_type;
    int bits, zero_kind, scale_bits, zero_bits, codes;
    int64_t nested, first;
    float offset;
    const float *table;
    const void *data, *scales, *zeros, *scale_grid, *zero_grid, *value;
    const uint32_t *start;
    const uint16_t *at;
    const int32_t *perm;
};

static int64_t dense_stride(const QTensor *q) {
    return q->dense == DT_BF16 ? (q->cols + 1) / 2 * 2 : q->cols;
}

static const char *grids(const QTensor *q, const void *table, int bits) {
    int64_t at = ((q->rows - 1) / QT_PANEL + 1) * q->n_groups * bits * QT_PANEL / 8;
    return bits ? (const char *)table + (at + 3) / 4 * 4 : NULL;
}

static View view_of(const QTensor *q) {
    View v = {};
    v.rows = q->rows, v.cols = q->cols, v.dense = q->dense, v.data = q->data, v.perm = q->perm;
    v.stride = dense_stride(q);
    if (q->dense != DT_NONE) return v;
    v.groups = q->n_groups, v.group = q->spec.group_size, v.blocks = (q->cols - 1) / QT_KBLOCK + 1;
    v.scale_type = q->spec.scale_dtype, v.bits = q->spec.bits, v.zero_kind = q->spec.zero;
    v.scales = q->scales, v.zeros = q->zeros;
    v.scale_bits = q->two.scale_bits, v.zero_bits = q->two.zero_bits, v.stat_rows = q->two.rows;
    v.codes = q->spec.codes, v.table = q->table;
    v.nested = q->nested.per, v.first = q->nested.first, v.offset = q->nested.offset;
    v.scale_grid = grids(q, q->scales, v.scale_bits); /* 嵌套时是表，其后是外层缩放 */
    v.zero_grid = grids(q, q->zeros, v.zero_bits);
    v.start = q->outliers.start, v.at = q->outliers.at, v.value = q->outliers.value;
    return v;
}

__device__ static float two_level(const View &v, const void *codes, const void *grid, int bits,
                                  int64_t row, int64_t g) {
    int64_t bit = row % QT_PANEL * bits, at = row / QT_PANEL * v.groups + g;
    const uint8_t *p = (const uint8_t *)codes + at * bits * QT_PANEL / 8 + bit / 8;
    int shift = (int)(bit % 8), word = p[0] | (shift + bits > 8 ? p[1] << 8 : 0);
    int64_t i = 2 * (row / v.stat_rows * v.groups + g);
    float code = (float)(word >> shift & ((1 << bits) - 1));
    return __fmul_rn(real_at(grid, v.scale_type, i), __fadd_rn(code, -real_at(grid, v.scale_type, i + 1)));
}
/* 嵌套缩放：表[码]·外层 + offset。 */
__device__ static float nested_scale(const View &v, int64_t row, int64_t g) {
    const float *table = (const float *)v.scale_grid;
    uint8_t code = ((const uint8_t *)v.scales)[(row / QT_PANEL * v.groups + g) * QT_PANEL + row % QT_PANEL];
    int64_t at = (v.first + row * v.groups + g) / v.nested - v.first / v.nested;
    return __fadd_rn(__fmul_rn(table[code], table[256 + at]), v.offset);
}
__device__ static float scale_of(const View &v, int64_t row, int64_t g) {
    if (v.nested) return nested_scale(v, row, g);
    if (v.scale_bits) return two_level(v, v.scales, v.scale_grid, v.scale_bits, row, g);
    return real_at(v.scales, v.scale_type, (row / QT_PANEL * v.groups + g) * QT_PANEL + row % QT_PANEL);
}
__device__ static float zero_of(const View &v, int64_t row, int64_t g) {
    int64_t i = (row / QT_PANEL * v.groups + g) * QT_PANEL + row % QT_PANEL;
    if (v.zero_bits) return two_level(v, v.zeros, v.zero_grid, v.zero_bits, row, g);
    if (v.zero_kind == ZERO_SYM) return (float)(1 << (v.bits - 1));
    if (v.zero_kind == ZERO_FLOAT) return real_at(v.zeros, v.scale_type, i);
    const uint8_t *z = (const uint8_t *)v.zeros;
    return (float)(v.bits > 4 ? z[i] : z[i / 2] >> i % 2 * 4 & 15);
}

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

/* FP8 的值；与 qtensor_codes.c 的 f8_to_f32 相同（检查点里没有 NaN、Inf：装入时查过）。 */
__device__ static float f8_value(int code, bool e5m2) {
    int bits = e5m2 ? 2 : 3, man = code & ((1 << bits) - 1), exp = (code & 127) >> bits;
    float v = ldexpf((float)(exp ? man + (1 << bits) : man), (exp ? exp : 1) - (e5m2 ? 15 : 7) - bits);
    return code & 128 ? -v : v;
}
__device__ static float code_value(const View &v, int code) {
    return v.codes == CODE_TABLE ? v.table[code] : f8_value(code, v.codes == CODE_F8_E5M2);
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

bool cuda_expand(Backend *b, float *dst, const QTensor *w, int64_t row0, int64_t rows) {
    expand_kernel<<<cuda_blocks(rows * w->cols, 256), 256, 0, STREAM(b)>>>(view_of(w), dst, DT_F32,
                                                                           w->cols, row0, rows, true);
    return LAUNCHED(b, "展开权重");
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

__device__ static int round_code(const View &v, float w, float scale, float zero) {
    float top = (float)((1 << v.bits) - 1), steps = __fdiv_rn(w, scale);
    float c = v.zero_kind == ZERO_FLOAT ? rintf(__fadd_rn(steps, zero)) : __fadd_rn(rintf(steps), zero);
    return (int)(c > 0 ? c < top ? c : top : 0);
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
            float x = w[row * v.cols + (v.perm ? k : k)];
            int code = round_code(v, x, scale_of(v, row, g), zero_of(v, row, g));
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

__device__ static float stored_scale(float x, DType t, bool positive) {
    if (t == DT_BF16) return __bfloat162float(__float2bfloat16_rn(x));
    if (t != DT_F16) return x;
    if (positive && x < 0x1p-24f) return 0x1p-24f;
    if (x > 65504.0f) return 65504.0f;
    if (x < -65504.0f) return -65504.0f;
    return __half2float(__float2half_rn(x));
}

__global__ static void qparams_kernel(float *scale, float *zero, const float *w, int64_t rows,
                                      int64_t cols, int64_t group, int64_t groups, QSpec s) {
    EACH(i, rows * groups) {
        const float *x = w + i / groups * cols + i % groups * group;
        int64_t n = cols - i % groups * group < group ? cols - i % groups * group : group;
        float lo = x[0], hi = x[0], top = (float)((1 << s.bits) - 1);
        for (int64_t k = 1; k < n; k++) {
            lo = x[k] < lo ? x[k] : lo;
            hi = x[k] > hi ? x[k] : hi;
        }
        float m = fabsf(lo) > fabsf(hi) ? fabsf(lo) : fabsf(hi), sc, z = (float)(1 << (s.bits - 1));
        if (s.grid == GRID_ABSMAX || s.grid == GRID_TENSOR) {
            float half = (float)((1 << (s.bits - 1)) - 1);
            sc = stored_scale(__fmul_rn(m < 1e-5f ? 1e-5f : m, __fdiv_rn(1.0f, half)), s.scale_dtype, true);
        } else if (s.grid == GRID_RANGE) {
            float d = __fadd_rn(hi, -lo);
            sc = stored_scale(__fdiv_rn(d < 1e-5f ? 1e-5f : d, top), s.scale_dtype, true);
            z = rintf(__fdiv_rn(-lo, sc));
            z = z < 0 ? 0 : z > top ? top : z;
        } else if (s.zero == ZERO_SYM) {
            if (m == 0) m = 1;
            sc = stored_scale(__fdiv_rn(2 * m, top), s.scale_dtype, true);
        } else if (s.zero == ZERO_INT) {
            lo = lo < 0 ? lo : 0, hi = hi > 0 ? hi : 0;
            if (lo == 0 && hi == 0) lo = -1, hi = 1;
            sc = stored_scale(__fdiv_rn(__fadd_rn(hi, -lo), top), s.scale_dtype, true);
            z = rintf(__fdiv_rn(-lo, sc));
            z = z < 0 ? 0 : z > top ? top : z;
        } else {
            sc = __fdiv_rn(__fadd_rn(hi, -lo), top);
            if (sc == 0) sc = 1;
            if (s.scale_dtype == DT_F16 && sc < fabsf(lo) / 65504.0f) sc = fabsf(lo) / 65504.0f;
            sc = stored_scale(sc, s.scale_dtype, true);
            z = stored_scale(__fdiv_rn(-lo, sc), s.scale_dtype, false);
        }
        scale[i] = sc;
        zero[i] = z;
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
    qparams_kernel<<<cuda_blocks(rows * groups, 128), 128, 0, STREAM(b)>>>(scale, zero, w, rows, cols,
                                                                           group, groups, *spec);
    if (spec->grid == GRID_TENSOR)
        spread_max_kernel<<<1, 256, 0, STREAM(b)>>>(scale, rows * groups);
    LAUNCHED(b, "qparams");
}

/* ---- 矩阵乘 ---- */

__global__ static void to_bf16_kernel(__nv_bfloat16 *dst, int64_t ld, const float *x, int64_t rows,
                                      int64_t cols, const int32_t *perm) {
    EACH(i, rows * ld) {
        int64_t r = i / ld, k = i % ld;
        float v = k >= cols ? 0 : x[r * cols + (perm ? perm[k] : k)];
        dst[i] = __float2bfloat16_rn(v);
    }
}
__global__ static void permute_kernel(float *dst, const float *x, int64_t rows, int64_t cols,
                                      const int32_t *perm) {
    EACH(i, rows * cols) dst[i] = x[i / cols * cols + perm[i % cols]];
}

/* y(n, rows) 行主序 = x(n, ldx)·wᵀ(rows, ldw)：列主序看是 (rows×n) = w(cols×rows)ᵀ·x(cols×n)。 */
static bool gemm(Backend *b, float *y, int64_t ldy, const void *x, int64_t ldx, const void *w, int64_t ldw,
                 int64_t n, int64_t rows, int64_t cols, bool bf16) {
    const float one = 1, zero = 0;
    cudaDataType_t t = bf16 ? CUDA_R_16BF : CUDA_R_32F;
    return cuda_blas_ok(b, cublasGemmEx(cuda_of(b)->blas, CUBLAS_OP_T, CUBLAS_OP_N, (int)rows, (int)n, (int)cols,
                                   &one, w, t, (int)ldw, x, t, (int)ldx, &zero, y, CUDA_R_32F,
                                   (int)ldy, bf16 ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_PEDANTIC,
                                   CUBLAS_GEMM_DEFAULT),
                   "矩阵乘");
}

bool cuda_linear_part(Backend *b, float *y, const float *x, int64_t n, const QTensor *w,
                      int64_t row0, int64_t rows, bool exact) {
    bool bf16 = b->compute == COMPUTE_BF16 && !exact;
    int64_t cols = w->cols, ld = (cols + 7) / 8 * 8, ldx = bf16 ? ld : cols, ldw = bf16 ? ld : cols;
    DType type = bf16 ? DT_BF16 : DT_F32;
    const void *wd = NULL, *xd = x;
    if (w->dense == type && !w->perm && (!bf16 || cols % 2 == 0)) {
        ldw = dense_stride(w);
        wd = (const char *)w->data + row0 * ldw * (bf16 ? 2 : 4);
    } else {
        void *to = cuda_slot(b, SLOT_W, (size_t)(rows * ldw) * (bf16 ? 2 : 4));
        if (!to) return false;
        if (bf16 && ldw != cols) cuda_ok(b, cudaMemsetAsync(to, 0, (size_t)(rows * ldw) * 2, STREAM(b)), "清零");
        expand_kernel<<<cuda_blocks(rows * cols, 256), 256, 0, STREAM(b)>>>(view_of(w), to, type, ldw, row0,
                                                                       rows, false);
        wd = to;
    }
    if (bf16 && wd != cuda_of(b)->slot[SLOT_W]) ldx = cols % 2 == 0 ? cols : ld;
    if (bf16) {
        void *to = cuda_slot(b, SLOT_X, (size_t)(n * ldx) * 2);
        if (!to) return false;
        to_bf16_kernel<<<cuda_blocks(n * ldx, 256), 256, 0, STREAM(b)>>>((__nv_bfloat16 *)to, ldx, x, n, cols, w->perm);
        xd = to;
    } else if (w->perm) {
        void *to = cuda_slot(b, SLOT_X, (size_t)(n * cols) * 4);
        if (!to) return false;
        permute_kernel<<<cuda_blocks(n * cols, 256), 256, 0, STREAM(b)>>>((float *)to, x, n, cols, w->perm);
        xd = to;
    }
    return LAUNCHED(b, "展开") && gemm(b, y, rows, xd, ldx, wd, ldw, n, rows, cols, bf16);
}

__global__ static void bias_kernel(float *y, const float *bias, int64_t n, int64_t rows) {
    EACH(i, n * rows) y[i] += bias[i % rows];
}
void cuda_linear(Backend *b, const LinearOut *out, int n_out, const float *x, int64_t n) {
    for (const LinearOut *o = out; o < out + n_out; o++) {
        int64_t rows = o->w->rows;
        if (!cuda_linear_part(b, o->y, x, n, o->w, 0, rows, false)) return;
        if (!o->bias) continue;
        bias_kernel<<<cuda_blocks(n * rows, 256), 256, 0, STREAM(b)>>>(o->y, o->bias, n, rows);
        if (!LAUNCHED(b, "偏置")) return;
    }
}
void cuda_linear_exact(Backend *b, float *y, const float *x, int64_t n, const QTensor *w) {
    cuda_linear_part(b, y, x, n, w, 0, w->rows, true);
}

__global__ static void embed_kernel(View v, float *y, const int32_t *ids, int64_t n) {
    EACH(i, n * v.cols) {
        int64_t k = i % v.cols, to = v.perm ? v.perm[k] : k;
        y[i / v.cols * v.cols + to] = weight_at(v, ids[i / v.cols], k);
    }
}
void cuda_embed(Backend *b, float *y, const QTensor *table, const int32_t *ids, int64_t n) {
    int32_t *d = (int32_t *)cuda_slot(b, SLOT_HOST, (size_t)n * 4);
    if (!d || !cuda_ok(b, cudaMemcpyAsync(d, ids, (size_t)n * 4, cudaMemcpyHostToDevice, STREAM(b)), "上传 ids"))
        return;
    embed_kernel<<<cuda_blocks(n * table->cols, 256), 256, 0, STREAM(b)>>>(view_of(table), y, d, n);
    LAUNCHED(b, "embed");
}

/* ---- 激活取整与整数矩阵乘 ---- */

/* 各行的 s：ACT_TOKEN 自己的；ACT_STATIC 固定；ACT_TENSOR 先写 max|x|。 */
__global__ static void act_rows_kernel(float *scale, const float *x, int64_t cols, int kind, int top, float fixed) {
    __shared__ float sh[256];
    const float *row = x + blockIdx.x * cols;
    float m = 0;
    for (int64_t i = threadIdx.x; i < cols; i += blockDim.x) {
        float v = fabsf(row[i]);
        v += v - v; /* Inf、NaN 都成 NaN */
        if (!(v <= m) && m == m) m = v; /* NaN 留住 */
    }
    m = block_max(m, sh);
    if (threadIdx.x) return;
    if (kind == ACT_TOKEN) scale[blockIdx.x] = __fmul_rn(m < 1e-5f ? 1e-5f : m, 1.0f / (float)top);
    if (kind == ACT_STATIC) scale[blockIdx.x] = fixed + (m - m);
    if (kind == ACT_TENSOR) scale[blockIdx.x] = m;
}
__global__ static void act_tensor_kernel(float *scale, int64_t n, int top) {
    __shared__ float sh[256];
    float m = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
        if (!(scale[i] <= m) && m == m) m = scale[i];
    m = block_max(m, sh);
    m = __fmul_rn(m < 1e-5f ? 1e-5f : m, 1.0f / (float)top);
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) scale[i] = m;
}
static float *act_scales(Backend *b, const float *x, int64_t n, int64_t cols, const ActQuant *act) {
    float *s = (float *)cuda_slot(b, SLOT_A, (size_t)n * 8);
    if (!s) return NULL;
    int top = (1 << (act->bits - 1)) - 1;
    act_rows_kernel<<<(unsigned)n, 256, 0, STREAM(b)>>>(s, x, cols, act->kind, top, act->scale);
    if (act->kind == ACT_TENSOR) act_tensor_kernel<<<1, 256, 0, STREAM(b)>>>(s, n, top);
    return LAUNCHED(b, "激活的 scale") ? s : NULL;
}
__device__ static float act_code(float x, float s, int top) {
    float c = rintf(__fdiv_rn(x, s));
    return c < (float)(-top - 1) ? (float)(-top - 1) : c > (float)top ? (float)top : c;
}
__global__ static void round_act_kernel(float *x, const float *s, int64_t n, int64_t cols, int top) {
    EACH(i, n * cols) x[i] = __fmul_rn(act_code(x[i], s[i / cols], top), s[i / cols]);
}
void cuda_round_act(Backend *b, float *x, int64_t n, int64_t d, const ActQuant *act) {
    float *s = act_scales(b, x, n, d, act);
    if (!s) return;
    round_act_kernel<<<cuda_blocks(n * d, 256), 256, 0, STREAM(b)>>>(x, s, n, d, (1 << (act->bits - 1)) - 1);
    LAUNCHED(b, "round_act");
}
/* 行主序的 s8 编码（行距 ld），以及每行的和。 */
__global__ static void act_codes_kernel(int8_t *dst, int32_t *sum, const float *x, const float *s, int64_t cols,
                                        int64_t ld, int top, const int32_t *perm) {
    __shared__ int sh[256];
    int total = 0;
    const float *row = x + blockIdx.x * cols;
    for (int64_t i = threadIdx.x; i < ld; i += blockDim.x) {
        int c = i < cols ? (int)act_code(row[perm ? perm[i] : i], s[blockIdx.x], top) : 0;
        dst[blockIdx.x * ld + i] = (int8_t)c;
        total += c;
    }
    total = block_sum(total, sh);
    if (threadIdx.x == 0) sum[blockIdx.x] = total;
}
__global__ static void codes_kernel(View v, int8_t *dst, int64_t ld) { /* 码 − 128 */
    EACH(i, v.rows * ld) {
        int64_t r = i / ld, k = i % ld;
        dst[i] = (int8_t)(k < v.cols ? code_of(v, r, k) - 128 : 0);
    }
}
__global__ static void int8_out_kernel(View v, float *y, const int32_t *acc, const int32_t *sum, const float *s,
                                       const float *bias, int64_t n) {
    EACH(i, n * v.rows) {
        int64_t t = i / v.rows, r = i % v.rows;
        int z = (int)zero_of(v, r, 0) - 128;
        float d = (float)(acc[i] - z * sum[t]), sw = scale_of(v, r, 0);
        float o = __fmul_rn(d, __fmul_rn(sw, s[t]));
        y[i] = bias ? __fadd_rn(o, bias[r]) : o;
    }
}
static void linear_int8_one(Backend *b, float *y, const float *x, int64_t n, const QTensor *w, const float *bias,
                            const ActQuant *act) {
    int64_t ld = (w->cols + 15) / 16 * 16, n4 = (n + 3) / 4 * 4;
    float *s = act_scales(b, x, n, w->cols, act);
    int8_t *xc = (int8_t *)cuda_slot(b, SLOT_X, (size_t)(n4 * ld));
    int8_t *wc = (int8_t *)cuda_slot(b, SLOT_W, (size_t)(w->rows * ld));
    int32_t *acc = (int32_t *)cuda_slot(b, SLOT_Z, (size_t)(n4 * w->rows) * 4);
    if (!s || !xc || !wc || !acc) return;
    int32_t *sum = (int32_t *)(s + n);
    View v = view_of(w);
    cudaStream_t st = STREAM(b);
    int top = (1 << (act->bits - 1)) - 1;
    act_codes_kernel<<<(unsigned)n, 256, 0, st>>>(xc, sum, x, s, w->cols, ld, top, w->perm);
    codes_kernel<<<cuda_blocks(w->rows * ld, 256), 256, 0, st>>>(v, wc, ld);
    const int32_t one = 1, zero = 0;
    if (!LAUNCHED(b, "int8 编码") ||
        !cuda_blas_ok(b, cublasGemmEx(cuda_of(b)->blas, CUBLAS_OP_T, CUBLAS_OP_N, (int)w->rows, (int)n, (int)ld, &one,
                                 wc, CUDA_R_8I, (int)ld, xc, CUDA_R_8I, (int)ld, &zero, acc, CUDA_R_32I,
                                 (int)w->rows, CUBLAS_COMPUTE_32I, CUBLAS_GEMM_DEFAULT), "整数矩阵乘"))
        return;
    int8_out_kernel<<<cuda_blocks(n * w->rows, 256), 256, 0, st>>>(v, y, acc, sum, s, bias, n);
    LAUNCHED(b, "linear_int8");
}
void cuda_linear_int8(Backend *b, const LinearOut *out, int n_out, const float *x, int64_t n, const ActQuant *act) {
    for (int i = 0; i < n_out && b->err.code == ERR_NONE; i++)
        linear_int8_one(b, out[i].y, x, n, out[i].w, out[i].bias, act);
}

/* ---- 求解器与反向用的矩阵乘 ---- */

void cuda_gram(Backend *b, float *g, const float *x, int64_t n, int64_t d) {
    bool bf16 = b->compute == COMPUTE_BF16;
    const void *xd = x;
    int64_t ld = bf16 ? (d + 7) / 8 * 8 : d;
    if (bf16) {
        xd = cuda_slot(b, SLOT_X, (size_t)(n * ld) * 2);
        if (!xd) return;
        to_bf16_kernel<<<cuda_blocks(n * ld, 256), 256, 0, STREAM(b)>>>((__nv_bfloat16 *)xd, ld, x, n, d, NULL);
    }
    const float one = 1;
    cudaDataType_t t = bf16 ? CUDA_R_16BF : CUDA_R_32F;
    cuda_blas_ok(b, cublasGemmEx(cuda_of(b)->blas, CUBLAS_OP_N, CUBLAS_OP_T, (int)d, (int)d, (int)n, &one, xd, t,
                            (int)ld, xd, t, (int)ld, &one, g, CUDA_R_32F, (int)d,
                            bf16 ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_PEDANTIC, CUBLAS_GEMM_DEFAULT), "gram");
}

void cuda_update_rest(Backend *b, float *w, const float *err, const float *u, int64_t rows, int64_t n, int64_t i1,
                      int64_t i2) {
    const float minus = -1, one = 1;
    int64_t k = i2 - i1, rest = n - i2;
    cuda_blas_ok(b, cublasGemmEx(cuda_of(b)->blas, CUBLAS_OP_N, CUBLAS_OP_N, (int)rest, (int)rows, (int)k, &minus,
                            u + i1 * n + i2, CUDA_R_32F, (int)n, err, CUDA_R_32F, (int)k, &one, w + i2, CUDA_R_32F,
                            (int)n, CUBLAS_COMPUTE_32F_PEDANTIC, CUBLAS_GEMM_DEFAULT), "update_rest");
}

/* y(m,n) = a·c 或 aᵀ·c，行主序；列主序看是 yᵀ = cᵀ·aᵀ。 */
void cuda_matmul(Backend *b, float *y, const float *a, const float *c, int64_t m, int64_t k, int64_t n,
                 bool transpose_a) {
    bool bf16 = b->compute == COMPUTE_BF16;
    const void *ad = a, *cd = c;
    if (bf16) {
        __nv_bfloat16 *pa = (__nv_bfloat16 *)cuda_slot(b, SLOT_X, (size_t)(m * k) * 2);
        __nv_bfloat16 *pc = (__nv_bfloat16 *)cuda_slot(b, SLOT_W, (size_t)(k * n) * 2);
        if (!pa || !pc) return;
        to_bf16_kernel<<<cuda_blocks(m * k, 256), 256, 0, STREAM(b)>>>(pa, m * k, a, 1, m * k, NULL);
        to_bf16_kernel<<<cuda_blocks(k * n, 256), 256, 0, STREAM(b)>>>(pc, k * n, c, 1, k * n, NULL);
        ad = pa, cd = pc;
    }
    const float one = 1, zero = 0;
    cudaDataType_t t = bf16 ? CUDA_R_16BF : CUDA_R_32F;
    cuda_blas_ok(b, cublasGemmEx(cuda_of(b)->blas, CUBLAS_OP_N, transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, (int)n, (int)m,
                            (int)k, &one, cd, t, (int)n, ad, t, (int)(transpose_a ? m : k), &zero, y, CUDA_R_32F,
                            (int)n, bf16 ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_PEDANTIC, CUBLAS_GEMM_DEFAULT), "matmul");
}

/* 一块一行：列依次，块内各线程分担后面的列。次序同 CPU：每个 w 依次减去 err·u。 */
__global__ static void feedback_kernel(FeedbackJob j, const int32_t *group) {
    extern __shared__ float w[];
    __shared__ float d;
    int64_t r = blockIdx.x, width = j.i2 - j.i1;
    float top = (float)((1 << j.bits) - 1);
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x) w[i] = j.w[r * j.cols + j.i1 + i];
    for (int64_t i = 0; i < width; i++) {
        const float *u = j.u + (j.i1 + i) * j.cols + j.i1;
        __syncthreads();
        if (threadIdx.x == 0) {
            int32_t g = group[j.i1 + i];
            float s = j.scale[r * j.n_groups + g], z = j.zero[r * j.n_groups + g];
            float c = __fadd_rn(rintf(__fdiv_rn(w[i], s)), z);
            c = c > 0 ? c < top ? c : top : 0;
            float q = __fmul_rn(s, __fadd_rn(c, -z));
            d = __fdiv_rn(__fadd_rn(w[i], -q), u[i]);
            w[i] = q;
            j.err[r * width + i] = d;
        }
        __syncthreads();
        for (int64_t k = i + 1 + threadIdx.x; k < width; k += blockDim.x) w[k] = __fadd_rn(w[k], -__fmul_rn(d, u[k]));
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x) j.w[r * j.cols + j.i1 + i] = w[i];
}
void cuda_feedback(Backend *b, const FeedbackJob *job) {
    int32_t *g = (int32_t *)cuda_slot(b, SLOT_HOST, (size_t)job->cols * 4);
    if (!g || !cuda_ok(b, cudaMemcpyAsync(g, job->group, (size_t)job->cols * 4, cudaMemcpyHostToDevice, STREAM(b)), "组号"))
        return;
    size_t shared = (size_t)(job->i2 - job->i1) * 4;
    feedback_kernel<<<(unsigned)job->rows, 64, shared, STREAM(b)>>>(*job, g);
    LAUNCHED(b, "feedback");
}
