/* reference — 算子测试的公共部分：随机输入、机器上可用的后端清单、双精度比较
 * 参考实现都是直白的双精度循环，与内核没有共用代码。 */
#ifndef PTQ_TESTS_OPS_REFERENCE_H
#define PTQ_TESTS_OPS_REFERENCE_H
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/dtype.h"
#include "base/rng.h"
#include "compute/ops.h"
#include "tests/ops/staged.h"

/* bf16 计算的单行（CUDA 是至多 32 行）遇到组宽是 32 的倍数（或整行）、没有离群值的量化权重：按编码算，见 backend.h。 */
static inline bool ref_by_codes(const QTensor *q, bool bf16, int64_t n) {
    bool groups = q->n_groups == 1 || q->spec.group_size % QT_KBLOCK == 0;
    if (!bf16 || q->dense != DT_NONE || q->spec.codes != CODE_INT || q->outliers.start || !groups) return false;
    if (ref_on_cuda()) return n <= 32 && (q->spec.bits <= 4 || q->spec.bits == 8) &&
                                q->spec.zero != ZERO_FLOAT && !q->two.scale_bits && !q->two.zero_bits &&
                                !q->nested.per && q->spec.scale_dtype != DT_BF16;
    return n == 1;
}
/* op_linear 实际用的权重，*reach 是误差界里的 |w|：按编码算的不舍入，部分和却有 scale·(code+|zero|) 那么大（CUDA 上不足 8 位的
 * 编码与零点各多带 128，最后相减）。 */
static inline float ref_weight(const QTensor *q, int64_t r, int64_t c, bool bf16, bool by_codes,
                               float *reach) {
    float w = qtensor_at(q, r, c);
    if (by_codes) {
        int64_t g = c / q->spec.group_size;
        *reach = fabsf(qtensor_scale(q, r, g)) *
                 ((float)qtensor_code(q, r, c) + fabsf(qtensor_zero(q, r, g)) + (ref_on_cuda() && q->spec.bits < 8 ? 256.0f : 0));
        return w;
    }
    if (bf16) w = bf16_to_f32(f32_to_bf16(w));
    *reach = fabsf(w);
    return w;
}

/* 一个被测后端 */
typedef struct RefTarget {
    const char *isa;
    ComputeMode compute;
    char name[32];
} RefTarget;

enum { REF_MAX_TARGETS = 8 };

/* 本机能打开的（指令集 × 计算精度），返回个数（至少有 generic） */
static inline int ref_targets(RefTarget *t) {
    static const char *const ISAS[] = {"generic", "avx2", "avx512", "avx512_bf16"};
    int n = 0;
    for (int i = 0; i < 4; i++)
        for (int m = 0; m < 2; m++) {
            Backend b;
            Err e = {0};
            ComputeMode mode = m ? COMPUTE_BF16 : COMPUTE_F32;
            if (!ref_backend(&b, 1, mode, ISAS[i], &e)) continue;
            backend_close(&b);
            t[n] = (RefTarget){.isa = ISAS[i], .compute = mode};
            snprintf(t[n].name, sizeof t[n].name, "%s/%s", ref_on_cuda() ? "cuda" : ISAS[i],
                     m ? "bf16" : "f32");
            n++;
        }
    assert_true(n >= 1);
    return n;
}

static inline Backend ref_open(const RefTarget *t, int n_threads) {
    Backend b;
    Err e = {0};
    if (!ref_backend(&b, n_threads, t->compute, t->isa, &e)) fail_msg("%s", e.msg);
    return b;
}

static inline void ref_check(Backend *b) {
    Err e = {0};
    if (!backend_check(b, &e)) fail_msg("%s", e.msg);
}

/* 近似标准正态（4 个均匀数之和），乘以 scale */
static inline void ref_fill(float *x, int64_t n, uint64_t stream, double scale) {
    for (int64_t i = 0; i < n; i++) {
        double s = -2;
        uint64_t u = rng_u64(20240611, stream, (uint64_t)i);
        for (int j = 0; j < 4; j++) s += (double)(u >> 16 * j & 0xFFFF) / 65536.0;
        x[i] = (float)(s * sqrt(3.0) * scale);
    }
}

static inline float *ref_random(int64_t n, uint64_t stream, double scale) {
    float *x = malloc(sizeof *x * (size_t)(n + 1));
    assert_non_null(x);
    ref_fill(x, n, stream, scale);
    return x;
}
static inline float *ref_zeros(int64_t n) {
    float *x = calloc((size_t)(n + 1), sizeof *x);
    assert_non_null(x);
    return x;
}
static inline float ref_bf16(float x) {
    return bf16_to_f32(f32_to_bf16(x));
}
/* 该后端看到的值 */
static inline float ref_input(const RefTarget *t, float x) {
    return t->compute == COMPUTE_BF16 ? ref_bf16(x) : x;
}
static inline int64_t ref_pick(uint64_t stream, uint64_t index, const int64_t *list, size_t n) {
    return list[rng_below(77, stream, index, n)];
}
#define REF_PICK(stream, index, list)                                                              \
    ref_pick((stream), (index), (list), sizeof(list) / sizeof *(list))

/* |got−want| <= bound（NaN 必失败） */
static inline void ref_near(double got, double want, double bound, const char *target,
                            const char *what) {
    if (!(fabs(got - want) <= bound))
        fail_msg("%s: %s: 得到 %.9g，应为 %.9g，相差 %.3g，容许 %.3g", target, what, got, want,
                 fabs(got - want), bound);
}
static inline void ref_same(const float *a, const float *b, int64_t n, const char *target,
                            const char *what) {
    for (int64_t i = 0; i < n; i++)
        if (memcmp(a + i, b + i, sizeof *a) != 0)
            fail_msg("%s: %s: 第 %lld 个数不逐位相同：%.9g 与 %.9g", target, what, (long long)i,
                     (double)a[i], (double)b[i]);
}
/* 批大小、切分不同的同一行：CPU 上逐位相同；CUDA 的矩阵乘由 cuBLAS 按形状选次序，只差末位；bf16 计算时行数少的与多的
 * 走不同的内核（权重、注意力的概率舍入与否），差在 bf16 的末位。 */
static inline void ref_same_row(const float *a, const float *b, int64_t n, const char *target,
                                const char *what) {
    if (!ref_on_cuda()) ref_same(a, b, n, target, what);
    double bound = strstr(target, "bf16") ? 0x1p-7 : 4e-5;
    for (int64_t i = 0; ref_on_cuda() && i < n; i++)
        ref_near((double)a[i], (double)b[i], bound * (1 + fabs((double)b[i])), target, what);
}
#endif
