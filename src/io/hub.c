/* hub — 从 Hub 取得一个模型：问清提交与文件、挑出要的、下载缺的、在快照里放上链接
 * 只取顶层的 config、分词器与 safetensors，不取 .bin、ONNX 等别的格式的同一份权重。 */
#include "io/hub.h"

#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#include "base/log.h"
#include "io/file.h"
#include "io/hub_internal.h"
#include "io/json.h"

#define INDEX "model.safetensors.index.json"

/* ---- 挑文件 ---- */

static bool is_small_file(const char *name) {
    static const char *const WANTED[] = {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
        "tokenizer.model", "spiece.model", "chat_template.jinja", "chat_template.json",
        "quantize_config.json", "quant_config.json", "processor_config.json"};
    for (size_t i = 0; i < sizeof WANTED / sizeof *WANTED; i++)
        if (strcmp(name, WANTED[i]) == 0) return true;
    return false;
}

/* 权重: 有索引则 model-xxxxx-of-xxxxx，否则 model.safetensors，否则顶层的全部（合并版与适配器除外）。 */
static bool is_weight(const char *name, bool index, bool single) {
    if (!str_ends(name, ".safetensors")) return false;
    if (index) return str_starts(name, "model-");
    if (single) return strcmp(name, "model.safetensors") == 0;
    return !str_starts(name, "consolidated") && !str_starts(name, "adapter");
}

static const json_t *find_sibling(const json_t *list, const char *name) {
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        const char *s = json_string_value(json_object_get(v, "rfilename"));
        if (s && strcmp(s, name) == 0) return v;
    }
    return NULL;
}

bool hub_read_file(const HubRepo *r, Arena *a, const char *name, const json_t *v, HubFile *f, Err *e) {
    const json_t *lfs = json_object_get(v, "lfs"), *size = json_object_get(v, "size");
    const char *etag = json_string_value(json_object_get(lfs, "sha256"));
    if (!etag) etag = json_string_value(json_object_get(lfs, "oid"));
    if (json_is_integer(json_object_get(lfs, "size"))) size = json_object_get(lfs, "size");
    if (!etag) etag = json_string_value(json_object_get(v, "blobId"));
    if (!etag || !hub_is_etag(etag) || !json_is_integer(size) || json_integer_value(size) < 0)
        return err_set(e, ERR_FORMAT, "%s 没有给出 %s/%s 的散列与大小，无法核对，不下载", r->o->endpoint,
                       r->id, name);
    *f = (HubFile){arena_strdup(a, name, e), arena_strdup(a, etag, e), json_integer_value(size)};
    return f->name && f->etag;
}

static bool pick_files(HubRepo *r, Arena *a, const json_t *list, Err *e) {
    size_t n = json_array_size(list), weights = 0;
    bool index = find_sibling(list, INDEX), single = find_sibling(list, "model.safetensors");
    if (!(r->files = ARENA_ARRAY(a, HubFile, n + 1, e))) return false;
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, i), *s = json_object_get(v, "rfilename");
        const char *name = json_string_value(s);
        if (!name || json_string_length(s) != strlen(name))
            return err_set(e, ERR_FORMAT, "%s 给的文件名不合规矩", r->o->endpoint);
        bool weight = is_weight(name, index, single);
        if (!weight && !is_small_file(name) && !(index && strcmp(name, INDEX) == 0)) continue;
        if (!hub_safe_name(name)) continue; /* 子文件夹里的、不合规矩的：不取 */
        if (!hub_read_file(r, a, name, v, &r->files[r->n_files++], e)) return false;
        weights += weight;
    }
    if (!find_sibling(list, "config.json"))
        return err_set(e, ERR_MISSING, "Hub 上的 %s 没有 config.json，不是 transformers 格式的模型", r->id);
    return weights > 0 || err_set(e, ERR_MISSING, "Hub 上的 %s 没有 safetensors 权重（不支持 .bin；GGUF 请自行下载，"
                                                  "以 model_id 指明文件）", r->id);
}

/* ---- 问 Hub ---- */

json_t *hub_ask(HubRepo *r, Arena *a, Err *e) {
    Str url = {0}, text = {0};
    str_addf(&url, "%s/api/%s/%s/revision/", r->o->endpoint, r->dataset ? "datasets" : "models", r->id);
    hub_escape(&url, r->revision, "");
    str_add(&url, "?blobs=true");
    bool ok = !url.failed ? hub_get_text(r, url.data, &text, NULL, e)
                          : err_set(e, ERR_MEMORY, "内存不足：Hub");
    json_t *root = ok ? json_parse(url.data, text.data ? text.data : "", text.len, e) : NULL;
    const char *commit = json_string_value(json_object_get(root, "sha"));
    ok = root != NULL;
    if (ok && (!commit || !hub_is_commit(commit)))
        ok = err_set(e, ERR_FORMAT, "%s 的答复没有提交号（sha）", url.data);
    ok = ok && (r->commit = arena_strdup(a, commit, e));
    str_free(&url);
    str_free(&text);
    if (ok) return root;
    json_decref(root);
    return NULL;
}

static bool ask_model(HubRepo *r, Arena *a, Err *e) {
    json_t *root = hub_ask(r, a, e);
    bool ok = root && pick_files(r, a, json_object_get(root, "siblings"), e);
    json_decref(root);
    return ok;
}

/* ---- 缓存中的快照 ---- */

static bool has(Arena *a, const char *dir, const char *name) {
    const char *path = file_join(a, dir, name, NULL);
    return path && file_exists(path);
}

/* 索引所列的分片是否都在。 */
static bool shards_here(Arena *a, const char *dir) {
    const char *path = file_join(a, dir, INDEX, NULL);
    json_t *root = path ? json_load(path, NULL) : NULL;
    json_t *map = json_object_get(root, "weight_map");
    bool ok = json_object_size(map) > 0;
    for (void *it = json_object_iter(map); ok && it; it = json_object_iter_next(map, it)) {
        const char *name = json_string_value(json_object_iter_value(it));
        ok = name && hub_safe_name(name) && has(a, dir, name);
    }
    json_decref(root);
    return ok;
}

/* 缓存里可用的快照；没有则 NULL。 */
static const char *cached(HubRepo *r, Arena *a) {
    r->commit = hub_read_ref(r, a);
    const char *dir = r->commit ? hub_snapshot_dir(r, a, NULL) : NULL;
    char **names;
    size_t n = 0;
    if (!dir || !has(a, dir, "config.json")) return NULL;
    if (has(a, dir, INDEX)) return shards_here(a, dir) ? dir : NULL;
    return file_list(a, dir, ".safetensors", &names, &n, NULL) && n > 0 ? dir : NULL;
}

/* ---- 下载 ---- */

static bool enough_space(const HubRepo *r, int64_t need, Err *e) {
    struct statvfs v;
    if (statvfs(r->root, &v) != 0) return true;
    double left = (double)v.f_bavail * (double)v.f_frsize;
    char a[32], b[32];
    return left >= (double)need ||
           err_set(e, ERR_IO, "下载 %s 还要 %s，%s 只剩 %s。请腾出空间，或以 HF_HUB_CACHE 指到别处", r->id,
                   str_bytes(a, sizeof a, (double)need), r->root, str_bytes(b, sizeof b, left));
}

static bool download(HubRepo *r, Arena *a, Err *e) {
    const HubFile **missing = ARENA_ARRAY(a, const HubFile *, r->n_files + 1, e);
    const char *blobs = arena_printf(a, e, "%s/blobs", r->root);
    size_t n = 0;
    int64_t need = 0;
    if (!missing || !blobs || !hub_make_dir(r, blobs, e)) return false;
    for (size_t i = 0; i < r->n_files; i++) {
        bool twice = false; /* 内容相同的两个文件只取一次 */
        for (size_t k = 0; k < n; k++) twice = twice || strcmp(missing[k]->etag, r->files[i].etag) == 0;
        if (twice || hub_has_blob(r, a, &r->files[i])) continue;
        missing[n++] = &r->files[i];
        need += r->files[i].size;
    }
    if (n == 0) return true;
    char size[32];
    log_line(LOG_LOAD, "从 %s 下载 %s（版本 %s，%zu 个文件，%s）", r->o->endpoint, r->id, r->revision, n,
             str_bytes(size, sizeof size, (double)need));
    return enough_space(r, need, e) && hub_fetch(r, missing, n, e);
}

bool hub_fetch_all(HubRepo *r, Arena *a, Err *e) {
    if (!download(r, a, e)) return false;
    for (size_t i = 0; i < r->n_files; i++)
        if (!hub_link(r, a, &r->files[i], e)) return false;
    return hub_write_ref(r, a, e);
}

bool hub_set_root(HubRepo *r, Arena *a, Err *e) {
    const char *slash = strchr(r->id, '/'), *kind = r->dataset ? "datasets" : "models";
    r->root = slash ? arena_printf(a, e, "%s/%s--%.*s--%s", r->o->cache, kind, (int)(slash - r->id), r->id,
                                   slash + 1)
                    : arena_printf(a, e, "%s/%s--%s", r->o->cache, kind, r->id);
    return r->root != NULL;
}

bool hub_model(const HubOptions *o, Arena *a, const char *id, const char *revision,
               const char **dir, const char **commit, Err *e) {
    HubRepo r = {.o = o, .id = id, .revision = revision && *revision ? revision : "main"};
    Err why = {0};
    if (!hub_is_id(id)) return err_set(e, ERR_CONFIG, "\"%s\" 不是 Hub 的模型（组织/名字）", id);
    if (!hub_safe_revision(r.revision))
        return err_set(e, ERR_CONFIG, "revision \"%s\" 不合规矩", r.revision);
    if (!hub_set_root(&r, a, e)) return false;
    const char *old = cached(&r, a), *old_commit = r.commit;
    bool fixed = old && hub_is_commit(r.revision); /* 提交不会变，不必问 */
    r.impatient = old != NULL;
    if (o->offline && !old)
        return err_set(e, ERR_MISSING, "HF_HUB_OFFLINE=1，而缓存 %s 里没有 %s（版本 %s）", o->cache, id,
                       r.revision);
    *dir = old;
    *commit = old_commit;
    if (o->offline || fixed) return true;
    if (!ask_model(&r, a, &why)) {
        if (!old || why.code == ERR_INTERRUPTED) {
            if (e) *e = why;
            return false;
        }
        log_line(LOG_WARN, "问不到 Hub 上的 %s（%s），用缓存中的 %.12s", id, why.msg, old_commit);
        return true;
    }
    *commit = r.commit;
    return hub_fetch_all(&r, a, e) && (*dir = hub_snapshot_dir(&r, a, e));
}
