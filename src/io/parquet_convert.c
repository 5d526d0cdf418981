/* parquet_convert — 一个值的字节 → JSON：整数、实数、布尔、文字、日期与时刻
 * 日期与时刻写成 Python 的 str(date)、str(datetime) 的样子：模板里见到的与框架的相同。 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/dtype.h"
#include "io/parquet_internal.h"

enum { VALUE_BYTES = 64 }; /* 一个 JSON 值大约占的内存 */

static json_t *out_of_memory(const Pq *q, Err *e) {
    err_set(e, ERR_MEMORY, "%s: 内存不足", q->where);
    return NULL;
}

static json_t *integer(Pq *q, const PqLeaf *leaf, int64_t v, Err *e) {
    json_t *out;
    if (leaf->meaning == PQ_UNSIGNED && leaf->width == 4) v = (uint32_t)v;
    if (leaf->meaning == PQ_UNSIGNED && v < 0)
        out = json_real((double)(uint64_t)v); /* 超出 int64：与 json_load 一样作实数 */
    else
        out = json_integer(v);
    return out ? out : out_of_memory(q, e);
}

static json_t *real(Pq *q, double v, Err *e) {
    json_t *out = isfinite(v) ? json_real(v) : json_null();
    return out ? out : out_of_memory(q, e);
}

static json_t *text(Pq *q, const PqLeaf *leaf, const uint8_t *p, size_t n, Err *e) {
    json_t *out = json_stringn(n ? (const char *)p : "", n);
    if (!out)
        err_set(e, ERR_FORMAT, "%s: 列 '%.80s' 有一个值不是 UTF-8 文字（图片一类的二进制列？请先用 datasets 去掉这一列）",
                q->where, leaf->path);
    return out;
}

/* 1970-01-01 起的天数 → 年月日（外推的格里历）。 */
static bool civil(int64_t days, int *y, int *m, int *d) {
    if (days < -719162 || days > 2932896) return false; /* 0001-01-01 至 9999-12-31 */
    static const int LENGTH[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    int64_t left = days + 719162; /* 0001-01-01 起 */
    int c400 = (int)(left / 146097);
    left %= 146097;
    int c100 = (int)(left / 36524 < 3 ? left / 36524 : 3);
    left -= c100 * 36524;
    int c4 = (int)(left / 1461);
    left %= 1461;
    int c1 = (int)(left / 365 < 3 ? left / 365 : 3);
    left -= c1 * 365;
    *y = c400 * 400 + c100 * 100 + c4 * 4 + c1 + 1;
    bool leap = (*y % 4 == 0 && *y % 100 != 0) || *y % 400 == 0;
    for (*m = 0; left >= LENGTH[*m] + (*m == 1 && leap); (*m)++) left -= LENGTH[*m] + (*m == 1 && leap);
    *m += 1;
    *d = (int)left + 1;
    return true;
}

static json_t *calendar(Pq *q, const PqLeaf *leaf, int64_t v, Err *e) {
    char s[80];
    int y, m, d, n;
    int64_t day = leaf->meaning == PQ_DATE ? 1 : 86400 * leaf->per_second;
    int64_t days = v / day, rest = v % day;
    if (rest < 0) days--, rest += day;
    if (!civil(days, &y, &m, &d)) {
        err_set(e, ERR_FORMAT, "%s: 列 '%.80s' 有一个日期不在公元 1 至 9999 年之内", q->where, leaf->path);
        return NULL;
    }
    n = snprintf(s, sizeof s, "%04d-%02d-%02d", y, m, d);
    if (leaf->meaning == PQ_TIMESTAMP) {
        int sec = (int)(rest / leaf->per_second);
        int64_t nano = rest % leaf->per_second * (1000000000 / leaf->per_second);
        n += snprintf(s + n, sizeof s - (size_t)n, " %02d:%02d:%02d", sec / 3600, sec / 60 % 60, sec % 60);
        if (nano % 1000)
            n += snprintf(s + n, sizeof s - (size_t)n, ".%09lld", (long long)nano);
        else if (nano)
            n += snprintf(s + n, sizeof s - (size_t)n, ".%06lld", (long long)(nano / 1000));
        if (leaf->utc) n += snprintf(s + n, sizeof s - (size_t)n, "+00:00");
    }
    json_t *out = json_stringn(s, (size_t)n);
    return out ? out : out_of_memory(q, e);
}

json_t *pq_convert(Pq *q, const PqLeaf *leaf, const uint8_t *p, size_t n, Err *e) {
    int32_t i32;
    int64_t i64;
    float f;
    double d;
    uint16_t h;
    if (!pq_take(q, 1, VALUE_BYTES + n, e)) return NULL;
    switch (leaf->type) {
    case PQ_INT32:
        memcpy(&i32, p, sizeof i32);
        return leaf->meaning == PQ_DATE ? calendar(q, leaf, i32, e) : integer(q, leaf, i32, e);
    case PQ_INT64:
        memcpy(&i64, p, sizeof i64);
        return leaf->meaning == PQ_TIMESTAMP ? calendar(q, leaf, i64, e) : integer(q, leaf, i64, e);
    case PQ_FLOAT: memcpy(&f, p, sizeof f); return real(q, (double)f, e);
    case PQ_DOUBLE: memcpy(&d, p, sizeof d); return real(q, d, e);
    case PQ_FIXED:
        if (leaf->meaning != PQ_HALF) return text(q, leaf, p, n, e);
        memcpy(&h, p, sizeof h);
        return real(q, (double)f16_to_f32(h), e);
    default: return text(q, leaf, p, n, e);
    }
}
