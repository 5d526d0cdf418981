/* attn_kernels — 注意力块的骨架与 f32 内核
 * flash 式：逐键块算 S = q·k，在线 softmax，O = O·alpha + P·V。核心不变式是 attn_kernels.h 的次序约定：
 * 一行在一块里的可见范围 [lo,hi) 只由它的绝对位置与窗口定，范围之外的键不进入它的任何运算。 */
#include "compute/cpu/elem_kernels.h"
#include "compute/cpu/isa/attn_core.h"
#include "compute/cpu/kv_kernels.h"

#define LOWEST (-1e37f) /* 还没有见过键时的最大值；有限，使 2^(LOWEST−m) = 0 而不是 NaN */

/* 工作区的切分；rows（展开的 64 行）在最前，打包任务只用它 */
typedef struct Work {
    float *rows, *q, *o, *sum, *max, *kv, *s, *far_s;
    float alpha[ATTN_ROWS];
} Work;

/* 一次 attn_run 中不变的量 */
typedef struct Run {
    const AttnTile *t;
    const AttnCore *core;
    Work w;
    const float *k[2], *v[2]; /* 当前的键块：近的、远的 */
    int64_t dq, dv;
    bool far;
    float log2_scale; /* scale·log2(e) */
} Run;

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static int64_t max64(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* 各部分的 float 数都取 16 的倍数，保持 64 字节对齐 */
static size_t carve(Work *w, float *base, int64_t rows, int64_t dim, bool far) {
    int64_t dq = attn_q_floats(dim), dv = attn_v_floats(dim), at = 0, s = ATTN_ROWS * ATTN_BLOCK;
    float **part[] = {&w->rows, &w->q, &w->o, &w->sum, &w->max, &w->kv, &w->s, &w->far_s};
    int64_t size[] = {ATTN_BLOCK * dv, rows * dq, rows * dv, rows * 16, rows,
                      ATTN_BLOCK * (dq + dv) * (far ? 2 : 1), s, far ? s : 0};
    for (size_t i = 0; i < sizeof size / sizeof size[0]; i++) {
        if (base) *part[i] = base + at;
        at += (size[i] + 15) / 16 * 16;
    }
    return (size_t)at * sizeof(float);
}
static size_t work_bytes(int64_t rows, int64_t dim, bool far) {
    Work w;
    return carve(&w, NULL, rows, dim, far);
}

/* 一行在 base 起的块里的可见范围 */
static void visible(const AttnTile *t, int64_t row, int64_t base, int *lo, int *hi) {
    int64_t pos = t->first + row / t->group;
    int64_t from = t->window > 0 ? max64(0, pos - t->window + 1) : 0;
    *lo = (int)max64(0, from - base);
    *hi = (int)min64(ATTN_BLOCK, pos + 1 - base);
}

/* s → p = exp(scale·(s − max))（在 [lo,hi) 内；同一向量里范围外的置 0）；返回旧累积的缩放因子 */
VEC_INLINE float softmax_vecs(float *s, float *row_sum, float *row_max, float c, int lo, int hi,
                              const int partial, const int n_vecs) {
    vf x[ATTN_BLOCK / 16], lowest = vf_set1(LOWEST), mx = lowest;
    VEC_UNROLL for (int i = 0; i < n_vecs; i++) {
        x[i] = vf_load(s + 16 * i);
        vf y = partial ? vf_select(vu_range(lo - 16 * i, hi - 16 * i), x[i], lowest) : x[i];
        mx = vf_max(y, mx);
    }
    float alpha = 1.0f, old = *row_max;
    if (vf_any_less(vf_set1(old), mx)) {
        *row_max = vf_hmax(mx);
        float a[16];
        vf_store(a, vf_exp2(vf_set1(old * c - *row_max * c)));
        alpha = a[0];
    }
    vf shift = vf_set1(-*row_max * c), scale = vf_set1(c);
    vf sum = vf_mul(vf_load(row_sum), vf_set1(alpha));
    VEC_UNROLL for (int i = 0; i < n_vecs; i++) {
        vf p = vf_exp2(vf_fma(x[i], scale, shift));
        if (partial) p = vf_select(vu_range(lo - 16 * i, hi - 16 * i), p, vf_zero());
        vf_store(s + 16 * i, p);
        sum = vf_add(sum, p);
    }
    vf_store(row_sum, sum);
    return alpha;
}

static float softmax_row(float *s, float *row_sum, float *row_max, float c, int lo, int hi) {
    if (lo == 0 && hi == ATTN_BLOCK)
        return softmax_vecs(s, row_sum, row_max, c, lo, hi, 0, ATTN_BLOCK / 16);
    int first = lo / 16, n = (hi + 15) / 16 - first;
    s += 16 * first;
    lo -= 16 * first;
    hi -= 16 * first;
    switch (n) {
    case 1: return softmax_vecs(s, row_sum, row_max, c, lo, hi, 1, 1);
    case 2: return softmax_vecs(s, row_sum, row_max, c, lo, hi, 1, 2);
    case 3: return softmax_vecs(s, row_sum, row_max, c, lo, hi, 1, 3);
    default: return softmax_vecs(s, row_sum, row_max, c, lo, hi, 1, 4);
    }
}

/* q·k：界在块首尾之外的只算一份；否则两份都算，各行取界之前的远的一份 */
static void score_rows(Run *run, const float *q, int rows, const int *lo, const int *hi,
                       const int *mid) {
    Work *w = &run->w;
    const float *near = run->k[0], *far = run->k[1];
    int64_t dim = run->t->dim;
    int min_lo = ATTN_BLOCK, max_hi = 0, min_mid = ATTN_BLOCK, max_mid = 0;
    for (int r = 0; r < rows; r++) {
        if (lo[r] < min_lo) min_lo = lo[r];
        if (hi[r] > max_hi) max_hi = hi[r];
        int first_near = mid[r] < hi[r] ? mid[r] : ATTN_BLOCK; /* 没有近的 */
        if (first_near < min_mid) min_mid = first_near;
        if (mid[r] > lo[r] && mid[r] > max_mid) max_mid = mid[r];
    }
    if (min_mid < ATTN_BLOCK)
        run->core->qk(w->s, q, near, rows, min_mid / 16, (max_hi + 15) / 16, dim);
    if (max_mid == 0) return;
    float *s = min_mid < ATTN_BLOCK ? w->far_s : w->s;
    run->core->qk(s, q, far, rows, min_lo / 16, (max_mid + 15) / 16, dim);
    for (int r = 0; s == w->far_s && r < rows; r++)
        if (mid[r] > lo[r])
            memcpy(w->s + r * ATTN_BLOCK + lo[r], s + r * ATTN_BLOCK + lo[r],
                   (size_t)(mid[r] - lo[r]) * sizeof *s);
}

/* 一行在块里的界：[lo, 返回值) 读远的 */
static int boundary(const AttnSide *side, const AttnTile *t, int64_t row, int64_t base, int lo,
                    int hi) {
    int64_t end = attn_far_end(side, t->first + row / t->group) - base;
    return (int)max64(lo, min64(hi, end));
}

static const float ONES[8] = {1, 1, 1, 1, 1, 1, 1, 1};

/* 一行的分数：乘 scale、软截断、加偏置（键从 base 起）。此后 softmax 的系数是 1。 */
static void adjust_row(const AttnTile *t, float *s, int64_t row, int64_t base, int lo, int hi) {
    const float *bias = t->bias ? t->bias + row % t->group * t->bias_stride + base : NULL;
    vf scale = vf_set1(t->scale), cap = vf_set1(t->softcap);
    vf inverse = vf_set1(t->softcap > 0 ? 1.0f / t->softcap : 0);
    for (int i = lo / 16 * 16; i < hi; i += 16) {
        vf x = vf_mul(vf_load(s + i), scale);
        if (t->softcap > 0) x = vf_mul(vf_tanh(vf_mul(x, inverse)), cap);
        if (bias) x = vf_add(x, vf_load(bias + i));
        vf_store(s + i, x);
    }
}

/* 一块键上的 rows（<= ATTN_ROWS）行 */
static void step_rows(Run *run, int64_t row, int rows, int64_t base) {
    Work *w = &run->w;
    const AttnTile *t = run->t;
    int lo[ATTN_ROWS], hi[ATTN_ROWS], mid_k[ATTN_ROWS], mid_v[ATTN_ROWS];
    for (int r = 0; r < rows; r++) {
        visible(t, row + r, base, &lo[r], &hi[r]);
        mid_k[r] = run->far ? boundary(t->k, t, row + r, base, lo[r], hi[r]) : lo[r];
        mid_v[r] = run->far ? boundary(t->v, t, row + r, base, lo[r], hi[r]) : lo[r];
    }
    score_rows(run, w->q + row * run->dq, rows, lo, hi, mid_k);
    for (int r = 0; (t->softcap > 0 || t->bias) && r < rows; r++)
        adjust_row(t, w->s + r * ATTN_BLOCK, row + r, base, lo[r], hi[r]);
    for (int r = 0; r < rows; r++)
        w->alpha[r] = softmax_row(w->s + r * ATTN_BLOCK, w->sum + (row + r) * 16,
                                  w->max + row + r, run->log2_scale, lo[r], hi[r]);
    const float *near = run->v[0], *far = run->v[1];
    for (int r = 0, n; r < rows; r += n) { /* 可见范围与界都相同的连续几行一起 */
        for (n = 1; r + n < rows && lo[r + n] == lo[r] && hi[r + n] == hi[r] &&
                    mid_v[r + n] == mid_v[r];)
            n++;
        float *o = w->o + (row + r) * run->dv, *p = w->s + r * ATTN_BLOCK;
        bool split = mid_v[r] > lo[r];
        if (split) run->core->pv(o, run->dv, w->alpha + r, p, far, n, lo[r], mid_v[r]);
        if (mid_v[r] < hi[r])
            run->core->pv(o, run->dv, split ? ONES : w->alpha + r, p, near, n, mid_v[r], hi[r]);
    }
}

/* 位置 [pos, pos+n) 的 f32 行：直接指过去，或展开（并旋转）到 tmp */
static const float *fetch(const AttnTile *t, const AttnSide *side, const KvStore *s, int64_t pos,
                          int64_t n, float *tmp, int64_t *stride) {
    if (s->f.form == KV_DENSE && s->f.dtype == DT_F32 && !side->cos_table) {
        *stride = s->heads * s->dim;
        return (const float *)s->data + (pos - s->first) * *stride + t->kv_head * s->dim;
    }
    *stride = s->vecs * KV_LANES;
    KERNEL_NAME(kv_kernels).expand(s, t->kv_head, pos, n, tmp, *stride);
    void (*turn)(float *, int64_t, const float *, const float *) =
        side->interleaved ? KERNEL_NAME(elem_kernels).rope_pairs : KERNEL_NAME(elem_kernels).rope_head;
    for (int64_t i = 0; side->cos_table && i < n; i++)
        turn(tmp + i * *stride, side->half, side->cos_table + (pos + i) * side->half,
             side->sin_table + (pos + i) * side->half);
    return tmp;
}

/* 打包 base 起的一块中位置在 [from,to) 的键；面板里 from 之前的补零 */
static void pack_keys(const AttnCore *core, const AttnTile *t, const KvStore *s, int64_t base,
                      int64_t from, int64_t to, float *dst, float *tmp) {
    int64_t dq = attn_q_floats(t->dim), stride;
    from = max64(from, base);
    to = min64(to, base + ATTN_BLOCK);
    if (from >= to) return;
    for (int64_t p = (from - base) / 16; base + p * 16 < to; p++) {
        int64_t start = base + p * 16, first = max64(from, start), n = min64(16, to - start);
        const float *rows = fetch(t, t->k, s, first, start + n - first, tmp, &stride);
        if (first > start) {
            float *padded = tmp + 16 * attn_v_floats(t->dim);
            memset(padded, 0, (size_t)(16 * stride) * sizeof *tmp);
            for (int64_t i = first - start; i < n; i++)
                memcpy(padded + i * attn_v_floats(t->dim), rows + (start + i - first) * stride,
                       (size_t)t->dim * sizeof *tmp);
            rows = padded;
            stride = attn_v_floats(t->dim);
        }
        core->pack_k(dst + p * 16 * dq / core->pair, rows, stride, n, t->dim);
    }
}

static void pack_values(const AttnCore *core, const AttnTile *t, const KvStore *s, int64_t base,
                        int64_t from, int64_t to, float *dst, float *tmp) {
    int64_t stride;
    from = max64(from, base);
    to = min64(to, base + ATTN_BLOCK);
    if (from >= to) return;
    const float *rows = fetch(t, t->v, s, from, to - from, tmp, &stride);
    core->pack_v(dst, rows - (from - base) * stride, stride, (int)(from - base), (int)(to - base),
                 t->dim);
}

/* 看得见一块的查询从 seen 起，它们读近的位置的下限（不读近的则为无穷） */
static int64_t near_from(const AttnSide *side, int64_t from, int64_t seen) {
    return side->rule == FAR_ALL ? INT64_MAX : max64(from, attn_far_end(side, seen));
}

/* 打包 base 起的一块中位置 >= from 的键值：近的 k、v，有远的再接远的 k、v；只打包 t 的查询会读的 */
static void pack_range(const AttnCore *core, const AttnTile *t, int64_t base, int64_t from,
                       bool far, float *dst, float *tmp) {
    int64_t k_floats = ATTN_BLOCK * attn_q_floats(t->dim);
    int64_t v_floats = ATTN_BLOCK * attn_v_floats(t->dim), end = t->first + t->n;
    int64_t seen = max64(t->first, base); /* 看得见这一块的第一个查询 */
    pack_keys(core, t, t->k->near, base, near_from(t->k, from, seen), end, dst, tmp);
    pack_values(core, t, t->v->near, base, near_from(t->v, from, seen), end,
                dst + k_floats, tmp);
    if (!far) return;
    dst += k_floats + v_floats;
    int64_t k_end = attn_far_end(t->k, end - 1), v_end = attn_far_end(t->v, end - 1);
    if (k_end > 0) pack_keys(core, t, t->k->far, base, from, k_end, dst, tmp);
    if (v_end > 0) pack_values(core, t, t->v->far, base, from, v_end, dst + k_floats, tmp);
}
static bool has_far(const AttnTile *t) {
    return t->k->rule != FAR_NONE || t->v->rule != FAR_NONE;
}
static void pack(const AttnCore *core, const AttnTile *t, int64_t block, float *dst, void *work) {
    pack_range(core, t, block * ATTN_BLOCK, 0, has_far(t), dst, work);
}
static int64_t packed_floats(int64_t dim, bool far) {
    return ATTN_BLOCK * (attn_q_floats(dim) + attn_v_floats(dim)) * (far ? 2 : 1);
}

/* base 起的一块的键值在哪里：已排好的、已打包的，或现在打包。 */
static void take_block(Run *run, int64_t base, int64_t from) {
    const AttnTile *t = run->t;
    if (t->k->near->f.form == KV_TILES) {
        const KvStore *s[2] = {t->k->near, t->v->near};
        run->k[0] = (const float *)s[0]->data + kvstore_tile_block(s[0], t->kv_head, base) / 2;
        run->v[0] = (const float *)s[1]->data + kvstore_tile_block(s[1], t->kv_head, base) / 2;
        return;
    }
    if (!t->packed) pack_range(run->core, t, base, from, run->far, run->w.kv, run->w.rows);
    const float *kv = t->packed ? t->packed + base / ATTN_BLOCK * packed_floats(t->dim, run->far)
                                : run->w.kv;
    for (int i = 0; i < 2; i++, kv += ATTN_BLOCK * (run->dq + run->dv)) {
        run->k[i] = kv;
        run->v[i] = kv + ATTN_BLOCK * run->dq;
    }
}

static void start_rows(Run *run, int64_t rows) {
    const AttnTile *t = run->t;
    Work *w = &run->w;
    for (int64_t r = 0; r < rows; r++) {
        const float *q = t->q + r / t->group * t->q_stride + r % t->group * t->dim;
        run->core->pack_q(w->q + r * run->dq, q, t->dim);
        w->max[r] = LOWEST;
    }
    memset(w->sum, 0, (size_t)rows * 16 * sizeof(float));
    memset(w->o, 0, (size_t)(rows * run->dv) * sizeof(float));
}

static void finish_rows(const Run *run, int64_t rows) {
    const AttnTile *t = run->t;
    for (int64_t r = 0; r < rows; r++) {
        float *out = t->out + r / t->group * t->q_stride + r % t->group * t->dim;
        vf sum = vf_set1(vf_sum(vf_load(run->w.sum + r * 16)));
        for (int64_t d = 0; d < t->dim; d += 16)
            vf_store_n(out + d, vf_div(vf_load(run->w.o + r * run->dv + d), sum), t->dim - d);
    }
}

static void tile(const AttnCore *core, const AttnTile *t, void *work) {
    Run run = {.t = t, .core = core, .dq = attn_q_floats(t->dim), .dv = attn_v_floats(t->dim),
               .log2_scale = (t->softcap > 0 || t->bias ? 1.0f : t->scale) * 1.44269504f, .far = has_far(t)};
    int64_t rows = t->n * t->group, end = t->first + t->n;
    carve(&run.w, work, rows, t->dim, run.far);
    start_rows(&run, rows);
    int64_t from = t->window > 0 ? max64(0, t->first - t->window + 1) : 0;
    for (int64_t base = from / ATTN_BLOCK * ATTN_BLOCK; base < end; base += ATTN_BLOCK) {
        take_block(&run, base, from);
        int64_t i0 = max64(0, base - t->first), i1 = t->n; /* 看得见这一块的查询 */
        if (t->window > 0) i1 = min64(i1, base + ATTN_BLOCK - 1 + t->window - t->first);
        for (int64_t r = i0 * t->group; r < i1 * t->group; r += ATTN_ROWS)
            step_rows(&run, r, (int)min64(ATTN_ROWS, i1 * t->group - r), base);
    }
    finish_rows(&run, rows);
}

static void pack_q_f32(float *dst, const float *q, int64_t dim) {
    memcpy(dst, q, (size_t)dim * sizeof(float));
}

static void pack_k_f32(float *dst, const float *k, int64_t stride, int64_t n_keys, int64_t dim) {
#if defined(VEC_AVX512)
    for (int64_t d = 0; d < dim; d += 16) {
        __m512i x[16];
        __mmask16 m = attn_mask(dim - d);
        VEC_UNROLL for (int j = 0; j < 16; j++)
            x[j] = j < n_keys ? _mm512_maskz_loadu_epi32(m, k + j * stride + d)
                              : _mm512_setzero_si512();
        attn_transpose(x);
        VEC_UNROLL for (int c = 0; c < 16; c++)
            if (d + c < dim) _mm512_storeu_si512(dst + (d + c) * 16, x[c]);
    }
#else
    for (int64_t j = 0; j < 16; j++)
        for (int64_t d = 0; d < dim; d++) dst[d * 16 + j] = j < n_keys ? k[j * stride + d] : 0;
#endif
}

static void pack_v_f32(float *dst, const float *v, int64_t stride, int lo, int hi, int64_t dim) {
    int64_t dv = attn_v_floats(dim);
    for (int j = lo; j < hi; j++)
        for (int64_t d = 0; d < dim; d += 16)
            vf_store(dst + j * dv + d, vf_load_n(v + j * stride + d, dim - d));
}

VEC_INLINE void qk_tile(const int rows, const int vecs, float *s, const float *q, int64_t dq,
                        const float *k, int64_t dim) {
    vf acc[ATTN_ROWS][ATTN_VECS], kv[ATTN_VECS];
    VEC_UNROLL for (int r = 0; r < rows; r++)
        VEC_UNROLL for (int p = 0; p < vecs; p++) acc[r][p] = vf_zero();
    for (int64_t d = 0; d < dim; d++) {
        VEC_UNROLL for (int p = 0; p < vecs; p++) kv[p] = vf_load(k + (p * dq + d) * 16);
        VEC_UNROLL for (int r = 0; r < rows; r++) {
            vf x = vf_set1(q[r * dq + d]);
            VEC_UNROLL for (int p = 0; p < vecs; p++) acc[r][p] = vf_fma(x, kv[p], acc[r][p]);
        }
    }
    VEC_UNROLL for (int r = 0; r < rows; r++)
        VEC_UNROLL for (int p = 0; p < vecs; p++) vf_store(s + r * ATTN_BLOCK + p * 16, acc[r][p]);
}

static void qk_f32(float *s, const float *q, const float *k, int rows, int p0, int p1,
                   int64_t dim) {
    int64_t dq = attn_q_floats(dim);
    for (int p = p0, n; p < p1; p += n) {
        n = attn_step(p1 - p);
        ATTN_DISPATCH(qk_tile, rows, n, s + p * 16, q, dq, k + p * 16 * dq, dim)
    }
}

VEC_INLINE void pv_tile(const int rows, const int vecs, float *o, int64_t dv, const float *alpha,
                        const float *p, const float *v, int lo, int hi) {
    vf acc[ATTN_ROWS][ATTN_VECS], x[ATTN_VECS];
    VEC_UNROLL for (int r = 0; r < rows; r++)
        VEC_UNROLL for (int i = 0; i < vecs; i++)
            acc[r][i] = vf_mul(vf_load(o + r * dv + i * 16), vf_set1(alpha[r]));
    for (int64_t j = lo; j < hi; j++) {
        VEC_UNROLL for (int i = 0; i < vecs; i++) x[i] = vf_load(v + j * dv + i * 16);
        VEC_UNROLL for (int r = 0; r < rows; r++) {
            vf w = vf_set1(p[r * ATTN_BLOCK + j]);
            VEC_UNROLL for (int i = 0; i < vecs; i++) acc[r][i] = vf_fma(w, x[i], acc[r][i]);
        }
    }
    VEC_UNROLL for (int r = 0; r < rows; r++)
        VEC_UNROLL for (int i = 0; i < vecs; i++) vf_store(o + r * dv + i * 16, acc[r][i]);
}

static void pv_f32(float *o, int64_t dv, const float *alpha, const float *p, const float *v,
                   int rows, int lo, int hi) {
    for (int64_t d = 0, n; d < dv; d += 16 * n) {
        n = attn_step((dv - d) / 16);
        ATTN_DISPATCH(pv_tile, rows, n, o + d, dv, alpha, p, v + d, lo, hi)
    }
}

static const AttnCore CORE_F32 = {1, pack_q_f32, pack_k_f32, pack_v_f32, qk_f32, pv_f32};

const AttnKernels KERNEL_NAME(attn_kernels) = {
    .f32 = &CORE_F32,
#if defined(KERNEL_ISA_avx512_bf16)
    .bf16 = &KERNEL_NAME(attn_core_bf16),
#endif
    .work_bytes = work_bytes,
    .tile = tile,
    .packed_floats = packed_floats,
    .pack = pack,
};
