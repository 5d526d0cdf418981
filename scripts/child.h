/* child — 以子进程运行本程序的另一个命令（run_all 的单元、run_one 的 fp16 基线）
 * 子进程自成进程组：终端的 Ctrl-C 只到父进程，由它转达一次；父进程被 kill -9 时子进程随之结束，不留孤儿。 */
#ifndef PTQ_SCRIPTS_CHILD_H
#define PTQ_SCRIPTS_CHILD_H
#include "base/err.h"

/* 运行 argv（argv[0] 只是显示的名字，程序恒为本程序），等它结束。
 * 返回: 退出码为 0。错误: 开不了子进程（memory）；被中断；被信号结束（SIGKILL 记为 memory）；其余退出码。 */
bool child_run(char *const *argv, Err *why);
#endif
