/* spill — 放在磁盘上的内存的实现 */
#include "io/spill.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static void *spill_alloc(Allocator *self, size_t bytes) {
    char path[4096];
    int n = snprintf(path, sizeof path, "%s/.ptq-tmp-XXXXXX", (const char *)self->owner);
    int fd = n > 0 && (size_t)n < sizeof path && bytes <= INT64_MAX ? mkostemp(path, O_CLOEXEC) : -1;
    if (fd < 0) return NULL;
    unlink(path);
    void *p = posix_fallocate(fd, 0, (off_t)bytes) == 0
                  ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                  : MAP_FAILED;
    close(fd);
    if (p == MAP_FAILED) return NULL;
    self->n_allocs++;
    self->used += bytes;
    if (self->used > self->peak) self->peak = self->used;
    return p;
}

static void spill_release(Allocator *self, void *p, size_t bytes) {
    self->used -= bytes;
    munmap(p, bytes);
}

Allocator spill_allocator(const char *dir) {
    return (Allocator){.alloc = spill_alloc, .release = spill_release, .owner = (void *)dir};
}

void spill_drop(const Arena *a, const void *p, size_t bytes) {
    if (!a->allocator || a->allocator->alloc != spill_alloc || !p) return;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)p + page - 1) / page * page, to = ((uintptr_t)p + bytes) / page * page;
    if (to > from) madvise((void *)from, to - from, MADV_DONTNEED);
}
