/* hash — SHA-256 与 base64（OpenSSL libcrypto）
 * 数据集、权重、配置都以 SHA-256 固定；大文件（≥1 MB）的结果按 (路径, 大小, mtime, ctime, inode)
 * 记在缓存文件 hashes.tsv 里。 */
#ifndef PTQ_IO_HASH_H
#define PTQ_IO_HASH_H
#include <stddef.h>

#include "base/err.h"

#define HASH_HEX 65 /* 64 个十六进制字符 + '\0' */

typedef struct Hash Hash;
Hash *hash_new(void);      /* 内存不足返回 NULL */
Hash *hash_new_sha1(void); /* SHA-1（git 的 blob 名），取得的十六进制为 40 个字符 */
void hash_add(Hash *h, const void *data, size_t len);
void hash_end(Hash *h, char hex[HASH_HEX]); /* 取结果并释放 h */

void hash_bytes(const void *data, size_t len, char hex[HASH_HEX]);
/* 文件的 SHA-256。cache_dir 非 NULL 时先查/后写其中的缓存（缓存坏了只是重算）。 */
bool hash_file(const char *path, const char *cache_dir, char hex[HASH_HEX], Err *e);
/* n 个文件的 SHA-256 → hex[i]，至多 threads 个线程同时算（每个文件一个线程）。缓存同 hash_file。错误: 先失败的那个的。 */
bool hash_files(const char *const *paths, size_t n, int threads, const char *cache_dir, char (*hex)[HASH_HEX], Err *e);
/* 严格的 base64（带填充，无空白）。out 至少 len 字节；*n 为写出的字节数。返回: 写法不对为假。 */
bool base64_decode(const char *text, size_t len, void *out, size_t *n);
#endif
