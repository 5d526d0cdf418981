/* safetensors — .safetensors 文件的读取
 * 布局：8 字节小端头长 n、n 字节 JSON（名字 → dtype、shape、data_offsets）、数据区。
 * 与官方实现同样严格：张量恰好铺满数据区，无重叠、无空隙。出处：huggingface/safetensors README。 */
#include <inttypes.h>
#include <string.h>

#include "io/json.h"
#include "io/tensorfile.h"

#define HEADER_LIMIT ((uint64_t)100 * 1000 * 1000)

static bool find_dtype(const char *name, DType *t) {
    for (DType d = DT_F32; d <= DT_F8_E5M2; d++)
        if (strcmp(name, dtype_name(d)) == 0) return *t = d, true;
    return false;
}

static bool read_shape(FileTensor *t, const json_t *shape, Err *e) {
    if (!json_is_array(shape))
        return err_set(e, ERR_FORMAT, "%s: 张量 %.200s 缺少 shape 数组", t->path, t->name);
    size_t n = json_array_size(shape);
    if (n > FILE_TENSOR_DIMS)
        return err_set(e, ERR_UNSUPPORTED, "%s: 张量 %.200s 有 %zu 维，上限 %d 维", t->path,
                       t->name, n, FILE_TENSOR_DIMS);
    t->n_dims = (int)n;
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(shape, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0)
            return err_set(e, ERR_FORMAT, "%s: 张量 %.200s 的 shape[%zu] 不是非负整数", t->path,
                           t->name, i);
        t->shape[i] = json_integer_value(v);
    }
    return true;
}

/* data_offsets 为数据区内的 [begin, end)。 */
static bool read_place(FileTensor *t, const json_t *offsets, const uint8_t *base, size_t size,
                       Err *e) {
    const json_t *b = json_array_get(offsets, 0), *d = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(b) || !json_is_integer(d))
        return err_set(e, ERR_FORMAT, "%s: 张量 %.200s 的 data_offsets 应为两个整数", t->path,
                       t->name);
    int64_t begin = json_integer_value(b), end = json_integer_value(d);
    if (begin < 0 || end < begin || (uint64_t)end > size)
        return err_set(e, ERR_FORMAT,
                       "%s: 张量 %.200s 的 data_offsets [%" PRId64 ", %" PRId64
                       "] 超出数据区（%zu 字节），文件可能被截断，请重新下载",
                       t->path, t->name, begin, end, size);
    size_t n, want = SIZE_MAX;
    if (tensorfile_count(t->shape, t->n_dims, &n)) want = dtype_bytes(t->dtype, n);
    t->bytes = (size_t)(end - begin);
    t->data = base + begin;
    if (want == SIZE_MAX)
        return err_set(e, ERR_FORMAT, "%s: 张量 %.200s 的形状过大，元素数溢出", t->path, t->name);
    if (want != t->bytes)
        return err_set(e, ERR_FORMAT,
                       "%s: 张量 %.200s 的形状需要 %zu 字节，data_offsets 却给了 %zu 字节",
                       t->path, t->name, want, t->bytes);
    return true;
}

static bool read_tensor(TensorFile *f, FileTensor *t, const char *name, const json_t *v,
                        const uint8_t *base, size_t size, Err *e) {
    t->path = f->path;
    t->name = arena_strdup(&f->arena, name, e);
    if (!t->name) return false;
    if (!json_is_object(v))
        return err_set(e, ERR_FORMAT, "%s: 张量 %.200s 的说明不是 JSON 对象", f->path, name);
    const char *dtype = json_string_value(json_object_get(v, "dtype"));
    if (!dtype)
        return err_set(e, ERR_FORMAT, "%s: 张量 %.200s 缺少 dtype", f->path, name);
    if (!find_dtype(dtype, &t->dtype))
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: 张量 %.200s 的类型 %.40s 尚不支持；请先转换成 F32、F16 或 BF16",
                       f->path, name, dtype);
    return read_shape(t, json_object_get(v, "shape"), e) &&
           read_place(t, json_object_get(v, "data_offsets"), base, size, e);
}

static bool check_metadata(const TensorFile *f, json_t *v, Err *e) {
    bool ok = json_is_object(v);
    for (void *it = json_object_iter(v); it && ok; it = json_object_iter_next(v, it))
        ok = json_is_string(json_object_iter_value(it));
    return ok || err_set(e, ERR_FORMAT, "%s: __metadata__ 应为字符串到字符串的对象", f->path);
}

static bool read_header(TensorFile *f, json_t *head, const uint8_t *base, size_t size, Err *e) {
    if (!json_is_object(head))
        return err_set(e, ERR_FORMAT, "%s: 文件头不是 JSON 对象", f->path);
    f->tensors = ARENA_ARRAY(&f->arena, FileTensor, json_object_size(head), e);
    if (!f->tensors) return false;
    for (void *it = json_object_iter(head); it; it = json_object_iter_next(head, it)) {
        const char *name = json_object_iter_key(it);
        json_t *v = json_object_iter_value(it);
        if (strcmp(name, "__metadata__") == 0) {
            if (!check_metadata(f, v, e)) return false;
            continue;
        }
        if (!read_tensor(f, &f->tensors[f->n_tensors], name, v, base, size, e)) return false;
        f->n_tensors++;
    }
    return tensorfile_finish(f, base, size, true, e);
}

bool safetensors_parse(TensorFile *f, const char *name, const uint8_t *data, size_t size, Err *e) {
    *f = (TensorFile){0};
    f->path = arena_strdup(&f->arena, name, e);
    if (!f->path) return false;
    if (size < 8)
        return err_set(e, ERR_FORMAT, "%s: 只有 %zu 字节，不是 safetensors 文件", name, size);
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | data[i];
    if (n > HEADER_LIMIT)
        return err_set(e, ERR_FORMAT, "%s: 头长 %" PRIu64 " 超过上限 100 MB，不是 safetensors 文件",
                       name, n);
    if (n > size - 8)
        return err_set(e, ERR_FORMAT,
                       "%s: 头长 %" PRIu64 " 超出文件（%zu 字节），文件被截断，请重新下载", name, n,
                       size);
    json_t *head = json_parse(name, data + 8, (size_t)n, e);
    bool ok = head && read_header(f, head, data + 8 + n, size - 8 - (size_t)n, e);
    json_decref(head);
    return ok;
}

bool safetensors_open(TensorFile *f, const char *path, Err *e) {
    FileMap m;
    *f = (TensorFile){0};
    if (!file_map(&m, path, e)) return false;
    bool ok = safetensors_parse(f, path, m.data, m.size, e);
    f->map = m;
    if (!ok) tensorfile_close(f);
    return ok;
}
