/* staged — 让算子测试原样跑在 CUDA 上：主机指针的外壳
 * 测试给的都是主机内存；外壳把每个输入复制到显存里恰好那么大的一块、输出先填满 NaN，调 CUDA 的算子，再把输出复制
 * 回来。所以越界由 compute-sanitizer 报出，漏写的元素是 NaN。稠密权重在两边的布局不同，经 pack_dense、dequantize 转换。 */
#include "tests/ops/staged.h"

#include <stdlib.h>
#include <string.h>

#include "compute/ops.h"
#include "tests/ops/staged_parts.h"

/* 显卡只打开一次（每种精度一个），各测试反复打开的是外壳。 */
static Backend opened[2];


static void *device_alloc(Backend *cuda, size_t bytes) {
    void *p = cuda->memory->alloc(cuda->memory, bytes ? bytes : 1);
    CHECK(p);
    return p;
}

static void fill(Backend *cuda, void *dev, int byte, size_t bytes) {
    char *host = malloc(bytes ? bytes : 1);
    CHECK(host);
    memset(host, byte, bytes);
    cuda->ops->write(cuda, dev, host, bytes);
    free(host);
}

/* host 的 bytes 字节在显存里的副本；已在某一块里的就用那一块。先登记输入，再登记输出。 */
void *staged_bytes(Backend *b, const void *host, size_t bytes, int mode) {
    Staged *s = staged_of(b);
    char *h = (char *)host;
    if (!h || !bytes) return NULL;
    for (int i = 0; i < s->n; i++) {
        Piece *p = &s->piece[i];
        if (h < p->host || h + bytes > p->host + p->bytes) continue;
        p->mode |= mode;
        return p->dev + (h - p->host);
    }
    CHECK(s->n < MAX_PIECES);
    char *dev = device_alloc(s->gpu, bytes);
    if (mode & IN)
        s->gpu->ops->write(s->gpu, dev, h, bytes);
    else
        fill(s->gpu, dev, 0xFF, bytes);
    s->piece[s->n++] = (Piece){h, dev, bytes, mode};
    return dev;
}
float *staged_floats(Backend *b, const float *host, int64_t n, int mode) {
    return staged_bytes(b, host, (size_t)n * sizeof *host, mode);
}

/* 输出复制回来，全部归还；CUDA 的错误交给外壳。 */
Backend *staged_done(Backend *b) {
    Staged *s = staged_of(b);
    for (int i = 0; i < s->n; i++) {
        Piece *p = &s->piece[i];
        if (p->mode & OUT) s->gpu->ops->read(s->gpu, p->host, p->dev, p->bytes);
        s->gpu->memory->release(s->gpu->memory, p->dev, p->bytes);
    }
    s->n = 0;
    if (b->err.code == ERR_NONE) b->err = s->gpu->err;
    s->gpu->err.code = ERR_NONE;
    return b;
}

/* 权重在显存里的样子。 */
QTensor staged_weight(Backend *b, const QTensor *q, int mode) {
    Staged *s = staged_of(b);
    QTensor out = *q;
    if (q->dense == DT_NONE) {
        QtPart part[QT_PARTS];
        qtensor_parts(&out, part);
        for (int i = 0; i < QT_PARTS; i++) {
            if (!*part[i].data || !part[i].bytes) continue;
            size_t slack = q->two.scale_bits || q->two.zero_bits ? SLACK : 0;
            *part[i].data = staged_bytes(b, *part[i].data, part[i].bytes + slack, mode);
        }
        return out;
    }
    int64_t n = q->rows * q->cols;
    float *w = malloc((size_t)n * sizeof *w);
    CHECK(w);
    for (int64_t i = 0; i < n; i++) w[i] = qtensor_at(q, i / q->cols, i % q->cols);
    out.data = staged_bytes(b, q->data, q->data_bytes, IN);
    out.perm = staged_bytes(b, q->perm, q->perm_bytes, IN);
    float *dw = device_alloc(s->gpu, (size_t)n * sizeof *w);
    s->gpu->ops->write(s->gpu, dw, w, (size_t)n * sizeof *w);
    fill(s->gpu, out.data, 0xFF, q->data_bytes);
    s->gpu->ops->pack_dense(s->gpu, &out, dw);
    s->gpu->memory->release(s->gpu->memory, dw, (size_t)n * sizeof *w);
    free(w);
    return out;
}

static int64_t kv_params(const KvStore *s) {
    if (s->f.form == KV_DENSE) return 0;
    if (s->f.form == KV_LUT) return s->f.per_channel ? 0 : 2 * s->capacity;
    if (!s->f.per_channel) return 2 * s->capacity * s->heads * s->n_groups;
    return (s->capacity + s->f.group - 1) / s->f.group * 2 * s->heads * s->vecs * KV_LANES;
}

static KvStore kv(Backend *b, const KvStore *h, int mode) {
    KvStore s = *h;
    size_t item = kvstore_item(h), width = (size_t)(h->heads * h->dim), cap = (size_t)h->capacity;
    bool dense = h->f.form == KV_DENSE;
    s.data = staged_bytes(b, h->data, cap * (dense ? width * item : (size_t)kvstore_code_words(h) * 2), mode);
    s.params = staged_bytes(b, h->params, (size_t)kv_params(h) * item, mode);
    s.sink_rows = staged_bytes(b, h->sink_rows, (size_t)h->f.sink * width * item, mode);
    s.row_end = staged_bytes(b, h->row_end, h->row_end ? cap * 4 : 0, mode);
    s.columns = staged_bytes(b, h->columns, (size_t)h->cap_outliers * 2, IN);
    s.values = staged_bytes(b, h->values, (size_t)h->cap_outliers * item, IN);
    s.f.lower = staged_floats(b, h->f.lower, (int64_t)width, IN);
    s.f.upper = staged_floats(b, h->f.upper, (int64_t)width, IN);
    s.f.bias = staged_floats(b, h->f.bias, (int64_t)width, IN);
    s.memory = staged_of(b)->gpu->memory;
    return s;
}

/* ---- 内存 ---- */
static void s_read(Backend *b, void *host, const void *src, size_t bytes) {
    const void *d = staged_bytes(b, src, bytes, IN);
    CUDA(read, host, d, bytes);
}
static void s_write(Backend *b, void *dst, const void *host, size_t bytes) {
    void *d = staged_bytes(b, dst, bytes, OUT);
    CUDA(write, d, host, bytes);
}
static void s_copy(Backend *b, void *dst, const void *src, size_t bytes) {
    char *x = dst;
    const char *y = src, *lo = x < y ? x : y, *hi = x < y ? y + bytes : x + bytes;
    if (x < y + bytes && y < x + bytes) staged_bytes(b, lo, (size_t)(hi - lo), BOTH);
    const void *s = staged_bytes(b, src, bytes, IN);
    void *d = staged_bytes(b, dst, bytes, OUT);
    CUDA(copy, d, s, bytes);
}
static void s_copy_2d(Backend *b, void *dst, size_t ds, const void *src, size_t ss, int64_t n, size_t bytes) {
    const void *s = staged_bytes(b, src, (size_t)(n - 1) * ss + bytes, IN);
    void *d = staged_bytes(b, dst, (size_t)(n - 1) * ds + bytes, BOTH);
    CUDA(copy_2d, d, ds, s, ss, n, bytes);
}
static void s_parallel(Backend *b, int64_t n, void (*fn)(void *, int64_t), void *ctx) {
    CUDA(parallel, n, fn, ctx);
}

/* ---- 权重 ---- */
/* 各层的权重、偏置与输出换成显存里的副本。 */
static void stage_outs(Backend *b, LinearOut *to, QTensor *q, const LinearOut *out, int n_out, int64_t n) {
    for (int i = 0; i < n_out; i++) {
        q[i] = staged_weight(b, out[i].w, IN);
        int64_t size = n * out[i].w->rows;
        to[i] = (LinearOut){.y = staged_floats(b, out[i].y, size, out[i].sum ? BOTH : OUT), .w = &q[i],
                            .bias = staged_floats(b, out[i].bias, out[i].w->rows, IN),
                            .sum = staged_floats(b, out[i].sum, size, OUT), .opaque = out[i].opaque, .f = out[i].f,
                            .half = out[i].half};
    }
}
/* 输入的各段。 */
static LinearIn stage_in(Backend *b, const LinearIn *in, int64_t n, int64_t cols) {
    LinearIn to = *in;
    to.x = staged_floats(b, in->x, n * cols, IN), to.up = staged_floats(b, in->up, n * cols, IN);
    to.norm.weight = staged_floats(b, in->norm.weight, in->norm.period * cols, IN);
    to.norm.bias = staged_floats(b, in->norm.bias, in->norm.period * cols, IN);
    to.tmp = staged_floats(b, in->tmp, n * cols, OUT);
    return to;
}
static void s_linear(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n) {
    LinearOut to[LINEAR_OUT_MAX];
    QTensor q[LINEAR_OUT_MAX];
    LinearIn from = stage_in(b, in, n, out[0].w->cols);
    stage_outs(b, to, q, out, n_out, n);
    CUDA(linear, to, n_out, &from, n);
}
static void s_linear_exact(Backend *b, float *y, const float *x, int64_t n, const QTensor *w) {
    QTensor q = staged_weight(b, w, IN);
    x = staged_floats(b, x, n * w->cols, IN), y = staged_floats(b, y, n * w->rows, OUT);
    CUDA(linear_exact, y, x, n, &q);
}
static void s_linear_int8(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n,
                          const ActQuant *act) {
    LinearOut to[LINEAR_OUT_MAX];
    QTensor q[LINEAR_OUT_MAX];
    LinearIn from = stage_in(b, in, n, out[0].w->cols);
    stage_outs(b, to, q, out, n_out, n);
    CUDA(linear_int8, to, n_out, &from, n, act);
}
static void s_linear_rounded(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n,
                             const ActQuant *act) {
    LinearOut to[LINEAR_OUT_MAX];
    QTensor q[LINEAR_OUT_MAX];
    LinearIn from = stage_in(b, in, n, out[0].w->cols);
    stage_outs(b, to, q, out, n_out, n);
    CUDA(linear_rounded, to, n_out, &from, n, act);
}
static void s_round_act(Backend *b, float *x, int64_t n, int64_t d, const ActQuant *act) {
    x = staged_floats(b, x, n * d, BOTH);
    CUDA(round_act, x, n, d, act);
}
static void s_embed(Backend *b, float *y, const QTensor *table, const int32_t *ids, int64_t n) {
    QTensor q = staged_weight(b, table, IN);
    y = staged_floats(b, y, n * table->cols, OUT);
    CUDA(embed, y, &q, ids, n);
}
static void s_dequantize(Backend *b, float *w, const QTensor *q) {
    QTensor d = staged_weight(b, q, IN);
    w = staged_floats(b, w, q->rows * q->cols, OUT);
    CUDA(dequantize, w, &d);
}
static void s_pack_dense(Backend *b, QTensor *q, const float *w) {
    Staged *s = staged_of(b);
    int64_t n = q->rows * q->cols;
    float *back = malloc((size_t)n * sizeof *back);
    CHECK(back);
    QTensor d = *q;
    const float *dw = staged_floats(b, w, n, IN);
    float *dback = staged_floats(b, back, n, OUT);
    d.data = staged_bytes(b, q->data, q->data_bytes, IN);
    s->gpu->ops->pack_dense(s->gpu, &d, dw);
    CUDA(dequantize, dback, &d);
    op_pack_dense(&s->cpu, q, tensor_f32(back, q->rows, q->cols));
    free(back);
}
/* 直接装的：装好的再读回来。 */
static void s_pack_stored(Backend *b, QTensor *q, const void *host, DType stored, bool *finite) {
    Staged *s = staged_of(b);
    int64_t n = q->rows * q->cols;
    float *back = calloc((size_t)n, sizeof *back);
    CHECK(back);
    QTensor d = *q;
    float *dback = staged_floats(b, back, n, OUT);
    d.data = staged_bytes(b, q->data, q->data_bytes, IN);
    fill(s->gpu, d.data, 0xFF, q->data_bytes);
    s->gpu->ops->pack_stored(s->gpu, &d, host, stored, finite);
    CUDA(dequantize, dback, &d);
    op_pack_dense(&s->cpu, q, tensor_f32(back, q->rows, q->cols));
    free(back);
}
static void s_qparams(Backend *b, float *scale, float *zero, const float *w, int64_t rows, int64_t cols,
                      const QSpec *spec) {
    int64_t n = rows * groups_of(spec, cols);
    w = staged_floats(b, w, rows * cols, IN);
    scale = staged_floats(b, scale, n, OUT), zero = staged_floats(b, zero, n, OUT);
    CUDA(qparams, scale, zero, w, rows, cols, spec);
}
static void s_quantize(Backend *b, QTensor *q, const float *w, const float *scale, const float *zero) {
    QTensor d = staged_weight(b, q, BOTH);
    w = staged_floats(b, w, q->rows * q->cols, IN);
    scale = staged_floats(b, scale, q->rows * q->n_groups, IN), zero = staged_floats(b, zero, q->rows * q->n_groups, IN);
    CUDA(quantize, &d, w, scale, zero);
}

/* ---- 前向 ---- */
static void s_norm(Backend *b, float *y, const float *x, const NormSpec *spec, int64_t n, int64_t d) {
    NormSpec s = *spec;
    s.weight = staged_floats(b, s.weight, s.period * d, IN), s.bias = staged_floats(b, s.bias, s.period * d, IN);
    x = staged_floats(b, x, n * d, IN), y = staged_floats(b, y, n * d, OUT);
    CUDA(norm, y, x, &s, n, d);
}
static void s_rope(Backend *b, float *x, int64_t n, int64_t heads, int64_t dim, int64_t half, const float *c,
                   const float *s, int64_t first, bool interleaved) {
    x = staged_floats(b, x, n * heads * dim, BOTH);
    c = staged_floats(b, c, (first + n) * half, IN), s = staged_floats(b, s, (first + n) * half, IN);
    CUDA(rope, x, n, heads, dim, half, c, s, first, interleaved);
}
typedef struct Side {
    KvStore near, far;
    AttnSide side;
} Side;
static void side(Backend *b, Side *d, const AttnSide *h, int64_t positions) {
    d->side = *h;
    d->near = kv(b, h->near, IN);
    d->side.near = &d->near;
    if (h->far) {
        d->far = kv(b, h->far, IN);
        d->side.far = &d->far;
    }
    d->side.cos_table = staged_floats(b, h->cos_table, positions * h->half, IN);
    d->side.sin_table = staged_floats(b, h->sin_table, positions * h->half, IN);
}
static void s_attention(Backend *b, float *out, const float *q, const AttnSide *k, const AttnSide *v, int64_t n,
                        const AttnSpec *spec) {
    Side dk, dv;
    AttnSpec copy = *spec, *s = &copy;
    s->bias = staged_floats(b, s->bias, s->n_heads * s->bias_stride, IN);
    int64_t width = n * s->n_heads * s->head_dim;
    side(b, &dk, k, s->first + n), side(b, &dv, v, s->first + n);
    q = staged_floats(b, q, width, IN), out = staged_floats(b, out, width, OUT);
    CUDA(attention, out, q, &dk.side, &dv.side, n, s);
}
static void s_kv_write(Backend *b, KvStore *s, const float *x, int64_t n) {
    KvStore d = kv(b, s, BOTH);
    x = staged_floats(b, x, n * s->heads * s->dim, IN);
    CUDA(kv_write, &d, x, n);
    s->length = d.length;
}
static void s_attend_step(Backend *b, const StepJob *job) {
    StepJob j = *job;
    KvStore store[2 * STEP_MAX_ROWS];
    StepRow rows[STEP_MAX_ROWS];
    int64_t wide = j.spec.n_heads * j.spec.head_dim, narrow = j.spec.n_kv_heads * j.spec.head_dim, last = 0;
    for (int64_t i = 0; i < j.n; i++) {
        store[2 * i] = kv(b, job->rows[i].k, BOTH), store[2 * i + 1] = kv(b, job->rows[i].v, BOTH);
        rows[i] = (StepRow){&store[2 * i], &store[2 * i + 1], job->rows[i].pos};
        if (rows[i].pos > last) last = rows[i].pos;
    }
    j.rows = rows;
    j.q = staged_floats(b, j.q, j.n * wide, BOTH), j.k = staged_floats(b, j.k, j.n * narrow, BOTH), j.v = staged_floats(b, j.v, j.n * narrow, IN);
    j.cos_table = staged_floats(b, j.cos_table, (last + 1) * j.half, IN), j.sin_table = staged_floats(b, j.sin_table, (last + 1) * j.half, IN);
    j.spec.bias = staged_floats(b, j.spec.bias, j.spec.n_heads * j.spec.bias_stride, IN);
    j.out = staged_bytes(b, j.out, (size_t)(j.n * wide) * (j.half_out ? 2 : 4), OUT);
    CUDA(attend_step, &j);
    for (int64_t i = 0; i < j.n; i++) job->rows[i].k->length++, job->rows[i].v->length++;
}
static bool s_prefill_accepts(Backend *b, const PrefillJob *job, int64_t rows) {
    Backend *cuda = staged_of(b)->gpu;
    return cuda->ops->prefill_accepts(cuda, job, rows);
}
static void s_attend_prefill(Backend *b, const PrefillJob *job) {
    PrefillJob j = *job;
    int64_t wide = j.spec.n_heads * j.spec.head_dim, narrow = j.spec.n_kv_heads * j.spec.head_dim, rows = 0, most = 0;
    for (int64_t i = 0; i < j.n; i++) {
        const PrefillSegment *s = &j.segments[i];
        rows = s->row0 + s->n > rows ? s->row0 + s->n : rows, most = s->n > most ? s->n : most;
    }
    j.q = staged_floats(b, j.q, rows * wide, BOTH);
    j.k = staged_floats(b, j.k, rows * narrow, BOTH), j.v = staged_floats(b, j.v, rows * narrow, BOTH);
    j.cos_table = staged_floats(b, j.cos_table, most * j.half, IN);
    j.sin_table = staged_floats(b, j.sin_table, most * j.half, IN);
    j.spec.bias = staged_floats(b, j.spec.bias, j.spec.n_heads * j.spec.bias_stride, IN);
    j.out = staged_floats(b, j.out, rows * wide, OUT);
    CUDA(attend_prefill, &j);
}
static void s_kv_quantize(Backend *b, KvStore *s, const KvStore *near, int64_t pos, int64_t n) {
    Staged *st = staged_of(b);
    Backend *cuda = st->gpu;
    KvStore dn = kv(b, near, IN), d = kv(b, s, BOTH), before = d;
    cuda->ops->kv_quantize(cuda, &d, &dn, pos, n);
    s->length = d.length, s->n_outliers = d.n_outliers;
    if (d.n_outliers > 0) {
        CHECK(kvstore_reserve(s, d.n_outliers));
        cuda->ops->read(cuda, s->columns, d.columns, (size_t)d.n_outliers * 2);
        cuda->ops->read(cuda, s->values, d.values, (size_t)d.n_outliers * kvstore_item(s));
    }
    if (d.columns != before.columns) { /* 长大过：旧的已由后端归还，新的在这里归还 */
        for (int i = 0; i < st->n;)
            if (st->piece[i].dev == (char *)before.columns || st->piece[i].dev == (char *)before.values)
                st->piece[i] = st->piece[--st->n];
            else
                i++;
        cuda->memory->release(cuda->memory, d.columns, (size_t)d.cap_outliers * 2);
        cuda->memory->release(cuda->memory, d.values, (size_t)d.cap_outliers * kvstore_item(s));
    }
    staged_done(b);
}
static void s_activate(Backend *b, float *y, const float *g, const float *u, int64_t n, Activation f) {
    g = staged_floats(b, g, n, IN), u = staged_floats(b, u, n, IN), y = staged_floats(b, y, n, OUT);
    CUDA(activate, y, g, u, n, f);
}
static void s_multiply(Backend *b, float *y, const float *x, float a, int64_t n) {
    x = staged_floats(b, x, n, IN), y = staged_floats(b, y, n, OUT);
    CUDA(multiply, y, x, a, n);
}
static void s_gather_rows(Backend *b, float *dst, const float *src, const int32_t *index, int64_t n, int64_t d) {
    int64_t rows = 0;
    for (int64_t i = 0; i < n; i++) rows = index[i] >= rows ? index[i] + 1 : rows;
    src = staged_floats(b, src, rows * d, IN), dst = staged_floats(b, dst, n * d, OUT);
    CUDA(gather_rows, dst, src, index, n, d);
}
static void s_scatter_rows(Backend *b, float *dst, const float *src, const int32_t *index, const float *weight,
                           int64_t n, int64_t d) {
    int64_t rows = 0;
    for (int64_t i = 0; i < n; i++) rows = index[i] >= rows ? index[i] + 1 : rows;
    src = staged_floats(b, src, n * d, IN), dst = staged_floats(b, dst, rows * d, BOTH);
    CUDA(scatter_rows, dst, src, index, weight, n, d);
}
static void s_add(Backend *b, float *y, const float *x, int64_t n) {
    x = staged_floats(b, x, n, IN), y = staged_floats(b, y, n, BOTH);
    CUDA(add, y, x, n);
}
static void s_score(Backend *b, const ScoreJob *job) {
    ScoreJob j = *job;
    QTensor head = staged_weight(b, job->head, IN), ref = {0};
    j.head = &head;
    j.x = staged_floats(b, job->x, job->n * job->head->cols, IN);
    if (job->ref_x) {
        ref = staged_weight(b, job->ref_head, IN);
        j.ref_head = &ref;
        j.ref_x = staged_floats(b, job->ref_x, job->n * job->ref_head->cols, IN);
    }
    CUDA(score, &j);
}

/* ---- 求解与统计 ---- */
static void s_gram(Backend *b, float *g, const float *x, int64_t n, int64_t d) {
    x = staged_floats(b, x, n * d, IN), g = staged_floats(b, g, d * d, BOTH);
    CUDA(gram, g, x, n, d);
}
static void s_feedback(Backend *b, const FeedbackJob *job) {
    FeedbackJob j = *job;
    j.u = staged_floats(b, job->u, job->cols * job->cols, IN);
    j.scale = staged_floats(b, job->scale, job->rows * job->n_groups, IN);
    j.zero = staged_floats(b, job->zero, job->rows * job->n_groups, IN);
    j.w = staged_floats(b, job->w, job->rows * job->cols, BOTH);
    j.err = staged_floats(b, job->err, job->rows * (job->i2 - job->i1), OUT);
    CUDA(feedback, &j);
}
static void s_symmetrize(Backend *b, float *g, int64_t d) {
    g = staged_floats(b, g, d * d, BOTH);
    CUDA(symmetrize, g, d);
}
static void s_column_stats(Backend *b, float *max, double *sum, const float *x, int64_t n, int64_t cols) {
    x = staged_floats(b, x, n * cols, IN);
    max = staged_floats(b, max, cols, BOTH), sum = staged_bytes(b, sum, (size_t)cols * sizeof *sum, BOTH);
    CUDA(column_stats, max, sum, x, n, cols);
}
static void s_column_sum(Backend *b, float *y, const float *x, int64_t n, int64_t cols) {
    x = staged_floats(b, x, n * cols, IN), y = staged_floats(b, y, cols, OUT);
    CUDA(column_sum, y, x, n, cols);
}
static void s_row_errors(Backend *b, double *out, const float *x, const float *y, int64_t ldy, int64_t rows,
                         int64_t cols) {
    x = staged_floats(b, x, rows * cols, IN), y = staged_floats(b, y, (rows - 1) * ldy + cols, IN);
    CUDA(row_errors, out, x, y, ldy, rows, cols);
}
static void s_divide(Backend *b, float *y, const float *x, int64_t ldx, const float *s, int64_t n, int64_t rows,
                     int64_t cols) {
    x = staged_floats(b, x, (rows - 1) * ldx + cols, IN), s = staged_floats(b, s, n, IN);
    y = staged_floats(b, y, rows * cols, OUT);
    CUDA(divide, y, x, ldx, s, n, rows, cols);
}
static void s_gather_columns(Backend *b, float *dst, const float *src, const int32_t *index, int64_t rows, int64_t n) {
    src = staged_floats(b, src, rows * n, IN), dst = staged_floats(b, dst, rows * n, OUT);
    CUDA(gather_columns, dst, src, index, rows, n);
}
static void s_update_rest(Backend *b, float *w, const float *err, const float *u, int64_t rows, int64_t n,
                          int64_t i1, int64_t i2) {
    err = staged_floats(b, err, rows * (i2 - i1), IN), u = staged_floats(b, u, n * n, IN), w = staged_floats(b, w, rows * n, BOTH);
    CUDA(update_rest, w, err, u, rows, n, i1, i2);
}
static bool s_all_finite(Backend *b, const float *x, int64_t n) {
    Backend *cuda = staged_of(b)->gpu;
    bool yes = cuda->ops->all_finite(cuda, staged_floats(b, x, n, IN), n);
    staged_done(b);
    return yes;
}
static void s_decode(Backend *b, float *dst, const void *host, DType t, DType rounded, int64_t n) {
    dst = staged_floats(b, dst, n, OUT);
    CUDA(decode, dst, host, t, rounded, n);
}
static void s_watch(Backend *b, const float *x, int64_t n, int tag) {
    x = staged_floats(b, x, n, IN);
    CUDA(watch, x, n, tag);
}
static int s_watched(Backend *b) {
    Backend *cuda = staged_of(b)->gpu;
    int tag = cuda->ops->watched(cuda);
    staged_done(b);
    return tag;
}
static bool s_factor(Backend *b, const FactorJob *job) {
    Backend *cuda = staged_of(b)->gpu;
    FactorJob j = *job;
    j.gram = staged_floats(b, j.gram, j.n * j.n, IN), j.u = staged_floats(b, j.u, j.n * j.n, OUT);
    bool ok = cuda->ops->factor(cuda, &j);
    staged_done(b);
    return ok;
}
static void s_adamw(Backend *b, const AdamStep *step) {
    AdamStep s = *step;
    s.grad = staged_floats(b, s.grad, s.n, IN), s.param = staged_floats(b, s.param, s.n, BOTH);
    s.m = staged_floats(b, s.m, s.n, BOTH), s.v = staged_floats(b, s.v, s.n, BOTH);
    CUDA(adamw, &s);
}
static double s_mse_grad(Backend *b, float *d, const float *x, const float *y, float scale, int64_t rows,
                         int64_t cols) {
    Backend *cuda = staged_of(b)->gpu;
    x = staged_floats(b, x, rows * cols, IN), y = staged_floats(b, y, rows * cols, IN), d = staged_floats(b, d, rows * cols, OUT);
    double sum = cuda->ops->mse_grad(cuda, d, x, y, scale, rows, cols);
    staged_done(b);
    return sum;
}

#define OP(name) .name = s_##name
static const BackendOps STAGED_OPS = {
    OP(read), OP(write), OP(copy), OP(copy_2d), OP(parallel), OP(linear), OP(linear_exact), OP(linear_int8),
    OP(linear_rounded),
    OP(round_act), OP(embed), OP(dequantize), OP(pack_dense), OP(pack_stored), OP(qparams), OP(quantize), OP(norm), OP(rope),
    OP(attention), OP(kv_write), OP(attend_step), OP(attend_prefill), OP(prefill_accepts), OP(kv_quantize), OP(activate), OP(add), OP(multiply), OP(gather_rows),
    OP(scatter_rows), OP(score), OP(gram), OP(feedback),
    OP(symmetrize), OP(column_stats), OP(column_sum), OP(row_errors), OP(divide), OP(gather_columns),
    OP(update_rest), OP(all_finite), OP(decode), OP(watch), OP(watched), OP(factor), OP(adamw), OP(mse_grad), OP(matmul), OP(rmsnorm_grad), OP(silu_mul_grad),
    OP(attention_grad), OP(round_act_grad), OP(score_grad), OP(group_range), OP(group_range_grad), OP(scale),
    OP(scale_grad), OP(fake_quant), OP(fake_quant_grad), OP(divide_rows), OP(quadratic), OP(clip), OP(clamp_grid),
    OP(clamp_grid_grad), OP(fake_pack), OP(linear_grad), OP(sparse), OP(column_variance), OP(count_outliers), OP(split_outliers)};

static void staged_close(Backend *b) {
    Staged *s = staged_of(b);
    backend_close(&s->cpu);
    free(s);
}

bool ref_on_cuda(void) {
    const char *name = getenv("PTQ_TEST_BACKEND");
    return name && strcmp(name, "cuda") == 0;
}

bool ref_backend(Backend *b, int n_threads, ComputeMode compute, const char *isa, Err *e) {
    if (!ref_on_cuda()) return backend_open_cpu(b, n_threads, compute, isa, e);
    *b = (Backend){0};
    bool bf16 = compute == COMPUTE_BF16;
    if (isa && strcmp(isa, bf16 ? "avx512_bf16" : "generic") != 0)
        return err_set(e, ERR_UNSUPPORTED, "CUDA 只代替 generic（f32）与 avx512_bf16（bf16）");
    Staged *s = calloc(1, sizeof *s);
    CHECK(s);
    s->gpu = &opened[bf16];
    if ((!s->gpu->ops && !backend_open_cuda(s->gpu, 1, compute, e)) ||
        !backend_open_cpu(&s->cpu, 1, COMPUTE_F32, NULL, e)) {
        free(s);
        return false;
    }
    *b = (Backend){.ops = &STAGED_OPS, .name = "cuda", .isa = s->gpu->isa, .compute = compute, .n_threads = n_threads,
                   .memory = allocator_default(), .impl = s, .close = staged_close, .half_step = s->gpu->half_step};
    return true;
}
