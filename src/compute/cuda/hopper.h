/* hopper — 计算能力 9.0a 的指令：mbarrier、cluster、TMA、wgmma（m64n256、m64n16 到 m64n64，两边都在共享内存里）；TMA 的描述
 * 共享内存里的一块都是 128 字节一行、128 字节的 swizzle：第 r 行的第 c 个 16 字节在 r·128 + (c ^ r%8)·16，块的起点是 1024 的倍数。 */
#ifndef PTQ_COMPUTE_CUDA_HOPPER_H
#define PTQ_COMPUTE_CUDA_HOPPER_H
#include <cuda.h>
#include <stdint.h>

#include "compute/cuda/cuda.h"

enum { ROW = 128 /* 一行的字节 */, WG = 128 /* 一个 warpgroup 的线程 */ };

/* 这个 GPU 与驱动能用 TMA（gemm.cu）。 */
bool tensor_maps(Backend *b);
/* (rows, cols) 行主序、每个 item 字节、行距 ld 个元素；一块是 128 字节 × box_rows 行。越界的读作 0，写则略去。 */
bool tensor_map(Backend *b, CUtensorMap *map, CUtensorMapDataType type, int item, const void *data, int64_t rows, int64_t cols,
                int64_t ld, int box_rows);

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

__device__ static inline uint32_t shared_at(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}
__device__ static inline void barrier_init(uint32_t bar, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
__device__ static inline void barrier_expect(uint32_t bar, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
__device__ static inline void barrier_wait(uint32_t bar, uint32_t parity) {
    asm volatile("{\n\t.reg .pred p;\n\tAGAIN:\n\t"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n\t@!p bra AGAIN;\n\t}" ::"r"(bar), "r"(parity)
                 : "memory");
}
/* 到 cluster 里第 rank 块的同一个屏障。之前只有 wgmma 读过，没有要让对方看见的写，故不要 cluster 范围的 release（那是整个
 * GPU 的内存栅栏，慢一倍）。 */
__device__ static inline void barrier_arrive(uint32_t bar, int rank) {
    asm volatile("{\n\t.reg .b32 at;\n\tmapa.shared::cluster.u32 at, %0, %1;\n\t"
                 "mbarrier.arrive.shared::cluster.b64 _, [at];\n\t}" ::"r"(bar), "r"(rank)
                 : "memory");
}
/* 到本块的屏障。 */
__device__ static inline void barrier_arrive(uint32_t bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
__device__ static inline void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
}
__device__ static inline int cluster_rank() {
    int r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}
/* 取 128 字节 × 若干行（map 里定）的一块，从 (字节列 k 的元素号, 行 row) 起；mask 非 0 时写进 cluster 的这些块。 */
__device__ static inline void load_box(uint32_t to, const CUtensorMap *map, int k, int row, uint32_t bar, uint16_t mask) {
    if (mask)
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                     "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to), "l"(map), "r"(k), "r"(row), "r"(bar), "h"(mask)
                     : "memory");
    else
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                     "[%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(map), "r"(k), "r"(row), "r"(bar)
                     : "memory");
}
/* 先把 map 本身取来。 */
__device__ static inline void prefetch_map(const CUtensorMap *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
__device__ static inline void store_box(const CUtensorMap *map, uint32_t from, int col, int row, bool add) {
    if (add)
        asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
                     "r"(col), "r"(row), "r"(from)
                     : "memory");
    else
        asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(col),
                     "r"(row), "r"(from)
                     : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/* 一个 warpgroup 自己的会合。 */
__device__ static inline void group_sync(int wg) {
    asm volatile("bar.sync %0, %1;" ::"r"(wg + 1), "n"((int)WG) : "memory");
}
/* wgmma 看共享内存里的一块：128 字节 swizzle、沿 K 连续，每 8 行 1024 字节。 */
__device__ static inline uint64_t operand_at(uint32_t at) {
    return (uint64_t)((at & 0x3FFFF) >> 4) | (uint64_t)1 << 16 | (uint64_t)(8 * ROW >> 4) << 32 | (uint64_t)1 << 62;
}
#define LIST_128                                                                                                   \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,"  \
    "%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55," \
    "%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82," \
    "%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107," \
    "%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}"
#define D8(c, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3]), c(d[i + 4]), c(d[i + 5]), c(d[i + 6]), c(d[i + 7])
#define D64(c, i) D8(c, i), D8(c, i + 8), D8(c, i + 16), D8(c, i + 24), D8(c, i + 32), D8(c, i + 40), D8(c, i + 48), D8(c, i + 56)
/* d(64, 256) = a(64, 32 字节)·b(256, 32 字节)ᵀ，more 时加到原来的上。 */
__device__ static inline void multiply(float *d, uint64_t a, uint64_t b, int more) {
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %130, 0;\n\t"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 " LIST_128 ", %128, %129, p, 1, 1, 0, 0;\n\t}"
                 : D64("+f", 0), D64("+f", 64)
                 : "l"(a), "l"(b), "r"(more));
}
__device__ static inline void multiply(int *d, uint64_t a, uint64_t b, int more) {
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %130, 0;\n\t"
                 "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 " LIST_128 ", %128, %129, p;\n\t}"
                 : D64("+r", 0), D64("+r", 64)
                 : "l"(a), "l"(b), "r"(more));
}
#define LIST_8 "{%0,%1,%2,%3,%4,%5,%6,%7}"
#define LIST_16 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}"
#define LIST_32                                                                                                    \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,"  \
    "%29,%30,%31}"
#define D16(c, i) D8(c, i), D8(c, i + 8)
#define D32(c, i) D16(c, i), D16(c, i + 16)
#define MULTIPLY_FEW(shape, list, a, b, p, regs)                                                                   \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %" #p ", 0;\n\t"                                           \
                 "wgmma.mma_async.sync.aligned." shape ".f32.bf16.bf16 " list ", %" #a ", %" #b ", p, 1, 1, 0, 0;\n\t}" \
                 : regs("+f", 0)                                                                                   \
                 : "l"(x), "l"(y), "r"(more))
/* 同上，b 只有 N 行：d(64, N)。 */
template <int N> __device__ static inline void multiply_few(float *d, uint64_t x, uint64_t y, int more) {
    static_assert(N == 16 || N == 32 || N == 64, "只有这几种");
    if (N == 16) MULTIPLY_FEW("m64n16k16", LIST_8, 8, 9, 10, D8);
    if (N == 32) MULTIPLY_FEW("m64n32k16", LIST_16, 16, 17, 18, D16);
    if (N == 64) MULTIPLY_FEW("m64n64k16", LIST_32, 32, 33, 34, D32);
}
__device__ static inline void multiply_begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ static inline void multiply_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/* 之后才看得到累加器（编译器不得把对它的计算提前）。 */
__device__ static inline void settle(float *d) {
    asm volatile("" : D64("+f", 0), D64("+f", 64)::"memory");
}
__device__ static inline void settle(int *d) {
    asm volatile("" : D64("+r", 0), D64("+r", 64)::"memory");
}
template <int N> __device__ static inline void settle_few(float *d) {
    if (N == 16) asm volatile("" : D8("+f", 0)::"memory");
    if (N == 32) asm volatile("" : D16("+f", 0)::"memory");
    if (N == 64) asm volatile("" : D32("+f", 0)::"memory");
}
/* 等到未完的不多于 LEFT 组。 */
template <int LEFT> __device__ static inline void multiply_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
#endif
#endif
