/* config — 五层配置的合并与检查
 * 每层读成节点树后逐叶检查（config_schema），通过的叶子按点号路径写进 merged；后写者胜。
 * 不变式：load 成功后 merged 里只有设置（没有 name 之类的说明键），且每个叶子的值都合法。 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "config_schema.h"
#include "io/file.h"
#include "pretrained.h"
#include "registry.h"

#define YAML_MAX_BYTES (1u << 20)

typedef struct Loader {
    Config *c;
    const Method *method;
    Err *e;
} Loader;

/* ---------- 合并 ---------- */

static YamlNode *new_map(Arena *a, const YamlNode *like, Err *e) {
    YamlNode *m = ARENA_NEW(a, YamlNode, e);
    if (!m) return NULL;
    m->kind = YAML_MAP;
    m->file = like ? like->file : "";
    m->line = like ? like->line : 0;
    return m;
}

/* 映射 m 中 key 的槽；没有就加一个空槽。 */
static YamlNode **map_slot(Arena *a, YamlNode *m, const char *key, Err *e) {
    for (size_t i = 0; i < m->n; i++)
        if (strcmp(m->keys[i], key) == 0) return &m->items[i];
    YamlNode **items = ARENA_ARRAY(a, YamlNode *, m->n + 1, e);
    const char **keys = ARENA_ARRAY(a, const char *, m->n + 1, e);
    if (!items || !keys) return NULL;
    if (m->n) {
        memcpy(items, m->items, m->n * sizeof *items);
        memcpy(keys, m->keys, m->n * sizeof *keys);
    }
    if (!(keys[m->n] = arena_strdup(a, key, e))) return NULL;
    m->items = items;
    m->keys = keys;
    return &m->items[m->n++];
}

/* merged[path] = v，逐段建立中间的映射。 */
static bool merged_set(Config *c, const char *path, YamlNode *v, Err *e) {
    YamlNode *at = c->merged;
    for (const char *dot; (dot = strchr(path, '.')); path = dot + 1) {
        char *head = arena_strndup(&c->arena, path, (size_t)(dot - path), e);
        YamlNode **slot = head ? map_slot(&c->arena, at, head, e) : NULL;
        if (!slot) return false;
        if (!*slot && !(*slot = new_map(&c->arena, v, e))) return false;
        at = *slot;
    }
    YamlNode **slot = map_slot(&c->arena, at, path, e);
    if (!slot) return false;
    *slot = v;
    return true;
}

static bool merge_leaf(Loader *l, ConfigLayer layer, const char *key, YamlNode *v) {
    KeyClass class;
    if (!schema_check_leaf(layer, l->method, key, v, &class, l->e)) return false;
    return class != KEY_SETTING || merged_set(l->c, key, v, l->e);
}

/* 深度优先走到叶子。model_kwargs 整个是一个叶子（内容任意）。 */
static bool merge_tree(Loader *l, ConfigLayer layer, const char *prefix, YamlNode *node) {
    Arena *a = &l->c->arena;
    for (size_t i = 0; i < node->n; i++) {
        YamlNode *v = node->items[i];
        const char *key = prefix ? arena_printf(a, l->e, "%s.%s", prefix, node->keys[i])
                                 : node->keys[i];
        if (!key) return false;
        bool leaf = v->kind != YAML_MAP || schema_is_leaf(layer, key) ||
                    option_find(l->method->options, key);
        if (!(leaf ? merge_leaf(l, layer, key, v) : merge_tree(l, layer, key, v))) return false;
    }
    return true;
}

/* ---------- 各层的文件 ---------- */

/* 读 root/rel 成映射；文件为空时得到空映射。 */
static YamlNode *load_layer(Config *c, const char *rel, Err *e) {
    char *path = file_join(&c->arena, c->root, rel, e);
    size_t len = 0;
    char *text = path ? file_read(&c->arena, path, YAML_MAX_BYTES, &len, e) : NULL;
    YamlNode *n = text ? yaml_parse(&c->arena, rel, text, len, e) : NULL;
    if (!n || n->kind == YAML_MAP) return n;
    if (n->kind == YAML_NULL) return new_map(&c->arena, n, e);
    err_set(e, ERR_CONFIG, "%s:%d: 最外层应为映射（键: 值），得到%s", rel, n->line,
            yaml_kind_name(n->kind));
    return NULL;
}

/* name 必须等于文件名。 */
static bool check_name(const YamlNode *layer, const char *rel, const char *want, Err *e) {
    const YamlNode *n = yaml_get(layer, "name");
    if (!n) return err_set(e, ERR_CONFIG, "%s: 缺少 'name'，应写 'name: %s'", rel, want);
    if (n->text && strcmp(n->text, want) == 0) return true;
    return err_set(e, ERR_CONFIG, "%s:%d: name 是 '%.80s'，应与文件名相同: '%s'", rel, n->line,
                   n->text ? n->text : yaml_kind_name(n->kind), want);
}

static const char *identity_text(const YamlNode *layer, const char *key) {
    const YamlNode *n = yaml_path(layer, key);
    return n && n->kind != YAML_NULL ? n->text : NULL;
}

/* dir 中的 *.yaml 有哪些名字；找不到 want 时用来提示。 */
static bool no_such_config(Config *c, const char *what, const char *dir, const char *want,
                           const char *more, Err *e) {
    char **files = NULL;
    size_t n = 0;
    char *path = file_join(&c->arena, c->root, dir, e);
    if (!path || !file_list(&c->arena, path, ".yaml", &files, &n, e)) return false;
    Str list = {0};
    for (size_t i = 0; i < n; i++) {
        files[i][strlen(files[i]) - strlen(".yaml")] = '\0';
        str_addf(&list, "%s%s", i ? "、" : "", files[i]);
    }
    const char *near = str_nearest(want, (const char *const *)files, n);
    err_set(e, ERR_CONFIG, "没有%s '%.200s'%s%s%s。已有: %s%s", what, want,
            near ? "，是否想写 '" : "", near ? near : "", near ? "'" : "",
            list.len ? list.data : "（无）", more);
    str_free(&list);
    return false;
}

static bool plain_name(const char *s) {
    return *s && !strchr(s, '/') && s[0] != '.';
}

/* 由路径得出模型名：末段，小写，去掉 .gguf；只留字母数字与 . _ -。 */
static const char *name_of_path(Arena *a, const char *path, Err *e) {
    char *p = arena_strdup(a, path, e);
    if (!p) return NULL;
    size_t n = strlen(p);
    while (n > 1 && p[n - 1] == '/') p[--n] = '\0';
    char *slash = strrchr(p, '/');
    char *name = slash && slash[1] ? slash + 1 : p;
    for (char *q = name; *q; q++) {
        bool keep = (*q >= 'a' && *q <= 'z') || (*q >= '0' && *q <= '9') || strchr("._-", *q);
        if (*q >= 'A' && *q <= 'Z')
            *q = (char)(*q - 'A' + 'a');
        else if (!keep)
            *q = '-';
    }
    if (str_ends(name, ".gguf")) name[strlen(name) - 5] = '\0';
    while (*name == '.') name++;
    return *name ? name : "model";
}

static bool load_model_layer(Loader *l, const char *model) {
    Config *c = l->c;
    Err *e = l->e;
    const char *rel = plain_name(model)
                          ? arena_printf(&c->arena, e, "configs/models/%s.yaml", model) : NULL;
    char *full = rel ? file_join(&c->arena, c->root, rel, e) : NULL;
    if (full && file_exists(full)) {
        YamlNode *layer = load_layer(c, rel, e);
        if (!layer || !check_name(layer, rel, model, e)) return false;
        c->model_display_name = identity_text(layer, "display_name");
        if (pretrained_is(l->method)) {
            const char *key = arena_printf(&c->arena, e, "pretrained_quant_models.%s", pretrained_key(l->method));
            if (!key) return false;
            c->pretrained_id = identity_text(layer, key);
        }
        c->model.name = arena_strdup(&c->arena, model, e);
        const YamlNode *kw = yaml_get(layer, "model_kwargs");
        if (kw && kw->kind != YAML_MAP && kw->kind != YAML_NULL)
            return err_set(e, ERR_CONFIG, "%s:%d: 'model_kwargs' 应为映射", rel, kw->line);
        return c->model.name && merge_tree(l, LAYER_MODEL, NULL, layer);
    }
    if (!file_exists(model))
        return no_such_config(c, "模型", "configs/models", model,
                              "；也可以给出模型文件夹或 .gguf 文件的路径", e);
    c->model_is_path = true;
    YamlNode *id = ARENA_NEW(&c->arena, YamlNode, e);
    char *abs = realpath(model, NULL);
    if (!id || !abs) {
        free(abs);
        return err_set(e, ERR_IO, "%s: 读不到这个路径", model);
    }
    *id = (YamlNode){.kind = YAML_STR, .text = arena_strdup(&c->arena, abs, e),
                     .file = "命令行 --model"};
    free(abs);
    c->model.name = name_of_path(&c->arena, model, e);
    return id->text && c->model.name && merged_set(c, "model_id", id, e);
}

/* supported_tracks 列出的字母须与登记的一致。 */
static bool check_tracks(const YamlNode *layer, const char *rel, const Method *m, Err *e) {
    const YamlNode *t = yaml_get(layer, "supported_tracks");
    if (!t) return err_set(e, ERR_CONFIG, "%s: 缺少 'supported_tracks'（如 [A, B]）", rel);
    bool same = t->kind == YAML_LIST && t->n == strlen(m->tracks);
    for (size_t i = 0; same && i < t->n; i++) {
        const char *s = t->items[i]->text;
        same = s && strlen(s) == 1 && strchr(m->tracks, s[0]);
        for (size_t j = 0; same && j < i; j++) same = strcmp(t->items[j]->text, s) != 0;
    }
    if (same) return true;
    return err_set(e, ERR_CONFIG,
                   "%s:%d: supported_tracks 与程序中登记的不一致；方法 %s 登记的轨道是 %s", rel,
                   t->line, m->name, m->tracks);
}

static bool load_method_layer(Loader *l) {
    Config *c = l->c;
    Err *e = l->e;
    const Method *m = l->method;
    if (pretrained_is(m)) { /* 没有 YAML */
        c->method_display_name = m->name;
        return true;
    }
    const char *rel = arena_printf(&c->arena, e, "configs/methods/%s.yaml", m->name);
    char *full = rel ? file_join(&c->arena, c->root, rel, e) : NULL;
    if (!full) return false;
    if (!file_exists(full))
        return err_set(e, ERR_CONFIG, "方法 '%s' 已登记，但缺少 %s；每个方法要有一个 YAML", m->name,
                       rel);
    YamlNode *layer = load_layer(c, rel, e);
    if (!layer || !check_name(layer, rel, m->name, e) || !check_tracks(layer, rel, m, e))
        return false;
    const YamlNode *need = yaml_path(layer, "calibration.required");
    if (need && need->kind != YAML_BOOL)
        return err_set(e, ERR_CONFIG, "%s:%d: 'calibration.required' 应为 true 或 false", rel,
                       need->line);
    const char *shown = identity_text(layer, "display_name");
    c->method_display_name = shown ? shown : m->name;
    return merge_tree(l, LAYER_METHOD, NULL, layer);
}

static bool parse_track(const char *s, char *out, Err *e) {
    if (!s) s = "";
    const char *p = s;
    if (strncasecmp(p, "track", 5) == 0) p += 5;
    if (*p == '_') p++;
    char t = (char)(*p >= 'a' ? *p - 'a' + 'A' : *p);
    if (t < 'A' || t > 'C' || p[1])
        return err_set(e, ERR_CONFIG, "没有轨道 '%.40s'。可用: A（仅权重）、B（W8A8）、C（KV 缓存）", s);
    *out = t;
    return true;
}

static bool load_track_layer(Loader *l) {
    Config *c = l->c;
    char low = (char)(c->track - 'A' + 'a');
    const char *name = arena_printf(&c->arena, l->e, "track_%c", low);
    const char *rel = name ? arena_printf(&c->arena, l->e, "configs/tracks/%s.yaml", name) : NULL;
    if (!rel) return false;
    YamlNode *layer = load_layer(c, rel, l->e);
    if (!layer || !check_name(layer, rel, name, l->e)) return false;
    const char *shown = identity_text(layer, "display_name");
    c->track_display_name = shown ? shown : name;
    return merge_tree(l, LAYER_TRACK, NULL, layer);
}

static bool load_override(Loader *l, const char *text) {
    Arena *a = &l->c->arena;
    const char *eq = strchr(text, '=');
    if (!eq || eq == text)
        return err_set(l->e, ERR_CONFIG, "--override '%.200s' 应写成 键=值，如 weight.w_bits=3", text);
    char *key = arena_strndup(a, text, (size_t)(eq - text), l->e);
    YamlNode *v = key ? yaml_parse_value(a, eq + 1, "命令行 --override", l->e) : NULL;
    return v && merge_leaf(l, LAYER_CLI, key, v);
}

/* ---------- 检查与填充 ---------- */

static bool fill_list(Config *c, const char *key, const char ***out, size_t *n, Err *e) {
    const YamlNode *v = yaml_path(c->merged, key);
    size_t len = !v || v->kind == YAML_NULL ? 0 : v->kind == YAML_LIST ? v->n : 1;
    *n = 0;
    *out = len ? ARENA_ARRAY(&c->arena, const char *, len, e) : NULL;
    if (len && !*out) return false;
    for (size_t i = 0; i < len; i++) {
        const char *s = v->kind == YAML_LIST ? v->items[i]->text : v->text;
        for (size_t j = 0; j < *n; j++)
            if (strcmp((*out)[j], s) == 0) {
                char where[512];
                return err_set(e, ERR_CONFIG, "%s: '%s' 中 '%.80s' 出现了两次",
                               schema_where(v, where, sizeof where), key, s);
            }
        (*out)[(*n)++] = s;
    }
    return true;
}

static bool warn(Config *c, const char *text, Err *e) {
    const char **all = ARENA_ARRAY(&c->arena, const char *, c->n_warnings + 1, e);
    if (!all) return false;
    if (c->n_warnings) memcpy(all, c->warnings, c->n_warnings * sizeof *all);
    all[c->n_warnings++] = text;
    c->warnings = all;
    return true;
}

/* 合法但本版本做不到的，或需要提醒的。 */
static bool check_limits(Config *c, Err *e) {
    char where[512];
    if (c->run.max_memory && !str_parse_bytes(c->run.max_memory, &c->run.max_memory_bytes))
        return err_set(e, ERR_CONFIG, "%s: max_memory '%s' 不是大小，应如 400MB、8GB",
                       schema_where(yaml_path(c->merged, "max_memory"), where, sizeof where),
                       c->run.max_memory);
    if (c->run.stats_cache && !str_parse_bytes(c->run.stats_cache, &c->run.stats_cache_bytes))
        return err_set(e, ERR_CONFIG, "%s: stats_cache '%s' 不是大小，应如 2GB，0B 为不存",
                       schema_where(yaml_path(c->merged, "stats_cache"), where, sizeof where),
                       c->run.stats_cache);
    if (c->run.compute == 0) c->run.compute = 1;    /* auto → float32 */
    if (c->model.trust_remote_code &&
        !warn(c, "trust_remote_code 为 true：仅作记录，本程序从不运行模型仓库里的代码", e))
        return false;
    return true;
}

static bool fill_all(Config *c, Err *e) {
    const char *name = c->model.name;
    option_fill(RUN_OPTIONS, c->merged, &c->run);
    option_fill(MODEL_OPTIONS, c->merged, &c->model);
    c->model.name = name;
    c->method_options = arena_alloc(&c->arena, c->method->options_size, e);
    if (!c->method_options) return false;
    option_fill(CALIB_OPTIONS, c->merged, &c->calib);
    option_fill(c->method->options, c->merged, c->method_options);
    c->run.results_dir = file_join(&c->arena, c->root, c->run.results_dir, e);
    c->run.data_dir = file_join(&c->arena, c->root, c->run.data_dir, e);
    return c->run.results_dir && c->run.data_dir &&
           fill_list(c, "eval.ppl_datasets", &c->run.ppl_datasets, &c->run.n_ppl_datasets, e) &&
           fill_list(c, "eval.lm_eval_tasks", &c->run.lm_eval_tasks, &c->run.n_lm_eval_tasks, e) &&
           check_limits(c, e) &&
           (!c->method->check || c->method->check(c->method_options, c->track, e));
}

static void print_warnings(const Config *c) {
    static bool done; /* run_one 会读两次配置，警告只打印一次 */
    if (done || c->n_warnings == 0) return;
    done = true;
    for (size_t i = 0; i < c->n_warnings; i++) log_line(LOG_WARN, "%s", c->warnings[i]);
}

static bool load(Config *c, const ConfigRequest *r, Err *e) {
    if (!r->model || !r->method || !r->track)
        return err_set(e, ERR_USAGE, "要给出 --model、--method 与 --track");
    c->no_download = r->no_download;
    c->root = arena_strdup(&c->arena, r->root ? r->root : ".", e);
    c->merged = new_map(&c->arena, NULL, e);
    if (!c->root || !c->merged || !parse_track(r->track, &c->track, e)) return false;
    c->method = registry_find(r->method, e);
    if (!c->method || !registry_check_track(c->method, c->track, e)) return false;
    c->method_name = c->method->name;
    Loader l = {c, c->method, e};
    YamlNode *base = load_layer(c, "configs/config.yaml", e);
    if (!base || !merge_tree(&l, LAYER_BASE, NULL, base)) return false;
    if (!load_model_layer(&l, r->model) || !load_method_layer(&l) || !load_track_layer(&l))
        return false;
    for (size_t i = 0; i < r->n_overrides; i++)
        if (!load_override(&l, r->overrides[i])) return false;
    return fill_all(c, e);
}

bool config_load(Config *c, const ConfigRequest *r, Err *e) {
    *c = (Config){0};
    if (!load(c, r, e)) {
        config_free(c);
        return false;
    }
    print_warnings(c);
    return true;
}

void config_free(Config *c) {
    arena_free(&c->arena);
    *c = (Config){0};
}
