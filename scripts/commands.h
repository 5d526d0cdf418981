/* commands — 各子命令的入口
 * argv[0] 是子命令名；返回进程退出码：0 成功，2 用法错误，130 被中断，其余为 1。 */
#ifndef PTQ_SCRIPTS_COMMANDS_H
#define PTQ_SCRIPTS_COMMANDS_H

int cmd_run_one(int argc, char **argv);      /* 跑一个实验 */
int cmd_run_all(int argc, char **argv);      /* 跑一个实验矩阵 */
int cmd_leaderboard(int argc, char **argv);  /* 汇总结果、画图 */
int cmd_prepare_data(int argc, char **argv); /* 取得模型与文本 */
int cmd_list(int argc, char **argv);         /* 列出模型、方法、轨道、任务、设置 */
int cmd_serve(int argc, char **argv);        /* OpenAI 兼容的 HTTP 服务 */
int cmd_export(int argc, char **argv);       /* 写成别的工具能装入的文件夹 */
int cmd_synth(int argc, char **argv);        /* 造一个随机权重的模型文件夹 */
int cmd_tokenize(int argc, char **argv);     /* 分词，供与其他程序对照 */
int cmd_logits(int argc, char **argv);       /* logits，供与其他程序对照 */

/* 本程序的名字（argv[0]），用来记录可复制的命令行。 */
extern const char *program_name;
#endif
