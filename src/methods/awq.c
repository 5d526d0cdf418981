/* awq — AWQ（Lin 等，arXiv 2306.00978）：激活大的输入通道先放大再量化，缩放折进前一层；然后截断权重的极端值
 * 缩放 s = mean|x|^α（§3.2），α 在 20 个比例中搜索：量化共用输入的线性层，看它们所在模块的输出与原来差多少。
 * 截断：每行每组的 max|w| 缩到 1、0.95 … 0.55 倍，取本组输出误差最小者；q、k 不截。
 * 次序同 mit-han-lab/llm-awq 的 auto_scale.py、auto_clip.py：四处搜索都看未量化、未折叠的块，然后一起折叠，然后截断。
 * 单个线性层（o、down）的误差由输入的二阶矩算：‖XΔWᵀ‖² = tr(ΔW·XᵀX·ΔWᵀ)。 */
#include "methods/base.h"

enum { GRID_MAX = 100, PARTS = 16 };
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
             "比例搜索：exact 每个候选都看全部（校准样本，或单个线性层的各行）；pruned 逐次减半，先看 1/16（行先看 1/4），较好的再看更多"),
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
/* 单个线性层的误差在最小处很平，少数几行看不准。 */
static const Round HALVING_ROWS[] = {{4, 8}, {8, 4}, {PARTS, 1}};

/* 组里的一个线性层与它的候选。 */
typedef struct Trial {
    Linear *l;
    QTensor q, dense; /* 看模块时：Q(W·s)；原来的 */
} Trial;

/* 一次比例搜索。看模块时，单位（注意力是整个样本，MLP 是单个 token）按编号除以 PARTS 的余数分成 PARTS 份；
 * 看单个线性层时，各行（误差互不相干）依次分成 PARTS 份。 */
typedef struct Search {
    QuantJob *job;
    QuantBlock *b;
    const Group *group;
    const InputStats *st;
    QSpec spec;
    const double *mean; /* (cols) mean|x|，在主机 */
    float *scale, *col; /* (cols) 当前的 s：在主机，在后端 */
    Workspace work;     /* 看模块时用 */
    Segment *segments;
    int64_t unit;       /* 一个单位的 token 数 */
    int64_t batch;      /* 一批的单位数 */
    int64_t first;      /* 本批的第一个单位 */
    float *reference;   /* (token, hidden) 模块原来的输出；NULL 表示看单个线性层 */
    double *error;      /* (batch) 各单位的误差，在主机 */
    QTensor gram;       /* 看单个线性层时：XᵀX */
    float *delta, *product; /* 同上：ΔW 与它的暂存 */
    float *scaled, *grid[2];  /* W·s；它的格点：各线性层轮流用 */
    Trial *trial;             /* (n_trials) */
    int64_t n_trials;
    float *router_w;          /* 有路由时：乘了 s 的路由 */
    QTensor router_q;
} Search;

static Block *search_block(Search *s) {
    return &s->b->model->blocks[s->b->layer];
}

/* 备好各候选的内存。 */
static bool open_trials(Search *s, Err *e) {
    Arena *a = job_scratch(s->job);
    const Block *b = search_block(s);
    const ModelConfig *c = &s->b->model->config;
    int64_t cols = s->group->cols, groups = (cols - 1) / qspec_group_size(&s->spec, cols) + 1, most = 0;
    s->trial = ARENA_ARRAY(job_host(s->job), Trial, b->n_linears, e);
    for (int64_t r = -1; s->trial && (r = group_next(b, s->group, r)) >= 0;) {
        Trial *t = &s->trial[s->n_trials++];
        t->l = &b->linears[r];
        if (t->l->rows > most) most = t->l->rows;
        if (!qtensor_new(&t->q, a, s->spec, t->l->rows, cols, e)) return false;
    }
    s->scaled = ARENA_ARRAY(a, float, most * cols, e);
    for (int i = 0; i < 2; i++) s->grid[i] = ARENA_ARRAY(a, float, most * groups, e);
    bool ok = s->trial && s->scaled && s->grid[0] && s->grid[1];
    if (!ok || !s->group->routed) return ok;
    s->router_w = ARENA_ARRAY(a, float, c->n_experts * cols, e);
    return s->router_w && qtensor_new_dense(&s->router_q, a, DT_F32, c->n_experts, cols, e);
}

/* W·s 与它的格点；scale、zero 写到 *grid。返回: W·s。 */
static Tensor scale_weight(Search *s, int64_t n_groups, Tensor w, Tensor grid[2]) {
    int64_t rows = w.shape[0], cols = w.shape[1];
    Tensor scaled = tensor_f32(s->scaled, rows, cols);
    grid[0] = tensor_f32(s->grid[0], rows, n_groups);
    grid[1] = tensor_f32(s->grid[1], rows, n_groups);
    op_scale(job_backend(s->job), scaled, w, (Tensor){0}, tensor_f32_1d(s->col, cols));
    op_qparams(job_backend(s->job), grid[0], grid[1], scaled, &s->spec);
    return scaled;
}

/* XᵀX，x (n, cols)，装成面板。 */
static bool second_moment(QuantJob *job, const float *x, int64_t n, int64_t cols, QTensor *q,
                          Err *e) {
    Arena *a = job_scratch(job);
    float *g = ARENA_ARRAY(a, float, cols * cols, e);
    if (!g || !qtensor_new_dense(q, a, DT_F32, cols, cols, e)) return false;
    int64_t batch = job_backend(job)->batch_rows;
    for (int64_t i = 0; i < n; i += batch) {
        int64_t rows = n - i < batch ? n - i : batch;
        op_gram(job_backend(job), tensor_f32(g, cols, cols),
                tensor_f32((float *)x + i * cols, rows, cols));
    }
    op_symmetrize(job_backend(job), tensor_f32(g, cols, cols));
    op_pack_dense(job_backend(job), q, tensor_f32(g, cols, cols));
    return backend_check(job_backend(job), e);
}

/* 第 part 份单位过注意力或 MLP，误差加进 *loss。 */
static bool module_loss(Search *s, int64_t part, double *loss, Err *e) {
    Backend *b = job_backend(s->job);
    int64_t count = s->st->n_inputs / s->unit, cells = s->unit * s->st->cols;
    int64_t outputs = s->unit * s->b->model->config.hidden;
    for (s->first = part; s->first < count; s->first += s->batch * PARTS) {
        int64_t left = (count - s->first - 1) / PARTS + 1, n = left < s->batch ? left : s->batch;
        if (!interrupt_check(e)) return false;
        op_divide(b, tensor_f32(s->work.h, n, cells), s->st->inputs + s->first * cells,
                  PARTS * cells, tensor_f32_1d(s->col, s->st->cols));
        if (s->group->input == INPUT_QKV)
            attention_forward(s->b->model, s->b->layer, &s->work, n * s->unit, s->segments,
                              (size_t)n, NULL);
        else
            mlp_forward(s->b->model, s->b->layer, &s->work, n * s->unit, NULL);
        op_row_errors(b, s->error, tensor_f32(s->work.h, n, outputs), s->reference + s->first * outputs,
                      PARTS * outputs);
        if (!backend_check(b, e)) return false;
        for (int64_t i = 0; i < n; i++) *loss += s->error[i];
    }
    return true;
}

/* 单个线性层的第 [from,until) 份行：ΔW = Q(W·s)/s − W，误差 tr(ΔW·G·ΔWᵀ)。 */
static void linear_loss(Search *s, int from, int until, double *loss) {
    Backend *b = job_backend(s->job);
    Tensor w = linear_weight(s->trial[0].l), grid[2];
    int64_t cols = w.shape[1], r0 = w.shape[0] * from / PARTS, r1 = w.shape[0] * until / PARTS;
    if (r0 == r1) return;
    Tensor part = tensor_f32(tensor_data_f32(w) + r0 * cols, r1 - r0, cols);
    Tensor d = tensor_f32(s->delta, r1 - r0, cols), scaled = scale_weight(s, s->trial[0].q.n_groups, part, grid);
    op_fake_quant(b, d, scaled, grid[0], grid[1], &s->spec);
    op_divide(b, d, s->delta, cols, tensor_f32_1d(s->col, cols));
    op_mse_grad(b, d, d, part, 1); /* ΔW */
    *loss += op_quadratic(b, d, &s->gram, tensor_f32(s->product, r1 - r0, cols));
}

/* 组里各线性层换成 Q(W·s)；路由也乘 s（它与专家用同一个输入 x/s），但不量化。 */
static void put_candidate(Search *s) {
    Backend *b = job_backend(s->job);
    for (int64_t i = 0; i < s->n_trials; i++) {
        Trial *t = &s->trial[i];
        Tensor grid[2], scaled = scale_weight(s, t->q.n_groups, linear_weight(t->l), grid);
        t->dense = t->l->q;
        op_quantize(b, &t->q, scaled, grid[0], grid[1]);
        t->l->q = t->q;
    }
    if (!s->group->routed) return;
    Block *block = search_block(s);
    int64_t n = block->router_q.rows, cols = block->router_q.cols;
    Tensor scaled = tensor_f32(s->router_w, n, cols);
    op_scale(b, scaled, tensor_f32(block->router, n, cols), (Tensor){0}, tensor_f32_1d(s->col, cols));
    op_pack_dense(b, &s->router_q, scaled);
    block->router_q = s->router_q;
}

/* 候选在 [from,until) 份上的误差，加进 *loss；超过 stop 就不必再算。 */
static bool candidate_loss(Search *s, int from, int until, double stop, double *loss, Err *e) {
    bool ok = true;
    if (!s->reference) {
        linear_loss(s, from, until, loss);
        return interrupt_check(e) && backend_check(job_backend(s->job), e);
    }
    QTensor router = search_block(s)->router_q;
    put_candidate(s);
    for (int p = from; ok && p < until && *loss <= stop; p++) ok = module_loss(s, p, loss, e);
    for (int64_t i = 0; i < s->n_trials; i++) s->trial[i].l->q = s->trial[i].dense;
    search_block(s)->router_q = router;
    return ok && backend_check(job_backend(s->job), e);
}

/* s = mean|x|^α（不小于 1e-4），再除以 √(max·min)。 */
static void make_scale(Search *s, double ratio) {
    float *scale = s->scale;
    int64_t n = s->st->cols;
    float lo = INFINITY, hi = 0;
    for (int64_t c = 0; c < n; c++) {
        float v = powf((float)s->mean[c], (float)ratio);
        scale[c] = v < 1e-4f ? 1e-4f : v;
        if (scale[c] < lo) lo = scale[c];
        if (scale[c] > hi) hi = scale[c];
    }
    float middle = sqrtf(hi * lo);
    for (int64_t c = 0; c < n; c++) scale[c] /= middle;
    op_write(job_backend(s->job), s->col, scale, (size_t)n * sizeof *scale);
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

/* 搜索 α，最好的 s 留在 scale 里。最后一轮中误差已超过最小者的候选不再算完：误差只增不减，结果不变。 */
static bool search_ratio(Search *s, Err *e) {
    const AwqOptions *o = job_options(s->job);
    Candidate c[GRID_MAX];
    int alive = (int)o->n_grid, from = 0;
    for (int i = 0; i < alive; i++) c[i] = (Candidate){.at = i};
    for (const Round *r = o->search != SEARCH_PRUNED ? ALL : s->reference ? HALVING : HALVING_ROWS;
         from < PARTS; from = r++->until) {
        double least = INFINITY;
        for (int i = 0; i < alive; i++) {
            make_scale(s, (double)c[i].at / (double)o->n_grid);
            if (!candidate_loss(s, from, r->until, r->until == PARTS ? least : INFINITY, &c[i].loss,
                                e))
                return false;
            if (!isfinite(c[i].loss)) return err_set(e, ERR_NUMERIC, "比例搜索的误差不是有限数");
            if (c[i].loss < least) least = c[i].loss;
        }
        sort_candidates(c, alive);
        if (alive > r->keep) alive = r->keep;
    }
    make_scale(s, (double)c[0].at / (double)o->n_grid);
    return backend_check(job_backend(s->job), e);
}

/* 模块原来的输出：由它的最后一个线性层（o 或 down）作用在那一层的输入上得到；专家的没有这样一层，再过一遍。 */
static bool make_reference(Search *s, Err *e) {
    Backend *b = job_backend(s->job);
    bool attention = s->group->input == INPUT_QKV;
    const InputStats *in = &s->b->stats[attention ? INPUT_O : INPUT_DOWN];
    const Linear *last = &s->b->linears[attention ? ROLE_O : ROLE_DOWN];
    int64_t d = s->b->model->config.hidden, n = s->st->n_inputs, rows = s->batch * s->unit;
    if (!s->group->routed) {
        op_linear(b, tensor_f32(s->reference, n, d), tensor_f32(in->inputs, n, in->cols), &last->q,
                  tensor_f32_1d(last->bias, last->bias ? d : 0));
        return backend_check(b, e);
    }
    for (int64_t i = 0; i < n; i += rows) {
        if (n - i < rows) rows = n - i;
        op_copy(b, s->work.h, s->st->inputs + i * d, (size_t)(rows * d) * sizeof(float));
        mlp_forward(s->b->model, s->b->layer, &s->work, rows, NULL);
        op_copy(b, s->reference + i * d, s->work.h, (size_t)(rows * d) * sizeof(float));
        if (!interrupt_check(e) || !backend_check(b, e)) return false;
    }
    return true;
}

/* 看注意力或 MLP 输出的搜索。 */
static bool search_module(Search *s, Err *e) {
    Arena *a = job_scratch(s->job);
    s->unit = s->group->input == INPUT_QKV ? s->b->calib->length : 1;
    int64_t rows = job_backend(s->job)->batch_rows;
    s->batch = rows / s->unit > 0 ? rows / s->unit : 1;
    int64_t most = (s->st->n_inputs / s->unit - 1) / PARTS + 1;
    if (s->batch > most) s->batch = most;
    s->reference = ARENA_ARRAY(a, float, s->st->n_inputs *s->b->model->config.hidden, e);
    s->error = ARENA_ARRAY(job_host(s->job), double, s->batch, e);
    s->segments = ARENA_ARRAY(job_host(s->job), Segment, s->batch, e);
    if (!s->reference || !s->error || !s->segments ||
        !workspace_open(&s->work, s->b->model, s->batch * s->unit, e))
        return false;
    for (int64_t i = 0; i < s->batch; i++)
        s->segments[i] = (Segment){.row0 = i * s->unit, .n = s->unit};
    bool ok = make_reference(s, e) && search_ratio(s, e);
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

/* 这一组可以缩放：每列有自己的 s，折得下去。 */
static bool scaled(const Group *g) {
    return g->feed != FEED_NONE && g->n_scales == g->cols;
}

/* 一组的 s：主机上的与后端的（cols），都活到块的结束。 */
typedef struct Scale {
    float *host, *col;
} Scale;

/* 看单个线性层的搜索。 */
static bool search_linear(Search *s, Err *e) {
    Arena *a = job_scratch(s->job);
    int64_t rows = s->trial[0].l->rows, cols = s->st->cols;
    s->delta = ARENA_ARRAY(a, float, rows * cols, e);
    s->product = ARENA_ARRAY(a, float, rows * cols, e);
    return s->delta && s->product && second_moment(s->job, s->st->inputs, s->st->n_inputs, cols, &s->gram, e) &&
           search_ratio(s, e);
}

/* 搜出一组的 s；不能逐列折叠的组（如 GQA 的 v → o，官方亦不缩放）、没有分到 token 的专家为全 1。 */
static bool search_group(QuantJob *job, QuantBlock *b, const Group *g, Scale *out, Err *e) {
    Search s = {.job = job, .b = b, .group = g, .st = &b->stats[g->input]};
    int64_t cols = g->cols;
    s.scale = ARENA_ARRAY(job_host(job), float, cols, e);
    s.col = ARENA_ARRAY(job_scratch(job), float, cols, e);
    *out = (Scale){s.scale, s.col};
    if (!s.scale || !s.col || !awq_spec(job, cols, &s.spec, e)) return false;
    for (int64_t c = 0; c < cols; c++) s.scale[c] = 1;
    op_write(job_backend(job), s.col, s.scale, (size_t)cols * sizeof *s.scale);
    if (!scaled(g) || !s.st->n_inputs) return backend_check(job_backend(job), e);
    ArenaMark mark = arena_mark(job_scratch(job)), host = arena_mark(job_host(job));
    double *mean = ARENA_ARRAY(job_host(job), double, cols, e);
    if (mean) op_read(job_backend(job), mean, s.st->absmean, (size_t)cols * sizeof *mean);
    s.mean = mean;
    bool module = g->input == INPUT_QKV || g->input == INPUT_GATE_UP;
    bool ok = mean && open_trials(&s, e) && (module ? search_module(&s, e) : search_linear(&s, e));
    arena_rewind(job_scratch(job), mark);
    arena_rewind(job_host(job), host);
    return ok;
}

/* 就地截断 w：s 是后端的；逐组列，输入每隔若干 token 取一个、除以 s。 */
static bool clip_linear(QuantJob *job, Tensor w, const InputStats *st, const float *s, QSpec spec,
                        Err *e) {
    const AwqOptions *o = job_options(job);
    int64_t step = st->n_inputs / o->clip_tokens > 1 ? st->n_inputs / o->clip_tokens : 1;
    int64_t n = (st->n_inputs - 1) / step + 1, size = qspec_group_size(&spec, st->cols);
    int64_t steps = (int64_t)(o->clip_shrink * (double)o->clip_grid);
    Arena *a = job_scratch(job);
    bool ok = true;
    spec.group_size = -1;
    for (int64_t c0 = 0; ok && c0 < st->cols; c0 += size) {
        ArenaMark group = arena_mark(a);
        int64_t width = st->cols - c0 < size ? st->cols - c0 : size;
        float *x = ARENA_ARRAY(a, float, n * width, e);
        QTensor gram;
        if (x)
            op_divide(job_backend(job), tensor_f32(x, n, width), st->inputs + c0, step * st->cols,
                      tensor_f32_1d((float *)s + c0, width));
        ok = x && interrupt_check(e) && second_moment(job, x, n, width, &gram, e);
        ClipJob clip = {.rows = w.shape[0], .width = width, .ld = st->cols, .gram = &gram, .spec = spec,
                        .w = tensor_data_f32(w) + c0, .steps = steps ? steps : 1, .grid = o->clip_grid};
        if (ok) op_clip(job_backend(job), &clip);
        ok = ok && backend_check(job_backend(job), e);
        arena_rewind(a, group);
    }
    return ok;
}

/* 截断（q、k 与没有统计的专家除外）、就近取整、换上。 */
static bool quantize_linear(QuantJob *job, QuantBlock *b, Linear *l, const float *s, Err *e) {
    const AwqOptions *o = job_options(job);
    const InputStats *st = &b->stats[l->group];
    Tensor w = linear_weight(l);
    QSpec spec = {0};
    int64_t n = w.shape[0] * w.shape[1];
    ArenaMark mark = arena_mark(job_scratch(job));
    float *copy = ARENA_ARRAY(job_scratch(job), float, n, e);
    if (!copy || !awq_spec(job, st->cols, &spec, e)) return false;
    op_copy(job_backend(job), copy, w.data, (size_t)n * sizeof *copy);
    w.data = copy;
    bool clip = o->clip && !linear_makes_scores(l) && st->n_inputs > 0;
    bool ok = (!clip || clip_linear(job, w, st, s, spec, e)) &&
              job_quantize_nearest(job, l, w, &spec, e);
    arena_rewind(job_scratch(job), mark);
    return ok;
}

static bool awq_block(QuantJob *job, QuantBlock *b, Err *e) {
    Model *m = b->model;
    int n = block_n_groups(&m->config, b->layer);
    Group *g = ARENA_ARRAY(job_host(job), Group, n, e);
    Scale *s = ARENA_ARRAY(job_host(job), Scale, n, e);
    float *const norm[] = {b->attn_norm, b->mlp_norm};
    if (!g || !s) return false;
    group_list(m, b->layer, g);
    for (int i = 0; i < n; i++)
        if (g[i].cols && !search_group(job, b, &g[i], &s[i], e)) return false;
    for (int i = 0; i < n; i++)
        if (g[i].cols && scaled(&g[i]) && !group_fold_scale(m, b->layer, &g[i], norm, s[i].host, e)) return false;
    for (int64_t r = 0; r < m->blocks[b->layer].n_linears; r++) {
        Linear *l = &b->linears[r];
        if (l->rows && !quantize_linear(job, b, l, s[group_of(l->group)].col, e)) return false;
    }
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
