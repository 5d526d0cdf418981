/* protocol — 困惑度协议的实现 */
#include "tasks/protocol.h"

#include <stdio.h>
#include <string.h>

enum { MIN_WINDOW = 8, MAX_WINDOW = 1 << 20 };

bool protocol_parse(Protocol *p, const char *name, Err *e) {
    long long len = 0, stride = 0;
    int used = 0;
    *p = (Protocol){0};
    if (strlen(name) < sizeof p->name) {
        if (sscanf(name, "gptq-%lld%n", &len, &used) == 1 && !name[used]) {
            *p = (Protocol){.window = len, .stride = len, .first_target = 1};
        } else if (sscanf(name, "strided-%lld-%lld%n", &len, &stride, &used) == 2 && !name[used]) {
            *p = (Protocol){.window = len, .stride = stride, .first_target = len - stride};
        } else if (sscanf(name, "llamacpp-%lld%n", &len, &used) == 1 && !name[used]) {
            *p = (Protocol){.window = len, .stride = len, .first_target = len / 2 + 1,
                            .bos_replaces = true};
        }
    }
    if (p->window == 0)
        return err_set(e, ERR_CONFIG,
                       "不认识的困惑度协议 '%s'（可用 gptq-2048、strided-2048-512、llamacpp-512 等，数字可换）",
                       name);
    if (p->window < MIN_WINDOW || p->window > MAX_WINDOW || p->stride < 1 ||
        (p->stride >= p->window && strncmp(name, "strided", 7) == 0))
        return err_set(e, ERR_CONFIG, "困惑度协议 '%s' 的窗口须在 [%d, %d]，步长小于窗口", name,
                       MIN_WINDOW, MAX_WINDOW);
    snprintf(p->name, sizeof p->name, "%s", name);
    return true;
}

int64_t protocol_windows(const Protocol *p, int64_t n_tokens) {
    return n_tokens < p->window ? 0 : (n_tokens - p->window) / p->stride + 1;
}

int64_t protocol_scored(const Protocol *p) {
    return p->window - p->first_target;
}
