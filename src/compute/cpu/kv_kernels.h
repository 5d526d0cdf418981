/* kv_kernels — 键值缓存存放形式与 f32 行之间的内核接口（每个指令集一张表）
 * 反量化只用乘与加（不融合），所以各指令集的结果逐位相同。 */
#ifndef PTQ_COMPUTE_CPU_KV_KERNELS_H
#define PTQ_COMPUTE_CPU_KV_KERNELS_H
#include "compute/kvstore.h"

struct KvKernels {
    /* 头 head、位置 [pos, pos+n) → dst 的各行，行距 stride >= 16·vecs；行尾补齐的部分内容不定。 */
    void (*expand)(const KvStore *s, int64_t head, int64_t pos, int64_t n, float *dst,
                   int64_t stride);
    /* n 个 f32 → f16，就近取偶。 */
    void (*to_f16)(uint16_t *dst, const float *x, int64_t n);
    /* TILES：写入位置 [pos, pos+n) 的行 x(n, heads·dim)。没有原生 bf16 的指令集为 NULL。 */
    void (*write_tiles)(const KvStore *s, int64_t pos, int64_t n, const float *x);
};
#endif
