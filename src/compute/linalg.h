/* linalg — 稠密对称矩阵的分解（LAPACK，双精度，单线程所以可复现） */
#ifndef PTQ_COMPUTE_LINALG_H
#define PTQ_COMPUTE_LINALG_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* 就地：对称正定 H(n,n) → 上三角 U，H⁻¹ = UᵀU（GPTQ §3.3 的 Cholesky 重写：列误差的更新只用 U 的行）。
 * 做法：H = RRᵀ（R 上三角，即行列倒序的 Cholesky），U = R⁻¹，省去显式求逆。下三角清零。
 * 返回: H 不正定（或含 NaN）为 false，内容不定。 */
bool linalg_inverse_upper(double *h, int64_t n);
#endif
