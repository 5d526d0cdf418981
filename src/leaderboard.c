/* leaderboard — 建榜：挑出最新的结果、分榜、算对照与排名组
 * 每行只做一次块自助（同种子抽到同样的块），两两之差由它们逐个相减得到，所以 n 行的代价是 n 次自助而不是 n²。 */
#include "leaderboard.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "markdown.h"
#include "registry.h"
#include "tasks/stats.h"

#define ALPHA 0.05
#define BOOTSTRAP_SEED 0

/* ---------- 设置的短写 ---------- */

static void add_word(Str *s, const char *word) {
    if (s->len) str_add(s, " ");
    str_add(s, word);
}

/* 已有专门写法的键。 */
static bool has_own_form(const char *key) {
    static const char *const KEYS[] = {"weight.w_bits",     "weight.group_size", "weight.granularity",
                                       "weight.scheme",     "weight.zero_point",
                                       "weight.scale_dtype", "kv_cache.k_bits",
                                       "kv_cache.v_bits"};
    for (size_t i = 0; i < sizeof KEYS / sizeof *KEYS; i++)
        if (strcmp(KEYS[i], key) == 0) return true;
    return false;
}

/* 与方法的默认值相同；方法没有登记（别的版本写的结果）则为假。 */
static bool is_default(const Method *m, const char *key, const json_t *v) {
    for (const Option *o = m ? m->options : NULL; o && o->key; o++) {
        if (strcmp(o->key, key) != 0) continue;
        if (o->type == OPTION_BOOL) return json_is_true(v) == (o->def != 0);
        if (o->type != OPTION_ENUM) return json_is_number(v) && json_number_value(v) == o->def;
        return json_is_string(v) && strcmp(json_string_value(v), o->names[(int)o->def]) == 0;
    }
    return false;
}

/* 专门写法之外、又不是默认值的设置：末段=值。 */
static void add_others(Str *s, json_t *settings, const json_t *result) {
    const json_t *merged = json_at(result, "config.merged");
    Err ignored = {0};
    const Method *method = registry_find(json_text_at(result, "config.method", ""), &ignored);
    const char *key;
    json_t *v;
    json_object_foreach(settings, key, v) {
        const json_t *m = json_object_get(merged, key);
        const char *from = json_string_value(json_object_get(m, "from"));
        if (has_own_form(key) || !from || strcmp(from, "默认值") == 0 ||
            is_default(method, key, v))
            continue;
        const char *dot = strrchr(key, '.');
        Str word = {0};
        str_addf(&word, "%s=", dot ? dot + 1 : key);
        md_value(&word, v);
        if (!word.failed) add_word(s, word.data);
        str_free(&word);
    }
}

/* 这条轨道上起作用的设置（一个方法可以跨几条轨道）。新的引用；内存不足为 NULL。 */
static json_t *effective_settings(const json_t *result) {
    char track = json_text_at(result, "config.track", "?")[0];
    json_t *all = json_object_get(json_object_get(result, "quantization"), "settings"), *v;
    json_t *set = json_object();
    const char *key;
    json_object_foreach(all, key, v) {
        bool skip = str_starts(key, "kv_cache.")     ? track != 'C'
                    : str_starts(key, "weight.")     ? track == 'C'
                    : str_starts(key, "activation.") ? track != 'B'
                                                     : false;
        if (!skip) json_object_set(set, key, v);
    }
    return set;
}

const char *leaderboard_settings(const json_t *result, Arena *a, Err *e) {
    json_t *set = effective_settings(result);
    Str s = {0};
    const json_t *bits = json_object_get(set, "weight.w_bits");
    if (json_is_integer(bits)) str_addf(&s, "W%lld", (long long)json_integer_value(bits));
    const char *grain = json_string_value(json_object_get(set, "weight.granularity"));
    const json_t *group = json_object_get(set, "weight.group_size");
    if ((grain && strcmp(grain, "per_channel") == 0) ||
        (json_is_integer(group) && json_integer_value(group) < 0))
        add_word(&s, "per-channel");
    else if (json_is_integer(group))
        str_addf(&s, "%sg%lld", s.len ? " " : "", (long long)json_integer_value(group));
    const char *scheme = json_string_value(json_object_get(set, "weight.scheme"));
    if (scheme) add_word(&s, strcmp(scheme, "symmetric") == 0 ? "sym" : "asym");
    const char *zero = json_string_value(json_object_get(set, "weight.zero_point"));
    if (zero && strcmp(zero, "float") == 0) add_word(&s, "float-zero");
    const char *scale = json_string_value(json_object_get(set, "weight.scale_dtype"));
    if (scale && strcmp(scale, "float16") == 0) add_word(&s, "fp16-scale");
    const json_t *k = json_object_get(set, "kv_cache.k_bits");
    const json_t *v = json_object_get(set, "kv_cache.v_bits");
    if (json_is_integer(k) && json_is_integer(v))
        str_addf(&s, "%sK%lld V%lld", s.len ? " " : "", (long long)json_integer_value(k),
                 (long long)json_integer_value(v));
    add_others(&s, set, result);
    if (!s.len) str_add(&s, json_text_at(result, "model.dtype", "—"));
    const char *out = s.failed || !set ? NULL : arena_strdup(a, s.data, e);
    if (s.failed || !set) err_set(e, ERR_MEMORY, "内存不足：设置的短写");
    json_decref(set);
    str_free(&s);
    return out;
}

/* ---------- 分榜 ---------- */

static bool is_ok(const json_t *r) {
    return json_is_true(json_at(r, "status.ok"));
}

static int64_t int_or(const json_t *v, int64_t def) {
    return json_is_integer(v) ? json_integer_value(v) : def;
}

static const char *weights_of(const json_t *r) {
    return json_text_at(r, "model.weights_sha256", "");
}

static bool same_board(const Board *b, const json_t *r, const char *dataset, const json_t *d) {
    const json_t *other = b->rows[0].file->json;
    return b->track == json_text_at(r, "config.track", "?")[0] &&
           strcmp(b->model, json_text_at(r, "config.model", "")) == 0 &&
           strcmp(weights_of(other), weights_of(r)) == 0 && strcmp(b->dataset, dataset) == 0 &&
           strcmp(b->dtype, json_text_at(r, "model.dtype", "")) == 0 &&
           strcmp(b->protocol, json_text_at(d, "protocol", "")) == 0 &&
           strcmp(b->compute, json_text_at(r, "compute.mode", "")) == 0 &&
           strcmp(b->text_sha256, json_text_at(d, "text_sha256", "")) == 0 &&
           b->n_windows == int_or(json_object_get(d, "n_windows"), 0);
}

static bool fill_windows(BoardRow *row, const json_t *d, Arena *a, Err *e) {
    const json_t *list = json_object_get(d, "window_nll");
    size_t n = json_array_size(list);
    if (n == 0) return true;
    double *x = ARENA_ARRAY(a, double, n, e);
    if (!x) return false;
    for (size_t i = 0; i < n; i++) {
        x[i] = json_number_value(json_array_get(list, i));
        if (!isfinite(x[i])) return true; /* 不可用来检验 */
    }
    row->window_nll = x;
    row->n_windows = n;
    return true;
}

static bool fill_row(BoardRow *row, const ResultFile *f, const json_t *d, Arena *a, Err *e) {
    const json_t *r = f->json;
    *row = (BoardRow){
        .file = f, .method = json_text_at(r, "config.method", "?"),
        .ppl = json_number_at(d, "ppl"), .ppl_stderr = json_number_at(d, "ppl_stderr"),
        .delta_ppl = NAN, .delta_nll = json_number_at(d, "baseline.delta_nll.mean"),
        .delta_lo = json_number_at(d, "baseline.delta_nll.ci_low"),
        .delta_hi = json_number_at(d, "baseline.delta_nll.ci_high"),
        .kl_mean = json_number_at(d, "baseline.kl.mean"),
        .kl_p99 = json_number_at(d, "baseline.kl.p99"),
        .same_top1 = json_number_at(d, "baseline.same_top1"),
        .bits_linear = json_number_at(r, "quantization.effective_bits.linear"),
        .bits_model = json_number_at(r, "quantization.effective_bits.model"),
        .weights_mb = json_number_at(r, "results.system_metrics.weights_mb"),
        .memory_mb = json_number_at(r, "results.system_metrics.rss_peak_mb"),
        .prefill = json_number_at(r, "results.system_metrics.prefill_tok_s"),
        /* 一批的合计与别人的批 1 不可比，不列 */
        .decode = json_number_at(r, "results.system_metrics.decode_batch") > 1
                      ? NAN
                      : json_number_at(r, "results.system_metrics.decode_tok_s"),
        .quant_seconds = json_number_at(r, "quant_time_seconds")};
    row->settings = leaderboard_settings(r, a, e);
    return row->settings && fill_windows(row, d, a, e);
}

/* 找到或新建一个榜；每个榜预留 cap 行。 */
static Board *board_for(Leaderboard *lb, const ResultFile *f, const char *dataset, const json_t *d,
                        size_t cap, Err *e) {
    const json_t *r = f->json;
    for (size_t i = 0; i < lb->n_boards; i++)
        if (same_board(&lb->boards[i], r, dataset, d)) return &lb->boards[i];
    Board *all = ARENA_ARRAY(&lb->arena, Board, lb->n_boards + 1, e);
    BoardRow *rows = ARENA_ARRAY(&lb->arena, BoardRow, cap, e);
    if (!all || !rows) return NULL;
    if (lb->n_boards) memcpy(all, lb->boards, lb->n_boards * sizeof *all);
    lb->boards = all;
    Board *b = &all[lb->n_boards++];
    *b = (Board){.track = json_text_at(r, "config.track", "?")[0],
                 .model = json_text_at(r, "config.model", ""),
                 .dataset = dataset, .protocol = json_text_at(d, "protocol", ""),
                 .compute = json_text_at(r, "compute.mode", ""),
                 .dtype = json_text_at(r, "model.dtype", ""),
                 .text_sha256 = json_text_at(d, "text_sha256", ""),
                 .n_windows = int_or(json_object_get(d, "n_windows"), 0),
                 .n_windows_total = int_or(json_object_get(d, "n_windows_total"), 0),
                 .rows = rows};
    return b;
}

/* 文件从新到旧地来；同方法同设置的第一个就是最新的。 */
static bool add_result(Leaderboard *lb, const ResultFile *f, size_t cap, Err *e) {
    const char *dataset;
    json_t *d;
    json_object_foreach(json_object_get(json_object_get(f->json, "results"), "ppl"), dataset, d) {
        Board *b = board_for(lb, f, dataset, d, cap, e);
        BoardRow row;
        if (!b || !fill_row(&row, f, d, &lb->arena, e)) return false;
        bool older = false;
        for (size_t i = 0; i < b->n_rows && !older; i++)
            older = strcmp(b->rows[i].method, row.method) == 0 &&
                    strcmp(b->rows[i].settings, row.settings) == 0;
        if (!older) b->rows[b->n_rows++] = row;
    }
    return true;
}

/* 之后又跑过（无论成败）的失败不再列出：同 run_key；没有 run_key 时看模型、方法、轨道、overrides。 */
static bool superseded(const ResultFile *files, size_t n, size_t failed) {
    const json_t *f = files[failed].json;
    const char *key = json_text_at(f, "run_key", "");
    for (size_t i = failed + 1; i < n; i++) {
        const json_t *r = files[i].json;
        bool same = *key ? strcmp(key, json_text_at(r, "run_key", "")) == 0
                         : strcmp(json_text_at(f, "config.model", ""),
                                  json_text_at(r, "config.model", "")) == 0 &&
                               strcmp(json_text_at(f, "config.method", ""),
                                      json_text_at(r, "config.method", "")) == 0 &&
                               strcmp(json_text_at(f, "config.track", ""),
                                      json_text_at(r, "config.track", "")) == 0 &&
                               json_equal(json_at(f, "config.overrides"),
                                          json_at(r, "config.overrides"));
        if (same) return true;
    }
    return false;
}

/* ---------- 排序与排名组 ---------- */

static int by_ppl(const void *a, const void *b) {
    const BoardRow *x = a, *y = b;
    if (x->ppl != y->ppl) return x->ppl < y->ppl ? -1 : 1;
    int c = strcmp(x->method, y->method);
    return c ? c : strcmp(x->settings, y->settings);
}

static int by_board(const void *a, const void *b) {
    const Board *x = a, *y = b;
    int c = (x->track > y->track) - (x->track < y->track);
    if (!c) c = strcmp(x->model, y->model);
    if (!c) c = strcmp(x->dataset, y->dataset);
    if (!c) c = strcmp(x->protocol, y->protocol);
    if (!c) c = strcmp(y->compute, x->compute); /* float32 在 bfloat16 之前 */
    if (!c) c = (x->n_windows < y->n_windows) - (x->n_windows > y->n_windows);
    if (!c) c = strcmp(x->dtype, y->dtype);
    return c ? c : strcmp(x->text_sha256, y->text_sha256);
}

static const BoardRow *baseline_of(const Board *b) {
    for (size_t i = 0; i < b->n_rows; i++)
        if (strcmp(b->rows[i].method, "fp16") == 0) return &b->rows[i];
    return NULL;
}

static void fill_deltas(Board *b) {
    const BoardRow *base = baseline_of(b);
    for (size_t i = 0; base && i < b->n_rows; i++) {
        BoardRow *r = &b->rows[i];
        if (r == base) continue;
        r->delta_ppl = r->ppl - base->ppl;
        double p;
        if (isnan(r->delta_nll) && r->window_nll && r->n_windows == base->n_windows &&
            !stats_paired_bootstrap(r->window_nll, base->window_nll, r->n_windows, BOOTSTRAP_SEED,
                                    &r->delta_nll, &r->delta_lo, &r->delta_hi, &p))
            r->delta_nll = r->delta_lo = r->delta_hi = NAN;
    }
}

/* 两行之差的双侧 p；means 是各自的自助均值。 */
static double pair_p(const BoardRow *x, const BoardRow *y, const double *mx, const double *my,
                     double *work) {
    if (memcmp(x->window_nll, y->window_nll, x->n_windows * sizeof(double)) == 0) return 1;
    if (x->n_windows < 2) return 1;
    for (size_t r = 0; r < STATS_RESAMPLES; r++) work[r] = mx[r] - my[r];
    return stats_shift_p(work, stats_mean(x->window_nll, x->n_windows) -
                                   stats_mean(y->window_nll, y->n_windows));
}

/* 由校正后的 p 分组：从最好的一行起，与组长分不开的同组，分得开的另立一组。 */
static void assign_groups(BoardRow **rows, size_t n, const double *adjusted) {
    int group = 0;
    size_t leader = 0;
    for (size_t j = 0; j < n; j++) {
        /* 第 (i,j) 对（i<j）在上三角中的位置 */
        size_t at = leader * n - leader * (leader + 1) / 2 + (j - leader - 1);
        if (j == 0 || adjusted[at] < ALPHA) group++, leader = j;
        rows[j]->group = group;
    }
}

static bool rank_board(Board *b, Err *e) {
    Arena a = {0};
    size_t n = 0;
    BoardRow **rows = ARENA_ARRAY(&a, BoardRow *, b->n_rows, e);
    if (!rows) return false;
    for (size_t i = 0; i < b->n_rows; i++) { /* 窗口数与首行不同的不能成对比较 */
        BoardRow *r = &b->rows[i];
        if (r->window_nll && (n == 0 || r->n_windows == rows[0]->n_windows)) rows[n++] = r;
    }
    size_t pairs = n * (n ? n - 1 : 0) / 2, k = 0;
    double *means = ARENA_ARRAY(&a, double, n * STATS_RESAMPLES, e);
    double *work = ARENA_ARRAY(&a, double, STATS_RESAMPLES, e);
    double *p = ARENA_ARRAY(&a, double, 2 * pairs, e);
    bool ok = means && work && p;
    for (size_t i = 0; ok && i < n; i++)
        ok = stats_bootstrap_means(rows[i]->window_nll, rows[i]->n_windows, BOOTSTRAP_SEED,
                                   means + i * STATS_RESAMPLES);
    for (size_t i = 0; ok && i < n; i++)
        for (size_t j = i + 1; j < n; j++)
            p[k++] = pair_p(rows[i], rows[j], means + i * STATS_RESAMPLES,
                            means + j * STATS_RESAMPLES, work);
    if (ok) ok = stats_holm(p, pairs, p + pairs);
    if (ok) assign_groups(rows, n, p + pairs);
    arena_free(&a);
    return ok || err_set(e, ERR_MEMORY, "内存不足：排名检验");
}

bool leaderboard_build(Leaderboard *lb, const ResultFile *files, size_t n, Err *e) {
    *lb = (Leaderboard){.n_results = n, .files = files};
    lb->failed = ARENA_ARRAY(&lb->arena, const ResultFile *, n, e);
    bool ok = lb->failed != NULL;
    for (size_t i = n; ok && i-- > 0;) {
        if (is_ok(files[i].json))
            ok = add_result(lb, &files[i], n, e);
        else if (!superseded(files, n, i))
            lb->failed[lb->n_failed++] = &files[i];
    }
    for (size_t i = 0; ok && i < lb->n_boards; i++) {
        Board *b = &lb->boards[i];
        qsort(b->rows, b->n_rows, sizeof *b->rows, by_ppl);
        fill_deltas(b);
        ok = rank_board(b, e);
    }
    ok = ok && leaderboard_build_tasks(lb, files, n, e);
    if (ok && lb->n_boards) qsort(lb->boards, lb->n_boards, sizeof *lb->boards, by_board);
    if (!ok) leaderboard_free(lb);
    return ok;
}

void leaderboard_free(Leaderboard *lb) {
    arena_free(&lb->arena);
    *lb = (Leaderboard){0};
}
