/* json — JSON 文件的实现（jansson）
 * 读：映射文件后一次解析，超出 int64 的整数按实数读（HF 的 model_max_length 常是 1e30）。
 * 写：自己排版，使实数取能原样读回的最短写法，同样的值总是同样的字节。 */
#include "io/json.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"

#define JSON_LIMIT ((size_t)256 << 20)
#define SMALL_BYTES ((size_t)4 << 20) /* 不大于此的文件不估计内存 */
#define WEIGHT_LIMIT ((size_t)16 << 20) /* 逗号计 1、括号计 4；每 1 约占 40 至 70 字节 */
#define BIG_INTS_MAX 16 /* 一个文件中允许的超大整数个数 */

/* jansson 的词法器把内存不足当作语法错误，甚至不声不响地丢掉一个键，所以自己记下有没有分配失败过。 */
static _Thread_local bool out_of_memory;
static pthread_once_t hooked = PTHREAD_ONCE_INIT;

static void *noting_malloc(size_t bytes) {
    void *p = malloc(bytes);
    if (!p) out_of_memory = true;
    return p;
}
static void install_hook(void) {
    json_set_alloc_funcs(noting_malloc, free);
}

/* 中文说明；没有对应时用 jansson 的原文。 */
static const char *problem(const json_error_t *je) {
    switch (json_error_code(je)) {
    case json_error_stack_overflow: return "嵌套过深（上限 2048 层）";
    case json_error_premature_end_of_input: return "内容不完整，文件可能被截断";
    case json_error_end_of_input_expected: return "JSON 值之后还有多余的内容";
    case json_error_invalid_utf8: return "不是合法的 UTF-8";
    case json_error_duplicate_key: return "重复的键";
    case json_error_numeric_overflow: return "数值超出范围";
    case json_error_null_byte_in_key: return "键中含 NUL 字符";
    case json_error_invalid_syntax: return "语法错误";
    default: return "解析失败";
    }
}

/* 把 text 中结束于 end 的超大整数就地改写成等长的科学记数法，如 1000…（31 位）→ 1.000…e30。
 * 返回: 该处不是整数（例如 1e400）或放不下时为 false。 */
static bool widen_integer(char *text, size_t len, size_t end) {
    size_t from = end;
    while (from > 0 && text[from - 1] >= '0' && text[from - 1] <= '9') from--;
    size_t digits = end - from;
    bool part = from > 0 && strchr(".eE+", text[from - 1]);
    if (from > 1 && text[from - 1] == '-') part = strchr("eE", text[from - 2]) != NULL;
    if (end > len || part || digits < 19 || digits > 300) return false;
    char tail[8];
    int n = snprintf(tail, sizeof tail, "e%zu", digits - 1);
    memmove(text + from + 2, text + from + 1, digits - 2); /* 末位被舍去 */
    text[from + 1] = '.';
    memcpy(text + end - n, tail, (size_t)n);
    return true;
}

/* text 含超大整数：复制一份，逐个改写后重新解析。 */
static json_t *parse_wide(const char *text, size_t len, size_t flags, json_error_t *je) {
    char *copy = malloc(len);
    if (!copy) return NULL;
    memcpy(copy, text, len);
    json_t *v = NULL;
    for (int i = 0; i < BIG_INTS_MAX && !v; i++) {
        if (json_error_code(je) != json_error_numeric_overflow || je->position < 0 ||
            !widen_integer(copy, len, (size_t)je->position))
            break;
        *je = (json_error_t){0};
        v = json_loadb(copy, len, flags, je);
    }
    free(copy);
    return v;
}

/* 解析后的内存会不会过大：一个空数组在文件里 3 字节，在内存里一百多字节。 */
static bool too_many_values(const char *p, size_t len) {
    size_t weight = 0;
    for (size_t i = 0; i < len; i++)
        weight += (size_t)(p[i] == ',') + 4 * (size_t)(p[i] == '[' || p[i] == '{');
    return weight > WEIGHT_LIMIT;
}

json_t *json_parse(const char *name, const void *text, size_t len, Err *e) {
    const size_t flags = JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY;
    const char *p = text;
    if (len == 0) {
        err_set(e, ERR_FORMAT, "%s: 内容为空，不是 JSON", name);
        return NULL;
    }
    if (len > JSON_LIMIT) {
        err_set(e, ERR_FORMAT, "%s: %zu 字节，超过 JSON 的上限 %zu 字节", name, len, JSON_LIMIT);
        return NULL;
    }
    if (len > SMALL_BYTES && too_many_values(p, len)) {
        err_set(e, ERR_FORMAT, "%s: JSON 中的值过多，解析需要的内存超过上限", name);
        return NULL;
    }
    if (len >= 3 && memcmp(p, "\xEF\xBB\xBF", 3) == 0) p += 3, len -= 3; /* BOM */
    pthread_once(&hooked, install_hook);
    out_of_memory = false;
    json_error_t je = {0}; /* jansson 在最早的内存不足时不写错误码 */
    json_t *v = json_loadb(p, len, flags, &je);
    if (!v && json_error_code(&je) == json_error_numeric_overflow)
        v = parse_wide(p, len, flags, &je);
    if (v && !out_of_memory) return v;
    json_decref(v);
    enum json_error_code code = json_error_code(&je);
    if (out_of_memory || code == json_error_out_of_memory || code == json_error_unknown)
        err_set(e, ERR_MEMORY, "%s: 解析 JSON 时内存不足", name);
    else
        err_set(e, ERR_FORMAT, "%s:%d:%d: %s（%s）", name, je.line, je.column, problem(&je),
                je.text);
    return NULL;
}

json_t *json_load(const char *path, Err *e) {
    FileMap m;
    if (!file_map(&m, path, e)) return NULL;
    json_t *v = json_parse(path, m.data, m.size, e);
    file_unmap(&m);
    return v;
}

static void add_indent(Str *s, int depth) {
    str_add(s, "\n");
    for (int i = 0; i < depth; i++) str_add(s, "  ");
}

/* 能原样读回的最短十进制写法；整值也带小数点或指数，读回仍是实数。 */
static void add_real(Str *s, double v) {
    char buf[40];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(buf, sizeof buf, "%.*g", digits, v);
        if (strtod(buf, NULL) == v) break;
    }
    str_add(s, buf);
    if (!strpbrk(buf, ".e")) str_add(s, ".0");
}

static void add_string(Str *s, const char *text, size_t len) {
    str_add(s, "\"");
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        const char *named = c == '\n' ? "\\n" : c == '\t' ? "\\t" : c == '\r' ? "\\r" : NULL;
        if (named)
            str_add(s, named);
        else if (c == '"' || c == '\\')
            str_addf(s, "\\%c", c);
        else if (c < 0x20 || c == 0x7F)
            str_addf(s, "\\u%04x", c);
        else
            str_addn(s, text + i, 1);
    }
    str_add(s, "\"");
}

/* 元素全是数（如逐窗 NLL）的数组排在一行。 */
static bool all_numbers(const json_t *v) {
    for (size_t i = 0; i < json_array_size(v); i++)
        if (!json_is_number(json_array_get(v, i))) return false;
    return true;
}

static void add_value(Str *s, const json_t *v, int depth);

static void add_array(Str *s, const json_t *v, int depth) {
    bool flat = all_numbers(v);
    str_add(s, "[");
    for (size_t i = 0; i < json_array_size(v); i++) {
        if (i) str_add(s, flat ? ", " : ",");
        if (!flat) add_indent(s, depth + 1);
        add_value(s, json_array_get(v, i), depth + 1);
    }
    if (!flat) add_indent(s, depth);
    str_add(s, "]");
}

static void add_object(Str *s, const json_t *v, int depth) {
    const char *sep = "";
    str_add(s, "{");
    json_t *o = (json_t *)(uintptr_t)v; /* 迭代器的签名不带 const，但不修改对象 */
    for (void *it = json_object_iter(o); it; it = json_object_iter_next(o, it)) {
        const char *key = json_object_iter_key(it);
        str_add(s, sep);
        add_indent(s, depth + 1);
        add_string(s, key, strlen(key));
        str_add(s, ": ");
        add_value(s, json_object_iter_value(it), depth + 1);
        sep = ",";
    }
    if (*sep) add_indent(s, depth);
    str_add(s, "}");
}

static void add_value(Str *s, const json_t *v, int depth) {
    switch (json_typeof(v)) {
    case JSON_OBJECT: add_object(s, v, depth); break;
    case JSON_ARRAY: add_array(s, v, depth); break;
    case JSON_STRING: add_string(s, json_string_value(v), json_string_length(v)); break;
    case JSON_INTEGER: str_addf(s, "%lld", (long long)json_integer_value(v)); break;
    case JSON_REAL: add_real(s, json_real_value(v)); break;
    case JSON_TRUE: str_add(s, "true"); break;
    case JSON_FALSE: str_add(s, "false"); break;
    case JSON_NULL: str_add(s, "null"); break;
    }
}

void json_text(Str *out, const json_t *v) {
    add_value(out, v, 0);
    str_add(out, "\n");
}

bool json_save(const char *path, const json_t *v, Err *e) {
    Str s = {0};
    json_text(&s, v);
    bool ok = s.failed ? err_set(e, ERR_MEMORY, "写 %s 时内存不足", path)
                       : file_write_atomic(path, s.data, s.len, e);
    str_free(&s);
    return ok;
}

static const char *type_name(const json_t *v) {
    static const char *const NAMES[] = {"对象", "数组", "字符串", "整数",
                                        "实数", "true", "false",  "null"};
    return NAMES[json_typeof(v)];
}

static bool wrong_type(const char *name, const char *key, const char *want, const json_t *v,
                       Err *e) {
    return err_set(e, ERR_FORMAT, "%s: \"%s\" 应为%s，实为%s", name, key, want, type_name(v));
}

/* 键的值；缺失或 null 都算没有。 */
static json_t *field(const json_t *o, const char *key) {
    json_t *v = json_object_get(o, key);
    return json_is_null(v) ? NULL : v;
}

static bool int_in(const json_t *v, const char *name, const char *key, int64_t lo, int64_t hi,
                   int64_t *out, Err *e) {
    if (!json_is_integer(v)) return wrong_type(name, key, "整数", v, e);
    int64_t i = json_integer_value(v);
    if (i < lo || i > hi)
        return err_set(e, ERR_FORMAT, "%s: \"%s\" 为 %lld，超出范围 [%lld, %lld]", name, key,
                       (long long)i, (long long)lo, (long long)hi);
    *out = i;
    return true;
}

bool json_get_int(const json_t *o, const char *name, const char *key, int64_t lo, int64_t hi,
                  int64_t *out, Err *e) {
    const json_t *v = field(o, key);
    if (!v) return err_set(e, ERR_FORMAT, "%s: 缺少整数 \"%s\"", name, key);
    return int_in(v, name, key, lo, hi, out, e);
}

bool json_get_int_or(const json_t *o, const char *name, const char *key, int64_t def, int64_t lo,
                     int64_t hi, int64_t *out, Err *e) {
    const json_t *v = field(o, key);
    if (v) return int_in(v, name, key, lo, hi, out, e);
    *out = def;
    return true;
}

bool json_get_num_or(const json_t *o, const char *name, const char *key, double def, double *out,
                     Err *e) {
    const json_t *v = field(o, key);
    if (v && !json_is_number(v)) return wrong_type(name, key, "数", v, e);
    *out = v ? json_number_value(v) : def;
    return true;
}

bool json_get_bool_or(const json_t *o, const char *name, const char *key, bool def, bool *out,
                      Err *e) {
    const json_t *v = field(o, key);
    if (v && !json_is_boolean(v)) return wrong_type(name, key, " true 或 false", v, e);
    *out = v ? json_is_true(v) : def;
    return true;
}

bool json_get_str_or(const json_t *o, const char *name, const char *key, const char *def,
                     const char **out, Err *e) {
    const json_t *v = field(o, key);
    if (v && !json_is_string(v)) return wrong_type(name, key, "字符串", v, e);
    *out = v ? json_string_value(v) : def;
    return true;
}
