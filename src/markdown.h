/* markdown — 生成 Markdown 表格与取 JSON 值的小工具（结果与排行榜共用）
 * 一切外来文字都经转义：竖线、换行、尖括号不会弄坏表格。 */
#ifndef PTQ_MARKDOWN_H
#define PTQ_MARKDOWN_H
#include "base/str.h"
#include "io/json.h"

/* 表格单元里的普通文字：转义 | < > \ 反引号 与换行；空串写成 —。 */
void md_text(Str *out, const char *text);
/* 行内代码；内容里的反引号与竖线安全处理。 */
void md_code(Str *out, const char *text);
/* 数（printf 精度由 fmt 给出，恰含一个 double）；v 不是数时写 —。 */
void md_number(Str *out, const char *fmt, const json_t *v);
/* 任意 JSON 标量或短数组、对象的可读写法。 */
void md_value(Str *out, const json_t *v);

/* results.lm_eval → Markdown 的一节（没有任务则什么也不写）。 */
void result_tasks_markdown(json_t *lm_eval, Str *out);

/* 点号路径取值，如 json_at(r, "results.system_metrics.rss_peak_mb")；没有为 NULL。键中不能含点。 */
const json_t *json_at(const json_t *o, const char *path);
/* 路径上的字符串；没有或不是字符串时为 def。 */
const char *json_text_at(const json_t *o, const char *path, const char *def);
/* 路径上的有限数；没有时为 NAN。 */
double json_number_at(const json_t *o, const char *path);
#endif
