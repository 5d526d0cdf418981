/* elementwise_kernels — 逐元素、RMSNorm、RoPE 与 softmax 各趟
 * 尾部元素填进同样的 16 路向量里算，所以每个元素的舍入与它在行内的位置、任务的切分都无关。 */
#include "compute/cpu/elem_kernels.h"

#include <math.h>

#include "compute/cpu/isa/vec_math.h"
#include "compute/cpu/kernels.h"

static void rmsnorm_row(float *y, const float *x, const float *weight, int64_t d, float eps) {
    vf acc = vf_zero();
    for (int64_t i = 0; i < d; i += 16) {
        vf v = vf_load_n(x + i, d - i);
        acc = vf_fma(v, v, acc);
    }
    vf r = vf_set1(1.0f / sqrtf(vf_sum(acc) / (float)d + eps));
    for (int64_t i = 0; i < d; i += 16) {
        vf v = vf_mul(vf_load_n(x + i, d - i), r);
        if (weight) v = vf_mul(v, vf_load_n(weight + i, d - i));
        vf_store_n(y + i, v, d - i);
    }
}

static void layernorm_row(float *y, const float *x, const float *weight, const float *bias,
                          int64_t d, float eps) {
    vf sum = vf_zero(), square = vf_zero();
    for (int64_t i = 0; i < d; i += 16) sum = vf_add(sum, vf_load_n(x + i, d - i));
    vf mean = vf_set1(vf_sum(sum) / (float)d);
    for (int64_t i = 0; i < d; i += 16) {
        vf v = vf_sub(vf_load_n(x + i, d - i), mean);
        if (d - i < 16) v = vf_select(vu_first(d - i), v, vf_zero());
        square = vf_fma(v, v, square);
    }
    vf r = vf_set1(1.0f / sqrtf(vf_sum(square) / (float)d + eps));
    for (int64_t i = 0; i < d; i += 16) {
        vf v = vf_mul(vf_sub(vf_load_n(x + i, d - i), mean), r);
        if (weight) v = vf_mul(v, vf_load_n(weight + i, d - i));
        if (bias) v = vf_add(v, vf_load_n(bias + i, d - i));
        vf_store_n(y + i, v, d - i);
    }
}

static void rope_head(float *x, int64_t half, const float *cos_row, const float *sin_row) {
    for (int64_t i = 0; i < half; i += 16) {
        int64_t n = half - i;
        vf c = vf_load_n(cos_row + i, n), s = vf_load_n(sin_row + i, n);
        vf a = vf_load_n(x + i, n), b = vf_load_n(x + half + i, n);
        vf_store_n(x + i, vf_sub(vf_mul(a, c), vf_mul(b, s)), n);
        vf_store_n(x + half + i, vf_fma(b, c, vf_mul(a, s)), n);
    }
}

/* 与 rope_head 逐元素同样的运算，只是成对的位置不同。 */
static void rope_pairs(float *x, int64_t half, const float *cos_row, const float *sin_row) {
    for (int64_t i = 0; i < half; i += 16) {
        float a[16] = {0}, b[16] = {0};
        int64_t n = half - i < 16 ? half - i : 16;
        for (int64_t k = 0; k < n; k++) {
            a[k] = x[2 * (i + k)];
            b[k] = x[2 * (i + k) + 1];
        }
        vf c = vf_load_n(cos_row + i, n), s = vf_load_n(sin_row + i, n);
        vf p = vf_load(a), q = vf_load(b);
        vf_store(a, vf_sub(vf_mul(p, c), vf_mul(q, s)));
        vf_store(b, vf_fma(q, c, vf_mul(p, s)));
        for (int64_t k = 0; k < n; k++) {
            x[2 * (i + k)] = a[k];
            x[2 * (i + k) + 1] = b[k];
        }
    }
}

VEC_INLINE vf sigmoid_mul(vf x, vf k) {
    return vf_div(x, vf_add(vf_set1(1.0f), vf_exp(vf_sub(vf_zero(), vf_mul(x, k)))));
}
/* gelu 的 tanh 近似：x/2·(1+tanh(√(2/π)·(x+0.044715x³)))；负得多的 x 用 x·sigmoid(2u) 的形式避免相消 */
VEC_INLINE vf gelu_tanh(vf x) {
    vf u = vf_mul(vf_fma(vf_mul(vf_mul(x, x), x), vf_set1(0.044715f), x), vf_set1(1.5957691216f));
    return vf_div(x, vf_add(vf_set1(1.0f), vf_exp(vf_sub(vf_zero(), u))));
}
/* x·Φ(x)，Φ(−a) = erfc(a/√2)/2，见 vf_half_erfc */
VEC_INLINE vf gelu_erf(vf x) {
    vu sign = vu_and(vu_bits(x), vu_set1(0x80000000u));
    vf a = vf_bits(vu_xor(vu_bits(x), sign)), tail = vf_half_erfc(a);
    vf phi = vf_select(vf_less(x, vf_zero()), tail, vf_sub(vf_set1(1.0f), tail));
    return vf_mul(x, phi);
}

#define ACTIVATE(expr)                                                                             \
    for (int64_t i = 0; i < n; i += 16) {                                                          \
        vf g = vf_load_n(gate + i, n - i), r = (expr);                                             \
        if (up) r = vf_mul(r, vf_load_n(up + i, n - i));                                           \
        vf_store_n(y + i, r, n - i);                                                               \
    }

static void activate(float *y, const float *gate, const float *up, int64_t n, Activation f) {
    vf one = vf_set1(1.0f), zero = vf_zero();
    switch (f) {
    case ACTF_SILU: ACTIVATE(vf_div(g, vf_add(one, vf_exp(vf_sub(zero, g))))) break;
    case ACTF_GELU_ERF: ACTIVATE(gelu_erf(g)) break;
    case ACTF_GELU_TANH: ACTIVATE(gelu_tanh(g)) break;
    case ACTF_GELU_QUICK: ACTIVATE(sigmoid_mul(g, vf_set1(1.702f))) break;
    case ACTF_RELU: ACTIVATE(vf_select(vf_less(g, zero), zero, g)) break;
    }
}

static void add_scaled(float *y, const float *x, float a, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] += a * x[i];
}

static void multiply(float *y, const float *x, float a, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = a == 0 ? 0 : a * x[i];
}

static void add(float *y, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] += x[i];
}

static void softcap(float *z, int64_t n, float cap) {
    vf c = vf_set1(cap), inv = vf_set1(1.0f / cap);
    for (int64_t i = 0; i < n; i += 16) {
        vf t = vf_tanh(vf_mul(vf_load_n(z + i, n - i), inv));
        vf_store_n(z + i, vf_mul(t, c), n - i);
    }
}

static float max(const float *z, int64_t n) {
    vf lowest = vf_set1(-INFINITY), m = lowest;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) m = vf_max(vf_load(z + i), m);
    if (i < n) m = vf_max(vf_select(vu_first(n - i), vf_load_n(z + i, n - i), lowest), m);
    return vf_hmax(m);
}

static double sum_exp(const float *z, int64_t n, float m) {
    vf acc = vf_zero(), shift = vf_set1(m);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) acc = vf_add(acc, vf_exp(vf_sub(vf_load(z + i), shift)));
    if (i < n) {
        vf e = vf_exp(vf_sub(vf_load_n(z + i, n - i), shift));
        acc = vf_add(acc, vf_select(vu_first(n - i), e, vf_zero()));
    }
    return vf_sum_double(acc);
}

static double sum_exp_dot(const float *zp, const float *zq, int64_t n, float m, double *dot) {
    vf acc = vf_zero(), weighted = vf_zero(), shift = vf_set1(m);
    for (int64_t i = 0; i < n; i += 16) {
        vf p = vf_load_n(zp + i, n - i), d = vf_sub(p, vf_load_n(zq + i, n - i));
        vf e = vf_exp(vf_sub(p, shift));
        if (n - i < 16) e = vf_select(vu_first(n - i), e, vf_zero()); /* d 的尾部已是 0 */
        acc = vf_add(acc, e);
        weighted = vf_fma(e, d, weighted);
    }
    *dot = vf_sum_double(weighted);
    return vf_sum_double(acc);
}

static void feedback_rows(float *w, float *err, int64_t n, const float *u, int64_t ldu, int rows,
                          const float *scale, const float *zero, int64_t n_groups,
                          const int32_t *group, float maxq) {
    float s16[16] = {0}, z16[16] = {0};
    vf s = vf_zero(), z = s, none = s, top = vf_set1(maxq);
    for (int64_t i = 0; i < n; i++) {
        const float *row = u + i * ldu;
        if (i == 0 || group[i] != group[i - 1]) {
            for (int r = 0; r < rows; r++) {
                s16[r] = scale[r * n_groups + group[i]];
                z16[r] = zero[r * n_groups + group[i]];
            }
            s = vf_load(s16);
            z = vf_load(z16);
        }
        vf x = vf_load(w + i * 16), q = vf_add(vf_rint(vf_div(x, s)), z);
        q = vf_select(vf_less(q, none), none, q);
        q = vf_mul(s, vf_sub(vf_select(vf_less(top, q), top, q), z));
        vf e = vf_div(vf_sub(x, q), vf_set1(row[i]));
        vf_store(err + i * 16, e);
        vf_store(w + i * 16, q);
        for (int64_t j = i + 1; j < n; j++)
            vf_store(w + j * 16, vf_sub(vf_load(w + j * 16), vf_mul(e, vf_set1(row[j]))));
    }
}

const ElemKernels KERNEL_NAME(elem_kernels) = {
    .rmsnorm_row = rmsnorm_row,
    .layernorm_row = layernorm_row,
    .rope_head = rope_head,
    .rope_pairs = rope_pairs,
    .activate = activate,
    .add = add,
    .add_scaled = add_scaled,
    .multiply = multiply,
    .softcap = softcap,
    .max = max,
    .sum_exp = sum_exp,
    .sum_exp_dot = sum_exp_dot,
    .feedback_rows = feedback_rows,
};
