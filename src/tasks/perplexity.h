/* perplexity — 困惑度与对基线的配对比较
 * 语言模型头与 log-softmax 为 f32，求和为 double，按窗口、按位置的固定次序；一窗口一会话，窗口之间互不影响。 */
#ifndef PTQ_TASKS_PERPLEXITY_H
#define PTQ_TASKS_PERPLEXITY_H
#include "model/forward.h"
#include "tasks/protocol.h"
#include "tasks/reference.h"

typedef struct PplJob {
    Model *model;
    const Protocol *protocol;
    const int32_t *ids;
    int64_t n_tokens;
    int64_t limit;       /* 最多窗口数，0 为全部 */
    int32_t bos;         /* bos_replaces 时用；<0 表示模型没有 */
    int64_t kl_windows;  /* 算 KL / 存隐藏状态的窗口数 */
    const Reference *reference; /* 基线；NULL 表示没有 */
    ReferenceWriter *writer;    /* 本次是基线：存档；NULL 表示不存 */
} PplJob;

typedef struct PplResult {
    int64_t n_windows, n_windows_total, n_scored;
    double *window_nll; /* (n_windows) 各窗口打分位置的平均 NLL（nat） */
    double nll_mean, nll_stderr; /* stderr 以窗口为单位 */
    double ppl, ppl_gptq, ppl_stderr;
    double median_nll;
    int64_t worst_window;
    int64_t *outliers; /* 偏离中位数超过 5 倍稳健标准差的窗口 */
    int64_t n_outliers;
    KvBytes kv;         /* 各窗口末尾的键值缓存占的字节，逐项合计；除以 n_windows·窗口长即每 token */
    double seconds, tok_per_s; /* 全部窗口的 token 数 / 秒 */
    /* 对基线（n_kl > 0 时有效） */
    int64_t n_kl;   /* 位置数 */
    double kl_mean, kl_median, kl_p99, kl_max, same_top1;
} PplResult;

/* 评测。数组来自 a。错误: 文本短于一个窗口、非有限值、中断、设备。 */
bool perplexity_run(const PplJob *job, PplResult *r, Arena *a, Err *e);
/* 一批算多少个窗口：行数约 rows（后端的 batch_rows）。 */
int64_t perplexity_batch(const Protocol *p, int64_t rows);
#endif
