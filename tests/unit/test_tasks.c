/* test_tasks — 协议、数据集、基线存档、困惑度的边角
 * 困惑度用内嵌的演示模型算少数窗口：线程数与批不影响任何一位；基线存档给出的 KL 对自己恰为 0。 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "methods/job.h"
#include "model/tokenizer.h"
#include "tasks/dataset.h"
#include "tasks/perplexity.h"
#include "tmp.h"

static void test_protocol(void **state) {
    (void)state;
    Protocol p;
    Err e = {0};
    assert_true(protocol_parse(&p, "gptq-2048", &e));
    assert_int_equal(protocol_windows(&p, 303415), 148);
    assert_int_equal(protocol_windows(&p, 2047), 0);
    assert_int_equal(protocol_scored(&p), 2047);
    assert_true(protocol_parse(&p, "strided-2048-512", &e));
    assert_int_equal(protocol_windows(&p, 2048 + 512 * 3 + 511), 4);
    assert_int_equal(protocol_scored(&p), 512);
    assert_true(protocol_parse(&p, "llamacpp-512", &e));
    assert_int_equal(protocol_scored(&p), 255);
    assert_true(p.bos_replaces);
    static const char *const BAD[] = {"gptq", "gptq-", "gptq-7", "gptq-9999999", "gptq-512x",
                                      "strided-512-512", "strided-512-0", "strided-512", "",
                                      "gptq--5", "llamacpp-99999999999999999999"};
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        assert_false(protocol_parse(&p, BAD[i], &e));
        assert_int_equal(e.code, ERR_CONFIG);
    }
}

static void test_dataset(void **state) {
    (void)state;
    Arena a = {0};
    TextData t;
    Err e = {0};
    assert_true(text_open(&t, &a, ".", "data", "demo", &e));
    assert_int_equal(t.len, 375544);
    text_close(&t);
    assert_false(text_open(&t, &a, ".", "data", "wikitxt2", &e));
    assert_non_null(strstr(e.msg, "wikitext2"));
    assert_false(text_open(&t, &a, tmp_dir, "data", "ptb", &e));
    assert_int_equal(e.code, ERR_MISSING);
    assert_non_null(strstr(e.msg, "prepare_data"));
    /* 换了内容的同名数据集被拒绝；同一文件按路径可用 */
    char path[1200];
    snprintf(path, sizeof path, "%s/data/raw/text", tmp_dir);
    assert_true(file_mkdirs(path, &e));
    snprintf(path, sizeof path, "%s/data/raw/text/ptb.test.txt", tmp_dir);
    tmp_write(path, "not ptb", 7);
    assert_false(text_open(&t, &a, tmp_dir, "data", "ptb", &e));
    assert_non_null(strstr(e.msg, "SHA-256"));
    assert_true(text_open(&t, &a, tmp_dir, "data", path, &e));
    assert_string_equal(t.name, "ptb.test.txt");
    text_close(&t);
    tmp_write(path, "", 0);
    assert_false(text_open(&t, &a, tmp_dir, "data", path, &e));
    arena_free(&a);
}

static void write_reference(const char *dir, const char *key) {
    Arena a = {0};
    Err e = {0};
    ReferenceWriter w;
    float hidden[3 * 5];
    double nll[3] = {1.5, 2.5, 3.5};
    char run_key[HASH_HEX];
    memset(run_key, 'a', 64);
    run_key[64] = '\0';
    for (int i = 0; i < 15; i++) hidden[i] = (float)i;
    assert_true(reference_begin(&w, &a, dir, key, 3, 5, &e));
    assert_true(reference_add(&w, hidden, &e));
    assert_true(reference_commit(&w, run_key, nll, 3, &e));
    arena_free(&a);
}

static void test_reference(void **state) {
    (void)state;
    char dir[600], path[1200];
    snprintf(dir, sizeof dir, "%s/ref", tmp_dir);
    write_reference(dir, "k");
    Reference r;
    assert_true(reference_open(&r, dir, "k", 3, 5));
    assert_int_equal(r.n_windows, 3);
    assert_int_equal(r.hidden_windows, 1);
    assert_true(r.window_nll[2] == 3.5 && r.hidden[14] == 14.0f);
    reference_close(&r);
    assert_false(reference_open(&r, dir, "k", 3, 4));
    assert_false(reference_open(&r, dir, "other", 3, 5));
    /* 截断到任何长度、头里写任何大数都只是「没有基线」 */
    snprintf(path, sizeof path, "%s/k.ref", dir);
    FileMap m;
    assert_true(file_map(&m, path, NULL));
    unsigned char copy[512];
    size_t n = m.size;
    assert_true(n <= sizeof copy);
    memcpy(copy, m.data, n);
    file_unmap(&m);
    for (size_t cut = 0; cut < n; cut += 7) {
        tmp_write(path, copy, cut);
        assert_false(reference_open(&r, dir, "k", 3, 5));
    }
    for (size_t at = 8; at < 40; at += 8) {
        unsigned char bad[512];
        memcpy(bad, copy, n);
        memset(bad + at, 0x7f, 7);
        tmp_write(path, bad, n);
        assert_false(reference_open(&r, dir, "k", 3, 5));
    }
}

typedef struct Demo {
    Model model;
    Backend backend;
    TokenIds ids;
} Demo;

static void demo_open(Demo *d, int threads) {
    extern const Method ptq_method_fp16;
    Err e = {0};
    Arena a = {0};
    TextData t;
    Tokenizer *tok = NULL;
    QuantJob job = {0};
    d->ids = (TokenIds){0};
    if (!backend_open_cpu(&d->backend, threads, COMPUTE_F32, NULL, &e) ||
        !model_open(&d->model, "data/raw/demo/model", DT_NONE, &d->backend, &e) ||
        !job_run(&job, &ptq_method_fp16, NULL, &d->model, NULL, &e) ||
        !text_open(&t, &a, ".", "data", "demo", &e) ||
        !tokenizer_open_dir(&tok, "data/raw/demo/model", &e) ||
        !tokenizer_encode(tok, t.data, 8000, true, &d->ids, &e))
        fail_msg("%s", e.msg);
    job_close(&job);
    tokenizer_close(tok);
    text_close(&t);
    arena_free(&a);
}

static void demo_close(Demo *d) {
    model_close(&d->model);
    backend_close(&d->backend);
    token_ids_free(&d->ids);
}

static void test_perplexity(void **state) {
    (void)state;
    Arena a = {0};
    Err e = {0};
    Demo one, two;
    demo_open(&one, 1);
    demo_open(&two, 2);
    Protocol p;
    PplResult r1, r2, r3;
    char dir[600], key[HASH_HEX] = "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk";
    snprintf(dir, sizeof dir, "%s/ref2", tmp_dir);
    assert_true(protocol_parse(&p, "gptq-96", &e));
    ReferenceWriter w;
    assert_true(reference_begin(&w, &a, dir, "demo", protocol_scored(&p),
                                one.model.config.hidden, &e));
    PplJob job = {.model = &one.model, .protocol = &p, .ids = one.ids.ids,
                  .n_tokens = (int64_t)one.ids.n, .bos = -1, .kl_windows = 3, .writer = &w};
    assert_true(perplexity_run(&job, &r1, &a, &e));
    assert_true(reference_commit(&w, key, r1.window_nll, r1.n_windows, &e));
    assert_true(r1.ppl > 5 && r1.ppl < 100);
    assert_int_equal(r1.n_windows, (int64_t)one.ids.n / 96);

    /* 两线程、只算前三个窗口：逐位相同；对自己的基线 KL 为 0、首位全同 */
    Reference ref;
    assert_true(reference_open(&ref, dir, "demo", protocol_scored(&p), one.model.config.hidden));
    job.model = &two.model;
    job.writer = NULL;
    job.reference = &ref;
    job.limit = 3;
    assert_true(perplexity_run(&job, &r2, &a, &e));
    assert_int_equal(r2.n_windows, 3);
    assert_memory_equal(r1.window_nll, r2.window_nll, 3 * sizeof(double));
    assert_int_equal(r2.n_kl, 3 * protocol_scored(&p));
    assert_true(fabs(r2.kl_mean) < 1e-9 && r2.same_top1 == 1.0);
    reference_close(&ref);

    /* 滑动窗口协议的最后 S 个位置与整窗一致；文本不足一个窗口是错误 */
    assert_true(protocol_parse(&p, "strided-96-32", &e));
    job.reference = NULL;
    assert_true(perplexity_run(&job, &r3, &a, &e));
    assert_int_equal(r3.n_scored, 3 * 32);
    job.n_tokens = 95;
    assert_false(perplexity_run(&job, &r3, &a, &e));
    assert_int_equal(e.code, ERR_FORMAT);
    demo_close(&one);
    demo_close(&two);
    arena_free(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_protocol),
                                       cmocka_unit_test(test_dataset),
                                       cmocka_unit_test(test_reference),
                                       cmocka_unit_test(test_perplexity)};
    return cmocka_run_group_tests_name("tasks", tests, tmp_make, tmp_done);
}
