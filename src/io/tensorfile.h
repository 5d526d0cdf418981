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
    const void *data;                /* 指向映射，可能不对齐 */
    size_t bytes;
    const char *path; /* 所在文件 */
} FileTensor;

typedef struct TensorFile {
    Arena arena;
    FileMap map;
    const char *path;
    FileTensor *tensors; /* 按名字的字节序排列 */
    size_t n_tensors;
} TensorFile;

/* 打开单个 .safetensors。格式：8 字节小端头长 + JSON 头 + 数据（头上限 100 MB）。
 * 失败时已清理干净，不必再 close。出处：huggingface/safetensors 的格式说明。 */
bool safetensors_open(TensorFile *f, const char *path, Err *e);
/* 解析内存中的内容；data 归调用者，须比 f 活得久。失败时仍须 tensorfile_close。 */
bool safetensors_parse(TensorFile *f, const char *name, const uint8_t *data, size_t size, Err *e);
void tensorfile_close(TensorFile *f);
/* 按名字找；没有返回 NULL。 */
const FileTensor *tensorfile_find(const TensorFile *f, const char *name);

/* 写 safetensors：t 的 n 个张量要分写在各文件里，path 是文件名（不含文件夹），数据按 t 的次序相接。
 * 分片的名字：只有一个时是 model.safetensors。 */
void safetensors_shard_name(char *buf, size_t cap, size_t shard, size_t n_shards);
/* 名为 file 的文件的开头（8 字节长度、JSON，补空格到 8 的倍数），在 a 里。 */
bool safetensors_header(const FileTensor *t, size_t n, const char *file, Arena *a, FilePart *out,
                        Err *e);
/* 写 dir 里的 model.safetensors.index.json。 */
bool safetensors_save_index(const char *dir, const FileTensor *t, size_t n, Err *e);

/* 供各格式收尾：按名字排序、拒绝重名、拒绝重叠；whole 为真时还要求张量恰好铺满
 * 从 base 起的 size 字节（safetensors 的规定）。 */
bool tensorfile_finish(TensorFile *f, const uint8_t *base, size_t size, bool whole, Err *e);
/* 形状的元素数；任一维为负或乘积溢出时返回 false。 */
bool tensorfile_count(const int64_t *shape, int n_dims, size_t *n);
#endif
