/* pretok — 预切分：一级级把文本切成片段
 * 每一级是一种切法（正则、字符类、脚本、定长）或一种变换（前补空格、Metaspace、字节级字母表），
 * 片段深度优先地送进下一级，最后一级的片段交给 emit；因此除「合并」类切法外不需要保存片段表。
 * 正则只看本片段（与 HF 相同），\A、(?!\S) 等以片段为界。 */
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"

const char PRETOK_GPT2[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const char PRETOK_LLAMA3[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const char PRETOK_QWEN2[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/* ---- 字符类 ---- */

int class_digit(int32_t cp) {
    return unicode_numeric(cp);
}

int class_space(int32_t cp) {
    return unicode_space(cp);
}

int class_punct(int32_t cp) {
    return unicode_punct(cp);
}

int class_word(int32_t cp) {
    return unicode_word(cp) ? 1 : unicode_space(cp) ? 0 : 2;
}

/* ---- 建立 ---- */

PretokStage *pretok_stage(Pretok *p, PretokKind kind, const char *where, Err *e) {
    if (p->n == PRETOK_MAX) {
        err_set(e, ERR_UNSUPPORTED, "%s: 预切分超过 %d 级", where, PRETOK_MAX);
        return NULL;
    }
    PretokStage *s = &p->stages[p->n++];
    *s = (PretokStage){.kind = kind};
    return s;
}

bool pretok_add(Pretok *p, const char *where, const char *pattern, size_t len, bool literal,
                SplitBehavior behavior, bool invert, Err *e) {
    PretokStage *s = pretok_stage(p, PRETOK_SPLIT, where, e);
    if (!s) return false;
    s->behavior = behavior;
    s->invert = invert;
    return rx_open(&s->rx, where, pattern, len, literal, e);
}

bool pretok_add_class(Pretok *p, const char *where, CharClass class_of, bool runs,
                      SplitBehavior behavior, bool invert, Err *e) {
    PretokStage *s = pretok_stage(p, PRETOK_SPLIT, where, e);
    if (!s) return false;
    s->behavior = behavior;
    s->invert = invert;
    s->class_of = class_of;
    s->runs = runs;
    return true;
}

void pretok_free(Pretok *p) {
    for (size_t i = 0; i < p->n; i++) rx_close(&p->stages[i].rx);
    p->n = 0;
}

/* ---- 运行 ---- */

typedef struct Cut {
    size_t start, end;
    bool match;
} Cut;

struct PretokWork {
    RxWork rx;
    Cut *cuts; /* 各级共用的栈 */
    size_t n_cuts, cap_cuts;
    Str changed[PRETOK_MAX]; /* 变换后的片段 */
};

PretokWork *pretok_work_new(void) {
    return calloc(1, sizeof(PretokWork));
}

void pretok_work_free(PretokWork *w) {
    if (!w) return;
    rx_work_free(&w->rx);
    free(w->cuts);
    for (size_t i = 0; i < PRETOK_MAX; i++) str_free(&w->changed[i]);
    free(w);
}

typedef struct Run {
    const Pretok *p;
    PretokWork *w;
    PretokEmit emit;
    void *ctx;
    Err *e;
} Run;

static bool run_stage(Run *r, size_t i, NormText t);

/* 把 t 的 [start, end) 送进第 i 级。 */
static bool run_part(Run *r, size_t i, NormText t, size_t start, size_t end) {
    size_t zero = t.zero > start ? t.zero - start : 0;
    return run_stage(r, i, (NormText){t.s + start, end - start, zero});
}

/* 字符类的下一个匹配。 */
static int next_class(const PretokStage *st, const char *s, size_t n, RxIter *it, size_t *start,
                      size_t *end) {
    size_t len;
    int kind = 0;
    for (size_t i = it->from; i < n; i += len) {
        int k = st->class_of(utf8_next(s + i, n - i, &len));
        if (kind == 0 && k == 0) continue;
        if (kind == 0) {
            kind = k;
            *start = i;
        } else if (k != kind) {
            break;
        }
        *end = it->from = i + len;
        if (!st->runs) break;
    }
    return kind != 0;
}

static int next_match(Run *r, const PretokStage *st, NormText t, RxIter *it, size_t *start,
                      size_t *end) {
    if (st->class_of) return next_class(st, t.s, t.n, it, start, end);
    return rx_next(&st->rx, &r->w->rx, t.s, t.n, it, start, end, r->e);
}

static bool split_isolated(Run *r, size_t i, NormText t) {
    const PretokStage *st = &r->p->stages[i];
    bool drop = st->behavior == SPLIT_REMOVED;
    RxIter it = {0};
    size_t done = 0, start, end;
    int rc;
    while ((rc = next_match(r, st, t, &it, &start, &end)) > 0) {
        if (!(drop && st->invert) && !run_part(r, i + 1, t, done, start)) return false;
        if (!(drop && !st->invert) && !run_part(r, i + 1, t, start, end)) return false;
        done = end;
    }
    if (rc < 0) return false;
    return (drop && st->invert) || run_part(r, i + 1, t, done, t.n);
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

static bool split_merged(Run *r, size_t i, NormText t) {
    const PretokStage *st = &r->p->stages[i];
    PretokWork *w = r->w;
    size_t base = w->n_cuts, done = 0, start, end;
    RxIter it = {0};
    int rc;
    while ((rc = next_match(r, st, t, &it, &start, &end)) > 0) {
        if (done != start && !push_cut(r, done, start, st->invert)) return false;
        if (!push_cut(r, start, end, !st->invert)) return false;
        done = end;
    }
    if (rc < 0 || (done != t.n && !push_cut(r, done, t.n, st->invert))) return false;
    if (w->n_cuts == base) return true;
    w->n_cuts = base + fold_cuts(w->cuts + base, w->n_cuts - base, st->behavior);
    for (size_t k = base, to = w->n_cuts; k < to; k++) {
        Cut c = w->cuts[k];
        if (!run_part(r, i + 1, t, c.start, c.end)) return false;
    }
    w->n_cuts = base;
    return true;
}

static bool split(Run *r, size_t i, NormText t) {
    SplitBehavior b = r->p->stages[i].behavior;
    bool simple = b == SPLIT_ISOLATED || b == SPLIT_REMOVED;
    return simple ? split_isolated(r, i, t) : split_merged(r, i, t);
}

/* 脚本变换处切开；开头不属任何脚本的字符被丢弃（与 HF 相同）。 */
static bool split_scripts(Run *r, size_t i, NormText t) {
    size_t from = SIZE_MAX, len;
    int last = 0;
    for (size_t k = 0; k < t.n; k += len) {
        int script = unicode_script(utf8_next(t.s + k, t.n - k, &len));
        if (script == 0) continue;
        if (script != last) {
            if (from != SIZE_MAX && !run_part(r, i + 1, t, from, k)) return false;
            from = k;
        }
        last = script;
    }
    return from == SIZE_MAX || run_part(r, i + 1, t, from, t.n);
}

static bool split_fixed(Run *r, size_t i, NormText t) {
    size_t from = 0, count = 0, len;
    for (size_t k = 0; k < t.n; k += len) {
        if (count++ == r->p->stages[i].len) {
            if (!run_part(r, i + 1, t, from, k)) return false;
            from = k;
            count = 1;
        }
        utf8_next(t.s + k, t.n - k, &len);
    }
    return run_part(r, i + 1, t, from, t.n);
}

static bool starts_with(NormText t, const char *text, size_t len) {
    return t.n >= len && memcmp(t.s, text, len) == 0;
}

/* 空格换成替换字符，按规则补在段首。 */
static void metaspace(const PretokStage *st, NormText *t, Str *out) {
    bool marked = t->s[0] == ' ' || starts_with(*t, st->text, st->len);
    bool add = !marked && (st->scheme == META_ALWAYS || (st->scheme == META_FIRST && t->zero));
    if (add) str_addn(out, st->text, st->len);
    if (t->s[0] == ' ' && t->zero == 1) t->zero = st->len;
    if (add && t->zero) t->zero += st->len;
    for (size_t i = 0; i < t->n;) {
        const char *space = memchr(t->s + i, ' ', t->n - i);
        size_t to = space ? (size_t)(space - t->s) : t->n;
        str_addn(out, t->s + i, to - i);
        if (space) str_addn(out, st->text, st->len);
        i = to + (space != NULL);
    }
}

static void byte_level(NormText *t, Str *out) {
    size_t zero = 0;
    for (size_t i = 0; i < t->n; i++) {
        utf8_add(out, byte_to_char((uint8_t)t->s[i]));
        if (i < t->zero) zero = out->len;
    }
    t->zero = zero;
}

/* 变换：把 t 换成第 i 级变换后的文本。 */
static bool change(Run *r, size_t i, NormText *t) {
    const PretokStage *st = &r->p->stages[i];
    Str *out = &r->w->changed[i];
    out->len = 0;
    if (st->kind == PRETOK_PREFIX) {
        if (t->s[0] == ' ') return true;
        str_add(out, " ");
        str_addn(out, t->s, t->n);
        if (t->zero) t->zero++;
    } else if (st->kind == PRETOK_METASPACE) {
        metaspace(st, t, out);
    } else {
        byte_level(t, out);
    }
    if (out->failed) return err_set(r->e, ERR_MEMORY, "内存不足：预切分");
    t->s = out->data;
    t->n = out->len;
    return true;
}

static bool run_stage(Run *r, size_t i, NormText t) {
    if (t.n == 0) return true;
    if (t.zero > t.n) t.zero = t.n;
    if (i == r->p->n) return r->emit(r->ctx, t.s, t.n, r->e);
    switch (r->p->stages[i].kind) {
    case PRETOK_SPLIT: return split(r, i, t);
    case PRETOK_SCRIPTS: return split_scripts(r, i, t);
    case PRETOK_FIXED: return split_fixed(r, i, t);
    default: return change(r, i, &t) && run_stage(r, i + 1, t);
    }
}

bool pretok_run(const Pretok *p, PretokWork *w, NormText text, PretokEmit emit, void *ctx, Err *e) {
    Run r = {p, w, emit, ctx, e};
    w->n_cuts = 0;
    return run_stage(&r, 0, text);
}
