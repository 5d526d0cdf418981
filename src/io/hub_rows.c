/* hub_rows — datasets-server 的 rows API：没有可下载的文件时（或用户要求时）逐页取得一个划分的行
 * 每页 100 行（服务器的上限）；行数、行号、版本、截短的格都核对，差一点都不算取得。 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "io/hub_internal.h"

enum { PAGE = 100, MAX_ROWS = 2000000 };

static void add_parameter(Str *url, const char *key, const char *value) {
    str_addf(url, "%s=", key);
    hub_escape(url, value, "");
}

static bool page_url(const HubRepo *r, const HubSplit *s, int64_t offset, Str *url) {
    const char *host = r->o->endpoint;
    url->len = 0;
    if (str_starts(host, "https://"))
        str_addf(url, "https://datasets-server.%s/rows?", host + strlen("https://"));
    else
        str_addf(url, "%s/rows?", host);
    add_parameter(url, "dataset", s->id);
    add_parameter(url, "&config", s->config ? s->config : "default");
    add_parameter(url, "&split", s->split);
    str_addf(url, "&offset=%lld&length=%d", (long long)offset, PAGE);
    return !url->failed;
}

/* 一页的行追加到 out。*next 是下一页的起点，*total 是总行数。 */
static bool add_rows(const json_t *page, const char *url, int64_t *next, int64_t *total, Str *out, Err *e) {
    const json_t *rows = json_object_get(page, "rows"), *n = json_object_get(page, "num_rows_total");
    if (!json_is_array(rows) || !json_is_integer(n) || json_integer_value(n) < 0 ||
        json_integer_value(n) > MAX_ROWS || (*total >= 0 && json_integer_value(n) != *total))
        return err_set(e, ERR_FORMAT, "%s: 答复里没有 rows、num_rows_total，或行数不一（至多 %d 行）", url, MAX_ROWS);
    *total = json_integer_value(n);
    if (json_is_true(json_object_get(page, "partial")))
        return err_set(e, ERR_UNSUPPORTED, "%s: 服务器只有这个数据集的一部分（partial），不取", url);
    for (size_t i = 0; i < json_array_size(rows); i++, ++*next) {
        const json_t *v = json_array_get(rows, i), *row = json_object_get(v, "row");
        if (!json_is_object(row) || json_integer_value(json_object_get(v, "row_idx")) != *next)
            return err_set(e, ERR_FORMAT, "%s: 第 %zu 项不是第 %lld 行", url, i, (long long)*next);
        if (json_array_size(json_object_get(v, "truncated_cells")) > 0)
            return err_set(e, ERR_UNSUPPORTED, "%s: 第 %lld 行有一格被服务器截短，rows API 取不全这个数据集", url,
                           (long long)*next);
        char *text = json_dumps(row, JSON_COMPACT | JSON_REAL_PRECISION(17));
        if (!text) return err_set(e, ERR_MEMORY, "内存不足");
        str_addf(out, "%s\n", text);
        free(text);
    }
    if (out->failed) return err_set(e, ERR_MEMORY, "内存不足");
    return *next <= *total && (json_array_size(rows) > 0 || *next == *total)
               ? true : err_set(e, ERR_FORMAT, "%s: 行数对不上", url);
}

/* 取一页；版本须一直相同。 */
static bool fetch_page(const HubRepo *r, const HubSplit *s, int64_t *next, int64_t *total, Str *out,
                       char revision[41], Err *e) {
    Str url = {0}, text = {0};
    char now[41] = "";
    bool ok = page_url(r, s, *next, &url) || err_set(e, ERR_MEMORY, "内存不足");
    ok = ok && hub_get_text(r, url.data, &text, now, e);
    if (ok && *next > 0 && strcmp(now, revision) != 0)
        ok = err_set(e, ERR_IO, "数据集 %s 在取的途中换了版本（%s → %s），请再运行一次", s->id, revision, now);
    json_t *page = ok ? json_parse(url.data, text.data ? text.data : "", text.len, e) : NULL;
    ok = page && add_rows(page, url.data, next, total, out, e);
    memcpy(revision, now, sizeof now);
    json_decref(page);
    str_free(&url);
    str_free(&text);
    return ok;
}

bool hub_dataset_rows(const HubOptions *o, Arena *a, const HubSplit *s, Str *out, char revision[41], Err *e) {
    HubRepo r = {.o = o, .dataset = true, .id = s->id, .revision = "main"};
    int64_t next = 0, total = -1;
    revision[0] = '\0';
    if (!hub_check_split(s, e) || !hub_set_root(&r, a, e)) return false;
    if (o->offline) return err_set(e, ERR_MISSING, "HF_HUB_OFFLINE=1，不能从 Hub 取得数据集 %s", s->id);
    if (s->revision)
        return err_set(e, ERR_UNSUPPORTED, "rows API 不能指定版本（数据集 %s 指定了 %s）", s->id, s->revision);
    Progress p = progress_start(LOG_LOAD, s->id, "行", 0);
    bool ok = true;
    while (ok && (total < 0 || next < total)) {
        ok = fetch_page(&r, s, &next, &total, out, revision, e);
        p.total = total > 0 ? total : 0;
        progress_step(&p, next);
    }
    progress_end(&p);
    return ok;
}
