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

/* 一个线性层的求解状态；列都按处理的次序。逐列的递推在主机上：w、err、u 是后端的映射，其余在主机。 */
typedef struct Solver {
    QuantJob *job;
    const SpqrOptions *o;
    int64_t rows, cols, group, n_groups;
    Hessian h;
    float limit;           /* 敏感度的阈值 */
    float *w_mem, *err_mem; /* W；(rows, block) 本块各列的 (w−q)/U_ii，在后端 */
    float *w, *err;
    const float *u;
    uint8_t *outlier;      /* (rows, cols) */
    float *scale, *zero;   /* (rows, n_groups) 再量化之后的 */
    QTensor q;
} Solver;

/* 一个格点：值 = scale·(码 − zero)，码 0..top。 */
typedef struct Levels {
    float scale, zero, top;
} Levels;

/* 由范围定格点（quant_groups.py 的 find_params，zero 不取整）。 */
static Levels grid_of(float lo, float hi, int64_t bits) {
    float top = (float)((1 << bits) - 1);
    if (!(lo < hi)) lo = -1, hi = 1;
    float scale = (hi - lo) / top;
    return (Levels){scale, -lo / scale, top};
}

static float code_of(float x, Levels g) {
    float code = rintf(x / (g.scale > 1e-9f ? g.scale : 1e-9f) + g.zero);
    return code < 0 ? 0 : code > g.top ? g.top : code;
}

static float rounded(float x, Levels g) {
    return g.scale * (code_of(x, g) - g.zero);
}

/* 以格点 g 量化 x 的误差 Σ((q−x)/U)²，不计第 skip 个。u 的步长为 n+1（U 的对角）。 */
static float group_error(const float *x, const float *u, int64_t step, int64_t width, Levels g,
                         int64_t skip) {
    float sum = 0;
    for (int64_t i = 0; i < width; i++) {
        float d = (rounded(x[i], g) - x[i]) / u[i * step];
        if (i != skip) sum += d * d;
    }
    return sum;
}

/* 一行的一组的范围，排除留一法认出的可能离群值：去掉第 j 个权重、由其余的定格点，本组误差（不计 j）减少超过阈值。
 * 只有去掉最小或最大者格点才变；去掉别的，减少的就是它自己的误差。 */
static void group_range(const Solver *s, const float *x, int64_t col, int64_t width, float *lo,
                        float *hi) {
    int64_t step = s->cols + 1, at_lo = 0, at_hi = 0;
    const float *u = s->u + col * step;
    for (int64_t i = 1; i < width; i++) {
        if (x[i] < x[at_lo]) at_lo = i;
        if (x[i] > x[at_hi]) at_hi = i;
    }
    *lo = x[at_lo];
    *hi = x[at_hi];
    if (!s->o->leave_one_out || width < 2) return;
    float lo2 = x[at_lo ? 0 : 1], hi2 = x[at_hi ? 0 : 1]; /* 去掉最小、最大之后的 */
    for (int64_t i = 0; i < width; i++) {
        if (i != at_lo && x[i] < lo2) lo2 = x[i];
        if (i != at_hi && x[i] > hi2) hi2 = x[i];
    }
    Levels all = grid_of(*lo, *hi, s->o->w_bits);
    float base = group_error(x, u, step, width, all, -1), kept_lo = INFINITY, kept_hi = -INFINITY;
    for (int64_t j = 0; j < width; j++) {
        Levels g = all;
        if (j == at_lo || j == at_hi)
            g = grid_of(j == at_lo ? lo2 : *lo, j == at_hi ? hi2 : *hi, s->o->w_bits);
        float d = (rounded(x[j], all) - x[j]) / u[j * step];
        float gain = j == at_lo || j == at_hi ? base - group_error(x, u, step, width, g, j) : d * d;
        if (gain > s->limit) continue;
        if (x[j] < kept_lo) kept_lo = x[j];
        if (x[j] > kept_hi) kept_hi = x[j];
    }
    *lo = kept_lo;
    *hi = kept_hi; /* 全是离群值时 lo > hi，grid_of 取 ±1 */
}

/* 行 [r0,r1) 的第 g 组的一种统计再量化：由这些行的范围定二级格点，值换成量化后的。 */
static void quantize_stat(Solver *s, StatKind kind, int64_t bits, int64_t r0, int64_t r1, int64_t g) {
    float *v = (kind == STAT_SCALE ? s->scale : s->zero) + g, lo = INFINITY, hi = -INFINITY;
    for (int64_t r = r0; r < r1; r++) {
        float *x = v + r * s->n_groups;
        if (!bits && s->o->scale_dtype == SCALE_F16) *x = f16_to_f32(f32_to_f16(*x));
        if (*x < lo) lo = *x;
        if (*x > hi) hi = *x;
    }
    if (!bits) return;
    Levels grid = grid_of(lo, hi, bits);
    qtensor_set_stat_grid(&s->q, kind, r0 / s->o->stat_rows, g, (StatGrid){grid.scale, grid.zero});
    StatGrid stored = qtensor_stat_grid(&s->q, kind, r0 / s->o->stat_rows, g);
    grid.scale = stored.scale;
    grid.zero = stored.zero;
    for (int64_t r = r0; r < r1; r++) {
        float code = code_of(v[r * s->n_groups], grid);
        qtensor_set_stat_code(&s->q, kind, r, g, (int)code);
        v[r * s->n_groups] = grid.scale * (code - grid.zero);
    }
}

/* 行 [r0,r1) 的第 g 组：由当时的 W 定 scale、zero，再量化。 */
static void fit_group(Solver *s, int64_t r0, int64_t r1, int64_t g) {
    int64_t col = g * s->group, width = col + s->group < s->cols ? s->group : s->cols - col;
    for (int64_t r = r0; r < r1; r++) {
        float lo, hi;
        group_range(s, s->w + r * s->cols + col, col, width, &lo, &hi);
        Levels grid = grid_of(lo, hi, s->o->w_bits);
        s->scale[r * s->n_groups + g] = grid.scale;
        s->zero[r * s->n_groups + g] = grid.zero;
    }
    quantize_stat(s, STAT_SCALE, s->o->scale_bits, r0, r1, g);
    quantize_stat(s, STAT_ZERO, s->o->zero_bits, r0, r1, g);
}

/* 一行的列 [c1,c2)（同一组）的递推：太敏感的留作离群值（没有误差），其余取整，误差补偿到本块末 i2。 */
static void solve_row(Solver *s, int64_t r, int64_t c1, int64_t c2, int64_t i1, int64_t i2) {
    int64_t at = r * s->n_groups + c1 / s->group;
    Levels g = {s->scale[at], s->zero[at], (float)((1 << s->o->w_bits) - 1)};
    float *w = s->w + r * s->cols, *err = s->err + r * (i2 - i1) - i1;
    for (int64_t i = c1; i < c2; i++) {
        const float *u = s->u + i * s->cols;
        float q = rounded(w[i], g), d = (w[i] - q) / u[i];
        bool keep = d * d > s->limit;
        s->outlier[r * s->cols + i] = keep;
        err[i] = keep ? 0 : d;
        if (keep) continue;
        w[i] = q;
        for (int64_t j = i + 1; j < i2; j++) w[j] -= d * u[j];
    }
}

typedef struct BlockTask {
    Solver *s;
    int64_t i1, i2;
} BlockTask;

/* 共用二级格点的若干行在块 [i1,i2) 内：到组首就定格点，然后逐行递推。 */
static void rows_task(void *ctx, int64_t row_group) {
    const BlockTask *t = ctx;
    Solver *s = t->s;
    int64_t r0 = row_group * s->o->stat_rows, r1 = r0 + s->o->stat_rows;
    if (r1 > s->rows) r1 = s->rows;
    for (int64_t c = t->i1, end; c < t->i2; c = end) {
        end = (c / s->group + 1) * s->group;
        if (end > t->i2) end = t->i2;
        if (c % s->group == 0) fit_group(s, r0, r1, c / s->group);
        for (int64_t r = r0; r < r1; r++) solve_row(s, r, c, end, t->i1, t->i2);
    }
}

static bool solve(Solver *s, Err *e) {
    int64_t row_groups = (s->rows - 1) / s->o->stat_rows + 1;
    Backend *b = job_backend(s->job);
    for (int64_t i1 = 0; i1 < s->cols; i1 += s->o->block_size) {
        int64_t i2 = i1 + s->o->block_size < s->cols ? i1 + s->o->block_size : s->cols;
        BlockTask t = {s, i1, i2};
        HostView v = host_view(b);
        s->w = HOST_MAP(&v, float, s->w_mem, s->rows *s->cols, HOST_BOTH);
        s->err = HOST_MAP(&v, float, s->err_mem, s->rows *(i2 - i1), HOST_WRITE);
        if (s->w && s->err) job_parallel(s->job, row_groups, rows_task, &t);
        host_end(&v);
        hessian_update_rest(&s->h, b, s->w_mem, s->err_mem, s->rows, i1, i2);
        if (!backend_check(b, e)) return false;
    }
    return true;
}

/* 阈值：τ·mean_c(var(W[:,c])/U_cc²)，方差按行数减一。 */
static float outlier_limit(const Solver *s) {
    double total = 0;
    for (int64_t c = 0; c < s->cols && s->rows > 1; c++) {
        double sum = 0, square = 0, u = (double)s->u[c * (s->cols + 1)];
        for (int64_t r = 0; r < s->rows; r++) sum += (double)s->w[r * s->cols + c];
        for (int64_t r = 0; r < s->rows; r++) {
            double d = (double)s->w[r * s->cols + c] - sum / (double)s->rows;
            square += d * d;
        }
        total += square / (double)(s->rows - 1) / (u * u);
    }
    return (float)(s->o->threshold * total / (double)s->cols);
}

/* 离群值存成稀疏；其余取整装包（那些位置的编码取 0 的码）；列序一起存。 */
static bool pack(Solver *s, Linear *l, Err *e) {
    Backend *b = job_backend(s->job);
    Arena *model = job_model_arena(s->job), *a = job_scratch(s->job);
    int64_t ng = s->rows * s->n_groups;
    float *scale = ARENA_ARRAY(a, float, ng, e), *zero = ARENA_ARRAY(a, float, ng, e);
    HostView v = host_view(b);
    s->w = HOST_MAP(&v, float, s->w_mem, s->rows *s->cols, HOST_BOTH);
    bool ok = scale && zero && s->w &&
              qtensor_set_outliers(&s->q, job_host(s->job), s->w, s->outlier, e);
    for (int64_t i = 0; ok && i < s->rows * s->cols; i++)
        if (s->outlier[i]) s->w[i] = 0;
    host_end(&v);
    if (!backend_check(b, e) || !ok || !qtensor_to_backend(b, &s->q, model, e)) return false;
    if (s->o->act_order && !qtensor_store_perm(b, &s->q, model, s->h.perm, e)) return false;
    op_write(b, scale, s->scale, (size_t)ng * sizeof *scale);
    op_write(b, zero, s->zero, (size_t)ng * sizeof *zero);
    op_quantize(b, &s->q, tensor_f32(s->w_mem, s->rows, s->cols),
                tensor_f32(scale, s->rows, s->n_groups), tensor_f32(zero, s->rows, s->n_groups));
    return backend_check(b, e) && linear_set_quantized(l, &s->q);
}

static bool open_solver(Solver *s, const QSpec *spec, Err *e) {
    Arena *a = job_scratch(s->job), *host = job_host(s->job);
    TwoLevel two = {(int)s->o->scale_bits, (int)s->o->zero_bits, s->o->stat_rows};
    if (!qtensor_new_two_level(&s->q, host, *spec, two, s->rows, s->cols, e))
        return false;
    s->group = s->q.spec.group_size;
    s->n_groups = s->q.n_groups;
    s->w_mem = ARENA_ARRAY(a, float, s->rows * s->cols, e);
    s->err_mem = ARENA_ARRAY(a, float, s->rows * s->o->block_size, e);
    s->outlier = ARENA_ARRAY(host, uint8_t, s->rows * s->cols, e);
    s->scale = ARENA_ARRAY(host, float, s->rows * s->n_groups, e);
    s->zero = ARENA_ARRAY(host, float, s->rows * s->n_groups, e);
    return s->w_mem && s->err_mem && s->outlier && s->scale && s->zero;
}

static bool spqr_linear(QuantJob *job, Linear *l, Tensor w, const InputStats *st, Err *e) {
    Solver s = {.job = job, .o = job_options(job), .rows = l->rows, .cols = l->cols};
    QSpec spec = {.bits = (int)s.o->w_bits, .group_size = s.o->group_size, .zero = ZERO_FLOAT,
                  .scale_dtype = s.o->scale_dtype == SCALE_F16 ? DT_F16 : DT_F32};
    int64_t rest = spec.group_size > 0 && spec.group_size < l->cols ? l->cols % spec.group_size : 0;
    if (rest)
        job_fallback(job, "组宽 %lld 不整除 %lld 列，每行末组取 %lld 列", (long long)spec.group_size,
                     (long long)l->cols, (long long)rest);
    if (!open_solver(&s, &spec, e) ||
        !job_factor_hessian(job, l, st, s.o->act_order, s.o->damp, &s.h, e))
        return false;
    Backend *b = job_backend(job);
    hessian_gather(&s.h, b, s.w_mem, tensor_data_f32(w), s.rows);
    HostView v = host_view(b), first = host_view(b);
    s.u = HOST_MAP(&v, float, s.h.u, s.cols *s.cols, HOST_READ);
    s.w = HOST_MAP(&first, float, s.w_mem, s.rows *s.cols, HOST_READ);
    bool ok = s.u && s.w;
    if (ok) s.limit = outlier_limit(&s);
    host_end(&first);
    ok = backend_check(b, e) && ok && solve(&s, e);
    host_end(&v);
    return ok && pack(&s, l, e);
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
