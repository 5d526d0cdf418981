/* dump — run_one --dump_linear：把一层量化后的内容写成 .npy，供与官方代码逐元素对照 */
#ifndef PTQ_DUMP_H
#define PTQ_DUMP_H
#include "model/model.h"

/* 名为 name 的线性层写到文件夹 dir（不存在则建）：w.npy（反量化，原来的列序）；量化了的还有 scale、zero (rows, 组) 与
 * code (rows, cols)，都按存放的列序；有则再写 perm、qscale 与 qzero（两级统计的码）、outliers（非离群处为 0）；
 * k、v 层在键值缓存查表量化时还有表与阈值。错误: 没有这一层、写不成。 */
bool dump_linear(const Model *m, const char *name, const char *dir, Err *e);
#endif
