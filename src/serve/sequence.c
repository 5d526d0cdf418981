/* sequence — 一个回答的实现 */
#include "serve/sequence.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/pytext.h"
#include "base/rng.h"

enum { PENDING_MAX = 8 }; /* 连着这么多个 token 还凑不成完整的字符，就认作坏字节 */

static void scores_free(TokenScores *t) {
    free(t->logprob);
    free(t->top_id);
    free(t->top_logprob);
    *t = (TokenScores){0};
}

void sequence_free(Sequence *s) {
    if (s->open) session_close(&s->session);
    token_ids_free(&s->out);
    scores_free(&s->scores);
    str_free(&s->text);
}

bool sequence_wants_scores(const Sequence *s) {
    return s->request->logprobs >= 0;
}

bool sequence_wants_logits(const Sequence *s) {
    return s->request->temperature > 0 || s->request->logprobs > 1;
}

/* ---------- 得分 ---------- */

static bool scores_reserve(TokenScores *t, Err *e) {
    if (t->n < t->cap) return true;
    size_t cap = t->cap ? 2 * t->cap : 64, k = (size_t)(t->k > 0 ? t->k : 1);
    double *lp = realloc(t->logprob, cap * sizeof *lp);
    if (lp) t->logprob = lp;
    int32_t *id = realloc(t->top_id, cap * k * sizeof *id);
    if (id) t->top_id = id;
    double *top = realloc(t->top_logprob, cap * k * sizeof *top);
    if (top) t->top_logprob = top;
    if (!lp || !id || !top) return err_set(e, ERR_MEMORY, "内存不足");
    t->cap = cap;
    return true;
}

bool scores_add(TokenScores *t, double logprob, const int32_t *top_id, const double *top_logprob,
                Err *e) {
    if (!scores_reserve(t, e)) return false;
    size_t i = t->n++;
    t->logprob[i] = logprob;
    for (int k = 0; k < t->k; k++) {
        t->top_id[i * (size_t)t->k + (size_t)k] = top_id ? top_id[k] : -1;
        t->top_logprob[i * (size_t)t->k + (size_t)k] = top_logprob ? top_logprob[k] : 0;
    }
    return true;
}

static double log_sum_exp(const float *x, int64_t n) {
    double max = x[0], sum = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > max) max = x[i];
    for (int64_t i = 0; i < n; i++) sum += exp(x[i] - max);
    return max + log(sum);
}

bool scores_add_logits(TokenScores *t, const float *logits, int64_t vocab, int32_t id, Err *e) {
    int32_t top[API_MAX_LOGPROBS];
    double lp[API_MAX_LOGPROBS], lse = log_sum_exp(logits, vocab);
    int n = 0;
    if (!isfinite(lse)) return err_set(e, ERR_NUMERIC, "模型的输出里有 NaN 或 Inf");
    for (int64_t i = 0; i < vocab && t->k; i++) { /* 插入排序，并列者 id 小的在前 */
        int at = n;
        while (at > 0 && logits[i] > logits[top[at - 1]]) at--;
        if (at >= t->k) continue;
        if (n < t->k) n++;
        memmove(top + at + 1, top + at, (size_t)(n - 1 - at) * sizeof *top);
        top[at] = (int32_t)i;
    }
    for (int k = 0; k < n; k++) lp[k] = logits[top[k]] - lse;
    for (int k = n; k < t->k; k++) top[k] = -1, lp[k] = 0;
    return scores_add(t, logits[id] - lse, top, lp, e);
}

/* ---------- 采样 ---------- */

static _Thread_local const float *sort_logits;
static int by_logit(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    float p = sort_logits[x], q = sort_logits[y];
    return p != q ? (p < q ? 1 : -1) : (x > y) - (x < y);
}

int32_t sequence_sample(const Sequence *s, const float *logits, int64_t vocab, int64_t step,
                        double *work, int32_t *order) {
    double t = s->request->temperature, top_p = s->request->top_p, sum = 0, kept = 0;
    int32_t best = 0;
    for (int64_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best]) best = (int32_t)i;
    if (t <= 0 || top_p <= 0) return best;
    for (int64_t i = 0; i < vocab; i++) {
        order[i] = (int32_t)i;
        work[i] = exp(((double)logits[i] - logits[best]) / t);
        sum += work[i];
    }
    int64_t n = vocab;
    kept = sum;
    if (top_p < 1) { /* 概率从大到小累计到 top_p 为止 */
        sort_logits = logits;
        qsort(order, (size_t)vocab, sizeof *order, by_logit);
        for (n = 0, kept = 0; n < vocab && (n == 0 || kept < top_p * sum); n++)
            kept += work[order[n]];
    }
    double u = rng_unit(s->seed, s->index, (uint64_t)step) * kept;
    for (int64_t i = 0; i < n; i++) {
        u -= work[order[i]];
        if (u < 0) return order[i];
    }
    return best;
}

/* ---------- 文字 ---------- */

/* 解码到 out；词表里没有的 id 没有文字。 */
static bool decode(const Sequence *s, const int32_t *ids, size_t n, bool skip, Str *out, Err *e) {
    Err own = {0};
    if (tokenizer_decode(s->tokenizer, ids, n, skip, out, &own)) return true;
    if (own.code != ERR_MEMORY) return true;
    *e = own;
    return false;
}

static bool incomplete(const Str *s) {
    return s->len >= 3 && memcmp(s->data + s->len - 3, "\xEF\xBF\xBD", 3) == 0;
}

/* 把凑成完整字符的 token 写进 text；末尾的 EOS（未必是特殊 token）不写。 */
static bool extend_text(Sequence *s, Err *e) {
    size_t n = s->out.n - s->decoded - s->ended;
    Str piece = {0};
    if (!n) return true;
    bool ok = decode(s, s->out.ids + s->decoded, n, true, &piece, e);
    if (ok && (!incomplete(&piece) || n >= PENDING_MAX || s->done)) {
        str_addn(&s->text, piece.data, piece.len);
        s->decoded = s->out.n;
    }
    str_free(&piece);
    return ok && (!s->text.failed || err_set(e, ERR_MEMORY, "内存不足"));
}

/* 找 text 里 from 之后最早的停止串；found 为其位置。 */
static bool find_stop(const Sequence *s, size_t from, size_t *found) {
    *found = SIZE_MAX;
    for (size_t i = 0; s->text.data && i < s->request->n_stop; i++) {
        const char *stop = s->request->stop[i];
        size_t len = strlen(stop), start = from > len ? from - len : 0;
        const char *hit = memmem(s->text.data + start, s->text.len - start, stop, len);
        if (hit && (size_t)(hit - s->text.data) < *found) *found = (size_t)(hit - s->text.data);
    }
    return *found != SIZE_MAX;
}

/* text 末尾有多少字节可能是某个停止串的开头。 */
static size_t held_bytes(const Sequence *s) {
    size_t most = 0;
    for (size_t i = 0; i < s->request->n_stop; i++) {
        const char *stop = s->request->stop[i];
        size_t n = strlen(stop) - 1;
        if (n > s->text.len) n = s->text.len;
        for (; n > most; n--)
            if (memcmp(s->text.data + s->text.len - n, stop, n) == 0) most = n;
    }
    return most;
}

bool sequence_accept(Sequence *s, int32_t id, Err *e) {
    size_t before = s->text.len, at;
    if (s->out.n == s->out.cap) {
        size_t cap = s->out.cap ? 2 * s->out.cap : 64;
        int32_t *ids = realloc(s->out.ids, cap * sizeof *ids);
        if (!ids) return err_set(e, ERR_MEMORY, "内存不足");
        s->out.ids = ids;
        s->out.cap = cap;
    }
    s->out.ids[s->out.n++] = id;
    s->ended = eos_has(s->eos, id);
    s->done = s->ended || (int64_t)s->out.n >= s->request->max_tokens;
    s->finish = s->ended ? "stop" : s->done ? "length" : NULL;
    if (!extend_text(s, e)) return false;
    if (find_stop(s, before, &at)) {
        s->text.data[at] = '\0';
        s->text.len = at;
        s->done = true;
        s->finish = "stop";
    }
    s->held = s->done ? 0 : held_bytes(s);
    return true;
}

/* ---------- JSON ---------- */

typedef struct TokenTexts {
    Arena arena;
    const char **tokens, **top;
    int64_t *offset;
} TokenTexts;

static const char *token_text(const Sequence *s, Arena *a, int32_t id, Err *e) {
    Str text = {0};
    const char *copy = NULL;
    if (decode(s, &id, 1, false, &text, e))
        copy = arena_strndup(a, text.data ? text.data : "", text.len, e);
    str_free(&text);
    return copy;
}

/* 各 token 的文字与它在整段文字里的字符位置（凑不成字符的几个 token 位置相同）。 */
static bool describe_tokens(const Sequence *s, TokenTexts *t, const int32_t *ids, size_t n,
                            const TokenScores *scores, size_t first, int64_t chars, Err *e) {
    size_t k = (size_t)scores->k, from = 0;
    t->tokens = ARENA_ARRAY(&t->arena, const char *, n, e);
    t->offset = ARENA_ARRAY(&t->arena, int64_t, n, e);
    t->top = ARENA_ARRAY(&t->arena, const char *, n * k, e);
    if (!t->tokens || !t->offset || !t->top) return false;
    for (size_t i = 0; i < n; i++) {
        Str piece = {0};
        t->offset[i] = chars;
        t->tokens[i] = token_text(s, &t->arena, ids[i], e);
        if (!t->tokens[i] || !decode(s, ids + from, i + 1 - from, true, &piece, e)) return false;
        if (!incomplete(&piece) || i - from + 1 >= PENDING_MAX) {
            chars += (int64_t)pytext_length(piece.data ? piece.data : "", piece.len);
            from = i + 1;
        }
        str_free(&piece);
        for (size_t j = 0; j < k; j++) {
            int32_t id = scores->top_id[(first + i) * k + j];
            if (id >= 0 && !(t->top[i * k + j] = token_text(s, &t->arena, id, e))) return false;
        }
    }
    return true;
}

/* 文字：提示（echo）接写出的 [from, to)。 */
static bool choice_text(const Sequence *s, bool echo, size_t from, size_t to, Str *out, Err *e) {
    if (echo && s->prompt->ids) {
        if (!decode(s, s->ids, (size_t)s->n, true, out, e)) return false;
    } else if (echo) {
        str_addn(out, s->prompt->text, s->prompt->len);
    }
    if (to > from) str_addn(out, s->text.data + from, to - from);
    return !out->failed || err_set(e, ERR_MEMORY, "内存不足");
}

json_t *sequence_json(Sequence *s, bool part, bool *empty, Err *e) {
    const ApiRequest *r = s->request;
    bool echo = r->echo && !(part && s->echoed);
    size_t from = part ? s->sent : 0, to = s->text.len - (part ? s->held : 0);
    size_t token0 = part ? s->sent_tokens : 0, n_echo = echo && r->logprobs >= 0 ? (size_t)s->n : 0;
    size_t n_out = r->logprobs >= 0 ? s->out.n - token0 : 0, n = n_echo + n_out;
    *empty = part && !s->finish && !echo && to <= from;
    if (*empty) return NULL;
    Str text = {0};
    TokenTexts t = {0};
    int32_t *ids = malloc((n + 1) * sizeof *ids);
    /* 得分的次序：提示的（echo 时）、写出的；流式的后半从 token0 起 */
    size_t first = echo ? 0 : (r->echo && r->logprobs >= 0 ? (size_t)s->n : 0) + token0;
    json_t *v = NULL;
    bool ok = ids || err_set(e, ERR_MEMORY, "内存不足");
    if (ok && n_echo) memcpy(ids, s->ids, n_echo * sizeof *ids);
    if (ok && n_out) memcpy(ids + n_echo, s->out.ids + token0, n_out * sizeof *ids);
    int64_t chars = (int64_t)pytext_length(s->text.data ? s->text.data : "", from);
    ok = ok && choice_text(s, echo, from, to, &text, e) &&
         (!n || describe_tokens(s, &t, ids, n, &s->scores, first, chars, e));
    if (ok) {
        ApiChoice c = {.index = s->index, .text = text.data ? text.data : "", .len = text.len,
                       .finish = s->finish, .chat = r->chat, .part = part, .with_logprobs = r->logprobs >= 0, .n_tokens = n,
                       .tokens = t.tokens, .text_offset = t.offset, .n_top = s->scores.k,
                       .top_tokens = t.top};
        if (n) c.logprob = s->scores.logprob + first;
        if (n && s->scores.k) c.top_logprob = s->scores.top_logprob + first * (size_t)s->scores.k;
        v = api_choice_json(&c);
        if (!v) err_set(e, ERR_MEMORY, "内存不足");
    }
    if (v && part) {
        s->sent = to > from ? to : from;
        s->sent_tokens = s->out.n;
        s->echoed = true;
    }
    free(ids);
    str_free(&text);
    arena_free(&t.arena);
    return v;
}
