/* tokenizer — 分词器（tokenizer.json 或 GGUF 自带的词表）
 * 文本 → 规范化 → 预切分 → BPE、Unigram、WordPiece 或 WordLevel → ids；全部规则来自模型自己的文件。
 * 与 HF tokenizers 逐 id 相同。BOS 只在这一处添加，绝不重复。 */
#ifndef PTQ_MODEL_TOKENIZER_H
#define PTQ_MODEL_TOKENIZER_H
#include <stdint.h>

#include "base/str.h"
#include "io/gguf.h"

typedef struct Tokenizer Tokenizer;

typedef struct TokenIds {
    int32_t *ids;
    size_t n, cap;
} TokenIds;
void token_ids_free(TokenIds *t);

/* 从文件夹打开：tokenizer.json（必需），tokenizer_config.json、special_tokens_map.json（可有可无，
 * 补充特殊 token）。是否加 BOS/EOS 只看 tokenizer.json 的 post_processor，与 transformers 5 相同。错误: 缺文件、JSON 坏、合并表循环或引用不存在的 token、正则无法编译、不支持的组件（报出其名）。 */
bool tokenizer_open_dir(Tokenizer **t, const char *dir, Err *e);
/* 从 GGUF 元数据打开（tokenizer.ggml.model 为 gpt2、llama、t5 或 bert）。g 只在调用期间使用。 */
bool tokenizer_open_gguf(Tokenizer **t, const Gguf *g, Err *e);
void tokenizer_close(Tokenizer *t); /* NULL 无妨 */

/* 编码。参数: text 任意字节（可含 NUL；坏 UTF-8 按 HF 的做法换成 U+FFFD）；len 字节数；
 * add_special 为真时按模型的 post-processor 添加 BOS/EOS。结果追加到 out 之后。 */
bool tokenizer_encode(const Tokenizer *t, const char *text, size_t len, bool add_special,
                      TokenIds *out, Err *e);
/* 解码到 out（追加）。坏的 UTF-8 片段换成 U+FFFD。skip_special 去掉特殊 token。越界 id 报错。 */
bool tokenizer_decode(const Tokenizer *t, const int32_t *ids, size_t n, bool skip_special, Str *out,
                      Err *e);
int32_t tokenizer_vocab_size(const Tokenizer *t); /* 最大 id + 1 */
/* BOS id；没有则 -1。adds_bos: 默认编码时是否会添加。 */
int32_t tokenizer_bos(const Tokenizer *t);
int32_t tokenizer_eos(const Tokenizer *t);
bool tokenizer_adds_bos(const Tokenizer *t);
/* 一句话的 BOS 规则说明（中文），如 "按模型文件添加 <|begin_of_text|>(128000)"、"不添加"。 */
const char *tokenizer_bos_policy(const Tokenizer *t);
/* 规则与词表的 SHA-256（十六进制），写入结果。 */
const char *tokenizer_sha256(const Tokenizer *t);
#endif
