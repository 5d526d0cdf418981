/* bridge — 桥：不是原生的 lm-eval 任务交给真正的 lm_eval（pip），它经 HTTP 用我们量化后的模型
 * 量化之后在本机的空闲端口开服务（serve/http.h），运行 lm_eval --model local-completions，把它的结果并进来，
 * 每个任务标明 "source": "lm_eval"。要本机有 HF 格式的分词器。 */
#ifndef PTQ_BRIDGE_H
#define PTQ_BRIDGE_H
#include <sys/types.h>

#include "experiment.h"

/* 把 eval.lm_eval_tasks 里的名字分成原生的与要过桥的（x->bridge_tasks）；没有 lm_eval 命令时全部留在原生里，
 * 由原生路径报出不认得的名字。有 lm_eval 时问它一次（lm_eval validate）认不认得其余的名字。
 * 错误: 原生的与 lm_eval 的都没有这个名字（最近的原生名字）、内存不足、没有分词器的文件夹、lm_eval 缺 [api] 的包。 */
bool bridge_split(Experiment *x, const char *tasks_dir, const char ***native, size_t *n_native,
                  Err *e);
/* eval.lm_eval_command 能不能运行。 */
bool bridge_available(const RunOptions *o);
/* 启动 argv，输出写到文件 log，自成进程组。返回: 进程号，失败为负。 */
pid_t bridge_spawn(char *const *argv, const char *log);
/* 运行 lm_eval，把结果并进 lm_eval（results.lm_eval），并重算 _avg_accuracy。没有要过桥的任务则不做事。
 * 错误: 命令失败（带它的日志末尾）、没有写出结果、被中断。 */
bool bridge_run(Experiment *x, json_t *lm_eval, Err *e);
#endif
