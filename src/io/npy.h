/* npy — NumPy .npy 文件（1.0 版，C 序，小端）
 * 供 logits 命令与张量导出写出，供测试读入对照数据。 */
#ifndef PTQ_IO_NPY_H
#define PTQ_IO_NPY_H
#include "base/arena.h"
#include "base/dtype.h"

typedef struct Npy {
    DType dtype; /* F32 F16 F64 I8 U8 I16 I32 I64 BOOL */
    int n_dims;
    int64_t shape[8];
    void *data;
    size_t n; /* 元素数 */
} Npy;

bool npy_write(const char *path, DType dtype, int n_dims, const int64_t *shape, const void *data,
               Err *e);
bool npy_read(Arena *a, const char *path, Npy *out, Err *e);
#endif
