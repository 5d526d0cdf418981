/* fuzz_tokenizer — tokenizer.json 的模糊测试
 * 输入是 tokenizer.json；其后可接一个 NUL 与要编码的文本。打开成功就编码、解码：
 * id 都在词表内；解码不出错；同一文本两次编码相同。 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "model/tokenizer_internal.h"

#define TEXT_MAX 200 /* 坏正则的回溯是指数的，文本要短 */

static void encode(const Tokenizer *t, const char *text, size_t n, bool special) {
    TokenIds a = {0}, b = {0};
    Str out = {0};
    Err e = {0};
    if (!tokenizer_encode(t, text, n, special, &a, &e)) { /* 回溯过多等 */
        if (e.code == ERR_NONE || a.n) abort();
        return token_ids_free(&a);
    }
    for (size_t i = 0; i < a.n; i++)
        if (a.ids[i] < 0 || a.ids[i] >= tokenizer_vocab_size(t)) abort();
    if (!tokenizer_encode(t, text, n, special, &b, &e) || a.n != b.n ||
        (a.n && memcmp(a.ids, b.ids, a.n * sizeof *a.ids) != 0))
        abort();
    if (!tokenizer_decode(t, a.ids, a.n, special, &out, &e) || !utf8_valid(out.data, out.len))
        abort();
    token_ids_free(&a);
    token_ids_free(&b);
    str_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char SAMPLE[] = "<s>The 12 cafe\xCC\x81s don't  stop.\r\n\n \xE4\xBD\xA0\xE5\xA5\xBD </s>abc";
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    size_t len = nul ? (size_t)(nul - data) : size;
    Tokenizer *t = NULL;
    Err e = {0};
    log_set_quiet(true);
    if (tokenizer_open_json(&t, "fuzz", data, len, NULL, &e)) {
        const char *text = nul ? (const char *)nul + 1 : SAMPLE;
        size_t n = nul ? size - len - 1 : sizeof SAMPLE - 1;
        if (n > TEXT_MAX) n = TEXT_MAX;
        encode(t, text, n, true);
        encode(t, text, n, false);
    } else if (e.code == ERR_NONE || t) {
        abort();
    }
    tokenizer_close(t);
    return 0;
}
