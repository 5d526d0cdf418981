/* test_cuda — 每个方法在 CPU 与 CUDA 上各跑一次，印出两边的 NLL 与权重误差（初稿：只印，不判）
 * 由 tests/unit/test_strict.c 改来；插件 libptq_cuda.so 由 dlopen 装入，命令见 docs/gpu.md。 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "env_info.h"
#include "runner.h"
#include "tmp.h"

#include <dlfcn.h>
static bool strict;
static Backend host;
static void (*closer)(Backend *);

bool __real_backend_open_cpu(Backend *b, int n_threads, ComputeMode compute, const char *isa,
                             Err *e);
bool __wrap_backend_open_cpu(Backend *b, int n_threads, ComputeMode compute, const char *isa,
                             Err *e);
bool __wrap_backend_open_cpu(Backend *b, int n_threads, ComputeMode compute, const char *isa,
                             Err *e) {
    if (!__real_backend_open_cpu(b, n_threads, compute, isa, e) || !strict) return b->impl != NULL;
    void *so = dlopen("build-cuda-carry/libptq_cuda.so", RTLD_NOW | RTLD_GLOBAL);
    if (!so) { fprintf(stderr, "dlopen %s\n", dlerror()); abort(); }
    bool (*open_cuda)(Backend *, const Backend *, ComputeMode, Err *) = (bool (*)(Backend *, const Backend *, ComputeMode, Err *))dlsym(so, "ptq_cuda_open");
    closer = (void (*)(Backend *))dlsym(so, "ptq_cuda_close");
    host = *b;
    return open_cuda(b, &host, compute, e);
}
void __real_backend_close(Backend *b);
void __wrap_backend_close(Backend *b);
void __wrap_backend_close(Backend *b) {
    if (b->separate && closer) { closer(b); __real_backend_close(&host); return; }
    __real_backend_close(b);
}

static void write_text(const char *path, int n) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (int i = 0; i < n; i++) fprintf(f, "The ship number %d was lying in the harbour at noon.\n", i * 37);
    fclose(f);
}

typedef struct Case {
    const char *method, *track, *overrides[6];
    bool calibrated;
} Case;

static json_t *run_case(const Case *c, const char *results) {
    char text[8][700];
    const char *list[24];
    size_t n = 0;
    const char *const common[] = {"eval.ppl_protocol=gptq-32", "eval.limit=1", "eval.speed=false",
                                  "threads=2", "calibration.samples=2", "calibration.length=16"};
    snprintf(text[0], sizeof text[0], "data_dir=%s", tmp_path("data"));
    snprintf(text[1], sizeof text[1], "results_dir=%s", results);
    snprintf(text[2], sizeof text[2], "eval.ppl_datasets=%s", tmp_path("text.txt"));
    snprintf(text[3], sizeof text[3], "calibration.dataset=%s", tmp_path("calib.txt"));
    for (int i = 0; i < (c->calibrated ? 4 : 3); i++) list[n++] = text[i];
    for (size_t i = 0; i < (c->calibrated ? 6u : 4u); i++) list[n++] = common[i];
    for (int i = 0; i < 6 && c->overrides[i]; i++) list[n++] = c->overrides[i];
    RunRequest r = {.config = {.root = env_project_root(), .model = "demo", .method = c->method,
                               .track = c->track, .overrides = list, .n_overrides = n},
                    .command = "test", .dump_linear = "model.layers.0.self_attn.k_proj",
                    .dump_dir = results};
    json_t *result = NULL;
    Err e = {0};
    if (!run_experiment(&r, &result, &e)) { printf("CASE FAIL %s %s: %s\n", c->method, c->track, e.msg); fflush(stdout); json_decref(result); return NULL; }
    return result;
}

/* 与时间、内存无关的部分。 */
static json_t *numbers(const json_t *result) {
    json_t *out = json_deep_copy(json_object_get(result, "quantization")), *v;
    const char *name;
    assert_non_null(out);
    json_object_foreach(json_object_get(json_object_get(result, "results"), "ppl"), name, v) {
        json_object_set(out, "window_nll", json_object_get(v, "window_nll"));
        json_object_set(out, "kv_cache", json_object_get(v, "kv_cache"));
        json_object_set(out, "kl", json_object_get(json_object_get(v, "baseline"), "kl"));
    }
    assert_true(json_array_size(json_object_get(out, "window_nll")) > 0);
    return out;
}

static const char *prepare(void) {
    char raw[4096];
    const char *data = tmp_path("data");
    if (mkdir(data, 0755) == 0) {
        assert_non_null(realpath("data/raw", raw));
        assert_int_equal(symlink(raw, tmp_path("data/raw")), 0);
        write_text(tmp_path("text.txt"), 20);
        write_text(tmp_path("calib.txt"), 21);
    }
    return data;
}

static void test_methods(void **state) {
    (void)state;
    static const Case CASES[] = {
        {"fp16", "A", {"eval.kl_windows=1"}, false},
        {"fp16", "A", {"max_memory=1MB"}, false},
        {"rtn", "A", {"weight.w_bits=3", "head_quant=int8"}, false},
        {"rtn", "B", {"weight.w_bits=8", "weight.granularity=per_channel", "activation.scheme=per_token"}, false},
        {"rtn", "C", {"kv_cache.k_bits=4"}, false},
        {"gptq", "A", {"gptq.act_order=true"}, true},
        {"gptq", "A", {"gptq.act_order=true", "gptq.static_groups=true", "gptq.true_sequential=true"}, true},
        {"awq", "A", {"weight.group_size=32"}, true},
        {"spqr", "A", {"weight.w_bits=3"}, true},
        {"omniquant", "A", {"omniquant.epochs=1", "omniquant.let=on"}, true},
        {"smoothquant", "B", {"smoothquant.search=true"}, true},
        {"smoothquant", "B", {"smoothquant.preset=O3"}, true},
        {"kivi", "C", {"kv_cache.k_bits=2", "kv_cache.residual_length=8", "kv_cache.group_size=8"}, false},
        {"kvquant", "C", {"kv_cache.k_bits=3"}, true},
    };
    log_set_quiet(true);
    prepare();
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        json_t *got[2]; bool bad = false;
        for (int s = 0; s < 2; s++) {
            strict = s == 1;
            got[s] = NULL; json_t *result = run_case(&CASES[i], tmp_path(s ? "strict" : "plain"));
            if (!result) { bad = true; continue; }
            got[s] = numbers(result);
            json_decref(result);
        }
        strict = false;
        if (bad) continue;
        for (int s2 = 0; s2 < 2; s2++) {
            json_t *nll = json_object_get(got[s2], "window_nll");
            printf("CASE %s %s %s nll %.9f mse %.6g\n", s2 ? "gpu" : "cpu", CASES[i].method, CASES[i].track, json_real_value(json_array_get(nll, 0)), json_number_value(json_object_get(got[s2], "weight_mse")));
        }
        fflush(stdout);
        json_decref(got[0]);
        json_decref(got[1]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_methods)};
    return cmocka_run_group_tests(tests, tmp_make, tmp_done);
}
