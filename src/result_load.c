/* result_load — 结果的读回与检查
 * 结果文件可能来自旧版本、别的机器或被手改过：先逐键查类型，坏的点名跳过，其余照常。 */
#include <math.h>
#include <string.h>

#include "base/log.h"
#include "io/file.h"
#include "result_writer.h"

static bool check_names(const json_t *result, const char *name, Err *e) {
    static const char *const KEYS[] = {"model", "method", "track"};
    const json_t *config = json_object_get(result, "config");
    if (!json_is_object(config)) return err_set(e, ERR_FORMAT, "%s: 缺少对象 \"config\"", name);
    for (size_t i = 0; i < sizeof KEYS / sizeof *KEYS; i++) {
        const char *s = json_string_value(json_object_get(config, KEYS[i]));
        if (!s || !*s)
            return err_set(e, ERR_FORMAT, "%s: 缺少字符串 \"config.%s\"", name, KEYS[i]);
    }
    const char *track = json_string_value(json_object_get(config, "track"));
    if (strlen(track) != 1 || !strchr("ABC", track[0]))
        return err_set(e, ERR_FORMAT, "%s: \"config.track\" 为 '%.20s'，应为 A、B 或 C", name, track);
    return true;
}

/* 一个数据集：数就是数，字符串就是字符串，缺的不计较。 */
static bool check_dataset(const char *name, const char *set, const json_t *d, bool ok, Err *e) {
    static const char *const NUMBERS[] = {"ppl", "ppl_gptq", "nll_mean", "nll_stderr", "ppl_stderr"};
    if (!json_is_object(d))
        return err_set(e, ERR_FORMAT, "%s: \"results.ppl.%.80s\" 应为对象", name, set);
    for (size_t i = 0; i < sizeof NUMBERS / sizeof *NUMBERS; i++) {
        const json_t *v = json_object_get(d, NUMBERS[i]);
        if (v && !json_is_null(v) && !json_is_number(v))
            return err_set(e, ERR_FORMAT, "%s: \"results.ppl.%.80s.%s\" 应为数", name, set,
                           NUMBERS[i]);
    }
    double ppl = json_number_value(json_object_get(d, "ppl"));
    if (ok && !(ppl > 0 && isfinite(ppl)))
        return err_set(e, ERR_FORMAT, "%s: \"results.ppl.%.80s.ppl\" 不是正的有限数", name, set);
    const json_t *windows = json_object_get(d, "window_nll");
    if (windows && !json_is_array(windows))
        return err_set(e, ERR_FORMAT, "%s: \"results.ppl.%.80s.window_nll\" 应为数组", name, set);
    for (size_t i = 0; i < json_array_size(windows); i++)
        if (!json_is_number(json_array_get(windows, i)))
            return err_set(e, ERR_FORMAT, "%s: \"results.ppl.%.80s.window_nll\" 第 %zu 项应为数",
                           name, set, i + 1);
    return true;
}

bool result_check(const json_t *result, const char *name, Err *e) {
    if (!json_is_object(result)) return err_set(e, ERR_FORMAT, "%s: 最外层应为对象", name);
    const char *schema = json_string_value(json_object_get(result, "schema"));
    if (!schema || strcmp(schema, RESULT_SCHEMA) != 0)
        return err_set(e, ERR_FORMAT, "%s: \"schema\" 不是 \"" RESULT_SCHEMA "\"，不是本程序的结果",
                       name);
    if (!check_names(result, name, e)) return false;
    const json_t *ok = json_object_get(json_object_get(result, "status"), "ok");
    if (!json_is_boolean(ok))
        return err_set(e, ERR_FORMAT, "%s: 缺少布尔值 \"status.ok\"", name);
    const json_t *results = json_object_get(result, "results");
    json_t *ppl = json_object_get(results, "ppl");
    if (json_is_true(ok) && !json_is_object(ppl))
        return err_set(e, ERR_FORMAT, "%s: 缺少对象 \"results.ppl\"", name);
    const char *set;
    json_t *d;
    json_object_foreach(ppl, set, d) if (!check_dataset(name, set, d, json_is_true(ok), e))
        return false;
    return true;
}

static bool load_one(ResultFile *f, const char *path, Err *e) {
    f->path = path;
    f->json = json_load(path, e);
    if (f->json && result_check(f->json, path, e)) return true;
    json_decref(f->json);
    f->json = NULL;
    return false;
}

bool result_load_all(const char *dir, Arena *a, ResultFile **files, size_t *n, Err *e) {
    *files = NULL;
    *n = 0;
    if (!file_exists(dir)) return true;
    char **names;
    size_t count;
    if (!file_list(a, dir, ".json", &names, &count, e)) return false;
    if (count == 0) return true;
    *files = ARENA_ARRAY(a, ResultFile, count, e);
    if (!*files) return false;
    for (size_t i = 0; i < count; i++) {
        char *path = file_join(a, dir, names[i], e);
        if (!path) {
            result_free_all(*files, *n);
            *n = 0;
            return false;
        }
        Err bad = {0};
        if (load_one(&(*files)[*n], path, &bad))
            ++*n;
        else
            log_line(LOG_WARN, "跳过读不了的结果: %s", bad.msg);
    }
    return true;
}

void result_free_all(ResultFile *files, size_t n) {
    for (size_t i = 0; i < n; i++) json_decref(files[i].json);
}

/* 文件名以时刻开头，从最新的找起。 */
static json_t *find(const char *dir, const char *run_key, bool need_ok, const char **path_out,
                    Arena *a) {
    char **names;
    size_t n;
    if (!file_exists(dir) || !file_list(a, dir, ".json", &names, &n, NULL)) return NULL;
    while (n-- > 0) {
        char *path = file_join(a, dir, names[n], NULL);
        ResultFile f;
        if (!path || !load_one(&f, path, NULL)) continue;
        const char *key = json_string_value(json_object_get(f.json, "run_key"));
        bool ok = json_is_true(json_object_get(json_object_get(f.json, "status"), "ok"));
        if (key && strcmp(key, run_key) == 0 && (ok || !need_ok)) {
            if (path_out) *path_out = path;
            return f.json;
        }
        json_decref(f.json);
    }
    return NULL;
}

json_t *result_find(const char *dir, const char *run_key, const char **path_out, Arena *a) {
    return find(dir, run_key, true, path_out, a);
}

bool result_any(const char *dir, const char *model, const char *method, char track, Arena *a) {
    char **names;
    size_t n;
    bool found = false;
    if (!file_exists(dir) || !file_list(a, dir, ".json", &names, &n, NULL)) return false;
    while (!found && n-- > 0) {
        char *path = file_join(a, dir, names[n], NULL);
        ResultFile f;
        if (!path || !load_one(&f, path, NULL)) continue;
        const json_t *c = json_object_get(f.json, "config");
        const char *m = json_string_value(json_object_get(c, "model"));
        const char *k = json_string_value(json_object_get(c, "method"));
        const char *t = json_string_value(json_object_get(c, "track"));
        found = m && k && t && strcmp(m, model) == 0 && strcmp(k, method) == 0 && t[0] == track;
        json_decref(f.json);
    }
    return found;
}

const char *result_newest(const char *dir, const char *run_key, Arena *a) {
    const char *path = NULL;
    json_decref(find(dir, run_key, false, &path, a));
    return path;
}
