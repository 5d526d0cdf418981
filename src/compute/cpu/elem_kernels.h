/* elem_kernels — 逐元素、归一化与 softmax 各趟的内核接口（每个指令集一张表）
 * 每个元素的运算与它在行内、任务内的位置无关（尾部用同样的向量运算），求和按固定的 16 路与树。 */
#ifndef PTQ_COMPUTE_CPU_ELEM_KERNELS_H
#define PTQ_COMPUTE_CPU_ELEM_KERNELS_H
#include <stdint.h>

#include "compute/backend.h"

struct ElemKernels {
    /* weight 可为 NULL */
    void (*rmsnorm_row)(float *y, const float *x, const float *weight, int64_t d, float eps);
    /* LayerNorm；weight、bias 可为 NULL */
    void (*layernorm_row)(float *y, const float *x, const float *weight, const float *bias,
                          int64_t d, float eps);
    /* 就地旋转一个头：x[i]、x[i+half]，i < half */
    void (*rope_head)(float *x, int64_t half, const float *cos_row, const float *sin_row);
    /* 同上，x[2i]、x[2i+1] */
    void (*rope_pairs)(float *x, int64_t half, const float *cos_row, const float *sin_row);
    /* y = f(gate)·up，up 可为 NULL */
    void (*activate)(float *y, const float *gate, const float *up, int64_t n, Activation f);
    void (*add)(float *y, const float *x, int64_t n);
    /* y += a·x（先乘后加，两次舍入） */
    void (*add_scaled)(float *y, const float *x, float a, int64_t n);
    /* y = a·x */
    void (*multiply)(float *y, const float *x, float a, int64_t n);
    /* z = cap·tanh(z/cap) */
    void (*softcap)(float *z, int64_t n, float cap);
    /* 最大值（忽略 NaN；全为 NaN 时为 -inf） */
    float (*max)(const float *z, int64_t n);
    /* Σ exp(z−m)；z 含 NaN 则为 NaN。n 不大于几千（16 路 f32 累加，再以双精度合并） */
    double (*sum_exp)(const float *z, int64_t n, float m);
    /* 同上，另出 dot = Σ exp(zp−m)·(zp−zq) */
    double (*sum_exp_dot)(const float *zp, const float *zq, int64_t n, float m, double *dot);
    /* GPTQ 算法 1 的内层（见 backend.h 的 FeedbackJob），n 列、至多 16 行，一行一路：w、err 为 (n, 16)，
     * w 变为取整后的值，err[i] = (w−q)/u[i][i]；scale、zero 为 (rows, n_groups)。不足 16 行时其余各路的值不定 */
    void (*feedback_rows)(float *w, float *err, int64_t n, const float *u, int64_t ldu, int rows,
                          const float *scale, const float *zero, int64_t n_groups,
                          const int32_t *group, float maxq);
};
#endif
