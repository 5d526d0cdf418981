/* matrix — 实验 YAML 的展开
 * 设置在这里仍是文字（"键=值"），到 config_load 才按 YAML 定型；字符串值加单引号，类型不会变。 */
#include "matrix.h"

#include <ctype.h>
#include <string.h>

#include "base/str.h"
#include "config_schema.h"
#include "config.h"
#include "io/file.h"
#include "io/yaml.h"
#include "registry.h"

#define MAX_CELLS 100000

typedef struct Strings {
    const char **items;
    size_t n, cap;
} Strings;

static bool push(Arena *a, Strings *s, const char *text, Err *e) {
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 8;
        const char **items = ARENA_ARRAY(a, const char *, cap, e);
        if (!items) return false;
        if (s->n) memcpy(items, s->items, s->n * sizeof *items);
        s->items = items;
        s->cap = cap;
    }
    s->items[s->n++] = text;
    return text != NULL;
}

/* ---------- 设置 → "键=值" ---------- */

static void add_scalar(Str *out, const YamlNode *v) {
    if (v->kind == YAML_NULL) {
        str_add(out, "null");
    } else if (v->kind != YAML_STR) {
        str_add(out, v->text);
    } else {
        str_add(out, "'");
        for (const char *p = v->text; *p; p++) {
            str_addn(out, p, 1);
            if (*p == '\'') str_add(out, "'");
        }
        str_add(out, "'");
    }
}

static bool add_setting(Arena *a, Strings *out, const char *key, const YamlNode *v, Err *e) {
    Str s = {0};
    str_addf(&s, "%s=", key);
    if (v->kind == YAML_LIST) {
        str_add(&s, "[");
        for (size_t i = 0; i < v->n; i++) {
            if (v->items[i]->kind == YAML_LIST || v->items[i]->kind == YAML_MAP) {
                str_free(&s);
                return err_set(e, ERR_CONFIG, "%s:%d: '%s' 的列表里只能有简单的值", v->file, v->line, key);
            }
            if (i) str_add(&s, ", ");
            add_scalar(&s, v->items[i]);
        }
        str_add(&s, "]");
    } else {
        add_scalar(&s, v);
    }
    bool ok = s.failed ? err_set(e, ERR_MEMORY, "内存不足：实验的设置")
                       : push(a, out, arena_strdup(a, s.data, e), e);
    str_free(&s);
    return ok;
}

/* overrides 可写成点号键，也可写成嵌套的映射。 */
static bool collect(Arena *a, Strings *out, const char *prefix, const YamlNode *map, Err *e) {
    if (map->kind == YAML_NULL) return true;
    if (map->kind != YAML_MAP)
        return err_set(e, ERR_CONFIG, "%s:%d: 'overrides' 应为映射（键: 值），得到%s", map->file, map->line,
                       yaml_kind_name(map->kind));
    for (size_t i = 0; i < map->n; i++) {
        const char *key = prefix ? arena_printf(a, e, "%s.%s", prefix, map->keys[i]) : map->keys[i];
        if (!key) return false;
        const YamlNode *v = map->items[i];
        if (!(v->kind == YAML_MAP ? collect(a, out, key, v, e) : add_setting(a, out, key, v, e)))
            return false;
    }
    return true;
}

/* ---------- 读 YAML ---------- */

typedef struct Entry { /* methods 列表的一项 */
    const char *name, *label;
    Strings overrides;
} Entry;

static bool known_keys(const YamlNode *map, const char *const *keys, size_t n, Err *e) {
    for (size_t i = 0; i < map->n; i++) {
        bool known = false;
        for (size_t k = 0; k < n && !known; k++) known = strcmp(map->keys[i], keys[k]) == 0;
        if (known) continue;
        const char *near = str_nearest(map->keys[i], keys, n);
        return err_set(e, ERR_CONFIG, "%s:%d: 未知的键 '%s'%s%s%s", map->file, map->items[i]->line,
                       map->keys[i], near ? "，是否想写 '" : "", near ? near : "", near ? "'？" : "");
    }
    return true;
}

static bool scalar(const YamlNode *v) {
    return v && v->kind != YAML_LIST && v->kind != YAML_MAP && v->kind != YAML_NULL && v->text[0];
}

/* 名字的列表（单个名字也行）。 */
static bool names_of(Arena *a, const YamlNode *doc, const char *key, Strings *out, Err *e) {
    const YamlNode *v = yaml_get(doc, key);
    if (!v) return err_set(e, ERR_CONFIG, "%s: 缺少 '%s'", doc->file, key);
    if (scalar(v)) return push(a, out, v->text, e);
    if (v->kind != YAML_LIST || v->n == 0)
        return err_set(e, ERR_CONFIG, "%s:%d: '%s' 应为非空的列表", v->file, v->line, key);
    for (size_t i = 0; i < v->n; i++) {
        if (!scalar(v->items[i]))
            return err_set(e, ERR_CONFIG, "%s:%d: '%s' 的每一项应为名字", v->file, v->items[i]->line, key);
        if (!push(a, out, v->items[i]->text, e)) return false;
    }
    return true;
}

static bool read_entry(Arena *a, const YamlNode *v, Entry *out, Err *e) {
    static const char *const KEYS[] = {"name", "label", "overrides"};
    if (scalar(v)) {
        out->name = v->text;
        return true;
    }
    const YamlNode *name = yaml_get(v, "name"), *label = yaml_get(v, "label");
    const YamlNode *overrides = yaml_get(v, "overrides");
    if (v->kind != YAML_MAP || !scalar(name) || (label && !scalar(label)))
        return err_set(e, ERR_CONFIG,
                       "%s:%d: methods 的每一项应为方法名，或 {name: 名字, label: 标签, overrides: {…}}", v->file,
                       v->line);
    if (!known_keys(v, KEYS, sizeof KEYS / sizeof *KEYS, e)) return false;
    out->name = name->text;
    out->label = label ? label->text : NULL;
    return !overrides || collect(a, &out->overrides, NULL, overrides, e);
}

static bool read_methods(Arena *a, const YamlNode *doc, Entry **entries, size_t *n, Err *e) {
    const YamlNode *v = yaml_get(doc, "methods");
    if (!v || v->kind != YAML_LIST || v->n == 0)
        return err_set(e, ERR_CONFIG, "%s:%d: 'methods' 应为非空的列表", doc->file,
                       v ? v->line : doc->line);
    *entries = ARENA_ARRAY(a, Entry, v->n, e);
    if (!*entries) return false;
    for (size_t i = 0; i < v->n; i++)
        if (!read_entry(a, v->items[i], &(*entries)[i], e)) return false;
    *n = v->n;
    return true;
}

/* ---------- 展开 ---------- */

static bool supports(const Method *m, const char *track) {
    int letter = toupper((unsigned char)track[strlen(track) - 1]); /* "A" 或 "track_a" */
    return strchr(m->tracks, letter) != NULL;
}

/* 方法不支持这个轨道、但支持列出的别的轨道：不成单元。全不支持的留着，运行时说明。 */
static bool belongs(const char *method, const char *track, const Strings *tracks) {
    const Method *m = registry_find(method, NULL);
    if (!m || !*track || supports(m, track)) return true;
    for (size_t i = 0; i < tracks->n; i++)
        if (*tracks->items[i] && supports(m, tracks->items[i])) return false;
    return true;
}

static bool fill_cell(Arena *a, Cell *c, const Entry *m, const Strings *common,
                      const char *const *extra, size_t n_extra, Err *e) {
    const Method *known = registry_find(m->name, NULL);
    Strings all = {0};
    c->method = m->name;
    c->label = m->label;
    for (size_t i = 0; i < common->n; i++)
        if (schema_applies(common->items[i], known) && !push(a, &all, common->items[i], e)) return false;
    for (size_t i = 0; i < m->overrides.n; i++)
        if (!push(a, &all, m->overrides.items[i], e)) return false;
    for (size_t i = 0; i < n_extra; i++) {
        char *copy = arena_strdup(a, extra[i], e);
        if (!copy || (schema_applies(copy, known) && !push(a, &all, copy, e))) return false;
    }
    c->overrides = all.items;
    c->n_overrides = all.n;
    return true;
}

static bool expand(Matrix *m, const YamlNode *doc, const char *const *extra, size_t n_extra,
                   Err *e) {
    static const char *const KEYS[] = {"name", "description", "models", "methods", "tracks",
                                       "overrides"};
    Arena *a = &m->arena;
    Strings models = {0}, tracks = {0}, common = {0};
    Entry *methods = NULL;
    size_t n_methods = 0;
    const YamlNode *overrides = yaml_get(doc, "overrides");
    if (!known_keys(doc, KEYS, sizeof KEYS / sizeof *KEYS, e) ||
        !names_of(a, doc, "models", &models, e) || !names_of(a, doc, "tracks", &tracks, e) ||
        !read_methods(a, doc, &methods, &n_methods, e) ||
        (overrides && !collect(a, &common, NULL, overrides, e)))
        return false;
    if (models.n * tracks.n > MAX_CELLS / n_methods)
        return err_set(e, ERR_CONFIG, "%s: 展开后超过 %d 个单元", doc->file, MAX_CELLS);
    m->cells = ARENA_ARRAY(a, Cell, models.n * tracks.n * n_methods, e);
    if (!m->cells) return false;
    for (size_t i = 0; i < models.n; i++)
        for (size_t t = 0; t < tracks.n; t++)
            for (int pass = 0; pass < 2; pass++) /* 先 fp16 */
                for (size_t k = 0; k < n_methods; k++) {
                    if ((strcmp(methods[k].name, "fp16") == 0) != (pass == 0)) continue;
                    if (!belongs(methods[k].name, tracks.items[t], &tracks)) continue;
                    Cell *c = &m->cells[m->n++];
                    c->model = models.items[i];
                    c->track = tracks.items[t];
                    if (!fill_cell(a, c, &methods[k], &common, extra, n_extra, e)) return false;
                }
    return true;
}

static bool load(Matrix *m, const char *root, const char *name_or_path, const char *const *extra,
                 size_t n_extra, Err *e) {
    Arena *a = &m->arena;
    const char *path = name_or_path;
    if (!file_exists(path) || file_is_dir(path)) {
        char *rel = arena_printf(a, e, "configs/experiments/%s.yaml", name_or_path);
        path = rel ? file_join(a, root, rel, e) : NULL;
        if (!path) return false;
        if (strchr(name_or_path, '/') || !file_exists(path))
            return err_set(e, ERR_MISSING, "没有实验 '%s'：既不是文件，也不在 configs/experiments/ 里", name_or_path);
    }
    YamlNode *doc = yaml_load(a, path, e);
    if (!doc) return false;
    if (doc->kind != YAML_MAP)
        return err_set(e, ERR_CONFIG, "%s:%d: 最外层应为映射", path, doc->line);
    const YamlNode *name = yaml_get(doc, "name");
    if (!scalar(name)) return err_set(e, ERR_CONFIG, "%s: 缺少 'name'（实验的名字）", path);
    m->name = name->text;
    return expand(m, doc, extra, n_extra, e);
}

bool matrix_load(Matrix *m, const char *root, const char *name_or_path, const char *const *extra,
                 size_t n_extra, Err *e) {
    *m = (Matrix){0};
    if (load(m, root, name_or_path, extra, n_extra, e)) return true;
    matrix_free(m);
    return false;
}

void matrix_free(Matrix *m) {
    arena_free(&m->arena);
    *m = (Matrix){0};
}
