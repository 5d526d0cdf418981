/* test_tokenizer — 分词器各部分的单元测试（只用仓库内的数据） */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "io/file.h"
#include "io/json.h"
#include "model/tokenizer_internal.h"
#include "tests/unit/tmp.h"

#define DEMO "data/raw/demo/model"
#define OK "tests/data/ok/"

static Tokenizer *open_dir(const char *dir) {
    Err e = {0};
    Tokenizer *t = NULL;
    if (!tokenizer_open_dir(&t, dir, &e)) fail_msg("%s（要在仓库根目录运行）", e.msg);
    return t;
}

/* 打开样本文件，可附上 tokenizer_config.json 的内容。 */
static Tokenizer *open_json(const char *path, const char *config) {
    Err e = {0};
    FileMap m;
    Tokenizer *t = NULL;
    json_t *c = config ? json_parse("config", config, strlen(config), &e) : NULL;
    bool ok = (!config || c) && file_map(&m, path, &e);
    if (!ok || !tokenizer_open_json(&t, path, m.data, m.size, c, &e)) fail_msg("%s", e.msg);
    file_unmap(&m);
    json_decref(c);
    return t;
}

static Tokenizer *open_gguf(const char *path) {
    Err e = {0};
    Gguf g;
    Tokenizer *t = NULL;
    if (!gguf_open(&g, path, &e) || !tokenizer_open_gguf(&t, &g, &e)) fail_msg("%s", e.msg);
    gguf_close(&g);
    return t;
}

static TokenIds encode(const Tokenizer *t, const char *text, size_t n, bool special) {
    TokenIds ids = {0};
    Err e = {0};
    if (!tokenizer_encode(t, text, n, special, &ids, &e)) fail_msg("%s", e.msg);
    return ids;
}

/* 编码的各 token 文本以 | 相接，应等于 want（字节级字母表的写法）。 */
static void check_pieces(const Tokenizer *t, const char *text, bool special, const char *want) {
    TokenIds ids = encode(t, text, strlen(text), special);
    Str s = {0};
    for (size_t i = 0; i < ids.n; i++) {
        const VocabEntry *v = &t->vocab.by_id[ids.ids[i]];
        if (i) str_add(&s, "|");
        str_addn(&s, v->text, v->len);
    }
    assert_string_equal(s.data ? s.data : "", want);
    str_free(&s);
    token_ids_free(&ids);
}

/* ---- UTF-8 与规范化 ---- */

static void check_lossy(const char *in, size_t n, const char *want) {
    Str s = {0};
    utf8_add_lossy(&s, in, n);
    assert_int_equal(s.len, strlen(want));
    assert_string_equal(s.data ? s.data : "", want);
    assert_int_equal(utf8_valid(in, n), s.len == n && memcmp(s.data ? s.data : "", in, n) == 0);
    str_free(&s);
}

/* Unicode 标准 3.9 节的例子：每个最大子部分换成一个 U+FFFD。 */
static void test_lossy_utf8(void **state) {
    (void)state;
#define BAD "\xEF\xBF\xBD"
    check_lossy("", 0, "");
    check_lossy("a\xC3\xA9", 3, "a\xC3\xA9");
    check_lossy("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", 9, BAD BAD BAD BAD BAD BAD BAD BAD "A");
    check_lossy("\xED\xA0\x80\xED\xBF\xBF", 6, BAD BAD BAD BAD BAD BAD);
    check_lossy("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", 9, BAD BAD BAD BAD BAD "A" BAD BAD "B");
    check_lossy("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", 9, BAD BAD BAD BAD "A");
    check_lossy("\xF0\x9F\x98", 3, BAD);
#undef BAD
}

static void check_norm(NormForm form, const char *in, const char *want) {
    Str s = {0};
    Err e = {0};
    assert_true(unicode_normalize(form, in, strlen(in), &s, &e));
    assert_string_equal(s.data, want);
    str_free(&s);
}

static void test_normalize(void **state) {
    (void)state;
    check_norm(NORM_NFC, "plain", "plain");
    check_norm(NORM_NFC, "e\xCC\x81", "\xC3\xA9");
    check_norm(NORM_NFD, "\xC3\xA9", "e\xCC\x81");
    check_norm(NORM_NFC, "a\xCC\x81\xCC\xA3", "\xE1\xBA\xA1\xCC\x81");             /* 重排后合成 */
    check_norm(NORM_NFC, "\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB", "\xED\x95\x9C");  /* 한 */
    check_norm(NORM_NFKC, "\xEF\xAC\x81", "fi");
    check_norm(NORM_NFKD, "\xC2\xBD", "1\xE2\x81\x84" "2");
    check_norm(NORM_NFKC, "\xE3\x8B\xBF", "\xE3\x8B\xBF"); /* U+32FF：HF 的规范化库不认识 */
}

static void test_byte_alphabet(void **state) {
    (void)state;
    for (int b = 0; b < 256; b++) assert_int_equal(byte_from_char(byte_to_char((uint8_t)b)), b);
    assert_int_equal(byte_to_char(' '), 0x120);
    assert_int_equal(byte_to_char('\n'), 0x10A);
    assert_int_equal(byte_from_char(0x144), -1);
    assert_int_equal(byte_from_char(0x20), -1);
}

/* ---- 正则 ---- */

static void check_regex(const char *pattern, const char *want) {
    Str s = {0};
    Err e = {0};
    if (!pretok_translate("re", pattern, strlen(pattern), &s, &e)) fail_msg("%s", e.msg);
    assert_string_equal(s.data, want);
    str_free(&s);
}

static void test_translate(void **state) {
    (void)state;
    check_regex("a+|(?:b)c", "a+|(?:b)c");
    check_regex("\\s[^\\S]", "\\p{White_Space}[^\\P{White_Space}]");
    check_regex("(?m:.)x{,3}", "(?s:.)x{0,3}");
    check_regex("ab{1,3}+", "a(?:b{1,3})+");
    check_regex("(ab){2}?", "(?:(ab){2})?");
    check_regex("[ab]{1,3}+c++", "(?:[ab]{1,3})+c++");
    check_regex("\\p{Lt}\\p{Zs}\\p{Greek}", "\\p{Lt}\\p{Zs}\\p{sc:Greek}");
    check_regex("\\u00e9[\\h]\\v", "\\x{00e9}[0-9A-Fa-f]\\x0b");
    check_regex("(?#note)a{b}", "a{b}");
}

typedef struct Pieces {
    Str text;
} Pieces;

static bool collect(void *ctx, const char *s, size_t n, Err *e) {
    Pieces *p = ctx;
    (void)e;
    if (p->text.len) str_add(&p->text, "|");
    str_addn(&p->text, s, n);
    return true;
}

static void check_stages(const Pretok *p, const char *text, size_t zero, const char *want) {
    Pieces got = {{0}};
    Err e = {0};
    PretokWork *w = pretok_work_new();
    assert_non_null(w);
    if (!pretok_run(p, w, (NormText){text, strlen(text), zero}, collect, &got, &e))
        fail_msg("%s", e.msg);
    assert_string_equal(got.text.data ? got.text.data : "", want);
    str_free(&got.text);
    pretok_work_free(w);
}

static void check_split(const char *pattern, SplitBehavior how, bool invert, const char *text,
                        const char *want) {
    Pretok p = {0};
    Err e = {0};
    if (!pretok_add(&p, "re", pattern, strlen(pattern), false, how, invert, &e)) fail_msg("%s", e.msg);
    check_stages(&p, text, 0, want);
    pretok_free(&p);
}

/* 前五行是 tokenizers 自己的测试数据。 */
static void test_split_behaviors(void **state) {
    (void)state;
    const char *s = "The-final--countdown";
    check_split("-", SPLIT_REMOVED, false, s, "The|final|countdown");
    check_split("-", SPLIT_ISOLATED, false, s, "The|-|final|-|-|countdown");
    check_split("-", SPLIT_MERGED_PREVIOUS, false, s, "The-|final-|-|countdown");
    check_split("-", SPLIT_MERGED_NEXT, false, s, "The|-final|-|-countdown");
    check_split("-", SPLIT_CONTIGUOUS, false, s, "The|-|final|--|countdown");
    check_split("-", SPLIT_REMOVED, true, s, "-|-|-");
    check_split("(?=f)", SPLIT_ISOLATED, false, s, "The-|final--countdown");
}

static void test_split_unicode(void **state) {
    (void)state;
    check_split(PRETOK_GPT2, SPLIT_ISOLATED, false, "Hi there's 12  x\n", "Hi| there|'s| 12| | x|\n");
    check_split(PRETOK_LLAMA3, SPLIT_ISOLATED, false, "it'\xC5\xBF 12345\r\n\n  y",
                "it|'\xC5\xBF| |123|45|\r\n\n| | y");
    check_split(PRETOK_QWEN2, SPLIT_ISOLATED, false, "a12\xC2\x85.", "a|1|2|\xC2\x85|.");
    check_split("\\p{L}+", SPLIT_ISOLATED, false, "a\xF0\xB1\x8D\x90.", "a\xF0\xB1\x8D\x90|."); /* U+31350 */
}

/* ---- 整体 ---- */

static void test_demo(void **state) {
    (void)state;
    Tokenizer *t = open_dir(DEMO);
    assert_int_equal(tokenizer_vocab_size(t), 4096);
    assert_int_equal(tokenizer_bos(t), 0);
    assert_false(tokenizer_adds_bos(t));
    assert_string_equal(tokenizer_bos_policy(t), "不添加");
    assert_int_equal(strlen(tokenizer_sha256(t)), 64);
    FileMap m;
    Err e = {0};
    assert_true(file_map(&m, "data/raw/demo/text/test.txt", &e));
    TokenIds ids = encode(t, (const char *)m.data, m.size, true);
    Str back = {0};
    assert_true(tokenizer_decode(t, ids.ids, ids.n, false, &back, &e));
    assert_int_equal(back.len, m.size);
    assert_memory_equal(back.data, m.data, m.size);
    str_free(&back);
    token_ids_free(&ids);
    file_unmap(&m);
    tokenizer_close(t);
}

static void test_append_and_nul(void **state) {
    (void)state;
    Tokenizer *t = open_dir(DEMO);
    Err e = {0};
    TokenIds ids = {0};
    assert_true(tokenizer_encode(t, "a\0b", 3, true, &ids, &e));
    assert_true(tokenizer_encode(t, "\xFF<|endoftext|>", 14, true, &ids, &e));
    Str s = {0};
    assert_true(tokenizer_decode(t, ids.ids, ids.n, true, &s, &e)); /* 接在后面；特殊 token 去掉 */
    assert_int_equal(s.len, 6);
    assert_memory_equal(s.data, "a\0b\xEF\xBF\xBD", 6);
    int32_t bad[] = {0, 4096};
    assert_false(tokenizer_decode(t, bad, 2, false, &s, &e));
    assert_non_null(strstr(e.msg, "id 4096"));
    bad[1] = -1;
    assert_false(tokenizer_decode(t, bad, 2, false, &s, &e));
    str_free(&s);
    token_ids_free(&ids);
    tokenizer_close(t);
}

static void test_template(void **state) {
    (void)state;
    Tokenizer *t = open_json(OK "tokenizer/template.json", NULL);
    check_pieces(t, " the in", true, "<s>|Ġthe|Ġ|in|</s>");
    check_pieces(t, "12e\xCC\x81</s>", false, "12|Ã©|</s>");
    check_pieces(t, "", true, "<s>|</s>");
    assert_true(tokenizer_adds_bos(t));
    assert_string_equal(tokenizer_bos_policy(t),
                        "按模型文件在开头添加 <s>(262)，在末尾添加 </s>(263)");
    tokenizer_close(t);
}

/* 有 tokenizer.json 时 transformers 不理会 add_bos_token、add_eos_token，只看 post_processor。 */
static void test_config_rules(void **state) {
    (void)state;
    static const struct {
        const char *file, *config, *want;
    } CASES[] = {
        {"template.json", "{\"bos_token\": \"<s>\"}", "<s>|a|</s>"},
        {"template.json", "{\"bos_token\": \"<s>\", \"add_bos_token\": false}", "<s>|a|</s>"},
        {"gpt2.json", "{\"bos_token\": \"<s>\"}", "a"},
        {"gpt2.json", "{\"bos_token\": {\"content\": \"<s>\"}, \"add_bos_token\": true}", "a"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        char path[128];
        snprintf(path, sizeof path, OK "tokenizer/%s", CASES[i].file);
        Tokenizer *t = open_json(path, CASES[i].config);
        check_pieces(t, "a", true, CASES[i].want);
        check_pieces(t, "a", false, "a");
        tokenizer_close(t);
    }
}

/* config 补登记的 token：新的取下一个 id；属性照写的做。 */
static void test_config_tokens(void **state) {
    (void)state;
    Tokenizer *t = open_json(
        OK "tokenizer/gpt2.json",
        "{\"pad_token\": \"[PAD]\", \"image_token\": \"<i>\", \"add_bos_token\": true,"
        "\"extra_special_tokens\": [\"[X]\"], \"added_tokens_decoder\": {"
        "\"265\": {\"content\": \"<r>\", \"rstrip\": true, \"normalized\": false},"
        "\"264\": {\"content\": \"<l>\", \"lstrip\": true, \"special\": true},"
        "\"266\": {\"content\": \"one\", \"single_word\": true}}}");
    assert_int_equal(tokenizer_vocab_size(t), 270);
    check_pieces(t, "a \n<l> <r>  b[PAD]<i>[X]", false, "a|<l>|Ġ|<r>|b|[PAD]|<i>|[X]");
    check_pieces(t, "one ones one", false, "one|Ġ|o|n|e|s|Ġ|one");
    int32_t ids[] = {264, 265, 267};
    Str s = {0};
    Err e = {0};
    assert_true(tokenizer_decode(t, ids, 3, true, &s, &e));
    assert_string_equal(s.data, "<r>"); /* <l> 与 [PAD] 是特殊的 */
    str_free(&s);
    tokenizer_close(t);
}

static void test_special_map_file(void **state) {
    (void)state;
    Err e = {0};
    FileMap m;
    const char *dir = tmp_path("special_map");
    assert_true(file_mkdirs(dir, &e) && file_map(&m, OK "tokenizer/gpt2.json", &e));
    char path[1200];
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    tmp_write(path, m.data, m.size);
    file_unmap(&m);
    snprintf(path, sizeof path, "%s/special_tokens_map.json", dir);
    const char map[] = "{\"eos_token\": {\"content\": \"</s>\", \"lstrip\": true}}";
    tmp_write(path, map, sizeof map - 1);
    Tokenizer *t = open_dir(dir);
    assert_int_equal(tokenizer_eos(t), 263);
    assert_int_equal(tokenizer_bos(t), -1);
    tokenizer_close(t);
    assert_false(tokenizer_open_dir(&t, tmp_path("nowhere"), &e));
    assert_int_equal(e.code, ERR_MISSING);
}

/* ---- GGUF ---- */

static void check_same(const char *json, const char *gguf, const char *text) {
    Tokenizer *a = open_json(json, NULL), *b = open_gguf(gguf);
    TokenIds x = encode(a, text, strlen(text), false), y = encode(b, text, strlen(text), false);
    assert_int_equal(x.n, y.n);
    assert_true(x.n > 10);
    assert_memory_equal(x.ids, y.ids, x.n * sizeof *x.ids);
    token_ids_free(&x);
    token_ids_free(&y);
    tokenizer_close(a);
    tokenizer_close(b);
}

static void test_gguf(void **state) {
    (void)state;
    const char *text = " the12 in</s>1212 caf\xC3\xA9 it's   12\n\n";
    check_same(OK "tokenizer/gpt2.json", OK "tokenizer_gguf/gpt2.gguf", text);
    check_same(OK "tokenizer/gpt2.json", OK "tokenizer_gguf/no_pre.gguf", text);
    check_same(OK "tokenizer/smollm.json", OK "tokenizer_gguf/smollm.gguf", text);
    Tokenizer *t = open_gguf(OK "tokenizer_gguf/smollm.gguf");
    check_pieces(t, "12 the", true, "1|2|Ġthe");
    assert_int_equal(tokenizer_eos(t), 263);
    tokenizer_close(t);
    t = open_gguf(OK "tokenizer_gguf/llama3.gguf"); /* 未写 add_bos_token 时 llama-bpe 添加 */
    check_pieces(t, "12 the", true, "<s>|12|Ġthe");
    tokenizer_close(t);
    t = open_gguf(OK "tokenizer_gguf/qwen2.gguf"); /* NFC，add_eos_token */
    check_pieces(t, "12e\xCC\x81", true, "1|2|Ã©|</s>");
    tokenizer_close(t);
}

/* ---- 其余三种模型 ---- */

static void check_decoded(const Tokenizer *t, const char *text, bool special, const char *want) {
    TokenIds ids = encode(t, text, strlen(text), special);
    Str s = {0};
    Err e = {0};
    assert_true(tokenizer_decode(t, ids.ids, ids.n, true, &s, &e));
    assert_string_equal(s.data ? s.data : "", want);
    str_free(&s);
    token_ids_free(&ids);
}

/* SentencePiece 式的 BPE：段首补 ▁，词表外的字符写成字节；GGUF 由分数推出的归并与 merges 相同。 */
static void test_spm(void **state) {
    (void)state;
    static const char *const FILES[] = {OK "tokenizer/spm.json", OK "tokenizer_gguf/llama.gguf"};
    for (int i = 0; i < 2; i++) {
        Tokenizer *t = i ? open_gguf(FILES[i]) : open_json(FILES[i], NULL);
        check_pieces(t, "the the", true, "<s>|▁the|▁the");
        check_pieces(t, "aaaaa", false, "▁a|aa|aa");
        check_pieces(t, "tx\n</s>é", false, "▁t|<0x78>|<0x0A>|</s>|▁|é");
        check_decoded(t, " the  \xE4\xBD\xA0", true, " the  \xE4\xBD\xA0");
        const int32_t bad[] = {3 + 0xE4, 3 + 0xBD};
        Str s = {0};
        Err e = {0};
        assert_true(tokenizer_decode(t, bad, 2, false, &s, &e));
        assert_string_equal(s.data, "\xEF\xBF\xBD\xEF\xBF\xBD"); /* 不成字符的字节各写一个 U+FFFD */
        str_free(&s);
        tokenizer_close(t);
    }
}

static void test_unigram(void **state) {
    (void)state;
    Tokenizer *t = open_json(OK "tokenizer/unigram.json", NULL);
    check_pieces(t, "the  in", false, "▁the|▁|in");
    check_pieces(t, "txyz\xEF\xBC\xA1" "a", false, "▁t|<unk>|a"); /* 相邻的 unk 合成一个 */
    check_decoded(t, "the in", false, "the in");
    tokenizer_close(t);
    t = open_gguf(OK "tokenizer_gguf/t5.gguf");
    check_pieces(t, "  the  in ", true, "▁the|▁|in|</s>");
    check_decoded(t, " the  in ", true, "the in");
    tokenizer_close(t);
}

static void test_wordpiece(void **state) {
    (void)state;
    Tokenizer *t = open_json(OK "tokenizer/wordpiece.json", NULL);
    check_pieces(t, "Ining,The CAF\xC3\x89\x07\tx", true, "[CLS]|in|##in|##g|,|the|cafe|[UNK]|[SEP]");
    check_decoded(t, "ining , the", true, "ining, the");
    tokenizer_close(t);
    t = open_gguf(OK "tokenizer_gguf/bert.gguf");
    check_pieces(t, "Ining,The CAF\xC3\x89 x", true, "[CLS]|▁in|in|g|▁,|▁the|▁cafe|[UNK]|[SEP]");
    check_decoded(t, "ining the", true, "ining the");
    tokenizer_close(t);
    t = open_json(OK "tokenizer/wordlevel.json", NULL);
    check_pieces(t, "the, cat", false, "the|,|<unk>");
    TokenIds ids = encode(t, "the\0", 4, false); /* NUL 不是单词字符 */
    assert_int_equal(ids.n, 2);
    token_ids_free(&ids);
    tokenizer_close(t);
}

/* Metaspace 的 first 只补在原文的开头；字符类与脚本的切分。 */
static void test_more_splits(void **state) {
    (void)state;
    Err e = {0};
    Pretok p = {0};
    PretokStage *s = pretok_stage(&p, PRETOK_METASPACE, "m", &e);
    s->text = "_";
    s->len = 1;
    s->scheme = META_FIRST;
    assert_true(pretok_add(&p, "m", "_", 1, true, SPLIT_MERGED_NEXT, false, &e));
    check_stages(&p, "a b", 1, "_a|_b");
    check_stages(&p, "a b", 0, "a|_b");
    pretok_free(&p);
    assert_non_null(pretok_stage(&p, PRETOK_SCRIPTS, "s", &e));
    check_stages(&p, "  ab \xE4\xB8\xAD\xE3\x81\x82 x1", 1, "ab |\xE4\xB8\xAD\xE3\x81\x82 |x|1");
    pretok_free(&p);
    assert_true(pretok_add_class(&p, "w", class_word, true, SPLIT_REMOVED, true, &e));
    check_stages(&p, "ab, \xE4\xB8\xAD!? 1", 1, "ab|,|\xE4\xB8\xAD|!?|1");
    pretok_free(&p);
    s = pretok_stage(&p, PRETOK_FIXED, "f", &e);
    s->len = 2;
    check_stages(&p, "a\xC3\xA9" "bcd", 1, "a\xC3\xA9|bc|d");
    pretok_free(&p);
}

/* ---- 线程与时间 ---- */

typedef struct Job {
    const Tokenizer *t;
    FileMap m;
    TokenIds ids;
    bool ok;
} Job;

static void *encode_job(void *arg) {
    Job *j = arg;
    Err e = {0};
    j->ok = tokenizer_encode(j->t, (const char *)j->m.data, j->m.size, true, &j->ids, &e);
    return NULL;
}

static void test_threads(void **state) {
    (void)state;
    enum { N = 4 };
    Job jobs[N] = {{0}};
    pthread_t threads[N];
    Err e = {0};
    Tokenizer *t = open_dir(DEMO);
    for (int i = 0; i < N; i++) {
        jobs[i].t = t;
        assert_true(file_map(&jobs[i].m, "data/raw/demo/text/calib.txt", &e));
        if (jobs[i].m.size > 200000) jobs[i].m.size = 200000;
        assert_int_equal(pthread_create(&threads[i], NULL, encode_job, &jobs[i]), 0);
    }
    for (int i = 0; i < N; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < N; i++) {
        assert_true(jobs[i].ok);
        assert_int_equal(jobs[i].ids.n, jobs[0].ids.n);
        assert_memory_equal(jobs[i].ids.ids, jobs[0].ids.ids, jobs[0].ids.n * sizeof(int32_t));
    }
    for (int i = 0; i < N; i++) token_ids_free(&jobs[i].ids);
    tokenizer_close(t);
}

static double encode_seconds(const Tokenizer *t, const char *unit, size_t n) {
    Str s = {0};
    for (size_t i = 0; i < n; i++) str_add(&s, unit);
    struct timespec a, b;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
    TokenIds ids = encode(t, s.data, s.len, true);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
    token_ids_free(&ids);
    str_free(&s);
    return (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
}

/* 没有切分点的长串：长 16 倍，用时应约 16 倍；平方时间会是 256 倍。 */
static void test_long_runs(void **state) {
    (void)state;
    static const char *const UNITS[] = {"a", " ", "\n", "'", "1", "\xE4\xB8\xAD", "\xCC\x81\xCC\x96"};
    Tokenizer *demo = open_dir(DEMO), *nfc = open_json(OK "tokenizer/template.json", NULL);
    for (size_t i = 0; i < sizeof UNITS / sizeof *UNITS; i++)
        for (int k = 0; k < 2; k++) {
            const Tokenizer *t = k ? nfc : demo;
            double small = encode_seconds(t, UNITS[i], 10000), big = encode_seconds(t, UNITS[i], 160000);
            if (big > 80 * small + 0.02)
                fail_msg("\"%s\" × 160000 用了 %.3f 秒，× 10000 用了 %.3f 秒", UNITS[i], big, small);
        }
    tokenizer_close(demo);
    tokenizer_close(nfc);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lossy_utf8),       cmocka_unit_test(test_normalize),
        cmocka_unit_test(test_byte_alphabet),    cmocka_unit_test(test_translate),
        cmocka_unit_test(test_split_behaviors),  cmocka_unit_test(test_split_unicode),
        cmocka_unit_test(test_demo),             cmocka_unit_test(test_append_and_nul),
        cmocka_unit_test(test_template),         cmocka_unit_test(test_config_rules),
        cmocka_unit_test(test_config_tokens),    cmocka_unit_test(test_special_map_file),
        cmocka_unit_test(test_gguf), cmocka_unit_test(test_spm), cmocka_unit_test(test_unigram),
        cmocka_unit_test(test_wordpiece), cmocka_unit_test(test_more_splits),            cmocka_unit_test(test_threads),
        cmocka_unit_test(test_long_runs),
    };
    return cmocka_run_group_tests(tests, tmp_make, tmp_done);
}
