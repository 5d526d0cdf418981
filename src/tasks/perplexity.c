/* perplexity — 困惑度的实现
 * 一批若干窗口一起前向（行数约为后端的 batch_rows，权重只过一遍），逐窗口打分；批大小不影响任何一位数字。 */
#include "tasks/perplexity.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "tasks/stats.h"

int64_t perplexity_batch(const Protocol *p, int64_t rows) {
    int64_t n = rows / p->window;
    return n > 0 ? n : 1;
}

/* 打分一个窗口所需的缓冲。 */
typedef struct Scores {
    int32_t *targets, *top1, *ref_top1;
    double *nll, *kl;
    float *ref_x; /* (n, hidden) 基线的隐藏状态，在后端内存；没有基线为 NULL */
} Scores;

/* 全程累计的 KL 与首位一致。 */
typedef struct Compare {
    double *kl;
    int64_t n, same;
} Compare;

static bool alloc_scores(Scores *s, Arena *a, int64_t n, Err *e) {
    s->targets = ARENA_ARRAY(a, int32_t, n, e);
    s->top1 = ARENA_ARRAY(a, int32_t, n, e);
    s->ref_top1 = ARENA_ARRAY(a, int32_t, n, e);
    s->nll = ARENA_ARRAY(a, double, n, e);
    s->kl = ARENA_ARRAY(a, double, n, e);
    return s->targets && s->top1 && s->ref_top1 && s->nll && s->kl;
}

/* 给第 index 个窗口打分：hidden 是该窗口 (window, d) 的隐藏状态，ids 是它的 token。 */
static bool score_window(const PplJob *job, int64_t index, const float *hidden,
                         const int32_t *ids, Scores *s, Compare *cmp, double *nll, Err *e) {
    const Protocol *p = job->protocol;
    Model *m = job->model;
    int64_t d = m->config.hidden, n = protocol_scored(p), row0 = p->first_target - 1;
    const float *x = hidden + row0 * d;
    const Reference *ref = job->reference;
    /* 基线的 logits 要由未量化的头算出 */
    bool compare = ref && !m->head_int8 && index < job->kl_windows && index < ref->hidden_windows;
    for (int64_t i = 0; i < n; i++) s->targets[i] = ids[p->first_target + i];
    ScoreJob score = {.n = n, .x = x, .head = m->head, .softcap = (float)m->config.logit_softcap,
                    .targets = s->targets, .nll = s->nll,
                      .top1 = s->top1};
    if (compare) {
        const float *kept = ref->hidden + index * n * d;
        op_write(m->backend, s->ref_x, kept, (size_t)(n * d) * sizeof *kept);
        file_map_drop(kept, (size_t)(n * d) * sizeof *kept);
        score.ref_x = s->ref_x;
        score.ref_head = m->head;
        score.kl = s->kl;
        score.ref_top1 = s->ref_top1;
    }
    op_score(m->backend, &score);
    if (!backend_check(m->backend, e)) return false;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += s->nll[i];
    if (!isfinite(sum))
        return err_set(e, ERR_NUMERIC, "窗口 %lld 的对数似然出现 NaN 或 Inf", (long long)index);
    *nll = sum / (double)n;
    if (compare) {
        for (int64_t i = 0; i < n; i++) {
            cmp->kl[cmp->n++] = s->kl[i];
            cmp->same += s->top1[i] == s->ref_top1[i];
        }
    }
    if (!job->writer || index >= job->kl_windows) return true;
    HostView v = host_view(m->backend);
    const float *host = HOST_MAP(&v, float, x, n *d, HOST_READ);
    bool ok = host && reference_add(job->writer, host, e);
    host_end(&v);
    return backend_check(m->backend, e) && ok;
}

/* 离群：|x − 中位数| > 5·1.4826·MAD（1.4826 使 MAD 在正态下等于标准差）。 */
static bool find_outliers(PplResult *r, Arena *a, Err *e) {
    int64_t n = r->n_windows;
    double *v = ARENA_ARRAY(a, double, n, e);
    r->outliers = ARENA_ARRAY(a, int64_t, n, e);
    if (!v || !r->outliers) return false;
    memcpy(v, r->window_nll, (size_t)n * sizeof *v);
    stats_sort(v, (size_t)n);
    r->median_nll = stats_median_sorted(v, (size_t)n);
    for (int64_t i = 0; i < n; i++) v[i] = fabs(r->window_nll[i] - r->median_nll);
    stats_sort(v, (size_t)n);
    double mad = 1.4826 * stats_median_sorted(v, (size_t)n);
    for (int64_t i = 0; i < n; i++) {
        if (r->window_nll[i] > r->window_nll[r->worst_window]) r->worst_window = i;
        if (mad > 0 && fabs(r->window_nll[i] - r->median_nll) > 5 * mad)
            r->outliers[r->n_outliers++] = i;
    }
    return true;
}

static bool summarize(PplResult *r, const Compare *cmp, Arena *a, Err *e) {
    double sum = 0, square = 0;
    int64_t n = r->n_windows;
    for (int64_t i = 0; i < n; i++) sum += r->window_nll[i];
    r->nll_mean = sum / (double)n;
    for (int64_t i = 0; i < n; i++) {
        double d = r->window_nll[i] - r->nll_mean;
        square += d * d;
    }
    r->nll_stderr = n > 1 ? sqrt(square / (double)(n - 1) / (double)n) : 0;
    r->ppl = exp(r->nll_mean); /* 各窗口打分数相同，窗口均值的均值就是总均值 */
    r->ppl_stderr = r->ppl * r->nll_stderr;
    if (cmp->n) {
        double total = 0;
        for (int64_t i = 0; i < cmp->n; i++) total += cmp->kl[i];
        stats_sort(cmp->kl, (size_t)cmp->n);
        r->n_kl = cmp->n;
        r->kl_mean = total / (double)cmp->n;
        r->kl_median = stats_median_sorted(cmp->kl, (size_t)cmp->n);
        r->kl_p99 = cmp->kl[(int64_t)(0.99 * (double)(cmp->n - 1))];
        r->kl_max = cmp->kl[cmp->n - 1];
        r->same_top1 = (double)cmp->same / (double)cmp->n;
    }
    return find_outliers(r, a, e);
}

/* GPTQ/AWQ 官方代码的写法：每窗口的平均 NLL（f32）乘 L 累加，再除以 n·L。 */
static double gptq_style(const PplResult *r, int64_t window) {
    float sum = 0;
    for (int64_t i = 0; i < r->n_windows; i++)
        sum += (float)r->window_nll[i] * (float)window;
    return (double)expf(sum / (float)(r->n_windows * window));
}

/* 一起走过各块的窗口数。平常是一批；后端放不下全部权重、每块要现传时是许多批，隐藏状态在 *x（否则 *x 为 NULL）。 */
static int64_t stack_windows(const PplJob *job, int64_t batch, int64_t n_windows, Arena *a, float **x) {
    enum { SHARE = 3, UNKNOWN = 1 << 30 }; /* 用余量的三分之一 */
    Backend *b = job->model->backend;
    int64_t one = batch * job->protocol->window * job->model->config.hidden;
    size_t room = backend_room(b), most = room == SIZE_MAX ? UNKNOWN : room / SHARE;
    int64_t n = (n_windows + batch - 1) / batch, fit = (int64_t)(most / ((size_t)one * sizeof **x));
    *x = NULL;
    if (!job->model->stream || !b->separate) return batch;
    for (n = fit < n ? fit : n; n > 1; n /= 2)
        if ((*x = ARENA_ARRAY(a, float, n * one, NULL)) != NULL) return n * batch;
    return batch;
}

static bool run_windows(const PplJob *job, PplResult *r, Workspace *w, Scores *s, Compare *cmp,
                        Arena *tensors, Err *e) {
    const Protocol *p = job->protocol;
    Model *m = job->model;
    float *x;
    int64_t batch = perplexity_batch(p, m->backend->batch_rows), d = m->config.hidden, len = p->window;
    int64_t group = stack_windows(job, batch, r->n_windows, tensors, &x);
    Progress bar = progress_start(LOG_EVAL, "困惑度", "token", r->n_windows * len);
    Arena tmp = {0};
    int32_t *ids = ARENA_ARRAY(&tmp, int32_t, group * len, e);
    bool ok = ids != NULL;
    for (int64_t first = 0; ok && first < r->n_windows; first += group) {
        int64_t n = r->n_windows - first < group ? r->n_windows - first : group;
        for (int64_t i = 0; i < n; i++) {
            memcpy(ids + i * len, job->ids + (first + i) * p->stride, (size_t)len * sizeof *ids);
            if (p->bos_replaces && job->bos >= 0) ids[i * len] = job->bos;
        }
        ok = x ? forward_stack(m, w, x, ids, n, len, batch, e) : forward_windows(m, w, ids, n, len, e);
        for (int64_t i = 0; ok && i < n; i++) {
            int64_t in_batch = i % batch, rest = n - i < batch ? n - i : batch;
            if (x && in_batch == 0) forward_finish(m, w->h, x + i * len * d, rest * len);
            ok = score_window(job, first + i, w->h + in_batch * len * d, ids + i * len, s, cmp,
                              &r->window_nll[first + i], e);
        }
        progress_step(&bar, (first + n) * len);
    }
    r->seconds = progress_end(&bar);
    arena_free(&tmp);
    return ok;
}

bool perplexity_run(const PplJob *job, PplResult *r, Arena *a, Err *e) {
    const Protocol *p = job->protocol;
    *r = (PplResult){.n_windows_total = protocol_windows(p, job->n_tokens)};
    r->n_windows = job->limit > 0 && job->limit < r->n_windows_total ? job->limit
                                                                      : r->n_windows_total;
    if (r->n_windows == 0)
        return err_set(e, ERR_FORMAT, "文本只有 %lld 个 token，不足协议 %s 的一个窗口",
                       (long long)job->n_tokens, p->name);
    r->n_scored = r->n_windows * protocol_scored(p);
    Workspace w = {0};
    Arena tmp = {0}, tensors = backend_arena(job->model->backend);
    Scores s = {0};
    Compare cmp = {0};
    int64_t rows = perplexity_batch(p, job->model->backend->batch_rows) * p->window;
    r->window_nll = ARENA_ARRAY(a, double, r->n_windows, e);
    int64_t ref_cells = job->reference ? protocol_scored(p) * job->model->config.hidden : 0;
    if (job->reference) s.ref_x = ARENA_ARRAY(&tensors, float, ref_cells, e);
    if (job->reference)
        cmp.kl = ARENA_ARRAY(&tmp, double, job->reference->hidden_windows * protocol_scored(p), e);
    bool ok = r->window_nll && (!job->reference || (cmp.kl && s.ref_x)) &&
              alloc_scores(&s, &tmp, protocol_scored(p), e) &&
              workspace_open(&w, job->model, rows, e) &&
              run_windows(job, r, &w, &s, &cmp, &tensors, e) && summarize(r, &cmp, a, e);
    if (ok) {
        r->kv = w.kv_bytes;
        r->ppl_gptq = gptq_style(r, p->window);
        r->tok_per_s = (double)(r->n_windows * p->window) / (r->seconds > 0 ? r->seconds : 1e-9);
    }
    workspace_close(&w);
    arena_free(&tensors);
    arena_free(&tmp);
    return ok;
}
