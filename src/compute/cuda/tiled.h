/* tiled — 键值与查询分块存放的注意力：prefill.cu 备好，flash_wgmma.cu 计算
 * 64 个查询（TILE_ROWS）、128 个键（TILE_KEYS）一块，一块一个头的 bf16 在显存里连成一段：先按 64 维分成几面，面里一行 128 字节，
 * 其中第 c 个 16 字节放在 c ^ (行 & 7)。这就是 wgmma 所要的共享内存的样子，一块因而一次整段复制进来。 */
#ifndef PTQ_COMPUTE_CUDA_TILED_H
#define PTQ_COMPUTE_CUDA_TILED_H
#include "compute/cuda/cuda_ops.h"

enum { TILE_ROWS = 64, TILE_KEYS = 128, TILED_ITEMS = 160 };

/* 块内第 row 行、第 c 片（8 维）的字节偏移；rows 是一块的行数。 */
__device__ static inline uint32_t tiled_at(int row, int c, int rows) {
    return (uint32_t)((c / 8 * rows + row) * 128 + ((c ^ row) & 7) * 16);
}

/* 一批相邻的查询：输出的首行，行数，首个查询块，它所看的首个键块，首个查询的位置（从首个键块的第一个键数）。 */
struct TiledItem {
    int32_t row0, rows, block, tile, pos;
};
struct TiledArgs {
    const __nv_bfloat16 *q, *k, *v; /* q（块, 头），k、v（块, 键值头）；键块的末尾补零 */
    void *out;                      /* (行, 头·维)，bf16 或 f32 */
    bool half_out;
    int heads, kv_heads, n_items;
    float scale;
    int *counters;            /* 显存：2 个 0，用完归零 */
    TiledItem item[TILED_ITEMS]; /* 每个至多 tiled_rows 行 */
};
/* 这块 GPU 与这样的注意力能不能用：bf16 计算、sm_90，维数 64 或 128，没有窗口、软截断与偏置。 */
bool tiled_accepts(Backend *b, const AttnSpec *s);
/* 一批至多几个查询。 */
int tiled_rows(int64_t dim);
bool cuda_tiled(Backend *b, const TiledArgs *a, int64_t dim);
/* 一条时间线上接在 s->first 个键之后的 n 个查询：q、out 是 f32，k、v 是 bf16 的行（行号即位置），都旋转过。 */
bool cuda_tiled_rows(Backend *b, float *out, const float *q, const __nv_bfloat16 *k, const __nv_bfloat16 *v, int64_t n,
                     const AttnSpec *s);
#endif
