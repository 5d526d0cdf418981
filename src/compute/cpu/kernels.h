/* kernels — 各指令集的内核表
 * isa/ 下的每个源文件按指令集各编译一次（Makefile 给 -DKERNEL_ISA=名 -DKERNEL_ISA_名），
 * 用 KERNEL_NAME 给外部符号加后缀；backend_cpu.c 在运行时按 CPUID 选一张表。
 * isa/ 之外的代码是纯 x86-64，不得含任何内建指令。 */
#ifndef PTQ_COMPUTE_CPU_KERNELS_H
#define PTQ_COMPUTE_CPU_KERNELS_H
#include "compute/cpu/cpu.h"

#define KERNEL_JOIN2(a, b) a##_##b
#define KERNEL_JOIN(a, b) KERNEL_JOIN2(a, b)
/* 例如在 isa=avx2 时 KERNEL_NAME(gemm_kernels) 为 gemm_kernels_avx2 */
#define KERNEL_NAME(name) KERNEL_JOIN(name, KERNEL_ISA)

typedef struct GemmKernels GemmKernels; /* gemm_kernels.h：矩阵乘、装包、量化 */
typedef struct AttnKernels AttnKernels; /* attn_kernels.h：注意力、打分 */
typedef struct ElemKernels ElemKernels; /* elem_kernels.h：逐元素与归一化 */
typedef struct GradKernels GradKernels; /* grad_kernels.h：反向与学习 */
typedef struct KvKernels KvKernels;     /* kv_kernels.h：键值缓存的展开 */

struct CpuKernels {
    const char *isa;
    const GemmKernels *gemm;
    const AttnKernels *attn;
    const ElemKernels *elem;
    const GradKernels *grad;
    const KvKernels *kv;
};

#define KERNELS_DECLARE(isa)                                                                       \
    extern const GemmKernels gemm_kernels_##isa;                                                   \
    extern const AttnKernels attn_kernels_##isa;                                                   \
    extern const ElemKernels elem_kernels_##isa;                                                   \
    extern const GradKernels grad_kernels_##isa;                                                   \
    extern const KvKernels kv_kernels_##isa;
KERNELS_DECLARE(generic)
KERNELS_DECLARE(avx2)
KERNELS_DECLARE(avx512)
KERNELS_DECLARE(avx512_bf16)
#endif
