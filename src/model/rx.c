/* rx — 一条正则（PCRE2，JIT）或字面模式
 * 预切分、规范化的替换、解码的替换共用。字面模式用 memmem，不经正则库。
 * 匹配的次序与 HF 所用的 Oniguruma 的 find_iter 相同；回溯次数有限，坏正则不会没完没了。 */
#include <string.h>

#include "model/tokenizer_internal.h"

#define JIT_STACK_MIN ((size_t)32 << 10)
#define JIT_STACK_MAX ((size_t)16 << 20)
#define MATCH_LIMIT 10000000u /* 回溯次数的下限；长文本按长度放宽 */

static bool compile(Rx *r, const char *where, const Str *pattern, Err *e) {
    int code = 0;
    PCRE2_SIZE at = 0;
    pcre2_compile_context *cc = pcre2_compile_context_create(NULL);
    if (!cc) return err_set(e, ERR_MEMORY, "%s: 内存不足：编译正则", where);
    pcre2_set_newline(cc, PCRE2_NEWLINE_LF);
    r->re = pcre2_compile((PCRE2_SPTR)pattern->data, pattern->len,
                          PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &code, &at, cc);
    pcre2_compile_context_free(cc);
    if (!r->re) {
        PCRE2_UCHAR msg[256];
        pcre2_get_error_message(code, msg, sizeof msg);
        return err_set(e, ERR_FORMAT, "%s: 正则无法编译：%s（第 %zu 字节：%.40s）", where,
                       (const char *)msg, (size_t)at,
                       at < pattern->len ? pattern->data + at : "末尾");
    }
    pcre2_jit_compile(r->re, PCRE2_JIT_COMPLETE); /* 失败时匹配自动改用解释器 */
    return true;
}

bool rx_open(Rx *r, const char *where, const char *pattern, size_t len, bool literal, Err *e) {
    *r = (Rx){0};
    if (len == 0) return err_set(e, ERR_FORMAT, "%s: 模式为空", where);
    if (literal) {
        r->literal = pattern;
        r->n_literal = len;
        return true;
    }
    Str text = {0};
    bool ok = pretok_translate(where, pattern, len, &text, e);
    if (ok && text.failed) ok = err_set(e, ERR_MEMORY, "%s: 内存不足：编译正则", where);
    ok = ok && compile(r, where, &text, e);
    str_free(&text);
    return ok;
}

void rx_close(Rx *r) {
    pcre2_code_free(r->re);
    *r = (Rx){0};
}

void rx_work_free(RxWork *w) {
    pcre2_match_data_free(w->data);
    pcre2_match_context_free(w->context);
    pcre2_jit_stack_free(w->stack);
    *w = (RxWork){0};
}

static bool prepare(RxWork *w, Err *e) {
    if (w->context) return true;
    w->data = pcre2_match_data_create(1, NULL); /* 只要整体匹配的位置 */
    pcre2_match_context *context = w->data ? pcre2_match_context_create(NULL) : NULL;
    if (!context) {
        rx_work_free(w);
        return err_set(e, ERR_MEMORY, "内存不足：正则");
    }
    w->context = context;
    w->stack = pcre2_jit_stack_create(JIT_STACK_MIN, JIT_STACK_MAX, NULL);
    if (w->stack) pcre2_jit_stack_assign(w->context, NULL, w->stack);
    return true;
}

/* 从 from 起找下一个匹配。返回: 1 找到，0 没有，-1 出错（已置 e）。 */
static int match_from(const Rx *r, RxWork *w, const char *s, size_t n, size_t from, size_t *start,
                      size_t *end, Err *e) {
    uint32_t flags = PCRE2_NO_UTF_CHECK;
    int rc = pcre2_match(r->re, (PCRE2_SPTR)s, n, from, flags, w->data, w->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(r->re, (PCRE2_SPTR)s, n, from, flags | PCRE2_NO_JIT, w->data, w->context);
    if (rc == PCRE2_ERROR_NOMATCH) return 0;
    if (rc < 0) {
        PCRE2_UCHAR msg[256];
        pcre2_get_error_message(rc, msg, sizeof msg);
        err_set(e, ERR_FORMAT, "分词器的正则在文本第 %zu 字节处匹配失败：%s", from,
                (const char *)msg);
        return -1;
    }
    const PCRE2_SIZE *v = pcre2_get_ovector_pointer(w->data);
    *start = v[0];
    *end = v[1];
    if (v[1] >= v[0]) return 1; /* \K 等会使终点在起点之前 */
    err_set(e, ERR_UNSUPPORTED, "分词器的正则在文本第 %zu 字节处得到倒置的匹配", from);
    return -1;
}

static int next_literal(const Rx *r, const char *s, size_t n, RxIter *it, size_t *start,
                        size_t *end) {
    const char *p =
        it->from < n ? memmem(s + it->from, n - it->from, r->literal, r->n_literal) : NULL;
    if (!p) return 0;
    *start = (size_t)(p - s);
    *end = it->from = *start + r->n_literal;
    return 1;
}

int rx_next(const Rx *r, RxWork *w, const char *s, size_t n, RxIter *it, size_t *start,
            size_t *end, Err *e) {
    if (!r->re) return next_literal(r, s, n, it, start, end);
    if (it->from == 0) { /* 一段文本的第一次 */
        if (!prepare(w, e)) return -1;
        pcre2_set_match_limit(w->context, n < (UINT32_MAX - MATCH_LIMIT) / 64
                                              ? MATCH_LIMIT + (uint32_t)n * 64
                                              : UINT32_MAX);
    }
    while (it->from <= n) {
        int rc = match_from(r, w, s, n, it->from, start, end, e);
        if (rc <= 0) return rc;
        if (*start == *end && it->any && it->last_end == *end) {
            size_t len = 1;
            if (it->from < n) utf8_next(s + it->from, n - it->from, &len);
            it->from += len;
            continue;
        }
        it->from = it->last_end = *end;
        it->any = true;
        return 1;
    }
    return 0;
}
