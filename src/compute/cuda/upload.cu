/* upload — 主机 → 显存：大块经两个锁页的缓冲轮流走，主机各线程复制下一段的同时上一段在传 */
#include <stdlib.h>
#include <string.h>

#include "compute/cuda/cuda.h"

enum { N_STAGES = 2, COPY_PIECE = 1 << 20 };
static const size_t STAGE_BYTES = (size_t)64 << 20, DIRECT_BYTES = (size_t)1 << 20;

struct Uploader {
    char *pinned[N_STAGES];
    cudaEvent_t sent[N_STAGES];
    int next;      /* 轮到哪一个缓冲 */
    bool pageable; /* 锁不住内存：直接传 */
};
static Uploader *uploader_of(Backend *b) {
    CudaBackend *c = cuda_of(b);
    if (c->uploader) return c->uploader;
    Uploader *u = (Uploader *)calloc(1, sizeof *u);
    if (!u) {
        cuda_fail(b, ERR_MEMORY, "内存不足");
        return NULL;
    }
    c->uploader = u;
    for (int i = 0; i < N_STAGES; i++) {
        cudaError_t code = cudaMallocHost((void **)&u->pinned[i], STAGE_BYTES);
        if (code == cudaErrorMemoryAllocation) { /* 主机不让锁这么多：慢一点，不是错误 */
            cudaGetLastError();
            u->pinned[i] = NULL;
            u->pageable = true;
        } else if (!cuda_ok(b, code, "锁页内存")) {
            return NULL;
        }
        if (!cuda_ok(b, cudaEventCreateWithFlags(&u->sent[i], cudaEventDisableTiming), "事件")) return NULL;
    }
    return u;
}
void uploader_close(CudaBackend *c) {
    Uploader *u = c->uploader;
    if (!u) return;
    for (int i = 0; i < N_STAGES; i++) {
        if (u->sent[i]) cudaEventDestroy(u->sent[i]);
        if (u->pinned[i]) cudaFreeHost(u->pinned[i]);
    }
    free(u);
    c->uploader = NULL;
}

struct CopyJob {
    char *dst;
    const char *src;
    size_t bytes;
};
static void copy_task(void *ctx, int64_t task) {
    const CopyJob *j = (const CopyJob *)ctx;
    size_t at = (size_t)task * COPY_PIECE, n = j->bytes - at < COPY_PIECE ? j->bytes - at : COPY_PIECE;
    memcpy(j->dst + at, j->src + at, n);
}

static bool upload_direct(Backend *b, void *dst, const void *host, size_t bytes) {
    return cuda_ok(b, cudaMemcpyAsync(dst, host, bytes, cudaMemcpyDefault, STREAM(b)), "写入") &&
           cuda_ok(b, cudaStreamSynchronize(STREAM(b)), "等待");
}
/* 预取时小块也走缓冲：不等前面的传完。 */
bool cuda_upload(Backend *b, void *dst, const void *host, size_t bytes) {
    CudaBackend *c = cuda_of(b);
    c->chain = c->chained = false; /* 传的可能是权重：后面的内核不可提早去读 */
    if (bytes < DIRECT_BYTES && c->lane == LANE_MAIN) return upload_direct(b, dst, host, bytes);
    Uploader *u = uploader_of(b);
    if (u && u->pageable) return upload_direct(b, dst, host, bytes);
    bool ok = u && b->err.code == ERR_NONE;
    for (size_t at = 0; ok && at < bytes; at += STAGE_BYTES) {
        size_t n = bytes - at < STAGE_BYTES ? bytes - at : STAGE_BYTES;
        int i = u->next;
        u->next = (i + 1) % N_STAGES;
        ok = cuda_ok(b, cudaEventSynchronize(u->sent[i]), "等待"); /* 上次用它的那一段已传完 */
        CopyJob j = {u->pinned[i], (const char *)host + at, n};
        if (ok) b->host->ops->parallel(b->host, (int64_t)((n - 1) / COPY_PIECE + 1), copy_task, &j);
        ok = ok && cuda_ok(b, cudaMemcpyAsync((char *)dst + at, u->pinned[i], n, cudaMemcpyDefault, c->stream), "写入") &&
             cuda_ok(b, cudaEventRecord(u->sent[i], c->stream), "事件");
    }
    return ok; /* 内容已在锁页的缓冲里，不必等传完 */
}

__global__ static void decode_kernel(float *dst, const void *src, DType t, DType rounded, int64_t n) {
    EACH(i, n) {
        float x = real_at(src, t, i);
        if (rounded == DT_BF16) x = __bfloat162float(__float2bfloat16_rn(x));
        if (rounded == DT_F16) x = __half2float(__float2half_rn(x));
        dst[i] = x;
    }
}
void cuda_decode_weights(Backend *b, float *dst, const void *host, DType t, DType rounded, int64_t n) {
    size_t bytes = (size_t)n * (t == DT_F32 ? 4 : 2);
    void *raw = t == DT_F32 ? dst : cuda_slot(b, SLOT_Z, bytes);
    if (!raw || !cuda_upload(b, raw, host, bytes) || (t == DT_F32 && rounded == DT_F32)) return;
    decode_kernel<<<cuda_blocks(n, 1024), 256, 0, STREAM(b)>>>(dst, raw, t, rounded, n);
    LAUNCHED(b, "装载");
}
