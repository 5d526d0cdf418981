/* test_tokenizer — 分词器对照 HF tokenizers 的金标：ids、不加特殊 token 的 ids、两种解码、任意 id 串的解码；
 * 写进 GGUF 再打开的，ids 也相同 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "export_gguf.h"
#include "io/file.h"
#include "io/json.h"
#include "model/tokenizer.h"

static char shared[4096];

static bool find_shared(void) {
    const char *env = getenv("PTQ_SHARED");
    snprintf(shared, sizeof shared, "%s", env ? env : "../shared");
    char probe[4200];
    snprintf(probe, sizeof probe, "%s/goldens/tokenizers", shared);
    return file_is_dir(probe);
}

static json_t *load(const char *which, const char *file) {
    char path[4300];
    Err e = {0};
    snprintf(path, sizeof path, "%s/goldens/tokenizers/%s/%s", shared, which, file);
    json_t *v = json_load(path, &e);
    if (!v) fail_msg("%s", e.msg);
    return v;
}

static Tokenizer *open_golden(const char *which) {
    char dir[4300];
    Err e = {0};
    Tokenizer *t = NULL;
    snprintf(dir, sizeof dir, "%s/goldens/tokenizers/%s", shared, which);
    if (!tokenizer_open_dir(&t, dir, &e)) fail_msg("%s", e.msg);
    return t;
}

static void check_encode(const Tokenizer *t, const json_t *c, const char *key, bool special,
                         size_t number) {
    const json_t *text = json_object_get(c, "text"), *want = json_object_get(c, key);
    TokenIds ids = {0};
    Err e = {0};
    if (!tokenizer_encode(t, json_string_value(text), json_string_length(text), special, &ids, &e))
        fail_msg("第 %zu 例: %s", number, e.msg);
    if (ids.n != json_array_size(want))
        fail_msg("第 %zu 例 %s: %zu 个 id，应为 %zu 个", number, key, ids.n, json_array_size(want));
    for (size_t i = 0; i < ids.n; i++)
        if (ids.ids[i] != json_integer_value(json_array_get(want, i)))
            fail_msg("第 %zu 例 %s: 第 %zu 个 id 是 %d，应为 %lld", number, key, i, ids.ids[i],
                     (long long)json_integer_value(json_array_get(want, i)));
    token_ids_free(&ids);
}

static void check_decode(const Tokenizer *t, const json_t *ids, const json_t *want, bool skip,
                         size_t number) {
    size_t n = json_array_size(ids);
    int32_t *list = calloc(n + 1, sizeof *list);
    Str out = {0};
    Err e = {0};
    assert_non_null(list);
    for (size_t i = 0; i < n; i++)
        list[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    if (!tokenizer_decode(t, list, n, skip, &out, &e)) fail_msg("第 %zu 例: %s", number, e.msg);
    if (out.len != json_string_length(want) ||
        (out.len && memcmp(out.data, json_string_value(want), out.len) != 0))
        fail_msg("第 %zu 例解码: \"%s\"，应为 \"%s\"", number, out.data ? out.data : "",
                 json_string_value(want));
    str_free(&out);
    free(list);
}

static void check_goldens(const char *which) {
    if (!find_shared()) {
        print_message("跳过：找不到 %s/goldens/tokenizers（可设 PTQ_SHARED）\n", shared);
        skip();
    }
    Tokenizer *t = open_golden(which);
    json_t *golden = load(which, "golden.json");
    json_t *cases = json_object_get(golden, "cases"), *decode = json_object_get(golden, "decode");
    assert_int_equal(tokenizer_vocab_size(t),
                     json_integer_value(json_object_get(golden, "vocab_size")));
    assert_true(json_array_size(cases) > 300 && json_array_size(decode) >= 40);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *c = json_array_get(cases, i), *ids = json_object_get(c, "ids");
        check_encode(t, c, "ids", true, i);
        check_encode(t, c, "ids_no_special", false, i);
        check_decode(t, ids, json_object_get(c, "decoded"), false, i);
        check_decode(t, ids, json_object_get(c, "decoded_skip_special"), true, i);
    }
    for (size_t i = 0; i < json_array_size(decode); i++) {
        const json_t *d = json_array_get(decode, i), *ids = json_object_get(d, "ids");
        check_decode(t, ids, json_object_get(d, "decoded"), false, i);
        check_decode(t, ids, json_object_get(d, "decoded_skip_special"), true, i);
    }
    json_decref(golden);
    tokenizer_close(t);
}

static void test_gpt2(void **state) {
    (void)state;
    check_goldens("gpt2");
}

static void test_llama3(void **state) {
    (void)state;
    check_goldens("llama3");
}

static void test_smol(void **state) {
    (void)state;
    check_goldens("smol");
}

static void test_llama2(void **state) {
    (void)state;
    check_goldens("llama2");
}

static void test_through_gguf(void **state) {
    (void)state;
    static const char *const NAMES[] = {"gpt2", "llama3", "smol", "llama2"};
    if (!find_shared()) skip();
    for (size_t k = 0; k < sizeof NAMES / sizeof *NAMES; k++) {
        char dir[4300];
        Tokenizer *t = open_golden(NAMES[k]), *back = NULL;
        json_t *golden = load(NAMES[k], "golden.json");
        const json_t *cases = json_object_get(golden, "cases");
        GgufWriter w = {0};
        Str blob = {0};
        Gguf g = {0};
        Err e = {0};
        snprintf(dir, sizeof dir, "%s/goldens/tokenizers/%s", shared, NAMES[k]);
        if (!gguf_put_tokenizer(&w, t, dir, tokenizer_vocab_size(t), &e) || !gguf_header(&w, NULL, 0, &blob, &e) ||
            !gguf_parse(&g, NAMES[k], (const uint8_t *)blob.data, blob.len, &e) || !tokenizer_open_gguf(&back, &g, &e))
            fail_msg("%s: %s", NAMES[k], e.msg);
        for (size_t i = 0; i < json_array_size(cases); i++) {
            check_encode(back, json_array_get(cases, i), "ids", true, i);
            check_encode(back, json_array_get(cases, i), "ids_no_special", false, i);
        }
        tokenizer_close(back);
        gguf_close(&g);
        str_free(&blob);
        gguf_writer_free(&w);
        json_decref(golden);
        tokenizer_close(t);
    }
}

/* 公布的 wikitext2 测试文本在 SmolLM2 的分词下是 303,415 个 token。 */
static void test_wikitext2_count(void **state) {
    (void)state;
    if (!find_shared()) skip();
    char path[4300];
    snprintf(path, sizeof path, "%s/data/text/wikitext2.test.raw.txt", shared);
    if (!file_exists(path)) skip();
    FileMap m;
    Err e = {0};
    TokenIds ids = {0};
    Tokenizer *t = open_golden("smol");
    assert_true(file_map(&m, path, &e));
    assert_true(tokenizer_encode(t, (const char *)m.data, m.size, true, &ids, &e));
    assert_int_equal(ids.n, 303415);
    token_ids_free(&ids);
    file_unmap(&m);
    tokenizer_close(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpt2),
        cmocka_unit_test(test_llama3),
        cmocka_unit_test(test_smol),
        cmocka_unit_test(test_llama2),
        cmocka_unit_test(test_through_gguf),
        cmocka_unit_test(test_wikitext2_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
