/* tokenizer_gguf — 从 GGUF 的元数据打开（tokenizer.ggml.model = gpt2，即字节级 BPE）
 * GGUF 只存词表、合并表与 pre 的名字；名字对应的切分规则（以及 Qwen2 的 NFC）由下表补回，
 * 使结果与转换前的 tokenizer.json 相同。各名字的含义见 llama.cpp 的 llama-vocab.cpp。 */
#include <string.h>

#include "model/tokenizer_internal.h"

#define PRE_REGEX_MAX 5

typedef struct PreRule {
    const char *names; /* 空格隔开 */
    const char *regex[PRE_REGEX_MAX];
    bool nfc, ignore_merges, add_bos;
} PreRule;

static const PreRule RULES[] = {
    {.names = "gpt-2 default phi-2", .regex = {PRETOK_GPT2}},
    {.names = "llama-bpe llama3 llama-v3 falcon3",
     .regex = {PRETOK_LLAMA3},
     .ignore_merges = true,
     .add_bos = true},
    {.names = "dbrx smaug-bpe", .regex = {PRETOK_LLAMA3}},
    {.names = "qwen2 deepseek-r1-qwen", .regex = {PRETOK_QWEN2}, .nfc = true},
    {.names = "smollm starcoder refact", .regex = {PRETOK_DIGIT, PRETOK_GPT2}},
    {.names = "command-r", .regex = {PRETOK_DIGIT, PRETOK_GPT2}, .nfc = true},
    {.names = "deepseek-coder",
     .regex = {"[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[一-龥ࠀ-一가-퟿]+", PRETOK_DIGIT}},
};

static bool name_in(const char *names, const GgufString *s) {
    for (const char *p = names; *p;) {
        size_t n = strcspn(p, " ");
        if (n == s->len && memcmp(p, s->data, n) == 0) return true;
        p += n + (p[n] == ' ');
    }
    return false;
}

static bool find_rule(const PreRule **rule, const char *name, const Gguf *g, Err *e) {
    const GgufValue *v = gguf_find(g, "tokenizer.ggml.pre");
    GgufString pre = {"default", 7};
    if (v && v->type != GGUF_STRING)
        return err_set(e, ERR_FORMAT, "%s: tokenizer.ggml.pre 应为字符串", name);
    if (v) pre = v->s;
    for (size_t i = 0; i < sizeof RULES / sizeof *RULES; i++) {
        *rule = &RULES[i];
        if (name_in(RULES[i].names, &pre)) return true;
    }
    return err_set(e, ERR_UNSUPPORTED,
                   "%s: 不认识的预切分规则 tokenizer.ggml.pre = \"%.*s\"。请改用带 tokenizer.json 的模型文件夹",
                   name, pre.len > 64 ? 64 : (int)pre.len, pre.data);
}

static bool load_pre(Tokenizer *t, const char *name, const PreRule *rule, Err *e) {
    t->bpe.ignore_merges = rule->ignore_merges;
    if (rule->nfc) t->norms[t->n_norms++] = NORM_NFC;
    for (size_t i = 0; i < PRE_REGEX_MAX && rule->regex[i]; i++)
        if (!pretok_add(&t->pretok, name, rule->regex[i], strlen(rule->regex[i]), false,
                        SPLIT_ISOLATED, false, e))
            return false;
    return true;
}

/* 取字符串数组；缺失或类型不符则报错。 */
static const GgufValue *strings_of(const char *name, const Gguf *g, const char *key, Err *e) {
    const GgufValue *v = gguf_find(g, key);
    if (v && v->type == GGUF_ARRAY && v->item_type == GGUF_STRING) return v;
    err_set(e, ERR_FORMAT, "%s: %s %s", name, key, v ? "应为字符串数组" : "缺失，文件不带分词器");
    return NULL;
}

static bool load_tokens(Tokenizer *t, const char *name, const Gguf *g, Hash *h, Err *e) {
    const GgufValue *tokens = strings_of(name, g, "tokenizer.ggml.tokens", e);
    if (!tokens || !vocab_init(&t->bpe.vocab, &t->arena, tokens->n, e)) return false;
    for (size_t i = 0; i < tokens->n; i++) {
        const GgufString *s = &tokens->strings[i];
        if (!vocab_add(&t->bpe.vocab, name, s->data, s->len, (int64_t)i, e)) return false;
        hash_add(h, s->data, s->len);
        hash_add(h, "\n", 1);
    }
    t->n_model = t->bpe.vocab.n_ids;
    return true;
}

static bool load_merges(Tokenizer *t, const char *name, const Gguf *g, Hash *h, Err *e) {
    const GgufValue *merges = strings_of(name, g, "tokenizer.ggml.merges", e);
    if (!merges) return false;
    if (merges->n > INT32_MAX) return err_set(e, ERR_FORMAT, "%s: 归并过多", name);
    if (!bpe_init(&t->bpe, merges->n, e)) return false;
    for (size_t i = 0; i < merges->n; i++) {
        const GgufString *s = &merges->strings[i];
        if (!bpe_add_merge_text(&t->bpe, name, i, s->data, s->len, e)) return false;
        hash_add(h, s->data, s->len);
        hash_add(h, "\n", 1);
    }
    return true;
}

/* token_type: 3 控制（特殊），4 用户定义；其余不作添加的 token。 */
static bool load_types(Tokenizer *t, const char *name, const Gguf *g, Err *e) {
    const GgufValue *types = gguf_find(g, "tokenizer.ggml.token_type");
    const Vocab *v = &t->bpe.vocab;
    if (!types) return true;
    bool integers = types->type == GGUF_ARRAY && types->item_type != GGUF_STRING &&
                    types->item_type != GGUF_F32 && types->item_type != GGUF_F64;
    if (!integers || types->n != (size_t)v->n_ids)
        return err_set(e, ERR_FORMAT, "%s: tokenizer.ggml.token_type 应是 %d 个整数", name, v->n_ids);
    for (size_t i = 0; i < types->n; i++) {
        int64_t type = gguf_item_int(types, i);
        if ((type != 3 && type != 4) || v->by_id[i].len == 0) continue;
        AddedToken token = {.text = v->by_id[i].text, .len = v->by_id[i].len, .special = type == 3};
        if (!tokenizer_add_token(t, name, &token, e)) return false;
    }
    return true;
}

static bool load_special(Tokenizer *t, const Gguf *g, const PreRule *rule, Err *e) {
    int64_t bos = -1, eos = -1, last = t->bpe.vocab.n_ids - 1;
    bool add_bos = rule->add_bos, add_eos = false;
    if (!gguf_get_int(g, "tokenizer.ggml.bos_token_id", false, 0, last, &bos, e) ||
        !gguf_get_int(g, "tokenizer.ggml.eos_token_id", false, 0, last, &eos, e) ||
        !gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &add_bos, e) ||
        !gguf_get_bool(g, "tokenizer.ggml.add_eos_token", &add_eos, e))
        return false;
    t->bos = (int32_t)bos;
    t->eos = (int32_t)eos;
    if (add_bos && bos >= 0) t->prefix.ids[t->prefix.n++] = t->bos;
    if (add_eos && eos >= 0) t->suffix.ids[t->suffix.n++] = t->eos;
    return true;
}

static bool load_all(Tokenizer *t, const char *name, const Gguf *g, Hash *h, Err *e) {
    const PreRule *rule;
    const GgufValue *model = gguf_find(g, "tokenizer.ggml.model");
    if (!model || model->type != GGUF_STRING)
        return err_set(e, ERR_MISSING, "%s: 没有 tokenizer.ggml.model，文件不带分词器", name);
    if (model->s.len != 4 || memcmp(model->s.data, "gpt2", 4) != 0)
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: 分词器类型 \"%.*s\" 不支持，只支持字节级 BPE（gpt2）", name,
                       model->s.len > 64 ? 64 : (int)model->s.len, model->s.data);
    if (!find_rule(&rule, name, g, e)) return false;
    hash_add(h, rule->names, strlen(rule->names) + 1);
    return load_tokens(t, name, g, h, e) && load_merges(t, name, g, h, e) &&
           load_types(t, name, g, e) && load_pre(t, name, rule, e) &&
           load_special(t, g, rule, e) && tokenizer_finish(t, name, e);
}

bool tokenizer_open_gguf(Tokenizer **out, const Gguf *g, Err *e) {
    *out = NULL;
    Hash *h = hash_new();
    Tokenizer *t = h ? tokenizer_new(e) : NULL;
    if (!h) err_set(e, ERR_MEMORY, "内存不足：分词器");
    bool ok = t && load_all(t, g->file.path, g, h, e);
    char hex[HASH_HEX] = {0};
    if (h) hash_end(h, hex);
    if (!ok) {
        tokenizer_close(t);
        return false;
    }
    memcpy(t->sha256, hex, sizeof hex);
    *out = t;
    return true;
}
