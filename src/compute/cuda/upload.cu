/* upload — 主机 → 显存：大块经两个锁页的缓冲轮流走，主机各线程复制下一段的同时上一段在传
 * 权重的有限与否由这些线程在复制时顺带看（刚复制的还在缓存里），不必为此等设备。 */
#include <stdlib.h>
#include <string.h>

#include "compute/cuda/linear.h"

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

/* 要查的：各数（2 或 4 字节）去掉符号后都小于 top；item 为 0 不查。 */
struct Range {
    size_t item;
    uint32_t top;
    bool beyond; /* 出：有不小于 top 的 */
};
struct CopyJob {
    char *dst; /* NULL：只查 */
    const char *src;
    size_t bytes;
    Range *range; /* 或 NULL */
};
template <typename T, typename S> static bool beyond(const char *p, size_t bytes, uint32_t top) {
    T bad = 0, limit = (T)(top - 1), mask = (T)~((T)1 << (8 * sizeof(T) - 1));
    for (size_t i = 0; i < bytes; i += sizeof(T)) {
        T v;
        memcpy(&v, p + i, sizeof v);
        bad |= (T)((S)(v & mask) > (S)limit);
    }
    return bad != 0;
}
static void copy_task(void *ctx, int64_t task) {
    enum { NEAR = 32768 }; /* 复制完还在一级缓存里 */
    const CopyJob *j = (const CopyJob *)ctx;
    Range *r = j->range && j->range->item ? j->range : NULL;
    size_t at = (size_t)task * COPY_PIECE, end = j->bytes - at < COPY_PIECE ? j->bytes : at + COPY_PIECE;
    bool bad = false;
    for (; at < end; at += NEAR) {
        size_t n = end - at < NEAR ? end - at : NEAR;
        if (j->dst) memcpy(j->dst + at, j->src + at, n);
        if (r) bad |= r->item == 2 ? beyond<uint16_t, int16_t>(j->src + at, n, r->top) : beyond<uint32_t, int32_t>(j->src + at, n, r->top);
    }
    if (bad) __atomic_store_n(&r->beyond, true, __ATOMIC_RELAXED);
}
static void copy_parallel(Backend *b, char *dst, const char *src, size_t bytes, Range *range) {
    CopyJob j = {dst, src, bytes, range};
    b->host->ops->parallel(b->host, (int64_t)((bytes - 1) / COPY_PIECE + 1), copy_task, &j);
}

static bool upload_direct(Backend *b, void *dst, const void *host, size_t bytes, Range *range) {
    if (range && range->item) copy_parallel(b, NULL, (const char *)host, bytes, range);
    return cuda_ok(b, cudaMemcpyAsync(dst, host, bytes, cudaMemcpyDefault, STREAM(b)), "写入") &&
           cuda_ok(b, cudaStreamSynchronize(STREAM(b)), "等待");
}
/* 预取时小块也走缓冲：不等前面的传完。 */
static bool upload(Backend *b, void *dst, const void *host, size_t bytes, Range *range) {
    CudaBackend *c = cuda_of(b);
    cuda_unchain(b); /* 传的可能是权重：后面的内核不可提早去读 */
    if (bytes < DIRECT_BYTES && c->lane == LANE_MAIN) return upload_direct(b, dst, host, bytes, range);
    Uploader *u = uploader_of(b);
    if (u && u->pageable) return upload_direct(b, dst, host, bytes, range);
    bool ok = u && b->err.code == ERR_NONE;
    for (size_t at = 0; ok && at < bytes; at += STAGE_BYTES) {
        size_t n = bytes - at < STAGE_BYTES ? bytes - at : STAGE_BYTES;
        int i = u->next;
        u->next = (i + 1) % N_STAGES;
        ok = cuda_ok(b, cudaEventSynchronize(u->sent[i]), "等待"); /* 上次用它的那一段已传完 */
        if (ok) copy_parallel(b, u->pinned[i], (const char *)host + at, n, range);
        ok = ok && cuda_ok(b, cudaMemcpyAsync((char *)dst + at, u->pinned[i], n, cudaMemcpyDefault, STREAM(b)), "写入") &&
             cuda_ok(b, cudaEventRecord(u->sent[i], STREAM(b)), "事件");
    }
    return ok; /* 内容已在锁页的缓冲里，不必等传完 */
}
bool cuda_upload(Backend *b, void *dst, const void *host, size_t bytes) {
    return upload(b, dst, host, bytes, NULL);
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

/* ---- 直接装成稠密权重 ---- */

static Range range_of(DType stored, DType dense) {
    Range r = {stored == DT_F32 ? 4u : 2u, 0x7C00, false};
    if (stored == DT_F32) r.top = dense == DT_F16 ? 0x477FF000u /* 65520 */ : dense == DT_BF16 ? 0x7F7F8000u : 0x7F800000u;
    if (stored == DT_BF16) r.top = dense == DT_F16 ? 0x4780 /* 65536 */ : 0x7F80;
    return r;
}
/* src 是 stored 类型、行主序的 rows 行，写到 dst 的行（行距 stride，行尾补零）。 */
__global__ static void store_kernel(void *dst, DType dense, int64_t stride, const void *src, DType stored, int64_t rows, int64_t cols) {
    EACH(i, rows * stride) {
        int64_t r = i / stride, k = i % stride;
        real_put(dst, dense, i, k < cols ? real_at(src, stored, r * cols + k) : 0);
    }
}
/* 与设备上的布局相同的直接传到位；要换算的一段段经工作区。 */
void cuda_pack_stored(Backend *b, QTensor *q, const void *host, DType stored, bool *finite) {
    enum { PIECE = 16 << 20 };
    int64_t stride = dense_stride(q), item = stored == DT_F32 ? 4 : 2, out = q->dense == DT_F32 ? 4 : 2, line = q->cols * item;
    bool same = stored == q->dense && stride == q->cols, ok = true;
    int64_t step = same || PIECE / line >= q->rows ? q->rows : line >= PIECE ? 1 : PIECE / line;
    Range range = range_of(stored, q->dense), *check = finite ? &range : NULL;
    void *raw = same ? q->data : cuda_slot(b, SLOT_Z, (size_t)(step * line));
    for (int64_t r = 0; ok && raw && r < q->rows; r += step) {
        int64_t n = q->rows - r < step ? q->rows - r : step;
        ok = upload(b, raw, (const char *)host + r * line, (size_t)(n * line), check);
        if (!ok || same) continue;
        store_kernel<<<cuda_blocks(n * stride, 1024), 256, 0, STREAM(b)>>>((char *)q->data + r * stride * out, q->dense, stride, raw,
                                                                          stored, n, q->cols);
        ok = LAUNCHED(b, "装载");
    }
    if (finite) *finite = !range.beyond;
}
