/* hessian — 二阶求解（GPTQ、SpQR）共用的部件：列的次序、阻尼、H⁻¹ 的 Cholesky 因子、对后面各列的更新
 * 记号同 GPTQ（arXiv 2210.17323 §3.3）：H = 2XXᵀ/n + λI，U 上三角，H⁻¹ = UᵀU。列都按处理的次序。 */
#ifndef PTQ_COMPUTE_HESSIAN_H
#define PTQ_COMPUTE_HESSIAN_H
#include "compute/backend.h"

typedef struct Hessian {
    int64_t n;
    int32_t *perm;  /* (n) 处理的第 k 列是原来的第 perm[k] 列 */
    int32_t *from;  /* (n) 同 perm，死列为 −1 */
    bool *dead;     /* (n) 按处理的次序：校准中恒为 0 的列，其权重应置 0 */
    float *u;       /* (n, n)，在后端内存 */
    int64_t n_dead;
    double damp;    /* 实际用的阻尼（占 diag(H) 均值的比例），不小于要求的 */
} Hessian;

/* 由 gram (n,n)（对称，tokens 个 token 的 Σxᵀx）分解。参数: descending 为真则按 diag 从大到小排列（相同的按原序），
 * 否则原序；damp 阻尼，不正定就乘 10 再试。gram 与 u 在后端内存（u 来自 a），其余在主机（来自 host）。错误: 对角有 NaN 或 Inf；试到最后仍不正定；内存不足。 */
bool hessian_factor(Hessian *h, Backend *b, Arena *a, Arena *host, const float *gram, int64_t tokens, int64_t n,
                    bool descending, double damp, Err *e);
/* 后端的 (n, n) 的对角 → 主机的 diag (n)。错误: 内存不足、设备。 */
bool hessian_diagonal(Backend *b, float *diag, const float *gram, int64_t n, Err *e);
/* dst(rows, n) = w(rows, n) 按处理的次序，死列为 0；都在后端内存。错误在 b->err。 */
void hessian_gather(const Hessian *h, Backend *b, float *dst, const float *w, int64_t rows);
/* 块 [i1,i2) 之后的列：w[:, i2:] −= err·U[i1:i2, i2:]。参数: w (rows, n)；err (rows, i2−i1)。错误在 b->err。 */
void hessian_update_rest(const Hessian *h, Backend *b, float *w, const float *err, int64_t rows,
                         int64_t i1, int64_t i2);
#endif
