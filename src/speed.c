/* speed — 预填与解码的速度
 * 两者都走会话，与评测同一条路；先预热，取中位数，忙机器上的偶发停顿不影响结果。
 * 解码可以是一批（eval.speed_batch）各有一段过去（eval.speed_context）的时间线，每步一起算、各取最可能的下一个。 */
#include "base/log.h"
#include "evaluator.h"
#include "model/session.h"
#include "tasks/stats.h"

enum { PREFILL = 512, PREFILL_REPS = 3, DECODE_WARM_UP = 4, TEXT_BYTES = 8192, SHIFT = 37 };
enum { BATCH_PIECE = 128 }; /* 一批时各会话的工作区小些：过去分段喂入，不计时 */

/* 一起解码的几条时间线。 */
typedef struct Batch {
    Model *m;
    int64_t n, n_open;
    Session *sessions;
    Session **list;
    Workspace work; /* n > 1 */
    bool has_work;
    int32_t *ids, *none; /* 现在的 token；全是 −1 的目标 */
    double *nll;
    float *hidden;
    Arena arena, tensors;
} Batch;

/* n 个位置各自最可能的下一个 token。 */
static bool next_tokens(Model *m, const float *hidden, int64_t n, const int32_t *none, double *nll, int32_t *ids,
                        Err *e) {
    ScoreJob score = {.n = n, .x = hidden, .head = m->head, .softcap = (float)m->config.logit_softcap,
                      .targets = none, .nll = nll, .top1 = ids};
    op_score(m->backend, &score);
    return backend_check(m->backend, e);
}

static bool prefill(Model *m, const int32_t *ids, double *tok_per_s, Err *e) {
    double seconds[PREFILL_REPS + 1], nll;
    int32_t id, none = -1;
    Session s;
    Arena tensors = backend_arena(m->backend);
    float *hidden = ARENA_ARRAY(&tensors, float, PREFILL * m->config.hidden, e);
    bool ok = hidden != NULL, open = ok && session_open(&s, m, PREFILL, PREFILL, e);
    ok = open;
    for (int i = 0; ok && i <= PREFILL_REPS; i++) {
        session_reset(&s);
        double t = clock_seconds();
        ok = session_forward(&s, ids, PREFILL, hidden, e) &&
             next_tokens(m, hidden + (PREFILL - 1) * m->config.hidden, 1, &none, &nll, &id, e);
        seconds[i] = clock_seconds() - t;
    }
    if (ok) *tok_per_s = PREFILL / stats_median(seconds + 1, PREFILL_REPS); /* 第一次是预热 */
    if (open) session_close(&s);
    arena_free(&tensors);
    return ok;
}

static bool batch_open(Batch *b, Model *m, int64_t n, int64_t room, Err *e) {
    *b = (Batch){.m = m, .n = n, .tensors = backend_arena(m->backend)};
    b->sessions = ARENA_ARRAY(&b->arena, Session, n, e);
    b->list = ARENA_ARRAY(&b->arena, Session *, n, e);
    b->ids = ARENA_ARRAY(&b->arena, int32_t, n, e);
    b->none = ARENA_ARRAY(&b->arena, int32_t, n, e);
    b->nll = ARENA_ARRAY(&b->arena, double, n, e);
    b->hidden = ARENA_ARRAY(&b->tensors, float, n * m->config.hidden, e);
    if (!b->sessions || !b->list || !b->ids || !b->none || !b->nll || !b->hidden) return false;
    int64_t piece = n > 1 ? BATCH_PIECE : PREFILL;
    for (; b->n_open < n; b->n_open++) {
        b->none[b->n_open] = -1;
        b->list[b->n_open] = &b->sessions[b->n_open];
        if (!session_open(b->list[b->n_open], m, room, piece, e)) return false;
    }
    return n == 1 || (b->has_work = workspace_open(&b->work, m, n, e));
}

static void batch_close(Batch *b) {
    for (int64_t i = 0; i < b->n_open; i++) session_close(&b->sessions[i]);
    if (b->has_work) workspace_close(&b->work);
    arena_free(&b->tensors);
    arena_free(&b->arena);
}

/* 各时间线的过去：文本从不同的地方起，不够长就从头接着。 */
static bool batch_feed(Batch *b, const TokenIds *text, int64_t context, Err *e) {
    Arena tmp = {0};
    int32_t *past = ARENA_ARRAY(&tmp, int32_t, context, e);
    bool ok = past != NULL;
    for (int64_t i = 0; ok && i < b->n; i++) {
        for (int64_t k = 0; k < context; k++) past[k] = text->ids[(size_t)(i * SHIFT + k) % text->n];
        b->ids[i] = past[context - 1];
        ok = session_forward(b->list[i], past, context, NULL, e);
    }
    arena_free(&tmp);
    return ok;
}

static bool batch_step(Batch *b, Err *e) {
    bool ok = b->n == 1 ? session_forward(b->list[0], b->ids, 1, b->hidden, e)
                        : sessions_step(b->list, (size_t)b->n, &b->work, b->ids, b->hidden, e);
    return ok && next_tokens(b->m, b->hidden, b->n, b->none, b->nll, b->ids, e);
}

static bool decode(Model *m, const RunOptions *o, const TokenIds *text, double *tok_per_s, Err *e) {
    int64_t steps = o->decode_tokens;
    Arena a = {0};
    Batch b;
    double *seconds = ARENA_ARRAY(&a, double, steps, e);
    bool ok = seconds != NULL, opened = ok;
    ok = ok && batch_open(&b, m, o->speed_batch, o->speed_context + DECODE_WARM_UP + steps, e) &&
         batch_feed(&b, text, o->speed_context, e);
    for (int64_t i = -DECODE_WARM_UP; ok && i < steps; i++) {
        double t = clock_seconds();
        ok = batch_step(&b, e);
        if (i >= 0) seconds[i] = clock_seconds() - t;
    }
    if (ok) *tok_per_s = (double)o->speed_batch / stats_median(seconds, (size_t)steps);
    if (opened) batch_close(&b);
    arena_free(&a);
    return ok;
}

bool evaluate_speed(const Evaluation *v, Speed *s, Err *e) {
    *s = (Speed){0};
    const TextData *t = &v->texts[0].text;
    TokenIds ids = {0};
    if (!tokenizer_encode(v->tokenizer, t->data, t->len < TEXT_BYTES ? t->len : TEXT_BYTES, true,
                          &ids, e))
        return false;
    bool ok = ids.n < PREFILL || prefill(v->model, ids.ids, &s->prefill, e);
    ok = ok && (!ids.n || decode(v->model, v->options, &ids, &s->decode, e));
    token_ids_free(&ids);
    return ok;
}
