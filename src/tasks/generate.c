/* generate — 贪心生成：若干条时间线一起逐 token 解码
 * 每条时间线一个会话；提示各自预填，之后每步把还没停的各一个 token 拼成一批。停了的让位给下一个请求。
 * 同时几条由键值缓存的总量决定，不影响结果。 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "model/session.h"
#include "tasks/request.h"

enum { MAX_SLOTS = 16, PREFILL_ROWS = 256, TAIL_TOKENS = 32 };
#define KV_BUDGET (768e6) /* 字节 */

typedef struct Slot {
    Session session;
    bool open;
    GenerateRequest *r; /* NULL 为空位 */
    int32_t next;       /* 刚生成、还没喂入的 token */
} Slot;

typedef struct Generator {
    Model *m;
    const Tokenizer *t;
    GenerateRequest *r;
    size_t n, taken, finished;
    Slot slots[MAX_SLOTS];
    int n_slots;
    Workspace w;
    float *hidden; /* (max(PREFILL_ROWS, MAX_SLOTS), hidden) */
    Progress bar;
} Generator;

static bool push_id(TokenIds *t, int32_t id, Err *e) {
    if (t->n == t->cap) {
        size_t cap = t->cap ? t->cap * 2 : 64;
        int32_t *grown = realloc(t->ids, cap * sizeof *grown);
        if (!grown) return err_set(e, ERR_MEMORY, "内存不足");
        t->ids = grown;
        t->cap = cap;
    }
    t->ids[t->n++] = id;
    return true;
}

/* 末尾解码出的文字里有没有停止串。停止串可能横跨很多 token，所以回看的字节数不少于它的长度。 */
static bool hits_stop(const Generator *g, const GenerateRequest *r, bool *hit, Err *e) {
    size_t longest = 0;
    *hit = false;
    for (size_t i = 0; i < r->n_stop; i++)
        if (strlen(r->stop[i]) > longest) longest = strlen(r->stop[i]);
    if (longest == 0) return true;
    size_t back = longest + TAIL_TOKENS < r->out.n ? longest + TAIL_TOKENS : r->out.n;
    Str text = {0};
    if (!tokenizer_decode(g->t, r->out.ids + r->out.n - back, back, true, &text, e)) {
        str_free(&text);
        return false;
    }
    bool ok = !text.failed || err_set(e, ERR_MEMORY, "内存不足");
    for (size_t i = 0; ok && text.data && i < r->n_stop; i++)
        *hit = *hit || (r->stop[i][0] &&
                        memmem(text.data, text.len, r->stop[i], strlen(r->stop[i])));
    str_free(&text);
    return ok;
}

/* 记下 slot 生成的 token；停了就空出位置。 */
static bool accept(Generator *g, Slot *s, int32_t id, Err *e) {
    GenerateRequest *r = s->r;
    bool hit = false;
    if (!push_id(&r->out, id, e)) return false;
    r->stopped = eos_has(r->eos, id);
    if (!r->stopped && !hits_stop(g, r, &hit, e)) return false;
    r->stopped = r->stopped || hit;
    s->next = id;
    if (!r->stopped && (int64_t)r->out.n < r->max_new) return true;
    s->r = NULL;
    g->finished++;
    if (g->bar.total) progress_step(&g->bar, (int64_t)g->finished);
    return true;
}

static bool greedy(Generator *g, const float *hidden, int64_t n, int32_t *ids, Err *e) {
    double nll[MAX_SLOTS];
    int32_t none[MAX_SLOTS];
    for (int64_t i = 0; i < n; i++) none[i] = -1;
    ScoreJob job = {.n = n, .x = hidden, .head = g->m->head, .softcap = (float)g->m->config.logit_softcap,
                    .targets = none, .nll = nll,
                    .top1 = ids};
    op_score(g->m->backend, &job);
    return backend_check(g->m->backend, e);
}

/* 取下一个请求：预填提示，得到第一个 token。 */
static bool start(Generator *g, Slot *s, Err *e) {
    GenerateRequest *r = &g->r[g->taken++];
    int64_t capacity = r->n + r->max_new, d = g->m->config.hidden, last = 0;
    if (s->open && s->session.capacity < capacity) {
        session_close(&s->session);
        s->open = false;
    }
    if (!s->open && !session_open(&s->session, g->m, capacity, PREFILL_ROWS, e)) return false;
    s->open = true;
    session_reset(&s->session);
    for (int64_t done = 0; done < r->n; done += last) {
        last = r->n - done < PREFILL_ROWS ? r->n - done : PREFILL_ROWS;
        if (!session_forward(&s->session, r->ids + done, last, g->hidden, e)) return false;
    }
    int32_t id;
    if (!greedy(g, g->hidden + (last - 1) * d, 1, &id, e)) return false;
    s->r = r;
    return accept(g, s, id, e);
}

/* 各条时间线走一步。 */
static bool step(Generator *g, Err *e) {
    Session *active[MAX_SLOTS];
    Slot *who[MAX_SLOTS];
    int32_t ids[MAX_SLOTS];
    size_t n = 0;
    for (int i = 0; i < g->n_slots; i++) {
        Slot *s = &g->slots[i];
        if (!s->r) continue;
        active[n] = &s->session;
        ids[n] = s->next;
        who[n++] = s;
    }
    if (!sessions_step(active, n, &g->w, ids, g->hidden, e) ||
        !greedy(g, g->hidden, (int64_t)n, ids, e))
        return false;
    for (size_t i = 0; i < n; i++)
        if (!accept(g, who[i], ids[i], e)) return false;
    return true;
}

static bool run(Generator *g, Err *e) {
    while (g->finished < g->n) {
        for (int i = 0; i < g->n_slots; i++)
            while (!g->slots[i].r && g->taken < g->n)
                if (!start(g, &g->slots[i], e)) return false;
        if (g->finished < g->n && !step(g, e)) return false;
    }
    return true;
}

static int slots_for(const Model *m, const GenerateRequest *r, size_t n) {
    int64_t longest = 1;
    for (size_t i = 0; i < n; i++)
        if (r[i].n + r[i].max_new > longest) longest = r[i].n + r[i].max_new;
    double one = (double)longest *
                 (double)session_kv_bytes_per_token(&m->config, kv_near_dtype(m));
    double fit = KV_BUDGET / one;
    int slots = fit < 1 ? 1 : fit > MAX_SLOTS ? MAX_SLOTS : (int)fit;
    return (size_t)slots < n ? slots : n ? (int)n : 1;
}

bool requests_generate(Model *m, const Tokenizer *t, GenerateRequest *r, size_t n, bool quiet,
                       Err *e) {
    for (size_t i = 0; i < n; i++) {
        CHECK(r[i].n >= 1 && r[i].max_new >= 0);
        r[i].out = (TokenIds){0};
        r[i].stopped = false;
        if (r[i].max_new == 0) return err_set(e, ERR_USAGE, "第 %zu 个请求要生成 0 个 token", i);
        if (!session_check_ids(&m->config, r[i].ids, r[i].n, e))
            return err_wrap(e, "第 %zu 个请求", i);
    }
    Arena a = {0}, tensors = {0};
    Generator *g = ARENA_NEW(&a, Generator, e);
    bool ok = g != NULL;
    if (ok) {
        *g = (Generator){.m = m, .t = t, .r = r, .n = n, .n_slots = slots_for(m, r, n)};
        tensors = backend_arena(m->backend);
        g->hidden = ARENA_ARRAY(&tensors, float, PREFILL_ROWS * m->config.hidden, e);
        ok = g->hidden && workspace_open(&g->w, m, MAX_SLOTS, e);
        if (ok && !quiet) g->bar = progress_start(LOG_EVAL, "生成", "个", (int64_t)n);
        ok = ok && run(g, e);
        if (g->bar.total) progress_end(&g->bar);
        for (int i = 0; i < g->n_slots; i++)
            if (g->slots[i].open) session_close(&g->slots[i].session);
        workspace_close(&g->w);
    }
    arena_free(&tensors);
    arena_free(&a);
    return ok;
}
