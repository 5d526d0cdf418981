/* yaml — YAML 节点树的实现（libyaml 的事件接口）
 * 递归下降：一个事件一个节点，深度与节点数在读到时就检查，因而不会先建一棵巨树再拒绝它。
 * 不变式：树中所有指针归调用者的 Arena；字符串不含 NUL。 */
#include "io/yaml.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "io/file.h"

#define DEPTH_MAX 64
#define NODES_MAX 100000
#define BYTES_MAX ((size_t)8 << 20)

/* 读入期间的节点：子节点先串成链表，收尾时再排成数组。 */
typedef struct Item Item;
struct Item {
    YamlNode node; /* 须为首个成员 */
    Item *next;
    size_t order; /* 读到的次序 */
    const char *key;
    int key_line;
    bool dropped; /* 任务文件里被后面同名的键取代 */
};

typedef struct Reader {
    yaml_parser_t parser;
    Arena *arena;
    const char *name;
    const char *text;
    size_t len, n_nodes;
    bool task; /* 允许 !function 与核心类型标签（!!null 等） */
    Err *e;
} Reader;

static Item *read_node(Reader *r, yaml_event_t *ev, int depth);

static int line_of(const yaml_mark_t *m) {
    return (int)m->line + 1;
}

static void *fail(Reader *r, ErrCode code, int line, const char *what) {
    err_set(r->e, code, "%s:%d: %s", r->name, line, what);
    return NULL;
}

/* 字节偏移所在的行（读取层的错误只给偏移）。 */
static int line_at(const Reader *r, size_t offset) {
    int line = 1;
    for (size_t i = 0; i < offset && i < r->len; i++) line += r->text[i] == '\n';
    return line;
}

static bool parser_failed(Reader *r) {
    const yaml_parser_t *p = &r->parser;
    const char *what = p->problem ? p->problem : "未知原因";
    if (p->error == YAML_MEMORY_ERROR)
        return err_set(r->e, ERR_MEMORY, "%s: 内存不足", r->name);
    if (p->error == YAML_READER_ERROR)
        return err_set(r->e, ERR_CONFIG, "%s:%d: 不是合法的 UTF-8 文本（%s）", r->name,
                       line_at(r, p->problem_offset), what);
    return err_set(r->e, ERR_CONFIG, "%s:%d:%d: YAML 语法错误（%s%s%s）", r->name,
                   line_of(&p->problem_mark), (int)p->problem_mark.column + 1,
                   p->context ? p->context : "", p->context ? "，" : "", what);
}

static bool next_event(Reader *r, yaml_event_t *ev) {
    return yaml_parser_parse(&r->parser, ev) ? true : parser_failed(r);
}

static bool one_of(const char *s, const char *const *names) {
    for (; *names; names++)
        if (strcmp(s, *names) == 0) return true;
    return false;
}

static const char *skip_sign(const char *s) {
    return *s == '-' || *s == '+' ? s + 1 : s;
}

/* 进制 base 的整数：符合写法返回 1，不是整数返回 0，超出 64 位返回 -1。 */
static int scan_int(const char *s, int64_t *out) {
    int base = 10;
    const char *digits = skip_sign(s), *set = "0123456789";
    if (strncmp(s, "0x", 2) == 0) base = 16, digits = s + 2, set = "0123456789abcdefABCDEF";
    if (strncmp(s, "0o", 2) == 0) base = 8, digits = s + 2, set = "01234567";
    if (!*digits || digits[strspn(digits, set)]) return 0;
    errno = 0;
    long long v = strtoll(base == 10 ? s : digits, NULL, base);
    if (errno == ERANGE) return -1;
    *out = v;
    return 1;
}

/* 实数的写法：符号? (数字+ (. 数字*)? | . 数字+) ([eE] 符号? 数字+)?。 */
static bool looks_real(const char *s) {
    const char *digit = "0123456789";
    s = skip_sign(s);
    size_t whole = strspn(s, digit), frac = 0;
    s += whole;
    if (*s == '.') {
        frac = strspn(++s, digit);
        s += frac;
    }
    if (whole + frac == 0) return false;
    if (*s == 'e' || *s == 'E') {
        s = skip_sign(s + 1);
        size_t n = strspn(s, digit);
        if (n == 0) return false;
        s += n;
    }
    return *s == '\0';
}

/* 按 YAML 1.2 core 规则给未加引号的标量定型。返回: 数值超界时为错误说明，否则 NULL。 */
static const char *resolve(YamlNode *v) {
    static const char *const NULLS[] = {"", "~", "null", "Null", "NULL", NULL};
    static const char *const TRUES[] = {"true", "True", "TRUE", NULL};
    static const char *const FALSES[] = {"false", "False", "FALSE", NULL};
    static const char *const INFS[] = {".inf", ".Inf", ".INF", NULL};
    static const char *const NANS[] = {".nan", ".NaN", ".NAN", NULL};
    const char *s = v->text;
    v->kind = YAML_STR;
    if (one_of(s, NULLS)) {
        v->kind = YAML_NULL;
    } else if (one_of(s, TRUES) || one_of(s, FALSES)) {
        v->kind = YAML_BOOL;
        v->boolean = one_of(s, TRUES);
    } else if (one_of(skip_sign(s), INFS)) {
        v->kind = YAML_FLOAT;
        v->number = *s == '-' ? -INFINITY : INFINITY;
    } else if (one_of(s, NANS)) {
        v->kind = YAML_FLOAT;
        v->number = NAN;
    } else {
        int is_int = scan_int(s, &v->integer);
        if (is_int < 0) return "整数超出 64 位范围；若是文字请加引号";
        if (is_int) {
            v->kind = YAML_INT;
            v->number = (double)v->integer;
        } else if (looks_real(s)) {
            v->kind = YAML_FLOAT;
            v->number = strtod(s, NULL);
            if (isinf(v->number)) return "实数超出双精度范围；若是文字请加引号";
        }
    }
    return NULL;
}

static Item *new_item(Reader *r, YamlKind kind, int line) {
    if (++r->n_nodes > NODES_MAX) return fail(r, ERR_CONFIG, line, "节点数超过上限 100000");
    Item *it = ARENA_NEW(r->arena, Item, r->e);
    if (!it) return NULL;
    it->order = r->n_nodes;
    it->node.kind = kind;
    it->node.file = r->name;
    it->node.line = line;
    return it;
}

static bool is_function(const Reader *r, const yaml_event_t *ev) {
    const yaml_char_t *tag = ev->data.scalar.tag;
    return r->task && tag && strcmp((const char *)tag, "!function") == 0;
}

/* 核心类型标签（!!int 等）要求的类型；不是或这里不收时为 -1。 */
static int tag_kind(const Reader *r, const yaml_char_t *tag) {
    static const char *const NAMES[] = {"null", "bool", "int", "float", "str", "seq", "map"};
    static const char PREFIX[] = "tag:yaml.org,2002:";
    const char *s = (const char *)tag;
    if (!r->task || !s || strncmp(s, PREFIX, sizeof PREFIX - 1) != 0) return -1;
    for (int i = 0; i < (int)(sizeof NAMES / sizeof *NAMES); i++)
        if (strcmp(s + sizeof PREFIX - 1, NAMES[i]) == 0) return i;
    return -1;
}

/* 按标签定型：!!null 不看原文（同 PyYAML），其余的原文须是那种写法。返回: 不符时的说明，否则 NULL。 */
static const char *apply_tag(YamlNode *v, YamlKind want) {
    if (want == YAML_NULL || want == YAML_STR) {
        v->kind = want;
        return NULL;
    }
    const char *bad = resolve(v);
    if (bad) return bad;
    if (want == YAML_FLOAT && v->kind == YAML_INT) v->kind = YAML_FLOAT;
    return v->kind == want ? NULL : "与它的类型标签（!!）不符";
}

/* 标量的文本（复制到 Arena）；含 NUL 或带不收的标签、锚点时报错。 */
static const char *scalar_text(Reader *r, const yaml_event_t *ev) {
    int line = line_of(&ev->start_mark);
    const char *s = (const char *)ev->data.scalar.value;
    if (ev->data.scalar.anchor) return fail(r, ERR_CONFIG, line, "不支持锚点（&）");
    if (ev->data.scalar.tag && !is_function(r, ev) && tag_kind(r, ev->data.scalar.tag) < 0)
        return fail(r, ERR_CONFIG, line, "不支持类型标签（!）");
    if (memchr(s, 0, ev->data.scalar.length))
        return fail(r, ERR_CONFIG, line, "字符串中不允许 NUL 字符");
    return arena_strndup(r->arena, s, ev->data.scalar.length, r->e);
}

static Item *read_scalar(Reader *r, const yaml_event_t *ev) {
    Item *it = new_item(r, YAML_STR, line_of(&ev->start_mark));
    if (!it) return NULL;
    it->node.text = scalar_text(r, ev);
    if (!it->node.text) return NULL;
    it->node.function = is_function(r, ev);
    int tag = tag_kind(r, ev->data.scalar.tag);
    const char *bad = NULL;
    if (tag >= 0)
        bad = apply_tag(&it->node, (YamlKind)tag);
    else if (!it->node.function && ev->data.scalar.style == YAML_PLAIN_SCALAR_STYLE)
        bad = resolve(&it->node);
    if (!bad) return it;
    err_set(r->e, ERR_CONFIG, "%s:%d: \"%.80s\" %s", r->name, it->node.line, it->node.text, bad);
    return NULL;
}

static int by_key(const void *a, const void *b) {
    const Item *x = *(Item *const *)a, *y = *(Item *const *)b;
    int c = strcmp(x->key, y->key);
    return c ? c : (x->order > y->order) - (x->order < y->order);
}

/* 重复键：排序后比较相邻者（n log n，防恶意的大映射）。配置里是错误；任务文件里取后者，同 PyYAML。 */
static bool check_keys(Reader *r, Item *first, size_t n) {
    Item **sorted = malloc((n + 1) * sizeof *sorted);
    if (!sorted) return err_set(r->e, ERR_MEMORY, "%s: 内存不足", r->name);
    size_t i = 0;
    for (Item *it = first; it; it = it->next) sorted[i++] = it;
    qsort(sorted, n, sizeof *sorted, by_key);
    bool ok = true;
    for (i = 1; i < n && ok; i++) {
        if (strcmp(sorted[i - 1]->key, sorted[i]->key) != 0) continue;
        sorted[i - 1]->dropped = r->task;
        if (!r->task)
            ok = err_set(r->e, ERR_CONFIG, "%s:%d: 重复的键 \"%.80s\"（第 %d 行已有）", r->name,
                         sorted[i]->key_line, sorted[i]->key, sorted[i - 1]->key_line);
    }
    free(sorted);
    return ok;
}

/* 链表 → 数组。 */
static bool finish_children(Reader *r, YamlNode *v, Item *first) {
    v->items = ARENA_ARRAY(r->arena, YamlNode *, v->n, r->e);
    if (!v->items) return false;
    if (v->kind == YAML_MAP) {
        if (!check_keys(r, first, v->n)) return false;
        v->keys = ARENA_ARRAY(r->arena, const char *, v->n, r->e);
        if (!v->keys) return false;
    }
    v->n = 0;
    for (Item *it = first; it; it = it->next) {
        if (it->dropped) continue;
        if (v->keys) v->keys[v->n] = it->key;
        v->items[v->n++] = &it->node;
    }
    return true;
}

/* 读一个键。返回: 键的文本。 */
static const char *read_key(Reader *r, const yaml_event_t *ev) {
    if (ev->type != YAML_SCALAR_EVENT)
        return fail(r, ERR_CONFIG, line_of(&ev->start_mark), "键必须是标量");
    const char *key = scalar_text(r, ev);
    if (key && !*key) return fail(r, ERR_CONFIG, line_of(&ev->start_mark), "键不能为空");
    return key;
}

/* 读列表或映射的下一个子节点。返回: false 为出错；到结尾时 *child 为 NULL。 */
static bool read_child(Reader *r, YamlKind kind, int depth, Item **child) {
    yaml_event_t ev;
    *child = NULL;
    if (!next_event(r, &ev)) return false;
    if (ev.type == YAML_SEQUENCE_END_EVENT || ev.type == YAML_MAPPING_END_EVENT) {
        yaml_event_delete(&ev);
        return true;
    }
    const char *key = NULL;
    int key_line = line_of(&ev.start_mark);
    if (kind == YAML_MAP) {
        key = read_key(r, &ev);
        yaml_event_delete(&ev);
        if (!key || !next_event(r, &ev)) return false;
    }
    *child = read_node(r, &ev, depth + 1);
    yaml_event_delete(&ev);
    if (!*child) return false;
    (*child)->key = key;
    (*child)->key_line = key_line;
    return true;
}

static Item *read_collection(Reader *r, YamlKind kind, int line, int depth) {
    if (depth >= DEPTH_MAX) return fail(r, ERR_CONFIG, line, "嵌套超过 64 层");
    Item *it = new_item(r, kind, line), *first = NULL, **tail = &first;
    while (it) {
        Item *child;
        if (!read_child(r, kind, depth, &child)) return NULL;
        if (!child) break;
        *tail = child;
        tail = &child->next;
        it->node.n++;
    }
    return it && finish_children(r, &it->node, first) ? it : NULL;
}

static Item *read_node(Reader *r, yaml_event_t *ev, int depth) {
    int line = line_of(&ev->start_mark);
    bool map = ev->type == YAML_MAPPING_START_EVENT;
    if (ev->type == YAML_SCALAR_EVENT) return read_scalar(r, ev);
    if (ev->type == YAML_ALIAS_EVENT) return fail(r, ERR_CONFIG, line, "不支持别名（*）");
    if (!map && ev->type != YAML_SEQUENCE_START_EVENT)
        return fail(r, ERR_CONFIG, line, "意外的内容");
    if (map ? ev->data.mapping_start.anchor : ev->data.sequence_start.anchor)
        return fail(r, ERR_CONFIG, line, "不支持锚点（&）");
    const yaml_char_t *tag = map ? ev->data.mapping_start.tag : ev->data.sequence_start.tag;
    if (tag && tag_kind(r, tag) != (int)(map ? YAML_MAP : YAML_LIST))
        return fail(r, ERR_CONFIG, line, "不支持类型标签（!）");
    return read_collection(r, map ? YAML_MAP : YAML_LIST, line, depth);
}

/* 读到下一个关心的事件：跳过流开始。 */
static YamlNode *read_stream(Reader *r) {
    yaml_event_t ev;
    YamlNode *root = NULL;
    bool ok;
    while ((ok = next_event(r, &ev))) {
        yaml_event_type_t type = ev.type;
        int line = line_of(&ev.start_mark);
        if (type == YAML_DOCUMENT_START_EVENT && root)
            ok = fail(r, ERR_CONFIG, line, "一个文件只能有一个文档（---）") != NULL;
        else if (type != YAML_STREAM_START_EVENT && type != YAML_STREAM_END_EVENT &&
                 type != YAML_DOCUMENT_START_EVENT && type != YAML_DOCUMENT_END_EVENT) {
            Item *it = read_node(r, &ev, 0);
            root = it ? &it->node : NULL;
            ok = root != NULL;
        }
        yaml_event_delete(&ev);
        if (!ok || type == YAML_STREAM_END_EVENT) break;
    }
    if (!ok) return NULL;
    if (root) return root;
    Item *empty = new_item(r, YAML_NULL, 1);
    if (empty) empty->node.text = "";
    return empty ? &empty->node : NULL;
}

/* 行首的 %TAG 指令。libyaml 逐个两两比较，几十万行就会卡住；标签本来也不支持。 */
static bool no_tag_directive(const char *name, const char *text, size_t len, Err *e) {
    int line = 1;
    for (const char *p = text, *end = text + len; p && p < end; line++) {
        if (end - p >= 4 && memcmp(p, "%TAG", 4) == 0)
            return err_set(e, ERR_CONFIG, "%s:%d: 不支持 %%TAG 指令", name, line);
        p = memchr(p, '\n', (size_t)(end - p));
        if (p) p++;
    }
    return true;
}

static YamlNode *parse(Arena *a, const char *name, const char *text, size_t len, bool task, Err *e) {
    if (len > BYTES_MAX) {
        err_set(e, ERR_CONFIG, "%s: %zu 字节，超过 YAML 的上限 8 MB", name, len);
        return NULL;
    }
    if (len >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) text += 3, len -= 3; /* BOM */
    if (!no_tag_directive(name, text, len, e)) return NULL;
    Reader r = {.arena = a, .text = text, .len = len, .task = task, .e = e};
    r.name = arena_strdup(a, name, e);
    if (!r.name) return NULL;
    if (!yaml_parser_initialize(&r.parser)) {
        err_set(e, ERR_MEMORY, "%s: 内存不足", name);
        return NULL;
    }
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, len);
    YamlNode *root = read_stream(&r);
    yaml_parser_delete(&r.parser);
    return root;
}

YamlNode *yaml_parse(Arena *a, const char *name, const char *text, size_t len, Err *e) {
    return parse(a, name, text, len, false, e);
}

static YamlNode *load(Arena *a, const char *path, bool task, Err *e) {
    size_t len;
    char *text = file_read(a, path, BYTES_MAX, &len, e);
    return text ? parse(a, path, text, len, task, e) : NULL;
}

YamlNode *yaml_load(Arena *a, const char *path, Err *e) {
    return load(a, path, false, e);
}

YamlNode *yaml_load_task(Arena *a, const char *path, Err *e) {
    return load(a, path, true, e);
}

YamlNode *yaml_parse_value(Arena *a, const char *text, const char *origin, Err *e) {
    return yaml_parse(a, origin, text, strlen(text), e);
}

static YamlNode *get_n(const YamlNode *node, const char *key, size_t len) {
    if (!node || node->kind != YAML_MAP) return NULL;
    for (size_t i = 0; i < node->n; i++)
        if (strlen(node->keys[i]) == len && memcmp(node->keys[i], key, len) == 0)
            return node->items[i];
    return NULL;
}

YamlNode *yaml_get(const YamlNode *node, const char *key) {
    return get_n(node, key, strlen(key));
}

YamlNode *yaml_path(const YamlNode *node, const char *path) {
    for (;;) {
        size_t n = strcspn(path, ".");
        YamlNode *child = get_n(node, path, n);
        if (!child || path[n] == '\0') return child;
        node = child;
        path += n + 1;
    }
}

const char *yaml_kind_name(YamlKind kind) {
    static const char *const NAMES[] = {"空值", "布尔", "整数", "实数", "字符串", "列表", "映射"};
    return (unsigned)kind < sizeof NAMES / sizeof *NAMES ? NAMES[kind] : "?";
}
