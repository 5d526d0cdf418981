/* backend — CUDA 后端：打开、复制、统计，以及算子表 */
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compute/cuda/cuda.h"
#include "compute/cuda/cuda_ops.h"
#include "compute/cuda/persistent.h"

bool cuda_fail(Backend *b, ErrCode code, const char *fmt, ...) {
    if (b->err.code != ERR_NONE) return false;
    va_list args;
    va_start(args, fmt);
    vsnprintf(b->err.msg, sizeof b->err.msg, fmt, args);
    va_end(args);
    b->err.code = code;
    return false;
}
bool cuda_ok(Backend *b, cudaError_t code, const char *what) {
    if (code == cudaSuccess) return true;
    return cuda_fail(b, code == cudaErrorMemoryAllocation ? ERR_MEMORY : ERR_DEVICE,
                     "CUDA：%s 失败：%s（%s）", what, cudaGetErrorString(code), cudaGetErrorName(code));
}
bool cuda_launched(Backend *b, const char *what) {
    CudaBackend *c = cuda_of(b);
    if (c->profile && c->lane == LANE_MAIN) profile_mark(c, what);
    c->chain = c->chained, c->chained = false;
    return cuda_ok(b, cudaGetLastError(), what);
}
bool cuda_blas_ok(Backend *b, cublasStatus_t code, const char *what) {
    if (cuda_of(b)->profile && cuda_of(b)->lane == LANE_MAIN) profile_mark(cuda_of(b), what);
    cuda_of(b)->chain = cuda_of(b)->chained = false;
    if (!cuda_ok(b, cudaGetLastError(), what)) return false; /* cuBLAS 失败的原因，或前面的派发 */
    if (code == CUBLAS_STATUS_SUCCESS) return true;
    return cuda_fail(b, code == CUBLAS_STATUS_ALLOC_FAILED ? ERR_MEMORY : ERR_DEVICE, "cuBLAS：%s 失败：%s（%s）", what,
                     cublasGetStatusString(code), cublasGetStatusName(code));
}

static void op_read_(Backend *b, void *host, const void *src, size_t bytes) {
    if (cuda_ok(b, cudaMemcpyAsync(host, src, bytes, cudaMemcpyDefault, STREAM(b)), "读出"))
        cuda_ok(b, cudaStreamSynchronize(STREAM(b)), "等待");
}
static void op_write_(Backend *b, void *dst, const void *host, size_t bytes) {
    cuda_upload(b, dst, host, bytes);
}
static void op_copy_(Backend *b, void *dst, const void *src, size_t bytes) {
    char *d = (char *)dst;
    const char *s = (const char *)src;
    cuda_unchain(b); /* 复制的可能是缓存：后面的内核不可提早去读 */
    bool overlap = d < s + bytes && s < d + bytes;
    if (overlap && d != s) { /* 经工作区 */
        void *tmp = cuda_slot(b, SLOT_Z, bytes);
        if (!tmp || !cuda_ok(b, cudaMemcpyAsync(tmp, s, bytes, cudaMemcpyDefault, STREAM(b)), "复制")) return;
        s = (const char *)tmp;
    }
    if (d != s) cuda_ok(b, cudaMemcpyAsync(d, s, bytes, cudaMemcpyDefault, STREAM(b)), "复制");
}
static void op_copy_2d_(Backend *b, void *dst, size_t dst_step, const void *src, size_t src_step, int64_t n,
                        size_t bytes) {
    cuda_unchain(b);
    cuda_ok(b, cudaMemcpy2DAsync(dst, dst_step, src, src_step, bytes, (size_t)n, cudaMemcpyDefault, STREAM(b)),
            "复制矩形");
}
static void op_parallel_(Backend *b, int64_t n, void (*fn)(void *ctx, int64_t task), void *ctx) {
    b->host->ops->parallel(b->host, n, fn, ctx);
}

/* ---- 统计 ---- */

__global__ static void symmetrize_kernel(float *g, int64_t d) {
    EACH(i, d * d) if (i % d < i / d) g[i] = g[i % d * d + i / d];
}
static void op_symmetrize_(Backend *b, float *g, int64_t d) {
    /* cuBLAS 的 gram 写了满矩阵；按定义以上三角为准 */
    symmetrize_kernel<<<cuda_blocks(d * d, 256), 256, 0, STREAM(b)>>>(g, d);
    LAUNCHED(b, "symmetrize");
}
/* 各行分成若干段，每段写自己的最大与和；再按段的次序合并。 */
__global__ static void column_parts_kernel(float *max, double *sum, const float *x, int64_t n, int64_t cols) {
    int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, per = (n + gridDim.y - 1) / gridDim.y;
    int64_t r0 = blockIdx.y * per, r1 = r0 + per < n ? r0 + per : n, at = blockIdx.y * cols + c;
    if (c >= cols) return;
    float m = 0;
    double s = 0;
    for (int64_t r = r0; r < r1; r++) {
        float v = fabsf(x[r * cols + c]);
        if (v > m) m = v;
        s += (double)v;
    }
    max[at] = m, sum[at] = s;
}
__global__ static void column_merge_kernel(float *max, double *sum, const float *max_part, const double *sum_part, int parts,
                                           int64_t cols) {
    EACH(c, cols) {
        float m = max ? max[c] : 0;
        double s = sum ? sum[c] : 0;
        for (int p = 0; p < parts; p++) {
            if (max_part[p * cols + c] > m) m = max_part[p * cols + c];
            s += sum_part[p * cols + c];
        }
        if (max) max[c] = m;
        if (sum) sum[c] = s;
    }
}
static void op_column_stats_(Backend *b, float *max, double *sum, const float *x, int64_t n, int64_t cols) {
    int64_t parts = n / 64 < 1 ? 1 : n / 64 > 64 ? 64 : n / 64;
    double *sum_part = (double *)cuda_slot(b, SLOT_A, (size_t)(parts * cols) * 12);
    float *max_part = (float *)(sum_part + parts * cols);
    if (!sum_part) return;
    dim3 grid((unsigned)((cols + 127) / 128), (unsigned)parts);
    column_parts_kernel<<<grid, 128, 0, STREAM(b)>>>(max_part, sum_part, x, n, cols);
    column_merge_kernel<<<cuda_blocks(cols, 128), 128, 0, STREAM(b)>>>(max, sum, max_part, sum_part, (int)parts, cols);
    LAUNCHED(b, "column_stats");
}
__global__ static void column_sum_kernel(float *y, const float *x, int64_t n, int64_t cols) {
    EACH(c, cols) {
        float s = 0;
        for (int64_t r = 0; r < n; r++) s = __fadd_rn(s, x[r * cols + c]);
        y[c] = s;
    }
}
static void op_column_sum_(Backend *b, float *y, const float *x, int64_t n, int64_t cols) {
    column_sum_kernel<<<cuda_blocks(cols, 32), 32, 0, STREAM(b)>>>(y, x, n, cols);
    LAUNCHED(b, "column_sum");
}

enum { SUM_PARTS = 512 };
/* 一行分给若干块，各写一个部分和（次序固定）；kind 1：d = scale·(x−y)，平方用 f32。 */
__global__ static void error_kernel(double *part, float *d, const float *x, const float *y, int64_t ldy, int64_t cols,
                                    float scale) {
    __shared__ double sh[256];
    int64_t r = blockIdx.y;
    double sum = 0;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < cols; i += (int64_t)gridDim.x * blockDim.x) {
        if (d) {
            float e = __fadd_rn(x[r * cols + i], -y[r * ldy + i]);
            sum += (double)__fmul_rn(e, e);
            d[r * cols + i] = scale * e;
        } else {
            double e = (double)x[r * cols + i] - (double)y[r * ldy + i];
            sum += e * e;
        }
    }
    sum = block_sum(sum, sh);
    if (threadIdx.x == 0) part[r * gridDim.x + blockIdx.x] = sum;
}
/* out（主机）的 rows 个和。 */
static bool row_sums(Backend *b, double *out, float *d, const float *x, const float *y, int64_t ldy, int64_t rows,
                     int64_t cols, float scale) {
    int64_t per = cols > 65536 ? SUM_PARTS : 1, step = 32768;
    double *part = (double *)cuda_slot(b, SLOT_Z, (size_t)(rows * per) * 8);
    double *host = (double *)malloc((size_t)(rows * per) * 8);
    bool ok = part && host;
    for (int64_t r = 0; ok && r < rows; r += step) {
        int64_t n = rows - r < step ? rows - r : step;
        dim3 grid((unsigned)per, (unsigned)n);
        error_kernel<<<grid, 256, 0, STREAM(b)>>>(part + r * per, d ? d + r * cols : NULL, x + r * cols, y + r * ldy, ldy,
                                                  cols, scale);
        ok = LAUNCHED(b, "误差");
    }
    if (ok) op_read_(b, host, part, (size_t)(rows * per) * 8);
    for (int64_t r = 0; ok && r < rows; r++) {
        out[r] = 0;
        for (int64_t i = 0; i < per; i++) out[r] += host[r * per + i];
    }
    if (!host) cuda_fail(b, ERR_MEMORY, "内存不足");
    free(host);
    return ok;
}
static void op_row_errors_(Backend *b, double *out, const float *x, const float *y, int64_t ldy, int64_t rows,
                           int64_t cols) {
    row_sums(b, out, NULL, x, y, ldy, rows, cols, 0);
}
static double op_mse_grad_(Backend *b, float *d, const float *x, const float *y, float scale, int64_t rows,
                           int64_t cols) {
    double *out = (double *)malloc((size_t)rows * 8), sum = 0;
    if (!out) cuda_fail(b, ERR_MEMORY, "内存不足");
    bool ok = out && row_sums(b, out, d, x, y, cols, rows, cols, scale);
    for (int64_t r = 0; ok && r < rows; r++) sum += out[r];
    free(out);
    return ok ? sum : NAN;
}
__global__ static void finite_kernel(int *bad, const float *x, int64_t n) {
    bool mine = false;
    EACH(i, n) mine |= !isfinite(x[i]);
    if (mine) *bad = 1;
}
static bool op_all_finite_(Backend *b, const float *x, int64_t n) {
    int *flag = (int *)cuda_slot(b, SLOT_HOST, 4), bad = 0;
    if (!flag || !cuda_ok(b, cudaMemsetAsync(flag, 0, 4, STREAM(b)), "清零")) return true;
    finite_kernel<<<cuda_blocks(n, 1024), 256, 0, STREAM(b)>>>(flag, x, n);
    if (LAUNCHED(b, "all_finite")) op_read_(b, &bad, flag, 4);
    return !bad;
}
__global__ static void watch_kernel(int *watched, const float *x, int64_t n, int tag) {
    bool mine = false;
    grid_release();
    grid_wait();
    EACH(i, n) mine |= !isfinite(x[i]);
    if (mine) atomicMin(watched, tag);
}
static void op_watch_(Backend *b, const float *x, int64_t n, int tag) {
    if (persistent_watch(b, x, n, tag)) return;
    launch_early(b, watch_kernel, dim3(cuda_blocks(n, 1024)), dim3(256), 0, cuda_of(b)->watched, x, n, tag);
    LAUNCHED(b, "watch");
}
static const int NOTHING = INT_MAX;
static int op_watched_(Backend *b) {
    int tag = NOTHING;
    op_read_(b, &tag, cuda_of(b)->watched, sizeof tag);
    if (tag == NOTHING) return -1;
    op_write_(b, cuda_of(b)->watched, &NOTHING, sizeof NOTHING);
    return tag;
}
/* 块 (列段, 行)；n 个 s 循环使用。 */
__global__ static void divide_kernel(float *y, const float *x, int64_t ldx, const float *s, unsigned n, int64_t rows,
                                     int64_t cols) {
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t r = blockIdx.y; r < rows; r += gridDim.y)
        for (int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; c < cols; c += step)
            y[r * cols + c] = __fdiv_rn(x[r * ldx + c], s[(uint64_t)c < n ? c : (uint32_t)c % n]);
}
static void op_divide_(Backend *b, float *y, const float *x, int64_t ldx, const float *s, int64_t n, int64_t rows,
                       int64_t cols) {
    dim3 grid((unsigned)((cols + 255) / 256 < 4096 ? (cols + 255) / 256 : 4096), (unsigned)(rows < 65535 ? rows : 65535));
    divide_kernel<<<grid, 256, 0, STREAM(b)>>>(y, x, ldx, s, (unsigned)n, rows, cols);
    LAUNCHED(b, "divide");
}
__global__ static void gather_kernel(float *dst, const float *src, const int32_t *index, int64_t rows, int64_t n) {
    EACH(i, rows * n) {
        int32_t k = index[i % n];
        dst[i] = k < 0 ? 0 : src[i / n * n + k];
    }
}
static void op_gather_columns_(Backend *b, float *dst, const float *src, const int32_t *index, int64_t rows, int64_t n) {
    int32_t *d = (int32_t *)cuda_slot(b, SLOT_HOST, (size_t)n * 4);
    if (!d) return;
    op_write_(b, d, index, (size_t)n * 4);
    gather_kernel<<<cuda_blocks(rows * n, 256), 256, 0, STREAM(b)>>>(dst, src, d, rows, n);
    LAUNCHED(b, "gather_columns");
}
__global__ static void adamw_kernel(AdamStep t) {
    EACH(i, t.n) {
        float g = t.grad[i];
        float m = __fadd_rn(t.m[i], __fmul_rn(t.rate1, __fadd_rn(g, -t.m[i])));
        float v = __fadd_rn(__fmul_rn(t.v[i], t.beta2), __fmul_rn(t.rate2, __fmul_rn(g, g)));
        float denom = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), t.root), t.eps);
        t.m[i] = m, t.v[i] = v;
        t.param[i] = __fadd_rn(__fmul_rn(t.param[i], t.keep), -__fmul_rn(t.size, __fdiv_rn(m, denom)));
    }
}
static void op_adamw_(Backend *b, const AdamStep *step) {
    adamw_kernel<<<cuda_blocks(step->n, 256), 256, 0, STREAM(b)>>>(*step);
    LAUNCHED(b, "adamw");
}

static void cuda_close(Backend *b) {
    CudaBackend *c = cuda_of(b);
    if (!c) return;
    c->queued = 0; /* 没人要的 */
    persistent_close(c);
    profile_close(c);
    uploader_close(c);
    if (c->watched) cudaFreeAsync(c->watched, c->stream);
    if (c->counters) cudaFreeAsync(c->counters, c->stream);
    if (c->solver) cusolverDnDestroy(c->solver);
    if (c->blas) cublasDestroy(c->blas);
    memory_close(c);
    free(c);
    b->impl = NULL;
}

static BackendOps table(void) {
    BackendOps t = {};
    t.read = op_read_, t.write = op_write_, t.copy = op_copy_, t.copy_2d = op_copy_2d_, t.parallel = op_parallel_;
    t.symmetrize = op_symmetrize_, t.column_stats = op_column_stats_, t.column_sum = op_column_sum_;
    t.row_errors = op_row_errors_, t.mse_grad = op_mse_grad_, t.all_finite = op_all_finite_,
    t.decode = cuda_decode_weights, t.watch = op_watch_, t.watched = op_watched_, t.factor = cuda_factor, t.divide = op_divide_;
    t.gather_columns = op_gather_columns_, t.adamw = op_adamw_, t.update_rest = cuda_update_rest;
    t.linear = cuda_linear, t.linear_exact = cuda_linear_exact, t.linear_int8 = cuda_linear_int8;
    t.linear_rounded = cuda_linear_rounded;
    t.round_act = cuda_round_act, t.embed = cuda_embed, t.pack_dense = cuda_pack_dense, t.pack_stored = cuda_pack_stored, t.quantize = cuda_quantize;
    t.dequantize = cuda_dequantize, t.qparams = cuda_qparams, t.gram = cuda_gram, t.feedback = cuda_feedback;
    t.matmul = cuda_matmul, t.norm = cuda_norm, t.rope = cuda_rope, t.activate = cuda_activate, t.add = cuda_add;
    t.multiply = cuda_multiply, t.gather_rows = cuda_gather_rows, t.scatter_rows = cuda_scatter_rows;
    t.attention = cuda_attention, t.kv_write = cuda_kv_write, t.attend_step = cuda_attend_step;
    t.attend_prefill = cuda_attend_prefill, t.prefill_accepts = cuda_prefill_accepts, t.kv_quantize = cuda_kv_quantize;
    t.score = cuda_score;
    t.rmsnorm_grad = cuda_rmsnorm_grad, t.silu_mul_grad = cuda_silu_mul_grad, t.attention_grad = cuda_attention_grad;
    t.round_act_grad = cuda_round_act_grad, t.score_grad = cuda_score_grad, t.group_range = cuda_group_range;
    t.group_range_grad = cuda_group_range_grad, t.scale = cuda_scale, t.scale_grad = cuda_scale_grad;
    t.fake_quant = cuda_fake_quant, t.fake_quant_grad = cuda_fake_quant_grad;
    t.divide_rows = cuda_divide_rows, t.quadratic = cuda_quadratic, t.clip = cuda_clip;
    t.clamp_grid = cuda_clamp_grid, t.clamp_grid_grad = cuda_clamp_grid_grad, t.fake_pack = cuda_fake_pack;
    t.linear_grad = cuda_linear_grad, t.sparse = cuda_sparse, t.column_variance = cuda_column_variance;
    t.count_outliers = cuda_count_outliers, t.split_outliers = cuda_split_outliers;
    return t;
}

static void version(char *out, size_t cap, int v) {
    snprintf(out, cap, "%d.%d", v / 1000, v % 1000 / 10);
}
/* 设备 0 的身份；没有可用的 GPU 时报错。 */
static bool describe(Backend *b) {
    CudaBackend *c = cuda_of(b);
    cudaDeviceProp p;
    int n = 0, driver = 0, runtime = 0;
    cudaError_t code = cudaGetDeviceCount(&n);
    if (code != cudaSuccess || n == 0)
        return cuda_fail(b, ERR_UNSUPPORTED, "device=cuda：没有可用的 GPU（%s）：请看 nvidia-smi，或改用 --device cpu",
                         code == cudaSuccess ? "个数是 0" : cudaGetErrorName(code));
    if (!cuda_ok(b, cudaSetDevice(0), "选 GPU") || !cuda_ok(b, cudaGetDeviceProperties(&p, 0), "查 GPU")) return false;
    if (!cuda_ok(b, cudaDriverGetVersion(&driver), "查驱动") || !cuda_ok(b, cudaRuntimeGetVersion(&runtime), "查 CUDA"))
        return false;
    snprintf(c->device.name, sizeof c->device.name, "%s", p.name);
    version(c->device.driver, sizeof c->device.driver, driver);
    version(c->device.cuda, sizeof c->device.cuda, runtime);
    FILE *f = fopen("/proc/driver/nvidia/version", "r"); /* 驱动自己的版本号，如 580.159.04 */
    char line[256];
    if (f && fgets(line, sizeof line, f))
        for (char *word = strtok(line, " "); word; word = strtok(NULL, " "))
            if (word[0] >= '0' && word[0] <= '9' && strchr(word, '.')) {
                snprintf(c->device.driver, sizeof c->device.driver, "%.20s", word);
                break;
            }
    if (f) fclose(f);
    c->device.memory = p.totalGlobalMem;
    c->sms = p.multiProcessorCount, c->shared = (int)p.sharedMemPerBlockOptin, c->early = p.major >= 9;
    snprintf(c->isa, sizeof c->isa, "sm_%d%d", p.major, p.minor);
    int pools = 0;
    if (!cuda_ok(b, cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, 0), "查 GPU")) return false;
    if (p.major < 8 || !pools)
        return cuda_fail(b, ERR_UNSUPPORTED, "device=cuda：%s（sm_%d%d）太旧，要 sm_80 以上：请改用 --device cpu", p.name,
                         p.major, p.minor);
    return true;
}

static bool open_device(Backend *b) {
    CudaBackend *c = cuda_of(b);
    if (!describe(b) || !cuda_ok(b, cudaFree(NULL), "建立上下文")) return false;
    return memory_open(b) &&
           cuda_ok(b, cudaMallocAsync((void **)&c->watched, sizeof *c->watched, c->stream), "显存") &&
           cuda_ok(b, cudaMemcpyAsync(c->watched, &NOTHING, sizeof NOTHING, cudaMemcpyHostToDevice, c->stream), "写入") &&
           cuda_ok(b, cudaMallocAsync((void **)&c->counters, COUNTERS * sizeof(int), c->stream), "显存") &&
           cuda_ok(b, cudaMemsetAsync(c->counters, 0, COUNTERS * sizeof(int), c->stream), "清零") &&
           cuda_blas_ok(b, cublasCreate(&c->blas), "打开 cuBLAS") &&
           cuda_blas_ok(b, cublasSetStream(c->blas, c->stream), "设置流") && persistent_open(b) &&
           cuda_blas_ok(b, cublasSetMathMode(c->blas, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION), "精度");
}

#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT const int ptq_cuda_version;
EXPORT bool ptq_cuda_open(Backend *b, Backend *host, ComputeMode compute, Err *e);
const int ptq_cuda_version = PTQ_CUDA_PLUGIN;

bool ptq_cuda_open(Backend *b, Backend *host, ComputeMode compute, Err *e) {
    static BackendOps ops;
    ops = table();
    memset(b, 0, sizeof *b);
    CudaBackend *c = (CudaBackend *)calloc(1, sizeof *c);
    if (!c) {
        e->code = ERR_MEMORY;
        snprintf(e->msg, sizeof e->msg, "内存不足");
        return false;
    }
    b->ops = &ops, b->name = "cuda", b->isa = c->isa, b->compute = compute, b->n_threads = host->n_threads;
    b->impl = c, b->separate = true, b->batch_rows = 8192, b->host = host, b->device = &c->device, b->half_step = compute == COMPUTE_BF16 ? 9 : 0; /* 更少的由 gemv.cu 自己化成 bf16 */
    b->close = cuda_close;
    c->self = b;
    if (open_device(b)) {
        profile_open(c);
        return true;
    }
    *e = b->err;
    cuda_close(b);
    return false;
}
