/* plugin — 主程序与 CUDA 插件之间的约定
 * 插件导出版本号与一个打开函数；版本不同（后端的结构变了）即拒绝。 */
#ifndef PTQ_COMPUTE_PLUGIN_H
#define PTQ_COMPUTE_PLUGIN_H
#include "compute/backend.h"

#define PTQ_CUDA_PLUGIN                                                                            \
    ((int)(sizeof(Backend) + sizeof(DeviceInfo)) * 10000 + (int)sizeof(BackendOps) * 10 + 2)
#define PTQ_CUDA_PLUGIN_OPEN "ptq_cuda_open"
#define PTQ_CUDA_PLUGIN_VERSION "ptq_cuda_version"

/* 打开第一个 GPU 写进 *b。host 是已打开的 CPU 后端，成功时归 b。 */
typedef bool CudaPluginOpen(Backend *b, Backend *host, ComputeMode compute, Err *e);
#endif
