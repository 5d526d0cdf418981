/* bench_attention — 注意力与打分的微基准：占乘加峰值的几成
 * 用法: bench_attention [线程数=1]。注意力只数因果的一半（4·n²/2·dim·heads）；峰值按每核每周期
 * 32 flop（f32，一条 512 位乘加）或 64 flop（bf16）与实测主频计。时间取几次中最快的一次（单线程时为线程 CPU 时间）。 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/rng.h"
#include "compute/ops.h"

static int n_threads = 1;

static double now(void) {
    struct timespec t;
    clock_gettime(n_threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* 主频：一串相依的加法，每周期一次（每圈 8 次，盖过循环本身的开销） */
static double clock_hz(void) {
    enum { N = 2500000 };
    double best = 0;
    for (int k = 0; k < 8; k++) {
        double t = now();
        uint64_t x = (uint64_t)k;
        for (int i = 0; i < N; i++)
            __asm__ volatile("inc %0\n inc %0\n inc %0\n inc %0\n"
                             "inc %0\n inc %0\n inc %0\n inc %0\n"
                             : "+r"(x));
        t = now() - t;
        if (8.0 * N / t > best) best = 8.0 * N / t;
    }
    return best;
}

static float *random_array(int64_t n, uint64_t stream) {
    float *x = malloc(sizeof *x * (size_t)n);
    if (!x) exit(1);
    for (int64_t i = 0; i < n; i++) x[i] = (float)(rng_unit(1, stream, (uint64_t)i) * 2 - 1);
    return x;
}

static void report(const char *what, const Backend *b, double flop, double seconds, double hz) {
    double peak = hz * (b->compute == COMPUTE_BF16 ? 64 : 32) * b->n_threads;
    printf("%-28s %-12s %s  %8.3f ms  %7.1f GFlop/s  峰值的 %5.1f %%\n", what, b->isa,
           b->compute == COMPUTE_BF16 ? "bf16" : "f32 ", seconds * 1e3, flop / seconds * 1e-9,
           100 * flop / seconds / peak);
}

static void bench_attention(Backend *b, int64_t n, int64_t first, int64_t heads, int64_t kv_heads,
                            int64_t dim, double hz) {
    int64_t keys = first + n;
    float *q = random_array(n * heads * dim, 1), *k = random_array(keys * kv_heads * dim, 2);
    float *v = random_array(keys * kv_heads * dim, 3), *out = random_array(n * heads * dim, 4);
    AttnSpec s = {.n_heads = heads, .n_kv_heads = kv_heads, .head_dim = dim, .first = first,
                  .scale = 0.125f};
    double best = 1e9;
    for (int r = 0; r < 12; r++) {
        double t = now();
        op_attention(b, tensor_f32_3d(out, n, heads, dim), tensor_f32_3d(q, n, heads, dim),
                     tensor_f32_3d(k, keys, kv_heads, dim), tensor_f32_3d(v, keys, kv_heads, dim),
                     &s);
        t = now() - t;
        if (t < best) best = t;
    }
    char what[64];
    snprintf(what, sizeof what, "attention n=%d+%d %d/%d/%d", (int)first, (int)n, (int)heads,
             (int)kv_heads, (int)dim);
    double pairs = (double)n * (double)first + (double)n * (double)n / 2;
    report(what, b, 4 * pairs * (double)(dim * heads), best, hz);
    free(q);
    free(k);
    free(v);
    free(out);
}

static void bench_score(Backend *b, int64_t n, int64_t d, int64_t vocab, double hz) {
    Arena arena = {0};
    Err e = {0};
    QTensor head;
    float *w = random_array(vocab * d, 5), *x = random_array(n * d, 6);
    double *nll = malloc(sizeof *nll * (size_t)n), best = 1e9;
    int32_t *ids = calloc((size_t)n, sizeof *ids), *top1 = malloc(sizeof *top1 * (size_t)n);
    DType dtype = b->compute == COMPUTE_BF16 ? DT_BF16 : DT_F32;
    if (!nll || !ids || !top1 || !qtensor_new_dense(&head, &arena, dtype, vocab, d, &e)) exit(1);
    op_pack_dense(b, &head, tensor_f32(w, vocab, d));
    for (int r = 0; r < 3; r++) {
        double t = now();
        ScoreJob job = {.n = n, .x = x, .head = &head, .targets = ids, .nll = nll, .top1 = top1};
        op_score(b, &job);
        t = now() - t;
        if (t < best) best = t;
    }
    char what[64];
    snprintf(what, sizeof what, "score %dx%d->%d", (int)n, (int)d, (int)vocab);
    report(what, b, 2.0 * (double)n * (double)d * (double)vocab, best, hz);
    free(w);
    free(x);
    free(nll);
    free(ids);
    free(top1);
    arena_free(&arena);
}

int main(int argc, char **argv) {
    if (argc > 1) n_threads = atoi(argv[1]);
    double hz = clock_hz();
    printf("主频 %.2f GHz，%d 线程\n", hz * 1e-9, n_threads);
    static const char *const ISAS[] = {"avx512_bf16", "avx512_bf16", "avx512", "avx2", "generic"};
    for (int i = 0; i < 5; i++) {
        Backend b;
        Err e = {0};
        if (!backend_open_cpu(&b, n_threads, i == 0 ? COMPUTE_BF16 : COMPUTE_F32, ISAS[i], &e))
            continue;
        bench_attention(&b, 2048, 0, 9, 3, 64, hz);
        bench_attention(&b, 512, 0, 32, 8, 128, hz);
        bench_attention(&b, 1, 2047, 9, 3, 64, hz);
        if (i < 2) bench_score(&b, 2048, 576, 49152, hz);
        backend_close(&b);
    }
    return 0;
}
