/* env_info — 运行环境的自动记录（指南 §9）
 * git 提交与是否有未提交修改（编译时与运行时）、编译器与参数、库版本、CPU 型号与指令集、内核、内存、conda 环境名。 */
#ifndef PTQ_ENV_INFO_H
#define PTQ_ENV_INFO_H
#include "io/json.h"

#define PTQ_VERSION "0.1.0"

/* 环境对象（含 gpu、torch、transformers 键，没有则为 null）。内存不足返回 NULL。 */
json_t *env_info(const char *root);
/* 本进程的峰值 RSS（字节）。 */
size_t env_rss_peak(void);
/* 可执行文件所在的项目根：PTQ_BENCH_ROOT，或由 /proc/self/exe 向上找 configs/config.yaml，或当前目录。 */
const char *env_project_root(void);
#endif
