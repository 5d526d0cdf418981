/* gemm — Hopper 上自己的矩阵乘：y(n, rows) = x(n, K)·w(rows, K)ᵀ，两边都沿 K 连续
 * 一块 384 个线程：一个线程用 TMA 取数，两个 warpgroup 各算 64 行 × 256 列（wgmma，累加器在寄存器）。K 每步 128 字节，
 * 四级流水，共享内存里是 128 字节的 swizzle；相邻两块成一个 cluster，共用的权重各取一半、互相广播。各块常驻，按利于 L2 的次序
 * 一个个地算输出块；结果经共享内存由 TMA 写出（或加到 y 上），写的时候已在取下一块。一个输出只由一块算、沿 K 依次累加，所以同样的
 * 输入得到同样的位。GATED 时 256 列是 gate 的 128 行与 up 的同样 128 行，同一线程里就有成对的两个数。
 * 只有 sm_90a 的机器码里有内容；别的 GPU 走 cuBLAS。 */
#include "compute/cuda/gemm.h"

#include <cuda.h>
#include <string.h>

#include "compute/cuda/hopper.h"

enum { BM = 128, BN = 256, HALF = 128, STAGES = 4, CONSUMERS = 2 };
enum { A_BYTES = BM * ROW, B_BYTES = BN * ROW, STAGE_BYTES = A_BYTES + B_BYTES, CHUNK = 64 * ROW };
enum { AT_CHUNKS = STAGES * STAGE_BYTES, AT_COLUMNS = AT_CHUNKS + 2 * CONSUMERS * CHUNK,
       AT_BARRIERS = AT_COLUMNS + CONSUMERS * BN * 4, SMEM_BYTES = AT_BARRIERS + 2 * STAGES * 8 };

/* 一个权重与它的输出。 */
struct Part {
    int block0, rows; /* 第一个输出块（沿权重的行）的号 */
    const float *bias;
    const void *scale;
    DType scale_type;
    bool add;
};
struct GemmJob {
    CUtensorMap x, w[GEMM_OUT_MAX], y[GEMM_OUT_MAX];
    Part part[GEMM_OUT_MAX];
    int parts, n, steps; /* steps：K 的步数 */
    int blocks_m, blocks_n, group; /* 输出块的个数（沿 token 以 cluster 计）；沿 token 几个一组 */
    const float *x_scale;
    float linear, cubic; /* f(x) = x/(1+2^{−x(linear+cubic·x²)}) */
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* ---- 输出块的次序 ---- */

struct Tile {
    int m, part, col; /* token 方向第几块（cluster 计）；第几个权重，从它的哪一行起 */
};
/* 沿 token 每 group 块一组，组内先 token 后权重：同时在算的各块凑成近于方的一片，取的数在 L2 里重用。 */
template <int OUT> __device__ static inline Tile tile_at(const GemmJob &j, int t) {
    int per = j.group * j.blocks_n, first = t / per * j.group, rest = t % per;
    int tall = j.blocks_m - first < j.group ? j.blocks_m - first : j.group;
    Tile a = {first + rest % tall, 0, 0};
    int block = rest / tall;
    if (OUT == GEMM_GATED) {
        a.col = block * HALF;
    } else {
        while (a.part + 1 < j.parts && block >= j.part[a.part + 1].block0) a.part++;
        a.col = (block - j.part[a.part].block0) * BN;
    }
    return a;
}

/* ---- 尾声 ---- */

/* 一个线程的两行、逐列的系数。col：bf16 时是偏置，int8 时是 scale。 */
struct Finish {
    const float *col;
    const float *bias; /* int8 的偏置（全局内存，已移到这一块），或 NULL */
    int limit;         /* 余下的行数（bias 的界） */
    float s[2];        /* int8：两个 token 的 s */
};
template <bool INT8, typename T> __device__ static inline float finished(const Finish &f, T acc, int col, int half) {
    if (!INT8) return (float)acc + f.col[col];
    float v = __fmul_rn((float)acc, __fmul_rn(f.col[col], f.s[half]));
    return f.bias && col < f.limit ? __fadd_rn(v, __ldg(f.bias + col)) : v;
}
__device__ static inline float gate_of(const GemmJob &j, float g, float u) {
    float e;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(-g * (j.linear + j.cubic * (g * g))));
    return __fdividef(g, 1.0f + e) * u;
}
/* 64 行 × 32 列 f32 写进 swizzle 的一块；acc 是这 32 列的 16 个。 */
template <bool INT8, typename T>
__device__ static inline void stage_f32(uint32_t buf, const T *acc, const Finish &f, int col0, int t) {
    int row = t / 32 * 16 + t % 32 / 4, q = t % 4;
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float a = finished<INT8>(f, acc[4 * j + 2 * h], col0 + 8 * j + 2 * q, h);
            float b = finished<INT8>(f, acc[4 * j + 2 * h + 1], col0 + 8 * j + 2 * q + 1, h);
            int r = row + 8 * h;
            uint32_t at = buf + r * ROW + (((2 * j + q / 2) ^ (r & 7)) << 4) + (q & 1) * 8;
            asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(a), "f"(b) : "memory");
        }
}
/* 16 行 × 16 列 bf16（v：两个 8×8 的上下、再右边的两个）写进一块的第 j、j+1 个 16 字节。 */
__device__ static inline void stage_bf16(uint32_t buf, const uint32_t *v, int j, int t) {
    int lane = t % 32, r = t / 32 * 16 + lane % 16;
    uint32_t at = buf + r * ROW + (((j + lane / 16) ^ (r & 7)) << 4);
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v[0]), "r"(v[1]),
                 "r"(v[2]), "r"(v[3])
                 : "memory");
}
/* 一次一块 64 行 × 128 字节，两块轮流：填、TMA 写出，填下一块时前一块还在写。 */
template <bool INT8, int OUT, typename T>
__device__ static __forceinline__ void write_tile(const GemmJob &j, const Tile &tile, T *acc, const Finish &f, uint32_t chunks, int row, int wg,
                                  int t) {
    enum { WIDTH = OUT == GEMM_F32 ? 32 : 64, N = (OUT == GEMM_GATED ? HALF : BN) / WIDTH };
    const CUtensorMap *map = &j.y[tile.part];
#pragma unroll
    for (int c = 0; c < N; c++) {
        uint32_t buf = chunks + c % 2 * CHUNK;
        if (t == 0) asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
        group_sync(wg);
        if (OUT == GEMM_F32) {
            stage_f32<INT8>(buf, acc + c * WIDTH / 2, f, c * WIDTH, t);
        } else {
#pragma unroll
            for (int i = 0; i < 8; i += 2) {
                uint32_t v[4];
#pragma unroll
                for (int k = 0; k < 4; k++) { /* 第 i+k/2 个 8 列，上或下 8 行 */
                    int at = (c * 8 + i + k / 2) * 4 + k % 2 * 2, col = (c * 8 + i + k / 2) * 8 + t % 4 * 2;
                    float x[2];
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        x[e] = finished<INT8>(f, acc[at + e], col + e, k % 2);
                        if (OUT == GEMM_GATED)
                            x[e] = gate_of(j, x[e], finished<INT8>(f, acc[(at + e) % 64 + 64], HALF + col + e, k % 2));
                    }
                    v[k] = pack2(x[0], x[1]);
                }
                stage_bf16(buf, v, i, t);
            }
        }
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        group_sync(wg);
        if (t == 0) store_box(map, buf, tile.col + c * WIDTH, row, j.part[tile.part].add);
    }
}

/* ---- 内核 ---- */

template <bool INT8> struct Accumulator {
    typedef float T;
};
template <> struct Accumulator<true> {
    typedef int T;
};

/* 取数的线程。 */
template <bool INT8, int OUT, int CLUSTER> __device__ static void produce(const GemmJob &j, uint32_t base, int rank) {
    enum { STEP = INT8 ? ROW : ROW / 2 };
    uint32_t full = base + AT_BARRIERS, empty = full + STAGES * 8, parity = 1;
    int stage = 0, tiles = j.blocks_m * j.blocks_n;
    for (int t = blockIdx.x / CLUSTER; t < tiles; t += gridDim.x / CLUSTER) {
        Tile a = tile_at<OUT>(j, t);
        int row = (a.m * CLUSTER + rank) * BM;
        for (int k = 0; k < j.steps; k++) {
            uint32_t bar = full + stage * 8, to = base + stage * STAGE_BYTES;
            barrier_wait(empty + stage * 8, parity);
            barrier_expect(bar, STAGE_BYTES);
            load_box(to, &j.x, k * STEP, row, bar, 0);
#pragma unroll
            for (int i = 0; i < 2 / CLUSTER; i++) { /* 权重的上、下一半 */
                int h = CLUSTER == 2 ? rank : i;
                load_box(to + A_BYTES + h * HALF * ROW, &j.w[OUT == GEMM_GATED ? h : a.part], k * STEP,
                         a.col + (OUT == GEMM_GATED ? 0 : h * HALF), bar, CLUSTER == 2 ? 3 : 0);
            }
            if (++stage == STAGES) stage = 0, parity ^= 1;
        }
    }
}
/* 逐列的系数放进共享内存：一个线程两列。 */
template <bool INT8, int OUT> __device__ static inline void load_columns(const GemmJob &j, const Tile &a, float *col, int t) {
    for (int h = 0; h < 2; h++) {
        const Part &p = j.part[OUT == GEMM_GATED ? h : a.part];
        int at = a.col + t + (OUT == GEMM_GATED ? 0 : h * HALF);
        float v = 0;
        if (INT8 && at < p.rows) v = real_at(p.scale, p.scale_type, at);
        if (!INT8 && p.bias && at < p.rows) v = p.bias[at];
        col[h * HALF + t] = v;
    }
}
template <bool INT8, int OUT, int CLUSTER>
__device__ static __forceinline__ void consume(const GemmJob &j, char *smem, uint32_t base, int rank, int wg, int t) {
    uint32_t full = base + AT_BARRIERS, empty = full + STAGES * 8, parity = 0;
    float *col = (float *)(smem + AT_COLUMNS) + wg * BN;
    int stage = 0, tiles = j.blocks_m * j.blocks_n;
    typename Accumulator<INT8>::T acc[128] = {};
    for (int i = blockIdx.x / CLUSTER; i < tiles; i += gridDim.x / CLUSTER) {
        Tile a = tile_at<OUT>(j, i);
        int row = (a.m * CLUSTER + rank) * BM + wg * 64;
        Finish f = {col, NULL, 0, {0, 0}};
        load_columns<INT8, OUT>(j, a, col, t);
        if (INT8) {
            const Part &p = j.part[a.part];
            if (OUT != GEMM_GATED && p.bias) f.bias = p.bias + a.col, f.limit = p.rows - a.col;
            for (int h = 0; h < 2; h++) {
                int token = row + t / 32 * 16 + t % 32 / 4 + 8 * h;
                f.s[h] = token < j.n ? j.x_scale[token] : 0;
            }
        }
        for (int k = 0; k < j.steps; k++) {
            uint32_t at = base + stage * STAGE_BYTES;
            uint64_t da = operand_at(at + wg * 64 * ROW), db = operand_at(at + A_BYTES);
            barrier_wait(full + stage * 8, parity);
            multiply_begin();
#pragma unroll
            for (int s = 0; s < 4; s++) multiply(acc, da + 2 * s, db + 2 * s, k | s);
            multiply_commit();
            multiply_wait<1>(); /* 上一步的做完了：它那一级可以再取 */
            int last = stage == 0 ? STAGES - 1 : stage - 1;
            if (k && t % 32 < CLUSTER) barrier_arrive(empty + last * 8, t % 32);
            if (++stage == STAGES) stage = 0, parity ^= 1;
        }
        multiply_wait<0>();
        settle(acc);
        int last = stage == 0 ? STAGES - 1 : stage - 1;
        if (t % 32 < CLUSTER) barrier_arrive(empty + last * 8, t % 32);
        write_tile<INT8, OUT>(j, a, acc, f, base + AT_CHUNKS + wg * 2 * CHUNK, row, wg, t);
    }
    if (t == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
#endif

template <bool INT8, int OUT, int CLUSTER>
__global__ __launch_bounds__((CONSUMERS + 1) * WG, 1) static void gemm_kernel(const __grid_constant__ GemmJob j) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) char smem[];
    uint32_t base = shared_at(smem);
    int wg = __shfl_sync(0xFFFFFFFFu, threadIdx.x / WG, 0), rank = CLUSTER == 2 ? cluster_rank() : 0;
    if (base % 1024) __trap(); /* swizzle 按地址算 */
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            barrier_init(base + AT_BARRIERS + s * 8, 1);
            barrier_init(base + AT_BARRIERS + (STAGES + s) * 8, CONSUMERS * 4 * CLUSTER);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (CLUSTER == 2) cluster_sync();
    if (wg == CONSUMERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == CONSUMERS * WG) produce<INT8, OUT, CLUSTER>(j, base, rank);
        __syncwarp();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        consume<INT8, OUT, CLUSTER>(j, smem, base, rank, wg, threadIdx.x % WG);
    }
    if (CLUSTER == 2) cluster_sync(); /* 别的块还可能写这一块的屏障 */
#endif
}

/* ---- 主机 ---- */

typedef CUresult (*EncodeFn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *,
                             const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                             CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
/* 驱动的 cuTensorMapEncodeTiled（不链接 libcuda）；没有为 NULL。 */
static EncodeFn encoder(void) {
    static void *fn;
    cudaDriverEntryPointQueryResult found;
    if (!fn && (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &fn, 12000, cudaEnableDefault, &found) != cudaSuccess ||
                found != cudaDriverEntryPointSuccess)) {
        cudaGetLastError(); /* 不粘滞 */
        fn = NULL;
    }
    return (EncodeFn)fn;
}
bool tensor_maps(Backend *b) {
    return strcmp(cuda_of(b)->isa, "sm_90") == 0 && encoder();
}
bool tensor_map(Backend *b, CUtensorMap *map, CUtensorMapDataType type, int item, const void *data, int64_t rows, int64_t cols,
                   int64_t ld, int box_rows) {
    cuuint64_t dims[2] = {(cuuint64_t)cols, (cuuint64_t)rows}, stride = (cuuint64_t)(ld * item);
    cuuint32_t box[2] = {(cuuint32_t)(ROW / item), (cuuint32_t)box_rows}, ones[2] = {1, 1};
    CUresult r = encoder()(map, type, 2, (void *)data, dims, &stride, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
                           CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return r == CUDA_SUCCESS || cuda_fail(b, ERR_DEVICE, "CUDA：cuTensorMapEncodeTiled 失败（%d）", (int)r);
}

static bool aligned(const void *p, int64_t row_bytes) {
    return (uintptr_t)p % 16 == 0 && row_bytes % 16 == 0;
}
static bool activates(Activation f) {
    return f == ACTF_SILU || f == ACTF_GELU_TANH || f == ACTF_GELU_QUICK;
}
/* 输出块（256 个 token × 256 行）分给各 cluster，末轮不太空才比 cuBLAS 快：它有更小的块。 */
static bool fills(const GemmCall *c) {
    int sms = 0;
    int64_t blocks = 0, width = c->form == GEMM_GATED ? HALF : BN;
    if (cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0) != cudaSuccess || sms < 2) return false;
    for (int i = 0; i < (c->form == GEMM_GATED ? 1 : c->n_out); i++) blocks += (c->out[i].rows + width - 1) / width;
    blocks *= (c->n + 2 * BM - 1) / (2 * BM);
    int64_t rounds = (blocks + sms / 2 - 1) / (sms / 2);
    return c->n >= BM && blocks * 100 >= rounds * (sms / 2) * 65;
}
bool gemm_accepts(Backend *b, const GemmCall *c) {
    int item = c->int8 ? 1 : 2;
    bool gated = c->form == GEMM_GATED, ok = tensor_maps(b) && aligned(c->x, c->ldx * item);
    ok = ok && c->n_out >= 1 && c->n_out <= GEMM_OUT_MAX && c->n <= INT32_MAX / 2 && c->cols <= INT32_MAX / 2;
    for (int i = 0; ok && i < c->n_out; i++) {
        const GemmOut *o = &c->out[i];
        ok = aligned(o->w, o->ldw * item) && o->rows <= INT32_MAX / 2 && !(o->add && c->form != GEMM_F32) &&
             aligned(o->y, o->rows * (c->form == GEMM_F32 ? 4 : 2));
    }
    ok = ok && fills(c);
    if (!gated) return ok;
    return ok && c->n_out == 2 && c->out[0].rows == c->out[1].rows && activates(c->f) &&
           !(c->int8 && (c->out[0].bias || c->out[1].bias));
}
void gemm_choose(Backend *b, GemmCall *c, bool opaque, bool may_fuse) {
    c->form = opaque ? GEMM_GATED : GEMM_F32;
    if (!opaque) return;
    cuda_of(b)->product = may_fuse && gemm_accepts(b, c);
    if (!cuda_of(b)->product) c->form = GEMM_BF16;
}

static bool describe(Backend *b, const GemmCall *c, int cluster, int group, GemmJob *j) {
    CUtensorMapDataType in = c->int8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    bool gated = c->form == GEMM_GATED, f32 = c->form == GEMM_F32;
    int item = c->int8 ? 1 : 2, width = gated ? HALF : BN;
    bool ok = tensor_map(b, &j->x, in, item, c->x, c->n, c->cols, c->ldx, BM);
    j->parts = c->n_out, j->n = (int)c->n, j->steps = (int)((c->cols * item + ROW - 1) / ROW), j->x_scale = c->x_scale;
    for (int i = 0; ok && i < c->n_out; i++) {
        const GemmOut *o = &c->out[i];
        ok = tensor_map(b, &j->w[i], in, item, o->w, o->rows, c->cols, o->ldw, HALF) &&
             tensor_map(b, &j->y[i], f32 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, f32 ? 4 : 2, o->y,
                    c->n, o->rows, o->rows, 64);
        j->part[i] = Part{j->blocks_n, (int)o->rows, o->bias, o->scale, o->scale_type, o->add};
        if (!gated || i == 0) j->blocks_n += (int)((o->rows + width - 1) / width);
    }
    j->blocks_m = (int)((c->n + cluster * BM - 1) / (cluster * BM)), j->group = group;
    const float log2e = 1.4426950409f, a = c->f == ACTF_GELU_TANH ? 1.5957691216f : c->f == ACTF_GELU_QUICK ? 1.702f : 1.0f;
    j->linear = a * log2e, j->cubic = c->f == ACTF_GELU_TANH ? 0.044715f * a * log2e : 0;
    return ok;
}
/* 沿 token 每 group 块（cluster 计）一组。 */
template <bool INT8, int OUT, int CLUSTER> static bool start(Backend *b, const GemmCall *c, int group) {
    static int resident; /* 同时在算的 cluster 个数；0 为还没有查 */
    void (*kernel)(GemmJob) = gemm_kernel<INT8, OUT, CLUSTER>;
    GemmJob j = {};
    cudaLaunchAttribute attr = {};
    attr.id = cudaLaunchAttributeClusterDimension;
    attr.val.clusterDim.x = CLUSTER, attr.val.clusterDim.y = attr.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(CLUSTER * 1024), config.blockDim = dim3((CONSUMERS + 1) * WG), config.dynamicSmemBytes = SMEM_BYTES;
    config.stream = STREAM(b), config.attrs = &attr, config.numAttrs = 1;
    if (!resident && (!cuda_ok(b, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SMEM_BYTES), "gemm") ||
                      !cuda_ok(b, cudaOccupancyMaxActiveClusters(&resident, kernel, &config), "gemm")))
        return false;
    if (!describe(b, c, CLUSTER, group, &j)) return false;
    int64_t tiles = (int64_t)j.blocks_m * j.blocks_n;
    config.gridDim = dim3((unsigned)(CLUSTER * (tiles < resident ? tiles : resident)));
    return cuda_ok(b, cudaLaunchKernelEx(&config, kernel, j), "gemm") && LAUNCHED(b, "gemm");
}

bool gemm_run(Backend *b, const GemmCall *c) {
    enum { GROUP = 8 };
    switch (c->form) {
    case GEMM_F32: return c->int8 ? start<true, GEMM_F32, 2>(b, c, GROUP) : start<false, GEMM_F32, 2>(b, c, GROUP);
    case GEMM_BF16: return c->int8 ? start<true, GEMM_BF16, 2>(b, c, GROUP) : start<false, GEMM_BF16, 2>(b, c, GROUP);
    default: return c->int8 ? start<true, GEMM_GATED, 2>(b, c, GROUP) : start<false, GEMM_GATED, 2>(b, c, GROUP);
    }
}
