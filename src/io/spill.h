/* spill — 放在磁盘上的内存：校准的大数组太大时用，系统随时可以收回它占的物理内存
 * 每次分配是一个无名的临时文件的共享映射；空间事先占好，磁盘满在分配时就报，不会写到一半才出事。 */
#ifndef PTQ_IO_SPILL_H
#define PTQ_IO_SPILL_H
#include "base/arena.h"

/* 分配器，文件放在 dir（须已存在，活得比它久）；不计入默认分配器的峰值。 */
Allocator spill_allocator(const char *dir);
/* 暂时不用 p 起的 bytes 字节：内容还在，只是不占常驻内存。p 不是 spill 的内存也无妨（allocator 为 NULL 或别的则什么也不做）。 */
void spill_drop(const Arena *a, const void *p, size_t bytes);
#endif
