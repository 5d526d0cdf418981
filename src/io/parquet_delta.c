/* parquet_delta — 整数的两种紧凑写法：RLE 与位打包混合；DELTA_BINARY_PACKED
 * 位打包从低位起。坏的输入只返回假，由调用者说明是哪一列。 */
#include <string.h>

#include "io/parquet_internal.h"

static size_t left(const PqSlice *in) {
    return (size_t)(in->end - in->p);
}

static bool varint(PqSlice *in, uint64_t *v) {
    *v = 0;
    for (int shift = 0; shift < 64 && in->p < in->end; shift += 7) {
        uint8_t b = *in->p++;
        *v |= (uint64_t)(b & 0x7F) << shift;
        if (!(b & 0x80)) return true;
    }
    return false;
}

static bool zigzag(PqSlice *in, int64_t *v) {
    uint64_t u;
    if (!varint(in, &u)) return false;
    *v = (int64_t)(u >> 1) ^ -(int64_t)(u & 1);
    return true;
}

/* 从 p 的第 bit 位起的 width 位（≤ 64）；不读 end 之后。 */
static uint64_t bits_at(const uint8_t *p, const uint8_t *end, size_t bit, int width) {
    uint64_t v = 0;
    int got = 0;
    for (const uint8_t *at = p + bit / 8; got < width && at < end; at++) {
        int skip = got == 0 ? (int)(bit % 8) : 0;
        v |= (uint64_t)(*at >> skip) << got;
        got += 8 - skip;
    }
    return width == 64 ? v : v & (((uint64_t)1 << width) - 1);
}

static bool packed_run(PqSlice *in, int width, uint64_t groups, uint32_t *out, size_t n, size_t *done) {
    if (groups > left(in) && width > 0) return false; /* 一组 8 个值，占 width 个字节 */
    size_t bytes = width > 0 ? (size_t)groups * (size_t)width : 0;
    if (bytes > left(in)) return false;
    const uint8_t *end = in->p + bytes;
    size_t take = groups > (n - *done) / 8 ? n - *done : (size_t)groups * 8;
    for (size_t i = 0; i < take; i++)
        out[(*done)++] = (uint32_t)bits_at(in->p, end, i * (size_t)width, width);
    in->p = end;
    return true;
}

static bool repeat_run(PqSlice *in, int width, uint64_t count, uint32_t *out, size_t n, size_t *done) {
    size_t bytes = (size_t)(width + 7) / 8;
    uint32_t v = 0;
    if (bytes > left(in)) return false;
    memcpy(&v, in->p, bytes);
    in->p += bytes;
    for (; count > 0 && *done < n; count--) out[(*done)++] = v;
    return true;
}

bool pq_hybrid(PqSlice *in, int width, uint32_t *out, size_t n) {
    size_t done = 0;
    if (width < 0 || width > 32) return false;
    while (done < n) {
        uint64_t head;
        if (!varint(in, &head) || head >> 1 == 0) return false;
        if (!(head & 1 ? packed_run : repeat_run)(in, width, head >> 1, out, n, &done)) return false;
    }
    return true;
}

/* 一块：最小差、各小块的位宽、各小块。后面用不到的小块没有内容。 */
static bool delta_block(PqSlice *in, size_t per_mini, size_t n_mini, int64_t *out, size_t n, size_t *done) {
    int64_t least;
    if (!zigzag(in, &least) || left(in) < n_mini) return false;
    const uint8_t *widths = in->p;
    in->p += n_mini;
    for (size_t k = 0; k < n_mini && *done < n; k++) {
        int width = widths[k];
        size_t bytes = per_mini / 8 * (size_t)width;
        if (width > 64 || bytes > left(in)) return false;
        for (size_t i = 0; i < per_mini && *done < n; i++, (*done)++) {
            uint64_t d = bits_at(in->p, in->p + bytes, i * (size_t)width, width);
            out[*done] = (int64_t)((uint64_t)out[*done - 1] + (uint64_t)least + d);
        }
        in->p += bytes;
    }
    return true;
}

bool pq_delta(PqSlice *in, int64_t *out, size_t n) {
    uint64_t block, n_mini, total;
    int64_t first;
    size_t done = 1;
    if (!varint(in, &block) || !varint(in, &n_mini) || !varint(in, &total) || !zigzag(in, &first)) return false;
    if (total != n || n_mini == 0 || n_mini > 1024 || block == 0 || block > (1u << 24) ||
        block % (n_mini * 32) != 0)
        return false;
    if (n == 0) return true;
    out[0] = first;
    while (done < n)
        if (!delta_block(in, (size_t)(block / n_mini), (size_t)n_mini, out, n, &done)) return false;
    return true;
}
