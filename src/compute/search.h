/* search — 搜索与学习的算子的参数（方法的内层循环；含义见 ops.h） */
#ifndef PTQ_COMPUTE_SEARCH_H
#define PTQ_COMPUTE_SEARCH_H
#include "compute/qtensor.h"

/* 截断的搜索（AWQ）：w(rows, width)（行距 ld）的每一行依次试界 top·(1 − k/grid)，k = 0..steps−1，top = max|w|；
 * d = Q(clamp(w)) − w，误差 d·G·dᵀ 最小的界（同样的取先）留下，就地截断。 */
typedef struct ClipJob {
    int64_t rows, width, ld;
    float *w;
    const QTensor *gram;  /* G (width, width)，稠密 f32 */
    QSpec spec;           /* 一行一组；group_size 须为 -1 */
    int64_t steps, grid;
} ClipJob;

/* 可学的钳位（OmniQuant 的 LWC）：n 组各有范围 lo、hi，乘以 σ(low)、σ(high)（NULL 即 1）之后定格点：
 *   非对称 scale = (hi−lo)/(2^b−1)，zero = rint(clamp(−lo/scale, ±most))；对称 scale = max|·|/(2^(b-1)−1)，zero = 2^(b-1)−1；
 * scale 截到 [least, most]。 */
typedef struct ClampJob {
    int64_t n;
    int bits;
    bool symmetric;
    float least, most;
    const float *lo, *hi, *low, *high; /* (n) */
    float *scale, *zero;               /* (n) 前向的输出；反向的输入 */
    const float *d_scale;              /* 反向的输入 */
    float *d_low, *d_high, *d_lo, *d_hi; /* 反向：出；d_low、d_high 在 low 为 NULL 时不写 */
} ClampJob;

/* SpQR 算法 1 的内层：列 [i1, i2) 依次量化。列 c 是组首（c % group == 0）时，先由当时的 w 定各行这一组的格点 scale、zero（实数）：
 * 留一法（leave_one_out）排除可能的离群值；每 stat_rows 行的 scale（zero）再量化成 scale_bits（zero_bits）位，二级格点按 scale_dtype
 * 舍入后存放（0 位即不再量化，只舍入）。然后 q = scale·(clamp(rint(w/scale + zero)) − zero)，d = (w − q)/u[c,c]：
 * d² > limit 的留作离群值（outlier 为 1，err 为 0，w 不动），否则 err = d，w = q，w[c+1..i2) −= d·u[c, c+1..i2)。 */
typedef struct SparseJob {
    int64_t rows, cols, i1, i2, group, n_groups, stat_rows;
    int bits, scale_bits, zero_bits;
    DType scale_dtype; /* DT_F32 或 DT_F16 */
    bool leave_one_out;
    float limit;
    float *w;            /* (rows, cols) */
    const float *u;      /* (cols, cols) 上三角 */
    float *err;          /* (rows, i2−i1) 出 */
    uint8_t *outlier;    /* (rows, cols) 出：块内的列 */
    float *scale, *zero; /* (rows, n_groups) 出：再量化之后的；前几块定好的组由它们读回 */
    uint8_t *scale_code, *zero_code; /* (rows, n_groups) 出：再量化的码；相应的位数为 0 时不用 */
    float *scale_grid, *zero_grid;   /* (⌈rows/stat_rows⌉, n_groups, 2) 出：二级格点的 scale、zero；同上 */
} SparseJob;

/* 线性层 y = x·Wᵀ 的反向：dx = dy·W，dw = dyᵀ·x（各可为 NULL，不算）。 */
typedef struct LinearGrad {
    const float *dy, *x;  /* (n, rows)、(n, cols) */
    const QTensor *w;     /* (rows, cols) */
    float *dense;         /* (rows, cols)：ready 为真时是 w 的展开（op_fake_pack 的 y），否则是暂存 */
    bool ready;
    float *dx, *dw;       /* (n, cols)、(rows, cols) */
    int64_t n;
} LinearGrad;
#endif
