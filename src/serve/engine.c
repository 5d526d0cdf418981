/* engine — 请求的一生：排队 → 备料（分词、检查）→ 打分或生成 → 交回
 * 队列有上限；结束的请求（写完、出错、客户走了）都经 finish 一次，之后释放。 */
#include "serve/engine.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/log.h"
#include "serve/engine_internal.h"

/* ---------- 结束 ---------- */

static void finish(Engine *g, Work *w, int status, Str *body) {
    Str empty = {0};
    g->o.hooks.finish(w->owner, status, body ? body : &empty);
    w->dead = true;
    engine_release(g, w);
    pthread_mutex_lock(&g->lock);
    g->n_live--;
    g->counts.requests++;
    g->counts.prompt_tokens += w->usage.prompt;
    g->counts.completion_tokens += w->usage.completion;
    pthread_mutex_unlock(&g->lock);
}

static void send_event(Engine *g, Work *w, const char *json) {
    Str s = {0};
    str_addf(&s, "data: %s\n\n", json);
    if (!s.failed) g->o.hooks.send(w->owner, s.data, s.len);
    str_free(&s);
}

void work_fail(Engine *g, Work *w, const ApiError *err) {
    Str body = {0};
    api_error_json(err, &body);
    if (w->streaming) { /* 状态码已经送出，错误只能作为一个事件 */
        if (body.data) send_event(g, w, body.data);
        str_free(&body);
        finish(g, w, err->status, NULL);
    } else {
        finish(g, w, err->status, &body);
    }
}

void work_fail_err(Engine *g, Work *w, const Err *e) {
    ApiError err;
    Backend *b = g->o.model->backend;
    Err device = {0};
    if (e->code == ERR_INTERRUPTED)
        api_fail(&err, 503, "shutting_down", NULL, "服务正在停止");
    else
        api_fail(&err, e->code == ERR_MEMORY ? 503 : 500, e->code == ERR_MEMORY ? "out_of_memory" : NULL, NULL, "%s",
                 e->msg);
    if (e->code == ERR_DEVICE) device = *e;
    if (e->code == ERR_MEMORY && b->recover) { /* 别的请求照常 */
        b->recover(b);
        backend_check(b, &device);
    }
    if (device.code != ERR_NONE) {
        pthread_mutex_lock(&g->lock);
        g->broken = device;
        pthread_mutex_unlock(&g->lock);
    }
    work_fail(g, w, &err);
}

bool work_gone(Engine *g, Work *w) {
    if (w->dead) return true;
    if (!g->o.hooks.gone(w->owner)) return false;
    pthread_mutex_lock(&g->lock);
    g->counts.dropped++;
    pthread_mutex_unlock(&g->lock);
    finish(g, w, 499, NULL);
    return true;
}

static void count_usage(Work *w) {
    w->usage = (ApiUsage){0};
    for (size_t i = 0; i < w->request.n_prompts; i++) w->usage.prompt += (int64_t)w->prompts[i].n;
    for (size_t i = 0; i < w->n; i++) w->usage.completion += (int64_t)w->sequences[i].out.n;
}

static void response_id(const Work *w, char *buf, size_t cap) {
    snprintf(buf, cap, "%scmpl-%lld-%lld", w->request.chat ? "chat" : "", (long long)w->created, (long long)w->serial);
}

/* 回应的文字；choices 归这里所有。 */
static char *response_text(const Engine *g, const Work *w, json_t *choices, bool usage) {
    char id[64];
    response_id(w, id, sizeof id);
    const char *object = !w->request.chat    ? "text_completion"
                         : w->request.stream ? "chat.completion.chunk" : "chat.completion";
    json_t *v = api_response_json(id, object, w->created, g->o.name, choices, usage ? &w->usage : NULL);
    char *text = v ? json_dumps(v, JSON_COMPACT) : NULL;
    json_decref(v);
    return text;
}

bool work_stream(Engine *g, Work *w, Sequence *s, Err *e) {
    bool empty;
    json_t *choice = sequence_json(s, true, &empty, e);
    if (empty) return true;
    if (!choice) return false;
    if (!w->streaming) g->o.hooks.open_stream(w->owner);
    w->streaming = true;
    json_t *choices = json_array();
    if (!choices || json_array_append_new(choices, choice) != 0)
        return err_set(e, ERR_MEMORY, "内存不足");
    char *text = response_text(g, w, choices, false);
    if (text) send_event(g, w, text);
    free(text);
    return text || err_set(e, ERR_MEMORY, "内存不足");
}

static void finish_stream(Engine *g, Work *w) {
    if (!w->streaming) g->o.hooks.open_stream(w->owner);
    w->streaming = true;
    if (w->request.stream_usage) {
        char *text = response_text(g, w, json_array(), true);
        if (text) send_event(g, w, text);
        free(text);
    }
    send_event(g, w, "[DONE]");
    finish(g, w, 200, NULL);
}

void work_finish(Engine *g, Work *w) {
    Err e = {0};
    bool empty;
    count_usage(w);
    if (w->request.stream) {
        finish_stream(g, w);
        return;
    }
    json_t *choices = json_array();
    bool ok = choices != NULL;
    for (size_t i = 0; ok && i < w->n; i++) {
        json_t *one = sequence_json(&w->sequences[i], false, &empty, &e);
        ok = one && json_array_append_new(choices, one) == 0;
    }
    char *text = ok ? response_text(g, w, choices, true) : NULL;
    if (!ok) json_decref(choices);
    if (text) {
        Str body = {0};
        str_add(&body, text);
        free(text);
        finish(g, w, 200, &body);
    } else {
        if (e.code == ERR_NONE) err_set(&e, ERR_MEMORY, "内存不足");
        work_fail_err(g, w, &e);
    }
}

/* ---------- 备料 ---------- */

static uint64_t random_seed(void) {
    uint64_t v = 0;
    if (getrandom(&v, sizeof v, 0) != (ssize_t)sizeof v) v = (uint64_t)(clock_seconds() * 1e9);
    return v;
}

static bool tokenize_prompt(const Engine *g, const ApiPrompt *p, bool special, TokenIds *out, Err *e) {
    if (p->ids) {
        out->ids = malloc((size_t)p->n * sizeof *out->ids);
        if (!out->ids) return err_set(e, ERR_MEMORY, "内存不足");
        memcpy(out->ids, p->ids, (size_t)p->n * sizeof *out->ids);
        out->n = out->cap = (size_t)p->n;
        return true;
    }
    if (!tokenizer_encode(g->o.tokenizer, p->text, p->len, special, out, e)) return false;
    if (out->n) return true;
    int32_t start = tokenizer_bos(g->o.tokenizer); /* 空的提示从 BOS（没有则 EOS）写起 */
    if (start < 0) start = tokenizer_eos(g->o.tokenizer);
    out->ids = malloc(sizeof *out->ids);
    if (!out->ids) return err_set(e, ERR_MEMORY, "内存不足");
    out->ids[0] = start < 0 ? 0 : start;
    out->n = out->cap = 1;
    return true;
}

static bool prepare_sequences(Engine *g, Work *w, Err *e) {
    const ApiRequest *r = &w->request;
    w->n = r->n_prompts * (size_t)r->n;
    w->sequences = calloc(w->n, sizeof *w->sequences);
    if (!w->sequences) return err_set(e, ERR_MEMORY, "内存不足");
    uint64_t seed = r->has_seed ? r->seed : random_seed();
    for (size_t i = 0; i < w->n; i++) {
        size_t p = i / (size_t)r->n;
        w->sequences[i] = (Sequence){.request = r, .tokenizer = g->o.tokenizer, .eos = g->o.eos, .index = i,
                                     .prompt = &r->prompts[p], .ids = w->prompts[p].ids,
                                     .n = (int64_t)w->prompts[p].n, .seed = seed};
        w->sequences[i].scores.k = r->logprobs > 0 ? r->logprobs : 0;
    }
    return true;
}

/* 只要打分（至多再取一个最可能的 token）：整个请求可以交给 requests_score。 */
static bool is_score_only(const ApiRequest *r) {
    return r->max_tokens <= 1 && r->n == 1 && (r->temperature == 0 || r->max_tokens == 0) &&
           r->logprobs <= 1 && !r->stream;
}

static bool prepare(Engine *g, Work *w, ApiError *err) {
    Err e = {0};
    const ApiRequest *r = &w->request;
    w->prepared = true;
    w->serial = ++g->serial;
    w->created = (int64_t)time(NULL);
    w->prompts = calloc(r->n_prompts, sizeof *w->prompts);
    bool ok = w->prompts || err_set(&e, ERR_MEMORY, "内存不足");
    for (size_t i = 0; ok && i < r->n_prompts; i++) {
        ok = tokenize_prompt(g, &r->prompts[i], !r->chat, &w->prompts[i], &e);
        if (r->max_tokens < 0) { /* 聊天只有一条提示 */
            int64_t left = g->o.max_length - (int64_t)w->prompts[i].n;
            w->request.max_tokens = left < 1 ? 1 : left < API_CHAT_TOKENS ? left : API_CHAT_TOKENS;
        }
        int64_t need = (int64_t)w->prompts[i].n + r->max_tokens;
        if (ok && need > g->o.max_length)
            return api_fail(err, 400, "context_length_exceeded", "prompt",
                            "第 %zu 条 prompt 有 %zu 个 token，加上 max_tokens=%lld 超过上下文长度 %lld", i,
                            w->prompts[i].n, (long long)r->max_tokens, (long long)g->o.max_length);
    }
    ok = ok && prepare_sequences(g, w, &e);
    w->score_only = is_score_only(r);
    return ok || api_fail(err, e.code == ERR_MEMORY ? 503 : 500, NULL, NULL, "%s", e.msg);
}

/* ---------- 线程 ---------- */

static void free_work(Work *w) {
    for (size_t i = 0; w->sequences && i < w->n; i++) sequence_free(&w->sequences[i]);
    for (size_t i = 0; w->prompts && i < w->request.n_prompts; i++) token_ids_free(&w->prompts[i]);
    free(w->sequences);
    free(w->prompts);
    api_request_free(&w->request);
    free(w);
}

/* 放掉结束了的，备好新来的。 */
static void sweep(Engine *g) {
    for (Work **p = &g->live; *p;) {
        Work *w = *p;
        ApiError err;
        if (!work_gone(g, w) && !w->prepared && !prepare(g, w, &err)) work_fail(g, w, &err);
        if (w->dead) {
            *p = w->next;
            free_work(w);
        } else {
            p = &w->next;
        }
    }
}

/* 把排队的接到手头的末尾；没有事做就等。返回: 该停了为 false。 */
static bool take_queue(Engine *g) {
    pthread_mutex_lock(&g->lock);
    while (!g->stop && !g->queue && !g->live) pthread_cond_wait(&g->wake, &g->lock);
    Work **end = &g->live;
    while (*end) end = &(*end)->next;
    *end = g->queue;
    g->queue = NULL;
    g->queue_end = &g->queue;
    bool go = !g->stop;
    pthread_mutex_unlock(&g->lock);
    return go;
}

static void *engine_main(void *arg) {
    Engine *g = arg;
    while (take_queue(g)) {
        sweep(g);
        engine_score(g);
        engine_admit(g);
        engine_prefill(g);
        engine_step(g);
        sweep(g);
    }
    Err e;
    err_set(&e, ERR_INTERRUPTED, "停止");
    for (Work *w = g->live; w; w = w->next)
        if (!w->dead) work_fail_err(g, w, &e);
    sweep(g);
    return NULL;
}

static void engine_free(Engine *g) {
    workspace_close(&g->w);
    pthread_mutex_destroy(&g->lock);
    pthread_cond_destroy(&g->wake);
    arena_free(&g->tensors);
    arena_free(&g->arena);
    free(g);
}

bool engine_open(Engine **out, const EngineOptions *o, Err *e) {
    const ModelConfig *c = &o->model->config;
    Engine *g = calloc(1, sizeof *g);
    *out = NULL;
    if (!g) return err_set(e, ERR_MEMORY, "内存不足");
    g->o = *o;
    g->queue_end = &g->queue;
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->wake, NULL);
    g->tensors = backend_arena(o->model->backend);
    g->hidden = ARENA_ARRAY(&g->tensors, float, PREFILL_ROWS * c->hidden, e);
    g->head_out = ARENA_ARRAY(&g->tensors, float, LOGIT_ROWS * c->vocab, e);
    g->logits = ARENA_ARRAY(&g->arena, float, LOGIT_ROWS * c->vocab, e);
    g->sample_work = ARENA_ARRAY(&g->arena, double, c->vocab, e);
    g->sample_order = ARENA_ARRAY(&g->arena, int32_t, c->vocab, e);
    bool ok = g->hidden && g->head_out && g->logits && g->sample_work && g->sample_order &&
              workspace_open(&g->w, o->model, ENGINE_SLOTS, e);
    if (ok && pthread_create(&g->thread, NULL, engine_main, g) != 0)
        ok = err_set(e, ERR_MEMORY, "不能建立计算线程");
    if (!ok) {
        engine_free(g);
        return false;
    }
    *out = g;
    return true;
}

bool engine_submit(Engine *g, ApiRequest *request, void *owner) {
    Work *w = calloc(1, sizeof *w);
    if (!w) return false;
    pthread_mutex_lock(&g->lock);
    bool room = !g->stop && g->n_live < g->o.max_queue;
    if (room) {
        w->request = *request;
        w->owner = owner;
        *request = (ApiRequest){0};
        *g->queue_end = w;
        g->queue_end = &w->next;
        g->n_live++;
        pthread_cond_signal(&g->wake);
    }
    pthread_mutex_unlock(&g->lock);
    if (!room) free(w);
    return room;
}

void engine_stop(Engine *g) {
    pthread_mutex_lock(&g->lock);
    bool first = !g->stop;
    g->stop = true;
    pthread_cond_signal(&g->wake);
    pthread_mutex_unlock(&g->lock);
    if (first) pthread_join(g->thread, NULL);
}

void engine_close(Engine *g) {
    if (!g) return;
    engine_stop(g);
    engine_free(g);
}

bool engine_broken(Engine *g, Err *e) {
    pthread_mutex_lock(&g->lock);
    bool broken = g->broken.code != ERR_NONE;
    if (broken) *e = g->broken;
    pthread_mutex_unlock(&g->lock);
    return broken;
}

EngineCounts engine_counts(Engine *g) {
    pthread_mutex_lock(&g->lock);
    EngineCounts c = g->counts;
    pthread_mutex_unlock(&g->lock);
    return c;
}
