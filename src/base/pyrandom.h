/* pyrandom — CPython 的 random.Random（MT19937）
 * 校准样本的起点按官方代码的 random.Random(seed).randint 抽取，因此与 Python 可以互相重现。
 * 出处：Matsumoto 与 Nishimura 1998（MT19937，init_by_array）；CPython Lib/random.py 的 _randbelow_with_getrandbits。 */
#ifndef PTQ_BASE_PYRANDOM_H
#define PTQ_BASE_PYRANDOM_H
#include <stdint.h>

typedef struct PyRandom {
    uint32_t state[624];
    int index;
} PyRandom;

/* 同 random.Random(seed)，seed 为非负整数。 */
void pyrandom_seed(PyRandom *r, uint64_t seed);
/* 同 r.getrandbits(k)，1 <= k <= 64。 */
uint64_t pyrandom_bits(PyRandom *r, int k);
/* 同 r.randint(lo, hi)，闭区间，lo <= hi。 */
int64_t pyrandom_int(PyRandom *r, int64_t lo, int64_t hi);
/* 同 r.random()，[0, 1)。 */
double pyrandom_unit(PyRandom *r);
#endif
