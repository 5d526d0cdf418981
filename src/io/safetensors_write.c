/* safetensors_write — .safetensors 的头、分片的名字与索引
 * 数据由调用者写（来源各不相同：映射、算出来的、随机数）；这里只保证头与索引同张量的清单一致。 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/json.h"
#include "io/tensorfile.h"

enum { ALIGN_HEADER = 8 };

void safetensors_shard_name(char *buf, size_t cap, size_t shard, size_t n_shards) {
    if (n_shards == 1)
        snprintf(buf, cap, "model.safetensors");
    else
        snprintf(buf, cap, "model-%05zu-of-%05zu.safetensors", shard + 1, n_shards);
}

/* 名字 → {dtype, shape, data_offsets}；at 是它在数据区的位置。 */
static json_t *entry_json(const FileTensor *t, size_t at) {
    json_t *shape = json_array();
    for (int d = 0; d < t->n_dims; d++) json_array_append_new(shape, json_integer(t->shape[d]));
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype_name(t->dtype), "shape", shape, "data_offsets",
                     (json_int_t)at, (json_int_t)(at + t->bytes));
}

bool safetensors_header(const FileTensor *t, size_t n, const char *file, Arena *a, FilePart *out, Err *e) {
    json_t *root = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    size_t at = 0;
    for (size_t i = 0; root && i < n; i++) {
        if (strcmp(t[i].path, file) != 0) continue;
        json_object_set_new(root, t[i].name, entry_json(&t[i], at));
        at += t[i].bytes;
    }
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    if (!text) return err_set(e, ERR_MEMORY, "内存不足");
    size_t len = strlen(text), padded = (len + ALIGN_HEADER - 1) / ALIGN_HEADER * ALIGN_HEADER;
    uint8_t *h = arena_alloc(a, 8 + padded, e);
    if (h) {
        for (int i = 0; i < 8; i++) h[i] = (uint8_t)((uint64_t)padded >> 8 * i);
        memset(h + 8, ' ', padded);
        memcpy(h + 8, text, len);
        *out = (FilePart){h, 8 + padded};
    }
    free(text);
    return h != NULL;
}

bool safetensors_save_index(const char *dir, const FileTensor *t, size_t n, Err *e) {
    json_t *map = json_object();
    size_t total = 0;
    for (size_t i = 0; map && i < n; i++) {
        json_object_set_new(map, t[i].name, json_string(t[i].path));
        total += t[i].bytes;
    }
    json_t *root = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)total, "weight_map", map);
    Arena a = {0};
    char *path = file_join(&a, dir, "model.safetensors.index.json", e);
    bool ok = path && (root || err_set(e, ERR_MEMORY, "内存不足")) && json_save(path, root, e);
    json_decref(root);
    arena_free(&a);
    return ok;
}
