/* gguf — GGUF 文件的读取（v2、v3，小端）
 * 布局：魔数、版本、张量数、键值数、键值…、张量说明…、对齐、数据。
 * 一个游标读到底：每次取字节前比较剩余长度；计数先按「每项至少几字节」对照剩余长度再分配，
 * 因此内存用量不超过文件大小的常数倍。出处：ggml 的 docs/gguf.md。 */
#include "io/gguf.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NAME_LIMIT 65535
#define VALUES_LIMIT 100000
#define TENSORS_LIMIT 1000000
#define VALUE_MIN_BYTES 13  /* 键长 8 + 类型 4 + 值 1 */
#define TENSOR_MIN_BYTES 24 /* 名字长 8 + 维数 4 + 类型 4 + 偏移 8 */
#define DEFAULT_ALIGN 32

typedef struct Cursor {
    const char *path;
    const uint8_t *data;
    size_t size, pos;
    Arena *arena;
    Err *e;
} Cursor;

/* 取 n 字节。返回: 其起点；不够时置错误并返回 NULL。what 说明在读什么。 */
static const uint8_t *take(Cursor *c, uint64_t n, const char *what) {
    if (n > c->size - c->pos) {
        err_set(c->e, ERR_FORMAT,
                "%s: 偏移 %zu 处读%s需要 %" PRIu64 " 字节，只剩 %zu 字节；文件被截断或已损坏",
                c->path, c->pos, what, n, c->size - c->pos);
        return NULL;
    }
    const uint8_t *p = c->data + c->pos;
    c->pos += (size_t)n;
    return p;
}

static uint64_t little(const uint8_t *p, int bytes) {
    uint64_t v = 0;
    for (int i = bytes - 1; i >= 0; i--) v = v << 8 | p[i];
    return v;
}

static bool take_u32(Cursor *c, uint32_t *v, const char *what) {
    const uint8_t *p = take(c, 4, what);
    if (p) *v = (uint32_t)little(p, 4);
    return p != NULL;
}

static bool take_u64(Cursor *c, uint64_t *v, const char *what) {
    const uint8_t *p = take(c, 8, what);
    if (p) *v = little(p, 8);
    return p != NULL;
}

static bool take_string(Cursor *c, GgufString *s, const char *what) {
    uint64_t n;
    if (!take_u64(c, &n, what)) return false;
    const uint8_t *p = take(c, n, what);
    if (p) *s = (GgufString){(const char *)p, (size_t)n};
    return p != NULL;
}

/* 键或张量名：复制成以 '\0' 结尾的字符串。 */
static const char *take_name(Cursor *c, const char *what) {
    GgufString s;
    size_t at = c->pos;
    if (!take_string(c, &s, what)) return NULL;
    if (s.len > NAME_LIMIT || memchr(s.data, 0, s.len)) {
        err_set(c->e, ERR_FORMAT, "%s: 偏移 %zu 处的%s过长或含 NUL 字符", c->path, at, what);
        return NULL;
    }
    return arena_strndup(c->arena, s.data, s.len, c->e);
}

/* 定长类型的字节数；字符串、数组与未知类型为 0。 */
static int type_bytes(uint32_t t) {
    static const uint8_t BYTES[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return t < sizeof BYTES ? BYTES[t] : 0;
}

static int64_t load_int(GgufType t, const uint8_t *p) {
    uint64_t u = little(p, type_bytes(t));
    switch (t) {
    case GGUF_I8: return (int8_t)u;
    case GGUF_I16: return (int16_t)u;
    case GGUF_I32: return (int32_t)u;
    case GGUF_U64: return u > INT64_MAX ? INT64_MAX : (int64_t)u;
    default: return (int64_t)u;
    }
}

static double load_num(GgufType t, const uint8_t *p) {
    if (t == GGUF_F32) {
        uint32_t u = (uint32_t)little(p, 4);
        float f;
        memcpy(&f, &u, sizeof f);
        return f;
    }
    if (t == GGUF_F64) {
        uint64_t u = little(p, 8);
        double d;
        memcpy(&d, &u, sizeof d);
        return d;
    }
    return t == GGUF_U64 ? (double)little(p, 8) : (double)load_int(t, p);
}

static bool is_real(GgufType t) {
    return t == GGUF_F32 || t == GGUF_F64;
}

static bool read_scalar(Cursor *c, GgufValue *v) {
    const uint8_t *p = take(c, (uint64_t)type_bytes(v->type), "标量");
    if (!p) return false;
    if (v->type == GGUF_BOOL && *p > 1)
        return err_set(c->e, ERR_FORMAT, "%s: 元数据 %.200s 的布尔值为 %d，应为 0 或 1", c->path,
                       v->key, *p);
    if (v->type == GGUF_U64 && little(p, 8) > INT64_MAX)
        return err_set(c->e, ERR_FORMAT, "%s: 元数据 %.200s 的值 %" PRIu64 " 过大", c->path,
                       v->key, little(p, 8));
    v->f = load_num(v->type, p);
    v->i = is_real(v->type) ? 0 : load_int(v->type, p);
    return true;
}

static bool read_strings(Cursor *c, GgufValue *v) {
    GgufString *list = ARENA_ARRAY(c->arena, GgufString, v->n, c->e);
    if (!list) return false;
    for (size_t i = 0; i < v->n; i++)
        if (!take_string(c, &list[i], "字符串数组")) return false;
    v->strings = list;
    return true;
}

static bool read_array(Cursor *c, GgufValue *v) {
    uint32_t type;
    uint64_t n;
    if (!take_u32(c, &type, "数组类型") || !take_u64(c, &n, "数组长度")) return false;
    if (type == GGUF_ARRAY)
        return err_set(c->e, ERR_UNSUPPORTED, "%s: 元数据 %.200s 是嵌套数组，不支持", c->path,
                       v->key);
    size_t each = type == GGUF_STRING ? 8 : (size_t)type_bytes(type);
    if (!each)
        return err_set(c->e, ERR_FORMAT, "%s: 元数据 %.200s 的数组元素类型 %u 不存在", c->path,
                       v->key, type);
    if (n > (c->size - c->pos) / each)
        return err_set(c->e, ERR_FORMAT, "%s: 元数据 %.200s 的数组长度 %" PRIu64 " 超出文件",
                       c->path, v->key, n);
    v->item_type = (GgufType)type;
    v->n = (size_t)n;
    if (type == GGUF_STRING) return read_strings(c, v);
    v->items = take(c, n * each, "数组");
    return v->items != NULL;
}

static bool read_value(Cursor *c, GgufValue *v) {
    uint32_t type;
    v->key = take_name(c, "元数据键");
    if (!v->key || !take_u32(c, &type, "元数据类型")) return false;
    if (type > GGUF_F64)
        return err_set(c->e, ERR_FORMAT, "%s: 元数据 %.200s 的类型 %u 不存在", c->path, v->key,
                       type);
    v->type = v->item_type = (GgufType)type;
    v->n = 1;
    if (type == GGUF_STRING) return take_string(c, &v->s, "字符串");
    return type == GGUF_ARRAY ? read_array(c, v) : read_scalar(c, v);
}

static int by_key(const void *a, const void *b) {
    return strcmp(((const GgufValue *)a)->key, ((const GgufValue *)b)->key);
}

static bool read_values(Cursor *c, Gguf *g, uint64_t n) {
    g->values = ARENA_ARRAY(c->arena, GgufValue, n, c->e);
    if (!g->values) return false;
    for (uint64_t i = 0; i < n; i++)
        if (!read_value(c, &g->values[i])) return false;
    g->n_values = (size_t)n;
    if (n) qsort(g->values, g->n_values, sizeof *g->values, by_key);
    for (size_t i = 1; i < g->n_values; i++)
        if (by_key(&g->values[i - 1], &g->values[i]) == 0)
            return err_set(c->e, ERR_FORMAT, "%s: 元数据 %.200s 出现两次", c->path,
                           g->values[i].key);
    return true;
}

/* ggml 的张量类型号；空缺的是已废弃的。 */
static const struct {
    const char *name;
    DType dtype;
} GGML_TYPES[] = {
    [0] = {"F32", DT_F32},    [1] = {"F16", DT_F16},    [2] = {"Q4_0", DT_Q4_0},
    [3] = {"Q4_1", DT_Q4_1},  [6] = {"Q5_0", DT_Q5_0},  [7] = {"Q5_1", DT_Q5_1},
    [8] = {"Q8_0", DT_Q8_0},  [9] = {"Q8_1", DT_Q8_1},  [10] = {"Q2_K", DT_Q2_K},
    [11] = {"Q3_K", DT_Q3_K}, [12] = {"Q4_K", DT_Q4_K}, [13] = {"Q5_K", DT_Q5_K},
    [14] = {"Q6_K", DT_Q6_K}, [15] = {"Q8_K", DT_Q8_K}, [16] = {"IQ2_XXS", DT_IQ2_XXS},
    [17] = {"IQ2_XS", DT_IQ2_XS}, [18] = {"IQ3_XXS", DT_IQ3_XXS}, [19] = {"IQ1_S", DT_IQ1_S},
    [20] = {"IQ4_NL", DT_IQ4_NL}, [21] = {"IQ3_S", DT_IQ3_S}, [22] = {"IQ2_S", DT_IQ2_S},
    [23] = {"IQ4_XS", DT_IQ4_XS}, [24] = {"I8", DT_I8},   [25] = {"I16", DT_I16},
    [26] = {"I32", DT_I32},   [27] = {"I64", DT_I64},   [28] = {"F64", DT_F64},
    [29] = {"IQ1_M", DT_IQ1_M}, [30] = {"BF16", DT_BF16}, [34] = {"TQ1_0", DT_TQ1_0},
    [35] = {"TQ2_0", DT_TQ2_0}, [39] = {"MXFP4", DT_MXFP4}, [40] = {"NVFP4", DT_NVFP4},
};

static bool read_dtype(Cursor *c, FileTensor *t) {
    uint32_t type;
    if (!take_u32(c, &type, "张量类型")) return false;
    bool known = type < sizeof GGML_TYPES / sizeof *GGML_TYPES && GGML_TYPES[type].name;
    if (!known)
        return err_set(c->e, ERR_FORMAT, "%s: 张量 %.200s 的类型号 %u 未知", c->path, t->name,
                       type);
    t->dtype = GGML_TYPES[type].dtype;
    return true;
}

/* 形状：文件中 ne[0] 变化最快，倒过来成为行主序。 */
static bool read_dims(Cursor *c, FileTensor *t) {
    uint32_t n;
    if (!take_u32(c, &n, "张量维数")) return false;
    if (n > FILE_TENSOR_DIMS)
        return err_set(c->e, ERR_FORMAT, "%s: 张量 %.200s 有 %u 维，上限 %d 维", c->path, t->name,
                       n, FILE_TENSOR_DIMS);
    t->n_dims = (int)n;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t d;
        if (!take_u64(c, &d, "张量形状")) return false;
        if (d > INT64_MAX)
            return err_set(c->e, ERR_FORMAT, "%s: 张量 %.200s 的第 %u 维过大", c->path, t->name,
                           i);
        t->shape[n - 1 - i] = (int64_t)d;
    }
    return true;
}

/* 读张量说明；offset 为相对数据区的偏移，数据区的起点要等全部说明读完才知道。 */
static bool read_tensor(Cursor *c, FileTensor *t, uint64_t *offset) {
    t->path = c->path;
    t->name = take_name(c, "张量名");
    if (!t->name || !read_dims(c, t) || !read_dtype(c, t)) return false;
    size_t n, block = dtype_block_elems(t->dtype);
    int64_t row = t->n_dims ? t->shape[t->n_dims - 1] : 1;
    t->bytes = SIZE_MAX;
    if (tensorfile_count(t->shape, t->n_dims, &n) && row % (int64_t)block == 0)
        t->bytes = dtype_bytes(t->dtype, n);
    if (t->bytes == SIZE_MAX)
        return err_set(c->e, ERR_FORMAT,
                       "%s: 张量 %.200s 的形状过大，或行长 %" PRId64 " 不是 %s 块长 %zu 的倍数",
                       c->path, t->name, row, dtype_name(t->dtype), block);
    return take_u64(c, offset, "张量偏移");
}

static bool place_tensor(Cursor *c, FileTensor *t, uint64_t offset, uint64_t align) {
    size_t left = c->size - c->pos; /* c->pos 为数据区起点 */
    if (offset % align)
        return err_set(c->e, ERR_FORMAT, "%s: 张量 %.200s 的偏移 %" PRIu64 " 未按 %" PRIu64 " 对齐",
                       c->path, t->name, offset, align);
    if (offset > left || t->bytes > left - offset)
        return err_set(c->e, ERR_FORMAT,
                       "%s: 张量 %.200s（偏移 %" PRIu64 "，%zu 字节）超出数据区（%zu 字节），"
                       "文件可能被截断，请重新下载",
                       c->path, t->name, offset, t->bytes, left);
    t->data = c->data + c->pos + offset;
    return true;
}

static bool read_align(const Gguf *g, int64_t *align, Err *e) {
    *align = DEFAULT_ALIGN;
    if (!gguf_get_int(g, "general.alignment", false, 1, UINT32_MAX, align, e)) return false;
    if (*align & (*align - 1))
        return err_set(e, ERR_FORMAT, "%s: general.alignment 为 %" PRId64 "，应为 2 的幂",
                       g->file.path, *align);
    return true;
}

static bool read_tensors(Cursor *c, Gguf *g, uint64_t n) {
    TensorFile *f = &g->file;
    int64_t align;
    if (!read_align(g, &align, c->e)) return false;
    f->tensors = ARENA_ARRAY(c->arena, FileTensor, n, c->e);
    uint64_t *offsets = f->tensors ? ARENA_ARRAY(c->arena, uint64_t, n, c->e) : NULL;
    if (!offsets) return false;
    for (uint64_t i = 0; i < n; i++)
        if (!read_tensor(c, &f->tensors[i], &offsets[i])) return false;
    size_t pad = (size_t)(-(uint64_t)c->pos & (uint64_t)(align - 1));
    c->pos = pad > c->size - c->pos ? c->size : c->pos + pad; /* 没有数据时末尾可以不补齐 */
    for (uint64_t i = 0; i < n; i++)
        if (!place_tensor(c, &f->tensors[i], offsets[i], (uint64_t)align)) return false;
    f->n_tensors = (size_t)n;
    return tensorfile_finish(f, c->data, c->size, false, c->e);
}

static bool check_version(const Cursor *c, uint32_t version) {
    if (version == 2 || version == 3) return true;
    if (version && (version & 0xFFFF) == 0)
        return err_set(c->e, ERR_UNSUPPORTED, "%s: 大端的 GGUF 文件尚不支持，请用小端版本",
                       c->path);
    return err_set(c->e, ERR_UNSUPPORTED, "%s: GGUF 版本 %u 尚不支持（支持 2 与 3）", c->path,
                   version);
}

bool gguf_parse(Gguf *g, const char *name, const uint8_t *data, size_t size, Err *e) {
    *g = (Gguf){0};
    g->file.path = arena_strdup(&g->file.arena, name, e);
    if (!g->file.path) return false;
    if (size < 4 || memcmp(data, "GGUF", 4) != 0)
        return err_set(e, ERR_FORMAT, "%s: 不是 GGUF 文件（开头不是 \"GGUF\"）", name);
    Cursor c = {g->file.path, data, size, 4, &g->file.arena, e};
    uint32_t version;
    uint64_t n_tensors, n_values;
    if (!take_u32(&c, &version, "版本") || !check_version(&c, version) ||
        !take_u64(&c, &n_tensors, "张量数") || !take_u64(&c, &n_values, "元数据数"))
        return false;
    size_t left = size - c.pos;
    if (n_values > VALUES_LIMIT || n_values > left / VALUE_MIN_BYTES ||
        n_tensors > TENSORS_LIMIT || n_tensors > left / TENSOR_MIN_BYTES)
        return err_set(e, ERR_FORMAT,
                       "%s: 文件头声称有 %" PRIu64 " 项元数据、%" PRIu64
                       " 个张量，超过上限或 %zu 字节的文件放不下",
                       name, n_values, n_tensors, size);
    return read_values(&c, g, n_values) && read_tensors(&c, g, n_tensors);
}

bool gguf_open(Gguf *g, const char *path, Err *e) {
    FileMap m;
    *g = (Gguf){0};
    if (!file_map(&m, path, e)) return false;
    bool ok = gguf_parse(g, path, m.data, m.size, e);
    g->file.map = m;
    if (!ok) gguf_close(g);
    return ok;
}

void gguf_close(Gguf *g) {
    tensorfile_close(&g->file);
    *g = (Gguf){0};
}

const GgufValue *gguf_find(const Gguf *g, const char *key) {
    GgufValue want = {.key = key};
    if (!g->n_values) return NULL;
    return bsearch(&want, g->values, g->n_values, sizeof want, by_key);
}

static bool wrong_type(const Gguf *g, const char *key, const char *want, Err *e) {
    return err_set(e, ERR_FORMAT, "%s: 元数据 %s 应为%s", g->file.path, key, want);
}

static bool missing(const Gguf *g, const char *key, bool required, Err *e) {
    return !required || err_set(e, ERR_FORMAT, "%s: 缺少元数据 %s", g->file.path, key);
}

bool gguf_get_int(const Gguf *g, const char *key, bool required, int64_t lo, int64_t hi,
                  int64_t *out, Err *e) {
    const GgufValue *v = gguf_find(g, key);
    if (!v) return missing(g, key, required, e);
    if (is_real(v->type) || !type_bytes(v->type) || v->type == GGUF_BOOL)
        return wrong_type(g, key, "整数", e);
    if (v->i < lo || v->i > hi)
        return err_set(e, ERR_FORMAT,
                       "%s: 元数据 %s 为 %" PRId64 "，超出范围 [%" PRId64 ", %" PRId64 "]",
                       g->file.path, key, v->i, lo, hi);
    *out = v->i;
    return true;
}

bool gguf_get_num(const Gguf *g, const char *key, bool required, double *out, Err *e) {
    const GgufValue *v = gguf_find(g, key);
    if (!v) return missing(g, key, required, e);
    if (!type_bytes(v->type) || v->type == GGUF_BOOL || !isfinite(v->f))
        return wrong_type(g, key, "有限的数", e);
    *out = v->f;
    return true;
}

bool gguf_get_bool(const Gguf *g, const char *key, bool *out, Err *e) {
    const GgufValue *v = gguf_find(g, key);
    if (!v) return true;
    if (v->type != GGUF_BOOL) return wrong_type(g, key, "布尔值", e);
    *out = v->i != 0;
    return true;
}

static const uint8_t *item(const GgufValue *v, size_t i) {
    CHECK(v->items && i < v->n);
    return (const uint8_t *)v->items + i * (size_t)type_bytes(v->item_type);
}

double gguf_item_num(const GgufValue *v, size_t i) {
    return load_num(v->item_type, item(v, i));
}

int64_t gguf_item_int(const GgufValue *v, size_t i) {
    if (!is_real(v->item_type)) return load_int(v->item_type, item(v, i));
    double f = gguf_item_num(v, i);
    if (isnan(f)) return 0;
    return f >= 0x1p63 ? INT64_MAX : f <= -0x1p63 ? INT64_MIN : (int64_t)f;
}
