/* baseline — fp16 基线的检查与补算 */
#include "baseline.h"

#include <stdio.h>

#include "base/log.h"
#include "config_schema.h"
#include "pretrained.h"
#include "registry.h"

bool baseline_missing(const Experiment *x, bool *missing, Err *e) {
    *missing = false;
    if (experiment_is_baseline(x) || pretrained_is(x->config.method)) return true; /* 检查点里没有原来的权重 */
    Evaluation v = experiment_evaluation(x);
    bool have;
    if (!evaluate_has_reference(&v, &have, e)) return false;
    *missing = !have || !evaluate_has_task_scores(&v);
    return true;
}

bool baseline_request(Experiment *x, const ConfigRequest *r, ConfigRequest *out, Err *e) {
    const Method *fp16 = NULL;
    const char **overrides = ARENA_ARRAY(&x->arena, const char *, r->n_overrides + 1, e);
    *out = *r;
    out->method = "fp16";
    out->n_overrides = 0;
    out->overrides = overrides;
    if (!overrides || !(fp16 = registry_find("fp16", e))) return false;
    for (size_t i = 0; i < r->n_overrides; i++)
        if (schema_applies(r->overrides[i], fp16)) overrides[out->n_overrides++] = r->overrides[i];
    overrides[out->n_overrides++] = "head_quant=none"; /* 基线的词嵌入与头也不量化 */
    return true;
}

static void give_up(Experiment *x, const Err *why) {
    char text[1200];
    snprintf(text, sizeof text, "fp16 基线没有算成，本结果没有与它的比较：%s", why->msg);
    log_line(LOG_WARN, "%s", text);
    json_array_append_new(x->warnings, json_string(text));
}

bool baseline_ensure(Experiment *x, const RunRequest *r, Err *e) {
    bool missing;
    ConfigRequest fp16;
    Err why = {0};
    if (!r->make_baseline || x->config.run.baseline == BASELINE_OFF) return true;
    if (!baseline_missing(x, &missing, e)) return false;
    if (!missing) return true;
    if (!baseline_request(x, &r->config, &fp16, e)) return false;
    log_line(LOG_INFO, "没有同样数据与设置的 fp16 基线，先算它（只算一次；不要比较：eval.baseline=off）");
    if (r->make_baseline(r->make_baseline_ctx, &fp16, &why)) {
        if (!baseline_missing(x, &missing, e)) return false;
        if (!missing) return true;
        err_set(&why, ERR_MISSING, "fp16 跑完了，而它的存档仍不齐");
    }
    if (why.code == ERR_INTERRUPTED || interrupt_requested())
        return err_set(e, ERR_INTERRUPTED, "被中断");
    give_up(x, &why);
    return true;
}
