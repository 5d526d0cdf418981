/* runner — 一次实验的全过程
 * 配置 → 计划 → 打开模型 → 量化 → 评测 → 结果 JSON。失败的实验也是一个结果（带状态与原因）。 */
#ifndef PTQ_RUNNER_H
#define PTQ_RUNNER_H
#include "config.h"
#include "io/json.h"

typedef struct RunRequest {
    ConfigRequest config;
    const char *command;  /* 可复制的完整命令行 */
    /* 算一次 fp16 基线（另开进程，内存的峰值不相混）；NULL 为不补算 */
    bool (*make_baseline)(void *ctx, const ConfigRequest *fp16, Err *e);
    void *make_baseline_ctx;
    const char *dump_linear, *dump_dir; /* 可选：把这一层的 w/scale/zero/code 写成 .npy */
} RunRequest;

/* 运行一次。返回: 成功时 *result 为完整结果对象（调用者 decref）。失败时若已到能记录的程度，*result 也非空
 * （status.ok=false），同时置 e；否则 *result 为 NULL。 */
bool run_experiment(const RunRequest *r, json_t **result, Err *e);
/* --dry_run：解析并检查一切、打印计划（配置来源、文件、形状、内存、预计时间），不计算。 */
bool run_plan(const RunRequest *r, Err *e);
/* 只算 run_key（读配置、权重与数据的哈希），供 run_all 跳过已有的结果。 */
bool run_key_of(const ConfigRequest *r, char key[65], Err *e);
#endif
