/* encode — 文字请求 → token，规则逐条同 lm-evaluation-harness 0.4.13 的 HF 后端
 * 出处：lm_eval/api/model.py 的 TemplateLM._encode_pair 与 loglikelihood，models/huggingface.py 的 tok_encode、
 * _loglikelihood_tokens 与 loglikelihood_rolling，utils.py 的 get_rolling_token_windows。 */
#include <string.h>

#include "base/pytext.h"
#include "tasks/request.h"

bool encoder_init(Encoder *c, const Tokenizer *t, int64_t max_length, Err *e) {
    int32_t bos = tokenizer_bos(t), eos = tokenizer_eos(t);
    *c = (Encoder){.tokenizer = t, .max_length = max_length, .prefix = bos >= 0 ? bos : eos};
    if (c->prefix < 0)
        return err_set(e, ERR_UNSUPPORTED, "分词器既没有 BOS 也没有 EOS，空的 context 与滚动窗口无从开头");
    if (max_length < 1) return err_set(e, ERR_CONFIG, "上下文长度 %lld 不足", (long long)max_length);
    return true;
}

/* 文本是否已以 prefix 的文字开头。 */
static bool has_prefix(const Encoder *c, const char *text, size_t len, bool *yes, Err *e) {
    Str s = {0};
    bool ok = tokenizer_decode(c->tokenizer, &c->prefix, 1, false, &s, e);
    *yes = ok && s.len && s.len <= len && memcmp(text, s.data, s.len) == 0;
    str_free(&s);
    return ok;
}

bool encode_text(const Encoder *c, const char *text, size_t len, TokenIds *out, Err *e) {
    bool started;
    return has_prefix(c, text, len, &started, e) &&
           tokenizer_encode(c->tokenizer, text, len, !started, out, e);
}

/* context 与 continuation 的 token 相接，从左边截到 max_length+1 个，复制进 a。 */
static bool join(const Encoder *c, const int32_t *context, size_t n_context, const int32_t *scored,
                 size_t n_scored, ScoreRequest *out, Arena *a, Err *e) {
    if (n_scored < 1)
        return err_set(e, ERR_FORMAT, "continuation 没有自己的 token（与 context 的末尾并成了一个）");
    if (n_context < 1) return err_set(e, ERR_FORMAT, "context 只有空白，没有 token");
    int64_t n = (int64_t)n_scored, keep = c->max_length + 1 - n, have = (int64_t)n_context;
    if (keep < 1)
        return err_set(e, ERR_UNSUPPORTED, "continuation 有 %lld 个 token，超过上下文长度 %lld",
                       (long long)n, (long long)c->max_length);
    if (keep > have) keep = have;
    int32_t *ids = ARENA_ARRAY(a, int32_t, keep + n, e);
    if (!ids) return false;
    memcpy(ids, context + have - keep, (size_t)keep * sizeof *ids);
    memcpy(ids + keep, scored, n_scored * sizeof *ids);
    *out = (ScoreRequest){.ids = ids, .n = keep + n, .n_context = keep};
    return true;
}

/* 空的 context：以 prefix 代替；continuation 自己就以它开头时不重复。 */
static bool pair_with_prefix(const Encoder *c, const char *text, size_t len, ScoreRequest *out,
                             Arena *a, Err *e) {
    TokenIds t = {0};
    bool ok = tokenizer_encode(c->tokenizer, text, len, false, &t, e);
    size_t skip = ok && t.n && t.ids[0] == c->prefix;
    ok = ok && join(c, &c->prefix, 1, t.ids + skip, t.n - skip, out, a, e);
    token_ids_free(&t);
    return ok;
}

bool encode_pair(const Encoder *c, const char *context, size_t n_context, const char *continuation,
                 size_t n_continuation, ScoreRequest *out, Arena *a, Err *e) {
    if (n_context == 0) return pair_with_prefix(c, continuation, n_continuation, out, a, e);
    Str text = {0};
    str_addn(&text, context, n_context);
    str_addn(&text, continuation, n_continuation);
    TokenIds whole = {0}, head = {0};
    bool ok = !text.failed || err_set(e, ERR_MEMORY, "内存不足");
    ok = ok && encode_text(c, text.data, text.len, &whole, e) &&
         encode_text(c, context, pytext_rstrip(context, n_context), &head, e);
    size_t cut = head.n < whole.n ? head.n : whole.n;
    ok = ok && join(c, head.ids, head.n, whole.ids + cut, whole.n - cut, out, a, e);
    token_ids_free(&whole);
    token_ids_free(&head);
    str_free(&text);
    return ok;
}

bool encode_rolling(const Encoder *c, const char *text, size_t len, ScoreRequest **out, size_t *n,
                    Arena *a, Err *e) {
    TokenIds ids = {0};
    *n = 0;
    *out = NULL;
    if (!encode_text(c, text, len, &ids, e)) return false;
    int64_t total = (int64_t)ids.n, window = c->max_length, done = 0;
    size_t count = (size_t)((total + window - 1) / window);
    int32_t *all = ARENA_ARRAY(a, int32_t, total + 1, e); /* prefix 接全文 */
    ScoreRequest *r = ARENA_ARRAY(a, ScoreRequest, count, e);
    bool ok = all && r;
    if (ok) {
        all[0] = c->prefix;
        if (total) memcpy(all + 1, ids.ids, (size_t)total * sizeof *all);
        for (size_t i = 0; i < count; i++) {
            int64_t scored = total - done < window ? total - done : window;
            int64_t end = done + scored + 1; /* all 中的终点 */
            int64_t size = window + 1 < end ? window + 1 : end;
            r[i] = (ScoreRequest){.ids = all + end - size, .n = size, .n_context = size - scored};
            done += scored;
        }
        *out = r;
        *n = count;
    }
    token_ids_free(&ids);
    return ok;
}
