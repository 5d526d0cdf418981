/* tensorfile — 存放张量的文件的统一视图
 * safetensors 与 GGUF 都读成一组 FileTensor（名字、类型、形状、映射内的数据）。
 * 不变式：打开成功后，每个张量的数据都在文件之内、互不重叠、大小与形状和类型一致。 */
#ifndef PTQ_IO_TENSORFILE_H
#define PTQ_IO_TENSORFILE_H
#include "base/arena.h"
#include "base/dtype.h"
#include "io/file.h"

#define FILE_TENSOR_DIMS 8

typedef struct FileTensor {
    const char *name;
    DType dtype;
    int n_dims;
    int64_t shape[FILE_TENSOR_DIMS]; /* 行主序：shape[0] 变化最慢（GGUF 的 ne 已倒过来） */
    const void *data;                /* 指向映射 */
    size_t bytes;
    const char *path; /* 所在文件 */
} FileTensor;

typedef struct TensorFile {
    Arena arena;
    FileMap map;
    const char *path;
    FileTensor *tensors;
    size_t n_tensors;
} TensorFile;

/* 打开单个 .safetensors。格式：8 字节小端头长 + JSON 头 + 数据（头上限 100 MB）。 */
bool safetensors_open(TensorFile *f, const char *path, Err *e);
void tensorfile_close(TensorFile *f);
/* 按名字找；没有返回 NULL。 */
const FileTensor *tensorfile_find(const TensorFile *f, const char *name);
#endif
