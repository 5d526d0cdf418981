/* search — AWQ 的内层循环：按行相除、二次型、截断的搜索
 * 截断：一束线程一行，定出各候选的 d = Q(clamp(w)) − w；d·G 由 cuBLAS 乘；再一束线程一行，取误差最小的界。 */
#include "compute/cuda/cuda_ops.h"
#include "compute/cuda/grid.h"

enum { ROW_WARPS = 8, DOT_PARTS = 1024, DOT_STRIPS = 8, DOT_STRIP_MIN = 64 };
static const int64_t CLIP_CELLS = (int64_t)1 << 25; /* 一批候选的元素数 */

__global__ static void divide_rows_kernel(float *w, const float *s, int64_t rows, int64_t cols) {
    EACH(i, rows * cols) w[i] = __fdiv_rn(w[i], s[i / cols]);
}
void cuda_divide_rows(Backend *b, float *w, const float *s, int64_t rows, int64_t cols) {
    divide_rows_kernel<<<cuda_blocks(rows * cols, 256), 256, 0, STREAM(b)>>>(w, s, rows, cols);
    LAUNCHED(b, "divide_rows");
}

/* 各块一个部分和；块与块内的次序固定。 */
__global__ static void dot_kernel(double *part, const float *x, const float *y, int64_t n) {
    __shared__ double sh[256];
    double sum = 0;
    EACH(i, n) sum += (double)x[i] * (double)y[i];
    sum = block_sum(sum, sh);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}
/* y 的列 [j0, j0+n) (+)= alpha·d[:, i0:i0+k]·G[i0:i0+k, j0:j0+n]；G 对称，行主序。 */
static bool quadratic_part(Backend *b, float *y, const float *d, const float *g, int64_t rows, int64_t cols, int64_t i0, int64_t k,
                           int64_t j0, int64_t n, float alpha, float beta) {
    return cuda_blas_ok(b, cublasGemmEx(cuda_blas(b), CUBLAS_OP_N, CUBLAS_OP_N, (int)n, (int)rows, (int)k, &alpha,
                                        g + i0 * cols + j0, CUDA_R_32F, (int)cols, d + i0, CUDA_R_32F, (int)cols, &beta, y + j0,
                                        CUDA_R_32F, (int)cols,
                                        b->compute == COMPUTE_BF16 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F_PEDANTIC,
                                        CUBLAS_GEMM_DEFAULT),
                        "二次型");
}
/* 只乘上三角：一条列里，对角块之上的算两倍。 */
double cuda_quadratic(Backend *b, const float *d, const QTensor *g, float *tmp, int64_t rows, int64_t cols) {
    double *part = (double *)cuda_slot(b, SLOT_Z, DOT_PARTS * sizeof *part), host[DOT_PARTS], sum = 0;
    int64_t strip = (cols / DOT_STRIPS + 127) / 128 * 128;
    if (!part) return NAN;
    if (strip < DOT_STRIP_MIN) strip = DOT_STRIP_MIN;
    for (int64_t j = 0; j < cols; j += strip) {
        int64_t n = cols - j < strip ? cols - j : strip;
        const float *gd = (const float *)g->data;
        if (j && !quadratic_part(b, tmp, d, gd, rows, cols, 0, j, j, n, 2, 0)) return NAN;
        if (!quadratic_part(b, tmp, d, gd, rows, cols, j, n, j, n, 1, j ? 1 : 0)) return NAN;
    }
    dot_kernel<<<DOT_PARTS, 256, 0, STREAM(b)>>>(part, tmp, d, rows * cols);
    if (!LAUNCHED(b, "二次型的和")) return NAN;
    b->ops->read(b, host, part, sizeof host);
    for (int i = 0; i < DOT_PARTS; i++) sum += host[i];
    return sum;
}

/* ---- 截断 ---- */

__device__ static float cut(float x, float top) {
    return x > top ? top : x < -top ? -top : x;
}
__device__ static float limit_at(float top, int64_t k, int64_t grid) {
    return __fmul_rn(top, (float)(1 - (double)k / (double)grid));
}
/* d：第 k 步的第 r 行在 k·rows + r 行；top (rows)：各行的 max|w|。 */
__global__ static void clip_rows_kernel(float *d, float *top, ClipJob j, const float *w, int64_t rows) {
    int64_t r = (int64_t)blockIdx.x * ROW_WARPS + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (r >= rows) return;
    const float *x = w + r * j.ld;
    float lo = x[0], hi = x[0];
    for (int64_t c = lane; c < j.width; c += 32) {
        lo = x[c] < lo ? x[c] : lo;
        hi = x[c] > hi ? x[c] : hi;
    }
    warp_range(&lo, &hi);
    float m = fabsf(lo) > fabsf(hi) ? fabsf(lo) : fabsf(hi);
    if (lane == 0) top[r] = m;
    for (int64_t k = 0; k < j.steps; k++) {
        float limit = limit_at(m, k, j.grid), scale, zero;
        float *to = d + (k * rows + r) * j.width;
        fit_grid(cut(lo, limit), cut(hi, limit), j.spec, &scale, &zero); /* 截断不改变次序 */
        for (int64_t c = lane; c < j.width; c += 32) {
            float code = grid_code(cut(x[c], limit), scale, zero, j.spec.bits, false);
            to[c] = __fadd_rn(__fmul_rn(scale, __fadd_rn(code, -zero)), -x[c]);
        }
    }
}
__global__ static void clip_pick_kernel(ClipJob j, float *w, const float *d, const float *y, const float *top, int64_t rows) {
    int64_t r = (int64_t)blockIdx.x * ROW_WARPS + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (r >= rows) return;
    float least = INFINITY, best = limit_at(top[r], 0, j.grid);
    for (int64_t k = 0; k < j.steps; k++) {
        int64_t at = (k * rows + r) * j.width;
        float sum = 0;
        for (int64_t c = lane; c < j.width; c += 32) sum += d[at + c] * y[at + c];
        sum = warp_sum(sum);
        if (sum < least) least = sum, best = limit_at(top[r], k, j.grid);
    }
    float *x = w + r * j.ld;
    for (int64_t c = lane; c < j.width; c += 32) x[c] = cut(x[c], best);
}
void cuda_clip(Backend *b, const ClipJob *job) {
    int64_t each = job->steps * job->width, most = CLIP_CELLS / each > 1 ? CLIP_CELLS / each : 1;
    if (most > job->rows) most = job->rows;
    float *d = (float *)cuda_slot(b, SLOT_A, (size_t)(most * each + most) * 4);
    float *y = (float *)cuda_slot(b, SLOT_B, (size_t)(most * each) * 4), *top = d + most * each;
    for (int64_t r = 0; d && y && r < job->rows && b->err.code == ERR_NONE; r += most) {
        int64_t rows = job->rows - r < most ? job->rows - r : most;
        unsigned grid = (unsigned)((rows + ROW_WARPS - 1) / ROW_WARPS);
        float *w = job->w + r * job->ld;
        clip_rows_kernel<<<grid, 32 * ROW_WARPS, 0, STREAM(b)>>>(d, top, *job, w, rows);
        if (!LAUNCHED(b, "截断的候选")) return;
        cuda_linear_exact(b, y, d, rows * job->steps, job->gram);
        clip_pick_kernel<<<grid, 32 * ROW_WARPS, 0, STREAM(b)>>>(*job, w, d, y, top, rows);
        LAUNCHED(b, "截断的选择");
    }
}
