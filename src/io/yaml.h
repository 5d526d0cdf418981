/* yaml — YAML 文件（libyaml）→ 带位置的节点树
 * 标量按 YAML 1.2 core 规则定型；每个节点记得来自哪个文件哪一行，错误与 --dry_run 都用得到。
 * 拒绝: 重复键、别名与锚点、多文档、深度超过 64、节点超过 100000、非 UTF-8。 */
#ifndef PTQ_IO_YAML_H
#define PTQ_IO_YAML_H
#include <stdint.h>

#include "base/arena.h"

typedef enum {
    YAML_NULL, YAML_BOOL, YAML_INT, YAML_FLOAT, YAML_STR, YAML_LIST, YAML_MAP
} YamlKind;

typedef struct YamlNode YamlNode;
struct YamlNode {
    YamlKind kind;
    const char *text; /* 标量原文；列表与映射为 NULL */
    bool function;    /* 带 !function 标签的标量（只在 yaml_load_task 中），kind 为 YAML_STR */
    bool boolean;     /* YAML_BOOL */
    int64_t integer;  /* YAML_INT */
    double number;    /* YAML_FLOAT，YAML_INT 时亦填 */
    const char *file; /* 来源文件；--override 为 "命令行" */
    int line;         /* 从 1 数 */
    size_t n;         /* 子节点数 */
    YamlNode **items; /* 列表与映射的值 */
    const char **keys; /* 映射的键 */
};

YamlNode *yaml_load(Arena *a, const char *path, Err *e);
/* 同上，但允许标量带 !function 标签与 YAML 的核心类型标签 !!null、!!str、!!int…，重复的键取后者（评测框架的任务文件）。 */
YamlNode *yaml_load_task(Arena *a, const char *path, Err *e);
/* name 用于错误信息与 node->file。 */
YamlNode *yaml_parse(Arena *a, const char *name, const char *text, size_t len, Err *e);
/* 单个值（flow 形式，如 "4"、"true"、"[a, b]"），用于 --override。 */
YamlNode *yaml_parse_value(Arena *a, const char *text, const char *origin, Err *e);
/* 映射中键 key 的值；没有或 node 不是映射时为 NULL。 */
YamlNode *yaml_get(const YamlNode *node, const char *key);
/* 点号路径，如 "weight.w_bits"。 */
YamlNode *yaml_path(const YamlNode *node, const char *path);
const char *yaml_kind_name(YamlKind kind); /* 中文，如 "整数" */
#endif
