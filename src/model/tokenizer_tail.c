/* tokenizer_tail — tokenizer.json 的后两个部件：decoder 与 post_processor
 * 写法与前两个相同：带 type 的对象，Sequence 可嵌套；不认得的报出名字。 */
#include <string.h>

#include "io/json.h"
#include "model/tokenizer_internal.h"

/* ---- decoder ---- */

typedef bool (*DecodeLoad)(Tokenizer *t, DecodeStep *s, const char *name, const json_t *v, Err *e);

static bool load_nothing(Tokenizer *t, DecodeStep *s, const char *name, const json_t *v, Err *e) {
    (void)t, (void)s, (void)name, (void)v, (void)e;
    return true;
}

static bool load_wordpiece(Tokenizer *t, DecodeStep *s, const char *name, const json_t *v, Err *e) {
    return tokenizer_get_text(t, name, v, "prefix", "##", &s->text, &s->len, e) &&
           json_get_bool_or(v, name, "cleanup", true, &s->flag, e);
}

static bool load_metaspace(Tokenizer *t, DecodeStep *s, const char *name, const json_t *v, Err *e) {
    MetaScheme scheme;
    if (!tokenizer_get_metaspace(t, name, v, &s->text, &s->len, &scheme, e)) return false;
    s->flag = scheme != META_NEVER;
    return true;
}

static bool load_bpe(Tokenizer *t, DecodeStep *s, const char *name, const json_t *v, Err *e) {
    return tokenizer_get_text(t, name, v, "suffix", "</w>", &s->text, &s->len, e);
}

static bool load_strip(Tokenizer *t, DecodeStep *s, const char *name, const json_t *v, Err *e) {
    size_t first;
    if (!tokenizer_get_text(t, name, v, "content", NULL, &s->text, &s->len, e) ||
        !json_get_int(v, name, "start", 0, INT32_MAX, &s->start, e) ||
        !json_get_int(v, name, "stop", 0, INT32_MAX, &s->stop, e))
        return false;
    if (s->len && utf8_next(s->text, s->len, &first) >= 0 && first == s->len) return true;
    return err_set(e, ERR_FORMAT, "%s: Strip 的 content 应是一个字符", name);
}

static bool load_replace(Tokenizer *t, DecodeStep *s, const char *name, const json_t *v, Err *e) {
    return tokenizer_get_text(t, name, v, "content", NULL, &s->extra, &s->n_extra, e) &&
           tokenizer_get_pattern(t, name, v, &s->rx, e);
}

static bool load_ctc(Tokenizer *t, DecodeStep *s, const char *name, const json_t *v, Err *e) {
    return tokenizer_get_text(t, name, v, "pad_token", "<pad>", &s->text, &s->len, e) &&
           tokenizer_get_text(t, name, v, "word_delimiter_token", "|", &s->extra, &s->n_extra, e) &&
           json_get_bool_or(v, name, "cleanup", true, &s->flag, e);
}

static bool load_dec(Tokenizer *t, const char *name, const json_t *v, int depth, Err *e) {
    static const struct {
        const char *type;
        DecodeKind kind;
        DecodeLoad load;
    } LOADS[] = {{"ByteLevel", DECODE_BYTE_LEVEL, load_nothing},
                 {"WordPiece", DECODE_WORDPIECE, load_wordpiece},
                 {"Metaspace", DECODE_METASPACE, load_metaspace},
                 {"BPEDecoder", DECODE_BPE, load_bpe},
                 {"ByteFallback", DECODE_BYTE_FALLBACK, load_nothing},
                 {"Fuse", DECODE_FUSE, load_nothing},
                 {"Strip", DECODE_STRIP, load_strip},
                 {"Replace", DECODE_REPLACE, load_replace},
                 {"CTC", DECODE_CTC, load_ctc}};
    const char *type = tokenizer_part_type(name, "decoder", v, e);
    if (!type) return false;
    for (size_t i = 0; i < sizeof LOADS / sizeof *LOADS; i++) {
        if (strcmp(type, LOADS[i].type) != 0) continue;
        DecodeStep *s = decoder_add(&t->decoder, LOADS[i].kind, name, e);
        return s && LOADS[i].load(t, s, name, v, e);
    }
    if (strcmp(type, "Sequence") != 0)
        return err_set(e, ERR_UNSUPPORTED, "%s: 不支持的 decoder 组件 %.64s", name, type);
    const json_t *list = tokenizer_part_items(name, "decoder", "decoders", v, depth, e);
    for (size_t i = 0; list && i < json_array_size(list); i++)
        if (!load_dec(t, name, json_array_get(list, i), depth + 1, e)) return false;
    return list != NULL;
}

bool tokenizer_load_decoder(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    t->decoder.spaces = !v || json_is_null(v);
    return t->decoder.spaces || load_dec(t, name, v, 0, e);
}

/* ---- post_processor ---- */

static bool push_id(TokenList *l, const Tokenizer *t, const char *name, const json_t *id, Err *e) {
    int64_t k = json_is_integer(id) ? json_integer_value(id) : -1;
    const Vocab *v = &t->vocab;
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

/* BertProcessing、RobertaProcessing：[文本, id] 形式的 cls 在前、sep 在后。 */
static bool load_cls_sep(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    static const TokenList NONE;
    TokenList cls = {0}, sep = {0};
    return push_id(&cls, t, name, json_array_get(json_object_get(v, "cls"), 1), e) &&
           push_id(&sep, t, name, json_array_get(json_object_get(v, "sep"), 1), e) &&
           wrap(&t->prefix, &cls, &NONE, name, e) && wrap(&t->suffix, &NONE, &sep, name, e);
}

static bool load_one_post(Tokenizer *t, const char *name, const json_t *v, int depth, Err *e) {
    const char *type = tokenizer_part_type(name, "post_processor", v, e);
    if (!type) return false;
    if (strcmp(type, "ByteLevel") == 0) return true; /* 只改偏移，不改 id */
    if (strcmp(type, "TemplateProcessing") == 0) return load_template(t, name, v, e);
    if (strcmp(type, "BertProcessing") == 0 || strcmp(type, "RobertaProcessing") == 0)
        return load_cls_sep(t, name, v, e);
    if (strcmp(type, "Sequence") != 0) return err_set(e, ERR_UNSUPPORTED, "%s: 不支持的 post_processor 组件 %.64s", name, type);
    const json_t *list = tokenizer_part_items(name, "post_processor", "processors", v, depth, e);
    for (size_t i = 0; list && i < json_array_size(list); i++)
        if (!load_one_post(t, name, json_array_get(list, i), depth + 1, e)) return false;
    return list != NULL;
}

bool tokenizer_load_post(Tokenizer *t, const char *name, const json_t *v, Err *e) {
    return !v || json_is_null(v) || load_one_post(t, name, v, 0, e);
}
