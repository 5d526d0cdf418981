/* memory — 映射与 QTensor 的搬运 */
#include "compute/memory.h"

enum { SLACK = 8 /* 两级统计的段之后须可读的字节 */ };

HostView host_view(Backend *b) {
    return (HostView){.b = b};
}

void *host_map(HostView *v, const void *mem, size_t bytes, HostAccess access) {
    if (!mem || !v->b->separate) return (void *)mem;
    void *host = arena_alloc(&v->arena, bytes, &v->b->err);
    if (!host) return NULL;
    if (access & HOST_READ) op_read(v->b, host, mem, bytes);
    if (access & HOST_WRITE) {
        CHECK(v->n_writes < HOST_MAPS);
        v->writes[v->n_writes++] = (HostMap){(void *)mem, host, bytes};
    }
    return host;
}

bool host_end(HostView *v) {
    for (int i = 0; i < v->n_writes; i++)
        op_write(v->b, v->writes[i].mem, v->writes[i].host, v->writes[i].bytes);
    arena_free(&v->arena);
    v->n_writes = 0;
    return v->b->err.code == ERR_NONE;
}

/* 各段换成 a 里的副本；to_host 为真是从后端到主机，否则反之。 */
static bool move_parts(Backend *b, QTensor *q, Arena *a, bool to_host, Err *e) {
    QtPart part[QT_PARTS];
    qtensor_parts(q, part);
    for (int i = 0; i < QT_PARTS; i++) {
        if (!*part[i].data) continue;
        void *copy = arena_alloc(a, part[i].bytes + SLACK, e);
        if (!copy) return false;
        if (to_host)
            op_read(b, copy, *part[i].data, part[i].bytes);
        else
            op_write(b, copy, *part[i].data, part[i].bytes);
        *part[i].data = copy;
    }
    return backend_check(b, e);
}

bool qtensor_to_host(Backend *b, const QTensor *q, QTensor *host, Arena *a, Err *e) {
    *host = *q;
    return !b->separate || move_parts(b, host, a, true, e);
}

bool qtensor_to_backend(Backend *b, QTensor *q, Arena *a, Err *e) {
    return move_parts(b, q, a, false, e);
}

bool qtensor_store_perm(Backend *b, QTensor *q, Arena *a, const int32_t *perm, Err *e) {
    Arena host = {0};
    QTensor checked = *q;
    bool ok = qtensor_set_perm(&checked, &host, perm, e);
    size_t bytes = (size_t)q->cols * sizeof *perm;
    q->perm = ok ? arena_alloc(a, bytes, e) : NULL;
    q->perm_bytes = bytes;
    if (q->perm) op_write(b, q->perm, perm, bytes);
    arena_free(&host);
    return q->perm && backend_check(b, e);
}
