/* stream — 模型装不下时线性层逐块载入：算哪一块，哪一块才在后端内存里
 * CPU（--max_memory）：未量化的用到时从权重文件载入，一次一块。内存分开的后端（GPU）：量化好的也移到主机，用到时再传；
 * 有两个位置轮流用，一块在算时下一块在另一条流上传（Backend.side）。数值与全部留在内存里逐位相同。
 * 不变式：一块的 streamed 的线性层只在它占着位置时 q.data 非空；为空时其余的指针只表示有没有，不可读。 */
#include "model/stream.h"

Arena model_big_arena(Model *m) {
    Backend *b = m->backend;
    if (b->separate) return m->stream && b->mapped ? (Arena){.allocator = b->mapped} : backend_arena(b);
    return m->spill.alloc ? (Arena){.allocator = &m->spill} : backend_arena(b);
}

/* ---- 离开 ---- */

static void vacate(Model *m, StreamSlot *s) {
    for (int64_t i = 0; s->layer >= 0 && i < m->blocks[s->layer].n_linears; i++) {
        Linear *l = &m->blocks[s->layer].linears[i];
        if (l->streamed) l->q.data = NULL;
    }
    if (s->layer >= 0 && m->blocks[s->layer].file.data)
        file_map_drop(m->blocks[s->layer].file.data, m->blocks[s->layer].file.size);
    s->layer = -1;
    arena_rewind(&s->arena, s->empty);
}

bool model_stream_linear(Model *m, Linear *l, Err *e) {
    l->streamed = true;
    for (int i = 0; i < STREAM_SLOTS; i++)
        if (m->slots[i].layer == l->layer) vacate(m, &m->slots[i]);
    return qtensor_measure(&l->q, m->dtype, (QSpec){0}, l->rows, l->cols, e);
}

/* 量化好的 l 移到主机。 */
static bool send_home(Model *m, Linear *l, Err *e) {
    QTensor *home = ARENA_NEW(&m->meta, QTensor, e);
    if (!home || !qtensor_to_host(m->backend, &l->q, home, &m->homes, e)) return false;
    l->q.data = NULL;
    l->home = home;
    l->streamed = true;
    return true;
}

bool model_leave_block(Model *m, int64_t layer, Err *e) {
    Block *b = &m->blocks[layer];
    if (!m->stream || !m->backend->separate) return true;
    for (int64_t i = 0; i < b->n_linears; i++) {
        Linear *l = &b->linears[i];
        if (!l->rows || !l->q.data || l->streamed) continue;
        if (!(l->q.dense == DT_NONE ? send_home(m, l, e) : model_stream_linear(m, l, e))) return false;
    }
    arena_free(&b->arena);
    return true;
}

bool model_start_stream(Model *m, Err *e) {
    m->stream = true;
    for (int64_t i = 0; i < m->config.n_layers; i++)
        if (!model_leave_block(m, i, e)) return false;
    return true;
}

/* ---- 载入 ---- */

static bool load_linear(Model *m, Linear *l, Arena *a, Err *e) {
    if (l->home) {
        QTensor q = *l->home;
        bool ok = qtensor_to_backend(m->backend, &q, a, e);
        l->q = q;
        return ok;
    }
    return model_load_dense(m, l, a, e);
}

/* 一块的 streamed 的线性层。 */
static size_t block_bytes(const Model *m, int64_t layer) {
    enum { SLACK = 128 * QT_PARTS }; /* 对齐与段后可读的字节 */
    size_t bytes = 0;
    for (int64_t k = 0; k < m->blocks[layer].n_linears; k++) {
        const Linear *l = &m->blocks[layer].linears[k];
        if (l->streamed) bytes += qtensor_bytes(&l->q) + SLACK;
    }
    return bytes;
}
static size_t largest_block(const Model *m) {
    size_t most = 0;
    for (int64_t i = 0; i < m->config.n_layers; i++) {
        size_t bytes = block_bytes(m, i);
        if (bytes > most) most = bytes;
    }
    return most;
}

/* 能预取的后端的位置一次备足，其后不再分配：分配与归还会牵住两条流。 */
static bool fill(Model *m, StreamSlot *s, int64_t layer, Err *e) {
    Block *b = &m->blocks[layer];
    vacate(m, s);
    if (m->backend->side && block_bytes(m, layer) > s->bytes) {
        size_t most = largest_block(m);
        arena_free(&s->arena);
        s->bytes = 0;
        s->empty = (ArenaMark){0};
        if (!arena_reserve(&s->arena, most, e)) return false;
        s->bytes = most;
        s->empty = arena_mark(&s->arena);
    }
    s->layer = layer;
    bool ok = true;
    for (int64_t i = 0; ok && i < b->n_linears; i++)
        if (b->linears[i].streamed) ok = load_linear(m, &b->linears[i], &s->arena, e);
    if (!ok) vacate(m, s);
    return ok;
}

static int find(const Model *m, int64_t layer) {
    for (int i = 0; i < STREAM_SLOTS; i++)
        if (m->slots[i].layer == layer) return i;
    return -1;
}

bool model_need_block(Model *m, int64_t layer, Err *e) {
    Backend *b = m->backend;
    if (!m->stream || m->slots[m->slot].layer == layer) return true;
    if (b->side) b->side(b, SIDE_JOIN);
    int at = find(m, layer);
    if (at >= 0) {
        m->slot = at;
        return backend_check(b, e);
    }
    if (b->side && !m->no_prefetch) m->slot = (m->slot + 1) % STREAM_SLOTS;
    return fill(m, &m->slots[m->slot], layer, e);
}

void model_prefetch_next(Model *m, int64_t layer) {
    Backend *b = m->backend;
    int64_t next = (layer + 1) % m->config.n_layers;
    if (!m->stream || !b->side || m->no_prefetch || find(m, next) >= 0) return;
    StreamSlot *s = &m->slots[(m->slot + 1) % STREAM_SLOTS];
    Err why = {0};
    b->side(b, SIDE_BEGIN);
    bool ok = fill(m, s, next, &why);
    b->side(b, SIDE_END);
    if (!ok && why.code == ERR_MEMORY) model_stop_prefetch(m); /* 别的错误，用到时再载入会再遇到 */
}

void model_stop_prefetch(Model *m) {
    StreamSlot *s = &m->slots[(m->slot + 1) % STREAM_SLOTS];
    m->no_prefetch = true;
    if (!m->backend->side) return;
    m->backend->side(m->backend, SIDE_JOIN);
    vacate(m, s);
    arena_free(&s->arena);
    s->bytes = 0;
    s->empty = (ArenaMark){0};
}

void stream_close(Model *m) {
    if (m->backend && m->backend->side && m->stream) m->backend->side(m->backend, SIDE_JOIN);
    for (int i = 0; i < STREAM_SLOTS; i++) arena_free(&m->slots[i].arena);
    arena_free(&m->homes);
}
