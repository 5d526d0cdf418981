/* inflate — 解压到一块大小已知的内存（zlib、libsnappy、libzstd 只出现在这里）
 * 大小由容器事先声明；解出来多一个字节、少一个字节都是错误，所以解压炸弹至多写满声明的大小。 */
#ifndef PTQ_IO_INFLATE_H
#define PTQ_IO_INFLATE_H
#include <stddef.h>

#include "base/err.h"

typedef enum { INFLATE_NONE, INFLATE_SNAPPY, INFLATE_GZIP, INFLATE_ZSTD } InflateCodec;

/* 把 from 的 n 字节解压成 to 的恰好 size 字节。错误: 压缩流坏了、大小不符；where 只用于消息。 */
bool inflate_exact(InflateCodec codec, const char *where, const void *from, size_t n, void *to,
                   size_t size, Err *e);
#endif
