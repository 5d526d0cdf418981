/* base_walk — 逐块量化：载入 → 收集统计 → 方法 → 由量化后的块推进校准流 → 存盘 → 放掉
 * 任何时候内存里只有一个稠密块；做好的块存成文件，中断后从那里接着做。 */
#include "methods/base.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "methods/job.h"
#include "model/blockfile.h"

/* 由存放形式反量化，与（折叠后的）权重比较。 */
static bool measure_error(QuantJob *job, Linear *l, const float *w, Err *e) {
    double started = clock_seconds(), sum = 0;
    Backend *b = job->model->backend;
    int64_t n = l->rows * l->cols;
    float *back = ARENA_ARRAY(&job->scratch, float, n, e);
    if (!back) return false;
    op_dequantize(b, tensor_f32(back, l->rows, l->cols), &l->q);
    op_row_errors(b, &sum, tensor_f32(back, 1, n), w, n);
    if (!backend_check(b, e)) return false;
    l->weight_mse = sum / (double)n;
    job->squared_error += sum;
    job->n_quantized += n;
    job->check_seconds += clock_seconds() - started;
    return true;
}

/* 一趟逐块的量化：方法、校准流、当前块。 */
typedef struct Walk {
    QuantJob *job;
    unsigned kinds;
    CalibFlow flow;
    LinearFn linear_fn; /* 二者之一 */
    BlockFn block_fn;
    CalibStream stream, original; /* original 只在 FLOW_BOTH */
    bool forward;                 /* 校准样本要过各块（统计没有全部存着） */
    int64_t n_shared;             /* 前多少块的统计只取决于未量化的模型，可与别的运行共用 */
    StatSet shared;               /* 存下的；n 为 0 则没有，算出后存 */
    char shared_key[HASH_HEX];
    Arena arena;                  /* 本块：稠密权重、统计 */
    BlockSave *saving;            /* 正在写盘的一块，NULL 为没有 */
    /* 以下在本块的 host 内存，各块重来 */
    Arena host;
    InputStats *stats;    /* (block_n_groups) */
    Tensor *w;            /* (n_linears) 稠密权重 */
    const void **dense;   /* (n_linears) 稠密形式的数据，用来认出没有换上的线性层 */
} Walk;

/* 打开存下的统计，定要不要让样本过各块。 */
static void open_shared(Walk *k) {
    const Model *m = k->job->model;
    char what[32];
    k->forward = k->kinds || k->flow == FLOW_BOTH;
    snprintf(what, sizeof what, "block stats %u", k->kinds);
    if (!k->kinds || (k->kinds & STAT_INPUTS) || k->flow == FLOW_SEQUENTIAL ||
        !stats_key(k->job, what, k->shared_key))
        return;
    k->n_shared = k->flow == FLOW_ORIGINAL ? m->config.n_layers : 1;
    if (!statset_open(&k->shared, k->job->stats_dir, k->shared_key, k->n_shared)) return;
    k->job->stats_shared = true;
    k->forward = k->flow != FLOW_ORIGINAL;
    if (!k->forward) log_line(LOG_INFO, "校准统计取自存档（同样的模型与校准集算过），不再过样本");
}

/* 载入一个线性层的稠密权重；要校准时也装成稠密形式供前向。 */
static bool load_linear(Walk *k, QuantBlock *b, int64_t r, Err *e) {
    Model *m = k->job->model;
    Linear *l = &b->linears[r];
    float *w = ARENA_ARRAY(&k->arena, float, l->rows * l->cols, e);
    if (!w || !model_load_linear(m, l, w, e)) return false;
    if (k->forward && !model_pack_linear(m, l, w, &k->arena, e)) return false;
    k->dense[r] = l->q.data;
    k->w[r] = tensor_f32(w, l->rows, l->cols);
    l->weight = w;
    if (r < ROLE_COUNT) b->w[r] = k->w[r];
    return true;
}

/* 本块的表；不校准的方法用不到统计。 */
static bool open_tables(Walk *k, int64_t layer, Err *e) {
    const Model *m = k->job->model;
    int64_t n = m->blocks[layer].n_linears;
    arena_free(&k->host);
    k->stats = ARENA_ARRAY(&k->host, InputStats, block_n_groups(&m->config, layer), e);
    k->w = ARENA_ARRAY(&k->host, Tensor, n, e);
    k->dense = ARENA_ARRAY(&k->host, const void *, n, e);
    return k->stats && k->w && k->dense;
}

/* 载入整个块；逐层的方法不校准时不必（run_linears 一次只载一层）。 */
static bool load_block(Walk *k, QuantBlock *b, Err *e) {
    if (!open_tables(k, b->layer, e) || !model_load_norms(k->job->model, b->layer, e)) return false;
    const Block *from = &k->job->model->blocks[b->layer];
    b->attn_norm = from->attn_norm;
    b->mlp_norm = from->mlp_norm;
    for (int64_t r = 0; r < from->n_linears && (k->forward || k->block_fn); r++)
        if (from->linears[r].rows && !load_linear(k, b, r, e)) return false;
    return true;
}

/* 校准中路由到它的 token 太少的专家：统计不可信，以单位阵代替 Hessian（此时按误差反馈的方法就是就近取整），
 * 存下的输入不算数（n_inputs 为 0，不搜索），记为退让。只要最大值的方法不受影响。 */
static bool feed_starved(Walk *k, const QuantBlock *b, int group, Err *e) {
    Model *m = k->job->model;
    for (int g = GROUP_EXPERTS; g < block_n_groups(&m->config, b->layer); g++) {
        InputStats *s = &k->stats[g];
        bool down = (g - GROUP_EXPERTS) % 2;
        if ((group >= 0 && g != group) || s->n >= EXPERT_MIN_TOKENS) continue;
        s->n_inputs = 0;
        if (!down && (s->gram || s->inputs))
            job_fallback(k->job, "第 %lld 层的专家 %d 在校准中只有 %lld 个 token（少于 %d）：就近取整",
                         (long long)b->layer, (g - GROUP_EXPERTS) / 2, (long long)s->n,
                         EXPERT_MIN_TOKENS);
        if (!s->gram) continue;
        HostView v = host_view(m->backend);
        float *gram = HOST_MAP(&v, float, s->gram, s->cols * s->cols, HOST_WRITE);
        if (gram) memset(gram, 0, (size_t)(s->cols * s->cols) * sizeof *gram);
        for (int64_t i = 0; gram && i < s->cols; i++) gram[i * s->cols + i] = 1;
        host_end(&v);
        s->n = 1;
    }
    return backend_check(m->backend, e);
}

/* 本块的统计：取自存档，或让样本过本块收集（可共用的随手存下）。 */
static bool take_stats(Walk *k, int64_t layer, int group, Err *e) {
    Model *m = k->job->model;
    int n_groups = block_n_groups(&m->config, layer);
    if (layer < k->shared.n)
        return calib_stats_alloc(m, layer, k->kinds, group, k->stats, &k->arena, e) &&
               stats_restore_block(&k->shared, layer, m->backend, k->stats, n_groups, e);
    if (!calib_stream_pass(&k->stream, layer, k->kinds, group, k->stats, &k->arena,
                           k->flow == FLOW_ORIGINAL, e))
        return false;
    if (layer < k->n_shared)
        stats_save_block(k->job, k->shared_key, layer, k->n_shared, k->stats, n_groups);
    return true;
}

/* 校准样本过本块：收集统计；原始流同时推进。 */
static bool collect_stats(Walk *k, QuantBlock *b, int group, Err *e) {
    double t = clock_seconds();
    bool ok = true;
    job_drop_factor(k->job);
    if (k->flow == FLOW_BOTH)
        ok = calib_stream_pass(&k->original, b->layer, 0, 0, NULL, NULL, true, e);
    if (ok && k->kinds) ok = take_stats(k, b->layer, group, e);
    ok = ok && (!k->kinds || feed_starved(k, b, group, e));
    b->stats = k->kinds ? k->stats : NULL;
    b->inputs = k->flow == FLOW_ORIGINAL ? NULL : k->stream.x;
    b->targets = k->original.x;
    k->job->calib_seconds += clock_seconds() - t;
    return ok;
}

static bool measure_linear(Walk *k, QuantBlock *b, int64_t r, Err *e) {
    Linear *l = &b->linears[r];
    if (!l->rows || l->streamed) return true;
    CHECK(l->q.data != NULL && l->q.data != k->dense[r]);
    return l->q.dense != DT_NONE || measure_error(k->job, l, tensor_data_f32(k->w[r]), e);
}

static bool run_linear(Walk *k, QuantBlock *b, int64_t r, Err *e) {
    ArenaMark scratch = arena_mark(&k->job->scratch), block = arena_mark(&k->arena);
    ArenaMark host = arena_mark(&k->job->host);
    const InputStats *st = k->kinds ? &k->stats[b->linears[r].group] : NULL;
    bool ok = interrupt_check(e) && (k->forward || load_linear(k, b, r, e)) &&
              k->linear_fn(k->job, &b->linears[r], k->w[r], st, e) && measure_linear(k, b, r, e);
    arena_rewind(&k->job->scratch, scratch);
    arena_rewind(&k->job->host, host);
    if (!k->forward) arena_rewind(&k->arena, block);
    if (!ok && e->code != ERR_INTERRUPTED) err_wrap(e, "%s", b->linears[r].name);
    return ok;
}

static bool run_linears(Walk *k, QuantBlock *b, Err *e) {
    const Model *m = k->job->model;
    int64_t n = m->blocks[b->layer].n_linears;
    for (int i = 0; i < block_n_groups(&m->config, b->layer); i++) {
        /* 按计算的次序：q、k、v 之后是 MLA 的 q_b、kv_b */
        int group = i == 0 ? INPUT_QKV : i <= 2 ? GROUP_Q_B + i - 1 : i <= 5 ? INPUT_O + i - 3 : i;
        bool ready = k->flow != FLOW_SEQUENTIAL;
        for (int64_t r = 0; r < n; r++) {
            if (b->linears[r].group != group || !b->linears[r].rows) continue;
            if (!ready && !collect_stats(k, b, group, e)) return false;
            ready = true;
            if (!run_linear(k, b, r, e)) return false;
        }
    }
    return true;
}

/* 有偏置的归一化，方法改的是全为 1 的替身：它乘了什么，权重与偏置都照乘（方法只会除以通道的因子）。 */
static bool lend_norms(Walk *k, QuantBlock *b, Err *e) {
    Model *m = k->job->model;
    const Block *from = &m->blocks[b->layer];
    int64_t d = m->config.hidden;
    float **lent[2] = {&b->attn_norm, &b->mlp_norm};
    for (int i = 0; i < 2 && from->attn_norm_bias; i++) {
        *lent[i] = ARENA_ARRAY(&k->arena, float, d, e);
        HostView v = host_view(m->backend);
        float *ones = HOST_MAP(&v, float, *lent[i], d, HOST_WRITE);
        for (int64_t j = 0; ones && j < d; j++) ones[j] = 1;
        host_end(&v);
        if (!*lent[i] || !backend_check(m->backend, e)) return false;
    }
    return true;
}

static bool return_norms(Walk *k, QuantBlock *b, Err *e) {
    Model *m = k->job->model;
    const Block *to = &m->blocks[b->layer];
    int64_t d = m->config.hidden;
    float *lent[2] = {b->attn_norm, b->mlp_norm}, *weight[2] = {to->attn_norm, to->mlp_norm};
    float *bias[2] = {to->attn_norm_bias, to->mlp_norm_bias};
    HostView v = host_view(m->backend);
    for (int i = 0; i < 2 && to->attn_norm_bias; i++) {
        const float *s = HOST_MAP(&v, float, lent[i], d, HOST_READ);
        float *w = HOST_MAP(&v, float, weight[i], d, HOST_BOTH), *c = HOST_MAP(&v, float, bias[i], d, HOST_BOTH);
        for (int64_t j = 0; s && w && c && j < d; j++) w[j] *= s[j], c[j] *= s[j];
    }
    host_end(&v);
    return backend_check(m->backend, e);
}

static bool run_block(Walk *k, QuantBlock *b, Err *e) {
    ArenaMark mark = arena_mark(&k->job->scratch), host = arena_mark(&k->job->host);
    calib_stream_rest(&k->stream);
    bool ok = interrupt_check(e) && lend_norms(k, b, e) && k->block_fn(k->job, b, e) &&
              return_norms(k, b, e);
    for (int64_t r = 0; ok && r < k->job->model->blocks[b->layer].n_linears; r++) {
        arena_rewind(&k->job->scratch, mark);
        ok = measure_linear(k, b, r, e);
    }
    arena_rewind(&k->job->scratch, mark);
    arena_rewind(&k->job->host, host);
    if (!ok && e->code != ERR_INTERRUPTED) err_wrap(e, "第 %lld 块", (long long)b->layer);
    return ok;
}

static bool quantize_block(Walk *k, int64_t layer, Err *e) {
    Model *m = k->job->model;
    QuantBlock b = {.layer = layer, .linears = m->blocks[layer].linears, .model = m,
                    .calib = k->job->calib};
    bool last = layer + 1 == m->config.n_layers;
    k->job->block_arena = &m->blocks[layer].arena;
    bool ok = load_block(k, &b, e);
    if (ok && (k->forward || k->kinds) && k->flow != FLOW_SEQUENTIAL)
        ok = collect_stats(k, &b, CALIB_ALL_GROUPS, e);
    ok = ok && (k->block_fn ? run_block(k, &b, e) : run_linears(k, &b, e));
    if (ok && k->forward && k->flow != FLOW_ORIGINAL && !last) {
        double t = clock_seconds();
        ok = calib_stream_pass(&k->stream, layer, 0, 0, NULL, NULL, true, e);
        k->job->calib_seconds += clock_seconds() - t;
    }
    k->job->block_arena = NULL;
    for (int64_t r = 0; r < m->blocks[layer].n_linears; r++) m->blocks[layer].linears[r].weight = NULL;
    arena_free(&k->arena);
    return ok;
}

/* 等正在写的块写完。存不下（磁盘满等）只警告：结果不受影响，只是中断后要重做。 */
static void finish_save(Walk *k, bool ok, Err *e) {
    QuantJob *job = k->job;
    ok = blockfile_saved(k->saving, e) && ok;
    k->saving = NULL;
    if (!ok && !job->save_failed) log_line(LOG_WARN, "量化好的块没有存下（%s）：中断后将从头做", e->msg);
    job->save_failed |= !ok;
}

/* 存下量化好的块；上一块须先写完。 */
static void save_block(Walk *k, int64_t layer) {
    QuantJob *job = k->job;
    Err e = {0};
    Str notes = {0};
    finish_save(k, true, &e);
    for (size_t i = 0; i < job->n_fallbacks; i++) str_addf(&notes, "%s\n", job->fallbacks[i]);
    if (!notes.failed)
        k->saving = blockfile_save(job->model, layer, job->block_dir, job->block_key,
                                   notes.data ? notes.data : "", &e);
    if (!k->saving || !job->model->backend->separate) finish_save(k, k->saving != NULL, &e);
    blockfile_swap(job->model, layer, job->block_dir, job->block_key);
    str_free(&notes);
}

/* 上次存下的块：装入，让校准流走过去。*done 为假时本块要重做。 */
static bool resume_block(Walk *k, int64_t layer, bool *done, Err *e) {
    QuantJob *job = k->job;
    Model *m = job->model;
    Block before = m->blocks[layer], after;
    const char *notes;
    *done = blockfile_load(m, layer, job->block_dir, job->block_key, &notes);
    if (!*done) return true;
    after = m->blocks[layer];
    bool ok = true, last = layer + 1 == m->config.n_layers;
    bool original = k->flow == FLOW_ORIGINAL || k->flow == FLOW_BOTH;
    if (original && k->forward && !last) { /* 原始流要的是量化前的块 */
        m->blocks[layer] = before;
        QuantBlock b = {.layer = layer, .linears = m->blocks[layer].linears, .model = m};
        CalibStream *s = k->flow == FLOW_BOTH ? &k->original : &k->stream;
        ok = load_block(k, &b, e) && calib_stream_pass(s, layer, 0, 0, NULL, NULL, true, e);
        for (int64_t r = 0; r < before.n_linears; r++) before.linears[r].weight = NULL;
        m->blocks[layer] = after;
        arena_free(&k->arena);
    }
    if (ok && k->flow != FLOW_ORIGINAL && !last)
        ok = calib_stream_pass(&k->stream, layer, 0, 0, NULL, NULL, true, e);
    for (int64_t r = 0; r < after.n_linears; r++) {
        const Linear *l = &after.linears[r];
        if (!l->rows || l->q.dense != DT_NONE) continue;
        job->squared_error += l->weight_mse * (double)(l->rows * l->cols);
        job->n_quantized += l->rows * l->cols;
    }
    for (const char *end; (end = strchr(notes, '\n')); notes = end + 1)
        job_fallback(job, "%.*s", (int)(end - notes), notes);
    return ok;
}

static bool walk_blocks(Walk *k, Err *e) {
    Model *m = k->job->model;
    bool ok = true;
    k->arena = backend_arena(m->backend);
    CHECK(!(k->kinds || k->flow == FLOW_BOTH) || k->job->calib);
    open_shared(k);
    if (k->forward) {
        ok = model_load_embed(m, e) && calib_stream_open(&k->stream, m, k->job->calib, NULL, e) &&
             (k->flow != FLOW_BOTH || calib_stream_open(&k->original, m, k->job->calib, &k->stream, e));
    }
    Progress p = progress_start(LOG_QUANT, "量化", "块", m->config.n_layers);
    bool files = (k->kinds || k->forward) && k->job->block_dir, resuming = files;
    int64_t n_resumed = 0;
    for (int64_t i = 0; ok && i < m->config.n_layers; i++) {
        if (resuming) ok = resume_block(k, i, &resuming, e);
        if (ok && !resuming) {
            if (n_resumed) log_line(LOG_INFO, "接着上次：前 %lld 块已经量化", (long long)n_resumed);
            n_resumed = 0;
            ok = quantize_block(k, i, e);
            if (ok && files) save_block(k, i);
        } else {
            n_resumed++;
        }
        ok = ok && model_leave_block(m, i, e);
        progress_step(&p, i + 1);
    }
    progress_end(&p);
    Err late = {0};
    finish_save(k, true, &late);
    arena_free(&k->host);
    statset_close(&k->shared);
    calib_stream_close(&k->original);
    calib_stream_close(&k->stream);
    return ok;
}

bool quantize_each_linear(QuantJob *job, unsigned stats, CalibFlow flow, LinearFn fn, Err *e) {
    CHECK(stats || flow == FLOW_QUANTIZED);
    Walk k = {.job = job, .kinds = stats, .flow = flow, .linear_fn = fn};
    return walk_blocks(&k, e);
}

bool quantize_each_block(QuantJob *job, unsigned stats, CalibFlow flow, BlockFn fn, Err *e) {
    CHECK(flow != FLOW_SEQUENTIAL);
    Walk k = {.job = job, .kinds = stats, .flow = flow, .block_fn = fn};
    return walk_blocks(&k, e);
}
