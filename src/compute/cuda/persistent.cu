/* persistent — 逐 token 解码（一个序列）的常驻内核
 * 分开派发时每个小内核有 6–8 微秒不在读权重：启动、取输入、收尾。这里把线性层与注意力排成一队，一个内核依次做：每个流式多处理器一块，
 * 各步之间全体会合（一个只增的计数）。权重不依赖前面的结果，所以一直往前取（persistent_linear.h）。
 * 队伍在别的算子要用流的时候（cuda.h 的 STREAM）或攒够了才派发：头几步先走，主机接着排后面的。
 * 归约的次序都固定，同样的输入得到同样的位。别的块写的数只在二级缓存里，读它们用 __ldcg。 */
#include <stdlib.h>
#include <string.h>

#include "compute/cuda/attention.h"
#include "compute/cuda/persistent.h"
#include "compute/cuda/persistent_linear.h"

enum { FIRST_PHASES = 10, GROW = 4 /* 头一次攒几步就派发，以后每次几倍 */, MOST_COLS = 16384 };

struct PersistentQueue {
    PersistentJob job;
    unsigned *barrier, base; /* 显存里的计数，它在下一次派发之前的值 */
    int kind, limit;
    size_t shared; /* 一块至多几字节共享内存 */
};

/* ---- 内核 ---- */

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* 全体会合：此前的写，此后各块都看得见（经二级缓存）。 */
__device__ static void meet(unsigned *barrier, unsigned target) {
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned seen;
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(barrier) : "memory");
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(barrier) : "memory");
        while ((int)(seen - target) < 0);
    }
    __syncthreads();
}
#endif
template <int BITS, bool FINE> __global__ __launch_bounds__(THREADS, 1) static void persistent_kernel(const __grid_constant__ PersistentJob j) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    typedef Slot<BITS, FINE> S;
    typedef Ring<BITS, FINE> R;
    extern __shared__ uint4 dynamic[];
    __shared__ uint64_t bars[(BITS ? 2 : WARPS) * R::DEPTH];
    Phase *copy = (Phase *)((char *)dynamic + R::BYTES);
    const Phase *phases = BITS ? copy : j.phase;
    char *rest = (char *)(copy + (BITS ? PHASES : 0));
    Input in = {(__nv_bfloat16 *)rest, BITS ? (float *)(rest + j.ldx * 2) : NULL};
    Work work = {j.n, j.watched, phases};
    Stream<BITS, FINE> stream;
    Early early;
    for (int i = threadIdx.x; BITS && i < j.n * (int)(sizeof(Phase) / 16); i += THREADS) ((uint4 *)copy)[i] = ((const uint4 *)j.phase)[i];
    __syncthreads();
    stream.open(work, (S *)dynamic, bars);
    grid_release();
    grid_wait();
    if (phases[0].attend) load_early(&early, phases[0].step);
    for (int p = 0; p < j.n; p++) {
        const Phase &now = phases[p];
        if (now.attend)
            now.step.f16 ? attend_all<__half>(now.step, early, rest) : attend_all<__nv_bfloat16>(now.step, early, rest);
        else
            linear_phase(work, p, in, &stream);
        if (p + 1 == j.n) return;
        if (phases[p + 1].attend) load_early(&early, phases[p + 1].step);
        meet(j.barrier, j.base + (p + 1) * gridDim.x);
    }
#endif
}

/* ---- 主机 ---- */

bool persistent_open(Backend *b) {
    CudaBackend *c = cuda_of(b);
    if (strcmp(c->isa, "sm_90") != 0) return true; /* 只有 sm_90a 的机器码里有内容 */
    PersistentQueue *q = (PersistentQueue *)calloc(1, sizeof *q);
    if (!q) return cuda_fail(b, ERR_MEMORY, "内存不足");
    c->queue = q;
    q->limit = FIRST_PHASES, q->shared = (size_t)c->shared; /* 静态的也算在内 */
    return cuda_ok(b, cudaMallocAsync((void **)&q->barrier, sizeof *q->barrier, c->stream), "显存") &&
           cuda_ok(b, cudaMemsetAsync(q->barrier, 0, sizeof *q->barrier, c->stream), "清零");
}
void persistent_close(CudaBackend *c) {
    if (c->queue && c->queue->barrier) cudaFreeAsync(c->queue->barrier, c->stream);
    free(c->queue);
    c->queue = NULL;
}

/* 一块用的共享内存，静态的除外。 */
template <int BITS, bool FINE> static size_t shared_bytes(int64_t ldx) {
    size_t input = (size_t)ldx * 2 + (BITS ? (size_t)(ldx / QT_KBLOCK) * 4 : 0), attend = sizeof(AttendShared<__half>);
    return Ring<BITS, FINE>::BYTES + (BITS ? PHASES * sizeof(Phase) : 0) + (input > attend ? input : attend);
}
template <int BITS, bool FINE> static bool launch(Backend *b, PersistentQueue *q, bool *fits, int64_t ldx) {
    static size_t most; /* 至多几字节；多于 48 KB 要先说 */
    if (!most) {
        cudaFuncAttributes a;
        if (!cuda_ok(b, cudaFuncGetAttributes(&a, persistent_kernel<BITS, FINE>), "共享内存") ||
            !cuda_ok(b, cudaFuncSetAttribute(persistent_kernel<BITS, FINE>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             (int)(q->shared - a.sharedSizeBytes)), "共享内存"))
            return false;
        most = q->shared - a.sharedSizeBytes;
    }
    if (fits) return *fits = shared_bytes<BITS, FINE>(ldx) <= most;
    launch_early(b, persistent_kernel<BITS, FINE>, dim3((unsigned)cuda_of(b)->sms), dim3(THREADS), shared_bytes<BITS, FINE>(ldx), q->job);
    return LAUNCHED(b, "常驻");
}
/* fits 非 NULL：不派发，只看 ldx 列的输入放不放得下。 */
static bool launch_kind(Backend *b, PersistentQueue *q, int kind, bool *fits, int64_t ldx) {
    switch (kind) {
    case 0: return launch<0, false>(b, q, fits, ldx);
    case 4: return launch<2, false>(b, q, fits, ldx);
    case 5: return launch<2, true>(b, q, fits, ldx);
    case 6: return launch<3, false>(b, q, fits, ldx);
    case 7: return launch<3, true>(b, q, fits, ldx);
    case 8: return launch<4, false>(b, q, fits, ldx);
    case 9: return launch<4, true>(b, q, fits, ldx);
    case 16: return launch<8, false>(b, q, fits, ldx);
    default: return launch<8, true>(b, q, fits, ldx);
    }
}
static void dispatch(Backend *b) {
    CudaBackend *c = cuda_of(b);
    PersistentQueue *q = c->queue;
    if (!c->queued) return;
    q->job.n = c->queued, q->job.barrier = q->barrier, q->job.base = q->base, q->job.watched = c->watched;
    c->queued = 0; /* 派发时还要取流 */
    if (launch_kind(b, q, q->kind, NULL, q->job.ldx))
        q->base += (unsigned)(q->job.n - 1) * (unsigned)c->sms; /* 末一步之后不会合 */
    q->job.ldx = 0;
}
void cuda_flush(Backend *b) {
    dispatch(b);
    cuda_of(b)->queue->limit = FIRST_PHASES;
}
/* 排上一步；攒够了的先派发。 */
static Phase *next_phase(Backend *b) {
    CudaBackend *c = cuda_of(b);
    PersistentQueue *q = c->queue;
    if (c->queued == q->limit) {
        dispatch(b);
        q->limit = GROW * q->limit < PHASES ? GROW * q->limit : PHASES;
    }
    Phase *p = &q->job.phase[c->queued++];
    *p = Phase{};
    return p;
}

static bool same_format(const QTensor *a, const QTensor *b) {
    return gemv_kind(a) == gemv_kind(b) && a->n_groups == b->n_groups && a->spec.group_size == b->spec.group_size &&
           a->spec.scale_dtype == b->spec.scale_dtype && a->spec.zero == b->spec.zero;
}
static bool outs_accepted(const LinearOut *out, int n_out) {
    bool ok = n_out <= OUTS;
    for (int i = 0; ok && i < n_out; i++)
        ok = gemv_accepts(out[i].w, 1) && same_format(out[i].w, out[0].w) && !out[i].w->perm && !out[i].half &&
             (out[i].sum != NULL) == (out[0].sum != NULL);
    return ok;
}
/* 输入能不能由各块自己化成 bf16。 */
static bool input_accepted(Backend *b, const LinearIn *in, int64_t cols, bool *half) {
    const NormSpec *s = &in->norm;
    *half = gated_of(b, in, 1).product;
    if (in->half || cols > MOST_COLS || cols % (*half ? 8 : 4)) return false;
    return *half || in->kind == IN_PLAIN || (in->kind == IN_NORM && !s->center && !s->bias && s->weight && s->period == 1);
}
bool persistent_linear(Backend *b, const LinearOut *out, int n_out, const LinearIn *in) {
    CudaBackend *c = cuda_of(b);
    PersistentQueue *q = c->queue;
    int64_t cols = out[0].w->cols, pad = 8 * QT_KBLOCK, ldx = (cols + pad - 1) / pad * pad;
    bool half, fits, product = gemv_product(out, n_out);
    if (!q || c->lane != LANE_MAIN || !outs_accepted(out, n_out) || !input_accepted(b, in, cols, &half)) return false;
    int kind = gemv_kind(out[0].w);
    if (!launch_kind(b, q, kind, &fits, ldx)) return false;
    if (c->queued && q->kind != kind) cuda_flush(b);
    Phase *p = next_phase(b);
    q->kind = kind;
    if (ldx > q->job.ldx) q->job.ldx = (int)ldx;
    LinearPhase *l = &p->linear;
    l->f = gemv_format(out[0].w), l->n_out = n_out, l->cols = (int)cols, l->blocks = (int)((cols - 1) / QT_KBLOCK + 1);
    l->watch = -1, l->add = out[0].sum != NULL, l->product = product, l->half = half, l->act = out[0].f;
    l->raw = in->x, l->norm = in->kind == IN_NORM, l->weight = in->norm.weight, l->eps = in->norm.eps;
    for (int i = 0; i < n_out; i++) {
        int64_t rows = out[i].w->rows;
        int panels = (int)((rows - 1) / QT_PANEL + 1), units = kind == 0 ? (int)rows : product ? panels : (panels + 1) / 2;
        l->out[i] = PhaseOut{gemv_side(&out[i], 0, rows), out[i].y, l->units};
        if (!product || i == 0) l->units += units;
    }
    if (out[0].opaque) c->product = product;
    return true;
}
bool persistent_step(Backend *b, const StepJob *j) {
    CudaBackend *c = cuda_of(b);
    const AttnSpec *s = &j->spec;
    if (!c->queued || j->n != 1 || j->half_out || s->bias || s->head_dim % 8 || s->head_dim > MAX_DIM) return false;
    KvStore *k = j->rows[0].k, *v = j->rows[0].v;
    int64_t pos = j->rows[0].pos, dim = s->head_dim, width = s->n_kv_heads * dim, group = s->n_heads / s->n_kv_heads;
    int64_t heads = s->n_kv_heads * ((group + HEADS - 1) / HEADS), seen = s->window > 0 && s->window < pos + 1 ? s->window : pos + 1;
    int64_t splits = c->sms / heads, most = (seen - 1) / 16 + 1;
    if (k->f.dtype == DT_F32 || heads > COUNTERS) return false;
    if (splits > most) splits = most;
    splits = splits < 1 ? 1 : splits > MAX_SPLITS ? MAX_SPLITS : splits;
    float *part = (float *)cuda_slot(b, SLOT_A, (size_t)(s->n_heads * MAX_SPLITS * (dim + 2)) * 4); /* 要重新分配时先派发了已排的 */
    if (!part || !c->queued) return false;
    Phase *p = next_phase(b);
    p->attend = true;
    AttendPhase *a = &p->step;
    a->out = (float *)j->out, a->part = part, a->q = j->q, a->step = StepArgs{j->k, j->v, j->cos_table, j->sin_table, (int)j->half, j->interleaved};
    a->keys = (uint16_t *)k->data - k->first * width, a->values = (uint16_t *)v->data - v->first * width;
    a->done = c->counters, a->pos = (int)pos, a->heads = (int)s->n_heads, a->kv_heads = (int)s->n_kv_heads, a->dim = (int)dim;
    a->window = (int)s->window, a->splits = (int)splits, a->scale = s->scale, a->softcap = s->softcap;
    a->f16 = k->f.dtype == DT_F16;
    k->length++, v->length++;
    return true;
}
bool persistent_watch(Backend *b, const float *x, int64_t n, int tag) {
    CudaBackend *c = cuda_of(b);
    if (!c->queued) return false;
    Phase *p = &c->queue->job.phase[c->queued - 1];
    LinearPhase *l = &p->linear;
    if (p->attend || l->n_out != 1 || l->product || l->out[0].y != x || l->out[0].side.rows != n || l->watch >= 0) return false;
    l->watch = tag;
    return true;
}
