/* protocol — 困惑度协议：有名字的对象
 * 没有协议的困惑度没有意义；名字写在每个数字旁，榜单从不混排。含义见 docs/protocols.md。 */
#ifndef PTQ_TASKS_PROTOCOL_H
#define PTQ_TASKS_PROTOCOL_H
#include <stdint.h>

#include "base/err.h"

typedef struct Protocol {
    char name[32];
    int64_t window;       /* 窗口长 L（token） */
    int64_t stride;       /* 相邻窗口起点之差 */
    int64_t first_target; /* 窗口内第一个打分的位置（作为被预测者，从 0 数） */
    bool bos_replaces;    /* 窗口首 token 换成 BOS（模型有 BOS 且默认添加时） */
} Protocol;

/* 解析 gptq-L、strided-L-S、llamacpp-L。L 在 [8, 1048576]，S 在 [1, L)。错误: 不认识的名字或越界。 */
bool protocol_parse(Protocol *p, const char *name, Err *e);
/* n 个 token 能切成多少窗口（尾部不足者丢弃）。 */
int64_t protocol_windows(const Protocol *p, int64_t n_tokens);
/* 每个窗口打分的位置数。 */
int64_t protocol_scored(const Protocol *p);
#endif
