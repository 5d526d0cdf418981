/* export_gguf — GGUF 的张量与超参数
 * 名字依 llama.cpp；llama 家族的 q、k 按它的约定把行换成交错旋转的次序。没有量化的矩阵照源文件的类型，归一化与偏置是 f32。 */
#include "export_gguf.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "io/file.h"
#include "model/layout.h"

enum { BLOCK = 32 };

/* ---- 块 ---- */

DType gguf_block_type(const QTensor *q) {
    const QSpec *s = &q->spec;
    bool grid = s->codes == CODE_INT && !q->perm && !q->outliers.start && !q->two.scale_bits && !q->two.zero_bits;
    bool whole = q->n_groups == 1 || s->group_size % BLOCK == 0;
    if (!grid || !whole || q->cols % BLOCK) return DT_F16;
    if (s->zero == ZERO_SYM) return s->bits <= 4 ? DT_Q4_0 : DT_Q8_0;
    if (s->bits <= 4) return DT_Q4_1;
    return s->zero == ZERO_INT && s->bits < 8 ? DT_Q8_0 : DT_F16;
}

/* f16 的小端两字节；溢出为假。 */
static bool put_half(uint8_t *dst, float v) {
    uint16_t h = f32_to_f16(v);
    dst[0] = (uint8_t)h;
    dst[1] = (uint8_t)(h >> 8);
    return isfinite(f16_to_f32(h));
}

bool gguf_encode_row(const QTensor *q, DType type, int64_t row, uint8_t *dst) {
    bool ok = true;
    for (int64_t k = 0; k < q->cols; k += BLOCK, dst += dtype_block_bytes(type)) {
        int64_t g = k / q->spec.group_size;
        float scale = qtensor_scale(q, row, g), zero = qtensor_zero(q, row, g);
        int code[BLOCK], middle = type == DT_Q4_1 ? 0 : (int)zero;
        for (int i = 0; i < BLOCK; i++) code[i] = qtensor_code(q, row, k + i) - middle;
        ok &= put_half(dst, scale);
        if (type == DT_Q4_1) ok &= put_half(dst + 2, -scale * zero);
        uint8_t *to = dst + (type == DT_Q4_1 ? 4 : 2);
        for (int i = 0; type == DT_Q8_0 && i < BLOCK; i++) to[i] = (uint8_t)(int8_t)code[i];
        int up = type == DT_Q4_0 ? 8 : 0;
        for (int i = 0; type != DT_Q8_0 && i < BLOCK / 2; i++)
            to[i] = (uint8_t)((code[i] + up) | (code[i + BLOCK / 2] + up) << 4);
    }
    return ok;
}

/* ---- 张量 ---- */

typedef struct Out {
    Model *m;
    Arena arena;
    GgufTensor *t;
    size_t n, counts[DT_COUNT]; /* 各类型的线性层数 */
} Out;

/* llama.cpp 的行次序：第 r 行取 HF 的哪一行。heads 为 0 即不换。 */
static int64_t source_row(int64_t r, int64_t rows, int64_t heads) {
    if (!heads) return r;
    int64_t dim = rows / heads, half = dim / 2, i = r % dim;
    return r / dim * dim + i % 2 * half + i / 2;
}

static int64_t heads_of(const Model *m, const Linear *l) {
    const ModelConfig *c = &m->config;
    if (!c->arch->gguf_permuted_qk || (l->role != ROLE_Q && l->role != ROLE_K)) return 0;
    return l->role == ROLE_Q ? c->n_heads : c->n_kv_heads;
}

static GgufTensor *add(Out *o, DType type, int64_t rows, int64_t cols, void **data, Err *e, const char *name) {
    GgufTensor *t = &o->t[o->n++];
    size_t n = (size_t)(rows * (cols ? cols : 1));
    *t = (GgufTensor){.name = arena_strdup(&o->arena, name, e), .dtype = type, .n_dims = cols ? 2 : 1, .shape = {rows, cols},
                      .bytes = dtype_bytes(type, n)};
    CHECK(t->bytes != SIZE_MAX);
    if (data) t->data = *data = arena_alloc(&o->arena, t->bytes, e);
    return t->name && (!data || t->data) ? t : NULL;
}

/* f32 的向量（后端内存），行可换次序。 */
static bool add_vector(Out *o, const char *name, const float *v, int64_t n, int64_t heads, Err *e) {
    float *to, *raw;
    if (!v) return true;
    if (!(raw = ARENA_ARRAY(&o->arena, float, n, e)) || !add(o, DT_F32, n, 0, (void **)&to, e, name)) return false;
    op_read(o->m->backend, raw, v, (size_t)n * sizeof *raw);
    for (int64_t i = 0; i < n; i++) to[i] = raw[source_row(i, n, heads)];
    return backend_check(o->m->backend, e);
}

/* 源文件里的矩阵原样（词嵌入、头）。 */
static bool add_raw(Out *o, TensorSlot slot, const char *name, Err *e) {
    char from[192];
    layout_name(o->m, slot, 0, 0, ".weight", from, sizeof from);
    const FileTensor *f = weights_find(&o->m->weights, from);
    if (!f || f->n_dims != 2 || (f->dtype != DT_F32 && f->dtype != DT_F16 && f->dtype != DT_BF16))
        return err_set(e, ERR_UNSUPPORTED, "张量 '%s' 不是 F32、F16 或 BF16 的矩阵，写不进 GGUF", from);
    GgufTensor *t = add(o, f->dtype, f->shape[0], f->shape[1], NULL, e, name);
    if (t) t->data = f->data;
    return t != NULL;
}

/* 没有量化或放不进块类型的：反量化成 F16（没有量化而源是 F32、BF16 的照源）。 */
static bool add_dense(Out *o, const Linear *l, const char *name, Err *e) {
    Backend *b = o->m->backend;
    Arena dev = backend_arena(b), host = {0};
    DType type = l->q.dense == DT_NONE ? DT_F16 : l->q.dense;
    int64_t n = l->rows * l->cols, heads = heads_of(o->m, l);
    float *w = ARENA_ARRAY(&dev, float, n, e), *x = w ? ARENA_ARRAY(&host, float, n, e) : NULL;
    void *to;
    bool ok = x && add(o, type, l->rows, l->cols, &to, e, name);
    if (ok) {
        op_dequantize(b, tensor_f32(w, l->rows, l->cols), &l->q);
        op_read(b, x, w, (size_t)n * sizeof *x);
        ok = backend_check(b, e);
    }
    for (int64_t i = 0; ok && i < n; i++) {
        float v = x[source_row(i / l->cols, l->rows, heads) * l->cols + i % l->cols];
        if (type == DT_F32)
            ((float *)to)[i] = v;
        else
            ((uint16_t *)to)[i] = type == DT_F16 ? f32_to_f16(v) : f32_to_bf16(v);
        if (type == DT_F16 && !isfinite(f16_to_f32(((uint16_t *)to)[i])))
            ok = err_set(e, ERR_NUMERIC, "%s: 权重超出 float16 的范围", l->name);
    }
    o->counts[type]++;
    arena_free(&dev);
    arena_free(&host);
    return ok;
}

static bool add_linear(Out *o, const Linear *l, const char *name, Err *e) {
    DType type = l->q.dense == DT_NONE ? gguf_block_type(&l->q) : DT_F16;
    if (l->act.kind != ACT_NONE || l->out.kind != ACT_NONE)
        return err_set(e, ERR_UNSUPPORTED, "%s: 激活也量化了，GGUF 放不下；请改用 --format compressed-tensors", l->name);
    if (l->q.dense != DT_NONE || type == DT_F16) return add_dense(o, l, name, e);
    Arena tmp = {0};
    QTensor q;
    uint8_t *to;
    size_t row = dtype_bytes(type, (size_t)l->cols);
    bool ok = qtensor_to_host(o->m->backend, &l->q, &q, &tmp, e) && add(o, type, l->rows, l->cols, (void **)&to, e, name);
    for (int64_t r = 0; ok && r < l->rows; r++)
        if (!gguf_encode_row(&q, type, source_row(r, l->rows, heads_of(o->m, l)), to + (size_t)r * row))
            ok = err_set(e, ERR_NUMERIC, "%s: 第 %lld 行的缩放超出 float16 的范围", l->name, (long long)r);
    o->counts[type]++;
    arena_free(&tmp);
    return ok && interrupt_check(e);
}

static bool add_block(Out *o, int64_t layer, Err *e) {
    static const char *const ROLE[ROLE_COUNT] = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"};
    const ModelConfig *c = &o->m->config;
    const Block *b = &o->m->blocks[layer];
    char name[96];
    const struct {
        const char *name;
        const float *v;
        int64_t n;
    } norms[] = {{"attn_norm", b->attn_norm, c->hidden}, {"ffn_norm", b->mlp_norm, c->hidden},
                 {"attn_q_norm", b->q_norm, c->head_dim}, {"attn_k_norm", b->k_norm, c->head_dim}};
    for (size_t i = 0; i < sizeof norms / sizeof *norms; i++) {
        snprintf(name, sizeof name, "blk.%lld.%s.weight", (long long)layer, norms[i].name);
        if (!add_vector(o, name, norms[i].v, norms[i].n, 0, e)) return false;
    }
    for (int r = 0; r < ROLE_COUNT; r++) {
        const Linear *l = &b->linears[r];
        snprintf(name, sizeof name, "blk.%lld.%s.weight", (long long)layer, ROLE[r]);
        if (!add_linear(o, l, name, e)) return false;
        snprintf(name, sizeof name, "blk.%lld.%s.bias", (long long)layer, ROLE[r]);
        if (!add_vector(o, name, l->bias, l->rows, heads_of(o->m, l), e)) return false;
    }
    return true;
}

/* llama3 的旋转：各频率的除数另存一个张量。 */
static bool add_rope(Out *o, Err *e) {
    const RopeConfig *r = &o->m->config.rope;
    int64_t n = r->rotary_dim / 2;
    float *to;
    if (r->kind != ROPE_LLAMA3) return true;
    if (!add(o, DT_F32, n, 0, (void **)&to, e, "rope_freqs.weight")) return false;
    double pi = acos(-1.0), low = (double)r->original_max_position / r->low_freq_factor;
    double high = (double)r->original_max_position / r->high_freq_factor;
    for (int64_t i = 0; i < n; i++) {
        double wave = 2 * pi * pow(r->theta, 2.0 * (double)i / (double)r->rotary_dim);
        double mix = ((double)r->original_max_position / wave - r->low_freq_factor) / (r->high_freq_factor - r->low_freq_factor);
        to[i] = (float)(wave < high ? 1 : wave > low ? r->factor : 1 / ((1 - mix) / r->factor + mix));
    }
    return true;
}

/* ---- 超参数 ---- */

static void put_sizes(GgufWriter *w, const ModelConfig *c, const char *arch, const char *name) {
    const struct {
        const char *key;
        int64_t v;
    } ints[] = {{"block_count", c->n_layers}, {"context_length", c->max_position}, {"embedding_length", c->hidden},
                {"feed_forward_length", c->intermediate}, {"attention.head_count", c->n_heads},
                {"attention.head_count_kv", c->n_kv_heads}, {"attention.key_length", c->head_dim},
                {"attention.value_length", c->head_dim}, {"rope.dimension_count", c->rope.rotary_dim}, {"vocab_size", c->vocab}};
    char key[96];
    gguf_put_string(w, "general.architecture", arch, strlen(arch));
    gguf_put_string(w, "general.name", name, strlen(name));
    gguf_put_u32(w, "general.quantization_version", 2);
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
        snprintf(key, sizeof key, "%s.%s", arch, ints[i].key);
        gguf_put_u32(w, key, (uint32_t)ints[i].v);
    }
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", arch);
    gguf_put_f32(w, key, (float)c->norm_eps);
    snprintf(key, sizeof key, "%s.rope.freq_base", arch);
    gguf_put_f32(w, key, (float)c->rope.theta);
}

/* 写得出的家族：超参数与 llama 同形的三种。 */
static bool check_model(const Model *m, const char *out, const char **arch, Err *e) {
    static const char *const FAMILIES[] = {"llama", "qwen2", "qwen3"};
    const ModelConfig *c = &m->config;
    *arch = NULL;
    for (size_t i = 0; i < sizeof FAMILIES / sizeof *FAMILIES; i++)
        if (strcmp(c->arch->name, FAMILIES[i]) == 0) *arch = FAMILIES[i];
    const char *why = !*arch                                                           ? "这个家族"
                      : c->rope.kind != ROPE_DEFAULT && c->rope.kind != ROPE_LLAMA3    ? "这种旋转位置（rope_scaling）"
                      : c->sliding_window                                              ? "滑动窗口"
                      : m->head_int8                                                   ? "head_quant=int8"
                      : !c->tied && m->own_head.dense == DT_NONE                       ? "量化过的 lm_head"
                                                                                       : NULL;
    if (why)
        return err_set(e, ERR_UNSUPPORTED, "%s: %s还不能写成 GGUF（支持 llama、qwen2、qwen3）", m->weights.path, why);
    if (m->weights.is_gguf)
        return err_set(e, ERR_UNSUPPORTED, "%s: 导出要从 HF 文件夹开始", m->weights.path);
    size_t n = strlen(out);
    if (n < 6 || strcmp(out + n - 5, ".gguf") != 0)
        return err_set(e, ERR_USAGE, "--out '%s': gguf 格式写成一个文件，名字应以 .gguf 结尾", out);
    return !file_exists(out) || err_set(e, ERR_USAGE, "%s: 已经存在，请换一个", out);
}

bool export_gguf(Model *m, const Tokenizer *t, const char *name, const char *out, Err *e) {
    const char *arch;
    if (!check_model(m, out, &arch, e)) return false;
    Out o = {.m = m};
    GgufWriter w = {0};
    o.t = ARENA_ARRAY(&o.arena, GgufTensor, 4 + m->config.n_layers * (4 + 2 * ROLE_COUNT), e);
    put_sizes(&w, &m->config, arch, name);
    bool ok = o.t && gguf_put_tokenizer(&w, t, m->weights.path, m->config.vocab, e) &&
              add_raw(&o, T_EMBED, "token_embd.weight", e);
    for (int64_t i = 0; ok && i < m->config.n_layers; i++) ok = add_block(&o, i, e);
    ok = ok && add_vector(&o, "output_norm.weight", m->final_norm, m->config.hidden, 0, e) && add_rope(&o, e) &&
         (m->config.tied || add_raw(&o, T_HEAD, "output.weight", e)) && gguf_save(&w, o.t, o.n, out, e);
    if (ok)
        log_line(LOG_INFO, "线性层：%zu 个 Q4_0，%zu 个 Q4_1，%zu 个 Q8_0，%zu 个不成块（F16、BF16、F32）", o.counts[DT_Q4_0],
                 o.counts[DT_Q4_1], o.counts[DT_Q8_0], o.counts[DT_F16] + o.counts[DT_BF16] + o.counts[DT_F32]);
    gguf_writer_free(&w);
    arena_free(&o.arena);
    return ok;
}
