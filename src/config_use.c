/* config_use — 合并好的配置的用法：模型在哪里、规范文本、给结果的 JSON
 * 与 config.c 分开：那里决定配置是什么，这里只读它。 */
#include <stdlib.h>
#include <string.h>

#include "config.h"
#include "config_schema.h"
#include "io/file.h"
#include "io/hub.h"

/* ---------- 模型文件的位置 ---------- */

/* path 可用作模型时返回要打开的路径（含 config.json 的文件夹、GGUF 文件，或只含一个 GGUF 的文件夹里的那个）。
 * 不可用返回 NULL；文件夹里有多个 GGUF 时置 e。 */
static const char *usable_model(Config *c, const char *path, Err *e) {
    if (!file_exists(path)) return NULL;
    if (!file_is_dir(path)) return path;
    char *config = file_join(&c->arena, path, "config.json", e);
    if (!config || file_exists(config)) return config ? path : NULL;
    char **names;
    size_t n = 0;
    if (!file_list(&c->arena, path, ".gguf", &names, &n, e)) return NULL;
    if (n > 1)
        err_set(e, ERR_MISSING, "%s: 有 %zu 个 .gguf 文件（%s、%s…），请用 --model 指明其中一个", path, n,
                names[0], names[1]);
    return n == 1 ? file_join(&c->arena, path, names[0], e) : NULL;
}

/* 要打开的模型：检查点代替 model_id。 */
static const char *effective_id(const Config *c) {
    return c->pretrained_id ? c->pretrained_id : c->model.model_id;
}

static void missing_model(const Config *c, const char *tried, Err *e) {
    const char *id = effective_id(c) ? effective_id(c) : "", *name = c->model.name;
    bool fetchable = !c->pretrained_id && strcmp(name, "smollm2-135m-instruct") == 0;
    bool gated = str_starts(id, "meta-llama/");
    if (fetchable)
        err_set(e, ERR_MISSING,
                "模型 %s 不在 %s。取得它: scripts/prepare_data.sh --model %s（下载 88 MB）", name, tried,
                name);
    else
        err_set(e, ERR_MISSING,
                "模型 %s 不在 %s，也不在 Hub 的缓存里。联网时会自动下载 %s；没有网络的话，请把它的 config.json、"
                "tokenizer.json、tokenizer_config.json、*.safetensors（及 model.safetensors.index.json）放到该文件夹，例如: "
                "huggingface-cli download %s --local-dir %s%s",
                name, tried, id, id, tried,
                gated ? "\n这是需要授权的模型：先在网页上接受许可，再 export HF_TOKEN=xxx" : "");
}

/* Hub 上的模型：online 为真时下载，否则只看缓存。返回: 快照文件夹，没有则 NULL（online 时置 e）。 */
static const char *hub_path(Config *c, bool online, Err *e) {
    const char *id = effective_id(c), *dir = NULL;
    HubOptions o;
    if (!id || c->model_is_path || !hub_is_id(id) || !hub_options(&o, &c->arena, e)) return NULL;
    if (online && o.offline) return NULL;
    o.offline = !online;
    const char *revision = c->pretrained_id ? NULL : c->model.revision; /* revision 说的是 model_id */
    return hub_model(&o, &c->arena, id, revision, &dir, &c->hub_commit, e) ? dir : NULL;
}

static const char *model_path(Config *c, bool online, Err *e) {
    Arena *a = &c->arena;
    const char *found = NULL;
    Err why = {0};
    if (effective_id(c)) {
        char *own = file_join(a, c->root, effective_id(c), e);
        if (!own) return NULL;
        found = usable_model(c, own, &why);
        if (!found && !why.code && (c->model_is_path || file_is_dir(own)))
            err_set(&why, ERR_MISSING,
                    "%s: 文件夹里没有 config.json，也没有 .gguf 文件，不是可用的模型", own);
    }
    if (!found && !why.code) {
        char *raw = c->pretrained_id ? arena_printf(a, e, "%s/raw/%s", c->run.data_dir, c->pretrained_id)
                                     : arena_printf(a, e, "%s/raw/%s", c->run.data_dir, c->model.name);
        if (!raw) return NULL;
        found = usable_model(c, raw, &why);
        if (!found && !why.code && online) found = hub_path(c, true, &why);
        if (!found && !why.code) found = hub_path(c, false, NULL);
        if (!found && !why.code) missing_model(c, raw, &why);
    }
    if (!found && e) *e = why;
    return found;
}

const char *config_model_path(Config *c, Err *e) {
    return model_path(c, false, e);
}

const char *config_fetch_model(Config *c, Err *e) {
    return model_path(c, !c->no_download, e);
}

/* ---------- JSON ---------- */

/* 依次访问全部生效的设置；tables 中的结构体与表一一对应。 */
typedef struct TableView {
    const Option *table;
    const void *values;
} TableView;
enum { N_TABLES = 4 };

static void tables_of(const Config *c, TableView v[N_TABLES]) {
    v[0] = (TableView){RUN_OPTIONS, &c->run};
    v[1] = (TableView){MODEL_OPTIONS, &c->model};
    v[2] = (TableView){c->method->options, c->method_options};
    v[3] = (TableView){c->method->calibrated ? CALIB_OPTIONS : NULL, &c->calib};
}

static json_t *list_json(const char *const *items, size_t n) {
    json_t *list = json_array();
    for (size_t i = 0; list && i < n; i++)
        if (json_array_append_new(list, json_string(items[i]))) {
            json_decref(list);
            return NULL;
        }
    return list;
}

static json_t *with_origin(const Config *c, const char *key, json_t *value) {
    char where[512];
    const YamlNode *v = yaml_path(c->merged, key);
    return json_pack("{s:o, s:s}", "value", value, "from",
                     v ? schema_where(v, where, sizeof where) : "默认值");
}

json_t *config_merged_json(const Config *c) {
    json_t *out = json_object();
    bool ok = out != NULL;
    TableView views[N_TABLES];
    tables_of(c, views);
    for (size_t t = 0; t < N_TABLES; t++)
        for (const Option *o = views[t].table; ok && o && o->key; o++)
            ok = !json_object_set_new(
                out, o->key, with_origin(c, o->key, option_to_json(o, views[t].values)));
    ok = ok && !json_object_set_new(out, "eval.ppl_datasets",
                                    with_origin(c, "eval.ppl_datasets",
                                                list_json(c->run.ppl_datasets,
                                                          c->run.n_ppl_datasets)));
    ok = ok && !json_object_set_new(out, "eval.lm_eval_tasks",
                                    with_origin(c, "eval.lm_eval_tasks",
                                                list_json(c->run.lm_eval_tasks,
                                                          c->run.n_lm_eval_tasks)));
    if (ok) return out;
    json_decref(out);
    return NULL;
}

static const json_t *setting(const json_t *merged, const char *key) {
    return json_object_get(json_object_get(merged, key), "value");
}
static bool setting_is(const json_t *merged, const char *key, const char *want) {
    const char *s = json_string_value(setting(merged, key));
    return s && strcmp(s, want) == 0;
}

bool config_weight_spec(const json_t *merged, QSpec *spec) {
    const json_t *bits = setting(merged, "weight.w_bits");
    if (!json_is_integer(bits)) return false;
    bool channel = setting_is(merged, "weight.granularity", "per_channel");
    const json_t *group = setting(merged, "weight.group_size");
    *spec = (QSpec){.bits = (int)json_integer_value(bits)};
    spec->group_size = channel || !group ? -1 : json_integer_value(group);
    spec->zero = !setting_is(merged, "weight.scheme", "asymmetric")   ? ZERO_SYM
                 : setting_is(merged, "weight.zero_point", "float") ? ZERO_FLOAT
                                                                    : ZERO_INT;
    spec->scale_dtype = setting_is(merged, "weight.scale_dtype", "float16") ? DT_F16 : DT_F32;
    return true;
}

/* adapter 指明了家族；auto 则由模型文件决定。 */
static bool names_family(const char *adapter) {
    return adapter && strcmp(adapter, "auto") != 0;
}

/* 不影响数值的设置：权重与分词器由各自的哈希固定，所以 model_id 等也在其列。 */
static bool influences_numbers(const char *key) {
    static const char *const NOT[] = {"threads",  "max_memory", "stats_cache", "results_dir",       "data_dir", "model_id",
                                      "revision", "trust_remote_code", "adapter", "eval.log_samples",
                                      "eval.lm_eval_command", "eval.baseline",
                                      "eval.equivalence_delta"};
    for (size_t i = 0; i < sizeof NOT / sizeof *NOT; i++)
        if (strcmp(key, NOT[i]) == 0) return false;
    return true;
}

char *config_canonical(const Config *c, Arena *a, Err *e) {
    char track[2] = {c->track, 0};
    json_t *settings = json_object();
    TableView views[N_TABLES];
    tables_of(c, views);
    bool ok = settings != NULL;
    for (size_t t = 0; t < N_TABLES; t++)
        for (const Option *o = views[t].table; ok && o && o->key; o++)
            if (influences_numbers(o->key) ||
                (strcmp(o->key, "adapter") == 0 && names_family(c->model.adapter)))
                ok = !json_object_set_new(settings, o->key, option_to_json(o, views[t].values));
    ok = ok && !json_object_set_new(settings, "eval.ppl_datasets",
                                    list_json(c->run.ppl_datasets, c->run.n_ppl_datasets));
    json_t *all = ok ? json_pack("{s:s, s:s, s:s, s:O}", "model", c->model.name, "method",
                                 c->method_name, "track", track, "settings", settings)
                     : NULL;
    char *text = all ? json_dumps(all, JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(17))
                     : NULL;
    char *out = text ? arena_strdup(a, text, e) : NULL;
    if (!text) err_set(e, ERR_MEMORY, "内存不足：生成配置的规范文本");
    free(text);
    json_decref(all);
    json_decref(settings);
    return out;
}
