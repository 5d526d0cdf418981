/* forward_parts — 前向各文件之间的契约（只供 forward.c、forward_linear.c、forward_stack.c、experts.c、mla.c 包含） */
#ifndef PTQ_MODEL_FORWARD_PARTS_H
#define PTQ_MODEL_FORWARD_PARTS_H
#include "model/forward.h"

/* 共用输入 in 的 n_out 个线性层（w、bias 由 l 填），含激活的量化。整批一起算；「整个张量一个 s」的逐段算。 */
void forward_linears(Model *m, const Linear *const *l, LinearOut *out, int n_out, const LinearIn *in, int64_t n,
                     const Workspace *w);
/* y(n, rows) = l(x(n, cols))，含激活的量化与偏置。 */
void forward_linear(Model *m, const Linear *l, float *y, const float *x, int64_t n,
                    const Workspace *w);
/* 家族的归一化（RMS 或 LayerNorm），x (n, d)；weight、bias 可为 NULL，形状 (period, d)。 */
void forward_norm(Model *m, float *y, const float *x, const float *weight, const float *bias,
                  int64_t n, int64_t d, int64_t period, double eps);
/* 交给旁听者（可为 NULL）。返回: 后面还要算。 */
bool forward_show(BlockTap *tap, int group, const float *x, int64_t n, int64_t cols);
/* y = down(f(gate x)·(up x))，没有门时 y = down(f(up x))；用 w->gate、w->up。group 是 gate、up 的输入组，down 的是下一个。
 * 返回: 旁听者没有叫停。 */
bool forward_mlp(Model *m, const Linear *gate, const Linear *up, const Linear *down, float *y,
                 const float *x, int64_t n, int group, Workspace *w, BlockTap *tap);

/* 第 layer 块，同 block_forward，但不等结果：非有限值只记下，由 forward_finite 一起查。 */
bool forward_block(Model *m, int64_t layer, Workspace *w, int64_t n, const Segment *segments, size_t n_segments,
                   BlockTap *tap, Err *e);
bool forward_finite(Model *m, Err *e);

AttnSpec forward_attn_spec(const Model *m, int64_t layer, int64_t first);
/* 记下没有缓存的段存了多少。 */
void forward_count_kv(Workspace *w, KvBytes b);
/* 这一批的注意力能不能一趟做完：各段都自成一条时间线、从头开始，缓存不量化，过去不必留下；能就填好 *job（除了 q、k、v、out 与
 * 各段）。job->half_in、half_out：q、k、v 与输出用 bf16。 */
bool prefill_plan(Model *m, int64_t layer, const Workspace *w, int64_t n, const Segment *segments, size_t n_segments,
                  const BlockTap *tap, PrefillJob *job);
/* w->q、w->k、w->v（旋转之前）→ w->att。 */
void prefill_attend(Model *m, int64_t layer, Workspace *w, const Segment *segments, size_t n,
                    const PrefillJob *plan);

/* 混合专家的 MLP：w->h → w->h。 */
void experts_forward(Model *m, int64_t layer, Workspace *w, int64_t n, BlockTap *tap);
typedef struct Routing Routing;
/* 路由的名单，至多 max_rows 行。 */
Routing *routing_new(Arena *a, const ModelConfig *c, int64_t max_rows, Err *e);

/* MLA：w->h → w->q、w->k、w->v（各头 [rope|nope]，值补零到 head_dim）。返回: 旁听者没有叫停。 */
bool mla_project(Model *m, int64_t layer, Workspace *w, int64_t n, BlockTap *tap);
/* 注意力的输出去掉补的零：(n, heads·v_dim)，在 w 的某处。 */
const float *mla_values(Model *m, Workspace *w, int64_t n);
#endif
