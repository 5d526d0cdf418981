/* npy — .npy 文件的读写
 * 布局：魔数、版本 1.0、2 字节小端头长、Python 字典文本（补空格到 64 的倍数）、数据。
 * 出处：numpy.lib.format 的文档。 */
#include "io/npy.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "io/file.h"
#include "io/tensorfile.h"

#define NPY_DIMS 8
#define PREFIX 10 /* 魔数 6 + 版本 2 + 头长 2 */

static const struct {
    DType dtype;
    const char *descr;
} TYPES[] = {{DT_F32, "<f4"}, {DT_F16, "<f2"}, {DT_F64, "<f8"}, {DT_I8, "|i1"}, {DT_U8, "|u1"},
             {DT_I16, "<i2"}, {DT_I32, "<i4"}, {DT_I64, "<i8"}, {DT_BOOL, "|b1"}};
#define N_TYPES (sizeof TYPES / sizeof *TYPES)

static const char *descr_of(DType t) {
    for (size_t i = 0; i < N_TYPES; i++)
        if (TYPES[i].dtype == t) return TYPES[i].descr;
    return NULL;
}

bool npy_write(const char *path, DType dtype, int n_dims, const int64_t *shape, const void *data,
               Err *e) {
    const char *descr = descr_of(dtype);
    size_t n;
    if (!descr)
        return err_set(e, ERR_UNSUPPORTED, "%s: .npy 不能存放 %s", path, dtype_name(dtype));
    if (n_dims < 0 || n_dims > NPY_DIMS || !tensorfile_count(shape, n_dims, &n))
        return err_set(e, ERR_FORMAT, "%s: 形状不合法", path);
    Str s = {0};
    str_addn(&s, "\x93NUMPY\x01\x00\x00\x00", PREFIX);
    str_addf(&s, "{'descr': '%s', 'fortran_order': False, 'shape': (", descr);
    for (int i = 0; i < n_dims; i++)
        str_addf(&s, "%s%lld%s", i ? " " : "", (long long)shape[i],
                 i + 1 < n_dims || n_dims == 1 ? "," : "");
    str_add(&s, "), }");
    while (!s.failed && (s.len + 1) % 64) str_add(&s, " ");
    str_add(&s, "\n");
    bool ok = !s.failed || err_set(e, ERR_MEMORY, "写 %s 时内存不足", path);
    if (ok) {
        s.data[8] = (char)((s.len - PREFIX) & 255);
        s.data[9] = (char)((s.len - PREFIX) >> 8);
        FilePart parts[] = {{s.data, s.len}, {data, dtype_bytes(dtype, n)}};
        ok = file_write_parts(path, parts, 2, e);
    }
    str_free(&s);
    return ok;
}

/* 字典文本中 'key': 之后的内容；没有返回 NULL。 */
static const char *value_of(const char *head, const char *key) {
    const char *p = strstr(head, key);
    if (!p) return NULL;
    p += strlen(key);
    p += strspn(p, " ");
    return *p == ':' ? p + 1 + strspn(p + 1, " ") : NULL;
}

static bool read_descr(Npy *out, const char *head, const char *path, Err *e) {
    const char *p = value_of(head, "'descr'");
    for (size_t i = 0; p && i < N_TYPES; i++)
        if (p[0] == '\'' && strncmp(p + 1, TYPES[i].descr, 3) == 0 && p[4] == '\'') {
            out->dtype = TYPES[i].dtype;
            return true;
        }
    return err_set(e, p ? ERR_UNSUPPORTED : ERR_FORMAT,
                   "%s: 不支持的元素类型（支持小端的 f2 f4 f8 i1 u1 i2 i4 i8 b1）", path);
}

static bool read_shape(Npy *out, const char *head, const char *path, Err *e) {
    const char *p = value_of(head, "'shape'");
    if (!p || *p != '(') return err_set(e, ERR_FORMAT, "%s: 文件头缺少 shape", path);
    for (p++; *p != ')';) {
        char *end;
        p += strspn(p, " ");
        long long v = strtoll(p, &end, 10);
        if (end == p || *p < '0' || *p > '9' || out->n_dims == NPY_DIMS)
            return err_set(e, ERR_FORMAT, "%s: shape 不合法或超过 %d 维", path, NPY_DIMS);
        out->shape[out->n_dims++] = v;
        p = end + strspn(end, " ,");
    }
    if (!tensorfile_count(out->shape, out->n_dims, &out->n))
        return err_set(e, ERR_FORMAT, "%s: shape 过大，元素数溢出", path);
    return true;
}

static bool read_map(Arena *a, const char *path, const FileMap *m, Npy *out, Err *e) {
    if (m->size < PREFIX || memcmp(m->data, "\x93NUMPY", 6) != 0)
        return err_set(e, ERR_FORMAT, "%s: 不是 .npy 文件", path);
    if (m->data[6] != 1 || m->data[7] != 0)
        return err_set(e, ERR_UNSUPPORTED, "%s: .npy 版本 %d.%d 尚不支持，请存成 1.0 版", path,
                       m->data[6], m->data[7]);
    size_t head_len = m->data[8] | (size_t)m->data[9] << 8;
    if (head_len > m->size - PREFIX) return err_set(e, ERR_FORMAT, "%s: 文件头被截断", path);
    char *head = arena_strndup(a, (const char *)m->data + PREFIX, head_len, e);
    if (!head || !read_descr(out, head, path, e) || !read_shape(out, head, path, e)) return false;
    const char *order = value_of(head, "'fortran_order'");
    if (!order || (strncmp(order, "False", 5) != 0 && out->n_dims > 1))
        return err_set(e, ERR_UNSUPPORTED, "%s: 不支持 Fortran 序，请存成 C 序", path);
    size_t bytes = dtype_bytes(out->dtype, out->n), have = m->size - PREFIX - head_len;
    if (bytes != have)
        return err_set(e, ERR_FORMAT, "%s: 数据应为 %zu 字节，实有 %zu 字节", path, bytes, have);
    out->data = arena_alloc(a, bytes, e);
    if (!out->data) return false;
    if (bytes) memcpy(out->data, m->data + PREFIX + head_len, bytes);
    return true;
}

bool npy_read(Arena *a, const char *path, Npy *out, Err *e) {
    FileMap m;
    *out = (Npy){0};
    if (!file_map(&m, path, e)) return false;
    bool ok = read_map(a, path, &m, out, e);
    file_unmap(&m);
    return ok;
}
