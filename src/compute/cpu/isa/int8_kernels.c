/* int8_kernels — 激活的取整、整数单行与收尾
 * 激活是 s8，权重是 INT8 面板里的 u8 编码，积累加到 int32（模 2^32，真值不溢出），所以与次序、指令集都无关；
 * 浮点只有每个激活一次除法、每个输出两次乘法一次加法，都不用乘加，各指令集逐位相同。 */
#include "compute/cpu/isa/gemm_parts.h"
#include "compute/cpu/isa/vec_math.h"

enum { INT8_PANELS = 8 / VEC_PARTS };

float KERNEL_NAME(act_absmax)(const float *x, int64_t n) {
    vu magnitude = vu_set1(0x7FFFFFFFu);
    vf top = vf_zero(), bad = vf_zero(); /* 有限值减自己得 0，否则得 NaN */
    for (int64_t i = 0; i < n; i += 16) {
        vf v = vf_load_n(x + i, n - i);
        top = vf_max(vf_bits(vu_and(vu_bits(v), magnitude)), top);
        bad = vf_add(bad, vf_sub(v, v));
    }
    return vf_hmax(top) + vf_sum(bad);
}

/* rint(x/scale)，限制在 [-top-1, top]；NaN 得下限。 */
VEC_INLINE vf act_code(vf x, vf scale, int top) {
    vf q = vf_rint(vf_div(x, scale));
    return vf_min(vf_max(q, vf_set1((float)(-top - 1))), vf_set1((float)top));
}

int32_t KERNEL_NAME(act_codes)(int8_t *dst, const float *x, int64_t n, float scale, int top) {
    vf s = vf_set1(scale);
    vu sum = vu_set1(0);
    int32_t parts[16], total = 0;
    for (int64_t i = 0; i < n; i += 16) {
        vu code = vu_from_float(act_code(vf_load_n(x + i, n - i), s, top));
        if (n - i < 16) code = vu_and(code, vu_first(n - i)); /* NaN 的 scale 会让补的 0 不为 0 */
        vu_store_s8(dst + i, code);
        sum = vu_add(sum, code);
    }
    for (int64_t i = (n + 15) / 16 * 16; i < (n + 31) / 32 * 32; i++) dst[i] = 0;
    vu_store(parts, sum);
    for (int i = 0; i < 16; i++) total += parts[i];
    return total;
}

void KERNEL_NAME(act_round)(float *x, int64_t n, float scale, int top) {
    vf s = vf_set1(scale);
    for (int64_t i = 0; i < n; i += 16)
        vf_store_n(x + i, vf_mul(act_code(vf_load_n(x + i, n - i), s, top), s), n - i);
}

/* 一次 panels 个面板；面板很长时只预取近处（同 gemv.c）。 */
VEC_INLINE void int8_walk(float *y, const int8_t *x, const char *w, int64_t stride, int64_t n_out,
                          const int panels) {
    vu acc[INT8_PANELS];
    int64_t ahead = panels * stride <= 192 * 1024 ? panels * stride : 2048;
    VEC_UNROLL for (int p = 0; p < panels; p++) acc[p] = vu_set1(0);
    for (int64_t k = 0; k < stride; k += 64) {
        uint32_t four;
        memcpy(&four, x + k / 16, sizeof four);
        VEC_UNROLL for (int p = 0; p < panels; p++) {
            __builtin_prefetch(w + p * stride + k + ahead, 0, 2);
            acc[p] = vu_dot_u8s8(acc[p], vu_load(w + p * stride + k), vu_set1(four));
        }
    }
    VEC_UNROLL for (int p = 0; p < panels; p++) {
        float t[QT_PANEL];
        vu_store(t, acc[p]);
        int64_t valid = n_out - 16 * p < 16 ? n_out - 16 * p : 16;
        memcpy(y + 16 * p, t, (size_t)valid * sizeof *t);
    }
}

void KERNEL_NAME(gemv_int8)(float *y, const int8_t *x, const QTensor *w, int64_t panel,
                            int64_t n_out) {
    int64_t stride = ((w->cols - 1) / QT_KBLOCK + 1) * QT_KBLOCK * QT_PANEL;
    const char *d = (const char *)w->data + panel * stride;
    for (; n_out > 16 * (INT8_PANELS - 1); n_out -= 16 * INT8_PANELS) {
        int8_walk(y, x, d, stride, n_out, INT8_PANELS);
        y += 16 * INT8_PANELS;
        d += INT8_PANELS * stride;
    }
    for (; n_out > 0; n_out -= 16, y += 16, d += stride) int8_walk(y, x, d, stride, n_out, 1);
}

/* 面板的缩放与整数零点（一行一组）。 */
VEC_INLINE void panel_params(const QTensor *w, int64_t panel, vf *scale, vu *zero) {
    int64_t at = panel * QT_PANEL;
    *scale = load_reals(w, w->scales, at);
    *zero = w->spec.zero == ZERO_SYM ? vu_set1(1u << (w->spec.bits - 1))
                                     : vu_from_float(vf_load_u8((const uint8_t *)w->zeros + at));
}

void KERNEL_NAME(finish_int8)(float *y, int64_t ldy, int rows, int64_t n_out, const QTensor *w,
                              int64_t panel, const ActRows *x, int64_t row, const float *bias) {
    for (int64_t c = 0; c < n_out; c += QT_PANEL, panel++) {
        vf scale, offset = bias ? vf_load_n(bias + c, n_out - c) : vf_zero();
        vu zero;
        panel_params(w, panel, &scale, &zero);
        for (int r = 0; r < rows; r++) {
            float *at = y + r * ldy + c;
            vu sum = vu_mul(zero, vu_set1((uint32_t)x->sum[row + r]));
            vf dot = vf_from_int(vu_sub(vu_bits(vf_load_n(at, n_out - c)), sum));
            dot = vf_mul(dot, vf_mul(scale, vf_set1(x->scale[row + r])));
            vf_store_n(at, bias ? vf_add(dot, offset) : dot, n_out - c);
        }
    }
}
