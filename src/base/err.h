/* err — 错误值
 * 一切可失败的公共函数形如 bool f(..., Err *e)：成功返回 true；失败返回 false 并在 *e 中说明
 * 「什么错了、在哪里（文件:行 或 字节偏移）、怎么办」。不变式：返回 false 时 e->code != ERR_NONE。
 * 三类错误：外部输入 → Err；计算/设备 → Backend.err（粘滞）；程序自身缺陷 → CHECK 中止。 */
#ifndef PTQ_BASE_ERR_H
#define PTQ_BASE_ERR_H
#include <stdarg.h>
#include <stdbool.h>

typedef enum {
    ERR_NONE = 0,
    ERR_USAGE,       /* 命令行用法 */
    ERR_CONFIG,      /* 配置：未知键、越界、类型不符 */
    ERR_IO,          /* 打不开、读写失败、磁盘满 */
    ERR_FORMAT,      /* 文件内容不合规范 */
    ERR_MISSING,     /* 缺少模型、数据、张量 */
    ERR_UNSUPPORTED, /* 合法但本程序不支持（含「方法不支持 Track」） */
    ERR_MEMORY,      /* 内存不足 */
    ERR_NUMERIC,     /* NaN / Inf / 不收敛 */
    ERR_DEVICE,      /* 设备（GPU）错误 */
    ERR_INTERRUPTED  /* 被 Ctrl-C 中断 */
} ErrCode;

typedef struct Err {
    ErrCode code;
    char msg[1024];
} Err;

#if defined(__GNUC__)
#define PTQ_PRINTF(a, b) __attribute__((format(printf, a, b)))
#else
#define PTQ_PRINTF(a, b)
#endif

/* 设置错误（覆盖旧值）。参数: e 可为 NULL；fmt 为中文说明。返回: 恒为 false，便于 return err_set(...)。 */
bool err_set(Err *e, ErrCode code, const char *fmt, ...) PTQ_PRINTF(3, 4);

/* 在已有错误前加上下文：「前缀: 原消息」。返回: 恒为 false。 */
bool err_wrap(Err *e, const char *fmt, ...) PTQ_PRINTF(2, 3);

/* 错误码的英文短名（写入结果 JSON 的 status.code），如 "config"。 */
const char *err_code_name(ErrCode code);

/* 进程退出码：ERR_NONE → 0，ERR_USAGE → 2，ERR_INTERRUPTED → 130，其余 → 1。 */
int err_exit_code(ErrCode code);

/* 程序自身缺陷：打印文件:行并中止，发布版也保留。 */
#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) err_check_failed(__FILE__, __LINE__, #cond);                                  \
    } while (0)
_Noreturn void err_check_failed(const char *file, int line, const char *cond);
#endif
