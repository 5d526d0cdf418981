/* engine — 计算线程：收下请求，连续装批，算完交回
 * 只有这一个线程用模型与分词器。两条路：只要打分的请求（echo + logprobs，至多再取一个最可能的 token）
 * 成批交给 tasks/request.h（共享开头、装批）；要生成的各开一个会话，每步所有时间线各走一个 token。
 * 一个请求的结果与同时还有谁无关。客户走了（gone）的请求在下一步就丢掉。 */
#ifndef PTQ_SERVE_ENGINE_H
#define PTQ_SERVE_ENGINE_H
#include <pthread.h>

#include "model/model.h"
#include "model/tokenizer.h"
#include "tasks/eos.h"
#include "serve/api.h"

/* 一个请求的归宿。各函数在计算线程里调用；finish 之后不再提到这个 owner。 */
typedef struct EngineHooks {
    bool (*gone)(void *owner);
    void (*open_stream)(void *owner);                       /* 流式：回应开始 */
    void (*send)(void *owner, const char *data, size_t n);  /* 流式：一段 */
    void (*finish)(void *owner, int status, Str *body);     /* body 归对方；流式为空 */
} EngineHooks;

typedef struct Engine Engine;
typedef struct EngineOptions {
    Model *model;
    const Tokenizer *tokenizer;
    const char *name;    /* 回应里的 model */
    const EosSet *eos;   /* 生成其中之一就停 */
    int64_t max_length;  /* 提示与生成合计至多多少 token */
    size_t max_queue;    /* 等着的与正在算的请求至多多少个 */
    EngineHooks hooks;
} EngineOptions;

/* 启动计算线程。 */
bool engine_open(Engine **g, const EngineOptions *o, Err *e);
/* 交进一个请求。成功则 request 归引擎（*request 清空），此后必有一次 finish。返回: 满了或正在停为 false。 */
bool engine_submit(Engine *g, ApiRequest *request, void *owner);
/* 停：手头与排队的请求都以 503 结束，等线程退出；此后 engine_submit 恒为 false。 */
void engine_stop(Engine *g);
/* 停（还没停的话）并释放。NULL 无妨。 */
void engine_close(Engine *g);

/* 计算设备坏了（GPU 的粘滞错误），再算什么都不成：写 *e，返回真。 */
bool engine_broken(Engine *g, Err *e);

typedef struct EngineCounts {
    int64_t requests, prompt_tokens, completion_tokens, dropped;
} EngineCounts;
EngineCounts engine_counts(Engine *g);
#endif
