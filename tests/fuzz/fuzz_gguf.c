/* fuzz_gguf — GGUF 解析器与块解码的模糊测试
 * 成功时读遍元数据、解码每个张量：解码出的元素数与形状一致，不读出界。 */
#include <stdlib.h>

#include "io/gguf.h"

#define DECODE_MAX ((size_t)1 << 16)

static volatile double sink; /* 使读取不被优化掉 */

static void read_value(const Gguf *g, const GgufValue *v) {
    if (gguf_find(g, v->key) != v) abort();
    for (size_t i = 0; v->strings && i < v->n; i++)
        for (size_t k = 0; k < v->strings[i].len; k++) sink += v->strings[i].data[k];
    for (size_t i = 0; v->items && i < v->n; i++)
        sink += gguf_item_num(v, i) + (double)gguf_item_int(v, i);
    for (size_t k = 0; k < v->s.len; k++) sink += v->s.data[k];
}

static void read_tensor(const TensorFile *f, const FileTensor *t) {
    size_t n;
    if (tensorfile_find(f, t->name) != t || !tensorfile_count(t->shape, t->n_dims, &n) ||
        dtype_bytes(t->dtype, n) != t->bytes)
        abort();
    if (n == 0 || n > DECODE_MAX) return;
    float *out = malloc(n * sizeof *out);
    bool integer = t->dtype >= DT_I8 && t->dtype <= DT_BOOL;
    if (!out || dtype_decode(t->dtype, t->data, out, n) == integer) abort();
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Gguf g;
    Err e = {0};
    if (gguf_parse(&g, "fuzz", data, size, &e)) {
        for (size_t i = 0; i < g.n_values; i++) read_value(&g, &g.values[i]);
        for (size_t i = 0; i < g.file.n_tensors; i++) read_tensor(&g.file, &g.file.tensors[i]);
    } else if (e.code == ERR_NONE) {
        abort();
    }
    gguf_close(&g);
    return 0;
}
