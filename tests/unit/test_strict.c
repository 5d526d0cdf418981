/* test_strict — 主机的代码不直接碰后端的内存
 * 每个方法在严格模式的后端（backend_make_strict：内存平时不可读写，映射是复制的）上各跑一次，直接碰就崩溃；
 * 结果须与普通的 CPU 后端逐位相同。显卡上的内存也是这样分开的，所以没有显卡也能查出这类错误。
 * 链接时 --wrap=backend_open_cpu（见 Makefile）：strict 为真时打开的后端都是严格的。 */
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

/* 插桩构建里只跑严格的一遍：与普通后端的比较由不插桩的构建做 */
#ifdef __SANITIZE_ADDRESS__
enum { FIRST = 1 };
#else
enum { FIRST = 0 };
#endif

static bool strict;

bool __real_backend_open_cpu(Backend *b, int n_threads, ComputeMode compute, const char *isa,
                             Err *e);
bool __wrap_backend_open_cpu(Backend *b, int n_threads, ComputeMode compute, const char *isa,
                             Err *e);
bool __wrap_backend_open_cpu(Backend *b, int n_threads, ComputeMode compute, const char *isa,
                             Err *e) {
    return __real_backend_open_cpu(b, n_threads, compute, isa, e) &&
           (!strict || backend_make_strict(b, e));
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
    if (!run_experiment(&r, &result, &e)) fail_msg("%s（%s）：%s", c->method, c->track, e.msg);
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
        {"fp16", "A", {"max_memory=30MB"}, false},
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
        json_t *got[2] = {0};
        for (int s = FIRST; s < 2; s++) {
            strict = s == 1;
            json_t *result = run_case(&CASES[i], tmp_path(s ? "strict" : "plain"));
            got[s] = numbers(result);
            json_decref(result);
        }
        strict = false;
        if (FIRST == 0 && !json_equal(got[0], got[1])) {
            char *a = json_dumps(got[0], JSON_SORT_KEYS), *b = json_dumps(got[1], JSON_SORT_KEYS);
            fail_msg("%s（%s）的结果不同\n普通 %s\n严格 %s", CASES[i].method, CASES[i].track, a, b);
        }
        for (int s = FIRST; s < 2; s++) json_decref(got[s]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_methods)};
    return cmocka_run_group_tests(tests, tmp_make, tmp_done);
}
