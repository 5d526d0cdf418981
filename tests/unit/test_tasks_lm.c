/* test_tasks_lm — lm-eval 任务：任务文件、数据、少样本、指标、过滤器；恶意的 YAML 与数据
 * 期望值由 lm-evaluation-harness 0.4.13 与 CPython 3.11 算出（少样本、自助标准误、请求的摘要），或由定义直接可得。 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tasks/task_functions.h"
#include "tasks/task_run.h"
#include "io/file.h"
#include "tmp.h"

static void put(const char *path, const char *text) {
    char full[1200];
    Err e = {0};
    snprintf(full, sizeof full, "%s/%s", tmp_dir, path);
    char *slash = strrchr(full, '/');
    *slash = '\0';
    assert_true(file_mkdirs(full, &e));
    *slash = '/';
    tmp_write(full, text, strlen(text));
}

static bool open_set(TaskSet *s, const char *const *names, size_t n, int64_t limit, int64_t shots,
                     Err *e) {
    char dir[1100], data[1100];
    snprintf(dir, sizeof dir, "%s/tasks", tmp_dir);
    snprintf(data, sizeof data, "%s/data", tmp_dir);
    TaskOptions o = {.data_dir = data, .limit = limit, .fewshot = shots};
    return taskset_open(s, dir, names, n, &o, e);
}

static void refuse(const char *yaml, const char *rows, ErrCode code, const char *words) {
    TaskSet s;
    Err e = {0};
    const char *const names[] = {"t"};
    put("tasks/t.yaml", yaml);
    if (rows) put("data/raw/tasks/t/test.jsonl", rows);
    if (open_set(&s, names, 1, 0, -1, &e)) fail_msg("本应拒绝: %s", words);
    if (e.code != code || !strstr(e.msg, words)) fail_msg("%d %s", e.code, e.msg);
}

#define HEAD "task: t\ntest_split: test\noutput_type: multiple_choice\n"
#define BODY "doc_to_text: q\ndoc_to_choice: [\"a\", \"b\"]\ndoc_to_target: g\n"

/* 仓库自带的任务文件都读得进，组的成员都在。 */
static void test_shipped(void **state) {
    (void)state;
    TaskIndex x;
    TaskSelection s;
    Arena a = {0};
    Err e = {0};
    static const char *const NAMES[] = {"mmlu", "ceval-valid", "cmmlu", "arc_easy", "arc_challenge",
                                        "hellaswag", "piqa", "winogrande", "boolq", "openbookqa",
                                        "copa", "commonsense_qa", "social_iqa", "lambada_openai",
                                        "wikitext", "gsm8k", "demo"};
    assert_true(task_index_open(&x, "configs/tasks", &e));
    if (!task_select(&s, &x, &a, NAMES, sizeof NAMES / sizeof *NAMES, &e)) fail_msg("%s", e.msg);
    assert_int_equal(s.n_tasks, 57 + 52 + 67 + 13 + 2);
    assert_int_equal(s.n_groups, 1 + 4 + 1 + 1);
    assert_int_equal(s.groups[0].n_leaves, 57);
    for (size_t i = 0; i < s.n_tasks; i++) {
        static const char *const FIELDS[] = {"process_docs", "doc_to_text", "doc_to_target",
                                             "doc_to_choice"};
        for (size_t k = 0; k < 4; k++) {
            const char *fn = task_function_name(s.tasks[i].config, FIELDS[k]);
            if (fn && !task_function(fn)) fail_msg("%s: %s", s.tasks[i].name, fn);
        }
    }
    task_select_free(&s);
    static const char *const WRONG[] = {"arc_eazy"};
    assert_false(task_select(&s, &x, &a, WRONG, 1, &e));
    assert_non_null(strstr(e.msg, "'arc_easy'"));
    static const char *const PREFIX[] = {"ceval"};
    assert_false(task_select(&s, &x, &a, PREFIX, 1, &e));
    assert_non_null(strstr(e.msg, "ceval-valid"));
    task_index_close(&x);
    arena_free(&a);
}

/* include、组、tag、成员的改动、名字的去重。 */
static void test_groups(void **state) {
    (void)state;
    put("g/_base_yaml", "output_type: multiple_choice\ntest_split: test\ndescription: base\n");
    put("g/a.yaml", "include: _base_yaml\ntask: a\ntag: both\n");
    put("g/b.yaml", "include: _base_yaml\ntask: b\ntag: [both, other]\ndescription: own\n");
    put("g/inner.yaml", "group: inner\ntask: [b]\n");
    put("g/outer.yaml", "group: outer\ntask:\n  - a\n  - inner\n  - {task: b, num_fewshot: 3}\n");
    put("g/loop.yaml", "group: loop\ntask: [loop]\n");
    put("g/self.yaml", "include: self.yaml\ntask: self\n");
    put("g/bad.yaml", "task: [\n");
    char dir[1100];
    snprintf(dir, sizeof dir, "%s/g", tmp_dir);
    TaskIndex x;
    TaskSelection s;
    Arena a = {0};
    Err e = {0};
    assert_true(task_index_open(&x, dir, &e)); /* 坏的两个被跳过 */
    assert_null(task_index_find(&x, "self"));
    const TaskEntry *b = task_index_find(&x, "b");
    assert_string_equal(json_string_value(json_object_get(b->config, "description")), "own");
    static const char *const OUTER[] = {"outer", "both"};
    assert_true(task_select(&s, &x, &a, OUTER, 2, &e));
    assert_int_equal(s.n_tasks, 2);
    assert_int_equal(s.n_groups, 2);
    assert_int_equal(s.groups[0].n_leaves, 2);
    assert_int_equal(s.groups[1].n_leaves, 1);
    task_select_free(&s);
    static const char *const LOOP[] = {"loop"};
    assert_false(task_select(&s, &x, &a, LOOP, 1, &e));
    assert_non_null(strstr(e.msg, "成环"));
    task_index_close(&x);
    arena_free(&a);
}

static void test_refuse(void **state) {
    (void)state;
    Err e = {0};
    assert_null(task_rows_csv("t.csv", "a,b,a\n1,2,3\n", 12, &e)); /* 模糊测试找到的 */
    assert_non_null(strstr(e.msg, "t.csv:1: 有两列都叫 'a'"));
    const char *rows = "{\"q\": \"x\", \"g\": 0}\n";
    refuse(HEAD BODY "doc_to_txt: q\n", rows, ERR_CONFIG, "是否想写 'doc_to_text'");
    refuse(HEAD "doc_to_text: !function u.f\n", rows, ERR_UNSUPPORTED, "/u.f 是 Python 函数");
    refuse(HEAD BODY "process_results: !function u.f\n", rows, ERR_UNSUPPORTED, "process_results");
    refuse(HEAD BODY "metric_list: [{metric: bleu}]\n", rows, ERR_UNSUPPORTED, "'bleu'");
    refuse(HEAD BODY "metric_list: [{metric: acc, aggregation: f1}]\n", rows, ERR_UNSUPPORTED, "'f1'");
    refuse(HEAD BODY "repeats: 4\n", rows, ERR_UNSUPPORTED, "repeats");
    refuse(HEAD BODY "output_type: x\n", rows, ERR_CONFIG, "没有取值 'x'"); /* 重复的键取后者 */
    refuse("task: t\noutput_type: guess\ntest_split: test\n", rows, ERR_CONFIG, "'guess'");
    refuse("task: t\ntest_split: ../../x\n", rows, ERR_CONFIG, "划分名");
    refuse("task: t\ntest_split: test\ndataset_path: ../x\n", NULL, ERR_CONFIG, "'..'");
    refuse("task: t\n", rows, ERR_CONFIG, "validation_split");
    refuse("task: t\ntest_split: test\ngeneration_kwargs: {do_sample: true}\n", rows, ERR_UNSUPPORTED,
           "抽样");
    refuse("task: t\ntest_split: none\n", NULL, ERR_MISSING, "prepare_data.sh --task t");
    refuse(HEAD BODY, "{\"q\": \"x\", \"g\": 0}\n[1]\n", ERR_FORMAT, "test.jsonl:2");
    refuse(HEAD BODY, "{\"q\": \"x\"\n", ERR_FORMAT, "test.jsonl:1");
    refuse(HEAD BODY, "\n", ERR_FORMAT, "没有一行");
    refuse(HEAD BODY, "{\"q\": 5, \"g\": 0}\n", ERR_FORMAT, "第 0 份文档");
    refuse(HEAD "doc_to_text: q\ndoc_to_choice: []\ndoc_to_target: g\n", rows, ERR_FORMAT, "一列文字");
    refuse(HEAD "doc_to_text: \"{{nothing}}\"\ndoc_to_choice: [a]\ndoc_to_target: g\n", rows,
           ERR_FORMAT, "nothing");
    refuse(HEAD BODY "filter_list: [{name: x, filter: [{function: vote}]}]\n", rows, ERR_UNSUPPORTED,
           "'vote'");
    refuse(HEAD BODY "num_fewshot: 2\nfewshot_split: test\n", rows, ERR_CONFIG, "少样本要");
}

/* 请求的文字：分隔、说明、少样本、gen_prefix；数字答案与文字答案。 */
static void test_prompt(void **state) {
    (void)state;
    put("tasks/t.yaml", HEAD "description: \"D {{q}}\\n\"\nfewshot_split: dev\n"
                        "fewshot_config: {sampler: first_n}\nnum_fewshot: 1\n"
                        "doc_to_text: \"Q: {{q}}\\nA:\"\ndoc_to_choice: [\"yes\", \"no\"]\n"
                        "doc_to_target: \"{{g}}\"\n");
    put("data/raw/tasks/t/test.jsonl", "{\"q\": \"one\", \"g\": 1}\n{\"q\": \"two\", \"g\": 0}\n");
    put("data/raw/tasks/t/dev.csv", "q,g\n\"a \"\"b\"\",\nc\",0\nd,1\n");
    TaskSet s;
    Err e = {0};
    const char *const names[] = {"t"};
    if (!open_set(&s, names, 1, 0, -1, &e)) fail_msg("%s", e.msg);
    Task *t = &s.tasks[0];
    assert_int_equal(t->n_docs, 2);
    assert_string_equal(t->docs[0].requests[1].context,
                        "D one\nQ: a \"b\",\nc\nA: yes\n\nQ: one\nA:");
    assert_string_equal(t->docs[0].requests[1].continuation, " no");
    assert_int_equal(json_integer_value(t->docs[0].gold), 1);
    taskset_close(&s);
    if (!open_set(&s, names, 1, 1, 0, &e)) fail_msg("%s", e.msg);
    assert_int_equal(s.tasks[0].n_docs, 1);
    assert_string_equal(s.tasks[0].docs[0].requests[0].context, "D one\nQ: one\nA:");
    taskset_close(&s);
}

/* random.Random(1234).sample，逐次接着抽；期望值由 CPython 3.11 给出。 */
static void test_sampler(void **state) {
    (void)state;
    static const size_t SMALL[2][3] = {{7, 1, 0}, {1, 0, 9}};
    static const size_t LARGE[5] = {100, 784, 363, 242, 17};
    PyRandom rng;
    Err e = {0};
    json_t *pool = json_array(), *large = json_array();
    size_t picks[16];
    for (int i = 0; i < 10; i++) json_array_append_new(pool, json_pack("{s:i}", "n", i));
    for (int i = 0; i < 1000; i++) json_array_append_new(large, json_pack("{s:i}", "n", i));
    pyrandom_seed(&rng, 1234);
    for (int k = 0; k < 2; k++) {
        assert_true(fewshot_sample(&rng, pool, 3, NULL, false, picks, &e));
        assert_memory_equal(picks, SMALL[k], sizeof SMALL[k]);
    }
    assert_true(fewshot_sample(&rng, large, 5, NULL, false, picks, &e));
    assert_memory_equal(picks, LARGE, sizeof LARGE);
    /* 去掉本题；first_n 不用随机数 */
    assert_true(fewshot_sample(&rng, pool, 2, json_array_get(pool, 0), true, picks, &e));
    assert_int_equal(picks[0], 1);
    assert_int_equal(picks[1], 2);
    assert_false(fewshot_sample(&rng, pool, 10, json_array_get(pool, 0), true, picks, &e));
    json_decref(pool);
    json_decref(large);
}

static void test_metrics(void **state) {
    (void)state;
    const double x[5] = {1, 0, 1, 1, 0}, ll[4] = {-1.5, -0.25, -3, -2}, w[4] = {2, 1, 4, 3};
    assert_true(fabs(metric_aggregate(AGG_MEAN, x, NULL, 5) - 0.6) < 1e-15);
    assert_true(fabs(metric_stderr(AGG_MEAN, x, 5) - 0.24494897427831783) < 1e-15);
    assert_true(fabs(metric_aggregate(AGG_PERPLEXITY, ll, NULL, 4) - exp(6.75 / 4)) < 1e-12);
    assert_true(fabs(metric_aggregate(AGG_WEIGHTED_PPL, ll, w, 4) - exp(0.675)) < 1e-12);
    assert_true(fabs(metric_aggregate(AGG_BITS_PER_BYTE, ll, w, 4) - 0.675 / log(2)) < 1e-12);
    /* 框架的 bootstrap_stderr(perplexity, ll, 100000) */
    assert_true(fabs(metric_stderr(AGG_PERPLEXITY, ll, 4) - 3.0800494472557642) < 1e-9);
    assert_true(isnan(metric_stderr(AGG_WEIGHTED_PPL, ll, 4)));
    assert_true(isnan(metric_stderr(AGG_MEAN, x, 1)));
    /* pooled_sample_stderr、unweighted_mean_stderr */
    const double m[2] = {0.5, 0.8}, se[2] = {0.05, 0.1};
    const size_t n[2] = {100, 20};
    assert_true(fabs(group_mean(m, n, 2, true) - 66.0 / 120) < 1e-15);
    assert_true(fabs(group_mean(m, n, 2, false) - 0.65) < 1e-15);
    assert_true(fabs(group_stderr(se, n, 2, true) -
                     sqrt((99 * 0.0025 * 100 + 19 * 0.01 * 20) / 118 / 120)) < 1e-15);
    assert_true(fabs(group_stderr(se, n, 2, false) - sqrt(0.0125) / 2) < 1e-15);
}

static void check_filter(const FilterPipe *p, const char *text, const char *want) {
    Str out = {0};
    Err e = {0};
    assert_true(filter_apply(p, text, strlen(text), &out, &e));
    assert_string_equal(out.data ? out.data : "", want);
    str_free(&out);
}

/* gsm8k 的两条流水线与 exact_match。 */
static void test_filters(void **state) {
    (void)state;
    Arena a = {0};
    Err e = {0};
    json_t *config = task_config_load("configs/tasks/gsm8k.yaml", &e);
    assert_non_null(config);
    FilterPipe *p;
    MetricSpec *m;
    size_t n, n_metrics;
    bool same;
    assert_true(filters_open(&p, &n, json_object_get(config, "filter_list"), &a, &e));
    assert_int_equal(n, 2);
    check_filter(&p[0], "so 3+4\n#### 1,234.", "1,234.");
    check_filter(&p[0], "the answer is 7", "[invalid]");
    check_filter(&p[1], "first 12 then -3 and $1,500.", "$1,500.");
    check_filter(&p[1], "7", "7");
    check_filter(&p[1], "none", "[invalid]");
    assert_true(metrics_open(&m, &n_metrics, json_object_get(config, "metric_list"), "generate_until",
                             &a, &e));
    const char *gold = "step\nby step\n#### 1,500", *got = "$1500.";
    assert_true(metric_exact_match(m, gold, strlen(gold), got, strlen(got), &same, &e) && same);
    assert_true(metric_exact_match(m, gold, strlen(gold), "1501", 4, &same, &e) && !same);
    metrics_close(m, n_metrics);
    filters_close(p, n);
    json_decref(config);
    arena_free(&a);
}

static void check_function(const char *name, const char *doc, const char *want) {
    Err e = {0};
    json_t *in = json_parse("in", doc, strlen(doc), &e), *expect = json_parse("w", want, strlen(want), &e);
    json_t *out = task_function(name)(in, &e);
    if (!out || !json_equal(out, expect)) {
        char *text = out ? json_dumps(out, JSON_ENCODE_ANY) : NULL;
        fail_msg("%s: %s %s", name, text ? text : "", e.msg);
    }
    json_decref(in);
    json_decref(out);
    json_decref(expect);
}

static void test_functions(void **state) {
    (void)state;
    check_function("winogrande/preprocess_winogrande.doc_to_choice",
                   "{\"sentence\": \"So _ won. \", \"option1\": \"A\", \"option2\": \"B\"}",
                   "[\"So A\", \"So B\"]");
    check_function("winogrande/preprocess_winogrande.doc_to_target",
                   "{\"sentence\": \"So _ won. \", \"option1\": \"A\", \"option2\": \"B\"}", "\"won.\"");
    check_function("copa/utils.doc_to_text",
                   "{\"premise\": \"It rained. \", \"question\": \"cause\"}", "\"It rained because\"");
    check_function("copa/utils.doc_to_choice", "{\"choice1\": \"\\u00c9t\\u00e9.\", \"choice2\": \"B b\"}",
                   "[\" \\u00e9t\\u00e9.\", \" b b\"]");
    check_function("hellaswag/utils.process_docs",
                   "{\"activity_label\": \"Run\", \"ctx_a\": \" a [x] b\", \"ctx_b\": \"hE [title] X\","
                   " \"endings\": [\" [s]  e  f \"], \"label\": \"0\"}",
                   "{\"activity_label\": \"Run\", \"ctx_a\": \" a [x] b\", \"ctx_b\": \"hE [title] X\","
                   " \"endings\": [\" [s]  e  f \"], \"label\": \"0\","
                   " \"query\": \"Run: a b He. x\", \"choices\": [\" e f\"]}");
    check_function("wikitext/preprocess_wikitext.wikitext_detokenizer",
                   "{\"page\": \" = A = \\n ( b ) \\\" c \\\" 1 @,@ 000 @-@ x , y . N 's\"}",
                   "\" = A =\\n(b) \\\"c\\\" 1,000-x, y. 1's\"");
    assert_null(task_function("nowhere/utils.f"));
}

/* 内嵌的完形题：请求数、键、平均准确率；装批的结果与样本一致。 */
static void test_demo(void **state) {
    (void)state;
    TaskSet s;
    Err e = {0};
    TaskOptions o = {.data_dir = "data", .limit = 4, .fewshot = -1};
    static const char *const NAMES[] = {"demo"};
    if (!taskset_open(&s, "configs/tasks", NAMES, 1, &o, &e)) fail_msg("%s", e.msg);
    assert_int_equal(s.n, 2);
    assert_int_equal(s.n_requests, 2 * 4 * 4);
    Arena a = {0};
    DocValue *values[2];
    ScoreRequest fake[2][4][4];
    for (int t = 0; t < 2; t++)
        for (int d = 0; d < 4; d++)
            for (int k = 0; k < 4; k++) { /* 让第一份文档答错，其余答对 */
                TaskDoc *doc = &s.tasks[t].docs[d];
                int64_t gold = json_integer_value(doc->gold);
                fake[t][d][k] = (ScoreRequest){.loglikelihood = (k == gold) == (d > 0) ? -1 : -1000};
                doc->requests[k].score = &fake[t][d][k];
                doc->requests[k].n_score = 1;
            }
    for (int t = 0; t < 2; t++) assert_true(task_values(&s.tasks[t], NULL, &values[t], &a, &e));
    json_t *r = taskset_results(&s, values, &e);
    assert_non_null(r);
    const json_t *word = json_object_get(r, "cloze_word");
    assert_true(json_real_value(json_object_get(word, "acc,none")) == 0.75);
    assert_true(fabs(json_real_value(json_object_get(word, "acc_stderr,none")) - 0.25) < 1e-15);
    assert_int_equal(json_integer_value(json_object_get(word, "sample_len")), 4);
    assert_true(json_real_value(json_object_get(r, "_avg_accuracy")) == 0.75);
    json_decref(r);
    taskset_close(&s);
    arena_free(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shipped), cmocka_unit_test(test_groups), cmocka_unit_test(test_refuse),
        cmocka_unit_test(test_prompt),  cmocka_unit_test(test_sampler), cmocka_unit_test(test_metrics),
        cmocka_unit_test(test_filters), cmocka_unit_test(test_functions), cmocka_unit_test(test_demo)};
    return cmocka_run_group_tests(tests, tmp_make, tmp_done);
}
