/* reference — 基线存档的读写
 * 布局：128 字节的头（魔数、四个 i64、run_key）+ 隐藏状态 f32（补到 8 字节）+ 窗口 NLL f64。 */
#include "tasks/reference.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

typedef struct Header {
    char magic[8];
    int64_t rows, width, hidden_windows, n_windows;
    char reserved[24];
    char run_key[64];
} Header;
_Static_assert(sizeof(Header) == 128, "头长固定");
static const char MAGIC[8] = "PTQREF1";

/* 各段之和须恰为文件大小；所有乘法先查范围。 */
static bool header_ok(const Header *h, size_t size) {
    const int64_t big = (int64_t)1 << 31;
    if (memcmp(h->magic, MAGIC, sizeof MAGIC) != 0) return false;
    if (h->rows < 1 || h->rows > big || h->width < 1 || h->width > big) return false;
    if (h->hidden_windows < 0 || h->n_windows < h->hidden_windows || h->n_windows > big)
        return false;
    unsigned __int128 want = (unsigned __int128)h->rows * (uint64_t)h->width * 4;
    if (want > ((unsigned __int128)1 << 62)) return false;
    want = want * (uint64_t)h->hidden_windows;
    want += want % 8 + (unsigned __int128)h->n_windows * 8 + sizeof(Header);
    return want == size;
}

bool reference_open(Reference *r, const char *dir, const char *key, int64_t rows, int64_t width) {
    *r = (Reference){0};
    Arena a = {0};
    char *path = arena_printf(&a, NULL, "%s/%s.ref", dir, key);
    bool ok = path && file_exists(path) && file_map(&r->map, path, NULL);
    if (ok) {
        Header h;
        ok = r->map.size >= sizeof h;
        if (ok) memcpy(&h, r->map.data, sizeof h);
        ok = ok && header_ok(&h, r->map.size);
        if (!ok) log_line(LOG_WARN, "基线存档已损坏，忽略：%s（可删除，下次 fp16 运行会重建）", path);
        ok = ok && h.rows == rows && h.width == width;
        if (ok) {
            memcpy(r->run_key, h.run_key, 64);
            r->n_windows = h.n_windows;
            r->hidden_windows = h.hidden_windows;
            r->rows = rows;
            r->width = width;
            r->hidden = (const float *)(r->map.data + sizeof h);
            size_t hidden_bytes = (size_t)(rows * width * h.hidden_windows) * 4;
            r->window_nll =
                (const double *)(r->map.data + sizeof h + hidden_bytes + hidden_bytes % 8);
        }
    }
    arena_free(&a);
    if (!ok) reference_close(r);
    return ok;
}

void reference_close(Reference *r) {
    file_unmap(&r->map);
    *r = (Reference){0};
}

bool reference_begin(ReferenceWriter *w, Arena *a, const char *dir, const char *key, int64_t rows,
                     int64_t width, Err *e) {
    *w = (ReferenceWriter){.rows = rows, .width = width};
    if (!file_mkdirs(dir, e)) return false;
    w->path = arena_printf(a, e, "%s/%s.ref", dir, key);
    w->tmp = arena_printf(a, e, "%s/.ptq-tmp-%s-%d", dir, key, (int)getpid());
    if (!w->path || !w->tmp) return false;
    w->file = fopen(w->tmp, "wb");
    Header h = {0};
    if (!w->file || fwrite(&h, sizeof h, 1, w->file) != 1) {
        err_set(e, ERR_IO, "%s: 无法写入: %s", w->tmp, strerror(errno));
        reference_abort(w);
        return false;
    }
    return true;
}

bool reference_add(ReferenceWriter *w, const float *hidden, Err *e) {
    size_t n = (size_t)(w->rows * w->width);
    if (fwrite(hidden, sizeof *hidden, n, w->file) != n)
        return err_set(e, ERR_IO, "%s: 写入失败: %s", w->tmp, strerror(errno));
    w->hidden_windows++;
    return true;
}

bool reference_commit(ReferenceWriter *w, const char *run_key, const double *window_nll,
                      int64_t n_windows, Err *e) {
    Header h = {.rows = w->rows, .width = w->width, .hidden_windows = w->hidden_windows,
                .n_windows = n_windows};
    memcpy(h.magic, MAGIC, sizeof MAGIC);
    memcpy(h.run_key, run_key, 64);
    size_t pad = (size_t)(w->rows * w->width * w->hidden_windows) * 4 % 8;
    bool ok = fwrite("\0\0\0", 1, pad, w->file) == pad &&
              fwrite(window_nll, sizeof *window_nll, (size_t)n_windows, w->file) ==
                  (size_t)n_windows &&
              fseek(w->file, 0, SEEK_SET) == 0 && fwrite(&h, sizeof h, 1, w->file) == 1 &&
              fflush(w->file) == 0 && fsync(fileno(w->file)) == 0;
    int saved = errno;
    ok = fclose(w->file) == 0 && ok;
    w->file = NULL;
    ok = ok && rename(w->tmp, w->path) == 0;
    if (ok) return true;
    unlink(w->tmp);
    return err_set(e, ERR_IO, "%s: 写入失败: %s", w->path, strerror(saved ? saved : errno));
}

void reference_abort(ReferenceWriter *w) {
    if (!w->file) return;
    fclose(w->file);
    w->file = NULL;
    unlink(w->tmp);
}
