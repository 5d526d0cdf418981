/* metrics — 指标、聚合与标准误的实现
 * 求和一律从头到尾逐个相加，与 Python 的 sum 次序相同。 */
#include "tasks/metrics.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/pyrandom.h"
#include "tasks/pystr.h"
#include "tasks/stats.h"

enum { BOOTSTRAP_CHUNKS = 100, BOOTSTRAP_PER_CHUNK = 1000 };

static const struct {
    const char *name;
    Aggregation aggregation;
    bool higher;
} METRICS[] = {
    [METRIC_ACC] = {"acc", AGG_MEAN, true},
    [METRIC_ACC_NORM] = {"acc_norm", AGG_MEAN, true},
    [METRIC_ACC_BYTES] = {"acc_bytes", AGG_MEAN, true},
    [METRIC_ACC_MUTUAL] = {"acc_mutual_info", AGG_MEAN, true},
    [METRIC_EXACT_MATCH] = {"exact_match", AGG_MEAN, true},
    [METRIC_PERPLEXITY] = {"perplexity", AGG_PERPLEXITY, false},
    [METRIC_WORD_PPL] = {"word_perplexity", AGG_WEIGHTED_PPL, false},
    [METRIC_BYTE_PPL] = {"byte_perplexity", AGG_WEIGHTED_PPL, false},
    [METRIC_BITS_PER_BYTE] = {"bits_per_byte", AGG_BITS_PER_BYTE, false},
};
enum { N_METRICS = sizeof METRICS / sizeof *METRICS };
static const char *const AGGREGATIONS[] = {"mean", "median", "perplexity", "weighted_perplexity",
                                           "bits_per_byte"};
enum { N_AGGREGATIONS = sizeof AGGREGATIONS / sizeof *AGGREGATIONS };

const char *metric_name(MetricKind k) {
    return METRICS[k].name;
}

static bool find_metric(const char *name, MetricSpec *m, Err *e) {
    for (int i = 0; i < N_METRICS; i++) {
        if (strcmp(METRICS[i].name, name) != 0) continue;
        *m = (MetricSpec){.kind = (MetricKind)i, .aggregation = METRICS[i].aggregation,
                          .higher_is_better = METRICS[i].higher};
        return true;
    }
    return err_set(e, ERR_UNSUPPORTED, "原生路径没有指标 '%s'", name);
}

static bool set_aggregation(MetricSpec *m, const json_t *v, Err *e) {
    const char *name = json_string_value(v);
    if (!v || json_is_null(v)) return true;
    for (int i = 0; name && i < N_AGGREGATIONS; i++)
        if (strcmp(AGGREGATIONS[i], name) == 0) {
            m->aggregation = (Aggregation)i;
            return true;
        }
    return err_set(e, ERR_UNSUPPORTED, "原生路径没有聚合 '%s'", name ? name : "!function");
}

static bool open_ignore(MetricSpec *m, const json_t *list, Arena *a, Err *e) {
    m->ignore = ARENA_ARRAY(a, PyRegex *, json_array_size(list), e);
    if (!m->ignore) return false;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *p = json_string_value(json_array_get(list, i));
        if (!p) return err_set(e, ERR_CONFIG, "regexes_to_ignore 应是一列正则");
        if (!pyregex_open(&m->ignore[i], p, strlen(p), 0, e)) return false;
        m->n_ignore++;
    }
    return true;
}

static bool open_metric(MetricSpec *m, const json_t *one, Arena *a, Err *e) {
    const char *name = json_string_value(json_object_get(one, "metric"));
    if (!name)
        return err_set(e, json_object_get(one, "metric") ? ERR_UNSUPPORTED : ERR_CONFIG,
                       "metric_list 的每一项要有名字 metric（原生路径不支持 !function 的指标）");
    const char *where = "metric_list";
    return find_metric(name, m, e) && set_aggregation(m, json_object_get(one, "aggregation"), e) &&
           json_get_bool_or(one, where, "higher_is_better", m->higher_is_better, &m->higher_is_better,
                            e) &&
           json_get_bool_or(one, where, "ignore_case", false, &m->ignore_case, e) &&
           json_get_bool_or(one, where, "ignore_punctuation", false, &m->ignore_punctuation, e) &&
           json_get_bool_or(one, where, "ignore_numbers", false, &m->ignore_numbers, e) &&
           open_ignore(m, json_object_get(one, "regexes_to_ignore"), a, e);
}

bool metrics_open(MetricSpec **specs, size_t *n, const json_t *metric_list, const char *output_type,
                  Arena *a, Err *e) {
    static const struct {
        const char *output, *names[4];
    } DEFAULTS[] = {{"loglikelihood", {"perplexity", "acc"}},
                    {"loglikelihood_rolling", {"word_perplexity", "byte_perplexity", "bits_per_byte"}},
                    {"multiple_choice", {"acc", "acc_norm"}},
                    {"generate_until", {"exact_match"}}};
    size_t count = json_array_size(metric_list);
    *n = 0;
    *specs = ARENA_ARRAY(a, MetricSpec, count ? count : 4, e);
    if (!*specs) return false;
    for (size_t i = 0; i < count; i++) {
        (*n)++;
        if (open_metric(&(*specs)[i], json_array_get(metric_list, i), a, e)) continue;
        metrics_close(*specs, *n);
        *n = 0;
        return false;
    }
    for (size_t d = 0; count == 0 && d < sizeof DEFAULTS / sizeof *DEFAULTS; d++)
        for (int i = 0; strcmp(DEFAULTS[d].output, output_type) == 0 && DEFAULTS[d].names[i]; i++)
            if (!find_metric(DEFAULTS[d].names[i], &(*specs)[(*n)++], e)) return false;
    return true;
}

void metrics_close(MetricSpec *specs, size_t n) {
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < specs[i].n_ignore; k++) pyregex_close(specs[i].ignore[k]);
}

/* ---------- exact_match ---------- */

static void drop_ascii(Str *s, bool digits) {
    size_t to = 0;
    for (size_t i = 0; i < s->len; i++) {
        unsigned char c = (unsigned char)s->data[i];
        bool digit = c >= '0' && c <= '9';
        bool punct = c > ' ' && c < 127 && !digit && !((c | 32) >= 'a' && (c | 32) <= 'z');
        if (digits ? !digit : !punct) s->data[to++] = s->data[i];
    }
    s->len = to;
    if (s->data) s->data[to] = '\0';
}

static bool normalize(const MetricSpec *m, const char *text, size_t len, Str *out, Err *e) {
    str_addn(out, text, len);
    for (size_t i = 0; i < m->n_ignore; i++) {
        Str next = {.failed = out->failed};
        bool ok = pyregex_sub(m->ignore[i], out->data ? out->data : "", out->len, "", 0, 0, &next, e);
        str_free(out);
        *out = next;
        if (!ok) return false;
    }
    if (m->ignore_case) {
        Str next = {.failed = out->failed};
        py_lower(&next, (PyText){out->data ? out->data : "", out->len});
        str_free(out);
        *out = next;
    }
    if (m->ignore_punctuation) drop_ascii(out, false);
    if (m->ignore_numbers) drop_ascii(out, true);
    return !out->failed || err_set(e, ERR_MEMORY, "内存不足");
}

bool metric_exact_match(const MetricSpec *m, const char *gold, size_t n_gold, const char *got,
                        size_t n_got, bool *same, Err *e) {
    Str a = {0}, b = {0};
    bool ok = normalize(m, gold, n_gold, &a, e) && normalize(m, got, n_got, &b, e);
    *same = ok && a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
    str_free(&a);
    str_free(&b);
    return ok;
}

/* ---------- 聚合 ---------- */

static double sum_of(const double *x, size_t n) {
    double s = 0;
    for (size_t i = 0; i < n; i++) s += x[i];
    return s;
}

/* 框架的 median：排序后第 n/2 个。 */
static double middle(const double *x, size_t n) {
    double *sorted = malloc(n * sizeof *sorted);
    if (!sorted) return NAN;
    memcpy(sorted, x, n * sizeof *sorted);
    stats_sort(sorted, n);
    double v = sorted[n / 2];
    free(sorted);
    return v;
}

double metric_aggregate(Aggregation g, const double *x, const double *w, size_t n) {
    if (n == 0) return NAN;
    switch (g) {
    case AGG_MEAN: return sum_of(x, n) / (double)n;
    case AGG_MEDIAN: return middle(x, n);
    case AGG_PERPLEXITY: return exp(-sum_of(x, n) / (double)n);
    case AGG_WEIGHTED_PPL: return exp(-sum_of(x, n) / sum_of(w, n));
    case AGG_BITS_PER_BYTE: return -sum_of(x, n) / sum_of(w, n) / log(2);
    }
    return NAN;
}

static double sample_stddev(const double *x, size_t n) {
    double mean = sum_of(x, n) / (double)n, s = 0;
    for (size_t i = 0; i < n; i++) s += (x[i] - mean) * (x[i] - mean);
    return sqrt(s / (double)(n - 1));
}

/* 第 i 块用 random.Random(i)，每次 choices(xs, k=n)。 */
static double bootstrap(Aggregation g, const double *x, size_t n) {
    size_t total = (size_t)BOOTSTRAP_CHUNKS * BOOTSTRAP_PER_CHUNK;
    double *res = malloc(total * sizeof *res), *draw = malloc(n * sizeof *draw);
    PyRandom rng;
    if (!res || !draw) {
        free(res);
        free(draw);
        return NAN;
    }
    for (size_t i = 0; i < total; i++) {
        if (i % BOOTSTRAP_PER_CHUNK == 0) pyrandom_seed(&rng, i / BOOTSTRAP_PER_CHUNK);
        for (size_t k = 0; k < n; k++) draw[k] = x[(size_t)(pyrandom_unit(&rng) * (double)n)];
        res[i] = metric_aggregate(g, draw, NULL, n);
    }
    double se = sample_stddev(res, total);
    free(res);
    free(draw);
    return se;
}

double metric_stderr(Aggregation g, const double *x, size_t n) {
    if (n < 2) return NAN;
    if (g == AGG_MEAN) return sample_stddev(x, n) / sqrt((double)n);
    if (g == AGG_PERPLEXITY || g == AGG_MEDIAN) return bootstrap(g, x, n);
    return NAN;
}

double group_mean(const double *x, const size_t *sizes, size_t n, bool weighted) {
    double sum = 0, total = 0;
    for (size_t i = 0; i < n; i++) {
        double w = weighted ? (double)sizes[i] : 1;
        sum += x[i] * w;
        total += w;
    }
    return total > 0 ? sum / total : NAN;
}

double group_stderr(const double *se, const size_t *sizes, size_t n, bool weighted) {
    double sum = 0, total = 0;
    for (size_t i = 0; i < n; i++) {
        double size = (double)sizes[i];
        sum += weighted ? (size - 1) * se[i] * se[i] * size : se[i] * se[i];
        total += size;
    }
    if (!weighted) return n ? sqrt(sum) / (double)n : NAN;
    return total > (double)n ? sqrt(sum / (total - (double)n) / total) : NAN;
}
