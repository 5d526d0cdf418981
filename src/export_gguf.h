/* export_gguf — 写成 llama.cpp 能装入的 GGUF
 * 组宽是 32 的倍数（或整行）的：对称的 2 到 4 位写成 Q4_0，对称的 5 到 8 位与整数零点的 5 到 7 位写成 Q8_0，都逐个权重不变；
 * 非对称的 2 到 4 位写成 Q4_1（最小值 −scale·zero 舍入到 f16 一次）。别的写成反量化的 F16。 */
#ifndef PTQ_EXPORT_GGUF_H
#define PTQ_EXPORT_GGUF_H
#include "io/gguf_write.h"
#include "model/model.h"
#include "model/tokenizer.h"

/* 这个量化矩阵写成哪种块类型；都放不下为 DT_F16（反量化）。q 可以在设备上。 */
DType gguf_block_type(const QTensor *q);
/* 一行编码成 type 的块（gguf_block_type 给出的量化类型）。q 在主机。返回: 缩放放不进 f16（溢出）为假。 */
bool gguf_encode_row(const QTensor *q, DType type, int64_t row, uint8_t *dst);
/* 分词器的元数据（llama.cpp 的 gpt2 与 llama 两种）。参数: dir 里有 tokenizer.json；vocab 是词嵌入的行数。pre 的名字、段首补不补空格
 * 由试着编码定出，与 t 逐 id 相同。错误: 不是字节级或 SentencePiece 的 BPE，或 llama.cpp 没有这样的切分。 */
bool gguf_put_tokenizer(GgufWriter *w, const Tokenizer *t, const char *dir, int64_t vocab, Err *e);
/* llama.cpp 有没有这个家族、放不放得下它的设置。 */
bool gguf_check_family(const Model *m, Err *e);
/* 这个架构在 llama.cpp 里须有自己的 output.weight（共享词嵌入的也写一份）。 */
bool gguf_needs_head(const ModelConfig *c);
/* 架构与超参数的元数据。 */
void gguf_put_model(GgufWriter *w, const ModelConfig *c, const char *name);
/* 元数据（w）与张量的名字、形状（t）由 arch_from_gguf 读一遍，须与 m 的设置逐项相同。错误: GGUF 表示不了的设置。 */
bool gguf_check_reread(const GgufWriter *w, const GgufTensor *t, size_t n, const Model *m, Err *e);
/* 写得成吗：家族、设置、out 的名字。模型刚打开、量化之前就可以问。 */
bool export_gguf_check(Model *m, const char *out, Err *e);
/* 写到文件 out；先须通过 export_gguf_check。错误: 分词器写不成、激活也量化了、写失败。 */
bool export_gguf(Model *m, const Tokenizer *t, const char *name, const char *out, Err *e);
#endif
