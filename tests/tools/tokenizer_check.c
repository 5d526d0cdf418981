/* tokenizer_check — 供对照脚本用：按行编码、解码
 * 用法: tokenizer_check 文件夹|GGUF。标准输入每行一个 JSON：字符串 → [带特殊 token 的 ids, 不带的 ids]；
 * 数组（ids）→ [解码, 去掉特殊 token 的解码]。出错的行写 {"error": 消息}。 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/json.h"
#include "model/tokenizer.h"

static json_t *encode(const Tokenizer *t, const json_t *text, bool special, Err *e) {
    TokenIds ids = {0};
    if (!tokenizer_encode(t, json_string_value(text), json_string_length(text), special, &ids, e))
        return NULL;
    json_t *list = json_array();
    for (size_t i = 0; i < ids.n; i++) json_array_append_new(list, json_integer(ids.ids[i]));
    token_ids_free(&ids);
    return list;
}

static json_t *decode(const Tokenizer *t, const json_t *list, bool skip, Err *e) {
    size_t n = json_array_size(list);
    int32_t *ids = calloc(n + 1, sizeof *ids);
    Str s = {0};
    json_t *v = NULL;
    for (size_t i = 0; ids && i < n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    if (ids && tokenizer_decode(t, ids, n, skip, &s, e)) v = json_stringn(s.data ? s.data : "", s.len);
    str_free(&s);
    free(ids);
    return v;
}

static void answer(const Tokenizer *t, const char *line, size_t n) {
    Err e = {0};
    json_t *v = json_parse("标准输入", line, n, &e), *a = NULL, *b = NULL;
    if (json_is_string(v)) {
        a = encode(t, v, true, &e);
        b = encode(t, v, false, &e);
    } else if (v) {
        a = decode(t, v, false, &e);
        b = decode(t, v, true, &e);
    }
    json_t *out = a && b ? json_pack("[O,O]", a, b) : json_pack("{s:s}", "error", e.msg);
    json_dumpf(out, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(out);
    json_decref(a);
    json_decref(b);
    json_decref(v);
}

int main(int argc, char **argv) {
    Err e = {0};
    Gguf g;
    Tokenizer *t = NULL;
    if (argc != 2) return 2;
    bool gguf = str_ends(argv[1], ".gguf");
    bool ok = gguf ? gguf_open(&g, argv[1], &e) && tokenizer_open_gguf(&t, &g, &e)
                   : tokenizer_open_dir(&t, argv[1], &e);
    if (!ok) {
        fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    if (gguf) gguf_close(&g);
    char *line = NULL;
    size_t cap = 0;
    for (ssize_t n; (n = getline(&line, &cap, stdin)) > 0;) answer(t, line, (size_t)n);
    free(line);
    tokenizer_close(t);
    return 0;
}
