/* result_tasks — 结果 Markdown 里 lm-eval 任务的一节
 * 一个任务（或组）的每个指标一行：值、标准误、文档数；有基线时另有翻转数与 McNemar 的 p。 */
#include <string.h>

#include "markdown.h"

/* "acc,none" 一类的键：不是标准误，值是数。 */
static bool is_metric(const char *key, const json_t *v) {
    return strchr(key, ',') && !strstr(key, "_stderr,") && json_is_number(v);
}

static const json_t *stderr_of(const json_t *task, const char *key) {
    char name[256];
    const char *comma = strchr(key, ',');
    snprintf(name, sizeof name, "%.*s_stderr%s", (int)(comma - key), key, comma);
    return json_object_get(task, name);
}

static void add_metric(Str *out, const char *name, const json_t *task, const char *key,
                       const json_t *v) {
    const json_t *b = json_object_get(json_object_get(task, "baseline"), key);
    str_add(out, json_is_true(json_object_get(task, "group")) ? "| **" : "| ");
    md_text(out, name);
    str_add(out, json_is_true(json_object_get(task, "group")) ? "** | " : " | ");
    md_text(out, key);
    str_add(out, " | ");
    md_number(out, "%.4f", v);
    str_add(out, " | ");
    md_number(out, "%.4f", stderr_of(task, key));
    str_add(out, " | ");
    md_value(out, json_object_get(task, "sample_len"));
    str_add(out, " | ");
    md_number(out, "%+.4f", json_object_get(b, "delta"));
    str_add(out, " | ");
    md_value(out, json_object_get(b, "right_to_wrong"));
    str_add(out, " / ");
    md_value(out, json_object_get(b, "wrong_to_right"));
    str_add(out, " | ");
    md_number(out, "%.4g", json_object_get(b, "mcnemar_p"));
    str_add(out, " | ");
    md_number(out, "%.4g", json_object_get(b, "noninferior_p"));
    str_add(out, " | ");
    md_number(out, "%.4g", json_object_get(b, "tost_p"));
    str_add(out, " |\n");
}

/* δ 的值：取第一个有比较的指标的。 */
static void add_margin(Str *out, json_t *tasks) {
    const char *name, *key;
    json_t *t, *v;
    json_object_foreach(tasks, name, t) json_object_foreach(json_object_get(t, "baseline"), key, v) {
        const json_t *delta = json_object_get(v, "equivalence_delta");
        if (!json_is_number(delta)) continue;
        str_add(out, "\n对 fp16 的比较都是同样文档的配对检验：McNemar 精确检验；「不差于 δ」的零假设是准确率低了 δ 以上，「等价」（TOST）另加高了 δ 以上；"
                     "p 小于 0.05 才能断定。δ = ");
        md_number(out, "%g", delta);
        str_add(out, "\n");
        return;
    }
}

static void add_sources(Str *out, json_t *tasks) {
    const char *name;
    json_t *t;
    str_add(out, "\n| 任务 | 版本 | 少样本 | 文档（已评 / 共） | 数据 | SHA-256 |\n|---|---|---:|---:|---|---|\n");
    json_object_foreach(tasks, name, t) {
        if (!json_object_get(t, "data_sha256")) continue;
        str_add(out, "| ");
        md_text(out, name);
        str_add(out, " | ");
        md_value(out, json_object_get(t, "version"));
        str_add(out, " | ");
        md_value(out, json_object_get(t, "num_fewshot"));
        str_add(out, " | ");
        md_value(out, json_object_get(t, "n_docs"));
        str_add(out, " / ");
        md_value(out, json_object_get(t, "n_docs_total"));
        str_add(out, " | ");
        md_code(out, json_text_at(t, "data_path", NULL));
        str_add(out, " | ");
        md_code(out, json_text_at(t, "data_sha256", NULL));
        str_add(out, " |\n");
    }
}

void result_tasks_markdown(json_t *lm_eval, Str *out) {
    const char *name, *key;
    json_t *t, *v;
    if (!json_object_size(lm_eval)) return;
    str_add(out, "\n## lm-eval 任务\n\n| 任务 | 指标 | 值 | ± 标准误 | 文档数 | 对 fp16 之差 | 对→错 / 错→对 | McNemar p "
                 "| 不差于 δ 的 p | 等价的 p |\n|---|---|---:|---:|---:|---:|---:|---:|---:|---:|\n");
    json_object_foreach(lm_eval, name, t) {
        json_object_foreach(t, key, v) {
            if (is_metric(key, v)) add_metric(out, name, t, key, v);
        }
    }
    add_margin(out, lm_eval);
    const json_t *average = json_object_get(lm_eval, "_avg_accuracy");
    if (json_is_number(average)) {
        str_add(out, "\n平均准确率（acc_norm，没有则 acc）: ");
        md_number(out, "%.4f", average);
        str_add(out, "\n");
    }
    add_sources(out, lm_eval);
}
