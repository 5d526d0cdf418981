/* attn_kernels — 注意力内核的接口（每个指令集一张表）
 * 一次调用算一个「块」：一个键值头、一段连续查询、共享这个键值头的全部查询头。
 * 次序约定（预填与逐 token 解码因此逐位相同）：键按绝对位置每 64 个一块；一行只碰它看得见的块；
 * q·k 沿维度依次累加，p·v 沿键依次累加，每块至多重新缩放一次。一行的结果与它在哪个块里无关。
 * 键值有近（原样）、远（量化）两份：一行读哪一份由它的绝对位置定（attn_far_end），块内以此为界，先远后近。 */
#ifndef PTQ_COMPUTE_CPU_ATTN_KERNELS_H
#define PTQ_COMPUTE_CPU_ATTN_KERNELS_H
#include <stddef.h>
#include <stdint.h>

#include "compute/backend.h"

enum { ATTN_BLOCK = 64 }; /* 键块的键数，块按绝对位置对齐；改它会改变舍入 */

typedef struct AttnCore AttnCore; /* 一种精度的打包与乘积，见 isa/attn_core.h */

typedef struct AttnTile {
    float *out;        /* 第 i 个查询、组内第 g 个头：out + i·q_stride + g·dim；q 同 */
    const float *q;
    const AttnSide *k, *v;
    int64_t kv_head, q_stride;
    int64_t n, group, dim; /* 查询数、共享此键值头的查询头数、头的维数 */
    int64_t first, window; /* 第一个查询的绝对位置；0 表示不限窗口 */
    float scale;           /* 须 > 0 */
    float softcap;         /* 见 AttnSpec */
    const float *bias;     /* 组内第 g 个头的偏置在 bias + g·bias_stride，或 NULL */
    int64_t bias_stride;
    const float *packed;   /* 此键值头已打包的块（pack 所写，从位置 0 起），或 NULL：边算边打包 */
} AttnTile;

struct AttnKernels {
    /* rows = n·group 行、维数 dim 的块所需的工作区字节数；far: 有远的一份 */
    size_t (*work_bytes)(int64_t rows, int64_t dim, bool far);
    const AttnCore *f32, *bf16; /* bf16: 没有 AVX512-BF16 的指令集为 NULL */
    /* 算一个块 */
    void (*tile)(const AttnCore *core, const AttnTile *t, void *work);
    /* 每个键块打包后的 float 数；打包第 block 个键块（t->first+t->n 是键数），写到 dst；work 同 tile 的 */
    int64_t (*packed_floats)(int64_t dim, bool far);
    void (*pack)(const AttnCore *core, const AttnTile *t, int64_t block, float *dst, void *work);
};
#endif
