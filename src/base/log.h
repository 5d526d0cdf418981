/* log — 控制台日志与进度
 * 每行以约定的 emoji 前缀开头，写到 stderr；stdout 只给用户索要的数据。
 * 颜色与进度重绘仅在终端；遵从 NO_COLOR 与 --quiet（只留 ⚠️ 与 ❌）。 */
#ifndef PTQ_BASE_LOG_H
#define PTQ_BASE_LOG_H
#include <stdint.h>

#include "base/err.h"

typedef enum {
    LOG_INFO,  /* 📋 信息、配置 */
    LOG_LOAD,  /* 📦 加载 */
    LOG_QUANT, /* ⚡ 量化 */
    LOG_EVAL,  /* 📊 评测、统计 */
    LOG_OK,    /* ✅ 成功 */
    LOG_FAIL,  /* ❌ 失败 */
    LOG_WARN,  /* ⚠️ 警告 */
    LOG_TIME   /* ⏱️ 时间 */
} LogKind;

void log_set_quiet(bool quiet);
/* 打印一行（自动换行、不含前缀）。多行文本每行都加前缀。 */
void log_line(LogKind kind, const char *fmt, ...) PTQ_PRINTF(2, 3);

/* 进度：终端上一行重绘，其他地方每 10 % 一行；带速度与剩余时间。 */
typedef struct Progress {
    LogKind kind;
    const char *what, *unit; /* 例如 "困惑度", "token" */
    int64_t total, done;     /* total 为 0 表示未知 */
    double started, last_draw;
    int last_tenth;
    bool drawn;
} Progress;
Progress progress_start(LogKind kind, const char *what, const char *unit, int64_t total);
void progress_step(Progress *p, int64_t done);
/* 结束：终端上清掉进度行。返回: 用时（秒）。 */
double progress_end(Progress *p);

/* 单调时钟（秒）。 */
double clock_seconds(void);

/* Ctrl-C：安装处理器后，第一次 SIGINT/SIGTERM 置标志（循环中检查，干净退出），第二次立即结束。 */
void interrupt_install(void);
bool interrupt_requested(void);
/* 若已请求中断则置 ERR_INTERRUPTED 并返回 false，否则返回 true。 */
bool interrupt_check(Err *e);
#endif
