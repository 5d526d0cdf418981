/* parquet_page — 一列的各页：页头、解压、重复级与定义级，其后的值交给 parquet_values
 * 页 v1 的级与值一起压缩，v2 的级在压缩之外。 */
#include <stdlib.h>
#include <string.h>

#include "io/inflate.h"
#include "io/parquet_internal.h"
#include "io/thrift.h"

enum { DATA_V1 = 0, INDEX = 1, DICTIONARY = 2, DATA_V2 = 3 };
enum { LEVELS_RLE = 3 };
#define PAGE_MAX ((int64_t)512 << 20) /* 一页解开后的上限 */

typedef struct Page {
    int type, encoding, def_encoding, rep_encoding;
    int64_t size, packed, n_values, def_bytes, rep_bytes; /* 解开后、压缩后的字节数 */
    bool plain;                                           /* v2：值没有压缩 */
} Page;

/* 读一列时的共同参数。 */
typedef struct Reader {
    Pq *q;
    const PqLeaf *leaf;
    InflateCodec codec;
    PqColumn *c;
    Err *e;
} Reader;

static bool bad(const Reader *r, const char *why) {
    return err_set(r->e, ERR_FORMAT, "%s: 列 '%.80s' 的页坏了：%s", r->q->where, r->leaf->path, why);
}

/* ---- 页头 ---- */

/* 三种页头共用：v1（1 个数 2 编码 3 定义级编码 4 重复级编码）、字典（1、2）、v2（1 个数 4 编码 5、6 级的字节数 7 压缩否）。 */
static void read_details(Thrift *t, Page *g, bool v2) {
    for (ThriftField f = {0}; thrift_next(t, &f);) {
        if (f.id == 1)
            g->n_values = thrift_int(t, f);
        else if (f.id == (v2 ? 4 : 2))
            g->encoding = (int)thrift_int(t, f);
        else if (f.id == 3 && !v2)
            g->def_encoding = (int)thrift_int(t, f);
        else if (f.id == 4 && !v2)
            g->rep_encoding = (int)thrift_int(t, f);
        else if (f.id == 5 && v2)
            g->def_bytes = thrift_int(t, f);
        else if (f.id == 6 && v2)
            g->rep_bytes = thrift_int(t, f);
        else if (f.id == 7 && v2)
            g->plain = thrift_int(t, f) == 0;
        else
            thrift_skip(t, f);
    }
}

static bool read_header(Reader *r, PqSlice *in, Page *g) {
    Thrift t = {.p = in->p, .end = in->end};
    *g = (Page){.type = -1, .encoding = -1, .size = -1, .packed = -1, .n_values = -1,
                .def_encoding = LEVELS_RLE, .rep_encoding = LEVELS_RLE};
    for (ThriftField f = {0}; thrift_next(&t, &f);) {
        bool details = (f.id == 5 && g->type == DATA_V1) || (f.id == 7 && g->type == DICTIONARY) ||
                       (f.id == 8 && g->type == DATA_V2);
        if (details && thrift_struct(&t, f))
            read_details(&t, g, f.id == 8);
        else if (f.id == 1)
            g->type = (int)thrift_int(&t, f);
        else if (f.id == 2)
            g->size = thrift_int(&t, f);
        else if (f.id == 3)
            g->packed = thrift_int(&t, f);
        else
            thrift_skip(&t, f);
    }
    if (t.failed) return bad(r, "页头读不出");
    in->p = t.p;
    if (g->size < 0 || g->size > PAGE_MAX) return bad(r, "解开后的大小不对，或超过 512 MB");
    if (g->packed < 0 || g->packed > in->end - in->p) return bad(r, "长度超出这一列");
    if (g->type != INDEX && g->n_values < 0) return bad(r, "没有值的个数");
    return true;
}

/* ---- 级 ---- */

static int level_width(int max) {
    int w = 0;
    while (max >> w) w++;
    return w;
}

/* n 个级，存进 out；超过 max 的算坏。 */
static bool read_levels(Reader *r, PqSlice in, int max, uint8_t *out, size_t n) {
    uint32_t *v = malloc(n ? n * sizeof *v : 1);
    if (!v) return err_set(r->e, ERR_MEMORY, "%s: 内存不足", r->q->where);
    bool ok = pq_hybrid(&in, level_width(max), v, n) || bad(r, "级不全");
    for (size_t i = 0; ok && i < n; i++) {
        ok = v[i] <= (uint32_t)max || bad(r, "级超过模式的上限");
        out[i] = (uint8_t)v[i];
    }
    free(v);
    return ok;
}

/* v1：四个字节的长度，然后是级。 */
static bool levels_v1(Reader *r, PqSlice *in, int encoding, int max, uint8_t *out, size_t n) {
    uint32_t len;
    if (max == 0) return true;
    if (encoding != LEVELS_RLE)
        return err_set(r->e, ERR_UNSUPPORTED, "%s: 列 '%.80s' 的级是早已废弃的 BIT_PACKED 编码，不会读", r->q->where,
                       r->leaf->path);
    if (in->end - in->p < (ptrdiff_t)sizeof len) return bad(r, "没有级");
    memcpy(&len, in->p, sizeof len);
    in->p += sizeof len;
    if (len > (size_t)(in->end - in->p)) return bad(r, "级的长度过大");
    PqSlice part = {in->p, in->p + len};
    in->p += len;
    return read_levels(r, part, max, out, n);
}

/* ---- 放进列 ---- */

static bool grow(Reader *r, void **p, size_t n, size_t each) {
    void *q = realloc(*p, n ? n * each : 1);
    if (!q) return err_set(r->e, ERR_MEMORY, "%s: 内存不足", r->q->where);
    *p = q;
    return true;
}

/* 再容得下 n 项。 */
static bool reserve(Reader *r, size_t n) {
    PqColumn *c = r->c;
    if (!pq_take(r->q, n, 2 + sizeof(uint32_t) + sizeof *c->values, r->e)) return false;
    if (c->n + n <= c->cap) return true;
    size_t cap = c->n + n > 2 * c->cap ? c->n + n : 2 * c->cap;
    if (!grow(r, (void **)&c->reps, cap, 1) || !grow(r, (void **)&c->defs, cap, 1) ||
        !grow(r, (void **)&c->values, cap, sizeof *c->values))
        return false;
    c->cap = cap;
    return true;
}

/* 级已在 c->reps、c->defs 的末尾：数出非空的，解它们的值。 */
static bool add_values(Reader *r, const Page *g, PqSlice in, size_t n) {
    PqColumn *c = r->c;
    size_t present = 0, done = 0;
    for (size_t i = 0; i < n; i++) present += c->defs[c->n + i] == r->leaf->max_def;
    bool ok = present == 0 || pq_values(r->q, r->leaf, g->encoding, in, c, c->values + c->n_values,
                                        present, &done, r->e);
    c->n_values += done;
    c->n += ok ? n : 0;
    return ok;
}

static bool data_page(Reader *r, const Page *g, PqSlice in) {
    PqColumn *c = r->c;
    size_t n = (size_t)g->n_values;
    if (n == 0) return true;
    if (!reserve(r, n)) return false;
    uint8_t *reps = c->reps + c->n, *defs = c->defs + c->n;
    memset(reps, 0, n);
    memset(defs, 0, n);
    int max_rep = r->leaf->max_rep, max_def = r->leaf->max_def;
    if (g->type == DATA_V1)
        return levels_v1(r, &in, g->rep_encoding, max_rep, reps, n) &&
               levels_v1(r, &in, g->def_encoding, max_def, defs, n) && add_values(r, g, in, n);
    PqSlice rep = {in.p, in.p + g->rep_bytes}, def = {rep.end, rep.end + g->def_bytes};
    in.p = def.end;
    return (max_rep == 0 || read_levels(r, rep, max_rep, reps, n)) &&
           (max_def == 0 || read_levels(r, def, max_def, defs, n)) && add_values(r, g, in, n);
}

static bool dictionary_page(Reader *r, const Page *g, PqSlice in) {
    PqColumn *c = r->c;
    size_t n = (size_t)g->n_values;
    if (c->dict) return bad(r, "有两个字典");
    if (g->encoding != 0 && g->encoding != 2) return bad(r, "字典的编码不是 PLAIN");
    if (!pq_take(r->q, n, sizeof *c->dict, r->e) || !grow(r, (void **)&c->dict, n, sizeof *c->dict))
        return false;
    return pq_values(r->q, r->leaf, 0, in, c, c->dict, n, &c->n_dict, r->e);
}

/* 解压 in（v2 的级不在压缩之内），交给相应的读法。 */
static bool read_page(Reader *r, const Page *g, PqSlice in) {
    size_t packed = (size_t)g->packed, size = (size_t)g->size, keep = 0;
    if (g->type == DATA_V2) {
        if (g->rep_bytes < 0 || g->def_bytes < 0 || g->rep_bytes > g->packed ||
            g->def_bytes > g->packed - g->rep_bytes || g->rep_bytes + g->def_bytes > g->size)
            return bad(r, "级的长度过大");
        keep = (size_t)(g->rep_bytes + g->def_bytes);
    }
    InflateCodec codec = g->plain || packed == keep ? INFLATE_NONE : r->codec;
    if (!pq_take(r->q, size, 1, r->e)) return false;
    uint8_t *body = malloc(size ? size : 1);
    if (!body) return err_set(r->e, ERR_MEMORY, "%s: 内存不足", r->q->where);
    memcpy(body, in.p, keep);
    bool ok = inflate_exact(codec, r->q->where, in.p + keep, packed - keep, body + keep, size - keep, r->e);
    PqSlice whole = {body, body + size};
    ok = ok && (g->type == DICTIONARY ? dictionary_page : data_page)(r, g, whole);
    free(body);
    return ok;
}

static bool find_codec(Reader *r, int codec) {
    static const char *const NAMES[] = {"", "snappy", "gzip", "LZO", "Brotli", "LZ4", "zstd", "LZ4"};
    switch (codec) {
    case 0: r->codec = INFLATE_NONE; return true;
    case 1: r->codec = INFLATE_SNAPPY; return true;
    case 2: r->codec = INFLATE_GZIP; return true;
    case 6: r->codec = INFLATE_ZSTD; return true;
    default:
        return err_set(r->e, ERR_UNSUPPORTED, "%s: 列 '%.80s' 用 %s 压缩，还不会读；请用 datasets 导出成 JSONL", r->q->where,
                       r->leaf->path, codec > 0 && codec < 8 ? NAMES[codec] : "不认识的方法");
    }
}

bool pq_read_column(Pq *q, const PqLeaf *leaf, const PqChunk *k, PqColumn *c, Err *e) {
    Reader r = {.q = q, .leaf = leaf, .c = c, .e = e};
    if (k->elsewhere || k->type != (int)leaf->type || k->n_values < 0)
        return bad(&r, "列的元数据与模式不符，或数据在别的文件里");
    if (k->n_values == 0) return true; /* 空的行组：位置可以是 0 */
    int64_t from = k->dict_at > 0 && k->dict_at < k->data_at ? k->dict_at : k->data_at;
    if (from < 4 || k->bytes < 0 || (uint64_t)from > q->size || (uint64_t)k->bytes > q->size - (size_t)from)
        return bad(&r, "位置超出文件（文件被截断？）");
    if (!find_codec(&r, k->codec)) return false;
    PqSlice in = {q->data + from, q->data + from + k->bytes};
    while (c->n < (size_t)k->n_values) {
        Page g;
        if (!read_header(&r, &in, &g)) return false;
        if ((g.type == DATA_V1 || g.type == DATA_V2) && (uint64_t)g.n_values > (uint64_t)k->n_values - c->n)
            return bad(&r, "值比记录的多");
        if (g.type != INDEX && !read_page(&r, &g, in)) return false;
        in.p += g.packed;
    }
    return true;
}

void pq_column_free(PqColumn *c) {
    for (size_t i = c->at_value; i < c->n_values; i++) json_decref(c->values[i]);
    for (size_t i = 0; i < c->n_dict; i++) json_decref(c->dict[i]);
    free(c->reps);
    free(c->defs);
    free(c->values);
    free(c->dict);
    *c = (PqColumn){0};
}
