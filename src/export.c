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

/* 要写的一个张量：原文（file）、线性层的一部分（linear）或现在的值（values，主机）。 */
typedef struct Entry {
    const char *name;
    DType dtype;
    int n_dims;
    int64_t shape[FILE_TENSOR_DIMS];
    size_t bytes;
    const FileTensor *file;
    Linear *linear;
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

/* 一个线性层：量化了的换成各部分（第一部分占原来的一项，其余添在末尾）；没量化而变了的写现在的值。 */
static bool note_linear(Export *x, Linear *l, Err *e) {
    TensorSource src;
    layout_linear(x->m, l, false, &src);
    Entry *to = find_entry(x, src.name);
    if (!to || src.block || src.transposed)
        return err_set(e, ERR_UNSUPPORTED, "%s: %s 家族的张量是融合或转置存放的，还不能导出", l->name,
                       x->m->config.arch->name);
    TensorSource bias;
    layout_linear(x->m, l, true, &bias);
    Entry *b = l->bias ? find_entry(x, bias.name) : NULL;
    if (b && !note_change(x, b, &bias, l->bias, false, e)) return false;
    if (l->q.dense != DT_NONE) return true;
    if (!x->first) x->first = l;
    ExportPart part[EXPORT_MAX_PARTS];
    if (!x->f->check(l, e)) return false;
    int n = x->f->parts(l, part);
    for (int i = 0; i < n; i++) {
        Entry *p = i == 0 ? to : &x->entries[x->n++];
        *p = (Entry){.name = arena_printf(&x->arena, e, "%s%s", l->name, part[i].suffix), .dtype = part[i].dtype,
                     .n_dims = part[i].n_dims, .shape = {part[i].shape[0], part[i].shape[1]}, .linear = l,
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

/* 量化的线性层的编码、缩放、零点，列换回原来的次序。 */
static bool unpack(const Export *x, const Linear *l, PackedLinear *p, Arena *a, Err *e) {
    QTensor q;
    if (!model_need_block(x->m, l->layer, e) || !qtensor_to_host(x->m->backend, &l->q, &q, a, e)) return false;
    int64_t n = q.rows * q.cols, ng = q.rows * q.n_groups;
    uint8_t *code = ARENA_ARRAY(a, uint8_t, n, e);
    float *scale = ARENA_ARRAY(a, float, ng, e), *zero = ARENA_ARRAY(a, float, ng, e);
    int32_t *group = ARENA_ARRAY(a, int32_t, q.cols, e);
    if (!code || !scale || !zero || !group) return false;
    for (int64_t k = 0; k < q.cols; k++) {
        int64_t to = q.perm ? q.perm[k] : k;
        group[to] = (int32_t)(k / q.spec.group_size);
        for (int64_t r = 0; r < q.rows; r++) code[r * q.cols + to] = (uint8_t)qtensor_code(&q, r, k);
    }
    for (int64_t i = 0; i < ng; i++) {
        scale[i] = qtensor_scale(&q, i / q.n_groups, i % q.n_groups);
        zero[i] = qtensor_zero(&q, i / q.n_groups, i % q.n_groups);
    }
    *p = (PackedLinear){q.spec.bits, q.rows, q.cols, q.spec.group_size, q.n_groups, q.spec.zero == ZERO_SYM,
                        code, scale, zero, group};
    return true;
}

static bool dequantize(const Export *x, const Linear *l, float *dst, Err *e) {
    Backend *b = x->m->backend;
    Arena a = backend_arena(b);
    int64_t n = l->rows * l->cols;
    float *w = model_need_block(x->m, l->layer, e) ? ARENA_ARRAY(&a, float, n, e) : NULL;
    if (w) {
        op_dequantize(b, tensor_f32(w, l->rows, l->cols), &l->q);
        op_read(b, dst, w, (size_t)n * sizeof *w);
    }
    arena_free(&a);
    return w && backend_check(b, e);
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
            ok = dequantize(x, t->linear, dst, e);
        else if (ok && (ok = unpack(x, t->linear, &l, &tmp, e)))
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
