/* factor — Hessian 的分解：填成双精度，分解、求逆（linalg.h），存回 f32
 * 按行块分成任务，各元素互不相干。 */
#include "compute/cpu/linear.h"
#include "compute/linalg.h"

enum { ROWS_PER_TASK = 64 };

static void fill_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const FactorJob *j = ctx;
    int64_t n = j->n, end = min_i64((task + 1) * ROWS_PER_TASK, n);
    for (int64_t i = task * ROWS_PER_TASK; i < end; i++) {
        const float *row = j->gram + j->perm[i] * n;
        double *f = j->work + i * n;
        for (int64_t k = 0; k < n; k++) f[k] = j->norm * (double)row[j->perm[k]];
        f[i] = (j->dead[i] ? 1 : f[i]) + j->damp;
    }
}

static void store_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const FactorJob *j = ctx;
    int64_t end = min_i64((task + 1) * ROWS_PER_TASK, j->n) * j->n;
    for (int64_t i = task * ROWS_PER_TASK * j->n; i < end; i++) j->u[i] = (float)j->work[i];
}

bool cpu_factor(Backend *b, const FactorJob *job) {
    CpuPool *pool = ((CpuBackend *)b->impl)->pool;
    int64_t tasks = ceil_div(job->n, ROWS_PER_TASK);
    pool_run(pool, tasks, fill_task, (void *)job);
    if (!linalg_inverse_upper(b, job->work, job->n, job->work + job->n * job->n)) return false;
    pool_run(pool, tasks, store_task, (void *)job);
    return true;
}
