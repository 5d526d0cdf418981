/* hub_data — 从 Hub 取得数据集的一个划分：哪些文件是它的，下载到缓存
 * 次序: README 的 configs（datasets 也以它为准）→ 文件名的惯例 → refs/convert/parquet（Hub 把每个数据集都自动转成 Parquet）。 */
#include <ctype.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "io/file.h"
#include "io/hub_internal.h"
#include "io/yaml.h"

#define CONVERTED "refs/convert/parquet"
enum { MAX_FILES = 5000, README_MAX = 4 << 20 };

static const char *const SUFFIXES[] = {".parquet", ".jsonl", ".json", ".csv"}; /* 先要 Parquet */
enum { N_SUFFIXES = sizeof SUFFIXES / sizeof *SUFFIXES };

/* 从仓库的文件中挑一个划分的。 */
typedef struct Pick {
    HubRepo *r;
    Arena *a;
    const HubSplit *s;
    const json_t *list; /* siblings */
} Pick;

static const char *file_name(const json_t *v) {
    const json_t *s = json_object_get(v, "rfilename");
    const char *name = json_string_value(s);
    return name && json_string_length(s) == strlen(name) && hub_safe_path(name) ? name : NULL;
}

static bool add(Pick *p, const char *name, const json_t *v, Err *e) {
    HubRepo *r = p->r;
    if (r->n_files >= MAX_FILES) return err_set(e, ERR_FORMAT, "数据集 %s 的一个划分超过 %d 个文件", r->id, MAX_FILES);
    if (!r->files && !(r->files = ARENA_ARRAY(p->a, HubFile, MAX_FILES + 1, e))) return false;
    return hub_read_file(r, p->a, name, v, &r->files[r->n_files++], e);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const HubFile *)a)->name, ((const HubFile *)b)->name);
}

/* 挑出 match 认的文件，只要一种后缀（排在前面的）；按名字排好。 */
static bool pick(Pick *p, bool (*match)(const Pick *p, const char *name, const void *ctx), const void *ctx,
                 Err *e) {
    for (int k = 0; k < N_SUFFIXES && !p->r->n_files; k++)
        for (size_t i = 0; i < json_array_size(p->list); i++) {
            const json_t *v = json_array_get(p->list, i);
            const char *name = file_name(v);
            if (name && str_ends(name, SUFFIXES[k]) && match(p, name, ctx) && !add(p, name, v, e)) return false;
        }
    if (p->r->n_files) qsort(p->r->files, p->r->n_files, sizeof *p->r->files, by_name);
    return true;
}

/* ---- 文件名的惯例 ---- */

/* name 的 n 个字节是不是划分的名字或通常的别名。 */
static bool is_split(const char *name, size_t n, const char *split) {
    static const char *const ALIAS[][4] = {{"train", "training"}, {"validation", "valid", "dev", "val"},
                                           {"test", "testing", "eval", "evaluation"}};
    if (strlen(split) == n && memcmp(name, split, n) == 0) return true;
    for (int i = 0; i < 3; i++)
        for (int k = 1; k < 4 && strcmp(split, ALIAS[i][0]) == 0 && ALIAS[i][k]; k++)
            if (strlen(ALIAS[i][k]) == n && memcmp(name, ALIAS[i][k], n) == 0) return true;
    return false;
}

/* 路径里有一段（以 / . - _ 隔开）是划分的名字；有配置时另有一级文件夹是它。 */
static bool by_convention(const Pick *p, const char *name, const void *ctx) {
    (void)ctx;
    bool split = false, config = !p->s->config;
    for (const char *q = name; *q;) {
        size_t n = strcspn(q, "/.-_"), dir = strcspn(q, "/");
        bool start = q == name || q[-1] == '/';
        split = split || is_split(q, n, p->s->split);
        config = config || (start && q[dir] == '/' && strlen(p->s->config) == dir &&
                            memcmp(q, p->s->config, dir) == 0);
        q += n;
        q += *q != '\0';
    }
    return split && config;
}

/* ---- README 的 configs ---- */

static bool match_glob(const char *pattern, const char *name) {
    return fnmatch(pattern, name, strstr(pattern, "**") ? 0 : FNM_PATHNAME) == 0;
}

/* ctx 是写法：一个 glob，或几个的列表。 */
static bool by_pattern(const Pick *p, const char *name, const void *ctx) {
    const YamlNode *v = ctx;
    (void)p;
    if (v->kind != YAML_LIST) return v->text && match_glob(v->text, name);
    for (size_t i = 0; i < v->n; i++)
        if (v->items[i]->text && match_glob(v->items[i]->text, name)) return true;
    return false;
}

static const char *text_of(const YamlNode *map, const char *key) {
    const YamlNode *v = yaml_get(map, key);
    return v ? v->text : NULL;
}

/* configs 里的那个配置；没写配置时是标了 default 的、名叫 default 的、或唯一的。 */
static const YamlNode *find_config(const YamlNode *configs, const char *want) {
    const YamlNode *found = configs->n == 1 && !want ? configs->items[0] : NULL;
    for (size_t i = 0; i < configs->n; i++) {
        const char *name = text_of(configs->items[i], "config_name");
        const YamlNode *mark = yaml_get(configs->items[i], "default");
        if (want ? name && strcmp(name, want) == 0
                 : (mark && mark->boolean) || (!found && name && strcmp(name, "default") == 0))
            found = configs->items[i];
    }
    return found;
}

/* 配置的 data_files: [{split, path}]，或 {划分: 路径}，或一个路径（train）。 */
static const YamlNode *find_pattern(const YamlNode *config, const char *split) {
    const YamlNode *files = yaml_get(config, "data_files");
    if (!files) return NULL;
    if (files->kind == YAML_MAP) return yaml_get(files, split);
    if (files->kind != YAML_LIST) return strcmp(split, "train") == 0 ? files : NULL;
    for (size_t i = 0; i < files->n; i++) {
        const char *name = text_of(files->items[i], "split");
        if (name && strcmp(name, split) == 0) return yaml_get(files->items[i], "path");
    }
    return NULL;
}

/* 取得 README.md，返回开头 --- 之间的 YAML；没有、读不懂都为 NULL（那就按惯例）。 */
static bool read_front_matter(Pick *p, YamlNode **out, Err *e) {
    HubRepo r = *p->r;
    HubFile file;
    const json_t *v = NULL;
    *out = NULL;
    for (size_t i = 0; i < json_array_size(p->list) && !v; i++) {
        const char *name = file_name(json_array_get(p->list, i));
        if (name && strcmp(name, "README.md") == 0) v = json_array_get(p->list, i);
    }
    if (!v) return true;
    r.files = &file;
    r.n_files = 1;
    if (!hub_read_file(&r, p->a, "README.md", v, &file, e) || !hub_fetch_all(&r, p->a, e)) return false;
    size_t len;
    const char *path = hub_blob_path(&r, p->a, file.etag, "", e);
    char *text = path ? file_read(p->a, path, README_MAX, &len, e) : NULL, *end;
    if (!text) return false;
    if (!str_starts(text, "---\n") || !(end = strstr(text + 4, "\n---"))) return true;
    Err why = {0};
    *out = yaml_parse(p->a, "README.md", text + 4, (size_t)(end + 1 - text - 4), &why);
    return true;
}

static bool pick_by_readme(Pick *p, Err *e) {
    YamlNode *head = NULL;
    if (!read_front_matter(p, &head, e)) return false;
    const YamlNode *configs = head ? yaml_get(head, "configs") : NULL;
    const YamlNode *config = configs && configs->kind == YAML_LIST ? find_config(configs, p->s->config) : NULL;
    const YamlNode *pattern = config ? find_pattern(config, p->s->split) : NULL;
    return !pattern || pick(p, by_pattern, pattern, e);
}

/* ---- 自动转换的 Parquet：配置/划分/0000.parquet ---- */

static bool by_folder(const Pick *p, const char *name, const void *ctx) {
    const char *config = p->s->config ? p->s->config : "default", *split = ctx;
    size_t n = strlen(config), m = strlen(split);
    return strncmp(name, config, n) == 0 && name[n] == '/' && strncmp(name + n + 1, split, m) == 0 &&
           name[n + 1 + m] == '/' && isdigit((unsigned char)name[n + 2 + m]);
}

/* ---- 取得 ---- */

static bool from_revision(HubRepo *r, Arena *a, const HubSplit *s, bool converted, Err *e) {
    json_t *root = hub_ask(r, a, e);
    Pick p = {.r = r, .a = a, .s = s, .list = json_object_get(root, "siblings")};
    bool ok = root != NULL;
    if (ok && converted)
        ok = pick(&p, by_folder, s->split, e);
    else if (ok)
        ok = pick_by_readme(&p, e) && (r->n_files || pick(&p, by_convention, NULL, e));
    json_decref(root);
    return ok;
}

bool hub_check_split(const HubSplit *s, Err *e) {
    const char *slash = strchr(s->id, '/');
    bool ok = hub_safe_path(s->id) && strlen(s->id) <= 96 && (!slash || !strchr(slash + 1, '/')) &&
              hub_safe_path(s->split) && !strchr(s->split, '/') && (!s->config || hub_safe_path(s->config)) &&
              (!s->revision || hub_safe_revision(s->revision));
    return ok || err_set(e, ERR_CONFIG, "数据集 '%s' 的名字、配置、划分或版本不合规矩", s->id);
}

static bool not_found(const HubSplit *s, Err *e) {
    return err_set(e, ERR_MISSING, "Hub 的数据集 %s%s%s 里找不到划分 %s 的文件（JSONL、JSON、CSV、Parquet）", s->id,
                   s->config ? " / " : "", s->config ? s->config : "", s->split);
}

bool hub_dataset(const HubOptions *o, Arena *a, const HubSplit *s, HubSplitFiles *out, Err *e) {
    HubRepo r = {.o = o, .dataset = true, .id = s->id, .revision = s->revision ? s->revision : "main"};
    if (!hub_check_split(s, e) || !hub_set_root(&r, a, e)) return false;
    if (o->offline)
        return err_set(e, ERR_MISSING, "HF_HUB_OFFLINE=1，不能从 Hub 取得数据集 %s", s->id);
    if (!from_revision(&r, a, s, false, e)) return false;
    if (!r.n_files && !s->revision) { /* 指定了版本就不用自动转换的：它是别的版本 */
        Err why = {0};
        r.revision = CONVERTED;
        if (!from_revision(&r, a, s, true, &why) && why.code != ERR_MISSING) {
            if (e) *e = why;
            return false;
        }
    }
    if (!r.n_files) return not_found(s, e);
    if (!hub_fetch_all(&r, a, e) || !(out->paths = ARENA_ARRAY(a, const char *, r.n_files, e))) return false;
    const char *dir = hub_snapshot_dir(&r, a, e);
    for (out->n = 0; dir && out->n < r.n_files; out->n++)
        if (!(out->paths[out->n] = file_join(a, dir, r.files[out->n].name, e))) return false;
    out->commit = r.commit;
    out->from = r.revision;
    return dir != NULL;
}
