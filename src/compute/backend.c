/* backend — 各后端共同的打开与关闭：CUDA 在插件 libptq_cuda.so 里，运行时装入
 * 同一个程序到处能跑：没有驱动或没有插件时只是没有 CUDA。插件不引用本程序的任何符号，只经 Backend 往来。 */
#include "compute/backend.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "compute/plugin.h"

#define LIBRARY "libptq_cuda.so"
enum { CLIMB = 3 /* 程序所在的文件夹与它上面两层 */ };

/* 插件的路径写进 path。返回: 找到为真。 */
static bool find_library(char *path, size_t cap) {
    const char *given = getenv("PTQ_CUDA_LIBRARY");
    char dir[PATH_MAX];
    if (given && *given) {
        snprintf(path, cap, "%s", given);
        return access(path, R_OK) == 0;
    }
    ssize_t n = readlink("/proc/self/exe", dir, sizeof dir - 1);
    if (n <= 0) return false;
    dir[n] = '\0';
    for (int i = 0; i < CLIMB; i++) {
        char *slash = strrchr(dir, '/');
        if (!slash) return false;
        *slash = '\0';
        if (snprintf(path, cap, "%s/" LIBRARY, dir) < (int)cap && access(path, R_OK) == 0) return true;
    }
    return false;
}

/* 驱动在不在。装着不放：插件也要它。 */
static bool has_driver(void) {
    return dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL) != NULL;
}

bool backend_has_cuda(void) {
    char path[PATH_MAX];
    return find_library(path, sizeof path) && has_driver();
}

static CudaPluginOpen *load_plugin(Err *e) {
    char path[PATH_MAX];
    static const char INSTEAD[] = "，或改用 --device cpu";
    if (!find_library(path, sizeof path)) {
        const char *given = getenv("PTQ_CUDA_LIBRARY");
        err_set(e, ERR_UNSUPPORTED, "device=cuda：找不到 CUDA 插件 %s：请在有 nvcc 的机器上 make，与程序放在一起%s",
                given && *given ? given : LIBRARY, INSTEAD);
        return NULL;
    }
    if (!has_driver()) {
        err_set(e, ERR_UNSUPPORTED, "device=cuda：没有 NVIDIA 驱动（%s）：请安装驱动%s", dlerror(), INSTEAD);
        return NULL;
    }
    void *so = dlopen(path, RTLD_NOW | RTLD_LOCAL); /* 进程结束前不卸下：CUDA 的状态在里面 */
    if (!so) {
        err_set(e, ERR_UNSUPPORTED, "device=cuda：装不进 %s：%s", path, dlerror());
        return NULL;
    }
    CudaPluginOpen *open = NULL;
    *(void **)&open = dlsym(so, PTQ_CUDA_PLUGIN_OPEN);
    const int *version = dlsym(so, PTQ_CUDA_PLUGIN_VERSION);
    if (open && version && *version == PTQ_CUDA_PLUGIN) return open;
    err_set(e, ERR_UNSUPPORTED, "device=cuda：%s 不是这个版本的插件：请重新 make", path);
    return NULL;
}

bool backend_open_cuda(Backend *b, int n_threads, ComputeMode compute, Err *e) {
    *b = (Backend){0};
    CudaPluginOpen *open = load_plugin(e);
    if (!open) return false;
    Backend *host = calloc(1, sizeof *host);
    if (!host) return err_set(e, ERR_MEMORY, "内存不足");
    if (!backend_open_cpu(host, n_threads, COMPUTE_F32, NULL, e)) {
        free(host);
        return false;
    }
    if (open(b, host, compute, e)) return true;
    backend_close(host);
    free(host);
    *b = (Backend){0};
    return false;
}

void backend_close(Backend *b) {
    Backend *host = b->host;
    if (b->close) b->close(b);
    if (host) backend_close(host);
    free(host);
    *b = (Backend){0};
}

bool backend_check(Backend *b, Err *e) {
    if (b->err.code == ERR_NONE) return true;
    if (e) *e = b->err;
    b->err.code = ERR_NONE;
    return false;
}
