/* session — 一条时间线：逐段喂入 token，键值缓存留住过去
 * 任何任务只见会话，不见方法；逐 token 解码与一次预填充的结果逐位相同。 */
#ifndef PTQ_MODEL_SESSION_H
#define PTQ_MODEL_SESSION_H
#include "model/forward.h"

typedef struct Session {
    Model *model;
    Arena arena;    /* kv 数组 */
    Arena kv_arena; /* 各层的键值，在后端内存 */
    Workspace work;
    int64_t capacity, length; /* 缓存容量、已有的位置数 */
    KvLayer *kv;              /* (n_layers) */
} Session;

/* 打开。参数: capacity 最多的位置数；max_rows 一次最多喂入的 token 数。 */
bool session_open(Session *s, Model *m, int64_t capacity, int64_t max_rows, Err *e);
void session_close(Session *s);
void session_reset(Session *s);
/* 喂入 n 个 token（自动分段）。hidden（后端内存）非 NULL 时写入各位置最终归一化后的隐藏状态 (n, hidden)。错误: 容量不足、id 越界。 */
bool session_forward(Session *s, const int32_t *ids, int64_t n, float *hidden, Err *e);
/* n 个会话各喂入一个 token，一批算完：ids (n) → hidden (n, hidden)。w 的行数须不少于 n；各会话不可相同。
 * 每个会话的结果与单独 session_forward 逐位相同。错误: 同上。 */
bool sessions_step(Session *const *s, size_t n, Workspace *w, const int32_t *ids, float *hidden,
                   Err *e);
/* 现在的键值缓存占的字节，逐项清点（残留窗口在内）。 */
KvBytes session_kv_bytes(const Session *s);
/* 不量化的键值缓存每 token 的字节数；dtype 为 F32 或 F16。 */
size_t session_kv_bytes_per_token(const ModelConfig *c, DType dtype);
/* 检查 id 都在词表内。 */
bool session_check_ids(const ModelConfig *c, const int32_t *ids, int64_t n, Err *e);
#endif
