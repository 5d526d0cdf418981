/* fuzz_yaml — YAML 解析器的模糊测试
 * 除不崩溃外还查：出错必有错误码；成功时树中每个节点的行号、文本、键都在。 */
#include <stdlib.h>

#include "io/yaml.h"

static void walk(const YamlNode *v) {
    bool inner = v->kind == YAML_LIST || v->kind == YAML_MAP;
    if (v->line < 1 || !v->file || inner != (v->text == NULL)) abort();
    for (size_t i = 0; i < v->n; i++) {
        if (v->kind == YAML_MAP && yaml_get(v, v->keys[i]) != v->items[i]) abort();
        walk(v->items[i]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Arena a = {0};
    Err e = {0};
    YamlNode *v = yaml_parse(&a, "fuzz", (const char *)data, size, &e);
    if (v)
        walk(v);
    else if (e.code == ERR_NONE)
        abort();
    arena_free(&a);
    return 0;
}
