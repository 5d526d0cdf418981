/* tokenizer_parts — tokenizer.json 的四个部件：normalizer、pre_tokenizer、decoder、post_processor
 * 每个部件是带 type 的对象，Sequence 可嵌套。只接受字节级 BPE 会用到的种类，其余报出名字。 */
#include <string.h>

#include "io/json.h"
#include "model/tokenizer_internal.h"

#define NEST_MAX 16

static bool is_null(const json_t *v) {
    return !v || json_is_null(v);
}

/* 取 type；不是对象或缺失则报错。 */
static const char *type_of(const char *name, const char *part, const json_t *v, Err *e) {
    const char *type = json_string_value(json_object_get(v, "type"));
    if (!type) err_set(e, ERR_FORMAT, "%s: %s 缺少 type", name, part);
    return type;
}

static bool unsupported(const char *name, const char *part, const char *type, Err *e) {
    return err_set(e, ERR_UNSUPPORTED, "%s: 不支持的 %s 组件 %.64s（只支持字节级 BPE 的组件）", name,
                   part, type);
}

/* Sequence 的元素数组。 */
static const json_t *items_of(const char *name, const char *part, const char *key, const json_t *v,
                              int depth, Err *e) {
    const json_t *list = json_object_get(v, key);
    if (depth >= NEST_MAX) {
        err_set(e, ERR_UNSUPPORTED, "%s: %s 嵌套超过 %d 层", name, part, NEST_MAX);
        return NULL;
    }
    if (!json_is_array(list)) err_set(e, ERR_FORMAT, "%s: %s 的 %s 应为数组", name, part, key);
    return json_is_array(list) ? list : NULL;
}

/* ---- normalizer ---- */

static bool load_norm(Tokenizer *t, const char *name, const json_t *v, int depth, Err *e) {
    static const char *const FORMS[] = {"NFC", "NFD", "NFKC", "NFKD"};
    const char *type = type_of(name, "normalizer", v, e);
    if (!type) return false;
    for (int i = 0; i < 4; i++) {
        if (strcmp(type, FORMS[i]) != 0) continue;
        if (t->n_norms == NORM_MAX)
            return err_set(e, ERR_UNSUPPORTED, "%s: normalizer 超过 %d 个", name, NORM_MAX);
        t->norms[t->n_norms++] = (NormForm)i;
        return true;
    }
    if (strcmp(type, "Sequence") != 0) return unsupported(name, "normalizer", type, e);
    const json_t *list = items_of(name, "normalizer", "normalizers", v, depth, e);
    for (size_t i = 0; list && i < json_array_size(list); i++)
        if (!load_norm(t, name, json_array_get(list, i), depth + 1, e)) return false;
    return list != NULL;
}

bool tokenizer_load_normalizer(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    return is_null(v) || load_norm(t, name, v, 0, e);
}

/* ---- pre_tokenizer ---- */

static bool load_split(Pretok *p, const char *name, const json_t *v, Err *e) {
    static const char *const NAMES[] = {"Isolated", "Removed", "Contiguous", "MergedWithPrevious",
                                        "MergedWithNext"};
    const json_t *pattern = json_object_get(v, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex");
    const json_t *text = regex ? regex : json_object_get(pattern, "String");
    const char *behavior;
    bool invert;
    if (!json_is_string(text))
        return err_set(e, ERR_FORMAT, "%s: Split 的 pattern 应有 Regex 或 String", name);
    if (!json_get_str_or(v, name, "behavior", "", &behavior, e) ||
        !json_get_bool_or(v, name, "invert", false, &invert, e))
        return false;
    for (int i = 0; i < 5; i++)
        if (strcmp(behavior, NAMES[i]) == 0)
            return pretok_add(p, name, json_string_value(text), json_string_length(text), !regex,
                              (SplitBehavior)i, invert, e);
    return err_set(e, ERR_FORMAT, "%s: Split 的 behavior \"%.64s\" 未知", name, behavior);
}

static bool load_digits(Pretok *p, const char *name, const json_t *v, Err *e) {
    bool individual;
    return json_get_bool_or(v, name, "individual_digits", false, &individual, e) &&
           pretok_add(p, name, PRETOK_DIGIT, strlen(PRETOK_DIGIT), false,
                      individual ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS, false, e);
}

static bool load_byte_level(Pretok *p, const char *name, const json_t *v, Err *e) {
    bool space, regex;
    if (!json_get_bool_or(v, name, "add_prefix_space", true, &space, e) ||
        !json_get_bool_or(v, name, "use_regex", true, &regex, e))
        return false;
    if (space && !pretok_add_prefix_space(p, name, e)) return false;
    return !regex || pretok_add(p, name, PRETOK_GPT2, strlen(PRETOK_GPT2), false, SPLIT_ISOLATED,
                                false, e);
}

/* *byte_level 记下是否已到 ByteLevel；它把文本变成字节级字母表，其后不能再有别的组件。 */
static bool load_pre(Tokenizer *t, const char *name, const json_t *v, int depth, bool *byte_level,
                     Err *e) {
    const char *type = type_of(name, "pre_tokenizer", v, e);
    if (!type) return false;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = items_of(name, "pre_tokenizer", "pretokenizers", v, depth, e);
        for (size_t i = 0; list && i < json_array_size(list); i++)
            if (!load_pre(t, name, json_array_get(list, i), depth + 1, byte_level, e)) return false;
        return list != NULL;
    }
    if (*byte_level)
        return err_set(e, ERR_UNSUPPORTED, "%s: pre_tokenizer 中 ByteLevel 之后还有 %.64s", name,
                       type);
    if (strcmp(type, "Split") == 0) return load_split(&t->pretok, name, v, e);
    if (strcmp(type, "Digits") == 0) return load_digits(&t->pretok, name, v, e);
    if (strcmp(type, "ByteLevel") != 0) return unsupported(name, "pre_tokenizer", type, e);
    *byte_level = true;
    return load_byte_level(&t->pretok, name, v, e);
}

bool tokenizer_load_pretok(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    bool byte_level = false;
    if (!is_null(v) && !load_pre(t, name, v, 0, &byte_level, e)) return false;
    return byte_level || err_set(e, ERR_UNSUPPORTED,
                                 "%s: pre_tokenizer 中没有 ByteLevel，不是字节级 BPE，不支持", name);
}

/* ---- decoder ---- */

static bool load_dec(const char *name, const json_t *v, int depth, bool *byte_level, Err *e) {
    const char *type = type_of(name, "decoder", v, e);
    if (!type) return false;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = items_of(name, "decoder", "decoders", v, depth, e);
        for (size_t i = 0; list && i < json_array_size(list); i++)
            if (!load_dec(name, json_array_get(list, i), depth + 1, byte_level, e)) return false;
        return list != NULL;
    }
    if (strcmp(type, "Fuse") == 0 && *byte_level) return true; /* ByteLevel 已经相接 */
    if (strcmp(type, "ByteLevel") != 0) return unsupported(name, "decoder", type, e);
    *byte_level = true;
    return true;
}

bool tokenizer_load_decoder(const char *name, const json_t *v, Err *e) {
    bool byte_level = false;
    if (!is_null(v) && !load_dec(name, v, 0, &byte_level, e)) return false;
    return byte_level || err_set(e, ERR_UNSUPPORTED, "%s: decoder 不是 ByteLevel，不支持", name);
}

/* ---- post_processor ---- */

static bool push_id(TokenList *l, const Tokenizer *t, const char *name, const json_t *id, Err *e) {
    int64_t k = json_is_integer(id) ? json_integer_value(id) : -1;
    const Vocab *v = &t->bpe.vocab;
    if (k < 0 || k >= v->n_ids || !v->by_id[k].text)
        return err_set(e, ERR_FORMAT, "%s: post_processor 的 id %lld 不在词表中", name, (long long)k);
    if (l->n == TEMPLATE_MAX)
        return err_set(e, ERR_UNSUPPORTED, "%s: post_processor 添加的 token 超过 %d 个", name,
                       TEMPLATE_MAX);
    l->ids[l->n++] = (int32_t)k;
    return true;
}

/* 模板中的一个特殊 token → 它的各 id。 */
static bool push_special(TokenList *l, const Tokenizer *t, const char *name, const json_t *v,
                         const json_t *special, Err *e) {
    const char *key = json_string_value(json_object_get(special, "id"));
    const json_t *def = key ? json_object_get(json_object_get(v, "special_tokens"), key) : NULL;
    const json_t *ids = json_object_get(def, "ids");
    if (!json_is_array(ids))
        return err_set(e, ERR_FORMAT, "%s: post_processor 的 \"%.64s\" 没有在 special_tokens 中定义",
                       name, key ? key : "");
    for (size_t i = 0; i < json_array_size(ids); i++)
        if (!push_id(l, t, name, json_array_get(ids, i), e)) return false;
    return true;
}

/* 把新的列表接到旧的外侧：后一个处理器包住前一个的结果。 */
static bool wrap(TokenList *l, const TokenList *before, const TokenList *after, const char *name,
                 Err *e) {
    if (before->n + l->n + after->n > TEMPLATE_MAX)
        return err_set(e, ERR_UNSUPPORTED, "%s: post_processor 添加的 token 超过 %d 个", name,
                       TEMPLATE_MAX);
    memmove(l->ids + before->n, l->ids, l->n * sizeof *l->ids);
    memcpy(l->ids, before->ids, before->n * sizeof *l->ids);
    memcpy(l->ids + before->n + l->n, after->ids, after->n * sizeof *l->ids);
    l->n += before->n + after->n;
    return true;
}

static bool load_template(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    const json_t *single = json_object_get(v, "single");
    TokenList part[2] = {0}; /* 文本之前、之后 */
    static const TokenList NONE;
    int side = 0;
    if (!json_is_array(single))
        return err_set(e, ERR_FORMAT, "%s: post_processor 的 single 应为数组", name);
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *piece = json_array_get(single, i);
        const json_t *special = json_object_get(piece, "SpecialToken");
        const char *seq =
            json_string_value(json_object_get(json_object_get(piece, "Sequence"), "id"));
        if (special) {
            if (!push_special(&part[side], t, name, v, special, e)) return false;
        } else if (seq && strcmp(seq, "A") == 0 && side == 0) {
            side = 1;
        } else {
            return err_set(e, ERR_UNSUPPORTED, "%s: post_processor 的模板第 %zu 项不支持", name, i);
        }
    }
    if (side == 0) return err_set(e, ERR_UNSUPPORTED, "%s: post_processor 的模板没有文本", name);
    return wrap(&t->prefix, &part[0], &NONE, name, e) && wrap(&t->suffix, &NONE, &part[1], name, e);
}

static bool load_one_post(Tokenizer *t, const char *name, const json_t *v, int depth, Err *e) {
    const char *type = type_of(name, "post_processor", v, e);
    if (!type) return false;
    if (strcmp(type, "ByteLevel") == 0) return true; /* 只改偏移，不改 id */
    if (strcmp(type, "TemplateProcessing") == 0) return load_template(t, name, v, e);
    if (strcmp(type, "Sequence") != 0) return unsupported(name, "post_processor", type, e);
    const json_t *list = items_of(name, "post_processor", "processors", v, depth, e);
    for (size_t i = 0; list && i < json_array_size(list); i++)
        if (!load_one_post(t, name, json_array_get(list, i), depth + 1, e)) return false;
    return list != NULL;
}

bool tokenizer_load_post(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    return is_null(v) || load_one_post(t, name, v, 0, e);
}
