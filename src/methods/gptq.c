/* gptq — GPTQ（Frantar 等，arXiv 2210.17323）：逐列量化，把误差按二阶信息补偿给还没量化的列
 * 符号同论文：W 权重 (rows, cols)，H = 2XXᵀ/n，U 为 H⁻¹ 的上三角 Cholesky 因子（H⁻¹ = UᵀU，§3.3）。
 * 次序与 IST-DASLab/gptq 的 fasterquant 相同：块宽 128；组的 scale 取自本块反馈之前的 W。 */
#include "methods/base.h"

typedef struct GptqOptions {
    WeightOptions weight;
    int64_t block_size;
    bool act_order, static_groups, true_sequential, sequential;
    double damp;
} GptqOptions;

static const Option OPTIONS[] = {
    WEIGHT_OPTIONS(GptqOptions, weight),
    OPT_BOOL(GptqOptions, act_order, "gptq.act_order", 0, "按 diag(H) 从大到小的次序量化各列"),
    OPT_BOOL(GptqOptions, static_groups, "gptq.static_groups", 0,
             "组的 scale 事先由原始权重定好；与 act_order 同用时列不必重排"),
    OPT_BOOL(GptqOptions, true_sequential, "gptq.true_sequential", 0,
             "块内按输入组依次量化：o、gate/up、down 的统计来自前几组量化之后"),
    OPT_BOOL(GptqOptions, sequential, "gptq.sequential", 1,
             "各块的 Hessian 取自量化过的前几块（官方）；false：取自未量化的模型，可由几次运行共用（stats_cache）"),
    OPT_FLOAT(GptqOptions, damp, "gptq.damp", 0.01, 0, 10, "阻尼：占 diag(H) 均值的比例"),
    OPT_INT(GptqOptions, block_size, "gptq.block_size", 128, 1, 4096, "一块的列数"),
    OPT_END};

/* 一个线性层的求解状态；列都按处理的次序。 */
typedef struct Solver {
    QuantJob *job;
    const GptqOptions *o;
    QSpec spec;
    int64_t rows, cols, group, n_groups;
    Hessian h;              /* 列序与 U */
    float *w;
    float *err;             /* (rows, block) 本块各列的 (w−q)/d */
    float *scale, *zero;    /* (rows, n_groups)，按组的次序 */
    float *slice;           /* (rows, group) 定 scale 用 */
    int32_t *col_group;     /* 处理的第 k 列所属的组 */
} Solver;

/* 由 src 的第 col 列起 width 列定第 g 组的 scale、zero（官方 Quantizer.find_params）。 */
static void find_params(Solver *s, const float *src, int64_t col, int64_t width, int64_t g) {
    float *sc = s->slice + s->rows * s->group, *ze = sc + s->rows;
    QSpec whole = s->spec;
    whole.group_size = -1;
    Backend *b = job_backend(s->job);
    const size_t item = sizeof *src, row = (size_t)width * item, step = (size_t)s->n_groups * item;
    op_copy_2d(b, s->slice, row, src + col, (size_t)s->cols * item, s->rows, row);
    op_qparams(b, tensor_f32(sc, s->rows, 1), tensor_f32(ze, s->rows, 1),
               tensor_f32(s->slice, s->rows, width), &whole);
    op_copy_2d(b, s->scale + g, step, sc, item, s->rows, item);
    op_copy_2d(b, s->zero + g, step, ze, item, s->rows, item);
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
                             .u = s->h.u, .err = s->err, .scale = s->scale, .zero = s->zero,
                             .group = s->col_group, .n_groups = s->n_groups, .bits = s->spec.bits};
        op_feedback(job_backend(s->job), &inner);
        hessian_update_rest(&s->h, job_backend(s->job), s->w, s->err, s->rows, i1, i2);
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
        int32_t *back = ARENA_ARRAY(job_host(s->job), int32_t, s->cols, e);
        if (!w || !back) return false;
        for (int64_t i = 0; i < s->cols; i++) back[s->h.perm[i]] = (int32_t)i;
        op_gather_columns(job_backend(s->job), tensor_f32(w, s->rows, s->cols),
                          tensor_f32(s->w, s->rows, s->cols), back);
    } else if (s->o->act_order &&
               !qtensor_store_perm(job_backend(s->job), &q, model, s->h.perm, e)) {
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
    s.group = qspec_group_size(&s.spec, s.cols);
    s.n_groups = (s.cols + s.group - 1) / s.group;
    Arena *a = job_scratch(job);
    s.w = ARENA_ARRAY(a, float, s.rows * s.cols, e);
    s.err = ARENA_ARRAY(a, float, s.rows * s.o->block_size, e);
    s.scale = ARENA_ARRAY(a, float, s.rows * s.n_groups, e);
    s.zero = ARENA_ARRAY(a, float, s.rows * s.n_groups, e);
    s.slice = ARENA_ARRAY(a, float, s.rows * (s.group + 2), e);
    s.col_group = ARENA_ARRAY(job_host(job), int32_t, s.cols, e);
    if (!s.w || !s.err || !s.scale || !s.zero || !s.slice || !s.col_group ||
        !job_factor_hessian(job, l, st, s.o->act_order, s.o->damp, &s.h, e))
        return false;
    const float *original = tensor_data_f32(w);
    for (int64_t g = 0; s.o->static_groups && g < s.n_groups; g++) {
        int64_t col = g * s.group;
        find_params(&s, original, col, col + s.group < s.cols ? s.group : s.cols - col, g);
    }
    hessian_gather(&s.h, job_backend(job), s.w, original, s.rows);
    for (int64_t i = 0; i < s.cols; i++)
        s.col_group[i] = (int32_t)((s.o->static_groups ? s.h.perm[i] : i) / s.group);
    return solve(&s, e) && pack(&s, l, e);
}

static bool gptq_check(const void *options, char track, Err *e) {
    const GptqOptions *o = options;
    (void)track;
    if (o->true_sequential && !o->sequential)
        return err_set(e, ERR_CONFIG, "gptq.true_sequential=true 要求 gptq.sequential=true");
    return check_weight_options(&o->weight, true, e);
}

static bool gptq_quantize(QuantJob *job, Err *e) {
    const GptqOptions *o = job_options(job);
    CalibFlow flow = o->true_sequential ? FLOW_SEQUENTIAL : o->sequential ? FLOW_QUANTIZED : FLOW_ORIGINAL;
    return quantize_each_linear(job, STAT_GRAM, flow, gptq_linear, e);
}

PTQ_METHOD(gptq) = {.name = "gptq", .tracks = "A", .options = OPTIONS,
                    .options_size = sizeof(GptqOptions), .calibrated = true,
                    .check = gptq_check, .quantize = gptq_quantize};
