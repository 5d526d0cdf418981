/* smoothquant — SmoothQuant（Xiao 等，arXiv 2211.10438）：把激活的离群值移给权重，再做 W8A8
 * 符号同论文 §4：Y = (X·diag(s)⁻¹)·(diag(s)·W)，s_j = max|X_j|^α / max|W_j|^(1−α)（式 4）。
 * diag(s)⁻¹ 折进前面的归一化，所以只有 qkv 与 gate/up（专家的同一个 s，路由也折；MLA 的 q_b、kv_b）的输入可以平滑
 * （官方 smooth_ln_fcs_llama_like）；
 * max|X_j| 取自原模型的校准激活。取整同官方 fake_quant.py：max|·|/127，就近取偶。
 * 静态 scale 是平滑之后的 max|X|/127：折叠只除以 s_j，故等于 max_j(max|X_j|/s_j)，不必再跑一遍。 */
#include "methods/base.h"

enum { PRESET_NONE, PRESET_O1, PRESET_O2, PRESET_O3 };
enum { SEARCH_ROWS = 256, SEARCH_STEPS = 20, OUTPUT_ROWS = 512 };

typedef struct SmoothOptions {
    WeightOptions weight;
    ActOptions act;
    double alpha;
    bool search, smooth;
    int preset;
} SmoothOptions;

static const char *const PRESETS[] = {"none", "O1", "O2", "O3", NULL};
static const Option OPTIONS[] = {
    WEIGHT_OPTIONS(SmoothOptions, weight), ACT_OPTIONS(SmoothOptions, act),
    OPT_FLOAT(SmoothOptions, alpha, "smoothquant.alpha", 0.5, 0, 1,
              "迁移强度 α：0 全留在激活，1 全移给权重；search 时不用"),
    OPT_BOOL(SmoothOptions, search, "smoothquant.search", 0,
             "逐层在 0、0.05、…、1 中选使线性层输出误差最小的 α"),
    OPT_BOOL(SmoothOptions, smooth, "smoothquant.smooth", 1, "是否平滑；false 即直接 W8A8"),
    OPT_ENUM(SmoothOptions, preset, "smoothquant.preset", PRESETS, PRESET_NONE,
             "论文表 2 的设置：权重每矩阵一个 scale，激活 O1 每 token、O2 每张量、O3 静态，"
             "注意力的矩阵乘也量化；盖过上面各项"),
    OPT_END};

/* 合上预设之后的选项。 */
static SmoothOptions effective(const void *options) {
    SmoothOptions o = *(const SmoothOptions *)options;
    if (o.preset == PRESET_NONE) return o;
    o.weight.granularity = PER_TENSOR;
    o.act.scheme = o.preset == PRESET_O1 ? ACT_TOKEN : o.preset == PRESET_O2 ? ACT_TENSOR : ACT_STATIC;
    o.act.bmm = true;
    return o;
}

/* 式 (4)。w_max 是组内各线性层第 j 列的 max|W_j|。 */
static void smoothing(float *s, const float *x_max, const float *w_max, int64_t n, float alpha) {
    for (int64_t j = 0; j < n; j++)
        s[j] = fmaxf(powf(x_max[j], alpha) / powf(fmaxf(w_max[j], 1e-5f), 1 - alpha), 1e-5f);
}

static float max_ratio(const float *x_max, const float *s, int64_t n) {
    float m = 0;
    for (int64_t j = 0; j < n; j++) m = fmaxf(m, s ? x_max[j] / s[j] : x_max[j]);
    return m;
}

/* 一组在搜索与折叠中共用的：max|X|、max|W|（主机），s（主机与后端）。 */
typedef struct Smoother {
    QuantJob *job;
    const SmoothOptions *o;
    int64_t cols;
    float *x_max, *w_max, *s;
    float *col;
} Smoother;

static int64_t n_linears(const QuantBlock *b) {
    return b->model->blocks[b->layer].n_linears;
}

/* 组内在第 r 个之后的线性层；没有了为 −1。 */
static int64_t next_linear(const QuantBlock *b, const Group *g, int64_t r) {
    return group_next(&b->model->blocks[b->layer], g, r);
}

/* 由 α 定 s。 */
static void set_scale(Smoother *m, float alpha) {
    smoothing(m->s, m->x_max, m->w_max, m->cols, alpha);
    op_write(job_backend(m->job), m->col, m->s, (size_t)m->cols * sizeof *m->s);
}

/* dst 的各列 = w 的各列乘 s。 */
static void scale_columns(Smoother *m, float *dst, Tensor w) {
    op_scale(job_backend(m->job), tensor_f32(dst, w.shape[0], w.shape[1]), w,
             (Tensor){0}, tensor_f32_1d(m->col, m->cols));
}

/* 一个候选 s 下一个线性层的输出误差 ‖X·Wᵀ − Q(X/s)·Q(W·s)ᵀ‖²。x 是 X/s。 */
static bool candidate_error(Smoother *m, const Linear *l, Tensor x, Tensor target,
                            float in_max, double *error, Err *e) {
    QuantJob *job = m->job;
    const SmoothOptions *o = m->o;
    Backend *b = job_backend(job);
    Arena *a = job_scratch(job);
    ArenaMark mark = arena_mark(a);
    Linear trial = {.name = l->name, .role = ROLE_O, .rows = l->rows, .cols = l->cols};
    int64_t n = x.shape[0];
    float *ws = ARENA_ARRAY(a, float, l->rows * l->cols, e);
    float *y = ARENA_ARRAY(a, float, n * l->rows, e);
    QSpec spec;
    bool ok = ws && y && job_int8_spec(job, &o->weight, &o->act, l->cols, &spec, e);
    if (ok) {
        scale_columns(m, ws, linear_weight(l));
        ok = job_round_nearest(job, &trial.q, a, tensor_f32(ws, l->rows, l->cols), &spec, e) &&
             job_set_act(&trial, &o->act, in_max, 0, e);
    }
    if (ok) {
        double sum = 0;
        op_linear_int8(b, tensor_f32(y, n, l->rows), x, &trial.q, (Tensor){0}, &trial.act);
        op_row_errors(b, &sum, tensor_f32(y, 1, n * l->rows), tensor_data_f32(target), n * l->rows);
        ok = backend_check(b, e);
        *error += sum;
    }
    arena_rewind(a, mark);
    return ok;
}

/* 在网格上选 α：各候选在 SEARCH_ROWS 个校准 token 上的输出误差，组内各线性层相加。 */
static bool search_alpha(Smoother *m, const QuantBlock *b, const Group *g, float *alpha,
                         Err *e) {
    QuantJob *job = m->job;
    Backend *be = job_backend(job);
    const InputStats *st = &b->stats[g->input];
    Arena *a = job_scratch(job);
    int64_t cols = st->cols, n = st->n_inputs < SEARCH_ROWS ? st->n_inputs : SEARCH_ROWS;
    float *x = ARENA_ARRAY(a, float, n * cols, e), *xs = ARENA_ARRAY(a, float, n * cols, e);
    Tensor *target = ARENA_ARRAY(job_host(job), Tensor, n_linears(b), e);
    if (!x || !xs || !target) return false;
    for (int64_t i = 0; i < n; i++)
        op_copy(be, x + i * cols, st->inputs + st->n_inputs * i / n * cols, (size_t)cols * sizeof *x);
    for (int64_t r = -1; (r = next_linear(b, g, r)) >= 0;) {
        int64_t rows = b->linears[r].rows;
        target[r] = tensor_f32(ARENA_ARRAY(a, float, n * rows, e), n, rows);
        if (!target[r].data) return false;
        op_linear_exact(be, target[r], tensor_f32(x, n, cols), &b->linears[r].q);
    }
    double best = INFINITY;
    for (int i = 0; i <= SEARCH_STEPS; i++) {
        float candidate = (float)i / SEARCH_STEPS;
        double error = 0;
        set_scale(m, candidate);
        op_divide(be, tensor_f32(xs, n, cols), x, cols, tensor_f32_1d(m->col, cols));
        for (int64_t r = -1; (r = next_linear(b, g, r)) >= 0;)
            if (!candidate_error(m, &b->linears[r], tensor_f32(xs, n, cols), target[r],
                                 max_ratio(m->x_max, m->s, cols), &error, e))
                return false;
        if (error < best) {
            best = error;
            *alpha = candidate;
        }
    }
    return true;
}

/* 备好一组：读出 max|X|，求 max|W|。内存活到本块结束。 */
static bool open_smoother(Smoother *m, const QuantBlock *b, const Group *g, Err *e) {
    Backend *be = job_backend(m->job);
    Arena *a = job_scratch(m->job), *host = job_host(m->job);
    int64_t cols = m->cols;
    float *w_max = ARENA_ARRAY(a, float, cols, e);
    m->col = ARENA_ARRAY(a, float, cols, e);
    m->x_max = ARENA_ARRAY(host, float, cols, e);
    m->w_max = ARENA_ARRAY(host, float, cols, e);
    m->s = ARENA_ARRAY(host, float, cols, e);
    if (!w_max || !m->col || !m->x_max || !m->w_max || !m->s) return false;
    for (int64_t r = -1; (r = next_linear(b, g, r)) >= 0;)
        op_column_stats(be, w_max, NULL, linear_weight(&b->linears[r]));
    if (g->routed) /* 官方把路由也算在内 */
        op_column_stats(be, w_max, NULL, tensor_f32(b->model->blocks[b->layer].router, b->model->config.n_experts, cols));
    op_read(be, m->w_max, w_max, (size_t)cols * sizeof *w_max);
    op_read(be, m->x_max, b->stats[g->input].absmax, (size_t)cols * sizeof *w_max);
    return backend_check(be, e);
}

/* 平滑一组：求 s，norm /= s，各 W 的第 j 列乘 s_j。返回的 s（主机）活到本块结束。 */
static bool smooth_group(QuantJob *job, const SmoothOptions *o, QuantBlock *b, const Group *g,
                         float **s_out, Err *e) {
    Smoother m = {.job = job, .o = o, .cols = b->stats[g->input].cols};
    if (!open_smoother(&m, b, g, e)) return false;
    Arena *a = job_scratch(job);
    float alpha = (float)o->alpha;
    ArenaMark mark = arena_mark(a);
    bool ok = !o->search || search_alpha(&m, b, g, &alpha, e);
    arena_rewind(a, mark);
    if (!ok) return false;
    set_scale(&m, alpha);
    float *const norm[] = {b->attn_norm, b->mlp_norm};
    *s_out = m.s;
    return group_fold_scale(b->model, b->layer, g, norm, m.s, e);
}

/* q、k、v 的输出在校准中的 max|·|（平滑不改变它），由原输入与稠密权重算出。 */
static bool output_max(QuantJob *job, const Linear *l, const InputStats *st, float *m, Err *e) {
    Backend *b = job_backend(job);
    Arena *a = job_scratch(job);
    ArenaMark mark = arena_mark(a);
    float *y = ARENA_ARRAY(a, float, OUTPUT_ROWS * l->rows, e);
    *m = 0;
    for (int64_t i = 0; y && i < st->n; i += OUTPUT_ROWS) {
        int64_t n = st->n - i < OUTPUT_ROWS ? st->n - i : OUTPUT_ROWS;
        op_linear_exact(b, tensor_f32(y, n, l->rows),
                        tensor_f32(st->inputs + i * l->cols, n, l->cols), &l->q);
        HostView v = host_view(b);
        const float *out = HOST_MAP(&v, float, y, n *l->rows, HOST_READ);
        const float *bias = HOST_MAP(&v, float, l->bias, l->rows, HOST_READ);
        for (int64_t k = 0; out && k < n * l->rows; k++)
            *m = fmaxf(*m, fabsf(out[k] + (bias ? bias[k % l->rows] : 0)));
        host_end(&v);
    }
    arena_rewind(a, mark);
    return y && backend_check(b, e);
}

/* 线性层的输入（平滑之后）在校准中的 max|·|。 */
static bool input_max(QuantJob *job, const InputStats *st, const float *s, float *m, Err *e) {
    HostView v = host_view(job_backend(job));
    const float *x_max = HOST_MAP(&v, float, st->absmax, st->cols, HOST_READ);
    if (x_max) *m = max_ratio(x_max, s, st->cols);
    host_end(&v);
    return backend_check(job_backend(job), e);
}

/* 各组的 s，s[i] 为 NULL 是没有平滑。归一化之后的输入才平滑。 */
static bool smooth_groups(QuantJob *job, const SmoothOptions *o, QuantBlock *b, float **s, Err *e) {
    int n = block_n_groups(&b->model->config, b->layer), n_smoothed = 0;
    Group *g = ARENA_ARRAY(job_host(job), Group, n, e);
    if (!g) return false;
    group_list(b->model, b->layer, g);
    for (int i = 0; i < n; i++) {
        if (g[i].feed != FEED_NORM) continue;
        if (!smooth_group(job, o, b, &g[i], &s[i], e)) return false;
        n_smoothed++;
    }
    if (n_smoothed) return true;
    return err_set(e, ERR_UNSUPPORTED,
                   "家族 %s 的归一化不在 qkv、gate/up 之前（或没有权重、两处共用），平滑无处可折；"
                   "请用 smoothquant.smooth=false 或 rtn",
                   b->model->config.arch->name);
}

/* 取整一层。静态时专家的 gate、up 用各专家共同的最大值；down 只有路由到它的，太少就当场求。 */
static bool round_linear(QuantJob *job, const SmoothOptions *o, const QuantBlock *b, Linear *l, float *const *s,
                         float out_max, Err *e) {
    ActOptions act = o->act;
    float in_max = 0;
    int from = group_of(l->group);
    const InputStats *st = b->stats ? &b->stats[from] : NULL;
    if (act.scheme == ACT_STATIC && from >= GROUP_EXPERTS && st->n < EXPERT_MIN_TOKENS) {
        act.scheme = ACT_TOKEN;
        job_fallback(job, "%s: 校准中只有 %lld 个 token（少于 %d），激活的 scale 改为逐 token 当场求", l->name,
                     (long long)st->n, EXPERT_MIN_TOKENS);
    }
    QSpec spec;
    return (!st || input_max(job, st, s[from], &in_max, e)) &&
           job_int8_spec(job, &o->weight, &act, l->cols, &spec, e) &&
           job_quantize_nearest(job, l, linear_weight(l), &spec, e) && job_set_act(l, &act, in_max, out_max, e);
}

static bool smooth_block(QuantJob *job, QuantBlock *b, Err *e) {
    SmoothOptions o = effective(job_options(job));
    float out_max[ROLE_COUNT + 1] = {0};
    for (LinearRole r = ROLE_Q; o.act.scheme == ACT_STATIC && o.act.bmm && r <= ROLE_V; r++)
        if (!output_max(job, &b->linears[r], &b->stats[INPUT_QKV], &out_max[r], e)) return false;
    float **s = ARENA_ARRAY(job_host(job), float *, block_n_groups(&b->model->config, b->layer), e);
    if (!s || (o.smooth && !smooth_groups(job, &o, b, s, e))) return false;
    for (int64_t r = 0; r < n_linears(b); r++) {
        Linear *l = &b->linears[r];
        if (l->rows && !round_linear(job, &o, b, l, s, out_max[l->role], e)) return err_wrap(e, "%s", l->name);
    }
    return true;
}

static bool smooth_check(const void *options, char track, Err *e) {
    SmoothOptions o = effective(options);
    (void)track;
    if (o.act.scheme == ACT_NONE)
        return err_set(e, ERR_CONFIG, "smoothquant 须量化激活：activation.scheme 不能为 none");
    return check_weight_options(&o.weight, true, e) && check_act_options(&o.weight, &o.act, e);
}

static bool smooth_quantize(QuantJob *job, Err *e) {
    SmoothOptions o = effective(job_options(job));
    bool is_static = o.act.scheme == ACT_STATIC;
    unsigned stats = STAT_NONE;
    if (o.smooth || is_static) stats |= STAT_ABSMAX;
    if ((o.smooth && o.search) || (is_static && o.act.bmm)) stats |= STAT_INPUTS;
    return quantize_each_block(job, stats, FLOW_ORIGINAL, smooth_block, e);
}

PTQ_METHOD(smoothquant) = {.name = "smoothquant", .tracks = "B", .options = OPTIONS,
                           .options_size = sizeof(SmoothOptions), .calibrated = true,
                           .check = smooth_check, .quantize = smooth_quantize};
