/* compare_samples — 逐文档对照两份样本文件（JSONL）
 * 用法: compare_samples 我们的.jsonl 参考.jsonl。参考是 lm-evaluation-harness 的（shared/goldens/lm_eval 的格式）。
 * 逐请求：context、continuation 的文字与 token 须相同，对数似然之差不超过 2e-3，is_greedy 相同；逐文档：两边都有的
 * acc、acc_norm、exact_match（各过滤器）相同，生成的文字相同。并列：选项的对数似然（acc_norm 除以长度后）相差不到 1e-4 的文档，acc 不计较。
 * 末行: 「N 份文档，M 个请求，最大 |Δll| X，不同 Y 处」；有不同则退出码 1。 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/pytext.h"
#include "io/file.h"
#include "tasks/task_data.h"

typedef struct Count {
    long docs, requests, wrong;
    double worst;
} Count;

static json_t *load(const char *path) {
    Err e = {0};
    FileMap m;
    json_t *rows = NULL;
    if (file_map(&m, path, &e)) {
        rows = task_rows_jsonl(path, (const char *)m.data, m.size, &e);
        file_unmap(&m);
    }
    if (!rows) fprintf(stderr, "%s\n", e.msg);
    return rows;
}

static void differ(Count *c, const json_t *doc, size_t request, const char *what) {
    if (c->wrong++ < 20)
        printf("文档 %lld 请求 %zu：%s 不同\n",
               (long long)json_integer_value(json_object_get(doc, "doc_id")), request, what);
}

/* 首选与次选几乎并列：两边的首选可能不同。 */
static bool nearly_tied(const json_t *doc, bool by_length) {
    const json_t *r = json_object_get(doc, "requests");
    double best = -INFINITY, second = -INFINITY;
    for (size_t i = 0; i < json_array_size(r); i++) {
        const json_t *one = json_array_get(r, i), *text = json_object_get(one, "continuation");
        double v = json_number_value(json_object_get(one, "loglikelihood"));
        size_t n = pytext_length(json_string_value(text), json_string_length(text));
        if (by_length && n > 1) v /= (double)(n - 1);
        if (v > best) {
            second = best;
            best = v;
        } else if (v > second) {
            second = v;
        }
    }
    return best - second < 1e-4;
}

static void compare_request(Count *c, const json_t *doc, size_t i, const json_t *a, const json_t *b) {
    static const char *const SAME[] = {"context", "continuation", "context_ids", "continuation_ids",
                                       "is_greedy", "generated"};
    for (size_t k = 0; k < sizeof SAME / sizeof *SAME; k++)
        if (json_object_get(b, SAME[k]) &&
            !json_equal(json_object_get(a, SAME[k]), json_object_get(b, SAME[k])))
            differ(c, doc, i, SAME[k]);
    c->requests++;
    if (!json_object_get(b, "loglikelihood")) return; /* 生成 */
    double d = fabs(json_number_value(json_object_get(a, "loglikelihood")) -
                    json_number_value(json_object_get(b, "loglikelihood")));
    if (!(d <= 2e-3)) differ(c, doc, i, "loglikelihood");
    if (!(d <= c->worst)) c->worst = d;
}

static void compare_doc(Count *c, const json_t *a, const json_t *b) {
    const json_t *x = json_object_get(a, "requests"), *y = json_object_get(b, "requests");
    c->docs++;
    if (!json_equal(json_object_get(a, "doc_id"), json_object_get(b, "doc_id")) ||
        json_array_size(x) != json_array_size(y)) {
        differ(c, b, 0, "doc_id 或请求数");
        return;
    }
    for (size_t i = 0; i < json_array_size(x); i++)
        compare_request(c, b, i, json_array_get(x, i), json_array_get(y, i));
    const char *key;
    json_t *n;
    json_object_foreach((json_t *)(uintptr_t)b, key, n) {
        const json_t *m = json_object_get(a, key);
        bool accuracy = strncmp(key, "acc", 3) == 0;
        if (!accuracy && strncmp(key, "exact_match", 11) != 0) continue; /* "exact_match,strict-match" 也是 */
        if (!m || (json_number_value(m) != json_number_value(n) &&
                   !(accuracy && nearly_tied(b, strcmp(key, "acc_norm") == 0))))
            differ(c, b, 0, key);
    }
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "用法: compare_samples 我们的.jsonl 参考.jsonl\n");
        return 2;
    }
    json_t *a = load(argv[1]), *b = load(argv[2]);
    if (!a || !b) return 2;
    Count c = {0};
    if (json_array_size(a) != json_array_size(b)) {
        printf("文档数不同：%zu 与 %zu\n", json_array_size(a), json_array_size(b));
        c.wrong++;
    }
    for (size_t i = 0; i < json_array_size(a) && i < json_array_size(b); i++)
        compare_doc(&c, json_array_get(a, i), json_array_get(b, i));
    printf("%ld 份文档，%ld 个请求，最大 |Δll| %.2e，不同 %ld 处\n", c.docs, c.requests, c.worst, c.wrong);
    json_decref(a);
    json_decref(b);
    return c.wrong > 0;
}
