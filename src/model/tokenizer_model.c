/* tokenizer_model — tokenizer.json 的 model 一节：BPE、Unigram、WordPiece、WordLevel
 * 词表与归并由 tokenizer_scan.c 直接扫描；这里读各项设置，把模型装配好。 */
#include <string.h>

#include "model/tokenizer_internal.h"

#define AFFIX_MAX 64 /* 前缀、后缀的字节数上限 */

typedef struct Source { /* 两块大数据的位置 */
    const char *name, *text;
    ScanSpan vocab, merges;
} Source;

/* 没有 type 的旧文件按字段猜，与 HF 相同。 */
static bool model_kind(const char *name, const Source *src, const json_t *m, ModelKind *kind,
                       Err *e) {
    static const char *const NAMES[] = {"BPE", "Unigram", "WordPiece", "WordLevel"};
    const char *type;
    if (!json_get_str_or(m, name, "type", NULL, &type, e)) return false;
    for (int i = 0; type && i < 4; i++)
        if (strcmp(type, NAMES[i]) == 0) {
            *kind = (ModelKind)i;
            return true;
        }
    if (type) return err_set(e, ERR_UNSUPPORTED, "%s: 不支持的模型类型 %.64s", name, type);
    bool array = src->vocab.end && src->text[src->vocab.start] == '[';
    *kind = src->merges.end                                            ? MODEL_BPE
            : array                                                    ? MODEL_UNIGRAM
            : json_object_get(m, "continuing_subword_prefix") != NULL ? MODEL_WORDPIECE
                                                                       : MODEL_WORDLEVEL;
    return true;
}

static bool start_vocab(Tokenizer *t, const Source *src, char open, Err *e) {
    if (src->vocab.end == 0 || src->text[src->vocab.start] != open)
        return err_set(e, ERR_FORMAT, "%s: model 中应有%s vocab", src->name,
                       open == '{' ? "对象" : "数组");
    size_t guess = (src->vocab.end - src->vocab.start) / 16; /* 只影响初始的表有多大 */
    return vocab_init(&t->vocab, &t->arena, guess, e);
}

static bool read_vocab(Tokenizer *t, const Source *src, Err *e) {
    if (!start_vocab(t, src, '{', e) ||
        !scan_vocab(&t->vocab, src->name, src->text, src->vocab, e))
        return false;
    return t->vocab.n > 0 || err_set(e, ERR_FORMAT, "%s: model.vocab 是空的", src->name);
}

static bool get_affix(Tokenizer *t, const char *name, const json_t *m, const char *key,
                      const char **text, size_t *len, Err *e) {
    if (!tokenizer_get_text(t, name, m, key, "", text, len, e)) return false;
    return *len <= AFFIX_MAX ||
           err_set(e, ERR_UNSUPPORTED, "%s: %s 长于 %d 字节", name, key, AFFIX_MAX);
}

static bool load_bpe(Tokenizer *t, const Source *src, const json_t *m, Err *e) {
    Bpe *b = &t->bpe;
    const char *name = src->name, *unk;
    double dropout;
    size_t n_unk;
    if (!json_get_bool_or(m, name, "ignore_merges", false, &b->ignore_merges, e) ||
        !json_get_bool_or(m, name, "fuse_unk", false, &b->fuse_unk, e) ||
        !json_get_bool_or(m, name, "byte_fallback", false, &b->byte_fallback, e) ||
        !json_get_num_or(m, name, "dropout", 0, &dropout, e) ||
        !get_affix(t, name, m, "continuing_subword_prefix", &b->prefix, &b->n_prefix, e) ||
        !get_affix(t, name, m, "end_of_word_suffix", &b->suffix, &b->n_suffix, e) ||
        !tokenizer_get_text(t, name, m, "unk_token", "", &unk, &n_unk, e))
        return false;
    if (dropout != 0) return err_set(e, ERR_UNSUPPORTED, "%s: 不支持随机的 dropout", name);
    if (!read_vocab(t, src, e)) return false;
    if (src->merges.end == 0) return err_set(e, ERR_FORMAT, "%s: model 中应有数组 merges", name);
    if (!bpe_init(b, &t->vocab, t->vocab.n, e) ||
        !scan_merges(b, name, src->text, src->merges, e))
        return false;
    if (n_unk) b->unk_id = vocab_find(&t->vocab, unk, n_unk);
    if (n_unk && b->unk_id < 0) b->unk_id = UNK_MISSING;
    return true;
}

static bool load_unigram(Tokenizer *t, const Source *src, const json_t *m, Err *e) {
    Unigram *u = &t->unigram;
    int64_t unk;
    if (!json_get_int_or(m, src->name, "unk_id", -1, 0, TOKEN_ID_MAX, &unk, e) ||
        !json_get_bool_or(m, src->name, "byte_fallback", false, &u->byte_fallback, e) ||
        !start_vocab(t, src, '[', e) ||
        !scan_scored(&t->vocab, &u->scores, src->name, src->text, src->vocab, e))
        return false;
    if (t->vocab.n == 0) return err_set(e, ERR_FORMAT, "%s: model.vocab 是空的", src->name);
    if (unk >= t->vocab.n_ids)
        return err_set(e, ERR_FORMAT, "%s: unk_id %lld 不在词表中", src->name, (long long)unk);
    u->unk_id = (int32_t)unk;
    u->n_scores = (size_t)t->vocab.n_ids;
    return unigram_init(u, &t->vocab, &t->arena, e);
}

static bool load_wordpiece(Tokenizer *t, const Source *src, const json_t *m, Err *e) {
    WordPiece *w = &t->wordpiece;
    bool whole = t->kind == MODEL_WORDLEVEL;
    const char *unk, *prefix;
    size_t n_unk, n_prefix;
    if (!tokenizer_get_text(t, src->name, m, "unk_token", whole ? "<unk>" : "[UNK]", &unk, &n_unk,
                            e) ||
        !tokenizer_get_text(t, src->name, m, "continuing_subword_prefix", "##", &prefix, &n_prefix,
                            e) ||
        !json_get_int_or(m, src->name, "max_input_chars_per_word", 100, 0, INT32_MAX,
                         &w->max_chars, e) ||
        !read_vocab(t, src, e))
        return false;
    w->unk_id = vocab_find(&t->vocab, unk, n_unk);
    w->vocab = &t->vocab;
    return whole || wordpiece_init(w, &t->vocab, &t->arena, prefix, n_prefix, "", 0, e);
}

bool tokenizer_load_model(Tokenizer *t, const char *name, const char *text, ScanSpan vocab,
                          ScanSpan merges, const json_t *m, Err *e) {
    Source src = {name, text, vocab, merges};
    if (!json_is_object(m)) return err_set(e, ERR_FORMAT, "%s: 缺少 model", name);
    if (!model_kind(name, &src, m, &t->kind, e)) return false;
    bool ok = t->kind == MODEL_BPE       ? load_bpe(t, &src, m, e)
              : t->kind == MODEL_UNIGRAM ? load_unigram(t, &src, m, e)
                                         : load_wordpiece(t, &src, m, e);
    t->n_model = (int32_t)t->vocab.n;
    return ok;
}
