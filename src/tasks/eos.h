/* eos — 生成到哪些 token 就停：分词器的 EOS，加上 generation_config.json 的 eos_token_id（一个或一列）
 * 对话模型常有几个（如 Llama 3 的 <|end_of_text|> 与 <|eot_id|>）；同 transformers 的 generate，生成其中任何一个都停。 */
#ifndef PTQ_TASKS_EOS_H
#define PTQ_TASKS_EOS_H
#include <stdint.h>

#include "model/tokenizer.h"

enum { EOS_MAX = 32 };
typedef struct EosSet {
    int32_t ids[EOS_MAX];
    int n;
} EosSet;

/* 参数: model_path 模型文件夹或 GGUF 文件；没有 generation_config.json 就只有分词器的。不在词表的 id 不会被生成，不收。
 * 错误: 文件坏了、eos_token_id 不是整数或其列表、多于 EOS_MAX 个。 */
bool eos_open(EosSet *s, const char *model_path, const Tokenizer *t, int64_t vocab, Err *e);
/* s 可为 NULL（没有 EOS）。 */
bool eos_has(const EosSet *s, int32_t id);
#endif
