/* linalg — 分块的 Cholesky 与三角求逆
 * 对角块用 LAPACK，其余按行块分成任务，每个任务一两次单线程的 BLAS。行列倒序之后就是普通的下三角问题：
 * A = LLᵀ，X = L⁻¹，再倒回来。行主序的下三角就是 LAPACK（列主序）的上三角。 */
#include "compute/linalg.h"

#include <cblas.h>
#include <string.h>

#include "base/err.h"

/* LAPACK 的 Fortran 接口（列主序；末尾是字符参数的长度）。 */
void dpotrf_(const char *uplo, const int *n, double *a, const int *lda, int *info, size_t len);
void dtrtri_(const char *uplo, const char *diag, const int *n, double *a, const int *lda,
             int *info, size_t len1, size_t len2);

enum { B = LINALG_BLOCK };

/* 一步的任务：第 k 个对角块已处理，任务是它下面的各行块。 */
typedef struct Step {
    double *a, *work;
    int64_t n, k, first; /* k: 对角块的首行；first: 它下面的首行 */
} Step;

static int64_t min_i64(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static int64_t blocks(int64_t n) {
    return (n + B - 1) / B;
}

/* 倒数第 task 块（长的先做）的行 [*r0, *r1)。 */
static void task_rows(const Step *s, int64_t task, int64_t *r0, int64_t *r1) {
    *r0 = s->first + (blocks(s->n - s->first) - 1 - task) * B;
    *r1 = min_i64(*r0 + B, s->n);
}

/* A[r,k] ← A[r,k]·L[k,k]⁻ᵀ */
static void solve_task(void *ctx, int64_t task) {
    const Step *s = ctx;
    int64_t r0, r1;
    task_rows(s, task, &r0, &r1);
    cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, (int)(r1 - r0),
                (int)(s->first - s->k), 1, s->a + s->k * (s->n + 1), (int)s->n,
                s->a + r0 * s->n + s->k, (int)s->n);
}

/* A[r, first..r] −= L[r,k]·L[first..r, k]ᵀ */
static void update_task(void *ctx, int64_t task) {
    const Step *s = ctx;
    int64_t r0, r1;
    task_rows(s, task, &r0, &r1);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)(r1 - r0), (int)(r1 - s->first),
                (int)(s->first - s->k), -1, s->a + r0 * s->n + s->k, (int)s->n,
                s->a + s->first * s->n + s->k, (int)s->n, 1, s->a + r0 * s->n + s->first,
                (int)s->n);
}

static bool cholesky(Backend *b, double *a, int64_t n) {
    int size = (int)n, info = 0;
    for (int64_t k = 0; k < n; k += B) {
        int width = (int)min_i64(B, n - k);
        dpotrf_("U", &width, a + k * (n + 1), &size, &info, 1);
        if (info != 0) return false;
        Step s = {.a = a, .n = n, .k = k, .first = k + width};
        b->ops->parallel(b, blocks(n - s.first), solve_task, &s);
        b->ops->parallel(b, blocks(n - s.first), update_task, &s);
    }
    return true;
}

/* X[r,k] = −X[r, first..r]·L[first..r, k]·X[k,k]；右边的 L[·,k] 在 work 里。 */
static void invert_task(void *ctx, int64_t task) {
    const Step *s = ctx;
    int64_t r0, r1, width = s->first - s->k;
    task_rows(s, task, &r0, &r1);
    double *x = s->a + r0 * s->n + s->k;
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)(r1 - r0), (int)width,
                (int)(r1 - s->first), -1, s->a + r0 * s->n + s->first, (int)s->n, s->work,
                (int)width, 0, x, (int)s->n);
    cblas_dtrmm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, (int)(r1 - r0),
                (int)width, 1, s->a + s->k * (s->n + 1), (int)s->n, x, (int)s->n);
}

/* 下三角 L 就地求逆，由右下到左上；上三角须为 0（行块连同对角块的上半一起相乘）。 */
static bool invert(Backend *b, double *a, int64_t n, double *work) {
    int size = (int)n, info = 0;
    for (int64_t k = (blocks(n) - 1) * B; k >= 0; k -= B) {
        int width = (int)min_i64(B, n - k);
        Step s = {.a = a, .work = work, .n = n, .k = k, .first = k + width};
        for (int64_t r = s.first; r < n; r++)
            memcpy(work + (r - s.first) * width, a + r * n + k, (size_t)width * sizeof *a);
        dtrtri_("U", "N", &width, a + k * (n + 1), &size, &info, 1, 1);
        if (info != 0) return false;
        b->ops->parallel(b, blocks(n - s.first), invert_task, &s);
    }
    return true;
}

/* 行列同时倒序：第 i 行与第 n−1−i 行互换并各自倒序，由任务 i 做。 */
static void flip_task(void *ctx, int64_t task) {
    const Step *s = ctx;
    int64_t end = min_i64((task + 1) * B, (s->n + 1) / 2);
    for (int64_t i = task * B; i < end; i++) {
        double *x = s->a + i * s->n, *y = s->a + (s->n - 1 - i) * s->n;
        for (int64_t j = 0; j < (x == y ? s->n / 2 : s->n); j++) {
            double t = x[j];
            x[j] = y[s->n - 1 - j];
            y[s->n - 1 - j] = t;
        }
    }
}

static void flip(Backend *b, double *a, int64_t n) {
    Step s = {.a = a, .n = n};
    b->ops->parallel(b, blocks((n + 1) / 2), flip_task, &s);
}

bool linalg_inverse_upper(Backend *b, double *h, int64_t n, double *work) {
    CHECK(n >= 1 && n <= INT32_MAX);
    openblas_set_num_threads(1); /* 各块的归约次序固定 */
    flip(b, h, n);
    if (!cholesky(b, h, n)) return false;
    for (int64_t i = 0; i < n; i++) memset(h + i * n + i + 1, 0, (size_t)(n - 1 - i) * sizeof *h);
    if (!invert(b, h, n, work)) return false;
    flip(b, h, n);
    return true;
}
