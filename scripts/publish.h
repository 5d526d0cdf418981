/* publish — 汇总并写出排行榜（leaderboard 命令与 run_all 的结尾共用） */
#ifndef PTQ_SCRIPTS_PUBLISH_H
#define PTQ_SCRIPTS_PUBLISH_H
#include "base/err.h"

/* 读 results 下的结果，写 leaderboard.md、leaderboard.csv，画图到 plots（NULL 为不画），
 * quiet 为假时把简表打印到标准输出。 */
bool publish_leaderboard(const char *results, const char *plots, bool quiet, Err *e);
#endif
