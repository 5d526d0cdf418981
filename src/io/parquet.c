/* parquet — 读 Parquet：文件的框架，把各列拼成行
 * 拼法（Dremel）：一列里每项带重复级与定义级。顺着模式树往下走，定义级不够处是 null 或空列表，
 * 重复级说下一项是不是同一个列表的下一个元素。每走到叶就用掉它的一项，所以总有尽头。 */
#include "io/parquet.h"

#include <stdlib.h>
#include <string.h>

#include "io/parquet_internal.h"

enum { TAIL = 8, OBJECT_BYTES = 200, KEY_BYTES = 96, ARRAY_BYTES = 128 }; /* 后三个是内存的估计 */

bool pq_take(Pq *q, uint64_t n, size_t each, Err *e) {
    if (each == 0 || n <= q->left / each) {
        q->left -= (size_t)n * each;
        return true;
    }
    return err_set(e, ERR_FORMAT, "%s: 解开后过大（超过内存的上限），或者是坏文件", q->where);
}

/* ---- 拼成行 ---- */

typedef struct Rows {
    Pq *q;
    PqColumn *columns;
    Err *e;
} Rows;

static bool uneven(const Rows *r, int leaf) {
    return err_set(r->e, ERR_FORMAT, "%s: 列 '%.80s' 的项数与别的列对不上", r->q->where,
                   r->q->leaves[leaf].path);
}

/* 这个结点之下的每个叶都用掉一项（它们是 null 或空列表）。 */
static bool skip_all(Rows *r, const PqNode *n) {
    for (int i = n->leaf; i < n->leaf + n->n_leaves; i++) {
        PqColumn *c = &r->columns[i];
        if (c->at >= c->n || c->defs[c->at] == r->q->leaves[i].max_def) return uneven(r, i);
        c->at++;
    }
    return true;
}

static json_t *take_leaf(PqColumn *c) {
    c->at++;
    return c->values[c->at_value++];
}

static json_t *assemble(Rows *r, const PqNode *n);

static json_t *assemble_struct(Rows *r, const PqNode *n) {
    if (!pq_take(r->q, 1, OBJECT_BYTES + n->n_children * KEY_BYTES, r->e)) return NULL;
    json_t *o = json_object();
    bool ok = o != NULL || err_set(r->e, ERR_MEMORY, "%s: 内存不足", r->q->where);
    for (size_t i = 0; ok && i < n->n_children; i++) {
        json_t *v = assemble(r, n->child[i]);
        ok = v && (json_object_set_new_nocheck(o, n->child[i]->name, v) == 0 ||
                   err_set(r->e, ERR_MEMORY, "%s: 内存不足", r->q->where));
    }
    if (ok) return o;
    json_decref(o);
    return NULL;
}

static json_t *assemble_list(Rows *r, const PqNode *n) {
    const PqColumn *first = &r->columns[n->leaf];
    if (!pq_take(r->q, 1, ARRAY_BYTES, r->e)) return NULL;
    json_t *list = json_array();
    bool ok = list != NULL || err_set(r->e, ERR_MEMORY, "%s: 内存不足", r->q->where);
    bool more = ok && first->defs[first->at] >= n->full;
    if (ok && !more) ok = skip_all(r, n);
    while (ok && more) {
        json_t *v = pq_take(r->q, 1, sizeof v, r->e) ? assemble(r, n->child[0]) : NULL;
        ok = v && (json_array_append_new(list, v) == 0 ||
                   err_set(r->e, ERR_MEMORY, "%s: 内存不足", r->q->where));
        more = first->at < first->n && first->reps[first->at] == n->rep;
    }
    if (ok) return list;
    json_decref(list);
    return NULL;
}

static json_t *assemble(Rows *r, const PqNode *n) {
    PqColumn *first = &r->columns[n->leaf];
    if (first->at >= first->n) {
        uneven(r, n->leaf);
        return NULL;
    }
    if (first->defs[first->at] < n->def) return skip_all(r, n) ? json_null() : NULL;
    switch (n->kind) {
    case PQ_LEAF: return take_leaf(first);
    case PQ_STRUCT: return assemble_struct(r, n);
    default: return assemble_list(r, n);
    }
}

/* 一行开始时各列都应在新的一行（重复级 0）。 */
static bool at_row(const Rows *r) {
    for (size_t i = 0; i < r->q->n_leaves; i++) {
        const PqColumn *c = &r->columns[i];
        if (c->at < c->n && c->reps[c->at] != 0) return uneven(r, (int)i);
    }
    return true;
}

static bool assemble_rows(Rows *r, int64_t n_rows, json_t *out) {
    for (int64_t i = 0; i < n_rows; i++) {
        json_t *row = at_row(r) ? assemble_struct(r, r->q->root) : NULL;
        if (!row) return false;
        if (json_array_append_new(out, row) != 0)
            return err_set(r->e, ERR_MEMORY, "%s: 内存不足", r->q->where);
    }
    for (size_t i = 0; i < r->q->n_leaves; i++)
        if (r->columns[i].at != r->columns[i].n) return uneven(r, (int)i);
    return true;
}

static bool read_group(Pq *q, const PqGroup *g, json_t *out, Err *e) {
    if (g->n_chunks != q->n_leaves || g->n_rows < 0)
        return err_set(e, ERR_FORMAT, "%s: 行组有 %zu 列，模式有 %zu 列", q->where, g->n_chunks, q->n_leaves);
    PqColumn *columns = calloc(q->n_leaves, sizeof *columns);
    bool ok = columns != NULL || err_set(e, ERR_MEMORY, "%s: 内存不足", q->where);
    for (size_t i = 0; ok && i < q->n_leaves; i++)
        ok = pq_read_column(q, &q->leaves[i], &g->chunks[i], &columns[i], e);
    Rows r = {q, columns, e};
    ok = ok && assemble_rows(&r, g->n_rows, out);
    for (size_t i = 0; columns && i < q->n_leaves; i++) pq_column_free(&columns[i]);
    free(columns);
    return ok;
}

/* ---- 文件 ---- */

static bool open_file(Pq *q, Err *e) {
    const uint8_t *end = q->data + q->size;
    uint32_t len;
    if (q->size >= TAIL && memcmp(end - 4, "PARE", 4) == 0)
        return err_set(e, ERR_UNSUPPORTED, "%s: 是加密的 Parquet 文件", q->where);
    if (q->size < 4 + TAIL || memcmp(q->data, "PAR1", 4) != 0 || memcmp(end - 4, "PAR1", 4) != 0)
        return err_set(e, ERR_FORMAT, "%s: 不是 Parquet 文件，或被截断（首尾应是 PAR1）", q->where);
    memcpy(&len, end - TAIL, sizeof len);
    if (len > q->size - 4 - TAIL)
        return err_set(e, ERR_FORMAT, "%s: 文件尾的长度 %lu 比文件还大（被截断？）", q->where, (unsigned long)len);
    q->size -= TAIL + len;
    return pq_read_meta(q, q->data + q->size, len, e) && pq_build_schema(q, e);
}

json_t *parquet_rows(const char *where, const void *data, size_t size, size_t memory, Err *e) {
    Pq q = {.where = where, .data = data, .size = size, .left = memory};
    json_t *rows = json_array();
    bool ok = rows ? open_file(&q, e) : err_set(e, ERR_MEMORY, "%s: 内存不足", where);
    for (size_t i = 0; ok && i < q.n_groups; i++) ok = read_group(&q, &q.groups[i], rows, e);
    if (ok && json_array_size(rows) != (size_t)q.n_rows)
        ok = err_set(e, ERR_FORMAT, "%s: 有 %zu 行，文件尾说有 %lld 行", where, json_array_size(rows),
                     (long long)q.n_rows);
    arena_free(&q.arena);
    if (ok) return rows;
    json_decref(rows);
    return NULL;
}
