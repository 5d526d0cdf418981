/* pretok — 预切分：一级级把文本切成片段
 * 每一级是一条 PCRE2（JIT）正则加一种切法，片段深度优先地送进下一级，最后一级的片段交给 emit；
 * 因此除「合并」类切法外不需要保存片段表。正则只看本片段（与 HF 相同），\A、(?!\S) 等以片段为界。 */
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"

#define JIT_STACK_MIN ((size_t)32 << 10)
#define JIT_STACK_MAX ((size_t)16 << 20)
#define MATCH_LIMIT 10000000u /* 回溯次数的下限；长文本按长度放宽 */

const char PRETOK_GPT2[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const char PRETOK_LLAMA3[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const char PRETOK_QWEN2[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
/* Digits 组件用 Rust 的 is_numeric，是 Unicode 17：比正则库多这两段 */
const char PRETOK_DIGIT[] = "[\\p{N}\\x{11DE0}-\\x{11DE9}\\x{16FF4}-\\x{16FF6}]";

/* ---- 建立 ---- */

static bool compile(PretokStage *s, const char *where, const Str *pattern, bool literal, Err *e) {
    int code = 0;
    PCRE2_SIZE at = 0;
    uint32_t flags = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE);
    pcre2_compile_context *cc = pcre2_compile_context_create(NULL);
    if (!cc) return err_set(e, ERR_MEMORY, "%s: 内存不足：编译正则", where);
    pcre2_set_newline(cc, PCRE2_NEWLINE_LF);
    s->re = pcre2_compile((PCRE2_SPTR)pattern->data, pattern->len, flags, &code, &at, cc);
    pcre2_compile_context_free(cc);
    if (!s->re) {
        PCRE2_UCHAR msg[256];
        pcre2_get_error_message(code, msg, sizeof msg);
        return err_set(e, ERR_FORMAT, "%s: 正则无法编译：%s（第 %zu 字节：%.40s）", where,
                       (const char *)msg, (size_t)at,
                       at < pattern->len ? pattern->data + at : "末尾");
    }
    pcre2_jit_compile(s->re, PCRE2_JIT_COMPLETE); /* 失败时匹配自动改用解释器 */
    return true;
}

static PretokStage *new_stage(Pretok *p, const char *where, Err *e) {
    if (p->n < PRETOK_MAX) return &p->stages[p->n++];
    err_set(e, ERR_UNSUPPORTED, "%s: 预切分超过 %d 级", where, PRETOK_MAX);
    return NULL;
}

bool pretok_add(Pretok *p, const char *where, const char *pattern, size_t len, bool literal,
                SplitBehavior behavior, bool invert, Err *e) {
    if (len == 0) return err_set(e, ERR_FORMAT, "%s: 切分的模式为空", where);
    PretokStage *s = new_stage(p, where, e);
    if (!s) return false;
    s->behavior = behavior;
    s->invert = invert;
    Str text = {0};
    bool ok = true;
    if (literal)
        str_addn(&text, pattern, len);
    else
        ok = pretok_translate(where, pattern, len, &text, e);
    if (ok && text.failed) ok = err_set(e, ERR_MEMORY, "%s: 内存不足：编译正则", where);
    ok = ok && compile(s, where, &text, literal, e);
    str_free(&text);
    return ok;
}

bool pretok_add_prefix_space(Pretok *p, const char *where, Err *e) {
    PretokStage *s = new_stage(p, where, e);
    if (s) s->prefix_space = true;
    return s != NULL;
}

void pretok_free(Pretok *p) {
    for (size_t i = 0; i < p->n; i++) pcre2_code_free(p->stages[i].re);
    p->n = 0;
}

/* ---- 运行 ---- */

typedef struct Cut {
    size_t start, end;
    bool match;
} Cut;

struct PretokWork {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    Cut *cuts; /* 各级共用的栈 */
    size_t n_cuts, cap_cuts;
    Str padded[PRETOK_MAX]; /* 补了空格的片段 */
};

PretokWork *pretok_work_new(const Pretok *p) {
    PretokWork *w = calloc(1, sizeof *w);
    if (!w || p->n == 0) return w;
    w->data = pcre2_match_data_create(1, NULL); /* 只要整体匹配的位置 */
    w->context = pcre2_match_context_create(NULL);
    w->stack = pcre2_jit_stack_create(JIT_STACK_MIN, JIT_STACK_MAX, NULL);
    if (!w->data || !w->context) {
        pretok_work_free(w);
        return NULL;
    }
    if (w->stack) pcre2_jit_stack_assign(w->context, NULL, w->stack);
    return w;
}

void pretok_work_free(PretokWork *w) {
    if (!w) return;
    pcre2_match_data_free(w->data);
    pcre2_match_context_free(w->context);
    pcre2_jit_stack_free(w->stack);
    free(w->cuts);
    for (size_t i = 0; i < PRETOK_MAX; i++) str_free(&w->padded[i]);
    free(w);
}

typedef struct Run {
    const Pretok *p;
    PretokWork *w;
    PretokEmit emit;
    void *ctx;
    Err *e;
} Run;

/* 从 from 起找下一个匹配。返回: 1 找到，0 没有，-1 出错（已置 e）。 */
static int match_from(Run *r, const PretokStage *st, const char *s, size_t n, size_t from,
                      size_t *start, size_t *end) {
    PretokWork *w = r->w;
    int rc = pcre2_match(st->re, (PCRE2_SPTR)s, n, from, PCRE2_NO_UTF_CHECK, w->data, w->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(st->re, (PCRE2_SPTR)s, n, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                         w->data, w->context);
    if (rc == PCRE2_ERROR_NOMATCH) return 0;
    if (rc < 0) {
        PCRE2_UCHAR msg[256];
        pcre2_get_error_message(rc, msg, sizeof msg);
        err_set(r->e, ERR_FORMAT, "预切分的正则在文本第 %zu 字节处匹配失败：%s", from,
                (const char *)msg);
        return -1;
    }
    const PCRE2_SIZE *v = pcre2_get_ovector_pointer(w->data);
    *start = v[0];
    *end = v[1];
    if (v[1] >= v[0]) return 1; /* \K 等会使终点在起点之前 */
    err_set(r->e, ERR_UNSUPPORTED, "预切分的正则在文本第 %zu 字节处得到倒置的匹配", from);
    return -1;
}

/* 依次取匹配，与 onig 的 find_iter 相同：紧接上次匹配之后的空匹配不算。 */
typedef struct Finder {
    size_t from, last_end;
    bool any;
} Finder;

static int find_next(Run *r, const PretokStage *st, const char *s, size_t n, Finder *f,
                     size_t *start, size_t *end) {
    while (f->from <= n) {
        int rc = match_from(r, st, s, n, f->from, start, end);
        if (rc <= 0) return rc;
        if (*start == *end && f->any && f->last_end == *end) {
            size_t len = 1;
            if (f->from < n) utf8_next(s + f->from, n - f->from, &len);
            f->from += len;
            continue;
        }
        f->from = f->last_end = *end;
        f->any = true;
        return 1;
    }
    return 0;
}

static bool run_stage(Run *r, size_t i, const char *s, size_t n);

static bool split_isolated(Run *r, size_t i, const char *s, size_t n) {
    const PretokStage *st = &r->p->stages[i];
    bool drop = st->behavior == SPLIT_REMOVED;
    Finder f = {0};
    size_t done = 0, start, end;
    int rc;
    while ((rc = find_next(r, st, s, n, &f, &start, &end)) > 0) {
        if (!(drop && st->invert) && !run_stage(r, i + 1, s + done, start - done)) return false;
        if (!(drop && !st->invert) && !run_stage(r, i + 1, s + start, end - start)) return false;
        done = end;
    }
    if (rc < 0) return false;
    return (drop && st->invert) || run_stage(r, i + 1, s + done, n - done);
}

static bool push_cut(Run *r, size_t start, size_t end, bool match) {
    PretokWork *w = r->w;
    if (w->n_cuts == w->cap_cuts) {
        size_t cap = w->cap_cuts ? w->cap_cuts * 2 : 256;
        Cut *p = realloc(w->cuts, cap * sizeof *p);
        if (!p) return err_set(r->e, ERR_MEMORY, "内存不足：预切分");
        w->cuts = p;
        w->cap_cuts = cap;
    }
    w->cuts[w->n_cuts++] = (Cut){start, end, match};
    return true;
}

/* 按切法把 cuts[base..n) 就地并成片段。返回: 片段数。 */
static size_t fold_cuts(Cut *c, size_t n, SplitBehavior behavior) {
    size_t m = 0;
    bool before = false;
    if (behavior == SPLIT_MERGED_NEXT) { /* 从后往前看：匹配并入其后的一段 */
        for (size_t k = n; k-- > 0;) {
            bool join = c[k].match && !before && m > 0;
            before = c[k].match;
            if (join)
                c[n - m].start = c[k].start;
            else
                c[n - 1 - m++] = c[k];
        }
        memmove(c, c + n - m, m * sizeof *c);
        return m;
    }
    for (size_t k = 0; k < n; k++) {
        bool join = m > 0 && (behavior == SPLIT_CONTIGUOUS ? c[k].match == before
                                                           : c[k].match && !before);
        before = c[k].match;
        if (join)
            c[m - 1].end = c[k].end;
        else
            c[m++] = c[k];
    }
    return m;
}

static bool split_merged(Run *r, size_t i, const char *s, size_t n) {
    const PretokStage *st = &r->p->stages[i];
    PretokWork *w = r->w;
    size_t base = w->n_cuts, done = 0, start, end;
    Finder f = {0};
    int rc;
    while ((rc = find_next(r, st, s, n, &f, &start, &end)) > 0) {
        if (done != start && !push_cut(r, done, start, st->invert)) return false;
        if (!push_cut(r, start, end, !st->invert)) return false;
        done = end;
    }
    if (rc < 0 || (done != n && !push_cut(r, done, n, st->invert))) return false;
    if (w->n_cuts == base) return true;
    w->n_cuts = base + fold_cuts(w->cuts + base, w->n_cuts - base, st->behavior);
    for (size_t k = base, to = w->n_cuts; k < to; k++) {
        Cut c = w->cuts[k];
        if (!run_stage(r, i + 1, s + c.start, c.end - c.start)) return false;
    }
    w->n_cuts = base;
    return true;
}

static bool run_stage(Run *r, size_t i, const char *s, size_t n) {
    if (n == 0) return true;
    if (i == r->p->n) return r->emit(r->ctx, s, n, r->e);
    const PretokStage *st = &r->p->stages[i];
    if (st->prefix_space && s[0] != ' ') {
        Str *pad = &r->w->padded[i];
        pad->len = 0;
        str_add(pad, " ");
        str_addn(pad, s, n);
        if (pad->failed) return err_set(r->e, ERR_MEMORY, "内存不足：预切分");
        s = pad->data;
        n = pad->len;
    }
    if (!st->re) return run_stage(r, i + 1, s, n);
    bool simple = st->behavior == SPLIT_ISOLATED || st->behavior == SPLIT_REMOVED;
    return simple ? split_isolated(r, i, s, n) : split_merged(r, i, s, n);
}

bool pretok_run(const Pretok *p, PretokWork *w, const char *s, size_t n, PretokEmit emit, void *ctx,
                Err *e) {
    Run r = {p, w, emit, ctx, e};
    uint32_t limit = n < (UINT32_MAX - MATCH_LIMIT) / 64 ? MATCH_LIMIT + (uint32_t)n * 64
                                                         : UINT32_MAX;
    if (w->context) pcre2_set_match_limit(w->context, limit);
    w->n_cuts = 0;
    return run_stage(&r, 0, s, n);
}
