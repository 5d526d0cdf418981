/* awq — AWQ（Lin 等，arXiv 2306.00978）：激活大的输入通道先放大再量化，缩放折进前一层；然后截断权重的极端值
 * 缩放 s = mean|x|^α（§3.2），α 在 20 个比例中搜索：量化共用输入的线性层，看它们所在模块的输出与原来差多少。
 * 截断：每行每组的 max|w| 缩到 1、0.95 … 0.55 倍，取本组输出误差最小者；q、k 不截。
 * 次序同 mit-han-lab/llm-awq 的 auto_scale.py、auto_clip.py：四处搜索都看未量化、未折叠的块，然后一起折叠，然后截断。
 * 单个线性层（o、down）的误差由输入的二阶矩算：‖XΔWᵀ‖² = tr(ΔW·XᵀX·ΔWᵀ)。 */
#include "methods/base.h"

enum { GRID_MAX = 100, PARTS = 8, BATCH_ROWS = 2048 };
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
             "比例搜索：exact 每个候选都看全部校准样本；pruned 逐次减半，先看一部分，较好的几个再看其余"),
    OPT_INT(AwqOptions, n_grid, "awq.n_grid", 20, 1, GRID_MAX, "比例 α 的候选个数：0, 1/n, …, (n−1)/n"),
    OPT_BOOL(AwqOptions, clip, "awq.clip", 1, "缩放之后截断权重（q、k 除外）"),
    OPT_INT(AwqOptions, clip_grid, "awq.clip_grid", 20, 1, 100, "截断的步长：max|w| 的 1/clip_grid"),
    OPT_FLOAT(AwqOptions, clip_shrink, "awq.clip_shrink", 0.5, 0, 1, "最多截去的比例（不含）"),
    OPT_INT(AwqOptions, clip_tokens, "awq.clip_tokens", 512, 1, 1 << 20, "截断搜索约取多少个 token"),
    OPT_END};

/* 逐次减半的一轮：看到第 until 份为止，留下 keep 个候选。 */
typedef struct Round {
    int until, keep;
} Round;
static const Round EXACT[] = {{PARTS, 1}}, PRUNED[] = {{1, 6}, {3, 3}, {PARTS, 1}};

/* 各输入组的线性层。 */
static const struct {
    LinearRole first;
    int n;
} ROLES[INPUT_COUNT] = {{ROLE_Q, 3}, {ROLE_O, 1}, {ROLE_GATE, 2}, {ROLE_DOWN, 1}};

/* 一次比例搜索。样本（或单个线性层的行）按编号除以 PARTS 的余数分成 PARTS 份。 */
typedef struct Search {
    QuantJob *job;
    QuantBlock *b;
    InputGroup group;
    const InputStats *st;
    QSpec spec;
    const float *scale; /* (cols) 当前的 s；NULL 表示原样，记下参照 */
    Workspace work;
    Segment *segments;
    int64_t batch;    /* 一批的样本数 */
    int64_t first;    /* 本批的第一个样本 */
    float *reference; /* (token, hidden) 模块原来的输出 */
    double *error;    /* (batch) 各样本的误差 */
    QTensor gram;     /* 单个线性层：XᵀX */
} Search;

static bool quantize_scaled(Search *s, const Tensor *w, QTensor *q, Err *e);

/* 本批第 i 个样本的输入除以 s，放进工作区。 */
static void load_sample(void *ctx, int64_t i) {
    const Search *s = ctx;
    int64_t len = s->b->calib->length, d = s->st->cols;
    const float *x = s->st->inputs + (s->first + i * PARTS) * len * d;
    float *dst = s->work.h + i * len * d;
    for (int64_t t = 0; t < len; t++)
        for (int64_t j = 0; j < d; j++)
            dst[t * d + j] = s->scale ? x[t * d + j] / s->scale[j] : x[t * d + j];
}

/* 本批第 i 个样本的输出：与参照比较，或记为参照。 */
static void judge_sample(void *ctx, int64_t i) {
    const Search *s = ctx;
    int64_t n = s->b->calib->length * s->b->model->config.hidden;
    const float *y = s->work.h + i * n;
    float *want = s->reference + (s->first + i * PARTS) * n;
    double sum = 0;
    for (int64_t k = 0; s->scale && k < n; k++) {
        double d = (double)y[k] - (double)want[k];
        sum += d * d;
    }
    if (!s->scale) memcpy(want, y, (size_t)n * sizeof *y);
    s->error[i] = sum;
}

/* 第 part 份样本过注意力或 MLP，误差加进 *loss。 */
static bool module_loss(Search *s, int64_t part, double *loss, Err *e) {
    int64_t len = s->b->calib->length, samples = s->b->calib->n_samples;
    for (s->first = part; s->first < samples; s->first += s->batch * PARTS) {
        int64_t left = (samples - s->first - 1) / PARTS + 1, n = left < s->batch ? left : s->batch;
        if (!interrupt_check(e)) return false;
        job_parallel(s->job, n, load_sample, s);
        if (s->group == INPUT_QKV)
            attention_forward(s->b->model, s->b->layer, &s->work, n * len, s->segments, (size_t)n,
                              NULL);
        else
            mlp_forward(s->b->model, s->b->layer, &s->work, n * len, NULL);
        if (!backend_check(job_backend(s->job), e)) return false;
        job_parallel(s->job, n, judge_sample, s);
        for (int64_t i = 0; i < n; i++) *loss += s->error[i];
    }
    return true;
}

/* 单个线性层的第 part 份行：ΔW = Q(W·s)/s − W，误差 tr(ΔW·G·ΔWᵀ)。 */
static bool linear_loss(Search *s, int64_t part, double *loss, Err *e) {
    Tensor w = s->b->w[ROLES[s->group].first];
    int64_t cols = w.shape[1], rows = (w.shape[0] - part + PARTS - 1) / PARTS;
    if (rows <= 0) return true;
    Arena *a = job_scratch(s->job);
    Backend *b = job_backend(s->job);
    float *some = ARENA_ARRAY(a, float, rows * cols, e), *y = ARENA_ARRAY(a, float, rows * cols, e);
    float *delta = ARENA_ARRAY(a, float, rows * cols, e);
    if (!some || !y || !delta) return false;
    for (int64_t r = 0; r < rows; r++)
        memcpy(some + r * cols, tensor_data_f32(w) + (part + r * PARTS) * cols,
               (size_t)cols * sizeof *some);
    Tensor t = tensor_f32(some, rows, cols), d = tensor_f32(delta, rows, cols);
    QTensor q;
    if (!quantize_scaled(s, &t, &q, e)) return false;
    op_dequantize(b, d, &q);
    for (int64_t i = 0; i < rows * cols; i++) delta[i] = delta[i] / s->scale[i % cols] - some[i];
    op_linear_exact(b, tensor_f32(y, rows, cols), d, &s->gram);
    for (int64_t i = 0; i < rows * cols; i++) *loss += (double)y[i] * (double)delta[i];
    return backend_check(b, e);
}

/* q = Q(W·s)。 */
static bool quantize_scaled(Search *s, const Tensor *w, QTensor *q, Err *e) {
    int64_t rows = w->shape[0], cols = w->shape[1];
    Arena *a = job_scratch(s->job);
    if (!qtensor_new(q, a, s->spec, rows, cols, e)) return false;
    float *scaled = ARENA_ARRAY(a, float, rows * cols, e);
    Tensor scale = tensor_f32(ARENA_ARRAY(a, float, rows *q->n_groups, e), rows, q->n_groups);
    Tensor zero = tensor_f32(ARENA_ARRAY(a, float, rows *q->n_groups, e), rows, q->n_groups);
    if (!scaled || !scale.data || !zero.data) return false;
    const float *src = tensor_data_f32(*w);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) scaled[r * cols + c] = src[r * cols + c] * s->scale[c];
    Tensor t = tensor_f32(scaled, rows, cols);
    op_qparams(job_backend(s->job), scale, zero, t, &q->spec);
    op_quantize(job_backend(s->job), q, t, scale, zero);
    return true;
}

/* 候选在 [from,until) 份上的误差，加进 *loss；超过 stop 就不必再算。 */
static bool candidate_loss(Search *s, const float *scale, int from, int until, double stop,
                           double *loss, Err *e) {
    ArenaMark mark = arena_mark(job_scratch(s->job));
    Linear *l = s->b->linears + ROLES[s->group].first;
    QTensor dense[3];
    bool ok = true, module = s->work.h != NULL;
    s->scale = scale;
    for (int i = 0; i < ROLES[s->group].n; i++) dense[i] = l[i].q;
    for (int i = 0; ok && scale && module && i < ROLES[s->group].n; i++)
        ok = quantize_scaled(s, &s->b->w[ROLES[s->group].first + i], &l[i].q, e);
    for (int p = from; ok && p < until && *loss <= stop; p++)
        ok = module ? module_loss(s, p, loss, e) : linear_loss(s, p, loss, e);
    for (int i = 0; i < ROLES[s->group].n; i++) l[i].q = dense[i];
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

/* 误差小的在前，相同的 α 小的在前。 */
static void sort_candidates(Candidate *c, int n) {
    for (int i = 1; i < n; i++) {
        Candidate x = c[i];
        int j = i;
        for (; j > 0 && (x.loss < c[j - 1].loss || (x.loss == c[j - 1].loss && x.at < c[j - 1].at));
             j--)
            c[j] = c[j - 1];
        c[j] = x;
    }
}

/* 搜索 α，最好的 s 写入 best。最后一轮中误差已超过最小者的候选不再算完：误差只增不减，结果不变。 */
static bool search_ratio(Search *s, float *best, Err *e) {
    const AwqOptions *o = job_options(s->job);
    Candidate c[GRID_MAX];
    int alive = (int)o->n_grid, from = 0;
    for (int i = 0; i < alive; i++) c[i] = (Candidate){.at = i};
    for (const Round *r = o->search == SEARCH_EXACT ? EXACT : PRUNED; from < PARTS; r++) {
        double least = INFINITY;
        for (int i = 0; i < alive; i++) {
            make_scale(s->st, (double)c[i].at / (double)o->n_grid, best);
            if (!candidate_loss(s, best, from, r->until, r->until == PARTS ? least : INFINITY,
                                &c[i].loss, e))
                return false;
            if (!isfinite(c[i].loss)) return err_set(e, ERR_NUMERIC, "比例搜索的误差不是有限数");
            if (c[i].loss < least) least = c[i].loss;
        }
        sort_candidates(c, alive);
        if (alive > r->keep) alive = r->keep;
        from = r->until;
    }
    make_scale(s->st, (double)c[0].at / (double)o->n_grid, best);
    return true;
}

/* 看注意力或 MLP 输出的搜索：先记下原来的输出。 */
static bool search_module(Search *s, float *best, Err *e) {
    const CalibSet *set = s->b->calib;
    Arena *a = job_scratch(s->job);
    int64_t hidden = s->b->model->config.hidden;
    s->batch = BATCH_ROWS / set->length > 0 ? BATCH_ROWS / set->length : 1;
    if (s->batch > (set->n_samples - 1) / PARTS + 1) s->batch = (set->n_samples - 1) / PARTS + 1;
    s->reference = ARENA_ARRAY(a, float, set->n_samples *set->length *hidden, e);
    s->error = ARENA_ARRAY(a, double, s->batch, e);
    s->segments = ARENA_ARRAY(a, Segment, s->batch, e);
    if (!s->reference || !s->error || !s->segments ||
        !workspace_open(&s->work, s->b->model, s->batch * set->length, e))
        return false;
    for (int64_t i = 0; i < s->batch; i++)
        s->segments[i] = (Segment){.row0 = i * set->length, .n = set->length};
    double none = 0;
    bool ok = candidate_loss(s, NULL, 0, PARTS, INFINITY, &none, e) && search_ratio(s, best, e);
    workspace_close(&s->work);
    return ok;
}

/* 上三角 → 对称。 */
static void mirror(float *g, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < i; j++) g[i * n + j] = g[j * n + i];
}

/* 只看一个线性层的搜索。 */
static bool search_linear(Search *s, float *best, Err *e) {
    int64_t n = s->st->cols;
    Arena *a = job_scratch(s->job);
    Backend *b = job_backend(s->job);
    float *g = ARENA_ARRAY(a, float, n * n, e);
    if (!g || !qtensor_new_dense(&s->gram, a, DT_F32, n, n, e)) return false;
    for (int64_t i = 0; i < s->st->n; i += BATCH_ROWS) {
        int64_t rows = s->st->n - i < BATCH_ROWS ? s->st->n - i : BATCH_ROWS;
        op_gram(b, tensor_f32(g, n, n), tensor_f32(s->st->inputs + i * n, rows, n));
    }
    mirror(g, n);
    op_pack_dense(b, &s->gram, tensor_f32(g, n, n));
    return backend_check(b, e) && search_ratio(s, best, e);
}

/* 搜出 group 的 s（内存来自块的临时区）；不能折叠的组（GQA 的 v → o）为全 1。 */
static float *search_group(QuantJob *job, QuantBlock *b, InputGroup group, Err *e) {
    const AwqOptions *o = job_options(job);
    Search s = {.job = job, .b = b, .group = group, .st = &b->stats[group]};
    float *scale = ARENA_ARRAY(job_scratch(job), float, s.st->cols, e);
    if (!scale || !job_weight_spec(job, &o->weight, s.st->cols, &s.spec, e)) return NULL;
    s.spec.grid = s.spec.zero == ZERO_SYM ? GRID_ABSMAX : GRID_RANGE;
    const Linear *l = b->linears;
    for (int64_t c = 0; c < s.st->cols; c++) scale[c] = 1;
    if (group == INPUT_O && (l[ROLE_V].rows != l[ROLE_O].rows || l[ROLE_V].cols != l[ROLE_O].cols))
        return scale;
    ArenaMark mark = arena_mark(job_scratch(job));
    bool ok = group == INPUT_QKV || group == INPUT_GATE_UP ? search_module(&s, scale, e)
                                                           : search_linear(&s, scale, e);
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

/* 截断搜索里一个线性层的一组列：w (rows, width) 与抽样输入的 XᵀX。 */
typedef struct ClipGroup {
    const float *w;
    int64_t rows, width, ld;
    const QTensor *gram;
    float *limit; /* (rows) 出：截到多大 */
} ClipGroup;

static float clamp(float x, float top) {
    return x > top ? top : x < -top ? -top : x;
}

/* 各步的截断一起算：第 k 步的第 r 行放在 k·rows+r 行，误差 d·G·dᵀ，d = Q(clamp(w)) − w。 */
static bool clip_group(QuantJob *job, const ClipGroup *g, const QSpec *spec, Err *e) {
    const AwqOptions *o = job_options(job);
    int64_t steps = (int64_t)(o->clip_shrink * (double)o->clip_grid), n, width = g->width;
    if (steps < 1) steps = 1;
    n = steps * g->rows;
    Arena *a = job_scratch(job);
    Backend *b = job_backend(job);
    QSpec whole = *spec;
    whole.group_size = -1;
    Tensor w = tensor_f32(ARENA_ARRAY(a, float, n *width, e), n, width), d = w, y = w;
    Tensor scale = tensor_f32(ARENA_ARRAY(a, float, n, e), n, 1), zero = scale;
    d.data = ARENA_ARRAY(a, float, n * width, e);
    y.data = ARENA_ARRAY(a, float, n * width, e);
    zero.data = ARENA_ARRAY(a, float, n, e);
    float *limit = ARENA_ARRAY(a, float, n, e);
    QTensor q;
    if (!w.data || !d.data || !y.data || !scale.data || !zero.data || !limit ||
        !qtensor_new(&q, a, whole, n, width, e))
        return false;
    float *clipped = w.data, *delta = d.data, *image = y.data;
    for (int64_t i = 0; i < n; i++) {
        const float *row = g->w + i % g->rows * g->ld;
        float top = 0;
        for (int64_t c = 0; c < width; c++) top = fabsf(row[c]) > top ? fabsf(row[c]) : top;
        limit[i] = top * (float)(1 - (double)(i / g->rows) / (double)o->clip_grid);
        for (int64_t c = 0; c < width; c++)
            clipped[i * width + c] = clamp(row[c], limit[i]);
    }
    op_qparams(b, scale, zero, w, &whole);
    op_quantize(b, &q, w, scale, zero);
    op_dequantize(b, d, &q);
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < width; c++)
            delta[i * width + c] -= g->w[i % g->rows * g->ld + c];
    op_linear_exact(b, y, d, g->gram);
    if (!backend_check(b, e)) return false;
    for (int64_t r = 0; r < g->rows; r++) {
        float least = INFINITY;
        for (int64_t i = r; i < n; i += g->rows) {
            float sum = 0;
            for (int64_t c = 0; c < width; c++) sum += delta[i * width + c] * image[i * width + c];
            if (sum < least) least = sum, g->limit[r] = limit[i];
        }
    }
    return true;
}

/* 抽样输入（除以 s）的第 [c0, c0+width) 列的 XᵀX。 */
static bool clip_gram(QuantJob *job, const InputStats *st, const float *s, int64_t c0,
                      int64_t width, QTensor *gram, Err *e) {
    const AwqOptions *o = job_options(job);
    int64_t step = st->n / o->clip_tokens > 1 ? st->n / o->clip_tokens : 1, n = (st->n - 1) / step + 1;
    Arena *a = job_scratch(job);
    if (!qtensor_new_dense(gram, a, DT_F32, width, width, e)) return false;
    float *x = ARENA_ARRAY(a, float, n * width, e), *g = ARENA_ARRAY(a, float, width * width, e);
    if (!x || !g) return false;
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < width; c++)
            x[i * width + c] = st->inputs[i * step * st->cols + c0 + c] / s[c0 + c];
    op_gram(job_backend(job), tensor_f32(g, width, width), tensor_f32(x, n, width));
    mirror(g, width);
    op_pack_dense(job_backend(job), gram, tensor_f32(g, width, width));
    return backend_check(job_backend(job), e);
}

/* 截断 group 的各线性层（q、k 除外）；w 是它们折叠后的权重的副本，就地截断。 */
static bool clip_linears(QuantJob *job, const QuantBlock *b, InputGroup group, const float *s,
                         const QSpec *spec, Tensor *w, Err *e) {
    int64_t cols = b->stats[group].cols, size = qspec_group_size(spec, cols);
    bool ok = true;
    for (int64_t c0 = 0; ok && c0 < cols; c0 += size) {
        ArenaMark mark = arena_mark(job_scratch(job));
        int64_t width = cols - c0 < size ? cols - c0 : size;
        QTensor gram;
        ok = clip_gram(job, &b->stats[group], s, c0, width, &gram, e);
        for (int i = 0; ok && i < ROLES[group].n; i++) {
            LinearRole role = ROLES[group].first + (LinearRole)i;
            if (role == ROLE_Q || role == ROLE_K) continue;
            float *data = tensor_data_f32(w[i]);
            ClipGroup g = {data + c0, w[i].shape[0], width, cols, &gram, NULL};
            g.limit = ARENA_ARRAY(job_scratch(job), float, g.rows, e);
            ok = g.limit && interrupt_check(e) && clip_group(job, &g, spec, e);
            for (int64_t k = 0; ok && k < g.rows * width; k++) {
                float *v = data + k / width * cols + c0 + k % width, top = g.limit[k / width];
                *v = clamp(*v, top);
            }
        }
        arena_rewind(job_scratch(job), mark);
    }
    return ok;
}

/* 截断、就近取整、换上。 */
static bool quantize_group(QuantJob *job, QuantBlock *b, InputGroup group, const float *s, Err *e) {
    const AwqOptions *o = job_options(job);
    QSpec spec = {0};
    if (!job_weight_spec(job, &o->weight, b->stats[group].cols, &spec, e)) return false;
    spec.grid = spec.zero == ZERO_SYM ? GRID_ABSMAX : GRID_RANGE;
    ArenaMark mark = arena_mark(job_scratch(job));
    Tensor w[3];
    bool ok = true;
    for (int i = 0; ok && i < ROLES[group].n; i++) {
        w[i] = b->w[ROLES[group].first + i];
        float *copy = ARENA_ARRAY(job_scratch(job), float, w[i].shape[0] * w[i].shape[1], e);
        ok = copy != NULL;
        if (ok) memcpy(copy, w[i].data, (size_t)(w[i].shape[0] * w[i].shape[1]) * sizeof *copy);
        w[i].data = copy;
    }
    ok = ok && (!o->clip || clip_linears(job, b, group, s, &spec, w, e));
    for (int i = 0; ok && i < ROLES[group].n; i++)
        ok = job_quantize_nearest(job, &b->linears[ROLES[group].first + i], w[i], &spec, e);
    arena_rewind(job_scratch(job), mark);
    return ok;
}

static bool awq_block(QuantJob *job, QuantBlock *b, Err *e) {
    float *s[INPUT_COUNT];
    for (InputGroup g = 0; g < INPUT_COUNT; g++)
        if (!(s[g] = search_group(job, b, g, e))) return false;
    for (InputGroup g = 0; g < INPUT_COUNT; g++) fold(b, g, s[g]);
    for (InputGroup g = 0; g < INPUT_COUNT; g++)
        if (!quantize_group(job, b, g, s[g], e)) return false;
    return true;
}

static bool awq_quantize(QuantJob *job, Err *e) {
    const AwqOptions *o = job_options(job);
    if (o->weight.zero_point)
        return err_set(e, ERR_CONFIG, "awq 的零点是整数，weight.zero_point 须为 integer");
    return quantize_each_block(job, STAT_INPUTS | STAT_ABSMEAN, FLOW_ORIGINAL, awq_block, e);
}

PTQ_METHOD(awq) = {.name = "awq", .tracks = "A", .options = OPTIONS,
                   .options_size = sizeof(AwqOptions), .calibrated = true, .quantize = awq_quantize};
