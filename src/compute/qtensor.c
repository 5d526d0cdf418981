/* qtensor — 存放形式的权重矩阵：大小、分配、逐元素存取
 * 逐元素的函数就是布局的定义，慢而直白；快的批量读写在 cpu/quant.c 与 cpu/isa/，由测试与这里对照。 */
#include "compute/qtensor.h"

#include <string.h>

enum { PLANE_MAX = 3 };

static bool mul_size(size_t *r, size_t a, size_t b) {
    return !__builtin_mul_overflow(a, b, r);
}

/* r = a·b·c，溢出为假。 */
static bool mul3(size_t *r, size_t a, size_t b, size_t c) {
    return mul_size(r, a, b) && mul_size(r, *r, c);
}

int64_t qspec_group_size(const QSpec *spec, int64_t cols) {
    return spec->group_size < 0 || spec->group_size > cols ? cols : spec->group_size;
}

static bool check_spec(const QSpec *s, Err *e) {
    if (s->bits < 2 || s->bits > 8)
        return err_set(e, ERR_CONFIG, "量化位宽 %d 越界，应在 2 到 8 之间", s->bits);
    if (s->group_size != -1 && s->group_size < 1)
        return err_set(e, ERR_CONFIG, "量化组宽 %lld 非法，应为 -1（整行）或不小于 1",
                       (long long)s->group_size);
    if (s->zero != ZERO_SYM && s->zero != ZERO_INT && s->zero != ZERO_FLOAT)
        return err_set(e, ERR_CONFIG, "零点种类 %d 未知", (int)s->zero);
    if (s->grid != GRID_GPTQ && s->zero != (s->grid == GRID_RANGE ? ZERO_INT : ZERO_SYM))
        return err_set(e, ERR_CONFIG, "max|w| 的格点只用于对称量化，不扩到零的格点只用于整数零点");
    if (s->scale_dtype != DT_F32 && s->scale_dtype != DT_F16 && s->scale_dtype != DT_BF16)
        return err_set(e, ERR_CONFIG, "缩放的类型 %s 不支持，应为 F32、F16 或 BF16",
                       dtype_name(s->scale_dtype));
    if (s->codes != CODE_INT && (s->zero != ZERO_SYM || (s->codes != CODE_TABLE && s->bits != 8)))
        return err_set(e, ERR_CONFIG, "查表与 FP8 的编码没有零点，FP8 是 8 位");
    return true;
}

static bool too_large(int64_t rows, int64_t cols, Err *e) {
    return err_set(e, ERR_MEMORY, "矩阵 %lld×%lld 太大，字节数溢出", (long long)rows,
                   (long long)cols);
}

static bool measure_dense(QTensor *q, size_t panels, Err *e) {
    size_t cols = (size_t)q->cols, steps;
    if (q->dense == DT_F32 || q->dense == DT_F16)
        steps = cols;
    else if (q->dense == DT_BF16)
        steps = cols / 2 + cols % 2;
    else
        return err_set(e, ERR_UNSUPPORTED, "稠密权重的类型 %s 不支持，应为 F32、F16 或 BF16",
                       dtype_name(q->dense));
    size_t step_bytes = q->dense == DT_F16 ? 2 * QT_PANEL : 4 * QT_PANEL;
    return mul3(&q->data_bytes, panels, steps, step_bytes) || too_large(q->rows, q->cols, e);
}

static bool check_two_level(const QTensor *q, Err *e) {
    const TwoLevel *t = &q->two;
    if (!t->scale_bits && !t->zero_bits) return true;
    for (int i = 0; i < 2; i++) {
        int bits = i ? t->zero_bits : t->scale_bits;
        if (bits != 0 && (bits < 2 || bits > 8))
            return err_set(e, ERR_CONFIG, "两级统计的码宽 %d 越界，应为 0（不用）或 2 到 8", bits);
    }
    if (t->rows < QT_PANEL || t->rows % QT_PANEL)
        return err_set(e, ERR_CONFIG, "两级统计的行数 %lld 非法，应为 %d 的倍数", (long long)t->rows,
                       QT_PANEL);
    if (t->zero_bits && q->spec.zero != ZERO_FLOAT)
        return err_set(e, ERR_CONFIG, "零点两级量化时须为实数零点");
    return true;
}

/* 缩放（与实数零点、离群值）一个数的字节数。 */
static size_t real_bytes(const QTensor *q) {
    return q->spec.scale_dtype == DT_F32 ? 4 : 2;
}

/* 一种两级统计的字节数：各面板各组的码（凑成 4 的倍数），其后是二级格点。 */
static bool two_level_bytes(const QTensor *q, int bits, size_t *bytes) {
    size_t codes, panels = ((size_t)q->rows - 1) / QT_PANEL + 1, groups = (size_t)q->n_groups;
    if (q->nested.per) {
        size_t all;
        if (!mul3(&codes, panels, groups, QT_PANEL) || !mul_size(&all, (size_t)q->rows, groups) ||
            all > INT64_MAX / 8 || q->nested.first > INT64_MAX / 8)
            return false;
        return !__builtin_add_overflow(codes, (256 + (size_t)qtensor_n_outer(q)) * sizeof(float), bytes);
    }
    size_t row_groups = ((size_t)q->rows - 1) / (size_t)q->two.rows + 1, grids;
    size_t grid = 2 * real_bytes(q);
    if (!mul3(&codes, panels, groups, (size_t)bits * QT_PANEL / 8) ||
        !mul3(&grids, row_groups, groups, grid))
        return false;
    return !__builtin_add_overflow((codes + 3) / 4 * 4, grids, bytes);
}

static bool measure_quantized(QTensor *q, size_t panels, Err *e) {
    if (!check_spec(&q->spec, e) || !check_two_level(q, e)) return false;
    q->spec.group_size = qspec_group_size(&q->spec, q->cols);
    q->n_groups = (q->cols - 1) / q->spec.group_size + 1;
    size_t blocks = ((size_t)q->cols - 1) / QT_KBLOCK + 1, groups = (size_t)q->n_groups;
    size_t scale = real_bytes(q);
    size_t zero_row = q->spec.bits <= 4 ? QT_PANEL / 2 : QT_PANEL;
    if (q->spec.zero == ZERO_SYM) zero_row = 0;
    if (q->spec.zero == ZERO_FLOAT) zero_row = scale * QT_PANEL;
    bool ok = mul3(&q->data_bytes, panels, blocks, (size_t)q->spec.bits * 4 * QT_PANEL) &&
              mul3(&q->scale_bytes, panels, groups, scale * QT_PANEL) &&
              mul3(&q->zero_bytes, panels, groups, zero_row);
    if (q->two.scale_bits) ok = ok && two_level_bytes(q, q->two.scale_bits, &q->scale_bytes);
    if (q->two.zero_bits) ok = ok && two_level_bytes(q, q->two.zero_bits, &q->zero_bytes);
    return ok || too_large(q->rows, q->cols, e);
}

static bool measure(QTensor *q, DType dense_or_none, QSpec spec, TwoLevel two, int64_t rows,
                    int64_t cols, Err *e) {
    memset(q, 0, sizeof *q);
    if (rows < 1 || cols < 1 || rows > INT64_MAX / 2 || cols > INT64_MAX / 2)
        return err_set(e, ERR_FORMAT, "矩阵形状 %lld×%lld 非法", (long long)rows, (long long)cols);
    q->rows = rows;
    q->cols = cols;
    q->dense = dense_or_none;
    size_t panels = ((size_t)rows - 1) / QT_PANEL + 1;
    if (dense_or_none != DT_NONE) return measure_dense(q, panels, e);
    q->spec = spec;
    q->two = two;
    return measure_quantized(q, panels, e);
}

bool qtensor_measure(QTensor *q, DType dense_or_none, QSpec spec, int64_t rows, int64_t cols,
                     Err *e) {
    return measure(q, dense_or_none, spec, (TwoLevel){0}, rows, cols, e);
}

/* 多出的 SLACK 字节：内核按 64 位整字读两级统计的码，可越过末尾几个字节。 */
enum { SLACK = 8 };
static bool allocate(QTensor *q, Arena *a, Err *e) {
    size_t slack = q->two.scale_bits || q->two.zero_bits ? SLACK : 0;
    q->data = arena_alloc(a, q->data_bytes, e);
    if (!q->data) return false;
    if (q->scale_bytes && !(q->scales = arena_alloc(a, q->scale_bytes + slack, e))) return false;
    if (q->zero_bytes && !(q->zeros = arena_alloc(a, q->zero_bytes + slack, e))) return false;
    return true;
}

bool qtensor_new_dense(QTensor *q, Arena *a, DType dtype, int64_t rows, int64_t cols, Err *e) {
    if (dtype == DT_NONE) return err_set(e, ERR_UNSUPPORTED, "稠密权重没有给出类型");
    return qtensor_measure(q, dtype, (QSpec){0}, rows, cols, e) && allocate(q, a, e);
}

bool qtensor_new(QTensor *q, Arena *a, QSpec spec, int64_t rows, int64_t cols, Err *e) {
    return qtensor_measure(q, DT_NONE, spec, rows, cols, e) && allocate(q, a, e);
}

bool qtensor_new_two_level(QTensor *q, Arena *a, QSpec spec, TwoLevel two, int64_t rows,
                           int64_t cols, Err *e) {
    return measure(q, DT_NONE, spec, two, rows, cols, e) && allocate(q, a, e);
}

bool qtensor_new_nested(QTensor *q, Arena *a, QSpec spec, NestedScale nested, int64_t rows,
                        int64_t cols, Err *e) {
    if (nested.per < 1 || nested.first < 0)
        return err_set(e, ERR_CONFIG, "嵌套缩放每 %lld 个码共用一个外层缩放，须为正", (long long)nested.per);
    if (!qtensor_measure(q, DT_NONE, spec, rows, cols, e)) return false;
    q->two = (TwoLevel){.scale_bits = 8, .rows = QT_PANEL};
    q->nested = nested;
    return (two_level_bytes(q, 8, &q->scale_bytes) || too_large(rows, cols, e)) && allocate(q, a, e);
}

size_t qtensor_bytes(const QTensor *q) {
    return q->data_bytes + q->scale_bytes + q->zero_bytes + q->perm_bytes + q->table_bytes +
           q->outliers.bytes;
}

void qtensor_parts(QTensor *q, QtPart *part) {
    part[0] = (QtPart){&q->data, q->data_bytes};
    part[1] = (QtPart){&q->scales, q->scale_bytes};
    part[2] = (QtPart){&q->zeros, q->zero_bytes};
    part[3] = (QtPart){(void **)&q->perm, q->perm_bytes};
    const Outliers *o = &q->outliers;
    size_t value = o->start ? (size_t)o->n * real_bytes(q) : 0;
    size_t at = o->start ? (size_t)o->n * sizeof *o->at : 0;
    part[4] = (QtPart){(void **)&q->outliers.start, o->bytes - value - at};
    part[5] = (QtPart){(void **)&q->outliers.at, at};
    part[6] = (QtPart){&q->outliers.value, value};
    part[7] = (QtPart){(void **)&q->table, q->table_bytes};
}

bool qtensor_set_perm(QTensor *q, Arena *a, const int32_t *perm, Err *e) {
    int32_t *copy = ARENA_ARRAY(a, int32_t, q->cols, e);
    if (!copy) return false;
    for (int64_t i = 0; i < q->cols; i++) { /* 借 copy 的值作「见过」的标记 */
        CHECK(perm[i] >= 0 && perm[i] < q->cols && !copy[perm[i]]);
        copy[perm[i]] = 1;
    }
    for (int64_t i = 0; i < q->cols; i++) copy[i] = perm[i];
    q->perm = copy;
    q->perm_bytes = (size_t)q->cols * sizeof *copy;
    return true;
}

static void check_index(const QTensor *q, int64_t row, int64_t col) {
    CHECK(q->data && row >= 0 && row < q->rows && col >= 0 && col < q->cols);
}

/* 一个位面里的几位在哪里：32 位字、移位与掩码，以及它在编码中的起始位。 */
typedef struct PlaneSlot {
    uint32_t *word;
    int shift, first_bit;
    uint32_t mask;
} PlaneSlot;

/* 位宽拆成位面（先低后高）。返回: 位面数。 */
static int plane_widths(int bits, int width[PLANE_MAX]) {
    int n = 0;
    if (bits == 8) width[n++] = 8;
    if (bits < 8 && bits & 4) width[n++] = 4;
    if (bits < 8 && bits & 2) width[n++] = 2;
    if (bits < 8 && bits & 1) width[n++] = 1;
    return n;
}

static int find_slots(const QTensor *q, int64_t row, int64_t col, PlaneSlot slot[PLANE_MAX]) {
    check_index(q, row, col);
    CHECK(q->dense == DT_NONE);
    int width[PLANE_MAX], n = plane_widths(q->spec.bits, width), first = 0;
    int64_t blocks = (q->cols - 1) / QT_KBLOCK + 1;
    int64_t block = row / QT_PANEL * blocks + col / QT_KBLOCK;
    uint32_t *base = (uint32_t *)q->data + block * q->spec.bits * QT_PANEL;
    for (int i = 0; i < n; i++) {
        int per_word = 32 / width[i], k = (int)(col % QT_KBLOCK), at = k % per_word;
        slot[i] = (PlaneSlot){.word = base + (first + k / per_word) * QT_PANEL + row % QT_PANEL,
                              .shift = width[i] == 8 ? at * 8 : at % 2 * 16 + at / 2 * width[i],
                              .first_bit = first,
                              .mask = (1u << width[i]) - 1};
        first += width[i];
    }
    return n;
}

int qtensor_code(const QTensor *q, int64_t row, int64_t col) {
    PlaneSlot s[PLANE_MAX];
    int n = find_slots(q, row, col, s);
    uint32_t code = 0;
    for (int i = 0; i < n; i++) code |= (*s[i].word >> s[i].shift & s[i].mask) << s[i].first_bit;
    return (int)code;
}

void qtensor_set_code(QTensor *q, int64_t row, int64_t col, int code) {
    PlaneSlot s[PLANE_MAX];
    int n = find_slots(q, row, col, s);
    CHECK(code >= 0 && code < 1 << q->spec.bits);
    for (int i = 0; i < n; i++) {
        uint32_t part = (uint32_t)code >> s[i].first_bit & s[i].mask;
        *s[i].word = (*s[i].word & ~(s[i].mask << s[i].shift)) | part << s[i].shift;
    }
}

/* 缩放表（或同型的零点表）中 (row, group) 的下标。 */
static int64_t group_index(const QTensor *q, int64_t row, int64_t group) {
    CHECK(q->dense == DT_NONE && row >= 0 && row < q->rows && group >= 0 && group < q->n_groups);
    return (row / QT_PANEL * q->n_groups + group) * QT_PANEL + row % QT_PANEL;
}

static float get_real(const QTensor *q, const void *table, int64_t i) {
    if (q->spec.scale_dtype == DT_F32) return ((const float *)table)[i];
    uint16_t half = ((const uint16_t *)table)[i];
    return q->spec.scale_dtype == DT_F16 ? f16_to_f32(half) : bf16_to_f32(half);
}

static void set_real(const QTensor *q, void *table, int64_t i, float value) {
    if (q->spec.scale_dtype == DT_F32)
        ((float *)table)[i] = value;
    else
        ((uint16_t *)table)[i] = q->spec.scale_dtype == DT_F16 ? f32_to_f16(value) : f32_to_bf16(value);
}

static int stat_bits(const QTensor *q, StatKind kind) {
    return kind == STAT_SCALE ? q->two.scale_bits : q->two.zero_bits;
}

/* 二级格点的表，在码之后（码凑成 4 字节的倍数）。 */
static void *grid_table(const QTensor *q, StatKind kind) {
    int64_t panels = (q->rows - 1) / QT_PANEL + 1;
    int64_t at = panels * q->n_groups * stat_bits(q, kind) * QT_PANEL / 8;
    return (char *)(kind == STAT_SCALE ? q->scales : q->zeros) + (at + 3) / 4 * 4;
}

static int64_t grid_index(const QTensor *q, StatKind kind, int64_t row_group, int64_t group) {
    CHECK(!q->nested.per && stat_bits(q, kind) && row_group >= 0 && row_group <= (q->rows - 1) / q->two.rows);
    CHECK(group >= 0 && group < q->n_groups);
    return 2 * (row_group * q->n_groups + group);
}

StatGrid qtensor_stat_grid(const QTensor *q, StatKind kind, int64_t row_group, int64_t group) {
    int64_t i = grid_index(q, kind, row_group, group);
    const void *table = grid_table(q, kind);
    return (StatGrid){get_real(q, table, i), get_real(q, table, i + 1)};
}

void qtensor_set_stat_grid(QTensor *q, StatKind kind, int64_t row_group, int64_t group,
                           StatGrid g) {
    int64_t i = grid_index(q, kind, row_group, group);
    set_real(q, grid_table(q, kind), i, g.scale);
    set_real(q, grid_table(q, kind), i + 1, g.zero);
}

/* 两级统计的码所在的 16 位（码至多 8 位，跨不出两个字节）与移位。 */
static uint8_t *stat_slot(const QTensor *q, StatKind kind, int64_t row, int64_t group, int *bits,
                          int *shift) {
    *bits = stat_bits(q, kind);
    CHECK(*bits);
    int64_t bit = row % QT_PANEL * *bits, at = group_index(q, row, group) / QT_PANEL;
    *shift = (int)(bit % 8);
    uint8_t *table = kind == STAT_SCALE ? q->scales : q->zeros;
    return table + at * *bits * QT_PANEL / 8 + bit / 8;
}

int qtensor_stat_code(const QTensor *q, StatKind kind, int64_t row, int64_t group) {
    int bits, shift;
    const uint8_t *p = stat_slot(q, kind, row, group, &bits, &shift);
    int word = p[0] | (shift + bits > 8 ? p[1] << 8 : 0);
    return word >> shift & ((1 << bits) - 1);
}

void qtensor_set_stat_code(QTensor *q, StatKind kind, int64_t row, int64_t group, int code) {
    int bits, shift;
    uint8_t *p = stat_slot(q, kind, row, group, &bits, &shift);
    CHECK(code >= 0 && code < 1 << bits);
    int mask = ((1 << bits) - 1) << shift, word = code << shift;
    p[0] = (uint8_t)((p[0] & ~mask) | word);
    if (shift + bits > 8) p[1] = (uint8_t)((p[1] & ~(mask >> 8)) | word >> 8);
}

/* 两级统计的值：scale·(码 − zero)。 */
static float stat_value(const QTensor *q, StatKind kind, int64_t row, int64_t group) {
    if (q->nested.per) return qtensor_nested_scale(q, row, group);
    StatGrid g = qtensor_stat_grid(q, kind, row / q->two.rows, group);
    return g.scale * ((float)qtensor_stat_code(q, kind, row, group) - g.zero);
}

float qtensor_scale(const QTensor *q, int64_t row, int64_t group) {
    int64_t i = group_index(q, row, group);
    return q->two.scale_bits ? stat_value(q, STAT_SCALE, row, group) : get_real(q, q->scales, i);
}

void qtensor_set_scale(QTensor *q, int64_t row, int64_t group, float scale) {
    CHECK(!q->two.scale_bits);
    set_real(q, q->scales, group_index(q, row, group), scale);
}

float qtensor_zero(const QTensor *q, int64_t row, int64_t group) {
    int64_t i = group_index(q, row, group);
    if (q->two.zero_bits) return stat_value(q, STAT_ZERO, row, group);
    if (q->spec.zero == ZERO_SYM) return (float)(1 << (q->spec.bits - 1));
    if (q->spec.zero == ZERO_FLOAT) return get_real(q, q->zeros, i);
    const uint8_t *z = q->zeros;
    if (q->spec.bits > 4) return z[i];
    return (float)(z[i / 2] >> i % 2 * 4 & 15);
}

void qtensor_set_zero(QTensor *q, int64_t row, int64_t group, float zero) {
    int64_t i = group_index(q, row, group);
    CHECK(!q->two.zero_bits);
    CHECK(q->spec.zero != ZERO_SYM || zero == (float)(1 << (q->spec.bits - 1)));
    if (q->spec.zero == ZERO_SYM) return;
    if (q->spec.zero == ZERO_FLOAT) {
        set_real(q, q->zeros, i, zero);
        return;
    }
    CHECK(zero >= 0 && zero < (float)(1 << q->spec.bits));
    uint8_t *z = q->zeros, code = (uint8_t)zero;
    if (q->spec.bits > 4)
        z[i] = code;
    else
        z[i / 2] = (uint8_t)((z[i / 2] & (i % 2 ? 0x0F : 0xF0)) | code << i % 2 * 4);
}

/* 块内的位置。 */
static uint16_t place_in_block(int64_t row, int64_t col) {
    return (uint16_t)(col % QT_KBLOCK * QT_PANEL + row % QT_PANEL);
}

/* 某块（面板 × 32 列）中的离群值依次写到 o 的 n 处（values 为 NULL 时只数）。返回: 新的 n；值存不下为 -1。 */
static int64_t scan_block(QTensor *q, Outliers *o, int64_t n, int64_t panel, int64_t k0,
                          const float *w, const uint8_t *mask) {
    int64_t r1 = (panel + 1) * QT_PANEL, k1 = k0 + QT_KBLOCK;
    if (r1 > q->rows) r1 = q->rows;
    if (k1 > q->cols) k1 = q->cols;
    for (int64_t k = k0; k < k1; k++)
        for (int64_t r = panel * QT_PANEL; r < r1; r++) {
            if (!mask[r * q->cols + k]) continue;
            if (o->value) {
                float v = w[r * q->cols + k];
                if (q->spec.scale_dtype == DT_F16 && !(v >= -65504 && v <= 65504)) return -1;
                o->at[n] = place_in_block(r, k);
                set_real(q, o->value, n, v);
            }
            n++;
        }
    return n;
}

bool qtensor_set_outliers(QTensor *q, Arena *a, const float *w, const uint8_t *mask, Err *e) {
    CHECK(q->dense == DT_NONE);
    int64_t blocks = (q->cols - 1) / QT_KBLOCK + 1, all = ((q->rows - 1) / QT_PANEL + 1) * blocks;
    Outliers o = {0};
    for (int64_t i = 0; i < all; i++)
        o.n = scan_block(q, &o, o.n, i / blocks, i % blocks * QT_KBLOCK, w, mask);
    if (o.n > UINT32_MAX) return too_large(q->rows, q->cols, e);
    size_t size = real_bytes(q);
    o.start = ARENA_ARRAY(a, uint32_t, all + 1, e);
    o.at = ARENA_ARRAY(a, uint16_t, o.n, e);
    o.value = arena_array(a, (size_t)o.n, size, e);
    if (!o.start || !o.at || !o.value) return false;
    int64_t n = 0;
    for (int64_t i = 0; i < all; i++) {
        n = scan_block(q, &o, n, i / blocks, i % blocks * QT_KBLOCK, w, mask);
        if (n < 0) return err_set(e, ERR_NUMERIC, "离群值超出 float16 的范围，请改用 float32 的缩放");
        o.start[i + 1] = (uint32_t)n;
    }
    o.bytes = (size_t)(all + 1) * sizeof *o.start + (size_t)o.n * (sizeof *o.at + size);
    q->outliers = o;
    return true;
}

bool qtensor_outlier(const QTensor *q, int64_t row, int64_t col, float *value) {
    check_index(q, row, col);
    if (!q->outliers.start) return false;
    int64_t block = row / QT_PANEL * ((q->cols - 1) / QT_KBLOCK + 1) + col / QT_KBLOCK;
    for (uint32_t i = q->outliers.start[block]; i < q->outliers.start[block + 1]; i++)
        if (q->outliers.at[i] == place_in_block(row, col)) {
            *value = get_real(q, q->outliers.value, i);
            return true;
        }
    return false;
}

float qtensor_at(const QTensor *q, int64_t row, int64_t col) {
    check_index(q, row, col);
    int64_t panel = row / QT_PANEL, lane = row % QT_PANEL;
    if (q->dense == DT_F32)
        return ((const float *)q->data)[(panel * q->cols + col) * QT_PANEL + lane];
    if (q->dense == DT_F16)
        return f16_to_f32(((const uint16_t *)q->data)[(panel * q->cols + col) * QT_PANEL + lane]);
    if (q->dense == DT_BF16) {
        int64_t pair = panel * (q->cols / 2 + q->cols % 2) + col / 2;
        return bf16_to_f32(((const uint16_t *)q->data)[(pair * QT_PANEL + lane) * 2 + col % 2]);
    }
    float value;
    if (qtensor_outlier(q, row, col, &value)) return value;
    int64_t group = col / q->spec.group_size;
    float scale = qtensor_scale(q, row, group), zero = qtensor_zero(q, row, group);
    int code = qtensor_code(q, row, col);
    if (q->spec.codes != CODE_INT) return scale * qtensor_code_values(q)[code];
    return scale * ((float)code - zero);
}
