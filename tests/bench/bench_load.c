/* bench_load — 从页缓存载入模型有多快，与内存复制比
 * 用法: bench_load 模型文件夹 [线程数=2 [遍数=5]]。载入是 model_open 加 model_finish（检查、装成稠密的面板）；复制是同样多的线程把同样的
 * 文件从映射 memcpy 到内存：一种到新要的内存（大页，与载入同样要缺页、清零），一种到已用过的一块（不缺页，纯粹的复制速率）。
 * 三样轮流做，报中位数与最快的一遍（虚拟机上新内存可能要主机现给，慢几倍，忽快忽慢）。 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "base/log.h"
#include "io/file.h"
#include "model/model.h"

enum { MAX_RUNS = 99, MAX_THREADS = 64 };
#define WARM ((size_t)64 << 20) /* 反复写的一块：比缓存大 */

typedef struct Times {
    double wall[MAX_RUNS], user, system;
} Times;

static double seconds(struct timeval t) {
    return (double)t.tv_sec + 1e-6 * (double)t.tv_usec;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(Times *t, int n) {
    qsort(t->wall, (size_t)n, sizeof *t->wall, by_size);
    return n % 2 ? t->wall[n / 2] : (t->wall[n / 2 - 1] + t->wall[n / 2]) / 2;
}

typedef struct Copy {
    const char *from;
    char *to;
    size_t n, limit; /* 目的地的大小；写到头从头再来 */
} Copy;

static void *copy_part(void *arg) {
    const Copy *c = arg;
    for (size_t at = 0, n; at < c->n; at += n) {
        n = c->n - at < c->limit ? c->n - at : c->limit;
        memcpy(c->to + (c->limit < c->n ? 0 : at), c->from + at, n);
    }
    return NULL;
}

/* 一个文件：各线程复制相连的一段。limit 为每个线程的目的地大小。 */
static void copy_file(const FileMap *m, char *to, size_t limit, int threads) {
    pthread_t id[MAX_THREADS];
    Copy part[MAX_THREADS];
    size_t each = m->size / (size_t)threads + 1;
    for (int i = 0; i < threads; i++) {
        size_t from = each * (size_t)i, n = from >= m->size ? 0 : m->size - from < each ? m->size - from : each;
        part[i] = (Copy){(const char *)m->data + from, to + (limit ? limit * (size_t)i : from), n, limit ? limit : n + 1};
        if (pthread_create(&id[i], NULL, copy_part, &part[i]) != 0) abort();
    }
    for (int i = 0; i < threads; i++) pthread_join(id[i], NULL);
}

/* warm 非 NULL 时写到它（每个线程 WARM 字节），否则写到新要的内存。只计映射与复制：归还内存、解除映射不算（载入的也不算）。 */
static bool copy_all(const char *dir, int threads, char *warm, double *bytes, double *wall, Err *e) {
    Arena a = {0};
    char **names;
    size_t n;
    bool ok = file_list(&a, dir, ".safetensors", &names, &n, e);
    *bytes = *wall = 0;
    for (size_t i = 0; ok && i < n; i++) {
        double from = clock_seconds();
        FileMap m;
        Arena fresh = {0};
        char *path = file_join(&a, dir, names[i], e);
        ok = path && file_map(&m, path, e);
        if (!ok) break;
        char *to = warm ? warm : arena_alloc(&fresh, m.size, e);
        ok = to != NULL;
        if (ok) copy_file(&m, to, warm ? WARM : 0, threads);
        *bytes += (double)m.size;
        *wall += clock_seconds() - from;
        arena_free(&fresh);
        file_unmap(&m);
    }
    arena_free(&a);
    return ok;
}

static bool load(const char *dir, int threads, Times *t, int run, Err *e) {
    Backend b;
    Model m;
    struct rusage before, after;
    if (!backend_open_cpu(&b, threads, COMPUTE_BF16, NULL, e)) return false;
    getrusage(RUSAGE_SELF, &before);
    double from = clock_seconds();
    bool ok = model_open(&m, dir, DT_NONE, &b, e) && model_finish(&m, e);
    t->wall[run] = clock_seconds() - from;
    getrusage(RUSAGE_SELF, &after);
    t->user += seconds(after.ru_utime) - seconds(before.ru_utime);
    t->system += seconds(after.ru_stime) - seconds(before.ru_stime);
    model_close(&m);
    backend_close(&b);
    return ok;
}

static void show(const char *what, double gb, double all, double fresh, double warm) {
    printf("%s：载入 %.2f 秒（%.2f GB/s），复制到新内存 %.2f 秒（%.2f GB/s），到用过的内存 %.2f 秒（%.2f GB/s）；"
           "载入的速率是它们的 %.0f %%、%.0f %%\n",
           what, all, gb / all, fresh, gb / fresh, warm, gb / warm, 100 * fresh / all, 100 * warm / all);
}

int main(int argc, char **argv) {
    Err e = {0};
    int threads = argc > 2 ? atoi(argv[2]) : 2, runs = argc > 3 ? atoi(argv[3]) : 5;
    if (argc < 2 || threads < 1 || threads > MAX_THREADS || runs < 1 || runs > MAX_RUNS) return 2;
    static Times fresh, warm, all;
    double bytes = 0;
    char *block = malloc(WARM * (size_t)threads);
    if (!block) return 1;
    memset(block, 1, WARM * (size_t)threads);
    for (int i = 0; i < runs; i++)
        if (!copy_all(argv[1], threads, NULL, &bytes, &fresh.wall[i], &e) || !load(argv[1], threads, &all, i, &e) ||
            !copy_all(argv[1], threads, block, &bytes, &warm.wall[i], &e)) {
            fprintf(stderr, "%s\n", e.msg);
            return 1;
        }
    free(block);
    printf("%.2f GB，%d 线程，%d 遍；载入每遍用户态 %.2f、内核态 %.2f CPU 秒\n", bytes / 1e9, threads, runs,
           all.user / runs, all.system / runs);
    show("中位数", bytes / 1e9, median(&all, runs), median(&fresh, runs), median(&warm, runs));
    show("最快的", bytes / 1e9, all.wall[0], fresh.wall[0], warm.wall[0]);
    return 0;
}
