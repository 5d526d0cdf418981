/* model — 打开、装载、清点
 * 每次只解码一个张量到临时内存，装成存放形式后即丢弃映射页，所以峰值 = 装好的权重 + 最大的一个张量。 */
#include "model/model.h"

#include <math.h>
#include <string.h>

#include "base/log.h"
#include "model/checkpoint.h"
#include "model/layout.h"
#include "model/rope.h"
#include "model/stream.h"

/* 由配置与文件里的张量定出各块；m 除 config、weights、backend、meta 外是空的。 */
static bool lay_out(Model *m, Err *e) {
    Backend *b = m->backend;
    m->arena = m->rope_arena = backend_arena(b);
    for (int i = 0; i < STREAM_SLOTS; i++) m->slots[i] = (StreamSlot){.arena = backend_arena(b), .layer = -1};
    m->blocks = ARENA_ARRAY(&m->meta, Block, m->config.n_layers, e);
    bool ok = m->blocks && layout_ends(m, e) && rope_init(m, e);
    for (int64_t i = 0; ok && i < m->config.n_layers; i++) {
        m->blocks[i].arena = backend_arena(b);
        ok = layout_block(m, i, e);
    }
    return ok;
}

bool model_open_as(Model *m, const char *path, const char *adapter, DType dtype, Backend *b,
                   Err *e) {
    *m = (Model){.backend = b};
    if (!weights_open(&m->weights, path, adapter, &m->config, e)) return false;
    m->dtype = dtype == DT_NONE ? weights_native_dtype(&m->weights) : dtype;
    bool ok = lay_out(m, e) && layout_check_rest(m, e);
    if (!ok) model_close(m);
    return ok;
}

bool model_open(Model *m, const char *path, DType dtype, Backend *b, Err *e) {
    return model_open_as(m, path, NULL, dtype, b, e);
}

/* 放掉装好的权重；文件与元数据留着。 */
static void unload(Model *m) {
    for (int64_t i = 0; m->blocks && i < m->config.n_layers; i++) {
        if (m->blocks[i].file.data) file_unmap(&m->blocks[i].file);
        arena_free(&m->blocks[i].arena);
    }
    stream_close(m);
    arena_free(&m->rope_arena);
    arena_free(&m->arena);
}

bool model_reset(Model *m, Err *e) {
    unload(m);
    *m = (Model){.backend = m->backend, .meta = m->meta, .config = m->config, .weights = m->weights,
                 .dtype = m->dtype, .head_int8 = m->head_int8, .stream = m->stream, .no_prefetch = m->no_prefetch,
                 .spill = m->spill};
    return lay_out(m, e);
}

void model_close(Model *m) {
    weights_close(&m->weights);
    unload(m);
    arena_free(&m->meta);
    *m = (Model){0};
}

/* 来源的第 row0 行起 n 行解码到 w（后端内存），行宽 width（多出的列补零）。checked：已知都是有限值。 */
static bool load_rows(Model *m, const TensorSource *src, int64_t row0, int64_t n, int64_t width,
                      DType dtype, bool checked, float *w, Err *e) {
    DType stored;
    const void *raw = width == (src->cols ? src->cols : 1)
                          ? weights_direct(&m->weights, src, row0, n, &stored) : NULL;
    if (raw) { /* 有非有限值时再走下面的路，好报出是第几个 */
        op_decode(m->backend, w, raw, stored, dtype, n * width);
        if (checked || op_all_finite(m->backend, tensor_f32(w, n, width))) return backend_check(m->backend, e);
    }
    HostView v = host_view(m->backend);
    float *host = HOST_MAP(&v, float, w, n * width, HOST_WRITE);
    bool ok = host && weights_load(&m->weights, src, row0, n, dtype, host, e);
    int64_t cols = src->cols ? src->cols : 1;
    for (int64_t r = n - 1; ok && cols < width && r >= 0; r--) {
        memmove(host + r * width, host + r * cols, (size_t)cols * sizeof *host);
        memset(host + r * width + cols, 0, (size_t)(width - cols) * sizeof *host);
    }
    host_end(&v);
    return backend_check(m->backend, e) && ok;
}

Arena *model_linear_arena(Model *m, const Linear *l) {
    return l->slot == T_HEAD ? &m->arena : &m->blocks[l->layer].arena;
}

bool model_load_bias(Model *m, Linear *l, Err *e) {
    TensorSource src;
    if (!l->has_bias || l->bias) return true;
    layout_linear(m, l, true, &src);
    l->bias = ARENA_ARRAY(&m->arena, float, l->rows, e);
    return l->bias && load_rows(m, &src, 0, l->rows, 1, m->dtype, false, l->bias, e);
}

enum { DROP_BYTES = 8 << 20 };

static void drop_piece(void *ctx, int64_t i) {
    const FileTensor *t = ctx;
    size_t at = (size_t)i * DROP_BYTES, left = t->bytes - at;
    file_map_drop((const char *)t->data + at, left < DROP_BYTES ? left : DROP_BYTES);
}

/* 张量的映射页还给系统：内核逐页拆，分给各线程。 */
static void drop_tensor(Model *m, const char *name) {
    const FileTensor *t = weights_find(&m->weights, name);
    int64_t n = t ? (int64_t)((t->bytes + DROP_BYTES - 1) / DROP_BYTES) : 0;
    if (n > 0) m->backend->ops->parallel(m->backend, n, drop_piece, (void *)t);
}

/* 用过的映射页还给系统；融合的等最后一份。流式地传到 GPU 时还要再读，页留着。 */
static void drop_source(Model *m, const Linear *l, const TensorSource *src) {
    if (m->stream && m->backend->separate) return;
    bool last = l->slot == T_V || l->slot == T_UP || l->expert + 1 == m->config.n_experts;
    if (last || !src->block) drop_tensor(m, src->name);
}

/* 文件里的第 row0 行起直接装进稠密的 q。checked 同 load_rows。返回: 假为不能（不相连、要换算，或有非有限值），q 未装好。 */
static bool pack_direct(Model *m, const TensorSource *src, int64_t row0, bool checked, QTensor *q) {
    DType stored;
    if (q->dense == DT_NONE || q->cols != src->cols) return false;
    const void *raw = weights_direct(&m->weights, src, row0, q->rows, &stored);
    return raw && op_pack_stored(m->backend, q, raw, stored, checked);
}

bool model_load_linear(Model *m, Linear *l, float *w, Err *e) {
    double t = clock_seconds();
    TensorSource src;
    if (l->packed)
        return err_set(e, ERR_UNSUPPORTED, "%s: 已经是 %s 量化的，不能再量化一次", l->name,
                       checkpoint_name(m->weights.checkpoint->kind));
    if (!model_load_bias(m, l, e)) return false;
    layout_linear(m, l, false, &src);
    if (!load_rows(m, &src, 0, l->rows, l->cols, m->dtype, l->checked, w, e)) return false;
    l->checked = true;
    drop_source(m, l, &src);
    m->load_seconds += clock_seconds() - t;
    return true;
}

bool model_pack_linear(Model *m, Linear *l, const float *w, Arena *a, Err *e) {
    double t = clock_seconds();
    QTensor q;
    if (!qtensor_new_dense(&q, a, m->dtype, l->rows, l->cols, e)) return false;
    op_pack_dense(m->backend, &q, tensor_f32((float *)w, l->rows, l->cols));
    m->pack_seconds += clock_seconds() - t;
    return backend_check(m->backend, e) && linear_set_quantized(l, &q);
}

bool model_load_dense(Model *m, Linear *l, Arena *a, Err *e) {
    double t = clock_seconds();
    TensorSource src;
    QTensor q;
    if (!model_load_bias(m, l, e) || !qtensor_new_dense(&q, a, m->dtype, l->rows, l->cols, e)) return false;
    layout_linear(m, l, false, &src);
    if (pack_direct(m, &src, 0, l->checked, &q)) {
        l->checked = true;
        drop_source(m, l, &src);
        m->load_seconds += clock_seconds() - t;
        return linear_set_quantized(l, &q);
    }
    Arena tmp = backend_arena(m->backend);
    float *w = ARENA_ARRAY(&tmp, float, l->rows * l->cols, e);
    bool ok = w && model_load_linear(m, l, w, e);
    t = clock_seconds();
    if (ok) op_pack_dense(m->backend, &q, tensor_f32(w, l->rows, l->cols));
    m->pack_seconds += clock_seconds() - t;
    arena_free(&tmp);
    return ok && backend_check(m->backend, e) && linear_set_quantized(l, &q);
}

bool linear_set_quantized(Linear *l, const QTensor *q) {
    if (q->rows != l->rows || q->cols != l->cols) return false;
    l->q = *q;
    return true;
}

/* q 的第 row0 行起 n 行的视图（row0 为面板行数的倍数）。 */
static QTensor rows_of(const QTensor *q, int64_t row0, int64_t n) {
    QTensor v = *q;
    size_t all = (size_t)((q->rows + QT_PANEL - 1) / QT_PANEL);
    size_t first = (size_t)(row0 / QT_PANEL), panels = (size_t)((n + QT_PANEL - 1) / QT_PANEL);
    v.rows = n;
    v.data = (char *)q->data + q->data_bytes / all * first;
    v.data_bytes = q->data_bytes / all * panels;
    if (q->scales) v.scales = (char *)q->scales + q->scale_bytes / all * first;
    v.scale_bytes = q->scale_bytes / all * panels;
    return v;
}

static const QSpec HEAD_SPEC = {.bits = 8, .group_size = 64, .zero = ZERO_SYM,
                                .scale_dtype = DT_F16, .grid = GRID_ABSMAX};

bool model_measure_embed(const Model *m, QTensor *q, Err *e) {
    return qtensor_measure(q, m->head_int8 ? DT_NONE : m->dtype, HEAD_SPEC, m->config.vocab,
                           m->config.hidden, e);
}

/* 把 w 的 q->rows 行装进 q（稠密，或就近取整）。 */
static bool pack_rows(Model *m, QTensor *q, Tensor w, Arena *tmp, Err *e) {
    if (q->dense != DT_NONE) {
        op_pack_dense(m->backend, q, w);
        return backend_check(m->backend, e);
    }
    ArenaMark mark = arena_mark(tmp);
    Tensor scale = tensor_f32(ARENA_ARRAY(tmp, float, q->rows *q->n_groups, e), q->rows, q->n_groups);
    Tensor zero = tensor_f32(ARENA_ARRAY(tmp, float, q->rows *q->n_groups, e), q->rows, q->n_groups);
    bool ok = scale.data && zero.data;
    if (ok) {
        op_qparams(m->backend, scale, zero, w, &q->spec);
        op_quantize(m->backend, q, w, scale, zero);
        ok = backend_check(m->backend, e);
    }
    arena_rewind(tmp, mark);
    return ok;
}

/* 载入一个矩阵（词嵌入、头），补零成 (rows, cols)，分段解码，不让整个 f32 副本同时存在。 */
static bool load_matrix(Model *m, TensorSlot slot, int64_t rows, int64_t cols, bool int8,
                        QTensor *q, Err *e) {
    const ModelConfig *c = &m->config;
    int64_t wide = slot == T_EMBED || slot == T_HEAD || slot == T_PROJECT_IN ? c->embed_dim : cols;
    TensorSource src = layout_whole(m, slot, 0, 0, ".weight",
                                    slot == T_PROJECT_OUT ? c->embed_dim : rows, wide);
    if (!(int8 ? qtensor_new(q, &m->arena, HEAD_SPEC, rows, cols, e)
               : qtensor_new_dense(q, &m->arena, m->dtype, rows, cols, e)))
        return false;
    int64_t step = ((int64_t)1 << 21) / cols / QT_PANEL * QT_PANEL;
    if (step < QT_PANEL) step = QT_PANEL;
    Arena tmp = backend_arena(m->backend);
    double t = clock_seconds();
    bool direct = src.rows == rows && pack_direct(m, &src, 0, false, q);
    float *w = direct ? NULL : ARENA_ARRAY(&tmp, float, step * cols, e);
    bool ok = direct || w;
    for (int64_t r = 0; ok && !direct && r < rows; r += step) {
        int64_t n = rows - r < step ? rows - r : step;
        QTensor part = rows_of(q, r, n);
        int64_t have = src.rows - r < n ? src.rows - r : n; /* project_out 之外恒为 n */
        if (have < n) op_multiply(m->backend, tensor_f32(w, n, cols), tensor_f32(w, n, cols), 0);
        ok = (have <= 0 || load_rows(m, &src, r, have, cols, m->dtype, false, w, e)) &&
             pack_rows(m, &part, tensor_f32(w, n, cols), &tmp, e);
    }
    arena_free(&tmp);
    drop_tensor(m, src.name);
    m->load_seconds += clock_seconds() - t;
    return ok;
}

/* 舍入到 t（值仍是 f32）。 */
static float rounded(float x, DType t) {
    return t == DT_BF16 ? bf16_to_f32(f32_to_bf16(x)) : t == DT_F16 ? f16_to_f32(f32_to_f16(x)) : x;
}

/* GGUF 里 gemma 的归一化已加 1（存为 f32）：减回来舍入到模型的类型再加，与 HF 的权重相同。 */
static bool load_block_vector(Model *m, int64_t layer, const BlockVector *v, Err *e) {
    int64_t cols = v->cols ? v->cols : 1, n = v->rows * cols;
    bool split = v->split && !m->weights.is_gguf, added = v->plus_one && m->weights.is_gguf;
    float *to = *v->data = ARENA_ARRAY(&m->arena, float, n, e);
    bool ok = to != NULL;
    for (int64_t k = 0; ok && k < (split ? v->rows : 1); k++) {
        TensorSource s = layout_whole(m, v->slot, layer, k, v->suffix, split ? cols : v->rows,
                                      split ? 0 : v->cols);
        ok = load_rows(m, &s, 0, s.rows, s.cols ? s.cols : 1, added ? DT_F32 : m->dtype, false,
                       to + k * cols, e);
    }
    if (!ok || !v->plus_one) return ok;
    HostView view = host_view(m->backend);
    float *host = HOST_MAP(&view, float, to, n, HOST_BOTH);
    for (int64_t i = 0; host && i < n; i++) host[i] = (added ? rounded(host[i] - 1, m->dtype) : host[i]) + 1;
    host_end(&view);
    return backend_check(m->backend, e);
}

bool model_load_norms(Model *m, int64_t layer, Err *e) {
    const ModelConfig *c = &m->config;
    Block *b = &m->blocks[layer];
    BlockVector v[LAYOUT_MAX_VECTORS];
    if (b->loaded) return true;
    size_t n = layout_vectors(c, layer, b, v);
    for (size_t i = 0; i < n; i++)
        if (!*v[i].data && !load_block_vector(m, layer, &v[i], e)) return false;
    if (b->router) {
        if (!qtensor_new_dense(&b->router_q, &m->arena, DT_F32, c->n_experts, c->hidden, e))
            return false;
        op_pack_dense(m->backend, &b->router_q, tensor_f32(b->router, c->n_experts, c->hidden));
    }
    b->loaded = true;
    return backend_check(m->backend, e);
}

/* 可有可无的一个归一化。 */
static bool load_norm(Model *m, TensorSlot slot, float **weight, float **bias, Err *e) {
    const ModelConfig *c = &m->config;
    if (c->norm_plain || *weight) return true;
    BlockVector w = {weight, slot, ".weight", c->hidden, 0, false, c->norm_plus_one};
    BlockVector b = {bias, slot, ".bias", c->hidden, 0, false, false};
    return load_block_vector(m, 0, &w, e) &&
           (!c->arch->norm_bias || load_block_vector(m, 0, &b, e));
}

bool model_load_embed(Model *m, Err *e) {
    const ModelConfig *c = &m->config;
    int64_t d = c->hidden, places = c->max_position + c->arch->position_offset;
    bool embed_norm = (*c->arch->names)[T_EMBED_NORM], projected = c->embed_dim != d;
    if (m->ends_loaded) return true;
    if (!m->embed.data && !load_matrix(m, T_EMBED, c->vocab, d, m->head_int8, &m->embed, e)) return false;
    if (c->position == POS_LEARNED && !load_matrix(m, T_POSITION, places, d, false, &m->positions, e))
        return false;
    if (projected && (!load_matrix(m, T_PROJECT_IN, d, d, false, &m->project_in, e) ||
                      !load_matrix(m, T_PROJECT_OUT, d, d, false, &m->project_out, e)))
        return false;
    if (embed_norm && !load_norm(m, T_EMBED_NORM, &m->embed_norm, &m->embed_norm_bias, e)) return false;
    m->ends_loaded = true;
    return true;
}

/* 尚未装好的线性层按稠密装入（方法跳过的层）。 */
static bool finish_block(Model *m, int64_t layer, Err *e) {
    Block *b = &m->blocks[layer];
    if (!model_load_norms(m, layer, e)) return false;
    bool ok = true;
    for (int64_t i = 0; ok && i < b->n_linears; i++) {
        Linear *l = &b->linears[i];
        if (!l->rows || l->q.data || l->streamed) continue;
        if (!interrupt_check(e)) return false;
        if (l->packed) {
            ok = checkpoint_load(m, l, e);
            continue;
        }
        if (m->stream) {
            ok = model_stream_linear(m, l, e);
            continue;
        }
        ok = model_load_dense(m, l, model_linear_arena(m, l), e);
    }
    return ok && model_leave_block(m, layer, e);
}

bool model_measure_weights(const Model *m, const QSpec *spec, size_t *bytes, Err *e) {
    QTensor q;
    *bytes = 0;
    for (int64_t i = 0; i < m->config.n_layers; i++)
        for (int64_t k = 0; k < m->blocks[i].n_linears; k++) {
            const Linear *l = &m->blocks[i].linears[k];
            if (!l->rows) continue;
            if (!qtensor_measure(&q, spec ? DT_NONE : m->dtype, spec ? *spec : (QSpec){0}, l->rows, l->cols, e))
                return false;
            *bytes += qtensor_bytes(&q);
        }
    if (!model_measure_embed(m, &q, e)) return false;
    *bytes += qtensor_bytes(&q) * (m->config.tied ? 1 : 2);
    return true;
}

/* 不共享的头；已量化的检查点可能连它也装了包。 */
static bool load_head(Model *m, Err *e) {
    const ModelConfig *c = &m->config;
    Linear head = layout_head(m);
    if (m->own_head.data) return true;
    if (!checkpoint_is_packed(m, &head))
        return load_matrix(m, T_HEAD, c->vocab, c->hidden, m->head_int8, &m->own_head, e);
    if (!checkpoint_load(m, &head, e)) return false;
    m->own_head = head.q;
    m->head_unrounded = head.act.kind != ACT_NONE;
    return true;
}

/* 还有没装的线性层。 */
static bool lacks_linears(const Model *m) {
    for (int64_t i = 0; i < m->config.n_layers; i++)
        for (int64_t k = 0; k < m->blocks[i].n_linears; k++) {
            const Linear *l = &m->blocks[i].linears[k];
            if (l->rows && !l->q.data && !l->streamed) return true;
        }
    return false;
}

bool model_finish(Model *m, Err *e) {
    const ModelConfig *c = &m->config;
    bool shown = lacks_linears(m);
    Progress p = progress_start(LOG_LOAD, m->weights.checkpoint ? "装入已量化的权重" : "装入权重", "块", c->n_layers);
    for (int64_t i = 0; i < c->n_layers; i++) {
        if (!finish_block(m, i, e)) return false;
        if (shown) progress_step(&p, i + 1);
    }
    if (shown) progress_end(&p);
    if (!c->no_final_norm && !load_norm(m, T_FINAL_NORM, &m->final_norm, &m->final_norm_bias, e)) return false;
    if (!model_load_embed(m, e)) return false;
    m->head = &m->embed;
    if (c->tied) return true;
    m->head = &m->own_head;
    return load_head(m, e);
}

Linear *model_find_linear(Model *m, const char *name) {
    for (int64_t i = 0; i < m->config.n_layers; i++)
        for (int64_t k = 0; k < m->blocks[i].n_linears; k++) {
            Linear *l = &m->blocks[i].linears[k];
            if (l->rows && strcmp(l->name, name) == 0) return l;
        }
    return NULL;
}

void model_logits(Model *m, float *logits, const float *hidden, int64_t n) {
    const ModelConfig *c = &m->config;
    float cap = (float)c->logit_softcap;
    op_linear(m->backend, tensor_f32(logits, n, c->vocab), tensor_f32((float *)hidden, n, c->hidden),
              m->head, tensor_f32_1d(NULL, 0));
    if (!(cap > 0)) return;
    HostView v = host_view(m->backend);
    float *z = HOST_MAP(&v, float, logits, n * c->vocab, HOST_BOTH);
    for (int64_t i = 0; z && i < n * c->vocab; i++) z[i] = cap * tanhf(z[i] / cap);
    host_end(&v);
}

/* 归一化、路由之类的向量的元素个数。 */
static int64_t count_vectors(const Model *m) {
    const ModelConfig *c = &m->config;
    bool embed_norm = (*c->arch->names)[T_EMBED_NORM], weight = !c->norm_plain;
    int64_t each = weight * (1 + c->arch->norm_bias), n = each * c->hidden * (!c->no_final_norm + embed_norm);
    for (int64_t i = 0; i < c->n_layers; i++) {
        BlockVector v[LAYOUT_MAX_VECTORS];
        Block b = m->blocks[i];
        size_t k = layout_vectors(c, i, &b, v);
        while (k--) n += v[k].rows * (v[k].cols ? v[k].cols : 1);
    }
    return n;
}

ModelBytes model_bytes(const Model *m) {
    ModelBytes n = {0};
    const ModelConfig *c = &m->config;
    for (int64_t i = 0; i < c->n_layers; i++)
        for (int64_t k = 0; k < m->blocks[i].n_linears; k++) {
            const Linear *l = &m->blocks[i].linears[k];
            if (!l->rows) continue;
            n.linear_params += l->rows * l->cols;
            n.linear_bytes += qtensor_bytes(&l->q);
            if (l->q.dense == DT_NONE) {
                n.codes += l->q.data_bytes;
                n.scales += l->q.scale_bytes + l->q.table_bytes;
                n.zeros += l->q.zero_bytes;
                n.permutations += l->q.perm_bytes;
                n.outliers += l->q.outliers.bytes;
            } else {
                n.unquantized += qtensor_bytes(&l->q);
            }
            if (l->bias) n.unquantized += (size_t)l->rows * 4, n.params += l->rows;
        }
    const QTensor *ends[] = {&m->embed, c->tied ? NULL : &m->own_head};
    for (int i = 0; i < 2; i++) {
        if (!ends[i]) continue;
        if (ends[i]->dense == DT_NONE) {
            n.codes += ends[i]->data_bytes;
            n.scales += ends[i]->scale_bytes + ends[i]->table_bytes;
            n.zeros += ends[i]->zero_bytes;
            n.permutations += ends[i]->perm_bytes;
        } else {
            n.unquantized += qtensor_bytes(ends[i]);
        }
    }
    int64_t vectors = count_vectors(m);
    const QTensor *rest[] = {&m->positions, &m->project_in, &m->project_out};
    for (int i = 0; i < 3; i++) {
        n.unquantized += qtensor_bytes(rest[i]);
        if (rest[i]->data) n.params += rest[i]->rows * rest[i]->cols;
    }
    n.unquantized += (size_t)vectors * 4;
    n.params += n.linear_params + vectors + c->vocab * c->embed_dim * (c->tied ? 1 : 2);
    n.total = n.codes + n.scales + n.zeros + n.permutations + n.outliers + n.unquantized;
    return n;
}
