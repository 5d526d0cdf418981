/* pyrandom — CPython 的 random.Random 的实现 */
#include "base/pyrandom.h"

enum { N = 624, M = 397 };

static void init_genrand(PyRandom *r, uint32_t s) {
    r->state[0] = s;
    for (uint32_t i = 1; i < N; i++)
        r->state[i] = 1812433253u * (r->state[i - 1] ^ r->state[i - 1] >> 30) + i;
    r->index = N;
}

/* CPython 把种子拆成 32 位的数组（低位在前）后调用 init_by_array。 */
void pyrandom_seed(PyRandom *r, uint64_t seed) {
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)}, *s = r->state;
    uint32_t len = key[1] ? 2 : 1, i = 1, j = 0;
    init_genrand(r, 19650218u);
    for (int k = N; k; k--) {
        s[i] = (s[i] ^ (s[i - 1] ^ s[i - 1] >> 30) * 1664525u) + key[j] + j;
        if (++i >= N) s[0] = s[N - 1], i = 1;
        if (++j >= len) j = 0;
    }
    for (int k = N - 1; k; k--) {
        s[i] = (s[i] ^ (s[i - 1] ^ s[i - 1] >> 30) * 1566083941u) - i;
        if (++i >= N) s[0] = s[N - 1], i = 1;
    }
    s[0] = 0x80000000u;
}

static void refill(PyRandom *r) {
    uint32_t *s = r->state;
    for (int k = 0; k < N; k++) {
        uint32_t y = (s[k] & 0x80000000u) | (s[(k + 1) % N] & 0x7fffffffu);
        s[k] = s[(k + M) % N] ^ y >> 1 ^ (y & 1 ? 0x9908b0dfu : 0);
    }
    r->index = 0;
}

static uint32_t next_u32(PyRandom *r) {
    if (r->index >= N) refill(r);
    uint32_t y = r->state[r->index++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

uint64_t pyrandom_bits(PyRandom *r, int k) {
    if (k <= 32) return next_u32(r) >> (32 - k);
    uint64_t low = next_u32(r);
    return low | (uint64_t)(next_u32(r) >> (64 - k)) << 32;
}

int64_t pyrandom_int(PyRandom *r, int64_t lo, int64_t hi) {
    uint64_t n = (uint64_t)hi - (uint64_t)lo + 1, v;
    int k = 64;
    if (n == 0) return (int64_t)pyrandom_bits(r, 64); /* 全部 64 位 */
    while (k > 1 && !(n >> (k - 1))) k--;
    do v = pyrandom_bits(r, k);
    while (v >= n);
    return (int64_t)((uint64_t)lo + v);
}

double pyrandom_unit(PyRandom *r) {
    uint32_t a = next_u32(r) >> 5, b = next_u32(r) >> 6;
    return ((double)a * 67108864.0 + (double)b) / 9007199254740992.0;
}
