/* test_logits — 前向的对照：transformers 的 logits、各层隐藏状态与 NLL
 * 对照数: $PTQ_SHARED/goldens/arch/{llama3-rope,qwen2}（随机小模型）与 real/smol.json（SmolLM2，须先 prepare_data）。
 * 容差: max |Δlogit| ≤ 2e-3，每 token 的 NLL ≤ 1e-4。 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "io/file.h"
#include "io/json.h"
#include "methods/job.h"
#include "model/session.h"

static const char *shared;

/* 打开模型并按 fp16 方法装好。 */
static void open_model(Model *m, Backend *b, const char *path, DType dtype) {
    Err e = {0};
    extern const Method ptq_method_fp16;
    QuantJob job = {0};
    if (!backend_open_cpu(b, 2, COMPUTE_F32, NULL, &e) || !model_open(m, path, dtype, b, &e) ||
        !job_run(&job, &ptq_method_fp16, NULL, m, NULL, &e))
        fail_msg("%s", e.msg);
    job_close(&job);
}

/* 最终隐藏状态 → logits (n, vocab)。 */
static float *all_logits(Model *m, Arena *a, const int32_t *ids, int64_t n, int64_t piece) {
    Err e = {0};
    Session s;
    float *hidden = ARENA_ARRAY(a, float, n * m->config.hidden, &e);
    float *out = ARENA_ARRAY(a, float, n * m->config.vocab, &e);
    assert_non_null(hidden);
    assert_non_null(out);
    if (!session_open(&s, m, n, piece, &e) || !session_forward(&s, ids, n, hidden, &e))
        fail_msg("%s", e.msg);
    op_linear(m->backend, tensor_f32(out, n, m->config.vocab),
              tensor_f32(hidden, n, m->config.hidden), m->head, tensor_f32_1d(NULL, 0));
    assert_true(backend_check(m->backend, &e));
    session_close(&s);
    return out;
}

static double max_diff(const float *a, const float *b, int64_t n) {
    double worst = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= worst)) worst = d;
    }
    return worst;
}

static void check_arch(const char *name) {
    char path[512];
    Err e = {0};
    Backend b;
    Model m;
    TensorFile golden;
    Arena a = {0};
    if (!shared) {
        print_message("没有 PTQ_SHARED，跳过 %s\n", name);
        skip();
    }
    snprintf(path, sizeof path, "%s/goldens/arch/%s/golden.safetensors", shared, name);
    if (!safetensors_open(&golden, path, &e)) fail_msg("%s", e.msg);
    snprintf(path, sizeof path, "%s/goldens/arch/%s", shared, name);
    open_model(&m, &b, path, DT_NONE);
    const FileTensor *ids_t = tensorfile_find(&golden, "input_ids");
    const FileTensor *logits_t = tensorfile_find(&golden, "logits");
    assert_non_null(ids_t);
    assert_non_null(logits_t);
    int64_t n = ids_t->shape[ids_t->n_dims - 1];
    int32_t *ids = ARENA_ARRAY(&a, int32_t, n, &e);
    for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)((const int64_t *)ids_t->data)[i];
    float *whole = all_logits(&m, &a, ids, n, n), *single = all_logits(&m, &a, ids, n, 1);
    double d = max_diff(whole, logits_t->data, n * m.config.vocab);
    print_message("%s: max |Δlogit| = %.2e\n", name, d);
    assert_true(d <= 2e-3);
    /* 逐 token 与一次前向逐位相同 */
    assert_memory_equal(whole, single, (size_t)(n * m.config.vocab) * sizeof *whole);
    model_close(&m);
    backend_close(&b);
    tensorfile_close(&golden);
    arena_free(&a);
}

static void test_llama3_rope(void **state) {
    (void)state;
    check_arch("llama3-rope");
}
static void test_qwen2(void **state) {
    (void)state;
    check_arch("qwen2");
}

static double logsumexp(const float *v, int64_t n, float top) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += exp((double)v[i] - (double)top);
    return (double)top + log(sum);
}

static void test_smollm2(void **state) {
    (void)state;
    static const char MODEL[] = "data/raw/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf";
    char path[512];
    Err e = {0};
    Backend b;
    Model m;
    Arena a = {0};
    snprintf(path, sizeof path, "%s/goldens/real/smol.json", shared ? shared : "");
    if (!shared || !file_exists(path) || !file_exists(MODEL)) {
        print_message("没有对照数据或 %s（scripts/prepare_data.sh --model smollm2-135m-instruct），跳过\n",
                      MODEL);
        skip();
    }
    json_t *golden = json_load(path, &e);
    assert_non_null(golden);
    const json_t *ids_j = json_object_get(golden, "ids"), *nll_j = json_object_get(golden, "nll");
    const json_t *top_j = json_object_get(golden, "top5");
    int64_t n = (int64_t)json_array_size(ids_j);
    int32_t *ids = ARENA_ARRAY(&a, int32_t, n, &e);
    for (int64_t i = 0; i < n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(ids_j, (size_t)i));
    open_model(&m, &b, MODEL, DT_BF16); /* 对照数的权重舍入到 bf16 */
    float *z = all_logits(&m, &a, ids, n, 128);
    double worst_logit = 0, worst_nll = 0;
    for (int64_t i = 0; i < n; i++) {
        const float *row = z + i * m.config.vocab;
        const json_t *top = json_array_get(top_j, (size_t)i);
        for (size_t k = 0; k < json_array_size(top); k++) {
            const json_t *pair = json_array_get(top, k);
            double want = json_number_value(json_array_get(pair, 1));
            double got = (double)row[json_integer_value(json_array_get(pair, 0))];
            if (fabs(got - want) > worst_logit) worst_logit = fabs(got - want);
        }
        const json_t *nll = json_array_get(nll_j, (size_t)i + 1);
        if (i + 1 >= n || !json_is_number(nll)) continue;
        float best = row[0];
        for (int64_t k = 1; k < m.config.vocab; k++)
            if (row[k] > best) best = row[k];
        double got = logsumexp(row, m.config.vocab, best) - (double)row[ids[i + 1]];
        double diff = fabs(got - json_number_value(nll));
        if (diff > worst_nll) worst_nll = diff;
    }
    print_message("SmolLM2: max |Δlogit| = %.2e, max |ΔNLL| = %.2e\n", worst_logit, worst_nll);
    assert_true(worst_logit <= 2e-3);
    assert_true(worst_nll <= 1e-4);
    json_decref(golden);
    model_close(&m);
    backend_close(&b);
    arena_free(&a);
}

int main(void) {
    shared = getenv("PTQ_SHARED");
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_llama3_rope),
                                       cmocka_unit_test(test_qwen2),
                                       cmocka_unit_test(test_smollm2)};
    return cmocka_run_group_tests_name("golden_logits", tests, NULL, NULL);
}
