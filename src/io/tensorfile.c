/* tensorfile — 各张量文件格式共用的收尾检查与查找
 * 不变式：tensorfile_finish 成功后 tensors 按名字排序且无重名，数据两两不重叠。 */
#include "io/tensorfile.h"

#include <stdlib.h>
#include <string.h>

static int by_name(const void *a, const void *b) {
    return strcmp(((const FileTensor *)a)->name, ((const FileTensor *)b)->name);
}

static int by_place(const void *a, const void *b) {
    const FileTensor *x = *(const FileTensor *const *)a, *y = *(const FileTensor *const *)b;
    uintptr_t p = (uintptr_t)x->data, q = (uintptr_t)y->data;
    if (p != q) return p < q ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* sorted 按位置排好；检查重叠，whole 时还检查空隙。 */
static bool check_places(const TensorFile *f, const FileTensor **sorted, const uint8_t *base,
                         size_t size, bool whole, Err *e) {
    size_t end = 0;
    const char *before = "文件头";
    for (size_t i = 0; i < f->n_tensors; i++) {
        const FileTensor *t = sorted[i];
        size_t begin = (size_t)((const uint8_t *)t->data - base);
        if (t->bytes && begin < end)
            return err_set(e, ERR_FORMAT, "%s: 张量 %.200s 与 %.200s 的数据重叠（偏移 %zu）",
                           f->path, before, t->name, begin);
        if (whole && begin != end)
            return err_set(e, ERR_FORMAT, "%s: 张量 %.200s 之前有空隙（偏移 %zu 应为 %zu）",
                           f->path, t->name, begin, end);
        if (t->bytes) {
            end = begin + t->bytes;
            before = t->name;
        }
    }
    if (whole && end != size)
        return err_set(e, ERR_FORMAT, "%s: 数据区有 %zu 字节，张量只占 %zu 字节", f->path, size,
                       end);
    return true;
}

bool tensorfile_finish(TensorFile *f, const uint8_t *base, size_t size, bool whole, Err *e) {
    if (f->n_tensors) qsort(f->tensors, f->n_tensors, sizeof *f->tensors, by_name);
    for (size_t i = 1; i < f->n_tensors; i++)
        if (by_name(&f->tensors[i - 1], &f->tensors[i]) == 0)
            return err_set(e, ERR_FORMAT, "%s: 张量 %.200s 出现两次", f->path,
                           f->tensors[i].name);
    ArenaMark mark = arena_mark(&f->arena);
    const FileTensor **sorted = ARENA_ARRAY(&f->arena, const FileTensor *, f->n_tensors, e);
    if (!sorted) return false;
    for (size_t i = 0; i < f->n_tensors; i++) sorted[i] = &f->tensors[i];
    if (f->n_tensors) qsort(sorted, f->n_tensors, sizeof *sorted, by_place);
    bool ok = check_places(f, sorted, base, size, whole, e);
    arena_rewind(&f->arena, mark);
    return ok;
}

bool tensorfile_count(const int64_t *shape, int n_dims, size_t *n) {
    int64_t total = 1;
    for (int i = 0; i < n_dims; i++)
        if (shape[i] < 0 || __builtin_mul_overflow(total, shape[i], &total)) return false;
    *n = (size_t)total;
    return true;
}

void tensorfile_close(TensorFile *f) {
    arena_free(&f->arena);
    file_unmap(&f->map);
    *f = (TensorFile){0};
}

const FileTensor *tensorfile_find(const TensorFile *f, const char *name) {
    FileTensor want = {.name = name};
    if (!f->n_tensors) return NULL;
    return bsearch(&want, f->tensors, f->n_tensors, sizeof want, by_name);
}
