/* attention — 因果注意力（GQA、可选滑动窗口）：切成（键值头 × 查询块）的任务
 * 共享一个键值头的全部查询头同在一个任务里，键块只打包一次。任务从最后的（最大的）查询块开始动态领取。
 * 查询块的大小不影响任何一行的结果（见 attn_kernels.h 的次序约定）。 */
#include "compute/cpu/attn_kernels.h"

#include "compute/cpu/cpu.h"
#include "compute/cpu/kernels.h"

enum { TILE_ROWS = 192 }; /* 一个任务的行数（查询数 × 组内头数）的目标：摊薄键块的打包 */

typedef struct AttnJob {
    void (*tile)(const AttnTile *t, void *work);
    const AttnSpec *spec;
    float *out;
    const float *q, *k, *v;
    int64_t n, tile_n, n_tiles;
    void **work; /* 每线程 */
} AttnJob;

static void attention_task(void *ctx, int64_t task, int thread) {
    const AttnJob *j = ctx;
    const AttnSpec *s = j->spec;
    int64_t kv_head = task % s->n_kv_heads, tile = j->n_tiles - 1 - task / s->n_kv_heads;
    int64_t i = tile * j->tile_n, group = s->n_heads / s->n_kv_heads;
    int64_t q_stride = s->n_heads * s->head_dim, at = i * q_stride + kv_head * group * s->head_dim;
    AttnTile t = {
        .out = j->out + at,
        .q = j->q + at,
        .k = j->k + kv_head * s->head_dim,
        .v = j->v + kv_head * s->head_dim,
        .q_stride = q_stride,
        .kv_stride = s->n_kv_heads * s->head_dim,
        .n = j->n - i < j->tile_n ? j->n - i : j->tile_n,
        .group = group,
        .dim = s->head_dim,
        .first = s->first + i,
        .window = s->window,
        .scale = s->scale,
    };
    j->tile(&t, j->work[thread]);
}

/* 查询块的查询数：够摊薄打包，又让每个线程至少有几个任务 */
static int64_t tile_queries(int64_t n, int64_t group, int64_t kv_heads, int n_threads) {
    int64_t t = TILE_ROWS / group;
    if (t < 1) t = 1;
    while (t > 16 && (n + t - 1) / t * kv_heads < 4 * (int64_t)n_threads) t /= 2;
    return t < n ? t : n;
}

void cpu_attention(Backend *b, float *out, const float *q, const float *k, const float *v,
                   int64_t n, const AttnSpec *s) {
    CpuBackend *c = b->impl;
    const AttnKernels *kernels = c->kernels->attn;
    CHECK(s->n_kv_heads > 0 && s->n_heads % s->n_kv_heads == 0 && s->head_dim > 0);
    CHECK(s->scale > 0 && s->first >= 0 && s->window >= 0);
    if (n <= 0) return;
    int64_t group = s->n_heads / s->n_kv_heads;
    AttnJob j = {.tile = b->compute == COMPUTE_BF16 ? kernels->tile_bf16 : kernels->tile_f32,
                 .spec = s, .out = out, .q = q, .k = k, .v = v, .n = n, .work = c->scratch};
    CHECK(j.tile != NULL);
    j.tile_n = tile_queries(n, group, s->n_kv_heads, b->n_threads);
    j.n_tiles = (n + j.tile_n - 1) / j.tile_n;
    for (int t = 0; t < b->n_threads; t++)
        if (!cpu_scratch(b, t, kernels->work_bytes(j.tile_n * group, s->head_dim))) return;
    pool_run(c->pool, j.n_tiles * s->n_kv_heads, attention_task, &j);
}
