/* backend_cpu — CPU 后端：选指令集、开线程池、管工作区、列出算子表
 * 指令集从好到差试，CPUID 与操作系统的 XSAVE 支持都由 __builtin_cpu_supports 核对。 */
#include <cpuid.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "compute/cpu/cpu.h"
#include "compute/cpu/kernels.h"
#include "compute/cpu/memory.h"
#include "compute/cpu/search.h"

enum { MAX_THREADS = 1024 };

static const BackendOps CPU_OPS = {
    .read = cpu_read,
    .write = cpu_write,
    .copy = cpu_copy,
    .symmetrize = cpu_symmetrize,
    .column_stats = cpu_column_stats,
    .column_sum = cpu_column_sum,
    .copy_2d = cpu_copy_2d,
    .row_errors = cpu_row_errors,
    .divide = cpu_divide,
    .gather_columns = cpu_gather_columns,
    .update_rest = cpu_update_rest,
    .decode = cpu_decode,
    .all_finite = cpu_all_finite,
    .watch = cpu_watch,
    .watched = cpu_watched,
    .factor = cpu_factor,
    .adamw = cpu_adamw,
    .mse_grad = cpu_mse_grad,
    .linear = cpu_linear_from,
    .embed = cpu_embed,
    .norm = cpu_norm,
    .rope = cpu_rope,
    .attention = cpu_attention,
    .attend_step = cpu_attend_step,
    .attend_prefill = cpu_attend_prefill,
    .prefill_accepts = cpu_prefill_accepts,
    .kv_write = cpu_kv_write,
    .kv_quantize = cpu_kv_quantize,
    .activate = cpu_activate,
    .add = cpu_add,
    .multiply = cpu_multiply,
    .gather_rows = cpu_gather_rows,
    .scatter_rows = cpu_scatter_rows,
    .score = cpu_score,
    .pack_dense = cpu_pack_dense,
    .pack_stored = cpu_pack_stored,
    .qparams = cpu_qparams,
    .quantize = cpu_quantize,
    .dequantize = cpu_dequantize,
    .gram = cpu_gram,
    .feedback = cpu_feedback,
    .linear_exact = cpu_linear_exact,
    .linear_int8 = cpu_linear_int8_from,
    .linear_rounded = cpu_linear_rounded,
    .round_act = cpu_round_act,
    .parallel = cpu_parallel,
    .matmul = cpu_matmul,
    .rmsnorm_grad = cpu_rmsnorm_grad,
    .silu_mul_grad = cpu_silu_mul_grad,
    .attention_grad = cpu_attention_grad,
    .round_act_grad = cpu_round_act_grad,
    .score_grad = cpu_score_grad,
    .group_range = cpu_group_range,
    .group_range_grad = cpu_group_range_grad,
    .scale = cpu_scale,
    .scale_grad = cpu_scale_grad,
    .fake_quant = cpu_fake_quant,
    .fake_quant_grad = cpu_fake_quant_grad,
    .divide_rows = cpu_divide_rows,
    .quadratic = cpu_quadratic,
    .clip = cpu_clip,
    .clamp_grid = cpu_clamp_grid,
    .clamp_grid_grad = cpu_clamp_grid_grad,
    .fake_pack = cpu_fake_pack,
    .linear_grad = cpu_linear_grad,
    .sparse = cpu_sparse,
    .column_variance = cpu_column_variance,
    .count_outliers = cpu_count_outliers,
    .split_outliers = cpu_split_outliers,
};

static bool has_avx2(void) {
    unsigned a, b, c, d; /* F16C: CPUID.1:ECX[29] */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}
static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
static bool has_avx512_bf16(void) {
    return has_avx512() && __builtin_cpu_supports("avx512bf16") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
}
static bool has_generic(void) {
    return true;
}

#define KERNELS(isa)                                                                               \
    {#isa, &gemm_kernels_##isa, &attn_kernels_##isa, &elem_kernels_##isa, &grad_kernels_##isa,     \
     &kv_kernels_##isa}
static const struct {
    CpuKernels kernels;
    bool (*supported)(void);
} ISAS[] = {{KERNELS(avx512_bf16), has_avx512_bf16},
            {KERNELS(avx512), has_avx512},
            {KERNELS(avx2), has_avx2},
            {KERNELS(generic), has_generic}};
enum { N_ISAS = sizeof ISAS / sizeof ISAS[0] };

bool cpu_has_bf16(void) {
    return has_avx512_bf16();
}

const char *cpu_best_isa(void) {
    for (int i = 0; i < N_ISAS; i++)
        if (ISAS[i].supported()) return ISAS[i].kernels.isa;
    return "generic";
}

static const CpuKernels *find_kernels(const char *isa, Err *e) {
    for (int i = 0; i < N_ISAS; i++) {
        if (isa && strcmp(isa, ISAS[i].kernels.isa) != 0) continue;
        if (ISAS[i].supported()) return &ISAS[i].kernels;
        if (!isa) continue;
        err_set(e, ERR_UNSUPPORTED, "本机 CPU 不支持指令集 %s；可用的最好指令集是 %s", isa,
                cpu_best_isa());
        return NULL;
    }
    err_set(e, ERR_USAGE, "不认识的指令集「%s」；可用: generic avx2 avx512 avx512_bf16", isa);
    return NULL;
}

static int online_cpus(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    int n = CPU_COUNT(&set);
    return n < 1 ? 1 : n;
}

/* 权重块留在二级缓存里，余下的给激活与输出；查不到大小时按 512 KiB。 */
static int64_t block_bytes(void) {
    long l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (l2 <= 0) l2 = 512 * 1024;
    if (l2 > 2048 * 1024) l2 = 2048 * 1024;
    return l2 / 5 * 4;
}

static void cpu_close(Backend *b) {
    CpuBackend *c = b->impl;
    strict_close(b);
    pool_close(c->pool);
    Allocator *a = allocator_default();
    for (int i = 0; c->scratch && c->scratch_bytes && i < c->n_slots; i++)
        if (c->scratch[i]) a->release(a, c->scratch[i], c->scratch_bytes[i]);
    free(c->scratch);
    free(c->scratch_bytes);
    free(c);
    allocator_trim();
}

bool backend_open_cpu(Backend *b, int n_threads, ComputeMode compute, const char *isa, Err *e) {
    memset(b, 0, sizeof *b);
    if (n_threads < 0 || n_threads > MAX_THREADS)
        return err_set(e, ERR_USAGE, "线程数 %d 越界，应在 0（自动）到 %d 之间", n_threads,
                       MAX_THREADS);
    const CpuKernels *kernels = find_kernels(isa, e);
    if (!kernels) return false;
    if (compute == COMPUTE_BF16 && strcmp(kernels->isa, "avx512_bf16") != 0)
        return err_set(e, ERR_UNSUPPORTED,
                       "bf16 计算需要 AVX512-BF16，而选用的指令集是 %s；请改用 f32 计算",
                       kernels->isa);
    int n = n_threads ? n_threads : online_cpus();
    CpuBackend *c = calloc(1, sizeof *c);
    if (!c) return err_set(e, ERR_MEMORY, "打开 CPU 后端时内存不足");
    *b = (Backend){.ops = &CPU_OPS, .name = "cpu", .isa = kernels->isa, .compute = compute,
                   .n_threads = n, .memory = allocator_default(), .impl = c,
                   .batch_rows = CPU_BATCH_ROWS, .watched = -1,
                   .kv_tiles = compute == COMPUTE_BF16, .close = cpu_close};
    c->kernels = kernels;
    c->block_bytes = block_bytes();
    c->n_slots = 2 * n + 3;
    c->scratch = calloc((size_t)c->n_slots, sizeof *c->scratch);
    c->scratch_bytes = calloc((size_t)c->n_slots, sizeof *c->scratch_bytes);
    c->pool = pool_open(n);
    if (c->scratch && c->scratch_bytes && c->pool) return true;
    backend_close(b);
    return err_set(e, ERR_MEMORY, "无法建立 %d 个线程的线程池（内存不足或线程数受限）；请减小 --threads", n);
}

void *cpu_slot(Backend *b, int slot, size_t bytes) {
    CpuBackend *c = b->impl;
    CHECK(slot >= 0 && slot < c->n_slots);
    if (bytes == 0) bytes = 1;
    if (c->scratch_bytes[slot] >= bytes) return c->scratch[slot];
    Allocator *a = allocator_default();
    if (c->scratch[slot]) a->release(a, c->scratch[slot], c->scratch_bytes[slot]);
    c->scratch_bytes[slot] = 0;
    c->scratch[slot] = a->alloc(a, bytes);
    if (!c->scratch[slot]) {
        err_set(&b->err, ERR_MEMORY, "算子工作区需要 %zu 字节，内存不足", bytes);
        return NULL;
    }
    c->scratch_bytes[slot] = bytes;
    return c->scratch[slot];
}

void *cpu_scratch(Backend *b, int thread, size_t bytes) {
    CHECK(thread >= 0 && thread < b->n_threads);
    return cpu_slot(b, thread, bytes);
}

typedef struct ParallelJob {
    void (*fn)(void *ctx, int64_t task);
    void *ctx;
} ParallelJob;

static void parallel_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const ParallelJob *j = ctx;
    j->fn(j->ctx, task);
}

void cpu_parallel(Backend *b, int64_t n, void (*fn)(void *ctx, int64_t task), void *ctx) {
    CpuBackend *c = b->impl;
    ParallelJob j = {fn, ctx};
    pool_run(c->pool, n, parallel_task, &j);
}
