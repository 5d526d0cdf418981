/* spqr — SpQR（Dettmers 等，arXiv 2306.03078）：敏感的权重单独存成稀疏的离群值，其余用很小的组、统计再量化一次
 * 记号同论文算法 1：逐列量化，误差按 H⁻¹ 的 Cholesky 因子 U 补偿给后面的列（同 GPTQ）。
 * 敏感度 = (w−q)²/U_ii²；超过阈值 τ·mean(var(W)/U²) 的权重不量化。定组的格点时先逐个「留一」（§4.2），
 * 去掉它就使本组误差大减的权重不参与。组的 scale、zero（实数）每 stat_rows 行一起再量化成几位（两级统计）。
 * 次序与 Vahe1994/SpQR 的 spqr_engine.py、quant_groups.py 相同：组的格点取自当时的（已补偿的）W。 */
#include "methods/base.h"

enum { SCALE_F32, SCALE_F16 };

typedef struct SpqrOptions {
    int64_t w_bits, group_size, scale_bits, zero_bits, stat_rows, block_size;
    int scale_dtype;
    bool act_order, leave_one_out, sequential;
    double threshold, damp;
} SpqrOptions;

static const char *const SCALE[] = {"float32", "float16", NULL};

static const Option OPTIONS[] = {
    OPT_INT(SpqrOptions, w_bits, "weight.w_bits", 3, 2, 8, "权重位宽（离群值以外）"),
    OPT_INT(SpqrOptions, group_size, "weight.group_size", 16, -1, 65536, "每组的列数，-1 为整行一组"),
    OPT_ENUM(SpqrOptions, scale_dtype, "weight.scale_dtype", SCALE, SCALE_F16,
             "二级格点、离群值（与未再量化的统计）的存放类型"),
    OPT_INT(SpqrOptions, scale_bits, "spqr.scale_bits", 3, 0, 8, "组的 scale 再量化成几位，0 为不再量化"),
    OPT_INT(SpqrOptions, zero_bits, "spqr.zero_bits", 3, 0, 8, "组的 zero 再量化成几位，0 为不再量化"),
    OPT_INT(SpqrOptions, stat_rows, "spqr.stat_rows", 16, 16, 65536,
            "多少行的统计共用一个二级格点，16 的倍数（官方的 qq_groupsize）"),
    OPT_FLOAT(SpqrOptions, threshold, "spqr.outlier_threshold", 0.2, 0, 1e30,
              "离群值的相对阈值，越大离群值越少；很大（如 1e30）即没有"),
    OPT_BOOL(SpqrOptions, leave_one_out, "spqr.leave_one_out", 1,
             "定格点时用留一法排除可能的离群值；关掉即官方的 simplified_outliers"),
    OPT_BOOL(SpqrOptions, act_order, "spqr.act_order", 1, "按 diag(H) 从大到小的次序量化各列"),
    OPT_BOOL(SpqrOptions, sequential, "spqr.sequential", 1,
             "各块的 Hessian 取自量化过的前几块（官方）；false：取自未量化的模型，可由几次运行共用（stats_cache）"),
    OPT_FLOAT(SpqrOptions, damp, "spqr.damp", 1.0, 0, 1000, "阻尼：占 diag(H) 均值的比例"),
    OPT_INT(SpqrOptions, block_size, "spqr.block_size", 128, 1, 4096, "一块的列数（只影响速度与末位）"),
    OPT_END};

/* 一个线性层的求解状态；列都按处理的次序。job 里的都在后端内存。 */
typedef struct Solver {
    QuantJob *job;
    const SpqrOptions *o;
    Hessian h;
    SparseJob s;
    QTensor q;
} Solver;

static bool solve(Solver *v, Err *e) {
    SparseJob *s = &v->s;
    Backend *b = job_backend(v->job);
    for (s->i1 = 0; s->i1 < s->cols; s->i1 = s->i2) {
        s->i2 = s->i1 + v->o->block_size < s->cols ? s->i1 + v->o->block_size : s->cols;
        op_sparse(b, s);
        hessian_update_rest(&v->h, b, s->w, s->err, s->rows, s->i1, s->i2);
        if (!interrupt_check(e) || !backend_check(b, e)) return false;
    }
    return true;
}

/* 阈值：τ·mean_c(var(W[:,c])/U_cc²)，方差按行数减一。 */
static bool outlier_limit(Solver *v, Err *e) {
    SparseJob *s = &v->s;
    Arena *host = job_host(v->job);
    double total = 0, *var = ARENA_ARRAY(host, double, s->cols, e);
    float *diag = ARENA_ARRAY(host, float, s->cols, e);
    if (!var || !diag || !hessian_diagonal(job_backend(v->job), diag, s->u, s->cols, e)) return false;
    if (s->rows > 1) op_column_variance(job_backend(v->job), var, tensor_f32(s->w, s->rows, s->cols));
    for (int64_t c = 0; c < s->cols; c++) total += var[c] / ((double)diag[c] * (double)diag[c]);
    s->limit = (float)(v->o->threshold * total / (double)s->cols);
    return backend_check(job_backend(v->job), e);
}

/* 求得的二级格点与码，在主机。 */
typedef struct Stats {
    Solver *v;
    const uint8_t *code[2];
    const float *grid[2];
} Stats;

/* 共用二级格点的若干行 → q。 */
static void store_task(void *ctx, int64_t row_group) {
    const Stats *t = ctx;
    const SparseJob *s = &t->v->s;
    int64_t r0 = row_group * s->stat_rows, r1 = r0 + s->stat_rows < s->rows ? r0 + s->stat_rows : s->rows;
    for (int k = 0; k < 2; k++)
        for (int64_t g = 0; t->code[k] && g < s->n_groups; g++) {
            const float *grid = t->grid[k] + 2 * (row_group * s->n_groups + g);
            StatKind kind = k ? STAT_ZERO : STAT_SCALE;
            qtensor_set_stat_grid(&t->v->q, kind, row_group, g, (StatGrid){grid[0], grid[1]});
            for (int64_t r = r0; r < r1; r++)
                qtensor_set_stat_code(&t->v->q, kind, r, g, t->code[k][r * s->n_groups + g]);
        }
}

static bool store_stats(Solver *v, Err *e) {
    const SparseJob *s = &v->s;
    Backend *b = job_backend(v->job);
    int64_t ng = s->rows * s->n_groups, row_groups = (s->rows - 1) / s->stat_rows + 1;
    HostView view = host_view(b);
    Stats t = {.v = v};
    t.code[0] = HOST_MAP(&view, uint8_t, s->scale_code, ng, HOST_READ);
    t.code[1] = HOST_MAP(&view, uint8_t, s->zero_code, ng, HOST_READ);
    t.grid[0] = HOST_MAP(&view, float, s->scale_grid, 2 * row_groups * s->n_groups, HOST_READ);
    t.grid[1] = HOST_MAP(&view, float, s->zero_grid, 2 * row_groups * s->n_groups, HOST_READ);
    if (b->err.code == ERR_NONE) job_parallel(v->job, row_groups, store_task, &t);
    host_end(&view);
    return backend_check(b, e);
}

/* 离群值存成稀疏；其余取整装包（那些位置的编码取 0 的码）；列序一起存。 */
static bool pack(Solver *v, Linear *l, Err *e) {
    Backend *b = job_backend(v->job);
    Arena *model = job_model_arena(v->job);
    SparseJob *s = &v->s;
    if (!store_stats(v, e) || !qtensor_to_backend(b, &v->q, model, e)) return false;
    Tensor w = tensor_f32(s->w, s->rows, s->cols);
    op_split_outliers(b, &v->q, model, w, s->outlier);
    if (!backend_check(b, e)) return false;
    if (v->o->act_order && !qtensor_store_perm(b, &v->q, model, v->h.perm, e)) return false;
    op_quantize(b, &v->q, w, tensor_f32(s->scale, s->rows, s->n_groups), tensor_f32(s->zero, s->rows, s->n_groups));
    return backend_check(b, e) && linear_set_quantized(l, &v->q);
}

static bool open_solver(Solver *v, const Linear *l, const QSpec *spec, Err *e) {
    const SpqrOptions *o = v->o;
    Arena *a = job_scratch(v->job);
    TwoLevel two = {(int)o->scale_bits, (int)o->zero_bits, o->stat_rows};
    if (!qtensor_new_two_level(&v->q, job_host(v->job), *spec, two, l->rows, l->cols, e)) return false;
    int64_t cells = l->rows * l->cols, ng = l->rows * v->q.n_groups, row_groups = (l->rows - 1) / o->stat_rows + 1;
    SparseJob *s = &v->s;
    *s = (SparseJob){.rows = l->rows, .cols = l->cols, .group = v->q.spec.group_size, .n_groups = v->q.n_groups,
                     .stat_rows = o->stat_rows, .bits = (int)o->w_bits, .scale_bits = two.scale_bits,
                     .zero_bits = two.zero_bits, .scale_dtype = spec->scale_dtype, .leave_one_out = o->leave_one_out};
    bool ok = (s->w = ARENA_ARRAY(a, float, cells, e)) && (s->err = ARENA_ARRAY(a, float, l->rows * o->block_size, e)) &&
              (s->outlier = ARENA_ARRAY(a, uint8_t, cells, e)) && (s->scale = ARENA_ARRAY(a, float, ng, e)) &&
              (s->zero = ARENA_ARRAY(a, float, ng, e));
    for (int k = 0; ok && k < 2; k++) {
        uint8_t **code = k ? &s->zero_code : &s->scale_code;
        float **grid = k ? &s->zero_grid : &s->scale_grid;
        if (!(k ? s->zero_bits : s->scale_bits)) continue;
        ok = (*code = ARENA_ARRAY(a, uint8_t, ng, e)) && (*grid = ARENA_ARRAY(a, float, 2 * row_groups * s->n_groups, e));
    }
    return ok;
}

static bool spqr_linear(QuantJob *job, Linear *l, Tensor w, const InputStats *st, Err *e) {
    Solver v = {.job = job, .o = job_options(job)};
    QSpec spec = {.bits = (int)v.o->w_bits, .group_size = v.o->group_size, .zero = ZERO_FLOAT,
                  .scale_dtype = v.o->scale_dtype == SCALE_F16 ? DT_F16 : DT_F32};
    int64_t rest = spec.group_size > 0 && spec.group_size < l->cols ? l->cols % spec.group_size : 0;
    if (rest)
        job_fallback(job, "组宽 %lld 不整除 %lld 列，每行末组取 %lld 列", (long long)spec.group_size,
                     (long long)l->cols, (long long)rest);
    if (!open_solver(&v, l, &spec, e) || !job_factor_hessian(job, l, st, v.o->act_order, v.o->damp, &v.h, e))
        return false;
    v.s.u = v.h.u;
    hessian_gather(&v.h, job_backend(job), v.s.w, tensor_data_f32(w), l->rows);
    return outlier_limit(&v, e) && solve(&v, e) && pack(&v, l, e);
}

static bool spqr_check(const void *options, char track, Err *e) {
    (void)track;
    if (((const SpqrOptions *)options)->group_size == 0)
        return err_set(e, ERR_CONFIG, "weight.group_size 不能为 0（-1 表示整行一组）");
    return true;
}

static bool spqr_quantize(QuantJob *job, Err *e) {
    const SpqrOptions *o = job_options(job);
    return quantize_each_linear(job, STAT_GRAM, o->sequential ? FLOW_QUANTIZED : FLOW_ORIGINAL, spqr_linear, e);
}

PTQ_METHOD(spqr) = {.name = "spqr", .tracks = "A", .options = OPTIONS,
                    .options_size = sizeof(SpqrOptions), .calibrated = true,
                    .check = spqr_check, .quantize = spqr_quantize};
