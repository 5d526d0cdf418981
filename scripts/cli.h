/* cli — 命令行标志的表驱动解析
 * 每个命令给出一张标志表；解析、--help、「是否想写」都由它生成。用法错误退出码为 2。 */
#ifndef PTQ_SCRIPTS_CLI_H
#define PTQ_SCRIPTS_CLI_H
#include <stddef.h>

#include "base/err.h"

typedef struct CliList {
    const char **items;
    size_t n;
} CliList;

typedef enum { CLI_STR, CLI_BOOL, CLI_LIST } CliType;

typedef struct CliFlag {
    const char *name; /* "--model"；NULL 结束 */
    CliType type;
    void *target;      /* const char** / bool* / CliList*（items 须由调用者备好 argc 个位置） */
    const char *value; /* --help 中值的写法，如 "名字"；布尔为 NULL */
    const char *help;
    bool required;
} CliFlag;

typedef struct CliSpec {
    const char *command, *about; /* about: 一句话 */
    const CliFlag *flags;
    const char *positional;      /* 位置参数的写法；NULL 表示不收 */
    CliList *rest;               /* 位置参数 */
    const char *epilog;          /* --help 末尾的例子，可为 NULL */
} CliSpec;

typedef enum { CLI_GO, CLI_DONE, CLI_BAD } CliResult;

/* 解析 argv[1..]。接受 --flag 值 与 --flag=值，-h 与 --help。
 * 返回: CLI_DONE 已打印帮助（退出码 0）；CLI_BAD 已打印错误（退出码 2）。 */
CliResult cli_parse(const CliSpec *s, int argc, char **argv);
/* 打印错误并返回退出码。 */
int cli_fail(const Err *e);
/* 可复制的命令行：各参数按 shell 规则加引号。返回: malloc 的字符串，内存不足为 NULL。 */
char *cli_command_line(const char *program, int argc, char **argv);
/* "key=值"，值写成 YAML 的单引号字符串（任何路径都安全）。返回: malloc 的字符串。 */
char *cli_quoted_override(const char *key, const char *value);
#endif
