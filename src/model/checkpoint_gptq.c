/* checkpoint_gptq — GPTQ（AutoGPTQ、GPTQModel）与 AutoAWQ 的 gemm 排法
 * GPTQ: qweight (cols·位/32, rows) 每列（输出通道）从低位起沿输入连着排；qzeros (组, rows·位/32) 沿输出连着排；
 * scales (组, rows)；g_idx (cols)。v1 的零点减一存：2、4、8 位整字相加还原（GPTQModel 写时整字相减，借位因而也还原），
 * 3 位有跨字的，逐个加一取模。
 * AWQ: qweight (cols, rows/8)、qzeros (组, rows/8)，一个字里从低位起是第 0 2 4 6 1 3 5 7 个输出。 */
#include "model/checkpoint.h"

/* 每次取相邻字里的一个 bits 位的数；字 i 在文件的第 base + i·step 个。 */
static int stream_code(const FileTensor *t, int64_t base, int64_t step, int64_t i, int bits) {
    int64_t bit = i * bits;
    int shift = (int)(bit % 32);
    uint64_t word = packed_word(t, base + bit / 32 * step);
    if (shift + bits > 32) word |= (uint64_t)packed_word(t, base + (bit / 32 + 1) * step) << 32;
    return (int)(word >> shift & ((1u << bits) - 1));
}

/* GPTQ 的编码：按字的行依次读，写成 (rows, cols)。 */
static void gptq_codes(const PackedSource *s, const FileTensor *t, int bits, uint8_t *code) {
    for (int64_t r = 0; r < s->rows; r++)
        for (int64_t c = 0; c < s->cols; c++)
            code[r * s->cols + c] = (uint8_t)stream_code(t, r, s->rows, c, bits);
}

/* 一组的零点 (rows)；v1 还原。 */
static void gptq_zeros(const PackedSource *s, const FileTensor *t, int bits, int64_t g, int64_t ng, float *zero) {
    static const uint32_t ONES[9] = {[2] = 0x55555555u, [4] = 0x11111111u, [8] = 0x01010101u};
    int64_t words = s->rows * bits / 32, per = 32 / bits;
    for (int64_t r = 0; r < s->rows; r++) {
        int z;
        if (bits == 3)
            z = (stream_code(t, g * words, 1, r, 3) + s->c->v1) & 7;
        else
            z = (int)((packed_word(t, g * words + r / per) + (s->c->v1 ? ONES[bits] : 0)) >> r % per * bits &
                      ((1u << bits) - 1));
        zero[r * ng + g] = (float)z;
    }
}

/* (组, rows) → (rows, 组)。 */
static bool read_scales(const PackedSource *s, const FileTensor *t, PackedModule *p, Arena *a, Err *e) {
    size_t n = (size_t)(s->rows * p->n_groups);
    float *raw = packed_floats(t, n, a, e);
    p->scale = raw ? ARENA_ARRAY(a, float, n, e) : NULL;
    if (!p->scale) return false;
    for (int64_t g = 0; g < p->n_groups; g++)
        for (int64_t r = 0; r < s->rows; r++) p->scale[r * p->n_groups + g] = raw[g * s->rows + r];
    return true;
}

static bool read_g_idx(const PackedSource *s, const FileTensor *t, PackedModule *p, Arena *a, Err *e) {
    if (!t) return true;
    if (!(p->group = ARENA_ARRAY(a, int32_t, s->cols, e))) return false;
    for (int64_t c = 0; c < s->cols; c++) p->group[c] = (int32_t)packed_word(t, c);
    return true;
}

bool unpack_gptq(const PackedSource *s, PackedModule *p, Arena *a, Err *e) {
    int bits = s->c->bits;
    if (s->cols * bits % 32 || s->rows * bits % 32)
        return err_set(e, ERR_UNSUPPORTED, "%s: %s 是 %lld×%lld，gptq 的 %d 位要求行列各凑满 32 位的字", s->w->path, s->module,
                       (long long)s->rows, (long long)s->cols, bits);
    p->spec = (QSpec){.bits = bits, .group_size = s->c->group_size, .zero = ZERO_INT};
    int64_t size = qspec_group_size(&p->spec, s->cols), ng = (s->cols - 1) / size + 1;
    const FileTensor *w = packed_tensor(s, ".qweight", PACKED_INT32, s->cols * bits / 32, s->rows, e), *z, *sc, *g;
    if (!w || !(sc = packed_tensor(s, ".scales", PACKED_REALS, ng, s->rows, e)) ||
        !(z = packed_tensor(s, ".qzeros", PACKED_INT32, ng, s->rows * bits / 32, e)) ||
        !packed_optional(s, ".g_idx", PACKED_INT32, s->cols, 0, &g, e) || !packed_groups(s, p, size, ng, e))
        return false;
    p->spec.scale_dtype = sc->dtype;
    if (!a) return true;
    p->code = ARENA_ARRAY(a, uint8_t, s->rows * s->cols, e);
    p->zero = ARENA_ARRAY(a, float, s->rows * ng, e);
    if (!p->code || !p->zero || !read_scales(s, sc, p, a, e) || !read_g_idx(s, g, p, a, e)) return false;
    gptq_codes(s, w, bits, p->code);
    for (int64_t i = 0; i < ng; i++) gptq_zeros(s, z, bits, i, ng, p->zero);
    return true;
}

/* 第 r 个输出在字里的移位。 */
static int awq_shift(int64_t r) {
    static const int AT[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    return 4 * AT[r % 8];
}

bool unpack_awq(const PackedSource *s, PackedModule *p, Arena *a, Err *e) {
    p->spec = (QSpec){.bits = 4, .group_size = s->c->group_size, .zero = ZERO_INT};
    int64_t size = qspec_group_size(&p->spec, s->cols), ng = (s->cols - 1) / size + 1, words = s->rows / 8;
    if (s->rows % 8)
        return err_set(e, ERR_UNSUPPORTED, "%s: %s 有 %lld 行，awq 要求是 8 的倍数", s->w->path, s->module,
                       (long long)s->rows);
    const FileTensor *w = packed_tensor(s, ".qweight", PACKED_INT32, s->cols, words, e), *z, *sc;
    if (!w || !(sc = packed_tensor(s, ".scales", PACKED_REALS, ng, s->rows, e)) ||
        !(z = packed_tensor(s, ".qzeros", PACKED_INT32, ng, words, e)) || !packed_groups(s, p, size, ng, e))
        return false;
    p->spec.scale_dtype = sc->dtype;
    if (!a) return true;
    p->code = ARENA_ARRAY(a, uint8_t, s->rows * s->cols, e);
    p->zero = ARENA_ARRAY(a, float, s->rows * ng, e);
    if (!p->code || !p->zero || !read_scales(s, sc, p, a, e)) return false;
    for (int64_t r = 0; r < s->rows; r++) {
        for (int64_t c = 0; c < s->cols; c++)
            p->code[r * s->cols + c] = packed_word(w, c * words + r / 8) >> awq_shift(r) & 15;
        for (int64_t g = 0; g < ng; g++)
            p->zero[r * ng + g] = (float)(packed_word(z, g * words + r / 8) >> awq_shift(r) & 15);
    }
    return true;
}
