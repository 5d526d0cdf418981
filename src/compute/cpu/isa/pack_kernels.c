/* pack_kernels — 装包、解包、取整量化与定缩放（逐面板、逐行）
 * 面板内先把 16 行 × 16 列转置成沿 k 交错，再转换类型；定义见 ops.h 与 qtensor.h，与逐元素函数逐位相同。 */
#include "compute/cpu/isa/gemm_parts.h"

enum { CHUNK = QT_KBLOCK };

typedef uint32_t vec_pair __attribute__((vector_size(16)));

static int64_t min_i64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* 取面板的 32 列转置成 t[k][16]；不足的行与列补 0。 */
static void gather_chunk(float *t, const QTensor *q, const float *w, int64_t panel, int64_t k) {
    int64_t row = panel * QT_PANEL, n_rows = min_i64(q->rows - row, QT_PANEL);
    int64_t n_cols = min_i64(q->cols - k, CHUNK);
    const float *src = w + row * q->cols + k;
    if (n_rows == QT_PANEL && n_cols == CHUNK) {
        vec_transpose16(t, 16, src, q->cols);
        vec_transpose16(t + 256, 16, src + 16, q->cols);
        return;
    }
    memset(t, 0, CHUNK * QT_PANEL * sizeof *t);
    for (int64_t r = 0; r < n_rows; r++)
        for (int64_t c = 0; c < n_cols; c++) t[16 * c + r] = src[r * q->cols + c];
}

/* BF16 面板里第 panel 个、从第 k 列（偶数）起的字。 */
static uint32_t *pairs_at(const QTensor *q, int64_t panel, int64_t k) {
    return (uint32_t *)q->data + (panel * (q->cols / 2 + q->cols % 2) + k / 2) * QT_PANEL;
}

/* t[k][16] 的 n 列按 q->dense 舍入，存到面板的第 k 列起。 */
static void store_chunk(QTensor *q, const float *t, int64_t panel, int64_t k, int64_t n) {
    int64_t at = (panel * q->cols + k) * QT_PANEL;
    if (q->dense == DT_F32) {
        memcpy((float *)q->data + at, t, (size_t)n * QT_PANEL * sizeof *t);
    } else if (q->dense == DT_F16) {
        for (int64_t i = 0; i < n; i++)
            vf_store_f16((uint16_t *)q->data + at + 16 * i, vf_load(t + 16 * i));
    } else {
        uint32_t *dst = pairs_at(q, panel, k);
        for (int64_t i = 0; i < n; i += 2) {
            vu lo = vu_round_bf16(vf_load(t + 16 * i));
            vu hi = vu_round_bf16(vf_load(t + 16 * i + 16));
            vu_store(dst + 8 * i, vu_or(lo, vu_shl(hi, 16)));
        }
    }
}

void KERNEL_NAME(pack_panel)(QTensor *q, const float *w, int64_t panel) {
    float t[CHUNK * QT_PANEL];
    for (int64_t k = 0; k < q->cols; k += CHUNK) {
        gather_chunk(t, q, w, panel, k);
        store_chunk(q, t, panel, k, min_i64(q->cols - k, CHUNK));
    }
}

/* ---- 直接从存放的类型装 ---- */

/* 舍入到 t 之后仍有限的 |x| 都小于此。 */
static float limit_of(DType t) {
    uint32_t bf16 = 0x7F7F8000u;
    float top;
    memcpy(&top, &bf16, sizeof top);
    return t == DT_F16 ? 65520.0f : t == DT_BF16 ? top : __builtin_inff();
}

/* stored 的面板的 n 列（从 k 起）→ t[k][16]，不足补 0。返回: 各数都在 limit 之内。 */
static bool decode_chunk(float *t, const QTensor *q, const void *stored, DType type, int64_t panel,
                         int64_t k, float limit) {
    float rows[QT_PANEL * CHUNK] = {0};
    int64_t first = panel * QT_PANEL, n_rows = min_i64(q->rows - first, QT_PANEL), n = min_i64(q->cols - k, CHUNK);
    size_t item = dtype_block_bytes(type);
    vu inside = vu_set1(~0u);
    for (int64_t r = 0; r < n_rows; r++) {
        const char *from = (const char *)stored + (size_t)((first + r) * q->cols + k) * item;
        float *to = rows + r * CHUNK;
        uint16_t half[CHUNK] = {0};
        memcpy(type == DT_F32 ? (void *)to : half, from, (size_t)n * item);
        for (int i = 0; type != DT_F32 && i < CHUNK; i += 16)
            vf_store(to + i, type == DT_F16 ? vf_load_f16(half + i) : vf_load_bf16(half + i));
        for (int i = 0; i < CHUNK; i += 16) {
            vf abs = vf_bits(vu_and(vu_bits(vf_load(to + i)), vu_set1(0x7FFFFFFFu)));
            inside = vu_and(inside, vf_less(abs, vf_set1(limit)));
        }
    }
    vec_transpose16(t, 16, rows, CHUNK);
    vec_transpose16(t + 256, 16, rows + 16, CHUNK);
    uint32_t ok[QT_PANEL], all = ~0u;
    vu_store(ok, inside);
    for (int i = 0; i < QT_PANEL; i++) all &= ok[i];
    return all == ~0u;
}

/* 4 行 × 4 个 32 位字的转置，src 的行距为 step 字节（不必对齐）。bad 记下指数全 1 的（NaN、Inf）。 */
static void transpose_words4(uint32_t *dst, const char *src, size_t step, vec_pair *bad) {
    vec_pair r[4];
    for (int i = 0; i < 4; i++) {
        memcpy(&r[i], src + (size_t)i * step, sizeof r[i]);
        *bad |= (r[i] & 0x7F807F80u) + 0x00800080u;
    }
    vec_pair lo01 = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), hi01 = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
    vec_pair lo23 = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5), hi23 = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
    r[0] = __builtin_shufflevector(lo01, lo23, 0, 1, 4, 5);
    r[1] = __builtin_shufflevector(lo01, lo23, 2, 3, 6, 7);
    r[2] = __builtin_shufflevector(hi01, hi23, 0, 1, 4, 5);
    r[3] = __builtin_shufflevector(hi01, hi23, 2, 3, 6, 7);
    for (int i = 0; i < 4; i++) memcpy(dst + i * QT_PANEL, &r[i], sizeof r[i]);
}

/* BF16 → BF16：面板的一个字是同一行相邻的两个数，正是文件里的 4 个字节，转置即可。返回: 都是有限值。 */
static bool copy_pairs(QTensor *q, const void *stored, int64_t panel) {
    size_t step = (size_t)q->cols * 2;
    const char *from = (const char *)stored + (size_t)panel * QT_PANEL * step;
    uint32_t *dst = pairs_at(q, panel, 0);
    vec_pair bad = {0};
    for (int64_t k = 0; k < q->cols; k += CHUNK, from += 2 * CHUNK, dst += CHUNK / 2 * QT_PANEL)
        for (int r = 0; r < QT_PANEL; r += 4)
            for (int c = 0; c < CHUNK / 2; c += 4)
                transpose_words4(dst + c * QT_PANEL + r, from + (size_t)r * step + 4 * c, step, &bad);
    uint32_t any = bad[0] | bad[1] | bad[2] | bad[3];
    return !(any & 0x80008000u);
}

bool KERNEL_NAME(pack_stored_panel)(QTensor *q, const void *stored, DType type, int64_t panel) {
    bool whole = (panel + 1) * QT_PANEL <= q->rows && q->cols % CHUNK == 0, ok = true;
    if (type == DT_BF16 && q->dense == DT_BF16 && whole) return copy_pairs(q, stored, panel);
    float t[CHUNK * QT_PANEL], limit = limit_of(q->dense);
    for (int64_t k = 0; k < q->cols; k += CHUNK) {
        ok &= decode_chunk(t, q, stored, type, panel, k, limit);
        store_chunk(q, t, panel, k, min_i64(q->cols - k, CHUNK));
    }
    return ok;
}

void KERNEL_NAME(unpack_panel)(float *w, const QTensor *q, int64_t panel) {
    float t[CHUNK * QT_PANEL];
    int64_t row = panel * QT_PANEL, n_rows = min_i64(q->rows - row, QT_PANEL);
    for (int64_t k = 0; k < q->cols; k += CHUNK) {
        int64_t n = min_i64(q->cols - k, CHUNK);
        float *dst = w + row * q->cols + k;
        KERNEL_NAME(gemm_expand)(t, q, panel, k, k + n);
        if (n_rows == QT_PANEL && n == CHUNK) {
            vec_transpose16(dst, q->cols, t, 16);
            vec_transpose16(dst + 16, q->cols, t + 256, 16);
            continue;
        }
        for (int64_t r = 0; r < n_rows; r++)
            for (int64_t c = 0; c < n; c++) dst[r * q->cols + c] = t[16 * c + r];
    }
}

/* 16 个数按缩放的类型舍入后存下。 */
static void store_reals(const QTensor *q, void *table, int64_t at, const float *x) {
    if (q->spec.scale_dtype == DT_F32) {
        vf_store((float *)table + at, vf_load(x));
    } else if (q->spec.scale_dtype == DT_F16) {
        vf_store_f16((uint16_t *)table + at, vf_load(x));
    } else {
        for (int i = 0; i < QT_PANEL; i++) ((uint16_t *)table)[at + i] = f32_to_bf16(x[i]);
    }
}

/* 存下面板的缩放与零点（按存放的类型舍入；尾部行的缩放为 0）；两级的已由调用者存好。 */
static void store_params(QTensor *q, const float *scale, const float *zero, int64_t panel) {
    int64_t row = panel * QT_PANEL, n_rows = min_i64(q->rows - row, QT_PANEL);
    float top = (float)((1 << q->spec.bits) - 1);
    for (int64_t g = 0; g < q->n_groups; g++) {
        float s[QT_PANEL] = {0}, z[QT_PANEL] = {0};
        for (int64_t r = 0; r < n_rows; r++) {
            s[r] = scale[(row + r) * q->n_groups + g];
            z[r] = zero[(row + r) * q->n_groups + g];
        }
        int64_t at = (panel * q->n_groups + g) * QT_PANEL;
        if (!q->two.scale_bits) store_reals(q, q->scales, at, s);
        if (q->two.zero_bits) continue;
        if (q->spec.zero == ZERO_FLOAT) store_reals(q, q->zeros, at, z);
        if (q->spec.zero != ZERO_INT) continue;
        vf code = vf_min(vf_max(vf_rint(vf_load(z)), vf_zero()), vf_set1(top));
        vf_store(z, code);
        uint8_t *dst = (uint8_t *)q->zeros + (q->spec.bits > 4 ? at : at / 2);
        for (int i = 0; q->spec.bits > 4 && i < 16; i++) dst[i] = (uint8_t)z[i];
        for (int i = 0; q->spec.bits <= 4 && i < 8; i++)
            dst[i] = (uint8_t)((uint8_t)z[2 * i] | (uint8_t)z[2 * i + 1] << 4);
    }
}

/* 32×16 个编码装成位面。 */
static void pack_codes(uint32_t *block, const uint32_t *code, int bits) {
    for (int first = 0; first < bits;) {
        int left = bits - first;
        int p = bits == 8 ? 8 : left & 4 ? 4 : left & 2 ? 2 : 1, per_word = 32 / p;
        for (int v = 0; v < p; v++) {
            vu word = vu_set1(0);
            for (int j = 0; j < per_word; j++) {
                vu c = vu_and(vu_shr(vu_load(code + 16 * (v * per_word + j)), first),
                              vu_set1((1u << p) - 1));
                word = vu_or(word, vu_shl(c, code_shift(p, j)));
            }
            vu_store(block + 16 * (first + v), word);
        }
        first += p;
    }
}

/* 存下的缩放与零点（零点不换成 offset）。 */
static GroupParams stored_params(const QTensor *q, int64_t panel, int64_t group) {
    float s[QT_PANEL] = {0}, z[QT_PANEL] = {0};
    int64_t row = panel * QT_PANEL, n_rows = min_i64(q->rows - row, QT_PANEL);
    for (int64_t r = 0; r < n_rows; r++) {
        s[r] = qtensor_scale(q, row + r, group);
        z[r] = qtensor_zero(q, row + r, group);
    }
    return (GroupParams){vf_load(s), vf_load(z)};
}

VEC_INLINE vu round_code(vf w, GroupParams g, ZeroKind kind, vf top) {
    vf steps = vf_div(w, g.scale);
    vf code = kind == ZERO_FLOAT ? vf_rint(vf_add(steps, g.zero)) : vf_add(vf_rint(steps), g.zero);
    return vu_from_float(vf_min(vf_max(code, vf_zero()), top)); /* NaN → 0 */
}

void KERNEL_NAME(quantize_panel)(QTensor *q, const float *w, const float *scale, const float *zero,
                                 int64_t panel) {
    store_params(q, scale, zero, panel);
    int64_t blocks = (q->cols - 1) / QT_KBLOCK + 1, valid = min_i64(q->rows - panel * 16, 16);
    vf top = vf_set1((float)((1 << q->spec.bits) - 1));
    uint32_t live[QT_PANEL] = {0}, code[CHUNK * QT_PANEL];
    float t[CHUNK * QT_PANEL];
    for (int64_t r = 0; r < valid; r++) live[r] = 0xFFFFFFFFu;
    int64_t group = -1;
    GroupParams g = {vf_zero(), vf_zero()};
    for (int64_t k = 0; k < q->cols; k += CHUNK) {
        int64_t n = min_i64(q->cols - k, CHUNK);
        gather_chunk(t, q, w, panel, k);
        memset(code, 0, sizeof code);
        for (int64_t i = 0; i < n; i++) {
            int64_t want = (k + i) / q->spec.group_size;
            if (want != group) g = stored_params(q, panel, group = want);
            vu c = round_code(vf_load(t + 16 * i), g, q->spec.zero, top);
            vu_store(code + 16 * i, vu_and(c, vu_load(live)));
        }
        pack_codes((uint32_t *)q->data + (panel * blocks + k / QT_KBLOCK) * q->spec.bits * QT_PANEL,
                   code, q->spec.bits);
    }
}

/* 一段的最小与最大值。 */
static void min_max(const float *w, int64_t n, float *lo, float *hi) {
    float l[16], h[16];
    int64_t i = 0;
    *lo = *hi = w[0];
    if (n >= 16) {
        vf vl = vf_load(w), vh = vl;
        for (i = 16; i + 16 <= n; i += 16) {
            vf x = vf_load(w + i);
            vl = vf_min(x, vl);
            vh = vf_max(x, vh);
        }
        vf_store(l, vl);
        vf_store(h, vh);
        for (int j = 0; j < 16; j++) {
            if (l[j] < *lo) *lo = l[j];
            if (h[j] > *hi) *hi = h[j];
        }
    }
    for (; i < n; i++) {
        if (w[i] < *lo) *lo = w[i];
        if (w[i] > *hi) *hi = w[i];
    }
}

/* 缩放舍入到存放类型；f16 时饱和在 [最小正次正规数, 65504]，使商有定义。 */
static float stored(float x, DType dtype, bool positive) {
    if (dtype == DT_BF16) return bf16_to_f32(f32_to_bf16(x));
    if (dtype != DT_F16) return x;
    if (positive && x < 0x1p-24f) return 0x1p-24f;
    if (x > 65504.0f) return 65504.0f;
    if (x < -65504.0f) return -65504.0f;
    return f16_to_f32(f32_to_f16(x));
}

void KERNEL_NAME(qparams_row)(float *scale, float *zero, const float *w, int64_t cols,
                              int64_t group, const QSpec *spec) {
    float top = (float)((1 << spec->bits) - 1);
    for (int64_t k = 0, g = 0; k < cols; k += group, g++) {
        float lo, hi;
        min_max(w + k, min_i64(group, cols - k), &lo, &hi);
        if (spec->zero == ZERO_FLOAT) {
            float s = (hi - lo) / top;
            if (s == 0) s = 1;
            /* f16 的零点不得溢出 */
            float least = spec->scale_dtype == DT_F16 ? (lo < 0 ? -lo : lo) / 65504.0f : 0;
            scale[g] = stored(s < least ? least : s, spec->scale_dtype, true);
            zero[g] = stored(-lo / scale[g], spec->scale_dtype, false);
        } else if (spec->zero == ZERO_SYM) {
            float m = -lo > hi ? -lo : hi;
            bool gptq = spec->grid == GRID_GPTQ;
            if (gptq && m == 0) m = 1;
            if (!gptq && m < 1e-5f) m = 1e-5f;
            float s = gptq ? 2 * m / top : m * (1.0f / (float)((1 << (spec->bits - 1)) - 1));
            scale[g] = stored(s, spec->scale_dtype, true);
            zero[g] = (float)(1 << (spec->bits - 1));
        } else {
            bool range = spec->grid == GRID_RANGE;
            if (!range && lo > 0) lo = 0;
            if (!range && hi < 0) hi = 0;
            if (!range && lo == 0 && hi == 0) lo = -1, hi = 1;
            float width = range && hi - lo < 1e-5f ? 1e-5f : hi - lo;
            scale[g] = stored(width / top, spec->scale_dtype, true);
            vf z = vf_rint(vf_set1(-lo / scale[g]));
            float first[16];
            vf_store(first, vf_min(vf_max(z, vf_zero()), vf_set1(top)));
            zero[g] = first[0];
        }
    }
}
