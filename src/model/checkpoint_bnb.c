/* checkpoint_bnb — bitsandbytes 的 4 位（NF4、FP4，含 double quant）与 LLM.int8，以及 HQQ
 * 两者的组都在摊平的权重上数，可以跨行：组宽取列数与块长的最大公约数，跨行的组的缩放因而重复几份。
 * bitsandbytes 4 位: weight 一字节两个码，先高半；absmax 每块一个（嵌套时是 u8 的码），quant_map 是 16 项的表，
 * quant_state.bitsandbytes__* 是一段 JSON。LLM.int8: weight 是 i8，值 = 码·SCB/127。
 * HQQ（axis=1）: W_q 是 (组数, 组宽) 的码，沿第 0 维分成几段叠在一个字里，前段在高位；值 = (码 − zero)·scale。 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/checkpoint.h"

static int64_t gcd(int64_t a, int64_t b) {
    return b ? gcd(b, a % b) : a;
}

static const DType ANY[] = {DT_U8, DT_I8, DT_I32, DT_BF16, DT_F16, DT_F32, DT_NONE};
static const DType F32[] = {DT_F32, DT_NONE};

/* ---- bitsandbytes ---- */

typedef struct State {
    int64_t block, nested_block;
    double offset;
} State;

/* quant_state 的 JSON。 */
static bool read_state(const PackedSource *s, bool nested, State *st, Err *e) {
    const char *suffix = packed_find(s, ".weight.quant_state.bitsandbytes__nf4")
                             ? ".weight.quant_state.bitsandbytes__nf4" : ".weight.quant_state.bitsandbytes__fp4";
    const FileTensor *t = packed_tensor(s, suffix, PACKED_U8, 0, 0, e);
    if (!t) return false;
    char name[256];
    snprintf(name, sizeof name, "%s%s", s->module, suffix);
    json_t *o = json_parse(name, t->data, t->bytes, e);
    const json_t *shape = json_object_get(o, "shape");
    bool ok = o && json_get_int(o, name, "blocksize", 1, INT32_MAX, &st->block, e) &&
              (!nested || (json_get_int(o, name, "nested_blocksize", 1, INT32_MAX, &st->nested_block, e) &&
                           json_get_num_or(o, name, "nested_offset", 0, &st->offset, e)));
    if (ok && shape && (json_integer_value(json_array_get(shape, 0)) != s->rows ||
                        json_integer_value(json_array_get(shape, 1)) != s->cols))
        ok = err_set(e, ERR_FORMAT, "%s: shape 与按配置应有的 %lld×%lld 不符", name, (long long)s->rows,
                     (long long)s->cols);
    if (ok && !isfinite((float)st->offset)) ok = err_set(e, ERR_FORMAT, "%s: nested_offset 不是有限的数", name);
    json_decref(o);
    return ok;
}

/* absmax（块 → 组）；嵌套时是码、表与外层。 */
static bool read_absmax(const PackedSource *s, const State *st, const FileTensor *t, PackedModule *p, Arena *a,
                        Err *e) {
    int64_t ng = p->n_groups, size = p->spec.group_size, n = s->rows * ng;
    int64_t blocks = (s->rows * s->cols - 1) / st->block + 1;
    bool nested = t->dtype == DT_U8;
    float *raw = nested ? NULL : packed_floats(t, (size_t)blocks, a, e);
    if (!nested && (!raw || !(p->scale = ARENA_ARRAY(a, float, n, e)))) return false;
    if (nested && !(p->scale_code = ARENA_ARRAY(a, uint8_t, n, e))) return false;
    for (int64_t i = 0; i < n; i++) {
        int64_t at = (i / ng * s->cols + i % ng * size) / st->block;
        if (nested)
            p->scale_code[i] = ((const uint8_t *)t->data)[at];
        else
            p->scale[i] = raw[at];
    }
    return true;
}

static bool read_nested(const PackedSource *s, const State *st, PackedModule *p, Arena *a, Err *e) {
    int64_t blocks = (s->rows * s->cols - 1) / st->block + 1, outer = (blocks - 1) / st->nested_block + 1;
    const FileTensor *table = packed_tensor(s, ".weight.nested_quant_map", F32, 256, 0, e), *o;
    if (!table || !(o = packed_tensor(s, ".weight.nested_absmax", F32, outer, 0, e))) return false;
    p->nested = (NestedScale){.per = st->nested_block * (st->block / p->spec.group_size), .offset = (float)st->offset};
    return !a || ((p->nested_table = packed_floats(table, 256, a, e)) &&
                  (p->outer = packed_floats(o, (size_t)outer, a, e)));
}

static bool unpack_4bit(const PackedSource *s, PackedModule *p, Arena *a, Err *e) {
    static const DType ABSMAX[] = {DT_F32, DT_U8, DT_NONE};
    int64_t n = s->rows * s->cols;
    State st = {0};
    const FileTensor *m = packed_tensor(s, ".weight.absmax", ABSMAX, 0, 0, e), *w, *map;
    if (!m || !read_state(s, m->dtype == DT_U8, &st, e) || !(w = packed_tensor(s, ".weight", ANY, 0, 0, e)) ||
        !(map = packed_tensor(s, ".weight.quant_map", F32, 16, 0, e)))
        return false;
    int64_t blocks = (n - 1) / st.block + 1, size = gcd(s->cols, st.block);
    if (w->bytes != (size_t)(n + 1) / 2 || m->bytes != (size_t)blocks * dtype_block_bytes(m->dtype))
        return err_set(e, ERR_FORMAT, "%s: '%s' 的 weight 有 %zu 字节、absmax 有 %zu 字节，与 %lld×%lld、块长 %lld 不符", w->path,
                       s->module, w->bytes, m->bytes, (long long)s->rows, (long long)s->cols, (long long)st.block);
    p->spec = (QSpec){.bits = 4, .group_size = size, .zero = ZERO_SYM, .scale_dtype = DT_F32, .codes = CODE_TABLE};
    if (!packed_groups(s, p, size, s->cols / size, e)) return false;
    if (m->dtype == DT_U8 && !read_nested(s, &st, p, a, e)) return false;
    if (!a) return true;
    const uint8_t *b = w->data;
    if (!(p->table = packed_floats(map, 16, a, e)) || !(p->code = ARENA_ARRAY(a, uint8_t, n, e))) return false;
    for (int64_t i = 0; i < n; i++) p->code[i] = b[i / 2] >> (i % 2 ? 0 : 4) & 15;
    return read_absmax(s, &st, m, p, a, e);
}

static bool unpack_int8(const PackedSource *s, PackedModule *p, Arena *a, Err *e) {
    const FileTensor *w = packed_tensor(s, ".weight", PACKED_I8, s->rows, s->cols, e), *scb, *format;
    if (!w || !(scb = packed_tensor(s, ".SCB", F32, s->rows, 0, e)) ||
        !packed_optional(s, ".weight_format", PACKED_U8, 0, 0, &format, e))
        return false;
    if (format && format->bytes && ((const uint8_t *)format->data)[0] != 0)
        return err_set(e, ERR_UNSUPPORTED, "%s: '%s.weight_format' 不是 row（0），这种排法不支持", w->path, s->module);
    p->spec = (QSpec){.bits = 8, .group_size = s->cols, .zero = ZERO_SYM, .scale_dtype = DT_F32};
    p->act = (ActQuant){.kind = ACT_TENSOR, .bits = 8, .form = ACT_MIXED, .threshold = s->c->threshold};
    if (!packed_groups(s, p, s->cols, 1, e)) return false;
    if (!a) return true;
    int64_t n = s->rows * s->cols;
    if (!(p->code = ARENA_ARRAY(a, uint8_t, n, e)) || !(p->scale = packed_floats(scb, (size_t)s->rows, a, e)))
        return false;
    for (int64_t i = 0; i < n; i++) p->code[i] = ((const uint8_t *)w->data)[i] ^ 128;
    for (int64_t r = 0; r < s->rows; r++) p->scale[r] *= 1.0f / 127;
    return true;
}

bool unpack_bitsandbytes(const PackedSource *s, PackedModule *p, Arena *a, Err *e) {
    return packed_find(s, ".weight.absmax") ? unpack_4bit(s, p, a, e) : unpack_int8(s, p, a, e);
}

/* ---- HQQ ---- */

/* 一个整数的标量（i32、i64、u8）；没有为 def。 */
static bool scalar(const PackedSource *s, const char *suffix, int64_t def, int64_t *out, Err *e) {
    static const DType TYPES[] = {DT_I32, DT_I64, DT_U8, DT_NONE};
    const FileTensor *t;
    *out = def;
    if (!packed_optional(s, suffix, TYPES, 0, 0, &t, e)) return false;
    if (!t) return true;
    if (t->bytes != dtype_block_bytes(t->dtype))
        return err_set(e, ERR_FORMAT, "%s: 张量 '%s%s' 应是一个数", t->path, s->module, suffix);
    *out = t->dtype == DT_U8 ? ((const uint8_t *)t->data)[0] : (int32_t)packed_word(t, 0);
    return true;
}

/* 与内容无关的说明，只记为用到。 */
static bool skip_notes(const PackedSource *s, Err *e) {
    static const char *const NOTES[] = {".packing", ".unpack_view_dtype", ".view_as_float", ".compute_dtype",
                                        ".offload_meta", ".encoded_state_dict", ".stores_quant_config",
                                        ".channel_wise", ".optimize", ".round_zero", ".shape"};
    static const DType TYPES[] = {DT_U8, DT_I32, DT_I64, DT_BOOL, DT_F32, DT_NONE};
    const FileTensor *t;
    for (size_t i = 0; i < sizeof NOTES / sizeof *NOTES; i++)
        if (!packed_optional(s, NOTES[i], TYPES, 0, 0, &t, e)) return false;
    return true;
}

/* 各种位宽一个字里叠几段、字的字节数（3 位：十段叠在 32 位里）。 */
typedef struct Stack {
    int per, bytes;
} Stack;
static Stack stack_of(int64_t bits) {
    return bits == 3 ? (Stack){10, 4} : (Stack){(int)(8 / bits), 1};
}

/* 第 i 个码（摊平）；steps 是一段的行数。 */
static uint8_t hqq_code(const FileTensor *t, Stack k, int bits, int64_t group, int64_t steps, int64_t i) {
    int64_t row = i / group, part = row / steps, at = row % steps * group + i % group;
    uint32_t word = k.bytes == 4 ? packed_word(t, at) : ((const uint8_t *)t->data)[at];
    return (uint8_t)(word >> (bits * (k.per - 1 - part)) & ((1u << bits) - 1));
}

static bool check_hqq(const PackedSource *s, int64_t bits, int64_t axis, int64_t nested, Err *e) {
    const char *why = (bits != 2 && bits != 3 && bits != 4 && bits != 8) ? "nbits 不是 2、3、4、8"
                      : axis != 1 ? "axis=0（组沿输出方向）；请以 axis=1 重新量化"
                      : nested    ? "缩放或零点本身也量化了（quant_scale、quant_zero）"
                                  : NULL;
    return !why || err_set(e, ERR_UNSUPPORTED, "%s: %s: %s", s->w->path, s->module, why);
}

bool unpack_hqq(const PackedSource *s, PackedModule *p, Arena *a, Err *e) {
    int64_t bits, group, axis, quant_scale, quant_zero, n = s->rows * s->cols;
    if (!scalar(s, ".nbits", 4, &bits, e) || !scalar(s, ".group_size", s->cols, &group, e) ||
        !scalar(s, ".axis", 1, &axis, e) || !scalar(s, ".quant_scale", 0, &quant_scale, e) ||
        !scalar(s, ".quant_zero", 0, &quant_zero, e) || !skip_notes(s, e) ||
        !check_hqq(s, bits, axis, quant_scale | quant_zero, e))
        return false;
    if (group < 1 || n % group)
        return err_set(e, ERR_FORMAT, "%s: '%s.group_size' %lld 不整除 %lld×%lld", s->w->path, s->module, (long long)group,
                       (long long)s->rows, (long long)s->cols);
    Stack k = stack_of(bits);
    int64_t all = n / group, steps = (all + k.per - 1) / k.per, size = gcd(s->cols, group), ng = s->cols / size;
    const FileTensor *w = packed_tensor(s, ".W_q", ANY, 0, 0, e), *sc, *z;
    if (!w || !(sc = packed_tensor(s, ".scale", PACKED_REALS, 0, 0, e)) ||
        !(z = packed_tensor(s, ".zero", PACKED_REALS, 0, 0, e)))
        return false;
    size_t n_scale = sc->bytes / dtype_block_bytes(sc->dtype), n_zero = z->bytes / dtype_block_bytes(z->dtype);
    if (w->bytes != (size_t)(steps * group * k.bytes) || (k.bytes == 1 && all % k.per) ||
        n_scale != (size_t)all || n_zero != (size_t)all)
        return err_set(e, ERR_FORMAT, "%s: '%s' 的 W_q（%zu 字节）、scale（%zu 个）、zero（%zu 个）与 %lld×%lld、%d 位、组宽 %lld 不符",
                       w->path, s->module, w->bytes, n_scale, n_zero, (long long)s->rows, (long long)s->cols,
                       (int)bits, (long long)group);
    p->spec = (QSpec){.bits = (int)bits, .group_size = size, .zero = ZERO_FLOAT, .scale_dtype = sc->dtype};
    if (z->dtype != sc->dtype) p->spec.scale_dtype = DT_F32;
    if (!packed_groups(s, p, size, ng, e)) return false;
    if (!a) return true;
    float *scale = packed_floats(sc, n_scale, a, e), *zero = scale ? packed_floats(z, n_zero, a, e) : NULL;
    p->code = zero ? ARENA_ARRAY(a, uint8_t, n, e) : NULL;
    p->scale = p->code ? ARENA_ARRAY(a, float, s->rows * ng, e) : NULL;
    p->zero = p->scale ? ARENA_ARRAY(a, float, s->rows * ng, e) : NULL;
    if (!p->zero) return false;
    for (int64_t i = 0; i < n; i++) p->code[i] = hqq_code(w, k, (int)bits, group, steps, i);
    for (int64_t i = 0; i < s->rows * ng; i++) {
        int64_t at = (i / ng * s->cols + i % ng * size) / group;
        p->scale[i] = scale[at];
        p->zero[i] = zero[at];
    }
    return true;
}
