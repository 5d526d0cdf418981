/* attention — 因果注意力（GQA、可选滑动窗口）：切成（键值头 × 查询块）的任务
 * 共享一个键值头的全部查询头同在一个任务里。查询块多于一个时，先并行把全部键值打包一遍（太大或只有
 * 一个查询块（解码）时，由任务边算边打包）。任务从最后的（最大的）查询块开始动态领取。
 * 查询块的大小不影响任何一行的结果（见 attn_kernels.h 的次序约定）。 */
#include "compute/cpu/attn_kernels.h"

#include "compute/cpu/cpu.h"
#include "compute/cpu/kernels.h"

enum {
    TILE_ROWS = 192,             /* 一个任务的行数（查询数 × 组内头数）的目标 */
    MAX_PACKED_FLOATS = 6 << 20, /* 整体打包至多用 24 MiB */
};

typedef struct AttnJob {
    const AttnKernels *kernels;
    const AttnCore *core;
    const AttnSpec *spec;
    float *out;
    const float *q;
    const AttnSide *k, *v;
    int64_t n, tile_n, n_tiles;
    float *packed;           /* (键值头, 键块) 已打包的键值，或 NULL */
    int64_t n_blocks, block_floats;
    void **work;             /* 每线程 */
} AttnJob;

/* 键值头 kv_head、查询 [i, i+n) */
static AttnTile make_tile(const AttnJob *j, int64_t kv_head, int64_t i, int64_t n) {
    const AttnSpec *s = j->spec;
    int64_t group = s->n_heads / s->n_kv_heads;
    int64_t q_stride = s->n_heads * s->head_dim, at = i * q_stride + kv_head * group * s->head_dim;
    return (AttnTile){
        .out = j->out + at,
        .q = j->q + at,
        .k = j->k,
        .v = j->v,
        .kv_head = kv_head,
        .q_stride = q_stride,
        .n = n,
        .group = group,
        .dim = s->head_dim,
        .first = s->first + i,
        .window = s->window,
        .scale = s->scale,
        .softcap = s->softcap,
        .bias = s->bias ? s->bias + kv_head * group * s->bias_stride : NULL,
        .bias_stride = s->bias_stride,
        .packed = j->packed ? j->packed + kv_head * j->n_blocks * j->block_floats : NULL,
    };
}

static void attention_task(void *ctx, int64_t task, int thread) {
    const AttnJob *j = ctx;
    int64_t kv_head = task % j->spec->n_kv_heads;
    int64_t i = (j->n_tiles - 1 - task / j->spec->n_kv_heads) * j->tile_n;
    AttnTile t = make_tile(j, kv_head, i, j->n - i < j->tile_n ? j->n - i : j->tile_n);
    j->kernels->tile(j->core, &t, j->work[thread]);
}

static void pack_task(void *ctx, int64_t task, int thread) {
    const AttnJob *j = ctx;
    AttnTile t = make_tile(j, task / j->n_blocks, 0, j->n);
    j->kernels->pack(j->core, &t, task % j->n_blocks, j->packed + task * j->block_floats,
                     j->work[thread]);
}

/* 查询块的查询数：够摊薄打包，又让每个线程至少有几个任务 */
static int64_t tile_queries(int64_t n, int64_t group, int64_t kv_heads, int n_threads) {
    int64_t t = TILE_ROWS / group;
    if (t < 1) t = 1;
    while (t > 16 && (n + t - 1) / t * kv_heads < 4 * (int64_t)n_threads) t /= 2;
    return t < n ? t : n;
}

/* 备好每线程的工作区；值得整体打包时在 0 号线程的工作区后面留出位置 */
static bool reserve(Backend *b, AttnJob *j) {
    const AttnSpec *s = j->spec;
    bool far = j->k->rule != FAR_NONE || j->v->rule != FAR_NONE;
    size_t bytes = j->kernels->work_bytes(j->tile_n * (s->n_heads / s->n_kv_heads), s->head_dim, far);
    int64_t first_seen = s->window > 0 && s->first >= s->window ? s->first - s->window + 1 : 0;
    j->n_blocks = (s->first + j->n + ATTN_BLOCK - 1) / ATTN_BLOCK;
    j->block_floats = j->kernels->packed_floats(s->head_dim, far);
    bool fits = s->n_kv_heads * j->block_floats <= MAX_PACKED_FLOATS / j->n_blocks;
    bool whole = j->k->near->f.form != KV_TILES && j->n_tiles > 1 && first_seen < ATTN_BLOCK && fits;
    size_t extra = whole ? (size_t)(s->n_kv_heads * j->n_blocks * j->block_floats) * 4 : 0;
    for (int t = 0; t < b->n_threads; t++)
        if (!cpu_scratch(b, t, bytes + (t == 0 ? extra : 0))) return false;
    if (whole) j->packed = (float *)((char *)j->work[0] + bytes);
    return true;
}

void cpu_attention(Backend *b, float *out, const float *q, const AttnSide *k, const AttnSide *v,
                   int64_t n, const AttnSpec *s) {
    CpuBackend *c = b->impl;
    const AttnKernels *kernels = c->kernels->attn;
    CHECK(s->n_kv_heads > 0 && s->n_heads % s->n_kv_heads == 0 && s->head_dim > 0);
    CHECK(s->scale > 0 && s->first >= 0 && s->window >= 0);
    if (n <= 0) return;
    AttnJob j = {.kernels = kernels, .spec = s, .out = out, .q = q, .k = k, .v = v, .n = n,
                 .core = b->compute == COMPUTE_BF16 ? kernels->bf16 : kernels->f32,
                 .work = c->scratch};
    CHECK(j.core != NULL);
    j.tile_n = tile_queries(n, s->n_heads / s->n_kv_heads, s->n_kv_heads, b->n_threads);
    j.n_tiles = (n + j.tile_n - 1) / j.tile_n;
    if (!reserve(b, &j)) return;
    if (j.packed) pool_run(c->pool, s->n_kv_heads * j.n_blocks, pack_task, &j);
    pool_run(c->pool, j.n_tiles * s->n_kv_heads, attention_task, &j);
}
