/* checkpoint — 已量化的检查点的共同部分：找张量、拆开融合的、排好 act-order 的列、装进面板 */
#include "model/checkpoint.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "model/layout.h"

const DType PACKED_INT32[] = {DT_I32, DT_U32, DT_NONE}, PACKED_REALS[] = {DT_F16, DT_BF16, DT_F32, DT_NONE},
            PACKED_U8[] = {DT_U8, DT_NONE}, PACKED_I8[] = {DT_I8, DT_NONE};

/* ---- 张量 ---- */

static void full_name(const PackedSource *s, const char *suffix, char *out, size_t cap) {
    snprintf(out, cap, "%s%s", s->module, suffix);
}

const FileTensor *packed_find(const PackedSource *s, const char *suffix) {
    char name[256];
    full_name(s, suffix, name, sizeof name);
    return weights_find(s->w, name);
}

static bool check_tensor(const FileTensor *t, const DType *types, int64_t rows, int64_t cols, Err *e) {
    bool typed = false;
    for (int i = 0; types[i] != DT_NONE; i++) typed |= t->dtype == types[i];
    if (!typed)
        return err_set(e, ERR_FORMAT, "%s: 张量 '%s' 的类型是 %s，应为 %s%s", t->path, t->name, dtype_name(t->dtype),
                       dtype_name(types[0]), types[1] != DT_NONE ? " 之类" : "");
    if (t->n_dims > 2 || (rows && (t->n_dims != (cols ? 2 : 1) || t->shape[0] != rows || (cols && t->shape[1] != cols)))) {
        char want[64], have[96] = "";
        snprintf(want, sizeof want, cols ? "[%lld, %lld]" : "[%lld]", (long long)rows, (long long)cols);
        for (int i = 0; i < t->n_dims && strlen(have) < 72; i++)
            snprintf(have + strlen(have), sizeof have - strlen(have), "%s%lld", i ? ", " : "", (long long)t->shape[i]);
        return err_set(e, ERR_FORMAT, "%s: 张量 '%s' 的形状是 [%s]，按 quantization_config 与模型的形状应为 %s", t->path,
                       t->name, have, rows ? want : "至多两维");
    }
    return true;
}

bool packed_optional(const PackedSource *s, const char *suffix, const DType *types, int64_t rows, int64_t cols,
                     const FileTensor **out, Err *e) {
    char name[256];
    full_name(s, suffix, name, sizeof name);
    *out = weights_use(s->w, name);
    return !*out || check_tensor(*out, types, rows, cols, e);
}

const FileTensor *packed_tensor(const PackedSource *s, const char *suffix, const DType *types, int64_t rows,
                                int64_t cols, Err *e) {
    const FileTensor *t;
    if (!packed_optional(s, suffix, types, rows, cols, &t, e)) return NULL;
    if (!t) err_set(e, ERR_MISSING, "%s: 缺少张量 '%s%s'（%s 的检查点）", s->w->path, s->module, suffix, checkpoint_name(s->c->kind));
    return t;
}

float *packed_floats(const FileTensor *t, size_t n, Arena *a, Err *e) {
    float *x = arena_array(a, n, sizeof *x, e);
    if (!x) return NULL;
    CHECK(t->bytes >= n * dtype_block_bytes(t->dtype) && dtype_decode(t->dtype, t->data, x, n));
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i])) {
            err_set(e, ERR_NUMERIC, "%s: 张量 '%s' 的第 %zu 个元素不是有限的数，文件已损坏", t->path, t->name, i);
            return NULL;
        }
    return x;
}

bool packed_groups(const PackedSource *s, PackedModule *p, int64_t group_size, int64_t n_groups, Err *e) {
    p->spec.group_size = group_size;
    p->spec.group_size = qspec_group_size(&p->spec, s->cols);
    p->n_groups = (s->cols - 1) / p->spec.group_size + 1;
    return p->n_groups == n_groups ||
           err_set(e, ERR_FORMAT, "%s: '%s' 的缩放每行 %lld 组，而 %lld 列按组宽 %lld 应有 %lld 组", s->w->path, s->module,
                   (long long)n_groups, (long long)s->cols, (long long)p->spec.group_size, (long long)p->n_groups);
}

/* ---- 模块 ---- */

static UnpackFn *const UNPACK[CKPT_KINDS] = {unpack_gptq, unpack_awq, unpack_compressed, unpack_bitsandbytes,
                                             unpack_hqq};

/* 线性层在哪个模块里；module 有 256 字节。 */
static PackedSource source_of(const Model *m, const Linear *l, TensorSource *src, char *module) {
    layout_linear(m, l, false, src);
    snprintf(module, 256, "%.*s", (int)(strlen(src->name) - strlen(".weight")), src->name);
    return (PackedSource){.w = (WeightStore *)&m->weights, .c = m->weights.checkpoint, .module = module,
                          .rows = src->rows, .cols = src->cols};
}

bool checkpoint_is_packed(const Model *m, const Linear *l) {
    static const char *const MARK[CKPT_KINDS] = {".qweight", ".qweight", ".weight_packed", ".weight.absmax", ".W_q"};
    TensorSource src;
    char module[256];
    if (!m->weights.checkpoint) return false;
    PackedSource s = source_of(m, l, &src, module);
    if (packed_find(&s, MARK[s.c->kind])) return true;
    const FileTensor *w = packed_find(&s, ".weight");
    bool int8 = w && w->dtype == DT_I8, f8 = w && (w->dtype == DT_F8_E4M3 || w->dtype == DT_F8_E5M2);
    return (s.c->kind == CKPT_COMPRESSED && (int8 || f8)) || (s.c->kind == CKPT_BITSANDBYTES && int8);
}

static bool unpack(const Model *m, const Linear *l, TensorSource *src, PackedModule *p, Arena *a, Err *e) {
    char module[256];
    PackedSource s = source_of(m, l, src, module);
    *p = (PackedModule){0};
    bool words = s.c->kind == CKPT_GPTQ || s.c->kind == CKPT_AWQ; /* 这两种总是 (输出, 输入)，与原来是否转置无关 */
    if (src->transposed && !words)
        return err_set(e, ERR_UNSUPPORTED, "%s: 权重转置存放的家族（%s）的 %s 检查点不支持", l->name, m->config.arch->name,
                       checkpoint_name(s.c->kind));
    return UNPACK[s.c->kind](&s, p, a, e);
}

/* AutoGPTQ 给没有偏置的层也存全零的偏置。 */
static bool check_spare_bias(const Model *m, const Linear *l, Err *e) {
    TensorSource src;
    if (l->has_bias) return true;
    layout_linear(m, l, true, &src);
    const FileTensor *t = weights_use(&m->weights, src.name);
    for (size_t i = 0; t && i < t->bytes; i++)
        if (((const uint8_t *)t->data)[i])
            return err_set(e, ERR_FORMAT, "%s: 张量 '%s' 不是零，而 %s 家族的这一层没有偏置", t->path, t->name,
                           m->config.arch->name);
    return true;
}

bool checkpoint_check(const Model *m, const Linear *l, Err *e) {
    TensorSource src;
    PackedModule p;
    return unpack(m, l, &src, &p, NULL, e) && check_spare_bias(m, l, e);
}

bool checkpoint_measure(const Model *m, const Linear *l, QTensor *q, Err *e) {
    TensorSource src;
    PackedModule p;
    return unpack(m, l, &src, &p, NULL, e) && qtensor_measure(q, DT_NONE, p.spec, l->rows, l->cols, e);
}

/* ---- 装入 ---- */

static int64_t file_row(const TensorSource *s, int64_t row) {
    return s->block ? row / s->block * s->stride + s->offset + row % s->block : row;
}

/* 按组号把列排成依次的组（组内保持原序）：第 k 列是原来的 perm[k] 列。原来就依次的返回 true 而 *perm 为 NULL。 */
static bool sort_columns(const Linear *l, const PackedModule *p, Arena *a, int32_t **perm, Err *e) {
    *perm = NULL;
    if (!p->group) return true;
    int64_t *next = ARENA_ARRAY(a, int64_t, p->n_groups, e);
    int32_t *to = ARENA_ARRAY(a, int32_t, l->cols, e);
    if (!next || !to) return false;
    bool same = true;
    for (int64_t g = 0; g < p->n_groups; g++) next[g] = g * p->spec.group_size;
    for (int64_t c = 0; c < l->cols; c++) {
        int32_t g = p->group[c];
        if (g < 0 || g >= p->n_groups)
            return err_set(e, ERR_FORMAT, "%s: 第 %lld 列的组号（g_idx）是 %d，只有 %lld 组", l->name, (long long)c, g,
                           (long long)p->n_groups);
        int64_t end = (g + 1) * p->spec.group_size;
        if (next[g] >= (end < l->cols ? end : l->cols))
            return err_set(e, ERR_FORMAT, "%s: 组号（g_idx）里第 %d 组多于组宽 %lld 列", l->name, g,
                           (long long)p->spec.group_size);
        same &= next[g] == c;
        to[next[g]++] = (int32_t)c;
    }
    if (!same) *perm = to;
    return true;
}

/* 嵌套缩放展开成 f32：拆开后行不相连的用不了共用的外层。 */
static bool flatten_nested(const PackedModule *p, int64_t rows, Arena *a, float **scale, Err *e) {
    int64_t n = rows * p->n_groups;
    if (!(*scale = ARENA_ARRAY(a, float, n, e))) return false;
    for (int64_t i = 0; i < n; i++)
        (*scale)[i] = p->nested_table[p->scale_code[i]] * p->outer[i / p->nested.per] + p->nested.offset;
    return true;
}

typedef struct Fill {
    QTensor *q;
    const PackedModule *p;
    const TensorSource *src;
    const int32_t *perm;
    const float *scale;
    uint8_t *rows; /* (面板补齐的行, cols) 排好的编码 */
} Fill;

/* 一个面板：编码、缩放、零点。 */
static void fill_panel(void *ctx, int64_t panel) {
    const Fill *f = ctx;
    const PackedModule *p = f->p;
    QTensor *q = f->q;
    int64_t end = (panel + 1) * QT_PANEL < q->rows ? (panel + 1) * QT_PANEL : q->rows;
    for (int64_t r = panel * QT_PANEL; r < end; r++) {
        int64_t from = file_row(f->src, r);
        const uint8_t *code = p->code + from * q->cols;
        uint8_t *to = f->rows + r * q->cols;
        for (int64_t c = 0; c < q->cols; c++) to[c] = code[f->perm ? f->perm[c] : c];
        for (int64_t g = 0; g < q->n_groups; g++) {
            if (q->nested.per)
                qtensor_set_stat_code(q, STAT_SCALE, r, g, p->scale_code[from * q->n_groups + g]);
            else
                qtensor_set_scale(q, r, g, f->scale[from * q->n_groups + g]);
            if (q->spec.zero != ZERO_SYM) qtensor_set_zero(q, r, g, p->zero[from * q->n_groups + g]);
        }
    }
    qtensor_pack_panel(q, panel, f->rows + panel * QT_PANEL * q->cols);
}

/* 零点全是正中：就是对称的，不必存。 */
static bool is_symmetric(const PackedModule *p, int64_t n) {
    float middle = (float)(1 << (p->spec.bits - 1));
    for (int64_t i = 0; p->zero && i < n; i++)
        if (p->zero[i] != middle) return false;
    return true;
}

static bool build(Model *m, Linear *l, const TensorSource *src, PackedModule *p, Arena *tmp, Err *e) {
    QTensor q;
    int32_t *perm;
    bool separate = m->backend->separate, joined = !src->block || l->rows <= src->block;
    Arena *home = separate ? tmp : model_linear_arena(m, l);
    float *scale = p->scale;
    if (p->spec.zero == ZERO_INT && is_symmetric(p, src->rows * p->n_groups)) p->spec.zero = ZERO_SYM;
    if (!sort_columns(l, p, tmp, &perm, e)) return false;
    if (p->scale_code && !joined && !flatten_nested(p, src->rows, tmp, &scale, e)) return false;
    if (p->scale_code && joined) {
        int64_t first = file_row(src, 0) * p->n_groups;
        p->nested.first = first;
        if (!qtensor_new_nested(&q, home, p->spec, p->nested, l->rows, l->cols, e)) return false;
        qtensor_set_nested(&q, p->nested_table, p->outer + first / p->nested.per);
    } else if (!qtensor_new(&q, home, p->spec, l->rows, l->cols, e)) {
        return false;
    }
    if (p->table && !qtensor_set_table(&q, home, p->table, e)) return false;
    if (perm && !qtensor_set_perm(&q, home, perm, e)) return false;
    int64_t panels = (l->rows - 1) / QT_PANEL + 1;
    Fill f = {&q, p, src, perm, scale, ARENA_ARRAY(tmp, uint8_t, panels * QT_PANEL * l->cols, e)};
    if (!f.rows) return false;
    m->backend->ops->parallel(m->backend, panels, fill_panel, &f);
    return (!separate || qtensor_to_backend(m->backend, &q, model_linear_arena(m, l), e)) && linear_set_quantized(l, &q);
}

bool checkpoint_load(Model *m, Linear *l, Err *e) {
    double t = clock_seconds();
    TensorSource src = {0};
    PackedModule p = {0};
    Arena tmp = {0};
    bool ok = model_load_bias(m, l, e) && unpack(m, l, &src, &p, &tmp, e) && build(m, l, &src, &p, &tmp, e);
    arena_free(&tmp);
    l->act = ok ? p.act : (ActQuant){0};
    if (ok && l->act.form == ACT_INT && !linear_int8_accepts(&l->q)) l->act.form = ACT_VALUES;
    if (ok && l->act.group && l->cols % l->act.group)
        ok = err_set(e, ERR_FORMAT, "%s: 激活的 group_size %lld 不整除列数 %lld", l->name, (long long)l->act.group,
                     (long long)l->cols);
    m->load_seconds += clock_seconds() - t;
    return ok || err_wrap(e, "%s", l->name);
}

/* ---- 结果 ---- */

const char *checkpoint_note(const Model *m) {
    const CheckpointConfig *c = m->weights.checkpoint;
    bool mixed = false;
    for (int64_t i = 0; c && i < m->blocks[0].n_linears; i++)
        mixed |= m->blocks[0].linears[i].act.form == ACT_MIXED;
    if (m->head_unrounded) return "检查点的 lm_head 也要求激活取整；这里 lm_head 的激活不取整，其余各层照检查点的";
    if (mixed)
        return "LLM.int8 的离群列由一次喂入的全部输入定：这里是一条序列的（与批大小为 1 时的 bitsandbytes 相同），与怎样分批无关";
    return NULL;
}

json_t *checkpoint_json(const Model *m) {
    static const char *const ACT[] = {"none", "per_token", "per_tensor", "static"};
    static const char *const FORMS[] = {"int8", "int8", "fp8_e4m3", "llm_int8"};
    static const char *const CODES[] = {"int", "table", "fp8_e4m3", "fp8_e5m2"};
    json_t *o = json_object();
    const Linear *l = NULL;
    for (int64_t i = 0; i < m->config.n_layers && !l; i++)
        for (int64_t k = 0; k < m->blocks[i].n_linears && !l; k++)
            if (m->blocks[i].linears[k].packed) l = &m->blocks[i].linears[k];
    if (!m->weights.checkpoint || !l) return o;
    const QSpec *s = &l->q.spec;
    json_object_set_new(o, "checkpoint.format", json_string(checkpoint_name(m->weights.checkpoint->kind)));
    json_object_set_new(o, "weight.w_bits", json_integer(s->bits));
    json_object_set_new(o, "weight.group_size", json_integer(l->q.n_groups == 1 ? -1 : s->group_size));
    json_object_set_new(o, "weight.scheme", json_string(s->zero == ZERO_SYM ? "symmetric" : "asymmetric"));
    if (s->zero == ZERO_FLOAT) json_object_set_new(o, "weight.zero_point", json_string("float"));
    json_object_set_new(o, "weight.codes", json_string(CODES[s->codes]));
    json_object_set_new(o, "weight.scale_dtype",
                        json_string(l->q.nested.per            ? "nested"
                                    : s->scale_dtype == DT_F16 ? "float16"
                                    : s->scale_dtype == DT_F32 ? "float32"
                                                               : "bfloat16"));
    if (l->q.perm) json_object_set_new(o, "weight.act_order", json_true());
    if (l->act.kind == ACT_NONE) return o;
    json_object_set_new(o, "activation.scheme", json_string(ACT[l->act.kind]));
    json_object_set_new(o, "activation.codes", json_string(FORMS[l->act.form]));
    if (l->act.group) json_object_set_new(o, "activation.group_size", json_integer(l->act.group));
    if (l->act.form == ACT_MIXED) json_object_set_new(o, "activation.threshold", json_real((double)l->act.threshold));
    return o;
}
