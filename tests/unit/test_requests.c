/* test_requests — 打分与生成请求：装批、次序、线程数都不影响任何一位；编码同 HFLM
 * 对照是最直白的做法：每个请求单独一个会话，整段喂入，逐位置打分。 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/pytext.h"
#include "base/rng.h"
#include "methods/job.h"
#include "model/session.h"
#include "tasks/request.h"
#include "tmp.h"

typedef struct Demo {
    Model model;
    Backend backend;
    Tokenizer *tokenizer;
} Demo;

/* 键值量化成每 token、头内 16 通道一组的 3 位，残留窗口 8：够短，请求里都有远的部分。 */
static void quantize_kv(Model *m) {
    KvFormat f = {.form = KV_AFFINE, .dtype = DT_F16, .bits = 3, .group = 16};
    m->kv = ARENA_ARRAY(&m->arena, KvSpec, m->config.n_layers, NULL);
    assert_non_null(m->kv);
    for (int64_t l = 0; l < m->config.n_layers; l++)
        m->kv[l] = (KvSpec){.k = f, .v = f, .residual = 8};
}

static void demo_open(Demo *d, int threads, DType kv_dtype) {
    extern const Method ptq_method_fp16;
    Err e = {0};
    QuantJob job = {0};
    if (!backend_open_cpu(&d->backend, threads, COMPUTE_F32, NULL, &e) ||
        !model_open(&d->model, "data/raw/demo/model", DT_NONE, &d->backend, &e) ||
        !job_run(&job, &ptq_method_fp16, NULL, &d->model, NULL, &e) ||
        !tokenizer_open_dir(&d->tokenizer, "data/raw/demo/model", &e))
        fail_msg("%s", e.msg);
    d->model.kv_dtype = kv_dtype;
    job_close(&job);
}

static void demo_close(Demo *d) {
    model_close(&d->model);
    backend_close(&d->backend);
    tokenizer_close(d->tokenizer);
}

/* 插桩构建里各请求都算，但只有四分之一再单独重算一遍（数值由不插桩的构建全查） */
#ifdef __SANITIZE_ADDRESS__
enum { EVERY = 4 };
#else
enum { EVERY = 1 };
#endif
enum { N = 40, LONGEST = 90 };
typedef struct Batch {
    int32_t ids[N][LONGEST];
    ScoreRequest r[N];
    double token[N][LONGEST], top[N][LONGEST];
    int32_t top_id[N][LONGEST];
} Batch;

/* 各种形状：公共开头、一个是另一个的开头、完全相同、只差末一个 token、什么都不共有。 */
static void make_batch(Batch *b, int64_t vocab) {
    for (int i = 0; i < N; i++) {
        int family = i / 5, shape = i % 5;
        int64_t n = 6 + (int64_t)rng_below(1, (uint64_t)family, 0, 60);
        if (shape == 1) n += 20;
        for (int64_t t = 0; t < n; t++) {
            uint64_t own = shape == 4 ? (uint64_t)i + 100 : t * 2 > n ? (uint64_t)(i - i % 2) : 50;
            if (family % 2 == 0) own += 1000 * (uint64_t)family;
            b->ids[i][t] = (int32_t)rng_below(2, own, (uint64_t)t, (uint64_t)vocab);
        }
        if (shape == 3) b->ids[i][n - 1] = (b->ids[i][n - 1] + 1) % (int32_t)vocab;
        b->r[i] = (ScoreRequest){.ids = b->ids[i], .n = n, .token_logprob = b->token[i],
                                 .top_id = b->top_id[i], .top_logprob = b->top[i],
                                 .n_context = shape == 2 ? 1 : shape == 0 ? n : n / 2};
    }
}

/* 单独一个会话的结果。 */
static void score_alone(Demo *d, const ScoreRequest *r, double *sum, bool *greedy) {
    Session s;
    Err e = {0};
    int64_t h = d->model.config.hidden, n = r->n - 1;
    float *x = malloc((size_t)(n * h) * sizeof *x);
    assert_non_null(x);
    if (!session_open(&s, &d->model, n, n, &e) || !session_forward(&s, r->ids, n, x, &e))
        fail_msg("%s", e.msg);
    *sum = 0;
    *greedy = true;
    for (int64_t t = r->n_context; t < r->n; t++) {
        double nll;
        int32_t top;
        ScoreJob job = {.n = 1, .x = x + (t - 1) * h, .head = d->model.head, .targets = &r->ids[t],
                        .nll = &nll, .top1 = &top};
        op_score(&d->backend, &job);
        *sum -= nll;
        *greedy = *greedy && top == r->ids[t];
    }
    session_close(&s);
    free(x);
}

static void check_packing(int threads, DType kv_dtype, bool kv, int64_t rows) {
    Demo d;
    Err e = {0};
    Batch *b = calloc(2, sizeof *b);
    ScoreOptions o = {.max_rows = rows, .quiet = true};
    ScoreCost cost;
    assert_non_null(b);
    demo_open(&d, threads, kv_dtype);
    if (kv) quantize_kv(&d.model);
    make_batch(b, d.model.config.vocab);
    if (!requests_score(&d.model, &o, b->r, N, &cost, &e)) fail_msg("%s", e.msg);
    assert_true(cost.n_rows < cost.n_tokens);
    for (int i = threads % EVERY; i < N; i += EVERY) {
        double sum, total = 0;
        bool greedy;
        score_alone(&d, &b->r[i], &sum, &greedy);
        assert_true(sum == b->r[i].loglikelihood);
        assert_true(greedy == b->r[i].is_greedy);
        for (int64_t t = 0; t < b->r[i].n - b->r[i].n_context; t++) {
            total += b->token[i][t];
            assert_true(b->top[i][t] >= b->token[i][t]);
            if (b->top_id[i][t] == b->ids[i][b->r[i].n_context + t])
                assert_true(b->top[i][t] == b->token[i][t]);
        }
        assert_true(total == sum);
    }
    free(b);
    demo_close(&d);
}

static void test_packing(void **state) {
    (void)state;
    check_packing(1, DT_F32, false, 0);
    check_packing(2, DT_F32, false, 97); /* 许多批，公共开头要另存 */
    check_packing(1, DT_F32, false, 16); /* 一个请求就超过一批 */
    check_packing(2, DT_F16, false, 64);
    check_packing(2, DT_F32, true, 0); /* 量化的键值：分叉处从头重建 */
    check_packing(1, DT_F32, true, 48);
}

/* 请求的次序不影响结果。 */
static void test_order(void **state) {
    (void)state;
    Demo d;
    Err e = {0};
    Batch *b = calloc(1, sizeof *b);
    ScoreRequest shuffled[N];
    ScoreOptions o = {.max_rows = 128, .quiet = true};
    assert_non_null(b);
    demo_open(&d, 1, DT_F32);
    make_batch(b, d.model.config.vocab);
    if (!requests_score(&d.model, &o, b->r, N, NULL, &e)) fail_msg("%s", e.msg);
    for (int i = 0; i < N; i++) {
        shuffled[i] = b->r[(i * 7 + 3) % N];
        shuffled[i].token_logprob = shuffled[i].top_logprob = NULL;
        shuffled[i].top_id = NULL;
    }
    if (!requests_score(&d.model, &o, shuffled, N, NULL, &e)) fail_msg("%s", e.msg);
    for (int i = 0; i < N; i++)
        assert_true(shuffled[i].loglikelihood == b->r[(i * 7 + 3) % N].loglikelihood);
    b->ids[3][0] = (int32_t)d.model.config.vocab;
    assert_false(requests_score(&d.model, &o, b->r, N, NULL, &e));
    assert_non_null(strstr(e.msg, "第 3 个请求"));
    assert_true(requests_score(&d.model, &o, b->r, 0, NULL, &e));
    free(b);
    demo_close(&d);
}

/* 几条一起生成与各自单独相同；停止串与写满都停。 */
static void test_generate(void **state) {
    (void)state;
    static const char *const PROMPTS[] = {"The function returns", "She looked at him and",
                                          "In the beginning", "SELECT * FROM"};
    static const char *const STOP[] = {"."};
    enum { COUNT = 4, NEW = 24 };
    Demo d;
    Err e = {0};
    demo_open(&d, 2, DT_F32);
    GenerateRequest r[COUNT];
    const EosSet eos = {.ids = {tokenizer_eos(d.tokenizer)}, .n = 1};
    TokenIds ids[COUNT] = {{0}};
    for (int i = 0; i < COUNT; i++) {
        assert_true(tokenizer_encode(d.tokenizer, PROMPTS[i], strlen(PROMPTS[i]), true, &ids[i], &e));
        r[i] = (GenerateRequest){.ids = ids[i].ids, .n = (int64_t)ids[i].n, .max_new = NEW,
                                 .stop = STOP, .n_stop = i % 2, .eos = &eos};
    }
    if (!requests_generate(&d.model, d.tokenizer, r, COUNT, true, &e)) fail_msg("%s", e.msg);
    for (int i = 0; i < COUNT; i++) {
        GenerateRequest one = r[i];
        Str text = {0};
        if (!requests_generate(&d.model, d.tokenizer, &one, 1, true, &e)) fail_msg("%s", e.msg);
        assert_int_equal(one.out.n, r[i].out.n);
        assert_memory_equal(one.out.ids, r[i].out.ids, one.out.n * sizeof(int32_t));
        assert_true(one.stopped == r[i].stopped);
        assert_true(r[i].stopped || r[i].out.n == NEW);
        assert_true(tokenizer_decode(d.tokenizer, one.out.ids, one.out.n, true, &text, &e));
        if (i % 2 && r[i].stopped && !eos_has(&eos, one.out.ids[one.out.n - 1]))
            assert_non_null(strchr(text.data, '.'));
        str_free(&text);
        token_ids_free(&one.out);
        token_ids_free(&r[i].out);
        token_ids_free(&ids[i]);
    }
    demo_close(&d);
}

static void pair(const Encoder *c, const char *context, const char *continuation, Arena *a,
                 ScoreRequest *r) {
    Err e = {0};
    if (!encode_pair(c, context, strlen(context), continuation, strlen(continuation), r, a, &e))
        fail_msg("%s", e.msg);
}

static void test_encode(void **state) {
    (void)state;
    Tokenizer *t = NULL;
    Encoder c;
    Err e = {0};
    Arena a = {0};
    ScoreRequest r, q, *w;
    size_t n;
    assert_true(tokenizer_open_dir(&t, "data/raw/demo/model", &e));
    assert_true(encoder_init(&c, t, 32, &e));
    /* context 末尾的空白移到 continuation */
    pair(&c, "The answer is ", "yes", &a, &r);
    pair(&c, "The answer is", " yes", &a, &q);
    assert_int_equal(r.n, q.n);
    assert_int_equal(r.n_context, q.n_context);
    assert_memory_equal(r.ids, q.ids, (size_t)r.n * sizeof *r.ids);
    /* 空 context：prefix 在前 */
    pair(&c, "", " yes", &a, &r);
    assert_int_equal(r.n_context, 1);
    assert_int_equal(r.ids[0], c.prefix);
    /* 从左截到 max_length+1，continuation 完整 */
    const char *text = "one two three four five six seven eight nine ten one two three four five six "
                       "seven eight nine ten one two three four five six seven eight nine ten one two";
    pair(&c, text, " three four", &a, &r);
    assert_int_equal(r.n, 33);
    pair(&c, "two", " three four", &a, &q);
    assert_int_equal(r.n - r.n_context, q.n - q.n_context);
    assert_false(encode_pair(&c, "x", 1, text, strlen(text), &r, &a, &e));
    assert_int_equal(e.code, ERR_UNSUPPORTED);
    assert_false(encode_pair(&c, "x", 1, "", 0, &r, &a, &e));
    assert_false(encode_pair(&c, " \n", 2, "x", 1, &r, &a, &e) && r.n_context < 1);
    /* 滚动窗口：每个 token 恰一次 */
    TokenIds ids = {0};
    c.max_length = 7;
    assert_true(encode_text(&c, text, strlen(text), &ids, &e));
    assert_true(encode_rolling(&c, text, strlen(text), &w, &n, &a, &e));
    assert_int_equal(n, (ids.n + 6) / 7);
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        assert_true(w[i].n <= 8);
        for (int64_t k = w[i].n_context; k < w[i].n; k++) assert_int_equal(w[i].ids[k], ids.ids[at++]);
    }
    assert_int_equal(at, ids.n);
    assert_int_equal(w[0].ids[0], c.prefix);
    assert_int_equal(w[n - 1].n, 8);
    assert_true(encode_rolling(&c, "", 0, &w, &n, &a, &e));
    assert_int_equal(n, tokenizer_adds_bos(t));
    token_ids_free(&ids);
    tokenizer_close(t);
    arena_free(&a);
}

static void test_pytext(void **state) {
    (void)state;
    const char *s = "\xe3\x80\x80 a\xc2\xa0 b \t\xe2\x80\xa8\x1f\xc2\x85";
    assert_int_equal(pytext_lstrip(s, strlen(s)), 4);
    assert_int_equal(pytext_rstrip(s, strlen(s)), 9);
    assert_int_equal(pytext_rstrip(" \n", 2), 0);
    assert_int_equal(pytext_length("a\xe4\xb8\xad\xf0\x9f\x98\x80", 8), 3);
    assert_int_equal(pytext_length("\xff\xe4\xb8", 3), 3); /* 坏字节各算一个 */
    assert_int_equal(pytext_rstrip("a\x85", 2), 2);        /* 单独的 0x85 不是空白 */
}

static bool eos_from(const char *json, const Tokenizer *t, EosSet *s, Err *e) {
    *e = (Err){0};
    if (json) tmp_write(tmp_path("generation_config.json"), json, strlen(json));
    return eos_open(s, tmp_dir, t, 4096, e);
}

/* generation_config.json 的 eos_token_id：一个、一列、没有；坏的报错。生成到其中任何一个都停。 */
static void test_eos(void **state) {
    (void)state;
    static const char *const BAD[] = {"{\"eos_token_id\": \"2\"}", "{\"eos_token_id\": [1, 2.5]}",
                                      "{\"eos_token_id\": ", "{\"eos_token_id\": [[1]]}"};
    Demo d;
    Err e;
    EosSet s;
    demo_open(&d, 1, DT_F32);
    int own = tokenizer_eos(d.tokenizer) >= 0;
    assert_true(eos_from(NULL, d.tokenizer, &s, &e));
    assert_int_equal(s.n, own);
    assert_true(eos_from("{\"eos_token_id\": 77}", d.tokenizer, &s, &e));
    assert_true(eos_has(&s, 77) && s.n == own + 1);
    assert_true(eos_from("{\"eos_token_id\": [78, 79, 78, 4096, -1, 99999999999]}", d.tokenizer, &s, &e));
    assert_true(eos_has(&s, 78) && eos_has(&s, 79) && s.n == own + 2);
    assert_true(eos_from("{\"eos_token_id\": null}", d.tokenizer, &s, &e) && s.n == own);
    assert_false(eos_has(NULL, 1));
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        assert_false(eos_from(BAD[i], d.tokenizer, &s, &e));
        assert_non_null(strstr(e.msg, "generation_config.json"));
    }
    const int32_t prompt[] = {1, 2, 3};
    GenerateRequest free_run = {.ids = prompt, .n = 3, .max_new = 8}, cut = free_run;
    assert_true(requests_generate(&d.model, d.tokenizer, &free_run, 1, true, &e));
    EosSet third = {.ids = {5, free_run.out.ids[2]}, .n = 2};
    cut.eos = &third;
    assert_true(requests_generate(&d.model, d.tokenizer, &cut, 1, true, &e));
    assert_true(cut.stopped && cut.out.n <= 3 && eos_has(&third, cut.out.ids[cut.out.n - 1]));
    token_ids_free(&free_run.out);
    token_ids_free(&cut.out);
    demo_close(&d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_packing), cmocka_unit_test(test_order),
        cmocka_unit_test(test_generate), cmocka_unit_test(test_encode),
        cmocka_unit_test(test_pytext),   cmocka_unit_test(test_eos)};
    return cmocka_run_group_tests(tests, tmp_make, tmp_done);
}
