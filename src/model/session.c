/* session — 会话的实现
 * 每层一份键值缓存（kvcache.h），一直活到会话关闭。 */
#include "model/session.h"

#include "base/log.h"

size_t session_kv_bytes_per_token(const ModelConfig *c, DType dtype) {
    return (size_t)(2 * c->n_layers * c->n_kv_heads * c->head_dim) * (dtype == DT_F32 ? 4 : 2);
}

KvBytes session_kv_bytes(const Session *s) {
    KvBytes total = {0};
    for (int64_t l = 0; l < s->model->config.n_layers; l++) {
        KvBytes b = kv_layer_bytes(s->model, &s->kv[l], s->length);
        total.codes += b.codes;
        total.params += b.params;
        total.outliers += b.outliers;
        total.dense += b.dense;
    }
    return total;
}

bool session_check_ids(const ModelConfig *c, const int32_t *ids, int64_t n, Err *e) {
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= c->vocab)
            return err_set(e, ERR_FORMAT, "第 %lld 个 token 的 id %d 不在词表 [0, %lld) 内",
                           (long long)i, ids[i], (long long)c->vocab);
    return true;
}

bool session_open(Session *s, Model *m, int64_t capacity, int64_t max_rows, Err *e) {
    const ModelConfig *c = &m->config;
    *s = (Session){.model = m, .capacity = capacity, .kv_arena = backend_arena(m->backend)};
    if (max_rows > capacity) max_rows = capacity;
    s->kv = ARENA_ARRAY(&s->arena, KvLayer, c->n_layers, e);
    bool ok = s->kv && workspace_open(&s->work, m, max_rows, e) &&
              model_ensure_rope(m, capacity, e);
    for (int64_t l = 0; ok && l < c->n_layers; l++)
        ok = kv_layer_open(&s->kv[l], &s->kv_arena, m, l, capacity, max_rows, e);
    if (!ok) session_close(s);
    return ok;
}

void session_close(Session *s) {
    for (int64_t l = 0; s->kv && l < s->model->config.n_layers; l++) kv_layer_close(&s->kv[l]);
    workspace_close(&s->work);
    arena_free(&s->kv_arena);
    arena_free(&s->arena);
    *s = (Session){0};
}

void session_reset(Session *s) {
    s->length = 0;
    for (int64_t l = 0; l < s->model->config.n_layers; l++)
        kv_layer_reset(&s->kv[l], s->model, l);
}

static bool forward_piece(Session *s, const int32_t *ids, int64_t n, Err *e) {
    Model *m = s->model;
    Segment seg = {.n = n, .first = s->length};
    if (!model_ensure_rope(m, s->capacity, e)) return false;
    forward_embed(m, &s->work, ids, n, &seg, 1);
    if (!forward_blocks(m, &s->work, n, &seg, 1, (KvLayer *const[]){s->kv}, e)) return false;
    forward_finish(m, s->work.h, s->work.x, n);
    s->length += n;
    return backend_check(m->backend, e);
}

bool session_forward(Session *s, const int32_t *ids, int64_t n, float *hidden, Err *e) {
    Model *m = s->model;
    const ModelConfig *c = &m->config;
    if (s->length + n > s->capacity)
        return err_set(e, ERR_UNSUPPORTED, "会话容量 %lld 不够：已有 %lld，又来 %lld 个 token",
                       (long long)s->capacity, (long long)s->length, (long long)n);
    if (!session_check_ids(c, ids, n, e)) return false;
    for (int64_t done = 0; done < n;) {
        int64_t piece = n - done < s->work.max_rows ? n - done : s->work.max_rows;
        if (!forward_piece(s, ids + done, piece, e)) return false;
        if (hidden)
            op_copy(m->backend, hidden + done * c->hidden, s->work.h,
                    (size_t)(piece * c->hidden) * sizeof *hidden);
        done += piece;
    }
    return backend_check(m->backend, e);
}

static bool room_for_one(const Session *s, const int32_t *id, Err *e) {
    if (s->length + 1 > s->capacity)
        return err_set(e, ERR_UNSUPPORTED, "会话容量 %lld 已满", (long long)s->capacity);
    return session_check_ids(&s->model->config, id, 1, e);
}

bool sessions_step(Session *const *s, size_t n, Workspace *w, const int32_t *ids, float *hidden,
                   Err *e) {
    if (n == 0) return true;
    Model *m = s[0]->model;
    const ModelConfig *c = &m->config;
    int64_t rows = (int64_t)n;
    CHECK(rows <= w->max_rows);
    int64_t longest = 0;
    for (size_t i = 0; i < n; i++) {
        if (!room_for_one(s[i], &ids[i], e)) return false;
        if (model_rope_regime(c, s[i]->capacity) != model_rope_regime(c, s[0]->capacity))
            return err_set(e, ERR_UNSUPPORTED,
                           "家族 %s 的旋转频率随会话的容量变，%lld 与 %lld 个位置的会话不能一批解码", c->arch->name,
                           (long long)s[0]->capacity, (long long)s[i]->capacity);
        if (s[i]->capacity > longest) longest = s[i]->capacity;
    }
    if (!model_ensure_rope(m, longest, e)) return false;
    Arena tmp = {0};
    Segment *seg = ARENA_ARRAY(&tmp, Segment, n, e);
    KvLayer **kv = ARENA_ARRAY(&tmp, KvLayer *, n, e);
    bool ok = seg && kv;
    for (int64_t i = 0; ok && i < rows; i++) {
        seg[i] = (Segment){.row0 = i, .n = 1, .first = s[i]->length};
        kv[i] = s[i]->kv;
    }
    if (ok) forward_embed(m, w, ids, rows, seg, n);
    ok = ok && forward_blocks(m, w, rows, seg, n, kv, e);
    if (ok) {
        forward_finish(m, hidden, w->x, rows);
        for (size_t i = 0; i < n; i++) s[i]->length++;
        ok = backend_check(m->backend, e);
    }
    arena_free(&tmp);
    return ok;
}
