/* speed — 预填与解码的速度
 * 两者都走会话，与评测同一条路；先预热，取中位数，忙机器上的偶发停顿不影响结果。 */
#include "base/log.h"
#include "evaluator.h"
#include "model/session.h"
#include "tasks/stats.h"

enum { PREFILL = 512, PREFILL_REPS = 3, PROMPT = 16, DECODE_WARM_UP = 4, TEXT_BYTES = 8192 };

/* 一个位置的最可能的下一个 token。 */
static bool next_token(Model *m, const float *hidden, int32_t *id, Err *e) {
    double nll;
    int32_t target = -1;
    ScoreJob score = {.n = 1, .x = hidden, .head = m->head, .softcap = (float)m->config.logit_softcap,
                    .targets = &target, .nll = &nll,
                      .top1 = id};
    op_score(m->backend, &score);
    return backend_check(m->backend, e);
}

static bool prefill(Session *s, const int32_t *ids, float *hidden, double *tok_per_s, Err *e) {
    double seconds[PREFILL_REPS + 1];
    int32_t id;
    for (int i = 0; i <= PREFILL_REPS; i++) {
        session_reset(s);
        double t = clock_seconds();
        if (!session_forward(s, ids, PREFILL, hidden, e) ||
            !next_token(s->model, hidden + (PREFILL - 1) * s->model->config.hidden, &id, e))
            return false;
        seconds[i] = clock_seconds() - t;
    }
    *tok_per_s = PREFILL / stats_median(seconds + 1, PREFILL_REPS); /* 第一次是预热 */
    return true;
}

static bool decode(Session *s, const int32_t *ids, float *hidden, double *seconds, int64_t steps,
                   double *tok_per_s, Err *e) {
    int32_t id = ids[PROMPT - 1];
    session_reset(s);
    if (!session_forward(s, ids, PROMPT, hidden, e)) return false;
    for (int64_t i = -DECODE_WARM_UP; i < steps; i++) {
        double t = clock_seconds();
        if (!session_forward(s, &id, 1, hidden, e) || !next_token(s->model, hidden, &id, e))
            return false;
        if (i >= 0) seconds[i] = clock_seconds() - t;
    }
    *tok_per_s = 1 / stats_median(seconds, (size_t)steps);
    return true;
}

bool evaluate_speed(const Evaluation *v, Speed *s, Err *e) {
    *s = (Speed){0};
    int64_t steps = v->options->decode_tokens, room = PROMPT + DECODE_WARM_UP + steps;
    if (room < PREFILL) room = PREFILL;
    const TextData *t = &v->texts[0].text;
    TokenIds ids = {0};
    if (!tokenizer_encode(v->tokenizer, t->data, t->len < TEXT_BYTES ? t->len : TEXT_BYTES, true,
                          &ids, e))
        return false;
    Session session;
    Arena a = {0}, tensors = backend_arena(v->model->backend);
    double *seconds = ARENA_ARRAY(&a, double, steps, e);
    float *hidden = ARENA_ARRAY(&tensors, float, PREFILL * v->model->config.hidden, e);
    bool ok = seconds && hidden && session_open(&session, v->model, room, PREFILL, e);
    if (ok) {
        if (ids.n >= PREFILL) ok = prefill(&session, ids.ids, hidden, &s->prefill, e);
        if (ok && ids.n >= PROMPT)
            ok = decode(&session, ids.ids, hidden, seconds, steps, &s->decode, e);
        session_close(&session);
    }
    token_ids_free(&ids);
    arena_free(&tensors);
    arena_free(&a);
    return ok;
}
