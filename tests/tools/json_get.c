/* json_get — 供端到端脚本取 JSON 里的值
 * 用法: json_get 文件 [点号路径]。整个文件必须恰好是一个合法的 JSON 值；没有路径时只做检查。
 * 路径里的 * 表示第一个成员。字符串原样打印，数打印 17 位有效数字，数组与对象打印元素数。取不到退出码 1。 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/json.h"

static void print_value(const json_t *v) {
    switch (json_typeof(v)) {
    case JSON_STRING: puts(json_string_value(v)); break;
    case JSON_INTEGER: printf("%lld\n", (long long)json_integer_value(v)); break;
    case JSON_REAL: printf("%.17g\n", json_real_value(v)); break;
    case JSON_TRUE: puts("true"); break;
    case JSON_FALSE: puts("false"); break;
    case JSON_NULL: puts("null"); break;
    case JSON_ARRAY: printf("%zu\n", json_array_size(v)); break;
    case JSON_OBJECT: printf("%zu\n", json_object_size(v)); break;
    }
}

static const json_t *member(const json_t *v, const char *key) {
    if (json_is_array(v)) return json_array_get(v, (size_t)strtoul(key, NULL, 10));
    if (strcmp(key, "*") != 0) return json_object_get(v, key);
    return json_object_iter_value(json_object_iter((json_t *)(uintptr_t)v));
}

int main(int argc, char **argv) {
    Err e = {0};
    json_t *root = argc == 2 || argc == 3 ? json_load(argv[1], &e) : NULL;
    if (!root) {
        fprintf(stderr, "%s\n", argc < 2 ? "用法: json_get 文件 [点号路径]" : e.msg);
        return 2;
    }
    const json_t *v = root;
    char *path = argc == 3 ? argv[2] : NULL;
    for (char *save = NULL, *key = path ? strtok_r(path, ".", &save) : NULL; key && v;
         key = strtok_r(NULL, ".", &save))
        v = member(v, key);
    int rc = v ? 0 : 1;
    if (v && path) print_value(v);
    json_decref(root);
    return rc;
}
