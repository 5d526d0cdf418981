/* qtensor_codes — 编码：查表与 FP8 的值，整个面板的装包；嵌套缩放
 * 已量化的检查点（model/checkpoint.h）给出的是编码本身，在这里成批写进面板；与 qtensor_set_code 逐位相同。 */
#include <math.h>
#include <pthread.h>
#include <string.h>

#include "compute/qtensor.h"

float f8_to_f32(uint8_t code, bool e5m2) {
    int man_bits = e5m2 ? 2 : 3, man = code & ((1 << man_bits) - 1), exp = (code & 127) >> man_bits;
    int bias = e5m2 ? 15 : 7;
    float v = ldexpf((float)(exp ? man + (1 << man_bits) : man), (exp ? exp : 1) - bias - man_bits);
    if (e5m2 && exp == 31) v = man ? NAN : INFINITY;
    if (!e5m2 && (code & 127) == 127) v = NAN;
    return code & 128 ? -v : v;
}

static float f8_values[2][256];
static pthread_once_t f8_once = PTHREAD_ONCE_INIT;
static void fill_f8(void) {
    for (int i = 0; i < 512; i++) f8_values[i / 256][i % 256] = f8_to_f32((uint8_t)(i % 256), i / 256);
}

const float *qtensor_code_values(const QTensor *q) {
    CHECK(q->spec.codes != CODE_INT);
    if (q->spec.codes == CODE_TABLE) return q->table;
    pthread_once(&f8_once, fill_f8);
    return f8_values[q->spec.codes == CODE_F8_E5M2];
}

bool qtensor_set_table(QTensor *q, Arena *a, const float *table, Err *e) {
    size_t n = (size_t)1 << q->spec.bits;
    CHECK(q->spec.codes == CODE_TABLE);
    if (!(q->table = ARENA_ARRAY(a, float, n, e))) return false;
    memcpy(q->table, table, n * sizeof *table);
    q->table_bytes = n * sizeof *table;
    return true;
}

/* 一路的 32 个编码写成位面的字；布局见 qtensor.h。 */
static void pack_lane(uint32_t *word, int bits, const uint8_t *code) {
    for (int first = 0, p = bits == 8 ? 8 : 4; first < bits; p /= 2) {
        if (!(bits & p)) continue;
        uint32_t mask = (1u << p) - 1;
        for (int v = 0, per = 32 / p; v < p; v++, word += QT_PANEL) {
            uint32_t w = 0;
            for (int j = 0; j < per; j++) {
                int shift = p == 8 ? 8 * j : j % 2 * 16 + j / 2 * p;
                w |= ((uint32_t)code[v * per + j] >> first & mask) << shift;
            }
            *word = w;
        }
        first += p;
    }
}

void qtensor_pack_panel(QTensor *q, int64_t panel, const uint8_t *code) {
    CHECK(q->dense == DT_NONE && panel >= 0 && panel <= (q->rows - 1) / QT_PANEL);
    int64_t blocks = (q->cols - 1) / QT_KBLOCK + 1, rows = q->rows - panel * QT_PANEL;
    if (rows > QT_PANEL) rows = QT_PANEL;
    uint32_t *to = (uint32_t *)q->data + panel * blocks * q->spec.bits * QT_PANEL;
    for (int64_t b = 0; b < blocks; b++, to += q->spec.bits * QT_PANEL) {
        int64_t n = q->cols - b * QT_KBLOCK;
        for (int64_t r = 0; r < QT_PANEL; r++) {
            uint8_t block[QT_KBLOCK] = {0};
            if (r < rows)
                memcpy(block, code + r * q->cols + b * QT_KBLOCK, (size_t)(n < QT_KBLOCK ? n : QT_KBLOCK));
            pack_lane(to + r, q->spec.bits, block);
        }
    }
}

/* 嵌套缩放的表，其后是各外层缩放。 */
static float *nested_table(const QTensor *q) {
    CHECK(q->nested.per);
    return (float *)((char *)q->scales + ((q->rows - 1) / QT_PANEL + 1) * q->n_groups * QT_PANEL);
}

/* 第 i 个码（从本矩阵数）用第几个外层缩放。 */
static int64_t outer_of(const QTensor *q, int64_t i) {
    return (q->nested.first + i) / q->nested.per - q->nested.first / q->nested.per;
}

int64_t qtensor_n_outer(const QTensor *q) {
    return outer_of(q, q->rows * q->n_groups - 1) + 1;
}

void qtensor_set_nested(QTensor *q, const float table[256], const float *outer) {
    memcpy(nested_table(q), table, 256 * sizeof *table);
    memcpy(nested_table(q) + 256, outer, (size_t)qtensor_n_outer(q) * sizeof *outer);
}

float qtensor_nested_scale(const QTensor *q, int64_t row, int64_t group) {
    const float *table = nested_table(q);
    int code = qtensor_stat_code(q, STAT_SCALE, row, group);
    return table[code] * table[256 + outer_of(q, row * q->n_groups + group)] + q->nested.offset;
}
