/* parquet_meta — Parquet 的文件尾（FileMetaData）：模式的元素与各行组的列
 * 字段的编号出自 parquet-format 的 parquet.thrift。不认识的字段一律略过。 */
#include <string.h>

#include "io/parquet_internal.h"
#include "io/thrift.h"

enum { MAX_ELEMENTS = 20000, MAX_GROUPS = 1000000 };

static int small_int(Thrift *t, ThriftField f) {
    int64_t v = thrift_int(t, f);
    if (v < 0 || v > INT32_MAX) t->failed = true;
    return (int)v;
}

/* TimestampType：1 是否 UTC，2 单位（联合：1 毫秒 2 微秒 3 纳秒）。 */
static void read_timestamp(Thrift *t, PqElement *s) {
    s->meaning = PQ_TIMESTAMP;
    for (ThriftField f = {0}; thrift_next(t, &f);) {
        if (f.id == 1) {
            s->utc = thrift_int(t, f) != 0;
        } else if (f.id == 2 && thrift_struct(t, f)) {
            for (ThriftField u = {0}; thrift_next(t, &u); thrift_skip(t, u))
                s->per_second = u.id == 1 ? 1000 : u.id == 2 ? 1000000 : 1000000000;
        } else {
            thrift_skip(t, f);
        }
    }
}

/* LogicalType（联合）。 */
static void read_logical(Thrift *t, PqElement *s) {
    for (ThriftField f = {0}; thrift_next(t, &f);) {
        if (f.id == 8 && thrift_struct(t, f)) {
            read_timestamp(t, s);
        } else if (f.id == 10 && thrift_struct(t, f)) { /* INTEGER：2 是否有符号 */
            for (ThriftField g = {0}; thrift_next(t, &g);) {
                if (g.id == 2)
                    s->meaning = thrift_int(t, g) ? PQ_AS_IS : PQ_UNSIGNED;
                else
                    thrift_skip(t, g);
            }
        } else {
            switch (f.id) {
            case 2: s->map = true; break;
            case 3: s->list = true; break;
            case 1: case 4: case 11: case 12: break; /* 文字、枚举、全空、JSON */
            case 6: s->meaning = PQ_DATE; break;
            case 15: s->meaning = PQ_HALF; break;
            default: s->meaning = PQ_OTHER;
            }
            thrift_skip(t, f);
        }
    }
}

/* 旧的标注（ConvertedType）；有 LogicalType 时以它为准。 */
static void apply_converted(PqElement *s) {
    switch (s->converted) {
    case 1: case 2: s->map = true; break;
    case 3: s->list = true; break;
    case 6: s->meaning = PQ_DATE; break;
    case 9: case 10:
        s->meaning = PQ_TIMESTAMP;
        s->utc = true;
        s->per_second = s->converted == 9 ? 1000 : 1000000;
        break;
    case 11: case 12: case 13: case 14: s->meaning = PQ_UNSIGNED; break;
    case 5: case 7: case 8: case 20: case 21: s->meaning = PQ_OTHER; break;
    default: break; /* UTF8、枚举、有符号整数、JSON */
    }
}

/* 列名: 合法的 UTF-8，没有 NUL 与控制字符。 */
static bool read_name(Pq *q, Thrift *t, ThriftField f, PqElement *s, Err *e) {
    size_t len;
    const uint8_t *p = thrift_bytes(t, f, &len);
    if (!p) return true;
    char *name = arena_strndup(&q->arena, (const char *)p, len, e);
    char *clean = name ? arena_strdup(&q->arena, name, e) : NULL;
    if (!clean || !pq_take(q, 2, len + 1, e)) return false;
    str_clean(clean);
    if (strlen(name) != len || strcmp(name, clean) != 0)
        return err_set(e, ERR_FORMAT, "%s: 有一列的名字不是合法的文字：'%.80s'", q->where, clean);
    s->name = name;
    return true;
}

static bool read_element(Pq *q, Thrift *t, PqElement *s, Err *e) {
    bool logical = false;
    *s = (PqElement){.type = -1, .repetition = -1, .converted = -1, .name = ""};
    for (ThriftField f = {0}; thrift_next(t, &f);) {
        switch (f.id) {
        case 1: s->type = small_int(t, f); break;
        case 2: s->type_length = small_int(t, f); break;
        case 3: s->repetition = small_int(t, f); break;
        case 4:
            if (!read_name(q, t, f, s, e)) return false;
            break;
        case 5: s->n_children = small_int(t, f); break;
        case 6: s->converted = small_int(t, f); break;
        case 10:
            logical = thrift_struct(t, f);
            if (logical) read_logical(t, s);
            break;
        default: thrift_skip(t, f);
        }
    }
    if (!logical) apply_converted(s);
    return true;
}

static bool read_schema(Pq *q, Thrift *t, ThriftField f, Err *e) {
    size_t n = thrift_list(t, f, THRIFT_STRUCT);
    if (n > MAX_ELEMENTS)
        return err_set(e, ERR_FORMAT, "%s: 模式有 %zu 个元素，超过 %d", q->where, n, MAX_ELEMENTS);
    if (!pq_take(q, n, sizeof *q->elements, e) ||
        !(q->elements = ARENA_ARRAY(&q->arena, PqElement, n + 1, e)))
        return false;
    for (q->n_elements = 0; q->n_elements < n && !t->failed; q->n_elements++)
        if (!read_element(q, t, &q->elements[q->n_elements], e)) return false;
    return true;
}

/* ColumnMetaData。 */
static void read_column_meta(Thrift *t, PqChunk *c) {
    for (ThriftField f = {0}; thrift_next(t, &f);) {
        switch (f.id) {
        case 1: c->type = small_int(t, f); break;
        case 4: c->codec = small_int(t, f); break;
        case 5: c->n_values = thrift_int(t, f); break;
        case 7: c->bytes = thrift_int(t, f); break;
        case 9: c->data_at = thrift_int(t, f); break;
        case 11: c->dict_at = thrift_int(t, f); break;
        default: thrift_skip(t, f);
        }
    }
}

static void read_chunk(Thrift *t, PqChunk *c) {
    *c = (PqChunk){.type = -1, .codec = -1, .n_values = -1, .bytes = -1, .data_at = -1, .dict_at = -1};
    for (ThriftField f = {0}; thrift_next(t, &f);) {
        if (f.id == 3 && thrift_struct(t, f)) {
            read_column_meta(t, c);
        } else {
            c->elsewhere = c->elsewhere || f.id == 1; /* file_path */
            thrift_skip(t, f);
        }
    }
}

static bool read_group(Pq *q, Thrift *t, PqGroup *g, Err *e) {
    g->n_rows = -1;
    for (ThriftField f = {0}; thrift_next(t, &f);) {
        if (f.id == 1) {
            size_t n = thrift_list(t, f, THRIFT_STRUCT);
            if (!pq_take(q, n, sizeof *g->chunks, e) ||
                !(g->chunks = ARENA_ARRAY(&q->arena, PqChunk, n + 1, e)))
                return false;
            for (g->n_chunks = 0; g->n_chunks < n && !t->failed; g->n_chunks++)
                read_chunk(t, &g->chunks[g->n_chunks]);
        } else if (f.id == 3) {
            g->n_rows = thrift_int(t, f);
        } else {
            thrift_skip(t, f);
        }
    }
    return true;
}

static bool read_groups(Pq *q, Thrift *t, ThriftField f, Err *e) {
    size_t n = thrift_list(t, f, THRIFT_STRUCT);
    if (n > MAX_GROUPS) return err_set(e, ERR_FORMAT, "%s: 行组过多（%zu）", q->where, n);
    if (!pq_take(q, n, sizeof *q->groups, e) ||
        !(q->groups = ARENA_ARRAY(&q->arena, PqGroup, n + 1, e)))
        return false;
    for (q->n_groups = 0; q->n_groups < n && !t->failed; q->n_groups++)
        if (!read_group(q, t, &q->groups[q->n_groups], e)) return false;
    return true;
}

bool pq_read_meta(Pq *q, const uint8_t *footer, size_t n, Err *e) {
    Thrift t = {.p = footer, .end = footer + n};
    q->n_rows = -1;
    for (ThriftField f = {0}; thrift_next(&t, &f);) {
        bool ok = true;
        switch (f.id) {
        case 2: ok = read_schema(q, &t, f, e); break;
        case 3: q->n_rows = thrift_int(&t, f); break;
        case 4: ok = read_groups(q, &t, f, e); break;
        case 8: return err_set(e, ERR_UNSUPPORTED, "%s: 是加密的 Parquet 文件", q->where);
        default: thrift_skip(&t, f);
        }
        if (!ok) return false;
    }
    if (t.failed || q->n_elements == 0 || q->n_rows < 0)
        return err_set(e, ERR_FORMAT, "%s: 文件尾的元数据坏了（偏移 %zu 附近）", q->where,
                       (size_t)(t.p - q->data));
    return true;
}
