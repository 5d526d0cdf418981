/* fuzz_safetensors — safetensors 解析器的模糊测试
 * 成功时逐张量检查不变式（大小与形状一致、数据在输入之内），并读遍全部数据。 */
#include <stdlib.h>

#include "io/tensorfile.h"

static volatile unsigned sink; /* 使读取不被优化掉 */

static void check(const TensorFile *f, const uint8_t *data, size_t size) {
    for (size_t i = 0; i < f->n_tensors; i++) {
        const FileTensor *t = &f->tensors[i];
        const uint8_t *p = t->data;
        size_t n;
        if (!tensorfile_count(t->shape, t->n_dims, &n) || dtype_bytes(t->dtype, n) != t->bytes)
            abort();
        if (p < data || t->bytes > size || (size_t)(p - data) > size - t->bytes) abort();
        if (tensorfile_find(f, t->name) != t) abort();
        for (size_t k = 0; k < t->bytes; k++) sink += p[k];
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    TensorFile f;
    Err e = {0};
    if (safetensors_parse(&f, "fuzz", data, size, &e))
        check(&f, data, size);
    else if (e.code == ERR_NONE)
        abort();
    tensorfile_close(&f);
    return 0;
}
