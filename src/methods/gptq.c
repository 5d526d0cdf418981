/* gptq — GPTQ（Frantar 等，arXiv 2210.17323）：逐列量化，把误差按二阶信息补偿给还没量化的列
 * 符号同论文：W 权重 (rows, cols)，H = 2XXᵀ/n，U 为 H⁻¹ 的上三角 Cholesky 因子（H⁻¹ = UᵀU，§3.3）。
 * 次序与 IST-DASLab/gptq 的 fasterquant 相同：块宽 128；组的 scale 取自本块反馈之前的 W。 */
#include "methods/base.h"

enum { DAMP_TRIES = 6 };

typedef struct GptqOptions {
    WeightOptions weight;
    int64_t block_size;
    bool act_order, static_groups, true_sequential;
    double damp;
} GptqOptions;

static const Option OPTIONS[] = {
    WEIGHT_OPTIONS(GptqOptions, weight),
    OPT_BOOL(GptqOptions, act_order, "gptq.act_order", 0, "按 diag(H) 从大到小的次序量化各列"),
    OPT_BOOL(GptqOptions, static_groups, "gptq.static_groups", 0,
             "组的 scale 事先由原始权重定好；与 act_order 同用时列不必重排"),
    OPT_BOOL(GptqOptions, true_sequential, "gptq.true_sequential", 0,
             "块内按输入组依次量化：o、gate/up、down 的统计来自前几组量化之后"),
    OPT_FLOAT(GptqOptions, damp, "gptq.damp", 0.01, 0, 10, "阻尼：占 diag(H) 均值的比例"),
    OPT_INT(GptqOptions, block_size, "gptq.block_size", 128, 1, 4096, "一块的列数"),
    OPT_END};

/* 一个线性层的求解状态；列都按处理的次序。 */
typedef struct Solver {
    QuantJob *job;
    const GptqOptions *o;
    QSpec spec;
    int64_t rows, cols, group, n_groups;
    float *w, *u;           /* W 与 U */
    float *err;             /* (rows, block) 本块各列的 (w−q)/d */
    float *scale, *zero;    /* (rows, n_groups)，按组的次序 */
    float *slice;           /* (rows, group) 定 scale 用 */
    int32_t *perm;          /* 处理的第 k 列是原来的第 perm[k] 列 */
    int32_t *col_group;     /* 处理的第 k 列所属的组 */
} Solver;

/* 由 src 的第 col 列起 width 列定第 g 组的 scale、zero（官方 Quantizer.find_params）。 */
static void find_params(Solver *s, const float *src, int64_t col, int64_t width, int64_t g) {
    float *sc = s->slice + s->rows * s->group, *ze = sc + s->rows;
    QSpec whole = s->spec;
    whole.group_size = -1;
    for (int64_t r = 0; r < s->rows; r++)
        memcpy(s->slice + r * width, src + r * s->cols + col, (size_t)width * sizeof *src);
    op_qparams(job_backend(s->job), tensor_f32(sc, s->rows, 1), tensor_f32(ze, s->rows, 1),
               tensor_f32(s->slice, s->rows, width), &whole);
    for (int64_t r = 0; r < s->rows; r++) {
        s->scale[r * s->n_groups + g] = sc[r];
        s->zero[r * s->n_groups + g] = ze[r];
    }
}

/* H = 2XXᵀ/n + λI，λ 从 damp·mean(diag) 起，不正定就乘 10 再试（记为退让）。 */
static bool factor_hessian(Solver *s, const Linear *l, const InputStats *st, const double *h,
                           double mean, Err *e) {
    int64_t n = s->cols;
    double *a = ARENA_ARRAY(job_scratch(s->job), double, n * n, e);
    if (!a) return false;
    double damp = s->o->damp;
    for (int t = 0; t < DAMP_TRIES; t++, damp = damp > 0 ? damp * 10 : 0.01) {
        memcpy(a, h, (size_t)(n * n) * sizeof *a);
        for (int64_t i = 0; i < n; i++) a[i * n + i] += damp * mean;
        if (linalg_inverse_upper(a, n)) {
            if (t)
                job_fallback(s->job, "%s: Hessian 不正定，阻尼由 %g 升到 %g", l->name, s->o->damp, damp);
            for (int64_t i = 0; i < n * n; i++) s->u[i] = (float)a[i];
            return true;
        }
    }
    return err_set(e, ERR_NUMERIC, "Hessian 直到阻尼 %g 仍不正定（%lld 个校准 token），请增加校准样本", damp / 10,
                   (long long)st->n);
}

/* 由统计得到处理次序下的 U；死列（H 的对角为 0）权重置 0。 */
static bool prepare(Solver *s, const Linear *l, const InputStats *st, const float *w, Err *e) {
    int64_t n = s->cols, dead = 0;
    double *h = ARENA_ARRAY(job_scratch(s->job), double, n * n, e), mean = 0;
    if (!h) return false;
    for (int64_t i = 0; i < n; i++) {
        s->perm[i] = (int32_t)i;
        if (!(st->gram[i * n + i] >= 0 && isfinite(st->gram[i * n + i])))
            return err_set(e, ERR_NUMERIC, "校准激活的第 %lld 列有 NaN 或 Inf", (long long)i);
        dead += st->gram[i * n + i] == 0;
    }
    if (dead)
        job_fallback(s->job, "%s: %lld 个输入列在校准中恒为 0，其权重置 0", l->name, (long long)dead);
    if (s->o->act_order) /* 稳定的插入法：列数至多几千 */
        for (int64_t i = 1; i < n; i++) {
            int32_t c = s->perm[i];
            int64_t j = i;
            for (; j > 0 && st->gram[s->perm[j - 1] * n + s->perm[j - 1]] < st->gram[c * n + c]; j--)
                s->perm[j] = s->perm[j - 1];
            s->perm[j] = c;
        }
    for (int64_t i = 0; i < n; i++) {
        const float *row = st->gram + s->perm[i] * n;
        for (int64_t j = 0; j < n; j++) h[i * n + j] = 2.0 / (double)st->n * (double)row[s->perm[j]];
        if (h[i * n + i] == 0) h[i * n + i] = 1;
        mean += h[i * n + i] / (double)n;
    }
    for (int64_t i = 0; i < n; i++)
        s->col_group[i] = (int32_t)((s->o->static_groups ? s->perm[i] : i) / s->group);
    for (int64_t r = 0; r < s->rows; r++)
        for (int64_t i = 0; i < n; i++) {
            int64_t c = s->perm[i];
            s->w[r * n + i] = st->gram[c * n + c] == 0 ? 0 : w[r * n + c];
        }
    return factor_hessian(s, l, st, h, mean, e);
}

/* 块后的列：W[:, i2:] −= Err · U[i1:i2, i2:]。 */
static bool update_rest(Solver *s, int64_t i1, int64_t i2, Err *e) {
    int64_t n = s->cols, rest = n - i2, k = i2 - i1;
    Backend *b = job_backend(s->job);
    ArenaMark mark = arena_mark(job_scratch(s->job));
    float *ut = ARENA_ARRAY(job_scratch(s->job), float, rest * k, e);
    float *delta = ARENA_ARRAY(job_scratch(s->job), float, s->rows * rest, e);
    QTensor q;
    bool ok = ut && delta && qtensor_new_dense(&q, job_scratch(s->job), DT_F32, rest, k, e);
    if (ok) {
        for (int64_t j = 0; j < rest; j++)
            for (int64_t i = 0; i < k; i++) ut[j * k + i] = s->u[(i1 + i) * n + i2 + j];
        op_pack_dense(b, &q, tensor_f32(ut, rest, k));
        op_linear_exact(b, tensor_f32(delta, s->rows, rest), tensor_f32(s->err, s->rows, k), &q);
        for (int64_t r = 0; r < s->rows; r++)
            for (int64_t j = 0; j < rest; j++) s->w[r * n + i2 + j] -= delta[r * rest + j];
        ok = backend_check(b, e);
    }
    arena_rewind(job_scratch(s->job), mark);
    return ok;
}

/* 逐块（论文算法 1 的外层）。非静态组：每到组首由当时的 W 定 scale，块内先到先定，所以块首的组全在反馈之前。 */
static bool solve(Solver *s, Err *e) {
    for (int64_t i1 = 0; i1 < s->cols; i1 += s->o->block_size) {
        int64_t i2 = i1 + s->o->block_size < s->cols ? i1 + s->o->block_size : s->cols;
        for (int64_t g = (i1 + s->group - 1) / s->group; !s->o->static_groups && g * s->group < i2;
             g++) {
            int64_t col = g * s->group;
            find_params(s, s->w, col, col + s->group < s->cols ? s->group : s->cols - col, g);
        }
        FeedbackJob inner = {.rows = s->rows, .cols = s->cols, .i1 = i1, .i2 = i2, .w = s->w,
                             .u = s->u, .err = s->err, .scale = s->scale, .zero = s->zero,
                             .group = s->col_group, .n_groups = s->n_groups, .bits = s->spec.bits};
        op_feedback(job_backend(s->job), &inner);
        if (i2 < s->cols && !update_rest(s, i1, i2, e)) return false;
    }
    return backend_check(job_backend(s->job), e);
}

/* 静态组把列放回原序；否则 act-order 的列序随码一起存。 */
static bool pack(Solver *s, Linear *l, Err *e) {
    QTensor q;
    Arena *model = job_model_arena(s->job);
    if (!qtensor_new(&q, model, s->spec, s->rows, s->cols, e)) return false;
    float *w = s->w;
    if (s->o->act_order && s->o->static_groups) {
        w = ARENA_ARRAY(job_scratch(s->job), float, s->rows * s->cols, e);
        if (!w) return false;
        for (int64_t r = 0; r < s->rows; r++)
            for (int64_t i = 0; i < s->cols; i++)
                w[r * s->cols + s->perm[i]] = s->w[r * s->cols + i];
    } else if (s->o->act_order && !qtensor_set_perm(&q, model, s->perm, e)) {
        return false;
    }
    op_quantize(job_backend(s->job), &q, tensor_f32(w, s->rows, s->cols),
                tensor_f32(s->scale, s->rows, s->n_groups),
                tensor_f32(s->zero, s->rows, s->n_groups));
    return backend_check(job_backend(s->job), e) && linear_set_quantized(l, &q);
}

static bool gptq_linear(QuantJob *job, Linear *l, Tensor w, const InputStats *st, Err *e) {
    Solver s = {.job = job, .o = job_options(job), .rows = l->rows, .cols = l->cols};
    if (!job_weight_spec(job, &s.o->weight, l->cols, &s.spec, e)) return false;
    s.group = s.spec.group_size > 0 && s.spec.group_size < s.cols ? s.spec.group_size : s.cols;
    s.n_groups = (s.cols + s.group - 1) / s.group;
    Arena *a = job_scratch(job);
    s.w = ARENA_ARRAY(a, float, s.rows * s.cols, e);
    s.u = ARENA_ARRAY(a, float, s.cols * s.cols, e);
    s.err = ARENA_ARRAY(a, float, s.rows * s.o->block_size, e);
    s.scale = ARENA_ARRAY(a, float, s.rows * s.n_groups, e);
    s.zero = ARENA_ARRAY(a, float, s.rows * s.n_groups, e);
    s.slice = ARENA_ARRAY(a, float, s.rows * (s.group + 2), e);
    s.perm = ARENA_ARRAY(a, int32_t, s.cols, e);
    s.col_group = ARENA_ARRAY(a, int32_t, s.cols, e);
    if (!s.w || !s.u || !s.err || !s.scale || !s.zero || !s.slice || !s.perm || !s.col_group)
        return false;
    const float *original = tensor_data_f32(w);
    for (int64_t g = 0; s.o->static_groups && g < s.n_groups; g++) {
        int64_t col = g * s.group;
        find_params(&s, original, col, col + s.group < s.cols ? s.group : s.cols - col, g);
    }
    return prepare(&s, l, st, original, e) && solve(&s, e) && pack(&s, l, e);
}

static bool gptq_quantize(QuantJob *job, Err *e) {
    const GptqOptions *o = job_options(job);
    if (o->weight.zero_point)
        return err_set(e, ERR_CONFIG, "gptq 的零点是整数，weight.zero_point 须为 integer");
    return quantize_each_linear(job, STAT_GRAM, o->true_sequential ? FLOW_SEQUENTIAL : FLOW_QUANTIZED,
                                gptq_linear, e);
}

PTQ_METHOD(gptq) = {.name = "gptq", .tracks = "A", .options = OPTIONS,
                    .options_size = sizeof(GptqOptions), .calibrated = true,
                    .quantize = gptq_quantize};
