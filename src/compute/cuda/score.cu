/* score — 语言模型头、log-softmax 与打分，以及它的反向
 * 词表分段：矩阵乘得到一段 logits，再逐行在线更新 (最大值, Σexp)；整块 logits 从不存在。一块一行，归约次序固定。 */
#include <math.h>
#include <stdlib.h>

#include "compute/cuda/cuda_ops.h"

enum { CHUNK = 16384, MAX_ROWS = 2048, FEW_ROWS = 32, THREADS = 512, PARTS = 32 /* 行少时一行分给几块 */ };

struct RowState {
    double sum, dot; /* Σ e^{z−max}；Σ e^{z−max}(z−另一个 z) */
    float max, target;
    int32_t top1;
};

/* targets 非 NULL：目标由 few 写进去。 */
__global__ static void start_kernel(RowState *s, int32_t *targets, const __grid_constant__ Few few, int64_t n) {
    grid_release();
    grid_wait();
    EACH(i, n) {
        s[i] = RowState{0, 0, -INFINITY, NAN, 0};
        if (targets) targets[i] = few.v[i];
    }
}
static bool start(Backend *b, RowState *s, int32_t *targets, const Few &few, int64_t n) {
    launch_early(b, start_kernel, dim3(cuda_blocks(n, 256)), dim3(256), 0, s, targets, few, n);
    return LAUNCHED(b, "打分");
}
__global__ static void softcap_kernel(float *z, int64_t n, float cap) {
    EACH(i, n) z[i] = cap * tanhf(z[i] / cap);
}
/* 一段 logits 的在线统计；并列取下标小的。 */
struct Online {
    double sum, dot;
    float max;
    int at;
};
__device__ static void merge(Online *a, const Online &b) {
    if (b.max > a->max || (b.max == a->max && b.at < a->at)) a->at = b.at;
    float m = b.max > a->max ? b.max : a->max;
    double fa = a->max == m ? 1 : a->max == -INFINITY ? 0 : exp((double)a->max - (double)m);
    double fb = b.max == m ? 1 : b.max == -INFINITY ? 0 : exp((double)b.max - (double)m);
    a->sum = a->sum * fa + b.sum * fb;
    a->dot = a->dot * fa + b.dot * fb;
    a->max = m;
}
/* 一段的统计并入一行的。 */
__device__ static void take(RowState *me, const Online &part, int64_t col0) {
    Online now = {me->sum, me->dot, me->max, 0};
    if (part.max > now.max) me->top1 = (int32_t)(col0 + part.at);
    merge(&now, part);
    me->sum = now.sum, me->dot = now.dot, me->max = now.max;
}
/* 一行 gridDim.y 块，各读一段；只有一块时直接并入。other 非 NULL：累加 dot。 */
__global__ static void chunk_kernel(RowState *s, Online *parts, const float *z, const float *other, const int32_t *targets,
                                    int64_t col0, int64_t width) {
    __shared__ Online sh[THREADS];
    RowState *me = s + blockIdx.x;
    const float *row = z + blockIdx.x * width, *o = other ? other + blockIdx.x * width : NULL;
    int t = threadIdx.x, part = blockIdx.y, from = (int)(width * part / gridDim.y), to = (int)(width * (part + 1) / gridDim.y);
    grid_release();
    grid_wait();
    Online mine = {0, 0, -INFINITY, (int)width};
    for (int i = from + t; i < to; i += THREADS) {
        float x = row[i];
        if (x > mine.max) {
            double shrink = mine.max == -INFINITY ? 0 : (double)expf(mine.max - x);
            mine.sum *= shrink, mine.dot *= shrink;
            mine.max = x, mine.at = i;
        }
        double p = x == mine.max ? 1 : (double)expf(x - mine.max);
        mine.sum += p;
        if (o) mine.dot += p * (double)(x - o[i]);
    }
    sh[t] = mine;
    for (int k = THREADS / 2; k; k /= 2) {
        __syncthreads();
        if (t < k) merge(&sh[t], sh[t + k]);
    }
    if (t) return;
    int64_t at = targets[blockIdx.x] - col0;
    if (at >= from && at < to) me->target = row[at];
    if (gridDim.y == 1)
        take(me, sh[0], col0);
    else
        parts[blockIdx.x * gridDim.y + part] = sh[0];
}
__global__ static void parts_kernel(RowState *s, const Online *parts, int n, int64_t col0) {
    __shared__ Online sh[PARTS];
    grid_release();
    grid_wait();
    sh[threadIdx.x] = parts[blockIdx.x * n + threadIdx.x];
    __syncthreads();
    for (int p = 0; threadIdx.x == 0 && p < n; p++) take(s + blockIdx.x, sh[p], col0);
}

struct Pass {
    RowState *cur, *ref;
    float *z, *z_ref;
    int32_t *targets;
    Online *parts;
};
/* 一段 logits 并入各行的统计。 */
static bool take_chunk(Backend *b, const Pass *p, RowState *s, const float *z, const float *other, int64_t n, int64_t col0,
                       int64_t width) {
    unsigned parts = n <= FEW_ROWS ? PARTS : 1;
    launch_early(b, chunk_kernel, dim3((unsigned)n, parts), dim3(THREADS), 0, s, p->parts, z, other, p->targets, col0, width);
    if (!LAUNCHED(b, "打分") || parts == 1) return b->err.code == ERR_NONE;
    launch_early(b, parts_kernel, dim3((unsigned)n), dim3(PARTS), 0, s, p->parts, PARTS, col0);
    return LAUNCHED(b, "打分");
}

/* 一次几列：行少时整个词表。 */
static int64_t chunk_of(const ScoreJob *job) {
    return job->n <= FEW_ROWS ? job->head->rows : CHUNK;
}
static bool score_rows(Backend *b, const ScoreJob *job, const Pass *p, int64_t row0, int64_t n) {
    cudaStream_t st = STREAM(b);
    int64_t vocab = job->head->rows;
    bool few = n <= FEW;
    Few targets = few_of(job->targets + row0, n);
    if (!few) b->ops->write(b, p->targets, job->targets + row0, (size_t)n * 4);
    if (!start(b, p->cur, few ? p->targets : NULL, targets, n) || (p->ref && !start(b, p->ref, NULL, targets, n))) return false;
    for (int64_t c = 0, step = chunk_of(job); c < vocab; c += step) {
        int64_t width = vocab - c < step ? vocab - c : step;
        if (!cuda_linear_part(b, p->z, job->x + row0 * job->head->cols, n, job->head, c, width, false)) return false;
        if (p->ref && !cuda_linear_part(b, p->z_ref, job->ref_x + row0 * job->ref_head->cols, n, job->ref_head, c, width, false))
            return false;
        if (job->softcap > 0) softcap_kernel<<<cuda_blocks(n * width, 256), 256, 0, st>>>(p->z, n * width, job->softcap);
        if (job->softcap > 0 && p->ref)
            softcap_kernel<<<cuda_blocks(n * width, 256), 256, 0, st>>>(p->z_ref, n * width, job->softcap);
        if (!take_chunk(b, p, p->cur, p->z, NULL, n, c, width) ||
            (p->ref && !take_chunk(b, p, p->ref, p->z_ref, p->z, n, c, width)))
            return false;
    }
    return true;
}

static void write_rows(const ScoreJob *job, const RowState *cur, const RowState *ref, int64_t row0, int64_t n) {
    for (int64_t r = 0; r < n; r++) {
        int64_t i = row0 + r;
        double lse = (double)cur[r].max + log(cur[r].sum);
        job->nll[i] = job->targets[i] < 0 ? 0 : lse - (double)cur[r].target;
        if (job->lse) job->lse[i] = lse;
        if (job->top1) job->top1[i] = cur[r].top1;
        if (job->top_nll) job->top_nll[i] = lse - (double)cur[r].max;
        if (!ref) continue;
        double kl = ref[r].dot / ref[r].sum - ((double)ref[r].max + log(ref[r].sum)) + lse;
        job->kl[i] = kl < 0 && kl > -1e-7 ? 0 : kl;
        if (job->ref_top1) job->ref_top1[i] = ref[r].top1;
    }
}

void cuda_score(Backend *b, const ScoreJob *job) {
    bool has_ref = job->ref_x != NULL;
    int64_t rows = job->n < MAX_ROWS ? job->n : MAX_ROWS, models = has_ref ? 2 : 1;
    size_t z_bytes = (size_t)(rows * chunk_of(job)) * 4, state = (size_t)rows * sizeof(RowState);
    char *z = (char *)cuda_slot(b, SLOT_Z, (size_t)models * z_bytes);
    size_t targets = ((size_t)rows * 4 + 15) / 16 * 16, parts = FEW_ROWS * PARTS * sizeof(Online);
    char *s = (char *)cuda_slot(b, SLOT_A, (size_t)models * state + targets + parts);
    RowState *host = (RowState *)malloc((size_t)models * state);
    if (!host) cuda_fail(b, ERR_MEMORY, "内存不足");
    bool ok = z && s && host;
    if (ok) {
        Pass p = {(RowState *)s, has_ref ? (RowState *)s + rows : NULL, (float *)z, (float *)(z + z_bytes),
                  (int32_t *)(s + (size_t)models * state), (Online *)(s + (size_t)models * state + targets)};
        for (int64_t r = 0; ok && r < job->n; r += rows) {
            int64_t n = job->n - r < rows ? job->n - r : rows;
            ok = score_rows(b, job, &p, r, n);
            if (ok) b->ops->read(b, host, s, (size_t)models * state);
            if (ok) write_rows(job, host, has_ref ? host + rows : NULL, r, n);
        }
    }
    free(host);
}

__global__ static void coefficient_kernel(float *z, const double *lse, const int32_t *targets, int64_t n, int64_t width,
                                          int64_t v0, float scale) {
    EACH(i, n * width) {
        int64_t r = i / width, c = i % width;
        float p = targets[r] < 0 ? 0 : scale * expf(z[i] - (float)lse[r]);
        z[i] = targets[r] - v0 == c ? p - scale : p;
    }
}
void cuda_score_grad(Backend *b, const ScoreGradJob *job) {
    enum { PART = 4096 };
    int64_t n = job->n, d = job->head->cols, vocab = job->head->rows;
    /* 一整块：lse、z、head、part、targets */
    size_t at[6] = {0}, sizes[5] = {(size_t)n * 8, (size_t)(n * PART) * 4, (size_t)(PART * d) * 4, (size_t)(n * d) * 4,
                                    (size_t)n * 4};
    for (int i = 0; i < 5; i++) at[i + 1] = at[i] + (sizes[i] + 255) / 256 * 256;
    char *tmp = (char *)cuda_slot(b, SLOT_GRAD, at[5]);
    double *lse_host = (double *)malloc((size_t)n * 8), *lse = (double *)(tmp + at[0]);
    float *z = (float *)(tmp + at[1]), *head = (float *)(tmp + at[2]), *part = (float *)(tmp + at[3]);
    int32_t *targets = (int32_t *)(tmp + at[4]);
    if (!lse_host) cuda_fail(b, ERR_MEMORY, "内存不足");
    bool ok = lse_host && tmp;
    if (ok) {
        ScoreJob score = {};
        score.n = n, score.x = job->x, score.head = job->head, score.targets = job->targets, score.nll = job->nll;
        score.lse = lse_host;
        cuda_score(b, &score);
        b->ops->write(b, lse, lse_host, (size_t)n * 8);
        b->ops->write(b, targets, job->targets, (size_t)n * 4);
        cuda_ok(b, cudaMemsetAsync(job->dx, 0, (size_t)(n * d) * 4, STREAM(b)), "清零");
    }
    for (int64_t v0 = 0; ok && v0 < vocab && b->err.code == ERR_NONE; v0 += PART) {
        int64_t width = vocab - v0 < PART ? vocab - v0 : PART;
        if (!cuda_linear_part(b, z, job->x, n, job->head, v0, width, false)) break;
        coefficient_kernel<<<cuda_blocks(n * width, 256), 256, 0, STREAM(b)>>>(z, lse, targets, n, width, v0, job->scale);
        cuda_expand(b, head, job->head, v0, width);
        cuda_matmul(b, part, z, head, n, width, d, false);
        cuda_add(b, job->dx, part, n * d);
    }
    free(lse_host);
}
