/* registry — 方法登记表
 * 由构建系统扫描 src/methods/ 生成（build/.../method_table.c），无需手工维护。 */
#ifndef PTQ_REGISTRY_H
#define PTQ_REGISTRY_H
#include "methods/base.h"

const Method *const *registry_methods(size_t *n); /* 按名字排序 */
/* 找方法；已量化的检查点的 pretrained:… 也在内（不在 registry_methods 的表里）。错误: 「方法 'xxx' 未注册」，列出已注册的与最近的名字。 */
const Method *registry_find(const char *name, Err *e);
/* 检查轨道。错误: 「方法 xxx 不支持 Track Y」及其支持的轨道。 */
bool registry_check_track(const Method *m, char track, Err *e);
/* 方法支持的第一个轨道，如 "A"；没有这个方法时也是 "A"（由后面的检查报错）。 */
const char *registry_first_track(const char *method);
#endif
