/* test_decode — 逐 token 解码与一次喂许多个 token，同一个模型的隐藏状态相同（在 bf16 计算的界内），重复一次逐位相同
 * CUDA（PTQ_TEST_DEVICE=cuda）的解码走常驻的内核（persistent.cu），一次许多个走 gemv、gemm 与预填的注意力：两条路没有共用的内核。
 * 稠密与各种位宽、组宽的权重各一遍。 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "config.h"
#include "env_info.h"
#include "methods/job.h"
#include "model/session.h"

enum { LEN = 90, FIRST = 23 /* 先一次喂进去的 */ };

typedef struct Setting {
    const char *name, *method, *overrides[4];
    DType cache;
} Setting;
static const Setting SETTINGS[] = {
    {"bf16", "fp16", {0}, DT_F16},
    {"bf16，缓存 f32", "fp16", {0}, DT_F32},
    {"W4 g128", "rtn", {"weight.w_bits=4", "weight.group_size=128"}, DT_F16},
    {"W4 g32 非对称", "rtn", {"weight.w_bits=4", "weight.group_size=32", "weight.scheme=asymmetric"}, DT_F16},
    {"W3 g64", "rtn", {"weight.w_bits=3", "weight.group_size=64", "weight.scheme=asymmetric"}, DT_F16},
    {"W2 g32", "rtn", {"weight.w_bits=2", "weight.group_size=32", "weight.scheme=asymmetric"}, DT_F16},
    {"W8 g128", "rtn", {"weight.w_bits=8", "weight.group_size=128"}, DT_F16},
    {"W5 g128（没有专门的内核）", "rtn", {"weight.w_bits=5", "weight.group_size=128"}, DT_F16},
};
enum { N_SETTINGS = sizeof SETTINGS / sizeof *SETTINGS };

static bool on_cuda(void) {
    const char *device = getenv("PTQ_TEST_DEVICE");
    return device && strcmp(device, "cuda") == 0;
}
static bool open_backend(Backend *b, Err *e) {
    if (on_cuda()) return backend_open_cuda(b, 2, COMPUTE_BF16, e);
    return backend_open_cpu(b, 2, COMPUTE_BF16, NULL, e);
}

/* 前 FIRST 个一次喂入，其余每次 piece 个。返回: 各位置的隐藏状态（malloc），在主机。 */
static float *hidden_of(Model *m, const int32_t *ids, int64_t piece) {
    Err e = {0};
    Session s;
    int64_t d = m->config.hidden;
    size_t bytes = (size_t)(LEN * d) * sizeof(float);
    Arena arena = backend_arena(m->backend);
    float *x = arena_alloc(&arena, bytes, &e), *host = malloc(bytes);
    if (!x || !host || !session_open(&s, m, LEN, LEN, &e)) fail_msg("%s", e.msg);
    for (int64_t i = 0, n = FIRST; i < LEN; i += n, n = LEN - i < piece ? LEN - i : piece)
        if (!session_forward(&s, ids + i, n, x + i * d, &e)) fail_msg("%s", e.msg);
    op_read(m->backend, host, x, bytes);
    if (!backend_check(m->backend, &e)) fail_msg("%s", e.msg);
    session_close(&s);
    arena_free(&arena);
    return host;
}
/* 各位置的相对误差（2 范数）的最大值。 */
static double worst(const float *x, const float *want, int64_t d) {
    double most = 0;
    for (int64_t i = 0; i < LEN; i++) {
        double diff = 0, all = 0;
        for (int64_t k = i * d; k < (i + 1) * d; k++) {
            diff += ((double)x[k] - (double)want[k]) * ((double)x[k] - (double)want[k]);
            all += (double)want[k] * (double)want[k];
        }
        double r = sqrt(diff / all);
        if (!(r <= most)) most = r; /* NaN 也留下 */
    }
    return most;
}

static void same_result(void **state) {
    const Setting *s = *state;
    Err e = {0};
    Config config = {0};
    Model model = {0};
    Backend backend = {0};
    QuantJob job = {.track = 'A'};
    size_t n = 0;
    while (n < 4 && s->overrides[n]) n++;
    ConfigRequest request = {.root = env_project_root(), .model = "demo", .method = s->method, .track = "A",
                             .overrides = s->overrides, .n_overrides = n, .no_download = true};
    if (!config_load(&config, &request, &e) || !open_backend(&backend, &e) ||
        !model_open(&model, "data/raw/demo/model", DT_NONE, &backend, &e) ||
        !job_run(&job, config.method, config.method_options, &model, NULL, &e))
        fail_msg("%s", e.msg);
    model.kv_dtype = s->cache;
    int32_t ids[LEN];
    for (int i = 0; i < LEN; i++) ids[i] = (int32_t)rng_below(5, 1, (uint64_t)i, (uint64_t)model.config.vocab);
    int64_t d = model.config.hidden;
    float *one = hidden_of(&model, ids, 1), *again = hidden_of(&model, ids, 1), *many = hidden_of(&model, ids, LEN);
    assert_memory_equal(one, again, (size_t)(LEN * d) * sizeof *one);
    double error = worst(one, many, d);
    print_message("%s：逐个与一次的相对误差 %.3g\n", s->name, error);
    if (!(error <= 0.03)) fail_msg("%s：逐个与一次的相对误差 %g，应不大于 0.03", s->name, error);
    free(one), free(again), free(many);
    job_close(&job);
    model_close(&model);
    backend_close(&backend);
    config_free(&config);
}

int main(void) {
    struct CMUnitTest tests[N_SETTINGS];
    for (int i = 0; i < N_SETTINGS; i++)
        tests[i] = (struct CMUnitTest){SETTINGS[i].name, same_result, NULL, NULL, (void *)&SETTINGS[i]};
    return _cmocka_run_group_tests("test_decode", tests, N_SETTINGS, NULL, NULL);
}
