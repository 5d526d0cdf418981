/* filters — 过滤器的建立与应用
 * 出处：lm_eval/filters/extraction.py 的 RegexFilter（findall、group_select、取第一个非空的组、去两端空白、fallback）。 */
#include "tasks/filters.h"

#include <string.h>

#include "tasks/pystr.h"

static bool open_regex(Filter *f, const json_t *step, Arena *a, Err *e) {
    const char *pattern, *fallback;
    if (!json_get_str_or(step, "filter", "regex_pattern", "#### (\\-?[0-9\\.\\,]+)", &pattern, e) ||
        !json_get_str_or(step, "filter", "fallback", "[invalid]", &fallback, e) ||
        !json_get_int_or(step, "filter", "group_select", 0, -1000000, 1000000, &f->group, e))
        return false;
    f->fallback = arena_strdup(a, fallback, e);
    return f->fallback && pyregex_open(&f->regex, pattern, strlen(pattern), 0, e);
}

static bool open_step(Filter *f, const json_t *step, Arena *a, Err *e) {
    static const char *const NAMES[] = {"take_first", "regex", "remove_whitespace", "lowercase",
                                        "uppercase", NULL};
    const char *name = json_string_value(json_object_get(step, "function"));
    if (!name) return err_set(e, ERR_CONFIG, "filter_list 的每一步要有 function");
    for (int i = 0; NAMES[i]; i++) {
        if (strcmp(NAMES[i], name) != 0) continue;
        f->kind = (FilterKind)i;
        return f->kind != FILTER_REGEX || open_regex(f, step, a, e);
    }
    return err_set(e, ERR_UNSUPPORTED, "原生路径没有过滤器 '%s'（有 take_first、regex、remove_whitespace、"
                   "lowercase、uppercase）", name);
}

static bool open_pipe(FilterPipe *p, const json_t *one, Arena *a, Err *e) {
    const char *name = json_string_value(json_object_get(one, "name"));
    const json_t *steps = json_object_get(one, "filter");
    if (!name || !json_is_array(steps))
        return err_set(e, ERR_CONFIG, "filter_list 的每一项要有 name 与 filter（一列步骤）");
    p->name = arena_strdup(a, name, e);
    p->steps = ARENA_ARRAY(a, Filter, json_array_size(steps), e);
    if (!p->name || !p->steps) return false;
    for (size_t i = 0; i < json_array_size(steps); i++) {
        p->n++; /* 半开的也由 filters_close 归还 */
        if (!open_step(&p->steps[i], json_array_get(steps, i), a, e)) return false;
    }
    return true;
}

bool filters_open(FilterPipe **pipes, size_t *n, const json_t *filter_list, Arena *a, Err *e) {
    size_t count = json_array_size(filter_list);
    *n = 0;
    *pipes = ARENA_ARRAY(a, FilterPipe, count ? count : 1, e);
    if (!*pipes) return false;
    if (count == 0) {
        (*pipes)[0].name = "none";
        *n = 1;
        return true;
    }
    for (size_t i = 0; i < count; i++, (*n)++)
        if (!open_pipe(&(*pipes)[i], json_array_get(filter_list, i), a, e)) {
            filters_close(*pipes, i + 1);
            *n = 0;
            return false;
        }
    return true;
}

void filters_close(FilterPipe *pipes, size_t n) {
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < pipes[i].n; k++) pyregex_close(pipes[i].steps[k].regex);
}

/* 一处匹配给出的文字：没有组是整个匹配，一组是那一组，多组取第一个非空的；都空则 fallback。 */
static PyText match_text(const Filter *f, const PyMatch *m, const char *text) {
    int groups = pyregex_groups(f->regex);
    for (int i = groups ? 1 : 0; i <= groups; i++) {
        bool set = m->start[i] != SIZE_MAX;
        if (groups <= 1 || (set && m->end[i] > m->start[i]))
            return set ? (PyText){text + m->start[i], m->end[i] - m->start[i]} : (PyText){"", 0};
    }
    return py_text(f->fallback);
}

static bool run_regex(const Filter *f, const char *text, size_t len, Str *out, Err *e) {
    size_t from = 0, n = 0;
    PyMatch m;
    Err inner = {0};
    while (pyregex_next(f->regex, text, len, &from, &m, &inner)) n++;
    int64_t want = f->group < 0 ? (int64_t)n + f->group : f->group;
    PyText hit = py_text(f->fallback);
    if (inner.code == ERR_NONE && n > 0) {
        if (want < 0 || want >= (int64_t)n)
            return err_set(e, ERR_FORMAT, "group_select 为 %lld，而只有 %zu 个匹配",
                           (long long)f->group, n);
        from = 0;
        for (int64_t i = 0; i <= want; i++)
            if (!pyregex_next(f->regex, text, len, &from, &m, &inner)) break;
        hit = py_strip(match_text(f, &m, text), (PyText){0}, true, true);
    }
    if (inner.code != ERR_NONE) return err_set(e, inner.code, "%s", inner.msg);
    str_addn(out, hit.p, hit.n);
    return true;
}

static bool run_step(const Filter *f, const char *text, size_t len, Str *out, Err *e) {
    PyText t = {text, len};
    switch (f->kind) {
    case FILTER_TAKE_FIRST: str_addn(out, text, len); return true;
    case FILTER_REGEX: return run_regex(f, text, len, out, e);
    case FILTER_STRIP:
        t = py_strip(t, (PyText){0}, true, true);
        str_addn(out, t.p, t.n);
        return true;
    case FILTER_LOWER: py_lower(out, t); return true;
    case FILTER_UPPER: py_upper(out, t); return true;
    }
    return true;
}

bool filter_apply(const FilterPipe *p, const char *text, size_t len, Str *out, Err *e) {
    Str now = {0};
    str_addn(&now, text, len);
    for (size_t i = 0; i < p->n; i++) {
        Str next = {0};
        bool ok = run_step(&p->steps[i], now.data ? now.data : "", now.len, &next, e);
        next.failed = next.failed || now.failed;
        str_free(&now);
        now = next;
        if (!ok) {
            str_free(&now);
            return false;
        }
    }
    str_addn(out, now.data ? now.data : "", now.len);
    bool failed = now.failed || out->failed;
    str_free(&now);
    return !failed || err_set(e, ERR_MEMORY, "内存不足");
}
