/* config_schema — 选项表的用法：查键、检查值、填结构体、列出
 * 一个设置的全部知识（类型、范围、默认值、说明）只在它的 Option 里；本模块解释 Option，
 * 让配置检查、--help、文档和结果都由同一张表生成。 */
#ifndef PTQ_CONFIG_SCHEMA_H
#define PTQ_CONFIG_SCHEMA_H
#include "base/option.h"
#include "base/str.h"
#include "io/json.h"
#include "io/yaml.h"
#include "methods/base.h"

/* 五层配置，由低到高。 */
typedef enum { LAYER_BASE, LAYER_MODEL, LAYER_METHOD, LAYER_TRACK, LAYER_CLI } ConfigLayer;

/* 列表型设置（元素都是名字）。 */
extern const Option LIST_OPTIONS[];

/* 在表中找键；table 可为 NULL。返回: 没有则 NULL。 */
const Option *option_find(const Option *table, const char *key);
/* 类型的中文名（"整数" 等）与取值范围的说明（如 "2 到 8"、"symmetric | asymmetric"）追加到 out。 */
const char *option_type_name(const Option *o);
void option_describe_range(const Option *o, Str *out);
void option_describe_default(const Option *o, Str *out);
/* 检查一个值的类型与范围。错误: ERR_CONFIG，带 文件:行、键、说明。 */
bool option_check(const Option *o, const YamlNode *v, Err *e);
/* 按表把 merged 中的值（没有则默认值）填进结构体 dst；值须已检查过。 */
void option_fill(const Option *table, const YamlNode *merged, void *dst);
/* 结构体 src 中这一项的值 → JSON。 */
json_t *option_to_json(const Option *o, const void *src);

/* 一个值的出处："configs/methods/rtn.yaml:7"；命令行给的没有行号。写入 buf 并返回 buf。 */
char *schema_where(const YamlNode *v, char *buf, size_t cap);

/* 一个叶子在给定层、给定方法下的身份。 */
typedef enum {
    KEY_SETTING,  /* 生效的设置，进入合并结果 */
    KEY_IDENTITY, /* 本层的说明（name、library…），由 config 另行检查 */
    KEY_OTHER,    /* 别的方法的设置，出现在公共层（config、模型、轨道）：本次不用 */
} KeyClass;
/* 判断并检查一个叶子。错误: 未知键（附最近的名字）、本方法没有的设置（说明哪些方法有）、值不合法。 */
bool schema_check_leaf(ConfigLayer layer, const Method *method, const char *key, const YamlNode *v,
                       KeyClass *class_out, Err *e);
/* key 本身是否是某个叶子（而不是一段前缀）。 */
bool schema_is_leaf(ConfigLayer layer, const char *key);

/* 一个设置（"键=值"）可否用于方法 m：只有别的方法才有的键不可；m 为 NULL（没有登记的方法）恒可。 */
bool schema_applies(const char *setting, const Method *m);

/* 全部设置的 Markdown 表（docs/config.md 的主体由它生成）。 */
void schema_markdown(Str *out);
#endif
