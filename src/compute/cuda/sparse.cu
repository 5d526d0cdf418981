/* sparse — SpQR 的内层循环：定组的格点（留一法、两级统计）、逐列取整与误差补偿；列的方差，离群值的分出
 * 一块线程是共用二级格点的若干行，一束线程一行。到组首先定格点（各行之间只在这里会合），再逐列递推；一行在块内的列放在
 * 共享内存里，各线程认领固定的列。乘加与求和的次序都与 CPU 相同。 */
#include <stdlib.h>

#include "compute/cuda/cuda_ops.h"
#include "compute/cuda/grid.h"
#include "compute/cuda/linear.h"

enum { WARPS = 16, ROW_CACHE = 512 /* 块内的列不多于此才放共享内存 */ };
static const unsigned ALL = 0xFFFFFFFFu;

struct Levels {
    float scale, zero, top;
};
__device__ static Levels levels_of(float lo, float hi, int bits) {
    Levels g;
    g.top = (float)((1 << bits) - 1);
    if (!(lo < hi)) lo = -1, hi = 1;
    g.scale = __fdiv_rn(__fadd_rn(hi, -lo), g.top);
    g.zero = __fdiv_rn(-lo, g.scale);
    return g;
}
__device__ static float code_in(float x, Levels g) {
    float code = rintf(__fadd_rn(__fdiv_rn(x, g.scale > 1e-9f ? g.scale : 1e-9f), g.zero));
    return code < 0 ? 0 : code > g.top ? g.top : code;
}
__device__ static float rounded(float x, Levels g) {
    return __fmul_rn(g.scale, __fadd_rn(code_in(x, g), -g.zero));
}
__device__ static float stat_stored(float x, DType t) {
    return t == DT_F16 ? __half2float(__float2half_rn(x)) : x;
}
__device__ static float deviation(float x, float u, Levels g) {
    return __fdiv_rn(__fadd_rn(rounded(x, g), -x), u);
}

/* 误差 Σ((q−x)/U)²，不计第 skip 个；一束线程，依次相加。 */
__device__ static float group_error(const float *x, const float *u, int64_t step, int64_t width, Levels g, int64_t skip) {
    int lane = threadIdx.x % 32;
    float sum = 0;
    for (int64_t i0 = 0; i0 < width; i0 += 32) {
        int64_t i = i0 + lane;
        float d = i < width && i != skip ? deviation(x[i], u[i * step], g) : 0, square = __fmul_rn(d, d);
        int n = width - i0 < 32 ? (int)(width - i0) : 32;
        for (int k = 0; k < n; k++) sum = __fadd_rn(sum, __shfl_sync(ALL, square, k));
    }
    return sum;
}
/* 最小（sign 为 1）或最大（−1）的值与它最前的位置；skip 不算。 */
__device__ static void extreme(const float *x, int64_t width, float sign, int64_t skip, float *best, int64_t *at) {
    float v = INFINITY;
    int64_t where = width;
    for (int64_t i = threadIdx.x % 32; i < width; i += 32)
        if (i != skip && (where == width || sign * x[i] < v)) v = sign * x[i], where = i;
    for (int o = 16; o; o /= 2) {
        float v2 = __shfl_xor_sync(ALL, v, o);
        int64_t w2 = __shfl_xor_sync(ALL, where, o);
        if (w2 < width && (where == width || v2 < v || (v2 == v && w2 < where))) v = v2, where = w2;
    }
    *best = sign * v, *at = where;
}
/* 一行的一组的范围，留一法见 cpu/sparse.c。 */
__device__ static void group_range(const SparseJob &s, const float *x, int64_t col, int64_t width, float *lo, float *hi) {
    int64_t step = s.cols + 1, at_lo, at_hi, other;
    const float *u = s.u + col * step;
    extreme(x, width, 1, -1, lo, &at_lo);
    extreme(x, width, -1, -1, hi, &at_hi);
    if (!s.leave_one_out || width < 2) return;
    float lo2, hi2, kept_lo = INFINITY, kept_hi = -INFINITY;
    extreme(x, width, 1, at_lo, &lo2, &other);
    extreme(x, width, -1, at_hi, &hi2, &other);
    Levels all = levels_of(*lo, *hi, s.bits);
    Levels less = levels_of(lo2, at_lo == at_hi ? hi2 : *hi, s.bits), more = levels_of(at_lo == at_hi ? lo2 : *lo, hi2, s.bits);
    float base = group_error(x, u, step, width, all, -1);
    float gain_lo = __fadd_rn(base, -group_error(x, u, step, width, less, at_lo));
    float gain_hi = __fadd_rn(base, -group_error(x, u, step, width, more, at_hi));
    for (int64_t j = threadIdx.x % 32; j < width; j += 32) {
        float d = deviation(x[j], u[j * step], all), gain = j == at_lo ? gain_lo : j == at_hi ? gain_hi : __fmul_rn(d, d);
        if (gain > s.limit) continue;
        kept_lo = x[j] < kept_lo ? x[j] : kept_lo;
        kept_hi = x[j] > kept_hi ? x[j] : kept_hi;
    }
    warp_range(&kept_lo, &kept_hi);
    *lo = kept_lo, *hi = kept_hi;
}

/* 行 [r0, r1) 的第 g 组的一种统计再量化；一束线程。 */
__device__ static void quantize_stat(const SparseJob &s, float *v, uint8_t *codes, float *grids, int bits, int64_t r0, int64_t r1,
                                     int64_t g) {
    int lane = threadIdx.x % 32;
    float lo = INFINITY, hi = -INFINITY;
    for (int64_t r = r0 + lane; r < r1; r += 32) {
        float *x = v + r * s.n_groups + g;
        if (!bits) *x = stat_stored(*x, s.scale_dtype);
        lo = *x < lo ? *x : lo;
        hi = *x > hi ? *x : hi;
    }
    if (!bits) return;
    warp_range(&lo, &hi);
    Levels grid = levels_of(lo, hi, bits);
    grid.scale = stat_stored(grid.scale, s.scale_dtype), grid.zero = stat_stored(grid.zero, s.scale_dtype);
    float *to = grids + 2 * (r0 / s.stat_rows * s.n_groups + g);
    if (lane == 0) to[0] = grid.scale, to[1] = grid.zero;
    for (int64_t r = r0 + lane; r < r1; r += 32) {
        int64_t at = r * s.n_groups + g;
        float code = code_in(v[at], grid);
        codes[at] = (uint8_t)code;
        v[at] = __fmul_rn(grid.scale, __fadd_rn(code, -grid.zero));
    }
}
/* 各行的第 g 组的格点。开头与结尾各会合一次。 */
__device__ static void fit_group(const SparseJob &s, int64_t r0, int64_t r1, int64_t g) {
    int64_t col = g * s.group, width = col + s.group < s.cols ? s.group : s.cols - col;
    int warp = threadIdx.x / 32;
    for (int64_t r = r0 + warp; r < r1; r += WARPS) {
        float lo, hi;
        group_range(s, s.w + r * s.cols + col, col, width, &lo, &hi);
        Levels grid = levels_of(lo, hi, s.bits);
        if (threadIdx.x % 32 == 0) s.scale[r * s.n_groups + g] = grid.scale, s.zero[r * s.n_groups + g] = grid.zero;
    }
    __syncthreads();
    if (warp == 0) quantize_stat(s, s.scale, s.scale_code, s.scale_grid, s.scale_bits, r0, r1, g);
    if (warp == 1) quantize_stat(s, s.zero, s.zero_code, s.zero_grid, s.zero_bits, r0, r1, g);
    __syncthreads();
}
/* 一行的列 [c1, c2)（同一组）的递推；row 是这一行块内的列（从 i1 起），在共享内存或就地。 */
__device__ static void solve_row(const SparseJob &s, float *row, int64_t r, int64_t c1, int64_t c2) {
    int lane = threadIdx.x % 32;
    int64_t at = r * s.n_groups + c1 / s.group, width = s.i2 - s.i1;
    Levels g;
    g.scale = s.scale[at], g.zero = s.zero[at], g.top = (float)((1 << s.bits) - 1);
    for (int64_t i = c1 - s.i1; i < c2 - s.i1; i++) {
        const float *u = s.u + (s.i1 + i) * s.cols + s.i1;
        float x = row[i], q = rounded(x, g), d = __fdiv_rn(__fadd_rn(x, -q), u[i]);
        bool keep = __fmul_rn(d, d) > s.limit;
        __syncwarp();
        if (lane == 0) {
            s.outlier[r * s.cols + s.i1 + i] = keep;
            s.err[r * width + i] = keep ? 0 : d;
            if (!keep) row[i] = q;
        }
        for (int64_t j = (i + 1) / 32 * 32 + lane; j < width && !keep; j += 32)
            if (j > i) row[j] = __fadd_rn(row[j], -__fmul_rn(d, u[j]));
        __syncwarp();
    }
}
__global__ static void __launch_bounds__(WARPS * 32) sparse_kernel(SparseJob s) {
    extern __shared__ float cache[];
    int64_t r0 = blockIdx.x * s.stat_rows, r1 = r0 + s.stat_rows < s.rows ? r0 + s.stat_rows : s.rows, width = s.i2 - s.i1;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    bool cached = width <= ROW_CACHE;
    for (int64_t c = s.i1, end; c < s.i2; c = end) {
        end = (c / s.group + 1) * s.group;
        if (end > s.i2) end = s.i2;
        if (c % s.group == 0) fit_group(s, r0, r1, c / s.group);
        for (int64_t r = r0 + warp; r < r1; r += WARPS) {
            float *w = s.w + r * s.cols + s.i1, *row = cached ? cache + warp * width : w;
            for (int64_t i = lane; i < width && cached; i += 32) row[i] = w[i];
            __syncwarp();
            solve_row(s, row, r, c, end);
            for (int64_t i = lane; i < width && cached; i += 32) w[i] = row[i];
            __syncwarp();
        }
    }
}
void cuda_sparse(Backend *b, const SparseJob *job) {
    int64_t width = job->i2 - job->i1;
    size_t shared = width <= ROW_CACHE ? (size_t)(WARPS * width) * 4 : 0;
    unsigned groups = (unsigned)((job->rows - 1) / job->stat_rows + 1);
    sparse_kernel<<<groups, WARPS * 32, shared, STREAM(b)>>>(*job);
    LAUNCHED(b, "sparse");
}

/* ---- 列的方差 ---- */

/* 各行分成若干段，各写自己的部分和；mean 为 NULL 时是 Σx，否则 Σ(x−mean)²。 */
__global__ static void moment_kernel(double *part, const float *x, const double *mean, int64_t rows, int64_t cols) {
    int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, per = (rows + gridDim.y - 1) / gridDim.y;
    int64_t r0 = blockIdx.y * per, r1 = r0 + per < rows ? r0 + per : rows;
    if (c >= cols) return;
    double sum = 0, m = mean ? mean[c] : 0;
    for (int64_t r = r0; r < r1; r++) {
        double v = (double)x[r * cols + c] - m;
        sum += mean ? v * v : v;
    }
    part[blockIdx.y * cols + c] = sum;
}
__global__ static void moment_merge_kernel(double *out, const double *part, int parts, int64_t cols, double divisor) {
    EACH(c, cols) {
        double sum = 0;
        for (int p = 0; p < parts; p++) sum += part[p * cols + c];
        out[c] = sum / divisor;
    }
}
void cuda_column_variance(Backend *b, double *var, const float *x, int64_t rows, int64_t cols) {
    int64_t parts = rows / 64 < 1 ? 1 : rows / 64 > 64 ? 64 : rows / 64;
    double *part = (double *)cuda_slot(b, SLOT_A, (size_t)((parts + 1) * cols) * 8), *mean = part + parts * cols;
    if (!part) return;
    dim3 grid((unsigned)((cols + 127) / 128), (unsigned)parts);
    unsigned merge = cuda_blocks(cols, 128);
    moment_kernel<<<grid, 128, 0, STREAM(b)>>>(part, x, NULL, rows, cols);
    moment_merge_kernel<<<merge, 128, 0, STREAM(b)>>>(mean, part, (int)parts, cols, (double)rows);
    moment_kernel<<<grid, 128, 0, STREAM(b)>>>(part, x, mean, rows, cols);
    moment_merge_kernel<<<merge, 128, 0, STREAM(b)>>>(mean, part, (int)parts, cols, (double)(rows - 1));
    if (LAUNCHED(b, "column_variance")) b->ops->read(b, var, mean, (size_t)cols * 8);
}

/* ---- 离群值：一束线程一块（面板 × 32 列），一个线程一列；次序是先列后行 ---- */

__device__ static int column_outliers(const uint8_t *mask, int64_t rows, int64_t cols, int64_t row0, int64_t k) {
    int n = 0;
    for (int64_t r = row0; r < row0 + QT_PANEL && r < rows && k < cols; r++) n += mask[r * cols + k] != 0;
    return n;
}
__global__ static void count_kernel(uint32_t *start, const uint8_t *mask, int64_t rows, int64_t cols, int64_t blocks, int64_t all) {
    int64_t i = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (i >= all) return;
    int n = column_outliers(mask, rows, cols, i / blocks * QT_PANEL, i % blocks * QT_KBLOCK + threadIdx.x % 32);
    n = warp_sum(n);
    if (threadIdx.x % 32 == 0) start[i + 1] = (uint32_t)n;
}
int64_t cuda_count_outliers(Backend *b, uint32_t *start, const uint8_t *mask, int64_t rows, int64_t cols) {
    int64_t blocks = (cols - 1) / QT_KBLOCK + 1, all = ((rows - 1) / QT_PANEL + 1) * blocks, total = 0;
    size_t bytes = (size_t)(all + 1) * sizeof *start;
    count_kernel<<<(unsigned)((all + WARPS - 1) / WARPS), WARPS * 32, 0, STREAM(b)>>>(start, mask, rows, cols, blocks, all);
    uint32_t *host = (uint32_t *)malloc(bytes);
    if (!host) return cuda_fail(b, ERR_MEMORY, "内存不足"), 0;
    if (LAUNCHED(b, "count_outliers")) b->ops->read(b, host, start, bytes);
    if (b->err.code == ERR_NONE) {
        host[0] = 0;
        for (int64_t i = 0; i < all; i++) host[i + 1] += host[i];
        total = host[all];
        b->ops->write(b, start, host, bytes);
    }
    free(host);
    return total;
}
__global__ static void split_kernel(View v, uint16_t *places, void *value, int *too_big, float *w, const uint8_t *mask) {
    int64_t i = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (i >= ((v.rows - 1) / QT_PANEL + 1) * v.blocks) return;
    int64_t row0 = i / v.blocks * QT_PANEL, k = i % v.blocks * QT_KBLOCK + lane;
    int n = column_outliers(mask, v.rows, v.cols, row0, k), before = n;
    for (int o = 1; o < 32; o *= 2) {
        int left = __shfl_up_sync(ALL, before, o);
        if (lane >= o) before += left;
    }
    uint32_t to = v.start[i] + (uint32_t)(before - n);
    for (int64_t r = row0; n && r < row0 + QT_PANEL && r < v.rows; r++) {
        if (!mask[r * v.cols + k]) continue;
        float x = w[r * v.cols + k];
        w[r * v.cols + k] = 0;
        if (v.scale_type == DT_F16 && !(x >= -65504 && x <= 65504)) *too_big = 1;
        places[to] = (uint16_t)(lane * QT_PANEL + (int)(r - row0));
        real_put(value, v.scale_type, to++, x);
    }
}
bool cuda_split_outliers(Backend *b, const QTensor *q, float *w, const uint8_t *mask) {
    View v = view_of(q);
    int64_t all = ((v.rows - 1) / QT_PANEL + 1) * v.blocks;
    int *flag = (int *)cuda_slot(b, SLOT_HOST, 4), too_big = 0;
    if (!flag || !cuda_ok(b, cudaMemsetAsync(flag, 0, 4, STREAM(b)), "清零")) return true;
    split_kernel<<<(unsigned)((all + WARPS - 1) / WARPS), WARPS * 32, 0, STREAM(b)>>>(v, q->outliers.at, q->outliers.value, flag, w,
                                                                                      mask);
    if (LAUNCHED(b, "split_outliers")) b->ops->read(b, &too_big, flag, 4);
    return !too_big;
}
