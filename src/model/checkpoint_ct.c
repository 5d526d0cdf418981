/* checkpoint_ct — compressed-tensors（llm-compressor、vLLM）
 * pack-quantized: weight_packed 每行从低位起连着排 code = q + 2^(位−1)（旧版 3 位等不跨字）；weight_zero_point 沿输出排
 * （旧版是不装包的 i8）。int-quantized: weight 是 i8（不足 8 位的亦然）。float-quantized: weight 是 FP8。
 * weight_scale 是 (rows, 组)、(rows, 1)、(rows)、(1) 或标量；strategy=block 时一块一个。 */
#include <string.h>

#include "model/checkpoint.h"

static const DType CT_WEIGHTS[] = {DT_I8, DT_F8_E4M3, DT_F8_E5M2, DT_NONE};

/* 与存放的样子相符的那一组；两组都合而激活不同就分不清了。 */
static const CtScheme *find_scheme(const PackedSource *s, bool packed, DType type, Err *e) {
    const CtScheme *found = NULL;
    const FileTensor *t = packed ? packed_find(s, ".weight_packed") : NULL;
    for (int i = 0; i < s->c->n_schemes; i++) {
        const CtScheme *x = &s->c->scheme[i];
        if (x->is_float != (!packed && type != DT_I8)) continue;
        int64_t dense = (s->cols * x->bits + 31) / 32, loose = (s->cols - 1) / (32 / x->bits) + 1;
        if (packed && t->n_dims == 2 && t->shape[1] != dense && t->shape[1] != loose) continue;
        if (found && (found->act.kind != x->act.kind || found->bits != x->bits)) {
            err_set(e, ERR_UNSUPPORTED, "%s: 分不清 %s 属于 config_groups 的哪一组", s->w->path, s->module);
            return NULL;
        }
        if (!found || !found->group_size) found = x;
    }
    if (!found)
        err_set(e, ERR_FORMAT, "%s: %s 的存放形式（%s）与 config_groups 的哪一组都不符", s->w->path, s->module,
                packed ? "装包的整数" : dtype_name(type));
    return found;
}

/* 缩放的张量：各种形状都认。block 时 *block 为真，(块行, 块列)。 */
static const FileTensor *find_scale(const PackedSource *s, const CtScheme *x, int64_t *n_groups, Err *e) {
    const FileTensor *t = packed_tensor(s, ".weight_scale", PACKED_REALS, 0, 0, e);
    if (!t) return NULL;
    size_t n;
    CHECK(tensorfile_count(t->shape, t->n_dims, &n));
    if (x->block[0]) {
        int64_t br = (s->rows - 1) / x->block[0] + 1, bc = (s->cols - 1) / x->block[1] + 1;
        *n_groups = bc;
        if (t->n_dims == 2 && t->shape[0] == br && t->shape[1] == bc) return t;
    } else {
        *n_groups = t->n_dims == 2 && t->shape[0] == s->rows ? t->shape[1] : 1;
        if (n == 1 || n == (size_t)s->rows || (t->n_dims == 2 && t->shape[0] == s->rows)) {
            if (*n_groups >= 1) return t;
        }
    }
    err_set(e, ERR_FORMAT, "%s: 张量 '%s.weight_scale' 有 %zu 个元素，与 %lld×%lld 的权重%s不符", t->path, s->module, n,
            (long long)s->rows, (long long)s->cols, x->block[0] ? "及其分块" : "");
    return NULL;
}

/* 缩放展开成 (rows, 组)。 */
static bool read_scale(const PackedSource *s, const CtScheme *x, const FileTensor *t, PackedModule *p, Arena *a,
                       Err *e) {
    size_t n;
    CHECK(tensorfile_count(t->shape, t->n_dims, &n));
    float *raw = packed_floats(t, n, a, e);
    p->scale = raw ? ARENA_ARRAY(a, float, s->rows * p->n_groups, e) : NULL;
    if (!p->scale) return false;
    for (int64_t r = 0; r < s->rows; r++)
        for (int64_t g = 0; g < p->n_groups; g++) {
            int64_t row = x->block[0] ? r / x->block[0] : n == 1 ? 0 : r;
            p->scale[r * p->n_groups + g] = raw[row * p->n_groups + g];
        }
    return true;
}

/* 各行的码流；loose：一个字里放整数个，不跨字。 */
static uint32_t stream_at(const FileTensor *t, int64_t base, int64_t step, int64_t i, int bits, bool loose) {
    int64_t per = 32 / bits, bit = loose ? i / per * 32 + i % per * bits : i * bits;
    int shift = (int)(bit % 32);
    uint64_t word = packed_word(t, base + bit / 32 * step);
    if (shift + bits > 32) word |= (uint64_t)packed_word(t, base + (bit / 32 + 1) * step) << 32;
    return (uint32_t)(word >> shift) & ((1u << bits) - 1);
}

/* 零点：装包的 i32（沿输出），或直接的 i8。没有即对称。 */
static bool read_zeros(const PackedSource *s, const CtScheme *x, PackedModule *p, Arena *a, Err *e) {
    static const DType TYPES[] = {DT_I32, DT_I8, DT_NONE};
    const FileTensor *t;
    if (!packed_optional(s, ".weight_zero_point", TYPES, 0, 0, &t, e)) return false;
    if (!t) {
        if (x->symmetric) return true;
        return err_set(e, ERR_MISSING, "%s: 缺少张量 '%s.weight_zero_point'（config_groups 说是非对称的）", s->w->path,
                       s->module);
    }
    int64_t words = (s->rows * x->bits + 31) / 32, loose = (s->rows - 1) / (32 / x->bits) + 1, ng = p->n_groups;
    int64_t want = t->dtype == DT_I8 ? s->rows : t->shape[0] == words ? words : loose;
    size_t n;
    CHECK(tensorfile_count(t->shape, t->n_dims, &n));
    bool one = t->dtype == DT_I8 && n == 1, line = t->n_dims == 1 && ng == 1;
    if (!one && ((t->n_dims != 2 && !line) || t->shape[0] != want || (!line && t->shape[1] != ng)))
        return err_set(e, ERR_FORMAT, "%s: 张量 '%s.weight_zero_point' 的形状与 %lld 行、%lld 组不符", t->path, s->module,
                       (long long)s->rows, (long long)ng);
    p->spec.zero = ZERO_INT;
    if (!a) return true;
    if (!(p->zero = ARENA_ARRAY(a, float, s->rows * ng, e))) return false;
    int half = 1 << (x->bits - 1);
    for (int64_t r = 0; r < s->rows; r++)
        for (int64_t g = 0; g < ng; g++) {
            int z = t->dtype == DT_I8 ? ((const int8_t *)t->data)[one ? 0 : r * ng + g] + half
                                      : (int)stream_at(t, g, ng, r, x->bits, want != words);
            if (z < 0 || z >= 2 * half)
                return err_set(e, ERR_FORMAT, "%s: '%s.weight_zero_point' 第 %lld 行的零点超出 %d 位", t->path, s->module,
                               (long long)r, x->bits);
            p->zero[r * ng + g] = (float)z;
        }
    return true;
}

static bool read_codes(const PackedSource *s, const FileTensor *t, PackedModule *p, Arena *a, Err *e) {
    int64_t n = s->rows * s->cols, bits = p->spec.bits;
    if (!(p->code = ARENA_ARRAY(a, uint8_t, n, e))) return false;
    if (t->dtype == DT_I32) {
        int64_t words = t->shape[1];
        bool loose = words != (s->cols * bits + 31) / 32;
        for (int64_t i = 0; i < n; i++)
            p->code[i] = (uint8_t)stream_at(t, i / s->cols * words, 1, i % s->cols, (int)bits, loose);
        return true;
    }
    memcpy(p->code, t->data, (size_t)n);
    for (int64_t i = 0; t->dtype == DT_I8 && i < n; i++) { /* 有号的加 2^(位−1) */
        int code = ((const int8_t *)t->data)[i] + (1 << (bits - 1));
        if (code < 0 || code >= 1 << bits)
            return err_set(e, ERR_FORMAT, "%s: 张量 '%s.weight' 的第 %lld 个元素超出 %d 位", t->path, s->module, (long long)i,
                           (int)bits);
        p->code[i] = (uint8_t)code;
    }
    for (int64_t i = 0; t->dtype != DT_I8 && i < n; i++) {
        float v = f8_to_f32(p->code[i], t->dtype == DT_F8_E5M2);
        if (!(v - v == 0))
            return err_set(e, ERR_NUMERIC, "%s: 张量 '%s.weight' 的第 %lld 个元素不是有限的数，文件已损坏", t->path, s->module,
                           (long long)i);
    }
    return true;
}

/* 静态的激活缩放。 */
static bool read_act(const PackedSource *s, const CtScheme *x, PackedModule *p, Arena *a, Err *e) {
    static const DType ZEROS[] = {DT_I8, DT_F8_E4M3, DT_NONE}; /* 对称的，恒为 0 */
    const FileTensor *t, *z;
    if (!packed_optional(s, ".input_scale", PACKED_REALS, 0, 0, &t, e) ||
        !packed_optional(s, ".input_zero_point", ZEROS, 0, 0, &z, e))
        return false;
    p->act = x->act;
    if (x->act.kind != ACT_STATIC || !a) return true;
    if (!t || t->bytes != dtype_block_bytes(t->dtype))
        return err_set(e, ERR_FORMAT, "%s: '%s.input_scale' 应是一个数（静态的激活量化）", s->w->path, s->module);
    const float *v = packed_floats(t, 1, a, e);
    if (!v) return false;
    p->act.scale = v[0];
    return v[0] > 0 || err_set(e, ERR_FORMAT, "%s: '%s.input_scale' 不是正数", t->path, s->module);
}

/* weight_shape 与 weight_g_idx。 */
static bool read_extras(const PackedSource *s, PackedModule *p, Arena *a, Err *e) {
    static const DType I64[] = {DT_I64, DT_I32, DT_NONE};
    const FileTensor *shape, *g;
    if (!packed_optional(s, ".weight_shape", I64, 2, 0, &shape, e) ||
        !packed_optional(s, ".weight_g_idx", PACKED_INT32, s->cols, 0, &g, e))
        return false;
    int64_t step = shape && shape->dtype == DT_I64 ? 2 : 1;
    if (shape && (packed_word(shape, 0) != (uint64_t)s->rows || packed_word(shape, step) != (uint64_t)s->cols))
        return err_set(e, ERR_FORMAT, "%s: '%s.weight_shape' 是 [%u, %u]，按配置应为 [%lld, %lld]", shape->path, s->module,
                       packed_word(shape, 0), packed_word(shape, step), (long long)s->rows, (long long)s->cols);
    if (!g || !a) return true;
    if (!(p->group = ARENA_ARRAY(a, int32_t, s->cols, e))) return false;
    bool unused = true; /* llm-compressor 没有 act-order 时可能写全 −1 */
    for (int64_t c = 0; c < s->cols; c++) unused &= (p->group[c] = (int32_t)packed_word(g, c)) == -1;
    if (unused) p->group = NULL;
    return true;
}

bool unpack_compressed(const PackedSource *s, PackedModule *p, Arena *a, Err *e) {
    bool packed = packed_find(s, ".weight_packed") != NULL;
    const FileTensor *w = packed ? packed_tensor(s, ".weight_packed", PACKED_INT32, 0, 0, e)
                                 : packed_tensor(s, ".weight", CT_WEIGHTS, s->rows, s->cols, e);
    const CtScheme *x = w ? find_scheme(s, packed, w->dtype, e) : NULL;
    if (!x) return false;
    if (packed && (w->n_dims != 2 || w->shape[0] != s->rows))
        return err_set(e, ERR_FORMAT, "%s: 张量 '%s.weight_packed' 应是 2 维、%lld 行", w->path, s->module, (long long)s->rows);
    int64_t ng, size = x->block[0] ? x->block[1] : x->group_size ? x->group_size : s->cols;
    const FileTensor *sc = find_scale(s, x, &ng, e);
    if (!sc) return false;
    if (ng == 1 && !x->block[0]) size = s->cols;
    p->spec = (QSpec){.bits = x->bits, .group_size = size, .zero = ZERO_SYM, .scale_dtype = sc->dtype};
    if (w->dtype == DT_F8_E4M3) p->spec.codes = CODE_F8_E4M3;
    if (w->dtype == DT_F8_E5M2) p->spec.codes = CODE_F8_E5M2;
    if (!packed_groups(s, p, size, ng, e) || !read_extras(s, p, a, e) || !read_act(s, x, p, a, e)) return false;
    if (!x->is_float && !read_zeros(s, x, p, a, e)) return false;
    return !a || (read_scale(s, x, sc, p, a, e) && read_codes(s, w, p, a, e));
}
