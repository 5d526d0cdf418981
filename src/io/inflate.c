/* inflate — 解压到一块大小已知的内存 */
#include "io/inflate.h"

#include <limits.h>
#include <snappy-c.h>
#include <stdint.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

static bool run_snappy(const void *from, size_t n, void *to, size_t size) {
    size_t want;
    if (snappy_uncompressed_length(from, n, &want) != SNAPPY_OK || want != size) return false;
    return snappy_uncompress(from, n, to, &want) == SNAPPY_OK && want == size;
}

/* gzip 或 zlib 的头由 zlib 自己认；gzip 可由几段相接。 */
static bool run_gzip(const void *from, size_t n, void *to, size_t size) {
    z_stream z = {.next_in = (Bytef *)(uintptr_t)from, .avail_in = (uInt)n, .next_out = to,
                  .avail_out = (uInt)size};
    if (n > UINT_MAX || size > UINT_MAX || inflateInit2(&z, MAX_WBITS + 32) != Z_OK) return false;
    int rc = Z_OK;
    while (rc == Z_OK) {
        rc = inflate(&z, Z_NO_FLUSH);
        if (rc == Z_STREAM_END && z.avail_in > 0) rc = inflateReset(&z);
    }
    bool ok = rc == Z_STREAM_END && z.avail_in == 0 && z.avail_out == 0;
    inflateEnd(&z);
    return ok;
}

bool inflate_exact(InflateCodec codec, const char *where, const void *from, size_t n, void *to,
                   size_t size, Err *e) {
    bool ok = false;
    switch (codec) {
    case INFLATE_NONE:
        ok = n == size;
        if (ok && n) memcpy(to, from, n);
        break;
    case INFLATE_SNAPPY: ok = run_snappy(from, n, to, size); break;
    case INFLATE_GZIP: ok = run_gzip(from, n, to, size); break;
    case INFLATE_ZSTD: {
        size_t got = ZSTD_decompress(to, size, from, n);
        ok = !ZSTD_isError(got) && got == size;
        break;
    }
    }
    return ok || err_set(e, ERR_FORMAT, "%s: 压缩的内容坏了（解出来不是恰好 %zu 字节）", where, size);
}
