/* round_act — 激活就地取整成 FP8、LLM.int8 的混合，与取整后照常相乘的线性层
 * 公式与 CPU 的 round_act.c 相同，逐位一致（整数的在 linear_int8.cu）。 */
#include "compute/cuda/cuda.h"

struct Rounding {
    float *x;
    int64_t d;
    int kind;
    float fixed, threshold;
    float *row;     /* (n) F8、TENSOR：各行的 max|x|，然后是共同的 s */
    uint8_t *apart; /* (d) MIXED */
};

/* 一块一行的 max|x|，NaN、Inf 成 NaN。 */
__device__ static float row_max(const float *x, int64_t d, float *sh) {
    float m = 0;
    for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
        float v = fabsf(x[i]);
        v += v - v;
        if (!(v <= m) && m == m) m = v;
    }
    return block_max(m, sh);
}
__device__ static float f8_scale(float max) {
    return max == 0 ? 1.0f : __fdiv_rn(max, 448.0f);
}
__device__ static float f8_nearest(float x) {
    uint32_t u = __float_as_uint(x), magnitude = u & 0x7FFFFFFFu, sign = u ^ magnitude;
    uint32_t normal = (magnitude + 0x7FFFFu + (magnitude >> 20 & 1)) & 0xFFF00000u;
    float a = __uint_as_float(magnitude), tiny = __fadd_rn(__fadd_rn(a, 24576.0f), -24576.0f);
    return __uint_as_float((a < 0.015625f ? __float_as_uint(tiny) : normal) | sign);
}
__global__ static void f8_max_kernel(Rounding j) {
    __shared__ float sh[256];
    float m = row_max(j.x + blockIdx.x * j.d, j.d, sh);
    if (!threadIdx.x) j.row[blockIdx.x] = m;
}
__global__ static void f8_common_kernel(Rounding j, int64_t n) {
    __shared__ float sh[256];
    float m = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
        if (!(j.row[i] <= m) && m == m) m = j.row[i];
    m = f8_scale(block_max(m, sh));
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) j.row[i] = m;
}
__global__ static void f8_kernel(Rounding j) {
    __shared__ float sh[256];
    float *x = j.x + blockIdx.x * j.d, s;
    if (j.kind == ACT_TENSOR) {
        s = j.row[blockIdx.x];
    } else {
        float m = row_max(x, j.d, sh);
        s = j.kind == ACT_TOKEN ? f8_scale(m) : j.fixed + (m - m);
    }
    for (int64_t i = threadIdx.x; i < j.d; i += blockDim.x) {
        float v = __fdiv_rn(x[i], s);
        v = v > 448.0f ? 448.0f : v < -448.0f ? -448.0f : v;
        x[i] = v == v ? __fmul_rn(f8_nearest(v), s) : v;
    }
}

__device__ static float half_of(float x) {
    return __half2float(__float2half_rn(x));
}
/* 一个线程一列。 */
__global__ static void apart_kernel(Rounding j, int64_t n) {
    EACH(c, j.d) {
        bool apart = false;
        for (int64_t r = 0; j.threshold > 0 && r < n; r++) apart |= fabsf(half_of(j.x[r * j.d + c])) >= j.threshold;
        j.apart[c] = apart;
    }
}
__global__ static void mixed_kernel(Rounding j) {
    __shared__ float sh[256];
    float *x = j.x + blockIdx.x * j.d, limit = j.threshold > 0 ? j.threshold : INFINITY, m = 0;
    for (int64_t i = threadIdx.x; i < j.d; i += blockDim.x) {
        float a = fabsf(half_of(x[i]));
        if (!(a <= m) && !(a >= limit) && m == m) m = a;
    }
    m = block_max(m, sh);
    float inverse = m == 0 ? 0 : __fdiv_rn(127.0f, m), s = __fmul_rn(m, 1.0f / 127);
    for (int64_t i = threadIdx.x; i < j.d; i += blockDim.x)
        if (!j.apart[i]) x[i] = __fmul_rn(rintf(__fmul_rn(half_of(x[i]), inverse)), s);
}

void cuda_round_values(Backend *b, float *x, int64_t n, int64_t d, const ActQuant *act) {
    Rounding j = {};
    j.x = x, j.d = d, j.kind = act->kind, j.fixed = act->scale, j.threshold = act->threshold;
    j.row = (float *)cuda_slot(b, SLOT_A, (size_t)n * sizeof(float) + (size_t)d);
    if (!j.row) return;
    j.apart = (uint8_t *)(j.row + n);
    if (act->form == ACT_MIXED) {
        apart_kernel<<<cuda_blocks(d, 256), 256, 0, STREAM(b)>>>(j, n);
        mixed_kernel<<<(unsigned)n, 256, 0, STREAM(b)>>>(j);
    } else {
        if (act->kind == ACT_TENSOR) {
            f8_max_kernel<<<(unsigned)n, 256, 0, STREAM(b)>>>(j);
            f8_common_kernel<<<1, 256, 0, STREAM(b)>>>(j, n);
        }
        f8_kernel<<<(unsigned)n, 256, 0, STREAM(b)>>>(j);
    }
    LAUNCHED(b, "round_act");
}

/* 输入先复制一份再取整：in->x 可能还有别人要读。 */
void cuda_linear_rounded(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n, const ActQuant *act) {
    int64_t cols = out[0].w->cols, width = act->group ? act->group : cols;
    LinearIn plain = {};
    float *x = (float *)cuda_slot(b, SLOT_ROUNDED, (size_t)(n * cols) * sizeof(float));
    const float *from = x ? cuda_input_f32(b, in, n, cols) : NULL;
    if (!from || b->err.code != ERR_NONE) return;
    b->ops->copy(b, x, from, (size_t)(n * cols) * sizeof(float));
    cuda_round_act(b, x, n * (cols / width), width, act);
    plain.x = x;
    cuda_linear(b, out, n_out, &plain, n);
}
