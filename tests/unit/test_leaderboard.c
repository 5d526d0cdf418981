/* test_leaderboard — 分榜、去重、排名组、三种写法、图的脚本 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "leaderboard.h"
#include "plot.h"
#include "result_fixture.h"

enum { MAX_FILES = 16 };
static ResultFile files[MAX_FILES];
static size_t n_files;

static void add(Fixture f) {
    static char names[MAX_FILES][32];
    snprintf(names[n_files], sizeof names[0], "res/%02zu.json", n_files);
    files[n_files] = (ResultFile){names[n_files], fixture_result(f)};
    n_files++;
}

static int reset(void **state) {
    (void)state;
    for (size_t i = 0; i < n_files; i++) json_decref(files[i].json);
    n_files = 0;
    return 0;
}

static Leaderboard build(void) {
    Leaderboard lb;
    Err e = {0};
    if (!leaderboard_build(&lb, files, n_files, &e)) fail_msg("%s", e.msg);
    return lb;
}

static void test_order_and_groups(void **state) {
    (void)state;
    add((Fixture){.method = "rtn", .bits = 3, .shift = 0.30, .wobble = 0.01});
    add((Fixture){.method = "rtn", .bits = 4, .shift = 0.05, .wobble = 0.01});
    add((Fixture){.method = "fp16"});
    /* 与 W8 只差随机的一点：分不开 */
    add((Fixture){.method = "rtn", .bits = 8, .shift = 0.0001, .wobble = 0.02});
    Leaderboard lb = build();
    assert_int_equal(lb.n_boards, 1);
    const Board *b = &lb.boards[0];
    assert_int_equal(b->n_rows, 4);
    const char *want[] = {"BF16", "W8 g64 sym", "W4 g64 sym", "W3 g64 sym"};
    const int group[] = {1, 1, 2, 3};
    for (size_t i = 0; i < 4; i++) {
        assert_string_equal(b->rows[i].settings, want[i]);
        assert_int_equal(b->rows[i].group, group[i]);
    }
    assert_true(isnan(b->rows[0].delta_ppl));
    assert_true(fabs(b->rows[2].delta_nll - 0.05) < 1e-9);
    assert_true(b->rows[2].delta_lo < 0.05 && 0.05 < b->rows[2].delta_hi);
    assert_true(fabs(b->rows[3].delta_ppl - (b->rows[3].ppl - b->rows[0].ppl)) < 1e-12);
    leaderboard_free(&lb);
}

static void test_boards_never_mix(void **state) {
    (void)state;
    add((Fixture){.method = "fp16"});
    add((Fixture){.method = "fp16", .protocol = "gptq-256"});
    add((Fixture){.method = "fp16", .compute = "bfloat16"});
    add((Fixture){.method = "fp16", .n_windows = 16});
    add((Fixture){.method = "fp16"});
    json_object_set_new(json_object_get(files[4].json, "model"), "weights_sha256",
                        json_string("其他权重"));
    add((Fixture){.method = "fp16"});
    json_object_set_new(json_object_get(json_object_get(json_object_get(files[5].json, "results"),
                                                        "ppl"), "demo"),
                        "text_sha256", json_string("其他文本"));
    Leaderboard lb = build();
    assert_int_equal(lb.n_boards, 6);
    for (size_t i = 0; i < lb.n_boards; i++) assert_int_equal(lb.boards[i].n_rows, 1);
    leaderboard_free(&lb);
}

static void test_newest_wins(void **state) {
    (void)state;
    add((Fixture){.method = "rtn", .bits = 4, .shift = 0.5});
    add((Fixture){.method = "rtn", .bits = 4, .shift = 0.1});
    Leaderboard lb = build();
    assert_int_equal(lb.boards[0].n_rows, 1);
    assert_ptr_equal(lb.boards[0].rows[0].file, &files[1]);
    leaderboard_free(&lb);
}

static void test_failed(void **state) {
    (void)state;
    add((Fixture){.method = "rtn", .bits = 4, .run_key = "a"});
    fixture_fail(files[0].json, "memory", "内存不足");
    add((Fixture){.method = "rtn", .bits = 3, .run_key = "b"});
    fixture_fail(files[1].json, "numeric", "第 2 层 | NaN");
    add((Fixture){.method = "rtn", .bits = 4, .run_key = "a"}); /* a 后来成功了 */
    Leaderboard lb = build();
    Str md = {0};
    Err e = {0};
    assert_int_equal(lb.n_failed, 1);
    assert_ptr_equal(lb.failed[0], &files[1]);
    assert_true(leaderboard_markdown(&lb, &md, &e));
    assert_non_null(strstr(md.data, "## 失败的运行"));
    assert_non_null(strstr(md.data, "第 2 层 \\| NaN"));
    str_free(&md);
    leaderboard_free(&lb);
}

static void test_missing_windows(void **state) {
    (void)state;
    add((Fixture){.method = "fp16"});
    add((Fixture){.method = "rtn", .bits = 4, .shift = 0.05});
    json_object_del(json_object_get(json_object_get(json_object_get(files[1].json, "results"),
                                                    "ppl"), "demo"), "window_nll");
    Leaderboard lb = build();
    assert_int_equal(lb.boards[0].rows[0].group, 1);
    assert_int_equal(lb.boards[0].rows[1].group, 0); /* 无法检验 */
    assert_true(isnan(lb.boards[0].rows[1].delta_nll));
    leaderboard_free(&lb);
}

static void test_empty(void **state) {
    (void)state;
    Leaderboard lb = build();
    Str s = {0};
    Err e = {0};
    assert_true(leaderboard_markdown(&lb, &s, &e));
    assert_non_null(strstr(s.data, "还没有成功的结果"));
    str_free(&s);
    leaderboard_free(&lb);
}

/* CSV：列数处处相同，数字能原样读回，怪名字加引号。 */
static void test_csv(void **state) {
    (void)state;
    add((Fixture){.method = "rtn", .bits = 4});
    json_object_set_new(json_object_get(files[0].json, "config"), "model", json_string("a,\"b"));
    Leaderboard lb = build();
    Str csv = {0};
    Err e = {0};
    assert_true(leaderboard_csv(&lb, &csv, &e));
    char *row = strchr(csv.data, '\n');
    assert_non_null(row);
    *row++ = '\0';
    size_t head = 1, cells = 1;
    bool quoted = false;
    for (const char *p = csv.data; *p; p++) head += *p == ',';
    for (const char *p = row; *p; p++) {
        if (*p == '"') quoted = !quoted;
        cells += *p == ',' && !quoted;
    }
    assert_int_equal(head, cells);
    assert_true(str_starts(row, "A,\"a,\"\"b\",demo,gptq-512,float32,BF16,rtn,W4 g64 sym,40,40,1,"));
    char want[64];
    snprintf(want, sizeof want, ",%.17g,", lb.boards[0].rows[0].ppl);
    assert_non_null(strstr(row, want));
    str_free(&csv);
    leaderboard_free(&lb);
}

/* 终端表：每行显示宽度不超过表头横线，列对齐。 */
static void test_screen(void **state) {
    (void)state;
    add((Fixture){.method = "fp16"});
    add((Fixture){.method = "rtn", .bits = 4, .shift = 0.05});
    Leaderboard lb = build();
    Str s = {0};
    leaderboard_screen(&lb, &s);
    size_t width = 0;
    for (char *line = strtok(s.data, "\n"); line; line = strtok(NULL, "\n")) {
        if (str_starts(line, "Track")) continue;
        if (!width) width = str_width(line);
        assert_int_equal(str_width(line), width);
    }
    assert_true(width > 60);
    str_free(&s);
    leaderboard_free(&lb);
}

static void test_settings(void **state) {
    (void)state;
    add((Fixture){.method = "rtn", .bits = 4});
    Arena a = {0};
    Err e = {0};
    json_t *r = files[0].json;
    json_t *set = json_object_get(json_object_get(r, "quantization"), "settings");
    json_object_set_new(set, "weight.granularity", json_string("per_channel"));
    json_object_set_new(set, "weight.scheme", json_string("asymmetric"));
    json_object_set_new(set, "weight.zero_point", json_string("float"));
    json_object_set_new(set, "weight.scale_dtype", json_string("float16"));
    json_object_set_new(set, "gptq.damp", json_real(0.05));
    json_object_set_new(json_object_get(json_object_get(r, "config"), "merged"), "gptq.damp",
                        json_pack("{s:f, s:s}", "value", 0.05, "from", "命令行 --override"));
    assert_string_equal(leaderboard_settings(r, &a, &e),
                        "W4 per-channel asym float-zero fp16-scale damp=0.05");
    arena_free(&a);
}

/* 图：两点以上才画；文字进单引号，引号与控制字符不会跳出来。 */
static void test_plot(void **state) {
    (void)state;
    add((Fixture){.method = "fp16"});
    Leaderboard one = build();
    Str s = {0};
    assert_false(plot_script(&one.boards[0], false, true, &s));
    str_free(&s);
    leaderboard_free(&one);
    add((Fixture){.method = "rtn", .bits = 4, .shift = 0.05});
    json_object_set_new(json_object_get(files[1].json, "config"), "method",
                        json_string("it's`rm`\n\"x"));
    Leaderboard lb = build();
    for (int memory = 0; memory < 2; memory++)
        for (int chinese = 0; chinese < 2; chinese++) {
            assert_true(plot_script(&lb.boards[0], memory, chinese, &s));
            assert_non_null(strstr(s.data, "'it''s`rm` \"x W4 g64 sym'"));
            assert_non_null(strstr(s.data, "plot $front"));
            str_free(&s);
        }
    leaderboard_free(&lb);
}

/* ---------- 任务的榜 ---------- */

/* 一个任务：第 i 份文档的得分为 right(i)；baseline 为对 fp16 的比较（worse < 0 则没有）。 */
static json_t *task(const char *sha, const char *metric, const char *scores, int worse, int better) {
    size_t n = strlen(scores), right = 0;
    char se[64], plain[32];
    snprintf(plain, sizeof plain, "%.*s", (int)strcspn(metric, ","), metric);
    snprintf(se, sizeof se, "%s_stderr,none", plain);
    for (size_t i = 0; i < n; i++) right += scores[i] == '1';
    json_t *t = json_pack("{s:f, s:f, s:i, s:i, s:s, s:{s:s}, s:n}", metric,
                          (double)right / (double)n, se, 0.05, "sample_len", (int)n, "num_fewshot", 0,
                          "requests_sha256", sha, "doc_scores", metric, scores, "baseline");
    if (worse >= 0)
        json_object_set_new(t, "baseline",
                            json_pack("{s:{s:i, s:i, s:i, s:f, s:f, s:f, s:f}}", metric, "n", (int)n,
                                      "right_to_wrong", worse, "wrong_to_right", better, "mcnemar_p",
                                      0.03, "equivalence_delta", 0.01, "noninferior_p", 0.5, "tost_p",
                                      0.6));
    return t;
}

/* 200 份文档：前 right 份答对，再错开 skip 份。 */
static const char *scores(size_t right, size_t skip) {
    static char text[8][201];
    static int at;
    char *s = text[at++ % 8];
    for (size_t i = 0; i < 200; i++) s[(i + skip) % 200] = i < right ? '1' : '0';
    s[200] = '\0';
    return s;
}

static void add_tasks(const char *method, int bits, size_t right, size_t skip, bool baseline) {
    add((Fixture){.method = method, .bits = bits, .shift = bits ? 0.1 : 0});
    json_t *lm = json_object();
    json_object_set_new(lm, "arc_easy", task("a", "acc_norm,none", scores(right, skip), baseline ? -1 : 9, 2));
    json_object_set_new(lm, "g_one", task("b", "acc,none", scores(100, 0), -1, 0));
    json_object_set_new(lm, "g_two", task("c", "acc,none", scores(50, 0), -1, 0));
    json_object_set_new(json_object_get(lm, "g_one"), "in_group", json_true());
    json_object_set_new(json_object_get(lm, "g_two"), "in_group", json_true());
    json_object_set_new(lm, "g", json_pack("{s:f, s:b, s:[s, s], s:i}", "acc,none", 0.375, "group", 1,
                                           "tasks", "g_one", "g_two", "sample_len", 400));
    json_object_set_new(lm, "_avg_accuracy", json_real(((double)right / 200 + 0.375) / 2));
    json_object_set_new(json_object_get(files[n_files - 1].json, "results"), "lm_eval", lm);
}

static void test_task_board(void **state) {
    (void)state;
    add_tasks("fp16", 0, 150, 0, true);
    add_tasks("rtn", 4, 145, 0, false); /* 只差 5 份：p = 2/2^5 = 0.0625 */
    add_tasks("rtn", 3, 90, 0, false);
    Leaderboard lb = build();
    assert_int_equal(lb.n_task_boards, 1);
    const TaskBoard *b = &lb.task_boards[0];
    assert_int_equal(b->n_rows, 3);
    assert_int_equal(b->n_columns, 2); /* 组里的任务不单列 */
    const char *want[] = {"BF16", "W4 g64 sym", "W3 g64 sym"};
    const int group[] = {1, 1, 2};
    for (size_t i = 0; i < 3; i++) {
        assert_string_equal(b->rows[i].settings, want[i]);
        assert_int_equal(b->rows[i].group, group[i]);
    }
    for (size_t c = 0; c < b->n_columns; c++) {
        if (strcmp(b->columns[c], "arc_easy") != 0) continue;
        assert_string_equal(b->rows[1].cells[c].metric, "acc_norm,none");
        assert_true(fabs(b->rows[1].cells[c].p_holm - 0.06) < 1e-12); /* 两格各 0.03 */
        assert_true(isnan(b->rows[0].cells[c].p_holm));
    }
    Str md = {0}, csv = {0};
    Err e = {0};
    assert_true(leaderboard_markdown(&lb, &md, &e) && leaderboard_csv(&lb, &csv, &e));
    assert_non_null(strstr(md.data, "（9↓ 2↑ p=0.06）"));
    assert_non_null(strstr(csv.data, "A,demo,arc_easy,lm-eval,float32,BF16,rtn,W4 g64 sym,,,1,"));
    size_t columns = 0;
    for (const char *p = csv.data, *end; *p; p = end + 1) { /* 各行的格数相同 */
        size_t cells = 1;
        bool quoted = false;
        for (end = p; *end != '\n'; end++) {
            if (*end == '"') quoted = !quoted;
            cells += *end == ',' && !quoted;
        }
        if (!columns) columns = cells;
        assert_int_equal(cells, columns);
    }
    str_free(&md);
    str_free(&csv);
    leaderboard_free(&lb);
}

/* 没有逐文档的得分（旧的结果、过桥的任务）：照样列出，不给排名组；请求不同的不在一个表。 */
static void test_task_board_gaps(void **state) {
    (void)state;
    add_tasks("fp16", 0, 150, 0, true);
    add_tasks("rtn", 4, 145, 0, false);
    json_t *lm = json_object_get(json_object_get(files[1].json, "results"), "lm_eval");
    json_object_del(json_object_get(lm, "arc_easy"), "doc_scores");
    add_tasks("rtn", 3, 145, 0, false);
    lm = json_object_get(json_object_get(files[2].json, "results"), "lm_eval");
    json_object_set_new(json_object_get(lm, "arc_easy"), "requests_sha256", json_string("别的题"));
    Leaderboard lb = build();
    assert_int_equal(lb.n_task_boards, 2);
    for (size_t i = 0; i < 2; i++)
        for (size_t k = 0; k < lb.task_boards[i].n_rows; k++) {
            const TaskRow *r = &lb.task_boards[i].rows[k];
            assert_int_equal(r->group, r->file != &files[1]);
        }
    leaderboard_free(&lb);
}

/* 终端上任务的榜不超过 100 列，放不下的任务另起一段。 */
static void test_task_screen(void **state) {
    (void)state;
    add_tasks("fp16", 0, 150, 0, true);
    json_t *lm = json_object_get(json_object_get(files[0].json, "results"), "lm_eval");
    for (int i = 0; i < 12; i++) {
        char name[32];
        snprintf(name, sizeof name, "another_task_%d", i);
        json_object_set_new(lm, name, task("x", "acc,none", scores(100, 0), -1, 0));
    }
    Leaderboard lb = build();
    Str s = {0};
    leaderboard_tasks_screen(&lb, &s);
    int heads = 0;
    for (char *line = strtok(s.data, "\n"); line; line = strtok(NULL, "\n")) {
        assert_true(str_width(line) <= 100);
        heads += str_starts(line, "排名组");
    }
    assert_in_range(heads, 3, 5);
    str_free(&s);
    leaderboard_free(&lb);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_order_and_groups, reset),
        cmocka_unit_test_setup(test_boards_never_mix, reset),
        cmocka_unit_test_setup(test_newest_wins, reset),
        cmocka_unit_test_setup(test_failed, reset),
        cmocka_unit_test_setup(test_missing_windows, reset),
        cmocka_unit_test_setup(test_empty, reset),
        cmocka_unit_test_setup(test_csv, reset),
        cmocka_unit_test_setup(test_screen, reset),
        cmocka_unit_test_setup(test_settings, reset),
        cmocka_unit_test_setup(test_plot, reset),
        cmocka_unit_test_setup(test_task_board, reset),
        cmocka_unit_test_setup(test_task_board_gaps, reset),
        cmocka_unit_test_setup(test_task_screen, reset),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    reset(NULL);
    return failed;
}
