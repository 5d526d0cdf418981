/* arena — 分配器与区域内存
 * Allocator 是唯一向系统要内存的门（计数、峰值、可注入失败）；Arena 在其上成块分配、整体释放。
 * Allocator 给的也可以是主机不能直接读写的内存（显存，clear 非 NULL）：Arena 的簿记另放，清零经 clear。
 * 四种寿命：run（一次运行）、model（打包后的权重）、block（一个稠密块）、scratch（mark/rewind）。
 * 不变式：Arena 返回的指针 64 字节对齐、已清零；arena_free 可对半开或已释放的 Arena 调用。 */
#ifndef PTQ_BASE_ARENA_H
#define PTQ_BASE_ARENA_H
#include <stddef.h>

#include "base/err.h"

typedef struct Allocator {
    void *(*alloc)(struct Allocator *self, size_t bytes); /* 64 字节对齐、已清零；失败返回 NULL */
    void (*release)(struct Allocator *self, void *p, size_t bytes);
    void (*clear)(struct Allocator *self, void *p, size_t bytes); /* 清零；NULL 即主机内存 */
    void *owner; /* 归分配器的实现 */
    const char *name; /* 错误里叫什么，如 "显存"；NULL 即 "内存" */
    size_t used, peak; /* 字节 */
    long n_allocs;     /* 已成功分配的次数 */
    long fail_at;      /* 第 fail_at 次分配（从 1 数）起失败一次；0 为不注入（测试用） */
    size_t limit;      /* used 的上限，超过的分配失败；0 为不限 */
} Allocator;

/* 进程默认分配器（大块用 mmap；没有上限时归还的留少许再用，与在用的合计不超过峰值）。 */
Allocator *allocator_default(void);
/* 留着的都归还系统。 */
void allocator_trim(void);

typedef struct ArenaChunk ArenaChunk;
typedef struct Arena {
    Allocator *allocator; /* NULL 表示 allocator_default() */
    ArenaChunk *top;
    size_t used; /* 字节 */
} Arena;
typedef struct ArenaMark {
    ArenaChunk *chunk;
    size_t chunk_used, used;
} ArenaMark;

/* 分配 bytes 字节（0 当作 1）。返回: 清零的内存；内存不足返回 NULL 并置 e（可为 NULL）。 */
void *arena_alloc(Arena *a, size_t bytes, Err *e);
/* 分配 n 个 size 字节的元素，乘法溢出按内存不足处理。 */
void *arena_array(Arena *a, size_t n, size_t size, Err *e);
/* 复制字符串。 */
char *arena_strdup(Arena *a, const char *s, Err *e);
char *arena_strndup(Arena *a, const char *s, size_t n, Err *e);
/* 按格式生成字符串。 */
char *arena_printf(Arena *a, Err *e, const char *fmt, ...) PTQ_PRINTF(3, 4);
/* 先备好一块至少能装 bytes 字节的：其后的分配都在其中，回到此时的 arena_mark 也不归还它。 */
bool arena_reserve(Arena *a, size_t bytes, Err *e);
ArenaMark arena_mark(const Arena *a);
void arena_rewind(Arena *a, ArenaMark m);
void arena_free(Arena *a);

/* 再分配 bytes 字节就超过 limit。 */
static inline bool allocator_full(const Allocator *a, size_t bytes) {
    return a->limit && (bytes > a->limit || a->used > a->limit - bytes);
}

#define ARENA_NEW(a, T, e) ((T *)arena_alloc((a), sizeof(T), (e)))
#define ARENA_ARRAY(a, T, n, e) ((T *)arena_array((a), (size_t)(n), sizeof(T), (e)))
#endif
