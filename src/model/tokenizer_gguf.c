/* tokenizer_gguf — 从 GGUF 的元数据打开：共用的部分与 gpt2 一种（字节级 BPE）
 * GGUF 只存词表、合并表与 pre 的名字；名字对应的切分规则（以及 Qwen2 的 NFC）由下表补回，
 * 使结果与转换前的 tokenizer.json 相同。各名字的含义见 llama.cpp 的 llama-vocab.cpp。
 * 另外三种（llama、t5、bert）在 tokenizer_spm.c。 */
#include <string.h>

#include "model/tokenizer_internal.h"

#define PRE_REGEX_MAX 6
/* Digits 组件用 Rust 的 is_numeric，是 Unicode 17：比正则库多这两段 */
#define DIGIT "[\\p{N}\\x{11DE0}-\\x{11DE9}\\x{16FF4}-\\x{16FF6}]"
#define ENGLISH "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED(suffix)                                                                              \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" suffix "|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER "*" suffix
#define MARKS_AND_BLANKS " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define CJK_RUN "[一-龥ࠀ-一가-퟿]+"
#define BLOOM_WORD " ?[^(\\s|.,!?…。，、।۔،)]+"
/* DeepSeek-LLM 的正则所列的大小写字母 */
static const char DEEPSEEK_LETTERS[] =
    "\\s?[A-Za-z"
    "\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}\\x{1BC}-\\x{1BF}"
    "\\x{1C4}-\\x{293}\\x{295}-\\x{2AF}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37B}-\\x{37D}"
    "\\x{37F}\\x{386}\\x{388}-\\x{38A}\\x{38C}\\x{38E}-\\x{3A1}\\x{3A3}-\\x{3F5}"
    "\\x{3F7}-\\x{481}\\x{48A}-\\x{52F}\\x{531}-\\x{556}\\x{10A0}-\\x{10C5}"
    "\\x{13A0}-\\x{13F5}\\x{13F8}-\\x{13FD}\\x{1C90}-\\x{1CBA}\\x{1CBD}-\\x{1CBF}"
    "\\x{1D00}-\\x{1D2B}\\x{1D6B}-\\x{1D77}\\x{1D79}-\\x{1D9A}\\x{1E00}-\\x{1F15}"
    "\\x{1F18}-\\x{1F1D}\\x{1F20}-\\x{1F45}\\x{1F48}-\\x{1F4D}\\x{1F50}-\\x{1F57}\\x{1F59}"
    "\\x{1F5B}\\x{1F5D}\\x{1F5F}-\\x{1F7D}\\x{1F80}-\\x{1FB4}\\x{1FB6}-\\x{1FBC}\\x{1FBE}"
    "\\x{1FC2}-\\x{1FC4}\\x{1FC6}-\\x{1FCC}\\x{1FD0}-\\x{1FD3}\\x{1FD6}-\\x{1FDB}"
    "\\x{1FE0}-\\x{1FEC}\\x{1FF2}-\\x{1FF4}\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}"
    "\\x{210A}-\\x{2113}\\x{2115}\\x{2119}-\\x{211D}\\x{2124}\\x{2126}\\x{2128}"
    "\\x{212A}-\\x{212D}\\x{212F}-\\x{2134}\\x{2139}\\x{213C}-\\x{213F}\\x{2145}-\\x{2149}"
    "\\x{214E}\\x{2183}\\x{2184}\\x{2C00}-\\x{2C7B}\\x{2C7E}-\\x{2CE4}\\x{2CEB}-\\x{2CEE}"
    "\\x{2CF2}\\x{2CF3}\\x{A640}-\\x{A66D}\\x{A680}-\\x{A69B}\\x{A722}-\\x{A76F}"
    "\\x{A771}-\\x{A787}\\x{A78B}-\\x{A78E}\\x{AB70}-\\x{ABBF}\\x{FB00}-\\x{FB06}"
    "\\x{FB13}-\\x{FB17}\\x{FF21}-\\x{FF3A}\\x{FF41}-\\x{FF5A}\\x{10400}-\\x{1044F}"
    "\\x{104B0}-\\x{104D3}\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2}\\x{10CC0}-\\x{10CF2}"
    "\\x{118A0}-\\x{118DF}\\x{1E900}-\\x{1E943}"
    "]+";

typedef struct PreRule {
    const char *names; /* 空格隔开 */
    const char *regex[PRE_REGEX_MAX];
    bool nfc, ignore_merges, add_bos;
} PreRule;

static const PreRule RULES[] = {
    {.names = "gpt-2 default phi-2 jais trillion gigachat roberta-bpe", .regex = {PRETOK_GPT2}},
    {.names = "mpt olmo", .regex = {PRETOK_GPT2}, .nfc = true},
    {.names = "llama-bpe llama3 llama-v3 falcon3 pixtral lfm2",
     .regex = {PRETOK_LLAMA3},
     .ignore_merges = true,
     .add_bos = true},
    {.names = "dbrx smaug-bpe chatglm-bpe glm4", .regex = {PRETOK_LLAMA3}},
    {.names = "qwen2 deepseek-r1-qwen megrez", .regex = {PRETOK_QWEN2}, .nfc = true},
    {.names = "stablelm2 hunyuan", .regex = {PRETOK_QWEN2}},
    {.names = "smollm starcoder refact codeshell exaone minerva-7b",
     .regex = {DIGIT, PRETOK_GPT2}},
    {.names = "command-r", .regex = {DIGIT, PRETOK_GPT2}, .nfc = true},
    {.names = "falcon", .regex = {"[\\p{P}\\$\\+<=>\\^~\\|`]+", PRETOK_GPT2, "[0-9][0-9][0-9]"}},
    {.names = "tekken",
     .regex = {CASED("") "|\\p{N}|" MARKS_AND_BLANKS},
     .ignore_merges = true,
     .add_bos = true},
    {.names = "gpt-4o llama4", .regex = {CASED(ENGLISH "?") "|\\p{N}{1,3}|" MARKS_AND_BLANKS}},
    {.names = "deepseek-coder",
     .regex = {"[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", CJK_RUN, DIGIT}},
    {.names = "deepseek-llm",
     .regex = {"[\r\n]", DEEPSEEK_LETTERS, "\\s?[!-/:-~！-／：-～‘-‟　-。]+", "\\s+$", CJK_RUN,
               "\\p{N}+"}},
    {.names = "deepseek-v3 hunyuan-dense",
     .regex = {"\\p{N}{1,3}", "[一-龥\\x{3040}-ゟ゠-ヿ]+",
               "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
               "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|"
               "\\s+(?!\\S)|\\s+"}},
    {.names = "bloom poro-chat gpt3-finnish", .regex = {BLOOM_WORD}},
    {.names = "viking", .regex = {BLOOM_WORD, "\\p{N}"}},
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
    if (rule->nfc && !normalizer_add_form(&t->normalizer, NORM_NFC, name, e)) return false;
    for (size_t i = 0; i < PRE_REGEX_MAX && rule->regex[i]; i++)
        if (!pretok_add(&t->pretok, name, rule->regex[i], strlen(rule->regex[i]), false,
                        SPLIT_ISOLATED, false, e))
            return false;
    return decoder_add(&t->decoder, DECODE_BYTE_LEVEL, name, e) != NULL;
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
    if (!tokens || !vocab_init(&t->vocab, &t->arena, tokens->n, e)) return false;
    for (size_t i = 0; i < tokens->n; i++) {
        const GgufString *s = &tokens->strings[i];
        if (!vocab_add(&t->vocab, name, s->data, s->len, (int64_t)i, e)) return false;
        hash_add(h, s->data, s->len);
        hash_add(h, "\n", 1);
    }
    t->n_model = t->vocab.n_ids;
    return true;
}

static bool load_merges(Tokenizer *t, const char *name, const Gguf *g, Hash *h, Err *e) {
    const GgufValue *merges = strings_of(name, g, "tokenizer.ggml.merges", e);
    if (!merges) return false;
    if (merges->n > INT32_MAX) return err_set(e, ERR_FORMAT, "%s: 归并过多", name);
    if (!bpe_init(&t->bpe, &t->vocab, merges->n, e)) return false;
    for (size_t i = 0; i < merges->n; i++) {
        const GgufString *s = &merges->strings[i];
        if (!bpe_add_merge_text(&t->bpe, name, i, s->data, s->len, e)) return false;
        hash_add(h, s->data, s->len);
        hash_add(h, "\n", 1);
    }
    return true;
}

/* 类型数组；没有则 *types 为 NULL。 */
static bool find_types(const GgufValue **types, const char *name, const Gguf *g, int32_t n,
                       Err *e) {
    *types = gguf_find(g, "tokenizer.ggml.token_type");
    if (!*types) return true;
    bool integers = (*types)->type == GGUF_ARRAY && (*types)->item_type != GGUF_STRING &&
                    (*types)->item_type != GGUF_F32 && (*types)->item_type != GGUF_F64;
    return (integers && (*types)->n == (size_t)n) ||
           err_set(e, ERR_FORMAT, "%s: tokenizer.ggml.token_type 应是 %d 个整数", name, n);
}

/* token_type: 2 unk、3 控制（都是特殊的）、6 字节 不参与模型的匹配；2、3、4（用户定义）先行匹配（同 llama.cpp）。 */
static bool load_types(Tokenizer *t, const char *name, const Gguf *g, Err *e) {
    const GgufValue *types;
    Vocab *v = &t->vocab;
    if (!find_types(&types, name, g, v->n_ids, e)) return false;
    for (size_t i = 0; types && i < types->n; i++) {
        int64_t type = gguf_item_int(types, i);
        if (t->kind != MODEL_BPE || !t->bpe.raw_bytes)
            v->by_id[i].extra = type == 2 || type == 3 || type == 6;
        if ((type != 2 && type != 3 && type != 4) || v->by_id[i].len == 0) continue;
        AddedToken token = {.text = v->by_id[i].text, .len = v->by_id[i].len, .special = type != 4};
        if (!tokenizer_add_token(t, name, &token, e)) return false;
    }
    return true;
}

static bool load_special(Tokenizer *t, const Gguf *g, bool add_bos, bool add_eos, Err *e) {
    int64_t bos = -1, eos = -1, sep = -1, last = t->vocab.n_ids - 1;
    bool bert = t->kind == MODEL_WORDPIECE;
    if (!gguf_get_int(g, "tokenizer.ggml.bos_token_id", false, 0, last, &bos, e) ||
        !gguf_get_int(g, "tokenizer.ggml.eos_token_id", false, 0, last, &eos, e) ||
        !gguf_get_int(g, "tokenizer.ggml.seperator_token_id", false, 0, last, &sep, e) ||
        (bert && !gguf_get_int(g, "tokenizer.ggml.cls_token_id", false, 0, last, &bos, e)) ||
        !gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &add_bos, e) ||
        !gguf_get_bool(g, "tokenizer.ggml.add_eos_token", &add_eos, e))
        return false;
    t->bos = (int32_t)bos;
    t->eos = (int32_t)eos;
    if (bert && sep >= 0) eos = sep;
    if ((add_bos || bert) && bos >= 0) t->prefix.ids[t->prefix.n++] = t->bos;
    if ((add_eos || bert) && eos >= 0) t->suffix.ids[t->suffix.n++] = (int32_t)eos;
    return true;
}

static bool load_gpt2(Tokenizer *t, const char *name, const Gguf *g, Hash *h, Err *e) {
    const PreRule *rule;
    if (!find_rule(&rule, name, g, e)) return false;
    hash_add(h, rule->names, strlen(rule->names) + 1);
    t->bpe.raw_bytes = true;
    return load_tokens(t, name, g, h, e) && load_merges(t, name, g, h, e) &&
           load_types(t, name, g, e) && load_pre(t, name, rule, e) &&
           load_special(t, g, rule->add_bos, false, e);
}

/* llama、t5、bert：词表与类型之后，模型与规范化在 tokenizer_spm.c。 */
static bool load_spm(Tokenizer *t, const char *name, const Gguf *g, SpmKind kind, Hash *h, Err *e) {
    static const char *const NAMES[] = {"llama", "t5", "bert"};
    t->kind = kind == SPM_LLAMA ? MODEL_BPE : kind == SPM_T5 ? MODEL_UNIGRAM : MODEL_WORDPIECE;
    hash_add(h, NAMES[kind], strlen(NAMES[kind]) + 1);
    return load_tokens(t, name, g, h, e) && load_types(t, name, g, e) &&
           tokenizer_load_spm(t, name, g, kind, h, e) &&
           load_special(t, g, kind == SPM_LLAMA, kind == SPM_T5, e);
}

static bool load_all(Tokenizer *t, const char *name, const Gguf *g, Hash *h, Err *e) {
    static const char *const KINDS[] = {"llama", "t5", "bert"};
    const GgufValue *model = gguf_find(g, "tokenizer.ggml.model");
    if (!model || model->type != GGUF_STRING)
        return err_set(e, ERR_MISSING, "%s: 没有 tokenizer.ggml.model，文件不带分词器", name);
    if (name_in("gpt2", &model->s))
        return load_gpt2(t, name, g, h, e) && tokenizer_finish(t, name, e);
    for (int i = 0; i < 3; i++)
        if (name_in(KINDS[i], &model->s))
            return load_spm(t, name, g, (SpmKind)i, h, e) && tokenizer_finish(t, name, e);
    return err_set(e, ERR_UNSUPPORTED, "%s: 分词器类型 \"%.*s\" 不支持，支持 gpt2、llama、t5、bert",
                   name, model->s.len > 64 ? 64 : (int)model->s.len, model->s.data);
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
