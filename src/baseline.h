/* baseline — 与 fp16 比较要的存档齐不齐；不齐时先跑一次怎样的 fp16
 * 存档按内容的哈希找（权重、分词器、文本或请求、协议、计算精度），所以同样的模型、数据与设置只算一次；
 * 缺了就以同样的设置、去掉只属于本方法的那些，跑一个 fp16 单元——它也是一个正式的结果。 */
#ifndef PTQ_BASELINE_H
#define PTQ_BASELINE_H
#include "experiment.h"

/* 这次评测要的 fp16 存档是否缺：每个文本有足够的窗口（与算 KL 的隐藏状态），每个原生任务有逐文档的得分。
 * 本身就是 fp16 基线时恒为不缺。错误: 分词失败、内存不足。 */
bool baseline_missing(const Experiment *x, bool *missing, Err *e);
/* 那次 fp16 运行的请求：同样的模型、轨道、设置。内存来自 x->arena，其余借自 r。 */
bool baseline_request(Experiment *x, const ConfigRequest *r, ConfigRequest *out, Err *e);
/* 缺就经 r->make_baseline 去算。没有算成只警告并记进结果；错误: 被中断、内存不足。 */
bool baseline_ensure(Experiment *x, const RunRequest *r, Err *e);
#endif
