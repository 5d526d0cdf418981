/* tokenizer_load — 从 tokenizer.json 打开：添加的 token、整体的装配
 * 模型在 tokenizer_model.c，各部件的读取在 tokenizer_parts.c 与 tokenizer_tail.c，transformers 的
 * tokenizer_config.json 规则在 tokenizer_config.c。原则: 认得的就严格照做，不认得的组件报出名字，决不跳过。 */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "io/file.h"
#include "io/json.h"
#include "model/tokenizer_internal.h"

/* 一份打开中的文件：原文、两块大数据的位置。 */
typedef struct Source {
    const char *name, *text;
    ScanSpan vocab, merges;
} Source;

/* ---- 添加的 token ---- */

bool tokenizer_read_added(AddedToken *token, const char *name, const json_t *v, Err *e) {
    const json_t *content = json_object_get(v, "content");
    if (!json_is_string(content))
        return err_set(e, ERR_FORMAT, "%s: 添加的 token 缺少 content", name);
    *token = (AddedToken){.text = json_string_value(content),
                          .len = (uint32_t)json_string_length(content)};
    return json_get_bool_or(v, name, "special", false, &token->special, e) &&
           json_get_bool_or(v, name, "lstrip", false, &token->lstrip, e) &&
           json_get_bool_or(v, name, "rstrip", false, &token->rstrip, e) &&
           json_get_bool_or(v, name, "single_word", false, &token->single_word, e) &&
           json_get_bool_or(v, name, "normalized", !token->special, &token->normalized, e);
}

static bool load_added(Tokenizer *t, const char *name, const json_t *list, Err *e) {
    if (!list || json_is_null(list)) return true;
    if (!json_is_array(list)) return err_set(e, ERR_FORMAT, "%s: added_tokens 应为数组", name);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        AddedToken token;
        int64_t id;
        char where[512];
        snprintf(where, sizeof where, "%s: added_tokens 第 %zu 项", name, i);
        if (!tokenizer_read_added(&token, where, v, e) ||
            !json_get_int(v, where, "id", 0, TOKEN_ID_MAX, &id, e))
            return false;
        if (token.len == 0) continue; /* HF 忽略空的添加 token */
        const char *text = token.text;
        if (id < t->vocab.n_ids && t->vocab.by_id[id].text) {
            const VocabEntry *old = &t->vocab.by_id[id];
            if (old->added || old->len != token.len || memcmp(old->text, text, token.len) != 0)
                return err_set(e, ERR_FORMAT, "%s: \"%.64s\" 的 id %lld 已属于 \"%.*s\"", where, text,
                               (long long)id, old->len > 64 ? 64 : (int)old->len, old->text);
        }
        if (!tokenizer_add_token(t, name, &token, e)) return false;
        if (token.id != id)
            log_line(LOG_WARN, "%s: 添加的 token \"%.64s\" 写作 id %lld，按 HF 的规则取 %d", name, text,
                     (long long)id, token.id);
    }
    return true;
}

/* ---- 装配 ---- */

static bool load_root(Tokenizer *t, const Source *src, const json_t *root, const json_t *config,
                      Err *e) {
    const char *name = src->name;
    if (!json_is_object(root)) return err_set(e, ERR_FORMAT, "%s: 顶层应为对象", name);
    return tokenizer_load_model(t, name, src->text, src->vocab, src->merges,
                                json_object_get(root, "model"), e) &&
           load_added(t, name, json_object_get(root, "added_tokens"), e) &&
           tokenizer_load_normalizer(t, name, json_object_get(root, "normalizer"), e) &&
           tokenizer_load_pretok(t, name, json_object_get(root, "pre_tokenizer"), e) &&
           tokenizer_load_decoder(t, name, json_object_get(root, "decoder"), e) &&
           tokenizer_load_post(t, name, json_object_get(root, "post_processor"), e) &&
           (!config || tokenizer_apply_config(t, name, config, e)) &&
           tokenizer_finish(t, name, e);
}

bool tokenizer_open_json(Tokenizer **out, const char *name, const void *text, size_t len,
                         const json_t *config, Err *e) {
    *out = NULL;
    Source src = {.name = name, .text = text};
    json_t *root = scan_skeleton(name, text, len, &src.vocab, &src.merges, e);
    if (!root) return false;
    Tokenizer *t = tokenizer_new(e);
    bool ok = t && load_root(t, &src, root, config, e);
    json_decref(root);
    if (!ok) {
        tokenizer_close(t);
        return false;
    }
    hash_bytes(text, len, t->sha256);
    *out = t;
    return true;
}

/* 读 dir/name 的 JSON；没有此文件时 *v 为 NULL。 */
static bool load_optional(Arena *a, const char *dir, const char *name, json_t **v, Err *e) {
    *v = NULL;
    const char *path = file_join(a, dir, name, e);
    if (!path) return false;
    if (!file_exists(path)) return true;
    *v = json_load(path, e);
    if (*v && !json_is_object(*v)) return err_set(e, ERR_FORMAT, "%s: 顶层应为对象", path);
    return *v != NULL;
}

/* transformers 的旧式规则：config 中没有 added_tokens_decoder 时并入 special_tokens_map.json。 */
static bool merge_special_map(Arena *a, const char *dir, json_t **config, Err *e) {
    json_t *map;
    if (*config && json_object_get(*config, "added_tokens_decoder")) return true;
    bool ok = load_optional(a, dir, "special_tokens_map.json", &map, e);
    if (ok && map && !*config) {
        *config = map;
        map = NULL;
    }
    if (ok && map && json_object_update(*config, map) != 0)
        ok = err_set(e, ERR_MEMORY, "内存不足：%s", dir);
    json_decref(map);
    return ok;
}

bool tokenizer_open_dir(Tokenizer **t, const char *dir, Err *e) {
    Arena a = {0};
    json_t *config = NULL;
    FileMap m = {0};
    *t = NULL;
    const char *path = file_join(&a, dir, "tokenizer.json", e);
    bool ok = path != NULL;
    if (ok && !file_exists(path))
        ok = err_set(e, ERR_MISSING, "%s 中没有 tokenizer.json。请从模型的来源取得它", dir);
    ok = ok && load_optional(&a, dir, "tokenizer_config.json", &config, e) &&
         merge_special_map(&a, dir, &config, e) && file_map(&m, path, e) &&
         tokenizer_open_json(t, path, m.data, m.size, config, e);
    file_unmap(&m);
    json_decref(config);
    arena_free(&a);
    return ok;
}
