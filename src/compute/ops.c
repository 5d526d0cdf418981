/* ops — 算子的唯一入口：查粘滞错误与形状，然后派发
 * 形状不符是程序缺陷（CHECK 中止）；数值与设备错误在 Backend.err。第 0 维是行数，其余各维乘起来是行宽。 */
#include "compute/ops.h"

#include "compute/dispatch.h"

static void check_weight(const QTensor *w) {
    CHECK(w && w->data && w->rows >= 1 && w->cols >= 1);
    CHECK(w->dense != DT_NONE || (w->scales && w->spec.group_size >= 1 && w->n_groups >= 1));
}

static LinearOut linear_out(Tensor y, Tensor x, const QTensor *w, Tensor bias) {
    check_2d(y, x.shape[0], w->rows);
    if (bias.data) CHECK(bias.dtype == DT_F32 && n_elements(bias) == w->rows);
    return (LinearOut){.y = y.data, .w = w, .bias = bias.data};
}

void op_linear(Backend *b, Tensor y, Tensor x, const QTensor *w, Tensor bias) {
    op_linear_many(b, (LinearOut[]){linear_out(y, x, w, bias)}, 1, x);
}

static void check_outs(const LinearOut *out, int n_out, const LinearIn *in) {
    CHECK(n_out >= 1 && n_out <= LINEAR_OUT_MAX && in->x && (in->kind == IN_PLAIN || in->tmp));
    CHECK(in->kind != IN_NORM || (in->norm.period >= 1 && (in->norm.center || !in->norm.bias)));
    for (int i = 0; i < n_out; i++) {
        check_weight(out[i].w);
        CHECK(out[i].w->cols == out[0].w->cols && out[i].y && !(out[i].sum && (out[i].opaque || out[i].half)));
        CHECK(!(out[i].opaque && out[i].half) && !(in->half && in->kind != IN_PLAIN));
    }
}

static LinearIn plain_input(const LinearOut *out, int n_out, Tensor x) {
    CHECK(x.n_dims >= 1 && n_out >= 1);
    check_2d(x, x.shape[0], out[0].w->cols);
    return (LinearIn){.x = x.data};
}

void op_linear_many(Backend *b, const LinearOut *out, int n_out, Tensor x) {
    LinearIn in = plain_input(out, n_out, x);
    op_linear_from(b, out, n_out, &in, x.shape[0]);
}

void op_linear_from(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n) {
    if (failed(b) || n == 0) return;
    check_outs(out, n_out, in);
    CALL(b, linear, out, n_out, in, n);
}

static void check_act(const ActQuant *a) {
    CHECK(a && a->kind != ACT_NONE && a->bits >= 2 && a->bits <= 8);
    CHECK(a->kind != ACT_STATIC || a->scale > 0);
    CHECK(a->group == 0 || (a->group > 0 && a->kind == ACT_TOKEN && a->form != ACT_INT));
    CHECK(a->form != ACT_MIXED || (a->kind == ACT_TENSOR && a->threshold >= 0));
}

bool linear_int8_accepts(const QTensor *w) {
    return w->dense == DT_NONE && w->spec.codes == CODE_INT && w->spec.bits == 8 && w->n_groups == 1 &&
           w->spec.zero != ZERO_FLOAT && !w->two.scale_bits && !w->outliers.start &&
           w->cols < 131072; /* |Σ| < 131072·2^14 = 2^31 */
}

void op_linear_int8(Backend *b, Tensor y, Tensor x, const QTensor *w, Tensor bias,
                    const ActQuant *act) {
    op_linear_int8_many(b, (LinearOut[]){linear_out(y, x, w, bias)}, 1, x, act);
}

void op_linear_int8_many(Backend *b, const LinearOut *out, int n_out, Tensor x,
                         const ActQuant *act) {
    LinearIn in = plain_input(out, n_out, x);
    op_linear_int8_from(b, out, n_out, &in, x.shape[0], act);
}

void op_linear_int8_from(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n,
                         const ActQuant *act) {
    check_act(act);
    CHECK(act->form == ACT_INT);
    if (failed(b) || n == 0) return;
    check_outs(out, n_out, in);
    for (int i = 0; i < n_out; i++) CHECK(linear_int8_accepts(out[i].w));
    CALL(b, linear_int8, out, n_out, in, n, act);
}

void op_linear_rounded_from(Backend *b, const LinearOut *out, int n_out, const LinearIn *in, int64_t n,
                            const ActQuant *act) {
    check_act(act);
    if (failed(b) || n == 0) return;
    check_outs(out, n_out, in);
    CHECK(!in->half && !in->opaque && out[0].w->cols % (act->group ? act->group : 1) == 0);
    CALL(b, linear_rounded, out, n_out, in, n, act);
}

void op_round_act(Backend *b, Tensor x, const ActQuant *act) {
    check_act(act);
    check_2d(x, x.shape[0], row_width(x));
    if (failed(b) || n_elements(x) == 0) return;
    int64_t rows = x.shape[0], d = row_width(x);
    if (act->group) {
        CHECK(d % act->group == 0);
        rows *= d / act->group, d = act->group;
    }
    CALL(b, round_act, x.data, rows, d, act);
}

void op_embed(Backend *b, Tensor y, const QTensor *table, const int32_t *ids) {
    check_weight(table);
    check_2d(y, y.shape[0], table->cols);
    if (failed(b) || y.shape[0] == 0) return;
    CHECK(ids);
    for (int64_t i = 0; i < y.shape[0]; i++)
        if (ids[i] < 0 || ids[i] >= table->rows) {
            err_set(&b->err, ERR_FORMAT, "第 %lld 个 token 的 id %d 超出词表（0 到 %lld）",
                    (long long)i, (int)ids[i], (long long)table->rows - 1);
            return;
        }
    CALL(b, embed, y.data, table, ids, y.shape[0]);
}

void op_rmsnorm(Backend *b, Tensor y, Tensor x, Tensor weight, float eps) {
    check_2d(x, x.shape[0], row_width(x));
    check_2d(y, x.shape[0], row_width(x));
    CHECK(weight.dtype == DT_F32 && weight.data && n_elements(weight) == row_width(x));
    if (failed(b) || x.shape[0] == 0) return;
    NormSpec s = {.weight = weight.data, .period = 1, .eps = eps};
    CALL(b, norm, y.data, x.data, &s, x.shape[0], row_width(x));
}

void op_norm(Backend *b, Tensor y, Tensor x, const NormSpec *s) {
    check_2d(x, x.shape[0], row_width(x));
    check_2d(y, x.shape[0], row_width(x));
    CHECK(s && s->period >= 1 && (s->center || !s->bias));
    if (failed(b) || n_elements(x) == 0) return;
    CALL(b, norm, y.data, x.data, s, x.shape[0], row_width(x));
}

static void rotate(Backend *b, Tensor x, Tensor cos_table, Tensor sin_table, int64_t first,
                   bool interleaved) {
    check_f32(x, 3);
    check_f32(cos_table, 2);
    int64_t n = x.shape[0], half = cos_table.shape[1];
    check_2d(sin_table, cos_table.shape[0], half);
    CHECK(2 * half <= x.shape[2] && first >= 0 && first + n <= cos_table.shape[0]);
    if (failed(b) || n == 0) return;
    CALL(b, rope, x.data, n, x.shape[1], x.shape[2], half, cos_table.data, sin_table.data, first,
         interleaved);
}

void op_rope(Backend *b, Tensor x, Tensor cos_table, Tensor sin_table, int64_t first) {
    rotate(b, x, cos_table, sin_table, first, false);
}

void op_rope_pairs(Backend *b, Tensor x, Tensor cos_table, Tensor sin_table, int64_t first) {
    rotate(b, x, cos_table, sin_table, first, true);
}

static void check_side(const AttnSide *side, const AttnSpec *s, int64_t n) {
    CHECK(side->near && side->near->data);
    CHECK(side->near->f.form == KV_DENSE || (side->rule == FAR_NONE && !side->cos_table));
    CHECK(side->near->heads == s->n_kv_heads && side->near->dim == s->head_dim);
    CHECK(side->near->first + side->near->length >= s->first + n || side->rule == FAR_ALL);
    CHECK(side->near->first <= attn_far_end(side, s->first) || s->window > 0);
    CHECK(side->half >= 0 && 2 * side->half <= s->head_dim);
    CHECK(!side->cos_table == !side->sin_table);
    if (side->rule == FAR_NONE) return;
    CHECK(side->far && side->far->data && side->residual >= (side->rule == FAR_STEP));
    CHECK(side->far->heads == s->n_kv_heads && side->far->dim == s->head_dim);
    CHECK(side->far->length >= attn_far_end(side, s->first + n - 1));
}

void op_attention_kv(Backend *b, Tensor out, Tensor q, const AttnSide *k, const AttnSide *v,
                     const AttnSpec *s) {
    check_f32(q, 3);
    CHECK(s && s->n_heads >= 1 && s->n_kv_heads >= 1 && s->n_heads % s->n_kv_heads == 0);
    CHECK(s->head_dim >= 1 && s->first >= 0 && s->window >= 0 && s->softcap >= 0);
    CHECK(!s->bias || (s->bias_stride >= s->first + q.shape[0] && s->bias_stride % ATTN_BIAS_STEP == 0));
    CHECK(q.shape[1] == s->n_heads && q.shape[2] == s->head_dim);
    check_2d(out, q.shape[0], row_width(q));
    if (failed(b) || q.shape[0] == 0) return;
    check_side(k, s, q.shape[0]);
    check_side(v, s, q.shape[0]);
    const KvFormat *kf = &k->near->f, *vf = &v->near->f;
    CHECK(kf->form == vf->form && (kf->form == KV_DENSE || (b->kv_tiles && kf->keys && !vf->keys)));
    CALL(b, attention, out.data, q.data, k, v, q.shape[0], s);
}

void op_attention(Backend *b, Tensor out, Tensor q, Tensor k, Tensor v, const AttnSpec *s) {
    check_f32(k, 3);
    CHECK(s && k.shape[1] == s->n_kv_heads && k.shape[2] == s->head_dim);
    CHECK(q.n_dims == 3 && k.shape[0] == s->first + q.shape[0]);
    check_2d(v, k.shape[0], row_width(k));
    KvStore ks = kvstore_view(k.data, s->n_kv_heads, s->head_dim, 0, k.shape[0]);
    KvStore vs = kvstore_view(v.data, s->n_kv_heads, s->head_dim, 0, k.shape[0]);
    op_attention_kv(b, out, q, &(AttnSide){.near = &ks}, &(AttnSide){.near = &vs}, s);
}

static void check_step_side(const KvStore *s, const StepJob *j, int64_t pos) {
    CHECK((s->f.form == KV_DENSE || s->f.form == KV_TILES) && s->f.dtype == j->rows[0].k->f.dtype);
    CHECK(s->data && s->heads == j->spec.n_kv_heads && s->dim == j->spec.head_dim);
    CHECK(s->first + s->length == pos && s->length < s->capacity);
}

void op_attend_step(Backend *b, const StepJob *j) {
    CHECK(j->n <= STEP_MAX_ROWS && j->spec.n_heads % j->spec.n_kv_heads == 0);
    CHECK(!j->cos_table == !j->sin_table && 2 * j->half <= j->spec.head_dim);
    CHECK(!j->half_out || (b->half_step && j->spec.head_dim <= STEP_HALF_DIM));
    if (failed(b) || j->n == 0) return;
    CHECK(j->q && j->k && j->v && j->out);
    for (int64_t i = 0; i < j->n; i++) {
        check_step_side(j->rows[i].k, j, j->rows[i].pos);
        check_step_side(j->rows[i].v, j, j->rows[i].pos);
    }
    CALL(b, attend_step, j);
}

bool op_prefill_accepts(Backend *b, const PrefillJob *j, int64_t rows) {
    return !failed(b) && b->ops->prefill_accepts(b, j, rows);
}

void op_attend_prefill(Backend *b, const PrefillJob *j) {
    const AttnSpec *s = &j->spec;
    CHECK(s->n_heads >= 1 && s->n_kv_heads >= 1 && s->n_heads % s->n_kv_heads == 0 && s->head_dim >= 1);
    CHECK(!j->cos_table == !j->sin_table && j->half >= 0 && 2 * j->half <= s->head_dim);
    if (failed(b) || j->n == 0) return;
    CHECK(j->q && j->k && j->v && j->out && s->window >= 0);
    for (int64_t i = 0; i < j->n; i++) {
        CHECK(j->segments[i].n >= 1 && j->segments[i].row0 >= 0);
        CHECK(!s->bias || (s->bias_stride >= j->segments[i].n && s->bias_stride % ATTN_BIAS_STEP == 0));
    }
    CHECK(!(j->half_in || j->half_out || j->f16) || b->ops->prefill_accepts(b, j, INT64_MAX));
    CALL(b, attend_prefill, j);
}

void op_kv_write(Backend *b, KvStore *s, Tensor x) {
    CHECK(s && (s->f.form == KV_DENSE || s->f.form == KV_TILES) && x.n_dims >= 1);
    check_2d(x, x.shape[0], s->heads * s->dim);
    CHECK(s->length + x.shape[0] <= s->capacity);
    if (failed(b) || x.shape[0] == 0) return;
    CALL(b, kv_write, s, x.data, x.shape[0]);
}

void op_kv_quantize(Backend *b, KvStore *s, const KvStore *near, int64_t pos, int64_t n) {
    CHECK(s && s->f.form != KV_DENSE && near && near->f.form == KV_DENSE && n >= 0);
    CHECK(near->heads == s->heads && near->dim == s->dim && pos + n <= s->capacity);
    bool group = s->f.form == KV_AFFINE && s->f.per_channel;
    CHECK(group ? pos % s->f.group == 0 && pos <= s->length : pos == s->length);
    CHECK(n == 0 || (near->first <= pos && pos + n <= near->first + near->length));
    if (failed(b) || n == 0) return;
    CALL(b, kv_quantize, s, near, pos, n);
}

void op_activate(Backend *b, Tensor y, Tensor gate, Tensor up, Activation f) {
    check_2d(gate, gate.shape[0], row_width(gate));
    if (up.data) check_2d(up, gate.shape[0], row_width(gate));
    check_2d(y, gate.shape[0], row_width(gate));
    if (failed(b) || n_elements(y) == 0) return;
    CALL(b, activate, y.data, gate.data, up.data, n_elements(y), f);
}

void op_silu_mul(Backend *b, Tensor y, Tensor gate, Tensor up) {
    CHECK(up.data || n_elements(gate) == 0);
    op_activate(b, y, gate, up, ACTF_SILU);
}

void op_add(Backend *b, Tensor y, Tensor x) {
    CHECK(y.dtype == DT_F32 && x.dtype == DT_F32 && n_elements(y) == n_elements(x));
    if (failed(b) || n_elements(y) == 0) return;
    CALL(b, add, y.data, x.data, n_elements(y));
}

void op_score(Backend *b, const ScoreJob *job) {
    CHECK(job && job->n >= 0);
    check_weight(job->head);
    if (failed(b) || job->n == 0) return;
    CHECK(job->x && job->targets && job->nll && job->softcap >= 0);
    if (job->ref_x) {
        check_weight(job->ref_head);
        CHECK(job->kl && job->ref_top1 && job->ref_head->rows == job->head->rows);
    }
    for (int64_t i = 0; i < job->n; i++)
        if (job->targets[i] >= job->head->rows) {
            err_set(&b->err, ERR_FORMAT, "第 %lld 个目标 token 的 id %d 超出词表（0 到 %lld）",
                    (long long)i, (int)job->targets[i], (long long)job->head->rows - 1);
            return;
        }
    CALL(b, score, job);
}

void op_pack_dense(Backend *b, QTensor *q, Tensor w) {
    check_weight(q);
    CHECK(q->dense != DT_NONE);
    check_2d(w, q->rows, q->cols);
    if (failed(b)) return;
    CALL(b, pack_dense, q, w.data);
}

bool op_pack_stored(Backend *b, QTensor *q, const void *host, DType stored, bool checked) {
    check_weight(q);
    CHECK(q->dense != DT_NONE && host && (stored == DT_F32 || stored == DT_F16 || stored == DT_BF16));
    bool finite = checked;
    if (failed(b)) return false;
    CALL(b, pack_stored, q, host, stored, checked ? NULL : &finite);
    return finite && !failed(b);
}

void op_qparams(Backend *b, Tensor scale, Tensor zero, Tensor w, const QSpec *spec) {
    check_f32(w, 2);
    int64_t rows = w.shape[0], cols = w.shape[1];
    CHECK(spec && spec->bits >= 2 && spec->bits <= 8 && cols >= 1);
    CHECK(spec->group_size == -1 || spec->group_size >= 1);
    CHECK(spec->grid == GRID_GPTQ || spec->zero == (spec->grid == GRID_RANGE ? ZERO_INT : ZERO_SYM));
    int64_t groups = (cols - 1) / qspec_group_size(spec, cols) + 1;
    check_2d(scale, rows, groups);
    check_2d(zero, rows, groups);
    if (failed(b) || rows == 0) return;
    CALL(b, qparams, scale.data, zero.data, w.data, rows, cols, spec);
}

void op_quantize(Backend *b, QTensor *q, Tensor w, Tensor scale, Tensor zero) {
    check_weight(q);
    CHECK(q->dense == DT_NONE);
    check_2d(w, q->rows, q->cols);
    check_2d(scale, q->rows, q->n_groups);
    check_2d(zero, q->rows, q->n_groups);
    if (failed(b)) return;
    CALL(b, quantize, q, w.data, scale.data, zero.data);
}

void op_dequantize(Backend *b, Tensor w, const QTensor *q) {
    check_weight(q);
    check_2d(w, q->rows, q->cols);
    if (failed(b)) return;
    CALL(b, dequantize, w.data, q);
}

void op_linear_exact(Backend *b, Tensor y, Tensor x, const QTensor *w) {
    check_weight(w);
    CHECK(x.n_dims >= 1);
    check_2d(x, x.shape[0], w->cols);
    check_2d(y, x.shape[0], w->rows);
    if (failed(b) || x.shape[0] == 0) return;
    CALL(b, linear_exact, y.data, x.data, x.shape[0], w);
}

void op_gram(Backend *b, Tensor g, Tensor x) {
    CHECK(x.n_dims == 2);
    check_2d(x, x.shape[0], x.shape[1]);
    check_2d(g, x.shape[1], x.shape[1]);
    if (failed(b) || x.shape[0] == 0) return;
    CALL(b, gram, g.data, x.data, x.shape[0], x.shape[1]);
}

void op_feedback(Backend *b, const FeedbackJob *job) {
    CHECK(job && job->w && job->u && job->err && job->scale && job->zero && job->group);
    CHECK(job->i1 >= 0 && job->i1 <= job->i2 && job->i2 <= job->cols && job->n_groups >= 1);
    CHECK(job->bits >= 2 && job->bits <= 8);
    if (failed(b) || job->rows == 0) return;
    CALL(b, feedback, job);
}

void op_matmul(Backend *b, Tensor y, Tensor a, Tensor c, bool transpose_a) {
    check_f32(a, 2);
    check_f32(c, 2);
    int64_t m = a.shape[transpose_a], k = a.shape[!transpose_a], n = c.shape[1];
    CHECK(c.shape[0] == k && k >= 1);
    check_2d(y, m, n);
    if (failed(b) || m == 0 || n == 0) return;
    CALL(b, matmul, y.data, a.data, c.data, m, k, n, transpose_a);
}

void op_rmsnorm_grad(Backend *b, Tensor dx, Tensor dweight, Tensor dy, Tensor x, Tensor weight,
                     float eps) {
    int64_t n = x.shape[0], d = row_width(x);
    check_2d(x, n, d);
    check_2d(dx, n, d);
    check_2d(dy, n, d);
    CHECK(weight.dtype == DT_F32 && weight.data && n_elements(weight) == d);
    if (dweight.data) CHECK(dweight.dtype == DT_F32 && n_elements(dweight) == d);
    if (failed(b) || n == 0 || d == 0) return;
    CALL(b, rmsnorm_grad, dx.data, dweight.data, dy.data, x.data, weight.data, n, d, eps);
}

void op_silu_mul_grad(Backend *b, Tensor dgate, Tensor dup, Tensor dy, Tensor gate, Tensor up) {
    int64_t n = gate.shape[0], d = row_width(gate);
    Tensor all[] = {dgate, dup, dy, gate, up};
    for (int i = 0; i < 5; i++) check_2d(all[i], n, d);
    if (failed(b) || n * d == 0) return;
    CALL(b, silu_mul_grad, dgate.data, dup.data, dy.data, gate.data, up.data, n * d);
}

void op_attention_grad(Backend *b, Tensor dq, Tensor dk, Tensor dv, Tensor d_out, Tensor q,
                       Tensor k, Tensor v, const AttnSpec *s) {
    CHECK(s && s->n_heads >= 1 && s->n_kv_heads >= 1 && s->n_heads % s->n_kv_heads == 0);
    CHECK(s->head_dim >= 1 && s->first == 0 && s->window >= 0 && s->scale > 0);
    int64_t n = q.shape[0];
    Tensor wide[] = {dq, d_out, q}, narrow[] = {dk, dv, k, v};
    for (int i = 0; i < 3; i++) check_2d(wide[i], n, s->n_heads * s->head_dim);
    for (int i = 0; i < 4; i++) check_2d(narrow[i], n, s->n_kv_heads * s->head_dim);
    if (failed(b) || n == 0) return;
    CALL(b, attention_grad, dq.data, dk.data, dv.data, d_out.data, q.data, k.data, v.data, n, s);
}

void op_round_act_grad(Backend *b, Tensor d, Tensor x, const ActQuant *act) {
    int64_t n = x.shape[0], cols = row_width(x);
    check_2d(x, n, cols);
    check_2d(d, n, cols);
    CHECK(act && act->kind == ACT_TOKEN && act->bits >= 2 && act->bits <= 8);
    if (failed(b) || n * cols == 0) return;
    CALL(b, round_act_grad, d.data, x.data, n, cols, act->bits);
}

void op_score_grad(Backend *b, const ScoreGradJob *job) {
    CHECK(job && job->n >= 0);
    check_weight(job->head);
    if (failed(b) || job->n == 0) return;
    CHECK(job->x && job->targets && job->nll && job->dx);
    for (int64_t i = 0; i < job->n; i++) CHECK(job->targets[i] < job->head->rows);
    CALL(b, score_grad, job);
}

/* 检查 x (rows, cols) 与每组一个数的 a、c；返回正的组宽。 */
static int64_t check_groups(Tensor x, Tensor a, Tensor c, const QSpec *spec) {
    check_f32(x, 2);
    CHECK(spec && x.shape[1] >= 1 && (spec->group_size == -1 || spec->group_size >= 1));
    int64_t group = qspec_group_size(spec, x.shape[1]), n = (x.shape[1] - 1) / group + 1;
    check_2d(a, x.shape[0], n);
    check_2d(c, x.shape[0], n);
    return group;
}

void op_group_range(Backend *b, Tensor lo, Tensor hi, Tensor x, const QSpec *spec) {
    int64_t group = check_groups(x, lo, hi, spec);
    if (failed(b) || x.shape[0] == 0) return;
    CALL(b, group_range, lo.data, hi.data, x.data, x.shape[0], x.shape[1], group);
}

void op_group_range_grad(Backend *b, Tensor dx, Tensor x, Tensor lo, Tensor hi, Tensor d_lo,
                         Tensor d_hi, const QSpec *spec) {
    int64_t group = check_groups(x, lo, hi, spec);
    check_groups(x, d_lo, d_hi, spec);
    check_2d(dx, x.shape[0], x.shape[1]);
    if (failed(b) || x.shape[0] == 0) return;
    CALL(b, group_range_grad, dx.data, x.data, lo.data, hi.data, d_lo.data, d_hi.data,
                             x.shape[0], x.shape[1], group);
}

static void check_scale(Tensor x, Tensor row, Tensor col) {
    check_f32(x, 2);
    CHECK(row.dtype == DT_F32 && n_elements(row) == x.shape[0]);
    CHECK(col.dtype == DT_F32 && n_elements(col) == x.shape[1]);
}

void op_scale(Backend *b, Tensor y, Tensor x, Tensor row, Tensor col) {
    if (!row.data) row = tensor_f32_1d(NULL, x.shape[0]);
    check_scale(x, row, col);
    check_2d(y, x.shape[0], x.shape[1]);
    if (failed(b) || n_elements(x) == 0) return;
    CALL(b, scale, y.data, x.data, row.data, col.data, x.shape[0], x.shape[1]);
}

void op_scale_grad(Backend *b, Tensor d_row, Tensor d_col, Tensor dy, Tensor x, Tensor row,
                   Tensor col) {
    check_scale(x, row, col);
    check_scale(x, d_row, d_col);
    check_2d(dy, x.shape[0], x.shape[1]);
    if (failed(b) || n_elements(x) == 0) return;
    CALL(b, scale_grad, d_row.data, d_col.data, dy.data, x.data, row.data, col.data, x.shape[0],
                       x.shape[1]);
}

void op_fake_quant(Backend *b, Tensor y, Tensor x, Tensor scale, Tensor zero, const QSpec *spec) {
    check_groups(x, scale, zero, spec);
    check_2d(y, x.shape[0], x.shape[1]);
    if (failed(b) || x.shape[0] == 0) return;
    CALL(b, fake_quant, y.data, x.data, scale.data, zero.data, x.shape[0], x.shape[1], spec);
}

void op_fake_quant_grad(Backend *b, Tensor dx, Tensor dscale, Tensor dy, Tensor x, Tensor scale,
                        Tensor zero, const QSpec *spec) {
    check_groups(x, scale, zero, spec);
    check_groups(x, dscale, zero, spec);
    check_2d(dy, x.shape[0], x.shape[1]);
    if (dx.data) check_2d(dx, x.shape[0], x.shape[1]);
    if (failed(b) || x.shape[0] == 0) return;
    CALL(b, fake_quant_grad, dx.data, dscale.data, dy.data, x.data, scale.data, zero.data,
                            x.shape[0], x.shape[1], spec);
}
