/* attention — 注意力的几条路之间的约定（attention.cu、flash.cu、decode.cu） */
#ifndef PTQ_COMPUTE_CUDA_ATTENTION_H
#define PTQ_COMPUTE_CUDA_ATTENTION_H
#include "compute/cuda/cuda_ops.h"

/* q (n, heads, dim) f32；k、v bf16 (位置, width)，行号即位置，有效的是 [lo, hi)。 */
struct FlashArgs {
    float *out;
    const float *q;
    const __nv_bfloat16 *k, *v;
    int64_t n, dim, width, lo, hi;
    AttnSpec s;
};
/* 只用于 bf16 计算、头的维数是 8 的倍数且不大于 256。 */
bool flash_accepts(const Backend *b, const AttnSpec *s);
bool cuda_flash(Backend *b, const FlashArgs *a);

enum { DECODE_MAX_ROWS = 16 };
/* 两侧都是原样的（DENSE、没有远的、不旋转），查询至多 DECODE_MAX_ROWS 个，头的维数不大于 256。 */
bool decode_accepts(const AttnSide *k, const AttnSide *v, int64_t n, const AttnSpec *s);
bool cuda_decode(Backend *b, float *out, const float *q, const KvStore *k, const KvStore *v, int64_t n, const AttnSpec *s);
#endif
