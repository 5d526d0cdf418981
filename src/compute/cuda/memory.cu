/* memory — 显存、工作区与两条流
 * 显存取自默认的内存池。Allocator.limit（--max_memory、环境变量 PTQ_CUDA_MEMORY_LIMIT）限住张量与工作区之和，不含 CUDA 的上下文。
 * 分配失败先放掉缓存的工作区、让池子归还空闲的再试一次，仍不成才报内存不足，由上层退让；别的错误粘在 Backend.err。 */
#include <stdlib.h>
#include <string.h>

#include "compute/cuda/cuda.h"

/* 驱动所见的占用，整块 GPU 的（别的进程也算在内）。 */
static size_t used_memory(void) {
    size_t free_bytes = 0, total = 0;
    return cudaMemGetInfo(&free_bytes, &total) == cudaSuccess ? total - free_bytes : 0;
}
/* 池子只在 reclaim 里归还给驱动，那之前记下占用，所以此刻的与记下的较大者就是峰值（含上下文与 cuBLAS 的工作区）。 */
static void note_peak(CudaBackend *c) {
    size_t now = used_memory();
    if (now > c->peak) c->peak = now;
}
static size_t vram_peak(Backend *b) {
    note_peak(cuda_of(b));
    return cuda_of(b)->peak;
}

static void drop_slots(CudaBackend *c) {
    STREAM(c->self);
    for (int lane = 0; lane < N_LANES; lane++)
        for (int i = 0; i < N_SLOTS; i++) {
            if (!c->slot[lane][i]) continue;
            cuda_ok(c->self, cudaFreeAsync(c->slot[lane][i], c->lanes[lane]), "归还工作区");
            c->memory.used -= c->slot_bytes[lane][i];
            c->slot[lane][i] = NULL;
            c->slot_bytes[lane][i] = 0;
        }
}
/* 等两条流做完，池子里空闲的还给驱动。 */
static void reclaim(CudaBackend *c) {
    STREAM(c->self);
    note_peak(c);
    for (int lane = 0; lane < N_LANES; lane++) cuda_ok(c->self, cudaStreamSynchronize(c->lanes[lane]), "等待");
    if (c->self->err.code == ERR_NONE) cuda_ok(c->self, cudaMemPoolTrimTo(c->pool, 0), "归还显存");
}

/* 一次分配。返回: 显存不足（或超过上限）为 cudaErrorMemoryAllocation，不粘滞。 */
static cudaError_t take(CudaBackend *c, void **p, size_t bytes) {
    *p = NULL;
    if (allocator_full(&c->memory, bytes)) return cudaErrorMemoryAllocation;
    cudaError_t code = cudaMallocAsync(p, bytes, STREAM(c->self));
    if (code == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        reclaim(c);
        code = cudaMallocAsync(p, bytes, STREAM(c->self));
        if (code == cudaErrorMemoryAllocation) cudaGetLastError();
    }
    if (code != cudaSuccess) {
        *p = NULL;
        return code;
    }
    c->memory.used += bytes;
    if (c->memory.used > c->memory.peak) c->memory.peak = c->memory.used;
    return code;
}

void *cuda_slot(Backend *b, int slot, size_t bytes) {
    CudaBackend *c = cuda_of(b);
    void **p = &c->slot[c->lane][slot];
    size_t *have = &c->slot_bytes[c->lane][slot];
    if (bytes == 0) bytes = 1;
    if (*have >= bytes) return *p;
    if (*p && !cuda_ok(b, cudaFreeAsync(*p, STREAM(b)), "归还工作区")) return NULL;
    c->memory.used -= *have;
    *have = 0;
    cudaError_t code = take(c, p, bytes);
    if (code == cudaErrorMemoryAllocation) {
        cuda_fail(b, ERR_MEMORY, "显存不足：工作区要 %zu 字节", bytes);
        return NULL;
    }
    if (!cuda_ok(b, code, "分配工作区")) return NULL;
    *have = bytes;
    return *p;
}

static void *memory_alloc(Allocator *self, size_t bytes) {
    CudaBackend *c = (CudaBackend *)self->owner;
    void *p;
    bool inject = self->fail_at > 0 && self->n_allocs + 1 == self->fail_at;
    if (inject) {
        self->fail_at = 0;
        return NULL;
    }
    cudaError_t code = take(c, &p, bytes);
    if (code == cudaErrorMemoryAllocation) { /* 此刻没有算子在用工作区 */
        drop_slots(c);
        code = take(c, &p, bytes);
    }
    if (code == cudaErrorMemoryAllocation || !cuda_ok(c->self, code, "分配显存")) return NULL;
    cuda_ok(c->self, cudaMemsetAsync(p, 0, bytes, STREAM(c->self)), "清零");
    self->n_allocs++;
    return p;
}
static void memory_release(Allocator *self, void *p, size_t bytes) {
    CudaBackend *c = (CudaBackend *)self->owner;
    cuda_ok(c->self, cudaFreeAsync(p, STREAM(c->self)), "归还显存");
    self->used -= bytes;
}
static void memory_clear(Allocator *self, void *p, size_t bytes) {
    CudaBackend *c = (CudaBackend *)self->owner;
    cuda_ok(c->self, cudaMemsetAsync(p, 0, bytes, STREAM(c->self)), "清零");
}

/* ---- 主机的锁页内存，设备直接读写 ---- */

static void *mapped_alloc(Allocator *self, size_t bytes) {
    CudaBackend *c = (CudaBackend *)self->owner;
    void *p = NULL;
    cudaError_t code = cudaHostAlloc(&p, bytes, cudaHostAllocMapped);
    if (code == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return NULL;
    }
    if (!cuda_ok(c->self, code, "锁页内存")) return NULL;
    memset(p, 0, bytes);
    self->n_allocs++;
    self->used += bytes;
    if (self->used > self->peak) self->peak = self->used;
    return p;
}
static void mapped_release(Allocator *self, void *p, size_t bytes) {
    CudaBackend *c = (CudaBackend *)self->owner;
    cuda_ok(c->self, cudaStreamSynchronize(STREAM(c->self)), "等待");
    cuda_ok(c->self, cudaFreeHost(p), "归还锁页内存");
    self->used -= bytes;
}

/* ---- 预取 ---- */

static void side(Backend *b, SideStep step) {
    CudaBackend *c = cuda_of(b);
    cuda_unchain(b); /* 权重换了：后面的内核不可提早去读 */
    if (step == SIDE_BEGIN) {
        cuda_ok(b, cudaStreamWaitEvent(c->lanes[LANE_SIDE], c->computed, 0), "等待计算");
        c->lane = LANE_SIDE;
    } else if (step == SIDE_END) {
        cuda_ok(b, cudaEventRecord(c->loaded, c->lanes[LANE_SIDE]), "事件");
        c->lane = LANE_MAIN;
    } else {
        cuda_ok(b, cudaEventRecord(c->computed, c->lanes[LANE_MAIN]), "事件");
        cuda_ok(b, cudaStreamWaitEvent(c->lanes[LANE_MAIN], c->loaded, 0), "等待预取");
    }
    c->stream = c->lanes[c->lane];
}

/* ---- 余量与退让 ---- */

static size_t room(Backend *b) {
    CudaBackend *c = cuda_of(b);
    size_t free_bytes = 0, total = 0, idle = 0;
    uint64_t reserved = 0, busy = 0;
    if (!cuda_ok(b, cudaMemGetInfo(&free_bytes, &total), "查显存") ||
        !cuda_ok(b, cudaMemPoolGetAttribute(c->pool, cudaMemPoolAttrReservedMemCurrent, &reserved), "内存池") ||
        !cuda_ok(b, cudaMemPoolGetAttribute(c->pool, cudaMemPoolAttrUsedMemCurrent, &busy), "内存池"))
        return 0;
    idle = free_bytes + (reserved > busy ? (size_t)(reserved - busy) : 0);
    if (!c->memory.limit) return idle;
    size_t left = c->memory.limit > c->memory.used ? c->memory.limit - c->memory.used : 0;
    return left < idle ? left : idle;
}
static void recover(Backend *b) {
    CudaBackend *c = cuda_of(b);
    drop_slots(c);
    reclaim(c);
}

/* 环境变量里的上限：字节数，可带 K、M、G。返回: 写得不对为假。 */
static bool read_limit(size_t *bytes) {
    const char *text = getenv("PTQ_CUDA_MEMORY_LIMIT");
    char *end;
    if (!text || !*text) return true;
    unsigned long long n = strtoull(text, &end, 10);
    int shift = *end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0;
    if (text[0] < '0' || text[0] > '9' || (shift ? end[1] : end[0]) || n == 0 || n > SIZE_MAX >> shift) return false;
    *bytes = (size_t)n << shift;
    return true;
}

bool memory_open(Backend *b) {
    CudaBackend *c = cuda_of(b);
    uint64_t keep = UINT64_MAX;
    c->memory.alloc = memory_alloc, c->memory.release = memory_release, c->memory.clear = memory_clear;
    c->mapped.alloc = mapped_alloc, c->mapped.release = mapped_release, c->mapped.clear = memory_clear;
    c->memory.owner = c->mapped.owner = c;
    c->memory.name = "显存", c->mapped.name = "锁页内存";
    b->memory = &c->memory, b->mapped = &c->mapped;
    b->vram_peak = vram_peak, b->side = side, b->room = room, b->recover = recover;
    if (!read_limit(&c->memory.limit))
        return cuda_fail(b, ERR_CONFIG, "PTQ_CUDA_MEMORY_LIMIT 应为字节数，可带 K、M、G，如 6G，实为 '%.40s'",
                         getenv("PTQ_CUDA_MEMORY_LIMIT"));
    for (int i = 0; i < N_LANES; i++)
        if (!cuda_ok(b, cudaStreamCreateWithFlags(&c->lanes[i], cudaStreamNonBlocking), "建立流")) return false;
    c->stream = c->lanes[LANE_MAIN];
    return cuda_ok(b, cudaEventCreateWithFlags(&c->computed, cudaEventDisableTiming), "事件") &&
           cuda_ok(b, cudaEventCreateWithFlags(&c->loaded, cudaEventDisableTiming), "事件") &&
           cuda_ok(b, cudaDeviceGetDefaultMemPool(&c->pool, 0), "内存池") &&
           cuda_ok(b, cudaMemPoolSetAttribute(c->pool, cudaMemPoolAttrReleaseThreshold, &keep), "内存池");
}

void memory_close(CudaBackend *c) {
    if (c->lanes[LANE_SIDE]) drop_slots(c); /* 两条流都建好了才会有 */
    if (c->computed) cudaEventDestroy(c->computed);
    if (c->loaded) cudaEventDestroy(c->loaded);
    for (int i = 0; i < N_LANES; i++) {
        if (!c->lanes[i]) continue;
        cudaStreamSynchronize(c->lanes[i]);
        cudaStreamDestroy(c->lanes[i]);
    }
}
