/* filters — 生成结果的过滤器（lm_eval/filters）
 * 一条流水线若干步：regex、take_first、remove_whitespace、lowercase、uppercase。指标的键里写着流水线的名字：「exact_match,strict-match」。 */
#ifndef PTQ_TASKS_FILTERS_H
#define PTQ_TASKS_FILTERS_H
#include "io/json.h"
#include "tasks/pyregex.h"

typedef enum { FILTER_TAKE_FIRST, FILTER_REGEX, FILTER_STRIP, FILTER_LOWER, FILTER_UPPER } FilterKind;

typedef struct Filter {
    FilterKind kind;
    PyRegex *regex;
    int64_t group; /* 第几个匹配，负数从末尾数 */
    const char *fallback;
} Filter;

typedef struct FilterPipe {
    const char *name;
    Filter *steps;
    size_t n;
} FilterPipe;

/* 由 filter_list 建立；没有 filter_list 时是一条名为 none 的空流水线。错误: 未知的过滤器（原生路径没有）。 */
bool filters_open(FilterPipe **pipes, size_t *n, const json_t *filter_list, Arena *a, Err *e);
void filters_close(FilterPipe *pipes, size_t n);
/* 文字依次经过各步，结果追加到 out。 */
bool filter_apply(const FilterPipe *p, const char *text, size_t len, Str *out, Err *e);
#endif
