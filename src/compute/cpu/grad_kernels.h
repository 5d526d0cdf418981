/* grad_kernels — 反向与学习用的内核接口（每个指令集一张表）
 * 逐行或逐面板；求和按固定的 16 路与树，与任务的切分无关。 */
#ifndef PTQ_COMPUTE_CPU_GRAD_KERNELS_H
#define PTQ_COMPUTE_CPU_GRAD_KERNELS_H
#include <stdbool.h>
#include <stdint.h>

struct GradKernels {
    /* x(n, d) 的第 16·panel 列起 16 列 → 面板 [n][16]（bf16: [⌈n/2⌉][16][2]）；d 之外的列与补出的行为 0。 */
    void (*slice_panel)(void *dst, const float *x, int64_t n, int64_t d, int64_t panel, bool bf16);
    /* dst(cols, rows) = src(rows, cols)ᵀ，各有行距。 */
    void (*transpose)(float *dst, int64_t ld_dst, const float *src, int64_t ld_src, int64_t rows,
                      int64_t cols);
    /* 一行 RMSNorm 的反向（公式见 ops.h）。返回: 1/sqrt(mean(x²)+eps)。 */
    float (*rmsnorm_row)(float *dx, const float *dy, const float *x, const float *weight,
                         int64_t d, float eps);
    /* 行距为 d 的 n 行上，前 width 列: dw[j] = Σᵢ dy[i][j]·x[i][j]·r[i] */
    void (*rmsnorm_weight)(float *dw, const float *dy, const float *x, const float *r, int64_t n,
                           int64_t d, int64_t width);
    void (*silu_mul)(float *dgate, float *dup, const float *dy, const float *gate, const float *up,
                     int64_t n);
    /* s 的 [lo,hi) 就地成为 softmax(scale·s)，其余置 0；n 是 16 的倍数。 */
    void (*softmax_row)(float *s, int64_t lo, int64_t hi, int64_t n, float scale);
    /* 就地 dp → scale·p·(dp − Σ p·dp)；n 是 16 的倍数。 */
    void (*softmax_grad_row)(float *dp, const float *p, int64_t n, float scale);
    /* 就地 z → scale·exp(z − lse) */
    void (*softmax_shift)(float *z, int64_t n, float lse, float scale);
    /* 以下一行，每 group 个一组。y = scale·(clamp(rint(x/scale)+zero, 0, top) − zero) */
    void (*range_row)(float *lo, float *hi, const float *x, int64_t cols, int64_t group);
    void (*fake_quant_row)(float *y, const float *x, const float *scale, const float *zero,
                           int64_t cols, int64_t group, float top);
    /* dx（可为 NULL）、dscale 的公式见 ops.h */
    void (*fake_quant_grad_row)(float *dx, float *dscale, const float *dy, const float *x,
                                const float *scale, const float *zero, int64_t cols, int64_t group,
                                float top);
};
#endif
