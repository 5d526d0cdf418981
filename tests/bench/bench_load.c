/* bench_load — 从页缓存载入模型有多快，与内存复制比
 * 用法: bench_load 模型文件夹 [线程数=2 [遍数=3]]。载入是 model_open 加 model_finish（解码、检查、装成稠密的面板）；
 * 复制是把同样的文件从映射 memcpy 到新要的内存。两样轮流做，墙钟与 CPU 时间都报；各取最快的一遍。 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/log.h"
#include "io/file.h"
#include "model/model.h"

typedef struct Times {
    double wall, cpu;
} Times;

static Times now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (Times){clock_seconds(), (double)t.tv_sec + 1e-9 * (double)t.tv_nsec};
}

static void keep_best(Times *best, Times from) {
    Times t = now();
    if (t.wall - from.wall < best->wall) best->wall = t.wall - from.wall;
    if (t.cpu - from.cpu < best->cpu) best->cpu = t.cpu - from.cpu;
}

static bool copy_all(const char *dir, double *bytes, Times *best, Err *e) {
    Arena a = {0};
    char **names;
    size_t n;
    *bytes = 0;
    Times from = now();
    bool ok = file_list(&a, dir, ".safetensors", &names, &n, e);
    for (size_t i = 0; ok && i < n; i++) {
        FileMap m;
        char *path = file_join(&a, dir, names[i], e);
        if (!path || !file_map(&m, path, e)) return false;
        void *to = mmap(NULL, m.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        ok = to != MAP_FAILED || err_set(e, ERR_MEMORY, "内存不足");
        if (ok) memcpy(to, m.data, m.size);
        if (ok) munmap(to, m.size);
        *bytes += (double)m.size;
        file_unmap(&m);
    }
    arena_free(&a);
    if (ok) keep_best(best, from);
    return ok;
}

static bool load(const char *dir, int threads, Times *best, Err *e) {
    Backend b;
    Model m;
    if (!backend_open_cpu(&b, threads, COMPUTE_BF16, NULL, e)) return false;
    Times from = now();
    bool ok = model_open(&m, dir, DT_NONE, &b, e) && model_finish(&m, e);
    if (ok) keep_best(best, from);
    if (ok) printf("  其中 读与解码 %.2f 秒，装面板 %.2f 秒\n", m.load_seconds, m.pack_seconds);
    model_close(&m);
    backend_close(&b);
    return ok;
}

int main(int argc, char **argv) {
    Err e = {0};
    int threads = argc > 2 ? atoi(argv[2]) : 2, runs = argc > 3 ? atoi(argv[3]) : 3;
    double bytes = 0;
    Times copy = {1e9, 1e9}, all = copy;
    if (argc < 2) return 2;
    for (int i = 0; i < runs; i++)
        if (!copy_all(argv[1], &bytes, &copy, &e) || !load(argv[1], threads, &all, &e)) {
            fprintf(stderr, "%s\n", e.msg);
            return 1;
        }
    printf("%.2f GB，%d 线程：载入 %.2f 秒（%.2f GB/s；CPU %.2f 秒），复制 %.2f 秒（%.2f GB/s；CPU %.2f 秒），载入的速率是复制的 %.0f %%\n",
           bytes / 1e9, threads, all.wall, bytes / 1e9 / all.wall, all.cpu, copy.wall, bytes / 1e9 / copy.wall,
           copy.cpu, 100 * copy.wall / all.wall);
    return 0;
}
