/* calib — 校准的实现 */
#include "model/calib.h"

#include <string.h>

#include "base/log.h"
#include "base/pyrandom.h"


bool calib_draw(CalibSet *s, Arena *a, const char *dataset, const int32_t *ids, int64_t n,
                int64_t n_samples, int64_t length, int64_t seed, Err *e) {
    *s = (CalibSet){.dataset = dataset, .n_samples = n_samples, .length = length, .seed = seed};
    if (n < length + 1)
        return err_set(e, ERR_FORMAT, "校准文本 %s 只有 %lld 个 token，不够一个长 %lld 的样本", dataset,
                       (long long)n, (long long)length);
    s->offsets = ARENA_ARRAY(a, int64_t, n_samples, e);
    s->ids = ARENA_ARRAY(a, int32_t, n_samples * length, e);
    if (!s->offsets || !s->ids) return false;
    PyRandom r;
    pyrandom_seed(&r, (uint64_t)seed);
    for (int64_t i = 0; i < n_samples; i++) {
        s->offsets[i] = pyrandom_int(&r, 0, n - length - 1);
        memcpy(s->ids + i * length, ids + s->offsets[i], (size_t)length * sizeof *ids);
    }
    hash_bytes(s->ids, (size_t)(n_samples * length) * sizeof *ids, s->sha256);
    return true;
}

/* 全部样本的词嵌入 → s->x，一批一批。 */
static bool embed_all(CalibStream *s, Err *e) {
    const CalibSet *set = s->set;
    Model *m = s->model;
    int64_t len = set->length, d = m->config.hidden;
    float *own = s->work->x;
    for (int64_t i = 0; i < set->n_samples; i++) {
        Segment seg = {.n = len};
        s->work->x = s->x + i * len * d;
        forward_embed(m, s->work, set->ids + i * len, len, &seg, 1);
    }
    s->work->x = own;
    return backend_check(m->backend, e);
}

bool calib_stream_open(CalibStream *s, Model *m, const CalibSet *set, const CalibStream *borrow, Err *e) {
    *s = (CalibStream){.model = m, .set = set, .arena = model_big_arena(m), .inputs = model_big_arena(m)};
    s->work = borrow ? borrow->work : &s->own;
    s->batch = m->backend->batch_rows / set->length;
    if (s->batch < 1) s->batch = 1;
    if (s->batch > set->n_samples) s->batch = set->n_samples;
    int64_t rows = set->n_samples * set->length, d = m->config.hidden;
    s->x = ARENA_ARRAY(&s->arena, float, rows * d, e);
    bool ok = s->x && model_ensure_rope(m, set->length, e) &&
              (borrow || workspace_open(s->work, m, s->batch * set->length, e));
    if (ok) {
        ok = embed_all(s, e);
    }
    if (!ok) calib_stream_close(s);
    return ok;
}

void calib_stream_close(CalibStream *s) {
    workspace_close(&s->own);
    arena_free(&s->inputs);
    arena_free(&s->arena);
    *s = (CalibStream){0};
}

void calib_stream_rest(CalibStream *s) {
    if (s->work && s->model->spill.alloc) workspace_close(s->work);
}

static bool alloc_stats(InputStats *s, Arena *a, unsigned kinds, int64_t cols, Err *e) {
    *s = (InputStats){.cols = cols};
    if (kinds & STAT_GRAM) s->gram = ARENA_ARRAY(a, float, cols * cols, e);
    if (kinds & STAT_ABSMAX) s->absmax = ARENA_ARRAY(a, float, cols, e);
    if (kinds & STAT_ABSMEAN) s->absmean = ARENA_ARRAY(a, double, cols, e);
    return !((kinds & STAT_GRAM && !s->gram) || (kinds & STAT_ABSMAX && !s->absmax) ||
             (kinds & STAT_ABSMEAN && !s->absmean));
}

typedef struct Collector {
    Backend *backend;
    InputStats *stats;
    const Arena *inputs;
    const int64_t *room; /* 各组至多存下多少行输入 */
    int group;
} Collector;

static void collect(void *ctx, int group, const float *x, int64_t n, int64_t cols) {
    const Collector *c = ctx;
    InputStats *s = &c->stats[group];
    if (c->group >= 0 && group != c->group) return;
    if (s->gram)
        op_gram(c->backend, tensor_f32(s->gram, cols, cols), tensor_f32((float *)x, n, cols));
    int64_t keep = s->inputs ? c->room[group] - s->n_inputs : 0;
    if (keep > n) keep = n;
    if (keep > 0) {
        float *to = s->inputs + s->n_inputs * cols;
        op_copy(c->backend, to, x, (size_t)(keep * cols) * sizeof *x);
        spill_drop(c->inputs, to, (size_t)(keep * cols) * sizeof *x);
        s->n_inputs += keep;
    }
    op_column_stats(c->backend, s->absmax, s->absmean, tensor_f32((float *)x, n, cols));
    s->n += n;
}

/* 对称化、取平均。 */
static void finish_stats(Backend *b, InputStats *s) {
    if (s->gram) op_symmetrize(b, tensor_f32(s->gram, s->cols, s->cols));
    HostView v = host_view(b);
    double *mean = HOST_MAP(&v, double, s->absmean, s->cols, HOST_BOTH);
    for (int64_t j = 0; mean && s->n && j < s->cols; j++) mean[j] /= (double)s->n;
    host_end(&v);
}

/* 要收的各组备好内存；一组的列数由它的线性层定。 */
static bool alloc_groups(const Model *m, int64_t layer, int group, InputStats *stats, Arena *a, unsigned kinds, Err *e) {
    const ModelConfig *c = &m->config;
    const Block *b = &m->blocks[layer];
    for (int64_t i = 0; i < b->n_linears; i++) {
        const Linear *l = &b->linears[i];
        if (!l->rows || (group >= 0 && l->group != group) || stats[l->group].cols) continue;
        if (!alloc_stats(&stats[l->group], a, kinds, l->cols, e)) return false;
    }
    unsigned shared = kinds & ~(unsigned)STAT_GRAM; /* 各专家共用的输入：没有线性层以它为组 */
    if (shared && group < 0 && block_n_groups(c, layer) > GROUP_EXPERTS && !stats[INPUT_GATE_UP].cols)
        return alloc_stats(&stats[INPUT_GATE_UP], a, shared, c->hidden, e);
    return true;
}

bool calib_stats_alloc(const Model *m, int64_t layer, unsigned kinds, int group, InputStats *stats, Arena *a,
                       Err *e) {
    for (int g = 0; g < block_n_groups(&m->config, layer); g++)
        if (group < 0 || g == group) stats[g] = (InputStats){0};
    return alloc_groups(m, layer, group, stats, a, kinds, e);
}

/* 存下的输入：各组依次排在一块里。够大就一直用这一块（显存的大块反复归还、再要，会碎）。 */
static bool place_inputs(CalibStream *s, InputStats *stats, int64_t *room, int n_groups, int group, Err *e) {
    const ModelConfig *c = &s->model->config;
    int64_t n = s->set->n_samples * s->set->length, total = 0, at = 0;
    for (int g = 0; g < n_groups; g++) {
        int64_t share = g < GROUP_EXPERTS ? n : EXPERT_SHARE * n * c->top_k / c->n_experts + EXPERT_ROWS;
        room[g] = share < n ? share : n;
        if (group < 0 || g == group) total += (room[g] * stats[g].cols + 15) / 16 * 16;
    }
    if (total > s->room) {
        arena_free(&s->inputs);
        s->inputs = model_big_arena(s->model);
        s->saved = ARENA_ARRAY(&s->inputs, float, total, e);
        s->room = s->saved ? total : 0;
        if (!s->saved) return false;
    }
    for (int g = 0; g < n_groups; g++) {
        if ((group >= 0 && g != group) || !stats[g].cols) continue;
        stats[g].inputs = s->saved + at;
        at += (room[g] * stats[g].cols + 15) / 16 * 16;
    }
    return true;
}

bool calib_stream_pass(CalibStream *s, int64_t layer, unsigned kinds, int group, InputStats *stats,
                       Arena *a, bool advance, Err *e) {
    Model *m = s->model;
    int64_t len = s->set->length, d = m->config.hidden;
    int n_groups = block_n_groups(&m->config, layer);
    if (!s->work->max_rows && !workspace_open(s->work, m, s->batch * len, e)) return false;
    if (kinds && !calib_stats_alloc(m, layer, kinds, group, stats, a, e)) return false;
    Arena tmp = {0};
    int64_t *room = ARENA_ARRAY(&tmp, int64_t, n_groups, e);
    Segment *seg = ARENA_ARRAY(&tmp, Segment, s->batch, e);
    bool ok = room && seg && (!(kinds & STAT_INPUTS) || place_inputs(s, stats, room, n_groups, group, e));
    Collector c = {m->backend, stats, &s->inputs, room, group};
    bool experts = arch_has_experts(&m->config, layer);
    int last = group >= 0 ? group : experts ? -1 : INPUT_DOWN;
    BlockTap tap = {collect, &c, kinds && !advance ? last : -1, false};
    bool far = m->backend->mapped && s->arena.allocator == m->backend->mapped; /* 设备读写它要过总线：只搬两趟 */
    for (int64_t i = 0; ok && i < s->batch; i++) seg[i] = (Segment){.row0 = i * len, .n = len};
    for (int64_t i = 0; ok && i < s->set->n_samples; i += s->batch) {
        int64_t n = s->set->n_samples - i < s->batch ? s->set->n_samples - i : s->batch;
        float *x = s->x + i * len * d, *own = s->work->x;
        size_t bytes = (size_t)(n * len * d) * sizeof *x;
        if (advance && !far)
            s->work->x = x; /* 就地推进 */
        else
            op_copy(m->backend, own, x, bytes);
        ok = interrupt_check(e) && block_forward(m, layer, s->work, n * len, seg, (size_t)n,
                                                 kinds ? &tap : NULL, e);
        s->work->x = own;
        if (ok && advance && far) op_copy(m->backend, x, own, bytes);
        spill_drop(&s->arena, x, (size_t)(n * len * d) * sizeof *x);
    }
    arena_free(&tmp);
    for (int g = 0; ok && kinds && g < n_groups; g++)
        if ((group < 0 || g == group) && stats[g].cols) finish_stats(m->backend, &stats[g]);
    return ok && backend_check(m->backend, e);
}
