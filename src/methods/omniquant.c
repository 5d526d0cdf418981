/* omniquant — OmniQuant（Shao 等，arXiv 2308.13137）：逐块以梯度学习权重的钳位（LWC）与等价变换（LET）
 * LWC（§3.2 式 2）：每组 scale = (σ(γ)·max w − σ(β)·min w)/(2^b−1)，γ、β 可学，初值 4。
 * LET（§3.3 式 3–5）：对输入通道乘除可学的 s，折进归一化、v/o、q/k。与官方 LLaMA 实现相同，没有位移。
 * 损失是块的输出与全精度输出的均方误差；取整用直通估计。格点与 OpenGVLab/OmniQuant 的 quantizer.py 相同。
 * 与官方不同：v/o、q/k 的 s 在共用键值头（GQA）与 RoPE 的同一对之间共用，使变换严格等价；激活的格点对称。 */
#include "methods/base.h"

enum { LET_AUTO, LET_ON, LET_OFF };
enum { GROUP_STATS = 7 }; /* 每组有几个量，见 Learner */
static const char *const LET[] = {"auto", "on", "off", NULL};

typedef struct OmniOptions {
    WeightOptions weight;
    ActOptions act;
    int64_t epochs;
    int let;
    bool lwc;
    double lwc_lr, let_lr, alpha;
} OmniOptions;

static const Option OPTIONS[] = {
    WEIGHT_OPTIONS(OmniOptions, weight),
    ACT_OPTIONS(OmniOptions, act),
    OPT_BOOL(OmniOptions, lwc, "omniquant.lwc", 1, "学习权重的钳位"),
    OPT_ENUM(OmniOptions, let, "omniquant.let", LET, LET_AUTO,
             "学习等价变换；auto：量化激活时开（同官方脚本）"),
    OPT_INT(OmniOptions, epochs, "omniquant.epochs", 20, 0, 1000, "每块走几遍校准集"),
    OPT_FLOAT(OmniOptions, lwc_lr, "omniquant.lwc_lr", 0.01, 0, 1, "钳位的学习率"),
    OPT_FLOAT(OmniOptions, let_lr, "omniquant.let_lr", 0.005, 0, 1, "等价变换的学习率"),
    OPT_FLOAT(OmniOptions, alpha, "omniquant.alpha", 0.5, 0, 1,
              "等价变换的初值 s = max|x|^α / max|w|^(1−α)"),
    OPT_END};

static const float INIT = 4, SCALE_MIN = 1e-5f, SCALE_MAX = 1e4f, LET_MIN = 1e-2f;

/* 一个线性层的可学习量化。w 原权重，u 变换后，q 量化再反量化后（op_fake_pack 的 y）；d_* 是损失的导数。 */
typedef struct Learner {
    Linear *l;
    QSpec spec;
    int64_t rows, cols, n_groups;
    bool symmetric;
    const float *w, *bias;
    float *u, *q, *d_q, *d_bias;
    float *lo, *hi, *scale, *zero, *d_scale, *d_lo, *d_hi;
    float *low, *high, *d_low, *d_high; /* β、γ，参数向量的一段；不学时为 NULL */
    ScaleMap map;                     /* LET：u = row·w·col 的因子各取哪个 s */
    float *row, *col, *d_row, *d_col; /* 因子与导数 */
    QTensor packed;                     /* q 的稠密面板，训练时的前向用 */
} Learner;

typedef struct Omni {
    QuantJob *job;
    const OmniOptions *o;
    QuantBlock *b;
    Backend *backend;
    Learner learners[ROLE_COUNT];
    AdamW lwc, let;
    bool use_let;
    float *norm[2], *d_norm[2]; /* 原来的归一化权重 */
    int64_t s_norm[2];          /* 两个归一化各自的 s 从第几个起 */
} Omni;

static Tensor wide(const Learner *n, const float *x) {
    return tensor_f32((float *)x, n->rows, n->cols);
}
static Tensor groups(const Learner *n, const float *x) {
    return tensor_f32((float *)x, n->rows, n->n_groups);
}

/* ---- 前向：参数 → 量化后的权重（官方 smooth_and_quant_temporary） ---- */

/* LET：由 s（主机）得各行、列的因子，u = row·w·col，偏置 = row·原偏置。 */
static void smooth(Omni *m, Learner *n, const float *s) {
    HostView v = host_view(m->backend);
    float *row = HOST_MAP(&v, float, n->row, n->rows, HOST_WRITE);
    float *col = HOST_MAP(&v, float, n->col, n->cols, HOST_WRITE);
    float *to = HOST_MAP(&v, float, n->bias ? n->l->bias : NULL, n->rows, HOST_WRITE);
    const float *bias = HOST_MAP(&v, float, n->bias, n->rows, HOST_READ);
    if (row && col) scale_map_factors(&n->map, s, row, col);
    for (int64_t r = 0; row && to && bias && r < n->rows; r++) to[r] = bias[r] * row[r];
    host_end(&v);
    op_scale(m->backend, wide(n, n->u), wide(n, n->w), tensor_f32_1d(n->row, n->rows),
             tensor_f32_1d(n->col, n->cols));
    op_group_range(m->backend, groups(n, n->lo), groups(n, n->hi), wide(n, n->u), &n->spec);
}

/* 各组的量依次排在一处，各参数亦然。 */
static void place_groups(Learner *n, float *stats, float *param, float *grad) {
    int64_t ng = n->rows * n->n_groups;
    float **each[] = {&n->lo, &n->hi, &n->scale, &n->zero, &n->d_scale, &n->d_lo, &n->d_hi};
    for (int i = 0; i < GROUP_STATS; i++) *each[i] = stats ? stats + i * ng : NULL;
    n->low = param;
    n->high = param ? param + ng : NULL;
    n->d_low = grad;
    n->d_high = grad ? grad + ng : NULL;
}

/* 钳位的参数与格点。 */
static ClampJob clamp_job(const Learner *n) {
    return (ClampJob){.n = n->rows * n->n_groups, .bits = n->spec.bits, .symmetric = n->symmetric,
                      .least = SCALE_MIN, .most = SCALE_MAX, .lo = n->lo, .hi = n->hi, .low = n->low,
                      .high = n->high, .scale = n->scale, .zero = n->zero, .d_scale = n->d_scale,
                      .d_low = n->d_low, .d_high = n->d_high, .d_lo = n->d_lo, .d_hi = n->d_hi};
}

static void quantize_weights(Omni *m) {
    HostView v = host_view(m->backend);
    const float *s = HOST_MAP(&v, float, m->let.param, m->let.n, HOST_READ);
    int64_t d = m->b->model->config.hidden;
    for (int i = 0; i < 2 && m->use_let; i++) {
        float *to = i ? m->b->mlp_norm : m->b->attn_norm;
        op_divide(m->backend, tensor_f32(to, 1, d), m->norm[i], d,
                  tensor_f32_1d(m->let.param + m->s_norm[i], d));
    }
    for (LinearRole r = 0; r < ROLE_COUNT; r++) {
        Learner *n = &m->learners[r];
        if (m->use_let && s) smooth(m, n, s);
        ClampJob clamp = clamp_job(n);
        op_clamp_grid(m->backend, &clamp);
        op_fake_pack(m->backend, &n->packed, wide(n, n->q), wide(n, n->u), groups(n, n->scale),
                     groups(n, n->zero), &n->spec);
    }
    host_end(&v);
}

/* ---- 反向：dL/d(量化后的权重) → 参数的梯度 ---- */

/* 一个线性层的 s 的梯度，加进 grad（主机）；d_q 里是 dL/du。各行、各列共用的 s 依次累加。 */
static void smooth_back(Omni *m, Learner *n, const float *s, float *grad) {
    op_group_range_grad(m->backend, wide(n, n->d_q), wide(n, n->u), groups(n, n->lo),
                        groups(n, n->hi), groups(n, n->d_lo), groups(n, n->d_hi), &n->spec);
    op_scale_grad(m->backend, tensor_f32_1d(n->d_row, n->rows), tensor_f32_1d(n->d_col, n->cols),
                  wide(n, n->d_q), wide(n, n->w), tensor_f32_1d(n->row, n->rows),
                  tensor_f32_1d(n->col, n->cols));
    HostView v = host_view(m->backend);
    float *d_row = HOST_MAP(&v, float, n->d_row, n->rows, HOST_BOTH);
    const float *d_col = HOST_MAP(&v, float, n->d_col, n->cols, HOST_READ);
    const float *bias = HOST_MAP(&v, float, n->bias, n->rows, HOST_READ);
    const float *d_bias = HOST_MAP(&v, float, n->d_bias, n->rows, HOST_READ);
    for (int64_t r = 0; d_row && bias && d_bias && r < n->rows; r++) d_row[r] += d_bias[r] * bias[r];
    if (m->backend->err.code == ERR_NONE) scale_map_grad(&n->map, s, d_row, d_col, grad);
    host_end(&v);
}

/* 归一化权重 = 原来的 / s。 */
static void norm_back(Omni *m, int i, const float *s, float *grad) {
    int64_t d = m->b->model->config.hidden;
    HostView v = host_view(m->backend);
    const float *d_norm = HOST_MAP(&v, float, m->d_norm[i], d, HOST_READ);
    const float *norm = HOST_MAP(&v, float, m->norm[i], d, HOST_READ);
    for (int64_t c = 0; d_norm && norm && c < d; c++) {
        float x = s[m->s_norm[i] + c];
        grad[m->s_norm[i] + c] -= d_norm[c] * norm[c] / (x * x);
    }
    host_end(&v);
}

static void parameter_gradients(Omni *m) {
    HostView v = host_view(m->backend);
    const float *s = HOST_MAP(&v, float, m->let.param, m->let.n, HOST_READ);
    float *grad = HOST_MAP(&v, float, m->let.grad, m->let.n, HOST_WRITE);
    bool let = m->use_let && s && grad;
    if (let) memset(grad, 0, (size_t)m->let.n * sizeof *grad);
    for (LinearRole r = 0; r < ROLE_COUNT; r++) {
        Learner *n = &m->learners[r];
        op_fake_quant_grad(m->backend, m->use_let ? wide(n, n->d_q) : tensor_f32(NULL, 0, 0),
                           groups(n, n->d_scale), wide(n, n->d_q), wide(n, n->u),
                           groups(n, n->scale), groups(n, n->zero), &n->spec);
        ClampJob clamp = clamp_job(n);
        op_clamp_grid_grad(m->backend, &clamp);
        if (let) smooth_back(m, n, s, grad);
    }
    for (int i = 0; i < 2 && let; i++) norm_back(m, i, s, grad);
    host_end(&v);
}

/* ---- 学习一块 ---- */

/* 8 位的量化噪声与 bf16 的舍入相当，须全程 f32（官方的 deactive_amp）；更低的位宽随后端。 */
static ComputeMode train_precision(const Omni *m) {
    bool fine = m->o->weight.w_bits >= 8 || m->o->act.scheme != ACT_NONE;
    return fine ? COMPUTE_F32 : m->backend->compute;
}

/* 一个样本的前向、反向与一步更新。 */
static bool train_step(Omni *m, BlockTrace *t, const BlockGrad *grad, int64_t sample, float *d_out,
                       Err *e) {
    QuantBlock *b = m->b;
    int64_t len = b->calib->length, at = sample * len * b->model->config.hidden;
    HostView v = host_view(m->backend);
    float *s = HOST_MAP(&v, float, m->let.param, m->let.n, HOST_BOTH);
    for (int64_t i = 0; s && i < m->let.n; i++) /* 官方 truncate_number：|s| 不小于 0.01 */
        if (fabsf(s[i]) < LET_MIN) s[i] = copysignf(LET_MIN, s[i]);
    host_end(&v);
    quantize_weights(m);
    for (LinearRole r = 0; r < ROLE_COUNT; r++) m->learners[r].l->q = m->learners[r].packed;
    if (!block_trace_forward(b->model, b->layer, t, b->inputs + at, len, e)) return false;
    double loss = block_trace_mse(t, b->model, b->targets + at, d_out);
    if (!backend_check(m->backend, e)) return false;
    if (!isfinite(loss))
        return err_set(e, ERR_NUMERIC, "OmniQuant 的损失不是有限值（样本 %lld），请减小学习率", (long long)sample);
    if (!block_trace_backward(b->model, b->layer, t, d_out, grad, e)) return false;
    parameter_gradients(m);
    if (m->o->lwc) adamw_step(&m->lwc, m->backend);
    if (m->use_let) adamw_step(&m->let, m->backend);
    return backend_check(m->backend, e);
}

static bool train(Omni *m, Err *e) {
    QuantBlock *b = m->b;
    const OmniOptions *o = m->o;
    int64_t len = b->calib->length;
    ActQuant act = {.kind = (ActKind)o->act.scheme, .bits = (int)o->act.a_bits};
    BlockGrad grad = {.attn_norm = m->d_norm[0], .mlp_norm = m->d_norm[1]};
    for (LinearRole r = 0; r < ROLE_COUNT; r++) {
        grad.w[r] = m->learners[r].d_q;
        grad.bias[r] = m->learners[r].d_bias;
        grad.dense[r] = m->learners[r].q;
    }
    BlockTrace t;
    float *d_out = ARENA_ARRAY(job_scratch(m->job), float, len * b->model->config.hidden, e);
    if (!d_out || !block_trace_open(&t, b->model, len, act, o->act.bmm, e)) return false;
    t.compute = train_precision(m);
    bool ok = true;
    for (int64_t epoch = 0; ok && epoch < o->epochs; epoch++)
        for (int64_t i = 0; ok && i < b->calib->n_samples; i++)
            ok = interrupt_check(e) && train_step(m, &t, &grad, i, d_out, e);
    block_trace_close(&t);
    return ok;
}

/* ---- 准备 ---- */

static float *floats(Omni *m, int64_t n, Err *e) {
    return ARENA_ARRAY(job_scratch(m->job), float, n, e);
}

static bool open_learner(Omni *m, LinearRole r, Err *e) {
    Learner *n = &m->learners[r];
    Linear *l = &m->b->linears[r];
    *n = (Learner){.l = l, .rows = l->rows, .cols = l->cols, .w = tensor_data_f32(m->b->w[r])};
    if (!job_weight_spec(m->job, &m->o->weight, l->cols, &n->spec, e)) return false;
    n->symmetric = n->spec.zero == ZERO_SYM;
    n->spec.zero = ZERO_INT; /* 对称的零点是 2^(b−1)−1，同官方 */
    n->n_groups = (n->cols - 1) / qspec_group_size(&n->spec, n->cols) + 1;
    int64_t size = n->rows * n->cols, ng = n->rows * n->n_groups;
    float *stats = floats(m, GROUP_STATS * ng, e);
    n->q = floats(m, size, e);
    n->d_q = floats(m, size, e);
    if (!stats || !n->q || !n->d_q) return false;
    place_groups(n, stats, NULL, NULL);
    n->u = tensor_data_f32(m->b->w[r]);
    op_group_range(m->backend, groups(n, n->lo), groups(n, n->hi), wide(n, n->w), &n->spec);
    return qtensor_new_dense(&n->packed, job_scratch(m->job),
                             train_precision(m) == COMPUTE_BF16 ? DT_BF16 : DT_F32, n->rows,
                             n->cols, e);
}

/* β、γ 排成一个向量，初值 4。 */
static bool open_lwc(Omni *m, Err *e) {
    int64_t n = 0, at = 0;
    for (LinearRole r = 0; r < ROLE_COUNT; r++) n += 2 * m->learners[r].rows * m->learners[r].n_groups;
    if (!adamw_new(&m->lwc, job_scratch(m->job), n, m->o->lwc_lr, e)) return false;
    HostView v = host_view(m->backend);
    float *param = HOST_MAP(&v, float, m->lwc.param, n, HOST_WRITE);
    for (int64_t i = 0; param && i < n; i++) param[i] = INIT;
    host_end(&v);
    for (LinearRole r = 0; r < ROLE_COUNT; r++) {
        Learner *l = &m->learners[r];
        place_groups(l, l->lo, m->lwc.param + at, m->lwc.grad + at);
        at += 2 * l->rows * l->n_groups;
    }
    return backend_check(m->backend, e);
}

/* s 的初值：s = max|x|^α / max|w|^(1−α)，w 取 q、up、o（官方的 pairs）；q/k 为 1。 */
static bool init_let(Omni *m, Err *e) {
    static const LinearRole PAIRS[] = {ROLE_Q, ROLE_UP, ROLE_O};
    Arena *host = job_host(m->job);
    float *x_max = ARENA_ARRAY(host, float, m->let.n, e), *w_max = ARENA_ARRAY(host, float, m->let.n, e);
    HostView v = host_view(m->backend);
    float *param = HOST_MAP(&v, float, m->let.param, m->let.n, HOST_WRITE), alpha = (float)m->o->alpha;
    bool ok = x_max && w_max && param;
    for (int64_t i = 0; ok && i < m->let.n; i++) param[i] = 1;
    for (int p = 0; ok && p < 3; p++) {
        const Learner *n = &m->learners[PAIRS[p]];
        ArenaMark mark = arena_mark(job_scratch(m->job));
        float *top = floats(m, n->cols, e);
        if (top) op_column_stats(m->backend, top, NULL, wide(n, n->w));
        const float *w_top = HOST_MAP(&v, float, top, n->cols, HOST_READ);
        const float *seen = HOST_MAP(&v, float, m->b->stats[input_group(PAIRS[p])].absmax, n->cols,
                                     HOST_READ);
        ok = w_top && seen;
        for (int64_t c = 0; ok && c < n->cols; c++) {
            int32_t i = n->map.col[c];
            x_max[i] = fmaxf(x_max[i], seen[c]);
            w_max[i] = fmaxf(w_max[i], w_top[c]);
            float s = powf(fmaxf(x_max[i], 1e-5f), alpha) / powf(fmaxf(w_max[i], 1e-5f), 1 - alpha);
            param[i] = fmaxf(s, 1e-5f);
        }
        arena_rewind(job_scratch(m->job), mark);
    }
    host_end(&v);
    return backend_check(m->backend, e) && ok;
}

static float *copy(Omni *m, const float *x, int64_t n, Err *e) {
    float *y = floats(m, n, e);
    if (y) op_copy(m->backend, y, x, (size_t)n * sizeof *y);
    return y;
}

static bool open_let(Omni *m, Err *e) {
    const Model *model = m->b->model;
    int64_t d = model->config.hidden;
    int64_t n_s = group_learned_scales(model, m->b->layer, &m->s_norm[0], &m->s_norm[1]);
    if (!adamw_new(&m->let, job_scratch(m->job), n_s, m->o->let_lr, e)) return false;
    for (int i = 0; i < 2; i++)
        if (!(m->norm[i] = copy(m, i ? m->b->mlp_norm : m->b->attn_norm, d, e)) ||
            !(m->d_norm[i] = floats(m, d, e)))
            return false;
    for (LinearRole r = 0; r < ROLE_COUNT; r++) {
        Learner *n = &m->learners[r];
        n->row = floats(m, 2 * (n->rows + n->cols), e);
        n->w = copy(m, n->w, n->rows * n->cols, e); /* u 就在 b->w 里，学完即是折叠后的权重 */
        if (!n->row || !n->w || !scale_map_new(&n->map, job_host(m->job), model, m->b->layer, r, e))
            return false;
        n->d_row = n->row + n->rows;
        n->col = n->d_row + n->rows;
        n->d_col = n->col + n->cols;
        if (n->l->bias && (!(n->bias = copy(m, n->l->bias, n->rows, e)) ||
                           !(n->d_bias = floats(m, n->rows, e))))
            return false;
    }
    return init_let(m, e);
}

/* 学到的 scale、zero 与（折叠后的）权重装包。零点超出编码范围（整组同号）时改存实数零点。 */
static bool pack(Omni *m, Learner *n, Err *e) {
    QSpec spec = n->spec;
    float top = (float)((1 << spec.bits) - 1);
    HostView v = host_view(m->backend);
    const float *zero = HOST_MAP(&v, float, n->zero, n->rows *n->n_groups, HOST_READ);
    for (int64_t i = 0; zero && i < n->rows * n->n_groups && spec.zero == ZERO_INT; i++)
        if (zero[i] < 0 || zero[i] > top) spec.zero = ZERO_FLOAT;
    host_end(&v);
    if (spec.zero == ZERO_FLOAT) job_fallback(m->job, "有的组整组同号，零点超出编码的范围；这些层的零点按实数存放");
    QTensor q;
    if (!qtensor_new(&q, job_model_arena(m->job), spec, n->rows, n->cols, e)) return false;
    op_quantize(m->backend, &q, wide(n, n->u), groups(n, n->scale), groups(n, n->zero));
    return backend_check(m->backend, e) && linear_set_quantized(n->l, &q) &&
           job_set_act(n->l, &m->o->act, 0, 0, e);
}

static bool learns_let(const OmniOptions *o) {
    return o->let == LET_ON || (o->let == LET_AUTO && o->act.scheme != ACT_NONE);
}

static bool omni_block(QuantJob *job, QuantBlock *b, Err *e) {
    if (!arch_require(&b->model->config, FEATURE_ALL, "omniquant ", e)) return false;
    Omni m = {.job = job, .o = job_options(job), .b = b, .backend = job_backend(job)};
    for (LinearRole r = 0; r < ROLE_COUNT; r++)
        if (!open_learner(&m, r, e)) return false;
    m.use_let = learns_let(m.o);
    if ((m.o->lwc && !open_lwc(&m, e)) || (m.use_let && !open_let(&m, e)) || !train(&m, e))
        return false;
    quantize_weights(&m); /* 最后一步之后的参数 */
    for (LinearRole r = 0; r < ROLE_COUNT; r++)
        if (!pack(&m, &m.learners[r], e)) return err_wrap(e, "%s", b->linears[r].name);
    return true;
}

static bool omni_check(const void *options, char track, Err *e) {
    const OmniOptions *o = options;
    (void)track;
    if (!o->lwc && !learns_let(o))
        return err_set(e, ERR_CONFIG, "omniquant.lwc 与 omniquant.let 至少开一个");
    if (o->act.scheme != ACT_NONE && o->act.scheme != ACT_TOKEN)
        return err_set(e, ERR_CONFIG, "omniquant 的激活只支持 activation.scheme=per_token");
    return check_weight_options(&o->weight, true, e) &&
           check_act_options(&o->weight, &o->act, e);
}

static bool omni_quantize(QuantJob *job, Err *e) {
    const OmniOptions *o = job_options(job);
    return quantize_each_block(job, learns_let(o) ? STAT_ABSMAX : STAT_NONE, FLOW_BOTH, omni_block, e);
}

PTQ_METHOD(omniquant) = {.name = "omniquant", .tracks = "AB", .options = OPTIONS,
                         .options_size = sizeof(OmniOptions), .calibrated = true,
                         .check = omni_check, .quantize = omni_quantize};
