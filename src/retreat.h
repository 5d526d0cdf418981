/* retreat — 内存分开的后端（GPU）装不下时：先减小批，再逐块流式，每一步都记为退让
 * CPU 的上限（--max_memory）也从这里定：装不下就逐块从文件载入。 */
#ifndef PTQ_RETREAT_H
#define PTQ_RETREAT_H
#include "experiment.h"

/* 打开模型之后：估计要多少内存，超过上限（GPU：--max_memory、PTQ_CUDA_MEMORY_LIMIT 与驱动所见的余量中最小的）就流式。 */
bool retreat_plan(Experiment *x, Err *e);
/* 一个阶段以 *e 失败之后：能退一步就退，清掉 *e，返回真，调用者把这个阶段重做一遍。不是显存不足、已退到底、或设备坏了时
 * 返回假，*e 是该报的错误。 */
bool retreat(Experiment *x, Err *e);
/* 同上，用在量化之中：另把装了一半的模型放掉，回到刚打开的样子。 */
bool retreat_reload(Experiment *x, Err *e);
#endif
