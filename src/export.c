/* export — 写出文件夹：逐个张量决定抄原文、写量化的各部分，还是写现在的值；按分片写，内存里至多一个分片 */
#include "export.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/str.h"
#include "io/file.h"
#include "model/layout.h"

static const size_t SHARD_BYTES = (size_t)2 << 30;

/* 文件里的一个权重张量：一个线性层，或融合在一起的几个（q|k|v、gate|up），写的时候各行归位。 */
enum { MOST_MEMBERS = 3 };
typedef struct Whole {
    Linear linear; /* 名字与行数是整个张量的，存放形式的各项取自第一份 */
    Linear *member[MOST_MEMBERS];
    TensorSource source[MOST_MEMBERS];
    int n;
} Whole;

/* 要写的一个张量：原文（file）、线性层的一部分（whole）或现在的值（values，主机）。 */
typedef struct Entry {
    const char *name;
    DType dtype;
    int n_dims;
    int64_t shape[FILE_TENSOR_DIMS];
    size_t bytes;
    const FileTensor *file;
    const Whole *whole;
    int kind;
    const float *values;
    size_t shard;
} Entry;

typedef struct Export {
    Model *m;
    const ExportFormat *f;
    const char *out;
    Arena arena; /* 名字、清单、现在的值 */
    Entry *entries;
    FileTensor *list; /* 同样的张量，写成的样子 */
    size_t n, n_shards;
    const Linear *first; /* 第一个量化的 */
} Export;

static bool set_bytes(Entry *x, Err *e) {
    size_t n;
    if (!tensorfile_count(x->shape, x->n_dims, &n) || (x->bytes = dtype_bytes(x->dtype, n)) == SIZE_MAX)
        return err_set(e, ERR_FORMAT, "张量 %s 过大", x->name);
    return true;
}

/* 现在的值与文件里的不同（方法折叠过）就记下来写现在的。now 在后端内存；plus_one：文件里存的少 1。 */
static bool note_change(Export *x, Entry *to, const TensorSource *src, const float *now, bool plus_one, Err *e) {
    int64_t n = src->rows * (src->cols ? src->cols : 1);
    float *copy = ARENA_ARRAY(&x->arena, float, n, e);
    Arena tmp = {0};
    float *old = ARENA_ARRAY(&tmp, float, n, e);
    bool ok = copy && old && weights_load(&x->m->weights, src, 0, src->rows, x->m->dtype, old, e), same = true;
    if (ok) op_read(x->m->backend, copy, now, (size_t)n * sizeof *copy);
    for (int64_t i = 0; ok && i < n; i++) same = same && copy[i] == old[i] + (plus_one ? 1.0f : 0.0f);
    for (int64_t i = 0; ok && plus_one && i < n; i++) copy[i] -= 1.0f;
    if (ok && !same) {
        to->values = copy;
        to->file = NULL;
    }
    arena_free(&tmp);
    return ok && backend_check(x->m->backend, e);
}

static Entry *find_entry(Export *x, const char *name) {
    for (size_t i = 0; i < x->n; i++)
        if (strcmp(x->entries[i].name, name) == 0) return &x->entries[i];
    return NULL;
}

/* 归一化等向量：折叠过的写现在的值。 */
static bool note_vectors(Export *x, int64_t layer, Err *e) {
    BlockVector v[LAYOUT_MAX_VECTORS];
    size_t n = layout_vectors(&x->m->config, layer, &x->m->blocks[layer], v);
    for (size_t i = 0; i < n; i++) {
        if (v[i].split || !*v[i].data) continue;
        TensorSource src = layout_whole(x->m, v[i].slot, layer, 0, v[i].suffix, v[i].rows, v[i].cols);
        Entry *to = find_entry(x, src.name);
        if (to && !note_change(x, to, &src, *v[i].data, v[i].plus_one, e)) return false;
    }
    return true;
}

/* 一份的第 i 行在整个张量里的行号。 */
static int64_t whole_row(const TensorSource *s, int64_t i) {
    return s->block ? i / s->block * s->stride + s->offset + i % s->block : i;
}

/* 与 l 同在一个张量里的各份，l 是第一份。 */
static bool gather_members(Export *x, Linear *l, Whole *w, Err *e) {
    Block *b = &x->m->blocks[l->layer];
    size_t keep = 0;
    *w = (Whole){.linear = *l};
    for (int64_t i = 0; i < b->n_linears; i++) {
        Linear *k = &b->linears[i];
        TensorSource s;
        if (!k->rows) continue;
        layout_linear(x->m, k, false, &s);
        if (w->n && strcmp(s.name, w->source[0].name) != 0) continue;
        if (!w->n && k != l) continue;
        CHECK(w->n < MOST_MEMBERS);
        w->source[w->n] = s;
        w->member[w->n++] = k;
    }
    w->linear.rows = w->source[0].rows;
    if (w->n == 1) return true;
    keep = strlen(w->source[0].name) - strlen(".weight");
    w->linear.name = arena_printf(&x->arena, e, "%.*s", (int)keep, w->source[0].name);
    return w->linear.name != NULL;
}

/* 偏置：折叠过的写现在的值（融合的整个写）。 */
static bool note_bias(Export *x, const Whole *w, Err *e) {
    TensorSource s;
    layout_linear(x->m, w->member[0], true, &s);
    Entry *to = w->member[0]->bias ? find_entry(x, s.name) : NULL;
    if (!to) return true;
    float *now = ARENA_ARRAY(&x->arena, float, s.rows, e);
    Arena tmp = {0};
    bool ok = now != NULL, same = true;
    for (int k = 0; ok && k < w->n; k++) {
        const Linear *l = w->member[k];
        float *old = ARENA_ARRAY(&tmp, float, 2 * l->rows, e), *each = old + l->rows;
        layout_linear(x->m, l, true, &s);
        ok = old && weights_load(&x->m->weights, &s, 0, l->rows, x->m->dtype, old, e);
        if (!ok) break;
        op_read(x->m->backend, each, l->bias, (size_t)l->rows * sizeof *each);
        ok = backend_check(x->m->backend, e);
        for (int64_t i = 0; i < l->rows; i++) {
            same = same && each[i] == old[i];
            now[whole_row(&s, i)] = each[i];
        }
    }
    arena_free(&tmp);
    if (ok && !same) to->values = now, to->file = NULL;
    return ok;
}

/* 融合的各份须能写成一个张量：都量化了，规格相同。 */
static bool check_members(const Export *x, const Whole *w, Err *e) {
    const Linear *first = w->member[0];
    for (int i = 0; i < w->n; i++) {
        Linear l = *w->member[i];
        const QSpec *s = &l.q.spec, *t = &first->q.spec;
        if (l.q.dense != DT_NONE || s->bits != t->bits || s->group_size != t->group_size || s->zero != t->zero ||
            s->scale_dtype != t->scale_dtype || l.act.kind != first->act.kind || !l.q.perm != !first->q.perm)
            return err_set(e, ERR_UNSUPPORTED, "%s: 融合的几份的规格不同（或只量化了一部分），写不成一个张量", w->linear.name);
        l.rows = w->linear.rows;
        l.name = w->linear.name;
        if (!x->f->check(&l, e)) return false;
    }
    return true;
}

/* 一个线性层（融合的算在第一份）：量化了的换成各部分（第一部分占原来的一项，其余添在末尾）；没量化的照抄。 */
static bool note_linear(Export *x, Linear *l, Err *e) {
    TensorSource src;
    layout_linear(x->m, l, false, &src);
    if (src.block && src.offset) return true;
    Entry *to = find_entry(x, src.name);
    Whole *w = ARENA_NEW(&x->arena, Whole, e);
    if (!to) return err_set(e, ERR_MISSING, "%s: 文件里没有张量 '%s'", l->name, src.name);
    if (!w || !gather_members(x, l, w, e) || !note_bias(x, w, e)) return false;
    bool dense = true;
    for (int i = 0; i < w->n; i++) dense = dense && w->member[i]->q.dense != DT_NONE;
    if (dense) return true;
    if (src.transposed && !x->f->conv1d)
        return err_set(e, ERR_UNSUPPORTED, "%s: %s 家族的权重是转置存放的（Conv1D），%s 格式放不下；请改用 gptq、awq 或 hf-dequantized",
                       l->name, x->m->config.arch->name, x->f->name);
    if (!check_members(x, w, e)) return false;
    if (!x->first) x->first = &w->linear;
    ExportPart part[EXPORT_MAX_PARTS];
    int n = x->f->parts(&w->linear, part);
    bool turned = src.transposed && !x->f->fill;
    for (int i = 0; i < n; i++) {
        Entry *p = i == 0 ? to : &x->entries[x->n++];
        *p = (Entry){.name = arena_printf(&x->arena, e, "%s%s", w->linear.name, part[i].suffix), .dtype = part[i].dtype,
                     .n_dims = part[i].n_dims, .shape = {part[i].shape[turned], part[i].shape[!turned]}, .whole = w,
                     .kind = part[i].kind};
        if (!p->name || !set_bytes(p, e)) return false;
    }
    return true;
}

/* 写成的清单：名字、形状与所在的文件。 */
static bool list_files(Export *x, Err *e) {
    char name[64];
    x->list = ARENA_ARRAY(&x->arena, FileTensor, x->n, e);
    for (size_t i = 0; x->list && i < x->n; i++) {
        const Entry *t = &x->entries[i];
        safetensors_shard_name(name, sizeof name, t->shard, x->n_shards);
        x->list[i] = (FileTensor){.name = t->name, .dtype = t->dtype, .n_dims = t->n_dims, .bytes = t->bytes,
                                  .path = arena_strdup(&x->arena, name, e)};
        memcpy(x->list[i].shape, t->shape, sizeof t->shape);
        if (!x->list[i].path) return false;
    }
    return x->list != NULL;
}

/* 定下每个张量从哪里来，并分好片。 */
static bool list_entries(Export *x, Err *e) {
    const WeightStore *w = &x->m->weights;
    size_t linears = 0;
    for (int64_t i = 0; i < x->m->config.n_layers; i++) linears += (size_t)x->m->blocks[i].n_linears;
    x->entries = ARENA_ARRAY(&x->arena, Entry, w->n_tensors + EXPORT_MAX_PARTS * linears, e);
    if (!x->entries) return false;
    for (; x->n < w->n_tensors; x->n++) {
        const FileTensor *t = w->sorted[x->n];
        Entry *to = &x->entries[x->n];
        *to = (Entry){.name = t->name, .dtype = t->dtype, .n_dims = t->n_dims, .bytes = t->bytes, .file = t};
        memcpy(to->shape, t->shape, sizeof to->shape);
    }
    for (int64_t i = 0; i < x->m->config.n_layers; i++) {
        if (!note_vectors(x, i, e)) return false;
        for (int64_t k = 0; k < x->m->blocks[i].n_linears; k++)
            if (x->m->blocks[i].linears[k].rows && !note_linear(x, &x->m->blocks[i].linears[k], e)) return false;
    }
    size_t used = 0;
    for (size_t i = 0; i < x->n; i++) {
        if (used && used + x->entries[i].bytes > SHARD_BYTES) used = 0, x->n_shards++;
        x->entries[i].shard = x->n_shards;
        used += x->entries[i].bytes;
    }
    x->n_shards++;
    return list_files(x, e);
}

/* ---- 内容 ---- */

/* 一份的编码、缩放、零点，列换回原来的次序，行归位到整个张量 p 里。第一份先定组号，其余的须相同。 */
static bool unpack_member(const Export *x, const Whole *w, int at, PackedLinear *p, Err *e) {
    Arena a = {0};
    QTensor q;
    const Linear *l = w->member[at];
    bool ok = model_need_block(x->m, l->layer, e) && qtensor_to_host(x->m->backend, &l->q, &q, &a, e);
    for (int64_t k = 0; ok && k < q.cols; k++) {
        int64_t to = q.perm ? q.perm[k] : k;
        int32_t group = (int32_t)(k / q.spec.group_size);
        if (at == 0) ((int32_t *)p->group)[to] = group;
        if (p->group[to] != group)
            ok = err_set(e, ERR_UNSUPPORTED, "%s: 融合的几份的列序不同（act-order），写不成一个张量", w->linear.name);
        for (int64_t r = 0; ok && r < q.rows; r++)
            ((uint8_t *)p->code)[whole_row(&w->source[at], r) * q.cols + to] = (uint8_t)qtensor_code(&q, r, k);
    }
    for (int64_t i = 0; ok && i < q.rows * q.n_groups; i++) {
        int64_t to = whole_row(&w->source[at], i / q.n_groups) * q.n_groups + i % q.n_groups;
        ((float *)p->scale)[to] = qtensor_scale(&q, i / q.n_groups, i % q.n_groups);
        ((float *)p->zero)[to] = qtensor_zero(&q, i / q.n_groups, i % q.n_groups);
    }
    arena_free(&a);
    return ok;
}

static bool unpack(const Export *x, const Whole *w, PackedLinear *p, Arena *a, Err *e) {
    const Linear *l = &w->linear;
    int64_t n = l->rows * l->cols, ng = l->rows * l->q.n_groups;
    *p = (PackedLinear){l->q.spec.bits, l->rows, l->cols, l->q.spec.group_size, l->q.n_groups, l->q.spec.zero == ZERO_SYM,
                        ARENA_ARRAY(a, uint8_t, n, e), ARENA_ARRAY(a, float, ng, e), ARENA_ARRAY(a, float, ng, e),
                        ARENA_ARRAY(a, int32_t, l->cols, e)};
    bool ok = p->code && p->scale && p->zero && p->group;
    for (int i = 0; ok && i < w->n; i++) ok = unpack_member(x, w, i, p, e);
    return ok;
}

/* 各份反量化，行归位；文件里转置存放的写成转置的。 */
static bool dequantize(const Export *x, const Whole *w, float *dst, Err *e) {
    Backend *b = x->m->backend;
    bool ok = true;
    for (int k = 0; ok && k < w->n; k++) {
        const Linear *l = w->member[k];
        const TensorSource *s = &w->source[k];
        Arena a = backend_arena(b), host = {0};
        int64_t n = l->rows * l->cols;
        float *back = model_need_block(x->m, l->layer, e) ? ARENA_ARRAY(&a, float, n, e) : NULL;
        float *v = ARENA_ARRAY(&host, float, n, e);
        ok = back && v;
        if (ok) {
            op_dequantize(b, tensor_f32(back, l->rows, l->cols), &l->q);
            op_read(b, v, back, (size_t)n * sizeof *v);
            ok = backend_check(b, e);
        }
        for (int64_t r = 0; ok && r < l->rows; r++)
            for (int64_t c = 0, to = whole_row(s, r); c < l->cols; c++)
                dst[s->transposed ? c * s->rows + to : to * l->cols + c] = v[r * l->cols + c];
        arena_free(&a);
        arena_free(&host);
    }
    return ok;
}

/* 现在的值舍入到张量的类型。 */
static bool round_values(const Entry *t, void *dst, Err *e) {
    size_t n = t->bytes / dtype_block_bytes(t->dtype);
    for (size_t i = 0; i < n; i++) {
        float v = t->values[i];
        if (t->dtype == DT_F32)
            ((float *)dst)[i] = v;
        else if (t->dtype == DT_BF16)
            ((uint16_t *)dst)[i] = f32_to_bf16(v);
        else if (t->dtype == DT_F16 && isfinite(f16_to_f32(f32_to_f16(v))))
            ((uint16_t *)dst)[i] = f32_to_f16(v);
        else
            return err_set(e, ERR_NUMERIC, "%s: 折叠后的值 %g 写不进 %s", t->name, (double)v, dtype_name(t->dtype));
    }
    return true;
}

/* 一个分片的各张量，直接指向映射或在 a 里造出来。 */
static bool contents(const Export *x, size_t shard, FilePart *parts, size_t *n, Arena *a, Err *e) {
    for (size_t i = 0; i < x->n; i++) {
        const Entry *t = &x->entries[i];
        if (t->shard != shard) continue;
        if (!interrupt_check(e)) return false;
        FilePart *p = &parts[(*n)++];
        *p = (FilePart){t->file ? t->file->data : NULL, t->bytes};
        if (t->file || !t->bytes) continue;
        void *dst = arena_alloc(a, t->bytes, e);
        p->data = dst;
        Arena tmp = {0};
        PackedLinear l;
        bool ok = dst != NULL;
        if (ok && t->values)
            ok = round_values(t, dst, e);
        else if (ok && !x->f->fill)
            ok = dequantize(x, t->whole, dst, e);
        else if (ok && (ok = unpack(x, t->whole, &l, &tmp, e)))
            x->f->fill(&l, t->kind, dst);
        arena_free(&tmp);
        if (!ok) return false;
    }
    return true;
}

static bool write_shard(Export *x, size_t shard, Err *e) {
    char name[64];
    Arena a = {0};
    FilePart *parts = ARENA_ARRAY(&a, FilePart, x->n + 1, e);
    safetensors_shard_name(name, sizeof name, shard, x->n_shards);
    char *path = file_join(&a, x->out, name, e);
    size_t n = 1;
    bool ok = parts && path && safetensors_header(x->list, x->n, name, &a, parts, e) && contents(x, shard, parts, &n, &a, e) &&
              file_write_parts(path, parts, n, e);
    arena_free(&a);
    return ok;
}

/* ---- 旁边的文件 ---- */

static bool write_json(const char *dir, const char *name, json_t *root, Err *e) {
    Arena a = {0};
    char *path = file_join(&a, dir, name, e), *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    bool ok = path && (text || err_set(e, ERR_MEMORY, "内存不足")) && file_write_atomic(path, text, strlen(text), e);
    free(text);
    json_decref(root);
    arena_free(&a);
    return ok;
}

static bool write_index(const Export *x, Err *e) {
    return x->n_shards == 1 || safetensors_save_index(x->out, x->list, x->n, e);
}

/* 分词器、生成设置等：源文件夹里的小文件原样抄过去。 */
static bool copy_side_files(const Export *x, Err *e) {
    static const char *const KINDS[] = {".json", ".txt", ".model", ".jinja"};
    Arena a = {0};
    bool ok = true;
    for (size_t k = 0; ok && k < sizeof KINDS / sizeof *KINDS; k++) {
        char **names;
        size_t n;
        ok = file_list(&a, x->m->weights.path, KINDS[k], &names, &n, e);
        for (size_t i = 0; ok && i < n; i++) {
            if (strcmp(names[i], "config.json") == 0 || strstr(names[i], ".index.json")) continue;
            char *from = file_join(&a, x->m->weights.path, names[i], e), *to = file_join(&a, x->out, names[i], e);
            FileMap map;
            ok = from && to && file_map(&map, from, e);
            if (!ok) break;
            ok = file_write_atomic(to, map.data, map.size, e);
            file_unmap(&map);
        }
    }
    arena_free(&a);
    return ok;
}

static bool write_config(const Export *x, Err *e) {
    Arena a = {0};
    char *path = file_join(&a, x->m->weights.path, "config.json", e);
    json_t *root = path ? json_load(path, e) : NULL;
    arena_free(&a);
    if (!root) return false;
    if (x->f->config && x->first) {
        json_object_set_new(root, "quantization_config", x->f->config(x->m, x->first));
    } else {
        const char *key = json_object_get(root, "dtype") ? "dtype" : "torch_dtype";
        json_object_set_new(root, key, json_string("float32"));
    }
    return write_json(x->out, "config.json", root, e);
}

static bool check_target(const Export *x, Err *e) {
    Arena a = {0};
    char **names;
    size_t n = 0;
    if (x->m->weights.is_gguf)
        return err_set(e, ERR_UNSUPPORTED, "%s: 导出要从 HF 文件夹开始（GGUF 里没有 config.json 与 tokenizer.json）",
                       x->m->weights.path);
    if (x->m->head_int8)
        return err_set(e, ERR_UNSUPPORTED, "head_quant=int8 时词嵌入也量化了，这些格式都放不下；请用 head_quant=none");
    bool ok = file_mkdirs(x->out, e) && file_list(&a, x->out, "", &names, &n, e);
    arena_free(&a);
    return ok && (n == 0 || err_set(e, ERR_USAGE, "%s: 文件夹不是空的，请换一个", x->out));
}

bool export_model(Model *m, const ExportFormat *f, const char *out, Err *e) {
    Export x = {.m = m, .f = f, .out = out};
    bool ok = check_target(&x, e) && list_entries(&x, e) &&
              (x.first || err_set(e, ERR_USAGE, "没有一个线性层是量化的，不必导出（方法是 fp16 或只量化键值缓存？）"));
    for (size_t i = 0; ok && i < x.n_shards; i++) ok = write_shard(&x, i, e);
    ok = ok && write_index(&x, e) && copy_side_files(&x, e) && write_config(&x, e);
    arena_free(&x.arena);
    return ok;
}
