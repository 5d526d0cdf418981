/* linalg — 稠密对称矩阵的分解（LAPACK 与 BLAS，双精度）
 * 块的切法只由 n 定，每块由单线程的 BLAS 算，所以结果与线程数无关。 */
#ifndef PTQ_COMPUTE_LINALG_H
#define PTQ_COMPUTE_LINALG_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "compute/backend.h"

/* 就地：对称正定 H(n,n)（主机内存，只看上三角）→ 上三角 U，H⁻¹ = UᵀU（GPTQ §3.3 的 Cholesky 重写：
 * 列误差的更新只用 U 的行）。做法：H = RRᵀ（R 上三角，即行列倒序的 Cholesky），U = R⁻¹，省去显式求逆。下三角清零。
 * 参数: b 的线程池分担各块；work 是 n·128 个 double 的暂存。返回: H 不正定（或含 NaN）为 false，内容不定。 */
bool linalg_inverse_upper(Backend *b, double *h, int64_t n, double *work);
enum { LINALG_BLOCK = 128 };
#endif
