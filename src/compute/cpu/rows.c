/* rows — 混合专家的取行与加回：一行一个任务
 * 各行互不相干（index 各不相同），故结果与线程数无关；加回先乘后加，两次舍入。 */
#include <string.h>

#include "compute/cpu/cpu.h"
#include "compute/cpu/elem_kernels.h"
#include "compute/cpu/kernels.h"

typedef struct RowsJob {
    const ElemKernels *kernels;
    float *dst;
    const float *src, *weight;
    const int32_t *index;
    int64_t d;
} RowsJob;

static void gather_task(void *ctx, int64_t i, int thread) {
    (void)thread;
    const RowsJob *j = ctx;
    memcpy(j->dst + i * j->d, j->src + j->index[i] * j->d, (size_t)j->d * sizeof *j->dst);
}

void cpu_gather_rows(Backend *b, float *dst, const float *src, const int32_t *index, int64_t n,
                     int64_t d) {
    CpuBackend *c = b->impl;
    RowsJob j = {.dst = dst, .src = src, .index = index, .d = d};
    pool_run(c->pool, n, gather_task, &j);
}

static void scatter_task(void *ctx, int64_t i, int thread) {
    (void)thread;
    const RowsJob *j = ctx;
    j->kernels->add_scaled(j->dst + j->index[i] * j->d, j->src + i * j->d, j->weight[i], j->d);
}

void cpu_scatter_rows(Backend *b, float *dst, const float *src, const int32_t *index,
                      const float *weight, int64_t n, int64_t d) {
    CpuBackend *c = b->impl;
    RowsJob j = {c->kernels->elem, dst, src, weight, index, d};
    pool_run(c->pool, n, scatter_task, &j);
}
