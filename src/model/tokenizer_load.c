/* tokenizer_load — 从 tokenizer.json 打开：模型（词表与合并表）、添加的 token、整体的装配
 * 词表与合并表由 tokenizer_scan.c 直接扫描，各部件的读取在 tokenizer_parts.c，transformers 的 tokenizer_config.json 规则在 tokenizer_config.c。
 * 原则: 认得的就严格照做，不认得的组件报出名字，决不跳过。 */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "io/file.h"
#include "io/json.h"
#include "model/tokenizer_internal.h"

/* ---- 模型 ---- */

static bool check_model_options(const char *name, const json_t *m, Err *e) {
    static const char *const TEXTS[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const char *type, *text;
    bool flag;
    if (!json_get_str_or(m, name, "type", "BPE", &type, e)) return false;
    if (strcmp(type, "BPE") != 0)
        return err_set(e, ERR_UNSUPPORTED, "%s: 模型类型 %s 不支持，只支持字节级 BPE", name, type);
    if (!json_get_bool_or(m, name, "byte_fallback", false, &flag, e)) return false;
    if (flag)
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: byte_fallback（SentencePiece 式 BPE，如 Llama 2）不支持，只支持字节级 BPE",
                       name);
    for (size_t i = 0; i < 2; i++) {
        if (!json_get_str_or(m, name, TEXTS[i], "", &text, e)) return false;
        if (*text) return err_set(e, ERR_UNSUPPORTED, "%s: 不支持 %s", name, TEXTS[i]);
    }
    double dropout;
    if (!json_get_num_or(m, name, "dropout", 0, &dropout, e)) return false;
    if (dropout != 0) return err_set(e, ERR_UNSUPPORTED, "%s: 不支持随机的 dropout", name);
    return true;
}

/* 一份打开中的文件：原文、两块大数据的位置。 */
typedef struct Source {
    const char *name, *text;
    ScanSpan vocab, merges;
} Source;

static bool load_model(Tokenizer *t, const Source *src, const json_t *m, Err *e) {
    Bpe *b = &t->bpe;
    const char *name = src->name;
    const char *unk;
    if (!json_is_object(m)) return err_set(e, ERR_FORMAT, "%s: 缺少 model", name);
    if (!check_model_options(name, m, e) ||
        !json_get_bool_or(m, name, "ignore_merges", false, &b->ignore_merges, e) ||
        !json_get_bool_or(m, name, "fuse_unk", false, &b->fuse_unk, e) ||
        !json_get_str_or(m, name, "unk_token", NULL, &unk, e))
        return false;
    if (src->vocab.end == 0)
        return err_set(e, ERR_FORMAT, "%s: model 中应有对象 vocab 与数组 merges", name);
    size_t guess = (src->vocab.end - src->vocab.start) / 16; /* 只影响初始的表有多大 */
    if (!vocab_init(&b->vocab, &t->arena, guess, e) ||
        !scan_vocab(&b->vocab, name, src->text, src->vocab, e) ||
        !bpe_init(b, b->vocab.n, e) || !scan_merges(b, name, src->text, src->merges, e))
        return false;
    if (b->vocab.n == 0) return err_set(e, ERR_FORMAT, "%s: model.vocab 是空的", name);
    t->n_model = (int32_t)b->vocab.n;
    if (!unk) return true;
    b->unk_id = vocab_find(&b->vocab, unk, strlen(unk));
    return b->unk_id >= 0 ||
           err_set(e, ERR_FORMAT, "%s: unk_token \"%.64s\" 不在词表中", name, unk);
}

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
        if (id < t->bpe.vocab.n_ids && t->bpe.vocab.by_id[id].text) {
            const VocabEntry *old = &t->bpe.vocab.by_id[id];
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
    return load_model(t, src, json_object_get(root, "model"), e) &&
           load_added(t, name, json_object_get(root, "added_tokens"), e) &&
           tokenizer_load_normalizer(t, name, json_object_get(root, "normalizer"), e) &&
           tokenizer_load_pretok(t, name, json_object_get(root, "pre_tokenizer"), e) &&
           tokenizer_load_decoder(name, json_object_get(root, "decoder"), e) &&
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
