/* elementwise — 归一化、旋转、激活函数与它们的反向，缩放 */
#include "compute/cuda/cuda_ops.h"
#include "compute/cuda/input.h"

__global__ static void norm_kernel(float *y, const float *x, NormSpec s, int64_t d) {
    __shared__ double sh[256];
    const float *row = x + blockIdx.x * d;
    int64_t at = blockIdx.x % s.period * d;
    float mean, r;
    norm_stats(row, d, s, sh, &mean, &r);
    for (int64_t i = threadIdx.x; i < d; i += blockDim.x) y[blockIdx.x * d + i] = norm_at(row[i], s, at + i, mean, r);
}
void cuda_norm(Backend *b, float *y, const float *x, const NormSpec *s, int64_t n, int64_t d) {
    norm_kernel<<<(unsigned)n, 256, 0, STREAM(b)>>>(y, x, *s, d);
    LAUNCHED(b, "norm");
}

/* 一行一块。 */
__global__ static void rope_kernel(float *x, int heads, int dim, int half, const float *cos_t, const float *sin_t,
                                   int64_t first, bool interleaved) {
    int64_t t = blockIdx.x;
    const float *co = cos_t + (first + t) * half, *si = sin_t + (first + t) * half;
    int step = interleaved ? 1 : half;
    for (int i = threadIdx.x; i < heads * half; i += blockDim.x) {
        int j = i % half, h = i / half;
        float *p = x + (t * heads + h) * dim + (interleaved ? 2 * j : j), a = p[0], c = p[step];
        p[0] = __fadd_rn(__fmul_rn(a, co[j]), -__fmul_rn(c, si[j]));
        p[step] = __fadd_rn(__fmul_rn(c, co[j]), __fmul_rn(a, si[j]));
    }
}
void cuda_rope(Backend *b, float *x, int64_t n, int64_t heads, int64_t dim, int64_t half, const float *cos_table,
               const float *sin_table, int64_t first, bool interleaved) {
    if (!half) return;
    rope_kernel<<<(unsigned)n, 256, 0, STREAM(b)>>>(x, (int)heads, (int)dim, (int)half, cos_table, sin_table, first, interleaved);
    LAUNCHED(b, "rope");
}
__global__ static void activate_kernel(float *y, const float *gate, const float *up, int64_t n, Activation f) {
    EACH(i, n) {
        float r = activation(gate[i], f);
        y[i] = up ? r * up[i] : r;
    }
}
void cuda_activate(Backend *b, float *y, const float *gate, const float *up, int64_t n, Activation f) {
    activate_kernel<<<cuda_blocks(n, 256), 256, 0, STREAM(b)>>>(y, gate, up, n, f);
    LAUNCHED(b, "activate");
}
__global__ static void multiply_kernel(float *y, const float *x, float a, int64_t n) {
    EACH(i, n) y[i] = a == 0 ? 0 : __fmul_rn(a, x[i]);
}
void cuda_multiply(Backend *b, float *y, const float *x, float a, int64_t n) {
    multiply_kernel<<<cuda_blocks(n, 256), 256, 0, STREAM(b)>>>(y, x, a, n);
    LAUNCHED(b, "multiply");
}

/* ---- 混合专家：取行与加回 ---- */

__global__ static void gather_rows_kernel(float *dst, const float *src, const int32_t *index, int64_t n, int64_t d) {
    EACH(i, n * d) dst[i] = src[index[i / d] * d + i % d];
}
__global__ static void scatter_rows_kernel(float *dst, const float *src, const int32_t *index, const float *weight, int64_t n,
                                           int64_t d) {
    EACH(i, n * d) {
        float *to = dst + index[i / d] * d + i % d;
        *to = __fadd_rn(*to, __fmul_rn(weight[i / d], src[i]));
    }
}
/* index 与（可无的）weight 传到显存；失败返回 NULL。 */
static int32_t *upload_rows(Backend *b, const int32_t *index, const float *weight, int64_t n) {
    int32_t *d = (int32_t *)cuda_slot(b, SLOT_HOST, (size_t)n * 8);
    if (!d || !cuda_ok(b, cudaMemcpyAsync(d, index, (size_t)n * 4, cudaMemcpyHostToDevice, STREAM(b)), "上传行号")) return NULL;
    if (weight && !cuda_ok(b, cudaMemcpyAsync(d + n, weight, (size_t)n * 4, cudaMemcpyHostToDevice, STREAM(b)), "上传权重"))
        return NULL;
    return d;
}
void cuda_gather_rows(Backend *b, float *dst, const float *src, const int32_t *index, int64_t n, int64_t d) {
    int32_t *at = upload_rows(b, index, NULL, n);
    if (!at) return;
    gather_rows_kernel<<<cuda_blocks(n * d, 256), 256, 0, STREAM(b)>>>(dst, src, at, n, d);
    LAUNCHED(b, "gather_rows");
}
void cuda_scatter_rows(Backend *b, float *dst, const float *src, const int32_t *index, const float *weight, int64_t n, int64_t d) {
    int32_t *at = upload_rows(b, index, weight, n);
    if (!at) return;
    scatter_rows_kernel<<<cuda_blocks(n * d, 256), 256, 0, STREAM(b)>>>(dst, src, at, (const float *)(at + n), n, d);
    LAUNCHED(b, "scatter_rows");
}
__global__ static void add_kernel(float *y, const float *x, int64_t n) {
    EACH(i, n) y[i] += x[i];
}
void cuda_add(Backend *b, float *y, const float *x, int64_t n) {
    add_kernel<<<cuda_blocks(n, 256), 256, 0, STREAM(b)>>>(y, x, n);
    LAUNCHED(b, "add");
}

/* dx = r·w·dy − x·r³/d·Σ(w·dy·x)；各行的 r 留在 rs，供 dweight。 */
__global__ static void rmsnorm_grad_kernel(float *dx, float *rs, const float *dy, const float *x, const float *w, int64_t d,
                                           float eps) {
    __shared__ double sh[256];
    int64_t at = blockIdx.x * d;
    double sq = 0, dot = 0;
    for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
        sq += (double)x[at + i] * (double)x[at + i];
        dot += (double)w[i] * (double)dy[at + i] * (double)x[at + i];
    }
    sq = block_sum(sq, sh);
    dot = block_sum(dot, sh);
    float r = 1.0f / sqrtf((float)(sq / (double)d) + eps);
    float k = (float)((double)r * (double)r * (double)r / (double)d * dot);
    if (threadIdx.x == 0) rs[blockIdx.x] = r;
    for (int64_t i = threadIdx.x; i < d; i += blockDim.x) dx[at + i] = r * w[i] * dy[at + i] - x[at + i] * k;
}
__global__ static void norm_weight_kernel(float *dw, const float *rs, const float *dy, const float *x, int64_t n, int64_t d) {
    EACH(i, d) {
        float s = 0;
        for (int64_t r = 0; r < n; r++) s += dy[r * d + i] * x[r * d + i] * rs[r];
        dw[i] = s;
    }
}
void cuda_rmsnorm_grad(Backend *b, float *dx, float *dweight, const float *dy, const float *x, const float *weight,
                       int64_t n, int64_t d, float eps) {
    float *rs = (float *)cuda_slot(b, SLOT_A, (size_t)n * 4);
    if (!rs) return;
    rmsnorm_grad_kernel<<<(unsigned)n, 256, 0, STREAM(b)>>>(dx, rs, dy, x, weight, d, eps);
    if (dweight) norm_weight_kernel<<<cuda_blocks(d, 32), 32, 0, STREAM(b)>>>(dweight, rs, dy, x, n, d);
    LAUNCHED(b, "rmsnorm_grad");
}
__global__ static void silu_grad_kernel(float *dg, float *du, const float *dy, const float *gate, const float *up, int64_t n) {
    EACH(i, n) {
        float g = gate[i], s = 1.0f / (1.0f + expf(-g)), d = dy[i], u = up[i];
        dg[i] = d * u * s * (1 + g * (1 - s));
        du[i] = d * g * s;
    }
}
void cuda_silu_mul_grad(Backend *b, float *dgate, float *dup, const float *dy, const float *gate, const float *up, int64_t n) {
    silu_grad_kernel<<<cuda_blocks(n, 256), 256, 0, STREAM(b)>>>(dgate, dup, dy, gate, up, n);
    LAUNCHED(b, "silu_mul_grad");
}

/* dx = dx̂，另在 |x| 最大的一列（并列取最前）加 ±Σ dx̂·(rint(x/s) − x/s)/top。 */
__global__ static void round_grad_kernel(float *d, const float *x, int64_t cols, int top) {
    __shared__ float sh[256];
    __shared__ double sd[256];
    __shared__ int64_t si[256];
    int64_t at = blockIdx.x * cols, best = cols;
    float m = 0;
    for (int64_t i = threadIdx.x; i < cols; i += blockDim.x) m = fabsf(x[at + i]) > m ? fabsf(x[at + i]) : m;
    m = block_max(m, sh);
    float s = __fmul_rn(m < 1e-5f ? 1e-5f : m, 1.0f / (float)top);
    double sum = 0;
    for (int64_t i = threadIdx.x; i < cols; i += blockDim.x) {
        float q = __fdiv_rn(x[at + i], s);
        sum += (double)d[at + i] * (double)(rintf(q) - q);
        if (fabsf(x[at + i]) == m && i < best) best = i;
    }
    sum = block_sum(sum, sd);
    si[threadIdx.x] = best;
    __syncthreads();
    if (threadIdx.x || m < 1e-5f) return;
    for (int i = 1; i < (int)blockDim.x; i++) best = si[i] < best ? si[i] : best;
    if (best < cols) d[at + best] += (x[at + best] < 0 ? -1.0f : 1.0f) * (float)(sum / (double)top);
}
void cuda_round_act_grad(Backend *b, float *d, const float *x, int64_t n, int64_t cols, int bits) {
    round_grad_kernel<<<(unsigned)n, 256, 0, STREAM(b)>>>(d, x, cols, (1 << (bits - 1)) - 1);
    LAUNCHED(b, "round_act_grad");
}

/* ---- 学习：组的范围、缩放 ---- */

__device__ static int64_t group_end(int64_t g, int64_t group, int64_t cols) {
    return (g + 1) * group < cols ? (g + 1) * group : cols;
}
__global__ static void range_kernel(float *lo, float *hi, const float *x, int64_t rows, int64_t cols, int64_t group, int64_t ng) {
    EACH(i, rows * ng) {
        const float *p = x + i / ng * cols;
        int64_t k = i % ng * group;
        float l = p[k], h = l;
        for (int64_t e = group_end(i % ng, group, cols); k < e; k++) l = fminf(l, p[k]), h = fmaxf(h, p[k]);
        lo[i] = l, hi[i] = h;
    }
}
void cuda_group_range(Backend *b, float *lo, float *hi, const float *x, int64_t rows, int64_t cols, int64_t group) {
    int64_t ng = (cols - 1) / group + 1;
    range_kernel<<<cuda_blocks(rows * ng, 128), 128, 0, STREAM(b)>>>(lo, hi, x, rows, cols, group, ng);
    LAUNCHED(b, "group_range");
}
__global__ static void range_grad_kernel(float *dx, const float *x, const float *lo, const float *hi, const float *d_lo,
                                         const float *d_hi, int64_t rows, int64_t cols, int64_t group, int64_t ng) {
    EACH(i, rows * ng) {
        int64_t at = i / ng * cols, k0 = i % ng * group, e = group_end(i % ng, group, cols);
        float n_lo = 0, n_hi = 0;
        for (int64_t k = k0; k < e; k++) n_lo += x[at + k] == lo[i], n_hi += x[at + k] == hi[i];
        for (int64_t k = k0; k < e; k++) {
            if (x[at + k] == lo[i]) dx[at + k] += d_lo[i] / n_lo;
            if (x[at + k] == hi[i]) dx[at + k] += d_hi[i] / n_hi;
        }
    }
}
void cuda_group_range_grad(Backend *b, float *dx, const float *x, const float *lo, const float *hi, const float *d_lo,
                           const float *d_hi, int64_t rows, int64_t cols, int64_t group) {
    int64_t ng = (cols - 1) / group + 1;
    range_grad_kernel<<<cuda_blocks(rows * ng, 128), 128, 0, STREAM(b)>>>(dx, x, lo, hi, d_lo, d_hi, rows, cols, group, ng);
    LAUNCHED(b, "group_range_grad");
}
/* 块 (列段, 行)。 */
__global__ static void scale_kernel(float *y, const float *x, const float *row, const float *col, int64_t rows, int64_t cols) {
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t r = blockIdx.y; r < rows; r += gridDim.y)
        for (int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; c < cols; c += step)
            y[r * cols + c] = __fmul_rn(row ? __fmul_rn(x[r * cols + c], row[r]) : x[r * cols + c], col[c]);
}
void cuda_scale(Backend *b, float *y, const float *x, const float *row, const float *col, int64_t rows, int64_t cols) {
    dim3 grid((unsigned)((cols + 255) / 256 < 4096 ? (cols + 255) / 256 : 4096), (unsigned)(rows < 65535 ? rows : 65535));
    scale_kernel<<<grid, 256, 0, STREAM(b)>>>(y, x, row, col, rows, cols);
    LAUNCHED(b, "scale");
}
__global__ static void scale_row_kernel(float *d_row, const float *dy, const float *x, const float *col, int64_t cols) {
    __shared__ double sh[256];
    double s = 0;
    int64_t at = blockIdx.x * cols;
    for (int64_t c = threadIdx.x; c < cols; c += blockDim.x) s += (double)(dy[at + c] * x[at + c] * col[c]);
    s = block_sum(s, sh);
    if (threadIdx.x == 0) d_row[blockIdx.x] = (float)s;
}
__global__ static void scale_col_kernel(float *d_col, const float *dy, const float *x, const float *row, int64_t rows, int64_t cols) {
    EACH(c, cols) {
        double s = 0;
        for (int64_t r = 0; r < rows; r++) s += (double)(dy[r * cols + c] * x[r * cols + c] * row[r]);
        d_col[c] = (float)s;
    }
}
void cuda_scale_grad(Backend *b, float *d_row, float *d_col, const float *dy, const float *x, const float *row,
                     const float *col, int64_t rows, int64_t cols) {
    scale_row_kernel<<<(unsigned)rows, 256, 0, STREAM(b)>>>(d_row, dy, x, col, cols);
    scale_col_kernel<<<cuda_blocks(cols, 32), 32, 0, STREAM(b)>>>(d_col, dy, x, row, rows, cols);
    LAUNCHED(b, "scale_grad");
}
