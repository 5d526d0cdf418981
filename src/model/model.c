/* model — 打开、装载、清点
 * 每次只解码一个张量到临时内存，装成存放形式后即丢弃映射页，所以峰值 = 装好的权重 + 最大的一个张量。 */
#include "model/model.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "model/rope.h"

static const char *const ROLE_SUFFIX[ROLE_COUNT] = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};

static void role_shape(const ModelConfig *c, LinearRole role, int64_t *rows, int64_t *cols) {
    int64_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    switch (role) {
    case ROLE_Q: *rows = q, *cols = c->hidden; break;
    case ROLE_K:
    case ROLE_V: *rows = kv, *cols = c->hidden; break;
    case ROLE_O: *rows = c->hidden, *cols = q; break;
    case ROLE_DOWN: *rows = c->hidden, *cols = c->intermediate; break;
    default: *rows = c->intermediate, *cols = c->hidden; break;
    }
}

static bool role_has_bias(const ModelConfig *c, LinearRole role) {
    return role <= ROLE_V ? c->q_bias : role == ROLE_O ? c->o_bias : c->mlp_bias;
}

/* 名字 + 后缀，放在静态长度的缓冲里。 */
typedef struct Name {
    char text[160];
} Name;
static Name layer_name(int64_t layer, const char *what) {
    Name n;
    snprintf(n.text, sizeof n.text, "model.layers.%lld.%s", (long long)layer, what);
    return n;
}
static Name with_suffix(const char *base, const char *suffix) {
    Name n;
    snprintf(n.text, sizeof n.text, "%s%s", base, suffix);
    return n;
}

static bool describe_block(Model *m, int64_t layer, Err *e) {
    const ModelConfig *c = &m->config;
    Block *b = &m->blocks[layer];
    if (!weights_check(&m->weights, layer_name(layer, "input_layernorm.weight").text, c->hidden, 0,
                       e) ||
        !weights_check(&m->weights, layer_name(layer, "post_attention_layernorm.weight").text,
                       c->hidden, 0, e))
        return false;
    for (LinearRole r = 0; r < ROLE_COUNT; r++) {
        Linear *l = &b->linears[r];
        *l = (Linear){.role = r, .layer = (int)layer};
        l->name = arena_strdup(&m->meta, layer_name(layer, ROLE_SUFFIX[r]).text, e);
        if (!l->name) return false;
        role_shape(c, r, &l->rows, &l->cols);
        if (!weights_check(&m->weights, with_suffix(l->name, ".weight").text, l->rows, l->cols, e))
            return false;
        if (role_has_bias(c, r) &&
            !weights_check(&m->weights, with_suffix(l->name, ".bias").text, l->rows, 0, e))
            return false;
    }
    return true;
}

bool model_open(Model *m, const char *path, DType dtype, Backend *b, Err *e) {
    *m = (Model){.backend = b, .arena = backend_arena(b), .stream_arena = backend_arena(b),
                 .stream_layer = -1};
    if (!weights_open(&m->weights, path, &m->config, e)) return false;
    const ModelConfig *c = &m->config;
    m->dtype = dtype == DT_NONE ? weights_native_dtype(&m->weights) : dtype;
    m->blocks = ARENA_ARRAY(&m->meta, Block, c->n_layers, e);
    bool ok = m->blocks &&
              weights_check(&m->weights, "model.embed_tokens.weight", c->vocab, c->hidden, e) &&
              weights_check(&m->weights, "model.norm.weight", c->hidden, 0, e) &&
              (c->tied ||
               weights_check(&m->weights, "lm_head.weight", c->vocab, c->hidden, e)) &&
              rope_init(m, e);
    for (int64_t i = 0; ok && i < c->n_layers; i++) ok = describe_block(m, i, e);
    if (!ok) model_close(m);
    return ok;
}

void model_close(Model *m) {
    weights_close(&m->weights);
    for (int64_t i = 0; m->blocks && i < m->config.n_layers; i++)
        if (m->blocks[i].file.data) file_unmap(&m->blocks[i].file);
    arena_free(&m->stream_arena);
    arena_free(&m->arena);
    arena_free(&m->meta);
    *m = (Model){0};
}

/* 张量的第 row0 行起 n 行解码到 w（后端内存）；cols 为 0 是一维。 */
static bool load_rows(Model *m, const char *name, int64_t rows, int64_t cols, int64_t row0,
                      int64_t n, float *w, Err *e) {
    HostView v = host_view(m->backend);
    float *host = HOST_MAP(&v, float, w, n * (cols ? cols : 1), HOST_WRITE);
    bool ok = host && weights_load_rows(&m->weights, name, rows, cols, row0, n, m->dtype, host, e);
    host_end(&v);
    return backend_check(m->backend, e) && ok;
}

static bool load_vector(Model *m, const char *name, int64_t n, float **out, Err *e) {
    *out = ARENA_ARRAY(&m->arena, float, n, e);
    return *out && load_rows(m, name, n, 0, 0, n, *out, e);
}

bool model_load_linear(Model *m, Linear *l, float *w, Err *e) {
    double t = clock_seconds();
    Name weight = with_suffix(l->name, ".weight");
    if (role_has_bias(&m->config, l->role) && !l->bias &&
        !load_vector(m, with_suffix(l->name, ".bias").text, l->rows, &l->bias, e))
        return false;
    if (!load_rows(m, weight.text, l->rows, l->cols, 0, l->rows, w, e)) return false;
    weights_drop(&m->weights, weight.text);
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

/* 载入一个 (rows, cols) 的矩阵（词嵌入、头），分段解码，不让整个 f32 副本同时存在。 */
static bool load_matrix(Model *m, const char *name, int64_t rows, int64_t cols, QTensor *q,
                        Err *e) {
    if (!(m->head_int8 ? qtensor_new(q, &m->arena, HEAD_SPEC, rows, cols, e)
                       : qtensor_new_dense(q, &m->arena, m->dtype, rows, cols, e)))
        return false;
    int64_t step = ((int64_t)1 << 21) / cols / QT_PANEL * QT_PANEL;
    if (step < QT_PANEL) step = QT_PANEL;
    Arena tmp = backend_arena(m->backend);
    double t = clock_seconds();
    float *w = ARENA_ARRAY(&tmp, float, step * cols, e);
    bool ok = w != NULL;
    for (int64_t r = 0; ok && r < rows; r += step) {
        int64_t n = rows - r < step ? rows - r : step;
        QTensor part = rows_of(q, r, n);
        ok = load_rows(m, name, rows, cols, r, n, w, e) &&
             pack_rows(m, &part, tensor_f32(w, n, cols), &tmp, e);
    }
    arena_free(&tmp);
    weights_drop(&m->weights, name);
    m->load_seconds += clock_seconds() - t;
    return ok;
}

bool model_load_norms(Model *m, int64_t layer, Err *e) {
    Block *b = &m->blocks[layer];
    if (b->mlp_norm) return true;
    return load_vector(m, layer_name(layer, "input_layernorm.weight").text, m->config.hidden,
                       &b->attn_norm, e) &&
           load_vector(m, layer_name(layer, "post_attention_layernorm.weight").text,
                       m->config.hidden, &b->mlp_norm, e);
}

bool model_load_embed(Model *m, Err *e) {
    const ModelConfig *c = &m->config;
    return m->embed.data || load_matrix(m, "model.embed_tokens.weight", c->vocab, c->hidden,
                                        &m->embed, e);
}

/* 尚未装好的线性层按稠密装入（方法跳过的层）。 */
static bool finish_block(Model *m, int64_t layer, Err *e) {
    Block *b = &m->blocks[layer];
    if (!model_load_norms(m, layer, e)) return false;
    Arena tmp = backend_arena(m->backend);
    bool ok = true;
    for (LinearRole r = 0; ok && r < ROLE_COUNT; r++) {
        Linear *l = &b->linears[r];
        if (l->q.data || l->streamed) continue;
        if (m->stream) {
            if (!model_stream_linear(m, l, e)) return false;
            continue;
        }
        ArenaMark mark = arena_mark(&tmp);
        float *w = ARENA_ARRAY(&tmp, float, l->rows * l->cols, e);
        ok = w && model_load_linear(m, l, w, e) && model_pack_linear(m, l, w, &m->arena, e);
        arena_rewind(&tmp, mark);
    }
    arena_free(&tmp);
    return ok;
}

bool model_stream_linear(Model *m, Linear *l, Err *e) {
    l->streamed = true;
    if (m->stream_layer == l->layer) m->stream_layer = -1;
    return qtensor_measure(&l->q, m->dtype, (QSpec){0}, l->rows, l->cols, e);
}

bool model_need_block(Model *m, int64_t layer, Err *e) {
    if (!m->stream || m->stream_layer == layer) return true;
    Linear *now = m->blocks[layer].linears;
    for (LinearRole r = 0; m->stream_layer >= 0 && r < ROLE_COUNT; r++) {
        Linear *old = &m->blocks[m->stream_layer].linears[r];
        if (old->streamed) old->q.data = NULL;
    }
    arena_free(&m->stream_arena);
    m->stream_layer = layer;
    for (LinearRole r = 0; r < ROLE_COUNT; r++) {
        Linear *l = &now[r];
        if (!l->streamed) continue;
        Arena tmp = backend_arena(m->backend);
        float *w = ARENA_ARRAY(&tmp, float, l->rows * l->cols, e);
        bool ok = w && model_load_linear(m, l, w, e) &&
                  model_pack_linear(m, l, w, &m->stream_arena, e);
        arena_free(&tmp);
        if (!ok) return false;
    }
    return true;
}

bool model_finish(Model *m, Err *e) {
    const ModelConfig *c = &m->config;
    for (int64_t i = 0; i < c->n_layers; i++)
        if (!finish_block(m, i, e)) return false;
    if (!m->final_norm && !load_vector(m, "model.norm.weight", c->hidden, &m->final_norm, e))
        return false;
    if (!model_load_embed(m, e)) return false;
    m->head = &m->embed;
    if (c->tied) return true;
    m->head = &m->own_head;
    return m->own_head.data ||
           load_matrix(m, "lm_head.weight", c->vocab, c->hidden, &m->own_head, e);
}

Linear *model_find_linear(Model *m, const char *name) {
    for (int64_t i = 0; i < m->config.n_layers; i++)
        for (LinearRole r = 0; r < ROLE_COUNT; r++)
            if (strcmp(m->blocks[i].linears[r].name, name) == 0) return &m->blocks[i].linears[r];
    return NULL;
}

ModelBytes model_bytes(const Model *m) {
    ModelBytes n = {0};
    const ModelConfig *c = &m->config;
    for (int64_t i = 0; i < c->n_layers; i++)
        for (LinearRole r = 0; r < ROLE_COUNT; r++) {
            const Linear *l = &m->blocks[i].linears[r];
            n.linear_params += l->rows * l->cols;
            n.linear_bytes += qtensor_bytes(&l->q);
            if (l->q.dense == DT_NONE) {
                n.codes += l->q.data_bytes;
                n.scales += l->q.scale_bytes;
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
        if (m->head_int8) {
            n.codes += ends[i]->data_bytes;
            n.scales += ends[i]->scale_bytes;
        } else {
            n.unquantized += qtensor_bytes(ends[i]);
        }
    }
    int64_t norms = (2 * c->n_layers + 1) * c->hidden;
    n.unquantized += (size_t)norms * 4;
    n.params += n.linear_params + norms + c->vocab * c->hidden * (c->tied ? 1 : 2);
    n.total = n.codes + n.scales + n.zeros + n.permutations + n.outliers + n.unquantized;
    return n;
}
