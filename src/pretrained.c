/* pretrained — 已量化的检查点作为方法
 * 装入由 model_finish 做（量化好的层本来就在文件里），所以 quantize 没有要做的事。 */
#include "pretrained.h"

#include <string.h>

static bool nothing_to_do(QuantJob *job, Err *e) {
    (void)job;
    (void)e;
    return true;
}

#define PRETRAINED(n, t) {.name = "pretrained:" n, .tracks = t, .quantize = nothing_to_do}
static const Method METHODS[CKPT_KINDS] = {
    [CKPT_GPTQ] = PRETRAINED("gptq", "A"),
    [CKPT_AWQ] = PRETRAINED("awq", "A"),
    [CKPT_COMPRESSED] = PRETRAINED("compressed-tensors", "AB"),
    [CKPT_BITSANDBYTES] = PRETRAINED("bitsandbytes", "A"),
    [CKPT_HQQ] = PRETRAINED("hqq", "A"),
};
static const char *const KEYS[CKPT_KINDS] = {"gptq", "awq", "compressed_tensors", "bitsandbytes", "hqq"};

const Method *pretrained_at(int i) {
    return i >= 0 && i < CKPT_KINDS ? &METHODS[i] : NULL;
}

const Method *pretrained_find(const char *name) {
    for (int i = 0; i < CKPT_KINDS; i++)
        if (strcmp(METHODS[i].name, name) == 0) return &METHODS[i];
    return NULL;
}

bool pretrained_is(const Method *m) {
    return m >= METHODS && m < METHODS + CKPT_KINDS;
}

const char *pretrained_key(const Method *m) {
    CHECK(pretrained_is(m));
    return KEYS[m - METHODS];
}

bool pretrained_check(const Method *m, const Model *model, Err *e) {
    const CheckpointConfig *c = model->weights.checkpoint;
    const char *path = model->weights.path;
    if (!c && !pretrained_is(m)) return true;
    if (!c)
        return err_set(e, ERR_USAGE,
                       "%s: 方法 %s 评测已量化好的检查点，而这个模型没有量化（config.json 里没有 quantization_config）", path,
                       m->name);
    const Method *want = &METHODS[c->kind];
    if (m == want) return true;
    return err_set(e, ERR_USAGE, "%s: 这个模型已经是 %s 量化的，不能按方法 %s 再做；评测它请用 --method %s", path,
                   checkpoint_name(c->kind), m->name, want->name);
}
