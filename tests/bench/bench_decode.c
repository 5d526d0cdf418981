/* bench_decode — CUDA 上一步解码的各部分单独的速度：Llama-3.1-8B 一层的形状，bf16 的权重，f16 的缓存
 * 用法: bench_decode [上下文 [次数]]。每行以 tab 分隔：批、哪一部分、微秒、GB/秒（权重与键值的字节除以时间）。
 * 几层的权重轮流用，二级缓存装不下；一部分连续派发许多次，末尾等一次，所以是流水起来的时间。「一层」是按前向的次序全做一遍。 */
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/rng.h"
#include "compute/ops.h"

enum { D = 4096, FF = 14336, HEADS = 32, KV = 8, DIM = 128, VOCAB = 128256, LAYERS = 3, MOST = 64 };
typedef enum { PART_QKV, PART_ATTEND, PART_O, PART_GATE_UP, PART_DOWN, PART_LAYER, N_PARTS } PartKind;
static const char *const NAMES[N_PARTS] = {"qkv", "注意力", "o", "gate·up", "down", "一层"};

typedef struct Layer {
    QTensor q, k, v, o, gate, up, down;
    float *norm;
    KvStore cache[MOST][2];
} Layer;
typedef struct Bench {
    Backend b;
    Arena arena;
    Layer layer[LAYERS];
    float *x, *h, *q, *k, *v, *att, *gate, *up, *cos_t, *sin_t;
    uint16_t *host;
    int64_t context;
} Bench;

static void fail(const Err *e) {
    log_line(LOG_FAIL, "%s", e->msg);
    exit(1);
}
static float *floats(Bench *s, int64_t n) {
    Err e = {0};
    float *p = ARENA_ARRAY(&s->arena, float, n, &e);
    if (!p) fail(&e);
    op_decode(&s->b, p, s->host, DT_BF16, DT_F32, n < FF * D ? n : FF * D);
    return p;
}
static void weight(Bench *s, QTensor *q, int64_t rows, int64_t cols) {
    Err e = {0};
    if (!qtensor_new_dense(q, &s->arena, DT_BF16, rows, cols, &e)) fail(&e);
    op_pack_stored(&s->b, q, s->host, DT_BF16, true);
}
static void build(Bench *s) {
    Err e = {0};
    KvFormat f = {.form = KV_DENSE, .dtype = DT_F16};
    s->host = malloc((size_t)FF * D * sizeof *s->host);
    CHECK(s->host);
    for (int64_t i = 0; i < (int64_t)FF * D; i++) s->host[i] = f32_to_bf16((float)(rng_unit(1, 2, (uint64_t)i) * 0.04 - 0.02));
    for (int l = 0; l < LAYERS; l++) {
        Layer *y = &s->layer[l];
        weight(s, &y->q, HEADS * DIM, D), weight(s, &y->k, KV * DIM, D), weight(s, &y->v, KV * DIM, D);
        weight(s, &y->o, D, HEADS * DIM), weight(s, &y->gate, FF, D), weight(s, &y->up, FF, D), weight(s, &y->down, D, FF);
        y->norm = floats(s, D);
        for (int i = 0; i < MOST; i++)
            for (int side = 0; side < 2; side++)
                if (!kvstore_new(&y->cache[i][side], &s->arena, &f, KV, DIM, s->context + 1, &e)) fail(&e);
    }
    s->x = floats(s, MOST * D), s->h = floats(s, MOST * D), s->q = floats(s, MOST * D), s->att = floats(s, MOST * D);
    s->k = floats(s, MOST * KV * DIM), s->v = floats(s, MOST * KV * DIM), s->gate = floats(s, MOST * FF), s->up = floats(s, MOST * FF);
    s->cos_t = floats(s, (s->context + 1) * DIM / 2), s->sin_t = floats(s, (s->context + 1) * DIM / 2);
}

static void attend(Bench *s, Layer *y, int64_t n) {
    for (int64_t at = 0; at < n; at += STEP_MAX_ROWS) {
        StepRow rows[STEP_MAX_ROWS];
        StepJob job = {.n = n - at < STEP_MAX_ROWS ? n - at : STEP_MAX_ROWS, .rows = rows, .q = s->q + at * D, .k = s->k + at * KV * DIM,
                       .v = s->v + at * KV * DIM, .out = s->att + at * D, .cos_table = s->cos_t, .sin_table = s->sin_t, .half = DIM / 2,
                       .spec = {.n_heads = HEADS, .n_kv_heads = KV, .head_dim = DIM, .scale = 0.088f}};
        for (int64_t i = 0; i < job.n; i++) {
            KvStore *c = y->cache[at + i];
            c[0].length = c[1].length = s->context;
            rows[i] = (StepRow){&c[0], &c[1], s->context};
        }
        op_attend_step(&s->b, &job);
    }
}
static void run(Bench *s, Layer *y, PartKind part, int64_t n) {
    bool all = part == PART_LAYER;
    LinearIn norm = {.kind = IN_NORM, .x = s->x, .tmp = s->h, .norm = {y->norm, NULL, 1, 1e-5f, false}};
    LinearIn act = {.kind = IN_ACTIVATE, .x = s->gate, .up = s->up, .f = ACTF_SILU, .opaque = true, .tmp = s->gate};
    LinearOut qkv[3] = {{.y = s->q, .w = &y->q}, {.y = s->k, .w = &y->k}, {.y = s->v, .w = &y->v}};
    LinearOut pair[2] = {{.y = s->gate, .w = &y->gate, .opaque = true, .f = ACTF_SILU}, {.y = s->up, .w = &y->up, .opaque = true, .f = ACTF_SILU}};
    LinearOut o = {.y = s->x, .w = &y->o, .sum = s->h}, down = {.y = s->x, .w = &y->down, .sum = s->h};
    if (all || part == PART_QKV) op_linear_from(&s->b, qkv, 3, &norm, n);
    if (all || part == PART_ATTEND) attend(s, y, n);
    if (all || part == PART_O) op_linear_from(&s->b, &o, 1, &(LinearIn){.x = s->att}, n);
    if (all || part == PART_GATE_UP) op_linear_from(&s->b, pair, 2, &norm, n);
    if (all || part == PART_DOWN) op_linear_from(&s->b, &down, 1, &act, n);
}
static double bytes_of(PartKind part, int64_t n, int64_t context) {
    const double each[] = {2.0 * D * (HEADS + 2 * KV) * DIM, 4.0 * (double)(n * context) * KV * DIM, 2.0 * D * HEADS * DIM, 4.0 * D * FF, 2.0 * D * FF};
    double sum = 0;
    for (int i = 0; i < PART_LAYER; i++) sum += each[i];
    return part == PART_LAYER ? sum : each[part];
}
static void measure(Bench *s, PartKind part, int64_t n, int reps) {
    Err e = {0};
    float last;
    double best = 1e9;
    if (part == PART_DOWN) run(s, &s->layer[0], PART_GATE_UP, n); /* down 的输入是它的不透明的输出 */
    for (int trial = 0; trial < 3; trial++) {
        op_read(&s->b, &last, s->x, sizeof last);
        double t = clock_seconds();
        for (int i = 0; i < reps; i++) run(s, &s->layer[i % LAYERS], part, n);
        op_read(&s->b, &last, s->x, sizeof last);
        t = (clock_seconds() - t) / reps;
        if (t < best) best = t;
    }
    if (!backend_check(&s->b, &e)) fail(&e);
    printf("%lld\t%s\t%.1f\t%.0f\n", (long long)n, NAMES[part], best * 1e6, bytes_of(part, n, s->context) / best / 1e9);
}

int main(int argc, char **argv) {
    static const int64_t NS[] = {1, 8, 16, 32, 64};
    static Bench s;
    Err e = {0};
    int reps = argc > 2 ? atoi(argv[2]) : 60;
    s.context = argc > 1 ? atoll(argv[1]) : 512;
    if (argc > 3 || reps < 1 || s.context < 1) {
        log_line(LOG_FAIL, "用法: bench_decode [上下文 [次数]]");
        return 2;
    }
    if (!backend_open_cuda(&s.b, 2, COMPUTE_BF16, &e)) fail(&e);
    s.arena = backend_arena(&s.b);
    build(&s);
    printf("批\t部分\t微秒\tGB/秒\n");
    for (size_t i = 0; i < sizeof NS / sizeof *NS; i++)
        for (int part = 0; part < N_PARTS; part++) measure(&s, (PartKind)part, NS[i], reps);
    arena_free(&s.arena);
    free(s.host);
    backend_close(&s.b);
    return 0;
}
