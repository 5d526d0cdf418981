/* calib — 校准：样本集、逐块推进的隐藏状态、线性层输入的统计
 * 全部样本的隐藏状态停在「下一块的输入」处，一块一块往前推，所以只需一个稠密块在内存里。
 * 样本起点按 CPython 的 random.Random(seed).randint 抽取，与官方代码的校准集相同。 */
#ifndef PTQ_MODEL_CALIB_H
#define PTQ_MODEL_CALIB_H
#include "model/forward.h"
#include "model/group.h"

typedef struct CalibSet {
    const char *dataset; /* 名字，写入结果 */
    int64_t n_samples, length, seed;
    int64_t *offsets; /* (n_samples) 各样本在 token 串中的起点 */
    int32_t *ids;     /* (n_samples·length) */
    char sha256[HASH_HEX]; /* ids 的哈希 */
} CalibSet;

/* 从 n 个 token 中抽样：rng = Random(seed)，每个样本 randint(0, n−length−1)（GPTQ 官方 datautils.get_wikitext2）。
 * 内存来自 a。错误: 文本太短。 */
bool calib_draw(CalibSet *s, Arena *a, const char *dataset, const int32_t *ids, int64_t n,
                int64_t n_samples, int64_t length, int64_t seed, Err *e);

/* 要哪些统计（按位或）。 */
typedef enum {
    STAT_NONE = 0,
    STAT_GRAM = 1,    /* Σ xᵀx */
    STAT_ABSMAX = 2,  /* 逐列 max|x| */
    STAT_ABSMEAN = 4, /* 逐列 mean|x| */
    STAT_INPUTS = 8   /* 全部输入 */
} StatKinds;

/* 一组共用输入的线性层的统计，在后端内存；没有要的为 NULL。 */
typedef struct InputStats {
    int64_t n, cols;      /* token 数、列数 */
    int64_t n_inputs;     /* inputs 的行数：专家的至多是平均的 EXPERT_SHARE 倍（头几行），其余即 n */
    float *gram;          /* (cols, cols)，对称 */
    float *absmax;        /* (cols) */
    double *absmean;      /* (cols) */
    float *inputs;        /* (n_inputs, cols) */
} InputStats;

enum {
    EXPERT_MIN_TOKENS = 128, /* 路由到它的 token 少于此的专家，统计不可信 */
    EXPERT_SHARE = 4, EXPERT_ROWS = 512 /* n_inputs 另加这么多行 */
};

typedef struct CalibStream {
    Model *model;
    const CalibSet *set;
    Arena arena;   /* x */
    Arena inputs;  /* STAT_INPUTS 的数组 saved (room)，内容只到下一次 calib_stream_pass */
    float *saved;
    int64_t room;
    Workspace own, *work; /* work 是自己的，或借别的流的 */
    int64_t batch; /* 一批的样本数 */
    float *x;      /* (n_samples·length, hidden) 下一块的输入，在后端内存 */
} CalibStream;

/* 打开：x 为词嵌入（模型的词嵌入须已载入）。borrow 非 NULL 时借用它的工作区（两个流不同时过块）。 */
bool calib_stream_open(CalibStream *s, Model *m, const CalibSet *set, const CalibStream *borrow, Err *e);
void calib_stream_close(CalibStream *s);
/* max_memory 之下：放掉工作区，下一次 calib_stream_pass 再备（方法自己要用很多内存时，在两次之间）。 */
void calib_stream_rest(CalibStream *s);
enum { CALIB_ALL_GROUPS = -1 };
/* 第 layer 块的第 group 组（或全部）的统计的内存，清零；STAT_INPUTS 的不在内。 */
bool calib_stats_alloc(const Model *m, int64_t layer, unsigned kinds, int group, InputStats *stats, Arena *a,
                       Err *e);
/* 让全部样本过第 layer 块。参数: kinds 与 stats（block_n_groups 个，内存来自 a，后端内存）收集统计，只收第 group 组（或全部），
 * STAT_INPUTS 的只到下一次，kinds 为 0 时不收；advance 为真则 x 变为该块的输出。专家的统计只含路由到它的 token（n 即其个数）；
 * 各专家共用的输入（没有共享的专家时）归 INPUT_GATE_UP，不收 STAT_GRAM。 */
bool calib_stream_pass(CalibStream *s, int64_t layer, unsigned kinds, int group, InputStats *stats,
                       Arena *a, bool advance, Err *e);
#endif
