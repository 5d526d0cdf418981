/* memory — 主机看后端的内存
 * HostView 是一组映射：CPU 上映射就是原来的指针，不复制；内存分开的后端（CUDA、严格模式）上复制到主机，结束时把
 * 要写的写回。没有映射的后端内存主机不能碰。 */
#ifndef PTQ_COMPUTE_MEMORY_H
#define PTQ_COMPUTE_MEMORY_H
#include "compute/ops.h"

typedef enum { HOST_READ = 1, HOST_WRITE = 2, HOST_BOTH = 3 } HostAccess;

typedef struct HostMap {
    void *mem, *host;
    size_t bytes;
} HostMap;

/* 一组映射；用 host_view 打开，host_end 结束。 */
enum { HOST_MAPS = 24 };
typedef struct HostView {
    Backend *b;
    Arena arena;
    HostMap writes[HOST_MAPS]; /* 结束时要写回的 */
    int n_writes;
} HostView;

HostView host_view(Backend *b);
/* 映射 bytes 字节；mem 为 NULL 时返回 NULL。HOST_WRITE 须写满（原来的内容不复制过来）。
 * 错误: 内存不足（粘在 b->err），返回 NULL。同一组里各段不可重叠。 */
void *host_map(HostView *v, const void *mem, size_t bytes, HostAccess access);
/* 写回并放掉；其后各映射的指针失效。返回: 后端没有错误为真。 */
bool host_end(HostView *v);

#define HOST_MAP(v, T, mem, n, access)                                                             \
    ((T *)host_map((v), (mem), (size_t)(n) * sizeof(T), (access)))

/* 主机可读的 q：CPU 上就是 q；否则各段复制到 a（主机内存）。错误: 内存不足、设备。 */
bool qtensor_to_host(Backend *b, const QTensor *q, QTensor *host, Arena *a, Err *e);
/* 把主机内存里的 q 的各段搬进 a（后端内存）。错误: 内存不足、设备。 */
bool qtensor_to_backend(Backend *b, QTensor *q, Arena *a, Err *e);
/* 同 qtensor_set_perm，a 是后端内存，perm 在主机。 */
bool qtensor_store_perm(Backend *b, QTensor *q, Arena *a, const int32_t *perm, Err *e);
#endif
