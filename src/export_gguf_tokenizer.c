/* export_gguf_tokenizer — GGUF 的分词器元数据
 * 词表、合并表、token 的种类取自 tokenizer.json；预切分在 GGUF 里只有一个名字（tokenizer.ggml.pre），
 * 逐个候选试着编码一段什么都有的文字，取与原来的分词器逐 id 相同的那个。 */
#include <stdio.h>
#include <string.h>

#include "export_gguf.h"
#include "io/file.h"
#include "io/json.h"

enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5, BYTE = 6 };

/* 各种预切分在这里切得不同：数字的组、缩写、空白与换行、各种文字、符号、组合字符、表情。 */
static const char PROBE[] =
    "Hello world! 1234567 3.14159 a1b22c333 don't I'LL we've THEY'RE  two   three    four\n\n\tTab\r\n  indent\n"
    "你好，世界。日本語のテスト 한국어 русский Ελληνικά العربية ไทย café naïve cafe\xCC\x81 ① ½ x²; foo_bar(baz) {\"k\": [1,2]}"
    " https://example.com/?q=1&r=2 😀👍🏽 …—‘’“” $100 50% 12:34 2024-01-02 <div> #tag @me \\n C++ !!! ??? ...\n \n end ";

static const char *const PRES[] = {"llama-bpe", "qwen2", "smollm", "gpt-2", "stablelm2", "gpt-4o", "dbrx", "tekken", "mpt",
                                   "command-r", "falcon", "deepseek-llm", "deepseek-coder", "deepseek-v3", "bloom"};

typedef struct Vocabulary {
    Arena arena;
    bool spm; /* SentencePiece 的 BPE：没有合并表，由分数定次序 */
    GgufString *tokens, *merges;
    int32_t *types;
    float *scores;
    int64_t unk, bos; /* −1 为没有 */
    size_t n, n_merges;
} Vocabulary;

static bool set_token(Vocabulary *v, const json_t *id, const char *text, size_t len, int type, const char *name, Err *e) {
    json_int_t i = json_integer_value(id);
    if (!json_is_integer(id) || i < 0 || (size_t)i >= v->n)
        return err_set(e, ERR_FORMAT, "%s: token 的 id 超出词嵌入的 %zu 行", name, v->n);
    char *copy = arena_strndup(&v->arena, text, len, e);
    v->tokens[i] = (GgufString){copy, len};
    v->types[i] = type;
    return copy != NULL;
}

static bool read_tokens(Vocabulary *v, const json_t *root, const char *name, Err *e) {
    json_t *vocab = json_object_get(json_object_get(root, "model"), "vocab"), *id, *added = json_object_get(root, "added_tokens");
    const char *key;
    json_object_foreach(vocab, key, id) {
        bool byte = v->spm && strlen(key) == 6 && strncmp(key, "<0x", 3) == 0;
        if (!set_token(v, id, key, strlen(key), byte ? BYTE : NORMAL, name, e)) return false;
    }
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *a = json_array_get(added, i), *text = json_object_get(a, "content");
        bool special = json_is_true(json_object_get(a, "special"));
        if (!json_is_string(text) || !set_token(v, json_object_get(a, "id"), json_string_value(text), json_string_length(text),
                                                special ? CONTROL : USER_DEFINED, name, e))
            return e->code ? false : err_set(e, ERR_FORMAT, "%s: added_tokens[%zu] 没有 content", name, i);
    }
    for (size_t i = 0; i < v->n; i++) { /* 词嵌入比词表多的行 */
        if (v->types[i]) continue;
        char *pad = arena_printf(&v->arena, e, "[PAD%zu]", i);
        if (!pad) return false;
        v->tokens[i] = (GgufString){pad, strlen(pad)};
        v->types[i] = UNUSED;
    }
    return true;
}

/* "a b" 或 ["a", "b"]，中间以 gap 相接；写法不对为 NULL。 */
static char *merge_text(const json_t *m, const char *gap, Arena *arena, Err *e) {
    const char *a = json_string_value(json_array_get(m, 0)), *b = json_string_value(json_array_get(m, 1));
    const char *text = json_string_value(m), *space = text ? strchr(text, ' ') : NULL;
    if (space) return arena_printf(arena, e, "%.*s%s%s", (int)(space - text), text, gap, space + 1);
    return a && b ? arena_printf(arena, e, "%s%s%s", a, gap, b) : NULL;
}

static bool read_merges(Vocabulary *v, const json_t *root, const char *name, Err *e) {
    json_t *merges = json_object_get(json_object_get(root, "model"), "merges");
    size_t n = json_array_size(merges);
    if (!(v->merges = ARENA_ARRAY(&v->arena, GgufString, n, e))) return false;
    for (; v->n_merges < n; v->n_merges++) {
        char *text = merge_text(json_array_get(merges, v->n_merges), v->spm ? "" : " ", &v->arena, e);
        if (!text) return e->code ? false : err_set(e, ERR_FORMAT, "%s: merges[%zu] 的写法不对", name, v->n_merges);
        v->merges[v->n_merges] = (GgufString){text, strlen(text)};
    }
    return true;
}

/* SentencePiece 的分数：并出这个 token 的第一条归并排第几，越早越高；不是并出来的最低（不会用到）。 */
static bool read_scores(Vocabulary *v, const json_t *root, const char *name, Err *e) {
    const json_t *model = json_object_get(root, "model"), *vocab = json_object_get(model, "vocab");
    const char *unk = json_string_value(json_object_get(model, "unk_token"));
    const json_t *at = unk ? json_object_get(vocab, unk) : NULL;
    v->unk = at ? (int64_t)json_integer_value(at) : -1;
    if (v->unk >= 0) v->types[v->unk] = UNKNOWN;
    if (!(v->scores = ARENA_ARRAY(&v->arena, float, v->n, e))) return false;
    for (size_t i = 0; i < v->n; i++) v->scores[i] = -(float)v->n_merges;
    for (size_t i = v->n_merges; i-- > 0;) { /* 倒着填，留下的是第一条 */
        const json_t *id = json_object_get(vocab, v->merges[i].data);
        if (!id) return err_set(e, ERR_FORMAT, "%s: merges[%zu] 并出的不在词表里", name, i);
        v->scores[json_integer_value(id)] = -(float)i;
    }
    return true;
}

/* 字节级的 BPE，或 SentencePiece 的（带字节回退）；Unigram、WordPiece 不写。 */
static bool is_supported(const json_t *root, bool *spm) {
    const json_t *model = json_object_get(root, "model");
    const char *type = json_string_value(json_object_get(model, "type")), *decoder =
        json_string_value(json_object_get(json_object_get(root, "decoder"), "type"));
    *spm = json_is_true(json_object_get(model, "byte_fallback"));
    return type && strcmp(type, "BPE") == 0 && (*spm || (decoder && strcmp(decoder, "ByteLevel") == 0));
}

/* BOS：没有写明而编码时总在开头添一个的，就是它。 */
static int32_t bos_of(const Tokenizer *t) {
    TokenIds ids = {0};
    int32_t bos = tokenizer_bos(t);
    if (bos < 0 && tokenizer_adds_bos(t) && tokenizer_encode(t, "", 0, true, &ids, NULL) && ids.n == 1) bos = ids.ids[0];
    token_ids_free(&ids);
    return bos;
}

/* 第 choice 种候选：pre 的名字，或段首补不补空格。 */
static void put_all(GgufWriter *w, const Vocabulary *v, const Tokenizer *t, size_t choice) {
    const char *pre = v->spm ? "default" : PRES[choice];
    gguf_put_string(w, "tokenizer.ggml.model", v->spm ? "llama" : "gpt2", v->spm ? 5 : 4);
    gguf_put_string(w, "tokenizer.ggml.pre", pre, strlen(pre));
    gguf_put_strings(w, "tokenizer.ggml.tokens", v->tokens, v->n);
    gguf_put_i32s(w, "tokenizer.ggml.token_type", v->types, v->n);
    if (v->spm) {
        gguf_put_f32s(w, "tokenizer.ggml.scores", v->scores, v->n);
        gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", choice == 0);
        if (v->unk >= 0) gguf_put_u32(w, "tokenizer.ggml.unknown_token_id", (uint32_t)v->unk);
    } else {
        gguf_put_strings(w, "tokenizer.ggml.merges", v->merges, v->n_merges);
    }
    if (v->bos >= 0) gguf_put_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)v->bos);
    if (tokenizer_eos(t) >= 0) gguf_put_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)tokenizer_eos(t));
    gguf_put_bool(w, "tokenizer.ggml.add_bos_token", tokenizer_adds_bos(t));
}

/* 只有元数据的 GGUF 打开成分词器，编码 PROBE，与 t 的相同。 */
static bool same_ids(const GgufWriter *w, const Tokenizer *t) {
    Str blob = {0};
    Gguf g = {0};
    Tokenizer *other = NULL;
    TokenIds a = {0}, b = {0};
    Err e = {0};
    bool same = gguf_header(w, NULL, 0, &blob, &e) && gguf_parse(&g, "gguf", (const uint8_t *)blob.data, blob.len, &e) &&
                tokenizer_open_gguf(&other, &g, &e) && tokenizer_encode(other, PROBE, sizeof PROBE - 1, true, &a, &e) &&
                tokenizer_encode(t, PROBE, sizeof PROBE - 1, true, &b, &e) && a.n == b.n &&
                memcmp(a.ids, b.ids, a.n * sizeof *a.ids) == 0;
    token_ids_free(&a);
    token_ids_free(&b);
    tokenizer_close(other);
    gguf_close(&g);
    str_free(&blob);
    return same;
}

/* 逐个试。返回: 合的那一种；都不合为 −1。 */
static int find_choice(const Vocabulary *v, const Tokenizer *t) {
    size_t n = v->spm ? 2 : sizeof PRES / sizeof *PRES;
    for (size_t i = 0; i < n; i++) {
        GgufWriter w = {0};
        put_all(&w, v, t, i);
        bool same = same_ids(&w, t);
        gguf_writer_free(&w);
        if (same) return (int)i;
    }
    return -1;
}

/* 聊天模板（tokenizer_config.json 里的字符串）。 */
static void put_template(GgufWriter *w, const char *dir) {
    Arena a = {0};
    char *path = file_join(&a, dir, "tokenizer_config.json", NULL);
    json_t *root = path && file_exists(path) ? json_load(path, NULL) : NULL;
    const json_t *text = json_object_get(root, "chat_template");
    if (json_is_string(text))
        gguf_put_string(w, "tokenizer.chat_template", json_string_value(text), json_string_length(text));
    json_decref(root);
    arena_free(&a);
}

bool gguf_put_tokenizer(GgufWriter *w, const Tokenizer *t, const char *dir, int64_t vocab, Err *e) {
    Vocabulary v = {.n = (size_t)vocab, .bos = bos_of(t)};
    char *path = file_join(&v.arena, dir, "tokenizer.json", e);
    json_t *root = path ? json_load(path, e) : NULL;
    v.tokens = root ? ARENA_ARRAY(&v.arena, GgufString, v.n, e) : NULL;
    v.types = v.tokens ? ARENA_ARRAY(&v.arena, int32_t, v.n, e) : NULL;
    bool ok = v.types != NULL;
    if (ok && !is_supported(root, &v.spm))
        ok = err_set(e, ERR_UNSUPPORTED, "%s: 只有 BPE 的分词器（字节级，或 SentencePiece 带字节回退的）写得进 GGUF", path);
    ok = ok && read_tokens(&v, root, path, e) && read_merges(&v, root, path, e) && (!v.spm || read_scores(&v, root, path, e));
    int choice = ok ? find_choice(&v, t) : -1;
    if (ok && choice < 0) ok = err_set(e, ERR_UNSUPPORTED, "%s: llama.cpp 没有与它相同的预切分，写成 GGUF 会切得不一样", path);
    if (ok) {
        put_all(w, &v, t, (size_t)choice);
        put_template(w, dir);
    }
    json_decref(root);
    arena_free(&v.arena);
    return ok;
}
