/* option — 选项表
 * 方法、模型、轨道与运行的每个设置都是表里的一行：键、类型、默认值、范围、中文说明。
 * 同一张表用于：检查 YAML（未知键、越界）、填结构体、打印 --help 与文档。 */
#ifndef PTQ_BASE_OPTION_H
#define PTQ_BASE_OPTION_H
#include <stddef.h>
#include <stdint.h>

typedef enum { OPTION_INT, OPTION_FLOAT, OPTION_BOOL, OPTION_ENUM, OPTION_STR } OptionType;

typedef struct Option {
    const char *key; /* 合并后配置中的点号路径，如 "weight.w_bits"；NULL 结束 */
    OptionType type;
    size_t offset;           /* 字段在结构体中的偏移。字段类型: int64_t / double / bool / int / const char* */
    double def, lo, hi;      /* INT、FLOAT、BOOL、ENUM（下标）的默认值与闭区间 */
    const char *def_str;     /* STR 的默认值（可为 NULL） */
    const char *const *names; /* ENUM 的取值，NULL 结尾 */
    const char *help;        /* 中文说明 */
} Option;

#define OPT_INT(S, f, key, def, lo, hi, help)                                                      \
    {key, OPTION_INT, offsetof(S, f), def, lo, hi, NULL, NULL, help}
#define OPT_FLOAT(S, f, key, def, lo, hi, help)                                                    \
    {key, OPTION_FLOAT, offsetof(S, f), def, lo, hi, NULL, NULL, help}
#define OPT_BOOL(S, f, key, def, help)                                                             \
    {key, OPTION_BOOL, offsetof(S, f), def, 0, 1, NULL, NULL, help}
#define OPT_ENUM(S, f, key, names, def, help)                                                      \
    {key, OPTION_ENUM, offsetof(S, f), def, 0, 0, NULL, names, help}
#define OPT_STR(S, f, key, def, help) {key, OPTION_STR, offsetof(S, f), 0, 0, 0, def, NULL, help}
#define OPT_END {NULL, OPTION_INT, 0, 0, 0, 0, NULL, NULL, NULL}
#endif
