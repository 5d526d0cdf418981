/* linear_int8 — 激活取整与整数矩阵乘（W8A8） */
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
    float *s = act_scales(b, x, n, d, act);
    if (!s) return;
    round_act_kernel<<<cuda_blocks(n * d, 256), 256, 0, STREAM(b)>>>(x, s, n, d, (1 << (act->bits - 1)) - 1);
    LAUNCHED(b, "round_act");
}

/* 一行一块：由 in 取值，定 s（ACT_TOKEN、ACT_STATIC），写 s8 编码（行距 ld，行尾补零）与它们的和。 */
struct Coded {
    const float *x;
    Gated act;
    bool gated;
    const float *scale; /* ACT_TENSOR：已定 */
    const int32_t *perm;
    int64_t cols, ld;
    int kind, top;
    float fixed;
};
__device__ static float coded_at(const Coded &c, int64_t i) {
    return c.gated ? gated_at(c.act, i) : c.x[i];
}
__global__ static void act_codes_kernel(int8_t *dst, float *scale, int32_t *sum, Coded c) {
    __shared__ float sh[256];
    __shared__ int si[256];
    int64_t base = blockIdx.x * c.cols;
    float s = c.kind == ACT_TENSOR ? c.scale[blockIdx.x] : c.fixed;
    if (c.kind != ACT_TENSOR) {
        float m = 0;
        for (int64_t i = threadIdx.x; i < c.cols; i += blockDim.x) {
            float v = fabsf(coded_at(c, base + i));
            v += v - v; /* Inf、NaN 都成 NaN */
            if (!(v <= m) && m == m) m = v; /* NaN 留住 */
        }
        m = block_max(m, sh);
        s = c.kind == ACT_TOKEN ? __fmul_rn(m < 1e-5f ? 1e-5f : m, 1.0f / (float)c.top) : c.fixed + (m - m);
        if (threadIdx.x == 0) scale[blockIdx.x] = s;
    }
    int total = 0;
    for (int64_t k = (int64_t)threadIdx.x * 4; k < c.ld; k += blockDim.x * 4) {
        uint32_t word = 0;
        for (int i = 0; i < 4; i++) {
            if (k + i >= c.cols) break;
            int code = (int)act_code(coded_at(c, base + (c.perm ? c.perm[k + i] : k + i)), s, c.top);
            word |= (uint32_t)(code & 255) << 8 * i;
            total += code;
        }
        *(uint32_t *)(dst + blockIdx.x * c.ld + k) = word;
    }
    total = block_sum(total, si);
    if (threadIdx.x == 0) sum[blockIdx.x] = total;
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
    bool gated = in->kind == IN_ACTIVATE && act->kind != ACT_TENSOR;
    const float *x = gated ? in->x : cuda_input_f32(b, in, n, cols);
    float *s = act->kind == ACT_TENSOR ? act_scales(b, x, n, cols, act) : (float *)cuda_slot(b, SLOT_A, (size_t)n * 8);
    int8_t *codes = (int8_t *)cuda_slot(b, SLOT_X, (size_t)((n + 3) / 4 * 4 * ld));
    if (!s || !codes) return false;
    Coded c = {};
    c.x = x, c.gated = gated, c.scale = s, c.perm = perm, c.cols = cols, c.ld = ld, c.kind = act->kind;
    c.act = gated_of(b, in, n);
    c.top = (1 << (act->bits - 1)) - 1, c.fixed = act->scale;
    act_codes_kernel<<<(unsigned)n, 256, 0, STREAM(b)>>>(codes, s, (int32_t *)(s + n), c);
    return LAUNCHED(b, "int8 编码");
}
static bool int8_one(Backend *b, const LinearOut *out, int64_t n, int64_t ld) {
    const QTensor *w = out->w;
    int64_t rows = w->rows, n4 = (n + 3) / 4 * 4;
    int8_t *wc = (int8_t *)cuda_slot(b, SLOT_W, (size_t)(rows * ld));
    int32_t *acc = (int32_t *)cuda_slot(b, SLOT_Z, (size_t)(n4 * rows) * 4);
    const float *s = (const float *)cuda_of(b)->slot[SLOT_A];
    if (!wc || !acc) return false;
    Int8Out o = {};
    o.v = view_of(w), o.y = out->y, o.bias = out->bias, o.half = out->opaque && cuda_opaque(b, n), o.add = out->sum != NULL;
    int64_t units = ((rows - 1) / QT_PANEL + 1) * o.v.blocks * 64;
    codes_kernel<<<(unsigned)((units + 255) / 256), 256, 0, STREAM(b)>>>(o.v, wc, ld);
    const int32_t one = 1, zero = 0;
    if (!LAUNCHED(b, "int8 权重") ||
        !cuda_blas_ok(b, cublasGemmEx(cuda_of(b)->blas, CUBLAS_OP_T, CUBLAS_OP_N, (int)rows, (int)n, (int)ld, &one, wc,
                                 CUDA_R_8I, (int)ld, cuda_of(b)->slot[SLOT_X], CUDA_R_8I, (int)ld, &zero, acc, CUDA_R_32I,
                                 (int)rows, CUBLAS_COMPUTE_32I, CUBLAS_GEMM_DEFAULT), "整数矩阵乘"))
        return false;
    for (int64_t t = 0; t < n; t += 32768) { /* grid.y 的上限 */
        dim3 grid((unsigned)((rows + 255) / 256), (unsigned)(n - t < 32768 ? n - t : 32768));
        Int8Out part = o;
        part.y = (char *)o.y + t * rows * (o.half ? 2 : 4);
        int8_out_kernel<<<grid, 256, 0, STREAM(b)>>>(part, acc + t * rows, (const int32_t *)(s + n) + t, s + t);
    }
    return LAUNCHED(b, "linear_int8");
}
void cuda_linear_int8(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n, const ActQuant *act) {
    int64_t cols = out[0].w->cols, ld = (cols + 31) / 32 * 32;
    if (out[0].opaque) cuda_of(b)->product = false;
    for (int i = 0; i < n_out; i++) {
        const int32_t *perm = out[i].w->perm;
        if ((i == 0 || perm || out[i - 1].w->perm) && !code_input(b, in, n, cols, ld, perm, act)) return;
        if (!int8_one(b, &out[i], n, ld)) return;
    }
}
