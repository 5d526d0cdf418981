/* blockfile — 量化好的一个块存成文件 */
#include "model/blockfile.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
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
static const char MAGIC[8] = "ptqblk4";

/* 一个块的全部数据段，次序固定：归一化等向量、路由、各线性层的数据与偏置。 */
typedef struct Parts {
    Arena arena;
    QtPart *part;
    size_t n, n_fixed; /* 前 n_fixed 段是归一化等向量与路由 */
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
    p->n_fixed = p->n;
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

struct BlockSave {
    Head head;
    Block block;
    Parts parts;
    HostView view;  /* 各段在主机上的样子 */
    FilePart *out;
    size_t n;
    const char *dir;
    char path[4096];
    pthread_t thread;
    bool threaded, ok;
    Err err;
};

static const char ZEROS[ALIGN];

/* 列出文件的各段；out[0] 留给头。 */
static bool lay_out(BlockSave *s, const Model *m, int64_t layer, const char *key, const char *notes, Err *e) {
    Block *b = &s->block;
    size_t linears = (size_t)b->n_linears * sizeof *b->linears, n = 1;
    s->head = (Head){.head_bytes = sizeof s->head, .block_bytes = sizeof *b, .layer = layer,
                     .notes_bytes = strlen(notes) + 1};
    memcpy(s->head.magic, MAGIC, sizeof s->head.magic);
    memcpy(s->head.key, key, HASH_HEX);
    if (!list_parts(&s->parts, m, layer, b, e)) return false;
    Arena *a = &s->parts.arena;
    FilePart *out = s->out = ARENA_ARRAY(a, FilePart, 2 * s->parts.n + 7, e);
    void *copy = arena_alloc(a, linears, e), *text = arena_alloc(a, s->head.notes_bytes, e);
    if (!out || !copy || !text) return false;
    memcpy(copy, b->linears, linears);
    memcpy(text, notes, s->head.notes_bytes);
    out[n++] = (FilePart){b, sizeof *b};
    out[n++] = (FilePart){copy, linears};
    out[n++] = (FilePart){ZEROS, padding(sizeof s->head + sizeof *b + linears)};
    for (size_t i = 0; i < s->parts.n; i++) {
        QtPart *p = &s->parts.part[i];
        out[n++] = (FilePart){host_map(&s->view, *p->data, p->bytes, HOST_READ), p->bytes};
        out[n++] = (FilePart){ZEROS, padding(p->bytes)};
    }
    out[n++] = (FilePart){text, s->head.notes_bytes};
    out[n++] = (FilePart){ZEROS, ALIGN}; /* 末段之后仍可读 */
    s->n = n;
    return backend_check(m->backend, e);
}

/* 只碰主机上的副本：可以在另一个线程里做。 */
static void *write_block(void *ctx) {
    BlockSave *s = ctx;
    Hash *hash = hash_new();
    if (!hash) {
        err_set(&s->err, ERR_MEMORY, "内存不足");
        return NULL;
    }
    for (size_t i = 1; i < s->n; i++)
        if (s->out[i].len) hash_add(hash, s->out[i].data, s->out[i].len);
    hash_end(hash, s->head.sha256);
    s->out[0] = (FilePart){&s->head, sizeof s->head};
    s->ok = file_mkdirs(s->dir, &s->err) && file_write_parts(s->path, s->out, s->n, &s->err);
    return NULL;
}

static void free_save(BlockSave *s) {
    host_end(&s->view);
    arena_free(&s->parts.arena);
    free(s);
}

BlockSave *blockfile_save(const Model *m, int64_t layer, const char *dir, const char *key,
                          const char *notes, Err *e) {
    BlockSave *s = calloc(1, sizeof *s);
    if (!s) {
        err_set(e, ERR_MEMORY, "内存不足");
        return NULL;
    }
    s->block = m->blocks[layer];
    s->view = host_view(m->backend);
    s->dir = dir;
    block_path(s->path, sizeof s->path, dir, layer);
    if (!lay_out(s, m, layer, key, notes, e)) {
        free_save(s);
        return NULL;
    }
    s->threaded = m->backend->separate && pthread_create(&s->thread, NULL, write_block, s) == 0;
    if (!s->threaded) write_block(s);
    return s;
}

bool blockfile_saved(BlockSave *s, Err *e) {
    if (!s) return true;
    if (s->threaded) pthread_join(s->thread, NULL);
    bool ok = s->ok;
    if (!ok) *e = s->err;
    free_save(s);
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

/* 内存分开的后端：各段搬进模型的内存（线性层的矩阵在块的里），文件不再要。返回: 内存不足等为假（那就重做这一块）。 */
static bool upload(Model *m, Parts *p, Arena *block) {
    enum { SLACK = 8 };
    for (size_t i = 0; i < p->n; i++) {
        if (!*p->part[i].data) continue;
        bool matrix = i >= p->n_fixed && (i - p->n_fixed) % (QT_PARTS + 1) < QT_PARTS;
        void *to = arena_alloc(matrix ? block : &m->arena, p->part[i].bytes + SLACK, NULL);
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
        b.linears[i].home = NULL;
        if (b.linears[i].streamed) b.linears[i].q.data = NULL;
    }
    b.arena = to->arena;
    *notes = arena_strdup(&m->meta, (const char *)f.data + at, NULL);
    bool ok = *notes && (!m->backend->separate || upload(m, &p, &b.arena));
    arena_free(&p.arena);
    if (!ok) {
        arena_free(&b.arena);
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

void blockfile_swap(Model *m, int64_t layer, const char *dir, const char *key) {
    const char *notes;
    Block *b = &m->blocks[layer];
    if (!m->spill.alloc || b->file.data || !blockfile_load(m, layer, dir, key, &notes)) return;
    arena_free(&b->arena);
    file_map_drop(b->file.data, b->file.size);
}

void blockfile_clear(const char *dir, int64_t n_layers) {
    char path[4096];
    for (int64_t i = 0; i < n_layers; i++) remove(block_path(path, sizeof path, dir, i));
    remove(dir);
}
