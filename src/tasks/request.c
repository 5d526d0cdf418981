/* request — 打分请求的装批与计算
 * 请求按 token 的字典序排列，相邻两个的公共开头 lcp 就给出一棵前缀树；一批里每个请求只为「还没有行」的那些位置添一段，
 * 段接在前面某段的中间（forward.h 的 parent）。一批装不下又共有的长开头先单独算好，其键值留作后面各批的过去（KvPast）。
 * 每个请求的和按位置从小到大逐个相加，与怎样装批无关。
 * 键值或激活的量化规则要看一次喂入了什么时（见 can_share）不共享：每个请求自成一段。 */
#include "tasks/request.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "model/session.h"

enum {
    DEFAULT_ROWS = 2048,
    SCORE_ROWS = 512, /* 一次打分的位置数 */
    PAST_MIN = 64     /* 短于此的公共开头不值得单独留下 */
};

typedef struct Scorer {
    Model *m;
    ScoreRequest *all;
    ScoreRequest **r; /* (n) 按 token 排好 */
    int64_t *lcp;     /* (n) 与前一个请求的输入的公共长度；[0] 为 0 */
    int64_t n;
    bool share;
    Workspace w;
    KvPast past;
    Arena past_arena; /* past 的键值，在后端内存 */
    /* 一批 */
    int32_t *ids;      /* (max_rows) */
    Segment *segments; /* (max_rows) */
    int64_t *leaf;     /* (max_rows) 批内第 i 个请求末段的号；-1 表示全在过去里 */
    int64_t n_rows, n_segments;
    /* 打分的缓冲 */
    Arena tensors; /* x，在后端内存 */
    float *x; /* (SCORE_ROWS, hidden) */
    int32_t targets[SCORE_ROWS], top1[SCORE_ROWS];
    double nll[SCORE_ROWS], top_nll[SCORE_ROWS];
    ScoreRequest *owner[SCORE_ROWS];
    int64_t index[SCORE_ROWS]; /* 该请求的第几个打分位置 */
    int64_t n_scores;
    ScoreCost cost;
    Progress bar;
    int64_t done;
} Scorer;

/* 请求的输入长度：最后一个 token 只被预测，不喂入。 */
static int64_t input_len(const ScoreRequest *r) {
    return r->n - 1;
}

static int by_ids(const void *a, const void *b) {
    const ScoreRequest *x = *(ScoreRequest *const *)a, *y = *(ScoreRequest *const *)b;
    int64_t n = x->n < y->n ? x->n : y->n;
    for (int64_t i = 0; i < n; i++)
        if (x->ids[i] != y->ids[i]) return x->ids[i] < y->ids[i] ? -1 : 1;
    if (x->n != y->n) return x->n < y->n ? -1 : 1;
    return (x > y) - (x < y);
}

/* 过去能否由别的请求代算：量化的规则只看位置与时间线，与一次喂入了几个 token 无关。 */
static bool can_share(const Model *m) {
    for (int64_t i = 0; i < m->blocks[0].n_linears; i++) {
        const Linear *l = &m->blocks[0].linears[i];
        if (l->act.kind == ACT_TENSOR || l->out.kind == ACT_TENSOR) return false;
    }
    return !m->kv || m->kv_mode == KV_MODE_DECODE;
}

/* ---------- 打分 ---------- */

static bool flush_scores(Scorer *s, Err *e) {
    if (s->n_scores == 0) return true;
    ScoreJob job = {.n = s->n_scores, .x = s->x, .head = s->m->head, .softcap = (float)s->m->config.logit_softcap,
                    .targets = s->targets,
                    .nll = s->nll, .top1 = s->top1, .top_nll = s->top_nll};
    op_score(s->m->backend, &job);
    if (!backend_check(s->m->backend, e)) return false;
    for (int64_t i = 0; i < s->n_scores; i++) {
        ScoreRequest *r = s->owner[i];
        if (!isfinite(s->nll[i]))
            return err_set(e, ERR_NUMERIC, "第 %lld 个请求的对数似然出现 NaN 或 Inf",
                           (long long)(r - s->all));
        r->loglikelihood -= s->nll[i];
        r->is_greedy = r->is_greedy && s->top1[i] == s->targets[i];
        if (r->token_logprob) r->token_logprob[s->index[i]] = -s->nll[i];
        if (r->top_id) r->top_id[s->index[i]] = s->top1[i];
        if (r->top_logprob) r->top_logprob[s->index[i]] = -s->top_nll[i];
    }
    s->n_scores = 0;
    return true;
}

/* 输入位置 pos（在批的第 row 行）预测请求 r 的下一个 token。 */
static bool add_score(Scorer *s, ScoreRequest *r, int64_t pos, int64_t row, Err *e) {
    int64_t d = s->m->config.hidden, i = s->n_scores++;
    op_copy(s->m->backend, s->x + i * d, s->w.h + row * d, (size_t)d * sizeof *s->x);
    s->targets[i] = r->ids[pos + 1];
    s->owner[i] = r;
    s->index[i] = pos + 1 - r->n_context;
    return s->n_scores < SCORE_ROWS || flush_scores(s, e);
}

/* 请求 r 在位置 [from, to) 里要打分的；这些位置的行沿 leaf 上溯得到。 */
static bool score_request(Scorer *s, ScoreRequest *r, const Segment *leaf, int64_t from, int64_t to,
                          Err *e) {
    int64_t first = r->n_context - 1 > from ? r->n_context - 1 : from;
    for (int64_t pos = first; pos < to; pos++) {
        const Segment *at = leaf;
        while (at->first > pos) at = at->parent;
        if (!add_score(s, r, pos, at->row0 + pos - at->first, e)) return false;
    }
    return true;
}

static void finish_request(Scorer *s, const ScoreRequest *r) {
    s->done += input_len(r);
    if (s->bar.total) progress_step(&s->bar, s->done);
}

/* ---------- 一批 ---------- */

static bool forward(Scorer *s, Err *e) {
    s->cost.n_rows += s->n_rows;
    return forward_segments(s->m, &s->w, s->ids, s->n_rows, s->segments, (size_t)s->n_segments, e);
}

/* 把请求 k 添进批：它的位置 [have, end) 还没有行。up 是批里前一个请求的末段。返回: 它的末段。 */
static int64_t add_request(Scorer *s, int64_t k, int64_t have, int64_t up) {
    int64_t end = input_len(s->r[k]);
    while (up >= 0 && s->segments[up].first >= have)
        up = s->segments[up].parent ? s->segments[up].parent - s->segments : -1;
    if (end <= have) { /* 全在已有的行里：末段是含位置 end−1 的那一段 */
        while (up >= 0 && s->segments[up].first >= end)
            up = s->segments[up].parent ? s->segments[up].parent - s->segments : -1;
        return up;
    }
    s->segments[s->n_segments] = (Segment){.row0 = s->n_rows, .n = end - have, .first = have,
                                           .parent = up >= 0 ? &s->segments[up] : NULL};
    memcpy(s->ids + s->n_rows, s->r[k]->ids + have, (size_t)(end - have) * sizeof *s->ids);
    s->n_rows += end - have;
    return s->n_segments++;
}

/* 请求 [from, to) 算成一批；共有的前 depth 个 token 在 past 里，已打过分。 */
static bool run_batch(Scorer *s, int64_t from, int64_t to, int64_t depth, Err *e) {
    s->n_rows = s->n_segments = 0;
    for (int64_t k = from, up = -1; k < to; k++) {
        int64_t have = k > from && s->lcp[k] > depth ? s->lcp[k] : depth;
        up = s->leaf[k - from] = add_request(s, k, have, up);
    }
    if (s->n_rows && !forward(s, e)) return false;
    for (int64_t k = from; k < to; k++) {
        const Segment *leaf = s->leaf[k - from] >= 0 ? &s->segments[s->leaf[k - from]] : NULL;
        if (leaf && !score_request(s, s->r[k], leaf, depth, input_len(s->r[k]), e)) return false;
    }
    if (!flush_scores(s, e)) return false;
    for (int64_t k = from; k < to; k++) finish_request(s, s->r[k]);
    return true;
}

static bool past_reserve(Scorer *s, int64_t n, Err *e) {
    KvPast *p = &s->past;
    if (n <= p->capacity) return true;
    const ModelConfig *c = &s->m->config;
    int64_t width = c->n_kv_heads * c->head_dim, capacity = (n + 255) / 256 * 256;
    size_t bytes = (size_t)(c->n_layers * capacity * width) * sizeof(float);
    Backend *b = s->m->backend;
    Arena a = backend_arena(b);
    KvPast grown = {.n = p->n, .capacity = capacity};
    grown.k = arena_alloc(&a, bytes, NULL);
    grown.v = arena_alloc(&a, bytes, NULL);
    if (!grown.k || !grown.v) {
        arena_free(&a);
        return err_set(e, ERR_MEMORY, "内存不足：%lld 个位置的公共开头的键值要 %.0f MB",
                       (long long)capacity, 2e-6 * (double)bytes);
    }
    for (int64_t l = 0; l < c->n_layers && p->n; l++) {
        size_t used = (size_t)(p->n * width) * sizeof(float);
        op_copy(b, grown.k + l * capacity * width, p->k + l * p->capacity * width, used);
        op_copy(b, grown.v + l * capacity * width, p->v + l * p->capacity * width, used);
    }
    arena_free(&s->past_arena);
    s->past_arena = a;
    *p = grown;
    return backend_check(b, e);
}

/* 请求 [from, to) 共有的位置 [depth, end) 算好，键值记进 past，其中要打分的打分。 */
static bool extend_past(Scorer *s, int64_t from, int64_t to, int64_t depth, int64_t end, Err *e) {
    if (!past_reserve(s, end, e)) return false;
    for (int64_t at = depth; at < end; at = s->past.n) {
        int64_t n = end - at < s->w.max_rows ? end - at : s->w.max_rows;
        s->segments[0] = (Segment){.n = n, .first = at};
        s->n_segments = 1;
        s->n_rows = n;
        memcpy(s->ids, s->r[from]->ids + at, (size_t)n * sizeof *s->ids);
        s->past.n = at;
        s->w.record = &s->past;
        bool ok = forward(s, e);
        s->w.record = NULL;
        for (int64_t k = from; ok && k < to; k++) {
            int64_t stop = input_len(s->r[k]) < at + n ? input_len(s->r[k]) : at + n;
            ok = score_request(s, s->r[k], &s->segments[0], at, stop, e);
        }
        if (!ok || !flush_scores(s, e)) return false;
        s->past.n = at + n;
    }
    return true;
}

/* ---------- 装批 ---------- */

/* 请求 k 添进从 from 起的一批要多少行。 */
static int64_t rows_for(const Scorer *s, int64_t k, int64_t from, int64_t depth) {
    int64_t have = k > from && s->lcp[k] > depth ? s->lcp[k] : depth;
    return input_len(s->r[k]) > have ? input_len(s->r[k]) - have : 0;
}

/* 从 from 起一批能装到哪个请求为止（不含）；共有的前 depth 个在 past 里。 */
static int64_t fill(const Scorer *s, int64_t from, int64_t end, int64_t depth) {
    int64_t rows = 0, k = from, best;
    for (; k < end && k - from < s->w.max_rows; k++) {
        int64_t need = rows_for(s, k, from, depth);
        if (rows + need > s->w.max_rows) break;
        rows += need;
    }
    if (k == end || k == from) return k;
    /* 断在与前一个请求相同最少的地方，免得一份文档的开头在两批里各算一次 */
    best = k;
    for (int64_t t = k - 1; t > from && t >= k - 32; t--) {
        rows -= rows_for(s, t, from, depth);
        if (rows < s->w.max_rows * 3 / 4) break;
        if (s->lcp[t] < s->lcp[best]) best = t;
    }
    return best;
}

static int64_t least_lcp(const Scorer *s, int64_t from, int64_t to) {
    int64_t least = INT64_MAX;
    for (int64_t k = from; k < to; k++)
        if (s->lcp[k] < least) least = s->lcp[k];
    return least;
}

/* 请求 [from, end)，共有的前 depth 个 token 在 past 里。每深一层至少多 PAST_MIN 个 token 或一整批。 */
static bool run_range(Scorer *s, int64_t from, int64_t end, int64_t depth, Err *e) {
    while (from < end) {
        s->past.n = depth;
        int64_t to = fill(s, from, end, depth), common = depth;
        if (to == from) /* 一个请求就装不下 */
            common = depth + s->w.max_rows;
        else if (to < end && s->share)
            common = least_lcp(s, from + 1, to + 1);
        if (to > from && common - depth < PAST_MIN) {
            if (!run_batch(s, from, to, depth, e)) return false;
            from = to;
            continue;
        }
        if (common > input_len(s->r[from])) common = input_len(s->r[from]);
        for (to = from + 1; to < end && s->lcp[to] >= common;) to++;
        if (!extend_past(s, from, to, depth, common, e) || !run_range(s, from, to, common, e))
            return false;
        from = to;
    }
    return true;
}

/* ---------- 备料 ---------- */

static bool check_requests(const Model *m, ScoreRequest *r, size_t n, Err *e) {
    for (size_t i = 0; i < n; i++) {
        CHECK(r[i].n_context >= 1 && r[i].n_context <= r[i].n);
        if (!session_check_ids(&m->config, r[i].ids, r[i].n, e))
            return err_wrap(e, "第 %zu 个请求", i);
        r[i].loglikelihood = 0;
        r[i].is_greedy = true;
    }
    return true;
}

static bool scorer_open(Scorer *s, Arena *a, Model *m, const ScoreOptions *o, ScoreRequest *r,
                        size_t n, Err *e) {
    *s = (Scorer){.m = m, .all = r, .share = can_share(m)};
    s->r = ARENA_ARRAY(a, ScoreRequest *, n, e);
    s->lcp = ARENA_ARRAY(a, int64_t, n, e);
    if (!s->r || !s->lcp) return false;
    int64_t longest = 1;
    for (size_t i = 0; i < n; i++) {
        if (r[i].n_context == r[i].n) continue; /* 没有要打分的 */
        s->r[s->n++] = &r[i];
        s->cost.n_tokens += input_len(&r[i]);
        if (input_len(&r[i]) > longest) longest = input_len(&r[i]);
    }
    qsort(s->r, (size_t)s->n, sizeof *s->r, by_ids);
    for (int64_t k = 1; s->share && k < s->n; k++) {
        const ScoreRequest *x = s->r[k - 1], *y = s->r[k];
        int64_t limit = input_len(x) < input_len(y) ? input_len(x) : input_len(y), c = 0;
        while (c < limit && x->ids[c] == y->ids[c]) c++;
        s->lcp[k] = c;
    }
    const Backend *b = m->backend;
    bool heavy = m->stream && b->separate; /* 每批都要把权重传一遍：批大些 */
    int64_t usual = !heavy && b->batch_rows > DEFAULT_ROWS ? DEFAULT_ROWS : b->batch_rows;
    int64_t rows = o && o->max_rows > 0 ? o->max_rows : usual;
    if (!s->share && rows < longest) rows = longest; /* 不可分次喂入 */
    if (rows > s->cost.n_tokens && s->cost.n_tokens > 0) rows = s->cost.n_tokens;
    s->ids = ARENA_ARRAY(a, int32_t, rows, e);
    s->segments = ARENA_ARRAY(a, Segment, rows, e);
    s->leaf = ARENA_ARRAY(a, int64_t, rows, e);
    s->tensors = backend_arena(m->backend);
    s->x = ARENA_ARRAY(&s->tensors, float, SCORE_ROWS * m->config.hidden, e);
    if (!s->ids || !s->segments || !s->leaf || !s->x || !workspace_open(&s->w, m, rows, e))
        return false;
    s->w.past = &s->past;
    s->w.horizon = longest; /* 与怎样装批无关 */
    return true;
}

bool requests_score(Model *m, const ScoreOptions *o, ScoreRequest *r, size_t n, ScoreCost *cost,
                    Err *e) {
    if (cost) *cost = (ScoreCost){0};
    if (!check_requests(m, r, n, e)) return false;
    Arena a = {0};
    Scorer *s = ARENA_NEW(&a, Scorer, e);
    bool ok = s && scorer_open(s, &a, m, o, r, n, e);
    if (ok) {
        double started = clock_seconds();
        if (!o || !o->quiet)
            s->bar = progress_start(LOG_EVAL, "打分", "token", s->cost.n_tokens);
        ok = run_range(s, 0, s->n, 0, e);
        if (s->bar.total) progress_end(&s->bar);
        s->cost.seconds = clock_seconds() - started;
        if (cost) *cost = s->cost;
    }
    if (s) {
        workspace_close(&s->w);
        arena_free(&s->past_arena);
        arena_free(&s->tensors);
    }
    arena_free(&a);
    return ok;
}
