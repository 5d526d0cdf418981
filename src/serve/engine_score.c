/* engine_score — 成批打分：echo + logprobs 的请求（lm_eval 的 loglikelihood 就是它）
 * 每条提示是一个 ScoreRequest；要再写一个 token 时末尾添一个任意的 id，打分时那个位置最可能的 token 就是它。
 * 一批由手头的请求轮流各出若干条提示凑成，所以一个很长的请求不会让别的都等着。 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "serve/engine_internal.h"
#include "tasks/request.h"

typedef struct Batch {
    ScoreRequest *requests;
    Work **works;
    size_t *prompt; /* 该请求的第几条提示 */
    size_t n;
    int64_t tokens;
} Batch;

/* 提示之后添一个 id；打分的位置数为 n - n_context。 */
static bool fill_request(const Work *w, size_t p, ScoreRequest *r, Arena *a, Err *e) {
    const TokenIds *t = &w->prompts[p];
    const ApiRequest *q = &w->request;
    bool prompt = q->echo && q->logprobs >= 0, more = q->max_tokens > 0;
    int64_t n = (int64_t)t->n + more;
    int32_t *ids = ARENA_ARRAY(a, int32_t, n, e);
    if (!ids) return false;
    memcpy(ids, t->ids, t->n * sizeof *ids);
    *r = (ScoreRequest){.ids = ids, .n = n, .n_context = prompt ? 1 : (int64_t)t->n};
    int64_t scored = n - r->n_context;
    r->token_logprob = ARENA_ARRAY(a, double, scored, e);
    r->top_id = ARENA_ARRAY(a, int32_t, scored, e);
    r->top_logprob = ARENA_ARRAY(a, double, scored, e);
    return r->token_logprob && r->top_id && r->top_logprob;
}

/* 一个请求的第 p 条提示算好了：填进它的回答。 */
static bool store(Work *w, size_t p, const ScoreRequest *r, Err *e) {
    Sequence *s = &w->sequences[p];
    const ApiRequest *q = &w->request;
    int64_t last = r->n - r->n_context - 1;
    if (q->echo && q->logprobs >= 0) {
        if (!scores_add(&s->scores, NAN, NULL, NULL, e)) return false;
        for (int64_t i = 0; i + 1 < s->n; i++)
            if (!scores_add(&s->scores, r->token_logprob[i], &r->top_id[i], &r->top_logprob[i], e))
                return false;
    }
    if (q->max_tokens > 0) {
        if (q->logprobs >= 0 && !scores_add(&s->scores, r->top_logprob[last], &r->top_id[last],
                                            &r->top_logprob[last], e))
            return false;
        return sequence_accept(s, r->top_id[last], e);
    }
    s->done = true;
    s->finish = "length";
    return true;
}

/* 轮流取：每一轮每个请求出一条，直到凑够 SCORE_TOKENS。 */
static bool gather(Engine *g, Batch *b, Arena *a, Err *e) {
    size_t total = 0;
    for (Work *w = g->live; w; w = w->next)
        if (w->score_only && !w->dead) total += w->request.n_prompts - w->scored;
    if (!total) return true;
    b->requests = ARENA_ARRAY(a, ScoreRequest, total, e);
    b->works = ARENA_ARRAY(a, Work *, total, e);
    b->prompt = ARENA_ARRAY(a, size_t, total, e);
    if (!b->requests || !b->works || !b->prompt) return false;
    for (bool any = true; any && b->tokens < SCORE_TOKENS;) {
        any = false;
        for (Work *w = g->live; w && b->tokens < SCORE_TOKENS; w = w->next) {
            if (!w->score_only || w->dead || w->scored == w->request.n_prompts) continue;
            size_t p = w->scored++;
            if (!fill_request(w, p, &b->requests[b->n], a, e)) return false;
            b->works[b->n] = w;
            b->prompt[b->n] = p;
            b->tokens += b->requests[b->n++].n;
            any = true;
        }
    }
    return true;
}

bool engine_score(Engine *g) {
    Arena a = {0};
    Err e = {0};
    Batch b = {0};
    ScoreOptions options = {.quiet = true};
    bool ok = gather(g, &b, &a, &e) &&
              (!b.n || requests_score(g->o.model, &options, b.requests, b.n, NULL, &e));
    for (size_t i = 0; i < b.n; i++) {
        Work *w = b.works[i];
        if (w->dead) continue;
        if (!ok || !store(w, b.prompt[i], &b.requests[i], &e)) {
            work_fail_err(g, w, &e);
            continue;
        }
        if (++w->finished == w->n) work_finish(g, w);
    }
    if (!ok && !b.n) /* 连一批都凑不出来 */
        for (Work *w = g->live; w; w = w->next)
            if (w->score_only && !w->dead) work_fail_err(g, w, &e);
    arena_free(&a);
    return b.n > 0;
}
