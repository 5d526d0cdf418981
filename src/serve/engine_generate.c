/* engine_generate — 生成：占位置、预填、每步所有时间线各一个 token
 * 位置数与键值缓存的总量有上限；先来的先占。预填每轮只做一段，免得一个长提示让正在生成的都停下来。 */
#include <math.h>
#include <string.h>

#include "serve/engine_internal.h"

static double kv_bytes(const Engine *g, const Sequence *s) {
    const Model *m = g->o.model;
    return (double)(s->n + s->request->max_tokens) *
           (double)session_kv_bytes_per_token(&m->config, kv_near_dtype(m));
}

static void leave(Engine *g, size_t i) {
    Sequence *s = g->active[i];
    g->kv_used -= kv_bytes(g, s);
    if (s->open) session_close(&s->session);
    s->open = false;
    g->n_active--;
    memmove(g->active + i, g->active + i + 1, (g->n_active - i) * sizeof *g->active);
    memmove(g->active_work + i, g->active_work + i + 1, (g->n_active - i) * sizeof *g->active_work);
}

void engine_release(Engine *g, const Work *w) {
    for (size_t i = g->n_active; i-- > 0;)
        if (g->active_work[i] == w) leave(g, i);
}

void engine_admit(Engine *g) {
    for (Work *w = g->live; w; w = w->next) {
        if (w->score_only || w->dead) continue;
        for (; w->started < w->n; w->started++) {
            Sequence *s = &w->sequences[w->started];
            double bytes = kv_bytes(g, s);
            if (g->n_active == ENGINE_SLOTS) return;
            if (g->n_active && g->kv_used + bytes > ENGINE_KV_BYTES) return;
            g->kv_used += bytes;
            g->active[g->n_active] = s;
            g->active_work[g->n_active++] = w;
        }
    }
}

/* n 行隐藏状态 → logits，写在 g->logits（n <= LOGIT_ROWS）。 */
static bool expand(Engine *g, const float *hidden, int64_t n, Err *e) {
    Model *m = g->o.model;
    model_logits(m, g->head_out, hidden, n);
    op_read(m->backend, g->logits, g->head_out,
            (size_t)(n * m->config.vocab) * sizeof *g->logits);
    return backend_check(m->backend, e);
}

static bool best_tokens(Engine *g, const float *hidden, int64_t n, const int32_t *targets,
                        double *nll, int32_t *top, double *top_nll, Err *e) {
    ScoreJob job = {.n = n, .x = hidden, .head = g->o.model->head, .softcap = (float)g->o.model->config.logit_softcap,
                    .targets = targets, .nll = nll,
                    .top1 = top, .top_nll = top_nll};
    op_score(g->o.model->backend, &job);
    if (!backend_check(g->o.model->backend, e)) return false;
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(top_nll[i])) return err_set(e, ERR_NUMERIC, "模型的输出里有 NaN 或 Inf");
    return true;
}

/* 提示的位置 [first, first+n) 的隐藏状态 → 它们预测的提示 token 的得分。 */
static bool score_prompt(Engine *g, Sequence *s, int64_t first, int64_t n, Err *e) {
    int64_t d = g->o.model->config.hidden, vocab = g->o.model->config.vocab;
    if (first == 0 && !scores_add(&s->scores, NAN, NULL, NULL, e)) return false;
    for (int64_t at = 0; at < n; at += LOGIT_ROWS) {
        int64_t rows = n - at < LOGIT_ROWS ? n - at : LOGIT_ROWS;
        int32_t targets[LOGIT_ROWS], top[LOGIT_ROWS];
        double nll[LOGIT_ROWS], top_lp[LOGIT_ROWS];
        for (int64_t i = 0; i < rows; i++) {
            int64_t pos = first + at + i + 1;
            targets[i] = pos < s->n ? s->ids[pos] : -1;
        }
        bool whole = sequence_wants_logits(s);
        if (whole ? !expand(g, g->hidden + at * d, rows, e)
                  : !best_tokens(g, g->hidden + at * d, rows, targets, nll, top, top_lp, e))
            return false;
        for (int64_t i = 0; i < rows && targets[i] >= 0; i++) {
            double lp = -top_lp[i];
            if (whole ? !scores_add_logits(&s->scores, g->logits + i * vocab, vocab, targets[i], e)
                      : !scores_add(&s->scores, -nll[i], &top[i], &lp, e))
                return false;
        }
    }
    return true;
}

/* 由一行隐藏状态写出下一个 token。 */
static bool write_token(Engine *g, Work *w, Sequence *s, const float *hidden, int32_t top,
                        double top_nll, Err *e) {
    int64_t vocab = g->o.model->config.vocab;
    int32_t id = top;
    double lp = -top_nll;
    if (sequence_wants_logits(s)) {
        if (!expand(g, hidden, 1, e)) return false;
        id = sequence_sample(s, g->logits, vocab, (int64_t)s->out.n, g->sample_work,
                             g->sample_order);
        if (sequence_wants_scores(s) && !scores_add_logits(&s->scores, g->logits, vocab, id, e))
            return false;
    } else if (sequence_wants_scores(s) && !scores_add(&s->scores, lp, &top, &lp, e)) {
        return false;
    }
    if (!sequence_accept(s, id, e)) return false;
    return !w->request.stream || work_stream(g, w, s, e);
}

/* 第 i 个位置的回答写完了就让出来；请求的全部回答都写完则交回。 */
static void settle(Engine *g, size_t i) {
    Work *w = g->active_work[i];
    if (!g->active[i]->done) return;
    leave(g, i);
    if (++w->finished == w->n) work_finish(g, w);
}

/* max_tokens 为 0：只有提示。 */
static bool prompt_only(Engine *g, Work *w, Sequence *s, Err *e) {
    s->done = true;
    s->finish = "length";
    return !w->request.stream || work_stream(g, w, s, e);
}

static bool prefill(Engine *g, Work *w, Sequence *s, Err *e) {
    int64_t d = g->o.model->config.hidden, left = s->n - s->fed;
    int64_t n = left < PREFILL_ROWS ? left : PREFILL_ROWS;
    if (!s->open) {
        if (!session_open(&s->session, g->o.model, s->n + w->request.max_tokens, n, e))
            return false;
        s->open = true;
    }
    if (!session_forward(&s->session, s->ids + s->fed, n, g->hidden, e)) return false;
    if (w->request.echo && sequence_wants_scores(s) && !score_prompt(g, s, s->fed, n, e)) return false;
    s->fed += n;
    if (s->fed < s->n) return true;
    if (w->request.max_tokens == 0) return prompt_only(g, w, s, e);
    int32_t none = -1, top;
    double nll, top_nll;
    const float *last = g->hidden + (n - 1) * d;
    return best_tokens(g, last, 1, &none, &nll, &top, &top_nll, e) &&
           write_token(g, w, s, last, top, top_nll, e);
}

bool engine_prefill(Engine *g) {
    for (size_t i = 0; i < g->n_active; i++) {
        Sequence *s = g->active[i];
        Work *w = g->active_work[i];
        Err e = {0};
        if (s->fed == s->n) continue;
        if (prefill(g, w, s, &e)) settle(g, i);
        else work_fail_err(g, w, &e);
        return true;
    }
    return false;
}

bool engine_step(Engine *g) {
    Session *sessions[ENGINE_SLOTS];
    int32_t ids[ENGINE_SLOTS], none[ENGINE_SLOTS], top[ENGINE_SLOTS];
    double nll[ENGINE_SLOTS], top_nll[ENGINE_SLOTS];
    Sequence *who[ENGINE_SLOTS];
    Work *works[ENGINE_SLOTS];
    int64_t d = g->o.model->config.hidden;
    size_t n = 0;
    Err e = {0};
    for (size_t i = 0; i < g->n_active; i++) {
        Sequence *s = g->active[i];
        if (s->fed < s->n) continue;
        sessions[n] = &s->session;
        ids[n] = s->out.ids[s->out.n - 1];
        none[n] = -1;
        works[n] = g->active_work[i];
        who[n++] = s;
    }
    if (!n) return false;
    bool ok = sessions_step(sessions, n, &g->w, ids, g->hidden, &e) &&
              best_tokens(g, g->hidden, (int64_t)n, none, nll, top, top_nll, &e);
    for (size_t i = 0; i < n; i++) {
        if (works[i]->dead) continue;
        if (!ok || !write_token(g, works[i], who[i], g->hidden + (int64_t)i * d, top[i], top_nll[i],
                                &e))
            work_fail_err(g, works[i], &e);
    }
    for (size_t i = g->n_active; i-- > 0;)
        if (i < g->n_active) settle(g, i);
    return true;
}
