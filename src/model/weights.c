/* weights — 权重来源的实现
 * q/k 重排依据 llama.cpp 的转换约定：行 (头, 2·j+t) ← HF 行 (头, t·(dim/2)+j)。 */
#include "model/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int by_name(const void *a, const void *b) {
    return strcmp((*(const FileTensor *const *)a)->name, (*(const FileTensor *const *)b)->name);
}

static bool sort_tensors(WeightStore *w, Err *e) {
    for (size_t i = 0; i < w->n_shards; i++) w->n_tensors += w->shards[i].n_tensors;
    w->sorted = ARENA_ARRAY(&w->arena, const FileTensor *, w->n_tensors, e);
    w->used = ARENA_ARRAY(&w->arena, bool, w->n_tensors, e);
    if (!w->sorted || !w->used) return false;
    size_t k = 0;
    for (size_t i = 0; i < w->n_shards; i++)
        for (size_t j = 0; j < w->shards[i].n_tensors; j++)
            w->sorted[k++] = &w->shards[i].tensors[j];
    qsort(w->sorted, w->n_tensors, sizeof *w->sorted, by_name);
    for (size_t i = 1; i < w->n_tensors; i++)
        if (strcmp(w->sorted[i - 1]->name, w->sorted[i]->name) == 0)
            return err_set(e, ERR_FORMAT, "%s: 张量 '%s' 同时出现在 %s 与 %s", w->path,
                           w->sorted[i]->name, w->sorted[i - 1]->path, w->sorted[i]->path);
    return true;
}

/* 打开各分片；名字不得离开模型文件夹。 */
static bool open_shards(WeightStore *w, const char *const *files, size_t n, Err *e) {
    w->shards = ARENA_ARRAY(&w->arena, TensorFile, n, e);
    if (!w->shards) return false;
    for (size_t i = 0; i < n; i++) {
        if (strchr(files[i], '/') || files[i][0] == '.' || !files[i][0])
            return err_set(e, ERR_FORMAT, "%s: 索引中的分片名 '%s' 不合法", w->path, files[i]);
        char *path = file_join(&w->arena, w->path, files[i], e);
        if (!path) return false;
        if (!file_exists(path))
            return err_set(e, ERR_MISSING, "%s: 索引提到的分片不存在，请重新下载该文件", path);
        if (!safetensors_open(&w->shards[i], path, e)) return false;
        w->n_shards = i + 1;
    }
    return sort_tensors(w, e);
}

/* 二分查找。返回: 在 sorted 里的下标，没有为 n_tensors。 */
static size_t find_index(const WeightStore *w, const char *name) {
    size_t lo = 0, hi = w->n_tensors;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        int c = strcmp(w->sorted[mid]->name, name);
        if (c == 0) return mid;
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return w->n_tensors;
}

const FileTensor *weights_find(const WeightStore *w, const char *name) {
    size_t i = find_index(w, name);
    return i < w->n_tensors ? w->sorted[i] : NULL;
}

const FileTensor *weights_use(const WeightStore *w, const char *name) {
    size_t i = find_index(w, name);
    if (i == w->n_tensors) return NULL;
    w->used[i] = true;
    return w->sorted[i];
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* 索引中的不同文件名（排序），并核对每个张量确在它说的文件里。 */
static bool open_index(WeightStore *w, const json_t *root, const char *name, Err *e) {
    json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0)
        return err_set(e, ERR_FORMAT, "%s: 缺少 weight_map", name);
    size_t n = 0, m = 0;
    const char **files = ARENA_ARRAY(&w->arena, const char *, json_object_size(map), e);
    if (!files) return false;
    const char *key;
    json_t *v;
    json_object_foreach(map, key, v) {
        if (!json_is_string(v))
            return err_set(e, ERR_FORMAT, "%s: weight_map['%s'] 须是文件名", name, key);
        files[n] = arena_strdup(&w->arena, json_string_value(v), e);
        if (!files[n++]) return false;
    }
    qsort(files, n, sizeof *files, by_text);
    for (size_t i = 0; i < n; i++)
        if (m == 0 || strcmp(files[m - 1], files[i]) != 0) files[m++] = files[i];
    if (!open_shards(w, files, m, e)) return false;
    json_object_foreach(map, key, v) {
        const FileTensor *t = weights_find(w, key);
        const char *slash = t ? strrchr(t->path, '/') : NULL;
        if (!t || strcmp(slash ? slash + 1 : t->path, json_string_value(v)) != 0)
            return err_set(e, ERR_MISSING, "%s: 索引说张量 '%s' 在 %s，但那里没有", name, key,
                           json_string_value(v));
    }
    return true;
}

/* config.json 有 quantization_config（多模态的可能在 text_config 里）：已量化的检查点。 */
static bool open_checkpoint(WeightStore *w, const json_t *root, const char *name, Err *e) {
    const json_t *q = json_object_get(root, "quantization_config");
    if (!q || json_is_null(q)) q = json_object_get(json_object_get(root, "text_config"), "quantization_config");
    if (!q || json_is_null(q)) return true;
    CheckpointConfig *c = ARENA_NEW(&w->arena, CheckpointConfig, e);
    w->checkpoint = c;
    return c && checkpoint_parse(c, q, name, e);
}

static bool open_dir(WeightStore *w, const char *adapter, ModelConfig *config, Err *e) {
    char *cfg = file_join(&w->arena, w->path, "config.json", e);
    char *single = file_join(&w->arena, w->path, "model.safetensors", e);
    char *index = file_join(&w->arena, w->path, "model.safetensors.index.json", e);
    if (!cfg || !single || !index) return false;
    if (!file_exists(cfg))
        return err_set(e, ERR_MISSING, "%s: 不是模型文件夹（缺少 config.json）", w->path);
    json_t *root = json_load(cfg, e);
    if (!root) return false;
    bool ok = arch_from_json(config, root, cfg, adapter, e) && open_checkpoint(w, root, cfg, e);
    json_decref(root);
    if (!ok) return false;
    if (file_exists(index)) {
        root = json_load(index, e);
        ok = root && open_index(w, root, index, e);
        json_decref(root);
        return ok;
    }
    if (!file_exists(single))
        return err_set(e, ERR_MISSING,
                       "%s: 没有 model.safetensors 或 model.safetensors.index.json（只有 .bin 的模型请先转成 "
                       "safetensors）",
                       w->path);
    return open_shards(w, (const char *const[]){"model.safetensors"}, 1, e);
}

bool weights_open(WeightStore *w, const char *path, const char *adapter, ModelConfig *config,
                  Err *e) {
    *w = (WeightStore){.format = "safetensors"};
    w->path = arena_strdup(&w->arena, path, e);
    bool ok = w->path != NULL;
    if (ok && file_is_dir(path)) {
        ok = open_dir(w, adapter, config, e);
    } else if (ok) {
        w->format = "gguf";
        ok = gguf_open(&w->gguf, path, e);
        w->is_gguf = ok;
        if (ok) {
            w->shards = &w->gguf.file;
            w->n_shards = 1;
            ok = sort_tensors(w, e) && arch_from_gguf(config, &w->gguf, e);
        }
    }
    if (!ok) weights_close(w);
    return ok;
}

void weights_close(WeightStore *w) {
    if (w->is_gguf)
        gguf_close(&w->gguf);
    else
        for (size_t i = 0; i < w->n_shards; i++) tensorfile_close(&w->shards[i]);
    arena_free(&w->arena);
    *w = (WeightStore){0};
}

/* 形状的文字，如 "[128, 256]"。 */
static const char *shape_text(const FileTensor *t, char *buf, size_t cap) {
    size_t n = (size_t)snprintf(buf, cap, "[");
    for (int i = 0; i < t->n_dims && n < cap; i++)
        n += (size_t)snprintf(buf + n, cap - n, "%s%lld", i ? ", " : "", (long long)t->shape[i]);
    if (n < cap) snprintf(buf + n, cap - n, "]");
    return buf;
}

/* 多维的前几维连成行。 */
static bool same_shape(const FileTensor *t, int64_t rows, int64_t cols) {
    int64_t n = t->n_dims > 0 ? t->shape[0] : 0;
    if (!cols) return t->n_dims == 1 && n == rows;
    for (int i = 1; i + 1 < t->n_dims; i++) n *= t->shape[i];
    return t->n_dims >= 2 && n == rows && t->shape[t->n_dims - 1] == cols;
}

bool weights_check(const WeightStore *w, const TensorSource *s, Err *e) {
    size_t at = find_index(w, s->name);
    char shape[128];
    if (at == w->n_tensors) return err_set(e, ERR_MISSING, "%s: 缺少张量 '%s'", w->path, s->name);
    const FileTensor *t = w->sorted[at];
    int64_t rows = s->transposed ? s->cols : s->rows, cols = s->transposed ? s->rows : s->cols;
    w->used[at] = true;
    if (!same_shape(t, rows, cols) && cols)
        return err_set(e, ERR_FORMAT, "%s: 张量 '%s' 的形状是 %s，按配置应为 [%lld, %lld]", t->path,
                       t->name, shape_text(t, shape, sizeof shape), (long long)rows,
                       (long long)cols);
    if (!same_shape(t, rows, cols))
        return err_set(e, ERR_FORMAT, "%s: 张量 '%s' 的形状是 %s，按配置应为 [%lld]", t->path, t->name,
                       shape_text(t, shape, sizeof shape), (long long)rows);
    float probe[256];
    size_t n = dtype_block_elems(t->dtype);
    if ((cols ? cols : 1) % (int64_t)n || (s->transposed && n != 1))
        return err_set(e, ERR_UNSUPPORTED, "%s: 张量 '%s' 的行长不是 %s 块长的倍数", t->path, t->name,
                       dtype_name(t->dtype));
    if (t->bytes >= dtype_block_bytes(t->dtype) && !dtype_decode(t->dtype, t->data, probe, n))
        return err_set(e, ERR_UNSUPPORTED, "%s: 张量 '%s' 的类型 %s 不能作权重", t->path, t->name,
                       dtype_name(t->dtype));
    return true;
}

/* GGUF 中 q、k 的行换回 HF 的次序：HF 行 row 在文件中的行号。 */
static int64_t swapped_row(int64_t row, int64_t rows, int64_t heads) {
    int64_t dim = rows / heads, half = dim / 2, h = row / dim, i = row % dim;
    return h * dim + 2 * (i % half) + i / half;
}

/* 第 row 行在文件里的行号；*run 为从它起在文件里相连的行数。 */
static int64_t file_row(const TensorSource *s, int64_t row, int64_t left, int64_t *run) {
    *run = s->heads ? 1 : left;
    if (s->heads) return swapped_row(row, s->rows, s->heads);
    if (!s->block) return row;
    int64_t rest = s->block - row % s->block;
    if (rest < left) *run = rest;
    return row / s->block * s->stride + s->offset + row % s->block;
}

/* 舍入到 dtype（值仍是 f32），并查 NaN/Inf。base 是首元素在张量中的下标，用于报错。 */
static bool round_and_check(const FileTensor *t, DType dtype, float *v, size_t n, size_t base,
                            Err *e) {
    for (size_t i = 0; i < n; i++)
        if (!isfinite(v[i]))
            return err_set(e, ERR_NUMERIC, "%s: 张量 '%s' 的第 %zu 个元素是 %s，文件已损坏", t->path,
                           t->name, base + i, isnan(v[i]) ? "NaN" : "Inf");
    if (dtype == DT_BF16 && t->dtype != DT_BF16)
        for (size_t i = 0; i < n; i++) v[i] = bf16_to_f32(f32_to_bf16(v[i]));
    if (dtype == DT_F16 && t->dtype != DT_F16)
        for (size_t i = 0; i < n; i++) {
            v[i] = f16_to_f32(f32_to_f16(v[i]));
            if (!isfinite(v[i]))
                return err_set(
                    e, ERR_NUMERIC,
                    "%s: 张量 '%s' 的第 %zu 个元素超出 float16 的范围，请改用 dtype=bfloat16", t->path,
                    t->name, base + i);
        }
    return true;
}

/* 转置存放的：第 row 行是文件的一列。 */
static bool decode_column(const FileTensor *t, int64_t row, int64_t rows, size_t cols, float *out) {
    size_t item = dtype_block_bytes(t->dtype);
    for (size_t c = 0; c < cols; c++)
        if (!dtype_decode(t->dtype, (const char *)t->data + (c * (size_t)rows + (size_t)row) * item,
                          out + c, 1))
            return false;
    return true;
}

bool weights_load(const WeightStore *w, const TensorSource *s, int64_t row0, int64_t n, DType dtype,
                  float *out, Err *e) {
    if (!weights_check(w, s, e)) return false;
    const FileTensor *t = weights_find(w, s->name);
    size_t width = s->cols ? (size_t)s->cols : 1, row_bytes = t->bytes / (size_t)s->rows;
    bool ok = true;
    for (int64_t i = 0, run; ok && i < n; i += run) {
        int64_t at = file_row(s, row0 + i, n - i, &run);
        CHECK(at >= 0 && at + run <= s->rows);
        float *to = out + (size_t)i * width;
        if (s->transposed)
            for (int64_t k = 0; ok && k < run; k++)
                ok = decode_column(t, at + k, s->rows, width, to + (size_t)k * width);
        else
            ok = dtype_decode(t->dtype, (const char *)t->data + (size_t)at * row_bytes, to,
                              (size_t)run * width);
    }
    if (!ok) return err_set(e, ERR_FORMAT, "%s: 张量 '%s' 无法解码", t->path, t->name);
    return round_and_check(t, dtype, out, (size_t)n * width, (size_t)row0 * width, e);
}

const void *weights_direct(const WeightStore *w, const TensorSource *s, int64_t row0, int64_t n, DType *t) {
    Err ignored = {0};
    int64_t run = 0;
    if (s->transposed || n < 1 || !weights_check(w, s, &ignored)) return NULL;
    const FileTensor *f = weights_find(w, s->name);
    int64_t at = file_row(s, row0, n, &run);
    if (run < n || (f->dtype != DT_F32 && f->dtype != DT_F16 && f->dtype != DT_BF16)) return NULL;
    CHECK(at >= 0 && at + run <= s->rows);
    *t = f->dtype;
    return (const char *)f->data + (size_t)at * (f->bytes / (size_t)s->rows);
}

DType weights_native_dtype(const WeightStore *w) {
    DType common = DT_NONE;
    for (size_t i = 0; i < w->n_tensors; i++) {
        const FileTensor *t = w->sorted[i];
        if (t->n_dims != 2) continue;
        bool real = t->dtype == DT_F32 || t->dtype == DT_F16 || t->dtype == DT_BF16;
        if (w->checkpoint && (!real || !str_ends(t->name, ".weight"))) continue;
        if (common != DT_NONE && w->sorted[i]->dtype != common) return DT_F32;
        common = w->sorted[i]->dtype;
    }
    return common == DT_F16 || common == DT_BF16 ? common : DT_F32;
}

bool weights_sha256(const WeightStore *w, int threads, const char *cache_dir, char hex[HASH_HEX], Err *e) {
    if (w->n_shards == 1) return hash_file(w->shards[0].path, cache_dir, hex, e);
    Arena a = {0};
    const char **paths = ARENA_ARRAY(&a, const char *, w->n_shards, e);
    char(*each)[HASH_HEX] = arena_array(&a, w->n_shards, sizeof *each, e);
    for (size_t i = 0; paths && i < w->n_shards; i++) paths[i] = w->shards[i].path;
    bool ok = paths && each && hash_files(paths, w->n_shards, threads, cache_dir, each, e);
    Hash *h = ok ? hash_new() : NULL;
    if (ok && !h) ok = err_set(e, ERR_MEMORY, "内存不足");
    for (size_t i = 0; ok && i < w->n_shards; i++) hash_add(h, each[i], HASH_HEX - 1);
    if (h) hash_end(h, hex);
    arena_free(&a);
    return ok;
}
