/* fuzz_tokenizer_gguf — GGUF 自带的分词器数据的模糊测试
 * 容器合法的文件再取其分词器；打开成功就编码、解码，id 都在词表内。 */
#include <stdlib.h>

#include "io/gguf.h"
#include "model/tokenizer_internal.h"

static void use(const Tokenizer *t) {
    static const char SAMPLE[] = "<s>The 12 cafe\xCC\x81s don't  stop.\r\n\n \xE4\xBD\xA0 \xFF</s>ab";
    TokenIds ids = {0};
    Str out = {0};
    Err e = {0};
    if (!tokenizer_encode(t, SAMPLE, sizeof SAMPLE - 1, true, &ids, &e)) { /* 没有 unk 等 */
        if (e.code == ERR_NONE || ids.n) abort();
        return token_ids_free(&ids);
    }
    for (size_t i = 0; i < ids.n; i++)
        if (ids.ids[i] < 0 || ids.ids[i] >= tokenizer_vocab_size(t)) abort();
    if (!tokenizer_decode(t, ids.ids, ids.n, false, &out, &e) || !utf8_valid(out.data, out.len))
        abort();
    token_ids_free(&ids);
    str_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Gguf g;
    Err e = {0};
    Tokenizer *t = NULL;
    if (gguf_parse(&g, "fuzz", data, size, &e)) {
        if (tokenizer_open_gguf(&t, &g, &e))
            use(t);
        else if (e.code == ERR_NONE || t)
            abort();
    }
    tokenizer_close(t);
    gguf_close(&g);
    return 0;
}
