/* blockfile — 量化好的一个块存成文件：中断后接着做，内存不够时从文件里用
 * 文件 = 头（版本、层号、key、内容的 SHA-256）+ 各线性层的描述 + 各段数据（64 字节对齐，可以映射后直接计算）。
 * 只读自己写的：头、key 或哈希不符就当作没有。 */
#ifndef PTQ_MODEL_BLOCKFILE_H
#define PTQ_MODEL_BLOCKFILE_H
#include "model/model.h"

typedef struct BlockSave BlockSave; /* 正在写的一块 */
/* 原子地写出第 layer 块（线性层、偏置、归一化）到 dir（自动建立；到 blockfile_saved 为止有效）。notes 是随块保存的文字（退让的记录）。
 * 内存分开的后端：返回时各段已复制到主机，哈希与写盘在另一个线程里，与后面的计算同时。返回: 内存不足、设备错误为 NULL。 */
BlockSave *blockfile_save(const Model *m, int64_t layer, const char *dir, const char *key,
                          const char *notes, Err *e);
/* 等它写完，释放；s 为 NULL 时为真。返回: 写成了。 */
bool blockfile_saved(BlockSave *s, Err *e);
/* 装入第 layer 块，数据留在只读映射里（model_close 解除）。*notes 指向映射之内。
 * 返回: 没有文件、文件不完整或 key 不同时为假（模型不变）。 */
bool blockfile_load(Model *m, int64_t layer, const char *dir, const char *key, const char **notes);
/* max_memory 之下：存好的块由内存换到文件的映射里，用到的页才占内存。读不回来就照旧留在内存里。 */
void blockfile_swap(Model *m, int64_t layer, const char *dir, const char *key);
/* 删去 dir 里的块与 dir 本身；没有也无妨。 */
void blockfile_clear(const char *dir, int64_t n_layers);
#endif
