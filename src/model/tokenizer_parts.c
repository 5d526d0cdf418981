/* tokenizer_parts — tokenizer.json 的前两个部件：normalizer 与 pre_tokenizer
 * 每个部件是带 type 的对象，Sequence 可嵌套。HF 的每一种都认得；不认得的报出名字。 */
#include <string.h>

#include "io/hash.h"
#include "io/json.h"
#include "model/tokenizer_internal.h"

#define NEST_MAX 16

/* ---- 各部件共用 ---- */

const char *tokenizer_part_type(const char *name, const char *part, const json_t *v, Err *e) {
    const char *type = json_string_value(json_object_get(v, "type"));
    if (!type) err_set(e, ERR_FORMAT, "%s: %s 缺少 type", name, part);
    return type;
}

const json_t *tokenizer_part_items(const char *name, const char *part, const char *key,
                                   const json_t *v, int depth, Err *e) {
    const json_t *list = json_object_get(v, key);
    if (depth >= NEST_MAX) {
        err_set(e, ERR_UNSUPPORTED, "%s: %s 嵌套超过 %d 层", name, part, NEST_MAX);
        return NULL;
    }
    if (!json_is_array(list)) err_set(e, ERR_FORMAT, "%s: %s 的 %s 应为数组", name, part, key);
    return json_is_array(list) ? list : NULL;
}

bool tokenizer_get_text(Tokenizer *t, const char *name, const json_t *v, const char *key,
                        const char *def, const char **text, size_t *len, Err *e) {
    const json_t *s = json_object_get(v, key);
    bool none = !s || json_is_null(s);
    if (none ? !def : !json_is_string(s))
        return err_set(e, ERR_FORMAT, "%s: %s 应为字符串", name, key);
    *len = none ? strlen(def) : json_string_length(s);
    *text = arena_strndup(&t->arena, none ? def : json_string_value(s), *len, e);
    return *text != NULL;
}

bool tokenizer_get_pattern(Tokenizer *t, const char *name, const json_t *v, Rx *rx, Err *e) {
    const json_t *pattern = json_object_get(v, "pattern");
    bool regex = json_object_get(pattern, "Regex") != NULL;
    const char *text;
    size_t len;
    return tokenizer_get_text(t, name, pattern, regex ? "Regex" : "String", NULL, &text, &len, e) &&
           rx_open(rx, name, text, len, !regex, e);
}

/* ---- normalizer ---- */

static bool load_bert(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    Normalizer *z = &t->normalizer;
    bool clean, chinese, lower, accents;
    if (!json_get_bool_or(v, name, "clean_text", true, &clean, e) ||
        !json_get_bool_or(v, name, "handle_chinese_chars", true, &chinese, e) ||
        !json_get_bool_or(v, name, "lowercase", true, &lower, e) ||
        !json_get_bool_or(v, name, "strip_accents", lower, &accents, e))
        return false;
    return (!clean || normalizer_add_map(z, norm_map_bert_clean, name, e)) &&
           (!chinese || normalizer_add_map(z, norm_map_bert_chinese, name, e)) &&
           (!accents || (normalizer_add_form(z, NORM_NFD, name, e) &&
                         normalizer_add_map(z, norm_map_bert_accents, name, e))) &&
           (!lower || normalizer_add_map(z, norm_map_lower, name, e));
}

static bool load_strip(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    NormStep *s = normalizer_add(&t->normalizer, NORM_STRIP, name, e);
    return s && json_get_bool_or(v, name, "strip_left", true, &s->left, e) &&
           json_get_bool_or(v, name, "strip_right", true, &s->right, e);
}

static bool load_prepend(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    NormStep *s = normalizer_add(&t->normalizer, NORM_PREPEND, name, e);
    return s && tokenizer_get_text(t, name, v, "prepend", NULL, &s->text, &s->len, e);
}

static bool load_replace(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    NormStep *s = normalizer_add(&t->normalizer, NORM_REPLACE, name, e);
    return s && tokenizer_get_text(t, name, v, "content", NULL, &s->text, &s->len, e) &&
           tokenizer_get_pattern(t, name, v, &s->rx, e);
}

static bool load_charsmap(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    const char *text;
    size_t len, n;
    if (!tokenizer_get_text(t, name, v, "precompiled_charsmap", NULL, &text, &len, e)) return false;
    NormStep *s = normalizer_add(&t->normalizer, NORM_CHARSMAP, name, e);
    uint8_t *blob = s ? arena_alloc(&t->arena, len, e) : NULL;
    if (!blob) return false;
    if (!base64_decode(text, len, blob, &n))
        return err_set(e, ERR_FORMAT, "%s: precompiled_charsmap 不是 base64", name);
    return charsmap_open(&s->charsmap, name, blob, n, e);
}

static bool load_norm(Tokenizer *t, const char *name, const json_t *v, int depth, Err *e) {
    static const char *const FORMS[] = {"NFC", "NFD", "NFKC", "NFKD"};
    static const struct {
        const char *type;
        NormMap map;
    } MAPS[] = {{"Lowercase", norm_map_lower}, {"StripAccents", norm_map_strip_accents},
                {"Nmt", norm_map_nmt}, {"ByteLevel", norm_map_bytes}};
    static const struct {
        const char *type;
        bool (*load)(Tokenizer *t, const char *name, const json_t *v, Err *e);
    } LOADS[] = {{"BertNormalizer", load_bert}, {"Strip", load_strip}, {"Prepend", load_prepend},
                 {"Replace", load_replace}, {"Precompiled", load_charsmap}};
    const char *type = tokenizer_part_type(name, "normalizer", v, e);
    if (!type) return false;
    for (int i = 0; i < 4; i++)
        if (strcmp(type, FORMS[i]) == 0)
            return normalizer_add_form(&t->normalizer, (NormForm)i, name, e);
    for (size_t i = 0; i < sizeof MAPS / sizeof *MAPS; i++)
        if (strcmp(type, MAPS[i].type) == 0)
            return normalizer_add_map(&t->normalizer, MAPS[i].map, name, e);
    for (size_t i = 0; i < sizeof LOADS / sizeof *LOADS; i++)
        if (strcmp(type, LOADS[i].type) == 0) return LOADS[i].load(t, name, v, e);
    if (strcmp(type, "Sequence") != 0)
        return err_set(e, ERR_UNSUPPORTED, "%s: 不支持的 normalizer 组件 %.64s", name, type);
    const json_t *list = tokenizer_part_items(name, "normalizer", "normalizers", v, depth, e);
    for (size_t i = 0; list && i < json_array_size(list); i++)
        if (!load_norm(t, name, json_array_get(list, i), depth + 1, e)) return false;
    return list != NULL;
}

bool tokenizer_load_normalizer(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    return !v || json_is_null(v) || load_norm(t, name, v, 0, e);
}

/* ---- pre_tokenizer ---- */

/* 分隔处归哪一边；def 为缺失时的值。 */
static bool get_behavior(const char *name, const json_t *v, const char *def, SplitBehavior *b,
                         Err *e) {
    static const char *const NAMES[] = {"Isolated", "Removed", "Contiguous", "MergedWithPrevious",
                                        "MergedWithNext"};
    const char *text;
    if (!json_get_str_or(v, name, "behavior", def, &text, e)) return false;
    for (int i = 0; i < 5; i++)
        if (strcmp(text, NAMES[i]) == 0) {
            *b = (SplitBehavior)i;
            return true;
        }
    return err_set(e, ERR_FORMAT, "%s: behavior \"%.64s\" 未知", name, text);
}

static bool load_split(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    PretokStage *s = pretok_stage(&t->pretok, PRETOK_SPLIT, name, e);
    return s && get_behavior(name, v, "", &s->behavior, e) &&
           json_get_bool_or(v, name, "invert", false, &s->invert, e) &&
           tokenizer_get_pattern(t, name, v, &s->rx, e);
}

static bool load_punctuation(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    SplitBehavior b;
    return get_behavior(name, v, "Isolated", &b, e) &&
           pretok_add_class(&t->pretok, name, class_punct, false, b, false, e);
}

static bool load_digits(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    bool individual;
    return json_get_bool_or(v, name, "individual_digits", false, &individual, e) &&
           pretok_add_class(&t->pretok, name, class_digit, false,
                            individual ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS, false, e);
}

static bool load_byte_level(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    Pretok *p = &t->pretok;
    bool space, regex;
    if (!json_get_bool_or(v, name, "add_prefix_space", true, &space, e) ||
        !json_get_bool_or(v, name, "use_regex", true, &regex, e))
        return false;
    return (!space || pretok_stage(p, PRETOK_PREFIX, name, e)) &&
           (!regex || pretok_add(p, name, PRETOK_GPT2, strlen(PRETOK_GPT2), false, SPLIT_ISOLATED,
                                 false, e)) &&
           pretok_stage(p, PRETOK_BYTES, name, e);
}

/* 一个字符的字段。 */
static bool get_char(Tokenizer *t, const char *name, const json_t *v, const char *key,
                     const char **text, size_t *len, Err *e) {
    size_t first;
    if (!tokenizer_get_text(t, name, v, key, NULL, text, len, e)) return false;
    if (*len && utf8_next(*text, *len, &first) >= 0 && first == *len) return true;
    return err_set(e, ERR_FORMAT, "%s: %s 应是一个字符", name, key);
}

bool tokenizer_get_metaspace(Tokenizer *t, const char *name, const json_t *v, const char **text,
                             size_t *len, MetaScheme *scheme, Err *e) {
    static const char *const SCHEMES[] = {"first", "never", "always"};
    const char *how;
    bool space;
    if (!get_char(t, name, v, "replacement", text, len, e) ||
        !json_get_str_or(v, name, "prepend_scheme", "always", &how, e) ||
        !json_get_bool_or(v, name, "add_prefix_space", true, &space, e))
        return false;
    for (int i = 0; i < 3; i++)
        if (strcmp(how, SCHEMES[i]) == 0) {
            *scheme = space ? (MetaScheme)i : META_NEVER;
            return true;
        }
    return err_set(e, ERR_FORMAT, "%s: prepend_scheme \"%.64s\" 未知", name, how);
}

static bool load_metaspace(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    PretokStage *s = pretok_stage(&t->pretok, PRETOK_METASPACE, name, e);
    bool split;
    return s && tokenizer_get_metaspace(t, name, v, &s->text, &s->len, &s->scheme, e) &&
           json_get_bool_or(v, name, "split", true, &split, e) &&
           (!split || pretok_add(&t->pretok, name, s->text, s->len, true, SPLIT_MERGED_NEXT, false, e));
}

static bool load_delimiter(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    const char *text;
    size_t len;
    return get_char(t, name, v, "delimiter", &text, &len, e) &&
           pretok_add(&t->pretok, name, text, len, true, SPLIT_REMOVED, false, e);
}

static bool load_fixed(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    int64_t length;
    if (!json_get_int_or(v, name, "length", 5, 1, INT32_MAX, &length, e)) return false;
    PretokStage *s = pretok_stage(&t->pretok, PRETOK_FIXED, name, e);
    if (s) s->len = (size_t)length;
    return s != NULL;
}

static bool load_words(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    (void)v;
    return pretok_add_class(&t->pretok, name, class_word, true, SPLIT_REMOVED, true, e);
}

static bool load_spaces(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    (void)v;
    return pretok_add_class(&t->pretok, name, class_space, false, SPLIT_REMOVED, false, e);
}

static bool load_bert_pre(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    return load_spaces(t, name, v, e) &&
           pretok_add_class(&t->pretok, name, class_punct, false, SPLIT_ISOLATED, false, e);
}

static bool load_scripts(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    (void)v;
    return pretok_stage(&t->pretok, PRETOK_SCRIPTS, name, e) != NULL;
}

static bool load_pre(Tokenizer *t, const char *name, const json_t *v, int depth, Err *e) {
    static const struct {
        const char *type;
        bool (*load)(Tokenizer *t, const char *name, const json_t *v, Err *e);
    } LOADS[] = {{"ByteLevel", load_byte_level}, {"Split", load_split}, {"Digits", load_digits},
                 {"Metaspace", load_metaspace}, {"Punctuation", load_punctuation},
                 {"Whitespace", load_words}, {"WhitespaceSplit", load_spaces},
                 {"BertPreTokenizer", load_bert_pre}, {"CharDelimiterSplit", load_delimiter},
                 {"UnicodeScripts", load_scripts}, {"FixedLength", load_fixed}};
    const char *type = tokenizer_part_type(name, "pre_tokenizer", v, e);
    if (!type) return false;
    for (size_t i = 0; i < sizeof LOADS / sizeof *LOADS; i++)
        if (strcmp(type, LOADS[i].type) == 0) return LOADS[i].load(t, name, v, e);
    if (strcmp(type, "Sequence") != 0)
        return err_set(e, ERR_UNSUPPORTED, "%s: 不支持的 pre_tokenizer 组件 %.64s", name, type);
    const json_t *list = tokenizer_part_items(name, "pre_tokenizer", "pretokenizers", v, depth, e);
    for (size_t i = 0; list && i < json_array_size(list); i++)
        if (!load_pre(t, name, json_array_get(list, i), depth + 1, e)) return false;
    return list != NULL;
}

bool tokenizer_load_pretok(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    return !v || json_is_null(v) || load_pre(t, name, v, 0, e);
}
