/* test_logits — 前向的对照：transformers 的 logits、各层隐藏状态与 NLL
 * 对照数: $PTQ_SHARED/goldens/arch/ 里的每个家族（随机小模型；$PTQ_ARCH 可另指一个同样的文件夹，make test-families 用）与
 * real/ 的 SmolLM2（须先 prepare_data）与 Gemma 3 270M（make test-gemma，$PTQ_GEMMA 是它的 GGUF）。容差: 随机小模型的 logits 与
 * 隐藏状态相对最大值 1e-5，真实模型的 logit 2e-3、每 token 的 NLL 1e-4。 */
#include <dirent.h>
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
static const double TOLERANCE = 1e-5;

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
    model_logits(m, out, hidden, n);
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

static double max_abs(const float *a, int64_t n) {
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, fabs((double)a[i]));
    return most;
}

/* 各层的隐藏状态：hidden.0 是进入首块的词嵌入，此后是各块的输出，最后一个还过了最终归一化。 */
static double hidden_diff(Model *m, const TensorFile *golden, const int32_t *ids, int64_t n) {
    Workspace w;
    Err e = {0};
    Segment s = {.n = n};
    const ModelConfig *c = &m->config;
    double worst = 0;
    assert_true(workspace_open(&w, m, n, &e) && model_ensure_rope(m, n, &e));
    forward_embed(m, &w, ids, n, &s, 1);
    for (int64_t l = 0; l <= c->n_layers; l++) {
        char name[32];
        float *got = w.x;
        snprintf(name, sizeof name, "hidden.%lld", (long long)l);
        const FileTensor *t = tensorfile_find(golden, name);
        if (l == c->n_layers) {
            forward_finish(m, w.h, w.x, n);
            op_multiply(m->backend, tensor_f32(w.h, n, c->hidden), tensor_f32(w.h, n, c->hidden),
                        (float)(1 / c->logit_scale));
            got = w.h;
        }
        if (t) worst = fmax(worst, max_diff(got, t->data, n * c->hidden) / max_abs(t->data, n * c->hidden));
        if (l < c->n_layers && !block_forward(m, l, &w, n, &s, 1, NULL, &e)) fail_msg("%s", e.msg);
    }
    workspace_close(&w);
    return worst;
}

/* 一串 ids 与它的 logits；prefix 为 "" 或 "short."。 */
static void check_ids(Model *m, const TensorFile *golden, const char *name, const char *prefix) {
    char key[32];
    Arena a = {0};
    Err e = {0};
    snprintf(key, sizeof key, "%sinput_ids", prefix);
    const FileTensor *ids_t = tensorfile_find(golden, key);
    snprintf(key, sizeof key, "%slogits", prefix);
    const FileTensor *logits_t = tensorfile_find(golden, key);
    if (!ids_t && *prefix) return;
    assert_non_null(ids_t);
    assert_non_null(logits_t);
    int64_t n = ids_t->shape[ids_t->n_dims - 1], size = n * m->config.vocab;
    int32_t *ids = ARENA_ARRAY(&a, int32_t, n, &e);
    for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)((const int64_t *)ids_t->data)[i];
    float *whole = all_logits(m, &a, ids, n, n), *single = all_logits(m, &a, ids, n, 1);
    double d = max_diff(whole, logits_t->data, size) / max_abs(logits_t->data, size);
    double h = *prefix ? 0 : hidden_diff(m, golden, ids, n);
    print_message("%s %s: 相对最大值，logits 差 %.1e，隐藏状态差 %.1e\n", name, prefix, d, h);
    if (!(d <= TOLERANCE && h <= TOLERANCE)) fail_msg("%s 超过 %.0e", name, TOLERANCE);
    /* 逐 token 与一次前向逐位相同 */
    assert_memory_equal(whole, single, (size_t)size * sizeof *whole);
    arena_free(&a);
}

static void check_arch(const char *dir, const char *name) {
    char path[512];
    Err e = {0};
    Backend b;
    Model m;
    TensorFile golden;
    snprintf(path, sizeof path, "%s/%s/golden.safetensors", dir, name);
    if (!safetensors_open(&golden, path, &e)) fail_msg("%s", e.msg);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    open_model(&m, &b, path, DT_NONE);
    check_ids(&m, &golden, name, "");
    check_ids(&m, &golden, name, "short.");
    model_close(&m);
    backend_close(&b);
    tensorfile_close(&golden);
}

/* $PTQ_ARCH（缺省 $PTQ_SHARED/goldens/arch）里的每一个文件夹；排序以使输出固定。 */
static void test_arch(void **state) {
    (void)state;
    char dir[512];
    const char *own = getenv("PTQ_ARCH");
    struct dirent **list = NULL;
    if (!shared && !own) {
        print_message("没有 PTQ_SHARED，跳过\n");
        skip();
    }
    snprintf(dir, sizeof dir, own ? "%s" : "%s/goldens/arch", own ? own : shared);
    int n = scandir(dir, &list, NULL, alphasort), checked = 0;
    for (int i = 0; i < n; i++) {
        if (list[i]->d_name[0] != '.') check_arch(dir, list[i]->d_name), checked++;
        free(list[i]);
    }
    free(list);
    if (checked == 0) fail_msg("%s 里没有对照的模型", dir);
}

static double logsumexp(const float *v, int64_t n, float top) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += exp((double)v[i] - (double)top);
    return (double)top + log(sum);
}

/* 对照 goldens/real/ 的一份：模型文件 model，各位置的前五个 logits 与 NLL。 */
static void check_real(const char *path, const char *model) {
    Err e = {0};
    Backend b;
    Model m;
    Arena a = {0};
    json_t *golden = json_load(path, &e);
    assert_non_null(golden);
    const json_t *ids_j = json_object_get(golden, "ids"), *nll_j = json_object_get(golden, "nll");
    const json_t *top_j = json_object_get(golden, "top5");
    int64_t n = (int64_t)json_array_size(ids_j);
    int32_t *ids = ARENA_ARRAY(&a, int32_t, n, &e);
    for (int64_t i = 0; i < n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(ids_j, (size_t)i));
    open_model(&m, &b, model, DT_BF16); /* 对照数的权重舍入到 bf16 */
    float *z = all_logits(&m, &a, ids, n, 128);
    double worst_logit = 0, worst_nll = 0;
    for (int64_t i = 0; i < n; i++) {
        const float *row = z + i * m.config.vocab;
        const json_t *top = json_array_get(top_j, (size_t)i);
        for (size_t k = 0; k < json_array_size(top); k++) {
            const json_t *pair = json_array_get(top, k);
            double want = json_number_value(json_array_get(pair, 1));
            double got = (double)row[json_integer_value(json_array_get(pair, 0))];
            if (!(fabs(got - want) <= worst_logit)) worst_logit = fabs(got - want);
        }
        const json_t *nll = json_array_get(nll_j, (size_t)i + 1);
        if (i + 1 >= n || !json_is_number(nll)) continue;
        float best = row[0];
        for (int64_t k = 1; k < m.config.vocab; k++)
            if (row[k] > best) best = row[k];
        double got = logsumexp(row, m.config.vocab, best) - (double)row[ids[i + 1]];
        double diff = fabs(got - json_number_value(nll));
        if (!(diff <= worst_nll)) worst_nll = diff;
    }
    print_message("%s: max |Δlogit| = %.2e, max |ΔNLL| = %.2e\n", model, worst_logit, worst_nll);
    assert_true(worst_logit <= 2e-3);
    assert_true(worst_nll <= 1e-4);
    json_decref(golden);
    model_close(&m);
    backend_close(&b);
    arena_free(&a);
}

/* 缺对照数或模型就跳过；hint 说模型从哪里来。 */
static void test_real(const char *name, const char *model, const char *hint) {
    char path[512];
    snprintf(path, sizeof path, "%s/goldens/real/%s.json", shared ? shared : "", name);
    if (!shared || !file_exists(path) || !model || !file_exists(model)) {
        print_message("没有对照数据 %s.json 或它的模型（%s），跳过\n", name, hint);
        skip();
    }
    check_real(path, model);
}

static void test_smollm2(void **state) {
    (void)state;
    test_real("smol", "data/raw/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf",
              "scripts/prepare_data.sh --model smollm2-135m-instruct");
}

static void test_gemma(void **state) {
    (void)state;
    test_real("gemma", getenv("PTQ_GEMMA"), "make test-gemma");
}

int main(void) {
    shared = getenv("PTQ_SHARED");
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_arch),
                                       cmocka_unit_test(test_smollm2), cmocka_unit_test(test_gemma)};
    return cmocka_run_group_tests_name("golden_logits", tests, NULL, NULL);
}
