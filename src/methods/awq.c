/* awq — AWQ（Lin 等，arXiv 2306.00978）：激活大的输入通道先放大再量化，缩放折进前一层；然后截断权重的极端值
 * 缩放 s = mean|x|^α（§3.2），α 在 20 个比例中搜索：量化共用输入的线性层，看它们所在模块的输出与原来差多少。
 * 截断：每行每组的 max|w| 缩到 1、0.95 … 0.55 倍，取本组输出误差最小者；q、k 不截。
 * 次序同 mit-han-lab/llm-awq 的 auto_scale.py、auto_clip.py：四处搜索都看未量化、未折叠的块，然后一起折叠，然后截断。
 * 单个线性层（o、down）的误差由输入的二阶矩算：‖XΔWᵀ‖² = tr(ΔW·XᵀX·ΔWᵀ)。 */
#include "methods/base.h"

enum { GRID_MAX = 100, PARTS = 16, BATCH_ROWS = 2048, CLIP_CELLS = 1 << 17 };
enum { SEARCH_EXACT, SEARCH_PRUNED };

typedef struct AwqOptions {
    WeightOptions weight;
    int64_t n_grid, clip_grid, clip_tokens;
    double clip_shrink;
    int search;
    bool clip;
} AwqOptions;

static const char *const SEARCH[] = {"exact", "pruned", NULL};

static const Option OPTIONS[] = {
    WEIGHT_OPTIONS(AwqOptions, weight),
    OPT_ENUM(AwqOptions, search, "awq.search", SEARCH, SEARCH_PRUNED,
             "看注意力与 MLP 的比例搜索：exact 每个候选都看全部校准样本；pruned 逐次减半，先看 1/16，较好的再看更多"),
    OPT_INT(AwqOptions, n_grid, "awq.n_grid", 20, 1, GRID_MAX, "比例 α 的候选个数：0, 1/n, …, (n−1)/n"),
    OPT_BOOL(AwqOptions, clip, "awq.clip", 1, "缩放之后截断权重（q、k 除外）"),
    OPT_INT(AwqOptions, clip_grid, "awq.clip_grid", 20, 1, 100, "截断的步长：最大绝对值的 1/clip_grid"),
    OPT_FLOAT(AwqOptions, clip_shrink, "awq.clip_shrink", 0.5, 0, 1, "最多截去的比例（不含）"),
    OPT_INT(AwqOptions, clip_tokens, "awq.clip_tokens", 512, 1, 1 << 20, "截断搜索约取多少个 token"),
    OPT_END};

/* 逐次减半的一轮：看到第 until 份为止，留下误差最小的 keep 个候选。 */
typedef struct Round {
    int until, keep;
} Round;
static const Round ALL[] = {{PARTS, 1}}, HALVING[] = {{1, 8}, {2, 5}, {4, 3}, {8, 2}, {PARTS, 1}};

/* 各输入组的线性层。 */
static const struct {
    LinearRole first;
    int n;
} ROLES[INPUT_COUNT] = {{ROLE_Q, 3}, {ROLE_O, 1}, {ROLE_GATE, 2}, {ROLE_DOWN, 1}};

/* 一次比例搜索。看模块时，单位（注意力是整个样本，MLP 是单个 token）按编号除以 PARTS 的余数分成 PARTS 份。 */
typedef struct Search {
    QuantJob *job;
    QuantBlock *b;
    InputGroup group;
    const InputStats *st;
    QSpec spec;
    const float *scale; /* (cols) 当前的 s */
    Workspace work;     /* 看模块时用 */
    Segment *segments;
    int64_t unit;       /* 一个单位的 token 数 */
    int64_t batch;      /* 一批的单位数 */
    int64_t first;      /* 本批的第一个单位 */
    float *reference;   /* (token, hidden) 模块原来的输出；NULL 表示看单个线性层 */
    double *error;      /* (batch) 各单位的误差 */
    QTensor gram;       /* 看单个线性层时：XᵀX */
} Search;

/* q = Q(W·s)。 */
static bool quantize_scaled(Search *s, Tensor w, QTensor *q, Err *e) {
    int64_t rows = w.shape[0], cols = w.shape[1];
    float *scaled = ARENA_ARRAY(job_scratch(s->job), float, rows * cols, e);
    if (!scaled) return false;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < cols; c++)
            scaled[i * cols + c] = tensor_data_f32(w)[i * cols + c] * s->scale[c];
    return job_round_nearest(s->job, q, job_scratch(s->job), tensor_f32(scaled, rows, cols), &s->spec,
                             e);
}

/* XᵀX，x (n, cols)，装成面板。 */
static bool second_moment(QuantJob *job, const float *x, int64_t n, int64_t cols, QTensor *q,
                          Err *e) {
    Arena *a = job_scratch(job);
    float *g = ARENA_ARRAY(a, float, cols * cols, e);
    if (!g || !qtensor_new_dense(q, a, DT_F32, cols, cols, e)) return false;
    for (int64_t i = 0; i < n; i += BATCH_ROWS) {
        int64_t rows = n - i < BATCH_ROWS ? n - i : BATCH_ROWS;
        op_gram(job_backend(job), tensor_f32(g, cols, cols),
                tensor_f32((float *)x + i * cols, rows, cols));
    }
    for (int64_t i = 0; i < cols; i++)
        for (int64_t j = 0; j < i; j++) g[i * cols + j] = g[j * cols + i];
    op_pack_dense(job_backend(job), q, tensor_f32(g, cols, cols));
    return backend_check(job_backend(job), e);
}

/* 本批第 i 个单位的输入除以 s，放进工作区。 */
static void load_unit(void *ctx, int64_t i) {
    const Search *s = ctx;
    int64_t d = s->st->cols;
    const float *x = s->st->inputs + (s->first + i * PARTS) * s->unit * d;
    float *dst = s->work.h + i * s->unit * d;
    for (int64_t t = 0; t < s->unit * d; t += d)
        for (int64_t j = 0; j < d; j++) dst[t + j] = x[t + j] / s->scale[j];
}

/* 本批第 i 个单位的输出与参照之差的平方和。 */
static void judge_unit(void *ctx, int64_t i) {
    const Search *s = ctx;
    int64_t n = s->unit * s->b->model->config.hidden;
    const float *y = s->work.h + i * n, *want = s->reference + (s->first + i * PARTS) * n;
    double sum = 0;
    for (int64_t k = 0; k < n; k++) {
        double d = (double)y[k] - (double)want[k];
        sum += d * d;
    }
    s->error[i] = sum;
}

/* 第 part 份单位过注意力或 MLP，误差加进 *loss。 */
static bool module_loss(Search *s, int64_t part, double *loss, Err *e) {
    int64_t count = s->st->n / s->unit;
    for (s->first = part; s->first < count; s->first += s->batch * PARTS) {
        int64_t left = (count - s->first - 1) / PARTS + 1, n = left < s->batch ? left : s->batch;
        if (!interrupt_check(e)) return false;
        job_parallel(s->job, n, load_unit, s);
        if (s->group == INPUT_QKV)
            attention_forward(s->b->model, s->b->layer, &s->work, n * s->unit, s->segments,
                              (size_t)n, NULL);
        else
            mlp_forward(s->b->model, s->b->layer, &s->work, n * s->unit, NULL);
        if (!backend_check(job_backend(s->job), e)) return false;
        job_parallel(s->job, n, judge_unit, s);
        for (int64_t i = 0; i < n; i++) *loss += s->error[i];
    }
    return true;
}

/* 单个线性层：ΔW = Q(W·s)/s − W，误差 tr(ΔW·G·ΔWᵀ)。 */
static bool linear_loss(Search *s, double *loss, Err *e) {
    Tensor w = s->b->w[ROLES[s->group].first];
    int64_t rows = w.shape[0], cols = w.shape[1];
    Arena *a = job_scratch(s->job);
    float *delta = ARENA_ARRAY(a, float, rows * cols, e), *y = ARENA_ARRAY(a, float, rows * cols, e);
    QTensor q;
    if (!delta || !y || !quantize_scaled(s, w, &q, e)) return false;
    op_dequantize(job_backend(s->job), tensor_f32(delta, rows, cols), &q);
    for (int64_t i = 0; i < rows * cols; i++)
        delta[i] = delta[i] / s->scale[i % cols] - tensor_data_f32(w)[i];
    op_linear_exact(job_backend(s->job), tensor_f32(y, rows, cols), tensor_f32(delta, rows, cols),
                    &s->gram);
    for (int64_t i = 0; i < rows * cols; i++) *loss += (double)y[i] * (double)delta[i];
    return backend_check(job_backend(s->job), e);
}

/* 候选在 [from,until) 份上的误差，加进 *loss；超过 stop 就不必再算。 */
static bool candidate_loss(Search *s, int from, int until, double stop, double *loss, Err *e) {
    ArenaMark mark = arena_mark(job_scratch(s->job));
    const int n = ROLES[s->group].n, first = ROLES[s->group].first;
    Linear *l = s->b->linears + first;
    QTensor dense[3];
    bool ok = s->reference || linear_loss(s, loss, e);
    for (int i = 0; i < n; i++) dense[i] = l[i].q;
    for (int i = 0; ok && s->reference && i < n; i++)
        ok = quantize_scaled(s, s->b->w[first + i], &l[i].q, e);
    for (int p = from; ok && s->reference && p < until && *loss <= stop; p++)
        ok = module_loss(s, p, loss, e);
    for (int i = 0; i < n; i++) l[i].q = dense[i];
    arena_rewind(job_scratch(s->job), mark);
    return ok;
}

/* s = mean|x|^α（不小于 1e-4），再除以 √(max·min)。 */
static void make_scale(const InputStats *st, double ratio, float *scale) {
    float lo = INFINITY, hi = 0;
    for (int64_t c = 0; c < st->cols; c++) {
        float v = powf((float)st->absmean[c], (float)ratio);
        scale[c] = v < 1e-4f ? 1e-4f : v;
        if (scale[c] < lo) lo = scale[c];
        if (scale[c] > hi) hi = scale[c];
    }
    float middle = sqrtf(hi * lo);
    for (int64_t c = 0; c < st->cols; c++) scale[c] /= middle;
}

typedef struct Candidate {
    int at;      /* α = at/n_grid */
    double loss; /* 已看过的各份的误差之和 */
} Candidate;

/* 误差小的在前，相同的保持原来的次序。 */
static void sort_candidates(Candidate *c, int n) {
    for (int i = 1; i < n; i++)
        for (int j = i; j > 0 && c[j].loss < c[j - 1].loss; j--) {
            Candidate swap = c[j];
            c[j] = c[j - 1];
            c[j - 1] = swap;
        }
}

/* 搜索 α，最好的 s 写入 best。最后一轮中误差已超过最小者的候选不再算完：误差只增不减，结果不变。 */
static bool search_ratio(Search *s, float *best, Err *e) {
    const AwqOptions *o = job_options(s->job);
    Candidate c[GRID_MAX];
    int alive = (int)o->n_grid, from = 0;
    s->scale = best;
    for (int i = 0; i < alive; i++) c[i] = (Candidate){.at = i};
    for (const Round *r = s->reference && o->search == SEARCH_PRUNED ? HALVING : ALL; from < PARTS;
         from = r++->until) {
        double least = INFINITY;
        for (int i = 0; i < alive; i++) {
            make_scale(s->st, (double)c[i].at / (double)o->n_grid, best);
            if (!candidate_loss(s, from, r->until, r->until == PARTS ? least : INFINITY, &c[i].loss,
                                e))
                return false;
            if (!isfinite(c[i].loss)) return err_set(e, ERR_NUMERIC, "比例搜索的误差不是有限数");
            if (c[i].loss < least) least = c[i].loss;
        }
        sort_candidates(c, alive);
        if (alive > r->keep) alive = r->keep;
    }
    make_scale(s->st, (double)c[0].at / (double)o->n_grid, best);
    return true;
}

/* 看注意力或 MLP 输出的搜索；原来的输出由模块的最后一个线性层（o 或 down）作用在它的输入上得到。 */
static bool search_module(Search *s, float *best, Err *e) {
    Arena *a = job_scratch(s->job);
    bool attention = s->group == INPUT_QKV;
    const InputStats *in = &s->b->stats[attention ? INPUT_O : INPUT_DOWN];
    const Linear *last = &s->b->linears[attention ? ROLE_O : ROLE_DOWN];
    s->unit = attention ? s->b->calib->length : 1;
    s->batch = BATCH_ROWS / s->unit > 0 ? BATCH_ROWS / s->unit : 1;
    int64_t most = (s->st->n / s->unit - 1) / PARTS + 1;
    if (s->batch > most) s->batch = most;
    s->reference = ARENA_ARRAY(a, float, in->n *last->rows, e);
    s->error = ARENA_ARRAY(a, double, s->batch, e);
    s->segments = ARENA_ARRAY(a, Segment, s->batch, e);
    if (!s->reference || !s->error || !s->segments ||
        !workspace_open(&s->work, s->b->model, s->batch * s->unit, e))
        return false;
    for (int64_t i = 0; i < s->batch; i++)
        s->segments[i] = (Segment){.row0 = i * s->unit, .n = s->unit};
    op_linear(job_backend(s->job), tensor_f32(s->reference, in->n, last->rows),
              tensor_f32(in->inputs, in->n, in->cols), &last->q,
              tensor_f32_1d(last->bias, last->bias ? last->rows : 0));
    bool ok = search_ratio(s, best, e);
    workspace_close(&s->work);
    return ok;
}

/* AWQ 的格点：非对称的范围不扩到含零，对称的由 max|w| 定。 */
static bool awq_spec(QuantJob *job, int64_t cols, QSpec *spec, Err *e) {
    const AwqOptions *o = job_options(job);
    if (!job_weight_spec(job, &o->weight, cols, spec, e)) return false;
    spec->grid = spec->zero == ZERO_SYM ? GRID_ABSMAX : GRID_RANGE;
    return true;
}

/* 搜出 group 的 s（内存来自块的临时区）；不能折叠的组（GQA 的 v → o）为全 1。 */
static float *search_group(QuantJob *job, QuantBlock *b, InputGroup group, Err *e) {
    Search s = {.job = job, .b = b, .group = group, .st = &b->stats[group]};
    float *scale = ARENA_ARRAY(job_scratch(job), float, s.st->cols, e);
    if (!scale || !awq_spec(job, s.st->cols, &s.spec, e)) return NULL;
    const Linear *l = b->linears;
    for (int64_t c = 0; c < s.st->cols; c++) scale[c] = 1;
    if (group == INPUT_O && (l[ROLE_V].rows != l[ROLE_O].rows || l[ROLE_V].cols != l[ROLE_O].cols))
        return scale;
    ArenaMark mark = arena_mark(job_scratch(job));
    bool module = group == INPUT_QKV || group == INPUT_GATE_UP;
    bool ok = module ? search_module(&s, scale, e)
                     : second_moment(job, s.st->inputs, s.st->n, s.st->cols, &s.gram, e) &&
                           search_ratio(&s, scale, e);
    arena_rewind(job_scratch(job), mark);
    return ok ? scale : NULL;
}

/* 折叠：线性层的列乘 s，产生其输入的东西除以 s。 */
static void fold(QuantBlock *b, InputGroup group, const float *s) {
    for (int i = 0; i < ROLES[group].n; i++) {
        Tensor w = b->w[ROLES[group].first + i];
        for (int64_t k = 0; k < w.shape[0] * w.shape[1]; k++)
            tensor_data_f32(w)[k] *= s[k % w.shape[1]];
    }
    if (group == INPUT_QKV || group == INPUT_GATE_UP) {
        float *norm = group == INPUT_QKV ? b->attn_norm : b->mlp_norm;
        for (int64_t c = 0; c < b->stats[group].cols; c++) norm[c] /= s[c];
        return;
    }
    LinearRole from = group == INPUT_O ? ROLE_V : ROLE_UP;
    Tensor w = b->w[from];
    for (int64_t r = 0; r < w.shape[0]; r++) {
        for (int64_t c = 0; c < w.shape[1]; c++) tensor_data_f32(w)[r * w.shape[1] + c] /= s[r];
        if (b->linears[from].bias) b->linears[from].bias[r] /= s[r];
    }
}

static float clamp(float x, float top) {
    return x > top ? top : x < -top ? -top : x;
}

/* 截断 w (rows, width) 的各行，行距 ld，gram 是抽样输入的 XᵀX。各步一起算：第 k 步的第 r 行放在 k·rows+r 行，
 * 误差 d·G·dᵀ，d = Q(clamp(w)) − w；就地截到误差最小的一步。 */
static bool clip_rows(QuantJob *job, float *w, int64_t rows, int64_t width, int64_t ld,
                      const QTensor *gram, QSpec spec, Err *e) {
    const AwqOptions *o = job_options(job);
    int64_t steps = (int64_t)(o->clip_shrink * (double)o->clip_grid), n = rows * (steps ? steps : 1);
    Arena *a = job_scratch(job);
    float *clipped = ARENA_ARRAY(a, float, n * width, e), *d = ARENA_ARRAY(a, float, n * width, e);
    float *y = ARENA_ARRAY(a, float, n * width, e), *limit = ARENA_ARRAY(a, float, n, e);
    if (!clipped || !d || !y || !limit) return false;
    for (int64_t i = 0; i < n; i++) {
        const float *row = w + i % rows * ld;
        float top = 0;
        for (int64_t c = 0; c < width; c++) top = fabsf(row[c]) > top ? fabsf(row[c]) : top;
        limit[i] = top * (float)(1 - (double)(i / rows) / (double)o->clip_grid);
        for (int64_t c = 0; c < width; c++) clipped[i * width + c] = clamp(row[c], limit[i]);
    }
    QTensor q;
    spec.group_size = -1;
    if (!job_round_nearest(job, &q, a, tensor_f32(clipped, n, width), &spec, e)) return false;
    op_dequantize(job_backend(job), tensor_f32(d, n, width), &q);
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < width; c++) d[i * width + c] -= w[i % rows * ld + c];
    op_linear_exact(job_backend(job), tensor_f32(y, n, width), tensor_f32(d, n, width), gram);
    if (!backend_check(job_backend(job), e)) return false;
    for (int64_t r = 0; r < rows; r++) {
        float least = INFINITY, best = limit[r];
        for (int64_t i = r; i < n; i += rows) {
            float sum = 0;
            for (int64_t c = 0; c < width; c++) sum += d[i * width + c] * y[i * width + c];
            if (sum < least) least = sum, best = limit[i];
        }
        for (int64_t c = 0; c < width; c++) w[r * ld + c] = clamp(w[r * ld + c], best);
    }
    return true;
}

/* 就地截断 w：逐组列，输入每隔若干 token 取一个、除以 s。 */
static bool clip_linear(QuantJob *job, Tensor w, const InputStats *st, const float *s, QSpec spec,
                        Err *e) {
    const AwqOptions *o = job_options(job);
    int64_t step = st->n / o->clip_tokens > 1 ? st->n / o->clip_tokens : 1;
    int64_t n = (st->n - 1) / step + 1, size = qspec_group_size(&spec, st->cols);
    Arena *a = job_scratch(job);
    bool ok = true;
    for (int64_t c0 = 0; ok && c0 < st->cols; c0 += size) {
        ArenaMark group = arena_mark(a);
        int64_t width = st->cols - c0 < size ? st->cols - c0 : size;
        int64_t most = CLIP_CELLS / width > 1 ? CLIP_CELLS / width : 1;
        float *x = ARENA_ARRAY(a, float, n * width, e);
        QTensor gram;
        for (int64_t i = 0; x && i < n * width; i++)
            x[i] = st->inputs[i / width * step * st->cols + c0 + i % width] / s[c0 + i % width];
        ok = x && second_moment(job, x, n, width, &gram, e);
        for (int64_t r = 0; ok && r < w.shape[0]; r += most) {
            ArenaMark rows = arena_mark(a);
            ok = interrupt_check(e) &&
                 clip_rows(job, tensor_data_f32(w) + r * st->cols + c0,
                           w.shape[0] - r < most ? w.shape[0] - r : most, width, st->cols, &gram,
                           spec, e);
            arena_rewind(a, rows);
        }
        arena_rewind(a, group);
    }
    return ok;
}

/* 截断（q、k 除外）、就近取整、换上。 */
static bool quantize_linear(QuantJob *job, QuantBlock *b, LinearRole role, const float *s, Err *e) {
    const AwqOptions *o = job_options(job);
    const InputStats *st = &b->stats[input_group(role)];
    Tensor w = b->w[role];
    QSpec spec = {0};
    int64_t n = w.shape[0] * w.shape[1];
    ArenaMark mark = arena_mark(job_scratch(job));
    float *copy = ARENA_ARRAY(job_scratch(job), float, n, e);
    if (!copy || !awq_spec(job, st->cols, &spec, e)) return false;
    memcpy(copy, w.data, (size_t)n * sizeof *copy);
    w.data = copy;
    bool clip = o->clip && role != ROLE_Q && role != ROLE_K;
    bool ok = (!clip || clip_linear(job, w, st, s, spec, e)) &&
              job_quantize_nearest(job, &b->linears[role], w, &spec, e);
    arena_rewind(job_scratch(job), mark);
    return ok;
}

static bool awq_block(QuantJob *job, QuantBlock *b, Err *e) {
    float *s[INPUT_COUNT];
    for (InputGroup g = 0; g < INPUT_COUNT; g++)
        if (!(s[g] = search_group(job, b, g, e))) return false;
    for (InputGroup g = 0; g < INPUT_COUNT; g++) fold(b, g, s[g]);
    for (LinearRole r = 0; r < ROLE_COUNT; r++)
        if (!quantize_linear(job, b, r, s[input_group(r)], e)) return false;
    return true;
}

static bool awq_check(const void *options, char track, Err *e) {
    const AwqOptions *o = options;
    (void)track;
    if (o->weight.granularity == PER_TENSOR)
        return err_set(e, ERR_CONFIG, "awq 的 weight.granularity 须为 per_group 或 per_channel");
    return check_weight_options(&o->weight, true, e);
}

static bool awq_quantize(QuantJob *job, Err *e) {
    return quantize_each_block(job, STAT_INPUTS | STAT_ABSMEAN, FLOW_ORIGINAL, awq_block, e);
}

PTQ_METHOD(awq) = {.name = "awq", .tracks = "A", .options = OPTIONS,
                   .options_size = sizeof(AwqOptions), .calibrated = true, .check = awq_check,
                   .quantize = awq_quantize};
