/* export_gguf — GGUF 的张量
 * 名字与读时同一张表（layout_gguf_name）；融合的 q|k|v、gate|up 与各专家堆成一个，llama 样子的 q、k 按 llama.cpp 的约定把行换成
 * 交错旋转的次序。没有量化的矩阵照源文件的类型，归一化、偏置与路由是 f32（gemma 的已加 1）。超参数在 export_gguf_meta.c。 */
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
    bool plan; /* 只列名字与形状，内容还没有 */
} Out;

/* 写成一个张量的几个线性层，依次堆叠。 */
typedef struct Stack {
    TensorSlot slot;
    const Linear **of;
    int64_t n, rows;
} Stack;

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

/* 添一个张量。参数: shape 的后几维可为 0（没有）；to 非 NULL 且不是 plan 时在 arena 里备下内容。 */
static bool add(Out *o, DType type, const int64_t shape[3], void **to, const char *name, Err *e) {
    GgufTensor *t = &o->t[o->n++];
    size_t n = (size_t)shape[0];
    *t = (GgufTensor){.name = arena_strdup(&o->arena, name, e), .dtype = type, .n_dims = 1};
    t->shape[0] = shape[0];
    for (int i = 1; i < 3 && shape[i]; i++, n *= (size_t)t->shape[t->n_dims++]) t->shape[i] = shape[i];
    t->bytes = dtype_bytes(type, n);
    CHECK(t->bytes != SIZE_MAX);
    if (!t->name || !to || o->plan) return t->name != NULL;
    t->data = *to = arena_alloc(&o->arena, t->bytes, e);
    return t->data != NULL;
}

/* f32 的向量或小矩阵（后端内存）。 */
static bool add_floats(Out *o, const char *name, const float *v, int64_t rows, int64_t cols, Err *e) {
    void *to;
    if (!add(o, DT_F32, (int64_t[]){rows, cols, 0}, &to, name, e) || o->plan) return !e->code;
    op_read(o->m->backend, to, v, o->t[o->n - 1].bytes);
    return backend_check(o->m->backend, e);
}

/* 源文件里的矩阵原样（词嵌入、位置、头）。 */
static bool add_raw(Out *o, TensorSlot slot, const char *name, Err *e) {
    char from[192];
    layout_name(o->m, slot, 0, 0, ".weight", from, sizeof from);
    const FileTensor *f = weights_find(&o->m->weights, from);
    if (!f || f->n_dims != 2 || (f->dtype != DT_F32 && f->dtype != DT_F16 && f->dtype != DT_BF16))
        return err_set(e, ERR_UNSUPPORTED, "张量 '%s' 不是 F32、F16 或 BF16 的矩阵，写不进 GGUF", from);
    bool ok = add(o, f->dtype, (int64_t[]){f->shape[0], f->shape[1], 0}, NULL, name, e);
    o->t[o->n - 1].data = f->data;
    return ok;
}

/* 没有量化或放不进块类型的：反量化，舍入到 type。 */
static bool fill_dense(Out *o, const Linear *l, DType type, uint8_t *to, Err *e) {
    Backend *b = o->m->backend;
    Arena dev = backend_arena(b), host = {0};
    int64_t n = l->rows * l->cols, heads = heads_of(o->m, l);
    float *w = ARENA_ARRAY(&dev, float, n, e), *x = w ? ARENA_ARRAY(&host, float, n, e) : NULL;
    bool ok = x != NULL;
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
    arena_free(&dev);
    arena_free(&host);
    return ok;
}

static bool fill_blocks(Out *o, const Linear *l, DType type, uint8_t *to, Err *e) {
    Arena tmp = {0};
    QTensor q;
    size_t row = dtype_bytes(type, (size_t)l->cols);
    bool ok = qtensor_to_host(o->m->backend, &l->q, &q, &tmp, e);
    for (int64_t r = 0; ok && r < l->rows; r++)
        if (!gguf_encode_row(&q, type, source_row(r, l->rows, heads_of(o->m, l)), to + (size_t)r * row))
            ok = err_set(e, ERR_NUMERIC, "%s: 第 %lld 行的缩放超出 float16 的范围", l->name, (long long)r);
    arena_free(&tmp);
    return ok && interrupt_check(e);
}

/* 线性层写进 GGUF 的哪个张量。 */
static TensorSlot slot_of(const ModelConfig *c, const Linear *l) {
    TensorSlot s = (TensorSlot)l->slot;
    if (s >= T_Q && s <= T_V && c->fused_qkv != FUSED_NONE) return T_QKV;
    return (s == T_GATE || s == T_UP) && c->fused_gate_up ? T_GATE_UP : s;
}

/* 与 l 同在一个张量里的各线性层；l 不是第一个则 n 为 0（已经写了）。 */
static bool gather(Out *o, const Block *b, const Linear *l, Stack *s, Err *e) {
    *s = (Stack){.slot = slot_of(&o->m->config, l), .of = ARENA_ARRAY(&o->arena, const Linear *, b->n_linears, e)};
    for (int64_t i = 0; s->of && i < b->n_linears; i++) {
        const Linear *k = &b->linears[i];
        if (!k->rows || slot_of(&o->m->config, k) != s->slot) continue;
        if (k < l) s->n = 0;
        if (k < l) return true;
        s->of[s->n++] = k;
        s->rows += k->rows;
    }
    return s->of != NULL;
}

/* 各份合用的类型：都相同就是它，否则 F16。 */
static DType type_of(const Out *o, const Stack *s) {
    DType type = DT_F16;
    for (int64_t i = 0; !o->plan && i < s->n; i++) {
        const QTensor *q = &s->of[i]->q;
        DType t = q->dense == DT_NONE ? gguf_block_type(q) : q->dense;
        if (i && t != type) return DT_F16;
        type = t;
    }
    return type;
}

static bool add_stack(Out *o, const Stack *s, const char *name, Err *e) {
    bool experts = s->slot >= T_EXPERT_GATE && s->slot <= T_EXPERT_DOWN;
    int64_t cols = s->of[0]->cols, rows = s->of[0]->rows;
    DType type = type_of(o, s);
    void *to;
    if (!add(o, type, experts ? (int64_t[]){s->n, rows, cols} : (int64_t[]){s->rows, cols, 0}, &to, name, e)) return false;
    uint8_t *at = to;
    for (int64_t i = 0; !o->plan && i < s->n; i++) {
        const Linear *l = s->of[i];
        bool blocks = type != DT_F16 && type != DT_BF16 && type != DT_F32;
        if (l->act.kind != ACT_NONE || l->out.kind != ACT_NONE)
            return err_set(e, ERR_UNSUPPORTED, "%s: 激活也量化了，GGUF 放不下；请改用 --format compressed-tensors", l->name);
        if (!(blocks ? fill_blocks(o, l, type, at, e) : fill_dense(o, l, type, at, e))) return false;
        at += dtype_bytes(type, (size_t)(l->rows * l->cols));
        o->counts[type]++;
    }
    return true;
}

static bool add_bias(Out *o, const Stack *s, const char *name, Err *e) {
    void *data;
    Arena tmp = {0};
    if (!s->of[0]->has_bias) return true;
    if (!add(o, DT_F32, (int64_t[]){s->rows, 0, 0}, &data, name, e) || o->plan) return !e->code;
    float *to = data;
    bool ok = true;
    for (int64_t i = 0; ok && i < s->n; to += s->of[i++]->rows) {
        const Linear *l = s->of[i];
        float *raw = ARENA_ARRAY(&tmp, float, l->rows, e);
        if (!(ok = raw != NULL)) break;
        op_read(o->m->backend, raw, l->bias, (size_t)l->rows * sizeof *raw);
        ok = backend_check(o->m->backend, e);
        for (int64_t r = 0; r < l->rows; r++) to[r] = raw[source_row(r, l->rows, heads_of(o->m, l))];
    }
    arena_free(&tmp);
    return ok;
}

static bool add_block(Out *o, int64_t layer, Err *e) {
    const ModelConfig *c = &o->m->config;
    Block *b = &o->m->blocks[layer];
    char name[96];
    BlockVector v[LAYOUT_MAX_VECTORS];
    size_t n = layout_vectors(c, layer, b, v);
    if (!o->plan && !model_need_block(o->m, layer, e)) return false;
    for (size_t i = 0; i < n; i++) {
        layout_gguf_name(c, v[i].slot, layer, v[i].suffix, name, sizeof name);
        if (!add_floats(o, name, *v[i].data, v[i].rows, v[i].cols, e)) return false;
    }
    for (int64_t i = 0; i < b->n_linears; i++) {
        Stack s = {0};
        if (!b->linears[i].rows) continue;
        if (!gather(o, b, &b->linears[i], &s, e)) return false;
        if (!s.n) continue;
        layout_gguf_name(c, s.slot, layer, ".weight", name, sizeof name);
        if (!add_stack(o, &s, name, e)) return false;
        layout_gguf_name(c, s.slot, layer, ".bias", name, sizeof name);
        if (!add_bias(o, &s, name, e)) return false;
    }
    return true;
}

/* llama3 的旋转：各频率的除数另存一个张量。 */
static void llama3_factors(const RopeConfig *r, float *to) {
    double pi = acos(-1.0), low = (double)r->original_max_position / r->low_freq_factor;
    double high = (double)r->original_max_position / r->high_freq_factor;
    for (int64_t i = 0; i < r->rotary_dim / 2; i++) {
        double wave = 2 * pi * pow(r->theta, 2.0 * (double)i / (double)r->rotary_dim);
        double mix = ((double)r->original_max_position / wave - r->low_freq_factor) / (r->high_freq_factor - r->low_freq_factor);
        to[i] = (float)(wave < high ? 1 : wave > low ? r->factor : 1 / ((1 - mix) / r->factor + mix));
    }
}

static bool add_rope(Out *o, Err *e) {
    const RopeConfig *r = &o->m->config.rope;
    void *to, *other;
    const int64_t shape[3] = {r->rotary_dim / 2, 0, 0};
    if (r->kind == ROPE_LLAMA3) {
        if (!add(o, DT_F32, shape, &to, "rope_freqs.weight", e)) return false;
        if (!o->plan) llama3_factors(r, to);
    }
    if (r->kind != ROPE_LONGROPE) return true;
    if (!add(o, DT_F32, shape, &to, "rope_factors_long.weight", e) ||
        !add(o, DT_F32, shape, &other, "rope_factors_short.weight", e))
        return false;
    if (o->plan) return true;
    memcpy(to, r->long_factor, (size_t)shape[0] * sizeof(float));
    memcpy(other, r->short_factor, (size_t)shape[0] * sizeof(float));
    return true;
}

/* 词嵌入（连同它的归一化）、学得的位置、最后的归一化与头。 */
static bool add_ends(Out *o, Err *e) {
    const Model *m = o->m;
    const ModelConfig *c = &m->config;
    bool embed_norm = (*c->arch->names)[T_EMBED_NORM], bias = c->arch->norm_bias;
    if (!add_raw(o, T_EMBED, "token_embd.weight", e) ||
        (c->position == POS_LEARNED && !add_raw(o, T_POSITION, "position_embd.weight", e)))
        return false;
    const struct {
        bool use;
        const char *name;
        const float *v;
    } norms[] = {{true, "output_norm.weight", m->final_norm}, {bias, "output_norm.bias", m->final_norm_bias},
                 {embed_norm, "token_embd_norm.weight", m->embed_norm},
                 {embed_norm && bias, "token_embd_norm.bias", m->embed_norm_bias}};
    for (size_t i = 0; i < sizeof norms / sizeof *norms; i++)
        if (norms[i].use && !add_floats(o, norms[i].name, norms[i].v, c->hidden, 0, e)) return false;
    if (c->tied && !gguf_needs_head(c)) return true;
    return add_raw(o, c->tied ? T_EMBED : T_HEAD, "output.weight", e);
}

/* 全部张量；plan 时只有名字与形状。 */
static bool collect(Out *o, Err *e) {
    const ModelConfig *c = &o->m->config;
    size_t most = 10;
    for (int64_t i = 0; i < c->n_layers; i++) most += LAYOUT_MAX_VECTORS + 2 * (size_t)o->m->blocks[i].n_linears;
    bool ok = (o->t = ARENA_ARRAY(&o->arena, GgufTensor, most, e)) && add_ends(o, e);
    for (int64_t i = 0; ok && i < c->n_layers; i++) ok = add_block(o, i, e);
    return ok && add_rope(o, e);
}

bool export_gguf_check(Model *m, const char *out, Err *e) {
    size_t n = strlen(out);
    if (m->weights.is_gguf) return err_set(e, ERR_UNSUPPORTED, "%s: 导出要从 HF 文件夹开始", m->weights.path);
    if (n < 6 || strcmp(out + n - 5, ".gguf") != 0)
        return err_set(e, ERR_USAGE, "--out '%s': gguf 格式写成一个文件，名字应以 .gguf 结尾", out);
    if (file_exists(out)) return err_set(e, ERR_USAGE, "%s: 已经存在，请换一个", out);
    if (!gguf_check_family(m, e)) return false;
    Out o = {.m = m, .plan = true};
    GgufWriter w = {0};
    gguf_put_model(&w, &m->config, "");
    bool ok = collect(&o, e) && gguf_check_reread(&w, o.t, o.n, m, e);
    gguf_writer_free(&w);
    arena_free(&o.arena);
    return ok;
}

bool export_gguf(Model *m, const Tokenizer *t, const char *name, const char *out, Err *e) {
    Out o = {.m = m};
    GgufWriter w = {0};
    gguf_put_model(&w, &m->config, name);
    bool ok = gguf_put_tokenizer(&w, t, m->weights.path, m->config.vocab, e) && collect(&o, e) &&
              gguf_save(&w, o.t, o.n, out, e);
    if (ok)
        log_line(LOG_INFO, "线性层：%zu 个 Q4_0，%zu 个 Q4_1，%zu 个 Q8_0，%zu 个不成块（F16、BF16、F32）", o.counts[DT_Q4_0],
                 o.counts[DT_Q4_1], o.counts[DT_Q8_0], o.counts[DT_F16] + o.counts[DT_BF16] + o.counts[DT_F32]);
    gguf_writer_free(&w);
    arena_free(&o.arena);
    return ok;
}
