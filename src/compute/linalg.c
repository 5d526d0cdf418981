/* linalg — LAPACK 的薄封装 */
#include "compute/linalg.h"

#include "base/err.h"

/* LAPACK 的 Fortran 接口（列主序；末尾是字符参数的长度）。 */
void dpotrf_(const char *uplo, const int *n, double *a, const int *lda, int *info, size_t len);
void dtrtri_(const char *uplo, const char *diag, const int *n, double *a, const int *lda,
             int *info, size_t len1, size_t len2);
void openblas_set_num_threads(int n);

/* 行列同时倒序：a[i][j] ↔ a[n-1-i][n-1-j]，即整段内存倒序。 */
static void flip(double *a, int64_t n) {
    for (int64_t i = 0, j = n * n - 1; i < j; i++, j--) {
        double t = a[i];
        a[i] = a[j];
        a[j] = t;
    }
}

bool linalg_inverse_upper(double *h, int64_t n) {
    CHECK(n >= 1 && n <= INT32_MAX);
    int size = (int)n, info = 0;
    openblas_set_num_threads(1); /* 归约次序固定，结果与机器的核数无关 */
    flip(h, n);
    /* 行主序的下三角就是列主序的上三角 */
    dpotrf_("U", &size, h, &size, &info, 1);
    if (info == 0) dtrtri_("U", "N", &size, h, &size, &info, 1, 1);
    if (info != 0) return false;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = i + 1; j < n; j++) h[i * n + j] = 0;
    flip(h, n);
    return true;
}
