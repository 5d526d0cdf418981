/* forward_stack — 许多窗口一起、一块一块地走完模型：流式时每块的权重只载入一次
 * 一块对各批依次派发，不等；派发过前几批就预取下一块，传的同时 GPU 在算。 */
#include "base/log.h"
#include "model/forward_parts.h"

enum { LAUNCH_AHEAD = 12 }; /* 先派发这么多批再去传下一块：传的时候 GPU 不闲着，派发的队列也不满 */

/* 第 i 批的窗口数。 */
static int64_t windows_in(int64_t n_windows, int64_t batch, int64_t i) {
    int64_t rest = n_windows - i * batch;
    return rest < batch ? rest : batch;
}

static bool run_stack(Model *m, Workspace *w, float *x, const int32_t *ids, int64_t n_windows, int64_t len,
                      int64_t batch, Segment *s, Err *e) {
    int64_t n = (n_windows + batch - 1) / batch, step = batch * len * m->config.hidden;
    int64_t ahead = n < LAUNCH_AHEAD ? n - 1 : LAUNCH_AHEAD - 1;
    for (int64_t i = 0; i < n; i++) {
        int64_t k = windows_in(n_windows, batch, i);
        w->x = x + i * step;
        forward_embed(m, w, ids + i * batch * len, k * len, s, (size_t)k);
    }
    for (int64_t l = 0; l < m->config.n_layers; l++)
        for (int64_t i = 0; i < n; i++) {
            int64_t k = windows_in(n_windows, batch, i);
            w->x = x + i * step;
            if (!interrupt_check(e) || !forward_block(m, l, w, k * len, s, (size_t)k, NULL, e)) return false;
            if (i == ahead) model_prefetch_next(m, l);
        }
    return forward_finite(m, e);
}

bool forward_stack(Model *m, Workspace *w, float *x, const int32_t *ids, int64_t n_windows, int64_t len,
                   int64_t batch, Err *e) {
    Arena tmp = {0};
    Segment *s = ARENA_ARRAY(&tmp, Segment, batch, e);
    float *own = w->x;
    CHECK(batch * len <= w->max_rows);
    for (int64_t i = 0; s && i < batch; i++) s[i] = (Segment){.row0 = i * len, .n = len};
    bool ok = s && model_ensure_rope(m, len, e) && run_stack(m, w, x, ids, n_windows, len, batch, s, e);
    w->x = own;
    arena_free(&tmp);
    return ok;
}
