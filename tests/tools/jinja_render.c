/* jinja_render — 逐行渲染模板、读任务 YAML，供与真正的 jinja2、lm_eval 对照
 * 标准输入每行一个 JSON：{"template": …, "context": {…}, "literal": 真则再按 Python 字面量读}，或 {"yaml": 路径}；
 * 标准输出每行一个 JSON：{"out": 文字}、{"value": 值}（YAML 为其配置，include 已合并）或 {"error": 说明}。 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tasks/jinja.h"
#include "tasks/task_config.h"

static json_t *render(const json_t *job) {
    Arena a = {0};
    Err e = {0};
    const char *template_ = json_string_value(json_object_get(job, "template")), *out;
    const json_t *context = json_object_get(job, "context");
    json_t *value = NULL, *result;
    size_t len;
    const char *yaml = json_string_value(json_object_get(job, "yaml"));
    if (yaml)
        result = (value = task_config_load(yaml, &e)) ? json_pack("{s:o}", "value", value)
                                                      : json_pack("{s:s}", "error", e.msg);
    else if (json_is_true(json_object_get(job, "literal")))
        result = jinja_eval(&value, template_, "对照", context, &e)
                     ? json_pack("{s:o}", "value", value) : json_pack("{s:s}", "error", e.msg);
    else
        result = jinja_render_n(&a, &out, &len, template_, "对照", context, &e)
                     ? json_pack("{s:s%}", "out", out, len) : json_pack("{s:s}", "error", e.msg);
    arena_free(&a);
    return result;
}

int main(void) {
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    while ((n = getline(&line, &cap, stdin)) > 0) {
        Err e = {0};
        json_t *job = json_parse("stdin", line, (size_t)n, &e);
        if (!json_is_string(json_object_get(job, "template")) &&
            !json_is_string(json_object_get(job, "yaml"))) {
            fprintf(stderr, "❌ 每行应为带 template 或 yaml 的 JSON: %s\n", e.msg);
            return 2;
        }
        json_t *result = render(job);
        json_dumpf(result, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(result);
        json_decref(job);
    }
    free(line);
    return 0;
}
