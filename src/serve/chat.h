/* chat — /v1/chat/completions 的消息 → 一条提示：模型自己的聊天模板（Jinja），渲染同 transformers 的 apply_chat_template
 * 模板来自分词器文件夹（chat_template.jinja、tokenizer_config.json）或 GGUF 的元数据；没有模板的模型不提供聊天。 */
#ifndef PTQ_SERVE_CHAT_H
#define PTQ_SERVE_CHAT_H
#include "model/tokenizer.h"
#include "serve/api.h"

typedef struct ChatTemplate {
    const char *text; /* NULL 为没有 */
    const char *bos, *eos;
} ChatTemplate;

/* 找模板。参数: dir 为分词器文件夹，NULL 时看 gguf（可为 NULL）；内存来自 a。没有模板不是错误（text 为 NULL）。
 * 错误: 文件坏了、模板的语法不对。 */
bool chat_template_open(ChatTemplate *t, Arena *a, const char *dir, const Gguf *gguf,
                        const Tokenizer *tokenizer, Err *e);
/* 检查 messages，渲染成提示（末尾是助手的开头），追加到 out。 */
bool chat_render(const ChatTemplate *t, const json_t *request, Str *out, ApiError *err);
#endif
