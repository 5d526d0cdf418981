/* blockfile — 量化好的一个块存成文件 */
#include "model/blockfile.h"

#include <stdio.h>
#include <string.h>

#include "io/hash.h"
#include "model/layout.h"

enum { ALIGN = 64 };

typedef struct Head {
    char magic[8];
    size_t head_bytes, block_bytes; /* 结构的大小：换了版本就不认 */
    int64_t layer;
    size_t notes_bytes;
    char key[HASH_HEX], sha256[HASH_HEX]; /* sha256 是头之后全部内容的哈希 */
} Head;
static const char MAGIC[8] = "ptqblk3";

/* 一个块的全部数据段，次序固定：归一化等向量、路由、各线性层的数据与偏置。 */
typedef struct Parts {
    Arena arena;
    QtPart *part;
    size_t n;
} Parts;

static bool list_parts(Parts *p, const Model *m, int64_t layer, Block *b, Err *e) {
    BlockVector v[LAYOUT_MAX_VECTORS];
    size_t n = layout_vectors(&m->config, layer, b, v);
    size_t most = n + QT_PARTS + (size_t)b->n_linears * (QT_PARTS + 1);
    *p = (Parts){0};
    p->part = ARENA_ARRAY(&p->arena, QtPart, most, e);
    if (!p->part) return false;
    for (size_t i = 0; i < n; i++)
        p->part[p->n++] = (QtPart){(void **)v[i].data,
                                   (size_t)(v[i].rows * (v[i].cols ? v[i].cols : 1)) * sizeof(float)};
    qtensor_parts(&b->router_q, p->part + p->n);
    p->n += QT_PARTS;
    for (int64_t i = 0; i < b->n_linears; i++) {
        Linear *l = &b->linears[i];
        qtensor_parts(&l->q, p->part + p->n);
        p->n += QT_PARTS;
        p->part[p->n++] = (QtPart){(void **)&l->bias, l->bias ? (size_t)l->rows * sizeof(float) : 0};
    }
    return true;
}

static size_t padding(size_t bytes) {
    return (ALIGN - bytes % ALIGN) % ALIGN;
}

static const char *block_path(char *buf, size_t cap, const char *dir, int64_t layer) {
    snprintf(buf, cap, "%s/block-%04lld.bin", dir, (long long)layer);
    return buf;
}

bool blockfile_save(const Model *m, int64_t layer, const char *dir, const char *key,
                    const char *notes, Err *e) {
    static const char zeros[ALIGN];
    Block b = m->blocks[layer];
    Parts p;
    size_t n = 1, linears = (size_t)b.n_linears * sizeof *b.linears;
    Head h = {.head_bytes = sizeof h, .block_bytes = sizeof b, .layer = layer,
              .notes_bytes = strlen(notes) + 1};
    memcpy(h.magic, MAGIC, sizeof h.magic);
    memcpy(h.key, key, HASH_HEX);
    if (!list_parts(&p, m, layer, &b, e)) return false;
    FilePart *out = ARENA_ARRAY(&p.arena, FilePart, 2 * p.n + 7, e);
    if (!out) {
        arena_free(&p.arena);
        return false;
    }
    HostView v = host_view(m->backend);
    out[n++] = (FilePart){&b, sizeof b};
    out[n++] = (FilePart){b.linears, linears};
    out[n++] = (FilePart){zeros, padding(sizeof h + sizeof b + linears)};
    for (size_t i = 0; i < p.n; i++) {
        out[n++] = (FilePart){host_map(&v, *p.part[i].data, p.part[i].bytes, HOST_READ),
                              p.part[i].bytes};
        out[n++] = (FilePart){zeros, padding(p.part[i].bytes)};
    }
    out[n++] = (FilePart){notes, h.notes_bytes};
    out[n++] = (FilePart){zeros, ALIGN}; /* 末段之后仍可读 */
    Hash *hash = backend_check(m->backend, e) ? hash_new() : NULL;
    if (!hash) {
        host_end(&v);
        arena_free(&p.arena);
        return e->code != ERR_NONE ? false : err_set(e, ERR_MEMORY, "内存不足");
    }
    for (size_t i = 1; i < n; i++)
        if (out[i].len) hash_add(hash, out[i].data, out[i].len);
    hash_end(hash, h.sha256);
    out[0] = (FilePart){&h, sizeof h};
    char path[4096];
    bool ok = file_mkdirs(dir, e) &&
              file_write_parts(block_path(path, sizeof path, dir, layer), out, n, e);
    host_end(&v);
    arena_free(&p.arena);
    return ok;
}

/* 头、版本与哈希都对：内容就是本程序写的，其余不必再查。 */
static bool check(const FileMap *f, int64_t layer, const char *key, Head *h) {
    char sha256[HASH_HEX];
    if (f->size < sizeof *h + sizeof(Block)) return false;
    memcpy(h, f->data, sizeof *h);
    if (memcmp(h->magic, MAGIC, sizeof h->magic) != 0 || h->head_bytes != sizeof *h ||
        h->block_bytes != sizeof(Block) || h->layer != layer ||
        memcmp(h->key, key, HASH_HEX) != 0)
        return false;
    hash_bytes(f->data + sizeof *h, f->size - sizeof *h, sha256);
    return memcmp(sha256, h->sha256, HASH_HEX) == 0;
}

/* 内存分开的后端：各段搬进模型的内存，文件不再要。返回: 内存不足等为假（那就重做这一块）。 */
static bool upload(Model *m, Parts *p) {
    enum { SLACK = 8 };
    for (size_t i = 0; i < p->n; i++) {
        if (!*p->part[i].data) continue;
        void *to = arena_alloc(&m->arena, p->part[i].bytes + SLACK, NULL);
        if (!to) return false;
        op_write(m->backend, to, *p->part[i].data, p->part[i].bytes);
        *p->part[i].data = to;
    }
    return backend_check(m->backend, NULL);
}

bool blockfile_load(Model *m, int64_t layer, const char *dir, const char *key,
                    const char **notes) {
    FileMap f;
    Head h;
    Err ignored = {0};
    char path[4096];
    if (!file_exists(block_path(path, sizeof path, dir, layer)) || !file_map(&f, path, &ignored))
        return false;
    if (!check(&f, layer, key, &h)) {
        file_unmap(&f);
        return false;
    }
    Block *to = &m->blocks[layer], b;
    memcpy(&b, f.data + sizeof h, sizeof b);
    Parts p = {0};
    size_t linears = (size_t)b.n_linears * sizeof *b.linears, at = sizeof h + sizeof b + linears;
    b.linears = ARENA_ARRAY(&m->meta, Linear, b.n_linears, &ignored);
    if (!b.linears || b.n_linears != to->n_linears) {
        file_unmap(&f);
        return false;
    }
    memcpy(b.linears, f.data + sizeof h + sizeof b, linears);
    if (!list_parts(&p, m, layer, &b, &ignored)) {
        file_unmap(&f);
        return false;
    }
    at += padding(at);
    for (size_t i = 0; i < p.n; i++) {
        *p.part[i].data = p.part[i].bytes ? (void *)(f.data + at) : NULL;
        at += p.part[i].bytes + padding(p.part[i].bytes);
    }
    for (int64_t i = 0; i < b.n_linears; i++) {
        b.linears[i].name = to->linears[i].name;
        if (b.linears[i].streamed) b.linears[i].q.data = NULL;
    }
    *notes = arena_strdup(&m->meta, (const char *)f.data + at, NULL);
    bool ok = *notes && (!m->backend->separate || upload(m, &p));
    arena_free(&p.arena);
    if (!ok) {
        file_unmap(&f);
        return false;
    }
    if (m->backend->separate)
        file_unmap(&f);
    else
        b.file = f;
    *to = b;
    return true;
}

void blockfile_clear(const char *dir, int64_t n_layers) {
    char path[4096];
    for (int64_t i = 0; i < n_layers; i++) remove(block_path(path, sizeof path, dir, i));
    remove(dir);
}
