/* linear — 权重在设备上的样子，供 linear.cu 与 gemv.cu */
#ifndef PTQ_COMPUTE_CUDA_LINEAR_H
#define PTQ_COMPUTE_CUDA_LINEAR_H
#include "compute/cuda/cuda.h"

/* 设备上看一个 QTensor。 */
struct View {
    int64_t rows, cols, stride, groups, group, blocks, stat_rows;
    DType dense, scale_type;
    int bits, zero_kind, scale_bits, zero_bits, codes;
    int64_t nested, first;
    float offset;
    const float *table;
    const void *data, *scales, *zeros, *scale_grid, *zero_grid, *value;
    const uint32_t *start;
    const uint16_t *at;
    const int32_t *perm;
};

static inline int64_t dense_stride(const QTensor *q) {
    return q->dense == DT_BF16 ? (q->cols + 1) / 2 * 2 : q->cols;
}
static inline const char *stat_grids(const QTensor *q, const void *table, int bits) {
    int64_t at = ((q->rows - 1) / QT_PANEL + 1) * q->n_groups * bits * QT_PANEL / 8;
    return bits ? (const char *)table + (at + 3) / 4 * 4 : NULL;
}
static inline View view_of(const QTensor *q) {
    View v = {};
    v.rows = q->rows, v.cols = q->cols, v.dense = q->dense, v.data = q->data, v.perm = q->perm;
    v.stride = dense_stride(q);
    if (q->dense != DT_NONE) return v;
    v.groups = q->n_groups, v.group = q->spec.group_size, v.blocks = (q->cols - 1) / QT_KBLOCK + 1;
    v.scale_type = q->spec.scale_dtype, v.bits = q->spec.bits, v.zero_kind = q->spec.zero;
    v.scales = q->scales, v.zeros = q->zeros;
    v.scale_bits = q->two.scale_bits, v.zero_bits = q->two.zero_bits, v.stat_rows = q->two.rows;
    v.codes = q->spec.codes, v.table = q->table;
    v.nested = q->nested.per, v.first = q->nested.first, v.offset = q->nested.offset;
    v.scale_grid = stat_grids(q, q->scales, v.scale_bits); /* 嵌套时是表，其后是外层缩放 */
    v.zero_grid = stat_grids(q, q->zeros, v.zero_bits);
    v.start = q->outliers.start, v.at = q->outliers.at, v.value = q->outliers.value;
    return v;
}

__device__ static inline float two_level(const View &v, const void *codes, const void *grid, int bits, int64_t row,
                                         int64_t g) {
    int64_t bit = row % QT_PANEL * bits, at = row / QT_PANEL * v.groups + g;
    const uint8_t *p = (const uint8_t *)codes + at * bits * QT_PANEL / 8 + bit / 8;
    int shift = (int)(bit % 8), word = p[0] | (shift + bits > 8 ? p[1] << 8 : 0);
    int64_t i = 2 * (row / v.stat_rows * v.groups + g);
    float code = (float)(word >> shift & ((1 << bits) - 1));
    return __fmul_rn(real_at(grid, v.scale_type, i), __fadd_rn(code, -real_at(grid, v.scale_type, i + 1)));
}
/* 嵌套缩放：表[码]·外层 + offset。 */
__device__ static inline float nested_scale(const View &v, int64_t row, int64_t g) {
    const float *table = (const float *)v.scale_grid;
    uint8_t code = ((const uint8_t *)v.scales)[(row / QT_PANEL * v.groups + g) * QT_PANEL + row % QT_PANEL];
    int64_t at = (v.first + row * v.groups + g) / v.nested - v.first / v.nested;
    return __fadd_rn(__fmul_rn(table[code], table[256 + at]), v.offset);
}
__device__ static inline float scale_of(const View &v, int64_t row, int64_t g) {
    if (v.nested) return nested_scale(v, row, g);
    if (v.scale_bits) return two_level(v, v.scales, v.scale_grid, v.scale_bits, row, g);
    return real_at(v.scales, v.scale_type, (row / QT_PANEL * v.groups + g) * QT_PANEL + row % QT_PANEL);
}
__device__ static inline float zero_of(const View &v, int64_t row, int64_t g) {
    int64_t i = (row / QT_PANEL * v.groups + g) * QT_PANEL + row % QT_PANEL;
    if (v.zero_bits) return two_level(v, v.zeros, v.zero_grid, v.zero_bits, row, g);
    if (v.zero_kind == ZERO_SYM) return (float)(1 << (v.bits - 1));
    if (v.zero_kind == ZERO_FLOAT) return real_at(v.zeros, v.scale_type, i);
    const uint8_t *z = (const uint8_t *)v.zeros;
    return (float)(v.bits > 4 ? z[i] : z[i / 2] >> i % 2 * 4 & 15);
}

/* FP8 的值；与 qtensor_codes.c 的 f8_to_f32 相同（检查点里没有 NaN、Inf：装入时查过）。 */
__device__ static inline float f8_value(int code, bool e5m2) {
    int bits = e5m2 ? 2 : 3, man = code & ((1 << bits) - 1), exp = (code & 127) >> bits;
    float v = ldexpf((float)(exp ? man + (1 << bits) : man), (exp ? exp : 1) - (e5m2 ? 15 : 7) - bits);
    return code & 128 ? -v : v;
}
__device__ static inline float code_value(const View &v, int code) {
    return v.codes == CODE_TABLE ? v.table[code] : f8_value(code, v.codes == CODE_F8_E5M2);
}
/* 一行里一组 8 列的位面字：第 i 个位面至多 2 个字（8 位的）。 */
template <int BITS> struct Octet {
    enum { WORDS = BITS == 8 ? 2 : ((BITS >> 2 & 1) + (BITS >> 1 & 1) + (BITS & 1)) };
    uint32_t w[WORDS];
};
template <int BITS> __device__ static inline Octet<BITS> load_octet(const uint32_t *block, int row, int t) {
    Octet<BITS> o;
    if (BITS == 8) {
        o.w[0] = block[2 * t * QT_PANEL + row];
        o.w[BITS == 8] = block[(2 * t + 1) * QT_PANEL + row];
        return o;
    }
    int at = 0, first = 0;
    if (BITS & 4) o.w[at++] = block[(first + t) * QT_PANEL + row], first += 4;
    if (BITS & 2) o.w[at++] = block[(first + t / 2) * QT_PANEL + row] >> (t & 1) * 8, first += 2;
    if (BITS & 1) o.w[at++] = block[first * QT_PANEL + row] >> t * 4;
    return o;
}
/* 一组里第 k 列的编码。 */
template <int BITS> __device__ static inline int octet_code(const Octet<BITS> &o, int k) {
    if (BITS == 8) return o.w[k / 4] >> k % 4 * 8 & 255;
    int at = 0, first = 0, code = 0, half = k % 2 * 16, i = k / 2;
    if (BITS & 4) code = o.w[at++] >> (half + 4 * i) & 15, first = 4;
    if (BITS & 2) code |= (o.w[at++] >> (half + 2 * i) & 3) << first, first += 2;
    if (BITS & 1) code |= (o.w[at++] >> (half + i) & 1) << first;
    return code;
}

/* W[row0:row0+rows]（存放的列序）→ 行主序 bf16，行距 ld，行尾补零。 */
bool cuda_expand_bf16(Backend *b, __nv_bfloat16 *dst, int64_t ld, const QTensor *w, int64_t row0, int64_t rows);
/* 同上，f32，行距 cols；original 为真是原来的列序。 */
bool cuda_expand_f32(Backend *b, float *dst, const QTensor *w, int64_t row0, int64_t rows, bool original);

/* 输出存成同一种样子。 */
static inline bool same_form(const LinearOut *a, const LinearOut *b) {
    return a->opaque == b->opaque && a->half == b->half;
}

enum { GEMV_MAX_ROWS = 32 };
/* 这个权重、这么多行归不归 cuda_gemv。 */
bool gemv_accepts(const QTensor *w, int64_t n);
/* 输入化为 bf16 (n, ld)，按 perm 排好，行尾补零；在 SLOT_X，或 in->x 本来就是。失败返回 NULL。 */
const __nv_bfloat16 *cuda_input_bf16(Backend *b, const LinearIn *in, int64_t n, int64_t cols, int64_t ld, const int32_t *perm);
/* n（<= GEMV_MAX_ROWS）行的各个线性层。gate、up 一起时把 f(gate)·up 以 bf16 写到 out[0].y（CudaBackend.product）。 */
bool cuda_gemv(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n);
/* 只算一个权重的行 [row0, row0+rows)（row0 是 16 的倍数），y(n, rows)。 */
bool cuda_gemv_part(Backend *b, float *y, const QTensor *w, int64_t row0, int64_t rows, const float *x, int64_t n);
#endif
