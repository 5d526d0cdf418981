/* experiment — 一次实验打开的全部东西，以及它的身份 run_key
 * 打开是一串 open，失败后 experiment_close 接受半开的状态。身份只由影响数字的东西决定：
 * 设置、权重、分词器、文本的哈希与程序版本。 */
#ifndef PTQ_EXPERIMENT_H
#define PTQ_EXPERIMENT_H
#include "evaluator.h"
#include "methods/job.h"
#include "model/calib.h"
#include "runner.h"

typedef struct Experiment {
    Arena arena;
    Config config;
    Backend backend;
    Model model;
    Tokenizer *tokenizer;
    EvalText *texts;
    size_t n_texts, n_open_texts;
    TaskSet tasks;
    const char **bridge_tasks; /* 不是原生、交给 lm_eval 的任务（bridge.h） */
    size_t n_bridge_tasks;
    const char *bridge_tokenizer;
    CalibSet calib; /* 方法需要校准时有效 */
    bool has_calib;
    char protocol[32];
    char weights_sha256[HASH_HEX];
    char config_sha256[HASH_HEX]; /* config.json；GGUF 为空（元数据在权重文件里） */
    char stats_key[HASH_HEX];     /* 未量化模型的校准统计的身份 */
    char run_key[HASH_HEX];
    char task_key[HASH_HEX]; /* 见 Evaluation */
    int64_t max_length;
    EosSet eos;              /* 生成的终点 */
    const char *model_path, *data_dir, *results_dir, *reference_dir;
    ComputeMode compute;
    json_t *warnings, *fallbacks;
    int64_t full_rows; /* 退让之前的 Backend.batch_rows */
    bool backend_open, model_open;
} Experiment;

/* 配置 → 后端 → 模型（只读元数据）→ 分词器 → 文本 → run_key。 */
bool experiment_open(Experiment *x, const ConfigRequest *r, Err *e);
/* 量化，并定好评测时键值缓存的方式；之后模型可以前向。job 由这里填，用完（不论成败）job_close。 */
bool experiment_quantize(Experiment *x, QuantJob *job, Err *e);
/* 记下一处退让，并打印。 */
void experiment_fall_back(Experiment *x, const char *fmt, ...) PTQ_PRINTF(2, 3);
/* 打印模型与计算方式。 */
void experiment_describe(const Experiment *x);
void experiment_close(Experiment *x);
bool experiment_is_baseline(const Experiment *x);
/* 评测要的各样东西（借自 x）。 */
Evaluation experiment_evaluation(const Experiment *x);
#endif
