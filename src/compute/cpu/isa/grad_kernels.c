/* grad_kernels — 反向与学习用的逐行内核
 * 尾部元素填进同样的 16 路向量里算，所以舍入与任务的切分无关。 */
#include "compute/cpu/grad_kernels.h"

#include <math.h>

#include "compute/cpu/isa/vec_math.h"
#include "compute/cpu/kernels.h"

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static void slice_panel(void *dst, const float *x, int64_t n, int64_t d, int64_t panel, bool bf16) {
    const float *src = x + panel * 16;
    int64_t width = min64(16, d - panel * 16);
    for (int64_t i = 0; !bf16 && i < n; i++)
        vf_store((float *)dst + i * 16, vf_load_n(src + i * d, width));
    for (int64_t i = 0; bf16 && i < n; i += 2) {
        vu lo = vu_round_bf16(vf_load_n(src + i * d, width)), hi = vu_set1(0);
        if (i + 1 < n) hi = vu_round_bf16(vf_load_n(src + (i + 1) * d, width));
        vu_store((uint32_t *)dst + i * 8, vu_or(lo, vu_shl(hi, 16)));
    }
}

static void transpose(float *dst, int64_t ld_dst, const float *src, int64_t ld_src, int64_t rows,
                      int64_t cols) {
    for (int64_t r = 0; r < rows; r += 16)
        for (int64_t c = 0; c < cols; c += 16) {
            int64_t nr = min64(16, rows - r), nc = min64(16, cols - c);
            if (nr == 16 && nc == 16) {
                vec_transpose16(dst + c * ld_dst + r, ld_dst, src + r * ld_src + c, ld_src);
                continue;
            }
            for (int64_t i = 0; i < nr; i++)
                for (int64_t j = 0; j < nc; j++)
                    dst[(c + j) * ld_dst + r + i] = src[(r + i) * ld_src + c + j];
        }
}

static float rmsnorm_row(float *dx, const float *dy, const float *x, const float *weight, int64_t d,
                         float eps) {
    vf square = vf_zero(), dot = vf_zero();
    for (int64_t i = 0; i < d; i += 16) {
        vf v = vf_load_n(x + i, d - i);
        vf g = vf_mul(vf_load_n(dy + i, d - i), vf_load_n(weight + i, d - i));
        square = vf_fma(v, v, square);
        dot = vf_fma(g, v, dot);
    }
    float r = 1.0f / sqrtf(vf_sum(square) / (float)d + eps);
    vf scale = vf_set1(r), shift = vf_set1(-vf_sum(dot) / (float)d * r * r * r);
    for (int64_t i = 0; i < d; i += 16) {
        vf g = vf_mul(vf_load_n(dy + i, d - i), vf_load_n(weight + i, d - i));
        vf_store_n(dx + i, vf_fma(vf_load_n(x + i, d - i), shift, vf_mul(g, scale)), d - i);
    }
    return r;
}

static void rmsnorm_weight(float *dw, const float *dy, const float *x, const float *r, int64_t n,
                           int64_t d, int64_t width) {
    for (int64_t j = 0; j < width; j += 16) {
        vf sum = vf_zero();
        for (int64_t i = 0; i < n; i++) {
            vf v = vf_mul(vf_load_n(x + i * d + j, width - j), vf_set1(r[i]));
            sum = vf_fma(vf_load_n(dy + i * d + j, width - j), v, sum);
        }
        vf_store_n(dw + j, sum, width - j);
    }
}

/* silu' = s·(1 + g·(1−s))，s = 1/(1+e^−g) */
static void silu_mul(float *dgate, float *dup, const float *dy, const float *gate, const float *up,
                     int64_t n) {
    vf one = vf_set1(1.0f);
    for (int64_t i = 0; i < n; i += 16) {
        vf g = vf_load_n(gate + i, n - i), d = vf_load_n(dy + i, n - i);
        vf s = vf_div(one, vf_add(one, vf_exp(vf_sub(vf_zero(), g))));
        vf slope = vf_mul(s, vf_fma(g, vf_sub(one, s), one));
        vf dg = vf_mul(vf_mul(d, vf_load_n(up + i, n - i)), slope);
        vf_store_n(dup + i, vf_mul(d, vf_mul(g, s)), n - i);
        vf_store_n(dgate + i, dg, n - i);
    }
}

static void softmax_row(float *s, int64_t lo, int64_t hi, int64_t n, float scale) {
    int64_t first = lo / 16 * 16, end = (hi + 15) / 16 * 16;
    vf lowest = vf_set1(-INFINITY), top = lowest, sum = vf_zero(), c = vf_set1(scale);
    memset(s, 0, (size_t)first * sizeof *s);
    memset(s + end, 0, (size_t)(n - end) * sizeof *s);
    for (int64_t i = first; i < end; i += 16) {
        vf x = vf_mul(vf_load(s + i), c);
        top = vf_max(vf_select(vu_range(lo - i, hi - i), x, lowest), top);
    }
    vf shift = vf_set1(vf_hmax(top));
    for (int64_t i = first; i < end; i += 16) {
        vf p = vf_exp(vf_sub(vf_mul(vf_load(s + i), c), shift));
        p = vf_select(vu_range(lo - i, hi - i), p, vf_zero());
        sum = vf_add(sum, p);
        vf_store(s + i, p);
    }
    vf inv = vf_set1(1.0f / vf_sum(sum));
    for (int64_t i = first; i < end; i += 16) vf_store(s + i, vf_mul(vf_load(s + i), inv));
}

static void softmax_grad_row(float *dp, const float *p, int64_t n, float scale) {
    vf dot = vf_zero(), c = vf_set1(scale);
    for (int64_t i = 0; i < n; i += 16) dot = vf_fma(vf_load(p + i), vf_load(dp + i), dot);
    vf mean = vf_set1(vf_sum(dot));
    for (int64_t i = 0; i < n; i += 16) {
        vf g = vf_mul(vf_load(p + i), vf_sub(vf_load(dp + i), mean));
        vf_store(dp + i, vf_mul(g, c));
    }
}

static void softmax_shift(float *z, int64_t n, float lse, float scale) {
    vf shift = vf_set1(lse), c = vf_set1(scale);
    for (int64_t i = 0; i < n; i += 16) {
        vf e = vf_exp(vf_sub(vf_load_n(z + i, n - i), shift));
        vf_store_n(z + i, vf_mul(e, c), n - i);
    }
}

static void range_row(float *lo, float *hi, const float *x, int64_t cols, int64_t group) {
    for (int64_t k = 0, g = 0; k < cols; k += group, g++) {
        int64_t end = min64(k + group, cols), i = k;
        vf low = vf_set1(x[k]), high = low;
        for (; i + 16 <= end; i += 16) {
            low = vf_min(vf_load(x + i), low);
            high = vf_max(vf_load(x + i), high);
        }
        if (i < end) {
            vu live = vu_first(end - i);
            vf tail = vf_load_n(x + i, end - i);
            low = vf_min(vf_select(live, tail, low), low);
            high = vf_max(vf_select(live, tail, high), high);
        }
        lo[g] = -vf_hmax(vf_sub(vf_zero(), low));
        hi[g] = vf_hmax(high);
    }
}

static void fake_quant_row(float *y, const float *x, const float *scale, const float *zero,
                           int64_t cols, int64_t group, float top) {
    vf limit = vf_set1(top);
    for (int64_t k = 0, g = 0; k < cols; k += group, g++) {
        vf s = vf_set1(scale[g]), z = vf_set1(zero[g]);
        int64_t end = min64(k + group, cols);
        for (int64_t i = k; i < end; i += 16) {
            vf code = vf_add(vf_rint(vf_div(vf_load_n(x + i, end - i), s)), z);
            code = vf_min(vf_max(code, vf_zero()), limit);
            vf_store_n(y + i, vf_mul(s, vf_sub(code, z)), end - i);
        }
    }
}

static void fake_quant_grad_row(float *dx, float *dscale, const float *dy, const float *x,
                                const float *scale, const float *zero, int64_t cols, int64_t group,
                                float top) {
    vf limit = vf_set1(top);
    for (int64_t k = 0, g = 0; k < cols; k += group, g++) {
        vf s = vf_set1(scale[g]), z = vf_set1(zero[g]), sum = vf_zero();
        int64_t end = min64(k + group, cols);
        for (int64_t i = k; i < end; i += 16) {
            vf d = vf_load_n(dy + i, end - i); /* 尾部之外为 0，不进和 */
            vf steps = vf_div(vf_load_n(x + i, end - i), s);
            vf code = vf_add(vf_rint(steps), z);
            vu out = vu_or(vf_less(code, vf_zero()), vf_less(limit, code));
            code = vf_sub(vf_min(vf_max(code, vf_zero()), limit), z);
            sum = vf_fma(d, vf_sub(code, vf_select(out, vf_zero(), steps)), sum);
            if (dx) vf_store_n(dx + i, vf_select(out, vf_zero(), d), end - i);
        }
        dscale[g] = vf_sum(sum);
    }
}

const GradKernels KERNEL_NAME(grad_kernels) = {
    .slice_panel = slice_panel,
    .transpose = transpose,
    .rmsnorm_row = rmsnorm_row,
    .rmsnorm_weight = rmsnorm_weight,
    .silu_mul = silu_mul,
    .softmax_row = softmax_row,
    .softmax_grad_row = softmax_grad_row,
    .softmax_shift = softmax_shift,
    .range_row = range_row,
    .fake_quant_row = fake_quant_row,
    .fake_quant_grad_row = fake_quant_grad_row,
};
