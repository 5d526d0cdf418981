/* decode — 装载：文件里的 F32、F16、BF16 → f32，再舍入到要存的类型；切成块分给线程 */
#include "compute/cpu/linear.h"
#include "compute/cpu/memory.h"

enum { PIECE = 1 << 16 };

typedef struct DecodeJob {
    float *dst;
    const char *src;
    DType t, rounded;
    int64_t n;
} DecodeJob;

static void decode_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const DecodeJob *j = ctx;
    int64_t first = task * PIECE, n = min_i64(PIECE, j->n - first);
    float *to = j->dst + first;
    CHECK(dtype_decode(j->t, j->src + (size_t)first * dtype_block_bytes(j->t), to, (size_t)n));
    if (j->rounded == j->t || j->rounded == DT_F32) return;
    for (int64_t i = 0; i < n; i++)
        to[i] = j->rounded == DT_BF16 ? bf16_to_f32(f32_to_bf16(to[i])) : f16_to_f32(f32_to_f16(to[i]));
}

void cpu_decode(Backend *b, float *dst, const void *host, DType t, DType rounded, int64_t n) {
    DecodeJob j = {dst, host, t, rounded, n};
    pool_run(((CpuBackend *)b->impl)->pool, ceil_div(n, PIECE), decode_task, &j);
}
