/* staged — 算子测试打开后端的门：平时是 CPU 的各指令集；PTQ_TEST_BACKEND=cuda 时是 CUDA（套着主机指针的外壳） */
#ifndef PTQ_TESTS_OPS_STAGED_H
#define PTQ_TESTS_OPS_STAGED_H
#include "compute/backend.h"

/* 测的是 CUDA。 */
bool ref_on_cuda(void);
/* 同 backend_open_cpu；在 CUDA 上 isa 只认 NULL、generic（f32）与 avx512_bf16（bf16），其余是 ERR_UNSUPPORTED。 */
bool ref_backend(Backend *b, int n_threads, ComputeMode compute, const char *isa, Err *e);
#endif
