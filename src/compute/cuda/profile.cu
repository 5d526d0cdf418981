/* profile — 各个算子在 GPU 上用了多少时间（环境变量 PTQ_CUDA_PROFILE=1）
 * 每次派发之后记一个事件，相邻两个事件之间的时间归后一个的名字（GPU 空等的时间也在内）；关闭后端时打印。 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compute/cuda/cuda.h"

enum { MAX_MARKS = 1 << 20, MAX_NAMES = 128 };

struct Mark {
    cudaEvent_t event;
    const char *what;
};
struct Profile {
    Mark *marks;
    int n;
};

void profile_open(CudaBackend *c) {
    const char *wanted = getenv("PTQ_CUDA_PROFILE");
    if (!wanted || strcmp(wanted, "1") != 0) return;
    Profile *p = (Profile *)calloc(1, sizeof *p);
    if (p) p->marks = (Mark *)calloc(MAX_MARKS, sizeof *p->marks);
    c->profile = p;
}

void profile_mark(CudaBackend *c, const char *what) {
    Profile *p = c->profile;
    if (!p->marks || p->n == MAX_MARKS) return;
    Mark *m = &p->marks[p->n];
    if (cudaEventCreate(&m->event) != cudaSuccess) return;
    m->what = what;
    cudaEventRecord(m->event, c->stream);
    p->n++;
}

struct Total {
    const char *what;
    double ms;
    int calls;
};
static int longest_first(const void *a, const void *b) {
    double x = ((const Total *)a)->ms, y = ((const Total *)b)->ms;
    return x < y ? 1 : x > y ? -1 : 0;
}

void profile_close(CudaBackend *c) {
    Profile *p = c->profile;
    Total total[MAX_NAMES];
    int n = 0;
    if (!p) return;
    cudaStreamSynchronize(c->stream);
    for (int i = 1; p->marks && i < p->n; i++) {
        float ms = 0;
        cudaEventElapsedTime(&ms, p->marks[i - 1].event, p->marks[i].event);
        int k = 0;
        while (k < n && strcmp(total[k].what, p->marks[i].what) != 0) k++;
        if (k == n && n < MAX_NAMES) total[n++] = Total{p->marks[i].what, 0, 0};
        if (k < n) total[k].ms += ms, total[k].calls++;
    }
    qsort(total, (size_t)n, sizeof *total, longest_first);
    fprintf(stderr, "%10s %10s %10s  算子\n", "毫秒", "次数", "微秒/次");
    for (int k = 0; k < n; k++)
        fprintf(stderr, "%10.1f %10d %10.1f  %s\n", total[k].ms, total[k].calls, 1000 * total[k].ms / total[k].calls, total[k].what);
    for (int i = 0; p->marks && i < p->n; i++) cudaEventDestroy(p->marks[i].event);
    free(p->marks);
    free(p);
    c->profile = NULL;
}
