/* parquet_schema — Parquet 的模式：先序的元素 → 树，算出每个叶的重复级与定义级
 * 列表有三种写法: 标注 LIST 的三层（通常的）、两层（旧的写法）、没有标注的 repeated；都合成一个 LIST 结点。 */
#include <string.h>

#include "io/parquet_internal.h"

typedef struct Builder {
    Pq *q;
    size_t at; /* 下一个元素 */
    Err *e;
} Builder;

static bool bad(Builder *b, const char *name, const char *why) {
    return err_set(b->e, ERR_FORMAT, "%s: 列 '%.80s' 的模式不对：%s", b->q->where, name, why);
}

static PqNode *build(Builder *b, const char *parent, int def, int rep, int depth);

static PqNode *new_node(Builder *b, const PqElement *s, PqKind kind, int def) {
    PqNode *n = ARENA_NEW(&b->q->arena, PqNode, b->e);
    if (n) *n = (PqNode){.name = s->name, .kind = kind, .def = def, .leaf = (int)b->q->n_leaves};
    return n;
}

/* 定长类型的字节数；变长的为 0。 */
static size_t type_width(const PqElement *s) {
    switch (s->type) {
    case PQ_INT32: case PQ_FLOAT: return 4;
    case PQ_INT64: case PQ_DOUBLE: return 8;
    case PQ_FIXED: return (size_t)s->type_length;
    default: return 0;
    }
}

/* 标注与物理类型是否相配。 */
static bool fits(const PqElement *s) {
    switch (s->meaning) {
    case PQ_AS_IS: return true;
    case PQ_UNSIGNED: return s->type == PQ_INT32 || s->type == PQ_INT64;
    case PQ_DATE: return s->type == PQ_INT32;
    case PQ_TIMESTAMP: return s->type == PQ_INT64 && s->per_second > 0;
    case PQ_HALF: return s->type == PQ_FIXED && s->type_length == 2;
    default: return false;
    }
}

static PqNode *build_leaf(Builder *b, const PqElement *s, const char *path, int def, int rep) {
    PqNode *n = new_node(b, s, PQ_LEAF, def);
    if (!n) return NULL;
    if (s->type < 0 || s->type > PQ_FIXED || (s->type == PQ_FIXED && s->type_length <= 0)) {
        bad(b, path, "没有类型");
        return NULL;
    }
    if (s->type == PQ_INT96 || !fits(s)) {
        err_set(b->e, ERR_UNSUPPORTED,
                "%s: 列 '%.80s' 的类型还不会读（十进制小数、INT96 时刻、时间、UUID 等）；请先用 datasets 去掉这一列或导出成 JSONL",
                b->q->where, path);
        return NULL;
    }
    n->n_leaves = 1;
    b->q->leaves[b->q->n_leaves++] =
        (PqLeaf){.path = path, .type = (PqType)s->type, .width = type_width(s), .meaning = s->meaning,
                 .per_second = s->per_second, .utc = s->utc, .max_def = def, .max_rep = rep};
    return n;
}

static PqNode *build_struct(Builder *b, const PqElement *s, const char *path, int def, int rep,
                            int depth) {
    PqNode *n = new_node(b, s, PQ_STRUCT, def);
    if (!n || !(n->child = ARENA_ARRAY(&b->q->arena, PqNode *, (size_t)s->n_children, b->e))) return NULL;
    for (; n->n_children < (size_t)s->n_children; n->n_children++) {
        PqNode *c = build(b, path, def, rep, depth + 1);
        if (!c) return NULL;
        for (size_t k = 0; k < n->n_children; k++)
            if (strcmp(n->child[k]->name, c->name) == 0) {
                bad(b, c->name, "有两个同名的列（或字段）");
                return NULL;
            }
        n->child[n->n_children] = c;
        n->n_leaves += c->n_leaves;
    }
    return n;
}

/* 列表的「repeated」层是元素本身（两层的写法）还是只包着元素（三层）。 */
static bool is_element(const PqElement *list, const PqElement *r) {
    if (r->n_children != 1 || list->map) return true;
    size_t n = strlen(list->name);
    return strcmp(r->name, "array") == 0 ||
           (strncmp(r->name, list->name, n) == 0 && strcmp(r->name + n, "_tuple") == 0);
}

/* 当前元素是 repeated：建它的 LIST 结点。list 是外面标注 LIST 的一层，没有为 NULL（def 是它的定义级）。 */
static PqNode *build_list(Builder *b, const PqElement *list, const char *path, int def, int rep,
                          int depth) {
    const PqElement *r = &b->q->elements[b->at++];
    PqNode *n = new_node(b, list ? list : r, PQ_LIST, def);
    if (!n || !(n->child = ARENA_ARRAY(&b->q->arena, PqNode *, 1, b->e))) return NULL;
    n->full = def + 1;
    n->rep = rep + 1;
    if (r->n_children == 0)
        n->child[0] = build_leaf(b, r, path, n->full, n->rep);
    else if (!list || is_element(list, r))
        n->child[0] = build_struct(b, r, path, n->full, n->rep, depth);
    else
        n->child[0] = build(b, path, n->full, n->rep, depth + 1);
    if (!n->child[0]) return NULL;
    n->n_children = 1;
    n->n_leaves = n->child[0]->n_leaves;
    return n;
}

static bool check_element(Builder *b, const PqElement *s, int depth) {
    if (depth > PQ_MAX_LEVEL) return bad(b, s->name, "嵌套过深");
    if (s->repetition < 0 || s->repetition > PQ_REPEATED) return bad(b, s->name, "没有 repetition");
    if ((uint64_t)s->n_children > b->q->n_elements) return bad(b, s->name, "字段比模式的元素还多");
    return s->type >= 0 || s->n_children > 0 || bad(b, s->name, "是没有字段的 group");
}

/* 建从当前元素开始的子树；def、rep 是外面的定义级与重复级。 */
static PqNode *build(Builder *b, const char *parent, int def, int rep, int depth) {
    Pq *q = b->q;
    if (b->at >= q->n_elements) {
        bad(b, parent, "元素不够");
        return NULL;
    }
    const PqElement *s = &q->elements[b->at], *next = s + 1;
    if (!check_element(b, s, depth)) return NULL;
    const char *path = *parent ? arena_printf(&q->arena, b->e, "%s.%s", parent, s->name) : s->name;
    if (!path || !pq_take(q, strlen(path) + 1, 1, b->e)) return NULL;
    if (s->repetition == PQ_REPEATED) return build_list(b, NULL, path, def, rep, depth);
    b->at++;
    def += s->repetition == PQ_OPTIONAL;
    if (s->n_children == 0) return build_leaf(b, s, path, def, rep);
    if ((s->list || s->map) && s->n_children == 1 && b->at < q->n_elements &&
        next->repetition == PQ_REPEATED)
        return check_element(b, next, depth + 1) ? build_list(b, s, path, def, rep, depth) : NULL;
    return build_struct(b, s, path, def, rep, depth);
}

bool pq_build_schema(Pq *q, Err *e) {
    Builder b = {.q = q, .at = 1, .e = e};
    PqElement *top = &q->elements[0];
    if (!(q->leaves = ARENA_ARRAY(&q->arena, PqLeaf, q->n_elements, e))) return false;
    if (top->n_children <= 0 || (uint64_t)top->n_children >= q->n_elements)
        return err_set(e, ERR_FORMAT, "%s: 模式里没有列，或列数不对", q->where);
    q->root = build_struct(&b, top, "", 0, 0, 0);
    if (!q->root) return false;
    return b.at == q->n_elements || err_set(e, ERR_FORMAT, "%s: 模式有多余的元素", q->where);
}
