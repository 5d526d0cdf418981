/* gguf_write — 写 GGUF（v3，小端）
 * 元数据逐个添进 GgufWriter；张量的内容由调用者给出（映射或内存），写时按 32 字节对齐。 */
#ifndef PTQ_IO_GGUF_WRITE_H
#define PTQ_IO_GGUF_WRITE_H
#include "base/str.h"
#include "io/gguf.h"

typedef struct GgufWriter {
    Str values; /* 已编码的键与值 */
    uint64_t n_values;
} GgufWriter;

/* 要写的一个张量。shape 行主序（与 FileTensor 相同，写时倒过来）。 */
typedef struct GgufTensor {
    const char *name;
    DType dtype;
    int n_dims;
    int64_t shape[3];
    const void *data;
    size_t bytes;
} GgufTensor;

void gguf_put_u32(GgufWriter *w, const char *key, uint32_t v);
void gguf_put_f32(GgufWriter *w, const char *key, float v);
void gguf_put_bool(GgufWriter *w, const char *key, bool v);
void gguf_put_string(GgufWriter *w, const char *key, const char *s, size_t len);
void gguf_put_strings(GgufWriter *w, const char *key, const GgufString *s, size_t n);
void gguf_put_i32s(GgufWriter *w, const char *key, const int32_t *v, size_t n);
void gguf_put_f32s(GgufWriter *w, const char *key, const float *v, size_t n);
/* 头、元数据与张量表的字节（到数据区的开头，已对齐）。错误: 内存不足、类型 GGUF 里没有。 */
bool gguf_header(const GgufWriter *w, const GgufTensor *t, size_t n, Str *out, Err *e);
/* 写成文件（先写旁边再改名）。错误: 同上、写失败。 */
bool gguf_save(const GgufWriter *w, const GgufTensor *t, size_t n, const char *path, Err *e);
void gguf_writer_free(GgufWriter *w);
#endif
