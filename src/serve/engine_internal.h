/* engine_internal — 计算线程各部分共用的结构
 * engine.c 管队列与请求的一生；engine_score.c 成批打分；engine_generate.c 预填与逐 token 生成。 */
#ifndef PTQ_SERVE_ENGINE_INTERNAL_H
#define PTQ_SERVE_ENGINE_INTERNAL_H
#include "serve/engine.h"
#include "serve/sequence.h"

enum {
    ENGINE_SLOTS = 64,     /* 同时生成的时间线 */
    PREFILL_ROWS = 128,    /* 预填一次的 token 数 */
    SCORE_TOKENS = 8192,   /* 一批打分的 token 数（至少一条提示） */
    LOGIT_ROWS = 16        /* 一次展开的 logits 行数 */
};
#define ENGINE_KV_BYTES 1e9 /* 同时生成的时间线的键值缓存合计 */

typedef struct Work {
    struct Work *next;
    ApiRequest request;
    void *owner;
    TokenIds *prompts;  /* (n_prompts) */
    Sequence *sequences; /* (n_prompts × n) */
    size_t n, started, finished; /* 回答数；已占位置的、已写完的 */
    size_t scored;      /* 打分的路：已算完几条提示 */
    bool prepared, score_only, streaming, dead;
    int64_t serial, created;
    ApiUsage usage;
} Work;

struct Engine {
    EngineOptions o;
    pthread_t thread;
    pthread_mutex_t lock; /* 以下到 counts 由它保护 */
    pthread_cond_t wake;
    Work *queue, **queue_end;
    size_t n_live; /* 排队的与手头的 */
    bool stop;
    EngineCounts counts;
    Err broken; /* 设备的错误；code 为 ERR_NONE 即没有 */
    /* 以下只归计算线程 */
    Arena arena;
    Work *live; /* 手头的，先来的在前 */
    Sequence *active[ENGINE_SLOTS];
    Work *active_work[ENGINE_SLOTS];
    size_t n_active;
    double kv_used; /* 字节 */
    Workspace w;
    Arena tensors;   /* 后端内存：hidden、head_out */
    float *hidden;   /* (PREFILL_ROWS, hidden) */
    float *head_out; /* (LOGIT_ROWS, vocab) 头的输出，logits 是它在主机的副本 */
    float *logits;
    double *sample_work;
    int32_t *sample_order;
    int64_t serial;
};

/* engine.c */
void work_fail(Engine *g, Work *w, const ApiError *err);
/* 由 Err 得到回给客户的错误：中断、内存不足为 503，其余为 500。设备的错误另记下（engine_broken）。 */
void work_fail_err(Engine *g, Work *w, const Err *e);
bool work_gone(Engine *g, Work *w);
/* 全部回答写完：送出回应。 */
void work_finish(Engine *g, Work *w);
/* 流式：送出 s 的新内容。 */
bool work_stream(Engine *g, Work *w, Sequence *s, Err *e);

/* engine_score.c：从手头的请求里凑一批打分，算完的交回。返回: 有没有做事。 */
bool engine_score(Engine *g);
/* engine_generate.c：给等着的回答占位置；预填一段；全部走一步。返回: 有没有做事。 */
void engine_admit(Engine *g);
bool engine_prefill(Engine *g);
bool engine_step(Engine *g);
/* 请求没了（走了、出错）：放掉它占的位置。 */
void engine_release(Engine *g, const Work *w);
#endif
