/* result_fixture — 测试用的结果 JSON：形状与 runner 写的相同，数字由参数给出 */
#ifndef PTQ_TESTS_UNIT_RESULT_FIXTURE_H
#define PTQ_TESTS_UNIT_RESULT_FIXTURE_H
#include <math.h>
#include <stdlib.h>

#include "io/json.h"

typedef struct Fixture {
    const char *method, *started, *run_key;
    int bits;       /* 0 为 fp16 */
    double shift;   /* 每窗 NLL 比基准高多少 */
    double wobble;  /* 各窗再上下错开多少 */
    const char *protocol, *compute;
    int n_windows;
} Fixture;

static inline json_t *fixture_result(Fixture f) {
    if (!f.protocol) f.protocol = "gptq-512";
    if (!f.compute) f.compute = "float32";
    if (!f.n_windows) f.n_windows = 40;
    json_t *nll = json_array();
    double sum = 0;
    for (int i = 0; i < f.n_windows; i++) {
        double v = 3 + 0.2 * ((i * 37) % 11) / 10.0 + f.shift + ((i * 7) % 5 - 2) * f.wobble;
        json_array_append_new(nll, json_real(v));
        sum += v;
    }
    double mean = sum / f.n_windows;
    json_t *settings = f.bits ? json_pack("{s:i, s:i, s:s, s:s}", "weight.w_bits", f.bits,
                                          "weight.group_size", 64, "weight.granularity",
                                          "per_group", "weight.scheme", "symmetric")
                              : json_object();
    double width = f.bits ? f.bits + 0.5 : 16;
    json_t *r = json_pack(
        "{s:s, s:{s:b, s:s, s:s}, s:s, s:{s:s, s:s, s:s, s:[], s:{}}, s:{s:s, s:s}, s:{s:o, s:{s:f, "
        "s:f}}, s:{s:{s:{s:f, s:f, s:s, s:f, s:i, s:i, s:s, s:o}}, s:{}, s:{s:n, s:f, s:f, s:f, s:f}}, "
        "s:f, s:{s:s, s:f}, s:{s:s}, s:[], s:[], s:s, s:{s:n}}",
        "schema", "ptq-bench/1", "status", "ok", 1, "code", "none", "message", "", "run_key",
        f.run_key ? f.run_key : "k", "config", "model", "demo", "method", f.method, "track", "A",
        "overrides", "merged", "model", "dtype", "BF16", "weights_sha256", "w", "quantization",
        "settings", settings, "effective_bits", "linear", width, "model", width + 1, "results",
        "ppl", "demo", "ppl", exp(mean), "ppl_stderr", 0.1, "protocol", f.protocol, "nll_mean",
        mean, "n_windows", f.n_windows, "n_windows_total", 40, "text_sha256", "t", "window_nll",
        nll, "lm_eval", "system_metrics", "vram_peak_mb", "rss_peak_mb", 50.0, "weights_mb", width,
        "prefill_tok_s", 1000.0, "decode_tok_s", 100.0, "quant_time_seconds", 0.5, "time",
        "started", f.started ? f.started : "2026-02-14T10:25:53+0000", "seconds", 1.5, "compute",
        "mode", f.compute, "fallbacks", "warnings", "command", "ptq-bench run_one", "environment",
        "gpu");
    if (!r) abort();
    return r;
}

/* 改成失败的结果。 */
static inline void fixture_fail(json_t *r, const char *code, const char *message) {
    json_t *s = json_object_get(r, "status");
    json_object_set_new(s, "ok", json_false());
    json_object_set_new(s, "code", json_string(code));
    json_object_set_new(s, "message", json_string(message));
    json_object_set_new(json_object_get(r, "results"), "ppl", json_object());
}
#endif
