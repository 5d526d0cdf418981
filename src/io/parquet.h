/* parquet — 读 Parquet 文件成一行一个 JSON 对象（任务的数据集）
 * 读: 页 v1、v2；PLAIN、字典、RLE、三种 DELTA、BYTE_STREAM_SPLIT；不压缩、snappy、gzip、zstd；嵌套的 list 与 struct、空值。
 * 不变式：文件里的每个长度、个数、偏移都先核对；解开的总量有上限，坏文件、炸弹只得到一条说明。 */
#ifndef PTQ_IO_PARQUET_H
#define PTQ_IO_PARQUET_H
#include "io/json.h"

/* 解开后至多占的内存（估计，字节）的通常取值。 */
#define PARQUET_MEMORY ((size_t)3 << 30)

/* data（整个文件，size 字节）→ 行的数组（新引用）。值的对应与 Python 的 datasets 相同:
 * 整数、实数（NaN、无穷大读成 null）、布尔、文字；日期与时刻写成 Python 的 str() 的样子；list → 数组，struct → 对象，
 * map → {key, value} 的数组。where 只用于消息；memory 是解开后的上限。
 * 错误: 不是 Parquet、截断、坏的元数据、加密的、类型或压缩不支持、不是文字的二进制列、超过上限。 */
json_t *parquet_rows(const char *where, const void *data, size_t size, size_t memory, Err *e);
#endif
