/* parquet_values — 一页（或字典）的值按各种编码解开
 * 每个解码器都逐个交出 JSON 值，*done 记着交出了几个，失败时由调用者归还。 */
#include <stdlib.h>
#include <string.h>

#include "io/parquet_internal.h"

enum {
    PLAIN = 0, PLAIN_DICTIONARY = 2, RLE = 3, DELTA_BINARY = 5, DELTA_LENGTH = 6, DELTA_BYTES = 7,
    RLE_DICTIONARY = 8, STREAM_SPLIT = 9
};

/* 解码的一次工作。 */
typedef struct Work {
    Pq *q;
    const PqLeaf *leaf;
    PqSlice in;
    json_t **out;
    size_t n, *done;
    Err *e;
} Work;

static bool bad(const Work *w, const char *why) {
    return err_set(w->e, ERR_FORMAT, "%s: 列 '%.80s' 的数据坏了：%s", w->q->where, w->leaf->path, why);
}

static size_t left(const Work *w) {
    return (size_t)(w->in.end - w->in.p);
}

static bool emit(Work *w, const uint8_t *p, size_t n) {
    json_t *v = pq_convert(w->q, w->leaf, p, n, w->e);
    if (!v) return false;
    w->out[(*w->done)++] = v;
    return true;
}

/* n 个 each 字节的临时内存（记入上限，不退还）。 */
static void *temporary(Work *w, size_t n, size_t each) {
    if (!pq_take(w->q, n, each, w->e)) return NULL;
    void *p = malloc(n ? n * each : 1);
    if (!p) err_set(w->e, ERR_MEMORY, "%s: 内存不足", w->q->where);
    return p;
}

/* ---- PLAIN ---- */

static bool plain_fixed(Work *w) {
    size_t width = w->leaf->width;
    if (w->n > left(w) / width) return bad(w, "值不够");
    for (size_t i = 0; i < w->n; i++, w->in.p += width)
        if (!emit(w, w->in.p, width)) return false;
    return true;
}

static bool plain_bytes(Work *w) {
    for (size_t i = 0; i < w->n; i++) {
        uint32_t len;
        if (left(w) < sizeof len) return bad(w, "值不够");
        memcpy(&len, w->in.p, sizeof len);
        w->in.p += sizeof len;
        if (len > left(w)) return bad(w, "文字比页还长");
        if (!emit(w, w->in.p, len)) return false;
        w->in.p += len;
    }
    return true;
}

static bool plain_boolean(Work *w) {
    if (w->n > 0 && (w->n - 1) / 8 >= left(w)) return bad(w, "值不够");
    for (size_t i = 0; i < w->n; i++)
        w->out[(*w->done)++] = json_boolean(w->in.p[i / 8] >> i % 8 & 1);
    return true;
}

static bool plain(Work *w) {
    switch (w->leaf->type) {
    case PQ_BOOLEAN: return plain_boolean(w);
    case PQ_BYTE_ARRAY: return plain_bytes(w);
    default: return plain_fixed(w);
    }
}

/* ---- RLE 的布尔、字典 ---- */

static bool rle_boolean(Work *w) {
    uint32_t len;
    if (left(w) < sizeof len) return bad(w, "值不够");
    memcpy(&len, w->in.p, sizeof len);
    w->in.p += sizeof len;
    if (len > left(w)) return bad(w, "长度过大");
    w->in.end = w->in.p + len;
    uint32_t *v = temporary(w, w->n, sizeof *v);
    if (!v) return false;
    bool ok = pq_hybrid(&w->in, 1, v, w->n) || bad(w, "RLE 的布尔值不全");
    for (size_t i = 0; ok && i < w->n; i++) w->out[(*w->done)++] = json_boolean(v[i]);
    free(v);
    return ok;
}

static bool dictionary(Work *w, const PqColumn *c) {
    if (w->n == 0) return true;
    if (left(w) < 1) return bad(w, "没有字典序号");
    int width = *w->in.p++;
    uint32_t *index = temporary(w, w->n, sizeof *index);
    if (!index) return false;
    bool ok = pq_hybrid(&w->in, width, index, w->n) || bad(w, "字典序号不全");
    for (size_t i = 0; ok && i < w->n; i++) {
        if (index[i] >= c->n_dict)
            ok = bad(w, "序号超出字典");
        else
            w->out[(*w->done)++] = json_incref(c->dict[index[i]]);
    }
    free(index);
    return ok;
}

/* ---- DELTA ---- */

static bool delta_integers(Work *w) {
    int64_t *v = temporary(w, w->n, sizeof *v);
    bool ok = v && (pq_delta(&w->in, v, w->n) || bad(w, "DELTA_BINARY_PACKED 不对"));
    for (size_t i = 0; ok && i < w->n; i++) {
        int32_t small = (int32_t)v[i];
        ok = w->leaf->width == 4 ? emit(w, (const uint8_t *)&small, 4)
                                 : emit(w, (const uint8_t *)&v[i], 8);
    }
    free(v);
    return ok;
}

/* 长度一节，其后是相接的文字。 */
static bool delta_lengths(Work *w) {
    int64_t *len = temporary(w, w->n, sizeof *len);
    bool ok = len && (pq_delta(&w->in, len, w->n) || bad(w, "DELTA_LENGTH_BYTE_ARRAY 的长度不对"));
    for (size_t i = 0; ok && i < w->n; i++) {
        ok = (len[i] >= 0 && (uint64_t)len[i] <= left(w)) || bad(w, "文字比页还长");
        if (!ok) break;
        ok = emit(w, w->in.p, (size_t)len[i]);
        w->in.p += len[i];
    }
    free(len);
    return ok;
}

/* 与前一个值相同的前缀长、其余部分长，其后是相接的其余部分。前缀可使总量膨胀，每个值都经 emit 记入上限。 */
static bool delta_strings(Work *w) {
    int64_t *same = temporary(w, w->n, 2 * sizeof *same), *rest = same ? same + w->n : NULL;
    Str value = {0};
    bool ok = same && ((pq_delta(&w->in, same, w->n) && pq_delta(&w->in, rest, w->n)) ||
                       bad(w, "DELTA_BYTE_ARRAY 的长度不对"));
    for (size_t i = 0; ok && i < w->n; i++) {
        ok = (same[i] >= 0 && (uint64_t)same[i] <= value.len && rest[i] >= 0 &&
              (uint64_t)rest[i] <= left(w)) || bad(w, "前缀或文字的长度不对");
        if (!ok) break;
        value.len = (size_t)same[i];
        str_addn(&value, (const char *)w->in.p, (size_t)rest[i]);
        w->in.p += rest[i];
        if (value.failed)
            ok = err_set(w->e, ERR_MEMORY, "%s: 内存不足", w->q->where);
        else if (w->leaf->width && value.len != w->leaf->width)
            ok = bad(w, "定长的值长度不对");
        else
            ok = emit(w, (const uint8_t *)(value.data ? value.data : ""), value.len);
    }
    str_free(&value);
    free(same);
    return ok;
}

/* 各值的第一个字节都在前，然后是第二个……。 */
static bool stream_split(Work *w) {
    size_t width = w->leaf->width;
    if (w->n > left(w) / width) return bad(w, "值不够");
    uint8_t *v = temporary(w, 1, width);
    bool ok = v != NULL;
    for (size_t i = 0; ok && i < w->n; i++) {
        for (size_t k = 0; k < width; k++) v[k] = w->in.p[k * w->n + i];
        ok = emit(w, v, width);
    }
    free(v);
    return ok;
}

bool pq_values(Pq *q, const PqLeaf *leaf, int encoding, PqSlice in, const PqColumn *c, json_t **out,
               size_t n, size_t *done, Err *e) {
    Work w = {.q = q, .leaf = leaf, .in = in, .out = out, .n = n, .done = done, .e = e};
    bool integers = leaf->type == PQ_INT32 || leaf->type == PQ_INT64;
    bool bytes = leaf->type == PQ_BYTE_ARRAY;
    switch (encoding) {
    case PLAIN: return plain(&w);
    case PLAIN_DICTIONARY: case RLE_DICTIONARY: return dictionary(&w, c);
    case RLE: if (leaf->type == PQ_BOOLEAN) return rle_boolean(&w); break;
    case DELTA_BINARY: if (integers) return delta_integers(&w); break;
    case DELTA_LENGTH: if (bytes) return delta_lengths(&w); break;
    case DELTA_BYTES: if (bytes || leaf->type == PQ_FIXED) return delta_strings(&w); break;
    case STREAM_SPLIT: if (leaf->width) return stream_split(&w); break;
    default: break;
    }
    return err_set(e, ERR_UNSUPPORTED, "%s: 列 '%.80s' 的编码 %d 还不会读（或与类型不配）；请用 datasets 导出成 JSONL",
                   q->where, leaf->path, encoding);
}
