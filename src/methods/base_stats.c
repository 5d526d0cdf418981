/* base_stats — 只取决于未量化的模型与校准集的统计，存下来供别的运行用（方法文件不知道有文件）
 * 合格的：FLOW_ORIGINAL 的全部块，别的流的第 0 块（此前没有量化过的块）；键值的样本。STAT_INPUTS 不存：它比重算还大。
 * key 由 runner 给出：程序、权重、模型的设置、校准 ids、计算方式的哈希；这里再加上是哪一种统计。 */
#include "methods/base.h"

#include <string.h>

#include "base/str.h"
#include "methods/job.h"

enum { MAX_DAYS = 30 };

bool stats_key(const QuantJob *job, const char *what, char key[HASH_HEX]) {
    Hash *h = job->stats_dir ? hash_new() : NULL;
    if (!h) return false;
    hash_add(h, job->stats_key, strlen(job->stats_key));
    hash_add(h, what, strlen(what));
    hash_end(h, key);
    return true;
}

void stats_save(QuantJob *job, const char *key, int64_t i, int64_t n, const FilePart *parts,
                size_t n_parts) {
    size_t bytes = 0;
    Err e = {0};
    if (!job->stats_dir) return;
    for (size_t k = 0; k < n_parts; k++) bytes += parts[k].len;
    bool room = i > 0 || statset_make_room(job->stats_dir, key, bytes * (size_t)n, job->stats_limit, MAX_DAYS);
    if (room && statset_save(job->stats_dir, key, i, parts, n_parts, &e)) return;
    char need[32], have[32];
    if (room)
        log_line(LOG_WARN, "校准统计没有存下（%s）：别的运行要重算，本次不受影响", e.msg);
    else
        log_line(LOG_INFO, "校准统计约 %s，超过 stats_cache 的 %s：不存，别的运行各自重算",
                 str_bytes(need, sizeof need, (double)bytes * (double)n),
                 str_bytes(have, sizeof have, (double)job->stats_limit));
    job->stats_dir = NULL;
}

/* ---- 一块的输入统计：各组的 token 数，然后各组的各样 ---- */

typedef struct BlockParts {
    Arena arena;
    int64_t *counts; /* (n_groups) */
    FilePart *part;  /* part[0] 即 counts；其余在后端内存 */
    size_t n, bytes;
} BlockParts;

static bool list_parts(BlockParts *p, const InputStats *stats, int n_groups) {
    *p = (BlockParts){.n = 1};
    p->counts = ARENA_ARRAY(&p->arena, int64_t, n_groups, NULL);
    p->part = ARENA_ARRAY(&p->arena, FilePart, 1 + 3 * n_groups, NULL);
    if (!p->counts || !p->part) {
        arena_free(&p->arena);
        return false;
    }
    p->part[0] = (FilePart){p->counts, (size_t)n_groups * sizeof *p->counts};
    for (int g = 0; g < n_groups; g++) {
        const InputStats *s = &stats[g];
        size_t cols = (size_t)s->cols;
        p->counts[g] = s->n;
        if (s->gram) p->part[p->n++] = (FilePart){s->gram, cols * cols * sizeof *s->gram};
        if (s->absmax) p->part[p->n++] = (FilePart){s->absmax, cols * sizeof *s->absmax};
        if (s->absmean) p->part[p->n++] = (FilePart){s->absmean, cols * sizeof *s->absmean};
    }
    for (size_t i = 0; i < p->n; i++) p->bytes += p->part[i].len;
    return true;
}

bool stats_restore_block(const StatSet *set, int64_t layer, Backend *b, InputStats *stats,
                         int n_groups, Err *e) {
    BlockParts p;
    if (!list_parts(&p, stats, n_groups)) return err_set(e, ERR_MEMORY, "内存不足：存下的校准统计");
    const char *from = statset_get(set, layer, p.bytes);
    if (from) {
        memcpy(p.counts, from, p.part[0].len);
        for (int g = 0; g < n_groups; g++) stats[g].n = p.counts[g];
        from += p.part[0].len;
        for (size_t i = 1; i < p.n; from += p.part[i++].len)
            op_write(b, (void *)p.part[i].data, from, p.part[i].len);
        statset_drop(set, layer);
    }
    arena_free(&p.arena);
    return from ? backend_check(b, e)
                : err_set(e, ERR_FORMAT, "存下的校准统计与模型的形状不符，请删去 data_dir/processed/stats");
}

void stats_save_block(QuantJob *job, const char *key, int64_t layer, int64_t n_layers,
                      const InputStats *stats, int n_groups) {
    BlockParts p;
    if (!job->stats_dir || !list_parts(&p, stats, n_groups)) return;
    for (size_t i = 1; i < p.n && job->model->backend->separate; i++) {
        void *host = arena_alloc(&p.arena, p.part[i].len, NULL);
        if (host) op_read(job->model->backend, host, p.part[i].data, p.part[i].len);
        p.part[i].data = host;
        if (!host) p.n = 0;
    }
    if (p.n && job->model->backend->err.code == ERR_NONE)
        stats_save(job, key, layer, n_layers, p.part, p.n);
    arena_free(&p.arena);
}

/* ---- 键值的样本 ---- */

typedef struct SampleSink {
    QuantJob *job;
    KvSampleFn *fn;
    char key[HASH_HEX];
} SampleSink;

static size_t sample_bytes(const KvSample *s) {
    return (size_t)(s->n * s->width) * sizeof(float);
}

/* 存下一层的样本，再交给方法。 */
static bool save_sample(void *ctx, const KvSample *s, Err *e) {
    SampleSink *k = ctx;
    const Model *m = k->job->model;
    const float *mem[] = {s->k, s->v, s->k_grad, s->v_grad};
    FilePart part[4];
    HostView v = host_view(m->backend);
    bool ok = k->job->stats_dir != NULL;
    for (int i = 0; ok && i < 4; i++) {
        part[i] = (FilePart){host_map(&v, mem[i], sample_bytes(s), HOST_READ), sample_bytes(s)};
        ok = part[i].data != NULL;
    }
    if (ok) stats_save(k->job, k->key, s->layer, m->config.n_layers, part, 4);
    host_end(&v);
    return k->fn(k->job, s, e);
}

/* 由存档逐层交给方法。 */
static bool replay_samples(QuantJob *job, const StatSet *set, KvSampleFn *fn, Err *e) {
    const Model *m = job->model;
    KvSample s = {.n = job->calib->n_samples * job->calib->length, .length = job->calib->length,
                  .width = m->config.n_kv_heads * m->config.head_dim};
    Arena a = backend_arena(m->backend);
    float *mem = ARENA_ARRAY(&a, float, 4 * s.n * s.width, e);
    bool ok = mem != NULL;
    for (s.layer = 0; ok && s.layer < set->n; s.layer++) {
        const void *from = statset_get(set, s.layer, 4 * sample_bytes(&s));
        CHECK(from != NULL);
        op_write(m->backend, mem, from, 4 * sample_bytes(&s));
        s.k = mem;
        s.v = s.k + s.n * s.width;
        s.k_grad = s.v + s.n * s.width;
        s.v_grad = s.k_grad + s.n * s.width;
        ok = interrupt_check(e) && fn(job, &s, e);
        statset_drop(set, s.layer);
    }
    arena_free(&a);
    return ok;
}

bool quantize_each_cache(QuantJob *job, KvSampleFn *fn, Err *e) {
    CHECK(job->calib != NULL);
    double t = clock_seconds();
    SampleSink sink = {.job = job, .fn = fn};
    StatSet set = {0};
    bool keyed = stats_key(job, "kv samples", sink.key), ok = model_finish(job->model, e);
    if (ok && keyed && statset_open(&set, job->stats_dir, sink.key, job->model->config.n_layers)) {
        job->stats_shared = true;
        ok = replay_samples(job, &set, fn, e);
        statset_close(&set);
    } else if (ok) {
        ok = kv_sample_each(job->model, job->calib, keyed ? save_sample : fn, keyed ? (void *)&sink : job, e);
    }
    job->calib_seconds += clock_seconds() - t;
    return ok;
}
