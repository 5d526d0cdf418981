/* bench_kernels — 矩阵乘内核的速度：形状 × 权重类型 × 线程，与本机乘加峰值对照
 * 用法: bench_kernels [REPS [MAX_THREADS]]。每行以 tab 分隔；速率取 REPS 次中最好的一次。
 * wall 按墙钟；cpu 按进程的 CPU 时间（乘线程数），机器上有别的进程时也不失真。
 * fraction 是 cpu 与同一进程里交替测得的寄存器内乘加峰值（同样按 CPU 时间）之比；GB/s 是读权重的带宽。 */
#include <immintrin.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/log.h"
#include "compute/cpu/cpu.h"
#include "compute/ops.h"

enum { W8A8 = 88, CHAINS = 12, ROUNDS = 4 * 1000 * 1000, MAX_REPS = 1000 };

/* 寄存器内的峰值：12 条互相独立的链，每轮各一次乘加。 */
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define DECLARE(i) __m512 a##i = _mm512_setzero_ps();
#define KEEP(i) __asm__ volatile("" : "+v"(a##i));
#define STEP_F32(i) a##i = _mm512_fmadd_ps(a##i, x, x);
#define STEP_BF16(i) a##i = _mm512_dpbf16_ps(a##i, h, h);
__attribute__((target("avx512f"))) static void peak_f32(void *ctx, int64_t task, int thread) {
    (void)ctx, (void)task, (void)thread;
    __m512 x = _mm512_set1_ps(0.5f);
    EACH(DECLARE)
    for (int r = 0; r < ROUNDS; r++) { EACH(STEP_F32) EACH(KEEP) }
}
__attribute__((target("avx512f,avx512bw,avx512bf16"))) static void peak_bf16(void *ctx,
                                                                             int64_t task,
                                                                             int thread) {
    (void)ctx, (void)task, (void)thread;
    __m512bh h = (__m512bh)_mm512_set1_epi32(0x3F003F00);
    EACH(DECLARE)
    for (int r = 0; r < ROUNDS; r++) { EACH(STEP_BF16) EACH(KEEP) }
}

#define STEP_INT8(i) a##i = (__m512)_mm512_dpbusd_epi32((__m512i)a##i, k, k);
__attribute__((target("avx512f,avx512bw,avx512vnni"))) static void peak_int8(void *ctx,
                                                                             int64_t task,
                                                                             int thread) {
    (void)ctx, (void)task, (void)thread;
    __m512i k = _mm512_set1_epi32(0x01010101);
    EACH(DECLARE)
    for (int r = 0; r < ROUNDS; r++) { EACH(STEP_INT8) EACH(KEEP) }
}

static const ActQuant ACT = {.kind = ACT_TOKEN, .bits = 8};

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* 一次峰值测量（GFLOP/s，按 CPU 时间），每线程一个任务。 */
static double peak_once(Backend *b, bool int8) {
    bool bf16 = b->compute == COMPUTE_BF16;
    double t = cpu_seconds();
    pool_run(((CpuBackend *)b->impl)->pool, b->n_threads,
             int8 ? peak_int8 : bf16 ? peak_bf16 : peak_f32, NULL);
    t = (cpu_seconds() - t) / b->n_threads;
    return (int8 ? 128.0 : bf16 ? 64.0 : 32.0) * CHAINS * ROUNDS * b->n_threads / t * 1e-9;
}

static void fill(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = (float)(i * 37 % 101 - 50) * 0.01f;
}

/* 建一个 (rows, cols) 的权重：bits 为 0 时是稠密类型 dense，为 W8A8 时是整行一组的 INT8。 */
static bool make_weight(Backend *b, QTensor *q, Arena *a, DType dense, int bits, int64_t rows,
                        int64_t cols, Err *e) {
    ArenaMark mark;
    Arena temp = {0};
    float *w = ARENA_ARRAY(&temp, float, rows *cols, e);
    if (!w) return false;
    fill(w, rows * cols);
    mark = arena_mark(a);
    bool ok;
    if (bits) {
        QSpec s = {bits, 128, ZERO_INT, DT_F16, GRID_GPTQ, CODE_INT};
        if (bits == W8A8) s = (QSpec){8, -1, ZERO_SYM, DT_F32, GRID_ABSMAX, CODE_INT};
        ok = qtensor_new(q, a, s, rows, cols, e);
        int64_t n = ok ? rows * q->n_groups : 1;
        float *scale = ARENA_ARRAY(&temp, float, n, e), *zero = ARENA_ARRAY(&temp, float, n, e);
        ok = ok && scale && zero;
        if (ok) {
            Tensor ts = tensor_f32(scale, rows, q->n_groups), tz = tensor_f32(zero, rows, q->n_groups);
            op_qparams(b, ts, tz, tensor_f32(w, rows, cols), &s);
            op_quantize(b, q, tensor_f32(w, rows, cols), ts, tz);
        }
    } else {
        ok = qtensor_new_dense(q, a, dense, rows, cols, e);
        if (ok) op_pack_dense(b, q, tensor_f32(w, rows, cols));
    }
    if (!ok) arena_rewind(a, mark);
    arena_free(&temp);
    return ok && backend_check(b, e);
}

static bool bench_one(Backend *b, DType dense, int bits, int64_t n, int64_t cols, int64_t rows,
                      int reps) {
    Arena a = {0};
    Err e = {0};
    QTensor q;
    float *x = ARENA_ARRAY(&a, float, n *cols, &e), *y = ARENA_ARRAY(&a, float, n *rows, &e);
    bool ok = x && y && make_weight(b, &q, &a, dense, bits, rows, cols, &e);
    double wall = 1e30, cpu = 1e30, peak = 0;
    if (ok) fill(x, n * cols);
    for (int i = 0; ok && i < reps; i++) {
        double p = peak_once(b, bits == W8A8);
        if (p > peak) peak = p;
        double t = clock_seconds(), c = cpu_seconds();
        if (bits == W8A8)
            op_linear_int8(b, tensor_f32(y, n, rows), tensor_f32(x, n, cols), &q, (Tensor){0}, &ACT);
        else
            op_linear(b, tensor_f32(y, n, rows), tensor_f32(x, n, cols), &q, (Tensor){0});
        t = clock_seconds() - t;
        c = (cpu_seconds() - c) / b->n_threads;
        if (t < wall) wall = t;
        if (c < cpu) cpu = c;
        ok = backend_check(b, &e);
    }
    if (ok) {
        char type[16];
        if (bits == W8A8)
            snprintf(type, sizeof type, "W8A8");
        else if (bits)
            snprintf(type, sizeof type, "INT%d", bits);
        else
            snprintf(type, sizeof type, "%s", dtype_name(dense));
        double work = 2e-9 * (double)n * (double)rows * (double)cols;
        printf("%s\t%s\t%d\t%lldx%lldx%lld\t%.1f\t%.1f\t%.1f\t%.3f\t%.1f\n",
               b->compute == COMPUTE_BF16 ? "bf16" : "f32", type, b->n_threads, (long long)n,
               (long long)cols, (long long)rows, work / wall, work / cpu, peak, work / cpu / peak,
               (double)qtensor_bytes(&q) / cpu * 1e-9);
        fflush(stdout);
    } else {
        log_line(LOG_FAIL, "%s", e.msg);
    }
    arena_free(&a);
    return ok;
}

static bool bench_backend(ComputeMode mode, int threads, int reps) {
    static const int64_t SHAPES[][3] = {{2048, 576, 576},   {2048, 576, 1536}, {2048, 1536, 576},
                                        {2048, 576, 49152}, {2048, 256, 768},  {2048, 4096, 4096}};
    static const struct {
        DType dense;
        int bits;
    } TYPES[] = {{DT_F32, 0}, {DT_F16, 0}, {DT_BF16, 0}, {DT_NONE, 8}, {DT_NONE, 4}, {DT_NONE, 3}};
    Backend b;
    Err e = {0};
    if (!backend_open_cpu(&b, threads, mode, NULL, &e)) {
        log_line(LOG_FAIL, "%s", e.msg);
        return false;
    }
    bool ok = true;
    for (size_t i = 0; ok && i < sizeof SHAPES / sizeof *SHAPES; i++) {
        const int64_t *s = SHAPES[i];
        ok = bench_one(&b, mode == COMPUTE_BF16 ? DT_BF16 : DT_F32, 0, s[0], s[1], s[2], reps);
    }
    for (size_t i = 0; ok && i < sizeof TYPES / sizeof *TYPES; i++)
        ok = bench_one(&b, TYPES[i].dense, TYPES[i].bits, 2048, 576, 1536, reps);
    for (size_t i = 0; ok && i < sizeof TYPES / sizeof *TYPES; i++)
        ok = bench_one(&b, TYPES[i].dense, TYPES[i].bits, 1, 576, 49152, 4 * reps);
    for (size_t i = 0; ok && mode == COMPUTE_F32 && i < sizeof SHAPES / sizeof *SHAPES; i++)
        ok = bench_one(&b, DT_NONE, W8A8, SHAPES[i][0], SHAPES[i][1], SHAPES[i][2], reps);
    if (mode == COMPUTE_F32) ok = ok && bench_one(&b, DT_NONE, W8A8, 1, 576, 49152, 4 * reps);
    for (int n = 2; ok && n <= 8; n *= 2)
        ok = bench_one(&b, DT_NONE, 4, n, 576, 49152, 2 * reps);
    backend_close(&b);
    return ok;
}

int main(int argc, char **argv) {
    int reps = argc > 1 ? atoi(argv[1]) : 10, max = argc > 2 ? atoi(argv[2]) : 2;
    if (reps < 1 || reps > MAX_REPS || max < 1) {
        log_line(LOG_FAIL, "用法: bench_kernels [REPS(1..%d) [MAX_THREADS]]", MAX_REPS);
        return 2;
    }
    if (!__builtin_cpu_supports("avx512f")) {
        log_line(LOG_WARN, "本机没有 AVX-512，无法测乘加峰值");
        return 0;
    }
    printf("mode\ttype\tthreads\tn×in×out\twall_GFLOP/s\tcpu_GFLOP/s\tpeak\tfraction\tweight_GB/s\n");
    for (int t = 1; t <= max; t++) {
        if (!bench_backend(COMPUTE_F32, t, reps)) return 1;
        if (cpu_has_bf16() && !bench_backend(COMPUTE_BF16, t, reps)) return 1;
    }
    return 0;
}
