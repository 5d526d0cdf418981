/* kvstore — 分配、清点与逐元素的读 */
#include "compute/kvstore.h"

#include <string.h>

enum { MAX_WIDTH = 1 << 16 /* 离群值的通道号是 u16 */ };

static bool check_format(const KvFormat *f, int64_t heads, int64_t dim, int64_t capacity, Err *e) {
    if (heads < 1 || dim < 1 || heads > MAX_WIDTH / dim || capacity < 1)
        return err_set(e, ERR_UNSUPPORTED, "键值缓存的形状 %lld×%lld×%lld 非法（键值总宽至多 %d）",
                       (long long)capacity, (long long)heads, (long long)dim, MAX_WIDTH);
    if (f->form == KV_TILES ? f->dtype != DT_BF16 : f->dtype != DT_F32 && f->dtype != DT_F16)
        return err_set(e, ERR_UNSUPPORTED, "键值缓存的类型 %s 不支持", dtype_name(f->dtype));
    if (f->form == KV_DENSE || f->form == KV_TILES) return true;
    int max_bits = f->form == KV_LUT ? KV_MAX_LUT_BITS : 8;
    if (f->bits < 1 || f->bits > max_bits)
        return err_set(e, ERR_CONFIG, "键值缓存的位宽 %d 须在 1 到 %d 之间", f->bits, max_bits);
    if (f->form == KV_AFFINE && f->group < 1)
        return err_set(e, ERR_CONFIG, "键值缓存的组宽 %lld 须为正", (long long)f->group);
    if (f->form == KV_LUT) {
        CHECK(f->lut && (!f->per_channel || (f->lower && f->upper)));
        if (f->sparse && !f->per_channel && !(f->outliers > 0 && f->outliers < 1))
            return err_set(e, ERR_CONFIG, "离群比例 %g 须在 0 与 1 之间", f->outliers);
    }
    return true;
}

/* n 个 token 的参数个数。 */
static int64_t n_params(const KvStore *s, int64_t n) {
    if (s->f.form == KV_DENSE || s->f.form == KV_TILES) return 0;
    if (s->f.form == KV_LUT) return s->f.per_channel ? 0 : 2 * n;
    if (!s->f.per_channel) return 2 * n * s->heads * s->n_groups;
    return (n + s->f.group - 1) / s->f.group * 2 * s->heads * s->vecs * KV_LANES;
}

bool kvstore_new(KvStore *s, Arena *a, const KvFormat *f, int64_t heads, int64_t dim,
                 int64_t capacity, Err *e) {
    *s = (KvStore){.f = *f, .heads = heads, .dim = dim, .capacity = capacity,
                   .memory = a->allocator ? a->allocator : allocator_default()};
    if (!check_format(f, heads, dim, capacity, e)) return false;
    s->vecs = (dim + KV_LANES - 1) / KV_LANES;
    size_t item = kvstore_item(s), width = (size_t)(heads * dim);
    if (f->form == KV_DENSE) {
        s->data = arena_array(a, (size_t)capacity, width * item, e);
        return s->data != NULL;
    }
    if (f->form == KV_TILES) {
        s->data = arena_array(a, (size_t)kvstore_tile_block(s, heads, 0), item, e);
        return s->data != NULL;
    }
    if (f->form == KV_AFFINE && !f->per_channel) {
        if (s->f.group > dim) s->f.group = dim;
        s->n_groups = (dim + s->f.group - 1) / s->f.group;
    }
    if (s->f.sink > capacity) s->f.sink = capacity;
    s->data = arena_array(a, (size_t)capacity, (size_t)kvstore_code_words(s) * 2, e);
    s->params = arena_array(a, (size_t)n_params(s, capacity), item, e);
    s->sink_rows = arena_array(a, (size_t)s->f.sink, width * item, e);
    if (f->sparse) s->row_end = ARENA_ARRAY(a, uint32_t, capacity, e);
    return s->data && s->params && s->sink_rows && (!f->sparse || s->row_end);
}

void kvstore_close(KvStore *s) {
    Allocator *a = s->memory;
    if (s->columns) a->release(a, s->columns, (size_t)s->cap_outliers * sizeof *s->columns);
    if (s->values) a->release(a, s->values, (size_t)s->cap_outliers * kvstore_item(s));
    *s = (KvStore){0};
}

KvStore kvstore_view(float *rows, int64_t heads, int64_t dim, int64_t first, int64_t n) {
    return (KvStore){.f = {.form = KV_DENSE, .dtype = DT_F32}, .heads = heads, .dim = dim,
                     .vecs = (dim + KV_LANES - 1) / KV_LANES, .capacity = n, .first = first,
                     .length = n, .data = rows};
}

/* 已有的离群值个数。 */
static int64_t n_outliers(const KvStore *s, int64_t n) {
    return s->row_end && n > 0 ? s->row_end[n - 1] : 0;
}

bool kvstore_reserve(KvStore *s, int64_t n) {
    if (n <= s->cap_outliers) return true;
    Allocator *a = s->memory;
    int64_t cap = 2 * s->cap_outliers > n ? 2 * s->cap_outliers : n, old = s->cap_outliers;
    size_t item = kvstore_item(s);
    uint16_t *columns = a->alloc(a, (size_t)cap * sizeof *columns);
    void *values = columns ? a->alloc(a, (size_t)cap * item) : NULL;
    if (!values) {
        if (columns) a->release(a, columns, (size_t)cap * sizeof *columns);
        return false;
    }
    if (old) {
        memcpy(columns, s->columns, (size_t)old * sizeof *columns);
        memcpy(values, s->values, (size_t)old * item);
        a->release(a, s->columns, (size_t)old * sizeof *columns);
        a->release(a, s->values, (size_t)old * item);
    }
    s->columns = columns;
    s->values = values;
    s->cap_outliers = cap;
    return true;
}

KvBytes kvstore_bytes(const KvStore *s, int64_t n) {
    size_t item = kvstore_item(s), row = (size_t)(s->heads * s->dim) * item;
    if (s->f.form == KV_DENSE || s->f.form == KV_TILES) return (KvBytes){.dense = (size_t)n * row};
    int64_t sink = s->f.sink < n ? s->f.sink : n;
    KvBytes b = {.codes = (size_t)(n * kvstore_code_words(s)) * 2,
                 .params = (size_t)n_params(s, n) * item, .dense = (size_t)sink * row};
    CHECK(!s->f.sparse || n == s->length);
    if (s->f.sparse)
        b.outliers = (size_t)n * sizeof *s->row_end +
                     (size_t)(n ? s->n_outliers : 0) * (sizeof *s->columns + item);
    return b;
}

/* dtype 数组的第 i 个。 */
static float item_at(const KvStore *s, const void *array, int64_t i) {
    return s->f.dtype == DT_F16 ? f16_to_f32(((const uint16_t *)array)[i])
                                : ((const float *)array)[i];
}

static int code_at(const KvStore *s, int64_t pos, int64_t head, int64_t d) {
    const uint16_t *w = (const uint16_t *)s->data + pos * kvstore_code_words(s) +
                        (head * s->vecs + d / KV_LANES) * s->f.bits;
    int code = 0;
    for (int p = 0; p < s->f.bits; p++) code |= (w[p] >> d % KV_LANES & 1) << p;
    return code;
}

float kvstore_at(const KvStore *s, int64_t pos, int64_t head, int64_t d) {
    CHECK(pos >= s->first && pos < s->first + s->length && head >= 0 && head < s->heads);
    CHECK(d >= 0 && d < s->dim);
    int64_t col = head * s->dim + d;
    if (s->f.form == KV_DENSE) return item_at(s, s->data, (pos - s->first) * s->heads * s->dim + col);
    if (s->f.form == KV_TILES)
        return bf16_to_f32(((const uint16_t *)s->data)[kvstore_tile_index(s, head, pos, d)]);
    if (pos < s->f.sink) return item_at(s, s->sink_rows, pos * s->heads * s->dim + col);
    for (int64_t i = n_outliers(s, pos); i < n_outliers(s, pos + 1); i++)
        if (s->columns[i] == col) return item_at(s, s->values, i);
    float a, b; /* x = b + a·v */
    int code = code_at(s, pos, head, d);
    if (s->f.form == KV_AFFINE && s->f.per_channel) {
        int64_t all = s->heads * s->vecs * KV_LANES, at = pos / s->f.group * 2 * all;
        at += head * s->vecs * KV_LANES + d;
        a = item_at(s, s->params, at);
        b = item_at(s, s->params, at + all);
    } else if (s->f.form == KV_LUT && s->f.per_channel) {
        a = (s->f.upper[col] - s->f.lower[col]) / 2;
        b = (s->f.upper[col] + s->f.lower[col]) / 2;
    } else {
        int64_t at = s->f.form == KV_LUT ? pos
                                         : (pos * s->heads + head) * s->n_groups + d / s->f.group;
        a = item_at(s, s->params, 2 * at);
        b = item_at(s, s->params, 2 * at + 1);
    }
    const float *values = s->f.values ? s->f.values : s->f.lut;
    float x = b + a * (s->f.form == KV_LUT ? values[code] : (float)code);
    return s->f.bias ? x + s->f.bias[col] : x;
}
