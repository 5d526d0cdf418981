/* round_act — 激活就地取整：整数（转给 linear_int8.c）、FP8、LLM.int8 的混合
 * 逐元素的除法、乘法与取整，没有乘加，也没有归约之外的次序，所以与线程数、指令集无关，CUDA 上逐位相同。
 * 取整用加减一个大数：结果的末位恰是一格，就近取偶由加法自己完成。 */
#include <math.h>
#include <string.h>

#include "base/dtype.h"
#include "compute/cpu/linear.h"

enum { TASK = 64 * 1024 /* 一个任务的元素数 */ };

typedef struct RoundJob {
    const GemmKernels *k;
    float *x;
    int64_t n, d, step; /* step：一个任务几行（或几列） */
    const ActQuant *act;
    float *row_max; /* (n) */
    uint8_t *apart; /* (d) MIXED：这一列不取整 */
    float s;        /* F8：TENSOR、STATIC 的 s */
} RoundJob;

/* 到 e4m3：|x| 不大于 448。2^-6 以上三位尾数，以下（次正规数）一格 2^-9。 */
static float f8_nearest(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    uint32_t magnitude = u & 0x7FFFFFFFu, sign = u ^ magnitude;
    uint32_t normal = (magnitude + 0x7FFFFu + (magnitude >> 20 & 1)) & 0xFFF00000u;
    float a, tiny;
    memcpy(&a, &magnitude, sizeof a);
    tiny = (a + 24576.0f) - 24576.0f; /* [2^14, 2^15) 的末位是 2^-9 */
    memcpy(&u, &tiny, sizeof u);
    u = (a < 0.015625f ? u : normal) | sign;
    memcpy(&x, &u, sizeof x);
    return x;
}

static float f8_scale(float max) {
    return max == 0 ? 1 : max / 448.0f;
}

static void f8_row(float *x, int64_t d, float s) {
    for (int64_t i = 0; i < d; i++) {
        float v = x[i] / s;
        v = v > 448.0f ? 448.0f : v < -448.0f ? -448.0f : v;
        x[i] = v == v ? f8_nearest(v) * s : NAN;
    }
}

static void max_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const RoundJob *j = ctx;
    for (int64_t r = task * j->step; r < min_i64((task + 1) * j->step, j->n); r++)
        j->row_max[r] = j->k->act_absmax(j->x + r * j->d, j->d);
}

static void f8_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const RoundJob *j = ctx;
    for (int64_t r = task * j->step; r < min_i64((task + 1) * j->step, j->n); r++) {
        float *x = j->x + r * j->d, m = j->act->kind == ACT_TENSOR ? 0 : j->k->act_absmax(x, j->d);
        f8_row(x, j->d, j->act->kind == ACT_TOKEN ? f8_scale(m) : j->s + (m - m));
    }
}

static void round_f8(RoundJob *j, CpuPool *pool) {
    int64_t tasks = ceil_div(j->n, j->step);
    j->s = j->act->scale;
    if (j->act->kind == ACT_TENSOR) {
        float m = 0;
        pool_run(pool, tasks, max_task, j);
        for (int64_t r = 0; r < j->n; r++)
            if (!(j->row_max[r] <= m)) m = j->row_max[r]; /* NaN 也留下 */
        j->s = f8_scale(m);
    }
    pool_run(pool, tasks, f8_task, j);
}

static float half_of(float x) {
    return f16_to_f32(f32_to_f16(x));
}

/* 一段列里有离群值的。 */
static void apart_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const RoundJob *j = ctx;
    int64_t first = task * j->step, last = min_i64(first + j->step, j->d);
    memset(j->apart + first, 0, (size_t)(last - first));
    for (int64_t r = 0; j->act->threshold > 0 && r < j->n; r++)
        for (int64_t c = first; c < last; c++)
            j->apart[c] |= fabsf(half_of(j->x[r * j->d + c])) >= j->act->threshold;
}

static void mixed_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const RoundJob *j = ctx;
    float limit = j->act->threshold > 0 ? j->act->threshold : INFINITY;
    for (int64_t r = task * j->step; r < min_i64((task + 1) * j->step, j->n); r++) {
        float *x = j->x + r * j->d, m = 0, s, inverse;
        for (int64_t c = 0; c < j->d; c++) {
            float a = fabsf(half_of(x[c]));
            if (!(a <= m) && !(a >= limit)) m = a; /* NaN 也留下：此后只有 NaN 不大于它 */
            if (m != m) break;
        }
        inverse = m == 0 ? 0 : 127.0f / m;
        s = m * (1.0f / 127);
        for (int64_t c = 0; c < j->d; c++)
            if (!j->apart[c]) x[c] = ((half_of(x[c]) * inverse + 12582912.0f) - 12582912.0f) * s; /* 1.5·2^23 */
    }
}

static void round_mixed(RoundJob *j, CpuPool *pool) {
    int64_t rows = j->step;
    j->step = 64;
    pool_run(pool, ceil_div(j->d, j->step), apart_task, j);
    j->step = rows;
    pool_run(pool, ceil_div(j->n, j->step), mixed_task, j);
}

void cpu_round_act(Backend *b, float *x, int64_t n, int64_t d, const ActQuant *act) {
    CpuBackend *cpu = b->impl;
    RoundJob j = {.k = cpu->kernels->gemm, .x = x, .n = n, .d = d, .act = act, .step = max_i64(1, TASK / d)};
    if (act->form == ACT_INT || act->form == ACT_VALUES) {
        cpu_round_int(b, x, n, d, act);
        return;
    }
    j.row_max = cpu_slot(b, 2 * b->n_threads, (size_t)n * sizeof *j.row_max + (size_t)d);
    if (!j.row_max) return;
    j.apart = (uint8_t *)(j.row_max + n);
    if (act->form == ACT_F8)
        round_f8(&j, cpu->pool);
    else
        round_mixed(&j, cpu->pool);
}
