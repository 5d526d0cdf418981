/* job — 一次量化的内部结构（方法文件看不到，只供 base*.c 与 runner） */
#ifndef PTQ_METHODS_JOB_H
#define PTQ_METHODS_JOB_H
#include "methods/base.h"
#include "model/model.h"
#include "model/statset.h"

struct QuantJob {
    const Method *method;
    const void *options;
    char track; /* 'A' 'B' 'C'；0 当作 'A' */
    Model *model;
    const CalibSet *calib; /* 不需要校准时为 NULL */
    const char *block_dir; /* 量化好的块存在这里，中断后接着做；NULL 为不存 */
    const char *block_key; /* 这次运行的身份，64 个十六进制字符 */
    bool save_failed;      /* 存块失败过（只警告一次） */
    const char *stats_dir; /* 未量化模型的校准统计存在这里，供别的运行用；NULL 为不存 */
    const char *stats_key; /* 决定这些统计的一切的哈希 */
    size_t stats_limit;    /* 存档总共至多多少字节 */
    bool stats_shared;     /* 用了存下的统计 */
    Arena *block_arena;    /* 正在量化的块的量化矩阵的内存；NULL 即模型的 */
    Arena scratch, host;   /* 临时内存：后端的、主机的 */
    Arena notes;           /* fallbacks 的文字 */
    const char **fallbacks;
    size_t n_fallbacks, cap_fallbacks;
    Hessian factor;        /* 最近一次分解，输入相同的线性层共用；换了统计就作废 */
    Arena factor_arena, factor_host; /* 它的内存：后端的、主机的 */
    const InputStats *factor_of; /* NULL 为没有 */
    bool factor_descending;
    double factor_damp;
    double squared_error;  /* 各量化层误差平方和 */
    int64_t n_quantized;   /* 量化的权重个数 */
    double calib_seconds;  /* 校准前向与统计的用时 */
    double check_seconds;  /* 算量化误差的用时（不计入量化时间） */
};

/* 量化整个模型：method->quantize，然后 model_finish。job 由调用者清零；calib 可为 NULL；用完 job_close。 */
bool job_run(QuantJob *job, const Method *method, const void *options, Model *model,
             const CalibSet *calib, Err *e);
void job_close(QuantJob *job);

/* 以下在 base*.c 之间用。 */

/* 存档里一种统计的 key。返回: 不存为假。 */
bool stats_key(const QuantJob *job, const char *what, char key[HASH_HEX]);
/* 存下一套（共 n 份）的第 i 份；存不下只说一声，本次不再存。 */
void stats_save(QuantJob *job, const char *key, int64_t i, int64_t n, const FilePart *parts,
                size_t n_parts);
/* 第 layer 块的各组统计：stats 已按形状分配（后端内存）。错误: 存档的形状不符、内存不足。 */
bool stats_restore_block(const StatSet *set, int64_t layer, Backend *b, InputStats *stats,
                         int n_groups, Err *e);
void stats_save_block(QuantJob *job, const char *key, int64_t layer, int64_t n_layers,
                      const InputStats *stats, int n_groups);
/* 作废最近的 Hessian 分解（统计换了）。 */
void job_drop_factor(QuantJob *job);
#endif
