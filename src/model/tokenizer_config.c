/* tokenizer_config — transformers 的 tokenizer_config.json 规则（按 transformers 5 的 TokenizersBackend）
 * 1. added_tokens_decoder 中的 token 按 id 次序登记；2. bos、eos 等具名特殊 token 补登记为特殊。
 * add_bos_token、add_eos_token 不起作用：有 tokenizer.json 时 transformers 只认其中的 post_processor。 */
#include <stdlib.h>
#include <string.h>

#include "io/json.h"
#include "model/tokenizer_internal.h"

typedef struct DecoderItem {
    int64_t id;
    const json_t *token;
} DecoderItem;

static int by_id(const void *a, const void *b) {
    int64_t x = ((const DecoderItem *)a)->id, y = ((const DecoderItem *)b)->id;
    return (x > y) - (x < y);
}

static bool apply_decoder(Tokenizer *t, const char *name, const json_t *map, Err *e) {
    size_t n = json_object_size(map), k = 0;
    if (n == 0) return true;
    DecoderItem *items = arena_array(&t->arena, n, sizeof *items, e);
    if (!items) return false;
    json_t *o = (json_t *)(uintptr_t)map; /* 迭代器的签名不带 const */
    for (void *it = json_object_iter(o); it; it = json_object_iter_next(o, it), k++) {
        items[k].id = strtoll(json_object_iter_key(it), NULL, 10);
        items[k].token = json_object_iter_value(it);
    }
    qsort(items, n, sizeof *items, by_id);
    for (k = 0; k < n; k++) {
        AddedToken token;
        if (!tokenizer_read_added(&token, name, items[k].token, e)) return false;
        if (token.len && !tokenizer_add_token(t, name, &token, e)) return false;
    }
    return true;
}

/* 字符串，或 AddedToken 对象的 content。 */
static const json_t *token_text(const json_t *v) {
    return json_is_object(v) ? json_object_get(v, "content") : v;
}

/* 登记一个特殊 token：已登记者保留其属性，只标为特殊。 */
static bool apply_special(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    const json_t *s = token_text(v);
    if (!json_is_string(s) || json_string_length(s) == 0) return true;
    int32_t id = vocab_find(&t->vocab, json_string_value(s), json_string_length(s));
    int32_t added = id >= 0 ? t->vocab.by_id[id].added : 0;
    if (added) {
        t->added.items[added - 1].special = true;
        return true;
    }
    AddedToken token = {.text = json_string_value(s), .len = (uint32_t)json_string_length(s)};
    if (json_is_object(v) && !tokenizer_read_added(&token, name, v, e)) return false;
    token.special = true;
    return tokenizer_add_token(t, name, &token, e);
}

/* 数组的各项，或对象的各值。 */
static bool apply_list(Tokenizer *t, const char *name, const json_t *list, Err *e) {
    for (size_t k = 0; k < json_array_size(list); k++)
        if (!apply_special(t, name, json_array_get(list, k), e)) return false;
    json_t *o = (json_t *)(uintptr_t)list;
    for (void *it = json_object_iter(o); it; it = json_object_iter_next(o, it))
        if (!apply_special(t, name, json_object_iter_value(it), e)) return false;
    return true;
}

/* 具名的、列表中的、以及其他模型专有的（键以 _token 结尾的字符串）特殊 token。 */
static bool apply_specials(Tokenizer *t, const char *name, const json_t *config, Err *e) {
    static const char *const NAMED[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                        "pad_token", "cls_token", "mask_token"};
    for (size_t i = 0; i < sizeof NAMED / sizeof *NAMED; i++)
        if (!apply_special(t, name, json_object_get(config, NAMED[i]), e)) return false;
    const json_t *extra = json_object_get(config, "extra_special_tokens");
    if (!json_array_size(extra) && !json_object_size(extra))
        extra = json_object_get(config, "additional_special_tokens");
    json_t *o = (json_t *)(uintptr_t)config;
    for (void *it = json_object_iter(o); it; it = json_object_iter_next(o, it)) {
        const json_t *v = json_object_iter_value(it);
        if (json_is_string(v) && str_ends(json_object_iter_key(it), "_token") &&
            !apply_special(t, name, v, e))
            return false;
    }
    return apply_list(t, name, extra, e);
}

static int32_t find_special(const Tokenizer *t, const json_t *config, const char *key) {
    const json_t *s = token_text(json_object_get(config, key));
    if (!json_is_string(s)) return -1;
    return vocab_find(&t->vocab, json_string_value(s), json_string_length(s));
}

bool tokenizer_apply_config(Tokenizer *t, const char *name, const json_t *config, Err *e) {
    if (!apply_decoder(t, name, json_object_get(config, "added_tokens_decoder"), e) ||
        !apply_specials(t, name, config, e))
        return false;
    t->bos = find_special(t, config, "bos_token");
    t->eos = find_special(t, config, "eos_token");
    return true;
}
