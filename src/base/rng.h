/* rng — 计数器式随机数（Philox4x32-10，Salmon 等 2011）
 * 随机数是 (seed, stream, index) 的纯函数：与线程数、调用次序无关，因而可复现。 */
#ifndef PTQ_BASE_RNG_H
#define PTQ_BASE_RNG_H
#include <stdint.h>

/* 第 index 个 64 位随机数。参数: seed 种子；stream 流号（层、步等）。 */
uint64_t rng_u64(uint64_t seed, uint64_t stream, uint64_t index);
/* [0, n) 的均匀整数，n>0。 */
uint64_t rng_below(uint64_t seed, uint64_t stream, uint64_t index, uint64_t n);
/* [0, 1) 的均匀实数。 */
double rng_unit(uint64_t seed, uint64_t stream, uint64_t index);
#endif
