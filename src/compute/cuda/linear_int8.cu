/* linear_int8 — 激活取整与整数矩阵乘（W8A8） */
#include "compute/cuda/gemm.h"
#include "compute/cuda/input.h"
#include "compute/cuda/linear.h"

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
    if (act->form == ACT_F8 || act->form == ACT_MIXED) return cuda_round_values(b, x, n, d, act);
    float *s = act_scales(b, x, n, d, act);
    if (!s) return;
    round_act_kernel<<<cuda_blocks(n * d, 256), 256, 0, STREAM(b)>>>(x, s, n, d, (1 << (act->bits - 1)) - 1);
    LAUNCHED(b, "round_act");
}

/* 一行一块：由输入取值（归一化、激活函数当场算），定 s（ACT_TOKEN、ACT_STATIC），写 s8 编码（行距 ld，行尾补零）与它们的和。 */
struct Coded {
    Source in;
    const float *scale; /* ACT_TENSOR：已定 */
    int kind, top;
    float fixed;
};
/* max|x|，NaN 留住；Inf 也成 NaN。 */
__device__ static void widen(float *m, float x) {
    float a = fabsf(x);
    a += a - a;
    if (!(a <= *m) && *m == *m) *m = a;
}
__device__ static float coded_scale(const Coded &c, float m) {
    return c.kind == ACT_TOKEN ? __fmul_rn(m < 1e-5f ? 1e-5f : m, 1.0f / (float)c.top) : c.fixed + (m - m);
}
__global__ static void act_codes_kernel(int8_t *dst, float *scale, int32_t *sum, Coded c) {
    __shared__ float sh[256];
    __shared__ int si[256];
    __shared__ double sd[32];
    const Source &in = c.in;
    int64_t base = blockIdx.x * in.cols, at = 0;
    float s = c.kind == ACT_TENSOR ? c.scale[blockIdx.x] : c.fixed, mean = 0, r = 0;
    if (in.kind == IN_NORM) {
        norm_stats(in.x + base, in.cols, in.norm, sd, &mean, &r);
        at = blockIdx.x % in.norm.period * in.cols;
    }
    auto value = [&](int64_t k) {
        float v = in.kind == IN_ACTIVATE ? gated_at(in.act, base + k) : in.x[base + k];
        return in.kind == IN_NORM ? norm_at(v, in.norm, at + k, mean, r) : v;
    };
    if (c.kind != ACT_TENSOR) {
        float m = 0;
        for (int64_t i = threadIdx.x; i < in.cols; i += blockDim.x) widen(&m, value(i));
        s = coded_scale(c, block_max(m, sh));
        if (threadIdx.x == 0) scale[blockIdx.x] = s;
    }
    int total = 0;
    for (int64_t k = (int64_t)threadIdx.x * 4; k < in.ld; k += blockDim.x * 4) {
        uint32_t word = 0;
        for (int i = 0; i < 4; i++) {
            if (k + i >= in.cols) break;
            int code = (int)act_code(value(in.perm ? in.perm[k + i] : k + i), s, c.top);
            word |= (uint32_t)(code & 255) << 8 * i;
            total += code;
        }
        *(uint32_t *)(dst + blockIdx.x * in.ld + k) = word;
    }
    total = block_sum(total, si);
    if (threadIdx.x == 0) sum[blockIdx.x] = total;
}
/* 同 act_code：乘倒数与除法至多差 2^-15，离两个整数的正中不近时取整相同。 */
__device__ static int quick_code(float x, float s, float inverse, int top) {
    float t = x * inverse, c = rintf(t);
    if (!(fabsf(fabsf(t - c) - 0.5f) > 0x1p-10f)) c = rintf(__fdiv_rn(x, s)); /* 也接住 NaN */
    return (int)(c < (float)(-top - 1) ? (float)(-top - 1) : c > (float)top ? (float)top : c);
}
/* 同上，整行在寄存器里。 */
template <int FOURS, bool NORM>
__global__ ROW_BOUNDS(FOURS, NORM) static void act_rows_codes_kernel(int8_t *dst, float *scale, int32_t *sum, Coded c) {
    __shared__ double sd[32];
    __shared__ float sm[ROW_THREADS / 32];
    __shared__ int st[ROW_THREADS / 32];
    float v[FOURS][4], s = c.kind == ACT_TENSOR ? c.scale[blockIdx.x] : 0;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, total = 0;
    load_row<FOURS, NORM>(c.in, v, sd);
    if (c.kind != ACT_TENSOR) {
        float m = 0;
#pragma unroll
        for (int i = 0; i < 4 * FOURS; i++) widen(&m, v[i / 4][i % 4]);
        for (int o = 16; o; o /= 2) widen(&m, __shfl_xor_sync(0xFFFFFFFFu, m, o));
        if (lane == 0) sm[warp] = m;
        __syncthreads();
        m = sm[lane % (ROW_THREADS / 32)];
        for (int o = 8; o; o /= 2) widen(&m, __shfl_xor_sync(0xFFFFFFFFu, m, o));
        s = coded_scale(c, m);
        if (threadIdx.x == 0) scale[blockIdx.x] = s;
    }
    float inverse = 1.0f / s;
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        uint32_t word = 0;
        if (four_at(i) >= c.in.ld) break;
        for (int k = 0; k < 4; k++) {
            int code = four_at(i) < c.in.cols ? quick_code(v[i][k], s, inverse, c.top) : 0;
            word |= (uint32_t)(code & 255) << 8 * k;
            total += code;
        }
        *(uint32_t *)(dst + blockIdx.x * c.in.ld + four_at(i)) = word;
    }
    total = __reduce_add_sync(0xFFFFFFFFu, total);
    if (lane == 0) st[warp] = total;
    __syncthreads();
    if (threadIdx.x) return;
    for (int w = 1; w < ROW_THREADS / 32; w++) total += st[w];
    sum[blockIdx.x] = total;
}
/* 面板 → 行主序的 码 − 128：一个线程一行里的 8 列。 */
__global__ static void codes_kernel(View v, int8_t *dst, int64_t ld) {
    int unit = blockIdx.x * blockDim.x + threadIdx.x, t = unit % 4, lane = unit / 4 % QT_PANEL, block = unit / 64;
    int blocks = (int)v.blocks, k0 = block % blocks * QT_KBLOCK + 8 * t;
    int64_t row = (int64_t)(block / blocks) * QT_PANEL + lane;
    if (row >= v.rows) return;
    Octet<8> o = load_octet<8>((const uint32_t *)v.data + (int64_t)block * 8 * QT_PANEL, lane, t);
    *(uint2 *)(dst + row * ld + k0) = make_uint2(o.w[0] ^ 0x80808080u, o.w[1] ^ 0x80808080u);
}
__device__ static float int8_value(const View &v, int64_t r, int acc, int sum, float s) {
    int z = v.zero_kind == ZERO_SYM ? 0 : (int)((const uint8_t *)v.zeros)[r] - 128;
    return __fmul_rn((float)(acc - z * sum), __fmul_rn(real_at(v.scales, v.scale_type, r), s));
}
struct Int8Out {
    View v; /* 整行一组：scales、zeros 按行相接 */
    void *y;
    const float *bias;
    bool half, add;
};
__global__ static void int8_out_kernel(Int8Out o, const int32_t *acc, const int32_t *sum, const float *s) {
    int rows = (int)o.v.rows, t = blockIdx.y;
    for (int r = blockIdx.x * blockDim.x + threadIdx.x; r < rows; r += gridDim.x * blockDim.x) {
        int64_t i = (int64_t)t * rows + r;
        float y = int8_value(o.v, r, acc[i], sum[t], s[t]);
        if (o.bias) y = __fadd_rn(y, o.bias[r]);
        if (o.half)
            ((__nv_bfloat16 *)o.y)[i] = __float2bfloat16_rn(y);
        else
            ((float *)o.y)[i] = o.add ? ((float *)o.y)[i] + y : y;
    }
}
/* 输入的编码：SLOT_A 是 s 与和，SLOT_X 是编码。 */
static bool code_input(Backend *b, const LinearIn *in, int64_t n, int64_t cols, int64_t ld, const int32_t *perm,
                       const ActQuant *act) {
    bool whole = act->kind == ACT_TENSOR; /* 要先看过全部 */
    const float *x = whole ? cuda_input_f32(b, in, n, cols) : in->x;
    float *s = whole ? act_scales(b, x, n, cols, act) : (float *)cuda_slot(b, SLOT_A, (size_t)n * 8);
    int8_t *codes = (int8_t *)cuda_slot(b, SLOT_X, (size_t)((n + 3) / 4 * 4 * ld));
    if (!s || !codes) return false;
    LinearIn plain = {};
    plain.x = x;
    Coded c = {};
    c.in = source_of(b, whole ? &plain : in, n, cols, ld, perm);
    c.scale = s, c.kind = act->kind, c.top = (1 << (act->bits - 1)) - 1, c.fixed = act->scale;
    int32_t *sum = (int32_t *)(s + n);
    int fours = row_fours(c.in);
    if (fours) {
        auto kernel = ROW_KERNEL(act_rows_codes_kernel, fours, c.in.kind == IN_NORM);
        kernel<<<(unsigned)n, ROW_THREADS, 0, STREAM(b)>>>(codes, s, sum, c);
    } else {
        act_codes_kernel<<<(unsigned)n, 256, 0, STREAM(b)>>>(codes, s, sum, c);
    }
    return LAUNCHED(b, "int8 编码");
}
/* 各权重行主序的 码 − 128，依次放进 SLOT_W。 */
static bool codes_of(Backend *b, GemmCall *c, const LinearOut *out) {
    int64_t rows = 0;
    for (int i = 0; i < c->n_out; i++) rows += out[i].w->rows;
    int8_t *to = (int8_t *)cuda_slot(b, SLOT_W, (size_t)(rows * c->ldx));
    for (int i = 0; to && i < c->n_out; i++) {
        View v = view_of(out[i].w);
        int64_t units = ((v.rows - 1) / QT_PANEL + 1) * v.blocks * 64;
        codes_kernel<<<(unsigned)((units + 255) / 256), 256, 0, STREAM(b)>>>(v, to, c->ldx);
        if (!LAUNCHED(b, "int8 权重")) return false;
        c->out[i].w = to, c->out[i].ldw = c->ldx, to += v.rows * c->ldx;
    }
    return to != NULL;
}
/* cuBLAS 与单独的一趟尾声。 */
static bool int8_one(Backend *b, const LinearOut *out, const GemmCall *c, const int8_t *w) {
    int64_t rows = out->w->rows, n = c->n;
    int32_t *acc = (int32_t *)cuda_slot(b, SLOT_Z, (size_t)((n + 3) / 4 * 4 * rows) * 4);
    const int32_t one = 1, zero = 0;
    if (!acc || !cuda_blas_ok(b, cublasGemmEx(cuda_blas(b), CUBLAS_OP_T, CUBLAS_OP_N, (int)rows, (int)n, (int)c->ldx, &one,
                                              w, CUDA_R_8I, (int)c->ldx, c->x, CUDA_R_8I, (int)c->ldx, &zero, acc, CUDA_R_32I,
                                              (int)rows, CUBLAS_COMPUTE_32I, CUBLAS_GEMM_DEFAULT), "整数矩阵乘"))
        return false;
    Int8Out o = {};
    o.v = view_of(out->w), o.y = out->y, o.bias = out->bias, o.half = c->form == GEMM_BF16, o.add = out->sum != NULL;
    for (int64_t t = 0; t < n; t += 32768) { /* grid.y 的上限 */
        dim3 grid((unsigned)((rows + 255) / 256), (unsigned)(n - t < 32768 ? n - t : 32768));
        Int8Out part = o;
        part.y = (char *)o.y + t * rows * (o.half ? 2 : 4);
        int8_out_kernel<<<grid, 256, 0, STREAM(b)>>>(part, acc + t * rows, (const int32_t *)(c->x_scale + n) + t, c->x_scale + t);
    }
    return LAUNCHED(b, "linear_int8");
}
/* 列序相同的几个（不多于 GEMM_OUT_MAX）；输入的编码已备好。 */
static bool int8_many(Backend *b, const LinearOut *out, int n_out, int64_t n, int64_t ld) {
    GemmCall c = {};
    bool symmetric = true, ok = true;
    c.int8 = true, c.x = cuda_slot(b, SLOT_X, 1), c.x_scale = (const float *)cuda_slot(b, SLOT_A, 1), c.ldx = ld, c.n = n, c.cols = ld;
    c.n_out = n_out, c.f = out[0].f;
    for (int i = 0; i < n_out; i++) {
        const QTensor *w = out[i].w;
        GemmOut *o = &c.out[i];
        o->rows = w->rows, o->y = out[i].y, o->bias = out[i].bias, o->add = out[i].sum != NULL;
        o->scale = w->scales, o->scale_type = w->spec.scale_dtype;
        symmetric = symmetric && w->spec.zero == ZERO_SYM;
    }
    if (!codes_of(b, &c, out)) return false;
    gemm_choose(b, &c, out[0].opaque && cuda_opaque(b, n), symmetric);
    if (out[0].half) c.form = GEMM_BF16;
    if (symmetric && gemm_accepts(b, &c)) return gemm_run(b, &c);
    for (int i = 0; ok && i < n_out; i++) ok = int8_one(b, &out[i], &c, (const int8_t *)c.out[i].w);
    return ok;
}
void cuda_linear_int8(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n, const ActQuant *act) {
    int64_t cols = out[0].w->cols, ld = (cols + 31) / 32 * 32;
    if (out[0].opaque) cuda_of(b)->product = false;
    for (int i = 0, k; i < n_out; i = k) {
        const int32_t *perm = out[i].w->perm;
        for (k = i + 1; k < n_out && k - i < GEMM_OUT_MAX && out[k].w->perm == perm && same_form(&out[k], &out[i]);) k++;
        if ((i == 0 || perm || out[i - 1].w->perm) && !code_input(b, in, n, cols, ld, perm, act)) return;
        if (!int8_many(b, out + i, k - i, n, ld)) return;
    }
}
